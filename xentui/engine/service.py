"""What the engine's process does: runs the machine in bursts, and between them obeys commands and reports."""

from __future__ import annotations

import os
import time
import traceback
from typing import TYPE_CHECKING, Any

from xentui.engine import messages as msg
from xentui.engine.actions import ActionError
from xentui.engine.build import build_machine
from xentui.engine.census import Census
from xentui.engine.clock import FastClock
from xentui.engine.machine import Stop
from xentui.engine.reports import Reporter
from xentui.engine.snapshots import Snapshots, sleep
from xentui.engine.trace import RING_HEADER_SIZE
from xentui.engine.views import Query, ViewError, look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xentui.engine.messages import Activate
    from xentui.engine.wire import Channel

BURST_MS = 10
"""Host time after which a running machine looks at its messages."""
BYTES_PER_INSTRUCTION = 4
"""Of guest code, about: what a speed in instructions a second means in virtual time."""
STEPPED_SPEED = 2000
"""Instructions a second up to which they are executed one by one."""
_REPORT_S = 1 / 30
_IDLE_REPORT_S = 1 / 15
_BACKLOG = 1 << 20
"""Bytes that may wait for the console to read them before the engine waits for the console."""

_WORDS = {
    Stop.FINISHED: "no domain is left to run",
    Stop.STARVED: "every domain waits for an event that nothing in the machine will bring",
    Stop.TIME: "the moment asked for is reached",
    Stop.ASKED: "paused",
    Stop.STEP: "",
}


