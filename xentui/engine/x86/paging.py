"""Page tables as the processor walks them: four levels of 512 entries (AMD64 manual volume 2, chapter 5).

A 32-bit PAE guest runs below a fourth level that the hypervisor owns, as on 64-bit Xen, so one format serves both.
"""

from __future__ import annotations

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
ENTRIES = 512

PRESENT, RW, USER, PWT, PCD = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
ACCESSED, DIRTY, PSE, GLOBAL = 1 << 5, 1 << 6, 1 << 7, 1 << 8
AVAILABLE = 7 << 9
NX = 1 << 63
FRAME_MASK = 0x000F_FFFF_FFFF_F000  # bits 12 to 51: the address of the frame

L1_SHIFT, L2_SHIFT, L3_SHIFT, L4_SHIFT = 12, 21, 30, 39


def flag_names(entry: int) -> str:
    """The flags of an entry in the manual's letters, for people: `P RW US A D NX`."""
    names = (
        (PRESENT, "P"),
        (RW, "RW"),
        (USER, "US"),
        (PWT, "PWT"),
        (PCD, "PCD"),
        (ACCESSED, "A"),
        (DIRTY, "D"),
        (PSE, "PSE"),
        (GLOBAL, "G"),
        (NX, "NX"),
    )
    return " ".join(name for bit, name in names if entry & bit) or "-"


class AddressSpace:
    """What a processor's page tables say, for the hypervisor's own accesses to guest memory.

    `reads` and `writes` remember translations as the TLB does: virtual page number to the byte offset of the frame
    in machine memory. They are dropped whenever the processor's TLB is. A page is in `writes` only if every level of
    its walk allows writing; user and supervisor pages are alike to the hypervisor (it runs in ring 0).
    """

    __slots__ = ("ram64", "reads", "root", "tables", "writes")

    def __init__(self, ram64: memoryview) -> None:
        self.ram64 = ram64
        self.root = 0
        self.reads: dict[int, int] = {}
        self.writes: dict[int, int] = {}
        self.tables: dict[int, int] = {}
        """Number of a 2 MiB region to the index in `ram64` of the L1 table that maps it. Dropped with the others: who
        changes a present entry above the L1s flushes."""

    def switch(self, root: int) -> None:
        """Take other page tables; `root` is the physical address of the fourth level."""
        self.root = root
        self.reads.clear()
        self.writes.clear()
        self.tables.clear()

    def flush(self) -> None:
        """Forget every translation."""
        self.reads.clear()
        self.writes.clear()
        self.tables.clear()

    def flush_page(self, address: int) -> None:
        """Forget the translation of one page."""
        self.reads.pop(address >> PAGE_SHIFT, None)
        self.writes.pop(address >> PAGE_SHIFT, None)

    def read_page(self, address: int) -> int:
        """Byte offset in machine memory of the frame that `address` reads from, or -1 where nothing is mapped."""
        offset = self.walk(address, PRESENT, ACCESSED)
        if offset >= 0:
            self.reads[address >> PAGE_SHIFT] = offset
        return offset

    def write_page(self, address: int) -> int:
        """Byte offset of the frame that `address` writes to, or -1 where nothing is mapped or writing is refused."""
        offset = self.walk(address, RW, ACCESSED | DIRTY)
        if offset >= 0:
            self.writes[address >> PAGE_SHIFT] = offset
        return offset

    def walk(self, address: int, need: int, mark: int) -> int:
        """Walk the four levels; every entry must be present and have the bits `need`; set `mark` in the last."""
        ram64 = self.ram64
        limit = len(ram64)
        index = (self.root >> 3) + (address >> L4_SHIFT & 511)
        need |= PRESENT
        for shift in (L3_SHIFT, L2_SHIFT, L1_SHIFT):
            entry = ram64[index]
            if entry & need != need:
                return -1
            if not entry & ACCESSED:
                ram64[index] = entry | ACCESSED
            index = ((entry & FRAME_MASK) >> 3) + (address >> shift & 511)
            if index >= limit:
                return -1
        entry = ram64[index]
        if entry & need != need:
            return -1
        if entry & mark != mark:
            ram64[index] = entry | mark
        offset = entry & FRAME_MASK
        return offset if offset >> 3 < limit else -1

    def entry_at(self, address: int, level: int = 1) -> int:
        """Where the entry of `level` (1 to 4) that maps `address` lies, as an index of `ram64`; -1 where absent."""
        index = (self.root >> 3) + (address >> L4_SHIFT & 511)
        for shift in (L3_SHIFT, L2_SHIFT, L1_SHIFT)[: 4 - level]:
            entry = self.ram64[index]
            if not entry & PRESENT:
                return -1
            index = ((entry & FRAME_MASK) >> 3) + (address >> shift & 511)
            if index >= len(self.ram64):
                return -1
        return index
