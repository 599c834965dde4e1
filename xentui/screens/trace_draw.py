"""Rows of the trace as Textual's strips: what is text and colour, and nothing of what it says."""

from __future__ import annotations

from functools import cache
from typing import Any

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from xentui.screens import trace_ink as inks
from xentui.screens.trace_lines import Line


@cache
def _on(base: Style, style: Style) -> Style:
    """A style over the pane's own."""
    return base + style


def line_strip(made: Line, ahead: bool, selected: bool, bar: str, width: int, base: Style, dark: bool) -> Strip:
    """A record's line in its colours; what is still to come (`ahead`) is faint."""
    back = inks.cursor_back(dark) if selected else ""
    faint, track = _on(base, inks.faint(dark, back)), Segment(bar, _on(base, inks.faint(dark)))
    if ahead:
        rest = made.when + made.domain + made.name + made.arguments + made.end + " " * (width - 1 - made.cells)
        segments = [Segment(made.gutter, faint), Segment(rest, faint), track]
    else:
        end = _on(base, inks.ink(inks.RED, dark, True, back)) if made.failed else faint
        segments = [
            Segment(made.gutter, _on(base, inks.ink(inks.ORANGE, dark, True, back))),
            Segment(made.when, faint),
            Segment(made.domain, _on(base, inks.ink(inks.of_domain(made.owner), dark, False, back))),
            Segment(made.name, _on(base, inks.ink(inks.of_kind(made.kind), dark, True, back))),
            Segment(made.arguments, _on(base, inks.plain(dark, back))),
            Segment(made.end, end),
        ]
        segments.append(Segment(" " * (width - 1 - made.cells), faint))
        segments.append(track)
    if made.cells < width:
        return Strip(segments, width)
    return Strip(segments).adjust_cell_length(width, base)


@cache
def _ink(name: Any, dark: bool) -> Style:
    """An ink: a colour's number (negative: bold), "faint", "bold" or ""."""
    if isinstance(name, int):
        return inks.ink(abs(name), dark, name < 0)
    if name == "faint":
        return inks.faint(dark)
    return inks.plain(dark) + Style(bold=name == "bold" or None)


def runs_strip(runs: list[tuple[str, Any]], width: int, base: Style, dark: bool) -> Strip:
    """Runs of (text, ink) as a strip of a width."""
    segments = [Segment(text, _on(base, _ink(name, dark))) for text, name in runs if text]
    return Strip(segments).adjust_cell_length(width, base)


def scroll_bar(size: int, rows: int, top: int) -> list[str]:
    """The bar at the right, a cell a row: where the window is in a list of a size."""
    if size <= rows or not rows:
        return [" "] * rows
    thumb = max(1, rows * rows // size)
    start = min(rows - thumb, top * (rows - thumb) // max(1, size - rows))
    return ["█" if start <= y < start + thumb else "│" for y in range(rows)]
