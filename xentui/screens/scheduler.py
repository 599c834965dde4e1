"""The scheduler: who ran when as a strip for each vCPU, and what the policy knows of them."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.binding import Binding

from xentui.engine.faults import time_text
from xentui.engine.trace import runner
from xentui.engine.trace_decode import runner_text, seconds
from xentui.engine.views import Query
from xentui.engine.xen import cpulist
from xentui.screens.gantt import NOBODY, History, Share
from xentui.screens.prompt import Prompt
from xentui.screens.replay import elsewhere, records_of
from xentui.screens.sheet import DOMAIN_INKS, Line, SheetPane, fit, heading, window, wrapped

_LABEL, _STATE, _PERCENT = 17, 10, 6
_AROUND, _LOWEST_TABLE = 4, 3
"""Lines around the strips, and those of a table with one vCPU."""
_LEAST = ("mcu_advance", "unwarp_time", "parked", "warp_limit", "active")
"""Columns that a narrow pane can do without, the least first: `mcu_advance` is the inverse of the weight."""
_BLOCKS = "▁▂▃▄▅▆▇█"
_SHORTEST, _LONGEST = 1_000, 1 << 40
_ROUND = (1, 2, 5)


class SchedulerPane(SheetPane):
    """`span` ns are shown that end at `end`, or now while `end` is None; `cursor` is a cell of the strip."""

    TITLE = "Scheduler"
    HELP: ClassVar[str] = """\
**What am I looking at?** Who had the processor: the paper's **section 3.3.1**, *CPU scheduling*. Xen as the paper
describes it uses **Borrowed Virtual Time** (BVT): work-conserving, and with a way to dispatch a domain quickly when an
event for it arrives. Each domain has a virtual time that grows as it runs, the slower the greater its *weight*; the
domain furthest behind runs next. *Warping* lets a domain that just woke pretend to be further behind, within limits:
low latency is lent, not given. Today's Xen has **credit**: weights again, and a cap.

* A row is a virtual CPU. The height of a block is the share of the cell's time that it **ran**; `░` it was runnable
  and **waited** for its turn; `·` it was blocked, at no cost to anybody.
* The percentages are shares of the window.
* In the past, and in a recording, what comes after the present moment (`▲`) is there too, faint.
* Where the machine has several processors (`--cpus`), **cpu** is the one that a vCPU runs on, or ran on last; **p**
  says where it may run.
* **weight**, **credit**, **avt/evt** (actual and effective virtual time), **warp**: what the policy goes by now.

