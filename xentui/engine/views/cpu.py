"""A virtual CPU: registers, code around RIP, stack, memory and chains of pointers, loaded in the processor or not."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from xentui.engine.views import ViewError
from xentui.engine.views.find import (
    GENERAL,
    SEGMENTS,
    address_of,
    is_loaded,
    peek,
    register,
    source_at,
    state_of,
    symbol_at,
    translate,
    vcpu_of,
    word_at,
)
from xentui.engine.x86 import segmentation
from xentui.engine.x86 import state as s
from xentui.engine.x86.paging import NX, RW
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64

if TYPE_CHECKING:
    from xentui.engine.machine import Machine
    from xentui.engine.x86.state import State
    from xentui.engine.xen.domain import Vcpu

VIEWS = ("registers", "code", "stack", "memory")

RUNSTATES = ("running", "runnable", "blocked", "offline")
FLAGS = (
    (s.EF_CF, "CF"),
    (1 << 2, "PF"),
    (1 << 4, "AF"),
    (1 << 6, "ZF"),
    (1 << 7, "SF"),
    (s.EF_TF, "TF"),
    (s.EF_IF, "IF"),
    (s.EF_DF, "DF"),
    (s.EF_OF, "OF"),
    (s.EF_NT, "NT"),
    (s.EF_RF, "RF"),
    (s.EF_AC, "AC"),
    (s.EF_ID, "ID"),
)
"""The flags that mean something to a guest, by their letters (Intel SDM volume 1, 3.4.3)."""
_LONGEST_INSTRUCTION = 15
_CHAIN = 5
_SHORTEST_TEXT = 4


def registers(machine: Machine, domain: int, vcpu: int = 0) -> dict[str, Any]:
    """Every register, what its mode is, and what the hypervisor keeps beside them."""
    who = vcpu_of(machine, domain, vcpu)
    state = state_of(who)
    q, i, flags = state.q, state.i, who.processor.flags_of(state)
    wide = bool(i[s.HFLAGS] & s.HF_CS64)
    layout = LAYOUT64 if who.width == 64 else LAYOUT32
    cr2 = layout.VCPU_INFO_arch_cr2
    names = GENERAL if who.width == 64 else GENERAL[:8]
    return {
        "domain": domain,
        "name": who.domain.name,
        "vcpu": vcpu,
        "vcpus": len(who.domain.vcpus),
        "width": who.width,
        "mode": 64 if wide else 32 if i[s.HFLAGS] & s.HF_CS32 else 16,
        "ring": i[s.HFLAGS] & s.HF_CPL,
        "kernel": who.kernel_mode if who.width == 64 else i[s.HFLAGS] & s.HF_CPL == 1,
        "loaded": is_loaded(who),
        "runstate": "down" if not who.online else RUNSTATES[who.runstate],
        "registers": {_name(who, name): _value(who, state, name) for name in (*names, "rip")},
        "flags": flags,
        "flag_letters": [letters for bit, letters in FLAGS if flags & bit],
        "segments": {name: _segment(state, which) for name, which in SEGMENTS.items()},
        "control": {"cr0": q[s.CR0], "cr2": q[s.CR2], "cr3": q[s.CR3], "cr4": q[s.CR4]},
        "guest_cr2": int.from_bytes(who.info[cr2 : cr2 + who.width // 8], "little"),
        "bases": {"fs": q[s.FS_BASE], "gs": q[s.GS_BASE], "gs of the other mode": who.inactive_gs_base},
        "upcall_pending": who.info[0],
        "upcall_mask": who.info[1],
        "ts": who.cr0_ts,
        "iopl": who.iopl,
        "debug": list(who.debug),
        "symbol": symbol_at(who.domain, q[s.RIP]),
    }


def _name(vcpu: Vcpu, name: str) -> str:
    return name if vcpu.width == 64 else "e" + name[1:]


def _value(vcpu: Vcpu, state: State, name: str) -> int:
    value = register(state, name) or 0
    return value if vcpu.width == 64 else value & s.MASK32


def _segment(state: State, which: int) -> dict[str, Any]:
    """A segment register with what the processor read of its descriptor."""
    selector, flags = state.i[which] & 0xFFFF, state.i[which + s.FLAGS]
    if not flags & segmentation.PRESENT:
        kind = "null"
    elif flags & segmentation.CODE:
        kind = f"code{64 if flags & segmentation.LONG else 32 if flags & segmentation.DEFAULT_BIG else 16}"
    else:
        kind = "data" if flags & segmentation.WRITABLE else "data ro"
    return {
        "selector": selector,
        "ring": selector & 3,
        "dpl": flags >> segmentation.DPL_SHIFT & 3,
        "base": state.q[s.ES_BASE + (which - s.ES) // 2],
        "limit": state.i[which + s.LIMIT],
        "kind": kind,
    }


# --- code ----------------------------------------------------------------------------------------------------------


@cache
def _decoder(mode: int) -> Any:
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    return capstone.Cs(capstone.CS_ARCH_X86, modes[mode])


def code(
    machine: Machine,
    domain: int,
    vcpu: int = 0,
    before: int = 4,
    after: int = 12,
    at: int | str | None = None,
    points: list[tuple[int, str]] | None = None,
) -> list[dict[str, Any]]:
    """Instructions around RIP, or around an address: {address, bytes, text, symbol, target, source, current, asked,
    breakpoint}.

    x86 code cannot be read backwards: what stands before is the longest run of instructions that ends at the address.
    `points`: number and place of breakpoints, beside those that the machine has now; `asked` marks the address.
    """
    who = vcpu_of(machine, domain, vcpu)
    state = state_of(who)
    rip = state.q[s.RIP] if who.width == 64 else state.q[s.RIP] & s.MASK32
    place = rip if at is None else address_of(who, at)
    base = 0 if state.i[s.HFLAGS] & s.HF_CS64 else state.q[s.CS_BASE]
    mode = 64 if state.i[s.HFLAGS] & s.HF_CS64 else 32 if state.i[s.HFLAGS] & s.HF_CS32 else 16
    decoder = _decoder(mode)
    forward = peek(who, place + base, after * _LONGEST_INSTRUCTION)
    lines = list(decoder.disasm_lite(forward, place, after))
    if not lines:
        why = "cannot be decoded" if forward else "is not mapped"
        lines = [(place, min(1, len(forward)), f"({why})", "")]
    marks = _breakpoints(machine, who, points or [])
    found = [_line(who, line, rip, base) for line in _backward(who, decoder, place, base, before) + lines]
    return [{**line, "asked": line["address"] == place, "breakpoint": marks.get(line["address"])} for line in found]


def _breakpoints(machine: Machine, vcpu: Vcpu, points: list[tuple[int, str]]) -> dict[int, int]:
    """Address to number of the breakpoints on code that hold for a vCPU."""
    own = [
        (number, point.what)
        for number, point, _ in vars(machine).get("breakpoints", ())  # made when the first one is set
        if point.kind == "address" and point.domain in (None, vcpu.domain.name)
    ]
    found: dict[int, int] = {}
    for number, what in [*own, *points]:
        try:
            found[address_of(vcpu, what)] = number
        except ViewError:
            continue  # another kernel's symbol
    return found


def _backward(vcpu: Vcpu, decoder: Any, place: int, base: int, count: int) -> list[tuple[int, int, str, str]]:
    """The `count` instructions before `place`."""
    reach = count * 6 + _LONGEST_INSTRUCTION
    for back in range(min(reach, place), 0, -1):
        data = peek(vcpu, place - back + base, back)
        if len(data) < back:
            continue
        lines = list(decoder.disasm_lite(data, place - back))
        if lines and lines[-1][0] + lines[-1][1] == place:
            return lines[-count:] if count else []
    return []


def _line(vcpu: Vcpu, line: tuple[int, int, str, str], rip: int, base: int) -> dict[str, Any]:
    address, size, mnemonic, operands = line
    target = ""
    if operands.startswith("0x") and (mnemonic.startswith("j") or mnemonic in ("call", "loop")):
        target = symbol_at(vcpu.domain, int(operands, 16))
    return {
        "address": address,
        "bytes": peek(vcpu, address + base, size),
        "text": f"{mnemonic} {operands}".rstrip(),
        "symbol": symbol_at(vcpu.domain, address),
        "target": target,
        "source": source_at(vcpu.domain, address),
        "current": address == rip,
    }


# --- memory --------------------------------------------------------------------------------------------------------


def stack(machine: Machine, domain: int, vcpu: int = 0, words: int = 16, at: int | str = "rsp") -> list[dict[str, Any]]:
    """Words from the stack pointer (or an address) on, each followed where it points: {address, chain, end}.

    `chain` is the word, what lies where that points, and so on; `end` says in words what the last one is.
    """
    who = vcpu_of(machine, domain, vcpu)
    state, size = state_of(who), who.width // 8
    start = address_of(who, at)
    pointers = {_value(who, state, name): _name(who, name) for name in reversed(GENERAL[: 16 if size == 8 else 8])}
    rows = []
    for number in range(words):
        address = start + number * size & (s.MASK64 if size == 8 else s.MASK32)
        chain, end = _chain(who, address)
        rows.append({"address": address, "chain": chain, "end": end, "pointed": pointers.get(address, "")})
    return rows


def _chain(vcpu: Vcpu, address: int) -> tuple[list[int], str]:
    """Follow the word at an address."""
    seen, chain = {address}, []
    word = word_at(vcpu, address)
    if word is None:
        return [], "not mapped"
    while True:
        chain.append(word)
        offset, rights = translate(vcpu, word) if word >= 0x1000 else (-1, 0)
        if offset < 0:
            return chain, _number_text(word, vcpu.width // 8)
        if not rights & NX and not rights & RW:
            return chain, symbol_at(vcpu.domain, word) or "code"
        text = _text(peek(vcpu, word, 40))
        if text or word in seen or len(chain) == _CHAIN:
            return chain, text or ("loop" if word in seen else "…")
        seen.add(word)
        following = word_at(vcpu, word)
        if following is None:
            return chain, ""
        word = following


def _number_text(word: int, size: int) -> str:
    """Characters, if a word holds nothing else; else nothing."""
    return _text(word.to_bytes(size, "little"), 3)


def _text(data: bytes, shortest: int = _SHORTEST_TEXT) -> str:
    """The printable beginning of some bytes in quotes, if it is long enough to be meant."""
    length = next((index for index, byte in enumerate(data) if not 32 <= byte < 127), len(data))
    ends = length == len(data) or data[length] in (0, 10, 13)
    return f'"{data[:length].decode("ascii")}"' if length >= shortest and ends else ""


def memory(
    machine: Machine, domain: int, vcpu: int = 0, at: int | str = "rsp", rows: int = 8, width: int = 16
) -> dict[str, Any]:
    """A dump by virtual address: {address, rows: [(address, bytes or None where unmapped)], mfn, flags}."""
    who = vcpu_of(machine, domain, vcpu)
    if rows < 1 or not 1 <= width <= 64:
        raise ViewError("a dump has at least one row, of 1 to 64 bytes")
    start = address_of(who, at)
    mask = s.MASK64 if who.width == 64 else s.MASK32
    dump: list[tuple[int, bytes | None]] = []
    for number in range(rows):
        address = start + number * width & mask
        dump.append((address, peek(who, address, width) or None))
    offset, rights = translate(who, start)
    return {"address": start, "rows": dump, "mfn": offset >> 12 if offset >= 0 else None, "flags": rights}
