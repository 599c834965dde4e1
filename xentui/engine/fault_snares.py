"""Faults that lie in wait: for a hypercall, for an event, for a vCPU to go on.

While any waits, one entry of the engine is swapped for a closure that looks at those that wait there: the handler in
`hypercall.TABLE`, a domain's `EventChannels.set_pending`, or `Entry.leave`. When the last one has struck the entry is
as it was, so that the trap path costs nothing when nothing waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.trace import U64, Kind
from xentui.engine.x86.exceptions import HAS_ERROR_CODE, X86_EXC_PF
from xentui.engine.xen import hypercall, traps
from xentui.engine.xen.domain import RUNNING
from xentui.engine.xen.event_channel import RESERVED

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.faults import Injection
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain, Vcpu

    Deliver = Callable[[int], bool]
    Effect = Callable[[int, Deliver], bool]


def record(machine: Machine, vcpu: Vcpu, injection: Injection, a: int = 0, b: int = 0, c: int = 0) -> None:
    """A trace record of a fault that is injected, or of its latest strike."""
    machine.hv.put(
        machine.now(), 0, Kind.INJECT, vcpu.id, vcpu.domain.id, injection.kind.number,
        a & U64, b & U64, c & U64, injection.strikes, injection.result & U64,
    )  # fmt: skip


class Place:
    """An entry that is swapped, and who waits there."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self.waiting: list[Any] = []
        self.restore = restore


class Snare:
    """One fault that waits at `key`, and which of its chances it takes: the next, the nth, every so many."""

    def __init__(self, machine: Machine, injection: Injection, key: Any) -> None:
        self.machine, self.injection, self.key = machine, injection, key
        self.seen = 0
        self.nth, self.every = injection.values.get("nth", 0) or 1, injection.values.get("every", 0)

    def strikes(self) -> bool:
        """Is this chance taken?"""
        self.seen += 1
        struck = self.seen % self.every == 0 if self.every else self.seen == self.nth
        if struck:
            self.injection.strikes += 1
            if not self.every:
                self.remove()
        return struck

    def set(self, swap: Callable[[], Callable[[], None]]) -> None:
        """Wait from now on. `swap` puts the closure in the entry's place, for the first that waits there, and returns
        what puts it back."""
        places = self.machine.snares
        if self.key not in places:
            places[self.key] = Place(swap())
        places[self.key].waiting.append(self)
        self.injection.waits = True

    def remove(self) -> None:
        """Wait no longer; who is the last leaves the entry as it was."""
        self.injection.waits = False
        place = self.machine.snares[self.key]
        place.waiting.remove(self)
        if not place.waiting:
            del self.machine.snares[self.key]
            place.restore()

    def waiting(self) -> Callable[[], list[Any]]:
        """A function that gives all that wait at the same entry, in the order in which they came."""
        places, key = self.machine.snares, self.key
        return lambda: list(places[key].waiting) if key in places else []


def disarm(machine: Machine, domain: Domain) -> int:
    """Take away everything that waits for a domain; how many that were."""
    mine = [snare for place in machine.snares.values() for snare in place.waiting if snare.domain is domain]
    for snare in mine:
        snare.remove()
    return len(mine)


# --- hypercalls ----------------------------------------------------------------------------------------------------


class CallSnare(Snare):
    """Answers a hypercall of a domain with an error, without carrying it out."""

    def __init__(self, machine: Machine, injection: Injection, domain: Domain, number: int, error: int) -> None:
        super().__init__(machine, injection, ("hypercall", number))
        self.domain, self.number, self.error = domain, number, error

    def arm(self) -> None:
        """Wait for the hypercall."""
        self.set(self._swap)

    def _swap(self) -> Callable[[], None]:
        table, number, waiting = hypercall.TABLE, self.number, self.waiting()
        original = table[number]

        def handler(vcpu: Vcpu, a: int, b: int, c: int, d: int) -> int:
            for snare in waiting():
                if vcpu.domain is snare.domain and snare.strikes():
                    snare.injection.result = -snare.error
                    record(snare.machine, vcpu, snare.injection, number, a, b)
                    return -int(snare.error)
            return original(vcpu, a, b, c, d)

        def restore() -> None:
            if table[number] is handler:
                table[number] = original

        table[number] = handler
        return restore


# --- events --------------------------------------------------------------------------------------------------------


class EventSnare(Snare):
    """Puts `effect(port, deliver)` in the place of an event to a port."""

    def __init__(self, machine: Machine, injection: Injection, domain: Domain, port: int, effect: Effect) -> None:
        super().__init__(machine, injection, ("events", domain.id))
        self.domain, self.port, self.effect = domain, port, effect

    def arm(self) -> None:
        """Wait for an event."""
        self.set(self._swap)

    def _swap(self) -> Callable[[], None]:
        events, waiting = self.domain.events, self.waiting()
        deliver: Deliver = events.set_pending
        entries = vars(events)

        def set_pending(port: int) -> bool:
            for snare in waiting():
                if snare.port == port and snare.strikes():
                    record(snare.machine, events.vcpu_of(port), snare.injection, port)
                    return bool(snare.effect(port, deliver))
            return deliver(port)

        def restore() -> None:
            if entries.get("set_pending") is set_pending:
                del entries["set_pending"]

        entries["set_pending"] = set_pending
        return restore


def later(machine: Machine, domain: Domain, port: int, ns: int, deliver: Deliver) -> None:
    """An event some time from now, if the domain and its port are still there."""

    def arrive() -> None:
        if not domain.dying and domain.events.channels[port].state > RESERVED:
            deliver(port)

    machine.hv.timers.set(arrive, machine.now() + ns, arrive)


# --- exceptions ----------------------------------------------------------------------------------------------------


class ExceptionSnare(Snare):
    """Raises an exception in a vCPU the next time that it goes on."""

    def __init__(self, machine: Machine, injection: Injection, vcpu: Vcpu, vector: int) -> None:
        super().__init__(machine, injection, "leave")
        self.domain, self.vcpu, self.vector = vcpu.domain, vcpu, vector

    def arm(self) -> None:
        """Wait for the vCPU."""
        self.set(self._swap)

    def _swap(self) -> Callable[[], None]:
        waiting, leave, entries = self.waiting(), self.machine.entry.leave, vars(self.machine.entry)

        def raise_and_leave(vcpu: Vcpu) -> None:
            for snare in waiting():
                if snare.vcpu is vcpu and vcpu.runstate == RUNNING and vcpu.domain.runnable and snare.strikes():
                    snare.strike()
            leave(vcpu)

        def restore() -> None:
            if entries.get("leave") is raise_and_leave:
                del entries["leave"]

        entries["leave"] = raise_and_leave
        return restore

    def strike(self) -> None:
        """The vCPU has the processor: enter its handler."""
        values, vcpu, vector = self.injection.values, self.vcpu, self.vector
        record(self.machine, vcpu, self.injection, vector, values["error"], values["address"])
        if vector == X86_EXC_PF:
            traps.inject_page_fault(vcpu, values["address"], values["error"])
        else:
            traps.inject(vcpu, vector, values["error"] if HAS_ERROR_CODE >> vector & 1 else None)
