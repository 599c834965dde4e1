"""Packets of gdb's remote protocol: `$data#checksum`, acknowledged until both sides agree not to (gdb manual, E.1)."""

from __future__ import annotations

import re

INTERRUPT = b"\x03"
"""What gdb sends, outside any packet, when its user presses Ctrl-C."""

_MOST = 1 << 17
"""Bytes that may wait for the end of a packet; more is no gdb."""
_SPECIAL = re.compile(rb"[#$}*]")


class ProtocolError(Exception):
    """What came is not gdb's protocol."""


def frame(data: bytes) -> bytes:
    """A packet to send."""
    escaped = _SPECIAL.sub(lambda match: b"}" + bytes([match[0][0] ^ 0x20]), data)
    return b"$%s#%02x" % (escaped, sum(escaped) & 0xFF)


class Packets:
    """Takes a stream of bytes apart. `feed` gives whole packets; INTERRUPT is one of them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.acknowledges = True
        """Until gdb asks for QStartNoAckMode."""

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """(packets that are whole now, bytes to answer with). Raises ProtocolError."""
        self._buffer += data
        packets: list[bytes] = []
        answer = b""
        while self._buffer:
            first = self._buffer[:1]
            if first == INTERRUPT:
                packets.append(INTERRUPT)
                del self._buffer[:1]
            elif first == b"$":
                end = self._buffer.find(b"#")
                if end < 0 or len(self._buffer) < end + 3:
                    break
                body, check = bytes(self._buffer[1:end]), bytes(self._buffer[end + 1 : end + 3])
                del self._buffer[: end + 3]
                good = check.lower() == b"%02x" % (sum(body) & 0xFF)
                if self.acknowledges:
                    answer += b"+" if good else b"-"
                if good:
                    packets.append(_unescape(body))
            else:  # acknowledgements, which a stream that loses nothing need not wait for
                del self._buffer[:1]
        if len(self._buffer) > _MOST:
            raise ProtocolError("a packet without end")
        return packets, answer


def _unescape(body: bytes) -> bytes:
    return re.sub(rb"\}(.)", lambda match: bytes([match[1][0] ^ 0x20]), body, flags=re.DOTALL)
