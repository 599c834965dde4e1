"""Machine memory: frames as a map, page tables as a tree, an address walked, refusals; one part at a time."""

from __future__ import annotations

from time import monotonic
from typing import Any, ClassVar

from textual.binding import Binding

from xentui.engine import trace_decode
from xentui.engine.trace import Kind, Record
from xentui.engine.trace_decode import seconds
from xentui.engine.views import Query, ViewError
from xentui.engine.xen import refusals
from xentui.screens.memory_map import FrameMap
from xentui.screens.page_tables import PageTableTree
from xentui.screens.prompt import Prompt
from xentui.screens.replay import records_of
from xentui.screens.sheet import Line, SheetPane, fit, heading, window, wrapped

PARTS = ("frames", "page tables", "walk", "refusals")
_REACH = 1 << 18
"""How many of the latest records are searched for refusals."""


class MemoryPane(SheetPane):
    """`part` is a number of PARTS."""

    TITLE = "Memory"
    HELP: ClassVar[str] = """\
**What am I looking at?** The machine's memory, of which each domain has a share that is not contiguous: the paper's
**section 3.3.4**, *physical memory*. A guest thinks in *pseudo-physical* frames; the page tables hold *machine* frames.

* **Frames**: each cell is some machine frames, by owner or by type. "A frame may have any one of the following
  mutually-exclusive types at any point in time" (**section 3.3.3**): page table of a level, descriptor table, or
  writable; it changes its type only when its **type count** is zero. That rule is what isolates domains: a page table
  that could be written could map anything.
* **Page tables**: those that the processor itself walks (**section 2.1.1**): *direct paging*. Xen only checks changes.
  From CR3 one level at a time, with flags, type and counts of what each entry refers to.
* **Walk**: a virtual address as the processor translates it, entry by entry, and where it would fault.
* **Refusals**: what the validator did not let a guest do, by which rule, and where Xen has it.

Keys: **[ ]** part · **arrows** move · **Enter →** open or zoom in · **Backspace ←** close or zoom out · **t** owner or
type · **a** walk an address · **o** who wrote the entry, or changed the frame's type count · **u** audit the frame
table · **d v** domain, vCPU · **f** follow
"""
    BINDINGS: ClassVar = [
        Binding("left_square_bracket", "part(-1)", "Part before", show=False),
        Binding("right_square_bracket", "part(1)", "Next part"),
        Binding("up", "move(0,-1)", "Up", show=False),
        Binding("down", "move(0,1)", "Down", show=False),
        Binding("left", "move(-1,0)", "Left", show=False),
        Binding("right", "move(1,0)", "Right", show=False),
        Binding("pageup", "move(0,-10)", "Page up", show=False),
        Binding("pagedown", "move(0,10)", "Page down", show=False),
        Binding("enter", "open", "Open"),
        Binding("backspace", "shut", "Close", show=False),
        Binding("t", "colour", "Owner/type"),
        Binding("a", "address", "Walk"),
        Binding("o", "who_wrote", "Who wrote"),
        Binding("u", "audit", "Audit"),
        Binding("d", "domain(1)", "Domain"),
        Binding("v", "vcpu(1)", "vCPU"),
        Binding("f", "follow", "Follow"),
    ]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.part = 0
        self.domain: int | None = None
        self.vcpu = 0
        self.address: int | str = "rip"
        self.map = FrameMap()
        self._trees: dict[tuple[int, int], PageTableTree] = {}
        """Of each vCPU that was looked at: what is open stays so."""
        self._asked: tuple[int, int] | None = None
        self._shown: tuple[int, int] | None = None
        """(domain, vCPU) that the latest question was about, and the latest answer."""
        self.line = 0
        """The cursor among the steps of the walk, or the refusals."""
        self._top = 0
        self._auditing = False
        self._audit: list[str] | None = None
        self._refusals: list[tuple[int, Record]] = []

    # --- asking -----------------------------------------------------------------------------------------------------

    def who(self) -> tuple[int, int] | None:
        """(domain, vCPU) that is shown."""
        return self.current_vcpu() if self.domain is None else (self.domain, self.vcpu)

    @property
    def tables(self) -> PageTableTree:
        """The page tables of the vCPU that is shown."""
        return self._trees.setdefault(self._shown or (-1, 0), PageTableTree())

    def queries(self) -> list[Query]:
        asked: list[Query] = [Query("memory.audit")] if self._auditing else []
        if PARTS[self.part] == "frames":
            self.map.width = max(16, self.content_size.width)
            self.map.rows = max(2, self.content_size.height - 7)
            if self.map.due(monotonic()):
                asked.append(self.map.query())
            return [*asked, Query("memory.frame", {"mfn": self.map.mfn})]
        self._asked = who = self.who()
        if who is None:
            return asked
        whose = {"domain": who[0], "vcpu": who[1]}
        if PARTS[self.part] == "page tables":
            tree = self._trees.setdefault(who, PageTableTree())
            return [*asked, Query("memory.roots", whose), *tree.queries()]
        if PARTS[self.part] == "walk":
            return [*asked, Query("memory.walk", {**whose, "at": self.address})]
        return asked

    def show(self, answers: dict[str, Any], status: Any) -> None:
        found = answers.get("memory.frame_map")
        if isinstance(found, dict):
            self.map.update(found)
        self._shown = self._asked
        roots = answers.get("memory.roots")
        if isinstance(roots, list):
            self.tables.update(roots, answers)
        if "memory.audit" in answers:
            result = answers["memory.audit"]
            self._audit = [str(result)] if isinstance(result, ViewError) else result
            self._auditing = False
        if PARTS[self.part] == "refusals":
            self._refusals = self._latest_refusals(status)
        super().show(answers, status)

    def choose_part(self, name: str) -> None:
        """Show a part by its name, `tables` for the page tables."""
        self.part = next(number for number, part in enumerate(PARTS) if part.split()[-1] == name)
        self.refresh()

    def _latest_refusals(self, status: Any) -> list[tuple[int, Record]]:
        """Number and record of the latest refusals before the present moment, newest first."""
        records = records_of(self.app, status) if status is not None else None
        if records is None:
            return []
        end = min(status.records, records.end)
        start = max(records.first, end - _REACH)
        places = (records.columns("kind", start, end) == Kind.REFUSAL).nonzero()[0][-200:][::-1].tolist()
        found = [(start + at, records.rows(start + at, start + at + 1)) for at in places]
        return [(number, Record(*rows[0].tolist())) for number, rows in found if len(rows)]

    # --- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> list[Line]:
        tabs: Line = []
        for number, name in enumerate(PARTS):
            tabs += [(f" {name} ", "now" if number == self.part else "dim"), (" ", "")]
        lines = [fit(tabs, width)]
        place = 0
        for number, name in enumerate(PARTS):
            self.spot(place, 0, len(name) + 2, 1, lambda _x, _y, number=number: self._show_part(number))
            place += len(name) + 3
        if self._audit is not None:
            good = "the frame table is what the page tables say"
            lines.append([("audit: ", "label"), (self._audit[0], "red") if self._audit else (good, "green")])
        rows = height - len(lines)
        if PARTS[self.part] == "frames":
            self.spot(0, len(lines) + 1, width, self.map.rows, self.map.choose)
        part = (self._draw_frames, self._draw_tables, self._draw_walk, self._draw_refusals)[self.part]
        return [*lines, *part(width, rows)]

    def _draw_frames(self, width: int, rows: int) -> list[Line]:
        found, frame = self.map.answer, self.answer("memory.frame")
        if found is None:
            return [[(self.failure(), "error")]]
        end = found["first"] + found["count"] - 1
        note = f"a cell is {found['size']} frames" if found["size"] > 1 else "a cell is a frame"
        legend = self.map.legend(width)
        lines = [heading(f"frames {found['first']:#x} to {end:#x} by {self.map.by}", width, note), *self.map.draw()]
        lines = lines[: rows - 3 - len(legend)] + legend
        if frame is not None:
            lines += [heading(f"frame {frame['mfn']:#x}", width, "under the cursor"), *self._frame_lines(frame, width)]
        return lines

    def _frame_lines(self, frame: dict[str, Any], width: int) -> list[Line]:
        references = "reference" if frame["ref_count"] == 1 else "references"
        line: Line = [("owner ", "label"), (frame["owner"], "strong"), ("  type ", "label"), (frame["type"], "strong")]
        line += [(f" used {frame['type_count']}×", ""), (f"  {frame['ref_count']} {references}", "")]
        if frame["flags"]:
            line.append((f"  {', '.join(frame['flags'])}", "dim"))
        more: Line = []
        if frame["pfn"] is not None:
            more += [("pseudo-physical frame ", "label"), (f"{frame['pfn']:#x}", "")]
        if frame["special"]:
            more += [("  ", ""), (frame["special"], "yellow")]
        return [fit(line, width), fit(more, width)]

    def _whose(self) -> str:
        who = self._shown
        follows = " · follows" if self.domain is None else ""
        return f"{dict(self.domains()).get(who[0], '?')} d{who[0]}v{who[1]}{follows}" if who else "no domain"

    def _draw_tables(self, width: int, rows: int) -> list[Line]:
        if not self.tables.rows:
            return wrapped(self.failure() or "No domain runs: there are no page tables.", width, "dim")
        chosen = self.tables.chosen()
        note = f"at {chosen['at']:#x}: {chosen['entry']:016x}" if chosen and not chosen["root"] else ""
        return [heading(f"page tables of {self._whose()}", width, note), *self.tables.draw(width, rows - 1)]

    def _draw_walk(self, width: int, rows: int) -> list[Line]:
        walk = self.answer("memory.walk")
        if walk is None:
            return [[(self.failure() or "No domain runs.", "error")]]
        lines = [heading(f"{self.address} of {self._whose()}", width), [("virtual address ", "label"),
                 (f"{walk['address']:x}", "strong"), (f"  {walk['symbol']}", "yellow")], []]  # fmt: skip
        for number, step in enumerate(walk["steps"]):
            here = number == min(self.line, len(walk["steps"]) - 1)
            bad = not walk["ok"] and number == len(walk["steps"]) - 1
            lines.append(
                fit([("› " if here else "  ", "blue"), (f"L{step['level']}", "title"),
                     (f"  table in frame {step['table']:x}, entry {step['index']}", ""),
                     (f"  at {step['at']:#x}", "dim")], width)
            )  # fmt: skip
            lines.append(
                fit([("      ", ""), (f"{step['entry']:016x}", "cursor" if here else ""), ("  ", ""),
                     (step["flags"], "red" if bad else "orange" if "RW" in step["flags"].split() else "label"),
                     (f"  → frame {step['mfn']:x}: {step['text']}" if not bad else f"  {step['text']}", "dim")], width)
            )  # fmt: skip
        lines.append([])
        if walk["ok"]:
            lines.append([("✓ machine address ", "green"), (f"{walk['machine_address']:#x}", "strong")])
            lines += [[("  ", ""), *line] for line in wrapped(walk["why"], width - 2, "")]
        else:
            lines += [[("✗ ", "red"), *line] for line in wrapped(walk["why"], width - 2, "")]
        return lines[:rows]

    def _draw_refusals(self, width: int, rows: int) -> list[Line]:
        found = self._refusals
        lines = [heading("refusals, newest first", width, f"{len(found)}")]
        if not found:
            text = "The validator has refused nothing in the records at hand. Try: inject flip DOMAIN pte ADDRESS bit 1"
            return [*lines, *wrapped(text, width, "dim")]
        self.line = min(self.line, len(found) - 1)
        list_rows = max(1, rows - 8)
        self._top = window(len(found), list_rows, self.line, self._top)
        for index, (_, record) in enumerate(found[self._top : self._top + list_rows], self._top):
            name = dict(self.domains()).get(record.domain, f"d{record.domain}")
            style = "cursor" if index == self.line else ""
            lines.append(
                fit([(f"{seconds(record.time)[:-3]}  ", "dim"), (f"{name:<9} ", "blue"),
                     (f"{trace_decode.result_text(record.result):<9} ", "red"),
                     (refusals.rule_text(record.number), style)], width)
            )  # fmt: skip
        return [*lines, *_explain(found[self.line][1], width)]

    # --- keys -------------------------------------------------------------------------------------------------------

    def _show_part(self, number: int) -> None:
        self.part = number
        self.line = self._top = 0

    def action_part(self, step: int) -> None:
        """The next part of the pane."""
        self._show_part((self.part + step) % len(PARTS))
        self.touch()

    def action_move(self, dx: int, dy: int) -> None:
        """Move the cursor of the part that is shown."""
        if PARTS[self.part] == "frames":
            self.map.move(dx, dy * 2 if abs(dy) > 1 else dy)
        elif PARTS[self.part] == "page tables":
            if dy:
                self.tables.move(dy)
            elif dx > 0:
                self._expand()
            else:
                self.tables.collapse()
        else:
            self.line = max(0, self.line + dy)
        self.touch()

    def action_open(self) -> None:
        """Zoom in, open a table, or go to a refusal."""
        if PARTS[self.part] == "frames":
            self.map.zoom(True)
        elif PARTS[self.part] == "page tables":
            self._expand()
        elif PARTS[self.part] == "refusals" and self._refusals:
            self.post_message(self.Goto(record=self._refusals[self.line][0]))
        self.touch()

    def _expand(self) -> None:
        """Open a table; whoever runs from now on, these tables stay in view."""
        self._stay()
        self.tables.expand()

    def _stay(self) -> None:
        self.domain, self.vcpu = self._shown or (self.domain, self.vcpu)

    def action_shut(self) -> None:
        """Zoom out, or close a table."""
        if PARTS[self.part] == "frames":
            self.map.zoom(False)
        else:
            self.tables.collapse()
        self.touch()

    def action_colour(self) -> None:
        """Frames by owner or by type."""
        self.map.by = "type" if self.map.by == "owner" else "owner"
        self.touch()

    def action_address(self) -> None:
        """Walk an address."""

        def walk(text: str | None) -> None:
            if text:
                self.address, self.part, self.line = text.strip(), PARTS.index("walk"), 0
                self.touch()

        self.app.push_screen(Prompt("Walk: an address, a register, a symbol, with + and -", ""), walk)

    def action_who_wrote(self) -> None:
        """Go to what wrote the entry under the cursor, or made the frame what it is."""
        at = None
        if PARTS[self.part] == "frames":
            self.post_message(self.WhoWrote(("frame", self.map.mfn)))
            return
        if PARTS[self.part] == "page tables":
            chosen = self.tables.chosen()
            at = chosen.get("at") if chosen else None
        elif PARTS[self.part] == "walk":
            walk = self.answer("memory.walk")
            at = walk["steps"][min(self.line, len(walk["steps"]) - 1)]["at"] if walk and walk["steps"] else None
        if at is not None:
            self._stay()  # whoever runs there, it stays in view
            self.post_message(self.WhoWrote(("pte", at)))
        else:
            self.notify("choose an entry of a table (Page tables) or a step (Walk) first", severity="warning")

    def action_audit(self) -> None:
        """Recount the frame table from the page tables."""
        self._auditing, self._audit = True, None
        self.touch()

    def action_domain(self, step: int) -> None:
        """Another domain."""
        who = self.who()
        self.domain, self.vcpu = self.next_domain(who[0] if who else None, step), 0
        self.touch()

    def action_vcpu(self, step: int) -> None:
        """Another vCPU."""
        who = self.who()
        if who is not None:
            counts = {domain.id: domain.vcpus for domain in self.engine_status().domains}
            self.domain, self.vcpu = who[0], (who[1] + step) % max(1, counts.get(who[0], 1))
            self.touch()

    def action_follow(self) -> None:
        """Show whoever has the processor."""
        self.domain = None
        self.touch()


def _explain(record: Record, width: int) -> list[Line]:
    """A refusal in full."""
    shown = {field.name: field.text for field in trace_decode.fields(record)}
    lines = [heading("why", width, f"Xen: {shown.pop('xen', '').strip(chr(34))}")]
    lines += wrapped(shown.pop("rule", "").strip('"'), width, "strong")
    shown.pop("result", "")
    if all(name in shown for name in ("level", "index", "machine_address")):
        level, index, at = (shown.pop(name) for name in ("level", "index", "machine_address"))
        lines.append(fit([("entry  ", "label"), (f"{level}[{index}] at machine address {at}", "")], width))
    if all(name in shown for name in ("mfn", "owner", "type")):  # whose it is, before what may not be seen any more
        mfn, owner, kind = (shown.pop(name) for name in ("mfn", "owner", "type"))
        frame: Line = [("frame  ", "label"), (f"{mfn}, {owner}", "strong"), (f", type {kind}", "")]
        lines.append(fit(frame, width))
    for name, text in shown.items():
        lines.append(fit([(f"{name.replace('_', ' '):<6} ", "label"), (text, "")], width))
    return lines
