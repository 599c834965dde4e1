"""Direct paging: every change that a guest makes to its page tables (Xen: arch/x86/mm.c).

The guest's tables are those that the processor walks. `mod_l1_entry` to `mod_l4_entry` check one new entry, write it
and move the references; the hypercalls `update_va_mapping`, here, and `mmu_update` (mmu_update.py) and the emulation
of writes (ro_page_fault.py) all come down to them. What an entry may refer to is page_type.py's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import BYTES_PER_NS, COST_PAGE_TABLE_UPDATE
from xentui.engine.x86.paging import ACCESSED, AVAILABLE, DIRTY, FRAME_MASK, GLOBAL, NX, PRESENT, RW, USER
from xentui.engine.xen import descriptor_tables, guest_access, refusals, unchecked
from xentui.engine.xen.abi.arch_x86_64 import HYPERVISOR_VIRT_END
from xentui.engine.xen.abi.core import (
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    UVMF_ALL,
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    VMASST_TYPE_m2p_strict,
)
from xentui.engine.xen.abi.errno import EFAULT, EINVAL, EPERM, ESRCH
from xentui.engine.xen.continuation import ERESTART
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.page import (
    L1,
    L2,
    L3,
    L4,
    MOST_REFERENCES,
    PAE_XEN_L2,
    PINNED,
    WRITABLE,
)
from xentui.engine.xen.page_type import (
    get_page_and_type,
    get_page_from_l1e,
    get_table,
    put_old_guest_table,
    put_page_and_type,
    put_page_from_l1e,
    put_table,
    refuse,
)
from xentui.engine.xen.pte import (
    COMPAT_L2_FIRST,
    GUEST_KERNEL,
    L1_DISALLOW,
    M2P_SLOT,
    PAE_L3_DISALLOW,
    TABLE_DISALLOW,
    XEN_L4_FIRST,
    XEN_L4_LAST,
)

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

AVAILABLE_HIGH = 0x7FF << 52
_UNCHECKED = NX | AVAILABLE_HIGH | AVAILABLE | GLOBAL | DIRTY | ACCESSED | USER
L1_CHECKED = ((1 << 64) - 1) & ~_UNCHECKED
"""Bits of an entry whose change needs validation (Xen: the complement of FASTPATH_FLAG_WHITELIST)."""

CONTROL_DOMAIN = 0
"""It exists, though it has no frames here."""

_MASK32 = (1 << 32) - 1
_UPDATE_BYTES = COST_PAGE_TABLE_UPDATE * BYTES_PER_NS


# --- one entry -----------------------------------------------------------------------------------------------------


def mod_l1_entry(vcpu: Vcpu, index: int, new: int, preserve_ad: bool = False) -> int:
    """Write `new` to the L1 entry at word `index` of machine memory; 0 or a negative error."""
    domain = vcpu.domain
    hv = domain.hv
    ram64 = hv.ram64
    old = ram64[index]
    if index in domain.lazy_nx:
        domain.lazy_nx.discard(index)  # its NX is the guest's own from now on
    if not new & PRESENT:
        ram64[index] = new | old & (ACCESSED | DIRTY) if preserve_ad else new
    else:
        if new & L1_DISALLOW:
            mfn = (new & FRAME_MASK) >> 12
            return refuse(domain, refusals.BAD_FLAGS, EINVAL, mfn, L1, index << 3, old, new)
        if domain.width == 64:
            if not new & USER:
                new |= GUEST_KERNEL | USER
            elif not new & GUEST_KERNEL:
                new |= GLOBAL
        if not (old ^ new) & L1_CHECKED:
            ram64[index] = new | old & (ACCESSED | DIRTY) if preserve_ad else new
            return 0
        # nearly always: a frame of the domain's own, read-only or writable already, in place of another that has more
        # uses; get_page_from_l1e and put_page_from_l1e do the rest
        frames = hv.frames
        owner, types, type_count, ref_count, _ = frames.columns
        mfn = (new & FRAME_MASK) >> 12
        fine = mfn < frames.count and owner[mfn] == domain.id and (not new & RW or types[mfn] == WRITABLE)
        if fine and ref_count[mfn] < MOST_REFERENCES:
            if new & RW:
                type_count[mfn] += 1
            ref_count[mfn] += 1
            mfn = (old & FRAME_MASK) >> 12
            if old & PRESENT and ref_count[mfn] > 1:
                ram64[index] = new | old & (ACCESSED | DIRTY) if preserve_ad else new
                if old & RW:
                    type_count[mfn] -= 1
                ref_count[mfn] -= 1
                return 0
        else:
            error = get_page_from_l1e(domain, new, index << 3, old)
            if error:
                return error
        ram64[index] = new | old & (ACCESSED | DIRTY) if preserve_ad else new
    if old & PRESENT:
        put_page_from_l1e(hv, old)
    return 0


def mod_l2_entry(vcpu: Vcpu, index: int, new: int, preserve_ad: bool = False) -> int:
    """The same for an L2 entry. The upper part of a PAE guest's fourth L2 is the hypervisor's."""
    domain = vcpu.domain
    mfn, slot = index >> 9, index & 511
    if slot >= COMPAT_L2_FIRST and domain.hv.frames.flags[mfn] & PAE_XEN_L2:
        return refuse(domain, refusals.XEN_SLOT, EPERM, mfn, L2, index << 3, domain.hv.ram64[index], new)
    return _mod_table(vcpu, index, new, preserve_ad, L2, USER if domain.width == 64 else 0, TABLE_DISALLOW)


def mod_l3_entry(vcpu: Vcpu, index: int, new: int, preserve_ad: bool = False) -> int:
    """The same for an L3 entry. A PAE guest changes the first three only."""
    domain = vcpu.domain
    if domain.width == 64:
        return _mod_table(vcpu, index, new, preserve_ad, L3, USER, TABLE_DISALLOW)
    if index & 511 >= 3:
        return refuse(domain, refusals.PAE_L3_SLOT, EINVAL, index >> 9, L3, index << 3, domain.hv.ram64[index], new)
    return _mod_table(vcpu, index, new, preserve_ad, L3, USER | RW, PAE_L3_DISALLOW)


def mod_l4_entry(vcpu: Vcpu, index: int, new: int, preserve_ad: bool = False) -> int:
    """The same for an L4 entry of a 64-bit guest; slots 256 to 271 are the hypervisor's."""
    domain = vcpu.domain
    if XEN_L4_FIRST <= index & 511 <= XEN_L4_LAST:
        return refuse(domain, refusals.XEN_SLOT, EINVAL, index >> 9, L4, index << 3, domain.hv.ram64[index], new)
    return _mod_table(vcpu, index, new, preserve_ad, L4, USER | ACCESSED, TABLE_DISALLOW)


