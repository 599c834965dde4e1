"""Privileged instructions that the hypervisor carries out for a PV kernel (Xen: pv/emul-priv-op.c, pv/emul-inv-op.c).

They arrive as #GP(0) with RIP at the instruction. Xen emulates few: control and debug registers, CLTS, RDMSR and
WRMSR, RDTSC, WBINVD, and CLI and STI, which do *nothing* (what POPF then does cannot be trapped, so a half-hearted
virtual IF would be worse). Others, HLT and INVLPG among them, stay the guest's own fault: there are hypercalls.
CPUID, IN and OUT come by hooks of their own (cpuid.py, io_port.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Instruction as Emulated
from xentui.engine.trace import Kind
from xentui.engine.x86.exceptions import X86_EXC_DB, X86_EXC_UD
from xentui.engine.x86.state import (
    CR0,
    CR4,
    CS_BASE,
    EF_RF,
    EF_TF,
    EFLAGS,
    HF_CS64,
    HFLAGS,
    MASK32,
    MASK64,
    RAX,
    RCX,
    RDX,
    RIP,
)
from xentui.engine.xen import cpuid, guest_access, io_port, mm, msr
from xentui.engine.xen.abi.errno import ENODEV
from xentui.engine.xen.continuation import ERESTART
from xentui.engine.xen.debugreg import DR6_SET, DR6_SINGLE_STEP, get_debug_register, set_debug_register
from xentui.engine.xen.guest_access import GuestFault
from xentui.engine.xen.instruction import Instruction, fetch
from xentui.engine.xen.time import guest_tsc, tsc_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.domain import Vcpu

CR0_TS = 1 << 3
CR4_TSD = 1 << 2
CR4_GUEST_MASK = CR4_TSD | 1 << 3
"""CR4 bits that are the guest's own: TSD and DE (there is no FSGSBASE or XSAVE here)."""
CR4_VISIBLE_MASK = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10
"""CR4 bits that the guest sees as the hypervisor has set them: PAE, MCE, OSFXSR, OSXMMEXCPT."""

FORCED_PREFIX = b"\x0f\x0bxen"
"""ud2a; .ascii "xen": in front of CPUID, makes it trap everywhere (public/arch-x86/xen.h, XEN_EMULATE_PREFIX)."""
_CPUID = b"\x0f\xa2"

UNHANDLED, DONE, INJECTED, RETRY = range(4)
"""What became of an instruction: the guest gets its #GP; RIP moves on; another exception was injected instead."""


# --- the instructions --------------------------------------------------------------------------------------------


def _cli_sti(vcpu: Vcpu, code: Instruction) -> int:
    if not io_port.iopl_ok(vcpu):
        return UNHANDLED
    _record(vcpu, Emulated.CLI if code.opcode == 0xFA else Emulated.STI)
    return DONE


def _clts(vcpu: Vcpu, _code: Instruction) -> int:
    from xentui.engine.xen.traps import set_task_switched

    if not vcpu.in_kernel:
        return UNHANDLED
    set_task_switched(vcpu, False)
    _record(vcpu, Emulated.CLTS)
    return DONE


def _wbinvd(vcpu: Vcpu, _code: Instruction) -> int:
    """Without devices of its own a domain has no caches to write back; kernels time it at start-up."""
    if not vcpu.in_kernel:
        return UNHANDLED
    _record(vcpu, Emulated.WBINVD)
    return DONE


def _rdtsc(vcpu: Vcpu, _code: Instruction) -> int:
    """The virtual counter; user code may read it unless the guest has set CR4.TSD."""
    if vcpu.cr4 & CR4_TSD and not vcpu.in_kernel:
        return UNHANDLED
    value = guest_tsc(vcpu.hv) & MASK64
    q = vcpu.q
    q[RAX], q[RDX] = value & MASK32, value >> 32
    _record(vcpu, Emulated.RDTSC, value)
    return DONE


def _rdmsr(vcpu: Vcpu, _code: Instruction) -> int:
    if not vcpu.in_kernel:
        return UNHANDLED
    q = vcpu.q
    value = msr.read_msr(vcpu, q[RCX] & MASK32)
    if value is None:
        return UNHANDLED
    q[RAX], q[RDX] = value & MASK32, value >> 32
    return DONE


def _wrmsr(vcpu: Vcpu, _code: Instruction) -> int:
    q = vcpu.q
    value = q[RAX] & MASK32 | (q[RDX] & MASK32) << 32
    return DONE if vcpu.in_kernel and msr.write_msr(vcpu, q[RCX] & MASK32, value) else UNHANDLED


