"""SYSCALL and SYSENTER of user code (Xen: x86_64/entry.S lstar_enter, cstar_enter, sysenter_entry; compat/entry.S).

Both instructions lead into the hypervisor, which passes them on to the callback that the guest has registered. They
load segments of their own: what the frame shows is what they stand for, not what the user code had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind, rings
from xentui.engine.x86.exceptions import X86_EXC_GP, X86_EXC_UD
from xentui.engine.x86.state import CS, DF, HF_CPL, HF_CS64, HFLAGS, MASK32, RAX, RDI, RIP, RSP, SS
from xentui.engine.xen import callback, traps

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

FLAT_USER_CS64, FLAT_USER_CS32, FLAT_USER_SS = 0xE033, 0xE023, 0xE02B
COMPAT_USER_CS, COMPAT_USER_SS = 0xE02B, 0xE033
"""The same segments as a 32-bit guest knows them."""
_NULL_CS = 3
"""SYSENTER keeps neither CS nor IP nor SP; the frame says ring 3, and zeroes."""


def syscall(vcpu: Vcpu, rip: int) -> bool:
    """SYSCALL of user code at `rip`; RIP lies behind it already. True if the guest has entered its callback."""
    if vcpu.width == 32:
        return _syscall_compat(vcpu, rip)
    i = vcpu.i
    wide = bool(i[HFLAGS] & HF_CS64)
    address = vcpu.syscall_callback if wide else vcpu.syscall32_callback[1]
    i[CS], i[SS] = FLAT_USER_CS64 if wide else FLAT_USER_CS32, FLAT_USER_SS
    if not address:
        vcpu.q[RIP] = rip
        traps.inject(vcpu, X86_EXC_UD)
        return False
    # one flag for both, though syscall32 has its own: so it is on Xen (switch_to_kernel)
    return _enter(vcpu, 0, address, vcpu.syscall_masks_events, rip)


def _syscall_compat(vcpu: Vcpu, rip: int) -> bool:
    """The same for a 32-bit guest, from any of its rings."""
    selector, address = vcpu.syscall32_callback
    _user_segments(vcpu, COMPAT_USER_CS)
    if not selector & ~3:
        vcpu.q[RIP] = rip
        traps.inject(vcpu, X86_EXC_GP, 0)
        return False
    return _enter(vcpu, selector, address, vcpu.syscall32_masks_events, rip)


def sysenter(vcpu: Vcpu) -> None:
    """SYSENTER: to the callback, or #GP of the guest's. Either way the frame does not say where it was."""
    rip = vcpu.q[RIP]
    vcpu.q[RIP] = vcpu.q[RSP] = 0
    selector, address = vcpu.sysenter_callback
    if vcpu.width == 64:
        vcpu.i[CS], vcpu.i[SS] = _NULL_CS, FLAT_USER_SS
    else:
        _user_segments(vcpu, _NULL_CS)
    if address:
        handler = vcpu.traps[X86_EXC_GP]
        if not selector & ~3 and handler is not None:
            selector = handler.selector
        _enter(vcpu, selector, address, vcpu.sysenter_masks_events, rip)
    else:
        traps.inject(vcpu, X86_EXC_GP, 0)


def _user_segments(vcpu: Vcpu, cs: int) -> None:
    """A 32-bit guest's user segments, in ring 3, whichever it was in."""
    i = vcpu.i
    i[CS], i[SS] = cs, COMPAT_USER_SS
    i[HFLAGS] |= HF_CPL


def _enter(vcpu: Vcpu, selector: int, address: int, masks_events: bool, rip: int) -> bool:
    """Enter a callback, with DF clear; recorded as a system call at `rip`. False if the domain crashed over it."""
    hv, q = vcpu.hv, vcpu.q
    if not callback.bounce(vcpu, selector, address, masks_events):
        return False
    vcpu.i[DF] = 1  # as it is in the state: 1 or -1
    hv.put(
        hv.clock.now(), rip, Kind.SYSCALL, vcpu.id, vcpu.domain.id, q[RAX] & MASK32,
        q[RDI], 0, address, rings(3, vcpu.i[HFLAGS] & HF_CPL), 0,
    )  # fmt: skip
    return True
