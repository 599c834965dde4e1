"""Breakpoints of a machine: on code, on memory, on what the trace records.

    machine.breakpoints.add(Breakpoint.parse("break main"))
    machine.breakpoints.add(Breakpoint.parse("watch 0xc0001000 8 if rax == 5", domain="hello32"))
    machine.run_to(Breakpoint.parse("hypercall mmu_update"))

`run` and `step` return Stop.BREAKPOINT then, and `machine.stopped` says why. Breakpoints on code stop before the
instruction, the others behind the one that did it. None costs anything while it is not set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from xentui.engine.conditions import BreakpointError, Predicate, Registers, parse_expression, predicate_of
from xentui.engine.trace import Kind, Record
from xentui.engine.trace_decode import decode
from xentui.engine.views import ViewError, find
from xentui.engine.x86.watchpoints import Access, Watchpoint, Watchpoints
from xentui.engine.xen.page import type_name

if TYPE_CHECKING:
    from xentui.engine.expression import Expression
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain, Vcpu

ADDRESS, WATCH, RECORD, FRAME = "address", "watch", "record", "frame"
WRITE, READ, ACCESS = "w", "r", "rw"
MACHINE = "machine:"
"""Before a machine address, for a watchpoint on memory that may not be mapped: `machine:0x1234000`."""
MAX_WATCHED = 4096
"""Bytes that one watchpoint may cover."""


class Breakpoint(NamedTuple):
    """What to stop at: plain data, to be sent, kept and set again."""

    kind: str
    """`address`, `watch`, `record` or `frame`."""
    what: str
    """An address as `0xc0001000`, `main` or `main+4`; for `record` one of conditions.RECORDS, or an Expression; for
    `frame` the number of a machine frame, whose owner, type or type count is to change."""
    domain: str | None = None
    """The domain's name; None for any (a watchpoint: the one whose registers are loaded)."""
    vcpu: int | None = None
    condition: str = ""
    """An Expression on the vCPU's registers (and the record) that must hold too."""
    length: int = 1
    """Bytes that are watched."""
    mask: int = 0
    """Which bits of them count, the bytes as a little-endian number; 0: all."""
    access: str = WRITE
    """`w`: they change; `r`: they are read; `rw`."""
    ignore: int = 0
    """How many hits do not count."""
    temporary: bool = False
    """Removed when it is hit."""

    @classmethod
    def parse(cls, text: str, domain: str | None = None) -> Breakpoint:
        """Understand `break ADDRESS`, `watch|rwatch|awatch ADDRESS [LENGTH]`, or what a record tells, `if CONDITION`.

        Records: `hypercall [NAME]`, `vector N`, `port N`, `crossing`, `exception`, `upcall`, `switch`, `refusal`, or
        any other Expression. Raises BreakpointError.
        """
        head, _, condition = text.strip().partition(" if ")
        word, _, rest = head.strip().partition(" ")
        rest = rest.strip()
        if word in ("break", "tbreak"):
            made = cls(ADDRESS, rest, domain, condition=condition.strip(), temporary=word == "tbreak")
        elif word in _WATCHES:
            match = re.fullmatch(r"(\S.*?)(?:\s+(\d+|0x[0-9a-fA-F]+))?", rest)
            place, length = (match[1], int(match[2] or "1", 0)) if match else ("", 1)
            made = cls(WATCH, place, domain, condition=condition.strip(), length=length, access=_WATCHES[word])
        else:
            made = cls(RECORD, head.strip(), domain, condition=condition.strip())
        if not made.what:
            raise BreakpointError(f"{text!r} does not say where")
        names = dict.fromkeys(_WORDS.findall(text), 0)  # which of them are domains' is known where it is set
        _condition(made, names)
        if made.kind == RECORD:
            predicate_of(made.what, names, {})
        return made

    def describe(self) -> str:
        """The breakpoint as it is written."""
        prefix = "frame " if self.kind == FRAME else ""
        if self.kind == ADDRESS:
            prefix = "tbreak " if self.temporary else "break "
        elif self.kind == WATCH:
            prefix = {WRITE: "watch ", READ: "rwatch ", ACCESS: "awatch "}[self.access]
        length = f" {self.length}" if self.kind == WATCH and self.length != 1 else ""
        where = f" in {self.domain}" if self.domain else ""
        return f"{prefix}{self.what}{length}{where}" + (f" if {self.condition}" if self.condition else "")


