"""What the views share: finding a domain and a vCPU, the registers of one that is not loaded, memory without a trace.

Looking must change nothing, not even an accessed bit, so that pages are walked here and not by `AddressSpace.walk`.
"""

from __future__ import annotations

import linecache
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from xentui.engine.symbols import symbols_of
from xentui.engine.views import ViewError
from xentui.engine.x86 import state as s
from xentui.engine.x86.paging import FRAME_MASK, L1_SHIFT, L2_SHIFT, L3_SHIFT, L4_SHIFT, PAGE_SIZE, PRESENT, PSE
from xentui.engine.x86.state import State
from xentui.engine.xen.abi.hypercalls import NAMES as HYPERCALLS
from xentui.engine.xen.domain_builder import first_state

if TYPE_CHECKING:
    from xentui.engine.machine import Machine
    from xentui.engine.symbols import Symbols
    from xentui.engine.xen.domain import Domain, Vcpu

VIEWS: tuple[str, ...] = ()

SHIFTS = (L4_SHIFT, L3_SHIFT, L2_SHIFT, L1_SHIFT)
_HYPERCALL_PAGE, _HYPERCALL_STUB = "hypercall_page", 32
_LARGE_PAGE = 1 << L2_SHIFT

GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
INDEX = {
    **{name: index for index, name in enumerate(("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"))},
    **{f"r{number}": number for number in range(8, 16)},
    "rip": s.RIP,
}
"""General registers and RIP to where they lie in a `State`'s words."""
SEGMENTS = {"cs": s.CS, "ss": s.SS, "ds": s.DS, "es": s.ES, "fs": s.FS, "gs": s.GS}
"""Segment registers to where their selectors lie in a `State`'s 32-bit words."""
_TERM = re.compile(r"\s*([+-]?)\s*(0x[0-9a-fA-F]+|\d+|[A-Za-z_.$][\w.$]*)")


def domain_of(machine: Machine, domain: int) -> Domain:
    """A domain by its number. Raises ViewError that says which there are."""
    found = machine.hv.domains.get(domain)
    if found is None:
        there = ", ".join(f"{other.name} ({other.id})" for other in machine.domains)
        raise ViewError(f"domain {domain} does not exist (any more); there is {there or 'none'}")
    return found


def vcpu_of(machine: Machine, domain: int, vcpu: int) -> Vcpu:
    """A vCPU of a domain. Raises ViewError."""
    vcpus = domain_of(machine, domain).vcpus
    if not 0 <= vcpu < len(vcpus):
        raise ViewError(f"domain {domain} has vCPUs 0 to {len(vcpus) - 1}, not {vcpu}")
    return vcpus[vcpu]


# --- registers -----------------------------------------------------------------------------------------------------


def is_loaded(vcpu: Vcpu) -> bool:
    """Are its registers in the processor?"""
    return vcpu.processor.vcpu is vcpu


def state_of(vcpu: Vcpu) -> State:
    """The vCPU's registers as they would be if it ran now: a copy, whether it is loaded, put down or yet to begin."""
    if vcpu.boot_registers:
        return State.of(first_state(vcpu)[0])
    return State.of(vcpu.processor.state.save() if is_loaded(vcpu) else vcpu.saved)


def register(state: State, name: str) -> int | None:
    """A general register or RIP by its 64-bit or 32-bit name; None if there is no such register."""
    name = name.lower().lstrip("$")
    if name in INDEX:
        return int(state.q[INDEX[name]])
    wide = "r" + name[1:]
    if name[:1] == "e" and wide in INDEX and len(name) == 3:
        return int(state.q[INDEX[wide]]) & s.MASK32
    if name == "cr2":
        return int(state.q[s.CR2])
    if name == "cr3":
        return int(state.q[s.CR3])
    return None


def address_of(vcpu: Vcpu, place: int | str) -> int:
    """What an expression like `rsp+16`, `0xc0001000` or `console_write-4` comes to. Raises ViewError."""
    mask = s.MASK64 if vcpu.width == 64 else s.MASK32
    if isinstance(place, int):
        return place & mask
    state, total, at = state_of(vcpu), 0, 0
    while at < len(place.rstrip()):
        match = _TERM.match(place, at)
        if match is None or (at and not match[1]):
            raise ViewError(f"{place!r} is not an address: a number, a register or a symbol, with + and - between")
        sign, word = match[1], match[2]
        if word[0].isdigit():
            value = int(word, 0) if word.startswith("0x") else int(word)
        else:
            found = register(state, word)
            value = symbol_address(vcpu.domain, word) if found is None else found
        total += -value if sign == "-" else value
        at = match.end()
    if not at:
        raise ViewError("an address is a number, a register or a symbol")
    return total & mask


