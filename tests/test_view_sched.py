"""The scheduler's pane: who ran when, summed from the trace, zoomed and panned; parameters shown and changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from tests.pane_app import FakeRecords, PaneApp
from xentui.config import resolve_guest
from xentui.engine import trace
from xentui.engine.actions import Action, ActionError
from xentui.engine.machine import Machine
from xentui.engine.trace import Kind, runner
from xentui.engine.views import look
from xentui.screens.gantt import NOBODY, History
from xentui.screens.pane import Pane
from xentui.screens.scheduler import SchedulerPane

MS = 1_000_000
ONE, TWO = runner(1, 0), runner(2, 0)


class Records:
    """A window of made-up records."""

    def __init__(self, *rows: tuple[int, int, int, int, int]) -> None:
        """(time, kind, runner, a, b)"""
        self.first = 0
        self.all = numpy.zeros(len(rows), trace.dtype())
        for place, (time, kind, who, a, b) in enumerate(rows):
            self.all[place] = (time, 0, kind, who & 0xFFFF, who >> 16, 0, a, b, 0, 0, 0)

    @property
    def end(self) -> int:
        return len(self.all)

    def rows(self, start: int, stop: int) -> Any:
        return self.all[start:stop]

    def columns(self, name: str, start: int, stop: int) -> Any:
        return self.all[name][start:stop]


SCHEDULE, BLOCK, WAKE, IDLE = Kind.SCHEDULE, Kind.BLOCK, Kind.WAKE, Kind.IDLE
RUN = Records(
    (0, SCHEDULE, ONE, NOBODY, ONE),
    (100, SCHEDULE, TWO, ONE, TWO),
    (150, BLOCK, TWO, 0, 0),
    (150, SCHEDULE, ONE, TWO, ONE),
    (200, BLOCK, ONE, 0, 0),
    (200, IDLE, NOBODY, 300, 0),
    (300, WAKE, ONE, 0, 0),
    (350, WAKE, TWO, 0, 0),
)


def test_shares_of_a_window() -> None:
    history = History()
    assert not history.read(RUN)
    one, two = history.share(ONE, 0, 400, 8), history.share(TWO, 0, 400, 8)
    assert one.ran.tolist() == [1, 1, 0, 1, 0, 0, 1, 1]
    assert two.ran.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert one.waited.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert two.waited.tolist() == [1, 1, 0, 0, 0, 0, 0, 1]
    coarse = history.share(ONE, 0, 400, 2)
    assert coarse.ran.tolist() == [0.75, 0.5]
    fine = history.share(TWO, 90, 110, 4)
    assert fine.ran.tolist() == [0, 0, 1, 1] and fine.waited.tolist() == [1, 1, 0, 0]
    assert history.share(runner(9, 0), 0, 400, 4).ran.tolist() == [0, 0, 0, 0]
    assert [history.runs_at(time) for time in (-1, 0, 99, 100, 250, 320)] == [NOBODY, ONE, ONE, TWO, NOBODY, ONE]


def test_the_history_grows_and_is_cut() -> None:
    history = History()
    growing = Records()
    growing.all = RUN.all[:2]
    history.read(growing)
    growing.all = RUN.all
    history.read(growing)
    assert history.share(ONE, 0, 400, 8).ran.tolist() == [1, 1, 0, 1, 0, 0, 1, 1]
    growing.all = RUN.all[:2]
    history.read(growing)
    assert history.share(TWO, 100, 200, 2).ran.tolist() == [1, 1], "what was cut off is forgotten"
    assert not history.read(None)


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xentui.screens.gantt._MOST", 200)
    history = History()
    rows = [(time, SCHEDULE, ONE, 0, (ONE, TWO)[time & 1]) for time in range(90)]
    growing = Records(*rows)
    history.read(growing)
    growing.all = Records(*rows, *((time, SCHEDULE, ONE, 0, ONE) for time in range(90, 130))).all
    history.read(growing)
    assert history.loads.count == 180 and history.runs_at(129) == ONE and history.runs_at(60) == ONE


def test_two_processors() -> None:
    """One is given to a vCPU and taken away while the other goes on; a vCPU moves; then all is idle."""
    history, run = History(), [
        (0, SCHEDULE, ONE, NOBODY, ONE, 0), (0, SCHEDULE, TWO, NOBODY | 1, TWO, 1),
        (100, SCHEDULE, NOBODY | 1, TWO, NOBODY | 1, 1), (200, SCHEDULE, NOBODY, ONE, NOBODY, 0),
        (200, SCHEDULE, ONE, NOBODY | 1, ONE, 1), (300, BLOCK, ONE, 0, 0, 0),
        (300, SCHEDULE, NOBODY | 1, ONE, NOBODY | 1, 1), (300, IDLE, NOBODY, 400, 0, 0),
    ]  # fmt: skip
    rows = Records(*(row[:5] for row in run))
    rows.all["d"] = [row[5] for row in run]
    history.read(rows)
    assert history.share(ONE, 0, 400, 4).ran.tolist() == [1, 1, 1, 0]
    assert history.share(TWO, 0, 400, 4).ran.tolist() == [1, 0, 0, 0]
    assert [history.runs_at(time, 0) for time in (50, 250, 350)] == [ONE, NOBODY, NOBODY]
    assert [history.runs_at(time, 1) for time in (50, 150, 250, 350)] == [TWO, NOBODY, ONE, NOBODY]


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(64)
    for name in ("neighbour64", "neighbour32"):
        spec = resolve_guest(name)
        spec.memory = 16
        machine.create(spec)
    machine.run(60 * MS)
    yield machine
    machine.close()


def test_the_trace_and_the_run_states_agree(machine: Machine) -> None:
    history = History()
    history.read(FakeRecords(machine))
    state = look(machine, "sched.state")
    assert state["policy"] == "credit" and state["parameters"]["slice"] == 30 * MS
    for vcpu in state["vcpus"]:
        share = history.share(runner(vcpu["domain"], 0), 0, machine.now(), 50)
        assert vcpu["known"]["weight"] == 256
        ran = float(share.ran.mean()) * machine.now()
        assert abs(ran - vcpu["times"][0]) < machine.now() / 1000


@pytest.mark.parametrize("size", [(78, 22), (118, 38), (198, 58)])
def test_the_pane(machine: Machine, size: tuple[int, int]) -> None:
    async def run() -> None:
        app = PaneApp(machine, SchedulerPane())
        async with app.run_test(size=size) as pilot:
            text = app.update()
            assert "credit  slice 30ms  rate_limit 1ms · follows" in text and "20ms from 0.040" in text
            assert "neighbour64  v0" in text and "weight" in text and "%" in text
            assert "parked" in text and "…" not in text, "all that the credit scheduler knows has room"
            await pilot.press("left_square_bracket", "left", "left", "left")
            text = app.update()
            assert "40ms from 0.020" in text and "the processor had neighbour" in text and "follows" not in text
            moment = app.pane.moment()  # type: ignore[attr-defined]
            await pilot.press("right_square_bracket", "enter")
            await pilot.pause()
            (goto,) = app.posted
            assert isinstance(goto, Pane.Goto) and goto.time is not None
            assert abs(goto.time - moment) < 2 * MS, "zooming keeps the moment"
            await pilot.press("f")
            assert "follows" in app.update()
            await pilot.press(*["pageup"] * 5)
            assert "from 0.0" in app.update()
            assert all(len(line) <= size[0] for line in app.screen_text().splitlines())

    asyncio.run(run())


def test_a_parameter_is_changed(machine: Machine) -> None:
    async def run() -> None:
        app = PaneApp(machine, SchedulerPane())
        async with app.run_test(size=(100, 30)) as pilot:
            app.update()
            await pilot.press("down", "a", *["backspace"] * 20, *"wait 3", "enter")
            await pilot.pause()
            assert not app.posted, "there is no parameter of that name"
            await pilot.press(*["backspace"] * 20, *"weight 512", "enter")
            await pilot.pause()
            (act,) = app.posted
            assert isinstance(act, Pane.Act) and act.action == Action("schedule", "neighbour32", ("weight", 512))
            machine.apply(act.action)
            assert "512" in app.update()
            await pilot.press("A", *["backspace"] * 30, *"slice 5000000", "enter")
            await pilot.pause()
            machine.apply(app.posted[1].action)  # type: ignore[attr-defined]
            assert "slice 5ms" in app.update()

    asyncio.run(run())


def test_actions_refuse_what_the_policy_does_not_have(machine: Machine) -> None:

    with pytest.raises(ActionError, match="warp"):
        machine.apply(Action("schedule", "neighbour64", ("warp", 5)))


def test_a_low_pane_shows_every_strip_and_says_what_it_hides(machine: Machine) -> None:
    async def run() -> None:
        app = PaneApp(machine, SchedulerPane())
        async with app.run_test(size=(80, 9)):
            text = app.update()
            strips = [line for line in text.splitlines() if line.rstrip().endswith("%")]
            assert len(strips) == 2 and "↑ ↓ 1 more" in text and "what the scheduler goes by" in text
        async with PaneApp(machine, SchedulerPane()).run_test(size=(80, 6)) as pilot:
            text = pilot.app.update()  # type: ignore[attr-defined]
            assert "what the scheduler goes by" not in text

    asyncio.run(run())