Keys: **← →** a moment · **Enter** go there · **[ ]** show more, or less time · **↑ ↓** vCPU · **a** change a parameter
of its domain · **A** of the scheduler · **p** its processors · **f** follow the present
"""
    BINDINGS: ClassVar = [
        Binding("left", "move(-1)", "Earlier", show=False),
        Binding("right", "move(1)", "Later", show=False),
        Binding("pageup", "move(-20)", "Much earlier", show=False),
        Binding("pagedown", "move(20)", "Much later", show=False),
        Binding("up", "row(-1)", "vCPU above", show=False),
        Binding("down", "row(1)", "vCPU below", show=False),
        Binding("left_square_bracket", "zoom(1)", "More time"),
        Binding("right_square_bracket", "zoom(-1)", "Less time"),
        Binding("enter", "goto", "Go there"),
        Binding("a", "adjust", "Change"),
        Binding("A", "adjust_policy", "Change policy"),
        Binding("p", "pin", "Processors"),
        Binding("f", "follow", "Follow"),
    ]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.span = 20_000_000
        self.end: int | None = None
        self.cursor: int | None = None
        self.row = 0
        self.history = History()
        self._top = 0
        self._elsewhere = ""
        self._busy = False

    def queries(self) -> list[Query]:
        return [Query("sched.state")]

    def show(self, answers: dict[str, Any], status: Any) -> None:
        self._read(status)
        super().show(answers, status)

    def _read(self, status: Any) -> None:
        """Read what the trace says; come back in a moment if that is not all."""
        if self.history.read(records_of(self.app, status) if status is not None else None) and not self._busy:
            self._busy = True
            self.set_timer(0.005, self._again)
        self._elsewhere = elsewhere(self.app, status)  # reading may have come upon damage

    def _again(self) -> None:
        self._busy = False
        if self.is_attached:
            self._read(self.status)
            if not self._busy:
                self.redraw()

    # --- time -------------------------------------------------------------------------------------------------------

    def _cells(self) -> int:
        return max(8, self.content_size.width - _LABEL - _PERCENT)

    def window(self) -> tuple[int, int]:
        """(start, end) of what is shown, virtual ns."""
        now, newest = self._now(), self._newest()
        end = self.end
        if end is None:  # the present at the end, or in the middle while what comes then is known
            end = now if newest <= now else max(now, min(now + self.span // 2, newest))
        end = max(end, self.span)
        return end - self.span, end

    def _now(self) -> int:
        return int(getattr(self.status, "time", 0))

    def _newest(self) -> int:
        """The latest time that is known of: in the past, and in a recording, it lies ahead."""
        return max(self._now(), int(getattr(self.status, "end_time", 0)))

    def _cell(self, time: float) -> int:
        """The cell of the strips in which a time lies."""
        start, end = self.window()
        return int((time - start) * self._cells() // max(1, end - start))

    def moment(self) -> int | None:
        """The virtual time under the cursor."""
        if self.cursor is None:
            return None
        start, end = self.window()
        return start + (2 * self.cursor + 1) * (end - start) // (2 * self._cells())

    # --- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> list[Line]:
        state = self.answer("sched.state")
        if state is None:
            return [[(self.failure(), "error")]]
        vcpus = state["vcpus"]
        if state["cpus"] > 1:
            vcpus = [{**vcpu, "known": {"cpu": vcpu["cpu"], **vcpu["known"]}} for vcpu in vcpus]
        if not vcpus:
            return wrapped("No domain: nobody to schedule.", width, "dim")
        self.row = min(self.row, len(vcpus) - 1)
        start, end = self.window()
        parameters = "  ".join(f"{name} {_value(name, value)}" for name, value in state["parameters"].items())
        follow = " · follows" if self.end is None else ""
        follow += f" · {self._elsewhere}" if self._elsewhere else ""
        if self.history.until < end:
            follow += f" · read up to {seconds(int(self.history.until))}"
        lines: list[Line] = [
            fit([(state["policy"], "title"), (f"  {parameters}", "dim"), (follow, "dim")], width),
            heading(f"{time_text(self.span)} from {seconds(max(0, start))}", width, "█ ran  ░ waited  · blocked"),
        ]
        rows = min(len(vcpus), max(2, height - _AROUND - _LOWEST_TABLE))  # who ran comes before what is known
        self._top = window(len(vcpus), rows, self.row, self._top)
        self.spot(_LABEL, len(lines), self._cells(), rows, self._choose)
        for index, vcpu in enumerate(vcpus[self._top : self._top + rows], self._top):
            lines.append(self._strip(vcpu, index, start, end, width))
        hidden = len(vcpus) - rows
        lines.append(self._axis(start, end, width, f"↑ ↓ {hidden} more" if hidden else ""))
        lines.append(self._at_cursor(width))
        return [*lines, *self._table(vcpus, width, height - len(lines))]

    def _strip(self, vcpu: dict[str, Any], index: int, start: int, end: int, width: int) -> Line:
        cells = self._cells()
        share = self.history.share(runner(vcpu["domain"], vcpu["vcpu"]), start, end, cells)
        colour = DOMAIN_INKS[(vcpu["domain"] - 1) % len(DOMAIN_INKS)]
        here = index == self.row
        line: Line = [(_label(vcpu), "title" if here else "label")]
        present, known = self._cell(self._now()), self._cell(min(self.history.until, end))
        for cell, (text, style) in enumerate(_glyphs(share, colour)):
            if cell > known:
                text, style = " ", ""
            elif cell > present:
                style = "dim"
            style = f"{style}+cursor" if cell == self.cursor else style
            if line[-1][1] == style and len(line) > 1:
                line[-1] = (line[-1][0] + text, style)
            else:
                line.append((text, style))
        line.append((f"{100 * float(share.ran.mean()):4.0f} %", colour))
        return fit(line, width)

    def _axis(self, start: int, end: int, width: int, note: str) -> Line:
        """Times at round places below the strips."""
        cells, span = self._cells(), end - start
        step = _round_step(span * 14 // cells)
        text = [" "] * cells
        at = -(-start // step) * step
        present = self._cell(self._now())
        if end > self._now() and 0 <= present < cells:
            text[present] = "▲"
        while at < end:
            cell = (at - start) * cells // span
            label = f"╵{time_text(at)}"
            if cell + len(label) <= cells and all(character == " " for character in text[cell : cell + len(label)]):
                text[cell : cell + len(label)] = label
            at += step
        return fit([(f"{note:<{_LABEL}}", "label"), ("".join(text), "dim")], width)

    def _at_cursor(self, width: int) -> Line:
        moment = self.moment()
        if moment is None:
            return fit([("← → choose a moment", "dim")], width)
        state, line = self.answer("sched.state"), [("at ", "label"), (seconds(moment), "strong")]
        known = dict(self.domains())
        cpus = state["cpus"] if state else 1
        for cpu in range(cpus):
            who = self.history.runs_at(moment, cpu)
            name = "nobody" if who == NOBODY else runner_text(who)
            line.append((f"  processor {cpu} had " if cpus > 1 else "  the processor had ", "label"))
            line.append((f"{known[who >> 16]} {name}" if who >> 16 in known and cpus == 1 else name, "strong"))
        return fit([*line, ("  Enter goes there", "dim")], width)

    def _table(self, vcpus: list[dict[str, Any]], width: int, rows: int) -> list[Line]:
        """What the policy knows, a row a vCPU."""
        if rows < 3:
            return []
        names = list(dict.fromkeys(name for vcpu in vcpus for name in vcpu["known"]))
        columns = {name: max(len(name), 9) for name in names}
        if _LABEL + _STATE + sum(columns.values()) + len(columns) > width:  # closer together
            columns = {
                name: max(len(name), *(len(_value(name, vcpu["known"].get(name, ""))) for vcpu in vcpus))
                for name in names
            }
        for name in _LEAST:  # and without what tells least
            if _LABEL + _STATE + sum(columns.values()) + len(columns) > width:
                columns.pop(name, None)
        head: Line = [(f"{'vCPU':<{_LABEL}}{'state':<{_STATE}}", "label")]
        head += [(f"{name:>{size}} ", "label") for name, size in columns.items()]
        hidden = len(vcpus) - (rows - 2)
        lines = [
            heading("what the scheduler goes by", width, f"↑ ↓ {hidden} more" if hidden > 0 else ""),
            fit(head, width),
        ]
        top = window(len(vcpus), rows - 2, self.row, 0)
        for index, vcpu in enumerate(vcpus[top : top + rows - 2], top):
            here = "cursor" if index == self.row else ""
            line: Line = [(_label(vcpu), here), (f"{vcpu['runstate']:<{_STATE}}", "dim")]
            for name, size in columns.items():
                value = vcpu["known"].get(name, "")
                line.append((f"{_value(name, value):>{size}} ", "orange" if value is True else ""))
            lines.append(fit(line, width))
        return lines

    # --- keys -------------------------------------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        """Another moment; beyond the edge the window moves."""
        cells = self._cells()
        if self.end is None:
            self.end = self.window()[1]
        cursor = (cells - 1 if step < 0 else 0) if self.cursor is None else self.cursor + step
        if not 0 <= cursor < cells:
            shift = max(1, self.span // cells) * (cursor if cursor < 0 else cursor - cells + 1)
            self.end = max(self.span, min(self.end + shift, self._newest()))
        self.cursor = max(0, min(cells - 1, cursor))
        self.touch()

    def action_row(self, step: int) -> None:
        """Another vCPU."""
        self.row = max(0, self.row + step)
        self.touch()

    def action_zoom(self, direction: int) -> None:
        """Show twice the time, or half of it, around the cursor."""
        moment = self.moment()
        self.span = max(_SHORTEST, min(_LONGEST, self.span * 2 if direction > 0 else self.span // 2))
        if moment is not None:
            self.end = max(self.span, min(moment + self.span // 2, max(self._newest(), self.span)))
            start, end = self.window()
            self.cursor = max(0, min(self._cells() - 1, (moment - start) * self._cells() // max(1, end - start)))
        self.touch()

    def action_goto(self) -> None:
        """Take everything to the moment."""
        moment = self.moment()
        if moment is not None:
            self.post_message(self.Goto(time=moment))

    def action_follow(self) -> None:
        """Show the present."""
        self.end = self.cursor = None
        self.touch()

    def action_adjust(self) -> None:
        """Change a parameter of the chosen vCPU's domain."""
        state = self.answer("sched.state")
        if state and state["vcpus"]:
            vcpu = state["vcpus"][self.row]
            known = {name: value for name, value in vcpu["known"].items() if type(value) is int}
            self._ask(f"Of {vcpu['name']}: PARAMETER VALUE", known, vcpu["domain"])

    def action_adjust_policy(self) -> None:
        """Change a parameter of the scheduler itself."""
        state = self.answer("sched.state")
        if state:
            self._ask(f"Of the {state['policy']} scheduler: PARAMETER VALUE", state["parameters"], None)

    def action_pin(self) -> None:
        """Choose the physical processors that the vCPU may run on."""
        state = self.answer("sched.state")
        if not state or not state["vcpus"]:
            return
        vcpu = state["vcpus"][self.row]

        def check(text: str) -> str:
            try:
                cpulist.parse(text)
            except ValueError as error:
                return str(error)
            return ""

        def take(text: str | None) -> None:
            if text:
                self.act("pin", vcpu["domain"], vcpu["vcpu"], text)

        choices = ["all", *(str(cpu) for cpu in range(state["cpus"]))]
        question = f"Physical processors of {vcpu['name']} vCPU {vcpu['vcpu']}: all, 0, 0-1, …"
        self.app.push_screen(Prompt(question, vcpu["affinity"], choices, check), take)

    def _ask(self, question: str, known: dict[str, int], domain: int | None) -> None:
        def check(text: str) -> str:
            words = text.split()
            if len(words) != 2 or words[0] not in known:
                return f"a parameter and its value; there is {', '.join(known)}"
            return "" if words[1].isdigit() else f"{words[1]!r} is not a whole number"

        def take(text: str | None) -> None:
            if text:
                name, value = text.split()
                self.act("schedule", domain, name, int(value))

        first = next(iter(known.items()), ("", 0))
        self.app.push_screen(Prompt(question, f"{first[0]} {first[1]}", [f"{name} " for name in known], check), take)

    def _choose(self, x: int, y: int) -> None:
        if self.end is None:
            self.end = self.window()[1]
        self.cursor, self.row = x, self._top + y


