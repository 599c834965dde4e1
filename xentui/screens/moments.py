"""Moments of a run that stand out, and how many records lie between them: what a time line shows."""

from __future__ import annotations

from itertools import pairwise
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from xentui.engine.expression import Expression
from xentui.engine.trace import Kind, Record
from xentui.engine.trace_decode import SHUTDOWNS
from xentui.screens.records import Matches, RecordedTrace, Records
from xentui.screens.trace_lines import domain_name

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK, CRASH, FAULT, LIFE, SNAPSHOT = "mark", "crash", "fault", "domain", "snapshot"
SIGNS = {MARK: "▼", CRASH: "✖", FAULT: "⚡", LIFE: "○", SNAPSHOT: "·"}
"""What a moment of a sort looks like; of several in one place the first here is shown."""
_TOLD = 2000
_KEPT = 1 << 14
_WATCHED = "domain_crash or inject or domain_shutdown or domain_create or domain_destroy or mark"


class Moment(NamedTuple):
    """Something at a virtual time."""

    time: int
    sort: str
    text: str


class Recorded:
    """The moments that trace records tell of, found little by little."""

    def __init__(self, source: Records) -> None:
        self.source = source
        self._matches = Matches(source, Expression.parse(_WATCHED))
        self._moments: list[Moment] = []
        self._read = 0
        self._first = source.first

    @property
    def complete(self) -> bool:
        """Have all records been looked at?"""
        return self._matches.complete

    def advance(self, seconds: float, names: dict[int, str]) -> list[Moment]:
        """Look further, for about so long; the moments so far. The ring may lose the records; the moments stay."""
        before = len(self._matches)
        self._matches.advance(seconds)
        if len(self._matches) < before or self._read > len(self._matches):
            self._read = min(self._read, len(self._matches))
            self._moments = self._moments[: self._read]
        for number in self._matches.numbers(self._read, min(len(self._matches), _TOLD)):
            rows = self.source.rows(number, number + 1).tolist()
            if rows:
                self._moments.append(_moment(Record(*rows[0]), names))
            self._read += 1
        return self._moments


def _moment(record: Record, names: dict[int, str]) -> Moment:
    name = domain_name(record.domain, names)
    if record.kind == Kind.DOMAIN_CRASH:
        return Moment(record.time, CRASH, f"{name} crashed")
    if record.kind == Kind.INJECT:
        return Moment(record.time, FAULT, f"fault injected into {name}")
    if record.kind == Kind.MARK:
        return Moment(record.time, MARK, f"mark {record.number}")
    if record.kind == Kind.DOMAIN_SHUTDOWN:
        return Moment(record.time, LIFE, f"{name}: {SHUTDOWNS.get(record.number, 'shutdown')}")
    return Moment(record.time, LIFE, f"{name} {'created' if record.kind == Kind.DOMAIN_CREATE else 'destroyed'}")


