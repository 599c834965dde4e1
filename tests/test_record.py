"""`xentui --record` with our own guests: consoles, inputs, limits, exit statuses, and what a kill leaves."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.command import ROOT, command, finish, record, start
from tests.tiny_kernels import FOREVER, MEMORY, Tiny
from xentui.config import GUESTS_FOLDER
from xentui.engine.trace import CHUNK_RECORDS, Kind
from xentui.recording.format import IN, OUT, RecordingError
from xentui.recording.reader import Recording

WIDTHS = ("32", "64")
BUSY = ("bench64", "--cmdline", "only=xen_version scale=1000")
"""A run of a million hypercalls: some seconds, for tests that interrupt it."""


# --- hello ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", ["exact", "fast"])
@pytest.mark.parametrize("width", WIDTHS)
def test_hello(xtrace: Path, width: str, pace: str) -> None:
    typed = r"spam and eggs\nhelp\npoweroff\n"
    done = record(xtrace, f"hello{width}", "--pace", pace, "--cmdline", "a=b", "--memory", "32", "--input", typed)
    ring = {"32": 1, "64": 3}[width]
    assert done.status == 0, done.errors
    assert done.lines[0] == f"Hello from hello{width}, a {width}-bit paravirtualized guest in ring {ring}."
    assert re.search(r"hypervisor +Xen 4\.17", done.console)
    assert re.search(r"memory +8192 pages of 4 KiB = 32 MiB", done.console)
    assert 'command line  "a=b"' in done.console
    at = done.lines.index("> spam and eggs")
    assert done.lines[at + 1] == "You said: spam and eggs"
    assert "  poweroff   shut the domain down" in done.lines
    assert done.lines[-2:] == ["> poweroff", "Goodbye."]


@pytest.mark.parametrize("width", WIDTHS)
def test_reboot_starts_again(xtrace: Path, width: str) -> None:
    done = record(xtrace, f"hello{width}", "--input", r"reboot\npoweroff\n")
    assert done.status == 0, done.errors
    assert [line.split(",")[0] for line in done.lines if line.startswith("Hello")] == [f"Hello from hello{width}"] * 2
    with done.read() as recording:
        kinds = recording.columns("kind")
        assert np.count_nonzero(kinds == Kind.DOMAIN_CREATE) == np.count_nonzero(kinds == Kind.DOMAIN_DESTROY) == 2
        assert recording.summary is not None
        assert [end["reason"] for end in recording.summary["ends"]] == ["reboot", "poweroff"]


@pytest.mark.parametrize("width", WIDTHS)
def test_crash_is_told(xtrace: Path, width: str) -> None:
    done = record(xtrace, f"hello{width}", "--input", r"crash\n")
    assert done.status == 1
    assert done.lines[-1] == "Farewell, cruel world."
    assert f"(XEN) hello{width}: crash" in done.errors


# --- the recording --------------------------------------------------------------------------------------------------


def test_the_recording_holds_the_run(xtrace: Path) -> None:
    done = record(xtrace, "hello64", "--seed", "7", "--input", r"spam\npoweroff\n")
    with done.read() as recording:
        header, summary = recording.header, recording.summary
        assert summary is not None and summary["reason"] == "finished" and summary["records"] == len(recording)
        assert (header["pace"], header["seed"], header["direct_traps"]) == ("exact", 7, True)
        assert header["domains"] == [{"id": 1, "name": "hello64", "width": 64}]
        assert len(header["guests"][0]["kernel_sha256"]) == 64
        pieces = list(recording.console(domain=1))
        written = b"".join(piece.data for piece in pieces if piece.direction == OUT)
        assert written.decode().replace("\r", "") == done.console
        assert b"".join(piece.data for piece in pieces if piece.direction == IN) == b"spam\rpoweroff\r"
        assert [(piece.domain, piece.data) for piece in recording.inputs()] == [(1, b"spam\r"), (1, b"poweroff\r")]
        times = recording.columns("time")
        assert np.all(times[1:] >= times[:-1]) and int(times[-1]) <= summary["virtual_ns"]
        kinds = recording.columns("kind")
        assert np.count_nonzero(kinds == Kind.HYPERCALL) == summary["hypercalls"]


def test_seeds_change_the_frames_and_nothing_else(tmp_path: Path) -> None:
    consoles = []
    for seed in (1, 2):
        done = record(tmp_path / f"{seed}.xtrace", "hello64", "--seed", str(seed), "--input", r"poweroff\n")
        frame = re.search(r"machine frame ([0-9a-f]+)", done.console)
        assert frame is not None
        consoles.append((frame[1], done.console.replace(frame[0], "")))
    assert consoles[0][0] != consoles[1][0]
    assert consoles[0][1] == consoles[1][1]


def test_direct_traps_can_be_switched_off(tmp_path: Path) -> None:
    """A 32-bit guest's int 0x80 from user code: three rings in one step, or through the hypervisor."""
    counts = []
    for switch in ((), ("--no-direct-trap",)):
        options = ("bench32", "--cmdline", "only=int80 scale=1", *switch)
        done = record(tmp_path / f"{len(switch)}.xtrace", *options)
        assert done.status == 0 and "int80 400" in done.console
        with done.read() as recording:
            kinds = recording.columns("kind")
            counts.append(
                [int(np.count_nonzero(kinds == kind)) for kind in (Kind.DIRECT_TRAP, Kind.SOFTWARE_INTERRUPT)]
            )
    assert counts[0][0] == counts[1][1] == 400
    assert counts[1][0] == 0


