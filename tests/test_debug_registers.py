"""DR0 to DR3: breakpoints that fire, in the pace and the steps in which the machine runs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.fakes_cpu import CODE_PFN, execute, injected, make_cpu_guest
from tests.tiny_kernels import BASE, DATA, MEMORY, UNDEFINED, Tiny
from xentui.config import GuestSpec, resolve_guest
from xentui.engine.breakpoints import Breakpoint
from xentui.engine.machine import Machine, Stop
from xentui.engine.trace import Kind, Record
from xentui.engine.x86.state import DR6, EF_RF, EF_TF, EFLAGS, RIP
from xentui.engine.xen import debugreg, traps
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.physdev import PHYSDEVOP_set_iopl
from xentui.engine.xen.debugreg import DR6_SET, set_debug_register

TIMES = 5
START = CODE_PFN << 12
LIMIT = 1_000_000_000
WRITE_4, ACCESS_4, EXECUTE = 0xD_0000, 0xF_0000, 0


def spec_of(image: Path) -> GuestSpec:
    spec = resolve_guest(str(image))
    spec.memory = MEMORY
    return spec


class Loop:
    """A 64-bit kernel that counts to TIMES in memory; its #DB handler sets RF in the frame and returns."""

    def __init__(self, dr7: int, at_counter: bool = False, step: bool = False) -> None:
        kernel = Tiny(64)
        self.counter = kernel.place(bytes(16))
        self.hits = self.counter + 8
        self.instruction = self.handler = 0
        kernel.data.clear()
        for _ in range(2):  # the second time all addresses are known
            kernel.code.clear()
            kernel.data[:] = bytes(16)
            kernel.traps((1,), self.handler or 1)
            kernel.call(nr.HYPERCALL_set_debugreg, 0, self.counter if at_counter else self.instruction)
            kernel.call(nr.HYPERCALL_set_debugreg, 7, 0x401 | dr7)
            kernel.do(b"\xbb" + TIMES.to_bytes(4, "little"))
            self.instruction = kernel.here
            increment = b"\xff\x04\x25" + struct.pack("<I", self.counter & 0xFFFF_FFFF)
            kernel.do(increment + b"\xff\xcb\x75" + bytes((256 - len(increment) - 4,)))
            self.behind = self.instruction + len(increment)
            kernel.shut_down()
            self.handler = kernel.here
            kernel.do(b"\xff\x04\x25" + struct.pack("<I", self.hits & 0xFFFF_FFFF))
            kernel.do(b"\x81\x4c\x24\x20\0\0\x01\0")  # or dword [rsp+32], RF
            kernel.do(b"\x59\x41\x5b\x6a\0\x51\x41\x53\x50\xb8\x17\0\0\0\x0f\x05")  # the iret hypercall
        self.kernel = kernel

    def machine(self, tmp_path: Path, count: int = 1, pace: str = "exact") -> Machine:
        image = self.kernel.write(tmp_path / "loop")
        machine = Machine(32 * count, trace_records=1 << 16, pace=pace)
        machine.strict = True
        for _ in range(count):
            machine.create(spec_of(image))
        return machine


def debug_exceptions(machine: Machine) -> list[Record]:
    return [
        record
        for record in machine.trace.latest(machine.trace.head)
        if record.kind == Kind.EXCEPTION and record.number == 1
    ]


@pytest.mark.parametrize(("pace", "times"), [("exact", TIMES), ("fast", 1)])
def test_an_instruction_is_met_each_time(tmp_path: Path, pace: str, times: int) -> None:
    """In the fast pace RF lasts as long as only jumps follow each other: here the loop to its end."""
    loop = Loop(EXECUTE)
    with loop.machine(tmp_path, pace=pace) as machine:
        assert machine.run() == Stop.FINISHED
        found = debug_exceptions(machine)
        assert [record.rip for record in found] == [loop.instruction] * times


def test_without_the_resume_flag_it_is_met_for_ever(tmp_path: Path) -> None:
    loop = Loop(EXECUTE)
    loop.kernel.code[:] = loop.kernel.code.replace(b"\x81\x4c\x24\x20\0\0\x01\0", b"\x0f\x1f\x84\0\0\0\0\0")
    with loop.machine(tmp_path) as machine:
        assert machine.run(1_000_000) == Stop.TIME
        assert len(debug_exceptions(machine)) > 10


def test_steps_and_short_runs_meet_it_as_well(tmp_path: Path) -> None:
    """The trace is the same to the last bit however the machine is run."""
    loop = Loop(EXECUTE)
    with loop.machine(tmp_path) as machine:
        machine.run()
        expected = machine.trace.latest(machine.trace.head)
        end = machine.position
    with loop.machine(tmp_path) as machine:
        while machine.step() == Stop.STEP:
            pass
        assert machine.trace.latest(machine.trace.head) == expected
    with loop.machine(tmp_path) as machine:
        for position in range(0, end + 100, 7):
            machine.run(until_position=position)
        assert machine.trace.latest(machine.trace.head) == expected


