"""The time line: the whole run in a few rows, with what stands out in it; scrub to go anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding

from xentui.screens.moments import (
    CRASH,
    FAULT,
    LIFE,
    MARK,
    SIGNS,
    SNAPSHOT,
    ByRecord,
    Density,
    Moment,
    Recorded,
    edge,
    known_to,
    round_up,
)
from xentui.screens.replay import elsewhere, records_of
from xentui.screens.sheet import Line, SheetPane, fit
from xentui.screens.trace_lines import clock

if TYPE_CHECKING:
    from textual import events

_SLICE = 0.02
_LEVELS = "▁▂▃▄▅▆▇█"
_INKS = {MARK: "strong+blue", CRASH: "error", FAULT: "orange", LIFE: "purple", SNAPSHOT: "dim"}


class TimelinePane(SheetPane):
    """`cursor` is the time at which the user points, or None. `start` and `end` are the places at its ends: times in
    virtual ns, or the numbers of records where `by_record` gives each as much room as any other."""

    TITLE = "Time line"
    HELP: ClassVar[str] = """\
**What am I looking at?** The whole run from its start to the newest moment, in *virtual* time: the time that guests
feel, the paper's **section 3.3.2**. The bars are how many trace records lie in each stretch; what lies behind *now* is
faint: future that was already recorded and can be gone to. A recording is here as a whole from the first moment on;
who leaves its history sees what this session has run, and reads so beside the time.

`▼` a mark · `✖` a domain crashed · `⚡` a fault was injected · `○` a domain came or went · `·` a snapshot, from which
its neighbourhood is reached at once

