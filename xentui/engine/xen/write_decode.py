"""Decode the instructions with which kernels write page-table entries, and say what they would do.

A small part of what Xen's x86_emulate knows: every common way to store, exchange or change 1 to 8 bytes of memory.
What is not here is the guest's own page fault, as it is on Xen for what its emulator does not know. Intel SDM
volume 2, chapter 2 (prefixes, ModR/M, SIB) and the instructions' own pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.state import (
    CS_BASE,
    DS_BASE,
    EF_CF,
    EF_DF,
    EF_OF,
    ES_BASE,
    FS_BASE,
    GS_BASE,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    SS_BASE,
)

if TYPE_CHECKING:
    from collections.abc import Callable

EF_PF, EF_AF, EF_ZF, EF_SF = 1 << 2, 1 << 4, 1 << 6, 1 << 7
EF_ARITHMETIC = EF_CF | EF_PF | EF_AF | EF_ZF | EF_SF | EF_OF

_SEGMENTS = {0x26: ES_BASE, 0x2E: CS_BASE, 0x36: SS_BASE, 0x3E: DS_BASE, 0x64: FS_BASE, 0x65: GS_BASE}
_ALU = ("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp")
_MOV_STORES = (b"\x48\x89", b"\x49\x89", b"\x4c\x89", b"\x4d\x89")
_BITS = {4: "bt", 5: "bts", 6: "btr", 7: "btc"}
_BT_OPCODES = {0xAB: "bts", 0xB3: "btr", 0xBB: "btc"}


class Undecodable(Exception):
    """Not an instruction that this decoder knows as a write to memory."""


class Write:
    """A decoded instruction: `name` writes `size` bytes at linear address `address`."""

    __slots__ = ("address", "immediate", "length", "lock", "name", "register", "repeat", "size", "string_size")

    def __init__(self) -> None:
        self.name = ""
        """mov, xchg, cmpxchg, cmpxchg8b, xadd, one of the ALU and bit operations, not, neg, inc, dec, stos, movs."""
        self.address = 0
        self.size = 0
        self.length = 0
        self.register = -1
        """The other operand, if it is a register: number 0 to 15, or 16 + n for the high bytes AH to BH."""
        self.immediate = 0
        self.lock = False
        self.repeat = False
        self.string_size = 0
        """Bits of the address registers of a string instruction."""


class Decoder:
    """Decode one instruction; `wide`: 64-bit code. `q` are the processor's registers (x86/state.py)."""

    def __init__(self, code: bytes, q: memoryview, wide: bool) -> None:
        self.code = code
        self.q = q
        self.wide = wide
        self.at = 0
        self.rex = 0
        self.operand = 4
        self.address_bits = 64 if wide else 32
        self.segment = -1

    def byte(self) -> int:
        if self.at >= len(self.code):
            raise Undecodable
        self.at += 1
        return self.code[self.at - 1]

    def signed(self, size: int) -> int:
        if self.at + size > len(self.code):
            raise Undecodable
        self.at += size
        return int.from_bytes(self.code[self.at - size : self.at], "little", signed=True)

    def decode(self) -> Write:
        """The instruction; raises Undecodable."""
        write = Write()
        code = self.code
        if self.wide and code[:2] in _MOV_STORES and len(code) > 2 and code[2] < 0x40 and code[2] & 7 not in (4, 5):
            # nearly always, mov of a register to [register]: the rest of this module in short
            rex, modrm = code[0], code[2]
            write.name, write.size, write.length = "mov", 8, 3
            write.register = modrm >> 3 | (rex & 4) << 1
            write.address = self.q[modrm & 7 | (rex & 1) << 3]
            return write
        opcode = self._prefixes(write)
        if opcode == 0x0F:
            self._two_bytes(write, self.byte())
        else:
            self._one_byte(write, opcode)
        write.length = self.at
        return write

    def _prefixes(self, write: Write) -> int:
        """Take the prefixes; returns the byte behind them, the opcode."""
        while True:
            byte = self.byte()
            if byte == 0x66:
                self.operand = 2
            elif byte == 0x67:
                self.address_bits >>= 1
                if self.address_bits == 16:
                    raise Undecodable
            elif byte == 0xF0:
                write.lock = True
            elif byte in (0xF2, 0xF3):
                write.repeat = True
            elif byte in _SEGMENTS:
                if not self.wide or byte >= 0x64:
                    self.segment = _SEGMENTS[byte]
            else:
                break
        if self.wide and byte & 0xF0 == 0x40:
            self.rex = byte
            byte = self.byte()
        if self.rex & 8:
            self.operand = 8
        return byte

    # --- operands ----------------------------------------------------------------------------------------------

    def _modrm(self, write: Write, immediate: int = 0) -> int:
        """Take ModR/M, SIB and displacement of a memory operand into `write.address`; returns the reg field.

        `immediate`: bytes that follow them, which count for RIP-relative addresses.
        """
        modrm = self.byte()
        mode, rm = modrm >> 6, modrm & 7
        if mode == 3:
            raise Undecodable
        segment = DS_BASE
        if rm == 4:
            base, segment = self._sib(mode)
        elif rm == 5 and mode == 0:
            base = self.signed(4)
            if self.wide:
                base += self.q[16] + self.at + immediate
        else:
            number = rm | (self.rex & 1) << 3
            base = self.q[number]
            if number == 5:
                segment = SS_BASE
        if mode == 1:
            base += self.signed(1)
        elif mode == 2:
            base += self.signed(4)
        write.address = self._linear(base, segment)
        return modrm >> 3 & 7

    def _sib(self, mode: int) -> tuple[int, int]:
        """Take a SIB byte; returns base plus scaled index, and the default segment."""
        sib = self.byte()
        index = sib >> 3 & 7 | (self.rex & 2) << 2
        number = sib & 7 | (self.rex & 1) << 3
        segment = SS_BASE if number in (4, 5) else DS_BASE
        if sib & 7 == 5 and mode == 0:
            base, segment = self.signed(4), DS_BASE
        else:
            base = self.q[number]
        if index != 4:
            base += self.q[index] << (sib >> 6)
        return base, segment

    def _linear(self, offset: int, segment: int) -> int:
        """An offset in a segment as a linear address. 64-bit code has flat segments but for FS and GS."""
        offset &= (1 << self.address_bits) - 1
        if self.segment >= 0:
            return offset + self.q[self.segment] & (_MASK64 if self.wide else _MASK32)
        if self.wide:
            return offset
        return offset + self.q[segment] & _MASK32

    def _register(self, field: int, size: int) -> int:
        """The number of the register that a reg field names; see Write.register."""
        number = field | (self.rex & 4) << 1
        if size == 1 and not self.rex and number >= 4:
            return 16 + number - 4
        return number

    def _size(self, opcode: int) -> int:
        """Bytes of the operand: odd opcodes have the operand size, even ones bytes."""
        return self.operand if opcode & 1 else 1

    def _with_register(self, write: Write, name: str, opcode: int) -> None:
        write.name, write.size = name, self._size(opcode)
        write.register = self._register(self._modrm(write), write.size)

    def _with_immediate(self, write: Write, opcode: int, immediate_size: int) -> int:
        """Operands of a group with an immediate; returns the reg field, which chooses the operation."""
        write.size = self._size(opcode)
        field = self._modrm(write, immediate_size)
        write.immediate = self.signed(immediate_size)
        return field

    # --- opcodes -----------------------------------------------------------------------------------------------

    def _one_byte(self, write: Write, opcode: int) -> None:
        size = self._size(opcode)
        if opcode < 0x38 and opcode & 6 == 0:
            self._with_register(write, _ALU[opcode >> 3], opcode)
        elif opcode in (0x80, 0x81, 0x83):
            field = self._with_immediate(write, opcode, 1 if opcode != 0x81 else min(size, 4))
            write.name = _ALU[field]
        elif opcode in (0x86, 0x87):
            self._with_register(write, "xchg", opcode)
        elif opcode in (0x88, 0x89):
            self._with_register(write, "mov", opcode)
        elif opcode in (0xC6, 0xC7):
            if self._with_immediate(write, opcode, min(size, 4)):
                raise Undecodable
            write.name = "mov"
        elif opcode in (0xA2, 0xA3):
            width = self.address_bits // 8
            write.address = self._linear(self.signed(width), DS_BASE)
            write.name, write.size, write.register = "mov", size, RAX
        elif opcode in (0xAA, 0xAB, 0xA4, 0xA5):
            self._string(write, "stos" if opcode >= 0xAA else "movs", size)
        elif opcode in (0xF6, 0xF7, 0xFE, 0xFF):
            write.size = size
            names = {2: "not", 3: "neg"} if opcode < 0xFE else {0: "inc", 1: "dec"}
            write.name = names.get(self._modrm(write), "")
        if write.name in ("", "cmp"):
            raise Undecodable

    def _two_bytes(self, write: Write, opcode: int) -> None:
        if opcode in _BT_OPCODES:
            self._with_register(write, _BT_OPCODES[opcode], 1)
            self._move_to_bit(write)
        elif opcode == 0xBA:
            write.name = _BITS.get(self._with_immediate(write, 1, 1), "bt")
            write.immediate &= 8 * write.size - 1
            if write.name == "bt":
                raise Undecodable
        elif opcode in (0xB0, 0xB1):
            self._with_register(write, "cmpxchg", opcode)
        elif opcode in (0xC0, 0xC1):
            self._with_register(write, "xadd", opcode)
        elif opcode == 0xC3 and self.operand >= 4:
            self._with_register(write, "mov", opcode)
        elif opcode == 0xC7 and not self.rex & 8:
            if self._modrm(write) != 1:
                raise Undecodable
            write.name, write.size = "cmpxchg8b", 8
        else:
            raise Undecodable

    def _move_to_bit(self, write: Write) -> None:
        """A bit number in a register counts from the operand on, in both directions: go to its word."""
        bits = 8 * write.size
        number = read_register(self.q, write.register, write.size)
        if number >> (bits - 1):
            number -= 1 << bits
        mask = _MASK64 if self.wide else _MASK32
        write.address = write.address + (number // bits) * write.size & mask
        write.immediate, write.register = number % bits, -1

    def _string(self, write: Write, name: str, size: int) -> None:
        write.name, write.size, write.string_size = name, size, self.address_bits
        target = self.q[RDI] & ((1 << self.address_bits) - 1)
        write.address = target if self.wide else target + self.q[ES_BASE] & _MASK32
        if name == "movs":
            write.immediate = self._linear(self.q[RSI], DS_BASE)  # where it reads


_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1


# --- registers and arithmetic --------------------------------------------------------------------------------------


def read_register(q: memoryview, number: int, size: int) -> int:
    """The low `size` bytes of a register, or one of AH to BH (16 to 19)."""
    if number >= 16:
        return q[number - 16] >> 8 & 0xFF
    value: int = q[number] & ((1 << 8 * size) - 1)
    return value


def write_register(q: memoryview, number: int, size: int, value: int) -> None:
    """Set the low `size` bytes of a register; 32-bit values clear the upper half, as the processor does."""
    if number >= 16:
        q[number - 16] = q[number - 16] & ~0xFF00 | (value & 0xFF) << 8
    elif size >= 4:
        q[number] = value & ((1 << 8 * size) - 1)
    else:
        mask = (1 << 8 * size) - 1
        q[number] = q[number] & ~mask | value & mask


def _result_flags(value: int, size: int) -> int:
    """PF, ZF and SF of a result."""
    flags = EF_PF if (value & 0xFF).bit_count() & 1 == 0 else 0
    if not value:
        flags |= EF_ZF
    if value >> (8 * size - 1):
        flags |= EF_SF
    return flags


def add(old: int, operand: int, carry: int, size: int) -> tuple[int, int]:
    """Sum and flags."""
    mask = (1 << 8 * size) - 1
    total = old + operand + carry
    new = total & mask
    flags = _result_flags(new, size) | (total > mask) | (old ^ operand ^ new) & EF_AF
    if (old ^ new) & (operand ^ new) & (mask + 1 >> 1):
        flags |= EF_OF
    return new, flags


def subtract(old: int, operand: int, borrow: int, size: int) -> tuple[int, int]:
    """Difference and flags."""
    mask = (1 << 8 * size) - 1
    total = old - operand - borrow
    new = total & mask
    flags = _result_flags(new, size) | (total < 0) | (old ^ operand ^ new) & EF_AF
    if (old ^ operand) & (old ^ new) & (mask + 1 >> 1):
        flags |= EF_OF
    return new, flags


def _logic(new: int, size: int) -> tuple[int, int]:
    return new, _result_flags(new, size)


ARITHMETIC: dict[str, Callable[[int, int, int, int], tuple[int, int]]] = {
    "add": lambda old, operand, carry, size: add(old, operand, 0, size),
    "adc": add,
    "sub": lambda old, operand, carry, size: subtract(old, operand, 0, size),
    "sbb": subtract,
    "and": lambda old, operand, carry, size: _logic(old & operand, size),
    "or": lambda old, operand, carry, size: _logic(old | operand, size),
    "xor": lambda old, operand, carry, size: _logic(old ^ operand, size),
}
"""Operation to a function of old value, operand, carry and size that gives the new value and all six flags."""


def step_string(q: memoryview, write: Write, flags: int) -> bool:
    """Move the registers of a string instruction on by one element; is it finished?"""
    step = -write.size if flags & EF_DF else write.size
    size = write.string_size // 8
    for number in (RDI, RSI) if write.name == "movs" else (RDI,):
        write_register(q, number, size, q[number] + step)
    if not write.repeat:
        return True
    left = (q[RCX] & ((1 << write.string_size) - 1)) - 1
    write_register(q, RCX, size, left)
    return left == 0


def register_pair(q: memoryview, high: int, low: int) -> int:
    """EDX:EAX or ECX:EBX as one value."""
    value: int = (q[high] & _MASK32) << 32 | q[low] & _MASK32
    return value


COMPARED, REPLACEMENT = (RDX, RAX), (RCX, RBX)
"""The register pairs of cmpxchg8b."""
