"""Mapping what another domain grants: entries, references, marks and handles, and that nothing outlives them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes import A, D, P, U, W
from tests.fakes_xen import ARGUMENT, World, XenGuest
from tests.tiny_kernels import FOREVER, MEMORY, Tiny
from xentui.config import GuestSpec
from xentui.engine.machine import Machine, Stop
from xentui.engine.trace import Kind
from xentui.engine.x86.paging import GLOBAL, NX
from xentui.engine.x86.state import RDI, RDX, RIP, RSI
from xentui.engine.xen import grant_map
from xentui.engine.xen.abi import grant_table as abi
from xentui.engine.xen.abi.core import DOMID_SELF
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain_kill import domain_kill
from xentui.engine.xen.grant_entries import ENTRIES_PER_FRAME, ENTRIES_PER_FRAME_V2, HANDLES_PER_FRAME, MapTrack
from xentui.engine.xen.grant_table import do_grant_table_op
from xentui.engine.xen.memory import put_allocation
from xentui.engine.xen.page import DOMID_INVALID, L1, WRITABLE
from xentui.engine.xen.page_type import get_page_and_type, put_page_and_type
from xentui.engine.xen.pte import GUEST_KERNEL

BOTH = pytest.mark.parametrize("width", [32, 64])
EBUSY, EINVAL, ERANGE, EPERM, EOPNOTSUPP, EILSEQ = 16, 22, 34, 1, 95, 84
HOLE = 200 << 12
"""An address of the guests' first L1 that maps nothing."""
HOST, DEVICE, READONLY = abi.GNTMAP_host_map, abi.GNTMAP_device_map, abi.GNTMAP_readonly
REFERENCE = 9


class Mapped:
    """The answer to GNTTABOP_map_grant_ref."""

    def __init__(self, data: bytes) -> None:
        _, _, _, _, self.status, self.handle, self.bus = struct.unpack("<QIIHhIQ", data)


def op(guest: XenGuest, command: int, data: bytes, count: int = 1) -> int:
    return guest.call(do_grant_table_op, command, data, count)


def grant(guest: XenGuest, peer: XenGuest, pfn: int, flags: int = abi.GTF_permit_access) -> int:
    mfn = guest.guest.p2m[pfn]
    table = guest.domain.grants
    at = table.offset(REFERENCE)
    struct.pack_into("<HH", guest.hv.ram, at, flags, peer.domain.id)
    table.set_word(*((at + 4, 4) if table.version == 1 else (at + 8, 8)), mfn)
    return mfn


def marks(guest: XenGuest) -> int:
    table = guest.domain.grants
    return table.word(table.marks_at(REFERENCE), 2) & (abi.GTF_reading | abi.GTF_writing)


def map_ref(guest: XenGuest, domid: int, where: int = HOLE, flags: int = HOST, reference: int = REFERENCE) -> Mapped:
    assert op(guest, abi.GNTTABOP_map_grant_ref, struct.pack("<QIIHhIQ", where, flags, reference, domid, 99, 7, 7)) == 0
    return Mapped(guest.get(32))


def unmap(
    guest: XenGuest, handle: int, where: int = HOLE, second: int = 0, command: int = abi.GNTTABOP_unmap_grant_ref
) -> int:
    assert op(guest, command, struct.pack("<QQIhxx", where, second, handle, 99)) == 0
    return int(struct.unpack("<h", guest.get(2, ARGUMENT + 20))[0])


def entry_index(guest: XenGuest, where: int = HOLE) -> int:
    return (guest.guest.tables["l1"] << 9) + (where >> 12)


def entry(guest: XenGuest, where: int = HOLE) -> int:
    return guest.hv.ram64[entry_index(guest, where)]


def end(guest: XenGuest) -> None:
    """Destroy the domain as the toolstack does."""
    assert [found for _ in domain_kill(guest.domain) for found in audit(guest.hv)] == []
    del guest.hv.domains[guest.domain.id]


def pair(taker_width: int = 64) -> tuple[XenGuest, XenGuest]:
    giver, taker = World(64, taker_width).guests
    return giver, taker


# --- mapping and unmapping ------------------------------------------------------------------------------------------


@BOTH
def test_map_write_and_unmap(width: int) -> None:
    giver, taker = pair(width)
    mfn = grant(giver, taker, 50)
    frames = giver.hv.frames
    before = frames.ref_count[mfn], frames.type_count[mfn]
    done = map_ref(taker, giver.domain.id)
    assert (done.status, done.handle, done.bus) == (abi.GNTST_okay, 0, mfn << 12)
    kernel = U | GUEST_KERNEL if width == 64 else 0
    assert entry(taker) == mfn << 12 | P | W | A | D | NX | kernel
    assert (frames.ref_count[mfn], frames.type_count[mfn]) == (before[0] + 1, before[1] + 1)
    assert marks(giver) == abi.GTF_reading | abi.GTF_writing
    taker.vcpu.ram[taker.vcpu.space.write_page(HOLE) + 5] = 0x5A
    assert giver.get(1, (50 << 12) + 5) == b"\x5a"
    assert audit(giver.hv) == []
    assert unmap(taker, done.handle) == abi.GNTST_okay
    assert entry(taker) == 0 and marks(giver) == 0
    assert (frames.ref_count[mfn], frames.type_count[mfn]) == before
    assert audit(giver.hv) == []
    assert unmap(taker, done.handle) == abi.GNTST_bad_handle


