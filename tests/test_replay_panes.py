"""A recording opened in the console: time line, Gantt strips, port histories, counts of all of it from the start on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.command import record
from tests.fakes_records import FakeRecords, made
from tests.test_app import Console
from xentui.app import XentuiApp
from xentui.engine.actions import Action
from xentui.engine.process import Engine
from xentui.engine.trace import Kind, runner
from xentui.recording.reader import Recording
from xentui.recording.writer import RecordingWriter
from xentui.screens.gantt import History
from xentui.screens.moments import ByRecord, Density, edge
from xentui.screens.port_history import PortHistory, port_history, sets_port
from xentui.screens.records import RecordedTrace
from xentui.session import setup_of

SIZES = [(80, 24), (120, 40), (200, 60)]
KEYS = {"timeline": "grave_accent", "scheduler": "9", "events": "7", "crossings": "4"}
COUNT = 5 << 16


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from elsewhere."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of a second of two domains, one of each width."""
    path = tmp_path_factory.mktemp("replay") / "demo.xtrace"
    assert record(path, "demo32", "demo64", "--for", "200ms").status == 3
    return path


class Opened(Console):
    """The console on a recording, one pane open and large."""

    def __init__(self, app: XentuiApp, pilot: Any, recording: Recording, name: str) -> None:
        super().__init__(app, pilot)
        self.recording = recording
        self._name = name

    @cached_property
    def rows(self) -> np.ndarray[Any, Any]:
        """All that was recorded."""
        return self.recording.records()

    @property
    def engine(self) -> Any:
        return self.app.engine

    @property
    def pane(self) -> Any:
        return self.app.main.grid.pane(self._name)

    async def stands(self, time: int) -> None:
        """Wait until the machine stands at a virtual time and the pane has heard of it."""
        engine = self.engine
        await self.until(lambda: engine.standing and self.pane.status.time == engine.status.time >= time)


def opened(
    path: Path, name: str, steps: Callable[[Opened], Awaitable[None]], size: tuple[int, int] = (120, 40)
) -> None:
    """Open a recording as --replay does, with one pane, and drive it."""

    async def main(engine: Engine, recording: Recording) -> None:
        app = XentuiApp(engine, run=False)
        app.open_recording(recording)
        app.feed.strict = True
        async with app.run_test(size=size) as pilot:
            console = Opened(app, pilot, recording, name)
            await console.press(KEYS[name], "z")
            await console.until(lambda: console.pane is not None and console.pane.text().strip())
            await console.until(lambda: console.pane.status is not None and not getattr(console.pane, "_busy", False))
            await steps(console)

    with Recording(str(path)) as recording, Engine.start(setup_of(recording)) as engine:
        asyncio.run(main(engine, recording))


@pytest.mark.parametrize("size", SIZES)
def test_the_time_line_has_all_of_it_from_the_start(demo: Path, size: tuple[int, int]) -> None:
    async def steps(console: Opened) -> None:
        pane, engine = console.pane, console.engine
        assert engine.status.records < 10 and engine.records.end < 10 < len(console.recording), "nothing was run"
        assert (pane.start, pane.end) == (0, 200_000_000)
        assert sum(pane._density._counts) == len(console.recording)
        text = pane.text()
        assert "demo32 created" in text and "demo64 created" in text and "0.200 000 000 s" in text
        cells = [pane.cell(int(time)) for time in console.rows["time"]]
        bars = text.splitlines()[6]
        assert [at for at, sign in enumerate(bars[1:]) if sign == "█"] == sorted({*cells} - {pane.cells})
        inks = [ink for line in pane._lines[1:7] for part, ink in line if part.strip(" │")]
        assert set(inks) <= {"dim", "now", "blue"} and inks.count("dim") >= 5, "what is to come is faint"

    opened(demo, "timeline", steps, size)


