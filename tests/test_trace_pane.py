"""The trace pane on made-up records: what it shows at three sizes, and every key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes_records import SIZES, FakeRecords, PaneApp, made, piloted, status
from xentui.engine.expression import Expression
from xentui.engine.trace import Kind, Record
from xentui.screens.records import Matches, search
from xentui.screens.trace import TracePane
from xentui.screens.trace_lines import Shape, clock, line, span
from xentui.screens.trace_summary import Summary, picture, quantile
from xentui.screens.words import shortened


@asynccontextmanager
async def shown(
    records: FakeRecords, now: int | None = None, size: tuple[int, int] = (120, 40)
) -> AsyncIterator[tuple[TracePane, Any]]:
    """A pane over records, and the pilot."""
    app = PaneApp(TracePane(), records)
    async with app.run_test(size=size) as pilot:
        app.pane.show({}, status(records, now))
        await settled(app.pane, pilot)
        yield app.pane, pilot  # type: ignore[misc]


async def settled(pane: Any, pilot: Any) -> None:
    """Wait until filters and searches have looked at everything."""
    for _ in range(2000):
        await pilot.pause(0.002)
        model = pane.model
        if model.list.complete and model.searching is None and pane._summed():
            return
    raise AssertionError("the pane does not come to an end")


def body(pane: TracePane) -> list[str]:
    """The lines of the list."""
    return [line for line in pane.text().splitlines()[1 : 1 + pane.rows_height] if line.strip()]


@pytest.mark.parametrize("size", SIZES)
@piloted
async def test_lines_say_when_who_what_and_how_it_ended(size: tuple[int, int]) -> None:
    async with shown(FakeRecords(made(24)), size=size) as (pane, _):
        lines = [line.rstrip(" │█") for line in body(pane)]
        assert any("alpha" in line and "update_va_mapping(va=0xc0001000" in line for line in lines)
        (failed, *_) = [line for line in lines if "event_channel_op" in line]
        assert failed.endswith("-EINVAL") and "beta" in failed
        crossed = next(line for line in lines if "direct_trap" in line)
        assert crossed.endswith("3→1") and "alpha" in crossed
        assert next(line for line in lines if "page_fault" in line).endswith("3→0→1")
        places = {line.index("0.000 0") for line in lines}
        assert len(places) == 1, "times line up"
        ends = {len(line) for line in lines if line.endswith(("→1", "-EINVAL"))}
        assert len(ends) == 1, "results line up"
        assert all(len(line) <= size[0] for line in pane.text().splitlines())
        assert ("+1.0µs" in pane.text()) == (size[0] >= 100)


@piloted
async def test_a_million_records_cost_what_is_seen() -> None:
    records = FakeRecords(made(1_000_000))
    async with shown(records) as (pane, pilot):
        assert "1 000 000 records" in pane.text().splitlines()[0]
        records.reads = 0
        for key in ("pageup", "up", "ctrl+home", "down", "ctrl+end"):
            await pilot.press(key)
        assert records.reads < 40, "only what is on the screen is read"
        assert pane.model.cursor == 999_999


@piloted
async def test_it_follows_until_a_line_is_selected_and_again_on_a_key() -> None:
    records = FakeRecords(made(100))
    async with shown(records) as (pane, pilot):
        assert "▶" in body(pane)[-1] and "follows" in pane.text()
        await pilot.press("up", "up")
        assert pane.model.cursor == 97 and not pane.model.follow
        records.put(made(100, start=200_000))
        pane.show({}, status(records, running=True))
        await settled(pane, pilot)
        assert pane.model.cursor == 97 and "0.000 097 000" in pane.text()
        await pilot.press("f")
        assert pane.model.cursor == 199 and "▶" in body(pane)[-1]
        pane.show({}, status(FakeRecords(records.all), running=True))


@piloted
async def test_what_lies_ahead_is_shown_behind_now_and_enter_goes_there() -> None:
    records = FakeRecords(made(100))
    async with shown(records, now=50) as (pane, pilot):
        lines = body(pane)
        (now,) = [at for at, line in enumerate(lines) if "▶" in line]
        assert "0.000 049 000" in lines[now] and 3 < now < len(lines) - 3
        ahead = pane._strips[1 + now + 1]
        assert len({str(segment.style.color) for segment in ahead if segment.text.strip()}) == 1, "faint, all of it"
        await pilot.press("down", "down", "enter")
        (wish,) = pilot.app.gone_to
        assert (wish.record, wish.time, wish.position) == (51, None, None)
        pane.show({}, status(records, now=52))  # the engine came there
        await settled(pane, pilot)
        assert pane.model.cursor == 51 and "▶" in next(line for line in body(pane) if "0.000 051 000" in line)


@piloted
async def test_under_a_filter_now_is_behind_the_last_that_happened() -> None:
    records = FakeRecords(made(100))
    async with shown(records, now=50) as (pane, pilot):
        pane.filter("domain_create or page_fault")  # 0, 7, 19, 31, 43, 55, …
        await settled(pane, pilot)
        (now,) = [line for line in body(pane) if "▷" in line]
        assert "0.000 043 000" in now and "▶" not in pane.text()
        pane.show({}, status(records, now=60))
        pane.show({}, status(records, now=52))  # gone to, so that what is selected is behind the last shown
        await settled(pane, pilot)
        assert pane.model.cursor == 43
        await pilot.press("down", "enter")
        assert [wish.record for wish in pilot.app.gone_to] == [55]
        pane.show({}, status(records, now=56))
        await settled(pane, pilot)
        assert "0.000 055 000" in next(line for line in body(pane) if "▶" in line)


@piloted
async def test_what_runs_on_from_the_past_is_followed() -> None:
    records = FakeRecords(made(5000))
    async with shown(records) as (pane, pilot):
        pane.show({}, status(records, now=1000))
        await settled(pane, pilot)
        assert not pane.model.follow
        pane.show({}, status(records, now=1100, running=True))
        await settled(pane, pilot)
        assert pane.model.follow and "▶" in pane.text()
        await pilot.press("up")
        pane.show({}, status(records, now=2000, running=True))
        await settled(pane, pilot)
        assert "0.001 098 000" in pane.text(), "who looks at something is let alone"


@piloted
async def test_a_moment_chosen_elsewhere_is_shown() -> None:
    records = FakeRecords(made(5000))
    async with shown(records) as (pane, pilot):
        pane.show({}, status(records, now=1234))
        await settled(pane, pilot)
        assert "▶" in next(line for line in body(pane) if clock(1_233_000) in line)


@piloted
async def test_filters_by_expression_domain_and_kind() -> None:
    records = FakeRecords(made(1200))
    async with shown(records) as (pane, pilot):
        pane.filter("hypercall and result < 0")
        await settled(pane, pilot)
        assert "100 of 1 200" in pane.text().splitlines()[0]
        assert all("event_channel_op" in line for line in body(pane))
        with pytest.raises(ValueError, match="there is no 'prot'; did you mean port"):
            pane.filter("prot == 3")
        assert pane.filter_text == "hypercall and result < 0", "a filter that is none changes nothing"
        await pilot.press("escape", "d")
        await settled(pane, pilot)
        assert pane.text().splitlines()[0].startswith(" alpha: ")
        assert all("beta" not in line for line in body(pane))
        await pilot.press("d", "k")
        await settled(pane, pilot)
        assert pane.text().startswith(" beta · hypercalls: 200 of 1 200")
        await pilot.press("D", "D", "K")
        await settled(pane, pilot)
        assert pane.text().startswith(" 1 200 records")
        assert pane.filter_completions("domain == al") == ["domain == alpha"]
        assert "port == 3 and page_fault" in pane.filter_completions("port == 3 and page_")


@piloted
@pytest.mark.parametrize("branch", [0, 1])
async def test_it_follows_again_when_the_past_is_left(branch: int) -> None:
    """By going live, or by a branch: what happens there is the newest moment."""
    records = FakeRecords(made(100))
    async with shown(records) as (pane, pilot):
        pane.show({}, status(records, 50))
        await settled(pane, pilot)
        assert pane.model.cursor == 49 and "follows" not in pane.text()
        if branch:
            records.truncate(50)
            records.put(made(5, start=10**9))
        pane.show({}, status(records, branch=branch))
        await settled(pane, pilot)
        assert "follows" in pane.text() and "▶" in body(pane)[-1] and pane.model.cursor == records.end - 1


@piloted
async def test_a_filter_follows_what_comes_and_forgets_what_the_ring_drops() -> None:
    records = FakeRecords(made(1200), capacity=2000)
    async with shown(records) as (pane, pilot):
        pane.filter("page_fault")
        await settled(pane, pilot)
        for start in range(1, 5):
            records.put(made(1200, start=start * 2_000_000))
            pane.show({}, status(records))
            await settled(pane, pilot)
        numbers = [
            number for number in range(records.first, records.end) if records.all["kind"][number] == Kind.PAGE_FAULT
        ]
        assert len(pane.model.list) == len(numbers)
        assert pane.model.list.numbers(0, 10**6) == numbers
        assert pane.model.cursor == numbers[-1]
        assert "older ones are gone (4 000)" in pane.text()


@piloted
async def test_what_is_looked_at_stays_in_place() -> None:
    records = FakeRecords(made(3000), capacity=2000)
    async with shown(records) as (pane, pilot):
        await pilot.press("pageup", "pageup")
        first = body(pane)[0]
        for start in range(1, 4):
            records.put(made(300, start=start * 10_000_000))
            pane.show({}, status(records, running=True))
            await settled(pane, pilot)
            assert body(pane)[0].rstrip(" │█") == first.rstrip(" │█")
        cursor = pane.model.cursor
        pane.filter("hypercall")
        await settled(pane, pilot)
        assert pane.model.cursor == cursor
        kinds, times = records.all["kind"], records.all["time"]
        following = next(at for at in range(cursor, records.end) if kinds[at] == Kind.HYPERCALL)
        assert body(pane)[0].split("  ")[1].startswith(clock(int(times[following]))), "the same time is seen"


@piloted
async def test_search_goes_on_from_the_selected_record() -> None:
    records = FakeRecords(made(100_000))
    async with shown(records) as (pane, pilot):
        await pilot.press("ctrl+home")
        pane.look_for("event_send and time > 50ms")
        await settled(pane, pilot)
        first = pane.model.cursor
        assert records.all["kind"][first] == Kind.EVENT_SEND and 50_000 < first <= 50_012
        await pilot.press("n")
        await settled(pane, pilot)
        assert pane.model.cursor == first + 12
        await pilot.press("N", "N")
        await settled(pane, pilot)
        assert pane.model.cursor == first and "no earlier record matches" in pane.text()
        await pilot.press("asterisk")
        await settled(pane, pilot)
        assert pane.model.cursor == first + 12 and pane.model.wanted.text == "event_send"
        pane.look_for("mmu_up")  # no name: a text
        await settled(pane, pilot)
        assert records.all["number"][pane.model.cursor] == 1
        with pytest.raises(ValueError):
            pane.look_for("port == ")


@piloted
async def test_the_search_prompt() -> None:
    async with shown(FakeRecords(made(100))) as (pane, pilot):
        await pilot.press("ctrl+home", "ctrl+f", *"~ 0xbeef", "enter")
        await settled(pane, pilot)
        assert pane.model.cursor == 7
        await pilot.press("ctrl+f", *" prot", "enter")
        await settled(pane, pilot)
        await pilot.press("ctrl+f", "escape")
        assert pane.model.cursor == 7


@piloted
async def test_n_is_left_to_others_while_nothing_is_searched_for() -> None:
    async with shown(FakeRecords(made(10))) as (pane, _):
        assert pane.check_action("next", (1,)) is False
        pane.model.look_for("iret")
        assert pane.check_action("next", (1,)) is True


@pytest.mark.parametrize("size", SIZES)
@piloted
async def test_the_sum_of_it(size: tuple[int, int]) -> None:
    async with shown(FakeRecords(made(1200)), size=size) as (pane, pilot):
        await pilot.press("a")
        await settled(pane, pilot)
        lines = pane.text().splitlines()
        alpha = next(line for line in lines if line.startswith(" alpha"))
        assert alpha.split()[1:5] == ["600", "100", "100", "100"]
        update = next(line for line in lines if line.startswith(" update_va_mapping"))
        assert update.split()[1] == "100"
        await pilot.press("d")  # narrowed, the sum is anew
        await settled(pane, pilot)
        assert not any(line.startswith(" beta") for line in pane.text().splitlines())
        await pilot.press("escape")
        assert "update_va_mapping(" in pane.text()


@piloted
async def test_mouse_selects_goes_and_scrolls() -> None:
    records = FakeRecords(made(1000))
    async with shown(records) as (pane, pilot):
        await pilot.click(pane, offset=(20, 6))
        number = pane.model.cursor
        assert not pane.model.follow and number < 999
        await pilot.click(pane, offset=(20, 6), times=2)
        assert pilot.app.gone_to[-1].record == number
        pane._scroll(-30)
        assert pane.model.top < 960
        await pilot.click(pane, offset=(119, 2))  # the bar
        assert pane.model.cursor < 100


@piloted
async def test_another_theme_is_another_look_and_the_same_text() -> None:
    async with shown(FakeRecords(made(100)), now=80) as (pane, pilot):
        before, text = [strip._segments for strip in pane._strips], pane.text()
        pilot.app.theme = "textual-light"
        await pilot.pause()
        await pilot.pause()
        assert pane.text() == text
        for old, new in zip(before, pane._strips, strict=True):
            assert old != new._segments


@piloted
async def test_copy() -> None:
    async with shown(FakeRecords(made(100))) as (_, pilot):
        await pilot.press("ctrl+home", "down", "down", "y")
        assert "update_va_mapping(va=0xc0001000" in pilot.app.clipboard


@piloted
async def test_no_records_another_history_and_a_narrow_window() -> None:
    records = FakeRecords()
    async with shown(records, size=(30, 10)) as (pane, pilot):
        assert "0 records" in pane.text()
        await pilot.press("up", "enter", "a", "a", "n", "y")
        records.put(made(50))
        pane.show({}, status(records))
        await settled(pane, pilot)
        assert all(len(line) <= 30 for line in pane.text().splitlines())
        records.truncate(20)
        records.put(made(5, start=10**9))
        pane.show({}, status(records, branch=1))
        await settled(pane, pilot)
        assert "25 records" in pane.text() and len(pane.model.list) == 25
        await pilot.resize_terminal(100, 30)
        await settled(pane, pilot)
        assert "1.000 004 000" in pane.text()


# --- what it stands on ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=6), st.integers(50, 600), st.integers(0, 700))
def test_matches_are_those_of_one_look(parts: list[int], capacity: int, number: int) -> None:
    records = FakeRecords(capacity=capacity)
    matches = Matches(records, Expression.parse("page_fault or event_send"))
    for part in parts:
        records.put(made(part, start=records.end * 1000))
        matches.advance(10)
    kinds = records.all["kind"]
    expected = [at for at in range(records.first, records.end) if kinds[at] in (Kind.PAGE_FAULT, Kind.EVENT_SEND)]
    assert matches.complete and matches.numbers(0, len(matches)) == expected
    assert matches.place(number) == sum(at < number for at in expected)
    assert matches.numbers(3, 7) == expected[3:7]
    end = min(number, records.end)
    records.truncate(max(end, 1))
    matches.advance(10)
    assert matches.numbers(0, 10**6) == [at for at in expected if records.first <= at < records.end]


class Arriving(FakeRecords):
    """Records of which one more has come whenever somebody looks how many there are."""

    looks = 100

    @property
    def end(self) -> int:
        self.looks += 1
        return min(self.looks, len(self.all))


def test_a_source_that_never_stands_still_is_not_chased() -> None:
    """All that was there is enough until the next refresh, which finds what has come since."""
    records = Arriving(made(1000))
    matches = Matches(records, Expression.parse("page_fault or event_send"))
    summary = Summary(records, matches, {})
    assert not matches.complete and not summary.complete
    matches.advance(10)
    summary.advance(10)
    found = len(matches)
    assert found and matches.complete and summary.complete
    records.looks = len(records.all)
    matches.advance(10)
    kinds = records.all["kind"]
    assert len(matches) == np.isin(kinds, (Kind.PAGE_FAULT, Kind.EVENT_SEND)).sum() > found


def test_search_in_pieces() -> None:
    records = FakeRecords(made(200_000))
    wanted = Expression.parse("time == 150000000")
    stood, found = 0, None
    while found is None and stood < records.end:
        found, stood = search(records, wanted, stood, 1, 0.0)
    assert found == 150_000
    assert search(records, wanted, 200_000, -1, 10)[0] == 150_000
    assert search(records, wanted, 150_001, 1, 10) == (None, 200_000)
    assert search(records, wanted, 150_000, -1, 10) == (None, 0)


def test_intervals_are_since_the_ring_crossing_before() -> None:
    records = FakeRecords(made(240_000, step=250))
    summary = Summary(records, Matches(records, Expression.parse("page_fault")), {1: 32})
    while not summary.complete:
        summary.advance(0)
    ((name, _, count, histogram),) = summary.rows()
    assert (name, count) == ("page_fault", 20_000)
    # the record two before it is alpha's direct trap
    assert int(histogram.sum()) == 20_000 and 400 < quantile(histogram, 0.5) < 600
    assert picture(histogram).strip() == "█"


def test_times_line_up() -> None:
    assert clock(1_234_567_891, 3) == "  1.234 567 891"
    assert [span(ns) for ns in (0, 999, 1000, 123_456, 4_100_000, 10**11)] == [
        "+0ns", "+999ns", "+1.0µs", "+123µs", "+4.1ms", "+100s",
    ]  # fmt: skip


def test_a_long_name_is_cut_with_a_sign_and_keeps_its_vcpu() -> None:
    shape = Shape(width=80, name=12)
    record = Record(*[0] * 11)._replace(kind=Kind.BLOCK, domain=1, vcpu=3)
    assert line(record, 0, None, {1: "vmlinuz-6.1.0-amd64"}, 64, shape, "  ").domain == "vmlinuz-6…·3 "
    assert line(record, 0, None, {1: "alpha"}, 64, shape, "  ").domain == "alpha·3      "
    assert [shortened("alpha", cells) for cells in (0, 1, 4, 5)] == ["", "…", "alp…", "alpha"]


def test_rows_of_numpy_are_left_as_they_are() -> None:
    rows = made(24)
    before = rows.copy()
    Summary(FakeRecords(rows), Matches(FakeRecords(rows), Expression.parse("iret")), {}).advance(10)
    assert np.array_equal(rows, before)


def test_arguments_take_what_the_end_leaves() -> None:
    """In 80 columns: what a demonstration's sentence is about is not cut for the sake of an empty column."""
    shape = Shape(width=80, name=6)

    def shown(kind: Kind, number: int, a: int, b: int, c: int, d: int) -> str:
        record = Record(300_168_485, 0, kind, 0, 1, number, a, b, c, d, 0)
        made = line(record, 7, None, {1: "demo32", 2: "demo64"}, 32, shape, "  ")
        assert len(made.text) <= made.cells <= 79
        return made.text

    assert shown(Kind.EVENT_SEND, 4, 2, 4, 1, 0).endswith("port=4 peer=2 peer_port=4 already_pending=yes")
    fault = shown(Kind.PAGE_FAULT, 6, 0xC0019000, 0, 0xC00010B4, 0x103)
    assert "error_code=write|user cr2=0xc0019000" in fault and fault.endswith("3→0→1")