def _group7(vcpu: Vcpu, code: Instruction) -> int:
    """0F 01: XSETBV, for which CR4.OSXSAVE is never set; all others are refused."""
    if code.byte() != 0xD1 or not vcpu.in_kernel:
        return UNHANDLED
    return _undefined(vcpu)


def _operands(code: Instruction) -> tuple[int, int]:
    """(control or debug register, general register) of the ModRM byte; its mod field does not count. (-1, -1): cut."""
    byte = code.byte()
    if byte < 0:
        return -1, -1
    return byte >> 3 & 7 | (code.rex & 4) << 1, byte & 7 | (code.rex & 1) << 3


def _read_cr(vcpu: Vcpu, code: Instruction) -> int:
    register, target = _operands(code)
    if not vcpu.in_kernel or register < 0:
        return UNHANDLED
    value = control_register(vcpu, register)
    if value is None:
        return UNHANDLED
    vcpu.q[target] = value & (MASK64 if vcpu.width == 64 else MASK32)
    _record(vcpu, Emulated.READ_CR, value, register)
    return DONE


def _write_cr(vcpu: Vcpu, code: Instruction) -> int:
    register, source = _operands(code)
    if not vcpu.in_kernel or register < 0:
        return UNHANDLED
    value = vcpu.q[source] & (MASK64 if vcpu.width == 64 else MASK32)
    rip = vcpu.q[RIP]
    if register == 3:
        error = _write_cr3(vcpu, value)
        if error:
            return RETRY if error == -ERESTART else UNHANDLED
    elif not _set_control_register(vcpu, register, value):
        return UNHANDLED
    _record(vcpu, Emulated.WRITE_CR, value, register, rip)
    return DONE


def _read_dr(vcpu: Vcpu, code: Instruction) -> int:
    register, target = _operands(code)
    if not vcpu.in_kernel or register < 0:
        return UNHANDLED
    value = get_debug_register(vcpu, register)
    if value is None:
        return _undefined(vcpu)
    vcpu.q[target] = value & (MASK64 if vcpu.width == 64 else MASK32)
    _record(vcpu, Emulated.READ_DR, value, register)
    return DONE


def _write_dr(vcpu: Vcpu, code: Instruction) -> int:
    register, source = _operands(code)
    if not vcpu.in_kernel or register < 0:
        return UNHANDLED
    value = vcpu.q[source] & (MASK64 if vcpu.width == 64 else MASK32)
    error = set_debug_register(vcpu, register, value)
    if error == -ENODEV:
        return _undefined(vcpu)
    if error:
        return UNHANDLED
    _record(vcpu, Emulated.WRITE_DR, value, register)
    return DONE


def _undefined(vcpu: Vcpu) -> int:
    from xentui.engine.xen import traps

    traps.inject(vcpu, X86_EXC_UD)
    return INJECTED


_HANDLERS: dict[int, Callable[[Vcpu, Instruction], int]] = {
    0xFA: _cli_sti,
    0xFB: _cli_sti,
    0x0F01: _group7,
    0x0F06: _clts,
    0x0F09: _wbinvd,
    0x0F20: _read_cr,
    0x0F21: _read_dr,
    0x0F22: _write_cr,
    0x0F23: _write_dr,
    0x0F30: _wrmsr,
    0x0F31: _rdtsc,
    0x0F32: _rdmsr,
}


# --- control registers -------------------------------------------------------------------------------------------


def guest_cr4(vcpu: Vcpu) -> int:
    """CR4 as the guest sees it: its own choice of some bits, the hypervisor's of others (pv_fixup_guest_cr4)."""
    return vcpu.cr4 & CR4_GUEST_MASK | vcpu.q[CR4] & CR4_VISIBLE_MASK


def control_register(vcpu: Vcpu, register: int) -> int | None:
    """A control register as the guest's kernel sees it; None: not one that it may read (read_cr)."""
    if register == 0:
        return vcpu.q[CR0] & ~CR0_TS | (CR0_TS if vcpu.cr0_ts else 0)
    if register == 2:
        at, size = (16, 8) if vcpu.width == 64 else (8, 4)  # vcpu_info.arch.cr2
        return int.from_bytes(vcpu.info[at : at + size], "little")
    if register == 3:
        mfn = vcpu.guest_table
        # A PAE guest's CR3 has the frame number's high bits below (xen-x86_32.h, xen_pfn_to_cr3).
        return mfn << 12 if vcpu.width == 64 else (mfn << 12 | mfn >> 20) & MASK32
    return guest_cr4(vcpu) if register == 4 else None


