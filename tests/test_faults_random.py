"""Faults at random: domains crash, the engine does not; and a run cut into pieces is the run in one go."""

from __future__ import annotations

import random

import pytest

from xentui.config import resolve_guest
from xentui.engine.actions import Action
from xentui.engine.faults import HYPERCALLS, REGISTERS, RINGS, VECTORS, FaultError, inject
from xentui.engine.machine import Machine
from xentui.engine.xen import hypercall

MS = 1_000_000


def make(strict: bool = True) -> Machine:
    machine = Machine(32)
    machine.strict = strict
    for name in ("hello64", "hello32"):
        spec = resolve_guest(name)
        spec.memory, spec.on_crash = 16, "restart"
        machine.create(spec)
    machine.run(2 * MS)
    return machine


def random_fault(chance: random.Random, name: str, width: int) -> str:
    """A fault that may or may not be possible."""
    base = 0xFFFF_FFFF_8000_0000 if width == 64 else 0xC000_0000
    address = chance.choice([f"{base + chance.randrange(0x60 << 12):#x}", "rsp", "rip", "rsp+64"])
    bit, level = chance.randrange(64), chance.randrange(1, 5)
    return chance.choice(
        [
            f"flip {name} register {chance.choice(REGISTERS)} bit {bit}",
            f"flip {name} memory {address} bit {bit}",
            f"flip {name} pte {address} bit {bit} level {level}",
            f"flip {name} raw-pte {address} bit {chance.choice((0, 1, 2, 5, 63, bit))} level {level}",
            f"exception {name} {chance.choice([*VECTORS][:2])} error {level} address {chance.randrange(1 << 40)}",
            f"nmi {name}",
            f"fail {name} {chance.choice([*HYPERCALLS])} -EINVAL every {level}",
            f"corrupt-ring {name} {chance.choice([*RINGS])} producer {chance.randrange(1 << 32)}",
            f"drop-event {name} port 2",
            f"duplicate-event {name} port 2 after 100us",
            f"mask {name} port 2",
            f"steal {name} 1ms",
            f"squeeze {name} to {chance.randrange(1, 17)}",
            f"revoke-grant {name} 0",
            f"wall-clock {name} -300000h",
            f"disarm {name}",
            f"no-validator {name}",
            f"crash {name}",
        ]
    )


@pytest.mark.parametrize("seed", range(8))
def test_only_domains_crash(seed: int) -> None:
    chance = random.Random(seed)
    table = list(hypercall.TABLE)
    with make() as machine:
        done = 0
        for _ in range(15):
            domain = chance.choice(machine.domains)
            try:
                inject(machine, random_fault(chance, domain.name, domain.width))
                done += 1
            except FaultError as error:
                assert "\n" not in str(error)
            for domain in machine.domains:
                if domain.shutdown_code is None:
                    machine.toolstack.type(domain, b"info\rlayout\rtime\r")
            machine.run(machine.now() + 2 * MS)
        assert done > 3
    assert table == hypercall.TABLE


FAULTS = (
    "fail hello32 xen_version -EPERM every 2",
    "fail hello64 event_channel_op -EINVAL nth 7",
    "delay-event hello32 port 2 by 777us every 2",
    "flip hello64 register r15 bit 3",
    "exception hello64 UD",
    "steal hello32 1ms",
)


def recorded(pieces: random.Random | None) -> list[tuple[int, ...]]:
    """The trace of a run with faults, in one go or in pieces."""
    with make() as machine:
        for number, text in enumerate(FAULTS):
            machine.schedule((3 * MS + number * 333_333) << 1, Action("inject", None, (text,)))
        for number in range(8):
            for name in ("hello32", "hello64"):
                machine.schedule((3 * MS + number * 200_001) << 1, Action("type", name, (b"info\r",)))
        end = 8 * MS << 1
        while machine.position < end:
            machine.run(
                until_position=end if pieces is None else min(end, machine.position + pieces.randrange(1, 99_999))
            )
        return [tuple(record) for record in machine.trace.latest(machine.trace.capacity)]


def test_a_run_with_faults_in_pieces_is_the_run_in_one_go() -> None:
    whole = recorded(None)
    assert len(whole) > 500
    assert recorded(random.Random(1)) == whole == recorded(random.Random(2))
