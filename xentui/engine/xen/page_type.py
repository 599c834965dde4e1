"""References to frames and to their types; promotion and demotion of page tables.

The heart of the validator (Xen: mm.c, get_page_type and its kin). A frame gets a type with the first use as such and
keeps it while the count is not zero; becoming a page table means that every entry has been checked and that
everything below is in use as the next lower level (promotion); losing the last use undoes that (demotion). From that
follows what the design rests on: a frame that is a page table or descriptor page is mapped writable nowhere.

Functions return 0 or a negative error number, and leave the broken rule in `FrameTable.refusal`. `domain` is the
owner of the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_FRAME_VALIDATED
from xentui.engine.x86.paging import ACCESSED, DIRTY, FRAME_MASK, GLOBAL, PCD, PRESENT, PSE, PWT, RW, USER
from xentui.engine.xen import refusals
from xentui.engine.xen.abi.core import VMASST_TYPE_m2p_strict
from xentui.engine.xen.abi.errno import EBUSY, EINVAL, EPERM
from xentui.engine.xen.page import (
    ALLOCATED,
    L1,
    L2,
    L3,
    L4,
    NONE,
    PAE_XEN_L2,
    SEG,
    SHARED,
    SHARED_RW,
    VALIDATED,
    WRITABLE,
)

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain
    from xentui.engine.xen.hypervisor import Hypervisor

PAT = PSE  # bit 7 of an L1 entry
GUEST_KERNEL = 1 << 52
"""_PAGE_GUEST_KERNEL: Xen's mark on the kernel pages of a 64-bit guest, which it makes user pages."""

L1_DISALLOW = PWT | PCD | PAT
"""What an L1 entry of a domain without devices may not have (Xen: l1_disallow_mask)."""
TABLE_DISALLOW = PWT | PCD | PSE | GLOBAL
"""The same for L2 to L4."""
PAE_L3_DISALLOW = TABLE_DISALLOW | 0xFFF << 52
"""A 32-bit guest's L3 entries have no bits above the address (Xen: l3_disallow_mask)."""

XEN_L4_FIRST, XEN_L4_LAST = 256, 271
PERDOMAIN_SLOT = 260
M2P_SLOT = 256
COMPAT_L2_FIRST = 0xF580_0000 >> 21 & 511
"""First slot of the hypervisor's in the L2 of a PAE guest's fourth GiB."""

INVALID_M2P_ENTRY = (1 << 64) - 1
"""What the M2P says of a frame that is no guest's."""

_EMPTY = bytes(4096)
_INVALID_FRAME = FRAME_MASK >> 12


# --- references ----------------------------------------------------------------------------------------------------


def get_page(domain: Domain, mfn: int) -> bool:
    """Take a reference to a frame that must be the domain's."""
    frames = domain.hv.frames
    if not 0 <= mfn < frames.count or frames.owner[mfn] != domain.id:
        return False
    frames.ref_count[mfn] += 1
    return True


def put_page(hv: Hypervisor, mfn: int) -> None:
    """Drop a reference; the last one frees the frame."""
    frames = hv.frames
    count = frames.ref_count[mfn] - 1
    frames.ref_count[mfn] = count
    if not count:
        _free(hv, mfn)


def put_allocation(hv: Hypervisor, mfn: int) -> None:
    """Drop the reference that is the allocation: the domain gives the frame back (Xen: put_page_alloc_ref)."""
    frames = hv.frames
    if frames.flags[mfn] & ALLOCATED:
        frames.flags[mfn] &= ~ALLOCATED
        put_page(hv, mfn)


def _free(hv: Hypervisor, mfn: int) -> None:
    """Nobody uses the frame any more. Its former owner must not reach it by a stale translation either."""
    frames = hv.frames
    owner = hv.domains.get(frames.owner[mfn])
    frames.free(mfn, hv.ram)
    hv.set_m2p(mfn, INVALID_M2P_ENTRY)
    if owner is not None:
        owner.tot_pages -= 1
        if frames.batch:
            frames.stale = True
        else:
            flush_freed(owner)


def flush_freed(owner: Domain) -> None:
    """Frames of a domain were freed: no translation of them, and no code translated from them, may survive."""
    owner.flush_tlb()
    for processor in {vcpu.processor for vcpu in owner.vcpus}:
        processor.flush_code()


