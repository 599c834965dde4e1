"""What the console shows, as an asciicast (version 2), which asciinema plays.

The screen is taken as Textual has composed it, fifteen times a second at most; the lines that differ from the frame
before are written, as text with the colours that this terminal has. The file is whole after every frame.
"""

from __future__ import annotations

import json
import os
import time
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from textual.app import App

FIRST = "\x1b[?25l\x1b[0m\x1b[2J"
"""No cursor, and nothing on the screen."""


class Cast:
    """A file that is being written. Raises OSError, as `frame` and `close` do."""

    def __init__(self, app: App[object], path: Path) -> None:
        self.app, self.path = app, path
        self.frames = 0
        self._began = time.monotonic()
        self._size = app.size
        self._lines: list[str] = []
        self._file: IO[str] = path.open("w", encoding="utf-8", newline="\n")
        terminal = {"TERM": os.environ.get("TERM", ""), "SHELL": ""}
        self._write(
            {"version": 2, "width": self._size.width, "height": self._size.height, "timestamp": int(time.time()),
             "title": "xentui", "env": terminal}
        )  # fmt: skip
        self._output(FIRST)
        self.frame()

    def frame(self) -> None:
        """Write what has changed on the screen since the frame before."""
        app = self.app
        if app.size != self._size:
            self._size = app.size
            self._lines = []
            self._event("r", f"{self._size.width}x{self._size.height}")
            self._output(FIRST)
        lines = [strip.render(app.console) for strip in app.screen._compositor.render_strips()]
        changed = [
            f"\x1b[{y};1H{line}"
            for y, line in enumerate(lines, 1)
            if y > len(self._lines) or line != self._lines[y - 1]
        ]
        self._lines = lines
        if changed:
            self.frames += 1
            self._output("".join(changed))
        self._file.flush()

    def close(self) -> None:
        """The last frame; it stays as long as it was seen."""
        try:
            self.frame()
            self._output("")
        finally:
            self._file.close()

    def _output(self, text: str) -> None:
        self._event("o", text)

    def _event(self, kind: str, text: str) -> None:
        self._write([round(time.monotonic() - self._began, 6), kind, text])

    def _write(self, value: object) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
