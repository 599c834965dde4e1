"""The console as a user meets it: in a real terminal, on a real engine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import ROOT
from tests.tmux import Tmux, needed

pytestmark = pytest.mark.slow


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    needed()
    server = Tmux(tmp_path)
    yield server
    server.close()


def processes(mark: str) -> list[int]:
    """The processes whose environment holds a mark: the console, its engine, the engine's snapshots."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Console:
    """xentui in tmux."""

    def __init__(self, tmux: Tmux, folder: Path, *arguments: str, size: tuple[int, int] = (100, 40), **more: str):
        self.tmux, self.mark = tmux, f"xentui-test-{folder.name}-{os.getpid()}"
        environment = {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder), "XENTUI_TEST": self.mark, **more}
        shell = f"{sys.executable} -m xentui {' '.join(arguments)}; echo status $?; cat"
        tmux.start("sh", "-c", shell, size=size, **environment)

    @property
    def python(self) -> list[int]:
        """Processes of the console's and the engine's that live."""
        return [pid for pid in processes(self.mark) if b"python" in _command(pid)]

    def command(self, line: str) -> None:
        """A command by name."""
        self.tmux.keys(":")
        self.tmux.type(line)
        self.tmux.keys("Enter")

    def time(self) -> float:
        """The virtual time that the status bar tells, in seconds."""
        match = re.search(r"(?:running|paused|past)\s+(\d+)\.(\d{3}) (\d{3}) (\d{3}) s", self.tmux.text())
        assert match, self.tmux.text()
        return float(f"{match[1]}.{match[2]}{match[3]}{match[4]}")

    def gone(self) -> None:
        """Wait until none of its processes is left."""
        self.tmux.until(lambda: not self.python)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return b""


