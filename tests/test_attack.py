"""The attack guest: every way out of its domain is refused, as real Xen refuses it; who runs beside it sees nothing.

`tests/expected/attack64.tap` is what real Xen 4.17 answers to an unprivileged domain.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.command import record
from tests.real_xen_domu import run_whole

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "xentui" / "guests"
EXPECTED = {bits: ROOT / "tests" / "expected" / f"attack{bits}.tap" for bits in (32, 64)}
UNDISTURBED = "neighbour: undisturbed, 400 rounds"

both_widths = pytest.mark.parametrize("bits", [32, 64])


def expected(bits: int) -> list[str]:
    """The lines that the guest of this width is to print."""
    return EXPECTED[bits].read_text().splitlines()


@both_widths
def test_none_of_the_expected_attempts_breaks_out(bits: int) -> None:
    lines = expected(bits)
    attempts = [line for line in lines if not line.startswith("#")]
    plan = attempts.pop()
    assert plan == f"1..{len(attempts)}"
    assert lines[-1] == f"# {len(attempts)} attempts, 0 broke out"
    for number, line in enumerate(attempts, 1):
        assert re.match(rf"ok {number} - \S+( \(XSA-\d+(, \d+)*\))?: (refused|stopped|made harmless)", line), line


@both_widths
def test_names_are_different(bits: int) -> None:
    names = [line.split()[3].rstrip(":") for line in expected(bits) if line.startswith("ok ")]
    assert len(set(names)) == len(names)


@both_widths
@pytest.mark.parametrize("pace", ["exact", "fast"])
def test_the_same_verdicts_as_real_xen(xtrace: Path, bits: int, pace: str) -> None:
    done = record(xtrace, "--vcpus", "2", "--pace", pace, f"attack{bits}")
    assert done.lines == expected(bits), done.errors
    assert done.status == 0


@both_widths
def test_a_neighbour_is_undisturbed(xtrace: Path, bits: int) -> None:
    done = record(xtrace, "--vcpus", "2", f"attack{bits}", f"neighbour{bits}")
    assert [line for line in done.lines if line.startswith("attack")] == [
        f"attack{bits}: {line}" for line in expected(bits)
    ]
    # the last of all: it ran as long as the attacks did
    assert done.lines[-1] == f"neighbour{bits}: {UNDISTURBED}"
    assert done.status == 0


def test_a_neighbour_of_the_other_width(xtrace: Path) -> None:
    done = record(xtrace, "neighbour32", "attack64")
    assert f"neighbour32: {UNDISTURBED}" in done.lines
    assert done.lines[-1] == f"neighbour32: {UNDISTURBED}"
    assert [line for line in done.lines if line.startswith("attack64: not ok")] == []
    assert done.status == 0


@both_widths
def test_list_names_the_attempts(xtrace: Path, bits: int) -> None:
    done = record(xtrace, "--cmdline", "list", f"attack{bits}")
    wanted = [re.match(r"ok \d+ - (\S+?)( \(.*?\))?: ", line) for line in expected(bits) if line.startswith("ok ")]
    assert done.lines == [match[1] + (match[2] or "") for match in wanted if match]


def test_one_attempt_alone(xtrace: Path) -> None:
    done = record(xtrace, "--cmdline", "only=superpage-flag-in-L2", "attack64")
    assert done.lines == [
        "# attack64",
        "ok 1 - superpage-flag-in-L2 (XSA-148): refused with -EINVAL",
        "1..1",
        "# 1 attempts, 0 broke out",
    ]


def test_an_attempt_that_there_is_not(xtrace: Path) -> None:
    done = record(xtrace, "--cmdline", "only=nothing", "attack32")
    assert '# no attempt is named nothing; "list" on the command line names them all' in done.lines
    assert "1..0" in done.lines


@cache
def on_real_xen() -> dict[str, list[str]]:
    """What the guests say as unprivileged domains of real Xen, in one boot."""
    guests = {name: (IMAGES / f"{name}64", "") for name in ("attack", "neighbour")}
    return run_whole(guests, {"attack": r"^# \d+ attempts", "neighbour": "."})


@pytest.mark.slow
@pytest.mark.kernels
def test_real_xen_refuses_them_all() -> None:
    assert on_real_xen()["attack"] == expected(64)


@pytest.mark.slow
@pytest.mark.kernels
def test_the_neighbour_on_real_xen() -> None:
    assert on_real_xen()["neighbour"] == [UNDISTURBED]
