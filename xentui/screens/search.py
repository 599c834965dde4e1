"""What to search for, asked in one line at the bottom."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Input, Label

if TYPE_CHECKING:
    from textual.app import ComposeResult


class _Suggest(Suggester):
    def __init__(self, complete: Callable[[str], list[str]]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.complete = complete

    async def get_suggestion(self, value: str) -> str | None:
        found = self.complete(value) if value else []
        return found[0] if found else None


class SearchPrompt(ModalScreen[str | None]):
    """Ends with the text, or with None when it is put aside."""

    BINDINGS: ClassVar = [("escape", "dismiss", "Cancel")]
    DEFAULT_CSS: ClassVar[str] = """
    SearchPrompt { align: center bottom; background: transparent; }
    SearchPrompt > Horizontal { height: 1; background: $surface; }
    SearchPrompt Label { width: auto; color: $accent; text-style: bold; padding: 0 1; }
    SearchPrompt Input { width: 1fr; border: none; height: 1; padding: 0; background: $surface; }
    """

    def __init__(self, value: str, complete: Callable[[str], list[str]]) -> None:
        super().__init__()
        self.value, self.complete = value, complete

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Label("search")
            yield Input(self.value, suggester=_Suggest(self.complete), compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the text."""
        event.stop()
        self.dismiss(event.value.strip() or None)

    async def action_dismiss(self, result: str | None = None) -> None:
        """Put it aside."""
        self.dismiss(None)
