"""Our guests as unprivileged domains of real Xen, made by ``xl``, and the same guests here."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.real_xen_domu import run_whole, without_lawful_differences

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "xentui" / "guests"
EXPECTED = ROOT / "tests" / "expected" / "selftest64.tap"
HELLO = "run=layout,poweroff"

pytestmark = [pytest.mark.slow, pytest.mark.kernels]


@cache
def consoles() -> dict[str, list[str]]:
    """What the guests said, all in one boot."""
    guests = {"hello": (IMAGES / "hello64", HELLO), "selftest": (IMAGES / "selftest64", "")}
    return run_whole(guests, {"hello": "Goodbye|poweroff", "selftest": r"^# \d+ passed"})


def test_selftest() -> None:
    assert consoles()["selftest"] == EXPECTED.read_text().splitlines()


def test_the_builder_makes_the_same_domain(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xentui", "--record", str(tmp_path / "x.xtrace"), "--cmdline", HELLO, "hello64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
    here = done.stdout.replace("\r", "").splitlines()
    there = consoles()["hello"]
    assert any("padding" in line for line in there)
    assert without_lawful_differences(here) == without_lawful_differences(there)
