"""Descriptors, segment registers, GDT, LDT and the failsafe callback."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import fakes_cpu
from tests.fakes import Guest
from tests.fakes_cpu import STACK_TOP, make_cpu_guest
from xentui.engine.x86 import segmentation as seg
from xentui.engine.x86.paging import ACCESSED, DIRTY, NX, PRESENT, RW, USER
from xentui.engine.x86.state import (
    CS,
    DS,
    DS_BASE,
    ERROR_CODE,
    ES,
    FLAGS,
    FS,
    FS_BASE,
    GS,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_SS32,
    HFLAGS,
    LDT,
    LDT_BASE,
    LIMIT,
    MASK32,
    MASK64,
    RIP,
    RSP,
    SS,
)
from xentui.engine.xen import descriptor_tables as dt
from xentui.engine.xen import failsafe, page
from xentui.engine.xen import segment_registers as sr
from xentui.engine.xen.abi.errno import EINVAL
from xentui.engine.xen.descriptor_check import check_descriptor
from xentui.engine.xen.guest_access import GuestFault

WIDTHS = pytest.mark.parametrize("width", [32, 64])
TABLE_PFN = 50
"""A page that becomes a descriptor table."""


def descriptor(base: int = 0, limit: int = 0xFFFFF, access: int = 0xF3, flags: int = 0xC) -> int:
    """A descriptor of its fields; `access` is byte 5, `flags` the upper half of byte 6."""
    low = (base & 0xFFFF) << 16 | limit & 0xFFFF
    high = base & 0xFF00_0000 | flags << 20 | limit & 0xF0000 | access << 8 | base >> 16 & 0xFF
    return high << 32 | low


DESCRIPTORS = st.one_of(
    st.builds(
        descriptor,
        st.integers(0, MASK32),
        st.integers(0, 0xFFFFF),
        st.integers(0, 0xFF).map(lambda access: access | 0x90),
        st.integers(0, 15),
    ),
    st.integers(0, MASK64),
)
SELECTORS = st.one_of(st.integers(0, 0x7F), st.integers(0xDFF8, 0xE07F), st.integers(0, 0xFFFF))


def read_only(guest: Guest, pfn: int) -> int:
    """Take away the guest's writable mapping of a page; its frame."""
    mfn = guest.p2m[pfn]
    pointer = (guest.tables["l1"] << 12) + 8 * pfn
    assert guest.update(pointer, mfn << 12 | PRESENT | USER | ACCESSED) == 0
    return mfn


def give_gdt(guest: Guest, descriptors: list[int]) -> int:
    """Make a GDT of these descriptors the vCPU's; the result of set_gdt."""
    guest.write(TABLE_PFN << 12, descriptors + [0] * (512 - len(descriptors)))
    mfn = read_only(guest, TABLE_PFN)
    return dt.set_gdt(guest.vcpu, [mfn], 512)


# --- descriptors ---------------------------------------------------------------------------------------------------


@given(st.integers(0, MASK32), st.integers(0, 0xFFFFF), st.integers(0, 0xFF), st.integers(0, 15))
def test_parse_takes_a_descriptor_apart(base: int, limit: int, access: int, flags: int) -> None:
    word = descriptor(base, limit, access, flags)
    found_base, found_limit, found_flags = seg.parse(word & MASK32, word >> 32)
    assert found_base == base
    assert found_limit == ((limit + 1 << 12) - 1 if flags & 8 else limit)
    assert found_flags == word >> 32


@WIDTHS
def test_reserved_page_holds_what_the_flat_tables_say(width: int) -> None:
    words = struct.unpack("<1024I", seg.reserved_gdt_page(width))
    flat = seg.FLAT_CODE_64 | seg.FLAT_DATA_64 if width == 64 else seg.FLAT_CODE_32 | seg.FLAT_DATA_32
    for selector, flags in flat.items():
        index = (selector >> 3) - 14 * 512
        assert seg.parse(words[2 * index], words[2 * index + 1]) == (0, 0xFFFF_FFFF, flags)
        assert flags & seg.ACCESSED
        assert flags >> seg.DPL_SHIFT & 3 == selector & 3
    usable = [high for high in words[1::2] if high & seg.DPL_MASK]
    assert len(usable) == len(flat), "nothing but the flat segments is in a guest's reach"


