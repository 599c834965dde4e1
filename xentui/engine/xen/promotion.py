"""Promotion: a frame becomes a page table, all of it checked and everything below in use. Demotion: the way back.

Only page_type.py calls this, when the first use of a frame's type begins and when the last one ends. Functions return
0 or a negative error number; on an error nothing is left in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_FRAME_VALIDATED
from xentui.engine.x86.paging import ACCESSED, DIRTY, FRAME_MASK, GLOBAL, PRESENT, RW, USER
from xentui.engine.xen import page_type, refusals, vector
from xentui.engine.xen.abi.core import VMASST_TYPE_m2p_strict
from xentui.engine.xen.abi.errno import EINVAL
from xentui.engine.xen.page import L1, L2, L3, L4, PAE_XEN_L2, VALIDATED, WRITABLE
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
    from xentui.engine.xen.domain import Domain

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


def promote_l2(domain: Domain, mfn: int, pae_xen_l2: int) -> int:
    """The same for an L2. That of a PAE guest's fourth GiB also gets the hypervisor's entries."""
    end = COMPAT_L2_FIRST if pae_xen_l2 else 512
    error = _promote(domain, mfn, L1, range(end), USER if domain.width == 64 else 0)
    if not error and pae_xen_l2:
        init_compat_l2_slots(domain, mfn)
    return error


def init_compat_l2_slots(domain: Domain, mfn: int) -> None:
    """Write the hypervisor's entries, the M2P, into the L2 of a PAE guest's fourth GiB."""
    slots = domain.hv.compat_l2_slots
    for slot in range(COMPAT_L2_FIRST, 512):
        domain.hv.ram64[(mfn << 9) + slot] = slots.get(slot, 0)


def promote_l3(domain: Domain, mfn: int) -> int:
    """The same for an L3. A PAE guest's has four entries, the last of which is always there."""
    if domain.width == 64:
        return _promote(domain, mfn, L2, range(512), USER)
    ram64, base, frames = domain.hv.ram64, mfn << 9, domain.hv.frames
    domain.hv.ram[(mfn << 12) + 32 : (mfn + 1) << 12] = bytes(4096 - 32)
    error = _promote(domain, mfn, L2, range(3), 0)
    if error:
        return error
    entry = ram64[base + 3]
    if not entry & PRESENT:
        error = page_type.refuse(domain, refusals.PAE_L3_EMPTY, EINVAL, mfn, L3, (base + 3) << 3, 0, entry)
    else:
        error = page_type.get_table(domain, entry, L2, mfn, 3, PAE_XEN_L2)
        child = (entry & FRAME_MASK) >> 12
        if not error and frames.type_count[child] != 1:
            page_type.put_table(domain, entry, mfn)
            error = page_type.refuse(domain, refusals.PAE_L2_SHARED, EINVAL, child, L3, (base + 3) << 3, 0, entry)
    if error:
        for slot in range(3):
            page_type.put_table(domain, ram64[base + slot], mfn)
        return error
    for index in range(base, base + 4):
        if ram64[index] & PRESENT:
            # a PAE processor ignores these two bits, a fourth level needs them (pv/mm.h, adjust_guest_l3e)
            ram64[index] |= USER | RW
    return 0


def promote_l4(domain: Domain, mfn: int) -> int:
    """The same for an L4 of a 64-bit guest, whose slots 256 to 271 become the hypervisor's."""
    slots = [*range(XEN_L4_FIRST), *range(XEN_L4_LAST + 1, 512)]
    error = _promote(domain, mfn, L3, slots, USER | ACCESSED)
    if not error:
        init_xen_l4_slots(domain, mfn)
    return error


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


def _promote(domain: Domain, mfn: int, child: int, slots: range | list[int], adjust: int) -> int:
    """Take what the present entries of `slots` refer to as tables of type `child`, and give the entries `adjust`."""
    ram64, base = domain.hv.ram64, mfn << 9
    domain.hv.clock.charge(COST_FRAME_VALIDATED * len(slots))
    entries = ram64[base : base + 512].tolist()
    for slot in slots:
        entry = entries[slot]
        if not entry & 1:
            continue
        error = page_type.get_table(domain, entry, child, mfn, slot)
        if error:
            for done in slots:
                if done == slot:
                    return error
                page_type.put_table(domain, ram64[base + done], mfn)
        if entry & adjust != adjust:
            ram64[base + slot] = entry | adjust
    return 0


# --- demotion ------------------------------------------------------------------------------------------------------


def demote(domain: Domain, mfn: int, frame_type: int) -> None:
    """Drop what a page table refers to; it is none any more."""
    hv = domain.hv
    hv.clock.charge(COST_FRAME_VALIDATED * 512)
    if frame_type == L1 and vector.ready() and vector.demote_l1(domain, mfn):
        return
    entries = hv.ram64[mfn << 9 : (mfn + 1) << 9].tolist()
    if frame_type == L1:
        frames = hv.frames
        type_count, ref_count = frames.type_count, frames.ref_count
        for entry in entries:
            if entry & 1:
                frame = (entry & FRAME_MASK) >> 12
                if entry & RW:
                    type_count[frame] -= 1
                count = ref_count[frame] - 1
                ref_count[frame] = count
                if not count:
                    page_type.free_frame(hv, frame)
        return
    if frame_type == L2 and hv.frames.flags[mfn] & PAE_XEN_L2:
        del entries[COMPAT_L2_FIRST:]
    elif frame_type == L4:
        entries[XEN_L4_FIRST : XEN_L4_LAST + 1] = ()
    for entry in entries:
        if entry & 1:
            page_type.put_table(domain, entry, mfn)
    if frame_type == L3 and domain.width == 32:
        for index in range(mfn << 9, (mfn << 9) + 4):
            if hv.ram64[index] & PRESENT:
                hv.ram64[index] &= ~(USER | RW | ACCESSED)