class Freeing:
    """`with Freeing(domain):` frames of the domain are freed in numbers, and what that takes of flushes comes last."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def __enter__(self) -> None:
        frames = self.domain.hv.frames
        frames.batch, frames.stale = True, False

    def __exit__(self, *_exception: object) -> None:
        frames = self.domain.hv.frames
        frames.batch = False
        if frames.stale:
            flush_freed(self.domain)


def get_page_and_type(domain: Domain, mfn: int, wanted: int) -> int:
    """A reference to the domain's frame and one to its type; 0 or -EINVAL."""
    if not get_page(domain, mfn):
        return refuse(domain, refusals.NOT_OWNER, EINVAL, mfn, level=wanted if wanted <= L4 else 0)
    error = get_page_type(domain, mfn, wanted)
    if error:
        put_page(domain.hv, mfn)
    return error


def put_page_and_type(domain: Domain, mfn: int) -> None:
    """Undo `get_page_and_type`."""
    put_page_type(domain, mfn)
    put_page(domain.hv, mfn)


# --- types ---------------------------------------------------------------------------------------------------------


def get_page_type(domain: Domain, mfn: int, wanted: int, pae_xen_l2: int = 0) -> int:
    """Use a frame as `wanted` (L1 to L4, SEG or WRITABLE) once more; 0 or -EINVAL. The caller holds a reference.

    `pae_xen_l2`: PAE_XEN_L2 for the L2 of a PAE guest's fourth GiB, a type of its own (Xen: _get_page_type).
    """
    frames = domain.hv.frames
    flags = frames.flags[mfn]
    old = frames.type[mfn]
    if frames.type_count[mfn]:
        if old == SHARED and wanted == WRITABLE and flags & SHARED_RW:
            old = WRITABLE
        if old != wanted or flags & PAE_XEN_L2 != pae_xen_l2:
            rule = refusals.WRITABLE_TABLE if wanted == WRITABLE and old <= SEG else refusals.WRONG_TYPE
            return refuse(domain, rule, EINVAL, mfn, level=wanted if wanted <= L4 else 0)
        if not flags & VALIDATED:
            # it is being validated further up: a table that contains itself at a lower level
            return refuse(domain, refusals.WRONG_TYPE, EINVAL, mfn, level=wanted)
        frames.type_count[mfn] += 1
        return 0
    if old != wanted:
        frames.type[mfn] = wanted
        flags &= ~VALIDATED
        frames.flags[mfn] = flags
        if old == WRITABLE:
            # the guest may have unmapped it without flushing: no stale writable translation may survive
            domain.flush_tlb()
    frames.type_count[mfn] = 1
    if flags & VALIDATED:
        return 0
    if wanted == WRITABLE:
        frames.flags[mfn] = flags | VALIDATED
        return 0
    return _validate(domain, mfn, wanted, pae_xen_l2)


def _validate(domain: Domain, mfn: int, wanted: int, pae_xen_l2: int) -> int:
    """Check the contents of a frame that just got its type; on failure it has none."""
    frames = domain.hv.frames
    frames.linear[mfn] = 0
    frames.flags[mfn] |= pae_xen_l2
    if wanted == L1:
        error = promote_l1(domain, mfn)
    elif wanted == L2:
        error = promote_l2(domain, mfn, pae_xen_l2)
    elif wanted == L3:
        error = promote_l3(domain, mfn)
    elif wanted == L4:
        error = promote_l4(domain, mfn)
    else:
        error = _validate_descriptors(domain, mfn)
    if error:
        frames.type[mfn] = NONE
        frames.type_count[mfn] = 0
        frames.flags[mfn] &= ~(VALIDATED | PAE_XEN_L2)
    else:
        frames.flags[mfn] |= VALIDATED
    return error


def _validate_descriptors(domain: Domain, mfn: int) -> int:
    from xentui.engine.xen.descriptor_tables import validate_segdesc_page

    if validate_segdesc_page(domain, mfn):
        return 0
    return refuse(domain, refusals.DESCRIPTOR, EINVAL, mfn)


def put_page_type(domain: Domain, mfn: int, parent: int = -1) -> None:
    """Drop one use of a frame's type; the last one of a page table demotes it.

    `parent`: the table whose entry goes away, for the counts of linear tables (Xen: _put_page_type).
    """
    frames = domain.hv.frames
    frame_type = frames.type[mfn]
    linear = parent >= 0 and frames.type[parent] == frame_type
    count = frames.type_count[mfn] - 1
    if count == 0 and frame_type <= L4 and frames.flags[mfn] & VALIDATED:
        frames.flags[mfn] &= ~VALIDATED
        demote(domain, mfn, frame_type)
        frames.flags[mfn] &= ~PAE_XEN_L2
    frames.type_count[mfn] = count
    if linear:
        frames.linear[mfn] += 1
        frames.linear[parent] -= 1


