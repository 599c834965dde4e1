"""A multicall gives way at once to whoever is to run next, wherever the run is looked at meanwhile (real processor)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.test_run_control import Traced, by_positions, by_steps, in_one_go
from tests.tiny_kernels import FOREVER, MEMORY, Tiny
from xentui.config import GuestSpec
from xentui.engine.breakpoints import Breakpoint
from xentui.engine.machine import Machine, Stop
from xentui.engine.trace import Kind
from xentui.engine.xen import hypercall
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.sched import SCHEDOP_poll, SCHEDOP_shutdown, SCHEDOP_yield

BOTH = pytest.mark.parametrize("width", [32, 64])
MS = 1_000_000
UNTIL = 100 * MS


def yielding(tmp_path: Path, width: int) -> Path:
    """It yields, reads the version, sleeps for a while and powers off, all in one multicall."""
    tiny = Tiny(width)
    poll = tiny.place(struct.pack("<QI4xQ" if width == 64 else "<IIQ", 0, 0, 60 * MS))
    reason = tiny.place(bytes(4))
    calls = (
        (nr.HYPERCALL_sched_op, SCHEDOP_yield, 0),
        (nr.HYPERCALL_xen_version, 0, 0),
        (nr.HYPERCALL_sched_op, SCHEDOP_poll, poll),
        (nr.HYPERCALL_xen_version, 0, 0),
        (nr.HYPERCALL_sched_op, SCHEDOP_shutdown, reason),
    )
    entries = b"".join(
        b"".join(tiny.word(value) for value in (number, 0x5555, *arguments, 0, 0, 0, 0)) for number, *arguments in calls
    )
    tiny.call(nr.HYPERCALL_multicall, tiny.place(entries), len(calls)).do(FOREVER)
    return tiny.write(tmp_path / f"yield{width}")


def specs(tmp_path: Path, width: int) -> list[GuestSpec]:
    spinner = Tiny(width).do(FOREVER).write(tmp_path / f"spin{width}")
    return [GuestSpec(path.name, path, memory=MEMORY) for path in (yielding(tmp_path, width), spinner)]


SHOWN = (Kind.YIELD, Kind.BLOCK, Kind.CONTINUATION, Kind.MULTICALL_ENTRY, Kind.DOMAIN_SHUTDOWN, Kind.SCHEDULE)


@BOTH
def test_a_multicall_gives_way_behind_a_yield_and_a_block(width: int, tmp_path: Path) -> None:
    with Machine(2 * MEMORY) as machine:
        machine.strict = True
        first, second = (machine.create(spec).id for spec in specs(tmp_path, width))
        machine.run(UNTIL)
        told = [record for record in machine.trace.latest(1 << 16) if record.kind in SHOWN]
    end = next(number for number, record in enumerate(told) if record.kind == Kind.DOMAIN_SHUTDOWN)
    assert [(record.kind, record.domain) for record in told[:end]] == [
        (Kind.SCHEDULE, first),
        (Kind.YIELD, first),
        (Kind.MULTICALL_ENTRY, first),
        (Kind.CONTINUATION, first),
        (Kind.SCHEDULE, second),  # before the next entry
        (Kind.SCHEDULE, first),
        (Kind.MULTICALL_ENTRY, first),
        (Kind.BLOCK, first),
        (Kind.MULTICALL_ENTRY, first),
        (Kind.CONTINUATION, first),
        (Kind.SCHEDULE, second),
        (Kind.SCHEDULE, first),
        (Kind.MULTICALL_ENTRY, first),
    ]


def with_breakpoints(machine: Machine, until: int) -> None:
    """Stop at every entry of the multicall, and where another domain gets the processor."""
    machine.breakpoints.add(Breakpoint.parse("kind == multicall_entry"))
    machine.breakpoints.add(Breakpoint.parse("switch"))
    stops = 0
    while machine.run(until) == Stop.BREAKPOINT:
        stops += 1
    assert stops >= 9


def paused_within(monkeypatch: pytest.MonkeyPatch, machine: Machine, until: int) -> None:
    """Somebody asks for a stop while an entry is carried out."""

    def pausing(*arguments: int, handler: Callable[..., int]) -> int:
        machine.stop()
        return handler(*arguments)

    table = list(hypercall.TABLE)
    for number in (nr.HYPERCALL_xen_version, nr.HYPERCALL_sched_op):
        table[number] = partial(pausing, handler=table[number])
    monkeypatch.setattr(hypercall, "TABLE", table)
    stops = 0
    while machine.run(until) == Stop.ASKED:
        stops += 1
    assert stops >= 2


@BOTH
def test_it_gives_way_there_and_nowhere_else_however_the_run_is_watched(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = specs(tmp_path, width)
    expected = Traced(guests, in_one_go, UNTIL).outcome
    for drive in (
        by_positions(1, 200_000),
        by_steps(2, 10_000_000, 9),
        with_breakpoints,
        partial(paused_within, monkeypatch),
    ):
        assert Traced(guests, drive, UNTIL).outcome == expected
