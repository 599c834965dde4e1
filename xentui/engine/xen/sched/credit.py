"""The credit scheduler: weights, caps, and a boost for who wakes (Xen: common/sched/credit.c).

Time is shared out in credits, ten a millisecond. Who runs burns them; at the end of each period (a slice long) the
credits of a period are dealt to the domains that have been running, by weight. A vCPU with credits left has priority
UNDER, one without OVER, and one that wakes with credits left is BOOSTed past both until it has been found running at a
tick. Of equals, who has waited longest runs. A domain with a cap earns no more than that, and while it owes more than
a period's worth its vCPUs are parked: they do not run though nobody else may want to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.xen import schedule
from xentui.engine.xen.sched.policy import DEFAULT_WEIGHT, MAX_CAP, MAX_WEIGHT, Entry, Pcpu, RunQueue, can_run, checked

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

BOOST, UNDER, OVER = 0, -1, -2
PRIORITIES = {BOOST: "boost", UNDER: "under", OVER: "over"}

MILLISECOND = 1_000_000
SLICE = 30 * MILLISECOND
"""How long a vCPU runs at most before another has its turn, and after how long credits are dealt."""
RATE_LIMIT = MILLISECOND
"""How long a vCPU runs at least before it is preempted."""
CREDITS_PER_MS = 10
TICKS_PER_SLICE = 3

_DOMAIN_BOUNDS = {"weight": (1, MAX_WEIGHT), "cap": (0, MAX_CAP)}
_OWN_BOUNDS = {"slice": (MILLISECOND, 1000 * MILLISECOND), "rate_limit": (0, 500 * MILLISECOND)}
_PARKED = "parked vCPUs of the credit scheduler"


class _Share:
    """A domain's part (Xen: struct csched_dom)."""

    __slots__ = ("active", "cap", "weight")

    def __init__(self, weight: int, cap: int) -> None:
        self.weight, self.cap = weight, cap
        self.active: list[_Unit] = []
        """Its vCPUs that have been found running, and earn credits."""


class _Unit(Entry):
    """A vCPU's credits (Xen: struct csched_unit)."""

    __slots__ = ("credit", "parked", "priority", "residue", "share", "since")

    def __init__(self, vcpu: Vcpu, share: _Share) -> None:
        super().__init__(vcpu)
        self.share = share
        self.credit = 0
        self.priority = UNDER
        self.residue = 0
        """Run time not yet charged, in ten-millionths of a credit's millisecond."""
        self.since = 0
        """Up to when its run time is charged, while it runs."""
        self.parked = False

    def burn(self, now: int) -> None:
        """Charge the run time since it was last charged (Xen: burn_credits)."""
        credits, self.residue = divmod((now - self.since) * CREDITS_PER_MS + self.residue, MILLISECOND)
        self.credit -= credits
        self.since = now


