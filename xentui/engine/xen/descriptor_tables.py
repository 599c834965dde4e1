"""Descriptor tables of PV guests (Xen: pv/descriptor-tables.c, pv/descriptors.h, pv/mm.c).

A guest's GDT is up to 14 of its own frames, which it may read but no longer write, and one page of the hypervisor's
behind them; its LDT is a range of its own address space. The processor reads both through a window in the
hypervisor's part of every address space, 32 pages for each vCPU: 16 for the GDT and 16 for the LDT, the latter mapped
when they are first used. Descriptors are *fixed up*, so that none gives a guest more than its own rings.
"""

from __future__ import annotations

from functools import lru_cache
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
    FLAT_CODE_32,
    FLAT_CODE_64,
    FLAT_DATA_32,
    FLAT_DATA_64,
    FLAT_LIMIT,
    LONG,
    NOT_SYSTEM,
    TYPE_LDT,
)
from xentui.engine.x86.state import (
    CS,
    CS_BASE,
    ERROR_CODE,
    GS,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_SS32,
    HFLAGS,
    LDT,
    LDT_BASE,
    MASK32,
    MASK64,
    RIP,
    SS,
    SS_BASE,
)
from xentui.engine.x86.state import FLAGS as HIDDEN_FLAGS
from xentui.engine.x86.state import LIMIT as HIDDEN_LIMIT
from xentui.engine.xen import guest_access, page
from xentui.engine.xen.abi.arch_x86 import FIRST_RESERVED_GDT_ENTRY
from xentui.engine.xen.abi.arch_x86_64 import FLAT_RING3_CS64, FLAT_RING3_SS64
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
_HIGH_ACCESSED = segmentation.ACCESSED << 32
_HIGH_SEGMENT = (NOT_SYSTEM | segmentation.PRESENT) << 32
_FLAT_32 = FLAT_CODE_32 | FLAT_DATA_32
_FLAT_64 = FLAT_CODE_64 | FLAT_DATA_64
_FLAT_DESCRIPTORS_32 = {selector: flags << 32 | 0xFFFF for selector, flags in _FLAT_32.items()}
_FLAT_DESCRIPTORS_64 = {selector: flags << 32 | 0xFFFF for selector, flags in _FLAT_64.items()}
_FLAT_RING3_CS64_FLAGS = segmentation.FLAT_RING3_CS64_FLAGS
_FLAT_RING3_SS_FLAGS = segmentation.FLAT_RING3_SS_FLAGS
_HF_SEGMENTS = HF_CPL | HF_CS32 | HF_SS32 | HF_ADDSEG | HF_CS64

Segment = tuple[int, int, int]
"""Base, limit and flags word of a segment."""


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
    ram64[(mfn << 9) + (offset >> 3 & 511)] |= _HIGH_ACCESSED
    return True


# --- reading descriptors -----------------------------------------------------------------------------------------


def lookup(vcpu: Vcpu, selector: int) -> tuple[int, int] | None:
    """The two words of the descriptor that `selector` names, as the processor would find it; None: null or no such."""
    index = _descriptor_index(vcpu, selector)
    if index < 0:
        return None
    descriptor = vcpu.hv.ram64[index]
    return descriptor & MASK32, descriptor >> 32


def _descriptor_index(vcpu: Vcpu, selector: int) -> int:
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


def _descriptor(vcpu: Vcpu, selector: int) -> int:
    """The descriptor that a selector names, as one word; 0, which nothing can load, for null and missing ones.

    The hypervisor's own flat segments do not depend on memory. Marks others accessed, as a load does.
    """
    flat = (_FLAT_DESCRIPTORS_64 if vcpu.width == 64 else _FLAT_DESCRIPTORS_32).get(selector)
    if flat is not None:
        return flat
    index = _descriptor_index(vcpu, selector)
    if index < 0:
        return 0
    ram64 = vcpu.hv.ram64
    descriptor = ram64[index]
    if not descriptor & _HIGH_ACCESSED and descriptor & _HIGH_SEGMENT == _HIGH_SEGMENT:
        descriptor |= _HIGH_ACCESSED
        ram64[index] = descriptor
    return descriptor


def segment(vcpu: Vcpu, selector: int) -> Segment | None:
    """Base, limit and flags of the segment that `selector` names; None: null or no such."""
    descriptor = _descriptor(vcpu, selector)
    return segmentation.parse(descriptor & MASK32, descriptor >> 32) if descriptor else None


@lru_cache(maxsize=1024)
def _code(descriptor: int, rpl: int, cpl: int) -> Segment | None:
    """The code segment of a descriptor, if control may go to ring `cpl` through it."""
    found = segmentation.parse(descriptor & MASK32, descriptor >> 32)
    return found if segmentation.code_loadable(found[2], rpl, cpl) else None


@lru_cache(maxsize=1024)
def _stack(descriptor: int, rpl: int, cpl: int) -> Segment | None:
    """The stack segment of a descriptor, if ring `cpl` may have it in SS."""
    found = segmentation.parse(descriptor & MASK32, descriptor >> 32)
    return found if segmentation.stack_loadable(found[2], rpl, cpl) else None


def stack_base(vcpu: Vcpu, selector: int) -> int:
    """Base of a 32-bit guest's stack segment: what a frame's address is relative to; 0 for the flat ones."""
    if selector in FLAT_DATA_32:
        return 0
    found = segment(vcpu, selector)
    return found[0] if found else 0