def test_a_debuggers_breakpoint_at_the_same_instruction(tmp_path: Path) -> None:
    loop = Loop(EXECUTE)
    with loop.machine(tmp_path) as machine:
        machine.breakpoints.add(Breakpoint.parse(f"break {loop.instruction:#x}"))
        stops = 0
        while machine.run(LIMIT) == Stop.BREAKPOINT:
            stops += 1
        assert len(debug_exceptions(machine)) == TIMES
        assert stops >= TIMES


def test_another_domain_at_the_same_address_is_not_met(tmp_path: Path) -> None:
    """Only the vCPU whose registers they are: the second domain's DR7 is cleared before it runs."""
    loop = Loop(EXECUTE)
    with loop.machine(tmp_path, 2) as machine:
        assert machine.run() == Stop.FINISHED
        met = debug_exceptions(machine)
        assert {record.domain for record in met} == {1, 2} and len(met) == 2 * TIMES
        assert machine.processor.debug_registers.addresses in (set(), {loop.instruction})
    quiet = Tiny(64)
    quiet.code[:] = loop.kernel.code
    quiet.data[:] = loop.kernel.data
    at = quiet.code.find(b"\x48\xbf" + (7).to_bytes(8, "little"))
    enabled = quiet.code.find(b"\x48\xbe" + (0x401).to_bytes(8, "little"), at)
    quiet.code[enabled + 2 : enabled + 10] = (0x400).to_bytes(8, "little")
    with loop.machine(tmp_path) as machine:
        machine.create(spec_of(quiet.write(tmp_path / "quiet")))
        assert machine.run() == Stop.FINISHED
        assert [record.domain for record in debug_exceptions(machine)] == [1] * TIMES


@pytest.mark.parametrize("kind", [WRITE_4, ACCESS_4])
def test_data_is_met_behind_the_instruction(tmp_path: Path, kind: int) -> None:
    loop = Loop(kind, at_counter=True)
    with loop.machine(tmp_path) as machine:
        machine.run()
        expected = machine.trace.latest(machine.trace.head)
        assert [record.rip for record in debug_exceptions(machine)] == [loop.behind] * TIMES
    with loop.machine(tmp_path) as machine:
        while machine.step() == Stop.STEP:
            pass
        assert machine.trace.latest(machine.trace.head) == expected


# --- string instructions and ports ----------------------------------------------------------------------------------


class Strings:
    """A 64-bit kernel with a breakpoint on a port, which it reads and writes by string instructions.

    It crashes if one of these changes flags or has not done its work.
    """

    def __init__(self) -> None:
        kernel = Tiny(64)
        self.handler = 0
        for _ in range(2):  # the second time all addresses are known
            kernel.code.clear()
            kernel.data[:] = bytes(16)
            kernel.traps((1,), self.handler or 1)
            kernel.call(nr.HYPERCALL_physdev_op, PHYSDEVOP_set_iopl, kernel.place(b"\1\0\0\0"))
            kernel.do(b"\x0f\x20\xe0\x48\x83\xc8\x08\x0f\x22\xe0")  # CR4 |= DE
            kernel.call(nr.HYPERCALL_set_debugreg, 0, 0xED).call(nr.HYPERCALL_set_debugreg, 7, 0x20401)
            kernel.do(b"\xba\xed\0\0\0\x48\xbf" + kernel.word(BASE[64] + DATA))  # EDX: the port; RDI
            kernel.do(b"\xb9\3\0\0\0\x39\xc0")  # ECX = 3; cmp eax, eax
            self.expected = [kernel.here] * 2 + [kernel.here + 2]
            kernel.do(b"\xf3\x6c\x74\x02" + UNDEFINED)  # rep insb; jz
            kernel.do(b"\x81\x7f\xfd\xff\xff\xff\0\x74\x02" + UNDEFINED)  # cmp dword [rdi-3], 0xFFFFFF; je
            kernel.do(b"\x83\xf8\0\x39\xc9")  # cmp eax, 0; cmp ecx, ecx
            self.expected.append(kernel.here + 2)
            kernel.do(b"\x66\x6d\x75\xfe\x48\x89\xfe")  # insw; jne .; mov rsi, rdi
            self.expected.append(kernel.here + 2)
            kernel.do(b"\xfd\x6f\xfc\x6f\x6f")  # std; outsd; cld; outsd, outsd
            self.expected += [kernel.here - 1, kernel.here]
            kernel.do(b"\x29\xfe\x83\xfe\4\x74\x02" + UNDEFINED)  # sub esi, edi; cmp esi, 4; je
            kernel.shut_down()
            self.handler = kernel.here
            kernel.do(b"\x59\x41\x5b\x6a\0\x51\x41\x53\x50\xb8\x17\0\0\0\x0f\x05")  # the iret hypercall
        self.kernel = kernel

    def machine(self, tmp_path: Path, pace: str = "exact") -> Machine:
        machine = Machine(MEMORY, trace_records=1 << 12, pace=pace)
        machine.strict = True
        machine.create(spec_of(self.kernel.write(tmp_path / "strings")))
        return machine


