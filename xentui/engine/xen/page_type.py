"""References to frames and to their types.

The heart of the validator (Xen: mm.c, get_page_type and its kin). A frame gets a type with the first use as such and
keeps it while the count is not zero; becoming a page table means that every entry has been checked and that
everything below is in use as the next lower level (promotion); losing the last use undoes that (demotion). From that
follows what the design rests on: a frame that is a page table or descriptor page is mapped writable nowhere.

Promotion and demotion of a big tree of tables take long. Where a function is given a `vcpu`, it stops when the slice
ends: what is done so far stays (PARTIAL, page.py), the answer is -ERESTART, and the same call goes on from there. What
is still to be *undone* then, after an error or for an entry that is overwritten already, is left in
`vcpu.old_guest_table`, which `put_old_guest_table` goes on with. Without a vCPU all is done at once.

Functions return 0 or a negative error number, and leave the broken rule in `FrameTable.refusal`. `domain` is the
owner of the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.paging import FRAME_MASK, PRESENT, RW
from xentui.engine.xen import promotion, refusals, unchecked
from xentui.engine.xen.abi.errno import EBUSY, EINVAL, EPERM
from xentui.engine.xen.continuation import ERESTART
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.page import (
    ALLOCATED,
    L1,
    L2,
    L3,
    L4,
    MOST_REFERENCES,
    MOST_USES,
    NONE,
    PAE_XEN_L2,
    PARTIAL,
    PARTIAL_SET,
    SEG,
    SHARED,
    SHARED_RW,
    VALIDATED,
    WRITABLE,
)
from xentui.engine.xen.pte import L1_DISALLOW, PAE_L3_DISALLOW, TABLE_DISALLOW

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu
    from xentui.engine.xen.hypervisor import Hypervisor

INVALID_M2P_ENTRY = (1 << 64) - 1
"""What the M2P says of a frame that is no guest's."""

_INVALID_FRAME = FRAME_MASK >> 12


# --- references ----------------------------------------------------------------------------------------------------


def get_page(domain: Domain, mfn: int) -> bool:
    """Take a reference to a frame that must be the domain's; False too where the count is at its end."""
    frames = domain.hv.frames
    if not 0 <= mfn < frames.count or frames.owner[mfn] != domain.id or frames.ref_count[mfn] >= MOST_REFERENCES:
        return False
    frames.ref_count[mfn] += 1
    return True


def no_reference(domain: Domain, mfn: int) -> int:
    """Why `get_page` has refused."""
    frames = domain.hv.frames
    return refusals.COUNT if 0 <= mfn < frames.count and frames.owner[mfn] == domain.id else refusals.NOT_OWNER


def put_page(hv: Hypervisor, mfn: int) -> None:
    """Drop a reference; the last one frees the frame."""
    frames = hv.frames
    count = frames.ref_count[mfn] - 1
    frames.ref_count[mfn] = count
    if not count:
        free_frame(hv, mfn)


def put_allocation(hv: Hypervisor, mfn: int) -> None:
    """Drop the reference that is the allocation: the domain gives the frame back (Xen: put_page_alloc_ref)."""
    frames = hv.frames
    if frames.flags[mfn] & ALLOCATED:
        frames.flags[mfn] &= ~ALLOCATED
        put_page(hv, mfn)


def free_frame(hv: Hypervisor, mfn: int) -> None:
    """Nobody uses the frame any more. Its former owner must not reach it by a stale translation either."""
    frames = hv.frames
    owner = hv.domains.get(frames.owner[mfn])
    frames.free(mfn, hv.ram)
    hv.set_m2p(mfn, INVALID_M2P_ENTRY)
    if mfn in hv.grant_mappers:
        forget_mappers(hv, mfn, owner)
    if owner is not None:
        owner.tot_pages -= 1
        if frames.batch == owner.id:
            frames.stale = True
        else:
            flush_freed(owner)


def flush_freed(owner: Domain) -> None:
    """Frames of a domain were freed: no translation of them, and no code translated from them, may survive."""
    owner.flush_tlb()
    for processor in {vcpu.processor for vcpu in owner.vcpus}:
        processor.flush_code()


