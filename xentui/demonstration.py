"""Guided demonstrations: text beside the live machine, in plain files that a lecturer can write.

A file is Markdown (docs/demonstrations.md). Its first heading is the title; each second-level heading begins a step.
List items of the form `- key: value` directly below a heading say what happens; all else is text to be shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xentui.config import ConfigError, GuestSpec, resolve_guest, unique_name

FOLDER = Path(__file__).parent / "demos"
_ITEM = re.compile(r"- ([a-z][a-z-]*): *(.*)$")
_PORT = re.compile(r"events:\d{1,6}")

HEADER_KEYS = ("guest", "memory", "cpus", "scheduler", "no-validator", "paper")
"""What the title may be followed by; `guest` and `no-validator` may be repeated."""
RUN_KEYS = ("run", "for", "step", "type", "inject", "act", "back")
"""What a step does to the machine, in the order in which it stands there."""
SHOW_KEYS = ("show", "focus", "filter", "notice")
"""What a step shows: panes, a domain, the trace's filter, and a sentence that says what to look at."""
PANES = (
    *("domains", "consoles", "trace", "crossings", "cpu", "events", "rings", "scheduler", "inject", "timeline"),
    *("memory", "memory:frames", "memory:tables", "memory:walk", "memory:refusals"),
    *("gantt", "terminal", "registers"),
)
"""What can be shown: panes of screens/catalogue.py (which imports more than is needed to read a file), parts of panes,
and other words for some."""
SCHEDULERS = ("credit", "bvt")
BUILT_IN = ("demo32 peer=2", "demo64 peer=1")
"""What runs when no guest is named: two domains of both word sizes that talk to each other."""

DEFAULT_LIMIT = 20_000_000_000
"""Virtual ns after which a `run` that was never satisfied is given up."""


class DemonstrationError(ConfigError):
    """A demonstration that cannot be read or shown; its text is one line with file and line."""


@dataclass(frozen=True, slots=True)
class Doing:
    """Something that a step does to the machine."""

    key: str
    """One of RUN_KEYS."""
    value: str
    line: int
    """Where in the file it stands, from 1."""


@dataclass(slots=True)
class Step:
    """A step: what it does, what it shows, and the text beside it."""

    title: str
    line: int
    doings: list[Doing] = field(default_factory=list)
    shows: dict[str, str] = field(default_factory=dict)
    """SHOW_KEYS to what was written."""
    places: dict[str, int] = field(default_factory=dict)
    """SHOW_KEYS to the lines where that stands."""
    text: str = ""
    """Markdown."""


@dataclass(slots=True)
class Demonstration:
    """A demonstration, as read from its file."""

    path: Path
    title: str = ""
    introduction: str = ""
    """Markdown, shown before the first step."""
    paper: str = ""
    """The section of the paper that it belongs to."""
    guests: list[str] = field(default_factory=list)
    """Each a guest and, behind it, its command line."""
    memory: int = 0
    """MiB of each guest; 0: as usual."""
    cpus: int = 1
    """Physical processors."""
    scheduler: str = "credit"
    unvalidated: list[str] = field(default_factory=list)
    """Names of guests that run without the page-table validator."""
    steps: list[Step] = field(default_factory=list)
    places: dict[str, list[int]] = field(default_factory=dict)
    """HEADER_KEYS to the lines where they stand."""

    @property
    def name(self) -> str:
        """What `--demo` calls it."""
        return self.path.stem

    def specifications(self) -> list[GuestSpec]:
        """The guests to create, in order. Raises ConfigError."""
        return guest_specifications(self.guests, self.memory, self.unvalidated)


def guest_specifications(guests: Sequence[str], memory: int = 0, unvalidated: Sequence[str] = ()) -> list[GuestSpec]:
    """The guests that lines like `demo32 peer=2` name, each with its command line. Raises ConfigError."""
    specs: list[GuestSpec] = []
    for line in guests:
        name, _, cmdline = line.partition(" ")
        spec = resolve_guest(name)
        spec.name = unique_name(spec.name, [other.name for other in specs])
        spec.cmdline = cmdline.strip()
        spec.memory = memory or spec.memory
        spec.validated = spec.name not in unvalidated
        specs.append(spec)
    return specs


def names() -> list[str]:
    """The demonstrations that come with the package, in the order in which they are told."""
    return [path.stem for path in sorted(FOLDER.glob("*.md"))]


