"""Texts looked for in records by the million: the same are found as by writing each record out, kept values or not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes_records import PaneApp, made, piloted, status
from xentui.engine.expression import Expression
from xentui.engine.trace import COLUMNS, KIND_NAMES, U64, Kind, Record, dtype
from xentui.engine.trace_decode import hypercall_text, layout
from xentui.engine.xen import refusals
from xentui.engine.xen.abi import hypercalls
from xentui.recording.reader import Recording
from xentui.recording.writer import RecordingWriter
from xentui.screens import records as records_module
from xentui.screens.records import CHUNK, Matches, RecordedTrace, search
from xentui.screens.trace import TracePane

WIDTHS = {1: 32, 2: 64}
NARROW = frozenset({1})
BASES = [0x7F00_0000_0000, 0xFFFF_8880_0000_0000, 0xC000_1000, 0x7FF0, 0, U64 - 40]


@st.composite
def nearby(draw: st.DrawFn) -> st.SearchStrategy[int]:
    """Values as records of one run have them: near to each other, now and then any."""
    base, bits = draw(st.sampled_from(BASES)), draw(st.sampled_from([0, 4, 12, 30]))
    near = st.integers(0, (1 << bits) - 1).map(lambda step: (base + step) & U64)
    return near if draw(st.booleans()) else st.one_of(near, near, st.integers(0, 12), st.integers(0, U64))


@st.composite
def runs(draw: st.DrawFn) -> list[Record]:
    """Records of a few kinds, the values of each field alike."""
    kinds = draw(st.lists(st.sampled_from([*KIND_NAMES, 1, 1, 2, 200]), min_size=1, max_size=3))
    numbers = draw(st.lists(st.sampled_from([*hypercalls.NAMES, refusals.NO_TABLE, 300]), min_size=1, max_size=2))
    values = {name: draw(nearby()) for name in "abcd"}
    one = st.builds(
        Record,
        time=st.integers(0, 1 << 40),
        rip=st.just(0xC000_0000),
        kind=st.sampled_from(kinds),
        vcpu=st.just(0),
        domain=st.integers(1, 2),
        number=st.sampled_from(numbers),
        result=st.sampled_from([0, 1, 0x7F00, -22 & U64]),
        **values,
    )
    return draw(st.lists(one, min_size=1, max_size=30))


def texts(record: Record) -> Iterator[str]:
    """What a record says, written out: its name, and each of its values with its name."""
    if record.kind in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY):
        yield hypercall_text(min(record.number, 255))
    else:
        yield KIND_NAMES.get(record.kind, f"kind_{record.kind}")
    for slot in layout(record.kind, record.number & 0xFF, WIDTHS[record.domain]):
        yield f"{slot.name}={slot.show(slot.read(record))}"


@st.composite
def sought(draw: st.DrawFn, rows: list[Record]) -> str:
    """A piece of what one of the records says, or digits, as a pattern that stands for itself."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.text(alphabet="0x17f8=", min_size=1, max_size=5))
    said = draw(st.sampled_from(list(texts(draw(st.sampled_from(rows))))))
    at = draw(st.integers(0, len(said) - 1))
    plain = re.match(r"[\w=, -]*", said[at : at + draw(st.integers(1, 14))])
    return plain.group() if plain and plain.group() else "0"


