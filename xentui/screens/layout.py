"""Where each pane lies: a tree of splits, without a widget in it.

    tree = beside(("domains", 1), (above(("consoles", 2), ("trace", 1)), 3))
    places(tree, 120, 40)           pane's name -> (x, y, width, height)

A tree is a pane's name or a `Split`. Trees are not changed: every function gives a new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GAP = 1
"""Columns between two panes that lie side by side; those above each other are parted by the lower one's title."""
LEAST_WIDTH, LEAST_HEIGHT = 20, 4
"""A pane is not split into parts smaller than this."""

Place = tuple[int, int, int, int]


@dataclass(frozen=True)
class Split:
    """Panes side by side (`row`) or above each other; `weights` say how the room is shared."""

    row: bool
    parts: tuple[Tree, ...]
    weights: tuple[float, ...]


Tree = str | Split


def beside(*parts: tuple[Tree, float]) -> Split:
    """Parts from left to right, each with its weight."""
    return Split(True, tuple(part for part, _ in parts), tuple(weight for _, weight in parts))


def above(*parts: tuple[Tree, float]) -> Split:
    """Parts from top to bottom, each with its weight."""
    return Split(False, tuple(part for part, _ in parts), tuple(weight for _, weight in parts))


_PANES: Tree = beside(
    (above(("domains", 7), ("trace", 35), ("scheduler", 13)), 104),
    (above(("consoles", 26), (beside(("crossings", 1), ("events", 1)), 29)), 96),
)
WIDE: Tree = above((_PANES, 55), ("timeline", 3))
MEDIUM: Tree = above(
    ("domains", 5),
    (beside(("consoles", 80), ("crossings", 39)), 19),
    ("trace", 11),
    ("timeline", 3),
)
NARROW: Tree = above(("domains", 4), ("consoles", 9), ("trace", 9))


def default(width: int) -> Tree:
    """What is open at first in a window of so many columns."""
    if width >= 160:
        return WIDE
    return MEDIUM if width >= 100 else NARROW


def size_class(width: int) -> str:
    """Under which name the layout of such a window is remembered."""
    return "wide" if width >= 160 else "medium" if width >= 100 else "narrow"


def names(tree: Tree) -> list[str]:
    """The panes of a tree, in reading order."""
    if isinstance(tree, str):
        return [tree]
    return [name for part in tree.parts for name in names(part)]


def places(tree: Tree, width: int, height: int) -> dict[str, Place]:
    """Pane to (x, y, width, height). All room is used; every pane gets at least a cell."""
    found: dict[str, Place] = {}
    _place(tree, (0, 0, max(1, width), max(1, height)), found)
    return found


def _place(tree: Tree, room: Place, found: dict[str, Place]) -> None:
    if isinstance(tree, str):
        found[tree] = room
        return
    x, y, width, height = room
    gap = GAP if tree.row else 0
    extent = (width if tree.row else height) - gap * (len(tree.parts) - 1)
    total, taken, done = sum(tree.weights), 0, 0.0
    for part, weight in zip(tree.parts, tree.weights, strict=True):
        done += weight
        size = max(1, round(extent * done / total) - taken)
        at = taken + gap * tree.parts.index(part)
        taken += size
        _place(part, (x + at, y, size, height) if tree.row else (x, y + at, width, size), found)


def replaced(tree: Tree, old: str, new: str) -> Tree:
    """The tree with pane `new` where `old` was."""
    return _mapped(tree, lambda name: new if name == old else name)


def swapped(tree: Tree, one: str, other: str) -> Tree:
    """The tree with two panes in each other's place."""
    return _mapped(tree, lambda name: {one: other, other: one}.get(name, name))


def _mapped(tree: Tree, change: Any) -> Tree:
    if isinstance(tree, str):
        return str(change(tree))
    return Split(tree.row, tuple(_mapped(part, change) for part in tree.parts), tree.weights)


