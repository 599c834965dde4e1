"""Machine memory and direct paging: single rules, and random mixes of all operations that the audit must survive."""

from __future__ import annotations

import contextlib
import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import DATA, STACK_PFN, TABLE, A, D, FakeProcessor, Guest, P, U, W, make_guest, make_hypervisor
from xentui.engine.x86.paging import GLOBAL, NX, PCD, PSE, PWT
from xentui.engine.x86.state import RAX, RBX, RIP
from xentui.engine.xen import descriptor_tables, domain_kill, memory, mm, mmu_update, mmuext, refusals, ro_page_fault
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi import memory as mem
from xentui.engine.xen.abi.errno import EACCES, EBUSY, EFAULT, EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from xentui.engine.xen.audit import audit
from xentui.engine.xen.guest_access import GuestFault
from xentui.engine.xen.page import (
    DOMID_INVALID,
    DOMID_XEN,
    L1,
    L4,
    NONE,
    PINNED,
    SEG,
    SHARED,
    SHARED_RW,
    WRITABLE,
    FrameTable,
    OutOfMemory,
)
from xentui.engine.xen.page_type import get_page_and_type, put_page_and_type
from xentui.engine.xen.pte import GUEST_KERNEL

STACK = STACK_PFN << 12
LIST = STACK + 0x800
SELF = core.DOMID_SELF
LOOSE = 10
FREE_SLOT = 200
"""A slot of the L1 that maps nothing."""


def make(width: int, loose: int = LOOSE) -> Guest:
    return make_guest(make_hypervisor(), 1, width, loose=loose)


def ext(guest: Guest, command: int, first: int = 0, second: int = 0, foreign: int = SELF) -> int:
    """mmuext_op with one operation."""
    if guest.vcpu.width == 64:
        data = struct.pack("<I4xQQ", command, first, second)
    else:
        data = struct.pack("<III", command, first & 0xFFFF_FFFF, second & 0xFFFF_FFFF)
    guest.write(STACK, list(data.ljust(24, b"\0")), "B")
    return mmuext.do_mmuext_op(guest.vcpu, STACK, 1, 0, foreign)


def map_va(guest: Guest, address: int, entry: int, flags: int = core.UVMF_INVLPG) -> int:
    """update_va_mapping, in the arguments of the guest's width."""
    if guest.vcpu.width == 64:
        return mm.do_update_va_mapping(guest.vcpu, address, entry, flags, 0)
    return mm.do_update_va_mapping(guest.vcpu, address, entry & 0xFFFF_FFFF, entry >> 32, flags)


def slot(guest: Guest, table: str, index: int) -> int:
    """Machine address of a page-table entry."""
    return (guest.tables[table] << 12) + 8 * index


def row(guest: Guest, mfn: int) -> tuple[int, int, int]:
    """Type, uses of the type, and references of a frame."""
    frames = guest.hv.frames
    return frames.type[mfn], frames.type_count[mfn], frames.ref_count[mfn]


both = pytest.mark.parametrize("width", [32, 64])


# --- the frame table -----------------------------------------------------------------------------------------------


def test_frames_are_scattered_by_the_seed_and_each_given_once() -> None:
    one, same, other = FrameTable(4096, 7), FrameTable(4096, 7), FrameTable(4096, 8)
    taken = one.allocate(3000, 1)
    assert taken == same.allocate(3000, 1) != other.allocate(3000, 1)
    assert len(set(taken)) == 3000 and all(b - a != 1 for a, b in pairwise(taken))
    assert all(one.owner[mfn] == 1 and one.ref_count[mfn] == 1 for mfn in taken)
    assert sorted(taken) == one.owned_by(1)


def test_every_frame_can_be_had_and_no_more() -> None:
    table = FrameTable(300, 1, 20)
    assert table.allocate_xen(4) == 1
    taken = table.allocate(280, 1)
    assert len(set(taken)) == 280 and min(taken) >= 20
    with pytest.raises(OutOfMemory):
        table.allocate(1, 1)
    assert table.free_frames == 15
    ram = memoryview(bytearray(300 << 12))
    ram[taken[5] << 12] = 1
    table.free(taken[5], ram)
    assert table.owner[taken[5]] == DOMID_INVALID
    assert table.allocate(1, 2) == [taken[5]] and ram[taken[5] << 12] == 0


def test_contiguous_frames_are_never_given_twice() -> None:
    table = FrameTable(600, 3, 10)
    first = table.allocate_extent(5, 1)
    assert first % 32 == 0
    xen = table.allocate_xen(40)
    assert table.owner[xen : xen + 40].tolist() == [DOMID_XEN] * 40
    rest = table.allocate(table.free_frames - (10 - 1), 2)
    assert not set(rest) & set(range(first, first + 32)) and not set(rest) & set(range(xen, xen + 40))
    with pytest.raises(OutOfMemory):
        table.allocate_extent(1, 1)
    assert table.allocate_xen(9) < 10
    with pytest.raises(OutOfMemory):
        table.allocate_xen(1)


def test_columns_are_numpy_arrays_over_the_same_bytes() -> None:
    table = FrameTable(64)
    table.type_count[5] = 77
    table.linear[6] = -3
    assert table.array("type_count")[5] == 77 and table.array("linear")[6] == -3
    assert table.array("owner")[9] == DOMID_INVALID and table.array("flags").shape == (64,)


# --- entries -------------------------------------------------------------------------------------------------------


@both
def test_initial_tables_hold(width: int) -> None:
    guest = make(width)
    assert audit(guest.hv) == []
    top = guest.tables["l4" if width == 64 else "l3"]
    assert row(guest, top) == (4 if width == 64 else 3, 2, 4)
    assert guest.hv.frames.flags[top] & PINNED


@both
def test_references_move_with_the_entry(width: int) -> None:
    guest = make(width)
    mfn = guest.p2m[50]
    assert row(guest, mfn) == (WRITABLE, 1, 2)
    assert guest.update(slot(guest, "l1", FREE_SLOT), guest.entry(50)) == 0
    assert row(guest, mfn) == (WRITABLE, 2, 3)
    assert guest.update(slot(guest, "l1", FREE_SLOT), guest.entry(50, P | A | U)) == 0
    assert row(guest, mfn) == (WRITABLE, 1, 3)
    assert guest.update(slot(guest, "l1", FREE_SLOT), 0) == 0
    assert row(guest, mfn) == (WRITABLE, 1, 2)
    assert audit(guest.hv) == []


