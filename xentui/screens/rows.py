"""Panes drawn a row at a time, of which only the rows that differ are painted again."""

from __future__ import annotations

from typing import Any

from textual.geometry import Region
from textual.strip import Strip

from xentui.screens.pane import Pane


class RowPane(Pane):
    """Subclasses give `draw_row`, and call `repaint` when what they show may have changed."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._rows: list[Strip] = []
        self._drawn: tuple[int, int, Any] = (0, 0, None)

    def draw_row(self, y: int, width: int) -> Strip:
        """A row of the pane, exactly so wide."""
        raise TypeError("a RowPane draws its rows")

    def repaint(self) -> None:
        """Draw all rows; paint those that differ from what is on the screen."""
        width, height = self.size
        rows = [self.draw_row(y, width) for y in range(height)]
        look = (width, height, self.app.theme)
        if look != self._drawn:
            self._drawn, self._rows = look, rows
            self.refresh()
            return
        changed = [y for y, (old, new) in enumerate(zip(self._rows, rows, strict=True)) if old != new]
        self._rows = rows
        if changed:
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def render_line(self, y: int) -> Strip:
        """A row as it was drawn last; drawn now where the pane has another size or theme."""
        width, height = self.size
        if (width, height, self.app.theme) != self._drawn:
            self._drawn = (width, height, self.app.theme)
            self._rows = [self.draw_row(at, width) for at in range(height)]
        return self._rows[y] if y < len(self._rows) else Strip.blank(width, self.rich_style)