def _label(vcpu: dict[str, Any]) -> str:
    """Domain and vCPU; a long name keeps its end, which tells names apart."""
    name, size = vcpu["name"], _LABEL - 5
    name = name if len(name) <= size else f"{name[: size // 2]}…{name[-(size - size // 2 - 1) :]}"
    return f"{name:<{size}} v{vcpu['vcpu']:<3}"


def _glyphs(share: Share, colour: str) -> list[tuple[str, str]]:
    """A character for each cell: how much the vCPU ran; else whether it waited, or was blocked."""
    glyphs = []
    for ran, waited in zip(share.ran.tolist(), share.waited.tolist(), strict=True):
        if ran > 0.005:
            glyphs.append((_BLOCKS[min(7, int(ran * 8))], colour))
        elif waited > 0.05:
            glyphs.append(("░", "dim"))
        else:
            glyphs.append(("·", "dim"))
    return glyphs


def _round_step(least: int) -> int:
    """The least of 1, 2, 5, 10, 20, … ns that is not below `least`."""
    size = 1
    while True:
        for factor in _ROUND:
            if factor * size >= least:
                return factor * size
        size *= 10


_TIMES = ("avt", "evt", "warp", "warp_limit", "unwarp_time", "slice", "rate_limit", "context_switch_allowance")


def _value(name: str, value: Any) -> str:
    """A parameter as people read it: times with their unit."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in _TIMES and isinstance(value, int):
        if abs(value) >= 1_000_000:
            return f"{value / 1e6:.3f}".rstrip("0").rstrip(".") + "ms"
        return f"{value / 1e3:.3f}".rstrip("0").rstrip(".") + "us" if value else "0"
    return str(value)
