"""`xentui --serve`: the console on a web page of this machine, through textual-serve (pip install 'xentui[serve]').

Every page is a console of its own, in a process of its own with an engine of its own; they end when the page is closed.
What comes from another site's page is refused: who may type into a console may write files.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from string import Template
from typing import TYPE_CHECKING

from aiohttp import WSMsgType, web
from aiohttp.web_runner import GracefulExit
from textual_serve.app_service import AppService
from textual_serve.server import Server

from xentui.console import PAGE_DRIVER

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

    from aiohttp.typedefs import Handler

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""What a browser on this machine may call it."""
FONT_SIZE = 16
SECONDS = 5.0
"""Host seconds that a console has for its end before it is killed."""

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title</title>
<link rel="stylesheet" href="/static/css/xterm.css">
<script src="/static/js/textual.js"></script>
<style>
  @font-face { font-family: "Roboto Mono"; src: url(/static/fonts/RobotoMono-VariableFont_wght.ttf); }
  body { background: #0e1319; color: #dfe6ee; font: 16px "Roboto Mono", monospace; margin: 0; }
  p { position: absolute; inset: 0; margin: auto; height: 2em; text-align: center; }
  .over { display: none; }
  body.-first-byte .starting { display: none; }
  body.-closed .over { display: block; z-index: 10; background: #0e1319; }
  a { color: #5aa9ff; }
</style>
</head>
<body>
<p class="starting">xentui is starting …</p>
<p class="over">This run has ended. <a href="">Start another</a></p>
<div id="terminal" class="textual-terminal" data-session-websocket-url="ws://$host/ws" data-font-size="$size"></div>
<script>
  new MutationObserver(() => document.querySelector(".xterm-helper-textarea")?.focus()).observe(
    document.body, { attributes: true, attributeFilter: ["class"] });
</script>
</body>
</html>
""")


class Page(AppService):
    """The console of one page."""

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Process:
        """Start the console. `command` is JSON: a list of words, which no shell need take apart."""
        environment = {**self._build_environment(width, height), "TEXTUAL_DRIVER": PAGE_DRIVER}
        self._process = process = await asyncio.create_subprocess_exec(
            *json.loads(self.command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        self._stdin = process.stdin
        return process

    async def run(self) -> None:
        """Hand on what the console shows, until it is left; then the page is told."""
        await super().run()
        await self.remote_close()

    async def stop(self) -> None:
        """End the console; its engine ends with it. One that does not end by itself is killed."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(super().stop(), SECONDS)
        process = self._process
        if process is None:
            return
        self.stdin.close()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), SECONDS)
        if process.returncode is None:
            process.kill()
            await process.wait()


class Pages(Server):
    """Serves a console to each page. `arguments`: the command line of each."""

    def __init__(self, arguments: Sequence[str], port: int) -> None:
        super().__init__(json.dumps([sys.executable, "-m", "xentui", *arguments]), HOST, port, "xentui")
        self._open: set[web.WebSocketResponse] = set()

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self._only_our_own_pages)
        return app

    @web.middleware
    async def _only_our_own_pages(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what another site's page asks for, and what comes by a name that is not this machine's own."""
        ours = {f"{name}:{self.port}" for name in NAMES} | (set(NAMES) if self.port == 80 else set())
        if (
            request.host not in ours
            or request.headers.get("Origin", f"http://{request.host}") != f"http://{request.host}"
        ):
            raise web.HTTPForbidden(text="xentui is shown to pages of this machine's own only")
        return await handler(request)

    async def on_startup(self, app: web.Application) -> None:
        """Nothing is said before the port is there."""

    def announce(self, _text: str) -> None:
        """Say where: called when the port is there."""
        print(f"xentui: the console is on {self.public_url} (Ctrl-C ends it, and every page's run)", flush=True)

    async def on_shutdown(self, app: web.Application) -> None:
        """Ctrl-C: pages that are open are told."""
        for socket in list(self._open):
            await socket.close()

    async def handle_index(self, request: web.Request) -> web.Response:
        """The page. `?fontsize=24` makes it larger."""
        asked = request.query.get("fontsize", "")
        size = min(100, max(6, int(asked))) if asked.isdecimal() else FONT_SIZE
        text = PAGE.substitute(title=self.title, host=request.host, size=size)
        return web.Response(text=text, content_type="text/html")

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """A page is open: its console runs until it is closed, or until the console is left."""
        socket = web.WebSocketResponse(heartbeat=15)
        await socket.prepare(request)
        width, height = (_cells(request.query.get(name, ""), usual) for name, usual in (("width", 80), ("height", 24)))
        page = Page(
            self.command,
            write_bytes=socket.send_bytes,
            write_str=socket.send_str,
            close=socket.close,
            download_manager=self.download_manager,
        )
        self._open.add(socket)
        try:
            await page.start(width, height)
            await self._process_messages(socket, page)
        finally:
            self._open.discard(socket)
            await asyncio.shield(page.stop())
        return socket

    async def _process_messages(self, websocket: web.WebSocketResponse, app_service: AppService) -> None:
        """What the page sends, as textual.js has it; anything else is not obeyed."""
        async for message in websocket:
            with suppress(ValueError, LookupError, TypeError, AttributeError):
                await self._obey(websocket, app_service, *json.loads(message.data if _is_text(message) else "[]"))

    @staticmethod
    async def _obey(socket: web.WebSocketResponse, page: AppService, kind: str, data: object = None) -> None:
        if kind == "stdin":
            await page.send_bytes(str(data).encode())
        elif kind == "resize" and isinstance(data, dict):
            await page.set_terminal_size(_cells(str(data["width"]), 80), _cells(str(data["height"]), 24))
        elif kind == "ping":
            await socket.send_json(["pong", data])
        elif kind == "focus":
            await page.focus()
        elif kind == "blur":
            await page.blur()


def _is_text(message: object) -> bool:
    return getattr(message, "type", None) == WSMsgType.TEXT


def _cells(text: str, usual: int) -> int:
    """A width or height in cells."""
    return min(1000, max(1, int(text))) if text.isdecimal() else usual


def serve(arguments: Sequence[str], port: int) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises OSError where the port cannot be had."""
    server = Pages(arguments, port)
    loop = asyncio.new_event_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _leave)
    os.environ.pop("TEXTUAL_DRIVER", None)
    web.run_app(
        server._make_app(),
        host=HOST,
        port=port,
        handle_signals=False,
        loop=loop,
        print=server.announce,
        shutdown_timeout=SECONDS,
    )


def _leave() -> None:
    raise GracefulExit