def _mod_table(vcpu: Vcpu, index: int, new: int, preserve_ad: bool, level: int, adjust: int, disallow: int) -> int:
    """Write an entry of an L2 to L4. A change of what was present flushes, as Xen's linear mapping needs it.

    -ERESTART: the promotion of what it refers to has been preempted, and nothing is written yet. The old table may be
    left to `put_old_guest_table`.
    """
    domain = vcpu.domain
    ram64 = domain.hv.ram64
    old = ram64[index]
    if new & PRESENT:
        if new & disallow:
            mfn = (new & FRAME_MASK) >> 12
            return refuse(domain, refusals.BAD_FLAGS, EINVAL, mfn, level, index << 3, old, new)
        new |= adjust
        if not (old ^ new) & L1_CHECKED:
            ram64[index] = new | old & (ACCESSED | DIRTY) if preserve_ad else new
            domain.flush_tlb()
            return 0
        error = get_table(domain, new, level - 1, index >> 9, index & 511, 0, vcpu)
        if error:
            return error
    ram64[index] = new | old & (ACCESSED | DIRTY) if preserve_ad else new
    if old & PRESENT:
        put_table(domain, old, index >> 9, vcpu)
        domain.flush_tlb()
    return 0


MOD_ENTRY = {L1: mod_l1_entry, L2: mod_l2_entry, L3: mod_l3_entry, L4: mod_l4_entry}


# --- update_va_mapping ---------------------------------------------------------------------------------------------


