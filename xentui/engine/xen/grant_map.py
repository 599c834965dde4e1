"""Mapping what others grant, and unmapping it (Xen: common/grant_table.c, pv/grant_table.c).

The hypervisor writes the page-table entry itself, for a frame that the domain could not put there: another's. The
references that the entry stands for go the way of all entries', so that a guest that overwrites the entry gives them
back, and is left with a handle whose mapping it can no longer name; only its end frees that. A device mapping, and
any of a domain without the validator, has no entry: its references are the handle's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xentui.engine.x86.paging import ACCESSED, DIRTY, FRAME_MASK, NX, PAGE_SHIFT, PRESENT, RW, USER
from xentui.engine.x86.state import MASK32
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi import grant_table as abi
from xentui.engine.xen.abi.arch_x86_64 import HYPERVISOR_VIRT_END
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.grant_entries import (
    CONTROL_DOMAIN,
    DEVICE_READ,
    DEVICE_WRITE,
    HOST_READ,
    HOST_WRITE,
    Mapping,
)
from xentui.engine.xen.grant_setup import put_status, record
from xentui.engine.xen.page import L1, VALIDATED, WRITABLE
from xentui.engine.xen.page_type import get_page, get_page_type, put_page, put_page_from_l1e, put_page_type
from xentui.engine.xen.pte import adjust_l1

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xentui.engine.xen.domain import Domain, Vcpu

_KINDS = abi.GNTMAP_device_map | abi.GNTMAP_host_map
UNMAP_BATCH = 32
"""GNTTAB_UNMAP_BATCH_SIZE: unmapped, then the translations flushed, then the frames let go."""
_AVAILABLE_SHIFT = 16 - 9
"""From GNTMAP_guest_avail0, bit 16 of the flags, to the first of an entry's three available bits."""


# --- references ----------------------------------------------------------------------------------------------------


def use_of(flags: int) -> int:
    """The counters of an active entry that a mapping with these GNTMAP_* flags takes part in."""
    readonly = flags & abi.GNTMAP_readonly
    use = 0
    if flags & abi.GNTMAP_device_map:
        use += DEVICE_READ if readonly else DEVICE_WRITE
    if flags & abi.GNTMAP_host_map:
        use += HOST_READ if readonly else HOST_WRITE
    return use


def _get(granter: Domain, frame: int, flags: int) -> bool:
    """Take the references of one kind of mapping: to the frame and, where it may be written, to it as WRITABLE."""
    if not get_page(granter, frame):
        return False
    if granter.validated and not flags & abi.GNTMAP_readonly and get_page_type(granter, frame, WRITABLE):
        put_page(granter.hv, frame)
        return False
    return True


def _put(granter: Domain, frame: int, flags: int) -> None:
    """Drop them."""
    if granter.validated and not flags & abi.GNTMAP_readonly:
        put_page_type(granter, frame)
    put_page(granter.hv, frame)


def held_by_handle(domain: Domain, flags: int) -> int:
    """How many times a mapping of the domain's holds its references without an entry of a validated page table."""
    device = bool(flags & abi.GNTMAP_device_map)
    return device + (bool(flags & abi.GNTMAP_host_map) and not domain.validated)


# --- page-table entries --------------------------------------------------------------------------------------------


def _entry(vcpu: Vcpu, frame: int, flags: int) -> int:
    """The L1 entry of a host mapping: never executable, and the kernel's alone unless for an application."""
    entry = frame << PAGE_SHIFT | PRESENT | ACCESSED | DIRTY | NX
    if flags & abi.GNTMAP_application_map:
        entry |= USER
    if not flags & abi.GNTMAP_readonly:
        entry |= RW
    entry |= flags >> _AVAILABLE_SHIFT & 0xE00
    return adjust_l1(entry) if vcpu.width == 64 else entry


def _find_entry(vcpu: Vcpu, where: int, contains_pte: bool) -> int:
    """Index in `ram64` of the guest's L1 entry: `where` is its machine address, or what it maps; -1 if it is none."""
    frames = vcpu.hv.frames
    if contains_pte:
        if where & 7:
            return -1  # parts of two entries (XSA-227)
        index = where >> 3
    else:
        if 1 << 47 <= where < HYPERVISOR_VIRT_END or (vcpu.width == 32 and where >> 32):
            return -1
        index = vcpu.space.entry_at(where)
    mfn = index >> 9
    if not 0 <= mfn < frames.count or frames.owner[mfn] != vcpu.domain.id or frames.type[mfn] != L1:
        return -1
    return index if frames.type_count[mfn] and frames.flags[mfn] & VALIDATED else -1