def test_any_place_of_the_time_line_is_gone_to_forward_and_backward(demo: Path) -> None:
    async def steps(console: Opened) -> None:
        pane, engine = console.pane, console.engine
        there = edge(0, 200_000_000, pane.cells, 90)
        await console.pilot.click(pane, offset=(91, 4))
        await console.stands(there)
        assert there <= engine.status.time < there + 100_000
        assert engine.status.records >= np.searchsorted(console.rows["time"], there), "it was run on to there"
        await console.press("shift+left")
        back = edge(0, 200_000_000, pane.cells, 80)
        await console.until(lambda: engine.standing and back <= engine.status.time < back + 100_000)
        await console.press("v")
        await console.until(lambda: pane.by_record and pane.end == len(console.recording))
        assert "by records" in pane.text()
        await console.press("right")
        at = pane._time(edge(0, pane.end, pane.cells, pane.cell(engine.status.time)))
        await console.until(lambda: engine.standing and engine.status.time != back)
        assert at > 0

    opened(demo, "timeline", steps)


def test_on_a_branch_the_time_line_is_of_what_was_run_and_says_so(demo: Path) -> None:
    async def steps(console: Opened) -> None:
        pane, engine = console.pane, console.engine
        engine.goto(time=100_000_000)
        await console.stands(100_000_000)
        assert isinstance(pane.source, RecordedTrace) and "not the recording" not in pane.text()
        engine.act(Action("pause", "demo32"))
        await console.until(lambda: engine.status.branch == 1 and pane.source is engine.records)
        await console.until(lambda: "branch 1, not the recording" in pane.text())
        assert pane.end < 200_000_000 and sum(pane._density._counts) == engine.records.end
        engine.switch(0)
        await console.until(lambda: engine.standing and isinstance(pane.source, RecordedTrace))
        await console.until(lambda: "not the recording" not in pane.text() and pane.end == 200_000_000)
        await console.until(lambda: sum(pane._density._counts) == len(console.recording))

    opened(demo, "timeline", steps)


def test_the_strips_show_what_comes_and_it_is_gone_to(demo: Path) -> None:
    async def steps(console: Opened) -> None:
        pane, engine = console.pane, console.engine
        await console.press("right_square_bracket", "right_square_bracket")
        assert pane.window() == (0, 5_000_000) and "▲" in pane.text()
        share = pane.history.share(runner(1, 0), 0, 5_000_000, pane._cells())
        assert share.ran[1:].any() and engine.status.time < 100_000, "it has not run yet"
        strip = next(line for line in pane._lines if line[0][0].startswith("demo32"))
        assert any(ink == "dim" and set(part) & set("▁▂▃▄▅▆▇█") for part, ink in strip[1:])
        await console.press(*["pagedown"] * 2, "enter")
        await console.stands(900_000)
        await console.press("f")
        await console.until(lambda: pane.end is None)
        start, end = pane.window()
        assert start <= engine.status.time < end, "the present, and what comes then"
        engine.act(Action("pause", "demo32"))
        await console.until(lambda: "branch 1, not the recording" in pane.text())
        assert pane.history._source is engine.records

    opened(demo, "scheduler", steps)


