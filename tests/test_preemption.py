"""Hypercalls that give way: what a guest gets and what becomes of the frame table is the same wherever they are cut."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import DATA, STACK_PFN, TABLE, A, D, Guest, P, U, make_guest, make_hypervisor
from tests.test_mm import LIST, LOOSE, OPERATIONS, SELF, STACK, check, exchange, ext, perform, reserve, row, slot
from tests.test_vector import SliceClock
from xentui.config import resolve_guest
from xentui.engine.machine import Machine
from xentui.engine.trace import Kind
from xentui.engine.x86.state import R10, RAX, RBX, RCX, RDI, RDX, RIP, RSI
from xentui.engine.xen import domain_kill, hypercall, memory, mmu_update, mmuext
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi import memory as mem
from xentui.engine.xen.abi.errno import EBUSY, EFAULT, EINVAL
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain import NO_FRAME, Vcpu
from xentui.engine.xen.emul_priv_op import emulate_privileged_op
from xentui.engine.xen.guest_access import GuestFault
from xentui.engine.xen.page import L2, L3, PARTIAL, PARTIAL_SET, PINNED, VALIDATED

ARGUMENTS = {64: (RDI, RSI, RDX, R10), 32: (RBX, RCX, RDX, RSI)}
CALL = 0x7000
"""Where the guest's hypercall instruction is said to be."""
PREEMPTIBLE = (
    (mmu_update, "do_mmu_update", nr.HYPERCALL_mmu_update),
    (mmuext, "do_mmuext_op", nr.HYPERCALL_mmuext_op),
    (memory, "do_memory_op", nr.HYPERCALL_memory_op),
)

Handler = Callable[..., int]
both = pytest.mark.parametrize("width", [32, 64])


def issue(
    vcpu: Vcpu, handler: Handler, number: int, values: tuple[int, ...], stopped: Callable[[], bool] | None = None
) -> tuple[int, int]:
    """A hypercall, made again as the guest's processor would while it is preempted: result, and how often it was.

    `stopped` is called at each preemption, and says whether the guest goes on with it.
    """
    stops = 0
    while True:
        vcpu.q[RIP] = CALL + 2
        try:
            result = handler(vcpu, *values)
        except GuestFault:
            result = -EFAULT
        if vcpu.q[RIP] != CALL:
            assert vcpu.q[RIP] == CALL + 2 and not vcpu.in_multicall
            return result, stops
        assert result == number  # which is RAX, for the instruction to be executed again
        values = tuple(vcpu.q[register] for register in ARGUMENTS[vcpu.width])
        stops += 1
        if stopped is not None and not stopped():
            return -EFAULT, stops


@contextmanager
def forced(guest: Guest, stopped: Callable[[], bool] | None = None) -> Iterator[list[int]]:
    """Preemption after every entry; what is yielded gets the number of stops of each hypercall."""
    stops: list[int] = []

    def again(handler: Handler, number: int) -> Handler:
        def call(vcpu: Vcpu, *values: int) -> int:
            result, count = issue(vcpu, handler, number, values, stopped)
            stops.append(count)
            return result

        return call

    with ExitStack() as stack:
        for module, name, number in PREEMPTIBLE:
            stack.enter_context(patch.object(module, name, again(getattr(module, name), number)))
        stack.enter_context(patch.object(guest.hv, "preempt", lambda: True))
        yield stops


def make(width: int) -> Guest:
    return make_guest(make_hypervisor(), 1, width, loose=LOOSE)


def tree(guest: Guest) -> tuple[int, int, list[int]]:
    """An L3 (place 10, PAE: its fourth L2 too) with three L2s (11 to 13) of three L1s each: L3, first L2, all L1s."""
    ram64, p2m = guest.hv.ram64, guest.p2m
    l1s = p2m[7:10]
    top, l2s = p2m[10], p2m[11:14]
    for number, l2 in enumerate(l2s):
        ram64[(top << 9) + number] = l2 << 12 | (TABLE if guest.vcpu.width == 64 else P)
        for index, l1 in enumerate(l1s):
            ram64[(l2 << 9) + 7 * index] = l1 << 12 | TABLE
    ram64[(l1s[0] << 9) + 5] = guest.entry(50)
    if guest.vcpu.width == 32:
        ram64[(top << 9) + 3] = p2m[6] << 12 | P
    return top, l2s[0], l1s


