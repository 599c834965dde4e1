"""What is asked of a machine on its way to somewhere; steps back over calls; a step out of idle time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.test_process import WAIT, engine, typed, until
from xentui.engine.breakpoints import Breakpoint
from xentui.engine.process import Engine
from xentui.engine.turns import Turns


@pytest.fixture(scope="module")
def idle() -> Iterator[Engine]:
    """hello64, which waits for something to be typed."""
    with engine("hello64") as started:
        started.run()
        until(started, b"> ")
        started.wait(0.2)
        started.pause()
        started.wait(WAIT)
        yield started


@pytest.fixture
def early(idle: Engine) -> Engine:
    """The same in the midst of its start."""
    idle.goto(record=40)
    idle.wait(WAIT)
    return idle


def registers(started: Engine) -> dict[str, Any]:
    found: dict[str, Any] = started.look("cpu.registers", domain=1)
    return found


def test_requests_of_a_kind_are_added_up() -> None:
    made: list[tuple[str, int]] = []
    turns = Turns()
    for kind, count in (("s", 1), ("s", 2), ("", 1), ("", 1), ("s", 1)):
        turns.add(lambda count, kind=kind: made.append((kind, count)), count, kind)  # type: ignore[misc]
    while turns:
        turns.next()
    assert made == [("s", 3), ("", 1), ("", 1), ("s", 1)]


def test_no_step_back_is_lost(early: Engine) -> None:
    """A key that is held asks faster than it can be done."""
    early.step(20)
    end = early.wait(WAIT).position
    for _ in range(20):
        early.step_back()
    first = early.wait(WAIT).position
    early.step(20)
    assert early.wait(WAIT).position == end
    early.step_back(20)
    assert early.wait(WAIT).position == first


def test_no_step_is_lost(early: Engine) -> None:
    """Neither while another step is under way, nor on the way to another moment."""
    here = early.status.position
    early.step(7)
    seventh = early.wait(WAIT).position
    early.goto(position=here)
    for _ in range(7):
        early.step()
    assert early.wait(WAIT).position == seventh
    early.step_back(7)
    early.step(3)
    early.step(4)
    early.step_back(6)
    early.step_back()
    assert early.wait(WAIT).position == here


def test_a_search_that_is_given_up_ends_where_it_began(early: Engine) -> None:
    here = early.status.position
    for _ in range(3):
        early.step_back(30)
        early.pause()
        assert early.wait(WAIT).position == here
        assert early.look("machine.summary")["domains"] == 1
    early.step_back(30)
    early.goto(time=0)
    assert early.wait(WAIT).records < 10


def test_idle_time_passes_again(idle: Engine) -> None:
    """Back from idle is to where it began; a step from there is to the end of what is known."""
    idle.live()
    end = idle.wait(WAIT)
    assert end.live
    idle.step_back()
    back = idle.wait(WAIT)
    assert back.position < end.position and back.records == end.records
    idle.step()
    status = idle.wait(WAIT)
    assert (status.position, status.live, status.stop) == (end.position, True, "starved")


def test_back_over_a_call(idle: Engine) -> None:
    """Each step over that passed over a call is undone by one step back over."""
    early = idle
    early.goto(record=20)
    early.wait(WAIT)
    passed: list[tuple[int, int, str]] = []
    calls = 0
    for _ in range(40):
        before, text = early.status.position, early.look("cpu.code", domain=1, before=0, after=1)[0]["text"]
        early.step_over()
        status = early.wait(WAIT)
        if status.stop == "starved":
            break  # a call that waits for what is typed
        after = status.position
        calls += text.startswith("call")
        passed.append((before, after, text.split()[0]))
    assert calls >= 3
    for before, after, text in reversed(passed):
        early.goto(position=after)
        early.wait(WAIT)
        early.step_over_back()
        back = early.wait(WAIT).position
        assert back < before if text == "ret" else back == before


def test_back_over_what_repeats_itself() -> None:
    with engine("bench64", cmdline="scale=1") as started:
        started.run(Breakpoint("address", "multicall_32"))
        assert started.wait(WAIT).stop == "breakpoint"
        while not started.look("cpu.code", domain=1, before=0, after=1)[0]["text"].startswith("rep "):
            started.step()
            started.wait(WAIT)
        before, first = started.status.position, registers(started)["registers"]["rip"]
        started.step()
        assert started.wait(WAIT).position > before
        started.step_over()
        behind = started.wait(WAIT).position
        assert registers(started)["registers"]["rip"] > first
        started.step_over_back()
        assert started.wait(WAIT).position == before
        started.step_over()
        assert started.wait(WAIT).position == behind


def test_a_machine_that_waits_for_good_goes_on_running() -> None:
    """What is typed must reach it."""
    with engine("hello32") as started:
        started.run()
        until(started, b"> ")
        started.set_warp(True)
        assert started.wait(WAIT).stop == "starved"
        started.set_warp(False)
        started.run()
        assert started.wait(0.05).running
        started.act(typed("spam\r", "hello32"))
        until(started, b"You said: spam")
