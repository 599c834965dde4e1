"""The benchmark guest when it works line by line, and the harness that measures it so beside real Xen."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench.against_xen import OPERATIONS
from bench.beside_xen import Console, Results, SteppedGuest, held_up, quartiles, ratios, report_ratios
from xentui.config import resolve_guest
from xentui.engine.machine import Machine, Stop
from xentui.engine.xen.domain import Domain

ROOT = Path(__file__).parent.parent


class Stepped:
    """A machine whose bench guest is told what to do."""

    def __init__(self, name: str, vcpus: int = 1) -> None:
        spec = resolve_guest(name)
        spec.cmdline, spec.vcpus = "step=1", vcpus
        self.machine = Machine(spec.memory)
        self.machine.strict = True
        self.text = ""
        self.machine.toolstack.on_output = self._output
        self.domain = self.machine.create(spec)
        assert self.machine.run() == Stop.STARVED

    def _output(self, _domain: Domain, data: bytes) -> None:
        self.text += data.decode().replace("\r", "")

    def ask(self, line: str) -> tuple[str, list[str]]:
        """Why the machine stopped after a typed line, and the lines that the guest printed."""
        self.text = ""
        self.machine.toolstack.type(self.domain, line.encode() + b"\n")
        return self.machine.run(), self.text.splitlines()


@pytest.mark.parametrize("name", ["bench32", "bench64"])
def test_a_typed_line_is_a_measurement(name: str) -> None:
    stepped = Stepped(name)
    reason, lines = stepped.ask("page_fault 7")
    assert reason == Stop.STARVED
    assert lines[:3] == ["page_fault 7", "bench: begin page_fault", "bench: end page_fault"]
    assert re.fullmatch(r"bench: page_fault \d+ ns n=7 \(\d+\.\d ns each\)", lines[3])
    assert " n=400 " in stepped.ask("pin_unpin")[1][3]
    assert stepped.ask("system call")[1][1:] == ["bench: no measurement system"]
    assert stepped.ask("event_to_vcpu 1")[1][1:] == ["bench: no measurement event_to_vcpu"]
    reason, lines = stepped.ask("quit")
    assert reason == Stop.FINISHED
    assert lines == ["quit", "bench: faults 7 upcalls 0 int80 0", "bench: done"]


def test_two_vcpus_can_be_measured_too() -> None:
    stepped = Stepped("bench64", vcpus=2)
    assert " n=5 " in stepped.ask("event_to_vcpu 5")[1][3]


def test_updates_are_done_in_pairs_and_rounds() -> None:
    """So often that the entries are as before: the next measurement changes each of them again."""
    stepped = Stepped("bench64")
    for line, count in (("update_va_mapping 3", 2), ("pte_store 1", 2), ("mmu_update_512 1500", 1024)):
        before = bytes(stepped.machine.hv.ram64)
        assert f" n={count} " in stepped.ask(line)[1][3]
        assert same_page_tables(before, bytes(stepped.machine.hv.ram64), stepped)


def same_page_tables(before: bytes, after: bytes, stepped: Stepped) -> bool:
    """Whether two states of the memory agree in all frames that are bottom page tables, but for accessed and dirty."""
    frames = stepped.machine.hv.frames
    tables = [mfn for mfn in range(frames.count) if frames.type[mfn] == 1]
    assert tables

    def entries(memory: bytes) -> list[int]:
        return [
            int.from_bytes(memory[mfn << 12 | slot << 3 : (mfn << 12 | slot << 3) + 8], "little") & ~0x60
            for mfn in tables
            for slot in range(512)
        ]

    return entries(before) == entries(after)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[SteppedGuest]:
    command = [sys.executable, str(ROOT / "bench" / "stepped_guest.py"), "exact", str(tmp_path / "out.xtrace")]
    guest = SteppedGuest(command, "exact pace")
    yield guest
    guest.close()


def test_the_harness_takes_samples(guest: SteppedGuest) -> None:
    guest.wait(rb"bench64 on [^\n]*\n")
    for _ in range(2):
        sample = guest.sample("mmu_update_1", 1)
        assert sample.count == 1024
        assert sample.seconds > 0
        assert sample.ns == sample.seconds * 1e9 / 1024
    for name in OPERATIONS:
        assert guest.sample(name, 100_000 if name.startswith("loop") else 1000).seconds > 0


def test_a_guest_that_ends_is_told(guest: SteppedGuest) -> None:
    guest.process.kill()
    with pytest.raises(RuntimeError, match="the guest on exact pace ended"):
        guest.sample("xen_version")


def test_a_command_that_fails_is_told() -> None:
    failed = pytest.raises(RuntimeError, match=r"(?s)ended; last output:.*No module named nothing")
    with closing(Console([sys.executable, "-m", "nothing"], "fast pace")) as console, failed:
        console.wait(b"something")


def test_the_hypervisors_lines_are_not_the_guests() -> None:
    program = r"print('bench: be(XEN) d0 did something\ngin x\n(XEN) and more\nbench: end x')"
    with closing(Console([sys.executable, "-c", program], "Xen")) as console:
        console.wait(rb"bench: begin x\nbench: end x\n")


def test_what_others_had_of_the_processor_is_known() -> None:
    """Of the thread that has worked most; one that has ended, or began later, does no harm."""
    before = {"1": (500, 1_000), "2": (0, 7_000_000_000), "3": (9_000, 9)}
    after = {"1": (3_500, 2_000_001_000), "2": (100, 9_000_000_000), "4": (1_000, 70)}
    assert held_up(before, after) == 2
    assert held_up({}, {"1": (5, 3_000_000_000)}) == 3
    assert held_up({}, {}) == 0


def test_a_ratio_is_of_figures_of_one_round(capsys: pytest.CaptureFixture[str]) -> None:
    """The host was three times as slow in some rounds: the medians of the sides do not tell, the ratios do."""
    xen, here = [4000.0, 12000.0, 12000.0, 4000.0, 12000.0], [1000.0, 3000.0, 1500.0, 1000.0, 3000.0]
    assert ratios(xen, here) == [4, 4, 8, 4, 4]
    results: dict[str, Results] = {"Xen": {"call": xen}, "fast": {"call": here}, "exact": {"call": here}}
    assert report_ratios(results, {"call": 4.0})
    assert not report_ratios(results, {"call": 4.1})
    table = capsys.readouterr().out.splitlines()
    assert " ".join(table[1].split()) == "call 12.00 µs 1.50 µs 1.50 µs 4.00 4.00 to 4.00 >= 4.0 reached"
    assert table[-3].endswith("MISSED")
    assert table[-2].startswith("5 rounds; from quartile to quartile a ratio spans 0% of itself")


def test_quartiles() -> None:
    assert quartiles([5.0]) == (5, 5, 5)
    assert quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == (2, 3, 4)
