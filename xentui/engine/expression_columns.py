"""Trace records by the million: what is the same for all of a class is looked up, the rest compared as columns.

A record's *class* is all that decides what its slots mean: its kind, for hypercalls the number and the domain's word
size, and for refusals whether an entry was refused. There are 1,280 classes, so that whatever depends on names alone
is a table of that size, and millions of records are filtered without decoding one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from xentui.engine.trace import COLUMNS, KIND_NAMES, U64, Kind
from xentui.engine.trace_decode import Slot, hypercall_text, layout
from xentui.engine.xen import refusals
from xentui.engine.xen.abi import hypercalls

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = 1280
_NUMBERS = 255
"""Hypercall numbers from here on are one class: no Xen has them."""
_NO_TABLE = 255
"""The class of refusals that name no entry."""
_FIRST_CALL = 256
_CALLS = 512

Comparison = Callable[[Any, Any], Any]
OPERATORS: dict[str, Comparison] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


_SMALL = 65_536
FEW = 4
"""Rows that are less than one in so many are worth being picked out of a column."""
_ERRORS = 4096  # a result is small once so much has been added: errors wrap around


def class_of(kind: int, number: int, wide: bool) -> int:
    """The class of a record; `wide` says that its domain is a 64-bit one."""
    if kind in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY):
        return _FIRST_CALL + (kind - 1) * _CALLS + wide * 256 + min(number, _NUMBERS)
    if kind == Kind.REFUSAL and number & 0xFF == refusals.NO_TABLE:
        return _NO_TABLE
    return kind


@cache
def slots_of(which: int) -> tuple[Slot, ...]:
    """What records of a class hold."""
    if which >= _FIRST_CALL:
        kind, wide, number = kind_of(which), (which - _FIRST_CALL) >> 8 & 1, which & 0xFF
        return layout(kind, number, 64 if wide else 32)
    if which == _NO_TABLE:
        return layout(Kind.REFUSAL, refusals.NO_TABLE, 64)
    return layout(which, 0, 64)


@cache
def kind_of(which: int) -> int:
    """The kind of a class."""
    if which >= _FIRST_CALL:
        return 1 + (which - _FIRST_CALL) // _CALLS
    return Kind.REFUSAL if which == _NO_TABLE else which


@cache
def title_of(which: int) -> str:
    """The name of a class: a hypercall's, or the kind's."""
    if which >= _FIRST_CALL:
        return hypercall_text(which & 0xFF)
    kind = kind_of(which)
    return KIND_NAMES.get(kind, f"kind_{kind}")


@cache
def known_classes() -> tuple[int, ...]:
    """The classes that this version writes."""
    plain = [kind for kind in KIND_NAMES if kind not in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY)]
    calls = [
        class_of(kind, number, wide)
        for kind in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY)
        for number in hypercalls.NAMES
        for wide in (False, True)
    ]
    return (*plain, _NO_TABLE, *calls)


class Columns:
    """The columns of many records, as `Slot.read` wants them: by position, or `d` by name."""

    def __init__(self, columns: Mapping[str, NDArray[Any]] | NDArray[Any], narrow: frozenset[int]) -> None:
        self._columns = columns
        self._narrow = narrow
        length = getattr(columns, "length", None)
        self.length: int = len(columns["kind"]) if length is None else length

    def __getitem__(self, position: int) -> NDArray[Any]:
        return self._columns[COLUMNS[position][0]]

    def column(self, name: str) -> NDArray[Any]:
        """A column by name."""
        return self._columns[name]

    @property
    def d(self) -> NDArray[Any]:
        """The column that also holds a 32-bit guest's fifth argument."""
        return self._columns["d"]

    def empty(self) -> NDArray[Any]:
        """No record."""
        import numpy as np

        return np.zeros(self.length, np.bool_)

    def full(self) -> NDArray[Any]:
        """Every record."""
        import numpy as np

        return np.ones(self.length, np.bool_)

    @cached_property
    def classes(self) -> NDArray[Any]:
        """The class of each record. Columns that can `remember(key, make)` keep them for the next expression."""
        remember = getattr(self._columns, "remember", None)
        found: NDArray[Any] = remember(self._narrow, self._find_classes) if remember else self._find_classes()
        return found

    def _find_classes(self) -> NDArray[Any]:
        import numpy as np

        kind, number = self._columns["kind"], self._columns["number"]
        found = kind.astype(np.uint16)
        calls = np.minimum(number, _NUMBERS).astype(np.uint16) + (found - np.uint16(1)) * _CALLS + _FIRST_CALL
        if self._narrow:
            domain = self._columns["domain"]
            calls += np.where(np.isin(domain, sorted(self._narrow)), 0, 256).astype(np.uint16)
        else:
            calls += np.uint16(256)
        np.copyto(found, calls, where=(kind == Kind.HYPERCALL) | (kind == Kind.MULTICALL_ENTRY))
        refused = kind == Kind.REFUSAL
        if refused.any():
            found[refused & (number & 0xFF == refusals.NO_TABLE)] = _NO_TABLE
        return found

    @cached_property
    def present(self) -> list[int]:
        """The classes that occur."""
        import numpy as np

        return [int(which) for which in np.flatnonzero(np.bincount(self.classes, minlength=CLASSES))]

    def within(self, classes: Iterable[int]) -> NDArray[Any]:
        """Which records are of one of the classes."""
        import numpy as np

        table = np.zeros(CLASSES, np.bool_)
        table[list(classes)] = True
        return np.take(table, self.classes)

    def readers(self, name: str) -> Iterator[tuple[Slot, list[int]]]:
        """The slots of a name among the classes that occur, those that are read and shown alike together."""
        groups: dict[Any, tuple[Slot, list[int]]] = {}
        for which in self.present:
            for slot in slots_of(which):
                if slot.name == name:
                    groups.setdefault((reader_key(slot), slot.show), (slot, []))[1].append(which)
        yield from groups.values()


