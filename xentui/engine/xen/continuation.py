"""Long hypercalls give way: they are cut where the slice ends, and go on when the vCPU runs again.

A hypercall that is preempted leaves the guest as if it were about to make the hypercall: RIP at the instruction, the
registers with arguments for what is left. Whatever is due comes first, an upcall or another vCPU's slice; then the
guest's own instruction enters the hypervisor again. Within a multicall the entry's arguments are replaced instead, and
the multicall goes on with that entry (Xen: x86/hypercall.c, hypercall_create_continuation; common/multicall.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind
from xentui.engine.x86.state import MASK32, MASK64, R10, RBX, RCX, RDI, RDX, RIP, RSI

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

ERESTART = 85
"""Among the hypervisor's own functions: preempted, to be called again. No guest ever sees it (Xen: errno.h)."""

_LENGTH = 2
"""Bytes of SYSCALL and of INT 0x82."""
_ARGUMENTS = {64: (RDI, RSI, RDX, R10), 32: (RBX, RCX, RDX, RSI)}


def preempt_check(vcpu: Vcpu) -> bool:
    """Should a hypercall at work stop here: has the slice ended, or is an upcall due? (hypercall_preempt_check)

    When the vCPU's domain is dying it is not the vCPU that is at work, and its upcalls matter to nobody.
    """
    info = vcpu.info
    return bool(info[0] and not info[1] and not vcpu.domain.dying) or vcpu.hv.preempt()


def create_continuation(vcpu: Vcpu, number: int, *arguments: int) -> int:
    """Let hypercall `number` go on later with other arguments, four at most; returns what its handler has to return."""
    hv, q = vcpu.hv, vcpu.q
    mask = MASK64 if vcpu.width == 64 else MASK32
    if vcpu.in_multicall:
        vcpu.continuation = tuple(argument & mask for argument in arguments)
    else:
        for register, argument in zip(_ARGUMENTS[vcpu.width], arguments, strict=False):
            q[register] = argument & mask
        q[RIP] = q[RIP] - _LENGTH & mask
    a, b, c, d = (*(argument & mask for argument in arguments), 0, 0, 0, 0)[:4]
    hv.put(hv.clock.now(), q[RIP], Kind.CONTINUATION, vcpu.id, vcpu.domain.id, number, a, b, c, d, 0)
    return number
