"""Breakpoints of the debug registers, which the emulator itself never makes fire (Intel SDM volume 3, 17.2 and 17.3).

Those on instructions are QEMU's own, built into the blocks that it translates: vector 1 with RIP at the instruction,
unless EFLAGS.RF is set. Those on data are watchpoints on machine memory (watchpoints.py), which need the code clock.
Who loads a vCPU sets them, and takes them out for one without: what is set makes the processor slower.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from xentui.engine.x86 import unicorn_api as uc
from xentui.engine.x86.breakpoints import BP_CPU
from xentui.engine.x86.exceptions import X86_EXC_DB
from xentui.engine.x86.state import CS_BASE, EF_RF, EFLAGS, MASK64, RIP

if TYPE_CHECKING:
    from xentui.engine.x86.cpu import Processor
    from xentui.engine.x86.watchpoints import Watchpoint, Watchpoints


class DebugRegisters:
    """What the debug registers of the vCPU that is loaded make the processor look out for."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self.addresses: set[int] = set()
        """Linear addresses of instructions."""
        self.exception: Callable[[int], None] = lambda vector: None
        """Who takes the exception where the processor is about to run a single instruction (`Processor.step`)."""
        self._watchpoints: Watchpoints | None = None

    def watch_code(self, addresses: set[int]) -> None:
        """Raise vector 1 at these instructions, and at no others."""
        breakpoints, cpu = self._processor.breakpoints, self._processor.cpu
        hidden = breakpoints.show()
        for address in self.addresses - addresses:
            uc.cpu_breakpoint_remove(cpu, address, BP_CPU)
        for address in sorted(addresses - self.addresses):
            entry = ctypes.c_void_p()
            if uc.cpu_breakpoint_insert(cpu, address, BP_CPU, ctypes.byref(entry)):
                raise uc.UnicornMismatchError(f"a breakpoint at {address:#x} cannot be set")
            breakpoints.found(entry.value or 0)
        self.addresses = set(addresses)
        if hidden:
            breakpoints.hide()

    def watch_data(self, points: Iterable[Watchpoint], ram: memoryview) -> None:
        """Watch these, and no others; `ram` is machine memory. Without the code clock nothing is watched."""
        new = list(points) if self._processor.counts_code else []
        watchpoints = self._watchpoints
        if watchpoints is None:
            if not new:
                return
            from xentui.engine.x86.watchpoints import Watchpoints  # few guests need them, every start would load them

            watchpoints = self._watchpoints = Watchpoints(self._processor, ram)
        for point in list(watchpoints.points):
            watchpoints.remove(point)
        for point in new:
            watchpoints.insert(point)

    @property
    def in_use(self) -> bool:
        """Is anything set?"""
        return bool(self.addresses or (self._watchpoints and self._watchpoints.points))

    def meets(self) -> bool:
        """An instruction is to run alone, as a block without breakpoints: if it has one, the exception is taken."""
        q = self._processor.state.q
        if q[EFLAGS] & EF_RF or q[RIP] + q[CS_BASE] & MASK64 not in self.addresses:
            return False
        self.exception(X86_EXC_DB)
        return True

    def resume_past(self) -> None:
        """From a trap handler that has set EFLAGS.RF: breakpoints on the next instruction do not count, once.

        The emulator clears RF only where no jump leads on. Without the code clock it is left at that.
        """
        if self.addresses and self._processor.counts_code:
            self._processor.halt(self._run_past)

    def _run_past(self) -> bool:
        """Run the one instruction for which RF is set, unless an upcall has taken RF into its frame."""
        q = self._processor.state.q
        if q[EFLAGS] & EF_RF:
            self._processor.run_one()
            q[EFLAGS] &= ~EF_RF
        return False
