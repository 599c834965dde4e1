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
from xentui.engine.xen import page_type, vector
from xentui.engine.xen.audit import audit
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


def test_recordings_do_not_depend_on_it(xtrace: Any) -> None:
    """Enough work that numpy is loaded in the middle; the same result with it loaded from the start (--audit)."""
    options = ("bench64", "--cmdline", "only=pin_unpin scale=30")
    plain, audited = record(xtrace, *options), record(xtrace.with_suffix(".audited"), *options, "--audit")
    with plain.read() as one, audited.read() as other:
        assert len(one) == len(other) and (one.records(0, len(one)) == other.records(0, len(other))).all()
