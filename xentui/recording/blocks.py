"""The blocks of a recording as a reader finds them: checked one by one, by the index or, without it, by scanning."""

from __future__ import annotations

import os
from collections.abc import Iterator
from struct import error as struct_error
from zlib import crc32

from xentui.recording import format as layout
from xentui.recording.format import CutOff, Entry, RecordingError

_PIECE_BYTES = 1 << 20
_MOMENTS = frozenset({layout.INPUT, layout.NOTE, layout.SNAPSHOT, layout.ACTION})


class BlockReader:
    """The file of a recording, open for reading. A file that is still being written is read up to its present end."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RecordingError(f"{path or repr(path)}: the recording cannot be opened: {error.strerror}") from None
        try:
            self.size = os.fstat(self._fd).st_size
            self._check_magic()
        except RecordingError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _check_magic(self) -> None:
        if self.read(0, len(layout.MAGIC)) != layout.MAGIC:
            raise RecordingError(f"{self.path}: not a recording: it does not begin as `xentui --record` writes one")

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file; fewer where it ends."""
        try:
            data = os.pread(self._fd, length, offset)
            while 0 < len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise RecordingError(f"{self.path}: the recording cannot be read: {error.strerror}") from None
        return data

    def damaged(self, offset: int, what: str) -> RecordingError:
        """The error for a block that is not as it was written."""
        return RecordingError(f"{self.path}: damaged at byte {offset}: {what}; copy the file anew")

    def cut_off(self, offset: int) -> CutOff:
        """The error for a file that ends too early."""
        return CutOff(f"{self.path}: cut off at byte {offset}: what was recorded after it is lost")

    def payload(self, entry: Entry) -> bytes:
        """A block's payload, its checksum verified."""
        start = entry.offset - layout.BLOCK.size
        kind, length = self._verify(start)
        if (kind, length) != (entry.type, entry.length):
            raise self.damaged(start, f"the index has a block {entry.type!r} here that the file has not")
        return self.read(entry.offset, length)

    def _verify(self, start: int) -> tuple[bytes, int]:
        """Type and payload length of the block at `start`, its checksum verified; `RecordingError` if not whole."""
        head = self.read(start, layout.BLOCK.size)
        if len(head) < layout.BLOCK.size:
            raise self.cut_off(start)
        kind, check, length = layout.BLOCK.unpack(head)
        position = start + layout.BLOCK.size
        if length > self.size - position:
            raise self.cut_off(start)
        found = crc32(kind + length.to_bytes(8, "little"))
        end = position + length
        while position < end:
            piece = self.read(position, min(_PIECE_BYTES, end - position))
            if not piece:
                raise self.damaged(start, "the file has become shorter while it was read")
            found = crc32(piece, found)
            position += len(piece)
        if found != check:
            raise self.damaged(start, "a block's checksum does not match")
        return kind, length

    def indexed(self) -> list[Entry] | None:
        """All blocks by the index at the file's end, or None where there is no valid one."""
        start = self.size - layout.TAIL_SIZE
        if start < len(layout.MAGIC):
            return None
        try:
            kind, length = self._verify(start)
            if kind != layout.TAIL or length != layout.TAIL_BODY.size:
                return None
            (index,) = layout.TAIL_BODY.unpack(self.read(start + layout.BLOCK.size, length))
            if index > start - layout.BLOCK.size:
                return None
            kind, length = self._verify(index)
        except RecordingError:
            return None
        if kind != layout.INDEX or index + layout.BLOCK.size + length != start:
            return None
        return self._entries(self.read(index + layout.BLOCK.size, length), index)

    def _entries(self, body: bytes, end: int) -> list[Entry] | None:
        """The index's entries, or None if one lies outside the file before `end` or the records have a gap."""
        try:
            entries = [Entry(*values) for values in layout.INDEX_ENTRY.iter_unpack(body)]
        except struct_error:
            return None
        first = len(layout.MAGIC) + layout.BLOCK.size
        for entry in entries:
            if not first <= entry.offset <= entry.offset + entry.length <= end:
                return None
        return entries if entries and contiguous(entries) else None

    def scanned(self) -> Iterator[Entry]:
        """Each block from the start, verified; ends by `RecordingError` at the first that is not whole."""
        position = len(layout.MAGIC)
        record = 0
        while position < self.size:
            kind, length = self._verify(position)
            entry = self._describe(kind, position + layout.BLOCK.size, length, record)
            yield entry
            record += entry.records
            position = entry.offset + length

    def _describe(self, kind: bytes, offset: int, length: int, record: int) -> Entry:
        """What the index would say of a block, from the start of its payload."""
        first, records, times = record, 0, (0, 0)
        try:
            if kind == layout.TRACE:
                head = layout.TRACE_HEAD.unpack(self.read(offset, min(length, layout.TRACE_HEAD.size)))
                first, records, times = head[0], head[3], head[1:3]
            elif kind == layout.CONSOLE:
                times = layout.CONSOLE_HEAD.unpack(self.read(offset, min(length, layout.CONSOLE_HEAD.size)))[:2]
            elif kind in _MOMENTS:
                (time,) = layout.MOMENT.unpack(self.read(offset, min(length, layout.MOMENT.size)))
                times = (time, time)
        except struct_error:
            raise self.damaged(offset, f"a block {kind!r} is too short") from None
        if first != record:
            raise self.damaged(offset, f"record {record} should come next and {first} does")
        return Entry(kind, offset, length, first, records, *times)


def contiguous(entries: list[Entry]) -> bool:
    """Whether the trace blocks follow each other without a gap."""
    record = 0
    for entry in entries:
        if entry.type == layout.TRACE:
            if entry.first_record != record or not 0 < entry.records <= layout.MAX_CHUNK_RECORDS:
                return False
            record += entry.records
    return True
