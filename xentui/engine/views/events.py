"""Event channels: the bits as they lie in guest memory, and what the hypervisor knows of each port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.views.find import domain_of
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi.event_channel import EVTCHN_FIFO_PRIORITY_DEFAULT
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.event_channel import INTERDOMAIN, IPI, STATE_NAMES, UNBOUND, VIRQ
from xentui.engine.xen.event_fifo import Fifo

if TYPE_CHECKING:
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain

VIEWS = ("bitmaps", "ports")

VIRQ_NAMES = {value: name.removeprefix("VIRQ_") for name, value in vars(core).items() if name.startswith("VIRQ_")}


def bitmaps(machine: Machine, domain: int) -> dict[str, Any]:
    """`evtchn_pending` and `evtchn_mask` of shared_info as they lie, and each vCPU's selector and upcall bytes.

    `abi` names the ABI in use; the bitmaps of a domain that has left the two-level one lie idle, and its vCPUs have
    `queues`: priority to the ports that are linked, first to last.
    """
    found = domain_of(machine, domain)
    layout = LAYOUT32 if found.width == 32 else LAYOUT64
    size = layout.EVTCHN_2L_NR_CHANNELS // 8
    fifo = found.events.abi if isinstance(found.events.abi, Fifo) else None
    pending, mask, selector = (
        layout.SHARED_INFO_evtchn_pending,
        layout.SHARED_INFO_evtchn_mask,
        layout.VCPU_INFO_evtchn_pending_sel,
    )
    word = layout.WORD_SIZE
    return {
        "domain": domain,
        "name": found.name,
        "width": found.width,
        "abi": found.events.abi.name,
        "ports": layout.EVTCHN_2L_NR_CHANNELS,
        "known": len(found.events.channels),
        "pending": bytes(found.shared_info[pending : pending + size]),
        "mask": bytes(found.shared_info[mask : mask + size]),
        "shared_info": found.shared_info_frame,
        "offsets": (pending, mask),
        "vcpus": [
            {
                "vcpu": vcpu.id,
                "pending": vcpu.info[0],
                "mask": vcpu.info[1],
                "selector": int.from_bytes(vcpu.info[selector : selector + word], "little"),
                "callback": vcpu.event_callback[1],
                "queues": fifo.queued(vcpu) if fifo else {},
            }
            for vcpu in found.vcpus
        ],
    }


def ports(machine: Machine, domain: int) -> list[dict[str, Any]]:
    """Every port that is not free: number, state, vCPU, peer in words, and its bits."""
    found = domain_of(machine, domain)
    events = found.events
    priorities = events.abi.priority if isinstance(events.abi, Fifo) else {}
    rows = []
    for number in events.used():
        channel = events.channels[number]
        rows.append(
            {
                "port": number,
                "state": STATE_NAMES[channel.state],
                "vcpu": channel.notify_vcpu,
                "peer": _peer(machine, found, number),
                "pending": events.abi.is_pending(number),
                "masked": events.abi.is_masked(number),
                "priority": priorities.get(number, EVTCHN_FIFO_PRIORITY_DEFAULT),
                "remote": (channel.remote_domid, channel.remote_port) if channel.state == INTERDOMAIN else None,
            }
        )
    return rows


def _peer(machine: Machine, domain: Domain, port: int) -> str:
    """What is at the other end, in words."""
    channel = domain.events.channels[port]
    if channel.state == VIRQ:
        return f"VIRQ_{VIRQ_NAMES.get(channel.virq, channel.virq)}"
    if channel.state == IPI:
        return f"IPI to vCPU {channel.notify_vcpu}"
    if channel.state == UNBOUND:
        return f"waits for domain {channel.remote_domid} to bind"
    if channel.state != INTERDOMAIN:
        return ""
    if channel.remote is not None:
        return f"{channel.remote.name} (d{channel.remote_domid}) port {channel.remote_port}"
    return f"domain 0: {_service(domain, port)}"


def _service(domain: Domain, port: int) -> str:
    """Which back end of the control domain serves a port."""
    if port == domain.console_port:
        return "console"
    return "xenstore" if port == domain.store_port else "a back end"
