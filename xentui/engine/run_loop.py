"""The run loop: who runs next and until when, and the stops that leave no trace.

A *slice* is what the scheduler gives a vCPU: it ends at its deadline, at the next timer, or when the vCPU gives its
processor up. `run` may return in the middle of one; it is kept then, and the next call goes on with it, so that a run
is the same in one go, in pieces or step by step. So it is with idling, whose record is written when it ends. Only an
influence from outside (`actions.py`) ends a slice early; it is told by its position, and has the same effect there in
every run.
"""

from __future__ import annotations

import time as host_time
import traceback
from functools import cached_property
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from xentui.engine.clock import COST_SCHEDULE
from xentui.engine.trace import Kind
from xentui.engine.x86.cpu import ProcessorError
from xentui.engine.xen.domain import RUNNING, Vcpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.actions import Action
    from xentui.engine.breakpoints import Breakpoint, Breakpoints, Stopped
    from xentui.engine.clock import ExactClock, FastClock
    from xentui.engine.dom0.toolstack import Toolstack
    from xentui.engine.machine import Machine
    from xentui.engine.pcpus import Pcpus
    from xentui.engine.x86.cpu import Processor
    from xentui.engine.xen.domain import Domain
    from xentui.engine.xen.entry import Entry
    from xentui.engine.xen.hypervisor import Hypervisor
    from xentui.engine.xen.sched.policy import Policy

FOREVER = 1 << 61
"""A position that no run reaches: 36 years."""


class Stop:
    """Why `run` or `step` returned."""

    FINISHED = "finished"
    """No domain is left to run."""
    TIME = "time"
    """The virtual time or position asked for is reached."""
    ASKED = "asked"
    """`stop` was called, or the host's time is over."""
    STARVED = "starved"
    """Every domain waits for something that nothing in the machine will bring."""
    IDLE = "idle"
    """Every vCPU is blocked until a timer (`idle_until`), or for good, and `hold_idle` is set."""
    BREAKPOINT = "breakpoint"
    """A breakpoint was hit: `Machine.stopped` says which."""
    STEP = "step"
    """An instruction has been executed."""
    AUDIT = "audit"
    """The frame table is not what the page tables say: `Machine.findings`, a fault of the hypervisor's own."""


