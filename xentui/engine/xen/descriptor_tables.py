"""Descriptor tables of PV guests (Xen: pv/descriptor-tables.c, pv/descriptors.h, pv/mm.c).

A guest's GDT is up to 14 of its own frames, which it may read but no longer write, and one page of the hypervisor's
behind them; its LDT is a range of its own address space. The processor reads both through a window in the
hypervisor's part of every address space, 32 pages for each vCPU: 16 for the GDT and 16 for the LDT, the latter mapped
when they are first used. Descriptors are *fixed up*, so that none gives a guest more than its own rings. Loading
segment registers from them is segment_registers.py's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind
from xentui.engine.x86 import segmentation
from xentui.engine.x86.exceptions import (
    PFEC_PRESENT,
    PFEC_RESERVED_BIT,
    PFEC_USER,
    PFEC_WRITE,
    X86_EXC_GP,
    XEC_EXT,
    XEC_IDT,
    XEC_TI,
)
from xentui.engine.x86.paging import (
    ACCESSED,
    DIRTY,
    FRAME_MASK,
    NX,
    PRESENT,
    RW,
    AddressSpace,
)
from xentui.engine.x86.segmentation import (
    FIRST_RESERVED_GDT_PAGE,
    TYPE_LDT,
)
from xentui.engine.x86.state import (
    ERROR_CODE,
    LDT,
    LDT_BASE,
    MASK32,
    MASK64,
    RIP,
)
from xentui.engine.x86.state import FLAGS as HIDDEN_FLAGS
from xentui.engine.x86.state import LIMIT as HIDDEN_LIMIT
from xentui.engine.xen import guest_access, page
from xentui.engine.xen.abi.arch_x86 import FIRST_RESERVED_GDT_ENTRY
from xentui.engine.xen.abi.errno import EFAULT, EINVAL
from xentui.engine.xen.descriptor_check import check_descriptor
from xentui.engine.xen.page_type import get_page_and_type, put_page_and_type

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

# --- the window (asm-x86/config.h: GDT_LDT_VIRT_START) -----------------------------------------------------------
WINDOW_START = 0xFFFF_8200_0000_0000
WINDOW_BYTES_SHIFT = 17  # 32 pages for each vCPU
WINDOW_PAGES = 32
LDT_PAGE = 16  # the first of the LDT's pages in it
VCPUS_PER_TABLE = 512 // WINDOW_PAGES
LDT_SELECTOR = 0xE050  # what `sldt` shows while there is an LDT
MAX_LDT_ENTRIES = 8192

_MAPPED = PRESENT | RW | ACCESSED | DIRTY | NX
_UNUSED = PRESENT | ACCESSED | NX
_LDT_FLAGS = segmentation.PRESENT | TYPE_LDT
HIGH_ACCESSED = segmentation.ACCESSED << 32
"""A segment's accessed bit, in a descriptor as one word."""


def gdt_base(vcpu: Vcpu) -> int:
    """Where the processor finds this vCPU's GDT."""
    return WINDOW_START + (vcpu.id << WINDOW_BYTES_SHIFT)


def window_index(vcpu: Vcpu, number: int) -> int:
    """Index in `ram64` of the entry that maps page `number` (0 to 31) of the vCPU's window; -1 where it has none."""
    tables = vcpu.domain.gdt_window
    table = vcpu.id // VCPUS_PER_TABLE
    if table >= len(tables):
        return -1
    return (tables[table] << 9) + vcpu.id % VCPUS_PER_TABLE * WINDOW_PAGES + number


# --- what a guest may put into a descriptor table ----------------------------------------------------------------


def fix_code_selector(selector: int) -> int:
    """A 32-bit guest's code selector with ring 0 raised to its kernel's ring 1 (asm-x86/desc.h)."""
    return selector if selector & 3 else selector | 1


def fix_stack_selector(selector: int) -> int:
    """The same for a stack selector."""
    return selector if selector & 3 else selector | 1


def validate_segdesc_page(domain: Domain, mfn: int) -> bool:
    """Fix up all 512 descriptors of a frame that becomes part of a descriptor table; False if one is not allowed.

    As on Xen, those before the bad one stay fixed up.
    """
    ram64 = domain.hv.ram64
    width = domain.width
    for index in range(mfn << 9, mfn + 1 << 9):
        descriptor = ram64[index]
        if descriptor:
            fixed = check_descriptor(width, descriptor)
            if fixed is None:
                return False
            if fixed != descriptor:
                ram64[index] = fixed
    return True


# --- hypercalls --------------------------------------------------------------------------------------------------


