"""From a path to the bytes of an ELF file: whatever wraps a kernel on disk is taken off here."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from .elf_format import ImageError

MAX_FILE = 1 << 30
"""Bytes that a kernel file may have."""
MAX_LAYERS = 3
"""A gzip file around a bzImage around a payload; deeper nesting is no kernel."""


class RawKernel(NamedTuple):
    """An unwrapped kernel file."""

    data: memoryview
    """The ELF file."""
    container: str
    """What it was wrapped in: "ELF" for nothing, or for example "gzip" or "bzImage, xz"."""
    sha256: str
    """Digest of the file as given, in hexadecimal."""


def read_kernel(path: Path) -> RawKernel:
    """Read a kernel and unwrap it: an ELF file, a bzImage, or either of them compressed. Raises ImageError."""
    data = memoryview(_read(path))
    digest = hashlib.sha256(data).hexdigest()
    if _is_elf(data):
        return RawKernel(data, "ELF", digest)
    from . import kernel_cache

    cached = kernel_cache.look_up(digest)
    if cached is not None:
        return RawKernel(*cached, digest)
    unpacked, container = _unwrap(str(path), data)
    if unpacked.obj is not data.obj:
        kernel_cache.store(digest, unpacked, container)
    return RawKernel(unpacked, container, digest)


def _is_elf(data: memoryview) -> bool:
    return bytes(data[:4]) == b"\x7fELF"


def _read(path: Path) -> bytes:
    """A file's bytes; ImageError for what is no file or cannot be read."""
    name = str(path)
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISDIR(status.st_mode):
                raise ImageError(name, "is a directory, not a kernel", remedy="give the path of the kernel in it")
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(name, "is no regular file", remedy="copy the kernel to a file")
            if status.st_size > MAX_FILE:
                raise ImageError(name, f"has {status.st_size >> 20} MiB, more than any kernel")
            data = file.read()
    except IsADirectoryError:
        raise ImageError(name, "is a directory, not a kernel", remedy="give the path of the kernel in it") from None
    except FileNotFoundError:
        raise ImageError(name, "no such file", remedy="check the path") from None
    except PermissionError:
        raise ImageError(name, "permission denied", remedy="make the file readable (chmod +r)") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        # ValueError: a NUL byte in the path
        raise ImageError(name, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise ImageError(name, "is empty", remedy="copy the kernel anew")
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting for the other end, should it be a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _unwrap(path: str, data: memoryview) -> tuple[memoryview, str]:
    """Take off one wrapping after the other until an ELF file comes out; its bytes and the wrappings' names."""
    from .bzimage import find_payload, is_bzimage
    from .decompress import decompress, find_method

    layers: list[str] = []
    for _ in range(MAX_LAYERS):
        payload = is_bzimage(data)
        if payload:
            data = find_payload(path, data)
            layers.append("bzImage")
        method = find_method(data)
        if method is not None:
            data = memoryview(decompress(path, data, method, payload=payload))
            layers.append(method)
        if _is_elf(data):
            return data, ", ".join(layers)
        if method is None:
            break
    raise _unknown(path, data, layers)


def _unknown(path: str, data: memoryview, layers: list[str]) -> ImageError:
    """Say what a file that is no kernel looks like."""
    start = bytes(data[:512])
    where = f"inside its {', '.join(layers)}" if layers else "offset 0"
    remedy = "give an ELF file, a compressed one, or a bzImage"
    what = "not a kernel: no ELF, bzImage or compression magic"
    if start[:6] in (b"070701", b"070702", b"070707"):
        what, remedy = "a cpio archive, not a kernel", "give it as --ramdisk"
    elif start[:2] == b"MZ":
        what = "an EFI or DOS program, not a kernel for Xen PV"
    elif _is_text(start):
        what = "a text file, not a kernel"
    return ImageError(path, what, where=where, remedy=remedy)


def _is_text(start: bytes) -> bool:
    """Whether a file's first bytes are UTF-8 text; the last character may be cut."""
    text = start.decode(errors="replace")
    return bool(text) and all(c.isprintable() or c in "\t\n\r\f\x1b" for c in text) and "\ufffd" not in text[:-1]
