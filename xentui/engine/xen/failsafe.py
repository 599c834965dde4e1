"""The failsafe callback: what a guest gets when the segments of a vCPU that starts cannot be loaded.

The registers are those that could not be entered; the frame is a bounce frame with DS, ES, FS and GS in it besides
(Xen: x86_64/entry.S failsafe_callback and create_bounce_frame, x86_64/compat/entry.S).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xentui.engine.x86.state import (
    DS,
    EF_AC,
    EF_IF,
    EF_IOPL,
    EF_NT,
    EF_RF,
    EF_TF,
    EF_VM,
    ES,
    FS,
    GS,
    MASK32,
    MASK64,
    R11,
    RCX,
    RIP,
    RSP,
)
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi.core import VMASST_TYPE_architectural_iopl

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

_CLEARED = EF_AC | EF_VM | EF_RF | EF_NT | EF_TF
_ARCH_IOPL = 1 << VMASST_TYPE_architectural_iopl


def bounce(vcpu: Vcpu, cs: int, ss: int) -> None:
    """Enter the guest's failsafe callback; `cs` and `ss` are the selectors that could not be loaded.

    A guest without one, or without a usable kernel stack, crashes.
    """
    selector, address = vcpu.failsafe_callback
    if not address:
        vcpu.hv.crash(vcpu, f"no failsafe callback for a return to {cs:#06x}:{vcpu.q[RIP]:#x} with stack {ss:#06x}")
        return
    flags = vcpu.read_flags()
    entered = _enter64(vcpu, cs, ss, flags) if vcpu.width == 64 else _enter32(vcpu, cs, ss, flags, selector)
    if not entered:
        vcpu.hv.crash(vcpu, f"unusable kernel stack or failsafe callback {selector:#06x}:{address:#x}")
        return
    if vcpu.failsafe_masks_events:
        vcpu.info[1] = 1
    vcpu.processor.write_flags(flags & ~_CLEARED)
    vcpu.q[RIP] = address


def _pushed_flags(vcpu: Vcpu, flags: int) -> int:
    """RFLAGS of a frame: the virtual interrupt flag, and the virtual IOPL if the guest wants to see that."""
    pushed = flags & ~(EF_IF | EF_IOPL) | (0 if vcpu.info[1] else EF_IF)
    return pushed | vcpu.iopl << 12 if vcpu.domain.vm_assist & _ARCH_IOPL else pushed


def _enter64(vcpu: Vcpu, cs: int, ss: int, flags: int) -> bool:
    """Push the 64-bit frame on the kernel's stack and take the flat segments; False if it has no usable stack."""
    from xentui.engine.xen import callback, segment_registers

    q, i = vcpu.q, vcpu.i
    stack = q[RSP]
    if vcpu.kernel_mode:
        cs &= 0xFFFC
        top = stack
    else:
        callback.toggle_mode(vcpu)
        top = vcpu.kernel_sp
    frame = (
        q[RCX], q[R11], i[DS], i[ES], i[FS], i[GS],
        q[RIP], cs | vcpu.info[1] << 32, _pushed_flags(vcpu, flags), stack, ss,
    )  # fmt: skip
    top = (top & ~0xF) - 8 * len(frame) & MASK64
    try:
        guest_access.write(vcpu, top, struct.pack(f"<{len(frame)}Q", *frame))
    except guest_access.GuestFault:
        return False
    q[RSP] = top
    segment_registers.load_flat64(vcpu)
    return True


def _enter32(vcpu: Vcpu, cs: int, ss: int, flags: int, selector: int) -> bool:
    """The same for a 32-bit guest, whose callback has a code segment of its own."""
    from xentui.engine.xen import segment_registers

    q, i = vcpu.q, vcpu.i
    top = q[RSP] & MASK32
    frame = [
        *(i[register] & 0xFFFF for register in (DS, ES, FS, GS)),
        q[RIP] & MASK32, cs & 0xFFFF | vcpu.info[1] << 16, _pushed_flags(vcpu, flags) & MASK32,
    ]  # fmt: skip
    stack = ss
    if cs & 2:
        frame += (top, ss & 0xFFFF)
        stack, top = vcpu.kernel_ss, vcpu.kernel_sp
    top = top - 4 * len(frame) & MASK32
    base = segment_registers.stack_base(vcpu, stack)
    try:
        guest_access.write(vcpu, base + top & MASK32, struct.pack(f"<{len(frame)}I", *frame))
    except guest_access.GuestFault:
        return False
    q[RSP] = top
    return segment_registers.enter_ring1(vcpu, selector, stack)
