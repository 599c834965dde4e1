"""The hypercall table, dispatch and multicall (Xen: arch/x86/hypercall.c, pv/hypercall.c, common/multicall.c)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xentui.engine.trace import Kind
from xentui.engine.x86.paging import PAGE_SIZE
from xentui.engine.x86.state import FS_BASE, GS_BASE, MASK32, MASK64, RDI, RIP
from xentui.engine.xen import (
    callback,
    console_io,
    debugreg,
    descriptor_tables,
    event_channel,
    grant_table,
    guest_access,
    iret,
    kernel,
    memory,
    mm,
    mmu_update,
    mmuext,
    physdev,
    schedule,
    segment_registers,
    time,
    traps,
    vcpu_op,
)
from xentui.engine.xen.abi import arch_x86_64 as arch
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.errno import EFAULT, EINVAL, ENODEV, ENOSYS, EPERM
from xentui.engine.xen.continuation import create_continuation, preempt_check
from xentui.engine.xen.guest_access import GuestFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.domain import Vcpu

    Handler = Callable[[Vcpu, int, int, int, int], int]

TABLE_SIZE = 64
COST_MULTICALL_ENTRY = 20


def do_ni_hypercall(_vcpu: Vcpu, _a: int, _b: int, _c: int, _d: int) -> int:
    """Not implemented: -ENOSYS; the dispatcher counts it for the list at the end of the run."""
    return -ENOSYS


def do_denied(_vcpu: Vcpu, _a: int, _b: int, _c: int, _d: int) -> int:
    """An operation of the control domain's: -EPERM to every other (xsm/dummy.h)."""
    return -EPERM


def do_stack_switch(vcpu: Vcpu, ss: int, sp: int, _c: int, _d: int) -> int:
    """Where the next trap from user code pushes its frame (pv/misc-hypercalls.c)."""
    if vcpu.width == 32:
        ss = descriptor_tables.fix_stack_selector(ss & 0xFFFF)
    vcpu.kernel_ss, vcpu.kernel_sp = ss & 0xFFFF, sp
    return 0


def do_fpu_taskswitch(vcpu: Vcpu, on: int, _b: int, _c: int, _d: int) -> int:
    """Set or clear CR0.TS (pv/misc-hypercalls.c)."""
    traps.set_task_switched(vcpu, bool(on & MASK32))
    return 0


def do_set_segment_base(vcpu: Vcpu, which: int, base: int, _c: int, _d: int) -> int:
    """FS and GS bases of a 64-bit guest, of either mode (pv/misc-hypercalls.c)."""
    if vcpu.width == 32:
        return -ENOSYS
    which &= MASK32
    if which == arch.SEGBASE_GS_USER_SEL:
        return segment_registers.load_user_gs(vcpu, base & 0xFFFF)
    if which not in (arch.SEGBASE_FS, arch.SEGBASE_GS_USER, arch.SEGBASE_GS_KERNEL):
        return -EINVAL
    if not base < 1 << 47 and base < (1 << 64) - (1 << 47):
        return -EINVAL
    if which == arch.SEGBASE_FS:
        vcpu.q[FS_BASE] = base
    elif which == arch.SEGBASE_GS_KERNEL:
        vcpu.q[GS_BASE] = base
    else:
        vcpu.inactive_gs_base = base
    return 0


def do_set_debugreg(vcpu: Vcpu, register: int, value: int, _c: int, _d: int) -> int:
    """Set a debug register, as far as a guest may (x86/traps.c, set_debugreg)."""
    return debugreg.set_debug_register(vcpu, register & MASK32, value)


def do_get_debugreg(vcpu: Vcpu, register: int, _b: int, _c: int, _d: int) -> int:
    """Read a debug register (pv/misc-hypercalls.c)."""
    value = debugreg.get_debug_register(vcpu, register & MASK32)
    return -ENODEV if value is None else value


_ENTRIES = {32: struct.Struct("<8I"), 64: struct.Struct("<8Q")}
"""struct multicall_entry: op, result and six arguments, in words of the guest's size."""
_RESULTS = {32: struct.Struct("<I"), 64: struct.Struct("<Q")}


