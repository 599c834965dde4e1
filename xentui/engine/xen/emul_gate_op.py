"""Far calls and jumps through a 32-bit guest's call gates (Xen: pv/emul-gate-op.c).

No guest may enter a ring through a gate by itself: on a 64-bit hypervisor the processor takes 64-bit gates only. So
every call gate of a guest's has DPL 0 (descriptor_check.py), its use is #GP with the gate's selector as error code,
and what the processor would have done is done here, into the rings that are the guest's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Instruction as Emulated
from xentui.engine.trace import Kind
from xentui.engine.x86 import segmentation as seg
from xentui.engine.x86.exceptions import PFEC_WRITE, X86_EXC_GP, X86_EXC_NP, X86_EXC_SS, X86_EXC_TS
from xentui.engine.x86.state import CS, CS_BASE, MASK32, RIP, RSP, SS
from xentui.engine.xen import descriptor_tables, guest_access, segment_registers, traps
from xentui.engine.xen.emul_priv_op import instruction_done
from xentui.engine.xen.guest_access import GuestFault
from xentui.engine.xen.write_decode import Decoder, Undecodable, Write

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

_MAX_LENGTH = 15
_KERNEL_RING = 1
_CALL, _JUMP = 0x9A, 0xEA
_EXPAND_DOWN = 1 << 10
"""Of data segments; in a code segment the bit means conforming."""


class _Fault(Exception):
    """The guest's own exception instead: a vector and an error code."""

    def __init__(self, vector: int, error_code: int) -> None:
        super().__init__(vector, error_code)
        self.vector, self.error_code = vector, error_code


class _FarDecoder(Decoder):
    """Decodes the four instructions that can name a call gate."""

    def far(self, vcpu: Vcpu, default: int) -> tuple[bool, int]:
        """(Is it a jump?, the selector that it names); raises Undecodable, or GuestFault for its memory operand.

        `default`: bytes of an operand in this code segment, 4 or 2.
        """
        self.operand = default
        self.address_bits = 8 * default
        write = Write()
        opcode = self._prefixes(write)
        if default == 2 and 0x66 in self.code[: self.at - 1]:
            self.operand = 4
        if opcode in (_CALL, _JUMP):
            self.signed(self.operand)
            return opcode == _JUMP, self.signed(2) & 0xFFFF
        if opcode != 0xFF or self.address_bits == 16:
            raise Undecodable
        field = self._modrm(write)
        if field not in (3, 5):
            raise Undecodable
        selector = guest_access.read(vcpu, write.address + self.operand & MASK32, 2)
        return field == 5, int.from_bytes(selector, "little")


def emulate_gate_op(vcpu: Vcpu, error_code: int) -> None:
    """At a 32-bit guest's #GP with a selector: go through the call gate that it names, or give the guest its fault."""
    try:
        _through_gate(vcpu, error_code)
    except _Fault as fault:
        traps.inject(vcpu, fault.vector, fault.error_code)


def _through_gate(vcpu: Vcpu, error_code: int) -> None:
    """The whole of it; raises _Fault."""
    refused = _Fault(X86_EXC_GP, error_code)
    ring = vcpu.i[CS] & 3
    target, offset, dpl, present, parameters = _read_gate(vcpu, error_code)
    if dpl < ring:
        raise refused
    if not present:
        raise _Fault(X86_EXC_NP, error_code)
    try:
        jump, named, length = _decode(vcpu)
    except Undecodable:
        raise refused from None
    except GuestFault as fault:
        traps.inject_page_fault(vcpu, fault.address, 0)
        return
    if named & ~3 != error_code or dpl < named & 3:
        raise refused
    inner = _check_target(vcpu, target, offset, jump, ring)
    rip, back = vcpu.q[RIP], vcpu.q[RIP] + length & MASK32
    if jump:
        target |= ring
    elif inner < ring:
        target |= inner
        if inner != _KERNEL_RING:
            raise refused  # the inner stack is known of the kernel's ring only
        if not _push_inner(vcpu, error_code, parameters, back):
            return
    else:
        target |= ring
        if not _push_same(vcpu, error_code, ring, back):
            return
    _record(vcpu, jump, target, offset, rip)
    ss = vcpu.kernel_ss if target & 3 != ring else vcpu.i[SS]
    if target & 3 == ring:
        entered = segment_registers.load_code_segment(vcpu, target, ring)
    else:
        entered = segment_registers.enter_ring1(vcpu, target, ss)
    if entered:
        instruction_done(vcpu, offset)
    else:
        vcpu.q[RIP] = offset
        traps.return_fault(vcpu, target, ss)


