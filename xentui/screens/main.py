"""The console's one screen: the grid of panes, the command line, the status bar, and the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.screen import Screen

from xentui.screens import catalogue, layout, remembered
from xentui.screens.actions import key_name
from xentui.screens.caption import Caption
from xentui.screens.command_line import CommandLine
from xentui.screens.grid import PaneGrid
from xentui.screens.pane import Pane
from xentui.screens.status_bar import StatusBar

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult

    from xentui.app import XentuiApp
    from xentui.screens.actions import Command

NARROW = 100
"""Columns below which a pane gets the class `-narrow`."""
LEISURE = 2.0
"""Host seconds after which the start is over."""


class MainScreen(Screen[None], inherit_bindings=False):
    """Panes by the layout that is remembered for windows of this size, or the one given at first."""

    DEFAULT_CSS = """
    MainScreen { background: $background; layers: base line; }
    MainScreen.-present StatusBar { display: none; }
    MainScreen.-present Caption { display: block; }
    MainScreen.-present.-led Caption { height: 1; }
    MainScreen.-present PaneGrid > Pane, MainScreen.-present PaneGrid > Pane:focus,
    MainScreen.-present PaneGrid > Pane:focus-within { border-top: none; }
    MainScreen.-present.-led PaneGrid > Pane { border-top: heavy $primary; border-title-color: $primary; }
    MainScreen.-present.-led PaneGrid > #guide { border-top: none; }
    """
    app: XentuiApp

    def __init__(self) -> None:
        super().__init__()
        self.grid = PaneGrid("domains")
        self.line = CommandLine()
        self._filtered: Pane | None = None
        self._class = ""

    def compose(self) -> ComposeResult:
        self.bar = StatusBar(self.app.commands)
        yield Caption()
        yield self.grid
        yield self.line
        yield self.bar

    def on_mount(self) -> None:
        """What the first screen does not need is imported once that is there."""
        self.set_timer(LEISURE, self._import_help)

    @staticmethod
    def _import_help() -> None:
        from textual.widgets import Markdown  # noqa: F401

    # --- layout ------------------------------------------------------------------------------------------------------

    def first_tree(self) -> layout.Tree:
        """What is open at first in a window of this size, of the panes that there are."""
        tree: layout.Tree | None = layout.default(self.size.width)
        for name in layout.names(layout.default(self.size.width)):
            if name not in catalogue.ENTRIES and tree is not None:
                tree = layout.removed(tree, name)
        return tree or "domains"

    def _remembered_tree(self) -> layout.Tree:
        saved, problem = remembered.load("layout.json")
        if problem:
            self.app.tell(problem, "warning")
        data = saved.get(layout.size_class(self.size.width))
        if data is None:
            return self.first_tree()
        try:
            return layout.from_data(data, frozenset(catalogue.ENTRIES))
        except ValueError as error:
            self.app.tell(f"layout.json: {error}; the first layout is shown", "warning")
            return self.first_tree()

    def on_resize(self, event: events.Resize) -> None:
        """Another size class has its own layout. A pane that is maximised stays so, and has a place in it."""
        self.set_class(event.size.width < NARROW, "-narrow")
        wanted = layout.size_class(event.size.width)
        if wanted != self._class:
            self._class = wanted
            if self.app.control.staged():
                return
            tree = self._remembered_tree()
            names = layout.names(tree)
            maximised, focus = self.grid.maximised, self.focused_pane
            if maximised is not None:
                first = self._first_focus(names)
                self.show(tree if maximised in names else layout.replaced(tree, first, maximised), maximised, maximised)
                return
            self.show(tree, focus.id if focus is not None and focus.id in names else self._first_focus(names))

    @staticmethod
    def _first_focus(names: list[str]) -> str:
        return "consoles" if "consoles" in names else names[0]

    def show(self, tree: layout.Tree, focus: str, maximised: str | None = None) -> None:
        """Lay the panes out, making those that were never open, and focus one."""
        wanted = layout.names(tree)
        new = [catalogue.build(name) for name in wanted if self.grid.pane(name) is None]
        if new:
            self.grid.mount(*new)
        self.grid.apply(tree, maximised)
        pane = self.grid.pane(focus)
        if pane is not None and not self.line.is_open:  # what is being typed stays where it goes
            self.set_focus(pane)
        self.app.feed.changed = True

    def remember(self) -> None:
        """Keep the layout, which the user has changed, for the next window of this size."""
        if self._class:
            saved, problem = remembered.load("layout.json")
            saved[self._class] = layout.to_data(self.grid.arrangement)
            if not problem:
                remembered.save("layout.json", saved)

    @property
    def focused_pane(self) -> Pane | None:
        """The pane that has the focus, or in which something has it."""
        widget = self.focused
        if widget is None:
            return None
        return next((node for node in widget.ancestors_with_self if isinstance(node, Pane)), None)

    # --- keys --------------------------------------------------------------------------------------------------------

    def pane_keys(self) -> tuple[tuple[str, str], ...]:
        """The keys that the focused pane has for itself, as they are shown, and what they do: "" where it is not told.

        Of several keys for the same only the first is told of.
        """
        pane, holder = self.focused_pane, self.focused  # what a pane has to type in has keys of its own
        active = self.active_bindings.values() if pane is not None and not self.line.is_open else ()
        filters = self.app.commands["filter"].keys if holder is pane and hasattr(pane, "filter") else ()
        keys = [(key_name(key), "Filter") for key in filters[:1]]
        told = {""}
        for each in active:
            if each.node is holder:
                words = each.binding.description if each.binding.show else ""
                keys.append((key_name(each.binding.key), "" if words in told else words))
                told.add(words)
        return tuple(keys)

    @property
    def in_a_pane(self) -> bool:
        """Is something within a pane typed into, so that the table's keys do nothing?"""
        return self.focused is not None and self.focused is not self.focused_pane and self.focused_pane is not None

    def command_for(self, event: events.Key) -> Command | None:
        """What a key of the table asks for, unless the focused pane or the command line has a use for it."""
        if self.line.is_open or event.key in self.active_bindings:
            return None
        return self.app.keys.get(event.key) or self.app.keys.get(event.character or "")

    def obey_key(self, command: Command) -> None:
        """Do what a key asks for."""
        if command.prompts:
            self.open_line(":", f"{command.name} ")
        else:
            self.app.run_command(command.name, "")

    def on_key(self, event: events.Key) -> None:
        """A key that something within a pane has left."""
        command = self.command_for(event)
        self.app.feed.changed = True
        if command is not None:
            event.stop()
            event.prevent_default()
            self.obey_key(command)
        self.call_after_refresh(self.app.refresh_panes)

    # --- the command line --------------------------------------------------------------------------------------------

    def open_line(self, kind: str, text: str) -> None:
        """Type a command or a filter."""
        self._filtered = self.focused_pane
        if kind == "/" and not hasattr(self._filtered, "filter"):
            self.app.tell("this pane has nothing to filter", "warning")
            return
        if kind == "/":
            text = str(getattr(self._filtered, "filter_text", ""))
        self.line.open(kind, text, self.app.complete if kind == ":" else self._filter_completions)

    def _filter_completions(self, text: str) -> list[str]:
        complete: Any = getattr(self._filtered, "filter_completions", None)
        return list(complete(text)) if complete is not None else []

    def filter(self, text: str) -> None:
        """Filter the focused pane: its `filter(text)` raises ValueError where that is no filter."""
        pane: Any = self._filtered or self.focused_pane
        if pane is not None and hasattr(pane, "filter"):
            self.app.attempt(lambda: pane.filter(text))

    def on_command_line_done(self, event: CommandLine.Done) -> None:
        """Obey, and give the keyboard back."""
        if event.text is not None:
            if event.kind == ":":
                self.app.obey(event.text)
            else:
                self.filter(event.text)
        self._filtered = None
        self.call_after_refresh(self.app.refresh_panes)
