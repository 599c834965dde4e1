"""A demonstration on a running engine: one step after the other, and back.

    tour = Tour(engine, demonstration.load("events"))
    tour.forward()
    while not tour.settled:
        engine.pump()
        tour.advance()

Nothing here blocks. A *station* is where a step has led: station 0 is the beginning. A station that was reached before
is gone to again in recorded history, as long as nobody has left it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from xentui.config import ConfigError
from xentui.demonstration import (
    DEFAULT_LIMIT,
    Demonstration,
    DemonstrationError,
    Doing,
    Step,
    guest_specifications,
)
from xentui.engine.actions import KINDS, Action
from xentui.engine.breakpoints import RECORD, Breakpoint
from xentui.engine.clock import MAX_NS
from xentui.engine.conditions import parse_expression

if TYPE_CHECKING:
    from xentui.engine.process import Engine

_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_ESCAPES = {"\\n": "\r", "\\t": "\t", "\\e": "\x1b", "\\\\": "\\"}

ALL = "all"
"""What `focus` says where no domain is meant more than the others."""
GRACE = 100_000_000
"""Virtual ns after which a record that was to end a run is no longer waited for."""


def check(demonstration: Demonstration) -> None:
    """Are its steps what can be done? Raises DemonstrationError, which names file and line."""
    names = _names(demonstration)
    for step in demonstration.steps:
        shown = [Doing(key, step.shows[key], step.places[key]) for key in ("focus", "filter") if key in step.shows]
        for doing in step.doings + shown:
            try:
                _check(doing, names)
            except ValueError as error:
                raise DemonstrationError(f"{demonstration.path}:{doing.line}: {doing.key}: {error}") from None


def _names(demonstration: Demonstration) -> dict[str, int]:
    """The guests' names and numbers. Raises DemonstrationError for what is no guest, with its line."""
    path, places = demonstration.path, demonstration.places
    for guest, line in zip(demonstration.guests, places.get("guest", ()), strict=False):
        try:
            guest_specifications([guest])
        except ConfigError as error:
            raise DemonstrationError(f"{path}:{line}: guest: {error}") from None
    names = {spec.name: number for number, spec in enumerate(demonstration.specifications(), 1)}
    for name, line in zip(demonstration.unvalidated, places.get("no-validator", ()), strict=False):
        if name not in names:
            raise DemonstrationError(f"{path}:{line}: no-validator: {_nobody(name, names)}")
    return names


def _nobody(name: str, domains: dict[str, int]) -> str:
    return f"no guest is called {name!r}; there is {', '.join(domains)}"


def _check(doing: Doing, domains: dict[str, int]) -> None:
    if doing.key in ("run", "filter"):
        parse_expression(doing.value, domains)
    elif doing.key == "for":
        _duration(doing.value)
    elif doing.key in ("step", "back"):
        if not doing.value.isdecimal() or not int(doing.value):
            raise ValueError(f"{doing.value!r} is not a number of instructions")
    elif doing.key == "inject":
        from xentui.engine.faults import parse

        parse(doing.value, list(domains))
    else:
        kind, *words = doing.value.split(" ")
        if doing.key == "act" and kind not in KINDS:
            raise ValueError(f"there is no action {kind!r}; there is {', '.join(KINDS)}")
        name = "".join(words[:1]) if doing.key == "act" else kind
        if name not in domains and (doing.key, name) != ("focus", ALL):
            raise ValueError(_nobody(name, domains))


