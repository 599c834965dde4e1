"""The end of a domain: everything that it has is taken from it, in pieces.

Real Xen's `domain_kill` returns -ERESTART again and again, and the control domain makes the same hypercall until it is
done. Here it is a generator that yields wherever real Xen looks whether it should give way, and at each such point the
frame table is what the page tables say (audit.py). In Xen's order: what the domain has mapped of others' grants, its
event channels, the base pointers of its vCPUs, descriptor tables, pins, memory, vcpu_info; the hypervisor's own frames
for it come last (common/domain.c, domain_kill; arch/x86/domain.c, domain_relinquish_resources).

The domain must be off the processor and out of the scheduler. Until the end it is found by its number: what it
has granted can be mapped while the frame is there, a port of its own that waits can be bound until it is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_GIVEN_BACK
from xentui.engine.xen import descriptor_tables, grant_map, schedule, vcpu_op
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.page import ALLOCATED, DOMID_XEN, PARTIAL, PARTIAL_SET, PINNED, SHARED
from xentui.engine.xen.page_type import (
    INVALID_M2P_ENTRY,
    Freeing,
    put_allocation,
    put_old_guest_table,
    put_page_and_type,
    put_page_type,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xentui.engine.xen.domain import Domain, Vcpu

_BATCH = 64
"""Frames that are given back at once: a few microseconds' work."""


def domain_kill(domain: Domain) -> Iterator[None]:
    """Begin to kill a domain: it runs no longer, and nothing is due for it. The rest is what the answer does, piece by
    piece: it takes everything from the domain, and at each step of it somebody else may run."""
    domain.dying = True
    schedule.stop_watchdogs(domain)
    for vcpu in domain.vcpus:
        schedule.sleep(vcpu)
        domain.hv.timers.forget(vcpu)
    return _teardown(domain)


def _teardown(domain: Domain) -> Iterator[None]:
    clock = domain.hv.clock
    for _ in grant_map.release_mappings(domain):
        clock.charge(COST_GIVEN_BACK)
        yield
    for port in reversed(domain.events.used()):
        domain.events.close(port)
        clock.charge(COST_GIVEN_BACK)
        yield
    domain.events.destroy()
    yield from _relinquish_resources(domain, preemptible=True)
    domain.grants.destroy()


def free_domain_memory(domain: Domain) -> None:
    """Take all memory from a domain at once, also from one that was only begun: for when nobody has to give way."""
    with Freeing(domain):
        for _ in _relinquish_resources(domain, preemptible=False):
            continue


def _relinquish_resources(domain: Domain, preemptible: bool) -> Iterator[None]:
    """A frame that another domain still maps stays until that one lets it go."""
    for vcpu in domain.vcpus:
        yield from _destroy_pagetables(vcpu, preemptible)
    if domain.gdt_window:
        for vcpu in domain.vcpus:
            descriptor_tables.destroy_gdt(vcpu)
            descriptor_tables.destroy_ldt(vcpu)
            yield
    owned = domain.hv.frames.owned_by(domain.id)
    yield from _drop_tables(domain, owned, domain.vcpus[0] if preemptible and domain.vcpus else None)
    for first in range(0, len(owned), _BATCH):
        _give_back(domain, owned[first : first + _BATCH])
        yield
    for vcpu in domain.vcpus:
        vcpu_op.unmap_vcpu_info(vcpu)
    _free_xen_frames(domain)
    left = len(domain.hv.frames.owned_by(domain.id))
    if left:
        domain.hv.log(f"d{domain.id}: {left} frames are still mapped by others")


def _destroy_pagetables(vcpu: Vcpu, preemptible: bool) -> Iterator[None]:
    """Its base pointers use nothing now, and what it has left half undone is undone (Xen: vcpu_destroy_pagetables)."""
    yield from _finish(vcpu, preemptible)
    if vcpu.width == 32 and vcpu.monitor_table != NO_FRAME:
        vcpu.hv.ram64[vcpu.monitor_table << 9] = 0
    vcpu.space.switch(0)
    kernel, user = vcpu.guest_table, vcpu.guest_table_user
    vcpu.guest_table = NO_FRAME
    if kernel != NO_FRAME:
        put_page_and_type(vcpu.domain, kernel, vcpu if preemptible else None)
        yield from _finish(vcpu, preemptible)
    vcpu.guest_table_user = NO_FRAME
    if user != NO_FRAME:
        put_page_and_type(vcpu.domain, user, vcpu if preemptible else None)
        yield from _finish(vcpu, preemptible)


def _finish(vcpu: Vcpu, preemptible: bool) -> Iterator[None]:
    """Go on with the page table that is on its way out, until it is gone."""
    while put_old_guest_table(vcpu, preemptible):
        yield
    yield


def _drop_tables(domain: Domain, owned: list[int], by: Vcpu | None) -> Iterator[None]:
    """Drop the pins; then what was half promoted or demoted when its vCPU was preempted, and it never came back to.

    A frame that the domain had given back before, and only its page tables still used, is somebody else's by now.
    `by`: the vCPU with which a table's demotion is remembered when it gives way.
    """
    frames = domain.hv.frames
    owner, flags = frames.owner, frames.flags
    for mfn in [mfn for mfn in owned if flags[mfn] & PINNED]:
        flags[mfn] &= ~PINNED
        put_page_and_type(domain, mfn, by)
        if by is not None:
            yield from _finish(by, preemptible=True)
    for mfn in [mfn for mfn in owned if flags[mfn] & PARTIAL and owner[mfn] == domain.id]:
        while put_page_type(domain, mfn, -1, by, PARTIAL_SET):
            yield
        yield


def _give_back(domain: Domain, mfns: list[int]) -> None:
    """Give frames of the domain's own memory back; those that nobody else uses are free now."""
    hv = domain.hv
    frames = hv.frames
    hv.clock.charge(COST_GIVEN_BACK * len(mfns))
    plain = []
    for mfn in mfns:
        if frames.owner[mfn] != domain.id or frames.type[mfn] == SHARED:
            continue
        sole = frames.ref_count[mfn] == 1 and frames.flags[mfn] & ALLOCATED
        if sole and mfn >= frames.xen_end and mfn not in hv.grant_mappers:
            plain.append(mfn)
        else:
            put_allocation(hv, mfn)
    frames.stale = True
    frames.free_many(plain, hv.ram)
    domain.tot_pages -= len(plain)
    for mfn in plain:
        hv.set_m2p(mfn, INVALID_M2P_ENTRY)


def _free_xen_frames(domain: Domain) -> None:
    """Free what is the hypervisor's own and there for this domain, also what its guest could see of that."""
    hv = domain.hv
    frames = hv.frames
    frames.stale = True
    for mfn in frames.owned_by(domain.id):
        if frames.type[mfn] == SHARED:
            frames.type_count[mfn] -= 1
            domain.tot_pages += 1  # these never counted
            put_allocation(hv, mfn)
    for mfn in domain.xen_frames:
        if frames.owner[mfn] == DOMID_XEN:
            frames.free(mfn, hv.ram)
    domain.xen_frames = []
