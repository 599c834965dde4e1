"""What the trace says of one event channel's port: sent, received, held back, woken by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xentui.engine.trace import Kind, MaskedBy

REACH = 1 << 16
"""How many of the latest records are looked through."""


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
    kind, whose, number = rows["kind"], rows["domain"], rows["number"]
    sent = kind == Kind.EVENT_SEND
    ours = whose == domain
    found = sent & ours & (number == port)
    found |= sent & (rows["a"] == domain) & (rows["b"] == port)
    found |= ours & ((kind == Kind.EVENT_MASKED) | (kind == Kind.WAKE)) & (number == port)
    found |= ours & (kind == Kind.VIRQ) & (rows["a"] == port)
    chosen = found.nonzero()[0][-count:][::-1].tolist()
    return [PortEvent(start + at, int(rows["time"][at]), _words(rows[at], domain, port)) for at in chosen]


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
