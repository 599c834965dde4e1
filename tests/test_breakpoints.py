"""Breakpoints on code, on memory and on records: where they stop, that they stop nowhere else, and leave no trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.test_run_control import RUNS, Traced, guest
from xentui.engine.breakpoints import Breakpoint, BreakpointError
from xentui.engine.machine import Machine, Stop
from xentui.engine.symbols import symbols_of
from xentui.engine.trace import Kind, Record
from xentui.engine.views import find
from xentui.engine.x86.state import RAX, RIP

LIMIT = 400_000_000
"""Virtual ns by which every guest here has done what it is to do."""


def start(name: str, cmdline: str = "") -> Machine:
    spec = guest(name, cmdline)
    machine = Machine(spec.memory, trace_records=1 << 18)
    machine.strict = True
    machine.create(spec)
    return machine


@pytest.fixture
def hello() -> Iterator[Machine]:
    with start("hello64") as machine:
        yield machine


def address_of(machine: Machine, symbol: str) -> int:
    symbols = symbols_of(machine.domains[0])
    assert symbols is not None
    address = symbols.address(symbol)
    assert address is not None
    return address


def run_into(machine: Machine, text: str, stops: int) -> list[int]:
    """Set a breakpoint and run; the positions of its first hits."""
    number = machine.breakpoints.add(Breakpoint.parse(text))
    positions = []
    for _ in range(stops):
        if machine.run(LIMIT) != Stop.BREAKPOINT:
            break
        assert machine.stopped is not None and machine.stopped.number == number
        positions.append(machine.position)
    machine.breakpoints.remove(number)
    return positions


def record_at(machine: Machine) -> Record:
    """The record that the machine stopped for."""
    assert machine.stopped is not None and machine.stopped.record is not None
    (record, *_) = machine.trace.latest(machine.trace.head - machine.stopped.record)
    return record


# --- code ---


@pytest.mark.parametrize("name", ["hello32", "hello64"])
def test_stops_before_the_instruction(name: str) -> None:
    with start(name) as machine:
        address = address_of(machine, "print")
        machine.breakpoints.add(Breakpoint.parse("break print"))
        assert machine.run(LIMIT) == Stop.BREAKPOINT
        assert machine.stopped is not None and "print" in machine.stopped.text and name in machine.stopped.text
        vcpu = machine.current
        assert vcpu is not None and vcpu.q[RIP] == address
        position = machine.position
        assert machine.run(LIMIT) == Stop.BREAKPOINT  # the next time, not the same one again
        assert machine.position > position and vcpu.q[RIP] == address


def test_a_place_in_the_hypercall_page_is_called_by_its_hypercall(hello: Machine) -> None:
    hello.breakpoints.add(Breakpoint.parse("break hypercall_page+0x3a0"))
    assert hello.run(LIMIT) == Stop.BREAKPOINT
    assert hello.stopped is not None
    assert "hypercall sched_op (0x" in hello.stopped.text


def test_the_instruction_is_the_one_that_stepping_comes_to(hello: Machine) -> None:
    """The position of a hit is that of the boundary before the instruction, found by steps from a bit before."""
    (first, second) = run_into(hello, "break print", 2)
    address = address_of(hello, "print")
    with start("hello64") as other:
        for position in (first, second):
            other.run(until_position=position - 40)
            while other.position < position:
                assert other.current is not None and other.current.q[RIP] != address
                other.step()
            assert other.position == position and other.current is not None and other.current.q[RIP] == address


def test_steps_before_a_breakpoint_do_not_hide_it(hello: Machine) -> None:
    """What is translated behind a single step has its breakpoints."""
    (position,) = run_into(hello, "break print", 1)
    for steps in range(1, 9):
        with start("hello64") as other:
            other.breakpoints.add(Breakpoint.parse("break print"))
            other.run(until_position=position - 40)
            for _ in range(steps):
                assert other.step() == Stop.STEP and other.position < position
            assert other.run(LIMIT) == Stop.BREAKPOINT
            assert other.position == position


def test_condition_ignore_temporary(hello: Machine) -> None:
    positions = run_into(hello, "break print", 6)
    with start("hello64") as other:
        number = other.breakpoints.add(Breakpoint.parse("break print")._replace(ignore=3, temporary=True))
        assert other.run(LIMIT) == Stop.BREAKPOINT
        assert other.position == positions[3]
        assert number not in [one for one, _, _ in other.breakpoints]
    with start("hello64") as other:
        address = address_of(other, "print")
        assert run_into(other, f"break print if rip == {address:#x} and rdi == 1 and rdi == 2", 1) == []
    with start("hello64") as other:
        assert run_into(other, f"break print if rip == {address:#x} and cpl == 3", 6) == positions


def test_another_domains_breakpoint_is_passed() -> None:
    """Two domains with the same kernel have the same addresses; only the one that is meant is stopped."""
    first, second = guest("hello64"), guest("hello64")
    second.name = "other"
    with Machine(first.memory + second.memory) as machine:
        machine.create(first)
        machine.create(second)
        machine.breakpoints.add(Breakpoint.parse("break print", domain="other"))
        for _ in range(3):
            assert machine.run(LIMIT) == Stop.BREAKPOINT
            assert machine.current is not None and machine.current.domain.name == "other"


def test_a_step_leaves_a_breakpoint_behind(hello: Machine) -> None:
    (position,) = run_into(hello, "break print", 1)
    hello.breakpoints.add(Breakpoint.parse("break print"))
    assert hello.step() == Stop.STEP
    assert hello.position > position and hello.current is not None
    assert hello.current.q[RIP] != address_of(hello, "print")


# --- memory ---


def watched(machine: Machine) -> tuple[int, int]:
    """A word on the stack of hello64's print, and the bytes' place in machine memory."""
    run_into(machine, "break print", 1)
    vcpu = machine.current
    assert vcpu is not None
    address = find.address_of(vcpu, "rsp-24")
    offset, _ = find.translate(vcpu, address)
    return address, offset


def test_a_watchpoint_names_who_wrote_what(hello: Machine) -> None:
    address, offset = watched(hello)
    began = hello.position
    ram = hello.hv.ram
    old = bytes(ram[offset : offset + 8])
    hello.breakpoints.add(Breakpoint.parse(f"watch {address:#x} 8"))
    assert hello.run(LIMIT) == Stop.BREAKPOINT
    stopped, position = hello.stopped, hello.position
    assert stopped is not None and stopped.access is not None
    with start("hello64") as other:  # the same by single steps
        other.run(until_position=began)
        rip = 0
        while bytes(other.hv.ram[offset : offset + 8]) == old:
            assert other.current is not None
            rip = other.current.q[RIP]
            other.step()
        assert other.position == position
        assert stopped.access.rip == rip
        assert stopped.access.old == old
        assert stopped.access.new == bytes(other.hv.ram[offset : offset + 8])


def test_a_watchpoint_for_reading(hello: Machine) -> None:
    address, offset = watched(hello)
    hello.breakpoints.add(Breakpoint.parse(f"rwatch {address:#x} 8"))
    assert hello.run(LIMIT) == Stop.BREAKPOINT
    assert hello.stopped is not None and hello.stopped.access is not None
    assert hello.stopped.access.old == hello.stopped.access.new == bytes(hello.hv.ram[offset : offset + 8])
    assert "was read" in hello.stopped.text


def test_what_the_hypervisor_writes_is_seen(hello: Machine) -> None:
    """An event makes the hypervisor set the pending bit of vcpu_info, which lies in the guest's memory."""
    hello.run(1_000_000)
    domain = hello.domains[0]
    page = address_of(hello, "shared_info_page")
    assert find.translate(domain.vcpus[0], page)[0] == domain.shared_info_frame << 12
    hello.breakpoints.add(Breakpoint.parse("watch shared_info_page"))
    hello.toolstack.type(domain, b"x")
    assert hello.run(LIMIT) == Stop.BREAKPOINT
    assert hello.stopped is not None and hello.stopped.access is not None
    assert "by the hypervisor" in hello.stopped.text
    assert hello.stopped.access.new == b"\1"


