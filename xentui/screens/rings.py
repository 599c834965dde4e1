"""Shared rings: console, xenstore, and rings over granted pages, drawn as the paper's Figure 2, contents decoded."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.binding import Binding

from xentui.engine.views import Query
from xentui.screens.dialogs import Choice
from xentui.screens.prompt import Prompt
from xentui.screens.ring_drawing import STATES, bar, circle, legend
from xentui.screens.sheet import Line, SheetPane, beside, fit, heading, length, wrapped

_CIRCLE_ROWS = 13
"""The least room for a circle."""


class RingsPane(SheetPane):
    """`index` says which of the domain's rings is shown."""

    TITLE = "Shared rings"
    HELP: ClassVar[str] = """\
**What am I looking at?** How data moves between domains: the paper's **section 3.2**, *Data Transfer: I/O Rings*, and
its **Figure 2**. A ring is a circular queue in memory that both ends share. Descriptors go around; big data lies
outside and is only referred to.

Access is by **two pairs of producer-consumer pointers**: a domain places requests and advances a *request producer*;
the other end removes them and advances a *request consumer*. Responses come back the same way, with the roles
exchanged. Nobody waits for anybody: requests may be queued by the dozen before *one* event says that there is work, and
be answered in another order.

* `●` waits between consumer and producer; `○` is the slot of a pointer, other free slots are `◦`. Index 0 is at the
  top, indices grow clockwise.
* **console**: one ring of bytes in each direction. **xenstore**: requests and responses as messages.
* A **granted** page with a split driver's ring has all four pointers on one circle. The consumers are private to each
  side; they are shown as the ring's event thresholds tell them.
* The page does not tell how big a slot is; it is guessed from what was written to it, and **Z** says otherwise.
* The guest owns the page and may write nonsense: then the back end leaves the ring alone until it makes sense again.

Keys: **[ ]** another ring · **d** another domain · **Z** slot size · **o** who moved a pointer · **f** follow
"""
    BINDINGS: ClassVar = [
        Binding("left_square_bracket", "ring(-1)", "Ring before", show=False),
        Binding("right_square_bracket", "ring(1)", "Next ring"),
        Binding("d", "domain(1)", "Domain"),
        Binding("Z", "slot_size", "Slot size"),
        Binding("o", "who_wrote", "Who wrote"),
        Binding("f", "follow", "Follow"),
    ]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.domain: int | None = None
        self.index = 0
        self.entry = 0
        """Bytes of a slot of a granted ring; 0: as can be guessed."""

    # --- asking -----------------------------------------------------------------------------------------------------

    def whose(self) -> int | None:
        """The domain that is shown."""
        if self.domain is not None:
            return self.domain
        current = self.current_vcpu()
        return current[0] if current else None

    def chosen(self) -> dict[str, Any]:
        """Which ring."""
        listed = self.answer("rings.rings") or [{"name": "console", "reference": None}]
        found: dict[str, Any] = listed[self.index % len(listed)]
        return found

    def queries(self) -> list[Query]:
        domain = self.whose()
        if domain is None:
            return []
        chosen = self.chosen()
        which = {"domain": domain, "name": chosen["name"], "reference": chosen["reference"] or 0, "entry": self.entry}
        return [Query("rings.rings", {"domain": domain}), Query("rings.ring", which)]

    # --- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> list[Line]:
        found = self.answer("rings.ring")
        if found is None:
            return wrapped(self.failure() or "No domain runs: there are no rings.", width, "dim")
        name = dict(self.domains()).get(found["domain"], "?")
        tabs: Line = [(f"{name} d{found['domain']}  ", "title")]
        chosen = self.chosen()
        for row in self.answer("rings.rings") or []:
            label = row["name"] if row["reference"] is None else f"grant {row['reference']}"
            tabs += [(f" {label} ", "now" if row == chosen else "dim"), (" ", "")]
        parts = found["rings"]
        lines = [fit(tabs, width), fit([(f"machine frame {found['mfn']:#x}: {found['shape']}", "dim")], width)]
        each = width // len(parts)
        rows = min(21, height - 12)
        drawn = circle(parts[0], each - 2, rows) if rows >= _CIRCLE_ROWS else []
        if drawn:
            lines += drawn if len(parts) == 1 else beside(drawn, circle(parts[1], each - 2, rows), each)
        else:
            for part in parts:
                lines += bar(part, width)
        lines.append(fit(legend(parts), width))
        return [*lines, *self._pointers(parts, width), *self._contents(parts, width, height - len(lines) - 2)]

    def _pointers(self, parts: list[dict[str, Any]], width: int) -> list[Line]:
        lines: list[Line] = []
        for part in parts:
            line: Line = [(f"{part['name']:<8} ", "title")]
            for name, index, who in part["pointers"]:
                pointer: Line = [(f"{name} ", "label"), (f"{index}", ""), (f" ({who})  ", "dim")]
                if length([*line, *pointer]) > width + 2 and len(line) > 1:
                    lines.append(fit(line, width))
                    line = [(" " * 9, "")]
                line += pointer
            if not part["sane"]:
                line.append(("makes no sense", "error"))
            lines.append(fit(line, width))
        return lines

    def _contents(self, parts: list[dict[str, Any]], width: int, rows: int) -> list[Line]:
        """The latest of what went through, newest last."""
        if len(parts) == 1:
            return [heading("slots, the newest request last", width), *_messages(parts[0], width, rows - 1)]
        half = (width - 2) // 2
        if width >= 100:
            left = [heading(parts[0]["name"], half), *_messages(parts[0], half, rows - 1)]
            right = [heading(parts[1]["name"], half), *_messages(parts[1], half, rows - 1)]
            return beside(left, right, half)
        lines: list[Line] = []
        for part, share in zip(parts, (rows - rows // 3, rows // 3), strict=True):
            lines += [heading(part["name"], width, f"{part['pointers'][0][2]} → {part['pointers'][1][2]}")]
            lines += _messages(part, width, share - 1)
        return lines

    # --- keys -------------------------------------------------------------------------------------------------------

    def action_ring(self, step: int) -> None:
        """Another ring of the domain."""
        count = len(self.answer("rings.rings") or [1])
        self.index = (self.index + step) % count
        self.touch()

    def action_domain(self, step: int) -> None:
        """Another domain."""
        self.domain, self.index = self.next_domain(self.whose(), step), 0
        self.touch()

    def action_follow(self) -> None:
        """Show whoever has the processor."""
        self.domain = None
        self.touch()

    def action_slot_size(self) -> None:
        """How many bytes a slot of a granted ring has."""

        def check(text: str) -> str:
            return "" if text.isdigit() and int(text) <= 4032 else "a number of bytes, 1 to 4032; 0 guesses"

        def take(text: str | None) -> None:
            if text:
                self.entry = int(text)
                self.touch()

        found = self.answer("rings.ring")
        now = found["rings"][0].get("entry", 0) if found else 0
        question = "Bytes of a slot: block 112 (32-bit guests 108), net 12 and 8; 0 guesses"
        self.app.push_screen(Prompt(question, str(self.entry or now), check=check), take)

    def action_who_wrote(self) -> None:
        """Go to what moved one of the pointers last."""
        found = self.answer("rings.ring")
        if found is None:
            return
        options = []
        for part in found["rings"]:
            for (name, index, who), place in zip(part["pointers"], part["places"], strict=True):
                if place >= 0:
                    options.append((str(place), str(len(options) + 1), f"{part['name']}: {name} {index} ({who})"))

        def go(place: str | None) -> None:
            if place is not None:
                self.domain = found["domain"]  # whoever runs there, this ring stays in view
                self.post_message(self.WhoWrote(("ring", int(place))))

        self.app.push_screen(Choice("Who moved which pointer?", options), go)


def _messages(part: dict[str, Any], width: int, rows: int) -> list[Line]:
    """The last messages of a ring that fit; those that wait are marked."""
    if rows <= 0:
        return []
    shown = part["messages"][-rows:]
    if not shown:
        return [[("nothing went through yet", "dim")]]
    lines: list[Line] = []
    for message in shown:
        sign, style = STATES[message.get("state") or ("free" if message["taken"] else "waiting")]
        sign, style = ("  ", "") if sign == STATES["free"][0] else (f"{sign} ", style)
        lines.append(fit([(sign, style), (message["text"], style)], width))
    return lines
