"""A domain's reservation of memory: memory_op (Xen: common/memory.c, common/compat/memory.c, x86/mm.c).

A PV guest gives frames back and gets others by machine frame number; the hypervisor only keeps the M2P for it. For a
PV guest a "GMFN" is a machine frame number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_FRAME_VALIDATED, COST_PAGE_TABLE_UPDATE
from xentui.engine.xen import guest_access, refusals
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi import memory as abi
from xentui.engine.xen.abi.arch_x86 import MACH2PHYS_COMPAT_VIRT_END, MACH2PHYS_COMPAT_VIRT_START
from xentui.engine.xen.abi.arch_x86_64 import MACH2PHYS_NR_ENTRIES, MACH2PHYS_VIRT_END, MACH2PHYS_VIRT_START
from xentui.engine.xen.abi.core import DOMID_SELF
from xentui.engine.xen.abi.errno import (
    EACCES,
    EDOM,
    EFAULT,
    EILSEQ,
    EINVAL,
    ENOENT,
    ENOMEM,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.continuation import create_continuation, preempt_check
from xentui.engine.xen.guest_access import GuestFault
from xentui.engine.xen.page import ALLOCATED, SHARED, OutOfMemory
from xentui.engine.xen.page_type import Freeing, put_allocation, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.abi.layout import Layout
    from xentui.engine.xen.domain import Domain, Vcpu

EXTENT_SHIFT = 6
"""The command's upper bits say with which extent a preempted call goes on (MEMOP_EXTENT_SHIFT)."""
MAX_ORDER = 9
"""Largest extent of a domain without devices (CONFIG_DOMU_MAX_ORDER)."""
MAX_E820 = 128
_SUPERPAGE_FRAMES = 512
_MASK32 = 0xFFFF_FFFF


def do_memory_op(vcpu: Vcpu, cmd: int, arg: int, _c: int, _d: int) -> int:
    """Carry out one XENMEM_* command; what it returns is the command's own."""
    if vcpu.width == 32:
        cmd &= _MASK32
    command, start = cmd & ((1 << EXTENT_SHIFT) - 1), cmd >> EXTENT_SHIFT
    if command in _RESERVATIONS:
        return _change_reservation(vcpu, command, start, arg)
    if command in _ADD_TO_PHYSMAP:
        return _ADD_TO_PHYSMAP[command](vcpu, arg, start)
    handler = _COMMANDS.get(command)
    if handler is None:
        return -ENOSYS
    if start:
        return -EINVAL
    return handler(vcpu, arg)


def _layout(vcpu: Vcpu) -> Layout:
    return LAYOUT64 if vcpu.width == 64 else LAYOUT32


def _self_only(vcpu: Vcpu, domid: int) -> int:
    """0 if `domid` is the caller, else why not (rcu_lock_domain_by_any_id, and xsm_default_action on a domU)."""
    domid &= 0xFFFF
    if domid in (DOMID_SELF, vcpu.domain.id):
        return 0
    return -EPERM if domid in vcpu.hv.domains else -ESRCH


def _read_word(vcpu: Vcpu, address: int) -> int:
    """A frame number, or another value of the guest's word size."""
    return int.from_bytes(guest_access.read(vcpu, address, vcpu.domain.long_size), "little")


def _write_word(vcpu: Vcpu, address: int, value: int) -> None:
    guest_access.write(vcpu, address, value.to_bytes(vcpu.domain.long_size, "little"))


def _list_ok(vcpu: Vcpu, address: int, first: int, count: int) -> bool:
    """May a list of `count` words be accessed from number `first` on? (guest_handle_subrange_okay)

    For a 32-bit guest all of the list has to be good, not only what is left of it (common/compat/memory.c).
    """
    size = vcpu.domain.long_size
    if vcpu.width == 32:
        return guest_access.handle_okay(vcpu, address, count * size)
    return count <= first or guest_access.handle_okay(vcpu, address + first * size, (count - first) * size)


# --- the reservation -----------------------------------------------------------------------------------------------


