"""Operations on whole page tables, base pointers and the TLB: mmuext_op (Xen: arch/x86/mm.c, do_mmuext_op)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_BYTES_PER_NS, COST_PAGE_TABLE_UPDATE, COST_TLB_FLUSH
from xentui.engine.trace import Kind
from xentui.engine.x86.state import RIP
from xentui.engine.xen import descriptor_tables, guest_access, refusals
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.arch_x86_64 import HYPERVISOR_VIRT_END
from xentui.engine.xen.abi.errno import EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.continuation import ERESTART, create_continuation, preempt_check
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.mm import new_guest_cr3, new_user_cr3, page_owner, vcpus_of_bitmap
from xentui.engine.xen.mmu_update import MMU_UPDATE_PREEMPTED, end_batch, signed32
from xentui.engine.xen.page import L1, L4, PINNED, WRITABLE
from xentui.engine.xen.page_type import (
    get_page,
    get_page_and_type,
    no_reference,
    put_old_guest_table,
    put_page,
    put_page_and_type,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.domain import Vcpu

_PAGE_COST = 4096 // COST_BYTES_PER_NS


def do_mmuext_op(vcpu: Vcpu, uops: int, count: int, pdone: int, foreigndom: int) -> int:
    """Carry out `count` operations; `*pdone` gets how many were. 0, or the negative error of the first that failed."""
    hv = vcpu.hv
    count &= 0xFFFF_FFFF
    if vcpu.old_guest_table != NO_FRAME and put_old_guest_table(vcpu):
        return create_continuation(vcpu, nr.HYPERCALL_mmuext_op, uops, count, pdone, foreigndom)
    done = 0
    if count & MMU_UPDATE_PREEMPTED:
        count &= ~MMU_UPDATE_PREEMPTED
        if not count and not uops:
            return signed32(foreigndom)
        if pdone:
            done = guest_access.read_u32(vcpu, pdone)
    layout = LAYOUT64 if vcpu.width == 64 else LAYOUT32
    size, unpack_from = layout.MMUEXT_OP_SIZE, layout.STRUCT_mmuext_op.unpack_from
    if not guest_access.access_ok(vcpu, uops, size * count):
        return -EFAULT
    # a page of another domain's is refused before anything is looked at (xsm_mmuext_op)
    permission = page_owner(vcpu, foreigndom & 0xFFFF)
    if permission:
        return permission
    error = made = 0
    hv.frames.refusal = None
    hv.clock.charge(COST_PAGE_TABLE_UPDATE * 2)
    while made < count:
        if made:
            if (vcpu.old_guest_table != NO_FRAME and put_old_guest_table(vcpu)) or preempt_check(vcpu):
                error = -ERESTART
                break
            hv.clock.charge(COST_PAGE_TABLE_UPDATE)
        base, within = vcpu.space.reads.get(uops >> 12), uops & 0xFFF
        if base is not None and within <= 0x1000 - size:
            command, first, second = unpack_from(vcpu.ram, base + within)
        else:
            try:
                command, first, second = unpack_from(guest_access.read(vcpu, uops, size))
            except guest_access.GuestFault:
                error = -EFAULT
                break
        operation = _OPERATIONS.get(command)
        error = operation(vcpu, command, first, second) if operation is not None else -ENOSYS
        if error:
            break
        hv.put(hv.clock.now(), vcpu.q[RIP], Kind.MMUEXT, vcpu.id, vcpu.domain.id, command, first, second, 0, 0, 0)
        uops += size
        made += 1
    left = (uops, count - made, pdone, foreigndom)
    return end_batch(vcpu, nr.HYPERCALL_mmuext_op, error, left, done + made)


# --- pins ----------------------------------------------------------------------------------------------------------


def _pin(vcpu: Vcpu, command: int, mfn: int, _second: int) -> int:
    """Keep a frame a page table of its level, used or not, so that it need not be validated again."""
    level = command - core.MMUEXT_PIN_L1_TABLE + L1
    if level == L4 and vcpu.width == 32:
        return 0  # Xen ignores what makes no sense here
    domain, frames = vcpu.domain, vcpu.hv.frames
    error = get_page_and_type(domain, mfn, level, vcpu)
    if error:
        return error
    if frames.flags[mfn] & PINNED:
        put_page_and_type(domain, mfn)
        return refuse(domain, refusals.PIN_TWICE, EINVAL, mfn, level)
    frames.flags[mfn] |= PINNED
    return 0


def _unpin(vcpu: Vcpu, _command: int, mfn: int, _second: int) -> int:
    domain, frames = vcpu.domain, vcpu.hv.frames
    if mfn >= frames.count or frames.owner[mfn] != domain.id:
        return refuse(domain, refusals.NOT_OWNER, EINVAL, mfn)
    if not frames.flags[mfn] & PINNED:
        return refuse(domain, refusals.NOT_PINNED, EINVAL, mfn)
    frames.flags[mfn] &= ~PINNED
    put_page_and_type(domain, mfn, vcpu)
    return 0


# --- base pointers and descriptors ---------------------------------------------------------------------------------


def _new_baseptr(vcpu: Vcpu, _command: int, mfn: int, _second: int) -> int:
    return new_guest_cr3(vcpu, mfn, by=vcpu)


def _new_user_baseptr(vcpu: Vcpu, _command: int, mfn: int, _second: int) -> int:
    return new_user_cr3(vcpu, mfn, by=vcpu)


def _set_ldt(vcpu: Vcpu, _command: int, base: int, entries: int) -> int:
    return descriptor_tables.set_ldt(vcpu, base, entries & 0xFFFF_FFFF)


# --- the TLB -------------------------------------------------------------------------------------------------------


def _tlb_flush_local(vcpu: Vcpu, _command: int, _first: int, _second: int) -> int:
    vcpu.hv.clock.charge(COST_TLB_FLUSH)
    vcpu.flush_tlb()
    return 0


def _invlpg_local(vcpu: Vcpu, _command: int, address: int, _second: int) -> int:
    if _address_ok(address):
        vcpu.flush_page(address)
    return 0


def _tlb_flush_all(vcpu: Vcpu, _command: int, _first: int, _second: int) -> int:
    vcpu.hv.clock.charge(COST_TLB_FLUSH)
    vcpu.domain.flush_tlb()
    return 0


def _invlpg_all(vcpu: Vcpu, _command: int, address: int, _second: int) -> int:
    if _address_ok(address):
        for target in vcpu.domain.vcpus:
            target.flush_page(address)
    return 0


def _flush_multi(vcpu: Vcpu, command: int, address: int, bitmap: int) -> int:
    """Flush on the vCPUs of a bitmap; -EINVAL, not -EFAULT, where that cannot be read."""
    try:
        targets = vcpus_of_bitmap(vcpu, bitmap)
    except guest_access.GuestFault:
        return -EINVAL
    for target in targets:
        if command == core.MMUEXT_TLB_FLUSH_MULTI:
            target.flush_tlb()
        elif _address_ok(address):
            target.flush_page(address)
    return 0


def _address_ok(address: int) -> bool:
    """Is it an address outside the hypervisor's slot, and canonical?"""
    return address < 1 << 47 or address >= HYPERVISOR_VIRT_END


