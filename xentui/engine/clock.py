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

import time
from collections.abc import Callable
from typing import Protocol

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

    def __init__(self, budget: memoryview) -> None:
        self.budget = budget
        self.deadline = 0

    def now(self) -> int:
        return (self.deadline - self.budget[0]) >> 1

    def position(self) -> int:
        return self.deadline - self.budget[0]

    def charge(self, ns: int) -> None:
        self.budget[0] -= ns << 1

    def set_deadline(self, position: int) -> None:
        self.budget[0] += position - self.deadline
        self.deadline = position

    def skip_to(self, position: int) -> None:
        left = position - (self.deadline - self.budget[0])
        if left > 0:
            self.budget[0] -= left


class FastClock:
    """The host's clock; not deterministic. Its functions are closures made once: `now` is on the path of every trap."""

    exact = False
    now: Callable[[], int]
    skip_to: Callable[[int], None]
    freeze: Callable[[], None]
    """Let time stand still until `thaw`: nobody runs, or the machine is put by as a snapshot."""
    thaw: Callable[[], None]
    """Go on from the moment of `freeze`."""

    def __init__(self) -> None:
        self.deadline = 1 << 62
        self._build()

    def _build(self) -> None:
        host = time.monotonic_ns
        origin = host()
        frozen: int | None = None

        def now() -> int:
            return host() - origin if frozen is None else frozen

        def skip_to(position: int) -> None:
            nonlocal origin
            ahead = (position >> 1) - now()
            if ahead > 0:
                origin -= ahead

        def freeze() -> None:
            nonlocal frozen
            if frozen is None:
                frozen = now()

        def thaw() -> None:
            nonlocal origin, frozen
            if frozen is not None:
                origin, frozen = host() - frozen, None

        self.now, self.skip_to, self.freeze, self.thaw = now, skip_to, freeze, thaw

    def position(self) -> int:
        return self.now() << 1

    def charge(self, ns: int) -> None:
        """Nothing: the host's clock has counted it already."""

    def set_deadline(self, position: int) -> None:
        """Remember when the slice ends; it is the host's timer that ends it."""
        self.deadline = position