def test_flat_segments_are_in_the_mode_their_names_say() -> None:
    assert seg.FLAT_CODE_64[0xE033] & seg.LONG and not seg.FLAT_CODE_64[0xE033] & seg.DEFAULT_BIG
    for flags in (seg.FLAT_CODE_64[0xE023], *seg.FLAT_CODE_32.values()):
        assert flags & seg.DEFAULT_BIG and not flags & seg.LONG


@given(st.integers(0, 0xFF).map(lambda access: access << 8 | 0x9000), st.integers(0, 3), st.integers(0, 3))
@example(0xB200, 3, 1)
@example(0xFFFF_FFFF, 3, 3)
def test_loadable_segments_give_no_ring_away(flags: int, rpl: int, cpl: int) -> None:
    dpl = flags >> 13 & 3
    present = bool(flags & 1 << 15 and flags & 1 << 12)
    code, conforming = bool(flags & 1 << 11), bool(flags & 1 << 10)
    if seg.code_loadable(flags, rpl, cpl):
        assert present and code and rpl == cpl
        assert dpl <= cpl if conforming else dpl == cpl
        assert flags >> 21 & 3 != 3
    if seg.stack_loadable(flags, rpl, cpl):
        assert present and not code and flags & 1 << 9 and dpl == rpl == cpl
    if seg.data_loadable(flags, rpl, cpl):
        assert present and (not code or flags & 1 << 9)
        assert dpl >= max(rpl, cpl) or (code and conforming)


@given(st.sampled_from([32, 64]), st.integers(0, MASK64))
def test_a_checked_descriptor_is_the_guests_own(width: int, word: int) -> None:
    fixed = check_descriptor(width, word)
    if fixed is None:
        return
    high = fixed >> 32
    if not high & seg.PRESENT:
        assert fixed == word
    elif high & seg.NOT_SYSTEM:
        assert high >> 13 & 3 >= (3 if width == 64 else 1)
        assert not (width == 32 and high & seg.LONG)
        assert check_descriptor(width, fixed) == fixed
    elif high & seg.TYPE_MASK:
        assert high & seg.TYPE_MASK == seg.TYPE_CALL_GATE and not high & seg.DPL_MASK
        selector = fixed >> 16 & 0xFFFF
        flat_kernel = 0xE033 if width == 64 else 0xE019
        assert selector & 4 or selector >> 3 < 7168 or selector | 3 == flat_kernel | 3
    else:
        assert fixed == word


@pytest.mark.parametrize(
    ("width", "word", "fixed"),
    [
        (64, descriptor(access=0x93), descriptor(access=0xF3)),
        (32, descriptor(access=0x93), descriptor(access=0xB3)),
        (32, descriptor(access=0xF3), descriptor(access=0xF3)),
        (64, descriptor(access=0xFB, flags=0xA), descriptor(access=0xFB, flags=0xA)),
        (32, descriptor(access=0xFB, flags=0xA), None),
        (64, descriptor(access=0x89), None),
        (64, descriptor(access=0x82), None),
        (64, descriptor(access=0x09), descriptor(access=0x09)),
        # an old PAE kernel's segment ends within the hypervisor's part: it becomes flat
        (32, descriptor(limit=0xF67FF, access=0xFB), descriptor(limit=0xFFFFF, access=0xFB)),
        (32, descriptor(limit=0xF57FF, access=0xFB), descriptor(limit=0xF57FF, access=0xFB)),
        # a call gate: DPL 0, its own DPL kept in the selector
        (64, 0x1234_EC00_0033_5678, 0x1234_8C00_0033_5678),
        (32, 0x1234_EC00_0019_5678, 0x1234_8C00_001B_5678),
        (32, 0x1234_CC00_E019_5678, 0x1234_8C00_E01A_5678),
        (32, 0x1234_CC00_E021_5678, None),
        (64, 0x1234_CC01_0033_5678, None),
    ],
)  # fmt: skip
def test_descriptors_are_fixed_up_as_xen_does(width: int, word: int, fixed: int | None) -> None:
    assert check_descriptor(width, word) == fixed