_WORDS = re.compile(r"[\w.+-]+|(?<=[\"'])[^\"']+")
_WATCHES = {"watch": WRITE, "rwatch": READ, "awatch": ACCESS}


class Stopped(NamedTuple):
    """Why a run stopped at a breakpoint."""

    number: int
    text: str
    """One line for the user."""
    record: int | None = None
    """The number of the trace record that it was about."""
    access: Access | None = None
    """What was done to watched memory, and by which instruction."""


def _condition(point: Breakpoint, domains: Mapping[str, int]) -> Expression | None:
    return parse_expression(point.condition, domains) if point.condition else None


# --- those that are set ----------------------------------------------------------------------------------------------


class _Set:
    """A breakpoint that is set."""

    def __init__(self, number: int, point: Breakpoint) -> None:
        self.number, self.point = number, point
        self.hits = 0
        self.left = point.ignore
        self.condition: Expression | None = None
        self.predicate: Predicate | None = None
        self.addresses: list[tuple[int, str | None]] = []
        """(address, name of the domain that it is in, or None)."""
        self.watches: dict[Watchpoint, tuple[int, int | None]] = {}
        """To the address that the user knows, and the owner of the frame (None: whose it is does not matter)."""
        self.use = ""
        """Of a frame: what it was when that was last looked at."""


