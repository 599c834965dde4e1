"""Operations on a domain's own grant table (Xen: common/grant_table.c): its size, its version, its entries' order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind
from xentui.engine.x86.paging import PAGE_SHIFT, PAGE_SIZE
from xentui.engine.x86.state import MASK32, MASK64, RIP
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi import grant_table as abi
from xentui.engine.xen.abi.core import DOMID_SELF
from xentui.engine.xen.abi.errno import EBUSY, EFAULT, EILSEQ, EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM, ERANGE, ESRCH
from xentui.engine.xen.abi.hypercalls import HYPERCALL_grant_table_op
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.continuation import create_continuation, preempt_check
from xentui.engine.xen.grant_entries import CONTROL_DOMAIN, GrantTable
from xentui.engine.xen.page import DOMID_INVALID, DOMID_XEN

if TYPE_CHECKING:
    from xentui.engine.xen.abi.layout import Layout
    from xentui.engine.xen.domain import Vcpu

_RESERVED = range(abi.GNTTAB_NR_RESERVED_ENTRIES)
_MARKS = abi.GTF_reading | abi.GTF_writing


def layout_of(vcpu: Vcpu) -> Layout:
    """The structures of the guest's word size."""
    return LAYOUT32 if vcpu.width == 32 else LAYOUT64


def _own(vcpu: Vcpu, domid: int) -> int:
    """GNTST_okay if `domid` is the caller itself; a guest has no rights over another domain's table."""
    if domid in (DOMID_SELF, vcpu.domain.id):
        return abi.GNTST_okay
    known = domid == CONTROL_DOMAIN or domid in vcpu.hv.domains
    return abi.GNTST_permission_denied if known else abi.GNTST_bad_domain


def put_status(vcpu: Vcpu, address: int, status: int) -> None:
    """Tell the guest an operation's GNTST_*."""
    guest_access.write(vcpu, address, (status & 0xFFFF).to_bytes(2, "little"))


def record(vcpu: Vcpu, operation: int, reference: int, mfn: int, peer: int, flags: int, status: int) -> None:
    """A trace record of one operation on a grant: GNTTABOP_*, and how it ended, GNTST_*."""
    hv = vcpu.hv
    hv.put(
        hv.clock.now(), vcpu.q[RIP], Kind.GRANT, vcpu.id, vcpu.domain.id, operation,
        reference & MASK32, mfn, peer, flags, status & MASK64,
    )  # fmt: skip


def setup_table(vcpu: Vcpu, uop: int, count: int) -> int:
    """Make the table so many frames long, and tell their machine frame numbers."""
    if count != 1:
        return -EINVAL
    layout = layout_of(vcpu)
    record = guest_access.read(vcpu, uop, layout.GNTTAB_SETUP_TABLE_SIZE)
    domid, frames, _, where = layout.STRUCT_gnttab_setup_table.unpack(record)
    if not guest_access.handle_okay(vcpu, where, frames * layout.WORD_SIZE):
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
    put_status(vcpu, uop + layout.GNTTAB_SETUP_TABLE_status, status)
    return 0


def query_size(vcpu: Vcpu, uop: int, count: int) -> int:
    """How many frames the table has and may have."""
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


def set_version(vcpu: Vcpu, uop: int, _count: int) -> int:
    """Choose the format of the entries; the version in force is told in any case.

    Not while references beyond the toolstack's are in use. The table is cleared but for the toolstack's references.
    """
    version = guest_access.read_u32(vcpu, uop)
    table = vcpu.domain.grants
    result = 0
    if version not in (1, 2):
        result = -EINVAL
    elif version > table.max_version:
        result = -ENOSYS
    elif version != table.version:
        result = _change_version(table, version)
    guest_access.write_u32(vcpu, uop, table.version)
    return result


def _change_version(table: GrantTable, version: int) -> int:
    if table.pins():
        return -EBUSY
    if version == 2 and not table.add_status_frames():
        return -ENOMEM
    if version == 1 and any(not _fits_version_1(table, reference) for reference in _RESERVED):
        return -ERANGE
    kept = [_kept(table, reference) for reference in _RESERVED]
    if version == 1 and not table.drop_status_frames():
        return -EBUSY
    ram = table.domain.hv.ram
    for frame in table.frames:
        ram[frame << PAGE_SHIFT : (frame + 1) << PAGE_SHIFT] = bytes(PAGE_SIZE)
    table.version = version
    for reference, (flags, domid, frame) in zip(_RESERVED, kept, strict=True):
        at = table.offset(reference)
        table.set_word(at + 2, 2, domid)
        if version == 1:
            table.set_word(at, 2, flags)
            table.set_word(at + 4, 4, frame)
        else:
            table.set_word(at, 2, flags & ~_MARKS)
            table.set_word(at + 8, 8, frame)
            table.set_word(table.marks_at(reference), 2, flags & _MARKS)
    return 0


def _fits_version_1(table: GrantTable, reference: int) -> bool:
    """Can version 1 say what a version 2 entry says?"""
    flags, _, frame = table.entry(reference)
    kind = flags & abi.GTF_type_mask
    return not (kind == abi.GTF_transitive or (kind == abi.GTF_permit_access and frame >> 32))