def make_tree(width: int) -> tuple[Guest, int, int, list[int]]:
    guest = make_guest(make_hypervisor(), 1, width, loose=11)
    return guest, *tree(guest)


# --- partially validated tables ------------------------------------------------------------------------------------


@both
def test_a_tree_is_pinned_and_unpinned_in_many_steps(width: int) -> None:
    guest, top, l2, l1s = make_tree(width)
    frames = guest.hv.frames
    seen = []

    def stopped() -> bool:
        assert audit(guest.hv) == []
        flags = frames.flags[top]
        seen.append((bool(flags & PARTIAL), frames.nr_validated[top], bool(flags & PARTIAL_SET), row(guest, l2)[1:]))
        return True

    with forced(guest, stopped) as stops:
        assert ext(guest, core.MMUEXT_PIN_L3_TABLE, top) == 0
        assert stops[-1] >= 8 and all(partial for partial, *_ in seen)
        assert [step[1] for step in seen] == sorted(step[1] for step in seen)
        # the first L2 is partial with a reference of the L3's and one of its own, then it is done
        assert seen[0] == (True, 0, True, (1, 3)) and seen[-1][-1] == (1, 2)
        assert (
            row(guest, top) == (L3, 1, 2) and frames.flags[top] & (PARTIAL | PINNED | VALIDATED) == PINNED | VALIDATED
        )
        assert row(guest, l1s[0]) == (1, 3, 4)
        assert audit(guest.hv) == []
        seen.clear()
        assert ext(guest, core.MMUEXT_UNPIN_TABLE, top) == 0
        assert stops[-1] >= 7
        assert [step[1] for step in seen] == sorted((step[1] for step in seen), reverse=True)
    assert guest.vcpu.old_guest_table == NO_FRAME
    assert row(guest, top) == (L3, 0, 1) and row(guest, l2) == (L2, 0, 1) and row(guest, l1s[0]) == (1, 0, 1)
    assert audit(guest.hv) == []


@both
def test_a_refusal_late_in_a_tree_is_undone_in_steps(width: int) -> None:
    guest, top, l2, l1s = make_tree(width)
    guest.hv.ram64[(guest.p2m[13] << 9) + 14] = guest.p2m[50] << 12 | TABLE  # writable elsewhere: no L1
    with forced(guest, lambda: audit(guest.hv) == []) as stops:
        assert ext(guest, core.MMUEXT_PIN_L3_TABLE, top) == -EINVAL
    assert stops[-1] > 12  # forwards and back again
    assert guest.vcpu.old_guest_table == NO_FRAME
    assert row(guest, top)[1:] == row(guest, l2)[1:] == row(guest, l1s[0])[1:] == (0, 1)
    refused = [record for record in guest.hv.trace.latest(100) if record.kind == Kind.REFUSAL]
    assert len(refused) == 1 and refused[0].a == guest.p2m[50]
    assert audit(guest.hv) == []