def _flush_cache(_vcpu: Vcpu, command: int, _first: int, _second: int) -> int:
    """Only for domains that have devices (Xen: cache_flush_permitted)."""
    return -EACCES if command == core.MMUEXT_FLUSH_CACHE else -EINVAL


# --- contents ------------------------------------------------------------------------------------------------------


def _clear_page(vcpu: Vcpu, _command: int, mfn: int, _second: int) -> int:
    error = get_page_and_type(vcpu.domain, mfn, WRITABLE)
    if error:
        return error
    vcpu.hv.clock.charge(_PAGE_COST)
    vcpu.ram[mfn << 12 : (mfn + 1) << 12] = bytes(4096)
    vcpu.processor.flush_code()
    put_page_and_type(vcpu.domain, mfn)
    return 0


def _copy_page(vcpu: Vcpu, _command: int, mfn: int, source: int) -> int:
    if not get_page(vcpu.domain, source):
        return refuse(vcpu.domain, no_reference(vcpu.domain, source), EINVAL, source)
    error = get_page_and_type(vcpu.domain, mfn, WRITABLE)
    if not error:
        vcpu.hv.clock.charge(_PAGE_COST)
        vcpu.ram[mfn << 12 : (mfn + 1) << 12] = vcpu.ram[source << 12 : (source + 1) << 12]
        vcpu.processor.flush_code()
        put_page_and_type(vcpu.domain, mfn)
    put_page(vcpu.hv, source)
    return error


def _superpage(_vcpu: Vcpu, _command: int, _first: int, _second: int) -> int:
    """Xen gave PV superpages up."""
    return -EOPNOTSUPP


_OPERATIONS: dict[int, Callable[[Vcpu, int, int, int], int]] = {
    core.MMUEXT_PIN_L1_TABLE: _pin,
    core.MMUEXT_PIN_L2_TABLE: _pin,
    core.MMUEXT_PIN_L3_TABLE: _pin,
    core.MMUEXT_PIN_L4_TABLE: _pin,
    core.MMUEXT_UNPIN_TABLE: _unpin,
    core.MMUEXT_NEW_BASEPTR: _new_baseptr,
    core.MMUEXT_NEW_USER_BASEPTR: _new_user_baseptr,
    core.MMUEXT_TLB_FLUSH_LOCAL: _tlb_flush_local,
    core.MMUEXT_INVLPG_LOCAL: _invlpg_local,
    core.MMUEXT_TLB_FLUSH_MULTI: _flush_multi,
    core.MMUEXT_INVLPG_MULTI: _flush_multi,
    core.MMUEXT_TLB_FLUSH_ALL: _tlb_flush_all,
    core.MMUEXT_INVLPG_ALL: _invlpg_all,
    core.MMUEXT_FLUSH_CACHE: _flush_cache,
    core.MMUEXT_FLUSH_CACHE_GLOBAL: _flush_cache,
    core.MMUEXT_SET_LDT: _set_ldt,
    core.MMUEXT_CLEAR_PAGE: _clear_page,
    core.MMUEXT_COPY_PAGE: _copy_page,
    core.MMUEXT_MARK_SUPER: _superpage,
    core.MMUEXT_UNMARK_SUPER: _superpage,
}
