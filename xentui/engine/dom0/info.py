"""What domain 0 can tell of the machine and its domains: `xl list`, `vcpu-list`, `info` and `dmesg`, as plain values.

Names and units are those of the commands; times are integers in virtual nanoseconds.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from xentui.engine.xen import cpulist, kernel
from xentui.engine.xen.abi.arch_x86_64 import HYPERVISOR_VIRT_START
from xentui.engine.xen.abi.sched import SHUTDOWN_crash
from xentui.engine.xen.domain import BLOCKED, RUNNING
from xentui.engine.xen.hypervisor import VERSION_EXTRA, VERSION_MAJOR, VERSION_MINOR
from xentui.engine.xen.time import TSC_HZ

if TYPE_CHECKING:
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain, Vcpu

Values = dict[str, int | str]


def domains(machine: Machine) -> list[Values]:
    """A line of `xl list` for each domain, oldest first."""
    return [domain_info(machine, domain) for domain in machine.domains]


def domain_info(machine: Machine, domain: Domain) -> Values:
    """Who a domain is, what it has and how it is (Xen: getdomaininfo). `mem` and `maxmem` are in MiB."""
    now = machine.now()
    return {
        "name": domain.name,
        "domid": domain.id,
        "uuid": str(uuid.UUID(bytes=domain.handle)),
        "width": domain.width,
        "mem": -(-domain.tot_pages // 256),
        "maxmem": domain.max_pages // 256,
        "vcpus": sum(vcpu.online for vcpu in domain.vcpus),
        "state": domain_state(domain),
        "time": cpu_time(domain, now),
    }


def domain_state(domain: Domain) -> str:
    """The letters of `xl list`: running, blocked, paused, shutdown, crashed, dying; a dash where one does not hold.

    (Xen: getdomaininfo, and tools/xl/xl_list.c.) One that has crashed has shut down, too.
    """
    online = [vcpu for vcpu in domain.vcpus if vcpu.online]
    ended = domain.shutdown_code is not None
    holds = {
        "r": any(vcpu.runstate == RUNNING for vcpu in online) and not ended,
        "b": bool(online) and all(vcpu.runstate == BLOCKED for vcpu in online),
        "p": domain.paused > 0,
        "s": ended,
        "c": domain.shutdown_code == SHUTDOWN_crash,
        "d": domain.dying,
    }
    return "".join(letter if true else "-" for letter, true in holds.items())


def cpu_time(domain: Domain, now: int) -> int:
    """Nanoseconds that its vCPUs have run by `now`."""
    return sum(_run_time(vcpu, now) for vcpu in domain.vcpus)


def vcpus(machine: Machine, domain: Domain) -> list[Values]:
    """The lines of `xl vcpu-list` for a domain. `cpu`: where it runs, or ran last."""
    now = machine.now()
    return [
        {
            "name": domain.name,
            "domid": domain.id,
            "vcpu": vcpu.id,
            "cpu": str(vcpu.pcpu) if vcpu.online else "-",
            "state": _vcpu_state(vcpu),
            "time": _run_time(vcpu, now),
            "hard_affinity": cpulist.text(vcpu.affinity),
            "soft_affinity": "all",
        }
        for vcpu in domain.vcpus
    ]


def _vcpu_state(vcpu: Vcpu) -> str:
    if not vcpu.online:
        return "--p"
    return "r--" if vcpu.runstate == RUNNING else "-b-" if vcpu.runstate == BLOCKED else "---"


def _run_time(vcpu: Vcpu, now: int) -> int:
    since = max(0, now - vcpu.runstate_since) if vcpu.runstate == RUNNING else 0
    return vcpu.runstate_time[RUNNING] + since


def host(machine: Machine) -> Values:
    """What `xl info` says of the machine. Memory is in MiB."""
    frames = machine.hv.frames
    return {
        "machine": "x86_64",
        "nr_cpus": len(machine.pcpus.all),
        "max_cpu_id": len(machine.pcpus.all) - 1,
        "nr_nodes": 1,
        "cores_per_socket": len(machine.pcpus.all),
        "threads_per_core": 1,
        "cpu_mhz": f"{TSC_HZ / 1e6:.3f}",
        "virt_caps": "pv",
        "total_memory": frames.count >> 8,
        "free_memory": frames.free_frames >> 8,
        "xen_major": VERSION_MAJOR,
        "xen_minor": VERSION_MINOR,
        "xen_extra": VERSION_EXTRA,
        "xen_version": f"{VERSION_MAJOR}.{VERSION_MINOR}{VERSION_EXTRA}",
        "xen_caps": kernel.CAPABILITIES.strip(),
        "xen_scheduler": machine.scheduler.name,
        "xen_pagesize": kernel.PAGE_SIZE,
        "platform_params": f"virt_start=0x{HYPERVISOR_VIRT_START:x}",
        "xen_changeset": kernel.CHANGESET,
        "cc_compiler": kernel.COMPILER,
        "cc_compile_by": kernel.COMPILE_BY,
        "cc_compile_domain": kernel.COMPILE_DOMAIN,
        "cc_compile_date": kernel.COMPILE_DATE,
    }


def log(machine: Machine) -> list[str]:
    """The hypervisor's own log, as `xl dmesg` prints it: a line each."""
    return list(machine.hv.log_lines)
