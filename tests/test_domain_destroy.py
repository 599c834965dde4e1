"""Destroying a domain gives way: what others see of it, what a dying domain is, and that nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.test_process import WAIT
from tests.test_run_control import Drive, Traced, by_positions, by_steps, in_one_go
from tests.tiny_kernels import FOREVER, MEMORY, Tiny
from xentui.config import GuestSpec, resolve_guest
from xentui.engine.actions import Action, ActionError
from xentui.engine.dom0 import info
from xentui.engine.dom0.domain_destroy import PAUSE, PIECE, Destroyer
from xentui.engine.machine import Machine, Stop
from xentui.engine.process import Engine
from xentui.engine.setup import Setup
from xentui.engine.trace import Kind
from xentui.engine.views import ViewError, look
from xentui.engine.x86.paging import PRESENT, USER
from xentui.engine.xen.abi.core import VIRQ_TIMER
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain import Domain
from xentui.engine.xen.page import L1, L2, L3, PINNED
from xentui.engine.xen.page_type import get_page_and_type
from xentui.session import setup_from_recording

BOTH = pytest.mark.parametrize("width", [32, 64])
MS = 1_000_000
BOUND = 2 * PIECE
"""Nanoseconds that a piece takes at most."""


def spinner(tmp_path: Path, name: str, memory: int = MEMORY, width: int = 64) -> GuestSpec:
    return GuestSpec(name, Tiny(width).do(FOREVER).write(tmp_path / f"spin{width}"), memory=memory)


def pin_trees(domain: Domain, l1s: int = 256) -> None:
    """Pin page tables of the domain's: L3s of an L2 each, and below them `l1s` full L1s, each pinned as well."""
    hv = domain.hv
    frames, ram64 = hv.frames, hv.ram64
    loose = [mfn for mfn in frames.owned_by(domain.id) if not frames.type_count[mfn]]
    tables, targets = loose[:l1s], loose[l1s : l1s + 2048]
    tops = loose[-l1s // 64 :]
    for number, mfn in enumerate(tables):
        for slot in range(512):
            ram64[(mfn << 9) + slot] = targets[(7 * number + slot) % len(targets)] << 12 | PRESENT | USER
    pins = [(mfn, L1) for mfn in tables]
    for number, l2 in enumerate(loose[-3 * len(tops) : -2 * len(tops)]):
        ram64[l2 << 9 : (l2 << 9) + 512] = memoryview(bytes(4096)).cast("Q")
        for slot, mfn in enumerate(tables[64 * number : 64 * number + 64]):
            ram64[(l2 << 9) + slot] = mfn << 12 | PRESENT | USER
        ram64[tops[number] << 9] = l2 << 12 | PRESENT | USER
        pins += [(l2, L2), (tops[number], L3)] if domain.width == 64 else [(l2, L2)]
    for mfn, level in pins:
        assert get_page_and_type(domain, mfn, level) == 0
        frames.flags[mfn] |= PINNED
    assert audit(hv) == []


@contextmanager
def pieces(look_at: Callable[[Machine], None] = lambda machine: None) -> Iterator[list[tuple[int, int]]]:
    """What is yielded gets the beginning and the end of every piece, in virtual ns."""
    taken: list[tuple[int, int]] = []
    piece = Destroyer._piece

    def watched(destroyer: Destroyer) -> None:
        machine = destroyer._machine
        start = machine.now()
        piece(destroyer)
        taken.append((start, machine.now()))
        look_at(machine)

    with patch.object(Destroyer, "_piece", watched):
        yield taken


# --- giving way ----------------------------------------------------------------------------------------------------


@BOTH
def test_a_neighbour_never_waits_longer_than_for_a_piece(width: int, tmp_path: Path) -> None:
    """64 MiB with hundreds of pinned page tables, while another domain wants the processor all the time."""
    checks = 0

    def check(machine: Machine) -> None:
        nonlocal checks
        checks += 1
        if checks % 8 == 1:
            assert audit(machine.hv) == []

    with Machine(64 + 8) as machine, pieces(check) as taken:
        machine.strict = True
        free = machine.hv.frames.free_frames
        neighbour = machine.create(spinner(tmp_path, "neighbour"))
        big = machine.create(spinner(tmp_path, "big", 64, width))
        machine.run(40 * MS)
        pin_trees(big)
        began, ran = machine.now(), info.cpu_time(neighbour, machine.now())
        machine.apply(Action("destroy", "big"))
        assert machine.domains == [neighbour, big] and big.dying
        left = []
        while big in machine.domains:
            left.append(big.tot_pages)
            assert machine.run(machine.now() + MS // 2) == Stop.TIME
        assert audit(machine.hv) == []
        assert left == sorted(left, reverse=True) and len(set(left)) > 10, "memory is free as it becomes free"
        assert len(taken) > 100 and checks == len(taken)
        assert max(end - start for start, end in taken) <= BOUND
        waits = [start - end for (_, end), (start, _) in pairwise(taken)]
        assert min(waits) >= PAUSE
        used = sum(end - start for start, end in taken)
        had = info.cpu_time(neighbour, machine.now()) - ran
        assert had > 0.95 * (machine.now() - began - used), "all the rest is the neighbour's"
        machine.apply(Action("destroy", "neighbour"))
        assert machine.run() == Stop.FINISHED
        assert machine.hv.frames.free_frames == free


def test_however_many_are_destroyed_a_piece_comes_after_a_pause(tmp_path: Path) -> None:
    with Machine(10 * MEMORY) as machine, pieces() as taken:
        machine.create(spinner(tmp_path, "neighbour"))
        names = [f"d{number}" for number in range(8)]
        for name in names:
            machine.create(spinner(tmp_path, name))
        machine.run(5 * MS)
        for name in names:
            machine.apply(Action("destroy", name))
        assert len(taken) == 1
        assert machine.run(50 * MS) == Stop.TIME
        assert [domain.name for domain in machine.domains] == ["neighbour"] and audit(machine.hv) == []
        assert min(start - end for (_, end), (start, _) in pairwise(taken)) >= PAUSE


def test_a_timer_that_is_due_meanwhile_comes_in_time(tmp_path: Path) -> None:
    """Nobody wants the processor, so that there are no pauses; but then somebody's timer is due."""
    fired = []
    with Machine(64 + MEMORY) as machine, pieces() as taken:
        big = machine.create(spinner(tmp_path, "big", 64))
        machine.run(5 * MS)
        pin_trees(big)
        for number in range(20):
            due = machine.now() + 50_000 * number + 1
            machine.hv.timers.set(number, due, lambda due=due: fired.append(machine.now() - due))  # type: ignore[misc]
        machine.apply(Action("destroy", "big"))
        assert big in machine.domains
        assert machine.run() == Stop.FINISHED and machine.domains == []
        assert len(fired) == 20 and 0 < max(fired) <= BOUND
        assert any(start == end for (_, end), (start, _) in pairwise(taken))


def test_it_is_so_with_several_processors(tmp_path: Path) -> None:
    with Machine(4 * MEMORY, cpus=2) as machine, pieces() as taken:
        machine.strict = True
        neighbour, _ = dying(machine, tmp_path)
        assert machine.run(60 * MS) == Stop.TIME and machine.domains == [neighbour]
        assert max(end - start for start, end in taken) <= BOUND
        assert min(start - end for (_, end), (start, _) in pairwise(taken)) >= PAUSE
        machine.apply(Action("destroy", "neighbour"))
        assert machine.run() == Stop.FINISHED and machine.domains == [] and audit(machine.hv) == []


# --- a dying domain ------------------------------------------------------------------------------------------------


def dying(machine: Machine, tmp_path: Path, width: int = 64) -> tuple[Domain, Domain]:
    """A neighbour that runs, and a domain that is being destroyed."""
    neighbour = machine.create(spinner(tmp_path, "neighbour"))
    victim = machine.create(spinner(tmp_path, "victim", 2 * MEMORY, width))
    machine.run(40 * MS)
    machine.apply(Action("destroy", "victim"))
    assert machine.domains == [neighbour, victim]
    return neighbour, victim


@BOTH
def test_a_dying_domain_is_seen_and_does_nothing(width: int, tmp_path: Path) -> None:
    with Machine(4 * MEMORY) as machine:
        neighbour, victim = dying(machine, tmp_path, width)
        time = info.domain_info(machine, victim)["time"]
        assert info.domain_state(victim) == "-----d"
        machine.run(machine.now() + MS // 2)
        assert info.domain_info(machine, victim)["time"] == time and info.domain_state(victim) == "-----d"
        told = [record for record in machine.trace.latest(1 << 16) if record.domain == victim.id]
        assert not any(record.kind == Kind.DOMAIN_DESTROY for record in told)
        for action in ("pause", "crash", "destroy", "shutdown", "rename"):
            with pytest.raises(ActionError, match="domain victim is being destroyed"):
                machine.apply(Action(action, "victim", ("other",) if action == "rename" else ()))
        with pytest.raises(ActionError, match="being destroyed"):
            machine.apply(Action("pause", str(victim.id)))
        with pytest.raises(ActionError, match="no domain 'victim'"):
            machine.apply(Action("inject", None, ("pause victim",)))
        machine.toolstack.destroy(victim)  # once more, as a script may: nothing
        machine.run(machine.now() + 10 * MS)
        assert machine.domains == [neighbour]
        told = [record for record in machine.trace.latest(1 << 16) if record.domain == victim.id]
        assert [record.a for record in told if record.kind == Kind.DOMAIN_DESTROY] == [2 * MEMORY << 8]
        assert told[-1].kind == Kind.DOMAIN_DESTROY


def test_hypercalls_that_name_a_dying_domain(tmp_path: Path) -> None:
    """As on Xen: it is found until it is gone, gets no new ports, and a port that still waits can be bound."""
    with Machine(4 * MEMORY) as machine:
        neighbour = machine.create(spinner(tmp_path, "neighbour"))
        victim = machine.create(spinner(tmp_path, "victim", 2 * MEMORY))
        machine.run(MS)
        port = victim.events.alloc_unbound_for(neighbour.id)
        with patch.object(Destroyer, "_piece", lambda destroyer: None):
            machine.toolstack.destroy(victim)
        assert victim.events.bind_ipi(0) == -22 and victim.events.bind_virq(VIRQ_TIMER, 0) == -22
        bound = neighbour.events.bind_interdomain(victim.id, port)
        assert bound > 0 and neighbour.events.send(neighbour.vcpus[0], bound) == 0
        machine.run(machine.now() + 20 * MS)
        assert machine.domains == [neighbour]
        assert neighbour.events.channels[bound].remote is None, "its end is unbound again"
        assert neighbour.events.bind_interdomain(victim.id, port) == -3
        assert audit(machine.hv) == []


VIEWS: dict[str, dict[str, int]] = {
    "domains.list": {},
    "machine.summary": {},
    "sched.state": {},
    "faults.names": {},
    "memory.frame_map": {"cells": 64},
    **{name: {"domain": 2} for name in ("cpu.registers", "cpu.code", "cpu.stack", "memory.roots", "memory.walk")},
    **{name: {"domain": 2} for name in ("memory.p2m", "events.bitmaps", "events.ports", "rings.rings", "rings.ring")},
}


@BOTH
def test_a_dying_domain_can_be_looked_at_all_the_time(width: int, tmp_path: Path) -> None:
    """Every view answers, or says in a line why it cannot."""
    looked = 0

    def check(machine: Machine) -> None:
        nonlocal looked
        for name, arguments in VIEWS.items():
            try:
                look(machine, name, **arguments)
            except ViewError as error:
                assert "\n" not in str(error)
        looked += 1

    with Machine(4 * MEMORY) as machine, pieces(check):
        dying(machine, tmp_path, width)
        assert machine.run(60 * MS) == Stop.TIME and len(machine.domains) == 1
    assert looked > 10


# --- what comes after ----------------------------------------------------------------------------------------------


def test_a_name_is_free_at_once_and_memory_when_it_is(tmp_path: Path) -> None:
    with Machine(3 * MEMORY) as machine:
        machine.strict = True
        neighbour, victim = dying(machine, tmp_path)
        again = spinner(tmp_path, "victim", 2 * MEMORY)
        machine.apply(Action("create", None, (again,)))
        assert machine.domains == [neighbour, victim]
        assert "victim waits for the memory of a domain that is being destroyed" in machine.hv.log_lines[-1]
        machine.run(machine.now() + 60 * MS)
        assert [domain.name for domain in machine.domains] == ["neighbour", "victim"]
        new = machine.domains[1]
        assert new is not victim and new.tot_pages == 2 * MEMORY << 8 and audit(machine.hv) == []
        assert info.cpu_time(new, machine.now()) > 0
        with pytest.raises(ActionError, match="frames wanted"):
            machine.apply(Action("create", None, (spinner(tmp_path, "third", MEMORY),)))


def test_who_waits_in_vain_is_told(tmp_path: Path) -> None:
    with Machine(3 * MEMORY) as machine:
        neighbour, _ = dying(machine, tmp_path)
        machine.apply(Action("create", None, (spinner(tmp_path, "huge", 5 * MEMORY),)))
        machine.run(machine.now() + 30 * MS)
        assert machine.domains == [neighbour]
        assert "huge cannot be created:" in machine.hv.log_lines[-1]


def test_a_run_that_is_over_has_destroyed_everything(tmp_path: Path) -> None:
    """A domain reboots once and then powers off, while another runs; then that is destroyed."""
    with Machine(3 * MEMORY) as machine:
        free = machine.hv.frames.free_frames
        rebooting = Tiny(64).shut_down(1).write(tmp_path / "reboot")
        machine.create(spinner(tmp_path, "neighbour"))
        machine.create(GuestSpec("rebooting", rebooting, memory=MEMORY, on_reboot="restart"))
        machine.run(200 * MS)
        made = [record.domain for record in machine.trace.latest(1 << 16) if record.kind == Kind.DOMAIN_CREATE]
        gone = [record.domain for record in machine.trace.latest(1 << 16) if record.kind == Kind.DOMAIN_DESTROY]
        assert len(made) > 3 and gone == made[1 : 1 + len(gone)] and len(made) - len(gone) <= 2
        for domain in machine.domains:
            if not domain.dying:
                machine.toolstack.services[domain.id].spec.on_reboot = "destroy"
        machine.schedule(machine.position + 60 * MS, Action("destroy", "neighbour"))
        assert machine.run() == Stop.FINISHED
        assert machine.domains == [] and machine.hv.frames.free_frames == free and audit(machine.hv) == []


# --- the same however it is run ------------------------------------------------------------------------------------


def destroying(drive: Drive, machine: Machine, until: int) -> None:
    """Destroy one, and create and destroy others, while one runs all the time."""
    hello = resolve_guest("hello64")
    hello.memory = 32
    for number, action in enumerate(
        (
            Action("destroy", "victim"),
            Action("create", None, (hello,)),
            Action("type", "hello64", (b"info\r",)),
            Action("destroy", "hello64"),
            Action("destroy", "third"),
        )
    ):
        machine.schedule(80 * MS + 61_234_567 * number * 2, action)
    drive(machine, until)


@pytest.mark.parametrize(
    "drive",
    [by_positions(1, 300_000), by_positions(2, 60_000), by_steps(3, 300_000, 30)],
    ids=["positions, few", "positions, many", "steps"],
)
def test_a_run_in_pieces_is_the_run_in_one_go(drive: Drive, tmp_path: Path) -> None:
    guests = [spinner(tmp_path, "neighbour"), spinner(tmp_path, "victim", 32, 32), resolve_guest("hello32")]
    guests[2].name, guests[2].memory = "third", 16
    whole = Traced(guests, partial(destroying, in_one_go), 320 * MS)
    assert whole.records > 200
    assert Traced(guests, partial(destroying, drive), 320 * MS).outcome == whole.outcome


def test_a_session_that_is_stopped_while_a_domain_dies_is_saved_and_run_again(tmp_path: Path) -> None:
    setup = Setup([spinner(tmp_path, "neighbour", 16), spinner(tmp_path, "victim", 32)])
    with Engine.start(setup) as started:
        started.wait(WAIT)
        started.run()
        started.goto(time=50 * MS)
        started.wait(WAIT)
        started.act(Action("destroy", "victim"))
        started.goto(time=50 * MS + 300_000)
        status = started.wait(WAIT)
        assert [(domain.name, domain.state[5]) for domain in status.domains] == [("neighbour", "-"), ("victim", "d")]
        started.goto(time=80 * MS)
        assert [domain.name for domain in started.wait(WAIT).domains] == ["neighbour"]
        started.goto(position=status.position)
        again = started.wait(WAIT)
        assert (again.records, again.domains) == (status.records, status.domains)
        started.goto(time=80 * MS)
        status = started.wait(WAIT)
        trace = started.records.rows(0).tobytes()
        started.save(str(tmp_path / "saved.xtrace"))
    with Engine.start(setup_from_recording(str(tmp_path / "saved.xtrace"))) as started:
        started.wait(WAIT)
        started.goto(position=status.position)
        assert started.wait(WAIT).domains == status.domains
        assert started.records.rows(0).tobytes() == trace
