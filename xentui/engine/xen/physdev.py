"""Physical devices: I/O privilege, which a guest may ask for, and interrupts, which a guest has none of.

(Xen: arch/x86/physdev.c.) What belongs to the control domain is refused as Xen refuses it to a domU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.state import MASK32
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi import physdev as abi
from xentui.engine.xen.abi.core import DOMID_SELF
from xentui.engine.xen.abi.errno import EINVAL, ENOSYS, EPERM, ESRCH
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.abi.layout import Layout
    from xentui.engine.xen.domain import Vcpu

NR_PIRQS = 56
"""Interrupt numbers that a domain has: 24 of the I/O APIC, and the 32 that Xen adds for a domU."""

IO_BITMAP_BYTES = 65536 // 8


def _layout(vcpu: Vcpu) -> Layout:
    return LAYOUT32 if vcpu.width == 32 else LAYOUT64


def do_physdev_op(vcpu: Vcpu, cmd: int, arg: int, _c: int, _d: int) -> int:
    """Hypercall 33: `cmd` is a PHYSDEVOP_*, `arg` points to its structure."""
    operation = _OPERATIONS.get(cmd & MASK32)
    return -ENOSYS if operation is None else operation(vcpu, arg)


def do_physdev_op_compat(vcpu: Vcpu, uop: int, _b: int, _c: int, _d: int) -> int:
    """Hypercall 19: command and structure in one, as before Xen 3.2; only the first few commands."""
    layout = _layout(vcpu)
    op = guest_access.read(vcpu, uop, layout.PHYSDEV_OP_SIZE)
    cmd = int.from_bytes(op[:4], "little")
    if cmd not in _COMPAT:
        return -EINVAL
    return do_physdev_op(vcpu, cmd, uop + layout.PHYSDEV_OP_u, 0, 0)


def _set_iopl(vcpu: Vcpu, arg: int) -> int:
    """The I/O privilege level that the guest sees; real ports stay out of its reach."""
    iopl = guest_access.read_u32(vcpu, arg)
    if iopl > 3:
        return -EINVAL
    vcpu.iopl = iopl
    return 0


def _set_iobitmap(vcpu: Vcpu, arg: int) -> int:
    """Which ports user code may use: a bitmap in guest memory, a clear bit allows."""
    layout = _layout(vcpu)
    record = guest_access.read(vcpu, arg, layout.PHYSDEV_SET_IOBITMAP_SIZE)
    bitmap, ports = layout.STRUCT_physdev_set_iobitmap.unpack(record)
    if not guest_access.handle_okay(vcpu, bitmap, IO_BITMAP_BYTES) or ports > 65536:
        return -EINVAL
    vcpu.io_bitmap, vcpu.io_bitmap_ports = bitmap, ports
    return 0


def _eoi(vcpu: Vcpu, arg: int) -> int:
    """End of an interrupt; there is none to end (Xen: no such pirq)."""
    guest_access.read(vcpu, arg, LAYOUT64.PHYSDEV_EOI_SIZE)
    return -EINVAL


def _irq_status_query(vcpu: Vcpu, arg: int) -> int:
    irq, _ = LAYOUT64.STRUCT_physdev_irq_status_query.unpack(
        guest_access.read(vcpu, arg, LAYOUT64.PHYSDEV_IRQ_STATUS_QUERY_SIZE)
    )
    if irq >= NR_PIRQS:
        return -EINVAL
    guest_access.write_u32(vcpu, arg + LAYOUT64.PHYSDEV_IRQ_STATUS_QUERY_flags, abi.XENIRQSTAT_needs_eoi)
    return 0


def _unmask_notify(_vcpu: Vcpu, _arg: int) -> int:
    """Unmask all the domain's interrupts; it has none."""
    return 0


def _map_pirq(vcpu: Vcpu, arg: int) -> int:
    """Passing an interrupt through is for the control domain."""
    layout = _layout(vcpu)
    record = guest_access.read(vcpu, arg, layout.PHYSDEV_MAP_PIRQ_SIZE)
    return _not_ours(vcpu, int.from_bytes(record[:2], "little"))


def _unmap_pirq(vcpu: Vcpu, arg: int) -> int:
    record = guest_access.read(vcpu, arg, LAYOUT64.PHYSDEV_UNMAP_PIRQ_SIZE)
    return _not_ours(vcpu, int.from_bytes(record[:2], "little"))


def _not_ours(vcpu: Vcpu, domid: int) -> int:
    known = domid in (DOMID_SELF, 0) or domid in vcpu.hv.domains
    return -EPERM if known else -ESRCH


def _privileged(size: int) -> Callable[[Vcpu, int], int]:
    """An operation for the control domain alone, refused after its structure of `size` bytes was read."""

    def refuse(vcpu: Vcpu, arg: int) -> int:
        guest_access.read(vcpu, arg, size)
        return -EPERM

    return refuse


_OPERATIONS: dict[int, Callable[[Vcpu, int], int]] = {
    abi.PHYSDEVOP_IRQ_UNMASK_NOTIFY: _unmask_notify,
    abi.PHYSDEVOP_irq_status_query: _irq_status_query,
    abi.PHYSDEVOP_set_iopl: _set_iopl,
    abi.PHYSDEVOP_set_iobitmap: _set_iobitmap,
    abi.PHYSDEVOP_apic_read: _privileged(LAYOUT64.PHYSDEV_APIC_SIZE),
    abi.PHYSDEVOP_apic_write: _privileged(LAYOUT64.PHYSDEV_APIC_SIZE),
    abi.PHYSDEVOP_alloc_irq_vector: _privileged(LAYOUT64.PHYSDEV_IRQ_SIZE),
    abi.PHYSDEVOP_eoi: _eoi,
    abi.PHYSDEVOP_map_pirq: _map_pirq,
    abi.PHYSDEVOP_unmap_pirq: _unmap_pirq,
    abi.PHYSDEVOP_manage_pci_add: _privileged(2),
    abi.PHYSDEVOP_manage_pci_remove: _privileged(2),
    abi.PHYSDEVOP_manage_pci_add_ext: _privileged(2),
    abi.PHYSDEVOP_pci_device_add: _privileged(8),
    abi.PHYSDEVOP_pci_device_remove: _privileged(4),
    abi.PHYSDEVOP_restore_msi: _privileged(2),
    abi.PHYSDEVOP_restore_msi_ext: _privileged(4),
    abi.PHYSDEVOP_prepare_msix: _privileged(4),
    abi.PHYSDEVOP_release_msix: _privileged(4),
    abi.PHYSDEVOP_setup_gsi: _privileged(12),
    abi.PHYSDEVOP_pci_mmcfg_reserved: _privileged(24),
    abi.PHYSDEVOP_dbgp_op: _privileged(8),
    abi.PHYSDEVOP_get_free_pirq: _privileged(LAYOUT64.PHYSDEV_GET_FREE_PIRQ_SIZE),
}

_COMPAT = frozenset(
    (
        abi.PHYSDEVOP_IRQ_UNMASK_NOTIFY,
        abi.PHYSDEVOP_irq_status_query,
        abi.PHYSDEVOP_set_iopl,
        abi.PHYSDEVOP_set_iobitmap,
        abi.PHYSDEVOP_apic_read,
        abi.PHYSDEVOP_apic_write,
        abi.PHYSDEVOP_alloc_irq_vector,
    )
)
