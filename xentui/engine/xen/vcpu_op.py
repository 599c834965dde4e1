"""vcpu_op: bringing virtual CPUs up and down, and what each of them shares with its guest (Xen: common/domain.c).

A vCPU that is initialised and never ran has `boot_registers`, the general registers of its vcpu_guest_context by
name; everything else of the context is in its attributes. Who gives it a processor for the first time loads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Cause, Kind
from xentui.engine.x86.paging import PAGE_SHIFT, PAGE_SIZE
from xentui.engine.x86.state import MASK32, RIP
from xentui.engine.xen import guest_access, schedule, time, virtual_timer
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi import vcpu as abi
from xentui.engine.xen.abi.errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS, ENXIO
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.abi.sched import SHUTDOWN_poweroff
from xentui.engine.xen.continuation import ERESTART, create_continuation
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.event_2l import mark_events_pending
from xentui.engine.xen.page import WRITABLE
from xentui.engine.xen.page_type import get_page_and_type, put_page_and_type
from xentui.engine.xen.vcpu_context import arch_set_info_guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.abi.layout import Layout
    from xentui.engine.xen.domain import Vcpu

MIN_PERIOD = time.MILLISECOND
MAX_PERIOD = ((1 << 64) - 1) >> 2
"""Bounds of a periodic timer's period in nanoseconds (Xen: STIME_DELTA_MAX)."""


def do_vcpu_op(vcpu: Vcpu, cmd: int, number: int, arg: int, _d: int) -> int:
    """Hypercall 24: `cmd` is a VCPUOP_* on vCPU `number` of the caller's domain, `arg` points to its structure."""
    cmd, number = cmd & MASK32, number & MASK32
    vcpus = vcpu.domain.vcpus
    if number >= len(vcpus):
        return -ENOENT
    operation = _OPERATIONS.get(cmd)
    return -ENOSYS if operation is None else operation(vcpu, vcpus[number], arg)


def _layout(vcpu: Vcpu) -> Layout:
    return LAYOUT32 if vcpu.width == 32 else LAYOUT64


# --- up and down ---------------------------------------------------------------------------------------------------


def initialised(vcpu: Vcpu) -> bool:
    """Does the vCPU know where to start? The first one does from the beginning."""
    return vcpu.guest_table != NO_FRAME and not vcpu.in_reset


def _initialise(vcpu: Vcpu, target: Vcpu, arg: int) -> int:
    """Take the registers and tables with which the vCPU will start (Xen: arch_initialise_vcpu)."""
    layout = _layout(vcpu)
    if target.info_frame == NO_FRAME:
        return -EINVAL
    context = guest_access.read(vcpu, arg, layout.VCPU_GUEST_CONTEXT_SIZE)
    if initialised(target):
        return -EEXIST
    error = arch_set_info_guest(target, context, vcpu)
    if error == -ERESTART:
        return create_continuation(vcpu, nr.HYPERCALL_vcpu_op, abi.VCPUOP_initialise, target.id, arg)
    return error


def _up(_vcpu: Vcpu, target: Vcpu, _arg: int) -> int:
    if not initialised(target):
        return -EINVAL
    if not target.online:
        target.online = True
        time.update_time(target)
        schedule.wake(target)
    return 0


def _down(vcpu: Vcpu, target: Vcpu, _arg: int) -> int:
    """Take the vCPU offline; the last one takes the domain with it."""
    if not any(other.online for other in vcpu.domain.vcpus if other is not target):
        schedule.domain_shutdown(vcpu.domain, SHUTDOWN_poweroff)
        return 0
    if target.online:
        target.online = False
        hv = vcpu.hv
        rip = target.q[RIP] if target is vcpu else 0
        hv.put(hv.clock.now(), rip, Kind.BLOCK, target.id, target.domain.id, Cause.DOWN, 0, 0, 0, 0, 0)
        schedule.sleep(target)
    return 0


def _is_up(_vcpu: Vcpu, target: Vcpu, _arg: int) -> int:
    return int(target.online)


def _send_nmi(_vcpu: Vcpu, target: Vcpu, arg: int) -> int:
    """Raise a non-maskable interrupt; taken on the way back to the guest."""
    if arg:
        return -EINVAL
    target.nmi_pending = True
    schedule.kick(target)
    return 0


# --- what is shared ------------------------------------------------------------------------------------------------


def _get_runstate_info(vcpu: Vcpu, target: Vcpu, arg: int) -> int:
    guest_access.write(vcpu, arg, schedule.runstate_info(target, vcpu.hv.clock.now()))
    return 0


def _area(vcpu: Vcpu, arg: int, size: int) -> int:
    """The guest address in a register_*_memory_area structure, or -1 if it can never be valid. Null unregisters."""
    address = int.from_bytes(guest_access.read(vcpu, arg, 8), "little")
    if vcpu.width == 32:
        address &= MASK32  # the handle is 32 bits of the union
    return address if guest_access.handle_okay(vcpu, address, size) else -1


def _register_runstate_area(vcpu: Vcpu, target: Vcpu, arg: int) -> int:
    """Publish the vCPU's run state at a guest address from now on, whenever it is given a processor."""
    address = _area(vcpu, arg, _layout(vcpu).VCPU_RUNSTATE_INFO_SIZE)
    if address < 0:
        return -EFAULT
    target.runstate_area = address
    if address:
        try:  # by the caller's page tables, and no error if it is not mapped yet
            guest_access.write(vcpu, address, schedule.runstate_info(target, vcpu.hv.clock.now()))
        except guest_access.GuestFault:
            return 0
    return 0


