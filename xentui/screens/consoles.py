"""A terminal for each domain, and the hypervisor's log, a tab each; they show what they showed at the moment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.strip import Strip

from xentui.screens.rows import RowPane
from xentui.screens.themes import TERMINAL_BACKGROUND, TERMINAL_FOREGROUND
from xentui.screens.words import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual import events
    from textual.selection import Selection

    from xentui.app import XentuiApp

LOG = 0
"""The hypervisor's log stands where a domain's number would."""
FEED_SECONDS = 0.03
"""Host time a refresh that a terminal may take for what a guest has printed; the rest waits for the next."""
HIDDEN_SECONDS = 0.01
"""The same for all terminals together that are not seen."""
LATE = 5_000_000_000
"""A guest's question that is so many virtual nanoseconds old (the pane was not open) is not answered any more: the
answer would be taken for something typed."""
FEED_BYTES = 2048
LEAVE_KEYS = ("ctrl+right_square_bracket", "ctrl+]", "f12")
_EMPTY = Style(color=TERMINAL_FOREGROUND, bgcolor=TERMINAL_BACKGROUND)


class Screen:
    """A terminal, and how much of what was printed it has been fed."""

    def __init__(self) -> None:
        from xentui.screens.terminal import Terminal  # it takes its time to import: the screen is there before

        self._new = Terminal
        self.terminal = Terminal()
        self.fed = 0
        """Bytes, counted from the first that was ever printed."""
        self.answered = 0
        """Up to here the guest's questions have been answered: nothing is answered twice."""
        self.branch = 0
        self.waiting = b""

    def is_behind(self, written: int, status: Any) -> bool:
        """Is there anything to take, of so many bytes that were printed until now?"""
        return written != self.fed + len(self.waiting) or status.branch != self.branch

    def take(self, printed: bytes, status: Any, start: int = 0) -> None:
        """What is to be shown: all that was printed until now, from byte `start` on. Going back begins anew."""
        end = start + len(printed)
        if status.branch != self.branch or end < self.fed:
            self.terminal, self.fed = self._new(self.terminal.width, self.terminal.height), start
            if status.branch != self.branch:
                self.answered = min(self.answered, end)
        self.branch = status.branch
        self.fed = max(self.fed, start)  # what is no longer kept was not seen
        self.waiting = printed[self.fed - start :]

    def feed(self, deadline: float, live: bool) -> bytes:
        """Feed what waits until a host time; the answers to what the guest has asked."""
        answers = b""
        while self.waiting and time.monotonic() < deadline:
            piece, self.waiting = self.waiting[:FEED_BYTES], self.waiting[FEED_BYTES:]
            self.terminal.feed(piece)
            self.fed += len(piece)
            said = self.terminal.take_answers()
            if live and self.fed > self.answered:
                answers += said
            self.answered = max(self.answered, self.fed)
        return answers


