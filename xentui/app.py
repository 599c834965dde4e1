"""The Textual application: the console on a running engine, or on a recording.

    XentuiApp(engine).run()

The engine is a process of its own; the application hears it by its descriptor, and asks it what the panes that are
seen want to know (screens/feed.py). What can be done stands in one table (screens/actions.py).
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import App, SystemCommand

from xentui.screens import themes
from xentui.screens.actions import Command, by_key, load_table
from xentui.screens.feed import RATE, Feed
from xentui.screens.main import MainScreen
from xentui.screens.pane import Pane
from xentui.screens.stage import Stage
from xentui.screens.words import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from textual.binding import BindingType
    from textual.screen import Screen

    from xentui.gdb.server import GdbServer, Listener
    from xentui.recording.reader import Recording
    from xentui.screens.replay import Replay
    from xentui.tour import Tour

_REPORTED = (ValueError, LookupError, OSError)
"""Errors of a command that are the user's to know in a line: wrong arguments, things that are not there, files.
EngineError and ViewError are told of too."""


class XentuiApp(App[None], inherit_bindings=False):
    """The console. `engine` is an `engine.process.Engine`, or anything that speaks like one."""

    TITLE = "xentui"
    BINDINGS: ClassVar[list[BindingType]] = []
    COMMAND_PALETTE_BINDING = "f20"
    """The table has the palette's key; Textual wants one of its own."""
    CSS = """
    ToastRack { margin-bottom: 2; }
    Toast { width: 44; max-width: 100%; background: $surface; border-left: thick $primary; padding: 0 1; }
    Toast.-warning { border-left: thick $accent; }
    Toast.-error { border-left: thick $error; }
    """

    def __init__(
        self,
        engine: Any,
        *,
        run: bool = True,
        tour: Tour | None = None,
        gdb: Sequence[Listener] = (),
        present: bool = False,
    ) -> None:
        """`run`: let the guests go as soon as the screen is there (a recording stands at its start instead).
        `tour`: the demonstration to lead through. `gdb`: where gdbs come in, closed at the end.
        `present`: in presentation mode."""
        super().__init__()
        self.engine = engine
        self.run_at_start = run and tour is None
        self.tour = tour
        self.replay: Replay | None = None
        """The recording that the run is a replay of."""
        self._present = present
        self._gdb_listeners = gdb
        self._gdb: GdbServer | None = None
        self.commands: dict[str, Command]
        self.commands, self._problems = load_table()
        self.keys = by_key(self.commands)
        self.main = MainScreen()
        self.control = Stage(self)
        self.feed = Feed(engine, self._seen_panes)
        self.chosen_domain = ""
        """The name of the domain that panes and commands mean when none is named."""
        self.typing = ""
        """The domain whose console has the keyboard, or ""."""
        self.acted = False
        """Has the user done something to the run that would be lost?"""
        self.next_demonstration = ""
        """What to show when this run is left."""
        self._watched = -1

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Colours of ours that Textual's own themes do not name."""
        return themes.DEFAULTS

    def open_recording(self, recording: Recording) -> None:
        """The run is a replay: panes show the records of all of it, and marks are kept in it."""
        from xentui.screens.replay import Replay

        self.replay = Replay(recording, self.engine.setup)
        self.control.marks.load_from(recording)

    def goto_record(self, record: int) -> None:
        """Move everything to where a trace record has just been written. A recording says when that is, so that the
        way there need not be gone twice."""
        time = self.replay.time_of(record, self.feed.status) if self.replay is not None else None
        self.engine.goto(record=record, **({} if time is None else {"time": time}))

    # --- start and end -----------------------------------------------------------------------------------------------

    def on_load(self) -> None:
        """Before the terminal is changed: a kill puts it back as it was."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._killed, number)

    def _killed(self, number: int) -> None:
        """Leave as if the user had, but say that it was not so."""
        self.leave(128 + number)

    def on_mount(self) -> None:
        """Listen to the engine; begin."""
        for theme in (themes.DARK, themes.LIGHT, themes.CONTRAST):
            self.register_theme(theme)
        self.theme = themes.DARK.name
        self.push_screen(self.main)
        self.feed.on_ended = self._domain_ended
        self.feed.on_failure = self._engine_failed
        self.feed.on_notice = self.tell
        self._watch()
        if self.tour is not None:
            self.tour.on_arrival = self.control.arrive
            self.call_after_refresh(self.control.arrive)
        if self._present:
            self.call_after_refresh(self.control.do_present, "")
        self.set_interval(1 / RATE, self.refresh_panes)
        for problem in self._problems:
            self.tell(problem, "warning")

    def _watch(self) -> None:
        """Hear the engine's descriptor."""
        self._watched = self.engine.fileno()
        asyncio.get_running_loop().add_reader(self._watched, self._heard)

    def _heard(self) -> None:
        """The engine has sent something."""
        self.feed.pump()
        if self.feed.status is None:
            return
        if self._gdb_listeners:
            self._serve_gdb()
        if self._gdb is not None:
            self._gdb.settled()
        if self.run_at_start:
            self.run_at_start = False
            self.attempt(self.engine.run)
        if self.tour is not None:
            self.tour.advance()

    def _serve_gdb(self) -> None:
        """Let gdbs in."""
        from xentui.gdb.server import GdbServer

        listeners, self._gdb_listeners = self._gdb_listeners, ()
        loop = asyncio.get_running_loop()
        self._gdb = GdbServer(self.engine, listeners, loop.add_reader, loop.remove_reader)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = -1

    def leave(self, status: int = 0) -> None:
        """End the application; the engine's process ends with it. `status`: the command's exit status."""
        self.control.end_cast()
        if self._gdb is not None:
            self._gdb.close()
        self._unwatch()
        self.exit(return_code=status)

    def start_demonstration(self, name: str) -> None:
        """Leave this run for a demonstration, which brings its own guests (console.py goes on with it)."""
        self.next_demonstration = name
        self.leave()

    # --- refreshing --------------------------------------------------------------------------------------------------

    def _seen_panes(self) -> list[Pane]:
        return self.main.grid.panes if self.main.is_mounted else []

    def refresh_panes(self) -> None:
        """Ask for the panes, if anything has changed; draw the status bar."""
        if not self.main.is_mounted:
            return
        self.feed.refresh()
        status = self.feed.status
        if status is not None and status.domains and self.chosen_domain not in {each.name for each in status.domains}:
            self.chosen_domain = status.domains[0].name
        self.main.bar.update_status(status, self.typing, self.feed.failure, self.main.pane_keys(), self.main.in_a_pane)

    async def on_event(self, event: events.Event) -> None:
        """A key of the table is obeyed here and now: the next key may be meant for what it opens."""
        if isinstance(event, events.Key) and self.screen is self.main and not self.typing:
            focused = self.main.focused
            command = self.main.command_for(event) if focused is None or isinstance(focused, Pane) else None
            if command is not None:
                self.main.obey_key(command)
                self.feed.changed = True
                self.call_later(self.refresh_panes)
                return
        await super().on_event(event)

    # --- commands ----------------------------------------------------------------------------------------------------

    def run_command(self, name: str, argument: str) -> None:
        """Do what a command of the table says."""
        self.attempt(lambda: getattr(self.control, f"do_{name.replace('-', '_')}")(argument))
        self.feed.changed = True

    def attempt(self, deed: Callable[[], Any]) -> None:
        """Do something on the user's behalf; what goes wrong is said in a line."""
        from xentui.engine.moving import EngineError
        from xentui.engine.views import ViewError

        try:
            deed()
        except _REPORTED as error:
            named = isinstance(error, OSError) and error.filename is not None
            self.tell(f"{error.filename}: {error.strerror}" if named else str(error), "error")  # type: ignore[attr-defined]
        except (EngineError, ViewError) as error:
            self.tell(str(error), "error")

    def obey(self, line: str) -> None:
        """Do what a line after `:` says."""
        name, _, argument = line.strip().partition(" ")
        if not name:
            return
        matches = [name] if name in self.commands else [known for known in self.commands if known.startswith(name)]
        if len(matches) != 1:
            hint = f"; did you mean {', '.join(matches[:4])}?" if matches else "; ? shows all"
            self.tell(f"there is no command {name!r}{hint}", "error")
            return
        command, argument = self.commands[matches[0]], argument.strip()
        if command.needs_argument and not argument:
            self.tell(f":{command.name} needs {command.usage}", "error")
            return
        if argument and not command.usage:
            self.tell(f":{command.name} takes nothing behind it, not {argument!r}", "error")
            return
        self.run_command(command.name, argument)

    def complete(self, line: str) -> list[str]:
        """What a line after `:` could become."""
        name, blank, argument = line.partition(" ")
        if not blank:
            return [f"{known} " if self.commands[known].usage else known for known in self.commands
                    if known.startswith(name)]  # fmt: skip
        command = self.commands.get(name)
        if command is None:
            return []
        *done, last = argument.split(" ")
        return [" ".join((name, *done, word)) for word in self._words(command, done, argument) if word.startswith(last)]

    def _words(self, command: Command, done: list[str], argument: str) -> list[str]:
        """What could stand next in a command's arguments."""
        from xentui.config import built_in_guests
        from xentui.screens import catalogue, conditions

        usage = command.usage.strip("[]")
        names = [domain.name for domain in self.feed.status.domains] if self.feed.status else []
        if usage.startswith("DOMAIN"):
            return names if not done else []
        if usage == "GUEST":
            return built_in_guests()
        if usage.endswith("FAULT"):
            from xentui.engine import faults

            at = argument.partition(":")[0] + ":" if not done and ":" in argument else ""
            return [at + word for word in faults.complete(argument, names)[0]]
        if usage == "DEMONSTRATION":
            from xentui import demonstration

            return demonstration.names()
        if usage == "PANE":
            return list(catalogue.ENTRIES)
        if usage in ("CONDITION", "NAME"):
            kinds = [*conditions.WORDS, *conditions.OTHERS] if usage == "CONDITION" and not done else []
            if usage == "NAME" or done == ["hypercall"]:
                from xentui.engine.xen.abi.hypercalls import NAMES

                return sorted(NAMES.values())
            return kinds
        return []

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette: the table."""
        for command in self.commands.values():
            if command.needs_argument or command.prompts:

                def deed(name: str = command.name) -> None:
                    self.main.open_line(":", f"{name} ")
            else:

                def deed(name: str = command.name) -> None:
                    self.run_command(name, "")

            keys = " ".join(command.keys)
            yield SystemCommand(command.name, f"{command.help}{f'  ({keys})' if keys else ''}", deed)

    # --- telling -----------------------------------------------------------------------------------------------------

    def tell(self, text: str, severity: Any = "information") -> None:
        """A line for the user."""
        self.notify("\n".join(map(plain, text.splitlines())), severity=severity, markup=False)

    def _domain_ended(self, name: str, reason: str) -> None:
        crashed = reason in ("crash", "watchdog")
        words = "has crashed; the hypervisor's log says why (pane Consoles)" if crashed else f"has ended: {reason}"
        self.tell(f"{name} {words}", "error" if crashed else "information")

    def _engine_failed(self, text: str, outlook: str, details: str) -> None:
        ways = "no snapshot is left to go on from: q leaves."
        if outlook:
            ways = f"{outlook}. Space does that; S, g and home lead further back; q leaves."
        self.tell(f"{text}. What is on the screen stays; {ways}", "error")
        for line in details.splitlines():
            self.engine.log.append((self.feed.status.time if self.feed.status else 0, line))

    # --- what panes ask for ------------------------------------------------------------------------------------------

    def on_pane_goto(self, event: Pane.Goto) -> None:
        """One focus: everything moves to the moment."""
        record = event.record
        if record is not None:
            self.attempt(lambda: self.goto_record(record))
            return
        given = {key: value for key, value in vars_of(event).items() if value is not None}
        self.attempt(lambda: self.engine.goto(**given))

    def on_pane_who_wrote(self, event: Pane.WhoWrote) -> None:
        """Go to what wrote a value. Of a port a recording tells, however long ago it was and whatever was run."""
        kind, *rest = event.what
        status = self.feed.status
        if kind == "port" and self.replay is not None and status is not None and self.replay.holds(status):
            search = self.replay.who_set(*rest, status.records)
            self.run_worker(self._go_to_setter(search), group="who wrote", exclusive=True)
        elif hasattr(self.engine, "who_wrote"):
            self.attempt(lambda: self.engine.who_wrote(event.what))
        else:
            self.tell("who wrote this cannot be found out here", "warning")

    async def _go_to_setter(self, search: Iterator[int | None]) -> None:
        """Search on, and let the screen live meanwhile; go to the record that is found."""
        for record in search:
            if record is not None:
                self.attempt(lambda record=record: self.goto_record(record))
                return
            await asyncio.sleep(0)
        self.tell("no record before this moment tells of a write to this event port")

    def on_pane_act(self, event: Pane.Act) -> None:
        """Influence the machine."""
        action = event.action
        self.attempt(lambda: self.control.act(action.kind, action.domain, *action.arguments))

    def on_pane_run(self, event: Pane.Run) -> None:
        """Run, or run until."""
        self.attempt(lambda: self.engine.run(event.until))

    def on_pane_break(self, event: Pane.Break) -> None:
        """A breakpoint on an instruction, or none there any more."""
        if event.number is not None:
            self.run_command("delete", str(event.number))
        else:
            self.attempt(lambda: self.engine.add_breakpoint(self._at(event.domain, event.address)))
        self.feed.changed = True

    def on_pane_run_to(self, event: Pane.RunTo) -> None:
        """Run until an instruction is about to be executed."""
        self.attempt(lambda: self.engine.run(self._at(event.domain, event.address)))

    def _at(self, domain: int, address: int) -> Any:
        from xentui.engine.breakpoints import ADDRESS, Breakpoint

        names = {each.id: each.name for each in self.feed.status.domains} if self.feed.status else {}
        return Breakpoint(ADDRESS, hex(address), names.get(domain))

    def type_into(self, domain: str) -> None:
        """Give the keyboard to a domain's console."""
        pane: Any = self.main.grid.pane("consoles")
        if pane is not None:
            pane.begin_typing(domain)

    def post_display_hook(self) -> None:
        """The screen was drawn."""
        self.control.drawn = True

    def screen_svg(self) -> str:
        """The screen as a picture. What it says of blanks, browsers know by themselves and librsvg does not."""
        return self.export_screenshot(title="xentui").replace("<svg ", '<svg xml:space="preserve" ', 1)

    def screen_text(self) -> str:
        """The screen as plain text."""
        return "\n".join("".join(segment.text for segment in strip).rstrip()
                         for strip in self.screen._compositor.render_strips())  # fmt: skip


def vars_of(event: Pane.Goto) -> dict[str, int | None]:
    """The fields of a wish to go somewhere."""
    return {"position": event.position, "time": event.time, "record": event.record}
