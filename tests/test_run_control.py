"""Run control is transparent: a run in pieces, wherever and however cut, leaves the trace of the run in one go."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernels import Kernels
from xentui.config import GuestSpec, resolve_guest
from xentui.engine.dom0.typist import Typist
from xentui.engine.machine import Machine, Stop

Drive = Callable[[Machine, int], None]
"""Runs a machine until a virtual time (ns)."""

ENDS = (Stop.FINISHED, Stop.STARVED)


def guest(name: str, cmdline: str = "") -> GuestSpec:
    spec = resolve_guest(name)
    spec.cmdline = cmdline
    return spec


class Traced:
    """What a run has left behind."""

    def __init__(
        self, specs: list[GuestSpec], drive: Drive, until: int, typed: bytes = b"", prompt: str = "", cpus: int = 1
    ) -> None:
        self.digest = hashlib.sha256()
        self.console = bytearray()
        memory = sum(spec.memory for spec in specs)
        with Machine(memory, cpus=cpus, flush=lambda rows: self.digest.update(rows)) as machine:
            machine.strict = True
            domains = [machine.create(spec) for spec in specs]
            pattern = re.compile(prompt.encode()) if prompt else None
            typist = Typist(machine, domains[0].name, typed, pattern, lambda domain, data: None)

            def hear(domain: object, data: bytes) -> None:
                self.console.extend(data)
                typist.heard(domain, data)  # type: ignore[arg-type]

            machine.toolstack.on_output = hear
            drive(machine, until)
            machine.trace.flush()
            self.records, self.position = machine.trace.head, machine.position

    @property
    def outcome(self) -> tuple[str, int, int]:
        return self.digest.hexdigest(), self.records, self.position


def in_one_go(machine: Machine, until: int) -> None:
    assert machine.run(until) in (*ENDS, Stop.TIME)


def by_positions(seed: int, mean: int) -> Drive:
    """Stop at random positions, `mean` half nanoseconds apart."""

    def drive(machine: Machine, until: int) -> None:
        chance = random.Random(seed)
        stop = 0
        while True:
            before = machine.position
            stop = max(stop, before) + int(chance.expovariate(1 / mean)) + 1
            reason = machine.run(until_position=min(stop, until << 1))
            if reason in ENDS or machine.position >= until << 1:
                return
            assert reason == Stop.TIME
            assert stop <= machine.position

    return drive


def by_steps(seed: int, mean: int, burst: int) -> Drive:
    """Now and then, step some instructions one by one."""

    def drive(machine: Machine, until: int) -> None:
        chance = random.Random(seed)
        while True:
            reason = machine.run(
                until_position=min(machine.position + int(chance.expovariate(1 / mean)) + 1, until << 1)
            )
            if reason in ENDS or machine.position >= until << 1:
                return
            machine.hold_idle = True  # lest a step goes over idle time and the end
            for _ in range(chance.randrange(burst)):
                before = machine.position
                reason = machine.step()
                if reason in (*ENDS, Stop.IDLE) or machine.position >= until << 1:
                    break
                assert reason == Stop.STEP and machine.position > before
            machine.hold_idle = False

    return drive


def by_host_time(machine: Machine, until: int) -> None:
    """Look up after each millisecond of the host's time."""
    while True:
        reason = machine.run(until, host_ms=1)
        if reason != Stop.ASKED:
            assert reason in (*ENDS, Stop.TIME)
            return


def with_idle_held(machine: Machine, until: int) -> None:
    """Let idle time pass in small pieces."""
    machine.hold_idle = True
    while True:
        reason = machine.run(until)
        if reason != Stop.IDLE:
            return
        machine.idle_to(min(until, machine.now() + 1_234_567))


WAYS: dict[str, Drive] = {
    "positions, few": by_positions(1, 3_000_000),
    "positions, many": by_positions(2, 40_000),
    "steps": by_steps(3, 400_000, 60),
    "steps, short runs": by_steps(4, 30_000, 4),
    "host time": by_host_time,
    "idle held": with_idle_held,
}
TYPED = rb"info;time;spam;reboot;time;poweroff;".replace(b";", b"\n")
RUNS: dict[str, Callable[[Drive], Traced]] = {
    "hello32": lambda drive: Traced([guest("hello32")], drive, 2_000_000_000, TYPED),
    "hello64": lambda drive: Traced([guest("hello64")], drive, 1_000_000_000, TYPED),
    "selftest64": lambda drive: Traced([guest("selftest64")], drive, 400_000_000),
    "bench32": lambda drive: Traced([guest("bench32", "scale=1")], drive, 60_000_000),
    "two processors": lambda drive: Traced(
        [guest("bench64", "scale=1"), guest("bench32", "scale=1"), guest("hello64")], drive, 40_000_000, cpus=2
    ),
    "both widths": lambda drive: Traced(
        [guest("bench64", "scale=1"), guest("bench32", "scale=1"), guest("hello64")], drive, 40_000_000
    ),
}


@pytest.fixture(scope="module")
def whole() -> dict[str, tuple[str, int, int]]:
    return {name: run(in_one_go).outcome for name, run in RUNS.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNS)
def test_pieces_make_the_whole(name: str, way: str, whole: dict[str, tuple[str, int, int]]) -> None:
    assert RUNS[name](WAYS[way]).outcome == whole[name]


@pytest.mark.slow
@pytest.mark.kernels
def test_grub_in_pieces(kernels: Kernels) -> None:
    def grub(drive: Drive) -> tuple[str, int, int]:
        spec = GuestSpec("grub", kernels.grub32, memory=64)
        return Traced([spec], drive, 3_000_000_000, b"set\nhalt\n", "grub> $").outcome

    expected = grub(in_one_go)
    for way in (by_positions(11, 200_000), by_steps(12, 2_000_000, 40), by_host_time, with_idle_held):
        assert grub(way) == expected


@pytest.mark.slow
@pytest.mark.kernels
def test_linux_in_pieces(kernels: Kernels, poweroff_initrd: Path) -> None:
    """To /init and through the end: paging, user code, and instructions that only its kernel uses."""

    def linux(drive: Drive) -> tuple[str, int, int]:
        spec = GuestSpec("linux", kernels.linux, ramdisk=poweroff_initrd, memory=256, cmdline="console=hvc0")
        return Traced([spec], drive, 8_000_000_000).outcome

    expected = linux(in_one_go)
    for way in (by_steps(12, 2_000_000, 40), by_host_time):
        assert linux(way) == expected
