"""What vCPUs do with their processor: run, yield, block, poll, shut down; and the time spent in each state.

(Xen: common/sched/core.c.) Which vCPU runs next is a policy's business (`sched/`). A vCPU's `runstate` is the one
place that says whether it is blocked: `BLOCKED` from the hypercall on, even while a multicall goes on running.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from xentui.engine.trace import Cause, Kind, Timer
from xentui.engine.x86.state import MASK32, RIP
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi import sched as abi
from xentui.engine.xen.abi.core import DOMID_SELF
from xentui.engine.xen.abi.errno import EINVAL, ENOSPC, ENOSYS, EPERM, ESRCH
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.domain import BLOCKED, OFFLINE, RUNNABLE, RUNNING

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

MAX_POLL_PORTS = 128
WATCHDOGS = 2
"""Watchdog timers that a domain has (Xen: NR_DOMAIN_WATCHDOG_TIMERS)."""

SECOND = 1_000_000_000


# --- run states ---------------------------------------------------------------------------------------------------


def set_runstate(vcpu: Vcpu, state: int, now: int) -> None:
    """Enter a run state at `now` (virtual ns); the time since the last change goes to the state that is left."""
    elapsed = now - vcpu.runstate_since
    if elapsed > 0:
        vcpu.runstate_time[vcpu.runstate] += elapsed
        vcpu.runstate_since = now
    vcpu.runstate = state


def runstate_info(vcpu: Vcpu, now: int) -> bytes:
    """The vcpu_runstate_info of a vCPU, up to date, in its guest's layout (Xen: vcpu_runstate_get)."""
    times = list(vcpu.runstate_time)
    times[vcpu.runstate] += max(0, now - vcpu.runstate_since)
    return _pack(vcpu, times)


def _pack(vcpu: Vcpu, times: list[int]) -> bytes:
    layout = LAYOUT32 if vcpu.width == 32 else LAYOUT64
    return layout.STRUCT_vcpu_runstate_info.pack(vcpu.runstate, vcpu.runstate_since, *times)


def write_runstate_area(vcpu: Vcpu) -> None:
    """Publish the run state in the area that the guest registered; its page tables must be loaded.

    An area that is not mapped is left alone, as on Xen. XEN_RUNSTATE_UPDATE marks the record while it is written,
    for readers on other processors; here nothing runs meanwhile, so that only its final, cleared value is stored.
    """
    if vcpu.runstate_area:
        try:
            guest_access.write(vcpu, vcpu.runstate_area, _pack(vcpu, vcpu.runstate_time))
        except guest_access.GuestFault:
            return


def switch_out(vcpu: Vcpu, now: int) -> None:
    """The vCPU loses its processor: still runnable, unless it gave it up; its periodic tick rests."""
    if vcpu.runstate == RUNNING:
        set_runstate(vcpu, RUNNABLE if vcpu.runnable else OFFLINE, now)
    vcpu.hv.timers.rest(vcpu)


def switch_in(vcpu: Vcpu, now: int) -> None:
    """The vCPU gets a processor, its page tables are loaded: tell it, and let its periodic tick go on."""
    set_runstate(vcpu, RUNNING, now)
    write_runstate_area(vcpu)
    vcpu.hv.timers.resume(vcpu, now)


# --- blocking and waking --------------------------------------------------------------------------------------------


def _block(vcpu: Vcpu, cause: int, deadline: int) -> None:
    hv = vcpu.hv
    now = hv.clock.now()
    hv.put(now, vcpu.q[RIP], Kind.BLOCK, vcpu.id, vcpu.domain.id, cause, deadline, 0, 0, 0, 0)
    set_runstate(vcpu, BLOCKED, now)
    hv.reschedule()


def kick(vcpu: Vcpu, port: int = 0) -> None:
    """Something happened for the vCPU: if it is blocked it becomes runnable (Xen: vcpu_unblock).

    `port`: which event, for the trace; 0 for a timer.
    """
    if vcpu.runstate != BLOCKED:
        return
    if vcpu.poll_ports is not None:
        _end_poll(vcpu)
    hv = vcpu.hv
    now = hv.clock.now()
    hv.put(now, 0, Kind.WAKE, vcpu.id, vcpu.domain.id, port, 0, 0, 0, 0, 0)
    set_runstate(vcpu, RUNNABLE if vcpu.runnable else OFFLINE, now)
    hv.wake(vcpu)


def wake(vcpu: Vcpu) -> None:
    """The vCPU was brought up or its domain unpaused: it may run again, unless it is blocked (Xen: vcpu_wake)."""
    if vcpu.runstate == OFFLINE and vcpu.runnable:
        set_runstate(vcpu, RUNNABLE, vcpu.hv.clock.now())
        vcpu.hv.wake(vcpu)


