"""From a path to the bytes of an ELF file: what wraps a kernel on disk is taken off here."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RawKernel:
    """An unwrapped kernel file."""

    data: memoryview
    """The ELF file."""
    container: str
    """What it was wrapped in: "ELF" for nothing, or for example "gzip" or "bzImage, xz"."""
    sha256: str
    """Digest of the file as given, in hexadecimal."""


def read_kernel(path: Path) -> RawKernel:
    """Read a kernel file."""
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    return RawKernel(memoryview(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw), "ELF", digest)
