"""What guests see with CPUID (Xen: cpuid.c, traps.c cpuid_hypervisor_leaves, public/arch-x86/cpuid.h).

The base is what the emulated processor (Unicorn's Nehalem) says of itself. Hidden from that is what Xen's PV policy
hides (public/arch-x86/cpufeatureset.h, letters S and H), what the emulator or this hypervisor does not do (local
APIC, machine checks, SYSENTER), and what the emulator does badly: PCMPISTRI of SSE4.2 is slower than any loop. All
guests of a width see the same, whoever asks, as on a processor that can be told to fault on CPUID.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xentui.engine.trace import Kind
from xentui.engine.x86.state import MASK32, RAX, RBX, RCX, RDX, RIP
from xentui.engine.xen.hypervisor import VERSION_MAJOR, VERSION_MINOR

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu
    from xentui.engine.xen.hypervisor import Hypervisor

Leaf = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

EMPTY: Leaf = (0, 0, 0, 0)

# --- feature bits, by register -----------------------------------------------------------------------------------
SSE3, SSSE3, CX16, SSE4_1, SSE4_2, POPCNT, HYPERVISOR = (1 << bit for bit in (0, 9, 13, 19, 20, 23, 31))  # 1.ECX
FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP = (1 << bit for bit in (0, 2, 3, 4, 5, 6, 7, 8, 9, 11))  # 1.EDX
MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFLUSH = (1 << bit for bit in (12, 13, 14, 15, 16, 17, 19))
MMX, FXSR, SSE, SSE2 = (1 << bit for bit in (23, 24, 25, 26))
LAHF_LM = 1 << 0  # 80000001.ECX
SYSCALL, NX, LM = (1 << bit for bit in (11, 20, 29))  # 80000001.EDX

NEHALEM: dict[tuple[int, int], Leaf] = {
    (0, 0): (0x0000_000B, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
    (1, 0): (0x0001_06A3, 0x0000_0800, 0x8098_2201, 0x078B_FBFD),
    (2, 0): (0x0000_0001, 0, 0, 0x002C_307D),
    (4, 0): (0x0000_0121, 0x01C0_003F, 0x0000_003F, 0x0000_0001),
    (4, 1): (0x0000_0122, 0x01C0_003F, 0x0000_003F, 0x0000_0001),
    (4, 2): (0x0000_0143, 0x03C0_003F, 0x0000_0FFF, 0x0000_0001),
    (0x8000_0000, 0): (0x8000_0008, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
    (0x8000_0001, 0): (0x0001_06A3, 0, 0x0000_0001, 0x2010_0800),
    (0x8000_0006, 0): (0, 0x4200_4200, 0x0200_8140, 0),
    (0x8000_0008, 0): (0x0000_3028, 0, 0, 0),
}
"""Leaf and subleaf to what UC_CPU_X86_NEHALEM of Unicorn 2.1.4 answers, as far as anything of it is shown."""

HIDDEN_1C = SSE4_2
HIDDEN_1D = PSE | MCE | APIC | SEP | MTRR | PGE | MCA | PSE36
LONG_MODE_1C = CX16
"""Depends on long mode, which a 32-bit guest does not have (Xen: gen-cpuid.py, deep dependencies)."""

BRAND = b"xentui emulated processor"

# --- the hypervisor's own leaves ---------------------------------------------------------------------------------
XEN_BASE = 0x4000_0000
XEN_MAX_LEAF = 5
XEN_MSR_BASE = 0x4000_0000
FEAT1_MMU_PT_UPDATE_PRESERVE_AD = 1
TSC_IS_EMULATED = 1


def _policy(width: int) -> dict[int, dict[int, Leaf]]:
    """Leaf to subleaf to registers, for guests of a width. Leaves without subleaves have the subleaf -1."""
    machine = NEHALEM
    _, extended_b, extended_c, extended_d = machine[0x8000_0001, 0]
    stepping, misc, features_c, features_d = machine[1, 0]
    features_c = features_c & ~HIDDEN_1C | HYPERVISOR
    addresses = machine[0x8000_0008, 0][0]
    if width == 32:
        features_c &= ~LONG_MODE_1C
        extended_c &= ~LAHF_LM
        extended_d &= ~(LM | SYSCALL)
        addresses = addresses & 0xFF | 32 << 8
    brand = struct.unpack("<12I", BRAND.ljust(48, b"\0"))
    leaves: dict[int, dict[int, Leaf]] = {
        0: {-1: machine[0, 0]},
        1: {-1: (stepping, misc & 0x00FF_FFFF, features_c, features_d & ~HIDDEN_1D)},
        2: {-1: machine[2, 0]},
        4: {subleaf: machine[4, subleaf] for subleaf in range(3)},
        0x8000_0000: {-1: (machine[0x8000_0000, 0][0], 0, 0, 0)},
        0x8000_0001: {-1: (0, extended_b, extended_c, extended_d)},
        0x8000_0006: {-1: (0, 0, machine[0x8000_0006, 0][2], 0)},
        0x8000_0008: {-1: (addresses, 0, 0, 0)},
    }
    for number in range(3):
        a, b, c, d = brand[4 * number : 4 * number + 4]
        leaves[0x8000_0002 + number] = {-1: (a, b, c, d)}
    return leaves


def _xen_leaf(hv: Hypervisor, leaf: int, subleaf: int) -> Leaf:
    """A leaf of the hypervisor's own, `leaf` counted from its first."""
    if leaf == 0:
        signature_b, signature_c, signature_d = struct.unpack("<3I", b"XenVMMXenVMM")
        return XEN_BASE + XEN_MAX_LEAF, signature_b, signature_c, signature_d
    if leaf == 1:
        return VERSION_MAJOR << 16 | VERSION_MINOR, 0, 0, 0
    if leaf == 2:
        return 1, XEN_MSR_BASE, FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0
    if leaf == 3:
        return _time_leaf(subleaf)
    if leaf == 5 and subleaf == 0:
        return 0, (hv.frames.count - 1).bit_length() + 12, 0, 0
    return EMPTY