class Service:
    """One engine process at work. `motion` is the command that moves the machine, or None while it stands still."""

    def __init__(self, channel: Channel, begin: msg.Begin, ring: memoryview) -> None:
        setup = begin.setup
        self.channel = channel
        self.on_channel: Callable[[Channel], None] = lambda channel: None
        """Hears of the new socket, in a copy that goes on."""
        self.machine = build_machine(setup, ring)
        self.reporter = Reporter(self.machine, Census(self.machine.trace, ring[RING_HEADER_SIZE:]))
        self.reporter.connect_typist(setup)
        self.snapshots = Snapshots(begin.snapshots)
        self.motion: Any = None
        self.speed: float | None = None
        self.warp = False
        self.work = 0.0
        self.stop, self.why = "", ""
        self._found: list[int] = []
        self._count = 0
        self._idle: tuple[int, float] | None = None  # virtual and host time when the machine became idle
        self._begun = (0.0, 0)  # of motion at a limited speed: host time, instructions or position
        self._next_report = 0.0
        self._changed = True
        self._schedule(setup.actions)
        self._moves: dict[type, Callable[[Any], None]] = {
            msg.Run: self._run,
            msg.Step: self._step,
            msg.Travel: self._travel,
            msg.Reach: self._reach,
            msg.Scan: self._scan,
        }
        self._obey: dict[type, Callable[[Any], None]] = {
            **dict.fromkeys(self._moves, self._start),
            msg.Pause: self._pause,
            msg.Park: self._park,
            msg.Act: self._act,
            msg.Ask: self._ask,
            msg.Pace: self._pace,
            msg.Breakpoints: self._breakpoints,
        }

    def serve(self, commands: list[Any]) -> None:
        """Work until the console is gone; first of all on commands that have come already."""
        self._freeze()
        self._leave_snapshot()
        self._report()
        for command in commands:
            self._obey[type(command)](command)
        while not self.channel.closed:
            if self.motion is None or self.channel.waiting > _BACKLOG:
                self.channel.drain()
            self.channel.flush()
            self.channel.wait(self._patience())
            for message, _ in self.channel.receive():
                self._obey[type(message)](message)
            if self.motion is not None:
                self._advance()
            self._report()

    # --- commands ------------------------------------------------------------------------------------------------

    def _start(self, motion: Any) -> None:
        """Begin to move; what moved before is over."""
        if self.motion is not None:
            self._finish(Stop.ASKED)
        self.motion, self._found, self._count, self._idle = motion, [], 0, None
        self.stop = self.why = ""
        self._begin_speed()
        if isinstance(self.machine.clock, FastClock):
            self.machine.clock.thaw()
        self._changed = True
        self._next_report = 0.0

    def _pause(self, _message: msg.Pause) -> None:
        if self.motion is not None:
            self._finish(Stop.ASKED)

    def _park(self, message: msg.Park) -> None:
        """Stop, and sleep as a snapshot; what returns is a copy that goes on."""
        if self.motion is not None:
            self._finish(Stop.ASKED)
        self._tell()
        self.channel.send(msg.Done(message.serial, self._status()))
        self.channel.drain()
        self._go_on(*sleep(self.channel))

    def _act(self, message: msg.Act) -> None:
        self._pass_idle_time()
        self._idle = None
        if message.future is not None:
            self._schedule(message.future)
        try:
            self.machine.apply(self.reporter.announced(message.action, fresh=True))
        except ActionError as error:
            self.channel.send(msg.Notice(str(error)))
        self._changed = True
        self._next_report = 0.0

    def _ask(self, message: msg.Ask) -> None:
        self.channel.send(msg.Reply(message.id, [self._answer(query) for query in message.queries]))

    def _answer(self, query: Query) -> Any:
        try:
            return look(self.machine, query.view, **query.arguments)
        except ViewError as error:
            return error
        except Exception as error:  # a fault of the view's own costs the user that pane, not the machine
            traceback.print_exc()
            return ViewError(f"{query.view}: {type(error).__name__}: {error}")

    def _pace(self, message: msg.Pace) -> None:
        self._pass_idle_time()
        self._idle = None
        self.speed, self.warp = message.speed, message.warp
        self._begin_speed()
        self._changed = True

    def _breakpoints(self, message: msg.Breakpoints) -> None:
        self._set_breakpoints(message.breakpoints)

    def _set_breakpoints(self, breakpoints: list[tuple[int, Any]]) -> None:
        self.breakpoints = breakpoints

    def _schedule(self, actions: list[tuple[int, Any]]) -> None:
        """These are the influences to come; no others."""
        self.machine.unschedule()
        for position, action in actions:
            self.machine.schedule(position, self.reporter.announced(action))

    # --- moving --------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """One burst of what is to be done, and a snapshot where one is due."""
        began = time.perf_counter()
        self._moves[type(self.motion)](self.motion)
        self.work += time.perf_counter() - began
        self._changed = True
        if self.snapshots.due(self.work):
            self._leave_snapshot()

    def _run(self, motion: msg.Run) -> None:
        if self._idle is not None and not self._pass_idle_time():
            return
        machine = self.machine
        machine.hold_idle = not self.warp
        goal = None
        if self.speed is not None:
            goal = self._goal()
            if goal <= machine.position:
                return
        stop = machine.run(until_position=goal, host_ms=BURST_MS)
        if stop == Stop.IDLE:
            self._idle = (machine.now(), time.monotonic())
        elif stop not in (Stop.ASKED, Stop.TIME):
            self._finish(stop)

    def _begin_speed(self) -> None:
        self._begun = (time.monotonic(), self.machine.position)

    def _goal(self) -> int:
        """The position that a limited speed allows now."""
        host, position = self._begun
        return position + int((time.monotonic() - host) * (self.speed or 0) * BYTES_PER_INSTRUCTION)

    def _pass_idle_time(self) -> bool:
        """Let the machine's time go on with the host's while it is idle; is the idle time over?"""
        if self._idle is None:
            return True
        virtual, host = self._idle
        now = virtual + int((time.monotonic() - host) * 1e9)
        due = self.machine.idle_until()
        over = due is not None and now >= due
        self.machine.idle_to(due if over and due is not None else now)
        if over:
            self._idle = None
            self._begin_speed()
        return over

    def _step(self, motion: msg.Step) -> None:
        """Instruction by instruction; what was done already is counted in `_begun`."""
        for _ in self._burst():
            if self._count >= motion.instructions:
                self._finish(Stop.STEP)
                return
            self.machine.hold_idle = False
            stop = self.machine.step()
            if stop != Stop.STEP:
                self._finish(stop)
                return
            self._count += 1

    def _burst(self) -> Iterator[None]:
        """Goes round until it is time to look at the messages."""
        end = time.monotonic() + BURST_MS / 1000
        while time.monotonic() < end:
            yield

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

    def _travel(self, motion: msg.Travel) -> None:
        machine = self.machine
        if machine.position < motion.position:
            machine.hold_idle = False
            stop = machine.run(until_position=motion.position, host_ms=BURST_MS)
            if stop != Stop.TIME:
                if stop != Stop.ASKED:
                    self._finish(stop)
                return
        for _ in self._burst():
            if machine.trace.head >= motion.records:
                self._finish(Stop.TIME)
                if motion.keep:
                    self._leave_snapshot()
                return
            stop_before = self._next_boundary()
            if stop_before is not None:
                self._finish(stop_before)
                return

    def _reach(self, motion: msg.Reach) -> None:
        self.machine.hold_idle = False
        stop = self.machine.run(host_ms=BURST_MS)
        if stop != Stop.ASKED or self.machine.trace.head >= motion.records:
            self._finish(stop)

    def _scan(self, motion: msg.Scan) -> None:
        """Collect boundaries. A moment within idle time, where the scan may have begun, is none."""
        machine = self.machine
        for _ in self._burst():
            if machine.position >= motion.position:
                self._finish(Stop.TIME)
                return
            since = machine.idle_since
            if since is None or since == machine.now():
                self._found.append(machine.position)
            stop = self._next_boundary(motion.grain)
            if stop is not None:
                self._finish(stop)
                return

    def _finish(self, stop: str, why: str = "") -> None:
        """The motion is over."""
        self.stop, self.why = stop, why or _WORDS.get(stop, stop)
        motion, self.motion, self._idle = self.motion, None, None
        self._freeze()
        self._tell()
        self.channel.send(msg.Done(motion.serial, self._status(), tuple(self._found)))
        self._changed = False

    # --- snapshots -----------------------------------------------------------------------------------------------

    def _freeze(self) -> None:
        if isinstance(self.machine.clock, FastClock):
            self.machine.clock.freeze()

    def _leave_snapshot(self) -> None:
        """Leave a copy of this process behind; in that copy, once it is needed, go on."""
        self._freeze()
        self._tell()
        woken = self.snapshots.leave(self.channel, self._status(), self.work)
        if woken is not None:
            self._go_on(*woken)
        elif isinstance(self.machine.clock, FastClock) and self.motion is not None:
            self.machine.clock.thaw()

    def _go_on(self, channel: Channel, message: Activate) -> None:
        """This is a copy that was told to go on from here."""
        self.channel = channel
        self.on_channel(channel)
        self.motion = self._idle = None
        self.speed, self.warp = message.speed, message.warp
        self.snapshots.went_on(self.work)
        self._schedule(message.actions)
        self._set_breakpoints(message.breakpoints)

    # --- reports -------------------------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """Seconds to wait for a message before the machine goes on."""
        if self.motion is None:
            return None
        if self._idle is None:
            return 0 if self.speed is None else 1 / 60
        due = self.machine.idle_until()
        if due is None:
            return _IDLE_REPORT_S
        virtual, host = self._idle
        return min(_IDLE_REPORT_S, max(0.0, host + (due - virtual) / 1e9 - time.monotonic()))

    def _tell(self) -> None:
        told = self.reporter.take()
        if told:
            self.channel.send(msg.History(told))

    def _status(self) -> msg.Status:
        self.machine.trace.publish()
        return self.reporter.status()._replace(
            running=isinstance(self.motion, msg.Run),
            travelling=isinstance(self.motion, (msg.Travel, msg.Reach, msg.Scan)),
            stop=self.stop,
            why=self.why,
            speed=self.speed,
            warp=self.warp,
            pid=os.getpid(),
            cpu=time.process_time(),
            work=self.work,
        )

    def _report(self) -> None:
        """Tell what is new, not more often than it can be shown."""
        now = time.monotonic()
        if not self._changed or now < self._next_report:
            return
        self._tell()
        self.channel.send(msg.StatusEvent(self._status()))
        self._changed = False
        self._next_report = now + _REPORT_S