def _register_time_area(vcpu: Vcpu, target: Vcpu, arg: int) -> int:
    """Publish a second copy of the vCPU's time record at a guest address."""
    address = _area(vcpu, arg, LAYOUT64.VCPU_TIME_INFO_SIZE)
    if address < 0:
        return -EFAULT
    target.time_area = address
    time.update_time(target)
    return 0


def _register_vcpu_info(vcpu: Vcpu, target: Vcpu, arg: int) -> int:
    mfn, offset, _ = LAYOUT64.STRUCT_vcpu_register_vcpu_info.unpack(
        guest_access.read(vcpu, arg, LAYOUT64.VCPU_REGISTER_VCPU_INFO_SIZE)
    )
    return map_vcpu_info(vcpu, target, mfn, offset)


def map_vcpu_info(vcpu: Vcpu, target: Vcpu, mfn: int, offset: int) -> int:
    """Move the vCPU's vcpu_info to a frame of the guest's, once and for good (Xen: map_vcpu_info).

    The frame stays writable data as long as the vCPU exists. Whatever was pending might have been missed in between,
    so everything is marked pending.
    """
    layout, domain = _layout(vcpu), target.domain
    size = layout.VCPU_INFO_SIZE
    if offset > PAGE_SIZE - size or offset & layout.WORD_SIZE - 1:
        return -ENXIO
    if target.info_frame not in (NO_FRAME, domain.shared_info_frame) or (target is not vcpu and target.online):
        return -EINVAL
    if get_page_and_type(domain, mfn, WRITABLE):
        return -EINVAL
    start = (mfn << PAGE_SHIFT) + offset
    info = vcpu.hv.ram[start : start + size]
    info[:] = target.info
    target.info, target.info_frame, target.info_offset = info, mfn, offset
    domain.events.abi.select_all(target)
    if not info[0]:
        mark_events_pending(target, 0)
    time.update_time(target)
    return 0


def unmap_vcpu_info(vcpu: Vcpu) -> None:
    """Give the guest's frame back that holds the vCPU's vcpu_info, which is a dummy from then on."""
    if vcpu.info_frame not in (NO_FRAME, vcpu.domain.shared_info_frame):
        put_page_and_type(vcpu.domain, vcpu.info_frame)
    vcpu.info = memoryview(bytearray(_layout(vcpu).VCPU_INFO_SIZE))
    vcpu.info_frame, vcpu.info_offset = NO_FRAME, 0


# --- timers --------------------------------------------------------------------------------------------------------


def _set_periodic_timer(vcpu: Vcpu, target: Vcpu, arg: int) -> int:
    period = guest_access.read_u64(vcpu, arg)
    if not MIN_PERIOD <= period <= MAX_PERIOD:
        return -EINVAL
    vcpu.hv.timers.set_period(target, period)
    return 0


def _stop_periodic_timer(vcpu: Vcpu, target: Vcpu, _arg: int) -> int:
    vcpu.hv.timers.set_period(target, 0)
    return 0


def _set_singleshot_timer(vcpu: Vcpu, target: Vcpu, arg: int) -> int:
    """VIRQ_TIMER at an absolute time, at once if that has passed.

    VCPU_SSHOTTMR_future asks for an error then; Xen 4.17 ignores it, as the interface lets it (public/vcpu.h).
    """
    if target is not vcpu:
        return -EINVAL
    layout = _layout(vcpu)
    record = guest_access.read(vcpu, arg, layout.VCPU_SET_SINGLESHOT_TIMER_SIZE)
    timeout, _ = layout.STRUCT_vcpu_set_singleshot_timer.unpack(record)
    vcpu.hv.timers.set_singleshot(vcpu, time.signed64(timeout))
    return 0


def _stop_singleshot_timer(vcpu: Vcpu, target: Vcpu, _arg: int) -> int:
    if target is not vcpu:
        return -EINVAL
    vcpu.hv.timers.stop_singleshot(vcpu)
    return 0


def _get_physid(_vcpu: Vcpu, _target: Vcpu, _arg: int) -> int:
    """Only for the control domain's pinned vCPUs."""
    return -EINVAL


_OPERATIONS: dict[int, Callable[[Vcpu, Vcpu, int], int]] = {
    abi.VCPUOP_initialise: _initialise,
    abi.VCPUOP_up: _up,
    abi.VCPUOP_down: _down,
    abi.VCPUOP_is_up: _is_up,
    abi.VCPUOP_get_runstate_info: _get_runstate_info,
    abi.VCPUOP_register_runstate_memory_area: _register_runstate_area,
    abi.VCPUOP_set_periodic_timer: _set_periodic_timer,
    abi.VCPUOP_stop_periodic_timer: _stop_periodic_timer,
    abi.VCPUOP_set_singleshot_timer: _set_singleshot_timer,
    abi.VCPUOP_stop_singleshot_timer: _stop_singleshot_timer,
    abi.VCPUOP_register_vcpu_info: _register_vcpu_info,
    abi.VCPUOP_send_nmi: _send_nmi,
    abi.VCPUOP_get_physid: _get_physid,
    abi.VCPUOP_register_vcpu_time_memory_area: _register_time_area,
    virtual_timer.SET: virtual_timer.set_alarm,
    virtual_timer.STOP: virtual_timer.stop_alarm,
}
