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

NOT_EXACT = "only the exact pace can be gone back in step by step; the fast pace to its snapshots (goto)"

CLOSE = 64
"""Half nanoseconds before a moment from which on it is approached instruction by instruction: some instructions."""
_FINE = 1024
"""Half nanoseconds that are looked through instruction by instruction."""
_PIECES = 64
_WIDER = 16
_FAR = 1 << 20
"""Half nanoseconds that are worth a snapshot of their own: a millisecond of running or so."""


def leave(engine: Engine) -> Generator[Command, msg.Done, msg.Status]:
    """Let the process that is active become a snapshot; where it stood."""
    if engine.active is None:
        return engine.status
    return (yield msg.Park).status


def to_position(engine: Engine, position: int, records: int = 0) -> Plan:
    """Go to a position (half ns), and on from there until `records` trace records are there.

    What ran in the fast pace does not happen again: then to the latest snapshot before it.
    """
    yield from leave(engine)
    kept = engine.wake_before(position)
    if not engine.exact:
        position, records = kept.status.position, 0
    yield partial(msg.Travel, position=position, records=records)
    return ""


def to_record(engine: Engine, number: int, time: int | None = None) -> Plan:
    """Go to where a trace record has just been written; `time`: when that is, where a recording says it."""
    if time is None:
        time = engine.records.time(number)
    if time is None and engine.exact:
        yield from leave(engine)
        earlier = [kept for kept in engine.timeline.usable() if kept.status.records <= number]
        engine.wake(earlier[-1] if earlier else engine.oldest())
        done = yield partial(msg.Reach, records=number + 1)
        engine.records.written(done.status.records)
        time = engine.records.time(number)
    if time is None:
        return f"there is no trace record {number}"
    return (yield from to_position(engine, 2 * time, number + 1))


def to_branch(engine: Engine, branch: Branch) -> Plan:
    """Go to the end of another branch. All that it does not share with the present one is run again."""
    yield from leave(engine)
    engine.wake_before(engine.use_branch(branch))  # from where they part, so that its trace is written again
    yield partial(msg.Travel, position=branch.end_position)
    return ""


def back_by_steps(engine: Engine, count: int) -> Plan:
    """Go back by instructions of the machine: to the last boundary before the present one, or the `count`th last."""
    if not engine.exact:
        return NOT_EXACT
    here = (yield from leave(engine)).position
    left = count
    while left:
        found = yield from _boundaries_before(engine, here, left)
        if not found:
            break
        here = found[-left] if left <= len(found) else found[0]
        left -= min(left, len(found))
    engine.wake_before(here)
    yield partial(msg.Travel, position=here)
    return "this is where the machine was started" if left else ""


def back_over(engine: Engine) -> Plan:
    """Go back by an instruction; what has returned to here is gone back over as a whole, to what called it.

    So is an instruction that repeats itself, to its first time. Where what called is not found (an interruption, a
    function that takes its arguments off the stack) it is one instruction back.
    """
    if not engine.exact:
        return NOT_EXACT
    if engine.active is None:
        engine.wake_before(engine.status.position)
        yield partial(msg.Travel, position=engine.status.position)
    here = (yield msg.Where).place
    notice = yield from back_by_steps(engine, 1)
    there = (yield msg.Where).place
    if here is None or there is None or (there.domain, there.vcpu) != (here.domain, here.vcpu):
        return notice
    if there.repeated and here.address in (there.address, there.address + there.size):
        from xentui.engine.who_wrote import plan

        return (yield from plan(engine, ("register", here.domain, here.vcpu, "rip")))
    if there.address + there.size != here.address and there.returns:
        yield from _to_call(engine, here)
    return notice


def _to_call(engine: Engine, here: msg.Place) -> Plan:
    """To the last of the instructions that may have called what returned to `here`: at the same depth of the stack."""
    from xentui.engine.breakpoints import ADDRESS, Breakpoint

    names = [domain.name for domain in engine.status.domains if domain.id == here.domain]
    for address in here.calls if names else ():
        condition = f"rsp == {here.stack:#x}"
        notice = yield from back_to(engine, Breakpoint(ADDRESS, f"{address:#x}", names[0], here.vcpu, condition))
        if not notice:
            break
    return ""


def _boundaries_before(engine: Engine, here: int, wanted: int) -> Generator[Command, msg.Done, tuple[int, ...]]:
    """The boundaries just before a position: about as many as wanted, at least one if there is any.

    Most often they lie within some instructions' time. Where a long hypercall or idle time lies between, a wider part
    is looked through in ever finer steps.
    """
    beginning = engine.oldest().status.position
    reach = CLOSE * wanted
    fine = max(_FINE, 2 * reach)
    found: tuple[int, ...] = ()
    start = here
    while not found and start > beginning:
        start = max(here - reach, beginning)
        found, grain = yield from _scan(engine, start, here, reach, fine)
        reach *= _WIDER
    while len(found) and grain > 1:
        finer, grain = yield from _scan(engine, found[-1], here, grain, fine)
        found = finer or found[-1:]
    return found


def _scan(
    engine: Engine, start: int, here: int, span: int, fine: int
) -> Generator[Command, msg.Done, tuple[tuple[int, ...], int]]:
    """Boundaries between two positions, and how far apart they are at least, given the part to be looked through."""
    grain = span // _PIECES if span > fine else 1
    kept = engine.wake_before(start)
    yield partial(msg.Travel, position=start, keep=start - kept.status.position > _FAR)
    found = (yield partial(msg.Scan, position=here, grain=grain)).found
    engine.discard()
    return found, grain


def back_to(engine: Engine, condition: Any) -> Plan:
    """Go back to the last place before the present where a condition held; None: where one of the breakpoints is."""
    if not engine.exact:
        return NOT_EXACT
    here = (yield from leave(engine)).position
    limit = here
    for kept in reversed(engine.timeline.usable()):
        if kept.status.position >= limit:
            continue
        engine.wake(kept)
        scan = partial(msg.Scan, position=limit, until=condition, breakpoints=condition is None)
        found = (yield scan).found
        engine.discard()
        if found:
            engine.wake_before(found[-1])
            yield partial(msg.Travel, position=found[-1])
            return ""
        limit = kept.status.position + 1  # what holds at the snapshot itself is met at the end of the part before
    engine.wake_before(here)
    yield partial(msg.Travel, position=here)
    return "it did not happen before"
