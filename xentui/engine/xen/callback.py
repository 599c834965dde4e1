"""Bounce frames: how the hypervisor makes a guest's kernel take an exception or an event upcall.

The processor can only trap into the hypervisor, so the hypervisor writes on the guest kernel's stack what the
processor would have written, and continues at the guest's handler (Xen: x86_64/entry.S create_bounce_frame,
x86_64/compat/entry.S compat_create_bounce_frame). And the hypercalls that register callbacks (pv/callback.c).
"""

from __future__ import annotations

import struct

from xentui.engine.x86.exceptions import X86_EXC_NMI
from xentui.engine.x86.state import (
    CS,
    EF_AC,
    EF_IF,
    EF_IOPL,
    EF_NT,
    EF_RF,
    EF_TF,
    EF_VM,
    GS_BASE,
    HFLAGS,
    MASK32,
    MASK64,
    RIP,
    RSP,
    SS,
)
from xentui.engine.xen import descriptor_tables, guest_access, segment_registers
from xentui.engine.xen.abi import callback as cb
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.arch_x86 import (
    VGCF_failsafe_disables_events,
    VGCF_syscall_disables_events,
)
from xentui.engine.xen.abi.core import VMASST_TYPE_architectural_iopl
from xentui.engine.xen.abi.errno import EINVAL, ENOSYS
from xentui.engine.xen.continuation import create_continuation, preempt_check
from xentui.engine.xen.domain import TrapHandler, Vcpu

# RCX, RSP, R11, RIP and the selectors of CS and SS, where they lie in the state
_REGISTERS = struct.Struct("<8xQ16xQ48xQ32xQ72xI20xI").unpack_from
_pack7, _pack8 = struct.Struct("<7Q").pack_into, struct.Struct("<8Q").pack_into
FLAT_KERNEL_CS64, FLAT_KERNEL_SS64 = 0xE033, 0xE02B
FLAT_KERNEL_CS32 = 0xE019
_WITHOUT_IOPL, _WITHOUT_IF = ~EF_IOPL, ~(EF_IF | EF_IOPL)
_CLEARED = EF_AC | EF_VM | EF_RF | EF_NT | EF_TF
_GATE_CLEARED = EF_VM | EF_RF | EF_NT | EF_TF
_COST_HANDLER = 20
"""Of an entry of the trap table, in nanoseconds."""
_ARCH_IOPL = 1 << VMASST_TYPE_architectural_iopl


def bounce(vcpu: Vcpu, selector: int, address: int, masks_events: bool, error_code: int | None = None) -> bool:
    """Enter the guest's kernel at `selector:address` with a bounce frame; False if the domain crashed over it.

    The frame holds the *virtual* interrupt flag (event upcalls not masked), and the upcall mask as it was.
    """
    if vcpu.width == 64:
        return bounce64(vcpu, address, masks_events, error_code)
    return _bounce32(vcpu, selector, address, masks_events, error_code)


def toggle_mode(vcpu: Vcpu) -> None:
    """Between the kernel and the user code of a 64-bit guest: other page tables, other GS base."""
    vcpu.kernel_mode = not vcpu.kernel_mode
    q = vcpu.q
    vcpu.inactive_gs_base, q[GS_BASE] = q[GS_BASE], vcpu.inactive_gs_base
    root = (vcpu.guest_table if vcpu.kernel_mode else vcpu.guest_table_user) << 12
    vcpu.space.switch(root)
    vcpu.processor.load_cr3(root)


def bounce64(vcpu: Vcpu, address: int, masks_events: bool, error_code: int | None) -> bool:
    """The same for a 64-bit guest, whose handlers all run in the flat kernel segments."""
    q, info, read_flags = vcpu.q, vcpu.info, vcpu.read_flags
    rcx, stack, r11, rip, selector, ss = _REGISTERS(vcpu.raw)
    flags = read_flags()
    if vcpu.kernel_mode:
        selector &= 0xFFFC  # ring 0 in the frame tells the guest that it was in its kernel
        top = stack
    else:
        toggle_mode(vcpu)
        top = vcpu.kernel_sp
    mask = info[1]
    pushed = flags & _WITHOUT_IF if mask else flags & _WITHOUT_IOPL | EF_IF
    if vcpu.domain.vm_assist & _ARCH_IOPL:
        pushed |= vcpu.iopl << 12
    top = (top & ~0xF) - (56 if error_code is None else 64)
    base, within = vcpu.space.writes.get(top >> 12), top & 0xFFF
    if base is None or within > 0x1000 - 64 or not address:
        top &= MASK64
        words = [rcx, r11, rip, selector | mask << 32, pushed, stack, ss]
        if not _write_frame64(vcpu, top, words, error_code, address):
            return False
    elif error_code is None:
        _pack7(vcpu.ram, base + within, rcx, r11, rip, selector | mask << 32, pushed, stack, ss)
    else:
        _pack8(vcpu.ram, base + within, rcx, r11, error_code, rip, selector | mask << 32, pushed, stack, ss)
    if masks_events:
        info[1] = 1
    if flags & _CLEARED:
        vcpu.processor.write_flags(flags & ~_CLEARED)
    q[RSP] = top
    q[RIP] = address
    if selector | 3 != FLAT_KERNEL_CS64 or ss != FLAT_KERNEL_SS64:
        segment_registers.load_flat64(vcpu)
    return True