def _duration(text: str) -> int:
    """A virtual time like `200ms`, in nanoseconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s)", text)
    if not match:
        raise ValueError(f"{text!r} is not a time: a number and a unit, as in 200ms")
    return int(min(float(match[1]) * _UNITS[match[2]], MAX_NS))


def _typed(text: str) -> bytes:
    return re.sub(r"\\[nte\\]", lambda match: _ESCAPES[match[0]], text).encode()


class Tour:
    """Leads an engine through a demonstration. `station` is where it is, or the one on the way to which it is."""

    def __init__(self, engine: Engine, demonstration: Demonstration) -> None:
        self.engine = engine
        self.demonstration = demonstration
        self.station = 0
        self.problem = ""
        """Why the last step did not come to its end; one line."""
        self.on_arrival: Callable[[], None] = lambda: None
        """Called when a station is reached."""
        self._places: list[tuple[int, int]] = []  # (position, branch) of each station that was reached
        self._way: Generator[None, None, None] | None = None
        self._deadline = 0  # virtual ns; 0: none
        self._late = False

    @property
    def steps(self) -> list[Step]:
        """The demonstration's."""
        return self.demonstration.steps

    @property
    def step(self) -> Step | None:
        """The step that led here; None at the beginning."""
        return self.steps[self.station - 1] if self.station else None

    def shown_now(self, key: str) -> str:
        """What a step says of `focus` or `filter` stays until a later one says otherwise; "" before the first."""
        said = [step.shows[key] for step in self.steps[: self.station] if key in step.shows]
        return said[-1] if said else ""

    @property
    def settled(self) -> bool:
        """Is the station reached?"""
        return self._way is None

    @property
    def at_end(self) -> bool:
        """Is this the last station?"""
        return self.station == len(self.steps)

    @property
    def away(self) -> bool:
        """Has the path been left: does the machine stand elsewhere than where the step has led?"""
        return self.settled and self.station < len(self._places) and self._places[self.station] != self._here()

    def forward(self) -> None:
        """Take the next step."""
        if self.settled and not self.at_end:
            self._begin(self._forwards())

    def back(self) -> None:
        """Go back to the station before; to this one, if the path has been left."""
        if self.away:
            self._begin(self._backwards(0))
        elif self.settled and self.station:
            self._begin(self._backwards(1))

    def _begin(self, way: Generator[None, None, None]) -> None:
        self.problem = ""
        self._way = way
        self.advance()

    def advance(self) -> None:
        """The engine's status may be news: go on with the step if the machine stands still."""
        if self._way is None:
            return
        if not (self.engine.standing or self.engine.failure):
            if self._deadline and not self._late and self.engine.status.time >= self._deadline + GRACE:
                self._late = True
                self.engine.pause()
            return
        try:
            next(self._way)
        except StopIteration:
            self._way = None
            self.on_arrival()

    # --- ways --------------------------------------------------------------------------------------------------------

    def _here(self) -> tuple[int, int]:
        return self.engine.status.position, self.engine.status.branch

    def _pause(self) -> Generator[None, None, None]:
        if self.engine.status.running:
            self.engine.pause()
            yield

    def _forwards(self) -> Generator[None, None, None]:
        yield from self._pause()
        if self.station >= len(self._places):
            self._places.append(self._here())
        known = len(self._places) > self.station + 1 and self._places[self.station] == self._here()
        self.station += 1
        if known:
            self.engine.goto(position=self._places[self.station][0])
            yield
            return
        del self._places[self.station :]
        step = self.steps[self.station - 1]
        for doing in step.doings:
            yield from self._do(doing)
            if self.problem:
                return
        self._places.append(self._here())

    def _backwards(self, stations: int) -> Generator[None, None, None]:
        yield from self._pause()
        position, branch = self._places[self.station - stations]
        if branch != self.engine.status.branch:
            self.engine.switch(branch)
            yield
        self.engine.goto(position=position)
        yield
        self.station -= stations

    def _do(self, doing: Doing) -> Generator[None, None, None]:
        engine = self.engine
        if doing.key == "run":
            yield from self._run(doing)
        elif doing.key == "for":
            end = engine.status.time + _duration(doing.value)
            yield from self._run_until(f"time >= {end}", end)
            if self._late:
                engine.goto(time=end)
                yield
        elif doing.key == "step":
            engine.step(int(doing.value))
            yield
        elif doing.key == "back":
            engine.step_back(int(doing.value))
            yield
        else:
            engine.act(self._action(doing))

    def _run_until(self, condition: str, deadline: int) -> Generator[None, None, None]:
        """Run to a record; or until it is late, for a machine that is idle writes none."""
        self._deadline, self._late = deadline, False
        self.engine.run(Breakpoint(RECORD, condition))
        yield
        self._deadline = 0

    def _run(self, doing: Doing) -> Generator[None, None, None]:
        """Run to the record that is meant, or until it is clear that it does not come."""
        limit = self.engine.status.time + DEFAULT_LIMIT
        yield from self._run_until(f"({doing.value}) or time >= {limit}", limit)
        status = self.engine.status
        if status.stop != "breakpoint" or status.time >= limit:
            where = f"{self.demonstration.path.name}:{doing.line}"
            why = f" in {DEFAULT_LIMIT // 1_000_000_000} s" if status.time >= limit else f": {status.why}"
            self.problem = f"{where}: the machine did not come to {doing.value!r}{why}"

    @staticmethod
    def _action(doing: Doing) -> Action:
        if doing.key == "inject":
            return Action("inject", None, (doing.value,))
        if doing.key == "type":
            name, _, text = doing.value.partition(" ")
            return Action("type", name, (_typed(text),))
        kind, name, *words = doing.value.split(" ")
        return Action(kind, name, tuple(int(word, 0) if re.fullmatch(r"-?\d+", word) else word for word in words))