# --- segment registers ---------------------------------------------------------------------------------------------


def test_load_segment_writes_register_and_hflags() -> None:
    guest = make_cpu_guest(32)
    state, q, i = guest.vcpu.processor.state, guest.vcpu.q, guest.vcpu.i
    seg.load_segment(state, DS, 0x7B, 0x1000, 0xFFFF, seg.FLAT_RING3_DS_FLAGS)
    assert (i[DS], q[DS_BASE], i[DS + LIMIT], i[DS + FLAGS]) == (0x7B, 0x1000, 0xFFFF, seg.FLAT_RING3_DS_FLAGS)
    assert i[HFLAGS] & HF_ADDSEG
    seg.load_segment(state, DS, 0x7B, 0, 0xFFFF_FFFF, seg.FLAT_RING3_DS_FLAGS)
    assert not i[HFLAGS] & HF_ADDSEG
    seg.load_segment(state, SS, 0xE033, 0, 0xFFFF_FFFF, seg.FLAT_RING3_SS_FLAGS)
    assert i[HFLAGS] & HF_CPL == 3 and i[HFLAGS] & HF_SS32
    seg.load_segment(state, SS, 0x13, 0, 0xFFFF, seg.FLAT_RING3_SS_FLAGS & ~seg.DEFAULT_BIG)
    assert not i[HFLAGS] & HF_SS32
    seg.load_segment(state, CS, 0x1B, 0, 0xFFFF, seg.FLAT_RING3_CS32_FLAGS & ~seg.DEFAULT_BIG)
    assert not i[HFLAGS] & (HF_CS32 | HF_CS64) and i[HFLAGS] & HF_ADDSEG
    seg.load_segment(state, CS, 0xE033, 0, 0xFFFF_FFFF, seg.FLAT_RING3_CS64_FLAGS)
    assert i[HFLAGS] & (HF_CS32 | HF_SS32 | HF_CS64) == HF_CS32 | HF_SS32 | HF_CS64
    assert not i[HFLAGS] & HF_ADDSEG


@WIDTHS
def test_flat_fast_path_agrees_with_the_descriptor_table(width: int) -> None:
    guest = make_cpu_guest(width)
    flat = seg.FLAT_CODE_64 | seg.FLAT_DATA_64 if width == 64 else seg.FLAT_CODE_32 | seg.FLAT_DATA_32
    for selector in flat:
        words = dt.lookup(guest.vcpu, selector)
        assert words is not None
        assert seg.parse(*words) == sr.segment(guest.vcpu, selector)


def test_load_flat64_agrees_with_the_general_path() -> None:
    fast, general = make_cpu_guest(64), make_cpu_guest(64)
    for guest in (fast, general):
        guest.vcpu.i[HFLAGS] |= HF_ADDSEG
    sr.load_flat64(fast.vcpu)
    assert sr.load_code_segment(general.vcpu, 0xE033, 3) and sr.load_stack_segment(general.vcpu, 0xE02B, 3)
    assert bytes(fast.vcpu.processor.state.raw) == bytes(general.vcpu.processor.state.raw)