# --- the gate and what it leads to -------------------------------------------------------------------------------


def _read_gate(vcpu: Vcpu, selector: int) -> tuple[int, int, int, bool, int]:
    """A call gate: target selector without RPL, offset, the DPL that the guest gave it, present?, parameters."""
    entries = vcpu.ldt_entries if selector & 4 else vcpu.gdt_entries
    words = descriptor_tables.lookup(vcpu, selector) if selector >= 4 and selector >> 3 < entries else None
    if words is None:
        raise _Fault(X86_EXC_GP, selector)
    low, high = words
    if high & (seg.DPL_MASK | seg.NOT_SYSTEM | seg.TYPE_MASK) != seg.TYPE_CALL_GATE:
        raise _Fault(X86_EXC_GP, selector)
    offset = low & 0xFFFF | high & 0xFFFF_0000
    return low >> 16 & 0xFFFC, offset, low >> 16 & 3, bool(high & seg.PRESENT), high & 0x1F


def _decode(vcpu: Vcpu) -> tuple[bool, int, int]:
    """(Is the instruction at RIP a jump?, the selector that it names, its length); raises Undecodable, GuestFault."""
    words = _segment(vcpu, vcpu.i[CS] & 0xFFFF)
    if words is None or words[2] & (seg.NOT_SYSTEM | seg.PRESENT | seg.CODE) != seg.NOT_SYSTEM | seg.PRESENT | seg.CODE:
        raise Undecodable
    start = vcpu.q[RIP] + vcpu.q[CS_BASE] & MASK32
    code = b""
    for count in (_MAX_LENGTH, 0x1000 - (start & 0xFFF)):
        try:
            code = guest_access.read(vcpu, start, min(count, _MAX_LENGTH))
            break
        except GuestFault:
            continue
    decoder = _FarDecoder(code, vcpu.q, False)
    jump, selector = decoder.far(vcpu, 4 if words[2] & seg.DEFAULT_BIG else 2)
    return jump, selector, decoder.at


def _segment(vcpu: Vcpu, selector: int) -> tuple[int, int, int] | None:
    """Base, limit and flags of the segment that a selector names; None for null and missing ones."""
    words = descriptor_tables.lookup(vcpu, selector) if selector >= 4 else None
    return seg.parse(*words) if words else None


def _check_target(vcpu: Vcpu, selector: int, offset: int, jump: bool, ring: int) -> int:
    """The DPL of the code segment that the gate leads to, if it may be entered so."""
    found = _segment(vcpu, selector)
    if found is None:
        raise _Fault(X86_EXC_GP, selector)
    _, limit, flags = found
    dpl = flags >> seg.DPL_SHIFT & 3
    is_code = flags & (seg.NOT_SYSTEM | seg.CODE) == seg.NOT_SYSTEM | seg.CODE
    inward = not jump or bool(flags & seg.CONFORMING)
    if not is_code or (dpl > ring if inward else dpl != ring):
        raise _Fault(X86_EXC_GP, selector)
    if not flags & seg.PRESENT:
        raise _Fault(X86_EXC_NP, selector)
    if offset > limit:
        raise _Fault(X86_EXC_GP, 0)
    return dpl


# --- stacks ------------------------------------------------------------------------------------------------------


def _fits(flags: int, limit: int, top: int, size: int) -> bool:
    """Do `size` bytes below `top` lie in a stack segment? (check_stack_limit)"""
    bottom, last = top - size & MASK32, top - 1 & MASK32
    return bottom < last and (bottom > limit if flags & _EXPAND_DOWN else last <= limit)


def _writable(flags: int) -> bool:
    need = seg.NOT_SYSTEM | seg.WRITABLE
    return flags & (need | seg.CODE) == need


