"""The emulation of page-table writes against the processor itself, which executes the same instructions on memory."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import unicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

from tests.fakes import DATA, A, D, Guest, P, U, W, make_guest, make_hypervisor
from xentui.engine.x86.paging import PCD
from xentui.engine.x86.state import EF_RF, EFLAGS, RAX, RCX, RDI, RIP, RSI
from xentui.engine.xen import ro_page_fault, write_decode
from xentui.engine.xen.abi.core import VMASST_TYPE_writable_pagetables
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain import LazyNx
from xentui.engine.xen.guest_access import read
from xentui.engine.xen.page import WRITABLE
from xentui.engine.xen.pte import adjust_l1

CODE_PFN, DATA_PFN, FREE_PFN = 41, 42, 50
TABLE_ADDRESS = 0
"""The L1 is the domain's first page, mapped read-only at 0."""
FLAGS = 0x8D5
NAMES = {
    64: ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"],
    32: ["EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI"],
}
REGISTERS = {width: [getattr(x86, f"UC_X86_REG_{name}") for name in names] for width, names in NAMES.items()}


def make(width: int) -> Guest:
    guest = make_guest(make_hypervisor(), 1, width)
    guest.domain.vm_assist |= 1 << VMASST_TYPE_writable_pagetables
    return guest


def emulate(guest: Guest, code: bytes, registers: dict[int, int], flags: int, address: int) -> bool:
    """Let the hypervisor carry out `code` at the start of the code page, faulting at `address`."""
    q = guest.vcpu.q
    at = guest.p2m[CODE_PFN] << 12
    guest.hv.ram[at : at + 16] = code.ljust(16, b"\x90")
    for number in range(16):
        q[number] = registers.get(number, 0)
    q[RIP], q[EFLAGS] = CODE_PFN << 12, flags | 2
    return ro_page_fault.emulate(guest.vcpu, address, 3)


def execute(width: int, code: bytes, registers: dict[int, int], flags: int, memory: bytes) -> Any:
    """Let the processor do the same to a page of plain memory at the same address; returns it."""
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if width == 64 else unicorn.UC_MODE_32)
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, memory)
    uc.mem_map(CODE_PFN << 12, 0x2000)
    uc.mem_write(CODE_PFN << 12, code.ljust(16, b"\x90"))
    for number, register in enumerate(REGISTERS[width]):
        uc.reg_write(register, registers.get(number, 0))
    uc.reg_write(x86.UC_X86_REG_EFLAGS, flags | 2)
    uc.emu_start(CODE_PFN << 12, 0, count=1)
    return uc


SLOT = 60
"""An unused entry of the L1, whose value the instructions work on."""

