"""The engine as a process of its own: builds a machine, runs it in short bursts, obeys and reports between them.

    python -m xentui.engine.server SOCKET RING LIFELINE      (file descriptors; started by process.Engine)

**Snapshots are forks.** The process has one thread, and a fork keeps everything as it is (memory, emulator, translated
code, Python objects), copy on write. A copy made as a snapshot sleeps until it is told to leave a copy of its own
behind that goes on; it can be gone back to any number of times. Every process ends when the other end of its socket is
gone, and those ends are the console's alone.

The first process stays behind as a keeper that does nothing: it ends after all the others, and takes in those whose
parent ended first.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import mmap
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

from xentui.engine import messages as msg
from xentui.engine.wire import Channel, from_fd

if TYPE_CHECKING:
    from typing import NoReturn

_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """The keeper and the first engine."""
    end, ring, lifeline = (int(argument) for argument in arguments)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a snapshot's end
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.fork() == 0:
        os.close(lifeline)
        _become_engine(Channel(from_fd(end)), ring)
    os.close(end)
    os.close(ring)
    os.read(lifeline, 1)  # nothing is ever written: this ends when the console does
    with contextlib.suppress(ChildProcessError):
        os.wait()  # for all of them, as SIGCHLD is ignored
    return 0


def _become_engine(channel: Channel, ring: int) -> NoReturn:
    """Serve until the console goes away. What goes wrong is told, in a line, and in full on stderr."""
    faulthandler.enable()
    status = 0
    try:
        _serve(channel, ring)
    except BaseException as error:
        status = 1
        traceback.print_exc()
        sys.stderr.flush()
        # a snapshot that went on has another socket than the one that came in
        current = _current[0] if _current else channel
        current.send(msg.Failed(f"the engine's process failed: {type(error).__name__}: {error}"))
        current.drain()
    os._exit(status)


_current: list[Channel] = []


def _serve(channel: Channel, ring: int) -> None:
    first = _first_messages(channel)
    if not first:
        return
    from xentui.config import ConfigError
    from xentui.engine.x86.unicorn_api import UnicornMismatchError

    buffer = mmap.mmap(ring, 0)
    os.close(ring)
    try:
        from xentui.engine.service import Service
        from xentui.engine.xen.elf import ImageError
        from xentui.engine.xen.page import OutOfMemory
    except UnicornMismatchError as error:
        channel.send(msg.Failed(str(error)))
        channel.drain()
        return
    try:
        service = Service(channel, first[0], memoryview(buffer))
    except (ImageError, ConfigError, OutOfMemory, UnicornMismatchError) as error:
        channel.send(msg.Failed(str(error)))
        channel.drain()
        return
    _current[:] = [channel]
    service.on_channel = lambda new: _current.__setitem__(0, new)
    # what is built stays, and the trap path makes no cycles: let the collector look less often, and copy less
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    service.serve(first[1:])


def _first_messages(channel: Channel) -> list[Any]:
    """The first message, which says what to build, and what has come with it."""
    messages: list[Any] = []
    while not channel.closed and not messages:
        channel.wait(None)
        messages = [message for message, _ in channel.receive()]
    return messages


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
