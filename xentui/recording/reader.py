"""Read a recording: any records by number or time, as numpy columns; consoles, inputs, notes, summary.

Opening reads the index only (or, where a kill left none, scans); columns are unpacked when asked for.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import sha256
from struct import error as struct_error
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xentui.engine.trace import COLUMNS, Kind, dtype
from xentui.recording import format as layout
from xentui.recording.blocks import BlockReader
from xentui.recording.decompress import unpack
from xentui.recording.format import CutOff, Entry, RecordingError

CACHE_BYTES = 64 << 20
"""Unpacked columns kept for the next look, at most."""

_POSITIONS = {name: position for position, (name, _) in enumerate(COLUMNS)}
_TYPES = [np.dtype(code) for _, code in COLUMNS]
_CACHED_CHUNKS = 4  # a request over more chunks than this is a sweep, which would only empty the cache


class Piece(NamedTuple):
    """Console traffic: `direction` is `format.OUT` (the domain wrote) or `format.IN` (it was given to read)."""

    time: int
    domain: int
    direction: int
    data: bytes


class Input(NamedTuple):
    """Bytes that came from outside at a virtual time, for a domain's console."""

    time: int
    domain: int
    data: bytes


class Influence(NamedTuple):
    """Something that came from outside, as `writer.action` was given it; `position` in half nanoseconds."""

    time: int
    position: int
    action: dict[str, Any]


class Note(NamedTuple):
    """A remark on a moment."""

    time: int
    text: str


