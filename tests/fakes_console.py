"""An engine in the tests' own process: a real Machine behind the interface that the console uses of `engine.process`.

It answers at once, goes back by running again from the start (the exact pace is deterministic), and stops only where
virtual time is a whole number of nanoseconds. It moves when the console's event loop looks: at most `SLICE` of
virtual time each.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from xentui.config import GuestSpec, resolve_guest
from xentui.engine import messages
from xentui.engine.actions import Action
from xentui.engine.machine import Machine, Stop
from xentui.engine.record_window import RecordWindow
from xentui.engine.timeline import Branch, Fork
from xentui.engine.trace import Kind, TraceRing
from xentui.engine.views import Query, ViewError, look

SLICE = 2_000_000
"""Virtual nanoseconds that a look at the engine lets it run."""
RECORDS = 1 << 16
PAUSE = 0.01
"""Host seconds between two looks at a running machine: the tests' keys come in between."""

_COUNTED = (
    (Kind.HYPERCALL,),
    (Kind.EXCEPTION, Kind.PAGE_FAULT, Kind.SOFTWARE_INTERRUPT, Kind.SYSCALL),
    (Kind.DIRECT_TRAP,),
    (Kind.EVENT_SEND, Kind.VIRQ),
)
"""Hypercalls, traps, direct traps, events."""


