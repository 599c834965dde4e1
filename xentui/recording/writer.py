"""Write a recording: blocks appended one by one, each with one unbuffered write, so that a kill costs the last only.

The bytes depend on what is recorded and nothing else: no wall clock, no host name, no order of a hash. Compression
is loaded when the first block needs it, after the guest's first line.
"""

from __future__ import annotations

import os
import sys
from array import array
from operator import sub
from typing import TYPE_CHECKING
from zlib import crc32

from xentui.engine.trace import CHUNK_TIME, RECORD_SIZE, U64
from xentui.recording import format as layout
from xentui.recording.format import Entry, RecordingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any

COMPRESSION_LEVEL = 3
CONSOLE_BYTES = 65_536
"""Console traffic is written when this much of it has gathered, if no chunk boundary came before."""


def compressor() -> Callable[[bytes], bytes]:
    """The zstd compressor: one thread, one frame a call, the same bytes for the same input."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    def compress(data: bytes) -> bytes:
        return zstd.compress(data, COMPRESSION_LEVEL)

    return compress


def split_columns(rows: memoryview) -> list[bytes]:
    """Turn rows of records into one byte string a column, in the order of `trace.COLUMNS`.

    Strided slices of the standard library do it in 0.5 µs a record; numpy, where it is loaded already, in a thirtieth
    of that, but would take longer to import than most runs save by it. The bytes are the same. Times become
    differences, stored as planes of like bytes (all lowest bytes first): they pack a quarter smaller.
    """
    if "numpy" in sys.modules:
        return _split_by_numpy(rows)
    words, halves, quads = rows.cast("Q"), rows.cast("H"), rows.cast("I")
    times = words[0::8].tolist()
    steps = array("Q", [0])
    try:
        steps.extend(map(sub, times[1:], times))
    except OverflowError:  # were time ever to go back, the recording still holds it, modulo 2**64
        steps = array("Q", [0, *(step & U64 for step in map(sub, times[1:], times))])
    step_bytes = steps.tobytes()
    columns = [b"".join(step_bytes[plane::8] for plane in range(layout.TIME_BYTES)), words[1::8].tobytes()]
    columns += [rows[16::RECORD_SIZE].tobytes(), rows[17::RECORD_SIZE].tobytes()]
    columns += [halves[9::32].tobytes(), quads[5::16].tobytes()]
    columns += [words[slot::8].tobytes() for slot in range(3, 8)]
    return columns


def _split_by_numpy(rows: memoryview) -> list[bytes]:
    import numpy

    octets = numpy.frombuffer(rows, "u1")
    words, halves, quads = octets.view("<u8"), octets.view("<u2"), octets.view("<u4")
    times = words[0::8]
    steps = numpy.zeros(len(times), "<u8")
    numpy.subtract(times[1:], times[:-1], out=steps[1:])  # modulo 2**64
    columns = [steps.view("u1").reshape(-1, layout.TIME_BYTES).T.tobytes(), words[1::8].tobytes()]
    columns += [octets[16::RECORD_SIZE].tobytes(), octets[17::RECORD_SIZE].tobytes()]
    columns += [halves[9::32].tobytes(), quads[5::16].tobytes()]
    columns += [words[slot::8].tobytes() for slot in range(3, 8)]
    return columns


def dump_json(value: Mapping[str, Any]) -> bytes:
    """JSON whose bytes depend on the content alone: sorted keys, no spaces."""
    import json

    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def check_path(path: str) -> None:
    """Refuse a path that cannot become a recording, without touching it: for use before the run is built."""
    parent = os.path.dirname(path) or "."
    if not path:
        raise RecordingError("the recording's file name is empty: give one, as in --record out.xtrace")
    if os.path.isdir(path):
        raise RecordingError(f"{path}: is a directory: name a file in it for the recording")
    if not os.path.isdir(parent):
        raise RecordingError(f"{path}: there is no directory {parent}: create it or record elsewhere")
    if not os.access(path if os.path.exists(path) else parent, os.W_OK):
        raise RecordingError(f"{path}: no permission to write the recording here")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class BlockFile:
    """An append-only file of blocks, and the index of those that it wrote."""

    def __init__(self, path: str, fd: int, offset: int, entries: list[Entry]) -> None:
        self.path = path
        self.entries = entries
        self._fd = fd
        self._offset = offset

    def raw(self, data: bytes) -> None:
        """Append bytes, all of them."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise RecordingError(f"{self.path}: the recording cannot be written: {_reason(error)}") from None
        self._offset += len(data)

    def block(
        self, kind: bytes, payload: bytes, first: int = 0, records: int = 0, times: tuple[int, int] = (0, 0)
    ) -> None:
        """Append one block and note it in the index: first record's number, records, first and last time."""
        length = len(payload)
        check = crc32(payload, crc32(kind + length.to_bytes(8, "little")))
        entry = Entry(kind, self._offset + layout.BLOCK.size, length, first, records, *times)
        self.raw(layout.BLOCK.pack(kind, check, length) + payload)
        self.entries.append(entry)

    def seal(self) -> None:
        """Append the index and, last, where it lies."""
        start = self._offset
        self.block(layout.INDEX, b"".join(layout.INDEX_ENTRY.pack(*entry) for entry in self.entries))
        self.block(layout.TAIL, layout.TAIL_BODY.pack(start))

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RecordingWriter:
    """A recording being written.

    Opening it replaces what is at `path`, so open it when the run really begins. `header` is JSON-able and says all
    that the run depends on. `chunk_time`: console traffic is cut at each multiple of so many virtual ns, and with
    each trace chunk; give the ring the same. Times given must not go back. Left by an exception, the recording stays
    as a kill would leave it: readable, without a summary.
    """

    def __init__(self, path: str, header: Mapping[str, Any], chunk_time: int = CHUNK_TIME) -> None:
        from xentui import __version__

        check_path(path)
        body = dump_json({**header, "format": layout.FORMAT_VERSION, "xentui": __version__})
        self._file = BlockFile(path, _create(path), 0, [])
        self._records = 0
        self._pieces: list[tuple[int, int, int, bytes]] = []
        self._gathered = 0
        self._chunk_time = chunk_time
        self._limit = chunk_time
        self._compress: Callable[[bytes], bytes] | None = None
        self._images: dict[str, bytes] = {}
        self._known_images: set[str] = set()
        self._open = True
        self._file.raw(layout.MAGIC)
        self._file.block(layout.HEADER, body)

    def _packed(self, data: bytes) -> bytes:
        if self._compress is None:
            self._compress = compressor()
        return self._compress(data)

    def trace_chunk(self, rows: memoryview) -> None:
        """Append a chunk of trace records, given as they lie in the ring (a multiple of 64 bytes)."""
        count = len(rows) // RECORD_SIZE
        if not count:
            return
        self._cut_console()
        words = rows.cast("Q")
        times = (words[0], words[(count - 1) * 8])
        columns = [self._packed(column) for column in split_columns(rows)]
        head = layout.TRACE_HEAD.pack(self._records, *times, count, *map(len, columns))
        self._file.block(layout.TRACE, head + b"".join(columns), self._records, count, times)
        self._records += count
        self._write_images()

    def images(self, images: Mapping[str, bytes]) -> None:
        """Record kernels and ramdisks, by their SHA-256 in hexadecimal, so that the run can be run again anywhere.

        They are written behind the first chunk of records (or at the end), so as not to hold up a guest's first line.
        """
        for digest in images.keys() - self._known_images:
            self._images[digest] = images[digest]
            self._known_images.add(digest)

    def _write_images(self) -> None:
        images, self._images = self._images, {}
        for digest, content in sorted(images.items()):
            head = layout.IMAGE_HEAD.pack(bytes.fromhex(digest), len(content))
            self._file.block(layout.IMAGE, head + self._packed(content), self._records)

    def console(self, time: int, domain: int, direction: int, data: bytes) -> None:
        """Record what a domain's console wrote (`format.OUT`) or was given to read (`format.IN`)."""
        if not data:
            return
        if self._chunk_time and time >= self._limit:
            self._cut_console()
            self._limit = time - time % self._chunk_time + self._chunk_time
        self._pieces.append((time, domain, direction, bytes(data)))
        self._gathered += len(data)
        if self._gathered >= CONSOLE_BYTES:
            self._cut_console()

    def _cut_console(self) -> None:
        """Write the console traffic gathered so far as one block."""
        pieces, self._pieces, self._gathered = self._pieces, [], 0
        if not pieces:
            return
        heads = [layout.PIECE.pack(time, domain, direction, len(data)) for time, domain, direction, data in pieces]
        body = b"".join(heads) + b"".join(piece[3] for piece in pieces)
        times = (pieces[0][0], pieces[-1][0])
        head = layout.CONSOLE_HEAD.pack(*times, len(pieces), len(body))
        self._file.block(layout.CONSOLE, head + self._packed(body), self._records, 0, times)

    def input(self, time: int, domain: int, data: bytes) -> None:
        """Record what came from outside (typed keys), which a run from this recording needs; written at once."""
        payload = layout.INPUT_HEAD.pack(time, domain) + bytes(data)
        self._file.block(layout.INPUT, payload, self._records, 0, (time, time))

    def action(self, time: int, position: int, action: Mapping[str, Any]) -> None:
        """Record an influence from outside (JSON-able), which running again needs; written at once.

        `position`: where it took effect, in half nanoseconds of virtual time.
        """
        payload = layout.ACTION_HEAD.pack(time, position) + dump_json(action)
        self._file.block(layout.ACTION, payload, self._records, 0, (time, time))

    def note(self, time: int, text: str) -> None:
        """Record a remark on a moment; written at once."""
        self._file.block(layout.NOTE, layout.MOMENT.pack(time) + text.encode(), self._records, 0, (time, time))

    def snapshot(self, time: int, payload: bytes) -> None:
        """Record the machine's state at a moment, opaque to the recording; written at once."""
        self._file.block(layout.SNAPSHOT, layout.MOMENT.pack(time) + payload, self._records, 0, (time, time))

    def close(self, summary: Mapping[str, Any]) -> None:
        """End the recording in order: what is gathered, the summary (JSON-able), the index.

        The ring's last chunk must have been handed over before (`TraceRing.flush`).
        """
        if not self._open:
            return
        try:
            self._cut_console()
            self._write_images()
            self._file.block(layout.SUMMARY, dump_json(summary), self._records)
            self._file.seal()
        finally:
            self._open = False
            self._file.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file if `close` did not: as after a kill, but with the console traffic gathered so far."""
        if self._open:
            self._open = False
            try:
                self._cut_console()
            finally:
                self._file.close()


def annotate(path: str, time: int, text: str) -> None:
    """Append a note on a moment (virtual ns) to a finished recording, or to what a kill has left of one."""
    from xentui.recording.reader import Recording

    with Recording(path) as recording:
        entries, records, end = list(recording.entries), len(recording), recording.appendable
        if end is None:
            raise RecordingError(f"{recording.problem}: a note cannot be added")
    try:
        os.truncate(path, end)  # drops the beginning of a block that a kill cut off
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError as error:
        raise RecordingError(f"{path}: a note cannot be added: {_reason(error)}") from None
    file = BlockFile(path, fd, end, entries)
    try:
        file.block(layout.NOTE, layout.MOMENT.pack(time) + text.encode(), records, 0, (time, time))
        file.seal()
    finally:
        file.close()


def _create(path: str) -> int:
    """Open the file for writing, emptied."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise RecordingError(f"{path}: the recording cannot be created: {_reason(error)}") from None
