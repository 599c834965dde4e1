"""A recording as Xen's own trace: the binary file that `xentrace` writes and `xenalyze` reads.

Records are `struct t_rec` of Xen's public trace.h, in windows that each begin with TRC_TRACE_CPU_CHANGE and say how
many bytes follow (tools/xentrace/xentrace.c). What a record holds is laid out as Xen's tracing calls do it
(xen/arch/x86/pv/trace.c, xen/arch/x86/trace.c, xen/common/sched/core.c). Kinds that Xen does not trace are left out.
Each physical processor has windows of its own; its idle vCPU and every vCPU's runstate are told as Xen tells them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from typing import BinaryIO

from xentui.engine.trace import Cause, Kind, Record
from xentui.engine.xen.abi import grant_table, hypercalls
from xentui.engine.xen.abi import trace as xen

CYCLES_HZ = 2_400_000_000
"""Rate of the cycle counter in the file: what xenalyze takes a processor to have unless it is told (--cpu-hz)."""

WINDOW_BYTES = 32_768
"""A window is as long as the records that one look at Xen's buffer found; by default the buffer has eight pages."""

IDLE = 0x7FFF
"""The domain of the idle vCPUs, of which each physical processor has the one with its number."""
RUNNING, RUNNABLE, BLOCKED, OFFLINE = range(4)

_CYCLE_FLAG = 1 << 31
_U32 = (1 << 32) - 1
_HEAD = Struct("<III")
_BARE_HEAD = Struct("<I")
_WINDOW = Struct("<III")
_WORD = Struct("<I")
_LONG = Struct("<Q")
_ERROR_CODES = frozenset({8, 10, 11, 12, 13, 14, 17})  # exceptions that push one (Intel SDM vol. 3, table 6-1)
_IRET = 23

_TRACED_ARGUMENTS: dict[int, tuple[int, ...]] = {
    hypercalls.HYPERCALL_mmu_update: (1,),
    hypercalls.HYPERCALL_multicall: (1,),
    hypercalls.HYPERCALL_grant_table_op: (0, 2),
    hypercalls.HYPERCALL_vcpu_op: (0, 1),
    hypercalls.HYPERCALL_mmuext_op: (1,),
    hypercalls.HYPERCALL_sched_op: (0,),
}
"""Arguments, from 0, that Xen keeps of a hypercall (`__trace_hypercall`, xen/arch/x86/trace.c)."""

_GRANTS = {
    grant_table.GNTTABOP_map_grant_ref: xen.TRC_MEM_PAGE_GRANT_MAP,
    grant_table.GNTTABOP_unmap_grant_ref: xen.TRC_MEM_PAGE_GRANT_UNMAP,
    grant_table.GNTTABOP_transfer: xen.TRC_MEM_PAGE_GRANT_TRANSFER,
}