class FakeConsoleLog:
    """What a console has printed: (time, bytes)."""

    start = 0
    """Nothing is forgotten."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []

    def upto(self, time: int) -> list[tuple[int, bytes]]:
        """All that was printed until a time."""
        return [piece for piece in self.pieces if piece[0] <= time]


class FakeEngine:
    """See the module's text. `calls` keeps what it was told, for tests to look at."""

    def __init__(self, *guests: str | GuestSpec) -> None:
        self.specs = [resolve_guest(guest) if isinstance(guest, str) else guest for guest in guests]
        self.calls: list[tuple[Any, ...]] = []
        self.consoles: dict[int, FakeConsoleLog] = {}
        self.log: list[tuple[int, str]] = []
        self.breakpoints: dict[int, Any] = {}
        self.branches = [Branch(0)]
        self.failure = ""
        self._closed = False
        self._events: list[messages.Event] = []
        self._actions: list[tuple[int, Action]] = []
        self._counts: dict[int, list[int]] = {}
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.running = False
        self.speed: float | None = None
        self.warp = False
        self.end = self._asked = self._branch = 0
        self._stop, self._why = "", ""
        self._build()

    # --- the machine -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._quiet = False
        self._counted, self._counts = 0, {}
        buffer = memoryview(bytearray(TraceRing.size_of(RECORDS)))
        memory = sum(max(spec.memory, spec.maxmem) for spec in self.specs)
        self.machine = Machine(memory, trace_records=RECORDS, trace_buffer=buffer)
        self.records = RecordWindow(buffer, RECORDS)
        self.machine.hv.on_log = self._logged
        self.machine.toolstack.on_output = self._output
        self.machine.toolstack.on_end = self._ended
        for spec in self.specs:
            self.machine.create(spec)
        self._send_status()

    def _tell(self, event: messages.Event) -> None:
        if not self._quiet:
            self._events.append(event)

    def _ended(self, domain: Any, reason: str) -> None:
        self._tell(messages.Ended(domain.id, domain.name, reason, self.machine.now()))
        self._logged(f"(XEN) {domain.name}: {reason}")

    def _logged(self, text: str) -> None:
        if not self._quiet:
            self.log.append((self.machine.now(), text))
            self._tell(messages.LogLine(self.machine.now(), text))

    def _output(self, domain: Any, data: bytes) -> None:
        if not self._quiet:
            self.consoles.setdefault(domain.id, FakeConsoleLog()).pieces.append((self.machine.now(), data))
        self._tell(messages.Output(domain.id, self.machine.now(), data))

    @property
    def at_end(self) -> bool:
        """Is this the newest moment?"""
        return self.machine.now() >= self.end

    @property
    def status(self) -> messages.Status:
        """How things stand."""
        machine = self.machine
        vcpu = machine.current
        self._count()
        self.records.written(machine.trace.head)
        return messages.Status(
            position=machine.now() * 2,
            time=machine.now(),
            running=self.running,
            stop=self._stop,
            why=self._why,
            live=self.at_end,
            end_position=self.end * 2,
            end_time=max(self.end, machine.now()),
            current=(vcpu.domain.id, vcpu.id) if vcpu is not None else None,
            records=machine.trace.head,
            domains=tuple(self._domain(domain) for domain in machine.domains),
            branch=self._branch,
            speed=self.speed,
            warp=self.warp,
            failed=bool(self.failure),
        )

    def _count(self) -> None:
        """Count the records that are new since the last time."""
        ring = self.machine.trace
        for record in ring.latest(ring.head - self._counted):
            counts = self._counts.setdefault(record.domain, [0, 0, 0, 0])
            for at, kinds in enumerate(_COUNTED):
                counts[at] += record.kind in kinds
        self._counted = ring.head

    def _domain(self, domain: Any) -> messages.DomainStatus:
        state = "p" if domain.paused else "r" if domain.vcpus[0].runstate == 0 else "b"
        return messages.DomainStatus(
            domain.id, domain.name, domain.width, "".join(c if c == state else "-" for c in "rbpscd"),
            len(domain.vcpus), domain.tot_pages, domain.max_pages, sum(v.runstate_time[0] for v in domain.vcpus),
            *self._counts.get(domain.id, [0, 0, 0, 0]), self.machine.toolstack.services[domain.id].written,
        )  # fmt: skip

    def _send_status(self) -> None:
        self._events.append(messages.StatusEvent(self.status))
        self._wake()

    def _wake(self) -> None:
        if not self._closed:
            os.write(self._write, b"x")

    # --- the console's side ------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable while there is something to hear, and while the machine runs."""
        return self._read

    def pump(self) -> list[messages.Event]:
        """What has happened; a running machine runs a little."""
        os.read(self._read, 1 << 16)
        if self.running:
            reason = self.machine.run(self.machine.now() + SLICE)
            if reason != Stop.TIME:
                self.running, self._stop = False, reason
                self._why = "every domain has ended" if reason == Stop.FINISHED else "waits for input"
            self.end = max(self.end, self.machine.now())
            self._events.append(messages.StatusEvent(self.status))
            asyncio.get_running_loop().call_later(PAUSE, self._wake)
        events, self._events = self._events, []
        return events

    def ask(self, queries: list[Query]) -> int:
        """Answers come at the next look."""
        answers: list[Any] = []
        for query in queries:
            try:
                answers.append(look(self.machine, query.view, **query.arguments))
            except ViewError as error:
                answers.append(error)
        self._asked += 1
        self._events.append(messages.Reply(self._asked, answers))
        self._wake()
        return self._asked

    def run(self, until: Any = None) -> None:
        self.calls.append(("run", until))
        self.running, self._stop, self._why = True, "", ""
        self._send_status()

    def pause(self) -> None:
        self.calls.append(("pause",))
        self.running, self._why = False, "you paused it"
        self._send_status()

    def step(self, count: int = 1) -> None:
        self.calls.append(("step", count))
        self.running = False
        self.machine.run(self.machine.now() + count)
        self.end, self._why = max(self.end, self.machine.now()), "stepped"
        self._send_status()

    def step_back(self, count: int = 1) -> None:
        self.calls.append(("step_back", count))
        self.goto(time=max(0, self.machine.now() - count))

    def goto(self, position: int | None = None, time: int | None = None, record: int | None = None) -> None:
        self.calls.append(("goto", position, time, record))
        target = time if time is not None else position // 2 if position is not None else 0
        self.running, self._why = False, ""
        if target < self.machine.now():
            self.machine.close()
            self._build()
        self._quiet = target <= self.end
        for when, action in self._actions:
            if when <= target:
                self.machine.run(when)
                action.perform(self.machine)
        if target > self.machine.now():
            self.machine.run(target)
        self._quiet = False
        self._send_status()

    def live(self) -> None:
        self.goto(time=self.end)

    def act(self, action: Action) -> None:
        self.calls.append(("act", action))
        now = self.machine.now()
        if not self.at_end:
            self.branches[self._branch].end_time = self.end
            self.branches.append(Branch(len(self.branches), self._branch, Fork(time=now), end_time=now))
            self._branch += 1
            self._actions = [(when, each) for when, each in self._actions if when <= now]
            self.end = now
            for log in self.consoles.values():
                log.pieces = [(when, data) for when, data in log.pieces if when <= now]
            self._events.append(messages.Branched(self._branch, self._branch - 1))
        action.perform(self.machine)
        self._actions.append((now, action))
        self._send_status()

    def run_back(self, until: Any = None) -> None:
        self.calls.append(("run_back", until))

    def step_over(self) -> None:
        self.calls.append(("step_over",))
        self.step()

    def step_over_back(self) -> None:
        self.calls.append(("step_over_back",))
        self.step_back()

    def add_breakpoint(self, point: Any) -> int:
        self.breakpoints[number := len(self.breakpoints) + 1] = point
        return number

    def remove_breakpoint(self, number: int) -> None:
        del self.breakpoints[number]

    def set_speed(self, speed: float | None) -> None:
        self.speed = speed
        self._send_status()

    def set_warp(self, warp: bool) -> None:
        self.warp = warp

    def fail(self, text: str) -> None:
        """As if the process had died."""
        self.running, self.failure = False, text
        self._events.append(
            messages.Failed(text, "Traceback of the engine", "the run can go on from the snapshot at 0 s")
        )
        self._wake()

    def close(self) -> None:
        self._closed = True
        self.machine.close()
        for descriptor in (self._read, self._write):
            os.close(descriptor)
