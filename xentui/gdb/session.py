"""What gdb asks and what it is answered (gdb manual, appendix E). One session serves one domain; threads are vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from xentui.gdb.packets import INTERRUPT, Packets, frame
from xentui.gdb.registers import description, encode, registers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SIGINT, SIGTRAP = 2, 5
_OK, _UNKNOWN, _BAD, _UNMAPPED = b"OK", b"", b"E01", b"E14"
_POINTS = {b"0": "break", b"1": "break", b"2": "write", b"3": "read", b"4": "access"}
"""Z and z packets' types to kinds of breakpoints; software and hardware ones are the same: neither is in memory."""


class Debuggee(Protocol):
    """A domain as gdb needs it. vCPUs are numbered from 0. Running commands return at once; `Session.stopped` tells."""

    width: int
    name: str

    def threads(self) -> list[int]: ...
    def current(self) -> int: ...
    def registers(self, vcpu: int) -> Mapping[str, int]: ...
    def write_register(self, vcpu: int, name: str, value: int) -> bool: ...
    def read(self, vcpu: int, address: int, length: int) -> bytes: ...
    def write(self, vcpu: int, address: int, data: bytes) -> bool: ...
    def insert(self, kind: str, address: int, length: int) -> bool: ...
    def remove(self, kind: str, address: int, length: int) -> bool: ...
    def run(self) -> None: ...
    def run_back(self) -> None: ...
    def step(self, vcpu: int) -> None: ...
    def step_back(self, vcpu: int) -> None: ...
    def halt(self) -> None: ...
    def monitor(self, command: str) -> str: ...
    def kill(self) -> None: ...


