"""A domain's grant table: the entries that it writes, who is using them, and what it has mapped of others' itself.

The table lies in frames of the hypervisor's that the domain maps and writes (Xen: common/grant_table.c). Entry n of it
says who may use which frame. Version 1 entries are eight bytes, with the hypervisor's marks (in use for reading, for
writing) in the same word as the domain's own flags; version 2 entries are sixteen, can offer a part of a page or pass
another domain's grant on, and have their marks in *status frames* of their own.

While an entry is in use an *active entry* keeps what it said then: what the domain writes over it does not change a
mapping that is there. Its pin counts uses by kind. The *map track* holds what this domain has mapped of others, by
handle.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from xentui.engine.x86.paging import PAGE_SHIFT, PAGE_SIZE
from xentui.engine.xen.abi import grant_table as abi
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.page import DOMID_XEN, OutOfMemory
from xentui.engine.xen.page_type import flush_freed, forget_mappers

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain

ENTRIES_PER_FRAME = PAGE_SIZE // LAYOUT64.GRANT_ENTRY_V1_SIZE
"""Version 1 entries."""
ENTRIES_PER_FRAME_V2 = PAGE_SIZE // LAYOUT64.GRANT_ENTRY_V2_SIZE
STATUS_PER_FRAME = PAGE_SIZE // 2
INITIAL_FRAMES = 1
MAX_FRAMES = 64
"""The toolstack's `max_grant_frames` where the configuration gives none."""
MAX_MAPTRACK_FRAMES = 1024
"""The toolstack's `max_maptrack_frames`."""
HANDLES_PER_FRAME = 256
MAX_VERSION = 2
CONTROL_DOMAIN = 0

# An active entry's uses: four counters of a byte each (Xen: GNTPIN_*).
HOST_WRITE, HOST_READ, DEVICE_WRITE, DEVICE_READ = 1, 1 << 8, 1 << 16, 1 << 24
WRITERS = 0xFF * (HOST_WRITE | DEVICE_WRITE)
_OVERFLOW_SHIFT = 7


class Entry(NamedTuple):
    """A version 1 grant entry as it lies in the table. `frame`: the machine frame that is offered."""

    flags: int
    domid: int
    frame: int


class Active:
    """What an entry said when its present use began."""

    __slots__ = ("domid", "frame", "length", "pin", "start", "sub_page", "through")

    def __init__(self, domid: int, frame: int) -> None:
        self.domid = domid
        """Who uses it."""
        self.frame = frame
        self.pin = 0
        self.start, self.length = 0, PAGE_SIZE
        """The bytes that may be copied."""
        self.sub_page = False
        """Only a part of the page is offered, or it is another's grant passed on: it can be copied, not mapped."""
        self.through: tuple[GrantTable, int] | None = None
        """The table and reference that a transitive grant stands for."""


class Mapping:
    """One entry of the map track: GNTMAP_* flags, and what is mapped."""

    __slots__ = ("flags", "granter", "reference")

    def __init__(self, flags: int, granter: Domain, reference: int) -> None:
        self.flags = flags
        self.granter = granter
        """Kept even when the domain is destroyed meanwhile: its frame lives until the mapping goes."""
        self.reference = reference


class MapTrack:
    """What a domain has mapped of others, by handle. Handles come and go in Xen's order (get_maptrack_handle)."""

    def __init__(self, frames: int = MAX_MAPTRACK_FRAMES) -> None:
        self.mappings: dict[int, Mapping] = {}
        self.limit = 0
        """Handles below it exist."""
        self._free: deque[int] = deque()
        self._most = frames * HANDLES_PER_FRAME

    def take(self) -> int:
        """A free handle, or -1. The last of the list is its end and never given away, as on Xen."""
        if len(self._free) > 1:
            return self._free.popleft()
        if self.limit >= self._most:
            return -1
        first = self.limit
        self.limit += HANDLES_PER_FRAME
        self._free.extendleft(range(self.limit - 1, first, -1))
        return first

    def give_back(self, handle: int) -> None:
        """A handle is free again."""
        self._free.append(handle)


