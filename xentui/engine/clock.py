"""Virtual time, in nanoseconds since the machine was started.

Exact pace: one counter. The native block hook (x86/cpu.py) takes the bytes of guest code that run from `budget[0]`,
and the hypervisor's work is taken from the same counter, so that virtual time is

    now = (deadline - budget[0]) / 2

with the deadline in half nanoseconds: two bytes of code take a nanosecond, and what the hypervisor does costs what
`COST_*` say. Nothing of the host reaches it. In half nanoseconds it is the *position* of a run: it grows with every
instruction, so that a position names one point of a run.

Fast pace: the host's monotonic clock, plus what was skipped while every domain was blocked.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Protocol

from xentui.engine.machine_code import NO_ARGUMENTS, address_of, call, load, over, python_function

BYTES_PER_NS = 2
"""The clock unit of the exact pace: bytes of guest code executed in a nanosecond (about 500 MIPS)."""
MAX_NS = 100 * 365 * 24 * 3_600_000_000_000
"""Virtual nanoseconds that may be asked for: a hundred years. The counter has 63 bits, half nanoseconds."""

# What the hypervisor's work costs in the exact pace, in nanoseconds: the order of magnitude of real Xen on real
# hardware, so that big batches cost what they should.
COST_ENTRY = 300
COST_EMULATED = 1000
"""An instruction carried out for the guest: fetched, decoded and checked besides."""
COST_PAGE_TABLE_UPDATE = 60
COST_FRAME_VALIDATED = 4
COST_GIVEN_BACK = 50
"""A frame, an event channel or a mapping of a grant that is taken from a domain that is destroyed."""
COST_TLB_FLUSH = 200
COST_BYTES_PER_NS = 8
COST_CONTEXT_SWITCH = 2000
COST_SCHEDULE = 100
"""The scheduler has chosen, if only that nobody can run. It must not be nothing: what comes from outside behind the
choice is at another position than what comes before it."""


class Clock(Protocol):
    """What the rest of the engine needs of a clock."""

    def now(self) -> int:
        """Virtual nanoseconds."""
        ...

    def position(self) -> int:
        """The same in half nanoseconds."""
        ...

    def charge(self, ns: int) -> None:
        """The hypervisor worked this long on a guest's behalf."""
        ...

    def set_deadline(self, position: int) -> None:
        """Let guest code run until `position`, without moving the time."""
        ...

    def skip_to(self, position: int) -> None:
        """Nobody can run before `position`: go there at once."""
        ...


class ExactClock:
    """The deterministic clock; see the module's text. `budget` is the block hook's structure, as signed words."""

    exact = True
    now: Callable[[], int]

    def __init__(self, budget: memoryview) -> None:
        self.budget = budget
        self._deadline = memoryview((ctypes.c_int64 * 1)()).cast("B").cast("q")
        self.now = _exact_now(self._deadline, budget)

    @property
    def deadline(self) -> int:
        """The position at which the slice ends."""
        return self._deadline[0]

    def position(self) -> int:
        return self._deadline[0] - self.budget[0]

    def charge(self, ns: int) -> None:
        self.budget[0] -= ns << 1

    def set_deadline(self, position: int) -> None:
        self.budget[0] += position - self._deadline[0]
        self._deadline[0] = position

    def skip_to(self, position: int) -> None:
        left = position - self.position()
        if left > 0:
            self.budget[0] -= left


class FastClock:
    """The host's clock; not deterministic."""

    exact = False
    now: Callable[[], int]

    def __init__(self) -> None:
        self.deadline = 1 << 62
        self._words = memoryview((ctypes.c_int64 * 2)()).cast("B").cast("q")
        """Does time stand still; the time then, or else what is added to the host's."""
        self._words[1] = -time.monotonic_ns()
        self.now = _fast_now(self._words)

    def freeze(self) -> None:
        """Let time stand still until `thaw`: nobody runs, or the machine is put by as a snapshot."""
        self._words[1] = self.now()
        self._words[0] = 1

    def thaw(self) -> None:
        """Go on from the moment of `freeze`."""
        if self._words[0]:
            self._words[1] -= time.monotonic_ns()
            self._words[0] = 0

    def position(self) -> int:
        return self.now() << 1

    def charge(self, ns: int) -> None:
        """Nothing: the host's clock has counted it already."""

    def set_deadline(self, position: int) -> None:
        """Remember when the slice ends; it is the host's timer that ends it."""
        self.deadline = position

    def skip_to(self, position: int) -> None:
        ahead = (position >> 1) - self.now()
        if ahead > 0:
            self._words[1] += ahead


# --- `now` is on the path of every trap ------------------------------------------------------------------------------


def _address(words: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(words))


def _exact_now(deadline: memoryview, budget: memoryview) -> Callable[[], int]:
    """(deadline - budget) >> 1, of these words; it keeps them alive."""
    #   push rax; …; mov rdi,[rdx]; …; sub rdi,[rdx]; sar rdi,1; …; pop rcx; ret
    code = bytes.fromhex("50") + load("rdx", _address(deadline)) + bytes.fromhex("488b3a")
    code += load("rdx", _address(budget))
    code += bytes.fromhex("482b3a 48d1ff") + call("PyLong_FromLongLong") + bytes.fromhex("59 c3")
    now: Callable[[], int] = python_function("now", code, NO_ARGUMENTS, deadline, budget)
    return now


def _fast_now(words: memoryview) -> Callable[[], int]:
    """FastClock's time, of its words; it keeps them alive."""
    load_words = load("rdx", _address(words))
    #   sub rsp,24; …; cmp qword [rdx],0; jne frozen
    #   mov edi,CLOCK_MONOTONIC; mov rsi,rsp; …; imul rdi,[rsp],1000000000; add rdi,[rsp+8]
    #   …; add rdi,[rdx+8]; jmp over
    # frozen: mov rdi,[rdx+8]
    # over: …; add rsp,24; ret
    host = bytes.fromhex("bf01000000 4889e6") + call(address_of(ctypes.CDLL(None).clock_gettime))
    host += bytes.fromhex("48693c2400ca9a3b 48037c2408") + load_words + bytes.fromhex("48037a08 eb04")
    code = bytes.fromhex("4883ec18") + load_words + bytes.fromhex("48833a00") + over("75", host)
    code += bytes.fromhex("488b7a08") + call("PyLong_FromLongLong") + bytes.fromhex("4883c418 c3")
    now: Callable[[], int] = python_function("now", code, NO_ARGUMENTS, words)
    return now