@pytest.mark.parametrize(
    ("flags", "bits"),
    [
        (HOST | READONLY, U | GUEST_KERNEL),
        (HOST | READONLY | abi.GNTMAP_application_map, U | GLOBAL),
        (HOST | abi.GNTMAP_application_map, W | U | GLOBAL),
        (HOST | READONLY | 5 << 16, U | GUEST_KERNEL | 5 << 9),
        (HOST | READONLY | 8 << 16, U | GUEST_KERNEL),
    ],
)
def test_flags_become_bits(flags: int, bits: int) -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    done = map_ref(taker, giver.domain.id, flags=flags)
    assert done.status == abi.GNTST_okay
    assert entry(taker) == mfn << 12 | P | A | D | NX | bits
    assert audit(giver.hv) == []
    assert unmap(taker, done.handle) == abi.GNTST_okay


@BOTH
def test_map_by_the_entry_itself(width: int) -> None:
    giver, taker = pair(width)
    mfn = grant(giver, taker, 50)
    where, flags = entry_index(taker) << 3, HOST | abi.GNTMAP_contains_pte
    for off in range(1, 8):
        assert map_ref(taker, giver.domain.id, where + off, flags).status == abi.GNTST_general_error
    table = taker.guest.tables["l2"] << 12
    for wrong in (table, taker.guest.p2m[51] << 12, giver.guest.tables["l1"] << 12, 1 << 50):
        assert map_ref(taker, giver.domain.id, wrong, flags).status == abi.GNTST_general_error
    assert marks(giver) == 0 and not giver.domain.grants.active and audit(giver.hv) == []
    done = map_ref(taker, giver.domain.id, where, flags)
    assert done.status == abi.GNTST_okay and entry(taker) >> 12 & 0xFFFFF == mfn
    assert unmap(taker, done.handle, where, HOLE, abi.GNTTABOP_unmap_and_replace) == abi.GNTST_general_error
    assert unmap(taker, done.handle, where + 8) == abi.GNTST_general_error, "another entry"
    assert unmap(taker, done.handle, where) == abi.GNTST_okay
    assert audit(giver.hv) == []


def test_what_was_mapped_there_is_let_go() -> None:
    giver, taker = pair()
    grant(giver, taker, 50)
    old, frames = taker.guest.p2m[51], giver.hv.frames
    count = frames.ref_count[old]
    done = map_ref(taker, giver.domain.id, 51 << 12)
    assert done.status == abi.GNTST_okay and frames.ref_count[old] == count - 1
    assert unmap(taker, done.handle, 51 << 12) == abi.GNTST_okay
    assert audit(giver.hv) == []


def test_refusals() -> None:
    giver, taker = pair()
    grant(giver, taker, 50)

    def status(domid: int = 1, where: int = HOLE, flags: int = HOST, reference: int = REFERENCE) -> int:
        done = map_ref(taker, domid, where, flags, reference)
        assert (done.handle, done.bus) == (7, 7), "left as they were"
        return done.status

    assert status(flags=READONLY) == abi.GNTST_bad_gntref
    assert status(reference=ENTRIES_PER_FRAME) == abi.GNTST_bad_gntref
    assert status(reference=8) == abi.GNTST_general_error
    assert status(7) == abi.GNTST_bad_domain
    assert status(DOMID_SELF) == abi.GNTST_bad_domain
    assert status(0) == abi.GNTST_general_error
    for where in (1 << 47, 0xFFFF_8000_0000_0000, 0x4000_0000):
        assert status(where=where) == abi.GNTST_general_error
    grant(giver, taker, 50, abi.GTF_permit_access | abi.GTF_readonly)
    assert status() == abi.GNTST_general_error
    grant(giver, giver, 50)
    assert status() == abi.GNTST_general_error, "granted to somebody else"
    grant(giver, taker, 50, abi.GTF_permit_access | abi.GTF_sub_page)
    assert status() == abi.GNTST_general_error
    grant(giver, taker, 0)
    assert status() == abi.GNTST_general_error, "a page table, writable"
    giver.domain.grants.set_word(giver.domain.grants.offset(REFERENCE) + 4, 4, taker.guest.p2m[50])
    assert status() == abi.GNTST_bad_page
    giver.domain.grants.set_word(giver.domain.grants.offset(REFERENCE) + 4, 4, 0xFFFF_FFFF)
    assert status() == abi.GNTST_bad_page
    assert marks(giver) == 0 and not giver.domain.grants.active and audit(giver.hv) == []
    assert map_ref(taker, giver.domain.id, flags=HOST | READONLY).status == abi.GNTST_bad_page
    grant(giver, taker, 0)
    assert map_ref(taker, giver.domain.id, flags=HOST | READONLY).status == abi.GNTST_okay, "it may be read"
    assert audit(giver.hv) == []


