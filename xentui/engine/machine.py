"""The machine: memory, a processor, the hypervisor on it, the control domain's services, and the run loop.

    machine = Machine(memory=128)
    domain = machine.create(resolve_guest("hello64"))
    machine.run()

Everything that happens is a function of the configuration, the guests and the inputs, in the exact pace.
"""

from __future__ import annotations

import ctypes
import mmap
import traceback
from typing import TYPE_CHECKING

from xentui.engine.clock import COST_CONTEXT_SWITCH, ExactClock, FastClock
from xentui.engine.dom0.toolstack import Toolstack
from xentui.engine.trace import Flush, Kind, TraceRing, runner
from xentui.engine.x86 import selftest
from xentui.engine.x86.cpu import Processor, ProcessorError
from xentui.engine.xen import descriptor_tables, failsafe, schedule, time, traps
from xentui.engine.xen.domain import RUNNING, Domain, Vcpu
from xentui.engine.xen.domain_builder import build_slots, first_state
from xentui.engine.xen.entry import Entry
from xentui.engine.xen.hypervisor import Hypervisor
from xentui.engine.xen.page import FrameTable
from xentui.engine.xen.sched import make_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.config import GuestSpec

PACES = ("exact", "fast")
DEFAULT_WALL_CLOCK = 1_066_557_600_000_000_000
"""When virtual time begins for the guests' wall clock in the exact pace: 19 October 2003, the first day of SOSP '03."""
_FOREVER = 1 << 62


class Stop:
    """Why `run` returned."""

    FINISHED = "finished"
    """No domain is left to run."""
    TIME = "time"
    """The virtual time asked for is reached."""
    ASKED = "asked"
    """`stop` was called."""
    STARVED = "starved"
    """Every domain waits for something that nothing in the machine will bring."""
    AUDIT = "audit"
    """The frame table is not what the page tables say: `Machine.findings`, a fault of the hypervisor's own."""