class Credit(RunQueue[_Unit]):
    """The policy; see sched/policy.py for the interface."""

    name = "credit"

    def __init__(self, slice_ns: int = SLICE, rate_limit: int = RATE_LIMIT, pcpus: int = 1) -> None:
        super().__init__(pcpus)
        self.rate_limit = rate_limit
        self._domains: dict[Domain, _Share] = {}
        self._active: list[_Share] = []
        self._balance = 0
        self._set_slice(slice_ns, 0)

    def _set_slice(self, slice_ns: int, now: int) -> None:
        self.slice_ns = slice_ns
        self.credits_per_slice = CREDITS_PER_MS * slice_ns // MILLISECOND
        self._tick = slice_ns // (TICKS_PER_SLICE if slice_ns >= TICKS_PER_SLICE * MILLISECOND else 1)
        self._next_tick = now - now % self._tick + self._tick
        self._next_deal = now - now % slice_ns + slice_ns

    def add(self, vcpu: Vcpu, weight: int = DEFAULT_WEIGHT, cap: int = 0) -> None:
        """See Policy."""
        share = self._domains.setdefault(vcpu.domain, _Share(max(1, weight), cap))
        self.entries[vcpu] = unit = _Unit(vcpu, share)
        if can_run(vcpu):
            self._insert(unit)

    def adjust(self, domain: Domain | None, **parameters: int) -> None:
        """Of a domain: weight, cap (percent, 0: none); of all: slice and rate_limit (nanoseconds)."""
        if domain is None:
            checked(parameters, _OWN_BOUNDS, self.name)
            slice_ns = parameters.get("slice", self.slice_ns)
            limit = parameters.get("rate_limit", self.rate_limit)
            if limit > slice_ns:
                raise ValueError(f"rate_limit = {limit} is longer than the slice of {slice_ns}")
            self.rate_limit = limit
            if slice_ns != self.slice_ns:
                self._set_slice(slice_ns, self._next_tick - self._tick)
            return
        checked(parameters, _DOMAIN_BOUNDS, f"a domain under {self.name}")
        share = self._domains.get(domain)
        if share is None:
            raise ValueError(f"{domain.name} has no vCPU that could run")
        share.weight = parameters.get("weight", share.weight)
        share.cap = parameters.get("cap", share.cap)

    def describe(self, vcpu: Vcpu) -> dict[str, int | str | bool]:
        """Parameters, credits (ten are a millisecond of processor time) and priority."""
        unit = self.entries.get(vcpu)
        if unit is None:
            return {}
        return {
            "weight": unit.share.weight,
            "cap": unit.share.cap,
            "credit": unit.credit,
            "priority": PRIORITIES[unit.priority],
            "active": unit in unit.share.active,
            "parked": unit.parked,
        }

    def parameters(self) -> dict[str, int]:
        """The slice and the rate limit, in nanoseconds."""
        return {"slice": self.slice_ns, "rate_limit": self.rate_limit}

    # --- choosing --------------------------------------------------------------------------------------------------

    def forget(self, entry: _Unit) -> None:
        """No more credits for it."""
        self._stop_earning(entry)
        entry.vcpu.parked = False
        if not any(other.share is entry.share for other in self.entries.values()):
            del self._domains[entry.vcpu.domain]

    def awaken(self, entry: _Unit, now: int) -> None:
        """Boost who has credits left, and let it preempt who has a lower priority (Xen: csched_unit_wake)."""
        if entry.priority == UNDER and not entry.parked:
            entry.priority = BOOST
        self._insert(entry)
        pcpu = self.preferred(entry.vcpu, lambda other: other.priority)
        if pcpu is not None and (pcpu.current is None or entry.priority > pcpu.current.priority):
            self.ask(pcpu, entry.vcpu)

    def schedule(self, pcpu: Pcpu[_Unit], now: int) -> None:
        """Charge who ran, and take the first of the queue that may run here (Xen: csched_schedule)."""
        current, yielded = pcpu.current, pcpu.yielded
        if current is not None:
            current.burn(now)
            if pcpu.keeps() and not yielded and now - pcpu.since < self.rate_limit:
                pcpu.slice_end = pcpu.since + self.rate_limit
                return
            if can_run(current.vcpu):
                self._insert(current, yielded)
        pcpu.current = chosen = next((unit for unit in self.queue if pcpu.takes(unit.vcpu)), None)
        if chosen is None:
            self._mind_the_parked()
            return
        self.queue.remove(chosen)
        if chosen is not current or yielded:
            pcpu.since = now
        chosen.since = now
        pcpu.slice_end = now + self.slice_ns

    def _insert(self, unit: _Unit, yielded: bool = False) -> None:
        """Behind all of its priority; behind one of a lower priority too, if it yielded (Xen: __runq_insert)."""
        queue = self.queue
        place = next((at for at, other in enumerate(queue) if unit.priority > other.priority), len(queue))
        queue.insert(place + 1 if yielded and place < len(queue) else place, unit)

    # --- accounting ------------------------------------------------------------------------------------------------

    def account(self, now: int) -> int:
        """The tick, and at the end of a period the deal; when the next tick is due (Xen: csched_tick)."""
        if now < self._next_tick:
            return self._next_tick
        for pcpu in self.pcpus:
            if pcpu.current is not None:
                self._account_current(pcpu.current, now)
        self._next_tick = now - now % self._tick + self._tick
        while now >= self._next_deal:
            if not self._active:
                self._balance = 0
                self._next_deal = now - now % self.slice_ns + self.slice_ns
                break
            self._deal()
            self._next_deal += self.slice_ns
        self.queue.sort(key=lambda unit: unit.priority < UNDER)
        return self._next_tick

    def _account_current(self, unit: _Unit, now: int) -> None:
        """Found running: charge it, end its boost, let it earn (Xen: csched_unit_acct)."""
        unit.burn(now)
        if unit.priority == BOOST:
            unit.priority = UNDER
        share = unit.share
        if unit not in share.active:
            share.active.insert(0, unit)
            if share not in self._active:
                self._active.insert(0, share)

    def _stop_earning(self, unit: _Unit) -> None:
        share = unit.share
        if unit in share.active:
            share.active.remove(unit)
            if not share.active:
                self._active.remove(share)

    def _deal(self) -> None:
        """Deal a period's credits to the active domains, by weight, up to their caps (Xen: csched_acct)."""
        total_weight = left = sum(share.weight * len(share.active) for share in self._active)
        total, balance, extra = self.credits_per_slice * len(self.pcpus), 0, False
        if self._balance < 0:
            total -= self._balance  # what was overspent comes back by and by
        for share in list(self._active):
            weight = share.weight * len(share.active)
            left -= weight
            peak, floor = self._most(share, weight, total_weight)
            fair = _divide_up(total * weight, total_weight)
            if fair < peak:
                extra = True
            else:
                if left:
                    total += _divide_up((fair - peak) * total_weight, left)
                if extra:  # let others have first pick of what is left over next time
                    self._active.remove(share)
                    self._active.insert(0, share)
                fair = peak
            each = _divide_up(fair, len(share.active))
            balance += sum(self._earn(unit, each, floor) for unit in list(share.active))
        self._balance = balance

    def _most(self, share: _Share, weight: int, total_weight: int) -> tuple[int, int]:
        """What a domain can earn in a period, and how much each of its vCPUs may owe before it is parked (0: any)."""
        peak, floor = len(share.active) * self.credits_per_slice, 0
        if self._balance < 0:
            peak += _divide_up(-self._balance * weight, total_weight)
        if share.cap:
            cap = _divide_up(share.cap * self.credits_per_slice, 100)
            peak, floor = min(peak, cap), _divide_up(cap, len(share.active))
        return peak, floor

    def _earn(self, unit: _Unit, credits: int, floor: int) -> int:
        """Give a vCPU its credits, and set its priority by what it has then; that."""
        most = self.credits_per_slice
        unit.credit += credits
        if unit.credit < 0:
            unit.priority = OVER
            if unit.share.cap and unit.credit < -floor and not unit.parked:
                self._park(unit)
            unit.credit = max(unit.credit, -most)
        else:
            unit.priority = UNDER
            if unit.parked:
                self._unpark(unit)
            if unit.credit > most:  # it does not need them: no more until it is found running again
                self._stop_earning(unit)
                unit.credit //= 2
        return unit.credit

    # --- caps ------------------------------------------------------------------------------------------------------

    def _park(self, unit: _Unit) -> None:
        unit.parked = unit.vcpu.parked = True
        schedule.sleep(unit.vcpu)

    def _unpark(self, unit: _Unit) -> None:
        unit.vcpu.parked = False
        schedule.wake(unit.vcpu)
        unit.parked = False  # afterwards: it is not boosted for this

    def _mind_the_parked(self) -> None:
        """Nobody can run, but a parked vCPU will when credits have been dealt: time must not pass that by."""
        for vcpu, unit in self.entries.items():
            if unit.parked:
                vcpu.hv.timers.set(_PARKED, self._next_deal, _nothing)
                return


def _nothing() -> None:
    """The machine looks for work again: `account` does the rest."""


def _divide_up(dividend: int, divisor: int) -> int:
    """Rounded up, as Xen divides credits."""
    return -(-dividend // divisor)
