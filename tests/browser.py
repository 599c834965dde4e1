"""A real browser for the tests: Chromium without a window, driven by its own debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 60
"""Host seconds that something may take before it counts as never happening."""
_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip


def needed() -> None:
    """Skip the test where there is no Chromium; never in CI."""
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            raise FileNotFoundError("chromium")
        pytest.skip("there is no Chromium here; the page's websocket is tested without it")


class Browser:
    """One page of Chromium. `received`: what came to the page by its websocket, as text."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        assert CHROMIUM is not None
        self.folder, self.received = folder, ""
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.process = subprocess.Popen(
            [CHROMIUM, *_QUIET, f"--user-data-dir={folder}", f"--window-size={width},{height}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("w"),
        )

    async def connect(self) -> None:
        """Find the page, and listen to it."""
        log = self.folder / "log"
        await until(lambda: "DevTools listening on" in log.read_text())
        address = re.search(r"DevTools listening on ws://([^/]+)/", log.read_text())
        assert address is not None
        self._http = aiohttp.ClientSession()
        async with self._http.get(f"http://{address[1]}/json/list") as answer:
            page = next(each for each in await answer.json() if each["type"] == "page")
        self._socket = await self._http.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        self._listener = asyncio.create_task(self._listen())
        for domain in ("Network", "Page", "Runtime"):
            await self.call(f"{domain}.enable")

    async def _listen(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Network.webSocketFrameReceived":
                frame = told["params"]["response"]
                data = base64.b64decode(frame["payloadData"]) if frame["opcode"] == 2 else frame["payloadData"].encode()
                self.received += data.decode(errors="replace")

    async def call(self, method: str, **arguments: Any) -> Any:
        """A method of the protocol; its result."""
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": arguments})
        told = await asyncio.wait_for(answer, SECONDS)
        assert "error" not in told, told
        return told["result"]

    async def open(self, address: str) -> None:
        """Go to a page."""
        await self.call("Page.navigate", url=address)

    async def press(self, key: str, text: str = "") -> None:
        """Press a key; `text`: what it types."""
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def look(self) -> bytes:
        """The page as a PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot"))["data"])

    async def value(self, script: str) -> Any:
        """What an expression of JavaScript comes to."""
        return (await self.call("Runtime.evaluate", expression=script, returnByValue=True))["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait for an expression of JavaScript to become true."""
        end = time.monotonic() + SECONDS
        while not await self.value(script):
            assert time.monotonic() < end, f"never true: {script}"
            await asyncio.sleep(0.1)

    async def settled(self) -> None:
        """Wait until the page looks the same twice."""
        before = b""
        while (now := await self.look()) != before:
            before = now
            await asyncio.sleep(0.5)

    async def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait(SECONDS)
        if hasattr(self, "_listener"):
            self._listener.cancel()
            await self._http.close()


async def until(true: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "never happened"
        await asyncio.sleep(0.05)