def _change_reservation(vcpu: Vcpu, command: int, start: int, arg: int) -> int:
    """increase_reservation, decrease_reservation, populate_physmap: returns how many extents are done by now."""
    layout = _layout(vcpu)
    try:
        fields = layout.STRUCT_xen_memory_reservation.unpack(
            guest_access.read(vcpu, arg, layout.XEN_MEMORY_RESERVATION_SIZE)
        )
    except GuestFault:
        return start
    extents, count, order, flags, domid = fields[:5]
    if count > _MASK32 >> EXTENT_SHIFT or start >= count or _self_only(vcpu, domid) or order > MAX_ORDER:
        return start
    if not _address_bits_ok(vcpu, flags) or flags & (abi.XENMEMF_exact_node_request | abi.XENMEMF_populate_on_demand):
        return start
    if (extents or command != abi.XENMEM_increase_reservation) and not _list_ok(vcpu, extents, start, count):
        return start
    work = _RESERVATIONS[command]
    size = vcpu.domain.long_size
    cost = COST_PAGE_TABLE_UPDATE + (COST_FRAME_VALIDATED << order)
    done = start
    preempted = False
    with Freeing(vcpu.domain):
        try:
            while done < count and not preempted:
                vcpu.hv.clock.charge(cost)
                if not work(vcpu, extents and extents + done * size, order):
                    break
                done += 1
                preempted = done < count and preempt_check(vcpu)
        except GuestFault:
            pass  # the extents before this one are done: that is the answer
    return _go_on(vcpu, command, done, arg) if preempted else done


def _go_on(vcpu: Vcpu, command: int, extent: int, arg: int) -> int:
    """Preempted: the same command goes on later, with extent number `extent`."""
    return create_continuation(vcpu, nr.HYPERCALL_memory_op, command | extent << EXTENT_SHIFT, arg)


def _address_bits_ok(vcpu: Vcpu, flags: int) -> bool:
    """Can every frame of the machine be addressed with so many bits (0: any)? Fewer cannot be had."""
    bits = flags & 0xFF
    return bits == 0 or bits >= (vcpu.hv.frames.count - 1).bit_length() + 12


def _allocate(domain: Domain, order: int) -> int:
    """An extent for a domain, within its limit; -1 if there is none."""
    if domain.tot_pages + (1 << order) > domain.max_pages:
        return -1
    try:
        first = domain.hv.frames.allocate_extent(order, domain.id)
    except OutOfMemory:
        return -1
    domain.tot_pages += 1 << order
    return first


def _increase(vcpu: Vcpu, where: int, order: int) -> bool:
    """One more extent; its first frame's number goes to `where`, if that is given."""
    mfn = _allocate(vcpu.domain, order)
    if mfn < 0:
        return False
    if where:
        _write_word(vcpu, where, mfn)
    return True


def _populate(vcpu: Vcpu, where: int, order: int) -> bool:
    """An extent for the pseudo-physical frame that `where` names; it gets the machine frame instead."""
    pfn = _read_word(vcpu, where)
    mfn = _allocate(vcpu.domain, order)
    if mfn < 0:
        return False
    for number in range(1 << order):
        vcpu.hv.set_m2p(mfn + number, pfn + number)
    _write_word(vcpu, where, mfn)
    return True


def _decrease(vcpu: Vcpu, where: int, order: int) -> bool:
    """Give an extent back. A frame that is still mapped stays until it is no more (guest_remove_page)."""
    mfn = _read_word(vcpu, where)
    return all(_remove_page(vcpu.domain, mfn + number) for number in range(1 << order))


def _remove_page(domain: Domain, mfn: int) -> bool:
    frames = domain.hv.frames
    if mfn >= frames.count or frames.owner[mfn] != domain.id:
        return False
    if frames.type[mfn] != SHARED:
        put_allocation(domain.hv, mfn)
    return True


_RESERVATIONS: dict[int, Callable[[Vcpu, int, int], bool]] = {
    abi.XENMEM_increase_reservation: _increase,
    abi.XENMEM_decrease_reservation: _decrease,
    abi.XENMEM_populate_physmap: _populate,
}


# --- exchange ------------------------------------------------------------------------------------------------------