def test_memory_that_has_changed_hands_is_not_watched(hello: Machine) -> None:
    """The domain is destroyed, and its frames are another's."""
    address, offset = watched(hello)
    hello.breakpoints.add(Breakpoint.parse(f"watch {address:#x} 8"))
    machine_wide = hello.breakpoints.add(Breakpoint.parse(f"watch machine:{offset:#x} 8"))
    hello.toolstack.destroy(hello.domains[0])
    hello.create(guest("hello64"))
    assert hello.hv.frames.owner[offset >> 12] == 2
    hello.run(1_000_000)
    hello.breakpoints.remove(machine_wide)
    hello.hv.ram[offset] ^= 1
    hello.toolstack.type(hello.domains[0], b"x")
    assert hello.run(hello.now() + LIMIT) == Stop.TIME
    machine_wide = hello.breakpoints.add(Breakpoint.parse(f"watch machine:{offset:#x} 8"))
    hello.hv.ram[offset] ^= 1
    hello.toolstack.type(hello.domains[0], b"x")
    assert hello.run(hello.now() + LIMIT) == Stop.BREAKPOINT
    assert hello.stopped is not None and hello.stopped.number == machine_wide


# --- records ---


def test_a_name_means_the_domain_that_has_it_after_a_reboot() -> None:
    """A domain that is rebooted gets another number."""
    spec = guest("hello64")
    with Machine(spec.memory) as machine:
        machine.create(spec)
        machine.breakpoints.add(Breakpoint.parse("console_out and domain == hello64")._replace(ignore=1000))
        machine.breakpoints.add(Breakpoint.parse("console_out")._replace(ignore=1000))
        with pytest.raises(BreakpointError, match="nobody"):
            machine.breakpoints.add(Breakpoint.parse("console_out and domain == nobody"))
        assert machine.run(LIMIT) == Stop.TIME
        before = [hits for _, _, hits in machine.breakpoints]
        machine.toolstack.type(machine.domains[0], b"reboot\r")
        assert machine.run(2 * LIMIT) == Stop.TIME
        assert machine.domains[0].id == 2
        after = [hits for _, _, hits in machine.breakpoints]
        assert before[0] == before[1] > 5 and after[0] == after[1] > 2 * before[0]


