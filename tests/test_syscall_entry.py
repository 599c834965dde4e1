"""SYSCALL and SYSENTER on their way to the guest's callbacks, and #SS where the emulator says #GP."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests import fakes_cpu
from tests.command import record
from tests.fakes import Guest
from tests.fakes_cpu import CODE_PFN, HANDLER, STACK_TOP, enter_user_mode, execute, injected, make_cpu_guest
from tests.tiny_kernels import MEMORY, Tiny
from xentui.engine.trace import Kind
from xentui.engine.x86.state import CS, EF_DF, ERROR_CODE, HF_CS64, HFLAGS, RBP, RIP, RSP, SS
from xentui.engine.xen import callback, stack_fault, syscall_entry, traps
from xentui.engine.xen.abi import callback as cb
from xentui.engine.xen.abi.errno import EINVAL, ENOSYS
from xentui.engine.xen.callback import do_callback_op

START, ADDRESS, USER_STACK = CODE_PFN << 12, 0x1_2345, 46 << 12
WIDTHS = pytest.mark.parametrize("width", [32, 64])
NON_CANONICAL = 0x0000_8000_0000_0000


def op(guest: Guest, command: int, kind: int, address: int = ADDRESS, flags: int = 0, selector: int = 0xE019) -> int:
    wide = guest.vcpu.width == 64
    data = (
        struct.pack("<HHxxxxQ", kind, flags, address) if wide else struct.pack("<HHII", kind, flags, selector, address)
    )
    guest.write(45 << 12, list(data), "B")
    return do_callback_op(guest.vcpu, command, 45 << 12, 0, 0)


def register(guest: Guest, kind: int, flags: int = 0) -> None:
    assert op(guest, cb.CALLBACKOP_register, kind, flags=flags) == 0


def user(width: int, compat: bool = False) -> Guest:
    """A guest in user code; `compat`: 32-bit code of a 64-bit guest."""
    guest = make_cpu_guest(width)
    enter_user_mode(guest)
    guest.vcpu.q[RSP] = USER_STACK
    guest.vcpu.q[RIP] = START + 2
    if compat:
        guest.vcpu.i[HFLAGS] &= ~HF_CS64
    return guest


def frame(guest: Guest, count: int) -> list[int]:
    return guest.read(guest.vcpu.q[RSP], count, "Q" if guest.vcpu.width == 64 else "I")


# --- SYSCALL --------------------------------------------------------------------------------------------------------


def test_syscall_of_64_bit_code_shows_the_flat_segments() -> None:
    guest = user(64)
    register(guest, cb.CALLBACKTYPE_syscall)
    guest.vcpu.i[CS], guest.vcpu.i[SS] = 0x33, 0x2B
    guest.vcpu.processor.write_flags(0x202 | EF_DF)
    assert syscall_entry.syscall(guest.vcpu, START)
    _, _, rip, cs, flags, rsp, ss = frame(guest, 7)
    assert (rip, cs, rsp, ss) == (START + 2, 0xE033, USER_STACK, 0xE02B)
    assert flags & EF_DF and not guest.vcpu.processor.read_flags() & EF_DF, "DF is clear in the kernel"
    assert guest.vcpu.q[RIP] == ADDRESS and guest.vcpu.kernel_mode
    assert [record.kind for record in guest.hv.trace.latest(4)][-1:] == [Kind.SYSCALL]


def test_syscall_of_32_bit_code_has_a_callback_of_its_own() -> None:
    guest = user(64, compat=True)
    register(guest, cb.CALLBACKTYPE_syscall)
    assert not syscall_entry.syscall(guest.vcpu, START)
    assert injected(guest) == 6 and frame(guest, 4)[2:] == [START, 0xE023], "without one: #UD at the instruction"
    guest = user(64, compat=True)
    register(guest, cb.CALLBACKTYPE_syscall32, cb.CALLBACKF_mask_events)
    assert syscall_entry.syscall(guest.vcpu, START)
    assert guest.vcpu.q[RIP] == ADDRESS and frame(guest, 4)[2:] == [START + 2, 0xE023]
    assert guest.vcpu.info[1] == 0, "its mask flag does not count, as on Xen"
    guest = user(64, compat=True)
    register(guest, cb.CALLBACKTYPE_syscall32)
    register(guest, cb.CALLBACKTYPE_syscall, cb.CALLBACKF_mask_events)
    assert syscall_entry.syscall(guest.vcpu, START) and guest.vcpu.info[1] == 1, "but that of the other one does"


def test_syscall_of_a_32_bit_guest() -> None:
    guest = user(32)
    assert not syscall_entry.syscall(guest.vcpu, START)
    assert injected(guest) == 13 and frame(guest, 3) == [0, START, 0xE02B]
    guest = user(32)
    register(guest, cb.CALLBACKTYPE_syscall32, cb.CALLBACKF_mask_events)
    assert syscall_entry.syscall(guest.vcpu, START)
    assert guest.vcpu.q[RIP] == ADDRESS and fakes_cpu.ring(guest) == 1 and guest.vcpu.info[1] == 1
    assert frame(guest, 2) == [START + 2, 0xE02B] and frame(guest, 5)[3:] == [USER_STACK, 0xE033]


# --- SYSENTER -------------------------------------------------------------------------------------------------------


@WIDTHS
def test_sysenter(width: int) -> None:
    guest = user(width)
    register(guest, cb.CALLBACKTYPE_sysenter, cb.CALLBACKF_mask_events)
    execute(guest, b"\x0f\x34")
    traps.general_protection(guest.vcpu)
    assert guest.vcpu.q[RIP] == ADDRESS and guest.vcpu.info[1] == 1
    words = frame(guest, 7)[2:] if width == 64 else frame(guest, 5)
    assert (words[0], words[1], words[3], words[4]) == (0, 3, 0, 0xE02B if width == 64 else 0xE033)
    assert guest.vcpu.q[RSP] == STACK_TOP - (56 if width == 64 else 20)


@WIDTHS
def test_sysenter_without_a_callback(width: int) -> None:
    guest = user(width)
    execute(guest, b"\x0f\x34")
    traps.general_protection(guest.vcpu)
    assert injected(guest) == 13
    assert (frame(guest, 5)[2:5] if width == 64 else frame(guest, 3)) == [0, 0, 3], "error code, IP, CS"


def test_sysenter_of_a_kernel_has_no_stack() -> None:
    guest = make_cpu_guest(64)
    register(guest, cb.CALLBACKTYPE_sysenter)
    execute(guest, b"\x0f\x34")
    traps.general_protection(guest.vcpu)
    assert "unusable kernel stack" in guest.domain.crash_reason


# --- registering ----------------------------------------------------------------------------------------------------


@WIDTHS
def test_callbacks_are_replaced_never_taken_away(width: int) -> None:
    guest = make_cpu_guest(width)
    kinds = [cb.CALLBACKTYPE_event, cb.CALLBACKTYPE_failsafe, cb.CALLBACKTYPE_syscall32, cb.CALLBACKTYPE_sysenter]
    for kind in kinds:
        assert op(guest, cb.CALLBACKOP_register, kind) == 0
        assert op(guest, cb.CALLBACKOP_unregister, kind) == -EINVAL
    for command in (cb.CALLBACKOP_register, cb.CALLBACKOP_unregister):
        expected = -ENOSYS if width == 32 else (0, 0, -EINVAL)[command + command]
        assert op(guest, command, cb.CALLBACKTYPE_syscall) == expected
        assert op(guest, command, 99) == -ENOSYS
    assert op(guest, cb.CALLBACKOP_register, cb.CALLBACKTYPE_nmi, selector=0x1234) == 0
    handler = guest.vcpu.traps[2]
    assert handler is not None and handler.selector == (0xE033 if width == 64 else 0xE019) and handler.masks_events
    assert op(guest, cb.CALLBACKOP_unregister, cb.CALLBACKTYPE_nmi) == 0 and guest.vcpu.traps[2] is None
    assert callback.FLAT_KERNEL_CS32 == 0xE019


# --- #SS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("50", True), ("4157", True), ("6a00", True), ("6800000000", True), ("9c", True), ("e800000000", True),
        ("58", True), ("c3", True), ("c20800", True), ("9d", True), ("48cf", True), ("c8000000", True),
        ("c9", False), ("ff30", True), ("ff10", True), ("ffd0", True), ("ff20", False), ("8f00", True),
        ("488b0424", True), ("488b442408", True), ("4889642420", True), ("668b0424", True),
        ("64488b0424", False), ("65488b442408", False), ("488b00", False), ("90", False), ("7400", False),
        ("0f0b", False), ("488b4500", False), ("488b0425", False), ("f2", False), ("0fa0", True), ("0fa9", True),
    ],
)  # fmt: skip
def test_accesses_through_rsp(code: str, expected: bool) -> None:
    guest = make_cpu_guest(64)
    execute(guest, bytes.fromhex(code).ljust(15, b"\x90"))
    for register_number in range(16):
        guest.vcpu.q[register_number] = 0x1000
    guest.vcpu.q[RSP] = NON_CANONICAL + 0x100
    assert stack_fault.is_stack_fault(guest.vcpu) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [("488b4500", True), ("488b450064", True), ("488b8500000000", True), ("c9", True), ("498b4500", False),
     ("64488b4500", False), ("488b00", False), ("5d", False), ("488b440500", True)],
)  # fmt: skip
def test_accesses_through_rbp(code: str, expected: bool) -> None:
    guest = make_cpu_guest(64)
    execute(guest, bytes.fromhex(code).ljust(15, b"\x90"))
    guest.vcpu.q[RBP] = guest.vcpu.q[13] = guest.vcpu.q[0] = NON_CANONICAL
    assert stack_fault.is_stack_fault(guest.vcpu) == expected


def test_the_last_canonical_address_below_the_hole() -> None:
    guest = make_cpu_guest(64)
    guest.vcpu.q[RSP] = NON_CANONICAL
    execute(guest, b"\x50")
    assert not stack_fault.is_stack_fault(guest.vcpu), "a push goes below"
    execute(guest, b"\x58")
    assert stack_fault.is_stack_fault(guest.vcpu)
    guest = make_cpu_guest(32)
    execute(guest, b"\x50")
    assert not stack_fault.is_stack_fault(guest.vcpu), "32-bit code has no such addresses"


def test_the_guest_gets_its_stack_fault() -> None:
    guest = make_cpu_guest(64)
    execute(guest, bytes.fromhex("488b4500"))
    guest.vcpu.q[RBP], guest.vcpu.i[ERROR_CODE] = NON_CANONICAL, 0
    traps.general_protection(guest.vcpu)
    assert injected(guest) == 12 and frame(guest, 4)[2:] == [0, START]
    guest.vcpu.traps[13] = guest.vcpu.traps[12]
    execute(guest, bytes.fromhex("488b00"))
    guest.vcpu.q[0] = NON_CANONICAL
    traps.general_protection(guest.vcpu)
    assert guest.vcpu.q[RIP] == HANDLER + 12


def test_on_the_processor(tmp_path: Path) -> None:
    """A kernel that reads through a bad RBP, on the emulator itself: its handler for vector 12 runs."""
    kernel = Tiny(64)
    start = len(kernel.code)

    def program(handler: int) -> None:
        kernel.traps((12,), handler)
        kernel.do(b"\x48\xbd" + NON_CANONICAL.to_bytes(8, "little") + b"\x48\x8b\x45\x00")

    program(kernel.here)
    handler = kernel.here
    del kernel.code[start:]
    kernel.data.clear()
    program(handler)
    kernel.say(b"stack fault\n").shut_down()
    done = record(tmp_path / "out.xtrace", kernel.write(tmp_path / "kernel"), "--memory", str(MEMORY))
    assert done.status == 0 and re.search(r"stack fault$", done.errors, re.M), done.errors
