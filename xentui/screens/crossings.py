"""Ring crossings: the protection rings 3, 1 and 0 side by side, and on each way between them what takes it."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any, ClassVar

from textual.binding import Binding

from xentui.screens.crossing_counts import Counts, CrossingCounts, Way
from xentui.screens.replay import records_of
from xentui.screens.sheet import DOMAIN_INKS, Line, SheetPane, fit
from xentui.screens.trace_lines import count as grouped
from xentui.screens.trace_lines import domain_name
from xentui.screens.words import count as short
from xentui.screens.words import shortened

_SLICE = 0.02
_GLOW = 0.6
"""Seconds for which a way is lit after the last crossing."""
_DIGITS = {
    "0": "█▀█ █ █ ▀▀▀",
    "1": "▀█   █  ▀▀▀",
    "2": "▀▀█ █▀▀ ▀▀▀",
    "3": "▀▀█ ▀▀█ ▀▀▀",
    "4": "█ █ ▀▀█   ▀",
    "5": "█▀▀ ▀▀█ ▀▀▀",
    "6": "█▀▀ █▀█ ▀▀▀",
    "7": "▀▀█   █   ▀",
    "8": "█▀█ █▀█ ▀▀▀",
    "9": "█▀█ ▀▀█ ▀▀▀",
    " ": "           ",
}
"""Digits that are read from the back row: three rows of three cells, a space between the rows."""


def big(number: int) -> list[str]:
    """A number in three rows."""
    text = grouped(number)
    return [" ".join([_DIGITS[digit].ljust(11)[row * 4 : row * 4 + 3] for digit in text]) for row in range(3)]


class CrossingsPane(SheetPane):
    """Counts up to the current moment; `domain` narrows it to one."""

    TITLE = "Ring crossings"
    HELP: ClassVar[str] = """\
**What am I looking at?** The processor's protection rings, and every way on which control passes between them: the
paper's **section 2.1.2**, *CPU*. Xen has ring 0. A 32-bit guest's kernel was moved from ring 0 to **ring 1**, so that
it cannot run privileged instructions; its applications stay in ring 3. A 64-bit guest's kernel has **ring 3** too,
because in 64-bit mode segments no longer protect Xen from ring 1.

* A **system call** of a 32-bit guest goes from ring 3 straight to ring 1, `●━━▶`, through a *fast handler* that Xen has
  checked and installed: Xen is not entered. On a 64-bit guest each goes through ring 0, `◆`.
* A **page fault** must always go through ring 0: only there can CR2, the faulting address, be read.
* **Hypercalls** ask Xen for something, **upcalls** tell the guest of events, **returns** (`iret`) go back to where
  an event or a fault came in between.

