"""Every demonstration of the package, led to its end and back, on an engine of its own."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xentui import demonstration
from xentui.engine.messages import Setup
from xentui.engine.process import Engine
from xentui.tour import Tour, check

SECONDS = 60
"""Host seconds after which a step counts as hung."""


@contextmanager
def touring(name: str) -> Iterator[Tour]:
    told = demonstration.load(name)
    check(told)
    with Engine.start(Setup(told.specifications(), scheduler=told.scheduler)) as engine:
        engine.set_warp(True)
        engine.wait(SECONDS)
        yield Tour(engine, told)


def settle(tour: Tour) -> None:
    """Let the step come to its end."""
    end = time.monotonic() + SECONDS
    while not tour.settled:
        assert time.monotonic() < end, f"step {tour.station} does not end"
        select.select([tour.engine.fileno()], [], [], 1)
        tour.engine.pump()
        assert tour.engine.failure is None, tour.engine.failure
        tour.advance()
    assert not tour.problem, tour.problem


@pytest.mark.slow
@pytest.mark.parametrize("name", demonstration.names())
def test_it_comes_to_its_end_and_back(name: str) -> None:
    with touring(name) as tour:
        places = [tour.engine.status.position]
        while not tour.at_end:
            tour.forward()
            settle(tour)
            assert tour.step is not None
            places.append(tour.engine.status.position)
        assert tour.station == len(tour.steps)
        while tour.station:
            tour.back()
            settle(tour)
            assert tour.engine.status.position == places[tour.station]
        for station in range(1, len(places)):
            tour.forward()
            settle(tour)
            assert tour.engine.status.position == places[station]


def test_a_step_that_cannot_be_is_told_with_its_line(tmp_path: Path) -> None:
    for doing, reason in (
        ("run: dance", "run: "),
        ("for: long", "is not a time"),
        ("step: 0", "is not a number of instructions"),
        ("type: hello64 help", "no guest is called 'hello64'"),
        ("inject: dance", "inject: "),
    ):
        path = tmp_path / "lecture.md"
        path.write_text(f"# A\n- guest: hello32\n## S\n- {doing}\n")
        with pytest.raises(demonstration.DemonstrationError) as error:
            check(demonstration.load(str(path)))
        assert "lecture.md:4: " in str(error.value) and reason in str(error.value), str(error.value)


@pytest.mark.slow
def test_what_never_comes_ends_the_step(tmp_path: Path) -> None:
    path = tmp_path / "lecture.md"
    path.write_text(
        "# A\n- guest: hello32\n## S\n- run: domain == hello32 and crash\n".replace("crash", "domain_crash")
    )
    with touring(str(path)) as tour:
        tour.forward()
        with pytest.raises(AssertionError, match=r"lecture\.md:4: the machine did not come to"):
            settle(tour)
