"""Machine memory: whose each frame is and what it is used as, page tables as a tree, an address walked, the audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.views import ViewError
from xentui.engine.views.find import SHIFTS, address_of, domain_of, symbol_at, vcpu_of
from xentui.engine.x86.paging import FRAME_MASK, NX, PRESENT, PSE, RW, USER, flag_names
from xentui.engine.xen.guest_access import handle_okay
from xentui.engine.xen.page import (
    ALLOCATED,
    DOMID_INVALID,
    DOMID_XEN,
    L1,
    L2,
    L3,
    L4,
    NONE,
    PAE_XEN_L2,
    PINNED,
    SEG,
    SHARED,
    TYPE_NAMES,
    VALIDATED,
    WRITABLE,
    type_name,
)
from xentui.engine.xen.pte import COMPAT_L2_FIRST, GUEST_KERNEL, XEN_L4_FIRST, XEN_L4_LAST

if TYPE_CHECKING:
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain

VIEWS = ("frame_map", "frame", "roots", "table", "walk", "audit", "p2m")

FREE, XEN = 254, 255
"""Codes of `frame_map` for frames that are free, and the hypervisor's own."""


def frame_map(machine: Machine, cells: int, by: str = "owner", first: int = 0, count: int = 0) -> dict[str, Any]:
    """`count` frames from `first` on (0: all) in so many cells, each with a code of what its frames are.

    `by` "owner": the code of most of them, a place in `names`, of domains; "type": the most telling of the types that
    guests' frames have, so that a page table is seen among plain memory. FREE and XEN stand for frames that no guest
    has. `domains`: the numbers of the domains by code. `totals`: code to how many frames, of the whole machine.
    """
    import numpy

    frames = machine.hv.frames
    if by not in ("owner", "type") or cells < 1:
        raise ViewError(f"frames are shown by owner or by type, not by {by}, in at least one cell")
    owner = frames.array("owner")
    ids = sorted(machine.hv.domains)
    codes = numpy.full(1 << 16, FREE, numpy.uint8)
    codes[DOMID_XEN] = XEN
    for code, domain in enumerate(ids[:250]):
        codes[domain] = code
    shown = codes[owner]
    names = [machine.hv.domains[domain].name for domain in ids[:250]]
    if by == "type":
        guests = shown < FREE
        shown = numpy.where(guests, frames.array("type"), shown)
        names = list(TYPE_NAMES)
    counted = numpy.bincount(shown, minlength=256)
    first = max(0, min(first, frames.count - 1))
    part = shown[first : first + (count or frames.count)]
    size = -(-len(part) // cells)
    return {
        "cells": _majority(part, size) if by == "owner" else _most_telling(part, size),
        "size": size,
        "first": first,
        "count": len(part),
        "frames": frames.count,
        "names": names,
        "domains": ids[:250],
        "totals": {code: int(total) for code, total in enumerate(counted) if total},
        "free": frames.free_frames,
    }


def _majority(part: Any, size: int) -> bytes:
    """For each run of `size` values the commonest one; of equally common ones the least."""
    import numpy

    if size == 1:
        return bytes(part.tobytes())
    values = numpy.bincount(part, minlength=256).nonzero()[0]
    dense = numpy.zeros(256, numpy.int32)
    dense[values] = range(len(values))
    cells = -(-len(part) // size)
    places = dense[part] + numpy.repeat(numpy.arange(cells, dtype=numpy.int32) * len(values), size)[: len(part)]
    table = numpy.bincount(places, minlength=cells * len(values))
    return bytes(values[table.reshape(cells, len(values)).argmax(axis=1)].astype(numpy.uint8).tobytes())


_TELLING = (FREE, XEN, NONE, WRITABLE, SHARED, SEG, L1, L2, L3, L4)
"""Types of frames, the most telling last."""


def _most_telling(part: Any, size: int) -> bytes:
    """For each run of `size` types the one that stands last in _TELLING."""
    import numpy

    ranks = numpy.zeros(256, numpy.uint8)
    ranks[list(_TELLING)] = range(len(_TELLING))
    highest = numpy.maximum.reduceat(ranks[part], numpy.arange(0, len(part), size))
    return bytes(numpy.array(_TELLING, numpy.uint8)[highest].tobytes())


def frame(machine: Machine, mfn: int) -> dict[str, Any]:
    """Everything that the frame table knows of a frame."""
    frames = machine.hv.frames
    if not 0 <= mfn < frames.count:
        raise ViewError(f"machine memory has frames 0 to {frames.count - 1:#x}, not {mfn:#x}")
    owner, flags = frames.owner[mfn], frames.flags[mfn]
    domain = machine.hv.domains.get(owner)
    pfn = machine.hv.get_m2p(mfn) if domain is not None else None
    names = (
        (PINNED, "pinned"),
        (VALIDATED, "validated"),
        (ALLOCATED, "allocated"),
        (PAE_XEN_L2, "maps the hypervisor"),
    )
    return {
        "mfn": mfn,
        "text": frames.describe(mfn),
        "owner": domain.name if domain else {DOMID_XEN: "Xen", DOMID_INVALID: "free"}.get(owner, f"d{owner}"),
        "type": type_name(frames.type[mfn], flags),
        "type_count": frames.type_count[mfn],
        "ref_count": frames.ref_count[mfn],
        "flags": [name for bit, name in names if flags & bit],
        "pfn": pfn if pfn is not None and pfn >> 40 == 0 else None,
        "special": _special(domain, mfn) if domain else "",
    }


def _special(domain: Domain, mfn: int) -> str:
    """What a frame is to its domain, beside plain memory."""
    if mfn == domain.shared_info_frame:
        return "shared_info"
    if mfn in domain.grants.frames:
        return "grant table"
    if mfn == domain.console_frame:
        return "console ring"
    return "xenstore ring" if mfn == domain.store_frame else ""


# --- page tables ---------------------------------------------------------------------------------------------------


def roots(machine: Machine, domain: int, vcpu: int = 0) -> list[dict[str, Any]]:
    """The top-level tables of a vCPU: {mfn, level, name, current}. A PAE guest's is its L3, below Xen's own L4."""
    who = vcpu_of(machine, domain, vcpu)
    if who.width == 32:
        found: list[dict[str, Any]] = [{"mfn": who.guest_table, "level": 3, "name": "kernel and user", "current": True}]
    else:
        found = [{"mfn": who.guest_table, "level": 4, "name": "kernel", "current": who.kernel_mode}]
    if who.guest_table_user >= 0:
        found.append({"mfn": who.guest_table_user, "level": 4, "name": "user", "current": not who.kernel_mode})
    return [{**root, "frame": frame(machine, root["mfn"])["text"]} for root in found if root["mfn"] >= 0]


def table(machine: Machine, mfn: int, level: int, base: int = 0) -> list[dict[str, Any]]:
    """The entries of a page table that are not zero: {index, entry, mfn, address, flags, leaf, xen, target, at}.

    `base` is the virtual address at which the table's part of the address space begins.
    """
    frames = machine.hv.frames
    if not 0 <= mfn < frames.count or not 1 <= level <= 4:
        raise ViewError(f"there is no L{level} table in frame {mfn:#x}")
    owner = machine.hv.domains.get(frames.owner[mfn])
    narrow = owner is not None and owner.width == 32
    size = 4 if level == 3 and narrow else 512
    words = machine.hv.ram64[mfn << 9 : (mfn << 9) + size].tolist()
    shift = SHIFTS[4 - level]
    rows = []
    for index, entry in enumerate(words):
        if not entry:
            continue
        target = (entry & FRAME_MASK) >> 12
        address = base + (index << shift)
        rows.append(
            {
                "index": index,
                "entry": entry,
                "at": (mfn << 12) + 8 * index,
                "mfn": target,
                "address": _canonical(address) if not narrow else address & 0xFFFF_FFFF,
                "flags": entry_flags(entry),
                "present": bool(entry & PRESENT),
                "leaf": level == 1 or bool(entry & PSE),
                "xen": _is_xens(frames.flags[mfn], level, index, narrow),
                "target": _target(machine, target) if entry & PRESENT else "not present",
            }
        )
    return rows


def _canonical(address: int) -> int:
    """A 48-bit address with its sign extended, as 64-bit processors want it."""
    return address | 0xFFFF << 48 if address >> 47 & 1 else address


def entry_flags(entry: int) -> str:
    """The flags of an entry in letters; KERNEL is Xen's mark on the kernel pages of a 64-bit guest."""
    return flag_names(entry) + (" KERNEL" if entry & GUEST_KERNEL else "")


def _is_xens(flags: int, level: int, index: int, narrow: bool) -> bool:
    """Is the slot the hypervisor's?"""
    if level == L4:
        return XEN_L4_FIRST <= index <= XEN_L4_LAST
    return narrow and level == L2 and bool(flags & PAE_XEN_L2) and index >= COMPAT_L2_FIRST


def _target(machine: Machine, mfn: int) -> str:
    """A frame in a few words: `L2 used 1, 2 references`."""
    frames = machine.hv.frames
    if mfn >= frames.count:
        return "beyond machine memory"
    if frames.owner[mfn] == DOMID_XEN:
        return "Xen's own"
    kind = type_name(frames.type[mfn], frames.flags[mfn])
    pinned = ", pinned" if frames.flags[mfn] & PINNED else ""
    return f"{kind} used {frames.type_count[mfn]}×, {frames.ref_count[mfn]} refs{pinned}"


def walk(machine: Machine, domain: int, vcpu: int = 0, at: int | str = "rip") -> dict[str, Any]:
    """A virtual address walked as the processor does it: {address, steps, ok, why}.

    A step is one entry: {level, index, table, at, entry, flags, text}. `why` says where and why the walk ends early,
    or what the page may be used for.
    """
    who = vcpu_of(machine, domain, vcpu)
    address = address_of(who, at)
    ram64, limit = machine.hv.ram64, len(machine.hv.ram64)
    every, place = PRESENT | RW | USER, who.space.root >> 12
    steps: list[dict[str, Any]] = []
    nx = 0
    for level, shift in zip((4, 3, 2, 1), SHIFTS, strict=True):
        index = address >> shift & 511
        where = (place << 9) + index
        if where >= limit:
            return _walked(address, steps, False, f"the L{level} table would lie beyond machine memory")
        entry = ram64[where]
        every &= entry
        nx |= entry & NX
        place = (entry & FRAME_MASK) >> 12
        mine = level == 4 and who.width == 32
        text = "Xen's own, above the guest's L3" if mine else _target(machine, place)
        steps.append(
            {
                "level": level,
                "index": index,
                "table": where >> 9,
                "at": where << 3,
                "entry": entry,
                "flags": entry_flags(entry),
                "mfn": place,
                "text": text if entry & PRESENT else "not present",
            }
        )
        if not entry & PRESENT:
            return _walked(address, steps, False, f"the L{level} entry is not present: an access is a page fault")
        if level > 1 and level < L4 and entry & PSE:
            break
    symbol = symbol_at(who.domain, address)
    why = "may be read" + (", written" if every & RW else "") + ("" if nx else ", executed")
    why += " by user code too" if every & USER and who.width == 32 else ""
    if not handle_okay(who, address, 1):
        refused = "no hypercall takes a pointer" if who.width == 64 else "no hypercall takes an array's pointer"
        why = f"Xen's part of the address space: {why}, but {refused} to it"
    return _walked(address, steps, True, why, (place << 12) | address & 0xFFF, symbol)


def _walked(
    address: int, steps: list[dict[str, Any]], ok: bool, why: str, machine_address: int = 0, symbol: str = ""
) -> dict[str, Any]:
    return {
        "address": address,
        "steps": steps,
        "ok": ok,
        "why": why,
        "machine_address": machine_address,
        "symbol": symbol,
    }


def audit(machine: Machine) -> list[str]:
    """The frame table recounted from the page tables: what differs, a line each. Slow; asked for by a key."""
    from xentui.engine.xen.audit import audit as recount

    return recount(machine.hv)


def p2m(machine: Machine, domain: int) -> dict[str, Any]:
    """A guest's own P2M, where it says that it is, as a toolstack reads it (dom0/guest_p2m.py). Slow."""
    from xentui.engine.dom0.guest_p2m import read

    return read(domain_of(machine, domain))._asdict()
