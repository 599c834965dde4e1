#!/usr/bin/env python3
"""Does the console's memory stay bounded? The built-in demonstration, watched for an hour.

    python bench/soak.py [--minutes 60] [--every 60] [-- XENTUI ARGUMENTS]

Opens `xentui` at 120×40 in a pseudo-terminal, as it opens for a user: the demonstration runs in time with the wall
clock, its trace is followed. Now and then a key is pressed that changes the screen. Each line is the proportional set
size (what a process has for itself, and its part of what it shares) of the console and of every process of its run,
the snapshots included, and how many there are. The last line compares the second half with the end of the first: what
is bounded has stopped to grow by then.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
_MARK = "XENTUI_SOAK"
MIB = 1 << 20


def processes(mark: str) -> list[Path]:
    """The processes that were started with our mark in their environment, however they are related."""
    wanted = f"{_MARK}={mark}\0".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "environ").read_bytes() + b"\0":
                    found.append(folder)
            except OSError:  # gone, or not ours
                continue
    return found


def proportional_size(folder: Path) -> int:
    """PSS of a process in bytes, 0 if it has ended."""
    try:
        rollup = (folder / "smaps_rollup").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))


def drain(terminal: int, seconds: float) -> int:
    """Read what the console draws for so long; how many bytes that was."""
    end, count = time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            try:
                count += len(os.read(terminal, 1 << 16))
            except OSError:  # EIO: nobody has the other end any more
                break
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=60, help="seconds between two lines")
    parser.add_argument("arguments", nargs="*", help="of xentui; none: the demonstration")
    chosen = parser.parse_args()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    mark = str(os.getpid())
    with tempfile.TemporaryDirectory() as settings:
        environment = {**os.environ, "TERM": "xterm-256color", "XDG_CONFIG_HOME": settings, _MARK: mark}
        console = subprocess.Popen(
            [sys.executable, "-m", "xentui", *chosen.arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        try:
            sizes = watch(console, ours, mark, chosen.minutes * 60, chosen.every)
        finally:
            console.terminate()
            drain(ours, 2)  # it restores the screen, and waits for who reads
            os.close(ours)
            console.wait(10)
    half = len(sizes) // 2
    before, after = statistics.median(sizes[half // 2 : half]), statistics.median(sizes[-half // 2 :])
    print(f"the last quarter beside the second: {after / before:.3f} (bounded: at most 1.1)")
    time.sleep(1)
    left = processes(mark)
    print(f"processes left behind: {len(left)}")


def watch(console: subprocess.Popen[bytes], terminal: int, mark: str, seconds: float, every: float) -> list[int]:
    """A line every so many seconds; the sizes. Raises SystemExit if the console ends."""
    sizes = []
    start = time.monotonic()
    print("minute   PSS MiB   processes   drawn MiB")
    while time.monotonic() - start < seconds:
        drawn = drain(terminal, every)
        if console.poll() is not None:
            raise SystemExit(f"the console has ended with exit status {console.returncode}")
        os.write(terminal, b"\t")  # to another pane
        found = processes(mark)
        sizes.append(sum(map(proportional_size, found)))
        minute = (time.monotonic() - start) / 60
        print(f"{minute:6.1f} {sizes[-1] / MIB:9.1f} {len(found):11} {drawn / MIB:11.2f}", flush=True)
    return sizes


if __name__ == "__main__":
    main()