@both
def test_a_partial_table_cannot_be_changed_mapped_or_used(width: int) -> None:
    """XSA-290, 309: what the guest can do with a table while its promotion is preempted."""
    guest, top, l2, _ = make_tree(width)
    frames = guest.hv.frames
    attempts: list[int] = []

    def stopped() -> bool:
        if not attempts:
            v = guest.vcpu
            registers = [v.q[register] for register in ARGUMENTS[width]]
            with patch.object(guest.hv, "preempt", lambda: False):
                for table in (top, l2):
                    assert frames.flags[table] & PARTIAL
                    attempts.append(guest.update((table << 12) + 8 * 100, guest.entry(50)))
                    attempts.append(guest.update(slot(guest, "l1", 200), table << 12 | DATA))
                    attempts.append(ext(guest, core.MMUEXT_CLEAR_PAGE, table))
                    attempts.append(ext(guest, core.MMUEXT_PIN_L1_TABLE, table))
                    attempts.append(ext(guest, core.MMUEXT_UNPIN_TABLE, table))
                    attempts.append(exchange(guest, [table], [10]))
            assert audit(guest.hv) == []
            for register, value in zip(ARGUMENTS[width], registers, strict=True):
                v.q[register] = value
            guest.write(STACK, list(operation), "B")
        return True

    operation = b""
    with forced(guest, stopped):
        operation = pin_operation(guest, core.MMUEXT_PIN_L3_TABLE, top)
        assert ext(guest, core.MMUEXT_PIN_L3_TABLE, top) == 0
    assert attempts == [-EINVAL, -EBUSY, -EINVAL, -EINVAL, -EINVAL, -EINVAL] * 2
    assert frames.flags[top] & VALIDATED and audit(guest.hv) == []


def pin_operation(guest: Guest, command: int, mfn: int) -> bytes:
    return struct.pack("<I4xQQ" if guest.vcpu.width == 64 else "<III12x", command, mfn, 0)


@both
def test_another_use_takes_a_partial_table_over(width: int) -> None:
    guest, top, l2, _ = make_tree(width)
    with forced(guest, lambda: False):
        ext(guest, core.MMUEXT_PIN_L3_TABLE, top)  # and it never goes on with it
    assert guest.hv.frames.flags[top] & PARTIAL and guest.hv.frames.flags[l2] & PARTIAL
    assert audit(guest.hv) == []
    # the half of it is finished by another use, then the whole
    assert guest.update(slot(guest, "l3", 1 if width == 64 else 2), l2 << 12 | (TABLE if width == 64 else P)) == 0
    assert row(guest, l2) == (L2, 1, 3) and audit(guest.hv) == []
    assert ext(guest, core.MMUEXT_PIN_L3_TABLE, top) == 0
    assert row(guest, l2) == (L2, 2, 3) and audit(guest.hv) == []
    assert ext(guest, core.MMUEXT_UNPIN_TABLE, top) == 0
    assert row(guest, l2) == (L2, 1, 2) and audit(guest.hv) == []


@both
def test_a_table_that_half_gone_is_wanted_again(width: int) -> None:
    guest, top, l2, _ = make_tree(width)
    assert ext(guest, core.MMUEXT_PIN_L3_TABLE, top) == 0
    where = slot(guest, "l3", 1 if width == 64 else 2)
    stops = 0

    def stopped() -> bool:
        nonlocal stops
        stops += 1
        return stops < 2

    with forced(guest, stopped):
        ext(guest, core.MMUEXT_UNPIN_TABLE, top)
    assert guest.vcpu.old_guest_table == top and audit(guest.hv) == []
    below = guest.p2m[12]
    # mmu_update goes on with the table that is on its way out before it does anything else
    assert guest.update(where, below << 12 | (TABLE if width == 64 else P)) == 0
    assert guest.vcpu.old_guest_table == NO_FRAME and row(guest, top) == (L3, 0, 1)
    assert row(guest, l2)[1:] == (0, 1) and row(guest, below) == (L2, 1, 2)
    assert audit(guest.hv) == []


@pytest.mark.parametrize("cut", [False, True])
@both
def test_a_domain_that_ends_in_the_middle_leaves_nothing(width: int, cut: bool) -> None:
    guest, top, _, _ = make_tree(width)
    for steps in range(12):
        left = steps
        guest, top, _, _ = make_tree(width)

        def stopped() -> bool:
            nonlocal left
            left -= 1
            return left > 0

        with forced(guest, stopped):
            ext(guest, core.MMUEXT_PIN_L3_TABLE, top)
            left = steps
            ext(guest, core.MMUEXT_UNPIN_TABLE, top)
        assert audit(guest.hv) == []
        end(guest, cut)
        assert audit(guest.hv) == [] and guest.hv.frames.owned_by(1) == []


