"""What an expression is made of: terms that are evaluated on one record, or on the columns of many at once."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

from xentui.engine.expression_automaton import could_show, decimal, hexadecimal
from xentui.engine.expression_columns import (
    Columns,
    Comparison,
    class_of,
    compare,
    reader_key,
    slots_of,
    title_of,
    where,
)
from xentui.engine.expression_digits import digits_anywhere, digits_at_start, in_all
from xentui.engine.trace import U64, Record
from xentui.engine.trace_decode import DOMIDS, ERRNOS, FORMATS, Slot, runner_text, seconds, short_hex
from xentui.engine.xen.abi import core

if TYPE_CHECKING:
    from numpy.typing import NDArray


FREE = frozenset(
    FORMATS[name]
    for name in (
        "pte",
        "pte_index",
        "refusal_rule",
        "refusal_level",
        "refusal_owner",
        "refusal_type",
        "refusal_source",
    )
)
"""Formats that show more than digits and the words that `listed` gives."""


@cache
def listed(show: Callable[[int], str]) -> tuple[str, ...]:
    """What a format shows besides digits, in lower case: what the small values and the named ones look like."""
    values = (*range(64), *DOMIDS, *((-number & U64) for number in ERRNOS), core.UVMF_ALL)
    return tuple({show(value).lower() for value in values})


class Scope:
    """What an expression is evaluated on when it is one record, or a stopped vCPU, or both."""

    def __init__(self, record: Record | None, environment: Mapping[str, int], narrow: frozenset[int]) -> None:
        self.record = record
        self.environment = environment
        self.narrow = narrow

    @cached_property
    def which(self) -> int:
        """The record's class."""
        record = self.record
        assert record is not None
        return class_of(record.kind, record.number, record.domain not in self.narrow)

    def slot(self, name: str) -> Slot | None:
        """The record's slot of a name."""
        if self.record is None:
            return None
        return next((slot for slot in slots_of(self.which) if slot.name == name), None)


class Value(Protocol):
    """A number, or nothing where a record has no such field."""

    def one(self, scope: Scope) -> int | None:
        """The value for one record."""

    def many(self, columns: Columns) -> tuple[Any, NDArray[Any] | None]:
        """An array (or a number), and which records have it at all (None: every one)."""


class Constant:
    """A number written down."""

    def __init__(self, value: int) -> None:
        self.value = value

    def one(self, scope: Scope) -> int | None:
        return self.value

    def many(self, columns: Columns) -> tuple[Any, NDArray[Any] | None]:
        return self.value, None


class Raw:
    """A field that every record has: a column as it lies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.read = operator.attrgetter(name)

    def one(self, scope: Scope) -> int | None:
        given = scope.environment.get(self.name)
        if given is not None or scope.record is None:
            return given
        return int(self.read(scope.record))

    def many(self, columns: Columns) -> tuple[Any, NDArray[Any] | None]:
        return columns.column(self.name), None


class Named:
    """An argument or a register: what the record's class keeps under a name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.signed = name == "result"

    def one(self, scope: Scope) -> int | None:
        given = scope.environment.get(self.name)
        slot = None if given is not None else scope.slot(self.name)
        if slot is None or scope.record is None:
            return given
        value = slot.read(scope.record)
        return value - (U64 + 1) if self.signed and value >> 63 else value

    def many(self, columns: Columns) -> tuple[Any, NDArray[Any] | None]:
        import numpy as np

        found: Any = None
        held = columns.empty()
        place: Any = None  # where all that was found so far lies, if it is one place
        for slot, classes in columns.readers(self.name):
            here = columns.within(classes)
            values = slot.read(columns)  # type: ignore[arg-type]
            if found is None:
                found, place = values, reader_key(slot)
            elif reader_key(slot) != place:
                found, place = np.where(here, values, found), None
            held |= here
        if found is None:
            return 0, held
        return (found.view(np.int64) if self.signed else found), held


