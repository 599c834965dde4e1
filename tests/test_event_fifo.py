"""The FIFO event-channel ABI, against a guest's side of it written from the public headers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes_xen import World, XenGuest
from xentui.engine.trace import Kind
from xentui.engine.xen import event_channel as ec
from xentui.engine.xen.abi import event_channel as abi
from xentui.engine.xen.abi.core import DOMID_SELF, VIRQ_TIMER
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain import BLOCKED, RUNNABLE
from xentui.engine.xen.domain_kill import domain_kill
from xentui.engine.xen.event_2l import TwoLevel
from xentui.engine.xen.event_fifo import BUSY, LINK, LINKED, MASKED, PENDING, WORDS_PER_PAGE, Fifo
from xentui.engine.xen.page import WRITABLE
from xentui.engine.xen.schedule import do_sched_op

BOTH = pytest.mark.parametrize("width", [32, 64])
ENOENT, EACCES, EINVAL, ENOSPC, ENOSYS = 2, 13, 22, 28, 38
CONTROL_PFN, ARRAY_PFN = 48, 50
SECOND_CONTROL = 128
"""Where in the same page the second vCPU's control block is."""


def op(guest: XenGuest, command: int, form: str, *values: int) -> int:
    return guest.call(ec.do_event_channel_op, command, struct.pack("<" + form, *values))


def init(guest: XenGuest, vcpu: int = 0, offset: int = 0, mfn: int | None = None) -> int:
    mfn = guest.guest.p2m[CONTROL_PFN] if mfn is None else mfn
    return op(guest, abi.EVTCHNOP_init_control, "QIIB7x", mfn, offset, vcpu, 99)


def expand(guest: XenGuest, pfn: int = ARRAY_PFN) -> int:
    return op(guest, abi.EVTCHNOP_expand_array, "Q", guest.guest.p2m[pfn])


def send(guest: XenGuest, port: int) -> int:
    return op(guest, abi.EVTCHNOP_send, "I", port)


def bind_ipi(guest: XenGuest, vcpu: int = 0) -> int:
    assert op(guest, abi.EVTCHNOP_bind_ipi, "II", vcpu, 0) == 0
    return guest.number(4)


def fifo_guest(width: int = 64, *others: int) -> XenGuest:
    guest = World(width, *others).guests[0]
    assert init(guest) == 0 and expand(guest) == 0
    assert init(guest, 1, SECOND_CONTROL) == 0
    return guest


def word_at(port: int) -> int:
    page, word = divmod(port, WORDS_PER_PAGE)
    return (ARRAY_PFN + page << 12) + 4 * word


def word(guest: XenGuest, port: int) -> int:
    return int.from_bytes(guest.get(4, word_at(port)), "little")


def set_word(guest: XenGuest, port: int, value: int) -> None:
    guest.put(word_at(port), value.to_bytes(4, "little"))


def control(guest: XenGuest, vcpu: int = 0) -> tuple[int, list[int]]:
    """(ready, heads) of a vCPU's control block."""
    ready, _, *heads = struct.unpack("<18I", guest.get(72, (CONTROL_PFN << 12) + vcpu * SECOND_CONTROL))
    return ready, heads


def take(guest: XenGuest, vcpu: int = 0) -> list[int]:
    """Handle all events of a vCPU as a guest does (Linux: events_fifo.c): the ports, in their order."""
    start = (CONTROL_PFN << 12) + vcpu * SECOND_CONTROL
    taken = []
    guest.domain.vcpus[vcpu].info[0] = 0
    ready, _ = control(guest, vcpu)
    guest.put(start, bytes(4))
    for priority in range(16):
        if not ready >> priority & 1:
            continue
        head = control(guest, vcpu)[1][priority]
        while head:
            value = word(guest, head)
            assert value & LINKED
            set_word(guest, head, value & ~(LINKED | LINK | PENDING))
            if value & PENDING and not value & MASKED:
                taken.append(head)
            head = value & LINK
        guest.put(start + 8 + 4 * priority, bytes(4))
    return taken


