"""What every pane of the console is: it says what it wants to know, and shows the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textual.message import Message
from textual.widget import Widget

if TYPE_CHECKING:
    from xentui.engine.views import Query


class Pane(Widget, can_focus=True):
    """A part of a screen. Subclasses set the class variables and override `queries` and `show`."""

    TITLE: ClassVar[str] = ""
    """Its name on the border, in the palette and in the jump mode."""
    HELP: ClassVar[str] = ""
    """Markdown: what am I looking at, in the paper's words, with the section of the paper."""

    @dataclass
    class Goto(Message):
        """Move everything to a moment: a position (half ns), a virtual time (ns) or a trace record's number."""

        position: int | None = None
        time: int | None = None  # type: ignore[assignment]
        record: int | None = None

        def __post_init__(self) -> None:
            """Textual keeps in `time` when a message was made, by the host's clock: here it is the virtual time."""
            wanted = self.time
            super().__post_init__()
            self.time = wanted

    @dataclass
    class WhoWrote(Message):
        """Go to what wrote a value: ("pte", machine address), ("port", domain, port), ("memory", domain, vcpu,
        address, size), ("register", domain, vcpu, name), ("ring", machine address of a ring's pointer), ("frame",
        machine frame, whose type count or owner is meant)."""

        what: tuple[Any, ...]

    @dataclass
    class Act(Message):
        """Do something to the machine from outside: an `actions.Action`."""

        action: Any

    @dataclass
    class Run(Message):
        """Run until a condition (a breakpoint used once), or freely."""

        until: Any = None

    @dataclass
    class Break(Message):
        """Set a breakpoint at a virtual address of a domain, or take away the one that is there, by its number."""

        domain: int
        address: int
        number: int | None = None

    @dataclass
    class RunTo(Message):
        """Run until a domain is about to execute the instruction at a virtual address."""

        domain: int
        address: int

    def queries(self) -> list[Query]:
        """What to ask at each refresh while the pane is visible."""
        return []

    def show(self, answers: dict[str, Any], status: Any) -> None:
        """Draw the answers, keyed by `Query.key`; a ViewError stands in the place of an answer that failed."""
