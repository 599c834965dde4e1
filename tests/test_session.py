"""A recording holds all that running it again needs; a session at the console becomes one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.command import record
from tests.test_process import WAIT, engine, typed, until
from tests.tiny_kernels import Tiny
from xentui.config import GuestSpec, resolve_guest
from xentui.engine.actions import Action
from xentui.engine.process import Engine, EngineError
from xentui.engine.setup import Setup
from xentui.engine.trace import TraceRing
from xentui.recording.format import IMAGE, RecordingError
from xentui.recording.reader import Recording
from xentui.recording.writer import RecordingWriter
from xentui.session import Guests as Found
from xentui.session import Images, action_from_plain, action_to_plain, setup_from_recording


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_recording_runs_again(xtrace: Path) -> None:
    """Without the files that it was made from: the same records, the same consoles."""
    typed_text = r"info\nspam\npoweroff\n"
    done = record(xtrace, "hello64", "hello32", "--seed", "5", "--input", typed_text, "--for", "3s")
    setup = setup_from_recording(str(xtrace))
    with done.read() as recording, Engine.start(setup) as started:
        status = started.wait(WAIT)
        assert not status.live and status.records < 10, "at its start, with all of it to come"
        assert status.end_records == len(recording) and status.end_time == recording.summary["virtual_ns"]  # type: ignore[index]
        started.goto(position=status.end_position)
        status = started.wait(WAIT)
        assert status.live and status.records == len(recording)
        assert started.records.rows(0).tobytes() == recording.records().tobytes()
        written = b"".join(piece.data for piece in recording.console(1) if piece.direction == 0)
        assert started.consoles[1].text() == written


def test_a_recording_that_is_run_stops_at_its_end(xtrace: Path) -> None:
    """And goes on from there when it is asked to once more; whether it was busy or idle."""
    done = record(xtrace, "hello64", "hello32", "--for", "50ms")
    assert done.status == 3, done.errors
    with Engine.start(setup_from_recording(str(xtrace))) as started:
        end = started.wait(WAIT).end_position
        assert not started.status.live
        started.run()
        status = started.wait(WAIT)
        assert (status.position, status.live, status.running) == (end, True, False)
        assert "the recording ends here" in status.why
        started.run()
        assert started.wait(0.05).running
        started.goto(position=end // 2)
        started.wait(WAIT)
        started.set_warp(True)
        started.run()
        assert started.wait(WAIT).position == end


def test_the_images_are_in_the_recording(tmp_path: Path, xtrace: Path) -> None:
    """Also a kernel that is gone meanwhile; and a domain that reboots finds it."""
    kernel = Tiny(64).say(b"once\n").shut_down(1).write(tmp_path / "again")
    record(xtrace, kernel, "--memory", "8", "--for", "1ms")
    kernel.unlink()
    with Recording(str(xtrace)) as recording:
        (sha256,) = recording.images()
        assert recording.header["guests"][0]["kernel_sha256"] == sha256
        count = len(recording)
        trace = recording.records().tobytes()
    with Engine.start(setup_from_recording(str(xtrace))) as started:
        started.wait(WAIT)
        started.goto(position=started.status.end_position)
        started.wait(WAIT)
        assert started.status.records == count
        assert started.records.rows(0).tobytes() == trace
        assert sum("once" in line for _, line in started.log) > 1


def test_a_session_is_saved_and_saved_again_the_same(tmp_path: Path) -> None:
    with engine("hello64", "hello32") as started:
        started.run()
        until(started, b"> ")
        started.act(typed("spam\r"))
        until(started, b"You said: spam")
        started.act(Action("pause", "hello32"))
        started.act(typed("info\r"))
        until(started, b"page tables")
        started.pause()
        status = started.wait(WAIT)
        trace = started.records.rows(0).tobytes()
        started.save(str(tmp_path / "1.xtrace"))
        started.goto(time=0)
        started.wait(WAIT)
        started.save(str(tmp_path / "2.xtrace"))
    assert digest(tmp_path / "1.xtrace") == digest(tmp_path / "2.xtrace")
    with Recording(str(tmp_path / "1.xtrace")) as recording:
        assert recording.records().tobytes() == trace
        assert recording.summary is not None and recording.summary["position"] == status.position
        kinds = [found.action["kind"] for found in recording.actions()]
        assert kinds == ["type", "pause", "type"]
    setup = setup_from_recording(str(tmp_path / "1.xtrace"))
    assert [action for _, action in setup.actions] == [typed("spam\r"), Action("pause", "hello32"), typed("info\r")]
    with Engine.start(setup) as again:
        again.wait(WAIT)
        again.goto(position=status.position)
        assert again.wait(WAIT).records == status.records
        assert again.records.rows(0).tobytes() == trace
        again.save(str(tmp_path / "3.xtrace"))
    with Recording(str(tmp_path / "3.xtrace")) as recording:
        assert recording.records().tobytes() == trace


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    with engine() as started, pytest.raises(EngineError, match="no directory"):
        started.save(str(tmp_path / "nowhere" / "x.xtrace"))
    with engine(pace="fast") as started, pytest.raises(EngineError, match="fast pace"):
        started.save(str(tmp_path / "x.xtrace"))


def test_what_cannot_run_again_says_so(tmp_path: Path, xtrace: Path) -> None:
    record(xtrace, "hello64", "--pace", "fast", "--input", r"poweroff\n")
    with pytest.raises(RecordingError, match="fast pace"):
        setup_from_recording(str(xtrace))
    bare = str(tmp_path / "bare.xtrace")
    with RecordingWriter(bare, {"pace": "exact"}) as writer:
        writer.close({})
    with pytest.raises(RecordingError, match="does not say"):
        setup_from_recording(bare)


def test_a_recording_that_was_cut_off_before_its_images(xtrace: Path) -> None:
    record(xtrace, "hello64", "--input", r"poweroff\n")
    with Recording(str(xtrace)) as recording:
        first = next(entry for entry in recording.entries if entry.type == IMAGE)
    with open(xtrace, "r+b") as file:
        file.truncate(first.offset + first.length - 1)
    with pytest.raises(RecordingError, match="hello64 is not in it"):
        setup_from_recording(str(xtrace))


def test_a_changed_image_is_noticed(tmp_path: Path) -> None:
    path = str(tmp_path / "x.xtrace")
    with RecordingWriter(path, {}) as writer:
        writer.images({hashlib.sha256(b"one").hexdigest(): b"another"})
        writer.close({})
    with Recording(path) as recording, pytest.raises(RecordingError, match="not the one"):
        recording.images()


def test_images_come_behind_the_first_chunk_and_once(tmp_path: Path) -> None:
    path, content = str(tmp_path / "x.xtrace"), b"kernel" * 1000
    with RecordingWriter(path, {}) as writer:
        ring = TraceRing(4, flush=writer.trace_chunk)
        for _ in range(2):
            writer.images({hashlib.sha256(content).hexdigest(): content})
        for number in range(9):
            ring.put(number, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0)
            writer.images({hashlib.sha256(content).hexdigest(): content})
        ring.flush()
        writer.close({})
    with Recording(path) as recording:
        assert [entry.type for entry in recording.entries][:4] == [b"HEAD", b"TRCE", b"IMAG", b"TRCE"]
        assert list(recording.images().values()) == [content]
        assert len([entry for entry in recording.entries if entry.type == IMAGE]) == 1


def test_actions_are_plain_and_come_back(tmp_path: Path) -> None:
    kernel = Tiny(32).do(b"\x90").write(tmp_path / "kernel")
    spec = GuestSpec("new", kernel, memory=8, cmdline="x=1")
    images = Images({})
    for action in (typed("ä\xff"), Action("pause", "a"), Action("create", None, (spec,)), Action("send", "a", (3,))):
        plain = action_to_plain(action, images)
        again = action_from_plain(plain, Found("x", images.contents))
        assert again.kind == action.kind and again.domain == action.domain
        if action.kind == "create":
            (made,) = again.arguments
            assert isinstance(made, GuestSpec)
            assert (made.name, made.memory, made.cmdline, made.kernel.name) == ("new", 8, "x=1", "kernel")
        else:
            assert again == action


def test_a_setup_says_all(tmp_path: Path, xtrace: Path) -> None:
    record(
        xtrace, "hello32", "--seed", "9", "--no-direct-trap", "--sched", "bvt", "--cmdline", "a=b",
        "--input", r"\xffinfo\npoweroff\n", "--prompt", "> $", "--no-validator", "hello32",
    )  # fmt: skip
    setup = setup_from_recording(str(xtrace))
    assert (setup.seed, setup.direct_traps, setup.scheduler, setup.pace) == (9, False, "bvt", "exact")
    assert setup.typist == ("ÿinfo\rpoweroff\r".encode(), b"> $")
    assert (setup.specs[0].cmdline, setup.specs[0].validated) == ("a=b", False)
    assert setup.memory == resolve_guest("hello32").memory
    assert isinstance(setup, Setup)