def _exchange(vcpu: Vcpu, arg: int) -> int:
    """Give extents back and get others of another size in their place, all or none of each chunk."""
    layout = _layout(vcpu)
    data = guest_access.read(vcpu, arg, layout.XEN_MEMORY_EXCHANGE_SIZE)
    unpack = layout.STRUCT_xen_memory_reservation.unpack_from
    given, given_count, given_order, _, given_domid = unpack(data, layout.XEN_MEMORY_EXCHANGE_in)
    wanted, wanted_count, wanted_order, wanted_flags, wanted_domid = unpack(data, layout.XEN_MEMORY_EXCHANGE_out)
    (done,) = layout.STRUCT_word.unpack_from(data, layout.XEN_MEMORY_EXCHANGE_nr_exchanged)
    error = 0
    preempted = False
    if max(given_order, wanted_order) > MAX_ORDER:
        error = -EPERM
    elif (
        done > given_count
        or given_domid != wanted_domid
        or given_count << given_order != wanted_count << wanted_order
        or given_count << given_order >> layout.WORD_BITS
    ):
        error = -EINVAL
    elif not _list_ok(vcpu, given, done, given_count) or not _list_ok(
        vcpu, wanted, done << given_order >> wanted_order, wanted_count
    ):
        error = -EFAULT
    elif wanted_flags & abi.XENMEMF_exact_node_request:
        error = -EINVAL
    else:
        error = _self_only(vcpu, given_domid)
    if not error:
        order = max(given_order, wanted_order)
        size = vcpu.domain.long_size
        first = chunk = done << given_order >> order
        with Freeing(vcpu.domain):
            while chunk < given_count << given_order >> order and not error:
                if chunk > first and preempt_check(vcpu):
                    preempted = True
                    break
                error = _exchange_chunk(
                    vcpu,
                    _extents(given, chunk, order - given_order, size),
                    given_order,
                    _extents(wanted, chunk, order - wanted_order, size),
                    wanted_order if _address_bits_ok(vcpu, wanted_flags) else -1,
                )
                chunk += not error
        done = chunk << order >> given_order
    _write_word(vcpu, arg + layout.XEN_MEMORY_EXCHANGE_nr_exchanged, done)
    if preempted:
        return _go_on(vcpu, abi.XENMEM_exchange, 0, arg)
    return refusals.record(vcpu, error) if error else 0


def _extents(start: int, chunk: int, order: int, size: int) -> list[int]:
    """Where in a list the extents of a chunk are named."""
    return [start + number * size for number in range(chunk << order, (chunk + 1) << order)]


def _exchange_chunk(vcpu: Vcpu, given: list[int], given_order: int, wanted: list[int], wanted_order: int) -> int:
    """Exchange one chunk: `given` and `wanted` are addresses of frame numbers. `wanted_order` -1: cannot be had."""
    hv, domain = vcpu.hv, vcpu.domain
    stolen: list[int] = []
    new: list[int] = []
    try:
        for where in given:
            first = _read_word(vcpu, where)
            for mfn in range(first, first + (1 << given_order)):
                if mfn in stolen or not can_steal(domain, mfn):
                    return refuse(domain, refusals.IN_USE, EINVAL, mfn)
                stolen.append(mfn)
    except GuestFault:
        return -EFAULT
    try:
        if wanted_order < 0:
            raise OutOfMemory
        for _ in wanted:
            new.append(hv.frames.allocate_extent(wanted_order, domain.id))
    except OutOfMemory:
        for first in new:
            for mfn in range(first, first + (1 << wanted_order)):
                hv.frames.free(mfn, hv.ram)
        return -ENOMEM
    domain.tot_pages += len(new) << wanted_order
    for mfn in stolen:
        put_allocation(hv, mfn)
    hv.clock.charge(COST_PAGE_TABLE_UPDATE * (len(stolen) + len(new)))
    error = 0
    for where, first in zip(wanted, new, strict=True):
        try:
            pfn = _read_word(vcpu, where)
            for number in range(1 << wanted_order):
                hv.set_m2p(first + number, pfn + number)
            _write_word(vcpu, where, first)
        except GuestFault:
            error = -EFAULT
    return error


def can_steal(domain: Domain, mfn: int) -> bool:
    """Is a frame the domain's, with no use left but the allocation (steal_page)?"""
    frames = domain.hv.frames
    return (
        mfn < frames.count
        and frames.owner[mfn] == domain.id
        and frames.type[mfn] != SHARED
        and frames.ref_count[mfn] == 1
        and bool(frames.flags[mfn] & ALLOCATED)
    )


# --- questions -----------------------------------------------------------------------------------------------------


def _maximum_ram_page(vcpu: Vcpu, _arg: int) -> int:
    return vcpu.hv.frames.count


def _domain_number(vcpu: Vcpu, arg: int) -> int:
    """The domain id that a command's argument is; 0 if it is the caller's, else the error."""
    return _self_only(vcpu, int.from_bytes(guest_access.read(vcpu, arg, 2), "little"))


