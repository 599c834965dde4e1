"""The trace ring as the console sees it: the latest records, read where the engine writes them.

The ring lies in memory that every engine process maps; going back in time and forward again writes the same records to
the same places. Which of them are whole, the console works out from what it knows of the history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xentui.engine.trace import COLUMNS, RING_HEADER_SIZE, dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

MARGIN = 8192
"""Records ahead of the oldest shown that the engine may be overwriting at the moment."""

_TYPES = {name: np.dtype(code) for name, code in COLUMNS}


class RecordWindow:
    """Records `first` to `end` (not included) by their numbers in the history. As `recording.reader.Recording`, but
    that it begins at `first`: a number before that gives nothing."""

    def __init__(self, buffer: memoryview, capacity: int) -> None:
        self._rows = np.frombuffer(buffer, dtype(), capacity, RING_HEADER_SIZE)
        self.capacity = capacity
        self._low = self._high = 0

    @property
    def first(self) -> int:
        """The oldest record that is still there."""
        return max(self._low, self._high - self.capacity + MARGIN)

    @property
    def end(self) -> int:
        """One more than the number of the newest."""
        return self._high

    def __len__(self) -> int:
        """The same as `end`: records are known by their numbers."""
        return self._high

    def written(self, head: int) -> None:
        """The engine has written up to `head` by now."""
        if head > self._high:
            self._high = head
            self._low = max(self._low, head - self.capacity)

    def restart(self, records: int) -> None:
        """The engine goes on from a moment at which there were so many records."""
        if not self._low <= records <= self._high:
            # before: what it writes now takes the places of later ones; after: what lies between is another branch's
            self._low = self._high = records

    def truncate(self, records: int) -> None:
        """What came after so many records is no longer part of the history."""
        self._high = min(self._high, records)
        self._low = min(self._low, self._high)

    def _parts(self, start: int, stop: int | None) -> list[NDArray[Any]]:
        """Up to two pieces of the ring: records start to stop, as far as they are there."""
        start = max(start, self.first)
        stop = self._high if stop is None else min(stop, self._high)
        parts = []
        while start < stop:
            low = start % self.capacity
            count = min(stop - start, self.capacity - low)
            parts.append(self._rows[low : low + count])
            start += count
        return parts

    def rows(self, start: int, stop: int | None = None) -> NDArray[Any]:
        """Whole records, a copy, as a structured array of `trace.dtype()`."""
        return np.concatenate([np.empty(0, dtype()), *self._parts(start, stop)])

    records = rows

    def columns(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """One field of records start to stop, a copy. Its first value is that of record `max(start, first)`."""
        return np.concatenate([np.empty(0, _TYPES[name]), *(part[name] for part in self._parts(start, stop))])

    def time(self, number: int) -> int | None:
        """The virtual time of a record, or None where it is not there."""
        if not self.first <= number < self._high:
            return None
        return int(self._rows["time"][number % self.capacity])

    def find_time(self, time: int) -> int:
        """The number of the first record at or after a virtual time; `end` if there is none."""
        low, high = self.first, self._high
        times = self._rows["time"]
        while low < high:
            middle = (low + high) // 2
            if int(times[middle % self.capacity]) < time:
                low = middle + 1
            else:
                high = middle
        return low
