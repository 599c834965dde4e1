"""The processes of an engine, as this side holds them: sockets, the shared trace ring, and their end.

Nobody else holds the other ends of their sockets, so that all of them end with this process, however it ends.
"""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from xentui.engine import wire
from xentui.engine.trace import TraceRing
from xentui.engine.wire import Channel

_LAST_WORDS = 16_384


def environment() -> dict[str, str]:
    """That of a Python that finds this very package. A process that forks is to have one thread: numpy's library for
    linear algebra, which nothing here uses, would start some."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Processes:
    """The keeper, the process that is active, and the sockets of those that sleep. `ring`: the trace ring's memory."""

    def __init__(self, trace_records: int) -> None:
        size = TraceRing.size_of(trace_records)
        ring = os.memfd_create("xentui-trace")
        os.ftruncate(ring, size)
        self.ring = mmap.mmap(ring, size)
        self.active: Channel | None = None
        """The socket of the process that is not a snapshot."""
        self._epoll = select.epoll()
        self._words = os.memfd_create("xentui-last-words")
        ours, theirs = wire.pair()
        lifeline, self._life = os.pipe()
        self.keeper = subprocess.Popen(
            [sys.executable, "-P", "-m", "xentui.engine.server", str(theirs.fileno()), str(ring), str(lifeline)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._words,
            pass_fds=(theirs.fileno(), ring, lifeline),
            env=environment(),
            start_new_session=True,  # Ctrl-C in the terminal is the console's
        )
        os.close(ring)
        os.close(lifeline)
        theirs.close()
        self._connect(Channel(ours))

    def fileno(self) -> int:
        """Readable when one of them has said something, or has ended."""
        return self._epoll.fileno()

    def poll(self, seconds: float | None) -> list[int]:
        """Wait for that at most so long; the descriptors of those sockets."""
        return [fd for fd, _ in self._epoll.poll(seconds)]

    def _connect(self, channel: Channel) -> None:
        self.active = channel
        self._epoll.register(channel, select.EPOLLIN)

    def send(self, message: Any) -> None:
        """To the active process, if there is one."""
        if self.active is not None:
            self.active.send(message)

    def activate(self, sleeping: Channel, message: Any) -> None:
        """Let a copy of a snapshot become active."""
        ours, theirs = wire.pair()
        sleeping.send(message, [theirs.detach()])
        self._connect(Channel(ours))

    def put_to_sleep(self) -> Channel:
        """The active process has become a snapshot: its socket."""
        channel = self.active
        assert channel is not None
        self._epoll.unregister(channel)
        self.active = None
        return channel

    def discard(self) -> None:
        """End the active process."""
        if self.active is not None:
            self.close(self.active)
            self.active = None

    def watch(self, sleeping: Channel) -> None:
        """A snapshot says nothing; only its end can be heard."""
        self._epoll.register(sleeping, select.EPOLLRDHUP)

    def close(self, channel: Channel) -> None:
        """End the process at the other end."""
        if channel.fileno() >= 0:
            self._epoll.unregister(channel)
            channel.close()

    def last_words(self) -> str:
        """The end of what the processes wrote to their stderr."""
        size = os.fstat(self._words).st_size
        start = max(0, size - _LAST_WORDS)
        return os.pread(self._words, size - start, start).decode(errors="replace").strip()

    def end(self) -> None:
        """Wait until all are gone; their sockets are closed."""
        self.discard()
        if self._life >= 0:
            os.close(self._life)
            os.close(self._words)
            self._life = -1
            self._epoll.close()
        self.keeper.wait()