def test_kernel_and_user_pages_of_a_64_bit_guest() -> None:
    guest = make(64)
    index = slot(guest, "l1", FREE_SLOT) >> 3
    guest.update(index << 3, guest.entry(50, P | W | A | D))
    assert guest.hv.ram64[index] == guest.entry(50, P | W | A | D | U) | GUEST_KERNEL
    guest.update(index << 3, guest.entry(50, P | W | U))
    assert guest.hv.ram64[index] == guest.entry(50, P | W | U | GLOBAL)
    guest.update(index << 3, guest.entry(50, P | W | U) | GUEST_KERNEL)
    assert guest.hv.ram64[index] == guest.entry(50, P | W | U) | GUEST_KERNEL
    other = make(32)
    index = slot(other, "l1", FREE_SLOT) >> 3
    other.update(index << 3, other.entry(50, P | W))
    assert other.hv.ram64[index] == other.entry(50, P | W)


@both
def test_accessed_and_dirty_are_kept_where_asked(width: int) -> None:
    guest = make(width)
    index = slot(guest, "l1", 50) >> 3
    guest.hv.ram64[index] |= A | D
    assert guest.update(index << 3 | core.MMU_PT_UPDATE_PRESERVE_AD, guest.entry(50, P | W | U)) == 0
    assert guest.hv.ram64[index] & (A | D) == A | D
    assert guest.update(index << 3 | core.MMU_PT_UPDATE_NO_TRANSLATE, guest.entry(50, P | W | U)) == 0
    assert guest.hv.ram64[index] & (A | D) == 0


@both
@pytest.mark.parametrize("flags", [PWT, PCD, PSE])
def test_cache_attributes_are_refused(width: int, flags: int) -> None:
    guest = make(width)
    old = guest.hv.ram64[slot(guest, "l1", 50) >> 3]
    assert guest.update(slot(guest, "l1", 50), guest.entry(50, DATA | flags)) == -EINVAL
    assert map_va(guest, 50 << 12, guest.entry(50, DATA | flags)) == -EINVAL
    assert guest.hv.ram64[slot(guest, "l1", 50) >> 3] == old
    assert guest.update(slot(guest, "l2", 0), guest.tables["l1"] << 12 | TABLE | flags) == -EINVAL


@both
def test_frames_of_others(width: int) -> None:
    guest = make(width)
    neighbour = make_guest(guest.hv, 2, 64)
    where = slot(guest, "l1", FREE_SLOT)
    assert guest.update(where, neighbour.entry(50)) == -EBUSY
    assert guest.update(where, 1 << 12 | P) == -EBUSY  # the hypervisor's
    assert guest.update(where, 0xFFFFF << 12 | P) == -EPERM  # no memory there
    assert guest.update(where, ((1 << 40) - 1) << 12 | P) == -EINVAL  # INVALID_MFN
    assert guest.update(neighbour.tables["l1"] << 12, 0) == -EINVAL
    assert guest.update(1 << 12, 0) == -EINVAL
    assert guest.update(0xFFFFF << 12, 0) == -EINVAL
    assert guest.hv.ram64[where >> 3] == 0
    assert audit(guest.hv) == []


@both
def test_a_page_table_is_never_writable(width: int) -> None:
    guest = make(width)
    for table in guest.tables.values():
        assert map_va(guest, FREE_SLOT << 12, table << 12 | P | W | U) == -EBUSY
        assert map_va(guest, FREE_SLOT << 12, table << 12 | P | U) == 0
        assert map_va(guest, FREE_SLOT << 12, table << 12 | P | U | W) == -EBUSY
    # and what is mapped writable becomes no page table
    assert ext(guest, core.MMUEXT_PIN_L1_TABLE, guest.p2m[50]) == -EINVAL
    assert audit(guest.hv) == []


@both
def test_a_page_becomes_a_table_and_a_page_again(width: int) -> None:
    guest = make(width)
    mfn = guest.p2m[LOOSE]
    guest.hv.ram64[(mfn << 9) + 3] = guest.entry(50)
    assert ext(guest, core.MMUEXT_PIN_L1_TABLE, mfn) == 0
    assert row(guest, mfn) == (L1, 1, 2) and row(guest, guest.p2m[50]) == (WRITABLE, 2, 3)
    assert ext(guest, core.MMUEXT_PIN_L1_TABLE, mfn) == -EINVAL
    assert guest.update(slot(guest, "l2", 1), mfn << 12 | TABLE) == 0
    assert row(guest, mfn) == (L1, 2, 3)
    assert ext(guest, core.MMUEXT_UNPIN_TABLE, mfn) == 0
    assert ext(guest, core.MMUEXT_UNPIN_TABLE, mfn) == -EINVAL
    assert map_va(guest, (512 + 4) << 12, guest.entry(51)) == 0
    assert audit(guest.hv) == []
    assert guest.update(slot(guest, "l2", 1), 0) == 0
    assert row(guest, mfn) == (L1, 0, 1) and row(guest, guest.p2m[50]) == (WRITABLE, 1, 2)
    assert map_va(guest, FREE_SLOT << 12, mfn << 12 | DATA) == 0
    assert row(guest, mfn) == (WRITABLE, 1, 2)
    assert audit(guest.hv) == []


@both
def test_a_bad_table_leaves_no_trace(width: int) -> None:
    guest = make(width)
    mfn = guest.p2m[LOOSE]
    base = mfn << 9
    guest.hv.ram64[base + 3] = guest.entry(50)
    guest.hv.ram64[base + 9] = guest.tables["l1"] << 12 | DATA
    error = ext(guest, core.MMUEXT_PIN_L1_TABLE, mfn)
    assert error == -EBUSY
    assert row(guest, mfn) == (NONE, 0, 1) and row(guest, guest.p2m[50]) == (WRITABLE, 1, 2)
    assert audit(guest.hv) == []


def test_reserved_slots_of_an_l4() -> None:
    guest = make(64)
    for index in (256, 260, 271):
        assert guest.update(slot(guest, "l4", index), guest.tables["l3"] << 12 | TABLE) == -EINVAL
    assert guest.update(slot(guest, "l4", 272), guest.tables["l3"] << 12 | TABLE) == 0
    ram64, base = guest.hv.ram64, guest.tables["l4"] << 9
    assert ram64[base + 256] == guest.hv.xen_l4_slots[256]
    assert ram64[base + 260] >> 12 == guest.domain.perdomain_l3 and not ram64[base + 260] & U
    # what a guest has left there is overwritten, not looked at
    mfn = guest.p2m[LOOSE]
    guest.hv.ram64[(mfn << 9) + 262] = guest.entry(50)
    assert ext(guest, core.MMUEXT_PIN_L4_TABLE, mfn) == 0
    assert guest.hv.ram64[(mfn << 9) + 262] == 0
    assert guest.hv.ram64[(mfn << 9) + 256] == guest.hv.xen_l4_slots[256]
    assert audit(guest.hv) == []


