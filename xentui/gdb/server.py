"""gdb sockets of an engine: one address a domain, one gdb at a time on each.

The server never blocks: whoever has the loop (the console's, or `serve` below) calls `ready` for a readable socket and
`settled` when the engine's status is news.
"""

from __future__ import annotations

import os
import selectors
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xentui.gdb.debuggee import EngineDebuggee, stop_signal
from xentui.gdb.packets import ProtocolError
from xentui.gdb.session import Session

if TYPE_CHECKING:
    from xentui.engine.process import Engine

_LOOPBACK = ("", "localhost", "127.0.0.1")
_CHUNK = 1 << 16


class GdbError(ValueError):
    """A `--gdb` that cannot be obeyed; one line."""


def parse(argument: str) -> tuple[str, str]:
    """`NAME=ADDRESS`: the domain's name, and `:PORT`, `localhost:PORT` or a Unix socket's path. Raises GdbError."""
    name, equals, address = argument.partition("=")
    if not equals or not name or not address:
        raise GdbError(f"--gdb {argument}: give NAME=ADDRESS, as in --gdb hello64=:1234 or --gdb hello64=/tmp/gdb.sock")
    host, colon, port = address.rpartition(":")
    if "/" in address:
        return name, address
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise GdbError(f"--gdb {argument}: {address!r} is no address: give :PORT, or a path with a / for a Unix socket")
    if host not in _LOOPBACK:
        raise GdbError(f"--gdb {argument}: only this machine's own gdb is served: give :{port}")
    return name, f":{port}"


class Listener:
    """A domain's listening socket. It is opened before there is an engine, for what is wrong to be said at once."""

    def __init__(self, name: str, address: str) -> None:
        """`address`: as `parse` gives it. Raises GdbError."""
        self.name = name
        self._path: Path | None = None
        try:
            self.socket = self._listen(address)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise GdbError(f"--gdb {name}={address}: cannot listen there: {reason}; another may be free") from None
        self.socket.setblocking(False)

    def _listen(self, address: str) -> socket.socket:
        if "/" not in address:
            return socket.create_server(("127.0.0.1", int(address[1:])), backlog=1)
        path = Path(address)
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode) and not _answers(address):
                path.unlink()  # left by a server that was killed
        listener = socket.socket(socket.AF_UNIX)
        old = os.umask(0o177)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(old)
        listener.listen(1)
        self._path = path
        return listener

    def close(self) -> None:
        """No gdb comes in any more; a second time does nothing."""
        self.socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def _answers(path: str) -> bool:
    """Does somebody listen on a Unix socket?"""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its queue is full
    return True


def listen(addresses: Sequence[tuple[str, str]]) -> list[Listener]:
    """Sockets for domains' names and addresses: all of them or none. Raises GdbError."""
    listeners: list[Listener] = []
    try:
        for name, address in addresses:
            listeners.append(Listener(name, address))
    except GdbError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


class Door:
    """A domain's listening socket, and the gdb that has come in by it."""

    def __init__(self, engine: Engine, listener: Listener) -> None:
        self.engine, self.listener, self.name = engine, listener, listener.name
        self.session: Session | None = None
        self.debuggee: EngineDebuggee | None = None
        self.connection: socket.socket | None = None

    def accept(self) -> socket.socket | None:
        """A gdb comes in: the machine stands still for it. None if one is here already."""
        connection, _ = self.listener.socket.accept()
        width = next((domain.width for domain in self.engine.status.domains if domain.name == self.name), None)
        if self.connection is not None or width is None:
            connection.close()
            return None
        connection.setblocking(True)
        if connection.family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.debuggee = EngineDebuggee(self.engine, self.name, width)
        self.session = Session(self.debuggee, self._send)
        self.engine.pause()
        return connection

    def _send(self, data: bytes) -> None:
        with suppress(OSError):  # gdb has gone; reading from it will say so
            if self.connection is not None:
                self.connection.sendall(data)

    def receive(self) -> bool:
        """gdb has sent something; False: it has gone."""
        assert self.connection is not None and self.session is not None
        try:
            data = self.connection.recv(_CHUNK)
            if data:
                self.session.receive(data)
        except (OSError, ProtocolError):
            data = b""
        if not data or self.session.closed:
            self.hang_up()
            return False
        return True

    def settled(self) -> None:
        """The machine stands still."""
        session, debuggee = self.session, self.debuggee
        if session is None or debuggee is None or not session.running:
            return
        if debuggee.domain is None:
            session.ended(crashed=False)
            return
        if debuggee.moving_on():
            return
        status = self.engine.status
        kind, address = debuggee.hit()
        if debuggee.at_start:
            kind = "start"
        session.stopped(stop_signal(status.stop), kind, address)

    def hang_up(self) -> None:
        """This gdb is no more."""
        if self.session is not None and not self.session.closed:
            self.session.close()
        if self.connection is not None:
            self.connection.close()
        self.connection = self.session = self.debuggee = None

    def close(self) -> None:
        """No gdb comes in any more."""
        self.hang_up()
        self.listener.close()


class GdbServer:
    """All doors of an engine. `watch(fd, callback)` and `unwatch(fd)` are the loop's: call back when it is readable."""

    def __init__(
        self,
        engine: Engine,
        listeners: Sequence[Listener],
        watch: Callable[[int, Callable[[], None]], object],
        unwatch: Callable[[int], object],
    ) -> None:
        self.engine = engine
        self._watch, self._unwatch = watch, unwatch
        self.doors = [Door(engine, listener) for listener in listeners]
        for door in self.doors:
            watch(door.listener.socket.fileno(), lambda door=door: self._accept(door))  # type: ignore[misc]

    def _accept(self, door: Door) -> None:
        connection = door.accept()
        if connection is not None:
            fd = connection.fileno()
            self._watch(fd, lambda: self._receive(door, fd))

    def _receive(self, door: Door, fd: int) -> None:
        if not door.receive():
            self._unwatch(fd)
        self.settled()

    def settled(self) -> None:
        """The engine's status is news: gdbs that wait for a stop are told of it."""
        if self.engine.standing:
            for door in self.doors:
                door.settled()

    def close(self) -> None:
        """End all sessions; the machine is left as it is."""
        for door in self.doors:
            for end in (door.listener.socket, door.connection):
                if end is not None:
                    self._unwatch(end.fileno())
            door.close()
        self.doors.clear()


def serve(engine: Engine, addresses: list[tuple[str, str]], idle: Callable[[], bool]) -> None:
    """Serve gdbs without a console until `idle()`, called after each round, is true."""
    with selectors.DefaultSelector() as selector:

        def watch(fd: int, callback: Callable[[], None]) -> None:
            selector.register(fd, selectors.EVENT_READ, callback)

        server = GdbServer(engine, listen(addresses), watch, selector.unregister)
        selector.register(engine.fileno(), selectors.EVENT_READ)
        try:
            while not idle():
                for key, _ in selector.select(0.2):
                    if key.data is not None:
                        key.data()
                server.settled()
        finally:
            server.close()
