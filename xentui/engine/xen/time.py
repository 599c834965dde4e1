"""The three times of a guest: real (nanoseconds since boot), virtual (its own timers) and wall-clock.

Guests compute real time from the time-stamp counter and a record in vcpu_info (Xen: arch/x86/time.c). Our counter is
virtual: it runs at `TSC_HZ` of virtual time and RDTSC is trapped, so that the record is exact for ever once written.
Timers of all kinds are in one queue, ordered by deadline and then by when they were set: deterministic.
"""

from __future__ import annotations

from functools import partial
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from xentui.engine.trace import Kind, Timer
from xentui.engine.x86.state import MASK32
from xentui.engine.xen import guest_access, virtual_timer
from xentui.engine.xen.abi.core import VIRQ_TIMER, XEN_PVCLOCK_TSC_STABLE_BIT
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from xentui.engine.clock import Clock
    from xentui.engine.xen.domain import Domain, Vcpu
    from xentui.engine.xen.hypervisor import Hypervisor

TSC_HZ = 2_000_000_000
"""Rate of the guests' time-stamp counter: a tick for each byte of code in the exact pace (clock.BYTES_PER_NS)."""

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
DEFAULT_PERIOD = 10 * MILLISECOND
"""PV guests start with a 100 Hz tick on every vCPU (Xen: pv/domain.c, pv_vcpu_initialise)."""

HUGE_TIMEOUT_SHIFT = 50
"""set_timer_op takes a timeout of 2^50 ns (13 days) or more for a mistake..."""
HUGE_TIMEOUT_DELAY = 100 * MILLISECOND
"""... and fires after this time instead (Xen: do_set_timer_op, "Linux workaround")."""


def time_scale(hertz: int) -> tuple[int, int]:
    """(multiplier, shift) such that ns = (ticks << shift) * multiplier >> 32 (Xen: set_time_scale)."""
    shift = 0
    while hertz > 2 * SECOND:
        hertz >>= 1
        shift -= 1
    while hertz <= SECOND:
        hertz <<= 1
        shift += 1
    return (SECOND << 32) // hertz, shift


TSC_TO_SYSTEM_MUL, TSC_SHIFT = time_scale(TSC_HZ)


def tsc_at(now: int) -> int:
    """The time-stamp counter at a virtual time."""
    return now * TSC_HZ // SECOND


def guest_tsc(hv: Hypervisor) -> int:
    """What RDTSC gives a guest now."""
    return hv.clock.now() * TSC_HZ // SECOND


# --- what guests read ----------------------------------------------------------------------------------------------


def update_time(vcpu: Vcpu) -> None:
    """Write the vCPU's time record, in vcpu_info and in the area that it registered (Xen: update_vcpu_system_time).

    Once when the vCPU starts, its vcpu_info moves, or the clock was set otherwise (resume, going back in time).
    """
    layout = LAYOUT32 if vcpu.width == 32 else LAYOUT64
    now = vcpu.hv.clock.now()
    info, offset = vcpu.info, layout.VCPU_INFO_time
    version = _begin(int.from_bytes(info[offset : offset + 4], "little"))
    record = layout.STRUCT_vcpu_time_info.pack(
        _end(version), tsc_at(now), now, TSC_TO_SYSTEM_MUL, TSC_SHIFT, XEN_PVCLOCK_TSC_STABLE_BIT
    )
    info[offset : offset + 4] = version.to_bytes(4, "little")
    info[offset + 4 : offset + len(record)] = record[4:]
    info[offset : offset + 4] = record[:4]
    if vcpu.time_area:
        try:
            guest_access.write(vcpu, vcpu.time_area, record)
        except guest_access.GuestFault:
            return


def update_wall_clock(domain: Domain) -> None:
    """Write what the time of day was when virtual time began: seconds and nanoseconds since 1970, in shared_info.

    `domain.wall_clock_offset`: nanoseconds by which the domain's own wall clock is ahead.
    """
    layout = LAYOUT32 if domain.width == 32 else LAYOUT64
    high = LAYOUT32.SHARED_INFO_arch_wc_sec_hi if domain.width == 32 else LAYOUT64.SHARED_INFO_wc_sec_hi
    shared, at = domain.shared_info, layout.SHARED_INFO_wc_version
    seconds, nanoseconds = divmod(max(0, domain.hv.wall_clock + domain.wall_clock_offset), SECOND)
    version = _begin(int.from_bytes(shared[at : at + 4], "little"))
    for offset, value in (
        (at, version),
        (layout.SHARED_INFO_wc_sec, seconds & MASK32),
        (layout.SHARED_INFO_wc_nsec, nanoseconds),
        (high, seconds >> 32 & MASK32),
        (at, _end(version)),
    ):
        shared[offset : offset + 4] = value.to_bytes(4, "little")


def _begin(version: int) -> int:
    """Odd while a record is being written."""
    return (version + 1 | 1) & MASK32


def _end(version: int) -> int:
    return (version + 1) & MASK32


_SLACK = 256  # dead entries that the timer heap may hold

# --- timers --------------------------------------------------------------------------------------------------------


