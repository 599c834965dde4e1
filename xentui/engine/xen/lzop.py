"""LZO as Linux's build makes it: the frame of the program lzop around blocks of LZO1X.

The format is lzop's own (its README and lzop.c; Linux reads it in lib/decompress_unlzo.c); all numbers are big-endian.
The blocks' compression itself needs the package lzallright, which is installed by those who want it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from importlib import import_module

MAGIC = b"\x89LZO\x00\r\n\x1a\n"
VERSION_WITH_LEVEL = 0x0940
"""From this version on the header has a compression level and 64-bit times."""
FILTER_FLAG = 0x800
PLAIN_CHECKSUM_FLAGS = (0x001, 0x100)
PACKED_CHECKSUM_FLAGS = (0x002, 0x200)
MAX_BLOCK = 64 << 20
"""lzop's own bound; its blocks have 256 KiB."""


class _Reader:
    """Big-endian numbers and bytes from a buffer, one after the other."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> memoryview:
        """The next bytes; EOFError where there are not so many."""
        if self.at + size > len(self.data):
            raise EOFError(f"the stream breaks off at byte {len(self.data):#x}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        """The next number of `size` bytes."""
        return int.from_bytes(self.take(size), "big")


def decompress(data: memoryview, too_large: Callable[[int], None]) -> bytes:
    """Unpack an lzop stream; `too_large` is told the size after each block, and raises where it is too much.

    Raises EOFError for a stream that breaks off, ValueError or lzallright's own error for a corrupt one, and
    ImportError where a block is compressed and lzallright is not installed.
    """
    reader = _Reader(data)
    flags = _read_header(reader)
    plain_checksums = sum(bool(flags & flag) for flag in PLAIN_CHECKSUM_FLAGS)
    packed_checksums = sum(bool(flags & flag) for flag in PACKED_CHECKSUM_FLAGS)
    out = bytearray()
    while size := reader.number(4):
        packed_size = reader.number(4)
        if packed_size > size or size > MAX_BLOCK:
            raise ValueError(f"the block at byte {reader.at - 8:#x} has impossible sizes")
        too_large(len(out) + size)
        stored = packed_size == size
        reader.take(4 * plain_checksums + (0 if stored else 4 * packed_checksums))
        block = reader.take(packed_size)
        unpacked = bytes(block) if stored else _unpack_block(bytes(block), size)
        if len(unpacked) != size:
            raise ValueError(f"the block at byte {reader.at - packed_size:#x} does not unpack to its size")
        out += unpacked
    return bytes(out)


def _read_header(reader: _Reader) -> int:
    """Skip the header; its flags."""
    if bytes(reader.take(len(MAGIC))) != MAGIC:
        raise ValueError("no lzop header")
    (version,) = struct.unpack(">H", reader.take(2))
    with_level = version >= VERSION_WITH_LEVEL
    # the library's version, the version needed, the method, the level
    reader.take(2 + 2 * with_level + 1 + with_level)
    flags = reader.number(4)
    # a filter's number, the mode, the time, the file's name, the header's checksum
    reader.take(4 * bool(flags & FILTER_FLAG) + 4 + 4 + 4 * with_level)
    reader.take(reader.number(1) + 4)
    return flags


def _unpack_block(block: bytes, size: int) -> bytes:
    """Unpack one block of LZO1X."""
    library = import_module("lzallright")
    return bytes(library.LZOCompressor.decompress(block, size))
