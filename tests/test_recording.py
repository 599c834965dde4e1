"""Recordings: what is written is read back, the same run gives the same bytes, and damage is told, never believed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xentui.engine.trace import CHUNK_RECORDS, U64, Kind, Record, TraceRing, runner
from xentui.recording import format as layout
from xentui.recording.export import BINARY, FORMATS, export
from xentui.recording.format import RecordingError
from xentui.recording.reader import Recording
from xentui.recording.writer import CONSOLE_BYTES, RecordingWriter, annotate, check_path, split_columns

HEADER = {"domains": [{"id": 1, "name": "hello32", "width": 32}], "seed": 7, "clock": "bytes of code"}
RIP = 0xFFFFFFFF81000000


def rows_of(count: int) -> list[Record]:
    """Records of a run that never was: times grow, kinds and arguments vary."""
    return [
        Record(
            number * 700, RIP + number % 13, 1 + number % 8, number % 2, 1 + number % 3, number, number, U64, 0, 5, 0
        )
        for number in range(count)
    ]


def write(path: Path, rows: list[Record], *, capacity: int = 16, closed: bool = True) -> Path:
    """A small recording with something of everything, in chunks of `capacity` records."""
    with RecordingWriter(str(path), HEADER) as writer:
        ring = TraceRing(capacity, flush=writer.trace_chunk)
        for number, row in enumerate(rows):
            ring.put(*row)
            if number % 10 == 0:
                writer.console(row.time, 1 + number % 3, layout.OUT, b"line %d\r\n" % number)
            if number == 12:
                writer.input(row.time, 1, b"help\n")
                writer.console(row.time, 1, layout.IN, b"help\n")
                writer.snapshot(row.time, b"\0state\xff")
                writer.note(row.time, "so fängt es an")
        ring.flush()
        if closed:
            writer.close({"exit": {"1": "poweroff"}, "unimplemented": []})
    return path


def everything(recording: Recording) -> dict[str, object]:
    """All that a recording holds, for comparison."""
    return {
        "header": recording.header,
        "records": [tuple(row) for row in recording.records().tolist()],
        "console": list(recording.console()),
        "inputs": recording.inputs(),
        "notes": recording.notes(),
        "snapshots": list(recording.snapshots()),
        "summary": recording.summary,
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small") / "small.xtrace", rows_of(50))


class TestRoundTrip:
    def test_everything_comes_back(self, small: Path) -> None:
        with Recording(str(small)) as recording:
            found = everything(recording)
            assert recording.complete and recording.problem is None and len(recording) == 50
        assert found["records"] == [tuple(row) for row in rows_of(50)]
        assert found["header"] == {**HEADER, "format": 1, "xentui": found["header"]["xentui"]}  # type: ignore[index]
        assert found["summary"] == {"exit": {"1": "poweroff"}, "unimplemented": []}
        assert found["inputs"] == [(12 * 700, 1, b"help\n")]
        assert found["notes"] == [(12 * 700, "so fängt es an")]
        assert found["snapshots"] == [(12 * 700, b"\0state\xff")]

    def test_console_by_domain_in_order(self, small: Path) -> None:
        with Recording(str(small)) as recording:
            assert [piece.data for piece in recording.console(1)] == [b"line 0\r\n", b"help\n", b"line 30\r\n"]
            assert [piece.direction for piece in recording.console(1)] == [layout.OUT, layout.IN, layout.OUT]
            assert {piece.domain for piece in recording.console()} == {1, 2, 3}
            assert list(recording.console(99)) == []

    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), capacity=st.sampled_from([1, 4, 64]))
    def test_any_records(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, capacity: int) -> None:
        word = st.integers(0, U64) | st.integers(0, 3)
        rest = (word, *map(st.integers, (0,) * 4, (255, 255, 0xFFFF, 0xFFFFFFFF)), *(word,) * 5)
        times = sorted(data.draw(st.lists(word, max_size=40)))
        rows = [Record(time, *data.draw(st.tuples(*rest))) for time in times]
        path = tmp_path_factory.mktemp("any") / "any.xtrace"
        with RecordingWriter(str(path), {}, chunk_time=0) as writer:
            ring = TraceRing(capacity, flush=writer.trace_chunk, chunk_time=0)
            for row in rows:
                ring.put(*row)
            ring.flush()
            writer.close({})
        with Recording(str(path)) as recording:
            assert recording.records().tolist() == [tuple(row) for row in rows]
            start, stop = data.draw(st.integers(-50, 50)), data.draw(st.integers(-50, 50))
            assert recording.columns("a", start, stop).tolist() == [row.a for row in rows[start:stop]]
            time = data.draw(st.sampled_from([*times, 0]) | word)
            expected = next((number for number, row in enumerate(rows) if row.time >= time), len(rows))
            assert recording.find_time(time) == expected

    def test_an_empty_run(self, tmp_path: Path) -> None:
        with RecordingWriter(str(tmp_path / "empty.xtrace"), {}) as writer:
            writer.close({})
        with Recording(str(tmp_path / "empty.xtrace")) as recording:
            assert (len(recording), recording.complete, recording.find_time(0)) == (0, True, 0)
            assert recording.records().size == 0 and recording.domain_widths() == {}

    def test_time_that_goes_back_is_still_held(self, tmp_path: Path) -> None:
        rows = [Record(time, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0) for time in (500, 100, U64, 900)]
        with Recording(str(write(tmp_path / "back.xtrace", rows))) as recording:
            assert recording.columns("time").tolist() == [500, 100, U64, 900]

    def test_a_full_ring_is_recorded_across_its_laps(self, tmp_path: Path) -> None:
        count = 2 * CHUNK_RECORDS + 100
        with RecordingWriter(str(tmp_path / "long.xtrace"), {}) as writer:
            ring = TraceRing(CHUNK_RECORDS, flush=writer.trace_chunk)
            for number in range(count):
                ring.put(number, 0, 1, 0, 0, number, 0, 0, 0, 0, 0)
            ring.flush()
            writer.close({})
        with Recording(str(tmp_path / "long.xtrace")) as recording:
            assert np.array_equal(recording.columns("number"), np.arange(count, dtype=np.uint32))
            assert recording.find_time(CHUNK_RECORDS + 7) == CHUNK_RECORDS + 7

    def test_console_is_cut_by_size_and_by_virtual_time(self, tmp_path: Path) -> None:
        path = tmp_path / "console.xtrace"
        with RecordingWriter(str(path), {}, chunk_time=1000) as writer:
            writer.console(10, 1, layout.OUT, b"a")
            writer.console(990, 1, layout.OUT, b"")
            writer.console(1000, 1, layout.OUT, b"b")
            writer.console(1001, 1, layout.OUT, b"c" * CONSOLE_BYTES)
            writer.console(1002, 1, layout.OUT, b"d")
            writer.close({})
        with Recording(str(path)) as recording:
            blocks = [entry for entry in recording.entries if entry.type == layout.CONSOLE]
            assert [(entry.first_time, entry.last_time) for entry in blocks] == [(10, 10), (1000, 1001), (1002, 1002)]
            assert b"".join(piece.data for piece in recording.console()) == b"ab" + b"c" * CONSOLE_BYTES + b"d"


class TestKilled:
    def test_cut_anywhere_what_is_whole_is_read(self, small: Path, tmp_path: Path) -> None:
        """Truncate after every byte: nothing is invented, nothing whole is lost, and the reader says what happened."""
        data = small.read_bytes()
        with Recording(str(small)) as recording:
            whole = everything(recording)
            ends = {entry.type: entry.offset + entry.length for entry in recording.entries}
            chunks = [entry for entry in recording.entries if entry.type == layout.TRACE]
        path = tmp_path / "cut.xtrace"
        for size in range(len(data)):
            path.write_bytes(data[:size])
            if size < ends[layout.HEADER]:
                with pytest.raises(RecordingError, match=r"cut off before its header|not a recording"):
                    Recording(str(path))
                continue
            with Recording(str(path)) as recording:
                records = sum(entry.records for entry in chunks if entry.offset + entry.length <= size)
                assert len(recording) == records
                assert recording.records().tolist() == whole["records"][:records]  # type: ignore[index]
                pieces = list(recording.console())
                assert pieces == whole["console"][: len(pieces)]  # type: ignore[index]
                assert recording.complete == (size >= ends[layout.SUMMARY])
                assert recording.problem is not None

    def test_a_killed_process_leaves_all_but_the_last_chunk(self, tmp_path: Path) -> None:
        path = tmp_path / "killed.xtrace"
        program = f"""