def removed(tree: Tree, name: str) -> Tree | None:
    """The tree without a pane; its neighbours take the room. None: it was the only one."""
    if isinstance(tree, str):
        return None if tree == name else tree
    kept = [
        (part, weight)
        for part, weight in (
            (removed(part, name), weight) for part, weight in zip(tree.parts, tree.weights, strict=True)
        )
        if part is not None
    ]
    if len(kept) < 2:
        return kept[0][0] if kept else None
    return Split(tree.row, tuple(part for part, _ in kept), tuple(weight for _, weight in kept))


def split(tree: Tree, name: str, new: str, row: bool) -> Tree:
    """The tree with pane `new` beside (`row`) or below pane `name`; taken from where it was, if it was open."""
    rest = tree if new not in names(tree) or new == name else removed(tree, new)
    return _split(rest if rest is not None else name, name, new, row)


def _split(tree: Tree, name: str, new: str, row: bool) -> Tree:
    if isinstance(tree, str):
        return Split(row, (tree, new), (1.0, 1.0)) if tree == name and new != name else tree
    if tree.row == row and name in tree.parts and new != name:
        at = tree.parts.index(name)
        half = tree.weights[at] / 2
        parts, weights = list(tree.parts), list(tree.weights)
        weights[at] = half
        parts.insert(at + 1, new)
        weights.insert(at + 1, half)
        return Split(row, tuple(parts), tuple(weights))
    return Split(tree.row, tuple(_split(part, name, new, row) for part in tree.parts), tree.weights)


def resized(tree: Tree, name: str, row: bool, factor: float) -> Tree:
    """The tree with a pane's share of its nearest row (or column) multiplied by `factor`."""
    if isinstance(tree, str):
        return tree
    parts = tuple(resized(part, name, row, factor) for part in tree.parts)
    if parts == tree.parts and tree.row == row:
        total = sum(tree.weights)
        weights = tuple(
            min(0.9 * total, max(0.05 * total, weight * factor)) if name in names(part) else weight
            for part, weight in zip(tree.parts, tree.weights, strict=True)
        )
        return Split(row, tree.parts, weights)
    return Split(tree.row, parts, tree.weights)


def neighbour(found: dict[str, Place], name: str, direction: str) -> str | None:
    """The pane next to `name`: `left`, `right`, `up` or `down`; the one that shares most of the edge."""
    x, y, width, height = found[name]
    best, most = None, 0
    for other, (ox, oy, owidth, oheight) in found.items():
        if direction in ("left", "right"):
            touches = ox + owidth + GAP == x if direction == "left" else x + width + GAP == ox
            shared = min(y + height, oy + oheight) - max(y, oy)
        else:
            touches = oy + oheight == y if direction == "up" else y + height == oy
            shared = min(x + width, ox + owidth) - max(x, ox)
        if touches and shared > most:
            best, most = other, shared
    return best


def to_data(tree: Tree) -> Any:
    """The tree as JSON has it."""
    if isinstance(tree, str):
        return tree
    return {"row": tree.row, "parts": [to_data(part) for part in tree.parts], "weights": list(tree.weights)}


def from_data(data: Any, known: frozenset[str]) -> Tree:
    """A tree from JSON. Raises ValueError where it is none, or names a pane that is not known or stands twice."""
    tree = _from_data(data, known)
    if len(set(names(tree))) < len(names(tree)):
        raise ValueError("a pane stands in it twice")
    return tree


def _from_data(data: Any, known: frozenset[str]) -> Tree:
    if isinstance(data, str):
        if data not in known:
            raise ValueError(f"there is no pane {data!r}")
        return data
    if not isinstance(data, dict) or not isinstance(data.get("parts"), list) or len(data["parts"]) < 2:
        raise ValueError("a split has at least two parts")
    weights = data.get("weights")
    good = isinstance(weights, list) and all(isinstance(weight, int | float) and weight > 0 for weight in weights)
    if not good or len(weights) != len(data["parts"]):
        raise ValueError("a split has a weight above 0 for each part")
    parts = tuple(_from_data(part, known) for part in data["parts"])
    return Split(bool(data.get("row")), parts, tuple(map(float, weights)))