def test_a_port_has_its_whole_history_and_who_wrote_is_asked_of_the_recording(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps(console: Opened) -> None:
        pane, engine, rows = console.pane, console.engine, console.rows
        port = int(rows["a"][(rows["kind"] == Kind.VIRQ) & (rows["domain"] == 1)][0])
        pane.domain = 1
        pane.choose_part(str(port))
        pane.touch()
        await console.until(lambda: pane._whole is not None and pane._whole.port == port and pane._whole.complete)
        await console.until(lambda: len(pane._ahead) == 2)
        assert pane._history == [] and pane.text().count("(to come)") == 2
        set_at = np.flatnonzero(sets_port(rows, 1, port)).tolist()
        assert pane._ahead[0].record == set_at[0]
        engine.goto(time=150_000_000)
        await console.stands(150_000_000)
        now = engine.status.records
        latest = max(number for number in set_at if number < now - 1)
        monkeypatch.setattr(type(engine), "who_wrote", lambda *_: pytest.fail("the ring is not asked"))
        await console.until(lambda: bool(pane._history))
        await console.press("o", "e")
        await console.until(lambda: engine.standing and latest < engine.status.records < latest + 4)

    opened(demo, "events", steps)


def test_crossings_are_counted_from_the_recording(demo: Path) -> None:
    async def steps(console: Opened) -> None:
        pane, engine = console.pane, console.engine
        engine.goto(time=100_000_000)
        await console.stands(100_000_000)
        await console.until(lambda: pane.counter.done == engine.status.records)
        assert isinstance(pane.counter.source, RecordedTrace)
        kinds = console.rows["kind"][: engine.status.records]
        counted = {way.label: 0 for ways in pane.counter.counts().values() for way in ways}
        for ways in pane.counter.counts().values():
            for way, count in ways.items():
                counted[way.label] += count
        assert counted["hypercalls"] == (kinds == Kind.HYPERCALL).sum() > 0

    opened(demo, "crossings", steps)


def test_a_recording_whose_last_block_is_damaged_is_shown_up_to_there_and_run_on(tmp_path: Path) -> None:
    path = tmp_path / "damaged.xtrace"
    assert record(path, "demo32", "demo64", "--for", "1500ms").status == 3
    with Recording(str(path)) as recording:
        *_, before, block = [entry for entry in recording.entries if entry.records]
    with path.open("r+b") as file:
        file.seek(block.offset + block.length - 1)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))

    async def steps(console: Opened) -> None:
        pane, engine = console.pane, console.engine
        assert f"damaged from record {block.first_record} on" in pane.text()
        assert pane.source.end == block.first_record == sum(pane._density._counts)
        assert 0 < before.last_time < pane.end == 1_500_000_000
        engine.goto(time=500_000_000)
        await console.stands(500_000_000)
        assert isinstance(pane.source, RecordedTrace)
        engine.goto(time=1_450_000_000)
        await console.stands(1_450_000_000)
        await console.until(lambda: pane.source is engine.records and "behind the recorded end" in pane.text())
        assert engine.status.records > block.first_record

    opened(path, "timeline", steps)


# --- long recordings, without a machine ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray[Any, Any]]:
    """Five blocks of records with a pause between two, and what was written."""
    rows = made(COUNT)
    rows["time"][3 << 16 :] += np.uint64(1_000_000_000)
    turns = np.flatnonzero(rows["kind"] == Kind.SCHEDULE)
    rows["a"][turns[1::2]], rows["b"][turns[1::2]] = runner(1, 0), runner(2, 0)
    idle = np.flatnonzero(rows["kind"] == Kind.IDLE)
    rows["a"][idle] = rows["time"][idle] + np.uint64(500)  # when somebody runs again
    path = tmp_path_factory.mktemp("long") / "long.xtrace"
    with RecordingWriter(str(path), {}) as writer:
        for start in range(0, COUNT, 1 << 16):
            writer.trace_chunk(memoryview(rows[start : start + (1 << 16)].copy().view("u1")))
        writer.close({})
    return path, rows


def test_density_is_rough_at_first_and_exact_in_the_end(long: tuple[Path, np.ndarray[Any, Any]]) -> None:
    path, rows = long
    end = int(rows["time"][-1]) + 1
    exact = Density().counts(FakeRecords(rows), 0, end, 40, 0)
    with Recording(str(path)) as recording:
        source, density = RecordedTrace(recording), Density()
        first = density.counts(source, 0, end, 40, 0, 0)
        assert not density.complete and len(first) == 40
        assert all(abs(count - right) <= 2 for count, right in zip(first, exact, strict=True)), "by the index alone"
        looks = 1
        while not density.complete or looks == 1:
            found = density.counts(source, 0, end, 40, 0, 0.001)
            looks += 1
        assert found == exact and sum(exact) == COUNT


