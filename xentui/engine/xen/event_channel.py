"""Event channels: the hypervisor's virtual interrupts (Xen: common/event_channel.c).

A *port* is one end of a channel. Its other end is a port of another domain, a virtual interrupt (VIRQ), another vCPU
of the same domain (IPI), or a back end of the control domain, which is Python and gets a call. Sending makes the
other end *pending*: bits in guest memory, handled by the ABI in use (event_2l.py, event_fifo.py). The upcall into
the guest is not made here: whoever returns to it looks at `vcpu.info[0]` (pending) and `vcpu.info[1]` (masked).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind
from xentui.engine.x86.state import RIP
from xentui.engine.xen import guest_access, virtual_timer
from xentui.engine.xen.abi import event_channel as abi
from xentui.engine.xen.abi.core import (
    DOMID_SELF,
    NR_VIRQS,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    VIRQ_XENOPROF,
    VIRQ_XENPMU,
)
from xentui.engine.xen.abi.errno import EACCES, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from xentui.engine.xen.abi.layout64 import LAYOUT64 as LAYOUT  # these structures are the same for both word sizes
from xentui.engine.xen.event_2l import TwoLevel
from xentui.engine.xen.event_fifo import Fifo, control_block_fits
from xentui.engine.xen.physdev import NR_PIRQS

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.domain import Domain, Vcpu

FREE, RESERVED, UNBOUND, INTERDOMAIN, VIRQ, IPI = range(6)
STATE_NAMES = ("free", "reserved", "unbound", "interdomain", "virq", "ipi")

PORTS_PER_BUCKET = 64
"""Xen allocates ports by the page of `struct evtchn`; a port beyond the last bucket is invalid, not closed."""

DEFAULT_MAX_PORT = 1023
"""The toolstack's `max_event_channels` where the configuration gives none."""

CONTROL_DOMAIN = 0

_PER_VCPU_VIRQS = frozenset((VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU, virtual_timer.VIRQ))
_STATUS = {
    FREE: abi.EVTCHNSTAT_closed,
    RESERVED: abi.EVTCHNSTAT_closed,
    UNBOUND: abi.EVTCHNSTAT_unbound,
    INTERDOMAIN: abi.EVTCHNSTAT_interdomain,
    VIRQ: abi.EVTCHNSTAT_virq,
    IPI: abi.EVTCHNSTAT_ipi,
}


class Channel:
    """One port. `remote` is None where the other end is not a domain of this machine (a back end, or nobody yet)."""

    __slots__ = ("callback", "notify_vcpu", "remote", "remote_domid", "remote_port", "state", "virq")

    def __init__(self) -> None:
        self.state = FREE
        self.notify_vcpu = 0
        """Number of the vCPU that its events go to."""
        self.remote: Domain | None = None
        self.remote_domid = 0
        """Who is at the other end, or (unbound) who may bind to it."""
        self.remote_port = 0
        self.virq = 0
        self.callback: Callable[[], None] | None = None
        """The back end's: called when the guest sends."""


