"""The engine's own machine code: hooks that the emulator calls without entering Python.

Each is position-independent and gets its data behind the hook's last argument. The counters of the block hook are the
one structure that the rest of the engine reads; its words are named here.
"""

from __future__ import annotations

import ctypes
import mmap

# --- the block hook's structure, in 64-bit words ------------------------------------------------------------------
BUDGET = 0
"""Bytes of code that may still run, signed; the hook stops the processor below zero."""
STOP_FUNCTION = 1
BLOCK_ADDRESS, BLOCK_SIZE = 2, 3
"""The block that was begun last: linear address, bytes."""
HALT = 4
"""Not 0: stop at the next block. Byte 0 is the processor's own, byte 1 is set from outside (`PAUSE_BYTE`)."""
EXEMPT_BUDGET, EXEMPT_ADDRESS = 5, 6
"""The block at this address may run although it must stop, if it leaves just this budget."""
ENV = 7
"""The address of the processor's state."""
BLOCK_WORDS = 8
PAUSE_BYTE = 8 * HALT + 1
LATE_BYTE = 8 * HALT + 2
"""Set when an alarm has sounded where code is not counted: a trap that is being taken is the last of its slice."""
NO_BUDGET = 1 << 62
"""A budget that no block leaves: nothing is exempt."""

#   mov edx,edx; mov [rcx+16],rsi; mov [rcx+24],rdx; sub [rcx],rdx; js 1f; cmp dword [rcx+32],0; jne 1f; ret
# 1:mov rax,[rcx]; cmp rax,[rcx+40]; jne 2f; cmp rsi,[rcx+48]; jne 2f; ret
# 2:mov rax,[rcx+56]; cmp dword [rax+4*CC_OP],1; jne 3f; and qword [rax+8*CC_SRC],EF_CONDITIONS
# 3:jmp [rcx+8]
# The last but one line: after CMPXCHG8B and 16B CC_SRC may hold more than condition codes (QEMU's translator forgets to
# store cc_op before it calls their helper), which the emulator on its way out would take for flags, TF among them.
BLOCK_HOOK = bytes.fromhex(
    "89d2 48897110 48895118 482911 7807 83792000 7501 c3 488b01 483b4128 7507 483b7130 7501 c3"
    "488b4138 83b8a800000001 750b 4881a098000000d5080000 ff6108"
)

# The emulator never checks IN and OUT against IOPL or a permission bitmap; it only calls a hook, which must return.
# RDTSC, checked against CR4.TSD before its hook is called, is never refused by the emulator: TSD stays clear. Nor do
# these and CPUID end their block, and a block that must end there cannot be told so.
# So the hook is this: call the Python one; if that has set `leaves`, call a function that leaves the instruction by a
# long jump (raise #GP(0) as the processor would, or go on with a new block), no Python frame in between. The
# structure behind the last argument is {Python hook, function's first argument, function, leaves}.
#   push rbx; mov rbx,rcx (OUT: r8, RDTSC and CPUID: rsi); call [rbx]; cmp byte [rbx+24],0; jne +2; pop rbx; ret
#   mov byte [rbx+24],0; mov rdi,[rbx+8]; mov esi,13; xor edx,edx; call [rbx+16]
_IO_TAIL = "ff13 807b1800 7502 5b c3 c6431800 488b7b08 be0d000000 31d2 ff5310"
IN_HOOK = bytes.fromhex("53 4889cb" + _IO_TAIL)
OUT_HOOK = bytes.fromhex("53 4c89c3" + _IO_TAIL)
SKIP_HOOK = bytes.fromhex("53 4889f3" + _IO_TAIL)
"""For the hooks that replace their instruction: RDTSC and CPUID."""
#   For memory accesses, which have it in r9; the stack's pointer is stored too: mov [rbx+32],rsp
MEMORY_HOOK = bytes.fromhex("53 4c89cb 48896320" + _IO_TAIL)
PYTHON_HOOK, ARGUMENT, FUNCTION, LEAVES, STACK = range(5)

# SYSENTER does nothing on the emulator; with no target set (SYSENTER_CS is 0) it is #GP(0) on a processor.
#   mov rax,[rsi+16]; mov rdi,[rsi+8]; mov esi,13; xor edx,edx; jmp rax
SYSENTER_HOOK = bytes.fromhex("488b4610 488b7e08 be0d000000 31d2 ffe0")

# A signal handler (signal, siginfo, context): siginfo's value points to {function, argument}.
#   mov rax,[rsi+24]; mov rdi,[rax+8]; jmp [rax]
SIGNAL_HANDLER = bytes.fromhex("488b4618 488b7808 ff20")
# mov byte [rdi],1; ret
SET_BYTE = bytes.fromhex("c60701 c3")

EXCP_HLT = 0x10001
"""QEMU's number for "halted", with which the emulator returns."""


def halt_processor(exception_index: int, cpu_exit: int, late: int) -> bytes:
    """A signal handler's function that gets a CPUState and lets the emulator end at the next block, as if for HLT.

    `uc_emu_stop` would not do: it sets `stop_request` at once, and Unicorn passes over all but the first of its
    instruction hooks while that is set, so that an RDTSC in the rest of the block would read the host's counter. An
    exception that is being handled at the moment keeps its number: overwritten, it would reach the hook as no vector at
    all. Nor does this one last where another comes before the block ends. So the byte at `late` is set besides, which
    the hooks of traps look at when they have done.
    """
    #   mov rax,late; mov byte [rax],1
    #   cmp dword [rdi+exception_index],-1; jne +10; mov dword [rdi+exception_index],EXCP_HLT; mov rax,cpu_exit; jmp rax
    return b"\x48\xb8%b\xc6\x00\x01\x83\xbf%b\xff\x75\x0a\xc7\x87%b%b\x48\xb8%b\xff\xe0" % (
        late.to_bytes(8, "little"),
        exception_index.to_bytes(4, "little"),
        exception_index.to_bytes(4, "little"),
        EXCP_HLT.to_bytes(4, "little"),
        cpu_exit.to_bytes(8, "little"),
    )


class MachineCode:
    """A page of memory that holds instructions; it lives as long as this object. `address` is where they begin."""

    def __init__(self, code: bytes) -> None:
        self._page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(code)
        self._anchor = ctypes.c_char.from_buffer(self._page)
        self.address = ctypes.addressof(self._anchor)