def do_multicall(vcpu: Vcpu, calls: int, count: int, _c: int, _d: int) -> int:
    """Several hypercalls in one trap; each entry's result is written back into it. It gives way between entries."""
    count &= MASK32
    if not guest_access.access_ok(vcpu, calls, count * _ENTRIES[vcpu.width].size):
        return -EFAULT
    vcpu.in_multicall = True
    try:
        result, left = _multicall(vcpu, calls, count)
    finally:
        vcpu.in_multicall = False
        vcpu.continuation = None
    if not left:
        return result
    calls += (count - left) * _ENTRIES[vcpu.width].size
    return create_continuation(vcpu, nr.HYPERCALL_multicall, calls, left)


def _multicall(vcpu: Vcpu, calls: int, count: int) -> tuple[int, int]:
    """Carry out the entries of a multicall; its result, and how many entries are left to do after a preemption."""
    layout, result_layout = _ENTRIES[vcpu.width], _RESULTS[vcpu.width]
    size, word = layout.size, result_layout.size
    mask = MASK64 if word == 8 else MASK32
    hv, space, ram, q = vcpu.hv, vcpu.space, vcpu.ram, vcpu.q
    now, charge, put = hv.clock.now, hv.clock.charge, hv.put
    vcpu_id, domain = vcpu.id, vcpu.domain
    for done in range(count):
        if done and preempt_check(vcpu):
            return 0, count - done
        entry = calls + done * size
        within = entry & 0xFFF
        base = space.reads.get(entry >> 12)
        if base is not None and within <= 0x1000 - size:
            number, _, a, b, c, d, e, last = layout.unpack_from(ram, base + within)
        else:
            number, _, a, b, c, d, e, last = layout.unpack(guest_access.read(vcpu, entry, size))
        number &= MASK32
        charge(COST_MULTICALL_ENTRY)
        result = call(vcpu, number, a, b, c, d, e) if number != nr.HYPERCALL_multicall else -EINVAL
        put(now(), q[RIP], Kind.MULTICALL_ENTRY, vcpu_id, domain.id, number, a, b, c, d, result & MASK64)
        if number == nr.HYPERCALL_iret:
            return result, 0  # the guest goes on where its frame says; what follows in the list is not done (XSA-213)
        if vcpu.continuation is not None:
            # the entry is what is left of it now, and the multicall goes on with it
            arguments = (*vcpu.continuation, *(a, b, c, d, e, last)[len(vcpu.continuation) :])
            guest_access.write(vcpu, entry, layout.pack(number, result & mask, *arguments))
            return 0, count - done
        base = space.writes.get(entry >> 12)
        if base is not None and within <= 0x1000 - size:
            result_layout.pack_into(ram, base + within + word, result & mask)
        else:
            guest_access.write(vcpu, entry + word, result_layout.pack(result & mask))
        if not domain.runnable:
            break
    return 0, 0


def do_update_va_mapping_otherdomain(vcpu: Vcpu, va: int, b: int, c: int, d: int) -> int:
    """The one hypercall with five arguments in registers (32-bit guests only)."""
    return mm.do_update_va_mapping_otherdomain(vcpu, va, b, c, d, vcpu.q[RDI] & MASK32)


def call(vcpu: Vcpu, number: int, a: int, b: int, c: int, d: int, e: int) -> int:
    """Carry one entry of a multicall out."""
    try:
        if number == nr.HYPERCALL_update_va_mapping_otherdomain:
            return mm.do_update_va_mapping_otherdomain(vcpu, a, b, c, d, e)
        result = TABLE[number](vcpu, a, b, c, d) if number < TABLE_SIZE else -ENOSYS
    except GuestFault:
        return -EFAULT
    if result == -ENOSYS:
        count_missing(vcpu, number)
    return result


def count_missing(vcpu: Vcpu, number: int) -> None:
    """-ENOSYS was the answer: if the whole hypercall is missing, remember it for the list at the run's end."""
    if number >= TABLE_SIZE or TABLE[number] is do_ni_hypercall:
        counts = vcpu.domain.unimplemented
        counts[number] = counts.get(number, 0) + 1


