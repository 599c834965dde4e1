"""Our guests on real Xen under QEMU, and the same guests here: the same lines.

Real Xen for the 32-bit ones is another: test_real_xen_pv32.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests import xen_pv32
from tests.real_xen import (
    QEMU_DEFECTS,
    XEN_PV32,
    XenRun,
    fetch_xen,
    qemu_command,
    run_on_xen,
    without_defects_of_qemu,
)

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "xentui" / "guests"
EXPECTED = ROOT / "tests" / "expected" / "selftest64.tap"
EXPECTED_32 = ROOT / "tests" / "expected" / "selftest32.tap"

pytestmark = pytest.mark.slow


@cache
def selftest_on_xen() -> XenRun:
    """One run of the conformance guest on real Xen, shared by the tests."""
    return run_on_xen(IMAGES / "selftest64")


def record(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a guest headless on our own engine; its console is the standard output."""
    command = [sys.executable, "-m", "xentui", "--record", str(tmp_path / "out.xtrace"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL)


def lines(console: str) -> list[str]:
    """A console's lines; a PV console ends them with CR LF."""
    return console.replace("\r", "").splitlines()


def test_selftest_on_real_xen() -> None:
    run = selftest_on_xen()
    assert run.lines == EXPECTED.read_text().splitlines()
    assert run.ending == "halted"


@pytest.mark.parametrize("path", [EXPECTED, EXPECTED_32])
def test_expected_lines_say_that_all_passed(path: Path) -> None:
    text = path.read_text()
    assert "not ok" not in text
    assert text.splitlines()[-1].endswith(", 0 failed")


@pytest.mark.parametrize("pace", ["exact", "fast"])
def test_selftest64_prints_the_same_here(tmp_path: Path, pace: str) -> None:
    done = record(tmp_path, "--pace", pace, "selftest64")
    assert lines(done.stdout) == EXPECTED.read_text().splitlines(), done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("pace", ["exact", "fast"])
@pytest.mark.parametrize("switch", [(), ("--no-direct-trap",)])
def test_selftest32_prints_the_same_here(tmp_path: Path, pace: str, switch: tuple[str, ...]) -> None:
    done = record(tmp_path, "--pace", pace, *switch, "selftest32")
    assert lines(done.stdout) == EXPECTED_32.read_text().splitlines(), done.stderr
    assert done.returncode == 0


def test_hello_answers_on_real_xen() -> None:
    answers = [(r"> $", "info\r"), (r"(?s)initial domain.*> $", "spam\r"), (r"You said: spam.*> $", "poweroff\r")]
    run = run_on_xen(IMAGES / "hello64", "some=option", answers=[(f"(?s){p}", text) for p, text in answers])
    assert run.ending == "halted"
    assert run.lines[0] == "Hello from hello64, a 64-bit paravirtualized guest in ring 3."
    assert '  command line  "some=option"' in run.lines
    assert "You said: spam" in run.lines
    assert run.lines[-1] == "Goodbye."


@pytest.mark.parametrize(("command", "ending"), [("reboot", "shutdown"), ("crash", "crashed")])
def test_hello_ends_as_told(command: str, ending: str) -> None:
    assert run_on_xen(IMAGES / "hello64", f"run={command}").ending == ending


def test_bench_runs_on_real_xen() -> None:
    run = run_on_xen(IMAGES / "bench64", "scale=1")
    begun = [line.removeprefix("bench: begin ") for line in run.lines if line.startswith("bench: begin ")]
    ended = [line.removeprefix("bench: end ") for line in run.lines if line.startswith("bench: end ")]
    measured = [line.split()[1] for line in run.lines if " ns n=" in line]
    assert begun == ended == measured
    assert {"xen_version", "update_va_mapping", "invalid_opcode", "page_fault", "int80", "loop_store"} <= set(begun)
    assert "bench: done" in run.lines


def test_bench_does_what_is_typed_on_real_xen() -> None:
    answers = [(r"scale=10\r*\n", "mmu_update_32 5\n"), (r" ns each\)", "page_fault 9\n"), (r" ns each\)", "quit\n")]
    run = run_on_xen(IMAGES / "bench64", "step=1", answers=answers)
    measured = [line.split()[1:5:3] for line in run.lines if " ns n=" in line]
    assert measured == [["mmu_update_32", "n=1024"], ["page_fault", "n=9"]]
    assert run.lines[-1] == "bench: done"


def test_commas_in_the_command_line_are_doubled() -> None:
    """QEMU separates multiboot modules by commas."""
    command = qemu_command(Path("/tmp/xen"), Path("/tmp/image"), "a,b", "", 256, 64)
    assert command[command.index("-initrd") + 1] == "/tmp/image a,,b"


def test_only_a_known_defect_of_qemu_is_corrected() -> None:
    (known,) = QEMU_DEFECTS
    other = ["not ok 2 - other", "#   got 2", "# a section"]
    lines = ["ok 1 - a", f"not ok 7 - {known}", "#   got vector 4", *other, "ok 3 - c", "# 2 passed, 2 failed"]
    corrected = ["ok 1 - a", f"ok 7 - {known}", *other, "ok 3 - c", "# 3 passed, 1 failed"]
    assert without_defects_of_qemu(lines) == corrected
    assert without_defects_of_qemu(corrected) == corrected


def test_a_hypervisor_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(XEN_PV32, raising=False)
    monkeypatch.setenv("XENTUI_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"python -m tests\.xen_pv32 builds it"):
        run_on_xen(IMAGES / "hello32")
    monkeypatch.setenv(XEN_PV32, str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "mine"))):
        fetch_xen(32)


def test_what_the_build_needs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XENTUI_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="gcc: not installed"):
        xen_pv32.build()


def test_missing_image_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-guest"):
        run_on_xen("no-such-guest")
