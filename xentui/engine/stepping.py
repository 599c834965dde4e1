"""Steps that are more than an instruction: over a call, out of a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.breakpoints import ADDRESS, Breakpoint
from xentui.engine.messages import Place
from xentui.engine.run_loop import Stop
from xentui.engine.views import find
from xentui.engine.x86.state import CS_BASE, HF_CS64, HFLAGS, MASK32, MASK64, RAX, RIP, RSP

if TYPE_CHECKING:
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Vcpu

_MOST_BYTES = 15
_CALL_SIZES = range(2, 9)
_IRET = 23
"""The hypercall by which a guest's kernel returns from what was bounced to it."""


def point_behind(machine: Machine) -> Breakpoint | None:
    """Where to run to for a step over the current instruction; None: it is a plain one, to be stepped.

    That is behind a call, a system call or hypercall, and a repeated string instruction, in the same vCPU, and with no
    more on its stack than now, so that a function that calls itself is not mistaken for its own return.
    """
    vcpu = machine.current
    if vcpu is None:
        return None
    instruction = _decode(vcpu)
    if instruction is None or not _goes_away(instruction):
        return None
    mask = MASK64 if vcpu.width == 64 else MASK32
    behind = vcpu.q[RIP] + vcpu.q[CS_BASE] + instruction.size & mask
    return Breakpoint(
        ADDRESS, f"{behind:#x}", vcpu.domain.name, vcpu.id, condition=f"rsp >= {vcpu.q[RSP]:#x}", temporary=True
    )


def step_over(machine: Machine) -> str:
    """Execute one instruction; what it calls runs to its return. Stop.STEP then, or what stopped the machine before."""
    point = point_behind(machine)
    if point is None:
        return machine.step()
    number = machine.breakpoints.add(point)
    reason = machine.run()
    if reason == Stop.BREAKPOINT and machine.stopped is not None and machine.stopped.number == number:
        machine.stopped = None
        return Stop.STEP
    if any(number == other for other, _, _ in machine.breakpoints):
        machine.breakpoints.remove(number)
    return reason


def place(machine: Machine) -> Place | None:
    """Where the vCPU stands whose registers are loaded; None: none has run yet."""
    vcpu = machine.current
    if vcpu is None:
        return None
    here = vcpu.q[RIP] + vcpu.q[CS_BASE] & (MASK64 if vcpu.width == 64 else MASK32)
    found, instruction = Place(vcpu.domain.id, vcpu.id, here, 0, vcpu.q[RSP]), _decode(vcpu)
    if instruction is None:
        return found
    calls = []
    for size in _CALL_SIZES:
        before = _decode(vcpu, here - size)
        if before is not None and before.size == size and _goes_away(before):
            calls.append(here - size)
    return found._replace(
        size=instruction.size,
        repeated=instruction.mnemonic.startswith("rep"),
        returns=_returns(instruction, vcpu.q[RAX]),
        calls=tuple(calls),
    )


def _returns(instruction: Any, rax: int) -> bool:
    """Does it go back to where something was called or interrupted? The hypercall `iret` does."""
    if instruction.mnemonic.startswith(("ret", "iret", "sysret")):
        return True
    return instruction.mnemonic in ("syscall", "int") and rax & MASK32 == _IRET


def _decode(vcpu: Vcpu, address: int | None = None) -> Any:
    """The instruction at an address, by default at RIP, decoded; None where there is none."""
    from capstone import CS_ARCH_X86, CS_MODE_32, CS_MODE_64, Cs

    decoder = Cs(CS_ARCH_X86, CS_MODE_64 if vcpu.i[HFLAGS] & HF_CS64 else CS_MODE_32)
    decoder.detail = True
    if address is None:
        address = vcpu.q[RIP] + vcpu.q[CS_BASE]
    return next(decoder.disasm(find.peek(vcpu, address, _MOST_BYTES), address, 1), None)


def _goes_away(instruction: Any) -> bool:
    """Does control come back behind it only after other instructions, or the same one, have run?"""
    from capstone import CS_GRP_CALL, CS_GRP_INT

    repeated = instruction.mnemonic.startswith(("rep", "loop"))
    return (
        repeated
        or instruction.mnemonic in ("syscall", "sysenter")
        or instruction.group(CS_GRP_CALL)
        or (instruction.group(CS_GRP_INT))
    )