@pytest.mark.parametrize("pace", ["exact", "fast"])
def test_string_instructions_on_a_port_are_met_behind_each_repetition(tmp_path: Path, pace: str) -> None:
    strings = Strings()
    with strings.machine(tmp_path, pace) as machine:
        assert machine.run() == Stop.FINISHED
        assert [record.rip for record in debug_exceptions(machine)] == strings.expected
        kinds = {record.kind for record in machine.trace.latest(machine.trace.head)}
        assert Kind.DOMAIN_SHUTDOWN in kinds and Kind.DOMAIN_CRASH not in kinds


def test_string_instructions_on_a_port_in_steps_and_short_runs(tmp_path: Path) -> None:
    strings = Strings()
    with strings.machine(tmp_path) as machine:
        machine.run()
        expected = machine.trace.latest(machine.trace.head)
        end = machine.position
    with strings.machine(tmp_path) as machine:
        while machine.step() == Stop.STEP:
            pass
        assert machine.trace.latest(machine.trace.head) == expected
    with strings.machine(tmp_path) as machine:
        for position in range(0, end + 100, 5):
            machine.run(until_position=position)
        assert machine.trace.latest(machine.trace.head) == expected


def test_a_guest_that_steps_over_ports_misses_no_step(tmp_path: Path) -> None:
    """Wherever the run is cut: an IN takes long enough that its block has no time left."""
    kernel, handler = Tiny(64), 0
    for _ in range(2):
        kernel.code.clear()
        kernel.data.clear()
        kernel.traps((1,), handler or 1)
        kernel.call(nr.HYPERCALL_physdev_op, PHYSDEVOP_set_iopl, kernel.place(b"\1\0\0\0"))
        kernel.do(b"\xba\xed\0\0\0\xb9\3\0\0\0\x48\xbf" + kernel.word(BASE[64] + DATA + 0x800))
        kernel.do(b"\x9c\x81\x0c\x24\0\1\0\0\x9d")  # pushf; or dword [rsp], TF; popf
        first = kernel.here
        kernel.do(b"\xec\xee\x6c\xf3\x6c\x90")  # in, out, insb, rep insb, nop
        behind = kernel.here
        kernel.do(b"\x9c\x81\x24\x24\xff\xfe\xff\xff\x9d\x90")  # pushf; and dword [rsp], ~TF; popf; nop
        kernel.shut_down()
        handler = kernel.here
        kernel.do(b"\x59\x41\x5b\x6a\0\x51\x41\x53\x50\xb8\x17\0\0\0\x0f\x05")  # the iret hypercall
    image = kernel.write(tmp_path / "steps")

    def run(step: int) -> tuple[list[Record], int]:
        with Machine(MEMORY, trace_records=1 << 12) as machine:
            machine.strict = True
            machine.create(spec_of(image))
            position = 0
            while machine.run(until_position=position) != Stop.FINISHED:
                position += step
                assert machine.position < 1_000_000
            return debug_exceptions(machine), machine.position

    whole, end = run(900_000)
    expected = [first + offset for offset in (1, 2, 3, 3, 3, 5, 6)]
    assert [record.rip for record in whole if record.rip <= behind] == expected
    for step in (7, 50):
        assert run(step) == (whole, end)


# --- the registers ----------------------------------------------------------------------------------------------------


def test_what_the_registers_make_the_processor_look_out_for() -> None:
    guest = make_cpu_guest(64)
    vcpu, watched = guest.vcpu, guest.vcpu.processor.debug_registers
    for number, address in enumerate((START, START + 1, 45 << 12, 1 << 40)):
        assert set_debug_register(vcpu, number, address) == 0
    assert not watched.in_use
    # DR0 and DR1 on instructions, DR2 on 8 bytes written, DR3 on memory that is not there
    assert set_debug_register(vcpu, 7, 0x400 | 0x55 | 0x9 << 24 | 0x3 << 28) == 0
    assert watched.addresses == {START, START + 1}
    (point,) = watched.points  # type: ignore[attr-defined]
    assert (point.address, point.length, point.writes, point.reads) == (guest.p2m[45] << 12, 8, True, False)
    assert set_debug_register(vcpu, 0, START + 2) == 0 and watched.addresses == {START + 1, START + 2}
    assert set_debug_register(vcpu, 7, 0x400) == 0 and not watched.in_use


def test_who_hits_what() -> None:
    guest = make_cpu_guest(64)
    vcpu = guest.vcpu
    execute(guest, b"\x90")
    set_debug_register(vcpu, 1, START)
    set_debug_register(vcpu, 7, 0x404)
    vcpu.q[EFLAGS] |= EF_RF
    assert not debugreg.instruction_breakpoint(vcpu), "RF lets it pass"
    vcpu.q[EFLAGS] &= ~EF_RF
    traps.debug(vcpu)
    assert injected(guest) == 1 and vcpu.debug[6] == DR6_SET | 2
    vcpu.debug[6], vcpu.q[RIP] = DR6_SET, START
    vcpu.q[EFLAGS] |= EF_TF
    vcpu.q[DR6] = DR6_SET | 1 << 14
    traps.debug(vcpu)
    assert vcpu.debug[6] == DR6_SET | 1 << 14 and not vcpu.q[DR6] & 1 << 14, "the step came before"