class EventChannels:
    """The ports of one domain."""

    def __init__(self, domain: Domain, max_port: int = DEFAULT_MAX_PORT) -> None:
        self.domain = domain
        self.two_level = TwoLevel(domain)
        self.abi: TwoLevel | Fifo = self.two_level
        """The ABI in use: the guest may change to the FIFO one."""
        self.max_port = max_port
        self.channels: list[Channel] = []
        self.pollers: list[Vcpu] = []
        """vCPUs blocked in SCHEDOP_poll, in the order in which they came."""
        self._grow()
        self.channels[0].state = RESERVED

    # --- ports ---------------------------------------------------------------------------------------------------

    def valid(self, port: int) -> bool:
        """Does the port exist at all? It may be closed."""
        return 0 <= port < len(self.channels)

    def used(self) -> list[int]:
        """The ports that are not free."""
        return [port for port, channel in enumerate(self.channels) if channel.state > RESERVED]

    def vcpu_of(self, port: int) -> Vcpu:
        """The vCPU that the port's events go to."""
        return self.domain.vcpus[self.channels[port].notify_vcpu]

    def is_pending(self, port: int) -> bool:
        """Is an event waiting on this port? Never on a free one (Xen: evtchn_port_is_pending)."""
        return self.channels[port].state > RESERVED and self.abi.is_pending(port)

    def allocate(self) -> int:
        """The lowest free port, or a negative error (Xen: get_free_port); the caller gives it a state."""
        if self.domain.dying:
            return -EINVAL
        for port, channel in enumerate(self.channels):
            if channel.state == FREE and not self.abi.is_busy(port):
                return port if port <= self.max_port else -ENOSPC
        port = len(self.channels)
        if port > self.max_port or port >= self.abi.ports:
            return -ENOSPC
        self._grow()
        return port

    def _grow(self) -> None:
        self.channels.extend(Channel() for _ in range(PORTS_PER_BUCKET))

    # --- what the rest of the engine uses -------------------------------------------------------------------------

    def set_pending(self, port: int) -> bool:
        """Raise an event on the port; False if it was pending already."""
        return self.abi.set_pending(self.domain.vcpus[self.channels[port].notify_vcpu], port)

    def alloc_unbound_for(self, remote_domid: int) -> int:
        """A fresh port to which `remote_domid` may bind, for the domain builder; -ENOSPC where there is none."""
        port = self.allocate()
        if port >= 0:
            channel = self.channels[port]
            channel.state, channel.remote_domid = UNBOUND, remote_domid
            self.abi.start(port)
        return port

    def bind_backend(self, port: int, callback: Callable[[], None]) -> None:
        """Put a back end of the control domain at the other end of an unbound port: sending calls it, at once.

        Raises ValueError unless the port waits for the control domain. The control domain's own port numbers are
        not modelled: the guest's number stands for both. As with any binding, the guest may have sent before, so
        the back end looks for itself whether there is work.
        """
        channel = self.channels[port] if self.valid(port) else None
        if channel is None or channel.state != UNBOUND or channel.remote_domid != CONTROL_DOMAIN:
            raise ValueError(f"port {port} of domain {self.domain.id} does not wait for the control domain")
        channel.state, channel.remote_port, channel.callback = INTERDOMAIN, port, callback

    def notify_guest(self, port: int) -> None:
        """A back end's event to the guest; nothing happens if the guest has closed the port meanwhile."""
        channel = self.channels[port]
        if channel.state == INTERDOMAIN and channel.callback is not None:
            self.set_pending(port)

    def send_virq(self, vcpu: Vcpu, virq: int) -> None:
        """Raise a virtual interrupt on `vcpu` (vCPU 0 for the global ones), if the guest has bound it."""
        port = vcpu.virq_ports.get(virq, 0)
        if port:
            hv = self.domain.hv
            hv.put(hv.clock.now(), 0, Kind.VIRQ, vcpu.id, self.domain.id, virq, port, 0, 0, 0, 0)
            self.set_pending(port)

    def destroy(self) -> None:
        """Close every port; the domain is going. The other ends see theirs become unbound."""
        for port in self.used():
            self.close(port)
        self._leave_fifo()

    # --- operations ------------------------------------------------------------------------------------------------

    def send(self, vcpu: Vcpu, port: int) -> int:
        """Notify the other end of the port; what goes to an unbound one is lost (Xen: evtchn_send)."""
        if port >= len(self.channels):
            return -EINVAL
        channel = self.channels[port]
        state = channel.state
        if state == INTERDOMAIN:
            remote = channel.remote
            if remote is not None:
                fresh = remote.events.set_pending(channel.remote_port)
            elif channel.callback is not None:
                fresh = True
                channel.callback()
        elif state == IPI:
            fresh = self.set_pending(port)
        else:
            return 0 if state == UNBOUND else -EINVAL
        hv = vcpu.hv
        peer = channel.remote_domid if state == INTERDOMAIN else self.domain.id
        peer_port = channel.remote_port if state == INTERDOMAIN else port
        now, rip = hv.clock.now(), vcpu.q[RIP]
        hv.put(now, rip, Kind.EVENT_SEND, vcpu.id, self.domain.id, port, peer, peer_port, not fresh, 0, 0)
        return 0

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> int:
        """Bind a fresh port to one that waits for us; the port or a negative error."""
        domain = self.domain
        if remote_domid == DOMID_SELF:
            remote_domid = domain.id
        remote = domain.hv.domains.get(remote_domid)
        if remote is None:
            # the control domain exists, but has no port that waits for a guest
            return -EINVAL if remote_domid == CONTROL_DOMAIN else -ESRCH
        port = self.allocate()
        if port < 0:
            return port
        if not remote.events.valid(remote_port):
            return -EINVAL
        theirs = remote.events.channels[remote_port]
        if theirs.state != UNBOUND or theirs.remote_domid != domain.id:
            return -EINVAL
        ours = self.channels[port]
        ours.state, ours.remote, ours.remote_domid, ours.remote_port = INTERDOMAIN, remote, remote_domid, remote_port
        theirs.state, theirs.remote, theirs.remote_domid, theirs.remote_port = INTERDOMAIN, domain, domain.id, port
        self.abi.start(port)
        # What was sent while the other port was unbound is lost: better one event too many.
        self.set_pending(port)
        return port

    def bind_virq(self, virq: int, vcpu_id: int) -> int:
        """A fresh port for a virtual interrupt of a vCPU; the port or a negative error."""
        if virq >= NR_VIRQS or (virq not in _PER_VCPU_VIRQS and vcpu_id != 0):
            return -EINVAL
        if vcpu_id >= len(self.domain.vcpus):
            return -ENOENT
        vcpu = self.domain.vcpus[vcpu_id]
        if vcpu.virq_ports.get(virq, 0):
            return -EEXIST
        port = self.allocate()
        if port >= 0:
            channel = self.channels[port]
            channel.state, channel.notify_vcpu, channel.virq = VIRQ, vcpu_id, virq
            vcpu.virq_ports[virq] = port
            self.abi.start(port)
        return port

    def bind_ipi(self, vcpu_id: int) -> int:
        """A fresh port that notifies a vCPU of the domain itself; the port or a negative error."""
        if vcpu_id >= len(self.domain.vcpus):
            return -ENOENT
        port = self.allocate()
        if port >= 0:
            channel = self.channels[port]
            channel.state, channel.notify_vcpu = IPI, vcpu_id
            self.abi.start(port)
        return port

    def close(self, port: int) -> int:
        """Free the port; the other end, if it is another domain's, waits for a new binding."""
        if not self.valid(port):
            return -EINVAL
        channel = self.channels[port]
        if channel.state <= RESERVED:
            return -EINVAL
        if channel.state == VIRQ:
            for vcpu in self.domain.vcpus:
                if vcpu.virq_ports.get(channel.virq) == port:
                    del vcpu.virq_ports[channel.virq]
        elif channel.state == INTERDOMAIN and channel.remote is not None:
            theirs = channel.remote.events.channels[channel.remote_port]
            theirs.state, theirs.remote, theirs.remote_domid = UNBOUND, None, self.domain.id
        self.abi.clear_pending(port)
        channel.state, channel.notify_vcpu, channel.remote, channel.callback = FREE, 0, None, None
        return 0

    def bind_vcpu(self, port: int, vcpu_id: int) -> int:
        """Let another vCPU take the port's events; not for IPIs and the VIRQs that belong to a vCPU."""
        if vcpu_id >= len(self.domain.vcpus):
            return -ENOENT
        if not self.valid(port):
            return -EINVAL
        channel = self.channels[port]
        if channel.state in (UNBOUND, INTERDOMAIN) or (channel.state == VIRQ and channel.virq not in _PER_VCPU_VIRQS):
            channel.notify_vcpu = vcpu_id
            return 0
        return -EINVAL

    def unmask(self, port: int) -> int:
        """Clear the port's mask and deliver what waited behind it."""
        if not self.valid(port):
            return -EINVAL
        if self.channels[port].state > RESERVED:
            self.abi.unmask(self.vcpu_of(port), port)
        return 0

    def init_control(self, vcpu_id: int, mfn: int, offset: int) -> int:
        """Give a vCPU its control block; the first one makes the FIFO ABI the domain's. 0 or a negative error."""
        if vcpu_id >= len(self.domain.vcpus):
            return -ENOENT
        if not control_block_fits(offset):
            return -EINVAL
        fifo = self.abi if isinstance(self.abi, Fifo) else Fifo(self.domain)
        error = fifo.map_control(vcpu_id, mfn, offset)
        if not error and self.abi is not fifo:
            fifo.take_over(range(1, min(len(self.channels), self.abi.ports)))
            self.abi = fifo
        return error

    def _leave_fifo(self) -> None:
        """Back to the two-level ABI."""
        if isinstance(self.abi, Fifo):
            self.abi.release()
            self.abi = self.two_level

    def set_priority(self, port: int, priority: int) -> int:
        """The FIFO ABI's priority of a port; the two-level ABI has none (xen/event.h, evtchn_port_set_priority)."""
        if not self.valid(port):
            return -EINVAL
        if not isinstance(self.abi, Fifo):
            return -ENOSYS
        if self.channels[port].state <= RESERVED:
            return -EACCES
        return self.abi.set_priority(port, priority)

    def reset(self) -> int:
        """Close all ports, the builder's too, and go back to the two-level ABI."""
        self.destroy()
        return 0

    def status(self, port: int, record: bytearray) -> int:
        """Fill in the evtchn_status `record` for the port; members that do not apply keep what was there."""
        if not self.valid(port):
            return -EINVAL
        channel = self.channels[port]
        _put32(record, LAYOUT.EVTCHN_STATUS_status, _STATUS[channel.state])
        _put32(record, LAYOUT.EVTCHN_STATUS_vcpu, channel.notify_vcpu)
        if channel.state in (UNBOUND, INTERDOMAIN):
            offset = LAYOUT.EVTCHN_STATUS_u_interdomain_dom
            record[offset : offset + 2] = channel.remote_domid.to_bytes(2, "little")
        if channel.state == INTERDOMAIN:
            _put32(record, LAYOUT.EVTCHN_STATUS_u_interdomain_port, channel.remote_port)
        elif channel.state == VIRQ:
            _put32(record, LAYOUT.EVTCHN_STATUS_u_virq, channel.virq)
        return 0


