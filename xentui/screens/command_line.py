"""The line in which `:` commands and `/` filters are typed, with completion. It lies over the last line of the screen:
nothing else moves when it opens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input, Label

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult
    from textual.widget import Widget

Complete = Callable[[str], list[str]]
"""What the whole line could become."""


class _Suggest(Suggester):
    """The first completion, shown faint behind the cursor."""

    def __init__(self, complete: Complete) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.complete = complete

    async def get_suggestion(self, value: str) -> str | None:
        found = self.complete(value) if value else []
        return found[0] if found else None


class _Line(Input):
    """Tab takes the completion, and the next one if pressed again; up and down go through what was typed before."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete", show=False),
        Binding("up", "recall(-1)", show=False),
        Binding("down", "recall(1)", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(compact=True, select_on_focus=False)
        self.complete: Complete = lambda value: []
        self.history: list[str] = []
        self._at = 0
        self._tabbed: tuple[list[str], int] = ([], 0)

    def action_complete(self) -> None:
        """Take a completion; the next one when nothing was typed since."""
        found, at = self._tabbed
        if not found or self.value != found[at]:
            found, at = self.complete(self.value), -1
        if found:
            at = (at + 1) % len(found)
            self._tabbed = (found, at)
            self.value = found[at]
            self.cursor_position = len(self.value)

    def action_recall(self, step: int) -> None:
        """An earlier or later line of the history."""
        self._at = max(0, min(len(self.history), self._at + step))
        self.value = self.history[self._at] if self._at < len(self.history) else ""
        self.cursor_position = len(self.value)

    def begin(self, text: str) -> None:
        """A new line, with so much of it typed."""
        self._at, self._tabbed = len(self.history), ([], 0)
        self.value = text
        self.cursor_position = len(text)


class CommandLine(Horizontal):
    """Hidden until it is opened; `Done` brings what was typed, or that it was given up."""

    DEFAULT_CSS = """
    CommandLine { height: 1; dock: bottom; layer: line; background: $surface; }
    CommandLine Label { width: auto; color: $accent; text-style: bold; padding: 0 0 0 1; }
    CommandLine Input { width: 1fr; background: $surface; border: none; padding: 0; }
    CommandLine Input:focus { background: $surface; }
    """

    @dataclass
    class Done(Message):
        """A line was ended: `kind` is ":" or "/"; `text` is None when it was given up."""

        kind: str
        text: str | None

    @dataclass
    class Changed(Message):
        """A line has changed; filters follow it."""

        kind: str
        text: str

    def __init__(self) -> None:
        super().__init__()
        self.kind = ":"
        self._line = _Line()
        self.display = False
        self._before: Widget | None = None
        self._histories: dict[str, list[str]] = {":": [], "/": []}

    def compose(self) -> ComposeResult:
        yield Label(":", id="sign")
        yield self._line

    def open(self, kind: str, text: str, complete: Complete) -> None:
        """Take a line; `complete` knows what it could become."""
        self.kind = kind
        self.query_one("#sign", Label).update(kind)
        self._line.complete = complete
        self._line.suggester = _Suggest(complete)
        self._line.history = self._histories[kind]
        self._line.begin(text)
        self._before = self.screen.focused
        self.display = True
        self.screen.set_focus(self._line)  # at once: the next key is the line's

    @property
    def is_open(self) -> bool:
        """Is a line being typed?"""
        return self.display

    def _close(self, text: str | None) -> None:
        self.display = False
        self.screen.set_focus(self._before)
        history = self._histories[self.kind]
        if text and (not history or history[-1] != text):
            history.append(text)
        self.post_message(self.Done(self.kind, text))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter: the line is done."""
        event.stop()
        self._close(event.value.strip())

    def on_input_changed(self, event: Input.Changed) -> None:
        """Tell who follows."""
        event.stop()
        if self.is_open:
            self.post_message(self.Changed(self.kind, event.value))

    def on_key(self, event: events.Key) -> None:
        """Escape gives up; so does erasing an empty line."""
        if event.key == "escape" or (event.key == "backspace" and not self._line.value):
            event.stop()
            event.prevent_default()
            self._close(None)