class Bits:
    """Some bits of a value."""

    def __init__(self, left: Value, right: Value) -> None:
        self.left, self.right = left, right

    def one(self, scope: Scope) -> int | None:
        left, right = self.left.one(scope), self.right.one(scope)
        return None if left is None or right is None else left & right & U64

    def many(self, columns: Columns) -> tuple[Any, NDArray[Any] | None]:
        left, has_left = self.left.many(columns)
        right, has_right = self.right.many(columns)
        return _unsigned(left) & _unsigned(right), _both(has_left, has_right)


def _unsigned(value: Any) -> Any:
    """As 64 bits without a sign, which any two can be combined as."""
    import numpy as np

    if isinstance(value, int):
        return np.uint64(value & U64)
    return value.view(np.uint64) if value.dtype == np.int64 else value.astype(np.uint64)


def _both(first: NDArray[Any] | None, second: NDArray[Any] | None) -> NDArray[Any] | None:
    if first is None:
        return second
    return first if second is None else first.__and__(second)


class Test(Protocol):
    """Something that holds or does not."""

    def one(self, scope: Scope) -> bool:
        """Whether it holds for one record."""

    def many(self, columns: Columns) -> NDArray[Any]:
        """For which records it holds."""


class Compared:
    """Two values compared; false where a record lacks one."""

    def __init__(self, left: Value, how: Comparison, right: Value) -> None:
        self.left, self.how, self.right = left, how, right

    def one(self, scope: Scope) -> bool:
        left, right = self.left.one(scope), self.right.one(scope)
        return left is not None and right is not None and bool(self.how(left, right))

    def many(self, columns: Columns) -> NDArray[Any]:
        left, has_left = self.left.many(columns)
        right, has_right = self.right.many(columns)
        found = compare(left, self.how, right)
        held = _both(has_left, has_right)
        if isinstance(found, bool):
            whole = columns.full() if found else columns.empty()
            return whole if held is None else whole & held
        return found if held is None else found & held  # type: ignore[no-any-return]


class Either:
    """One of several."""

    def __init__(self, tests: list[Test]) -> None:
        self.tests = tests

    def one(self, scope: Scope) -> bool:
        return any(test.one(scope) for test in self.tests)

    def many(self, columns: Columns) -> NDArray[Any]:
        found = self.tests[0].many(columns)
        for test in self.tests[1:]:
            found = found | test.many(columns)
        return found


class Both:
    """All of several; what cannot matter any more is not looked at, and kinds are looked at first: they cost least."""

    def __init__(self, tests: list[Test]) -> None:
        self.tests = sorted(tests, key=lambda test: not isinstance(test, OfClass))

    def one(self, scope: Scope) -> bool:
        return all(test.one(scope) for test in self.tests)

    def many(self, columns: Columns) -> NDArray[Any]:
        found = self.tests[0].many(columns)
        for test in self.tests[1:]:
            if not found.any():
                break
            found = found & test.many(columns)
        return found


class Negated:
    """The contrary."""

    def __init__(self, test: Test) -> None:
        self.test = test

    def one(self, scope: Scope) -> bool:
        return not self.test.one(scope)

    def many(self, columns: Columns) -> NDArray[Any]:
        return ~self.test.many(columns)


class OfClass:
    """Records whose class satisfies something: a kind, a hypercall, a crossing of rings."""

    def __init__(self, name: str, holds: Callable[[int], bool]) -> None:
        self.name, self.holds = name, cache(holds)

    def one(self, scope: Scope) -> bool:
        if scope.record is None:
            return bool(scope.environment.get(self.name, 0))
        return self.holds(scope.which)

    def many(self, columns: Columns) -> NDArray[Any]:
        return columns.within(filter(self.holds, columns.present))


