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
from xentui.engine.motions import Mover, Over, over
from xentui.engine.reports import Reporter
from xentui.engine.snapshots import Snapshots, sleep
from xentui.engine.trace import RING_HEADER_SIZE
from xentui.engine.views import Query, ViewError, look

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.messages import Activate
    from xentui.engine.wire import Channel

_REPORT_S = 1 / 30
_BACKLOG = 1 << 20
"""Bytes that may wait for the console to read them before the engine waits for the console."""


class Service:
    """One engine process at work."""

    def __init__(self, channel: Channel, begin: msg.Begin, ring: memoryview) -> None:
        setup = begin.setup
        self.channel = channel
        self.on_channel: Callable[[Channel], None] = lambda channel: None
        """Hears of the new socket, in a copy that goes on."""
        self.machine = build_machine(setup, ring)
        self.reporter = Reporter(self.machine, Census(self.machine.trace, ring[RING_HEADER_SIZE:]))
        self.reporter.connect_typist(setup)
        self.snapshots = Snapshots(begin.snapshots)
        self.mover = Mover(self.machine, lambda text: self.channel.send(msg.Notice(text)))
        self.work = 0.0
        self.stop, self.why = "", ""
        self._next_report = 0.0
        self._changed = True
        self._schedule(setup.actions)
        self._obey: dict[type, Callable[[Any], None]] = {
            **dict.fromkeys((msg.Run, msg.Step, msg.Travel, msg.Reach, msg.Scan, msg.Where), self._start),
            msg.Pause: self._pause,
            msg.Park: self._park,
            msg.Act: self._act,
            msg.Ask: self._ask,
            msg.Pace: self._pace,
            msg.Breakpoints: self._breakpoints,
        }

    def serve(self, commands: list[Any]) -> None:
        """Work until the console is gone; first of all on commands that have come already."""
        self._leave_snapshot()
        self._report()
        for command in commands:
            self._obey[type(command)](command)
        while not self.channel.closed:
            if self.mover.motion is None or self.channel.waiting > _BACKLOG:
                self.channel.drain()
            self.channel.flush()
            self.channel.wait(self.mover.patience())
            for message, _ in self.channel.receive():
                self._obey[type(message)](message)
            if self.mover.motion is not None:
                self._advance()
            self._report()

    # --- commands ------------------------------------------------------------------------------------------------

    def _pause(self, _message: msg.Pause) -> None:
        if self.mover.motion is not None:
            self._finish(over(Stop.ASKED))

    def _park(self, message: msg.Park) -> None:
        """Stop, and sleep as a snapshot; what returns is a copy that goes on."""
        if self.mover.motion is not None:
            self._finish(over(Stop.ASKED))
        self._tell()
        self.channel.send(msg.Done(message.serial, self._status()))
        self.channel.drain()
        self._go_on(*sleep(self.channel))

    def _act(self, message: msg.Act) -> None:
        self.mover.pass_idle_time()
        self.mover.reset()
        try:
            message.action.check(self.machine)
            if message.future is not None:
                self._schedule(message.future)
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
        self.mover.pass_idle_time()
        self.mover.speed, self.mover.warp = message.speed, message.warp
        self.mover.reset()
        self._changed = True

    def _breakpoints(self, message: msg.Breakpoints) -> None:
        self.mover.set_breakpoints(message.breakpoints)

    def _schedule(self, actions: list[tuple[int, Any]]) -> None:
        """These are the influences to come; no others."""
        self.machine.unschedule()
        for position, action in actions:
            self.machine.schedule(position, self.reporter.announced(action))

    # --- moving --------------------------------------------------------------------------------------------------

    def _start(self, motion: Any) -> None:
        """Begin to move; what moved before is over."""
        if self.mover.motion is not None:
            self._finish(over(Stop.ASKED))
        self.stop = self.why = ""
        ended = self.mover.begin(motion)
        self._changed = True
        self._next_report = 0.0
        if ended is not None:
            self._finish(ended)

    def _advance(self) -> None:
        """One burst of what is to be done, and a snapshot where one is due."""
        began = time.process_time()
        ended = self.mover.advance()
        self.work += time.process_time() - began
        self._changed = True
        if ended is not None:
            self._finish(ended)
        if self.snapshots.due(self.work):
            self._leave_snapshot()

    def _finish(self, ended: Over) -> None:
        """The motion is over."""
        mover = self.mover
        motion = mover.motion
        mover.end()
        self.stop, self.why = ended
        self._tell()
        self.channel.send(msg.Done(motion.serial, self._status(), tuple(mover.found), mover.place))
        self._changed = False
        if isinstance(motion, msg.Travel) and motion.keep:
            self._leave_snapshot()

    # --- snapshots -----------------------------------------------------------------------------------------------

    def _leave_snapshot(self) -> None:
        """Leave a copy of this process behind; in that copy, once it is needed, go on."""
        self.mover.freeze()
        self._tell()
        woken = self.snapshots.leave(self.channel, self._status(), self.work)
        if woken is not None:
            self._go_on(*woken)
        elif isinstance(self.machine.clock, FastClock) and self.mover.motion is not None:
            self.machine.clock.thaw()

    def _go_on(self, channel: Channel, message: Activate) -> None:
        """This is a copy that was told to go on from here."""
        self.channel = channel
        self.on_channel(channel)
        self.mover.end()
        self.mover.speed, self.mover.warp = message.speed, message.warp
        self.mover.set_breakpoints(message.breakpoints)
        self.snapshots.went_on(self.work)
        self._schedule(message.actions)
        self._changed = False

    # --- reports -------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        told = self.reporter.take()
        if told:
            self.channel.send(msg.History(told))

    def _status(self) -> msg.Status:
        mover, stopped = self.mover, self.machine.stopped
        self.machine.trace.publish()
        return self.reporter.status()._replace(
            running=isinstance(mover.motion, msg.Run),
            travelling=isinstance(mover.motion, (msg.Travel, msg.Reach, msg.Scan)),
            stop=self.stop,
            why=self.why,
            breakpoint=stopped.number if stopped is not None and self.stop == Stop.BREAKPOINT else None,
            speed=mover.speed,
            warp=mover.warp,
            pid=os.getpid(),
            cpu=time.process_time(),
            work=self.work,
        )

    def _report(self) -> None:
        """Tell what is new, not more often than it can be shown."""
        now = time.monotonic()
        if not self._changed or (self.mover.motion is not None and now < self._next_report):
            return
        self._tell()
        self.channel.send(msg.StatusEvent(self._status()))
        self._changed = False
        self._next_report = now + _REPORT_S
