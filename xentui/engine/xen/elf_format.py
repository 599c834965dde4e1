"""The ELF container: headers, segments, sections, notes and symbols, each checked against the file's bounds.

Knows nothing of Xen. Whatever the bytes say, nothing is raised but :class:`ImageError`, and nothing is allocated by a
size that the file claims. Layouts are those of the System V ABI, chapters 4 and 5; only little-endian files are read.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

PT_LOAD, PT_NOTE = 1, 4
SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 2, 3, 7, 8
ET_EXEC = 2
EM_386, EM_X86_64 = 3, 62
PF_X, PF_RWX = 1, 7
MAX_NOTES = 65536
"""As libelf's ELF_MAX_TOTAL_NOTE_COUNT: more notes than this are no kernel's."""
MAX_SYMBOL_NAME = 1024

ELF_TYPES = {0: "a file of no type", 1: "a relocatable object", 3: "a shared object or program", 4: "a core dump"}
MACHINES = {2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S/390", 40: "Arm", 50: "IA-64"}
MACHINES |= {183: "AArch64", 243: "RISC-V", 247: "BPF", 258: "LoongArch"}


class ImageError(ValueError):
    """A file that is no kernel for a PV domain; its text is one line: the file, what is wrong, where, and a remedy."""

    def __init__(self, path: str, what: str, *, where: str = "", remedy: str = "") -> None:
        text = f"{path}: {what}" + (f" ({where})" if where else "") + (f"; {remedy}" if remedy else "")
        super().__init__("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))


class ProgramHeader(NamedTuple):
    """A segment as its program header describes it; offsets and sizes in bytes."""

    number: int
    type: int
    flags: int
    offset: int
    paddr: int
    file_size: int
    memory_size: int


class SectionHeader(NamedTuple):
    """A section as its section header describes it; `name` is an index into the section names' string table."""

    number: int
    name: int
    type: int
    address: int
    offset: int
    size: int
    link: int


class ElfNote(NamedTuple):
    """One note: `description` is what of it lies inside the file, `description_size` what the note claims."""

    owner: str
    type: int
    offset: int
    description: memoryview
    description_size: int


class SymbolTable(NamedTuple):
    """A kernel's own symbols, sorted by address."""

    addresses: list[int]
    names: list[str]
    by_name: dict[str, int]

    def address(self, name: str) -> int | None:
        """The virtual address of a symbol, or None."""
        return self.by_name.get(name)

    def lookup(self, address: int) -> tuple[str, int] | None:
        """The last symbol at or below `address` and the distance from it in bytes, or None."""
        index = bisect_right(self.addresses, address) - 1
        return (self.names[index], address - self.addresses[index]) if index >= 0 else None