def test_a_32_bit_guest_has_no_addresses_above_4_gib() -> None:
    giver, taker = pair(32)
    grant(giver, taker, 50)
    assert map_ref(taker, giver.domain.id, HOLE | 1 << 32).status == abi.GNTST_general_error
    done = map_ref(taker, giver.domain.id)
    replace = abi.GNTTABOP_unmap_and_replace
    assert unmap(taker, done.handle, HOLE, 51 << 12 | 1 << 32, replace) == abi.GNTST_general_error
    assert unmap(taker, done.handle, HOLE, 51 << 12, replace) == abi.GNTST_okay
    assert entry(taker) >> 12 & 0xFFFFF == taker.guest.p2m[51] and entry(taker, 51 << 12) == 0
    assert audit(giver.hv) == []


def test_unmap_and_replace_that_fails_loses_what_it_took() -> None:
    """As on Xen, whose comment calls the operation bizarre."""
    giver, taker = pair()
    grant(giver, taker, 50)
    done = map_ref(taker, giver.domain.id)
    replace = abi.GNTTABOP_unmap_and_replace
    assert unmap(taker, done.handle, HOLE, 0x4000_0000, replace) == abi.GNTST_general_error
    assert unmap(taker, done.handle, 52 << 12, 51 << 12, replace) == abi.GNTST_general_error, "not what is mapped"
    assert entry(taker, 51 << 12) == 0
    assert audit(giver.hv) == []
    assert unmap(taker, done.handle, HOLE, 0, replace) == abi.GNTST_okay


def test_a_domain_maps_its_own_grant() -> None:
    guest = World(64).guests[0]
    mfn = grant(guest, guest, 50)
    done = map_ref(guest, guest.domain.id)
    assert done.status == abi.GNTST_okay and entry(guest) >> 12 & 0xFFFFF == mfn
    assert audit(guest.hv) == []
    assert unmap(guest, done.handle) == abi.GNTST_okay
    assert audit(guest.hv) == []


# --- device mappings, pins, handles ---------------------------------------------------------------------------------


def test_device_mappings() -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    frames = giver.hv.frames
    before = frames.ref_count[mfn], frames.type_count[mfn]
    done = map_ref(taker, giver.domain.id, flags=DEVICE | HOST)
    assert (frames.ref_count[mfn], frames.type_count[mfn]) == (before[0] + 2, before[1] + 2)
    assert audit(giver.hv) == []
    assert unmap(taker, done.handle, HOLE, (mfn << 12) + 4096) == abi.GNTST_bad_dev_addr
    assert unmap(taker, done.handle, 0, 0) == abi.GNTST_okay, "nothing is asked for"
    assert unmap(taker, done.handle, HOLE) == abi.GNTST_okay
    assert (frames.ref_count[mfn], frames.type_count[mfn]) == (before[0] + 1, before[1] + 1)
    assert marks(giver) == abi.GTF_reading | abi.GTF_writing and audit(giver.hv) == []
    assert unmap(taker, done.handle, HOLE, mfn << 12) == abi.GNTST_okay
    assert (frames.ref_count[mfn], frames.type_count[mfn]) == before and marks(giver) == 0
    assert unmap(taker, done.handle, 0, mfn << 12) == abi.GNTST_bad_handle
    reading = map_ref(taker, giver.domain.id, flags=DEVICE | READONLY)
    assert frames.type_count[mfn] == before[1] and marks(giver) == abi.GTF_reading
    assert audit(giver.hv) == []
    assert unmap(taker, reading.handle, 0, mfn << 12) == abi.GNTST_okay
    assert audit(giver.hv) == []


def test_marks_follow_the_kinds_of_use() -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    read, write = HOST | READONLY, HOST
    first = map_ref(taker, giver.domain.id, HOLE, read)
    assert marks(giver) == abi.GTF_reading
    second = map_ref(taker, giver.domain.id, HOLE + 4096, write)
    assert marks(giver) == abi.GTF_reading | abi.GTF_writing
    assert unmap(taker, second.handle, HOLE) == abi.GNTST_general_error, "HOLE is mapped read-only"
    assert unmap(taker, second.handle, HOLE + 4096) == abi.GNTST_okay
    assert marks(giver) == abi.GTF_reading
    grant(giver, giver, 51)  # what is written over an entry in use changes no mapping
    third = map_ref(taker, giver.domain.id, HOLE + 4096, read)
    assert third.bus == mfn << 12
    table = giver.domain.grants
    table.set_word(table.offset(REFERENCE), 2, abi.GTF_permit_access | abi.GTF_readonly)
    assert map_ref(taker, giver.domain.id, HOLE + 8192, write).status == abi.GNTST_general_error
    for done, where in ((first, HOLE), (third, HOLE + 4096)):
        assert unmap(taker, done.handle, where) == abi.GNTST_okay
    assert audit(giver.hv) == []


def test_a_pin_count_does_not_overflow() -> None:
    giver, taker = pair()
    grant(giver, taker, 50)
    flags = DEVICE | READONLY
    taken = [map_ref(taker, giver.domain.id, flags=flags) for _ in range(128)]
    assert {done.status for done in taken} == {abi.GNTST_okay}
    assert map_ref(taker, giver.domain.id, flags=flags).status == abi.GNTST_general_error
    assert map_ref(taker, giver.domain.id).status == abi.GNTST_okay, "another counter"
    assert audit(giver.hv) == []