@WIDTHS
def test_own_segments_are_looked_up_and_marked_accessed(width: int) -> None:
    guest = make_cpu_guest(width)
    table = [0, descriptor(0x5000, 0xFF, 0xF2, 4), descriptor(access=0xFA), descriptor(access=0xF2)]
    assert give_gdt(guest, table) == 0
    assert sr.load_data_segment(guest.vcpu, FS, 0x0B)
    assert (guest.vcpu.i[FS], guest.vcpu.q[FS_BASE], guest.vcpu.i[FS + LIMIT]) == (0x0B, 0x5000, 0xFF)
    assert guest.read((TABLE_PFN << 12) + 8) == [descriptor(0x5000, 0xFF, 0xF3, 4)]
    sr.return_to_ring3(guest.vcpu, 0x13, 0x1B)
    assert fakes_cpu.selectors(guest) == (0x13, 0x1B)
    assert (fakes_cpu.ring(guest), fakes_cpu.mode(guest)) == (3, 32)


@WIDTHS
def test_data_segments_that_cannot_be_loaded_change_nothing(width: int) -> None:
    guest = make_cpu_guest(width)
    assert give_gdt(guest, [0, descriptor(access=0x73), descriptor(access=0xF9)]) == 0
    before = bytes(guest.vcpu.processor.state.raw)
    for selector in (0x0B, 0x13, 0x1B, 0xE00B, 0xE013, 0xF00B, 0xFFFB, 0x0F):
        assert not sr.load_data_segment(guest.vcpu, ES, selector)
    assert bytes(guest.vcpu.processor.state.raw) == before
    assert sr.load_data_segment(guest.vcpu, ES, 3), "a null selector can"
    assert guest.vcpu.i[ES] == 3


def test_user_gs_of_a_64_bit_guest() -> None:
    guest = make_cpu_guest(64)
    assert give_gdt(guest, [0, descriptor(0x7000, 0xFF, 0xF2, 4)]) == 0
    assert sr.load_user_gs(guest.vcpu, 0x08) == 0
    assert (guest.vcpu.i[GS], guest.vcpu.inactive_gs_base) == (0x0B, 0x7000)
    assert sr.load_user_gs(guest.vcpu, 0x10) == 0
    assert (guest.vcpu.i[GS], guest.vcpu.inactive_gs_base) == (0, 0), "a bad one becomes null"


@WIDTHS
@settings(max_examples=60, deadline=None)
@given(
    st.lists(DESCRIPTORS, min_size=1, max_size=12),
    st.lists(st.tuples(SELECTORS, SELECTORS), max_size=8),
)
def test_no_selector_and_no_table_leads_to_ring_0(width: int, table: list[int], pairs: list[tuple[int, int]]) -> None:
    guest = make_cpu_guest(width)
    # a table with a descriptor that Xen refuses is not installed; the hypervisor's own segments are there anyway
    give_gdt(guest, [word for word in table if check_descriptor(width, word) is not None])
    for cs, ss in pairs:
        guest.vcpu.q[RSP] = STACK_TOP
        sr.return_to_ring3(guest.vcpu, cs | 3, ss | 3)
        assert fakes_cpu.ring(guest) in (1, 3)
        for which in (DS, ES, FS, GS):
            sr.load_data_segment(guest.vcpu, which, cs)
        if width == 32:
            sr.enter_ring1(guest.vcpu, dt.fix_code_selector(cs), dt.fix_stack_selector(ss))
            sr.stack_base(guest.vcpu, ss)
            assert fakes_cpu.ring(guest) in (1, 2, 3)


@WIDTHS
@pytest.mark.parametrize(("cs", "ss", "bad"), [(0x7B, 0xE02B, 0x78), (0x07, 0xE033, 0x04)])
def test_a_return_that_cannot_be_made_is_the_guests_fault(width: int, cs: int, ss: int, bad: int) -> None:
    guest = make_cpu_guest(width)
    guest.vcpu.q[RIP] = 0x1234
    sr.return_to_ring3(guest.vcpu, cs, ss)
    assert fakes_cpu.injected(guest) == 13
    assert fakes_cpu.ring(guest) == (3 if width == 64 else 1)
    if width == 64:
        frame = guest.read(guest.vcpu.q[RSP], 8)
        assert (frame[2], frame[3], frame[7]) == (bad, 0x1234, ss)
    else:
        assert guest.read(guest.vcpu.q[RSP], 3, "I") == [bad, 0x1234, cs]