# --- bench ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", ["exact", "fast"])
@pytest.mark.parametrize("width", WIDTHS)
def test_bench_measures_everything(xtrace: Path, width: str, pace: str) -> None:
    done = record(xtrace, f"bench{width}", "--pace", pace, "--cmdline", "scale=1")
    assert done.status == 0, done.errors
    begun = re.findall(r"^bench: begin (\S+)$", done.console, re.MULTILINE)
    measured = re.findall(r"^bench: (\S+) (\d+) ns n=(\d+) ", done.console, re.MULTILINE)
    assert [name for name, _, _ in measured] == begun
    assert {
        "xen_version",
        "update_va_mapping",
        "mmu_update_512",
        "pin_unpin",
        "multicall_32",
        "page_fault",
        "int80",
    } <= set(begun)
    assert all(int(spent) > 0 for _, spent, _ in measured)
    assert done.lines[-1] == "bench: done"
    assert "not implemented" not in done.errors


# --- several guests -------------------------------------------------------------------------------------------------


def test_several_guests_have_their_names_before_their_lines(xtrace: Path) -> None:
    done = record(xtrace, "hello64", "hello32", "hello64", "--input", r"poweroff\n", "--for", "1s")
    assert done.status == 3
    assert {line.split(": ")[0] for line in done.lines} == {"hello64", "hello32", "hello64-2"}
    assert "hello64: Goodbye." in done.lines
    assert "hello32: > " in done.lines, "an unfinished last line is shown too"
    for name, width in (("hello64", 64), ("hello32", 32), ("hello64-2", 64)):
        assert any(line.startswith(f"{name}: Hello from hello{width}") for line in done.lines)


def test_domains_of_both_widths_share_the_processor(xtrace: Path) -> None:
    done = record(xtrace, "bench64", "bench32", "--cmdline", "scale=3")
    assert done.status == 0, done.errors
    with done.read() as recording:
        switches = recording.columns("domain")[recording.columns("kind") == Kind.SCHEDULE]
        assert np.count_nonzero(switches[1:] != switches[:-1]) > 10
        assert recording.domain_widths() == {1: 64, 2: 32}
    for name in ("bench64", "bench32"):
        assert f"{name}: bench: done" in done.lines


@pytest.mark.parametrize("width", WIDTHS)
def test_an_event_to_another_vcpu_and_its_answer_are_two_context_switches(xtrace: Path, width: str) -> None:
    done = record(xtrace, f"bench{width}", "--vcpus", "2", "--cmdline", "only=event_to_vcpu scale=1")
    assert done.status == 0, done.errors
    assert any(re.match(r"bench: event_to_vcpu \d+ ns n=400 ", line) for line in done.lines)
    with done.read() as recording:
        kinds = recording.columns("kind")
        assert 800 <= np.count_nonzero(kinds == Kind.SCHEDULE) < 850
        assert 400 <= np.count_nonzero(kinds == Kind.EVENT_UPCALL) < 450


