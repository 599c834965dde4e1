"""How the client of the engine's process moves the machine: at once, in turn, or by a plan that leads through time.

A plan (travel.py) yields the commands of a way; while it is followed, what depends on where the machine stands waits
for its end (turns.py), and what names a moment of its own takes its place.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xentui.engine import messages as msg
from xentui.engine import travel
from xentui.engine.timeline import Branch, Fork
from xentui.engine.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.messages import Event, Status
    from xentui.engine.process import Engine
    from xentui.engine.record_window import RecordWindow
    from xentui.engine.timeline import Timeline
    from xentui.engine.travel import Command, Plan
    from xentui.engine.wire import Channel


class EngineError(Exception):
    """The engine's process could not start, or died; one line."""


class Moving:
    """The part of `Engine` that moves the machine."""

    timeline: Timeline
    status: Status
    records: RecordWindow

    def __init__(self) -> None:
        self._speed: float | None = None
        self._warp = False
        self._serial = self._finished = 0
        self._parking = 0  # the serial of a Park on its way
        self._plan: Plan | None = None
        self._then: Callable[[], None] | None = None
        self._after: list[Callable[[], None]] = []
        self._turns = Turns()
        self._stepping = 0  # the serial of the last step
        self._home: int | None = None  # where to stand again if looking into the past is given up
        self._looks_back = False
        self._run_again = False
        self._events: list[Event] = []

    def _engine(self) -> Engine:
        """The whole of it."""
        raise TypeError("what moves an engine is a part of it")

    @property
    def active(self) -> Channel | None:
        """The socket of the process that is not a snapshot; None on the way from one to another."""
        return self._engine().processes.active

    @property
    def exact(self) -> bool:
        """Does the same happen again when it runs again?"""
        return self._engine().setup.pace == "exact"

    # --- plans ---------------------------------------------------------------------------------------------------

    def _continue(self, done: msg.Done | None) -> None:
        """Go on with the plan: its next command, or its end."""
        try:
            self._go_on(done)
        except EngineError as error:
            self._engine()._fail(msg.Failed(str(error)))

    def _go_on(self, done: msg.Done | None) -> None:
        plan = self._plan
        assert plan is not None
        if self._after and done is not None:
            plan.close()
            if self._home is None:
                self._end_plan(done.status, "")
                return
            home, self._home, self._looks_back, self._after = self._home, None, False, []
            self._plan, done = travel.to_position(self._engine(), home), None
            plan = self._plan
        try:
            command = plan.send(done) if done is not None else next(plan)
        except StopIteration as end:
            self._end_plan(done.status if done is not None else self.status, end.value)
            return
        self._command(command)

    def _end_plan(self, status: Status, notice: str) -> None:
        self._plan = None
        if notice:
            self._events.append(msg.Notice(notice))
        self._engine()._news(status)
        after, self._after = self._after or [then for then in (self._then,) if then], []
        self._then, self._home, self._looks_back = None, None, False
        for request in after:
            request()
        self._next_turn()
        if self.active is None and self._plan is None and self.timeline.usable():
            self._engine().wake_before(status.position)

    def _next_turn(self) -> None:
        """Do what has waited for the machine to be where it now is."""
        while self._turns and not self._on_the_way:
            self._turns.next()

    @property
    def _on_the_way(self) -> bool:
        """Will the machine, by what was asked of it, soon stand somewhere else?"""
        return self._plan is not None or self._finished < self._stepping

    def _command(self, command: Command) -> None:
        """Send a command that moves the machine to the active process."""
        self._serial += 1
        message = command(self._serial)
        if isinstance(message, msg.Park):
            self._parking = self._serial
        assert self.active is not None
        self.active.send(message)

    # --- moving --------------------------------------------------------------------------------------------------

    def _request(self, request: Callable[[], None]) -> None:
        """Do it now, or, on the way to another moment, as soon as that way can be left."""
        if self._plan is None:
            request()
            return
        self._after.append(request)
        if not self._parking and self.active is not None:
            self.active.send(msg.Pause())

    def _in_turn(self, request: Callable[[int], None], count: int = 1, kind: str = "") -> None:
        """Do it now, or, on the way to another moment, there: what is asked for depends on where the machine stands."""
        if self._turns or self._on_the_way:
            self._turns.add(request, count, kind)
        else:
            request(count)

    def _move(self, command: Callable[[int], Command], count: int = 1, kind: str = "", soon_over: bool = True) -> None:
        """Begin a motion in its turn; `command` makes the message from a count and a serial. `soon_over`: what comes
        after it waits for its end, instead of ending it."""

        def request(count: int) -> None:
            if not self._engine()._has_process():
                return
            if self.active is None:
                self._engine().wake_before(self.status.position)
            if not self.exact and not self.status.live:
                self._leave_history()
            self._command(command(count))
            if soon_over:
                self._stepping = self._serial

        self._in_turn(request, count, kind)

    def _leave_history(self) -> None:
        """What runs on from the past in the fast pace is not what was: a new branch."""
        status = self.status
        self._events.append(
            self.timeline.branch_off(Fork(status.position, status.time, status.records, status.told, status.actions))
        )
        self.records.truncate(status.records)

    def _follow(self, plan: Callable[[], Plan], then: Callable[[], None] | None = None) -> None:
        """Follow a plan, instead of any other; and at its end, unless it was left before, do something."""

        def request() -> None:
            if self._engine()._has_process():
                self._plan, self._then = plan(), then
                self._continue(None)

        self._after.clear()
        self._turns.clear()
        self._home, self._looks_back = None, False
        self._request(request)

    def _look_back(self, plan: Callable[[int], Plan], count: int = 1, kind: str = "") -> None:
        """Follow a plan that leads back from where the machine stands, in its turn. If it is given up, stay there."""

        def request(count: int) -> None:
            if self._engine()._has_process():
                self._plan, self._looks_back = plan(count), True
                self._continue(None)

        self._in_turn(request, count, kind)

    def run(self, until: Any = None) -> None:
        """Run, freely or until a condition (a breakpoint used once). In the past, what was recorded happens again; the
        end of a recording is a place to stand still."""
        self._move(lambda _: partial(msg.Run, until=until, recorded=self._recorded), soon_over=False)

    @property
    def _recorded(self) -> int:
        """Where the recording ends that lies ahead; 0: none does."""
        end = self._engine().setup.end_position
        return end if self.timeline.current.number == 0 and self.status.position < end else 0

    def pause(self) -> None:
        """Stand still, and forget what was to be done afterwards."""
        self._run_again = False
        self._turns.clear()

        def request() -> None:
            if self.active is not None:
                self.active.send(msg.Pause())

        self._request(request)

    def step(self, count: int = 1, vcpu: tuple[int, int] | None = None) -> None:
        """Execute instructions of the machine, or as many of one vCPU, given as (domain, vCPU)."""
        self._move(
            lambda count: partial(msg.Step, instructions=count, vcpu=vcpu, end=self._end_of_past), count, f"step {vcpu}"
        )

    def step_over(self) -> None:
        """Execute an instruction; what it calls runs to its return."""
        self._move(lambda _: partial(msg.Step, over=True, end=self._end_of_past))

    @property
    def _end_of_past(self) -> int:
        return 0 if self.status.live else self.timeline.current.end_position

    def step_back(self, count: int = 1) -> None:
        """Go to the last instruction boundary before the present one, or the `count`th last."""
        self._look_back(lambda count: travel.back_by_steps(self._engine(), count), count, "back")

    def step_over_back(self) -> None:
        """Go back by an instruction; a call that has returned to here is gone back over as a whole."""
        self._look_back(lambda _: travel.back_over(self._engine()))

    def run_back(self, until: Any = None) -> None:
        """Go back to the last place where a condition held; None: to the last breakpoint."""
        self._look_back(lambda _: travel.back_to(self._engine(), until))

    def goto(self, position: int | None = None, time: int | None = None, record: int | None = None) -> None:
        """Go to a moment: a position (half ns), a virtual time (ns), or where a trace record has just been written;
        with its time, where that is known, the way to it is shorter."""
        if self.status.live and self.status.running:
            self._run_again = True
        if record is not None:
            self._follow(lambda: travel.to_record(self._engine(), record, time))
            return
        goal = position if position is not None else 2 * (time or 0)
        self._follow(lambda: travel.to_position(self._engine(), goal))

    def live(self) -> None:
        """Go to the end of what is known, and run on if the machine was running when that was left."""
        again, self._run_again = self._run_again, False
        self._follow(
            lambda: travel.to_position(self._engine(), self.timeline.current.end_position), self.run if again else None
        )

    def who_wrote(self, what: tuple[Any, ...]) -> None:
        """Go back to the last change of a value; `what` as who_wrote.plan has it."""
        from xentui.engine import who_wrote

        self._look_back(lambda _: who_wrote.plan(self._engine(), what))

    def switch(self, branch: int) -> None:
        """Go to the end of another branch; see `branches`."""
        self._run_again = False
        self._follow(lambda: travel.to_branch(self._engine(), self.timeline.branches[branch]))

    @property
    def branches(self) -> list[Branch]:
        """Every course of events so far; `status.branch` is the current one's number."""
        return self.timeline.branches

    def set_speed(self, instructions_per_second: float | None) -> None:
        """How fast it runs (about, above some thousands); None: as fast as it goes."""
        self._speed = instructions_per_second
        self._set_pace()

    def set_warp(self, warp: bool) -> None:
        """Pass over idle time, or hold it back to the wall clock's speed."""
        self._warp = warp
        self._set_pace()

    def _set_pace(self) -> None:
        if self.active is not None and not self._parking:
            self.active.send(msg.Pace(self._speed, self._warp))
