"""Call gates of 32-bit guests: what the processor would have done, done by the hypervisor."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fakes_cpu
from tests.fakes import Guest
from tests.fakes_cpu import CODE_PFN, STACK_TOP, execute, make_cpu_guest
from xentui.engine.trace import Instruction, Kind
from xentui.engine.x86.paging import ACCESSED, PRESENT, USER
from xentui.engine.x86.state import CS, EF_TF, EFLAGS, ERROR_CODE, MASK32, RAX, RIP, RSP, SS
from xentui.engine.xen import descriptor_tables as dt
from xentui.engine.xen import traps
from xentui.engine.xen.descriptor_check import check_descriptor

TS, NP, STACK_FAULT, GP, PF = 10, 11, 12, 13, 14
TABLE_PFN, USER_STACK = 50, 46 << 12
START, TARGET = CODE_PFN << 12, 0x2_9000
KERNEL_CODE, USER_CODE, CONFORMING, ABSENT, SMALL, DATA, GATES = 0x09, 0x13, 0x1B, 0x20, 0x28, 0x30, 7
"""Selectors of the table's segments, and the number of its first gate."""


def segment(access: int, flags: int = 0xC, limit: int = 0xFFFFF) -> int:
    return (flags << 20 | limit & 0xF0000 | access << 8) << 32 | limit & 0xFFFF


def gate(selector: int, dpl: int, offset: int = TARGET, parameters: int = 0, access: int = 0x8C) -> int:
    return (offset & 0xFFFF_0000 | (access | dpl << 5) << 8 | parameters) << 32 | selector << 16 | offset & 0xFFFF


SEGMENTS = [
    0, segment(0xBB), segment(0xFB), segment(0xBF), segment(0x3B), segment(0xBB, 4, 0xFFF), segment(0xB3),
]  # fmt: skip


def guest_with(*gates: int, user: bool = True) -> Guest:
    """A 32-bit guest with these gates from selector 0x38 on, in user code unless told otherwise."""
    guest = make_cpu_guest(32)
    table = [*SEGMENTS, *gates]
    guest.write(TABLE_PFN << 12, table + [0] * (512 - len(table)))
    mfn = guest.p2m[TABLE_PFN]
    assert guest.update((guest.tables["l1"] << 12) + 8 * TABLE_PFN, mfn << 12 | PRESENT | USER | ACCESSED) == 0
    assert dt.set_gdt(guest.vcpu, [mfn], 512) == 0
    if user:
        fakes_cpu.enter_user_mode(guest)
        guest.vcpu.q[RSP] = USER_STACK
    return guest


def far(guest: Guest, selector: int, jump: bool = False) -> None:
    """What the processor does with a far call or jump to a call gate of DPL 0: #GP with its selector."""
    execute(guest, (b"\xea" if jump else b"\x9a") + struct.pack("<IH", 0x1234_5678, selector))
    fault(guest, selector & ~3)


def fault(guest: Guest, error_code: int) -> None:
    guest.vcpu.i[ERROR_CODE] = error_code
    traps.general_protection(guest.vcpu)


def words(guest: Guest, count: int) -> list[int]:
    """The words on top of the stack."""
    return guest.read(guest.vcpu.q[RSP], count, "I")


def where(guest: Guest) -> tuple[int, int, int]:
    vcpu = guest.vcpu
    return vcpu.i[CS], vcpu.q[RIP], vcpu.i[SS]


def outcome(guest: Guest) -> tuple[int | None, int]:
    """(Vector, error code) of the exception that the guest has got, from its bounce frame."""
    return fakes_cpu.injected(guest), words(guest, 1)[0]


def selector_of(number: int, rpl: int = 3) -> int:
    return 8 * (GATES + number) | rpl


def test_a_gate_keeps_its_dpl_in_its_selector() -> None:
    fixed = check_descriptor(32, gate(KERNEL_CODE, 3))
    assert fixed is not None and fixed >> 45 & 3 == 0 and fixed >> 16 & 0xFFFF == KERNEL_CODE & ~3 | 3
    assert check_descriptor(32, gate(KERNEL_CODE, 3, access=0x84)) is None, "16-bit"