class GrantTable:
    """The grant table of one domain. `frames` are the machine frames that hold it, in the order of the references."""

    def __init__(self, domain: Domain, max_frames: int = MAX_FRAMES) -> None:
        self.domain = domain
        self.version = 1
        self.max_version = MAX_VERSION
        self.max_frames = max_frames
        self.frames: list[int] = []
        self.status_frames: list[int] = []
        """Version 2: a 16-bit word of marks for each entry."""
        self.active: dict[int, Active] = {}
        """References in use."""
        self.maptrack = MapTrack()
        self.grow(INITIAL_FRAMES)

    # --- frames -----------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        """How many references there are."""
        return len(self.frames) * (ENTRIES_PER_FRAME if self.version == 1 else ENTRIES_PER_FRAME_V2)

    def grow(self, count: int) -> bool:
        """Make the table at least `count` frames long, and its status frames enough; False if memory is out."""
        status = -(-count * ENTRIES_PER_FRAME_V2 // STATUS_PER_FRAME) if self.version == 2 else 0
        return self._extend(self.frames, count) and self._extend(self.status_frames, status)

    def _extend(self, frames: list[int], count: int) -> bool:
        domain = self.domain
        table = domain.hv.frames
        while len(frames) < count:
            try:
                frame = table.allocate_xen(1)
            except OutOfMemory:
                return False
            table.share_with_guest(frame, domain.id)
            domain.xen_frames.append(frame)
            frames.append(frame)
        return True

    def add_status_frames(self) -> bool:
        """Give every entry of the table its place in a status frame, before it becomes version 2."""
        return self._extend(self.status_frames, -(-len(self.frames) * ENTRIES_PER_FRAME_V2 // STATUS_PER_FRAME))

    def drop_status_frames(self) -> bool:
        """Take the status frames back; False while the domain or another maps one of them."""
        domain, table = self.domain, self.domain.hv.frames
        if any(table.ref_count[frame] > 1 for frame in self.status_frames):
            return False
        for frame in self.status_frames:
            if frame in domain.hv.grant_mappers:
                forget_mappers(domain.hv, frame, None)
            table.owner[frame] = DOMID_XEN
            domain.xen_frames.remove(frame)
            table.free(frame, domain.hv.ram)
        self.status_frames.clear()
        flush_freed(domain)
        return True

    def destroy(self) -> None:
        """The domain is gone. Who still maps what it has granted keeps the frame, not the entry."""
        self.frames, self.status_frames = [], []

    # --- entries ----------------------------------------------------------------------------------------------------

    def offset(self, reference: int) -> int:
        """Where the entry lies in machine memory, in bytes; the reference must exist."""
        if self.version == 1:
            frame, index = divmod(reference, ENTRIES_PER_FRAME)
            return (self.frames[frame] << PAGE_SHIFT) + index * LAYOUT64.GRANT_ENTRY_V1_SIZE
        frame, index = divmod(reference, ENTRIES_PER_FRAME_V2)
        return (self.frames[frame] << PAGE_SHIFT) + index * LAYOUT64.GRANT_ENTRY_V2_SIZE

    def marks_at(self, reference: int) -> int:
        """Where the word lies in which the hypervisor marks the entry as in use."""
        if self.version == 1:
            return self.offset(reference)
        frame, index = divmod(reference, STATUS_PER_FRAME)
        return (self.status_frames[frame] << PAGE_SHIFT) + 2 * index

    def entry(self, reference: int) -> Entry:
        """What the guest has written for the reference, which must exist; of version 2 what a full page needs."""
        ram, at = self.domain.hv.ram, self.offset(reference)
        if self.version == 1:
            return Entry(*LAYOUT64.STRUCT_grant_entry_v1.unpack_from(ram, at))
        return Entry(self.word(at, 2), self.word(at + 2, 2), self.word(at + 8, 8))

    def seed(self, reference: int, domid: int, frame: int) -> None:
        """Offer a frame before the guest runs, as the toolstack does for console and xenstore rings."""
        ram = self.domain.hv.ram
        LAYOUT64.STRUCT_grant_entry_v1.pack_into(ram, self.offset(reference), abi.GTF_permit_access, domid, frame)

    def word(self, at: int, size: int) -> int:
        """A number that lies at byte `at` of machine memory."""
        return int.from_bytes(self.domain.hv.ram[at : at + size], "little")

    def set_word(self, at: int, size: int, value: int) -> None:
        """The same, written."""
        self.domain.hv.ram[at : at + size] = value.to_bytes(size, "little")

    # --- use --------------------------------------------------------------------------------------------------------

    def begin(
        self, reference: int, domid: int, use: int, mapping: bool = False, transitive: bool = True
    ) -> tuple[int, Active | None]:
        """Begin a use of the entry by `domid`: (GNTST_okay, its active entry), or (GNTST_*, None).

        `use`: the sum of HOST_READ and so on, one of each kind at most. `mapping`: the page is to be mapped, not
        copied. `transitive`: the entry may pass another's grant on, one level deep. References to the frame are the
        caller's affair. (Xen: map_grant_ref and acquire_grant_for_copy.)
        """
        if reference >= self.entries:
            return abi.GNTST_bad_gntref, None
        active = self.active.get(reference)
        if active and (active.domid != domid or active.pin & use << _OVERFLOW_SHIFT or (mapping and active.sub_page)):
            return abi.GNTST_general_error, None
        writes = bool(use & WRITERS)
        first = active is None or (writes and not active.pin & WRITERS)
        if first and not self._mark(reference, domid, writes, mapping, active is None):
            return abi.GNTST_general_error, None
        if active is None:
            status, active = self._look(reference, domid, use, mapping, transitive)
        elif active.through is not None:
            granter, behind = active.through
            status, _ = granter.begin(behind, self.domain.id, use, transitive=False)
        else:
            status = abi.GNTST_okay
        if status == abi.GNTST_okay and active is not None:
            active.pin += use
            self.active[reference] = active
            return status, active
        self._unmark(reference, writes, self.active.get(reference))
        return status, None

    def end(self, reference: int, use: int) -> None:
        """End a use that `begin` has allowed."""
        active = self.active[reference]
        active.pin -= use
        if not active.pin:
            del self.active[reference]
        self._unmark(reference, bool(use & WRITERS), active)
        if active.through is not None:
            granter, behind = active.through
            granter.end(behind, use)

    def _mark(self, reference: int, domid: int, writes: bool, mapping: bool, unused: bool) -> bool:
        """Mark the entry as in use if it allows `domid` that; does it? (Xen: _set_status_v1 and _set_status_v2)"""
        at = self.offset(reference)
        flags, allowed = self.word(at, 2), self.word(at + 2, 2)
        kind = flags & (abi.GTF_type_mask | (abi.GTF_sub_page if mapping else 0))
        passed_on = self.version == 2 and not mapping and kind == abi.GTF_transitive
        if unused and (allowed != domid or not (kind == abi.GTF_permit_access or passed_on)):
            return False
        if writes and flags & abi.GTF_readonly:
            return False
        marks = self.marks_at(reference)
        self.set_word(marks, 2, self.word(marks, 2) | abi.GTF_reading | (abi.GTF_writing if writes else 0))
        return True

    def _unmark(self, reference: int, wrote: bool, active: Active | None) -> None:
        """Take the marks back that no use needs any more (Xen: reduce_status_for_pin)."""
        pin = active.pin if active else 0
        clear = abi.GTF_writing if wrote and not pin & WRITERS else 0
        if not pin:
            clear |= abi.GTF_reading
        if clear and reference < self.entries:  # the table of a domain that is no more has none
            at = self.marks_at(reference)
            self.set_word(at, 2, self.word(at, 2) & ~clear)

    def _look(self, reference: int, domid: int, use: int, mapping: bool, transitive: bool) -> tuple[int, Active | None]:
        """What the entry offers, now that its use begins."""
        at = self.offset(reference)
        flags = self.word(at, 2)
        if self.version == 2 and not mapping and flags & abi.GTF_type_mask == abi.GTF_transitive:
            if not transitive:
                return abi.GNTST_general_error, None
            return self._pass_on(self.word(at + 4, 2), self.word(at + 8, 4), domid, use)
        table = self.domain.hv.frames
        frame = self.entry(reference).frame
        if frame >= table.count or table.owner[frame] != self.domain.id:
            return abi.GNTST_bad_page, None
        active = Active(domid, frame)
        if self.version == 2 and flags & abi.GTF_sub_page:
            active.start, active.length, active.sub_page = self.word(at + 4, 2), self.word(at + 6, 2), True
        return abi.GNTST_okay, active

    def _pass_on(self, domid: int, reference: int, user: int, use: int) -> tuple[int, Active | None]:
        """The active entry of a transitive grant: what another domain has granted us, granted on to `user`."""
        granter = self.domain.hv.domains.get(domid)
        if granter is None or granter is self.domain:
            return abi.GNTST_general_error, None
        status, behind = granter.grants.begin(reference, self.domain.id, use, transitive=False)
        if behind is None:
            return status, None
        active = Active(user, behind.frame)
        active.start, active.length, active.sub_page = behind.start, behind.length, True
        active.through = granter.grants, reference
        return abi.GNTST_okay, active

    def pins(self) -> list[int]:
        """The references in use beyond the toolstack's own."""
        return [reference for reference in self.active if reference >= abi.GNTTAB_NR_RESERVED_ENTRIES]