def test_m2p_strict_hides_the_m2p_from_user_tables() -> None:
    guest = make(64)
    guest.domain.vm_assist |= 1 << core.VMASST_TYPE_m2p_strict
    mfn = guest.p2m[LOOSE]
    assert ext(guest, core.MMUEXT_NEW_USER_BASEPTR, mfn) == 0
    assert guest.hv.ram64[(mfn << 9) + 256] == 0
    guest.domain.vm_assist = 0
    assert ext(guest, core.MMUEXT_NEW_BASEPTR, mfn) == 0
    assert guest.hv.ram64[(mfn << 9) + 256] == guest.hv.xen_l4_slots[256]


def test_the_last_entry_of_a_pae_l3() -> None:
    guest = make(32)
    ram64 = guest.hv.ram64
    assert ram64[(guest.tables["l2_last"] << 9) + 0x1AC] == guest.hv.compat_l2_slots[0x1AC]
    assert guest.update(slot(guest, "l3", 3), 0) == -EINVAL
    assert guest.update(slot(guest, "l3", 4), 0) == -EINVAL
    assert guest.update(slot(guest, "l2_last", 0x1AC), 0) == -EPERM
    assert guest.update(slot(guest, "l2_last", 0x1AB), guest.tables["l1"] << 12 | TABLE) == 0
    # a fourth L2 belongs to one L3 and to one slot
    assert guest.update(slot(guest, "l3", 1), guest.tables["l2_last"] << 12 | P) == -EINVAL
    mfn = guest.p2m[LOOSE]
    assert ext(guest, core.MMUEXT_PIN_L3_TABLE, mfn) == -EINVAL  # its last entry is empty
    ram64[(mfn << 9) + 3] = guest.tables["l2_last"] << 12 | P
    assert ext(guest, core.MMUEXT_PIN_L3_TABLE, mfn) == -EINVAL
    ram64[(mfn << 9) + 3] = guest.p2m[LOOSE + 1] << 12 | P
    ram64[(mfn << 9) + 7] = 0xFFFF_FFFF
    ram64[mfn << 9] = guest.tables["l2"] << 12 | P
    assert ext(guest, core.MMUEXT_PIN_L3_TABLE, mfn) == 0
    assert ram64[(mfn << 9) + 7] == 0 and ram64[(mfn << 9) + 3] & (U | W) == U | W
    assert ext(guest, core.MMUEXT_NEW_BASEPTR, mfn) == 0
    assert ram64[guest.vcpu.monitor_table << 9] >> 12 == mfn
    assert audit(guest.hv) == []
    assert ext(guest, core.MMUEXT_NEW_BASEPTR, guest.tables["l3"]) == 0
    assert ext(guest, core.MMUEXT_UNPIN_TABLE, mfn) == 0
    assert ram64[(mfn << 9) + 3] == guest.p2m[LOOSE + 1] << 12 | P
    assert audit(guest.hv) == []


def test_linear_page_tables_are_read_only_and_one_level_deep() -> None:
    guest = make(64)
    l4, mfn, third = guest.tables["l4"], guest.p2m[LOOSE], guest.p2m[LOOSE + 1]
    assert guest.update(slot(guest, "l4", 300), l4 << 12 | P | W | U) == -EINVAL
    assert guest.update(slot(guest, "l4", 300), l4 << 12 | P | U) == 0
    assert row(guest, l4) == (L4, 2, 4)  # a reference to itself takes none
    for each in (mfn, third):
        assert ext(guest, core.MMUEXT_PIN_L4_TABLE, each) == 0
    assert guest.update(slot(guest, "l4", 301), mfn << 12 | P | U) == 0
    assert guest.hv.frames.linear[l4] == 1 and guest.hv.frames.linear[mfn] == -1
    assert guest.update((mfn << 12) + 8 * 5, third << 12 | P | U) == -EINVAL
    assert guest.update((third << 12) + 8 * 5, l4 << 12 | P | U) == -EINVAL
    assert guest.update(slot(guest, "l4", 301), mfn << 12 | P | U | W) == -EINVAL
    assert audit(guest.hv) == []
    assert guest.update(slot(guest, "l4", 301), 0) == 0
    assert guest.hv.frames.linear[l4] == guest.hv.frames.linear[mfn] == 0
    assert audit(guest.hv) == []


def test_tables_that_contain_each_other_are_refused() -> None:
    guest = make(64)
    one, two = guest.p2m[LOOSE], guest.p2m[LOOSE + 1]
    guest.hv.ram64[one << 9] = two << 12 | TABLE
    guest.hv.ram64[two << 9] = one << 12 | TABLE
    assert ext(guest, core.MMUEXT_PIN_L2_TABLE, one) == -EBUSY  # as an L1 `two` would map it writable
    assert ext(guest, core.MMUEXT_PIN_L3_TABLE, one) == -EINVAL
    guest.hv.ram64[one << 9] = one << 12 | TABLE
    assert ext(guest, core.MMUEXT_PIN_L2_TABLE, one) == -EINVAL
    assert row(guest, one)[1:] == row(guest, two)[1:] == (0, 1)
    assert audit(guest.hv) == []


@both
def test_shared_frames_are_writable_or_not_and_never_tables(width: int) -> None:
    guest = make(width)
    frames = guest.hv.frames
    for writable in (True, False):
        mfn = frames.allocate_xen(1)
        frames.share_with_guest(mfn, 1, writable)
        assert map_va(guest, FREE_SLOT << 12, mfn << 12 | P | W | U) == (0 if writable else -EBUSY)
        assert map_va(guest, FREE_SLOT << 12, mfn << 12 | P | U) == 0
        assert ext(guest, core.MMUEXT_PIN_L1_TABLE, mfn) == -EINVAL
        assert guest.update(mfn << 12, 5) == (0 if writable else -EINVAL)
        assert bool(frames.flags[mfn] & SHARED_RW) == writable and frames.type[mfn] == SHARED
        assert audit(guest.hv) == []


def test_descriptor_pages_are_not_writable() -> None:
    guest = make(64)
    mfn = guest.p2m[LOOSE]
    assert get_page_and_type(guest.domain, mfn, SEG) == 0
    assert map_va(guest, FREE_SLOT << 12, mfn << 12 | P | W | U) == -EBUSY
    assert guest.update(mfn << 12, 5) == -EINVAL
    put_page_and_type(guest.domain, mfn)
    assert map_va(guest, FREE_SLOT << 12, mfn << 12 | P | W | U) == 0
    guest.hv.ram64[(guest.p2m[LOOSE + 1] << 9) + 1] = 0x00CF_9A00_0000_FFFF | 0x0000_0500_0000_0000  # a system gate
    guest.hv.ram64[(guest.p2m[LOOSE + 1] << 9) + 1] = 0x0000_8500_0008_0000  # a task gate
    assert get_page_and_type(guest.domain, guest.p2m[LOOSE + 1], SEG) == -EINVAL