def test_a_call_into_the_kernel() -> None:
    guest = guest_with(gate(KERNEL_CODE, 3))
    far(guest, selector_of(0))
    assert where(guest) == (KERNEL_CODE, TARGET, 0xE021) and fakes_cpu.ring(guest) == 1
    assert guest.vcpu.q[RSP] == STACK_TOP - 16
    assert words(guest, 4) == [START + 7, 0xE02B, USER_STACK, 0xE033]
    (record,) = [record for record in guest.hv.trace.latest(64) if record.kind == Kind.EMULATED]
    assert (record.number, record.a, record.b) == (Instruction.FAR_CALL, TARGET, KERNEL_CODE)


def test_parameters_are_copied() -> None:
    guest = guest_with(gate(KERNEL_CODE, 3, parameters=3))
    guest.write(USER_STACK - 12, [1, 2, 3], "I")
    guest.vcpu.q[RSP] = USER_STACK - 12
    far(guest, selector_of(0))
    assert words(guest, 7) == [START + 7, 0xE02B, 1, 2, 3, USER_STACK - 12, 0xE033]


@pytest.mark.parametrize("user", [False, True])
def test_a_call_within_a_ring(user: bool) -> None:
    guest = guest_with(gate(USER_CODE if user else KERNEL_CODE, 3), user=user)
    ss, top = guest.vcpu.i[SS], guest.vcpu.q[RSP]
    cs = guest.vcpu.i[CS]
    far(guest, selector_of(0, cs & 3))
    assert where(guest) == (USER_CODE if user else KERNEL_CODE, TARGET, ss)
    assert guest.vcpu.q[RSP] == top - 8 and words(guest, 2) == [START + 7, cs]


def test_a_conforming_target_with_a_call_from_user_code_changes_the_ring() -> None:
    """As Xen has it, which does not look at the conforming bit there."""
    guest = guest_with(gate(CONFORMING, 3))
    far(guest, selector_of(0))
    assert where(guest) == (CONFORMING & ~3 | 1, TARGET, 0xE021)


def test_jumps() -> None:
    guest = guest_with(gate(USER_CODE, 3), gate(KERNEL_CODE, 3), gate(CONFORMING, 3))
    top = guest.vcpu.q[RSP]
    far(guest, selector_of(0), jump=True)
    assert where(guest) == (USER_CODE, TARGET, 0xE033) and guest.vcpu.q[RSP] == top
    far(guest, selector_of(2), jump=True)
    assert where(guest) == (CONFORMING, TARGET, 0xE033), "a conforming segment runs in the caller's ring"
    far(guest, selector_of(1), jump=True)
    assert outcome(guest) == (GP, KERNEL_CODE & ~3), "a jump does not change the ring"


@pytest.mark.parametrize(
    ("operand", "length"),
    [("ff1d00a00200", 6), ("2eff1d00a00200", 7), ("ff18", 2), ("ff5b08", 3), ("ff9b08000000", 6), ("ff1c4b", 3)],
)
def test_memory_operands(operand: str, length: int) -> None:
    guest = guest_with(gate(KERNEL_CODE, 3))
    q = guest.vcpu.q
    q[RAX], q[1], q[3] = 0x2A000, 0x1000, 0x2A000 - (8 if operand[:4] in ("ff5b", "ff9b") else 0x2000)
    guest.write(0x2A000, list(struct.pack("<IH", 0, selector_of(0))), "B")
    execute(guest, bytes.fromhex(operand))
    fault(guest, selector_of(0) & ~3)
    assert where(guest)[:2] == (KERNEL_CODE, TARGET) and words(guest, 1) == [START + length]


def test_an_operand_of_16_bits() -> None:
    guest = guest_with(gate(KERNEL_CODE, 3))
    execute(guest, b"\x66\x9a" + struct.pack("<HH", 0x1234, selector_of(0)))
    fault(guest, selector_of(0) & ~3)
    assert where(guest)[:2] == (KERNEL_CODE, TARGET) and words(guest, 1) == [START + 6]


def test_single_stepping_through_a_gate() -> None:
    guest = guest_with(gate(KERNEL_CODE, 3))
    guest.vcpu.q[EFLAGS] |= EF_TF
    far(guest, selector_of(0))
    assert fakes_cpu.injected(guest) == 1 and words(guest, 1) == [TARGET], "#DB with the target in its frame"


