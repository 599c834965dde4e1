"""Grant tables: memory that a domain offers to another (Xen: common/grant_table.c), version 1 entries.

The table lies in frames of the hypervisor's that the domain maps and writes: entry n says who may use which frame,
and the hypervisor marks entries in use. Here a domain gets its table, and pages are copied by reference. Mapping
somebody else's frame checks everything that Xen checks and then finds no map-tracking entry left, as on a Xen whose
`max_maptrack_frames` is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xentui.engine.clock import COST_BYTES_PER_NS
from xentui.engine.trace import Kind
from xentui.engine.x86.paging import PAGE_SHIFT, PAGE_SIZE
from xentui.engine.x86.state import MASK32, MASK64, RIP
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi import grant_table as abi
from xentui.engine.xen.abi.core import DOMID_SELF
from xentui.engine.xen.abi.errno import EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.memory import can_steal
from xentui.engine.xen.page import L1, SEG, WRITABLE, OutOfMemory
from xentui.engine.xen.page_type import get_page_and_type, put_page_and_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.abi.layout import Layout
    from xentui.engine.xen.domain import Domain, Vcpu

ENTRIES_PER_FRAME = PAGE_SIZE // LAYOUT64.GRANT_ENTRY_V1_SIZE
INITIAL_FRAMES = 1
MAX_FRAMES = 64
"""The toolstack's `max_grant_frames` where the configuration gives none."""

COST_OPERATION = 50
"""Nanoseconds for one operation of an array."""

CONTROL_DOMAIN = 0
_COMMAND_MASK = 0xFFF  # above it Xen keeps where a long operation goes on


class Entry(NamedTuple):
    """A version 1 grant entry as it lies in the table. `frame`: the machine frame that is offered."""

    flags: int
    domid: int
    frame: int


class GrantTable:
    """The grant table of one domain. `frames` are the machine frames that hold it, in the order of the references."""

    def __init__(self, domain: Domain, max_frames: int = MAX_FRAMES) -> None:
        self.domain = domain
        self.version = 1
        self.max_version = 1
        self.max_frames = max_frames
        self.frames: list[int] = []
        self.grow(INITIAL_FRAMES)

    @property
    def entries(self) -> int:
        """How many references there are."""
        return len(self.frames) * ENTRIES_PER_FRAME

    def grow(self, count: int) -> bool:
        """Make the table at least `count` frames long; False if machine memory has no more."""
        domain = self.domain
        table = domain.hv.frames
        while len(self.frames) < count:
            try:
                frame = table.allocate_xen(1)
            except OutOfMemory:
                return False
            table.share_with_guest(frame, domain.id)
            domain.xen_frames.append(frame)
            self.frames.append(frame)
        return True

    def offset(self, reference: int) -> int:
        """Where the entry lies in machine memory, in bytes; the reference must exist."""
        frame, index = divmod(reference, ENTRIES_PER_FRAME)
        return (self.frames[frame] << PAGE_SHIFT) + index * LAYOUT64.GRANT_ENTRY_V1_SIZE

    def entry(self, reference: int) -> Entry:
        """What the guest has written for the reference, which must exist."""
        return Entry(*LAYOUT64.STRUCT_grant_entry_v1.unpack_from(self.domain.hv.ram, self.offset(reference)))

    def seed(self, reference: int, domid: int, frame: int) -> None:
        """Offer a frame before the guest runs, as the toolstack does for console and xenstore rings."""
        ram = self.domain.hv.ram
        LAYOUT64.STRUCT_grant_entry_v1.pack_into(ram, self.offset(reference), abi.GTF_permit_access, domid, frame)

    def granted(self, reference: int, domid: int, readonly: bool) -> tuple[int, int]:
        """(GNTST_okay, frame) if `domid` may use the reference so, else (GNTST_*, 0). (Xen: _set_status_v1)"""
        if reference >= self.entries:
            return abi.GNTST_bad_gntref, 0
        flags, allowed, frame = self.entry(reference)
        if flags & abi.GTF_type_mask != abi.GTF_permit_access or allowed != domid:
            return abi.GNTST_general_error, 0
        if not readonly and flags & abi.GTF_readonly:
            return abi.GNTST_general_error, 0
        table = self.domain.hv.frames
        if frame >= table.count or table.owner[frame] != self.domain.id:
            return abi.GNTST_bad_page, 0
        return abi.GNTST_okay, frame


# --- whose table ---------------------------------------------------------------------------------------------------


def _layout(vcpu: Vcpu) -> Layout:
    return LAYOUT32 if vcpu.width == 32 else LAYOUT64


