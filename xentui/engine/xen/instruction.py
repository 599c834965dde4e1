"""The beginning of an instruction: prefixes and opcode, as far as the emulation of privileged ones needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.segmentation import DEFAULT_BIG
from xentui.engine.x86.state import CS, CS_BASE, DS, ES, FLAGS, FS, GS, HF_CS64, HFLAGS, MASK32, MASK64, RIP, SS
from xentui.engine.xen import guest_access
from xentui.engine.xen.guest_access import GuestFault

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

MAX_LENGTH = 15

UNHANDLED, DONE, AGAIN, INJECTED = range(4)
"""What became of an instruction: the guest gets its #GP; it is done; a part is, and it goes on with the rest; another
exception was injected in its place."""

_SEGMENTS = {0x26: ES, 0x2E: CS, 0x36: SS, 0x3E: DS, 0x64: FS, 0x65: GS}
_OPERAND_SIZE, _ADDRESS_SIZE, _REPEAT = 0x66, 0x67, (0xF2, 0xF3)


class Instruction:
    """An instruction's bytes, its prefixes, and how far it has been read. Sizes are in bytes."""

    __slots__ = (
        "address_size",
        "at",
        "breakpoints",
        "data",
        "opcode",
        "operand_size",
        "repeat",
        "rex",
        "segment",
        "wide",
    )

    def __init__(self, data: bytes, size: int) -> None:
        self.data = data
        self.at = 0
        self.rex = 0
        self.wide = size == 8
        """64-bit code."""
        self.breakpoints = 0
        """Breakpoints that it hit, as bits of DR6."""
        self.segment = DS
        """The segment register of its memory operand, as an index of x86/state.py."""
        self.repeat = False
        self.address_size = size
        self.operand_size = 2 if size == 2 else 4
        self.opcode = self._prefixes(size)
        """0x0F00 and the second byte for those behind an 0F escape; -1 if the bytes end before it."""

    def byte(self) -> int:
        """The next byte, or -1 at the end."""
        at = self.at
        if at >= len(self.data):
            return -1
        self.at = at + 1
        return self.data[at]

    def _prefixes(self, size: int) -> int:
        byte = self.byte()
        while True:
            if byte in _SEGMENTS:
                self.segment = _SEGMENTS[byte]
            elif byte == _OPERAND_SIZE:
                self.operand_size = 4 if size == 2 else 2
            elif byte == _ADDRESS_SIZE:
                self.address_size = 2 if size == 4 else 4
            elif byte in _REPEAT:
                self.repeat = True
            else:
                break
            byte = self.byte()
        if size == 8 and byte & 0xF0 == 0x40:
            self.rex = byte
            byte = self.byte()
        if byte != 0x0F:
            return byte
        second = self.byte()
        return -1 if second < 0 else 0x0F00 | second


def code_size(vcpu: Vcpu) -> int:
    """8, 4 or 2: addresses of the code segment that is running, in bytes."""
    if vcpu.i[HFLAGS] & HF_CS64:
        return 8
    return 4 if vcpu.i[CS + FLAGS] & DEFAULT_BIG else 2


def fetch(vcpu: Vcpu) -> Instruction:
    """The instruction at RIP, from as many of its bytes as are mapped."""
    size = code_size(vcpu)
    address = vcpu.q[RIP] + vcpu.q[CS_BASE] & (MASK64 if size == 8 else MASK32)
    within = min(MAX_LENGTH, 0x1000 - (address & 0xFFF))
    data = b""
    try:
        data = guest_access.read(vcpu, address, within)
        if within < MAX_LENGTH:
            data += guest_access.read(vcpu, address + within, MAX_LENGTH - within)
    except GuestFault:
        return Instruction(data, size)
    return Instruction(data, size)
