"""A cache of unpacked kernels, so that Debian's Linux is not unpacked for a second each time it starts.

One file an entry, named by the SHA-256 of the kernel file as given: the ELF file, then how it was wrapped, then a
trailer by which a damaged entry is known. A cache that cannot be read or written is silently none.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import zlib
from pathlib import Path

SMALLEST = 4 << 20
"""Kernels that unpack to fewer bytes are unpacked faster than looked up."""
KEPT = 8
"""Entries kept, the ones used last."""
MAGIC = b"xentui\x00\x01"
TRAILER = struct.Struct("<QII8s")
"""Bytes of the ELF file; bytes of the wrapping's name; CRC-32 of both; magic."""


def cache_folder() -> Path | None:
    """``$XDG_CACHE_HOME/xentui/unpacked`` or ``~/.cache/xentui/unpacked``; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG base directory specification: relative paths are invalid and to be ignored
    if os.path.isabs(base):
        return Path(base) / "xentui" / "unpacked"
    try:
        return Path.home() / ".cache" / "xentui" / "unpacked"
    except RuntimeError:
        return None


def look_up(digest: str) -> tuple[memoryview, str] | None:
    """An unpacked kernel and how it was wrapped; None where the cache has none, or a damaged one."""
    folder = cache_folder()
    if folder is None:
        return None
    entry = folder / f"{digest}.elf"
    try:
        with entry.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):
        # ValueError: an empty file cannot be mapped
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)
    return _checked(view)


def _checked(view: memoryview) -> tuple[memoryview, str] | None:
    """What an entry holds, or None where its trailer does not fit."""
    if len(view) < TRAILER.size:
        return None
    size, name_size, checksum, magic = TRAILER.unpack(view[-TRAILER.size :])
    end = size + name_size
    if magic != MAGIC or end + TRAILER.size != len(view) or zlib.crc32(view[:end]) != checksum:
        return None
    return view[:size], bytes(view[size:end]).decode()


def store(digest: str, data: memoryview, container: str) -> None:
    """Keep an unpacked kernel, in one step, so that a reader never sees half of one."""
    folder = cache_folder()
    if folder is None or len(data) < SMALLEST:
        return
    name = container.encode()
    trailer = TRAILER.pack(len(data), len(name), zlib.crc32(name, zlib.crc32(data)), MAGIC)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.NamedTemporaryFile(dir=folder, prefix="new-", delete=False)  # noqa: SIM115
        try:
            with file:
                for part in (data, name, trailer):
                    file.write(part)
            os.replace(file.name, folder / f"{digest}.elf")
        except BaseException:
            os.unlink(file.name)
            raise
        _prune(folder)


def _prune(folder: Path) -> None:
    """Remove all entries but those used last."""
    entries = sorted(folder.glob("*.elf"), key=lambda entry: entry.stat().st_mtime)
    for entry in entries[:-KEPT]:
        entry.unlink(missing_ok=True)