def _own(vcpu: Vcpu, domid: int) -> int:
    """GNTST_okay if `domid` is the caller itself; a guest has no rights over another domain's table."""
    if domid in (DOMID_SELF, vcpu.domain.id):
        return abi.GNTST_okay
    known = domid == CONTROL_DOMAIN or domid in vcpu.hv.domains
    return abi.GNTST_permission_denied if known else abi.GNTST_bad_domain


def _record(vcpu: Vcpu, operation: int, reference: int, mfn: int, peer: int, flags: int, status: int) -> None:
    hv = vcpu.hv
    hv.put(
        hv.clock.now(), vcpu.q[RIP], Kind.GRANT, vcpu.id, vcpu.domain.id, operation,
        reference, mfn, peer, flags, status & MASK64,
    )  # fmt: skip


def _status(vcpu: Vcpu, address: int, status: int) -> None:
    guest_access.write(vcpu, address, (status & 0xFFFF).to_bytes(2, "little"))


# --- the table itself ----------------------------------------------------------------------------------------------


def _setup_table(vcpu: Vcpu, uop: int, count: int) -> int:
    """Make the table so many frames long, and tell their machine frame numbers."""
    if count != 1:
        return -EINVAL
    layout = _layout(vcpu)
    record = guest_access.read(vcpu, uop, layout.GNTTAB_SETUP_TABLE_SIZE)
    domid, frames, _, where = layout.STRUCT_gnttab_setup_table.unpack(record)
    if not guest_access.access_ok(vcpu, where, frames * layout.WORD_SIZE):
        return -EFAULT
    status = _own(vcpu, domid)
    table = vcpu.domain.grants
    if status == abi.GNTST_okay and (frames > table.max_frames or not table.grow(frames)):
        status = abi.GNTST_general_error
    if status == abi.GNTST_okay:
        numbers = b"".join(frame.to_bytes(layout.WORD_SIZE, "little") for frame in table.frames[:frames])
        try:
            guest_access.write(vcpu, where, numbers)
        except guest_access.GuestFault:
            status = abi.GNTST_bad_virt_addr
    _status(vcpu, uop + layout.GNTTAB_SETUP_TABLE_status, status)
    return 0


def _query_size(vcpu: Vcpu, uop: int, count: int) -> int:
    if count != 1:
        return -EINVAL
    layout = LAYOUT64
    record = guest_access.read(vcpu, uop, layout.GNTTAB_QUERY_SIZE_SIZE)
    domid, frames, most, _ = layout.STRUCT_gnttab_query_size.unpack(record)
    status = _own(vcpu, domid)
    if status == abi.GNTST_okay:
        frames, most = len(vcpu.domain.grants.frames), vcpu.domain.grants.max_frames
    guest_access.write(vcpu, uop, layout.STRUCT_gnttab_query_size.pack(domid, frames, most, status))
    return 0


def _set_version(vcpu: Vcpu, uop: int, _count: int) -> int:
    """Choose the format of the entries; the version in force is told in any case."""
    version = guest_access.read_u32(vcpu, uop)
    table = vcpu.domain.grants
    result = 0
    if version not in (1, 2):
        result = -EINVAL
    elif version > table.max_version:
        result = -ENOSYS
    else:
        table.version = version
    guest_access.write_u32(vcpu, uop, table.version)
    return result


def _get_version(vcpu: Vcpu, uop: int, _count: int) -> int:
    domid, _ = LAYOUT64.STRUCT_gnttab_get_version.unpack(guest_access.read(vcpu, uop, LAYOUT64.GNTTAB_GET_VERSION_SIZE))
    status = _own(vcpu, domid)
    if status != abi.GNTST_okay:
        return -ESRCH if status == abi.GNTST_bad_domain else -EPERM
    guest_access.write_u32(vcpu, uop + LAYOUT64.GNTTAB_GET_VERSION_version, vcpu.domain.grants.version)
    return 0


def _get_status_frames(vcpu: Vcpu, uop: int, count: int) -> int:
    """Version 2 keeps the entries' status apart; version 1 has no such frames."""
    if count != 1:
        return -EINVAL
    layout = _layout(vcpu)
    record = guest_access.read(vcpu, uop, layout.GNTTAB_GET_STATUS_FRAMES_SIZE)
    frames, domid, _, _ = layout.STRUCT_gnttab_get_status_frames.unpack(record)
    status = _own(vcpu, domid)
    if status == abi.GNTST_okay and frames:
        status = abi.GNTST_general_error
    _status(vcpu, uop + layout.GNTTAB_GET_STATUS_FRAMES_status, status)
    return 0