def test_one_crash_leaves_the_other_domain_alone(xtrace: Path) -> None:
    done = record(xtrace, "hello64", "bench32", "--cmdline", "scale=1", "--input", r"crash\n")
    assert done.status == 1
    assert "bench32: bench: done" in done.lines


# --- configurations -------------------------------------------------------------------------------------------------


def test_xl_configuration(tmp_path: Path, xtrace: Path) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(
        f'name = "first"\nkernel = "{GUESTS_FOLDER / "hello32"}"\nmemory = 48\nextra = "c=d"\n'
        'vif = ["mac=00:16:3e:1:2:3"]\non_reboot = "destroy"\ntype = "pv"\n'
    )
    done = record(xtrace, path, "--input", r"reboot\n")
    assert done.status == 0
    assert re.search(r"= 48 MiB$", done.console, re.MULTILINE) and '"c=d"' in done.console
    assert len([line for line in done.lines if line.startswith("Hello")]) == 1, "on_reboot: not started again"
    assert f"xentui: warning: {path}:5:1: vif is not supported: ignored\n" in done.errors
    with done.read() as recording:
        assert recording.header["domains"][0]["name"] == "first"


def test_a_crash_leaves_a_core_where_it_is_asked_for(tmp_path: Path, xtrace: Path) -> None:
    path = tmp_path / "x.cfg"
    path.write_text(f'name = "x"\nkernel = "{GUESTS_FOLDER / "hello64"}"\nmemory = 8\non_crash = "coredump-destroy"\n')
    done = record(xtrace, path, "--core", tmp_path, "--input", r"crash\n")
    assert done.status == 1
    (core,) = tmp_path.glob("x-2003-1019-*.core")
    assert core.read_bytes()[:4] == b"\x7fELF" and f"x: its core is in {core}" in done.errors


def test_the_scheduler_is_chosen_and_told(xtrace: Path) -> None:
    done = record(xtrace, "hello64", "hello32", "--sched", "bvt", "--memory", "8", "--for", "50ms")
    other = record(xtrace.with_suffix(".credit"), "hello64", "hello32", "--memory", "8", "--for", "50ms")
    assert sorted(done.lines) == sorted(other.lines)
    for run, name in ((done, "bvt"), (other, "credit")):
        with run.read() as recording:
            assert recording.header["scheduler"] == name
            assert [(guest["cpu_weight"], guest["cap"]) for guest in recording.header["guests"]] == [(256, 0)] * 2


def test_on_crash_restart(tmp_path: Path, xtrace: Path) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(f'name = "x"\nkernel = "{GUESTS_FOLDER / "hello64"}"\nmemory = 32\non_crash = "restart"\n')
    done = record(xtrace, path, "--input", r"crash\npoweroff\n")
    assert done.status == 1, "a domain crashed, though it was started again"
    assert len([line for line in done.lines if line.startswith("Hello")]) == 2
    assert done.lines[-1] == "Goodbye."


def test_options_complete_a_configuration(tmp_path: Path, xtrace: Path) -> None:
    path = tmp_path / "guest.cfg"
    path.write_text(f'name = "x"\nkernel = "{GUESTS_FOLDER / "hello64"}"\nmemory = 32\nextra = "c=d"\n')
    done = record(xtrace, path, "--memory", "40", "--cmdline", "e=f", "--until", "Type")
    assert "= 40 MiB" in done.console and '"e=f"' in done.console


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_input_from_a_file(tmp_path: Path, xtrace: Path) -> None:
    (tmp_path / "keys").write_text("one\ntwo\npoweroff\n")
    done = record(xtrace, "hello64", "--input", f"@{tmp_path}/keys")
    assert done.status == 0
    assert [line for line in done.lines if line.startswith("You said")] == ["You said: one", "You said: two"]


def test_input_escapes(xtrace: Path) -> None:
    done = record(xtrace, "hello64", "--input", r"\x41\\B\npowerofg\x08f\n")
    assert done.status == 0, "a typed backspace takes the last character back"
    assert r"You said: A\B" in done.lines


