"""One hundred and twenty-eight domains at once, of both widths, each with its console."""

from __future__ import annotations

import resource

from xentui.config import resolve_guest
from xentui.engine.dom0 import info
from xentui.engine.machine import Machine, Stop
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain import BLOCKED, Domain

DOMAINS = 128
MEMORY = 4
"""MiB that each has."""
HOST_MEMORY = 4 << 30


def test_a_hundred_and_twenty_eight_domains_at_once() -> None:
    machine = Machine(DOMAINS * MEMORY + DOMAINS // 16)
    free = machine.hv.frames.free_frames
    said: dict[str, bytearray] = {}

    def hear(domain: Domain, data: bytes) -> None:
        said.setdefault(domain.name, bytearray()).extend(data)

    machine.toolstack.on_output = hear
    for number in range(DOMAINS):
        spec = resolve_guest("hello32" if number % 2 else "hello64")
        spec.memory, spec.name = MEMORY, f"guest{number}"
        machine.create(spec)
    assert len(info.domains(machine)) == DOMAINS
    assert machine.run(1_000_000_000) == Stop.TIME
    assert all(domain.vcpus[0].runstate == BLOCKED for domain in machine.domains)
    for number, domain in enumerate(machine.domains):
        assert said[domain.name].startswith(f"Hello from hello{32 if number % 2 else 64}".encode())
        machine.toolstack.type(domain, f"I am number {number}\r".encode())
    machine.run(machine.now() + 500_000_000)
    for number, domain in enumerate(machine.domains):
        mine = f"I am number {number}\r".encode()
        assert said[domain.name].count(b"I am number") == said[domain.name].count(mine) > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < HOST_MEMORY
    for domain in machine.domains:
        machine.toolstack.type(domain, b"poweroff\r")
    assert machine.run() == Stop.FINISHED
    assert machine.hv.frames.free_frames == free and audit(machine.hv) == []
    machine.close()