class RunLoop:
    """The part of a machine that runs it; `Machine` has the rest. Positions are in half nanoseconds (`clock.py`)."""

    pace: str
    processor: Processor
    clock: ExactClock | FastClock
    hv: Hypervisor
    entry: Entry
    scheduler: Policy
    pcpus: Pcpus
    toolstack: Toolstack

    def __init__(self) -> None:
        self._stop_asked = False
        self._slice: Vcpu | None = None
        self._slice_end = 0
        self._idle_since: int | None = None
        self.scheduled: list[tuple[int, int, Action]] = []
        """Actions to come: a heap of (position, order, action)."""
        self._schedules = 0
        self._host_end = 0.0
        self._hit: Stopped | None = None
        self.stopped: Stopped | None = None
        """Why the last `run` or `step` stopped at a breakpoint."""
        self.run_began = 0
        """The position where the last `run` or `step` began: no breakpoint on code stops it there."""
        self.hold_idle = False
        """When every vCPU is blocked, return Stop.IDLE instead of going to the next timer at once, or Stop.STARVED."""
        self.on_action: Callable[[int, Action], None] | None = None
        """Called with the position and the action when one is performed."""
        self.on_slice: Callable[[], None] | None = None
        """Called between slices: for progress displays."""
        self.audited = False
        """Check the frame table against every page table after each slice, and stop at what is found (slow)."""
        self.audits = 0
        """How often that was done."""
        self.findings: list[str] = []
        """What the last audit found, a line each."""
        self.strict = False
        """Raise errors of the engine's own instead of crashing the domain that met them (for tests)."""

    # --- where the machine is --------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The point of the run: half nanoseconds of virtual time. Each instruction is at another one."""
        return self.clock.position()

    def now(self) -> int:
        """Virtual nanoseconds since the machine was started."""
        return self.clock.now()

    @property
    def current(self) -> Vcpu | None:
        """The vCPU whose registers are loaded: the one that runs, or that ran last."""
        vcpu = self.processor.vcpu
        return vcpu if isinstance(vcpu, Vcpu) else None

    # --- running ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make `run` or `step` return soon; from a callback or a signal handler. The run can go on from there."""
        self._stop_asked = True
        self.processor.pause()

    def run(
        self, until: int | None = None, until_position: int | None = None, host_ms: int = 0, go_on: bool = False
    ) -> str:
        """Run until no domain can run any more or `stop` is called; a Stop says why it returned.

        `until`: virtual ns, or `until_position`: half ns; it ends at the first instruction boundary there or behind.
        `host_ms`: return Stop.ASKED after about so many milliseconds of the host's time. `go_on`: this is the next part
        of one run, and a breakpoint that lies just here counts.
        """
        limit = FOREVER if until is None else until << 1
        if until_position is not None:
            limit = min(limit, until_position)
        self._begin_run(host_ms, go_on)
        try:
            while True:
                reason = self._advance(limit)
                if reason:
                    return reason
        finally:
            if host_ms and self.processor.counts_code:
                self.processor.set_alarm(0)

    def step(self, vcpu: Vcpu | None = None, host_ms: int = 0, go_on: bool = False) -> str:
        """Execute one instruction of the machine, or run until `vcpu` has executed one; Stop.STEP if that was done.

        What the hypervisor does for the instruction is part of it: a hypercall or a fault is one step. Needs the
        exact pace. `host_ms` and `go_on` are as for `run`: a vCPU may have to be waited for, and one step may be the
        next of many.
        """
        if not self.processor.counts_code:
            raise ValueError("only the exact pace can be stepped")
        self._begin_run(host_ms, go_on)
        try:
            while True:
                running, position = self._slice, self.position
                single = running is not None and (vcpu is None or running is vcpu)
                reason = self._advance(FOREVER, single)
                if reason:
                    return reason
                if single and self.position > position:
                    return self._stop_at_breakpoint() or Stop.STEP
        finally:
            if host_ms:
                self.processor.set_alarm(0)

    def run_to(self, point: Breakpoint, until_position: int | None = None, host_ms: int = 0) -> str:
        """Run until a breakpoint that is set for this one run, or whatever stops it before."""
        number = self.breakpoints.add(point._replace(temporary=True))
        try:
            return self.run(until_position=until_position, host_ms=host_ms)
        finally:
            if any(number == other for other, _, _ in self.breakpoints):
                self.breakpoints.remove(number)

    @cached_property
    def breakpoints(self) -> Breakpoints:
        """What the machine stops at."""
        from xentui.engine.breakpoints import Breakpoints

        return Breakpoints(self._machine())

    def hit(self, stopped: Stopped) -> None:
        """A breakpoint is hit: stop at the next instruction boundary. The first of several is told."""
        self._hit = self._hit or stopped

    def _stop_at_breakpoint(self) -> str | None:
        if self._hit is None:
            return None
        self.stopped, self._hit = self._hit, None
        return Stop.BREAKPOINT

    def _begin_run(self, host_ms: int, go_on: bool = False) -> None:
        self._stop_asked = False
        self.stopped = None
        if not go_on:
            self.run_began = self.position
        self.processor.go_on()
        self._host_end = host_time.monotonic() + host_ms / 1000 if host_ms else 0.0
        if host_ms and self.processor.counts_code:
            self.processor.set_alarm(1000 * host_ms)

    def _advance(self, limit: int, single: bool = False) -> str | None:
        """Begin a slice, or go on with the one begun; a Stop, or None to go on. `single`: one instruction at most."""
        if self._hit is not None:
            return self._stop_at_breakpoint()
        if self._slice is None:
            return self._schedule(limit)
        if self._asked():
            return Stop.ASKED
        if self.clock.position() >= limit:
            return Stop.TIME
        self._run_slice(self._slice, limit, single)
        if self._slice is None and self.audited and self._audit():
            return Stop.AUDIT
        return None

    def _asked(self) -> bool:
        if self._host_end and not self.processor.counts_code and host_time.monotonic() >= self._host_end:
            return True
        return self._stop_asked or self.processor.paused

    def _schedule(self, limit: int) -> str | None:
        """Between slices: what is due (`_settle`); then begin a slice, or idle."""
        if self._settle():
            return None
        if self._hit is not None:
            return self._stop_at_breakpoint()
        if self._asked():
            return Stop.ASKED
        position = self.clock.position()
        if position >= limit:
            return Stop.TIME
        now = position >> 1
        vcpu, length = (None, 0) if self._idle_since is not None else self.pcpus.choose(now)
        event = self.hv.timers.next_deadline()
        if vcpu is None:
            return self._idle(limit, event)
        if self.on_slice:
            self.on_slice()
        self._begin_slice(vcpu, length, now + length if event is None else min(now + length, event))
        return None

    def _settle(self) -> bool:
        """Between slices: fire the timers that are due, deal with domains that have ended, and perform an action that
        is due. True: there was one, or time has passed meanwhile; then there may be more to do, wherever this run ends.
        """
        timers, now = self.hv.timers, self.clock.now()
        event = timers.next_deadline()
        if event is not None and event <= now:
            self.end_idle()
            timers.run_due(now)
        self.toolstack.settle()
        if self.scheduled and self.scheduled[0][0] <= self.position:
            self._perform_due(heappop(self.scheduled)[2])
            return True
        return self.clock.exact and self.clock.now() != now

    def _audit(self) -> bool:
        """Recount the frame table; is anything wrong with it?"""
        from xentui.engine.xen.audit import audit

        self.audits += 1
        self.findings = audit(self.hv)
        return bool(self.findings)

    # --- idling ----------------------------------------------------------------------------------------------------

    def _idle(self, limit: int, event: int | None) -> str | None:
        """Nobody can run before the next timer, at `event` ns: virtual time goes there at once, or to the limit."""
        if not self.toolstack.alive:
            return Stop.FINISHED
        if self._idle_since is None:
            self._idle_since = self.clock.now()
            self.clock.charge(COST_SCHEDULE)
        until = limit if event is None else min(limit, event << 1)
        if self.scheduled:
            until = min(until, self.scheduled[0][0])
        if until == FOREVER and not self.hold_idle:
            return Stop.STARVED
        if self.hold_idle:
            return Stop.IDLE
        self.clock.skip_to(until)
        return None

    @property
    def idle_since(self) -> int | None:
        """When every vCPU became blocked, in virtual ns; None while that is not so."""
        return self._idle_since

    def idle_until(self) -> int | None:
        """When the next timer is due, in virtual ns; None: no timer is set."""
        return self.hv.timers.next_deadline()

    def idle_to(self, ns: int) -> None:
        """While every vCPU is blocked: let virtual time go on to `ns`, or to the next timer if that is earlier."""
        if self._idle_since is None:
            return
        event = self.idle_until()
        position = (ns if event is None else min(ns, event)) << 1
        if self.scheduled:
            position = min(position, self.scheduled[0][0])
        self.clock.skip_to(position)

    def end_idle(self) -> None:
        """Something may wake a vCPU: the time that nobody could run ends here, and is told."""
        began, self._idle_since = self._idle_since, None
        if began is not None and self.now() > began:
            self.hv.put(began, 0, Kind.IDLE, 0, 0x7FFF, 0, self.now(), 0, 0, 0, 0)

    # --- actions ---------------------------------------------------------------------------------------------------

    def apply(self, action: Action) -> None:
        """Let something from outside happen now; between calls of `run`. Raises ActionError where it cannot.

        What is due at this position comes before it, as it does when the run is repeated with the action scheduled.
        """
        if self._slice is None or self._next_action() <= self.position:
            self._end_slice()
            while self._settle():
                pass
        self._perform(action)

    def schedule(self, position: int, action: Action) -> None:
        """Let something from outside happen at the first instruction boundary at or behind `position`."""
        self._schedules += 1
        heappush(self.scheduled, (position, self._schedules, action))

    def unschedule(self) -> None:
        """Forget every action that is still to come."""
        self.scheduled.clear()

    def _machine(self) -> Machine:
        """The whole of it."""
        raise TypeError("a run loop runs as part of a machine")

    def _perform_due(self, action: Action) -> None:
        """A scheduled action; one that has become impossible is told in the hypervisor's log."""
        from xentui.engine.actions import ActionError

        try:
            self._perform(action)
        except ActionError as error:
            self.hv.log(str(error))

    def _perform(self, action: Action) -> None:
        position = self.position
        self.end_idle()
        self._end_slice()
        try:
            action.perform(self._machine())
        finally:  # one that cannot be performed has ended the slice, too
            if self.on_action:
                self.on_action(position, action)

    # --- slices ----------------------------------------------------------------------------------------------------

    def _begin_slice(self, vcpu: Vcpu, length: int, end: int) -> None:
        """Let a vCPU, which may run for `length` ns, do so until `end`, or until it gives its processor up."""
        self.clock.charge(COST_SCHEDULE)
        self.pcpus.give(vcpu, length)
        self._slice, self._slice_end = vcpu, end << 1
        if self._guarded(vcpu, self.entry.leave, vcpu) or vcpu.runstate != RUNNING or not vcpu.domain.runnable:
            self._end_slice()  # it crashed on the way to its own code

    def _run_slice(self, vcpu: Vcpu, limit: int, single: bool) -> None:
        """Go on with the slice of `vcpu`, up to a limit within it; forget the slice when it is over."""
        processor, clock = self.processor, self.clock
        if self.scheduled:
            limit = min(limit, self.scheduled[0][0])
        if vcpu.runstate != RUNNING or not vcpu.domain.runnable:
            self._end_slice()
            return
        if not processor.counts_code:
            self._guarded(vcpu, processor.run, self._host_microseconds())
            self._end_slice()
            return
        end = min(self._slice_end, limit)
        clock.set_deadline(end)
        if single and clock.position() < end:
            ended = self._guarded(vcpu, processor.step)
        else:
            ended = self._guarded(vcpu, processor.run)
        if ended or processor.stop_requested or clock.position() >= min(self._slice_end, self._next_action()):
            self._end_slice()

    def _next_action(self) -> int:
        return self.scheduled[0][0] if self.scheduled else FOREVER

    def _host_microseconds(self) -> int:
        """In the fast pace: how long the slice may go on, in the host's time."""
        left = max(1, (self._slice_end - self.position) // 2000)
        if self._host_end:
            left = min(left, max(1, int((self._host_end - host_time.monotonic()) * 1e6)))
        return left

    def slice_over(self) -> bool:
        """Has the vCPU had its time, or is somebody else to be chosen? Then hypercalls give way.

        By the slice's own end and by what the hypervisor asked for (Xen: SCHEDULE_SOFTIRQ is pending): a stop for who
        watches is `pause` or `halt`, and must change nothing.
        """
        return self.processor.stop_requested or self.clock.position() >= self._slice_end

    def slice_left(self) -> int:
        """Half nanoseconds that the vCPU has left of its slice; none when it is over."""
        return self._slice_end - self.clock.position()

    def _end_slice(self) -> None:
        self._slice, self._slice_end = None, 0

    def _guarded(self, vcpu: Vcpu, work: Callable[..., None], *arguments: object) -> bool:
        """Do something that runs the vCPU; what goes wrong in it crashes the domain, and True is returned."""
        try:
            work(*arguments)
        except ProcessorError as error:
            self.hv.crash(vcpu, str(error))
        except Exception as error:
            self._engine_fault(vcpu, error)
        else:
            return False
        return True

    def _timer_set(self, deadline: int) -> None:
        """A timer is due before all others (ns), perhaps within the slice that runs: cut that short."""
        position = deadline << 1
        if position < self._slice_end:
            self._slice_end = position
            if not self.processor.counts_code:
                self.processor.stop()
            elif position < self.clock.deadline:
                self.clock.set_deadline(position)

    def _engine_fault(self, vcpu: Vcpu, error: Exception) -> None:
        """A fault of the hypervisor's own: as little as possible is lost, and it is told in full."""
        if self.strict or not isinstance(error, (ArithmeticError, LookupError, TypeError, ValueError, AttributeError)):
            raise error
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.hv.log(line)
        self.hv.crash(vcpu, f"a fault of the hypervisor itself: {type(error).__name__}: {error}")

    def unload(self, domain: Domain) -> None:
        """Take a domain that goes away off its processors."""
        if self._slice is not None and self._slice.domain is domain:
            self._end_slice()
        self.pcpus.unload(domain)
