"""Recompute the frame table from nothing, by walking every page table of every domain, and compare.

What it finds is a fault of the hypervisor's, whatever the guests did; the tests run it after every operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.x86.paging import FRAME_MASK, GLOBAL, PRESENT, RW, USER
from xentui.engine.xen.abi.grant_table import GNTMAP_readonly
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.grant_map import held_by_handle
from xentui.engine.xen.page import (
    ALLOCATED,
    DOMID_INVALID,
    DOMID_XEN,
    L1,
    L2,
    L3,
    L4,
    NEEDS_SCRUB,
    NONE,
    PAE_XEN_L2,
    PARTIAL,
    PARTIAL_SET,
    PINNED,
    SEG,
    SHARED,
    SHARED_RW,
    VALIDATED,
    WRITABLE,
    type_name,
)
from xentui.engine.xen.pte import (
    COMPAT_L2_FIRST,
    GUEST_KERNEL,
    L1_DISALLOW,
    PAE_L3_DISALLOW,
    PERDOMAIN_SLOT,
    TABLE_DISALLOW,
    XEN_L4_FIRST,
    XEN_L4_LAST,
)

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain
    from xentui.engine.xen.hypervisor import Hypervisor


class _Counts:
    """What the walk finds: uses of each frame, uses of its type, and what is wrong with single entries."""

    def __init__(self, frames: int) -> None:
        import numpy

        self.references: Any = numpy.zeros(frames, "int64")
        self.type_uses: Any = numpy.zeros(frames, "int64")
        self.linear: Any = numpy.zeros(frames, "int64")
        self.problems: list[str] = []


def audit(hv: Hypervisor) -> list[str]:
    """Everything in the frame table that the page tables do not bear out, a line each; empty if all is well.

    Of domains without the validator nothing is asked.
    """
    import numpy

    frames = hv.frames
    found = _Counts(frames.count)
    kinds, flags = frames.array("type"), frames.array("flags")
    pinned = flags & PINNED != 0
    found.references += (flags & ALLOCATED != 0).astype("int64") + pinned
    found.references[0] = 1
    found.type_uses += pinned.astype("int64") + (kinds == SHARED) * (flags & ALLOCATED != 0)
    checked = numpy.isin(frames.array("owner"), [d.id for d in hv.domains.values() if not d.validated], invert=True)
    validated = checked & (flags & VALIDATED != 0)
    _walk_l1_tables(hv, (validated & (kinds == L1)).nonzero()[0], found)
    partial = checked & (flags & PARTIAL != 0)
    found.references += partial
    found.type_uses += partial
    for mfn in ((validated | partial) & (kinds >= L2) & (kinds <= L4)).nonzero()[0].tolist():
        _walk_table(hv, mfn, found)
    for domain in hv.domains.values():
        if domain.validated:
            _count_vcpus(domain, found)
        _count_grants(domain, found)
    for mfn in _doubtful(hv, found):
        if checked[mfn]:
            _compare(hv, mfn, found)
    return found.problems


def _use(found: _Counts, mfn: int) -> None:
    found.references[mfn] += 1
    found.type_uses[mfn] += 1


def _count_vcpus(domain: Domain, found: _Counts) -> None:
    """Uses that vCPUs make: base pointers, descriptor tables, vcpu_info and event queues in the guest's own memory."""
    hv = domain.hv
    for mfn in domain.event_frames:
        _use(found, mfn)
    for vcpu in domain.vcpus:
        if vcpu.old_guest_table != NO_FRAME:
            found.references[vcpu.old_guest_table] += 1
        for top, level in ((vcpu.guest_table, L3 if vcpu.width == 32 else L4), (vcpu.guest_table_user, L4)):
            if top != NO_FRAME:
                _use(found, top)
                if hv.frames.type[top] != level:
                    found.problems.append(f"{vcpu.name}'s base pointer: {hv.frames.describe(top)}, not L{level}")
        for mfn in vcpu.gdt_frames:
            _use(found, mfn)
        if vcpu.info_frame not in (NO_FRAME, domain.shared_info_frame):
            _use(found, vcpu.info_frame)
    for window in domain.gdt_window:
        for index in range(window << 9, (window + 1) << 9):
            entry = hv.ram64[index]
            if entry & PRESENT and index & 31 >= 16:
                _use(found, (entry & FRAME_MASK) >> 12)


