"""Faults: what was injected, and what of a machine a fault can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.xen.abi.grant_table import GTF_type_mask

if TYPE_CHECKING:
    from xentui.engine.machine import Machine

VIEWS = ("injected", "names")

_MOST_REFERENCES = 64


def injected(machine: Machine) -> list[dict[str, Any]]:
    """What was injected, newest first: number, time, text, sentence, whether it waits, strikes, result."""
    alive = {domain.name for domain in machine.domains if not domain.dying}
    return [
        {
            "number": fault.number,
            "time": fault.time,
            "text": fault.text,
            "sentence": fault.sentence,
            "waits": fault.waits and fault.values["domain"] in alive,
            "strikes": fault.strikes,
            "result": fault.result,
        }
        for fault in reversed(machine.faults)
    ]


def names(machine: Machine) -> dict[str, dict[str, list[int]]]:
    """For each domain by name, the numbers that its faults can name: ports in use, references granted, vCPUs."""
    found: dict[str, dict[str, list[int]]] = {}
    for domain in machine.domains:
        table, ram = domain.grants, machine.hv.ram
        granted: list[int] = []
        for reference in range(table.entries):
            if ram[table.offset(reference)] & GTF_type_mask:
                granted.append(reference)
                if len(granted) == _MOST_REFERENCES:
                    break
        found[domain.name] = {
            "PORT": domain.events.used(),
            "REFERENCE": granted,
            "VCPU": [vcpu.id for vcpu in domain.vcpus],
        }
    return found
