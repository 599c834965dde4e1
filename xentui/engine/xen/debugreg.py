"""A guest's debug registers (Xen: pv/misc-hypercalls.c, set_debugreg; traps.c, activate_debugregs and do_debug).

They are kept in `vcpu.debug` and never reach those of the emulated processor, which do nothing: breakpoints on
instructions and data are made to fire by other means (x86/debug_registers.py), those on I/O ports where IN, OUT, INS
and OUTS are carried out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_ENTRY
from xentui.engine.x86.exceptions import X86_EXC_DB
from xentui.engine.x86.paging import FRAME_MASK, PRESENT
from xentui.engine.x86.state import CS_BASE, EF_RF, EF_TF, EFLAGS, MASK32, MASK64, RIP
from xentui.engine.xen.abi.errno import EINVAL, ENODEV, EPERM
from xentui.engine.xen.guest_access import HYPERVISOR_END

if TYPE_CHECKING:
    from xentui.engine.x86.watchpoints import Watchpoint
    from xentui.engine.xen.domain import Vcpu

CR4_DE = 1 << 3

DR6_SET = 0xFFFF_0FF0  # reserved bits that read as one
DR6_CLEAR = 1 << 12
DR6_SINGLE_STEP = 1 << 14
DR7_SET = 1 << 10
DR7_CLEAR = 0xD800
DR7_ACTIVE = 0xFF
DR7_GENERAL_DETECT = 1 << 13

_EXECUTE, _WRITE, _IO, _ACCESS = range(4)  # R/W field of a breakpoint
_LENGTHS = (1, 2, 8, 4)


def set_debug_register(vcpu: Vcpu, register: int, value: int) -> int:
    """Set a debug register, as far as a guest may: 0, -ENODEV (#UD), -EINVAL (reserved bits), -EPERM (not yours)."""
    debug = vcpu.debug
    if register < 4:
        if 1 << 47 <= value < HYPERVISOR_END:
            return -EPERM
        debug[register] = value
        _changed(vcpu)
        return 0
    if register > 7 or (register < 6 and vcpu.cr4 & CR4_DE):
        return -ENODEV
    if value > MASK32:
        return -EINVAL
    if not register & 1:
        debug[6] = (value | DR6_SET) & ~DR6_CLEAR
        return 0
    value = (value | DR7_SET) & ~DR7_CLEAR
    if value & DR7_GENERAL_DETECT:
        return -EPERM
    if value & DR7_ACTIVE and not vcpu.cr4 & CR4_DE and any(value >> shift & 3 == _IO for shift in (16, 20, 24, 28)):
        return -EPERM
    debug[7] = value
    _changed(vcpu)
    return 0


def _changed(vcpu: Vcpu) -> None:
    if vcpu.processor.vcpu is vcpu:
        switch_to(vcpu)


def get_debug_register(vcpu: Vcpu, register: int) -> int | None:
    """Read a debug register; DR4 and DR5 are DR6 and DR7 unless CR4.DE is set. None: there is no such (#UD)."""
    if register > 7 or (register in (4, 5) and vcpu.cr4 & CR4_DE):
        return None
    return vcpu.debug[register + 2 if register in (4, 5) else register]


# --- making them fire --------------------------------------------------------------------------------------------


def arm(vcpu: Vcpu) -> None:
    """Make the processor look out for what the debug registers of the vCPU that it carries say (activate_debugregs).

    A breakpoint on data watches the frame that its address maps now.
    """
    code: set[int] = set()
    data: list[Watchpoint] = []
    for number in range(4):
        if not vcpu.debug[7] >> 2 * number & 3:
            continue
        kind, length = _kind(vcpu, number)
        if kind == _EXECUTE:
            code.add(vcpu.debug[number])
        elif kind in (_WRITE, _ACCESS):
            point = _watchpoint(vcpu, number, length, kind == _ACCESS)
            if point is not None:
                data.append(point)
    registers = vcpu.processor.debug_registers
    registers.watch_code(code)
    registers.watch_data(data, vcpu.hv.ram)


def switch_to(vcpu: Vcpu) -> None:
    """The vCPU has been given its processor."""
    if vcpu.debug[7] & DR7_ACTIVE or vcpu.processor.debug_registers.in_use:
        arm(vcpu)


def _kind(vcpu: Vcpu, number: int) -> tuple[int, int]:
    """What breakpoint `number` is on, and how many bytes it covers."""
    field = vcpu.debug[7] >> 16 + 4 * number
    return field & 3, _LENGTHS[field >> 2 & 3]


def _watchpoint(vcpu: Vcpu, number: int, length: int, reads: bool) -> Watchpoint | None:
    """A breakpoint on data as a watchpoint on machine memory; None where nothing is mapped."""
    address = vcpu.debug[number] & -length
    where = vcpu.space.entry_at(address)
    entry = vcpu.hv.ram64[where] if where >= 0 else 0
    if not entry & PRESENT:
        return None
    from xentui.engine.x86.watchpoints import Watchpoint

    machine = entry & FRAME_MASK | address & 0xFFF
    return Watchpoint(machine, length, True, reads, lambda _access: _data_breakpoint(vcpu, number))


def _data_breakpoint(vcpu: Vcpu, number: int) -> bool:
    """An instruction has touched what is watched: #DB behind it. The processor need not stop."""
    if vcpu.processor.vcpu is vcpu:
        vcpu.hv.clock.charge(COST_ENTRY)
        _raise(vcpu, 1 << number)
    return False


def instruction_breakpoint(vcpu: Vcpu) -> bool:
    """At a debug exception: is the instruction at RIP one that the guest has a breakpoint on? It has its #DB then."""
    q = vcpu.q
    address = q[RIP] + q[CS_BASE] & MASK64
    if q[EFLAGS] & EF_RF:
        return False
    hit = 0
    for number in range(4):
        if vcpu.debug[7] >> 2 * number & 3 and vcpu.debug[number] == address and _kind(vcpu, number)[0] == _EXECUTE:
            hit |= 1 << number
    if hit:
        _raise(vcpu, hit)
    return bool(hit)


def io_breakpoint(vcpu: Vcpu, port: int, size: int) -> None:
    """IN, OUT, INS or OUTS has been done for the guest: #DB behind it if one of its ports has a breakpoint.

    With a REP prefix that is behind each repetition, and RIP at the instruction again until the last (Xen:
    pv/emul-priv-op.c, check_guest_io_breakpoint, rep_ins and rep_outs).
    """
    if not vcpu.cr4 & CR4_DE:
        return
    hit = 0
    for number in range(4):
        kind, length = _kind(vcpu, number)
        first = vcpu.debug[number]
        if vcpu.debug[7] >> 2 * number & 3 and kind == _IO and port - length < first < port + size:
            hit |= 1 << number
    if hit:
        vcpu.processor.halt(lambda: _behind_io(vcpu, hit))


def _behind_io(vcpu: Vcpu, hit: int) -> bool:
    """The instruction has ended, and if the guest steps, its step with it; the processor need not stop."""
    vcpu.hv.clock.charge(COST_ENTRY)
    _raise(vcpu, hit | (DR6_SINGLE_STEP if vcpu.q[EFLAGS] & EF_TF else 0))
    return False


def _raise(vcpu: Vcpu, hit: int) -> None:
    """#DB, with what was hit in DR6."""
    from xentui.engine.xen import traps

    vcpu.debug[6] |= DR6_SET | hit
    traps.inject(vcpu, X86_EXC_DB)
