"""The real gdb on a domain of either width: registers, memory, symbols, breakpoints, watchpoints, steps, and back."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from xentui.config import GUESTS_FOLDER, resolve_guest
from xentui.engine.messages import Setup
from xentui.engine.process import Engine
from xentui.gdb import server

pytestmark = pytest.mark.slow


class Served:
    """An engine with one guest, served to gdb on a Unix socket by a thread of its own."""

    def __init__(self, guest: str, path: Path, until: int = 0) -> None:
        """`until`: virtual ns that it has run when gdb comes."""
        self.guest, self.path = guest, path
        self.engine = Engine.start(Setup([resolve_guest(guest)]))
        self.engine.set_warp(True)
        self.engine.wait(20)
        if until:
            self.engine.goto(time=until)
            self.engine.wait(20)
        self.over = False
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        def idle() -> bool:
            self.engine.pump()
            return self.over

        try:
            server.serve(self.engine, [(self.guest, str(self.path))], idle)
        except BaseException as error:
            self.failure = error
            raise

    def gdb(self, *commands: str) -> str:
        """What the real gdb prints."""
        image = GUESTS_FOLDER / self.guest
        script = ["set pagination off", "set confirm off", f"target remote {self.path}", *commands]
        arguments = [word for command in script for word in ("-ex", command)]
        command = ["gdb", "-q", "-nx", "-batch", str(image), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert self.failure is None, self.failure
        return done.stdout + done.stderr

    def close(self) -> None:
        self.over = True
        self.thread.join(10)
        self.engine.close()


@pytest.fixture(params=["hello32", "hello64"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    if not shutil.which("gdb"):
        pytest.fail("gdb is not installed: apt-get install gdb")
    made = Served(request.param, tmp_path / "gdb")
    yield made
    made.close()


def test_breakpoints_registers_memory_and_symbols(served: Served) -> None:
    told = served.gdb(
        "break console_line", "continue", "info registers", "x/2i $pc", "bt 1", "info threads", "print start_info != 0",
        "x/s &guest_name", "kill",
    )  # fmt: skip
    assert "Breakpoint 1" in told and "console_line" in told
    counter = "rip" if served.guest.endswith("64") else "eip"
    assert re.search(rf"^{counter} +0x\w+ +0x\w+ <console_line\+?\d*>", told, re.MULTILINE), told
    assert re.search(r"=> 0x\w+ <console_line", told), told
    assert '"hello"' in told
    assert "vCPU 0 of " + served.guest in told


def test_stepping_and_back(served: Served) -> None:
    counter = "$rip" if served.guest.endswith("64") else "$eip"
    told = served.gdb(
        "break console_write", "continue",
        f"printf \"at %lx\\n\", (long){counter}", "stepi", f"printf \"at %lx\\n\", (long){counter}",
        "stepi", "reverse-stepi", f"printf \"at %lx\\n\", (long){counter}",
        "reverse-stepi", f"printf \"at %lx\\n\", (long){counter}",
        "continue", "reverse-continue", f"printf \"at %lx\\n\", (long){counter}",
    )  # fmt: skip
    places = re.findall(r"^at (\w+)$", told, re.MULTILINE)
    assert len(places) == 5, told
    first, second, third, fourth, last = places
    assert first != second
    assert third == second and fourth == first, told
    assert last == first, told  # the breakpoint before the one that the second continue came to


def test_watchpoints_forwards_and_back(served: Served) -> None:
    told = served.gdb(
        "break guest_main", "continue", "delete", "watch *(char*)&port_is_handled", "continue", "info symbol $pc",
        "watch *(char*)&timer_fired", "delete 3", "tbreak console_read", "continue",
        "reverse-continue", "info symbol $pc",
    )  # fmt: skip
    assert "Old value = 0 '\\000'\nNew value = 1 '\\001'" in told, told
    places = re.findall(r"^(\w+)(?: \+ \d+)? in section \.text", told, re.MULTILINE)
    assert places == ["console_line", "console_line"], told


def test_registers_and_memory_written(served: Served) -> None:
    register = "$rbx" if served.guest.endswith("64") else "$ebx"
    told = served.gdb(
        "break console_line", "continue", f"set {register} = 0x1234", f"print/x {register}",
        "set {char[4]}&guest_name = \"abc\"", "x/s &guest_name", "monitor status", "monitor dance",
    )  # fmt: skip
    assert "0x1234" in told
    assert '"abc"' in told, told
    assert "virtual time" in told and "inject FAULT" in told


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("hello64", "give NAME=ADDRESS"),
        ("hello64=1234", "is no address"),
        ("hello64=:99999", "is no address"),
        ("hello64=10.0.0.1:1234", "only this machine's own gdb"),
    ],
)
def test_addresses_that_are_refused(argument: str, reason: str) -> None:
    with pytest.raises(server.GdbError, match=reason):
        server.parse(argument)
    assert server.parse("a=:1234") == server.parse("a=localhost:1234") == ("a", ":1234")


@pytest.mark.parametrize("guest", ["hello32", "hello64"])
def test_the_session_in_the_documentation(guest: str, tmp_path: Path) -> None:
    """docs/debugging.md shows what gdb prints."""
    text = (Path(__file__).parent.parent / "docs" / "debugging.md").read_text()
    blocks = re.findall(r"```\n(\(gdb\).*?)```", text, re.DOTALL)
    block = next(each for each in blocks if ("0xffffffff" in each) == guest.endswith("64"))
    lines = block.splitlines()
    commands = [line.removeprefix("(gdb) ") for line in lines if line.startswith("(gdb) ")]
    assert commands[0] == "target remote :1234" and len(commands) > 10
    served = Served(guest, tmp_path / "gdb", 1_000_000)
    try:
        told = served.gdb(*commands[1:])
    finally:
        served.close()
    at = 0
    for line in lines:
        if not line.startswith("(gdb) "):
            found = told.find(line, at)
            assert found >= 0, (line, told)
            at = found + len(line)
