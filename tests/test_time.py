"""Time records, the timer queue, and every kind of timer that a guest can set."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes_xen import ARGUMENT, UNMAPPED, ManualClock, World, XenGuest, fuzz
from xentui.engine.xen import guest_access, time
from xentui.engine.xen.abi import vcpu as abi
from xentui.engine.xen.abi.core import VIRQ_TIMER
from xentui.engine.xen.domain import BLOCKED, RUNNABLE
from xentui.engine.xen.schedule import do_sched_op, switch_in, switch_out
from xentui.engine.xen.vcpu_op import do_vcpu_op

BOTH = pytest.mark.parametrize("width", [32, 64])
EFAULT, EINVAL, ENOENT = 14, 22, 2
MS = time.MILLISECOND


def guest_now(guest: XenGuest, tsc: int) -> int:
    """The arithmetic that every guest does with its time record."""
    at = guest.layout.VCPU_INFO_time
    record = bytes(guest.vcpu.info[at : at + 32])
    version, stamp, system, multiplier, shift, _flags = struct.unpack("<I4xQQIbB2x", record)
    assert version % 2 == 0
    delta = tsc - stamp
    delta = delta << shift if shift >= 0 else delta >> -shift
    return int(system + (delta * multiplier >> 32))


def bind_timer(guest: XenGuest) -> int:
    port = guest.domain.events.bind_virq(VIRQ_TIMER, 0)
    assert port > 0
    return port


def fired(guest: XenGuest) -> bool:
    """Has VIRQ_TIMER come since the last look?"""
    port = guest.vcpu.virq_ports[VIRQ_TIMER]
    pending = guest.domain.events.is_pending(port)
    guest.domain.events.abi.clear_pending(port)
    guest.vcpu.info[0] = 0
    at = guest.layout.VCPU_INFO_evtchn_pending_sel
    guest.vcpu.info[at : at + guest.layout.WORD_SIZE] = bytes(guest.layout.WORD_SIZE)
    return pending


@pytest.mark.parametrize("hertz", [1, 999_999_999, 1_000_000_000, 2_000_000_000, 2_000_000_001, 3_141_592_653])
def test_time_scale(hertz: int) -> None:
    multiplier, shift = time.time_scale(hertz)
    assert multiplier < 1 << 32
    second = hertz << shift if shift >= 0 else hertz >> -shift
    assert abs((second * multiplier >> 32) - 1_000_000_000) <= 2


@BOTH
def test_time_record_stays_exact(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    time.update_time(guest.vcpu)
    for ns in (0, 1, 12_345, 1 << 40):
        world.clock.time += ns
        assert guest_now(guest, time.guest_tsc(world.hv)) == world.clock.time
    assert time.guest_tsc(world.hv) == world.clock.time * 2
    time.update_time(guest.vcpu)
    at = guest.layout.VCPU_INFO_time
    assert int.from_bytes(guest.vcpu.info[at : at + 4], "little") == 4, "each update counts by two"


@BOTH
def test_wall_clock(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    world.hv.wall_clock = (5 << 32) * time.SECOND + 123_456_789
    guest.domain.wall_clock_offset = -23_456_789
    time.update_wall_clock(guest.domain)
    shared, layout = guest.domain.shared_info, guest.layout
    high = layout.SHARED_INFO_arch_wc_sec_hi if width == 32 else layout.SHARED_INFO_wc_sec_hi
    at = [layout.SHARED_INFO_wc_version, layout.SHARED_INFO_wc_sec, layout.SHARED_INFO_wc_nsec, high]
    assert [int.from_bytes(shared[offset : offset + 4], "little") for offset in at] == [2, 0, 100_000_000, 5]


# --- the queue -----------------------------------------------------------------------------------------------------


def test_timers_fire_by_deadline_then_by_age() -> None:
    clock, order = ManualClock(), []
    queue = time.TimerQueue(clock)
    earliest: list[int] = []
    queue.reprogram = earliest.append
    start = clock.now()
    for name, delay in (("c", 30), ("a", 10), ("b1", 20), ("b2", 20), ("gone", 15)):
        queue.set(name, start + delay, lambda name=name: order.append(name))
    queue.cancel("gone")
    queue.set("c", start + 5, lambda: order.append("c"))
    assert earliest == [start + 30, start + 10, start + 5]
    assert queue.next_deadline() == start + 5
    assert queue.run_due(start + 20) == 4
    assert order == ["c", "a", "b1", "b2"]
    assert queue.next_deadline() is None


def test_a_deadline_in_the_past_fires_at_once() -> None:
    clock, order = ManualClock(), []
    queue = time.TimerQueue(clock)
    queue.set("x", clock.now() + 100, lambda: order.append("later"))
    queue.set("x", clock.now(), lambda: order.append("now"))
    assert order == ["now"]
    assert not queue.armed("x")
    assert queue.run_due(clock.now() + 1000) == 0


def test_setting_a_timer_for_ever_takes_no_memory() -> None:
    clock = ManualClock()
    queue = time.TimerQueue(clock)
    for delay in range(5000):
        queue.set("one", clock.now() + 1_000_000 - delay, int)
        queue.set("two", clock.now() + 1_000_000 + delay, int)
    assert len(queue._heap) < 1000
    assert queue.run_due(clock.now() + 2_000_000) == 2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(1, 50))), max_size=60))
def test_queue_agrees_with_a_plain_list(steps: list[tuple[int, int | None]]) -> None:
    clock, order = ManualClock(), []
    queue = time.TimerQueue(clock)
    model: dict[int, tuple[int, int]] = {}
    for number, (key, delay) in enumerate(steps):
        if delay is None:
            queue.cancel(key)
            model.pop(key, None)
        else:
            queue.set(key, clock.now() + delay, lambda key=key: order.append(key))
            model[key] = (clock.now() + delay, number)
        clock.time += 3
        due = sorted((at, key) for key, at in model.items() if at[0] <= clock.now())
        queue.run_due(clock.now())
        assert order == [key for _, key in due]
        order.clear()
        for _, key in due:
            del model[key]
        assert queue.next_deadline() == (min(model.values())[0] if model else None)


# --- set_timer_op --------------------------------------------------------------------------------------------------


def set_timer(guest: XenGuest, timeout: int) -> int:
    timeout &= (1 << 64) - 1
    if guest.domain.width == 32:
        return time.do_set_timer_op(guest.vcpu, timeout & 0xFFFF_FFFF, timeout >> 32, 0, 0)
    return time.do_set_timer_op(guest.vcpu, timeout, 0, 0, 0)


@BOTH
def test_set_timer_op(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    bind_timer(guest)
    world.clock.time = 10 << 32
    assert set_timer(guest, world.clock.now() + 5 * MS) == 0
    world.pass_time(4 * MS)
    assert not fired(guest)
    world.pass_time(2 * MS)
    assert fired(guest)
    assert set_timer(guest, world.clock.now() - 1) == 0
    assert fired(guest), "a time that has passed: at once"
    set_timer(guest, world.clock.now() + MS)
    set_timer(guest, 0)
    world.pass_time(10 * MS)
    assert not fired(guest)


@BOTH
def test_huge_timeouts_come_after_100_ms(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    bind_timer(guest)
    for timeout in (-1, 1 << 63, (1 << 50) + world.clock.now() + time.SECOND):
        set_timer(guest, timeout)
        assert not fired(guest)
        world.pass_time(99 * MS)
        assert not fired(guest)
        world.pass_time(MS)
        assert fired(guest)
    assert "huge timeout set by vcpu 0: ffffffffffffffff" in world.hv.log_lines[0]
    set_timer(guest, world.clock.now() + (1 << 50) - 1)
    world.pass_time(101 * MS)
    assert not fired(guest)


def test_a_timer_wakes_who_is_blocked() -> None:
    world = World(64)
    guest = world.guests[0]
    bind_timer(guest)
    set_timer(guest, world.clock.now() + MS)
    guest.call_at(do_sched_op, 1, 0)
    assert guest.vcpu.runstate == BLOCKED
    world.pass_time(MS)
    assert guest.vcpu.runstate == RUNNABLE
    assert world.woken == [guest.vcpu]
    assert guest.vcpu.runstate_time[BLOCKED] == MS


# --- the timers of vcpu_op ------------------------------------------------------------------------------------------


@BOTH
def test_singleshot_timer(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    bind_timer(guest)
    now = world.clock.now()
    for flags in (0, abi.VCPU_SSHOTTMR_future):
        assert vcpu_op(guest, abi.VCPUOP_set_singleshot_timer, 0, struct.pack("<QI", now - 1, flags)) == 0
        assert fired(guest), "a time that has passed: at once; Xen 4.17 ignores the flag"
    assert vcpu_op(guest, abi.VCPUOP_set_singleshot_timer, 0, struct.pack("<QI", now + 10, 1)) == 0
    world.pass_time(10)
    assert fired(guest)
    vcpu_op(guest, abi.VCPUOP_set_singleshot_timer, 0, struct.pack("<QI", world.clock.now() + 10, 1))
    assert guest.call_at(do_vcpu_op, abi.VCPUOP_stop_singleshot_timer, 0) == 0
    world.pass_time(100)
    assert not fired(guest)
    assert vcpu_op(guest, abi.VCPUOP_set_singleshot_timer, 1, struct.pack("<QI", now, 0)) == -EINVAL, "not another's"
    assert guest.call_at(do_vcpu_op, abi.VCPUOP_stop_singleshot_timer, 1) == -EINVAL
    assert guest.call_at(do_vcpu_op, abi.VCPUOP_set_singleshot_timer, 0, UNMAPPED) == -EFAULT


def vcpu_op(guest: XenGuest, command: int, vcpu: int, data: bytes) -> int:
    guest.put(ARGUMENT, data.ljust(16, b"\0"))
    return guest.call_at(do_vcpu_op, command, vcpu, ARGUMENT)


def test_periodic_timer_ticks_while_the_vcpu_runs() -> None:
    world = World(64)
    guest = world.guests[0]
    bind_timer(guest)
    assert vcpu_op(guest, abi.VCPUOP_set_periodic_timer, 0, struct.pack("<Q", 2 * MS)) == 0
    ticks = 0
    for _ in range(10):
        world.pass_time(MS)
        ticks += fired(guest)
    assert ticks == 5
    switch_out(guest.vcpu, world.clock.now())
    world.pass_time(10 * MS)
    assert not fired(guest), "a tick never wakes anybody"
    switch_in(guest.vcpu, world.clock.now())
    assert fired(guest), "but is made up for, once"
    assert guest.call_at(do_vcpu_op, abi.VCPUOP_stop_periodic_timer, 0) == 0
    world.pass_time(10 * MS)
    assert not fired(guest)
    for period in (0, MS - 1, (1 << 62), (1 << 64) - 1):
        assert vcpu_op(guest, abi.VCPUOP_set_periodic_timer, 0, struct.pack("<Q", period)) == -EINVAL
    assert vcpu_op(guest, abi.VCPUOP_set_periodic_timer, 0, struct.pack("<Q", (1 << 62) - 1)) == 0


def test_pv_guests_start_with_a_100_hz_tick() -> None:
    world = World(64)
    guest = world.guests[0]
    bind_timer(guest)
    switch_in(guest.vcpu, world.clock.now())
    fired(guest)
    ticks = 0
    for _ in range(100):
        world.pass_time(MS)
        ticks += fired(guest)
    assert ticks == 10


@BOTH
def test_second_copy_of_the_time_record(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    data = struct.pack("<Q", ARGUMENT + 64)
    assert vcpu_op(guest, abi.VCPUOP_register_vcpu_time_memory_area, 0, data) == 0
    at = guest.layout.VCPU_INFO_time
    assert guest.get(32, ARGUMENT + 64) == bytes(guest.vcpu.info[at : at + 32])
    guest.vcpu.space.flush()
    guest.vcpu.time_area = UNMAPPED
    time.update_time(guest.vcpu)
    with pytest.raises(guest_access.GuestFault):
        guest_access.read(guest.vcpu, UNMAPPED, 1)
    bad = struct.pack("<Q", 0xFFFF_8000_0000_0000 if width == 64 else 0xFFFF_FFFF)
    assert vcpu_op(guest, abi.VCPUOP_register_vcpu_time_memory_area, 0, bad) == -EFAULT
    assert vcpu_op(guest, abi.VCPUOP_register_vcpu_time_memory_area, 2, data) == -ENOENT


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([32, 64]), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 60))
def test_any_timeout(width: int, low: int, high: int, wait: int) -> None:
    world = World(width)
    guest = world.guests[0]
    bind_timer(guest)
    mask = (1 << width) - 1
    fuzz(guest, time.do_set_timer_op, (low & mask, high & mask, 0, 0), b"")
    world.pass_time(wait)
