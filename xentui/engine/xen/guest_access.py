"""Reading and writing a guest's memory on its behalf, as Xen's copy_from_guest and copy_to_guest do.

A pointer that is not mapped, not writable, or that reaches into the hypervisor's part of a 64-bit address space raises
`GuestFault`; the hypercall dispatcher turns that into -EFAULT. Never an exception in the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.xen.abi.arch_x86 import HYPERVISOR_COMPAT_VIRT_START

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

HYPERVISOR_START, HYPERVISOR_END = 0xFFFF_8000_0000_0000, 0xFFFF_8800_0000_0000  # L4 slots 256 to 271
_CANONICAL_TOP = 0x0000_8000_0000_0000


class GuestFault(Exception):
    """The guest gave an address that it may not use."""

    def __init__(self, address: int) -> None:
        super().__init__(f"guest address {address:#x} is not accessible")
        self.address = address


def access_ok(vcpu: Vcpu, address: int, size: int) -> bool:
    """May a guest pointer cover these bytes at all? (Xen: asm/x86_64/uaccess.h, access_ok)

    To this check the pointer of a 32-bit guest is one like any other below the hypervisor's part of 64 bits. Above
    0xF5800000 lies the M2P, which the guest may read, and not write; the page tables see to that.
    """
    if vcpu.width == 32:
        return True
    end = address + size
    return end <= _CANONICAL_TOP or (address >= HYPERVISOR_END and end <= 1 << 64)


def handle_okay(vcpu: Vcpu, address: int, size: int) -> bool:
    """The same for arrays that structures point to: a 32-bit guest's lie below 0xF5800000 (compat_handle_okay)."""
    if vcpu.width == 32:
        return address + max(size, 1) <= HYPERVISOR_COMPAT_VIRT_START
    return access_ok(vcpu, address, size)


def read(vcpu: Vcpu, address: int, size: int) -> bytes:
    """`size` bytes of guest memory from virtual `address`; raises GuestFault."""
    if not access_ok(vcpu, address, size):
        raise GuestFault(address)
    space, ram = vcpu.space, vcpu.ram
    parts = []
    while size:
        base = space.reads.get(address >> 12)
        if base is None:
            base = space.read_page(address)
            if base < 0:
                raise GuestFault(address)
        within = address & 0xFFF
        take = min(size, 0x1000 - within)
        parts.append(ram[base + within : base + within + take])
        address += take
        size -= take
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def write(vcpu: Vcpu, address: int, data: bytes) -> None:
    """Store `data` at virtual `address`; raises GuestFault, before which earlier pages may have been written."""
    if not access_ok(vcpu, address, len(data)):
        raise GuestFault(address)
    space, ram = vcpu.space, vcpu.ram
    done, size = 0, len(data)
    while done < size:
        base = space.writes.get(address >> 12)
        if base is None:
            base = space.write_page(address)
            if base < 0:
                raise GuestFault(address)
        within = address & 0xFFF
        take = min(size - done, 0x1000 - within)
        ram[base + within : base + within + take] = data[done : done + take]
        address += take
        done += take


def read_u32(vcpu: Vcpu, address: int) -> int:
    """An unsigned 32-bit value of the guest's."""
    return int.from_bytes(read(vcpu, address, 4), "little")


def read_u64(vcpu: Vcpu, address: int) -> int:
    """An unsigned 64-bit value of the guest's."""
    return int.from_bytes(read(vcpu, address, 8), "little")


def write_u32(vcpu: Vcpu, address: int, value: int) -> None:
    """Store an unsigned 32-bit value."""
    write(vcpu, address, (value & 0xFFFF_FFFF).to_bytes(4, "little"))