def end(guest: Guest, cut: bool) -> int:
    """Take all memory from a domain that goes away; cut: giving way after every entry. How often it gave way."""
    if not cut:
        domain_kill.free_domain_memory(guest.domain)
        return 0
    guest.domain.dying = True
    guest.vcpu.info[0] = 1  # an upcall that nobody will ever see
    with patch.object(guest.hv, "preempt", lambda: True):
        stops = [audit(guest.hv) for _ in domain_kill._relinquish_resources(guest.domain, preemptible=True)]
    assert not any(stops)
    return len(stops)


@pytest.mark.parametrize("pinned", ["top", "all"])
@both
def test_a_domain_with_pinned_trees_is_killed_in_many_steps(width: int, pinned: str) -> None:
    guest, top, l2, l1s = make_tree(width)
    assert ext(guest, core.MMUEXT_PIN_L3_TABLE, top) == 0
    if pinned == "all":
        assert ext(guest, core.MMUEXT_PIN_L2_TABLE, l2) == 0
        assert all(ext(guest, core.MMUEXT_PIN_L1_TABLE, l1) == 0 for l1 in l1s)
    assert end(guest, cut=True) >= (17 if pinned == "all" else 14)
    assert guest.vcpu.old_guest_table == NO_FRAME and guest.hv.frames.owned_by(1) == []
    assert audit(guest.hv) == []


def test_linear_counts_survive_partial_validation() -> None:
    guest = make(64)
    frames = guest.hv.frames
    one, two = guest.p2m[LOOSE], guest.p2m[LOOSE + 1]
    for table in (one, two):
        assert ext(guest, core.MMUEXT_PIN_L3_TABLE, table) == 0
    third = guest.p2m[LOOSE + 2]
    for index, entry in enumerate((one << 12 | P | U, guest.tables["l2"] << 12 | TABLE, two << 12 | P | U)):
        guest.hv.ram64[(third << 9) + index] = entry
    with forced(guest, lambda: audit(guest.hv) == []) as stops:
        assert ext(guest, core.MMUEXT_PIN_L3_TABLE, third) == 0
        assert frames.linear[third] == 2 and frames.linear[one] == frames.linear[two] == -1
        # the last use of a linear table's target goes with the entry
        for table in (one, two):
            assert ext(guest, core.MMUEXT_UNPIN_TABLE, table) == 0
            assert row(guest, table) == (L3, 1, 2)
        assert ext(guest, core.MMUEXT_UNPIN_TABLE, third) == 0
        assert stops[-1] >= 1
    assert row(guest, one)[1:] == row(guest, two)[1:] == row(guest, third)[1:] == (0, 1)
    assert audit(guest.hv) == []


@both
def test_no_hypercall_goes_on_long_behind_the_end_of_its_slice(width: int) -> None:
    """Two hundred full L1 tables are validated and dropped again; what is left to do never takes more than 10 us."""
    guest = make_guest(make_hypervisor(2048), 1, width, pages=512, loose=250)
    clock = SliceClock(guest.hv, 0)
    p2m, ram64 = guest.p2m, guest.hv.ram64
    top, l2s, l1s = p2m[10], p2m[11:13], p2m[14:214]
    for number, l1 in enumerate(l1s):
        ram64[(l2s[number % 2] << 9) + number] = l1 << 12 | TABLE
        for slot_number in range(512):
            ram64[(l1 << 9) + slot_number] = guest.entry(260 + slot_number % 200)
    for number, l2 in enumerate(l2s):
        ram64[(top << 9) + number] = l2 << 12 | (TABLE if width == 64 else P)
    if width == 32:
        ram64[(top << 9) + 3] = p2m[6] << 12 | P
    over: list[int] = []

    def stopped() -> bool:
        over.append(clock.time - clock.deadline)
        clock.deadline = clock.time + 20_000  # another slice
        return True

    for operation in (core.MMUEXT_PIN_L3_TABLE, core.MMUEXT_UNPIN_TABLE):
        command = (256 << 12, 1, 0, SELF)
        guest.write(256 << 12, list(pin_operation(guest, operation, top)), "B")
        start, count = clock.time, len(over)
        result, _ = issue(guest.vcpu, mmuext.do_mmuext_op, nr.HYPERCALL_mmuext_op, command, stopped)
        assert result == 0 and clock.time - start > 400_000 and len(over) - count > 10
    assert max(over) <= 10_000
    assert audit(guest.hv) == []


