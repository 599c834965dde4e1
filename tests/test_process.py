"""The engine in a process of its own: commands, events, its end, and what is left of it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.command import ROOT
from xentui.config import resolve_guest
from xentui.engine import messages as msg
from xentui.engine.actions import Action
from xentui.engine.process import Engine, EngineError, Setup
from xentui.engine.trace import Kind
from xentui.engine.trace_decode import seconds
from xentui.engine.views import Query, ViewError

WAIT = 60.0
"""Seconds that nothing here takes, unless it hangs."""


@contextmanager
def engine(*guests: str, cmdline: str = "", **setup: object) -> Iterator[Engine]:
    """A started engine, and none of its processes afterwards."""
    specs = [resolve_guest(name) for name in guests or ("hello64",)]
    for spec in specs:
        spec.memory = 16
        spec.cmdline = cmdline or ("scale=1 only=int80" if spec.name.startswith("bench") else "")
    with Engine.start(Setup(specs, **setup)) as started:  # type: ignore[arg-type]
        started.wait(WAIT)
        keeper = started.processes.keeper.pid
        yield started
    assert not members(keeper)


def members(session: int) -> list[int]:
    """The processes of a session (`start_new_session`), zombies not counted."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def until(started: Engine, text: bytes, domain: int = 1) -> list[msg.Event]:
    """Pump until a console has printed something; what came meanwhile."""
    events: list[msg.Event] = []
    end = time.monotonic() + WAIT
    while text not in started.consoles[domain].text():
        assert time.monotonic() < end, started.consoles[domain].text()
        select.select([started], [], [], 1)
        events += started.pump()
    return events


def typed(text: str, domain: str = "hello64") -> Action:
    return Action("type", domain, (text.encode(),))


# --- running ----------------------------------------------------------------------------------------------------------


def test_it_starts_standing_still() -> None:
    with engine() as started:
        status = started.status
        assert (status.running, status.live, status.branch, status.stop) == (False, True, 0, "")
        assert status.position == status.end_position and status.time == status.position // 2
        assert [(domain.name, domain.width, domain.vcpus) for domain in status.domains] == [("hello64", 64, 1)]


def test_run_type_pause() -> None:
    with engine() as started:
        started.run()
        until(started, b"> ")
        for _ in range(2):  # the status comes after what was printed
            started.look("machine.summary")
        assert started.status.running and started.status.end_position == started.status.position
        started.act(typed("spam\r"))
        events = until(started, b"You said: spam")
        assert [event.action for event in events if isinstance(event, msg.Acted)] == [typed("spam\r")]
        started.pause()
        status = started.wait(WAIT)
        assert not status.running and status.live
        position = status.position
        time.sleep(0.1)
        started.pump()
        assert started.status.position == position
        started.run()
        started.act(typed("poweroff\r"))
        status = started.wait(WAIT)
        assert status.stop == "finished" and status.domains == ()


def test_ends_and_the_log_are_told() -> None:
    with engine("hello64", "hello32") as started:
        started.run()
        until(started, b"> ")
        started.act(typed("crash\r"))
        events: list[msg.Event] = []
        while not any(isinstance(event, msg.Ended) for event in events):
            select.select([started], [], [], WAIT)
            events += started.pump()
        (ended,) = (event for event in events if isinstance(event, msg.Ended))
        assert (ended.domain, ended.name, ended.reason) == (1, "hello64", "crash")
        assert any("hello64: crash" in text for _, text in started.log)
        until(started, b"> ", 2)


def test_records_are_read_where_they_are_written() -> None:
    with engine() as started:
        started.run()
        until(started, b"> ")
        started.pause()
        status = started.wait(WAIT)
        (domain,) = status.domains
        kinds = started.records.columns("kind")
        assert len(kinds) == len(started.records) == status.records == status.end_records
        assert np.count_nonzero(kinds == Kind.HYPERCALL) == domain.hypercalls > 10
        assert np.count_nonzero(kinds == Kind.EVENT_SEND) == domain.events
        rows = started.records.rows(3, 7)
        assert rows["kind"].tolist() == kinds[3:7].tolist()
        assert started.records.find_time(int(rows["time"][0])) <= 3
        assert started.records.time(3) == int(rows["time"][0])


# --- questions --------------------------------------------------------------------------------------------------------


def test_views() -> None:
    with engine() as started:
        assert started.look("machine.summary")["domains"] == 1
        assert started.look("domains.list")[0]["name"] == "hello64"
        started.run()
        number = started.ask([Query("machine.summary"), Query("machine.nonsense"), Query("no.such")])
        replies: list[msg.Reply] = []
        while not replies:
            select.select([started], [], [], WAIT)
            replies = [event for event in started.pump() if isinstance(event, msg.Reply)]
        assert replies[0].id == number
        summary, *rest = replies[0].answers
        assert summary["pace"] == "exact"
        assert all(isinstance(answer, ViewError) for answer in rest)
        with pytest.raises(ViewError, match="no view"):
            started.look("machine.nonsense")
        with pytest.raises(ViewError):
            started.look("machine.summary", nonsense=1)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"no kernel at all")
    spec = resolve_guest(str(tmp_path / "kernel"))
    with Engine.start(Setup([spec])) as started:
        with pytest.raises(EngineError, match="kernel") as caught:
            started.wait(WAIT)
        assert "\n" not in str(caught.value)


