"""The machine as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xentui.engine.machine import Machine

VIEWS = ("summary", "log")


def summary(machine: Machine) -> dict[str, Any]:
    """What `xl info` would say, and what has been counted."""
    entry, frames = machine.entry, machine.hv.frames
    return {
        "time": machine.now(),
        "position": machine.position,
        "pace": machine.pace,
        "memory_mb": machine.ram_size >> 20,
        "free_mb": frames.free_frames >> 8,
        "domains": len(machine.domains),
        "hypercalls": entry.hypercalls,
        "traps": entry.traps,
        "direct_traps": entry.direct,
        "records": machine.trace.head,
        "cpus": len(machine.pcpus.all),
        "scheduler": machine.scheduler.name,
    }


def log(machine: Machine, lines: int = 1000) -> list[str]:
    """The hypervisor's own log, its last lines (`xl dmesg`)."""
    return machine.hv.log_lines[-lines:]