def test_handles_in_the_order_of_xen() -> None:
    track = MapTrack(2)
    first = [track.take() for _ in range(HANDLES_PER_FRAME - 1)]
    assert first == list(range(HANDLES_PER_FRAME - 1)), "the last one of a frame stays at the end of the list"
    track.give_back(5)
    assert track.take() == HANDLES_PER_FRAME - 1
    assert track.take() == HANDLES_PER_FRAME, "the one given back last is the end now"
    rest = []
    while (handle := track.take()) >= 0:
        rest.append(handle)
    assert rest == list(range(HANDLES_PER_FRAME + 1, 2 * HANDLES_PER_FRAME))
    assert track.take() == -1


def test_no_handle_left() -> None:
    giver, taker = pair()
    grant(giver, taker, 50)
    taker.domain.grants.maptrack = MapTrack(0)
    assert map_ref(taker, giver.domain.id).status == abi.GNTST_no_space


def test_an_entry_in_use_is_busy() -> None:
    giver, taker = pair()
    grant(giver, taker, 50)
    done = map_ref(taker, giver.domain.id)
    swap = struct.pack("<IIhxx", REFERENCE, 100, 99)
    assert op(giver, abi.GNTTABOP_swap_grant_ref, swap) == 0
    assert struct.unpack("<h", giver.get(2, ARGUMENT + 8)) == (abi.GNTST_eagain,)
    assert op(giver, abi.GNTTABOP_set_version, struct.pack("<I", 2)) == -EBUSY and giver.number(0) == 1
    assert unmap(taker, done.handle) == abi.GNTST_okay
    assert op(giver, abi.GNTTABOP_swap_grant_ref, swap) == 0
    assert struct.unpack("<h", giver.get(2, ARGUMENT + 8)) == (abi.GNTST_okay,)
    assert op(giver, abi.GNTTABOP_set_version, struct.pack("<I", 2)) == 0


# --- what the guest does to the entry itself ------------------------------------------------------------------------


@BOTH
def test_a_granted_frame_is_mapped_by_grants_only(width: int) -> None:
    giver, taker = pair(width)
    mfn = grant(giver, taker, 50)
    done = map_ref(taker, giver.domain.id, flags=HOST | READONLY)
    granted, update = entry(taker), taker.guest.update
    assert update(entry_index(taker, HOLE + 4096) << 3, mfn << 12 | P | U) == -EBUSY
    assert update(entry_index(taker) << 3, granted | W) == -EBUSY
    assert update(entry_index(taker) << 3, granted & ~NX & ~D) == 0, "flags that nobody counts"
    assert audit(giver.hv) == []
    assert unmap(taker, done.handle) == abi.GNTST_okay
    assert update(entry_index(taker) << 3, granted) == -EBUSY


@BOTH
def test_an_overwritten_entry_gives_its_references_back(width: int) -> None:
    giver, taker = pair(width)
    mfn = grant(giver, taker, 50)
    frames = giver.hv.frames
    before = frames.ref_count[mfn], frames.type_count[mfn]
    done = map_ref(taker, giver.domain.id)
    assert taker.guest.update(entry_index(taker) << 3, 0) == 0
    assert (frames.ref_count[mfn], frames.type_count[mfn]) == before and audit(giver.hv) == []
    assert unmap(taker, done.handle) == abi.GNTST_general_error, "there is no such mapping to undo"
    assert marks(giver) == abi.GTF_reading | abi.GTF_writing, "only the domain's end frees the entry"
    end(taker)
    assert marks(giver) == 0 and not giver.domain.grants.active and audit(giver.hv) == []


def test_no_translation_outlives_a_frame_that_becomes_a_page_table() -> None:
    """The entry is overwritten without a flush, then the granter pins its frame (XSA-286 and its kin)."""
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    map_ref(taker, giver.domain.id)
    tlb = taker.vcpu.processor.tlb  # type: ignore[attr-defined]
    taker.guest.touch(HOLE)
    assert tlb[HOLE >> 12] == (mfn, True)
    assert taker.guest.update(entry_index(taker) << 3, 0) == 0
    giver.hv.ram[mfn << 12 : mfn + 1 << 12] = bytes(4096)
    assert giver.guest.update(entry_index(giver, 50 << 12) << 3, 0) == 0
    assert HOLE >> 12 in tlb
    assert get_page_and_type(giver.domain, mfn, L1) == 0
    assert HOLE >> 12 not in tlb
    put_page_and_type(giver.domain, mfn)


def test_no_translation_outlives_a_frame_that_is_freed() -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    map_ref(taker, giver.domain.id)
    tlb = taker.vcpu.processor.tlb  # type: ignore[attr-defined]
    assert giver.guest.update(entry_index(giver, 50 << 12) << 3, 0) == 0
    put_allocation(giver.hv, mfn)
    assert giver.hv.frames.owner[mfn] == giver.domain.id, "it is mapped still"
    taker.guest.touch(HOLE)
    assert taker.guest.update(entry_index(taker) << 3, 0) == 0
    assert giver.hv.frames.owner[mfn] == DOMID_INVALID and HOLE >> 12 not in tlb
    assert mfn not in giver.hv.grant_mappers


