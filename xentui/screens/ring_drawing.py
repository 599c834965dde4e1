"""A shared ring drawn: a circle of characters with its pointers around it, or a bar where there is little room."""

from __future__ import annotations

from functools import cache
from math import cos, pi, sin
from typing import Any

from xentui.screens.sheet import Line, fit, length

_STATES = {"free": ("◦", "dim"), "waiting": ("●", "orange"), "outstanding": ("◐", "blue"), "answered": ("◉", "green")}
"""State of a slot to its character and ink."""
_STEPS = 1440
_NARROW = 70
"""Cells below which a circle's pointers have short names."""
_MASK32 = 0xFFFF_FFFF


def arcs(part: dict[str, Any]) -> list[tuple[str, int, int]]:
    """What lies between the pointers: (state, first index, how many slots), free ones left out."""
    if not part["sane"]:
        return []
    at = [index for _, index, _ in part["pointers"]]
    if len(at) == 2:
        return [("waiting", at[1], at[0] - at[1] & _MASK32)]
    request, taken, answered, read = at
    return [
        ("waiting", taken, request - taken & _MASK32),
        ("outstanding", answered, taken - answered & _MASK32),
        ("answered", read, answered - read & _MASK32),
    ]


def states(part: dict[str, Any], cells: int) -> list[str]:
    """The state of each of `cells` equal parts of the ring; a slot that is not free is never lost among others."""
    size = part["size"]
    found = ["free"] * cells
    for state, first, count in arcs(part):
        if not count:
            continue
        begin = first % size * cells // size
        last = (first + count - 1) % size * cells // size
        many = (last - begin) % cells + 1 if count < size else cells
        for cell in range(begin, begin + many):
            found[cell % cells] = state
    return found


def _labels(part: dict[str, Any]) -> dict[int, str]:
    """Slot to what points there."""
    found: dict[int, list[tuple[str, int]]] = {}
    for name, index, _ in part["pointers"]:
        found.setdefault(index % part["size"], []).append((name, index))
    return {slot: " + ".join(name for name, _ in names) + f" {names[0][1]}" for slot, names in found.items()}


class _Grid:
    """Characters with inks, to be written anywhere."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.cells = [[(" ", "")] * width for _ in range(height)]

    def write(self, x: int, y: int, text: str, ink: str) -> None:
        """Put a text; what does not fit is cut."""
        if 0 <= y < len(self.cells):
            for offset, character in enumerate(text):
                if 0 <= x + offset < self.width:
                    self.cells[y][x + offset] = (character, ink)

    def lines(self) -> list[Line]:
        """The rows, neighbours of one ink joined."""
        lines: list[Line] = []
        for row in self.cells:
            line: Line = []
            for character, ink in row:
                if line and line[-1][1] == ink:
                    line[-1] = (line[-1][0] + character, ink)
                else:
                    line.append((character, ink))
            lines.append(line)
        return lines


def circle(part: dict[str, Any], width: int, height: int) -> list[Line]:
    """The ring as the paper's Figure 2 has it: index 0 at the top, indices grow clockwise."""
    grid = _Grid(width, height)
    narrow = width < _NARROW
    radius = min((height - 2) / 2, (width - (30 if narrow else 44)) / 4)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    places = _places(radius, middle_x, middle_y)
    for place, state in zip(places, states(part, len(places)), strict=True):
        character, ink = _STATES[state]
        grid.write(*place, character, ink)
    for slot, names in _labels(part).items():
        if narrow:
            names = names.replace("producer", "prod").replace("consumer", "cons")
        share = slot / part["size"]
        x, y = places[slot * len(places) // part["size"]]
        character = grid.cells[y][x][0]
        grid.write(x, y, character if character != "◦" else "○", "strong")
        if share < 0.5:
            grid.write(x + 2, y, f"◂ {names}", "label")
        else:
            grid.write(x - 3 - len(names), y, f"{names} ▸", "label")
    title, amount = part["name"], f"{part['waiting']} of {part['size']} {part['unit']}"
    for row, (text, ink) in enumerate(((title, "title"), (amount, "orange" if part["waiting"] else "dim"))):
        grid.write(int(middle_x - len(text) / 2 + 0.5), int(middle_y) + row, text, ink)
    return grid.lines()


@cache
def _places(radius: float, middle_x: float, middle_y: float) -> list[tuple[int, int]]:
    """The cells around a circle, each once, clockwise from the top."""
    places: list[tuple[int, int]] = []
    for step in range(_STEPS):
        place = _on_circle(step / _STEPS, radius, middle_x, middle_y)
        if not places or place != places[-1]:
            places.append(place)
    if places[0] == places[-1]:
        places.pop()
    return places


def _on_circle(share: float, radius: float, middle_x: float, middle_y: float) -> tuple[int, int]:
    """The cell at a share of the way around; characters are twice as high as wide."""
    angle = 2 * pi * share
    return round(middle_x + 2 * radius * sin(angle)), round(middle_y - radius * cos(angle))


def bar(part: dict[str, Any], width: int) -> list[Line]:
    """The ring cut open at index 0: a line of slots, and one with its pointers."""
    name = f"{part['name']:<9}"
    cells = max(8, width - len(name) - 2)
    line: Line = [(name, "title"), ("▕", "dim")]
    for state in states(part, cells):
        character, ink = _STATES[state]
        if line[-1][1] == ink and len(line) > 2:
            line[-1] = (line[-1][0] + character, ink)
        else:
            line.append((character, ink))
    line.append(("▏", "dim"))
    pointers: Line = []
    for slot, names in sorted(_labels(part).items()):
        column = len(name) + 1 + slot * cells // part["size"]
        text = f"▴ {names}" if column + len(names) + 2 <= width else f"{names} ▴"
        start = column if text.startswith("▴") else column - len(names) - 1
        start = max(start, length(pointers) + 1)
        pointers += [(" " * (start - length(pointers)), ""), (text, "label")]
    return [fit(line, width), fit(pointers, width)]


def legend(parts: list[dict[str, Any]]) -> Line:
    """What the characters mean."""
    four = any(len(part["pointers"]) == 4 for part in parts)
    shown = ("waiting", "outstanding", "answered", "free") if four else ("waiting", "free")
    words = {
        "waiting": "put in, not taken yet",
        "outstanding": "taken, not answered yet",
        "answered": "answered, not read yet",
        "free": "free",
    }
    return [(f"{_STATES[state][0]} {words[state]}   ", _STATES[state][1]) for state in shown]