class Breakpoints:
    """The breakpoints of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._points: dict[int, _Set] = {}
        self._next = 1
        self._by_address: dict[int, list[_Set]] = {}
        self._watched: Watchpoints | None = None

    def __iter__(self) -> Iterator[tuple[int, Breakpoint, int]]:
        """(number, breakpoint, hits) of each that is set."""
        return iter([(point.number, point.point, point.hits) for point in self._points.values()])

    def add(self, point: Breakpoint, number: int | None = None) -> int:
        """Set a breakpoint; its number. Raises BreakpointError."""
        if not self.machine.processor.counts_code and point.kind not in (RECORD, FRAME):
            raise BreakpointError("in the fast pace only what the trace records can be stopped at")
        new = _Set(self._next if number is None else number, point)
        domains = {domain.name: domain.id for domain in self.machine.domains}
        if point.domain is not None and point.domain not in domains:
            raise BreakpointError(f"there is no domain {point.domain!r}; there are: {', '.join(domains) or 'none'}")
        new.condition = _condition(point, domains)
        if point.kind == ADDRESS:
            new.addresses = self._resolve(point)
            for address, _ in new.addresses:
                self._insert_address(address, new)
        elif point.kind == WATCH:
            self._watch(new)
        elif point.kind == RECORD:
            widths = {domain.id: domain.width for domain in self.machine.domains}
            new.predicate = predicate_of(point.what, domains, widths)
        elif point.kind == FRAME:
            new.use = self._use(point)
        else:
            raise BreakpointError(f"there are no breakpoints of kind {point.kind!r}")
        self._points[new.number] = new
        self._next = max(self._next, new.number) + 1
        self._listen()
        return new.number

    def remove(self, number: int) -> None:
        """Take a breakpoint away. Raises BreakpointError where there is none of that number."""
        old = self._points.pop(number, None)
        if old is None:
            raise BreakpointError(f"there is no breakpoint {number}")
        for address, _ in old.addresses:
            self._by_address[address].remove(old)
            if not self._by_address[address]:
                del self._by_address[address]
                self.machine.processor.breakpoints.remove(address, self._at)
        for watch in old.watches:
            assert self._watched is not None
            self._watched.remove(watch)
        self._listen()

    def replace(self, points: list[tuple[int, Breakpoint]]) -> None:
        """Set just these, by number."""
        for number in list(self._points):
            if (number, self._points[number].point) not in points:
                self.remove(number)
        for number, point in points:
            if number not in self._points:
                self.add(point, number)

    def clear(self) -> None:
        """Take all away."""
        self.replace([])

    def _listen(self) -> None:
        """Hear the trace's records only while somebody waits for one."""
        wanted = any(point.predicate is not None or point.watches or point.use for point in self._points.values())
        self.machine.trace.listen(self._recorded if wanted else None)

    # --- addresses ---------------------------------------------------------------------------------------------------

    def _resolve(self, point: Breakpoint) -> list[tuple[int, str | None]]:
        """Where the breakpoint lies: a number in any domain, a symbol in each that has it."""
        machine = self.machine
        if re.fullmatch(r"0x[0-9a-fA-F]+|\d+", point.what):
            return [(int(point.what, 0), point.domain)]
        found: list[tuple[int, str | None]] = []
        for domain in machine.domains:
            if point.domain in (None, domain.name):
                try:
                    found.append((find.address_of(self._vcpu(domain, point), point.what), domain.name))
                except ViewError as error:
                    if point.domain is not None:
                        raise BreakpointError(str(error)) from None
        if not found:
            raise BreakpointError(f"no domain has a symbol {point.what!r}")
        return found

    def _vcpu(self, domain: Domain, point: Breakpoint) -> Vcpu:
        number = point.vcpu or 0
        if number >= len(domain.vcpus):
            raise BreakpointError(f"{domain.name} has no vCPU {number}")
        return domain.vcpus[number]

    def _insert_address(self, address: int, new: _Set) -> None:
        here = self._by_address.setdefault(address, [])
        here.append(new)
        if len(here) == 1:
            self.machine.processor.breakpoints.insert(address, self._at)

    def _at(self, address: int) -> bool:
        """The processor is about to execute an instruction where breakpoints are; not where the run began."""
        vcpu = self.machine.current
        if vcpu is None or self.machine.position == self.machine.run_began:
            return False
        stops = False
        for point in list(self._by_address.get(address, ())):
            if any(at == address and name in (None, vcpu.domain.name) for at, name in point.addresses):
                stops = self._hit(point, vcpu, f"{self._where(vcpu, address)}") or stops
        return stops

    @staticmethod
    def _where(vcpu: Vcpu, address: int) -> str:
        name = find.symbol_at(vcpu.domain, address)
        return f"{name} ({address:#x}) in {vcpu.domain.name}" if name else f"{address:#x} in {vcpu.domain.name}"

    # --- memory ------------------------------------------------------------------------------------------------------

    def _watch(self, new: _Set) -> None:
        """Watch the machine memory behind the virtual addresses, as the pages are mapped now."""
        machine, point = self.machine, new.point
        if not 0 < point.length <= MAX_WATCHED:
            raise BreakpointError(f"{point.length} bytes cannot be watched: 1 to {MAX_WATCHED}")
        pieces = self._pieces(point)
        self._watched = self._watched or Watchpoints(machine.processor, machine.hv.ram)
        writes, reads = "w" in point.access, "r" in point.access
        owners = None if point.what.startswith(MACHINE) else machine.hv.frames.owner
        for offset, size, at in pieces:
            watch = Watchpoint(offset, size, writes, reads, lambda access: False)
            watch.listener = partial(self._accessed, new, watch, "")
            self._watched.insert(watch)
            new.watches[watch] = (at, None if owners is None else owners[offset >> 12])

    def _pieces(self, point: Breakpoint) -> list[tuple[int, int, int]]:
        """What is to be watched: offset in machine memory, bytes, the address that it has for the user."""
        machine = self.machine
        if point.what.startswith(MACHINE):
            start = int(point.what[len(MACHINE) :], 0)
            if not 0 <= start <= start + point.length <= machine.ram_size:
                raise BreakpointError(f"there is no machine memory at {start:#x}")
            return [(start, point.length, start)]
        vcpu = machine.current
        for domain in machine.domains:
            if domain.name == point.domain:
                vcpu = self._vcpu(domain, point)
        if vcpu is None:
            raise BreakpointError("which domain's memory is to be watched? None has run yet")
        try:
            address = find.address_of(vcpu, point.what)
        except ViewError as error:
            raise BreakpointError(str(error)) from None
        pieces = []
        end = address + point.length
        while address < end:
            offset, _ = find.translate(vcpu, address)
            if offset < 0:
                raise BreakpointError(f"{address:#x} is not mapped in {vcpu.domain.name}")
            size = min(end - address, 4096 - (address & 4095))
            pieces.append((offset, size, address))
            address += size
        return pieces

    def _accessed(self, point: _Set, watch: Watchpoint, by: str, access: Access) -> bool:
        """An instruction (or, `by` says so, the hypervisor) has touched watched memory. What a frame holds that has
        changed hands is not what was meant."""
        vcpu = self.machine.current
        address, owner = point.watches[watch]
        if vcpu is None or owner not in (None, self.machine.hv.frames.owner[watch.address >> 12]):
            return False
        if point.point.vcpu is not None and vcpu.id != point.point.vcpu:
            return False
        old, new = (int.from_bytes(value, "little") for value in (access.old, access.new))
        if point.point.mask and not (old ^ new) & point.point.mask:
            return False
        change = f"{access.old.hex(' ')} to {access.new.hex(' ')}" if access.old != access.new else "read"
        who = by or f"by {self._where(vcpu, access.rip)}"
        what = f"changed from {change}" if access.old != access.new else "was read"
        return self._hit(point, vcpu, f"{address:#x} {what} {who}", access=access, anywhere=True)

    # --- frames ------------------------------------------------------------------------------------------------------

    def _use(self, point: Breakpoint) -> str:
        """What a frame is used for. Raises BreakpointError where there is none."""
        frames, mfn = self.machine.hv.frames, int(point.what, 0)
        if not 0 <= mfn < frames.count:
            raise BreakpointError(f"machine memory has frames 0 to {frames.count - 1:#x}, not {mfn:#x}")
        owner, kind = frames.owner[mfn], type_name(frames.type[mfn], frames.flags[mfn])
        return f"owner {owner} type {kind} used {frames.type_count[mfn]} times"

    def _frame_changed(self, point: _Set, number: int, record: Record) -> bool:
        """Has the hypervisor changed what a frame is, by this record or before it?"""
        before, point.use = point.use, self._use(point.point)
        text = f"frame {point.point.what}: {before}, now {point.use}"
        return before != point.use and self._hit(
            point, self.machine.current, text, record=record, number=number, anywhere=True
        )

    # --- records -----------------------------------------------------------------------------------------------------

    def _recorded(self, number: int, record: Record) -> None:
        """The trace has a new record: does it, or what the hypervisor wrote before it, stop the machine?"""
        machine = self.machine
        stops = False
        if record.kind == Kind.DOMAIN_CREATE:
            self._name_domains()
        for point in list(self._points.values()):
            if point.use:
                stops = self._frame_changed(point, number, record) or stops
            if point.predicate is None or not point.predicate(record):
                continue
            domain = machine.hv.domains.get(record.domain)
            if point.point.domain is not None and (domain is None or domain.name != point.point.domain):
                continue
            vcpu = domain.vcpus[record.vcpu] if domain is not None and record.vcpu < len(domain.vcpus) else None
            stops = (
                self._hit(
                    point,
                    vcpu,
                    decode(record, domain.width if domain is not None else 64),
                    record=record,
                    number=number,
                )
                or stops
            )
        if self._watched is not None and self._watched.points:
            for watch, access in self._watched.changed():
                for point in list(self._points.values()):
                    if watch in point.watches:
                        by = f"by the hypervisor, before record {number}"
                        stops = self._accessed(point, watch, by, access) or stops
        if stops:
            machine.processor.halt(lambda: True)

    def _name_domains(self) -> None:
        """There is a new domain, perhaps a known one that has been rebooted: names mean other numbers."""
        domains = {domain.name: domain.id for domain in self.machine.domains}
        widths = {domain.id: domain.width for domain in self.machine.domains}
        for point in self._points.values():
            with suppress(BreakpointError):  # it names one that is gone: it keeps its number
                if point.predicate is not None:
                    point.predicate = predicate_of(point.point.what, domains, widths)
                point.condition = _condition(point.point, domains)

    def _hit(
        self,
        point: _Set,
        vcpu: Vcpu | None,
        text: str,
        record: Record | None = None,
        number: int | None = None,
        access: Access | None = None,
        anywhere: bool = False,
    ) -> bool:
        """What a breakpoint waits for has come: does it count? Then the machine stops, and is told why."""
        wanted = point.point
        if vcpu is not None and not anywhere and wanted.vcpu not in (None, vcpu.id):
            return False
        if point.condition is not None:
            registers: Mapping[str, int] = Registers(vcpu) if vcpu is not None else {}
            if not point.condition.holds(registers, record):
                return False
        point.hits += 1
        if point.left:
            point.left -= 1
            return False
        if wanted.temporary:
            self.remove(point.number)
        self.machine.hit(Stopped(point.number, text, number, access))
        return True