def do_update_va_mapping(vcpu: Vcpu, va: int, b: int, c: int, d: int) -> int:
    """Write the L1 entry that maps `va`, and flush as asked.

    64-bit guests pass (va, value, flags); 32-bit ones (va, low half, high half, flags).
    """
    if vcpu.width == 32:
        return _update_va_mapping(vcpu, va, b | c << 32, d & _MASK32)
    space, page = vcpu.space, va >> 12
    table = space.tables.get(va >> 21)
    if table is None or c != UVMF_INVLPG:
        return _update_va_mapping(vcpu, va, b, c)
    processor = vcpu.processor
    processor.budget[0] -= _UPDATE_BYTES  # as ExactClock.charge does; the fast pace does not look at it
    error = mod_l1_entry(vcpu, table + (page & 511), b)
    if error:
        return refusals.record(vcpu, error)
    space.reads.pop(page, None)
    space.writes.pop(page, None)
    processor.flush_page(va)
    return 0


def do_update_va_mapping_otherdomain(vcpu: Vcpu, va: int, b: int, c: int, d: int, e: int) -> int:
    """The same for a frame of another domain, which 64-bit guests name in `d` and 32-bit ones in `e`."""
    permission = page_owner(vcpu, (d if vcpu.width == 64 else e) & 0xFFFF)
    return permission or do_update_va_mapping(vcpu, va, b, c, d)


def _update_va_mapping(vcpu: Vcpu, va: int, value: int, flags: int) -> int:
    vcpu.hv.clock.charge(COST_PAGE_TABLE_UPDATE)
    table = l1_table(vcpu, va)
    if table < 0:
        return refusals.record(vcpu, refuse(vcpu.domain, refusals.NO_TABLE, EINVAL, 0, L1, va, 0, value))
    modify = mod_l1_entry if vcpu.domain.validated else unchecked.mod_l1_entry
    error = modify(vcpu, table + (va >> 12 & 511), value)
    if error:
        return refusals.record(vcpu, error)
    flush = flags & UVMF_FLUSHTYPE_MASK
    return _flush_va(vcpu, va, flush, flags & ~UVMF_FLUSHTYPE_MASK) if flush else 0


def l1_table(vcpu: Vcpu, va: int) -> int:
    """Index in `ram64` of the L1 table that maps `va`, the guest's own; -1 where there is none."""
    space = vcpu.space
    known = space.tables.get(va >> 21)
    if known is not None:
        return known
    if 1 << 47 <= va < HYPERVISOR_VIRT_END:
        return -1
    index = space.entry_at(va, 2)
    entry = space.ram64[index] if index >= 0 else 0
    mfn = (entry & FRAME_MASK) >> 12
    frames = vcpu.hv.frames
    if not entry & PRESENT or frames.owner[mfn] != vcpu.domain.id or frames.type[mfn] != L1:
        return -1
    if not frames.type_count[mfn]:
        return -1
    if vcpu.domain.validated:
        space.tables[va >> 21] = mfn << 9
    return mfn << 9


def _flush_va(vcpu: Vcpu, va: int, kind: int, where: int) -> int:
    """Flush what update_va_mapping asks for; `where`: this vCPU (0), all (UVMF_ALL), or a pointer to a bitmap."""
    targets = [vcpu]
    if where == UVMF_ALL:
        targets = vcpu.domain.vcpus
    elif where:
        try:
            targets = vcpus_of_bitmap(vcpu, where)
        except guest_access.GuestFault:
            return -EFAULT
    for target in targets:
        if kind == UVMF_INVLPG:
            target.flush_page(va)
        elif kind == UVMF_TLB_FLUSH:
            target.flush_tlb()
    return 0


