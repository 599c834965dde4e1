"""What each domain did, counted from the trace: hypercalls, traps, direct traps, events.

Counting here costs the trap path nothing. It is done in vector arithmetic over the records written since the last
look, and the counts are part of the engine's process, so that going back in time takes them back too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xentui.engine.trace import Kind, dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xentui.engine.trace import TraceRing

HYPERCALLS, TRAPS, DIRECT, EVENTS = range(4)
_CLASSES = 5
_OTHER = 4


def _classes() -> NDArray[Any]:
    """Kind to what it counts as."""
    table = np.full(256, _OTHER, np.intp)
    table[Kind.HYPERCALL] = HYPERCALLS
    table[[Kind.EXCEPTION, Kind.PAGE_FAULT, Kind.SOFTWARE_INTERRUPT, Kind.SYSCALL]] = TRAPS
    table[[Kind.EMULATED, Kind.IO_PORT, Kind.CPUID, Kind.MSR, Kind.FPU_RESTORE, Kind.FORCED_EMULATION]] = TRAPS
    table[Kind.DIRECT_TRAP] = DIRECT
    table[[Kind.EVENT_SEND, Kind.VIRQ]] = EVENTS
    return table


class Census:
    """Counts for each domain, kept up to date by `look`."""

    def __init__(self, ring: TraceRing, rows: memoryview) -> None:
        self._ring = ring
        self._rows = np.frombuffer(rows, dtype())
        self._classes = _classes()
        self._seen = 0
        self._counts: dict[int, list[int]] = {}

    def look(self) -> None:
        """Count what was written since the last time (what a lap has lost is not counted)."""
        head, size = self._ring.head, len(self._rows)
        start = max(self._seen, head - size)
        while start < head:
            stop = min(head, start - start % size + size)
            self._count(self._rows[start % size : start % size + stop - start])
            start = stop
        self._seen = head

    def _count(self, rows: NDArray[Any]) -> None:
        keys = rows["domain"].astype(np.intp) * _CLASSES + self._classes[rows["kind"]]
        for key, count in zip(*(part.tolist() for part in np.unique(keys, return_counts=True)), strict=True):
            domain, what = divmod(key, _CLASSES)
            self._counts.setdefault(domain, [0] * _CLASSES)[what] += count

    def of(self, domain: int) -> list[int]:
        """Hypercalls, traps, direct traps, events (and all other records) of a domain."""
        return self._counts.get(domain, [0] * _CLASSES)
