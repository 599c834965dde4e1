"""The scheduler: its policy, its parameters, and what it knows of each vCPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.views.cpu import RUNSTATES
from xentui.engine.xen import cpulist

if TYPE_CHECKING:
    from xentui.engine.machine import Machine

VIEWS = ("state",)


def state(machine: Machine) -> dict[str, Any]:
    """The policy's name and parameters, and each vCPU: what it has and what the policy knows of it.

    `cpu` is the physical processor that it runs on or ran on last, of `cpus`, and `affinity` those that it may run on;
    `times` are virtual ns spent running, runnable, blocked and offline; `known` is what the policy keeps of it: weight
    and credits, or virtual times and warp.
    """
    now, policy = machine.now(), machine.scheduler
    vcpus = []
    for domain in machine.domains:
        for vcpu in domain.vcpus:
            times = list(vcpu.runstate_time)
            times[vcpu.runstate] += max(0, now - vcpu.runstate_since)
            vcpus.append(
                {
                    "domain": domain.id,
                    "name": domain.name,
                    "vcpu": vcpu.id,
                    "cpu": vcpu.pcpu,
                    "affinity": cpulist.text(vcpu.affinity),
                    "runstate": RUNSTATES[vcpu.runstate],
                    "times": times,
                    "known": policy.describe(vcpu),
                }
            )
    return {
        "policy": policy.name,
        "parameters": policy.parameters(),
        "cpus": len(machine.pcpus.all),
        "now": now,
        "vcpus": vcpus,
    }
