"""What the console is told of a virtual CPU: loaded or not, in both widths, and that looking changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from xentui.config import resolve_guest
from xentui.engine.breakpoints import Breakpoint
from xentui.engine.machine import Machine
from xentui.engine.symbols import Line, symbols_of
from xentui.engine.views import ViewError, look
from xentui.engine.views.find import translate
from xentui.engine.x86 import state as s
from xentui.engine.x86.paging import ACCESSED, USER


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    machine = Machine(128)
    machine.create(resolve_guest("hello64"))
    machine.create(resolve_guest("hello32"))
    machine.run(3_000_000)
    yield machine
    machine.close()


def both(machine: Machine, view: str, **arguments: Any) -> list[Any]:
    return [look(machine, view, domain=domain.id, **arguments) for domain in machine.domains]


def test_registers_of_a_loaded_and_a_saved_vcpu(machine: Machine) -> None:
    wide, narrow = both(machine, "cpu.registers")
    assert [wide["loaded"], narrow["loaded"]] == [False, True]
    assert (wide["mode"], wide["ring"], wide["kernel"]) == (64, 3, True)
    assert (narrow["mode"], narrow["ring"], narrow["kernel"]) == (32, 1, True)
    assert list(wide["registers"])[-2:] == ["r15", "rip"] and len(wide["registers"]) == 17
    assert list(narrow["registers"])[-2:] == ["esp", "eip"] and len(narrow["registers"]) == 9
    vcpu = machine.domains[1].vcpus[0]
    assert narrow["registers"]["eip"] == vcpu.q[s.RIP] and narrow["flags"] == vcpu.processor.read_flags()
    assert narrow["control"]["cr3"] == vcpu.space.root
    assert "IF" in narrow["flag_letters"] and wide["segments"]["cs"]["kind"] == "code64"
    assert narrow["segments"]["cs"]["ring"] == 1


def test_lazy_condition_codes_of_a_copy_are_those_of_the_processor(machine: Machine) -> None:
    processor = machine.processor
    kept = processor.state.save()
    q, i = processor.state.q, processor.state.i
    for operation in (14, 15, 16, 17):  # SUB of each size
        for source, result in ((1, 0), (5, -3 & s.MASK64), (1 << 62, 1 << 61)):
            i[s.CC_OP], q[s.CC_SRC], q[s.CC_DST] = operation, source, result
            assert processor.flags_of(s.State.of(processor.state.save())) == processor.read_flags()
    processor.state.load(kept)


def test_code_stands_around_the_instruction_pointer(machine: Machine) -> None:
    for code, text in zip(both(machine, "cpu.code", before=2, after=3), ("syscall", "int 0x82"), strict=True):
        assert [line["current"] for line in code] == [False, False, True, False, False]
        assert code[1]["text"] == text
        for line, following in pairwise(code):
            assert line["address"] + len(line["bytes"]) == following["address"]
    (line,) = look(machine, "cpu.code", domain=1, at=0x1000, before=0, after=1)
    assert line["text"] == "(is not mapped)"


def test_breakpoints_are_marked(machine: Machine) -> None:
    number = machine.breakpoints.add(Breakpoint.parse("break guest_main", domain="hello64"))
    marks = [line["breakpoint"] for line in look(machine, "cpu.code", domain=1, at="guest_main", before=0, after=3)]
    assert marks == [number, None, None]
    assert not any(line["breakpoint"] for line in look(machine, "cpu.code", domain=2, at="guest_main"))
    machine.breakpoints.remove(number)


def test_symbols_and_the_hypercall_page_by_the_call(machine: Machine) -> None:
    for code in both(machine, "cpu.code", before=1, after=1):
        assert code[-1]["symbol"].startswith("hypercall sched_op+")
    main = look(machine, "cpu.code", domain=1, at="guest_main", before=0, after=40)
    assert main[0]["symbol"] == "guest_main" and main[1]["symbol"].startswith("guest_main+")
    assert any(line["target"] == "introduce" or line["target"] == "print" for line in main)
    assert main[0]["source"] is None, "the built-in guests have no DWARF"
    assert look(machine, "cpu.memory", domain=2, at="guest_main+4")["address"] % 4 == 0


def test_source_lines_where_there_is_dwarf(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guest.c").write_text("int main(void)\n{\n    return 0;\n}\n")
    domain = machine.domains[0]
    symbols = symbols_of(domain)
    assert symbols is not None
    rip = look(machine, "cpu.registers", domain=1)["registers"]["rip"]
    monkeypatch.setattr(domain, "kernel", tmp_path / "kernel")
    monkeypatch.setattr("xentui.engine.views.find.symbols_of", lambda _domain: symbols)
    monkeypatch.setattr(symbols, "line", lambda address: Line("src/guest.c", 3) if address == rip else None)
    (line,) = look(machine, "cpu.code", domain=1, before=0, after=1)
    assert line["source"] == ("src/guest.c", 3, "return 0;")
    moved = "/where/it/was/built/guest.c"
    monkeypatch.setattr(symbols, "line", lambda address: Line(moved, 2) if address == rip else None)
    (line,) = look(machine, "cpu.code", domain=1, before=0, after=1)
    assert line["source"] == (moved, 2, "{")


def test_the_stack_is_followed(machine: Machine) -> None:
    wide, narrow = both(machine, "cpu.stack", words=32)
    assert wide[1]["address"] - wide[0]["address"] == 8 and narrow[1]["address"] - narrow[0]["address"] == 4
    assert wide[0]["pointed"] == "rsp" and narrow[0]["pointed"] == "esp"
    assert any(row["end"].startswith("console_line+") for row in wide) and any(
        row["end"].startswith('"xen-3.0') for row in narrow
    )
    assert any(len(row["chain"]) > 1 for row in wide)
    (row,) = look(machine, "cpu.stack", domain=1, words=1, at=0x1000)
    assert (row["chain"], row["end"]) == ([], "not mapped")


def test_memory_is_what_lies_in_the_frame(machine: Machine) -> None:
    domain = machine.domains[0]
    dump = look(machine, "cpu.memory", domain=1, at="rsp+8", rows=2)
    rsp = look(machine, "cpu.registers", domain=1)["registers"]["rsp"]
    assert dump["address"] == rsp + 8
    offset, rights = translate(domain.vcpus[0], rsp + 8)
    assert dump["mfn"] == offset >> 12 and rights & USER
    assert dump["rows"][0] == (rsp + 8, bytes(machine.hv.ram[offset : offset + 16]))
    assert look(machine, "cpu.memory", domain=1, at=0, rows=1)["rows"] == [(0, None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": 7}, "domain 7 does not exist (any more); there is hello64 (1), hello32 (2)"),
        ({"domain": 1, "vcpu": 3}, "domain 1 has vCPUs 0 to 0, not 3"),
        ({"domain": 1, "at": "nowhere"}, "'nowhere' is neither a register nor a symbol of hello64"),
        ({"domain": 1, "at": "rax rbx"}, "'rax rbx' is not an address"),
        ({"domain": 1, "at": ""}, "an address is a number"),
    ],
)
def test_what_does_not_exist(machine: Machine, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ViewError) as caught:
        look(machine, "cpu.memory", **arguments)
    assert str(caught.value).startswith(message)


def test_looking_changes_nothing() -> None:
    machine = Machine(128)
    domain = machine.create(resolve_guest("hello64"))
    machine.run(100_000)
    vcpu = domain.vcpus[0]
    index = vcpu.space.entry_at(vcpu.q[s.RSP])
    machine.hv.ram64[index] &= ~ACCESSED
    before = bytes(machine.hv.ram), machine.processor.state.save(), machine.now(), machine.trace.head
    for view in ("registers", "code", "stack", "memory"):
        look(machine, f"cpu.{view}", domain=domain.id)
    assert (bytes(machine.hv.ram), machine.processor.state.save(), machine.now(), machine.trace.head) == before
    machine.close()
