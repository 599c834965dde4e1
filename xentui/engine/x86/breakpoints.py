"""Breakpoints in guest code, at linear addresses: QEMU's own, which its translator builds into the blocks it makes.

They cost nothing where none is, and little where they are: setting one drops translated code. Memory is not written,
so that no guest sees them. QEMU's CPU breakpoints arrive as vector 1 with RIP at the instruction, like the processor's
fault for DR0 to DR3; BP_GDB ones would leave the emulator in a loop. An instruction runs past its own breakpoint as a
block of one, made while QEMU's list is hidden; blocks of one never hold a breakpoint.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from xentui.engine.x86 import unicorn_api as uc
from xentui.engine.x86.state import CPU_ENV

Listener = Callable[[int], bool]
"""Called with the linear address when an instruction there is about to be executed; True stops the processor there."""

BP_CPU = 0x20
_NO_LIST = memoryview(bytearray(8)).cast("Q")


class CodeBreakpoints:
    """The breakpoints of one processor, given by its CPUState. `addresses`: who listens at each."""

    def __init__(self, cpu: int) -> None:
        self._cpu = cpu
        self.addresses: dict[int, list[Listener]] = {}
        self._head = _NO_LIST
        self._hidden: int | None = None

    def insert(self, address: int, listener: Listener) -> None:
        """Call `listener` whenever an instruction at `address` is about to be executed."""
        listeners = self.addresses.setdefault(address, [])
        listeners.append(listener)
        if len(listeners) == 1:
            hidden = self.show()
            entry = ctypes.c_void_p()
            if uc.cpu_breakpoint_insert(self._cpu, address, BP_CPU, ctypes.byref(entry)):
                raise uc.UnicornMismatchError(f"a breakpoint at {address:#x} cannot be set")
            self.found(entry.value or 0)
            if hidden:
                self.hide()

    def remove(self, address: int, listener: Listener) -> None:
        """No longer call it. Raises KeyError or ValueError where it is not set."""
        listeners = self.addresses[address]
        listeners.remove(listener)
        if not listeners:
            del self.addresses[address]
            hidden = self.show()
            uc.cpu_breakpoint_remove(self._cpu, address, BP_CPU)
            if hidden:
                self.hide()

    def hit(self, address: int) -> bool:
        """An instruction is about to be executed: tell who listens; does any want the processor to stop?"""
        stops = False
        for listener in list(self.addresses.get(address, ())):
            stops = listener(address) or stops
        return stops

    def hide(self) -> None:
        """Let the translator find no breakpoints, until `show`."""
        if self._hidden is None:
            self._hidden, self._head[0] = self._head[0], 0

    def show(self) -> bool:
        """Let the translator find them again; were they hidden?"""
        if self._hidden is None:
            return False
        self._head[0], self._hidden = self._hidden, None
        return True

    def found(self, first: int) -> None:
        """A breakpoint has been put into QEMU's list, at this address: now the list can be found."""
        if self._head is _NO_LIST:
            self._head = self._find_list(first)

    def _find_list(self, first: int) -> memoryview:
        """CPUState's pointer to the first breakpoint, once there is one."""
        words = memoryview((ctypes.c_uint64 * (CPU_ENV // 8)).from_address(self._cpu)).cast("B").cast("Q")
        found = [index for index, word in enumerate(words) if word == first]
        if len(found) != 1:
            raise uc.UnicornMismatchError(
                f"Unicorn's list of breakpoints is not found; install it with: pip install unicorn=={uc.VERSION}"
            )
        return words[found[0] : found[0] + 1]
