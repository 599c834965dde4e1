"""Instructions that are carried out in the processor's stead, where they must be their block's last: how they end.

Their hooks are called in the middle of them, and leave them by a long jump: what the emulator would do behind the hook
is done here. For INS and OUTS that is much: what OUTS sends has been read, and the emulator has tried whether the place
can be written that INS fills; it is still to be stored, the pointer to be moved, and the repetitions to be counted.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

from xentui.engine.x86 import unicorn_api as uc
from xentui.engine.x86.state import (
    CS_BASE,
    DF,
    ES_BASE,
    HF_CS32,
    HF_CS64,
    HFLAGS,
    MASK32,
    MASK64,
    RAX,
    RCX,
    RDI,
    RIP,
    RSI,
)

if TYPE_CHECKING:
    from xentui.engine.x86.cpu import Processor

_ADDRESS_SIZE = 0x67
_REPEAT = frozenset((0xF2, 0xF3))
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, _ADDRESS_SIZE)) | _REPEAT


class Emulated(NamedTuple):
    """The instruction at RIP: CPUID, RDTSC, IN, OUT, INS or OUTS."""

    length: int
    pointer: int
    """Of INS and OUTS: the register that says where in memory, RDI or RSI; -1 of the others."""
    repeated: bool
    """INS or OUTS with a prefix REP."""
    address_bits: int
    """16, 32 or 64: how much of the pointer and of the counter it uses."""


def instruction_at_rip(processor: Processor) -> Emulated | None:
    """Which it is; None: another."""
    state = processor.state
    code = (ctypes.c_uint8 * 16)()
    address = state.q[RIP] + state.q[CS_BASE]
    if uc.cpu_memory_rw_debug(processor.cpu, address, code, 15, 0):
        uc.cpu_memory_rw_debug(processor.cpu, address, code, min(15, 4096 - (address & 4095)), 0)
    at, wide = 0, state.i[HFLAGS] & HF_CS64
    bits, other = (64, 32) if wide else (32, 16) if state.i[HFLAGS] & HF_CS32 else (16, 32)
    repeated = False
    while at < 14 and (code[at] in _PREFIXES or (wide and 0x40 <= code[at] < 0x50)):
        repeated |= code[at] in _REPEAT
        if code[at] == _ADDRESS_SIZE:
            bits = other
        at += 1
    opcode = code[at]
    if 0x6C <= opcode <= 0x6F:
        return Emulated(at + 1, RDI if opcode < 0x6E else RSI, repeated, bits)
    if 0xEC <= opcode <= 0xEF:
        return Emulated(at + 1, -1, False, bits)
    if 0xE4 <= opcode <= 0xE7 or (opcode == 0x0F and code[at + 1] in (0xA2, 0x31)):
        return Emulated(at + 2, -1, False, bits)
    return None


def finish(processor: Processor, instruction: Emulated, value: int, size: int, halted: bool) -> None:
    """Do what is left of it, one repetition if it repeats. `value`: what a port has given; -1 where nothing was read.

    `size`: the bytes that went through the port. `halted`: RIP must be right; else it stays at the instruction behind
    the last repetition, too, as the emulator comes there once more to find the counter at zero, and that takes time.
    """
    q = processor.state.q
    if instruction.pointer >= 0:
        if value >= 0:
            _store(processor, instruction.address_bits, value, size)
        _add(q, instruction.pointer, instruction.address_bits, -size if processor.state.i[DF] >> 31 else size)
        if instruction.repeated and (_add(q, RCX, instruction.address_bits, -1) or not halted):
            return
    elif value >= 0:
        mask = (1 << 8 * size) - 1
        q[RAX] = value & mask | (q[RAX] & ~mask & MASK64 if size < 4 else 0)
    q[RIP] += instruction.length


def _store(processor: Processor, bits: int, value: int, size: int) -> None:
    """Write what INS has read to where ES:RDI points; in 64-bit code segments begin at 0."""
    q, i = processor.state.q, processor.state.i
    address = q[RDI] & (1 << bits) - 1
    if not i[HFLAGS] & HF_CS64:
        address = address + q[ES_BASE] & MASK32
    data = (ctypes.c_uint8 * size).from_buffer_copy(value.to_bytes(8, "little"))
    uc.cpu_memory_rw_debug(processor.cpu, address, data, size, 1)


def _add(q: memoryview, register: int, bits: int, step: int) -> int:
    """Add to a register's low 16, 32 or 64 bits, as addresses are counted; what they are then."""
    result = q[register] + step & (1 << bits) - 1
    q[register] = q[register] & ~0xFFFF | result if bits == 16 else result
    return result