# --- setting up -------------------------------------------------------------------------------------------------------


@BOTH
def test_init_control(width: int) -> None:
    guest = World(width).guests[0]
    events, p2m = guest.domain.events, guest.guest.p2m
    assert init(guest, 2) == -ENOENT
    for offset in (4, 4096 - 64, 1 << 31):
        assert init(guest, 0, offset) == -EINVAL
    assert init(guest, mfn=guest.guest.tables["l1"]) == -EINVAL, "a page table"
    assert init(guest, mfn=guest.hv.zero_frame) == init(guest, mfn=1 << 40) == -EINVAL
    assert isinstance(events.abi, TwoLevel) and guest.domain.event_frames == []
    assert init(guest) == 0
    assert guest.number(16, 1) == abi.EVTCHN_FIFO_LINK_BITS
    assert isinstance(events.abi, Fifo)
    assert init(guest) == -EINVAL, "a vCPU has one for good"
    assert init(guest, 1, 4096 - 72) == 0, "as near to the end as it fits"
    assert guest.domain.event_frames == [p2m[CONTROL_PFN]] * 2
    assert guest.hv.frames.type[p2m[CONTROL_PFN]] == WRITABLE and audit(guest.hv) == []


@BOTH
def test_expand_array(width: int) -> None:
    guest = World(width).guests[0]
    assert init(guest) == 0
    assert op(guest, abi.EVTCHNOP_expand_array, "Q", guest.guest.tables["l1"]) == -EINVAL
    for _ in range(128):
        assert expand(guest) == 0
    assert expand(guest) == -ENOSPC
    assert audit(guest.hv) == []
    assert op(guest, abi.EVTCHNOP_reset, "H", DOMID_SELF) == 0
    assert isinstance(guest.domain.events.abi, TwoLevel) and guest.domain.event_frames == [] and audit(guest.hv) == []
    port = bind_ipi(guest)
    assert send(guest, port) == 0 and guest.domain.events.abi.is_pending(port)


def test_the_domains_end_gives_the_frames_back() -> None:
    guest = fifo_guest()
    assert list(domain_kill(guest.domain))
    assert guest.domain.event_frames == [] and audit(guest.hv) == []


@BOTH
def test_what_was_pending_before_is_not_lost(width: int) -> None:
    guest = World(width).guests[0]
    first, second = bind_ipi(guest), bind_ipi(guest)
    assert send(guest, second) == 0
    guest.vcpu.info[0] = 0
    assert init(guest) == 0 and guest.vcpu.info[0] == 0
    assert send(guest, first) == 0, "there is no word for it yet"
    assert not guest.domain.events.is_pending(first)
    assert expand(guest) == 0
    assert guest.vcpu.info[0] == 1
    assert take(guest) == [first, second]


# --- queues -----------------------------------------------------------------------------------------------------------


@BOTH
def test_events_are_queued_in_their_order(width: int) -> None:
    guest = fifo_guest(width)
    ports = [bind_ipi(guest) for _ in range(5)]
    for port in (ports[3], ports[0], ports[4]):
        assert send(guest, port) == 0
    assert guest.vcpu.info[0] == 1
    assert control(guest) == (1 << 7, [0] * 7 + [ports[3]] + [0] * 8)
    assert word(guest, ports[3]) == PENDING | LINKED | ports[0]
    assert word(guest, ports[0]) == PENDING | LINKED | ports[4]
    assert word(guest, ports[4]) == PENDING | LINKED
    assert send(guest, ports[0]) == 0, "pending already"
    assert take(guest) == [ports[3], ports[0], ports[4]]
    assert take(guest) == []
    assert send(guest, ports[0]) == 0
    assert take(guest) == [ports[0]]


def test_no_upcall_for_a_queue_that_is_ready() -> None:
    guest = fifo_guest()
    ports = [bind_ipi(guest) for _ in range(2)]
    send(guest, ports[0])
    guest.vcpu.info[0] = 0
    send(guest, ports[1])
    assert guest.vcpu.info[0] == 0
    assert take(guest) == ports