KINDS = {
    "hypercall": {Kind.HYPERCALL, Kind.MULTICALL_ENTRY},
    "hypercall sched_op": {Kind.HYPERCALL, Kind.MULTICALL_ENTRY},
    "vector 14": {Kind.PAGE_FAULT},
    "vector 6": {Kind.EXCEPTION},
    "port 2": {Kind.EVENT_SEND, Kind.EVENT_MASKED, Kind.VIRQ},
    "exception": {Kind.EXCEPTION, Kind.PAGE_FAULT},
    "upcall": {Kind.EVENT_UPCALL},
    "switch": {Kind.SCHEDULE},
    "refusal": {Kind.REFUSAL},
    "crossing": {Kind.HYPERCALL, Kind.EXCEPTION, Kind.PAGE_FAULT, Kind.DIRECT_TRAP, Kind.SOFTWARE_INTERRUPT}
    | {Kind.SYSCALL, Kind.IRET, Kind.EVENT_UPCALL},
    "hypercall and result < 0": {Kind.HYPERCALL},
}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Everything that selftest64 leaves in the trace."""
    with start("selftest64") as machine:
        assert machine.run(LIMIT) == Stop.FINISHED
        return machine.trace.latest(machine.trace.head)


@pytest.mark.parametrize("text", KINDS)
def test_stops_behind_each_record(text: str, records: list[Record]) -> None:
    """Every record of the kind stops the machine, in order, and no other."""
    meant = [number for number, record in enumerate(records) if record.kind in KINDS[text]]
    if text == "hypercall sched_op":
        meant = [number for number in meant if records[number].number == 29]
    elif text == "vector 6":
        meant = [number for number in meant if records[number].number == 6]
    elif text == "port 2":
        meant = [n for n in meant if (records[n].a if records[n].kind == Kind.VIRQ else records[n].number) == 2]
    elif text.endswith("< 0"):
        meant = [number for number in meant if records[number].result >> 63]
    with start("selftest64") as machine:
        machine.breakpoints.add(Breakpoint.parse(text))
        head = stops = 0
        while stops < 40 and machine.run(LIMIT) == Stop.BREAKPOINT:
            assert machine.stopped is not None and machine.stopped.record is not None
            # what one trap leaves together stops the machine once
            assert machine.stopped.record == next(number for number in meant if number >= head)
            assert record_at(machine) == records[machine.stopped.record]
            head, stops = machine.trace.head, stops + 1
    assert stops == 40 or not [number for number in meant if number >= head]
    assert stops or text == "refusal"


def test_run_to_is_for_once(hello: Machine) -> None:
    assert hello.run_to(Breakpoint.parse("upcall")) == Stop.BREAKPOINT
    assert record_at(hello).kind == Kind.EVENT_UPCALL
    assert list(hello.breakpoints) == []
    assert hello.run_to(Breakpoint.parse("refusal"), until_position=hello.position + 1000) == Stop.TIME
    assert list(hello.breakpoints) == []


def test_registers_in_a_records_condition(hello: Machine) -> None:
    assert hello.run_to(Breakpoint.parse("hypercall if rax == 0 and cs & 3 == 3")) == Stop.BREAKPOINT
    assert hello.current is not None and hello.current.q[RAX] == 0


# --- all together -----------------------------------------------------------------------------------------------------


def through_breakpoints(*texts: str) -> object:
    def drive(machine: Machine, until: int) -> None:
        machine.run(min(until, 1_000_000))
        for text in texts:
            machine.breakpoints.add(Breakpoint.parse(text))
        stops = 0
        while machine.run(until) == Stop.BREAKPOINT:
            stops += 1
            if stops == 3000:
                machine.breakpoints.clear()
        assert stops

    return drive


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("hello32", ("crossing", "break print")),
        ("hello64", ("hypercall", "watch rsp-64 64", "break print if rax == 1")),
        ("selftest64", ("exception", "switch")),
        ("both widths", ("switch", "break print")),
    ],
)
def test_breakpoints_leave_no_trace(name: str, texts: tuple[str, ...]) -> None:
    from tests.test_run_control import in_one_go

    stopped: Traced = RUNS[name](through_breakpoints(*texts))  # type: ignore[arg-type]
    assert stopped.outcome == RUNS[name](in_one_go).outcome


def test_errors_are_one_line(hello: Machine) -> None:
    cases = [
        (Breakpoint.parse("break nowhere"), "no domain has a symbol 'nowhere'"),
        (Breakpoint.parse("break main", domain="alpha"), "there is no domain 'alpha'; there are: hello64"),
        (Breakpoint("address", "main", "hello64", vcpu=7), "hello64 has no vCPU 7"),
        (Breakpoint("watch", "0x5000", length=0), "0 bytes cannot be watched"),
        (Breakpoint("watch", "0x5000"), "has run yet|not mapped"),
    ]
    for point, message in cases:
        with pytest.raises(BreakpointError, match=message) as caught:
            hello.breakpoints.add(point)
        assert "\n" not in str(caught.value)
    for text in ("break", "watch", "hypercal", "hypercall nosuch", "vector x", "break main if rax =="):
        with pytest.raises(BreakpointError):
            Breakpoint.parse(text)
    with pytest.raises(BreakpointError, match="there is no breakpoint 9"):
        hello.breakpoints.remove(9)