def _put32(record: bytearray, offset: int, value: int) -> None:
    record[offset : offset + 4] = value.to_bytes(4, "little")


# --- hypercalls ---------------------------------------------------------------------------------------------------


def do_event_channel_op(vcpu: Vcpu, cmd: int, arg: int, _c: int, _d: int) -> int:
    """Hypercall 32: `cmd` is an EVTCHNOP_*, `arg` points to its structure."""
    cmd &= 0xFFFF_FFFF
    if cmd == abi.EVTCHNOP_send:  # the hot one: mostly an aligned word in a page read before
        base = vcpu.space.reads.get(arg >> 12)
        if base is None or arg & 3 or not guest_access.access_ok(vcpu, arg, 4):
            port = guest_access.read_u32(vcpu, arg)
        else:
            port = vcpu.hv.ram32[base + (arg & 0xFFF) >> 2]
        return vcpu.domain.events.send(vcpu, port)
    operation = _OPERATIONS.get(cmd)
    return -ENOSYS if operation is None else operation(vcpu, arg)


def do_event_channel_op_compat(vcpu: Vcpu, uop: int, _b: int, _c: int, _d: int) -> int:
    """Hypercall 16: command and structure in one, as before Xen 3.2 (compat.c: do_event_channel_op_compat)."""
    op = guest_access.read(vcpu, uop, LAYOUT.EVTCHN_OP_SIZE)
    cmd = int.from_bytes(op[:4], "little")
    if cmd > abi.EVTCHNOP_unmask:
        return -ENOSYS
    return do_event_channel_op(vcpu, cmd, uop + LAYOUT.EVTCHN_OP_u, 0, 0)


