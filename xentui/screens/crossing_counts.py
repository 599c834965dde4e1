"""How often control passed between protection rings, by domain and by way, up to any moment of the run."""

from __future__ import annotations

from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from xentui.engine.trace import Kind
from xentui.screens.records import CHUNK, Piece, Records

_CALL_VECTOR = 0x80
_LABELS: dict[int, str] = {
    Kind.DIRECT_TRAP: "system calls",
    Kind.SYSCALL: "system calls",
    Kind.HYPERCALL: "hypercalls",
    Kind.PAGE_FAULT: "page faults",
    Kind.EXCEPTION: "exceptions",
    Kind.EVENT_UPCALL: "upcalls",
    Kind.IRET: "returns",
    Kind.SOFTWARE_INTERRUPT: "int n",
}
_ORDER = ("system calls", "page faults", "exceptions", "int n", "hypercalls", "upcalls", "returns")
_KINDS = np.zeros(256, np.bool_)
_KINDS[list(_LABELS)] = True
_CHECKPOINTS = 4096


class Way(NamedTuple):
    """A way between rings: what takes it, from where to where, and whether through Xen in ring 0."""

    label: str
    source: int
    target: int
    direct: bool

    @property
    def rings(self) -> str:
        """`3→1`, or `3→0→1`."""
        return f"{self.source}→{self.target}" if self.direct else f"{self.source}→0→{self.target}"

    @property
    def order(self) -> tuple[int, bool, int, int]:
        """Where it stands in a list."""
        return _ORDER.index(self.label), not self.direct, -self.source, self.target


Counts = dict[int, dict[Way, int]]
"""By domain and way."""


class CrossingCounts:
    """Counts kept up with the records; going back starts from the last chunk that was counted before."""

    def __init__(self) -> None:
        self.source: Records | None = None
        self.narrow: frozenset[int] = frozenset()
        self._raw: dict[int, int] = {}
        self._done = 0
        self._kept: dict[int, dict[int, int]] = {}
        self._branch = 0

    @property
    def done(self) -> int:
        """Records that are counted."""
        return self._done

    def update(self, source: Records, status: Any, seconds: float) -> bool:
        """Count up to the moment of `status`, for about so long; is it done?"""
        widths = {domain.id: domain.width for domain in getattr(status, "domains", ())}
        narrow = self.narrow | {domain for domain, width in widths.items() if width == 32}
        if source is not self.source or status.branch != self._branch or narrow != self.narrow:
            self.source, self._branch, self.narrow = source, status.branch, narrow
            self._raw, self._kept, self._done = {}, {}, source.first
        if status.records < self._done:
            self._go_back(status.records)
        limit = perf_counter() + seconds
        while self._done < status.records and perf_counter() < limit:
            start = max(self._done, source.first)
            stop = min(start - start % CHUNK + CHUNK, status.records, source.end)
            if stop <= start:
                break
            if start % CHUNK == 0 and len(self._kept) < _CHECKPOINTS:
                self._kept[start] = dict(self._raw)
            self._take(Piece(source, start, stop))
            self._done = stop
        return bool(self._done >= min(status.records, source.end))

    def _go_back(self, records: int) -> None:
        assert self.source is not None
        start = max((at for at in self._kept if at <= records), default=None)
        self._kept = {at: counts for at, counts in self._kept.items() if at <= records}
        self._raw = dict(self._kept[start]) if start is not None else {}
        self._done = start if start is not None else self.source.first

    def _take(self, piece: Piece) -> None:
        kinds = piece["kind"]
        rows = np.flatnonzero(_KINDS[kinds])
        if not len(rows):
            return
        kind = kinds[rows].astype(np.int64)
        rings = piece["d"][rows].astype(np.int64) & 0xFFFF
        number = piece["number"][rows]
        call = (kind == Kind.SOFTWARE_INTERRUPT) & (number == _CALL_VECTOR)
        kind[call] = Kind.SYSCALL  # a system call that was not let through directly
        domain = piece["domain"][rows].astype(np.int64)
        asked = kind == Kind.HYPERCALL
        if asked.any():
            ring = np.where(np.isin(domain, sorted(self.narrow)), 1, 3)
            rings[asked] = (ring | ring << 8)[asked]
        keys, counts = np.unique(domain << 24 | kind << 16 | rings, return_counts=True)
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            self._raw[key] = self._raw.get(key, 0) + count

    def counts(self) -> Counts:
        """What has been counted."""
        found: Counts = {}
        for key, count in self._raw.items():
            kind = key >> 16 & 0xFF
            way = Way(_LABELS[kind], key & 0xFF, key >> 8 & 0xFF, kind == Kind.DIRECT_TRAP)
            ways = found.setdefault(key >> 24, {})
            ways[way] = ways.get(way, 0) + count
        return found
