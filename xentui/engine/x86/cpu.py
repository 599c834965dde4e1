"""A physical processor: one Unicorn instance in long mode, into which vCPUs are loaded and which hands traps out.

Guests of both widths run in long mode, as on 64-bit Xen: 64-bit ones in ring 3, 32-bit ones in compatibility
segments, their kernels in ring 1. Nothing here knows of Xen: the machine connects a `TrapHandlers`, and each of its
methods is called with the guest stopped at the trap, all registers in `state`. Whatever the method leaves there is
what the guest goes on with.

Virtual time in the exact pace is counted here too, in bytes of guest code: a native hook of seven instructions on every
block takes the block's size from `budget[0]` and stops the processor below zero; what a trap cut off is given back
by `settle`.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from xentui.engine.x86 import unicorn_api as uc
from xentui.engine.x86.alarm import Alarm
from xentui.engine.x86.state import (
    CC_OP,
    CC_OP_EFLAGS,
    CC_SRC,
    CPU_ENV,
    CR3,
    CS_BASE,
    DF,
    DR6,
    DR7,
    EF_CONDITIONS,
    EF_DF,
    EF_FIXED,
    EFLAGS,
    EXCEPTION_IS_INT,
    MASK32,
    NO_EXCEPTION,
    OLD_EXCEPTION,
    RIP,
    STATE_SIZE,
    TLB_WINDOW_BEGIN,
    TLB_WINDOW_STEP,
    UC_CPU,
    UC_NO_EXIT_REQUEST,
    State,
)

CR0_VALUE = 0x8005_0033  # PG AM WP NE ET MP PE
CR4_VALUE = 0x0000_0620  # OSXMMEXCPT OSFXSR PAE
EFER_VALUE = 0x0000_0D01  # NXE LMA LME SCE
NO_ADDRESS = 0x8000_0000_0000_0001  # not canonical: an "until" that no guest reaches
_MSR_EFER = 0xC000_0080
_FAR_FUTURE = 1 << 62
_WINDOW_STEP = TLB_WINDOW_STEP // 8
_HOUR = 3_600_000_000_000

# mov edx,edx; mov [rcx+16],rsi; mov [rcx+24],rdx; sub [rcx],rdx; js +1; ret; jmp [rcx+8]
_BLOCK_HOOK = bytes.fromhex("89d2 48897110 48895118 482911 7801 c3 ff6108")

# The emulator never checks IN and OUT against IOPL or a permission bitmap; it only calls a hook, which must return.
# RDTSC, checked against CR4.TSD before its hook is called, is never refused by the emulator: TSD stays clear.
# So the hook is this: call the Python one; if that has set `denied`, raise #GP(0) as the processor would, which leaves
# the instruction by a long jump, no Python frame in between. The structure behind the last argument is
# {Python hook, env, raise_exception_err, denied}.
#   push rbx; mov rbx,rcx (OUT: r8, RDTSC: rsi); call [rbx]; cmp byte [rbx+24],0; jne +2; pop rbx; ret
#   mov byte [rbx+24],0; mov rdi,[rbx+8]; mov esi,13; xor edx,edx; call [rbx+16]
_IO_TAIL = "ff13 807b1800 7502 5b c3 c6431800 488b7b08 be0d000000 31d2 ff5310"
_IN_HOOK = bytes.fromhex("53 4889cb" + _IO_TAIL)
_OUT_HOOK = bytes.fromhex("53 4c89c3" + _IO_TAIL)
_RDTSC_HOOK = bytes.fromhex("53 4889f3" + _IO_TAIL)
# SYSENTER does nothing on the emulator; with no target set (SYSENTER_CS is 0) it is #GP(0) on a processor.
#   mov rax,[rsi+16]; mov rdi,[rsi+8]; mov esi,13; xor edx,edx; jmp rax
_SYSENTER_HOOK = bytes.fromhex("488b4610 488b7e08 be0d000000 31d2 ffe0")


class TrapHandlers(Protocol):
    """Who takes the traps. `exception` and `interrupt` get the vector; RIP lies at the instruction for exceptions
    that are faults and behind it for traps and INT n. The port handlers are asked for every IN and OUT, whatever the
    ring; None or False means that the guest may not, which comes back as exception #GP. So it is with RDTSC. Where
    the instruction does not end its block (CPUID, IN, OUT, RDTSC), `unexecuted` says what is left of it."""

    def exception(self, vector: int) -> None: ...
    def interrupt(self, vector: int) -> None: ...
    def syscall(self) -> None: ...
    def invalid_opcode(self) -> None: ...
    def cpuid(self) -> None: ...
    def rdtsc(self) -> bool: ...
    def port_in(self, port: int, size: int) -> int | None: ...
    def port_out(self, port: int, size: int, value: int) -> bool: ...


class ProcessorError(RuntimeError):
    """The emulated processor did something that no guest can cause: a fault of the engine."""


class Processor:
    """One physical processor over machine memory. `state` is live; `vcpu` is whose state it is."""

    def __init__(self, ram_address: int, ram_size: int, count_code: bool = True) -> None:
        if platform.machine() not in ("x86_64", "AMD64") or platform.system() != "Linux":
            raise uc.UnicornMismatchError("xentui needs an x86-64 Linux host: it relies on that build of Unicorn")
        handle = ctypes.c_void_p()
        uc.check(uc.uc_open(uc.ARCH_X86, uc.MODE_64, ctypes.byref(handle)), "opening the emulator")
        self.handle = handle.value or 0
        uc.uc_ctl_set_cpu_model(handle, ctypes.c_int(uc.CTL_CPU_MODEL_WRITE), ctypes.c_int(uc.CPU_MODEL_NEHALEM))
        uc.check(
            uc.uc_mem_map_ptr(self.handle, 0, ram_size, uc.PROT_ALL, ram_address), "giving the emulator its memory"
        )
        ctypes.c_uint8.from_address(self.handle + UC_NO_EXIT_REQUEST).value = 1
        self._cpu = ctypes.c_uint64.from_address(self.handle + UC_CPU).value
        env = self._cpu + CPU_ENV
        self.state = State.at(env)
        self._env = env
        self._tlb_windows = self._find_tlb_windows(env)
        self._flushes = 0
        self.flush_page: Callable[[int], None] = partial(uc.tlb_flush_page, self._cpu)
        """Drop the translation of the page at an address."""
        self._set_control_registers()
        self.vcpu: object | None = None
        """Whose state is loaded; the processor only carries it."""
        self.failure: BaseException | None = None
        self._keep: list[object] = []
        self._alarm: Alarm | None = None
        self._hooks: list[int] = []
        self.budget = self._block_hook(count_code)
        self.counts_code = count_code
        self.stop_requested = False
        self._pin_tlb_windows()
        self.reset_state = self.state.save()
        """The state at reset, from which every vCPU's first one is made."""

    # --- set-up ------------------------------------------------------------------------------------------------

    @staticmethod
    def _find_tlb_windows(env: int) -> memoryview:
        """The words from the first MMU mode's `window_begin_ns` on; each must hold the moment of creation."""
        count = 2 * _WINDOW_STEP + 1
        words = memoryview((ctypes.c_int64 * count).from_address(env + TLB_WINDOW_BEGIN)).cast("B").cast("q")
        now = time.time_ns()
        if any(abs(words[mode * _WINDOW_STEP] - now) > _HOUR for mode in range(3)):
            raise uc.UnicornMismatchError(
                f"Unicorn's TLB is not where this engine expects it; install it with: pip install unicorn=={uc.VERSION}"
            )
        return words

    def _set_control_registers(self) -> None:
        class Msr(ctypes.Structure):
            _fields_ = (("number", ctypes.c_uint32), ("value", ctypes.c_uint64))

        for register, value in ((uc.REG_CR4, CR4_VALUE), (uc.REG_CR0, CR0_VALUE)):
            if register == uc.REG_CR0:
                efer = Msr(_MSR_EFER, EFER_VALUE)
                uc.check(uc.uc_reg_write(self.handle, uc.REG_MSR, ctypes.byref(efer)), "writing EFER")
            word = ctypes.c_uint64(value)
            uc.check(uc.uc_reg_write(self.handle, register, ctypes.byref(word)), "writing a control register")
        self.state.q[DR6], self.state.q[DR7] = 0xFFFF_0FF0, 0x400
        self.state.i[OLD_EXCEPTION] = NO_EXCEPTION

    def _block_hook(self, install: bool) -> memoryview:
        """Put the native block hook in; its structure is {bytes left, uc_emu_stop, block address, block size}."""
        words = (ctypes.c_int64 * 4)(0, ctypes.cast(uc.uc_emu_stop, ctypes.c_void_p).value or 0, 0, 0)
        if install:
            self._add_hook(uc.HOOK_BLOCK, self._machine_code(_BLOCK_HOOK), ctypes.addressof(words))
        self._keep.append(words)
        self._block = memoryview(words).cast("B").cast("Q")
        return memoryview(words).cast("B").cast("q")

    def _machine_code(self, code: bytes) -> int:
        """The address of a page with these instructions."""
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        anchor = ctypes.c_char.from_buffer(page)
        self._keep += [page, anchor]
        return ctypes.addressof(anchor)

    def _add_refusing_hook(self, instruction: int, code: bytes, hook: Any, words: Any) -> int:
        """A hook of IN, OUT or RDTSC that can refuse: see `_IO_TAIL`; `words` is its structure."""
        words[0] = ctypes.cast(hook, ctypes.c_void_p).value or 0
        self._fill_raise(words)
        self._keep.append(hook)
        return self._add_hook(uc.HOOK_INSN, self._machine_code(code), ctypes.addressof(words), instruction)

    def _add_sysenter_hook(self) -> int:
        words = (ctypes.c_uint64 * 4)()
        self._fill_raise(words)
        code = self._machine_code(_SYSENTER_HOOK)
        return self._add_hook(uc.HOOK_INSN, code, ctypes.addressof(words), uc.INS_SYSENTER)

    def _fill_raise(self, words: Any) -> None:
        """The part of a native hook's structure with which it raises an exception."""
        words[1] = self._env
        words[2] = ctypes.cast(uc.raise_exception_err, ctypes.c_void_p).value or 0
        self._keep.append(words)

    def _add_hook(self, kind: int, callback: object, data: int = 0, *extra: int) -> int:
        hook = ctypes.c_size_t()
        target = ctypes.c_void_p(callback) if isinstance(callback, int) else callback
        error = uc.uc_hook_add(
            ctypes.c_void_p(self.handle),
            ctypes.byref(hook),
            ctypes.c_int(kind),
            target,
            ctypes.c_void_p(data),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
            *(ctypes.c_int(value) for value in extra),
        )
        uc.check(error, "adding a hook")
        self._keep.append(callback)
        return hook.value or 0

    def connect(self, handlers: TrapHandlers) -> None:
        """Hand every trap to `handlers` from now on. An exception of theirs stops the processor; `run` raises it."""
        i = self.state.i
        exception, interrupt = handlers.exception, handlers.interrupt
        syscall, invalid = handlers.syscall, handlers.invalid_opcode
        cpuid, rdtsc = handlers.cpuid, handlers.rdtsc
        port_in, port_out = handlers.port_in, handlers.port_out
        failed = self._failed
        in_words, out_words, rdtsc_words = (ctypes.c_uint64 * 4)(), (ctypes.c_uint64 * 4)(), (ctypes.c_uint64 * 4)()

        def on_interrupt(_uc: int, vector: int, _data: int) -> None:
            try:
                if i[EXCEPTION_IS_INT]:
                    interrupt(vector)
                else:
                    exception(vector)
                i[OLD_EXCEPTION] = NO_EXCEPTION
            except BaseException as error:
                failed(error)

        def on_syscall(_uc: int, _data: int) -> None:
            try:
                syscall()
            except BaseException as error:
                failed(error)

        def on_invalid(_uc: int, _data: int) -> bool:
            try:
                invalid()
                i[OLD_EXCEPTION] = NO_EXCEPTION
            except BaseException as error:
                failed(error)
            return True

        def on_rdtsc(_uc: int, _data: int) -> int:
            try:
                if not rdtsc():
                    rdtsc_words[3] = 1
            except BaseException as error:
                failed(error)
            return 1

        def on_cpuid(_uc: int, _data: int) -> int:
            try:
                cpuid()
            except BaseException as error:
                failed(error)
            return 1

        def on_in(_uc: int, port: int, size: int, _data: int) -> int:
            try:
                value = port_in(port, size)
                if value is not None:
                    return value
                in_words[3] = 1
            except BaseException as error:
                failed(error)
            return MASK32

        def on_out(_uc: int, port: int, size: int, value: int, _data: int) -> None:
            try:
                if not port_out(port, size, value):
                    out_words[3] = 1
            except BaseException as error:
                failed(error)

        self._hooks = [
            self._add_hook(uc.HOOK_INTR, uc.InterruptHook(on_interrupt)),
            self._add_hook(uc.HOOK_INSN_INVALID, uc.InvalidHook(on_invalid)),
            self._add_hook(uc.HOOK_INSN, uc.SyscallHook(on_syscall), 0, uc.INS_SYSCALL),
            self._add_hook(uc.HOOK_INSN, uc.SkipHook(on_cpuid), 0, uc.INS_CPUID),
            self._add_refusing_hook(uc.INS_RDTSC, _RDTSC_HOOK, uc.SkipHook(on_rdtsc), rdtsc_words),
            self._add_sysenter_hook(),
            self._add_refusing_hook(uc.INS_IN, _IN_HOOK, uc.InHook(on_in), in_words),
            self._add_refusing_hook(uc.INS_OUT, _OUT_HOOK, uc.OutHook(on_out), out_words),
        ]

    def disconnect(self) -> None:
        """Take the hooks of `connect` out again."""
        for hook in self._hooks:
            uc.check(uc.uc_hook_del(self.handle, hook), "removing a hook")
        self._hooks = []

    def _failed(self, error: BaseException) -> None:
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
        """Let the loaded vCPU run until it is stopped, the code budget is spent, or the host's time is over.

        Raises what a trap handler raised, and ProcessorError when the emulator gave up by itself.
        """
        state = self.state
        state.i[OLD_EXCEPTION] = NO_EXCEPTION
        self.stop_requested = False
        self.budget[3] = 0
        if microseconds:
            self._alarm = self._alarm or Alarm(self.handle)
            self._alarm.set(microseconds)
        error = uc.uc_emu_start(self.handle, state.q[RIP], NO_ADDRESS, 0, 0)
        if microseconds and self._alarm:
            self._alarm.set(0)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if error:
            raise ProcessorError(f"the emulator stopped at RIP {state.q[RIP]:#x}: {uc.uc_strerror(error).decode()}")
        if self.counts_code and not self.stop_requested and self.budget[0] >= 0:
            raise ProcessorError(f"the emulator gave up at RIP {state.q[RIP]:#x}: a fault within a fault")

    def stop(self) -> None:
        """Stop at the next block of guest code (from a trap handler: when it returns)."""
        self.stop_requested = True
        uc.uc_emu_stop(self.handle)

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

    def read_flags(self) -> int:
        """RFLAGS as the guest would see it pushed; the condition codes are computed from their lazy form."""
        state = self.state
        if state.i[CC_OP] == CC_OP_EFLAGS:
            return state.q[EFLAGS] | state.q[CC_SRC] | (EF_DF if state.i[DF] & 0x8000_0000 else 0)
        return int(uc.read_eflags(self._env))

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

    # --- the TLB -----------------------------------------------------------------------------------------------

    def load_cr3(self, address: int) -> None:
        """Take other page tables (physical address of an L4) and drop what the TLB held."""
        self.state.q[CR3] = address
        self.flush_tlb()

    def flush_tlb(self) -> None:
        """Drop every translation."""
        self._pin_tlb_windows()
        uc.tlb_flush(self._cpu)

    def flush_code(self) -> None:
        """Drop translated code: needed when memory that holds some was written behind the processor's back."""
        uc.tb_flush(self._cpu)

    def _pin_tlb_windows(self) -> None:
        """Let the emulator's TLB change its size by the number of flushes, never by the host's clock.

        Its size decides when a translation is fetched again, and so when a guest sees an accessed bit return. QEMU
        (cputlb.c, tlb_mmu_resize_locked) lets it shrink at a flush when a window of 100 ms is over: here the window
        is over at every 64th flush, and otherwise far from it. Without shrinking at all, one busy moment would make
        every later flush slow.
        """
        self._flushes = flushes = self._flushes + 1
        begin = _FAR_FUTURE if flushes & 63 else 0
        windows = self._tlb_windows
        windows[0] = windows[_WINDOW_STEP] = windows[2 * _WINDOW_STEP] = begin
