"""The control domain's end of a console, and the guest's words in the hypervisor's log."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes_xen import ARGUMENT, UNMAPPED, World, fuzz
from xentui.engine.dom0.console import ConsoleBackend
from xentui.engine.xen.abi.core import CONSOLEIO_read, CONSOLEIO_write
from xentui.engine.xen.abi.io.console import XENCONS_IN_SIZE, XENCONS_OUT_SIZE
from xentui.engine.xen.console_io import do_console_io

EPERM, EFAULT = 1, 14
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 3072, 3076, 3080, 3084


class Frontend:
    """The guest's side of the ring, written as a guest's driver is."""

    def __init__(self) -> None:
        self.page = bytearray(4096)
        self.events = 0
        self.heard = b""
        self.given = b""
        self.backend = ConsoleBackend(memoryview(self.page), self._notified)
        self.backend.on_output = self._output
        self.backend.on_input = self._input

    def _notified(self) -> None:
        self.events += 1

    def _output(self, data: bytes) -> None:
        self.heard += data

    def _input(self, data: bytes) -> None:
        self.given += data

    def index(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.page, at)[0])

    def set(self, at: int, value: int) -> None:
        struct.pack_into("<I", self.page, at, value & 0xFFFF_FFFF)

    def write(self, data: bytes) -> int:
        """Put as much as fits into the ring; how much that was."""
        producer = self.index(OUT_PROD)
        room = XENCONS_OUT_SIZE - (producer - self.index(OUT_CONS) & 0xFFFF_FFFF)
        for offset, byte in enumerate(data[:room]):
            self.page[1024 + (producer + offset) % XENCONS_OUT_SIZE] = byte
        self.set(OUT_PROD, producer + min(room, len(data)))
        return min(room, len(data))

    def read(self) -> bytes:
        consumer = self.index(IN_CONS)
        count = self.index(IN_PROD) - consumer & 0xFFFF_FFFF
        self.set(IN_CONS, consumer + count)
        return bytes(self.page[(consumer + offset) % XENCONS_IN_SIZE] for offset in range(count))


def test_output_reaches_who_listens() -> None:
    guest = Frontend()
    guest.write(b"hello")
    guest.backend.poll()
    assert (guest.heard, guest.events) == (b"hello", 1)
    guest.backend.poll()
    assert guest.events == 1, "nothing new, no event"


def test_typed_bytes_wait_for_room() -> None:
    guest = Frontend()
    text = bytes(range(256)) * 10
    guest.backend.type(text)
    assert (guest.backend.waiting, guest.events) == (len(text) - XENCONS_IN_SIZE, 1)
    got = b""
    while chunk := guest.read():
        got += chunk
        guest.backend.poll()
    assert got == text == guest.given
    assert guest.backend.waiting == 0


def test_hostile_indices_are_left_alone() -> None:
    guest = Frontend()
    guest.set(OUT_PROD, XENCONS_OUT_SIZE + 1)
    guest.set(IN_PROD, 5)
    guest.set(IN_CONS, 6)
    guest.backend.type(b"x")
    guest.backend.poll()
    assert (guest.heard, guest.events, guest.backend.waiting) == (b"", 0, 1)
    guest.set(OUT_CONS, XENCONS_OUT_SIZE - 1)
    guest.set(IN_CONS, 5)
    guest.backend.poll()
    assert (guest.heard, guest.events, guest.backend.waiting) == (b"\0\0", 1, 0), "it recovers when they make sense"


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF_FFFF),
    st.lists(st.tuples(st.binary(max_size=3000), st.binary(max_size=1500), st.booleans()), max_size=12),
)
def test_no_byte_is_lost_or_doubled(start_in: int, start_out: int, steps: list[tuple[bytes, bytes, bool]]) -> None:
    guest = Frontend()
    for at, value in ((IN_CONS, start_in), (IN_PROD, start_in), (OUT_CONS, start_out), (OUT_PROD, start_out)):
        guest.set(at, value)
    written = typed = read = b""
    for output, keys, reads in steps:
        written += output[: guest.write(output)]
        guest.backend.type(keys)
        typed += keys
        if reads:
            read += guest.read()
    while guest.backend.waiting:
        read += guest.read()
        guest.backend.poll()
    read += guest.read()
    guest.backend.poll()
    assert (guest.heard, read) == (written, typed)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.binary(max_size=40))
def test_any_indices(indices: bytes, keys: bytes) -> None:
    guest = Frontend()
    guest.page[IN_CONS : IN_CONS + 16] = indices
    guest.backend.type(keys)
    guest.backend.poll()
    assert len(guest.page) == 4096


# --- the hypervisor's log ------------------------------------------------------------------------------------------


def test_console_io_prints_whole_lines() -> None:
    guest = World(64).guests[0]

    def write(text: bytes) -> None:
        guest.put(ARGUMENT, text)
        assert guest.call_at(do_console_io, CONSOLEIO_write, len(text), ARGUMENT) == 0

    write(b"first\nsec")
    write(b"ond\x07\r\n" + b"x" * 250)
    texts = [line.split("] ", 1)[1] for line in guest.hv.log_lines]
    assert texts == ["(d1) first", "(d1) second", "(d1) " + "x" * 199]
    write(b"\n")
    assert guest.hv.log_lines[-1].endswith("(d1) " + "x" * 51)


def test_console_io_refusals() -> None:
    guest = World(64).guests[0]
    assert guest.call_at(do_console_io, CONSOLEIO_read, 10, ARGUMENT) == -EPERM
    assert guest.call_at(do_console_io, 7, 10, ARGUMENT) == -EPERM
    assert guest.call_at(do_console_io, CONSOLEIO_write, 10, UNMAPPED) == -EFAULT
    assert guest.call_at(do_console_io, CONSOLEIO_write, 0, UNMAPPED) == 0


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([32, 64]),
    st.integers(0, 3),
    st.integers(0, 1 << 32),
    st.sampled_from([ARGUMENT, ARGUMENT + 4090]) | st.integers(0, (1 << 64) - 1),
    st.binary(max_size=300),
)
def test_console_io_takes_anything(width: int, command: int, count: int, pointer: int, data: bytes) -> None:
    guest = World(width).guests[0]
    mask = (1 << width) - 1
    fuzz(guest, do_console_io, (command, count & mask, pointer & mask, 0), data)
