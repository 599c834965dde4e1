"""The grid that holds the panes: every pane is its child for good, and the layout's tree says which are seen where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.containers import Container
from textual.geometry import NULL_OFFSET, NULL_SPACING, Region
from textual.layout import Layout, WidgetPlacement

from xentui.screens import layout as tree_layout
from xentui.screens.layout import Place, Tree
from xentui.screens.pane import Pane

if TYPE_CHECKING:
    from textual.geometry import Size
    from textual.layout import ArrangeResult
    from textual.widget import Widget


class _TreeLayout(Layout):
    """Places children by the grid's tree; children are found by their pane's name, which is their id."""

    name = "tree"

    def __init__(self, grid: PaneGrid) -> None:
        self.grid = grid

    def arrange(self, parent: Widget, children: list[Widget], size: Size, greedy: bool = True) -> ArrangeResult:
        found = tree_layout.places(self.grid.shown, size.width, size.height)
        return [
            WidgetPlacement(Region(*found[child.id]), NULL_OFFSET, NULL_SPACING, child)
            for child in children
            if child.id in found
        ]


class PaneGrid(Container):
    """All panes; `arrangement` says how the open ones lie, `maximised` names one that has all the room."""

    DEFAULT_CSS = """
    PaneGrid { height: 1fr; width: 1fr; overflow: hidden; }
    PaneGrid > Pane {
        width: 1fr; height: 1fr; background: $background; color: $foreground;
        border-top: solid $panel; border-title-color: $muted; border-title-style: none;
        border-subtitle-color: $muted; padding: 0 0;
    }
    PaneGrid > Pane:focus, PaneGrid > Pane:focus-within {
        border-top: heavy $primary; border-title-color: $primary; border-title-style: bold;
    }
    """

    def __init__(self, tree: Tree) -> None:
        super().__init__(id="grid")
        self.arrangement: Tree = tree
        self.maximised: str | None = None
        self._tree_layout = _TreeLayout(self)

    @property
    def layout(self) -> Layout:
        """The layout that follows the tree."""
        return self._tree_layout

    @property
    def shown(self) -> Tree:
        """The tree as it is seen: one pane while it is maximised."""
        return self.maximised or self.arrangement

    @property
    def places(self) -> dict[str, Place]:
        """Where the panes that are seen lie within the grid."""
        return tree_layout.places(self.shown, self.size.width, self.size.height)

    @property
    def panes(self) -> list[Pane]:
        """The panes that are seen, in reading order."""
        by_name = {child.id: child for child in self.children}
        return [pane for name in tree_layout.names(self.shown) if isinstance(pane := by_name.get(name), Pane)]

    def pane(self, name: str) -> Pane | None:
        """A pane that has been opened, seen or not."""
        return next((child for child in self.children if child.id == name and isinstance(child, Pane)), None)

    def apply(self, tree: Tree, maximised: str | None = None) -> None:
        """Show the panes as a tree has them."""
        self.arrangement, self.maximised = tree, maximised
        seen = tree_layout.names(self.shown)
        for child in self.children:
            child.display = child.id in seen
            child.refresh(layout=True)  # of a widget whose layout changes Textual forgets its parent's places