def _write_entry(vcpu: Vcpu, index: int, entry: int) -> int:
    """Write an L1 entry; what it held before."""
    domain, ram64 = vcpu.domain, vcpu.hv.ram64
    domain.lazy_nx.discard(index)
    old = ram64[index]
    ram64[index] = entry
    return old


def _put_old(vcpu: Vcpu, entry: int) -> None:
    """An entry has been overwritten: what it referred to is used once less."""
    if entry & PRESENT and vcpu.domain.validated:
        put_page_from_l1e(vcpu.hv, entry)


def _create(vcpu: Vcpu, where: int, frame: int, flags: int) -> bool:
    """Write the entry of a host mapping (Xen: create_grant_pv_mapping)."""
    index = _find_entry(vcpu, where, bool(flags & abi.GNTMAP_contains_pte))
    if index < 0:
        return False
    _put_old(vcpu, _write_entry(vcpu, index, _entry(vcpu, frame, flags)))
    mappers = vcpu.hv.grant_mappers.setdefault(frame, [])
    if vcpu.domain not in mappers:
        mappers.append(vcpu.domain)
    return True


def _replace(vcpu: Vcpu, where: int, frame: int, new_address: int, flags: int) -> bool:
    """Clear the entry of a host mapping, or give it that of another address (Xen: replace_grant_pv_mapping).

    The caller drops the references of the mapping.
    """
    contains_pte = bool(flags & abi.GNTMAP_contains_pte)
    if contains_pte and new_address:
        return False
    if not contains_pte and vcpu.width == 32 and new_address >> 32:
        return False
    stolen = 0
    if new_address:
        source = _find_entry(vcpu, new_address, False)
        if source < 0:
            return False
        stolen = _write_entry(vcpu, source, 0)
    index = _find_entry(vcpu, where, contains_pte)
    if index >= 0:
        old = vcpu.hv.ram64[index]
        writable = 0 if flags & abi.GNTMAP_readonly else RW
        if (old & FRAME_MASK) >> PAGE_SHIFT == frame and old & (PRESENT | RW) == PRESENT | writable:
            _write_entry(vcpu, index, stolen)
            return True
    _put_old(vcpu, stolen)
    return False


# --- map -----------------------------------------------------------------------------------------------------------


def map_grant_ref(vcpu: Vcpu, uop: int) -> None:
    """GNTTABOP_map_grant_ref, one element of its array."""
    layout = LAYOUT64
    where, flags, reference, domid, _, handle, bus = layout.STRUCT_gnttab_map_grant_ref.unpack(
        guest_access.read(vcpu, uop, layout.GNTTAB_MAP_GRANT_REF_SIZE)
    )
    status, frame, taken = _map(vcpu, where, flags, reference, domid)
    if status == abi.GNTST_okay:
        handle, bus = taken, frame << PAGE_SHIFT
    record(vcpu, abi.GNTTABOP_map_grant_ref, reference, frame, domid, flags, status)
    guest_access.write(
        vcpu, uop, layout.STRUCT_gnttab_map_grant_ref.pack(where, flags, reference, domid, status, handle, bus)
    )


def _map(vcpu: Vcpu, where: int, flags: int, reference: int, domid: int) -> tuple[int, int, int]:
    """Map a grant: (GNTST_okay, frame, handle), or (GNTST_*, 0, 0)."""
    domain = vcpu.domain
    if not flags & _KINDS:
        return abi.GNTST_bad_gntref, 0, 0
    granter = vcpu.hv.domains.get(domid)
    if granter is None:
        # the control domain exists, and grants nothing
        return (abi.GNTST_general_error if domid == CONTROL_DOMAIN else abi.GNTST_bad_domain), 0, 0
    track = domain.grants.maptrack
    handle = track.take()
    if handle < 0:
        return abi.GNTST_no_space, 0, 0
    use = use_of(flags)
    status, active = granter.grants.begin(reference, domain.id, use, mapping=True)
    if active is not None:
        if _establish(vcpu, where, flags, granter, active.frame):
            track.mappings[handle] = Mapping(flags & 0xFFFF, granter, reference)
            return abi.GNTST_okay, active.frame, handle
        granter.grants.end(reference, use)
        status = abi.GNTST_general_error
    track.give_back(handle)
    return status, 0, 0


def _establish(vcpu: Vcpu, where: int, flags: int, granter: Domain, frame: int) -> bool:
    """Take the references of the kinds of mapping that `flags` ask for, and write the entry of a host mapping."""
    if flags & abi.GNTMAP_device_map and not _get(granter, frame, flags):
        return False
    if not flags & abi.GNTMAP_host_map:
        return True
    if _get(granter, frame, flags):
        if _create(vcpu, where, frame, flags):
            return True
        _put(granter, frame, flags)
    if flags & abi.GNTMAP_device_map:
        _put(granter, frame, flags)
    return False


