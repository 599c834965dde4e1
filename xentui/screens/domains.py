"""The domains, as `xl top` shows them, with what they do to the hypervisor beside it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rich.cells import set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.strip import Strip

from xentui.screens.rows import RowPane
from xentui.screens.words import STATES, count, plain, shortened

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual import events

    from xentui.app import XentuiApp

SAMPLE_SECONDS = 0.25
"""Host time between two samples of a sparkline."""
SAMPLES = 64
RATE_SAMPLES = 4
"""A rate is taken over so many samples: about a second."""
BARS = "▁▂▃▄▅▆▇█"


class Sample(NamedTuple):
    """What a domain had done at a virtual time (ns)."""

    time: int
    cpu: int
    hypercalls: int
    traps: int
    direct: int
    events: int


class History:
    """The samples of one domain, oldest first; going back in time takes back those that were later."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=SAMPLES + 1)

    def add(self, sample: Sample) -> None:
        """Take a newer sample, or one after going back."""
        while self.samples and self.samples[-1].time >= sample.time:
            self.samples.pop()
        self.samples.append(sample)

    def rate(self, what: str) -> float:
        """How much of `what` a second of virtual time, of late; for `cpu`, the share of a processor."""
        if len(self.samples) < 2:
            return 0.0
        last, first = self.samples[-1], self.samples[max(0, len(self.samples) - 1 - RATE_SAMPLES)]
        done = getattr(last, what) - getattr(first, what)
        return done / (last.time - first.time) * (1 if what == "cpu" else 1e9)

    def spark(self, what: str, width: int, full: float = 0.0) -> str:
        """The newest samples as bars, the newest on the right; `full` is the highest bar (0: the most there was)."""
        samples = list(self.samples)[-width - 1 :]
        rates = [(getattr(new, what) - getattr(old, what)) / (new.time - old.time) for old, new in pairwise(samples)]
        top = full or max(rates, default=0) or 1
        bars = "".join(" " if rate <= 0 else BARS[min(7, int(rate / top * 8))] for rate in rates)
        return bars.rjust(width)


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    title: str
    width: int
    rank: int
    """The narrower the pane, the fewer ranks are shown, the lowest first."""
    ink: str
    text: Callable[[Any, History], str]
    left: bool = False


def _rate(what: str) -> Callable[[Any, History], str]:
    return lambda domain, history: count(history.rate(what))


def _state(domain: Any, history: History) -> str:
    letter = next((letter for letter in "cdspbr" if letter in domain.state), "")
    sign = {"r": "▶", "b": "·", "p": "■", "s": "○", "c": "✖", "d": "✖"}.get(letter, " ")
    return f"{sign} {STATES.get(letter, 'runnable')}"


def _memory(domain: Any, history: History) -> str:
    return f"{domain.pages >> 8}M"


def _width(domain: Any, history: History) -> str:
    return "64, ring 3" if domain.width == 64 else "32, ring 1"


COLUMNS: tuple[Column, ...] = (
    Column("", 2, 0, "muted", lambda domain, history: str(domain.id)),
    Column("domain", 12, 0, "", lambda domain, history: shortened(plain(domain.name), 12), True),
    Column("state", 11, 0, "state", _state, True),
    Column("CPU", 5, 0, "", lambda domain, history: f"{min(history.rate('cpu'), 9.99):.0%}"),
    Column("", 16, 7, "blue", lambda domain, history: history.spark("cpu", 16, 1.0), True),
    Column("mem", 5, 2, "", _memory),
    Column("vCPU", 4, 3, "", lambda domain, history: str(domain.vcpus)),
    Column("kernel", 10, 6, "muted", _width, True),
    Column("hyperc/s", 8, 1, "", _rate("hypercalls")),
    Column("", 12, 8, "blue", lambda domain, history: history.spark("hypercalls", 12), True),
    Column("traps/s", 7, 4, "", _rate("traps")),
    Column("direct/s", 8, 4, "", _rate("direct")),
    Column("", 12, 9, "orange", lambda domain, history: history.spark("direct", 12), True),
    Column("events/s", 8, 5, "", _rate("events")),
)


