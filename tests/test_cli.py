"""The command line: what it understands, and what it says to what it does not."""

from __future__ import annotations

import gzip
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import Done, record, run
from tests.elf_builder import Elf
from tests.kernels import Kernels
from xentui import cli
from xentui.config import GUESTS_FOLDER, built_in_guests
from xentui.console import problem_with_terminal

HELLO = GUESTS_FOLDER / "hello64"


def refused(done: Done, *words: str) -> None:
    """The command refused: one line that has every word, exit status 2, nothing printed, no recording left."""
    assert done.status == 2, (done.status, done.errors)
    assert re.fullmatch(r"xentui: [^\n]+\n", done.errors), done.errors
    assert [word for word in words if word not in done.errors] == [], done.errors
    assert done.console == ""
    assert not done.recording.exists()


# --- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "ns"),
    [
        *(("1ns", 1), ("20us", 20_000), ("20ms", 20_000_000), ("1.5s", 1_500_000_000), ("3 s", 3_000_000_000)),
        *(("2m", 120_000_000_000), ("1min", 60_000_000_000)),
    ],
)
def test_times(said: str, ns: int) -> None:
    assert cli.build_parser([]).parse_args(["--for", said]).limit == ns


@pytest.mark.parametrize("said", ["", "3", "ms", "-3ms", "3 weeks", "1e3s", "0x10ms", "٣s"])
def test_no_times(said: str) -> None:
    with pytest.raises(cli.UsageError, match="is not a time"):
        cli.build_parser([]).parse_args([f"--for={said}"])


@pytest.mark.parametrize("said", ["4000000000s", f"{'9' * 400}ms"])
@pytest.mark.parametrize("option", ["--for={}", "--inject={}:crash hello64"])
def test_times_beyond_what_the_clock_counts(option: str, said: str) -> None:
    with pytest.raises(cli.UsageError, match="a hundred years"):
        cli.build_parser([]).parse_args([option.format(said)])


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("a", b"a"),
        (r"a\n", b"a\r"),
        (r"a\r\n\tb", b"a\r\tb"),
        (r"\x41\x03\e", b"A\x03\x1b"),
        (r"\\n\0", b"\\n\0"),
        (r"\q", rb"\q"),
        ("ü", "ü".encode()),
        ("", b""),
    ],
)
def test_typed_text(said: str, typed: bytes) -> None:
    """Enter is CR, as a terminal sends it; what is no escape stays."""
    assert cli.build_parser([]).parse_args(["--input", said]).input == typed


def test_typed_file(tmp_path: Path) -> None:
    """A file is typed as it is, but for its line ends."""
    (tmp_path / "keys").write_bytes(b"one\r\ntwo\n\\n\xff")
    assert cli.build_parser([]).parse_args(["--input", f"@{tmp_path}/keys"]).input == b"one\rtwo\r\\n\xff"


def test_patterns_match_bytes_and_lines() -> None:
    pattern = cli.build_parser([]).parse_args(["--until", "^ü.*$"]).until
    assert pattern.search("one\nüber\ntwo".encode())[0] == "über".encode()


# --- without --record -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guests", [(), ("hello64", "bench32")])
def test_the_console_needs_a_terminal(guests: tuple[str, ...]) -> None:
    refused(run(*guests), "the console needs a terminal", "--record FILE")


@pytest.mark.parametrize("term", ["", "dumb"])
def test_the_console_needs_a_terminal_that_can_do_something(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert "TERM is dumb or not set" in problem_with_terminal()


@pytest.mark.parametrize("option", [("--until", "x"), ("--for", "1s"), ("--core", "/"), ("--audit",)])
def test_limits_are_for_recording(option: tuple[str, ...]) -> None:
    refused(run("hello64", *option), option[0], "needs --record")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--replay", "x", "--memory", "64"], ["--replay", "excludes --memory"]),
        (["--replay", "x", "--demo", "events"], ["--replay", "excludes --demo"]),
        (["--replay", "x", "--gdb", "hello64=:1"], ["--replay", "excludes --gdb"]),
        (["--replay", "x", "hello64"], ["--replay", "name no others"]),
        (["--demo", "events", "--pace", "fast", "--inject", "crash demo32"], ["--demo", "excludes --pace, --inject"]),
        (["--demo", "events", "hello64"], ["--demo", "name no others"]),
        (["--record", "x", "--replay", "y"], ["--replay", "--record excludes it"]),
        (["--record", "x", "--demo", "events"], ["--demo", "--record excludes it"]),
        (["--record", "x", "hello64", "--gdb", "hello64=:1"], ["--gdb", "--record excludes it"]),
    ],
)
def test_options_that_exclude_each_other(options: list[str], words: list[str]) -> None:
    refused(run(*options), *words)


