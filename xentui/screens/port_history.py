"""What the trace says of one event channel's port: sent, received, held back, woken by it."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from xentui.engine.trace import COLUMNS, Kind, MaskedBy
from xentui.screens.records import CHUNK, RecordedTrace

if TYPE_CHECKING:
    from numpy.typing import NDArray

REACH = 1 << 16
"""How many of the latest records of a run are looked through; of a recording it is all."""
_FIELDS = ("kind", "domain", "number", "a", "b")
_EVENT = np.dtype([("record", np.int64), *((name, code) for name, code in COLUMNS if name in _FIELDS)])
_KINDS = np.zeros(256, np.bool_)
_KINDS[[Kind.EVENT_SEND, Kind.EVENT_MASKED, Kind.WAKE, Kind.VIRQ]] = True


@dataclass(frozen=True)
class PortEvent:
    """Something that happened to a port."""

    record: int
    time: int
    text: str


def port_history(records: Any, end: int, domain: int, port: int, count: int) -> list[PortEvent]:
    """The latest `count` events of a port before record `end`, newest first. `records`: a window of the trace."""
    if records is None:
        return []
    end = min(end, records.end)
    start = max(records.first, end - REACH)
    if end <= start:
        return []
    rows = records.rows(start, end)
    chosen = _concerns(rows, domain, port).nonzero()[0][-count:][::-1].tolist()
    return [PortEvent(start + at, int(rows["time"][at]), _words(rows[at], domain, port)) for at in chosen]


def _concerns(rows: Any, domain: int, port: int) -> NDArray[np.bool_]:
    """Which of some records concern a port."""
    kind, whose, number = rows["kind"], rows["domain"], rows["number"]
    sent = kind == Kind.EVENT_SEND
    ours = whose == domain
    found: NDArray[np.bool_] = sent & ours & (number == port)
    found |= sent & (rows["a"] == domain) & (rows["b"] == port)
    found |= ours & ((kind == Kind.EVENT_MASKED) | (kind == Kind.WAKE)) & (number == port)
    found |= ours & (kind == Kind.VIRQ) & (rows["a"] == port)
    return found


def sets_port(rows: Any, domain: int, port: int) -> NDArray[np.bool_]:
    """Which of some records make an event pending at a port."""
    found: NDArray[np.bool_] = (rows["kind"] == Kind.EVENT_SEND) & (rows["a"] == domain) & (rows["b"] == port)
    found |= (rows["kind"] == Kind.VIRQ) & (rows["domain"] == domain) & (rows["a"] == port)
    return found


def events_of(source: RecordedTrace, start: int) -> NDArray[Any]:
    """Of the chunk of a recording that begins there, the records that concern any port."""
    stop = min(start + CHUNK, source.end)

    def make() -> NDArray[Any]:
        kinds = source.columns("kind", start, stop)
        places = np.flatnonzero(_KINDS[kinds])
        found = np.zeros(len(places), _EVENT)
        found["record"] = start + places
        for name in _FIELDS if len(places) else ():
            found[name] = source.columns(name, start, stop)[places]
        return found

    return source.remember(start, stop, "ports", make)


class PortHistory:
    """All that happened to one port in a recording, found a chunk at a time, those nearest to the present first."""

    def __init__(self, source: RecordedTrace, domain: int, port: int) -> None:
        self.source, self.domain, self.port = source, domain, port
        self._left = list(range(0, source.end, CHUNK))
        self._found: dict[int, NDArray[np.int64]] = {}
        self._numbers: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def complete(self) -> bool:
        """Has all of it been looked through?"""
        return not self._left

    def advance(self, now: int, seconds: float) -> None:
        """Look through more of it, for about so long."""
        limit = perf_counter() + seconds
        while self._left:
            start = min(self._left, key=lambda start: abs(start + CHUNK // 2 - now))
            self._left.remove(start)
            if start < self.source.end:
                rows = events_of(self.source, start)
                found = rows["record"][_concerns(rows, self.domain, self.port)]
                if len(found):
                    self._found[start] = found
            if perf_counter() >= limit:
                break
        parts = [self._found[start] for start in sorted(self._found)]
        self._numbers = np.concatenate(parts) if parts else self._numbers

    def around(self, now: int, before: int, ahead: int) -> tuple[list[PortEvent], list[PortEvent]]:
        """The latest events before record `now`, newest first, and the next ones, soonest first."""
        at = int(np.searchsorted(self._numbers, now))
        past, future = self._numbers[max(0, at - before) : at][::-1], self._numbers[at : at + ahead]
        return self._told(past.tolist()), self._told(future.tolist())

    def _told(self, numbers: list[int]) -> list[PortEvent]:
        rows = [(number, self.source.rows(number, number + 1)) for number in numbers]
        return [
            PortEvent(number, int(row["time"][0]), _words(row[0], self.domain, self.port))
            for number, row in rows
            if len(row)
        ]


def _words(row: Any, domain: int, port: int) -> str:
    """One record, seen from the port."""
    kind = int(row["kind"])
    if kind == Kind.EVENT_SEND:
        again = " (was pending already)" if row["c"] else ""
        if int(row["domain"]) == domain and int(row["number"]) == port:
            return f"sent by vCPU {int(row['vcpu'])} to d{int(row['a'])} port {int(row['b'])}{again}"
        return f"received from d{int(row['domain'])} port {int(row['number'])}{again}"
    if kind == Kind.EVENT_MASKED:
        return "held back by the port's mask" if row["a"] == MaskedBy.PORT else "held back by the vCPU's upcall mask"
    if kind == Kind.VIRQ:
        return f"virtual interrupt {int(row['number'])} on vCPU {int(row['vcpu'])}"
    return f"woke vCPU {int(row['vcpu'])}"