@both
def test_a_move_to_cr3_is_executed_again(width: int) -> None:
    guest, top, _, _ = make_tree(width)
    vcpu, ram64 = guest.vcpu, guest.hv.ram64
    if width == 64:
        top, below = guest.p2m[5], top
        ram64[top << 9] = below << 12 | TABLE
    old = vcpu.guest_table
    guest.hv.preempt = lambda: True
    guest.write(STACK, [0x90909090_90D8220F])  # mov %rax, %cr3
    vcpu.q[RIP], vcpu.q[RAX] = STACK, top << 12
    times = 0
    while vcpu.q[RIP] == STACK:
        vcpu.space.reads[STACK_PFN] = guest.p2m[STACK_PFN] << 12
        assert vcpu.guest_table in (old, top)
        assert emulate_privileged_op(vcpu) and audit(guest.hv) == []
        times += 1
    assert times > 5 and vcpu.q[RIP] == STACK + 3 and vcpu.guest_table == top


# --- batches -------------------------------------------------------------------------------------------------------


@both
def test_batches_stop_after_each_entry_and_count_what_is_done(width: int) -> None:
    guest = make(width)
    requests: list[int] = []
    for number in range(20):
        requests += [slot(guest, "l1", 200 + number), guest.entry(50)]
    requests[2 * 15 + 1] = 1 << 12 | P
    guest.write(STACK, requests)
    counts = []

    def stopped() -> bool:
        counts.append(guest.read(LIST, 1, "I")[0])
        return audit(guest.hv) == []

    with forced(guest, stopped) as stops:
        assert mmu_update.do_mmu_update(guest.vcpu, STACK, 20, LIST, SELF) == -EBUSY
        assert stops == [15] and counts == list(range(1, 16))
        assert guest.read(LIST, 1, "I") == [15]
        operations = b"".join(pin_operation(guest, core.MMUEXT_INVLPG_LOCAL, page << 12) for page in range(4))
        guest.write(STACK, list(operations), "B")
        counts.clear()
        # pin_operation pads to the same size in both widths; a 32-bit structure is 12 bytes
        size = 24 if width == 64 else 12
        if width == 32:
            operations = b"".join(struct.pack("<III", core.MMUEXT_INVLPG_LOCAL, page << 12, 0) for page in range(4))
            guest.write(STACK, list(operations), "B")
        assert len(operations) == 4 * size
        assert mmuext.do_mmuext_op(guest.vcpu, STACK, 4, LIST, SELF) == 0
        assert counts == [1, 2, 3] and guest.read(LIST, 1, "I") == [4]
    assert guest.vcpu.processor.page_flushes == [page << 12 for page in range(4)]  # type: ignore[attr-defined]


@both
def test_reservations_change_extent_by_extent(width: int) -> None:
    guest = make(width)
    frames = guest.hv.frames
    given_back = [guest.p2m[4 + number] for number in range(5)]
    with forced(guest, lambda: audit(guest.hv) == []) as stops:
        assert reserve(guest, mem.XENMEM_decrease_reservation, given_back) == 5
        assert reserve(guest, mem.XENMEM_populate_physmap, [4 + number for number in range(7)]) == 5
        new = guest.read(LIST, 5, "Q" if width == 64 else "I")
        assert exchange(guest, new[:4], [4, 5, 6, 7]) == 0
    assert stops == [4, 5, 3]
    assert sorted(guest.hv.get_m2p(mfn) for mfn in frames.owned_by(1) if guest.hv.get_m2p(mfn) < 64)[-1] == 63
    assert guest.domain.tot_pages == 64 and audit(guest.hv) == []


