"""What a guest's kernel calls its addresses: functions and data by its symbol table, source lines by its DWARF.

Tables are read once for each file, and only when somebody asks. A stripped kernel has none: every answer is empty.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property, lru_cache
from io import BytesIO
from os.path import join
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xentui.engine.xen import kernel_file
from xentui.engine.xen.elf_format import ElfFile, SymbolTable

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain

_LOCAL = re.compile(r"^[.$]|^\.?L\d")
"""Names that assemblers make up."""
_LAST = 4096
"""Bytes that the last symbol is taken to have, where no `_end` says where the kernel ends."""


class Line(NamedTuple):
    """A place in the source."""

    file: str
    line: int


class Symbols:
    """The names of one kernel."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        table = elf.symbols()
        # others are plain numbers (SHN_ABS), or offsets in a vCPU's own data
        begin = min((section.address for section in elf.sections() if section.address), default=0)
        symbols = zip(table.addresses, table.names, strict=True)
        named = [(a, n) for a, n in symbols if a >= begin and not _LOCAL.match(n)]
        self.table = SymbolTable([a for a, _ in named], [n for _, n in named], table.by_name)
        self._end = table.by_name.get("_end") or (named[-1][0] + _LAST if named else 0)

    def address(self, name: str) -> int | None:
        """Where `name` lies; None if there is no such symbol."""
        return self.table.by_name.get(name)

    def place(self, address: int) -> tuple[str, int] | None:
        """The symbol at or below an address, and how far behind it that is; None outside the kernel."""
        found = self.table.lookup(address) if address < self._end else None
        if found is None:
            return None
        # of several names for one address, the first
        index = bisect_right(self.table.addresses, address) - 1
        while index and self.table.addresses[index - 1] == self.table.addresses[index]:
            index -= 1
        return self.table.names[index], found[1]

    def name(self, address: int) -> str:
        """`main+0x12`, or nothing."""
        found = self.place(address)
        if found is None:
            return ""
        return f"{found[0]}+{found[1]:#x}" if found[1] else found[0]

    def matching(self, beginning: str, most: int = 50) -> list[str]:
        """Names that begin so, for completion, sorted."""
        return sorted({name for name in self.table.names if name.startswith(beginning)})[:most]

    # --- source lines -----------------------------------------------------------------------------------------------

    @cached_property
    def _lines(self) -> tuple[list[int], list[Line | None]]:
        """Addresses where a source line begins, sorted, and which; None where what the file tells ends."""
        from elftools.elf.elffile import ELFFile

        found: dict[int, Line | None] = {}
        file = ELFFile(BytesIO(bytes(self._elf.data)))
        if file.has_dwarf_info():
            for unit in file.get_dwarf_info().iter_CUs():
                folder = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
                where = folder.value.decode(errors="replace") if folder is not None else ""
                _read_lines(file.get_dwarf_info().line_program_for_CU(unit), where, found)
        addresses = sorted(found)
        return addresses, [found[address] for address in addresses]

    def line(self, address: int) -> Line | None:
        """The source line that an instruction belongs to, where the kernel has DWARF line numbers."""
        addresses, lines = self._lines
        index = bisect_right(addresses, address) - 1
        return lines[index] if index >= 0 else None

    def line_address(self, file: str, line: int) -> int | None:
        """The first instruction of a source line; `file` may lack its folders."""
        addresses, lines = self._lines
        for address, place in zip(addresses, lines, strict=True):
            if place is not None and place.line == line and (place.file == file or place.file.endswith("/" + file)):
                return address
        return None


def _read_lines(program: Any, where: str, found: dict[int, Line | None]) -> None:
    """Add what one compilation unit's line program says. `where`: the folder in which it was compiled."""
    if program is None:
        return
    header = program.header
    base = 0 if header.version >= 5 else 1
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if state.end_sequence:
            found.setdefault(state.address, None)
            continue
        files = header.file_entry
        index = state.file - base
        if not 0 <= index < len(files):
            continue
        name = files[index].name.decode(errors="replace")
        folder = files[index].dir_index - base
        folders = header.include_directory
        inside = folders[folder].decode(errors="replace") if 0 <= folder < len(folders) else ""
        found[state.address] = Line(join(where, inside, name), state.line)


@lru_cache(maxsize=16)
def _read(path: Path, _changed: int) -> Symbols:
    return Symbols(ElfFile(str(path), kernel_file.read_kernel(path).data))


def read_symbols(path: Path) -> Symbols:
    """The symbols of a kernel's file. Raises ImageError or OSError where it cannot be read."""
    return _read(path, path.stat().st_mtime_ns)


def symbols_of(domain: Domain) -> Symbols | None:
    """The symbols of the kernel that a domain was started with; None where its file cannot be read any more."""
    if domain.kernel is None:
        return None
    try:
        return read_symbols(domain.kernel)
    except (OSError, ValueError):
        return None
