"""The virtual-time alarm: it counts what the vCPU has run, not what has passed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.command import record
from tests.fakes_xen import World, XenGuest
from tests.tiny_kernels import FOREVER, MEMORY, Tiny
from xentui.engine.trace import Kind, Timer
from xentui.engine.xen import time, virtual_timer
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.domain import BLOCKED
from xentui.engine.xen.schedule import kick, set_runstate, switch_in, switch_out
from xentui.engine.xen.vcpu_op import do_vcpu_op

MS = time.MILLISECOND
EINVAL, ENOENT, EFAULT = 22, 2, 14
BOTH = pytest.mark.parametrize("width", [32, 64])


def set_alarm(guest: XenGuest, at: int, vcpu: int = 0) -> int:
    guest.put(0x2_9000, struct.pack("<Q", at))
    return guest.call_at(do_vcpu_op, virtual_timer.SET, vcpu, 0x2_9000)


def rings(guest: XenGuest) -> bool:
    port = guest.vcpu.virq_ports[virtual_timer.VIRQ]
    pending = guest.domain.events.is_pending(port)
    guest.domain.events.abi.clear_pending(port)
    return pending


@BOTH
def test_it_counts_running_time(width: int) -> None:
    world = World(width)
    guest = world.guests[0]
    vcpu = guest.vcpu
    assert guest.domain.events.bind_virq(virtual_timer.VIRQ, 0) > 0
    begun = virtual_timer.virtual_time(vcpu, world.clock.now())
    assert set_alarm(guest, begun + 10 * MS) == 0
    world.pass_time(6 * MS)
    switch_out(vcpu, world.clock.now())
    world.pass_time(1000 * MS)
    assert not rings(guest), "others have run"
    switch_in(vcpu, world.clock.now())
    world.pass_time(4 * MS - 1)
    assert not rings(guest)
    world.pass_time(1)
    assert rings(guest)
    world.pass_time(100 * MS)
    assert not rings(guest), "once"


def test_it_does_not_wake_who_is_blocked() -> None:
    world = World(64)
    guest = world.guests[0]
    vcpu = guest.vcpu
    guest.domain.events.bind_virq(virtual_timer.VIRQ, 0)
    assert set_alarm(guest, virtual_timer.virtual_time(vcpu, world.clock.now()) + MS) == 0
    set_runstate(vcpu, BLOCKED, world.clock.now())
    switch_out(vcpu, world.clock.now())
    world.pass_time(1000 * MS)
    assert vcpu.runstate == BLOCKED and not rings(guest)
    kick(vcpu)
    switch_in(vcpu, world.clock.now())
    world.pass_time(MS)
    assert rings(guest)


def test_set_anew_stopped_and_too_late() -> None:
    world = World(64)
    guest = world.guests[0]
    guest.domain.events.bind_virq(virtual_timer.VIRQ, 0)
    now = virtual_timer.virtual_time(guest.vcpu, world.clock.now())
    assert set_alarm(guest, now + MS) == set_alarm(guest, now + 3 * MS) == 0
    world.pass_time(2 * MS)
    assert not rings(guest)
    assert guest.call_at(do_vcpu_op, virtual_timer.STOP, 0, 0) == 0
    world.pass_time(10 * MS)
    assert not rings(guest)
    assert set_alarm(guest, now) == 0 and rings(guest), "that time has passed: at once"


def test_misuse() -> None:
    guest = World(64).guests[0]
    assert set_alarm(guest, 0, 1) == -EINVAL and guest.call_at(do_vcpu_op, virtual_timer.STOP, 1, 0) == -EINVAL
    assert set_alarm(guest, 0, 2) == -ENOENT
    assert guest.call_at(do_vcpu_op, virtual_timer.SET, 0, 0x10_0000) == -EFAULT
    assert guest.domain.events.bind_virq(virtual_timer.VIRQ, 1) > 0, "each vCPU has its own"


@BOTH
def test_on_the_machine(tmp_path: Path, width: int) -> None:
    """Two domains spin; each has its alarm after 20 ms of its own time, which takes about 40 of the machine's."""
    kernel = Tiny(width)
    binding = kernel.place(struct.pack("<III", virtual_timer.VIRQ, 0, 0))
    kernel.call(nr.HYPERCALL_event_channel_op, 1, binding)
    kernel.call(nr.HYPERCALL_vcpu_op, virtual_timer.SET, 0, kernel.place(struct.pack("<Q", 20 * MS)))
    image = kernel.do(FOREVER).write(tmp_path / "spinner")
    done = record(tmp_path / "out.xtrace", image, image, "--memory", str(MEMORY), "--for", "100ms")
    with done.read() as recording:
        alarms = {
            int(entry["domain"]): int(entry["time"])
            for entry in recording.records()
            if entry["kind"] == Kind.TIMER and entry["number"] == Timer.VIRTUAL
        }
    assert len(alarms) == 2 and all(20 * MS <= at < 80 * MS for at in alarms.values()), alarms
    assert max(alarms.values()) > 35 * MS
