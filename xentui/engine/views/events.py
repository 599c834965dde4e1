"""Event channels: the bits as they lie in guest memory, and what the hypervisor knows of each port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.views.find import domain_of
from xentui.engine.x86.paging import PAGE_SHIFT
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi.event_channel import (
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
)
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.event_channel import INTERDOMAIN, IPI, STATE_NAMES, UNBOUND, VIRQ
from xentui.engine.xen.event_fifo import Fifo

if TYPE_CHECKING:
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain

VIEWS = ("bitmaps", "bits", "ports")

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


def bits(machine: Machine, domain: int, port: int) -> list[dict[str, Any]]:
    """The bits by which a port's event reaches its vCPU, each as it lies in memory: {key, what, at (machine address of
    a byte), mask (in that byte), set}."""
    found = domain_of(machine, domain)
    events = found.events
    vcpu = found.vcpus[events.channels[port].notify_vcpu if port in events.used() else 0]
    layout = LAYOUT32 if found.width == 32 else LAYOUT64
    info = (vcpu.info_frame << PAGE_SHIFT) + vcpu.info_offset if vcpu.info_frame != NO_FRAME else -1
    places: list[tuple[str, str, int, int]]
    """(key, what, machine address, which bit from there on)."""
    if isinstance(events.abi, Fifo):
        word, control = 4 * events.abi.word_of(port), 4 * events.abi.control.get(vcpu.id, -1)
        priority = events.abi.priority.get(port, EVTCHN_FIFO_PRIORITY_DEFAULT)
        places = [
            ("p", "PENDING in its event word", word, EVTCHN_FIFO_PENDING),
            ("k", "MASKED in its event word", word, EVTCHN_FIFO_MASKED),
            ("l", "LINKED in its event word", word, EVTCHN_FIFO_LINKED),
            ("s", f"queue {priority} of vCPU {vcpu.id} is ready", control, priority),
        ]
    else:
        shared = found.shared_info_frame << PAGE_SHIFT
        selector = info + layout.VCPU_INFO_evtchn_pending_sel if info >= 0 else -1
        places = [
            ("p", "its bit of evtchn_pending", shared + layout.SHARED_INFO_evtchn_pending, port),
            ("k", "its bit of evtchn_mask", shared + layout.SHARED_INFO_evtchn_mask, port),
            ("s", f"its word's bit of evtchn_pending_sel of vCPU {vcpu.id}", selector, port // (8 * layout.WORD_SIZE)),
        ]
    rows = [(key, what, at + (bit >> 3), 1 << (bit & 7)) for key, what, at, bit in places if at >= 0]
    if info >= 0:
        rows.append(("u", f"evtchn_upcall_pending of vCPU {vcpu.id}", info, 0xFF))
        rows.append(("i", f"evtchn_upcall_mask of vCPU {vcpu.id}", info + 1, 0xFF))
    return [
        {"key": key, "what": what, "at": at, "mask": mask, "set": bool(machine.hv.ram[at] & mask)}
        for key, what, at, mask in rows
    ]


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
