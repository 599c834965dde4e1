"""The hypervisor's entry points and its way back to the guest (Xen: x86_64/entry.S).

Every trap of the processor arrives here, at most a hundred thousand a second: settle the clock, do the work, record
it, and on the way out deliver a pending event upcall. Register moves are memoryview indices, on purpose.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xentui.engine.clock import BYTES_PER_NS, COST_EMULATED, COST_ENTRY
from xentui.engine.trace import Instruction, Kind, rings
from xentui.engine.x86 import exceptions as x
from xentui.engine.x86.state import (
    ERROR_CODE,
    HFLAGS,
    MASK32,
    MASK64,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RIP,
    RSI,
)
from xentui.engine.xen import callback, cpuid, hypercall, io_port, syscall_entry, time, traps
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.errno import EFAULT, ENOSYS
from xentui.engine.xen.debugreg import DR7_ACTIVE, io_breakpoint
from xentui.engine.xen.emul_priv_op import CR4_TSD
from xentui.engine.xen.guest_access import GuestFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.x86.cpu import Processor
    from xentui.engine.xen.domain import Vcpu
    from xentui.engine.xen.hypervisor import Hypervisor

HYPERCALL_VECTOR, SYSCALL_VECTOR = 0x82, 0x80
_SYSCALL_LENGTH = 2
_HYPERCALL = Kind.HYPERCALL
_FIVE_ARGUMENTS = nr.HYPERCALL_update_va_mapping_otherdomain
# RAX, RDX, RSI, RDI, R10 and RIP where they lie in the processor's state, in one call
_ARGUMENTS = struct.Struct("<Q8xQ24xQQ16xQ40xQ").unpack_from
_ENTRY_BYTES, _EMULATED_BYTES = COST_ENTRY * BYTES_PER_NS, COST_EMULATED * BYTES_PER_NS


class Entry:
    """Takes the traps of one processor (x86/cpu.py, TrapHandlers). `vcpu` is who runs on it.

    `syscall`, `interrupt` and `exception` are closures made once: a local variable costs half of what an attribute
    does.
    """

    syscall: Callable[[], None]
    interrupt: Callable[[int], None]
    exception: Callable[[int], None]
    """A fault or trap of the guest's code."""
    _count64: Callable[[], int]
    _count32: Callable[[], int]

    def __init__(self, hv: Hypervisor, processor: Processor, direct_traps: bool = True) -> None:
        self.hv = hv
        self.processor = processor
        self.q, self.i = processor.state.q, processor.state.i
        self.vcpu: Vcpu
        self.direct_traps = direct_traps
        self.traps = 0
        """Exceptions, software interrupts and emulated instructions that entered the hypervisor."""
        self.direct = 0
        """Direct traps: user code to the guest's kernel without the hypervisor."""
        self.syscall = self._syscall_entry()
        self.interrupt = self._interrupt_entry()
        self.exception = self._exception_entry()

    @property
    def hypercalls(self) -> int:
        """Hypercalls taken since the start."""
        return self._count64() + self._count32()

    # --- hypercalls and system calls -----------------------------------------------------------------------------

    def _syscall_entry(self) -> Callable[[], None]:
        """SYSCALL: a 64-bit kernel's hypercall, or a system call of its user code for the hypervisor to pass on."""
        q, raw, budget = self.q, self.processor.state.raw, self.processor.budget
        exact = self.processor.counts_code
        now, put, table, size = self.hv.clock.now, self.hv.put, hypercall.TABLE, hypercall.TABLE_SIZE

        count = 0

        def syscall() -> None:
            nonlocal count
            vcpu = self.vcpu
            rax, c, b, a, d, behind = _ARGUMENTS(raw)
            number = rax & MASK32
            rip = behind - _SYSCALL_LENGTH & MASK64
            if vcpu.kernel_mode and vcpu.width == 64:
                count += 1
                if exact:
                    budget[0] -= _ENTRY_BYTES
                try:
                    result = table[number](vcpu, a, b, c, d) if number < size else -ENOSYS
                except GuestFault:
                    result = -EFAULT
                if result == -ENOSYS:
                    hypercall.count_missing(vcpu, number)
                result &= MASK64
                q[RAX] = result
                put(now(), rip, _HYPERCALL, vcpu.id, vcpu.domain.id, number, a, b, c, d, result)
            else:
                self._guest_syscall(vcpu, rip)
            info = vcpu.info
            if (info[0] and not info[1]) or vcpu.nmi_pending:
                self.leave(vcpu)

        self._count64 = lambda: count
        return syscall

    def _interrupt_entry(self) -> Callable[[int], None]:
        """INT n. 32-bit kernels call the hypervisor with 0x82; their user code calls them with 0x80."""
        q, i, budget = self.q, self.i, self.processor.budget
        settle = self.processor.settle
        now, put, table, size = self.hv.clock.now, self.hv.put, hypercall.TABLE, hypercall.TABLE_SIZE

        count = 0

        def interrupt(vector: int) -> None:
            nonlocal count
            vcpu = self.vcpu
            if budget[3]:
                settle()
            if vcpu.width == 64:
                self._software_interrupt(vcpu, vector)
            elif vector == HYPERCALL_VECTOR and i[HFLAGS] & 3 == 1:
                count += 1
                number = q[RAX] & MASK32
                a, b, c, d = q[RBX] & MASK32, q[RCX] & MASK32, q[RDX] & MASK32, q[RSI] & MASK32
                rip = q[RIP] - 2 & MASK32
                budget[0] -= _ENTRY_BYTES
                try:
                    result = table[number](vcpu, a, b, c, d) if number < size else -ENOSYS
                except GuestFault:
                    result = -EFAULT
                if result == -ENOSYS:
                    hypercall.count_missing(vcpu, number)
                q[RAX] = result & MASK32
                if number == _FIVE_ARGUMENTS:
                    d |= (q[RDI] & MASK32) << 32
                put(now(), rip, _HYPERCALL, vcpu.id, vcpu.domain.id, number, a, b, c, d, result & MASK64)
            elif vector == SYSCALL_VECTOR and i[HFLAGS] & 3 == 3 and self._direct_trap(vcpu):
                return
            else:
                self._software_interrupt(vcpu, vector)
            info = vcpu.info
            if (info[0] and not info[1]) or vcpu.nmi_pending:
                self.leave(vcpu)

        self._count32 = lambda: count
        return interrupt

    def _software_interrupt(self, vcpu: Vcpu, vector: int) -> None:
        """INT n that is neither a hypercall nor a direct trap; INT3 and INTO are exceptions."""
        self.traps += 1
        self.hv.clock.charge(COST_ENTRY)
        if vector == x.X86_EXC_BP or vector == x.X86_EXC_OF:
            traps.inject(vcpu, vector)
        else:
            traps.software_interrupt(vcpu, vector)

    def _guest_syscall(self, vcpu: Vcpu, rip: int) -> None:
        """User code called its kernel: through the hypervisor, as SYSCALL leads into ring 0."""
        self.hv.clock.charge(COST_ENTRY)
        self.traps += 1
        syscall_entry.syscall(vcpu, rip)

    def _direct_trap(self, vcpu: Vcpu) -> bool:
        """The paper's fast handler: the *processor* takes INT 0x80 from ring 3 to ring 1 through a trap gate.

        Valid for a handler that does not mask events, in a valid ring-1 code segment (32-bit Xen's
        init_int80_direct_trap). No upcall mask is saved in the frame, no upcall is delivered on the way, and no
        hypervisor time is charged: the hypervisor is not entered. False: the gate is not there.
        """
        handler = vcpu.traps[SYSCALL_VECTOR]
        if not self.direct_traps or handler is None or handler.masks_events or handler.dpl != 3:
            return False
        rip, call = self.q[RIP], self.q[RAX]
        if not callback.through_gate(vcpu, handler):
            return False
        self.direct += 1
        hv = self.hv
        hv.put(
            hv.clock.now(), rip, Kind.DIRECT_TRAP, vcpu.id, vcpu.domain.id, SYSCALL_VECTOR,
            call & MASK32, 0, handler.address, rings(3, 1), 0,
        )  # fmt: skip
        return True

    # --- exceptions ----------------------------------------------------------------------------------------------

    def _exception_entry(self) -> Callable[[int], None]:
        budget, i = self.processor.budget, self.i
        settle, exact, page_fault = self.processor.settle, self.processor.counts_code, traps.page_fault

        def exception(vector: int) -> None:
            vcpu = self.vcpu
            if exact:
                settle()
                budget[0] -= _ENTRY_BYTES
            self.traps += 1
            if vector == 14:  # X86_EXC_PF
                page_fault(vcpu)
            elif vector == x.X86_EXC_GP:
                traps.general_protection(vcpu)
            elif vector == x.X86_EXC_NM:
                traps.device_not_available(vcpu)
            elif vector == x.X86_EXC_DB:
                traps.debug(vcpu)
            elif vector == x.X86_EXC_DF:
                self.hv.crash(vcpu, "double fault")
            else:
                traps.inject(vcpu, vector, i[ERROR_CODE] if x.HAS_ERROR_CODE >> vector & 1 else None)
            info = vcpu.info
            if (info[0] and not info[1]) or vcpu.nmi_pending:
                self.leave(vcpu)

        return exception

    def invalid_opcode(self) -> None:
        """#UD."""
        vcpu, processor = self.vcpu, self.processor
        if processor.counts_code:
            processor.settle()
            processor.budget[0] -= _ENTRY_BYTES
        self.traps += 1
        traps.invalid_opcode(vcpu)
        info = vcpu.info
        if (info[0] and not info[1]) or vcpu.nmi_pending:
            self.leave(vcpu)

    # These do not end their block: the part of it that is still to run is given back while they look at the clock.

    def cpuid(self) -> None:
        """CPUID: the hypervisor's answer, as where the processor can be told to fault on it."""
        left = self._emulate()
        cpuid.do_cpuid(self.vcpu)
        self.processor.budget[0] -= left

    def rdtsc(self) -> bool:
        """RDTSC: virtual time. False: CR4.TSD, the guest's own, is set; the fault comes by the usual way."""
        vcpu = self.vcpu
        if vcpu.cr4 & CR4_TSD:
            return False
        left = self._emulate()
        q, hv = self.q, self.hv
        now = hv.clock.now()
        value = time.tsc_at(now) & MASK64
        q[RAX], q[RDX] = value & MASK32, value >> 32
        hv.put(now, q[RIP], Kind.EMULATED, vcpu.id, vcpu.domain.id, Instruction.RDTSC, value, 0, 0, 0, 0)
        self.processor.budget[0] -= left
        return True

    def port_in(self, port: int, size: int) -> int | None:
        """IN or INS from any ring; None where IOPL and the I/O bitmap do not allow it."""
        vcpu = self.vcpu
        if not io_port.permitted(vcpu, port, size):
            return None
        left = self._emulate()
        value = io_port.port_in(vcpu, port, size)
        self.processor.budget[0] -= left
        if vcpu.debug[7] & DR7_ACTIVE:
            io_breakpoint(vcpu, port, size)
        return value

    def port_out(self, port: int, size: int, value: int) -> bool:
        """OUT or OUTS from any ring; False where it is not allowed."""
        vcpu = self.vcpu
        if not io_port.permitted(vcpu, port, size):
            return False
        left = self._emulate()
        io_port.port_out(vcpu, port, size, value)
        self.processor.budget[0] -= left
        if vcpu.debug[7] & DR7_ACTIVE:
            io_breakpoint(vcpu, port, size)
        return True

    def _emulate(self) -> int:
        """An instruction is carried out in the processor's stead: count it; the bytes of its block still to run."""
        self.traps += 1
        left = self.processor.unexecuted()
        self.processor.budget[0] += left - _EMULATED_BYTES
        return left

    # --- back to the guest ---------------------------------------------------------------------------------------

    def leave(self, vcpu: Vcpu) -> None:
        """The last thing before guest code runs: an upcall, if events are pending and not masked (test_all_events)."""
        info = vcpu.info
        if vcpu.nmi_pending and not vcpu.in_nmi and vcpu.domain.runnable:
            traps.nmi(vcpu)
        if info[0] and not info[1] and vcpu.domain.runnable:
            self.upcall(vcpu)

    def upcall(self, vcpu: Vcpu) -> None:
        """Enter the guest's event callback; upcalls stay masked until it returns."""
        hv, q = self.hv, self.q
        rip = q[RIP]
        source = self.i[HFLAGS] & 3
        selector, address = vcpu.event_callback
        if callback.bounce(vcpu, selector, address, True):
            hv.put(
                hv.clock.now(), rip, Kind.EVENT_UPCALL, vcpu.id, vcpu.domain.id, 0,
                0, 0, address, rings(source, self.i[HFLAGS] & 3), 0,
            )  # fmt: skip