def flush_mappers(hv: Hypervisor, mfn: int, owner: Domain | None) -> None:
    """A frame that was mapped by a grant is free, or becomes a page table: nobody keeps a translation of it."""
    for domain in hv.grant_mappers[mfn]:
        flush_freed(domain)
    if owner is not None:
        flush_freed(owner)


def forget_mappers(hv: Hypervisor, mfn: int, owner: Domain | None) -> None:
    """The same for a frame that `owner` has no longer: nobody maps it by a grant any more."""
    flush_mappers(hv, mfn, owner)
    del hv.grant_mappers[mfn]


class Freeing:
    """`with Freeing(domain):` frames of the domain are freed in numbers, and what that takes of flushes comes last."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def __enter__(self) -> None:
        frames = self.domain.hv.frames
        frames.batch, frames.stale = self.domain.id, False

    def __exit__(self, *_exception: object) -> None:
        frames = self.domain.hv.frames
        frames.batch = -1
        if frames.stale:
            flush_freed(self.domain)


def get_page_and_type(domain: Domain, mfn: int, wanted: int, vcpu: Vcpu | None = None) -> int:
    """A reference to the domain's frame and one to its type; 0, -EINVAL, or -ERESTART if there is a `vcpu`."""
    if not domain.validated:
        return unchecked.use(domain, mfn, wanted)
    if not get_page(domain, mfn):
        return refuse(domain, no_reference(domain, mfn), EINVAL, mfn, level=wanted if wanted <= L4 else 0)
    error = get_page_type(domain, mfn, wanted, 0, vcpu)
    if error and not (vcpu is not None and vcpu.old_guest_table == mfn):
        put_page(domain.hv, mfn)
    return error


def put_page_and_type(domain: Domain, mfn: int, vcpu: Vcpu | None = None) -> None:
    """Undo `get_page_and_type`. With a `vcpu`, what is preempted of it is left to `put_old_guest_table`."""
    if not domain.validated:
        unchecked.drop(domain, mfn)
    elif put_page_type(domain, mfn, -1, vcpu):
        assert vcpu is not None  # only then can it be preempted
        vcpu.old_guest_table = mfn
    else:
        put_page(domain.hv, mfn)


def put_old_guest_table(vcpu: Vcpu, preemptible: bool = True) -> int:
    """Go on with the page table that is on its way out, if there is one; 0 once it is gone, or -ERESTART."""
    mfn = vcpu.old_guest_table
    if mfn != NO_FRAME:
        if put_page_type(vcpu.domain, mfn, -1, vcpu if preemptible else None, PARTIAL_SET):
            return -ERESTART
        vcpu.old_guest_table = NO_FRAME
        put_page(vcpu.hv, mfn)
    return 0


# --- types ---------------------------------------------------------------------------------------------------------


def get_page_type(domain: Domain, mfn: int, wanted: int, pae_xen_l2: int = 0, vcpu: Vcpu | None = None) -> int:
    """Use a frame as `wanted` (L1 to L4, SEG or WRITABLE) once more; 0 or an error. The caller holds a reference.

    `pae_xen_l2`: PAE_XEN_L2 for the L2 of a PAE guest's fourth GiB, a type of its own (Xen: _get_page_type).
    """
    frames = domain.hv.frames
    flags = frames.flags[mfn]
    old = frames.type[mfn]
    if frames.type_count[mfn]:
        if frames.type_count[mfn] == MOST_USES:
            return refuse(domain, refusals.COUNT, EINVAL, mfn, level=wanted if wanted <= L4 else 0)
        if old == SHARED and wanted == WRITABLE and flags & SHARED_RW:
            old = WRITABLE
        if old != wanted or flags & PAE_XEN_L2 != pae_xen_l2:
            rule = refusals.WRITABLE_TABLE if wanted == WRITABLE and old <= SEG else refusals.WRONG_TYPE
            return refuse(domain, rule, EINVAL, mfn, level=wanted if wanted <= L4 else 0)
        if flags & VALIDATED:
            frames.type_count[mfn] += 1
            return 0
        if not flags & PARTIAL:
            # it is being validated further up: a table that contains itself at a lower level
            return refuse(domain, refusals.WRONG_TYPE, EINVAL, mfn, level=wanted)
        # what is PARTIAL's own, the use of the type and the reference, is the caller's now: there is one already
        frames.flags[mfn] = flags & ~PARTIAL
        error = _validate(domain, mfn, wanted, pae_xen_l2, vcpu)
        put_page(domain.hv, mfn)
        return error
    if old != wanted:
        frames.type[mfn] = wanted
        flags &= ~VALIDATED
        frames.flags[mfn] = flags
        if old == WRITABLE:
            # the guest may have unmapped it without flushing: no stale writable translation may survive
            domain.flush_tlb()
            if mfn in domain.hv.grant_mappers:
                flush_mappers(domain.hv, mfn, None)
    frames.type_count[mfn] = 1
    if flags & VALIDATED:
        return 0
    if wanted == WRITABLE:
        frames.flags[mfn] = flags | VALIDATED
        return 0
    frames.flags[mfn] = flags & ~PARTIAL_SET | pae_xen_l2
    frames.linear[mfn] = frames.nr_validated[mfn] = 0
    return _validate(domain, mfn, wanted, pae_xen_l2, vcpu)


