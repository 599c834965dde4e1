"""The time line: density, moments, and going anywhere by key and mouse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fakes_records import FakeRecords, PaneApp, made, piloted, status
from xentui.engine.trace import Kind
from xentui.screens.moments import Density, Moment, edge, known_to, round_up
from xentui.screens.timeline import TimelinePane


def run_of(count: int = 1000, step: int = 1_000_000) -> FakeRecords:
    """A second with a crash in the middle and a fault before it."""
    rows = made(count, step=step)
    rows["kind"][count // 2] = Kind.DOMAIN_CRASH
    rows["kind"][count // 4] = Kind.INJECT
    return FakeRecords(rows)


def test_density_is_what_lies_between_the_edges() -> None:
    records, density = run_of(), Density()
    counts = density.counts(records, 0, 1_000_000_000, 7, 0)
    times = records.all["time"]
    expected = [int(((times >= edge(0, 10**9, 7, at)) & (times < edge(0, 10**9, 7, at + 1))).sum()) for at in range(7)]
    assert counts == expected and sum(counts) == 1000


def test_density_grows_with_the_run_and_is_kept_when_the_ring_drops_records() -> None:
    records, density = FakeRecords(made(100, step=1000), capacity=150), Density()
    assert sum(density.counts(records, 0, 1_000_000, 10, 0)) == 100
    for start in range(1, 5):
        records.put(made(100, start=start * 100_000))
        counts = density.counts(records, 0, 1_000_000, 10, 0)
    assert counts == [100] * 5 + [0] * 5
    assert sum(density.counts(records, 0, 1_000_000, 10, 1)) == 150, "another history is looked at anew"


def test_scales_are_easy_to_say() -> None:
    assert [round_up(time) for time in (0, 1001, 2_000_000, 2_000_001, 600_000_000)] == [
        1000, 2000, 2_000_000, 5_000_000, 1_000_000_000,
    ]  # fmt: skip


def test_a_cell_begins_with_its_first_time() -> None:
    for at in range(1, 118):
        first = edge(7, 200_000_000, 118, at)
        assert (first - 7) * 118 // (200_000_000 - 7) == at and (first - 8) * 118 // (200_000_000 - 7) == at - 1


def test_marks_and_snapshots_are_moments() -> None:
    kept = SimpleNamespace(status=SimpleNamespace(time=70))
    engine = SimpleNamespace(timeline=SimpleNamespace(usable=lambda: [kept]))
    assert known_to(engine, [(200, "here")]) == [Moment(100, "mark", "here"), Moment(70, "snapshot", "snapshot")]
    assert known_to(SimpleNamespace(), []) == []


async def shown(pane: TimelinePane, pilot: Any, records: FakeRecords, now: int | None = None, **more: Any) -> None:
    pane.show_records(records, status(records, now, **more), [Moment(700_000_000, "mark", "look at this")])
    for _ in range(100):
        await pilot.pause(0.005)
        if pane._recorded is not None and pane._recorded.complete:
            return


@pytest.mark.parametrize("size", [(80, 3), (80, 5), (120, 14), (200, 8)])
@piloted
async def test_bars_signs_and_times(size: tuple[int, int]) -> None:
    pane = TimelinePane()
    records = run_of()
    async with PaneApp(pane, records).run_test(size=size) as pilot:
        await shown(pane, pilot, records, 300)
        lines = pane.text().splitlines()
        assert all(len(line) <= size[0] for line in lines)
        signs = lines[0]
        fault, crash, mark = (signs.index(sign) for sign in "⚡✖▼")
        assert fault < crash < mark and abs(crash - size[0] // 2) <= 2
        assert "▁" <= lines[1].strip()[0] <= "█"
        if size[1] >= 4:
            assert "0.299 000 000 s (the past)" in pane.text() and "0.999 000 000 s" in pane.text()
        if size[1] >= 14:
            assert "✖ 0.500 000 000 s  hello" not in pane.text() and "look at this" in pane.text()
            assert "beta crashed" in pane.text() or "alpha crashed" in pane.text()
        await pilot.resize_terminal(60, 2)
        await pilot.pause()
        assert pane.text().strip()


@piloted
async def test_keys_scrub_and_go_from_moment_to_moment() -> None:
    pane = TimelinePane()
    records = run_of()
    app = PaneApp(pane, records)
    async with app.run_test(size=(102, 14)) as pilot:
        await shown(pane, pilot, records, 301)
        await pilot.press("right")
        assert app.gone_to[-1].time == edge(0, 999_000_000, 100, 31) and app.gone_to[-1].record is None
        await pilot.press("shift+right")
        assert app.gone_to[-1].time == edge(0, 999_000_000, 100, 41)
        await pilot.press("left_square_bracket")
        assert app.gone_to[-1].time == 250_000_000
        await pilot.press("right_square_bracket", "right_square_bracket")
        assert app.gone_to[-1].time == 700_000_000
        await pilot.press("left", "left", "enter")
        assert app.gone_to[-1].time == app.gone_to[-2].time == edge(0, 999_000_000, 100, 68)
        for _ in range(3):
            await pilot.press("shift+left", "shift+left", "shift+left")
        assert app.gone_to[-1].time == 0


@piloted
async def test_the_mouse_scrubs() -> None:
    pane = TimelinePane()
    records = run_of()
    app = PaneApp(pane, records)
    async with app.run_test(size=(102, 14)) as pilot:
        await shown(pane, pilot, records)
        await pilot.mouse_down(pane, offset=(51, 3))
        await pilot.hover(pane, offset=(61, 3))
        await pilot.mouse_up(pane, offset=(61, 3))
        assert [wish.time for wish in app.gone_to] == [edge(0, 999_000_000, 100, 50), edge(0, 999_000_000, 100, 60)]
        await pilot.hover(pane, offset=(11, 3))
        assert len(app.gone_to) == 2


@piloted
async def test_zoom_keeps_the_place() -> None:
    pane = TimelinePane()
    records = run_of()
    async with PaneApp(pane, records).run_test(size=(102, 14)) as pilot:
        await shown(pane, pilot, records, 501)
        await pilot.press("left_parenthesis", "left_parenthesis")
        assert pane.end - pane.start == 249_750_000 and pane.start < 500_000_000 < pane.end
        assert "✖" in pane.text().splitlines()[0] and "⚡" not in pane.text().splitlines()[0]
        await shown(pane, pilot, records, 502)
        assert pane.end - pane.start == 249_750_000, "it stays while things go on"
        await pilot.press("right_parenthesis", "right_parenthesis")
        assert (pane.start, pane.end) == (0, 999_000_000)


@piloted
async def test_by_records_idle_time_takes_no_room() -> None:
    pane = TimelinePane()
    rows = made(1000, step=1000)
    rows["time"][500:] += np.uint64(10_000_000_000)
    rows["kind"][500] = Kind.DOMAIN_CRASH
    records = FakeRecords(rows)
    app = PaneApp(pane, records)
    async with app.run_test(size=(102, 14)) as pilot:
        await shown(pane, pilot, records, 251)
        signs, bars = pane.text().splitlines()[:2]
        assert signs.index("✖") > 95 and not bars[20:80].strip()
        await pilot.press("v")
        signs = pane.text().splitlines()[0]
        assert 50 <= signs.index("▼") <= 52 and pane.text().splitlines()[6].strip(" █│") == ""
        assert "by records" in pane.text()
        await pilot.press("right")
        assert app.gone_to[-1].time == int(rows["time"][260])
        await pilot.press("left_parenthesis")
        assert (pane.start, pane.end) == (10, 510)
        await pilot.click(pane, offset=(100, 3))
        assert app.gone_to[-1].time == int(rows["time"][505])
        await pilot.press("v")
        assert (pane.start, pane.end) == (0, int(rows["time"][-1]))


@piloted
async def test_a_live_run_has_a_scale_with_room() -> None:
    pane = TimelinePane()
    records = run_of(300)
    async with PaneApp(pane, records).run_test(size=(102, 14)) as pilot:
        await shown(pane, pilot, records, running=True)
        assert pane.end == 500_000_000
        bars = pane.text().splitlines()[3]
        assert bars[50].strip() and not bars[70:].strip()


@piloted
async def test_an_empty_run() -> None:
    pane = TimelinePane()
    async with PaneApp(pane, FakeRecords()).run_test(size=(80, 10)) as pilot:
        await shown(pane, pilot, FakeRecords())
        await pilot.press("right", "left", "enter", "left_square_bracket", "left_parenthesis", "f")
        assert "0.000 000 000" in pane.text()


def test_rows_are_not_changed() -> None:
    records = run_of()
    before = records.all.copy()
    Density().counts(records, 0, 10**9, 50, 0)
    assert np.array_equal(before, records.all)
