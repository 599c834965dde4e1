"""IN, OUT and their string forms trap as on a processor whose IOPL forbids them: #GP(0) at the instruction.

Unicorn runs them at every ring and calls a hook in place of the device. The hook here is a few bytes of x86-64 that
raise the exception with the emulator's own function. It has to be native code: that function leaves through the
emulator's longjmp, which must not cross Python's frames. Before it calls the hook, Unicorn brings RIP and the flags
up to date, so that the exception is exact.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

from xentui.engine.x86.exceptions import X86_EXC_GP
from xentui.engine.x86.unicorn_api import lib

INS_SYSENTER = 700
"""UC_X86_INS_SYSENTER: it too does nothing without a hook, and is #GP(0) where its MSRs are not set up."""


class PortTrap:
    """The native hook for one processor; `address` is its callback, good for every instruction that shall be #GP(0).

    `env`: address of the processor's state (State.address). Keep the object as long as the hook is installed.
    """

    def __init__(self, env: int) -> None:
        raise_exception = ctypes.cast(lib.raise_exception_err_x86_64, ctypes.c_void_p).value or 0
        self._page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(_code(env, raise_exception))
        self._anchor = ctypes.c_char.from_buffer(self._page)
        self.address = ctypes.addressof(self._anchor)


def _code(env: int, raise_exception: int) -> bytes:
    """raise_exception_err(env, #GP, 0), whatever the hook's own arguments."""
    return b"".join(
        (
            b"\x48\xbf" + struct.pack("<Q", env),  # mov rdi, env
            b"\xbe" + struct.pack("<I", X86_EXC_GP),  # mov esi, 13
            b"\x31\xd2",  # xor edx, edx
            b"\x48\xb8" + struct.pack("<Q", raise_exception),  # mov rax, raise_exception_err
            b"\xff\xe0",  # jmp rax
        )
    )
