"""What a scheduling policy does for the machine, one module a policy behind this interface; and what policies share.

Times are virtual nanoseconds, integers throughout: a policy's choices are a function of the calls made to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from xentui.engine.xen.domain import RUNNABLE, RUNNING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xentui.engine.xen.domain import Domain, Vcpu

DEFAULT_WEIGHT = 256
MAX_WEIGHT = 65535
"""Bounds of a weight as `xl sched-credit` has them: 1 to this."""


class Policy(Protocol):
    """Chooses among the vCPUs that can run."""

    name: str

    def add(self, vcpu: Vcpu, weight: int = DEFAULT_WEIGHT, cap: int = 0) -> None:
        """The vCPU exists; it is considered from now on.

        `weight`: its share relative to others'; `cap`: the most that its domain gets, in percent of a processor, 0
        for no limit. Both are the domain's: what its first vCPU says holds for all.
        """
        ...

    def remove(self, vcpu: Vcpu) -> None:
        """The vCPU is gone. Nothing happens where it was gone already."""
        ...

    def wake(self, vcpu: Vcpu) -> None:
        """The vCPU can run (again). It may take the processor at once: then the policy asks for a new choice."""
        ...

    def sleep(self, vcpu: Vcpu) -> None:
        """The vCPU cannot run: blocked, down, or its domain paused."""
        ...

    def pick(self, now: int) -> tuple[Vcpu | None, int]:
        """Who runs next, and for how long at most; None when nobody can.

        Call it before the run states change: that the current vCPU is still "running" tells preemption from yield.
        Calling it more often than needed changes nothing: who runs goes on until its slice is over.
        """
        ...

    def adjust(self, domain: Domain | None, **parameters: int) -> None:
        """Set parameters of a domain, or (None) of the policy itself. Raises ValueError, and then changes nothing."""
        ...

    def describe(self, vcpu: Vcpu) -> dict[str, int | str | bool]:
        """What the policy knows of a vCPU, by name: parameters of its domain, virtual times or credits."""
        ...

    def parameters(self) -> dict[str, int]:
        """The policy's own parameters, by the names that `adjust` takes."""
        ...


def can_run(vcpu: Vcpu) -> bool:
    """Running or runnable, and its domain too."""
    return vcpu.runstate <= RUNNABLE and vcpu.online and not vcpu.parked and vcpu.domain.runnable


class Entry:
    """A vCPU as a policy sees it."""

    __slots__ = ("vcpu",)

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu


E = TypeVar("E", bound=Entry)


class RunQueue(ABC, Generic[E]):
    """The one processor's run queue, and when a choice is due.

    A choice is due when the slice is over, when the current vCPU gave the processor up, or when somebody woke who
    should have it. In between `pick` answers what it answered before, however often the machine asks: it stops for
    timers, for a user who steps, for the end of a run.
    """

    def __init__(self) -> None:
        self.entries: dict[Vcpu, E] = {}
        self.queue: list[E] = []
        """Who waits for the processor; the current one is not among them."""
        self.current: E | None = None
        self.slice_end = 0
        self.choice_due = False
        """Somebody asked for a new choice before the slice is over."""
        self.woken = False
        """The current vCPU has blocked and was woken before the next choice: that is no yield."""

    def remove(self, vcpu: Vcpu) -> None:
        """Forget the vCPU."""
        entry = self.entries.pop(vcpu, None)
        if entry is None:
            return
        if entry in self.queue:
            self.queue.remove(entry)
        if entry is self.current:
            self.current = None
        self.forget(entry)

    def sleep(self, vcpu: Vcpu) -> None:
        """Take the vCPU off the queue; the current one is told by its run state."""
        entry = self.entries.get(vcpu)
        if entry is not None and entry in self.queue:
            self.queue.remove(entry)

    def wake(self, vcpu: Vcpu) -> None:
        """Put the vCPU on the queue, if it can run and is not there."""
        entry = self.entries.get(vcpu)
        if entry is None or not can_run(vcpu):
            return
        if entry is self.current:
            self.woken = True
        elif entry not in self.queue:
            self.awaken(entry, vcpu.hv.clock.now())

    def pick(self, now: int) -> tuple[Vcpu | None, int]:
        """See Policy."""
        end = self.account(now)
        current = self.current
        if (
            current is None
            or self.choice_due
            or now >= self.slice_end
            or current.vcpu.runstate != RUNNING
            or not current.vcpu.runnable
        ):
            self.queue = [entry for entry in self.queue if can_run(entry.vcpu)]
            self.schedule(now)
            self.choice_due = self.woken = False
            current = self.current
            if current is None:
                return None, 0
        return current.vcpu, max(1, min(self.slice_end, end) - now)

    def ask(self, vcpu: Vcpu) -> None:
        """Interrupt whoever runs, for the sake of `vcpu`: a choice is due."""
        self.choice_due = True
        vcpu.hv.reschedule()

    @property
    def yielded(self) -> bool:
        """Did the current vCPU give the processor up, though it can run?"""
        current = self.current
        return current is not None and current.vcpu.runstate == RUNNABLE and not self.woken

    # --- what a policy says ----------------------------------------------------------------------------------------

    @abstractmethod
    def account(self, now: int) -> int:
        """Do what time has made due; until when that is enough."""

    @abstractmethod
    def schedule(self, now: int) -> None:
        """Choose: set `current` and `slice_end`. Everybody in the queue can run."""

    @abstractmethod
    def awaken(self, entry: E, now: int) -> None:
        """Put who has woken into the queue, and ask for a choice if it should run before its turn."""

    @abstractmethod
    def forget(self, entry: E) -> None:
        """The vCPU is gone."""


def checked(wanted: Mapping[str, int], bounds: Mapping[str, tuple[int, int]], whose: str) -> None:
    """Raises ValueError, in one line, unless every parameter is known and within its bounds."""
    for name, value in wanted.items():
        if name not in bounds:
            raise ValueError(f"{name} is no parameter of {whose}: {_listed(bounds)}")
        low, high = bounds[name]
        if not low <= value <= high:
            raise ValueError(f"{name} = {value} is out of range: {low} to {high}")


def _listed(names: Iterable[str]) -> str:
    return "there is " + ", ".join(names)