# --- hypercalls ----------------------------------------------------------------------------------------------------


@both
def test_mmu_update_in_batches(width: int) -> None:
    guest = make(width)
    requests: list[int] = []
    for number in range(20):
        requests += [slot(guest, "l1", FREE_SLOT + number), guest.entry(50)]
    requests[2 * 15 + 1] = 1 << 12 | P
    guest.write(STACK, requests)
    assert mmu_update.do_mmu_update(guest.vcpu, STACK, 20, LIST, SELF) == -EBUSY
    assert guest.read(LIST, 1, "I") == [15]
    assert row(guest, guest.p2m[50]) == (WRITABLE, 16, 17)
    assert mmu_update.do_mmu_update(guest.vcpu, STACK, 15, 0, SELF) == 0
    # in a page without an end, on an odd address, across two pages
    guest.write(63 << 12 | 0xFF0, [slot(guest, "l1", FREE_SLOT), guest.entry(50)])
    assert mmu_update.do_mmu_update(guest.vcpu, 63 << 12 | 0xFF0, 2, LIST, SELF) == -EFAULT
    assert guest.read(LIST, 1, "I") == [1]
    guest.write(STACK + 1, list(struct.pack("<QQ", slot(guest, "l1", FREE_SLOT), 0)), "B")
    assert mmu_update.do_mmu_update(guest.vcpu, STACK + 1, 1, 0, SELF) == 0
    assert audit(guest.hv) == []


@both
def test_mmu_update_arguments(width: int) -> None:
    guest = make(width)
    make_guest(guest.hv, 2, 64)
    where = slot(guest, "l1", FREE_SLOT)
    guest.write(STACK, [where, 0])
    v = guest.vcpu
    assert mmu_update.do_mmu_update(v, STACK, 1, 0, 1) == -ESRCH
    assert mmu_update.do_mmu_update(v, STACK, 1, 0, 99) == -ESRCH
    assert mmu_update.do_mmu_update(v, STACK, 1, LIST, 2) == -EPERM
    assert guest.read(LIST, 1, "I") == [0]
    assert mmu_update.do_mmu_update(v, STACK, 1, 0, core.DOMID_XEN) == -EPERM
    assert mmu_update.do_mmu_update(v, STACK, 1, 0, 3 << 16 | SELF) == -EPERM
    assert mmu_update.do_mmu_update(v, STACK, 1, 0, 9 << 16 | SELF) == -ESRCH
    assert mmu_update.do_mmu_update(v, STACK, 1, 0, 2 << 16 | SELF) == 0
    assert mmu_update.do_mmu_update(v, STACK, 0, 0, SELF) == 0
    assert mmu_update.do_mmu_update(v, 0, mmu_update.MMU_UPDATE_PREEMPTED, 0, (-EBUSY) & 0xFFFF_FFFF) == -EBUSY
    guest.write(STACK, [where | 4, 0])
    assert mmu_update.do_mmu_update(v, STACK, 1, 0, SELF) == -ENOSYS
    assert mmu_update.do_mmu_update(v, 0xFFFF_8000_0000_0000 if width == 64 else 0xFFFF_FFF8, 1, 0, SELF) == -EFAULT


@both
def test_the_m2p_follows_the_owner(width: int) -> None:
    guest = make(width)
    mfn = guest.p2m[50]
    assert guest.update(mfn << 12 | core.MMU_MACHPHYS_UPDATE, 0x1234) == 0
    assert guest.hv.get_m2p(mfn) == 0x1234
    assert guest.update(1 << 12 | core.MMU_MACHPHYS_UPDATE, 0x1234) == -EINVAL


@both
def test_update_va_mapping_flushes_as_asked(width: int) -> None:
    guest = make(width)
    processor = guest.vcpu.processor
    assert isinstance(processor, FakeProcessor)
    before = processor.flushes
    assert map_va(guest, FREE_SLOT << 12, guest.entry(50), core.UVMF_NONE) == 0
    assert (processor.flushes, processor.page_flushes) == (before, [])
    assert map_va(guest, FREE_SLOT << 12, guest.entry(51), core.UVMF_INVLPG) == 0
    assert map_va(guest, FREE_SLOT << 12, guest.entry(50), core.UVMF_INVLPG | core.UVMF_ALL) == 0
    assert (processor.flushes, processor.page_flushes) == (before, [FREE_SLOT << 12] * 2)
    assert map_va(guest, FREE_SLOT << 12, guest.entry(51), core.UVMF_TLB_FLUSH) == 0
    guest.write(LIST, [1])
    assert map_va(guest, FREE_SLOT << 12, guest.entry(50), core.UVMF_TLB_FLUSH | LIST) == 0
    assert processor.flushes == before + 2
    guest.write(LIST, [0])
    assert map_va(guest, FREE_SLOT << 12, guest.entry(51), core.UVMF_TLB_FLUSH | LIST) == 0
    assert processor.flushes == before + 2
    assert map_va(guest, FREE_SLOT << 12, guest.entry(50), core.UVMF_TLB_FLUSH | 0x7000_0000) == -EFAULT
    assert guest.hv.ram64[slot(guest, "l1", FREE_SLOT) >> 3] >> 12 & 0xFFFFF == guest.p2m[50]


@both
def test_no_stale_right_to_write_a_page_table(width: int) -> None:
    guest = make(width)
    mfn = guest.p2m[LOOSE]
    processor = guest.vcpu.processor
    assert isinstance(processor, FakeProcessor)
    assert map_va(guest, FREE_SLOT << 12, mfn << 12 | P | W | U) == 0
    guest.touch(FREE_SLOT << 12)
    assert map_va(guest, FREE_SLOT << 12, 0, core.UVMF_NONE) == 0
    assert processor.tlb == {FREE_SLOT: (mfn, True)}
    assert ext(guest, core.MMUEXT_PIN_L1_TABLE, mfn) == 0
    assert processor.tlb == {}


