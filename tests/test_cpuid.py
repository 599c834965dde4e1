"""CPUID: what of the emulated processor guests see, and the hypervisor's own leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import (
    UC_CPU_X86_NEHALEM,
    UC_X86_REG_EAX,
    UC_X86_REG_EBX,
    UC_X86_REG_ECX,
    UC_X86_REG_EDX,
)

from tests.fakes_cpu import make_cpu_guest
from xentui.engine.trace import Kind
from xentui.engine.x86.state import MASK32, MASK64, RAX, RBX, RCX, RDX
from xentui.engine.xen import cpuid
from xentui.engine.xen.cpuid import Leaf
from xentui.engine.xen.time import TSC_HZ, TSC_TO_SYSTEM_MUL

WIDTHS = pytest.mark.parametrize("width", [32, 64])
GUESTS = {width: make_cpu_guest(width) for width in (32, 64)}


def query(width: int, leaf: int, subleaf: int = 0) -> Leaf:
    return cpuid.query(GUESTS[width].vcpu, leaf, subleaf)


@pytest.mark.parametrize(("leaf", "subleaf"), list(cpuid.NEHALEM))
def test_the_base_is_what_the_emulated_processor_says(leaf: int, subleaf: int) -> None:
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(UC_CPU_X86_NEHALEM)
    uc.mem_map(0x1000, 0x1000)
    uc.mem_write(0x1000, b"\x0f\xa2")
    uc.reg_write(UC_X86_REG_EAX, leaf)
    uc.reg_write(UC_X86_REG_ECX, subleaf)
    uc.emu_start(0x1000, 0x1002)
    registers = (UC_X86_REG_EAX, UC_X86_REG_EBX, UC_X86_REG_ECX, UC_X86_REG_EDX)
    assert tuple(uc.reg_read(register) for register in registers) == cpuid.NEHALEM[leaf, subleaf]


@WIDTHS
def test_features_are_the_processors_less_what_is_hidden(width: int) -> None:
    _, _, c, d = query(width, 1)
    _, _, machine_c, machine_d = cpuid.NEHALEM[1, 0]
    assert c & ~machine_c & ~cpuid.HYPERVISOR == 0 and d & ~machine_d == 0, "nothing that it cannot do"
    assert c & cpuid.HYPERVISOR
    assert not c & (cpuid.SSE4_2 | 1 << 3 | 1 << 5 | 1 << 21 | 1 << 26 | 1 << 27)
    hidden = cpuid.PSE | cpuid.MCE | cpuid.APIC | cpuid.SEP | cpuid.MTRR | cpuid.PGE | cpuid.MCA | cpuid.PSE36
    assert not d & hidden
    assert d & cpuid.PAT and d & cpuid.SSE2 and d & cpuid.TSC and d & cpuid.CX8
    assert query(width, 7) == cpuid.EMPTY, "no ERMS, no SMEP"


def test_long_mode_is_for_64_bit_guests() -> None:
    _, _, c, d = query(64, 0x8000_0001)
    assert c & cpuid.LAHF_LM and d & cpuid.LM and d & cpuid.SYSCALL and d & cpuid.NX
    assert query(64, 1)[2] & cpuid.CX16
    assert query(64, 0x8000_0008)[0] == 0x3028
    _, _, c, d = query(32, 0x8000_0001)
    assert not c and d == cpuid.NX
    assert not query(32, 1)[2] & cpuid.CX16
    assert query(32, 0x8000_0008)[0] == 0x2028


@WIDTHS
def test_names(width: int) -> None:
    def text(*words: int) -> bytes:
        return b"".join(word.to_bytes(4, "little") for word in words)

    _, b, c, d = query(width, 0)
    assert text(b, d, c) == b"GenuineIntel"
    brand = b"".join(text(*query(width, leaf)) for leaf in (0x8000_0002, 0x8000_0003, 0x8000_0004))
    assert brand.rstrip(b"\0") == b"xentui emulated processor"
    a, b, c, d = query(width, 0x4000_0000)
    assert (a, text(b, c, d)) == (0x4000_0005, b"XenVMMXenVMM")


@WIDTHS
def test_the_hypervisors_leaves(width: int) -> None:
    assert query(width, 0x4000_0001) == (4 << 16 | 17, 0, 0, 0)
    assert query(width, 0x4000_0002) == (1, 0x4000_0000, 1, 0)
    assert query(width, 0x4000_0003) == (1, 0, TSC_HZ // 1000, 0)
    a, b, multiplier, shift = query(width, 0x4000_0003, 1)
    assert (a, b, multiplier) == (0, 0, TSC_TO_SYSTEM_MUL)
    signed_shift = shift - (1 << 32) if shift >> 31 else shift
    ticks = TSC_HZ << signed_shift if signed_shift >= 0 else TSC_HZ >> -signed_shift
    assert abs((ticks * multiplier >> 32) - 1_000_000_000) < 2, "a second of ticks is a second"
    assert query(width, 0x4000_0003, 2) == (TSC_HZ // 1000, 0, 0, 0)
    assert query(width, 0x4000_0004) == cpuid.EMPTY
    assert query(width, 0x4000_0005) == (0, 12 + 9, 0, 0), "512 frames"
    assert query(width, 0x4000_0006) == query(width, 0x4000_0100) == cpuid.EMPTY


@WIDTHS
def test_cache_leaves_end(width: int) -> None:
    assert [query(width, 4, subleaf)[0] & 0x1F for subleaf in range(5)] == [1, 2, 3, 0, 0]


@given(st.sampled_from([32, 64]), st.integers(0, MASK64), st.integers(0, MASK64))
def test_every_leaf_gives_32_bit_values(width: int, leaf: int, subleaf: int) -> None:
    guest = GUESTS[width]
    q = guest.vcpu.q
    q[RAX], q[RBX], q[RCX], q[RDX] = leaf, MASK64, subleaf, MASK64
    cpuid.do_cpuid(guest.vcpu)
    result = (q[RAX], q[RBX], q[RCX], q[RDX])
    assert result == query(width, leaf & MASK32, subleaf & MASK32)
    assert max(result) <= MASK32
    record = guest.hv.trace.latest(1)[0]
    assert (record.kind, record.number, record.a) == (Kind.CPUID, leaf & MASK32, subleaf & MASK32)
    assert record.b == q[RAX] | q[RBX] << 32
