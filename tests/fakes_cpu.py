"""Guests for tests of instructions and segments: those of `fakes`, with the descriptor page that real ones have."""

from __future__ import annotations

from tests.fakes import Guest, make_guest, make_hypervisor
from xentui.engine.x86 import segmentation
from xentui.engine.x86.paging import ACCESSED, NX, PRESENT
from xentui.engine.x86.state import (
    CR0,
    CR4,
    CS,
    EF_IF,
    EFER,
    EFLAGS,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_LMA,
    HFLAGS,
    RIP,
    RSP,
    SS,
)
from xentui.engine.xen import descriptor_tables, segment_registers
from xentui.engine.xen.domain import TrapHandler

CODE_PFN, STACK_TOP, HANDLER = 41, 43 << 12, 44 << 12
"""Where `execute` puts instructions, the kernel's stack, and every trap handler."""
CR0_VALUE, CR4_VALUE, EFER_VALUE = 0x8005_0033, 0x624, 0xD01


def make_cpu_guest(width: int) -> Guest:
    """A domain in its kernel: flat segments, a stack, a handler for every exception."""
    guest = make_guest(make_hypervisor(), 1, width)
    hv, vcpu = guest.hv, guest.vcpu
    page = hv.frames.allocate_xen(1)
    hv.ram[page << 12 : page + 1 << 12] = segmentation.reserved_gdt_page(width)
    reserved = descriptor_tables.window_index(vcpu, segmentation.FIRST_RESERVED_GDT_PAGE)
    hv.ram64[reserved] = page << 12 | PRESENT | ACCESSED | NX
    descriptor_tables.destroy_gdt(vcpu)
    q, i = vcpu.q, vcpu.i
    i[HFLAGS] = HF_LMA
    q[CR0], q[CR4], q[EFER] = CR0_VALUE, CR4_VALUE, EFER_VALUE
    q[EFLAGS] = EF_IF | 2
    q[RSP] = vcpu.kernel_sp = STACK_TOP
    cs, ss = (0xE033, 0xE02B) if width == 64 else (0xE019, 0xE021)
    vcpu.kernel_ss = ss
    assert segment_registers.load_code_segment(vcpu, cs, cs & 3)
    assert segment_registers.load_stack_segment(vcpu, ss, cs & 3)
    for vector in range(32):
        vcpu.traps[vector] = TrapHandler(HANDLER + vector, cs, 0, False)
    return guest


def enter_user_mode(guest: Guest) -> None:
    """Make the vCPU run its user code, on the same page tables."""
    vcpu = guest.vcpu
    if vcpu.width == 64:
        vcpu.kernel_mode = False
        vcpu.guest_table_user = vcpu.guest_table
    else:
        segment_registers.return_to_ring3(vcpu, 0xE02B, 0xE033)
        assert ring(guest) == 3


def execute(guest: Guest, code: bytes) -> None:
    """Put an instruction into the guest's memory, and RIP at it."""
    guest.write(CODE_PFN << 12, list(code), "B")
    guest.vcpu.q[RIP] = CODE_PFN << 12


def injected(guest: Guest) -> int | None:
    """The vector whose handler RIP is at, or None."""
    vector = guest.vcpu.q[RIP] - HANDLER
    return vector if 0 <= vector < 32 else None


def ring(guest: Guest) -> int:
    """The ring that is running."""
    return guest.vcpu.i[HFLAGS] & HF_CPL


def mode(guest: Guest) -> int:
    """64, 32 or 16: the width of the code that is running."""
    hflags = guest.vcpu.i[HFLAGS]
    if hflags & HF_CS64:
        return 64
    return 32 if hflags & HF_CS32 else 16


def selectors(guest: Guest) -> tuple[int, int]:
    """CS and SS."""
    return guest.vcpu.i[CS], guest.vcpu.i[SS]
