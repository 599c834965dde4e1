"""What a scheduling policy does for the machine: one module a policy behind this interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu


class Policy(Protocol):
    """Chooses among the vCPUs that can run. Times are virtual nanoseconds."""

    name: str

    def add(self, vcpu: Vcpu, weight: int = 256) -> None:
        """The vCPU exists; it is considered from now on. `weight`: its share relative to others'."""
        ...

    def remove(self, vcpu: Vcpu) -> None:
        """The vCPU is gone."""
        ...

    def wake(self, vcpu: Vcpu) -> None:
        """The vCPU can run (again)."""
        ...

    def sleep(self, vcpu: Vcpu) -> None:
        """The vCPU cannot run: blocked, down, or its domain paused."""
        ...

    def pick(self, now: int) -> tuple[Vcpu | None, int]:
        """Who runs next, and for how long at most; None when nobody can.

        Call it before the run states change: that the current vCPU is still "running" tells preemption from yield.
        """
        ...


def can_run(vcpu: Vcpu) -> bool:
    """Running or runnable, and its domain too."""
    return vcpu.runstate < 2 and vcpu.online and vcpu.domain.runnable