class Machine:
    """An emulated machine with Xen on it. `memory` in MiB is for all guests together; the hypervisor's own is added.

    `scheduler`: "credit" or "bvt" (xen/sched/).
    """

    def __init__(
        self,
        memory: int,
        *,
        pace: str = "exact",
        scheduler: str = "credit",
        seed: int = 0,
        wall_clock: int = DEFAULT_WALL_CLOCK,
        direct_traps: bool = True,
        trace_records: int = 1 << 16,
        flush: Flush | None = None,
    ) -> None:
        if pace not in PACES:
            raise ValueError(f"unknown pace {pace!r}: one of {', '.join(PACES)}")
        guest_frames = memory << 8
        xen_frames = 256 + guest_frames // 200
        self.ram_size = (guest_frames + xen_frames) << 12
        self._ram = mmap.mmap(-1, self.ram_size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor = ctypes.c_char.from_buffer(self._ram)
        ram = memoryview(self._ram)
        self.pace = pace
        self.processor = Processor(ctypes.addressof(self._anchor), self.ram_size, count_code=pace == "exact")
        selftest.run(self.processor, ram)
        self.clock = ExactClock(self.processor.budget) if pace == "exact" else FastClock()
        self.trace = TraceRing(trace_records, flush=flush)
        frames = FrameTable(guest_frames + xen_frames, seed, xen_frames)
        self.hv = Hypervisor(ram, frames, self.clock, self.trace)
        self.hv.wall_clock = wall_clock
        self.hv.reschedule = self.processor.stop
        self.hv.timers = time.TimerQueue(self.clock)
        self.hv.timers.reprogram = self._timer_set
        self.entry = Entry(self.hv, self.processor, direct_traps)
        self.processor.connect(self.entry)
        self.scheduler = make_policy(scheduler)
        self.hv.wake = self.scheduler.wake
        build_slots(self.hv)
        self.toolstack = Toolstack(self)
        self._stop_asked = False
        self._slice_end = 0
        self._current: Vcpu | None = None
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

    # --- domains -------------------------------------------------------------------------------------------------

    def create(self, spec: GuestSpec) -> Domain:
        """Build and start a domain. Raises ImageError, ConfigError or OutOfMemory, and leaves nothing behind then."""
        return self.toolstack.create(spec)

    @property
    def domains(self) -> list[Domain]:
        """All domains, oldest first."""
        return list(self.hv.domains.values())

    def now(self) -> int:
        """Virtual nanoseconds since the machine was started."""
        return self.clock.now()

    # --- running -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make `run` return soon; from a callback or a signal handler."""
        self._stop_asked = True
        self.processor.stop()

    def run(self, until: int | None = None) -> str:
        """Run until no domain can run any more, `stop` is called, or virtual time reaches `until` (ns). See Stop."""
        self._stop_asked = False
        clock, timers, scheduler = self.clock, self.hv.timers, self.scheduler
        limit = _FOREVER if until is None else until
        while True:
            now = clock.now()
            timers.run_due(now)
            self.toolstack.settle()
            if self._stop_asked:
                return Stop.ASKED
            if now >= limit:
                return Stop.TIME
            vcpu, slice_ns = scheduler.pick(now)
            event = timers.next_deadline()
            if vcpu is None:
                if not self.toolstack.alive:
                    return Stop.FINISHED
                if event is None and until is None:
                    return Stop.STARVED
                self._idle(min(limit, _FOREVER if event is None else event))
                continue
            if self.on_slice:
                self.on_slice()
            self._run_slice(vcpu, min(now + slice_ns, limit, _FOREVER if event is None else event))
            if self.audited and self._audit():
                return Stop.AUDIT

    def _audit(self) -> bool:
        """Recount the frame table; is anything wrong with it?"""
        from xentui.engine.xen.audit import audit

        self.audits += 1
        self.findings = audit(self.hv)
        return bool(self.findings)

    def _idle(self, until: int) -> None:
        """Nobody can run before `until`: virtual time goes there at once."""
        now = self.clock.now()
        self._put_down(now)
        if until > now:
            self.hv.put(now, 0, Kind.IDLE, 0, 0x7FFF, 0, until, 0, 0, 0, 0)
            self.clock.skip_to(until)

    def _run_slice(self, vcpu: Vcpu, deadline: int) -> None:
        """Give the processor to a vCPU until `deadline`, or until it gives it up."""
        clock = self.clock
        if self._current is not vcpu or vcpu.runstate != RUNNING:
            self._switch_to(vcpu)
        self._slice_end = deadline
        clock.set_deadline(deadline)
        try:
            self.entry.leave(vcpu)
            if vcpu.runstate == RUNNING and vcpu.domain.runnable:
                self.processor.run(0 if self.pace == "exact" else max(1, (deadline - clock.now()) // 1000))
        except ProcessorError as error:
            self.hv.crash(vcpu, str(error))
        except Exception as error:
            self._engine_fault(vcpu, error)
        self.processor.settle()
        if self.pace == "exact" and not self.processor.stop_requested:
            clock.skip_to(self._slice_end)  # less than a block of code was left
        self._slice_end = 0

    def _timer_set(self, deadline: int) -> None:
        """A timer is due before all others, perhaps within the slice that runs: cut that short."""
        if deadline < self._slice_end:
            self._slice_end = deadline
            self.clock.set_deadline(deadline)
            if self.pace == "fast":
                self.processor.stop()

    def _engine_fault(self, vcpu: Vcpu, error: Exception) -> None:
        """A fault of the hypervisor's own: as little as possible is lost, and it is told in full."""
        if self.strict or not isinstance(error, (ArithmeticError, LookupError, TypeError, ValueError, AttributeError)):
            raise error
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.hv.log(line)
        self.hv.crash(vcpu, f"a fault of the hypervisor itself: {type(error).__name__}: {error}")

    def _switch_to(self, vcpu: Vcpu) -> None:
        """Load another vCPU's registers and page tables into the processor."""
        processor, now = self.processor, self.clock.now()
        self._put_down(now)
        previous = processor.vcpu
        if previous is not vcpu:
            source = runner(0x7FFF, 0)
            if isinstance(previous, Vcpu):
                previous.saved = processor.state.save()
                source = runner(previous.domain.id, previous.id)
            code_good = data_good = True
            if vcpu.boot_registers:
                vcpu.saved, code_good, data_good = first_state(vcpu)
            processor.state.load(vcpu.saved)
            processor.vcpu = self.entry.vcpu = vcpu
            descriptor_tables.load_ldt(vcpu)
            processor.flush_tlb()
            # real Xen finds these when it loads the segments, and when it returns to the guest
            if not data_good:
                failsafe.bounce(vcpu, vcpu.boot_registers["cs"], vcpu.boot_registers["ss"])
            elif not code_good:
                traps.return_fault(vcpu, vcpu.boot_registers["cs"], vcpu.boot_registers["ss"])
            vcpu.boot_registers = {}
            self.clock.charge(COST_CONTEXT_SWITCH)
            self.hv.put(
                now, 0, Kind.SCHEDULE, vcpu.id, vcpu.domain.id, 0,
                source, runner(vcpu.domain.id, vcpu.id), 0, 0, 0,
            )  # fmt: skip
        self._current = vcpu
        schedule.switch_in(vcpu, now)

    def _put_down(self, now: int) -> None:
        """The vCPU that has the processor no longer runs; its registers stay loaded until another needs them."""
        if self._current is not None:
            schedule.switch_out(self._current, now)
            self._current = None

    def unload(self, domain: Domain) -> None:
        """Take a domain that goes away off the processor."""
        if isinstance(self.processor.vcpu, Vcpu) and self.processor.vcpu.domain is domain:
            self.processor.vcpu = None
        if self._current is not None and self._current.domain is domain:
            self._current = None

    def close(self) -> None:
        """Give the host its memory back. The machine cannot be used afterwards."""
        self.processor.close()