def test_input_at_a_prompt(xtrace: Path) -> None:
    done = record(xtrace, "hello64", "--prompt", "^> $", "--input", r"one\ntwo\npoweroff\n")
    assert done.status == 0
    assert done.lines[-6:] == ["> one", "You said: one", "> two", "You said: two", "> poweroff", "Goodbye."]
    with done.read() as recording:
        assert max(piece.time for piece in recording.inputs()) < 300_000_000, "no need to wait until it is quiet"


def test_a_long_line_waits_for_room(xtrace: Path) -> None:
    """The ring to the guest holds 1 KiB; hello takes 79 characters of a line."""
    done = record(xtrace, "hello64", "--input", "x" * 3000 + r"\npoweroff\n")
    assert done.status == 0
    assert "You said: " + "x" * 79 in done.lines


# --- limits ---------------------------------------------------------------------------------------------------------


def test_until_a_match(xtrace: Path) -> None:
    done = record(xtrace, "hello64", "bench32", "--until", r"^bench: end update_va_\w+")
    assert done.status == 0
    assert "bench32: bench: end update_va_mapping" in done.lines
    assert "bench32: bench: done" not in done.lines
    with done.read() as recording:
        assert recording.summary is not None and recording.summary["reason"] == "matched"


def test_for_a_virtual_time(xtrace: Path) -> None:
    done = record(xtrace, "bench64", "--for", "12.5ms")
    assert done.status == 3
    with done.read() as recording:
        assert recording.summary is not None and recording.summary["reason"] == "time"
        assert 12_500_000 <= recording.summary["virtual_ns"] < 13_000_000


def test_nothing_left_to_happen(xtrace: Path) -> None:
    """A guest that waits for a key that nobody types: say so instead of waiting for ever."""
    done = record(xtrace, "hello64")
    assert done.status == 3
    assert "every domain waits for an event that will not come (type with --input)" in done.errors


def test_interrupted(xtrace: Path) -> None:
    process = start("--record", xtrace, *BUSY)
    assert process.stdout is not None
    assert b"bench64" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    done = finish(process, xtrace)
    assert done.status == 3
    with done.read() as recording:
        assert recording.summary is not None and recording.summary["reason"] == "interrupted"
        assert recording.summary["records"] == len(recording)


def test_interrupted_before_the_start(tmp_path: Path, xtrace: Path) -> None:
    """Ctrl-C while the command line is looked at: no traceback. A FIFO holds it there."""
    os.mkfifo(tmp_path / "keys")
    process = start("--record", xtrace, "hello64", "--input", f"@{tmp_path}/keys")
    with open(tmp_path / "keys", "wb"):
        process.send_signal(signal.SIGINT)
        done = finish(process, xtrace)
    assert done.status == 3
    assert done.errors.count("\n") == 1
    assert not xtrace.exists()