def test_no_translation_outlives_the_granter() -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    map_ref(taker, giver.domain.id)
    taker.guest.touch(HOLE)
    assert taker.guest.update(entry_index(taker) << 3, 0) == 0
    assert HOLE >> 12 in taker.vcpu.processor.tlb  # type: ignore[attr-defined]
    end(giver)
    assert giver.hv.frames.owner[mfn] == DOMID_INVALID and giver.hv.grant_mappers == {}
    assert HOLE >> 12 not in taker.vcpu.processor.tlb  # type: ignore[attr-defined]


def test_no_translation_outlives_a_transfer() -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    map_ref(taker, giver.domain.id)
    taker.guest.touch(HOLE)
    for guest, where in ((taker, HOLE), (giver, 50 << 12)):
        assert guest.guest.update(entry_index(guest, where) << 3, 0) == 0
    assert op(giver, abi.GNTTABOP_transfer, struct.pack("<QHxxIh6x", mfn, taker.domain.id, 20, 99)) == 0
    assert struct.unpack("<h", giver.get(2, ARGUMENT + 16)) == (abi.GNTST_general_error,), "nobody asked: it is free"
    assert HOLE >> 12 not in taker.vcpu.processor.tlb  # type: ignore[attr-defined]
    assert giver.hv.frames.owner[mfn] == DOMID_INVALID and audit(giver.hv) == []


def test_unmapping_flushes() -> None:
    giver, taker = pair()
    grant(giver, taker, 50)
    done = map_ref(taker, giver.domain.id)
    taker.guest.touch(HOLE)
    assert unmap(taker, done.handle) == abi.GNTST_okay
    assert HOLE >> 12 not in taker.vcpu.processor.tlb  # type: ignore[attr-defined]
    assert taker.vcpu.space.read_page(HOLE) == -1


# --- ends of domains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [HOST, HOST | READONLY, DEVICE, DEVICE | HOST, DEVICE | HOST | READONLY])
def test_the_mapper_ends(flags: int) -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    before = giver.hv.frames.ref_count[mfn], giver.hv.frames.type_count[mfn]
    assert map_ref(taker, giver.domain.id, flags=flags).status == abi.GNTST_okay
    end(taker)
    assert (giver.hv.frames.ref_count[mfn], giver.hv.frames.type_count[mfn]) == before
    assert marks(giver) == 0 and not giver.domain.grants.active
    assert giver.hv.frames.owned_by(taker.domain.id) == [] and audit(giver.hv) == []


@pytest.mark.parametrize("flags", [HOST, DEVICE | HOST])
def test_the_granter_ends_first(flags: int) -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    done = map_ref(taker, giver.domain.id, flags=flags)
    end(giver)
    frames = giver.hv.frames
    assert frames.owned_by(giver.domain.id) == [mfn] and audit(giver.hv) == []
    taker.vcpu.ram[taker.vcpu.space.write_page(HOLE)] = 1
    assert map_ref(taker, giver.domain.id, HOLE + 4096).status == abi.GNTST_bad_domain
    assert unmap(taker, done.handle, HOLE, mfn << 12 if flags & DEVICE else 0) == abi.GNTST_okay
    assert frames.owner[mfn] == DOMID_INVALID and audit(giver.hv) == []


def test_both_end() -> None:
    giver, taker = pair()
    grant(giver, taker, 50)
    free = giver.hv.frames.free_frames
    pages = len(giver.hv.frames.owned_by(1)) + len(giver.hv.frames.owned_by(2))
    own = len(giver.domain.xen_frames) + len(taker.domain.xen_frames) - 2
    map_ref(taker, giver.domain.id, flags=DEVICE | HOST)
    end(giver)
    end(taker)
    assert giver.hv.frames.free_frames == free + pages + own and audit(giver.hv) == []


@BOTH
def test_without_the_validator_references_are_the_handles(width: int) -> None:
    giver, taker = pair(width)
    mfn = grant(giver, taker, 50)
    taker.domain.validated = False
    before = giver.hv.frames.ref_count[mfn], giver.hv.frames.type_count[mfn]
    assert map_ref(taker, giver.domain.id, HOLE + 4096).status == abi.GNTST_okay
    done = map_ref(taker, giver.domain.id)
    assert not [line for line in audit(giver.hv) if f"mfn {mfn:#x}" in line]
    assert unmap(taker, done.handle) == abi.GNTST_okay
    end(taker)
    assert (giver.hv.frames.ref_count[mfn], giver.hv.frames.type_count[mfn]) == before


