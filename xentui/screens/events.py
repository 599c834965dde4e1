"""Event channels: the bitmaps of shared_info bit by bit, each vCPU's selector and upcall bytes, ports and history."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.binding import Binding

from xentui.engine.trace_decode import seconds
from xentui.engine.views import Query
from xentui.screens.dialogs import Choice
from xentui.screens.port_history import PortEvent, PortHistory, port_history
from xentui.screens.records import RecordedTrace
from xentui.screens.replay import elsewhere, records_of
from xentui.screens.sheet import Line, SheetPane, beside, fit, heading, length, window, wrapped

_BESIDE = 42
"""Cells that the details need beside the bitmap."""
_LABEL = 8
_AHEAD = 2
"""Events to come that are shown, where they are recorded."""
_SLICE = 0.01
_CELLS = {
    (True, False): ("●", "orange"),
    (True, True): ("◐", "yellow"),
    (False, True): ("○", "blue"),
    (False, False): ("▪", "green"),
}
"""(pending, masked) of a port in use to its character and ink."""
_LEGEND: Line = [
    ("● pending  ", "orange"),
    ("◐ pending, masked  ", "yellow"),
    ("○ masked  ", "blue"),
    ("▪ open  ", "green"),
    ("· free", "dim"),
]


class EventsPane(SheetPane):
    """`port` is where the cursor is."""

    TITLE = "Event channels"
    HELP: ClassVar[str] = """\
**What am I looking at?** The events of one domain: the paper's **section 3.1**, *Control Transfer: Hypercalls and
Events*. Domains call Xen by **hypercalls**; Xen notifies domains by an asynchronous **event mechanism**, which takes
the place of device interrupts. Each event is one bit: it says *that* something happened, not how often or what.

* **Pending events** are a bitmask that Xen sets before it calls the guest's *event-callback handler*. The handler
  clears them. Here the bits lie as in `shared_info`: a row is one word of `evtchn_pending` and of `evtchn_mask`,
  or part of one where the pane is narrow.
* A **selector** word in each `vcpu_info` says which words are worth a look (▸); `evtchn_upcall_pending` says that the
  selector is. So a guest finds one of thousands of events with two bit scans. A domain that has switched to the newer
  FIFO ABI has queues instead, one a priority, shown at its vCPUs; its bitmaps lie idle.
* **upcalls masked**: the guest may defer all events by a flag that Xen reads, "analogous to disabling interrupts on a
  real processor". Many events that wait then cost *one* upcall.
* A port's latest events stand beside it; in a recording the next ones too, faint, over them.
* A **port** is one end of a channel. Its peer is a port of another domain, a virtual interrupt (VIRQ), another vCPU of
  the same domain (IPI), or a back end of the control domain.

