"""Trace records as panes look at them: a window of the live ring or a recording on disk, whole or what a filter leaves.

Filters run over columns, a chunk at a time and within a budget, so that the screen stays alive while ten million
records are searched; what was found is kept as record numbers, eight bytes each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from xentui.engine.expression_columns import Columns
from xentui.engine.trace import COLUMNS, Kind, dtype
from xentui.recording.format import RecordingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xentui.engine.expression import Expression
    from xentui.recording.reader import Recording

CHUNK = 65_536
"""Records that a filter looks at in one go: what fits a processor's cache, and a recording's chunk."""
_KEPT_BYTES = 256 << 20
_SCREEN, _LOOKS = 256, 1024
"""Of a recording, the pieces of up to so many records that were looked at last are kept, so many pieces: what a filter
leaves on a screen may lie in as many blocks as there are lines, and unpacking a block takes some 10 ms."""


class Sized(Protocol):
    """Something that is kept."""

    @property
    def nbytes(self) -> int:
        """What it takes."""


T = TypeVar("T", bound=Sized)


class Records(Protocol):
    """Records `first` to `end` (not included), by number. The live ring's window and `RecordedTrace` are such."""

    @property
    def first(self) -> int:
        """The oldest that is there."""

    @property
    def end(self) -> int:
        """One more than the newest."""

    def rows(self, start: int, stop: int | None = None) -> NDArray[Any]:
        """Whole records, as a structured array of `trace.dtype()`."""

    def columns(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """One field of records start to stop."""

    def find_time(self, time: int) -> int:
        """The first record at or after a virtual time."""


class RecordedTrace:
    """A recording on disk. What filters look at is kept once it was read: each record's domain and class, and what
    records of a class hold.

    A block that turns out to be damaged is where it ends from then on; `problem` says so in a line.
    """

    first = 0

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.end = len(recording)
        """The number of records."""
        self.problem = ""
        self._looked_at: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._kept: dict[Any, Any] = {}
        self._bytes = 0
        self._ahead: dict[frozenset[int], int] = {}  # up to where it was read ahead
        self._outline = recording.outline()

    def rows(self, start: int, stop: int | None = None) -> NDArray[Any]:
        """Whole records."""
        stop = self.end if stop is None else min(stop, self.end)
        found = self._looked_at.pop((start, stop), None)
        if found is None:
            try:
                found = self.recording.records(start, stop)
            except RecordingError as error:
                self._end_before(start, stop, error)
                return self.rows(start, stop)
        if stop - start <= _SCREEN:
            self._looked_at[start, stop] = found
            if len(self._looked_at) > _LOOKS:
                self._looked_at.popitem(last=False)
        return found

    def columns(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """One field."""
        stop = self.end if stop is None else stop
        if name != "domain":
            return self._column(name, start, stop)
        return self.remember(start, stop, name, lambda: self._column(name, start, stop))

    def _column(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """One field as it is on disk. Of records that turn out to be damaged, zeros: who asked for them had been told
        that they are there."""
        try:
            return self.recording.columns(name, start, stop)
        except RecordingError as error:
            self._end_before(start, stop, error)
        whole = self._column(name, start, min(stop, self.end)) if start < self.end else np.empty(0, dtype()[name])
        return np.concatenate([whole, np.zeros(stop - start - len(whole), whole.dtype)])

    def _end_before(self, start: int, stop: int, error: RecordingError) -> None:
        """Of the blocks that hold records start to stop, one is damaged: it is the end."""
        self.problem = str(error)
        for entry in self.recording.entries:
            if entry.records and start < entry.first_record + entry.records and entry.first_record < stop:
                try:
                    self.recording.records(entry.first_record, entry.first_record + 1)
                except RecordingError:
                    self.end = min(self.end, entry.first_record)
                    self._kept.clear()  # of the piece in which it ends now, too much
                    self._bytes = 0
                    return
        raise error

    def remember(self, start: int, stop: int, key: Any, make: Callable[[], T]) -> T:
        """Something of records start to stop (it has `nbytes`), made once if they are a chunk and there is room."""
        if start % CHUNK or stop not in (start + CHUNK, self.end) or stop > start + CHUNK:
            return make()
        found: T | None = self._kept.get((key, start))
        if found is None:
            found = make()
            if self._bytes < _KEPT_BYTES and stop <= self.end:
                self._kept[key, start] = found
                self._bytes += found.nbytes
        return found

    def read_ahead(self, narrow: frozenset[int], seconds: float) -> bool:
        """Read for about so long what a filter may look at; is there more? `narrow`: the domains of 32 bits.

        Where there is no more room, what is left is read by each filter anew.
        """
        limit = perf_counter() + seconds
        start = self._ahead.get(narrow, 0)
        while start < self.end and self._bytes < _KEPT_BYTES:
            piece = Piece(self, start, min(start + CHUNK, self.end))
            Columns(piece, narrow).read_all()
            start = self._ahead[narrow] = piece.stop
            if perf_counter() >= limit:
                break
        return start < self.end and self._bytes < _KEPT_BYTES

    def find_time(self, time: int) -> int:
        """The first record at or after a virtual time; what lies behind a damaged block is no part of it."""
        try:
            return min(self.recording.find_time(time), self.end)
        except RecordingError as error:
            self._end_before(*self.recording.block_at(time), error)
            return self.end

    def about_time(self, time: int) -> int:
        """About the same, by the index alone: as if the records of a block came at even intervals."""
        numbers, times = self._outline
        return min(int(np.interp(time, times, numbers, right=numbers[-1] + 1)), self.end) if len(times) else 0

    def about_record(self, number: int) -> int:
        """A record's time, in the same way."""
        numbers, times = self._outline
        return int(np.interp(number, numbers, times)) if len(times) else 0


class Piece(Mapping[str, "NDArray[Any]"]):
    """The columns of some records, read when they are asked for."""

    def __init__(self, source: Records, start: int, stop: int) -> None:
        self._source, self.start, self.stop = source, start, stop
        self._read: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        column = self._read.get(name)
        if column is None:
            column = self._read[name] = self._source.columns(name, self.start, self.stop)
        return column

    def remember(self, key: Any, make: Callable[[], T]) -> T:
        """Something worked out from the columns, from the last time if the source keeps such."""
        keep = getattr(self._source, "remember", None)
        found: T = keep(self.start, self.stop, key, make) if keep is not None else make()
        return found

    @property
    def length(self) -> int:
        """How many records there are."""
        return self.stop - self.start

    def __iter__(self) -> Iterator[str]:
        return iter(name for name, _ in COLUMNS)

    def __len__(self) -> int:
        return len(COLUMNS)


class Everything:
    """All records of a source, seen as a list."""

    complete = True
    progress = 1.0

    def __init__(self, source: Records) -> None:
        self.source = source

    def __len__(self) -> int:
        return max(0, self.source.end - self.source.first)

    def advance(self, _seconds: float) -> bool:
        """There is nothing to search."""
        return False

    def numbers(self, start: int, stop: int) -> list[int]:
        """The numbers of records start to stop of the list."""
        first = self.source.first
        return list(range(first + max(0, start), first + min(stop, len(self))))

    def place(self, number: int) -> int:
        """Where a record stands in the list: how many come before it."""
        return min(max(0, number - self.source.first), len(self))


class Matches:
    """The records of a source for which an expression holds, found little by little from the oldest on."""

    def __init__(self, source: Records, expression: Expression) -> None:
        self.source, self.expression = source, expression
        self._start = self._done = source.first
        self._end = source.end  # as it was when last looked at: a live source never stands still
        self._parts: list[NDArray[np.int64]] = []
        self._before: list[int] = []  # how many matches come before each part
        self._count = 0
        self._gone = 0  # matches at the beginning whose records the ring has dropped

    def __len__(self) -> int:
        return self._count - self._gone

    @property
    def complete(self) -> bool:
        """Has everything been looked at that was there at the last look?"""
        return self._done >= self._end

    @property
    def progress(self) -> float:
        """How much of it has been."""
        span = self.source.end - self._start
        return 1.0 if span <= 0 else min(1.0, (self._done - self._start) / span)

    def advance(self, seconds: float) -> bool:
        """Look further, for about so long; was anything looked at?"""
        source, limit = self.source, perf_counter() + seconds
        end, begun = source.end, self._done
        self._end = end
        if end < self._done:
            self._truncate(end)
        while self._done < end:
            start = max(self._done, source.first)
            stop = min(start - start % CHUNK + CHUNK, end)
            piece = Piece(source, start, stop)
            found = np.flatnonzero(self.expression.mask(piece))
            if len(found):
                self._append(found + start)
            if stop <= start or source.first > start:  # the ring has gone over it meanwhile
                stop = max(stop, source.first)
            self._done = stop
            if perf_counter() >= limit:
                break
        self._drop()
        return self._done != begun

    def _append(self, found: NDArray[np.int64]) -> None:
        if self._parts and len(self._parts[-1]) + len(found) <= CHUNK:
            self._parts[-1] = np.concatenate([self._parts[-1], found])
        else:
            self._before.append(self._count)
            self._parts.append(found)
        self._count += len(found)

    def _drop(self) -> None:
        """Forget what the ring no longer holds."""
        self._gone = self._rank(self.source.first)

    def _truncate(self, end: int) -> None:
        """Records from `end` on are no more what they were."""
        keep = self._rank(end)
        while self._parts and self._before[-1] >= keep:
            self._parts.pop()
            self._before.pop()
        if self._parts:
            self._parts[-1] = self._parts[-1][: keep - self._before[-1]]
        self._count, self._done = keep, end

    def _rank(self, number: int) -> int:
        """How many matches there ever were before a record."""
        low, high = 0, len(self._parts)
        while low < high:
            middle = (low + high) // 2
            if self._parts[middle][0] < number:
                low = middle + 1
            else:
                high = middle
        if not low:
            return 0
        return self._before[low - 1] + int(np.searchsorted(self._parts[low - 1], number))

    def numbers(self, start: int, stop: int) -> list[int]:
        """The numbers of records start to stop of the list."""
        found: list[int] = []
        start, stop = max(0, start) + self._gone, min(stop + self._gone, self._count)
        part = bisect_right(self._before, start) - 1
        while start < stop and 0 <= part < len(self._parts):
            low = start - self._before[part]
            numbers = self._parts[part][low : low + stop - start].tolist()
            found += numbers
            start += len(numbers)
            part += 1
        return found

    def place(self, number: int) -> int:
        """How many matches come before a record."""
        return max(0, self._rank(number) - self._gone)


def search(source: Records, expression: Expression, start: int, step: int, seconds: float) -> tuple[int | None, int]:
    """The next record from `start` on (or, `step` -1, the one before it) for which an expression holds.

    Returns its number, or None; and where the search stood when the time was over (the end of the records if it is
    done).
    """
    limit = perf_counter() + seconds
    while source.first <= start < source.end if step > 0 else source.first < start:
        if step > 0:
            low, high = start, min(start - start % CHUNK + CHUNK, source.end)
        else:
            high = min(start, source.end)
            low = max(source.first, (high - 1) - (high - 1) % CHUNK)
        found = np.flatnonzero(expression.mask(Piece(source, low, high)))
        if len(found):
            return low + int(found[0 if step > 0 else -1]), start
        start = high if step > 0 else low
        if perf_counter() >= limit:
            break
    return None, start


def widths_of(source: Records) -> dict[int, int]:
    """Each domain's word size, from the records of domains created."""
    found: dict[int, int] = {}
    for start in range(source.first - source.first % CHUNK, source.end, CHUNK):
        low = max(start, source.first)
        kinds = source.columns("kind", low, min(start + CHUNK, source.end))
        for at in np.flatnonzero(kinds == Kind.DOMAIN_CREATE).tolist():
            row = source.rows(low + at, low + at + 1)[0]
            found[int(row["domain"])] = int(row["number"])
    return found