INTERRUPTED_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "xentui.record":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["xentui", "--version"]
from xentui.__main__ import main
sys.exit(main())
"""


def test_interrupted_while_modules_are_imported() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (3, b"xentui: interrupted\n", b"")


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">/dev/full", 3, "xentui: stdout cannot be written: No space left on device: the run was ended\n"),
        (">&-", 0, "(XEN) hello64: poweroff\n"),
        ("2>/dev/full", 0, ""),
        ("2>&-", 0, ""),
        ("<&-", 0, "(XEN) hello64: poweroff\n"),
    ],
)
def test_streams_that_are_full_or_closed(xtrace: Path, redirection: str, status: int, said: str) -> None:
    line = " ".join(map(shlex.quote, command("--record", xtrace, "hello64", "--input", r"poweroff\n")))
    done = subprocess.run(["sh", "-c", f"{line} {redirection}"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, said)
    with Recording(str(xtrace)) as recording:
        assert recording.complete


@pytest.mark.parametrize("width", [32, 64])
def test_endless_loops_end_at_the_limit(tmp_path: Path, xtrace: Path, width: int) -> None:
    loop = Tiny(width).do(FOREVER).write(tmp_path / "loop")
    done = record(xtrace, loop, "--memory", str(MEMORY), "--for", "50ms")
    assert done.status == 3
    with done.read() as recording:
        assert recording.summary is not None and recording.summary["virtual_ns"] == 50_000_000


def test_progress_on_a_terminal(tmp_path: Path, xtrace: Path) -> None:
    """Stderr that is a terminal shows how far the run is, in one line that is taken away at the end."""
    loop = Tiny(64).do(FOREVER).write(tmp_path / "loop")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("--record", xtrace, loop, "--memory", str(MEMORY)),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while b"hypercalls" not in shown:
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while more := os.read(ours, 4096):
            shown += more
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 3
    assert re.search(rb"\[ +\d+\.\d s, virtual +\d+\.\d+ s, [\d,]+ hypercalls, [\d,]+ traps\]", shown)
    assert shown.endswith(b"\r\x1b[K")
    os.close(ours)


def test_output_that_nobody_reads(xtrace: Path) -> None:
    """`| head -1`: no traceback, and a recording that is whole."""
    process = start("--record", xtrace, *BUSY)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait() == 3
    assert "Error" not in errors and "Traceback" not in errors
    with Recording(str(xtrace)) as recording:
        assert recording.complete


# --- killed ---------------------------------------------------------------------------------------------------------


def records_so_far(path: Path) -> int:
    """How many records a recording holds that is still being written."""
    try:
        with Recording(str(path)) as recording:
            return len(recording)
    except (OSError, RecordingError):
        return 0


def test_a_killed_run_leaves_all_but_its_last_chunk(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed.xtrace", tmp_path / "whole.xtrace"
    options = ("bench64", "--cmdline", "only=xen_version scale=400")
    process = start("--record", killed, *options)
    while records_so_far(killed) < 2 * CHUNK_RECORDS:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    complete = record(whole, *options)
    with Recording(str(killed)) as part, complete.read() as all_of_it:
        assert not part.complete and part.problem is not None and str(killed) in part.problem
        assert part.header == all_of_it.header
        count = len(part)
        assert 2 * CHUNK_RECORDS <= count < len(all_of_it)
        assert np.array_equal(part.records(0, count), all_of_it.records(0, count))
        ends = [entry.first_record + entry.records for entry in all_of_it.entries if entry.type == b"TRCE"]
        assert count in ends, "it ends where a chunk ends"


def test_a_second_interrupt_ends_at_once(xtrace: Path) -> None:
    """Also while the engine is in the middle of something: the recording is what a kill leaves."""
    process = start("--record", xtrace, *BUSY)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=30)
    assert process.returncode in (3, 128 + signal.SIGINT, 128 + signal.SIGTERM)
    with Recording(str(xtrace)) as recording:
        assert recording.header["domains"][0]["name"] == "bench64"


# --- what is not implemented ----------------------------------------------------------------------------------------


def test_unknown_hypercalls_are_listed_once_at_the_end(tmp_path: Path, xtrace: Path) -> None:
    kernel = Tiny(64)
    for number in (38, 38, 63, 4711, 38):
        kernel.call(number, 1, 2, 3)
    done = record(xtrace, kernel.shut_down().write(tmp_path / "unknown"), "--memory", str(MEMORY))
    assert done.status == 0
    expected = "not implemented, answered -ENOSYS: tmem_op (3x), hypercall 63 (1x), hypercall 4711 (1x)"
    assert done.errors.splitlines()[-1] == f"xentui: unknown: {expected}"
    with done.read() as recording:
        assert recording.summary is not None
        assert recording.summary["unimplemented"]["unknown"] == {"tmem_op": 3, "hypercall 63": 1, "hypercall 4711": 1}
        chosen = (recording.columns("kind") == Kind.HYPERCALL) & (recording.columns("number") == 38)
        refused = recording.columns("result")[chosen]
        assert [int(result) - (1 << 64) for result in refused] == [-38] * 3


def test_installed_script_and_module_are_the_same(xtrace: Path) -> None:
    code = "from xentui.__main__ import main; import sys; sys.argv = ['xentui', '--version']; main()"
    script = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert script.stdout.startswith("xentui ")
