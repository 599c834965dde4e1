"""The line over a presentation: what is shown, and where the machine stands, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from xentui.screens import catalogue
from xentui.screens.feed import RATE
from xentui.screens.words import duration, plain, spoken

if TYPE_CHECKING:
    from xentui.app import XentuiApp
    from xentui.screens.main import MainScreen


ROOMY = 60
"""Columns from which units are written out."""


class Caption(Widget):
    """Seen in presentation mode only (MainScreen's style sheet): one line beside a demonstration, else two."""

    DEFAULT_CSS = """
    Caption { display: none; height: 2; background: $background; color: $foreground; }
    """
    app: XentuiApp
    screen: MainScreen

    def __init__(self) -> None:
        super().__init__()
        self._lines: tuple[str, str, str] = ("", "", "")

    def on_mount(self) -> None:
        """Keep the time."""
        self.set_interval(1 / RATE, self.keep_up)

    def keep_up(self) -> None:
        """Draw again if there is something else to say."""
        if self.display and (lines := self._words()) != self._lines:
            self._lines = lines
            self.refresh()

    def render(self) -> Text:
        left, right, below = self._words()
        width = self.size.width
        colours = self.app.get_css_variables()
        bar = Style(color=colours["background"], bgcolor=colours["primary"], bold=True)
        room = width - len(right) - 1
        title = Text(f" {left}")
        title.truncate(max(0, room), overflow="ellipsis", pad=True)
        line = Text.assemble(title, f"{right} ", style=bar)
        line.truncate(width)
        more = Text(f" {below}")
        more.truncate(width, overflow="ellipsis")
        return Text("\n").join((line, more)) if self.size.height > 1 else line

    def _words(self) -> tuple[str, str, str]:
        """What is shown; where the machine stands; why, or what the pane is about."""
        app = self.app
        shown = [catalogue.ENTRIES[pane.id] for pane in self.screen.grid.panes if pane.id and pane.id != "guide"]
        left, about = ", ".join(entry.title for entry in shown), shown[-1].about if shown else ""
        if app.typing:
            left = f"typing to {plain(app.typing)} (F12 ends it)"
        if app.feed.failure:
            return left, "the engine has ended", plain(app.feed.failure)
        status = app.feed.status
        if status is None:
            return left, "starting", about
        say = spoken if self.size.width >= ROOMY else duration
        time = say(status.time)
        if status.running and status.live:
            return left, f"running: {time}", about
        why = plain(status.why) if status.why not in ("", "paused", "you paused it") else about
        if not status.live:
            return left, f"in the past: {time} of {say(status.end_time)}", why
        return left, f"stopped at {time}", why
