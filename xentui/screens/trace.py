"""The trace: every hypercall, trap, event and switch as it happens, decoded; filtered, searched, summed up.

The pane draws a window of the record ring line by line and decodes only what is seen, so that it costs the same over a
thousand records and over a hundred million.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding
from textual.geometry import Region
from textual.strip import Strip

from xentui.engine.trace import Kind, Record
from xentui.engine.trace_decode import XEN_EVENTS
from xentui.screens import trace_ink as inks
from xentui.screens.pane import Pane
from xentui.screens.replay import records_of
from xentui.screens.trace_draw import line_strip, runs_strip, scroll_bar
from xentui.screens.trace_lines import Line, Shape, clock, count, line, words
from xentui.screens.trace_model import TraceModel
from xentui.screens.trace_summary import Summary, summary_lines

if TYPE_CHECKING:
    from textual import events
    from textual.selection import Selection

SLICE = 0.025
"""Seconds that a filter may work before the screen has its turn again."""
_DETAIL = 4
"""Lines under the list that tell all of the selected record, where there is room."""


class TracePane(Pane):
    """Lines of records over `app.engine.records`, a recording that is replayed, or any source given to
    `show_records`."""

    TITLE = "Trace"
    HELP: ClassVar[str] = """\
**What am I looking at?** Every time control passes between a guest and the hypervisor: the paper's **section 3.1**,
*Control Transfer: Hypercalls and Events*. A line is one record: virtual time, domain, what happened with its arguments
by name, and on the right its result, or the protection rings that it crossed (`3→0→1` through Xen, `3→1` directly).

* **Hypercalls** are the synchronous calls of a domain to Xen; `-EINVAL` and the like are Xen's own codes.
* **Exceptions** and **page faults** are bounced to the guest's own handler. A 32-bit guest's system calls take the
  *fast handler* (section 2.1.2) and never enter the hypervisor: `direct_trap`.
* **Events** are asynchronous: sent, perhaps masked, delivered by an upcall.

`▶` marks *now*, `▷` the last of the records shown before it; what is faint below is future that was already recorded.
In a replay that is all of the recording, to be filtered, searched, summed up and gone to like the rest.