def _answer(vcpu: Vcpu, address: int, port: int) -> int:
    """Store the new port where the guest expects it. Xen does not take the port back if that faults, so nor do we."""
    if port < 0:
        return port
    guest_access.write_u32(vcpu, address, port)
    return 0


def _foreign(vcpu: Vcpu, domid: int) -> int:
    """0 if `domid` is the caller, -EPERM if it is another domain (guests have no rights over any), else -ESRCH."""
    if domid in (DOMID_SELF, vcpu.domain.id):
        return 0
    return -EPERM if domid == CONTROL_DOMAIN or domid in vcpu.hv.domains else -ESRCH


def _alloc_unbound(vcpu: Vcpu, arg: int) -> int:
    dom, remote, _ = LAYOUT.STRUCT_evtchn_alloc_unbound.unpack(
        guest_access.read(vcpu, arg, LAYOUT.EVTCHN_ALLOC_UNBOUND_SIZE)
    )
    error = _foreign(vcpu, dom)
    if error:
        return error
    remote = vcpu.domain.id if remote == DOMID_SELF else remote
    port = vcpu.domain.events.alloc_unbound_for(remote)
    return _answer(vcpu, arg + LAYOUT.EVTCHN_ALLOC_UNBOUND_port, port)


def _bind_interdomain(vcpu: Vcpu, arg: int) -> int:
    dom, remote_port, _ = LAYOUT.STRUCT_evtchn_bind_interdomain.unpack(
        guest_access.read(vcpu, arg, LAYOUT.EVTCHN_BIND_INTERDOMAIN_SIZE)
    )
    port = vcpu.domain.events.bind_interdomain(dom, remote_port)
    return _answer(vcpu, arg + LAYOUT.EVTCHN_BIND_INTERDOMAIN_local_port, port)


def _bind_virq(vcpu: Vcpu, arg: int) -> int:
    virq, vcpu_id, _ = LAYOUT.STRUCT_evtchn_bind_virq.unpack(guest_access.read(vcpu, arg, LAYOUT.EVTCHN_BIND_VIRQ_SIZE))
    port = vcpu.domain.events.bind_virq(virq, vcpu_id)
    return _answer(vcpu, arg + LAYOUT.EVTCHN_BIND_VIRQ_port, port)


