"""Breaking something on purpose: a line with completion, the catalogue, and what was injected already."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding
from textual.widgets import Input

from xentui.engine.faults import CATALOGUE, FaultError, Kind, complete, parse
from xentui.engine.trace_decode import result_text, seconds
from xentui.engine.views import Query
from xentui.screens.sheet import Line, SheetPane, beside, fit, heading, window

if TYPE_CHECKING:
    from textual.app import ComposeResult

WIDE = 120
_MASK64 = (1 << 64) - 1


class FaultLine(Input):
    """Where a fault is typed. Tab completes."""

    DEFAULT_CSS = """
    FaultLine > .input--placeholder { color: $muted; }
    """
    BINDINGS: ClassVar = [
        Binding("enter", "submit", "Inject"),
        Binding("tab", "complete_word", "Complete"),
        Binding("escape", "leave", "Back to the list"),
        Binding("down", "leave", "Back", show=False),
    ]

    def action_complete_word(self) -> None:
        """Complete the last word as far as it is certain."""
        pane = self.parent
        if isinstance(pane, InjectPane):
            pane.complete_word()

    def action_leave(self) -> None:
        """Back to the lists."""
        if isinstance(self.parent, InjectPane):
            self.parent.focus()


class InjectPane(SheetPane):
    """`index` is the chosen line: of the catalogue, or behind it of what was injected."""

    TITLE = "Inject"
    HELP: ClassVar[str] = """\
**What am I looking at?** Everything that can be broken on purpose. The paper builds on the claim that one domain's
fault is its own (**section 1**: domains must be *isolated* from one another), and measures it with misbehaving
neighbours (**section 4.4**). Here a fault can be put anywhere, at a known virtual time, and again in exactly the same
way: it is part of the recording.

* **Hypercalls and events** (section 3.1): refuse a call, lose, delay, double or invent an event.
* **CPU** (2.1.2): raise an exception, flip a bit of a register. **Time** (3.3.2): steal it, jump the wall clock.
* **Memory** (2.1.1, 3.3.3): flip a bit of memory or of a page-table entry: by asking the validator, or behind its back.
* **Shared memory** (3.2): revoke a grant, put nonsense into a ring's indices.
* **Domains** (2.3): pause, crash, destroy.

What *waits* strikes when its time comes, and each strike is a record in the trace. An injection in the past begins a
new branch of history.

