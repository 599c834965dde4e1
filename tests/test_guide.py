"""What a demonstration's steps show in the console: the same, whichever way a step is come to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_app import Console, drive, own_folder, ready
from xentui import demonstration
from xentui.tour import Tour

__all__ = ["drive", "own_folder"]

TEXT = """# Which domain?

- guest: hello32
- guest: hello64

Begin.

## One

- for: 1ms
- show: crossings

First.

## Two

- for: 1ms
- show: crossings
- focus: hello64
- filter: hypercall

Second.

## Three

- for: 1ms
- show: crossings

Third.

## Four

- for: 1ms
- show: crossings
- focus: all

Fourth.
"""


@pytest.mark.parametrize("stations", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 0, 3, 1)])
def test_a_step_shows_the_same_domain_forwards_and_back(
    drive: Callable[..., None], tmp_path: Path, stations: tuple[int, ...]
) -> None:
    path = tmp_path / "which.md"
    path.write_text(TEXT)

    async def steps(console: Console) -> None:
        await ready(console)
        app: Any = console.app
        app.tour = Tour(app.engine, demonstration.load(str(path)))
        for station in stations:
            app.tour.station = station
            app.control.arrive()
            await console.pilot.pause()
            assert app.main.grid.pane("crossings").domain == (2 if station in (2, 3) else None)
            trace = app.main.grid.pane("trace")
            assert trace.filter_text == ("hypercall" if station >= 2 else "")
            assert app.chosen_domain == "hello64" or station not in (2, 3)

    drive(steps)


def test_the_introduction_is_there_from_the_first_moment(drive: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "which.md"
    path.write_text(TEXT.replace("Begin.", "It begins with this."))

    async def steps(console: Console) -> None:
        await ready(console)
        app: Any = console.app
        app.tour = Tour(app.engine, demonstration.load(str(path)))
        app.control.arrive()
        await console.shows("It begins with this.")
        await console.pilot.pause(0.3)
        assert "It begins with this." in console.text

    drive(steps, (80, 24))


def test_a_step_may_aim_at_a_port(drive: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "which.md"
    path.write_text(TEXT.replace("show: crossings\n- focus: hello64", "show: events:3\n- focus: hello64"))

    async def steps(console: Console) -> None:
        await ready(console)
        app: Any = console.app
        app.tour = Tour(app.engine, demonstration.load(str(path)))
        app.tour.station = 2
        app.control.arrive()
        await console.shows("─ port 3 ─")

    drive(steps)
