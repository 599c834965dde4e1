"""What a debugger asks: registers by gdb's names, memory by the guest's page tables, and why the machine stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.views.find import GENERAL, SEGMENTS, peek, register, state_of, vcpu_of
from xentui.engine.x86 import state as s

if TYPE_CHECKING:
    from xentui.engine.machine import Machine

VIEWS = ("registers", "memory", "stopped")


def registers(machine: Machine, domain: int, vcpu: int = 0) -> dict[str, int]:
    """The registers of a vCPU as gdb calls them."""
    who = vcpu_of(machine, domain, vcpu)
    state = state_of(who)
    wide = who.width == 64
    names = (*GENERAL, "rip") if wide else tuple("e" + name[1:] for name in (*GENERAL[:8], "rip"))
    found = {name: register(state, name) or 0 for name in names}
    found["eflags"] = who.processor.flags_of(state)
    found |= {name: state.i[which] & 0xFFFF for name, which in SEGMENTS.items()}
    if wide:
        found |= {"fs_base": state.q[s.FS_BASE], "gs_base": state.q[s.GS_BASE]}
    return found


def memory(machine: Machine, domain: int, vcpu: int, address: int, length: int) -> bytes:
    """Bytes at a virtual address, as far as pages are mapped."""
    return peek(vcpu_of(machine, domain, vcpu), address, length)


def stopped(machine: Machine) -> dict[str, Any] | None:
    """The breakpoint that stopped the machine: its number, why in words, and whether memory was touched."""
    found = machine.stopped
    return None if found is None else {"number": found.number, "text": found.text, "record": found.record}
