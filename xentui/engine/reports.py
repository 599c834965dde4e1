"""What the engine's process tells of its machine: the status, and what happens to the guests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xentui.engine import messages as msg
from xentui.engine.dom0.typist import Typist
from xentui.engine.xen.abi.sched import SHUTDOWN_crash
from xentui.engine.xen.domain import BLOCKED, RUNNING, Vcpu

if TYPE_CHECKING:
    from typing import Any

    from xentui.engine.census import Census
    from xentui.engine.machine import Machine
    from xentui.engine.messages import DomainStatus, Setup, Told
    from xentui.engine.xen.domain import Domain


def domain_state(domain: Domain) -> str:
    """The six letters of `xl list` (tools/xl/xl_list.c)."""
    running = any(vcpu.runstate == RUNNING for vcpu in domain.vcpus)
    over = domain.shutdown_code is not None
    blocked = not running and not over and any(vcpu.online for vcpu in domain.vcpus)
    blocked = blocked and all(vcpu.runstate == BLOCKED for vcpu in domain.vcpus if vcpu.online)
    crashed = domain.shutdown_code == SHUTDOWN_crash
    flags = (running, blocked, bool(domain.paused), over and not crashed, crashed, domain.dying)
    return "".join(letter if flag else "-" for letter, flag in zip("rbpscd", flags, strict=True))


def cpu_time(domain: Domain, now: int) -> int:
    """Nanoseconds that its vCPUs have run."""
    total = 0
    for vcpu in domain.vcpus:
        total += vcpu.runstate_time[RUNNING]
        if vcpu.runstate == RUNNING:
            total += max(0, now - vcpu.runstate_since)
    return total


class Reporter:
    """The machine's history as it is told, and its status."""

    def __init__(self, machine: Machine, census: Census) -> None:
        self.machine, self.census = machine, census
        self.told = 0
        """How much of the history there is."""
        self.actions = 0
        """How many influences from outside were in it."""
        self.acting = False
        """What takes effect now comes from the user."""
        self._new: list[Told] = []
        self._typist: Typist | None = None
        toolstack = machine.toolstack
        toolstack.on_output = self._output
        toolstack.on_end = self._ended
        machine.hv.on_log = self._log

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
        self._new.append((self.told, event))
        self.told += 1

    def take(self) -> list[Told]:
        """What was not yet taken."""
        new, self._new = self._new, []
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

    def acted(self, position: int, action: Any) -> None:
        """An influence from outside has taken effect."""
        machine = self.machine
        self.tell(msg.Acted(position, machine.now(), action, self.actions, machine.trace.head, self.acting))
        self.actions += 1

    def status(self) -> msg.Status:
        """The machine's own part of the status; the console adds what it knows of the history."""
        machine = self.machine
        self.census.look()
        loaded = machine.processor.vcpu
        return msg.Status(
            position=machine.position,
            time=machine.now(),
            current=(loaded.domain.id, loaded.id) if isinstance(loaded, Vcpu) else None,
            records=machine.trace.head,
            domains=tuple(self._domain(domain) for domain in machine.domains),
            told=self.told,
            actions=self.actions,
        )

    def _domain(self, domain: Domain) -> DomainStatus:
        hypercalls, traps, direct, events, _ = self.census.of(domain.id)
        service = self.machine.toolstack.services.get(domain.id)
        return msg.DomainStatus(
            domain.id,
            domain.name,
            domain.width,
            domain_state(domain),
            len(domain.vcpus),
            domain.tot_pages,
            domain.max_pages,
            cpu_time(domain, self.machine.now()),
            hypercalls,
            traps,
            direct,
            events,
            service.written if service else 0,
        )
