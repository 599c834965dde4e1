"""No count of a frame's uses goes past its end: whatever would make it is refused, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from tests.fakes import STACK_PFN, TABLE, Guest, P, U, W, make_guest, make_hypervisor
from tests.fakes_xen import World
from tests.test_grant_map import DEVICE, HOST, READONLY, grant, map_ref, marks
from tests.test_grant_table import copy
from tests.test_mm import LIST, SELF, ext, map_va, slot
from xentui.engine.trace import Kind
from xentui.engine.xen import mmu_update, page_type, vector
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi import grant_table as abi
from xentui.engine.xen.abi.errno import EBUSY, EINVAL
from xentui.engine.xen.audit import audit
from xentui.engine.xen.descriptor_tables import do_set_gdt, do_update_descriptor
from xentui.engine.xen.hypervisor import Hypervisor
from xentui.engine.xen.page import L1, MOST_REFERENCES, MOST_USES, SEG, WRITABLE
from xentui.engine.xen.refusals import COUNT

both = pytest.mark.parametrize("width", [32, 64])
DATA_PFN, EMPTY, LAST = 50, 20, 30
"""A page that is mapped once, writable; one that is mapped nowhere; the last of those."""


def make(width: int) -> Guest:
    return make_guest(make_hypervisor(), 1, width, loose=LAST - 3)


@contextmanager
def used_up(hv: Hypervisor, mfn: int, left: int = 0, uses: bool = False) -> Iterator[None]:
    """A frame that is used so often that only `left` more references can be counted (`uses`: uses of its type)."""
    column, most = (hv.frames.type_count, MOST_USES) if uses else (hv.frames.ref_count, MOST_REFERENCES)
    added = most - left - column[mfn]
    column[mfn] += added
    before = bytes(hv.frames.ref_count), bytes(hv.frames.type_count)
    yield
    if not left:
        assert (bytes(hv.frames.ref_count), bytes(hv.frames.type_count)) == before
    column[mfn] -= added
    assert uses or audit(hv) == []


def rules(guest: Guest) -> list[int]:
    return [record.number & 0xFF for record in guest.hv.trace.latest(100) if record.kind == Kind.REFUSAL]


@both
@pytest.mark.parametrize("flags", [P | U, P | U | W])
def test_entries_of_an_l1(width: int, flags: int) -> None:
    guest = make(width)
    where, entry = slot(guest, "l1", 200), guest.entry(DATA_PFN, flags)
    with used_up(guest.hv, guest.p2m[DATA_PFN]):
        assert guest.update(where, entry) == -EBUSY
        assert map_va(guest, 200 << 12, entry) == -EBUSY
    assert rules(guest) == [COUNT, COUNT]
    with used_up(guest.hv, guest.p2m[DATA_PFN], 1):
        assert guest.update(where, entry) == 0
        assert guest.update(where + 8, entry) == -EBUSY
        assert guest.update(where, 0) == 0
        assert map_va(guest, 201 << 12, entry) == 0
        assert map_va(guest, 201 << 12, 0) == 0


@both
def test_an_entry_for_a_frame_that_is_nothing_yet(width: int) -> None:
    guest = make(width)
    with used_up(guest.hv, guest.p2m[EMPTY]):
        assert guest.update(slot(guest, "l1", 200), guest.entry(EMPTY)) == -EBUSY


@both
@pytest.mark.parametrize("vectors", [False, True])
def test_a_batch_of_mmu_update_stops_where_the_count_ends(width: int, vectors: bool) -> None:
    guest = make(width)
    requests: list[int] = []
    for number in range(100):
        requests += [slot(guest, "l1", 200 + number), guest.entry(DATA_PFN)]
    guest.write(STACK_PFN << 12, requests)
    with patch.object(vector, "ready", return_value=vectors), used_up(guest.hv, guest.p2m[DATA_PFN], 40):
        assert mmu_update.do_mmu_update(guest.vcpu, STACK_PFN << 12, 100, LIST, SELF) == -EBUSY
        assert guest.read(LIST, 1, "I") == [40]
        guest.write(STACK_PFN << 12, [word for request in requests[:80:2] for word in (request, 0)])
        assert mmu_update.do_mmu_update(guest.vcpu, STACK_PFN << 12, 40, LIST, SELF) == 0
        guest.write(STACK_PFN << 12, requests[:80])
        assert mmu_update.do_mmu_update(guest.vcpu, STACK_PFN << 12, 40, LIST, SELF) == 0
        assert guest.hv.frames.ref_count[guest.p2m[DATA_PFN]] == MOST_REFERENCES


@both
@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("flags", [P | U, P | U | W])
def test_a_table_that_becomes_an_l1(width: int, vectors: bool, flags: int) -> None:
    guest = make(width)
    mfn = guest.p2m[EMPTY]
    for number in range(40):
        guest.hv.ram64[(mfn << 9) + number] = guest.entry(STACK_PFN - 5 + number % 20, flags)
    for number in range(20 if vectors else 0):  # each frame once
        guest.hv.ram64[(mfn << 9) + 20 + number] = 0
    with patch.object(vector, "ready", return_value=vectors), used_up(guest.hv, guest.p2m[DATA_PFN]):
        assert ext(guest, core.MMUEXT_PIN_L1_TABLE, mfn) == -EBUSY
    assert rules(guest) == [COUNT]
    with patch.object(vector, "ready", return_value=vectors):
        assert ext(guest, core.MMUEXT_PIN_L1_TABLE, mfn) == 0


@both
def test_tables_and_base_pointers(width: int) -> None:
    guest = make(width)
    top = guest.tables["l4" if width == 64 else "l3"]
    for name, mfn in (("l2", guest.tables["l1"]), ("l3", guest.tables["l2"])):
        with used_up(guest.hv, mfn):
            assert (
                guest.update(slot(guest, name, 1), mfn << 12 | (TABLE if (name, width) != ("l3", 32) else P)) == -EINVAL
            )
    assert rules(guest) == [COUNT, COUNT]
    with used_up(guest.hv, guest.p2m[EMPTY]):
        assert guest.update(slot(guest, "l2", 1), guest.entry(EMPTY, TABLE)) == -EINVAL
        assert ext(guest, core.MMUEXT_PIN_L1_TABLE, guest.p2m[EMPTY]) == -EINVAL
        assert ext(guest, core.MMUEXT_NEW_BASEPTR, guest.p2m[EMPTY]) == -EINVAL
    for uses in (False, True):
        with used_up(guest.hv, guest.tables["l2"], uses=uses):  # a linear page table
            assert guest.update(slot(guest, "l2", 5), guest.tables["l2"] << 12 | P | U) == 0  # its own: not counted
            assert guest.update(slot(guest, "l2", 5), 0) == 0
    if width == 64:
        other = guest.p2m[EMPTY]
        guest.hv.ram64[other << 9] = guest.tables["l1"] << 12 | TABLE
        assert ext(guest, core.MMUEXT_PIN_L2_TABLE, other) == 0
        for uses in (False, True):
            with used_up(guest.hv, other, uses=uses):
                assert guest.update(slot(guest, "l2", 6), other << 12 | P | U) == -EINVAL
        with used_up(guest.hv, top):
            assert ext(guest, core.MMUEXT_NEW_USER_BASEPTR, top) == -EINVAL


@both
def test_pages_that_are_cleared_copied_or_hold_descriptors(width: int) -> None:
    guest = make(width)
    mfn, other = guest.p2m[DATA_PFN], guest.p2m[DATA_PFN + 1]
    with used_up(guest.hv, mfn):
        assert ext(guest, core.MMUEXT_CLEAR_PAGE, mfn) == -EINVAL
        assert ext(guest, core.MMUEXT_COPY_PAGE, mfn, other) == -EINVAL
        assert ext(guest, core.MMUEXT_COPY_PAGE, other, mfn) == -EINVAL
    assert rules(guest) == [COUNT, COUNT, COUNT]
    empty = guest.p2m[EMPTY]
    with used_up(guest.hv, empty):
        guest.write(STACK_PFN << 12, [empty], "Q" if width == 64 else "I")
        assert do_set_gdt(guest.vcpu, STACK_PFN << 12, 512, 0, 0) == -EINVAL
        low, high = empty << 12 & 0xFFFF_FFFF, empty >> 20
        arguments = (empty << 12, 0, 0, 0) if width == 64 else (low, high, 0, 0)
        assert do_update_descriptor(guest.vcpu, *arguments) == -EINVAL


@both
@pytest.mark.parametrize("wanted", [WRITABLE, L1, SEG])
def test_uses_of_a_type_alone(width: int, wanted: int) -> None:
    guest = make(width)
    mfn = guest.p2m[EMPTY]
    assert page_type.get_page_and_type(guest.domain, mfn, wanted) == 0
    with used_up(guest.hv, mfn, uses=True):
        assert page_type.get_page_and_type(guest.domain, mfn, wanted) == -EINVAL
        if wanted == WRITABLE:
            assert page_type.get_page_from_l1e(guest.domain, guest.entry(EMPTY, P | W), 0) == -EBUSY
    page_type.put_page_and_type(guest.domain, mfn)
    assert audit(guest.hv) == []


@both
@pytest.mark.parametrize("flags", [HOST, HOST | READONLY, DEVICE, DEVICE | READONLY, HOST | DEVICE])
def test_grants(width: int, flags: int) -> None:
    giver, taker = World(64, width).guests
    mfn = grant(giver, taker, 50)
    with used_up(giver.hv, mfn):
        assert map_ref(taker, giver.domain.id, flags=flags).status == abi.GNTST_general_error
    # one of two kinds goes, and is given back; else the first mapping goes, and the second does not
    both_kinds = flags & (HOST | DEVICE) == HOST | DEVICE
    before = giver.hv.frames.ref_count[mfn]
    with used_up(giver.hv, mfn, 1):
        first = map_ref(taker, giver.domain.id, flags=flags)
        assert first.status == (abi.GNTST_general_error if both_kinds else abi.GNTST_okay)
        if not both_kinds:
            assert map_ref(taker, giver.domain.id, 201 << 12, flags).status == abi.GNTST_general_error
    assert giver.hv.frames.ref_count[mfn] == before + (not both_kinds)


@both
def test_copies_of_what_is_granted(width: int) -> None:
    giver, taker = World(64, width).guests
    mfn, own = grant(giver, taker, 50), taker.guest.p2m[51]
    for frame in (mfn, own):
        with used_up(giver.hv, frame):
            status = copy(taker, (9, giver.domain.id, 0), (own, core.DOMID_SELF, 0), 8, abi.GNTCOPY_source_gref)
            assert status == abi.GNTST_bad_page
    status = copy(taker, (9, giver.domain.id, 0), (own, core.DOMID_SELF, 0), 8, abi.GNTCOPY_source_gref)
    assert status == abi.GNTST_okay
    assert marks(giver) == 0
