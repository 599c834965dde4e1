"""Segment registers of PV guests: what a selector stands for, and loading it where the hypervisor enters the guest.

The processor loads what the guest's own instructions ask for; this does as it would where a trap is bounced, where the
guest returns from one, and where a far call goes through a gate. The descriptors are descriptor_tables.py's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from xentui.engine.x86 import segmentation
from xentui.engine.x86.segmentation import (
    FLAT_CODE_32,
    FLAT_CODE_64,
    FLAT_DATA_32,
    FLAT_DATA_64,
    FLAT_LIMIT,
    LONG,
    NOT_SYSTEM,
)
from xentui.engine.x86.state import (
    CS,
    CS_BASE,
    GS,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_SS32,
    HFLAGS,
    MASK32,
    SS,
    SS_BASE,
)
from xentui.engine.x86.state import FLAGS as HIDDEN_FLAGS
from xentui.engine.x86.state import LIMIT as HIDDEN_LIMIT
from xentui.engine.xen.abi.arch_x86_64 import FLAT_RING3_CS64, FLAT_RING3_SS64
from xentui.engine.xen.descriptor_tables import HIGH_ACCESSED, descriptor_index

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

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


# --- what a selector stands for ----------------------------------------------------------------------------------


def _descriptor(vcpu: Vcpu, selector: int) -> int:
    """The descriptor that a selector names, as one word; 0, which nothing can load, for null and missing ones.

    The hypervisor's own flat segments do not depend on memory. Marks others accessed, as a load does.
    """
    flat = (_FLAT_DESCRIPTORS_64 if vcpu.width == 64 else _FLAT_DESCRIPTORS_32).get(selector)
    if flat is not None:
        return flat
    index = descriptor_index(vcpu, selector)
    if index < 0:
        return 0
    ram64 = vcpu.hv.ram64
    descriptor = ram64[index]
    if not descriptor & HIGH_ACCESSED and descriptor & _HIGH_SEGMENT == _HIGH_SEGMENT:
        descriptor |= HIGH_ACCESSED
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


# --- loading them ------------------------------------------------------------------------------------------------


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
