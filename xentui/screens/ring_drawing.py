"""A shared ring drawn: a circle of characters with its pointers around it, or a bar where there is little room."""

from __future__ import annotations

from functools import cache
from math import cos, pi, sin
from typing import Any

from xentui.screens.sheet import Line, fit, length

STATES = {"free": ("◦", "dim"), "waiting": ("●", "orange"), "outstanding": ("◐", "blue"), "answered": ("◉", "green")}
"""State of a slot to its character and ink."""
_STEPS = 1440
_NARROW = 70
"""Cells below which a circle's pointers have short names; those of a ring with four always have."""
_BESIDE = {(2, False): 27, (2, True): 15, (4, True): 40}
"""Cells that names take on each side of a circle, by how many pointers there are, and whether the names are short."""
_LEAST = 5.0
"""Radius of a circle on which anything can be told from anything else."""
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


_SHORT = (("request ", "req_"), ("response ", "rsp_"), ("producer", "prod"), ("consumer", "cons"))
"""A pointer's name in xen/io/ring.h, where there is no room for the paper's."""


def _labels(part: dict[str, Any], short: bool = False) -> dict[int, str]:
    """Slot to what points there."""
    found: dict[int, list[tuple[str, int]]] = {}
    for name, index, _ in part["pointers"]:
        for words, letters in _SHORT if short else ():
            name = name.replace(words, letters)
        found.setdefault(index % part["size"], []).append((name, index))
    all_of_them = {2: "both", 4: "all four"}[len(part["pointers"])] if short else ""
    if all_of_them and len({index for _, index, _ in part["pointers"]}) == 1:
        return {slot: f"{all_of_them} {names[0][1]}" for slot, names in found.items()}
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
    """The ring as the paper's Figure 2 has it: index 0 at the top, indices grow clockwise. No lines where there is no
    room for it and its pointers' names."""
    grid = _Grid(width, height)
    pointers = len(part["pointers"])
    narrow = width < _NARROW or pointers == 4
    radius = min((height - 2) / 2, (width - 2 * _BESIDE[pointers, narrow]) / 4)
    if radius < _LEAST:
        return []
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    places = _places(radius, middle_x, middle_y)
    for place, state in zip(places, states(part, len(places)), strict=True):
        character, ink = STATES[state]
        grid.write(*place, character, ink)
    taken: set[tuple[bool, int]] = set()
    for slot, names in _labels(part, narrow).items():
        x, y = places[slot * len(places) // part["size"]]
        character = grid.cells[y][x][0]
        grid.write(x, y, character if character != "◦" else "○", "strong")
        right = slot / part["size"] < 0.5
        row = next(near for near in _rows_near(y, height) if (right, near) not in taken)
        taken.add((right, row))
        edge = [column for column, line in places if line == row] or [x]
        if right:
            grid.write(max(edge) + 2, row, f"◂ {names}", "label")
        else:
            grid.write(min(edge) - 3 - len(names), row, f"{names} ▸", "label")
    title, amount = part["name"], f"{part['waiting']} of {part['size']} {part['unit']}"
    for row, (text, ink) in enumerate(((title, "title"), (amount, "orange" if part["waiting"] else "dim"))):
        grid.write(int(middle_x - len(text) / 2 + 0.5), int(middle_y) + row, text, ink)
    return grid.lines()


def _rows_near(row: int, height: int) -> list[int]:
    """All rows, the nearest first: two names do not go into one."""
    return sorted(range(height), key=lambda other: abs(other - row))


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
    name = f"{part['name']:<8} "
    cells = max(8, width - len(name) - 2)
    line: Line = [(name, "title"), ("▕", "dim")]
    for state in states(part, cells):
        character, ink = STATES[state]
        if line[-1][1] == ink and len(line) > 2:
            line[-1] = (line[-1][0] + character, ink)
        else:
            line.append((character, ink))
    line.append(("▏", "dim"))
    labels = _labels(part)
    if sum(len(names) + 3 for names in labels.values()) > width - len(name):
        labels = _labels(part, True)
    placed: list[tuple[int, str]] = []
    for slot, names in sorted(labels.items()):
        column = len(name) + 1 + slot * cells // part["size"]
        text = f"▴ {names}" if column + len(names) + 2 <= width else f"{names} ▴"
        start = column if text.startswith("▴") else column - len(names) - 1
        end = placed[-1][0] + len(placed[-1][1]) if placed else -1
        placed.append((max(start, end + 1), text))
    end = width
    for place, (start, text) in reversed(list(enumerate(placed))):  # those that went too far come back
        placed[place] = (max(0, min(start, end - len(text))), text)
        end = placed[place][0] - 1
    pointers: Line = []
    for start, text in placed:
        pointers += [(" " * max(0, start - length(pointers)), ""), (text, "label")]
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
    gap, yet = ("  ", "") if four else ("   ", " yet")
    return [(f"{STATES[state][0]} {words[state].replace(' yet', yet)}{gap}", STATES[state][1]) for state in shown]
