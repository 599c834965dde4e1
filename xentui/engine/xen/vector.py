"""Promotion and demotion of whole L1 tables, and batches of mmu_update, in vector arithmetic.

For what is not out of the ordinary: each function changes nothing and says so where any entry needs a closer look, and
promotion.py or mmu_update.py then do it entry by entry, with the refusals and frees in their order. Either way the
tables, the counts, the clock and the trace end up the same, to the last bit. numpy is loaded only once there has been
work enough to be worth it: most guests never need it.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from xentui.engine.clock import BYTES_PER_NS, COST_PAGE_TABLE_UPDATE
from xentui.engine.trace import RECORD_SIZE, Kind
from xentui.engine.x86.paging import ACCESSED, DIRTY, FRAME_MASK, GLOBAL, PRESENT, RW, USER
from xentui.engine.x86.state import RIP
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi.core import MMU_MACHPHYS_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE, MMU_PT_UPDATE_PRESERVE_AD
from xentui.engine.xen.continuation import preempt_check
from xentui.engine.xen.page import L1, MOST_REFERENCES, VALIDATED, WRITABLE
from xentui.engine.xen.pte import GUEST_KERNEL, L1_DISALLOW

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu
    from xentui.engine.xen.page import FrameTable

MANY = 1600
"""Tables done entry by entry until what that cost more, some 0.06 ms each, is what loading numpy costs."""
BATCH = 32
"""Requests of mmu_update that are worth vector arithmetic."""
_REQUESTS_A_TABLE = 24
"""So many requests, done one by one, cost more by what a table does."""

_work = [0]


def ready(requests: int = _REQUESTS_A_TABLE) -> bool:
    """Is vector arithmetic to be used for the next table, or for so many requests of mmu_update?"""
    if "numpy" in sys.modules:
        return True
    _work[0] += requests
    if _work[0] <= MANY * _REQUESTS_A_TABLE:
        return False
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads for linear algebra wait busily
    return True


def promote_l1(domain: Domain, mfn: int) -> bool:
    """Take what all entries of a table refer to, if every one may be; was that so?"""
    import numpy

    frames = domain.hv.frames
    words = numpy.frombuffer(domain.hv.ram64, "<u8", 512, mfn << 12)
    present = words[words & PRESENT != 0]
    targets = (present & FRAME_MASK) >> 12
    if (present & L1_DISALLOW).any() or (targets >= frames.count).any():
        return False
    targets = targets.astype("int64")
    if not _different(frames, targets) or (frames.array("owner")[targets] != domain.id).any():
        return False
    if (frames.array("ref_count")[targets] >= MOST_REFERENCES).any():
        return False
    types, uses, written = frames.array("type"), frames.array("type_count"), targets[present & RW != 0]
    fresh = written[types[written] != WRITABLE]
    if len(fresh):
        if uses[fresh].any():
            return False
        types[fresh] = WRITABLE
        frames.array("flags")[fresh] |= VALIDATED
    uses[written] += 1
    frames.array("ref_count")[targets] += 1
    if domain.width == 64:
        kernel = words & (PRESENT | USER) == PRESENT
        user = words & (PRESENT | USER | GUEST_KERNEL | GLOBAL) == PRESENT | USER
        words[kernel] |= GUEST_KERNEL | USER
        words[user] |= GLOBAL
    return True


def demote_l1(domain: Domain, mfn: int) -> bool:
    """Drop what all entries of a table refer to, if no frame is freed by that; was that so?"""
    import numpy

    frames = domain.hv.frames
    words = numpy.frombuffer(domain.hv.ram64, "<u8", 512, mfn << 12)
    present = words[words & PRESENT != 0]
    targets = ((present & FRAME_MASK) >> 12).astype("int64")
    references = frames.array("ref_count")
    if not _different(frames, targets) or (references[targets] <= 1).any():
        return False
    references[targets] -= 1
    frames.array("type_count")[targets[present & RW != 0]] -= 1
    return True


def update(vcpu: Vcpu, requests: int, count: int) -> int:
    """Carry out the first of `count` requests of mmu_update at virtual address `requests`; how many, perhaps none.

    It does those that all write different L1 entries of the domain's and refer to its own frames, none of which is
    freed or changes its type: then their order does not matter. They are no more than the slice has time for, and lie
    in one page of the guest's and those behind it whose translation is known already, which no update of an entry
    changes. The time of the first has been charged already.
    """
    import numpy

    hv, domain = vcpu.hv, vcpu.domain
    # one by one, as many would be done: the one after the slice's end is the first that is not
    in_time = -(-hv.slice_left() // (BYTES_PER_NS * COST_PAGE_TABLE_UPDATE)) + 1
    count = min(count, _within_known_pages(vcpu, requests, count), in_time)
    if count < BATCH or preempt_check(vcpu):
        return 0
    try:
        given = numpy.frombuffer(guest_access.read(vcpu, requests, 16 * count), "<u8")
    except guest_access.GuestFault:
        return 0
    pointers, values = given[::2].copy(), given[1::2].copy()  # every other word is slower to go through each time
    commands, where = pointers & 7, (pointers >> 3).view("int64")
    mixed = numpy.count_nonzero(commands)
    if mixed and numpy.count_nonzero((commands > MMU_PT_UPDATE_NO_TRANSLATE) | (commands == MMU_MACHPHYS_UPDATE)):
        return 0
    tables = _tables_of(where)
    if not _tables_fine(vcpu, tables, requests, count) or not _ascending_or_different(where):
        return 0
    memory = numpy.frombuffer(hv.ram64, "<u8")
    old = memory[where]
    new = _adjusted(values, domain.width)
    mapped, unmapped = _present(new), _present(old)
    targets, sources = _frames_of(mapped), _frames_of(unmapped)
    written = targets[_bit(mapped, RW)]
    references, uses, one = hv.frames.array("ref_count"), hv.frames.array("type_count"), numpy.uint32(1)
    if not _targets_fine(domain, mapped, targets, written):
        return 0
    numpy.subtract.at(references, sources, one)
    if len(sources) - numpy.count_nonzero(references[sources]):
        numpy.add.at(references, sources, one)  # a frame would be freed
        return 0
    memory[where] = new
    if mixed:
        preserving = commands == MMU_PT_UPDATE_PRESERVE_AD
        memory[where[preserving]] |= old[preserving] & (ACCESSED | DIRTY)
    numpy.subtract.at(uses, sources[_bit(unmapped, RW)], one)
    numpy.add.at(references, targets, one)
    numpy.add.at(uses, written, one)
    if any(_lazy(domain, table, where) for table in tables if table in domain.lazy_nx.marks):
        domain.lazy_nx.drop(where.tolist())  # their NX is the guest's own from now on
    _tell(vcpu, pointers - commands, commands, old, values)
    return count


def _within_known_pages(vcpu: Vcpu, requests: int, count: int) -> int:
    """How many of the requests lie in the page that the first begins in, and in the pages known behind it."""
    reads, page = vcpu.space.reads, (requests >> 12) + 1
    while page << 12 < requests + 16 * count and page in reads:
        page += 1
    return ((page << 12) - requests) // 16


def _lazy(domain: Domain, table: int, where: Any) -> bool:
    """Is one of these entries, as far as they are in this table, perhaps in the domain's `lazy_nx`?"""
    import numpy

    marks = numpy.frombuffer(domain.lazy_nx.marks[table], "u1")
    return bool(numpy.count_nonzero(marks[where[where >> 9 == table] & 511]))