def refuse(
    domain: Domain,
    rule: int,
    error: int,
    mfn: int,
    level: int = 0,
    address: int = 0,
    old: int = 0,
    new: int = 0,
) -> int:
    """Remember a refusal (see FrameTable.refusal) and return its error, negative."""
    domain.hv.frames.refusal = (rule, level, address, old, new, mfn)
    return -error


# --- what an entry refers to ---------------------------------------------------------------------------------------


def adjust_l1(entry: int) -> int:
    """A present L1 entry of a 64-bit guest as Xen writes it (pv/mm.h, adjust_guest_l1e).

    Both kernel and user run in ring 3: kernel pages become user pages with a mark, user pages global ones.
    """
    if not entry & USER:
        return entry | GUEST_KERNEL | USER
    if not entry & GUEST_KERNEL:
        return entry | GLOBAL
    return entry


def get_page_from_l1e(domain: Domain, entry: int, address: int, old: int = 0) -> int:
    """Take the references of a present L1 entry: to the frame, and as WRITABLE if it maps it so.

    0, or -EINVAL (flags), -EPERM (no memory there), -EBUSY (another's frame, or one in use as something else).
    `address`: machine address of the entry, for the refusal.
    """
    frames = domain.hv.frames
    mfn = (entry & FRAME_MASK) >> 12
    if entry & L1_DISALLOW:
        return refuse(domain, refusals.BAD_FLAGS, EINVAL, mfn, L1, address, old, entry)
    if mfn >= frames.count:
        return refuse(
            domain, refusals.IO_FRAME, EINVAL if mfn == _INVALID_FRAME else EPERM, mfn, L1, address, old, entry
        )
    if frames.owner[mfn] != domain.id:
        return refuse(domain, refusals.NOT_OWNER, EBUSY, mfn, L1, address, old, entry)
    if entry & RW:
        kind = frames.type[mfn]
        if kind == WRITABLE:
            frames.type_count[mfn] += 1
        elif kind == SHARED:
            if not frames.flags[mfn] & SHARED_RW:
                return refuse(domain, refusals.READ_ONLY_FRAME, EBUSY, mfn, L1, address, old, entry)
            frames.type_count[mfn] += 1
        elif frames.type_count[mfn]:
            return refuse(domain, refusals.WRITABLE_TABLE, EBUSY, mfn, L1, address, old, entry)
        else:
            frames.type[mfn] = WRITABLE
            frames.type_count[mfn] = 1
            frames.flags[mfn] |= VALIDATED
    frames.ref_count[mfn] += 1
    return 0


def put_page_from_l1e(hv: Hypervisor, entry: int) -> None:
    """Drop the references of an L1 entry that was present."""
    frames = hv.frames
    mfn = (entry & FRAME_MASK) >> 12
    if entry & RW:
        frames.type_count[mfn] -= 1
    count = frames.ref_count[mfn] - 1
    frames.ref_count[mfn] = count
    if not count:
        _free(hv, mfn)


def get_table(domain: Domain, entry: int, child: int, parent: int, index: int, pae_xen_l2: int = 0) -> int:
    """Take the references of a present entry of a higher table: to the frame, as a table of the type `child`.

    `parent` is the table's frame, `index` the entry's slot in it. 0 or -EINVAL.
    """
    frames = domain.hv.frames
    mfn = (entry & FRAME_MASK) >> 12
    address = (parent << 12) + 8 * index
    disallow = PAE_L3_DISALLOW if child == L2 and domain.width == 32 else TABLE_DISALLOW
    if entry & disallow:
        return refuse(domain, refusals.BAD_FLAGS, EINVAL, mfn, child + 1, address, 0, entry)
    if mfn >= frames.count or frames.owner[mfn] != domain.id:
        return refuse(domain, refusals.NOT_OWNER, EINVAL, mfn, child + 1, address, 0, entry)
    if frames.type_count[mfn] and (frames.type[mfn] != child or frames.flags[mfn] & PAE_XEN_L2 != pae_xen_l2):
        if frames.type[mfn] == child + 1 and not pae_xen_l2 and _get_linear(domain, entry, child + 1, mfn, parent):
            return 0
        rule = refusals.LINEAR if frames.type[mfn] == child + 1 else refusals.WRONG_TYPE
        return refuse(domain, rule, EINVAL, mfn, child + 1, address, 0, entry)
    frames.ref_count[mfn] += 1
    error = get_page_type(domain, mfn, child, pae_xen_l2)
    if error:
        put_page(domain.hv, mfn)
    return error


