"""What a page-table entry of a guest may hold, and what the hypervisor makes of it (Xen: mm.c, pv/mm.h)."""

from __future__ import annotations

from xentui.engine.x86.paging import GLOBAL, PCD, PSE, PWT, USER

PAT = PSE  # bit 7 of an L1 entry
GUEST_KERNEL = 1 << 52
"""_PAGE_GUEST_KERNEL: Xen's mark on the kernel pages of a 64-bit guest, which it makes user pages."""

L1_DISALLOW = PWT | PCD | PAT
"""What an L1 entry of a domain without devices may not have (Xen: l1_disallow_mask)."""
TABLE_DISALLOW = PWT | PCD | PSE | GLOBAL
"""The same for L2 to L4."""
PAE_L3_DISALLOW = TABLE_DISALLOW | 0xFFF << 52
"""A 32-bit guest's L3 entries have no bits above the address (Xen: l3_disallow_mask)."""

XEN_L4_FIRST, XEN_L4_LAST = 256, 271
PERDOMAIN_SLOT = 260
M2P_SLOT = 256
COMPAT_L2_FIRST = 0xF580_0000 >> 21 & 511
"""First slot of the hypervisor's in the L2 of a PAE guest's fourth GiB."""


def adjust_l1(entry: int) -> int:
    """A present L1 entry of a 64-bit guest as Xen writes it (pv/mm.h, adjust_guest_l1e).

    Both kernel and user run in ring 3: kernel pages become user pages with a mark, user pages global ones.
    """
    if not entry & USER:
        return entry | GUEST_KERNEL | USER
    if not entry & GUEST_KERNEL:
        return entry | GLOBAL
    return entry