@both
def test_update_va_mapping_needs_a_table(width: int) -> None:
    guest = make(width)
    assert map_va(guest, 0x4000_0000, guest.entry(50)) == -EINVAL
    assert map_va(guest, 0xF580_0000, guest.entry(50)) == -EINVAL
    if width == 64:
        for address in (0xFFFF_8000_0000_0000, 0xFFFF_8200_0000_0000, 1 << 47, 1 << 63):
            assert map_va(guest, address, guest.entry(50)) == -EINVAL
    v = guest.vcpu
    assert mm.do_update_va_mapping_otherdomain(v, FREE_SLOT << 12, 0, 0, 99, 99) == -ESRCH
    assert mm.do_update_va_mapping_otherdomain(v, FREE_SLOT << 12, 0, 0, core.DOMID_XEN, core.DOMID_XEN) == -EPERM
    if width == 64:
        assert mm.do_update_va_mapping_otherdomain(v, FREE_SLOT << 12, guest.entry(50), 0, SELF, 0) == 0
    else:
        assert mm.do_update_va_mapping_otherdomain(v, FREE_SLOT << 12, guest.entry(50), 0, 0, SELF) == 0


@both
def test_a_refusal_says_which_rule(width: int) -> None:
    guest = make(width)
    where = slot(guest, "l1", FREE_SLOT)
    new = guest.tables["l1"] << 12 | P | W | U
    assert guest.update(where, new) == -EBUSY
    (record,) = guest.hv.trace.latest(1)
    assert record.number == refusals.WRITABLE_TABLE | L1 << 8 | (L1 + 1) << 12 | 1 << 16
    assert (record.a, record.b, record.c) == (guest.tables["l1"], where, 0) and record.d & ~GUEST_KERNEL == new | (
        GLOBAL if width == 64 else 0
    )
    assert "page table" in refusals.explain(record.number & 0xFF)
    assert all("Xen: xen/" in refusals.explain(rule) for rule in refusals.RULES)
    (line,) = guest.hv.log_lines
    index = guest.tables["l1"]
    for words in (
        "d1v0: memory operation refused, -EBUSY: the frame is in use as a page table",
        f"L1 entry {FREE_SLOT} of mfn {index:#x}, now 0x0, wanted ",
        f"(mfn {index:#x} PRESENT|RW|USER",
        f"mfn {index:#x} is d1's, type L1. Xen: xen/arch/x86/mm.c, get_page_from_l1e",
    ):
        assert words in line


@both
def test_refusals_are_logged_in_words_and_not_without_end(width: int) -> None:
    guest = make(width)
    hv = guest.hv
    first = len(hv.log_lines)
    assert ext(guest, core.MMUEXT_UNPIN_TABLE, guest.p2m[50]) == -EINVAL
    assert "the frame is not pinned" in hv.log_lines[-1] and "type writable" in hv.log_lines[-1]
    assert ext(guest, core.MMUEXT_PIN_L1_TABLE, 0xFFFFF) == -EINVAL
    assert "wanted as an L1. mfn 0xfffff is nobody's, beyond machine memory. Xen" in hv.log_lines[-1]
    assert map_va(guest, 0x7000_0000, guest.entry(50)) == -EINVAL
    assert "no page table" in hv.log_lines[-1] and "Virtual address 0x70000000" in hv.log_lines[-1]
    for _ in range(40):
        assert map_va(guest, 0x7000_0000, guest.entry(50)) == -EINVAL
    lines = hv.log_lines[first:]
    assert len(lines) == refusals.LOGGED + 1
    assert lines[-1].endswith("d1: further refusals are in the trace only")
    assert [row.number & 0xFF for row in hv.trace.latest(41)] == [refusals.NO_TABLE] * 41


@both
def test_base_pointers(width: int) -> None:
    guest = make(width)
    processor = guest.vcpu.processor
    assert isinstance(processor, FakeProcessor)
    assert ext(guest, core.MMUEXT_NEW_BASEPTR, guest.p2m[50]) == -EINVAL
    assert ext(guest, core.MMUEXT_NEW_BASEPTR, 0xFFFFF) == -EINVAL
    before = processor.flushes
    assert ext(guest, core.MMUEXT_NEW_BASEPTR, guest.vcpu.guest_table) == 0
    assert processor.flushes == before + 1
    if width == 64:
        mfn = guest.p2m[LOOSE]
        assert ext(guest, core.MMUEXT_NEW_USER_BASEPTR, mfn) == 0
        assert row(guest, mfn) == (L4, 1, 2)
        guest.vcpu.kernel_mode = False
        mm.switch_root(guest.vcpu)
        assert processor.cr3 == mfn << 12 == guest.vcpu.space.root
        guest.vcpu.kernel_mode = True
        mm.switch_root(guest.vcpu)
        assert ext(guest, core.MMUEXT_NEW_USER_BASEPTR, 0) == 0
        assert row(guest, mfn) == (L4, 0, 1)
    assert audit(guest.hv) == []


@both
def test_extended_operations(width: int) -> None:
    guest = make(width)
    processor = guest.vcpu.processor
    assert isinstance(processor, FakeProcessor)
    make_guest(guest.hv, 2, 64)
    assert ext(guest, core.MMUEXT_PIN_L4_TABLE, 1) == (0 if width == 32 else -EINVAL)
    assert ext(guest, core.MMUEXT_MARK_SUPER) == ext(guest, core.MMUEXT_UNMARK_SUPER) == -EOPNOTSUPP
    assert ext(guest, 14) == ext(guest, 99) == -ENOSYS
    assert ext(guest, core.MMUEXT_FLUSH_CACHE) == -EACCES and ext(guest, core.MMUEXT_FLUSH_CACHE_GLOBAL) == -EINVAL
    assert ext(guest, core.MMUEXT_TLB_FLUSH_ALL, foreign=2) == -EPERM
    assert ext(guest, core.MMUEXT_TLB_FLUSH_ALL, foreign=1) == -ESRCH
    flushes = processor.flushes
    assert ext(guest, core.MMUEXT_TLB_FLUSH_LOCAL) == ext(guest, core.MMUEXT_TLB_FLUSH_ALL) == 0
    guest.write(LIST, [1])
    assert ext(guest, core.MMUEXT_TLB_FLUSH_MULTI, 0, LIST) == 0
    assert ext(guest, core.MMUEXT_TLB_FLUSH_MULTI, 0, 0x7000_0000) == -EINVAL
    assert processor.flushes == flushes + 3
    assert ext(guest, core.MMUEXT_INVLPG_LOCAL, 0x5000) == ext(guest, core.MMUEXT_INVLPG_ALL, 0x6000) == 0
    assert ext(guest, core.MMUEXT_INVLPG_MULTI, 0x7000, LIST) == 0
    assert processor.page_flushes == [0x5000, 0x6000, 0x7000]
    guest.write(50 << 12, [1, 2, 3])
    assert ext(guest, core.MMUEXT_COPY_PAGE, guest.p2m[51], guest.p2m[50]) == 0
    assert guest.read(51 << 12, 3) == [1, 2, 3]
    assert ext(guest, core.MMUEXT_CLEAR_PAGE, guest.p2m[50]) == 0
    assert guest.read(50 << 12, 3) == [0, 0, 0]
    assert ext(guest, core.MMUEXT_CLEAR_PAGE, guest.tables["l1"]) == -EINVAL
    assert ext(guest, core.MMUEXT_COPY_PAGE, guest.tables["l1"], guest.p2m[50]) == -EINVAL
    assert ext(guest, core.MMUEXT_COPY_PAGE, guest.p2m[50], 1) == -EINVAL
    assert ext(guest, core.MMUEXT_SET_LDT, 0x123, 5) == -EINVAL
    assert mmuext.do_mmuext_op(guest.vcpu, 0x7000_0000, 1, LIST, SELF) == -EFAULT
    assert audit(guest.hv) == []


