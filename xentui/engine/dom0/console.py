"""The other end of a guest's PV console: the shared page with its two rings (xen/io/console.h).

The guest owns the page too and may write anything there at any time. Indices are read once; where they make no sense
the ring is left alone until they do, as Xen's xenconsoled does (tools/console/daemon/io.c).
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from xentui.engine.xen.abi.io.console import XENCONS_IN_SIZE, XENCONS_OUT_SIZE
from xentui.engine.xen.abi.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Callable

_IN, _OUT = Layout.XENCONS_INTERFACE_in, Layout.XENCONS_INTERFACE_out
# both indices of a ring lie side by side: consumer, producer
_IN_INDICES, _OUT_INDICES = Layout.XENCONS_INTERFACE_in_cons, Layout.XENCONS_INTERFACE_out_cons
_INDICES, _WORD = Struct("<II"), Struct("<I")
_MASK32 = 0xFFFF_FFFF


class ConsoleBackend:
    """Moves bytes between a guest's console page and whoever watches and types.

    `page`: the page as writable bytes; `notify` sends the event channel's event to the guest. Everything happens
    within `poll` (the guest has sent an event) and `type` (the user has typed), so that it is as deterministic as
    they are.
    """

    def __init__(self, page: memoryview, notify: Callable[[], None]) -> None:
        self.page = page.cast("B")
        self.notify = notify
        self.on_output: Callable[[bytes], None] = lambda data: None
        """Hears what the guest has written."""
        self.on_input: Callable[[bytes], None] = lambda data: None
        """Hears what the guest was given to read: typed bytes, once there is room for them."""
        self._typed = bytearray()

    @property
    def waiting(self) -> int:
        """How many typed bytes wait for room in the ring."""
        return len(self._typed)

    def poll(self) -> None:
        """Take what the guest has written, and give it what was typed as far as there is room."""
        taken, given = self._take(), self._give()
        if taken or given:
            self.notify()
        if taken:
            self.on_output(taken)
        if given:
            self.on_input(given)

    def type(self, data: bytes) -> None:
        """Type into the console; what does not fit yet waits, in order."""
        self._typed += data
        self.poll()

    def _take(self) -> bytes:
        """Everything in the ring from the guest, which is then empty."""
        consumer, producer = _INDICES.unpack_from(self.page, _OUT_INDICES)
        count = producer - consumer & _MASK32
        if not 0 < count <= XENCONS_OUT_SIZE:
            return b""
        start = consumer % XENCONS_OUT_SIZE
        first = min(count, XENCONS_OUT_SIZE - start)
        data = bytes(self.page[_OUT + start : _OUT + start + first]) + bytes(self.page[_OUT : _OUT + count - first])
        _WORD.pack_into(self.page, _OUT_INDICES, producer)
        return data

    def _give(self) -> bytes:
        """Put what fits of the typed bytes into the ring to the guest; the bytes that went."""
        if not self._typed:
            return b""
        consumer, producer = _INDICES.unpack_from(self.page, _IN_INDICES)
        used = producer - consumer & _MASK32
        if used >= XENCONS_IN_SIZE:  # full, or nonsense
            return b""
        data = bytes(self._typed[: XENCONS_IN_SIZE - used])
        start = producer % XENCONS_IN_SIZE
        first = min(len(data), XENCONS_IN_SIZE - start)
        self.page[_IN + start : _IN + start + first] = data[:first]
        self.page[_IN : _IN + len(data) - first] = data[first:]
        _WORD.pack_into(self.page, _IN_INDICES + 4, producer + len(data) & _MASK32)
        del self._typed[: len(data)]
        return data
