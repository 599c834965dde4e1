"""The emulated processor by itself: exact stops at every byte, single steps, breakpoints, watchpoints."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_kernels import FOREVER, MEMORY, Tiny
from xentui.config import GuestSpec
from xentui.engine.machine import Machine as XenMachine
from xentui.engine.x86 import selftest
from xentui.engine.x86 import state as s
from xentui.engine.x86.cpu import Processor
from xentui.engine.x86.watchpoints import Access, Watchpoint, Watchpoints
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.sched import SCHEDOP_yield

RAM = 1 << 20
CODE = selftest._CODE
DATA = 0x8000
"""A page of its own, mapped where it lies, not executable."""

PROGRAM = bytes.fromhex(
    "48c7c100000000"  # mov rcx, 0
    "48bf0080000000000000"  # mov rdi, 0x8000
    "fc"  # cld
    "b904000000"  # mov ecx, 4
    "f3aa"  # rep stosb
    "0fa2"  # cpuid
    "4889e5"  # mov rbp, rsp
    "57"  # push rdi
    "0f31"  # rdtsc
    "5f"  # pop rdi
    "ff07"  # inc dword [rdi]
    "48ffc0"  # inc rax
    "eb03"  # jmp over three bytes
    "ffffff"
    "ec"  # in al, dx
    "f048ff0425 08800000"  # lock inc qword [0x8008]
    "e802000000"  # call over the next
    "eb02"  # jmp to the end
    "c3"  # ret
    "90"
    "cd80"  # int 0x80
    "ebfe"  # forever
)


class Handlers:
    """Emulates what is met, and counts the time that it takes."""

    def __init__(self, processor: Processor, cost: int) -> None:
        self.processor, self.cost = processor, cost
        self.seen: list[str] = []

    def _work(self, what: str) -> None:
        left = self.processor.unexecuted()
        self.processor.budget[0] += left - self.cost
        self.seen.append(what)
        self.processor.state.q[s.RDX] = 0x3F8
        self.processor.budget[0] -= left

    def exception(self, vector: int) -> None:
        self.processor.settle()
        self.seen.append(f"exception {vector}")
        self.processor.stop()

    def interrupt(self, vector: int) -> None:
        self.processor.settle()
        self.seen.append(f"interrupt {vector:#x}")

    def syscall(self) -> None:
        raise AssertionError("the program has no such instruction")

    def invalid_opcode(self) -> None:
        raise AssertionError("the program has no such instruction")

    def cpuid(self) -> None:
        self._work("cpuid")

    def rdtsc(self) -> bool:
        self._work("rdtsc")
        return True

    def port_in(self, port: int, size: int) -> int | None:
        self._work(f"in {port:#x}")
        return 0x77

    def port_out(self, port: int, size: int, value: int) -> bool:
        return False


class Machine:
    """A processor at the beginning of a program."""

    def __init__(self, program: bytes = PROGRAM, at: int = CODE, cost: int = 20, count_code: bool = True) -> None:
        self._pages = mmap.mmap(-1, RAM)
        self._anchor = ctypes.c_char.from_buffer(self._pages)
        self.ram = memoryview(self._pages)
        self.processor = Processor(ctypes.addressof(self._anchor), RAM, count_code)
        self.handlers = Handlers(self.processor, cost)
        self.processor.connect(self.handlers)
        selftest._build(self.ram)
        self.program, self.at = program, at
        self.q = self.processor.state.q
        self.begin()

    def begin(self) -> None:
        """Start again."""
        self.ram[DATA : DATA + 4096] = bytes(4096)
        selftest._enter(self.processor, self.ram, b"", wide=True)
        self.ram[self.at : self.at + len(self.program)] = self.program
        for register in range(16):
            if register != s.RSP:
                self.q[register] = 0
        self.q[s.RIP] = self.at
        self.handlers.seen.clear()
        self.processor.budget[0] = 0

    def run(self, budget: int) -> int:
        """Run for so many bytes of code; how many it took."""
        self.processor.budget[0] = budget
        self.processor.run()
        return budget - int(self.processor.budget[0])

    def step(self) -> int:
        """Execute an instruction; its bytes and what it cost."""
        self.processor.budget[0] = 1 << 30
        self.processor.step()
        return (1 << 30) - int(self.processor.budget[0])

    def look(self) -> tuple[object, ...]:
        """All that the program can see."""
        registers = tuple(self.q[index] for index in range(17))
        return registers, self.processor.read_flags(), bytes(self.ram[DATA : DATA + 4096]), tuple(self.handlers.seen)

    def close(self) -> None:
        self.processor.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()


def boundaries(machine: Machine, count: int) -> dict[int, tuple[object, ...]]:
    """Position to what can be seen there, step by step from the beginning."""
    found, position = {0: machine.look()}, 0
    for _ in range(count):
        taken = machine.step()
        assert taken > 0
        position += taken
        found[position] = machine.look()
    return found


def test_a_run_of_any_length_ends_at_a_boundary(machine: Machine) -> None:
    """For every budget: the first boundary there or behind, in the state that single steps lead to."""
    expected = boundaries(machine, 40)
    assert {"cpuid", "rdtsc", "in 0x3f8", "interrupt 0x80"} <= set(machine.handlers.seen)
    positions = sorted(expected)
    for budget in range(1, positions[-2]):
        machine.begin()
        position = machine.run(budget)
        assert position == next(one for one in positions if one >= budget)
        assert machine.look() == expected[position]


def test_pieces_of_any_length(machine: Machine) -> None:
    expected = boundaries(machine, 40)
    last = sorted(expected)[-2]
    for piece in (1, 2, 3, 5, 7, 11, 64, 150):
        machine.begin()
        position = 0
        while position < last:
            position += machine.run(min(piece, last - position))
            assert machine.look() == expected[position]


def test_repetitions_are_steps(machine: Machine) -> None:
    """REP STOSB of four bytes: four repetitions, and one that finds none left."""
    for _ in range(4):
        machine.step()
    rip = machine.q[s.RIP]
    for left in (3, 2, 1, 0):
        assert machine.step() == 2
        assert machine.q[s.RCX] == left and machine.q[s.RIP] == rip
    assert machine.step() == 2 and machine.q[s.RIP] == rip + 2


def test_a_fetch_from_the_next_page_faults_in_its_turn() -> None:
    """The block goes over the page's end; what is before it runs first, and the fault is its own instruction's."""
    code = bytes.fromhex("48ffc0" * 4 + "48b81122334455667788")
    machine = Machine(code, at=CODE + 0x1000 - 12 - 4)
    for budget in (1000, 7):
        machine.begin()
        taken = machine.run(budget)
        if budget == 7:
            assert (taken, machine.q[s.RAX]) == (9, 3)
            taken += machine.run(1000)
        assert machine.handlers.seen == ["exception 14"]
        assert (taken, machine.q[s.RAX], machine.q[s.RIP]) == (12, 4, CODE + 0x1000 - 4)
        assert machine.q[s.CR2] == CODE + 0x1000
    machine.close()


def test_cmpxchg16b_leaves_no_flags_behind() -> None:
    """A stop behind CMPXCHG16B, whose helper may put anything into CC_SRC, leaves TF and the like alone."""
    add = "48b8ffffffffffffffff" + "4883c001"  # all flags' bits in CC_SRC
    code = bytes.fromhex(add + "48c7c300800000" + "480fc70b" * 2 + "90" * 8)
    machine = Machine(code)
    for budget in range(1, len(code)):
        machine.begin()
        machine.run(budget)
        assert machine.processor.read_flags() & ~s.EF_CONDITIONS == s.EF_IF | s.EF_FIXED
        machine.run(3)
        assert machine.processor.read_flags() & ~s.EF_CONDITIONS == s.EF_IF | s.EF_FIXED
        assert machine.handlers.seen == []
    machine.close()


# --- breakpoints ------------------------------------------------------------------------------------------


def test_breakpoints_at_every_instruction(machine: Machine) -> None:
    """Each is met before every execution, and what is passed over runs as ever."""
    expected = boundaries(machine, 40)
    positions = sorted(expected)[:-1]
    budget = positions[-1]
    places = {int(expected[position][0][16]) for position in positions}  # type: ignore[index]
    met: list[int] = []

    def listen(address: int) -> bool:
        position = budget - int(machine.processor.budget[0])
        assert expected[position][0][16] == address  # type: ignore[index]
        again = position in met  # it is met once more when the run goes on
        if not again:
            met.append(position)
        return not again and len(met) % 3 == 0

    machine.begin()
    for place in places:
        machine.processor.breakpoints.insert(place, listen)
    machine.processor.budget[0] = budget
    stops = 0
    while machine.processor.budget[0] > 0:
        machine.processor.run()
        stops += 1
    assert met == positions[:-1] and stops == len(met) // 3 + 1
    assert machine.look() == expected[budget]
    for place in places:
        machine.processor.breakpoints.remove(place, listen)
    machine.begin()
    met.clear()
    machine.run(budget)
    assert met == [] and machine.look() == expected[budget]


# --- the alarm of a processor that does not count code ----------------------------------------------------


@pytest.mark.parametrize("trap", ["cd80", "0f05", "0f0b", "cc"])
def test_an_alarm_while_a_trap_is_taken_makes_it_the_last(trap: str) -> None:
    code = bytes.fromhex(trap)
    machine = Machine(code + b"\xeb" + struct.pack("b", -2 - len(code)), count_code=False)
    taken = []

    def take(*_vector: int) -> None:
        taken.append(int(machine.q[s.RIP]))
        machine.q[s.RIP] = CODE
        if len(taken) == 3:
            alarm = machine.processor._alarm
            assert alarm is not None
            context = (ctypes.c_uint64 * 32)()  # of a signal that comes at no translated code
            handler = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p)(alarm._call[0])
            handler(alarm._call[1], 0, ctypes.addressof(context))
        if len(taken) == 10:
            machine.processor.stop()

    machine.processor.disconnect()
    handlers = Handlers(machine.processor, 0)
    handlers.exception = handlers.interrupt = handlers.syscall = handlers.invalid_opcode = take
    machine.processor.connect(handlers)
    machine.processor.run(60_000_000)
    assert len(taken) == 3 and machine.q[s.RIP] in (CODE, CODE + len(code))
    machine.close()


def test_alarms_change_nothing(tmp_path: Path) -> None:
    """Blocks that are taken apart and mended again and again: straight jumps, calls, indirect jumps, stores."""
    rounds, factor, more = 2_000_000, 6364136223846793005, 1442695040888963407
    kernel = Tiny(64)
    place = kernel.place(bytes(0x2000))
    kernel.stack(place + 0x1000).accumulator(1)
    kernel.do(b"\x48\xbb" + kernel.word(factor) + b"\x48\xba" + kernel.word(more))  # mov rbx, factor; mov rdx, more
    kernel.do(b"\xb9" + rounds.to_bytes(4, "little"))  # mov ecx, rounds
    kernel.do(bytes.fromhex("eb09"))  # over the function
    kernel.do(bytes.fromhex("480fafc3 4801d0 c3 90"))  # imul rax, rbx; add rax, rdx; ret
    again = kernel.here
    kernel.do(b"\xe8" + struct.pack("<i", -9 - 5))  # call the function
    kernel.do(bytes.fromhex("50 5e"))  # push rax; pop rsi
    kernel.do(bytes.fromhex("488d3d02000000 ffe7"))  # lea rdi, [rip + 2]; jmp rdi
    kernel.do(bytes.fromhex("83e901"))  # sub ecx, 1
    kernel.do(b"\x0f\x85" + struct.pack("<i", again - kernel.here - 6))  # jnz again
    kernel.do(b"\x48\xbf" + kernel.word(place) + b"\x48\x89\x37")  # mov [place], rsi
    kernel.call(nr.HYPERCALL_sched_op, SCHEDOP_yield, 0).do(FOREVER)
    with XenMachine(MEMORY, pace="fast") as machine:
        domain = machine.create(GuestSpec("hash", kernel.write(tmp_path / "kernel"), memory=MEMORY))
        slices = 0

        def soon() -> int:
            nonlocal slices
            slices += 1
            return 20

        machine._host_microseconds = soon  # type: ignore[method-assign]
        (vcpu,), found = domain.vcpus, 0
        while not found and slices < 1_000_000:
            machine.run(machine.now() + 20_000_000)
            found = guest_access.read_u64(vcpu, place)
        expected = 1
        for _ in range(rounds):
            expected = expected * factor + more & s.MASK64
        assert found == expected and slices > 100


# --- watchpoints ------------------------------------------------------------------------------------------

WRITES = {
    "mov": ("48c7042508800000 05000000", 8),
    "inc": ("48ff042508800000", 8),
    "push": ("48c7c410800000 6a07", 8),
    "xchg": ("b807000000 48870425 08800000", 8),
    "stosq": ("48c7c708800000 b807000000 48ab", 8),
    "the low half of cmpxchg16b": ("48c7c300800000 48c7c107000000 bb07000000 bf00800000 480fc70f", 0),
    "the high half of cmpxchg16b": ("48c7c107000000 bf00800000 bb01000000 480fc70f", 8),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_watchpoint_sees_each_write_once(name: str) -> None:
    code, offset = WRITES[name]
    program = bytes.fromhex(code.replace(" ", "")) + b"\x90" * 6
    machine = Machine(program)
    steps: list[tuple[int, bytes]] = []
    position, count = 0, 0
    while machine.q[s.RIP] < CODE + len(program) - 3:
        before = bytes(machine.ram[DATA + offset : DATA + offset + 8])
        rip = int(machine.q[s.RIP])
        position += machine.step()
        count += 1
        after = bytes(machine.ram[DATA + offset : DATA + offset + 8])
        if after != before:
            steps.append((position, after))
            written_by = rip
    assert len(steps) == 1
    seen: list[Access] = []
    machine.begin()
    watchpoints = Watchpoints(machine.processor, machine.ram)
    watch = Watchpoint(DATA + offset, 8, True, False, lambda access: bool(seen.append(access)) or True)
    watchpoints.insert(watch)
    assert machine.run(1000) == steps[0][0]
    assert [(access.rip, access.old, access.new) for access in seen] == [(written_by, bytes(8), steps[0][1])]
    watchpoints.remove(watch)
    machine.begin()
    machine.run(position)
    assert len(seen) == 1 and struct.unpack_from("<Q", machine.ram, DATA + offset)[0]
    machine.close()
