"""A domain without the page-table validator (`--no-validator`): for lectures that show what the validator is for.

Its updates are written as they come: nobody asks whose a frame is or what it is in use as, and nothing is counted, so
its frames are worth one reference each. Only what would take the engine itself down is still refused: frames that are
no memory, are free or are the hypervisor's own, and the hypervisor's slots. page_type.py, mm.py and ro_page_fault.py
come here where `Domain.validated` is false.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind
from xentui.engine.x86.paging import ACCESSED, DIRTY, FRAME_MASK, PRESENT, RW, USER
from xentui.engine.x86.state import RIP
from xentui.engine.xen import page_type, promotion, refusals
from xentui.engine.xen.abi.core import MMU_MACHPHYS_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE
from xentui.engine.xen.abi.errno import EINVAL, ENOSYS, EPERM
from xentui.engine.xen.page import DOMID_INVALID, DOMID_XEN, L1, L2, L3, L4, NONE, PAE_XEN_L2, PINNED, SHARED, VALIDATED
from xentui.engine.xen.pte import COMPAT_L2_FIRST, GUEST_KERNEL, XEN_L4_FIRST, XEN_L4_LAST, adjust_l1

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

_TABLES = (L1, L2, L3, L4)


def switch_off(domain: Domain) -> None:
    """Leave a domain that has just been built to itself: forget what its page tables use."""
    frames = domain.hv.frames
    domain.validated = False
    for mfn in frames.owned_by(domain.id):
        frames.ref_count[mfn] = 1
        frames.type_count[mfn] = int(frames.type[mfn] in (*_TABLES, SHARED))
    domain.hv.log(f"d{domain.id}: its page tables are NOT validated: this domain can take over the machine")


def use(domain: Domain, mfn: int, wanted: int) -> int:
    """Let the domain use any guest's frame as anything; 0 or -EINVAL. In place of get_page_and_type."""
    if not _guests(domain, mfn):
        return page_type.refuse(domain, refusals.NOT_OWNER, EINVAL, mfn)
    if wanted in _TABLES:
        _adopt(domain, mfn, wanted)
    return 0


def drop(domain: Domain, mfn: int) -> None:
    """The domain uses a frame no longer: if it was a table, its contents are looked at again the next time.

    With it go the tables below, but for those of the kernel's half, which other top-level tables have, too: as nothing
    is counted, a frame that stays known as a table when it is something else by then would have its words adjusted.
    """
    frames = domain.hv.frames
    level = frames.type[mfn]
    if frames.owner[mfn] != domain.id or level not in _TABLES or frames.flags[mfn] & PINNED:
        return
    frames.type[mfn], frames.type_count[mfn] = NONE, 0
    frames.flags[mfn] &= ~(VALIDATED | PAE_XEN_L2)
    if level == L1:
        return
    ram64 = domain.hv.ram64
    for index in range(
        mfn << 9, (mfn << 9) + (256 if level == L4 else 3 if level == L3 and domain.width == 32 else 512)
    ):
        entry = ram64[index]
        child = (entry & FRAME_MASK) >> 12
        if entry & PRESENT and child < frames.count and frames.type[child] == level - 1:
            drop(domain, child)


def update(vcpu: Vcpu, pointer: int, value: int) -> int:
    """One request of mmu_update: eight bytes of any guest's memory. In place of mmu_update.update."""
    domain, mfn, command = vcpu.domain, pointer >> 12, pointer & 7
    hv = domain.hv
    if command > MMU_PT_UPDATE_NO_TRANSLATE:
        return -ENOSYS
    if not _guests(domain, mfn):
        return page_type.refuse(domain, refusals.NOT_OWNER, EINVAL, mfn, 0, pointer, 0, value)
    if command == MMU_MACHPHYS_UPDATE:
        hv.set_m2p(mfn, value)
        return 0
    index = pointer >> 3
    old, level = hv.ram64[index], hv.frames.type[mfn]
    if level in _TABLES:
        return write_entry(vcpu, index, value, level)
    hv.ram64[index] = value
    hv.put(hv.clock.now(), vcpu.q[RIP], Kind.PTE_UPDATE, vcpu.id, domain.id, 0, command, pointer & ~7, old, value, 0)
    return 0


