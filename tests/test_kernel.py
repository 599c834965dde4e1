"""xen_version, vm_assist, nmi_op and physdev_op: what Xen 4.17 answers a domU."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes_xen import ARGUMENT, UNMAPPED, World, XenGuest, fuzz
from xentui.engine.xen.abi import nmi, physdev, version
from xentui.engine.xen.kernel import do_nmi_op, do_vm_assist, do_xen_version
from xentui.engine.xen.physdev import do_physdev_op, do_physdev_op_compat

BOTH = pytest.mark.parametrize("width", [32, 64])
EPERM, ESRCH, EFAULT, EINVAL, ENOSYS = 1, 3, 14, 22, 38


def text(guest: XenGuest, command: int, size: int) -> str:
    assert guest.call(do_xen_version, command, b"\xee" * 2048) == 0
    answer = guest.get(size + 1)
    assert answer[size] == 0xEE, "exactly its buffer is written"
    return answer[:size].rstrip(b"\0").decode()


@BOTH
def test_xen_version(width: int) -> None:
    guest = World(width).guests[0]
    assert guest.call_at(do_xen_version, version.XENVER_version, 0) == 0x40011
    assert text(guest, version.XENVER_extraversion, 16).startswith(".")
    assert text(guest, version.XENVER_capabilities, 1024) == "xen-3.0-x86_64 xen-3.0-x86_32p "
    assert text(guest, version.XENVER_changeset, 64) == ""
    assert text(guest, version.XENVER_compile_info, 144) != ""
    assert text(guest, version.XENVER_commandline, 9) == "<denied>"
    assert guest.call_at(do_xen_version, version.XENVER_pagesize, 0) == 4096
    assert guest.call_at(do_xen_version, version.XENVER_pagesize, ARGUMENT) == -EINVAL
    assert guest.call_at(do_xen_version, version.XENVER_build_id, 0) == -EPERM
    assert guest.call_at(do_xen_version, 11, 0) == -ENOSYS
    assert guest.call_at(do_xen_version, version.XENVER_changeset, UNMAPPED) == -EFAULT
    assert guest.call_at(do_xen_version, version.XENVER_platform_parameters, ARGUMENT) == 0
    assert guest.number(0, width // 8) == (0xF580_0000 if width == 32 else 0xFFFF_8000_0000_0000)
    assert guest.call_at(do_xen_version, version.XENVER_guest_handle, ARGUMENT) == 0
    assert guest.get(16) == guest.domain.handle


@BOTH
def test_features(width: int) -> None:
    guest = World(width).guests[0]
    assert guest.call(do_xen_version, version.XENVER_get_features, struct.pack("<II", 0, 0)) == 0
    assert guest.number(4) == 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 17
    assert guest.call_at(do_vm_assist, 0, 3) == 0
    assert guest.call(do_xen_version, version.XENVER_get_features, struct.pack("<II", 0, 0)) == 0
    assert guest.number(4) & 1 << 4, "a PAE guest with extended CR3"
    assert guest.call(do_xen_version, version.XENVER_get_features, struct.pack("<II", 1, 0)) == -EINVAL


@BOTH
def test_vm_assist(width: int) -> None:
    guest = World(width).guests[0]
    for kind in (0, 1, 2, 3, 4, 5):
        assert guest.call_at(do_vm_assist, 0, kind) == 0
    assert guest.domain.vm_assist == 0x3F
    assert guest.call_at(do_vm_assist, 1, 2) == 0
    assert guest.domain.vm_assist == 0x3B
    assert guest.call_at(do_vm_assist, 0, 6) == -EINVAL
    assert guest.call_at(do_vm_assist, 0, 32) == (0 if width == 64 else -EINVAL)
    assert guest.call_at(do_vm_assist, 0, 200) == -EINVAL
    assert guest.call_at(do_vm_assist, 2, 2) == -ENOSYS


@BOTH
def test_nmi_op(width: int) -> None:
    guest = World(width).guests[0]
    data = struct.pack("<Q" if width == 64 else "<I", 0x1234).ljust(16, b"\0")
    assert guest.call(do_nmi_op, nmi.XENNMI_register_callback, data) == 0
    handler = guest.vcpu.traps[2]
    assert handler is not None
    assert (handler.address, handler.selector, handler.masks_events) == (
        0x1234,
        0xE033 if width == 64 else 0xE019,
        True,
    )
    assert guest.call_at(do_nmi_op, nmi.XENNMI_unregister_callback, 0) == 0
    assert guest.vcpu.traps[2] is None
    assert guest.call_at(do_nmi_op, 2, 0) == -ENOSYS
    assert guest.call_at(do_nmi_op, nmi.XENNMI_register_callback, UNMAPPED) == -EFAULT
    if width == 64:
        assert guest.call(do_nmi_op, nmi.XENNMI_register_callback, struct.pack("<QQ", 1 << 47, 0)) == -EINVAL


@BOTH
def test_io_privilege(width: int) -> None:
    guest = World(width).guests[0]
    assert guest.call(do_physdev_op, physdev.PHYSDEVOP_set_iopl, struct.pack("<I", 3)) == 0
    assert guest.vcpu.iopl == 3
    assert guest.call(do_physdev_op, physdev.PHYSDEVOP_set_iopl, struct.pack("<I", 4)) == -EINVAL
    form = "<QIxxxx" if width == 64 else "<II"
    assert guest.call(do_physdev_op, physdev.PHYSDEVOP_set_iobitmap, struct.pack(form, 0x5000, 1024)) == 0
    assert (guest.vcpu.io_bitmap, guest.vcpu.io_bitmap_ports) == (0x5000, 1024)
    assert guest.call(do_physdev_op, physdev.PHYSDEVOP_set_iobitmap, struct.pack(form, 0x5000, 65537)) == -EINVAL
    old = struct.pack("<IxxxxI" if width == 64 else "<II", physdev.PHYSDEVOP_set_iopl, 1).ljust(24, b"\0")
    guest.put(ARGUMENT, old)
    assert guest.call_at(do_physdev_op_compat, ARGUMENT, 0) == 0
    assert guest.vcpu.iopl == 1
    guest.put(ARGUMENT, struct.pack("<I", physdev.PHYSDEVOP_map_pirq))
    assert guest.call_at(do_physdev_op_compat, ARGUMENT, 0) == -EINVAL


def test_interrupts_are_the_control_domains() -> None:
    guest = World(64, 64).guests[0]
    for command in (physdev.PHYSDEVOP_apic_read, physdev.PHYSDEVOP_apic_write, physdev.PHYSDEVOP_setup_gsi):
        assert guest.call(do_physdev_op, command, bytes(64)) == -EPERM
        assert guest.call_at(do_physdev_op, command, UNMAPPED) == -EFAULT
    assert guest.call(do_physdev_op, physdev.PHYSDEVOP_eoi, bytes(64)) == -EINVAL
    assert guest.call(do_physdev_op, physdev.PHYSDEVOP_irq_status_query, struct.pack("<II", 3, 0)) == 0
    assert guest.number(4) == 1
    assert guest.call(do_physdev_op, physdev.PHYSDEVOP_irq_status_query, struct.pack("<II", 3000, 0)) == -EINVAL
    for domid, answer in ((0x7FF0, -EPERM), (2, -EPERM), (5, -ESRCH)):
        assert (
            guest.call(do_physdev_op, physdev.PHYSDEVOP_map_pirq, struct.pack("<H", domid).ljust(40, b"\0")) == answer
        )
        assert guest.call(do_physdev_op, physdev.PHYSDEVOP_unmap_pirq, struct.pack("<Hxxi", domid, 0)) == answer
    assert guest.call(do_physdev_op, 99, bytes(8)) == -ENOSYS


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([32, 64]),
    st.sampled_from([do_xen_version, do_vm_assist, do_nmi_op, do_physdev_op, do_physdev_op_compat]),
    st.integers(0, 40) | st.integers(0, (1 << 64) - 1) | st.just(ARGUMENT),
    st.sampled_from([0, 3, ARGUMENT, ARGUMENT + 4090]) | st.integers(0, (1 << 64) - 1),
    st.binary(max_size=64),
)
def test_any_operation(width: int, handler, command: int, argument: int, data: bytes) -> None:
    guest = World(width).guests[0]
    mask = (1 << width) - 1
    fuzz(guest, handler, (command & mask, argument & mask, 0, 0), data)