Keys: **d D** one domain, or all
"""
    BINDINGS: ClassVar = [
        Binding("d", "domain(1)", "Domain"),
        Binding("D", "domain(-1)", "Domain before", show=False),
    ]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.domain: int | None = None
        self.counter = CrossingCounts()
        self.names: dict[int, str] = {}
        self._counts: Counts = {}
        self._lit: dict[tuple[int, Way], float] = {}
        self._past: deque[tuple[float, dict[tuple[int, Way], int]]] = deque()
        self._frame = 0

    def show(self, answers: dict[str, Any], status: Any) -> None:
        records = records_of(self.app, status) if status is not None else None
        if records is not None:
            self.show_records(records, status)

    def show_records(self, source: Any, status: Any) -> None:
        """Count a source of records up to the moment of the engine's status."""
        self.status = status
        self.names.update((domain.id, domain.name) for domain in status.domains)
        done = self.counter.update(source, status, _SLICE)
        self._note(self.counter.counts())
        self.redraw()
        if not done:
            self.set_timer(0.005, self._again)
        elif self._lit:
            self.set_timer(_GLOW, self._fade)

    def _again(self) -> None:
        if self.is_attached and self.counter.source is not None:
            self.show_records(self.counter.source, self.status)

    def _note(self, counts: Counts) -> None:
        """What has grown is lit for a while; what there was a second ago tells the rate."""
        now = monotonic()
        flat = {(domain, way): count for domain, ways in counts.items() for way, count in ways.items()}
        old = {(domain, way): count for domain, ways in self._counts.items() for way, count in ways.items()}
        grown = [key for key, count in flat.items() if count > old.get(key, 0)]
        self._lit = {key: since for key, since in self._lit.items() if now - since < _GLOW}
        if old or not counts:
            self._lit.update((key, now) for key in grown)
        self._frame += bool(grown)
        self._counts = counts
        self._past.append((now, flat))
        while len(self._past) > 2 and now - self._past[0][0] > 1:
            self._past.popleft()

    def _fade(self) -> None:
        now = monotonic()
        self._lit = {key: since for key, since in self._lit.items() if now - since < _GLOW}
        self.redraw()

    def action_domain(self, step: int) -> None:
        """One domain, or all again after the last."""
        choices = [None, *sorted(self.names)]
        at = choices.index(self.domain) if self.domain in choices else 0
        self.domain = choices[(at + step) % len(choices)]
        self.redraw()

    # --- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> list[Line]:
        domains = [domain for domain in sorted(self._counts) if self.domain in (None, domain)]
        if not domains:
            return [[(" No ring was crossed yet.", "dim")]]
        lines = self._headline(domains, width, height)
        lane = _Lanes(width)
        lines += lane.heads(any(way.source == 3 == way.target for each in domains for way in self._counts[each]))
        ways = {domain: sorted(self._counts[domain], key=lambda way: way.order) for domain in domains}
        spaced = len(lines) + sum(2 * len(ways[domain]) + 2 for domain in domains) <= height
        ways, left_out = _fitting(ways, height - len(lines))
        top = max((max(each.values()) for each in self._counts.values()), default=1)
        for place, domain in enumerate(domains):
            name = shortened(domain_name(domain, self.names), lane.label - 2)
            lines.append(
                [(f" {name}", f"title+{DOMAIN_INKS[(domain - 1) % len(DOMAIN_INKS)]}"), *lane.empty(len(name) + 1)]
            )
            for way in ways[domain]:
                lines.append(self._way(domain, way, lane, top, width))
                if spaced:
                    lines.append(lane.empty(0))
            if place < len(domains) - 1 and not spaced:
                lines.append(lane.empty(0))
        if left_out or len(lines) > height > 0:
            lines[height - 1 :] = [[(" … more: z gives room, d shows one domain at a time", "dim")]]
        return [fit(line, width) for line in lines]

    def _headline(self, domains: list[int], width: int, height: int) -> list[Line]:
        """System calls: those that bypassed Xen beside those that did not, as large as there is room for."""
        direct, through = 0, 0
        for domain in domains:
            for way, number in self._counts[domain].items():
                if way.label == "system calls":
                    direct, through = direct + number * way.direct, through + number * (not way.direct)
        half = width // 2
        heads: Line = [*fit([(" system calls direct, 3→1", "green")], half), ("system calls through Xen", "orange")]
        if height < 28 or width < 70:
            bypass: Line = [(" system calls: ", "dim"), (f"direct {grouped(direct)}", "strong+green")]
            entered = f"through Xen {grouped(through)}"
            if width < 60:
                return [bypass, [(" " * 15, ""), (entered, "strong+orange")]]
            return [[*fit(bypass, half), (entered, "strong+orange")], []]
        rows: list[Line] = [heads]
        for one, other in zip(big(direct), big(through), strict=True):
            rows.append([*fit([(" " + one, "green")], half), (other, "orange")])
        return [*rows, []]

    def _way(self, domain: int, way: Way, lane: _Lanes, top: int, width: int) -> Line:
        number = self._counts[domain][way]
        lit = (domain, way) in self._lit
        colour = "green" if way.direct else "orange" if way.label in ("page faults", "exceptions", "int n") else "blue"
        if way.label == "system calls" and not way.direct:
            colour = "orange"
        line: Line = [(f"  {way.label:<{lane.label - 2}}", "strong" if lit else "")]
        line += lane.track(way, f"strong+{colour}" if lit else colour, lit, self._frame)
        if lane.narrow:
            return [*line, (f" {short(number):>6}", f"strong+{colour}" if lit else "")]
        line.append((f" {grouped(number):>12}", f"strong+{colour}" if lit else ""))
        rate = self._rate((domain, way))
        line.append((f" {short(rate) + '/s' if rate >= 1 else '':>8}", "dim"))
        line.append((f"  {way.rings}", "dim"))
        return line

    def _rate(self, key: tuple[int, Way]) -> float:
        if len(self._past) < 2:
            return 0.0
        (then, before), (now, after) = self._past[0], self._past[-1]
        return max(0.0, (after.get(key, 0) - before.get(key, 0)) / max(now - then, 0.05))


