"""`xentui export`: formats, files, and errors in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.command import Done, record, run
from xentui.export import run as export
from xentui.recording import format as layout
from xentui.recording.reader import Recording
from xentui.screens.terminal import Terminal


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A recording of two guests that both print."""
    return record(tmp_path_factory.mktemp("export") / "two.xtrace", "hello32", "hello64", "--for", "40ms")


def test_json_lines_go_to_stdout(two: Done) -> None:
    done = run("export", two.recording)
    assert done.status == 0 and not done.errors
    lines = [json.loads(line) for line in done.lines]
    assert len(lines) == len(two.read()) and {line["domain"] for line in lines} >= {1, 2}


def test_perfetto_into_a_file(two: Done, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    assert run("export", two.recording, "--format", "perfetto", "-o", out).status == 0
    events = json.loads(out.read_text())["traceEvents"]
    assert {event["ph"] for event in events} >= {"M", "i", "X", "C"}
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"Xen", "hello32", "hello64"}
    for event in events:  # slices do not reach before the start
        assert event.get("ts", 0) >= 0 and event.get("dur", 0) >= 0


def held_against_the_trace_event_format(text: str) -> None:
    """What "Trace Event Format" (Duffy, Sinclair) asks of a file in the object form, and viewers rely on."""
    whole = json.loads(text)
    assert whole["displayTimeUnit"] in ("ms", "ns")
    events = whole["traceEvents"]
    processes = [event["pid"] for event in events if event["name"] == "process_name"]
    threads = [(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"]
    assert len(set(processes)) == len(processes) and len(set(threads)) == len(threads), "each is named once"
    slices: dict[tuple[int, int], list[tuple[int, int]]] = {}
    counters: dict[tuple[int, str], float] = {}
    flows: dict[int, float] = {}
    for event in events:
        assert isinstance(event["pid"], int) and event["name"] and event["pid"] in processes, event
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and isinstance(event["args"]["name"], str)
            continue
        start = round(1000 * event["ts"])
        assert start >= 0, event
        if event["ph"] == "C":
            key = event["pid"], event["name"]
            assert event["ts"] > counters.get(key, -1) and all(isinstance(n, int) for n in event["args"].values())
            counters[key] = event["ts"]
            continue
        lane = event["pid"], event["tid"]
        assert lane in threads, event
        if event["ph"] == "X":
            slices.setdefault(lane, []).append((start, start + round(1000 * event["dur"])))
        elif event["ph"] == "s":
            assert event["id"] not in flows and event["cat"]
            flows[event["id"]] = event["ts"]
        elif event["ph"] == "f":
            assert flows.pop(event["id"]) <= event["ts"] and event["bp"] == "e" and event["cat"]
        else:
            assert event["ph"] == "i" and event["s"] in ("g", "p", "t"), event
    assert slices
    for parts in slices.values():  # a processor, or a vCPU, does one thing at a time
        assert all(begin <= end for begin, end in parts)
        assert all(before[1] <= after[0] for before, after in zip(sorted(parts), sorted(parts)[1:], strict=False))


@pytest.mark.parametrize("guests", [("demo32", "demo64"), ("bench64", "--vcpus", "2", "--cpus", "2"), ("hello32",)])
def test_perfetto_keeps_the_formats_rules(tmp_path: Path, guests: tuple[str, ...]) -> None:
    """Events between domains, two processors, and a guest that does nothing."""
    made = record(tmp_path / "run.xtrace", *guests, "--for", "60ms")
    assert run("export", made.recording, "--format", "perfetto", "-o", tmp_path / "run.json").status == 0
    held_against_the_trace_event_format((tmp_path / "run.json").read_text())


def played(path: Path) -> Terminal:
    """The last screen of an asciicast, after it was held against the format (version 2)."""
    head, *events = [json.loads(line) for line in path.read_bytes().decode("utf-8").splitlines()]
    assert head["version"] == 2 and head["width"] > 0 and head["height"] > 0
    screen, last = Terminal(head["width"], head["height"]), 0.0
    for time, kind, data in events:
        assert time >= last and kind in ("o", "i") and isinstance(data, str)
        last = time
        if kind == "o":
            screen.feed(data.encode())
    return screen


def test_a_console_a_file(two: Done, tmp_path: Path) -> None:
    assert run("export", two.recording, "--format", "asciicast", "-o", tmp_path / "run.cast").status == 0
    casts = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert set(casts) == {"run.hello32.cast", "run.hello64.cast"}
    head, *rest = casts["run.hello64.cast"]
    assert json.loads(head)["title"] == "hello64" and json.loads(head)["version"] == 2
    assert "".join(json.loads(line)[2] for line in rest if json.loads(line)[1] == "o").count("64") >= 1
    screen = Terminal(80, 24)
    with Recording(str(two.recording)) as recording:
        for piece in recording.console(2):
            if piece.direction == layout.OUT:
                screen.feed(piece.data)
    assert played(tmp_path / "run.hello64.cast").text() == screen.text() and "hello64" in screen.text()[0]
    one = run("export", two.recording, "--format", "asciicast", "--domain", "hello32")
    assert one.lines == casts["run.hello32.cast"]
    assert run("export", two.recording, "--format", "asciicast", "--domain", "1").lines == one.lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{nothing}"], "the recording cannot be opened: No such file"),
        (["{file}", "--format", "csv"], "invalid choice: 'csv'"),
        (["{file}", "-o", "{folder}"], "cannot be written: Is a directory"),
        (["{file}", "-o", "{nothing}/x"], "cannot be written: No such file"),
        (["{file}", "--format", "asciicast"], "choose one with --domain (hello32, hello64)"),
        (["{file}", "--format", "asciicast", "--domain", "linux"], "no domain 'linux'; there is hello32, hello64"),
        (["{file}", "--format", "jsonl", "--domain", "hello32"], "--domain chooses a console"),
        (["{folder}/other"], "not a recording"),
        ([""], "'': the recording cannot be opened"),
        (["{file}", "-o", ""], "'': cannot be written"),
        (["{file}", "--format", "xentrace", "-o", "{file}"], "is the recording itself: name another file with -o"),
        ([], "the following arguments are required: FILE"),
        pytest.param(
            ["{file}", "-o", "/dev/full"], "/dev/full: cannot be written: No space left",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux"),
        ),
    ],
)  # fmt: skip
def test_errors_are_one_line(
    two: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "other").write_text("no recording at all")
    before = two.digest
    places = {"file": two.recording, "folder": tmp_path, "nothing": tmp_path / "nothing"}
    assert export([argument.format(**places) for argument in arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1 and errors.startswith("xentui: ")
    assert two.digest == before


def test_a_reader_that_has_enough_is_no_error(two: Done) -> None:
    read, write = os.pipe()
    os.close(read)
    import subprocess

    from tests.command import ROOT, command

    done = subprocess.run(
        command("export", two.recording), cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(write)
    assert done.returncode == 0 and not done.stderr


def test_what_a_kill_left_is_exported_with_a_warning(two: Done, tmp_path: Path) -> None:
    cut = tmp_path / "cut.xtrace"
    cut.write_bytes(two.recording.read_bytes()[:-30])
    done = run("export", cut)
    assert done.status == 0 and done.lines and "xentui: warning: " in done.errors and done.errors.count("\n") == 1
