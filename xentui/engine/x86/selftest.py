"""Proof, at every start, that the emulator is the one whose private layout and behaviour the engine relies on.

A few dozen instructions run in 64-bit mode at ring 3 and in 32-bit compatibility mode at ring 1, in machine memory
that no guest has yet; every offset of `state.py` and every trap that the hypervisor lives on is checked. It takes a
few milliseconds. What fails is named, and the engine refuses to run.
"""

from __future__ import annotations

import struct

from xentui.engine.x86 import state as s
from xentui.engine.x86.control_registers import CR4_VALUE
from xentui.engine.x86.cpu import Processor
from xentui.engine.x86.unicorn_api import VERSION, UnicornMismatchError

_TABLES, _GDT, _CODE, _STACK, _END = 0x1000, 0x6000, 0x7000, 0x9000, 0xA000
_UNMAPPED = 0x7000_0000
_CODE64, _DATA64, _CODE32, _DATA32 = 0x08 | 3, 0x10 | 3, 0x18 | 1, 0x20 | 1
_DESCRIPTORS = (0, 0x00AFFB000000FFFF, 0x00CFF3000000FFFF, 0x00CFBB000000FFFF, 0x00CFB3000000FFFF)

# 64-bit, ring 3
_PROGRAM64 = bytes.fromhex(
    "48b88877665544332211"  # mov rax, 0x1122334455667788
    "49c7c47b000000"  # mov r12, 0x7b
    "f9"  # stc
    "cd80"  # int 0x80
    "488b042500000070"  # mov rax, [0x70000000]     #PF, read
    "4889042500000070"  # mov [0x70000000], rax     #PF, write
    "f4"  # hlt                       #GP
    "0f0b"  # ud2                       #UD
    "0fa2"  # cpuid
    "0f31"  # rdtsc
    "0f31"  # rdtsc                     #GP, refused
    "0f34"  # sysenter                  #GP
    "ec"  # in al, dx
    "ee"  # out dx, al                #GP, refused
    "0f05"  # syscall
    "ebfe"  # forever
)
_LOOPS = {
    "one block": bytes.fromhex("ebfe"),  # jmp to itself
    "two blocks": bytes.fromhex("48ffc0 75fb 48ffc0 ebf6"),  # inc rax; jnz; inc rax; jmp
    "an indirect jump": bytes.fromhex("488d0df9ffffff ffe1"),  # lea rcx, [rip - 7]; jmp rcx
    "calls": bytes.fromhex("e802000000 ebf9 c3"),  # call; jmp; ret
    "stores": bytes.fromhex("c74424f801000000 ebf6"),  # mov [rsp - 8], 1; jmp
}
"""64-bit code without an end."""
_SHORT = 50
"""Microseconds that it may go on."""
# 32-bit, ring 1
_PROGRAM32 = bytes.fromhex(
    "6a05"  # push 5
    "58"  # pop eax
    "8cd1"  # mov ecx, ss
    "8ed9"  # mov ds, ecx
    "cd82"  # int 0x82
    "ebfe"  # forever
)
# 64-bit, ring 3, at the end of the code page; what follows may not be executed
_PROGRAM_STOPS = bytes.fromhex(
    "48ffc0"  # inc rax
    "48ffc0"
    "48ffc0"
    "0fa2"  # cpuid
    "48ffc0"
    "48ffc0"
)
_STOPS = _CODE + 0x1000 - len(_PROGRAM_STOPS)
_EXPECTED64 = [
    ("interrupt", 0x80, 20),
    ("exception", 14, 20),
    ("exception", 14, 28),
    ("exception", 13, 36),
    ("invalid opcode", 6, 37),
    ("cpuid", 0, 39),
    ("rdtsc", 0, 41),
    ("rdtsc", 0, 43),
    ("exception", 13, 43),
    ("exception", 13, 45),
    ("in", 0x3F8, 47),
    ("out", 0x3F8, 48),
    ("exception", 13, 48),
    ("syscall", 0, 51),
]


