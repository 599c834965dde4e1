"""A weight-fair round robin: who has had least of its share runs next, for a slice of 10 ms.

The honest core of Xen's credit scheduler (common/sched/credit.c), without its caps and boost: every vCPU has a
virtual runtime that grows with the time it runs, the slower the greater its weight. The order depends on nothing but
the calls made: ties go to who has waited longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.xen.sched.policy import can_run

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

SLICE = 10_000_000
"""Nanoseconds that a vCPU runs at most before another has its turn."""

DEFAULT_WEIGHT = 256
_SCALE = 1 << 16  # virtual runtime is in ns * _SCALE / weight, an integer fine enough for any weight


class _Entry:
    """A vCPU as the policy sees it: `runtime` is virtual, `turn` the order of its last waiting to run."""

    __slots__ = ("queued", "runtime", "turn", "vcpu", "weight")

    def __init__(self, vcpu: Vcpu, weight: int) -> None:
        self.vcpu = vcpu
        self.weight = weight
        self.runtime = 0
        self.turn = 0
        self.queued = False


class Credit:
    """The policy; see sched/policy.py for the interface."""

    name = "credit"

    def __init__(self, slice_ns: int = SLICE) -> None:
        self.slice_ns = slice_ns
        self._entries: dict[Vcpu, _Entry] = {}
        self._queue: list[_Entry] = []
        self._current: _Entry | None = None
        self._since = 0
        self._turns = 0

    def add(self, vcpu: Vcpu, weight: int = DEFAULT_WEIGHT) -> None:
        self._entries[vcpu] = _Entry(vcpu, max(1, weight))
        if can_run(vcpu):
            self.wake(vcpu)

    def remove(self, vcpu: Vcpu) -> None:
        self.sleep(vcpu)
        entry = self._entries.pop(vcpu, None)
        if entry is self._current:
            self._current = None

    def wake(self, vcpu: Vcpu) -> None:
        entry = self._entries.get(vcpu)
        if entry is None or entry.queued:
            return
        # Sleeping earns nothing: who wakes starts level with who has had least.
        if self._queue:
            entry.runtime = max(entry.runtime, min(other.runtime for other in self._queue))
        self._append(entry)

    def sleep(self, vcpu: Vcpu) -> None:
        entry = self._entries.get(vcpu)
        if entry is not None and entry.queued:
            entry.queued = False
            self._queue.remove(entry)

    def pick(self, now: int) -> tuple[Vcpu | None, int]:
        self._charge(now)
        for entry in [entry for entry in self._queue if not can_run(entry.vcpu)]:
            self.sleep(entry.vcpu)
        self._since = now
        if not self._queue:
            self._current = None
            return None, 0
        chosen = min(self._queue, key=lambda entry: (entry.runtime, entry.turn))
        self._current = chosen
        return chosen.vcpu, self.slice_ns

    def _append(self, entry: _Entry) -> None:
        self._turns += 1
        entry.turn = self._turns
        if not entry.queued:
            entry.queued = True
            self._queue.append(entry)

    def _charge(self, now: int) -> None:
        """Account for what the current vCPU has run, and put it behind those it is level with.

        Who yielded (it is runnable already, not running) goes behind the next one at least.
        """
        entry = self._current
        if entry is None or not entry.queued:
            if entry is not None:
                entry.runtime += (now - self._since) * _SCALE // entry.weight
            return
        entry.runtime += (now - self._since) * _SCALE // entry.weight
        others = [other.runtime for other in self._queue if other is not entry]
        if entry.vcpu.runstate == 1 and others:
            entry.runtime = max(entry.runtime, min(others))
        self._append(entry)