def test_by_records_is_rough_at_first_and_exact_in_the_end(long: tuple[Path, np.ndarray[Any, Any]]) -> None:
    path, rows = long
    with Recording(str(path)) as recording:
        scale, exact = ByRecord(RecordedTrace(recording)), ByRecord(FakeRecords(rows))
        scale.allow(0)
        rough = scale.paces(0, COUNT, 30)
        assert not scale.complete and len(rough) == 30
        for number in (0, 70_000, 200_000):
            time = int(rows["time"][number])
            assert abs(scale.place(time) - number) <= 1 and abs(scale.time(number) - time) <= 1000
        while not scale.complete:
            scale.allow(0.005)
            found = scale.paces(0, COUNT, 30)
        assert found == exact.paces(0, COUNT, 30)
        assert scale.place(int(rows["time"][200_000])) == 200_000


def test_strips_of_a_recording_are_those_of_its_records(
    long: tuple[Path, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = long
    monkeypatch.setattr("xentui.screens.gantt._MOST", 1 << 30)
    ring, recorded = History(), History()
    source = FakeRecords(rows)
    while ring.read(source):
        pass
    end = int(rows["time"][-1])
    with Recording(str(path)) as recording:
        trace = RecordedTrace(recording)
        looks = 0
        while recorded.read(trace):
            looks += 1
            assert recorded.until == int(rows["time"][recorded._read - 1])
        assert recorded.until == float("inf")
    assert np.array_equal(ring.loads.rows, recorded.loads.rows) and recorded.loads.rows[:, 0].flags.c_contiguous
    windows = [(0, end), (end // 3, end // 2), (end // 2, end // 2 + 5000)]
    few = [recorded.share(runner(who, 0), *window, 50) for window in windows for who in (1, 2)]
    monkeypatch.setattr("xentui.screens.gantt._SUMMED_FROM", -1)
    many = [recorded.share(runner(who, 0), *window, 50) for window in windows for who in (1, 2)]
    for one, other in zip(few, many, strict=True):
        assert np.allclose(one.ran, other.ran) and np.allclose(one.waited, other.waited)
    assert 0.4 < few[0].ran[:10].mean() + few[1].ran[:10].mean() <= 1.0


def test_a_ports_history_is_found_from_here_outward(long: tuple[Path, np.ndarray[Any, Any]]) -> None:
    path, rows = long
    now = 200_001
    with Recording(str(path)) as recording:
        whole = PortHistory(RecordedTrace(recording), 2, 5)
        whole.advance(now, 0)
        assert not whole.complete
        near = whole.around(now, 4, 2)
        while not whole.complete:
            whole.advance(now, 0.005)
        before, ahead = whole.around(now, 4, 2)
        assert near == (before, ahead), "what is nearest was looked through first"
        assert before == port_history(FakeRecords(rows), now, 2, 5, 4)
        sent = np.flatnonzero((rows["kind"] == Kind.EVENT_SEND) & (rows["b"] == 5))
        assert [event.record for event in ahead] == sent[sent >= now][:2].tolist()
        assert len(whole.around(COUNT, COUNT, 0)[0]) == len(sent)


def test_who_set_a_port_is_found_however_long_ago(long: tuple[Path, np.ndarray[Any, Any]]) -> None:
    from xentui.screens.replay import Replay

    path, rows = long
    setup: Any = SimpleNamespace(end_position=0, actions=[])
    sent = np.flatnonzero((rows["kind"] == Kind.EVENT_SEND) & (rows["b"] == 5)).tolist()
    with Recording(str(path)) as recording:
        replay = Replay(recording, setup)
        assert list(replay.who_set(2, 5, sent[70] + 3))[-1] == sent[70]
        assert list(replay.who_set(2, 5, sent[70] + 1))[-1] == sent[69], "the last is where we are"
        assert list(replay.who_set(2, 5, sent[0] + 1)) == [None, sent[0]], "unless there is no other"
        assert list(replay.who_set(2, 5, 0)) == [] and not any(replay.who_set(2, 99, COUNT))
