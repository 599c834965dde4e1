"""Model-specific registers as PV guests see them (Xen: pv/emul-priv-op.c read_msr and write_msr, msr.c, traps.c).

A guest reads what Xen lets it read, most of it constant, and sets hardly more than its segment bases. Anything else
is #GP, but for reads by a guest that has no #GP handler yet: those get 0, so that early boot code survives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind
from xentui.engine.x86.exceptions import X86_EXC_GP
from xentui.engine.x86.state import EFER, FS_BASE, GS_BASE, MASK64, RIP
from xentui.engine.xen import page
from xentui.engine.xen.abi.errno import EPERM
from xentui.engine.xen.page_type import get_page_and_type, put_page_and_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.domain import Vcpu

TSC = 0x10
PLATFORM_ID = 0x17
APIC_BASE = 0x1B
UCODE_REV = 0x8B
PLATFORM_INFO = 0xCE
MPERF, APERF = 0xE7, 0xE8
MISC_FEATURES_ENABLES = 0x140
PERF_CTL = 0x199
THERM_CONTROL = 0x19A
MISC_ENABLE = 0x1A0
ENERGY_PERF_BIAS = 0x1B0
PAT = 0x277
PERF_CAPABILITIES = 0x345
EFER_MSR = 0xC000_0080
FS_BASE_MSR, GS_BASE_MSR, SHADOW_GS_BASE = 0xC000_0100, 0xC000_0101, 0xC000_0102
AMD64_NB_CFG = 0xC001_001F
HYPERCALL_PAGE = 0x4000_0000

PERFORMANCE_COUNTERS = frozenset((*range(0xC1, 0xC9), *range(0x186, 0x18A), *range(0x309, 0x30C), *range(0x38D, 0x391)))
"""Hidden where there is no virtual PMU: read as zero, writes ignored (vpmu.c, vpmu_do_msr)."""

_EFER_SCE, _EFER_LME, _EFER_LMA = 1 << 0, 1 << 8, 1 << 10
_EFER_KNOWN = _EFER_SCE | _EFER_LME | _EFER_LMA | 1 << 11
_APIC_BASE_VALUE = 0xFEE0_0800  # enabled, at its usual address
_APIC_BASE_BSP = 1 << 8
_XEN_PAT = 0x0000_0501_0007_0406  # WB WT UC- UC WC WP, the order of Xen on every processor
# fast strings; no branch trace, no PEBS, xTPR messages disabled (guest_misc_enable)
_MISC_ENABLE_VALUE = 1 << 0 | 1 << 11 | 1 << 12 | 1 << 23
_HARDWARE_HAS = frozenset(
    (
        *(0x0, 0x1, 0x3A, 0xFE, 0x198, 0x1D9, 0x250, 0x258, 0x259, 0x2FF),
        *range(0x174, 0x177),
        *range(0x179, 0x17C),
        *range(0x19A, 0x19E),
        *range(0x200, 0x210),
        *range(0x268, 0x270),
        *range(0x400, 0x424),
        *range(0xC000_0081, 0xC000_0085),
    )
)
"""Registers that the processor has and Xen refuses: what a guest without a #GP handler reads as zero."""


def _canonical(address: int) -> bool:
    return address < 1 << 47 or address >= (1 << 64) - (1 << 47)


def _efer(vcpu: Vcpu) -> int:
    """EFER, without what a 32-bit guest has no use for (guest_efer)."""
    value = vcpu.q[EFER] & _EFER_KNOWN
    return value if vcpu.width == 64 else value & ~(_EFER_SCE | _EFER_LME | _EFER_LMA)


def _tsc(vcpu: Vcpu) -> int:
    from xentui.engine.xen.time import guest_tsc

    return guest_tsc(vcpu.hv) & MASK64


def _apic_base(vcpu: Vcpu) -> int:
    return _APIC_BASE_VALUE | (0 if vcpu.id else _APIC_BASE_BSP)


def _fs_base(vcpu: Vcpu) -> int:
    return vcpu.q[FS_BASE]


