"""The engine in a process of its own, as the console and scripts see it.

    engine = Engine.start(Setup([resolve_guest("hello64")]))
    engine.run()
    status = engine.wait(timeout=5)
    print(engine.consoles[1].text())
    engine.goto(time=1_000_000)

Nothing here blocks but `wait` and `look`. The engine's process does the work; this side keeps what is known of its
history, and the sockets of the processes that sleep as snapshots. They all end when this process does.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xentui.engine import messages as msg
from xentui.engine import wire
from xentui.engine.history import Consoles
from xentui.engine.messages import Event, Status
from xentui.engine.moving import EngineError, Moving
from xentui.engine.processes import Processes, environment
from xentui.engine.questions import Questions
from xentui.engine.record_window import RecordWindow
from xentui.engine.setup import Setup
from xentui.engine.timeline import Branch, Kept, Timeline
from xentui.engine.views import Query, ViewError
from xentui.engine.wire import Channel

if TYPE_CHECKING:
    pass

TRACE_RECORDS = 1 << 20
"""Records that the ring holds by default: 64 MiB."""
_WORTH = 0.05
"""Seconds of running that make it worth to keep the process that stood there."""


_NOTHING_LEFT = "no process of the engine is left, and no snapshot to go back to"
_UNREAD = 1 << 16
"""Events that are kept for who waits and does not look at them."""


def _joined(events: list[Event], new: list[Event]) -> list[Event]:
    """Events that nobody has looked at and some more: of the statuses only the last says anything."""
    if any(isinstance(event, msg.StatusEvent) for event in new):
        events = [event for event in events if not isinstance(event, msg.StatusEvent)]
    return (events + new)[-_UNREAD:]


class Engine(Moving):
    """A machine in another process. `Engine.start` makes one."""

    def __init__(self, setup: Setup, trace_records: int = TRACE_RECORDS, snapshots: bool = True) -> None:
        super().__init__()
        self.setup = setup
        self.timeline = Timeline(setup)
        self.status = Status()
        """How the machine stood when it was last heard of."""
        self.failure: msg.Failed | None = None
        """Why there is no engine."""
        self.breakpoints: dict[int, Any] = {}
        """What is set, by number; see `add_breakpoint`."""
        self.processes = Processes(trace_records)
        self.records = RecordWindow(memoryview(self.processes.ring), trace_records)
        """The trace ring's records by their numbers."""
        self._started = False
        self._parked: Kept | None = None
        self._next_breakpoint = 1
        self._questions = Questions()
        self.processes.send(msg.Begin(setup, snapshots))

    @classmethod
    def start(cls, setup: Setup, trace_records: int = TRACE_RECORDS, snapshots: bool = True) -> Engine:
        """Start the process; returns at once. What goes wrong is a `Failed` event, and `wait` raises it.

        `trace_records`: how many `records` holds, a power of two. `snapshots`: leave some behind while running.
        """
        return cls(setup, trace_records, snapshots)

    def _engine(self) -> Engine:
        return self

    # --- the processes -------------------------------------------------------------------------------------------

    def wake_before(self, position: int) -> Kept:
        """Let a copy of the latest snapshot at or before a position become active (or of the first one)."""
        kept = self.timeline.before(position) or self.oldest()
        self.wake(kept)
        return kept

    def oldest(self) -> Kept:
        """The first snapshot of the current branch. Raises EngineError where there is none: all were killed."""
        usable = self.timeline.usable()
        if not usable:
            raise EngineError(_NOTHING_LEFT)
        return usable[0]

    def _has_process(self) -> bool:
        """Is there a process to command, or to wake? If there is none, that is told."""
        there = self.active is not None or bool(self.timeline.usable())
        if not there:
            self._events.append(msg.Notice(_NOTHING_LEFT))
        return there

    def wake(self, kept: Kept) -> None:
        """Let a copy of a snapshot become active."""
        actions = self.timeline.current.actions[kept.status.actions :]
        breakpoints = list(self.breakpoints.items())
        self.processes.activate(kept.channel, msg.Activate(actions, breakpoints, self._speed, self._warp))
        failure, self.failure = self.failure, None
        if failure is not None:  # the moment at which it died is not one to come back to: here is where things stand
            self._events.append(msg.Notice(f"another process goes on from {self._rest(kept)}"))
            self._news(kept.status._replace(running=False, stop="", why="", breakpoint=None))
        self.records.restart(kept.status.records)
        if self._parked is not None and self._parked is not kept:
            self._forget_if_cheap(self._parked)
        self._parked = None
        for question in self._questions.open():
            self.processes.send(question)

    def _outlook(self) -> str:
        """From where the run can go on, once its process is gone; "": no snapshot is left."""
        kept = self.timeline.before(self.status.position) or next(iter(self.timeline.usable()), None)
        return f"the run can go on from {self._rest(kept)}" if kept is not None else ""

    def _rest(self, kept: Kept) -> str:
        """A snapshot, and what becomes of that which came after it."""
        from xentui.engine.trace_decode import seconds

        records = max(0, self.timeline.current.end_records - kept.status.records)
        what = f"the snapshot at {seconds(kept.status.time)} s; the {records} records after it"
        return f"{what} are written again, as the same happens again" if self.exact else f"{what} are lost"

    def discard(self) -> None:
        """End the active process: it was sent ahead to look."""
        self.processes.discard()

    def _forget_if_cheap(self, parked: Kept) -> None:
        """End the process that stood at the last moment if it is quickly come back to."""
        status = parked.status
        if status.position >= self.timeline.branches[parked.branch].end_position:
            return
        others = [kept.status.work for kept in self.timeline.usable() if kept is not parked]
        if any(0 <= status.work - work < _WORTH for work in others):
            self._drop(parked)

    def _drop(self, kept: Kept) -> None:
        if kept in self.timeline.snapshots:
            self.timeline.snapshots.remove(kept)
        self.processes.close(kept.channel)

    def _keep(self, status: Status, channel: Channel) -> Kept:
        kept = Kept(status, channel, self.timeline.current.number)
        self.processes.watch(channel)
        self.timeline.snapshots.append(kept)
        for dropped in self.timeline.thin():
            self.processes.close(dropped.channel)
        return kept

    def use_branch(self, branch: Branch) -> int:
        """Make another branch the current one, while no process is active; the position where the two part."""
        shared = self.timeline.parting(self.timeline.current, branch)
        self.records.truncate(shared.records)
        self.timeline.use(branch)
        return shared.position

    # --- events --------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when `pump` has something to do."""
        return self.processes.fileno()

    def pump(self) -> list[Event]:
        """Take in what the engine has sent, and send what it did not take yet. Never blocks."""
        for fd in self.processes.poll(0):
            if self.active is not None and fd == self.active.fileno():
                continue
            for kept in list(self.timeline.snapshots):
                if kept.channel.fileno() == fd:
                    self._drop(kept)
        channel = self.active
        if channel is not None:
            channel.flush()
            for message, fds in channel.receive():
                self._take(message, fds)
            if channel.closed and self.active is channel:
                self._died()
        events, self._events = self._events, []
        return events

    def _take(self, message: Any, fds: list[int]) -> None:
        """One message of the active process."""
        if isinstance(message, msg.History):
            for number, event in message.told:
                self._told(number, event)
        elif isinstance(message, msg.StatusEvent):
            self._news(message.status)
        elif isinstance(message, msg.Reply):
            answer = self._questions.answered(message)
            self._events += [answer] if answer is not None else []
        elif isinstance(message, msg.Snapshot):
            self._keep(message.status, Channel(wire.from_fd(fds[0])))
        elif isinstance(message, msg.Done):
            self._done(message)
        elif isinstance(message, msg.Failed):
            self._fail(message)
        elif isinstance(message, msg.Notice):
            self._events.append(message)

    def _told(self, number: int, event: Any) -> None:
        news = self.timeline.told(number, event)
        if news and isinstance(news[0], msg.Branched):
            self.records.truncate(event.records)
        self._events += news

    def _news(self, status: Status) -> None:
        """The machine's status, completed by what is known of the history."""
        self._started = True
        branch = self.timeline.current
        branch.reached(status)
        self.records.written(status.records)
        self.status = status._replace(
            live=status.position >= branch.end_position,
            travelling=self._plan is not None,
            end_position=branch.end_position,
            end_time=branch.end_time,
            first_record=self.records.first,
            end_records=branch.end_records,
            branch=branch.number,
            failed=self.failure is not None,
        )
        if self._events and isinstance(self._events[-1], msg.StatusEvent):
            self._events.pop()
        self._events.append(msg.StatusEvent(self.status))

    def _done(self, done: msg.Done) -> None:
        """A motion is over: what was planned goes on."""
        self._finished = max(self._finished, done.serial)
        if done.serial == self._parking:
            self._parking = 0
            self._parked = self._keep(done.status, self.processes.put_to_sleep())
            if self._looks_back and self._home is None:
                self._home = done.status.position
        if self._plan is None:
            self._hit(done.status.breakpoint)
            self._news(done.status)
            self._next_turn()
        elif done.serial == self._serial:
            self._continue(done)

    def _hit(self, number: int | None) -> None:
        """A breakpoint was hit, which may have been there for one time only."""
        if number in self.breakpoints and self.breakpoints[number].temporary:
            del self.breakpoints[number]

    def _died(self) -> None:
        """The active process is gone without being asked. Of its own faults it leaves word; of a kill it cannot."""
        from xentui.engine.trace_decode import seconds

        when = f" at {seconds(self.status.time)} s" if self._started else ""
        words = self.processes.last_words()
        text = f"the engine's process was killed{when}, without a word (kill -9? no memory left on the host?)"
        if words:
            text = f"the engine's process died{when}: {words.splitlines()[0]}"
        self._fail(self.failure or msg.Failed(text, words))

    def _fail(self, failed: msg.Failed) -> None:
        outlook = self._outlook() if self._started else ""
        failed = failed._replace(details=failed.details or self.processes.last_words(), outlook=outlook)
        new = self.failure is None
        self.failure = failed
        self.processes.discard()
        self._plan, self._after, self._parking, self._home, self._looks_back = None, [], 0, None, False
        self._turns.clear()
        self._finished = self._serial
        self._events += self._questions.fail()
        self.status = self.status._replace(running=False, travelling=False, failed=True, why=failed.text)
        if new:
            self._events += [failed, msg.StatusEvent(self.status)]

    # --- influences ----------------------------------------------------------------------------------------------

    def act(self, action: Any) -> None:
        """Do something to the machine from outside (actions.Action), now. In the past that begins a new branch."""

        def request(_count: int) -> None:
            if not self._has_process():
                return
            if self.active is None:
                self.wake_before(self.status.position)
            position, past = self.status.position, not self.status.live
            assert self.active is not None
            self.active.send(msg.Act(action, self.timeline.future(position) if past else None))

        self._in_turn(request)

    def add_breakpoint(self, breakpoint: Any) -> int:
        """Set a breakpoint (breakpoints.Breakpoint); its number."""
        number, self._next_breakpoint = self._next_breakpoint, self._next_breakpoint + 1
        self.breakpoints[number] = breakpoint
        self._send_breakpoints()
        return number

    def remove_breakpoint(self, number: int) -> None:
        """Take a breakpoint away. Raises KeyError where there is none of that number."""
        del self.breakpoints[number]
        self._send_breakpoints()

    def _send_breakpoints(self) -> None:
        if self.active is not None and not self._parking:
            self.active.send(msg.Breakpoints(list(self.breakpoints.items())))

    def save(self, path: str) -> None:
        """Record the current branch up to its end: run it again in another process, headless. Waits for that.

        Raises EngineError, one line. Only what the exact pace ran can be run again.
        """
        if not self.exact:
            raise EngineError("what ran in the fast pace cannot be run again: start it in the exact pace to save it")
        branch = self.timeline.current
        job = pickle.dumps((self.setup, branch.actions, branch.end_position))
        done = subprocess.run(
            [sys.executable, "-P", "-m", "xentui.session", path], input=job, capture_output=True, env=environment()
        )
        if done.returncode:
            raise EngineError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])

    # --- questions -----------------------------------------------------------------------------------------------

    @property
    def consoles(self) -> Consoles:
        """Domain to what its console printed."""
        return self.timeline.consoles

    @property
    def log(self) -> list[tuple[int, str]]:
        """The hypervisor's own log: (virtual ns, line)."""
        return self.timeline.log

    def ask(self, queries: list[Query]) -> int:
        """Ask views (views/): the number of the `Reply` event that will bring the answers."""
        question = self._questions.ask(queries)
        if not self._parking:
            self.processes.send(question)
        return question.id

    def look(self, view: str, **arguments: Any) -> Any:
        """Ask one view and wait for the answer. Raises ViewError, EngineError."""
        number = self.ask([Query(view, arguments)])
        answers = self._questions.answers
        self._questions.wait_for(number)
        self._until(lambda: number in answers, None)
        (answer,) = answers.pop(number)
        if isinstance(answer, ViewError):
            raise answer
        return answer

    @property
    def standing(self) -> bool:
        """Does the machine stand still, with nothing asked of it that would move it?"""
        return self._started and self._plan is None and not self._turns and self._finished >= self._serial

    def wait(self, timeout: float | None = None) -> Status:
        """Wait until the machine stands still, or so many seconds; its status. Raises EngineError.

        What happens meanwhile is for the next `pump`: the latest status, and of other events the latest 65,536.
        """
        self._until(lambda: self.standing, timeout)
        return self.status

    def _until(self, over: Callable[[], bool], timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        kept: list[Event] = []
        while True:
            kept = _joined(kept, self.pump())
            if self.failure is not None:
                self._events = kept + self._events
                raise EngineError(self.failure.text)
            if over():
                break
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.processes.poll(left)
        self._events = kept + self._events

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all processes, and wait for that."""
        for kept in self.timeline.snapshots:
            self.processes.close(kept.channel)
        self.timeline.snapshots.clear()
        self.processes.end()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
