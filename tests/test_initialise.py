"""VCPUOP_initialise with page tables that are still to be validated: it gives way, and what fails can be tried again.

And the other long hypercalls that are not about page tables.
"""

from __future__ import annotations

import struct

import pytest

from tests.fakes import TABLE, P
from tests.fakes_xen import World, XenGuest
from tests.test_preemption import issue
from xentui.engine.trace import Kind
from xentui.engine.xen import domain_kill
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi import vcpu as vcpu_abi
from xentui.engine.xen.abi.core import CONSOLEIO_write
from xentui.engine.xen.abi.errno import EEXIST, EINVAL
from xentui.engine.xen.audit import audit
from xentui.engine.xen.callback import do_set_trap_table
from xentui.engine.xen.console_io import do_console_io
from xentui.engine.xen.domain import NO_FRAME
from xentui.engine.xen.page import L3, L4, PARTIAL
from xentui.engine.xen.page_type import put_page_from_l1e
from xentui.engine.xen.vcpu_op import do_vcpu_op, initialised

both = pytest.mark.parametrize("width", [32, 64])
LISTS = 40 << 12


def free_pages(guest: XenGuest, first: int, last: int) -> None:
    """Unmap pages from the guest's L1, so that they may become tables."""
    for pfn in range(first, last):
        index = (guest.guest.tables["l1"] << 9) + pfn
        entry, guest.hv.ram64[index] = guest.hv.ram64[index], 0
        put_page_from_l1e(guest.hv, entry)


def tree(guest: XenGuest, first: int) -> int:
    """A top-level table at place `first`, with an L3 (64-bit) and L2s of some L1s; nothing of it validated."""
    p2m, ram64 = guest.guest.p2m, guest.hv.ram64
    top, l3, last = p2m[first], p2m[first + 1], p2m[first + 2]
    l2s, l1s = p2m[first + 3 : first + 5], p2m[first + 5 : first + 9]
    if guest.domain.width == 32:
        l3, ram64[(top << 9) + 3] = top, last << 12 | P
    else:
        ram64[top << 9] = l3 << 12 | TABLE
    for number, l2 in enumerate(l2s):
        ram64[(l3 << 9) + number] = l2 << 12 | (P if guest.domain.width == 32 else TABLE)
        for index, l1 in enumerate(l1s):
            ram64[(l2 << 9) + index] = l1 << 12 | TABLE
    return top


def make(width: int) -> XenGuest:
    guest = World(width).guests[0]
    free_pages(guest, 10, 30)
    return guest


def initialise(guest: XenGuest, kernel: int, user: int = 0, patient: bool = True) -> tuple[int, int]:
    """VCPUOP_initialise of the second vCPU: its result, and how often it was preempted."""
    layout = guest.layout
    context = bytearray(layout.VCPU_GUEST_CONTEXT_SIZE)
    for index, value in ((3, kernel << 12), (1, user << 12)):
        at = layout.VCPU_GUEST_CONTEXT_ctrlreg + index * layout.WORD_SIZE
        context[at : at + layout.WORD_SIZE] = value.to_bytes(layout.WORD_SIZE, "little")
    guest.put(0x3D000, bytes(context))
    values = (vcpu_abi.VCPUOP_initialise, 1, 0x3D000, 0)
    return issue(guest.vcpu, do_vcpu_op, nr.HYPERCALL_vcpu_op, values, lambda: patient and audit(guest.hv) == [])


@both
@pytest.mark.parametrize("cut", [False, True])
def test_tables_that_nobody_has_pinned(width: int, cut: bool) -> None:
    guest = make(width)
    guest.hv.preempt = lambda: cut
    kernel, user = tree(guest, 10), tree(guest, 20) if width == 64 else 0
    other = guest.domain.vcpus[1]
    result, stops = initialise(guest, kernel, user)
    assert result == 0 and (stops > 5) == cut
    assert (other.guest_table, other.guest_table_user) == (kernel, user or NO_FRAME) and initialised(other)
    assert initialise(guest, kernel, user) == (-EEXIST, 0)
    frames = guest.hv.frames
    assert (frames.type[kernel], frames.type_count[kernel]) == (L3 if width == 32 else L4, 1)
    assert audit(guest.hv) == []
    domain_kill.free_domain_memory(guest.domain)
    assert audit(guest.hv) == [] and guest.hv.frames.owned_by(guest.domain.id) == []


@both
def test_one_that_is_never_asked_again(width: int) -> None:
    guest = make(width)
    guest.hv.preempt = lambda: True
    kernel = tree(guest, 10)
    assert initialise(guest, kernel, patient=False)[1] == 1
    assert guest.hv.frames.flags[kernel] & PARTIAL and not initialised(guest.domain.vcpus[1])
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_up, 1) == -EINVAL
    domain_kill.free_domain_memory(guest.domain)
    assert audit(guest.hv) == [] and guest.hv.frames.owned_by(guest.domain.id) == []


@pytest.mark.parametrize("cut", [False, True])
def test_a_user_table_that_is_refused(cut: bool) -> None:
    guest = make(64)
    guest.hv.preempt = lambda: cut
    kernel, user = tree(guest, 10), tree(guest, 20)
    guest.hv.ram64[(guest.guest.p2m[24] << 9) + 300] = guest.guest.p2m[50] << 12 | TABLE  # writable elsewhere
    other = guest.domain.vcpus[1]
    assert initialise(guest, kernel, user)[0] == -EINVAL
    assert not initialised(other) and other.boot_registers == {} and audit(guest.hv) == []
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_up, 1) == -EINVAL
    guest.hv.ram64[(guest.guest.p2m[24] << 9) + 300] = 0
    # with the tables the other way round, so that the first is exchanged
    assert initialise(guest, user, kernel)[0] == 0
    assert (other.guest_table, other.guest_table_user) == (user, kernel) and audit(guest.hv) == []
    domain_kill.free_domain_memory(guest.domain)
    assert audit(guest.hv) == [] and guest.hv.frames.owned_by(guest.domain.id) == []


# --- trap tables and the log ---------------------------------------------------------------------------------------


@both
def test_a_trap_table_gives_way_between_its_entries(width: int) -> None:
    guest = World(width).guests[0]
    layout = "<BBHxxxxQ" if width == 64 else "<BBHI"
    table = b"".join(struct.pack(layout, vector, 0, 0, 0x1000 + vector) for vector in range(20))
    guest.put(LISTS, table + bytes(16))
    guest.hv.preempt = lambda: True
    seen = []

    def stopped() -> bool:
        seen.append(sum(handler is not None for handler in guest.vcpu.traps))
        return True

    result = issue(guest.vcpu, do_set_trap_table, nr.HYPERCALL_set_trap_table, (LISTS, 0, 0, 0), stopped)
    assert result == (0, 20) and seen == list(range(1, 21))
    assert [handler.address for handler in guest.vcpu.traps if handler] == [0x1000 + vector for vector in range(20)]


@both
def test_words_for_the_log_give_way(width: int) -> None:
    guest = World(width).guests[0]
    guest.put(LISTS, b"".join(b"line %3d\n" % number for number in range(100)))
    guest.hv.preempt = lambda: True
    result, stops = issue(guest.vcpu, do_console_io, nr.HYPERCALL_console_io, (CONSOLEIO_write, 900, LISTS, 0))
    assert result == 0 and stops == 7
    lines = [line.partition("(d1) ")[2] for line in guest.hv.log_lines if "(d1)" in line]
    assert lines == [f"line {number:3}" for number in range(100)]
    assert [each for each in guest.hv.trace.latest(10) if each.kind == Kind.CONTINUATION][-1].b == 900 - 7 * 128
