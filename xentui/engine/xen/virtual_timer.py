"""The virtual-time alarm of the paper (section 3.3.2), which Xen has dropped: an extension of ours.

A guest's vCPU has, beside its real-time alarm, one that counts the vCPU's *virtual* time: only while it is running
does that pass (the RUNSTATE_running time of vcpu_runstate_info). So a guest kernel can give its processes time slices
that other domains do not shorten. `vcpu_op` takes two more commands, which real Xen answers with -ENOSYS, and the
alarm comes as a virtual interrupt that Xen has kept free for architectures.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from xentui.engine.trace import Kind, Timer
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi.core import VIRQ_ARCH_7
from xentui.engine.xen.abi.errno import EINVAL
from xentui.engine.xen.domain import RUNNING

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

SET, STOP = 0x8000, 0x8001
"""vcpu_op commands. SET takes a pointer to a 64-bit virtual time in nanoseconds; both are for the caller itself."""
VIRQ = VIRQ_ARCH_7
"""Of each vCPU its own."""


def virtual_time(vcpu: Vcpu, now: int) -> int:
    """Nanoseconds for which the vCPU has been running, at `now`."""
    running = now - vcpu.runstate_since if vcpu.runstate == RUNNING else 0
    return vcpu.runstate_time[RUNNING] + max(0, running)


def set_alarm(vcpu: Vcpu, target: Vcpu, arg: int) -> int:
    """Send the VIRQ when the vCPU's virtual time reaches the value; at once if it has."""
    if target is not vcpu:
        return -EINVAL
    vcpu.virtual_alarm = guest_access.read_u64(vcpu, arg)
    resume(vcpu, vcpu.hv.clock.now())
    return 0


def stop_alarm(vcpu: Vcpu, target: Vcpu, _arg: int) -> int:
    """No alarm after all."""
    if target is not vcpu:
        return -EINVAL
    vcpu.virtual_alarm = None
    rest(vcpu)
    return 0


def resume(vcpu: Vcpu, now: int) -> None:
    """The vCPU runs from now on, and its virtual time passes."""
    if vcpu.virtual_alarm is not None:
        left = vcpu.virtual_alarm - virtual_time(vcpu, now)
        vcpu.hv.timers.set((Timer.VIRTUAL, vcpu), now + left, partial(_expired, vcpu))


def rest(vcpu: Vcpu) -> None:
    """The vCPU does not run: its virtual time stands still."""
    vcpu.hv.timers.cancel((Timer.VIRTUAL, vcpu))


def _expired(vcpu: Vcpu) -> None:
    deadline, vcpu.virtual_alarm = vcpu.virtual_alarm, None
    if VIRQ in vcpu.virq_ports and not vcpu.domain.dying:
        hv = vcpu.hv
        hv.put(hv.clock.now(), 0, Kind.TIMER, vcpu.id, vcpu.domain.id, Timer.VIRTUAL, deadline or 0, 0, 0, 0, 0)
        vcpu.domain.events.send_virq(vcpu, VIRQ)