@BOTH
@pytest.mark.parametrize("granter_first", [False, True])
def test_machines_get_their_memory_back(tmp_path: Path, width: int, granter_first: bool) -> None:
    """Two domains of a real machine that map each other's pages, use FIFO event channels, and are destroyed."""
    image = Tiny(width).do(FOREVER).write(tmp_path / "spinner")
    with Machine(2 * MEMORY) as machine:
        hv, free = machine.hv, machine.hv.frames.free_frames
        domains = [machine.create(GuestSpec(f"d{number}", image, memory=MEMORY)) for number in (1, 2)]
        machine.run(5_000_000)
        for domain, other in (domains, domains[::-1]):
            plain = [mfn for mfn in hv.frames.owned_by(domain.id) if hv.frames.type[mfn] == WRITABLE]
            table = domain.grants
            table.set_word(table.offset(REFERENCE), 4, abi.GTF_permit_access | other.id << 16)
            table.set_word(table.offset(REFERENCE) + 4, 4, plain[-1])
            assert domain.events.init_control(0, plain[-2], 0) == 0
        for domain, other in (domains, domains[::-1]):
            slot = next(
                index
                for mfn in hv.frames.owned_by(domain.id)
                if hv.frames.type[mfn] == L1 and hv.frames.type_count[mfn]
                for index in range(mfn << 9, mfn + 1 << 9)
                if hv.ram64[index] & W and hv.frames.type[hv.ram64[index] >> 12 & 0xFFFFF] == WRITABLE
            )
            flags = HOST | DEVICE | abi.GNTMAP_contains_pte
            status, frame, _ = grant_map._map(domain.vcpus[0], slot << 3, flags, REFERENCE, other.id)
            assert status == abi.GNTST_okay and hv.frames.owner[frame] == other.id
        assert machine.run(10_000_000) == Stop.TIME and audit(hv) == []
        for domain in domains if granter_first else domains[::-1]:
            machine.toolstack.destroy(domain)
            assert audit(hv) == []
        assert machine.run() == Stop.FINISHED and audit(hv) == []
        assert hv.frames.free_frames == free and hv.grant_mappers == {}


# --- version 2 ------------------------------------------------------------------------------------------------------


def version_2(guest: XenGuest) -> None:
    assert op(guest, abi.GNTTABOP_set_version, struct.pack("<I", 2)) == 0 and guest.number(0) == 2


@BOTH
def test_version_2_keeps_the_toolstacks_references(width: int) -> None:
    guest = World(width).guests[0]
    table = guest.domain.grants
    table.seed(1, 0, 77)
    table.set_word(table.offset(1), 2, abi.GTF_permit_access | abi.GTF_reading)
    grant(guest, guest, 50)
    version_2(guest)
    assert table.entries == ENTRIES_PER_FRAME_V2 and len(table.status_frames) == 1
    assert table.entry(1) == (abi.GTF_permit_access, 0, 77)
    assert table.word(table.marks_at(1), 2) == abi.GTF_reading
    assert table.entry(REFERENCE) == (0, 0, 0), "the rest is cleared"
    wide = "<IHhQ" if width == 64 else "<IHhIxxxx"
    assert op(guest, abi.GNTTABOP_get_status_frames, struct.pack(wide, 1, DOMID_SELF, 9, ARGUMENT + 256)) == 0
    assert struct.unpack("<h", guest.get(2, ARGUMENT + 6)) == (abi.GNTST_okay,)
    assert guest.number(256, 8) == table.status_frames[0]
    assert op(guest, abi.GNTTABOP_get_status_frames, struct.pack(wide, 2, DOMID_SELF, 9, ARGUMENT + 256)) == 0
    assert struct.unpack("<h", guest.get(2, ARGUMENT + 6)) == (abi.GNTST_general_error,)
    assert op(guest, abi.GNTTABOP_set_version, struct.pack("<I", 1)) == 0
    assert table.entry(1) == (abi.GTF_permit_access | abi.GTF_reading, 0, 77) and not table.status_frames
    assert audit(guest.hv) == []


def test_version_2_grows_its_status_frames() -> None:
    guest = World(64).guests[0]
    version_2(guest)
    assert guest.domain.grants.grow(8) and len(guest.domain.grants.status_frames) == 1
    assert guest.domain.grants.grow(9) and len(guest.domain.grants.status_frames) == 2
    assert audit(guest.hv) == []


def test_back_to_version_1_is_refused_while_it_cannot_be() -> None:
    guest = World(64).guests[0]
    version_2(guest)
    table = guest.domain.grants
    status = table.status_frames[0]
    assert guest.guest.update(entry_index(guest) << 3, status << 12 | P | W | U) == 0
    assert op(guest, abi.GNTTABOP_set_version, struct.pack("<I", 1)) == -EBUSY and guest.number(0) == 2
    assert guest.guest.update(entry_index(guest) << 3, 0) == 0
    table.set_word(table.offset(3), 2, abi.GTF_transitive)
    assert op(guest, abi.GNTTABOP_set_version, struct.pack("<I", 1)) == -ERANGE
    table.set_word(table.offset(3), 2, abi.GTF_permit_access)
    table.set_word(table.offset(3) + 8, 8, 1 << 32)
    assert op(guest, abi.GNTTABOP_set_version, struct.pack("<I", 1)) == -ERANGE
    table.set_word(table.offset(3) + 8, 8, 5)
    assert op(guest, abi.GNTTABOP_set_version, struct.pack("<I", 1)) == 0
    assert guest.hv.frames.owner[status] != guest.domain.id and audit(guest.hv) == []


def test_version_2_full_pages_are_mapped() -> None:
    giver, taker = pair()
    version_2(giver)
    mfn = grant(giver, taker, 50)
    done = map_ref(taker, giver.domain.id)
    assert (done.status, done.bus) == (abi.GNTST_okay, mfn << 12)
    assert giver.domain.grants.entry(REFERENCE).flags == abi.GTF_permit_access, "the marks are elsewhere"
    assert marks(giver) == abi.GTF_reading | abi.GTF_writing
    assert unmap(taker, done.handle) == abi.GNTST_okay and marks(giver) == 0
    for flags in (abi.GTF_permit_access | abi.GTF_sub_page, abi.GTF_transitive, abi.GTF_accept_transfer, 0):
        grant(giver, taker, 50, flags)
        assert map_ref(taker, giver.domain.id).status == abi.GNTST_general_error