def _fitting(ways: dict[int, list[Way]], rows: int) -> tuple[dict[int, list[Way]], bool]:
    """As many ways of each domain as there are rows for, the same number of each; and are some left out?

    A domain has a line with its name and one behind it, the last of which tells of what is left out.
    """
    if sum(len(each) + 2 for each in ways.values()) - 1 <= rows:
        return ways, False
    most = max(1, rows // len(ways) - 2)
    return {domain: each[:most] for domain, each in ways.items()}, True


class _Lanes:
    """Where the rings stand side by side, and tracks between them."""

    def __init__(self, width: int) -> None:
        self.narrow = width < 64
        self.label = 15
        room = max(9, min(140, width - self.label - (8 if self.narrow else 30)))
        step = (room - 1) // 2
        self.at = {3: 0, 1: step, 0: 2 * step}
        self.room = 2 * step + 1

    def heads(self, wide: bool) -> list[Line]:
        """The rings' names over their lines; `wide`: a 64-bit guest is there, whose kernel has ring 3."""
        names: dict[int, tuple[str, ...]] = {3: ("3",), 1: ("1",), 0: ("0 Xen",)}
        if not self.narrow:
            names = {3: ("ring 3", "applications"), 1: ("ring 1", "32-bit kernels"), 0: ("ring 0", "Xen")}
            if wide:
                names = {3: (*names[3], "64-bit kernels"), 1: (*names[1], ""), 0: (*names[0], "")}
        lines: list[Line] = []
        for row in range(len(names[3])):
            cells = list(" ring" if self.narrow else "") + [" "] * (self.label + self.room + 9)
            for ring, at in self.at.items():
                text = names[ring][row]
                start = self.label + at - (0 if self.narrow else min(6, len(text) // 2))
                cells[start : start + len(text)] = text
            lines.append([("".join(cells), "dim" if row else "title")])
        return lines

    def empty(self, used: int) -> Line:
        """The rings' lines alone, after so many cells."""
        cells = [" "] * self.room
        for at in self.at.values():
            cells[at] = "│"
        return [(" " * max(0, self.label - used) + "".join(cells), "dim")]

    def track(self, way: Way, ink: str, lit: bool, frame: int) -> Line:
        """A way: `●` where it begins, `◆` Xen, an arrow head where it ends, and on it, when lit, a moving light."""
        cells = [" "] * self.room
        for at in self.at.values():
            cells[at] = "│"
        start, end = self.at.get(way.source, 0), self.at.get(way.target, 0)
        far = end if way.direct else self.at[0]
        low, high = min(start, end, far), max(start, end, far)
        stroke = "━" if lit else "─"
        for at in range(low, high + 1):
            cells[at] = ("┿" if lit else "┼") if cells[at] == "│" else stroke
        cells[start] = "●"
        if not way.direct:
            cells[far] = "◆"
            cells[end] = "◀" if end != far else "◆"
        else:
            cells[end] = "▶" if end > start else "◀"
        before, inside, after = "".join(cells[:low]), cells[low : high + 1], "".join(cells[high + 1 :])
        if lit and high - low > 3:
            place = low + 1 + (frame * 3) % (high - low - 1)
            head, tail = "".join(cells[low:place]), "".join(cells[place + 1 : high + 1])
            return [(before, "dim"), (head, ink), ("○", "strong"), (tail, ink), (after, "dim")]
        return [(before, "dim"), ("".join(inside), ink), (after, "dim")]
