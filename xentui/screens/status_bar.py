"""The two lines at the bottom: where the machine stands, and the few keys that matter now."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from xentui.screens.actions import Command, key_name
from xentui.screens.words import clock, plain, shortened, speed

Hints = tuple[tuple[str, str], ...]
"""Keys, or commands of the table, and what they do in a word or two."""

_RUNNING = (("run", "pause"), ("jump", "jump"), ("command", "command"), ("maximise", "zoom"), ("type", "type"))
_PAUSED = (
    ("run", "run"),
    ("step", "step"),
    ("step-back", "back"),
    ("hypercall", "hypercall"),
    ("crossing", "crossing"),
    ("goto", "go to"),
)
_PAST = (("live", "live"), *_PAUSED)
_NAME = 12
"""Columns for a domain's name, as in the pane Domains."""
_ALWAYS = (("help", "help"), ("quit", "quit"))


class StatusBar(Widget):
    """Virtual time, running or paused or in the past, whose vCPU runs, speed, branch, and why it stopped."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"bar--run", "bar--stop", "bar--fail", "bar--key", "bar--muted"}
    DEFAULT_CSS = """
    StatusBar { height: 2; background: $surface; color: $foreground; }
    StatusBar .bar--run { background: $primary; color: $background; text-style: bold; }
    StatusBar .bar--stop { background: $accent; color: $background; text-style: bold; }
    StatusBar .bar--fail { background: $error; color: $background; text-style: bold; }
    StatusBar .bar--key { color: $primary; text-style: bold; }
    StatusBar .bar--muted { color: $muted; }
    """

    def __init__(self, commands: dict[str, Command]) -> None:
        super().__init__()
        self.commands = commands
        self.status: Any = None
        self.typing = ""
        """The domain whose console has the keyboard, or ""."""
        self.failure = ""
        """Why the engine's process is no more."""
        self.own: Hints = ()
        """Keys that the focused pane has for itself, as they are shown."""
        self.alone = False
        """Are these all the keys that there are, because the pane is typed into?"""

    def update_status(self, status: Any, typing: str, failure: str, own: Hints = (), alone: bool = False) -> None:
        """Take the newest state; drawn again only when something differs."""
        now = (self.status, self.typing, self.failure, self.own, self.alone)
        if (status, typing, failure, own, alone) != now:
            self.status, self.typing, self.failure, self.own, self.alone = status, typing, failure, own, alone
            self.refresh()

    def render(self) -> Text:
        width = self.size.width
        first, second = self._state(), self._keys(width)
        for line in (first, second):
            line.truncate(width, overflow="ellipsis", pad=True)
        return Text("\n", end="").join((first, second))

    def _state(self) -> Text:
        """The upper line."""
        style = self.get_component_rich_style
        muted = Style(color=style("bar--muted").color)
        if self.failure:
            return Text.assemble((" ENGINE ENDED ", style("bar--fail")), f" {plain(self.failure)}")
        status = self.status
        if status is None:
            return Text.assemble((" starting ", style("bar--stop")))
        word = " ▶ running " if status.running else " ■ paused  " if status.live else " ◀ in the past "
        word = " … on the way " if status.travelling and not status.running else word
        line = Text.assemble(
            (word, style("bar--run" if status.running and status.live else "bar--stop")), f" {clock(status.time)}"
        )
        if not status.live:
            line.append(f" of {clock(status.end_time)}", muted)
        if status.branch:  # before all that may be cut
            line.append(f"  branch {status.branch}", muted)
        if status.current:
            names = {domain.id: domain.name for domain in status.domains}
            domain, vcpu = status.current
            name = shortened(plain(names.get(domain, f"domain {domain}")), _NAME)
            line.append(f"  {name} vCPU {vcpu}")
        if status.running:
            line.append(f"  {speed(status.speed)}", muted)
        elif status.why and status.why != "paused":
            line.append(f"  {plain(status.why)}", Style(color=style("bar--stop").bgcolor))
        return line

    def _keys(self, width: int) -> Text:
        """The lower line: keys, the pane's own among them, as many as there is room for; help and quit always."""
        style = self.get_component_rich_style
        key, muted = style("bar--key"), Style(color=style("bar--muted").color)
        key = Style(color=key.color, bold=True)
        if self.typing:
            line = Text.assemble((f" typing to {plain(self.typing)} ", style("bar--stop")), " ctrl+] or F12 to leave")
            if self.status is not None and not self.status.running:
                line.append("  it answers once the machine runs", muted)
            return line
        status = self.status
        chosen = _RUNNING if status is None or status.running else _PAUSED if status.live else _PAST
        chosen, always = ((), ()) if self.alone else (chosen, _ALWAYS)
        taken = {shown for shown, _ in self.own}
        general = [hint for hint in self._named(chosen) if hint[0] not in taken]
        last = self._named(always)
        room = width - sum(map(_size, last))
        own = [(shown, words[:1].lower() + words[1:]) for shown, words in self.own if words]
        first = _fitting(general, max([room // 2, *map(_size, general[:1])]) if own else room)
        shown = [*first, *_fitting([*own, *general[len(first) :]], room - sum(map(_size, first)))]
        line = Text()
        for name, words in shown:
            line.append(f" {name}", key).append(f" {words} ", muted)
        line.append(" " * (room - line.cell_len))
        for name, words in last:
            line.append(f" {name}", key).append(f" {words} ", muted)
        return line

    def _named(self, commands: Hints) -> list[tuple[str, str]]:
        """Commands of the table as hints, those that have a key."""
        with_keys = [(self.commands[name].keys, words) for name, words in commands]
        return [(key_name(keys[0]), words) for keys, words in with_keys if keys]


def _size(hint: tuple[str, str]) -> int:
    return sum(map(cell_len, hint)) + 3


def _fitting(hints: list[tuple[str, str]], room: int) -> list[tuple[str, str]]:
    """The first hints, as many as there is room for."""
    sizes = accumulate(map(_size, hints))
    return [hint for hint, size in zip(hints, sizes, strict=True) if size <= room]