def mod_l1_entry(vcpu: Vcpu, index: int, new: int, preserve_ad: bool = False) -> int:
    """Write an L1 entry. In place of mm.mod_l1_entry."""
    return write_entry(vcpu, index, new | vcpu.hv.ram64[index] & (ACCESSED | DIRTY) if preserve_ad else new, L1)


def write_entry(vcpu: Vcpu, index: int, new: int, level: int) -> int:
    """Write an entry of a page table, with the bits that the hypervisor adds but without its checks; 0 or an error."""
    domain = vcpu.domain
    hv = domain.hv
    old, target = hv.ram64[index], (new & FRAME_MASK) >> 12
    if _is_xen_slot(hv.frames.flags[index >> 9], level, index & 511):
        return page_type.refuse(domain, refusals.XEN_SLOT, EPERM, index >> 9, level, index << 3, old, new)
    if new & PRESENT:
        if not _guests(domain, target):
            return page_type.refuse(domain, refusals.IO_FRAME, EPERM, target, level, index << 3, old, new)
        new = _adjusted(domain, new, level)
        if level > L1:
            _adopt(domain, target, level - 1, PAE_XEN_L2 if _is_last_of_pae(domain, level, index) else 0)
    hv.ram64[index] = new
    if old & PRESENT and level > L1:
        before = (old & FRAME_MASK) >> 12
        if not (new & PRESENT and before == target) and before < hv.frames.count:
            drop(domain, before)
        domain.flush_tlb()
    hv.put(hv.clock.now(), vcpu.q[RIP], Kind.PTE_UPDATE, vcpu.id, domain.id, level, 0, index << 3, old, new, 0)
    return 0


def is_table(domain: Domain, mfn: int, entry: int) -> bool:
    """Is a frame of the domain's in use as a page table, where its kernel has mapped it by `entry`?

    The domain writes to them all as it likes. As nothing is counted, a frame may have been one and be user code's by
    now, which its kernel lets two processes share until one of them writes: such a write is for the kernel to see.
    """
    kernels = entry & GUEST_KERNEL if domain.width == 64 else not entry & USER
    return bool(kernels) and domain.hv.frames.type[mfn] in _TABLES


def _guests(domain: Domain, mfn: int) -> bool:
    """Is a frame some guest's memory, this one's or another's?"""
    frames = domain.hv.frames
    return 0 <= mfn < frames.count and frames.owner[mfn] not in (DOMID_XEN, DOMID_INVALID)


def _is_xen_slot(flags: int, level: int, slot: int) -> bool:
    return (level == L4 and XEN_L4_FIRST <= slot <= XEN_L4_LAST) or (
        level == L2 and bool(flags & PAE_XEN_L2) and slot >= COMPAT_L2_FIRST
    )


def _is_last_of_pae(domain: Domain, level: int, index: int) -> bool:
    return domain.width == 32 and level == L3 and index & 511 == 3


def _adjusted(domain: Domain, entry: int, level: int) -> int:
    """A present entry with the bits that Xen sets, without which a guest's own kernel could not run."""
    if domain.width == 64:
        return adjust_l1(entry) if level == L1 else entry | USER
    return entry | USER | RW if level == L3 else entry


def _adopt(domain: Domain, mfn: int, level: int, pae_xen_l2: int = 0) -> None:
    """Remember a frame of the domain's as a page table, and adjust its entries and those below, each frame once."""
    hv = domain.hv
    frames = hv.frames
    if not _guests(domain, mfn) or frames.owner[mfn] != domain.id or frames.type[mfn] in (*_TABLES, SHARED):
        return
    frames.type[mfn], frames.type_count[mfn] = level, 1
    frames.flags[mfn] |= VALIDATED | pae_xen_l2
    for index in range(mfn << 9, (mfn << 9) + (4 if level == L3 and domain.width == 32 else 512)):
        entry = hv.ram64[index]
        if entry & PRESENT and not _is_xen_slot(frames.flags[mfn], level, index & 511):
            hv.ram64[index] = _adjusted(domain, entry, level)
            if level > L1:
                below = PAE_XEN_L2 if _is_last_of_pae(domain, level, index) else 0
                _adopt(domain, (entry & FRAME_MASK) >> 12, level - 1, below)
    if level == L4:
        promotion.init_xen_l4_slots(domain, mfn)
    elif pae_xen_l2:
        promotion.init_compat_l2_slots(domain, mfn)
