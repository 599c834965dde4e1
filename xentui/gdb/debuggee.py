"""A domain in the engine's process, as a gdb session needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine.actions import Action
from xentui.engine.breakpoints import ACCESS, ADDRESS, READ, WATCH, WRITE, Breakpoint
from xentui.engine.run_loop import Stop
from xentui.engine.views import ViewError

if TYPE_CHECKING:
    from xentui.engine.process import Engine

_ACCESSES = {"write": WRITE, "read": READ, "access": ACCESS}
MONITOR_HELP = """\
status            where the machine is
goto TIME_NS      go to a moment of virtual time
live              go to the end of what is known
inject FAULT      break something (docs/faults.md)
help              this list
"""


class EngineDebuggee:
    """The domain called `name`. Breakpoints are the engine's own, so that they hold in the past as well."""

    def __init__(self, engine: Engine, name: str, width: int) -> None:
        self.engine = engine
        self.name = name
        self.width = width
        self._points: dict[tuple[str, int, int], int] = {}
        self._steps_back_of: int | None = None
        self._runs_back_from: int | None = None
        self._goes_to_start = False
        self.at_start = False
        """Has it gone back as far as there is anything?"""

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def domain(self) -> int | None:
        """The domain's number; None while there is none of that name."""
        found = [domain.id for domain in self.engine.status.domains if domain.name == self.name]
        return found[0] if found else None

    def threads(self) -> list[int]:
        for domain in self.engine.status.domains:
            if domain.name == self.name:
                return list(range(domain.vcpus))
        return []

    def current(self) -> int:
        current = self.engine.status.current
        return current[1] if current is not None and current[0] == self.domain else 0

    def registers(self, vcpu: int) -> dict[str, int]:
        found = self._look("debug.registers", vcpu=vcpu)
        return found if isinstance(found, dict) else {}

    def read(self, vcpu: int, address: int, length: int) -> bytes:
        found = self._look("debug.memory", vcpu=vcpu, address=address, length=length)
        return found if isinstance(found, bytes) else b""

    def _look(self, view: str, **arguments: Any) -> Any:
        domain = self.domain
        if domain is None:
            return None
        try:
            return self.engine.look(view, domain=domain, **arguments)
        except ViewError:
            return None

    def hit(self) -> tuple[str, int]:
        """Which of this domain's watchpoints stopped the machine: its kind and address; empty: none."""
        if self.engine.status.stop != Stop.BREAKPOINT:
            return "", 0
        found = self.engine.look("debug.stopped")
        for (kind, address, _), number in self._points.items():
            if found is not None and number == found["number"] and kind != "break":
                return kind, address
        return "", 0

    # --- what is changed ---------------------------------------------------------------------------------------------

    def write_register(self, vcpu: int, name: str, value: int) -> bool:
        self.engine.act(Action("set_register", self.name, (vcpu, name, value)))
        mask = (1 << self.width) - 1
        return self.registers(vcpu).get(name, -1) & mask == value & mask

    def write(self, vcpu: int, address: int, data: bytes) -> bool:
        self.engine.act(Action("write", self.name, (vcpu, address, data)))
        return self.read(vcpu, address, len(data)) == data

    def insert(self, kind: str, address: int, length: int) -> bool:
        point = (kind, address, length)
        if point in self._points:
            return True
        if kind == "break":
            made = Breakpoint(ADDRESS, hex(address), self.name)
        elif self.read(self.current(), address, length):
            made = Breakpoint(WATCH, hex(address), self.name, length=length, access=_ACCESSES[kind])
        else:
            return False
        self._points[point] = self.engine.add_breakpoint(made)
        return True

    def remove(self, kind: str, address: int, length: int) -> bool:
        number = self._points.pop((kind, address, length), None)
        if number in self.engine.breakpoints:
            self.engine.remove_breakpoint(number)
        return True

    # --- how it moves ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.engine.run()

    def run_back(self) -> None:
        self._steps_back_of = None
        self._runs_back_from = self.engine.status.position
        self.engine.run_back()

    def step(self, vcpu: int) -> None:
        domain = self.domain
        self.engine.step(vcpu=None if domain is None else (domain, vcpu))

    def step_back(self, vcpu: int) -> None:
        self._steps_back_of = vcpu
        self.engine.step_back()

    def moving_on(self) -> bool:
        """The machine stands: is that not where it was to go? A step back may end in another domain's code; running
        back ends at the start where no breakpoint was before."""
        began, self._runs_back_from = self._runs_back_from, None
        if began == self.engine.status.position:
            self._goes_to_start = True
            self.engine.goto(position=0)
            return True
        self.at_start, self._goes_to_start = self._goes_to_start, False
        status, vcpu = self.engine.status, self._steps_back_of
        if vcpu is None or status.position == 0 or status.current == (self.domain, vcpu):
            self._steps_back_of = None
            return False
        self.engine.step_back()
        return True

    def halt(self) -> None:
        self._steps_back_of = None
        self.engine.pause()

    def kill(self) -> None:
        if self.domain is not None:
            self.engine.act(Action("destroy", self.name))

    def monitor(self, command: str) -> str:
        word, _, rest = command.strip().partition(" ")
        status = self.engine.status
        if word == "status":
            past = "" if status.live else f", in the past (known up to {status.end_time} ns)"
            return f"virtual time {status.time} ns, position {status.position}{past}; {status.why or 'running'}\n"
        if word == "goto" and rest.strip().isdecimal():
            self.engine.goto(time=int(rest))
        elif word == "live":
            self.engine.live()
        elif word == "inject" and rest:
            self.engine.act(Action("inject", None, (rest,)))
        else:
            return MONITOR_HELP
        self.engine.wait(10)
        return self.monitor("status")


def stop_signal(stop: str) -> int:
    """The signal that gdb is told: SIGINT where the user asked, else SIGTRAP."""
    return 2 if stop == Stop.ASKED else 5