def test_priorities() -> None:
    guest = fifo_guest()
    low, high, normal = (bind_ipi(guest) for _ in range(3))
    assert op(guest, abi.EVTCHNOP_set_priority, "II", low, 15) == 0
    assert op(guest, abi.EVTCHNOP_set_priority, "II", high, 0) == 0
    for wrong, error in ((16, EINVAL), (1 << 31, EINVAL)):
        assert op(guest, abi.EVTCHNOP_set_priority, "II", high, wrong) == -error
    assert op(guest, abi.EVTCHNOP_set_priority, "II", 63, 0) == -EACCES, "closed"
    assert op(guest, abi.EVTCHNOP_set_priority, "II", 64, 0) == -EINVAL, "there is none"
    for port in (low, normal, high):
        send(guest, port)
    assert control(guest)[0] == 1 << 15 | 1 << 7 | 1 << 0
    assert take(guest) == [high, normal, low]
    assert op(guest, abi.EVTCHNOP_close, "I", low) == 0
    assert bind_ipi(guest) == low
    send(guest, low)
    assert control(guest)[0] == 1 << 7, "a port bound anew has the default"


def test_a_port_that_changes_its_queue() -> None:
    """The old queue's tail is forgotten, so that nothing is appended to it through a port that has left."""
    guest = fifo_guest()
    first, second, third = (bind_ipi(guest) for _ in range(3))
    send(guest, first)
    assert take(guest) == [first]
    op(guest, abi.EVTCHNOP_set_priority, "II", first, 3)
    send(guest, first)
    send(guest, second)
    send(guest, third)
    assert control(guest)[1][3] == first and control(guest)[1][7] == second
    assert take(guest) == [first, second, third]


def test_events_of_another_vcpu() -> None:
    guest = fifo_guest()
    port = bind_ipi(guest, 1)
    send(guest, port)
    assert (guest.vcpu.info[0], guest.domain.vcpus[1].info[0]) == (0, 1)
    assert control(guest) == (0, [0] * 16) and take(guest, 1) == [port]


def test_bind_vcpu_moves_the_next_event() -> None:
    guest, other = World(64, 64).guests
    assert init(guest) == expand(guest) == init(guest, 1, SECOND_CONTROL) == 0
    assert op(other, abi.EVTCHNOP_alloc_unbound, "HHI", DOMID_SELF, guest.domain.id, 0) == 0
    theirs = other.number(4)
    assert op(guest, abi.EVTCHNOP_bind_interdomain, "HxxII", other.domain.id, theirs, 0) == 0
    port = guest.number(8)
    assert take(guest) == [port], "what was lost before is made up for"
    assert op(guest, abi.EVTCHNOP_bind_vcpu, "II", port, 1) == 0
    assert send(other, theirs) == 0
    assert take(guest) == [] and take(guest, 1) == [port]


def test_masked_events() -> None:
    guest = fifo_guest()
    records: list[tuple[int, ...]] = []
    port = bind_ipi(guest)
    set_word(guest, port, MASKED)
    guest.hv.put = lambda *record: records.append(record)  # type: ignore[method-assign,assignment]
    send(guest, port)
    assert word(guest, port) == MASKED | PENDING and guest.vcpu.info[0] == 0
    assert [record[5] for record in records if record[2] == Kind.EVENT_MASKED] == [port]
    assert guest.domain.events.abi.is_masked(port)
    assert op(guest, abi.EVTCHNOP_unmask, "I", port) == 0
    assert word(guest, port) == PENDING | LINKED and guest.vcpu.info[0] == 1
    assert take(guest) == [port]


def test_a_busy_tail_is_linked() -> None:
    """The guest may see BUSY while the hypervisor changes a word; here it never stays."""
    guest = fifo_guest()
    first, second = bind_ipi(guest), bind_ipi(guest)
    send(guest, first)
    set_word(guest, first, word(guest, first) | BUSY)
    send(guest, second)
    assert word(guest, first) == PENDING | LINKED | second