class Domains(RowPane):
    """A line for each domain; what is chosen here is what commands mean when they name none."""

    TITLE = "Domains"
    HELP = """
One line for each **domain**, as `xl top` has it. A domain is a guest with its memory and virtual CPUs; domain 0, which
controls the others, is not a guest here (section 2.3 of the paper): its work is done by this program.

- *kernel*: a 32-bit kernel runs in ring 1, above its programs in ring 3; a 64-bit one shares ring 3 with them
  (section 2.1.2, *CPU*).
- *hyperc/s*: hypercalls, calls from the guest to Xen (3.1). *traps/s*: exceptions, page faults and system calls that
  went **through** Xen; *direct/s*: system calls that went from ring 3 to ring 1 **without** it (2.1.2).
- *events/s*: notifications sent by event channels. Rates are per second of virtual time.

`enter` types into the chosen domain. `p` pauses it or lets it go on, `R` asks it to reboot, `D` to shut down, `K`
destroys it (asks), `+`/`-` give it memory or take it by its balloon, `N` creates another.
"""
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *("domains--head", "domains--muted", "domains--blue", "domains--orange", "domains--error", "domains--cursor"),
    }
    DEFAULT_CSS = """
    Domains .domains--head { color: $muted; }
    Domains .domains--muted { color: $muted; }
    Domains .domains--blue { color: $primary; }
    Domains .domains--orange { color: $accent; }
    Domains .domains--error { color: $error; text-style: bold; }
    Domains .domains--cursor { background: $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("enter", "command('type')", "Type"),
        Binding("p", "pause", "Pause"),
        Binding("R", "command('reboot')", "Reboot"),
        Binding("D", "command('shutdown')", "Shut down"),
        Binding("K", "command('destroy')", "Destroy"),
        Binding("N", "ask('create')", "Create"),
        Binding("plus", "balloon(8)", "More memory"),
        Binding("minus", "balloon(-8)", "Less"),
    ]
    app: XentuiApp

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.histories: dict[int, History] = {}
        self.domains: tuple[Any, ...] = ()
        self._sampled = 0.0

    def show(self, answers: dict[str, Any], status: Any) -> None:
        """Take the state that came with the refresh; all that is shown is in it."""
        now = time.monotonic()
        if now - self._sampled >= SAMPLE_SECONDS or not status.running:
            self._sampled = now
            for domain in status.domains:
                history = self.histories.setdefault(domain.id, History())
                history.add(
                    Sample(
                        *(status.time, domain.cpu_ns, domain.hypercalls),
                        *(domain.traps, domain.direct_traps, domain.events),
                    )
                )
        self.domains = status.domains
        self.repaint()

    # --- drawing -----------------------------------------------------------------------------------------------------

    def _columns(self) -> list[Column]:
        for rank in range(max(column.rank for column in COLUMNS), -1, -1):
            shown = [column for column in COLUMNS if column.rank <= rank]
            if sum(column.width + 1 for column in shown) <= self.size.width:
                return shown
        return [column for column in COLUMNS if column.rank == 0]

    def draw_row(self, y: int, width: int) -> Strip:
        """Heading, then a domain a line."""
        columns = self._columns()
        if y == 0:
            style = self.get_component_rich_style("domains--head", partial=True)
            return self._strip([(self._fit(column.title, column), style) for column in columns], width)
        first = max(0, self._cursor() - (self.size.height - 2))
        at = y - 1 + first
        if not self.domains and y == 1:
            style = self.get_component_rich_style("domains--head", partial=True)
            text = " no domain is left; :create GUEST makes one, S or home leads back"
            return self._strip([(text, style)], width)
        if at >= len(self.domains):
            return Strip.blank(width, self.rich_style)
        domain = self.domains[at]
        history = self.histories.get(domain.id) or History()
        cells = [(self._fit(column.text(domain, history), column), self._ink(column.ink, domain)) for column in columns]
        cursor = self.get_component_rich_style("domains--cursor", partial=True) if at == self._cursor() else Style()
        return self._strip([(text, style + cursor) for text, style in cells], width, cursor)

    def _strip(self, cells: list[tuple[str, Style]], width: int, rest: Style | None = None) -> Strip:
        base = self.rich_style
        segments = [Segment(f"{text} ", base + style) for text, style in cells]
        return Strip(segments).adjust_cell_length(width, base + (rest or Style()))

    @staticmethod
    def _fit(text: str, column: Column) -> str:
        text = set_cell_size(text, column.width) if column.left or len(text) > column.width else text
        return text if column.left else text.rjust(column.width)

    def _ink(self, ink: str, domain: Any) -> Style:
        if ink == "state":
            ink = "error" if "c" in domain.state else "orange" if "p" in domain.state else ""
            ink = ink or ("blue" if "r" in domain.state else "muted")
        return self.get_component_rich_style(f"domains--{ink}", partial=True) if ink else Style()

    # --- choosing and doing ------------------------------------------------------------------------------------------

    def _cursor(self) -> int:
        names = [domain.name for domain in self.domains]
        return names.index(self.app.chosen_domain) if self.app.chosen_domain in names else 0

    def action_move(self, step: int) -> None:
        """Choose another domain."""
        if self.domains:
            at = max(0, min(len(self.domains) - 1, self._cursor() + step))
            self.app.chosen_domain = self.domains[at].name
            self.repaint()

    def on_click(self, event: events.Click) -> None:
        """A click on a domain chooses it."""
        at = event.y - 2
        if 0 <= at < len(self.domains):
            self.app.chosen_domain = self.domains[at].name
            self.repaint()

    def action_command(self, name: str) -> None:
        """A command of the table, for the chosen domain."""
        self.app.run_command(name, self.app.chosen_domain)

    def action_ask(self, name: str) -> None:
        """A command of the table that needs to be told more."""
        self.app.main.open_line(":", f"{name} ")

    def action_pause(self) -> None:
        """Pause the chosen domain, or let it go on."""
        domain = self.domains[self._cursor()] if self.domains else None
        if domain is not None:
            self.app.run_command("unpause-domain" if "p" in domain.state else "pause-domain", domain.name)

    def action_balloon(self, mib: int) -> None:
        """Set the chosen domain's memory by its balloon."""
        if self.domains:
            domain = self.domains[self._cursor()]
            self.app.run_command("memory", f"{domain.name} {max(1, (domain.pages >> 8) + mib)}")
