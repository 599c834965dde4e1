"""Textual's driver for a console on a web page (serve.py).

It ends with its page even when the server was killed, and one process shows several applications on the same page, one
after the other: a console is left for a demonstration, which brings its own guests.
"""

from __future__ import annotations

import asyncio
import os
from typing import ClassVar

from textual import messages
from textual.drivers.web_driver import WebDriver

_GREETING = b"__GANGLION__\n"
"""By which the server knows that packets follow."""
_SECONDS = 2
"""Host seconds that the input's thread has for its end; it looks ten times a second."""


class PageDriver(WebDriver):
    """The page's keys come by standard input; where they end, so does the application."""

    _greeted: ClassVar[bool] = False

    def start_application_mode(self) -> None:
        """Begin; the greeting is sent once a process."""
        self._loop = asyncio.get_running_loop()
        send = self._write
        self._write = lambda data: 0 if data == _GREETING and PageDriver._greeted else send(data)
        super().start_application_mode()
        PageDriver._greeted = True

    def stop_application_mode(self) -> None:
        """End; the page is closed, unless another application follows."""
        if not getattr(self._app, "next_demonstration", ""):
            super().stop_application_mode()
            return
        self.exit_event.set()
        self._input_reader.close()
        self._key_thread.join(_SECONDS)

    def run_input_thread(self) -> None:
        """Read until the input ends: the server has closed it, or is no more."""
        super().run_input_thread()
        if not self.exit_event.is_set() and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._app._post_message(messages.ExitApp()), self._loop)

    def on_meta(self, packet_type: str, payload: dict[str, object]) -> None:
        """The page's size is the next application's too."""
        if packet_type == "resize":
            os.environ["COLUMNS"], os.environ["ROWS"] = str(payload["width"]), str(payload["height"])
        super().on_meta(packet_type, payload)
