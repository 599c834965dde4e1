"""A debugger's hand in a guest: registers and memory changed from outside, whatever the guest's own rights are.

Memory that the hypervisor vouches for (page tables, descriptors, its own frames) is not to be had: `faults.py` breaks
such things on purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.views.find import INDEX, translate
from xentui.engine.x86 import state as s
from xentui.engine.x86.state import State
from xentui.engine.xen.page import DOMID_INVALID, DOMID_XEN, L1, SEG

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

FREE_FLAGS = s.EF_CONDITIONS | s.EF_DF | s.EF_TF | s.EF_AC | s.EF_ID
"""Flags that are the guest's own; the others are the hypervisor's."""
_BASES = {"fs_base": s.FS_BASE, "gs_base": s.GS_BASE}


class PokeError(ValueError):
    """It cannot be written; one line."""


def live_state(vcpu: Vcpu) -> State:
    """The vCPU's registers where they lie: in the processor, or a copy of those put aside, which `keep` puts back."""
    return vcpu.processor.state if vcpu.processor.vcpu is vcpu else State.of(vcpu.saved)


def keep(vcpu: Vcpu, state: State) -> None:
    """Put changed registers back where `live_state` gave a copy."""
    if vcpu.processor.vcpu is not vcpu:
        vcpu.saved = state.save()


def set_flags(state: State, value: int) -> None:
    """RFLAGS in a state, with the condition codes in their computed form."""
    state.i[s.CC_OP], state.q[s.CC_SRC] = s.CC_OP_EFLAGS, value & s.EF_CONDITIONS
    state.i[s.DF] = s.MASK32 if value & s.EF_DF else 1
    state.q[s.EFLAGS] = value & ~(s.EF_CONDITIONS | s.EF_DF) | s.EF_FIXED


def write_register(vcpu: Vcpu, name: str, value: int) -> None:
    """Set a register by its 64-bit or 32-bit name. Raises PokeError."""
    state = live_state(vcpu)
    wide = "r" + name[1:] if name.startswith("e") and len(name) == 3 else name
    if vcpu.boot_registers:
        raise PokeError(f"{vcpu.name} has not begun to run: its registers are still those that it will be given")
    if name in ("eflags", "rflags"):
        old = vcpu.processor.flags_of(state)
        set_flags(state, old & ~FREE_FLAGS | value & FREE_FLAGS)
    elif wide in INDEX and (vcpu.width == 64 or not wide[1:].isdigit()):
        state.q[INDEX[wide]] = value & (s.MASK64 if vcpu.width == 64 else s.MASK32)
    elif name in _BASES and vcpu.width == 64:
        if not value < 1 << 47 and value < (1 << 64) - (1 << 47):
            raise PokeError(f"{value:#x} is not a canonical address")
        state.q[_BASES[name]] = value
    else:
        raise PokeError(f"{name} cannot be written: general registers, the instruction pointer, flags and bases can")
    keep(vcpu, state)


def write_memory(vcpu: Vcpu, address: int, data: bytes) -> None:
    """Write to the guest's memory through its page tables, read-only pages too. Raises PokeError; all or nothing."""
    frames = vcpu.hv.frames
    places: list[int] = []
    for done in range(len(data)):
        offset = places[-1] + 1 if places and (address + done) & 0xFFF else translate(vcpu, address + done)[0]
        if offset < 0:
            raise PokeError(f"{address + done:#x} is not mapped in {vcpu.domain.name}")
        mfn = offset >> 12
        vouched = L1 <= frames.type[mfn] <= SEG and frames.type_count[mfn]
        if vouched or frames.owner[mfn] in (DOMID_XEN, DOMID_INVALID):
            raise PokeError(f"{address + done:#x} is not to be written: {frames.describe(mfn)}")
        places.append(offset)
    for offset, byte in zip(places, data, strict=True):
        vcpu.hv.ram[offset] = byte
    vcpu.processor.flush_code()
