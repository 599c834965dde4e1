"""The demonstration guest: a process that calls and faults, two domains on a shared ring, a shell."""

from __future__ import annotations

from collections import defaultdict

import pytest

from xentui.demonstration import guest_specifications
from xentui.engine.machine import Machine
from xentui.engine.trace import Kind
from xentui.engine.xen import unchecked
from xentui.engine.xen.domain import Domain

MS = 1_000_000


class Running:
    """A machine with some guests, whose consoles are collected."""

    def __init__(self, *guests: str) -> None:
        self.machine = Machine(64 * len(guests))
        self.machine.strict = True
        self.text: dict[int, str] = defaultdict(str)
        self.machine.toolstack.on_output = self._output
        self.domains = [self.machine.create(spec) for spec in guest_specifications(list(guests))]

    def _output(self, domain: Domain, data: bytes) -> None:
        self.text[domain.id] += data.decode().replace("\r", "")

    def run(self, ms: int) -> None:
        self.machine.run(self.machine.now() + ms * MS)

    def ask(self, domain: Domain, command: str, ms: int = 100) -> str:
        """What a command typed into the shell prints."""
        self.text[domain.id] = ""
        self.machine.toolstack.type(domain, command.encode() + b"\r")
        self.run(ms)
        return self.text[domain.id]


def test_two_domains_talk_over_a_granted_page() -> None:
    running = Running("demo32 peer=2", "demo64 peer=1")
    running.run(1000)
    asks, answers = running.domains
    told = running.ask(asks, "stat")
    assert "link to d2    57 asked, 57 answered; 19 events sent, 19 upcalls" in told
    assert "is 5\n" in told or "the smallest factor of" in told
    assert "straight from ring 3 to ring 1" in told
    told = running.ask(answers, "stat")
    assert "answered;" in told
    assert "through the hypervisor, both rings being 3" in told
    kinds = [record.kind for record in running.machine.trace.latest(2000)]
    for kind in (Kind.DIRECT_TRAP, Kind.SYSCALL, Kind.PAGE_FAULT, Kind.EVENT_SEND, Kind.EVENT_UPCALL):
        assert kind in kinds


def test_the_secret_is_safe_until_nobody_checks() -> None:
    running = Running("demo32 peer=2", "demo64 peer=1")
    running.run(300)
    thief = running.domains[1]
    assert "update_va_mapping says -16. It stays secret." in running.ask(thief, "steal")
    unchecked.switch_off(thief)
    assert 'reads: "the cake is in the cellar"' in running.ask(thief, "steal")


def test_a_flood_of_events_is_one_upcall() -> None:
    running = Running("demo32 peer=2", "demo64 peer=1")
    running.run(300)
    sender = running.domains[0]
    running.ask(sender, "requests 0")
    head = running.machine.trace.head
    running.ask(sender, "flood 40")
    records = running.machine.trace.latest(running.machine.trace.head - head)
    sent = [record for record in records if record.kind == Kind.EVENT_SEND and record.a == running.domains[1].id]
    assert len(sent) == 40
    assert sum(record.c for record in sent) == 39  # already pending


@pytest.mark.parametrize(("name", "ring"), [("demo32", 1), ("demo64", 3)])
def test_sensitive_instructions_trap_or_lie(name: str, ring: int) -> None:
    running = Running(name)
    running.run(50)
    told = running.ask(running.domains[0], "instructions")
    lines = {line.split()[0]: line for line in told.splitlines() if line.startswith("  ")}
    assert f"SILENT: ring {ring}, not 0" in told
    assert max(map(len, told.splitlines())) < 80, "each line is one on a terminal"
    *_, last = (line for line in told.splitlines() if "SILENT" in line or "TRAPPED" in line or "EMULATED" in line)
    assert "SILENT" in last, "what a demonstration tells of is what is seen last"
    assert "SILENT: nothing happened, they are on" in lines["popf"]
    assert "SILENT: says on; my events are masked" in lines["pushf"]
    assert "TRAPPED" in lines["lidt"]
    assert "EMULATED: fee00900" in lines["rdmsr"]


@pytest.mark.parametrize("name", ["demo32", "demo64"])
def test_its_shell(name: str) -> None:
    running = Running(name)
    running.run(50)
    domain = running.domains[0]
    assert "flood N" in running.ask(domain, "help")
    assert "no such command; type help" in running.ask(domain, "dance")
    running.ask(domain, "calls 50", 200)
    assert "rounds" in running.ask(domain, "stat")
    running.ask(domain, "poweroff")
    assert running.machine.domains == []
