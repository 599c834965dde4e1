"""The beginning of an instruction: prefixes and opcode, as far as the emulation of privileged ones needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.state import CS_BASE, HF_CS64, HFLAGS, MASK32, MASK64, RIP
from xentui.engine.xen import guest_access
from xentui.engine.xen.guest_access import GuestFault

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

MAX_LENGTH = 15

_LEGACY_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3))


class Instruction:
    """An instruction's bytes and how far they have been read."""

    __slots__ = ("at", "data", "opcode", "rex", "wide")

    def __init__(self, data: bytes | memoryview, wide: bool) -> None:
        self.data = data
        self.wide = wide
        """64-bit code."""
        self.at = 0
        self.rex = 0
        self.opcode = self._skip_prefixes()
        """0x0F00 and the second byte for those behind an 0F escape; -1 if the bytes end before it."""

    def byte(self) -> int:
        """The next byte, or -1 at the end."""
        at = self.at
        if at >= len(self.data):
            return -1
        self.at = at + 1
        return self.data[at]

    def _skip_prefixes(self) -> int:
        byte = self.byte()
        while byte in _LEGACY_PREFIXES:
            byte = self.byte()
        if self.wide and byte & 0xF0 == 0x40:
            self.rex = byte
            byte = self.byte()
        if byte != 0x0F:
            return byte
        second = self.byte()
        return -1 if second < 0 else 0x0F00 | second


def fetch(vcpu: Vcpu) -> Instruction:
    """The instruction at RIP, from as many of its bytes as are mapped."""
    wide = bool(vcpu.i[HFLAGS] & HF_CS64)
    address = vcpu.q[RIP] + vcpu.q[CS_BASE] & (MASK64 if wide else MASK32)
    within = min(MAX_LENGTH, 0x1000 - (address & 0xFFF))
    base = vcpu.space.reads.get(address >> 12)
    if base is not None and within == MAX_LENGTH:
        base += address & 0xFFF
        return Instruction(vcpu.ram[base : base + MAX_LENGTH], wide)
    data = b""
    try:
        data = guest_access.read(vcpu, address, within)
        if within < MAX_LENGTH:
            data += guest_access.read(vcpu, address + within, MAX_LENGTH - within)
    except GuestFault:
        return Instruction(data, wide)
    return Instruction(data, wide)
