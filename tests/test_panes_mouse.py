"""What is under the mouse is chosen, in each of the panes that are drawn as sheets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.pane_app import PaneApp
from xentui.config import resolve_guest
from xentui.engine.machine import Machine
from xentui.screens.cpu import CpuPane
from xentui.screens.events import EventsPane
from xentui.screens.inject import InjectPane
from xentui.screens.memory import MemoryPane
from xentui.screens.scheduler import SchedulerPane
from xentui.screens.sheet import SheetPane


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    machine = Machine(128)
    machine.create(resolve_guest("hello64"))
    machine.create(resolve_guest("hello32"))
    machine.run(3_000_000)
    yield machine
    machine.close()


def clicked(machine: Machine, pane: SheetPane, find: str, right: int = 0, down: int = 0) -> Any:
    """The pane after a click at some cells from where a text is on the screen."""

    async def run() -> None:
        app = PaneApp(machine, pane)
        async with app.run_test(size=(100, 30)) as pilot:
            app.update()
            await pilot.pause()
            rows = app.screen_text().splitlines()
            y = next(number for number, row in enumerate(rows) if find in row)
            await pilot.click(pane, offset=(rows[y].index(find) + right, y + down))
            app.update()

    asyncio.run(run())
    return pane


def test_a_bit_of_the_bitmap(machine: Machine) -> None:
    assert clicked(machine, EventsPane(), "word    0", 8 + 5, 2).port == 32 + 5


def test_a_line_of_code(machine: Machine) -> None:
    assert clicked(machine, CpuPane(), "c00003a5").cursor == 0xC00003A5


def test_a_cell_and_a_part_of_memory(machine: Machine) -> None:
    pane = clicked(machine, MemoryPane(), "─ frames", 7, 2)
    assert pane.map.cell == 2 * pane.map.width + 7
    assert clicked(machine, MemoryPane(), "page tables", 2).part == 1


def test_a_fault(machine: Machine) -> None:
    assert clicked(machine, InjectPane(), "mask DOMAIN").index == 5


def test_a_moment_of_a_strip(machine: Machine) -> None:
    pane = clicked(machine, SchedulerPane(), "hello32 ", 17 + 10)
    assert (pane.cursor, pane.row) == (10, 1) and pane.end is not None