# --- the reservation -----------------------------------------------------------------------------------------------


def reserve(guest: Guest, command: int, words: list[int], order: int = 0, domid: int = SELF) -> int:
    """One of the three memory_op commands on a list of frame numbers."""
    code = "Q" if guest.vcpu.width == 64 else "I"
    guest.write(LIST, [word & 0xFFFF_FFFF for word in words], code)
    if guest.vcpu.width == 64:
        data = struct.pack("<QQIIH6x", LIST, len(words), order, 0, domid)
    else:
        data = struct.pack("<IIIIH2x", LIST, len(words), order, 0, domid)
    guest.write(STACK, list(data), "B")
    return memory.do_memory_op(guest.vcpu, command, STACK, 0, 0)


@both
def test_balloon(width: int) -> None:
    guest = make(width)
    frames, mfn = guest.hv.frames, guest.p2m[LOOSE]
    free = frames.free_frames
    guest.hv.ram[mfn << 12] = 77
    assert reserve(guest, mem.XENMEM_decrease_reservation, [mfn]) == 1
    assert guest.domain.tot_pages == 63 and frames.free_frames == free + 1
    assert frames.owner[mfn] == DOMID_INVALID
    assert guest.hv.get_m2p(mfn) == (1 << 64) - 1
    assert reserve(guest, mem.XENMEM_decrease_reservation, [mfn]) == 0
    assert reserve(guest, mem.XENMEM_populate_physmap, [LOOSE, LOOSE + 1]) == 1
    (new,) = guest.read(LIST, 1, "Q" if width == 64 else "I")
    assert new == mfn and guest.hv.ram[mfn << 12] == 0  # scrubbed
    assert frames.owner[new] == 1 and guest.hv.get_m2p(new) == LOOSE and guest.domain.tot_pages == 64
    assert audit(guest.hv) == []


@both
def test_a_frame_given_back_while_mapped_goes_when_it_is_unmapped(width: int) -> None:
    guest = make(width)
    frames, mfn = guest.hv.frames, guest.p2m[50]
    assert reserve(guest, mem.XENMEM_decrease_reservation, [mfn]) == 1
    assert frames.owner[mfn] == 1 and guest.domain.tot_pages == 64
    assert audit(guest.hv) == []
    guest.touch(50 << 12)
    assert map_va(guest, 50 << 12, 0, core.UVMF_NONE) == 0
    assert frames.owner[mfn] == DOMID_INVALID and guest.domain.tot_pages == 63
    assert guest.vcpu.processor.tlb == {}  # type: ignore[attr-defined]
    assert audit(guest.hv) == []


@both
def test_reservation_arguments(width: int) -> None:
    guest = make(width)
    make_guest(guest.hv, 2, 64)
    v = guest.vcpu
    for domid in (2, 99):
        assert reserve(guest, mem.XENMEM_decrease_reservation, [guest.p2m[LOOSE]], domid=domid) == 0
    assert reserve(guest, mem.XENMEM_increase_reservation, [0], order=10) == 0
    assert reserve(guest, mem.XENMEM_increase_reservation, [0]) == 0  # its limit
    guest.domain.max_pages = 68
    assert reserve(guest, mem.XENMEM_increase_reservation, [0], order=2) == 1
    assert reserve(guest, mem.XENMEM_increase_reservation | 1 << 6, [0]) == 1  # extent 1 of 1
    assert memory.do_memory_op(v, mem.XENMEM_populate_physmap | 5 << 6, 0x7000_0000, 0, 0) == 5
    assert memory.do_memory_op(v, mem.XENMEM_maximum_ram_page, 0, 0, 0) == guest.hv.frames.count
    assert memory.do_memory_op(v, mem.XENMEM_maximum_ram_page | 1 << 6, 0, 0, 0) == -EINVAL
    assert memory.do_memory_op(v, 63, 0, 0, 0) == -ENOSYS
    guest.write(STACK, [SELF, 2, 99], "H")
    assert memory.do_memory_op(v, mem.XENMEM_current_reservation, STACK, 0, 0) == 68
    assert memory.do_memory_op(v, mem.XENMEM_maximum_reservation, STACK, 0, 0) == 68
    assert memory.do_memory_op(v, mem.XENMEM_maximum_reservation, STACK + 2, 0, 0) == -EPERM
    assert memory.do_memory_op(v, mem.XENMEM_maximum_reservation, STACK + 4, 0, 0) == -ESRCH
    assert audit(guest.hv) == []


def exchange(guest: Guest, given: list[int], wanted: list[int], given_order: int = 0, wanted_order: int = 0) -> int:
    """memory_op exchange; the list of new frames lies at LIST + 0x400 after it."""
    wide = guest.vcpu.width == 64
    code, pack = ("Q", "<QQIIH6x") if wide else ("I", "<IIIIH2x")
    guest.write(LIST, given, code)
    guest.write(LIST + 0x400, wanted, code)
    data = struct.pack(pack, LIST, len(given), given_order, 0, SELF)
    data += struct.pack(pack, LIST + 0x400, len(wanted), wanted_order, 0, SELF) + bytes(8 if wide else 4)
    guest.write(STACK, list(data), "B")
    return memory.do_memory_op(guest.vcpu, mem.XENMEM_exchange, STACK, 0, 0)


