"""The frame table: what the hypervisor knows of each frame of machine memory, and the allocator of frames.

One column an attribute, as real Xen has one struct page_info a frame (xen/include/asm-x86/mm.h): owner, type, how
often the type and the frame are in use, and flags. The columns are flat arrays, so that a value costs one index and
numpy can read them as they lie (`FrameTable.array`).

A domain's frames are not contiguous in machine memory: a guest that takes its pseudo-physical frame numbers for
machine frame numbers fails at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# The types of a frame; it has one at a time, and another only once its type count is zero.
NONE, L1, L2, L3, L4, SEG, WRITABLE, SHARED = range(8)
TYPE_NAMES = ("none", "L1", "L2", "L3", "L4", "descriptors", "writable", "shared")
"""SHARED is a frame of the hypervisor's that its owner may map: shared_info, grant tables. One use is the
hypervisor's own, for good, so that such a frame never becomes a page table (Xen: share_xen_page_with_guest)."""

# Flags.
PINNED = 1 << 0
"""A use of the type is the guest's own wish (MMUEXT_PIN_*)."""
VALIDATED = 1 << 1
"""The contents have been checked for the type."""
PAE_XEN_L2 = 1 << 2
"""The L2 of the fourth GiB of a PAE guest, which also maps the hypervisor's part."""
SHARED_RW = 1 << 3
"""A SHARED frame that its owner may map writable."""
ALLOCATED = 1 << 4
"""One reference is the allocation itself; gone once the domain has given the frame back."""
NEEDS_SCRUB = 1 << 5
"""A free frame with what its last owner has left in it: cleared before anybody else gets it."""
PARTIAL = 1 << 6
"""A page table whose promotion or demotion was preempted: `nr_validated` of its entries are in use. One use of the
type and one reference are this flag's own (Xen: PGT_partial)."""
PARTIAL_SET = 1 << 7
"""The entry behind those refers to a table that is itself PARTIAL, and holds a reference to it (PTF_partial_set)."""

DOMID_XEN = 0x7FF2
DOMID_INVALID = 0x7FF4
MOST_USES = (1 << 32) - 1
"""Where the count of a frame's type ends (Xen: PGT_count_mask); another use is refused."""
MOST_REFERENCES = MOST_USES - 1
"""Where the count of references ends for all but PARTIAL, which has one of its own left (get_page_light). Each use of
a frame's type holds a reference, too: where there is room for that, there is room for the use."""
_FREE = DOMID_INVALID
_MANY = 1 << 17  # frames from which on numpy is worth its loading for a search


class OutOfMemory(Exception):
    """Machine memory has not so many free frames."""


def type_name(frame_type: int, flags: int = 0) -> str:
    """A type in words: `L2`, `writable`, `shared read-only`."""
    if frame_type == SHARED and not flags & SHARED_RW:
        return "shared read-only"
    return TYPE_NAMES[frame_type]