TABLE: list[Handler] = [do_ni_hypercall] * TABLE_SIZE
"""Hypercall number to handler."""

for _number, _handler in (
    (nr.HYPERCALL_set_trap_table, callback.do_set_trap_table),
    (nr.HYPERCALL_mmu_update, mmu_update.do_mmu_update),
    (nr.HYPERCALL_set_gdt, descriptor_tables.do_set_gdt),
    (nr.HYPERCALL_stack_switch, do_stack_switch),
    (nr.HYPERCALL_set_callbacks, callback.do_set_callbacks),
    (nr.HYPERCALL_fpu_taskswitch, do_fpu_taskswitch),
    (nr.HYPERCALL_sched_op_compat, schedule.do_sched_op_compat),
    (nr.HYPERCALL_platform_op, do_denied),
    (nr.HYPERCALL_set_debugreg, do_set_debugreg),
    (nr.HYPERCALL_get_debugreg, do_get_debugreg),
    (nr.HYPERCALL_update_descriptor, descriptor_tables.do_update_descriptor),
    (nr.HYPERCALL_memory_op, memory.do_memory_op),
    (nr.HYPERCALL_multicall, do_multicall),
    (nr.HYPERCALL_update_va_mapping, mm.do_update_va_mapping),
    (nr.HYPERCALL_set_timer_op, time.do_set_timer_op),
    (nr.HYPERCALL_event_channel_op_compat, event_channel.do_event_channel_op_compat),
    (nr.HYPERCALL_xen_version, kernel.do_xen_version),
    (nr.HYPERCALL_console_io, console_io.do_console_io),
    (nr.HYPERCALL_physdev_op_compat, physdev.do_physdev_op_compat),
    (nr.HYPERCALL_grant_table_op, grant_table.do_grant_table_op),
    (nr.HYPERCALL_vm_assist, kernel.do_vm_assist),
    (nr.HYPERCALL_update_va_mapping_otherdomain, do_update_va_mapping_otherdomain),
    (nr.HYPERCALL_iret, iret.do_iret),
    (nr.HYPERCALL_vcpu_op, vcpu_op.do_vcpu_op),
    (nr.HYPERCALL_set_segment_base, do_set_segment_base),
    (nr.HYPERCALL_mmuext_op, mmuext.do_mmuext_op),
    (nr.HYPERCALL_nmi_op, kernel.do_nmi_op),
    (nr.HYPERCALL_sched_op, schedule.do_sched_op),
    (nr.HYPERCALL_callback_op, callback.do_callback_op),
    (nr.HYPERCALL_event_channel_op, event_channel.do_event_channel_op),
    (nr.HYPERCALL_physdev_op, physdev.do_physdev_op),
    (nr.HYPERCALL_sysctl, do_denied),
    (nr.HYPERCALL_domctl, do_denied),
    (nr.HYPERCALL_kexec_op, do_denied),
):
    TABLE[_number] = _handler


def hypercall_page(width: int) -> bytes:
    """The page of stubs through which kernels call: 32 bytes each (Xen: hypercall.c, hypercall_page_initialise).

    64-bit: syscall, which clobbers RCX and R11, so they are saved around it; 32-bit: int $0x82. The iret stub does not
    return, and pushes what the hypercall expects on the stack.
    """
    page = bytearray()
    for number in range(PAGE_SIZE // 32):
        load = b"\xb8" + number.to_bytes(4, "little")
        if width == 64 and number == nr.HYPERCALL_iret:
            stub = b"\x51\x41\x53\x50" + load + b"\x0f\x05"  # push rcx; push r11; push rax
        elif width == 64:
            stub = b"\x51\x41\x53" + load + b"\x0f\x05\x41\x5b\x59\xc3"
        elif number == nr.HYPERCALL_iret:
            stub = b"\x50" + load + b"\xcd\x82"  # push eax
        else:
            stub = load + b"\xcd\x82\xc3"
        page += stub.ljust(32, b"\xcc")
    return bytes(page)
