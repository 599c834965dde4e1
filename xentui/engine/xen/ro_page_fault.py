"""Writable page tables: a kernel's plain write to one of its L1 tables, made as if the table were writable memory.

The table is mapped read-only, so the write faults; the hypervisor decodes the instruction, checks the new entry as
mmu_update would, and carries the instruction out (Xen: pv/ro-page-fault.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_PAGE_TABLE_UPDATE
from xentui.engine.trace import Kind
from xentui.engine.x86.paging import FRAME_MASK, PRESENT, RW
from xentui.engine.x86.state import CS_BASE, EF_CF, EF_RF, EF_TF, EFLAGS, RAX, RDX, RIP
from xentui.engine.xen import guest_access, refusals, unchecked
from xentui.engine.xen.abi.core import VMASST_TYPE_writable_pagetables
from xentui.engine.xen.guest_access import GuestFault
from xentui.engine.xen.mm import l1_table
from xentui.engine.xen.page import L1, MOST_REFERENCES, VALIDATED, WRITABLE
from xentui.engine.xen.page_type import get_page_from_l1e, put_page_from_l1e
from xentui.engine.xen.pte import L1_DISALLOW, adjust_l1
from xentui.engine.xen.write_decode import (
    ARITHMETIC,
    COMPARED,
    EF_ARITHMETIC,
    EF_ZF,
    REPLACEMENT,
    Decoder,
    Undecodable,
    Write,
    add,
    read_register,
    register_pair,
    step_string,
    subtract,
    write_register,
)

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

COST_EMULATION = 500
"""Virtual nanoseconds to decode an instruction and carry it out."""

_PF_RESERVED, _PF_FETCH = 1 << 3, 1 << 4
_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
_MAX_LENGTH = 15
_DR6_BS = 1 << 14


def emulate(vcpu: Vcpu, address: int, error_code: int) -> bool:
    """Carry out the kernel's write at RIP if it faulted on an L1 table of the guest's own; was it one?

    False leaves everything as it was: the page fault is the guest's. Called for kernel-mode writes to present pages.
    A domain without the validator (unchecked.py) may write to its tables of every level, asked or not.
    """
    domain, hv = vcpu.domain, vcpu.hv
    assisted = domain.vm_assist >> VMASST_TYPE_writable_pagetables & 1 or not domain.validated
    if not assisted or error_code & (_PF_RESERVED | _PF_FETCH):
        return False
    if domain.validated:
        table = l1_table(vcpu, address)
        where = table + (address >> 12 & 511) if table >= 0 else -1
    else:
        where = vcpu.space.entry_at(address)
    entry = hv.ram64[where] if where >= 0 else 0
    if entry & (PRESENT | RW) != PRESENT or not guest_access.handle_okay(vcpu, address, 1):
        return False
    mfn = (entry & FRAME_MASK) >> 12
    frames = hv.frames
    if (
        mfn >= frames.count
        or frames.owner[mfn] != domain.id
        or not (unchecked.is_table(domain, mfn, entry) if not domain.validated else _is_l1(domain, mfn))
    ):
        return False
    if domain.validated and _store(vcpu, address, mfn):
        hv.clock.charge(COST_EMULATION + COST_PAGE_TABLE_UPDATE)
        return True
    try:
        write = Decoder(_fetch(vcpu), vcpu.q, vcpu.width == 64).decode()
        # only naturally aligned writes within the page that faulted
        if (write.address ^ address) >> 12 or write.address & (write.size - 1):
            return False
        done = _execute(vcpu, write, (mfn << 12) + (write.address & 0xFFF))
    except (Undecodable, GuestFault):
        return False
    if done:
        hv.clock.charge(COST_EMULATION + COST_PAGE_TABLE_UPDATE)
    return done


def _is_l1(domain: Domain, mfn: int) -> bool:
    """Is a frame of the domain's an L1 table in use? Xen emulates writes to no other."""
    frames = domain.hv.frames
    return frames.type[mfn] == L1 and bool(frames.flags[mfn] & VALIDATED)


def _store(vcpu: Vcpu, address: int, table: int) -> bool:
    """The usual store of a 64-bit kernel in short: `mov` of a register to [register], with a usual new entry.

    False where anything is out of the ordinary, and then nothing has been done.
    """
    domain, q = vcpu.domain, vcpu.q
    rip = q[RIP]
    base, within = vcpu.space.reads.get(rip >> 12), rip & 0xFFF
    if vcpu.width != 64 or base is None or within > 0xFFD or address & 7 or q[EFLAGS] & (EF_TF | EF_RF):
        return False
    hv = domain.hv
    rex, opcode, modrm = hv.ram[base + within : base + within + 3]
    if opcode != 0x89 or rex & 0xFA != 0x48 or modrm >= 0x40 or modrm & 7 in (4, 5):
        return False
    if q[modrm & 7 | (rex & 1) << 3] != address:
        return False
    new, index = q[modrm >> 3 | (rex & 4) << 1], table << 9 | (address & 0xFFF) >> 3
    old = hv.ram64[index]
    if new & PRESENT:
        owner, types, type_count, ref_count, _ = hv.frames.columns
        mfn = (new & FRAME_MASK) >> 12
        if new & L1_DISALLOW or mfn >= len(owner) or owner[mfn] != domain.id or ref_count[mfn] >= MOST_REFERENCES:
            return False
        if new & RW:
            if types[mfn] != WRITABLE:
                return False
            type_count[mfn] += 1
        ref_count[mfn] += 1
        new = adjust_l1(new)
    if index in domain.lazy_nx:
        domain.lazy_nx.discard(index)  # its NX is the guest's own from now on
    hv.ram64[index] = new
    if old & PRESENT:
        put_page_from_l1e(hv, old)
    hv.put(hv.clock.now(), rip, Kind.PTE_WRITE, vcpu.id, domain.id, 1, address, index << 3, old, new, 0)
    q[RIP] = rip + 3
    return True


