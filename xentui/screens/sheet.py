"""Panes drawn line by line: runs of text in named inks, and only the rows that differ are painted again.

A `Line` is a list of (text, ink). An ink is a role ("changed", "label"), which `INKS` gives a colour for dark and one
for light themes. Colours are Okabe and Ito's, which hold for the colour-blind; whatever a colour says, a character or
a word says too.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip

from xentui.engine.views import ViewError
from xentui.screens import themes
from xentui.screens.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual import events

Line = list[tuple[str, str]]

INKS: dict[str, tuple[str, ...]] = {
    "": ("", ""),
    "dim": ("#7d8790", "#6b747c", "#b4bfca"),
    "label": ("#8fb7d9", "#2a5d8a", "#bcdcf7"),
    "title": ("bold", "bold"),
    "strong": ("bold", "bold"),
    "changed": ("bold #f5a742", "bold #a85a00"),
    "cursor": ("reverse", "reverse"),
    "blue": ("#6cb6ff", "#0060b0"),
    "orange": ("#f5a742", "#a85a00"),
    "green": ("#5cc8a0", "#00704f"),
    "purple": ("#cf9fe0", "#7a3d9a"),
    "yellow": ("#f0e442", "#7d6a00"),
    "sky": ("#9adcf5", "#1f6f8b"),
    "red": ("bold #ff7a45", "bold #b83400"),
    "error": ("bold #ff7a45", "bold #b83400"),
    "now": ("bold #101418 on #6cb6ff", "bold #ffffff on #0060b0"),
}
"""Ink to its style on dark and on light themes; and for the back row, where that is not as on dark ones."""
DOMAIN_INKS = ("blue", "orange", "green", "purple", "sky", "yellow")
"""Of domains 1, 2, 3, …, again from the first after the last; the trace has the same (trace_ink.DOMAINS)."""
DARK, LIGHT, CONTRAST = range(3)
_READABLE = 10_000
"""Instructions a second up to which a pane goes along from one domain to the next."""


@cache
def ink(name: str, look: int = DARK) -> Style:
    """The style of an ink, of several joined by +, or of a Rich style where there is no such ink."""
    first, _, rest = name.partition("+")
    looks = INKS.get(first, (first,))
    style = Style.parse(looks[look if look < len(looks) else DARK])
    return style + ink(rest, look) if rest else style


def length(line: Line) -> int:
    """How many cells a line takes."""
    return sum(cell_len(text) for text, _ in line)


def fit(line: Line, width: int) -> Line:
    """The line filled to exactly `width` cells, or cut, with a sign where more than blanks is lost."""
    room = width - length(line)
    if room >= 0:
        return [*line, (" " * room, "")]
    lost = cell_len("".join(text for text, _ in line).rstrip()) > width
    left = max(0, width - lost)
    out: Line = []
    for text, style in line:
        size = cell_len(text)
        out.append((text if size <= left else set_cell_size(text, left), style))
        left -= size
        if left < lost:
            break
    if lost and width > 0:
        out.append(("…", out[-1][1]))
    return out


def beside(left: list[Line], right: list[Line], left_width: int, gap: int = 2) -> list[Line]:
    """Two blocks side by side."""
    rows = max(len(left), len(right))
    filled = left + [[] for _ in range(rows - len(left))]
    others = right + [[] for _ in range(rows - len(right))]
    return [[*fit(one, left_width), (" " * gap, ""), *other] for one, other in zip(filled, others, strict=True)]


def heading(text: str, width: int, note: str = "") -> Line:
    """A rule with a title in it, and a note at its right end."""
    start = f"─ {text} "
    end = f" {note} ─" if note else ""
    return [(start, "label"), ("─" * max(0, width - cell_len(start) - cell_len(end)), "dim"), (end, "dim")]


def wrapped(text: str, width: int, style: str = "") -> list[Line]:
    """A text broken into lines at spaces."""
    lines: list[Line] = []
    row = ""
    for word in text.split():
        if row and cell_len(row) + 1 + cell_len(word) > width:
            lines.append([(row, style)])
            row = word
        else:
            row = f"{row} {word}" if row else word
    return [*lines, [(row, style)]] if row else lines


def window(count: int, rows: int, cursor: int, top: int) -> int:
    """The first of `count` lines to show in `rows` so that the cursor is seen, moved as little as can be from `top`."""
    if cursor < top:
        top = cursor
    elif cursor >= top + rows:
        top = cursor - rows + 1
    return max(0, min(top, count - rows))


class SheetPane(Pane):
    """A pane that overrides `draw`. `answers` are the latest, by `Query.key`; `status` the engine's."""

    DEFAULT_CSS: ClassVar[str] = """
    SheetPane { height: 1fr; width: 1fr; }
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.answers: dict[str, Any] = {}
        self.status: Any = None
        self._lines: list[Line] = []
        self._spots: list[tuple[Region, Callable[[int, int], None]]] = []
        self._followed = (-1, 0)
        """(domain, vCPU) that had the processor when that was last looked at."""

    def draw(self, width: int, height: int) -> list[Line]:
        """The pane's lines."""
        return []

    def show(self, answers: dict[str, Any], status: Any) -> None:
        self.answers, self.status = answers, status
        self.redraw()

    def answer(self, key: str) -> Any:
        """An answer, or None where it is missing or failed."""
        found = self.answers.get(key)
        return None if isinstance(found, ViewError) else found

    def failure(self) -> str:
        """What went wrong with the answers, in a line; empty if nothing."""
        return next((str(found) for found in self.answers.values() if isinstance(found, ViewError)), "")

    def redraw(self) -> None:
        """Draw again, and paint what differs."""
        width, height = self.content_size
        if not width or not height:
            return
        self._spots.clear()
        lines = self.draw(width, height)[:height]
        old, self._lines = self._lines, lines
        dirty = [
            Region(0, row, width, 1)
            for row in range(height)
            if (lines[row] if row < len(lines) else None) != (old[row] if row < len(old) else None)
        ]
        if dirty:
            self.refresh(*dirty)

    def touch(self) -> None:
        """The pane's own wishes have changed: draw what is known already, and ask anew even while nothing runs."""
        feed = getattr(self.app, "feed", None)
        if feed is not None:
            feed.changed = True
        self.redraw()

    def on_resize(self, _event: events.Resize) -> None:
        """Lay out anew."""
        self._lines = []
        self.redraw()
        self.refresh()

    def spot(self, x: int, y: int, width: int, height: int, chosen: Callable[[int, int], None]) -> None:
        """While drawing: a click within this region calls `chosen` with the column and row in it."""
        self._spots.append((Region(x, y, width, height), chosen))

    def on_click(self, event: events.Click) -> None:
        """Take the focus, and choose what is under the mouse."""
        event.stop()
        self.focus()
        at = event.get_content_offset(self)
        for region, chosen in self._spots:
            if at is not None and region.contains_point(at):
                chosen(at.x - region.x, at.y - region.y)
                self.touch()
                return

    def render_line(self, y: int) -> Strip:
        """One row for Textual."""
        width = self.content_size.width
        base = self.rich_style
        theme = self.app.current_theme
        look = CONTRAST if theme.name == themes.CONTRAST.name else DARK if theme.dark else LIGHT
        line = self._lines[y] if y < len(self._lines) else []
        if length(line) > width:
            line = fit(line, width)
        strip = Strip([Segment(text, base + ink(style, look)) for text, style in line if text])
        return strip.adjust_cell_length(width, base)

    def text(self) -> str:
        """What is drawn, as plain text."""
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self._lines)

    def engine_status(self) -> Any:
        """The latest status: what came with the answers, or before the first ones the engine's own."""
        return self.status or getattr(getattr(self.app, "engine", None), "status", None)

    def act(self, kind: str, domain: int | None, *arguments: Any) -> None:
        """Ask for an influence on a domain, or on the machine."""
        from xentui.engine.actions import Action

        self.post_message(self.Act(Action(kind, dict(self.domains()).get(domain), arguments)))

    # --- whose ------------------------------------------------------------------------------------------------------

    def domains(self) -> list[tuple[int, str]]:
        """Number and name of every domain there is."""
        return [(domain.id, domain.name) for domain in getattr(self.engine_status(), "domains", ())]

    def next_domain(self, current: int | None, step: int = 1) -> int | None:
        """The domain after this one, round and round."""
        ids = [number for number, _ in self.domains()]
        if not ids:
            return current
        if current not in ids:
            return ids[0]
        return ids[(ids.index(current) + step) % len(ids)]

    def current_vcpu(self) -> tuple[int, int] | None:
        """(domain, vCPU) that has the processor; the first domain's where none has.

        While the machine runs too fast for an eye to follow, it is the one that was shown last.
        """
        status, ids = self.engine_status(), [number for number, _ in self.domains()]
        speed = getattr(status, "speed", None)
        if status and status.running and (speed is None or speed > _READABLE) and self._followed[0] in ids:
            return self._followed
        current = getattr(status, "current", None) or ((ids[0], 0) if ids else None)
        if current is None:
            return None
        self._followed = int(current[0]), int(current[1])
        return self._followed