from xentui.engine.trace import TraceRing
from xentui.recording.writer import RecordingWriter
writer = RecordingWriter({str(path)!r}, {{}})
ring = TraceRing(1024, flush=writer.trace_chunk)
for number in range(10_000):
    ring.put(number, 0, 1, 0, 1, number, 0, 0, 0, 0, 0)
print("ready", flush=True)
input()
"""
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Recording(str(path)) as recording:
            assert len(recording) == 10_000 // 1024 * 1024
            assert recording.columns("number").tolist() == list(range(len(recording)))
            assert not recording.complete and "not ended" in str(recording.problem)

    def test_an_exception_leaves_what_was_gathered(self, tmp_path: Path) -> None:
        path = tmp_path / "raised.xtrace"
        with pytest.raises(KeyError), RecordingWriter(str(path), {}) as writer:
            writer.console(1, 1, layout.OUT, b"last words")
            raise KeyError
        with Recording(str(path)) as recording:
            assert [piece.data for piece in recording.console()] == [b"last words"]
            assert not recording.complete

    def test_a_recording_can_be_read_while_it_is_written(self, tmp_path: Path) -> None:
        path = tmp_path / "live.xtrace"
        with RecordingWriter(str(path), {}) as writer:
            writer.input(5, 1, b"x")
            with Recording(str(path)) as recording:
                assert recording.inputs() == [(5, 1, b"x")] and not recording.complete
            writer.close({})


class TestDamage:
    def test_any_flipped_byte_is_told_or_harmless(self, small: Path, tmp_path: Path) -> None:
        """Flip each byte: the reader refuses, or gives a beginning of the truth (its index rebuilt)."""
        data = bytearray(small.read_bytes())
        with Recording(str(small)) as recording:
            truth = everything(recording)
        path = tmp_path / "flipped.xtrace"
        refused = 0
        for position in range(len(data)):
            data[position] ^= 0x41
            path.write_bytes(data)
            data[position] ^= 0x41
            try:
                with Recording(str(path)) as recording:
                    found = everything(recording)
                    problem = recording.problem
            except RecordingError as error:
                assert "\n" not in str(error)
                refused += 1
                continue
            assert problem is not None and found["header"] == truth["header"]
            for name in ("records", "console", "inputs", "notes", "snapshots"):
                assert found[name] == truth[name][: len(found[name])]  # type: ignore[index,arg-type]
        assert refused > len(data) // 4

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_a_forged_block_never_breaks_the_reader(
        self, small: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        """Change a block's payload and make its checksum right: a `RecordingError` at most."""
        original = bytearray(small.read_bytes())
        starts = block_starts(bytes(original))
        start = data.draw(st.sampled_from(starts))
        kind, _, length = layout.BLOCK.unpack_from(original, start)
        body = start + layout.BLOCK.size
        for _ in range(data.draw(st.integers(1, 4))):
            original[body + data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
        check = crc32(bytes(original[body : body + length]), crc32(kind + length.to_bytes(8, "little")))
        layout.BLOCK.pack_into(original, start, kind, check, length)
        path = tmp_path_factory.mktemp("forged") / "forged.xtrace"
        path.write_bytes(original)
        try:
            with Recording(str(path)) as recording:
                everything(recording)
                recording.find_time(7000)
                recording.domain_names()
                for form in FORMATS:
                    export(recording, form, io.BytesIO() if form in BINARY else io.StringIO())
        except RecordingError as error:
            assert str(path) in str(error) and "\n" not in str(error)

    @pytest.mark.parametrize("content", [b"", b"\x7fELF" + bytes(64), b"just text\n" * 9])
    def test_what_is_no_recording_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other"
        path.write_bytes(content)
        with pytest.raises(RecordingError, match="not a recording"):
            Recording(str(path))

    def test_missing_file_and_directory(self, tmp_path: Path) -> None:
        with pytest.raises(RecordingError, match="No such file"):
            Recording(str(tmp_path / "missing.xtrace"))
        with pytest.raises(RecordingError, match="Is a directory"):
            Recording(str(tmp_path))

    def test_a_newer_format_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "newer.xtrace"
        with monkeypatch.context() as patched:
            patched.setattr(layout, "FORMAT_VERSION", 2)
            write(path, [])
        with pytest.raises(RecordingError, match="this version reads format 1"):
            Recording(str(path))

    def test_blocks_of_a_type_unknown_here_are_passed_over(self, small: Path, tmp_path: Path) -> None:
        data = small.read_bytes()
        second = block_starts(data)[1]
        payload = b"from the future"
        check = crc32(payload, crc32(b"NEWS" + len(payload).to_bytes(8, "little")))
        block = layout.BLOCK.pack(b"NEWS", check, len(payload)) + payload
        path = tmp_path / "news.xtrace"
        path.write_bytes(data[:second] + block + data[second:])
        with Recording(str(path)) as recording, Recording(str(small)) as old:
            assert everything(recording) == everything(old)


def block_starts(data: bytes) -> list[int]:
    """Where each block of a recording begins, by its own lengths."""
    starts = []
    position = len(layout.MAGIC)
    while position < len(data):
        starts.append(position)
        position += layout.BLOCK.size + layout.BLOCK.unpack_from(data, position)[2]
    return starts


class TestNotes:
    def test_a_note_is_added_to_a_finished_recording(self, small: Path, tmp_path: Path) -> None:
        path = tmp_path / "noted.xtrace"
        path.write_bytes(small.read_bytes())
        annotate(str(path), 99, "here ✓")
        annotate(str(path), 98, "and here")
        with Recording(str(path)) as recording:
            assert [note.text for note in recording.notes()] == ["and here", "here ✓", "so fängt es an"]
            assert recording.problem is None and recording.complete and len(recording) == 50
        assert path.read_bytes().startswith(small.read_bytes())

    def test_a_note_is_added_after_a_kill(self, small: Path, tmp_path: Path) -> None:
        path = tmp_path / "killed.xtrace"
        data = small.read_bytes()
        cut = block_starts(data)[-4] + 20
        path.write_bytes(data[:cut])
        with Recording(str(path)) as recording:
            records = len(recording)
        annotate(str(path), 5, "rescued")
        with Recording(str(path)) as recording:
            assert (len(recording), recording.complete, recording.problem) == (records, False, None)
            assert "rescued" in [note.text for note in recording.notes()]

    def test_a_damaged_recording_is_left_as_it_is(self, small: Path, tmp_path: Path) -> None:
        path = tmp_path / "damaged.xtrace"
        data = bytearray(small.read_bytes())
        data[block_starts(bytes(data))[3] + 40] ^= 1
        data = data[:-1]
        path.write_bytes(data)
        with pytest.raises(RecordingError, match=r"checksum does not match.*a note cannot be added"):
            annotate(str(path), 5, "lost")
        assert path.read_bytes() == bytes(data)


class TestDeterminism:
    PROGRAM = """
import sys
from tests.test_recording import rows_of, write
from pathlib import Path
write(Path(sys.argv[1]), rows_of(5000), capacity=1024)
"""

    def test_two_processes_write_the_same_bytes(self, tmp_path: Path) -> None:
        digests = set()
        for seed in ("0", "1", "4242"):
            path = tmp_path / f"{seed}.xtrace"
            root = Path(__file__).parent.parent
            environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
            subprocess.run([sys.executable, "-c", self.PROGRAM, str(path)], check=True, env=environment, cwd=root)
            digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
        assert len(digests) == 1

    def test_the_order_of_the_headers_keys_does_not_matter(self, tmp_path: Path) -> None:
        for name, header in (("a", {"x": 1, "y": {"p": 2, "q": 3}}), ("b", {"y": {"q": 3, "p": 2}, "x": 1})):
            with RecordingWriter(str(tmp_path / name), header) as writer:
                writer.close(header)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class TestPaths:
    def test_what_cannot_be_written_is_refused_in_a_line(self, tmp_path: Path) -> None:
        for path, reason in (
            (tmp_path, "is a directory"),
            (tmp_path / "no" / "x.xtrace", "there is no directory"),
            ("", "file name is empty"),
        ):
            with pytest.raises(RecordingError, match=reason):
                check_path(str(path))
            with pytest.raises(RecordingError, match=reason):
                RecordingWriter(str(path), {})
        with pytest.raises(RecordingError, match=r"cannot be created|no permission"):
            RecordingWriter("/proc/out.xtrace", {})

    def test_checking_a_path_touches_nothing(self, tmp_path: Path) -> None:
        check_path(str(tmp_path / "new.xtrace"))
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "old.xtrace").write_bytes(b"old")
        check_path(str(tmp_path / "old.xtrace"))
        assert (tmp_path / "old.xtrace").read_bytes() == b"old"

    def test_a_full_disk_is_told_in_a_line(self) -> None:
        with pytest.raises(RecordingError, match="/dev/full: the recording cannot be written: No space left"):
            RecordingWriter("/dev/full", {})

    def test_an_old_recording_is_replaced(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.xtrace", rows_of(200))
        write(path, rows_of(3))
        with Recording(str(path)) as recording:
            assert len(recording) == 3 and recording.problem is None


class TestExport:
    @pytest.fixture
    def recording(self, tmp_path: Path) -> Recording:
        path = tmp_path / "x.xtrace"
        with RecordingWriter(str(path), HEADER) as writer:
            ring = TraceRing(4, flush=writer.trace_chunk)
            ring.put(0, 0, Kind.DOMAIN_CREATE, 0, 1, 32, 8192, 1, 0xC0000000, 0xC0200000, 0)
            ring.put(1500, 0xC0001000, Kind.HYPERCALL, 0, 1, 14, 0xC0001000, 0x63, 1, 2, 0)
            ring.put(2500, RIP, Kind.SCHEDULE, 0, 1, 30_000, runner(1, 0), runner(2, 0), 2_000, 0, 0)
            ring.put(2600, RIP, Kind.CONSOLE_OUT, 0, 1, 3, 0, 0, 0, 0, 0)
            writer.console(1_500_000_000, 1, layout.OUT, "grü".encode()[:-1])
            writer.console(1_600_000_001, 1, layout.OUT, "ü".encode()[1:] + b"n\xff\x1b[0m\r\n")
            writer.console(1_700_000_000, 1, layout.IN, b"ls\r")
            writer.console(1_700_000_000, 2, layout.OUT, b"another")
            ring.flush()
            writer.close({})
        return Recording(str(path))

    def test_json_lines(self, recording: Recording) -> None:
        out = io.StringIO()
        export(recording, "jsonl", out)
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
        assert [line["kind"] for line in lines] == ["domain_create", "hypercall", "schedule", "console_out"]
        assert lines[1] == {
            "record": 1,
            "time": 1500,
            "domain": 1,
            "vcpu": 0,
            "rip": "0xc0001000",
            "kind": "hypercall",
            "name": "update_va_mapping",
            "values": {"va": "0xc0001000", "val": "0x100000063", "flags": "UVMF_INVLPG", "result": "0"},
            "text": "update_va_mapping(va=0xc0001000, val=0x100000063, flags=UVMF_INVLPG) = 0",
        }
        assert lines[3]["values"] == {"bytes": 3, "offset": 0}

    def test_perfetto(self, recording: Recording) -> None:
        out = io.StringIO()
        export(recording, "perfetto", out)
        events = json.loads(out.getvalue())["traceEvents"]
        names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
        assert names == {1: "hello32", 2: "domain 2", 0x7FF2: "Xen"}
        lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
        assert lanes == {(1, 0): "vCPU 0", (2, 0): "vCPU 0", (0x7FF2, 0): "processor 0"}
        instants = [event for event in events if event["ph"] == "i"]
        assert [event["name"] for event in instants] == ["domain_create", "update_va_mapping", "console_out"]
        assert instants[1]["ts"] == 1.5 and instants[1]["args"]["text"].startswith("update_va_mapping(va=0xc0001000")
        running, whose = [event for event in events if event["ph"] == "X" and event["ts"] == 0.5]
        assert (running["dur"], running["pid"], running["tid"]) == (2.0, 1, 0)
        assert (whose["dur"], whose["pid"], whose["name"]) == (2.0, 0x7FF2, "hello32 vCPU 0")
        (counter,) = [event for event in events if event["ph"] == "C"]
        assert counter["pid"] == 1 and counter["args"]["hypercalls"] == 1

    def test_perfetto_leads_an_arrow_from_an_event_to_its_upcall(self, tmp_path: Path) -> None:
        path = tmp_path / "x.xtrace"
        with RecordingWriter(str(path), HEADER) as writer:
            ring = TraceRing(4, flush=writer.trace_chunk)
            ring.put(100, RIP, Kind.EVENT_SEND, 0, 1, 3, 2, 5, 0, 0, 0)
            ring.put(200, RIP, Kind.EVENT_SEND, 0, 1, 3, 2, 5, 1, 0, 0)  # pending already: the same delivery
            ring.put(300, RIP, Kind.EVENT_UPCALL, 1, 2, 0, 0, 0, 0, 0, 0)
            ring.flush()
            writer.close({})
        out = io.StringIO()
        with Recording(str(path)) as recording:
            export(recording, "perfetto", out)
        events = json.loads(out.getvalue())["traceEvents"]
        arrows = [(e["ph"], e["id"], e["ts"], e["pid"], e["tid"]) for e in events if e["ph"] in "sf"]
        assert arrows == [("s", 1, 0.1, 1, 0), ("f", 1, 0.3, 2, 1)]
        for _, _, time, domain, vcpu in arrows:  # an arrow ends at slices
            slices = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (domain, vcpu)]
            assert any(e["ts"] <= time <= e["ts"] + e["dur"] for e in slices)

    def test_asciicast(self, recording: Recording) -> None:
        out = io.StringIO()
        export(recording, "asciicast", out)
        head, *lines = [json.loads(line) for line in out.getvalue().splitlines()]
        assert head == {"version": 2, "width": 80, "height": 24, "title": "hello32"}
        assert lines == [
            [1.5, "o", "gr"],
            [1.600000001, "o", "ün\ufffd\x1b[0m\r\n"],
            [1.7, "i", "ls\r"],
        ]
        other = io.StringIO()
        export(recording, "asciicast", other, domain=2)
        assert json.loads(other.getvalue().splitlines()[1]) == [1.7, "o", "another"]

    def test_an_asciicast_of_a_run_that_ends_within_a_character(self, tmp_path: Path) -> None:
        with RecordingWriter(str(tmp_path / "cut"), HEADER) as writer:
            writer.console(1_000_000_000, 1, layout.OUT, b"gr\xc3")
            writer.console(1_500_000_000, 1, layout.IN, b"l")
            writer.close({})
        out = io.StringIO()
        with Recording(str(tmp_path / "cut")) as cut:
            export(cut, "asciicast", out)
        assert [json.loads(line) for line in out.getvalue().splitlines()[1:]] == [
            [1.0, "o", "gr"],
            [1.5, "i", "l"],
            [1.5, "o", "\ufffd"],
        ]

    def test_an_unknown_format_and_a_silent_run_are_refused(self, recording: Recording, tmp_path: Path) -> None:
        with pytest.raises(RecordingError, match="choose one of jsonl, perfetto, xentrace, asciicast"):
            export(recording, "csv", io.StringIO())
        with RecordingWriter(str(tmp_path / "silent"), {}) as writer:
            writer.close({})
        with Recording(str(tmp_path / "silent")) as silent, pytest.raises(RecordingError, match="nothing to play"):
            export(silent, "asciicast", io.StringIO())

    def test_an_empty_recording_exports(self, tmp_path: Path) -> None:
        with RecordingWriter(str(tmp_path / "empty"), {}) as writer:
            writer.close({})
        with Recording(str(tmp_path / "empty")) as empty:
            out = io.StringIO()
            export(empty, "perfetto", out)
            assert len(json.loads(out.getvalue())["traceEvents"]) == 1


def test_an_empty_chunk_leaves_no_block(tmp_path: Path) -> None:
    with RecordingWriter(str(tmp_path / "x.xtrace"), {}) as writer:
        writer.trace_chunk(memoryview(b""))
        writer.close({})
    with Recording(str(tmp_path / "x.xtrace")) as recording:
        assert [entry.type for entry in recording.entries] == [layout.HEADER, layout.SUMMARY]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=40), st.integers(1, 5))
def test_columns_are_the_same_with_and_without_numpy(rows: list[bytes], repeat: int) -> None:
    data = memoryview(b"".join(rows) * repeat)
    with pytest.MonkeyPatch.context() as patch:
        assert "numpy" in sys.modules
        by_numpy = split_columns(data)
        patch.delitem(sys.modules, "numpy")
        plain = split_columns(data)
        assert "numpy" not in sys.modules
    assert plain == by_numpy and sum(map(len, plain)) == len(data)