@both
def test_exchange(width: int) -> None:
    guest = make(width)
    frames = guest.hv.frames
    code, at = ("Q", 64) if width == 64 else ("I", 40)
    given = [guest.p2m[LOOSE + number] for number in range(4)]
    assert exchange(guest, given, [LOOSE], 0, 2) == 0
    (first,) = guest.read(LIST + 0x400, 1, code)
    assert first % 4 == 0 and [frames.owner[mfn] for mfn in range(first, first + 4)] == [1] * 4
    assert [guest.hv.get_m2p(mfn) for mfn in range(first, first + 4)] == [LOOSE, LOOSE + 1, LOOSE + 2, LOOSE + 3]
    assert guest.read(STACK + at, 1, code) == [4]
    assert guest.domain.tot_pages == 64
    assert all(frames.owner[mfn] == DOMID_INVALID for mfn in given)
    # the second is in use: the first chunk is exchanged, the rest is not
    assert exchange(guest, [first, guest.p2m[50]], [LOOSE, 50]) == -EINVAL
    assert guest.read(STACK + at, 1, code) == [1]
    assert exchange(guest, [first + 1], [LOOSE, 50]) == -EINVAL
    assert exchange(guest, [first + 1, first + 1], [LOOSE], 0, 1) == -EINVAL
    assert exchange(guest, [first + 1], [LOOSE], 10, 10) == -EPERM
    assert guest.domain.tot_pages == 64
    assert audit(guest.hv) == []
    hungry = exchange(guest, [first + 1] * 512, [0], 0, 9)
    assert hungry in (-EINVAL, -ENOMEM)


@both
def test_memory_map_and_m2p_places(width: int) -> None:
    guest = make(width)
    v = guest.vcpu
    pack = "<I4xQ" if width == 64 else "<II"
    guest.write(STACK, list(struct.pack(pack, 8, LIST)), "B")
    assert memory.do_memory_op(v, mem.XENMEM_memory_map, STACK, 0, 0) == -ENOSYS
    guest.domain.memory_map = [(0, 0xA0000, 1), (0x100000, 0x300000, 1)]
    assert memory.do_memory_op(v, mem.XENMEM_memory_map, STACK, 0, 0) == 0
    assert guest.read(STACK, 1, "I") == [2]
    assert bytes(guest.read(LIST, 40, "B")) == struct.pack("<QQIQQI", 0, 0xA0000, 1, 0x100000, 0x300000, 1)
    assert memory.do_memory_op(v, mem.XENMEM_machphys_mapping, STACK, 0, 0) == 0
    expected = (0xFFFF_8000_0000_0000, 0xFFFF_8040_0000_0000, (1 << 35) - 1)
    if width == 32:
        expected = (0xF580_0000, 0xFFE0_0000, (0xFFE0_0000 - 0xF580_0000) // 4 - 1)
    assert tuple(guest.read(STACK, 3, "Q" if width == 64 else "I")) == expected
    guest.write(STACK, list(struct.pack("<I4xQI4x" if width == 64 else "<III", 4, LIST, 0)), "B")
    assert memory.do_memory_op(v, mem.XENMEM_machphys_mfn_list, STACK, 0, 0) == 0
    first = guest.hv.m2p_index >> 9 if width == 64 else guest.hv.m2p_compat_index >> 10
    assert guest.read(LIST, 1, "Q" if width == 64 else "I") == [first]
    assert memory.do_memory_op(v, mem.XENMEM_machine_memory_map, STACK, 0, 0) == -EPERM
    guest.write(STACK, [SELF, 0, 0, 0], "Q" if width == 64 else "I")
    assert memory.do_memory_op(v, mem.XENMEM_add_to_physmap, STACK, 0, 0) == -EACCES


@both
def test_the_end_of_a_domain_gives_everything_back(width: int) -> None:
    hv = make_hypervisor()
    neighbour = make_guest(hv, 2, 64)
    free = hv.frames.free_frames
    guest = make_guest(hv, 1, width, loose=LOOSE)
    frame = hv.frames.allocate_xen(1)
    hv.frames.share_with_guest(frame, 1)
    assert map_va(guest, FREE_SLOT << 12, frame << 12 | DATA) == 0
    assert ext(guest, core.MMUEXT_PIN_L1_TABLE, guest.p2m[LOOSE]) == 0
    guest.write(STACK, [guest.p2m[LOOSE + 1]], "Q" if width == 64 else "I")
    assert descriptor_tables.do_set_gdt(guest.vcpu, STACK, 512, 0, 0) == 0
    if width == 64:
        assert ext(guest, core.MMUEXT_NEW_USER_BASEPTR, guest.p2m[LOOSE + 2]) == 0
    assert reserve(guest, mem.XENMEM_decrease_reservation, [guest.p2m[50]]) == 1
    assert audit(hv) == []
    domain_kill.free_domain_memory(guest.domain)
    assert audit(hv) == []
    assert hv.frames.free_frames == free and hv.frames.owned_by(1) == [] and guest.domain.tot_pages == 0
    again = hv.frames.allocate(64, 3) + [hv.frames.allocate_xen(1) for _ in range(4)]
    assert not any(any(hv.ram[mfn << 12 : (mfn + 1) << 12]) for mfn in again)
    assert neighbour.domain.tot_pages == 64


# --- anything, in any order ----------------------------------------------------------------------------------------

FLAG_SETS = st.sampled_from(
    [P | U, P | W | U, P | W | U | A | D, P, P | W, 0, P | U | NX, P | W | U | PSE, P | U | PCD, P | U | GLOBAL]
)
PLACES = st.sampled_from([0, 1, 2, 3, 3, 4, 5, 5, 5, 5, 6, 6, 7, 8, 12, 13])
SLOTS = st.sampled_from([0, 1, 2, 3, 4, 9, 50, 200, 256, 260, 271, 300, 428, 511])


def frame_of(guests: list[Guest], who: int, place: int) -> int:
    """A frame by a small number: one of a domain's tables or loose pages, or something that is not its own."""
    guest, other = guests[who], guests[1 - who]
    if place < 12:
        return guest.p2m[place]
    return (other.p2m[place], 1, guest.hv.frames.count + 5)[place - 12 if place < 14 else 2]


OPERATIONS = st.one_of(
    st.tuples(st.just("update"), PLACES, SLOTS, PLACES, FLAG_SETS, st.sampled_from([0, 0, 0, 2, 3, 1, 5])),
    st.tuples(st.just("update"), st.just(3), st.just(300), PLACES, st.just(P | U), st.just(0)),  # linear
    st.tuples(st.just("scribble"), PLACES, SLOTS, PLACES, FLAG_SETS, st.just(0)),
    st.tuples(st.just("map"), st.sampled_from([50, 200, 201, 513]), st.integers(0, 6), PLACES, FLAG_SETS, st.just(0)),
    st.tuples(st.just("stale"), st.sampled_from([200, 201]), st.just(0), PLACES, FLAG_SETS, st.just(0)),
    st.tuples(st.just("write"), st.sampled_from([50, 200, 201]), st.just(0), PLACES, FLAG_SETS, st.just(0)),
    st.tuples(st.just("pin"), PLACES, st.integers(0, 4), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("unpin"), PLACES, st.just(0), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("base"), PLACES, st.booleans(), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("gdt"), PLACES, PLACES, st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("page"), PLACES, PLACES, st.booleans(), st.just(0), st.just(0)),
    st.tuples(st.just("give"), PLACES, st.just(0), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("take"), PLACES, st.just(0), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("exchange"), PLACES, PLACES, st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("touch"), st.sampled_from([0, 1, 5, 50, 200, 201, 513]), *[st.just(0)] * 4),
)


def perform(guests: list[Guest], who: int, operation: tuple[str, int, int, int, int, int]) -> None:
    """One operation of a guest's, as wild as it comes."""
    name, a, b, c, flags, command = operation
    guest = guests[who]
    v, hv = guest.vcpu, guest.hv
    # whatever became of its tables, the guest still reaches its arguments
    v.space.reads[STACK_PFN] = v.space.writes[STACK_PFN] = guest.p2m[STACK_PFN] << 12
    entry = frame_of(guests, who, c) << 12 | flags
    if name == "update":
        guest.update((frame_of(guests, who, a) << 12) + 8 * b | command, entry)
    elif name == "scribble":
        mfn = frame_of(guests, who, a)
        # as the guest's own instructions could: the page is plain memory
        if mfn < hv.frames.count and hv.frames.owner[mfn] == guest.domain.id and hv.frames.type_count[mfn] == 0:
            hv.ram64[(mfn << 9) + b] = entry
    elif name == "map":
        map_va(guest, a << 12, entry, b)
    elif name == "stale":
        # use a mapping and take it away again, without a flush
        map_va(guest, a << 12, entry)
        guest.touch(a << 12)
        map_va(guest, a << 12, 0, core.UVMF_NONE)
    elif name == "write":
        q = v.q
        guest.write(STACK, [0x90909090_03894890 >> 8 if v.width == 64 else 0x90909090_90900389])
        q[RIP], q[RAX], q[RBX] = STACK, entry, a * 8
        v.domain.vm_assist |= 4
        ro_page_fault.emulate(v, a * 8, 3)
    elif name == "pin":
        ext(guest, core.MMUEXT_PIN_L1_TABLE + b if b < 4 else core.MMUEXT_PIN_L1_TABLE, frame_of(guests, who, a))
    elif name == "unpin":
        ext(guest, core.MMUEXT_UNPIN_TABLE, frame_of(guests, who, a))
    elif name == "base":
        user = b and v.width == 64
        ext(guest, core.MMUEXT_NEW_USER_BASEPTR if user else core.MMUEXT_NEW_BASEPTR, frame_of(guests, who, a))
    elif name == "gdt":
        words = [frame_of(guests, who, a), frame_of(guests, who, b)]
        guest.write(STACK, words, "Q" if v.width == 64 else "I")
        descriptor_tables.do_set_gdt(v, STACK, 1024, 0, 0)
    elif name == "page":
        mfn, source = frame_of(guests, who, a), frame_of(guests, who, b)
        ext(guest, core.MMUEXT_COPY_PAGE if c else core.MMUEXT_CLEAR_PAGE, mfn, source)
    elif name == "give":
        reserve(guest, mem.XENMEM_decrease_reservation, [frame_of(guests, who, a)])
    elif name == "take" and a < 12:
        if reserve(guest, mem.XENMEM_populate_physmap, [a]) == 1:
            (guest.p2m[a],) = guest.read(LIST, 1, "Q" if v.width == 64 else "I")
    elif name == "exchange" and a < 12:
        if exchange(guest, [frame_of(guests, who, a)], [a]) == 0:
            (guest.p2m[a],) = guest.read(LIST + 0x400, 1, "Q" if v.width == 64 else "I")
    elif name == "touch":
        guest.touch(a << 12)


def check(guests: list[Guest]) -> None:
    """The frame table is right, nobody reaches what is not his, and no translation has outlived its right."""
    hv = guests[0].hv
    frames = hv.frames
    assert audit(hv) == []
    for guest in guests:
        for mfn in frames.owned_by(guest.domain.id):
            if frames.type[mfn] == L1 and frames.type_count[mfn]:
                for entry in hv.ram64[mfn << 9 : (mfn + 1) << 9].tolist():
                    assert not entry & P or frames.owner[entry >> 12 & 0xFFFFF] == guest.domain.id
        processor = guest.vcpu.processor
        assert isinstance(processor, FakeProcessor)
        for mfn, writable in processor.tlb.values():
            assert frames.owner[mfn] == guest.domain.id
            assert not writable or frames.type[mfn] in (WRITABLE, SHARED) or not frames.type_count[mfn]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), OPERATIONS), min_size=10, max_size=60), st.integers(0, 3))
