"""What each command of the table does: `do_NAME(argument)`, called by key, palette and `:` alike."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from xentui.screens import conditions, words
from xentui.screens.dialogs import Choice, Question
from xentui.screens.marks import Marks

if TYPE_CHECKING:
    from xentui.app import XentuiApp

SPEEDS = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
"""Instructions a second that `+` and `-` go through, before full speed."""


class CommandError(ValueError):
    """A command that cannot be done; one line for the user."""


class Control:
    """The commands that concern the engine; those that concern the screen are in :mod:`xentui.screens.arrange`."""

    def __init__(self, app: XentuiApp) -> None:
        self.app = app
        self.warped = False
        self.marks = Marks()
        """(position, note) in the order in which they were set."""

    @property
    def engine(self) -> Any:
        return self.app.engine

    @property
    def status(self) -> Any:
        """The machine's state; CommandError before there is one."""
        status = self.app.feed.status
        if status is None:
            raise CommandError("the machine is not there yet")
        return status

    # --- running -----------------------------------------------------------------------------------------------------

    def do_run(self, argument: str) -> None:
        if argument:
            self.engine.run(conditions.condition(argument))
        elif self.status.running or getattr(self.status, "travelling", False):
            self.engine.pause()
        else:
            self.engine.run()

    def do_run_back(self, argument: str) -> None:
        if not argument and not self.engine.breakpoints:
            raise CommandError("no breakpoint is set to run back to: b sets one, home goes to the start")
        self.engine.run_back(conditions.condition(argument) if argument else None)

    def do_pause(self, argument: str) -> None:
        self.engine.pause()

    def do_step(self, argument: str) -> None:
        self.engine.step(_number(argument, 1))

    def do_step_back(self, argument: str) -> None:
        self.engine.step_back(_number(argument, 1))

    def do_over(self, argument: str) -> None:
        self.engine.step_over()

    def do_over_back(self, argument: str) -> None:
        self.engine.step_over_back()

    def _to(self, kind: str, argument: str, back: bool) -> None:
        wanted = conditions.condition(f"{kind} {argument}")
        if back:
            self.engine.run_back(wanted)
        else:
            self.engine.run(wanted)

    def do_hypercall(self, argument: str) -> None:
        self._to("hypercall", argument, False)

    def do_hypercall_back(self, argument: str) -> None:
        self._to("hypercall", argument, True)

    def do_crossing(self, argument: str) -> None:
        self._to("crossing", argument, False)

    def do_crossing_back(self, argument: str) -> None:
        self._to("crossing", argument, True)

    def do_event(self, argument: str) -> None:
        self._to("port" if argument else "upcall", argument, False)

    def do_event_back(self, argument: str) -> None:
        self._to("port" if argument else "upcall", argument, True)

    def do_switch(self, argument: str) -> None:
        self._to("switch", argument, False)

    def do_switch_back(self, argument: str) -> None:
        self._to("switch", argument, True)

    def do_refusal(self, argument: str) -> None:
        self._to("refusal", argument, False)

    def do_refusal_back(self, argument: str) -> None:
        self._to("refusal", argument, True)

    # --- moments -----------------------------------------------------------------------------------------------------

    def do_goto(self, argument: str) -> None:
        if match := re.fullmatch(r"#?(\d+)", argument):
            self.app.goto_record(int(match[1]))
        else:
            self.engine.goto(time=words.parse_time(argument))

    def do_start(self, argument: str) -> None:
        self.engine.goto(time=0)

    def do_live(self, argument: str) -> None:
        self.engine.live()

    def do_mark(self, argument: str) -> None:
        status = self.status
        self.app.tell(f"mark {len(self.marks) + 1} at {words.clock(status.time)}")
        self.marks.add(status.position, argument or words.clock(status.time))

    def do_marks(self, argument: str) -> None:
        if not self.marks:
            raise CommandError("there is no mark yet: m sets one")
        if argument:
            self._go_to_mark(argument)
            return
        options = [
            (str(number), str(number) if number < 10 else "", f"{words.clock(position // 2)}  {note}")
            for number, (position, note) in enumerate(self.marks, 1)
        ]
        self.app.push_screen(Choice("Marks", options), self._go_to_mark)

    def _go_to_mark(self, number: str | None) -> None:
        if number is None:
            return
        index = _number(number, 0)
        if not 1 <= index <= len(self.marks):
            raise CommandError(f"there is no mark {number}; there are {len(self.marks)}")
        self.engine.goto(position=self.marks[index - 1][0])

    def do_branch(self, argument: str) -> None:
        if argument:
            number = _number(argument, 0)
            if not 0 <= number < len(self.engine.branches):
                raise CommandError(f"there is no branch {number}; there are {len(self.engine.branches)}")
            self.engine.switch(number)
            return
        options = [
            (str(number), str(number) if number < 10 else "", _branch_words(branch, self.engine.status.branch))
            for number, branch in enumerate(self.engine.branches)
        ]
        self.app.push_screen(Choice("Branches of history", options), self._switch)

    def _switch(self, number: str | None) -> None:
        if number is not None:
            self.engine.switch(int(number))

    # --- breakpoints and speed ---------------------------------------------------------------------------------------

    def do_break(self, argument: str) -> None:
        point = conditions.condition(argument)
        self.app.tell(f"breakpoint {self.engine.add_breakpoint(point)}: {point.describe()}")

    def do_breakpoints(self, argument: str) -> None:
        lines = [f"{number}: {words.plain(each.describe())}" for number, each in self.engine.breakpoints.items()]
        self.app.tell("\n".join(lines) if lines else "no breakpoint is set: b sets one")

    def do_delete(self, argument: str) -> None:
        number = _number(argument, 0)
        if number not in self.engine.breakpoints:
            raise CommandError(f"there is no breakpoint {number}; B lists them")
        self.engine.remove_breakpoint(number)

    def _change_speed(self, step: int) -> None:
        speed = self.status.speed
        at = len(SPEEDS) if speed is None else sum(each < speed for each in SPEEDS)
        at = max(0, min(len(SPEEDS), at + step))
        self.engine.set_speed(None if at == len(SPEEDS) else SPEEDS[at])
        self.app.tell(words.speed(None if at == len(SPEEDS) else SPEEDS[at]))

    def do_faster(self, argument: str) -> None:
        self._change_speed(1)

    def do_slower(self, argument: str) -> None:
        self._change_speed(-1)

    def do_speed(self, argument: str) -> None:
        speed = None if argument == "full" else _number(argument.replace(",", ""), 1)
        if speed is not None and speed < 1:
            raise CommandError("the speed is at least 1 instruction a second; pause stops")
        self.engine.set_speed(speed)

    def do_warp(self, argument: str) -> None:
        self.warped = not self.warped
        self.engine.set_warp(self.warped)
        self.app.tell("idle time is skipped" if self.warped else "idle time passes as on the wall clock")

    # --- terminals ---------------------------------------------------------------------------------------------------

    def do_resize(self, argument: str) -> None:
        pane: Any = self.app.main.grid.pane("consoles")
        match = re.fullmatch(r"(\d+)\s*[x×]\s*(\d+)", argument)
        if pane is None:
            raise CommandError("no console is open: 2 opens them")
        if argument != "fit" and (not match or not 2 <= int(match[1]) <= 500 or not 2 <= int(match[2]) <= 200):
            raise CommandError(f"{argument!r} is no size: COLUMNSxROWS, up to 500x200, or fit")
        width, height = pane.resize((int(match[1]), int(match[2])) if match else None)
        self.app.tell(f"the terminal has {width}x{height} now; in the guest: stty cols {width} rows {height}")

    # --- the machine from outside ------------------------------------------------------------------------------------

    def act(self, kind: str, domain: str | None, *arguments: Any) -> None:
        """Influence the machine; in the past this begins a branch."""
        from xentui.engine.actions import Action

        self.status  # noqa: B018  (there is a machine to influence)
        self.engine.act(Action(kind, domain, arguments))
        self.app.acted = True

    def domain(self, argument: str) -> str:
        """The domain that is named, or the one that is chosen in the panes. CommandError where there is none."""
        names = [domain.name for domain in self.status.domains]
        name = argument or self.app.chosen_domain
        by_id = {str(domain.id): domain.name for domain in self.status.domains}
        name = by_id.get(name, name)
        if name not in names:
            raise CommandError(f"there is no domain {name!r}; there is {', '.join(names) or 'none'}")
        return name

    def do_inject(self, argument: str) -> None:
        self.act("inject", None, argument)

    def do_create(self, argument: str) -> None:
        from xentui.config import resolve_guest, unique_name

        spec = resolve_guest(argument)
        spec.name = unique_name(spec.name, [domain.name for domain in self.status.domains])
        self.act("create", None, spec)

    def do_pause_domain(self, argument: str) -> None:
        self.act("pause", self.domain(argument))

    def do_unpause_domain(self, argument: str) -> None:
        self.act("unpause", self.domain(argument))

    def do_reboot(self, argument: str) -> None:
        self.act("reboot", self.domain(argument))

    def do_shutdown(self, argument: str) -> None:
        self.act("shutdown", self.domain(argument))

    def do_crash(self, argument: str) -> None:
        self._ask_first("crash", self.domain(argument))

    def do_destroy(self, argument: str) -> None:
        self._ask_first("destroy", self.domain(argument))

    def _ask_first(self, kind: str, name: str) -> None:
        """Ask, although going back in time undoes it: the keys are near others."""
        self.app.push_screen(
            Question(f"{kind} the domain {words.plain(name)}?", kind),
            lambda yes: self.app.attempt(lambda: self.act(kind, name)) if yes else None,
        )

    def do_memory(self, argument: str) -> None:
        domain, mib = _words(argument, 2, "DOMAIN MIB")
        name, wanted = self.domain(domain), _number(mib, 1)
        self.act("balloon", name, wanted)
        self.app.tell(f"{name} is asked for {wanted} MiB: a guest with a balloon driver goes there")

    def do_pin(self, argument: str) -> None:
        domain, vcpu, cpus = _words(argument, 3, "DOMAIN VCPU|all CPUS")
        self.act("pin", self.domain(domain), vcpu if vcpu == "all" else _number(vcpu, 0), cpus)

    def do_send(self, argument: str) -> None:
        self._port("send", argument)

    def do_mask(self, argument: str) -> None:
        self._port("mask", argument)

    def do_unmask(self, argument: str) -> None:
        self._port("unmask", argument)

    def _port(self, kind: str, argument: str) -> None:
        domain, port = _words(argument, 2, "DOMAIN PORT")
        self.act(kind, self.domain(domain), _number(port.removeprefix("port"), 0))

    def do_save(self, argument: str) -> None:
        self.engine.save(argument)
        self.marks.keep_in(argument)
        self.app.acted = False
        self.app.tell(f"saved as {argument}")


def _branch_words(branch: Any, current: int) -> str:
    """A branch in the list: is it the one seen now, how far has it come, and where did it leave another one?"""
    left = f", left {branch.parent} at {words.clock(branch.fork.time)}" if branch.parent is not None else ""
    return f"{'▶' if branch.number == current else ' '} branch {branch.number}, to {words.clock(branch.end_time)}{left}"


def _number(text: str, default: int) -> int:
    """A whole number; CommandError otherwise."""
    if not text:
        return default
    try:
        return int(text, 0)
    except ValueError:
        raise CommandError(f"{text!r} is not a whole number") from None


def _words(text: str, count: int, usage: str) -> list[str]:
    parts = text.split()
    if len(parts) != count:
        raise CommandError(f"needs {usage}")
    return parts
