"""A virtual CPU: registers with what changed, code around RIP, stack, memory. One sheet; the code has a cursor."""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar

from textual.binding import Binding

from xentui.engine.views import Query
from xentui.screens.prompt import Prompt
from xentui.screens.sheet import Line, SheetPane, beside, fit, heading, length, wrapped

WIDE = 118
_LEAST_CODE = 5
"""Rows for the code and its heading; where there are fewer, flags and segment registers give way to them."""
_DUMP = 68
"""Cells behind the address in a line of memory: sixteen bytes as numbers and as characters."""
_SOURCE = 40
"""Cells for source lines, where there are any."""
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_SIDES = ("stack", "memory")


class CpuPane(SheetPane):
    """`domain` is None while the pane follows whoever has the processor."""

    TITLE = "CPU"
    HELP: ClassVar[str] = """\
**What am I looking at?** One virtual CPU of one domain, as the processor sees it, or would see it: the registers of a
vCPU that is not loaded are those that it will go on with.

The paper's **section 2.1.2**: inserting a hypervisor below the operating system violates the usual assumption that the
OS is the most privileged entity in the system. x86 has four rings; a 32-bit guest's kernel is moved to **ring 1**, its
user code stays in ring 3. (64-bit Xen came later: there kernel *and* user code run in ring 3, on two page tables, and
only the hypervisor knows which is which.) The ring shown beside each selector says so.

* Values in **orange** have changed since the last stop. Grey zeroes lead.
* **upcalls**: `evtchn_upcall_mask`, the guest's software "interrupt flag". The real IF stays set: CLI would fault.
* **cr2** is the processor's; the guest reads its copy in `vcpu_info`, for only ring 0 may read the register.
* **cr3** points to tables that the guest can read and not write (section 3.3.3).
* Before RIP the code is a guess: x86 cannot be decoded backwards.

Keys: **↑ ↓** move in the code · **.** to RIP · **b** breakpoint on the line · **Enter** run to the line · **a** code
at… · **A** memory at… · **k** stack or memory · **o** who wrote a register, or memory · **d v** another domain,
vCPU · **f** follow
"""
    BINDINGS: ClassVar = [
        Binding("up", "move(-1)", "Line up", show=False),
        Binding("down", "move(1)", "Line down", show=False),
        Binding("pageup", "move(-10)", "Page up", show=False),
        Binding("pagedown", "move(10)", "Page down", show=False),
        Binding("full_stop", "to_rip", "To RIP"),
        Binding("b", "breakpoint", "Breakpoint"),
        Binding("enter", "run_here", "Run to here"),
        Binding("a", "address", "Code at…"),
        Binding("k", "side", "Stack/memory"),
        Binding("A", "dump", "Memory at…"),
        Binding("o", "who_wrote", "Who wrote"),
        Binding("d", "domain(1)", "Domain"),
        Binding("v", "vcpu(1)", "vCPU"),
        Binding("f", "follow", "Follow"),
    ]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.domain: int | None = None
        self.vcpu = 0
        self.code_at: int | str | None = None
        self.dump_at: int | str = "rsp"
        self.side = "stack"
        self.cursor: int | None = None
        """Address of the line that the cursor is on; None: RIP."""
        self._shown: list[int] = []
        """Addresses of the lines of code as they are drawn."""
        self._place: tuple[Any, ...] = ()
        self._now: dict[str, Any] | None = None
        self._before: dict[str, Any] | None = None
        self._wondered = ""
        """What was last asked of, who wrote it."""
        self._wanted = False
        """The dump that comes is of memory whose writer is wanted."""
        self._bytes: dict[int, bytes | None] = {}
        self._old_bytes: dict[int, bytes | None] = {}

    # --- asking -----------------------------------------------------------------------------------------------------

    def who(self) -> tuple[int, int] | None:
        """(domain, vCPU) that is shown."""
        return self.current_vcpu() if self.domain is None else (self.domain, self.vcpu)

    def queries(self) -> list[Query]:
        who = self.who()
        if who is None:
            return []
        whose = {"domain": who[0], "vcpu": who[1]}
        rows = max(8, self.content_size.height - 8)
        return [
            Query("cpu.registers", whose),
            Query(
                "cpu.code",
                {**whose, "before": rows // 3, "after": rows, "at": self.code_at, "points": self._points(who[0])},
            ),
            Query(
                "cpu.stack", {**whose, "words": rows if self.side == "stack" or self.content_size.width >= WIDE else 1}
            ),
            Query("cpu.memory", {**whose, "at": self.dump_at, "rows": min(rows, 16)}),
        ]

    def _points(self, domain: int) -> list[tuple[int, str]]:
        """Number and place of the user's breakpoints on the code of a domain."""
        name = dict(self.domains()).get(domain)
        known = getattr(getattr(self.app, "engine", None), "breakpoints", None) or {}
        return [
            (number, point.what)
            for number, point in known.items()
            if point.kind == "address" and point.domain in (None, name)
        ]

    def show(self, answers: dict[str, Any], status: Any) -> None:
        now = answers.get("cpu.registers")
        if isinstance(now, dict):
            place = (now["domain"], now["vcpu"], getattr(status, "position", 0))
            if place[:2] != self._place[:2]:
                self._before, self._old_bytes = now, {}
            elif place != self._place:
                self._before, self._old_bytes = self._now, self._bytes
            self._place, self._now = place, now
            dump = answers.get("cpu.memory")
            self._bytes = dict(dump["rows"]) if isinstance(dump, dict) else {}
            if self._wanted and self.dump_at == self._wondered:
                self._wanted = False
                if isinstance(dump, dict):
                    self.dump_at = f"{dump['address']:#x}"
                    who = (now["domain"], now["vcpu"])
                    self.post_message(self.WhoWrote(("memory", *who, dump["address"], now["width"] // 8)))
        super().show(answers, status)

    # --- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> list[Line]:
        now = self.answer("cpu.registers")
        if now is None:
            return wrapped(self.failure() or "No domain runs: there is no virtual CPU to show.", width, "dim")
        lines = [self._title(now, width), *self._registers(now, width)]
        lines += self._state(now, width)[: max(0, height - len(lines) - _LEAST_CODE)]
        left = height - len(lines)
        digits = now["width"] // 4
        self.spot(0, len(lines) + 1, digits + 36, left, self._choose)
        if width >= WIDE:
            below = min(12, left // 3)
            blocks = left - below
            room = _SOURCE if any(row["source"] for row in self.instructions()) else 0
            code_width = min(width - digits * 2 - 34, digits + 76 + room)
            side = width - code_width - 2
            stack = [heading("stack", side), *self._stack(digits, blocks - 1, side)]
            lines += beside([heading("code", code_width), *self._code(blocks - 1, True)], stack, code_width)
            if below > 2:
                lines += [heading("memory", width, self._where()), *self._memory(digits, below - 1, width)]
            return lines
        code_width = min(digits + 36, width - digits - 12) if self.side == "stack" else width
        if self.side == "stack":
            side = width - code_width - 1
            right = [heading("stack", side), *self._stack(digits, left - 1, side)]
            code = [heading("code", code_width), *self._code(left - 1, False)]
            return lines + beside(code, right, code_width, 1)
        rows = left // 2
        lines += [heading("code", width), *self._code(left - rows - 1, True)]
        return [*lines, heading("memory", width, self._where()), *self._memory(digits, rows - 1, width)]

    def _title(self, now: dict[str, Any], width: int) -> Line:
        privilege = f"{'kernel' if now['kernel'] else 'user'} in ring {now['ring']}"
        held = ("on the processor", "loaded") if now["loaded"] else ("registers saved", "saved")
        follow = " · follows" if self.domain is None else ""
        for symbol, where in product((now["symbol"], ""), held):
            line: Line = [
                (f"{now['name']} d{now['domain']}v{now['vcpu']}", "title"),
                (f"  {now['mode']}-bit code, ", "dim"),
                (privilege, "blue" if now["kernel"] else "green"),
                (f" · {now['runstate']} · {where}{follow}", "dim"),
                (f"  {symbol}" if symbol else "", "yellow"),
            ]
            if length(line) <= width:  # else shorter: the symbol stands above the code, too
                break
        return fit(line, width)

    def _registers(self, now: dict[str, Any], width: int) -> list[Line]:
        """All general registers, in as many columns as there is room for."""
        digits = now["width"] // 4
        old = self._before or now
        cells = [
            [(f"{name:>3} ", "label"), *_hex(value, digits, old["registers"].get(name) != value)]
            for name, value in now["registers"].items()
        ]
        columns = max(1, min((width + 2) // (digits + 6), len(cells)))
        rows = -(-len(cells) // columns)
        lines: list[Line] = []
        for row in range(rows):
            line: Line = []
            for cell in cells[row::rows]:
                line += [*fit(cell, digits + 4), ("  ", "")]
            lines.append(line)
        return lines

    def _state(self, now: dict[str, Any], width: int) -> list[Line]:
        """Flags, upcall bits, segments and control registers."""
        old = self._before or now
        letters, before = now["flag_letters"], old["flag_letters"]
        flags: Line = [("flags ", "label"), *((f"{one} ", "" if one in before else "changed") for one in letters)]
        flags += [(f"{one} ", "dim strike") for one in before if one not in letters]
        flags += [("  upcalls ", "label"), ("masked", "orange") if now["upcall_mask"] else ("open", "green")]
        flags.append((", one waits" if now["upcall_pending"] else ", none waits", "dim"))
        segments: Line = []
        for name in _SEGMENTS:
            selector, was = now["segments"][name]["selector"], old["segments"][name]["selector"]
            style = "changed" if selector != was else "" if selector else "dim"
            segments += [(f"{name} ", "label"), (f"{selector:04x}", style)]
            segments.append((f" ring {selector & 3}  " if selector and name in ("cs", "ss") else "  ", "dim"))
        control: Line = []
        values = {**now["control"], "guest's cr2": now["guest_cr2"]}
        others = {**old["control"], "guest's cr2": old["guest_cr2"]}
        for name in ("cr3", "cr2", "guest's cr2", "cr0", "cr4"):
            style = "changed" if values[name] != others[name] else ""
            control += [(f"{name} ", "label"), (f"{values[name]:x}", style), ("  ", "")]
        if width >= WIDE and length(flags) + length(segments) + 4 <= width:
            return [fit([*flags, ("    ", ""), *segments], width), fit(control, width)]
        return [fit(flags, width), fit(segments, width), fit(control, width)]

    def _code(self, rows: int, with_bytes: bool) -> list[Line]:
        """Instructions around the cursor, with a line for each symbol that begins."""
        code, digits = self.instructions(), self._digits()
        cursor = self._cursor_row(code)
        top = max(0, min(cursor - rows // 3, len(code) - rows))
        lines: list[Line] = []
        self._shown = []
        for index, row in enumerate(code[top:], top):
            if len(lines) >= rows:
                break
            name = row["symbol"].partition("+")[0]
            if name and (index == top or name != code[index - 1]["symbol"].partition("+")[0]):
                lines.append([(f"  {row['symbol'] if index == top else name}:", "yellow")])
                self._shown.append(row["address"])
            self._shown.append(row["address"])
            marker = "●" if row["breakpoint"] else " "
            arrow = "▶" if row["current"] else " "
            style = "now" if row["current"] else "cursor" if index == cursor else ""
            line: Line = [(marker, "red"), (arrow, "blue"), (f"{row['address']:0{digits}x}  ", style or "dim")]
            if with_bytes:
                line.append((f"{row['bytes'].hex()[:20]:<21}", style or "dim"))
            line.append((f"{row['text']:<26}", style))
            if row["target"]:
                line.append((f" → {row['target']}", "yellow"))
            if row["source"] and (not index or row["source"] != code[index - 1]["source"]):
                file, number, text = row["source"]
                line.append((f"  {file.rpartition('/')[2]}:{number} {text}", "green"))
            lines.append(line)
        return lines

    def instructions(self) -> list[dict[str, Any]]:
        return self.answer("cpu.code") or []

    def _cursor_row(self, code: list[dict[str, Any]]) -> int:
        """Where the cursor is among the lines of code: on its own address, else on the one asked for, else on RIP."""
        for index, row in enumerate(code):
            if row["address"] == self.cursor:
                return index
        if self.code_at is not None:
            return next((index for index, row in enumerate(code) if row["asked"]), 0)
        return next((index for index, row in enumerate(code) if row["current"]), 0)

    def _digits(self) -> int:
        return int(self._now["width"]) // 4 if self._now else 16

    def _stack(self, digits: int, rows: int, width: int) -> list[Line]:
        lines: list[Line] = []
        for row in (self.answer("cpu.stack") or [])[:rows]:
            line: Line = [(f"{row['address'] & 0xFFFF:04x} ", "dim")]
            if not row["chain"]:
                line.append(("not mapped", "dim"))
            elif len(row["chain"]) == 1 and digits + 6 + len(row["end"]) > width > 0 and digits > 8 and row["end"]:
                low = f"{row['chain'][0]:016x}"[8:]  # what the upper half is, the other words of the stack tell
                line.append((f"…{low}", ""))
            else:
                line += _hex(row["chain"][0], digits, False)
                for value in row["chain"][1:]:
                    line += [(" → ", "dim"), (f"{value:x}", "blue")]
            if row["end"] and row["chain"]:
                line += [(" ", ""), (row["end"], "green" if row["end"].startswith('"') else "yellow")]
            if row["pointed"]:
                line += [(" ← ", "dim"), (row["pointed"], "label")]
            lines.append(line)
        return lines

    def _where(self) -> str:
        """The dump's address in words."""
        dump = self.answer("cpu.memory")
        if dump is None or dump["mfn"] is None:
            return f"{self.dump_at}"
        return f"{self.dump_at} · machine frame {dump['mfn']:#x}"

    def _memory(self, digits: int, rows: int, width: int) -> list[Line]:
        dump = self.answer("cpu.memory")
        if dump is None:
            return [[(self.failure(), "error")]]
        lines: list[Line] = []
        for address, data in dump["rows"][:rows]:
            shown = f"{address:0{digits}x}"
            if len(shown) + _DUMP > width:
                shown = f"…{shown[-8:]}"
            line: Line = [(f"{shown}  ", "dim")]
            if data is None:
                lines.append([*line, ("not mapped", "dim")])
                continue
            old = self._old_bytes.get(address) or data
            for index, byte in enumerate(data):
                changed = index < len(old) and old[index] != byte
                line.append((f"{byte:02x}", "changed" if changed else "" if byte else "dim"))
                line.append((" " if index % 8 != 7 else "  ", ""))
            lines.append([*line, ("".join(chr(byte) if 32 <= byte < 127 else "·" for byte in data), "dim")])
        return lines

    # --- keys -------------------------------------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        """Move the cursor; at either end the code moves on."""
        code = self.instructions()
        if not code:
            return
        row = self._cursor_row(code) + step
        if 0 <= row < len(code):
            self.cursor = code[row]["address"]
            if row < 2 or row > len(code) - 3:
                self.code_at = self.cursor
        else:
            self.code_at = self.cursor = code[0 if row < 0 else -1]["address"]
        self.touch()

    def _choose(self, _x: int, y: int) -> None:
        if y < len(self._shown):
            self.cursor = self._shown[y]

    def action_to_rip(self) -> None:
        """Back to RIP."""
        self.code_at = self.cursor = None
        self.touch()

    def _here(self) -> dict[str, Any] | None:
        """The instruction that the cursor is on."""
        code = self.instructions()
        return code[self._cursor_row(code)] if code else None

    def action_breakpoint(self) -> None:
        """A breakpoint on the line, or none any more."""
        here, who = self._here(), self.who()
        if here and who:
            self.post_message(self.Break(who[0], here["address"], here["breakpoint"]))

    def action_run_here(self) -> None:
        """Run until the line is reached."""
        here, who = self._here(), self.who()
        if here and who:
            self.post_message(self.RunTo(who[0], here["address"]))

    def action_side(self) -> None:
        """Stack or memory beside the code."""
        self.side = "memory" if self.side == "stack" else "stack"
        self.touch()

    def action_address(self) -> None:
        """Show the code at another address."""
        self._ask("Code at: an address, a register, a symbol, with + and -", self._show_code)

    def action_dump(self) -> None:
        """Show memory at another address."""
        self._ask("Memory at: an address, a register, a symbol, with + and -", self._show_memory)

    def _ask(self, question: str, then: Any) -> None:
        known = list(self._now["registers"]) if self._now else []
        self.app.push_screen(Prompt(question, "", known), lambda text: then(text.strip()) if text else None)

    def _show_code(self, place: str) -> None:
        self.code_at, self.cursor = place, None
        self.touch()

    def _show_memory(self, place: str) -> None:
        self.dump_at, self.side = place, "memory"
        self.touch()

    def action_who_wrote(self) -> None:
        """Go to what wrote a register, or a word of memory."""
        if self._now is not None:
            first = self._wondered or next(iter(self._now["registers"]))
            known = list(self._now["registers"])
            question = "Who wrote…? A register; or a word of memory by its address (rsp + 8, a symbol, 0x…)"
            self.app.push_screen(Prompt(question, first, known, self._no_address), self._ask_who_wrote)

    @staticmethod
    def _no_address(text: str) -> str:
        return "" if text.strip() else "a register or an address"

    def _ask_who_wrote(self, text: str | None) -> None:
        who = self.who()
        if not text or who is None or self._now is None:
            return
        self._wondered = text.strip()
        self.domain, self.vcpu = who  # whoever runs there, this vCPU stays in view
        if self._wondered.lower() in self._now["registers"]:
            self.post_message(self.WhoWrote(("register", *who, self._wondered.lower())))
        else:  # an expression counts by the registers of now, not of then
            self._wanted = True
            self._show_memory(self._wondered)

    def action_domain(self, step: int) -> None:
        """Another domain."""
        who = self.who()
        self.domain, self.vcpu = self.next_domain(who[0] if who else None, step), 0
        self._moved()

    def action_vcpu(self, step: int) -> None:
        """Another vCPU of the domain."""
        who = self.who()
        if who is not None and self._now is not None:
            self.domain, self.vcpu = who[0], (who[1] + step) % int(self._now["vcpus"])
            self._moved()

    def action_follow(self) -> None:
        """Show whoever has the processor."""
        self.domain = None
        self._moved()

    def _moved(self) -> None:
        self.code_at = self.cursor = None
        self.touch()


def _hex(value: int, digits: int, changed: bool) -> Line:
    """A number with its leading zeroes in grey."""
    text = f"{value:0{digits}x}"
    rest = text.lstrip("0")
    if changed:
        return [(text, "changed")]
    return [(text[: digits - len(rest)], "dim"), (rest, "")] if len(rest) < digits else [(text, "")]