def _count_grants(domain: Domain, found: _Counts) -> None:
    """Uses that a domain's mappings of granted frames make beyond the entries of its page tables."""
    for mapping in domain.grants.maptrack.mappings.values():
        frame = mapping.granter.grants.active[mapping.reference].frame
        times = held_by_handle(domain, mapping.flags)
        found.references[frame] += times
        if not mapping.flags & GNTMAP_readonly:
            found.type_uses[frame] += times


def _walk_l1_tables(hv: Hypervisor, tables: Any, found: _Counts) -> None:
    """Count what all validated L1 tables refer to, and check their entries; `tables`: their frames, an array."""
    import numpy

    frames = hv.frames
    entries = numpy.frombuffer(hv.ram, "<u8").reshape(-1, 512)[tables]
    table, slots = (entries & PRESENT).nonzero()
    entries = entries[table, slots]
    targets = (entries & FRAME_MASK) >> 12
    memory = targets < frames.count
    counted, writable = targets[memory].astype("int64"), entries[memory] & RW != 0
    found.references += numpy.bincount(counted, minlength=frames.count)
    found.type_uses += numpy.bincount(counted[writable], minlength=frames.count)
    owner, kind, flags = (frames.array(column)[counted] for column in ("owner", "type", "flags"))
    may_write = (kind == WRITABLE) | (kind == SHARED) & (flags & SHARED_RW != 0)
    wrong = ~memory | (entries & L1_DISALLOW != 0) | (entries & USER == 0) | (entries & (GUEST_KERNEL | GLOBAL) == 0)
    wrong[memory] |= (owner == DOMID_XEN) | (owner == DOMID_INVALID) | writable & ~may_write
    for number in wrong.nonzero()[0].tolist():
        mfn, slot, entry = int(tables[table[number]]), int(slots[number]), int(entries[number])
        domain = hv.domains.get(frames.owner[mfn])
        problem = _l1_problem(hv, domain, entry) if domain else f"a page table without a domain: {frames.describe(mfn)}"
        if problem:
            found.problems.append(f"L1 {mfn:#x} slot {slot}, entry {entry:#x}: {problem}")


def _l1_problem(hv: Hypervisor, domain: Domain, entry: int) -> str:
    """What is wrong with a present L1 entry of a domain's, or nothing."""
    frames = hv.frames
    target = (entry & FRAME_MASK) >> 12
    if target >= frames.count:
        return "maps what is no memory"
    kind = frames.type[target]
    if frames.owner[target] in (DOMID_XEN, DOMID_INVALID):
        return f"maps {frames.describe(target)}"
    if entry & RW and kind != WRITABLE and not (kind == SHARED and frames.flags[target] & SHARED_RW):
        return f"maps writable {frames.describe(target)}"
    if entry & L1_DISALLOW:
        return "has forbidden flags"
    if domain.width == 64 and (not entry & USER or not entry & (GUEST_KERNEL | GLOBAL)):
        return "lacks the bits that the hypervisor sets"
    return ""


def _walk_table(hv: Hypervisor, mfn: int, found: _Counts) -> None:
    """Count what one validated page table above the L1s refers to, and check its entries."""
    frames = hv.frames
    level = frames.type[mfn]
    domain = hv.domains.get(frames.owner[mfn])
    if domain is None:
        found.problems.append(f"a page table without a domain: {frames.describe(mfn)}")
        return
    flags, end = frames.flags[mfn], 512
    if flags & PARTIAL:
        # of a table that is on its way to be one or back, the first entries are in use, and perhaps half of one more
        end = frames.nr_validated[mfn]
        if flags & PARTIAL_SET:
            found.references[(hv.ram64[(mfn << 9) + end] & FRAME_MASK) >> 12] += 1
    for slot, entry in enumerate(hv.ram64[mfn << 9 : (mfn << 9) + end].tolist()):
        if flags & PARTIAL and _is_xen_slot(flags, level, slot):
            continue
        if _is_xen_slot(frames.flags[mfn], level, slot):
            _check_xen_slot(hv, domain, mfn, level, slot, entry, found)
        elif entry & PRESENT:
            problem = _count_entry(hv, domain, mfn, level, slot, entry, found)
            if problem:
                found.problems.append(f"L{level} {mfn:#x} slot {slot}, entry {entry:#x}: {problem}")


def _is_xen_slot(flags: int, level: int, slot: int) -> bool:
    if level == L4:
        return XEN_L4_FIRST <= slot <= XEN_L4_LAST
    return level == L2 and bool(flags & PAE_XEN_L2) and slot >= COMPAT_L2_FIRST


