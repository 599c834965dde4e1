"""The question in one line: what is typed into it is seen, what is wrong with it is said."""

from __future__ import annotations

import asyncio

from textual.app import App
from textual.widgets import Input

from xentui.screens.prompt import Prompt


def shown(app: App[None]) -> list[str]:
    """The screen's lines without what is around them."""
    return ["".join(segment.text for segment in strip).strip() for strip in app.screen._compositor.render_strips()]


def test_what_is_typed_is_seen() -> None:
    async def run() -> None:
        app: App[None] = App()
        answers: list[str | None] = []
        async with app.run_test(size=(80, 24)) as pilot:
            await app.push_screen(
                Prompt(
                    "How many?", "12", ["12", "300"], lambda text: "" if text.isdigit() else f"{text!r} is no number"
                ),
                answers.append,
            )
            await pilot.pause()
            line = app.screen.query_one(Input)
            assert line.has_focus and line.content_size.height == 1
            assert "12" in shown(app)
            await pilot.press("end", "x", "enter")
            assert "'12x' is no number" in shown(app) and not answers
            await pilot.press("backspace", "0", "enter")
        assert answers == ["120"]

    asyncio.run(run())
