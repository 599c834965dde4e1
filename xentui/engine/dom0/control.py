"""What a person at domain 0 does to a domain: xl's pause, unpause, shutdown, reboot, save and resume, rename, mem-set.

Each function does its work at once, between two slices of the machine, as part of an action (actions.py); what it asks
of a guest's kernel (to power off, to suspend, to balloon) is a node in xenstore, which the kernel watches and may
ignore.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.xen import schedule
from xentui.engine.xen.abi.sched import SHUTDOWN_suspend
from xentui.engine.xen.vcpu_context import set_result

if TYPE_CHECKING:
    from xentui.engine.dom0.toolstack import Toolstack
    from xentui.engine.xen.domain import Domain

REQUESTS = ("poweroff", "halt", "reboot", "suspend")
"""What a guest's kernel can be asked to do by its node control/shutdown."""
MAXMEM_SLACK = 1024
"""KiB that a domain may have beyond its target (libxl: LIBXL_MAXMEM_CONSTANT)."""


class LifecycleError(ValueError):
    """The domain is not in a state for this, or there is no such thing; one line."""


def pause(domain: Domain) -> None:
    """Let none of the domain's vCPUs run until it is unpaused as often (Xen: domain_pause_by_systemcontroller)."""
    domain.paused += 1
    for vcpu in domain.vcpus:
        schedule.sleep(vcpu)


def unpause(domain: Domain) -> None:
    """Take one pause back. Raises LifecycleError if the domain is not paused."""
    if not domain.paused:
        raise LifecycleError(f"{domain.name} is not paused")
    domain.paused -= 1
    for vcpu in domain.vcpus:
        schedule.wake(vcpu)


def request(toolstack: Toolstack, domain: Domain, what: str) -> None:
    """Ask the guest's kernel to power off, halt, reboot or suspend, as `xl shutdown`, `reboot` and `save` do.

    A kernel that obeys clears the node first. Raises LifecycleError if the domain has ended.
    """
    if what not in REQUESTS:
        raise LifecycleError(f"{what} is nothing that a guest can be asked to do: {', '.join(REQUESTS)}")
    if domain.shutdown_code is not None:
        raise LifecycleError(f"{domain.name} has ended already")
    toolstack.store.write(f"/local/domain/{domain.id}/control/shutdown", what)


def crash(domain: Domain, reason: str = "crashed by the control domain") -> None:
    """Let the domain crash where it is, as one that made a mistake would."""
    if domain.shutdown_code is not None:
        raise LifecycleError(f"{domain.name} has ended already")
    domain.hv.crash(domain.vcpus[0], reason)


def resume(toolstack: Toolstack, domain: Domain) -> None:
    """Let a suspended domain go on where it is: its suspend hypercall returns 1, "cancelled" (libxl_domain_resume).

    (libxc: xc_resume.c, xc_domain_resume_cooperative.) Raises LifecycleError if the domain is not suspended.
    """
    if domain.shutdown_code != SHUTDOWN_suspend:
        raise LifecycleError(f"{domain.name} is not suspended")
    set_result(domain.vcpus[0], 1)
    domain.shutdown_code = domain.announced_shutdown_code = None
    toolstack.store.domains[domain.id] = False
    for vcpu in domain.vcpus:
        schedule.wake(vcpu)


def rename(toolstack: Toolstack, domain: Domain, name: str) -> None:
    """Give the domain another name, which no other has; its guest finds it in xenstore (libxl_domain_rename)."""
    if not name or not name.isprintable() or "/" in name:
        raise LifecycleError(f"{name!r} has characters that no domain's name may have, or none")
    if any(other.name == name for other in domain.hv.domains.values() if other is not domain and not other.dying):
        raise LifecycleError(f"there is a domain {name} already")
    store, home = toolstack.store, f"/local/domain/{domain.id}"
    domain.name = name
    store.write(f"{home}/name", name)
    vm = store.read(f"{home}/vm")
    if vm:
        store.write(f"{vm.decode()}/name", name)


def set_memory_target(toolstack: Toolstack, domain: Domain, mib: int) -> None:
    """Ask the guest's balloon to give memory back or take more, and let it have no more than that (`xl mem-set`).

    Raises LifecycleError for more than the domain's maximum (`maxmem`).
    """
    store, home = toolstack.store, f"/local/domain/{domain.id}/memory"
    maximum = int(store.read(f"{home}/static-max") or 0)
    kib = mib << 10
    if not 0 < kib <= maximum:
        raise LifecycleError(f"{domain.name} can have 1 to {maximum >> 10} MiB, not {mib}")
    domain.max_pages = (kib + MAXMEM_SLACK) >> 2
    store.write(f"{home}/target", str(kib))
