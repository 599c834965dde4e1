"""Event channels: Xen's results for use and misuse, and the bits that guests see, for both word sizes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes_xen import ARGUMENT, UNMAPPED, World, XenGuest, fuzz
from xentui.engine.xen import event_channel as ec
from xentui.engine.xen.abi import event_channel as abi
from xentui.engine.xen.abi.core import DOMID_SELF, VIRQ_CONSOLE, VIRQ_DEBUG, VIRQ_TIMER
from xentui.engine.xen.domain import BLOCKED, RUNNABLE
from xentui.engine.xen.schedule import do_sched_op

EPERM, ENOENT, ESRCH, EFAULT, EEXIST, EINVAL, ENOSPC, ENOSYS, EOPNOTSUPP = 1, 2, 3, 14, 17, 22, 28, 38, 95
BOTH = pytest.mark.parametrize("width", [32, 64])


def op(guest: XenGuest, command: int, form: str, *values: int) -> int:
    return guest.call(ec.do_event_channel_op, command, struct.pack("<" + form, *values))


def bind_ipi(guest: XenGuest, vcpu: int = 0) -> int:
    assert op(guest, abi.EVTCHNOP_bind_ipi, "II", vcpu, 0) == 0
    return guest.number(4)


def selector(guest: XenGuest, vcpu: int = 0) -> int:
    at = guest.layout.VCPU_INFO_evtchn_pending_sel
    return int.from_bytes(guest.domain.vcpus[vcpu].info[at : at + guest.layout.WORD_SIZE], "little")


@BOTH
def test_send_sets_pending_selector_and_upcall(width: int) -> None:
    guest = World(width).guests[0]
    ports = [bind_ipi(guest) for _ in range(70)]
    assert ports == list(range(1, 71))
    port = ports[-1]
    assert op(guest, abi.EVTCHNOP_send, "I", port) == 0
    shared, at = guest.domain.shared_info, guest.layout.SHARED_INFO_evtchn_pending
    words = int.from_bytes(shared[at : at + 512 if width == 64 else at + 128], "little")
    assert words == 1 << port
    assert selector(guest) == 1 << port // width
    assert guest.vcpu.info[0] == 1


@BOTH
def test_masked_event_waits_for_unmask(width: int) -> None:
    guest = World(width).guests[0]
    port = bind_ipi(guest)
    guest.domain.shared_info[guest.layout.SHARED_INFO_evtchn_mask] |= 1 << port
    assert op(guest, abi.EVTCHNOP_send, "I", port) == 0
    assert (selector(guest), guest.vcpu.info[0]) == (0, 0)
    assert op(guest, abi.EVTCHNOP_unmask, "I", port) == 0
    assert (selector(guest), guest.vcpu.info[0]) == (1, 1)
    guest.vcpu.info[0] = 0
    assert op(guest, abi.EVTCHNOP_unmask, "I", port) == 0
    assert guest.vcpu.info[0] == 0, "an unmasked port is not delivered a second time"


@BOTH
def test_interdomain_events_reach_the_other_domain(width: int) -> None:
    first, second = World(width, 96 - width).guests
    assert op(first, abi.EVTCHNOP_alloc_unbound, "HHI", DOMID_SELF, 2, 0) == 0
    offered = first.number(4)
    assert op(first, abi.EVTCHNOP_send, "I", offered) == 0, "nobody there: silently lost"
    assert op(second, abi.EVTCHNOP_bind_interdomain, "HxxII", 1, offered, 0) == 0
    port = second.number(8)
    assert second.domain.events.is_pending(port), "what was lost before is made up for"
    assert op(second, abi.EVTCHNOP_send, "I", port) == 0
    assert first.domain.events.is_pending(offered)
    assert op(second, abi.EVTCHNOP_bind_interdomain, "HxxII", 1, offered, 0) == -EINVAL, "bound already"
    assert op(second, abi.EVTCHNOP_status, "HxxIIIII", DOMID_SELF, port, 0, 0, 0, 0) == 0
    assert struct.unpack("<IIHxxI", second.get(16, ARGUMENT + 8)) == (abi.EVTCHNSTAT_interdomain, 0, 1, offered)
    assert op(second, abi.EVTCHNOP_close, "I", port) == 0
    assert not second.domain.events.is_pending(port)
    assert op(first, abi.EVTCHNOP_status, "HxxIIIII", 1, offered, 0, 0, 0, 0) == 0
    assert struct.unpack("<IIH", first.get(10, ARGUMENT + 8)) == (abi.EVTCHNSTAT_unbound, 0, 2)


def test_bind_interdomain_misuse() -> None:
    first, second = World(64, 64).guests
    assert op(first, abi.EVTCHNOP_alloc_unbound, "HHI", DOMID_SELF, 77, 0) == 0
    offered = first.number(4)
    assert op(second, abi.EVTCHNOP_bind_interdomain, "HxxII", 1, offered, 0) == -EINVAL, "not for this domain"
    assert op(second, abi.EVTCHNOP_bind_interdomain, "HxxII", 1, 1 << 20, 0) == -EINVAL
    assert op(second, abi.EVTCHNOP_bind_interdomain, "HxxII", 9, offered, 0) == -ESRCH
    assert op(second, abi.EVTCHNOP_bind_interdomain, "HxxII", 0, 3, 0) == -EINVAL
    assert second.domain.events.used() == [], "no port is lost by a failed binding"


def test_loopback() -> None:
    guest = World(64).guests[0]
    assert op(guest, abi.EVTCHNOP_alloc_unbound, "HHI", DOMID_SELF, DOMID_SELF, 0) == 0
    assert op(guest, abi.EVTCHNOP_bind_interdomain, "HxxII", DOMID_SELF, 1, 0) == 0
    assert guest.number(8) == 2
    assert op(guest, abi.EVTCHNOP_send, "I", 2) == 0
    assert guest.domain.events.is_pending(1)
    assert op(guest, abi.EVTCHNOP_close, "I", 1) == 0
    assert guest.domain.events.channels[2].state == ec.UNBOUND


def test_alloc_unbound_for_others() -> None:
    guest = World(64, 64).guests[0]
    assert op(guest, abi.EVTCHNOP_alloc_unbound, "HHI", 2, 1, 0) == -EPERM
    assert op(guest, abi.EVTCHNOP_alloc_unbound, "HHI", 0, 1, 0) == -EPERM
    assert op(guest, abi.EVTCHNOP_alloc_unbound, "HHI", 55, 1, 0) == -ESRCH


@BOTH
def test_virqs(width: int) -> None:
    guest = World(width).guests[0]
    assert op(guest, abi.EVTCHNOP_bind_virq, "III", VIRQ_TIMER, 1, 0) == 0
    port = guest.number(8)
    assert op(guest, abi.EVTCHNOP_bind_virq, "III", VIRQ_TIMER, 1, 0) == -EEXIST
    assert op(guest, abi.EVTCHNOP_bind_virq, "III", VIRQ_TIMER, 2, 0) == -ENOENT
    assert op(guest, abi.EVTCHNOP_bind_virq, "III", 24, 0, 0) == -EINVAL
    assert op(guest, abi.EVTCHNOP_bind_virq, "III", 0xFFFF_FFFF, 0, 0) == -EINVAL
    assert op(guest, abi.EVTCHNOP_bind_virq, "III", VIRQ_CONSOLE, 1, 0) == -EINVAL, "global: on vCPU 0 only"
    guest.domain.events.send_virq(guest.domain.vcpus[1], VIRQ_TIMER)
    assert (guest.domain.vcpus[1].info[0], guest.vcpu.info[0], selector(guest, 1)) == (1, 0, 1)
    guest.domain.events.send_virq(guest.vcpu, VIRQ_DEBUG)
    assert guest.vcpu.info[0] == 0, "not bound: nothing happens"
    assert op(guest, abi.EVTCHNOP_bind_vcpu, "II", port, 0) == -EINVAL, "a vCPU's own VIRQ stays there"
    assert op(guest, abi.EVTCHNOP_close, "I", port) == 0
    assert op(guest, abi.EVTCHNOP_bind_virq, "III", VIRQ_TIMER, 1, 0) == 0
    assert guest.number(8) == port


def test_bind_vcpu() -> None:
    guest = World(64).guests[0]
    assert op(guest, abi.EVTCHNOP_bind_virq, "III", VIRQ_CONSOLE, 0, 0) == 0
    port = guest.number(8)
    assert op(guest, abi.EVTCHNOP_bind_vcpu, "II", port, 1) == 0
    guest.domain.events.send_virq(guest.vcpu, VIRQ_CONSOLE)
    assert guest.domain.vcpus[1].info[0] == 1
    assert op(guest, abi.EVTCHNOP_bind_vcpu, "II", port, 2) == -ENOENT
    assert op(guest, abi.EVTCHNOP_bind_vcpu, "II", 5000, 1) == -EINVAL
    assert op(guest, abi.EVTCHNOP_bind_vcpu, "II", bind_ipi(guest), 1) == -EINVAL
    assert op(guest, abi.EVTCHNOP_bind_vcpu, "II", 9, 1) == -EINVAL, "a free port"


def test_misuse() -> None:
    guest = World(64).guests[0]
    assert op(guest, abi.EVTCHNOP_send, "I", 0) == -EINVAL
    assert op(guest, abi.EVTCHNOP_send, "I", 5) == -EINVAL
    assert op(guest, abi.EVTCHNOP_send, "I", 0xFFFF_FFFF) == -EINVAL
    assert op(guest, abi.EVTCHNOP_close, "I", 0) == -EINVAL
    assert op(guest, abi.EVTCHNOP_close, "I", 63) == -EINVAL
    assert op(guest, abi.EVTCHNOP_unmask, "I", 64) == -EINVAL
    assert op(guest, abi.EVTCHNOP_unmask, "I", 63) == 0
    assert op(guest, abi.EVTCHNOP_bind_ipi, "II", 2, 0) == -ENOENT
    assert op(guest, abi.EVTCHNOP_bind_pirq, "III", 9, 0, 0) == -EPERM
    assert op(guest, abi.EVTCHNOP_bind_pirq, "III", 4000, 0, 0) == -EINVAL
    assert op(guest, abi.EVTCHNOP_reset, "H", 9) == -ESRCH
    assert op(guest, abi.EVTCHNOP_set_priority, "II", 1, 0) == -ENOSYS
    assert op(guest, abi.EVTCHNOP_set_priority, "II", 5000, 0) == -EINVAL
    assert op(guest, abi.EVTCHNOP_expand_array, "Q", 0) == -EOPNOTSUPP
    assert op(guest, 99, "I", 0) == -ENOSYS
    for command in range(abi.EVTCHNOP_reset + 1):
        assert guest.call_at(ec.do_event_channel_op, command, UNMAPPED) == -EFAULT
    assert op(guest, abi.EVTCHNOP_send | 1 << 32, "I", 0) == -EINVAL, "the command is an int"


def test_status_of_others_ports() -> None:
    guest = World(64, 64).guests[0]
    for domid, answer in ((0, -EPERM), (2, -EPERM), (3, -ESRCH), (DOMID_SELF, 0)):
        assert op(guest, abi.EVTCHNOP_status, "HxxIIIII", domid, 0, 9, 9, 9, 9) == answer
    assert guest.number(8) == abi.EVTCHNSTAT_closed
    assert op(guest, abi.EVTCHNOP_status, "HxxIIIII", DOMID_SELF, 64, 0, 0, 0, 0) == -EINVAL, "beyond the last bucket"


@BOTH
def test_ports_run_out(width: int) -> None:
    guest = World(width).guests[0]
    for port in range(1, 1024):
        assert bind_ipi(guest) == port
    assert op(guest, abi.EVTCHNOP_bind_ipi, "II", 0, 0) == -ENOSPC
    guest.domain.events.max_port = 4095
    assert op(guest, abi.EVTCHNOP_bind_ipi, "II", 0, 0) == (0 if width == 64 else -ENOSPC)
    assert op(guest, abi.EVTCHNOP_reset, "H", DOMID_SELF) == 0
    assert guest.domain.events.used() == []


def test_backend_is_called_and_answers() -> None:
    guest = World(64).guests[0]
    events = guest.domain.events
    port = events.alloc_unbound_for(0)
    calls: list[str] = []
    events.bind_backend(port, lambda: calls.append("sent"))
    assert op(guest, abi.EVTCHNOP_send, "I", port) == 0
    assert op(guest, abi.EVTCHNOP_send, "I", port) == 0
    assert calls == ["sent", "sent"]
    assert not events.is_pending(port)
    events.notify_guest(port)
    assert events.is_pending(port)
    with pytest.raises(ValueError, match="does not wait for the control domain"):
        events.bind_backend(port, lambda: None)
    assert op(guest, abi.EVTCHNOP_close, "I", port) == 0
    events.notify_guest(port)
    assert not events.is_pending(port), "closed by the guest: the back end's events go nowhere"


def test_event_wakes_a_blocked_vcpu_once() -> None:
    world = World(64)
    guest = world.guests[0]
    port = bind_ipi(guest)
    assert guest.call_at(do_sched_op, 1, 0) == 0
    assert guest.vcpu.runstate == BLOCKED
    assert guest.domain.events.set_pending(port)
    assert not guest.domain.events.set_pending(port)
    assert world.woken == [guest.vcpu]
    assert guest.vcpu.runstate == RUNNABLE


@BOTH
def test_compat_op(width: int) -> None:
    guest = World(width).guests[0]
    form = struct.pack("<IHHI", abi.EVTCHNOP_alloc_unbound, DOMID_SELF, 0, 0).ljust(28, b"\0")
    guest.put(ARGUMENT, form)
    assert ec.do_event_channel_op_compat(guest.vcpu, ARGUMENT, 0, 0, 0) == 0
    assert guest.number(8) == 1
    guest.put(ARGUMENT, struct.pack("<I", abi.EVTCHNOP_reset))
    assert ec.do_event_channel_op_compat(guest.vcpu, ARGUMENT, 0, 0, 0) == -ENOSYS, "younger than the old call"
    assert guest.call_at(ec.do_event_channel_op_compat, UNMAPPED, 0) == -EFAULT


def test_destroy_frees_both_sides() -> None:
    first, second = World(64, 64).guests
    op(first, abi.EVTCHNOP_alloc_unbound, "HHI", DOMID_SELF, 2, 0)
    op(second, abi.EVTCHNOP_bind_interdomain, "HxxII", 1, 1, 0)
    op(first, abi.EVTCHNOP_bind_virq, "III", VIRQ_TIMER, 0, 0)
    first.domain.dying = True
    first.domain.events.destroy()
    assert first.domain.events.used() == []
    assert first.vcpu.virq_ports == {}
    assert op(second, abi.EVTCHNOP_send, "I", 1) == 0
    assert op(first, abi.EVTCHNOP_bind_ipi, "II", 0, 0) == -EINVAL, "a dying domain gets no ports"


def invariants(guest: XenGuest) -> None:
    """Ends name each other, VIRQ tables and ports agree."""
    events = guest.domain.events
    for port, channel in enumerate(events.channels):
        if channel.state == ec.INTERDOMAIN and channel.remote is not None:
            other = channel.remote.events.channels[channel.remote_port]
            assert (other.state, other.remote, other.remote_port) == (ec.INTERDOMAIN, guest.domain, port)
        if channel.state == ec.VIRQ:
            assert guest.domain.vcpus[channel.notify_vcpu].virq_ports[channel.virq] == port or channel.virq in (2,)
    for vcpu in guest.domain.vcpus:
        for virq, port in vcpu.virq_ports.items():
            assert (events.channels[port].state, events.channels[port].virq) == (ec.VIRQ, virq)


small = st.integers(0, 6)
word = st.one_of(small, st.sampled_from([0x7FF0, 0x7FFF, 0xFFFF_FFFF, 1023, 4096]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([32, 64]),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 14), st.lists(word, min_size=6, max_size=6)), max_size=40),
)
def test_random_operations_keep_the_invariants(width: int, steps: list[tuple[int, int, list[int]]]) -> None:
    world = World(width, 64)
    for who, command, words in steps:
        guest = world.guests[who]
        data = b"".join(value.to_bytes(4, "little") for value in words)
        halves = b"".join((value & 0xFFFF).to_bytes(2, "little") for value in words)
        for argument in (data, halves):
            fuzz(guest, ec.do_event_channel_op, (command, ARGUMENT, 0, 0), argument)
        for each in world.guests:
            invariants(each)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([32, 64]),
    st.booleans(),
    st.integers(0, (1 << 64) - 1) | st.integers(0, 16),
    st.integers(0, (1 << 64) - 1) | st.sampled_from([ARGUMENT, ARGUMENT + 4090, UNMAPPED - 2]),
    st.binary(max_size=64),
)
def test_any_pointer_any_command(width: int, compat: bool, command: int, pointer: int, data: bytes) -> None:
    guest = World(width).guests[0]
    mask = (1 << width) - 1
    handler = ec.do_event_channel_op_compat if compat else ec.do_event_channel_op
    arguments = (pointer & mask, 0, 0, 0) if compat else (command & mask, pointer & mask, 0, 0)
    fuzz(guest, handler, arguments, data)
    invariants(guest)