# --- the failsafe callback -----------------------------------------------------------------------------------------


def test_the_failsafe_frame_of_a_64_bit_guest() -> None:
    guest = make_cpu_guest(64)
    vcpu = guest.vcpu
    fakes_cpu.enter_user_mode(guest)
    vcpu.failsafe_callback, vcpu.failsafe_masks_events = (0, 0x4400), True
    vcpu.q[RIP], vcpu.q[RSP], vcpu.i[DS], vcpu.i[GS] = 0x1234, 0x5678, 0x2B, 0x63
    failsafe.bounce(vcpu, 0x7B, 0x83)
    assert vcpu.kernel_mode and vcpu.q[RIP] == 0x4400 and vcpu.info[1] == 1
    assert fakes_cpu.selectors(guest) == (0xE033, 0xE02B)
    assert vcpu.q[RSP] == STACK_TOP - 11 * 8
    frame = guest.read(vcpu.q[RSP], 11)
    assert frame[2:6] == [0x2B, vcpu.i[ES], vcpu.i[FS], 0x63]
    assert frame[6:8] + frame[9:] == [0x1234, 0x7B, 0x5678, 0x83]


def test_the_failsafe_frame_of_a_32_bit_guest() -> None:
    guest = make_cpu_guest(32)
    vcpu = guest.vcpu
    vcpu.failsafe_callback = (0xE019, 0x4400)
    vcpu.q[RIP], vcpu.q[RSP], vcpu.i[ES] = 0x1234, 0x5678, 0x7B
    failsafe.bounce(vcpu, 0x73, 0x83)
    assert (vcpu.q[RIP], vcpu.q[RSP]) == (0x4400, STACK_TOP - 9 * 4)
    frame = guest.read(vcpu.q[RSP], 9, "I")
    assert frame[1] == 0x7B and frame[4:6] + frame[7:] == [0x1234, 0x73, 0x5678, 0x83]
    assert fakes_cpu.ring(guest) == 1


def test_the_failsafe_frame_within_a_32_bit_kernel_is_on_its_stack() -> None:
    guest = make_cpu_guest(32)
    vcpu = guest.vcpu
    vcpu.failsafe_callback, vcpu.q[RIP] = (0xE019, 0x4400), 0x1234
    failsafe.bounce(vcpu, 0x71, 0xE021)
    assert (vcpu.q[RIP], vcpu.q[RSP]) == (0x4400, STACK_TOP - 7 * 4)
    assert guest.read(vcpu.q[RSP] + 16, 2, "I") == [0x1234, 0x71]


@WIDTHS
@pytest.mark.parametrize(("address", "stack"), [(0, STACK_TOP), (0x4400, 63 << 20)])
def test_a_guest_without_callback_or_stack_crashes(width: int, address: int, stack: int) -> None:
    guest = make_cpu_guest(width)
    guest.vcpu.failsafe_callback, guest.vcpu.q[RSP] = (0xE019, address), stack
    failsafe.bounce(guest.vcpu, guest.vcpu.i[CS], guest.vcpu.i[SS])
    assert guest.domain.shutdown_code is not None


# --- the GDT -------------------------------------------------------------------------------------------------------


@WIDTHS
def test_set_gdt_types_and_maps_the_frames(width: int) -> None:
    guest = make_cpu_guest(width)
    mfn = read_only(guest, TABLE_PFN)
    frames, ram64 = guest.hv.frames, guest.hv.ram64
    flushes = guest.vcpu.processor.flushes  # type: ignore[attr-defined]
    list_at = guest.write(40 << 12, [mfn], "Q" if width == 64 else "I")
    assert dt.do_set_gdt(guest.vcpu, list_at, 300, 0, 0) == 0
    assert guest.vcpu.processor.flushes > flushes  # type: ignore[attr-defined]
    assert (frames.type[mfn], frames.type_count[mfn]) == (page.SEG, 1)
    first = dt.window_index(guest.vcpu, 0)
    assert ram64[first] == mfn << 12 | PRESENT | RW | ACCESSED | DIRTY | NX
    assert ram64[first + 1] >> 12 & 0xFF_FFFF == guest.hv.zero_frame and not ram64[first + 1] & RW
    assert dt.do_set_gdt(guest.vcpu, 0, 0, 0, 0) == 0
    assert frames.type_count[mfn] == 0
    assert ram64[first] >> 12 & 0xFF_FFFF == guest.hv.zero_frame
    assert dt.lookup(guest.vcpu, 0x0B) == (0, 0)


