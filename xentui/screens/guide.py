"""A guided demonstration beside the machine: the step's text, what to notice, and the keys that lead on and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rich.style import Style
from rich.table import Table
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from xentui.screens import catalogue, layout
from xentui.screens.pane import Pane

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from xentui.tour import Tour

NAMES = {"gantt": "scheduler", "terminal": "consoles", "registers": "cpu"}
"""Other words that a demonstration may use for panes (demonstration.PANES has them all)."""

NARROW = 110
"""Columns below which the guide stands above the panes instead of beside them."""
FLAT = 16
"""Rows of the guide below which blank lines are left out, and the keys stand beside the title."""
LOWEST = 10
"""Rows of the guide where there are 24 in all."""


class Guide(Pane):
    """What a demonstration says of the moment. It follows the application's tour."""

    TITLE = "Guide"
    HELP = """\
A guided demonstration: text beside the live machine. Each step runs the machine to a condition and opens the pane that
shows it; the line in colour says what to notice.

`→`, `n` or Page Down leads on, `←`, `p` or Page Up back; `ctrl+n` and `ctrl+b` do so from every pane. In between you
can do anything: `←` then leads back to the step, and the next step goes on from where you are. What you change begins
a branch of history.

Demonstrations are Markdown files; docs/demonstrations.md says how to write one.
"""
    DEFAULT_CSS = """
    Guide #guide-head { height: auto; padding: 1 2 0 2; }
    Guide #guide-notice { height: auto; padding: 0 1 0 1; margin: 1 1 0 1; border-left: thick $accent; color: $accent; }
    Guide VerticalScroll { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    Guide Markdown { background: $background; padding: 0 1; margin: 0; }
    Guide #guide-keys { height: 1; padding: 0 2; color: $muted; }
    Guide.-flat #guide-head { padding: 0 1; }
    Guide.-flat #guide-notice { margin: 0; }
    Guide.-flat VerticalScroll { padding: 0; }
    Guide.-flat #guide-keys { display: none; }
    Guide Markdown MarkdownBlock:dark > .code_inline, Guide Markdown MarkdownBlock:light > .code_inline {
        background: $panel; color: $foreground;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,n,pagedown,enter", "forward", "Next step"),
        Binding("left,p,pageup,backspace", "back", "Step before"),
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
            from textual.widgets import Markdown  # it takes its time to import, and the first screen needs none

            # with the text at once: as it is mounted, a Markdown shows what it was made with, whatever came meanwhile
            yield Markdown(self._text())
        yield Static(id="guide-keys")

    @property
    def tour(self) -> Tour | None:
        """The demonstration that is being led."""
        return getattr(self.app, "tour", None)

    def _text(self) -> str:
        """What the station says."""
        if self.tour is None:
            return ""
        return self.tour.step.text if self.tour.step is not None else self.tour.demonstration.introduction

    def on_mount(self) -> None:
        """Say what there is to say at once."""
        self.update_text()

    def show(self, answers: dict[str, Any], status: Any) -> None:
        """Nothing is asked of the machine; but a step may have ended."""
        self.update_text()

    def update_text(self) -> None:
        """Show the station, if it is another one."""
        tour = self.tour
        flat = self.has_class("-flat")
        away = tour is not None and tour.away
        state = (tour.demonstration.name, tour.station, tour.settled, tour.problem, away, flat) if tour else ()
        if state == self._shown or not self.query("#guide-keys"):  # it is not composed yet, and will be told then
            return
        head, notice, keys = (self.query_one(f"#guide-{part}", Static) for part in ("head", "notice", "keys"))
        if tour is None:
            head.update(Text("No demonstration is being shown. :demo lists them."))
            return
        step = tour.step
        hints = self._hints(tour, away)
        head.update(self._head(tour, hints if flat else ""))
        keys.update(Text(hints))
        told = tour.problem or (step.shows.get("notice", "") if step is not None and tour.settled else "")
        notice.display = bool(told)
        notice.update(_inline(told))
        if state[:2] != self._shown[:2]:
            text: Any = self.query_one("Markdown")
            text.update(self._text())
            self.query_one(VerticalScroll).scroll_home(animate=False)
        self._shown = state

    def on_resize(self) -> None:
        """Little height: no room for what only parts."""
        self.set_class(self.size.height < FLAT, "-flat")
        self.update_text()

    @staticmethod
    def _hints(tour: Tour, away: bool) -> str:
        """The keys that lead on and back."""
        if not tour.settled:
            return "the machine is on its way …"
        if away:
            return "you have left the path: ← to it" + ("" if tour.at_end else "   → on from here")
        back = "← back   " if tour.station else ""
        return back + ("the end (:demo lists others)" if tour.at_end else "→ next")

    def _head(self, tour: Tour, hints: str) -> Table:
        """The title, and where we are; with `hints` beside it."""
        title = tour.demonstration.title if tour.step is None else tour.step.title
        place = (
            f"section {tour.demonstration.paper} of the paper" if tour.step is None and tour.demonstration.paper else ""
        )
        if tour.step is not None:
            place = f"{tour.station} of {len(tour.steps)}"
        muted = Style(color=self.app.get_css_variables()["muted"])
        table = Table.grid(expand=True, padding=(0, 1, 0, 0))
        table.add_column(ratio=1)
        table.add_column(justify="right", no_wrap=True, style=muted)
        if hints and tour.step is None:
            table.add_row(Text.assemble((title, Style(bold=True)), ("   " + place, muted)), hints)
        else:
            table.add_row(Text(title, Style(bold=True)), f"{place}   {hints}".strip() if tour.step is not None else "")
            if tour.step is None and place:
                table.add_row(Text(place, muted), "")
        return table

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
    names = [word.partition(":")[0] for word in wanted]
    return [name for name in names if name in catalogue.ENTRIES and name != "guide"]


def parts_of(value: str) -> list[tuple[str, str]]:
    """Panes of which a step shows a part: `memory:refusals`."""
    words = [word.partition(":") for word in value.replace(",", " ").split()]
    return [(name, part) for name, _, part in words if part]


def tree_for(panes: list[str], width: int, height: int, presenting: bool = False) -> layout.Tree:
    """The guide, and the panes beside it; below it before an audience, and where there is no room beside."""
    shown: layout.Tree = panes[0] if len(panes) == 1 else layout.above(*((name, 1.0) for name in panes))
    if width < NARROW or presenting:
        rows = height - (1 if presenting else 2)
        upper = min(LOWEST + max(0, rows - 24) // 3, 14)
        return layout.above(("guide", upper), (shown, max(1, rows - upper)))
    return layout.beside(("guide", 39), (shown, 80))