class Session:
    """One connected gdb. `send` takes bytes for it."""

    def __init__(self, debuggee: Debuggee, send: Callable[[bytes], None]) -> None:
        self.debuggee = debuggee
        self.send = send
        self.packets = Packets()
        self.closed = False
        self.running = False
        """gdb waits for a stop."""
        self.thread = 0
        """The vCPU that register and memory packets mean."""
        self.resumed: int | None = None
        """The vCPU that steps and runs mean, if gdb has named one."""
        self.registers = registers_of(debuggee.width)
        self._points: set[tuple[str, int, int]] = set()

    def receive(self, data: bytes) -> None:
        """Bytes came from gdb. Raises packets.ProtocolError."""
        packets, answer = self.packets.feed(data)
        if answer:
            self.send(answer)
        for packet in packets:
            if packet == INTERRUPT:
                self.debuggee.halt()
                continue
            reply = self._answer(packet)
            if reply is not None:
                self.send(frame(reply))

    def stopped(self, signal: int = SIGTRAP, reason: str = "", address: int = 0) -> None:
        """The machine stands still. `reason`: `write`, `read` or `access` for a watchpoint that was hit at `address`,
        `start` for the begin of the recorded past."""
        if not self.running:
            return
        self.running = False
        self.thread = self.debuggee.current()
        self.send(frame(self._stop_reply(signal, reason, address)))

    def ended(self, crashed: bool) -> None:
        """The domain is gone."""
        if self.running:
            self.running = False
            self.send(frame(b"X0b" if crashed else b"W00"))

    def close(self) -> None:
        """gdb has gone: take its breakpoints away."""
        self.closed = True
        for point in sorted(self._points):
            self.debuggee.remove(*point)
        self._points.clear()

    def _stop_reply(self, signal: int, reason: str = "", address: int = 0) -> bytes:
        text = f"T{signal:02x}thread:{self.thread + 1:x};"
        if reason == "start":
            text += "replaylog:begin;"
        elif reason:
            name = {"write": "watch", "read": "rwatch", "access": "awatch"}[reason]
            text += f"{name}:{address:x};"
        return text.encode()

    # --- dispatch -----------------------------------------------------------------------------------------------------

    def _answer(self, packet: bytes) -> bytes | None:
        """The reply to a packet; None where it comes later or not at all."""
        handler = _HANDLERS.get(packet[:1])
        try:
            return _UNKNOWN if handler is None else handler(self, packet)
        except (ValueError, IndexError):
            return _BAD

    def _query(self, packet: bytes) -> bytes | None:
        name, _, rest = packet.partition(b":")
        if name == b"qSupported":
            return (
                b"PacketSize=20000;QStartNoAckMode+;qXfer:features:read+;ReverseStep+;ReverseContinue+;"
                b"vContSupported+;swbreak-;hwbreak-"
            )
        if name == b"qXfer" and rest.startswith(b"features:read:target.xml:"):
            return self._part(description(self.debuggee.width).encode(), rest.rpartition(b":")[2])
        if packet == b"qC":
            return b"QC%x" % (self.thread + 1)
        if packet == b"qAttached":
            return b"1"
        if packet == b"qfThreadInfo":
            return b"m" + b",".join(b"%x" % (vcpu + 1) for vcpu in self.debuggee.threads())
        if packet == b"qsThreadInfo":
            return b"l"
        if packet.startswith(b"qThreadExtraInfo,"):
            return f"vCPU {int(packet.rpartition(b',')[2], 16) - 1} of {self.debuggee.name}".encode().hex().encode()
        if packet.startswith(b"qRcmd,"):
            text = self.debuggee.monitor(bytes.fromhex(packet[6:].decode()).decode(errors="replace"))
            return text.encode().hex().encode() or _OK
        if packet == b"QStartNoAckMode":
            self.packets.acknowledges = False
            return _OK
        return _UNKNOWN

    @staticmethod
    def _part(whole: bytes, place: bytes) -> bytes:
        """`offset,length` of something that gdb reads in parts."""
        offset, length = (int(number, 16) for number in place.split(b","))
        part = whole[offset : offset + length]
        return (b"m" if offset + length < len(whole) else b"l") + part

    def _question(self, _packet: bytes) -> bytes:
        return self._stop_reply(SIGTRAP)

    def _select(self, packet: bytes) -> bytes:
        number = int(packet[2:], 16)
        if packet[1:2] == b"g":
            self.thread = max(number - 1, 0) if number > 0 else self.debuggee.current()
        else:
            self.resumed = number - 1 if number > 0 else None
        return _OK

    def _alive(self, packet: bytes) -> bytes:
        return _OK if int(packet[1:], 16) - 1 in self.debuggee.threads() else _BAD

    # --- registers and memory -----------------------------------------------------------------------------------------

    def _read_registers(self, _packet: bytes) -> bytes:
        values = self.debuggee.registers(self.thread)
        return "".join(encode(register, values) for register in self.registers).encode()

    def _write_registers(self, packet: bytes) -> bytes:
        data = packet[1:]
        for register in self.registers:
            digits, data = data[: 2 * register.size], data[2 * register.size :]
            if b"x" not in digits and digits and not self._set(register.name, digits):
                return _BAD
        return _OK

    def _read_register(self, packet: bytes) -> bytes:
        return encode(self.registers[int(packet[1:], 16)], self.debuggee.registers(self.thread)).encode()

    def _write_register(self, packet: bytes) -> bytes:
        number, _, digits = packet[1:].partition(b"=")
        return _OK if self._set(self.registers[int(number, 16)].name, digits) else _BAD

    def _set(self, name: str, digits: bytes) -> bool:
        value = int.from_bytes(bytes.fromhex(digits.decode()), "little")
        if self.debuggee.registers(self.thread).get(name) == value:
            return True
        return self.debuggee.write_register(self.thread, name, value)

    def _read_memory(self, packet: bytes) -> bytes:
        address, length = (int(number, 16) for number in packet[1:].split(b","))
        data = self.debuggee.read(self.thread, address, min(length, 0x8000))
        return data.hex().encode() if data or not length else _UNMAPPED

    def _write_memory(self, packet: bytes) -> bytes:
        place, _, digits = packet[1:].partition(b":")
        address, _length = (int(number, 16) for number in place.split(b","))
        data = bytes.fromhex(digits.decode())
        return _OK if not data or self.debuggee.write(self.thread, address, data) else _UNMAPPED

    def _write_binary(self, packet: bytes) -> bytes:
        place, _, data = packet[1:].partition(b":")
        address = int(place.split(b",")[0], 16)
        return _OK if not data or self.debuggee.write(self.thread, address, data) else _UNMAPPED

    # --- breakpoints --------------------------------------------------------------------------------------------------

    def _insert(self, packet: bytes) -> bytes:
        point = self._point(packet)
        if not point:
            return _UNKNOWN
        if not self.debuggee.insert(*point):
            return _BAD
        self._points.add(point)
        return _OK

    def _remove(self, packet: bytes) -> bytes:
        point = self._point(packet)
        if not point:
            return _UNKNOWN
        self._points.discard(point)
        return _OK if self.debuggee.remove(*point) else _BAD

    @staticmethod
    def _point(packet: bytes) -> tuple[str, int, int] | None:
        kind, address, length = packet[1:].split(b";")[0].split(b",")
        return (_POINTS[kind], int(address, 16), int(length, 16)) if kind in _POINTS else None

    # --- running ------------------------------------------------------------------------------------------------------

    def _continue(self, _packet: bytes) -> None:
        self.running = True
        self.debuggee.run()

    def _step(self, _packet: bytes) -> None:
        self.running = True
        self.debuggee.step(self.thread if self.resumed is None else self.resumed)

    def _back(self, packet: bytes) -> bytes | None:
        if packet not in (b"bs", b"bc"):
            return _UNKNOWN
        self.running = True
        if packet == b"bs":
            self.debuggee.step_back(self.thread if self.resumed is None else self.resumed)
        else:
            self.debuggee.run_back()
        return None

    def _verbose(self, packet: bytes) -> bytes | None:
        if packet == b"vCont?":
            return b"vCont;c;C;s;S"
        if packet.startswith(b"vCont;"):
            action, _, thread = packet[6:].split(b";")[0].partition(b":")
            self.running = True
            if action[:1] in b"sS":
                number = int(thread, 16) if thread and not thread.startswith(b"-") else 0
                self.debuggee.step(number - 1 if number > 0 else self.thread)
            else:
                self.debuggee.run()
            return None
        if packet.startswith(b"vKill"):
            self.debuggee.kill()
            return _OK
        return _UNKNOWN

    def _detach(self, _packet: bytes) -> bytes:
        self.close()
        self.debuggee.run()
        return _OK

    def _kill(self, _packet: bytes) -> None:
        self.debuggee.kill()
        self.close()


_HANDLERS: dict[bytes, Callable[[Session, bytes], bytes | None]] = {
    b"q": Session._query,
    b"Q": Session._query,
    b"?": Session._question,
    b"H": Session._select,
    b"T": Session._alive,
    b"g": Session._read_registers,
    b"G": Session._write_registers,
    b"p": Session._read_register,
    b"P": Session._write_register,
    b"m": Session._read_memory,
    b"M": Session._write_memory,
    b"X": Session._write_binary,
    b"Z": Session._insert,
    b"z": Session._remove,
    b"c": Session._continue,
    b"C": Session._continue,
    b"s": Session._step,
    b"S": Session._step,
    b"b": Session._back,
    b"v": Session._verbose,
    b"D": Session._detach,
    b"k": Session._kill,
}
"""A packet's first character to who answers it."""
