"""The domains, as `xl list` gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.dom0.info import cpu_time, domain_state

if TYPE_CHECKING:
    from xentui.engine.machine import Machine

VIEWS = ("list",)


def list(machine: Machine) -> Any:
    """Each domain: number, name, memory (MiB), vCPUs, state (`xl`'s six letters), CPU time (ns), word size."""
    now = machine.now()
    return [
        {
            "id": domain.id,
            "name": domain.name,
            "memory_mb": domain.tot_pages >> 8,
            "vcpus": len(domain.vcpus),
            "state": domain_state(domain),
            "cpu_ns": cpu_time(domain, now),
            "width": domain.width,
        }
        for domain in machine.domains
    ]