def _kept(table: GrantTable, reference: int) -> tuple[int, int, int]:
    """Flags with the marks, domain and frame of one of the toolstack's entries, to be written again."""
    entry = table.entry(reference)
    if table.version == 1:
        return entry
    if entry.flags & abi.GTF_type_mask != abi.GTF_permit_access:
        return 0, 0, 0
    return entry.flags | table.word(table.marks_at(reference), 2), entry.domid, entry.frame


def get_version(vcpu: Vcpu, uop: int, _count: int) -> int:
    """The version of the entries."""
    domid, _ = LAYOUT64.STRUCT_gnttab_get_version.unpack(guest_access.read(vcpu, uop, LAYOUT64.GNTTAB_GET_VERSION_SIZE))
    status = _own(vcpu, domid)
    if status != abi.GNTST_okay:
        return -ESRCH if status == abi.GNTST_bad_domain else -EPERM
    guest_access.write_u32(vcpu, uop + LAYOUT64.GNTTAB_GET_VERSION_version, vcpu.domain.grants.version)
    return 0


def get_status_frames(vcpu: Vcpu, uop: int, count: int) -> int:
    """The machine frames in which version 2 keeps the entries' status, as 64-bit numbers for both word sizes."""
    if count != 1:
        return -EINVAL
    layout = layout_of(vcpu)
    record = guest_access.read(vcpu, uop, layout.GNTTAB_GET_STATUS_FRAMES_SIZE)
    count, domid, _, where = layout.STRUCT_gnttab_get_status_frames.unpack(record)
    if not guest_access.handle_okay(vcpu, where, 8 * count):
        return -EFAULT
    status = _own(vcpu, domid)
    frames = vcpu.domain.grants.status_frames
    if status == abi.GNTST_okay and count > len(frames):
        status = abi.GNTST_general_error
    if status == abi.GNTST_okay:
        numbers = b"".join(frame.to_bytes(8, "little") for frame in frames[:count])
        try:
            guest_access.write(vcpu, where, numbers)
        except guest_access.GuestFault:
            status = abi.GNTST_bad_virt_addr
    put_status(vcpu, uop + layout.GNTTAB_GET_STATUS_FRAMES_status, status)
    return 0


def swap_grant_ref(vcpu: Vcpu, uop: int) -> None:
    """Exchange two entries that nobody uses."""
    layout = LAYOUT64
    first, second, _ = layout.STRUCT_gnttab_swap_grant_ref.unpack(
        guest_access.read(vcpu, uop, layout.GNTTAB_SWAP_GRANT_REF_SIZE)
    )
    table = vcpu.domain.grants
    status = abi.GNTST_okay
    if first >= table.entries or second >= table.entries:
        status = abi.GNTST_bad_gntref
    elif first != second and (first in table.active or second in table.active):
        status = abi.GNTST_eagain
    elif table.version == 1:
        _swap(table, table.offset(first), table.offset(second), layout.GRANT_ENTRY_V1_SIZE)
    else:
        _swap(table, table.offset(first), table.offset(second), layout.GRANT_ENTRY_V2_SIZE)
        _swap(table, table.marks_at(first), table.marks_at(second), 2)
    put_status(vcpu, uop + layout.GNTTAB_SWAP_GRANT_REF_status, status)


def _swap(table: GrantTable, a: int, b: int, size: int) -> None:
    held = table.word(a, size)
    table.set_word(a, size, table.word(b, size))
    table.set_word(b, size, held)


# --- caches --------------------------------------------------------------------------------------------------------


def cache_flush(vcpu: Vcpu, uop: int, count: int, start: int) -> int:
    """Write a granted page's cache lines back. There is no cache here, so only the checks are left.

    `start`: the reference from which a continued search goes on, which a guest may forge. 0 or a negative error.
    """
    size = LAYOUT64.GNTTAB_CACHE_FLUSH_SIZE
    for number in range(count):
        if number and preempt_check(vcpu):
            command = abi.GNTTABOP_cache_flush
            return create_continuation(vcpu, HYPERCALL_grant_table_op, command, uop + number * size, count - number)
        record = guest_access.read(vcpu, uop + number * size, size)
        address, offset, length = (int.from_bytes(record[a:b], "little") for a, b in ((0, 8), (8, 10), (10, 12)))
        error = _cache_flush(vcpu, address >> PAGE_SHIFT, offset, length, int.from_bytes(record[12:], "little"), start)
        if error:
            return -error
        start = 0
    return 0


def _cache_flush(vcpu: Vcpu, mfn: int, offset: int, length: int, operation: int, start: int) -> int:
    """One flush; 0 or a positive error. An x86 processor cannot drop lines without writing them back."""
    if offset >= PAGE_SIZE or offset + length > PAGE_SIZE or operation & ~_CACHE_OPERATIONS:
        return EINVAL
    if not length or not operation:
        return EILSEQ if start else 0
    frames = vcpu.hv.frames
    if mfn >= frames.count:
        return EINVAL
    if frames.owner[mfn] in (DOMID_XEN, DOMID_INVALID):
        return EPERM
    if frames.owner[mfn] != vcpu.domain.id:
        granter = vcpu.hv.domains.get(frames.owner[mfn])
        active = granter.grants.active if granter else {}
        mine = vcpu.domain.id
        if not any(use.domid == mine and use.frame == mfn for ref, use in active.items() if ref >= start):
            return EINVAL
    return 0 if operation & abi.GNTTAB_CACHE_CLEAN else EOPNOTSUPP


_CACHE_OPERATIONS = abi.GNTTAB_CACHE_CLEAN | abi.GNTTAB_CACHE_INVAL
