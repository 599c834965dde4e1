"""A recording opened in the console: the trace pane has all of it from the start, whatever has been run again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.command import record
from tests.fakes_records import made
from tests.test_app import Console
from xentui.app import XentuiApp
from xentui.engine.actions import Action
from xentui.engine.expression import Expression
from xentui.engine.process import Engine
from xentui.engine.trace import Kind
from xentui.recording.reader import Recording
from xentui.recording.writer import RecordingWriter
from xentui.screens.moments import Density
from xentui.screens.records import Matches, RecordedTrace
from xentui.screens.trace import TracePane
from xentui.session import setup_of

SIZES = [(80, 24), (120, 40), (200, 60)]
Drive = Callable[["Replayed"], Awaitable[None]]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from elsewhere."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that ended in order."""
    path = tmp_path_factory.mktemp("replay") / "hello.xtrace"
    assert record(path, "hello64", "--input", r"poweroff\n").status == 0
    return path


class Replayed(Console):
    """The console on a recording, its trace pane open."""

    def __init__(self, app: XentuiApp, pilot: Any, recording: Recording) -> None:
        super().__init__(app, pilot)
        self.recording = recording

    @property
    def engine(self) -> Any:
        return self.app.engine

    @property
    def pane(self) -> TracePane:
        pane: Any = self.app.main.grid.pane("trace")
        assert isinstance(pane, TracePane)
        return pane

    @property
    def header(self) -> str:
        """The pane's first line."""
        return self.pane.text().splitlines()[0]

    @property
    def marked(self) -> str:
        """The line at which "now" stands."""
        (line,) = [line for line in self.pane.text().splitlines() if line[:1] in "▶▷" and line.strip()]
        return line

    @property
    def live(self) -> bool:
        """Is it the ring that is shown?"""
        return self.pane.model.source is self.engine.records

    async def stands_at(self, number: int) -> None:
        """Wait until there are so many records (and those that one instruction writes with the last of them), and the
        pane says so."""

        def there() -> bool:
            now: int = self.engine.status.records
            return self.engine.standing and self.pane.model.now == now and number <= now < number + 4

        await self.until(there)


def replayed(path: Path, steps: Drive, size: tuple[int, int] = (120, 40)) -> None:
    """Open a recording as --replay does, the trace pane alone, and drive it."""

    async def main(engine: Engine, recording: Recording) -> None:
        app = XentuiApp(engine, run=False)
        app.open_recording(recording)
        app.feed.strict = True
        async with app.run_test(size=size) as pilot:
            console = Replayed(app, pilot, recording)
            await console.press("3")
            await console.press("z")
            await console.until(lambda: console.pane.model.list is not None and console.pane.model.list.complete)
            await steps(console)

    with Recording(str(path)) as recording, Engine.start(setup_of(recording)) as engine:
        asyncio.run(main(engine, recording))


@pytest.mark.parametrize("size", SIZES)
def test_all_of_it_is_there_at_the_start(hello: Path, size: tuple[int, int]) -> None:
    async def steps(console: Replayed) -> None:
        now, total = console.engine.status.records, len(console.recording)
        assert now < 10 < total and console.engine.records.end == now, "nothing was run"
        assert f" {total} records, now at {now} " in console.header
        lines = console.pane.text().splitlines()
        assert lines.index(console.marked) == now, "the last record that has happened"
        await console.press("ctrl+end")
        last = console.recording.records(total - 1)[0]
        assert console.pane.model.cursor == total - 1 and last["kind"] == Kind.DOMAIN_DESTROY
        assert "domain_destroy" in console.pane.text()
        source: Any = console.pane.model.source
        await console.until(lambda: set(source._ahead.values()) == {total})  # while idle, for filters to come

    replayed(hello, steps, size)


def test_the_future_is_filtered_searched_and_gone_to(hello: Path) -> None:
    async def steps(console: Replayed) -> None:
        calls = (console.recording.columns("kind") == Kind.HYPERCALL) & (console.recording.columns("number") == 29)
        (first, *_) = calls.nonzero()[0].tolist()  # sched_op
        console.pane.filter("sched_op")
        await console.until(lambda: f"sched_op: {calls.sum()} of {len(calls)}" in console.header)
        await console.press("down")
        await console.press("enter")
        await console.stands_at(first + 1)
        assert "sched_op" in console.marked and console.marked.startswith("▶") and console.pane.model.cursor == first
        await console.press("escape")
        await console.until(lambda: "records, now at" in console.header)
        console.pane.look_for("domain_destroy")
        await console.until(lambda: console.pane.model.searching is None)
        assert console.pane.model.cursor == len(calls) - 1
        await console.press("enter")
        await console.stands_at(len(calls))
        await console.press("a")
        await console.until(console.pane._summed)
        assert console.pane.summary is not None and console.pane.summary.counts.sum() == len(calls)

    replayed(hello, steps)


