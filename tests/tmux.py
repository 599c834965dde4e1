"""A real terminal for the tests: tmux, which runs a command and tells what is on the screen."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SECONDS = 60
"""Host seconds that something may take before it counts as never happening."""


def needed() -> None:
    """Skip the test where there is no tmux; never in CI."""
    if shutil.which("tmux") is None:
        if os.environ.get("CI") == "true":
            raise FileNotFoundError("tmux")
        pytest.skip("there is no tmux here")


class Tmux:
    """A tmux server of its own, its socket in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.base = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]

    def run(self, *arguments: str) -> str:
        """A tmux command's output."""
        done = subprocess.run([*self.base, *arguments], capture_output=True, timeout=30, check=True)
        return done.stdout.decode()

    def start(self, *command: str | Path, size: tuple[int, int] = (80, 24), **environment: str) -> None:
        """Run a command on a screen of a size."""
        # what says how large the tests' own terminal is must not be believed here
        line = "unset COLUMNS LINES; exec " + " ".join(shlex.quote(str(word)) for word in command)
        settings = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        width, height = map(str, size)
        self.run("new-session", "-d", "-s", "t", "-x", width, "-y", height, *settings, line)

    def show(self, path: Path) -> None:
        """Show a file's bytes as they are, and wait until that is done."""
        done = path.with_suffix(".done")
        self.start("sh", "-c", f"stty raw -echo; cat {path}; touch {done}; sleep 1000")
        self.until(done.exists)
        before = None
        while (now := self.text()) != before:
            before = now
            time.sleep(0.1)

    def text(self) -> str:
        """The screen."""
        return self.run("capture-pane", "-p", "-t", "t")

    def keys(self, *keys: str) -> None:
        """Press keys, as tmux names them."""
        self.run("send-keys", "-t", "t", *keys)

    def type(self, text: str) -> None:
        """Type a text as it is."""
        self.run("send-keys", "-t", "t", "-l", text)

    def until(self, true: Callable[[], object]) -> None:
        """Wait for something to become true."""
        end = time.monotonic() + SECONDS
        while not true():
            if time.monotonic() > end:
                raise AssertionError(f"never happened; the screen:\n{self.text()}")
            time.sleep(0.05)

    def shows(self, words: str) -> None:
        """Wait for words on the screen."""
        self.until(lambda: words in self.text())

    def close(self) -> None:
        """End the server and what runs in it."""
        subprocess.run([*self.base, "kill-server"], capture_output=True, check=False)