# --- symbols -------------------------------------------------------------------------------------------------------


def _symbols(domain: Domain) -> Symbols | None:
    """The symbols of a domain's kernel: a view asks a hundred times, and the file is looked at once."""
    if domain.kernel not in _KERNELS:
        _KERNELS[domain.kernel] = symbols_of(domain)
    return _KERNELS[domain.kernel]


_KERNELS: dict[Path | None, Symbols | None] = {}


def symbol_address(domain: Domain, name: str) -> int:
    """Where a symbol of the domain's kernel lies. Raises ViewError."""
    symbols = _symbols(domain)
    found = symbols.address(name) if symbols else None
    if found is None:
        raise ViewError(f"{name!r} is neither a register nor a symbol of {domain.name}")
    return found


def symbol_at(domain: Domain, address: int) -> str:
    """`name+0x12` of the symbol that holds an address, of the hypercall page the call; empty where none does."""
    symbols = _symbols(domain)
    place = symbols.place(address) if symbols else None
    if place is None:
        return ""
    name, offset = place
    if name == _HYPERCALL_PAGE and offset < PAGE_SIZE:
        number, offset = divmod(offset, _HYPERCALL_STUB)
        name = f"hypercall {HYPERCALLS.get(number, number)}"
    return f"{name}+{offset:#x}" if offset else name


def source_at(domain: Domain, address: int) -> tuple[str, int, str] | None:
    """(file, line, its text if the file is at hand) of an instruction, where the kernel has DWARF line numbers."""
    symbols = _symbols(domain)
    line = symbols.line(address) if symbols else None
    if line is None or domain.kernel is None:
        return None
    return line.file, line.line, _source_line(line.file, line.line, str(domain.kernel.parent))


@lru_cache(maxsize=4096)
def _source_line(file: str, number: int, folder: str) -> str:
    """A line of a source file, looked for where the kernel was built, and by as much of that path beside it."""
    parts = Path(file).parts
    for path in (Path(file), *(Path(folder, *parts[above:]) for above in range(Path(file).is_absolute(), len(parts)))):
        text = linecache.getline(str(path), number)
        if text:
            return text.strip()
    return ""


# --- memory --------------------------------------------------------------------------------------------------------


def translate(vcpu: Vcpu, address: int) -> tuple[int, int]:
    """(byte offset in machine memory, rights) of a virtual address; offset -1 where nothing is mapped.

    The rights are the last entry's flags, with RW and USER only if every level has them.
    """
    ram64 = vcpu.space.ram64
    index = (vcpu.space.root >> 3) + (address >> L4_SHIFT & 511)
    every = s.MASK64
    for shift in (*SHIFTS[1:], 0):
        if not 0 <= index < len(ram64):
            return -1, 0
        entry = ram64[index]
        every &= entry
        if not entry & PRESENT:
            return -1, 0
        rights = entry & ~6 | every & 6
        if not shift or (shift == L1_SHIFT and entry & PSE):
            size = 0x1000 if not shift else _LARGE_PAGE
            offset = (entry & FRAME_MASK & -size) + (address & size - 1)
            return (offset, rights) if offset >> 3 < len(ram64) else (-1, 0)
        index = ((entry & FRAME_MASK) >> 3) + (address >> shift & 511)
    return -1, 0


def peek(vcpu: Vcpu, address: int, size: int) -> bytes:
    """Up to `size` bytes at a virtual address, as far as pages are mapped without a gap."""
    parts, wrap = [], s.MASK64 if vcpu.width == 64 else s.MASK32
    while size > 0:
        offset, _ = translate(vcpu, address & wrap)
        if offset < 0:
            break
        take = min(size, 0x1000 - (address & 0xFFF))
        parts.append(vcpu.ram[offset : offset + take])
        address += take
        size -= take
    return b"".join(parts)


def word_at(vcpu: Vcpu, address: int) -> int | None:
    """The guest's `unsigned long` at a virtual address; None where it cannot be read."""
    size = vcpu.width // 8
    data = peek(vcpu, address, size)
    return int.from_bytes(data, "little") if len(data) == size else None