class TimerQueue:
    """All timers of the machine. A timer is known by a key, and setting it again moves it.

    `reprogram(deadline)` is called when a timer is set that is due before all others, so that a slice that is
    running can be cut short. Deadlines are virtual nanoseconds.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.reprogram: Callable[[int], None] = lambda deadline: None
        self.periods: dict[Vcpu, list[int]] = {}
        """vCPU to [period, time of the last tick]; period 0: none."""
        self._heap: list[tuple[int, int, Hashable]] = []
        self._set: dict[Hashable, tuple[int, Callable[[], None]]] = {}
        self._sequence = 0

    def set(self, key: Hashable, deadline: int, fire: Callable[[], None]) -> None:
        """Call `fire` at `deadline`; at once if that has passed."""
        if deadline <= self.clock.now():
            self.cancel(key)
            fire()
            return
        self._sequence += 1
        self._set[key] = (self._sequence, fire)
        if len(self._heap) > 4 * len(self._set) + _SLACK:
            self._compact()
        heappush(self._heap, (deadline, self._sequence, key))
        if self._heap[0][1] == self._sequence:
            self.reprogram(deadline)

    def _compact(self) -> None:
        """Drop what was set anew or cancelled, lest a guest that sets one timer for ever fills the heap."""
        armed = self._set
        live = [entry for entry in self._heap if entry[2] in armed and armed[entry[2]][0] == entry[1]]
        heapify(live)
        self._heap = live

    def cancel(self, key: Hashable) -> None:
        """Stop a timer, if it is set."""
        self._set.pop(key, None)

    def armed(self, key: Hashable) -> bool:
        """Is the timer set?"""
        return key in self._set

    def next_deadline(self) -> int | None:
        """When the next timer is due; None if there is none."""
        heap, armed = self._heap, self._set
        while heap:
            deadline, sequence, key = heap[0]
            timer = armed.get(key)
            if timer is not None and timer[0] == sequence:
                return deadline
            heappop(heap)  # set anew or cancelled since
        return None

    def run_due(self, now: int) -> int:
        """Fire what is due, in the order of deadlines; how many that were. What they set may fire as well."""
        fired = 0
        while True:
            deadline = self.next_deadline()
            if deadline is None or deadline > now:
                return fired
            _, _, key = heappop(self._heap)
            _, fire = self._set.pop(key)
            fire()
            fired += 1

    # --- a vCPU's own -----------------------------------------------------------------------------------------------

    def set_singleshot(self, vcpu: Vcpu, deadline: int, kind: int = Timer.SINGLESHOT) -> None:
        """Send VIRQ_TIMER at `deadline`. `kind`, a trace.Timer: by which hypercall; both share one timer."""
        self.set((Timer.SINGLESHOT, vcpu), deadline, partial(_expired, vcpu, kind, deadline))

    def stop_singleshot(self, vcpu: Vcpu) -> None:
        """No VIRQ_TIMER after all."""
        self.cancel((Timer.SINGLESHOT, vcpu))

    def set_period(self, vcpu: Vcpu, period: int) -> None:
        """Tick every `period` ns while the vCPU runs; 0: not at all."""
        now = self.clock.now()
        self.periods[vcpu] = [period, now]
        self.rest(vcpu)
        self.resume(vcpu, now)

    def resume(self, vcpu: Vcpu, now: int) -> None:
        """Tick if a period has passed, and set the next tick (Xen: vcpu_periodic_timer_work, at every switch in)."""
        if vcpu.virtual_alarm is not None:
            virtual_timer.resume(vcpu, now)
        tick = self.periods.setdefault(vcpu, [DEFAULT_PERIOD, 0])
        period, last = tick
        if not period:
            return
        due = last + period
        if now >= due:
            tick[1] = now
            due = now + period
            _expired(vcpu, Timer.PERIODIC, now)
        self.set((Timer.PERIODIC, vcpu), due, partial(self._tick, vcpu))

    def rest(self, vcpu: Vcpu) -> None:
        """The vCPU does not run: a periodic tick never wakes one."""
        self.cancel((Timer.PERIODIC, vcpu))
        if vcpu.virtual_alarm is not None:
            virtual_timer.rest(vcpu)

    def forget(self, vcpu: Vcpu) -> None:
        """The vCPU is gone, and its timers with it."""
        for kind in (Timer.SINGLESHOT, Timer.PERIODIC, Timer.POLL, Timer.VIRTUAL):
            self.cancel((kind, vcpu))
        self.periods.pop(vcpu, None)

    def _tick(self, vcpu: Vcpu) -> None:
        self.resume(vcpu, self.clock.now())


def _expired(vcpu: Vcpu, kind: int, deadline: int) -> None:
    """A timer of the vCPU's is due: VIRQ_TIMER, if the guest has bound it."""
    if VIRQ_TIMER in vcpu.virq_ports and not vcpu.domain.dying:
        hv = vcpu.hv
        hv.put(hv.clock.now(), 0, Kind.TIMER, vcpu.id, vcpu.domain.id, kind, max(0, deadline), 0, 0, 0, 0)
        vcpu.domain.events.send_virq(vcpu, VIRQ_TIMER)


def do_set_timer_op(vcpu: Vcpu, a: int, b: int, _c: int, _d: int) -> int:
    """Hypercall 15: set (or with 0 stop) the vCPU's single-shot timer; 32-bit guests give the halves, low first."""
    timeout = signed64(a & MASK32 | (b & MASK32) << 32 if vcpu.width == 32 else a)
    hv = vcpu.hv
    timers = hv.timers
    if timeout == 0:
        timers.stop_singleshot(vcpu)
        return 0
    now = hv.clock.now()
    ahead = timeout - now
    # The shifted difference is cast to 32 bits on Xen, which changes nothing for a signed 64-bit one.
    if timeout < 0 or (ahead > 0 and ahead >> HUGE_TIMEOUT_SHIFT):
        hv.log(f"Warning: huge timeout set by vcpu {vcpu.id}: {timeout & (1 << 64) - 1:x}")
        timeout = now + HUGE_TIMEOUT_DELAY
    timers.set_singleshot(vcpu, timeout, Timer.SET_TIMER_OP)
    return 0


def signed64(value: int) -> int:
    """A register's 64 bits as a signed number."""
    return value - (1 << 64) if value >> 63 else value
