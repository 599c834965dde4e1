"""The scheduling policies: shares, turns, warps, boosts and caps, without a processor and on a machine."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fakes_xen import World
from tests.tiny_kernels import FOREVER, MEMORY, Tiny
from xentui.config import GuestSpec
from xentui.engine.machine import Machine, Stop
from xentui.engine.xen import schedule
from xentui.engine.xen.domain import BLOCKED, OFFLINE, RUNNABLE, RUNNING, Vcpu
from xentui.engine.xen.sched import POLICIES, make_policy
from xentui.engine.xen.sched.bvt import CONTEXT_SWITCH_ALLOWANCE, MCU, BorrowedVirtualTime
from xentui.engine.xen.sched.credit import RATE_LIMIT, SLICE, Credit
from xentui.engine.xen.sched.policy import Policy

EACH = pytest.mark.parametrize("name", POLICIES)
MS = 1_000_000
SECOND = 1000 * MS


class Scheduled:
    """Domains that a policy schedules: what the machine does, without a processor."""

    def __init__(self, policy: Policy, weights: list[int], caps: list[int] | None = None) -> None:
        self.policy, self.world = policy, World(*[64] * len(weights), vcpus=1)
        self.world.clock.time = 0
        self.world.hv.wake = policy.wake
        self.current: Vcpu | None = None
        self.turns: list[tuple[int, Vcpu | None]] = []
        """When whom got the processor."""
        self.vcpus = [guest.vcpu for guest in self.world.guests]
        for vcpu, weight, cap in zip(self.vcpus, weights, caps or [0] * len(weights), strict=True):
            vcpu.runstate, vcpu.runstate_since = RUNNABLE, 0
            policy.add(vcpu, weight, cap)

    @property
    def now(self) -> int:
        return self.world.clock.time

    def run(self, until: int, most: int = 1 << 62) -> None:
        """Pick, switch, run for the slice or at most `most`, as often as it takes; timers fire on the way."""
        while self.now < until:
            self.world.hv.timers.run_due(self.now)
            vcpu, ns = self.policy.pick(self.now)
            if self.current is not vcpu or (vcpu is not None and vcpu.runstate != RUNNING):
                if self.current is not None:
                    schedule.switch_out(self.current, self.now)
                if vcpu is not None:
                    schedule.switch_in(vcpu, self.now)
                self.turns.append((self.now, vcpu))
            self.current = vcpu
            due = self.world.hv.timers.next_deadline()
            end = min(until, until if due is None else due, until if vcpu is None else self.now + min(ns, most))
            self.world.clock.time = max(end, self.now + 1)

    def block(self) -> Vcpu:
        """Whoever has the processor blocks."""
        assert self.current is not None
        schedule.set_runstate(self.current, BLOCKED, self.now)
        return self.current

    def ran(self, vcpu: Vcpu) -> int:
        """Nanoseconds that the vCPU has run."""
        return vcpu.runstate_time[RUNNING] + (self.now - vcpu.runstate_since) * (vcpu.runstate == RUNNING)


@EACH
def test_a_choice_comes_with_its_slice(name: str) -> None:
    world = Scheduled(make_policy(name), [256, 256])
    ends = []
    for _ in range(20):
        vcpu, ns = world.policy.pick(world.now)
        assert vcpu is not None
        ends.append(ns)
        world.world.clock.time += ns
    assert min(ends) >= MS


# --- what every policy does ----------------------------------------------------------------------------------------


@EACH
def test_equal_weights_take_turns(name: str) -> None:
    world = Scheduled(make_policy(name), [256, 256, 256])
    world.run(9 * SECOND)
    assert [vcpu for _, vcpu in world.turns[:3]] == world.vcpus
    assert all(abs(world.ran(vcpu) - 3 * SECOND) <= 60 * MS for vcpu in world.vcpus)


@EACH
@pytest.mark.parametrize("weights", [[100, 300], [256, 768], [1, 3], [20000, 60000]])
def test_weights_of_one_to_three_are_kept_within_one_percent(name: str, weights: list[int]) -> None:
    world = Scheduled(make_policy(name), weights)
    light, heavy = world.vcpus
    while len(world.turns) < 1000:
        world.run(world.now + SECOND)
    assert world.ran(light) + world.ran(heavy) == world.now
    assert abs(world.ran(heavy) / world.now - 0.75) < 0.0075
    assert abs(world.ran(light) / world.now - 0.25) < 0.0025


@EACH
def test_who_sleeps_neither_runs_nor_catches_up(name: str) -> None:
    world = Scheduled(make_policy(name), [256, 256])
    a, b = world.vcpus
    world.run(MS)
    assert world.current is a
    schedule.set_runstate(b, BLOCKED, world.now)
    world.run(5 * SECOND)
    assert world.ran(b) == 0
    schedule.kick(b)
    world.run(10 * SECOND)
    assert 2.4 * SECOND < world.ran(b) < 2.6 * SECOND
    for vcpu in (a, b):
        schedule.set_runstate(vcpu, BLOCKED, world.now)
    assert world.policy.pick(world.now) == (None, 0)
    schedule.kick(a)
    assert world.policy.pick(world.now)[0] is a
    world.policy.remove(a)
    world.policy.remove(a)
    assert world.policy.pick(world.now) == (None, 0)


@EACH
def test_yield_lets_the_other_run(name: str) -> None:
    world = Scheduled(make_policy(name), [256, 256])
    a, b = world.vcpus
    world.run(50_000)
    schedule.yield_processor(a)
    world.run(100_000)
    assert world.current is b
    schedule.yield_processor(b)
    world.run(150_000)
    assert world.current is a
    schedule.set_runstate(b, BLOCKED, world.now)
    schedule.yield_processor(a)
    world.run(200_000)
    assert world.current is a, "nobody else: on it goes"


def test_who_wakes_at_once_has_not_yielded() -> None:
    world = Scheduled(Credit(), [256, 256])
    world.run(50_000)
    first = world.block()
    schedule.kick(first)
    world.run(100_000)
    assert world.current is first


@EACH
def test_a_paused_domain_does_not_run(name: str) -> None:
    world = Scheduled(make_policy(name), [256, 256])
    a, _ = world.vcpus
    world.run(MS)
    a.domain.paused = 1
    schedule.sleep(a)
    world.run(SECOND)
    assert world.ran(a) == MS and a.runstate == OFFLINE
    schedule.wake(a)
    assert a.runstate == OFFLINE
    a.domain.paused = 0
    schedule.wake(a)
    world.run(2 * SECOND)
    assert world.ran(a) > 400 * MS


@EACH
def test_asking_more_often_changes_nothing(name: str) -> None:
    """A machine that is stepped, or stopped at any moment, schedules as one that runs."""

    def history(most: list[int]) -> list[tuple[int, int]]:
        world, random = Scheduled(make_policy(name), [100, 256, 700]), Random(1)
        times = Random(2)
        while world.now < 2 * SECOND:
            world.run(world.now + times.randrange(1, 40) * MS, random.choice(most))
            if world.current is not None and times.random() < 0.7:
                blocked = world.block()
                world.world.hv.timers.set(blocked, world.now + times.randrange(1, 60) * MS, _kicks(blocked))
        return [(time, -1 if vcpu is None else vcpu.domain.id) for time, vcpu in world.turns]

    assert history([1 << 62]) == history([1 << 62, 17_000, 1_234_567])


def _kicks(vcpu: Vcpu):
    return lambda: schedule.kick(vcpu)


@EACH
def test_parameters_are_checked(name: str) -> None:
    world = Scheduled(make_policy(name), [256, 256])
    domain, policy = world.vcpus[0].domain, world.policy
    before = policy.describe(world.vcpus[0])
    for wrong in ({"weight": 0}, {"weight": 65536}, {"weight": 5, "colour": 1}):
        with pytest.raises(ValueError, match=r"out of range: 1 to 65535|colour is no parameter of a domain under"):
            policy.adjust(domain, **wrong)
    with pytest.raises(ValueError, match="weight is no parameter of"):
        policy.adjust(None, weight=3)
    assert policy.describe(world.vcpus[0]) == before
    policy.adjust(domain, weight=512)
    assert policy.describe(world.vcpus[0])["weight"] == 512
    assert policy.describe(world.vcpus[1])["weight"] == 256
    for parameter in policy.parameters():
        policy.adjust(None, **{parameter: 20 * MS})
        assert policy.parameters()[parameter] == 20 * MS
    policy.remove(world.vcpus[0])
    assert policy.describe(world.vcpus[0]) == {}
    with pytest.raises(ValueError, match="guest1 has no vCPU"):
        policy.adjust(domain, weight=512)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown scheduler 'fair': one of credit, bvt"):
        make_policy("fair")


# --- borrowed virtual time -----------------------------------------------------------------------------------------


def bvt(world: Scheduled) -> BorrowedVirtualTime:
    assert isinstance(world.policy, BorrowedVirtualTime)
    return world.policy


def waker(warp: int, busy: int = 3) -> Scheduled:
    """The last domain is for `delays`; the others are busy."""
    world = Scheduled(BorrowedVirtualTime(), [256] * (busy + 1))
    bvt(world).adjust(world.vcpus[-1].domain, warp=warp)
    return world


def delays(world: Scheduled, works: int, pause: int, times: int = 60) -> list[int]:
    """How long after each event the last domain was dispatched, which then works for `works` ns and blocks."""
    sleeper, found = world.vcpus[-1], []
    while world.current is not sleeper:
        world.run(world.now + 100_000, 100_000)
    world.block()
    for _ in range(times):
        world.run(world.now + pause)
        event = world.now
        schedule.kick(sleeper)
        while world.current is not sleeper:
            world.run(world.now + 10_000, 10_000)
        found.append(world.turns[-1][0] - event)
        done = world.ran(sleeper) + works
        while world.ran(sleeper) < done or world.current is not sleeper:
            world.run(world.now + 100_000, 100_000)
        world.block()
    return found


def test_bvt_dispatches_who_is_woken_within_one_allowance_if_it_may_warp() -> None:
    allowance = CONTEXT_SWITCH_ALLOWANCE
    assert max(delays(waker(0), 4 * MS, 37 * MS)) <= allowance, "who has had less than its share waits no longer"
    assert max(delays(waker(0), 8 * MS, 5 * MS)) > 2 * allowance, "who has had it does"
    assert max(delays(waker(1000 * MS), 8 * MS, 5 * MS)) <= allowance


def test_bvt_warping_borrows_time_and_does_not_make_any() -> None:
    world = Scheduled(BorrowedVirtualTime(), [256] * 4)
    greedy = world.vcpus[-1]
    bvt(world).adjust(greedy.domain, warp=100 * MS)
    schedule.set_runstate(greedy, BLOCKED, 0)
    world.run(50 * MS)
    schedule.kick(greedy)
    world.run(130 * MS)
    assert world.ran(greedy) > 60 * MS, "it runs ahead of its turn"
    assert bvt(world).describe(greedy)["warped"] is True
    world.run(20 * SECOND)
    assert abs(world.ran(greedy) / world.now - 0.25) < 0.01


def test_bvt_a_warp_ends_at_its_limit_and_not_before_the_unwarp_time_comes_another() -> None:
    world = Scheduled(BorrowedVirtualTime(), [256] * 2)
    busy, warper = world.vcpus
    bvt(world).adjust(warper.domain, warp=SECOND, warp_limit=20 * MS, unwarp_time=300 * MS)
    schedule.set_runstate(warper, BLOCKED, 0)
    world.run(100 * MS)
    schedule.kick(warper)
    world.run(115 * MS)
    assert world.current is warper and bvt(world).describe(warper)["warped"] is True
    world.run(121 * MS)
    assert bvt(world).describe(warper)["warped"] is False
    while world.current is not warper:
        world.run(world.now + MS)
    world.block()
    world.run(world.now + 10 * MS)
    schedule.kick(warper)
    assert bvt(world).describe(warper)["warped"] is False, "too soon"
    while world.current is not warper:
        world.run(world.now + MS)
    world.block()
    world.run(world.now + 400 * MS)
    schedule.kick(warper)
    description = bvt(world).describe(warper)
    assert description["warped"] is True and description["evt"] == int(description["avt"]) - SECOND
    assert world.ran(busy) > 400 * MS


def test_bvt_charges_in_minimum_units_by_the_weight() -> None:
    world = Scheduled(BorrowedVirtualTime(), [512])
    (vcpu,) = world.vcpus
    world.run(MCU * 10 + 1)
    world.block()
    world.run(world.now + 1)
    assert bvt(world).describe(vcpu)["avt"] == 11 * MCU // 2
    bvt(world).adjust(vcpu.domain, mcu_advance=MCU)
    assert bvt(world).describe(vcpu)["weight"] == 256


# --- credit --------------------------------------------------------------------------------------------------------


def test_credit_boosts_who_wakes_past_who_runs_but_not_within_the_rate_limit() -> None:
    world = Scheduled(Credit(), [256] * 3)
    sleeper = world.vcpus[-1]
    schedule.set_runstate(sleeper, BLOCKED, 0)
    world.run(3 * SLICE)
    turn = world.turns[-1][0]
    world.run(turn + SLICE + RATE_LIMIT // 2)
    event, start = world.now, world.turns[-1][0]
    assert event - start == RATE_LIMIT // 2
    schedule.kick(sleeper)
    assert world.policy.describe(sleeper)["priority"] == "boost"
    world.run(event + 5 * MS)
    assert world.turns[-1] == (start + RATE_LIMIT, sleeper)
    assert world.world.reschedules >= 1
    world.run(event + 15 * MS)
    assert world.policy.describe(sleeper)["priority"] == "under", "a tick has found it running"


def test_credit_a_cap_holds_though_nobody_else_wants_to_run() -> None:
    world = Scheduled(Credit(), [256], [20])
    (vcpu,) = world.vcpus
    world.run(60 * SECOND)
    assert abs(world.ran(vcpu) / world.now - 0.20) < 0.01
    assert vcpu.runstate_time[OFFLINE] > 40 * SECOND, "parked, as a paused one"
    world.policy.adjust(vcpu.domain, cap=0)
    start, before = world.now, world.ran(vcpu)
    world.run(start + 20 * SECOND)
    assert world.ran(vcpu) - before > 19 * SECOND


def test_credit_a_cap_leaves_the_rest_to_others() -> None:
    world = Scheduled(Credit(), [512, 256], [25, 0])
    capped, other = world.vcpus
    world.run(60 * SECOND)
    assert abs(world.ran(capped) / world.now - 0.25) < 0.01
    assert abs(world.ran(other) / world.now - 0.75) < 0.01
    world.policy.remove(capped)
    assert not capped.parked


def test_credit_parameters() -> None:
    policy = Credit()
    assert policy.parameters() == {"slice": SLICE, "rate_limit": RATE_LIMIT}
    with pytest.raises(ValueError, match="longer than the slice"):
        policy.adjust(None, slice=5 * MS, rate_limit=6 * MS)
    policy.adjust(None, slice=5 * MS)
    world = Scheduled(policy, [256, 256])
    world.run(SECOND)
    assert len(world.turns) > 100 and all(time % (5 * MS) == 0 for time, _ in world.turns)


# --- on a machine --------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("widths", [(32, 64), (64, 64)])
def test_a_machine_shares_its_processor_out_by_weight(name: str, widths: tuple[int, int], tmp_path: Path) -> None:
    machine = Machine(2 * MEMORY, scheduler=name)
    for number, (width, weight) in enumerate(zip(widths, (256, 768), strict=True)):
        kernel = Tiny(width).do(FOREVER).write(tmp_path / f"spin{number}")
        machine.create(GuestSpec(f"spin{number}", kernel, memory=MEMORY, cpu_weight=weight))
    machine.scheduler.adjust(None, **{"slice" if name == "credit" else "context_switch_allowance": 2 * MS})
    assert machine.run(400 * MS) == Stop.TIME
    times = [domain.vcpus[0].runstate_time[RUNNING] for domain in machine.domains]
    assert abs(times[1] / sum(times) - 0.75) < 0.02
    assert machine.scheduler.name == name
    machine.close()


def test_a_machine_wakes_a_capped_domain_that_is_alone(tmp_path: Path) -> None:
    machine = Machine(MEMORY)
    domain = machine.create(GuestSpec("spin", Tiny(64).do(FOREVER).write(tmp_path / "spin"), memory=MEMORY, cap=50))
    assert machine.run(600 * MS) == Stop.TIME
    assert 0.4 < domain.vcpus[0].runstate_time[RUNNING] / machine.now() < 0.6
    machine.close()
