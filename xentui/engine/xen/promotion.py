"""Promotion: a frame becomes a page table, all of it checked and everything below in use. Demotion: the way back.

Only page_type.py calls this, when the first use of a frame's type begins and when the last one ends. Functions return
0 or a negative error number. An L1 is done at once, and nothing of it is left in use on an error. The tables above are
done entry by entry, upwards and downwards again, and can stop at each with -ERESTART if a `vcpu` is given, to go on
from there: `nr_validated` and PARTIAL_SET (page.py) keep the place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_FRAME_VALIDATED
from xentui.engine.x86.paging import ACCESSED, DIRTY, FRAME_MASK, GLOBAL, PRESENT, RW, USER
from xentui.engine.xen import page_type, refusals, vector
from xentui.engine.xen.abi.core import VMASST_TYPE_m2p_strict
from xentui.engine.xen.abi.errno import EINVAL
from xentui.engine.xen.continuation import ERESTART, preempt_check
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.page import L1, L2, L3, L4, MOST_REFERENCES, PAE_XEN_L2, PARTIAL_SET, VALIDATED, WRITABLE
from xentui.engine.xen.pte import (
    COMPAT_L2_FIRST,
    GUEST_KERNEL,
    L1_DISALLOW,
    M2P_SLOT,
    PERDOMAIN_SLOT,
    XEN_L4_FIRST,
    XEN_L4_LAST,
)

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

_EMPTY = bytes(4096)


# --- promotion -----------------------------------------------------------------------------------------------------


def promote_l1(domain: Domain, mfn: int) -> int:
    """Check every entry of a frame that becomes an L1, and take what they refer to."""
    hv = domain.hv
    base = mfn << 9
    if hv.ram[mfn << 12 : (mfn + 1) << 12].tobytes() == _EMPTY:
        return 0
    ram64 = hv.ram64
    owner, types, type_count, ref_count, flags = hv.frames.columns
    limit, domid, mark = len(owner), domain.id, domain.width == 64
    hv.clock.charge(COST_FRAME_VALIDATED * 512)
    if vector.ready() and vector.promote_l1(domain, mfn):
        return 0
    index = base - 1
    for entry in ram64[base : base + 512].tolist():
        index += 1
        if not entry & 1:
            continue
        frame = (entry & FRAME_MASK) >> 12
        fine = not entry & L1_DISALLOW and frame < limit and owner[frame] == domid
        fine = fine and ref_count[frame] < MOST_REFERENCES
        if fine and entry & RW:
            if types[frame] == WRITABLE:
                type_count[frame] += 1
            elif not type_count[frame]:
                types[frame] = WRITABLE
                type_count[frame] = 1
                flags[frame] |= VALIDATED
            else:
                fine = False
        if fine:
            ref_count[frame] += 1
        else:
            error = page_type.get_page_from_l1e(domain, entry, index << 3)
            if error:
                for done in range(base, index):
                    if ram64[done] & PRESENT:
                        page_type.put_page_from_l1e(hv, ram64[done])
                return error
        if mark:
            if not entry & USER:
                ram64[index] = entry | GUEST_KERNEL | USER
            elif not entry & (GUEST_KERNEL | GLOBAL):
                ram64[index] = entry | GLOBAL
    return 0


def promote(domain: Domain, mfn: int, level: int, pae_xen_l2: int, vcpu: Vcpu | None) -> int:
    """Check every entry of a frame that becomes an L2 to L4 and take what they refer to, from `nr_validated` on.

    The hypervisor's own slots are not looked at; when all else is right, they get its entries.
    """
    hv = domain.hv
    frames, ram64, base = hv.frames, hv.ram64, mfn << 9
    pae_l3 = level == L3 and domain.width == 32
    if pae_l3:
        hv.ram[(mfn << 12) + 32 : (mfn + 1) << 12] = bytes(4096 - 32)
    adjust = _added_bits(domain, level)
    first = frames.nr_validated[mfn]
    partial = frames.flags[mfn] & PARTIAL_SET
    entries = ram64[base : base + 512].tolist()
    hv.clock.charge(COST_FRAME_VALIDATED * (512 - first))
    for slot in _guest_slots(level, pae_xen_l2, first):
        entry = entries[slot]
        last = pae_l3 and slot == 3
        if not entry & 1 and not last:
            continue
        if slot > first and level < L4 and vcpu is not None and preempt_check(vcpu):
            frames.nr_validated[mfn] = slot
            frames.flags[mfn] &= ~PARTIAL_SET
            return -ERESTART
        here = partial if slot == first else 0
        if last:
            error = _get_last_of_pae(domain, entry, mfn, vcpu, here)
        else:
            error = page_type.get_table(domain, entry, level - 1, mfn, slot, 0, vcpu, here)
        if error:
            return _stop(domain, mfn, slot, error, here, vcpu)
        if entry & adjust != adjust:
            ram64[base + slot] = entry | adjust
    if pae_xen_l2:
        init_compat_l2_slots(domain, mfn)
    elif level == L4:
        init_xen_l4_slots(domain, mfn)
    return 0


def _added_bits(domain: Domain, level: int) -> int:
    """What the hypervisor adds to an entry (pv/mm.h, adjust_guest_l2e to adjust_guest_l4e)."""
    if domain.width == 64:
        return USER | ACCESSED if level == L4 else USER
    # a PAE processor ignores these two bits of an L3 entry, a fourth level needs them
    return USER | RW if level == L3 else 0


def _guest_slots(level: int, pae_xen_l2: int, first: int = 0) -> list[int] | range:
    """The slots from `first` on of a table above the L1s that are the guest's."""
    if level == L4:
        return [*range(first, XEN_L4_FIRST), *range(max(first, XEN_L4_LAST + 1), 512)]
    return range(first, COMPAT_L2_FIRST if pae_xen_l2 else 512)


