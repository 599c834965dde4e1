"""The one table of what the console can do: name, keys, the reverse twin, help.

Key bindings, the command palette, the `:` command line and the help are made from it. Keys can be changed in
`keys.json` in the configuration folder: `{"step": "s", "quit": ["q", "ctrl+q"]}`; an empty list takes a key away.

A name is also the name of the method that does it (`Control.do_step_back` for `step-back`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xentui.screens import catalogue, remembered

RUN, BACK, LOOK, MACHINE, PANES, CONSOLE = "Run", "Back", "Moment", "Machine", "Panes", "Console"


@dataclass(frozen=True)
class Command:
    """Something that the user can have done."""

    name: str
    keys: tuple[str, ...]
    """As Textual names them; a printable character stands for itself."""
    group: str
    help: str
    reverse: str = ""
    """The name of its twin in the other direction of time."""
    usage: str = ""
    """The arguments that it takes after `:`; in [brackets] those that may be left out."""
    prompts: bool = False
    """Its key opens the command line with the name typed already."""

    @property
    def needs_argument(self) -> bool:
        """Can it not be done without an argument?"""
        return bool(self.usage) and not self.usage.startswith("[")


def _keys(text: str) -> tuple[str, ...]:
    return tuple("space" if key == "space" else key for key in text.split())


def _twins(key: str, name: str, group_help: str, what: str) -> tuple[Command, Command]:
    """Run to the next `what`, and back to the last one on the shifted key."""
    back = f"{name}-back"
    return (
        Command(name, (key,), RUN, f"run to the next {what}", back, group_help),
        Command(back, (key.upper(),), BACK, f"run back to the last {what}", name, group_help),
    )


TABLE: tuple[Command, ...] = (
    Command("run", _keys("space c"), RUN, "run, or pause", "run-back", "[CONDITION]"),
    Command("run-back", _keys("C"), BACK, "run back to the last breakpoint", "run", "[CONDITION]"),
    Command("pause", (), RUN, "pause"),
    Command("step", _keys("s"), RUN, "one instruction", "step-back", "[COUNT]"),
    Command("step-back", _keys("S"), BACK, "one instruction back", "step", "[COUNT]"),
    Command("over", _keys("n"), RUN, "one instruction, a call or trap as a whole", "over-back"),
    Command("over-back", _keys("N"), BACK, "the same, back", "over"),
    *_twins("h", "hypercall", "[NAME]", "hypercall"),
    *_twins("x", "crossing", "[if EXPRESSION]", "ring crossing"),
    *_twins("e", "event", "[PORT]", "event upcall"),
    *_twins("w", "switch", "[if EXPRESSION]", "context switch"),
    *_twins("r", "refusal", "[if EXPRESSION]", "refusal of the validator"),
    Command("goto", _keys("g"), LOOK, "go to a time (20ms) or a record (#1234)", "", "TIME|#RECORD", True),
    Command("start", _keys("home"), LOOK, "go to the start of the run", "live"),
    Command("live", _keys("l"), LOOK, "go to the newest moment and stay there", "start"),
    Command("mark", _keys("m"), LOOK, "put a mark at this moment", "", "[NOTE]", True),
    Command("marks", _keys("M"), LOOK, "list the marks, and go to one", "", "[NUMBER]"),
    Command("branch", (), LOOK, "list the branches of history, and go to one", "", "[NUMBER]"),
    Command("break", _keys("b"), RUN, "set a breakpoint", "", "CONDITION", True),
    Command("breakpoints", _keys("B"), RUN, "list the breakpoints"),
    Command("delete", (), RUN, "delete a breakpoint", "", "NUMBER"),
    Command("faster", _keys("+ ="), RUN, "run faster", "slower"),
    Command("slower", _keys("-"), RUN, "run slower", "faster"),
    Command("speed", (), RUN, "set the speed in instructions a second", "", "NUMBER|full"),
    Command("warp", _keys("I"), RUN, "skip idle time, or let it pass as on the wall clock"),
    Command("inject", _keys("i"), MACHINE, "break something", "", "[AT:]FAULT", True),
    Command("type", _keys("t"), CONSOLE, "type into a domain's console", "", "[DOMAIN]"),
    Command("resize", (), CONSOLE, "give the domain's terminal another size", "", "COLUMNSxROWS|fit"),
    Command("create", (), MACHINE, "create a domain", "", "GUEST"),
    Command("pause-domain", (), MACHINE, "pause a domain", "", "[DOMAIN]"),
    Command("unpause-domain", (), MACHINE, "let a paused domain go on", "", "[DOMAIN]"),
    Command("reboot", (), MACHINE, "ask a domain to reboot", "", "[DOMAIN]"),
    Command("shutdown", (), MACHINE, "ask a domain to shut down", "", "[DOMAIN]"),
    Command("crash", (), MACHINE, "crash a domain", "", "[DOMAIN]"),
    Command("destroy", (), MACHINE, "destroy a domain (asks)", "", "[DOMAIN]"),
    Command("memory", (), MACHINE, "set a domain's memory by its balloon", "", "DOMAIN MIB"),
    Command("pin", (), MACHINE, "say where a domain's vCPUs may run: 0, 0-1, all", "", "DOMAIN VCPU|all CPUS"),
    Command("send", (), MACHINE, "send an event to a port of a domain", "", "DOMAIN PORT"),
    Command("mask", (), MACHINE, "mask a port", "", "DOMAIN PORT"),
    Command("unmask", (), MACHINE, "unmask a port", "", "DOMAIN PORT"),
    *(Command(f"pane-{entry.name}", (entry.key,), PANES, entry.about) for entry in catalogue.ENTRIES.values()),
    Command("next-pane", _keys("tab"), PANES, "to the next pane", "previous-pane"),
    Command("previous-pane", _keys("shift+tab"), PANES, "to the pane before", "next-pane"),
    Command("jump", _keys("'"), PANES, "to any pane: a letter appears on each"),
    Command("maximise", _keys("z"), PANES, "give the pane all the room, or take it back"),
    Command("split", _keys("|"), PANES, "open a pane beside this one", "", "[PANE]"),
    Command("split-below", _keys("_"), PANES, "open a pane below this one", "", "[PANE]"),
    Command("close", _keys("ctrl+w"), PANES, "close the pane"),
    Command("move-left", _keys("ctrl+left"), PANES, "change places with the pane on the left", "move-right"),
    Command("move-right", _keys("ctrl+right"), PANES, "change places with the pane on the right", "move-left"),
    Command("move-up", _keys("ctrl+up"), PANES, "change places with the pane above", "move-down"),
    Command("move-down", _keys("ctrl+down"), PANES, "change places with the pane below", "move-up"),
    Command("wider", _keys(">"), PANES, "make the pane wider", "narrower"),
    Command("narrower", _keys("<"), PANES, "make the pane narrower", "wider"),
    Command("taller", _keys("}"), PANES, "make the pane taller", "shorter"),
    Command("shorter", _keys("{"), PANES, "make the pane shorter", "taller"),
    Command("layout", (), PANES, "back to the layout that is given at first"),
    Command("filter", _keys("/"), CONSOLE, "filter or search the pane", "", "[EXPRESSION]"),
    Command("command", _keys(":"), CONSOLE, "a command by name"),
    Command("palette", _keys("ctrl+p"), CONSOLE, "every command, to choose from"),
    Command("theme", _keys("ctrl+t"), CONSOLE, "dark or light"),
    Command("present", _keys("P"), CONSOLE, "presentation mode: one pane, large and plain, and back"),
    Command("demo", (), CONSOLE, "show a guided demonstration", "", "[DEMONSTRATION]"),
    Command("next", _keys("ctrl+n"), CONSOLE, "the demonstration's next step", "previous"),
    Command("previous", _keys("ctrl+b"), CONSOLE, "the demonstration's step before", "next"),
    Command("save", (), CONSOLE, "save the session as a recording", "", "FILE"),
    Command("cast", (), CONSOLE, "record the screen as an asciicast, or end that", "", "[FILE]"),
    Command("screenshot", (), CONSOLE, "save the screen as SVG, or as text (.txt)", "", "[FILE]"),
    Command("help", _keys("? f1"), CONSOLE, "what the pane shows, and every key"),
    Command("quit", _keys("q ctrl+c"), CONSOLE, "leave"),
)


def load_table() -> tuple[dict[str, Command], list[str]]:
    """The table with the user's keys, by name; and what is wrong with `keys.json`, a line each."""
    commands = {command.name: command for command in TABLE}
    changes, problem = remembered.load("keys.json")
    problems = [problem] if problem else []
    for name, keys in changes.items():
        listed = [keys] if isinstance(keys, str) else keys
        if name not in commands:
            problems.append(f"keys.json: there is no command {name!r}")
        elif not isinstance(listed, list) or not all(isinstance(key, str) and key for key in listed):
            problems.append(f"keys.json: the keys of {name!r} are no text and no list of texts")
        else:
            commands[name] = replace(commands[name], keys=tuple(listed))
    if changes:
        taken = {key for name in changes if name in commands for key in commands[name].keys}
        for name, command in commands.items():  # a key given away no longer does what it did
            if name not in changes:
                commands[name] = replace(command, keys=tuple(key for key in command.keys if key not in taken))
    return commands, problems


def by_key(commands: dict[str, Command]) -> dict[str, Command]:
    """Key to what it does."""
    return {key: command for command in commands.values() for key in command.keys}


_NAMES = {
    "shift+tab": "⇧tab",
    "left": "←",
    "right": "→",
    "plus": "+",
    "minus": "-",
    "apostrophe": "'",
    "full_stop": ".",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "left_parenthesis": "(",
    "right_parenthesis": ")",
}


def key_name(key: str) -> str:
    """A key as it is shown: `^p` for ctrl+p."""
    return _NAMES.get(key, key.replace("ctrl+", "^").replace("shift+", "⇧"))