class _Pcpu:
    """A physical processor, as the trace tells of it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.idle = (IDLE, number)
        self.current = self.idle
        self.leaving: int | None = None
        """The runstate that the current vCPU goes to when it leaves its processor, if it gave that up."""
        self.window = bytearray()


class XentraceWriter:
    """Turns records into Xen's. `widths`: each domain's word size, 64 where it is not said; `pcpus`: how many there
    are."""

    def __init__(self, out: BinaryIO, widths: dict[int, int], pcpus: int = 1) -> None:
        self._out = out
        self._widths = widths
        self._pcpus = [_Pcpu(number) for number in range(pcpus)]
        self._places: dict[tuple[int, int], int] = {}
        """The processor that each vCPU was given last."""
        self._makers: dict[int, Callable[[Record, bool], None]] = self._table()
        self._states = {pcpu.idle: RUNNING for pcpu in self._pcpus}
        # as a trace that begins on idle processors: their vCPUs go on running
        self._cycles = 1
        for pcpu in reversed(self._pcpus):
            self._pcpu = pcpu
            self._put(xen.TRC_SCHED_CONTINUE_RUNNING, _WORD.pack(self._vcpu(pcpu.idle)))

    def _table(self) -> dict[int, Callable[[Record, bool], None]]:
        privileged = self._one_address(xen.TRC_PV_EMULATE_PRIVOP)
        return {
            Kind.HYPERCALL: self._hypercall,
            Kind.MULTICALL_ENTRY: self._hypercall,
            Kind.IRET: lambda record, _: self._put(xen.TRC_PV_HYPERCALL_V2, _WORD.pack(_IRET)),
            Kind.EXCEPTION: lambda record, wide: self._trap(record, wide, record.a),
            Kind.SOFTWARE_INTERRUPT: lambda record, wide: self._trap(record, wide, None),
            Kind.PAGE_FAULT: self._page_fault,
            Kind.EMULATED: privileged,
            Kind.IO_PORT: privileged,
            Kind.CPUID: privileged,
            Kind.MSR: privileged,
            Kind.FORCED_EMULATION: self._one_address(xen.TRC_PV_FORCED_INVALID_OP),
            Kind.FPU_RESTORE: lambda record, _: self._put(xen.TRC_PV_MATH_STATE_RESTORE),
            Kind.GDT_LDT_FAULT: lambda record, wide: self._addresses(
                xen.TRC_PV_GDT_LDT_MAPPING_FAULT, wide, record.rip, record.b
            ),
            Kind.PTE_WRITE: self._ptwr,
        }

    def write(self, records: Iterable[Record]) -> None:
        """Write records, in order."""
        for record in records:
            self._cycles = max(self._cycles, record.time * CYCLES_HZ // 1_000_000_000 + 1)
            maker = self._makers.get(record.kind)
            if record.kind == Kind.SCHEDULE:
                self._pcpu = self._pcpus[record.d % len(self._pcpus)]
            elif maker is not None or record.kind in (Kind.BLOCK, Kind.YIELD):
                self._pcpu = self._pcpus[self._places.get((record.domain, record.vcpu), self._pcpu.number)]
            if maker is not None:
                self._run((record.domain, record.vcpu))
                maker(record, self._widths.get(record.domain, 64) == 64)
            else:
                self._other(record)
            if len(self._pcpu.window) >= WINDOW_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write the windows that have been gathered, one a processor, in their order, as xentrace looks at them."""
        head = xen.TRC_TRACE_CPU_CHANGE | 2 << xen.TRACE_EXTRA_SHIFT
        for pcpu in self._pcpus:
            if pcpu.window:
                self._out.write(_WINDOW.pack(head, pcpu.number, len(pcpu.window)) + pcpu.window)
                pcpu.window.clear()

    def _put(self, event: int, data: bytes = b"", timed: bool = True) -> None:
        """Append a record; `data` is a whole number of 32-bit words, seven at most."""
        head = event | len(data) // 4 << xen.TRACE_EXTRA_SHIFT
        if timed:
            cycles = self._cycles
            self._pcpu.window += _HEAD.pack(head | _CYCLE_FLAG, cycles & _U32, cycles >> 32) + data
        else:
            self._pcpu.window += _BARE_HEAD.pack(head) + data

    def _words(self, event: int, *words: int) -> None:
        self._put(event, b"".join([_WORD.pack(word & _U32) for word in words]))

    def _addresses(self, event: int, wide: bool, *addresses: int) -> None:
        """Addresses of the guest's width, the event's flag saying which (`__trace_trap_two_addr`)."""
        if wide:
            self._put(event | xen.TRC_64_FLAG, b"".join([_LONG.pack(address) for address in addresses]))
        else:
            self._words(event, *addresses)

    def _one_address(self, event: int) -> Callable[[Record, bool], None]:
        return lambda record, wide: self._addresses(event, wide, record.rip)

    # --- what guests do ---------------------------------------------------------------------------------------------

    def _hypercall(self, record: Record, _wide: bool) -> None:
        """A call and the arguments that Xen keeps; one out of a multicall bears no time."""
        operation, values = record.number, []
        for argument in _TRACED_ARGUMENTS.get(record.number, ()):
            operation |= 1 << 20 + 2 * argument
            values.append(_WORD.pack((record.a, record.b, record.c, record.d)[argument] & _U32))
        data = _WORD.pack(operation & _U32) + b"".join(values)
        if record.kind == Kind.HYPERCALL:
            self._put(xen.TRC_PV_HYPERCALL_V2, data)
        else:
            self._put(xen.TRC_PV_HYPERCALL_SUBCALL, data, timed=False)

    def _trap(self, record: Record, wide: bool, error_code: int | None) -> None:
        """`__trace_pv_trap`: the vector, and whether an error code came with it."""
        vector = record.number & 0x7FFF
        coded = error_code is not None and vector in _ERROR_CODES
        what = vector | coded << 15 | (((error_code or 0) & 0xFFFF) << 16 if coded else 0)
        if wide:
            self._put(xen.TRC_PV_TRAP | xen.TRC_64_FLAG, _LONG.pack(record.rip) + _WORD.pack(what))
        else:
            self._words(xen.TRC_PV_TRAP, record.rip, what)

    def _page_fault(self, record: Record, wide: bool) -> None:
        if wide:
            data = _LONG.pack(record.rip) + _LONG.pack(record.a) + _WORD.pack(record.number)
            self._put(xen.TRC_PV_PAGE_FAULT | xen.TRC_64_FLAG, data)
        else:
            self._words(xen.TRC_PV_PAGE_FAULT, record.rip, record.a, record.number)

    def _ptwr(self, record: Record, wide: bool) -> None:
        """A page-table entry written by an instruction that Xen emulates: a 32-bit guest's are PAE's."""
        entry = _LONG.pack(record.d)
        if wide:
            data = entry + _LONG.pack(record.a) + _LONG.pack(record.rip)
            self._put(xen.TRC_PV_PTWR_EMULATION | xen.TRC_64_FLAG, data)
        else:
            data = entry + _WORD.pack(record.a & _U32) + _WORD.pack(record.rip & _U32)
            self._put(xen.TRC_PV_PTWR_EMULATION_PAE, data)

    # --- scheduling -------------------------------------------------------------------------------------------------

    @staticmethod
    def _vcpu(who: tuple[int, int]) -> int:
        return who[0] << 16 | who[1]

    def _change(self, who: tuple[int, int], new: int) -> None:
        """`trace_runstate_change`: the old runstate and the new one are in the event's number."""
        old = self._states.get(who, RUNNABLE)
        self._states[who] = new
        self._put(xen.TRC_SCHED_RUNSTATE_CHANGE | old << 8 | new << 4, _WORD.pack(self._vcpu(who)))

    def _run(self, who: tuple[int, int]) -> None:
        """Give the processor to a vCPU, if it has not got it."""
        pcpu = self._pcpu
        before = pcpu.current
        if before == who:
            return
        self._words(xen.TRC_SCHED_SWITCH, *before, *who)
        self._change(before, RUNNABLE if pcpu.leaving is None else pcpu.leaving)
        pcpu.leaving = None
        if self._states.get(who, RUNNABLE) != RUNNABLE:
            self._change(who, RUNNABLE)
        self._change(who, RUNNING)
        pcpu.current = who
        self._places[who] = pcpu.number

    def _settle(self) -> None:
        """A vCPU that gave up its processor, and after which none was scheduled, left it idle."""
        if self._pcpu.leaving is not None:
            self._run(self._pcpu.idle)

    def _other(self, record: Record) -> None:
        """What is no vCPU's own doing."""
        who = (record.domain, record.vcpu)
        if record.kind == Kind.SCHEDULE:
            self._run((record.b >> 16, record.b & 0xFFFF))
        elif record.kind == Kind.BLOCK:
            paused = record.number in (Cause.PAUSE, Cause.DOWN)
            if not paused:
                self._run(who)  # who blocks has the processor, whether it was told or not
            self._words(xen.TRC_SCHED_SLEEP if paused else xen.TRC_SCHED_BLOCK, *who)
            self._give_up(who, OFFLINE if paused else BLOCKED)
        elif record.kind == Kind.WAKE:
            self._settle()
            if self._states.get(who, RUNNABLE) in (BLOCKED, OFFLINE):
                self._change(who, RUNNABLE)
            self._words(xen.TRC_SCHED_WAKE, *who)
        elif record.kind == Kind.YIELD:
            self._words(xen.TRC_SCHED_YIELD, *who)
        elif record.kind == Kind.IDLE:
            self._run(self._pcpu.idle)
        elif record.kind == Kind.TIMER:
            self._settle()
            self._put(xen.TRC_SCHED_DOM_TIMER_FN)
        elif record.kind == Kind.GRANT and record.number in _GRANTS:
            self._words(_GRANTS[record.number], record.c)
        else:
            self._life(record, who)

    def _give_up(self, who: tuple[int, int], state: int) -> None:
        running = [pcpu for pcpu in self._pcpus if pcpu.current == who]
        for pcpu in running:
            pcpu.leaving = state
        if not running and self._states.get(who) == RUNNABLE:
            self._change(who, state)

    def _life(self, record: Record, who: tuple[int, int]) -> None:
        """Domains come and go."""
        if record.kind == Kind.DOMAIN_CREATE:
            self._words(xen.TRC_SCHED_DOM_ADD, record.domain)
            self._words(xen.TRC_DOM0_DOM_ADD, record.domain)
        elif record.kind in (Kind.DOMAIN_SHUTDOWN, Kind.DOMAIN_CRASH):
            if record.kind == Kind.DOMAIN_SHUTDOWN:
                self._words(xen.TRC_SCHED_SHUTDOWN, *who, record.number)
            for vcpu in [vcpu for vcpu in self._states if vcpu[0] == record.domain]:
                self._give_up(vcpu, OFFLINE)
        elif record.kind == Kind.DOMAIN_DESTROY:
            for pcpu in self._pcpus:
                if pcpu.current[0] == record.domain:
                    self._pcpu, pcpu.leaving = pcpu, OFFLINE
                    self._run(pcpu.idle)
            self._words(xen.TRC_SCHED_DOM_REM, record.domain)
            self._words(xen.TRC_DOM0_DOM_REM, record.domain)