def test_a_closed_port_that_is_linked_is_not_given_away() -> None:
    guest = fifo_guest()
    port = bind_ipi(guest)
    send(guest, port)
    assert op(guest, abi.EVTCHNOP_close, "I", port) == 0
    assert word(guest, port) == LINKED, "no event any more"
    assert bind_ipi(guest) == port + 1
    assert take(guest) == []
    assert bind_ipi(guest) == port


def test_without_a_control_block_the_event_is_dropped() -> None:
    guest = World(64).guests[0]
    assert init(guest) == expand(guest) == 0
    port = bind_ipi(guest, 1)
    send(guest, port)
    send(guest, port)
    assert word(guest, port) == PENDING
    assert [line for line in guest.hv.log_lines if "control block" in line] == guest.hv.log_lines[-1:]
    assert init(guest, 1, SECOND_CONTROL) == 0
    assert op(guest, abi.EVTCHNOP_unmask, "I", port) == 0
    assert take(guest, 1) == [port]


def test_virqs_and_pollers() -> None:
    guest = fifo_guest()
    assert op(guest, abi.EVTCHNOP_bind_virq, "III", VIRQ_TIMER, 0, 0) == 0
    port = guest.number(8)
    set_word(guest, port, MASKED)
    wide = struct.pack("<QI4xQ", ARRAY_PFN + 1 << 12, 1, 0)
    guest.put(ARRAY_PFN + 1 << 12, port.to_bytes(4, "little"))
    assert guest.call(do_sched_op, 3, wide) == 0
    assert guest.vcpu.runstate == BLOCKED
    guest.domain.events.send_virq(guest.vcpu, VIRQ_TIMER)
    assert guest.vcpu.runstate == RUNNABLE, "masked events end a poll too"


def test_more_ports_than_the_two_level_abi_has() -> None:
    guest = World(32).guests[0]
    guest.domain.events.max_port = 5000
    assert init(guest) == 0
    for page in range(5):
        assert expand(guest, ARRAY_PFN + page) == 0
    ports = [bind_ipi(guest) for _ in range(2000)]
    assert ports[-1] == 2000
    send(guest, 2000)
    assert word(guest, 2000) == PENDING | LINKED and take(guest) == [2000]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 15)), max_size=120))
def test_no_event_is_lost_or_invented(what: list[tuple[int, int, int]]) -> None:
    """Whatever is sent, masked, moved and taken: a guest that handles its queues gets each event, and gets it once."""
    guest = fifo_guest()
    ports = [bind_ipi(guest, number & 1) for number in range(8)]
    expected: set[int] = set()
    for kind, number, priority in what:
        port = ports[number]
        if kind <= 2:
            send(guest, port)
            expected.add(port)
        elif kind == 3:
            op(guest, abi.EVTCHNOP_set_priority, "II", port, priority)
        elif kind == 4:
            got = take(guest, priority & 1)
            assert len(set(got)) == len(got)
            assert set(got) == {port for port in expected if ports.index(port) & 1 == priority & 1}
            expected -= set(got)
    assert set(take(guest) + take(guest, 1)) == expected
    assert audit(guest.hv) == []


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 1030), st.integers(0, (1 << 32) - 1)), max_size=60),
    st.sampled_from([32, 64]),
)
def test_whatever_a_guest_writes_into_its_words(what: list[tuple[int, int, int]], width: int) -> None:
    guest = fifo_guest(width)
    ports = [bind_ipi(guest, number & 1) for number in range(60)]
    for kind, number, value in what:
        if kind < 3:
            send(guest, ports[number % 60])
        elif kind == 3:
            set_word(guest, number % 70, value)
        elif kind == 4:
            guest.put((CONTROL_PFN << 12) + number % 256, value.to_bytes(4, "little"))
        elif kind == 5:
            op(guest, abi.EVTCHNOP_unmask, "I", number % 70)
        elif kind == 6:
            op(guest, abi.EVTCHNOP_close, "I", ports[number % 60])
        else:
            op(guest, abi.EVTCHNOP_set_priority, "II", number % 70, value)
    assert audit(guest.hv) == []
