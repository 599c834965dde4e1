"""Segment descriptors, and the hidden parts of the segment registers (Intel SDM volume 3, 3.4 and 5).

A descriptor is two 32-bit words, `low` and `high`. The processor keeps, for each segment register, the selector and
what it read of the descriptor: base, limit in bytes, and a flags word, which in this emulated processor is `high` as
it is. Loading a segment register without an instruction, as a return from the hypervisor does, is writing those
and the copy of them that the translator looks at, `hflags`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xentui.engine.x86.state import (
    CS,
    DS_BASE,
    ES,
    ES_BASE,
    FLAGS,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_SS32,
    HFLAGS,
    LIMIT,
    SS,
    SS_BASE,
)

if TYPE_CHECKING:
    from xentui.engine.x86.state import State

# --- the high word of a descriptor -------------------------------------------------------------------------------
ACCESSED = 1 << 8
WRITABLE = 1 << 9  # of data segments
READABLE = 1 << 9  # of code segments
CONFORMING = 1 << 10  # of code segments
CODE = 1 << 11
TYPE_MASK = 0xF << 8
NOT_SYSTEM = 1 << 12  # the S bit: code or data
DPL_SHIFT = 13
DPL_MASK = 3 << DPL_SHIFT
PRESENT = 1 << 15
LONG = 1 << 21  # 64-bit code
DEFAULT_BIG = 1 << 22  # D of code, B of stacks
GRANULAR = 1 << 23  # the limit counts pages

TYPE_LDT = 0x2 << 8
TYPE_CALL_GATE = 0xC << 8

FLAT_LIMIT = 0xFFFF_FFFF

# --- the flat segments of the hypervisor's own descriptor page (xen/arch/x86/desc.c) -----------------------------
FLAT_RING1_CS_FLAGS = 0x00CF_BB00
FLAT_RING1_DS_FLAGS = FLAT_RING1_SS_FLAGS = 0x00CF_B300
FLAT_RING3_CS32_FLAGS = 0x00CF_FB00
FLAT_RING3_DS_FLAGS = FLAT_RING3_SS_FLAGS = 0x00CF_F300
FLAT_RING3_CS64_FLAGS = 0x00AF_FB00
_RING0_CS_FLAGS = 0x00AF_9B00
_RING0_DS_FLAGS = 0x00CF_9300

FLAT_CODE_32: dict[int, int] = {0xE019: FLAT_RING1_CS_FLAGS, 0xE02B: FLAT_RING3_CS32_FLAGS}
FLAT_DATA_32: dict[int, int] = {0xE021: FLAT_RING1_DS_FLAGS, 0xE033: FLAT_RING3_DS_FLAGS}
FLAT_CODE_64: dict[int, int] = {0xE023: FLAT_RING3_CS32_FLAGS, 0xE033: FLAT_RING3_CS64_FLAGS}
FLAT_DATA_64: dict[int, int] = {0xE02B: FLAT_RING3_DS_FLAGS}
"""Selector to flags word, for 32-bit and 64-bit guests: the same numbers mean other segments to the other width."""

FIRST_RESERVED_GDT_PAGE = 14
"""The page of every GDT that is the hypervisor's own; a page holds 512 descriptors."""


def reserved_gdt_page(width: int) -> bytes:
    """The 4096 bytes of page 14 of the GDT of a guest of `width` 32 or 64, all accessed bits preset.

    Descriptor n of the page has the selector 0xE000 + 8n. The ring-0 ones are there because real Xen has them; no
    guest can load them.
    """
    flat = {0xE008: _RING0_CS_FLAGS, 0xE010: _RING0_DS_FLAGS}
    flat |= FLAT_CODE_64 | FLAT_DATA_64 if width == 64 else FLAT_CODE_32 | FLAT_DATA_32
    page = bytearray(4096)
    for selector, flags in flat.items():
        index = (selector >> 3) - FIRST_RESERVED_GDT_PAGE * 512
        struct.pack_into("<II", page, index * 8, 0xFFFF, flags)
    return bytes(page)


def parse(low: int, high: int) -> tuple[int, int, int]:
    """Base, limit in bytes (inclusive) and flags word of a descriptor."""
    base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF00_0000
    limit = low & 0xFFFF | high & 0xF_0000
    if high & GRANULAR:
        limit = limit << 12 | 0xFFF
    return base, limit, high


def code_loadable(flags: int, rpl: int, cpl: int) -> bool:
    """May control go to ring `cpl` through a code segment whose selector has the RPL `rpl`? (SDM: IRET)

    It must be present code of that ring (a conforming one: of that ring or a more privileged one), and not claim to
    be 64-bit and 32-bit at once.
    """
    if flags & (NOT_SYSTEM | CODE | PRESENT) != NOT_SYSTEM | CODE | PRESENT or rpl != cpl:
        return False
    if flags & (LONG | DEFAULT_BIG) == LONG | DEFAULT_BIG:
        return False
    dpl = flags >> DPL_SHIFT & 3
    return dpl <= cpl if flags & CONFORMING else dpl == cpl


def stack_loadable(flags: int, rpl: int, cpl: int) -> bool:
    """May SS hold this segment in ring `cpl`? It must be present, writable data of exactly that ring."""
    need = NOT_SYSTEM | WRITABLE | PRESENT
    return flags & (need | CODE) == need and rpl == cpl == flags >> DPL_SHIFT & 3


def data_loadable(flags: int, rpl: int, cpl: int) -> bool:
    """May DS, ES, FS or GS hold this segment in ring `cpl`? Present and readable, and not above `cpl` or `rpl`."""
    if flags & (NOT_SYSTEM | PRESENT) != NOT_SYSTEM | PRESENT or flags & (CODE | READABLE) == CODE:
        return False
    if flags & (CODE | CONFORMING) == CODE | CONFORMING:
        return True
    return flags >> DPL_SHIFT & 3 >= max(rpl, cpl)


def load_segment(state: State, which: int, selector: int, base: int, limit: int, flags: int) -> None:
    """Put a segment into a register of the live state: `which` is ES, CS, SS, DS, FS or GS of x86/state.py.

    No check; a load of SS also sets the CPL, to the segment's DPL, as everywhere in the architecture.
    """
    q, i = state.q, state.i
    i[which] = selector
    q[ES_BASE + (which - ES) // 2] = base
    i[which + LIMIT] = limit
    i[which + FLAGS] = flags
    if which == SS:
        i[HFLAGS] = i[HFLAGS] & ~HF_CPL | flags >> DPL_SHIFT & 3
    update_hflags(state)


def update_hflags(state: State) -> None:
    """Derive CS32, SS32, ADDSEG and CS64 of `hflags` from the segment registers (as QEMU's cpu_x86_load_seg_cache).

    In 64-bit code the bases of DS, ES and SS do not count; elsewhere ADDSEG says that one of them has to be added.
    """
    q, i = state.q, state.i
    code = i[CS + FLAGS]
    hflags = i[HFLAGS] & ~(HF_CS32 | HF_SS32 | HF_ADDSEG | HF_CS64)
    if code & LONG:
        hflags |= HF_CS32 | HF_SS32 | HF_CS64
    else:
        hflags |= code >> 18 & HF_CS32 | i[SS + FLAGS] >> 17 & HF_SS32
        if q[DS_BASE] | q[ES_BASE] | q[SS_BASE] or not code & DEFAULT_BIG:
            hflags |= HF_ADDSEG
    i[HFLAGS] = hflags
