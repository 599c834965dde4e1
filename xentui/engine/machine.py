"""The machine: memory, a processor, the hypervisor on it, the control domain's services, and the run loop.

    machine = Machine(memory=128)
    domain = machine.create(resolve_guest("hello64"))
    machine.run()

Everything that happens is a function of the configuration, the guests and the inputs, in the exact pace.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

from xentui.engine.clock import ExactClock, FastClock
from xentui.engine.dom0.toolstack import Toolstack
from xentui.engine.pcpus import Pcpus
from xentui.engine.run_loop import RunLoop, Stop
from xentui.engine.trace import Flush, TraceRing
from xentui.engine.x86 import selftest
from xentui.engine.x86.cpu import Processor
from xentui.engine.xen import time
from xentui.engine.xen.domain_builder import build_slots
from xentui.engine.xen.entry import Entry
from xentui.engine.xen.hypervisor import Hypervisor
from xentui.engine.xen.page import FrameTable
from xentui.engine.xen.sched import make_policy
from xentui.engine.xen.sched.policy import MAX_PCPUS

if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Self

    from xentui.config import GuestSpec
    from xentui.engine.fault_snares import Place
    from xentui.engine.faults import Injection
    from xentui.engine.xen.domain import Domain

__all__ = ["DEFAULT_WALL_CLOCK", "PACES", "Machine", "Stop"]

PACES = ("exact", "fast")
DEFAULT_WALL_CLOCK = 1_066_557_600_000_000_000
"""When virtual time begins for the guests' wall clock in the exact pace: 19 October 2003, the first day of SOSP '03."""


class Machine(RunLoop):
    """An emulated machine with Xen on it. `memory` in MiB is for all guests together; the hypervisor's own is added.

    `cpus`: physical processors (pcpus.py); `scheduler`: "credit" or "bvt" (xen/sched/).
    """

    def __init__(
        self,
        memory: int,
        *,
        pace: str = "exact",
        cpus: int = 1,
        scheduler: str = "credit",
        seed: int = 0,
        wall_clock: int = DEFAULT_WALL_CLOCK,
        direct_traps: bool = True,
        trace_records: int = 1 << 16,
        trace_buffer: memoryview | None = None,
        flush: Flush | None = None,
    ) -> None:
        if pace not in PACES:
            raise ValueError(f"unknown pace {pace!r}: one of {', '.join(PACES)}")
        if not 1 <= cpus <= MAX_PCPUS:
            raise ValueError(f"{cpus} physical processors: there may be 1 to {MAX_PCPUS}")
        super().__init__()
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
        self.trace = TraceRing(trace_records, trace_buffer, flush)
        frames = FrameTable(guest_frames + xen_frames, seed, xen_frames)
        self.hv = Hypervisor(ram, frames, self.clock, self.trace)
        self.hv.wall_clock = wall_clock
        self.hv.reschedule = self.processor.stop
        self.hv.preempt, self.hv.slice_left = self.slice_over, self.slice_left
        self.hv.timers = time.TimerQueue(self.clock)
        self.hv.timers.reprogram = self._timer_set
        self.entry = Entry(self.hv, self.processor, direct_traps)
        self.processor.connect(self.entry)
        self.scheduler = make_policy(scheduler, cpus)
        self.pcpus = Pcpus(cpus, self.entry, self.scheduler)
        self.hv.wake = self.scheduler.wake
        build_slots(self.hv)
        self.toolstack = Toolstack(self)
        self.faults: list[Injection] = []
        """What was broken on purpose, oldest first (faults.py)."""
        self.snares: dict[Hashable, Place] = {}
        """The faults that lie in wait, by what they wait for (fault_snares.py)."""

    # --- domains -------------------------------------------------------------------------------------------------

    def create(self, spec: GuestSpec) -> Domain:
        """Build and start a domain. Raises ImageError, ConfigError or OutOfMemory, and leaves nothing behind then."""
        self.end_idle()
        return self.toolstack.create(spec)

    @property
    def domains(self) -> list[Domain]:
        """All domains, oldest first."""
        return list(self.hv.domains.values())

    def step_over(self) -> str:
        """Execute one instruction; what it calls runs to its return. Stop.STEP, or what stopped the machine before."""
        from xentui.engine.stepping import step_over

        return step_over(self)

    def unload(self, domain: Domain) -> None:
        """Take a domain that goes away off the processor; the faults that wait for it wait no longer."""
        super().unload(domain)
        if self.snares:
            from xentui.engine.fault_snares import disarm

            disarm(self, domain)

    def _machine(self) -> Machine:
        return self

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the host its memory back. The machine cannot be used afterwards."""
        for place in self.snares.values():
            place.restore()
        self.processor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