def _bit(entries: Any, bit: int) -> Any:
    """Which entries have a bit of the lowest byte: an array of bool."""
    return (entries.view("u1")[::8] & bit).astype(bool)


def _present(entries: Any) -> Any:
    """Those of the entries that are."""
    import numpy

    present = _bit(entries, PRESENT)
    return entries if numpy.count_nonzero(present) == len(entries) else entries[present]


def _frames_of(entries: Any) -> Any:
    return ((entries & FRAME_MASK) >> 12).view("int64")


def _tables_of(places: Any) -> set[int]:
    """The frames of the tables in which these words of memory are."""
    tables = places >> 9
    return {int(tables[0]), *tables[1:][tables[1:] != tables[:-1]].tolist()}


def _tables_fine(vcpu: Vcpu, tables: set[int], requests: int, count: int) -> bool:
    """Are they all validated L1s of the domain's, and the list of requests itself not among them?"""
    frames, reads = vcpu.hv.frames, vcpu.space.reads
    listed = [reads.get(page, -1) >> 12 for page in range(requests >> 12, (requests + 16 * count >> 12) + 1)]
    for mfn in tables:
        if mfn >= frames.count or frames.owner[mfn] != vcpu.domain.id or mfn in listed:
            return False
        if frames.type[mfn] != L1 or not frames.flags[mfn] & VALIDATED:
            return False
    return True