def _swap_grant_ref(vcpu: Vcpu, uop: int) -> None:
    """Exchange two entries."""
    layout = LAYOUT64
    first, second, _ = layout.STRUCT_gnttab_swap_grant_ref.unpack(
        guest_access.read(vcpu, uop, layout.GNTTAB_SWAP_GRANT_REF_SIZE)
    )
    table, ram = vcpu.domain.grants, vcpu.hv.ram
    status = abi.GNTST_okay
    if first >= table.entries or second >= table.entries:
        status = abi.GNTST_bad_gntref
    else:
        a, b, size = table.offset(first), table.offset(second), layout.GRANT_ENTRY_V1_SIZE
        held = bytes(ram[a : a + size])
        ram[a : a + size] = ram[b : b + size]
        ram[b : b + size] = held
    _status(vcpu, uop + layout.GNTTAB_SWAP_GRANT_REF_status, status)


# --- using what others grant ---------------------------------------------------------------------------------------


def _map_grant_ref(vcpu: Vcpu, uop: int) -> None:
    layout = LAYOUT64
    where, flags, reference, domid, _, _, _ = layout.STRUCT_gnttab_map_grant_ref.unpack(
        guest_access.read(vcpu, uop, layout.GNTTAB_MAP_GRANT_REF_SIZE)
    )
    frame = 0
    granter = vcpu.hv.domains.get(domid)
    if not flags & (abi.GNTMAP_device_map | abi.GNTMAP_host_map):
        status = abi.GNTST_bad_gntref
    elif granter is not None:
        status, frame = granter.grants.granted(reference, vcpu.domain.id, bool(flags & abi.GNTMAP_readonly))
        if status == abi.GNTST_okay and not _mapping_possible(vcpu, where, flags, frame):
            status = abi.GNTST_general_error
        elif status == abi.GNTST_okay:
            status = abi.GNTST_no_device_space  # no map-tracking entries: see the module's text
    else:
        # the control domain exists, and grants nothing
        status = abi.GNTST_general_error if domid == CONTROL_DOMAIN else abi.GNTST_bad_domain
    _record(vcpu, abi.GNTTABOP_map_grant_ref, reference, frame, domid, flags, status)
    _status(vcpu, uop + layout.GNTTAB_MAP_GRANT_REF_status, status)


def _mapping_possible(vcpu: Vcpu, where: int, flags: int, frame: int) -> bool:
    """Is there an L1 entry at the address, or at the machine address, and may it map the frame so?

    (Xen: pv/grant_table.c, create_grant_pte_mapping and create_grant_va_mapping.)
    """
    frames = vcpu.hv.frames
    if not flags & abi.GNTMAP_readonly and frames.type_count[frame] and frames.type[frame] <= SEG:
        return False
    if not flags & abi.GNTMAP_host_map:
        return True
    if not flags & abi.GNTMAP_contains_pte:
        return vcpu.space.read_page(where) >= 0 and guest_access.access_ok(vcpu, where, 1)
    mfn = where >> PAGE_SHIFT
    if where & 7 or mfn >= frames.count or frames.owner[mfn] != vcpu.domain.id:
        return False
    return frames.type[mfn] == L1 and frames.type_count[mfn] > 0


def _unmap_grant_ref(vcpu: Vcpu, uop: int) -> None:
    """No mapping, no handle. `unmap_and_replace` has the same shape."""
    guest_access.read(vcpu, uop, LAYOUT64.GNTTAB_UNMAP_GRANT_REF_SIZE)
    _status(vcpu, uop + LAYOUT64.GNTTAB_UNMAP_GRANT_REF_status, abi.GNTST_bad_handle)


def _transfer(vcpu: Vcpu, uop: int) -> None:
    """Give a frame away for good: only to who has asked for one with GTF_accept_transfer, which none can have."""
    layout = _layout(vcpu)
    mfn, domid, _, _ = layout.STRUCT_gnttab_transfer.unpack(guest_access.read(vcpu, uop, layout.GNTTAB_TRANSFER_SIZE))
    if not can_steal(vcpu.domain, mfn):
        status = abi.GNTST_bad_page
    elif domid != CONTROL_DOMAIN and domid not in vcpu.hv.domains:
        status = abi.GNTST_bad_domain
    else:
        status = abi.GNTST_general_error
    _status(vcpu, uop + layout.GNTTAB_TRANSFER_status, status)


def _copy(vcpu: Vcpu, uop: int) -> None:
    """Copy bytes between two frames, each one's own or granted (Xen: gnttab_copy_one)."""
    layout = _layout(vcpu)
    source, source_dom, source_at, target, target_dom, target_at, size, flags, _ = layout.STRUCT_gnttab_copy.unpack(
        guest_access.read(vcpu, uop, layout.GNTTAB_COPY_SIZE)
    )
    by_reference = bool(flags & abi.GNTCOPY_source_gref), bool(flags & abi.GNTCOPY_dest_gref)
    status, mfn = _resolve(vcpu, source, source_dom, by_reference[0], True)
    if status == abi.GNTST_okay:
        status, target_mfn = _resolve(vcpu, target, target_dom, by_reference[1], False)
    if status == abi.GNTST_okay and (source_at + size > PAGE_SIZE or target_at + size > PAGE_SIZE):
        status = abi.GNTST_bad_copy_arg
    if status == abi.GNTST_okay:
        status = _copy_bytes(vcpu, target_dom, mfn, source_at, target_mfn, target_at, size)
    reference, peer = (source, source_dom) if by_reference[0] else (target, target_dom)
    _record(vcpu, abi.GNTTABOP_copy, reference & MASK32, mfn, peer, flags, status)
    _status(vcpu, uop + layout.GNTTAB_COPY_status, status)