@pytest.mark.parametrize(
    ("what", "selector", "expected"),
    [
        (gate(KERNEL_CODE, 1), None, (GP, selector_of(0, 0))),
        (gate(KERNEL_CODE, 3, access=0x0C), None, (GP, selector_of(0, 0))),
        (gate(KERNEL_CODE | 3, 0, access=0x0C), None, (NP, selector_of(0, 0))),
        (segment(0xBB), None, (GP, selector_of(0, 0))),
        (gate(ABSENT, 3), None, (NP, ABSENT)),
        (gate(DATA, 3), None, (GP, DATA)),
        (gate(0x7F8, 3), None, (GP, 0x7F8)),
        (gate(SMALL, 3, 0x1000), None, (GP, 0)),
        (gate(KERNEL_CODE, 3), 0x1003, (GP, 0x1000)),
        (gate(KERNEL_CODE, 3), 0x3F, (GP, 0x3C)),
    ],
)
def test_refusals(what: int, selector: int | None, expected: tuple[int, int]) -> None:
    guest = guest_with(what)
    far(guest, selector_of(0) if selector is None else selector)
    assert outcome(guest) == expected
    assert words(guest, 2)[1] == START, "RIP at the instruction"


def test_the_rpl_of_the_operand_counts() -> None:
    guest = guest_with(gate(KERNEL_CODE, 1), user=False)
    far(guest, selector_of(0, 2))
    assert outcome(guest) == (GP, selector_of(0, 0))
    guest = guest_with(gate(KERNEL_CODE, 1), user=False)
    far(guest, selector_of(0, 1))
    assert where(guest)[:2] == (KERNEL_CODE, TARGET)


@pytest.mark.parametrize(("ss", "vector"), [(0xE023, TS), (USER_CODE, TS), (KERNEL_CODE, TS), (0, TS)])
def test_the_kernels_stack_segment_must_be_one(ss: int, vector: int) -> None:
    guest = guest_with(gate(KERNEL_CODE, 3))
    guest.vcpu.kernel_ss = ss
    guest.vcpu.traps[TS] = None
    far(guest, selector_of(0))
    assert f"vector {vector}, error code {ss & ~3:#06x}" in guest.domain.crash_reason


def test_the_kernels_stack_must_be_mapped() -> None:
    guest = guest_with(gate(KERNEL_CODE, 3))
    guest.vcpu.kernel_sp = 0x40_0000
    guest.vcpu.traps[PF] = None
    far(guest, selector_of(0))
    assert "unhandled page fault at 0x3ffffc, error code 0x0006" in guest.domain.crash_reason


def test_the_stack_below_0() -> None:
    guest = guest_with(gate(KERNEL_CODE, 3))
    guest.vcpu.kernel_sp = 8
    guest.vcpu.traps[STACK_FAULT] = None
    far(guest, selector_of(0))
    assert "vector 12, error code 0xe020" in guest.domain.crash_reason


def test_another_instruction_with_that_error_code() -> None:
    guest = guest_with(gate(KERNEL_CODE, 3))
    execute(guest, b"\x8e\xd8")  # mov ds, eax
    fault(guest, selector_of(0, 0))
    assert outcome(guest) == (GP, selector_of(0, 0))
    guest = guest_with(gate(KERNEL_CODE, 3))
    execute(guest, b"\xff\xd8")  # a far call has no register operand
    fault(guest, selector_of(0, 0))
    assert outcome(guest) == (GP, selector_of(0, 0))


def test_privileged_instructions_have_no_error_code() -> None:
    guest = make_cpu_guest(64)
    execute(guest, b"\x0f\x06")
    fault(guest, 0x38)
    assert fakes_cpu.injected(guest) == GP, "a 64-bit guest's gate: nobody emulates it"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, (1 << 64) - 1) | st.builds(gate, st.integers(0, 0xFFFF), st.integers(0, 3)), max_size=3),
    st.binary(max_size=15) | st.builds(lambda tail: b"\x9a" + tail, st.binary(min_size=6, max_size=6)),
    st.integers(1, 0xFFFF) | st.integers(0, 3).map(selector_of),
    st.lists(st.integers(0, MASK32), min_size=8, max_size=8),
    st.booleans(),
)
def test_nothing_raises_and_no_ring_is_given_away(
    gates: list[int], code: bytes, error: int, registers: list[int], user: bool
) -> None:
    allowed = [word for word in gates if check_descriptor(32, word) is not None]
    guest = guest_with(*allowed, user=user)
    execute(guest, code)
    for number, value in enumerate(registers):
        guest.vcpu.q[number] = value
    fault(guest, error)
    assert fakes_cpu.ring(guest) in (1, 3) or guest.domain.shutdown_code is not None
