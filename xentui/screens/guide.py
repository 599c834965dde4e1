"""A guided demonstration beside the machine: the step's text, what to notice, and the keys that lead on and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Markdown, Static

from xentui.screens import catalogue, layout
from xentui.screens.pane import Pane

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from xentui.tour import Tour

NAMES = {"gantt": "scheduler", "terminal": "consoles", "registers": "cpu"}
"""Other words that a demonstration may use for panes."""


class Guide(Pane):
    """What a demonstration says of the moment. It follows the application's tour."""

    TITLE = "Guide"
    HELP = """\
A guided demonstration: text beside the live machine. Each step runs the machine to a condition and opens the pane that
shows it; the line in colour says what to notice.

`→`, `n` or Page Down leads on, `←`, `p` or Page Up back. In between you can do anything: what you change begins a
branch of history, and the next step goes on from there.

Demonstrations are Markdown files; docs/demonstrations.md says how to write one.
"""
    DEFAULT_CSS = """
    Guide #guide-head { height: auto; padding: 1 2 0 2; }
    Guide #guide-notice { height: auto; padding: 0 1 0 1; margin: 1 1 0 1; border-left: thick $accent; color: $accent; }
    Guide VerticalScroll { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    Guide Markdown { background: $background; padding: 0 1; margin: 0; }
    Guide #guide-keys { height: 1; padding: 0 2; color: $muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,n,pagedown,enter", "forward", show=False),
        Binding("left,p,pageup,backspace", "back", show=False),
        Binding("down", "scroll_text(1)", show=False),
        Binding("up", "scroll_text(-1)", show=False),
    ]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._shown: tuple[Any, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static(id="guide-head")
        yield Static(id="guide-notice")
        with VerticalScroll(can_focus=False):
            yield Markdown()
        yield Static(id="guide-keys")

    @property
    def tour(self) -> Tour | None:
        """The demonstration that is being led."""
        return getattr(self.app, "tour", None)

    def on_mount(self) -> None:
        """Say what there is to say at once."""
        self.update_text()

    def show(self, answers: dict[str, Any], status: Any) -> None:
        """Nothing is asked of the machine; but a step may have ended."""
        self.update_text()

    def update_text(self) -> None:
        """Show the station, if it is another one."""
        tour = self.tour
        state = (tour.demonstration.name, tour.station, tour.settled, tour.problem) if tour else ()
        if state == self._shown:
            return
        self._shown = state
        head, notice, keys = (self.query_one(f"#guide-{part}", Static) for part in ("head", "notice", "keys"))
        if tour is None:
            head.update(Text("No demonstration is being shown. :demo lists them."))
            return
        step = tour.step
        head.update(self._head(tour))
        told = tour.problem or (step.shows.get("notice", "") if step is not None else "")
        notice.display = bool(told)
        notice.update(Text.from_markup("") if not told else _inline(told))
        self.query_one(Markdown).update(step.text if step is not None else tour.demonstration.introduction)
        self.query_one(VerticalScroll).scroll_home(animate=False)
        back = "" if not tour.station else "← back   "
        forward = "the end" if tour.at_end else "→ next"
        keys.update(Text(f"{back}{forward}" if tour.settled else "the machine is on its way …"))

    def _head(self, tour: Tour) -> Text:
        """Where we are, and the title."""
        title = tour.demonstration.title if tour.step is None else tour.step.title
        place = (
            f"section {tour.demonstration.paper} of the paper" if tour.step is None and tour.demonstration.paper else ""
        )
        if tour.step is not None:
            place = f"{tour.station} of {len(tour.steps)}"
        muted = Style(color=self.app.get_css_variables()["muted"])
        return Text.assemble((title, Style(bold=True)), ("   " + place if place else "", muted))

    def action_forward(self) -> None:
        """The next step."""
        if self.tour is not None:
            self.tour.forward()
            self.update_text()

    def action_back(self) -> None:
        """The step before."""
        if self.tour is not None:
            self.tour.back()
            self.update_text()

    def action_scroll_text(self, lines: int) -> None:
        """Read on."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


def _inline(text: str) -> Text:
    """A sentence with `code` in it."""
    parts = text.split("`")
    return Text.assemble(*((part, "bold reverse" if number % 2 else "bold") for number, part in enumerate(parts)))


def panes_of(value: str) -> list[str]:
    """The panes that a step shows, of those that there are."""
    wanted = [NAMES.get(word, word) for word in value.replace(",", " ").split()]
    return [name for name in wanted if name in catalogue.ENTRIES and name != "guide"]


def tree_for(panes: list[str], width: int) -> layout.Tree:
    """The guide, and the panes beside it, or below it where there is no room beside."""
    shown: layout.Tree = panes[0] if len(panes) == 1 else layout.above(*((name, 1.0) for name in panes))
    if width < 100:
        return layout.above(("guide", 11), (shown, 12))
    return layout.beside(("guide", 42), (shown, 78))