def test_the_mark_moves_with_the_moment(hello: Path) -> None:
    async def steps(console: Replayed) -> None:
        model, engine = console.pane.model, console.engine
        for _ in range(2):
            before = model.now
            await console.press("h")
            await console.until(lambda before=before: engine.standing and model.now == engine.status.records > before)
            assert console.marked.startswith("▶") and "hypercall" not in console.header
        before = model.now
        await console.press("H")
        await console.until(lambda: engine.standing and model.now == engine.status.records < before)
        assert console.marked.startswith("▶") and not model.follow
        await console.press("space")
        await console.until(lambda: engine.standing and model.now == len(console.recording))
        assert model.follow and console.marked.startswith("▶"), "what runs is followed, from the past too"
        assert not console.live and model.live

    replayed(hello, steps)


def test_another_history_is_shown_as_it_is_and_the_recorded_one_when_it_is_back(hello: Path) -> None:
    async def steps(console: Replayed) -> None:
        engine, total = console.engine, len(console.recording)
        await console.press("ctrl+home")
        engine.goto(record=total // 2)
        await console.stands_at(total // 2 + 1)
        assert not console.live
        engine.act(Action("pause", "hello64"))
        await console.until(lambda: engine.status.branch == 1 and console.live)
        assert "now at" not in console.header
        engine.switch(0)
        await console.until(lambda: engine.standing and engine.status.branch == 0 and not console.live)
        await console.stands_at(total)
        assert f" {total} records, now at {total} " in console.header

    replayed(hello, steps)


def test_behind_the_recorded_end_is_what_was_run(tmp_path: Path) -> None:
    path = tmp_path / "part.xtrace"
    assert record(path, "hello64", "--for", "20ms").status == 3, "it would have gone on"

    async def steps(console: Replayed) -> None:
        engine, total = console.engine, len(console.recording)
        engine.live()
        await console.stands_at(total)
        assert not console.live, "its last moment belongs to it"
        engine.act(Action("pause", "hello64"))
        await console.until(lambda: console.live and engine.status.branch == 0)
        engine.goto(record=total // 2)
        await console.stands_at(total // 2 + 1)
        assert not console.live and f"{total} records, now at {engine.status.records} " in console.header

    replayed(path, steps)


def test_what_a_kill_left_is_opened_too(hello: Path, tmp_path: Path) -> None:
    """Without its index, and in the middle of the last block of its trace."""
    path = tmp_path / "killed.xtrace"
    shutil.copy(hello, path)
    with Recording(str(path)) as recording:
        end = next(entry for entry in recording.entries if entry.type == b"DONE").offset
    with path.open("r+b") as file:
        file.truncate(end + 3)

    async def steps(console: Replayed) -> None:
        total = len(console.recording)
        assert console.recording.problem and total and f" {total} records, now at" in console.header
        await console.press("ctrl+end", "enter")
        await console.stands_at(total)
        assert not console.live and "domain_destroy" in console.marked

    replayed(path, steps)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A recording of three blocks of which the second is damaged, and the number of its first record."""
    path = tmp_path_factory.mktemp("damaged") / "damaged.xtrace"
    with RecordingWriter(str(path), {}) as writer:
        for number in range(3):
            writer.trace_chunk(memoryview(made(1 << 16, number << 26).view("u1")))
        writer.close({})
    with Recording(str(path)) as recording:
        block = [entry for entry in recording.entries if entry.records][1]
    with path.open("r+b") as file:
        file.seek(block.offset + block.length - 1)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    return path, block.first_record


def test_a_damaged_block_is_where_it_ends(damaged: tuple[Path, int]) -> None:
    """Whatever comes upon it first: a line to be drawn, or a filter."""
    path, first = damaged
    with Recording(str(path)) as recording:
        source = RecordedTrace(recording)
        assert len(source.rows(first - 2, first + 2)) == 2 and source.end == first
        assert str(path) in source.problem and "damaged" in source.problem
    with Recording(str(path)) as recording:
        source = RecordedTrace(recording)
        matches = Matches(source, Expression.parse("page_fault"))
        while not matches.complete:
            matches.advance(0.01)
        matches.advance(0.01)
        assert source.end == first and len(matches) == (source.columns("kind") == Kind.PAGE_FAULT).sum()


def test_a_time_in_or_behind_a_damaged_block_is_at_the_end(damaged: tuple[Path, int]) -> None:
    path, first = damaged
    times = made(1 << 16)["time"]
    for time in ((1 << 26) + int(times[1000]), (1 << 26) + int(times[0])):  # in the damaged block; its first
        with Recording(str(path)) as recording:
            source = RecordedTrace(recording)
            assert source.find_time(time) == first == source.end and "damaged" in source.problem
            assert source.find_time((2 << 26) + 5000) == first, "what lies behind it is no part of what is shown"
            assert source.find_time(int(times[1000])) == 1000 and source.find_time(1 << 60) == first
    with Recording(str(path)) as recording:
        source = RecordedTrace(recording)
        counts = Density().counts(source, 0, 3 << 26, 30, 0)
        assert sum(counts) == first == source.end and not any(counts[10:]), "nothing is drawn behind the damage"
