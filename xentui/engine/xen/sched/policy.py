"""What a scheduling policy does for the machine, one module a policy behind this interface; and what policies share.

Times are virtual nanoseconds, integers throughout: a policy's choices are a function of the calls made to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from xentui.engine.xen.domain import RUNNABLE, RUNNING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from xentui.engine.xen.domain import Domain, Vcpu

DEFAULT_WEIGHT = 256
MAX_WEIGHT = 65535
"""Bounds of a weight as `xl sched-credit` has them: 1 to this."""
MAX_PCPUS = 4
"""Physical processors that a machine may have."""
MAX_CAP = 100 * MAX_PCPUS
"""Of a cap, in percent of one processor."""


class Policy(Protocol):
    """Chooses among the vCPUs that can run."""

    name: str

    def add(self, vcpu: Vcpu, weight: int = DEFAULT_WEIGHT, cap: int = 0) -> None:
        """The vCPU exists; it is considered from now on.

        `weight`: its share relative to others'; `cap`: the most that its domain gets, in percent of one processor, 0
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

    def pick(self, now: int, number: int = 0) -> tuple[Vcpu | None, int]:
        """Who runs next on the physical processor of that number, and for how long at most; None when nobody can.

        Call it before the run states change: that the current vCPU is still "running" tells preemption from yield.
        Calling it more often than needed changes nothing: who runs goes on until its slice is over.
        """
        ...

    def waiting(self) -> bool:
        """Is there a vCPU that waits for a processor?"""
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


class Pcpu(Generic[E]):
    """A physical processor as a policy sees it."""

    __slots__ = ("choice_due", "current", "number", "since", "slice_end", "woken")

    def __init__(self, number: int) -> None:
        self.number = number
        self.current: E | None = None
        self.since = 0
        """When who runs there was chosen."""
        self.slice_end = 0
        self.choice_due = False
        """Somebody asked for a new choice before the slice is over."""
        self.woken = False
        """The current vCPU has blocked and was woken before the next choice: that is no yield."""

    @property
    def yielded(self) -> bool:
        """Did the current vCPU give the processor up, though it can run?"""
        current = self.current
        return current is not None and current.vcpu.runstate == RUNNABLE and not self.woken

    def takes(self, vcpu: Vcpu) -> bool:
        """May the vCPU run here? (Xen: its hard affinity)"""
        return bool(vcpu.affinity >> self.number & 1)

    def keeps(self) -> bool:
        """Can the current vCPU go on here?"""
        return self.current is not None and can_run(self.current.vcpu) and self.takes(self.current.vcpu)


class RunQueue(ABC, Generic[E]):
    """One run queue for all physical processors, and when a choice is due for each.

    A choice is due when the slice is over, when the current vCPU gave the processor up, or when somebody woke who
    should have it. In between `pick` answers what it answered before, however often the machine asks: it stops for
    timers, for a user who steps, for the end of a run. Xen's credit keeps a queue for each processor, from which the
    others take when they are idle or have less urgent ones; this is where that leads.
    """

    def __init__(self, pcpus: int = 1) -> None:
        self.entries: dict[Vcpu, E] = {}
        self.queue: list[E] = []
        """Who waits for a processor; the current ones are not among them."""
        self.pcpus: list[Pcpu[E]] = [Pcpu(number) for number in range(pcpus)]

    def remove(self, vcpu: Vcpu) -> None:
        """Forget the vCPU."""
        entry = self.entries.pop(vcpu, None)
        if entry is None:
            return
        if entry in self.queue:
            self.queue.remove(entry)
        for pcpu in self.pcpus:
            if entry is pcpu.current:
                pcpu.current = None
        self.forget(entry)

    def sleep(self, vcpu: Vcpu) -> None:
        """Take the vCPU off the queue; a current one is told by its run state."""
        entry = self.entries.get(vcpu)
        if entry is not None and entry in self.queue:
            self.queue.remove(entry)

    def wake(self, vcpu: Vcpu) -> None:
        """Put the vCPU on the queue, if it can run and is not there."""
        entry = self.entries.get(vcpu)
        if entry is None or not can_run(vcpu):
            return
        for pcpu in self.pcpus:
            if entry is pcpu.current:
                pcpu.woken = True
                return
        if entry not in self.queue:
            self.awaken(entry, vcpu.hv.clock.now())

    def pick(self, now: int, number: int = 0) -> tuple[Vcpu | None, int]:
        """See Policy."""
        pcpu = self.pcpus[number]
        end = self.account(now)
        current = pcpu.current
        if (
            current is None
            or pcpu.choice_due
            or now >= pcpu.slice_end
            or current.vcpu.runstate != RUNNING
            or not pcpu.keeps()
        ):
            self.queue = [entry for entry in self.queue if can_run(entry.vcpu)]
            self.schedule(pcpu, now)
            pcpu.choice_due = pcpu.woken = False
            current = pcpu.current
            if current is None:
                return None, 0
        return current.vcpu, max(1, min(pcpu.slice_end, end) - now)

    def waiting(self) -> bool:
        """See Policy."""
        return bool(self.queue)

    def ask(self, pcpu: Pcpu[E], vcpu: Vcpu) -> None:
        """Interrupt whoever runs there, for the sake of `vcpu`: a choice is due."""
        pcpu.choice_due = True
        vcpu.hv.reschedule()

    def preferred(self, vcpu: Vcpu, key: Callable[[E], int]) -> Pcpu[E] | None:
        """Where a woken vCPU should run: on an idle processor, else where who runs has the least of `key`.

        Of equals, where it was before (Xen: __runq_tickle). None: it may run nowhere.
        """
        last = vcpu.pcpu
        return min(
            (pcpu for pcpu in self.pcpus if pcpu.takes(vcpu)),
            key=lambda pcpu: (pcpu.current is not None, key(pcpu.current) if pcpu.current else 0, pcpu.number != last),
            default=None,
        )

    # --- what a policy says ----------------------------------------------------------------------------------------

    @abstractmethod
    def account(self, now: int) -> int:
        """Do what time has made due; until when that is enough."""

    @abstractmethod
    def schedule(self, pcpu: Pcpu[E], now: int) -> None:
        """Choose: set the processor's `current` and `slice_end`. Who is in the queue can run, where it is taken."""

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
