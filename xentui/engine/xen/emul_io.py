"""IN, OUT and their string forms for PV guests (Xen: pv/emul-priv-op.c: read_io, write_io, rep_ins, rep_outs).

All of them trap (x86/port_trap.py). The guest may use a port if it has given itself the I/O privilege level or the
port's bit in its I/O bitmap; otherwise the #GP is its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.exceptions import PFEC_WRITE
from xentui.engine.x86.segmentation import CODE, NOT_SYSTEM, PRESENT, READABLE, WRITABLE, base_index
from xentui.engine.x86.state import EF_DF, ES, FLAGS, FS, GS, MASK32, MASK64, RAX, RCX, RDI, RDX, RSI
from xentui.engine.xen import guest_access
from xentui.engine.xen.debugreg import io_breakpoints
from xentui.engine.xen.guest_access import GuestFault
from xentui.engine.xen.instruction import AGAIN, DONE, INJECTED, UNHANDLED, Instruction
from xentui.engine.xen.io_port import permitted, port_in, port_out

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

MAX_REPEAT = 512
"""Elements of a string that one trap moves: the rest is another trap, so that a long string does not stall others."""

_ADDRESS_MASK = {2: 0xFFFF, 4: MASK32, 8: MASK64}


def in_out(vcpu: Vcpu, code: Instruction) -> int:
    """IN and OUT with the port as a byte (E4 to E7) or in DX (EC to EF)."""
    opcode, q = code.opcode, vcpu.q
    size = code.operand_size if opcode & 1 else 1
    port = q[RDX] & 0xFFFF if opcode & 8 else code.byte()
    if port < 0 or not permitted(vcpu, port, size):
        return UNHANDLED
    if opcode & 2:
        port_out(vcpu, port, size, q[RAX])
    elif size == 4:
        q[RAX] = port_in(vcpu, port, 4)
    else:
        q[RAX] = q[RAX] & ~((1 << 8 * size) - 1) | port_in(vcpu, port, size)
    code.breakpoints = io_breakpoints(vcpu, port, size)
    return DONE


def string(vcpu: Vcpu, code: Instruction) -> int:
    """INS (6C, 6D) to ES:RDI and OUTS (6E, 6F) from DS:RSI, also repeated; addresses wrap at their size."""
    q = vcpu.q
    output = code.opcode & 2
    size = code.operand_size if code.opcode & 1 else 1
    port = q[RDX] & 0xFFFF
    pointer = RSI if output else RDI
    base = _segment_base(vcpu, code.segment if output else ES, code, bool(output))
    if base < 0 or not permitted(vcpu, port, size):
        return UNHANDLED
    mask = _ADDRESS_MASK[code.address_size]
    count = q[RCX] & mask if code.repeat else 1
    code.breakpoints = io_breakpoints(vcpu, port, size)
    step = -size if vcpu.processor.read_flags() & EF_DF else size
    for _ in range(min(count, 1 if code.breakpoints else MAX_REPEAT)):
        offset = q[pointer] & mask
        linear = base + offset & (MASK64 if code.wide else MASK32)
        try:
            if output:
                port_out(vcpu, port, size, int.from_bytes(guest_access.read(vcpu, linear, size), "little"))
            else:
                guest_access.write(vcpu, linear, port_in(vcpu, port, size).to_bytes(size, "little"))
        except GuestFault as fault:
            return _page_fault(vcpu, fault.address & MASK64, 0 if output else PFEC_WRITE)
        _set_index(vcpu, pointer, offset + step & mask, code.address_size)
        if code.repeat:
            count -= 1
            _set_index(vcpu, RCX, count, code.address_size)
    return AGAIN if code.repeat and count else DONE


def _set_index(vcpu: Vcpu, register: int, value: int, address_size: int) -> None:
    """Write an index register: 16 bits leave the rest alone, 32 bits clear the upper half."""
    if address_size == 2:
        value |= vcpu.q[register] & ~0xFFFF
    vcpu.q[register] = value


def _segment_base(vcpu: Vcpu, which: int, code: Instruction, reading: bool) -> int:
    """Base of the operand's segment, or -1 if it may not be read, or written. 64-bit code has bases in FS and GS only.

    Limits are not checked, as nowhere on this processor.
    """
    base = vcpu.q[base_index(which)]
    if code.wide:
        return base if which in (FS, GS) else 0
    flags = vcpu.i[which + FLAGS]
    if flags & (NOT_SYSTEM | PRESENT) != NOT_SYSTEM | PRESENT:
        return -1
    if reading:
        return -1 if flags & (CODE | READABLE) == CODE else base
    return base if flags & (CODE | WRITABLE) == WRITABLE else -1


def _page_fault(vcpu: Vcpu, address: int, error_code: int) -> int:
    from xentui.engine.xen import traps

    traps.inject_page_fault(vcpu, address, error_code)
    return INJECTED
