"""A guest's pointers: what Xen looks at itself, and what it leaves to the page tables."""

from __future__ import annotations

import struct

import pytest

from tests.fakes import A, P, U
from tests.fakes_xen import ARGUMENT, Handler, World, XenGuest
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi import grant_table as gnttab
from xentui.engine.xen.abi import memory as mem
from xentui.engine.xen.abi import physdev as phys
from xentui.engine.xen.abi import vcpu as vcpu_abi
from xentui.engine.xen.abi.arch_x86 import MACH2PHYS_COMPAT_VIRT_START as M2P
from xentui.engine.xen.grant_table import do_grant_table_op
from xentui.engine.xen.guest_access import GuestFault, access_ok, handle_okay, read, read_u32, write
from xentui.engine.xen.memory import do_memory_op
from xentui.engine.xen.physdev import do_physdev_op
from xentui.engine.xen.vcpu_op import do_vcpu_op

SELF = core.DOMID_SELF
EFAULT, EINVAL = 14, 22


@pytest.fixture
def guest() -> XenGuest:
    """A 32-bit guest that sees the M2P."""
    guest = World(32).guests[0]
    hv = guest.hv
    (table,) = {entry >> 12 for entry in hv.compat_l2_slots.values()}
    hv.ram64[table << 9] = hv.m2p_compat_index >> 10 << 12 | P | U | A
    return guest


def test_m2p_is_read_and_not_written(guest: XenGuest) -> None:
    mfn = guest.guest.p2m[5]
    where = M2P + 4 * mfn
    assert read_u32(guest.vcpu, where) == 5
    with pytest.raises(GuestFault):
        write(guest.vcpu, where, bytes(4))
    assert read_u32(guest.vcpu, where) == 5


@pytest.mark.parametrize("address", [M2P + 0x1000, 0xFFFF_F000, 0xFFFF_FFFC])
def test_behind_m2p_is_nothing(guest: XenGuest, address: int) -> None:
    assert access_ok(guest.vcpu, address, 16)
    with pytest.raises(GuestFault):
        read(guest.vcpu, address, 16)


def test_arrays_end_below_m2p(guest: XenGuest) -> None:
    assert handle_okay(guest.vcpu, M2P - 16, 16)
    assert not handle_okay(guest.vcpu, M2P - 16, 17)
    assert handle_okay(guest.vcpu, M2P - 1, 0)
    assert not handle_okay(guest.vcpu, M2P, 0)


def test_64_bit_pointers_stay_out_of_the_hypervisor() -> None:
    vcpu = World(64).guests[0].vcpu
    for check in (access_ok, handle_okay):
        assert check(vcpu, (1 << 47) - 8, 8) and check(vcpu, 0xFFFF_8800_0000_0000, 8)
        assert not check(vcpu, (1 << 47) - 8, 9)
        assert not check(vcpu, 0xFFFF_8000_0000_0000, 1) and not check(vcpu, 0xFFFF_87FF_FFFF_FFFF, 1)


LIST = struct.pack("<IIIIHxx", M2P, 1, 0, 0, SELF)
"""struct xen_memory_reservation with its list in the M2P."""
GOOD = struct.pack("<IIIIHxx", ARGUMENT + 256, 1, 0, 0, SELF)


@pytest.mark.parametrize(
    ("handler", "command", "data", "more", "answer"),
    [
        (do_memory_op, mem.XENMEM_decrease_reservation, LIST, (), 0),
        (do_memory_op, mem.XENMEM_exchange, LIST + GOOD + bytes(4), (), -EFAULT),
        (do_memory_op, mem.XENMEM_exchange, GOOD + LIST + bytes(4), (), -EFAULT),
        (do_memory_op, mem.XENMEM_add_to_physmap_batch, struct.pack("<HHHHIII", SELF, 1, 1, 0, M2P, 0, 0), (), -EFAULT),
        (do_memory_op, mem.XENMEM_add_to_physmap_batch, struct.pack("<HHHHIII", SELF, 1, 1, 0, 0, 0, M2P), (), -EFAULT),
        (do_grant_table_op, gnttab.GNTTABOP_setup_table, struct.pack("<HxxIhxxI", SELF, 1, 9, M2P), (1,), -EFAULT),
        (do_grant_table_op, gnttab.GNTTABOP_get_status_frames, struct.pack("<IHhQ", 0, SELF, 9, M2P), (1,), -EFAULT),
        (do_physdev_op, phys.PHYSDEVOP_set_iobitmap, struct.pack("<II", M2P, 65536), (), -EINVAL),
    ],
)
def test_no_array_of_a_structure_lies_in_m2p(
    guest: XenGuest, handler: Handler, command: int, data: bytes, more: tuple[int, ...], answer: int
) -> None:
    before = guest.domain.tot_pages
    assert guest.call(handler, command, data, *more) == answer
    assert guest.domain.tot_pages == before


@pytest.mark.parametrize(
    "command", [vcpu_abi.VCPUOP_register_runstate_memory_area, vcpu_abi.VCPUOP_register_vcpu_time_memory_area]
)
def test_no_area_lies_in_m2p(guest: XenGuest, command: int) -> None:
    guest.put(ARGUMENT, struct.pack("<Q", M2P))
    assert do_vcpu_op(guest.vcpu, command, 0, ARGUMENT, 0) == -EFAULT


def test_status_frames_of_64_bit_guests_need_a_good_pointer_too() -> None:
    guest = World(64).guests[0]
    data = struct.pack("<IHhQ", 1, SELF, 9, 0xFFFF_8000_0000_0000)
    assert guest.call(do_grant_table_op, gnttab.GNTTABOP_get_status_frames, data, 1) == -EFAULT
    assert struct.unpack_from("<h", guest.get(8), 6) == (9,)
