"""Copying by grant reference, and giving frames away for good (Xen: common/grant_table.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xentui.engine.clock import COST_BYTES_PER_NS
from xentui.engine.x86.paging import PAGE_SHIFT, PAGE_SIZE
from xentui.engine.x86.state import MASK32
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi import grant_table as abi
from xentui.engine.xen.abi.core import DOMID_SELF
from xentui.engine.xen.grant_entries import CONTROL_DOMAIN, HOST_READ, HOST_WRITE
from xentui.engine.xen.grant_setup import layout_of, put_status, record
from xentui.engine.xen.memory import can_steal
from xentui.engine.xen.page import ALLOCATED, NONE, WRITABLE
from xentui.engine.xen.page_type import flush_freed, forget_mappers, get_page, get_page_type, put_page, put_page_type

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu


# --- copy ----------------------------------------------------------------------------------------------------------


class _Side(NamedTuple):
    """One side of a copy, with a reference held: whose frame, and which bytes of it may be used."""

    owner: Domain
    frame: int
    start: int
    length: int
    reference: int
    """The grant that is in use, or -1."""


def copy(vcpu: Vcpu, uop: int) -> None:
    """GNTTABOP_copy, one element of its array: bytes between two frames, each one's own or granted."""
    layout = layout_of(vcpu)
    source, source_dom, source_at, target, target_dom, target_at, size, flags, _ = layout.STRUCT_gnttab_copy.unpack(
        guest_access.read(vcpu, uop, layout.GNTTAB_COPY_SIZE)
    )
    from_ref, to_ref = bool(flags & abi.GNTCOPY_source_gref), bool(flags & abi.GNTCOPY_dest_gref)
    status, giver = _domain(vcpu, source_dom, from_ref)
    if giver is not None:
        status, taker = _domain(vcpu, target_dom, to_ref)
    mfn = 0
    if giver is not None and taker is not None:
        status, mfn = _copy(vcpu, giver, source, source_at, from_ref, taker, target, target_at, to_ref, size)
    reference, peer = (source, source_dom) if from_ref else (target, target_dom)
    record(vcpu, abi.GNTTABOP_copy, reference, mfn, peer, flags, status)
    put_status(vcpu, uop + layout.GNTTAB_COPY_status, status)


def _domain(vcpu: Vcpu, domid: int, by_reference: bool) -> tuple[int, Domain | None]:
    """(GNTST_okay, the domain of one side), or (GNTST_*, None)."""
    if domid == DOMID_SELF:
        return abi.GNTST_okay, vcpu.domain
    if not by_reference:
        return abi.GNTST_permission_denied, None
    domain = vcpu.hv.domains.get(domid)
    if domain is None:
        return (abi.GNTST_general_error if domid == CONTROL_DOMAIN else abi.GNTST_bad_domain), None
    return abi.GNTST_okay, domain


def _copy(
    vcpu: Vcpu, giver: Domain, source: int, source_at: int, from_ref: bool,
    taker: Domain, target: int, target_at: int, to_ref: bool, size: int,
) -> tuple[int, int]:  # fmt: skip
    """(GNTST_*, the frame that is read). The target must be one that may be written: no table, no descriptors."""
    status, read = _claim(vcpu, giver, source, from_ref, HOST_READ)
    if read is None:
        return status, 0
    status, written = _claim(vcpu, taker, target, to_ref, HOST_WRITE)
    if written is not None:
        status = _copy_bytes(read, source_at, written, target_at, size)
        _unclaim(taker, written, HOST_WRITE)
    _unclaim(giver, read, HOST_READ)
    return status, read.frame


def _claim(vcpu: Vcpu, domain: Domain, what: int, by_reference: bool, use: int) -> tuple[int, _Side | None]:
    """Take hold of one side: (GNTST_okay, it), or (GNTST_*, None)."""
    hv = vcpu.hv
    if not by_reference:
        return (abi.GNTST_okay, _Side(domain, what, 0, PAGE_SIZE, -1)) if get_page(domain, what) else (
            abi.GNTST_bad_page, None
        )  # fmt: skip
    status, active = domain.grants.begin(what & MASK32, vcpu.domain.id, use)
    if active is None:
        return status, None
    owner = hv.domains[hv.frames.owner[active.frame]]
    if not get_page(owner, active.frame):
        domain.grants.end(what & MASK32, use)
        return abi.GNTST_bad_page, None
    return abi.GNTST_okay, _Side(owner, active.frame, active.start, active.length, what & MASK32)