def _gs_base(vcpu: Vcpu) -> int:
    return vcpu.q[GS_BASE]


def _shadow_gs_base(vcpu: Vcpu) -> int:
    return vcpu.inactive_gs_base


_READ: dict[int, Callable[[Vcpu], int]] = {
    TSC: _tsc,
    PLATFORM_ID: lambda _: 0,
    APIC_BASE: _apic_base,
    UCODE_REV: lambda _: 0,
    PLATFORM_INFO: lambda _: 0,
    MISC_FEATURES_ENABLES: lambda _: 0,
    MISC_ENABLE: lambda _: _MISC_ENABLE_VALUE,
    PAT: lambda _: _XEN_PAT,
    PERF_CAPABILITIES: lambda _: 0,
    EFER_MSR: _efer,
    AMD64_NB_CFG: lambda _: 0,
    HYPERCALL_PAGE: lambda _: 0,
}
_READ_64: dict[int, Callable[[Vcpu], int]] = {
    FS_BASE_MSR: _fs_base,
    GS_BASE_MSR: _gs_base,
    SHADOW_GS_BASE: _shadow_gs_base,
}
_WRITES_IGNORED = PERFORMANCE_COUNTERS | {
    MPERF,
    APERF,
    PERF_CTL,
    THERM_CONTROL,
    ENERGY_PERF_BIAS,
    MISC_ENABLE,
    AMD64_NB_CFG,
}
_ONLY_ZERO = (UCODE_REV, MISC_FEATURES_ENABLES)


def read_msr(vcpu: Vcpu, register: int) -> int | None:
    """The value of a register, or None where RDMSR raises #GP; recorded."""
    read = _READ.get(register) or (_READ_64.get(register) if vcpu.width == 64 else None)
    value: int | None = None
    if read is not None:
        value = read(vcpu)
    elif register in PERFORMANCE_COUNTERS:
        value = 0
    elif register in _HARDWARE_HAS and vcpu.traps[X86_EXC_GP] is None:
        vcpu.hv.log(f"{vcpu.name} faking RDMSR {register:#010x}")
        value = 0
    _record(vcpu, register, 0, value or 0, value is not None)
    return value


def write_msr(vcpu: Vcpu, register: int, value: int) -> bool:
    """Set a register; False where WRMSR raises #GP; recorded."""
    done = _write(vcpu, register, value)
    _record(vcpu, register, 1, value, done)
    return done


def _write(vcpu: Vcpu, register: int, value: int) -> bool:
    if register in _READ_64 and vcpu.width == 64:
        if not _canonical(value):
            return False
        if register == FS_BASE_MSR:
            vcpu.q[FS_BASE] = value
        elif register == GS_BASE_MSR:
            vcpu.q[GS_BASE] = value
        else:
            vcpu.inactive_gs_base = value
        return True
    if register in _WRITES_IGNORED:
        return True
    if register in _ONLY_ZERO:
        return value == 0
    if register == EFER_MSR:
        return value == _efer(vcpu)  # kernels write it back
    return register == HYPERCALL_PAGE and _write_hypercall_page(vcpu, value)


def _write_hypercall_page(vcpu: Vcpu, value: int) -> bool:
    """Fill the guest's frame at machine address `value` with hypercall stubs (guest_wrmsr_xen)."""
    from xentui.engine.xen.hypercall import hypercall_page

    mfn = value >> 12
    if value & 0xFFF or get_page_and_type(vcpu.domain, mfn, page.WRITABLE):
        return False
    vcpu.ram[mfn << 12 : mfn + 1 << 12] = hypercall_page(vcpu.width)
    vcpu.processor.flush_code()
    put_page_and_type(vcpu.domain, mfn)
    return True


def _record(vcpu: Vcpu, register: int, write: int, value: int, done: bool) -> None:
    hv = vcpu.hv
    result = 0 if done else -EPERM & MASK64
    hv.put(hv.clock.now(), vcpu.q[RIP], Kind.MSR, vcpu.id, vcpu.domain.id, register, write, value, 0, 0, result)
