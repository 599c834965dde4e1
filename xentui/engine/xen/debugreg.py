"""A guest's debug registers (Xen: pv/misc-hypercalls.c, set_debugreg).

They are kept in `vcpu.debug` and never reach the emulated processor, whose breakpoints do not fire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.state import MASK32
from xentui.engine.xen.abi.errno import EINVAL, ENODEV, EPERM
from xentui.engine.xen.guest_access import HYPERVISOR_END

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

CR4_DE = 1 << 3

DR6_SET = 0xFFFF_0FF0  # reserved bits that read as one
DR6_CLEAR = 1 << 12
DR6_SINGLE_STEP = 1 << 14
DR7_SET = 1 << 10
DR7_CLEAR = 0xD800
DR7_ACTIVE = 0xFF
DR7_GENERAL_DETECT = 1 << 13

_IO = 2  # R/W field of a breakpoint: I/O ports


def set_debug_register(vcpu: Vcpu, register: int, value: int) -> int:
    """Set a debug register, as far as a guest may: 0, -ENODEV (#UD), -EINVAL (reserved bits), -EPERM (not yours)."""
    debug = vcpu.debug
    if register < 4:
        if 1 << 47 <= value < HYPERVISOR_END:
            return -EPERM
        debug[register] = value
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
    return 0


def get_debug_register(vcpu: Vcpu, register: int) -> int | None:
    """Read a debug register; DR4 and DR5 are DR6 and DR7 unless CR4.DE is set. None: there is no such (#UD)."""
    if register > 7 or (register in (4, 5) and vcpu.cr4 & CR4_DE):
        return None
    return vcpu.debug[register + 2 if register in (4, 5) else register]