# --- unmap ---------------------------------------------------------------------------------------------------------


class _Unmapped(NamedTuple):
    """What has been unmapped, and is let go once the translations are flushed."""

    granter: Domain
    reference: int
    frame: int
    done: int
    """GNTMAP_* flags: the kinds, and `readonly`."""


def unmap_grant_ref(vcpu: Vcpu, uop: int, count: int) -> None:
    """GNTTABOP_unmap_grant_ref, a batch of its array."""
    _unmap_batch(vcpu, uop, count, abi.GNTTABOP_unmap_grant_ref)


def unmap_and_replace(vcpu: Vcpu, uop: int, count: int) -> None:
    """GNTTABOP_unmap_and_replace: the address gets what another address mapped, which then maps nothing."""
    _unmap_batch(vcpu, uop, count, abi.GNTTABOP_unmap_and_replace)


def _unmap_batch(vcpu: Vcpu, uop: int, count: int, operation: int) -> None:
    """Unmap `count` mappings; a fault of the guest's in the middle leaves none of them half done."""
    unmapped: list[_Unmapped] = []
    try:
        for number in range(count):
            _unmap_one(vcpu, uop + number * LAYOUT64.GNTTAB_UNMAP_GRANT_REF_SIZE, operation, unmapped)
    finally:
        vcpu.domain.flush_tlb()
        for what in unmapped:
            _let_go(what)


def _unmap_one(vcpu: Vcpu, uop: int, operation: int, unmapped: list[_Unmapped]) -> None:
    """One element of the array; the two structures differ in what the second word means."""
    layout = LAYOUT64
    where, second, handle, _ = layout.STRUCT_gnttab_unmap_grant_ref.unpack(
        guest_access.read(vcpu, uop, layout.GNTTAB_UNMAP_GRANT_REF_SIZE)
    )
    replace = operation == abi.GNTTABOP_unmap_and_replace
    mapping = vcpu.domain.grants.maptrack.mappings.get(handle)
    if mapping is None:
        status = abi.GNTST_bad_handle
        record(vcpu, operation, MASK32, 0, 0, 0, status)
    else:
        flags, granter = mapping.flags, mapping.granter
        frame = granter.grants.active[mapping.reference].frame
        status = _unmap(vcpu, where, 0 if replace else second, second if replace else 0, handle, frame, unmapped)
        record(vcpu, operation, mapping.reference, frame, granter.id, flags, status)
    put_status(vcpu, uop + layout.GNTTAB_UNMAP_GRANT_REF_status, status)


def _unmap(
    vcpu: Vcpu, where: int, bus_address: int, new_address: int, handle: int, frame: int, unmapped: list[_Unmapped]
) -> int:
    """Undo the kinds of a mapping for which an address is given; GNTST_*. (Xen: unmap_common)"""
    track = vcpu.domain.grants.maptrack
    mapping = track.mappings[handle]
    flags, done = mapping.flags, 0
    device = flags & abi.GNTMAP_device_map if bus_address else 0
    if device and bus_address != frame << PAGE_SHIFT:
        return abi.GNTST_bad_dev_addr
    if where and flags & abi.GNTMAP_host_map:
        if not _replace(vcpu, where, frame, new_address, flags):
            return abi.GNTST_general_error
        done |= abi.GNTMAP_host_map
    done |= device
    if done:
        mapping.flags &= ~done
        unmapped.append(_Unmapped(mapping.granter, mapping.reference, frame, done | flags & abi.GNTMAP_readonly))
    if not mapping.flags & _KINDS:
        del track.mappings[handle]
        track.give_back(handle)
    return abi.GNTST_okay


def _let_go(what: _Unmapped) -> None:
    """Drop the references of what has been unmapped, and end its use of the grant."""
    for kind in (abi.GNTMAP_device_map, abi.GNTMAP_host_map):
        if what.done & kind:
            _put(what.granter, what.frame, what.done)
    what.granter.grants.end(what.reference, use_of(what.done))


# --- a domain's end ------------------------------------------------------------------------------------------------


def release_mappings(domain: Domain) -> Iterator[None]:
    """A domain ends: nothing of others' is in use by it any more, mapping by mapping (Xen: gnttab_release_mappings).

    The entries of its page tables go with the tables, and what they refer to with them.
    """
    mappings = domain.grants.maptrack.mappings
    while mappings:
        _, mapping = mappings.popitem()
        frame = mapping.granter.grants.active[mapping.reference].frame
        for _ in range(held_by_handle(domain, mapping.flags)):
            _put(mapping.granter, frame, mapping.flags)
        mapping.granter.grants.end(mapping.reference, use_of(mapping.flags))
        yield
