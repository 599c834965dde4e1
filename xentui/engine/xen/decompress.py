"""The compressions that kernels come in: those of Linux's build, as payload of a bzImage or around a whole file.

Each is known by its first bytes, as Xen's toolstack knows them. The libraries are imported only when they are needed.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Protocol

from .elf_format import ImageError

MAX_UNPACKED = 1 << 30
"""Bytes that a kernel may have when unpacked: libxc's XC_DOM_DECOMPRESS_MAX."""
MAX_DECODER_MEMORY = 512 << 20
LZ4_LEGACY_MAGIC = 0x184C2102
LZ4_BLOCK = 8 << 20
"""Bytes that a block of the legacy frame holds at most."""

MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4 frame"),
    (b"\x89LZO", "lzo"),
)


def find_method(data: memoryview) -> str | None:
    """The name of the compression that some bytes are in, or None."""
    return next((method for magic, method in MAGICS if bytes(data[: len(magic)]) == magic), None)


def decompress(path: str, data: memoryview, method: str, *, payload: bool) -> bytes:
    """Unpack a kernel; `payload` tells that it comes from a bzImage, where the unpacked size follows the stream.

    Raises ImageError for corrupt or truncated data, for more than MAX_UNPACKED bytes, and for a missing library.
    """
    place = f"{method} {'payload' if payload else 'stream'}"
    try:
        unpacked = DECODERS[method](data, payload)
    except _TooLargeError:
        raise ImageError(path, f"unpacks to more than {MAX_UNPACKED >> 20} MiB", where=place) from None
    except EOFError as error:
        raise ImageError(path, f"truncated: {error}", where=place, remedy="copy the file anew") from None
    except ImportError as error:
        remedy = f"pip install {error.name}, or recompress the kernel with zstd"
        raise ImageError(
            path, f"unpacking it needs the Python package {error.name}", where=place, remedy=remedy
        ) from None
    except Exception as error:
        # the libraries have seven exceptions for this between them, OSError and RuntimeError among those
        raise ImageError(path, f"corrupt: {error}", where=place, remedy="copy the file anew") from None
    # these two have no checksum inside; libxc checks the size for them
    if payload and method in ("zstd", "lz4") and bytes(data[-4:]) != struct.pack("<I", len(unpacked)):
        raise ImageError(path, f"corrupt: unpacks to {len(unpacked)} bytes, not to the size it tells", where=place)
    return unpacked


class _TooLargeError(Exception):
    """The stream unpacks to more than is allowed."""


class _Decoder(Protocol):
    """What the decompressors of bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: memoryview, max_length: int) -> bytes: ...


def _run(decoder: _Decoder, data: memoryview) -> bytes:
    """Unpack one stream; what follows it is ignored, as libxc does."""
    unpacked = decoder.decompress(data, MAX_UNPACKED + 1)
    if len(unpacked) > MAX_UNPACKED:
        raise _TooLargeError
    if not decoder.eof:
        raise EOFError(f"the stream breaks off after {len(unpacked)} unpacked bytes")
    return unpacked


def _gzip(data: memoryview, payload: bool) -> bytes:
    import zlib

    decoder = zlib.decompressobj(wbits=31)
    unpacked = decoder.decompress(data, MAX_UNPACKED + 1)
    if len(unpacked) > MAX_UNPACKED:
        raise _TooLargeError
    if not decoder.eof:
        raise EOFError(f"the stream breaks off after {len(unpacked)} unpacked bytes")
    return unpacked


def _bzip2(data: memoryview, payload: bool) -> bytes:
    import bz2

    return _run(bz2.BZ2Decompressor(), data)


def _xz(data: memoryview, payload: bool) -> bytes:
    import lzma

    return _run(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DECODER_MEMORY), data)


def _lzma(data: memoryview, payload: bool) -> bytes:
    import lzma

    return _run(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_DECODER_MEMORY), data)


def _zstd(data: memoryview, payload: bool) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    return _run(zstd.ZstdDecompressor(), data)


def _lz4(data: memoryview, payload: bool) -> bytes:
    """The legacy frame of ``lz4 -l``: blocks, each behind its size; a payload ends with the unpacked size."""
    import lz4.block

    out = bytearray()
    at, end = 4, len(data) - 4 * payload
    while at < end:
        if at + 4 > end:
            raise EOFError(f"a block's size is cut off at byte {at:#x}")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if size == LZ4_LEGACY_MAGIC:
            continue
        if at + size > end:
            raise EOFError(f"the block at byte {at:#x} is cut off")
        out += lz4.block.decompress(data[at : at + size], uncompressed_size=LZ4_BLOCK)
        at += size
        if len(out) > MAX_UNPACKED:
            raise _TooLargeError
    return bytes(out)


def _lz4_frame(data: memoryview, payload: bool) -> bytes:
    import lz4.frame

    return _run(lz4.frame.LZ4FrameDecompressor(), data)


def _lzo(data: memoryview, payload: bool) -> bytes:
    from . import lzop

    def check(size: int) -> None:
        if size > MAX_UNPACKED:
            raise _TooLargeError

    return lzop.decompress(data, check)


DECODERS: dict[str, Callable[[memoryview, bool], bytes]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "xz": _xz,
    "zstd": _zstd,
    "lzma": _lzma,
    "lz4": _lz4,
    "lz4 frame": _lz4_frame,
    "lzo": _lzo,
}
