"""A question in one line, asked over the screen: the answer, or None when it is put aside with Escape."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widgets import Input, Label

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual.app import ComposeResult


class Prompt(ModalScreen[str | None]):
    """`check` returns what is wrong with an answer in a line, or an empty text."""

    BINDINGS: ClassVar = [("escape", "dismiss", "Cancel")]
    DEFAULT_CSS: ClassVar[str] = """
    Prompt { align: center bottom; background: transparent; }
    Prompt > Vertical { height: auto; max-height: 6; background: $panel; padding: 0 1; border-top: solid $primary; }
    Prompt Input { background: $panel; }
    Prompt Label { width: 1fr; }
    Prompt #error { color: $error; }
    """

    def __init__(
        self,
        question: str,
        value: str = "",
        known: Sequence[str] = (),
        check: Callable[[str], str] = lambda text: "",
    ) -> None:
        super().__init__()
        self.question, self.value, self.known, self.check = question, value, known, check

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self.question)
            suggester = SuggestFromList(self.known, case_sensitive=False) if self.known else None
            yield Input(self.value, suggester=suggester, compact=True)
            yield Label("", id="error")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the answer, if it is one."""
        wrong = self.check(event.value)
        if wrong:
            self.query_one("#error", Label).update(wrong)
        else:
            self.dismiss(event.value)

    async def action_dismiss(self, result: str | None = None) -> None:
        """Put the question aside."""
        self.dismiss(None)
