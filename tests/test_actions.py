"""Influences from outside: what they do, that they are refused in a line, and that a run with them can be repeated."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest

from tests.test_run_control import Traced, guest
from xentui.config import GuestSpec
from xentui.engine.actions import KINDS, Action, ActionError
from xentui.engine.breakpoints import Breakpoint
from xentui.engine.machine import Machine, Stop

END = 1_500_000_000


def deeds(chance: random.Random) -> list[tuple[int, Action]]:
    """Something to do at some virtual times (ns), in order."""
    choices = [
        Action("type", "hello64", (b"time\n",)),
        Action("type", "hello32", (b"info\n",)),
        Action("pause", "hello32"),
        Action("unpause", "hello32"),
        Action("send", "hello64", (2,)),
        Action("mask", "hello64", (2,)),
        Action("unmask", "hello64", (2,)),
        Action("create", None, (guest("selftest64"),)),
        Action("balloon", "hello32", (32,)),
        Action("rename", "selftest64", ("other",)),
        Action("schedule", "hello32", ("weight", 512)),
        Action("no_validator", "hello32"),
        Action("crash", "selftest64"),
        Action("destroy", "nobody"),
    ]
    times = sorted(chance.randrange(1_000_000, 1_000_000_000) for _ in range(25))
    return [(time, chance.choice(choices)) for time in times]


def done_by_hand(machine: Machine, seed: int, log: list[tuple[int, Action]]) -> None:
    """Stop somewhere, act, go on; some are impossible, which must not matter."""
    machine.on_action = lambda position, action: log.append((position, action))
    refused = 0
    for time, action in deeds(random.Random(seed)):
        assert machine.run(time) == Stop.TIME
        try:
            machine.apply(action)
        except ActionError as error:
            assert "\n" not in str(error)
            refused += 1
    machine.run(END)
    assert refused and len(log) == 25


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_run_with_actions_is_repeated_by_their_positions(seed: int) -> None:
    log: list[tuple[int, Action]] = []

    def by_hand(machine: Machine, until: int) -> None:
        done_by_hand(machine, seed, log)

    def again(machine: Machine, until: int) -> None:
        for position, action in log:
            machine.schedule(position, action)
        machine.run(until)

    def in_pieces(machine: Machine, until: int) -> None:
        for position, action in log:
            machine.schedule(position, action)
        chance = random.Random(seed)
        while machine.run(until, until_position=machine.position + chance.randrange(1, 4_000_000)) == Stop.TIME:
            if machine.now() >= until:
                return

    outcomes = [
        Traced([roomy("hello64"), guest("hello32")], drive, END).outcome for drive in (by_hand, again, in_pieces)
    ]
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_action_comes_after_what_is_due(ahead: int) -> None:
    """Stepping can stop where a timer is due (or idle time ends); an action there must not come before it."""

    def lay_a_fault(machine: Machine, time: int) -> None:
        machine.schedule(2, Action("inject", None, (f"{time}ns:send-event hello64 port 2",)))
        machine.schedule(2 * time, Action("inject", None, ("mask hello32 port 2",)))

    time, action = 600_000_000 if ahead else 3_000_000, Action("rename", "hello64", ("other",))

    def by_hand(machine: Machine, until: int) -> None:
        lay_a_fault(machine, time)
        machine.hold_idle = True
        machine.run(until_position=2 * time - 50)
        while machine.position < 2 * time:
            if machine.step() == Stop.IDLE:
                machine.idle_to(time)
        positions.append(machine.position)
        machine.apply(action)
        machine.hold_idle = False
        machine.run(until)

    def scheduled(machine: Machine, until: int) -> None:
        lay_a_fault(machine, time)
        machine.schedule(positions[0], action)
        machine.run(until)

    positions: list[int] = []
    outcomes = [Traced([guest("hello64"), guest("hello32")], drive, END).outcome for drive in (by_hand, scheduled)]
    assert outcomes[0] == outcomes[1]


def test_an_action_comes_behind_the_choice_that_nobody_can_run() -> None:
    """Both domains wait for their consoles; who blocked last must not be taken for still running."""
    log: list[tuple[int, Action]] = []

    def by_hand(machine: Machine, until: int) -> None:
        machine.on_action = lambda position, action: log.append((position, action))
        machine.hold_idle = True
        assert machine.run(until) == Stop.IDLE and machine.current is not None
        last = machine.current.domain.name
        for name in sorted(("hello64", "hello32"), key=last.__eq__):
            machine.apply(Action("type", name, (b"info\r",)))
        machine.hold_idle = False
        machine.run(until)

    def again(machine: Machine, until: int) -> None:
        for position, action in log:
            machine.schedule(position, action)
        machine.run(until)

    outcomes = [Traced([guest("hello64"), guest("hello32")], drive, END).outcome for drive in (by_hand, again)]
    assert outcomes[0] == outcomes[1] and len(log) == 2


@pytest.mark.parametrize("seed", range(4))
def test_actions_wherever_the_machine_can_stop_are_repeated(seed: int) -> None:
    """Between steps, where breakpoints on records stop it, where all is idle: often several at one position."""
    log: list[tuple[int, Action]] = []
    names = ["hello64", "demo32", "demo64"]

    def by_hand(machine: Machine, until: int) -> None:
        machine.on_action = lambda position, action: log.append((position, action))
        chance = random.Random(seed)
        for _ in range(60):
            name = chance.choice(names)
            action = chance.choice(
                [
                    Action("type", name, (chance.choice([b"info\r", b"reboot\r", b"x"]),)),
                    Action(chance.choice(["pause", "unpause"]), name),
                    Action("send", name, (chance.randrange(1, 9),)),
                    Action("schedule", name, ("weight", chance.choice([128, 512]))),
                    Action("inject", None, (f"steal {name} 3ms",)),
                    Action("inject", None, (f"exception {name} UD",)),
                ]
            )
            match chance.randrange(4):
                case 0:
                    for _ in range(chance.randrange(1, 40)):
                        machine.hold_idle = True
                        machine.step()
                case 1:
                    machine.run_to(Breakpoint.parse(chance.choice(["switch", "upcall", "virq or timer"])), until)
                case 2:
                    machine.run(machine.now() + chance.randrange(1, 3_000_000))
            with suppress(ActionError):
                machine.apply(action)
        machine.hold_idle = False
        machine.run(until)

    def again(machine: Machine, until: int) -> None:
        for position, action in log:
            machine.schedule(position, action)
        machine.run(until)

    specs = [guest(name) for name in names]
    outcomes = [Traced(specs, drive, END).outcome for drive in (by_hand, again)]
    assert outcomes[0] == outcomes[1] and len(log) == 60


def roomy(name: str) -> GuestSpec:
    """A guest whose memory leaves room in the machine for others."""
    spec = guest(name)
    spec.memory = 256
    return spec


def test_refusals_say_why(tmp_path: Path) -> None:
    spec = guest("hello64")
    spec.on_crash = "preserve"
    with Machine(spec.memory) as machine:
        domain = machine.create(spec)
        machine.run(1_000_000)
        (tmp_path / "text").write_text("no kernel")
        cases = [
            (Action("fly", "hello64"), "there is no action 'fly'"),
            (Action("pause", "alpha"), "there is no domain 'alpha'; there are: hello64"),
            (Action("unpause", "hello64"), "hello64 is not paused"),
            (Action("send", "hello64", (500,)), "hello64 has no port 500"),
            (Action("send", "hello64"), "does not take the arguments"),
            (Action("rename", "hello64", ("a/b",)), "characters"),
            (Action("balloon", "hello64", (4096,)), "can have 1 to 64 MiB"),
            (Action("create", None, (GuestSpec("text", tmp_path / "text"),)), "text"),
            (Action("create", None, (spec,)), r"memory|frames"),
        ]
        for action, message in cases:
            with pytest.raises(ActionError, match=message) as caught:
                machine.apply(action)
            assert "\n" not in str(caught.value)
        machine.apply(Action("crash", "1"))
        assert domain.shutdown_code is not None
        with pytest.raises(ActionError, match=r"has (shut down|ended)"):
            machine.apply(Action("type", "hello64", (b"x",)))


def test_every_kind_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "run-control.md").read_text()
    assert not [kind for kind in KINDS if f"`{kind}`" not in text]