# --- loading segment registers -----------------------------------------------------------------------------------


def load_code_segment(vcpu: Vcpu, selector: int, cpl: int) -> bool:
    """Load CS for a transfer to ring `cpl`; False, and nothing changed, where the processor would fault."""
    found = _code(_descriptor(vcpu, selector), selector & 3, cpl)
    if found is None:
        return False
    segmentation.load_segment(vcpu.processor.state, CS, selector, *found)
    return True


def load_stack_segment(vcpu: Vcpu, selector: int, cpl: int) -> bool:
    """Load SS, and with it the CPL, for a transfer to ring `cpl`; False, and nothing changed, on a fault."""
    found = _stack(_descriptor(vcpu, selector), selector & 3, cpl)
    if found is None:
        return False
    segmentation.load_segment(vcpu.processor.state, SS, selector, *found)
    return True


def load_data_segment(vcpu: Vcpu, which: int, selector: int) -> bool:
    """Load DS, ES, FS or GS (`which`: an index of x86/state.py) in the ring that is running; a null one is fine."""
    base, limit, flags = 0, 0, 0
    if selector & ~3:
        found = segment(vcpu, selector)
        if found is None or not segmentation.data_loadable(found[2], selector & 3, vcpu.i[HFLAGS] & HF_CPL):
            return False
        base, limit, flags = found
    segmentation.load_segment(vcpu.processor.state, which, selector, base, limit, flags)
    return True


def load_flat64(vcpu: Vcpu) -> None:
    """The flat 64-bit code and stack segments, in which a 64-bit guest's kernel is entered."""
    i, q = vcpu.i, vcpu.q
    i[CS], q[CS_BASE], i[CS + HIDDEN_LIMIT] = FLAT_RING3_CS64, 0, FLAT_LIMIT
    i[CS + HIDDEN_FLAGS] = _FLAT_RING3_CS64_FLAGS
    i[SS], q[SS_BASE], i[SS + HIDDEN_LIMIT] = FLAT_RING3_SS64, 0, FLAT_LIMIT
    i[SS + HIDDEN_FLAGS] = _FLAT_RING3_SS_FLAGS
    i[HFLAGS] = i[HFLAGS] & ~_HF_SEGMENTS | 3 | HF_CS32 | HF_SS32 | HF_CS64


def _load_both(vcpu: Vcpu, cs: int, ss: int, cpl: int) -> bool:
    """CS and SS for a transfer to ring `cpl`; False, and nothing changed, where the processor would fault."""
    code = _code(_descriptor(vcpu, cs), cs & 3, cpl)
    stack = _stack(_descriptor(vcpu, ss), ss & 3, cpl)
    if code is None or stack is None:
        return False
    i, q = vcpu.i, vcpu.q
    i[CS], q[CS_BASE], i[CS + HIDDEN_LIMIT], i[CS + HIDDEN_FLAGS] = cs, *code
    i[SS], q[SS_BASE], i[SS + HIDDEN_LIMIT], i[SS + HIDDEN_FLAGS] = ss, *stack
    if code[2] & LONG:
        i[HFLAGS] = i[HFLAGS] & ~_HF_SEGMENTS | cpl | HF_CS32 | HF_SS32 | HF_CS64
    else:
        i[HFLAGS] = i[HFLAGS] & ~HF_CPL | cpl
        segmentation.update_hflags(vcpu.processor.state)
    return True


def enter_ring1(vcpu: Vcpu, cs: int, ss: int) -> bool:
    """Segments for a 32-bit guest's trap handler, which runs in the ring of its selector; False where impossible."""
    if vcpu.i[CS] == cs and vcpu.i[SS] == ss:
        return True
    return _load_both(vcpu, cs, ss, cs & 3)


def return_to_ring3(vcpu: Vcpu, cs: int, ss: int) -> bool:
    """Segments for a return to ring 3. False: a bad one, now an exception of the guest's (traps.return_fault)."""
    if _load_both(vcpu, cs, ss, 3):
        return True
    from xentui.engine.xen import traps

    traps.return_fault(vcpu, cs, ss)
    return False


def return_to_ring1(vcpu: Vcpu, cs: int) -> bool:
    """The code segment for a 32-bit guest's return within its kernel; the stack stays. A bad one: as above."""
    if vcpu.i[CS] == cs or load_code_segment(vcpu, cs, 1):
        return True
    from xentui.engine.xen import traps

    traps.return_fault(vcpu, cs, vcpu.i[SS])
    return False


def load_user_gs(vcpu: Vcpu, selector: int) -> int:
    """SEGBASE_GS_USER_SEL: load GS for user mode while a 64-bit kernel runs with its own base (misc-hypercalls.c).

    Always 0: a selector that cannot be loaded becomes the null one, as kernels rely on.
    """
    if selector & ~3:
        selector |= 3
    i = vcpu.i
    found: Segment | None = None
    if selector & ~3:
        found = segment(vcpu, selector)
        if found is None or not segmentation.data_loadable(found[2], 3, 3):
            selector, found = 0, None
    base, limit, flags = found or (0, 0, 0)
    vcpu.inactive_gs_base = base
    i[GS], i[GS + HIDDEN_LIMIT], i[GS + HIDDEN_FLAGS] = selector, limit, flags
    return 0