def load(argument: str) -> Demonstration:
    """The demonstration that a command line names: one of the package's, in full or by a part of it, or a file's path.

    Raises DemonstrationError.
    """
    path = Path(argument)
    if path.suffix == ".md":
        return read(path)
    found = [name for name in names() if argument and argument in name]
    exact = [name for name in found if name == argument]
    if len(exact or found) != 1:
        if path.is_file():
            raise DemonstrationError(f"{path}: no demonstration: it is Markdown, in a file whose name ends in .md")
        what = f"{argument!r} is more than one demonstration" if found else f"no demonstration is called {argument!r}"
        raise DemonstrationError(f"{what}; there is {', '.join(found or names())}; or name a file (*.md)")
    return read(FOLDER / f"{(exact or found)[0]}.md")


def read(path: Path) -> Demonstration:
    """Read a file. Raises DemonstrationError, which names file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DemonstrationError(f"{path}: cannot read the demonstration: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DemonstrationError(f"{path}: not a text file: a demonstration is Markdown in UTF-8") from None
    return _Reader(path).read(text)


class _Reader:
    """Takes a file line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.demonstration = Demonstration(path)
        self.step: Step | None = None
        self.texts: list[str] = []
        self.in_list = False
        self.fenced = False

    def read(self, text: str) -> Demonstration:
        for number, line in enumerate(text.splitlines(), 1):
            self._take(number, line)
        self._end_text()
        demonstration = self.demonstration
        if not demonstration.title:
            raise self._error(1, "the first line is no title: begin with '# TITLE'")
        if not demonstration.guests:
            raise self._error(1, "no guest: write '- guest: NAME' below the title")
        if not demonstration.steps:
            raise self._error(1, "no steps: each begins with '## TITLE'")
        return demonstration

    def _take(self, number: int, line: str) -> None:
        if line.startswith("```"):
            self.fenced = not self.fenced
        heading = None if self.fenced else re.match(r"(#{1,2}) +(.+)", line)
        item = _ITEM.match(line)
        if heading:
            self._heading(number, heading[1], heading[2].strip())
        elif not self.demonstration.title and line.strip():
            raise self._error(number, "text before the title: begin with '# TITLE'")
        elif item and self.in_list:
            self._item(number, item[1], item[2].strip())
        elif line.strip() or self.texts:
            self.in_list = False
            self.texts.append(line)

    def _heading(self, number: int, level: str, title: str) -> None:
        self._end_text()
        self.in_list = True
        if level == "##":
            self.step = Step(title, number)
            self.demonstration.steps.append(self.step)
        elif self.demonstration.title:
            raise self._error(number, "a second title: steps begin with '## '")
        else:
            self.demonstration.title = title

    def _end_text(self) -> None:
        text = "\n".join(self.texts).strip()
        self.texts = []
        if self.step is None:
            self.demonstration.introduction = text
        else:
            self.step.text = text

    def _item(self, number: int, key: str, value: str) -> None:
        if not value:
            raise self._error(number, f"'{key}' says nothing")
        if self.step is None:
            self._header(number, key, value)
        elif key in RUN_KEYS:
            self.step.doings.append(Doing(key, value, number))
        elif key in SHOW_KEYS:
            for word in value.replace(",", " ").split() if key == "show" else ():
                if word not in PANES and not _PORT.fullmatch(word):
                    raise self._error(number, f"there is no pane {word!r}; there is {', '.join(PANES)}, events:PORT")
            self.step.shows[key] = value
            self.step.places[key] = number
        else:
            raise self._error(number, f"a step knows no '{key}'; it knows {', '.join(RUN_KEYS + SHOW_KEYS)}")

    def _header(self, number: int, key: str, value: str) -> None:
        demonstration = self.demonstration
        demonstration.places.setdefault(key, []).append(number)
        if key == "guest":
            demonstration.guests.append(value)
        elif key == "no-validator":
            demonstration.unvalidated.append(value)
        elif key == "paper":
            demonstration.paper = value
        elif key == "scheduler":
            if value not in SCHEDULERS:
                raise self._error(number, f"there is no scheduler {value!r}; there is {' and '.join(SCHEDULERS)}")
            demonstration.scheduler = value
        elif key == "cpus":
            if value not in ("1", "2", "3", "4"):
                raise self._error(number, f"cpus is a number of physical processors, 1 to 4, not {value!r}")
            demonstration.cpus = int(value)
        elif key == "memory":
            if not value.isdecimal() or not 0 < int(value) < 1 << 20:
                raise self._error(number, f"memory is a number of MiB, not {value!r}")
            demonstration.memory = int(value)
        else:
            raise self._error(number, f"a demonstration knows no '{key}'; it knows {', '.join(HEADER_KEYS)}")

    def _error(self, line: int, text: str) -> DemonstrationError:
        return DemonstrationError(f"{self.path}:{line}: {text}")
