"""The emulated processor: one Unicorn instance in long mode, into which vCPUs are loaded and which hands traps out.

Guests of both widths run in long mode, as on 64-bit Xen: 64-bit ones in ring 3, 32-bit ones in compatibility
segments, their kernels in ring 1. Nothing here knows of Xen: the machine connects a `TrapHandlers`, and each of its
methods is called with the guest stopped at the trap, all registers in `state`. Whatever the method leaves there is
what the guest goes on with.

Virtual time in the exact pace is counted here too, in bytes of guest code: a native hook of nine instructions on every
block takes the block's size from `budget[0]` and stops the processor below zero; what a trap cut off is given back
by `settle`. The processor stops at the first instruction boundary where the budget is spent, wherever blocks happen to
begin: the last instructions run as a block of just so many (`_run_limited`). So time, stops and steps do not depend on
how code was cut into blocks.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from threading import get_native_id

from xentui.engine.machine_code import MachineCode, address_of, with_integers
from xentui.engine.x86 import exits, native
from xentui.engine.x86 import unicorn_api as uc
from xentui.engine.x86.alarm import Alarm
from xentui.engine.x86.breakpoints import CodeBreakpoints
from xentui.engine.x86.control_registers import set_control_registers
from xentui.engine.x86.debug_registers import DebugRegisters
from xentui.engine.x86.exits import Exits
from xentui.engine.x86.state import (
    CC_OP,
    CC_OP_EFLAGS,
    CC_SRC,
    CFLAGS_NEXT_BLOCK,
    CPU_ENV,
    CR2,
    CR3,
    CS_BASE,
    DF,
    DR6,
    EF_CONDITIONS,
    EF_DF,
    EF_FIXED,
    EF_IF,
    EFLAGS,
    MASK32,
    MASK64,
    NO_EXCEPTION,
    OLD_EXCEPTION,
    RIP,
    STATE_SIZE,
    UC_CPU,
    UC_NO_EXIT_REQUEST,
    State,
)
from xentui.engine.x86.tlb import Tlb
from xentui.engine.x86.trap_hooks import TrapHandlers, TrapHooks

NO_ADDRESS = 0x8000_0000_0000_0001  # not canonical: an "until" that no guest reaches

_DR6_BS = 1 << 14
_NOWHERE = (0, native.NO_BUDGET)
_MOST_INSTRUCTIONS = 512  # of a block (QEMU: TCG_MAX_INSNS)


class ProcessorError(RuntimeError):
    """The emulated processor did something that no guest can cause: a fault of the engine."""


class Processor:
    """The emulated processor over machine memory. `state` is live; `vcpu` is whose state it is."""

    read_flags: Callable[[], int]
    """RFLAGS as the guest would see it pushed; the condition codes are computed from their lazy form."""

    def __init__(self, ram_address: int, ram_size: int, count_code: bool = True) -> None:
        if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
            raise uc.UnicornMismatchError("xentui needs an x86-64 Linux host: it relies on that build of Unicorn")
        self._check_flags = exits.flags_of_check()
        handle = ctypes.c_void_p()
        uc.check(uc.uc_open(uc.ARCH_X86, uc.MODE_64, ctypes.byref(handle)), "opening the emulator")
        self.handle = handle.value or 0
        uc.uc_ctl_set_cpu_model(handle, ctypes.c_int(uc.CTL_CPU_MODEL_WRITE), ctypes.c_int(uc.CPU_MODEL_NEHALEM))
        uc.check(
            uc.uc_mem_map_ptr(self.handle, 0, ram_size, uc.PROT_ALL, ram_address), "giving the emulator its memory"
        )
        ctypes.c_uint8.from_address(self.handle + UC_NO_EXIT_REQUEST).value = 1
        self.cpu = ctypes.c_uint64.from_address(self.handle + UC_CPU).value
        env = self.cpu + CPU_ENV
        self.state = State.at(env)
        self.env = env
        self.read_flags = with_integers("read_flags", env, native.read_flags(address_of(uc.read_eflags)))
        tlb = Tlb(self.cpu)
        self.flush_tlb, self.flush_page = tlb.flush, tlb.flush_page
        set_control_registers(self.handle, self.state)
        self.vcpu: object | None = None
        """Whose state is loaded; the processor only carries it."""
        self.failure: BaseException | None = None
        self.keep: list[object] = []
        self._alarm: Alarm | None = None
        self._exits: Exits | None = None
        self._hooks: list[int] = []
        self.budget = self._block_hook(count_code)
        self.counts_code = count_code
        self.stop_requested = False
        self._next_block = (
            memoryview((ctypes.c_uint32 * 1).from_address(self.cpu + CFLAGS_NEXT_BLOCK)).cast("B").cast("I")
        )
        if self._next_block[0] != MASK32:
            raise uc.UnicornMismatchError(
                f"the emulator's CPUState is not what this engine expects; pip install unicorn=={uc.VERSION}"
            )
        self._early_fetch = _NOWHERE
        """Where, and with what budget left, a fetch faulted before its turn; see `fetched_early`."""
        self._measuring = False
        self.debug_registers = DebugRegisters(self)
        self.breakpoints = CodeBreakpoints(self.cpu)
        """In guest code; they stop `run` where code is counted."""
        self.leaving = False
        """A trap handler wants the processor to stop: blocks end at once."""
        self.steps_from = -1
        """RIP where IRET has left a guest that steps, until its first instruction."""
        self._halted: Callable[[], bool] | None = None
        tlb.pin_windows()
        self.reset_state = self.state.save()
        """The state at reset, from which every vCPU's first one is made."""

    # --- set-up ------------------------------------------------------------------------------------------------

    def _block_hook(self, install: bool) -> memoryview:
        """Put the native block hook in; `native` says what its structure holds."""
        words = (ctypes.c_int64 * native.BLOCK_WORDS)()
        words[native.STOP_FUNCTION] = address_of(uc.uc_emu_stop)
        words[native.EXEMPT_BUDGET] = native.NO_BUDGET
        words[native.ENV], words[native.CPU] = self.env, self.cpu
        words[native.EXIT_FUNCTION] = address_of(uc.cpu_loop_exit_noexc)
        if install:
            self.add_hook(uc.HOOK_BLOCK, self.machine_code(native.BLOCK_HOOK), ctypes.addressof(words))
        self.keep.append(words)
        self.budget_address = ctypes.addressof(words)
        self._counters = memoryview(words).cast("B")
        self._block = self._counters.cast("Q")
        return self._counters.cast("q")

    def machine_code(self, code: bytes) -> int:
        """The address of a page with these instructions."""
        page = MachineCode(code)
        self.keep.append(page)
        return page.address

    def add_hook(self, kind: int, callback: object, data: int = 0, *extra: int, begin: int = 1, end: int = 0) -> int:
        """Add a hook of Unicorn's, an address or a ctypes function, kept alive; `extra` is what its kind takes.

        `begin`, `end`: first and last address that it is for; by default all.
        """
        hook = ctypes.c_size_t()
        target = ctypes.c_void_p(callback) if isinstance(callback, int) else callback
        error = uc.uc_hook_add(
            ctypes.c_void_p(self.handle),
            ctypes.byref(hook),
            ctypes.c_int(kind),
            target,
            ctypes.c_void_p(data),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
            *(ctypes.c_int(value) for value in extra),
        )
        uc.check(error, "adding a hook")
        self.keep.append(callback)
        return hook.value or 0

    def connect(self, handlers: TrapHandlers) -> None:
        """Hand every trap to `handlers` from now on. An exception of theirs stops the processor; `run` raises it."""
        self._hooks = TrapHooks(self, handlers).hooks
        self.debug_registers.exception = handlers.exception

    def disconnect(self) -> None:
        """Take the hooks of `connect` out again."""
        for hook in self._hooks:
            uc.check(uc.uc_hook_del(self.handle, hook), "removing a hook")
        self._hooks = []

    def failed(self, error: BaseException) -> None:
        """Keep the first exception of a hook (one must not cross the C code between) and stop."""
        if self.failure is None:
            self.failure = error
        self.stop()

    def close(self) -> None:
        """Give the emulator's memory back."""
        if self._alarm:
            self._alarm.close()
        if self.handle:
            uc.uc_close(self.handle)
            self.handle = 0

    # --- running -----------------------------------------------------------------------------------------------

    def run(self, microseconds: int = 0) -> None:
        """Let the loaded vCPU run until it is stopped, or its time is over.

        Its time: `microseconds` of the host's, or where code is counted, until the first instruction boundary at
        which the budget is spent. Raises what a trap handler raised, and ProcessorError when the emulator gave up
        by itself.
        """
        self.stop_requested = self.leaving = False
        if not self.counts_code:
            self._counters[native.LATE_BYTE] = 0
            self.set_alarm(microseconds)
            try:
                self._start()
                while self.leaving and not self._stops_here():
                    self._start()
            finally:
                self.set_alarm(0)
            self._drop_false_flags()
            return
        budget = self.budget
        while budget[0] > 0 and not budget[native.HALT]:
            self._start()
            self.settle()
            if budget[0] > 0 and not (self.leaving or budget[native.HALT]):
                self._run_limited(*self._measure(budget[0]))
            if self.leaving and self._stops_here():
                return

    def step(self) -> None:
        """Let the loaded vCPU execute one instruction, or take the trap that it meets; needs the code clock.

        Each repetition of a REP string instruction is one, as for the processor's own single-step trap. Where a
        breakpoint wants the processor to stop before it, nothing is done.
        """
        self.stop_requested = self.leaving = False
        q = self.state.q
        if self.breakpoints.addresses and self.breakpoints.hit(q[RIP] + q[CS_BASE] & MASK64):
            return
        self._run_limited(1, self._block_of(1))
        self._stops_here()

    def run_one(self) -> None:
        """From what `halt` calls: execute the one instruction at RIP."""
        self._run_limited(1, self._block_of(1))

    def _stops_here(self) -> bool:
        """Halted: is that to stay so?"""
        while self.leaving and not self.stop_requested:
            then, self._halted, self.leaving = self._halted, None, False
            if then is None or then():
                return True
        return self.stop_requested

    def _met_breakpoint(self) -> bool:
        """At a breakpoint: does anybody want to stop? If not, and RIP is where it was, the instruction is executed."""
        q = self.state.q
        address = q[RIP] + q[CS_BASE] & MASK64
        if self.breakpoints.hit(address):
            return True
        if address == q[RIP] + q[CS_BASE] & MASK64 and not self.stop_requested:
            self.run_one()
        return False

    def meets_breakpoint(self) -> bool:
        """A debug exception: is it a breakpoint of ours? Then the processor stops before the instruction."""
        q = self.state.q
        if q[DR6] & _DR6_BS or q[RIP] + q[CS_BASE] & MASK64 not in self.breakpoints.addresses:
            return False
        self.halt(self._met_breakpoint)
        return True

    def _start(self) -> None:
        """Run the emulator until something stops it."""
        state, budget = self.state, self.budget
        state.i[OLD_EXCEPTION] = NO_EXCEPTION
        budget[native.BLOCK_SIZE] = 0
        self._early_fetch = _NOWHERE
        self._check_flags[0] = exits.LEFT_OUT
        error = uc.uc_emu_start(self.handle, state.q[RIP], NO_ADDRESS, 0, 0)
        self._check_flags[0] = 0
        if self._exits:
            self._exits.mend()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if error:
            raise ProcessorError(f"the emulator stopped at RIP {state.q[RIP]:#x}: {uc.uc_strerror(error).decode()}")
        asked = self.leaving or budget[native.HALT]
        if self.counts_code and not asked and budget[0] >= 0:
            raise ProcessorError(f"the emulator gave up at RIP {state.q[RIP]:#x}: a fault within a fault")

    def _drop_false_flags(self) -> None:
        """After a stop at any moment: CMPXCHG16B has left in CC_SRC what are no flags (see native.BLOCK_HOOK)."""
        q = self.state.q
        false = q[CC_SRC] & ~EF_CONDITIONS
        if self.state.i[CC_OP] == CC_OP_EFLAGS and false:
            q[EFLAGS] = q[EFLAGS] & ~false | EF_FIXED | EF_IF
            q[CC_SRC] &= EF_CONDITIONS

    def _run_limited(self, count: int, size: int) -> None:
        """Run a block of `count` instructions that are `size` bytes, and then stop, whatever the budget is.

        QEMU makes such a block when CPUState.cflags_next_tb asks for one (cpu_exec), and keeps it beside others
        that begin there, so that nothing is flushed. A trap on the way ends it, and so does every block that it meets.
        The block has been made already, by `_block_of`: one of a single instruction without a breakpoint. What comes
        behind it is translated here, as it will run later.
        """
        if count == 1 and self.debug_registers.addresses and self.debug_registers.meets():
            return
        budget = self.budget
        budget[native.EXEMPT_BUDGET] = budget[0] - size
        self._block[native.EXEMPT_ADDRESS] = self.state.q[RIP] + self.state.q[CS_BASE] & MASK64
        self._counters[8 * native.HALT] = 1
        self._next_block[0] = count
        try:
            self._start()
        finally:
            self._next_block[0] = MASK32
            self._counters[8 * native.HALT] = 0
            budget[native.EXEMPT_BUDGET] = native.NO_BUDGET
        self.settle()

    def _block_of(self, count: int) -> int:
        """Bytes of the block of at most `count` instructions that begins at RIP; 0 where the fetch of it faults.

        It is translated, and stopped by the hook before its first instruction.
        """
        budget = self.budget
        saved = budget[0]
        budget[0] = -1
        self._next_block[0] = count
        self._measuring = True
        if count == 1:
            self.breakpoints.hide()
        try:
            self._start()
            return budget[native.BLOCK_SIZE]
        finally:
            self._measuring = False
            self.breakpoints.show()
            self._next_block[0] = MASK32
            self.stop_requested = self.leaving = False
            budget[native.BLOCK_SIZE], budget[0] = 0, saved

    def _measure(self, rest: int) -> tuple[int, int]:
        """The least number of instructions at RIP that are `rest` bytes or more, and their bytes.

        A block that is longer begins there. The emulator itself is asked, as lengths are what it takes them for.
        """
        low, high, total = 0, min(rest, _MOST_INSTRUCTIONS), 0
        below = 0  # bytes of the first `low` instructions
        while high - low > 1:
            middle = min(low + 1 + (rest - below) // 4, high - 1)
            found = self._block_of(middle)
            if found >= rest or not found:  # 0: it extends into a page that is not there
                high, total = middle, found
            else:
                low, below = middle, found
        return high, total or self._block_of(high)

    def fetched_early(self) -> bool:
        """A page fault on a fetch: is it too early, as an instruction further on in the block has met it?

        The emulator fetches a whole block before its first instruction runs; where it extends into a page that is
        not there, the processor would have run all before the boundary first. So one instruction runs alone, until
        the fault comes for the one that it belongs to.
        """
        q, budget = self.state.q, self.budget
        if self._measuring:
            self.stop()
            return True
        if not (q[CR2] ^ (q[RIP] + q[CS_BASE])) >> 12:
            return False
        here = (q[RIP], budget[0])
        if here == self._early_fetch:  # it is the very instruction that extends over the boundary
            self._early_fetch = _NOWHERE
            return False
        self._early_fetch = here
        self._next_block[0] = 1
        return True

    def stop(self) -> None:
        """From a trap handler: stop when it returns. The vCPU is done with its slice."""
        self.stop_requested = True
        self.halt(None)

    def halt(self, then: Callable[[], bool] | None) -> None:
        """From a trap handler: stop when it returns, and call `then`; True: `run` returns, else it goes on.

        Unlike after `stop` the vCPU is not done with its slice.
        """
        self.leaving, self._halted = True, then
        state = self.state
        if state.i[CC_OP] == CC_OP_EFLAGS:
            state.q[CC_SRC] &= EF_CONDITIONS  # see native.BLOCK_HOOK
        uc.uc_emu_stop(self.handle)

    def begins_step(self) -> bool:
        """At a debug exception: is it one that the emulator raises behind SYSCALL because TF is set, as SYSRET would
        let it be raised? Where the guest was left by IRET (`steps_from`) its next instruction comes first."""
        self.steps_from = -1
        return not (self.counts_code and self.budget[3])

    def pause(self) -> None:
        """From anywhere: stop soon, at a block's start, so that running on is as if nothing had been."""
        if self.counts_code:
            self._counters[native.PAUSE_BYTE] = 1
        else:
            self.stop()

    @property
    def paused(self) -> bool:
        """Was `pause` called, or did the alarm sound, since `go_on`?"""
        return bool(self._counters[native.PAUSE_BYTE])

    @property
    def late(self) -> memoryview:
        """One byte: not 0 once the alarm has sounded in this `run` of a processor that does not count code."""
        return self._counters[native.LATE_BYTE : native.LATE_BYTE + 1]

    def go_on(self) -> None:
        """Forget that `pause` was called."""
        self._counters[native.PAUSE_BYTE] = 0

    def set_alarm(self, microseconds: int) -> None:
        """Pause (without the code clock: stop) after so much of the host's time; 0 takes the alarm back."""
        alarm = self._alarm
        if alarm is None or alarm.process != os.getpid() or alarm.thread != get_native_id():  # a fork has no timers
            if not microseconds:
                return
            if alarm is not None:
                alarm.close()
                self.keep.append(alarm)  # a signal of its may still be on its way
            flags = ctypes.addressof(ctypes.c_char.from_buffer(self._counters))
            if self.counts_code:
                alarm = Alarm(self.machine_code(native.SET_BYTE), flags + native.PAUSE_BYTE)
            else:
                if self._exits is None:
                    self._exits = Exits(self, flags + native.LATE_BYTE)
                alarm = Alarm(self._exits.function, self._exits.argument)
            self._alarm = alarm
        alarm.set(microseconds)

    def settle(self) -> None:
        """At a trap: give the bytes of the current block behind RIP back to the budget; they were not executed.

        RIP lies elsewhere where a block ran to its end and the fetch of the next one faulted.
        """
        budget = self.budget
        size = budget[3]
        if size:
            q, block = self.state.q, self._block[2]
            undone = block + size - (q[RIP] + q[CS_BASE])
            if 0 <= undone <= size:
                budget[0] += undone
            budget[3] = 0

    def unexecuted(self) -> int:
        """Bytes of the current block from RIP on, which the budget has lost already but which are yet to run."""
        size = self.budget[3]
        return self._block[2] + size - (self.state.q[RIP] + self.state.q[CS_BASE]) if size else 0

    # --- registers ---------------------------------------------------------------------------------------------

    @staticmethod
    def flags_of(state: State) -> int:
        """RFLAGS of a copy of a state."""
        copy = (ctypes.c_uint8 * STATE_SIZE).from_buffer_copy(state.raw)
        return int(uc.read_eflags(ctypes.addressof(copy)))

    def write_flags(self, value: int) -> None:
        """Set RFLAGS; the caller decides which bits a guest may change."""
        q, i = self.state.q, self.state.i
        i[CC_OP] = CC_OP_EFLAGS
        q[CC_SRC] = value & EF_CONDITIONS
        i[DF] = MASK32 if value & EF_DF else 1
        q[EFLAGS] = value & ~(EF_CONDITIONS | EF_DF) | EF_FIXED

    # --- translations and code ----------------------------------------------------------------------------------

    def load_cr3(self, address: int) -> None:
        """Take other page tables (physical address of an L4) and drop what the TLB held."""
        self.state.q[CR3] = address
        self.flush_tlb()

    def flush_code(self) -> None:
        """Drop translated code: needed when memory that holds some was written behind the processor's back."""
        uc.tb_flush(self.cpu)
        if self._exits:
            self._exits.forget()