class Shown:
    """A field whose text satisfies something: `pattern`, where that is to be found in it."""

    def __init__(self, name: str, holds: Callable[[str], bool], pattern: re.Pattern[str] | None = None) -> None:
        self.name, self.holds, self.pattern = name, holds, pattern

    def one(self, scope: Scope) -> bool:
        slot = scope.slot(self.name)
        return slot is not None and scope.record is not None and self.holds(slot.show(slot.read(scope.record)))

    def many(self, columns: Columns) -> NDArray[Any]:
        whole = []  # classes whose records all hold the same
        found = columns.empty()  # of the others, in the groups' order
        for slot, classes in columns.readers(self.name):
            runs = []
            for which in classes:
                values = columns.values(slot, reader_key(slot), which)
                if values.low != values.high:
                    runs.append((*columns.groups.runs[which], values.array))
                elif self.holds(slot.show(values.low)):
                    whole.append(which)
            in_runs(runs, found, partial(in_shown, show=slot.show, holds=self.holds, pattern=self.pattern, head=""))
        alike = columns.within(whole)
        if found.any():
            alike |= columns.groups.as_they_came(found)
        return alike


class Matched:
    """Records with a text in which a pattern is found: the name, or `argument=value` of one argument."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern = pattern
        self.needed = tuple(piece for piece in literals(pattern.pattern.lower()) if piece)
        """Texts that must all be there for the pattern to be found."""
        self.literal = self.needed[0] if self.needed == (pattern.pattern.lower(),) else None
        self.in_title = cache(lambda which: pattern.search(title_of(which)) is not None)
        self._always, self._slots, self._said = (
            cache(self._in_all_of),
            cache(self._slots_to_look_at),
            cache(self._said_of),
        )

    def one(self, scope: Scope) -> bool:
        record = scope.record
        if record is None:
            return False
        if self.in_title(scope.which):
            return True
        search = self.pattern.search
        return any(search(f"{slot.name}={slot.show(slot.read(record))}") for slot in slots_of(scope.which))

    def many(self, columns: Columns) -> NDArray[Any]:
        import numpy as np

        whole = set(filter(self._always, columns.present))
        if not any(self._slots(which) for which in columns.present if which not in whole):
            return columns.within(whole)
        groups = columns.groups
        found = np.zeros(columns.length, np.bool_)  # in the groups' order
        open_: dict[Any, tuple[Slot, list[tuple[int, int, NDArray[Any]]]]] = {}
        for which, (start, stop) in groups.runs.items():
            if which in whole:
                found[start:stop] = True
                continue
            for slot, place, alike in self._slots(which):
                values = columns.values(slot, place, which)
                said = self._said(slot, values.low, values.high)
                if said is None:
                    open_.setdefault(alike, (slot, []))[1].append((start, stop, values.array))
                elif said:
                    found[start:stop] = True
        for slot, runs in sorted(open_.values(), key=lambda group: not self._in_digits(group[0])):  # as it costs
            open_runs = [run for run in runs if not found[run[0] : run[1]].all()]
            in_runs(open_runs, found, partial(self._in_values, slot))
        return groups.as_they_came(found) if found.any() else found

    def _slots_to_look_at(self, which: int) -> tuple[tuple[Slot, Any, Any], ...]:
        """The slots of a class that might have the pattern: slot, place, and what those have that can be searched
        together: shown alike, and named alike if the name matters."""
        found = []
        for slot in slots_of(which):
            if not any(cannot_show(slot, piece) for piece in self.needed) and self._could_show(slot):
                nameless = self.literal is not None and "=" not in self.literal and self._in_digits(slot)
                found.append((slot, reader_key(slot), (slot.show, None if nameless else slot.name)))
        return tuple(found)

    def _could_show(self, slot: Slot) -> bool:
        """Whether the pattern may be in what a slot shows, as far as that is told by the letters that it is made of."""
        letters = _LETTERS.get(slot.show)
        return self.literal is not None or letters is None or could_show(self.pattern, f"{slot.name}=", letters)

    def _said_of(self, slot: Slot, low: int, high: int) -> bool | None:
        """Whether the pattern is in all (or, False, in none) of the values from `low` to `high`; None: it depends."""
        if low == high:
            return self.pattern.search(f"{slot.name}={slot.show(low)}") is not None
        if low <= _DIGIT or slot.show not in _HEXADECIMAL:
            return None
        if self.literal is None:
            table = hexadecimal(self.pattern, f"{slot.name}=0x")
            return None if table is None else table.between(low, high)
        _, equals, text = self.literal.rpartition("=")
        return in_all(low, high, text, bool(equals))

    def _in_digits(self, slot: Slot) -> bool:
        """Whether a slot is shown in hexadecimal, and what to look for is a text: then its values need not be shown."""
        return self.literal is not None and slot.show in _HEXADECIMAL

    def _in_all_of(self, which: int) -> bool:
        """Whether the pattern is in what all records of the class have in common."""
        if self.in_title(which):
            return True
        return self.literal is not None and any(self.literal in f"{slot.name}=" for slot in slots_of(which))

    def _in_values(self, slot: Slot, values: NDArray[Any]) -> NDArray[Any]:
        name, show, search = slot.name, slot.show, self.pattern.search

        def holds(text: str) -> bool:
            return search(f"{name}={text}") is not None

        if self.literal is None or not self._in_digits(slot):
            return in_shown(values, show, holds, self.pattern, f"{name}=")
        _, equals, text = self.literal.rpartition("=")
        found = digits_at_start(values, text) if equals else digits_anywhere(values, text)
        short = values <= _DIGIT
        if slot.show is short_hex and len(text) > 1 and not equals:
            found &= ~short  # one digit, without 0x
        elif short.any():
            found[short] = where(values[short], show, holds)
        return found


def in_runs(
    runs: list[tuple[int, int, NDArray[Any]]], found: NDArray[Any], holds: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    """Add for which values something holds: those of records `start` to `stop` of the groups' order. In one go: that
    of many small arrays would cost more than what is in them."""
    import numpy as np

    if not runs:
        return
    arrays = [array for _, _, array in runs]
    here = holds(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])
    position = 0
    for start, stop, _ in runs:
        found[start:stop] |= here[position : position + stop - start]
        position += stop - start


def in_shown(
    values: NDArray[Any],
    show: Callable[[int], str],
    holds: Callable[[str], bool],
    pattern: re.Pattern[str] | None,
    head: str,
) -> NDArray[Any]:
    """Which values' texts satisfy something; where that is that a pattern is found in `head` and the text, those shown
    as numbers need not be shown."""
    many = _in_numbers(pattern, head, show) if pattern is not None else None
    if many is None:
        return where(values, show, holds)
    found = many(values)
    short = values <= _DIGIT
    if short.any():
        found[short] = where(values[short], show, holds)
    return found


def _in_numbers(
    pattern: re.Pattern[str], head: str, show: Callable[[int], str]
) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """What tells which values of more than a digit have a pattern, if they are shown as numbers."""
    if show in _HEXADECIMAL:
        table = hexadecimal(pattern, f"{head}0x")
        return None if table is None else table.many
    numbers = decimal(pattern, head) if show in (str, seconds) else None
    if numbers is None:
        return None
    return numbers.many if show is str else numbers.thousand_millionths


def literals(pattern: str) -> tuple[str, ...]:
    """Texts that a match must contain; none where the pattern is too clever to tell."""
    pieces = re.split(r"\.[*+]|[.^$]", pattern)
    return () if any(re.search(r"[*+?{}\[\]\\|()]", piece) for piece in pieces) else tuple(pieces)


_DIGIT = 9
"""Up to here `short_hex` shows a digit alone."""
_DIGITS = frozenset("0123456789abcdefx.,-→")
_HEXADECIMAL = (hex, short_hex)
_LETTERS: dict[Callable[[int], str], frozenset[str]] = {
    **dict.fromkeys(_HEXADECIMAL, frozenset("0123456789abcdefx")),
    str: frozenset("0123456789-"),
    seconds: frozenset("0123456789."),
    runner_text: frozenset("0123456789dvile"),  # d1v0, idle
}
"""What the texts of some formats are made of."""


@cache
def cannot_show(slot: Slot, text: str) -> bool:
    """Whether a text cannot be in `name=value`, whatever the value is, given in lower case."""
    if slot.show in FREE:
        return False
    head, equals, tail = text.rpartition("=")
    if equals and not slot.name.endswith(head):
        return True
    if text in f"{slot.name}=" or set(tail) <= _LETTERS.get(slot.show, _DIGITS):
        return False
    return not any(tail in shown for shown in listed(slot.show))
