"""Linux's bzImage: where in it the compressed kernel lies.

A Xen toolstack takes no other notice of a bzImage: real-mode code and decompressor are skipped
(tools/libs/guest/xg_dom_bzimageloader.c; the header is that of Linux's Documentation/arch/x86/boot.rst).
"""

from __future__ import annotations

import struct

from .elf_format import ImageError

SETUP_SECTS = 0x1F1
BOOT_FLAG = 0x1FE
HEADER_MAGIC = 0x202
PROTOCOL = 0x206
PAYLOAD = 0x248
SECTOR = 512
MINIMAL_PROTOCOL = 0x0208
"""The boot protocol that introduced payload_offset and payload_length (Linux 2.6.26)."""


def is_bzimage(data: memoryview) -> bool:
    """Whether a file has the setup header of a Linux kernel."""
    return bytes(data[BOOT_FLAG : BOOT_FLAG + 2]) == b"\x55\xaa" and bytes(data[HEADER_MAGIC:PROTOCOL]) == b"HdrS"


def find_payload(path: str, data: memoryview) -> memoryview:
    """The payload of a bzImage. Raises ImageError where the header tells of none, or of one outside the file."""
    if len(data) < PAYLOAD + 8:
        raise ImageError(path, "truncated: a bzImage ends inside its header", where=f"offset {len(data):#x}")
    (protocol,) = struct.unpack_from("<H", data, PROTOCOL)
    if protocol < MINIMAL_PROTOCOL:
        version = f"boot protocol {protocol >> 8}.{protocol & 255:02}"
        raise ImageError(path, f"too old: {version}, at least 2.08 is needed", where="offset 0x206")
    payload_offset, payload_length = struct.unpack_from("<II", data, PAYLOAD)
    start = (data[SETUP_SECTS] + 1) * SECTOR + payload_offset
    if not payload_length or start + payload_length > len(data):
        raise ImageError(
            path,
            f"truncated or corrupt: the compressed kernel would be bytes {start:#x} to {start + payload_length:#x}",
            where=f"payload_offset at 0x248; the file ends at {len(data):#x}",
            remedy="copy the file anew",
        )
    return data[start : start + payload_length]
