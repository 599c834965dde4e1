"""The iret hypercall: a guest's kernel returns from a trap or an upcall (Xen: pv/iret.c).

Only the hypervisor can return to another ring, switch a 64-bit guest to its user page tables, and unmask event
upcalls in the same step.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xentui.engine.x86.state import (
    CC_OP_EFLAGS,
    CS,
    EF_CONDITIONS,
    EF_DF,
    EF_FIXED,
    EF_IF,
    EF_IOPL,
    EF_RF,
    EF_TF,
    EF_VM,
    MASK32,
    R11,
    RCX,
    RIP,
    RSP,
    SS,
)
from xentui.engine.xen import callback, guest_access, segment_registers
from xentui.engine.xen.abi.core import VMASST_TYPE_architectural_iopl

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

_IN_SYSCALL = 1 << 8  # VGCF_in_syscall of arch-x86/xen-x86_64.h
_ARCH_IOPL = 1 << VMASST_TYPE_architectural_iopl
_GUESTS_FLAGS = 0x3F_7FD7 & ~(EF_CONDITIONS | EF_DF | EF_IOPL | EF_VM)
"""The bits of RFLAGS, besides the condition codes and DF, that a guest's frame may set."""
_RIP_BYTE = 8 * RIP
# RIP, EFLAGS, CC_SRC, CC_OP and DF; CC_DST and CC_SRC2 in between have no meaning with CC_OP_EFLAGS
_STORE = struct.Struct("<QQ8xQ8xII").pack_into
_RF_TF, _ALWAYS = EF_RF | EF_TF, EF_IF | EF_FIXED
_FRAME64 = struct.Struct("<9Q")
_read_frame64 = _FRAME64.unpack_from
_FRAME32 = struct.Struct("<4I")
FLAT_USER_CS64, FLAT_USER_SS64 = 0xE033, 0xE02B


def do_iret(vcpu: Vcpu, _a: int, _b: int, _c: int, _d: int) -> int:
    """Return to where the frame on the guest kernel's stack says; the result is the saved RAX."""
    if vcpu.width == 32:
        return _iret32(vcpu)
    q = vcpu.q
    top = q[RSP]
    base = vcpu.space.reads.get(top >> 12)
    if base is not None and top & 0xFFF <= 0x1000 - 72:
        frame = _read_frame64(vcpu.ram, base + (top & 0xFFF))
    else:
        try:
            frame = _FRAME64.unpack(guest_access.read(vcpu, top, 72))
        except guest_access.GuestFault:
            vcpu.hv.crash(vcpu, f"fault while reading the iret frame from the guest's stack at {top:#x}")
            return 0
    rax: int
    rax, r11, rcx, how, rip, cs, flags, rsp, ss = frame
    if cs & 3 == 3 and vcpu.kernel_mode:
        if vcpu.guest_table_user < 0:
            vcpu.hv.crash(vcpu, "iret to user mode without user page tables")
            return 0
        callback.toggle_mode(vcpu)
    if vcpu.domain.vm_assist & _ARCH_IOPL:
        vcpu.iopl = flags >> 12 & 3
    if how & _IN_SYSCALL:
        # leaves by sysret, which takes RIP and RFLAGS from these registers and loads the flat segments
        rcx, r11 = rip, flags & ~(EF_IOPL | EF_VM) | EF_IF
        cs, ss = FLAT_USER_CS64, FLAT_USER_SS64
    q[RCX], q[RSP], q[R11] = rcx, rsp, r11
    _STORE(
        vcpu.raw, _RIP_BYTE, rip, flags & _GUESTS_FLAGS | _ALWAYS,
        flags & EF_CONDITIONS, CC_OP_EFLAGS, MASK32 if flags & EF_DF else 1,
    )  # fmt: skip
    if flags & _RF_TF:
        if flags & EF_RF:
            vcpu.processor.debug_registers.resume_past()
        if flags & EF_TF and not how & _IN_SYSCALL:
            vcpu.processor.steps_from = rip
    i = vcpu.i
    vcpu.info[1] = 0 if flags & EF_IF else 1
    vcpu.in_nmi = False
    cs, ss = cs & 0xFFFF | 3, ss & 0xFFFF | 3
    if cs != FLAT_USER_CS64 or ss != FLAT_USER_SS64 or i[CS] != cs or i[SS] != ss:
        segment_registers.return_to_ring3(vcpu, cs, ss)
    return rax


def _iret32(vcpu: Vcpu) -> int:
    q = vcpu.q
    top = q[RSP] & MASK32
    eax: int
    try:
        eax, eip, cs, flags = _FRAME32.unpack(guest_access.read(vcpu, top, 16))
        cs &= 0xFFFF
        if cs & 3 == 1:
            rsp, ss = top + 16 & MASK32, None
        else:
            rsp, ss = struct.unpack("<II", guest_access.read(vcpu, top + 16, 8))
    except guest_access.GuestFault:
        vcpu.hv.crash(vcpu, f"fault while reading the iret frame from the guest's stack at {top:#x}")
        return 0
    if flags & EF_VM or not cs & 3:
        vcpu.hv.crash(vcpu, "iret to virtual-8086 mode" if flags & EF_VM else "iret to ring 0")
        return 0
    if vcpu.domain.vm_assist & _ARCH_IOPL:
        vcpu.iopl = flags >> 12 & 3
    q[RIP], q[RSP] = eip, rsp
    vcpu.processor.write_flags(flags & 0x3F7FD7 & ~EF_IOPL | EF_IF)
    if flags & EF_RF:
        vcpu.processor.debug_registers.resume_past()
    vcpu.info[1] = 0 if flags & EF_IF else 1
    vcpu.in_nmi = False
    if ss is None:
        segment_registers.return_to_ring1(vcpu, cs)
    else:
        segment_registers.return_to_ring3(vcpu, cs, ss & 0xFFFF)
    return eax