def test_the_frame_table_survives_anything(
    operations: list[tuple[int, tuple[str, int, int, int, int, int]]], widths: int
) -> None:
    hv = make_hypervisor(192)
    guests = [make_guest(hv, number + 1, 64 if widths >> number & 1 else 32, pages=54, loose=8) for number in range(2)]
    for who, operation in operations:
        with contextlib.suppress(GuestFault):
            perform(guests, who, operation)
        check(guests)
    domain_kill.free_domain_memory(guests[0].domain)
    assert audit(hv) == []
    assert hv.frames.owned_by(1) == []


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([32, 64]),
    st.sampled_from(
        [
            mmu_update.do_mmu_update,
            mm.do_update_va_mapping,
            mmuext.do_mmuext_op,
            memory.do_memory_op,
            descriptor_tables.do_set_gdt,
        ]
    ),
    st.lists(
        st.one_of(
            st.integers(0, (1 << 64) - 1),
            st.integers(0, 64),
            st.sampled_from([STACK, STACK + 5, 0x7FF0, 0xFFFF_F000, (1 << 64) - 8, 0xFFFF_8000_0000_0000, 1 << 31]),
        ),
        min_size=4,
        max_size=4,
    ),
    st.binary(min_size=64, max_size=64),
)
def test_no_argument_raises_out_of_a_hypercall(width: int, call: object, values: list[int], data: bytes) -> None:
    guest = make(width)
    guest.write(STACK, list(data), "B")
    mask = (1 << width) - 1
    try:
        result = call(guest.vcpu, *(value & mask for value in values))  # type: ignore[operator]
    except GuestFault:
        result = -EFAULT
    assert isinstance(result, int)
    assert audit(guest.hv) == []