def known_to(engine: Any, marks: Iterable[tuple[int, str]]) -> list[Moment]:
    """The marks that were set (position, note), and the snapshots that there are."""
    found = [Moment(position // 2, MARK, note) for position, note in marks]
    timeline = getattr(engine, "timeline", None)
    if timeline is not None:
        found += [Moment(kept.status.time, SNAPSHOT, "snapshot") for kept in timeline.usable()]
    return found


class Density:
    """How many records lie in each of a line's cells, kept while the scale stays.

    Of a recording they are counted for a while at a time; until all are, the index says about how many there are.
    """

    def __init__(self) -> None:
        self.complete = True
        """Was everything counted at the last look?"""
        self._scale: tuple[Any, ...] = ()
        self._counts: list[int] = []
        self._known = 0  # cells that will not change any more

    def counts(self, source: Records, start: int, end: int, cells: int, branch: int, seconds: float = inf) -> list[int]:
        """Records in each of the cells between two times (virtual ns)."""
        scale = (source, start, end, cells, branch)
        if scale != self._scale:
            self._scale, self._counts, self._known = scale, [0] * cells, 0
        self.complete = True
        newest = newest_time(source)
        if self._known == cells or newest is None:
            return self._counts
        limit = perf_counter() + seconds
        low = source.find_time(edge(start, end, cells, self._known))
        for cell in range(self._known, cells):
            if perf_counter() >= limit and isinstance(source, RecordedTrace):
                return self._counts[:cell] + self._rough(source, start, end, cells, cell)
            upper = edge(start, end, cells, cell + 1)
            high = source.find_time(upper) if upper <= newest else source.end
            self._counts[cell] = max(self._counts[cell], high - low)  # the ring may have dropped some since
            if upper <= newest:
                self._known = cell + 1
            else:
                break
            low = high
        return self._counts

    def _rough(self, source: RecordedTrace, start: int, end: int, cells: int, known: int) -> list[int]:
        """About how many lie in the cells that are not known yet."""
        self.complete = False
        places = [source.about_time(edge(start, end, cells, cell)) for cell in range(known, cells + 1)]
        return [upper - lower for lower, upper in pairwise(places)]


def newest_time(source: Records) -> int | None:
    """The time of the last record; None if there is none."""
    while source.end > source.first:
        end = source.end
        times = source.columns("time", end - 1, end)
        if source.end >= end:  # or else it has turned out that this one is damaged
            return int(times[0]) if len(times) else None
    return None


class ByRecord:
    """A scale on which every record has as much room as any other: idle time takes none.

    After `allow`, a recording is looked at for so long at most: then the index says about where things lie, and
    `complete` is False.
    """

    def __init__(self, source: Records) -> None:
        self.source = source
        self.complete = True
        self._limit = inf
        self._places: dict[int, int] = {}
        self._times: dict[int, int] = {}
        self._paces: tuple[Any, list[int]] = ((), [])

    def allow(self, seconds: float) -> None:
        """From now on for so long."""
        self._limit, self.complete = perf_counter() + seconds, True
        for known in (self._places, self._times):
            if len(known) > _KEPT:
                known.clear()

    def place(self, time: int) -> int:
        """The record at or after a time."""
        found = self._places.get(time)
        if found is None:
            if perf_counter() >= self._limit and isinstance(self.source, RecordedTrace):
                self.complete = False
                return self.source.about_time(time)
            found = self.source.find_time(time)
            if found < self.source.end:  # what comes later may still move the others
                self._places[time] = found
        return found

    def time(self, place: int) -> int:
        """The time of a record."""
        if self.source.end <= self.source.first:
            return 0
        place = max(self.source.first, min(place, self.source.end - 1))
        if not isinstance(self.source, RecordedTrace):
            return int(self.source.columns("time", place, place + 1)[0])
        found = self._times.get(place)
        if found is None:
            if perf_counter() >= self._limit:
                self.complete = False
                return self.source.about_record(place)
            found = self._times[place] = int(self.source.columns("time", place, place + 1)[0])
        return found

    def paces(self, start: int, end: int, cells: int) -> list[int]:
        """Records a virtual second in each of the cells between two records."""
        key = (start, end, cells, self.source.end)
        if self._paces[0] != key:
            edges = [edge(start, end, cells, cell) for cell in range(cells + 1)]
            times = [self.time(place) for place in edges]
            paces = [
                1_000_000_000 * max(1, upper - lower) // max(1, after - before) if upper < self.source.end else 0
                for lower, upper, before, after in zip(edges, edges[1:], times, times[1:], strict=False)
            ]
            if not self.complete:
                return paces
            self._paces = (key, paces)
        return self._paces[1]


def edge(start: int, end: int, cells: int, cell: int) -> int:
    """The first time that lies in a cell: rounded up, or else it would lie in the one before."""
    return start - (start - end) * cell // cells


def round_up(time: int) -> int:
    """A time that is easy to say, at or after another: 1, 2 or 5 of a power of ten. Scales that grow stay a while."""
    step = 1000
    while True:
        for factor in (1, 2, 5):
            if time <= step * factor:
                return step * factor
        step *= 10
