"""The console on a web page: through its websocket, and in a real browser where one is installed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests import browser
from tests.browser import Browser, until
from tests.command import ROOT, run
from tests.test_console_tmux import processes
from xentui import cli
from xentui.screens.terminal import Terminal


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Served:
    """`xentui --serve`, and what is left of it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port, self.mark = free_port(), f"xentui-test-{folder.name}-{os.getpid()}"
        environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "XENTUI_TEST": self.mark}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xentui", "--serve", str(self.port), *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert f"http://127.0.0.1:{self.port}" in line, line

    @property
    def address(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def others(self) -> list[int]:
        """The processes of the pages."""
        return [pid for pid in processes(self.mark) if pid != self.process.pid]

    def end(self) -> str:
        """Ctrl-C; what it has said since the first line."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=browser.SECONDS)[0].decode()


class Page:
    """A page without a browser: the other end of the websocket."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, width: int, height: int) -> None:
        self.websocket, self.terminal = websocket, Terminal(width, height)
        self.listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self.websocket:
            if message.type == aiohttp.WSMsgType.BINARY:
                self.terminal.feed(message.data)

    @property
    def text(self) -> str:
        return "\n".join(self.terminal.text())

    async def shows(self, words: str) -> None:
        await until(lambda: words in self.text)

    async def press(self, keys: str) -> None:
        await self.websocket.send_json(["stdin", keys])


@asynccontextmanager
async def page_of(served: Served, width: int = 100, height: int = 30):
    """Open a page."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{served.address}/ws?width={width}&height={height}") as websocket,
    ):
        yield Page(websocket, width, height)


def drive(served: Served, steps: Callable[[Served], Awaitable[None]]) -> None:
    """Take steps on what is served; then nothing is left of it."""
    try:
        asyncio.run(asyncio.wait_for(steps(served), 3 * browser.SECONDS))
    finally:
        said = served.end()
    assert served.process.returncode == 0 and "Traceback" not in said, said
    assert not processes(served.mark)


@pytest.mark.slow
def test_every_page_has_a_run_of_its_own_that_ends_with_it(tmp_path: Path) -> None:
    async def steps(served: Served) -> None:
        async with page_of(served) as one, page_of(served, 80, 24) as other:
            await one.shows("Hello from hello32")
            await other.shows('Type "help".')
            await one.press(" ")
            await one.shows("paused")
            assert "paused" not in other.text
            both = set(served.others)
            await one.websocket.send_str("not what a page says")
            await one.press("q")
            await until(lambda: one.websocket.closed)  # left by its key
            await until(lambda: len(set(served.others)) <= len(both) // 2)
            await other.websocket.send_json(["resize", {"width": 90, "height": 20}])
            await other.press(" ")
            await other.shows("paused")
        await until(lambda: not served.others)  # closed

    drive(Served(tmp_path, "hello32"), steps)


@pytest.mark.slow
def test_a_demonstration_follows_on_the_same_page(tmp_path: Path) -> None:
    async def steps(served: Served) -> None:
        async with page_of(served) as page:
            await page.shows("Hello from hello32")
            await page.press(":demo hypercall\r")
            await page.shows("A hypercall from both sides")
            await page.press("q")
            await until(lambda: page.websocket.closed)
        await until(lambda: not served.others)

    drive(Served(tmp_path, "hello32"), steps)


@pytest.mark.slow
def test_ctrl_c_and_kill_leave_nothing_behind(tmp_path: Path) -> None:
    async def steps(served: Served) -> None:
        async with page_of(served) as page:
            await page.shows("running")
            os.kill(served.process.pid, signal.SIGKILL)
            await until(lambda: not served.others)

    killed = Served(tmp_path)
    asyncio.run(steps(killed))
    killed.process.communicate()

    async def interrupted(served: Served) -> None:
        async with page_of(served) as page:
            await page.shows("running")
            served.process.send_signal(signal.SIGINT)
            await until(lambda: not processes(served.mark) or served.process.poll() is not None)
            await until(lambda: not served.others)

    drive(Served(tmp_path), interrupted)


@pytest.mark.slow
def test_only_this_machines_own_pages_are_served(tmp_path: Path) -> None:
    async def steps(served: Served) -> None:
        async with aiohttp.ClientSession() as session:
            for address, headers, status in (
                ("/", {}, 200),
                ("/?fontsize=<script>", {}, 200),
                ("/", {"Host": "elsewhere.example"}, 403),
                ("/ws", {"Origin": "http://elsewhere.example"}, 403),
                ("/ws", {"Host": f"elsewhere.example:{served.port}"}, 403),
            ):
                async with session.get(served.address + address, headers=headers) as answer:
                    text = await answer.text()
                    assert answer.status == status, (address, headers, text)
                    assert "<script>0" not in text and "googleapis" not in text
        assert not served.others
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", served.port), 1).close()

    drive(Served(tmp_path), steps)


@pytest.mark.slow
def test_in_a_real_browser(tmp_path: Path) -> None:
    browser.needed()

    async def steps(served: Served) -> None:
        chromium = Browser(tmp_path, 1300, 860)
        try:
            await chromium.connect()
            await chromium.open(served.address)
            await until(lambda: "Hello from hello64" in chromium.received)
            await chromium.press(" ", " ")
            await until(lambda: "paused" in chromium.received)
            await chromium.settled()
            before = await chromium.look()
            await chromium.press("?", "?")
            await until(lambda: "real terminal" in chromium.received)
            await chromium.settled()
            assert await chromium.look() != before
            await chromium.press("q", "q")
            await chromium.press("q", "q")
            await chromium.until("document.body.classList.contains('-closed')")
            await chromium.open(served.address)
            chromium.received = ""
            await until(lambda: "Hello from hello64" in chromium.received)
        finally:
            await chromium.close()
        await until(lambda: not served.others)

    drive(Served(tmp_path, "hello64"), steps)


def test_what_cannot_be_served_is_told_in_a_line(tmp_path: Path) -> None:
    """Before any page is opened."""
    for arguments, words in (
        (("--serve", "99999"), "ports from 1 to 65535"),
        (("--serve", "guest-that-is-not"), "guest-that-is-not"),
        (("--serve", "--demo", "dance"), "no demonstration is called 'dance'"),
        (("--serve", "--replay", str(tmp_path / "none")), "none"),
        (("--serve", "hello32", "--gdb", "hello32=:4321"), "--gdb and --serve exclude each other"),
        (("--serve", "--record", str(tmp_path / "r"), "hello32"), "--record excludes it"),
    ):
        done = run(*arguments)
        assert done.status == 2 and words in done.errors and done.errors.count("\n") == 1, done.errors
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--serve", str(taken.getsockname()[1]))
    assert done.status == 2 and "cannot listen there: Address already in use" in done.errors, done.errors


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "textual_serve.py").write_text("raise ModuleNotFoundError(name='textual_serve')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    done = run("--serve")
    assert done.status == 2 and done.errors == "xentui: --serve needs textual_serve: pip install 'xentui[serve]'\n"


def test_the_port_may_be_left_out() -> None:
    for given, page in (
        (["--serve"], []),
        (["--serve", "hello32"], ["hello32"]),
        (["--serve", "8080", "--demo", "events"], ["--demo", "events"]),
        (["hello32", "--seed", "5", "--serve=8080"], ["hello32", "--seed", "5"]),
    ):
        completed = cli._with_port(given)
        assert cli.build_parser([]).parse_args(completed).serve == (8080 if "80" in "".join(given) else cli.SERVE_PORT)
        assert cli._without_serve(completed) == page