def set_affinity(vcpu: Vcpu, mask: int) -> None:
    """Let the vCPU run on these physical processors only, a bit each (Xen: vcpu_set_hard_affinity)."""
    vcpu.affinity = mask
    vcpu.hv.reschedule()


def sleep(vcpu: Vcpu) -> None:
    """The vCPU was brought down or its domain paused; being blocked dominates (public/vcpu.h)."""
    if vcpu.runstate != BLOCKED:
        set_runstate(vcpu, OFFLINE, vcpu.hv.clock.now())
    vcpu.hv.reschedule()


def _end_poll(vcpu: Vcpu) -> None:
    vcpu.poll_ports = None
    pollers = vcpu.domain.events.pollers
    if vcpu in pollers:
        pollers.remove(vcpu)


def wake_pollers(domain: Domain, port: int) -> None:
    """An event became pending: wake who polls for it.

    As on Xen, a vCPU that polls for exactly one port wakes for that one only, any other wakes for every event
    (Xen: evtchn_check_pollers).
    """
    for vcpu in list(domain.events.pollers):
        ports = vcpu.poll_ports
        if ports is not None and (len(ports) != 1 or ports[0] == port):
            kick(vcpu, port)


def events_deliverable(vcpu: Vcpu) -> bool:
    """Would the vCPU take an upcall now? (Xen: local_events_need_delivery)"""
    return bool(vcpu.info[0]) and not vcpu.info[1]


def yield_processor(vcpu: Vcpu) -> int:
    """Let others run first; the policy sees by the run state that it was given up freely."""
    hv = vcpu.hv
    now = hv.clock.now()
    hv.put(now, vcpu.q[RIP], Kind.YIELD, vcpu.id, vcpu.domain.id, 0, 0, 0, 0, 0, 0)
    set_runstate(vcpu, RUNNABLE, now)
    hv.reschedule()
    return 0


def block(vcpu: Vcpu) -> int:
    """Unmask event upcalls, and sleep until there is one (Xen: vcpu_block_enable_events)."""
    vcpu.info[1] = 0
    if vcpu.info[0]:
        return _go_on(vcpu)
    _block(vcpu, Cause.BLOCK, 0)
    return 0


def _go_on(vcpu: Vcpu) -> int:
    """Nothing to wait for: whatever blocked the vCPU earlier in the same multicall is void too. Always 0."""
    if vcpu.runstate == BLOCKED:
        _end_poll(vcpu)
        set_runstate(vcpu, RUNNING, vcpu.hv.clock.now())
    return 0


def poll(vcpu: Vcpu, arg: int) -> int:
    """Sleep until one of some ports has an event, masked or not, or until a time (Xen: do_poll)."""
    layout = LAYOUT32 if vcpu.width == 32 else LAYOUT64
    record = guest_access.read(vcpu, arg, layout.SCHED_POLL_SIZE)
    address, count, timeout = layout.STRUCT_sched_poll.unpack(record)
    if count > MAX_POLL_PORTS:
        return -EINVAL
    if not guest_access.access_ok(vcpu, address, 4 * count):
        raise guest_access.GuestFault(address)
    if events_deliverable(vcpu):
        return _go_on(vcpu)
    events = vcpu.domain.events
    ports = []
    for index in range(count):
        port = guest_access.read_u32(vcpu, address + 4 * index)
        if not events.valid(port):
            return -EINVAL
        if events.is_pending(port):
            return _go_on(vcpu)
        ports.append(port)
    vcpu.poll_ports = tuple(ports)
    if vcpu not in events.pollers:
        events.pollers.append(vcpu)
    _block(vcpu, Cause.POLL, timeout)
    if timeout:
        deadline = timeout - (1 << 64) if timeout >> 63 else timeout
        vcpu.hv.timers.set((Timer.POLL, vcpu), deadline, partial(_poll_expired, vcpu, timeout))
    return 0


def _poll_expired(vcpu: Vcpu, deadline: int) -> None:
    if vcpu.poll_ports is not None and not vcpu.domain.dying:
        hv = vcpu.hv
        hv.put(hv.clock.now(), 0, Kind.TIMER, vcpu.id, vcpu.domain.id, Timer.POLL, deadline, 0, 0, 0, 0)
        kick(vcpu)


# --- shutting down --------------------------------------------------------------------------------------------------


def domain_shutdown(domain: Domain, reason: int) -> None:
    """Stop a domain for good, with a SHUTDOWN_* reason; a code announced before takes precedence, as on Xen."""
    if domain.shutdown_code is not None:
        return
    hv = domain.hv
    now = hv.clock.now()
    reason = _announced(domain, reason)
    domain.shutdown_code = reason
    hv.put(now, 0, Kind.DOMAIN_SHUTDOWN, 0, domain.id, reason, 0, 0, 0, 0, 0)
    for vcpu in domain.vcpus:
        sleep(vcpu)
    if domain.on_shutdown:
        domain.on_shutdown(domain)


