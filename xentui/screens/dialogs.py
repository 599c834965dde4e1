"""What lies over the panes for a moment: a question, a choice from a list, the help, the jump mode's letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Label, OptionList, Static
from textual.widgets.option_list import Option

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult
    from textual.geometry import Region

_LETTERS = "asdfghjklqwertyuiopzxcvbnm"


class Question(ModalScreen[bool]):
    """A question before something that cannot be undone; only `y` says yes."""

    DEFAULT_CSS = """
    Question { align: center middle; }
    Question > Vertical { width: auto; max-width: 70; height: auto; background: $surface; padding: 1 3;
        border-left: thick $accent; }
    Question Label { width: auto; max-width: 62; }
    Question .keys { color: $muted; margin-top: 1; }
    """

    def __init__(self, text: str, yes: str) -> None:
        super().__init__()
        self.text, self.yes = text, yes

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self.text, markup=False)
            yield Label(f"y {self.yes}    any other key: no", classes="keys", markup=False)

    def on_key(self, event: events.Key) -> None:
        """One key answers."""
        event.stop()
        self.dismiss(event.key in ("y", "Y"))


class Choice(ModalScreen[str | None]):
    """One of several, by its key or by the cursor; None when it was left."""

    DEFAULT_CSS = """
    Choice { align: center middle; }
    Choice > Vertical { width: 76; max-width: 96%; height: auto; max-height: 90%; background: $surface; padding: 1 2;
        border-left: thick $primary; }
    Choice Label { width: 1fr; text-style: bold; margin-bottom: 1; }
    Choice OptionList, Choice OptionList:focus { height: auto; max-height: 20; background: $surface; border: none;
        padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", show=False), Binding("q", "leave", show=False)]

    def __init__(self, title: str, options: list[tuple[str, str, str]]) -> None:
        """`options`: (what is given back, its key or "", how it is shown)."""
        super().__init__()
        self.head, self.options = title, options

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self.head, markup=False)
            yield OptionList(
                *(Option(Text(f"{key:2} {words}", no_wrap=True), id=f"o{number}")
                  for number, (_, key, words) in enumerate(self.options))
            )  # fmt: skip

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter, or a click."""
        self.dismiss(self.options[event.option_index][0])

    def on_key(self, event: events.Key) -> None:
        """A key of one of them."""
        for value, key, _ in self.options:
            if key and event.character == key:
                event.stop()
                self.dismiss(value)
                return

    def action_leave(self) -> None:
        """None of them."""
        self.dismiss(None)


class Help(ModalScreen[None]):
    """What am I looking at, and every key."""

    DEFAULT_CSS = """
    Help { align: center middle; }
    Help > VerticalScroll { width: 96; max-width: 96%; height: 90%; background: $surface; padding: 1 2;
        border-left: thick $primary; }
    Help Markdown { background: $surface; padding: 0; margin: 0; }
    Help Static { width: 1fr; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, "dismiss", show=False) for key in ("escape", "q", "question_mark", "f1", "enter")
    ]

    def __init__(self, text: str, commands: dict[str, list[tuple[str, str, str]]]) -> None:
        """`text`: Markdown about the pane; `commands`: group to (keys, name with arguments, what it does)."""
        super().__init__()
        self.text, self.commands = text, commands
        self._below = Static()

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            if self.text:
                from textual.widgets import Markdown  # it takes its time to import, and the first screen needs none

                yield Markdown(self.text)
            yield self._below

    def _table(self) -> Text:
        """The commands, group by group."""
        key, name = (f"bold {self.app.theme_variables[colour]}" for colour in ("primary", "accent"))
        table = Text()
        for group, rows in self.commands.items():
            table.append(f"\n{group}\n", "bold underline")
            for keys, words, about in rows:
                table.append(f"{keys:>9}  ", key).append(f"{words:26} ", name).append(f"{about}\n")
        return table

    def on_mount(self) -> None:
        """The arrows scroll at once. The commands, many lines below, come when what is above them is on the screen."""
        self.query_one(VerticalScroll).focus()
        self.call_after_refresh(lambda: self._below.update(self._table()))


class Jump(ModalScreen[str | None]):
    """A letter on every pane; pressing it goes there."""

    DEFAULT_CSS = """
    Jump { background: $background 50%; }
    Jump Label { position: absolute; width: auto; height: 1; background: $accent; color: $background;
        text-style: bold; padding: 0 1; }
    """

    def __init__(self, panes: list[tuple[str, str, Region]]) -> None:
        """`panes`: (name, title, where on the screen)."""
        super().__init__()
        self.targets = {letter: name for letter, (name, _, _) in zip(_LETTERS, panes, strict=False)}
        self._labels = list(zip(_LETTERS, panes, strict=False))

    def compose(self) -> ComposeResult:
        for letter, (_, title, region) in self._labels:
            label = Label(f"{letter}  {title}", markup=False)
            label.styles.offset = (region.x, region.y)
            yield label

    def on_key(self, event: events.Key) -> None:
        """A letter goes there; any other key goes nowhere."""
        event.stop()
        self.dismiss(self.targets.get(event.character or ""))
