"""What comes from the engine, and who gets it: messages as they arrive, questions at the screen's rate.

The panes that are seen say what they want to know; 16 times a second, and only when something has changed, one `ask`
carries all their questions. No second one is sent before the first is answered, so that a busy engine is never
asked faster than it answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.views import ViewError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.views import Query
    from xentui.screens.pane import Pane

RATE = 16
"""Refreshes a second: at 15, a timer that is a little late would miss what is promised."""


class Feed:
    """Between the engine and the panes. `panes()` gives those that are seen."""

    def __init__(self, engine: Any, panes: Callable[[], list[Pane]]) -> None:
        self.engine, self.panes = engine, panes
        self.status: Any = None
        self.failure = ""
        self.on_ended: Callable[[str, str], None] = lambda domain, reason: None
        """A domain, by name, has shut down, and how."""
        self.on_failure: Callable[[str, str, str], None] = lambda text, outlook, details: None
        self.on_notice: Callable[[str], None] = lambda text: None
        self.changed = True
        """Has anything happened since the last refresh?"""
        self.strict = False
        """Raise what goes wrong in a pane (for tests)."""
        self._faulty: set[Pane] = set()
        self._asked: tuple[int, list[tuple[Pane, list[Query]]]] | None = None
        self._missed = False
        """Was it time to refresh while an answer was awaited? Then that is done as soon as it is there."""
        self._branching = False
        """Was a branch begun whose status has not come yet? What happens there is new, and the status still old."""

    def pump(self) -> None:
        """Take what the engine has sent; called when its descriptor can be read."""
        for event in self.engine.pump():
            # by name: the console starts while the engine's modules are still being imported
            handler = getattr(self, f"_{type(event).__name__.lower()}", None)
            self.changed = True
            if handler is not None:
                handler(event)

    def _statusevent(self, event: Any) -> None:
        self.status = self.engine.status
        self._branching = False
        if not self.status.failed:
            self.failure = ""  # gone back to a moment before it died

    def _ended(self, event: Any) -> None:
        if self.status is None or self.status.live or self._branching:
            self.on_ended(event.name, event.reason)

    def _notice(self, event: Any) -> None:
        self.on_notice(event.text)

    def _branched(self, event: Any) -> None:
        self._branching = True
        self.on_notice(
            f"history was left: this is branch {event.branch} now; branch {event.old} stays (:branch {event.old})"
        )

    def _failed(self, event: Any) -> None:
        """The engine's process is no more; the console stays."""
        if not self.failure:
            self.failure = event.text or "it ended without a word"
            self._asked = None
            self.on_failure(self.failure, event.outlook, event.details)

    def _reply(self, event: Any) -> None:
        if self._asked is None or event.id != self._asked[0]:
            return
        asked, self._asked = self._asked[1], None
        values = iter(event.answers)
        for pane, queries in asked:
            answers = {query.key: next(values, ViewError("no answer")) for query in queries}
            self._show(pane, answers)
        if self._missed:
            self.refresh()

    def _show(self, pane: Pane, answers: dict[str, Any]) -> None:
        """Let a pane draw. A fault of its own is told, and costs the user that pane at most."""
        if not pane.is_attached:
            return
        try:
            pane.show(answers, self.status)
        except Exception as error:
            if self.strict:
                raise
            if pane not in self._faulty:
                self._faulty.add(pane)
                self.on_notice(f"a fault of xentui's own in the pane {pane.TITLE}: {type(error).__name__}: {error}")

    def refresh(self) -> bool:
        """Ask what the panes want to know, if anything has changed; whether something was done."""
        self._missed = self._asked is not None
        if not self.changed or self.status is None or self._missed:
            return False
        self.changed = False
        wanted = [(pane, pane.queries()) for pane in self.panes()]
        asking = [(pane, queries) for pane, queries in wanted if queries]
        for pane, queries in wanted:
            if not queries or self.failure:
                self._show(pane, {})
        if asking and not self.failure:
            self._asked = (self.engine.ask([query for _, queries in asking for query in queries]), asking)
        return True
