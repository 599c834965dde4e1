"""The initial page tables of a domain, as Xen's toolstack lays them out (tools/libs/guest/xg_dom_x86.c).

A mapping is a run of virtual addresses onto consecutive pseudo-physical frames. The tables that map it follow each
other in pseudo-physical memory: the top level first, then each level down in the order of addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xentui.engine.x86.paging import ACCESSED, DIRTY, ENTRIES, NX, PAGE_SHIFT, PRESENT, RW, USER

L1_PROT = PRESENT | RW | ACCESSED
UPPER_PROT = PRESENT | RW | ACCESSED | DIRTY | USER
LEVELS = {32: 3, 64: 4}
_MASK = {32: (1 << 32) - 1, 64: (1 << 48) - 1}
_PAE_LAST_L2 = 0xC000_0000


def _shift(level: int) -> int:
    """Address bits below the index of a table of `level` (1 is the lowest)."""
    return PAGE_SHIFT + 9 * (level - 1)


@dataclass
class Mapping:
    """A run of addresses (`end` inclusive) onto frames from `pfn` on, and the tables that it alone needs."""

    start: int
    end: int
    pfn: int
    tables: list[tuple[int, int]] = field(default_factory=list)
    """(level, first address mapped), in the order in which the tables lie in memory."""


class BootTables:
    """Plans the tables of one domain, then writes them."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.levels = LEVELS[width]
        self.mask = _MASK[width]
        self.mappings: list[Mapping] = []
        self.table_pfn: dict[tuple[int, int], int] = {}

    def plan(self, start: int, end: int, pfn: int) -> Mapping:
        """What mapping [start, end] to frames from `pfn` on needs beyond the tables already placed."""
        start, end = start & self.mask, end & self.mask
        mapping = Mapping(start, end, pfn)
        if not self.mappings:
            mapping.tables.append((self.levels, 0))
        for level in range(self.levels - 1, 0, -1):
            size = 1 << _shift(level + 1)
            first, last = start // size, end // size
            if self.width == 32 and level == 2 and not self.mappings and end < _PAE_LAST_L2:
                last = 3  # the fourth L2 is where the hypervisor's entries go, so there must be one
            for number in range(first, last + 1):
                if (level, number * size) not in self.table_pfn:
                    mapping.tables.append((level, number * size))
        return mapping

    def place(self, mapping: Mapping, pfn: int) -> None:
        """Keep a planned mapping; its tables lie from `pfn` on."""
        for number, table in enumerate(mapping.tables):
            self.table_pfn[table] = pfn + number
        self.mappings.append(mapping)

    def write(self, ram64: memoryview, p2m: list[int], code: bytearray) -> set[int]:
        """Fill every table. Frames that hold page tables are mapped read-only, all others writable.

        Frames that are not marked in `code` are mapped NX, which the toolstack does not do: the emulated processor
        stores ten times slower into pages that may hold code. The hypervisor takes NX off at the first fetch
        (traps.py, page_fault); the result is the `ram64` indices of all entries that have it.
        """
        tables = frozenset(self.table_pfn.values())
        lazy: set[int] = set()
        for (level, base), pfn in self.table_pfn.items():
            index = p2m[pfn] << 9
            if level == 1:
                self._write_l1(ram64, index, base, p2m, tables, code, lazy)
                continue
            step = 1 << _shift(level)
            for entry in range(ENTRIES):
                child = self.table_pfn.get((level - 1, base + entry * step))
                if child is not None:
                    ram64[index + entry] = p2m[child] << PAGE_SHIFT | UPPER_PROT
        return lazy

    def _write_l1(
        self,
        ram64: memoryview,
        index: int,
        base: int,
        p2m: list[int],
        tables: frozenset[int],
        code: bytearray,
        lazy: set[int],
    ) -> None:
        for mapping in self.mappings:
            first, last = max(base, mapping.start), min(base + (ENTRIES << PAGE_SHIFT) - 1, mapping.end)
            if first > last:
                continue
            pfn = mapping.pfn + (first - mapping.start >> PAGE_SHIFT)
            at = index + (first - base >> PAGE_SHIFT)
            for number in range(pfn, pfn + (last - first >> PAGE_SHIFT) + 1):
                prot = L1_PROT & ~RW if number in tables else L1_PROT
                if not code[number]:
                    prot |= NX
                    lazy.add(at)
                ram64[at] = p2m[number] << PAGE_SHIFT | prot
                at += 1