class ElfFile:
    """An executable for x86, 32-bit or 64-bit, read from a buffer that holds the whole file."""

    def __init__(self, path: str, data: memoryview) -> None:
        """Check the headers. `path` is for messages only. Raises ImageError."""
        self.path = path
        self.data = data
        self.width = self._read_ident()
        header = self.unpack("<HHIIIIIHHHHHH" if self.width == 32 else "<HHIQQQIHHHHHH", 16, "the ELF header")
        self.type, self.machine, _, self.entry, self.phoff, self.shoff = header[:6]
        _, _, self.phentsize, self.phnum, self.shentsize, self.shnum, self.shstrndx = header[6:]
        self._check_kind()
        wide = self.width == 64
        self._check_table("program headers", self.phoff, self.phnum, self.phentsize, 56 if wide else 32)
        self._check_table("section headers", self.shoff, self.shnum, self.shentsize, 64 if wide else 40)
        self.program_headers = [self._program_header(index) for index in range(self.phnum)]

    def error(self, what: str, where: str = "", remedy: str = "") -> ImageError:
        """An ImageError about this file."""
        return ImageError(self.path, what, where=where, remedy=remedy)

    def unpack(self, layout: str, offset: int, what: str) -> tuple[int, ...]:
        """Decode the numbers of `layout` at a file offset; `what` names them in the error."""
        return struct.unpack(layout, self.slice(offset, struct.calcsize(layout), what))

    def slice(self, offset: int, size: int, what: str) -> memoryview:
        """The `size` bytes at a file offset; ImageError where any of them lies outside the file."""
        if offset + size > len(self.data):
            raise self.error(
                f"truncated: {what} reaches to byte {offset + size:#x}",
                f"the file ends at {len(self.data):#x}",
                "copy or unpack the file anew",
            )
        return self.data[offset : offset + size]

    def _read_ident(self) -> int:
        """The word size that e_ident tells; ImageError for what is no little-endian ELF file."""
        ident = bytes(self.slice(0, 16, "the ELF header"))
        if ident[:4] != b"\x7fELF":
            raise self.error("not an ELF file", "offset 0")
        if ident[4] not in (1, 2):
            raise self.error(f"corrupt: ELF class {ident[4]} does not exist", "offset 0x4")
        if ident[5] != 1:
            raise self.error("not for x86: the ELF file is not little-endian", "offset 0x5", "use an x86 kernel")
        return 32 * ident[4]

    def _check_kind(self) -> None:
        """Refuse what is no executable for x86."""
        machine = MACHINES.get(self.machine, f"machine {self.machine}")
        if self.machine not in (EM_386, EM_X86_64):
            raise self.error(f"not for x86: built for {machine}", "e_machine", "use an x86 kernel")
        if (self.machine == EM_X86_64) != (self.width == 64):
            built_for = "x86-64" if self.machine == EM_X86_64 else "i386"
            raise self.error(f"an ELF{self.width} file for {built_for} is no Xen kernel", "e_ident, e_machine")
        if self.type != ET_EXEC:
            kind = ELF_TYPES.get(self.type, f"an ELF file of type {self.type:#x}")
            raise self.error(f"{kind}, not an executable", "e_type", "link it at a fixed address (ET_EXEC)")

    def _check_table(self, what: str, offset: int, count: int, entry_size: int, expected: int) -> None:
        """Check that a header table has entries of the right size and lies in the file."""
        if count and entry_size != expected:
            raise self.error(f"corrupt: the {what} have {entry_size} bytes each instead of {expected}", "ELF header")
        if count:
            self.slice(offset, count * entry_size, f"the table of {what}")

    def _program_header(self, index: int) -> ProgramHeader:
        """Decode one program header."""
        where, what = self.phoff + index * self.phentsize, "a program header"
        if self.width == 64:
            kind, flags, offset, _, paddr, file_size, memory_size, _ = self.unpack("<IIQQQQQQ", where, what)
        else:
            kind, offset, _, paddr, file_size, memory_size, flags, _ = self.unpack("<IIIIIIII", where, what)
        return ProgramHeader(index, kind, flags, offset, paddr, file_size, memory_size)

    def sections(self) -> list[SectionHeader]:
        """All section headers."""
        found = []
        for index in range(self.shnum):
            where = self.shoff + index * self.shentsize
            layout = "<IIQQQQIIQQ" if self.width == 64 else "<IIIIIIIIII"
            name, kind, _, address, offset, size, link = self.unpack(layout, where, "a section header")[:7]
            found.append(SectionHeader(index, name, kind, address, offset, size, link))
        return found

    def section_bytes(self, section: SectionHeader) -> memoryview:
        """What the file holds for a section."""
        if section.type == SHT_NOBITS:
            return self.data[:0]
        return self.slice(section.offset, section.size, f"section {section.number}")

    def section_named(self, name: str) -> SectionHeader | None:
        """The first section of that name, or None."""
        sections = self.sections()
        if self.shstrndx >= len(sections):
            return None
        names = bytes(self.section_bytes(sections[self.shstrndx]))
        wanted = name.encode() + b"\0"
        return next((s for s in sections if names.startswith(wanted, s.name)), None)

    def notes(self, offset: int, size: int) -> Iterator[ElfNote]:
        """The notes in a part of the file, 4-byte aligned as Linux and Xen have them.

        A description may claim more bytes than its segment has: Debian's grub-i386-xen.bin ends so, and Xen takes it.
        """
        end = offset + size
        self.slice(offset, size, "a note segment")
        for _ in range(MAX_NOTES):
            if offset >= end:
                return
            name_size, description_size, kind = self.unpack("<III", offset, "a note")
            owner = bytes(self.slice(offset + 12, name_size, f"the owner of the note at {offset:#x}"))
            start = offset + 12 + _align(name_size)
            description = self.data[start : start + description_size]
            yield ElfNote(_text(owner), kind, offset, description, description_size)
            offset = start + _align(description_size)
        raise self.error(f"corrupt: more than {MAX_NOTES} notes", f"offset {offset:#x}")

    def symbols(self) -> SymbolTable:
        """The symbol table, empty where the file was stripped."""
        sections = self.sections()
        table = next((s for s in sections if s.type == SHT_SYMTAB), None)
        if table is None or table.link >= len(sections):
            return SymbolTable([], [], {})
        strings = bytes(self.section_bytes(sections[table.link]))
        layout = struct.Struct("<IBBHQQ" if self.width == 64 else "<IIIBBH")
        raw = self.section_bytes(table)
        found: list[tuple[int, str]] = []
        for entry in layout.iter_unpack(raw[: len(raw) // layout.size * layout.size]):
            kind, address = (entry[1], entry[4]) if self.width == 64 else (entry[3], entry[1])
            end = strings.find(b"\0", entry[0], entry[0] + MAX_SYMBOL_NAME)
            # sections (3) and source files (4) name no place
            if kind & 15 not in (3, 4) and address and end > entry[0]:
                found.append((address, strings[entry[0] : end].decode("utf-8", "replace")))
        found.sort()
        return SymbolTable([a for a, _ in found], [n for _, n in found], {n: a for a, n in reversed(found)})


def _align(size: int) -> int:
    """Round up to the notes' alignment."""
    return (size + 3) & ~3


def _text(raw: bytes) -> str:
    """A NUL-terminated string; what is no ASCII is shown as an escape."""
    return raw.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