def _adjusted(entries: Any, width: int) -> Any:
    """L1 entries as the hypervisor writes them for a guest of that width (pte.py, adjust_l1)."""
    import numpy

    new = entries.copy()
    if width == 64:
        # three kinds of present entries: those of the kernel, of user code, and the kernel's as it reads them back
        kind = new & (PRESENT | USER | GUEST_KERNEL)
        user = kind == PRESENT | USER
        kernel = (kind | GUEST_KERNEL) == PRESENT | GUEST_KERNEL
        if numpy.count_nonzero(kernel):
            new[kernel] |= GUEST_KERNEL | USER
        if numpy.count_nonzero(user):
            new[user] |= GLOBAL
    return new


def _targets_fine(domain: Domain, mapped: Any, targets: Any, written: Any) -> bool:
    """Is every new frame the domain's own, and of the right type already if it may be written?"""
    import numpy

    frames = domain.hv.frames
    if numpy.count_nonzero(mapped & L1_DISALLOW):
        return False
    try:
        if numpy.count_nonzero(frames.array("owner")[targets] != domain.id):
            return False
    except IndexError:
        return False  # no frame of machine memory
    if numpy.count_nonzero(frames.array("type")[written] != WRITABLE):
        return False
    # else there may be no room for all of them
    return not numpy.count_nonzero(frames.array("ref_count")[targets] > MOST_REFERENCES - len(targets))


def _tell(vcpu: Vcpu, places: Any, commands: Any, old: Any, values: Any) -> None:
    """Charge what is not yet, and leave a trace record of each update, as they would have come one by one."""
    import numpy

    hv, count = vcpu.hv, len(old)
    first = hv.clock.now()
    hv.clock.charge(COST_PAGE_TABLE_UPDATE * (count - 1))
    step = (hv.clock.now() - first) // (count - 1)
    rows = numpy.zeros((count, RECORD_SIZE // 8), "<u8")
    rows[:, 0] = numpy.arange(first, first + count * step, step) if step else first
    rows[:, 1] = vcpu.q[RIP]
    rows[:, 2] = Kind.PTE_UPDATE | vcpu.id << 8 | vcpu.domain.id << 16 | L1 << 32
    for column, values_of in enumerate((commands, places, old, values), 3):
        rows[:, column] = values_of
    hv.trace.put_rows(rows.data.cast("B"), first, first + (count - 1) * step)


def _different(frames: FrameTable, targets: Any) -> bool:
    """Does every entry name a frame of its own, so that each is counted once?"""
    import numpy

    # each writes its number to its frame's place, and finds it there unless another has come later
    places, numbers = frames.array("scratch"), numpy.arange(len(targets), dtype="<u4")
    places[targets] = numbers
    return not numpy.count_nonzero(places[targets] != numbers)


def _ascending_or_different(places: Any) -> bool:
    """Is every one of these words of memory another? Lists that kernels make are nearly always in order."""
    import numpy

    if not numpy.count_nonzero(places[1:] <= places[:-1]):
        return True
    ordered = places.copy()
    ordered.sort()
    return not numpy.count_nonzero(ordered[1:] == ordered[:-1])