def _validate(domain: Domain, mfn: int, wanted: int, pae_xen_l2: int, vcpu: Vcpu | None) -> int:
    """Check the contents of a frame that has got its type, from `nr_validated` on; on failure it has none."""
    frames = domain.hv.frames
    if wanted == L1:
        error = promotion.promote_l1(domain, mfn)
    elif wanted <= L4:
        error = promotion.promote(domain, mfn, wanted, pae_xen_l2, vcpu)
    else:
        error = _validate_descriptors(domain, mfn)
    if not error:
        frames.flags[mfn] = frames.flags[mfn] & ~PARTIAL_SET | VALIDATED
    elif error == -ERESTART or (vcpu is not None and vcpu.old_guest_table == mfn):
        frames.flags[mfn] |= PARTIAL
        frames.ref_count[mfn] += 1
    else:
        frames.type[mfn] = NONE
        frames.type_count[mfn] = 0
        frames.flags[mfn] &= ~(VALIDATED | PAE_XEN_L2 | PARTIAL_SET)
    return error


def _validate_descriptors(domain: Domain, mfn: int) -> int:
    from xentui.engine.xen.descriptor_tables import validate_segdesc_page

    if validate_segdesc_page(domain, mfn):
        return 0
    return refuse(domain, refusals.DESCRIPTOR, EINVAL, mfn)


def put_page_type(domain: Domain, mfn: int, parent: int = -1, vcpu: Vcpu | None = None, partial: int = 0) -> int:
    """Drop one use of a frame's type; the last one of a page table demotes it. 0, or -ERESTART if there is a `vcpu`.

    `parent`: the table whose entry goes away, for the counts of linear tables (Xen: _put_page_type). `partial`: not 0
    where the use was handed over to PARTIAL before: unless the frame is PARTIAL still, it is somebody else's by now.
    """
    frames = domain.hv.frames
    flags = frames.flags[mfn]
    if partial and not flags & PARTIAL:
        return 0
    frame_type = frames.type[mfn]
    if not flags & PARTIAL and parent >= 0 and frames.type[parent] == frame_type:
        frames.linear[mfn] += 1
        frames.linear[parent] -= 1
    if frames.type_count[mfn] > 1 or frame_type > L4 or not flags & (VALIDATED | PARTIAL):
        frames.type_count[mfn] -= 1
        return 0
    if not flags & PARTIAL:
        frames.nr_validated[mfn] = 512
        flags &= ~PARTIAL_SET
    frames.flags[mfn] = flags & ~(VALIDATED | PARTIAL)
    error = promotion.demote(domain, mfn, frame_type, vcpu)
    if error:
        frames.flags[mfn] |= PARTIAL
        if not flags & PARTIAL:
            frames.ref_count[mfn] += 1
        return error
    frames.flags[mfn] &= ~(PAE_XEN_L2 | PARTIAL_SET)
    frames.type_count[mfn] = 0
    if flags & PARTIAL:
        put_page(domain.hv, mfn)
    return 0


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
    frames = domain.hv.frames
    frames.refusal = (rule, level, address, old, new, mfn, refusals.frame_state(frames, mfn))
    return -error


