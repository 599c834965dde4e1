"""What the trace pane shows, without how: which records, from where on, which one is selected, where "now" is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.expression import Expression, ExpressionError, completions
from xentui.engine.expression_columns import narrow_domains
from xentui.engine.trace import Kind
from xentui.screens.records import Everything, Matches, RecordedTrace, Records, search

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS: dict[str, str] = {
    "hypercalls": "hypercall or multicall_entry",
    "traps": "trap or syscall or iret",
    "emulation": "emulation",
    "memory": "memory",
    "events": "event or timer",
    "scheduling": "scheduling",
    "devices": "device",
    "domains": "lifecycle or inject",
}
"""What the pane can be narrowed to by a key: name and expression."""

WIDTHS_SECONDS = 0.01
SEARCH_SECONDS = 0.3
"""A search gives the screen back after so long, and goes on at the next refresh."""


class TraceModel:
    """The state of a trace pane over a source of records."""

    def __init__(self) -> None:
        self.source: Records | None = None
        self.names: dict[int, str] = {}
        self.widths: dict[int, int] = {}
        self.now = 0
        """Records that have happened at the current moment; those after it are the recorded future."""
        self.live = True
        self.list: Everything | Matches | None = None
        self.cursor = 0
        """The number of the selected record."""
        self.top = 0
        """The place in the list of the line at the top."""
        self.follow = True
        self.filter_text = ""
        self.domain: int | None = None
        self.group = ""
        self.wanted: Expression | None = None
        """What is searched for."""
        self.searching: tuple[int, int] | None = None
        """Where a search goes on, and in which direction."""
        self._branch = 0
        self._running = False
        self._anchor: tuple[int, int] | None = None
        """`top` and the number of the record there: what stays in place when the ring drops records, or on a filter."""
        self._wanted_place = False  # is the selected record to be brought into view?
        self._created: Matches | None = None
        self._read = 0

    # --- what there is ----------------------------------------------------------------------------------------------

    def update(self, source: Records, status: Any) -> None:
        """Take a new state of things: the records, and the engine's status."""
        domains = tuple(getattr(status, "domains", ()))
        widths = {domain.id: domain.width for domain in domains}
        changed = source is not self.source or getattr(status, "branch", 0) != self._branch
        self._branch = getattr(status, "branch", 0)
        self.source = source
        self.names.update((domain.id, domain.name) for domain in domains)
        widths = {**self._recorded_widths(changed), **widths}
        if not widths.items() <= self.widths.items():
            self.widths.update(widths)
            changed = True
        before = self.now
        # the past was left, or runs on: in the present, who has looked back is let alone
        self.follow = self.follow or (status.live and not self.live) or (not status.live and self._begins(status))
        self.now, self.live, self._running = status.records, status.live, status.running
        if changed:
            self.rebuild()
        if self.now < before or (self.now != before and not self.follow and not status.running):
            self._come_to(self.now)  # one focus: the moment was changed, here or elsewhere

    def _begins(self, status: Any) -> bool:
        """Does the machine run now, and did not before?"""
        return bool(status.running) and not self._running

    @property
    def whole(self) -> bool:
        """Is the source a recording, all of it, what is still to come included?"""
        return isinstance(self.source, RecordedTrace)

    @property
    def last_shown(self) -> int:
        """The number of the last record of the list that has happened; -1: none has."""
        place = self.list.place(self.now) if self.list is not None else 0
        return self.list.numbers(place - 1, place)[0] if self.list is not None and place else -1

    def _recorded_widths(self, anew: bool) -> dict[int, int]:
        """Word sizes as the records of domains created tell them, for domains that are gone by now."""
        assert self.source is not None
        if anew or self._created is None:
            self._created, self._read = Matches(self.source, Expression.parse("domain_create")), 0
        self._created.advance(WIDTHS_SECONDS)
        numbers = self._created.numbers(self._read, len(self._created))
        self._read = len(self._created)
        rows = [self.source.rows(number, number + 1) for number in numbers]
        return {int(row["domain"][0]): int(row["number"][0]) for row in rows if len(row)}

    def read_ahead(self, seconds: float) -> bool:
        """Use some idle time for what a filter to come will want to know of a recording on disk; is there more?"""
        source = self.source
        if not isinstance(source, RecordedTrace) or self._created is None:
            return False
        if self._created.complete:
            return source.read_ahead(narrow_domains(self.widths), seconds)
        widths = self._recorded_widths(False)
        if not widths.items() <= self.widths.items():
            self.widths = {**widths, **self.widths}
            self.rebuild()
        return True

    def _come_to(self, now: int) -> None:
        shown = self.last_shown if self.list is not None and self.list.complete else -1
        self.cursor = shown if shown >= 0 else max(0, now - 1)
        self.follow = self.follow and self.live
        self._wanted_place = True

    def rebuild(self) -> None:
        """Make the list anew: another filter, another source, another history."""
        if self.source is None:
            return
        text = self.expression_text
        if text:
            domains = {name: number for number, name in self.names.items()}
            self.list = Matches(self.source, Expression.parse(text, domains, self.widths))
        else:
            self.list = Everything(self.source)

    @property
    def expression_text(self) -> str:
        """All that narrows the list, as one expression."""
        parts = [self.filter_text]
        if self.domain is not None:
            parts.append(f"domain == {self.domain}")
        if self.group:
            parts.append(GROUPS[self.group])
        parts = [part for part in parts if part]
        return parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)

    def set_filter(self, text: str) -> None:
        """Filter by an expression. Raises ExpressionError, with everything as it was."""
        text = text.strip()
        if text:
            Expression.parse(text, {name: number for number, name in self.names.items()}, self.widths)
        self.filter_text = text
        self.rebuild()

    def next_domain(self, step: int) -> None:
        """Narrow to the next domain; after the last to all."""
        choices = [None, *sorted(self.names)]
        at = choices.index(self.domain) if self.domain in choices else 0
        self.domain = choices[(at + step) % len(choices)]
        self.rebuild()

    def next_group(self, step: int) -> None:
        """Narrow to the next group of kinds; after the last to all."""
        choices = ["", *GROUPS]
        self.group = choices[(choices.index(self.group) + step) % len(choices)]
        self.rebuild()

    def completions(self, text: str) -> list[str]:
        """What a filter that begins so could become, as whole lines."""
        words = completions(text, self.names.values())
        begun = len(text)
        while begun and (text[begun - 1].isalnum() or text[begun - 1] in "_#.-"):
            begun -= 1
        return [text[:begun] + word for word in words]

    # --- what is seen -----------------------------------------------------------------------------------------------

    def window(self, height: int) -> list[int]:
        """The numbers of the records that lines of a height show; the place of the first is `top`."""
        if self.list is None or height <= 0:
            return []
        size, now = len(self.list), self.list.place(self.now)
        if self._anchor is not None and self._anchor[0] == self.top:
            self.top = self.list.place(self._anchor[1])
        if self.follow:
            ahead = 0 if self.live else min(height // 3, size - now)
            self.top = now + ahead - height
            last = self.list.numbers(now - 1, now)
            self.cursor = last[0] if last else self.cursor
        elif self._wanted_place:
            place = self.list.place(self.cursor)
            if not self.top <= place < self.top + height - 1:
                self.top = place - 2 * height // 3
        self._wanted_place = False
        self.top = max(0, min(self.top, size - height))
        numbers = self.list.numbers(self.top, self.top + height)
        if self.list.complete:
            self._anchor = (self.top, numbers[0]) if numbers else None
        elif self._anchor is not None:
            self._anchor = (self.top, self._anchor[1])
        return numbers

    def reveal(self, height: int) -> None:
        """Move the window, as little as can be, so that the selected record is seen."""
        if self.list is None:
            return
        place = self.list.place(self.cursor)
        if place < self.top:
            self.top = place
        elif place >= self.top + height:
            self.top = place - height + 1

    def move(self, step: int, height: int) -> None:
        """Select another record, so many lines further."""
        if self.list is None or not len(self.list):
            return
        place = self.list.place(self.cursor)
        if step > 0 and self.list.numbers(place, place + 1) != [self.cursor]:
            step -= 1  # it is not in the list: what comes first behind it is
        self.select_place(place + step, height)

    def select_place(self, place: int, height: int) -> None:
        """Select the record at a place of the list."""
        if self.list is None or not len(self.list):
            return
        place = max(0, min(place, len(self.list) - 1))
        found = self.list.numbers(place, place + 1)
        if found:
            self.follow = False
            self.cursor = found[0]
            self.reveal(height)

    def go_on(self) -> None:
        """Follow "now" again."""
        self.follow = True

    # --- searching --------------------------------------------------------------------------------------------------

    def look_for(self, text: str) -> None:
        """Search for an expression, or for a text. Raises ExpressionError."""
        domains = {name: number for number, name in self.names.items()}
        try:
            self.wanted = Expression.parse(text, domains, self.widths)
        except ExpressionError:
            if not all(char.isalnum() or char in "_#.-=" for char in text):
                raise
            self.wanted = Expression.parse(f'~ "{text}"', domains, self.widths)

    def like_cursor(self) -> str:
        """An expression for records of the selected one's kind or hypercall."""
        if self.source is None or not self.source.first <= self.cursor < self.source.end:
            return ""
        from xentui.engine.expression_columns import class_of, title_of

        row = self.source.rows(self.cursor, self.cursor + 1)[0]
        kind, number = int(row["kind"]), int(row["number"])
        name = title_of(class_of(kind, number, True))
        return f"name == {name}" if kind in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY) else name

    def next_match(self, step: int) -> None:
        """Begin to search for the next record, or the one before."""
        self.searching = (self.cursor + 1 if step > 0 else self.cursor, step)

    def search_on(self, height: int) -> str:
        """Search for a while; what there is to say at the end of it."""
        if self.searching is None or self.wanted is None or self.source is None:
            self.searching = None
            return ""
        start, step = self.searching
        for found, stood in self._steps(start, step):
            if found is not None:
                self.searching = None
                self.follow = False
                self.cursor = found
                self.reveal(height)
                return ""
            self.searching = (stood, step)
        if stood >= self.source.end or stood <= self.source.first:
            self.searching = None
            return f"no {'further' if step > 0 else 'earlier'} record matches {self.wanted.text}"
        return ""

    def _steps(self, start: int, step: int) -> Iterator[tuple[int | None, int]]:
        """One piece of the search, within the list where it is narrowed."""
        assert self.source is not None and self.wanted is not None
        expression = self.wanted
        text = self.expression_text
        if text:
            domains = {name: number for number, name in self.names.items()}
            expression = Expression.parse(f"({text}) and ({self.wanted.text})", domains, self.widths)
        yield search(self.source, expression, start, step, SEARCH_SECONDS)