def vcpus_of_bitmap(vcpu: Vcpu, bitmap: int) -> list[Vcpu]:
    """The vCPUs whose bits are set in a bitmap of the guest's, in words of its size; raises GuestFault."""
    vcpus = vcpu.domain.vcpus
    size = vcpu.domain.long_size
    words = -(-len(vcpus) // (8 * size))
    bits = int.from_bytes(guest_access.read(vcpu, bitmap, words * size), "little")
    return [target for target in vcpus if bits >> target.id & 1]


def page_owner(vcpu: Vcpu, domid: int) -> int:
    """Whose frames a hypercall speaks of: 0 for the caller's own, -ESRCH, or -EPERM for another's.

    No domain here has power over another, as no domU has (Xen: get_pg_owner and xsm_default_action).
    """
    if domid == DOMID_SELF:
        return 0
    if domid == vcpu.domain.id:
        return -ESRCH  # Xen: "Cannot specify itself as foreign domain"
    if domid in (DOMID_IO, DOMID_XEN, CONTROL_DOMAIN) or domid in vcpu.hv.domains:
        return -EPERM
    return -ESRCH


# --- base pointers -------------------------------------------------------------------------------------------------


def switch_root(vcpu: Vcpu) -> None:
    """Walk the vCPU's page tables from now on: its own L4, or the hypervisor's above a PAE guest's L3."""
    if vcpu.width == 32:
        root = vcpu.monitor_table << 12
    else:
        root = (vcpu.guest_table if vcpu.kernel_mode else vcpu.guest_table_user) << 12
    vcpu.space.switch(root)
    if vcpu.processor.vcpu is vcpu:
        vcpu.processor.load_cr3(root)


def new_guest_cr3(vcpu: Vcpu, mfn: int, by: Vcpu | None = None) -> int:
    """Make a frame the kernel's top-level page table (MMUEXT_NEW_BASEPTR, mov to CR3); 0, -EINVAL or -ERESTART.

    A PAE guest's L3 goes into slot 0 of the hypervisor's L4, which then counts as its use (Xen: new_guest_cr3).
    `by`: who asks, in a hypercall that can go on later.
    """
    if by is not None and put_old_guest_table(by):
        return -ERESTART
    old = vcpu.guest_table
    if old != mfn:
        error = get_page_and_type(vcpu.domain, mfn, L3 if vcpu.width == 32 else L4, by)
        if error:
            return error if error == -ERESTART else refusals.record(vcpu, error)
        vcpu.guest_table = mfn
        if vcpu.width == 32:
            vcpu.hv.ram64[vcpu.monitor_table << 9] = mfn << 12 | PRESENT | RW | USER | ACCESSED
        if old != NO_FRAME:
            put_page_and_type(vcpu.domain, old, by)
    if vcpu.width == 64 and not _m2p_strict(vcpu.domain):
        vcpu.hv.ram64[(mfn << 9) + M2P_SLOT] = vcpu.hv.xen_l4_slots.get(M2P_SLOT, 0)
    if vcpu.ldt_entries:
        descriptor_tables.destroy_ldt(vcpu)
    switch_root(vcpu)
    return 0


def new_user_cr3(vcpu: Vcpu, mfn: int, by: Vcpu | None = None) -> int:
    """Make a frame the L4 of a 64-bit guest's user mode (MMUEXT_NEW_USER_BASEPTR); 0 means none. As `new_guest_cr3`."""
    if by is not None and put_old_guest_table(by):
        return -ERESTART
    old = vcpu.guest_table_user
    if mfn == old or (mfn == 0 and old == NO_FRAME):
        return 0
    if mfn:
        error = get_page_and_type(vcpu.domain, mfn, L4, by)
        if error:
            return error if error == -ERESTART else refusals.record(vcpu, error)
        if _m2p_strict(vcpu.domain):
            vcpu.hv.ram64[(mfn << 9) + M2P_SLOT] = 0
    vcpu.guest_table_user = mfn or NO_FRAME
    if old != NO_FRAME:
        put_page_and_type(vcpu.domain, old, by)
    return 0


def _m2p_strict(domain: Domain) -> int:
    return domain.vm_assist >> VMASST_TYPE_m2p_strict & 1


# --- a domain's beginning ------------------------------------------------------------------------------------------


def validate_initial_tables(domain: Domain, vcpu: Vcpu, top_mfn: int) -> None:
    """Promote the page tables that the domain builder has written, pin them, and make them the vCPU's.

    The pin is the guest's to drop, as after real Xen's toolstack. Raises ValueError if the builder's tables break a
    rule: a fault of the builder's.
    """
    level = L3 if domain.width == 32 else L4
    error = get_page_and_type(domain, top_mfn, level)
    if error:
        refusal = domain.hv.frames.refusal
        reason = f"{refusals.explain(refusal[0])}; {refusal}" if refusal else f"error {error}"
        raise ValueError(f"d{domain.id}'s initial page tables are not valid: {reason}")
    domain.hv.frames.flags[top_mfn] |= PINNED
    error = new_guest_cr3(vcpu, top_mfn)
    if error:
        raise ValueError(f"d{domain.id}'s initial base pointer was refused: error {error}")
