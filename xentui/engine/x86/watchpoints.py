"""Watchpoints on machine memory: who writes here (or reads), and what.

They are Unicorn's memory hooks over the bytes in question, there only while one is set, as any such hook makes every
store (or load) of the processor slow. A hook is called before its access is made. It leaves the instruction there by a
long jump, with nothing of it done; then the instruction runs alone, and the watched bytes of before and after tell what
it did. What the hypervisor writes goes past the processor: `changed` looks for that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from xentui.engine.machine_code import address_of
from xentui.engine.x86 import native
from xentui.engine.x86 import unicorn_api as uc
from xentui.engine.x86.state import CC_OP, RIP

if TYPE_CHECKING:
    from xentui.engine.x86.cpu import Processor

_GRAIN = 16
"""Accesses of an instruction in pieces (CMPXCHG16B, FXSAVE, ...) are met at their first: ranges are rounded to this."""
_STACK_WORDS = 128
"""Where the emulator's stack is searched for the way back into translated code."""


class Access(NamedTuple):
    """An instruction has touched watched memory."""

    rip: int
    """Where the instruction lies."""
    old: bytes
    """The watched bytes before it, and after it."""
    new: bytes


Listener = Callable[[Access], bool]
"""Called when the instruction is done; True stops the processor behind it."""


class Watchpoint:
    """Bytes of machine memory that are watched. `writes`, `reads`: what counts; a write counts if it changes them."""

    def __init__(self, address: int, length: int, writes: bool, reads: bool, listener: Listener) -> None:
        self.address, self.length = address, length
        self.writes, self.reads = writes, reads
        self.listener = listener
        self.value = b""
        self.hooks: list[int] = []


class Watchpoints:
    """The watchpoints of one processor. `ram`: machine memory."""

    def __init__(self, processor: Processor, ram: memoryview) -> None:
        self.processor, self.ram = processor, ram
        self.points: list[Watchpoint] = []
        self._armed = True
        self._read: list[Watchpoint] = []
        self._words = (ctypes.c_uint64 * (native.STACK + 1))()
        self._code = 0

    def insert(self, point: Watchpoint) -> None:
        """Watch."""
        if not self._code:
            hook = uc.MemoryHook(self._accessed)
            self._words[native.PYTHON_HOOK] = address_of(hook)
            self._code = self.processor.machine_code(native.MEMORY_HOOK)
            self.processor.keep += [hook, self._words]
        point.value = self._value(point)
        first = point.address & -_GRAIN
        last = (point.address + point.length - 1) | (_GRAIN - 1)
        for wanted, kind in ((point.writes, uc.HOOK_MEM_WRITE), (point.reads, uc.HOOK_MEM_READ)):
            if wanted:
                data = ctypes.addressof(self._words)
                point.hooks.append(self.processor.add_hook(kind, self._code, data, begin=first, end=last))
        self.points.append(point)
        self.processor.flush_code()

    def remove(self, point: Watchpoint) -> None:
        """No longer watch."""
        self.points.remove(point)
        for hook in point.hooks:
            uc.check(uc.uc_hook_del(self.processor.handle, hook), "removing a hook")
        point.hooks = []
        self.processor.flush_code()

    def changed(self) -> list[tuple[Watchpoint, Access]]:
        """What has changed since the last look and was not the processor's doing."""
        found = []
        for point in self.points:
            old, new = point.value, self._value(point)
            if point.writes and old != new:
                point.value = new
                found.append((point, Access(self.processor.state.q[RIP], old, new)))
        return found

    def _value(self, point: Watchpoint) -> bytes:
        return bytes(self.ram[point.address : point.address + point.length])

    def _accessed(self, _uc: int, kind: int, address: int, size: int, _value: int, _data: int) -> None:
        """The hook: leave the instruction, to run it alone. `kind` is Unicorn's: 16 a read, 17 a write."""
        if not self._armed:
            if kind == uc.MEM_READ:
                self._note_read(address, size)
            return
        try:
            self._restore()
            self._words[native.ARGUMENT] = self.processor.cpu
            self._words[native.FUNCTION] = address_of(uc.cpu_loop_exit_noexc)
            self._words[native.LEAVES] = 1
            self.processor.halt(self.finish)
        except BaseException as error:
            self.processor.failed(error)

    def _note_read(self, address: int, size: int) -> None:
        for point in self.points:
            if point.reads and address < point.address + point.length and point.address < address + size:
                self._read.append(point)

    def _restore(self) -> None:
        """Complete the processor's state in the middle of a block: QEMU's cpu_restore_state needs to be told where.

        That is the return address into translated code, which lies a few words up the stack; RIP, which the emulator
        has stored already, proves it.
        """
        q, i = self.processor.state.q, self.processor.state.i
        rip, cc_op = q[RIP], i[CC_OP]
        for word in (ctypes.c_uint64 * _STACK_WORDS).from_address(self._words[native.STACK]):
            if uc.cpu_restore_state(self.processor.cpu, word, 1):
                if q[RIP] == rip:
                    return
                q[RIP], i[CC_OP] = rip, cc_op

    def finish(self) -> bool:
        """Run the instruction that was left; does any listener want the processor to stop behind it?"""
        rip = self.processor.state.q[RIP]
        self._read.clear()
        for point in self.points:
            if not point.writes:  # nobody has kept track
                point.value = self._value(point)
        self._armed = False
        try:
            self.processor.run_one()
        finally:
            self._armed = True
        stops = False
        for point in list(self.points):
            old, new = point.value, self._value(point)
            point.value = new
            if (point.writes and old != new) or point in self._read:
                stops = point.listener(Access(rip, old, new)) or stops
        return stops
