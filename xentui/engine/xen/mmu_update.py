"""Updates of page tables by machine address: mmu_update (Xen: arch/x86/mm.c, do_mmu_update).

Each request names an entry and its new value; what may be written is mm.py's. The hypercall stops at the first request
that is refused, and gives way between requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_PAGE_TABLE_UPDATE
from xentui.engine.trace import Kind
from xentui.engine.x86.state import RIP
from xentui.engine.xen import guest_access, refusals, unchecked, vector
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.core import (
    DOMID_IO,
    DOMID_SELF,
    MMU_MACHPHYS_UPDATE,
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
)
from xentui.engine.xen.abi.errno import EBUSY, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from xentui.engine.xen.continuation import ERESTART, create_continuation, preempt_check
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.mm import CONTROL_DOMAIN, MOD_ENTRY, page_owner
from xentui.engine.xen.page import SHARED, SHARED_RW, VALIDATED, WRITABLE
from xentui.engine.xen.page_type import put_old_guest_table, refuse

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

MMU_UPDATE_PREEMPTED = 1 << 31
"""In the count of mmu_update and mmuext_op: this call continues one that was preempted."""

_MASK32 = (1 << 32) - 1


def do_mmu_update(vcpu: Vcpu, ureqs: int, count: int, pdone: int, foreigndom: int) -> int:
    """Apply `count` updates of page-table entries or of the M2P; `*pdone` gets how many were made.

    Returns 0, or the negative error of the first that was refused; those before it stay.
    """
    hv = vcpu.hv
    count &= _MASK32
    if vcpu.old_guest_table != NO_FRAME and put_old_guest_table(vcpu):
        return create_continuation(vcpu, nr.HYPERCALL_mmu_update, ureqs, count, pdone, foreigndom)
    done = 0
    if count & MMU_UPDATE_PREEMPTED:
        count &= ~MMU_UPDATE_PREEMPTED
        if not count and not ureqs:
            return signed32(foreigndom)
        if pdone:
            done = guest_access.read_u32(vcpu, pdone)
    if not guest_access.access_ok(vcpu, ureqs, 16 * count):
        return -EFAULT
    permission = 0
    if foreigndom & _MASK32 != DOMID_SELF:
        permission = _foreign_update(vcpu, foreigndom & _MASK32)
        if permission == -ESRCH:
            return permission
    error = made = 0
    hv.frames.refusal = None
    hv.clock.charge(COST_PAGE_TABLE_UPDATE * 2)
    reads, ram64 = vcpu.space.reads, hv.ram64
    apply = update if vcpu.domain.validated else unchecked.update
    batch = 0 if count >= vector.BATCH and apply is update and not permission else count
    while made < count:
        if made:
            if (vcpu.old_guest_table != NO_FRAME and put_old_guest_table(vcpu)) or preempt_check(vcpu):
                error = -ERESTART
                break
            hv.clock.charge(COST_PAGE_TABLE_UPDATE)
        if made >= batch:
            several = 0
            if count - made >= vector.BATCH and vector.ready(vector.BATCH):
                several = vector.update(vcpu, ureqs, count - made)
            ureqs += 16 * several
            made += several
            batch = made if several else made + vector.BATCH
            if several:
                continue
        base = reads.get(ureqs >> 12)
        if base is None or ureqs & 7 or ureqs & 0xFFF == 0xFF8:
            try:
                request = guest_access.read(vcpu, ureqs, 16)
            except guest_access.GuestFault:
                error = -EFAULT
                break
            pointer, value = int.from_bytes(request[:8], "little"), int.from_bytes(request[8:], "little")
        else:
            index = (base | ureqs & 0xFFF) >> 3
            pointer, value = ram64[index], ram64[index + 1]
        if permission:
            error = refuse(vcpu.domain, refusals.FOREIGN, -permission, pointer >> 12, 0, pointer, 0, value)
        else:
            error = apply(vcpu, pointer, value)
        if error:
            break
        ureqs += 16
        made += 1
    left = (ureqs, count - made, pdone, foreigndom)
    return end_batch(vcpu, nr.HYPERCALL_mmu_update, error, left, done + made)


def end_batch(vcpu: Vcpu, number: int, error: int, left: tuple[int, int, int, int], total: int) -> int:
    """The end of mmu_update and mmuext_op: `*pdone` gets `total`, the requests made by now; the hypercall's result.

    `left`: requests, their number, pdone and foreigndom as they are now, for the continuation if `error` is -ERESTART.
    A table that is still to be undone takes one more continuation, which only returns the result.
    """
    requests, count, pdone, foreigndom = left
    result = error
    if error == -ERESTART:
        result = create_continuation(vcpu, number, requests, count | MMU_UPDATE_PREEMPTED, pdone, foreigndom)
    else:
        if error:
            refusals.record(vcpu, error)
        if vcpu.old_guest_table != NO_FRAME and put_old_guest_table(vcpu):
            result = create_continuation(vcpu, number, 0, MMU_UPDATE_PREEMPTED, 0, error)
    if pdone:
        try:
            guest_access.write_u32(vcpu, pdone, total)
        except guest_access.GuestFault:
            return result  # as on Xen: the count is a courtesy
    return result


def update(vcpu: Vcpu, pointer: int, value: int) -> int:
    """One request: the command is in the low three bits of the pointer."""
    domain = vcpu.domain
    hv = domain.hv
    owner, types, type_count, _, flags = hv.frames.columns
    command = pointer & 7
    mfn = pointer >> 12
    level = old = error = 0
    if command > MMU_PT_UPDATE_NO_TRANSLATE:
        return -ENOSYS
    if mfn >= len(owner) or owner[mfn] != domain.id:
        return refuse(domain, refusals.NOT_OWNER, EINVAL, mfn, 0, pointer, 0, value)
    if command == MMU_MACHPHYS_UPDATE:
        old = hv.get_m2p(mfn)
        hv.set_m2p(mfn, value)
    else:
        old = hv.ram64[pointer >> 3]
        level = types[mfn]
        if not type_count[mfn]:
            # nobody uses it as anything: a write to plain memory, which it thereby becomes
            types[mfn] = WRITABLE
            flags[mfn] |= VALIDATED
            level = WRITABLE
        modify = MOD_ENTRY.get(level)
        if modify is not None and not flags[mfn] & VALIDATED:
            # preempted on its way to a page table or back: its contents must not change meanwhile (page_lock)
            return refuse(domain, refusals.NOT_A_TABLE, EINVAL, mfn, level, pointer, old, value)
        if modify is not None:
            error = modify(vcpu, pointer >> 3, value, command == MMU_PT_UPDATE_PRESERVE_AD)
        elif level == WRITABLE or (level == SHARED and flags[mfn] & SHARED_RW):
            hv.ram64[pointer >> 3] = value
            level = 0
        else:
            error = refuse(domain, refusals.NOT_A_TABLE, EINVAL, mfn, 0, pointer, old, value)
    if not error:
        hv.put(
            hv.clock.now(), vcpu.q[RIP], Kind.PTE_UPDATE, vcpu.id, domain.id, level,
            command, pointer & ~7, old, value, 0,
        )  # fmt: skip
    return error


def _foreign_update(vcpu: Vcpu, foreigndom: int) -> int:
    """The same for mmu_update, whose argument names two domains: owner of the tables + 1, and of the frames."""
    tables, frames = foreigndom >> 16, foreigndom & 0xFFFF
    permission = 0
    if tables and tables - 1 != vcpu.domain.id:
        if tables - 1 != CONTROL_DOMAIN and tables - 1 not in vcpu.hv.domains:
            return -ESRCH
        permission = -EPERM
    if frames == DOMID_IO:
        return permission or -EBUSY  # which anybody may name, and which owns no memory (xsm_mmu_update)
    return page_owner(vcpu, frames) or permission


def signed32(value: int) -> int:
    value &= _MASK32
    return value - (1 << 32) if value >> 31 else value
