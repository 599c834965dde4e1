"""Exceptions: what reaches the guest's handlers, what the hypervisor does itself (Xen: traps.c, pv/traps.c).

`Entry.exception` and `Entry.interrupt` (entry.py) call in here with the guest stopped at the trap.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from xentui.engine.trace import Kind, rings
from xentui.engine.x86 import segmentation
from xentui.engine.x86.exceptions import (
    HAS_ERROR_CODE,
    X86_EXC_DB,
    X86_EXC_GP,
    X86_EXC_NM,
    X86_EXC_NMI,
    X86_EXC_PF,
    X86_EXC_SS,
    X86_EXC_UD,
)
from xentui.engine.x86.paging import NX, PRESENT, RW
from xentui.engine.x86.state import (
    CR0,
    CR2,
    CS,
    CS_BASE,
    DR6,
    EF_TF,
    ERROR_CODE,
    EXCEPTION_IS_INT,
    HF_TS,
    HFLAGS,
    MASK32,
    RIP,
    SS,
)
from xentui.engine.xen import (
    callback,
    debugreg,
    descriptor_tables,
    emul_priv_op,
    guest_access,
    ro_page_fault,
    segment_registers,
)
from xentui.engine.xen.callback import bounce64
from xentui.engine.xen.debugreg import DR6_SET, DR6_SINGLE_STEP
from xentui.engine.xen.domain import CR2_64, set_cr2_64

if TYPE_CHECKING:
    from xentui.engine.xen.domain import TrapHandler, Vcpu

PF_PRESENT, PF_WRITE, PF_USER, PF_FETCH = 1, 2, 4, 16
SELECTOR_IN_IDT = 2
_NOT_USER = ~PF_USER
_EXCEPTION, _PAGE_FAULT = Kind.EXCEPTION, Kind.PAGE_FAULT
_PERDOMAIN_START, _PERDOMAIN_END = 0xFFFF_8200_0000_0000, 0xFFFF_8280_0000_0000
_CR0_TS = 8
_RING3 = rings(3, 3)
"""A 64-bit guest's kernel and user code are both in ring 3."""
_read_opcode: Callable[[memoryview | bytes, int], tuple[int, int]] = struct.Struct("<HB").unpack_from
_RDPMC, _SYSENTER, _UD2 = 0x330F, 0x340F, 0x0B0F
_FORCED = _UD2, ord("x")


def inject(vcpu: Vcpu, vector: int, error_code: int | None = None) -> None:
    """Give the guest's kernel an exception with the registers as they are (pv/traps.c, pv_inject_event)."""
    handler, hv, rip = vcpu.traps[vector], vcpu.hv, vcpu.q[RIP]
    if error_code is None and HAS_ERROR_CODE >> vector & 1:
        error_code = 0
    if handler is None:
        hv.crash(vcpu, f"unhandled exception: vector {vector}, error code {error_code or 0:#06x}")
        return
    if vcpu.width == 64:
        crossing = _RING3 if bounce64(vcpu, handler.address, handler.masks_events, error_code) else 0
    else:
        crossing = _enter32(vcpu, handler, error_code)
    if crossing:
        put, now = hv.put, hv.clock.now
        put(
            now(), rip, _EXCEPTION, vcpu.id, vcpu.domain.id, vector,
            error_code or 0, 0, handler.address, crossing, 0,
        )  # fmt: skip


def inject_page_fault(vcpu: Vcpu, address: int, error_code: int) -> None:
    """A page fault of the guest's: CR2 goes to vcpu_info, and the U bit says whether its *kernel* faulted.

    The processor saw ring 3 in either case for 64-bit guests (pv/traps.c, pv_inject_event).
    """
    handler, hv, rip = vcpu.traps[X86_EXC_PF], vcpu.hv, vcpu.q[RIP]
    if vcpu.width == 64:
        in_kernel = vcpu.kernel_mode
        set_cr2_64(vcpu.info, CR2_64, address)
    else:
        in_kernel = vcpu.in_kernel
        vcpu.set_cr2(address)
    error_code = error_code & _NOT_USER if in_kernel else error_code | PF_USER
    if handler is None:
        hv.crash(vcpu, f"unhandled page fault at {address:#x}, error code {error_code:#06x}")
        return
    if vcpu.width == 64:
        crossing = _RING3 if bounce64(vcpu, handler.address, handler.masks_events, error_code) else 0
    else:
        crossing = _enter32(vcpu, handler, error_code)
    if crossing:
        put, now = hv.put, hv.clock.now
        put(
            now(), rip, _PAGE_FAULT, vcpu.id, vcpu.domain.id, error_code,
            address, 0, handler.address, crossing, 0,
        )  # fmt: skip


