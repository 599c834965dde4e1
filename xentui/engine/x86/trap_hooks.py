"""The hooks by which traps come from the emulator to their handlers.

Each calls one method of `TrapHandlers` and keeps what that raises (an exception must not cross the C code between).
Those of exceptions, INT n, SYSCALL and #UD, which come often, are machine code that calls Python; those of emulated
instructions are ctypes callbacks behind machine code (x86/native.py), which leaves the instruction by a long jump where
the emulator would not do as the processor does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from xentui.engine.machine_code import address_of, load, python_hook, store
from xentui.engine.x86 import native
from xentui.engine.x86 import unicorn_api as uc
from xentui.engine.x86.emulated import finish, instruction_at_rip
from xentui.engine.x86.state import (
    CS_BASE,
    EF_TF,
    EFLAGS,
    ERROR_CODE,
    EXCEPTION_IS_INT,
    MASK32,
    NO_EXCEPTION,
    OLD_EXCEPTION,
    RIP,
)

if TYPE_CHECKING:
    from xentui.engine.x86.cpu import Processor

_FETCH = 16  # page-fault error code: the access was an instruction fetch


class TrapHandlers(Protocol):
    """Who takes the traps. `exception` and `interrupt` get the vector; RIP lies at the instruction for exceptions
    that are faults and behind it for traps, INT n and SYSCALL, which has set RCX and R11. The port handlers are asked
    for every IN and OUT, whatever the ring; None or False means that the guest may not, which comes back as exception
    #GP. So it is with RDTSC. Where the instruction does not end its block (CPUID, IN, OUT, RDTSC), `unexecuted` says
    what is left of it."""

    def exception(self, vector: int) -> None: ...
    def interrupt(self, vector: int) -> None: ...
    def syscall(self) -> None: ...
    def invalid_opcode(self) -> None: ...
    def cpuid(self) -> None: ...
    def rdtsc(self) -> bool: ...
    def port_in(self, port: int, size: int) -> int | None: ...
    def port_out(self, port: int, size: int, value: int) -> bool: ...


class TrapHooks:
    """The hooks that hand every trap of a processor to `handlers`; `hooks` are Unicorn's handles of them."""

    def __init__(self, processor: Processor, handlers: TrapHandlers) -> None:
        self.processor = processor
        self.state, self.budget = processor.state, processor.budget
        self.block = processor.budget.cast("B").cast("Q")
        self.hooks = self._trap_hooks(handlers) + self._emulation_hooks(handlers)

    def _python_hook(self, kind: int, function: Callable[[], None], before: bytes, after: bytes, *extra: int) -> int:
        """A hook of traps, which come too often for one of ctypes'."""
        code = python_hook(function, before, after)
        self.processor.keep += [function, code]
        return self.processor.add_hook(kind, code.address, 0, *extra)

    def _leaving_hook(self, instruction: int, code: bytes, hook: Any, words: Any) -> int:
        """A hook of CPUID, IN, OUT or RDTSC that can leave the instruction; `words` is its structure (see `native`)."""
        words[native.PYTHON_HOOK] = address_of(hook)
        self.processor.keep += [hook, words]
        return self.processor.add_hook(
            uc.HOOK_INSN, self.processor.machine_code(code), ctypes.addressof(words), instruction
        )

    def _sysenter_hook(self) -> int:
        words = (ctypes.c_uint64 * 4)()
        self._refuse(words)
        self.processor.keep.append(words)
        code = self.processor.machine_code(native.SYSENTER_HOOK)
        return self.processor.add_hook(uc.HOOK_INSN, code, ctypes.addressof(words), uc.INS_SYSENTER)

    def _refuse(self, words: Any) -> None:
        """Let the native hook with this structure raise #GP(0) when its Python hook returns."""
        words[native.ARGUMENT] = self.processor.env
        words[native.FUNCTION] = address_of(uc.raise_exception_err)
        words[native.LEAVES] = 1

    def _leave(self, words: Any, value: int = -1, size: int = 4) -> None:
        """Behind an emulated instruction, where the rest of the block has no time or must not run: end it there.

        `value`: what IN or INS has read of `size` bytes, as that is not where it belongs yet. A guest that steps has
        blocks of one instruction, and its exception comes when that ends by itself; who has halted the processor sees
        to that.
        """
        q, budget, processor = self.state.q, self.budget, self.processor
        exact, halted = processor.counts_code, processor.leaving
        instruction = instruction_at_rip(processor) if halted or not q[EFLAGS] & EF_TF else None
        if instruction is None or (exact and not budget[3]):
            return
        behind = q[RIP] + instruction.length
        finish(processor, instruction, value, size, halted)
        if exact:
            budget[0] += self.block[2] + budget[3] - (behind + q[CS_BASE])
            budget[3] = 0
        words[native.ARGUMENT] = processor.cpu
        words[native.FUNCTION] = address_of(uc.cpu_loop_exit_noexc)
        words[native.LEAVES] = 1

    def _trap_hooks(self, handlers: TrapHandlers) -> list[int]:
        """The hooks that are called between two instructions: exceptions, INT n, SYSCALL, #UD."""
        processor, q, i = self.processor, self.state.q, self.state.i
        exception, interrupt = handlers.exception, handlers.interrupt
        syscall, invalid = handlers.syscall, handlers.invalid_opcode
        failed, fetched_early = processor.failed, processor.fetched_early
        breakpoints, late, stop = processor.breakpoints.addresses, processor.late, processor.stop

        def on_interrupt() -> None:
            try:
                vector = word[0]
                if i[EXCEPTION_IS_INT]:
                    interrupt(vector)
                elif vector == 14:
                    if not i[ERROR_CODE] & _FETCH or not fetched_early():
                        exception(14)
                elif vector == 1 and breakpoints and processor.meets_breakpoint():
                    processor.settle()
                elif vector != 1 or processor.steps_from != q[RIP] or not processor.begins_step():
                    exception(vector)
                if late[0]:
                    stop()
            except BaseException as error:
                failed(error)

        def on_syscall() -> None:
            try:
                syscall()
                if late[0]:
                    stop()
            except BaseException as error:
                failed(error)

        def on_invalid() -> None:
            try:
                invalid()
                if late[0]:
                    stop()
            except BaseException as error:
                failed(error)

        words = (ctypes.c_uint32 * 1)()
        word = memoryview(words).cast("B").cast("I")
        processor.keep.append(words)
        delivered = store(processor.env + 4 * OLD_EXCEPTION, NO_EXCEPTION)
        before = native.before_syscall(processor.env, processor.budget_address, address_of(uc.read_eflags))
        return [
            self._python_hook(
                uc.HOOK_INTR, on_interrupt, load("rdx", ctypes.addressof(words)) + native.STORE_VECTOR, delivered
            ),
            self._python_hook(uc.HOOK_INSN_INVALID, on_invalid, b"", delivered),
            self._python_hook(uc.HOOK_INSN, on_syscall, before, native.AFTER_SYSCALL, uc.INS_SYSCALL),
            self._sysenter_hook(),
        ]

    def _emulation_hooks(self, handlers: TrapHandlers) -> list[int]:
        """The hooks that are called within a block, for what the handlers do in the instruction's stead."""
        processor, budget = self.processor, self.budget
        cpuid, rdtsc = handlers.cpuid, handlers.rdtsc
        port_in, port_out = handlers.port_in, handlers.port_out
        refuse, leave, failed, exact = self._refuse, self._leave, processor.failed, processor.counts_code
        in_words, out_words, rdtsc_words, cpuid_words = ((ctypes.c_uint64 * 4)() for _ in range(4))

        def on_rdtsc(_uc: int, _data: int) -> int:
            try:
                if not rdtsc():
                    refuse(rdtsc_words)
                elif (exact and budget[0] < 0) or processor.leaving:
                    leave(rdtsc_words)
            except BaseException as error:
                failed(error)
            return 1

        def on_cpuid(_uc: int, _data: int) -> int:
            try:
                cpuid()
                if (exact and budget[0] < 0) or processor.leaving:
                    leave(cpuid_words)
            except BaseException as error:
                failed(error)
            return 1

        def on_in(_uc: int, port: int, size: int, _data: int) -> int:
            try:
                value = port_in(port, size)
                if value is not None:
                    if (exact and budget[0] < 0) or processor.leaving:
                        leave(in_words, value, size)
                    return value
                refuse(in_words)
            except BaseException as error:
                failed(error)
            return MASK32

        def on_out(_uc: int, port: int, size: int, value: int, _data: int) -> None:
            try:
                if not port_out(port, size, value):
                    refuse(out_words)
                elif (exact and budget[0] < 0) or processor.leaving:
                    leave(out_words, size=size)
            except BaseException as error:
                failed(error)

        return [
            self._leaving_hook(uc.INS_CPUID, native.SKIP_HOOK, uc.SkipHook(on_cpuid), cpuid_words),
            self._leaving_hook(uc.INS_RDTSC, native.SKIP_HOOK, uc.SkipHook(on_rdtsc), rdtsc_words),
            self._leaving_hook(uc.INS_IN, native.IN_HOOK, uc.InHook(on_in), in_words),
            self._leaving_hook(uc.INS_OUT, native.OUT_HOOK, uc.OutHook(on_out), out_words),
        ]
