"""The commands for an audience: presentation mode, guided demonstrations, and what is kept of a session to be shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xentui.screens import guide, layout, themes
from xentui.screens.arrange import Arrange
from xentui.screens.cast import Cast
from xentui.screens.control import CommandError
from xentui.screens.dialogs import Choice, Question
from xentui.screens.feed import RATE
from xentui.screens.sheet import SheetPane

if TYPE_CHECKING:
    from textual.timer import Timer

    from xentui.app import XentuiApp
    from xentui.tour import Tour


class Stage(Arrange):
    """All commands: the engine's, the screen's, and these."""

    def __init__(self, app: XentuiApp) -> None:
        super().__init__(app)
        self.drawn = False
        """Has the screen changed since the cast's last frame?"""
        self._cast: Cast | None = None
        self._cast_timer: Timer | None = None
        self._before: tuple[str, layout.Tree, str | None] | None = None  # theme, layout, maximised: while presenting
        self._shown = ["crossings"]  # beside the guide

    # --- presentation mode -------------------------------------------------------------------------------------------

    @property
    def presenting(self) -> bool:
        """Is this before an audience?"""
        return self._before is not None

    def do_present(self, argument: str) -> None:
        """The pane that has the focus (in a demonstration, guide and pane), nothing else; and back."""
        main, focus = self.app.main, self.focused
        if self._before is not None:
            theme, tree, maximised = self._before
            self._before = None
            main.remove_class("-present", "-led")
            self.app.theme = theme
            if self.app.tour is not None:
                self._show_step(focus)
            else:
                self.app.main.show(tree, focus if focus in layout.names(tree) else layout.names(tree)[0], maximised)
            return
        self._before = (self.app.theme, self.grid.arrangement, self.grid.maximised)
        main.add_class("-present")
        main.set_class(self.app.tour is not None, "-led")
        self.app.theme = themes.CONTRAST.name
        self.show(self.grid.arrangement, focus)

    def show(self, tree: layout.Tree, focus: str, maximised: str | None = None) -> None:
        """Before an audience one pane is shown; what a presentation or a demonstration shows is not remembered."""
        if self._before is not None:
            if self.app.tour is None:
                self.app.main.show(focus, focus)
                return
            if focus != "guide":
                self._shown = [focus]
            self._show_step(focus)
        elif self.app.tour is not None:
            self.app.main.show(tree, focus, maximised)
        else:
            super().show(tree, focus, maximised)

    def staged(self) -> bool:
        """The window has another size: show again what a presentation or a demonstration shows. False: neither is."""
        if self.app.tour is not None:
            self._show_step(self.focused if self.app.main.focused_pane is not None else "guide")
        elif self._before is not None:
            self.app.main.show(self.focused, self.focused)
        return self.presenting or self.app.tour is not None

    # --- demonstrations ----------------------------------------------------------------------------------------------

    def do_demo(self, argument: str) -> None:
        from xentui import demonstration
        from xentui.console import checked_demonstration

        if argument:
            told = checked_demonstration(argument)
            self._leave_for(argument if argument.endswith(".md") else told.name)
            return
        all_told = [demonstration.load(name) for name in demonstration.names()]
        options = [(each.name, str(number), each.title) for number, each in enumerate(all_told, 1)]
        self.app.push_screen(Choice("Demonstrations", options), lambda name: self._leave_for(name) if name else None)

    def _leave_for(self, name: str) -> None:
        if not self.app.acted:
            self.app.start_demonstration(name)
            return
        question = Question("The demonstration brings its own guests: this run, which is not saved, ends.", "show it")
        self.app.push_screen(question, lambda yes: self.app.start_demonstration(name) if yes else None)

    def do_next(self, argument: str) -> None:
        self._tour().forward()

    def do_previous(self, argument: str) -> None:
        self._tour().back()

    def _tour(self) -> Tour:
        if self.app.tour is None:
            raise CommandError("no demonstration is being shown: :demo lists them")
        return self.app.tour

    def arrive(self) -> None:
        """A station of the demonstration is reached: show what its step shows."""
        tour = self._tour()
        shows = tour.step.shows if tour.step is not None else {}
        focus = tour.shown_now("focus")
        status = self.app.feed.status
        if status is not None and focus in {domain.name for domain in status.domains}:
            self.app.chosen_domain = focus
        self._shown = guide.panes_of(shows.get("show", "")) or ["crossings"]
        self._show_step("guide")
        self._aim(shows, focus)
        self._filter_trace(tour.shown_now("filter"))

    def _aim(self, shows: dict[str, str], focus: str) -> None:
        """Let the panes show the domain and the part that the step is about: the same, forwards and backwards."""
        domains = {domain.name: domain.id for domain in self.status.domains} if self.app.feed.status else {}
        for name in self._shown:
            pane: Any = self.grid.pane(name)
            if isinstance(pane, SheetPane) and hasattr(pane, "domain"):
                pane.domain = domains.get(focus)
        for name, part in guide.parts_of(shows.get("show", "")):
            pane = self.grid.pane(name)
            if hasattr(pane, "choose_part"):
                pane.choose_part(part)

    def _show_step(self, focus: str) -> None:
        """The guide, and the panes of the step."""
        size = self.app.size
        tree = guide.tree_for(self._shown, size.width, size.height, self.presenting)
        self.app.main.show(tree, focus if focus in layout.names(tree) else "guide")
        pane = self.grid.pane("guide")
        if isinstance(pane, guide.Guide) and pane.is_mounted:
            pane.update_text()

    def _filter_trace(self, text: str) -> None:
        pane: Any = self.grid.pane("trace")
        if pane is not None and hasattr(pane, "filter"):
            pane.show({}, self.app.feed.status)  # it may have been opened just now, and know no domain yet
            self.app.attempt(lambda: pane.filter(text))

    # --- a cast of the session ---------------------------------------------------------------------------------------

    def do_cast(self, argument: str) -> None:
        """Begin to record the screen, or end it."""
        if self._cast is not None:
            if argument:
                raise CommandError(f"the screen is being recorded to {self._cast.path}: :cast ends that")
            path = self._cast.path
            self.end_cast()
            self.app.tell(f"the cast is in {path}: asciinema play {path}")
            return
        path = Path(argument or "xentui.cast")
        try:
            self._cast = Cast(self.app, path)
        except OSError as error:
            raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from None
        self._cast_timer = self.app.set_interval(1 / RATE, self._cast_frame)
        self.app.tell(f"the screen is recorded to {path} until :cast")

    def _cast_frame(self) -> None:
        if self._cast is None or not self.drawn:
            return
        self.drawn = False
        try:
            self._cast.frame()
        except OSError as error:
            path, self._cast = self._cast.path, None
            self.end_cast()
            self.app.tell(f"{path}: the cast ends here: {error.strerror or error}", "error")

    def end_cast(self) -> None:
        """The last frame."""
        if self._cast_timer is not None:
            self._cast_timer.stop()
        cast, self._cast, self._cast_timer = self._cast, None, None
        if cast is not None:
            cast.close()
