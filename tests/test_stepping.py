"""Steps over calls, and the names that a guest's addresses have."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_run_control import guest
from xentui.engine.breakpoints import Breakpoint
from xentui.engine.machine import Machine, Stop
from xentui.engine.symbols import Symbols, symbols_of
from xentui.engine.views import find
from xentui.engine.x86.state import RIP, RSP
from xentui.engine.xen.elf_format import ElfFile

LIMIT = 400_000_000


@pytest.mark.parametrize("name", ["hello32", "hello64"])
def test_step_over_is_all_the_steps_of_a_call(name: str) -> None:
    """The same function once stepped over call by call, and once instruction by instruction."""
    spec = guest(name)
    with Machine(spec.memory) as machine, Machine(spec.memory) as other:
        for one in (machine, other):
            one.create(spec)
            assert one.run_to(Breakpoint.parse("tbreak guest_main")) == Stop.BREAKPOINT
        assert machine.current is not None and other.current is not None
        q, own = machine.current.q, other.current.q
        calls = 0
        for _ in range(40):
            rip, stack = q[RIP], q[RSP]
            if machine.step_over() != Stop.STEP:  # it waits for the console
                break
            is_call = find.peek(machine.current, rip, 1) == b"\xe8"
            calls += is_call
            if is_call:
                assert q[RIP] == rip + 5 and q[RSP] == stack
            while other.position < machine.position:
                other.step()
            assert (other.position, own[RIP], own[RSP]) == (machine.position, q[RIP], q[RSP])
        assert calls > 3
        assert list(machine.breakpoints) == []


def test_a_breakpoint_within_stops_a_step_over() -> None:
    spec = guest("hello64")
    with Machine(spec.memory) as machine:
        machine.create(spec)
        machine.run_to(Breakpoint.parse("tbreak guest_main"))
        machine.breakpoints.add(Breakpoint.parse("break format_text"))
        reasons = set()
        while Stop.BREAKPOINT not in reasons:
            reasons.add(machine.step_over())
        assert machine.stopped is not None and "format_text" in machine.stopped.text
        assert len(list(machine.breakpoints)) == 1


def test_names_of_addresses() -> None:
    spec = guest("hello64")
    with Machine(spec.memory) as machine:
        domain = machine.create(spec)
        symbols = symbols_of(domain)
        assert symbols is not None
        address = symbols.address("guest_main")
        assert address is not None
        assert symbols.name(address) == "guest_main"
        assert symbols.name(address + 3) == "guest_main+0x3"
        assert symbols.name(0x1000) == "" and symbols.name(1 << 63 | 5) == ""
        assert "guest_main" in symbols.matching("guest_")
        assert find.address_of(domain.vcpus[0], "guest_main+4") == address + 4
        domain.kernel = Path("/nonexistent")
        assert symbols_of(domain) is None


@pytest.mark.parametrize("dwarf", ["-gdwarf-4", "-gdwarf-5"])
def test_source_lines(tmp_path: Path, dwarf: str) -> None:
    compiler = shutil.which("gcc")
    assert compiler is not None, "the guests are built with gcc, too"
    source = tmp_path / "runtime" / "place.c"
    source.parent.mkdir()
    source.write_text(
        "int twice(int n)\n{\n    return 2 * n;\n}\nvoid _start(void)\n{\n    twice(4);\n    for (;;);\n}\n"
    )
    program = tmp_path / "program"
    options = [dwarf, "-O0", "-nostdlib", "-static", "-no-pie", "-ffreestanding", "-o", str(program)]
    subprocess.run([compiler, *options, "runtime/place.c"], check=True, timeout=60, cwd=tmp_path)
    symbols = Symbols(ElfFile(str(program), memoryview(program.read_bytes())))
    address = symbols.line_address("place.c", 3)
    assert address is not None
    line = symbols.line(address)
    assert line is not None and line.file == str(source) and line.line == 3
    found = symbols.place(address)
    assert found is not None and found[0] == "twice"
    assert symbols.line(0x10) is None and symbols.line_address("other.c", 3) is None