# --- what an entry refers to ---------------------------------------------------------------------------------------


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
    if frames.ref_count[mfn] >= MOST_REFERENCES or (entry & RW and frames.type_count[mfn] == MOST_USES):
        return refuse(domain, refusals.COUNT, EBUSY, mfn, L1, address, old, entry)
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
    _, _, type_count, ref_count, _ = hv.frames.columns
    mfn = (entry & FRAME_MASK) >> 12
    if entry & RW:
        type_count[mfn] -= 1
    count = ref_count[mfn] - 1
    ref_count[mfn] = count
    if not count:
        free_frame(hv, mfn)


def get_table(
    domain: Domain,
    entry: int,
    child: int,
    parent: int,
    index: int,
    pae_xen_l2: int = 0,
    vcpu: Vcpu | None = None,
    partial: int = -1,
) -> int:
    """Take the references of a present entry of a higher table: to the frame, as a table of the type `child`.

    `parent` is the table's frame, `index` the entry's slot in it. 0, -EINVAL, or -ERESTART if there is a `vcpu`.
    `partial`: -1 for a new entry; else the parent is being promoted, and keeps the reference to a child that stays
    PARTIAL; PARTIAL_SET: it has that reference already.
    """
    frames = domain.hv.frames
    mfn = (entry & FRAME_MASK) >> 12
    address = (parent << 12) + 8 * index
    disallow = PAE_L3_DISALLOW if child == L2 and domain.width == 32 else TABLE_DISALLOW
    if entry & disallow:
        return refuse(domain, refusals.BAD_FLAGS, EINVAL, mfn, child + 1, address, 0, entry)
    if mfn >= frames.count or frames.owner[mfn] != domain.id:
        return refuse(domain, refusals.NOT_OWNER, EINVAL, mfn, child + 1, address, 0, entry)
    held = partial == PARTIAL_SET
    if frames.type_count[mfn] and (frames.type[mfn] != child or frames.flags[mfn] & PAE_XEN_L2 != pae_xen_l2):
        if frames.type[mfn] == child + 1 and not pae_xen_l2 and _get_linear(domain, entry, child + 1, mfn, parent):
            if held:
                put_page(domain.hv, mfn)
            return 0
        rule = refusals.LINEAR if frames.type[mfn] == child + 1 else refusals.WRONG_TYPE
        return refuse(domain, rule, EINVAL, mfn, child + 1, address, 0, entry)
    if not held:
        if frames.ref_count[mfn] >= MOST_REFERENCES:
            return refuse(domain, refusals.COUNT, EINVAL, mfn, child + 1, address, 0, entry)
        frames.ref_count[mfn] += 1
    error = get_page_type(domain, mfn, child, pae_xen_l2, vcpu)
    kept = held or (error == -ERESTART and partial >= 0) or (vcpu is not None and vcpu.old_guest_table == mfn)
    if error and not kept:
        put_page(domain.hv, mfn)
    return error


_MOST_LINEAR_USES = -(1 << 15)
"""The count is a signed 16-bit word, as on Xen (linear_pt_count)."""


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
    if frames.linear[mfn] == _MOST_LINEAR_USES or frames.type_count[mfn] == MOST_USES:
        return False
    if frames.ref_count[mfn] >= MOST_REFERENCES:
        return False
    frames.linear[parent] += 1
    frames.linear[mfn] -= 1
    frames.type_count[mfn] += 1
    frames.ref_count[mfn] += 1
    return True


def put_table(domain: Domain, entry: int, parent: int, vcpu: Vcpu | None = None) -> None:
    """Drop the references of an entry of a higher table, if it was present.

    With a `vcpu`, what is preempted of it is left to `put_old_guest_table`.
    """
    mfn = (entry & FRAME_MASK) >> 12
    if entry & PRESENT and mfn != parent:
        if put_page_type(domain, mfn, parent, vcpu):
            assert vcpu is not None  # only then can it be preempted
            vcpu.old_guest_table = mfn
        else:
            put_page(domain.hv, mfn)