def _check_xen_slot(
    hv: Hypervisor, domain: Domain, mfn: int, level: int, slot: int, entry: int, found: _Counts
) -> None:
    """The hypervisor's slots hold its own entries or nothing."""
    own = (hv.xen_l4_slots if level == L4 else hv.compat_l2_slots).get(slot, 0)
    target = (entry & FRAME_MASK) >> 12
    if (
        entry
        and entry & ~0x60 != own & ~0x60
        and not (level == L4 and slot == PERDOMAIN_SLOT and target == domain.perdomain_l3 and not entry & USER)
    ):
        found.problems.append(f"L{level} {mfn:#x} slot {slot} is the hypervisor's and holds {entry:#x}")


def _count_entry(hv: Hypervisor, domain: Domain, mfn: int, level: int, slot: int, entry: int, found: _Counts) -> str:
    """Count one present entry; what is wrong with it, or nothing."""
    frames = hv.frames
    target = (entry & FRAME_MASK) >> 12
    if target >= frames.count:
        return "maps what is no memory"
    owner, kind = frames.owner[target], frames.type[target]
    if entry & (PAE_L3_DISALLOW if level == L3 and domain.width == 32 else TABLE_DISALLOW):
        return "has forbidden flags"
    if owner != domain.id:
        return f"refers to {frames.describe(target)}"
    if kind == level:
        if entry & RW:
            return "is a linear page table, and writable"
        if target != mfn:
            _use(found, target)
            found.linear[mfn] += 1
            found.linear[target] -= 1
        return ""
    _use(found, target)
    pae = PAE_XEN_L2 if domain.width == 32 and level == L3 and slot == 3 else 0
    if kind != level - 1 or frames.flags[target] & PAE_XEN_L2 != pae or not frames.flags[target] & VALIDATED:
        return f"refers to {frames.describe(target)}"
    return ""


def _doubtful(hv: Hypervisor, found: _Counts) -> list[int]:
    """The frames whose rows `_compare` has to look at: where a count differs, or flags that call for more."""
    frames = hv.frames
    owner, kind, flags, uses = (frames.array(column) for column in ("owner", "type", "flags", "type_count"))
    doubt = (frames.array("ref_count") != found.references) | (uses != found.type_uses)
    doubt |= (kind >= L1) & (kind <= SEG) | (flags & (PINNED | PARTIAL) != 0)
    nobodys = (owner == DOMID_XEN) | (owner == DOMID_INVALID)
    doubt |= nobodys & ((kind != NONE) | (flags & (0xFF ^ (ALLOCATED | NEEDS_SCRUB)) != 0))
    doubt |= (owner == DOMID_INVALID) & (frames.array("ref_count") != 0)
    rows: list[int] = doubt.nonzero()[0].tolist()
    return rows


def _compare(hv: Hypervisor, mfn: int, found: _Counts) -> None:
    """One frame's row against what the walk has found."""
    frames = hv.frames
    problems, what = found.problems, frames.describe(mfn)
    kind, flags, owner = frames.type[mfn], frames.flags[mfn], frames.owner[mfn]
    if frames.ref_count[mfn] != found.references[mfn]:
        problems.append(f"{what}: the walk finds {found.references[mfn]} references")
    if frames.type_count[mfn] != found.type_uses[mfn]:
        problems.append(f"{what}: the walk finds {found.type_uses[mfn]} uses as {type_name(kind, flags)}")
    if flags & PARTIAL and (kind not in (L2, L3, L4) or flags & VALIDATED or frames.type_count[mfn] != 1):
        problems.append(f"{what}: partially validated")
    elif kind in (L1, L2, L3, L4) and bool(flags & (VALIDATED | PARTIAL)) != (frames.type_count[mfn] > 0):
        problems.append(f"{what}: validated is {bool(flags & VALIDATED)}")
    if kind in (L1, L2, L3, L4) and flags & (VALIDATED | PARTIAL) and frames.linear[mfn] != found.linear[mfn]:
        problems.append(f"{what}: linear count {frames.linear[mfn]}, the walk finds {found.linear[mfn]}")
    if flags & PINNED and kind not in (L1, L2, L3, L4):
        problems.append(f"{what}: pinned")
    if owner in (DOMID_XEN, DOMID_INVALID) and (kind != NONE or flags & ~(ALLOCATED | NEEDS_SCRUB)):
        problems.append(f"{what}: has a type or flags")
    if owner == DOMID_INVALID and frames.ref_count[mfn]:
        problems.append(f"{what}: free, with references")
    if kind == SEG and frames.type_count[mfn] and not flags & VALIDATED:
        problems.append(f"{what}: descriptors in use, not validated")