def _write_frame64(vcpu: Vcpu, top: int, words: list[int], error_code: int | None, address: int) -> bool:
    """Write a frame where it is not known yet that it can be; False if the domain crashed over it."""
    if not address:
        vcpu.hv.crash(vcpu, "no handler for a trap")
        return False
    if error_code is not None:
        words.insert(2, error_code)
    try:
        guest_access.write(vcpu, top, struct.pack(f"<{len(words)}Q", *words))
    except guest_access.GuestFault:
        vcpu.hv.crash(vcpu, f"unusable kernel stack at {top:#x}")
        return False
    return True


def _bounce32(vcpu: Vcpu, selector: int, address: int, masks_events: bool, error_code: int | None) -> bool:
    q, i, info = vcpu.q, vcpu.i, vcpu.info
    flags = vcpu.read_flags()
    mask = info[1]
    pushed = flags & ~(EF_IF | EF_IOPL) & MASK32 | (0 if mask else EF_IF)
    if vcpu.domain.vm_assist & _ARCH_IOPL:
        pushed |= vcpu.iopl << 12
    frame = [q[RIP] & MASK32, i[CS] & 0xFFFF | mask << 16, pushed]
    if error_code is not None:
        frame.insert(0, error_code)
    ss, top = i[SS] & 0xFFFF, q[RSP] & MASK32
    if i[HFLAGS] & 3 != 1:
        frame += (top, ss)
        ss, top = vcpu.kernel_ss, vcpu.kernel_sp
    top = top - 4 * len(frame) & MASK32
    base = segment_registers.stack_base(vcpu, ss)
    try:
        guest_access.write(vcpu, base + top & MASK32, struct.pack(f"<{len(frame)}I", *frame))
    except guest_access.GuestFault:
        vcpu.hv.crash(vcpu, f"unusable kernel stack at {top:#x}")
        return False
    if not address or not segment_registers.enter_ring1(vcpu, selector, ss):
        vcpu.hv.crash(vcpu, f"unusable trap handler {selector:#06x}:{address:#x}")
        return False
    if masks_events:
        info[1] = 1
    if flags & _CLEARED:
        vcpu.processor.write_flags(flags & ~_CLEARED)
    q[RSP], q[RIP] = top, address
    return True


def through_gate(vcpu: Vcpu, handler: TrapHandler) -> bool:
    """What the *processor* does for INT n from ring 3 through a trap gate into a ring-1 segment (SDM volume 3, 6.12).

    The frame is hardware's: SS, ESP, EFLAGS with the real IF, CS, EIP. False, with nothing changed, if the gate, its
    stack or its segment cannot be used; the hypervisor then takes the trap.
    """
    q, i = vcpu.q, vcpu.i
    flags = vcpu.read_flags()
    top = vcpu.kernel_sp - 20 & MASK32
    frame = struct.pack("<5I", q[RIP] & MASK32, i[CS] & 0xFFFF, flags & MASK32, q[RSP] & MASK32, i[SS] & 0xFFFF)
    base = segment_registers.stack_base(vcpu, vcpu.kernel_ss)
    try:
        guest_access.write(vcpu, base + top & MASK32, frame)
    except guest_access.GuestFault:
        return False
    if not segment_registers.enter_ring1(vcpu, handler.selector, vcpu.kernel_ss):
        return False
    if flags & _GATE_CLEARED:
        vcpu.processor.write_flags(flags & ~_GATE_CLEARED)
    q[RSP], q[RIP] = top, handler.address
    return True


# --- hypercalls --------------------------------------------------------------------------------------------------