def _push_inner(vcpu: Vcpu, error_code: int, parameters: int, back: int) -> bool:
    """Frame and parameters on the kernel's own stack; False if that was a page fault of the guest's."""
    q, i = vcpu.q, vcpu.i
    ss, top = vcpu.kernel_ss, vcpu.kernel_sp
    found = _segment(vcpu, ss)
    flags = found[2] if found else 0
    if found is None or ss & 3 != _KERNEL_RING or flags >> seg.DPL_SHIFT & 3 != _KERNEL_RING or not _writable(flags):
        raise _Fault(X86_EXC_TS, ss & ~3)
    size = 16 + 4 * parameters
    if not flags & seg.PRESENT or not _fits(flags, found[1], top, size):
        raise _Fault(X86_EXC_SS, ss & ~3)
    words = [i[SS] & 0xFFFF, q[RSP] & MASK32]
    if parameters:
        taken = _parameters(vcpu, error_code, parameters)
        if taken is None:
            return False
        words += taken
    words += [i[CS] & 0xFFFF, back]
    if not _push(vcpu, found[0] + top & MASK32, words, error_code):
        return False
    q[RSP] = top - size & MASK32
    return True


def _parameters(vcpu: Vcpu, error_code: int, count: int) -> list[int] | None:
    """The words that the caller has pushed for the gate, the first one first; None: a page fault of the guest's."""
    ss, top, ring = vcpu.i[SS] & 0xFFFF, vcpu.q[RSP] & MASK32, vcpu.i[CS] & 3
    found = _segment(vcpu, ss)
    if found is None or found[2] >> seg.DPL_SHIFT & 3 != ring or not _writable(found[2]):
        raise _Fault(X86_EXC_GP, error_code)
    if not _fits(found[2], found[1], top + 4 * count & MASK32, 4 * count):
        raise _Fault(X86_EXC_GP, error_code)
    where = found[0] + top & MASK32
    if not guest_access.handle_okay(vcpu, where, 4 * count):
        raise _Fault(X86_EXC_GP, error_code)
    try:
        data = guest_access.read(vcpu, where, 4 * count)
    except GuestFault as fault:
        traps.inject_page_fault(vcpu, fault.address, 0)
        return None
    return [int.from_bytes(data[at : at + 4], "little") for at in range(4 * count - 4, -4, -4)]


def _push_same(vcpu: Vcpu, error_code: int, ring: int, back: int) -> bool:
    """CS and EIP on the stack that is in use; False if that was a page fault of the guest's."""
    q, i = vcpu.q, vcpu.i
    found = _segment(vcpu, i[SS] & 0xFFFF)
    if found is None or found[2] >> seg.DPL_SHIFT & 3 != ring:
        raise _Fault(X86_EXC_GP, error_code)
    top = q[RSP] & MASK32
    if not _fits(found[2], found[1], top, 8):
        raise _Fault(X86_EXC_SS, 0)
    if not _push(vcpu, found[0] + top & MASK32, [i[CS] & 0xFFFF, back], error_code):
        return False
    q[RSP] = top - 8 & MASK32
    return True


def _push(vcpu: Vcpu, top: int, words: list[int], error_code: int) -> bool:
    """Words below linear address `top`, the first one highest; False if that was a page fault of the guest's."""
    size = 4 * len(words)
    if top < size or not guest_access.handle_okay(vcpu, top - size, size):
        raise _Fault(X86_EXC_GP, error_code)
    for number, word in enumerate(words, 1):
        try:
            guest_access.write_u32(vcpu, top - 4 * number, word)
        except GuestFault as fault:
            traps.inject_page_fault(vcpu, fault.address, PFEC_WRITE)
            return False
    return True


def _record(vcpu: Vcpu, jump: bool, selector: int, offset: int, rip: int) -> None:
    hv = vcpu.hv
    kind = Emulated.FAR_JUMP if jump else Emulated.FAR_CALL
    hv.put(hv.clock.now(), rip, Kind.EMULATED, vcpu.id, vcpu.domain.id, kind, offset, selector, 0, 0, 0)
