"""sched_op, vcpu_op's run states, and the policy: who runs, who waits, and what a guest is told of it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes_xen import ARGUMENT, UNMAPPED, World, XenGuest, fuzz
from xentui.engine.xen import schedule
from xentui.engine.xen.abi import sched as abi
from xentui.engine.xen.abi import vcpu as vcpu_abi
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain import BLOCKED, OFFLINE, RUNNABLE, RUNNING
from xentui.engine.xen.domain_kill import domain_kill
from xentui.engine.xen.event_2l import TwoLevel
from xentui.engine.xen.schedule import do_sched_op, do_sched_op_compat
from xentui.engine.xen.vcpu_op import do_vcpu_op

BOTH = pytest.mark.parametrize("width", [32, 64])
EPERM, ENOENT, ESRCH, EFAULT, EEXIST, EINVAL, ENOSPC, ENOSYS, ENXIO = 1, 2, 3, 14, 17, 22, 28, 38, 6
SECOND = 1_000_000_000


def poll(guest: XenGuest, ports: list[int], timeout: int = 0) -> int:
    guest.put(ARGUMENT + 64, struct.pack(f"<{len(ports)}I", *ports))
    form = "<IIQ" if guest.domain.width == 32 else "<QI4xQ"
    return guest.call(do_sched_op, abi.SCHEDOP_poll, struct.pack(form, ARGUMENT + 64, len(ports), timeout))


def sched(guest: XenGuest, command: int, form: str, *values: int) -> int:
    return guest.call(do_sched_op, command, struct.pack("<" + form, *values))


# --- block, yield, poll --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [do_sched_op, do_sched_op_compat])
def test_block_unmasks_and_sleeps_unless_an_event_waits(handler) -> None:
    world = World(64)
    guest = world.guests[0]
    guest.vcpu.info[0] = 1
    assert guest.call_at(handler, abi.SCHEDOP_block, 0) == 0
    assert (guest.vcpu.runstate, guest.vcpu.info[1]) == (RUNNING, 0)
    guest.vcpu.info[0] = 0
    guest.vcpu.info[1] = 1
    assert guest.call_at(handler, abi.SCHEDOP_block, 0) == 0
    assert (guest.vcpu.runstate, guest.vcpu.info[1]) == (BLOCKED, 0)
    assert world.reschedules == 1


@pytest.mark.parametrize("handler", [do_sched_op, do_sched_op_compat])
def test_yield_asks_for_another_choice(handler) -> None:
    world = World(64)
    guest = world.guests[0]
    assert guest.call_at(handler, abi.SCHEDOP_yield, 0) == 0
    assert (guest.vcpu.runstate, world.reschedules) == (RUNNABLE, 1)


@BOTH
def test_poll_wakes_for_its_port_even_if_masked(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    events = guest.domain.events
    mine, other = events.bind_ipi(0), events.bind_ipi(0)
    guest.domain.shared_info[guest.layout.SHARED_INFO_evtchn_mask] = 0xFF
    assert poll(guest, [mine]) == 0
    assert guest.vcpu.runstate == BLOCKED
    events.set_pending(other)
    assert guest.vcpu.runstate == BLOCKED, "one port alone is asked for"
    events.set_pending(mine)
    assert (guest.vcpu.runstate, guest.vcpu.poll_ports, events.pollers) == (RUNNABLE, None, [])
    guest.vcpu.runstate = RUNNING
    assert poll(guest, [other, mine]) == 0
    assert guest.vcpu.runstate == RUNNING, "pending already"
    third = events.bind_ipi(0)
    assert poll(guest, [5, 6]) == 0
    assert guest.vcpu.runstate == BLOCKED
    events.set_pending(third)
    assert guest.vcpu.runstate == RUNNABLE, "who polls several wakes for any event, as on Xen"


def test_poll_timeout() -> None:
    world = World(64)
    guest = world.guests[0]
    assert poll(guest, [], world.clock.now() + 500) == 0
    world.pass_time(499)
    assert guest.vcpu.runstate == BLOCKED
    world.pass_time(1)
    assert (guest.vcpu.runstate, guest.domain.events.pollers) == (RUNNABLE, [])
    guest.vcpu.runstate = RUNNING
    assert poll(guest, [], world.clock.now() - 500) == 0
    assert guest.vcpu.runstate == RUNNABLE


@BOTH
def test_poll_misuse(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    assert poll(guest, [0] * 129) == -EINVAL
    assert poll(guest, [64]) == -EINVAL
    form = "<IIQ" if width == 32 else "<QI4xQ"
    assert guest.call(do_sched_op, abi.SCHEDOP_poll, struct.pack(form, UNMAPPED, 1, 0)) == -EFAULT
    assert guest.vcpu.runstate == RUNNING
    guest.vcpu.info[0], guest.vcpu.info[1] = 1, 0
    assert poll(guest, [64]) == 0, "an upcall that can be taken comes first"


# --- shutting down -------------------------------------------------------------------------------------------------


@BOTH
def test_shutdown(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    ended: list[int] = []
    guest.domain.on_shutdown = lambda domain: ended.append(domain.id)
    assert sched(guest, abi.SCHEDOP_shutdown, "I", 0x101) == 0
    assert guest.domain.shutdown_code == 1, "the reason is a byte"
    assert sched(guest, abi.SCHEDOP_shutdown, "I", 3) == 0
    assert (guest.domain.shutdown_code, ended) == (1, [1])
    assert guest.vcpu.runstate == OFFLINE
    assert not guest.domain.runnable


def test_shutdown_code_takes_precedence() -> None:
    guest = World(64).guests[0]
    assert sched(guest, abi.SCHEDOP_shutdown_code, "I", abi.SHUTDOWN_crash) == 0
    assert guest.domain.shutdown_code is None
    assert sched(guest, abi.SCHEDOP_shutdown_code, "I", abi.SHUTDOWN_reboot) == 0
    assert sched(guest, abi.SCHEDOP_shutdown, "I", abi.SHUTDOWN_poweroff) == 0
    assert guest.domain.shutdown_code == abi.SHUTDOWN_crash


def test_compat_shutdown_takes_the_reason_itself() -> None:
    guest = World(64).guests[0]
    assert guest.call_at(do_sched_op_compat, abi.SCHEDOP_shutdown, abi.SHUTDOWN_reboot) == 0
    assert guest.domain.shutdown_code == abi.SHUTDOWN_reboot
    assert guest.call_at(do_sched_op_compat, abi.SCHEDOP_poll, 0) == -ENOSYS


def test_what_only_others_may() -> None:
    guest = World(64, 64).guests[0]
    for domid, answer in ((0, -EPERM), (1, -EPERM), (2, -EPERM), (3, -ESRCH), (0x7FF0, -ESRCH)):
        assert sched(guest, abi.SCHEDOP_remote_shutdown, "HxxI", domid, 0) == answer
    assert sched(guest, abi.SCHEDOP_pin_override, "i", 0) == -EPERM
    assert sched(guest, 8, "I", 0) == -ENOSYS
    assert guest.call_at(do_sched_op, abi.SCHEDOP_shutdown, UNMAPPED) == -EFAULT


def test_watchdogs() -> None:
    world = World(64)
    guest = world.guests[0]
    assert sched(guest, abi.SCHEDOP_watchdog, "II", 0, 10) == 1
    assert sched(guest, abi.SCHEDOP_watchdog, "II", 0, 20) == 2
    assert sched(guest, abi.SCHEDOP_watchdog, "II", 0, 20) == -ENOSPC
    assert sched(guest, abi.SCHEDOP_watchdog, "II", 3, 20) == -EINVAL
    assert sched(guest, abi.SCHEDOP_watchdog, "II", 1, 0) == 0
    assert sched(guest, abi.SCHEDOP_watchdog, "II", 1, 5) == -EINVAL, "stopped: no longer there"
    world.pass_time(15 * SECOND)
    assert guest.domain.shutdown_code is None
    assert sched(guest, abi.SCHEDOP_watchdog, "II", 2, 20) == 0
    world.pass_time(19 * SECOND)
    assert guest.domain.shutdown_code is None
    world.pass_time(SECOND)
    assert guest.domain.shutdown_code == abi.SHUTDOWN_watchdog


# --- run states ----------------------------------------------------------------------------------------------------


def test_time_in_each_state_adds_up() -> None:
    world = World(64)
    vcpu = world.guests[0].vcpu
    start = world.clock.now()
    for state, ns in ((RUNNABLE, 7), (RUNNING, 11), (BLOCKED, 13), (RUNNING, 17)):
        world.clock.time += ns
        schedule.set_runstate(vcpu, state, world.clock.now())
    assert vcpu.runstate_time == [7 + 13 - 13 + 13, 11, 17, 0]
    assert sum(vcpu.runstate_time) == world.clock.now() - start


@BOTH
def test_runstate_info_and_area(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    form, size = ("<iQ4Q", 44) if width == 32 else ("<i4xQ4Q", 48)
    area = struct.pack("<Q", ARGUMENT + 64)
    start = world.clock.now()
    world.clock.time += 100
    assert vcpu_op(guest, vcpu_abi.VCPUOP_register_runstate_memory_area, 0, area) == 0
    assert struct.unpack(form, guest.get(size, ARGUMENT + 64)) == (RUNNING, start, 100, 0, 0, 0)
    schedule.switch_out(guest.vcpu, world.clock.now())
    world.clock.time += 50
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_get_runstate_info, 0, ARGUMENT) == 0
    assert struct.unpack(form, guest.get(size)) == (RUNNABLE, start + 100, 100, 50, 0, 0)
    schedule.switch_in(guest.vcpu, world.clock.now())
    assert struct.unpack(form, guest.get(size, ARGUMENT + 64)) == (RUNNING, start + 150, 100, 50, 0, 0)
    unmapped = struct.pack("<Q", UNMAPPED)
    assert vcpu_op(guest, vcpu_abi.VCPUOP_register_runstate_memory_area, 0, unmapped) == 0, "may be mapped later"
    schedule.switch_in(guest.vcpu, world.clock.now())
    assert vcpu_op(guest, vcpu_abi.VCPUOP_register_runstate_memory_area, 0, bytes(8)) == 0
    assert guest.vcpu.runstate_area == 0
    bad = struct.pack("<Q", 0xFFFF_8000_0000_0000 if width == 64 else 0xFFFF_FFF0)
    assert vcpu_op(guest, vcpu_abi.VCPUOP_register_runstate_memory_area, 0, bad) == -EFAULT
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_get_runstate_info, 0, UNMAPPED) == -EFAULT


def vcpu_op(guest: XenGuest, command: int, vcpu: int, data: bytes) -> int:
    guest.put(ARGUMENT, data)
    return guest.call_at(do_vcpu_op, command, vcpu, ARGUMENT)


# --- vcpu_op -------------------------------------------------------------------------------------------------------


@BOTH
def test_up_and_down(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    other = guest.domain.vcpus[1]
    assert [guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_is_up, number) for number in (0, 1, 2, 8191)] == [1, 0, -2, -2]
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_up, 1) == -EINVAL, "it does not know where to start"
    other.guest_table = guest.vcpu.guest_table
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_up, 1) == 0
    assert (other.online, other.runstate, world.woken) == (True, RUNNABLE, [other])
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_down, 1) == 0
    assert (other.online, other.runstate, guest.domain.shutdown_code) == (False, OFFLINE, None)
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_down, 0) == 0
    assert guest.domain.shutdown_code == abi.SHUTDOWN_poweroff, "the last one takes the domain with it"


@BOTH
def test_register_vcpu_info(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    pfn = 50
    mfn = guest.guest.p2m[pfn]
    guest.vcpu.info[1] = 1
    size = guest.layout.VCPU_INFO_SIZE

    def register(mfn: int, offset: int, vcpu: int = 0) -> int:
        return vcpu_op(guest, vcpu_abi.VCPUOP_register_vcpu_info, vcpu, struct.pack("<QII", mfn, offset, 0))

    assert register(mfn, 4096 - size + 8) == -ENXIO
    assert register(mfn, 2) == -ENXIO
    assert register(guest.guest.tables["l1"], 0) == -EINVAL, "a page table is not written"
    assert register(1 << 40, 0) == -EINVAL
    assert register(mfn, 128) == 0
    assert guest.vcpu.info.tobytes() == guest.get(size, (pfn << 12) + 128)
    assert (guest.vcpu.info[0], guest.vcpu.info[1]) == (1, 1)
    at = guest.layout.VCPU_INFO_evtchn_pending_sel
    assert guest.vcpu.info[at : at + guest.layout.WORD_SIZE] == b"\xff" * guest.layout.WORD_SIZE
    assert register(guest.guest.p2m[51], 0) == -EINVAL, "only once"
    port = guest.domain.events.bind_ipi(0)
    guest.vcpu.info[0] = 0
    guest.vcpu.info[at : at + 4] = bytes(4)
    guest.domain.events.set_pending(port)
    assert guest.get(1, (pfn << 12) + 128) == b"\1"
    guest.domain.vcpus[1].online = True
    assert register(guest.guest.p2m[52], 0, 1) == -EINVAL, "not while another one runs"


@BOTH
def test_a_domains_end_gives_everything_back(width: int) -> None:
    world = World(width, 64)
    guest, peer = world.guests
    mfn = guest.guest.p2m[50]
    assert vcpu_op(guest, vcpu_abi.VCPUOP_register_vcpu_info, 0, struct.pack("<QII", mfn, 0, 0)) == 0
    offered = guest.domain.events.alloc_unbound_for(2)
    port = peer.domain.events.bind_interdomain(1, offered)
    sched(guest, abi.SCHEDOP_watchdog, "II", 0, 10)
    world.hv.timers.set_singleshot(guest.vcpu, world.clock.now() + 5)
    poll(guest, [], world.clock.now() + 50)
    assert [found for _ in domain_kill(guest.domain) for found in audit(guest.hv)] == []
    assert guest.hv.frames.owned_by(1) == [] and audit(guest.hv) == []
    assert world.hv.timers.next_deadline() is None
    assert guest.domain.events.used() == []
    assert peer.domain.events.send(peer.vcpu, port) == 0, "the other end is unbound"


@BOTH
def test_initialise(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    layout, other = guest.layout, guest.domain.vcpus[1]
    context = bytearray(layout.VCPU_GUEST_CONTEXT_SIZE)
    word = layout.WORD_SIZE

    def put(member: str, value: int, size: int = word, further: int = 0) -> None:
        at = getattr(layout, f"VCPU_GUEST_CONTEXT_{member}") + further
        context[at : at + size] = value.to_bytes(size, "little")

    top = guest.guest.tables["l3" if width == 32 else "l4"]
    put("ctrlreg", top << 12, word, 3 * word)
    put("flags", 4, 4)
    put("user_regs_eip" if width == 32 else "user_regs_rip", 0x1234)
    put("user_regs_esp" if width == 32 else "user_regs_rsp", 0x8000)
    put("user_regs_eax" if width == 32 else "user_regs_r15", 77)
    put("user_regs_cs", 0xE030 if width == 64 else 0xE018, 2)
    put("kernel_sp", 0x9000)
    put("event_callback_eip", 0x4000)
    at = layout.VCPU_GUEST_CONTEXT_trap_ctxt + 14 * layout.TRAP_INFO_SIZE
    layout.STRUCT_trap_info.pack_into(context, at, 14, 4, 0xE019, 0x5000)

    def initialise() -> int:
        guest.put(0x3D000, bytes(context))
        return guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_initialise, 1, 0x3D000)

    put("ldt_base", 1)
    assert initialise() == -EINVAL
    put("ldt_base", 0)
    put("ctrlreg", 0x7FFFF << 12, word, 3 * word)
    references = guest.hv.frames.ref_count.tolist()
    assert initialise() == -EINVAL, "no such page table"
    assert guest.hv.frames.ref_count.tolist() == references
    put("ctrlreg", top << 12, word, 3 * word)
    assert initialise() == 0
    assert other.guest_table == top
    assert initialise() == -EEXIST
    assert (other.boot_registers["rip"], other.boot_registers["rsp"]) == (0x1234, 0x8000)
    assert other.boot_registers["rax" if width == 32 else "r15"] == 77
    assert other.boot_registers["cs"] == (0xE019 if width == 32 else 0xE030)
    handler = other.traps[14]
    assert handler is not None
    assert (handler.address, handler.dpl, handler.masks_events) == (0x5000, 0, True)
    assert (other.event_callback[1], other.kernel_sp, other.online) == (0x4000, 0x9000, False)
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_up, 1) == 0


def test_nmi_and_physid() -> None:
    world = World(64)
    guest = world.guests[0]
    schedule.block(guest.vcpu)
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_send_nmi, 0, 1) == -EINVAL
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_send_nmi, 0, 0) == 0
    assert (guest.vcpu.nmi_pending, guest.vcpu.runstate) == (True, RUNNABLE)
    assert guest.call_at(do_vcpu_op, vcpu_abi.VCPUOP_get_physid, 0, ARGUMENT) == -EINVAL
    assert guest.call_at(do_vcpu_op, 99, 0, ARGUMENT) == -ENOSYS
    assert guest.call_at(do_vcpu_op, 99, 5, ARGUMENT) == -ENOENT


# --- anything at all -----------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([32, 64]),
    st.sampled_from([do_sched_op, do_sched_op_compat, do_vcpu_op]),
    st.integers(0, 15) | st.integers(0, (1 << 64) - 1),
    st.integers(0, 2) | st.sampled_from([ARGUMENT, ARGUMENT + 4090]) | st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, ARGUMENT, ARGUMENT + 4090, UNMAPPED - 2]) | st.integers(0, (1 << 64) - 1),
    st.binary(max_size=64) | st.sampled_from([struct.pack("<QQQ", ARGUMENT, 1, 0), b"\xff" * 4096]),
    st.integers(0, 30 * SECOND),
)
def test_any_operation(width: int, handler, command: int, b: int, c: int, data: bytes, wait: int) -> None:
    world = World(width)
    guest = world.guests[0]
    mask = (1 << width) - 1
    guest.domain.events.bind_virq(0, 0)
    fuzz(guest, handler, (command & mask, b & mask, c & mask, 0), data)
    world.pass_time(wait % SECOND)
    assert isinstance(guest.domain.events.abi, TwoLevel)