def _enter32(vcpu: Vcpu, handler: TrapHandler, error_code: int | None) -> int:
    """Bounce into a 32-bit guest's handler; the rings crossed as the trace packs them, or 0 if the domain crashed."""
    source = vcpu.i[HFLAGS] & 3
    entered = callback.bounce(vcpu, handler.selector, handler.address, handler.masks_events, error_code)
    return rings(source, vcpu.i[HFLAGS] & 3) if entered else 0


def page_fault(vcpu: Vcpu) -> None:
    """#PF: something for the hypervisor to do unseen, or the guest's own matter."""
    address, error_code = vcpu.q[CR2], vcpu.i[ERROR_CODE]
    ours = error_code & PF_PRESENT or _PERDOMAIN_START <= address < _PERDOMAIN_END
    if not ours or not _fixed_up(vcpu, address, error_code):
        inject_page_fault(vcpu, address, error_code)


def _fixed_up(vcpu: Vcpu, address: int, error_code: int) -> bool:
    """A part of the LDT not mapped yet, a write to a page table, or the first fetch from a page (fixup_page_fault)."""
    if _PERDOMAIN_START <= address < _PERDOMAIN_END and not error_code & PF_USER:
        return descriptor_tables.handle_ldt_fault(vcpu, address)
    if not error_code & PF_PRESENT:
        return False
    if error_code & PF_WRITE:
        return vcpu.in_kernel and ro_page_fault.emulate(vcpu, address, error_code)
    return bool(error_code & PF_FETCH) and _allow_fetch(vcpu, address)


def _allow_fetch(vcpu: Vcpu, address: int) -> bool:
    """An instruction fetch from a page that the domain builder mapped NX (boot_tables.py): allow it from now on.

    Not if the guest has changed the entry's frame or rights meanwhile.
    """
    lazy = vcpu.domain.lazy_nx
    index = vcpu.space.entry_at(address) if lazy else -1
    if index not in lazy:
        return False
    lazy.discard(index)
    entry = vcpu.space.ram64[index]
    if entry & (NX | PRESENT | RW) != NX | PRESENT | RW:
        return False
    vcpu.space.ram64[index] = entry & ~NX
    vcpu.flush_page(address)
    return True


def general_protection(vcpu: Vcpu) -> None:
    """#GP: an instruction that the hypervisor carries out for the kernel, a call gate, or the guest's own fault."""
    error_code = vcpu.i[ERROR_CODE]
    if error_code and vcpu.width == 32:
        from xentui.engine.xen.emul_gate_op import emulate_gate_op

        emulate_gate_op(vcpu, error_code)
    elif error_code:
        inject(vcpu, X86_EXC_GP, error_code)
    elif not emul_priv_op.emulate_privileged_op(vcpu):
        _own_protection_fault(vcpu)


def _own_protection_fault(vcpu: Vcpu) -> None:
    """#GP(0) that is nothing for the hypervisor, unless the emulated processor has only that word for it."""
    from xentui.engine.xen import stack_fault, syscall_entry

    if _opcode(vcpu)[0] == _SYSENTER:
        syscall_entry.sysenter(vcpu)
    elif stack_fault.is_stack_fault(vcpu):
        inject(vcpu, X86_EXC_SS, 0)
    else:
        inject(vcpu, X86_EXC_GP, 0)


def device_not_available(vcpu: Vcpu) -> None:
    """#NM: fpu_taskswitch took the FPU away; give it back, and tell the guest if it asked (do_device_not_available)."""
    told = vcpu.cr0_ts
    set_task_switched(vcpu, False)
    if told:
        inject(vcpu, X86_EXC_NM)


def set_task_switched(vcpu: Vcpu, on: bool) -> None:
    """CR0.TS, the guest's and the processor's: the next FPU instruction raises #NM, or no longer does."""
    vcpu.cr0_ts = on
    if on:
        vcpu.q[CR0] |= _CR0_TS
        vcpu.i[HFLAGS] |= HF_TS
    else:
        vcpu.q[CR0] &= ~_CR0_TS
        vcpu.i[HFLAGS] &= ~HF_TS & MASK32