def _bind_pirq(vcpu: Vcpu, arg: int) -> int:
    """Physical interrupts belong to the control domain."""
    pirq, _, _ = LAYOUT.STRUCT_evtchn_bind_pirq.unpack(guest_access.read(vcpu, arg, LAYOUT.EVTCHN_BIND_PIRQ_SIZE))
    return -EINVAL if pirq >= NR_PIRQS else -EPERM


def _bind_ipi(vcpu: Vcpu, arg: int) -> int:
    vcpu_id, _ = LAYOUT.STRUCT_evtchn_bind_ipi.unpack(guest_access.read(vcpu, arg, LAYOUT.EVTCHN_BIND_IPI_SIZE))
    port = vcpu.domain.events.bind_ipi(vcpu_id)
    return _answer(vcpu, arg + LAYOUT.EVTCHN_BIND_IPI_port, port)


def _close(vcpu: Vcpu, arg: int) -> int:
    return vcpu.domain.events.close(guest_access.read_u32(vcpu, arg))


def _status(vcpu: Vcpu, arg: int) -> int:
    record = bytearray(guest_access.read(vcpu, arg, LAYOUT.EVTCHN_STATUS_SIZE))
    dom = int.from_bytes(record[:2], "little")
    port = int.from_bytes(record[LAYOUT.EVTCHN_STATUS_port : LAYOUT.EVTCHN_STATUS_port + 4], "little")
    error = _foreign(vcpu, dom) or vcpu.domain.events.status(port, record)
    if not error:
        guest_access.write(vcpu, arg, bytes(record))
    return error


def _bind_vcpu(vcpu: Vcpu, arg: int) -> int:
    port, vcpu_id = LAYOUT.STRUCT_evtchn_bind_vcpu.unpack(guest_access.read(vcpu, arg, LAYOUT.EVTCHN_BIND_VCPU_SIZE))
    return vcpu.domain.events.bind_vcpu(port, vcpu_id)


def _unmask(vcpu: Vcpu, arg: int) -> int:
    return vcpu.domain.events.unmask(guest_access.read_u32(vcpu, arg))


def _reset(vcpu: Vcpu, arg: int) -> int:
    dom = int.from_bytes(guest_access.read(vcpu, arg, LAYOUT.EVTCHN_RESET_SIZE), "little")
    return _foreign(vcpu, dom) or vcpu.domain.events.reset()


def _init_control(vcpu: Vcpu, arg: int) -> int:
    mfn, offset, vcpu_id, _ = LAYOUT.STRUCT_evtchn_init_control.unpack(
        guest_access.read(vcpu, arg, LAYOUT.EVTCHN_INIT_CONTROL_SIZE)
    )
    error = vcpu.domain.events.init_control(vcpu_id, mfn, offset)
    if not error:
        guest_access.write(vcpu, arg + LAYOUT.EVTCHN_INIT_CONTROL_link_bits, bytes((abi.EVTCHN_FIFO_LINK_BITS,)))
    return error


def _expand_array(vcpu: Vcpu, arg: int) -> int:
    (mfn,) = LAYOUT.STRUCT_evtchn_expand_array.unpack(guest_access.read(vcpu, arg, LAYOUT.EVTCHN_EXPAND_ARRAY_SIZE))
    fifo = vcpu.domain.events.abi
    return fifo.expand(mfn) if isinstance(fifo, Fifo) else -EOPNOTSUPP


def _set_priority(vcpu: Vcpu, arg: int) -> int:
    port, priority = LAYOUT.STRUCT_evtchn_set_priority.unpack(
        guest_access.read(vcpu, arg, LAYOUT.EVTCHN_SET_PRIORITY_SIZE)
    )
    return vcpu.domain.events.set_priority(port, priority)


_OPERATIONS: dict[int, Callable[[Vcpu, int], int]] = {
    abi.EVTCHNOP_alloc_unbound: _alloc_unbound,
    abi.EVTCHNOP_bind_interdomain: _bind_interdomain,
    abi.EVTCHNOP_bind_virq: _bind_virq,
    abi.EVTCHNOP_bind_pirq: _bind_pirq,
    abi.EVTCHNOP_bind_ipi: _bind_ipi,
    abi.EVTCHNOP_close: _close,
    abi.EVTCHNOP_status: _status,
    abi.EVTCHNOP_bind_vcpu: _bind_vcpu,
    abi.EVTCHNOP_unmask: _unmask,
    abi.EVTCHNOP_reset: _reset,
    abi.EVTCHNOP_init_control: _init_control,
    abi.EVTCHNOP_expand_array: _expand_array,
    abi.EVTCHNOP_set_priority: _set_priority,
}