def _fetch(vcpu: Vcpu) -> bytes:
    """The bytes of the instruction at RIP, as many as there can be; raises GuestFault."""
    if vcpu.width == 64:
        start = vcpu.q[RIP]
    else:
        start = vcpu.q[CS_BASE] + vcpu.q[RIP] & _MASK32
    try:
        return guest_access.read(vcpu, start, _MAX_LENGTH)
    except GuestFault:
        return guest_access.read(vcpu, start, min(_MAX_LENGTH, 0x1000 - (start & 0xFFF)))


def _execute(vcpu: Vcpu, write: Write, target: int) -> bool:
    """Carry out a decoded write to machine address `target`; False if the new entry is refused."""
    q, name, size = vcpu.q, write.name, write.size
    mask = (1 << 8 * size) - 1
    word = vcpu.hv.ram64[target >> 3]
    shift = (target & 7) * 8
    old = word >> shift & mask
    new, flags, changed = old, 0, 0
    operand = read_register(q, write.register, size) if write.register >= 0 else write.immediate & mask
    given = vcpu.read_flags()
    if name in ARITHMETIC:
        new, flags = ARITHMETIC[name](old, operand, given & EF_CF, size)
        changed = EF_ARITHMETIC
    elif name in ("mov", "xchg"):
        new = operand
    elif name in ("bts", "btr", "btc"):
        bit = 1 << write.immediate
        new = old | bit if name == "bts" else old & ~bit if name == "btr" else old ^ bit
        flags, changed = old >> write.immediate & 1, EF_CF
    elif name == "cmpxchg":
        _, flags = subtract(q[RAX] & mask, old, 0, size)
        new, changed = operand if flags & EF_ZF else old, EF_ARITHMETIC
    elif name == "cmpxchg8b":
        if register_pair(q, *COMPARED) == old:
            new, flags = register_pair(q, *REPLACEMENT), EF_ZF
        changed = EF_ZF
    elif name == "xadd":
        new, flags = add(old, operand, 0, size)
        changed = EF_ARITHMETIC
    elif name == "stos":
        new = q[RAX] & mask
    elif name == "movs":
        try:
            new = int.from_bytes(guest_access.read(vcpu, write.immediate, size), "little")
        except GuestFault as fault:
            from xentui.engine.xen.traps import inject_page_fault

            inject_page_fault(vcpu, fault.address, 0)
            return True
    elif name == "not":
        new = ~old & mask
    elif name == "neg":
        new, flags = subtract(0, old, 0, size)
        changed = EF_ARITHMETIC
    else:  # inc and dec leave CF alone
        new, flags = add(old, 1, 0, size) if name == "inc" else subtract(old, 1, 0, size)
        changed = EF_ARITHMETIC & ~EF_CF
    # Xen's emulator does not write back what a read-modify-write instruction leaves as it was
    plain = name in ("mov", "stos", "movs")
    if plain or new != old or (name == "xchg"):
        compared = write.lock or name in ("xchg", "cmpxchg8b")
        if not _update(vcpu, write, target, word & ~(mask << shift) | new << shift, not compared):
            return False
    _retire(vcpu, write, old, given, given & ~changed | flags & changed)
    return True


def _update(vcpu: Vcpu, write: Write, target: int, entry: int, plain: bool) -> bool:
    """Check a new L1 entry and write it; False if it is refused (Xen: ptwr_emulated_update).

    `plain`: no locked operation.
    """
    domain, hv = vcpu.domain, vcpu.hv
    index = target >> 3
    if not domain.validated:
        return not unchecked.write_entry(vcpu, index, entry, hv.frames.type[index >> 9])
    old = hv.ram64[index]
    if entry & PRESENT:
        error = get_page_from_l1e(domain, entry, index << 3, old)
        if error:
            refusals.record(vcpu, error)
            if not (domain.width == 32 and write.size == 4 and target & 4 and plain):
                return False
            # a PAE entry written upper half first: the lower half, written next, will make it present again
            entry &= ~PRESENT
        elif domain.width == 64:
            entry = adjust_l1(entry)
    if write.size == 8 and write.name in ("mov", "stos", "movs"):
        domain.lazy_nx.discard(index)  # its NX is the guest's own from now on
    hv.ram64[index] = entry
    if old & PRESENT:
        put_page_from_l1e(hv, old)
    hv.put(
        hv.clock.now(), vcpu.q[RIP], Kind.PTE_WRITE, vcpu.id, domain.id, 1,
        write.address, index << 3, old, entry, 0,
    )  # fmt: skip
    return True


def _retire(vcpu: Vcpu, write: Write, old: int, given: int, flags: int) -> None:
    """Registers, flags and RIP as the instruction leaves them; `given` and `flags`: before and after."""
    q, size = vcpu.q, write.size
    finished = True
    if write.name in ("xchg", "xadd"):
        write_register(q, write.register, size, old)
    elif write.name == "cmpxchg" and not flags & EF_ZF:
        write_register(q, RAX, size, old)
    elif write.name == "cmpxchg8b" and not flags & EF_ZF:
        q[RAX], q[RDX] = old & _MASK32, old >> 32
    elif write.name in ("stos", "movs"):
        finished = step_string(q, write, given)
    if finished:
        q[RIP] = q[RIP] + write.length & (_MASK64 if vcpu.width == 64 else _MASK32)
    vcpu.processor.write_flags(flags & ~EF_RF)
    if given & EF_TF:
        from xentui.engine.xen.traps import inject

        vcpu.debug[6] |= _DR6_BS
        inject(vcpu, 1)