def reader_key(slot: Slot) -> Any:
    """Equal for slots that lie in the same place."""
    return slot.read.__reduce__()[1] if isinstance(slot.read, operator.itemgetter) else slot.read


def compare(left: Any, how: Comparison, right: Any) -> Any:
    """Compare as whole numbers, whatever the arrays' types: numpy alone would lose precision, or wrap."""
    import numpy as np

    if isinstance(left, int) and isinstance(right, int):
        return how(left, right)
    if isinstance(left, int):
        return compare(right, _TURNED[how], left)
    if isinstance(right, int):
        bounds = np.iinfo(left.dtype)
        if bounds.min <= right <= bounds.max:
            return how(left, left.dtype.type(right))
        return np.full(len(left), how(0, right))  # beyond what the column can hold: the same for each
    if np.int64 not in (left.dtype, right.dtype) or left.dtype == right.dtype:
        return how(left, right)
    if left.dtype != np.int64:
        return compare(right, _TURNED[how], left)
    below = left < 0
    return np.where(below, how(-1, 0), how(left.view(np.uint64), right.astype(np.uint64)))


_TURNED: dict[Comparison, Comparison] = {
    operator.eq: operator.eq,
    operator.ne: operator.ne,
    operator.lt: operator.gt,
    operator.le: operator.ge,
    operator.gt: operator.lt,
    operator.ge: operator.le,
}


def where(values: NDArray[Any], show: Callable[[int], str], holds: Callable[[str], bool]) -> NDArray[Any]:
    """Which values' texts satisfy something, each distinct value shown once."""
    import numpy as np

    if not len(values):
        return np.zeros(0, np.bool_)
    shifted = values.astype(np.uint64) + np.uint64(_ERRORS)
    small = shifted < _SMALL
    if small.all():
        return _looked_up(shifted, show, holds)
    found = np.zeros(len(values), np.bool_)
    found[small] = _looked_up(shifted[small], show, holds)
    large = values[~small]
    good = [value for value in np.unique(large).tolist() if holds(show(value))]
    if good:
        found[~small] = np.isin(large, np.array(good, large.dtype))
    return found