def test_open_type_pause_step_back_and_quit(tmux: Tmux, tmp_path: Path) -> None:
    console = Console(tmux, tmp_path, "hello64")
    tmux.shows("Hello from hello64, a 64-bit paravirtualized guest in ring 3.")
    tmux.keys("Enter")
    tmux.shows("typing to hello64")
    tmux.type("spam")
    tmux.keys("Enter")
    tmux.until(lambda: tmux.text().count("spam") >= 2)
    tmux.keys("F12")
    tmux.keys("Space")
    tmux.shows("■ paused")
    at = console.time()
    console.command("goto 50us")
    tmux.until(lambda: "◀ in the past" in tmux.text() and 50e-6 <= console.time() < 51e-6)
    tmux.until(lambda: "spam" not in tmux.text())
    there = console.time()
    console.command("step 20")
    tmux.until(lambda: console.time() > there)
    console.command("step-back 20")
    tmux.until(lambda: console.time() == there)
    tmux.keys("x")
    tmux.until(lambda: console.time() > there)
    ahead = console.time()
    tmux.keys("X")
    tmux.until(lambda: console.time() < ahead)
    tmux.keys("l")
    tmux.until(lambda: tmux.text().count("spam") >= 2)
    assert console.time() == at
    tmux.keys("q")
    tmux.shows("not saved;")
    tmux.keys("y")
    tmux.shows("status 0")
    console.gone()


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_the_demonstration_opens(tmux: Tmux, tmp_path: Path, size: tuple[int, int]) -> None:
    """Two guests, alive, and the last line says what to press."""
    console = Console(tmux, tmp_path, size=size)
    tmux.shows("▶ running")
    tmux.until(lambda: re.search(r"^ 1 \w+32 .*\n 2 \w+64 ", tmux.text(), re.MULTILINE))
    assert "q quit" in tmux.text().splitlines()[-1]
    tmux.run("resize-window", "-t", "t", "-x", "60", "-y", "18")
    tmux.until(lambda: len(tmux.text().splitlines()) == 18 and "quit" in tmux.text().splitlines()[-1])
    tmux.keys("q")
    tmux.shows("status 0")
    console.gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_killed_console_leaves_nothing_behind(tmux: Tmux, tmp_path: Path, number: int) -> None:
    console = Console(tmux, tmp_path, "hello32")
    tmux.shows("Hello from hello32")
    main = min(pid for pid in console.python if b"-m" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(main, number)
    console.gone()


def test_a_polite_kill_puts_the_terminal_back(tmux: Tmux, tmp_path: Path) -> None:
    console = Console(tmux, tmp_path, "hello32")
    tmux.shows("Hello from hello32")
    os.kill(min(pid for pid in console.python if b"-m" in Path(f"/proc/{pid}/cmdline").read_bytes()), signal.SIGTERM)
    tmux.shows("status 143")
    assert tmux.run("display", "-p", "-t", "t", "#{alternate_on}#{mouse_any_flag}").strip() == "00"
    console.gone()


def test_ctrl_c_leaves(tmux: Tmux, tmp_path: Path) -> None:
    console = Console(tmux, tmp_path, "hello32")
    tmux.shows("Hello from hello32")
    tmux.keys("C-c")
    tmux.shows("status 0")
    console.gone()


def test_a_killed_engine_is_explained_and_the_console_stays(tmux: Tmux, tmp_path: Path) -> None:
    console = Console(tmux, tmp_path, "hello32")
    tmux.shows("Hello from hello32")
    servers = [pid for pid in console.python if b"xentui.engine.server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in servers:
        os.kill(pid, signal.SIGKILL)
    tmux.shows("ENGINE ENDED")
    assert "Hello from hello32" in tmux.text()
    tmux.keys("q")
    tmux.shows("status 2")
    console.gone()


def test_no_colour(tmux: Tmux, tmp_path: Path) -> None:
    """NO_COLOR: the screen is grey."""
    Console(tmux, tmp_path, "hello32", NO_COLOR="1", COLORTERM="truecolor")
    tmux.shows("▶ running")
    for red, green, blue in re.findall(r"[34]8;2;(\d+);(\d+);(\d+)", tmux.run("capture-pane", "-p", "-e", "-t", "t")):
        assert red == green == blue


PANES = {
    "1": "Domains",
    "2": "Consoles",
    "3": "Trace",
    "4": "Ring crossings",
    "5": "CPU",
    "6": "Memory",
    "7": "Event channels",
    "8": "Shared rings",
    "9": "Scheduler",
    "0": "Inject",
}


def test_without_mouse_or_colour_in_a_tiny_window_and_back(tmux: Tmux, tmp_path: Path) -> None:
    """A VT100 has neither: every pane is reached by its key, and nothing breaks where nothing has room."""
    console = Console(tmux, tmp_path, "hello32", size=(80, 24), TERM="vt100", NO_COLOR="1")
    tmux.shows("▶ running")
    tmux.keys("Space")
    tmux.shows("paused")
    for key, title in PANES.items():
        tmux.keys(key)
        tmux.until(lambda title=title: re.search(f"━ . {title} ", tmux.text()))
    for width, height in ((20, 5), (7, 2), (80, 24)):
        tmux.run("resize-window", "-t", "t", "-x", str(width), "-y", str(height))
        tmux.until(lambda height=height: len(tmux.text().splitlines()) == height and tmux.text().strip())
    tmux.until(lambda: "paused" in tmux.text() and "quit" in tmux.text().splitlines()[-1])
    tmux.keys("q")
    tmux.shows("status 0")
    console.gone()


def test_a_recording_opens_paused_at_its_start(tmux: Tmux, tmp_path: Path) -> None:
    path = tmp_path / "hello.xtrace"
    command = [sys.executable, "-m", "xentui", "--record", str(path), "hello32", "--input", "poweroff\\n"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False).returncode == 0
    console = Console(tmux, tmp_path, "--replay", str(path))
    tmux.until(lambda: "in the past" in tmux.text() and console.time() < 0.001)
    assert "Hello from" not in tmux.text()
    tmux.keys("l")
    tmux.shows("Hello from hello32")
    tmux.keys("q")
    tmux.shows("status 0")


def test_a_recording_that_is_none_is_refused(tmux: Tmux, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a recording")
    Console(tmux, tmp_path, "--replay", str(tmp_path / "text"))
    tmux.shows("status 2")
    assert "xentui: " in tmux.text() and "Traceback" not in tmux.text()