def _unclaim(domain: Domain, side: _Side, use: int) -> None:
    """Let go of one side."""
    put_page(domain.hv, side.frame)
    if side.reference >= 0:
        domain.grants.end(side.reference, use)


def _copy_bytes(source: _Side, source_at: int, target: _Side, target_at: int, size: int) -> int:
    """The copy itself, within what either side offers; GNTST_*."""
    hv = target.owner.hv
    if get_page_type(target.owner, target.frame, WRITABLE):
        return abi.GNTST_general_error
    status = abi.GNTST_okay
    if source_at + size > PAGE_SIZE or target_at + size > PAGE_SIZE:
        status = abi.GNTST_bad_copy_arg
    elif not _within(source, source_at, size) or not _within(target, target_at, size):
        status = abi.GNTST_general_error
    else:
        start, end = (source.frame << PAGE_SHIFT) + source_at, (target.frame << PAGE_SHIFT) + target_at
        hv.ram[end : end + size] = bytes(hv.ram[start : start + size])
        hv.clock.charge(size // COST_BYTES_PER_NS)
    put_page_type(target.owner, target.frame)
    return status


def _within(side: _Side, offset: int, size: int) -> bool:
    return side.start <= offset and offset + size <= side.start + side.length


# --- transfer ------------------------------------------------------------------------------------------------------


def transfer(vcpu: Vcpu, uop: int) -> None:
    """GNTTABOP_transfer, one element of its array: a frame goes to who has asked for one (GTF_accept_transfer).

    As on Xen the frame is taken away first: if nobody takes it, it is free.
    """
    layout = layout_of(vcpu)
    mfn, domid, reference, _ = layout.STRUCT_gnttab_transfer.unpack(
        guest_access.read(vcpu, uop, layout.GNTTAB_TRANSFER_SIZE)
    )
    domain = vcpu.domain
    if not can_steal(domain, mfn):
        status = abi.GNTST_bad_page
    else:
        status = _accept(domain, vcpu.hv.domains.get(domid), domid, reference, mfn)
        if status == abi.GNTST_okay:
            _move(domain, vcpu.hv.domains[domid], reference, mfn)
        else:
            put_page(vcpu.hv, mfn)
    record(vcpu, abi.GNTTABOP_transfer, reference, mfn, domid, 0, status)
    put_status(vcpu, uop + layout.GNTTAB_TRANSFER_status, status)


def _accept(domain: Domain, taker: Domain | None, domid: int, reference: int, mfn: int) -> int:
    """GNTST_okay if the other domain takes the frame for the reference, which is then committed to it."""
    if taker is None:
        return abi.GNTST_general_error if domid == CONTROL_DOMAIN else abi.GNTST_bad_domain
    if taker.dying or taker.tot_pages >= taker.max_pages + (taker is domain):
        return abi.GNTST_general_error
    table = taker.grants
    if reference >= table.entries:
        return abi.GNTST_general_error
    at = table.offset(reference)
    if table.word(at, 2) != abi.GTF_accept_transfer or table.word(at + 2, 2) != domain.id:
        return abi.GNTST_general_error
    table.set_word(at, 2, abi.GTF_accept_transfer | abi.GTF_transfer_committed)
    return abi.GNTST_okay


def _move(domain: Domain, taker: Domain, reference: int, mfn: int) -> None:
    """Make the frame the other's, and tell it the number where it had written the one to be replaced."""
    hv, frames = domain.hv, domain.hv.frames
    frames.owner[mfn], frames.type[mfn], frames.flags[mfn], frames.linear[mfn] = taker.id, NONE, ALLOCATED, 0
    domain.tot_pages -= 1
    taker.tot_pages += 1
    flush_freed(domain)
    if mfn in hv.grant_mappers:
        forget_mappers(hv, mfn, None)
    table = taker.grants
    at = table.offset(reference)
    where, size = (at + 4, 4) if table.version == 1 else (at + 8, 8)
    hv.set_m2p(mfn, table.word(where, size))
    table.set_word(where, size, mfn)
    table.set_word(at, 2, table.word(at, 2) | abi.GTF_transfer_completed)
