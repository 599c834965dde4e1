"""The load guest, and the isolation experiment that is made with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.isolation import ANTISOCIAL, isolate, throughput
from bench.loads import MS, Loads
from tests.command import record

UNITS = {"work": 50, "timer": 5, "faults": 70, "events": 100, "hypercalls": 2, "memory": 2}


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("mode", UNITS)
def test_each_mode_ends_after_its_units(xtrace: Path, mode: str, width: int) -> None:
    done = record(xtrace, f"load{width}", "--cmdline", f"mode={mode} count={UNITS[mode]} period=1000", "--memory", "8")
    assert done.status == 0
    assert re.fullmatch(rf"load: {mode} counts in frame 0x[0-9a-f]+", done.lines[0])
    assert re.fullmatch(rf"load: {mode} {UNITS[mode]} units in \d+ ns \(\d+ ns each\)", done.lines[1])
    assert len(done.lines) == 2 + (mode == "timer")


def test_an_unknown_mode_is_told(xtrace: Path) -> None:
    assert record(xtrace, "load64", "--cmdline", "mode=rest", "--memory", "8").lines == ["load: there is no mode rest"]


def test_counts_can_be_looked_at_while_it_runs() -> None:
    loads = Loads(["work", "timer period=1000", "wait"], mixed=True)
    loads.start()
    loads.run(20 * MS)
    before = [load.count() for load in loads.loads]
    switches = loads.switches
    loads.run(20 * MS)
    work, timer, wait = (after.units - count.units for after, count in zip(_counts(loads), before, strict=True))
    assert work > 500 and 18 <= timer <= 20 and wait == 0
    assert 36 <= loads.switches - switches <= 44, "to the timer domain and back"
    loads.close()


def _counts(loads: Loads) -> list:
    return [load.count() for load in loads.loads]


@pytest.mark.parametrize("scheduler", ["credit", "bvt"])
@pytest.mark.parametrize("beside", ["", "spin", "faults"])
def test_neighbours_get_their_share_and_wake_in_time(scheduler: str, beside: str) -> None:
    row = isolate(scheduler, beside, 120 * MS, warp=50 * MS)
    assert abs(row.share - row.fair) < 0.09
    assert row.wakes in range(180, 221)
    assert row.late_most < (1200 if scheduler == "credit" else 5200), "a rate limit, an allowance"


def test_the_worst_are_in_the_table() -> None:
    assert set(ANTISOCIAL) == {"spin", "faults", "events", "hypercalls", "memory"}


def test_many_together_do_the_work_of_one() -> None:
    alone, together = throughput(1, 5, 60 * MS)[0], throughput(12, 5, 60 * MS)[0]
    assert 0.97 < together / alone < 1.03


@pytest.mark.parametrize("pace", ["exact", "fast"])
def test_one_that_spins_does_not_keep_the_processor(xtrace: Path, pace: str) -> None:
    """Nothing of it enters the hypervisor: its slice must end all the same, and the other domain have its turn."""
    enough = "200ms" if pace == "exact" else "2s"  # of the host's time, which others may want too
    done = record(xtrace, "load64", "hello64", "--cmdline", "mode=spin", "--pace", pace, "--for", enough)
    assert done.status == 3
    assert "hello64: Hello from hello64, a 64-bit paravirtualized guest in ring 3." in done.lines
