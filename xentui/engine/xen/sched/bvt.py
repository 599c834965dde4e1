"""Borrowed Virtual Time: the paper's scheduler (SOSP'03 3.3.1; Duda and Cheriton, SOSP'99), as Xen 2.0 had it.

(Xen 2.0: common/sched_bvt.c.) Every vCPU has an *actual virtual time* (AVT) that grows while it runs, by its domain's
`mcu_advance` for each minimum charging unit begun, and the more slowly the greater the weight. Who has the least
*effective virtual time* (EVT) runs. A vCPU that wakes may *warp*: its EVT is set back by the domain's warp, so that it
runs at once, on borrowed time; what it uses is charged all the same, and its share in the long run is its weight's.
A warp ends when the vCPU blocks or after the warp limit, and then not before the unwarp time may it warp again.

Virtual times are in nanoseconds as they pass for a vCPU of the default weight that has the processor. Xen's counters
had 32 bits and wrapped; these do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.xen.domain import BLOCKED
from xentui.engine.xen.sched.policy import DEFAULT_WEIGHT, MAX_WEIGHT, Entry, Pcpu, RunQueue, can_run, checked

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

MCU = 100_000
"""The minimum charging unit: run time is charged in whole ones of these."""
CONTEXT_SWITCH_ALLOWANCE = 5_000_000
"""How long a vCPU may run before another takes its place, however far behind that one is."""
SLOP = 50_000
"""A slice that would end this soon anyway is not cut short."""
_ALONE = 10  # allowances that the only vCPU runs before the next choice
_LONG_AGO, _NEVER = -(1 << 62), 1 << 62
_SECOND = 1_000_000_000

_DOMAIN_BOUNDS = {
    "weight": (1, MAX_WEIGHT),
    "mcu_advance": (1, MCU * DEFAULT_WEIGHT),
    "warp": (0, 1000 * _SECOND),
    "warp_limit": (0, 1000 * _SECOND),
    "unwarp_time": (0, 1000 * _SECOND),
}
_OWN_BOUNDS = {"context_switch_allowance": (MCU, _SECOND)}


class _Parameters:
    """What a domain's vCPUs have in common (Xen: struct bvt_dom_info)."""

    __slots__ = ("mcu_advance", "unwarp_time", "warp", "warp_limit", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.mcu_advance = MCU * DEFAULT_WEIGHT // weight
        """Virtual time that passes in a minimum charging unit: the inverse of the weight."""
        self.warp = 0
        """Virtual nanoseconds by which a woken vCPU is ahead of its turn; 0: it never warps."""
        self.warp_limit = 0
        """How long a vCPU may stay warped after it woke; 0: until it blocks."""
        self.unwarp_time = 0
        """How long a vCPU that reached the limit may not warp."""


class _Task(Entry):
    """A vCPU's virtual times."""

    __slots__ = ("avt", "domain", "evt", "unwarped", "warpback", "warped")

    def __init__(self, vcpu: Vcpu, domain: _Parameters, start: int) -> None:
        super().__init__(vcpu)
        self.domain = domain
        self.avt = self.evt = start
        self.warpback = False
        """Is it warped?"""
        self.warped = self.unwarped = _LONG_AGO
        """When it woke last, and when a warp was last ended by the limit (virtual time of the machine)."""

    def calculate_evt(self, now: int) -> None:
        """The effective virtual time, and the end of a warp that has lasted too long (Xen: __calc_evt)."""
        self.evt = self.avt
        domain = self.domain
        if not self.warpback:
            return
        in_limit = not domain.warp_limit or now - self.warped < domain.warp_limit
        if in_limit and now - self.unwarped >= domain.unwarp_time:
            self.evt = self.avt - domain.warp
        else:
            if not in_limit:
                self.unwarped = now
            self.warpback = False


class BorrowedVirtualTime(RunQueue[_Task]):
    """The policy; see sched/policy.py for the interface."""

    name = "bvt"

    def __init__(self, context_switch_allowance: int = CONTEXT_SWITCH_ALLOWANCE, pcpus: int = 1) -> None:
        super().__init__(pcpus)
        self.context_switch_allowance = context_switch_allowance
        self.system_virtual_time = 0
        """The least AVT of those that could run at the last choice: where newcomers and sleepers begin."""
        self._domains: dict[Domain, _Parameters] = {}

    def add(self, vcpu: Vcpu, weight: int = DEFAULT_WEIGHT, cap: int = 0) -> None:
        """See Policy; a cap means nothing here: BVT shares a processor out, and never leaves it idle."""
        domain = self._domains.setdefault(vcpu.domain, _Parameters(max(1, weight)))
        self.entries[vcpu] = task = _Task(vcpu, domain, self.system_virtual_time)
        if can_run(vcpu):
            self.queue.append(task)

    def adjust(self, domain: Domain | None, **parameters: int) -> None:
        """Of a domain: weight or mcu_advance, warp, warp_limit, unwarp_time; of all: context_switch_allowance."""
        if domain is None:
            checked(parameters, _OWN_BOUNDS, self.name)
            self.context_switch_allowance = parameters.get("context_switch_allowance", self.context_switch_allowance)
            return
        checked(parameters, _DOMAIN_BOUNDS, f"a domain under {self.name}")
        mine = self._domains.get(domain)
        if mine is None:
            raise ValueError(f"{domain.name} has no vCPU that could run")
        if "weight" in parameters:
            mine.weight = parameters["weight"]
            mine.mcu_advance = MCU * DEFAULT_WEIGHT // mine.weight
        if "mcu_advance" in parameters:
            mine.mcu_advance = parameters["mcu_advance"]
            mine.weight = max(1, MCU * DEFAULT_WEIGHT // mine.mcu_advance)
        for name in ("warp", "warp_limit", "unwarp_time"):
            setattr(mine, name, parameters.get(name, getattr(mine, name)))

    def describe(self, vcpu: Vcpu) -> dict[str, int | str | bool]:
        """Parameters and virtual times, in nanoseconds."""
        task = self.entries.get(vcpu)
        if task is None:
            return {}
        mine = task.domain
        return {
            "weight": mine.weight,
            "mcu_advance": mine.mcu_advance,
            "avt": task.avt,
            "evt": task.evt,
            "warped": task.warpback and mine.warp > 0,
            "warp": mine.warp,
            "warp_limit": mine.warp_limit,
            "unwarp_time": mine.unwarp_time,
        }

    def parameters(self) -> dict[str, int]:
        """The context-switch allowance, in nanoseconds."""
        return {"context_switch_allowance": self.context_switch_allowance}

    # --- choosing --------------------------------------------------------------------------------------------------

    def account(self, now: int) -> int:
        """Nothing is due between choices."""
        return _NEVER

    def forget(self, entry: _Task) -> None:
        """The domain's parameters go with its last vCPU."""
        if not any(other.domain is entry.domain for other in self.entries.values()):
            del self._domains[entry.vcpu.domain]

    def awaken(self, entry: _Task, now: int) -> None:
        """Start no further back than the others are, warped, and take the processor when its allowance is over."""
        entry.avt = max(entry.avt, self.system_virtual_time)
        entry.warpback, entry.warped = True, now
        entry.calculate_evt(now)
        self.queue.insert(0, entry)
        pcpu = self.preferred(entry.vcpu, lambda other: -other.evt)
        if pcpu is None:
            return
        earliest = pcpu.since + self.context_switch_allowance
        if pcpu.current is None or earliest <= now:
            self.ask(pcpu, entry.vcpu)
        elif pcpu.slice_end > earliest + SLOP:
            pcpu.slice_end = earliest
            entry.vcpu.hv.reschedule()

    def schedule(self, pcpu: Pcpu[_Task], now: int) -> None:
        """Charge who ran; choose the least EVT, of equals who waits longest (Xen: bvt_do_schedule)."""
        current, yielded = pcpu.current, pcpu.yielded
        if current is not None:
            self._charge(current, now - pcpu.since)
            if current.vcpu.runstate == BLOCKED:
                current.warpback = False
            current.calculate_evt(now)
            if can_run(current.vcpu):
                self.queue.append(current)
        pcpu.since, pcpu.current = now, None
        here = [task for task in self.queue if pcpu.takes(task.vcpu)]
        if not here:
            return
        self.system_virtual_time = min(task.avt for task in self.queue)
        others = [task for task in here if task is not current] if yielded else []
        chosen = min(others or here, key=lambda task: task.evt)
        self.queue.remove(chosen)
        here.remove(chosen)
        pcpu.current = chosen
        pcpu.slice_end = now + self._slice(chosen, now, here)

    @staticmethod
    def _charge(task: _Task, ran: int) -> None:
        """Virtual time for every charging unit begun since the last choice."""
        units = (ran + MCU - 1) // MCU
        task.avt += units * task.domain.mcu_advance

    def _slice(self, chosen: _Task, now: int, others: list[_Task]) -> int:
        """Until its EVT is beyond that of the next in line, and the allowance more; not past the end of its warp."""
        allowance = self.context_switch_allowance
        if not others:
            length = _ALONE * allowance
        else:
            ahead = max(0, min(task.evt for task in others) - chosen.evt)
            length = ahead * MCU // chosen.domain.mcu_advance + allowance
        limit = chosen.domain.warp_limit
        if chosen.warpback and chosen.domain.warp and limit:
            length = min(length, max(MCU, chosen.warped + limit - now))
        return length
