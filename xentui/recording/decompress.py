"""Undo the writer's compression, for readers."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def unpack(data: bytes, size: int) -> bytes:
    """Decompress one zstd frame that must give exactly `size` bytes; `ValueError` otherwise. Never unpacks more."""
    decompressor = zstd.ZstdDecompressor()
    try:
        # one byte more than expected, so that a frame that goes on is told from one that ends
        unpacked = decompressor.decompress(data, size + 1)
    except (zstd.ZstdError, EOFError) as error:
        raise ValueError(str(error)) from None
    if len(unpacked) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"does not unpack to {size} bytes")
    return unpacked