class Recording:
    """A recording on disk.

    `header` and `summary` are what the writer was given; `summary` is None when the run did not end in order, and
    then `complete` is false. `problem` says in a line what is wrong with the file's end, if anything is: what lies
    before is readable. Every method may raise `RecordingError` for a damaged block. Times are virtual nanoseconds.
    """

    header: dict[str, Any]
    summary: dict[str, Any] | None
    problem: str | None
    appendable: int | None
    """Where the next block may be appended: the end of the last whole one; None after damage other than a kill's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = BlockReader(path)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.problem = None
        self.appendable = self._file.size
        indexed = self._file.indexed()
        self.entries = self._scan() if indexed is None else indexed
        self._chunks = [entry for entry in self.entries if entry.type == layout.TRACE]
        self._first_records: list[int] = [entry.first_record for entry in self._chunks]
        self._last_times: list[int] = [entry.last_time for entry in self._chunks]
        self._length = sum(entry.records for entry in self._chunks)
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._cache: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._cached_bytes = 0
        self.header = self._read_header()
        summaries = [entry for entry in self.entries if entry.type == layout.SUMMARY]
        self.summary = self._json(summaries[-1]) if summaries else None

    def _scan(self) -> list[Entry]:
        """Rebuild the index of a file that was not ended in order: all blocks up to the first that is not whole."""
        entries: list[Entry] = []
        self.problem = f"{self.path}: the recording was not ended: it has no index"
        damaged = False
        try:
            for entry in self._file.scanned():
                entries.append(entry)
        except RecordingError as error:
            self.problem = str(error)
            damaged = not isinstance(error, CutOff)
        self.appendable = None if damaged or not entries else entries[-1].offset + entries[-1].length
        return [entry for entry in entries if entry.type not in (layout.INDEX, layout.TAIL)]

    def _read_header(self) -> dict[str, Any]:
        if not self.entries or self.entries[0].type != layout.HEADER:
            raise RecordingError(f"{self.path}: the recording was cut off before its header was whole; record it again")
        header = self._json(self.entries[0])
        if header.get("format") != layout.FORMAT_VERSION:
            raise RecordingError(
                f"{self.path}: recording format {header.get('format')!r}, written by xentui {header.get('xentui')!r}; "
                f"this version reads format {layout.FORMAT_VERSION}; read it with that version"
            )
        return header

    def _json(self, entry: Entry) -> dict[str, Any]:
        return self._object(entry, self._file.payload(entry))

    def _object(self, entry: Entry, text: bytes) -> dict[str, Any]:
        """A JSON object of a block."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._file.damaged(entry.offset, f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise self._file.damaged(entry.offset, "a JSON object is expected")
        return value

    def close(self) -> None:
        """Close the file and forget what was unpacked."""
        self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether the run was recorded to its end."""
        return self.summary is not None

    def __len__(self) -> int:
        """How many trace records there are."""
        return self._length

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The chunks that hold records start..stop: chunk, and the rows of it that are asked for."""
        for chunk in range(max(bisect_right(self._first_records, start) - 1, 0), len(self._chunks)):
            entry = self._chunks[chunk]
            if entry.first_record >= stop:
                break
            low = max(start - entry.first_record, 0)
            yield chunk, low, min(stop - entry.first_record, entry.records)

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        """Clamp a half-open range of record numbers as a slice does; negative numbers count from the end."""
        first, last, _ = slice(start, stop).indices(len(self))
        return first, max(first, last)

    def columns(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """One field of records start..stop (half open, as a slice): `name` of `trace.COLUMNS`."""
        first, last = self._range(start, stop)
        position = _POSITIONS[name]
        out = np.empty(last - first, _TYPES[position])
        self._fill(out, position, first, last)
        return out

    def records(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Records start..stop (half open, as a slice) as a structured array of `trace.dtype()`."""
        first, last = self._range(start, stop)
        out = np.empty(last - first, dtype())
        for position, (name, _) in enumerate(COLUMNS):
            self._fill(out[name], position, first, last)
        return out

    def _fill(self, out: NDArray[Any], position: int, first: int, last: int) -> None:
        spans = list(self._spans(first, last))
        filled = 0
        for chunk, low, high in spans:
            column = self._column(chunk, position, keep=len(spans) <= _CACHED_CHUNKS)
            out[filled : filled + high - low] = column[low:high]
            filled += high - low

    def _column(self, chunk: int, position: int, keep: bool) -> NDArray[Any]:
        """One column of one chunk, unpacked, kept for the next time if asked to."""
        key = (chunk, position)
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            return cached
        column = self._unpack(chunk, position)
        if keep:
            self._cache[key] = column
            self._cached_bytes += column.nbytes
            while self._cached_bytes > CACHE_BYTES:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return column

    def _unpack(self, chunk: int, position: int) -> NDArray[Any]:
        entry = self._chunks[chunk]
        if chunk not in self._places:
            self._places[chunk] = self._locate(entry)
        offset, size = self._places[chunk][position]
        kind = _TYPES[position]
        try:
            data = unpack(self._file.read(offset, size), entry.records * kind.itemsize)
        except ValueError as error:
            raise self._file.damaged(offset, f"column {COLUMNS[position][0]}: {error}") from None
        if position != _POSITIONS["time"]:
            return np.frombuffer(data, kind)
        planes = np.frombuffer(data, np.uint8).reshape(layout.TIME_BYTES, entry.records)
        steps = np.ascontiguousarray(planes.T).view(kind).reshape(-1)
        return np.cumsum(steps, dtype=kind) + np.uint64(entry.first_time)

    def _locate(self, entry: Entry) -> list[tuple[int, int]]:
        """Offset and packed size of each column of a trace block, after verifying the block."""
        payload = self._file.payload(entry)
        try:
            first, first_time, last_time, count, *sizes = layout.TRACE_HEAD.unpack_from(payload)
        except struct_error:
            raise self._file.damaged(entry.offset, "a trace block is too short") from None
        indexed = (entry.first_record, entry.first_time, entry.last_time, entry.records)
        if (first, first_time, last_time, count) != indexed or layout.TRACE_HEAD.size + sum(sizes) != len(payload):
            raise self._file.damaged(entry.offset, "a trace block contradicts the index or itself")
        places = []
        offset = entry.offset + layout.TRACE_HEAD.size
        for size in sizes:
            places.append((offset, size))
            offset += size
        return places

    def find_time(self, time: int) -> int:
        """The number of the first record at or after a virtual time; `len()` if there is none."""
        chunk = bisect_left(self._last_times, time)
        if chunk == len(self._chunks):
            return len(self)
        times = self._column(chunk, _POSITIONS["time"], keep=True)
        return self._first_records[chunk] + int(np.searchsorted(times, np.uint64(max(time, 0))))

    def block_at(self, time: int) -> tuple[int, int]:
        """The numbers of the records (half open) of the block in which the first record at or after a time lies, by
        the index alone; `(len(), len())` if there is none."""
        chunk = bisect_left(self._last_times, time)
        if chunk == len(self._chunks):
            return len(self), len(self)
        return self._first_records[chunk], self._first_records[chunk] + self._chunks[chunk].records

    def outline(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers of each block's first and last record, and their times, by the index alone."""
        ends = [(entry.first_record, entry.first_record + entry.records - 1) for entry in self._chunks]
        times = [(entry.first_time, entry.last_time) for entry in self._chunks]
        return np.array(ends, np.int64).reshape(-1), np.array(times, np.int64).reshape(-1)

    def _payloads(self, kind: bytes) -> Iterator[tuple[Entry, bytes]]:
        for entry in self.entries:
            if entry.type == kind:
                yield entry, self._file.payload(entry)

    def console(self, domain: int | None = None) -> Iterator[Piece]:
        """Console traffic in order, of one domain or of all."""
        for entry, payload in self._payloads(layout.CONSOLE):
            for piece in self._pieces(entry, payload):
                if domain is None or piece.domain == domain:
                    yield piece

    def _pieces(self, entry: Entry, payload: bytes) -> list[Piece]:
        """Take a console block apart."""
        try:
            _, _, count, size = layout.CONSOLE_HEAD.unpack_from(payload)
            if size > layout.MAX_CONSOLE_BYTES:
                raise ValueError(f"{size} bytes in one block")
            body = unpack(payload[layout.CONSOLE_HEAD.size :], size)
            heads = [layout.PIECE.unpack_from(body, number * layout.PIECE.size) for number in range(count)]
        except (struct_error, ValueError) as error:
            raise self._file.damaged(entry.offset, f"console traffic: {error}") from None
        pieces = []
        position = count * layout.PIECE.size
        for time, domain, direction, length in heads:
            pieces.append(Piece(time, domain, direction, body[position : position + length]))
            position += length
        if position != size:
            raise self._file.damaged(entry.offset, "console traffic: lengths do not add up")
        return pieces

    def inputs(self) -> list[Input]:
        """What came from outside, in order."""
        found = []
        for entry, payload in self._payloads(layout.INPUT):
            if len(payload) < layout.INPUT_HEAD.size:
                raise self._file.damaged(entry.offset, "an input is too short")
            time, domain = layout.INPUT_HEAD.unpack_from(payload)
            found.append(Input(time, domain, payload[layout.INPUT_HEAD.size :]))
        return found

    def actions(self) -> list[Influence]:
        """The influences from outside, in order."""
        found = []
        for entry, payload in self._payloads(layout.ACTION):
            if len(payload) < layout.ACTION_HEAD.size:
                raise self._file.damaged(entry.offset, "an action is too short")
            time, position = layout.ACTION_HEAD.unpack_from(payload)
            action = self._object(entry, payload[layout.ACTION_HEAD.size :])
            found.append(Influence(time, position, action))
        return found

    def images(self) -> dict[str, bytes]:
        """The kernels and ramdisks that the guests were made from, by their SHA-256 in hexadecimal."""
        found = {}
        for entry, payload in self._payloads(layout.IMAGE):
            try:
                digest, size = layout.IMAGE_HEAD.unpack_from(payload)
                if size > layout.MAX_IMAGE_BYTES:
                    raise ValueError(f"{size} bytes in one image")
                content = unpack(payload[layout.IMAGE_HEAD.size :], size)
            except (struct_error, ValueError) as error:
                raise self._file.damaged(entry.offset, f"an image: {error}") from None
            if sha256(content).digest() != digest:
                raise self._file.damaged(entry.offset, "an image is not the one that was recorded")
            found[digest.hex()] = content
        return found

    def notes(self) -> list[Note]:
        """The remarks, by their moments."""
        found = []
        for entry, payload in self._payloads(layout.NOTE):
            found.append(Note(entry.first_time, payload[layout.MOMENT.size :].decode(errors="replace")))
        return sorted(found, key=lambda note: note.time)

    def snapshots(self) -> Iterator[tuple[int, bytes]]:
        """Time and payload of each snapshot."""
        for entry, payload in self._payloads(layout.SNAPSHOT):
            yield entry.first_time, payload[layout.MOMENT.size :]

    def domain_names(self) -> dict[int, str]:
        """Domain number to name, as far as the header's `domains` says: `[{"id": 1, "name": "hello32", …}, …]`."""
        domains = self.header.get("domains", [])
        known = [item for item in domains if isinstance(item, dict)] if isinstance(domains, list) else []
        return {item["id"]: str(item["name"]) for item in known if isinstance(item.get("id"), int) and "name" in item}

    def domain_widths(self) -> dict[int, int]:
        """Domain number to word size (32 or 64), from the records of domains created."""
        made = np.flatnonzero(self.columns("kind") == Kind.DOMAIN_CREATE)
        rows = [self.records(int(number), int(number) + 1)[0] for number in made]
        return {int(row["domain"]): int(row["number"]) for row in rows}
