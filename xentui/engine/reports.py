"""What the engine's process tells of its machine: the status, and what happens to the guests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xentui.engine import messages as msg
from xentui.engine.actions import ActionError
from xentui.engine.dom0 import info
from xentui.engine.dom0.typist import Typist

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from xentui.engine.actions import Action
    from xentui.engine.census import Census
    from xentui.engine.machine import Machine
    from xentui.engine.messages import DomainStatus, Told
    from xentui.engine.setup import Setup
    from xentui.engine.xen.domain import Domain


class Announced:
    """An influence from outside that is told when it takes effect; stands for the action itself."""

    def __init__(self, reporter: Reporter, action: Action, fresh: bool) -> None:
        self.reporter, self.action, self.fresh = reporter, action, fresh

    def perform(self, machine: Machine) -> None:
        """Tell it and do it. One that cannot be done has still ended a slice, and is part of the history; a fresh one
        raises ActionError, too."""
        reporter = self.reporter
        reporter.tell(
            msg.Acted(machine.position, machine.now(), self.action, reporter.actions, machine.trace.head, self.fresh)
        )
        reporter.actions += 1
        try:
            self.action.perform(machine)
        except ActionError as error:
            machine.hv.log(f"what was to happen now cannot: {error}")
            if self.fresh:
                raise


class Reporter:
    """The machine's history as it is told, and its status."""

    def __init__(self, machine: Machine, census: Census | None = None) -> None:
        self.machine, self.census = machine, census
        self.told = 0
        """How much of the history there is."""
        self.actions = 0
        """How many influences from outside were in it."""
        self.untaken: list[Told] = []
        """What `take` has not yet taken."""
        self.on_event: Callable[[Any], None] | None = None
        """Hears each event instead of `take`."""
        self._typist: Typist | None = None
        toolstack = machine.toolstack
        toolstack.on_output = self._output
        toolstack.on_end = self._ended
        machine.hv.on_log = self._log

    def announced(self, action: Action, fresh: bool = False) -> Any:
        """The action as the machine is to be given it. `fresh`: the user wants it now."""
        return Announced(self, action, fresh)

    def connect_typist(self, setup: Setup) -> None:
        """Let what the set-up says be typed into the first guest's console."""
        if setup.typist is None:
            return
        text, prompt = setup.typist
        self._typist = Typist(
            self.machine, setup.specs[0].name, text, re.compile(prompt, re.MULTILINE) if prompt else None, self._typed
        )

    def tell(self, event: Any) -> None:
        """Something happened: the next part of the history."""
        if self.on_event is not None:
            self.on_event(event)
        else:
            self.untaken.append((self.told, event))
        self.told += 1

    def take(self) -> list[Told]:
        """What was told since the last time."""
        new, self.untaken = self.untaken, []
        return new

    def _output(self, domain: Domain, data: bytes) -> None:
        self.tell(msg.Output(domain.id, self.machine.now(), bytes(data)))
        if self._typist is not None:
            self._typist.heard(domain, data)

    def _typed(self, domain: Domain, data: bytes) -> None:
        self.tell(msg.Typed(domain.id, self.machine.now(), bytes(data)))

    def _ended(self, domain: Domain, reason: str) -> None:
        self.tell(msg.Ended(domain.id, domain.name, reason, self.machine.now()))
        why = f": {domain.crash_reason}" if domain.crash_reason else ""
        self.tell(msg.LogLine(self.machine.now(), f"(XEN) {domain.name}: {reason}{why}"))

    def _log(self, line: str) -> None:
        self.tell(msg.LogLine(self.machine.now(), line))

    def status(self) -> msg.Status:
        """The machine's own part of the status; the console adds what it knows of the history."""
        machine = self.machine
        if self.census is not None:
            self.census.look()
        current = machine.current
        return msg.Status(
            position=machine.position,
            time=machine.now(),
            current=(current.domain.id, current.id) if current is not None else None,
            records=machine.trace.head,
            domains=tuple(self._domain(domain) for domain in machine.domains),
            told=self.told,
            actions=self.actions,
        )

    def _domain(self, domain: Domain) -> DomainStatus:
        hypercalls, traps, direct, events, _ = self.census.of(domain.id) if self.census else [0] * 5
        service = self.machine.toolstack.services.get(domain.id)
        return msg.DomainStatus(
            domain.id,
            domain.name,
            domain.width,
            info.domain_state(domain),
            len(domain.vcpus),
            domain.tot_pages,
            domain.max_pages,
            info.cpu_time(domain, self.machine.now()),
            hypercalls,
            traps,
            direct,
            events,
            service.written if service else 0,
        )
