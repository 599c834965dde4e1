"""Grant tables: a domain's own, copies by reference, and the status of everything that is wrong."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes_xen import ARGUMENT, UNMAPPED, World, XenGuest, fuzz
from xentui.engine.xen.abi import grant_table as abi
from xentui.engine.xen.abi.core import DOMID_SELF
from xentui.engine.xen.audit import audit
from xentui.engine.xen.grant_entries import ENTRIES_PER_FRAME
from xentui.engine.xen.grant_table import do_grant_table_op
from xentui.engine.xen.page import DOMID_INVALID, SHARED, SHARED_RW

BOTH = pytest.mark.parametrize("width", [32, 64])
EPERM, ESRCH, EFAULT, EINVAL, ENOSYS = 1, 3, 14, 22, 38
LIST = ARGUMENT + 256


def op(guest: XenGuest, command: int, data: bytes, count: int = 1) -> int:
    return guest.call(do_grant_table_op, command, data, count)


def setup_table(guest: XenGuest, frames: int, domid: int = DOMID_SELF, where: int = LIST) -> tuple[int, int]:
    """(result, status) of GNTTABOP_setup_table."""
    wide = guest.domain.width == 64
    result = op(
        guest, abi.GNTTABOP_setup_table, struct.pack("<HxxIh6xQ" if wide else "<HxxIhxxI", domid, frames, 99, where)
    )
    return result, struct.unpack("<h", guest.get(2, ARGUMENT + 8))[0]


def listed(guest: XenGuest, count: int) -> list[int]:
    return list(
        struct.unpack(
            f"<{count}{'Q' if guest.domain.width == 64 else 'I'}", guest.get(count * guest.layout.WORD_SIZE, LIST)
        )
    )


@BOTH
def test_setup_table(width: int) -> None:
    guest = World(width).guests[0]
    frames = guest.hv.frames
    assert setup_table(guest, 3) == (0, abi.GNTST_okay)
    grants = listed(guest, 3)
    assert grants == guest.domain.grants.frames
    for mfn in grants:
        assert (frames.owner[mfn], frames.type[mfn]) == (guest.domain.id, SHARED)
        assert frames.flags[mfn] & SHARED_RW
        assert mfn in guest.domain.xen_frames
    assert setup_table(guest, 1) == (0, abi.GNTST_okay)
    assert len(guest.domain.grants.frames) == 3, "a table never shrinks"
    assert setup_table(guest, 65) == (0, abi.GNTST_general_error)
    assert setup_table(guest, 1, 1) == (0, abi.GNTST_okay)
    assert setup_table(guest, 1, 0) == (0, abi.GNTST_permission_denied)
    assert setup_table(guest, 1, 9) == (0, abi.GNTST_bad_domain)
    assert setup_table(guest, 1, where=UNMAPPED) == (0, abi.GNTST_bad_virt_addr)
    beyond = 0xFFFF_8000_0000_0000 if width == 64 else 0xFFFF_FFFF
    assert setup_table(guest, 1, where=beyond)[0] == -EFAULT
    assert op(guest, abi.GNTTABOP_setup_table, bytes(24), 2) == -EINVAL


def test_query_size_and_versions() -> None:
    guest = World(64, 64).guests[0]
    assert op(guest, abi.GNTTABOP_query_size, struct.pack("<HxxIIhxx", DOMID_SELF, 0, 0, 9)) == 0
    assert struct.unpack("<HxxIIh", guest.get(14)) == (DOMID_SELF, 1, 64, abi.GNTST_okay)
    assert op(guest, abi.GNTTABOP_query_size, struct.pack("<HxxIIhxx", 2, 0, 0, 9)) == 0
    assert struct.unpack("<h", guest.get(2, ARGUMENT + 12)) == (abi.GNTST_permission_denied,)
    assert op(guest, abi.GNTTABOP_query_size, bytes(16), 0) == -EINVAL
    guest.domain.grants.max_version = 1
    for version, answer in ((1, 0), (2, -ENOSYS), (0, -EINVAL), (3, -EINVAL)):
        assert op(guest, abi.GNTTABOP_set_version, struct.pack("<I", version)) == answer
        assert guest.number(0) == 1, "the version in force is told in any case"
    for domid, answer in ((DOMID_SELF, 0), (2, -EPERM), (9, -ESRCH)):
        assert op(guest, abi.GNTTABOP_get_version, struct.pack("<HxxI", domid, 77)) == answer
        assert guest.number(4) == (77 if answer else 1)
    assert op(guest, abi.GNTTABOP_get_status_frames, struct.pack("<IHhQ", 0, DOMID_SELF, 9, LIST)) == 0
    assert struct.unpack("<h", guest.get(2, ARGUMENT + 6)) == (abi.GNTST_okay,)
    assert op(guest, abi.GNTTABOP_get_status_frames, struct.pack("<IHhQ", 1, DOMID_SELF, 9, LIST)) == 0
    assert struct.unpack("<h", guest.get(2, ARGUMENT + 6)) == (abi.GNTST_general_error,)


def test_misuse() -> None:
    guest = World(64).guests[0]
    assert op(guest, abi.GNTTABOP_copy, bytes(40), 1 << 31) == -EINVAL
    assert op(guest, abi.GNTTABOP_copy | 1 << 12, bytes(40)) == -EINVAL
    assert op(guest, abi.GNTTABOP_dump_table, bytes(40)) == -ENOSYS
    assert op(guest, 13, bytes(40)) == -ENOSYS
    assert op(guest, abi.GNTTABOP_map_grant_ref, bytes(40), 0) == 0
    for command in (*range(3), *range(4, 12)):
        assert guest.call_at(do_grant_table_op, command, UNMAPPED, 1) == -EFAULT
    assert guest.call_at(do_grant_table_op, abi.GNTTABOP_copy, (1 << 47) - 8, 1) == -EFAULT


# --- what others grant ---------------------------------------------------------------------------------------------


def grant(guest: XenGuest, reference: int, domid: int, pfn: int, flags: int = abi.GTF_permit_access) -> int:
    mfn = guest.guest.p2m[pfn]
    at = guest.domain.grants.offset(reference)
    struct.pack_into("<HHI", guest.hv.ram, at, flags, domid, mfn)
    return mfn


def copy(guest: XenGuest, source: tuple[int, int, int], target: tuple[int, int, int], size: int, flags: int) -> int:
    """GNTTABOP_copy of one segment; each side is (reference or frame, domain, offset). Its status."""
    if guest.domain.width == 64:
        data, at = struct.pack("<QHH4xQHH4xHHhxx", *source, *target, size, flags, 99), 36
    else:
        data, at = struct.pack("<IHHIHHHHh", *source, *target, size, flags, 99), 20
    assert op(guest, abi.GNTTABOP_copy, data) == 0
    return int(struct.unpack("<h", guest.get(2, ARGUMENT + at))[0])


@BOTH
def test_copy_between_domains(width: int) -> None:
    giver, taker = World(64, width).guests
    source = grant(giver, 9, taker.domain.id, 50, abi.GTF_permit_access | abi.GTF_readonly)
    giver.hv.ram[source << 12 : (source << 12) + 4] = b"abcd"
    own = taker.guest.p2m[51]
    assert copy(taker, (9, 1, 1), (own, DOMID_SELF, 4093), 3, abi.GNTCOPY_source_gref) == abi.GNTST_okay
    assert taker.get(3, (51 << 12) + 4093) == b"bcd"
    assert copy(taker, (own, DOMID_SELF, 0), (9, 1, 0), 1, abi.GNTCOPY_dest_gref) == abi.GNTST_general_error, (
        "read-only"
    )
    grant(giver, 10, taker.domain.id, 52)
    assert copy(taker, (own, DOMID_SELF, 4093), (10, 1, 7), 3, abi.GNTCOPY_dest_gref) == abi.GNTST_okay
    assert giver.get(3, (52 << 12) + 7) == b"bcd"
    entry = giver.domain.grants.entry(10)
    assert entry.flags == abi.GTF_permit_access, "in use only while it is copied"


@BOTH
def test_copy_refusals(width: int) -> None:
    giver, taker = World(64, width).guests
    grant(giver, 9, taker.domain.id, 50)
    grant(giver, 11, 77, 50)
    grant(giver, 12, taker.domain.id, 50, abi.GTF_accept_transfer)
    own, table = taker.guest.p2m[51], taker.guest.tables["l1"]
    by_ref, to_ref = abi.GNTCOPY_source_gref, abi.GNTCOPY_dest_gref
    here = (own, DOMID_SELF, 0)
    assert copy(taker, (9, 1, 4096), here, 1, by_ref) == abi.GNTST_bad_copy_arg
    assert copy(taker, (9, 1, 4095), here, 1, by_ref) == abi.GNTST_okay
    assert copy(taker, (9, 1, 0), (own, DOMID_SELF, 1), 4096, by_ref) == abi.GNTST_bad_copy_arg
    assert copy(taker, (ENTRIES_PER_FRAME, 1, 0), here, 1, by_ref) == abi.GNTST_bad_gntref
    assert copy(taker, (8, 1, 0), here, 1, by_ref) == abi.GNTST_general_error
    assert copy(taker, (11, 1, 0), here, 1, by_ref) == abi.GNTST_general_error
    assert copy(taker, (12, 1, 0), here, 1, by_ref) == abi.GNTST_general_error
    assert copy(taker, (9, 0, 0), here, 1, by_ref) == abi.GNTST_general_error
    assert copy(taker, (9, 5, 0), here, 1, by_ref) == abi.GNTST_bad_domain
    assert copy(taker, (own, 1, 0), here, 1, 0) == abi.GNTST_permission_denied
    assert copy(taker, (giver.guest.p2m[50], DOMID_SELF, 0), here, 1, 0) == abi.GNTST_bad_page
    assert copy(taker, here, (table, DOMID_SELF, 0), 1, 0) == abi.GNTST_general_error, "a page table is not written"
    giver.domain.grants.seed(9, taker.domain.id, giver.guest.tables["l1"])
    assert copy(taker, here, (9, 1, 0), 1, to_ref) == abi.GNTST_general_error, "nor another domain's"
    giver.domain.grants.seed(9, taker.domain.id, own)
    assert copy(taker, (9, 1, 0), here, 1, by_ref) == abi.GNTST_bad_page, "not its own to give"


def transfer(guest: XenGuest, mfn: int, domid: int, reference: int = 9) -> int:
    """GNTTABOP_transfer of one frame; its status."""
    wide = guest.domain.width == 64
    data = struct.pack("<QHxxIh6x" if wide else "<IHxxIhxx", mfn, domid, reference, 99)
    assert op(guest, abi.GNTTABOP_transfer, data) == 0
    return int(struct.unpack("<h", guest.get(2, ARGUMENT + (16 if wide else 12)))[0])


def unmapped_frame(guest: XenGuest) -> int:
    guest.domain.tot_pages += 1
    return guest.hv.frames.allocate(1, guest.domain.id)[0]


@BOTH
def test_transfer_that_nobody_takes(width: int) -> None:
    """The frame is taken away first, as on Xen; what cannot be taken away stays."""
    guest = World(width).guests[0]
    frames, pages = guest.hv.frames, guest.domain.tot_pages
    for domid, answer in ((0, abi.GNTST_general_error), (9, abi.GNTST_bad_domain), (1, abi.GNTST_general_error)):
        mfn, free = unmapped_frame(guest), frames.free_frames
        assert transfer(guest, mfn, domid) == answer
        assert (frames.owner[mfn], frames.free_frames) == (DOMID_INVALID, free + 1)
        assert guest.domain.tot_pages == pages
    assert transfer(guest, guest.guest.p2m[50], 0) == abi.GNTST_bad_page, "it is mapped"
    assert transfer(guest, 0xFFFF_FFFF, 0) == abi.GNTST_bad_page
    assert transfer(guest, guest.hv.zero_frame, 0) == abi.GNTST_bad_page


@BOTH
@pytest.mark.parametrize("version", [1, 2])
def test_transfer_to_who_asked_for_it(width: int, version: int) -> None:
    giver, taker = World(width, 64).guests
    assert op(taker, abi.GNTTABOP_set_version, struct.pack("<I", version)) == 0
    table = taker.domain.grants
    at, frame_at = table.offset(9), table.offset(9) + (4 if version == 1 else 8)
    mfn = unmapped_frame(giver)
    giver.hv.ram[mfn << 12 : (mfn << 12) + 4] = b"gift"
    table.set_word(at, 4, abi.GTF_accept_transfer | giver.domain.id << 16)
    table.set_word(frame_at, 4, 77)
    assert transfer(giver, mfn, taker.domain.id) == abi.GNTST_general_error, "the taker has all the pages it may have"
    assert table.word(at, 2) == abi.GTF_accept_transfer
    taker.domain.max_pages += 1
    mfn, pages = unmapped_frame(giver), (giver.domain.tot_pages, taker.domain.tot_pages)
    giver.hv.ram[mfn << 12 : (mfn << 12) + 4] = b"gift"
    assert transfer(giver, mfn, taker.domain.id) == abi.GNTST_okay
    assert giver.hv.frames.owner[mfn] == taker.domain.id
    assert giver.hv.get_m2p(mfn) == 77, "the PFN was in the entry"
    assert bytes(giver.hv.ram[mfn << 12 : (mfn << 12) + 4]) == b"gift"
    flags = abi.GTF_accept_transfer | abi.GTF_transfer_committed | abi.GTF_transfer_completed
    assert (table.word(at, 2), table.word(frame_at, 4)) == (flags, mfn)
    assert (giver.domain.tot_pages, taker.domain.tot_pages) == (pages[0] - 1, pages[1] + 1)
    assert transfer(giver, unmapped_frame(giver), taker.domain.id) == abi.GNTST_general_error, "it asked once"
    assert audit(giver.hv) == []


def test_swap() -> None:
    guest = World(64).guests[0]
    grant(guest, 9, 3, 50)

    def swap(first: int, second: int) -> int:
        assert op(guest, abi.GNTTABOP_swap_grant_ref, struct.pack("<IIhxx", first, second, 99)) == 0
        return int(struct.unpack("<h", guest.get(2, ARGUMENT + 8))[0])

    assert swap(9, 511) == abi.GNTST_okay
    assert guest.domain.grants.entry(511) == (abi.GTF_permit_access, 3, guest.guest.p2m[50])
    assert guest.domain.grants.entry(9) == (0, 0, 0)
    assert swap(9, 512) == abi.GNTST_bad_gntref
    assert swap(1 << 31, 0) == abi.GNTST_bad_gntref


words = st.one_of(st.integers(0, 16), st.sampled_from([DOMID_SELF, 600, 0xFFFF_FFFF]), st.integers(0, (1 << 32) - 1))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([32, 64]),
    st.integers(0, 13) | st.integers(0, (1 << 64) - 1),
    st.sampled_from([ARGUMENT, ARGUMENT + 4080, UNMAPPED - 4]) | st.integers(0, (1 << 64) - 1),
    st.integers(0, 4) | st.sampled_from([1 << 31, 1 << 30]),
    st.lists(words, min_size=12, max_size=40),
    st.binary(max_size=64),
)
def test_any_operation(width: int, command: int, pointer: int, count: int, values: list[int], table: bytes) -> None:
    world = World(width, 64)
    guest = world.guests[0]
    at = world.guests[1].domain.grants.offset(0)
    guest.hv.ram[at : at + len(table)] = table
    references = sum(guest.hv.frames.type_count.tolist())
    data = struct.pack(f"<{len(values)}I", *values)
    mask = (1 << width) - 1
    grown = len(guest.domain.grants.frames)
    fuzz(guest, do_grant_table_op, (command & mask, pointer & mask, count, 0), data)
    grown = len(guest.domain.grants.frames) - grown
    assert sum(guest.hv.frames.type_count.tolist()) == references + grown, "every type that was taken is given back"