def do_set_trap_table(vcpu: Vcpu, table: int, _b: int, _c: int, _d: int) -> int:
    """Take the guest's handlers; a null table clears them all. It gives way between entries (pv/callback.c)."""
    if not table:
        vcpu.traps[:] = [None] * 256
        return 0
    wide = vcpu.width == 64
    size, layout = (16, struct.Struct("<BBHxxxxQ")) if wide else (8, struct.Struct("<BBHI"))
    while True:
        vector, flags, selector, address = layout.unpack(guest_access.read(vcpu, table, size))
        if not address:
            return 0
        if wide and not _canonical(address):
            return -EINVAL
        selector = FLAT_KERNEL_CS64 if wide else descriptor_tables.fix_code_selector(selector)
        vcpu.traps[vector] = TrapHandler(address, selector, flags & 3, bool(flags & 4))
        vcpu.hv.clock.charge(_COST_HANDLER)
        table += size
        if preempt_check(vcpu):
            return create_continuation(vcpu, nr.HYPERCALL_set_trap_table, table)


def _canonical(address: int) -> bool:
    return address < 1 << 47 or address >= (1 << 64) - (1 << 47)


def do_set_callbacks(vcpu: Vcpu, a: int, b: int, c: int, d: int) -> int:
    """The three callbacks at once, as old kernels set them: (event, failsafe, syscall) or two selector pairs."""
    if vcpu.width == 64:
        _register(vcpu, cb.CALLBACKTYPE_event, 0, a, 0)
        _register(vcpu, cb.CALLBACKTYPE_failsafe, 0, b, 0)
        return _register(vcpu, cb.CALLBACKTYPE_syscall, 0, c, 0)
    _register(vcpu, cb.CALLBACKTYPE_event, a, b, 0)
    return _register(vcpu, cb.CALLBACKTYPE_failsafe, c, d, 0)


def do_callback_op(vcpu: Vcpu, command: int, argument: int, _c: int, _d: int) -> int:
    """Register or unregister one callback (pv/callback.c)."""
    command &= MASK32
    if command not in (cb.CALLBACKOP_register, cb.CALLBACKOP_unregister):
        return -ENOSYS if vcpu.width == 64 else -EINVAL
    if vcpu.width == 64:
        kind, flags, address = struct.unpack("<HHxxxxQ", guest_access.read(vcpu, argument, 16))
        selector = 0
    else:
        kind, flags, selector, address = struct.unpack("<HHII", guest_access.read(vcpu, argument, 12))
    if command == cb.CALLBACKOP_unregister and kind in _REQUIRED[vcpu.width]:
        return -EINVAL
    if command == cb.CALLBACKOP_unregister:
        return _register(vcpu, kind, 0, 0, 0)
    return _register(vcpu, kind, selector & 0xFFFF, address, flags)


_REQUIRED = {
    32: (cb.CALLBACKTYPE_event, cb.CALLBACKTYPE_failsafe, cb.CALLBACKTYPE_syscall32, cb.CALLBACKTYPE_sysenter),
    64: (
        cb.CALLBACKTYPE_event, cb.CALLBACKTYPE_failsafe, cb.CALLBACKTYPE_syscall, cb.CALLBACKTYPE_syscall32,
        cb.CALLBACKTYPE_sysenter,
    ),
}  # fmt: skip
"""What a guest cannot take away again, though it may replace it."""


def _register(vcpu: Vcpu, kind: int, selector: int, address: int, flags: int) -> int:
    if vcpu.width == 64:
        if not _canonical(address):
            return -EINVAL
    else:
        selector = descriptor_tables.fix_code_selector(selector)
    masks = bool(flags & cb.CALLBACKF_mask_events)
    if kind == cb.CALLBACKTYPE_event:
        vcpu.event_callback = (selector, address)
    elif kind == cb.CALLBACKTYPE_failsafe:
        vcpu.failsafe_callback = (selector, address)
        vcpu.failsafe_masks_events = masks
    elif kind == cb.CALLBACKTYPE_syscall:
        if vcpu.width == 32:
            return -ENOSYS
        vcpu.syscall_callback, vcpu.syscall_masks_events = address, masks
    elif kind == cb.CALLBACKTYPE_syscall32:
        vcpu.syscall32_callback, vcpu.syscall32_masks_events = (selector, address), masks
    elif kind == cb.CALLBACKTYPE_sysenter:
        vcpu.sysenter_callback, vcpu.sysenter_masks_events = (selector, address), masks
    elif kind == cb.CALLBACKTYPE_nmi:
        kernel = FLAT_KERNEL_CS64 if vcpu.width == 64 else FLAT_KERNEL_CS32
        vcpu.traps[X86_EXC_NMI] = TrapHandler(address, kernel, 0, True) if address else None
    else:
        return -ENOSYS
    return 0


def set_context_flags(vcpu: Vcpu, flags: int) -> None:
    """The callback flags that a vcpu_guest_context carries."""
    vcpu.failsafe_masks_events = bool(flags & VGCF_failsafe_disables_events)
    vcpu.syscall_masks_events = bool(flags & VGCF_syscall_disables_events)
