"""A guest's own P2M as a toolstack reads it to save the domain, and whether it agrees with the M2P.

(Xen: tools/libs/guest/xg_sr_save_x86_pv.c, map_p2m.) A guest says in shared_info where it keeps the table: as a list
at a virtual address, with page tables to walk from `p2m_cr3` (where start_info has SIF_VIRT_P2M_4TOOLS, as always
here, Linux says only that), or, if `p2m_cr3` is 0, as a tree of frames below `pfn_to_mfn_frame_list_list`. The guest
counts `p2m_generation` up before and behind a change of the list's pages, so that it is odd while one is under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xentui.engine.x86.paging import FRAME_MASK, PAGE_SHIFT, PRESENT
from xentui.engine.x86.state import MASK32, MASK64
from xentui.engine.xen.abi.arch_x86_64 import HYPERVISOR_VIRT_END
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain

LIST, TREE, NONE = "list", "tree", "none"
MOST_PFNS = 1 << 26
"""A table for more, 256 GiB, is not read: no machine here has that much."""


class GuestP2m(NamedTuple):
    """What the guest says of its P2M, and what is in it."""

    kind: str
    """LIST, TREE, or NONE: the guest has not said where it is."""
    root: int
    """Frame of the top-level page table, or of the frame list list."""
    address: int
    """Virtual address of a LIST."""
    generation: int
    max_pfn: int
    """How many entries it has, as the guest says."""
    pages: int
    """Pages of the table that were found."""
    mapped: int
    """Entries that name a frame of the domain's own, of which the M2P says the same."""
    wrong: list[tuple[int, int]]
    """(PFN, MFN) of entries that name such a frame while the M2P says otherwise."""
    problem: str
    """Why a toolstack could not read it: one line, or empty."""


def read(domain: Domain) -> GuestP2m:
    """Read the P2M where the guest says it is."""
    layout = LAYOUT64 if domain.width == 64 else LAYOUT32
    size, info = domain.long_size, domain.shared_info

    def field(offset: int) -> int:
        return int.from_bytes(info[offset : offset + size], "little")

    max_pfn = field(layout.SHARED_INFO_arch_max_pfn)
    cr3, address = field(layout.SHARED_INFO_arch_p2m_cr3), field(layout.SHARED_INFO_arch_p2m_vaddr)
    top = field(layout.SHARED_INFO_arch_pfn_to_mfn_frame_list_list)
    none = MASK64 if size == 8 else MASK32
    per_page = 4096 // size
    wanted = -(-min(max_pfn, MOST_PFNS) // per_page)
    if cr3:
        kind, root = LIST, cr3 >> PAGE_SHIFT if size == 8 else (cr3 >> PAGE_SHIFT | cr3 << 20) & MASK32
        leaves = _list(domain, root, address, wanted)
    elif top not in (0, none):
        kind, root = TREE, top
        leaves = _tree(domain, root, wanted, per_page)
    else:
        return GuestP2m(NONE, 0, 0, 0, max_pfn, 0, 0, [], "the guest has not said where its P2M is")
    problem = ""
    if max_pfn > MOST_PFNS:
        problem = f"it is said to have {max_pfn} entries"
    elif len(leaves) < wanted:
        problem = f"page {len(leaves)} of {wanted} is not there"
    mapped, wrong = _compare(domain, leaves, max_pfn)
    generation = field(layout.SHARED_INFO_arch_p2m_generation)
    return GuestP2m(kind, root, address, generation, max_pfn, len(leaves), mapped, wrong, problem)


def _own(domain: Domain, mfn: int) -> bool:
    """May a toolstack map the frame as one of the domain's?"""
    frames = domain.hv.frames
    return mfn < frames.count and frames.owner[mfn] == domain.id


def _list(domain: Domain, root: int, address: int, wanted: int) -> list[int]:
    """Frames of the pages from `address` on, up to the first that is not mapped."""
    top_level, ram64 = 4 if domain.width == 64 else 3, domain.hv.ram64
    found: list[int] = []
    for number in range(wanted):
        virtual = address + (number << PAGE_SHIFT)
        if 1 << 47 <= virtual < HYPERVISOR_VIRT_END:
            break
        mfn = root
        for level in range(top_level, 0, -1):
            if not _own(domain, mfn):
                return found
            entry = ram64[(mfn << 9) + (virtual >> (9 * level + 3) & 511)]
            if not entry & PRESENT:
                return found
            mfn = (entry & FRAME_MASK) >> PAGE_SHIFT
        if not _own(domain, mfn):
            return found
        found.append(mfn)
    return found


def _words(domain: Domain, mfn: int) -> list[int]:
    """The entries of a page of the P2M, or of the tree above it."""
    hv = domain.hv
    words = hv.ram64[mfn << 9 : (mfn + 1) << 9] if domain.width == 64 else hv.ram32[mfn << 10 : (mfn + 1) << 10]
    return words.tolist()


def _tree(domain: Domain, root: int, wanted: int, per_page: int) -> list[int]:
    """Frames of the pages that the frame lists name, up to the first that is no frame of the domain's."""
    found: list[int] = []
    if not _own(domain, root):
        return found
    for middle in _words(domain, root)[: -(-wanted // per_page)]:
        if not _own(domain, middle):
            break
        for leaf in _words(domain, middle)[: wanted - len(found)]:
            if not _own(domain, leaf):
                return found
            found.append(leaf)
    return found


def _compare(domain: Domain, leaves: list[int], max_pfn: int) -> tuple[int, list[tuple[int, int]]]:
    """How many entries the M2P confirms, and those that it does not."""
    hv, mapped, wrong, pfn = domain.hv, 0, [], 0
    for leaf in leaves:
        for mfn in _words(domain, leaf):
            if pfn < max_pfn and _own(domain, mfn):
                if hv.get_m2p(mfn) == pfn:
                    mapped += 1
                else:
                    wrong.append((pfn, mfn))
            pfn += 1
    return mapped, wrong
