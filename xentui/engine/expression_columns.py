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
_ERRORS = 4096  # a result is small once so much has been added: errors wrap around


def narrow_domains(widths: Mapping[int, int]) -> frozenset[int]:
    """The 32-bit domains, of word sizes by number."""
    return frozenset(domain for domain, width in widths.items() if width == 32)


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
        self._in_groups: dict[int, NDArray[Any]] = {}
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
        return self[_POSITION_D]

    def empty(self) -> NDArray[Any]:
        """No record."""
        import numpy as np

        return np.zeros(self.length, np.bool_)

    def full(self) -> NDArray[Any]:
        """Every record."""
        import numpy as np

        return np.ones(self.length, np.bool_)

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """Columns that can `remember(key, make)` keep what was worked out for the next expression."""
        remember = getattr(self._columns, "remember", None)
        return remember((key, self._narrow), make) if remember else make()

    @cached_property
    def classes(self) -> NDArray[Any]:
        """The class of each record."""
        found: NDArray[Any] = self._kept("classes", self._find_classes)
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
        found: list[int] = self._kept("present", self._find_present).tolist()
        return found

    def _find_present(self) -> NDArray[Any]:
        import numpy as np

        return np.flatnonzero(np.bincount(self.classes, minlength=CLASSES))

    @cached_property
    def groups(self) -> Groups:
        """The records by class."""
        found: Groups = self._kept("groups", lambda: Groups(self.classes))
        return found

    def values(self, slot: Slot, place: Any, which: int) -> Values:
        """What a slot, whose `reader_key` is `place`, holds in the records of a class that occurs."""

        def make() -> Values:
            return Values(slot.read(Run(self, *self.groups.runs[which])))  # type: ignore[arg-type]

        found: Values = self._kept((which, place), make)
        return found

    def read_all(self) -> None:
        """Work out whatever a text may be looked for in, so that it is kept."""
        for which in self.present:
            for slot in slots_of(which):
                self.values(slot, reader_key(slot), which)

    def in_groups(self, position: int) -> NDArray[Any]:
        """A column in the order of the groups."""
        import numpy as np

        found = self._in_groups.get(position)
        if found is None:
            column = self[position]
            same = column[0] == column[-1] == column[len(column) // 2] and column.min() == column.max()
            found = self._in_groups[position] = column if same else np.take(column, self._order)
        return found

    @cached_property
    def _order(self) -> NDArray[Any]:
        return self.groups.order

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


class Groups:
    """Records in the order of their classes, those of a class as they came: `runs` says where each class's lie."""

    def __init__(self, classes: NDArray[Any]) -> None:
        import numpy as np

        order = np.argsort(classes, kind="stable")
        counts = np.bincount(classes, minlength=CLASSES)
        ends = np.cumsum(counts)
        present = np.flatnonzero(counts)
        starts = (ends - counts)[present].tolist()
        self.runs = dict(zip(present.tolist(), zip(starts, ends[present].tolist(), strict=True), strict=True))
        self._order = order.astype(np.uint16) if len(order) <= 1 << 16 else order
        self.nbytes = self._order.nbytes + _ENTRY_BYTES * (1 + len(self.runs))

    @property
    def order(self) -> NDArray[Any]:
        """The rows, by class."""
        import numpy as np

        return self._order.astype(np.intp)  # which numpy would make of it, but slowly

    def as_they_came(self, found: NDArray[Any]) -> NDArray[Any]:
        """Something said of each record in the order of the groups, in the order of the rows."""
        import numpy as np

        out = np.empty(len(found), found.dtype)
        out[self.order] = found
        return out


class Values:
    """What records of a class hold in one place, as small as it can be kept: mostly they all hold the same."""

    def __init__(self, values: NDArray[Any]) -> None:
        import numpy as np

        self.low, self.high = int(values.min()), int(values.max())
        self.array = values[:1].copy() if self.low == self.high else values.astype(np.min_scalar_type(self.high))
        self.nbytes = self.array.nbytes + _ENTRY_BYTES


_ENTRY_BYTES = 400
"""What keeping something costs besides its bytes, about."""


class Run:
    """The records of one class, as `Slot.read` wants them: the columns' rows from `start` to `stop` in their order."""

    def __init__(self, columns: Columns, start: int, stop: int) -> None:
        self._columns, self._rows = columns, slice(start, stop)

    def __getitem__(self, position: int) -> NDArray[Any]:
        return self._columns.in_groups(position)[self._rows]

    @property
    def d(self) -> NDArray[Any]:
        """The column that also holds a 32-bit guest's fifth argument."""
        return self[_POSITION_D]


_POSITION_D = [name for name, _ in COLUMNS].index("d")


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
