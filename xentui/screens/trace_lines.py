"""Trace records as lines that line up: time, domain, what happened with its arguments, and on the right how it ended.

Only lines that are seen are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import set_cell_size

from xentui.engine.trace import Kind, Record
from xentui.engine.trace_decode import Field, fields, title
from xentui.screens.words import shortened

_RESULT = 11
_FACTS = 96
"""Cells for name and arguments, at most: the result is not to be too far to the right of them."""
_HYPERVISOR = 0x7FF0


def clock(ns: int, whole: int = 1) -> str:
    """A virtual time that lines up: seconds in `whole` digits, then the nanoseconds in groups: `0.012 345 678`."""
    seconds, rest = divmod(max(0, ns), 1_000_000_000)
    digits = f"{rest:09d}"
    return f"{seconds:>{whole}}.{digits[:3]} {digits[3:6]} {digits[6:]}"


def span(ns: int) -> str:
    """A duration in at most seven cells: `+12.3µs`."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if ns >= size:
            value = ns / size
            return f"+{value:.0f}{unit}" if value >= 100 else f"+{value:.1f}{unit}"
    return f"+{ns}ns"


def count(number: int) -> str:
    """A count with its thousands apart: `1 234 567`."""
    return f"{number:,}".replace(",", " ")


@dataclass(frozen=True)
class Shape:
    """Which columns a pane of a width has room for."""

    width: int
    whole: int = 1
    """Digits of the seconds."""
    name: int = 8
    """Cells of a domain's name."""

    @property
    def number(self) -> bool:
        """The record's own number."""
        return self.width >= 150

    @property
    def delta(self) -> bool:
        """The time since the line above."""
        return self.width >= 100

    @property
    def rip(self) -> bool:
        """The guest's instruction."""
        return self.width >= 170

    @property
    def grouped(self) -> bool:
        """The whole time, rather than its last digits."""
        return self.width >= 60


class Words(NamedTuple):
    """A record in words: its name, its arguments, and its end (a result, or the rings crossed)."""

    title: str
    arguments: str
    end: str
    failed: bool


def words(record: Record, width: int) -> Words:
    """A record's words; `width`: its domain's word size."""
    shown = fields(record, width)
    end, failed = "", False
    if shown and shown[-1].name == "result":
        end, failed = shown[-1].text, bool(record.result >> 63)
        shown = shown[:-1]
    elif shown and shown[-1].name == "rings":
        end = shown[-1].text
        shown = shown[:-1]
    name = title(record)
    call = record.kind in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY)
    return Words(name, f"({_call(shown)})" if call else _facts(shown), end, failed)


def _call(shown: list[Field]) -> str:
    return ", ".join([f"{name}={text}" for name, _, text in shown])


def _facts(shown: list[Field]) -> str:
    return "".join([f" {name}={text}" for name, _, text in shown])


class Line(NamedTuple):
    """The columns of one record's line, each exactly as wide as it is to be."""

    gutter: str
    when: str
    domain: str
    name: str
    arguments: str
    end: str
    failed: bool
    kind: int
    owner: int
    """The domain's number."""
    cells: int
    """How wide the line is."""

    @property
    def text(self) -> str:
        """The line as plain text."""
        return (self.gutter + self.when + self.domain + self.name + self.arguments + self.end).rstrip()


def domain_name(domain: int, names: dict[int, str]) -> str:
    """A domain's name; the hypervisor's own records bear Xen's."""
    return names.get(domain) or ("idle" if domain == 0x7FFF else "Xen" if domain >= _HYPERVISOR else f"d{domain}")


def line(
    record: Record, number: int, before: int | None, names: dict[int, str], width: int, shape: Shape, mark: str
) -> Line:
    """A record's line. `before`: the time of the line above; `width`: the domain's word size; `mark`: two cells."""
    time = clock(record.time, shape.whole)
    when = f"{time if shape.grouped else time[-11:]} "
    if shape.delta:
        when += f"{span(record.time - before) if before is not None and record.time >= before else '':>8} "
    if shape.number:
        when = f"{count(number):>11}  {when}"
    if shape.rip:
        when += f"{record.rip:016x} " if record.rip else " " * 17
    domain = domain_name(record.domain, names)
    vcpu = f"·{record.vcpu}" if record.vcpu else ""
    domain = set_cell_size(shortened(domain, shape.name - len(vcpu)) + vcpu, shape.name) + " "
    found = words(record, width)
    # names and numbers of the trace are of characters one cell wide; only a domain's name may have others
    room = min(shape.width - len(mark) - len(when) - shape.name - 2, _FACTS + _RESULT)
    end = f" {found.end}" if found.end else ""  # what it leaves of its column, the arguments may take
    name = found.title[: max(0, room - len(end))]
    left = max(0, room - len(end) - len(name))
    arguments = shortened(found.arguments, left)
    arguments += " " * (left - len(arguments))
    cells = len(mark) + len(when) + shape.name + 1 + len(name) + left + len(end)
    return Line(mark, when, domain, name, arguments, end, found.failed, record.kind, record.domain, cells)