class _Witness:
    """Trap handlers that write down what they see and step over the instruction."""

    def __init__(self, processor: Processor) -> None:
        self.processor, self.state = processor, processor.state
        self.seen: list[tuple[str, int, int]] = []
        self.errors: list[tuple[int, int]] = []
        self.flags = 0
        self.marks = (0, 0)
        self.charge = 0
        """What CPUID costs of the budget."""

    def _saw(self, what: str, number: int, length: int) -> None:
        q = self.state.q
        if what != "cpuid":  # which does not end its block
            self.processor.settle()
        self.seen.append((what, number, q[s.RIP] - _CODE))
        q[s.RIP] += length

    def exception(self, vector: int) -> None:
        if vector == 14 and self.state.i[s.ERROR_CODE] & 16:
            self.seen.append(("fetch", self.state.i[s.ERROR_CODE], self.state.q[s.RIP]))
            self.processor.stop()
            return
        if vector == 14:
            self.errors.append((self.state.i[s.ERROR_CODE], self.state.q[s.CR2]))
        two_bytes = self.state.q[s.RIP] - _CODE in (43, 45)
        self._saw("exception", vector, 8 if vector == 14 else 2 if two_bytes else 1)

    def interrupt(self, vector: int) -> None:
        self.flags = self.processor.read_flags()
        self.marks = (self.state.q[s.RAX], self.state.q[s.R12])
        self._saw("interrupt", vector, 0)
        if vector == 0x82:
            self.processor.stop()

    def syscall(self) -> None:
        self._saw("syscall", 0, 0)
        self.processor.stop()

    def invalid_opcode(self) -> None:
        self._saw("invalid opcode", 6, 2)

    def cpuid(self) -> None:
        self._saw("cpuid", 0, 0)
        self.processor.budget[0] -= self.charge
        self.state.q[s.RDX] = 0x3F8

    def rdtsc(self) -> bool:
        self.seen.append(("rdtsc", 0, self.state.q[s.RIP] - _CODE))
        self.state.q[s.RDX] = 0x3F8
        return self.state.q[s.RIP] == _CODE + 41

    def port_in(self, port: int, size: int) -> int | None:
        self.seen.append(("in", port, self.state.q[s.RIP] - _CODE))
        return 0x5A

    def port_out(self, port: int, size: int, value: int) -> bool:
        self.seen.append(("out", port, self.state.q[s.RIP] - _CODE))
        return False


def _build(ram: memoryview) -> None:
    """Identity-map the first 16 frames for both rings; descriptors, code and a stack behind."""
    for level in range(3):
        struct.pack_into("<Q", ram, _TABLES + 0x1000 * level, _TABLES + 0x1000 * (level + 1) | 7)
    for frame in range(_END >> 12):
        nx = 0 if frame == _CODE >> 12 else 1 << 63
        struct.pack_into("<Q", ram, _TABLES + 0x3000 + 8 * frame, frame << 12 | 7 | nx)
    struct.pack_into("<5Q", ram, _GDT, *_DESCRIPTORS)


def _enter(processor: Processor, ram: memoryview, program: bytes, wide: bool) -> None:
    """Load the program and put the processor at its start, in ring 3 (64-bit) or ring 1 (32-bit)."""
    ram[_CODE : _CODE + len(program)] = program
    q, i = processor.state.q, processor.state.i
    code, data = (_CODE64, _DATA64) if wide else (_CODE32, _DATA32)
    for register, base in zip((s.ES, s.CS, s.SS, s.DS, s.FS, s.GS), range(s.ES_BASE, s.LDT_BASE, 3), strict=True):
        selector = code if register == s.CS else data
        i[register], q[base] = selector, 0
        i[register + s.LIMIT], i[register + s.FLAGS] = s.MASK32, _DESCRIPTORS[selector >> 3] >> 32 & 0xF0FF00
    hflags = i[s.HFLAGS] & ~(s.HF_CPL | s.HF_ADDSEG | s.HF_CS64) | s.HF_CS32 | s.HF_SS32 | s.HF_LMA
    i[s.HFLAGS] = hflags | (s.HF_CS64 | 3 if wide else 1)
    q[s.GDT_BASE], i[s.GDT + s.LIMIT] = _GDT, 39
    q[s.RSP], q[s.RIP], q[s.RAX] = _STACK, _CODE, 0
    processor.write_flags(s.EF_IF)
    processor.flush_code()
    processor.load_cr3(_TABLES)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise UnicornMismatchError(
            f"self-test of the emulator failed: {what}; this engine needs Unicorn {VERSION} for x86-64 Linux: "
            f"pip install --force-reinstall unicorn=={VERSION}"
        )


