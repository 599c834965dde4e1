"""The control registers of the emulated processor, as 64-bit Xen sets them: long mode, paging, NX, SYSCALL, SSE."""

from __future__ import annotations

import ctypes

from xentui.engine.x86 import unicorn_api as uc
from xentui.engine.x86.state import DR6, DR7, NO_EXCEPTION, OLD_EXCEPTION, State

CR0_VALUE = 0x8005_0033  # PG AM WP NE ET MP PE
CR4_VALUE = 0x0000_0620  # OSXMMEXCPT OSFXSR PAE
EFER_VALUE = 0x0000_0D01  # NXE LMA LME SCE
_MSR_EFER = 0xC000_0080


class _Msr(ctypes.Structure):
    _fields_ = (("number", ctypes.c_uint32), ("value", ctypes.c_uint64))


def set_control_registers(handle: int, state: State) -> None:
    """Bring a new emulator to where a hypervisor has it when its first guest runs."""
    cr4, cr0 = ctypes.c_uint64(CR4_VALUE), ctypes.c_uint64(CR0_VALUE)
    efer = _Msr(_MSR_EFER, EFER_VALUE)
    for register, value in ((uc.REG_CR4, cr4), (uc.REG_MSR, efer), (uc.REG_CR0, cr0)):
        uc.check(uc.uc_reg_write(handle, register, ctypes.byref(value)), "writing a control register")
    state.q[DR6], state.q[DR7] = 0xFFFF_0FF0, 0x400
    state.i[OLD_EXCEPTION] = NO_EXCEPTION