def _resolve(vcpu: Vcpu, what: int, domid: int, by_reference: bool, readonly: bool) -> tuple[int, int]:
    """(GNTST_okay, frame) of one side of a copy, or (GNTST_*, 0)."""
    if not by_reference:
        if domid != DOMID_SELF:
            return abi.GNTST_permission_denied, 0
        frames = vcpu.hv.frames
        own = what < frames.count and frames.owner[what] == vcpu.domain.id
        return (abi.GNTST_okay, what) if own else (abi.GNTST_bad_page, 0)
    granter = vcpu.domain if domid == DOMID_SELF else vcpu.hv.domains.get(domid)
    if granter is None:
        return (abi.GNTST_general_error if domid == CONTROL_DOMAIN else abi.GNTST_bad_domain), 0
    return granter.grants.granted(what & MASK32, vcpu.domain.id, readonly)


def _copy_bytes(vcpu: Vcpu, owner: int, source: int, source_at: int, target: int, target_at: int, size: int) -> int:
    """The copy itself; the target must be a frame that may be written: no page table, no descriptors."""
    hv = vcpu.hv
    domain = vcpu.domain if owner == DOMID_SELF else hv.domains[owner]
    if get_page_and_type(domain, target, WRITABLE):
        return abi.GNTST_general_error
    start, end = (source << PAGE_SHIFT) + source_at, (target << PAGE_SHIFT) + target_at
    hv.ram[end : end + size] = bytes(hv.ram[start : start + size])
    hv.clock.charge(size // COST_BYTES_PER_NS)
    put_page_and_type(domain, target)
    return abi.GNTST_okay


# --- hypercall -----------------------------------------------------------------------------------------------------


def do_grant_table_op(vcpu: Vcpu, cmd: int, uop: int, count: int, _d: int) -> int:
    """Hypercall 20: `count` operations of kind `cmd`, GNTTABOP_*, in an array at `uop`; each reports its own status."""
    cmd, count = cmd & MASK32, count & MASK32
    if count >> 31 or cmd & ~_COMMAND_MASK:
        return -EINVAL
    single = _SINGLE.get(cmd)
    if single is not None:
        return single(vcpu, uop, count)
    if cmd not in _ARRAY:
        return -ENOSYS
    operation, sizes = _ARRAY[cmd]
    size = sizes[vcpu.width == 64]
    if not guest_access.access_ok(vcpu, uop, count * size):
        return -EFAULT
    for number in range(count):
        operation(vcpu, uop + number * size)
        vcpu.hv.clock.charge(COST_OPERATION)
    return 0


_SINGLE: dict[int, Callable[[Vcpu, int, int], int]] = {
    abi.GNTTABOP_setup_table: _setup_table,
    abi.GNTTABOP_query_size: _query_size,
    abi.GNTTABOP_set_version: _set_version,
    abi.GNTTABOP_get_version: _get_version,
    abi.GNTTABOP_get_status_frames: _get_status_frames,
}
_ARRAY: dict[int, tuple[Callable[[Vcpu, int], None], tuple[int, int]]] = {
    abi.GNTTABOP_map_grant_ref: (_map_grant_ref, (LAYOUT64.GNTTAB_MAP_GRANT_REF_SIZE,) * 2),
    abi.GNTTABOP_unmap_grant_ref: (_unmap_grant_ref, (LAYOUT64.GNTTAB_UNMAP_GRANT_REF_SIZE,) * 2),
    abi.GNTTABOP_unmap_and_replace: (_unmap_grant_ref, (LAYOUT64.GNTTAB_UNMAP_AND_REPLACE_SIZE,) * 2),
    abi.GNTTABOP_transfer: (_transfer, (LAYOUT32.GNTTAB_TRANSFER_SIZE, LAYOUT64.GNTTAB_TRANSFER_SIZE)),
    abi.GNTTABOP_copy: (_copy, (LAYOUT32.GNTTAB_COPY_SIZE, LAYOUT64.GNTTAB_COPY_SIZE)),
    abi.GNTTABOP_swap_grant_ref: (_swap_grant_ref, (LAYOUT64.GNTTAB_SWAP_GRANT_REF_SIZE,) * 2),
}