def multicall(guest: Guest, *entries: tuple[int, ...]) -> int:
    """Write the entries of a multicall to 60 << 12; how many they are."""
    words: list[int] = []
    for number, *arguments in entries:
        words += [number, 0x5555, *arguments, *[0] * (6 - len(arguments))]
    guest.write(60 << 12, words, "Q" if guest.vcpu.width == 64 else "I")
    return len(entries)


@both
def test_a_multicall_goes_on_within_its_entry(width: int) -> None:
    guest = make(width)
    requests: list[int] = []
    for number in range(3):
        requests += [slot(guest, "l1", 200 + number), guest.entry(50)]
    guest.write(STACK, requests)
    code, size = ("Q", 64) if width == 64 else ("I", 32)
    count = multicall(
        guest,
        (nr.HYPERCALL_mmu_update, STACK, 3, LIST, SELF),
        (nr.HYPERCALL_multicall, 60 << 12, 1),
        (nr.HYPERCALL_mmu_update, STACK, 1, 0, SELF),
    )
    entries = []

    def stopped() -> bool:
        entries.append(tuple(guest.read(60 << 12, 6, code)))
        return audit(guest.hv) == []

    guest.hv.preempt = lambda: True
    result, stops = issue(guest.vcpu, hypercall.do_multicall, nr.HYPERCALL_multicall, (60 << 12, count, 0, 0), stopped)
    assert result == 0 and stops == 4 and not guest.vcpu.in_multicall
    go_on = mmu_update.MMU_UPDATE_PREEMPTED
    assert entries[:2] == [
        (nr.HYPERCALL_mmu_update, 1, STACK + 16 * done, 3 - done | go_on, LIST, SELF) for done in (1, 2)
    ]
    results = [guest.read((60 << 12) + size * number + size // 8, 1, code)[0] for number in range(count)]
    assert results == [0, -EINVAL & (1 << width) - 1, 0]
    assert guest.read(LIST, 1, "I") == [3]


@both
def test_a_multicall_in_memory_that_may_not_be_written_ends(width: int) -> None:
    guest = make(width)
    count = multicall(guest, (nr.HYPERCALL_mmu_update, STACK, 2, 0, SELF), (nr.HYPERCALL_mmu_update, STACK, 1, 0, SELF))
    guest.write(STACK, [slot(guest, "l1", 60), guest.entry(60, P | U)] * 2)
    guest.hv.preempt = lambda: True
    result, stops = issue(guest.vcpu, hypercall.do_multicall, nr.HYPERCALL_multicall, (60 << 12, count, 0, 0))
    # the first request makes the list itself read-only: its continuation cannot be kept there
    guest.vcpu.flush_tlb()
    assert (result, stops) in ((-EFAULT, 0), (0, 3))
    assert guest.vcpu.continuation is None and not guest.vcpu.in_multicall


def test_an_upcall_that_is_due_comes_first() -> None:
    guest = make(64)
    guest.write(STACK, [slot(guest, "l1", 200), guest.entry(50)] * 3)
    guest.vcpu.info[0] = 1
    result, stops = issue(guest.vcpu, mmu_update.do_mmu_update, nr.HYPERCALL_mmu_update, (STACK, 3, 0, SELF))
    assert (result, stops) == (0, 2)
    guest.vcpu.info[1] = 1
    result, stops = issue(guest.vcpu, mmu_update.do_mmu_update, nr.HYPERCALL_mmu_update, (STACK, 3, 0, SELF))
    assert (result, stops) == (0, 0)


def test_a_continuation_is_in_the_trace() -> None:
    guest = make(64)
    guest.write(STACK, [slot(guest, "l1", 200), guest.entry(50)] * 2)
    guest.hv.preempt = lambda: True
    issue(guest.vcpu, mmu_update.do_mmu_update, nr.HYPERCALL_mmu_update, (STACK, 2, 0, SELF))
    (record,) = [each for each in guest.hv.trace.latest(10) if each.kind == Kind.CONTINUATION]
    assert (record.number, record.rip, record.a, record.b) == (1, CALL, STACK + 16, 1 | mmu_update.MMU_UPDATE_PREEMPTED)


# --- anything, cut anywhere ----------------------------------------------------------------------------------------


def state(guests: list[Guest]) -> tuple[Any, ...]:
    """All that a hypercall on memory may change, but for accessed bits: made again, it walks the tables again."""
    hv = guests[0].hv
    frames = hv.frames
    columns = [bytes(column) for column in (*frames.columns, frames.linear)]
    tables = [(guest.vcpu.guest_table, guest.vcpu.guest_table_user, guest.domain.tot_pages) for guest in guests]
    memory_but_accessed = (numpy.frombuffer(hv.ram, "<u8") & ~numpy.uint64(A | D)).tobytes()
    return memory_but_accessed, columns, tables, frames.free_frames


def pair(widths: int) -> list[Guest]:
    hv = make_hypervisor(192)
    return [make_guest(hv, number + 1, 64 if widths >> number & 1 else 32, pages=54, loose=8) for number in range(2)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), OPERATIONS), min_size=5, max_size=30), st.integers(0, 3))
