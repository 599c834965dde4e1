"""The hypervisor's own state: machine memory, the frame table, the domains, the clock, the trace and the log.

Every module of `xen/` reaches it as `vcpu.hv` or `domain.hv`. It holds things; the mechanisms are in the modules
named for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.clock import Clock
    from xentui.engine.trace import TraceRing
    from xentui.engine.xen.domain import Domain, Vcpu
    from xentui.engine.xen.page import FrameTable
    from xentui.engine.xen.time import TimerQueue

VERSION_MAJOR, VERSION_MINOR, VERSION_EXTRA = 4, 17, ".7-xentui"


LOG_LINES = 8192


class Hypervisor:
    """What all of the hypervisor shares.

    `ram`, `ram32` and `ram64` are views of machine memory as bytes, 32-bit and 64-bit words.
    """

    def __init__(self, ram: memoryview, frames: FrameTable, clock: Clock, trace: TraceRing) -> None:
        self.ram = ram
        self.ram32, self.ram64 = ram.cast("I"), ram.cast("Q")
        self.frames = frames
        self.clock = clock
        self.trace = trace
        self.put = trace.put
        self.domains: dict[int, Domain] = {}
        self.log_lines: list[str] = []
        """The latest lines of the hypervisor's own log, `LOG_LINES` at least (Xen: the console ring)."""
        self.on_log: Callable[[str], None] | None = None

        # hypervisor-owned frames that every address space shows; filled in by the domain builder's `build_slots`
        self.m2p_index = 0
        """Index in `ram64` of the machine-to-physical table's first entry (64-bit entries)."""
        self.m2p_compat_index = 0
        """Index in `ram32` of the same for 32-bit guests."""
        self.xen_l4_slots: dict[int, int] = {}
        """L4 slot to entry: what the hypervisor writes into slots 256 to 271 of every guest L4."""
        self.compat_l2_slots: dict[int, int] = {}
        """L2 slot to entry: the same for the fourth L2 of a PAE guest."""
        self.zero_frame = 0
        """A frame of zeroes, mapped read-only where a descriptor table has no page."""
        self.reserved_gdt_frame: dict[int, int] = {}
        """Word size to the frame of the hypervisor's own page of every GDT."""
        self.grant_mappers: dict[int, list[Domain]] = {}
        """Frame to the domains that have mapped it by a grant: until it is free, translations of it may outlive the
        mapping."""
        self.wall_clock = 0
        """Nanoseconds since 1970 when virtual time was 0."""
        self.timers: TimerQueue
        """Every timer of the machine; set by it."""
        self.wake: Callable[[Vcpu], None] = lambda vcpu: None
        """The scheduler's: an event makes a blocked vCPU runnable."""
        self.reschedule: Callable[[], None] = lambda: None
        """Stop the processor at the next chance so that the scheduler can choose again."""
        self.preempt: Callable[[], bool] = lambda: False
        """Has the slice ended while a hypercall is at work? It then goes on later (continuation.py)."""
        self.slice_left: Callable[[], int] = lambda: 1 << 40
        """Half nanoseconds to the end of the slice: for work whose cost is known before it is begun (vector.py)."""

    def log(self, text: str) -> None:
        """A line for the hypervisor's own log (`xl dmesg`)."""
        line = f"(XEN) [{self.clock.now() / 1e9:12.6f}] {text}"
        self.log_lines.append(line)
        if len(self.log_lines) > 2 * LOG_LINES:  # guests write here, too (console_io.py)
            del self.log_lines[:LOG_LINES]
        if self.on_log:
            self.on_log(line)

    def set_m2p(self, mfn: int, pfn: int) -> None:
        """Record that machine frame `mfn` is its owner's pseudo-physical frame `pfn`, in both tables."""
        self.ram64[self.m2p_index + mfn] = pfn & 0xFFFF_FFFF_FFFF_FFFF
        self.ram32[self.m2p_compat_index + mfn] = pfn & 0xFFFF_FFFF

    def get_m2p(self, mfn: int) -> int:
        """The pseudo-physical frame of machine frame `mfn`."""
        return self.ram64[self.m2p_index + mfn]

    def crash(self, vcpu: Vcpu, reason: str) -> None:
        """Kill a domain for what it did: a register dump to the log, and no more running."""
        from xentui.engine.xen.crash import domain_crash

        domain_crash(vcpu, reason)