def _shutdown(vcpu: Vcpu, arg: int) -> int:
    return _shut_down(vcpu, guest_access.read_u32(vcpu, arg) & 0xFF)


def _shut_down(vcpu: Vcpu, reason: int) -> int:
    """The guest's own wish; if that is a crash, the log shows where, as for any other."""
    if reason == abi.SHUTDOWN_crash and vcpu.domain.shutdown_code is None:
        from xentui.engine.xen.crash import log_registers

        log_registers(vcpu)
    domain_shutdown(vcpu.domain, reason)
    return 0


def _shutdown_code(vcpu: Vcpu, arg: int) -> int:
    """Announce why the domain will shut down, while it goes on running (a crash kernel is loaded in between)."""
    _announced(vcpu.domain, guest_access.read_u32(vcpu, arg) & 0xFF)
    return 0


def _announced(domain: Domain, reason: int) -> int:
    """The reason that counts: the first one that the domain gave, now or before."""
    if domain.announced_shutdown_code is None:
        domain.announced_shutdown_code = reason
    return domain.announced_shutdown_code


def _remote_shutdown(vcpu: Vcpu, arg: int) -> int:
    """Only for the domain that emulates devices for another, which no guest of ours is."""
    domid, _ = LAYOUT64.STRUCT_sched_remote_shutdown.unpack(
        guest_access.read(vcpu, arg, LAYOUT64.SCHED_REMOTE_SHUTDOWN_SIZE)
    )
    known = domid != DOMID_SELF and (domid == 0 or domid in vcpu.hv.domains)
    return -EPERM if known else -ESRCH


def _watchdog(vcpu: Vcpu, arg: int) -> int:
    """Set (`id` 0), push (`id`, seconds) or stop (`id`, 0) a timer that shuts the domain down when it expires."""
    slot, seconds = LAYOUT64.STRUCT_sched_watchdog.unpack(guest_access.read(vcpu, arg, LAYOUT64.SCHED_WATCHDOG_SIZE))
    domain, timers = vcpu.domain, vcpu.hv.timers
    if slot > WATCHDOGS:
        return -EINVAL
    answer = 0
    if slot == 0:
        free = [number for number in range(1, WATCHDOGS + 1) if not timers.armed((_WATCHDOG, domain, number))]
        if not free:
            return -ENOSPC
        answer = slot = free[0]
    elif not timers.armed((_WATCHDOG, domain, slot)):
        return -EINVAL
    elif seconds == 0:
        timers.cancel((_WATCHDOG, domain, slot))
        return 0
    deadline = vcpu.hv.clock.now() + seconds * SECOND
    timers.set((_WATCHDOG, domain, slot), deadline, partial(_watchdog_expired, domain))
    return answer


_WATCHDOG = "watchdog"


def stop_watchdogs(domain: Domain) -> None:
    """Nobody watches the domain any more."""
    for number in range(1, WATCHDOGS + 1):
        domain.hv.timers.cancel((_WATCHDOG, domain, number))


def _watchdog_expired(domain: Domain) -> None:
    if not domain.dying:
        domain.hv.log(f"Watchdog timer fired for domain {domain.id}")
        domain_shutdown(domain, abi.SHUTDOWN_watchdog)


# --- hypercalls -----------------------------------------------------------------------------------------------------


def do_sched_op(vcpu: Vcpu, cmd: int, arg: int, _c: int, _d: int) -> int:
    """Hypercall 29: `cmd` is a SCHEDOP_*, `arg` points to its structure."""
    cmd &= MASK32
    if cmd == abi.SCHEDOP_block:
        return block(vcpu)
    if cmd == abi.SCHEDOP_yield:
        return yield_processor(vcpu)
    if cmd == abi.SCHEDOP_pin_override:
        return -EPERM
    operation = _OPERATIONS.get(cmd)
    return -ENOSYS if operation is None else operation(vcpu, arg)


def do_sched_op_compat(vcpu: Vcpu, cmd: int, arg: int, _c: int, _d: int) -> int:
    """Hypercall 6: yield, block and shutdown as before Xen 3.1; the argument is the reason itself."""
    cmd &= MASK32
    if cmd == abi.SCHEDOP_yield:
        return yield_processor(vcpu)
    if cmd == abi.SCHEDOP_block:
        return block(vcpu)
    if cmd == abi.SCHEDOP_shutdown:
        return _shut_down(vcpu, arg & 0xFF)
    return -ENOSYS


_OPERATIONS = {
    abi.SCHEDOP_shutdown: _shutdown,
    abi.SCHEDOP_poll: poll,
    abi.SCHEDOP_remote_shutdown: _remote_shutdown,
    abi.SCHEDOP_shutdown_code: _shutdown_code,
    abi.SCHEDOP_watchdog: _watchdog,
}
