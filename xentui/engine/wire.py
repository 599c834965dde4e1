"""Messages over a Unix socket: a length, the number of file descriptors that travel along, a pickle.

Both ends are the same program on the same machine, and nothing else can reach the socket: it has no name.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import struct
from collections import deque
from typing import Any

_HEAD = struct.Struct("<IB")
_PIECE = 1 << 18
_MOST_FDS = 4


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def from_fd(fd: int) -> socket.socket:
    """The socket that a descriptor is."""
    return socket.socket(fileno=fd)


class Channel:
    """One end. Nothing blocks but `drain` and `wait`; `closed` says that the other end is gone."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self.closed = False
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._in = bytearray()
        self._fds: deque[int] = deque()
        self.waiting = 0
        """Bytes that wait for the other end to read."""

    def fileno(self) -> int:
        """For select and epoll."""
        return self._socket.fileno()

    def send(self, message: object, fds: list[int] | None = None) -> None:
        """Queue a message and send what the socket takes. The descriptors are closed here once they are sent."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        fds = fds or []
        data = memoryview(_HEAD.pack(len(body), len(fds)) + body)
        self._out.append((data, fds))
        self.waiting += len(data)
        self.flush()

    def flush(self) -> None:
        """Send what is queued as far as the socket takes it."""
        while self._out and not self.closed:
            data, fds = self._out[0]
            try:
                sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
            except BlockingIOError:
                return
            except OSError:
                self.closed = True
                break
            for fd in fds:
                os.close(fd)
            self.waiting -= sent
            if sent < len(data):
                self._out[0] = (data[sent:], [])
            else:
                self._out.popleft()
        if self.closed:
            self._drop()

    def _drop(self) -> None:
        """What cannot be sent any more."""
        for _, fds in self._out:
            for fd in fds:
                os.close(fd)
        self._out.clear()
        self.waiting = 0

    def drain(self) -> None:
        """Send all that is queued; wait for the other end if need be."""
        while self._out and not self.closed:
            self._poll(select.POLLOUT, None)
            self.flush()

    def _poll(self, events: int, seconds: float | None) -> bool:
        poll = select.poll()
        poll.register(self._socket, events)
        return bool(poll.poll(None if seconds is None else max(0.0, seconds) * 1000))

    def wait(self, seconds: float | None) -> bool:
        """Wait until there is something to receive (or the other end is gone), at most so long; is there?"""
        return self._poll(select.POLLIN, seconds)

    def receive(self) -> list[tuple[Any, list[int]]]:
        """The messages that have arrived whole, with their descriptors."""
        while not self.closed:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, _PIECE, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except OSError:
                data, fds = b"", []
            self._fds.extend(fds)
            if not data:
                self.closed = True
                break
            self._in += data
            if len(data) < _PIECE:
                break
        return self._decode()

    def _decode(self) -> list[tuple[Any, list[int]]]:
        messages = []
        start, got = 0, self._in
        while len(got) - start >= _HEAD.size:
            length, count = _HEAD.unpack_from(got, start)
            end = start + _HEAD.size + length
            if len(got) < end:
                break
            body = bytes(got[start + _HEAD.size : end])
            messages.append((pickle.loads(body), [self._fds.popleft() for _ in range(count)]))
            start = end
        del got[:start]
        return messages

    def close(self) -> None:
        """Close this end, and what came over it and nobody took."""
        self.closed = True
        self._drop()
        while self._fds:
            os.close(self._fds.popleft())
        with contextlib.suppress(OSError):
            self._socket.close()