def _time_leaf(subleaf: int) -> Leaf:
    """How the TSC runs: emulated, at a constant rate of virtual time, never offset."""
    from xentui.engine.xen import time

    if subleaf == 0:
        return TSC_IS_EMULATED, 0, time.TSC_HZ // 1000, 0
    if subleaf == 1:
        return 0, 0, time.TSC_TO_SYSTEM_MUL, time.TSC_SHIFT & MASK32
    if subleaf == 2:
        return time.TSC_HZ // 1000, 0, 0, 0
    return EMPTY


_LEAVES = {32: _policy(32), 64: _policy(64)}


def query(vcpu: Vcpu, leaf: int, subleaf: int) -> Leaf:
    """The four registers for a leaf and subleaf; leaves that do not exist are all zero (guest_cpuid)."""
    subleaves = _LEAVES[vcpu.width].get(leaf)
    if subleaves is not None:
        return subleaves.get(-1) or subleaves.get(subleaf, EMPTY)
    if XEN_BASE <= leaf <= XEN_BASE + XEN_MAX_LEAF:
        return _xen_leaf(vcpu.hv, leaf - XEN_BASE, subleaf)
    return EMPTY


def do_cpuid(vcpu: Vcpu) -> None:
    """Carry out a CPUID of the vCPU: leaf in EAX, subleaf in ECX; the upper halves of the results are zero."""
    hv, q = vcpu.hv, vcpu.q
    leaf, subleaf = q[RAX] & MASK32, q[RCX] & MASK32
    a, b, c, d = query(vcpu, leaf, subleaf)
    q[RAX], q[RBX], q[RCX], q[RDX] = a, b, c, d
    hv.put(hv.clock.now(), q[RIP], Kind.CPUID, vcpu.id, vcpu.domain.id, leaf, subleaf, a | b << 32, c | d << 32, 0, 0)
