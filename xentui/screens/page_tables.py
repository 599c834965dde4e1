"""Page tables as a tree of lines: which tables are open, the lines that follow, and what the cursor is on."""

from __future__ import annotations

from typing import Any

from xentui.engine.views import Query
from xentui.screens.sheet import Line, fit, window

_LEVELS = {1: "L1", 2: "L2", 3: "L3", 4: "L4"}
_INKS = {4: "purple", 3: "blue", 2: "green", 1: ""}


class PageTableTree:
    """Tables are asked for one at a time, when they are opened."""

    def __init__(self) -> None:
        self.open: dict[tuple[int, ...], tuple[int, int, int]] = {}
        """Path of indices to (mfn, level, virtual address at which it begins)."""
        self.cursor = 0
        self._top = 0
        self.rows: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def queries(self) -> list[Query]:
        """A question for each table that is open."""
        return [
            Query("memory.table", {"mfn": mfn, "level": level, "base": base}, f"table {path}")
            for path, (mfn, level, base) in self.open.items()
        ]

    def update(self, roots: list[dict[str, Any]], answers: dict[str, Any]) -> None:
        """Lay out the lines anew from the latest answers."""
        self.rows = []
        for number, root in enumerate(roots):
            path = (-1 - number,)
            self.rows.append((path, {**root, "root": True}))
            self._add(path, root["level"], answers)
        self.cursor = max(0, min(self.cursor, len(self.rows) - 1))

    def _add(self, path: tuple[int, ...], level: int, answers: dict[str, Any]) -> None:
        if path not in self.open:
            return
        entries = answers.get(f"table {path}")
        if not isinstance(entries, list):
            return
        for entry in entries:
            below = (*path, entry["index"])
            self.rows.append((below, {**entry, "level": level, "root": False}))
            self._add(below, level - 1, answers)

    def chosen(self) -> dict[str, Any] | None:
        """The line that the cursor is on."""
        return self.rows[self.cursor][1] if self.rows else None

    def move(self, step: int) -> None:
        """Another line."""
        self.cursor = max(0, min(len(self.rows) - 1, self.cursor + step))

    def expand(self) -> None:
        """Open the table that the line leads to, or go to its first entry if it is open."""
        if not self.rows:
            return
        path, row = self.rows[self.cursor]
        if path in self.open:
            self.move(1)
        elif row["root"]:
            self.open[path] = (row["mfn"], row["level"], 0)
        elif not row["leaf"] and row["present"] and not row["xen"]:
            self.open[path] = (row["mfn"], row["level"] - 1, row["address"])

    def collapse(self) -> None:
        """Close the line's table, or go up to the line that it is below."""
        if not self.rows:
            return
        path, _ = self.rows[self.cursor]
        if path in self.open:
            for other in [other for other in self.open if other[: len(path)] == path]:
                del self.open[other]
            return
        above = [index for index, (other, _) in enumerate(self.rows) if other == path[:-1]]
        if above:
            self.cursor = above[0]

    def draw(self, width: int, rows: int) -> list[Line]:
        """The lines that fit, around the cursor."""
        self._top = window(len(self.rows), rows, self.cursor, self._top)
        return [
            self._line(path, row, width, index == self.cursor)
            for index, (path, row) in enumerate(self.rows[self._top : self._top + rows], self._top)
        ]

    def _line(self, path: tuple[int, ...], row: dict[str, Any], width: int, here: bool) -> Line:
        style = "cursor" if here else ""
        opened = path in self.open
        if row["root"]:
            mark = "▾ " if opened else "▸ "
            now = "  ← CR3 now" if row["current"] else ""
            return fit(
                [(mark, "label"), (f"{_LEVELS[row['level']]} of {row['name']}", style or "title"), (now, "blue"),
                 (f"  {row['frame']}", "dim")],
                width,
            )  # fmt: skip
        leads = not row["leaf"] and row["present"] and not row["xen"]
        mark = "▾ " if opened else "▸ " if leads else "  "
        digits = 8 if row["address"] < 1 << 32 else 16
        ink = "dim" if row["xen"] or not row["present"] else _INKS[row["level"]]
        line: Line = [
            ("  " * (len(path) - 1), ""),
            (mark, "label"),
            (f"{_LEVELS[row['level']]}[{row['index']:>3}] ", style or ink),
            (f"{row['address']:0{digits}x} ", style or "dim"),
            (f"→ {row['mfn']:<6x} ", style),
            (f"{row['flags']:<17} ", "orange" if "RW" in row["flags"].split() else "label"),
            ("Xen's" if row["xen"] else row["target"], "dim"),
        ]
        return fit(line, width)
