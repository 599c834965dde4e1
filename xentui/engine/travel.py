"""Ways through time, as generators: each yields a command that moves the machine and gets the `Done` that ends it.

To go back is to wake the latest snapshot before the moment and to run forward from there. What the machine was is not
lost: the process that stood at the present becomes a snapshot itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from xentui.engine import messages as msg

if TYPE_CHECKING:
    from xentui.engine.process import Engine
    from xentui.engine.timeline import Branch

Command = Callable[[int], Any]
"""A command that still needs its serial."""
Plan = Generator[Command, msg.Done, str]
"""Returns what the user is to be told, if anything."""

CLOSE = 64
"""Half nanoseconds before a moment from which on it is approached instruction by instruction: some instructions."""
_WIDER = 16
_FAR = 4096
"""Half nanoseconds that are worth a snapshot of their own."""


def leave(engine: Engine) -> Generator[Command, msg.Done, msg.Status]:
    """Let the process that is active become a snapshot; where it stood."""
    if engine.active is None:
        return engine.status
    return (yield msg.Park).status


def to_position(engine: Engine, position: int, records: int = 0) -> Plan:
    """Go to a position (half ns), and on from there until `records` trace records are there."""
    yield from leave(engine)
    engine.wake_before(position)
    yield partial(msg.Travel, position=position, records=records)
    return ""


def to_record(engine: Engine, number: int) -> Plan:
    """Go to where a trace record has just been written."""
    time = engine.records.time(number)
    if time is None:
        yield from leave(engine)
        earlier = [kept for kept in engine.timeline.usable() if kept.status.records <= number]
        engine.wake((earlier or engine.timeline.usable())[-1 if earlier else 0])
        done = yield partial(msg.Reach, records=number + 1)
        engine.records.written(done.status.records)
        time = engine.records.time(number)
    if time is None:
        return f"there is no trace record {number}"
    return (yield from to_position(engine, 2 * time, number + 1))


def to_branch(engine: Engine, branch: Branch) -> Plan:
    """Go to the end of another branch."""
    yield from leave(engine)
    engine.use_branch(branch)
    engine.wake_before(branch.end_position)
    yield partial(msg.Travel, position=branch.end_position)
    return ""


def back_by_steps(engine: Engine, count: int) -> Plan:
    """Go back by instructions of the machine: to the last boundary before the present one, or the `count`th last."""
    here = (yield from leave(engine)).position
    beginning = engine.timeline.usable()[0].status.position
    reach = CLOSE * count
    while True:
        start = max(here - reach, beginning)
        kept = engine.wake_before(start)
        keep = start - kept.status.position > _FAR
        yield partial(msg.Travel, position=start, keep=keep)
        found = (yield partial(msg.Scan, position=here)).found
        engine.discard()
        if len(found) >= count or start == beginning:
            break
        reach *= _WIDER
    target = found[-min(count, len(found))] if found else here
    engine.wake_before(target)
    yield partial(msg.Travel, position=target)
    return "" if len(found) >= count else "this is where the machine was started"


def back_to(engine: Engine, condition: Any) -> Plan:
    """Go back to the last place before the present where a condition held."""
    here = (yield from leave(engine)).position
    limit = here
    for kept in reversed(engine.timeline.usable()):
        if kept.status.position >= limit:
            continue
        engine.wake(kept)
        found = (yield partial(msg.Scan, position=limit, until=condition)).found
        engine.discard()
        if found:
            engine.wake_before(found[-1])
            yield partial(msg.Travel, position=found[-1])
            return ""
        limit = kept.status.position + 1  # what holds at the snapshot itself is met at the end of the part before
    engine.wake_before(here)
    yield partial(msg.Travel, position=here)
    return "it did not happen before"
