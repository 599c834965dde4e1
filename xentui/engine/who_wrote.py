"""Who wrote this? The way back to the last change of a value.

Of events the trace tells, and is looked up; memory (page tables, too) and registers are watched while the past runs
again.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xentui.engine import messages as msg
from xentui.engine import travel
from xentui.engine.trace import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.breakpoints import Breakpoint
    from xentui.engine.process import Engine
    from xentui.engine.travel import Plan

_REACHES = (1 << 10, 1 << 14, 1 << 18)
"""Half nanoseconds in which a register's last change is looked for, instruction by instruction."""


def plan(engine: Engine, what: tuple[Any, ...]) -> Plan:
    """The way to what wrote `what`:

    ("pte", machine address), ("port", domain, port), ("memory", domain, vCPU, address, size),
    ("register", domain, vCPU, name), ("ring", machine address of a ring's pointer), ("bit", machine address of a byte,
    which bits of it), or ("frame", number of a machine frame, whose owner, type or type count was changed).
    """
    kind, *rest = what
    if kind == "pte":
        return _to_machine(engine, rest[0] & ~7, 8)
    if kind == "ring":
        return _to_machine(engine, rest[0], 4)
    if kind == "bit":
        return _to_machine(engine, rest[0], 1, rest[1])
    if kind == "frame":
        return _to_frame(engine, *rest)
    if kind == "port":
        return _to_record(engine, "event port", partial(_sets_port, *rest))
    if kind == "memory":
        return _to_memory(engine, *rest)
    if kind == "register":
        return _to_register(engine, *rest)
    return _nowhere(f"nothing is known about who writes a {kind}")


def _nowhere(notice: str) -> Plan:
    yield from ()
    return notice


def _sets_port(domain: int, port: int, rows: Any) -> Any:
    """The records that make an event pending at a domain's port."""
    sent = (rows["kind"] == Kind.EVENT_SEND) & (rows["a"] == domain) & (rows["b"] == port)
    return sent | (rows["kind"] == Kind.VIRQ) & (rows["domain"] == domain) & (rows["a"] == port)


def _to_record(engine: Engine, name: str, wanted: Callable[[Any], Any]) -> Plan:
    """To the last record before the present one that fits."""
    first = engine.records.first
    rows = engine.records.rows(first, engine.status.records)
    found = np.flatnonzero(wanted(rows)).tolist()
    while found and first + found[-1] >= engine.status.records - 1 and len(found) > 1:
        found.pop()  # that is where we are
    if not found:
        return _nowhere(f"no record from {first} on tells of a write to this {name}")
    return travel.to_record(engine, first + found[-1])


def _to_machine(engine: Engine, address: int, size: int, mask: int = 0) -> Plan:
    """Machine memory: a page-table entry, a pointer of a ring, a bit of an event."""
    from xentui.engine.breakpoints import MACHINE, WATCH, Breakpoint

    return _last_write(engine, Breakpoint(WATCH, f"{MACHINE}{address:#x}", length=size, mask=mask))


def _to_frame(engine: Engine, mfn: int) -> Plan:
    """To where the frame table last said something else of a frame."""
    from xentui.engine.breakpoints import FRAME, Breakpoint

    return _last_write(engine, Breakpoint(FRAME, f"{mfn:#x}"))


def _last_write(engine: Engine, watched: Breakpoint) -> Plan:
    notice = yield from travel.back_to(engine, watched)
    if notice in ("", travel.NOT_EXACT):
        return notice
    return "nothing has written this since the machine was started: it was there from the beginning"


def _to_memory(engine: Engine, domain: int, vcpu: int, address: int, size: int) -> Plan:
    from xentui.engine.breakpoints import WATCH, Breakpoint

    names = [known.name for known in engine.status.domains if known.id == domain]
    if not names:
        return _nowhere(f"there is no domain {domain}")
    return _last_write(engine, Breakpoint(WATCH, f"{address:#x}", names[0], vcpu, length=size))


def _to_register(engine: Engine, domain: int, vcpu: int, name: str) -> Plan:
    """Instruction by instruction through ever more of the past."""
    if not engine.exact:
        return travel.NOT_EXACT
    here = (yield from travel.leave(engine)).position
    beginning = engine.oldest().status.position
    found: tuple[int, ...] = ()
    for reach in _REACHES:
        start = max(here - reach, beginning)
        engine.wake_before(start)
        yield partial(msg.Travel, position=start)
        found = (yield partial(msg.Scan, position=here, register=(domain, vcpu, name))).found
        engine.discard()
        if found or start == beginning:
            break
    target = found[-1] if found else here
    engine.wake_before(target)
    yield partial(msg.Travel, position=target)
    return "" if found else f"{name} has not changed in the last {_REACHES[-1] // 2000} µs"
