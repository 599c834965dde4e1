"""Ring crossings: every way counted, direct beside through Xen, at three sizes and back in time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes_records import SIZES, FakeRecords, PaneApp, made, piloted, status
from xentui.engine.trace import Kind
from xentui.screens.crossing_counts import CrossingCounts, Way
from xentui.screens.crossings import CrossingsPane, big


def counted(records: FakeRecords, now: int | None = None, counter: CrossingCounts | None = None) -> Any:
    """What is counted up to a moment."""
    counter = counter or CrossingCounts()
    while not counter.update(records, status(records, now), 1):
        pass
    return counter.counts()


def test_every_way_is_counted_by_domain() -> None:
    counts = counted(FakeRecords(made(1200)))
    assert counts == {
        1: {
            Way("hypercalls", 1, 1, False): 100,  # a 32-bit guest's kernel calls from ring 1
            Way("system calls", 3, 1, True): 100,
            Way("page faults", 3, 1, False): 100,
        },
        2: {
            Way("hypercalls", 3, 3, False): 200,
            Way("system calls", 3, 3, False): 100,
            Way("upcalls", 3, 3, False): 100,
        },
    }
    assert [way.rings for way in sorted(counts[1], key=lambda way: way.order)] == ["3→1", "3→0→1", "1→0→1"]


def test_a_system_call_that_was_not_let_through_is_one_all_the_same() -> None:
    rows = made(12)
    rows["kind"][5] = Kind.SOFTWARE_INTERRUPT
    assert Way("system calls", 3, 1, False) in counted(FakeRecords(rows))[1]
    rows["number"][5] = 0x21
    assert Way("int n", 3, 1, False) in counted(FakeRecords(rows))[1]


def test_going_back_counts_less_and_forth_again_the_same() -> None:
    records, counter = FakeRecords(made(200_000)), CrossingCounts()
    whole = counted(records, None, counter)
    for now in (130_000, 5, 199_999, 0, 70_000):
        assert counted(records, now, counter) == counted(records, now)
    assert counted(records, None, counter) == whole


def test_what_the_ring_dropped_before_the_pane_was_open_is_not_counted_twice() -> None:
    records, counter = FakeRecords(made(3000), capacity=1200), CrossingCounts()
    assert sum(sum(ways.values()) for ways in counted(records, None, counter).values()) == 700
    records.put(made(12, start=10**8))
    assert sum(sum(ways.values()) for ways in counted(records, None, counter).values()) == 707


def test_large_digits() -> None:
    rows = big(1234567890)
    assert len(rows) == 3 and len({len(row) for row in rows}) == 1
    assert len({tuple(row[at * 4 : at * 4 + 3] for row in big(int("1234567890"))) for at in range(13)}) >= 10


@pytest.mark.parametrize("size", [*SIZES, (38, 20)])
@piloted
async def test_rings_are_drawn_with_what_crosses_them(size: tuple[int, int]) -> None:
    records = FakeRecords(made(1200))
    pane = CrossingsPane()
    app = PaneApp(pane, records)
    async with app.run_test(size=size) as pilot:
        pane.show({}, status(records))
        await pilot.pause()
        lines = pane.text().splitlines()
        assert all(len(line) <= size[0] for line in lines)
        start = next(at for at, line in enumerate(lines) if line.startswith(" alpha"))
        direct, faults, calls = [line for line in lines[start + 1 :] if any(c in line for c in "●◆")][:3]
        assert direct.strip().startswith("system calls") and "●" in direct and "▶" in direct and "◆" not in direct
        assert direct.index("▶") < faults.index("◆"), "a direct trap stops before Xen"
        assert faults.index("●") < faults.index("◀") < faults.index("◆")
        assert calls.index("◀") == direct.index("▶")
        assert faults.index("◆") > size[0] * 0.6 or size[0] < 64, "the rings stand as far apart as there is room"
        assert "100" in direct and ("3→1" in direct) == (size[0] >= 64)
        if size[1] >= 30:
            assert "system calls direct" in lines[0] and "▀" in lines[1]
        else:
            assert "direct 100" in "".join(lines[:2]) and "through Xen 100" in "".join(lines[:2])
        await pilot.press("d")
        assert " beta" not in pane.text()


@piloted
async def test_where_there_is_little_room_both_domains_are_seen() -> None:
    """What matters most of each, and a word on the rest."""
    records = FakeRecords(made(1200))
    pane = CrossingsPane()
    async with PaneApp(pane, records).run_test(size=(80, 14)) as pilot:
        pane.show({}, status(records))
        await pilot.pause()
        lines = pane.text().splitlines()
        assert sum("system calls" in line for line in lines[3:]) == 2 and any("page faults" in line for line in lines)
        assert not any("upcalls" in line for line in lines)
        assert lines[-1] == " … more: z gives room, d shows one domain at a time" and len(lines) <= 14
        await pilot.press("d")
        assert "hypercalls" in pane.text() and "…" not in pane.text()


@piloted
async def test_what_happens_is_lit_for_a_moment() -> None:
    records = FakeRecords(made(120))
    pane = CrossingsPane()
    async with PaneApp(pane, records).run_test(size=(120, 40)) as pilot:
        pane.show({}, status(records))
        await pilot.pause()
        assert "━" not in pane.text(), "what was there already does not light up"
        records.put(made(12, start=10**9))
        pane.show({}, status(records))
        assert "━" in pane.text() and "○" in pane.text()
        await pilot.pause(0.8)
        assert "━" not in pane.text()


@piloted
async def test_before_anything_happens() -> None:
    pane = CrossingsPane()
    async with PaneApp(pane, FakeRecords()).run_test(size=(80, 24)):
        pane.show({}, status(FakeRecords()))
        assert "No ring was crossed yet" in pane.text()