def test_a_killed_engine_is_told_and_its_past_lives_on() -> None:
    with engine() as started:
        started.run()
        until(started, b"> ")
        os.kill(started.status.pid, signal.SIGSEGV)
        events: list[msg.Event] = []
        while not any(isinstance(event, msg.Failed) for event in events):
            select.select([started], [], [], WAIT)
            events += started.pump()
        assert started.status.failed and started.failure is not None
        assert "Segmentation fault" in started.failure.text
        with pytest.raises(EngineError):
            started.wait(WAIT)
        started.goto(time=1000)
        status = started.wait(WAIT)
        assert not status.failed and status.time >= 1000
        assert started.look("domains.list")[0]["name"] == "hello64"


def killed(started: Engine) -> msg.Failed:
    """The process at work is killed; what is said of that."""
    os.kill(started.status.pid, signal.SIGKILL)
    events = until_failed(started)
    return next(event for event in events if isinstance(event, msg.Failed))


def test_a_killed_engine_goes_on_from_a_snapshot_and_says_so() -> None:
    """In the exact pace what came after the snapshot happens again: nothing but time is lost."""
    with engine() as started:
        started.run()
        until(started, b"> ")
        started.act(typed("info\n"))
        until(started, b"> ")
        started.pause()
        before = started.wait(WAIT)
        failed = killed(started)
        assert "killed" in failed.text and f"at {seconds(before.time)} s" in failed.text
        kept = started.timeline.before(before.position)
        assert kept is not None and kept.status.position < before.position
        assert f"the snapshot at {seconds(kept.status.time)} s" in failed.outlook and "again" in failed.outlook
        printed = started.consoles[1].text()
        started.step()
        status = started.wait(WAIT)
        assert kept.status.position < status.position < before.position and not status.live and not status.failed
        notices = [event.text for event in started.pump() if isinstance(event, msg.Notice)]
        assert len(notices) == 1 and f"the snapshot at {seconds(kept.status.time)} s" in notices[0]
        assert f"{before.records - kept.status.records} records" in notices[0]
        started.live()
        assert started.wait(WAIT).position == before.position
        assert started.consoles[1].text() == printed
        assert not [event for event in started.pump() if isinstance(event, msg.Notice)]


def test_a_killed_engine_in_the_fast_pace_begins_a_branch() -> None:
    """There the same does not happen again: what came after the snapshot is another branch's, and its records gone."""
    with engine(pace="fast") as started:
        started.run()
        until(started, b"> ")
        started.pause()
        before = started.wait(WAIT)
        failed = killed(started)
        kept = started.timeline.before(before.position)
        assert kept is not None
        lost = before.records - kept.status.records
        assert lost > 0 and f"{lost} records" in failed.outlook and "lost" in failed.outlook
        started.run()
        events = until(started, b"> ")
        assert any(isinstance(event, msg.Branched) for event in events)
        assert any(isinstance(event, msg.Notice) and "lost" in event.text for event in events)
        started.act(typed("info\n"))
        until(started, b"> ")
        started.pause()
        after = started.wait(WAIT)
        assert after.live and after.branch == 1 and b"ring" in started.consoles[1].text()


def test_with_no_snapshot_left_there_is_no_outlook() -> None:
    with engine() as started:
        for kept in started.timeline.usable():
            started._drop(kept)
        failed = killed(started)
        assert not failed.outlook


CLIENT = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children ignore it
from xentui.config import resolve_guest
from xentui.engine.process import Engine, Setup
engine = Engine.start(Setup([resolve_guest("hello64")]))
engine.wait()
engine.run()
time.sleep(0.4)
engine.goto(time=1000)
engine.wait()
engine.run()
print(engine.processes.keeper.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_process_outlives_the_console(number: signal.Signals) -> None:
    """However it ends: all its processes see the end of their sockets. The ring has no name in /dev/shm."""
    before = set(os.listdir("/dev/shm"))
    client = subprocess.Popen([sys.executable, "-c", CLIENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    keeper = int(client.stdout.readline())
    assert len(members(keeper)) >= 3, "a keeper, an engine and a snapshot"
    client.send_signal(number)
    client.wait()
    end = time.monotonic() + WAIT
    while members(keeper):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert set(os.listdir("/dev/shm")) == before


@pytest.mark.parametrize("at_once", [False, True])
def test_when_every_process_is_killed_nothing_can_be_gone_to(at_once: bool) -> None:
    """The console stays, and says so, whatever it is asked for; also before it has noticed."""
    with engine("hello64") as started:
        for pid in members(started.processes.keeper.pid):
            if pid != started.processes.keeper.pid:
                os.kill(pid, signal.SIGKILL)
        if not at_once:
            until_failed(started)
            while started.timeline.usable():  # each snapshot's end is heard of by itself
                select.select([started], [], [], 0.1)
                started.pump()
        for request in (
            lambda: started.goto(time=0),
            started.step_back,
            started.run_back,
            started.run,
            lambda: started.who_wrote(("register", 1, 0, "rax")),
            lambda: started.who_wrote(("port", 1, 2)),
            lambda: started.act(typed("x")),
            lambda: started.switch(0),
        ):
            request()
            events = until_failed(started)
            assert at_once or any(isinstance(event, msg.Notice) for event in events)
        assert started.standing and started.status.failed


def until_failed(started: Engine) -> list[msg.Event]:
    """Pump until the failure is known; what came."""
    events = started.pump()
    end = time.monotonic() + WAIT
    while started.failure is None:
        assert time.monotonic() < end
        select.select([started], [], [], 0.1)
        events += started.pump()
    return events