class FrameTable:
    """Owner, type, counts and flags of `frames` machine frames, and which of them are free.

    The lowest `xen_frames` are kept for the hypervisor's own, contiguous structures (by default what the M2P tables
    and their page tables take, and some); frame 0 is never given away. `seed` decides the order of all others.
    """

    def __init__(self, frames: int, seed: int = 0, xen_frames: int | None = None) -> None:
        if frames < 2:
            raise ValueError(f"machine memory needs at least two frames, not {frames}")
        self.count = frames
        self.owner = memoryview(bytearray(_FREE.to_bytes(2, "little") * frames)).cast("H")
        """Domain id; DOMID_XEN for the hypervisor's own, DOMID_INVALID for free ones."""
        self.type = memoryview(bytearray(frames))
        self.type_count = memoryview(bytearray(4 * frames)).cast("I")
        """Uses of the frame as what its type says: page-table entries, base pointers, the pin."""
        self.ref_count = memoryview(bytearray(4 * frames)).cast("I")
        """Uses of the frame at all, the allocation among them."""
        self.flags = memoryview(bytearray(frames))
        self.linear = memoryview(bytearray(2 * frames)).cast("h")
        """Linear page tables: entries in this table that point to tables of its own level (positive), or entries
        of such tables that point to this one (negative); never both (Xen: linear_pt_count)."""
        self.nr_validated = memoryview(bytearray(2 * frames)).cast("H")
        """Entries of a PARTIAL page table that have been checked, and not dropped again (Xen: nr_validated_ptes)."""
        self.columns = (self.owner, self.type, self.type_count, self.ref_count, self.flags)
        """What the fast paths unpack at once."""
        self._arrays: dict[str, Any] = {}
        self.refusal: tuple[int, int, int, int, int, int, int] | None = None
        """The latest refusal: rule (refusals.py), level, machine address of the entry, old, new, frame, its state."""
        self.batch, self.stale = -1, False
        """A freed frame of the domain `batch` sets `stale` instead of flushing: who has set it flushes at the end."""

        if xen_frames is None:
            xen_frames = 64 + frames // 256
        self.xen_end = min(max(1, xen_frames), frames - 1)
        self._next_xen = 1
        self.owner[0], self.ref_count[0] = DOMID_XEN, 1
        self._free_low, self._free_high = self.xen_end - 1, frames - self.xen_end
        self._freed: list[int] = []
        self._ram = memoryview(b"")
        self._runs = self._order(seed)
        self._run = range(0)
        self._holes = False

    def array(self, column: str) -> Any:
        """A column as a numpy array over the same bytes. A function, so that start-up does without numpy.

        There is one more, `scratch`: 32 bits a frame that mean nothing, for whoever needs them for a moment.
        """
        array = self._arrays.get(column)
        if array is None:
            import numpy

            if column == "scratch":
                return self._arrays.setdefault(column, numpy.zeros(self.count, "<u4"))
            view: memoryview = getattr(self, column)
            array = numpy.frombuffer(view, dtype={"H": "<u2", "B": "u1", "I": "<u4", "h": "<i2"}[view.format])
            self._arrays[column] = array
        return array

    # --- the order in which frames are given away --------------------------------------------------------------

    def _order(self, seed: int) -> Iterator[range]:
        """All frames above `xen_end` in a seeded order: in steps of about the root of their number.

        Runs of a constant stride, because whole slices of the columns can then be set at once.
        """
        first, size = self.xen_end, self.count - self.xen_end
        root = max(2, int(size**0.5))
        state = (seed * 0x9E37_79B9_7F4A_7C15 + 0x1234_5678_9ABC_DEF1) % (1 << 64)

        def draw(below: int) -> int:
            nonlocal state
            state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % (1 << 64)
            return (state >> 33) % below

        stride = root + draw(root)
        starts = list(range(stride))
        for last in range(stride - 1, 0, -1):
            other = draw(last + 1)
            starts[last], starts[other] = starts[other], starts[last]
        for start in starts:
            yield range(first + start, first + size, stride)

    # --- allocation --------------------------------------------------------------------------------------------

    def allocate(self, count: int, domid: int) -> list[int]:
        """`count` frames for a domain, each with the reference that is the allocation; raises OutOfMemory.

        The contents are zero. The caller keeps `Domain.tot_pages`.
        """
        if count > self._free_high:
            raise OutOfMemory(f"{count} frames wanted, {self._free_high} are free")
        taken: list[int] = []
        while len(taken) < count:
            missing = count - len(taken)
            if self._freed:
                self._take(self._freed.pop(), domid, taken)
                continue
            if not self._run:
                self._run = next(self._runs)
            part, self._run = self._run[:missing], self._run[missing:]
            if self._holes:
                for mfn in part:
                    self._take(mfn, domid, taken)
            elif part:
                self._take_run(part, domid)
                taken += part
        return taken

    @property
    def free_frames(self) -> int:
        """How many frames nobody has."""
        return self._free_low + self._free_high

    def _take(self, mfn: int, domid: int, taken: list[int]) -> None:
        """Give one frame of the order to a domain, unless something else has got it meanwhile."""
        if self.owner[mfn] == _FREE:
            if self.flags[mfn]:
                self._scrub(mfn)
            self.owner[mfn] = domid
            self.ref_count[mfn] = 1
            self.flags[mfn] = ALLOCATED
            self._free_high -= 1
            taken.append(mfn)

    def _take_run(self, part: range, domid: int) -> None:
        """The same for frames of constant stride, all known to be free."""
        count = len(part)
        where = slice(part.start, part.stop, part.step)
        self.owner[where] = memoryview(domid.to_bytes(2, "little") * count).cast("H")
        self.ref_count[where] = memoryview(b"\1\0\0\0" * count).cast("I")
        self.flags[where] = memoryview(bytes((ALLOCATED,)) * count)
        self._free_high -= count

    def allocate_extent(self, order: int, domid: int) -> int:
        """2**order contiguous frames, aligned to their size, for a domain; the first. Raises OutOfMemory."""
        if order == 0:
            return self.allocate(1, domid)[0]
        first = self._find_free(1 << order, 1 << order, self.xen_end, self.count)
        taken: list[int] = []
        for mfn in range(first, first + (1 << order)):
            self._take(mfn, domid, taken)
        self._holes = True
        return first

    def allocate_xen(self, count: int) -> int:
        """`count` contiguous frames for the hypervisor itself, zero; the first. Raises OutOfMemory.

        They come from the low part of memory; once that is used up, from wherever there is room.
        """
        first = self._next_xen
        if first + count <= self.xen_end:
            self._next_xen += count
        else:
            try:
                first = self._find_free(count, 1, 1, self._next_xen)
            except OutOfMemory:
                first = self._find_free(count, 1, self.xen_end, self.count)
        for mfn in range(first, first + count):
            if self.flags[mfn]:
                self._scrub(mfn)
            self.owner[mfn], self.ref_count[mfn], self.flags[mfn] = DOMID_XEN, 1, ALLOCATED
        if first < self.xen_end:
            self._free_low -= count
        else:
            self._free_high -= count
            self._holes = True
        return first

    def _find_free(self, count: int, align: int, start: int, end: int) -> int:
        """The first of `count` contiguous free frames between `start` and `end`, the highest there are."""
        owner, free = self.owner, _FREE
        first = (end - count) // align * align
        while first >= start:
            mfn = first + count - 1
            while mfn >= first and owner[mfn] == free:
                mfn -= 1
            if mfn < first:
                return first
            first = (mfn - count) // align * align
        raise OutOfMemory(f"no {count} contiguous frames are free")

    def _scrub(self, mfn: int) -> None:
        self._ram[mfn << 12 : (mfn + 1) << 12] = bytes(4096)

    def free(self, mfn: int, ram: memoryview) -> None:
        """Take a frame back that nobody uses any more; it is scrubbed before somebody else gets it.

        `ram`: machine memory as bytes, always the same.
        """
        self._ram = ram
        self.owner[mfn] = _FREE
        self.type[mfn] = NONE
        self.type_count[mfn] = self.ref_count[mfn] = 0
        self.flags[mfn] = NEEDS_SCRUB
        self.linear[mfn] = 0
        if mfn >= self.xen_end:
            self._free_high += 1
            self._freed.append(mfn)
        else:
            self._free_low += 1

    def free_many(self, mfns: list[int], ram: memoryview) -> None:
        """The same for the plain memory of a domain that ends, much faster (see `free`)."""
        self._ram = ram
        owner, kind, type_count, ref_count, flags = self.columns
        for mfn in mfns:
            owner[mfn] = _FREE
            kind[mfn] = type_count[mfn] = ref_count[mfn] = 0
            flags[mfn] = NEEDS_SCRUB
        self._freed += mfns
        self._free_high += len(mfns)

    def share_with_guest(self, mfn: int, domid: int, writable: bool = True) -> None:
        """Let a domain map one of the hypervisor's frames (Xen: share_xen_page_with_guest)."""
        self.owner[mfn] = domid
        self.type[mfn], self.type_count[mfn] = SHARED, 1
        self.ref_count[mfn] = 1
        self.flags[mfn] = ALLOCATED | VALIDATED | (SHARED_RW if writable else 0)

    def owned_by(self, domid: int) -> list[int]:
        """Every frame of a domain, in the order of machine memory."""
        if self.count > _MANY or "numpy" in sys.modules:
            return (self.array("owner") == domid).nonzero()[0].tolist()  # type: ignore[no-any-return]
        return [mfn for mfn, owner in enumerate(self.owner.tolist()) if owner == domid]

    def describe(self, mfn: int) -> str:
        """A frame in a line, for messages: owner, type and counts."""
        if not 0 <= mfn < self.count:
            return f"mfn {mfn:#x} (beyond machine memory)"
        owner = self.owner[mfn]
        names = {DOMID_XEN: "the hypervisor's", DOMID_INVALID: "free"}
        kind = type_name(self.type[mfn], self.flags[mfn])
        pinned = ", pinned" if self.flags[mfn] & PINNED else ""
        if self.flags[mfn] & PARTIAL:
            pinned += f", {self.nr_validated[mfn]} entries validated so far"
        return (
            f"mfn {mfn:#x} ({names.get(owner, f'd{owner}')}, type {kind} used {self.type_count[mfn]} times{pinned}, "
            f"{self.ref_count[mfn]} references)"
        )
