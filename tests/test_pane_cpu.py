"""The CPU pane, by key and by eye, in a small application around a machine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from textual.pilot import Pilot

from tests.pane_app import PaneApp
from xentui.config import resolve_guest
from xentui.engine.breakpoints import Breakpoint
from xentui.engine.machine import Machine
from xentui.screens.cpu import CpuPane
from xentui.screens.pane import Pane


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(128)
    machine.create(resolve_guest("hello64"))
    machine.create(resolve_guest("hello32"))
    machine.run(3_000_000)
    yield machine
    machine.close()


def drive(machine: Machine, size: tuple[int, int], steps: Callable[[PaneApp, Pilot[None]], Awaitable[None]]) -> None:
    """Run the pane's application at a size, and `steps` in it."""

    async def run() -> None:
        app = PaneApp(machine, CpuPane())
        async with app.run_test(size=size) as pilot:
            app.update()
            await pilot.pause()
            await steps(app, pilot)

    asyncio.run(run())


@pytest.mark.parametrize("size", [(78, 22), (118, 38), (198, 58), (40, 10)])
def test_every_size_shows_who_and_where(machine: Machine, size: tuple[int, int]) -> None:
    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        text = app.screen_text()
        assert "hello32 d2v0  32-bit code, kernel" in text and "esp" in text
        assert all(len(line) <= size[0] for line in text.splitlines())
        if size[0] == 40:
            assert text.splitlines()[0].endswith("…")
        if size[1] > 20:
            assert "▶" in text and "int 0x82" in text and "upcalls open" in text

    drive(machine, size, steps)


def test_a_line_of_memory_fits_eighty_columns(machine: Machine) -> None:
    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        await pilot.press("d", "k")
        app.update()
        (line,) = (line for line in app.screen_text().splitlines()[-1:] if line.startswith("…8000"))
        assert len(line) == 9 + 68, "an address without its upper half, sixteen bytes, and all their characters"
        text = app.screen_text()
        assert "─ memory" in text and not any(line.endswith("…") for line in text.partition("─ memory")[2].splitlines())

    drive(machine, (80, 24), steps)


def test_a_low_pane_still_shows_the_code(machine: Machine) -> None:
    """As beside the guide on a terminal of 24 rows."""

    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        await pilot.press("d")
        lines = app.update().splitlines()
        assert len(lines) == 12 and "rax" in lines[1]
        assert any("▶" in line and "pop r11" in line for line in lines) and any("syscall" in line for line in lines)

    drive(machine, (80, 12), steps)


def test_eighty_columns_have_room_for_the_symbols(machine: Machine) -> None:
    """Of what is on a 64-bit guest's stack, and where it is."""

    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        await pilot.press("d")
        title, *lines = app.update().splitlines()
        assert title == "hello64 d1v0  64-bit code, kernel in ring 3 · blocked · registers saved"
        assert lines[10].startswith("  hypercall sched_op")
        assert any(" …8000" in line and " console_line+0x" in line for line in lines), app.pane.text()

    drive(machine, (80, 24), steps)


def test_another_domain_and_following_again(machine: Machine) -> None:
    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        await pilot.press("d")
        assert "hello64 d1v0  64-bit code, kernel in ring 3" in app.update() and "saved" in app.update()
        await pilot.press("f")
        assert "hello32 d2v0" in app.update()

    drive(machine, (78, 22), steps)


def test_what_changed_is_lit(machine: Machine) -> None:
    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        def lit() -> set[str]:
            return {text for line in app.pane._lines for text, ink in line if ink == "changed"}

        assert not lit()
        machine.toolstack.type(machine.domains[1], b"x")
        vcpu = machine.domains[1].vcpus[0]
        while vcpu.q[16] == 0xC00003A7:
            machine.run(machine.now() + 50)
        app.update()
        assert f"{vcpu.q[16]:08x}" in lit()
        app.update()
        assert f"{vcpu.q[16]:08x}" in lit(), "still the same stop"

    drive(machine, (78, 22), steps)


def test_breakpoint_and_run_to_the_cursor(machine: Machine) -> None:
    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        await pilot.press("b", "up", "b", "enter", "full_stop")
        await pilot.pause()
        await pilot.press("o", "enter")
        await pilot.pause()
        await pilot.press("o", *["backspace"] * 3, *"esp+8", "enter")
        await pilot.pause()
        app.update()
        await pilot.pause()
        rip = 0xC00003A7
        assert [type(message) for message in app.posted] == [
            *(Pane.Break, Pane.Break, Pane.RunTo),
            *(Pane.WhoWrote, Pane.WhoWrote),
        ]
        addresses = [getattr(message, "address", None) for message in app.posted]
        assert addresses[:3] == [rip, rip - 2, rip - 2]
        esp = machine.domains[1].vcpus[0].q[4]
        assert [message.what for message in app.posted[3:]] == [("register", 2, 0, "eax"), ("memory", 2, 0, esp + 8, 4)]

    drive(machine, (78, 22), steps)


def test_memory_at_an_expression(machine: Machine) -> None:
    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        await pilot.press("A", *"esp+4", "enter")
        await pilot.pause()
        assert "esp+4 · machine frame 0x" in app.update()
        await pilot.press("A", *"nowhere", "enter")
        await pilot.pause()
        assert "'nowhere' is neither a register nor a symbol of hello32" in app.update()

    drive(machine, (100, 30), steps)


def test_breakpoints_of_the_user_are_marked_and_taken_away(machine: Machine) -> None:
    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        app.engine.breakpoints = {
            4: Breakpoint.parse("break console_line", domain="hello32"),
            5: Breakpoint.parse("break console_line", domain="hello64"),
            6: Breakpoint.parse("hypercall mmu_update"),
        }
        await pilot.press("a", *"console_line", "enter")
        await pilot.pause()
        text = app.update()
        line = next(line for line in text.splitlines() if "●" in line)
        assert text.count("●") == 1 and "push ebp" in line and "console_line:" in text
        await pilot.press("b")
        await pilot.pause()
        (message,) = app.posted
        assert isinstance(message, Pane.Break) and message.number == 4 and f"{message.address:x}" in line

    drive(machine, (100, 30), steps)
