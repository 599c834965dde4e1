"""The line of keys at the bottom: the console's own, and those of the pane that has the focus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.fakes_console import FakeEngine
from tests.test_app import Console, drive, own_folder, ready
from xentui.app import XentuiApp

__all__ = ["drive", "own_folder"]


def keys(console: Console) -> str:
    """The last line, blanks as one."""
    return " ".join(console.text.splitlines()[-1].split())


@pytest.mark.parametrize(("width", "more"), [(80, ""), (120, "t owner/type a walk"), (200, "d domain v vCPU f follow")])
def test_a_pane_tells_its_own_keys(drive: Callable[..., None], width: int, more: str) -> None:
    """As many as there is room for, behind those that always matter, before help and quit."""

    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("6")
        await console.until(lambda: "] next part enter open" in keys(console))
        assert keys(console).startswith("space run s step S back ")
        assert more in keys(console) and keys(console).endswith("? help q quit")
        await console.pilot.resize_terminal(40, 12)
        await console.until(lambda: keys(console).startswith("space run "))
        await console.pilot.resize_terminal(width, 24)
        await console.press("1")
        await console.until(lambda: "enter type p pause R reboot" in keys(console))

    drive(steps, (width, 24))


def test_where_a_pane_is_typed_into_only_its_keys_hold(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("0", "a")
        await console.until(lambda: keys(console) == "enter inject tab complete escape back to the list")
        await console.press("escape")
        await console.until(lambda: keys(console).startswith("space run"))

    drive(steps, (80, 24))


def test_a_key_is_told_of_as_what_it_does_here(drive: Callable[..., None]) -> None:
    """`t` types into a console, but not in Memory, where it changes the colours."""

    async def steps(console: Console) -> None:
        await console.until(lambda: "t type" in keys(console))
        await console.press("6")
        await console.until(lambda: "t owner/type" in keys(console))
        assert "t type" not in keys(console)
        await console.press("3")
        await console.until(lambda: "f follow" in keys(console) and "t type" in keys(console))
        assert "/ filter" in keys(console)
        assert "end follow" not in keys(console)

    drive(steps, (200, 24))


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_what_the_user_is_told_is_seen_to_its_end(size: tuple[int, int]) -> None:
    """However long the text is, none of its lines lies behind the bar."""
    engine = FakeEngine("hello32")

    async def run() -> None:
        app = XentuiApp(engine, run=False)
        async with app.run_test(size=size, notifications=True) as pilot:
            await pilot.pause(0.2)
            for length in (20, 36, 37, 40, 42, 56, 71, 83, 106, 111):
                app.tell(("word " * 40)[: length - 3].strip() + " end")
                await pilot.pause(0.05)
                (toast,) = app.screen.query("Toast")
                assert toast.region.bottom <= size[1] - 2, (length, toast.region)
                assert "end" in "\n".join(app.screen_text().splitlines()[: size[1] - 2])
                app.clear_notifications()
                await pilot.pause(0.05)

    asyncio.run(run())
    engine.close()


def test_a_console_says_that_it_is_scrolled_back_or_in_the_past(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("pageup")
        await console.shows(" rows back, end returns")
        await console.press("end")
        await console.until(lambda: "rows back" not in console.text)
        assert "as it was then" not in console.text
        await console.press("S")
        await console.shows("as it was then")

    drive(steps, (80, 24))
