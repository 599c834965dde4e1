"""The machine's frames as a map of cells, two to a character, with a legend and a cursor."""

from __future__ import annotations

from typing import Any

from xentui.engine.views import Query
from xentui.screens.sheet import Line, fit, length

_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#9adcf5", "#f0e442")
"""Okabe and Ito's, of domains 1, 2, 3, …: blue, orange, green, … as everywhere (sheet.DOMAIN_INKS)."""
_TYPES = {
    "none": "#3a4148",
    "L1": "#009e73",
    "L2": "#56b4e9",
    "L3": "#0072b2",
    "L4": "#cc79a7",
    "descriptors": "#f0e442",
    "writable": "#7a5a20",
    "shared": "#e69f00",
}
_FREE, _XEN = 254, 255
_SPECIAL = {_FREE: ("free", "#1c2024"), _XEN: ("Xen", "#c8ccd0")}
_CURSOR = "#ffffff"
_SECONDS = 1.0
"""Between two looks at the whole frame table."""


class FrameMap:
    """`by` is "owner" or "type"; the part of memory that is shown begins at `first` and has `count` frames (0: all)."""

    def __init__(self) -> None:
        self.by = "owner"
        self.first = self.count = 0
        self.cell = 0
        self.width, self.rows = 64, 8
        self.answer: dict[str, Any] | None = None
        self._asked: tuple[float, Query | None] = (0.0, None)
        self._drawn: tuple[Any, list[Line]] = (None, [])
        """The latest lines, and what they were drawn from."""

    def query(self) -> Query:
        """What the map asks."""
        return Query(
            "memory.frame_map",
            {"cells": self.width * self.rows * 2, "by": self.by, "first": self.first, "count": self.count},
        )

    def due(self, now: float) -> bool:
        """Ask (again)? A big machine's map takes the engine some milliseconds: once a second, and for another view."""
        query = self.query()
        if query == self._asked[1] and now - self._asked[0] < _SECONDS:
            return False
        self._asked = now, query
        return True

    @property
    def mfn(self) -> int:
        """The first frame under the cursor."""
        if self.answer is None:
            return 0
        last = self.answer["first"] + self.answer["count"] - 1
        return int(min(last, self.answer["first"] + self.cell * self.answer["size"]))

    def update(self, answer: dict[str, Any]) -> None:
        """The latest answer."""
        self.answer = answer
        self.cell = max(0, min(self.cell, len(answer["cells"]) - 1))

    def move(self, dx: int, dy: int) -> None:
        """Another cell."""
        if self.answer is not None:
            cell = self.cell + dx + dy * self.width
            if 0 <= cell < len(self.answer["cells"]):
                self.cell = cell

    def choose(self, x: int, y: int) -> None:
        """The upper cell of a character."""
        cell = 2 * y * self.width + x
        if self.answer is not None and cell < len(self.answer["cells"]):
            self.cell = cell

    def zoom(self, into: bool) -> None:
        """Show an eighth of what is shown, around the cursor; or all again."""
        if self.answer is None:
            return
        if not into:
            mfn = self.mfn
            self.first = self.count = 0
            self.cell = mfn // max(1, -(-self.answer["frames"] // (self.width * self.rows * 2)))
            return
        count = max(self.width * self.rows * 2, self.answer["count"] // 8)
        if count >= self.answer["count"]:
            return
        mfn = self.mfn
        self.first = max(0, min(mfn - count // 2, self.answer["frames"] - count))
        self.count = count
        self.cell = (mfn - self.first) // max(1, -(-count // (self.width * self.rows * 2)))

    def colour(self, code: int) -> str:
        """The colour of a code."""
        if code in _SPECIAL:
            return _SPECIAL[code][1]
        names = self.answer["names"] if self.answer else []
        if self.by == "type":
            return _TYPES.get(names[code] if code < len(names) else "", "#3a4148")
        domains = self.answer["domains"] if self.answer else []
        return _COLOURS[((domains[code] if code < len(domains) else code + 1) - 1) % len(_COLOURS)]

    def legend(self, width: int) -> list[Line]:
        """What the colours are, with how many frames."""
        if self.answer is None:
            return []
        lines: list[Line] = [[]]
        for code, total in self.answer["totals"].items():
            name = _SPECIAL[code][0] if code in _SPECIAL else self.answer["names"][code]
            item: Line = [("██ ", self.colour(code)), (f"{name} ", ""), (f"{total}   ", "dim")]
            if length(lines[-1]) + length(item) > width:
                lines.append([])
            lines[-1] += item
        return [fit(line, width) for line in lines[:3]]

    def draw(self) -> list[Line]:
        """The map: a character is two cells, the upper one above the lower; the cursor's is white."""
        if self.answer is None:
            return []
        cells, width = self.answer["cells"], self.width
        key = (cells, width, self.cell, self.by, tuple(self.answer["names"]))
        if key == self._drawn[0]:
            return self._drawn[1]
        lines: list[Line] = []
        for row in range(0, -(-len(cells) // width), 2):
            upper = cells[row * width : (row + 1) * width]
            lower = cells[(row + 1) * width : (row + 2) * width]
            line: Line = []
            for column, code in enumerate(upper):
                top = self._cell_colour(row * width + column, code)
                under = self._cell_colour((row + 1) * width + column, lower[column]) if column < len(lower) else ""
                style = f"{top} on {under}" if under else top
                if line and line[-1][1] == style:
                    line[-1] = (line[-1][0] + "▀", style)
                else:
                    line.append(("▀", style))
            lines.append(line)
        self._drawn = key, lines
        return lines

    def _cell_colour(self, cell: int, code: int) -> str:
        return _CURSOR if cell == self.cell else self.colour(code)
