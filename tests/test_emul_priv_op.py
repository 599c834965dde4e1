"""Privileged instructions, MSRs, debug registers, I/O ports and the interval timer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fakes_cpu
from tests.fakes import Guest
from tests.fakes_cpu import CODE_PFN, CR0_VALUE, HANDLER, execute, make_cpu_guest
from xentui.engine.trace import Instruction, Kind, Record
from xentui.engine.x86.state import (
    EF_RF,
    EF_TF,
    EFLAGS,
    FS_BASE,
    GS_BASE,
    HF_TS,
    HFLAGS,
    MASK32,
    MASK64,
    R8,
    RAX,
    RBX,
    RCX,
    RDX,
    RIP,
)
from xentui.engine.xen import emul_priv_op, io_port, msr
from xentui.engine.xen.abi.errno import EINVAL, ENODEV, EPERM
from xentui.engine.xen.debugreg import get_debug_register, set_debug_register
from xentui.engine.xen.pit import PIT_HZ, Pit
from xentui.engine.xen.time import guest_tsc

WIDTHS = pytest.mark.parametrize("width", [32, 64])
START = CODE_PFN << 12


def emulate(guest: Guest, code: str) -> bool:
    """Run one instruction, given as hexadecimal digits, through the emulator."""
    execute(guest, bytes.fromhex(code))
    return emul_priv_op.emulate_privileged_op(guest.vcpu)


def records(guest: Guest, kind: int) -> list[Record]:
    return [record for record in guest.hv.trace.latest(1024) if record.kind == kind]


# --- which instructions --------------------------------------------------------------------------------------------


@WIDTHS
@pytest.mark.parametrize(
    ("code", "length"),
    [
        ("fa", 1), ("fb", 1), ("0f06", 2), ("0f09", 2), ("0f31", 2), ("f30f31", 3), ("0f20c0", 3), ("0f20d8", 3),
        ("0f20e0", 3), ("0f21f8", 3), ("2e0f06", 3),
    ],
)  # fmt: skip
def test_a_kernels_instructions_are_carried_out(width: int, code: str, length: int) -> None:
    guest = make_cpu_guest(width)
    guest.vcpu.iopl = 1
    assert emulate(guest, code)
    assert guest.vcpu.q[RIP] == START + length


@WIDTHS
@pytest.mark.parametrize(
    "code",
    ["f4", "0f013f", "0f08", "0f01f0", "0f00d8", "0f00d0", "cf", "0f0117", "0f35", "0f07", "90", "0f33", "0f20c8"],
)
def test_others_stay_the_guests_own_fault(width: int, code: str) -> None:
    guest = make_cpu_guest(width)
    guest.vcpu.iopl = 3
    before = bytes(guest.vcpu.processor.state.raw)
    assert not emulate(guest, code)
    assert guest.vcpu.q[RIP] == START
    guest.vcpu.q[RIP] = int.from_bytes(before[128:136], "little")
    assert bytes(guest.vcpu.processor.state.raw) == before


@WIDTHS
@pytest.mark.parametrize(
    "code", ["fa", "fb", "0f06", "0f09", "0f20c0", "0f22c0", "0f21c0", "0f23c0", "0f30", "0f32", "0f01d1"]
)
def test_user_code_may_none_of_them(width: int, code: str) -> None:
    guest = make_cpu_guest(width)
    fakes_cpu.enter_user_mode(guest)
    guest.vcpu.iopl = 1
    assert not emulate(guest, code)


@WIDTHS
@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(min_size=1, max_size=15),
        st.tuples(
            st.sampled_from(["", "66", "f3", "2e66"]),
            st.sampled_from(["", "41", "44", "48", "4f"]),
            st.sampled_from(
                ["fa", "fb", "0f06", "0f09", "0f20", "0f21", "0f22", "0f23", "0f30", "0f31", "0f32", "0f01"]
            ),
            st.binary(max_size=3).map(bytes.hex),
        ).map(lambda parts: bytes.fromhex("".join(parts))),
    ),
    st.lists(st.integers(0, MASK64), min_size=16, max_size=16),
    st.booleans(),
    st.integers(0, 3),
)
def test_no_bytes_and_no_registers_raise(width: int, code: bytes, registers: list[int], user: bool, iopl: int) -> None:
    guest = make_cpu_guest(width)
    vcpu = guest.vcpu
    if user:
        fakes_cpu.enter_user_mode(guest)
    vcpu.iopl = iopl
    execute(guest, code)
    stack = vcpu.q[4]
    for number, value in enumerate(registers):
        vcpu.q[number] = value
    vcpu.q[4] = stack
    ring = fakes_cpu.ring(guest)
    if emul_priv_op.emulate_privileged_op(vcpu):
        assert vcpu.q[RIP] != START
        assert not user or code.lstrip(b"\x66\xf3\x2e\x26\x36\x3e\x64\x65\x67\xf2").lstrip(bytes(range(0x40, 0x50)))[
            :1
        ] in (b"\xfa", b"\xfb", b"\x0f")
    else:
        assert vcpu.q[RIP] == START
    assert fakes_cpu.ring(guest) == ring or fakes_cpu.injected(guest) is not None
    assert guest.domain.shutdown_code is None


def test_an_instruction_at_the_end_of_what_is_mapped() -> None:
    guest = make_cpu_guest(64)
    last = (len(guest.p2m) << 12) - 2
    guest.write(last, [0x0F, 0x06], "B")
    guest.vcpu.q[RIP] = last
    assert emul_priv_op.emulate_privileged_op(guest.vcpu)
    guest.write(last, [0x66, 0x0F], "B")
    guest.vcpu.q[RIP] = last
    assert not emul_priv_op.emulate_privileged_op(guest.vcpu)
    for nowhere in (len(guest.p2m) << 12, MASK64, 1 << 47):
        guest.vcpu.q[RIP] = nowhere
        assert not emul_priv_op.emulate_privileged_op(guest.vcpu)


@WIDTHS
def test_cli_and_sti_need_the_virtual_iopl_and_do_nothing(width: int) -> None:
    guest = make_cpu_guest(width)
    assert not emulate(guest, "fa"), "IOPL 0"
    guest.vcpu.iopl = 1
    assert emulate(guest, "fa")
    assert guest.vcpu.info[1] == 0
    guest.vcpu.iopl = 0
    guest.domain.vm_assist = 1 << 4  # architectural_iopl: its kernel is as good as ring 0
    assert emulate(guest, "fb")


def test_single_stepping_goes_on_behind_the_instruction() -> None:
    guest = make_cpu_guest(64)
    guest.vcpu.q[EFLAGS] |= EF_TF | EF_RF
    assert emulate(guest, "0f06")
    assert fakes_cpu.injected(guest) == 1
    frame = guest.read(guest.vcpu.q[4], 7)
    assert frame[2] == START + 2
    assert guest.vcpu.debug[6] & 1 << 14


# --- registers -----------------------------------------------------------------------------------------------------


@WIDTHS
def test_control_registers_as_the_kernel_sees_them(width: int) -> None:
    guest = make_cpu_guest(width)
    vcpu = guest.vcpu
    assert emulate(guest, "0f20c0") and vcpu.q[RAX] == CR0_VALUE
    top = vcpu.guest_table
    assert emulate(guest, "0f20d8")
    assert vcpu.q[RAX] == top << 12
    assert emulate(guest, "0f20e0")
    assert vcpu.q[RAX] == 0x620
    vcpu.q[RBX] = 0xFFFF_FFFF
    assert emulate(guest, "0f22e3"), "mov to CR4"
    assert vcpu.cr4 == 0xC
    assert emulate(guest, "0f20e0")
    assert vcpu.q[RAX] == 0x62C, "TSD and DE are the guest's, no other bit"
    vcpu.q[RBX] = 0x1234
    assert emulate(guest, "0f22d3"), "mov to CR2"
    assert emulate(guest, "0f20d0")
    assert vcpu.q[RAX] == 0x1234


def test_rex_prefixes_name_the_upper_registers() -> None:
    guest = make_cpu_guest(64)
    assert emulate(guest, "410f20c0") and guest.vcpu.q[R8] == CR0_VALUE
    assert guest.vcpu.q[RIP] == START + 4
    assert not emulate(guest, "440f20c0"), "CR8"
    guest = make_cpu_guest(32)
    assert not emulate(guest, "410f20c0"), "INC ECX in 32-bit code"


@WIDTHS
def test_ts_comes_and_goes(width: int) -> None:
    guest = make_cpu_guest(width)
    vcpu = guest.vcpu
    vcpu.q[RBX] = CR0_VALUE | 8
    assert emulate(guest, "0f22c3")
    assert vcpu.cr0_ts and vcpu.i[HFLAGS] & HF_TS
    assert emulate(guest, "0f20c0") and vcpu.q[RAX] == CR0_VALUE | 8
    assert emulate(guest, "0f06")
    assert not vcpu.cr0_ts and not vcpu.i[HFLAGS] & HF_TS
    vcpu.q[RBX] = CR0_VALUE & ~0x10000
    assert not emulate(guest, "0f22c3"), "CR0.WP is not the guest's"


@WIDTHS
def test_cr3_takes_page_tables_only(width: int) -> None:
    guest = make_cpu_guest(width)
    vcpu = guest.vcpu
    vcpu.q[RBX] = vcpu.guest_table << 12
    assert emulate(guest, "0f22db")
    for wrong in (guest.p2m[50] << 12, 0, 0xFFFF_F000, guest.hv.frames.count << 12):
        vcpu.q[RBX] = wrong
        assert not emulate(guest, "0f22db")


@WIDTHS
def test_debug_registers(width: int) -> None:
    guest = make_cpu_guest(width)
    vcpu = guest.vcpu
    vcpu.q[RBX] = 0x1000
    assert emulate(guest, "0f23c3") and emulate(guest, "0f21c0")
    assert vcpu.q[RAX] == 0x1000
    assert set_debug_register(vcpu, 6, 0) == 0 and get_debug_register(vcpu, 6) == 0xFFFF_0FF0
    assert set_debug_register(vcpu, 7, 0xD801) == 0 and get_debug_register(vcpu, 5) == 0x401
    assert set_debug_register(vcpu, 0, 0xFFFF_8000_0000_0000) == -EPERM
    assert set_debug_register(vcpu, 7, 1 << 32) == -EINVAL
    assert set_debug_register(vcpu, 7, 1 << 13) == -EPERM, "general detect"
    assert set_debug_register(vcpu, 7, 0x2_0001) == -EPERM, "an I/O breakpoint without CR4.DE"
    assert set_debug_register(vcpu, 8, 0) == -ENODEV
    vcpu.cr4 = 8
    assert set_debug_register(vcpu, 7, 0x2_0001) == 0
    assert set_debug_register(vcpu, 4, 0) == -ENODEV and get_debug_register(vcpu, 4) is None
    assert emulate(guest, "0f21e0") and fakes_cpu.injected(guest) == 6


@WIDTHS
def test_xsetbv_is_undefined(width: int) -> None:
    guest = make_cpu_guest(width)
    assert emulate(guest, "0f01d1") and fakes_cpu.injected(guest) == 6


@WIDTHS
def test_rdtsc_counts_virtual_time(width: int) -> None:
    guest = make_cpu_guest(width)
    vcpu = guest.vcpu
    low = guest_tsc(guest.hv)
    assert emulate(guest, "0f31")
    value = vcpu.q[RAX] | vcpu.q[RDX] << 32
    assert low <= value <= guest_tsc(guest.hv)
    vcpu.space.reads[START >> 12] = guest.p2m[CODE_PFN] << 12
    assert emulate(guest, "0f31"), "the short path"
    assert vcpu.q[RIP] == START + 2
    assert value <= vcpu.q[RAX] | vcpu.q[RDX] << 32 <= guest_tsc(guest.hv)
    assert [record.number for record in records(guest, Kind.EMULATED)] == [Instruction.RDTSC] * 2
    fakes_cpu.enter_user_mode(guest)
    assert emulate(guest, "0f31"), "user code too"
    vcpu.cr4 = 4
    assert not emulate(guest, "0f31"), "unless the guest has set TSD"


# --- MSRs ----------------------------------------------------------------------------------------------------------


def rdmsr(guest: Guest, register: int) -> int | None:
    guest.vcpu.q[RCX] = register
    if not emulate(guest, "0f32"):
        return None
    return guest.vcpu.q[RAX] | guest.vcpu.q[RDX] << 32


def wrmsr(guest: Guest, register: int, value: int) -> bool:
    q = guest.vcpu.q
    q[RCX], q[RAX], q[RDX] = register, value & MASK32, value >> 32
    return emulate(guest, "0f30")


def test_msrs_of_a_64_bit_guest() -> None:
    guest = make_cpu_guest(64)
    q = guest.vcpu.q
    assert rdmsr(guest, 0xC000_0080) == 0xD01
    assert wrmsr(guest, 0xC000_0080, 0xD01) and not wrmsr(guest, 0xC000_0080, 0xD00)
    assert rdmsr(guest, 0x277) == 0x0005_0100_0704_06
    assert rdmsr(guest, 0x1B) == 0xFEE0_0900
    assert rdmsr(guest, 0x1A0) is not None and wrmsr(guest, 0x1A0, 0)
    for register, value in ((0xC000_0100, 0x1122_3344_5566), (0xC000_0101, 0xFFFF_FFFF_8000_0000), (0xC000_0102, 7)):
        assert wrmsr(guest, register, value)
        assert rdmsr(guest, register) == value
        assert not wrmsr(guest, register, 1 << 63)
    assert (q[FS_BASE], q[GS_BASE], guest.vcpu.inactive_gs_base) == (0x1122_3344_5566, 0xFFFF_FFFF_8000_0000, 7)
    assert records(guest, Kind.MSR)[-1].number == 0xC000_0102


def test_msrs_of_a_32_bit_guest() -> None:
    guest = make_cpu_guest(32)
    assert rdmsr(guest, 0xC000_0080) == 0x800
    assert rdmsr(guest, 0xC000_0100) is None and not wrmsr(guest, 0xC000_0100, 0)


@WIDTHS
@pytest.mark.parametrize("register", [0x12345678, 0xC000_0082, 0x10A, 0x48, 0xC000_0103, 0x4000_0001, 0x200, 0x179])
def test_msrs_that_are_not_there(width: int, register: int) -> None:
    guest = make_cpu_guest(width)
    assert rdmsr(guest, register) is None
    assert not wrmsr(guest, register, 0)


@WIDTHS
def test_performance_counters_read_zero_and_swallow_writes(width: int) -> None:
    guest = make_cpu_guest(width)
    assert rdmsr(guest, 0x186) == 0 and wrmsr(guest, 0x186, 5) and rdmsr(guest, 0x186) == 0


def test_a_guest_without_a_handler_reads_zero() -> None:
    guest = make_cpu_guest(64)
    guest.vcpu.traps[13] = None
    assert rdmsr(guest, 0x179) == 0
    assert rdmsr(guest, 0x12345678) is None, "not of one that no processor has"
    assert rdmsr(guest, 0x4000_0001) is None
    assert any("faking RDMSR 0x00000179" in line for line in guest.hv.log_lines)


@WIDTHS
def test_the_hypercall_page_msr(width: int) -> None:
    guest = make_cpu_guest(width)
    mfn = guest.p2m[50]
    assert rdmsr(guest, msr.HYPERCALL_PAGE) == 0
    assert wrmsr(guest, msr.HYPERCALL_PAGE, mfn << 12)
    stub = bytes(guest.read(50 << 12, 32, "B"))
    assert b"\xb8\0\0\0\0" + (b"\x0f\x05" if width == 64 else b"\xcd\x82") in stub
    counts = bytes(guest.hv.frames.type_count)
    for wrong in (mfn << 12 | 1, guest.tables["l1"] << 12, guest.hv.frames.count << 12, MASK64 & ~0xFFF):
        assert not wrmsr(guest, msr.HYPERCALL_PAGE, wrong)
    assert bytes(guest.hv.frames.type_count) == counts


@WIDTHS
@settings(max_examples=100, deadline=None)
@given(
    st.one_of(st.integers(0, MASK32), st.integers(0xC000_0080, 0xC000_0110), st.integers(0, 0x400)),
    st.integers(0, MASK64),
)
def test_no_msr_raises(width: int, register: int, value: int) -> None:
    guest = make_cpu_guest(width)
    rdmsr(guest, register)
    wrmsr(guest, register, value)


# --- the forced-emulation prefix -----------------------------------------------------------------------------------


@WIDTHS
def test_cpuid_behind_the_prefix(width: int) -> None:
    guest = make_cpu_guest(width)
    execute(guest, b"\x0f\x0bxen\x0f\xa2")
    guest.vcpu.q[RAX] = 0x4000_0000
    assert emul_priv_op.emulate_forced_invalid_op(guest.vcpu)
    assert guest.vcpu.q[RIP] == START + 7
    assert guest.vcpu.q[RBX] == int.from_bytes(b"XenV", "little")
    assert records(guest, Kind.FORCED_EMULATION)


@WIDTHS
def test_other_undefined_instructions_are_the_guests_own(width: int) -> None:
    guest = make_cpu_guest(width)
    for code in (b"\x0f\x0b", b"\x0f\x0bxen\x0f\x31", b"\x0f\x0bxem\x0f\xa2", b"\x0f\xff"):
        execute(guest, code)
        assert not emul_priv_op.emulate_forced_invalid_op(guest.vcpu)
        assert guest.vcpu.q[RIP] == START


@WIDTHS
def test_a_prefix_that_runs_out_of_memory_is_a_page_fault(width: int) -> None:
    guest = make_cpu_guest(width)
    end = len(guest.p2m) << 12
    guest.write(end - 5, list(b"\x0f\x0bxen"), "B")
    guest.vcpu.q[RIP] = end - 5
    assert emul_priv_op.emulate_forced_invalid_op(guest.vcpu)
    assert guest.vcpu.q[RIP] == HANDLER + 14
    at, size = (16, 8) if width == 64 else (8, 4)
    assert int.from_bytes(guest.vcpu.info[at : at + size], "little") == end


# --- I/O ports -----------------------------------------------------------------------------------------------------


@WIDTHS
def test_port_permission(width: int) -> None:
    guest = make_cpu_guest(width)
    vcpu = guest.vcpu
    assert not io_port.permitted(vcpu, 0x80, 1)
    vcpu.iopl = 1
    assert io_port.permitted(vcpu, 0x80, 4)
    vcpu.iopl = 0
    vcpu.io_bitmap, vcpu.io_bitmap_ports = guest.write(45 << 12, [0xFF] * 64, "B"), 512
    guest.write((45 << 12) + 0x10, [0b1100_0011], "B")
    assert io_port.permitted(vcpu, 0x82, 4) and io_port.permitted(vcpu, 0x85, 1)
    assert not io_port.permitted(vcpu, 0x81, 2) and not io_port.permitted(vcpu, 0x84, 4)
    fakes_cpu.enter_user_mode(guest)
    assert io_port.permitted(vcpu, 0x82, 1), "user code has what the bitmap says"
    guest.write((45 << 12) + 63, [0], "B")
    assert io_port.permitted(vcpu, 511, 1) and not io_port.permitted(vcpu, 511, 2), "up to the limit"
    vcpu.io_bitmap = 63 << 20
    assert not io_port.permitted(vcpu, 0x82, 1), "a bitmap that is not mapped"
    vcpu.iopl = 1
    assert not io_port.permitted(vcpu, 0x82, 1), "IOPL 1 is the kernel's"
    vcpu.iopl = 3
    assert io_port.permitted(vcpu, 0x82, 1)


def test_ports_without_a_device_read_all_ones() -> None:
    guest = make_cpu_guest(64)
    vcpu = guest.vcpu
    for size, ones in ((1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)):
        io_port.port_out(vcpu, 0x3F8, size, 0)
        assert io_port.port_in(vcpu, 0x3F8, size) == ones
        assert io_port.port_in(vcpu, 0xFFFF, size) == ones
    written = records(guest, Kind.IO_PORT)[0]
    assert (written.number, written.a, written.b, written.c) == (0x3F8, 1, 1, 0)


def test_index_registers_are_latched_for_each_domain() -> None:
    first, second = make_cpu_guest(64), make_cpu_guest(64)
    io_port.port_out(first.vcpu, 0x70, 1, 0x8F)
    io_port.port_out(first.vcpu, 0xCF8, 4, 0x8000_1234)
    assert io_port.port_in(first.vcpu, 0x70, 1) == 0x8F and io_port.port_in(first.vcpu, 0x71, 1) == 0xFF
    assert io_port.port_in(first.vcpu, 0xCF8, 4) == 0x8000_1234 and io_port.port_in(first.vcpu, 0xCF8, 1) == 0xFF
    assert io_port.port_in(first.vcpu, 0xCFC, 4) == 0xFFFF_FFFF
    assert io_port.port_in(second.vcpu, 0x70, 1) == 0 and io_port.port_in(second.vcpu, 0xCF8, 4) == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from([0x42, 0x43, 0x61, 0x70, 0xCF8]), st.integers(0, 0xFFFF)),
            st.sampled_from([1, 2, 4]),
            st.integers(0, MASK64),
        ),
        max_size=40,
    )
)
def test_no_port_access_raises(accesses: list[tuple[int, int, int]]) -> None:
    guest = make_cpu_guest(64)
    for port, size, value in accesses:
        io_port.port_out(guest.vcpu, port, size, value)
        assert 0 <= io_port.port_in(guest.vcpu, port, size) < 1 << 8 * size


# --- the interval timer --------------------------------------------------------------------------------------------


def test_linux_calibration_sees_the_timer_run() -> None:
    """What quick_pit_calibrate does: channel 2 from 0xFFFF in mode 0, and its high byte falls."""
    pit = Pit()
    pit.write(0x61, 0x01, 0)
    pit.write(0x43, 0xB0, 0)
    pit.write(0x42, 0xFF, 0)
    pit.write(0x42, 0xFF, 0)
    later = 256 * 1_000_000_000 // PIT_HZ
    assert (pit.read(0x42, 1000), pit.read(0x42, 1000)) == (0xFE, 0xFF)
    assert (pit.read(0x42, later * 10), pit.read(0x42, later * 10)) == (0x00, 0xF6)


def test_mode_0_ends_with_the_output_high() -> None:
    """What pit_calibrate_tsc does: count 50 ms down and wait for bit 5 of port 0x61."""
    pit = Pit()
    latch = PIT_HZ // 20
    pit.write(0x61, 0x01, 0)
    pit.write(0x43, 0xB0, 0)
    pit.write(0x42, latch & 0xFF, 0)
    pit.write(0x42, latch >> 8, 0)
    assert not pit.read(0x61, 49_000_000) & 0x20
    assert pit.read(0x61, 51_000_000) & 0x20
    assert pit.read(0x61, 0) & 3 == 1


def test_the_gate_stops_the_count() -> None:
    pit = Pit()
    channel = pit.channels[2]
    pit.write(0x61, 1, 0)
    pit.write(0x43, 0xB0, 0)
    pit.write(0x42, 0, 0)
    pit.write(0x42, 0, 0)
    pit.write(0x61, 0, 1_000_000)
    stopped = channel.value(1_000_000)
    assert channel.value(5_000_000) == stopped == 0x10000 - PIT_HZ // 1000
    pit.write(0x61, 1, 9_000_000)
    assert channel.value(10_000_000) == 0x10000 - 2 * PIT_HZ // 1000


def test_latched_count_and_read_back() -> None:
    pit = Pit()
    pit.write(0x61, 1, 0)
    pit.write(0x43, 0xB4, 0)  # channel 2, both bytes, rate generator
    pit.write(0x42, 0x34, 0)
    pit.write(0x42, 0x12, 0)
    pit.write(0x43, 0x80, 0)
    assert (pit.read(0x42, 10**9), pit.read(0x42, 10**9)) == (0x34, 0x12)
    pit.write(0x43, 0xE8, 0)  # read back: status of channel 2
    assert pit.read(0x42, 0) & 0x3F == 0x34
