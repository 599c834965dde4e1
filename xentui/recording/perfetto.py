"""A recording in Chrome's JSON trace form, which ui.perfetto.dev opens: a process a domain, a thread a vCPU.

Each record is an instant on its vCPU's lane, the time it had the processor a slice; the hypervisor's own lane shows
who had the processor. Counters of a domain's hypercalls, traps and events run beside, and an arrow leads from each
event sent to the upcall that delivers it. Times are virtual, in µs. Text is written directly: a serializer called for
each record costs four times more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

from xentui.engine.trace import DOMID_XEN, Kind, Record
from xentui.engine.trace_decode import decode, title
from xentui.recording.reader import Recording

COUNTER_STEPS = 2000
"""A counter has at most about so many values over the whole recording ..."""
COUNTER_NS = 100_000
"""... and none closer together than this, in virtual ns."""

_quote = json.encoder.encode_basestring_ascii
_COUNTED = {
    Kind.HYPERCALL: 0,
    Kind.EXCEPTION: 1,
    Kind.PAGE_FAULT: 1,
    Kind.SOFTWARE_INTERRUPT: 1,
    Kind.SYSCALL: 1,
    Kind.DIRECT_TRAP: 2,
    Kind.EVENT_SEND: 3,
    Kind.EVENT_UPCALL: 4,
}
_SERIES = ("hypercalls", "traps", "direct traps", "events sent", "upcalls")
_ASIDE = frozenset({Kind.SCHEDULE, Kind.WAKE, Kind.TIMER, Kind.VIRQ, Kind.IDLE, Kind.EVENT_MASKED})
"""Kinds that may tell of a vCPU that has no processor, or of none."""
_IDLE_DOMAIN = 0x7FFF


def microseconds(time: int) -> str:
    """Virtual ns in the unit of the format."""
    return f"{time // 1000}.{time % 1000:03d}"


def _pid(domain: int) -> int:
    """The process that a domain is shown as: the idle domain's records lie on the hypervisor's lanes."""
    return min(domain, DOMID_XEN)


class PerfettoWriter:
    """Writes records as events. Call `begin`, `write` for batches in order, `end`."""

    def __init__(self, out: TextIO, recording: Recording) -> None:
        self._out = out
        self._widths = recording.domain_widths()
        names = {DOMID_XEN: "Xen", **recording.domain_names()}
        for domain in self._widths:
            names.setdefault(domain, f"domain {domain}")
        self._names = names
        self._lanes: set[tuple[int, int]] = set()
        self._running: dict[int, tuple[tuple[int, int], int] | None] = {}
        """Who has each physical processor, and since when; nobody, or it is not known yet."""
        self._stopped: dict[int, int] = {}
        """Where the latest slice of each physical processor ended."""
        self._places: dict[tuple[int, int], int] = {}
        """The physical processor that each vCPU was given last."""
        self._sent: dict[int, list[int]] = {}
        self._arrows = 0
        self._counts: dict[int, list[int]] = {}
        span = int(recording.columns("time", -1)[0]) if len(recording) else 0
        self._step = max(COUNTER_NS, span // COUNTER_STEPS)
        self._limit = self._step
        self._last = 0

    def begin(self) -> None:
        """Write the start and the domains' names."""
        self._out.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        self._out.write(",\n".join(map(self._process, sorted(self._names))))

    def write(self, records: list[Record]) -> None:
        """Write some records' events."""
        self._out.write("".join([f",\n{event}" for record in records for event in self._events(record)]))

    def end(self) -> None:
        """Close the last slice, and the text."""
        rest = [event for pcpu in list(self._running) for event in self._stop(pcpu, self._last)]
        rest += self._counters(self._last)
        self._out.write("".join([f",\n{event}" for event in rest]) + "\n]}\n")

    def _events(self, record: Record) -> Iterator[str]:
        kind, time = record.kind, record.time
        if time >= self._limit:
            yield from self._counters(self._limit)
            self._limit = time - time % self._step + self._step
        self._last = max(self._last, time)
        who = (record.domain, record.vcpu)
        yield from self._lane(_pid(record.domain), record.vcpu)
        if kind in _COUNTED:
            self._counts.setdefault(record.domain, [0] * len(_SERIES))[_COUNTED[kind]] += 1
        if kind == Kind.SCHEDULE:
            yield from self._switch(record)
            return
        pcpu = self._places.get(who, 0)
        running = self._running.get(pcpu)
        if kind == Kind.IDLE:
            for pcpu in list(self._running):
                yield from self._stop(pcpu, time)
        elif kind not in _ASIDE and record.domain < _IDLE_DOMAIN and (running is None or running[0] != who):
            yield from self._stop(pcpu, time)
            self._running[pcpu] = running = (who, time)
        yield self._instant(record)
        if kind == Kind.EVENT_SEND and not record.c:
            yield self._arrow(record)
        elif kind == Kind.EVENT_UPCALL:
            yield from self._arrivals(record)
        elif kind == Kind.BLOCK and running is not None and running[0] == who:
            yield from self._stop(pcpu, time)

    def _switch(self, record: Record) -> Iterator[str]:
        """A physical processor goes from one vCPU to another. Of the first, the record says how long it had it."""
        pcpu, time, ran = record.d, record.time, record.c
        if ran and (pcpu not in self._running or self._running[pcpu] is not None):
            # part of that may have been shown already: up to where it blocked
            start = max(time - min(ran, time), self._stopped.get(pcpu, 0))
            self._running[pcpu] = ((record.a >> 16, record.a & 0xFFFF), start)
        yield from self._stop(pcpu, time)
        who = (record.b >> 16, record.b & 0xFFFF)
        self._running[pcpu] = (who, time)
        self._places[who] = pcpu

    def _instant(self, record: Record) -> str:
        text = decode(record, self._widths.get(record.domain, 64))
        return (
            f'{{"ph":"i","s":"t","ts":{microseconds(record.time)},"pid":{_pid(record.domain)},"tid":{record.vcpu},'
            f'"name":{_quote(title(record))},"args":{{"rip":"{record.rip:#x}","text":{_quote(text)}}}}}'
        )

    def _process(self, pid: int) -> str:
        return f'{{"ph":"M","pid":{pid},"name":"process_name","args":{{"name":{_quote(self._names[pid])}}}}}'

    def _lane(self, pid: int, tid: int) -> Iterator[str]:
        """A lane's name, before it is used for the first time."""
        if (pid, tid) not in self._lanes:
            self._lanes.add((pid, tid))
            if pid not in self._names:  # a recording that was cut need not tell of its creation
                self._names[pid] = f"domain {pid}"
                yield self._process(pid)
            name = f"processor {tid}" if pid == DOMID_XEN else f"vCPU {tid}"
            yield f'{{"ph":"M","pid":{pid},"tid":{tid},"name":"thread_name","args":{{"name":{_quote(name)}}}}}'

    def _stop(self, pcpu: int, time: int) -> Iterator[str]:
        """A physical processor is taken from the vCPU that had it."""
        running, self._running[pcpu] = self._running.get(pcpu), None
        if running is None or running[0][0] >= _IDLE_DOMAIN:
            return
        (domain, vcpu), start = running
        self._stopped[pcpu] = time
        yield from self._lane(domain, vcpu)
        yield from self._lane(DOMID_XEN, pcpu)
        when = f'"ts":{microseconds(start)},"dur":{microseconds(time - start)}'
        yield f'{{"ph":"X",{when},"pid":{domain},"tid":{vcpu},"name":"running"}}'
        name = _quote(f"{self._names.get(domain, f'domain {domain}')} vCPU {vcpu}")
        yield f'{{"ph":"X",{when},"pid":{DOMID_XEN},"tid":{pcpu},"name":{name}}}'

    def _arrow(self, record: Record) -> str:
        """The start of an arrow: an event on its way to a peer."""
        self._arrows += 1
        self._sent.setdefault(record.a, []).append(self._arrows)
        return (
            f'{{"ph":"s","id":{self._arrows},"cat":"event","name":"event","ts":{microseconds(record.time)},'
            f'"pid":{record.domain},"tid":{record.vcpu}}}'
        )

    def _arrivals(self, record: Record) -> Iterator[str]:
        """The ends of the arrows: one upcall delivers all that was sent before it."""
        for number in self._sent.pop(record.domain, ()):
            yield (
                f'{{"ph":"f","bp":"e","id":{number},"cat":"event","name":"event","ts":{microseconds(record.time)},'
                f'"pid":{record.domain},"tid":{record.vcpu}}}'
            )

    def _counters(self, time: int) -> Iterator[str]:
        """How often each thing happened since the last step; a domain without any falls to zero once."""
        start = microseconds(time - self._step if time >= self._step else 0)
        for domain, counts in list(self._counts.items()):
            values = ",".join([f"{_quote(name)}:{count}" for name, count in zip(_SERIES, counts, strict=True)])
            yield f'{{"ph":"C","ts":{start},"pid":{domain},"name":"in {self._step // 1000} µs","args":{{{values}}}}}'
            if any(counts):
                self._counts[domain] = [0] * len(_SERIES)
            else:
                del self._counts[domain]
