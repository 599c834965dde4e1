"""Small kernel images for tests, built byte by byte, so that any of their parts can be wrong on purpose."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from xentui.engine.xen.abi import elfnote

PAGE = 4096
PT_LOAD, PT_NOTE = 1, 4
SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_PROGBITS = 2, 3, 7, 1


def encode_note(number: int, description: bytes, owner: str = "Xen") -> bytes:
    """One ELF note, padded to 4 bytes."""
    name = owner.encode() + b"\0"
    padded_name = name + bytes(-len(name) % 4)
    return (
        struct.pack("<III", len(name), len(description), number)
        + padded_name
        + description
        + bytes(-len(description) % 4)
    )


def text(value: str) -> bytes:
    """A note's string."""
    return value.encode() + b"\0"


@dataclass
class Elf:
    """An ELF file to be; `build()` gives its bytes. The defaults make a kernel that Xen loads."""

    width: int = 64
    base: int = 0xFFFF_FFFF_8000_0000
    paddr: int = 0x10_0000
    segments: list[tuple[int, bytes, int]] | None = None
    """(paddr, bytes, size in memory)"""
    notes: dict[str, bytes | None] = field(default_factory=dict)
    """Notes by name, over the defaults; None takes a default away."""
    owner: str = "Xen"
    raw_notes: bytes | None = None
    notes_in: str = "segment"
    legacy: str | None = None
    symbols: Sequence[tuple[str, int]] = ()
    type: int = 2
    machine: int | None = None
    entry: int = 0
    ident: bytes | None = None

    def default_notes(self) -> dict[str, bytes]:
        """Notes of a sane kernel: what every PV kernel says."""
        word = "<Q" if self.width == 64 else "<I"
        return {
            "GUEST_OS": text("test"),
            "XEN_VERSION": text("xen-3.0"),
            "LOADER": text("generic"),
            "VIRT_BASE": struct.pack(word, self.base),
            "ENTRY": struct.pack(word, self.base + self.paddr),
            "PAE_MODE": text("yes"),
        }

    def encoded_notes(self) -> bytes:
        """All notes."""
        if self.raw_notes is not None:
            return self.raw_notes
        if self.legacy is not None and not self.notes:
            return b""
        merged = {**self.default_notes(), **self.notes}
        numbers = {name: getattr(elfnote, f"XEN_ELFNOTE_{name}") for name in merged}
        return b"".join(encode_note(numbers[n], value, self.owner) for n, value in merged.items() if value is not None)

    def build(self) -> bytes:
        """The file: header, program headers, segments, notes, sections' contents, section headers."""
        wide = self.width == 64
        segments = [(self.paddr, b"\x90" * PAGE, 2 * PAGE)] if self.segments is None else self.segments
        notes = self.encoded_notes()
        header_size, program_size, section_size = (64, 56, 64) if wide else (52, 32, 40)
        note_segment = bool(notes) and self.notes_in == "segment"
        count = len(segments) + note_segment
        body = bytearray(header_size + program_size * count)
        headers = []
        for paddr, data, memory_size in segments:
            headers.append((PT_LOAD, 7, len(body), paddr, len(data), memory_size))
            body += data
        notes_at = len(body)
        body += notes
        if note_segment:
            headers.append((PT_NOTE, 4, notes_at, 0, len(notes), len(notes)))
        sections = self._sections(body, notes_at, len(notes))
        body += bytes(-len(body) % 8)
        sections_at = len(body)
        for section in sections:
            body += struct.pack("<IIQQQQIIQQ" if wide else "<IIIIIIIIII", *section)
        for index, (kind, flags, offset, paddr, size, memory_size) in enumerate(headers):
            vaddr = (paddr + self.base) % (1 << self.width)
            fields = (kind, flags, offset, vaddr, paddr, size, memory_size, 1)
            if not wide:
                fields = (kind, offset, vaddr, paddr, size, memory_size, flags, 1)
            struct.pack_into("<IIQQQQQQ" if wide else "<IIIIIIII", body, header_size + index * program_size, *fields)
        machine = self.machine if self.machine is not None else 62 if wide else 3
        tail = (header_size, program_size, count, section_size, len(sections), 1)
        body[:16] = self.ident or b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
        layout = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
        struct.pack_into(layout, body, 16, self.type, machine, 1, self.entry, header_size, sections_at, 0, *tail)
        return bytes(body)

    def _sections(self, body: bytearray, notes_at: int, notes_size: int) -> list[tuple[int, ...]]:
        """Append the sections' contents to the body; their headers."""
        names = b"\0.shstrtab\0__xen_guest\0.symtab\0.strtab\0.note\0"

        def add(name: bytes, kind: int, data: bytes, link: int = 0, entry_size: int = 0) -> tuple[int, ...]:
            offset = len(body)
            body.extend(data)
            return (names.index(name), kind, 0, 0, offset, len(data), link, 0, 1, entry_size)

        sections = [(0,) * 10, add(b".shstrtab\0", SHT_STRTAB, names)]
        if self.legacy is not None:
            sections.append(add(b"__xen_guest\0", SHT_PROGBITS, text(self.legacy)))
        if self.notes_in == "section" and notes_size:
            sections.append((names.index(b".note\0"), SHT_NOTE, 0, 0, notes_at, notes_size, 0, 0, 4, 0))
        if self.symbols:
            strings, table = b"\0", bytes(24 if self.width == 64 else 16)
            for name, address in self.symbols:
                fields = (
                    (len(strings), 2, 0, 1, address, 0) if self.width == 64 else (len(strings), address, 0, 2, 0, 1)
                )
                table += struct.pack("<IBBHQQ" if self.width == 64 else "<IIIBBH", *fields)
                strings += text(name)
            sections.append(add(b".symtab\0", SHT_SYMTAB, table, len(sections) + 1, 24 if self.width == 64 else 16))
            sections.append(add(b".strtab\0", SHT_STRTAB, strings))
        return sections


def elf32(**changes: object) -> Elf:
    """A 32-bit PAE kernel at 3 GiB."""
    return Elf(**{"width": 32, "base": 0xC000_0000, "paddr": 0x10_0000, **changes})  # type: ignore[arg-type]


def build_bzimage(payload: bytes, *, protocol: int = 0x20F, offset: int = 0x40, length: int | None = None) -> bytes:
    """A bzImage around a payload, with one sector of real-mode code."""
    image = bytearray(1024 + 0x40)
    image[0x1F1] = 1
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<II", image, 0x248, offset, len(payload) if length is None else length)
    return bytes(image) + payload + b"the decompressor"
