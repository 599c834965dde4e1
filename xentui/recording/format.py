"""The layout of a recording on disk (`.xtrace`): a magic, then blocks that each say their type, length and checksum.

Shared by writer and reader, described for other programs in docs/recording.md. On the start-up path: the standard
library only, and little of it; annotations are left as objects, which makes `Entry` cheaper.
"""

import struct
from typing import NamedTuple

from xentui.engine.trace import COLUMNS

MAGIC = b"\x89XTRACE\n"
"""First bytes of a recording. Not ASCII and with a line feed, so that a transfer as text is noticed."""

FORMAT_VERSION = 1

BLOCK = struct.Struct("<4sIQ")
"""Before each block: its type, the CRC-32 of type, length and payload, the payload's length in bytes."""

HEADER = b"HEAD"
TRACE = b"TRCE"
CONSOLE = b"CONS"
INPUT = b"INPT"
NOTE = b"NOTE"
SNAPSHOT = b"SNAP"
IMAGE = b"IMAG"
ACTION = b"ACTN"
SUMMARY = b"DONE"
INDEX = b"INDX"
TAIL = b"TAIL"

TRACE_HEAD = struct.Struct(f"<QQQI{len(COLUMNS)}I")
"""Before a trace block's columns: first record's number, first and last time, records, each column's packed size."""

MAX_CHUNK_RECORDS = 1 << 20
"""A trace block never holds more: the reader's guard against a damaged count."""

CONSOLE_HEAD = struct.Struct("<QQII")
"""Before a console block's packed pieces: first and last time, pieces, size unpacked."""

MAX_CONSOLE_BYTES = 1 << 28
"""A console block never unpacks to more: the reader's guard against a damaged size."""

PIECE = struct.Struct("<QHBxI")
"""One piece of console traffic: time, domain, direction, bytes; all pieces' bytes follow the last of these."""

OUT = 0
IN = 1

MOMENT = struct.Struct("<Q")
"""Before the payload of an input, a note, a snapshot: its virtual time."""

INPUT_HEAD = struct.Struct("<QH")
"""Before the bytes of an input: virtual time, domain."""

ACTION_HEAD = struct.Struct("<QQ")
"""Before the JSON of an influence from outside: virtual time, and position in half nanoseconds."""

IMAGE_HEAD = struct.Struct("<32sQ")
"""Before the packed content of a kernel or ramdisk: its SHA-256, its size unpacked."""

MAX_IMAGE_BYTES = 1 << 31
"""An image never unpacks to more: the reader's guard against a damaged size."""

INDEX_ENTRY = struct.Struct("<4s4xQQQQQQ")
"""One block in the index: the fields of `Entry`."""


class Entry(NamedTuple):
    """A block: `offset` is where its payload lies in the file, `length` the payload's bytes; times in virtual ns."""

    type: bytes
    offset: int
    length: int
    first_record: int
    records: int
    first_time: int
    last_time: int


TAIL_BODY = struct.Struct("<Q")
"""The last block's payload: where the index block begins. A recording that was ended in order ends with it."""

TAIL_SIZE = BLOCK.size + TAIL_BODY.size

TIME_BYTES = 8


class RecordingError(Exception):
    """A recording cannot be written or read; the message is one line that names the file and says why."""


class CutOff(RecordingError):
    """The file ends within a block, as a kill leaves it; what lies before is whole."""