def _current_reservation(vcpu: Vcpu, arg: int) -> int:
    return _domain_number(vcpu, arg) or vcpu.domain.tot_pages


def _maximum_reservation(vcpu: Vcpu, arg: int) -> int:
    return _domain_number(vcpu, arg) or vcpu.domain.max_pages


def _maximum_gpfn(vcpu: Vcpu, arg: int) -> int:
    """The highest frame number that the guest itself has told (shared_info.arch.max_pfn counts them)."""
    error = _domain_number(vcpu, arg)
    if error:
        return error
    start = _layout(vcpu).SHARED_INFO_arch_max_pfn
    count = int.from_bytes(vcpu.domain.shared_info[start : start + vcpu.domain.long_size], "little")
    return max(count, 1) - 1


def _machphys_mapping(vcpu: Vcpu, arg: int) -> int:
    """Where the M2P lies in the guest's address space, and how far it may reach."""
    if vcpu.width == 64:
        mapping = (MACH2PHYS_VIRT_START, MACH2PHYS_VIRT_END, MACH2PHYS_NR_ENTRIES - 1)
    else:
        entries = (MACH2PHYS_COMPAT_VIRT_END - MACH2PHYS_COMPAT_VIRT_START) // 4
        mapping = (MACH2PHYS_COMPAT_VIRT_START, MACH2PHYS_COMPAT_VIRT_END, entries - 1)
    guest_access.write(vcpu, arg, _layout(vcpu).STRUCT_xen_machphys_mapping.pack(*mapping))
    return 0


def _machphys_mfn_list(vcpu: Vcpu, arg: int) -> int:
    """The machine frames of the M2P, one for each 2 MiB of it."""
    if vcpu.width == 32:
        return _machphys_compat_mfn_list(vcpu, arg)
    return _m2p_frames(vcpu, arg, vcpu.hv.m2p_index >> 9, vcpu.hv.frames.count * 8)


def _machphys_compat_mfn_list(vcpu: Vcpu, arg: int) -> int:
    return _m2p_frames(vcpu, arg, vcpu.hv.m2p_compat_index >> 10, vcpu.hv.frames.count * 4)