Keys: **↑ ↓** choose · **Enter** write the chosen fault, or inject an earlier one again · **a** write one · in the line
**Tab** completes, **Enter** injects, **Esc** leaves
"""
    BINDINGS: ClassVar = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "move(-8)", "Page up", show=False),
        Binding("pagedown", "move(8)", "Page down", show=False),
        Binding("enter", "choose", "Choose"),
        Binding("a", "write", "Write a fault"),
    ]
    DEFAULT_CSS: ClassVar[str] = """
    InjectPane FaultLine { border: none; height: 1; padding: 0 0 0 2; background: transparent; }
    InjectPane FaultLine:focus { border: none; background: $boost; }
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.index = 0
        self._top = 0
        self._shown: list[int] = []
        """The fault of each line of the catalogue."""

    def compose(self) -> ComposeResult:
        yield FaultLine(placeholder="fail hello32 mmu_update -ENOMEM every 3", select_on_focus=False)

    @property
    def line(self) -> FaultLine:
        """Where a fault is typed."""
        return self.query_one(FaultLine)

    def queries(self) -> list[Query]:
        return [Query("faults.injected"), Query("faults.names")]

    # --- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> list[Line]:
        lines: list[Line] = [[], *self._verdict(width), []]
        left = height - len(lines)
        if width >= WIDE:
            half = width // 2
            block = beside(self._catalogue(half, left), self._injected(width - half - 2, left), half)
            return lines + block
        below = max(4, min(len(self._done()) + 1, left // 3))
        return [*lines, *self._catalogue(width, left - below), *self._injected(width, below)]

    def _names(self) -> list[str]:
        return [name for _, name in self.domains()]

    def _done(self) -> list[dict[str, Any]]:
        return self.answer("faults.injected") or []

    def _verdict(self, width: int) -> list[Line]:
        """What the typed fault would do and what may come next; with nothing typed, what the chosen one does."""
        text = self.line.value
        if not text.strip():
            chosen = CATALOGUE[self.index] if self.index < len(CATALOGUE) else None
            return [fit([("  ", ""), (general(chosen) if chosen else "", "dim")], width), []]
        words, hint = complete(text, self._names(), self.answer("faults.names"))
        kinds = [kind.form for kind in CATALOGUE if kind.word == text.split()[0]]
        try:
            first: Line = [("✓ ", "green"), (parse(text, self._names()).sentence, "")]
        except FaultError as error:
            unfinished = bool(words or (hint and text.endswith(" ")))
            first = [("  ", ""), (kinds[0] if unfinished and kinds else str(error), "dim")]
        second: Line = [(f"  {hint}  ", "label"), (" ".join(words[:40]), "blue")]
        return [fit(first, width), fit(second, width)]

    def _catalogue(self, width: int, rows: int) -> list[Line]:
        lines: list[Line] = []
        section, chosen = "", 0
        self._shown = []
        for number, kind in enumerate(CATALOGUE):
            if kind.section != section:
                section = kind.section
                lines.append([(section, "label")])
                self._shown.append(number)
            here = number == self.index
            chosen = len(lines) if here else chosen
            style = "cursor" if here else ""
            lines.append([("› " if here else "  ", "blue"), *_form(kind, style)])
            self._shown.append(number)
        rows -= 1
        self._top = window(len(lines), rows, chosen, self._top)
        shown = [fit(line, width) for line in lines[self._top : self._top + rows]]
        self.spot(0, 5, width, rows, self._point)
        return [heading("what can be broken", width, f"{len(CATALOGUE)}"), *shown]

    def _injected(self, width: int, rows: int) -> list[Line]:
        done = self._done()
        lines: list[Line] = [heading("what was", width, f"{len(done)}")]
        if not done:
            return [*lines, [("Nothing was injected yet.", "dim")]]
        first = max(0, self.index - len(CATALOGUE) - rows + 2)
        for number, fault in enumerate(done[first : first + rows - 1], first):
            here = self.index == len(CATALOGUE) + number
            state = ("waits", "orange") if fault["waits"] else ("      done", "dim")
            if fault["strikes"]:
                state = (f"struck {fault['strikes']}×", "orange" if fault["waits"] else "green")
            result = result_text(fault["result"] & _MASK64) if fault["result"] else ""
            lines.append(
                fit(
                    [("› " if here else "  ", "blue"), (f"{seconds(fault['time'])[:-3]} ", "dim"),
                     (f"{state[0].strip():<10}", state[1]), (f"{fault['text']} ", "cursor" if here else ""),
                     (result, "red")],
                    width,
                )
            )  # fmt: skip
        return lines

    # --- keys -------------------------------------------------------------------------------------------------------

    def _point(self, _x: int, y: int) -> None:
        if self._top + y < len(self._shown):
            self.index = self._shown[self._top + y]

    def action_move(self, step: int) -> None:
        """Another line of the lists."""
        if self.index + step < 0:
            self.line.focus()
            return
        self.index = min(len(CATALOGUE) + len(self._done()) - 1, self.index + step)
        self.touch()

    def action_write(self) -> None:
        """Type a fault."""
        self.line.focus()

    def action_choose(self) -> None:
        """Begin the chosen fault in the line, or inject an earlier one again."""
        if self.index >= len(CATALOGUE):
            done = self._done()
            if self.index - len(CATALOGUE) < len(done):
                self.act("inject", None, done[self.index - len(CATALOGUE)]["text"])
            return
        self.line.value = self._begin(CATALOGUE[self.index])
        self.line.focus()
        self.line.cursor_position = len(self.line.value)

    def _begin(self, kind: Kind) -> str:
        """As much of a fault's text as is certain: its words up to the first argument that is open."""
        words = [kind.word]
        names = self._names()
        for element in kind.required[1:]:
            if element == "DOMAIN" and names:
                current = self.current_vcpu()
                words.append(dict(self.domains()).get(current[0], names[0]) if current else names[0])
            elif element.islower():
                words.append(element)
            else:
                return " ".join(words) + " "
        return " ".join(words)

    def complete_word(self) -> None:
        """Tab: the rest of the word that all possible words have in common, and a space behind a whole one."""
        text = self.line.value
        words, _ = complete(text, self._names(), self.answer("faults.names"))
        if not words:
            return
        last = "" if text.endswith(" ") or not text else text.split()[-1]
        common = _common(words)
        if len(common) >= len(last):
            text = text[: len(text) - len(last)] + common
        self.line.value = text + (" " if len(words) == 1 else "")
        self.line.cursor_position = len(self.line.value)

    def on_input_changed(self, event: Input.Changed) -> None:
        """What is typed is judged at once."""
        event.stop()
        self.touch()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Inject what is typed."""
        event.stop()
        text = event.value.strip()
        try:
            parse(text, self._names())
        except FaultError as error:
            self.notify(str(error), severity="error")
            return
        self.act("inject", None, text)
        self.line.value = ""


def general(kind: Kind) -> str:
    """What a fault does, with its arguments' names in the place of their values."""
    names = {name: name.upper() for name in re.findall(r"{(\w+)}", kind.sentence)}
    return kind.sentence.format(**{**names, "which": "the next"})


def _form(kind: Kind, style: str) -> Line:
    """A fault's form: words as they are, arguments in another ink."""
    line: Line = []
    for word in kind.form.split():
        name = word.strip("[]")
        ink = style or ("blue" if name.isupper() else "" if word == name and not line else "dim")
        line.append((f"{word} ", ink))
    return line


def _common(words: list[str]) -> str:
    """The beginning that all words share."""
    first, last = min(words), max(words)
    size = next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:size]
