"""PV kernels of a few instructions, put together byte by byte, that do just what a test wants them to do."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from tests.elf_builder import PAGE, Elf
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.core import UVMF_INVLPG
from xentui.engine.xen.abi.sched import SCHEDOP_shutdown

BASE = {32: 0xC000_0000, 64: 0xFFFF_FFFF_8000_0000}
CODE, DATA = 0x10_0000, 0x20_0000
"""Where code and data lie, from BASE on; both are mapped writable and executable."""
MEMORY = 8
"""MiB that are enough for a domain with such a kernel."""
HYPERVISOR = {32: 0xF580_0000, 64: 0xFFFF_8000_0000_0000}
"""Where the hypervisor's slot begins, with the M2P that guests may read."""
UNDEFINED = b"\x0f\x0b"  # ud2
FOREVER = b"\xeb\xfe"  # jmp .

_WIDE_REGISTERS = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8")  # mov rdi, rsi, rdx, r10, r8
_NARROW_REGISTERS = (b"\xbb", b"\xb9", b"\xba", b"\xbe", b"\xbf")  # mov ebx, ecx, edx, esi, edi


class Tiny:
    """A kernel in the making: append instructions to `code`, put data into `data`, then `build`."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.code = bytearray()
        self.data = bytearray()

    def word(self, value: int) -> bytes:
        """A register's worth of bytes, cut to the width."""
        return (value & (1 << self.width) - 1).to_bytes(self.width // 8, "little")

    def place(self, content: bytes) -> int:
        """Put data into the image; its address."""
        self.data += bytes(-len(self.data) % 16)
        self.data += content
        return BASE[self.width] + DATA + len(self.data) - len(content)

    @property
    def here(self) -> int:
        """The address of the next instruction."""
        return BASE[self.width] + CODE + len(self.code)

    def do(self, instructions: bytes) -> Tiny:
        """Append machine code as it is."""
        self.code += instructions
        return self

    def accumulator(self, value: int) -> Tiny:
        """RAX or EAX = value."""
        return self.do((b"\x48\xb8" if self.width == 64 else b"\xb8") + self.word(value))

    def stack(self, value: int) -> Tiny:
        """RSP or ESP = value."""
        return self.do((b"\x48\xbc" if self.width == 64 else b"\xbc") + self.word(value))

    def call(self, number: int, *arguments: int) -> Tiny:
        """A hypercall with up to five arguments in registers."""
        registers = _WIDE_REGISTERS if self.width == 64 else _NARROW_REGISTERS
        for register, value in zip(registers, arguments, strict=False):
            self.do(register + self.word(value))
        self.do(b"\xb8" + (number & 0xFFFF_FFFF).to_bytes(4, "little"))
        return self.do(b"\x0f\x05" if self.width == 64 else b"\xcd\x82")

    def map(self, address: int, entry: int) -> Tiny:
        """update_va_mapping: another page-table entry for a page."""
        halves = (entry,) if self.width == 64 else (entry & 0xFFFF_FFFF, entry >> 32)
        return self.call(nr.HYPERCALL_update_va_mapping, address, *halves, UVMF_INVLPG)

    def traps(self, vectors: Iterable[int], handler: int) -> Tiny:
        """set_trap_table: one handler for all of `vectors`."""
        wide = self.width == 64
        entry, selector = ("<BBH4xQ", 0xE033) if wide else ("<BBHI", 0xE019)
        table = b"".join(struct.pack(entry, vector, 0, selector, handler) for vector in vectors)
        return self.call(nr.HYPERCALL_set_trap_table, self.place(table + bytes(struct.calcsize(entry))))

    def say(self, words: bytes) -> Tiny:
        """A line on the hypervisor's log (console_io)."""
        return self.call(nr.HYPERCALL_console_io, 0, len(words), self.place(words))

    def shut_down(self, reason: int = 0) -> Tiny:
        """End the domain with a SHUTDOWN_* reason; 0 is poweroff."""
        return self.call(nr.HYPERCALL_sched_op, SCHEDOP_shutdown, self.place(reason.to_bytes(4, "little"))).do(FOREVER)

    def build(self) -> bytes:
        """The ELF image."""
        assert len(self.code) <= DATA - CODE
        data = bytes(self.data) + bytes(-len(self.data) % PAGE)
        segments = [(CODE, bytes(self.code), len(self.code)), (DATA, data, len(data) + PAGE)]
        segments = [(at, content, size + -size % PAGE) for at, content, size in segments]
        return Elf(width=self.width, base=BASE[self.width], paddr=CODE, segments=segments).build()

    def write(self, path: Path) -> Path:
        """Write the image to a file."""
        path.write_bytes(self.build())
        return path