def run(processor: Processor, ram: memoryview) -> None:
    """Prove the emulator, then leave no trace in `ram` or `processor`. Raises UnicornMismatchError."""
    fresh = processor.state.save()
    q = processor.state.q
    _check((q[s.CR4], q[s.EFER]) == (CR4_VALUE, 0xD01), "control registers lie elsewhere")
    witness = _Witness(processor)
    processor.connect(witness)
    _build(ram)
    _enter(processor, ram, _PROGRAM64, wide=True)
    processor.budget[0] = 1 << 40
    processor.run()
    processor.settle()
    _check(witness.seen == _EXPECTED64, f"traps came as {witness.seen}")
    _check(witness.marks == (0x1122334455667788, 0x7B), "general registers lie elsewhere")
    _check(witness.flags & 0xFD7 == s.EF_IF | s.EF_FIXED | s.EF_CF, f"RFLAGS read as {witness.flags:#x}")
    _check(witness.errors == [(4, _UNMAPPED), (6, _UNMAPPED)], "error codes or CR2 lie elsewhere")
    _check(q[s.RAX] & 0xFF == 0x5A, "IN did not give what its hook returned")
    if processor.counts_code:
        spent = (1 << 40) - processor.budget[0]
        _check(spent == _code_bytes(), f"the code clock counted {spent} bytes where {_code_bytes()} ran")

    witness.seen.clear()
    _enter(processor, ram, _PROGRAM32, wide=False)
    processor.budget[0] = 1 << 40
    processor.run()
    _check(witness.seen == [("interrupt", 0x82, 9)] and q[s.RAX] == 5, "32-bit code in ring 1 ran otherwise")
    _check((q[s.RCX] & 0xFFFF, processor.state.i[s.HFLAGS] & 3) == (_DATA32, 1), "rings or selectors lie elsewhere")

    if processor.counts_code:
        _stop_exactly(processor, ram, witness)
    else:
        _stop_by_alarm(processor, ram)

    ram[:_END] = bytes(_END)
    processor.flush_code()
    processor.state.load(fresh)
    processor.flush_tlb()
    processor.budget[0] = processor.budget[3] = 0
    processor.disconnect()


def _stop_exactly(processor: Processor, ram: memoryview, witness: _Witness) -> None:
    """Stops within a block, behind an instruction that does not end one, and before a page that cannot be fetched."""
    q, budget = processor.state.q, processor.budget
    _enter(processor, ram, _PROGRAM_STOPS, wide=True)
    ram[_STOPS : _STOPS + len(_PROGRAM_STOPS)] = _PROGRAM_STOPS
    q[s.RIP] = _STOPS
    budget[0] = 4
    processor.run()
    where = (q[s.RAX], q[s.RIP] - _STOPS, budget[0])
    _check(where == (2, 6, -2), f"a block of two instructions ended at {where}")
    processor.step()
    where = (q[s.RAX], q[s.RIP] - _STOPS, budget[0])
    _check(where == (3, 9, -5), f"one instruction ended at {where}")
    budget[0], witness.charge = 1000, 2000
    processor.run()
    where = (q[s.RAX], q[s.RIP] - _STOPS, budget[0])
    _check(where == (3, 11, -1002), f"CPUID at the end of its time ended at {where}")
    witness.seen.clear()
    q[s.RAX], budget[0] = 0, 1000
    processor.run()
    _check(
        witness.seen == [("fetch", 0x15, _CODE + 0x1000)] and (q[s.RAX], budget[0]) == (2, 994),
        f"a fetch from the next page faulted as {witness.seen}",
    )


def _stop_by_alarm(processor: Processor, ram: memoryview) -> None:
    """Without the code clock an alarm ends a slice, in the tightest of loops too, and again after it was mended."""
    for what, code in _LOOPS.items():
        _enter(processor, ram, code, wide=True)
        processor.flush_code()
        for _ in range(2):
            processor.run(_SHORT)
            where = processor.state.q[s.RIP] - _CODE
            _check(0 <= where < len(code), f"an alarm did not end {what}, but at {where}")


def _code_bytes() -> int:
    """Bytes of the 64-bit program that execute: all up to `syscall`, less what trapped and was stepped over."""
    stepped_over = 8 + 8 + 1 + 2 + 2 + 2 + 1
    return len(_PROGRAM64) - 4 - stepped_over