def copy(guest: XenGuest, domid: int, at: int, size: int, to_grant: bool = False, reference: int = REFERENCE) -> int:
    """GNTTABOP_copy between a grant, from `at`, and the start of the guest's own page 51; its status."""
    own = (guest.guest.p2m[51], DOMID_SELF, 0)
    sides = ((own, (reference, domid, at)), ((reference, domid, at), own))[not to_grant]
    flags = abi.GNTCOPY_dest_gref if to_grant else abi.GNTCOPY_source_gref
    assert op(guest, abi.GNTTABOP_copy, struct.pack("<QHH4xQHH4xHHhxx", *sides[0], *sides[1], size, flags, 99)) == 0
    return int(struct.unpack("<h", guest.get(2, ARGUMENT + 36))[0])


def test_sub_pages_are_copied_within_their_bounds() -> None:
    giver, taker = pair()
    version_2(giver)
    grant(giver, taker, 50, abi.GTF_permit_access | abi.GTF_sub_page)
    table = giver.domain.grants
    table.set_word(table.offset(REFERENCE) + 4, 2, 100)
    table.set_word(table.offset(REFERENCE) + 6, 2, 16)
    giver.put((50 << 12) + 100, b"sixteen bytes...")
    assert copy(taker, 1, 100, 16) == abi.GNTST_okay
    assert taker.get(16, 51 << 12) == b"sixteen bytes..."
    assert copy(taker, 1, 99, 1) == abi.GNTST_general_error
    assert copy(taker, 1, 115, 2) == abi.GNTST_general_error
    assert copy(taker, 1, 115, 1, to_grant=True) == abi.GNTST_okay
    assert marks(giver) == 0 and not table.active


def test_transitive_grants_are_copied() -> None:
    owner, middle, taker = World(64, 64, 64).guests
    version_2(middle)
    mfn = grant(owner, middle, 50)
    grant(middle, taker, 0, abi.GTF_transitive)
    table = middle.domain.grants
    table.set_word(table.offset(REFERENCE) + 4, 2, owner.domain.id)
    table.set_word(table.offset(REFERENCE) + 8, 4, REFERENCE)
    owner.put(50 << 12, b"passed on")
    assert copy(taker, middle.domain.id, 0, 9) == abi.GNTST_okay
    assert taker.get(9, 51 << 12) == b"passed on"
    assert copy(taker, middle.domain.id, 6, 1, to_grant=True) == abi.GNTST_okay and owner.get(1, (50 << 12) + 6) == b"p"
    assert copy(taker, owner.domain.id, 0, 9) == abi.GNTST_general_error, "not granted to the taker itself"
    assert map_ref(taker, middle.domain.id).status == abi.GNTST_general_error, "passed on for copies only"
    grant(owner, middle, 50, abi.GTF_permit_access | abi.GTF_readonly)
    assert copy(taker, middle.domain.id, 6, 1, to_grant=True) == abi.GNTST_general_error
    for domid in (middle.domain.id, 99):
        table.set_word(table.offset(REFERENCE) + 4, 2, domid)
        assert copy(taker, middle.domain.id, 0, 1) == abi.GNTST_general_error
    version_2(owner)
    grant(owner, middle, 0, abi.GTF_transitive)
    table.set_word(table.offset(REFERENCE) + 4, 2, owner.domain.id)
    assert copy(taker, middle.domain.id, 0, 1) == abi.GNTST_general_error, "one level only"
    assert not any(guest.domain.grants.active for guest in (owner, middle)) and marks(owner) == marks(middle) == 0
    assert owner.hv.frames.ref_count[mfn] == 2 and audit(owner.hv) == []


# --- caches and the trace -------------------------------------------------------------------------------------------


def test_cache_flush() -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)

    def flush(address: int, operation: int = 1, offset: int = 0, length: int = 64, resumed: int = 0) -> int:
        return op(
            taker, abi.GNTTABOP_cache_flush | resumed << 12, struct.pack("<QHHI", address, offset, length, operation)
        )

    own = taker.guest.p2m[50] << 12
    assert flush(own) == flush(own, 3) == flush(own, 0) == flush(own, length=0) == 0
    assert flush(own, 2) == -EOPNOTSUPP
    assert flush(own, 4) == flush(own, abi.GNTTAB_CACHE_SOURCE_GREF) == flush(own, offset=4096) == -EINVAL
    assert flush(own, offset=4090, length=7) == -EINVAL and flush(1 << 40) == -EINVAL
    assert flush(giver.hv.zero_frame << 12) == -EPERM
    assert flush(mfn << 12) == -EINVAL, "not mapped"
    map_ref(taker, giver.domain.id)
    assert flush(mfn << 12) == 0 and flush(mfn << 12, resumed=1) == -EINVAL
    assert flush(own, 0, resumed=1) == -EILSEQ


