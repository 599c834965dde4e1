"""The commands that concern the screen: panes, layout, help, theme, the command line, leaving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xentui.screens import catalogue, layout
from xentui.screens.actions import BACK, key_name
from xentui.screens.control import CommandError, Control
from xentui.screens.dialogs import Choice, Help, Jump, Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.screens.grid import PaneGrid

RESIZE = 1.25


class Arrange(Control):
    """Adds to the engine's commands those of the screen."""

    @property
    def grid(self) -> PaneGrid:
        return self.app.main.grid

    @property
    def focused(self) -> str:
        """The name of the pane that has the focus, or the first one's."""
        pane = self.app.main.focused_pane
        return pane.id or "" if pane is not None else layout.names(self.grid.shown)[0]

    def show(self, tree: layout.Tree, focus: str, maximised: str | None = None) -> None:
        """Lay the panes out anew and focus one."""
        changed = tree != self.grid.arrangement
        self.app.main.show(tree, focus, maximised)
        if changed:
            self.app.main.remember()

    def __getattr__(self, name: str) -> Callable[[str], None]:
        """`do_pane_trace` and the like: one for each pane of the catalogue."""
        pane = name.removeprefix("do_pane_")
        if pane == name or pane not in catalogue.ENTRIES:
            raise AttributeError(name)
        return lambda argument: self.open_pane(pane)

    def open_pane(self, name: str) -> None:
        """Focus a pane; one that is not open takes the focused one's place."""
        grid = self.grid
        if grid.maximised is not None:
            tree = (
                grid.arrangement
                if name in layout.names(grid.arrangement)
                else layout.replaced(grid.arrangement, grid.maximised, name)
            )
            self.show(tree, name, name)
        elif name in layout.names(grid.arrangement):
            self.show(grid.arrangement, name)
        else:
            self.show(layout.replaced(grid.arrangement, self.focused, name), name)

    def _cycle(self, step: int) -> None:
        grid = self.grid
        names = layout.names(grid.arrangement)
        name = names[(names.index(self.focused) + step) % len(names)] if self.focused in names else names[0]
        self.show(grid.arrangement, name, name if grid.maximised else None)

    def do_next_pane(self, argument: str) -> None:
        self._cycle(1)

    def do_previous_pane(self, argument: str) -> None:
        self._cycle(-1)

    def do_jump(self, argument: str) -> None:
        panes = [(pane.id or "", pane.TITLE, pane.region) for pane in self.grid.panes]
        self.app.push_screen(Jump(panes), lambda name: self.open_pane(name) if name else None)

    def do_maximise(self, argument: str) -> None:
        focus = self.focused
        self.show(self.grid.arrangement, focus, None if self.grid.maximised else focus)

    def _split(self, argument: str, row: bool) -> None:
        if argument:
            self._split_with(argument, row)
            return
        options = [(entry.name, entry.key, f"{entry.title:16} {entry.about}") for entry in catalogue.ENTRIES.values()]
        title = "Which pane beside this one?" if row else "Which pane below this one?"
        self.app.push_screen(Choice(title, options), lambda name: self._split_with(name, row) if name else None)

    def _split_with(self, name: str, row: bool) -> None:
        if name not in catalogue.ENTRIES:
            raise CommandError(f"there is no pane {name!r}: {', '.join(catalogue.ENTRIES)}")
        focused = self.focused
        _, _, width, height = self.grid.places[focused]
        if (width < 2 * layout.LEAST_WIDTH) if row else (height < 2 * layout.LEAST_HEIGHT):
            raise CommandError("there is no room to split this pane; z gives one pane all of it")
        self.show(layout.split(self.grid.arrangement, focused, name, row), name)

    def do_split(self, argument: str) -> None:
        self._split(argument, True)

    def do_split_below(self, argument: str) -> None:
        self._split(argument, False)

    def do_close(self, argument: str) -> None:
        focus = self.focused
        tree = layout.removed(self.grid.arrangement, focus)
        if tree is None:
            raise CommandError("the last pane stays; a digit opens another in its place")
        self.show(tree, layout.names(tree)[0])

    def _move(self, direction: str) -> None:
        focus = self.focused
        other = layout.neighbour(self.grid.places, focus, direction)
        if other is None:
            raise CommandError(f"there is no pane {direction} of this one")
        self.show(layout.swapped(self.grid.arrangement, focus, other), focus)

    def do_move_left(self, argument: str) -> None:
        self._move("left")

    def do_move_right(self, argument: str) -> None:
        self._move("right")

    def do_move_up(self, argument: str) -> None:
        self._move("up")

    def do_move_down(self, argument: str) -> None:
        self._move("down")

    def _resize(self, row: bool, factor: float) -> None:
        self.show(layout.resized(self.grid.arrangement, self.focused, row, factor), self.focused)

    def do_wider(self, argument: str) -> None:
        self._resize(True, RESIZE)

    def do_narrower(self, argument: str) -> None:
        self._resize(True, 1 / RESIZE)

    def do_taller(self, argument: str) -> None:
        self._resize(False, RESIZE)

    def do_shorter(self, argument: str) -> None:
        self._resize(False, 1 / RESIZE)

    def do_layout(self, argument: str) -> None:
        tree = self.app.main.first_tree()
        self.show(tree, layout.names(tree)[0])

    # --- console -----------------------------------------------------------------------------------------------------

    def do_type(self, argument: str) -> None:
        name = self.domain(argument)
        self.open_pane("consoles")
        self.app.type_into(name)

    def do_filter(self, argument: str) -> None:
        if argument:
            self.app.main.filter(argument)
        else:
            self.app.main.open_line("/", "")

    def do_command(self, argument: str) -> None:
        self.app.main.open_line(":", "")

    def do_palette(self, argument: str) -> None:
        self.app.action_command_palette()

    def do_theme(self, argument: str) -> None:
        self.app.theme = "xentui-light" if self.app.theme == "xentui-dark" else "xentui-dark"

    def do_screenshot(self, argument: str) -> None:
        path = Path(argument or "xentui.svg")
        # once the line that this was typed in is gone from the screen
        self.app.call_after_refresh(lambda: self.app.attempt(lambda: self._picture(path)))

    def _picture(self, path: Path) -> None:
        text = self.app.screen_text() if path.suffix == ".txt" else self.app.screen_svg()
        path.write_text(text)
        self.app.tell(f"the screen is in {path}")

    def do_help(self, argument: str) -> None:
        pane = self.app.main.focused_pane
        text = f"## {pane.TITLE}\n\n{pane.HELP.strip()}" if pane is not None and pane.HELP else ""
        groups: dict[str, list[tuple[str, str, str]]] = {}
        for command in self.app.commands.values():
            if command.group == BACK:
                continue  # told with its twin
            keys = " ".join(key_name(key) for key in command.keys)
            twin = self.app.commands.get(command.reverse)
            back = f"; {key_name(twin.keys[0])} back" if twin is not None and twin.group == BACK and twin.keys else ""
            row = (keys, f"{command.name} {command.usage}".rstrip(), command.help + back)
            groups.setdefault(command.group, []).append(row)
        self.app.push_screen(Help(text, groups))

    def do_quit(self, argument: str) -> None:
        if not self.app.acted or isinstance(self.app.screen, Question):
            self.app.leave()
            return
        question = Question(
            "What you did to this run (typed, injected, stepped aside) is not saved; :save FILE keeps it.", "leave"
        )
        self.app.push_screen(question, lambda yes: self.app.leave() if yes else None)
