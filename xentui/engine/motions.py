"""How the engine's process moves its machine: in bursts, as a command of the console says.

A motion is begun, and advanced burst by burst until it is over; between bursts the process looks at its messages. A
burst leaves no trace in the machine: it goes on as if it had not been stopped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from xentui.engine import messages as msg
from xentui.engine import stepping
from xentui.engine.clock import FastClock
from xentui.engine.conditions import BreakpointError
from xentui.engine.machine import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xentui.engine.breakpoints import Breakpoint
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Vcpu

BURST_MS = 10
"""Host time after which a running machine looks at its messages."""
BYTES_PER_INSTRUCTION = 4
"""Of guest code, about: what a speed in instructions a second means in virtual time."""
STEPPED_SPEED = 1000
"""Instructions a second up to which they are executed one by one."""
RECORDED = "the recording ends here; what runs on from here is new"
_SHOWN = 1 / 15
_UNTIL = 0
"""The number of the breakpoint that is set for one run."""

_WORDS = {
    Stop.FINISHED: "no domain is left to run",
    Stop.STARVED: "every domain waits for an event that nothing in the machine will bring",
    Stop.TIME: "",
    Stop.ASKED: "paused",
    Stop.STEP: "",
}


class Over(NamedTuple):
    """A motion is over: a Stop, and why in words."""

    stop: str
    why: str


def over(stop: str, why: str = "") -> Over:
    """The end of a motion for a reason that needs no more words than it has."""
    return Over(stop, why or _WORDS.get(stop, stop))


class Mover:
    """What moves a machine. `motion` is the command at work, or None while the machine stands still."""

    def __init__(self, machine: Machine, notice: Callable[[str], None]) -> None:
        self.machine, self.notice = machine, notice
        self.motion: Any = None
        self.speed: float | None = None
        self.warp = False
        self.breakpoints: list[tuple[int, Breakpoint]] = []
        """Those of the user, by number; they hold while the machine runs or is stepped."""
        self.found: list[int] = []
        """What a scan has met."""
        self.place: msg.Place | None = None
        self._told: dict[int, str] = {}  # why a breakpoint could not be set
        self._count = 0  # instructions stepped
        self._begun = False  # a first burst was
        self._value: int | None = None  # of the register that is looked at
        self._idle: tuple[int, float] | None = None  # virtual and host time when the machine became idle
        self._pace = (0.0, 0)  # host time and position from which on a limited speed is measured
        self._slow = 0  # instructions executed since then, one by one
        self._ways: dict[type, Callable[[Any], Over | None]] = {
            msg.Run: self._run,
            msg.Step: self._step,
            msg.Travel: self._travel,
            msg.Reach: self._reach,
            msg.Scan: self._scan,
            msg.Where: self._where,
        }
        self.freeze()

    # --- beginning and ending ------------------------------------------------------------------------------------

    def begin(self, motion: Any) -> Over | None:
        """Begin a motion. Over at once where its condition cannot be."""
        self.motion, self.found, self.place, self._count, self._begun = motion, [], None, 0, False
        self.reset()
        if isinstance(self.machine.clock, FastClock) and isinstance(motion, msg.Run):
            self.machine.clock.thaw()
        try:
            if isinstance(motion, msg.Run):
                self._set(self.breakpoints, motion.until)
            elif isinstance(motion, msg.Step):
                self._set(self.breakpoints, stepping.point_behind(self.machine) if motion.over else None)
            elif isinstance(motion, msg.Scan):
                until = motion.until
                points = self.breakpoints if motion.breakpoints else []
                self._set(points, until._replace(temporary=False, ignore=0) if until is not None else None)
            else:
                self._set([], None)
        except BreakpointError as error:
            return Over(Stop.ASKED, str(error))
        return None

    def end(self) -> None:
        """The machine stands still from now on; what is done to it now meets no condition of this motion."""
        self.motion = self._idle = None
        self._forget_until()
        self.freeze()

    def freeze(self) -> None:
        """In the fast pace: let time stand still."""
        if isinstance(self.machine.clock, FastClock):
            self.machine.clock.freeze()

    def reset(self) -> None:
        """Speed and idle time are measured from now on."""
        self._idle = None
        self._pace, self._slow = (time.monotonic(), self.machine.position), 0

    def advance(self) -> Over | None:
        """One burst of the motion; how it ended, if it did."""
        ended = self._ways[type(self.motion)](self.motion)
        self._begun = True
        return ended

    def _burst(self, until_position: int | None = None) -> str:
        """Let the machine run for a while."""
        return self.machine.run(until_position=until_position, host_ms=BURST_MS, go_on=self._begun)

    @staticmethod
    def _rounds() -> Iterator[None]:
        """Goes round until it is time to look at the messages."""
        end = time.monotonic() + BURST_MS / 1000
        while time.monotonic() < end:
            yield

    # --- breakpoints ---------------------------------------------------------------------------------------------

    def set_breakpoints(self, breakpoints: list[tuple[int, Breakpoint]]) -> None:
        """These are the user's from now on."""
        self.breakpoints = breakpoints
        if isinstance(self.motion, (msg.Run, msg.Step)):
            self._set(breakpoints, self.motion.until if isinstance(self.motion, msg.Run) else None)

    def _set(self, breakpoints: list[tuple[int, Breakpoint]], until: Breakpoint | None) -> None:
        """Let these hold, and one for this motion. One of the user's that cannot be set (now) is told. Raises
        BreakpointError for that of the motion."""
        if not breakpoints and until is None and "breakpoints" not in vars(self.machine):
            return
        machine = self.machine
        self._forget_until()
        machine.breakpoints.replace(
            [(number, point) for number, point, _ in machine.breakpoints if (number, point) in breakpoints]
        )
        there = {number for number, _, _ in machine.breakpoints}
        for number, point in breakpoints:
            if number not in there:
                try:
                    machine.breakpoints.add(point, number)
                except BreakpointError as error:
                    if self._told.get(number) != str(error):  # it is tried again each time; said once is enough
                        self._told[number] = str(error)
                        self.notice(f"breakpoint {number} does not hold yet: {error}")
        if until is not None:
            machine.breakpoints.add(until, _UNTIL)

    def _forget_until(self) -> None:
        """The condition of a motion holds no longer."""
        points = vars(self.machine).get("breakpoints")
        if points is not None and any(number == _UNTIL for number, _, _ in points):
            points.replace([(number, point) for number, point, _ in points if number != _UNTIL])

    def _stopped(self) -> Over:
        """A breakpoint was hit."""
        stopped = self.machine.stopped
        return Over(Stop.BREAKPOINT, stopped.text if stopped is not None else "a breakpoint")

    # --- running -------------------------------------------------------------------------------------------------

    def _run(self, motion: msg.Run) -> Over | None:
        machine = self.machine
        if 0 < motion.recorded <= machine.position:
            return Over(Stop.TIME, RECORDED)
        if not self.pass_idle_time(motion.recorded):
            return None
        machine.hold_idle = not self.warp
        if self.speed is not None and self.speed <= STEPPED_SPEED and machine.processor.counts_code:
            return self._run_slowly(self.speed)
        goal = None if self.speed is None else self._allowed(self.speed * BYTES_PER_INSTRUCTION)
        if goal is not None and goal <= machine.position:
            return None
        stop = self._burst(min(goal or motion.recorded, motion.recorded) if motion.recorded else goal)
        if stop == Stop.IDLE:
            self._idle = (machine.now(), time.monotonic())
            return None
        if stop == Stop.BREAKPOINT:
            return self._stopped()
        return None if stop in (Stop.ASKED, Stop.TIME) else over(stop)

    def _allowed(self, rate: float) -> int:
        """What a rate a second allows now, from where it was begun."""
        host, position = self._pace
        return position + int((time.monotonic() - host) * rate)

    def _run_slowly(self, speed: float) -> Over | None:
        """Execute the instructions that are due, one by one."""
        host, _ = self._pace
        machine = self.machine
        for _ in self._rounds():
            if self._slow >= (time.monotonic() - host) * speed:
                return None
            stop = machine.step(go_on=self._begun)
            self._begun = True
            self._slow += 1
            if stop == Stop.IDLE:
                self._idle = (machine.now(), time.monotonic())
                return None
            if stop == Stop.BREAKPOINT:
                return self._stopped()
            if stop not in (Stop.STEP, Stop.ASKED):
                return over(stop)
        return None

    def pass_idle_time(self, recorded: int = 0) -> bool:
        """Let the machine's time go on with the host's while it is idle; is the idle time over? `recorded`: a position
        that is not passed."""
        if self._idle is None:
            return True
        virtual, host = self._idle
        now = virtual + int((time.monotonic() - host) * 1e9)
        if recorded:
            now = min(now, recorded + 1 >> 1)
        due = self.machine.idle_until()
        if due is not None and now >= due:
            self.machine.idle_to(due)
            self.reset()
            return True
        self.machine.idle_to(now)
        return False

    def patience(self) -> float | None:
        """Seconds to wait for a message before the machine goes on; None: until there is one."""
        if self.motion is None:
            return None
        if self._idle is not None:
            due = self.machine.idle_until()
            if due is None:
                return _SHOWN
            virtual, host = self._idle
            return min(_SHOWN, max(0.0, host + (due - virtual) / 1e9 - time.monotonic()))
        if self.speed is None or not isinstance(self.motion, msg.Run):
            return 0
        host, _ = self._pace
        if self.speed > STEPPED_SPEED:
            return 1 / 60
        return min(_SHOWN, max(0.0, host + self._slow / self.speed - time.monotonic()))

    # --- stepping and travelling -----------------------------------------------------------------------------------

    def _step(self, motion: msg.Step) -> Over | None:
        if not self.machine.processor.counts_code:
            return Over(Stop.ASKED, "only the exact pace can be stepped")
        if motion.over and any(number == _UNTIL for number, _, _ in self.machine.breakpoints):
            self.machine.hold_idle = False
            stop = self._burst()
            if stop == Stop.ASKED:
                return None
            stopped = self.machine.stopped
            if stopped is not None and stopped.number == _UNTIL:
                return over(Stop.STEP)
            return self._stopped() if stop == Stop.BREAKPOINT else self._stuck(stop, motion)
        for _ in self._rounds():
            if self._count >= motion.instructions:
                return over(Stop.STEP)
            self.machine.hold_idle = False
            stop = self.machine.step(self._vcpu(motion.vcpu), BURST_MS if motion.vcpu else 0, self._begun)
            self._begun = True
            if stop == Stop.BREAKPOINT:
                return self._stopped()
            if stop not in (Stop.STEP, Stop.ASKED):
                return self._stuck(stop, motion)
            self._count += stop == Stop.STEP
        return None

    def _stuck(self, stop: str, motion: msg.Step) -> Over:
        """No instruction is left to be executed. If the machine waited in vain then, that time passes again."""
        if stop == Stop.STARVED and self.machine.position < motion.end:
            self.machine.run(until_position=motion.end)
        return over(stop)

    def _where(self, _motion: msg.Where) -> Over:
        self.place = stepping.place(self.machine)
        return over(Stop.STEP)

    def _vcpu(self, which: tuple[int, int] | None) -> Vcpu | None:
        """The vCPU whose instructions count; None for any, and for one that is not there (any more)."""
        domain = self.machine.hv.domains.get(which[0]) if which is not None else None
        if which is None or domain is None or not 0 <= which[1] < len(domain.vcpus):
            return None
        return domain.vcpus[which[1]]

    def _travel(self, motion: msg.Travel) -> Over | None:
        machine = self.machine
        if machine.position < motion.position:
            machine.hold_idle = False
            stop = self._burst(motion.position)
            if stop == Stop.STARVED:
                machine.idle_to(motion.position // 2)  # it was idle then, and nothing would have ended that
            elif stop != Stop.TIME:
                return None if stop == Stop.ASKED else over(stop)
        for _ in self._rounds():
            if machine.trace.head >= motion.records:
                return over(Stop.TIME)
            ended = self._next_boundary()
            if ended is not None:
                return over(ended)
        return None

    def _reach(self, motion: msg.Reach) -> Over | None:
        self.machine.hold_idle = False
        stop = self._burst()
        return over(stop) if stop != Stop.ASKED or self.machine.trace.head >= motion.records else None

    def _next_boundary(self, grain: int = 1) -> str | None:
        """Run to the next place where a run can stop: behind an instruction, a context switch, or idle time.

        A Stop if there is none.
        """
        machine = self.machine
        machine.hold_idle = True
        stop = machine.run(until_position=machine.position + grain)
        if stop == Stop.IDLE:
            due = machine.idle_until()
            if due is None:
                return Stop.STARVED
            machine.hold_idle = False
            stop = machine.run(until_position=2 * due)
        return None if stop == Stop.TIME else stop

    def _scan(self, motion: msg.Scan) -> Over | None:
        if motion.until is not None or motion.breakpoints:
            return self._scan_for_condition(motion)
        machine = self.machine
        for _ in self._rounds():
            if machine.position >= motion.position:
                return over(Stop.TIME)
            since = machine.idle_since
            if motion.register is not None:
                self._note_register(*motion.register)
            elif since is None or since == machine.now():  # a moment within idle time is no boundary
                self.found.append(machine.position)
            ended = self._next_boundary(motion.grain)
            if ended is not None:
                return over(ended)
        return None

    def _note_register(self, domain: int, vcpu: int, name: str) -> None:
        """Remember this place if the register is not what it was at the last."""
        from xentui.engine.views import ViewError, find

        try:
            value = find.register(find.state_of(find.vcpu_of(self.machine, domain, vcpu)), name)
        except ViewError:
            value = None
        if self._begun and value != self._value:
            self.found = [self.machine.position]
        self._value, self._begun = value, True

    def _scan_for_condition(self, motion: msg.Scan) -> Over | None:
        """The last place before the goal where the condition held."""
        machine = self.machine
        machine.hold_idle = False
        for _ in self._rounds():
            stop = self._burst(motion.position)
            self._begun = True
            if stop != Stop.BREAKPOINT:
                return None if stop == Stop.ASKED else over(stop)
            if machine.position >= motion.position:
                return over(Stop.TIME)
            self.found = [machine.position]
            self._begun = False  # the next run begins at this place, which does not count again
        return None