class Kept(dict[str, Any]):
    """Columns that keep what was worked out of them."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        super().__init__((name, rows[name]) for name, _ in COLUMNS)
        self.kept: dict[Any, Any] = {}

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_text_is_found_where_the_record_written_out_has_it(data: st.DataObject) -> None:
    rows = data.draw(runs())
    array = np.array(rows, dtype())
    kept = Kept(array)
    for _ in range(2):  # the second time of what the first has kept
        text = data.draw(sought(rows))
        expression = Expression.parse(f'~ "{text}"', {}, WIDTHS)
        expected = [any(text.lower() in said.lower() for said in texts(row)) for row in rows]
        assert expression.mask(array).tolist() == expected
        assert expression.mask(kept).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_pattern_is_found_where_the_record_written_out_has_it(data: st.DataObject) -> None:
    rows = data.draw(runs())
    pattern = data.draw(st.sampled_from(["7[ef]0", "0x.*f$", "^a=", "=0x[0-9]", "(c0|80)00", "f{3}", "7f0|c00"]))
    expected = [any(re.search(pattern, said, re.IGNORECASE) for said in texts(row)) for row in rows]
    assert Expression.parse(f'~ "{pattern}"', {}, WIDTHS).mask(np.array(rows, dtype())).tolist() == expected


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    """Three chunks, the last of them short."""
    rows = made(2 * CHUNK + 1000)
    rows["a"] += np.where(rows["kind"] == Kind.PAGE_FAULT, np.arange(len(rows), dtype=np.uint64), np.uint64(0))
    path = tmp_path_factory.mktemp("text") / "text.xtrace"
    with RecordingWriter(str(path), {}) as writer:
        for start in range(0, len(rows), CHUNK):
            writer.trace_chunk(memoryview(rows[start : start + CHUNK].tobytes()))
        writer.close({})
    with Recording(str(path)) as opened:
        yield opened


SOUGHT = ("~ beef", "~ cr2=0xbef8", "~ 1000", "~ 7ff0", "~ mmu", "~ EINVAL", "~ deadbeef")


def found(source: RecordedTrace, text: str) -> list[int]:
    """The numbers of the records that a filter leaves."""
    matches = Matches(source, Expression.parse(text, {}, WIDTHS))
    while not matches.complete:
        matches.advance(0.0)
    return matches.numbers(0, len(matches))


def plainly(recording: Recording, text: str) -> list[int]:
    """The same, without chunks and without anything kept."""
    return np.flatnonzero(Expression.parse(text, {}, WIDTHS).mask(recording.records())).tolist()


def test_what_was_read_ahead_is_not_read_again(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    source = RecordedTrace(recording)
    expected = {text: plainly(recording, text) for text in SOUGHT}
    assert expected["~ beef"] and expected["~ cr2=0xbef8"] and not expected["~ deadbeef"]
    steps = 1
    while source.read_ahead(NARROW, 0.0):
        steps += 1
    assert steps > 1, "a piece at a time"

    def unpacked(*_: Any) -> None:
        raise AssertionError("a column is unpacked again")

    monkeypatch.setattr(recording, "columns", unpacked)
    assert {text: found(source, text) for text in SOUGHT} == expected
    wanted = Expression.parse("~ cr2=0xbef8", {}, WIDTHS)
    assert search(source, wanted, 0, 1, 60)[0] == expected["~ cr2=0xbef8"][0]
    assert search(source, wanted, source.end, -1, 60)[0] == expected["~ cr2=0xbef8"][-1]


def test_where_there_is_no_room_all_the_same_is_found(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "_KEPT_BYTES", 400_000)
    source = RecordedTrace(recording)
    while source.read_ahead(NARROW, 0.0):
        pass
    assert {text: found(source, text) for text in SOUGHT} == {text: plainly(recording, text) for text in SOUGHT}
    assert len([key for key in source._kept if key[1] == 2 * CHUNK]) == 0, "the last chunk had no room"


@piloted
async def test_a_pane_over_a_recording_reads_ahead_while_it_is_idle(recording: Recording) -> None:
    source = RecordedTrace(recording)
    app = PaneApp(TracePane(), source)  # type: ignore[arg-type]
    async with app.run_test() as pilot:
        rows = recording.records()
        state = status(type("Rows", (), {"all": rows, "end": len(rows)})())  # type: ignore[arg-type]
        app.pane.show({}, state)
        for _ in range(500):
            await pilot.pause(0.005)
            if (NARROW, source.end) in source._ahead.items():
                break
        assert source._ahead == {NARROW: source.end}, "once, for the word sizes that the domains have"
        assert not source.read_ahead(NARROW, 0.0)