# name, bytes before ModR/M, bytes of the operand by operand-size prefix, immediate bytes; the reg field, if fixed
REG = None
FORMS: list[tuple[str, bytes, bool, int | str, int | None]] = [
    ("mov r8", b"\x88", True, 0, REG),
    ("mov r", b"\x89", False, 0, REG),
    ("mov imm8", b"\xc6", True, 1, 0),
    ("mov imm", b"\xc7", False, "z", 0),
    ("xchg r8", b"\x86", True, 0, REG),
    ("xchg r", b"\x87", False, 0, REG),
    *((f"alu {n} r8", bytes([n << 3]), True, 0, REG) for n in range(7)),
    *((f"alu {n} r", bytes([n << 3 | 1]), False, 0, REG) for n in range(7)),
    *((f"alu {n} imm8 b", b"\x80", True, 1, n) for n in range(7)),
    *((f"alu {n} imm", b"\x81", False, "z", n) for n in range(7)),
    *((f"alu {n} simm8", b"\x83", False, 1, n) for n in range(7)),
    ("not b", b"\xf6", True, 0, 2),
    ("not", b"\xf7", False, 0, 2),
    ("neg b", b"\xf6", True, 0, 3),
    ("neg", b"\xf7", False, 0, 3),
    ("inc b", b"\xfe", True, 0, 0),
    ("inc", b"\xff", False, 0, 0),
    ("dec b", b"\xfe", True, 0, 1),
    ("dec", b"\xff", False, 0, 1),
    ("bts imm", b"\x0f\xba", False, 1, 5),
    ("btr imm", b"\x0f\xba", False, 1, 6),
    ("btc imm", b"\x0f\xba", False, 1, 7),
    ("cmpxchg b", b"\x0f\xb0", True, 0, REG),
    ("cmpxchg", b"\x0f\xb1", False, 0, REG),
    ("xadd b", b"\x0f\xc0", True, 0, REG),
    ("xadd", b"\x0f\xc1", False, 0, REG),
]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, bytes, dict[int, int], int, int, int, str]:
    """Width, instruction, registers, flags, old entry, address, name."""
    width = draw(st.sampled_from([32, 64]))
    name, opcode, bytewise, immediate, field = draw(st.sampled_from(FORMS))
    operand16 = draw(st.booleans()) and not bytewise
    rex_w = width == 64 and not bytewise and not operand16 and draw(st.booleans())
    size = 1 if bytewise else 2 if operand16 else 8 if rex_w else 4
    word = 64 if width == 64 else 32
    registers = {number: draw(st.integers(0, (1 << word) - 1)) for number in range(16 if width == 64 else 8)}
    # entries that are not present pass the check whatever else they hold
    old = draw(st.integers(0, (1 << 63) - 1)) << 1
    address = SLOT * 8 + draw(st.integers(0, 8 // size - 1)) * size
    base = draw(st.sampled_from([3, 5, 6, 7]))  # never RAX: cmpxchg wants it free
    displacement = draw(st.integers(-128, 127))
    registers[base] = address - displacement & (1 << word) - 1
    reg = field if field is not None else draw(st.integers(0, 7))
    code = (b"\x66" if operand16 else b"") + (b"\x48" if rex_w else b"") + opcode
    code += bytes([0x40 | reg << 3 | base, displacement & 0xFF])
    count = immediate if isinstance(immediate, int) else min(size, 4)
    code += draw(st.binary(min_size=count, max_size=count))
    if name.startswith("cmpxchg") and draw(st.booleans()):
        registers[RAX] = old >> (address & 7) * 8 & (1 << word) - 1
    return width, code, registers, draw(st.integers(0, FLAGS)) & FLAGS, old, address, name


@settings(max_examples=250, deadline=None)
@given(cases())
def test_as_the_processor_does(case: tuple[int, bytes, dict[int, int], int, int, int, str]) -> None:
    width, code, registers, flags, old, address, name = case
    guest = make(width)
    index = (guest.tables["l1"] << 9) + SLOT
    guest.update(index << 3, 0)
    guest.hv.ram64[index] = old
    page = bytearray(4096)
    page[SLOT * 8 : SLOT * 8 + 8] = old.to_bytes(8, "little")
    uc = execute(width, code, registers, flags, bytes(page))
    expected = int.from_bytes(uc.mem_read(SLOT * 8, 8), "little")
    done = emulate(guest, code, registers, flags, address)
    if expected & P:
        # the new entry is present: accepted or refused on its merits, which test_mm.py is about
        assert audit(guest.hv) == []
        return
    assert done, name
    assert guest.hv.ram64[index] == expected, name
    q = guest.vcpu.q
    for number, register in enumerate(REGISTERS[width]):
        assert q[number] & (1 << width) - 1 == uc.reg_read(register), (name, number)
    assert q[RIP] == uc.reg_read(x86.UC_X86_REG_RIP if width == 64 else x86.UC_X86_REG_EIP), name
    undefined = 0x10 if "alu 1" in name or "alu 4" in name or "alu 6" in name else 0x8D4 if name[:3] == "bt" else 0
    assert (q[EFLAGS] ^ uc.reg_read(x86.UC_X86_REG_EFLAGS)) & FLAGS & ~undefined == 0, name
    assert audit(guest.hv) == []


def _relative(prefix: str, target: int, length: int) -> bytes:
    """An instruction with a RIP-relative operand (its ModR/M byte is the last of `prefix`) and no immediate."""
    start = bytes.fromhex(prefix)
    return start + (target - (CODE_PFN << 12) - length).to_bytes(4, "little", signed=True)


ADDRESSES = [
    (64, _relative("48 89 05", SLOT * 8, 7), {}),  # mov [rip+x], rax
    (64, bytes.fromhex("48 89 04 cb"), {3: 0, 1: SLOT}),  # mov [rbx+rcx*8], rax
    (64, bytes.fromhex("4b 89 44 f5 08"), {13: (SLOT - 1) * 8 - 64, 14: 8}),  # mov [r13+r14*8+8], rax
    (64, bytes.fromhex("48 89 04 25") + (SLOT * 8).to_bytes(4, "little"), {}),  # mov [abs], rax
    (64, bytes.fromhex("48 89 83") + (SLOT * 8 - 100).to_bytes(4, "little", signed=True), {3: 100}),
    (64, bytes.fromhex("67 48 89 03"), {3: 1 << 32 | SLOT * 8}),  # mov [ebx], rax
    (64, bytes.fromhex("48 a3") + (SLOT * 8).to_bytes(8, "little"), {}),  # mov [moffs], rax
    (32, bytes.fromhex("a3") + (SLOT * 8).to_bytes(4, "little"), {}),
    (32, bytes.fromhex("89 05") + (SLOT * 8).to_bytes(4, "little"), {}),
    (32, bytes.fromhex("89 44 8d 04"), {5: SLOT * 8 - 12, 1: 2}),  # mov [ebp+ecx*4+4], eax
    (32, bytes.fromhex("3e 89 03"), {3: SLOT * 8}),
    (64, bytes.fromhex("48 0f ab 0b"), {3: SLOT * 8 - 8, 1: 64 + 4}),  # bts [rbx], rcx: the word behind
    (64, bytes.fromhex("48 0f b3 0b"), {3: SLOT * 8 + 8, 1: (1 << 64) - 61}),  # btr [rbx], rcx: the word before
    (32, bytes.fromhex("0f bb 0b"), {3: SLOT * 8 + 4, 1: (1 << 32) - 30}),
    (64, bytes.fromhex("44 88 23"), {3: SLOT * 8, 12: 0x55AA}),  # mov [rbx], r12b
    (64, bytes.fromhex("40 88 33"), {3: SLOT * 8, 6: 0x55AA}),  # mov [rbx], sil
    (32, bytes.fromhex("88 23"), {3: SLOT * 8, 0: 0x54AA}),  # mov [ebx], ah
    (64, bytes.fromhex("48 0f c3 03"), {3: SLOT * 8}),  # movnti [rbx], rax
]


@pytest.mark.parametrize("width,code,registers", ADDRESSES)
def test_every_way_to_name_the_entry(width: int, code: bytes, registers: dict[int, int]) -> None:
    guest = make(width)
    index = (guest.tables["l1"] << 9) + SLOT
    old = 0x1122_3344_5566_7788
    guest.update(index << 3, 0)
    guest.hv.ram64[index] = old
    page = bytearray(4096)
    page[SLOT * 8 : SLOT * 8 + 8] = old.to_bytes(8, "little")
    registers = {RAX: 0x1234_5678_1234_5678 & (1 << width) - 1, **registers}
    uc = execute(width, code, registers, 0, bytes(page))
    expected = int.from_bytes(uc.mem_read(SLOT * 8, 8), "little")
    assert expected != old
    assert emulate(guest, code, registers, 0, SLOT * 8)
    assert guest.hv.ram64[index] == expected
    assert guest.vcpu.q[RIP] == uc.reg_read(x86.UC_X86_REG_RIP if width == 64 else x86.UC_X86_REG_EIP)


@pytest.mark.parametrize("width", [32, 64])
def test_a_present_entry_is_validated_and_counted(width: int) -> None:
    guest = make(width)
    index = (guest.tables["l1"] << 9) + FREE_PFN
    entry = guest.entry(DATA_PFN)
    low, high = entry & 0xFFFF_FFFF, entry >> 32
    before = guest.hv.frames.type_count[guest.p2m[DATA_PFN]]
    if width == 64:
        assert emulate(guest, b"\x48\x89\x03", {3: FREE_PFN * 8, RAX: entry}, 0, FREE_PFN * 8)  # mov [rbx], rax
        assert guest.hv.ram64[index] == adjust_l1(entry)
    else:
        assert emulate(guest, b"\xc7\x03\0\0\0\0", {3: FREE_PFN * 8}, 0, FREE_PFN * 8)
        assert emulate(guest, b"\x89\x03", {3: FREE_PFN * 8 + 4, RAX: high}, 0, FREE_PFN * 8 + 4)
        assert emulate(guest, b"\x89\x03", {3: FREE_PFN * 8, RAX: low}, 0, FREE_PFN * 8)
        assert guest.hv.ram64[index] == entry
    assert guest.hv.frames.type_count[guest.p2m[DATA_PFN]] == before + 1
    assert audit(guest.hv) == []


@pytest.mark.parametrize("width", [32, 64])
def test_a_writable_mapping_of_a_page_table_is_the_guests_fault(width: int) -> None:
    guest = make(width)
    index = (guest.tables["l1"] << 9) + FREE_PFN
    old = guest.hv.ram64[index]
    size = b"\x48" if width == 64 else b""
    entry = guest.tables["l1"] << 12 | P | W | U
    assert not emulate(guest, size + b"\x89\x03", {3: FREE_PFN * 8, RAX: entry}, 0, FREE_PFN * 8)
    assert guest.hv.ram64[index] == old
    assert guest.vcpu.q[RIP] == CODE_PFN << 12
    assert audit(guest.hv) == []


def test_upper_half_of_a_pae_entry_first_clears_present() -> None:
    guest = make(32)
    index = (guest.tables["l1"] << 9) + FREE_PFN
    low = guest.hv.ram64[index] & 0xFFFF_FFFF
    assert emulate(guest, b"\x89\x03", {3: FREE_PFN * 8 + 4, RAX: 0x7FFF}, 0, FREE_PFN * 8 + 4)
    assert guest.hv.ram64[index] == 0x7FFF << 32 | low & ~P
    assert audit(guest.hv) == []


def test_stores_of_strings_one_fault_an_element() -> None:
    guest = make(64)
    for slot in range(4):
        assert guest.update((guest.tables["l1"] << 12) + 8 * (FREE_PFN + slot), 0) == 0
    state = {RDI: FREE_PFN * 8, RCX: 2, RAX: 0x1230}
    assert emulate(guest, b"\xf3\x48\xab", state, 0, FREE_PFN * 8)
    q = guest.vcpu.q
    assert (q[RDI], q[RCX], q[RIP]) == (FREE_PFN * 8 + 8, 1, CODE_PFN << 12)
    assert ro_page_fault.emulate(guest.vcpu, FREE_PFN * 8 + 8, 3)
    assert (q[RDI], q[RCX], q[RIP]) == (FREE_PFN * 8 + 16, 0, (CODE_PFN << 12) + 3)
    index = (guest.tables["l1"] << 9) + FREE_PFN
    assert guest.hv.ram64[index : index + 2].tolist() == [0x1230, 0x1230]
    source = guest.write(DATA_PFN << 12, [0x7770])
    assert emulate(guest, b"\x48\xa5", {RDI: FREE_PFN * 8, RSI: source}, 0, FREE_PFN * 8)
    assert guest.hv.ram64[index] == 0x7770 and q[RSI] == source + 8


def test_compare_and_exchange_of_eight_bytes() -> None:
    guest = make(32)
    address = FREE_PFN * 8
    index = (guest.tables["l1"] << 9) + FREE_PFN
    entry = guest.entry(DATA_PFN)
    old = guest.hv.ram64[index]
    pair = {0: old & 0xFFFF_FFFF, 2: old >> 32, 3: entry & 0xFFFF_FFFF, 1: entry >> 32, 6: address}
    assert emulate(guest, b"\xf0\x0f\xc7\x0e", pair, 0, address)
    assert guest.hv.ram64[index] == entry and guest.vcpu.q[EFLAGS] & 0x40
    assert emulate(guest, b"\xf0\x0f\xc7\x0e", {**pair, 0: 0xDEAD}, 0x40, address)
    assert guest.vcpu.q[0] == entry & 0xFFFF_FFFF and not guest.vcpu.q[EFLAGS] & 0x40
    assert audit(guest.hv) == []


def test_what_is_not_a_page_table_or_not_asked_for_is_the_guests_fault() -> None:
    guest = make(64)
    store = b"\x48\x89\x03"
    # not aligned, across the page, another kind of table, an instruction that nobody knows
    assert not emulate(guest, store, {3: FREE_PFN * 8 + 4}, 0, FREE_PFN * 8 + 4)
    assert not emulate(guest, store, {3: 0x1000}, 0, 0x1000)
    assert not emulate(guest, b"\x0f\x0b", {3: FREE_PFN * 8}, 0, FREE_PFN * 8)
    assert not emulate(guest, b"", {3: FREE_PFN * 8}, 0, FREE_PFN * 8)
    assert not emulate(guest, store, {3: 1 << 46}, 0, 1 << 46)
    assert not emulate(guest, store, {3: 0xFFFF_8000_0000_0000}, 0, 0xFFFF_8000_0000_0000)
    guest.domain.vm_assist = 0
    assert not emulate(guest, store, {3: FREE_PFN * 8}, 0, FREE_PFN * 8)


@settings(max_examples=700, deadline=None)
@given(st.sampled_from([32, 64]), st.binary(max_size=16), st.lists(st.integers(0, 4095), min_size=16, max_size=16))
def test_no_bytes_break_the_decoder(width: int, code: bytes, values: list[int]) -> None:
    guest = GUESTS[width]
    q = guest.vcpu.q
    emulate(guest, code, dict(enumerate(values)), 0, values[0] & ~7)
    assert q[RIP] >= CODE_PFN << 12


GUESTS = {width: make(width) for width in (32, 64)}


def test_constants() -> None:
    assert DATA == P | W | U | A | D
    guest = make(64)
    assert guest.hv.frames.type[guest.p2m[DATA_PFN]] == WRITABLE
    assert read(guest.vcpu, CODE_PFN << 12, 1) == b"\0"


@pytest.mark.parametrize("rex", [0x48, 0x49, 0x4C, 0x4D])
def test_the_short_way_decodes_as_the_long_one(rex: int, monkeypatch: pytest.MonkeyPatch) -> None:
    registers = memoryview(bytearray(8 * 64)).cast("Q")
    for number in range(16):
        registers[number] = 0x0111_1111_1111 * number
    codes = [bytes((rex, 0x89, modrm, *b"\1\2\3\4" * 3)) for modrm in range(64)]
    seen = []
    for stores in (write_decode._MOV_STORES, ()):
        monkeypatch.setattr(write_decode, "_MOV_STORES", stores)
        writes = [write_decode.Decoder(code, registers, True).decode() for code in codes]
        seen.append([[getattr(write, name) for name in write.__slots__] for write in writes])
    assert seen[0] == seen[1]


def stored(code: bytes, registers: dict[int, int], flags: int, lazy: bool, short: bool) -> tuple[Any, ...]:
    """All that a store to the L1 leaves behind, by the short way or by the long one only."""
    guest = make(64)
    other = make_guest(guest.hv, 2, 64)
    index = (guest.tables["l1"] << 9) + SLOT
    guest.domain.lazy_nx = LazyNx([index] if lazy else [])
    frames = {
        0: guest.entry(FREE_PFN),
        1: guest.entry(DATA_PFN, P | U),
        2: other.entry(9),
        3: guest.tables["l1"] << 12 | P,
    }
    frames |= {
        4: guest.hv.frames.count << 12 | P,
        5: guest.entry(FREE_PFN, P | W | PCD),
        6: guest.entry(FREE_PFN, P | W),
    }
    registers = {number: frames.get(value, value) for number, value in registers.items()}
    read(guest.vcpu, CODE_PFN << 12, 1)  # the hypervisor knows the page
    with patch.object(ro_page_fault, "_store", ro_page_fault._store if short else lambda *_: False):
        done = emulate(guest, code, registers, flags, SLOT * 8)
    told = [record._replace(time=0) for record in guest.hv.trace.latest(9)]
    state = guest.vcpu.q[:16].tolist(), guest.vcpu.q[RIP], guest.vcpu.processor.read_flags() & ~EF_RF
    assert audit(guest.hv) == []
    return done, state, told, bytes(guest.hv.ram), guest.domain.lazy_nx, [bytes(c) for c in guest.hv.frames.columns]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([0x48, 0x49, 0x4C, 0x4D, 0x40, 0x4A]),
    st.sampled_from([0x89, 0x89, 0x89, 0x8B]),
    st.integers(0, 0x7F),
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7 << 40, 1 << 63]),
    st.sampled_from([0, FLAGS, EF_RF]),
    st.booleans(),
)
def test_the_short_way_is_the_long_one(rex: int, opcode: int, modrm: int, new: int, flags: int, lazy: bool) -> None:
    registers = dict.fromkeys(range(16), 7 << 30)
    registers[modrm >> 3 & 7 | (rex & 4) << 1] = new
    registers[modrm & 7 | (rex & 1) << 3] = SLOT * 8
    code = bytes([rex, opcode, modrm, 0, 0, 0, 0])
    one, other = (stored(code, registers, flags, lazy, short) for short in (True, False))
    assert one == other


def test_the_usual_store_goes_the_short_way() -> None:
    guest = make(64)
    read(guest.vcpu, CODE_PFN << 12, 1)
    with patch.object(ro_page_fault, "Decoder", side_effect=AssertionError):
        assert emulate(guest, b"\x4c\x89\x07", {7: SLOT * 8, 8: guest.entry(DATA_PFN)}, 0, SLOT * 8)
    assert guest.vcpu.q[RIP] == (CODE_PFN << 12) + 3