Keys: **arrows** move · **p** raise an event on the port · **k** mask · **u** unmask · **o** who wrote this: a bit of
the port, its selector bit, an upcall byte (a byte of `vcpu_info`), or who sent the latest event ·
**Enter** go to the port's latest event · **, .** ports in use · **d** another domain
"""
    BINDINGS: ClassVar = [
        Binding("left", "move(-1)", "Port before", show=False),
        Binding("right", "move(1)", "Port behind", show=False),
        Binding("up", "word(-1)", "Word up", show=False),
        Binding("down", "word(1)", "Word down", show=False),
        Binding("full_stop", "next_used(1)", "Next in use"),
        Binding("comma", "next_used(-1)", "Previous in use", show=False),
        Binding("p", "raise_event", "Raise event"),
        Binding("k", "mask", "Mask"),
        Binding("u", "unmask", "Unmask"),
        Binding("o", "who_wrote", "Who wrote"),
        Binding("enter", "goto", "Latest event"),
        Binding("d", "domain(1)", "Domain"),
        Binding("f", "follow", "Follow"),
    ]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.domain: int | None = None
        self.port = 1
        self._top = 0
        self._row = 64
        """Bits in a row."""
        self._history: list[PortEvent] = []
        self._ahead: list[PortEvent] = []
        """Of a recording, what will happen to the port."""
        self._whole: PortHistory | None = None
        self._elsewhere = ""
        self._busy = False
        self._seen: tuple[Any, list[Line]] = (None, [])
        """The latest overview, and the bits that it was drawn from."""

    # --- asking -----------------------------------------------------------------------------------------------------

    def whose(self) -> int | None:
        """The domain that is shown."""
        if self.domain is not None:
            return self.domain
        current = self.current_vcpu()
        return current[0] if current else None

    def queries(self) -> list[Query]:
        domain = self.whose()
        if domain is None:
            return []
        return [
            Query("events.bitmaps", {"domain": domain}),
            Query("events.ports", {"domain": domain}),
            Query("events.bits", {"domain": domain, "port": self.port}),
        ]

    def show(self, answers: dict[str, Any], status: Any) -> None:
        bits = answers.get("events.bitmaps")
        if isinstance(bits, dict):
            self._look_back(bits["domain"], status)
        self._elsewhere = elsewhere(self.app, status)  # reading may have come upon damage
        super().show(answers, status)

    def _look_back(self, domain: int, status: Any) -> None:
        """What happened to the port; of a recording, what will happen too. Comes back if that takes longer."""
        records, now = records_of(self.app, status), getattr(status, "records", 0)
        count = max(4, self.content_size.height // 2)
        if not isinstance(records, RecordedTrace):
            self._history, self._ahead, self._whole = port_history(records, now, domain, self.port, count), [], None
            return
        whole = self._whole
        if whole is None or (whole.source, whole.domain, whole.port) != (records, domain, self.port):
            whole = self._whole = PortHistory(records, domain, self.port)
        whole.advance(now, _SLICE)
        self._history, self._ahead = whole.around(now, count, _AHEAD)
        if not whole.complete and not self._busy:
            self._busy = True
            self.set_timer(0.005, self._again)

    def _again(self) -> None:
        self._busy = False
        domain = self._shown()
        if self.is_attached and domain is not None:
            self._look_back(domain, self.status)
            self.redraw()

    def choose_part(self, name: str) -> None:
        """Put the cursor on a port, given by its number."""
        self.port = min(int(name), self._ports() - 1 if self.answer("events.bitmaps") else int(name))
        self.refresh()

    # --- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> list[Line]:
        bits = self.answer("events.bitmaps")
        if bits is None:
            return wrapped(self.failure() or "No domain runs: there are no event channels.", width, "dim")
        ports = {row["port"]: row for row in self.answer("events.ports") or []}
        follow = " · follows" if self.domain is None else ""
        follow += f" · {self._elsewhere}" if self._elsewhere else ""
        lines: list[Line] = [
            [
                (f"{bits['name']} d{bits['domain']}", "title"),
                (f"  {bits['abi']} ABI, {bits['ports']} ports{follow}", "dim"),
            ]
        ]
        lines += self._vcpus(bits, width)
        lines.append(fit(_LEGEND, width))
        self._row = bits["width"]
        while self._row > 16 and _LABEL + self._row > width:
            self._row //= 2
        words = bits["ports"] // self._row
        left_width = _LABEL + self._row + 4
        side = width - left_width >= _BESIDE
        left = height - len(lines) - 1
        overview = words // 2 + 1 if side and left > words // 2 + 10 else 0
        rows = max(2, min(words, left - overview if side else left // 3))
        bitmap = [self._ruler(bits), *self._words(bits, ports, rows)]
        self.spot(_LABEL, len(lines) + 1, self._row, rows, self._choose)
        if not side:
            return [*lines, *bitmap, *self._details(bits, ports, width)]
        if overview and rows < words:
            bitmap += [heading("the whole bitmap", left_width - 4), *self._overview(bits)]
        return lines + beside(bitmap, self._details(bits, ports, width - left_width), left_width, 0)

    def _vcpus(self, bits: dict[str, Any], width: int) -> list[Line]:
        """What each vcpu_info says."""
        lines: list[Line] = []
        fifo = bits["abi"] == "FIFO"
        for vcpu in bits["vcpus"][:4]:
            pending = ("● upcall pending", "orange") if vcpu["pending"] else ("· no upcall pending", "dim")
            mask = ("○ upcalls masked", "blue") if vcpu["mask"] else ("▪ upcalls open", "green")
            for gap, digits in (("  ", bits["width"] // 4), (" ", 0)):  # closer together where there is no room
                line: Line = [
                    (f"vCPU {vcpu['vcpu']}{gap}", "label"), pending, (gap, ""), mask, (f"{gap}selector ", "label"),
                    ("-" if fifo else f"{vcpu['selector']:0{digits}x}", "orange" if vcpu["selector"] else "dim"),
                    (f"{gap}callback ", "label"), (f"{vcpu['callback']:x}", "" if vcpu["callback"] else "dim"),
                ]  # fmt: skip
                if length(line) <= width:
                    break
            lines += [line] if length(line) <= width else [line[:4], [("      ", ""), *line[4:]]]
            for priority, queued in vcpu["queues"].items():
                chain = " → ".join(map(str, queued))
                lines.append([(f"        queue {priority:<2} ", "label"), (chain, "orange")])
        if len(bits["vcpus"]) > 4:
            lines.append([(f"and {len(bits['vcpus']) - 4} more vCPUs", "dim")])
        return lines

    def _ruler(self, bits: dict[str, Any]) -> Line:
        text = "".join(f"{bit:<8}" for bit in range(0, self._row, 8))
        return [("word    ", "label"), (text, "dim")]

    def _words(self, bits: dict[str, Any], ports: dict[int, Any], rows: int) -> list[Line]:
        """Rows of the bitmap around the cursor: a word each, or as much of one as there is room for."""
        each = self._row
        count = bits["ports"] // each
        self._top = window(count, rows, self.port // each, self._top)
        selected = 0
        for vcpu in bits["vcpus"] if bits["abi"] != "FIFO" else ():  # whose guests do not look at it
            selected |= vcpu["selector"]
        lines: list[Line] = []
        for row in range(self._top, min(count, self._top + rows)):
            word, first = divmod(row * each, bits["width"])
            label = f"{word:>4}  " if not first else f"  +{first:<3}"
            line: Line = [(label, "label"), ("▸ " if selected >> word & 1 else "  ", "orange")]
            for port in range(row * each, row * each + each):
                text, style = self._cell(bits, port, ports.get(port))
                line.append((text, f"{style}+cursor" if port == self.port else style))
            lines.append(_merged(line))
        return lines

    def _cell(self, bits: dict[str, Any], port: int, used: dict[str, Any] | None) -> tuple[str, str]:
        """A port's character and ink; those in use by the ABI that the domain has, others by the bitmaps."""
        if used is not None:
            return _CELLS[used["pending"], used["masked"]]
        pending = bits["pending"][port >> 3] >> (port & 7) & 1
        masked = bits["mask"][port >> 3] >> (port & 7) & 1
        return _CELLS[True, bool(masked)] if pending else ("○" if masked else "·", "dim")

    def _overview(self, bits: dict[str, Any]) -> list[Line]:
        """The whole bitmap, two words a row by half blocks: orange pending, blue masked, grey neither."""
        width, words = bits["width"], bits["ports"] // bits["width"]
        key = bits["pending"], bits["mask"]
        if key == self._seen[0]:
            return self._seen[1]
        lines: list[Line] = []
        for word in range(0, words, 2):
            line: Line = [(" " * _LABEL, "")]
            for bit in range(width):
                upper, lower = (self._colour(bits, (word + below) * width + bit) for below in (0, 1))
                line.append(("▀", f"{upper} on {lower}"))
            lines.append(_merged(line))
        self._seen = key, lines
        return lines

    def _colour(self, bits: dict[str, Any], port: int) -> str:
        if bits["pending"][port >> 3] >> (port & 7) & 1:
            return "#f5a742"
        return "#2a4a68" if bits["mask"][port >> 3] >> (port & 7) & 1 else "#30363c"

    def _details(self, bits: dict[str, Any], ports: dict[int, Any], width: int) -> list[Line]:
        """The port under the cursor in words, its history, and the ports in use."""
        word, bit = divmod(self.port, bits["width"])
        row = ports.get(self.port)
        lines = [heading(f"port {self.port}", width, f"word {word} bit {bit}")]
        if row is None:
            kind = "reserved" if self.port == 0 else "free" if self.port < bits["known"] else "beyond those that exist"
            lines.append([(f"{kind}: no channel ends here", "dim")])
        else:
            held = "pending" if row["pending"] else "nothing waits"
            mask = ", masked" if row["masked"] else ""
            lines.append([(row["state"], "strong"), (f"  {row['peer']}", ""), (f"  {held}{mask}", "dim")])
            lines.append([(f"its events go to vCPU {row['vcpu']}", "dim")])
        for event in self._ahead[::-1]:
            lines.append(fit([(f"{seconds(event.time)[:-3]}  {event.text} (to come)", "dim")], width))
        for event in self._history[:4]:
            lines.append(fit([(f"{seconds(event.time)[:-3]}  ", "dim"), (event.text, "")], width))
        lines.append(heading("ports in use", width, f"{len(ports)}"))
        for port, used in ports.items():
            text, style = self._cell(bits, port, used)
            here = "cursor" if port == self.port else ""
            lines.append(
                fit([(f"{text} ", style), (f"{port:>4}  {used['state']:<12}", here), (f" {used['peer']}", "")], width)
            )
        return lines

    # --- keys -------------------------------------------------------------------------------------------------------

    def _shown(self) -> int | None:
        """The domain whose bits are seen; when others run by now, it is still what a key means."""
        bits = self.answer("events.bitmaps")
        return bits["domain"] if bits else self.whose()

    def _ports(self) -> int:
        bits = self.answer("events.bitmaps")
        return bits["ports"] if bits else 1

    def action_move(self, step: int) -> None:
        """Another bit."""
        self.port = max(0, min(self._ports() - 1, self.port + step))
        self.touch()

    def _choose(self, bit: int, row: int) -> None:
        bits = self.answer("events.bitmaps")
        if bits:
            self.port = min(bits["ports"] - 1, (self._top + row) * self._row + bit)

    def action_word(self, step: int) -> None:
        """The bit above or below."""
        bits = self.answer("events.bitmaps")
        if bits and 0 <= self.port + step * self._row < bits["ports"]:
            self.port += step * self._row
            self.touch()

    def action_next_used(self, step: int) -> None:
        """The next port that is in use."""
        used = [row["port"] for row in self.answer("events.ports") or []]
        ahead = [port for port in used if (port - self.port) * step > 0]
        if used:
            self.port = (min(ahead) if step > 0 else max(ahead)) if ahead else used[0 if step > 0 else -1]
            self.touch()

    def action_raise_event(self) -> None:
        """Make the port pending, as its other end would."""
        self.act("send", self._shown(), self.port)

    def action_mask(self) -> None:
        """Set the port's mask bit."""
        self.act("mask", self._shown(), self.port)

    def action_unmask(self) -> None:
        """Clear the port's mask bit, and deliver what waited."""
        self.act("unmask", self._shown(), self.port)

    def action_who_wrote(self) -> None:
        """Ask which of the bits that the port's event goes by is meant; whoever runs there, this port stays in view."""
        domain = self._shown()
        if domain is None:
            return
        self.domain = domain
        bits = {bit["key"]: bit for bit in self.answer("events.bits") or []}
        options = [(key, key, f"{bit['what']}, now {'set' if bit['set'] else 'clear'}") for key, bit in bits.items()]
        sent = ("e", "e", "the latest event that was sent to it, as the trace tells")
        wanted: dict[str, tuple[Any, ...]] = {key: ("bit", bit["at"], bit["mask"]) for key, bit in bits.items()}
        wanted["e"] = ("port", domain, self.port)

        def ask(key: str | None) -> None:
            if key is not None:
                self.post_message(self.WhoWrote(wanted[key]))

        self.app.push_screen(Choice(f"Who wrote this? Port {self.port} of domain {domain}", [*options, sent]), ask)

    def action_goto(self) -> None:
        """Go to the latest thing that happened to the port."""
        if self._history:
            self.post_message(self.Goto(record=self._history[0].record))

    def action_domain(self, step: int) -> None:
        """Another domain."""
        self.domain = self.next_domain(self.whose(), step)
        self.touch()

    def action_follow(self) -> None:
        """Show whoever has the processor."""
        self.domain = None
        self.touch()


def _merged(line: Line) -> Line:
    """The line with neighbours of one ink joined: a segment costs more than its text."""
    out: Line = []
    for text, style in line:
        if out and out[-1][1] == style:
            out[-1] = (out[-1][0] + text, style)
        else:
            out.append((text, style))
    return out