Keys: **↑ ↓ PgUp PgDn** select · **Enter** go to that moment · **f** or **End** follow · **/** filter by an expression ·
**d D** domain · **k K** kind · **a** count and measure · **\\*** search for records like this one · **Ctrl-F** search ·
**n N** next, previous · **y** copy · **Esc** show all

Filters: `hypercall and result < 0` · `port == 3` · `page_fault and cr2 & 0xfff == 0` · `time > 20ms` · `~ "PIN_L4"`
"""
    BINDINGS: ClassVar = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("ctrl+home", "edge(-1)", "Oldest", show=False),
        Binding("ctrl+end", "edge(1)", "Newest", show=False),
        Binding("enter", "goto", "Go there"),
        Binding("f,end", "follow", "Follow"),
        Binding("d", "domain(1)", "Domain"),
        Binding("D", "domain(-1)", "Domain before", show=False),
        Binding("k", "kind(1)", "Kind"),
        Binding("K", "kind(-1)", "Kind before", show=False),
        Binding("a", "aggregate", "Sum up"),
        Binding("asterisk", "like", "Like this", show=False),
        Binding("ctrl+f", "search", "Search", show=False),
        Binding("n", "next(1)", "Next", show=False),
        Binding("N", "next(-1)", "Previous", show=False),
        Binding("y", "copy", "Copy", show=False),
        Binding("escape", "clear", "All", show=False),
    ]
    DEFAULT_CSS: ClassVar[str] = """
    TracePane { height: 1fr; width: 1fr; }
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.model = TraceModel()
        self.summary: Summary | None = None
        self._keys: list[Any] = []
        self._strips: list[Strip] = []
        self._widest = (0, 1)
        self._busy = False
        self._said = ""

    # --- what comes in ----------------------------------------------------------------------------------------------

    def show(self, answers: dict[str, Any], status: Any) -> None:
        records = records_of(self.app, status) if status is not None else None
        if records is None:
            return
        engine = self.app.engine  # type: ignore[attr-defined]
        for number, spec in enumerate(getattr(getattr(engine, "setup", None), "specs", ()), 1):
            self.model.names.setdefault(number, spec.name)  # domains that were gone before the pane was opened
        self.show_records(records, status)

    def show_records(self, source: Any, status: Any) -> None:
        """Show a source of records as the engine's status has it."""
        self.model.update(source, status)
        self._work()

    def _work(self) -> None:
        """Filter and search for a little while, or read what filters will want; draw; come back if that was not all."""
        model = self.model
        if model.list is None:
            return
        model.list.advance(SLICE)
        if model.searching is not None:
            self._said = model.search_on(self.rows_height)
        if self.summary is not None:
            self.summary.advance(SLICE)
        self.redraw()
        idle = model.list.complete and model.searching is None and self._summed()
        if not self._busy and (not idle or model.read_ahead(SLICE)):
            self._busy = True
            self.set_timer(0.005, self._again)

    def _summed(self) -> bool:
        return self.summary is None or self.summary.complete

    def _again(self) -> None:
        self._busy = False
        if self.is_attached:
            self._work()

    # --- filters, for the command line ------------------------------------------------------------------------------

    @property
    def filter_text(self) -> str:
        """The expression that filters."""
        return self.model.filter_text

    def filter(self, text: str) -> None:
        """Filter by an expression. Raises ExpressionError (a ValueError), one line."""
        self.model.set_filter(text)
        self._refilter()

    def filter_completions(self, text: str) -> list[str]:
        """What a filter that begins so could become."""
        return self.model.completions(text)

    def _refilter(self) -> None:
        if self.summary is not None:
            self.action_aggregate()
            self.action_aggregate()
        self._work()
        if not self.model.follow:
            self.model.reveal(self.rows_height)
            self.redraw()

    # --- keys -------------------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """n and N search while something is searched for, and step otherwise; Escape clears what there is."""
        model = self.model
        if action == "next":
            return model.wanted is not None
        if action == "clear":
            return bool(model.expression_text or model.wanted or self.summary)
        return True

    def action_move(self, step: int) -> None:
        """Select the line above or below."""
        if self.summary is not None:
            self.summary.top = max(0, self.summary.top + step)
        else:
            self.model.move(step, self.rows_height)
        self.redraw()

    def action_page(self, step: int) -> None:
        """Select a record a page further."""
        self.action_move(step * max(1, self.rows_height - 1))

    def action_edge(self, step: int) -> None:
        """Select the oldest record, or the newest."""
        if self.model.list is not None:
            self.model.select_place(0 if step < 0 else len(self.model.list) - 1, self.rows_height)
        self.redraw()

    def action_goto(self) -> None:
        """Move everything to the moment of the selected record."""
        if self.model.list is not None and len(self.model.list):
            self.post_message(self.Goto(record=self.model.cursor))

    def action_follow(self) -> None:
        """Keep the newest record in view, or no longer."""
        if self.model.follow:
            self.model.follow = False
        else:
            self.model.go_on()
        self.redraw()

    def action_domain(self, step: int) -> None:
        """Only the next domain's records."""
        self.model.next_domain(step)
        self._refilter()

    def action_kind(self, step: int) -> None:
        """Only records of the next group of kinds."""
        self.model.next_group(step)
        self._refilter()

    def action_aggregate(self) -> None:
        """Count and measure instead of listing, or list again."""
        model = self.model
        self.summary = None
        if not getattr(self, "_aggregated", False) and model.list is not None and model.source is not None:
            self.summary = Summary(model.source, model.list, model.widths)
        self._aggregated = self.summary is not None
        self._work()

    def action_like(self) -> None:
        """Search for records like the selected one."""
        text = self.model.like_cursor()
        if text:
            self.look_for(text)

    def action_search(self) -> None:
        """Ask what to search for."""
        from xentui.screens.search import SearchPrompt

        prompt = SearchPrompt(self.model.wanted.text if self.model.wanted else "", self.model.completions)
        self.app.push_screen(prompt, self._asked)

    def _asked(self, text: str | None) -> None:
        if text:
            try:
                self.look_for(text)
            except ValueError as error:
                self._said = str(error)
                self.redraw()

    def look_for(self, text: str) -> None:
        """Search for an expression or a text, from the selected record on. Raises ExpressionError."""
        self.model.look_for(text)
        self.action_next(1)

    def action_next(self, step: int) -> None:
        """The next record that is searched for, or the one before."""
        self.model.next_match(step)
        self._work()

    def action_clear(self) -> None:
        """Show all again: first the list, then all of it."""
        model = self.model
        if self.summary is not None:
            self.action_aggregate()
            return
        model.filter_text, model.domain, model.group, model.wanted = "", None, "", None
        self._said = ""
        model.rebuild()
        self._refilter()

    def action_copy(self) -> None:
        """Copy the selected line."""
        for key, text in zip(self._keys, self._texts(), strict=True):
            if key[:2] == ("record", self.model.cursor):
                self.app.copy_to_clipboard(text[2:].strip())
                self._said = "copied"
        self.redraw()

    # --- the mouse --------------------------------------------------------------------------------------------------

    def on_mouse_scroll_down(self, _event: events.MouseScrollDown) -> None:
        """Three lines down."""
        self._scroll(3)

    def on_mouse_scroll_up(self, _event: events.MouseScrollUp) -> None:
        """Three lines up."""
        self._scroll(-3)

    def _scroll(self, step: int) -> None:
        model, height = self.model, self.rows_height
        if self.summary is not None or model.list is None:
            self.action_move(step)
            return
        model.window(height)  # where it stands
        size = len(model.list)
        model.follow = False
        model.top = max(0, min(model.top + step, size - height))
        place = model.list.place(model.cursor)
        model.select_place(max(model.top, min(place, model.top + height - 1)), height)
        if step > 0 and model.live and model.top + height >= size:
            model.go_on()
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        """Select a line, go there with a second click; on the bar at the right, go to that part of the list."""
        model, row = self.model, event.y - 1
        if model.list is None or self.summary is not None or not 0 <= row < self.rows_height:
            return
        if event.x >= self.content_size.width - 1:
            model.select_place(row * len(model.list) // max(1, self.rows_height), self.rows_height)
        else:
            model.select_place(model.top + row, self.rows_height)
            if event.chain == 2:
                self.action_goto()
        self.redraw()

    # --- drawing ----------------------------------------------------------------------------------------------------

    @property
    def rows_height(self) -> int:
        """Lines that the list has."""
        height = self.content_size.height
        return max(1, height - 1 - (_DETAIL if height >= 16 else 0))

    def on_resize(self, _event: events.Resize) -> None:
        """Lay out anew."""
        self._keys = []
        self._work()
        self.redraw()

    def notify_style_update(self) -> None:
        """Another theme has other colours."""
        super().notify_style_update()
        if self.is_attached:
            self.redraw()

    def redraw(self) -> None:
        """Make the lines; paint those that differ."""
        width, height = self.content_size
        if not width or not height or self.model.source is None:
            return
        keys, strips = self._sheet(width, height)
        old, self._keys, self._strips = self._keys, keys, strips
        dirty = [Region(0, y, width, 1) for y in range(height) if y >= len(old) or old[y] != keys[y]]
        if dirty:
            self.refresh(*dirty)

    def _sheet(self, width: int, height: int) -> tuple[list[Any], list[Strip]]:
        """A key that says what each row shows, and the row; rows that show the same are taken over."""
        dark, base, look = self.app.current_theme.dark, self.rich_style, self.app.theme
        known = dict(zip(self._keys, self._strips, strict=False))
        keys: list[Any] = []
        strips: list[Strip] = []

        def add(key: Any, make: Any) -> None:
            keys.append(key)
            strips.append(known[key] if key in known else make())

        if self.summary is not None:
            runs = summary_lines(self.summary, self.model, width, height - 1)
        else:
            runs = None
            numbers, lines = self._list(width)
        header = self._header(width)
        add(("header", header, width, look), partial(runs_strip, [header], width, base, dark))
        if runs is not None:
            for row in runs[: height - 1]:
                add((tuple(row), width, look), partial(runs_strip, row, width, base, dark))
        else:
            size = len(self.model.list) if self.model.list is not None else 0
            bar = scroll_bar(size, len(lines), self.model.top)
            for y, (number, made) in enumerate(zip(numbers, lines, strict=True)):
                ahead, selected = number >= self.model.now, number == self.model.cursor
                key = ("record", number, made, ahead, selected, bar[y], width, look)
                add(key, partial(line_strip, made, ahead, selected, bar[y], width, base, dark))
            for y in range(len(lines), self.rows_height):
                add(("blank", y, width, look), partial(Strip.blank, width, base))
            for y, row in enumerate(self._detail(width, height)):
                add((y, tuple(row), width, look), partial(runs_strip, row, width, base, dark))
        while len(strips) < height:
            add(("end", len(strips), width, look), partial(Strip.blank, width, base))
        return keys, strips

    def _list(self, width: int) -> tuple[list[int], list[Line]]:
        """The records in view: their numbers, and their lines."""
        model, source = self.model, self.model.source
        assert source is not None
        numbers = [number for number in model.window(self.rows_height) if number >= source.first]
        rows = self._rows(numbers)
        numbers = [number for number in numbers if number in rows]
        names = max((len(name) for name in model.names.values()), default=4)
        seconds = len(str(rows[numbers[-1]].time // 1_000_000_000)) if numbers else 1
        self._widest = (max(self._widest[0], min(names, 14)), max(self._widest[1], seconds))
        shape = Shape(width - 1, self._widest[1], self._widest[0])
        lines = []
        before: int | None = None
        last = model.last_shown
        for number in numbers:
            record = rows[number]
            mark = "  " if number != last else "▶ " if last == model.now - 1 else "▷ "
            lines.append(line(record, number, before, model.names, model.widths.get(record.domain, 64), shape, mark))
            before = record.time
        return numbers, lines

    def _rows(self, numbers: list[int]) -> dict[int, Record]:
        """Some records by number, read in runs."""
        source, found, at = self.model.source, {}, 0
        assert source is not None
        while at < len(numbers):
            end = at + 1
            while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
                end += 1
            start = numbers[at]
            for offset, row in enumerate(source.rows(start, start + end - at).tolist()):
                found[start + offset] = Record(*row)
            at = end
        return found

    def _header(self, width: int) -> tuple[str, Any]:
        """What is shown, of how many; what the last search said."""
        model = self.model
        assert model.source is not None and model.list is not None
        total = model.source.end - model.source.first
        parts = []
        if model.domain is not None:
            parts.append(model.names.get(model.domain, f"domain {model.domain}"))
        if model.group:
            parts.append(model.group)
        if model.filter_text:
            parts.append(model.filter_text)
        if parts:
            progress = "" if model.list.complete else f" ({100 * model.list.progress:.0f} % looked at)"
            left = f" {' · '.join(parts)}: {count(len(model.list))} of {count(total)}{progress}"
        else:
            left = f" {count(total)} records"
        if model.whole:
            damaged = ", what follows is damaged" if getattr(model.source, "problem", "") else ""
            left += f"{damaged}, now at {count(model.now)}"
        elif model.source.first:
            left += f", older ones are gone ({count(model.source.first)})" if width >= 100 else ""
        right = self._said or ("searching …" if model.searching is not None else "")
        right = right or ("follows" if model.follow else f"#{count(model.cursor)}")
        return left[: max(0, width - len(right) - 2)].ljust(max(0, width - len(right) - 1)) + right + " ", "faint"

    def _detail(self, width: int, height: int) -> list[list[tuple[str, Any]]]:
        """All of the selected record, under a rule, where there is room."""
        if height < 16:
            return []
        rule: list[tuple[str, Any]] = [("─" * width, "faint")]
        record = self._rows([self.model.cursor]).get(self.model.cursor) if self._present() else None
        if record is None:
            return [rule, [], [], []]
        found = words(record, self.model.widths.get(record.domain, 64))
        event = XEN_EVENTS.get(record.kind)
        facts = f" #{count(self.model.cursor)}  {clock(record.time)} s  rip {record.rip:#x}  vCPU {record.vcpu}"
        xen = f"  Xen's event {event:#x}" if event else ""
        text = f"{found.arguments}{' = ' if found.end and record.kind in _CALLS else '  '}{found.end}"
        room = width - 1
        first = text[: max(0, room - len(found.title))]
        rest = text[len(first) :]
        return [
            rule,
            [(" ", ""), (found.title, inks.of_kind(record.kind)), (first, "")],
            [(" " + rest[: room - 1], "")],
            [(facts + (xen if len(facts) + len(xen) < width else ""), "faint")],
        ]

    def _present(self) -> bool:
        source = self.model.source
        return source is not None and source.first <= self.model.cursor < source.end

    def render_line(self, y: int) -> Strip:
        """A row as it was made last."""
        if y < len(self._strips):
            return self._strips[y].apply_offsets(0, y)
        return Strip.blank(self.content_size.width, self.rich_style)

    # --- text -------------------------------------------------------------------------------------------------------

    def _texts(self) -> list[str]:
        return [strip.text for strip in self._strips]

    def text(self) -> str:
        """What is drawn, as plain text."""
        return "\n".join(text.rstrip() for text in self._texts())

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """What the mouse has marked, to be copied."""
        return selection.extract("\n".join(self._texts())), "\n"


_CALLS = (Kind.HYPERCALL, Kind.MULTICALL_ENTRY)