def _m2p_frames(vcpu: Vcpu, arg: int, first: int, size: int) -> int:
    layout = _layout(vcpu)
    data = guest_access.read(vcpu, arg, layout.XEN_MACHPHYS_MFN_LIST_SIZE)
    most, extents = layout.STRUCT_xen_machphys_mfn_list.unpack(data)[:2]
    count = min(most, -(-size // (_SUPERPAGE_FRAMES << 12)))
    for number in range(count):
        _write_word(vcpu, extents + number * layout.WORD_SIZE, first + number * _SUPERPAGE_FRAMES)
    guest_access.write_u32(vcpu, arg + layout.XEN_MACHPHYS_MFN_LIST_nr_extents, count)
    return 0


def _memory_map(vcpu: Vcpu, arg: int) -> int:
    """The guest's memory as an E820 map, which the toolstack has set (Domain.memory_map)."""
    layout, ranges = _layout(vcpu), vcpu.domain.memory_map
    if not ranges:
        return -ENOSYS
    count, buffer = layout.STRUCT_xen_memory_map.unpack(guest_access.read(vcpu, arg, layout.XEN_MEMORY_MAP_SIZE))
    ranges = ranges[:count]
    guest_access.write(vcpu, buffer, b"".join(layout.STRUCT_e820_entry.pack(*each) for each in ranges))
    guest_access.write_u32(vcpu, arg + layout.XEN_MEMORY_MAP_nr_entries, len(ranges))
    return 0


def _set_memory_map(vcpu: Vcpu, arg: int) -> int:
    """Replace that map: a domain may do it for itself."""
    layout = _layout(vcpu)
    data = guest_access.read(vcpu, arg, layout.XEN_FOREIGN_MEMORY_MAP_SIZE)
    domid = int.from_bytes(data[:2], "little")
    count, buffer = layout.STRUCT_xen_memory_map.unpack_from(data, layout.XEN_FOREIGN_MEMORY_MAP_map)
    if count > MAX_E820:
        return -EINVAL
    error = _self_only(vcpu, domid)
    if error:
        return error
    entries = guest_access.read(vcpu, buffer, count * layout.E820_ENTRY_SIZE)
    vcpu.domain.memory_map = list(layout.STRUCT_e820_entry.iter_unpack(entries))
    return 0


# --- what only translated guests or privileged domains can do ------------------------------------------------------


def _add_to_physmap(vcpu: Vcpu, arg: int, start: int) -> int:
    """No PV guest has a physmap: -EACCES (x86/mm/p2m.c, xenmem_add_to_physmap_one)."""
    layout = _layout(vcpu)
    if start > 0xFFFF:
        return -EDOM
    data = guest_access.read(vcpu, arg, layout.XEN_ADD_TO_PHYSMAP_SIZE)
    domid, size, space = layout.STRUCT_xen_add_to_physmap.unpack(data)[:3]
    if space == abi.XENMAPSPACE_gmfn_foreign:
        return -ENOSYS
    error = _self_only(vcpu, domid)
    if error:
        return error
    if space == abi.XENMAPSPACE_gmfn_range and size <= start:
        return -EILSEQ if size < start else 0
    return -EACCES


def _add_to_physmap_batch(vcpu: Vcpu, arg: int, start: int) -> int:
    """The same; each item gets its own error."""
    layout = _layout(vcpu)
    if start > 0xFFFF:
        return -EDOM
    data = guest_access.read(vcpu, arg, layout.XEN_ADD_TO_PHYSMAP_BATCH_SIZE)
    domid, space, size, _, *arrays = layout.STRUCT_xen_add_to_physmap_batch.unpack(data)
    if vcpu.width == 32 and not all(guest_access.handle_okay(vcpu, array, 4 * size) for array in arrays):
        return -EFAULT
    if space == abi.XENMAPSPACE_gmfn_range:
        return -EOPNOTSUPP
    error = -EACCES if space == abi.XENMAPSPACE_dev_mmio else _self_only(vcpu, domid)
    if error:
        return error
    if size < start:
        return -EILSEQ
    (errors,) = layout.STRUCT_word.unpack_from(data, layout.XEN_ADD_TO_PHYSMAP_BATCH_errs)
    for number in range(start, size):
        if number > start and preempt_check(vcpu):
            return _go_on(vcpu, abi.XENMEM_add_to_physmap_batch, number, arg)
        guest_access.write_u32(vcpu, errors + 4 * number, -EACCES)
        vcpu.hv.clock.charge(COST_PAGE_TABLE_UPDATE)
    return 0


def _remove_from_physmap(vcpu: Vcpu, arg: int) -> int:
    """Nothing to do for a frame of the caller's own: it has no physmap."""
    layout = _layout(vcpu)
    data = guest_access.read(vcpu, arg, layout.XEN_REMOVE_FROM_PHYSMAP_SIZE)
    domid, mfn = layout.STRUCT_xen_remove_from_physmap.unpack(data)
    error = _self_only(vcpu, domid)
    if error:
        return error
    frames = vcpu.hv.frames
    return 0 if mfn < frames.count and frames.owner[mfn] == vcpu.domain.id else -ENOENT


def _privileged(_vcpu: Vcpu, _arg: int) -> int:
    """A control domain's business."""
    return -EPERM


_ADD_TO_PHYSMAP: dict[int, Callable[[Vcpu, int, int], int]] = {
    abi.XENMEM_add_to_physmap: _add_to_physmap,
    abi.XENMEM_add_to_physmap_batch: _add_to_physmap_batch,
}

_COMMANDS: dict[int, Callable[[Vcpu, int], int]] = {
    abi.XENMEM_exchange: _exchange,
    abi.XENMEM_maximum_ram_page: _maximum_ram_page,
    abi.XENMEM_current_reservation: _current_reservation,
    abi.XENMEM_maximum_reservation: _maximum_reservation,
    abi.XENMEM_maximum_gpfn: _maximum_gpfn,
    abi.XENMEM_machphys_mapping: _machphys_mapping,
    abi.XENMEM_machphys_mfn_list: _machphys_mfn_list,
    abi.XENMEM_machphys_compat_mfn_list: _machphys_compat_mfn_list,
    abi.XENMEM_memory_map: _memory_map,
    abi.XENMEM_set_memory_map: _set_memory_map,
    abi.XENMEM_machine_memory_map: _privileged,
    abi.XENMEM_set_pod_target: _privileged,
    abi.XENMEM_get_pod_target: _privileged,
    abi.XENMEM_remove_from_physmap: _remove_from_physmap,
}