def invalid_opcode(vcpu: Vcpu) -> None:
    """#UD: the forced-emulation prefix (UD2 and "xen"), or the guest's own fault.

    The emulated processor has no RDPMC; a real one refuses it to a guest with #GP, as CR4.PCE is clear.
    """
    code = _opcode(vcpu)
    if code[0] == _RDPMC:
        inject(vcpu, X86_EXC_GP, 0)
    elif code != _FORCED or not emul_priv_op.emulate_forced_invalid_op(vcpu):
        inject(vcpu, X86_EXC_UD)


def _opcode(vcpu: Vcpu) -> tuple[int, int]:
    """The first two bytes at RIP as a word, and the third; what cannot be read is 0."""
    at = vcpu.q[RIP] + vcpu.q[CS_BASE]
    base, within = vcpu.space.reads.get(at >> 12), at & 0xFFF
    if base is not None and within <= 0xFFD:
        return _read_opcode(vcpu.ram, base + within)
    for count in (3, 2):
        try:
            return _read_opcode(guest_access.read(vcpu, at, count).ljust(3, b"\0"), 0)
        except guest_access.GuestFault:
            continue
    return 0, 0


def nmi(vcpu: Vcpu) -> None:
    """Deliver a pending NMI; the next one waits for the iret hypercall (x86_64/entry.S, process_nmi)."""
    vcpu.nmi_pending = False
    if vcpu.traps[X86_EXC_NMI] is not None:
        vcpu.in_nmi = True
        inject(vcpu, X86_EXC_NMI)


def return_fault(vcpu: Vcpu, cs: int, ss: int) -> None:
    """A return to the guest with segments that cannot be loaded: an exception as if its target had raised it.

    (x86_64/entry.S: a fault of the hypervisor's own IRET is handled as the guest's.) The frame shows the selectors.
    """
    i = vcpu.i
    if vcpu.width == 64:
        cs, ss = cs | 3, ss | 3  # whatever the selector says, its code is in ring 3
    code = segment_registers.segment(vcpu, cs)
    bad = ss if code is not None and segmentation.code_loadable(code[2], cs & 3, cs & 3) else cs
    i[CS], i[SS] = cs, ss
    i[HFLAGS] = i[HFLAGS] & ~3 | cs & 3
    inject(vcpu, X86_EXC_GP, bad & 0xFFFC)


def debug(vcpu: Vcpu) -> None:
    """#DB: a breakpoint of the guest's at the instruction, or single-stepping; DR6 says which (do_debug)."""
    q = vcpu.q
    stepped, q[DR6] = q[DR6] & DR6_SINGLE_STEP, q[DR6] & ~DR6_SINGLE_STEP
    if not stepped and debugreg.instruction_breakpoint(vcpu):
        return
    vcpu.debug[6] |= DR6_SET | (DR6_SINGLE_STEP if vcpu.read_flags() & EF_TF else 0)
    inject(vcpu, X86_EXC_DB)


def software_interrupt(vcpu: Vcpu, vector: int) -> None:
    """INT n: a trap if the guest allows the vector to that ring, else #GP (traps.c, do_general_protection).

    Arrives with RIP behind the instruction; #GP wants it at the instruction, and names the vector in its error code.
    """
    handler = vcpu.traps[vector]
    if handler is not None and handler.dpl >= (1 if vcpu.in_kernel else 3):
        inject_software(vcpu, vector)
        return
    vcpu.q[RIP] = vcpu.q[RIP] - 2 & (MASK32 if vcpu.width == 32 else 0xFFFF_FFFF_FFFF_FFFF)
    vcpu.i[EXCEPTION_IS_INT] = 0
    inject(vcpu, X86_EXC_GP, vector << 3 | SELECTOR_IN_IDT)


def inject_software(vcpu: Vcpu, vector: int) -> None:
    """Enter the guest's handler for INT n: no error code, whatever the vector."""
    handler = vcpu.traps[vector]
    hv = vcpu.hv
    if handler is None:
        hv.crash(vcpu, f"unhandled software interrupt {vector:#x}")
        return
    rip, source = vcpu.q[RIP], vcpu.i[HFLAGS] & 3
    number = vcpu.q[0]
    if callback.bounce(vcpu, handler.selector, handler.address, handler.masks_events):
        hv.put(
            hv.clock.now(), rip, Kind.SOFTWARE_INTERRUPT, vcpu.id, vcpu.domain.id, vector,
            number, 0, handler.address, rings(source, vcpu.i[HFLAGS] & 3), 0,
        )  # fmt: skip
