"""Going back in time: snapshots, steps back, branches; and that nothing of it changes what happens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from tests.test_process import WAIT, engine, typed, until
from xentui.engine import messages as msg
from xentui.engine.actions import Action
from xentui.engine.process import Engine
from xentui.engine.timeline import FEW, KEPT, memory_left
from xentui.engine.trace import Kind

TYPED = (b"info\rtime\rspam\r", None)


def to_the_end(started: Engine) -> msg.Status:
    """Run, idle time passed over, until nothing can happen any more."""
    started.set_warp(True)
    started.run()
    return started.wait(WAIT)


def content(started: Engine) -> bytes:
    """Every trace record so far."""
    return started.records.rows(0).tobytes()


@pytest.fixture(scope="module")
def reference() -> tuple[bytes, bytes, msg.Status]:
    """The trace and console of a run in one go, and how it ended."""
    with engine("hello64", "bench32", typist=TYPED) as started:
        status = to_the_end(started)
        assert status.stop == "starved" and status.live
        return content(started), started.consoles[1].text(), status


@pytest.fixture
def done(reference: object) -> Iterator[Engine]:
    """The same run, at its end."""
    with engine("hello64", "bench32", typist=TYPED) as started:
        to_the_end(started)
        yield started


def test_a_run_in_another_process_is_the_same(done: Engine, reference: tuple[bytes, bytes, msg.Status]) -> None:
    assert content(done) == reference[0]
    assert done.status.position == reference[2].position


def test_going_back_shows_the_past(done: Engine) -> None:
    end = done.status
    done.goto(time=end.time // 2)
    status = done.wait(WAIT)
    assert end.time // 2 <= status.time < end.time // 2 + 1_000_000
    assert not status.live and status.end_position == end.position and status.end_records == end.records
    assert 0 < status.records < end.records
    assert done.look("machine.summary")["records"] == status.records
    done.goto(time=0)
    assert done.wait(WAIT).records < 10
    done.live()
    status = done.wait(WAIT)
    assert (status.position, status.records, status.live) == (end.position, end.records, True)


def test_rewinding_and_running_on_gives_the_same_trace(
    done: Engine, reference: tuple[bytes, bytes, msg.Status]
) -> None:
    done.goto(time=done.status.time // 3)
    done.wait(WAIT)
    done.processes.ring[64:] = bytes(len(done.processes.ring) - 64)
    done.goto(time=0)
    done.wait(WAIT)
    done.processes.ring[64:] = bytes(len(done.processes.ring) - 64)  # whatever is read from here on was written again
    beginning = done.status.records
    status = to_the_end(done)
    assert status.position == reference[2].position
    assert done.records.rows(beginning).tobytes() == reference[0][beginning * 64 :]
    assert done.consoles[1].text() == reference[1], "and nothing is printed twice"


def test_any_mixture_gives_the_same_trace(reference: tuple[bytes, bytes, msg.Status]) -> None:
    chance = random.Random(7)
    end = reference[2]
    with engine("hello64", "bench32", typist=TYPED) as started:
        started.set_warp(True)
        for _ in range(60):
            known = max(started.status.end_position, 2)
            match chance.randrange(6):
                case 0:
                    started.run()
                    started.wait(chance.random() * 0.05)
                    started.pause()
                case 1:
                    started.step(chance.randrange(1, 200))
                case 2:
                    started.step_back(chance.randrange(1, 50))
                case 3:
                    started.goto(position=chance.randrange(known))
                case 4:
                    started.goto(record=chance.randrange(max(1, started.status.end_records)))
                case 5:
                    started.goto(position=min(end.position, known + chance.randrange(2_000_000)))
            status = started.wait(WAIT)
            assert not status.running
        started.live()
        started.wait(WAIT)
        status = to_the_end(started)
        assert status.position == end.position
        assert content(started) == reference[0]
        assert started.consoles[1].text() == reference[1]
        assert len(started.branches) == 1


def test_steps_back_are_steps_forward_undone(done: Engine) -> None:
    """Each boundary that a step met is met again, and nothing between."""
    done.goto(record=60)
    done.wait(WAIT)
    met = [done.status.position]
    for _ in range(12):
        done.step()
        met.append(done.wait(WAIT).position)
    assert all(before < after for before, after in pairwise(met))
    for position in reversed(met[:-1]):
        done.step_back()
        assert done.wait(WAIT).position == position
    done.step(12)
    assert done.wait(WAIT).position == met[-1]
    done.step_back(7)
    assert done.wait(WAIT).position == met[-8]


def test_the_beginning_is_the_beginning(done: Engine) -> None:
    done.goto(time=0)
    first = done.wait(WAIT)
    done.step()
    done.wait(WAIT)
    done.step_back()
    assert done.wait(WAIT).records == first.records + 1, "the vCPU is on the processor, nothing executed"
    for _ in range(2):
        done.step_back()
        assert done.wait(WAIT).position == first.position
    assert any(isinstance(event, msg.Notice) for event in done.pump())


def test_going_to_a_record(done: Engine) -> None:
    """To the first moment at which it has been written: one instruction before, it was not."""
    kinds = done.records.columns("kind")
    for number in (5, int(np.flatnonzero(kinds == Kind.SCHEDULE)[2]), len(kinds) // 2):
        done.goto(record=number)
        status = done.wait(WAIT)
        assert status.records > number
        assert status.time >= done.records.time(number)  # type: ignore[operator]
        done.step_back()
        assert done.wait(WAIT).records <= number


def test_snapshots_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xentui.engine.timeline.KEPT", 6)
    with engine("bench64") as started:
        started.set_warp(True)
        for _ in range(12):
            started.run()
            started.wait(0.03)
            started.pause()
            started.wait(WAIT)
            here = started.status.position
            started.step_back()
            assert started.wait(WAIT).position < here
            started.live()
            started.wait(WAIT)
        kept = started.timeline.usable()
        assert 2 < len(kept) <= 6 < KEPT
        assert kept[0].status.records < 10, "the first one stays"


# --- branches ---------------------------------------------------------------------------------------------------------


def test_acting_in_the_past_begins_a_branch() -> None:
    with engine() as started:
        started.set_warp(True)
        started.run()
        until(started, b"> ")
        started.wait(WAIT)
        started.act(typed("spam\r"))
        end = to_the_end(started)
        assert b"You said: spam" in started.consoles[1].text()
        first, old = content(started), started.consoles[1].text()
        (_, action), *_rest = started.timeline.current.actions
        assert action == typed("spam\r")

        started.goto(time=started.branches[0].actions[0][0] // 2 - 2000)
        started.wait(WAIT)
        started.act(typed("eggs\r"))
        started.wait(WAIT)
        other = to_the_end(started)
        assert other.branch == 1 and other.live
        assert b"You said: eggs" in started.consoles[1].text() and b"spam" not in started.consoles[1].text()
        assert content(started) != first

        started.switch(0)
        status = started.wait(WAIT)
        assert (status.branch, status.position, status.records) == (0, end.position, end.records)
        assert started.consoles[1].text() == old
        started.goto(time=0)
        started.wait(WAIT)
        started.goto(position=end.position)
        started.wait(WAIT)
        assert content(started) == first

        started.switch(1)
        assert started.wait(WAIT).position == other.position
        assert b"eggs" in started.consoles[1].text()


def test_what_was_typed_happens_again() -> None:
    """Running on from the past replays what came from outside: at the same position, with the same records."""
    with engine("hello64", "hello32") as started:
        started.run()
        until(started, b"> ")
        for word in ("one", "two", "three"):
            started.act(typed(f"{word}\r"))
            until(started, f"You said: {word}".encode())
        started.pause()
        end = started.wait(WAIT)
        before = content(started)
        started.goto(time=0)
        started.wait(WAIT)
        started.goto(position=end.position)
        status = started.wait(WAIT)
        assert (status.position, status.records, status.actions) == (end.position, end.records, 3)
        assert content(started) == before
        assert len(started.branches) == 1


def test_what_cannot_be_done_is_told() -> None:
    with engine() as started:
        started.act(typed("x", domain="nobody"))
        started.look("machine.summary")
        assert any(isinstance(event, msg.Notice) and "nobody" in event.text for event in started.pump())
        assert started.timeline.current.actions == []


def test_what_could_not_be_done_happens_again_as_it_did() -> None:
    """It is refused, but it has ended a slice and idle time: it belongs to the history, and the past is the same."""
    with engine("hello64", "bench32", typist=TYPED) as started:
        started.set_warp(True)
        started.goto(position=234_567)
        started.wait(WAIT)
        for action in (Action("unpause", "hello64"), Action("send", "hello64", (77,)), Action("resume", "hello64")):
            started.act(action)
            started.step(50)
            started.wait(WAIT)
        assert sum(isinstance(event, msg.Notice) for event in started.pump()) == 3
        end = to_the_end(started)
        before, log = content(started), list(started.log)
        assert len([line for _, line in log if "cannot" in line]) == 3
        started.goto(time=0)
        started.wait(WAIT)
        started.live()
        started.wait(WAIT)
        assert started.status.position == end.position and content(started) == before and started.log == log
        assert len(started.branches) == 1


def test_few_snapshots_where_memory_runs_low(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine("hello64", typist=TYPED) as started:
        end = to_the_end(started)
        for part in range(2, 9):
            started.goto(position=end.position // part)
            started.wait(WAIT)
            started.step_back()
            started.wait(WAIT)
        assert 0 < memory_left() < 1
        monkeypatch.setattr("xentui.engine.timeline.memory_left", lambda: 0.01)
        started.goto(position=end.position // 2)
        started.wait(WAIT)
        assert len(started.timeline.snapshots) <= FEW
        started.live()
        assert started.wait(WAIT).position == end.position
        started.goto(time=0)
        assert started.wait(WAIT).records < 10