def test_trace() -> None:
    giver, taker = pair()
    mfn = grant(giver, taker, 50)
    hv = giver.hv
    records: list[tuple[int, ...]] = []
    hv.put = lambda *record: records.append(record)  # type: ignore[method-assign,assignment]
    done = map_ref(taker, giver.domain.id)
    unmap(taker, done.handle)
    unmap(taker, done.handle)
    grants = [(record[5], *record[6:10], record[10]) for record in records if record[2] == Kind.GRANT]
    assert grants == [
        (abi.GNTTABOP_map_grant_ref, REFERENCE, mfn, 1, HOST, 0),
        (abi.GNTTABOP_unmap_grant_ref, REFERENCE, mfn, 1, HOST, 0),
        (abi.GNTTABOP_unmap_grant_ref, 0xFFFF_FFFF, 0, 0, 0, abi.GNTST_bad_handle & (1 << 64) - 1),
    ]


def test_long_operations_give_way() -> None:
    """Preempted after each element, they are the same in the end; RIP and registers say what is left."""
    giver, taker = pair()
    grant(giver, taker, 50)
    operations = b"".join(
        struct.pack("<QIIHhIQ", HOLE + (number << 12), HOST, REFERENCE, giver.domain.id, 99, 7, 7)
        for number in range(40)
    )
    taker.hv.preempt = lambda: True
    q = taker.vcpu.q

    def go_on(command: int, count: int, data: bytes, size: int) -> int:
        taker.put(ARGUMENT, data)
        q[RDI], q[RSI], q[RDX], q[RIP], calls = command, ARGUMENT, count, 0x1002, 0
        while q[RIP] == 0x1002:
            calls += 1
            left = q[RDX]
            if do_grant_table_op(taker.vcpu, q[RDI], q[RSI], q[RDX], 0) == 0:
                break
            assert q[RIP] == 0x1000 and q[RSI] == ARGUMENT + (count - q[RDX]) * size and q[RDX] < left
            q[RIP] = 0x1002
        return calls

    assert go_on(abi.GNTTABOP_map_grant_ref, 40, operations, 32) == 40
    assert sorted(taker.domain.grants.maptrack.mappings) == list(range(40)) and audit(giver.hv) == []
    undo = b"".join(struct.pack("<QQIhxx", HOLE + (number << 12), 0, number, 99) for number in range(40))
    assert go_on(abi.GNTTABOP_unmap_grant_ref, 40, undo, 24) == 2, "in batches of 32"
    assert not taker.domain.grants.maptrack.mappings and audit(giver.hv) == []


# --- any sequence ---------------------------------------------------------------------------------------------------

numbers = st.integers(0, 5)
steps = st.lists(
    st.tuples(st.integers(0, 11), st.booleans(), numbers, numbers, numbers),
    min_size=10,
    max_size=60,
)


def step(guest: XenGuest, peer: XenGuest, kind: int, a: int, b: int, c: int) -> None:
    """One of the things that a guest can do with grants."""
    table, where = guest.domain.grants, HOLE + (b << 12)
    if kind < 3:
        flags = (1, 1, 5, 3, 2, 0x101)[a]
        at = table.offset(8 + b)
        struct.pack_into("<HH", guest.hv.ram, at, flags, peer.domain.id)
        table.set_word(*((at + 4, 4) if table.version == 1 else (at + 8, 8)), guest.guest.p2m[c * 10])
    elif kind < 6:
        flags = (HOST, HOST | READONLY, DEVICE, DEVICE | HOST, HOST | 8, DEVICE | READONLY)[a]
        map_ref(guest, (peer if c else guest).domain.id, where, flags, 8 + c)
    elif kind < 8:
        mapping = table.maptrack.mappings.get(a)
        frame = mapping.granter.grants.active[mapping.reference].frame if mapping else 0
        unmap(guest, a, where, frame << 12 if c & 1 else 0)
    elif kind == 8:
        unmap(guest, a, where, HOLE + (c << 12), abi.GNTTABOP_unmap_and_replace)
    elif kind == 9:
        guest.guest.update(
            entry_index(guest, where) << 3, (0, entry(guest, where), guest.guest.p2m[50] << 12 | P)[a % 3]
        )
    elif kind == 10:
        op(guest, abi.GNTTABOP_set_version, struct.pack("<I", 1 + a % 2))
    else:
        copy(guest, peer.domain.id, 0, 16, bool(a & 1), 8 + c)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([(64, 64), (64, 32)]), steps, st.booleans())
def test_any_sequence_keeps_the_frame_table(widths: tuple[int, int], what: list[tuple[int, ...]], first: bool) -> None:
    guests = World(*widths).guests
    hv = guests[0].hv
    for kind, which, a, b, c in what:
        step(guests[which], guests[not which], kind, a, b, c)
        assert audit(hv) == []
    for guest in guests:
        uses: dict[int, int] = {}
        for other in guests:
            for mapping in other.domain.grants.maptrack.mappings.values():
                if mapping.granter is guest.domain:
                    uses[mapping.reference] = uses.get(mapping.reference, 0) + 1
        assert uses.keys() == guest.domain.grants.active.keys()
    for guest in guests[::-1] if first else guests:
        end(guest)
        assert audit(hv) == []
    assert hv.frames.owned_by(1) == hv.frames.owned_by(2) == []
