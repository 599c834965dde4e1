"""Destroying domains while others run: `xl destroy`, and the toolstack's loop around a hypercall that gives way.

What a domain has is taken from it in pieces, between the slices of all others (xen/domain_kill.py). A piece is short,
and while somebody wants the processor there is a pause behind it: nobody waits longer than for one piece, however much
there is to destroy. Domains are destroyed one after another, as one who sits at domain 0 does it. The time is the
machine's own: there is no control domain that could be charged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.xen.domain_kill import domain_kill
from xentui.engine.xen.page_type import Freeing
from xentui.engine.xen.sched.policy import can_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain

PIECE = 10_000
"""Nanoseconds after which a piece is over; what is begun then takes less than as much again."""
PAUSE = 90_000
"""Nanoseconds that others run before the next piece, if they can."""

_NEXT_PIECE = "the next piece of a domain that is destroyed"


class Destroyer:
    """The domains that are being destroyed, the first of them piece by piece."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._dying: list[tuple[Iterator[None], Domain, Callable[[], None]]] = []
        self._rested = 0
        """Up to when others have the processor."""

    def __bool__(self) -> bool:
        """Is there anything left to do?"""
        return bool(self._dying)

    def destroy(self, domain: Domain, gone: Callable[[], None]) -> None:
        """Take everything from a domain that is off the processor; `gone` is called when it has nothing left."""
        self._dying.append((domain_kill(domain), domain, gone))
        self._go_on()

    def _go_on(self) -> None:
        """Destroy until it is somebody else's turn, or all is done."""
        clock, timers = self._machine.clock, self._machine.hv.timers
        timers.cancel(_NEXT_PIECE)
        while self._dying:
            if clock.now() < self._rested and self._is_somebody_elses_turn():
                timers.set(_NEXT_PIECE, self._rested, self._go_on)
                return
            self._piece()
            self._rested = clock.now() + PAUSE

    def _piece(self) -> None:
        work, domain, gone = self._dying[0]
        hv, clock = self._machine.hv, self._machine.clock
        end = clock.position() + 2 * PIECE
        preempt, slice_left = hv.preempt, hv.slice_left
        hv.preempt, hv.slice_left = lambda: clock.position() >= end, lambda: end - clock.position()
        try:
            with Freeing(domain):
                for _ in work:
                    if clock.position() >= end:
                        return
        finally:
            hv.preempt, hv.slice_left = preempt, slice_left
        del self._dying[0]
        gone()

    def _is_somebody_elses_turn(self) -> bool:
        """Can a vCPU run, or is a timer or an action due that may let one?"""
        machine = self._machine
        deadline = machine.hv.timers.next_deadline()
        if deadline is not None and deadline <= machine.clock.now():
            return True
        if machine.scheduled and machine.scheduled[0][0] <= machine.position:
            return True
        return any(can_run(vcpu) for domain in machine.domains for vcpu in domain.vcpus)