def do_set_gdt(vcpu: Vcpu, frame_list: int, entries: int, _c: int, _d: int) -> int:
    """Take a GDT of `entries` descriptors, in frames that the guest lists."""
    entries &= MASK32
    if entries > FIRST_RESERVED_GDT_ENTRY:
        return -EINVAL
    size = vcpu.width // 8
    data = guest_access.read(vcpu, frame_list, (entries + 511) // 512 * size)
    frames = memoryview(data).cast("Q" if size == 8 else "I").tolist()
    result = set_gdt(vcpu, frames, entries)
    if not result:
        vcpu.flush_tlb()
    return result


def set_gdt(vcpu: Vcpu, frames: list[int], entries: int) -> int:
    """Install a GDT: `frames` are machine frame numbers, all or none are taken. The caller flushes the TLB."""
    hv, domain = vcpu.hv, vcpu.domain
    if entries > FIRST_RESERVED_GDT_ENTRY or len(frames) != (entries + 511) // 512:
        return -EINVAL
    for done, mfn in enumerate(frames):
        if get_page_and_type(domain, mfn, page.SEG):
            for taken in frames[:done]:
                put_page_and_type(domain, taken)
            return -EINVAL
    destroy_gdt(vcpu)
    vcpu.gdt_frames, vcpu.gdt_entries = frames, entries
    first = window_index(vcpu, 0)
    for number, mfn in enumerate(frames):
        hv.ram64[first + number] = mfn << 12 | _MAPPED
    return 0


def destroy_gdt(vcpu: Vcpu) -> None:
    """Give the frames of the GDT back; its part of the window then reads as zeroes."""
    hv = vcpu.hv
    first = window_index(vcpu, 0)
    for number in range(FIRST_RESERVED_GDT_PAGE):
        hv.ram64[first + number] = hv.zero_frame << 12 | _UNUSED
    for mfn in vcpu.gdt_frames:
        put_page_and_type(vcpu.domain, mfn)
    vcpu.gdt_frames, vcpu.gdt_entries = [], 0


def do_update_descriptor(vcpu: Vcpu, a: int, b: int, c: int, d: int) -> int:
    """Write one descriptor, given its machine address, into a descriptor table or a page that may become one."""
    domain = vcpu.domain
    if vcpu.width == 64:
        address, descriptor = a, b
    else:
        address, descriptor = a & MASK32 | (b & MASK32) << 32, c & MASK32 | (d & MASK32) << 32
    fixed = check_descriptor(domain.width, descriptor)
    if address & 7 or fixed is None:
        return -EINVAL
    hv = vcpu.hv
    mfn = address >> 12
    if mfn >= hv.frames.count:
        return -EINVAL
    as_type = page.SEG if hv.frames.type[mfn] == page.SEG else page.WRITABLE
    if get_page_and_type(domain, mfn, as_type):
        return -EINVAL
    hv.ram64[address >> 3] = fixed
    put_page_and_type(domain, mfn)
    return 0


# --- the LDT -----------------------------------------------------------------------------------------------------


def set_ldt(vcpu: Vcpu, base: int, entries: int) -> int:
    """MMUEXT_SET_LDT: the LDT lies at the virtual address `base`; no entries: there is none (mm.c, do_mmuext_op)."""
    if not entries:
        base = 0
    outside = 1 << 47 <= base < guest_access.HYPERVISOR_END or base > MASK64
    if base & 0xFFF or outside or entries > MAX_LDT_ENTRIES:
        return -EINVAL
    if (vcpu.ldt_base, vcpu.ldt_entries) == (base, entries):
        return 0
    if destroy_ldt(vcpu):
        vcpu.flush_tlb()
    vcpu.ldt_base, vcpu.ldt_entries = base, entries
    load_ldt(vcpu)
    return 0


def load_ldt(vcpu: Vcpu) -> None:
    """Point the LDT register of the live state at the vCPU's window, or at nothing."""
    q, i = vcpu.q, vcpu.i
    if vcpu.ldt_entries:
        i[LDT], q[LDT_BASE] = LDT_SELECTOR, gdt_base(vcpu) + LDT_PAGE * 4096
        i[LDT + HIDDEN_LIMIT], i[LDT + HIDDEN_FLAGS] = vcpu.ldt_entries * 8 - 1, _LDT_FLAGS
    else:
        i[LDT], q[LDT_BASE], i[LDT + HIDDEN_LIMIT], i[LDT + HIDDEN_FLAGS] = 0, 0, 0, 0


def destroy_ldt(vcpu: Vcpu) -> bool:
    """Unmap what was mapped of the LDT; was anything, so that the TLB has to be flushed?"""
    ram64 = vcpu.hv.ram64
    first = window_index(vcpu, LDT_PAGE)
    dropped = False
    if first < 0:
        return False
    for index in range(first, first + 16):
        entry = ram64[index]
        if entry & PRESENT:
            ram64[index] = 0
            put_page_and_type(vcpu.domain, (entry & FRAME_MASK) >> 12)
            dropped = True
    return dropped


def _map_ldt_page(vcpu: Vcpu, offset: int) -> bool:
    """Map the page of the LDT at byte `offset`, as the guest *kernel's* page tables have it, once it is validated."""
    hv, domain = vcpu.hv, vcpu.domain
    index = window_index(vcpu, LDT_PAGE + (offset >> 12))
    if index < 0 or offset >> 3 >= vcpu.ldt_entries:
        return False
    linear = vcpu.ldt_base + offset & (MASK32 if vcpu.width == 32 else MASK64)
    space = AddressSpace(hv.ram64)
    space.root = (vcpu.guest_table if vcpu.width == 64 else vcpu.monitor_table) << 12
    where = space.entry_at(linear)
    if where < 0 or not hv.ram64[where] & PRESENT:
        return False
    mfn = (hv.ram64[where] & FRAME_MASK) >> 12
    if get_page_and_type(domain, mfn, page.SEG):
        return False
    hv.ram64[index] = mfn << 12 | _MAPPED
    return True


def handle_ldt_fault(vcpu: Vcpu, address: int) -> bool:
    """A page fault in the window: map a page of the LDT, or give the guest the fault that it has earned.

    True: done, the guest goes on (with the instruction again, or in its handler). False: not the processor's own
    reading of a descriptor but the guest's access to the hypervisor's memory, a page fault like any other.
    (Xen: traps.c, handle_gdt_ldt_mapping_fault)
    """
    from xentui.engine.xen import traps

    hv = vcpu.hv
    error_code = vcpu.i[ERROR_CODE]
    offset = address - WINDOW_START
    if error_code & (PFEC_USER | PFEC_RESERVED_BIT) or offset >> WINDOW_BYTES_SHIFT != vcpu.id:
        return False
    offset &= (1 << WINDOW_BYTES_SHIFT) - 1
    in_ldt = offset >= LDT_PAGE * 4096
    offset &= LDT_PAGE * 4096 - 1
    if error_code & (PFEC_PRESENT | PFEC_WRITE) == PFEC_PRESENT | PFEC_WRITE:
        return _set_accessed(vcpu, offset, in_ldt)
    mapped = in_ldt and _map_ldt_page(vcpu, offset)
    hv.put(
        hv.clock.now(), vcpu.q[RIP], Kind.GDT_LDT_FAULT, vcpu.id, vcpu.domain.id, error_code,
        address, offset, 0, 0, 0 if mapped else -EFAULT & MASK64,
    )  # fmt: skip
    if mapped:
        return True
    linear = vcpu.ldt_base + offset
    if not in_ldt:
        traps.inject(vcpu, X86_EXC_GP, offset & ~(XEC_EXT | XEC_IDT | XEC_TI))
    elif vcpu.width == 64 and 1 << 47 <= linear < (1 << 64) - (1 << 47):
        traps.inject(vcpu, X86_EXC_GP, offset & ~(XEC_EXT | XEC_IDT) | XEC_TI)
    else:
        traps.inject_page_fault(vcpu, linear & (MASK32 if vcpu.width == 32 else MASK64), error_code)
    return True


def _set_accessed(vcpu: Vcpu, offset: int, in_ldt: bool) -> bool:
    """Set a descriptor's accessed bit for the processor, to which the window is read-only."""
    ram64 = vcpu.hv.ram64
    entry = ram64[window_index(vcpu, (offset >> 12) + (LDT_PAGE if in_ldt else 0))]
    mfn = (entry & FRAME_MASK) >> 12
    if not entry & RW:
        return False
    ram64[(mfn << 9) + (offset >> 3 & 511)] |= HIGH_ACCESSED
    return True


# --- finding descriptors -----------------------------------------------------------------------------------------


def lookup(vcpu: Vcpu, selector: int) -> tuple[int, int] | None:
    """The two words of the descriptor that `selector` names, as the processor would find it; None: null or no such."""
    index = descriptor_index(vcpu, selector)
    if index < 0:
        return None
    descriptor = vcpu.hv.ram64[index]
    return descriptor & MASK32, descriptor >> 32


def descriptor_index(vcpu: Vcpu, selector: int) -> int:
    """Index in `ram64` of the descriptor that a selector names, or -1; maps a page of the LDT if need be."""
    number = selector >> 3 & 0x1FFF
    if not selector & 4:
        if not number:
            return -1
        where = window_index(vcpu, number >> 9)
        if where < 0 or number >> 9 > FIRST_RESERVED_GDT_PAGE:
            return -1
        entry = vcpu.hv.ram64[where]
    else:
        if number >= vcpu.ldt_entries:
            return -1
        where = window_index(vcpu, LDT_PAGE + (number >> 9))
        if where < 0:
            return -1
        entry = vcpu.hv.ram64[where]
        if not entry & PRESENT and _map_ldt_page(vcpu, number << 3):
            entry = vcpu.hv.ram64[where]
    if not entry & PRESENT:
        return -1
    return ((entry & FRAME_MASK) >> 3) + (number & 511)
