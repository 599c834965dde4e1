"""#SS where the emulated processor says #GP: a stack address that is not canonical (Intel SDM volume 3, 6.15).

In 64-bit code every access whose segment is SS raises #SS(0) at an address that is not canonical, all others #GP(0):
those of PUSH, POP, CALL and their kin, and operands whose base is RSP or RBP, unless FS or GS is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.state import HF_CS64, HFLAGS, MASK64, RBP, RSP
from xentui.engine.xen.instruction import fetch

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu
    from xentui.engine.xen.instruction import Instruction

_PUSHES = frozenset((*range(0x50, 0x58), 0x68, 0x6A, 0x9C, 0xE8, 0x0FA0, 0x0FA8))
_POPS = frozenset((*range(0x58, 0x60), 0x9D, 0xC2, 0xC3, 0xCA, 0xCB, 0xCF, 0x0FA1, 0x0FA9))
_ENTER, _LEAVE, _POP_MEMORY, _GROUP5 = 0xC8, 0xC9, 0x8F, 0xFF
_CALL_MEMORY, _PUSH_MEMORY = (2, 3), (6,)
_NO_MODRM = frozenset((*range(0x70, 0x80), *range(0x90, 0xA0), *range(0xA0, 0xC0), 0xCC, 0xCD, 0xE3, 0xE9, 0xEB))
_FS, _GS, _OPERAND16 = 0x64, 0x65, 0x66


def is_stack_fault(vcpu: Vcpu) -> bool:
    """Is the #GP(0) that the instruction at RIP has raised an #SS(0) on a real processor?"""
    if not vcpu.i[HFLAGS] & HF_CS64:
        return False
    code = fetch(vcpu)
    q, opcode, prefixes = vcpu.q, code.opcode, bytes(code.data[: code.at])
    size = 2 if _OPERAND16 in prefixes else 8
    top = q[RSP]
    if opcode in _PUSHES or opcode == _ENTER:
        return not _canonical(top - size)
    if opcode in _POPS:
        return not _canonical(top)
    if opcode == _LEAVE:
        return not _canonical(q[RBP])
    if opcode in _NO_MODRM or opcode < 0:
        return False
    modrm = code.byte()
    if modrm < 0:
        return False
    group = modrm >> 3 & 7
    pushes = opcode == _GROUP5 and group in (*_CALL_MEMORY, *_PUSH_MEMORY)
    if pushes and modrm >> 6 == 3:
        return not _canonical(top - size)
    address, on_stack = _operand(q, code, modrm)
    if modrm >> 6 == 3 or _canonical(address):
        return (pushes and not _canonical(top - size)) or (opcode == _POP_MEMORY and not _canonical(top))
    return on_stack and _FS not in prefixes and _GS not in prefixes


def _operand(q: memoryview, code: Instruction, modrm: int) -> tuple[int, bool]:
    """(The address of a memory operand, is its segment SS?); RIP-relative ones count as canonical."""
    mode, rm = modrm >> 6, modrm & 7
    index = 0
    base = rm | (code.rex & 1) << 3
    if rm == 4:
        sib = code.byte()
        base = sib & 7 | (code.rex & 1) << 3
        number = sib >> 3 & 7 | (code.rex & 2) << 2
        index = q[number] << (sib >> 6 & 3) if number != RSP else 0
    if mode == 0 and base & 7 == RBP:
        return 0, False
    displacement = 0
    if mode == 1:
        displacement = _signed(code, 1)
    elif mode == 2:
        displacement = _signed(code, 4)
    return q[base] + index + displacement & MASK64, base in (RSP, RBP)


def _signed(code: Instruction, size: int) -> int:
    data = bytes(code.data[code.at : code.at + size])
    code.at += size
    return int.from_bytes(data, "little", signed=True)


def _canonical(address: int) -> bool:
    address &= MASK64
    return address < 1 << 47 or address >= (1 << 64) - (1 << 47)
