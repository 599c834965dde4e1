"""The physical processors: which vCPU each of them runs, and whose turn it is on the emulated one.

A machine has one physical processor, or up to four. One emulated processor (x86/cpu.py) stands for all of them: where
more than one has something to do they take turns of `TURN` on it, as QEMU's virtual processors do in one thread when it
counts instructions. So a position still names one point of a run, code that one processor writes is what the others
execute, and no translation is left behind on another. Virtual time is what all of them execute together: two that are
busy are each half as fast as one.

A vCPU *has* a physical processor from when the scheduler gives it one until it is taken away again, and its run state
is "running" all the while; its registers are loaded when its processor's turn has come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_CONTEXT_SWITCH
from xentui.engine.trace import Kind, runner
from xentui.engine.xen import cpulist, debugreg, descriptor_tables, failsafe, schedule, traps
from xentui.engine.xen.domain import RUNNING, Domain, Vcpu
from xentui.engine.xen.domain_builder import first_state

if TYPE_CHECKING:
    from xentui.engine.xen.entry import Entry
    from xentui.engine.xen.sched.policy import Policy

TURN = 100_000
"""Virtual nanoseconds that a physical processor has the emulated one for while others want it, too."""
IDLE_DOMAIN = 0x7FFF
"""Whose vCPUs run where nobody else does, in the trace (Xen: DOMID_IDLE)."""


class Pcpu:
    """A physical processor."""

    __slots__ = ("current", "last", "number", "ran", "since")

    def __init__(self, number: int) -> None:
        self.number = number
        self.current: Vcpu | None = None
        """Who runs here."""
        self.last: Vcpu | None = None
        """The same, or who ran here last: its registers stay until another's are needed."""
        self.since = self.ran = 0
        """Since when, in virtual ns; and how long, once it no longer does."""


class Pcpus:
    """All physical processors of a machine."""

    def __init__(self, count: int, entry: Entry, scheduler: Policy) -> None:
        self.entry, self.hv, self.processor, self.scheduler = entry, entry.hv, entry.processor, scheduler
        self.all = [Pcpu(number) for number in range(count)]
        self.turn = self.all[0]
        """Whose turn it is."""
        self._turn_began = 0

    def choose(self, now: int) -> tuple[Vcpu | None, int]:
        """Who runs now, at the turn of its processor, and for how long at most (ns); None if all are idle."""
        count, over = len(self.all), now - self._turn_began >= TURN
        for step in range(count):
            pcpu = self.all[(self.turn.number + over + step) % count]
            vcpu, length = self.scheduler.pick(now, pcpu.number)
            if vcpu is None:
                self._rest(pcpu, now)
                continue
            if over or step:
                self.turn, self._turn_began = pcpu, now
            if count > 1 and self._others_wait(pcpu):
                length = min(length, self._turn_began + TURN - now)
            return vcpu, length
        return None, 0

    def checked(self, mask: int) -> int:
        """A set of processors, if one of them is there. Raises ValueError."""
        if not mask & (1 << len(self.all)) - 1:
            last = len(self.all) - 1
            raise ValueError(
                f"the machine has no processor {cpulist.text(mask)}: it has {f'0 to {last}' if last else 'processor 0'}"
                " (--cpus)"
            )
        return mask

    def _others_wait(self, pcpu: Pcpu) -> bool:
        return self.scheduler.waiting() or any(other.current for other in self.all if other is not pcpu)

    def give(self, vcpu: Vcpu, length: int) -> None:
        """Give the processor whose turn it is to a vCPU, for `length` ns, unless it has it."""
        pcpu, processor = self.turn, self.processor
        if pcpu.current is vcpu and vcpu.runstate == RUNNING:
            if processor.vcpu is not vcpu:
                self._load(vcpu)
            return
        now = self.hv.clock.now()
        self._put_down(pcpu, now)
        previous = pcpu.last
        if processor.vcpu is not vcpu:
            self._load(vcpu)
        if previous is not vcpu:
            self.hv.clock.charge(COST_CONTEXT_SWITCH)
            self._tell(pcpu, now, vcpu.domain.id, vcpu.id, length // 1000)
        pcpu.current = pcpu.last = vcpu
        pcpu.since = now
        vcpu.pcpu = pcpu.number
        schedule.switch_in(vcpu, now)

    def _load(self, vcpu: Vcpu) -> None:
        """Load a vCPU's registers and page tables into the emulated processor."""
        processor = self.processor
        previous = processor.vcpu
        if isinstance(previous, Vcpu):
            previous.saved = processor.state.save()
        code_good = data_good = True
        if vcpu.boot_registers:
            vcpu.saved, code_good, data_good = first_state(vcpu)
        processor.state.load(vcpu.saved)
        processor.vcpu = self.entry.vcpu = vcpu
        descriptor_tables.load_ldt(vcpu)
        debugreg.switch_to(vcpu)
        processor.flush_tlb()
        # real Xen finds these when it loads the segments, and when it returns to the guest
        if not data_good:
            failsafe.bounce(vcpu, vcpu.boot_registers["cs"], vcpu.boot_registers["ss"])
        elif not code_good:
            traps.return_fault(vcpu, vcpu.boot_registers["cs"], vcpu.boot_registers["ss"])
        vcpu.boot_registers = {}

    def _rest(self, pcpu: Pcpu, now: int) -> None:
        """Nobody can run on a processor. Where there are others, which may go on, the trace says so."""
        self._put_down(pcpu, now)
        if len(self.all) > 1 and pcpu.last is not None:
            self._tell(pcpu, now, IDLE_DOMAIN, pcpu.number, 0)
            pcpu.last, pcpu.ran = None, 0

    def _put_down(self, pcpu: Pcpu, now: int) -> None:
        """The vCPU that has the processor no longer runs; its registers stay loaded until another needs them."""
        vcpu = pcpu.current
        if vcpu is not None:
            pcpu.ran = (now if vcpu.runstate == RUNNING else vcpu.runstate_since) - pcpu.since
            schedule.switch_out(vcpu, now)
            pcpu.current = None

    def _tell(self, pcpu: Pcpu, now: int, domain: int, vcpu: int, slice_us: int) -> None:
        """A context switch, for the trace."""
        last = pcpu.last
        source = runner(IDLE_DOMAIN, pcpu.number) if last is None else runner(last.domain.id, last.id)
        self.hv.put(
            now, 0, Kind.SCHEDULE, vcpu, domain, slice_us,
            source, runner(domain, vcpu), pcpu.ran, pcpu.number, 0,
        )  # fmt: skip

    def unload(self, domain: Domain) -> None:
        """Take a domain that goes away off its processors."""
        if isinstance(self.processor.vcpu, Vcpu) and self.processor.vcpu.domain is domain:
            self.processor.vcpu = None
        for pcpu in self.all:
            if pcpu.last is not None and pcpu.last.domain is domain:
                pcpu.current = None
                if len(self.all) > 1:
                    self._tell(pcpu, self.hv.clock.now(), IDLE_DOMAIN, pcpu.number, 0)
                pcpu.last, pcpu.ran = None, 0
