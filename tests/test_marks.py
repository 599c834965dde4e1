"""Marks and their notes live in the recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from xentui.recording.reader import Note, Recording
from xentui.recording.writer import RecordingWriter
from xentui.screens.marks import Marks


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "run.xtrace")
    with RecordingWriter(path, {}) as writer:
        writer.note(50, "from the run itself")
        writer.close({})
    return path


def notes(path: str) -> list[Note]:
    with Recording(path) as recording:
        assert recording.complete and recording.problem is None
        return recording.notes()


def test_marks_of_a_replay_are_kept_at_once(path: str) -> None:
    marks = Marks()
    marks.load(path)
    assert marks == [(100, "from the run itself")]
    marks.add(401, "the fault")
    marks.add(60, "before it\nall was well – ü")
    assert notes(path) == [(30, "before it\nall was well – ü"), (50, "from the run itself"), (200, "the fault")]
    again = Marks()
    again.load(path)
    assert again == [(60, "before it\nall was well – ü"), (100, "from the run itself"), (400, "the fault")]


def test_marks_of_a_live_run_go_into_the_recording_that_is_saved(path: str) -> None:
    marks = Marks()
    marks.add(10, "first")
    marks.keep_in(path)
    marks.add(20, "second")
    assert [note.text for note in notes(path)] == ["first", "second", "from the run itself"]


def test_what_cannot_be_kept_is_said_in_a_line(path: str, tmp_path: Path) -> None:
    marks = Marks()
    with pytest.raises(ValueError, match="cannot be opened"):
        marks.load(str(tmp_path / "none"))
    marks.load(path)
    Path(path).unlink()
    with pytest.raises(ValueError, match="cannot be opened") as caught:
        marks.add(1, "lost")
    assert "\n" not in str(caught.value) and marks[-1] == (1, "lost"), "the mark stays for this session"