def _looked_up(shifted: NDArray[Any], show: Callable[[int], str], holds: Callable[[str], bool]) -> NDArray[Any]:
    import numpy as np

    counts = np.bincount(shifted.astype(np.int64), minlength=1)
    table = np.zeros(len(counts), np.bool_)
    for value in np.flatnonzero(counts).tolist():
        table[value] = holds(show((value - _ERRORS) & U64))
    return table[shifted.astype(np.int64)]


def digits_at_start(values: NDArray[Any], text: str) -> NDArray[Any]:
    """Which values' hexadecimal form, `0x1f`, begins with a text: by shifts, without writing one down."""
    import numpy as np

    if "0x".startswith(text):
        return np.ones(len(values), np.bool_)
    if not text.startswith("0x"):
        return np.zeros(len(values), np.bool_)
    return _begins(values, text[2:])


def digits_anywhere(values: NDArray[Any], text: str) -> NDArray[Any]:
    """Which values' hexadecimal form has a text somewhere in it."""
    import numpy as np

    if text in "0x":
        return np.ones(len(values), np.bool_)
    before, x, rest = text.partition("x")
    if x:
        return _begins(values, rest) if before in ("", "0") else np.zeros(len(values), np.bool_)
    if not _is_hex(text):
        return np.zeros(len(values), np.bool_)
    return _among_likely(values, text, _anywhere)


def _anywhere(values: NDArray[Any], text: str) -> NDArray[Any]:
    import numpy as np

    found = np.zeros(len(values), np.bool_)
    number, mask, size = np.uint64(int(text, 16)), np.uint64((1 << 4 * len(text)) - 1), 4 * len(text)
    for shift in range(0, _bits(values) + 1 - size, 4):
        part = values >> np.uint64(shift)
        here = part & mask == number
        if text[0] == "0":  # leading zeros are not written: a digit must come before it
            here &= part >> np.uint64(min(size, 63)) != 0
        found |= here
    return found


def _begins(values: NDArray[Any], text: str) -> NDArray[Any]:
    """Which values' digits begin with some."""
    import numpy as np

    if not _is_hex(text):
        return np.zeros(len(values), np.bool_)
    if text[0] == "0":
        return values == 0 if text == "0" else np.zeros(len(values), np.bool_)
    return _among_likely(values, text, _shifted_to)


def _shifted_to(values: NDArray[Any], text: str) -> NDArray[Any]:
    import numpy as np

    found = np.zeros(len(values), np.bool_)
    for shift in range(0, _bits(values) + 1 - 4 * len(text), 4):
        found |= values >> np.uint64(shift) == int(text, 16)
    return found


def _among_likely(
    values: NDArray[Any], digits: str, holds: Callable[[NDArray[Any], str], NDArray[Any]]
) -> NDArray[Any]:
    """Ask `holds` of the values that have a byte which the digits in a row must leave; mostly they are few.

    The digits lie in bytes in one of two ways, and each way has bytes that are all theirs. Comparing bytes is many
    times faster than shifting words.
    """
    import numpy as np

    values = np.ascontiguousarray(values, np.uint64)
    even, odd = (_rarest(digits[end & 1 : end]) for end in (len(digits), len(digits) - 1))
    if even and odd:
        raw = values.view(np.uint8)
        hit = raw == even
        hit |= raw == odd
        likely = np.flatnonzero(hit.view(np.uint64) != 0)
        if len(likely) * FEW < len(values):
            found = np.zeros(len(values), np.bool_)
            found[likely] = holds(values[likely], digits)
            return found
    return holds(values, digits)


def _rarest(digits: str) -> int:
    """Of the bytes that an even number of digits make, one that few words hold; 0 if there is only that."""
    return max(bytes.fromhex(digits), key=lambda byte: (byte not in (0, 0xFF), byte), default=0)


def _bits(values: NDArray[Any]) -> int:
    """How many bits the values have, in whole digits."""
    return -(-int(values.max(initial=0)).bit_length() // 4) * 4


def _is_hex(text: str) -> bool:
    return 0 < len(text) <= 16 and set(text) <= set("0123456789abcdef")
