"""Vector arithmetic and the loop over entries do the same to a table, to the last count and bit."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.command import record
from tests.fakes import A, D, Guest, P, U, W, make_guest, make_hypervisor
from xentui.engine.x86.paging import GLOBAL, PCD
from xentui.engine.xen import guest_access, mmu_update, page_type, vector
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain import LazyNx
from xentui.engine.xen.hypervisor import Hypervisor
from xentui.engine.xen.memory import do_memory_op
from xentui.engine.xen.page import L1, PINNED
from xentui.engine.xen.pte import GUEST_KERNEL

TABLE = 6
FLAGS = [0, P, P | U, P | W, P | W | U | A | D, P | U | GLOBAL, P | W | GUEST_KERNEL | U, P | A]


def state(guest: Guest) -> tuple[Any, ...]:
    """All that promotion and demotion may change."""
    frames = guest.hv.frames
    columns = [bytes(column) for column in (*frames.columns, frames.linear)]
    return bytes(guest.hv.ram), columns, frames.refusal, frames.free_frames, guest.domain.tot_pages


def run(width: int, entries: list[tuple[int, int]], odd: tuple[int, int] | None, vectors: bool) -> list[Any]:
    """Results and states of promoting and demoting a table, after a balloon has taken the frame of each third entry."""
    guest = make_guest(make_hypervisor(), 1, width, loose=8)
    other = make_guest(guest.hv, 2, width)
    mfn = guest.p2m[TABLE]
    for slot, (page, flags) in enumerate(entries):
        guest.hv.ram64[(mfn << 9) + 5 * slot] = guest.p2m[page] << 12 | flags
    if odd is not None:
        target, flags = [(mfn, P | W), (other.p2m[9], P), (guest.hv.frames.count, P), (guest.p2m[9], P | PCD)][odd[1]]
        guest.hv.ram64[(mfn << 9) + odd[0]] = target << 12 | flags
    seen: list[Any] = []
    with patch.object(vector, "ready", return_value=vectors):
        error = page_type.get_page_and_type(guest.domain, mfn, L1)
        guest.hv.frames.flags[mfn] |= 0 if error else PINNED
        seen.append((error, state(guest), audit(guest.hv)))
        if not error:
            for page, _ in entries[::3]:
                if page >= TABLE + 1:
                    where = guest.write(40 << 12, [guest.p2m[page]], "Q" if width == 64 else "I")
                    do_memory_op(guest.vcpu, 1, where, 0, 0)
            guest.hv.frames.flags[mfn] &= ~PINNED
            page_type.put_page_and_type(guest.domain, mfn)
            seen.append((state(guest), audit(guest.hv)))
    return seen


@settings(max_examples=80, deadline=None)
@given(
    width=st.sampled_from([32, 64]),
    entries=st.lists(st.tuples(st.integers(TABLE + 1, 63), st.sampled_from(FLAGS)), max_size=100),
    odd=st.none() | st.tuples(st.integers(0, 511), st.integers(0, 3)),
)
def test_both_ways_do_the_same(width: int, entries: list[tuple[int, int]], odd: tuple[int, int] | None) -> None:
    one, other = (run(width, entries, odd, vectors) for vectors in (False, True))
    assert one == other
    assert all(step[-1] == [] for step in one)


@pytest.mark.parametrize("width", [32, 64])
def test_ordinary_tables_go_the_vector_way(width: int) -> None:
    guest = make_guest(make_hypervisor(), 1, width, loose=8)
    mfn = guest.p2m[TABLE]
    for slot in range(512):
        guest.hv.ram64[(mfn << 9) + slot] = guest.entry(TABLE + 1 + slot) if slot < 50 else 0
    assert vector.promote_l1(guest.domain, mfn) and vector.demote_l1(guest.domain, mfn)
    guest.hv.ram64[(mfn << 9) + 7] = mfn << 12 | P | W
    guest.hv.frames.type[mfn], guest.hv.frames.type_count[mfn] = L1, 1
    assert not vector.promote_l1(guest.domain, mfn)


# --- batches of mmu_update -----------------------------------------------------------------------------------------


class SliceClock:
    """Virtual time that passes as the hypervisor's work is charged, with a slice that ends."""

    def __init__(self, hv: Hypervisor, slice_ns: int) -> None:
        self.time, self.deadline = 1000, 1000 + slice_ns
        hv.clock = self
        hv.preempt, hv.slice_left = lambda: self.time >= self.deadline, lambda: 2 * (self.deadline - self.time)

    def now(self) -> int:
        return self.time

    def position(self) -> int:
        return 2 * self.time

    def charge(self, ns: int) -> None:
        self.time += ns

    def set_deadline(self, position: int) -> None:
        self.deadline = position // 2

    def skip_to(self, position: int) -> None:
        self.time = max(self.time, position // 2)


REQUESTS = 50 << 12
FRAMES = 54
Batch = list[tuple[int, int, int, int]]


def apply(
    width: int, batch: Batch, odd: dict[int, int], slice_ns: int, start: int, known: int, vectors: bool
) -> list[Any]:
    """What a batch of mmu_update leaves behind: `batch` has the slot, the page, the flags and the command of each."""
    guest = make_guest(make_hypervisor(640), 1, width, pages=64, loose=2)
    other = make_guest(guest.hv, 2, width)
    SliceClock(guest.hv, slice_ns)
    guest.domain.lazy_nx.update((guest.tables["l1"] << 9) + slot for slot in range(100, 400, 3))
    table = guest.tables["l1"] << 12
    requests: list[int] = []
    for number, (slot, page, flags, command) in enumerate(batch):
        pointer, value = table + 8 * slot | command, guest.p2m[page] << 12 | flags
        case = odd.get(number)
        if case is not None:
            pointer, value = (
                (pointer, table | P | W | U),  # its own table, writable
                (pointer, other.p2m[9] << 12 | P),
                (pointer, guest.hv.frames.count << 12 | P),
                (pointer, value | P | PCD),
                (guest.tables["l2"] << 12 | 8 * 100, 0),
                (other.tables["l1"] << 12, 0),
                (pointer | 7, value),
                (guest.p2m[page] << 12 | 1, 77),
                (guest.p2m[50] << 12 | 8 * 200, 5),
                (table + 8 * 50, 0),  # the list's own page goes away
                (pointer, guest.p2m[4] << 12 | P | W | U),  # a page nobody has used yet
                (1 << 63 | pointer, value),
            )[case]
        requests += [pointer, value]
    guest.write(REQUESTS + start, requests)
    guest_access.read(guest.vcpu, REQUESTS, known)
    with patch.object(vector, "ready", return_value=vectors):
        result = mmu_update.do_mmu_update(guest.vcpu, REQUESTS + start, len(batch), 40 << 12, 0x7FF0)
    hv, q = guest.hv, guest.vcpu.q
    trace = hv.trace.latest(1000)
    registers = [q[register] for register in range(17)]
    return [result, guest.read(40 << 12, 1, "I"), hv.clock.now(), trace, registers, state(guest), guest.domain.lazy_nx]


ENTRIES = st.tuples(
    st.integers(60, 500), st.integers(6, FRAMES), st.sampled_from([*FLAGS, 1 << 40]), st.sampled_from([0, 0, 0, 2, 3])
)


@settings(max_examples=150, deadline=None)
@given(
    width=st.sampled_from([32, 64]),
    batch=st.one_of(
        st.lists(ENTRIES, min_size=30, max_size=300),
        st.lists(ENTRIES, min_size=30, max_size=300, unique_by=lambda entry: entry[0]),
        st.lists(ENTRIES, min_size=30, max_size=45, unique_by=(lambda entry: entry[0], lambda entry: entry[1])),
    ),
    odd=st.dictionaries(st.integers(0, 119), st.integers(0, 11), max_size=2),
    slice_ns=st.sampled_from([0, 200, 2500, 4000, 5999, 6000, 1 << 30]),
    start=st.sampled_from([0, 8, 16, 1024, 3072]),
    known=st.sampled_from([0, 1, 8192]),
)
def test_batches_do_the_same(
    width: int, batch: Batch, odd: dict[int, int], slice_ns: int, start: int, known: int
) -> None:
    one, other = (apply(width, batch, odd, slice_ns, start, known, vectors) for vectors in (False, True))
    assert one == other


@pytest.mark.parametrize("width", [32, 64])
def test_ordinary_batches_go_the_vector_way(width: int) -> None:
    guest = make_guest(make_hypervisor(640), 1, width)
    SliceClock(guest.hv, 1 << 30)
    table = guest.tables["l1"] << 12
    requests = [word for slot in range(60, 300) for word in (table + 8 * slot, guest.entry(slot % 50 + 10))]
    guest.write(REQUESTS, requests)
    assert vector.update(guest.vcpu, REQUESTS, 240) == 240
    assert vector.update(guest.vcpu, REQUESTS, 31) == 0
    assert guest.hv.trace.head == 240 and audit(guest.hv) == []
    for slot in range(60, 300):
        assert guest.hv.ram64[(table >> 3) + slot] >> 12 & 0xFFFFF == guest.p2m[slot % 50 + 10]
    SliceClock(guest.hv, 60 * 100)
    assert vector.update(guest.vcpu, REQUESTS, 240) == 101
    guest.hv.preempt = lambda: True
    assert vector.update(guest.vcpu, REQUESTS, 240) == 0


def test_recordings_do_not_depend_on_it(xtrace: Any) -> None:
    """Enough work that numpy is loaded in the middle; the same result with it loaded from the start (--audit)."""
    options = ("bench64", "--cmdline", "only=pin_unpin scale=30")
    plain, audited = record(xtrace, *options), record(xtrace.with_suffix(".audited"), *options, "--audit")
    with plain.read() as one, audited.read() as other:
        assert len(one) == len(other) and (one.records(0, len(one)) == other.records(0, len(other))).all()


def test_marks_of_lazy_entries_are_made_once() -> None:
    lazy = LazyNx(512 + slot for slot in range(6))
    marks = lazy.marks
    assert [bytes(table[:8]) for table in marks.values()] == [b"\1" * 6 + b"\0" * 2]
    lazy.discard(512)  # a first fetch, of which there are thousands
    assert lazy.marks is marks
    lazy.drop([512, 513, 517, 4000])
    assert lazy == {514, 515, 516} and lazy.marks is marks
    assert list(marks) == [1] and bytes(marks[1][:8]) == b"\0\0\1\1\1\0\0\0"
