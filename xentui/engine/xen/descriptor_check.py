"""What a PV guest may put into a descriptor table (Xen: pv/descriptor-tables.c, check_descriptor)."""

from __future__ import annotations

from xentui.engine.x86.segmentation import (
    DPL_MASK,
    DPL_SHIFT,
    GRANULAR,
    LONG,
    NOT_SYSTEM,
    PRESENT,
    TYPE_CALL_GATE,
    TYPE_MASK,
)
from xentui.engine.x86.state import MASK32
from xentui.engine.xen.abi.arch_x86 import FIRST_RESERVED_GDT_ENTRY, HYPERVISOR_COMPAT_VIRT_START
from xentui.engine.xen.abi.arch_x86_32 import FLAT_RING1_CS
from xentui.engine.xen.abi.arch_x86_64 import FLAT_RING3_CS64


def gate_selector_okay(width: int, selector: int) -> bool:
    """May a gate lead to this code segment? One of the guest's own, or the flat one of its kernel."""
    flat_kernel = FLAT_RING3_CS64 if width == 64 else FLAT_RING1_CS
    return selector >> 3 < FIRST_RESERVED_GDT_ENTRY or selector == flat_kernel or bool(selector & 4)


def check_descriptor(width: int, descriptor: int) -> int | None:
    """A descriptor as Xen lets a guest of `width` have it, or None if it may not (descriptor-tables.c).

    The DPL is raised to the guest kernel's ring. A call gate gets DPL 0, so that its use traps and is emulated; the
    DPL that the guest gave it is kept in the RPL of its selector. No other system descriptor is allowed.
    """
    low, high = descriptor & MASK32, descriptor >> 32
    if not high & PRESENT:
        return descriptor  # always faults
    kernel_ring = 3 if width == 64 else 1
    dpl = max(high >> DPL_SHIFT & 3, kernel_ring)
    high = high & ~DPL_MASK | dpl << DPL_SHIFT
    if high & NOT_SYSTEM:
        if width == 32:
            if high & LONG:
                return None
            if _reaches_hypervisor(low, high):
                # Old PAE kernels stop at 0xf6800000; the larger M2P of a 64-bit Xen begins below that.
                low |= 0xFFFF
                high |= 0xF_0000
        return low | high << 32
    kind = high & TYPE_MASK
    if not kind:
        return descriptor  # the second half of a 64-bit call gate
    selector = low >> 16
    if kind != TYPE_CALL_GATE or not gate_selector_okay(width, selector) or high & (0xE0 if width == 32 else 0xFF):
        return None
    return low & 0xFFFF | (selector & ~3 | dpl) << 16 | (high & ~DPL_MASK) << 32


def _reaches_hypervisor(low: int, high: int) -> bool:
    """Does a 32-bit segment start at 0 and end within the hypervisor's part of the address space?"""
    base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF00_0000
    size = (low & 0xFFFF | high & 0xF_0000) + 1
    if high & GRANULAR:
        size <<= 12
    return not base and size > HYPERVISOR_COMPAT_VIRT_START
