"""The inject pane: written with completion, judged while typed, sent as an action, done again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.pane_app import PaneApp
from xentui.config import resolve_guest
from xentui.engine.actions import Action
from xentui.engine.faults import CATALOGUE
from xentui.engine.machine import Machine
from xentui.engine.views import look
from xentui.screens.inject import InjectPane, general
from xentui.screens.pane import Pane


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(128)
    machine.create(resolve_guest("hello64"))
    machine.create(resolve_guest("hello32"))
    machine.run(3_000_000)
    yield machine
    machine.close()


def sent(app: PaneApp) -> list[Action]:
    return [message.action for message in app.posted if isinstance(message, Pane.Act)]


def test_a_fault_is_completed_judged_and_sent(machine: Machine) -> None:
    async def run() -> None:
        app = PaneApp(machine, InjectPane())
        async with app.run_test(size=(100, 30)) as pilot:
            app.update()
            await pilot.press("a", *"dr", "tab")
            assert app.pane.line.value == "drop-event "  # type: ignore[attr-defined]
            assert "drop-event DOMAIN port PORT" in app.update() and "hello64 hello32" in app.update()
            await pilot.press(*"hello3", "tab", "tab")
            assert app.pane.line.value == "drop-event hello32 port "  # type: ignore[attr-defined]
            assert "a port's number  1 2" in app.update()
            await pilot.press("9")
            assert "✓ the next event to port 9 of hello32 is lost" in app.update()
            await pilot.press("backspace", "2", "enter")
            await pilot.pause()
            assert sent(app) == [Action("inject", None, ("drop-event hello32 port 2",))]
            assert app.pane.line.value == ""  # type: ignore[attr-defined]
            await pilot.press(*"drop-event nobody", "enter")
            assert "no domain 'nobody'; there is hello64, hello32" in app.update()
            assert len(sent(app)) == 1, "what cannot be is not sent"

    asyncio.run(run())


def test_what_was_injected_and_again(machine: Machine) -> None:
    machine.apply(Action("inject", None, ("drop-event hello32 port 2",)))
    machine.apply(Action("inject", None, ("wall-clock hello64 +1h",)))
    waiting, done = look(machine, "faults.injected")[::-1]
    assert (waiting["waits"], waiting["strikes"], done["waits"]) == (True, 0, False)
    assert look(machine, "faults.names")["hello32"] == {"PORT": [1, 2], "REFERENCE": [0, 1], "VCPU": [0]}

    async def run() -> None:
        app = PaneApp(machine, InjectPane())
        async with app.run_test(size=(80, 24)) as pilot:
            text = app.update()
            assert "waits     drop-event hello32 port 2" in text and "done      wall-clock hello64 +1h" in text
            machine.toolstack.type(machine.domains[1], b"x\r")
            assert "struck 1× drop-event hello32 port 2" in app.update()
            await pilot.press(*["down"] * (len(CATALOGUE) + 1), "enter")
            await pilot.pause()
            assert sent(app) == [Action("inject", None, ("drop-event hello32 port 2",))]

    asyncio.run(run())


@pytest.mark.parametrize("size", [(78, 22), (198, 58), (50, 12)])
def test_the_catalogue_at_every_size(machine: Machine, size: tuple[int, int]) -> None:
    async def run() -> None:
        app = PaneApp(machine, InjectPane())
        async with app.run_test(size=size) as pilot:
            app.update()
            for number, kind in enumerate(CATALOGUE):
                assert general(kind)[: size[0] - 4] in app.pane.text()
                form = f"› {kind.form}"
                shown = form if len(form) <= size[0] else f"{form[: size[0] - 1]}…"
                assert shown in app.pane.text(), number
                await pilot.press("down")
            app.pane.index = 1  # type: ignore[attr-defined]
            await pilot.press("enter")
            assert app.pane.line.value == "send-event hello32 port "  # type: ignore[attr-defined]
            assert all(len(line) <= size[0] for line in app.screen_text().splitlines())

    asyncio.run(run())