@pytest.mark.parametrize("name", ["text", "folder", ""])
def test_what_is_no_demonstration(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "folder").mkdir()
    refused(run("--demo", tmp_path / name if name else ""), "demonstration", ".md")


def test_without_record_guests_are_looked_at_too(tmp_path: Path) -> None:
    refused(run("helo64"), "helo64", "did you mean hello64?")
    refused(run(tmp_path), str(tmp_path), "is a directory")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hello64", ["give NAME=ADDRESS"]),
        ("hello64=:99999999", [":99999999", "is no address"]),
        ("hello32=:1234", ["hello32", "there is hello64"]),
        ("hello64=/nonexistent/gdb", ["/nonexistent/gdb", "cannot listen there", "No such file"]),
    ],
)
def test_gdb_addresses_are_looked_at_before_the_console_opens(address: str, words: list[str]) -> None:
    refused(run("hello64", "--gdb", address), "--gdb", *words)


def test_a_gdb_address_that_is_taken(tmp_path: Path) -> None:
    """A port, a Unix socket on which somebody listens, or what an earlier option has named."""
    path = tmp_path / "gdb"
    with socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen(1)
        for address in (f":{port.getsockname()[1]}", str(path)):
            refused(run("hello64", "--gdb", f"hello64={address}"), address, "Address already in use")
    twice = ["--gdb", f"hello64={tmp_path / 'two'}", "--gdb", f"hello64-2={tmp_path / 'two'}"]
    refused(run("hello64", "hello64", *twice), "two", "Address already in use")
    assert not (tmp_path / "two").exists(), "what was opened is closed"


def test_a_gdb_socket_that_a_killed_server_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
    refused(run("hello64", "--gdb", f"hello64={path}"), "the console needs a terminal")
    assert not path.exists()


def test_help_names_guests_options_and_statuses() -> None:
    done = run("--help")
    assert done.status == 0 and done.errors == ""
    for word in (*built_in_guests(), "--until", "--for", "--input", "--prompt", "--pace", "--seed", "0 when", "3 when"):
        assert word in done.console
    assert max(map(len, done.lines)) <= 120


def test_version() -> None:
    assert run("--version").console.startswith("xentui 0.")


