"""Who ran when, from the trace: kept as two short tables that grow with it, and summed over any window of time.

`loads` says when a vCPU was given a physical processor and when it lost it, `blocks` when it began to wait for an event
and when it ceased. A vCPU runs while it has a processor and is not blocked; it waits for a turn while it is neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from xentui.engine.trace import Kind, runner
from xentui.screens.records import CHUNK, RecordedTrace

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOBODY = 0x7FFF << 16
_TAKEN = ("time", "kind", "domain", "vcpu", "a", "b", "d")
_MOST, _MOST_RECORDED = 1 << 18, 1 << 23
"""Rows that are kept: of a run that goes on without end, and of a recording."""
_SLICE = 0.01
"""Seconds of a refresh in which records are looked through, so that a long history is read in over several."""
_LOOK_BACK = 4096
_SUMMED_FROM = 1 << 14
"""Rows in a window from which on sums over all that is known are made once, and used again."""


class _Sums:
    """For how long something held up to each of some times; `on[i]` says whether it held from `times[i]` on."""

    def __init__(self, times: NDArray[Any], on: NDArray[Any]) -> None:
        self._times, self._on = times, bool(len(on) and on[-1])
        self._total = np.concatenate([[0.0], np.cumsum(np.where(on[:-1], np.diff(times), 0))])

    def over(self, edges: NDArray[Any]) -> NDArray[Any]:
        """For each cell between edges the share of its time for which it held."""
        if not len(self._times):
            return np.zeros(len(edges) - 1)
        at = np.interp(edges, self._times, self._total)
        if self._on:
            at += np.maximum(edges - self._times[-1], 0)
        return np.clip(np.diff(at) / max(1e-9, (edges[-1] - edges[0]) / (len(edges) - 1)), 0, 1)


@dataclass
class Share:
    """Of each cell of a window the shares, 0 to 1, that a vCPU ran, and that it waited for its turn."""

    ran: NDArray[Any]
    waited: NDArray[Any]


class _Table:
    """Rows of numbers that are appended, as a numpy array."""

    def __init__(self, columns: int, most: int) -> None:
        self._rows = np.zeros((1024, columns), np.int64, order="F")  # a column is looked through at a time
        self._most = most
        self.count = 0

    @property
    def rows(self) -> NDArray[Any]:
        """What is there."""
        return self._rows[: self.count]

    def extend(self, rows: list[tuple[int, ...]]) -> None:
        """Append; the oldest half goes when there are too many."""
        if not rows:
            return
        if self.count + len(rows) > self._most:
            kept = self.rows[-self._most // 2 :].copy()
            self._rows[: len(kept)], self.count = kept, len(kept)
        while self.count + len(rows) > len(self._rows):
            old = self._rows
            self._rows = np.zeros((2 * len(old), old.shape[1]), np.int64, order="F")
            self._rows[: len(old)] = old
        self._rows[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def around(self, who: int, start: int, end: int) -> NDArray[Any]:
        """The rows of a vCPU in a window of time, and its last before."""
        first, last = np.searchsorted(self.rows[:, 0], (start, end)).tolist()
        inside = self.rows[first:last]
        inside = inside[inside[:, 1] == who]
        size = _LOOK_BACK
        while first > 0:
            low = max(0, first - size)
            at = np.flatnonzero(self.rows[low:first, 1] == who)
            if len(at):
                return np.concatenate([self.rows[low + at[-1] :][:1], inside])
            first, size = low, 4 * size
        return inside


class History:
    """What the trace says of scheduling, read as it grows."""

    def __init__(self) -> None:
        self._source: Any = None
        self._restart(0)

    def _restart(self, at: int) -> None:
        most = _MOST_RECORDED if isinstance(self._source, RecordedTrace) else _MOST
        self.loads, self.blocks = _Table(4, most), _Table(3, most)
        self.until: float = inf
        """Up to which virtual time it was read; infinite if that is all there is."""
        self._whole: dict[int, tuple[tuple[int, int], tuple[_Sums, _Sums]]] = {}
        self._read = at
        self._running: dict[int, int] = {}
        """Who has each physical processor, a `runner`."""

    def read(self, records: Any) -> bool:
        """Take in what is new, for a little while; True if there is more to read. Begins anew where the history was
        cut, or is another's."""
        if records is None:
            return False
        if records is not self._source or records.end < self._read or records.first > self._read:
            self._source = records
            self._restart(records.first)
        limit = perf_counter() + _SLICE
        while self._read < records.end:
            stop = min(self._read - self._read % CHUNK + CHUNK, records.end)
            self._look_through(records, self._read, stop)
            self._read = min(stop, records.end)  # less, if a block turned out to be damaged
            if perf_counter() >= limit:
                break
        more = bool(self._read < records.end)
        self.until = int(records.columns("time", self._read - 1, self._read)[0]) if more else inf
        return more

    def _look_through(self, records: Any, start: int, stop: int) -> None:
        kinds = records.columns("kind", start, stop)
        places = ((kinds >= Kind.SCHEDULE) & (kinds <= Kind.IDLE)).nonzero()[0]
        if not len(places):
            return
        if isinstance(records, RecordedTrace):  # each of its columns is unpacked
            self._take({name: records.columns(name, start, stop)[places] for name in _TAKEN})
        else:
            self._take(records.rows(start, stop)[places])

    def _take(self, rows: Any) -> None:
        loads: list[tuple[int, ...]] = []
        blocks: list[tuple[int, ...]] = []
        columns = (rows[name].tolist() for name in _TAKEN)
        for time, kind, domain, vcpu, a, b, cpu in zip(*columns, strict=True):
            if kind == Kind.SCHEDULE:
                if cpu in self._running:
                    loads.append((time, self._running.pop(cpu), 0, cpu))
                if b < NOBODY:
                    self._running[cpu] = b
                    loads.append((time, b, 1, cpu))
            elif kind == Kind.IDLE:
                loads += [(time, who, 0, cpu) for cpu, who in self._running.items()]
                loads += [(a, who, 1, cpu) for cpu, who in self._running.items()]
            else:
                blocks.append((time, runner(domain, vcpu), int(kind == Kind.BLOCK)))
        self.loads.extend(loads)
        self.blocks.extend(blocks)

    @property
    def begin(self) -> int:
        """The earliest time that is known of."""
        return int(self.loads.rows[0, 0]) if self.loads.count else 0

    def runs_at(self, time: int, cpu: int = 0) -> int:
        """Who had a physical processor at a time: a `runner`."""
        rows = self.loads.rows[: int(np.searchsorted(self.loads.rows[:, 0], time, "right"))]
        places = np.flatnonzero(rows[:, 3] == cpu)
        return int(rows[places[-1], 1]) if len(places) and rows[places[-1], 2] else NOBODY

    def share(self, who: int, start: int, end: int, cells: int) -> Share:
        """How a vCPU spent a window of time."""
        edges = np.linspace(start, end, cells + 1)
        first, last = np.searchsorted(self.loads.rows[:, 0], (start, end)).tolist()
        if last - first <= _SUMMED_FROM or self.until < inf:
            return Share(*(sums.over(edges) for sums in self._sums(who, start, end)))
        count = (self.loads.count, self.blocks.count)
        known = self._whole.get(who)
        if known is None or known[0] != count:  # a recording's do not grow any more
            known = self._whole[who] = (count, self._sums(who, self.begin, int(self.loads.rows[-1, 0]) + 1))
        return Share(*(sums.over(edges) for sums in known[1]))

    def _sums(self, who: int, start: int, end: int) -> tuple[_Sums, _Sums]:
        """How long a vCPU ran, and waited, up to each change between two times."""
        loads, mine = self.loads.around(who, start, end), self.blocks.around(who, start, end)
        if not len(loads) or loads[0, 0] >= start:
            loads = np.concatenate([[(self.begin, who, 0, 0)], loads])
        times = np.concatenate([loads[:, 0], mine[:, 0]])
        loaded = np.concatenate([loads[:, 2].astype(np.int8), np.full(len(mine), -1, np.int8)])
        blocked = np.concatenate([np.full(len(loads), -1, np.int8), mine[:, 2].astype(np.int8)])
        order = np.argsort(times, kind="stable")
        times, loaded, blocked = times[order], _filled(loaded[order]), _filled(blocked[order])
        return _Sums(times, (loaded == 1) & (blocked != 1)), _Sums(times, (loaded != 1) & (blocked == 0))


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    """Each -1 replaced by what was there last; 0 before anything was."""
    places = np.where(values >= 0, np.arange(len(values)), -1)
    places = np.maximum.accumulate(places) if len(places) else places
    return np.where(places >= 0, values[np.maximum(places, 0)], 0)