def _write_cr3(vcpu: Vcpu, value: int) -> int:
    """Take other page tables; 0, an error, or -ERESTART: preempted, and the instruction is executed again later."""
    mfn = value >> 12 if vcpu.width == 64 else value >> 12 | value << 20 & MASK32
    return mm.new_guest_cr3(vcpu, mfn, by=vcpu)


def _set_control_register(vcpu: Vcpu, register: int, value: int) -> bool:
    """Set another control register as far as a guest's kernel may; False: #GP (write_cr)."""
    from xentui.engine.xen.traps import set_task_switched

    if register == 0:
        if (value ^ vcpu.q[CR0]) & ~CR0_TS:
            return False
        set_task_switched(vcpu, bool(value & CR0_TS))
    elif register == 2:
        vcpu.set_cr2(value)
    elif register == 4:
        vcpu.cr4 = value & CR4_GUEST_MASK
    else:
        return False
    return True


# --- entry points ------------------------------------------------------------------------------------------------


def emulate_privileged_op(vcpu: Vcpu) -> bool:
    """At #GP(0): carry the instruction at RIP out. False: not one that Xen emulates, the #GP is the guest's.

    True: RIP is behind it, or another exception has been injected in its place, or it is to be executed again.
    """
    if _rdtsc_at_rip(vcpu):
        return True
    code = fetch(vcpu)
    handler = _HANDLERS.get(code.opcode)
    if handler is None:
        return False
    outcome = handler(vcpu, code)
    if outcome == DONE:
        instruction_done(vcpu, vcpu.q[RIP] + code.at & (MASK64 if code.wide else MASK32))
    return outcome != UNHANDLED


def _rdtsc_at_rip(vcpu: Vcpu) -> bool:
    """The short path for RDTSC, nine tenths of all that a kernel has emulated; False: nothing done, not that simple."""
    q = vcpu.q
    rip = q[RIP]
    within = rip & 0xFFF
    base = vcpu.space.reads.get(rip >> 12)
    if base is None or within > 0xFFD or vcpu.cr4 & CR4_TSD or q[EFLAGS] & (EF_TF | EF_RF) or q[CS_BASE]:
        return False
    ram = vcpu.ram
    if ram[base + within] != 0x0F or ram[base + within + 1] != 0x31:
        return False
    hv = vcpu.hv
    now = hv.clock.now()
    value = tsc_at(now) & MASK64
    q[RAX], q[RDX], q[RIP] = value & MASK32, value >> 32, rip + 2
    hv.put(now, rip, Kind.EMULATED, vcpu.id, vcpu.domain.id, Emulated.RDTSC, value, 0, 0, 0, 0)
    return True


def instruction_done(vcpu: Vcpu, rip: int) -> None:
    """Go on at `rip`; if the guest is single-stepping, with its #DB (pv_emul_instruction_done)."""
    from xentui.engine.xen import traps

    q = vcpu.q
    q[RIP] = rip
    flags = q[EFLAGS]
    if flags & EF_RF:
        q[EFLAGS] = flags & ~EF_RF
    if flags & EF_TF:
        vcpu.debug[6] |= DR6_SINGLE_STEP | DR6_SET
        traps.inject(vcpu, X86_EXC_DB)


def emulate_forced_invalid_op(vcpu: Vcpu) -> bool:
    """At #UD: carry out CPUID behind the forced-emulation prefix. False: no such prefix, the #UD is the guest's."""
    from xentui.engine.xen import traps

    hv, q = vcpu.hv, vcpu.q
    rip = q[RIP]
    try:
        if guest_access.read(vcpu, rip, len(FORCED_PREFIX)) != FORCED_PREFIX:
            return False
        if guest_access.read(vcpu, rip + len(FORCED_PREFIX), len(_CPUID)) != _CPUID:
            return False
    except GuestFault as fault:
        traps.inject_page_fault(vcpu, fault.address & MASK64, 0)
        return True
    length = len(FORCED_PREFIX) + len(_CPUID)
    hv.put(hv.clock.now(), rip, Kind.FORCED_EMULATION, vcpu.id, vcpu.domain.id, length, 0x0FA2, 0, 0, 0, 0)
    cpuid.do_cpuid(vcpu)
    instruction_done(vcpu, rip + length & (MASK64 if vcpu.i[HFLAGS] & HF_CS64 else MASK32))
    return True


def _record(vcpu: Vcpu, instruction: int, value: int = 0, operand: int = 0, rip: int | None = None) -> None:
    hv = vcpu.hv
    hv.put(
        hv.clock.now(), vcpu.q[RIP] if rip is None else rip, Kind.EMULATED, vcpu.id, vcpu.domain.id, instruction,
        value, operand, 0, 0, 0,
    )  # fmt: skip