# --- bad options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "0"], ["--memory", "0", "from 1"]),
        (["--memory", "much"], ["--memory", "much", "not a whole number"]),
        (["--vcpus", "0"], ["--vcpus", "0", "from 1 to 32"]),
        (["--vcpus", "33"], ["--vcpus", "33", "from 1 to 32"]),
        (["--pace", "slow"], ["--pace", "slow", "exact", "fast"]),
        (["--for", "3"], ["--for", "3", "as in 20ms"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--until", "("], ["--until", "(", "not a regular expression"]),
        (["--prompt", "["], ["--prompt", "[", "not a regular expression"]),
        (["--input", "@/nonexistent/keys"], ["--input", "/nonexistent/keys", "No such file"]),
        (["--record"], ["--record", "expected one argument"]),
        (["--rec", "x"], ["--rec"]),
        (["--ramdisk", "/nonexistent/initrd"], ["/nonexistent/initrd", "ramdisk", "No such file"]),
        (["--ramdisk", "/"], ["/", "ramdisk", "Is a directory"]),
        (["--core", "/nonexistent"], ["--core", "/nonexistent", "no such folder"]),
    ],
)
def test_impossible_option_values(xtrace: Path, options: list[str], words: list[str]) -> None:
    refused(record(xtrace, "hello64", *options), *words)


def test_record_without_a_guest(xtrace: Path) -> None:
    refused(record(xtrace), "--record needs a guest")


def test_more_memory_than_the_host_has(xtrace: Path) -> None:
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    refused(record(xtrace, "hello64", "--memory", str(host + 1)), str(host), "--memory")
    half = str(host // 2 + 1)
    refused(record(xtrace, "hello64", "hello32", "--memory", half), str(host), "--memory")


@pytest.mark.parametrize("guest", ["hello32", "hello64"])
def test_memory_too_small_for_the_image(xtrace: Path, guest: str) -> None:
    done = record(xtrace, guest, "--memory", "1")
    refused(done, guest, "1 MiB", "at least", "--memory")
    least = re.search(r"at least (\d+) MiB", done.errors)
    assert least is not None
    done = record(xtrace, guest, "--memory", least[1], "--until", "Type")
    assert done.status == 0, done.errors


@pytest.mark.parametrize("where", ["folder", "nowhere", "unwritable"])
def test_recording_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    path = {"folder": tmp_path, "nowhere": tmp_path / "no" / "x.xtrace", "unwritable": Path("/proc/x.xtrace")}[where]
    done = record(path, "hello64", "--until", "Type")
    assert done.status == 2 and done.console == ""
    assert done.errors.startswith(f"xentui: {path}: ") and done.errors.count("\n") == 1


@pytest.mark.parametrize("over", ["kernel", "ramdisk", "guest.cfg"])
def test_a_recording_over_what_it_is_made_from(tmp_path: Path, over: str) -> None:
    kernel, ramdisk, configuration = (tmp_path / name for name in ("kernel", "ramdisk", "guest.cfg"))
    kernel.write_bytes(HELLO.read_bytes())
    ramdisk.write_bytes(b"x" * 100)
    configuration.write_text(f'name="a"\nkernel="{kernel}"\nramdisk="{ramdisk}"\n')
    before = (tmp_path / over).read_bytes()
    done = run("--record", tmp_path / over, configuration)
    refused(done, str(tmp_path / over), "a is made from this file")
    assert (tmp_path / over).read_bytes() == before


def test_an_old_recording_survives_a_bad_command(xtrace: Path) -> None:
    xtrace.write_text("mine")
    assert record(xtrace, "hello64", "--memory", "1").status == 2
    assert xtrace.read_text() == "mine"


# --- bad images -----------------------------------------------------------------------------------------------------


def compressed_with_an_error() -> bytes:
    """A gzip stream of a good kernel with one byte changed."""
    data = bytearray(gzip.compress(HELLO.read_bytes(), mtime=0))
    data[len(data) // 2] ^= 0x55
    return bytes(data)


NOTE_OUTSIDE = Elf(raw_notes=b"\x04\0\0\0\xff\xff\0\0\1\0\0\0Xen\0").build()
HVM_ONLY = Elf(base=0, entry=0x10_0000, notes={"ENTRY": None, "VIRT_BASE": None, "PHYS32_ENTRY": bytes(8)}).build()

BAD_IMAGES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["is empty"]),
    "text": (b"This is no kernel.\n", ["text file", "give an ELF file"]),
    "truncated": (HELLO.read_bytes()[:9000], ["truncated", "copy or unpack the file anew"]),
    "head": (HELLO.read_bytes()[:40], ["truncated"]),
    "corrupt.gz": (compressed_with_an_error(), ["corrupt", "gzip", "copy the file anew"]),
    "no-notes": (Elf(raw_notes=b"").build(), ["no Xen notes", "built for Xen PV"]),
    "note-outside": (NOTE_OUTSIDE, ["note"]),
    "hvm-only": (HVM_ONLY, ["built for HVM or PVH only"]),
    "random": (bytes(range(256)) * 64, ["not a kernel"]),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(tmp_path: Path, xtrace: Path, name: str) -> None:
    content, words = BAD_IMAGES[name]
    path = tmp_path / name
    path.write_bytes(content)
    refused(record(xtrace, path), f"xentui: {path}: ", *words)


def test_missing_file_and_folder(tmp_path: Path, xtrace: Path) -> None:
    refused(record(xtrace, tmp_path / "nosuch"), f"{tmp_path}/nosuch: no such file", "hello64")
    refused(record(xtrace, tmp_path), f"{tmp_path}: is a directory")


@pytest.mark.parametrize(("said", "meant"), [("helo64", "hello64"), ("bnech32", "bench32"), ("selftst", "selftest")])
def test_unknown_guest(xtrace: Path, said: str, meant: str) -> None:
    refused(record(xtrace, said), said, f"did you mean {meant}?")


def test_plain_program(xtrace: Path) -> None:
    refused(record(xtrace, "/bin/true"), "/bin/true")


@pytest.mark.kernels
def test_plain_static_program(xtrace: Path, kernels: Kernels) -> None:
    refused(record(xtrace, kernels.busybox), f"{kernels.busybox}: ", "no Xen notes", "CONFIG_XEN_PV")


@pytest.mark.kernels
def test_corrupt_and_cut_linux(tmp_path: Path, xtrace: Path, kernels: Kernels) -> None:
    path = tmp_path / "vmlinuz"
    image = bytearray(kernels.linux.read_bytes())
    path.write_bytes(image[: len(image) // 2])
    refused(record(xtrace, path), f"{path}: ", "copy the file anew")
    image[len(image) // 2] ^= 0x10
    path.write_bytes(image)
    refused(record(xtrace, path), f"{path}: ", "corrupt", "xz", "copy the file anew")


# --- bad configurations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('name = "x"\nkernel = vmlinuz\n', ":2:10: ", ["syntax error", "put strings into quotes"]),
        ('name = "x\n', ":1:8: ", ["syntax error"]),
        ('name = "x"\nkernel = "%s"\nmemory = [1,\n', ":4:1: ", ["syntax error"]),
        ('name = "x"\nkernel = "%s"\nmemory = "lots"\n', ":3:1: ", ["memory", "lots", "not a number"]),
        ('name = "x"\nkernel = "%s"\non_crash = "explode"\n', ":3:1: ", ["on_crash", "explode", "preserve"]),
        ('name = "x"\nkernel = "%s"\ntype = "hvm"\n', ":3:1: ", ["hvm", 'type = "pv"']),
        ('kernel = "%s"\n', ": ", ["name is not set"]),
        ('name = "x"\n', ": ", ["kernel is not set"]),
        ('name = "x"\nkernel = "/nonexistent/vmlinuz"\n', ":2:1: ", ["/nonexistent/vmlinuz"]),
    ],
)
def test_bad_configurations(tmp_path: Path, xtrace: Path, text: str, place: str, words: list[str]) -> None:
    """The line names file, line and column."""
    path = tmp_path / "guest.cfg"
    path.write_text(text.replace("%s", str(HELLO)))
    refused(record(xtrace, path), f"xentui: {path}{place}", *words)


_ASKED = """
import os, sys
from unittest import mock
from xentui import console

def start(_setup):
    assert "textual" not in sys.modules
    raise SystemExit(0)

with mock.patch("xentui.engine.process.Engine.start", start), mock.patch.object(
    console, "problem_with_terminal", lambda: None
):
    try:
        console._show(None, run=False)
    except SystemExit:
        pass
from textual.constants import ESCAPE_DELAY
print(ESCAPE_DELAY)
"""


@pytest.mark.parametrize(("own", "seconds"), [(None, 0.025), ("70", 0.07)])
def test_a_lone_escape_is_soon_a_key(own: str | None, seconds: float) -> None:
    """Textual waits for what may follow it, as long as its environment says when it is imported."""
    environment = {key: value for key, value in os.environ.items() if key != "ESCDELAY"}
    if own is not None:
        environment["ESCDELAY"] = own
    command = [sys.executable, "-c", _ASKED]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert float(told.stdout) == seconds