@WIDTHS
def test_set_gdt_refuses_what_xen_refuses(width: int) -> None:
    guest = make_cpu_guest(width)
    vcpu = guest.vcpu
    good = read_only(guest, TABLE_PFN)
    writable = guest.p2m[TABLE_PFN + 1]
    counts = bytes(guest.hv.frames.type_count)
    assert dt.do_set_gdt(vcpu, 0, 7169, 0, 0) == -EINVAL
    for wrong in (writable, guest.tables["l1"], 0, guest.hv.frames.count, 1 << 30):
        assert dt.set_gdt(vcpu, [good, wrong], 1024) == -EINVAL
    with pytest.raises(GuestFault):
        dt.do_set_gdt(vcpu, 63 << 20, 1, 0, 0)
    assert bytes(guest.hv.frames.type_count) == counts and not vcpu.gdt_frames
    guest.write((TABLE_PFN + 2) << 12, [0, descriptor(access=0x89)])
    assert dt.set_gdt(vcpu, [read_only(guest, TABLE_PFN + 2)], 2) == -EINVAL, "a TSS in it"


def test_set_gdt_raises_privilege_levels() -> None:
    guest = make_cpu_guest(32)
    assert give_gdt(guest, [0, descriptor(access=0x93)]) == 0
    assert guest.read((TABLE_PFN << 12) + 8) == [descriptor(access=0xB3)]


@WIDTHS
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 21), st.integers(0, MASK64), st.booleans()), max_size=20))
def test_update_descriptor_never_raises_and_never_writes_a_page_table(
    width: int, requests: list[tuple[int, int, bool]]
) -> None:
    guest = make_cpu_guest(width)
    tables = {name: bytes(guest.hv.ram[mfn << 12 : mfn + 1 << 12]) for name, mfn in guest.tables.items()}
    counts = bytes(guest.hv.frames.type_count)
    for address, word, own in requests:
        if own:
            address = (guest.p2m[TABLE_PFN] << 12) + (address & 0xFF8)
        arguments = (address, word, 0, 0)
        if width == 32:
            arguments = (address & MASK32, address >> 32, word & MASK32, word >> 32)
        result = dt.do_update_descriptor(guest.vcpu, *arguments)
        assert result in (0, -EINVAL)
        if own and result == 0:
            assert guest.hv.ram64[address >> 3] == check_descriptor(width, word)
    assert bytes(guest.hv.frames.type_count) == counts
    for name, mfn in guest.tables.items():
        assert bytes(guest.hv.ram[mfn << 12 : mfn + 1 << 12]) == tables[name]


@WIDTHS
def test_update_descriptor_refuses_what_xen_refuses(width: int) -> None:
    guest = make_cpu_guest(width)
    frame = guest.p2m[TABLE_PFN] << 12
    high = 0 if width == 64 else frame >> 32
    for address, word in ((frame + 4, 0), (frame, descriptor(access=0x89)), (guest.tables["l1"] << 12, 0)):
        arguments = (address, word, 0, 0) if width == 64 else (address, high, word & MASK32, word >> 32)
        assert dt.do_update_descriptor(guest.vcpu, *arguments) == -EINVAL


# --- the LDT -------------------------------------------------------------------------------------------------------