Keys: **← →** scrub · **⇧← ⇧→** further · **[ ]** to the moment before, behind · **( )** zoom ·
**Enter** or click to go · **m** mark and annotate this moment · **f** all of it ·
**v** by time, or by records: then idle time takes no room, and the bars are how fast records follow each other
"""
    BINDINGS: ClassVar = [
        Binding("left", "scrub(-1)", "Back", show=False),
        Binding("right", "scrub(1)", "Forth", show=False),
        Binding("shift+left", "scrub(-10)", "Far back", show=False),
        Binding("shift+right", "scrub(10)", "Far forth", show=False),
        Binding("left_square_bracket", "moment(-1)", "Moment before"),
        Binding("right_square_bracket", "moment(1)", "Next moment"),
        Binding("left_parenthesis", "zoom(1)", "Zoom in"),
        Binding("right_parenthesis", "zoom(-1)", "Zoom out"),
        Binding("enter", "goto", "Go there", show=False),
        Binding("f", "whole", "All"),
        Binding("v", "scale", "By time or by records"),
    ]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.start = self.end = 0
        self.cursor: int | None = None
        self.names: dict[int, str] = {}
        self.source: Any = None
        self.moments: list[Moment] = []
        self.by_record = False
        self._density = Density()
        self._scale: ByRecord | None = None
        self._recorded: Recorded | None = None
        self._zoomed = False
        self._branch = 0
        self._known: list[Moment] = []
        self._elsewhere = ""
        self._busy = False
        self._dragging = False

    # --- what comes in ----------------------------------------------------------------------------------------------

    def show(self, answers: dict[str, Any], status: Any) -> None:
        engine: Any = getattr(self.app, "engine", None)
        records = records_of(self.app, status) if status is not None else None
        if records is not None:
            for number, spec in enumerate(getattr(getattr(engine, "setup", None), "specs", ()), 1):
                self.names.setdefault(number, spec.name)  # domains that are not there yet, or no more
            marks = getattr(getattr(self.app, "control", None), "marks", ())
            self.show_records(records, status, known_to(engine, marks))

    def show_records(self, source: Any, status: Any, moments: list[Moment]) -> None:
        """Show a source of records as the engine's status has it, with moments that records do not tell of."""
        if source is not self.source or status.branch != self._branch:
            self._recorded, self._scale = Recorded(source), ByRecord(source)
            self.source, self._branch = source, status.branch
        assert self._recorded is not None
        self.status = status
        self.names.update((domain.id, domain.name) for domain in status.domains)
        found = self._recorded.advance(_SLICE, self.names)
        self.moments = sorted([*found, *moments])
        self._elsewhere = elsewhere(self.app, status)  # reading may have come upon damage
        if not self._zoomed:
            self._fit(status.live and status.running)
        self.redraw()
        self._known = moments
        self._go_on(not self._recorded.complete)

    def _go_on(self, more: bool) -> None:
        """Come back in a moment, if not all was looked at that there is."""
        if more and not self._busy:
            self._busy = True
            self.set_timer(0.005, self._again)

    def _again(self) -> None:
        self._busy = False
        if self.is_attached:
            self.show_records(self.source, self.status, self._known)

    # --- going somewhere --------------------------------------------------------------------------------------------

    @property
    def cells(self) -> int:
        """How many stretches of time there is room for."""
        return max(1, self.content_size.width - 2)

    def _place(self, time: int) -> int:
        """Where a time lies on the scale."""
        return self._scale.place(time) if self.by_record and self._scale is not None else time

    def _time(self, place: int) -> int:
        """The time at a place of the scale."""
        return self._scale.time(place) if self.by_record and self._scale is not None else place

    def _fit(self, growing: bool) -> None:
        """Show the whole run; while it grows, with room to grow into."""
        first, last = 0, getattr(self.status, "end_time", 0)
        if self.by_record and self.source is not None:
            first, last = self.source.first, self.source.end
        self.start, self.end = first, round_up(last) if growing else max(last, first + 1)

    def cell(self, time: int) -> int:
        """The cell that a time lies in."""
        return (self._place(time) - self.start) * self.cells // max(1, self.end - self.start)

    def _go(self, time: int) -> None:
        self.cursor = max(0, min(time, getattr(self.status, "end_time", time)))
        self.post_message(self.Goto(time=self.cursor))
        self.redraw()

    def _here(self) -> int:
        return self.cursor if self.cursor is not None else getattr(self.status, "time", 0)

    def action_scrub(self, step: int) -> None:
        """A cell, or some, back or forth."""
        at = max(0, min(self.cell(self._here()) + step, self.cells - 1))
        self._go(self._time(edge(self.start, self.end, self.cells, at)))

    def action_moment(self, step: int) -> None:
        """To the moment before or behind that stands out."""
        here = self._here()
        times = sorted({moment.time for moment in self.moments if moment.sort != SNAPSHOT})
        others = [time for time in times if (time > here if step > 0 else time < here)]
        if others:
            self._go(others[0 if step > 0 else -1])

    def action_goto(self) -> None:
        """To where the cursor is."""
        self._go(self._here())

    def action_zoom(self, step: int) -> None:
        """Half of the time shown, or twice, around the cursor."""
        span = max(1, self.end - self.start)
        self._fit(False)
        first, whole = self.start, self.end - self.start
        span = max(self.cells, span // 2) if step > 0 else span * 2
        self._zoomed = span < whole
        if self._zoomed:
            self.start = max(first, min(self._place(self._here()) - span // 2, first + whole - span))
            self.end = self.start + span
        self.redraw()

    def action_whole(self) -> None:
        """The whole run."""
        self._zoomed = False
        self._fit(False)
        self.redraw()

    def action_scale(self) -> None:
        """By time, or by records."""
        self.by_record = not self.by_record
        self.action_whole()

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Go where it is pressed, and along while it is drawn."""
        self._dragging = True
        self.capture_mouse()
        self._point(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Scrub."""
        if self._dragging:
            self._point(event.x)

    def on_mouse_up(self, _event: events.MouseUp) -> None:
        """Let go."""
        self._dragging = False
        self.release_mouse()

    def _point(self, x: int) -> None:
        time = self._time(edge(self.start, self.end, self.cells, max(0, min(x - 1, self.cells - 1))))
        if time != self.cursor:
            self._go(time)

    def on_mouse_scroll_up(self, _event: events.MouseScrollUp) -> None:
        """Closer."""
        self.action_zoom(1)

    def on_mouse_scroll_down(self, _event: events.MouseScrollDown) -> None:
        """Farther."""
        self.action_zoom(-1)

    # --- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> list[Line]:
        status = self.status
        if status is None or self.source is None or width < 8:
            return []
        cells = self.cells
        if self._scale is not None:
            self._scale.allow(_SLICE)
        now = self.cell(status.time)
        if self.cursor is not None and not getattr(status, "travelling", False) and self.cell(self.cursor) == now:
            self.cursor = None
        if self.by_record and self._scale is not None:
            counts = self._scale.paces(self.start, self.end, cells)
        else:
            counts = self._density.counts(self.source, self.start, self.end, cells, self._branch, _SLICE)
        tall = max(1, min(6, height - 2)) if height > 2 else 1
        lines = [self._bars(counts, row, tall, now) for row in range(tall)]
        if height >= 2:
            lines.insert(0, self._signs(cells))
        if height >= 3:
            lines.append(self._times(width, now))
        lines += [self._told(moment) for moment in self._near(max(0, height - len(lines)))]
        self._go_on(
            not (self._scale.complete if self.by_record and self._scale is not None else self._density.complete)
        )
        return [fit(line, width) for line in lines]

    def _bars(self, counts: list[int], row: int, tall: int, now: int) -> Line:
        """One row of the bars: heights grow with the logarithm, since a burst has a thousand times as many."""
        import math

        most = math.log1p(max(counts, default=0)) or 1.0
        pointed = self.cell(self.cursor) if self.cursor is not None else -1
        done: list[str] = []
        ahead: list[str] = []
        for at, count in enumerate(counts):
            eighths = max(1, round(8 * tall * math.log1p(count) / most)) if count else 0
            eighths -= 8 * (tall - 1 - row)
            sign = " " if eighths <= 0 else _LEVELS[min(eighths, 8) - 1]
            (done if at < now else ahead).append(sign)
        line: Line = [(" ", ""), ("".join(done), "blue"), ("".join(ahead), "dim")]
        for at, ink in ((now, "now"), (pointed, "orange+reverse")):
            if 0 <= at < len(counts):
                line = _dyed(line, at + 1, ink)
        return line

    def _signs(self, cells: int) -> Line:
        """The moments over the bars."""
        found: dict[int, str] = {}
        order = list(SIGNS)
        for moment in self.moments:
            at = self.cell(moment.time)
            if 0 <= at < cells and (at not in found or order.index(moment.sort) < order.index(found[at])):
                found[at] = moment.sort
        line: Line = [(" ", "")]
        for at in range(cells):
            line.append((SIGNS[found[at]], _INKS[found[at]]) if at in found else (" ", ""))
        return line

    def _times(self, width: int, now: int) -> Line:
        """The times at the ends, and that of now under its place."""
        left, right = clock(self._time(self.start)), f"{clock(self._time(self.end))} s"
        if self.by_record:
            right = f"by records · {right}"
        middle = f"▲ {clock(self.status.time)} s"
        if not self.status.live:
            middle += " (the past)"
        if self._elsewhere:
            middle += f" · {self._elsewhere}"
        at = max(len(left) + 3, min(now + 1, width - len(right) - len(middle) - 3))
        room = width - len(right) - 1
        text: Line = [(f" {left}".ljust(at), "dim")]
        if at + len(middle) < room:
            text.append((middle.ljust(room - at), "strong+blue"))
        else:
            text = [(f" {left}  ", "dim"), (middle, "strong+blue")]
            right = ""
        return [*text, (right, "dim")]

    def _near(self, room: int) -> list[Moment]:
        """The moments nearest to here, in order."""
        here = self._here()
        notable = [moment for moment in self.moments if moment.sort != SNAPSHOT]
        return sorted(sorted(notable, key=lambda moment: abs(moment.time - here))[:room])

    def _told(self, moment: Moment) -> Line:
        here = moment.time <= getattr(self.status, "time", 0)
        return [
            (f" {SIGNS[moment.sort]} ", _INKS[moment.sort]),
            (f"{clock(moment.time)} s  ", "dim"),
            (moment.text, "" if here else "dim"),
        ]


def _dyed(line: Line, at: int, ink: str) -> Line:
    """The line with the cell at a place in another ink; all its characters are one cell wide."""
    out: Line = []
    position = 0
    for text, style in line:
        end = position + len(text)
        if position <= at < end:
            cut = at - position
            out += [(text[:cut], style), (text[cut] if text[cut] != " " else "│", ink), (text[cut + 1 :], style)]
        else:
            out.append((text, style))
        position = end
    return out