def _get_linear(domain: Domain, entry: int, level: int, mfn: int, parent: int) -> bool:
    """May an entry of a table refer to a table of its own level, so that the guest sees its tables as memory?

    Read-only, validated, one level deep: a table that contains such entries is not itself the target of others
    (Xen: get_linear_pagetable). A table that refers to itself takes no references, so that it can be promoted.
    """
    frames = domain.hv.frames
    if entry & RW or (level == L3 and domain.width == 32):
        return False
    if mfn == parent:
        return True
    if frames.linear[parent] < 0 or frames.linear[mfn] > 0 or not frames.flags[mfn] & VALIDATED:
        return False
    frames.linear[parent] += 1
    frames.linear[mfn] -= 1
    frames.type_count[mfn] += 1
    frames.ref_count[mfn] += 1
    return True


def put_table(domain: Domain, entry: int, parent: int) -> None:
    """Drop the references of an entry of a higher table, if it was present."""
    mfn = (entry & FRAME_MASK) >> 12
    if entry & PRESENT and mfn != parent:
        put_page_type(domain, mfn, parent)
        put_page(domain.hv, mfn)


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
            error = get_page_from_l1e(domain, entry, index << 3)
            if error:
                for done in range(base, index):
                    if ram64[done] & PRESENT:
                        put_page_from_l1e(hv, ram64[done])
                return error
        if mark:
            if not entry & USER:
                ram64[index] = entry | GUEST_KERNEL | USER
            elif not entry & (GUEST_KERNEL | GLOBAL):
                ram64[index] = entry | GLOBAL
    return 0


def promote_l2(domain: Domain, mfn: int, pae_xen_l2: int) -> int:
    """The same for an L2. That of a PAE guest's fourth GiB also gets the hypervisor's entries."""
    ram64, base = domain.hv.ram64, mfn << 9
    end = COMPAT_L2_FIRST if pae_xen_l2 else 512
    error = _promote(domain, mfn, L1, range(end), USER if domain.width == 64 else 0)
    if not error and pae_xen_l2:
        slots = domain.hv.compat_l2_slots
        for slot in range(COMPAT_L2_FIRST, 512):
            ram64[base + slot] = slots.get(slot, 0)
    return error


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
        error = refuse(domain, refusals.PAE_L3_EMPTY, EINVAL, mfn, L3, (base + 3) << 3, 0, entry)
    else:
        error = get_table(domain, entry, L2, mfn, 3, PAE_XEN_L2)
        child = (entry & FRAME_MASK) >> 12
        if not error and frames.type_count[child] != 1:
            put_table(domain, entry, mfn)
            error = refuse(domain, refusals.PAE_L2_SHARED, EINVAL, child, L3, (base + 3) << 3, 0, entry)
    if error:
        for slot in range(3):
            put_table(domain, ram64[base + slot], mfn)
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
        error = get_table(domain, entry, child, mfn, slot)
        if error:
            for done in slots:
                if done == slot:
                    return error
                put_table(domain, ram64[base + done], mfn)
        if entry & adjust != adjust:
            ram64[base + slot] = entry | adjust
    return 0


# --- demotion ------------------------------------------------------------------------------------------------------


def demote(domain: Domain, mfn: int, frame_type: int) -> None:
    """Drop what a page table refers to; it is none any more."""
    hv = domain.hv
    entries = hv.ram64[mfn << 9 : (mfn + 1) << 9].tolist()
    hv.clock.charge(COST_FRAME_VALIDATED * 512)
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
                    _free(hv, frame)
        return
    if frame_type == L2 and hv.frames.flags[mfn] & PAE_XEN_L2:
        del entries[COMPAT_L2_FIRST:]
    elif frame_type == L4:
        entries[XEN_L4_FIRST : XEN_L4_LAST + 1] = ()
    for entry in entries:
        if entry & 1:
            put_table(domain, entry, mfn)
    if frame_type == L3 and domain.width == 32:
        for index in range(mfn << 9, (mfn << 9) + 4):
            if hv.ram64[index] & PRESENT:
                hv.ram64[index] &= ~(USER | RW | ACCESSED)
