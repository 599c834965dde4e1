"""I/O ports as an unprivileged PV guest sees them (Xen: pv/emul-priv-op.c, guest_io_read and guest_io_write).

No device is behind any port: reads give all ones, writes go nowhere. What Xen emulates for every guest is there: the
interval timer's channel 2, and the index registers of the CMOS clock and of PCI configuration space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from xentui.engine.trace import Kind
from xentui.engine.x86.paging import ACCESSED, PRESENT, AddressSpace
from xentui.engine.x86.state import RIP
from xentui.engine.xen.abi.core import VMASST_TYPE_architectural_iopl
from xentui.engine.xen.guest_access import access_ok
from xentui.engine.xen.pit import Pit

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

PIT_PORTS = frozenset((0x42, 0x43, 0x61))
CMOS_INDEX = 0x70
PCI_ADDRESS = 0xCF8
_ARCH_IOPL = 1 << VMASST_TYPE_architectural_iopl


class Ports:
    """A domain's state behind its ports."""

    def __init__(self) -> None:
        self.pit = Pit()
        self.cmos_index = 0
        self.pci_address = 0


_ports: WeakKeyDictionary[Domain, Ports] = WeakKeyDictionary()


def ports_of(domain: Domain) -> Ports:
    """What lies behind a domain's ports, made at its first access."""
    found = _ports.get(domain)
    if found is None:
        found = _ports[domain] = Ports()
    return found


# --- permission --------------------------------------------------------------------------------------------------


def iopl_ok(vcpu: Vcpu) -> bool:
    """Has the guest given itself the IOPL for port access, CLI and STI? A kernel counts as ring 1 unless the guest
    has asked for `architectural_iopl`: then as ring 0, which always may."""
    if vcpu.in_kernel:
        return vcpu.iopl >= 1 or bool(vcpu.domain.vm_assist & _ARCH_IOPL)
    return vcpu.iopl == 3


def permitted(vcpu: Vcpu, port: int, size: int) -> bool:
    """May the guest access these ports: by IOPL, or by the I/O bitmap that it has registered? (guest_io_okay)"""
    if iopl_ok(vcpu):
        return True
    if port + size > vcpu.io_bitmap_ports:
        return False
    mask = _bitmap_byte(vcpu, port >> 3) | _bitmap_byte(vcpu, (port >> 3) + 1) << 8
    return not mask & ((1 << size) - 1 << (port & 7))


def _bitmap_byte(vcpu: Vcpu, offset: int) -> int:
    """A byte of the I/O bitmap, read through the guest kernel's page tables; 0xFF, no access, if it is not mapped."""
    address = vcpu.io_bitmap + offset
    if not access_ok(vcpu, address, 1):
        return 0xFF
    space = AddressSpace(vcpu.hv.ram64)
    space.root = (vcpu.guest_table if vcpu.width == 64 else vcpu.monitor_table) << 12
    base = space.walk(address, PRESENT, ACCESSED)
    return 0xFF if base < 0 else vcpu.ram[base + (address & 0xFFF)]


# --- access ------------------------------------------------------------------------------------------------------


def port_in(vcpu: Vcpu, port: int, size: int) -> int:
    """IN of `size` 1, 2 or 4 bytes: what the guest gets; recorded. The caller has asked `permitted`."""
    hv = vcpu.hv
    now = hv.clock.now()
    if size == 1:
        value = _read_byte(vcpu.domain, port, now)
    elif size == 4 and port == PCI_ADDRESS:
        value = ports_of(vcpu.domain).pci_address
    else:
        value = 0
        for number in range(size):
            value |= _read_byte(vcpu.domain, port + number, now) << 8 * number
    hv.put(now, vcpu.q[RIP], Kind.IO_PORT, vcpu.id, vcpu.domain.id, port, 0, size, value, 0, 0)
    return value


def _read_byte(domain: Domain, port: int, now: int) -> int:
    if port in PIT_PORTS:
        return ports_of(domain).pit.read(port, now)
    return ports_of(domain).cmos_index if port == CMOS_INDEX else 0xFF


def port_out(vcpu: Vcpu, port: int, size: int, value: int) -> None:
    """OUT of `size` 1, 2 or 4 bytes; recorded. The caller has asked `permitted`."""
    hv = vcpu.hv
    now = hv.clock.now()
    value &= (1 << 8 * size) - 1
    if size == 4 and port == PCI_ADDRESS:
        ports_of(vcpu.domain).pci_address = value
    else:
        for number in range(size):
            _write_byte(vcpu.domain, port + number, value >> 8 * number & 0xFF, now)
    hv.put(now, vcpu.q[RIP], Kind.IO_PORT, vcpu.id, vcpu.domain.id, port, 1, size, value, 0, 0)


def _write_byte(domain: Domain, port: int, value: int, now: int) -> None:
    if port in PIT_PORTS:
        ports_of(domain).pit.write(port, value, now)
    elif port == CMOS_INDEX:
        ports_of(domain).cmos_index = value