def test_preempted_everywhere_or_nowhere_is_the_same(operations: list[tuple[int, Any]], widths: int) -> None:
    plain, cut = pair(widths), pair(widths)
    for who, operation in operations:
        with suppress(GuestFault):
            perform(plain, who, operation)
        with suppress(GuestFault), forced(cut[0], lambda: audit(cut[0].hv) == []):
            perform(cut, who, operation)
        check(cut)
        assert state(cut) == state(plain)
        assert all(guest.vcpu.old_guest_table == NO_FRAME for guest in cut)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), OPERATIONS), min_size=5, max_size=30),
    st.integers(0, 3),
    st.lists(st.sampled_from(["go on", "go on", "other", "same", "never"]), min_size=1, max_size=40),
)
def test_what_happens_at_a_preemption_does_not_matter(
    operations: list[tuple[int, Any]], widths: int, events: list[str]
) -> None:
    """At a stop the other domain runs, or an upcall handler of the same vCPU, or the hypercall is never made again."""
    guests = pair(widths)
    queue, plan = iter(operations), iter(events * 50)

    def interlude(who: int) -> None:
        following = next(queue, None)
        if following is None:
            return
        vcpu = guests[who].vcpu
        saved, arguments = bytes(vcpu.processor.state.raw), guests[who].read(STACK, 64)
        perform(guests, who, following[1])
        vcpu.processor.state.raw[:] = saved
        guests[who].write(STACK, arguments)

    def stopped(who: int) -> bool:
        check(guests)
        event = next(plan, "go on")
        with patch.object(guests[0].hv, "preempt", lambda: False), suppress(GuestFault):
            if event in ("other", "same"):
                interlude(1 - who if event == "other" else who)
                check(guests)
        return event != "never"

    for who, operation in queue:
        with suppress(GuestFault), forced(guests[0], lambda who=who: stopped(who)):  # type: ignore[misc]
            perform(guests, who, operation)
        check(guests)
    for guest, cut in zip(guests, (True, False), strict=True):
        end(guest, cut)
    assert audit(guests[0].hv) == [] and not guests[0].hv.frames.owned_by(1) and not guests[0].hv.frames.owned_by(2)


# --- guests on the whole machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["selftest32", "selftest64", *(pytest.param(f"attack{bits}", marks=pytest.mark.slow) for bits in (32, 64))]
)
def test_guests_see_nothing_of_it(name: str) -> None:
    """Every hypercall that can give way does so after each entry, on the processor: the guests' lines stay the same."""
    machine = Machine(128)
    machine.strict = True
    machine.create(replace(resolve_guest(name), vcpus=2 if name.startswith("attack") else 1))
    machine.hv.preempt = lambda: True
    console = bytearray()
    machine.toolstack.on_output = lambda _domain, data: console.extend(data)
    machine.run()
    expected = Path(__file__).parent / "expected" / f"{name}.tap"
    assert console.decode().replace("\r\n", "\n") == expected.read_text()
    assert audit(machine.hv) == []
    machine.close()