def _get_last_of_pae(domain: Domain, entry: int, mfn: int, vcpu: Vcpu | None, partial: int) -> int:
    """The fourth entry of a PAE guest's L3: always there, and its L2 is no other L3's (pae_xen_mappings_check)."""
    address = (mfn << 12) + 24
    if not entry & PRESENT:
        return page_type.refuse(domain, refusals.PAE_L3_EMPTY, EINVAL, mfn, L3, address, 0, entry)
    error = page_type.get_table(domain, entry, L2, mfn, 3, PAE_XEN_L2, vcpu, partial)
    child = (entry & FRAME_MASK) >> 12
    if not error and domain.hv.frames.type_count[child] != 1:
        page_type.put_page_type(domain, child, mfn)
        if not partial:
            page_type.put_page(domain.hv, child)
        error = page_type.refuse(domain, refusals.PAE_L2_SHARED, EINVAL, child, L3, address, 0, entry)
    return error


def _stop(domain: Domain, mfn: int, slot: int, error: int, partial: int, vcpu: Vcpu | None) -> int:
    """Promotion ends at `slot`: preempted, or refused, in which case all before it is to be undone.

    `partial`: PARTIAL_SET if this entry held a reference before. A refused table below that is still to be undone
    itself (`old_guest_table`) is handed over to this one, which then is what is to be undone.
    """
    frames = domain.hv.frames
    flags = frames.flags[mfn] & ~PARTIAL_SET
    frames.nr_validated[mfn] = slot
    if error == -ERESTART:
        frames.flags[mfn] = flags | PARTIAL_SET
    elif vcpu is None:
        frames.flags[mfn] = flags | partial
        demote(domain, mfn, frames.type[mfn], None)
    elif slot or partial:
        handed_over = vcpu.old_guest_table != NO_FRAME
        frames.flags[mfn] = flags | (PARTIAL_SET if handed_over else partial)
        vcpu.old_guest_table = mfn
    return error


def init_compat_l2_slots(domain: Domain, mfn: int) -> None:
    """Write the hypervisor's entries, the M2P, into the L2 of a PAE guest's fourth GiB."""
    slots = domain.hv.compat_l2_slots
    for slot in range(COMPAT_L2_FIRST, 512):
        domain.hv.ram64[(mfn << 9) + slot] = slots.get(slot, 0)


def init_xen_l4_slots(domain: Domain, mfn: int) -> None:
    """Write the hypervisor's entries into an L4: the M2P, and the domain's own descriptor-table window."""
    hv, base = domain.hv, mfn << 9
    slots = hv.xen_l4_slots
    for slot in range(XEN_L4_FIRST, XEN_L4_LAST + 1):
        hv.ram64[base + slot] = slots.get(slot, 0)
    if domain.perdomain_l3 >= 0:
        # supervisor pages: out of reach for a 64-bit guest, which never leaves ring 3
        hv.ram64[base + PERDOMAIN_SLOT] = domain.perdomain_l3 << 12 | PRESENT | RW | ACCESSED | DIRTY
    if domain.vm_assist >> VMASST_TYPE_m2p_strict & 1:
        hv.ram64[base + M2P_SLOT] = 0


# --- demotion ------------------------------------------------------------------------------------------------------


def demote(domain: Domain, mfn: int, frame_type: int, vcpu: Vcpu | None = None) -> int:
    """Drop what a page table refers to; it is none any more. 0, or -ERESTART if there is a `vcpu`."""
    if frame_type == L1:
        _demote_l1(domain, mfn)
        return 0
    hv = domain.hv
    frames, base = hv.frames, mfn << 9
    flags, end = frames.flags[mfn], frames.nr_validated[mfn]
    partial = flags & PARTIAL_SET
    entries = hv.ram64[base : base + 512].tolist()
    slots = [slot for slot in _guest_slots(frame_type, flags & PAE_XEN_L2) if entries[slot] & 1 and slot < end]
    if partial:
        slots.append(end)
    hv.clock.charge(COST_FRAME_VALIDATED * end)
    started = False
    while slots:
        slot = slots.pop()
        entry = entries[slot]
        child = (entry & FRAME_MASK) >> 12
        if started and frame_type < L4 and vcpu is not None and preempt_check(vcpu):
            frames.nr_validated[mfn] = slot + 1
            frames.flags[mfn] &= ~PARTIAL_SET
            return -ERESTART
        started = True
        if child != mfn:
            if page_type.put_page_type(domain, child, mfn, vcpu, partial if slot == end else 0):
                frames.nr_validated[mfn] = slot
                frames.flags[mfn] |= PARTIAL_SET
                return -ERESTART
            page_type.put_page(hv, child)
        if frame_type == L3 and domain.width == 32:
            hv.ram64[base + slot] &= ~(USER | RW | ACCESSED)
    return 0


def _demote_l1(domain: Domain, mfn: int) -> None:
    hv = domain.hv
    hv.clock.charge(COST_FRAME_VALIDATED * 512)
    if vector.ready() and vector.demote_l1(domain, mfn):
        return
    frames = hv.frames
    type_count, ref_count = frames.type_count, frames.ref_count
    for entry in hv.ram64[mfn << 9 : (mfn + 1) << 9].tolist():
        if entry & 1:
            frame = (entry & FRAME_MASK) >> 12
            if entry & RW:
                type_count[frame] -= 1
            count = ref_count[frame] - 1
            ref_count[frame] = count
            if not count:
                page_type.free_frame(hv, frame)