class Consoles(RowPane):
    """Tabs in the first line, the chosen terminal below, scroll-back above its screen."""

    TITLE = "Consoles"
    HELP = """
Each domain's **console**: a real terminal (cursor, colours, alternate screen) on the domain's console ring, a page of
memory that it shares with domain 0 (the rings of section 3.2 of the paper). The tab *Xen* is the hypervisor's own log,
what `xl dmesg` shows.

A terminal has 80 columns and 24 rows; `:resize 100x30` gives it others, `:resize fit` those of the pane. A PV console
cannot tell that to its guest: there `stty cols 100 rows 30` (or `resize`, which asks the terminal) does.

`enter` or `t` gives the keyboard to the domain; **`ctrl+]` or `F12`** takes it back. `←` and `→` change the tab, `PgUp`
and `PgDn` scroll back, `y` copies what is seen (or what was selected with the mouse). Pasting works while you type.

When you go back in time the terminal shows what it then showed. What you type in the past begins a new branch of
history; the old one stays.
"""
    COMPONENT_CLASSES: ClassVar[set[str]] = {"tabs--other", "tabs--chosen", "tabs--typing", "tabs--new"}
    DEFAULT_CSS = """
    Consoles .tabs--other { color: $muted; background: $background; }
    Consoles .tabs--new { color: $secondary; background: $background; }
    Consoles .tabs--chosen { color: $foreground; background: $panel; text-style: bold; }
    Consoles .tabs--typing { color: $background; background: $accent; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "type", show=False),
        Binding("left", "tab(-1)", show=False),
        Binding("right", "tab(1)", "Next terminal"),
        Binding("pageup", "scroll_lines(-1)", show=False),
        Binding("pagedown", "scroll_lines(1)", show=False),
        Binding("up", "scroll_by(-1)", show=False),
        Binding("down", "scroll_by(1)", show=False),
        Binding("end", "bottom", show=False),
        Binding("y", "copy", "Copy"),
    ]
    ALLOW_SELECT = True
    app: XentuiApp

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.screens: dict[int, Screen] = {}
        self.names: dict[int, str] = {LOG: "Xen"}
        self.chosen = LOG
        self.typing = False
        self.back = 0
        """Rows that the view is scrolled back."""
        self._printed: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._followed = ""
        self._alive: set[int] = set()
        """Numbers of the domains that there were when this was last looked at."""
        self._to_type = ""
        """Into which domain to type as soon as it is known: a pane that was just opened knows none."""
        self._status: Any = None

    # --- what has been printed ---------------------------------------------------------------------------------------

    def show(self, answers: dict[str, Any], status: Any) -> None:
        """Take what was printed until the moment that is shown."""
        self._status = status
        domains = {domain.id: domain for domain in status.domains}
        gone = {number: name for number, name in self.names.items() if number in self.app.engine.consoles}
        self.names = {**gone, **{number: plain(domain.name) for number, domain in domains.items()}, LOG: "Xen"}
        for domain in status.domains:
            self._printed[domain.id] = domain.written
        if self._to_type:
            name, self._to_type = self._to_type, ""
            self._begin_typing(name)
        if self.typing and self.chosen not in domains:
            self.end_typing()
        if self.app.chosen_domain != self._followed and not self.typing:
            if self._followed and self._followed not in {domain.name for domain in status.domains}:
                self._followed = self.app.chosen_domain  # a domain has ended: its last words stay
            else:
                self._follow(self.app.chosen_domain)
        self._go_along_with_a_reboot(domains)
        if self.chosen not in self.names:
            self._choose(next(iter(domains), LOG))
        before = self._printed_rows()
        self._feed(self.chosen, status, time.monotonic() + FEED_SECONDS)
        if self.back:  # what is read there stays where it is while more arrives below
            self.action_scroll_by(min(0, before - self._printed_rows()))
        deadline = time.monotonic() + HIDDEN_SECONDS
        for number in domains:
            if number != self.chosen:  # its guest may ask something, too
                self._feed(number, status, deadline)
        self._seen[self.chosen] = self._printed.get(self.chosen, 0)
        self.repaint()

    def _printed_rows(self) -> int:
        """How many rows the chosen terminal has had so far."""
        terminal = self._screen(self.chosen).terminal
        return terminal.scrolled + terminal.used_rows

    def _go_along_with_a_reboot(self, domains: Mapping[int, Any]) -> None:
        """Where the domain that is seen has just made way to another of its name, see that one."""
        if self.chosen in self._alive and self.chosen not in domains:
            again = [number for number in domains if self.names[number] == self.names.get(self.chosen)]
            if again:
                self._choose(again[-1])
        self._alive = set(domains)

    def _feed(self, number: int, status: Any, deadline: float) -> None:
        """Let a terminal obey what was printed, until a host time, and answer what it was asked."""
        screen = self._screen(number)
        width = max(2, self.size.width)
        if (
            number == LOG and screen.terminal.width != width
        ):  # nobody draws on it: its lines are as long as there is room
            del self.screens[LOG]
            screen = self._screen(LOG)
            screen.terminal.resize(width, screen.terminal.height)
        written = [domain.written for domain in status.domains if domain.id == number]
        if not written or screen.is_behind(written[0], status):  # what it said last came after it was last listed
            log = self.app.engine.consoles.get(number)
            start = log.start if log is not None and number != LOG else 0
            screen.take(self._text(number, status), status, start)
            if log is not None and log.pieces and status.time - log.pieces[-1][0] > LATE:
                screen.answered = max(screen.answered, screen.fed + len(screen.waiting))
        said = screen.feed(deadline, status.live and number != LOG)
        if said:
            acted = self.app.acted
            self._send(said, number)
            self.app.acted = acted  # that was not the user
        if screen.waiting:
            self.app.feed.changed = True

    def _screen(self, number: int) -> Screen:
        if number not in self.screens:
            self.screens[number] = Screen()
        return self.screens[number]

    def _text(self, number: int, status: Any) -> bytes:
        if number == LOG:
            lines = [plain(line) for when, line in self.app.engine.log if when <= status.time]
            return "".join(f"{line}\r\n" for line in lines).encode()
        log = self.app.engine.consoles.get(number)
        return b"" if log is None else b"".join(data for _, data in log.upto(status.time))

    def _note(self) -> str:
        """What is to be known of the rows that are seen."""
        if self.back:
            return f"{self.back} rows back, end returns "
        return "" if self._status is None or self._status.live else "as it was then "

    def _follow(self, name: str) -> None:
        """Show the domain that was chosen elsewhere."""
        self._followed = name
        for number, known in self.names.items():
            if known == plain(name) and number != LOG:
                self._choose(number)

    def _choose(self, number: int) -> None:
        self.chosen, self.back = number, 0
        self.app.feed.changed = True

    # --- typing ------------------------------------------------------------------------------------------------------

    def begin_typing(self, domain: str) -> None:
        """Give the keyboard to a domain."""
        if self._status is None:
            self._to_type = domain
        else:
            self._begin_typing(domain)

    def _begin_typing(self, domain: str) -> None:
        self._follow(domain)
        if self.chosen == LOG:
            return
        self.typing, self.back = True, 0
        self.app.chosen_domain = self._followed = domain
        self.app.typing = domain
        self.focus()
        self.app.refresh_panes()
        self.repaint()

    def end_typing(self) -> None:
        """Take the keyboard back."""
        self.typing = False
        self.app.typing = ""
        self.app.feed.changed = True
        self.app.refresh_panes()
        self.repaint()

    def on_blur(self) -> None:
        """Something else has the keyboard."""
        if self.typing:
            self.end_typing()

    def on_key(self, event: events.Key) -> None:
        """While typing, every key but two is the guest's."""
        if not self.typing:
            return
        event.stop()
        event.prevent_default()
        if event.key in LEAVE_KEYS:
            self.end_typing()
            return
        self._send(self.screens[self.chosen].terminal.key(event.key, event.character))

    def on_paste(self, event: events.Paste) -> None:
        """Pasted text goes to the guest while typing."""
        if self.typing:
            event.stop()
            self._send(self.screens[self.chosen].terminal.paste(event.text))

    def _send(self, data: bytes, number: int | None = None) -> None:
        names = {domain.id: domain.name for domain in self._status.domains} if self._status else {}
        name = names.get(self.chosen if number is None else number)
        if data and name is not None:
            self.app.attempt(lambda: self.app.control.act("type", name, data))

    def action_type(self) -> None:
        """Type into the domain whose tab is chosen."""
        if self.chosen != LOG:
            self.begin_typing(self.names[self.chosen])

    def resize(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Give the chosen terminal a size (None: what the pane has room for); the size."""
        width, height = size or (self.size.width, self._height)
        self._screen(self.chosen).terminal.resize(width, height)
        self.repaint()
        return width, height

    # --- moving about ------------------------------------------------------------------------------------------------

    def action_tab(self, step: int) -> None:
        """The next tab, or the one before."""
        numbers = self._tabs()
        number = numbers[(numbers.index(self.chosen) + step) % len(numbers)] if self.chosen in numbers else numbers[0]
        self._choose(number)
        if self._status is not None and number in {domain.id for domain in self._status.domains}:
            self.app.chosen_domain = self._followed = self.names[number]

    def _tabs(self) -> list[int]:
        return [*(number for number in sorted(self.names) if number != LOG), LOG]

    def action_scroll_lines(self, pages: int) -> None:
        """A page up or down."""
        self.action_scroll_by(pages * max(1, self._height - 1))

    def action_scroll_by(self, rows: int) -> None:
        """Some rows up (negative) or down."""
        screen = self.screens.get(self.chosen)
        if screen is not None:
            most = max(0, len(screen.terminal.history) + screen.terminal.used_rows - self._height)
            self.back = max(0, min(most, self.back - rows))
            self.repaint()

    def action_bottom(self) -> None:
        """Back to the newest row."""
        self.action_scroll_by(self.back)

    def on_mouse_scroll_up(self) -> None:
        """The wheel scrolls back."""
        self.action_scroll_by(-3)

    def on_mouse_scroll_down(self) -> None:
        """And forth."""
        self.action_scroll_by(3)

    def on_click(self, event: events.Click) -> None:
        """A click on a tab chooses it."""
        if event.y != 1:
            return
        x = 0
        for number in self._tabs():
            width = cell_len(self._tab(number)) + 1
            if x <= event.x < x + width:
                self._choose(number)
            x += width

    def action_copy(self) -> None:
        """What is selected, or all that is seen, to the clipboard."""
        selected = self.screen.get_selected_text()
        self.app.copy_to_clipboard(selected or "\n".join(self._visible_text()))
        self.app.tell("copied")

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text that the mouse has selected."""
        return selection.extract("\n".join(["", *self._visible_text()])), "\n"

    # --- drawing -----------------------------------------------------------------------------------------------------

    @property
    def _height(self) -> int:
        """Rows for the terminal below the tabs."""
        return max(1, self.size.height - 1)

    def _visible_text(self) -> list[str]:
        return [self.render_line(y).text.rstrip() for y in range(1, self.size.height)]

    def _tab(self, number: int) -> str:
        new = self._printed.get(number, 0) > self._seen.get(number, 0) and number != self.chosen
        return f" {self.names[number]}{'•' if new else ' '}"

    def _tab_line(self, width: int) -> Strip:
        segments = []
        gap = self.get_component_rich_style("tabs--other")
        for number in self._tabs():
            text = self._tab(number)
            kind = "other" if number != self.chosen else "typing" if self.typing else "chosen"
            kind = "new" if text.endswith("•") else kind
            segments += [Segment(text, self.get_component_rich_style(f"tabs--{kind}")), Segment(" ", gap)]
        note = self._note()
        if note and cell_len(note) < width:  # it says more than the last of many tabs
            tabs = Strip(segments).adjust_cell_length(width - cell_len(note), gap)
            return Strip.join([tabs, Strip([Segment(note, gap)])])
        return Strip(segments).adjust_cell_length(width, gap)

    def draw_row(self, y: int, width: int) -> Strip:
        """The tabs, then rows of history and screen, the newest at the bottom."""
        if y == 0:
            return self._tab_line(width)
        screen = self.screens.get(self.chosen)
        if screen is None:
            return Strip.blank(width, _EMPTY)
        terminal = screen.terminal
        kept, cursor = len(terminal.history), terminal.cursor
        rows = kept + terminal.used_rows
        top = max(0, rows - self._height) - self.back
        if not self.back and cursor is not None:
            top = min(top, kept + cursor[1])  # in a pane with less rows than the terminal the cursor stays in sight
        row = top + y - 1
        if row >= kept + terminal.height:
            return Strip.blank(width, _EMPTY)
        runs = terminal.history[row] if row < kept else terminal.row(row - kept)
        strip = Strip([Segment(text, style) for text, style in runs])
        left = 0
        if cursor is not None:
            left = max(0, cursor[0] - width + 2) if width < terminal.width else 0
            if row == kept + cursor[1] and self.chosen != LOG:
                strip = self._with_cursor(strip, cursor[0])
        strip = strip.crop(left, left + width).adjust_cell_length(width, _EMPTY)
        return strip.apply_offsets(0, y)

    def _with_cursor(self, strip: Strip, x: int) -> Strip:
        """The row with the cursor on it: filled while typing, underlined otherwise."""
        strip = strip.adjust_cell_length(max(strip.cell_length, x + 1), _EMPTY)
        mark = Style(color=TERMINAL_BACKGROUND, bgcolor="#ffa94d") if self.typing else Style(underline=True)
        before, at, after = strip.crop(0, x), strip.crop(x, x + 1), strip.crop(x + 1)
        return Strip.join([before, Strip([Segment(at.text, _EMPTY + mark)]), after])