@WIDTHS
def test_ldt_pages_are_mapped_when_used_and_given_back(width: int) -> None:
    guest = make_cpu_guest(width)
    vcpu, frames = guest.vcpu, guest.hv.frames
    guest.write(TABLE_PFN << 12, [0, descriptor(0x3000)])
    mfn = read_only(guest, TABLE_PFN)
    assert dt.set_ldt(vcpu, TABLE_PFN << 12, 2) == 0
    assert (vcpu.i[LDT], vcpu.i[LDT + LIMIT]) == (0xE050, 15)
    assert vcpu.q[LDT_BASE] == 0xFFFF_8200_0001_0000
    assert frames.type[mfn] != page.SEG
    vcpu.i[ERROR_CODE] = 0
    assert dt.handle_ldt_fault(vcpu, vcpu.q[LDT_BASE] + 8)
    assert fakes_cpu.injected(guest) is None
    assert (frames.type[mfn], frames.type_count[mfn]) == (page.SEG, 1)
    assert sr.segment(vcpu, 0x0F) == (0x3000, MASK32, descriptor(0x3000) >> 32)
    assert sr.segment(vcpu, 0x17) is None, "behind its end"
    assert dt.handle_ldt_fault(vcpu, vcpu.q[LDT_BASE] + 0x1000)
    assert fakes_cpu.injected(guest) == 14, "nor is a page mapped there"
    assert dt.set_ldt(vcpu, 0, 0) == 0
    assert frames.type_count[mfn] == 0 and vcpu.i[LDT] == 0
    assert sr.segment(vcpu, 0x0F) is None


@WIDTHS
def test_an_ldt_that_cannot_be_mapped_is_the_guests_page_fault(width: int) -> None:
    guest = make_cpu_guest(width)
    vcpu = guest.vcpu
    assert dt.set_ldt(vcpu, 63 << 20, 600) == 0
    vcpu.i[ERROR_CODE] = 0
    assert dt.handle_ldt_fault(vcpu, vcpu.q[LDT_BASE] + 0x1008)
    assert fakes_cpu.injected(guest) == 14
    at, size = (16, 8) if width == 64 else (8, 4)
    assert int.from_bytes(vcpu.info[at : at + size], "little") == (63 << 20) + 0x1008


def test_the_accessed_bit_is_set_for_the_processor() -> None:
    guest = make_cpu_guest(64)
    assert give_gdt(guest, [0, descriptor(access=0xF2)]) == 0
    guest.vcpu.i[ERROR_CODE] = 3
    assert dt.handle_ldt_fault(guest.vcpu, dt.gdt_base(guest.vcpu) + 12)
    assert guest.read((TABLE_PFN << 12) + 8) == [descriptor(access=0xF3)]
    assert not dt.handle_ldt_fault(guest.vcpu, dt.gdt_base(guest.vcpu) + 0x2000), "never in a page not the guest's"


def test_faults_that_are_not_the_processors_own_reading_are_left_alone() -> None:
    guest = make_cpu_guest(64)
    guest.vcpu.i[ERROR_CODE] = 4
    assert not dt.handle_ldt_fault(guest.vcpu, dt.gdt_base(guest.vcpu) + 0x10000)
    guest.vcpu.i[ERROR_CODE] = 0
    assert not dt.handle_ldt_fault(guest.vcpu, dt.gdt_base(guest.vcpu) + (1 << 17))
    assert dt.handle_ldt_fault(guest.vcpu, dt.gdt_base(guest.vcpu) + 0x18)
    assert fakes_cpu.injected(guest) == 13, "a GDT that is not there: #GP for the selector"


@WIDTHS
@pytest.mark.parametrize(
    ("base", "entries"), [(8, 1), (1 << 47, 1), (0xFFFF_8000_0000_0000, 1), (0, 8193), (1 << 64, 1)]
)
def test_set_ldt_refuses_what_xen_refuses(width: int, base: int, entries: int) -> None:
    guest = make_cpu_guest(width)
    assert dt.set_ldt(guest.vcpu, base, entries) == -EINVAL
    assert not guest.vcpu.ldt_entries
