"""Our 32-bit guests on a real Xen with 32-bit PV, as domain 0 and as unprivileged domains, and the same guests here.

The hypervisor is the one that ``$XENTUI_XEN_PV32`` names, or that ``python -m tests.xen_pv32`` has built. In CI it is
built; elsewhere, where there is none, these tests are skipped. All are in one file, so that one process waits for it.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from tests import xen_pv32
from tests.command import record
from tests.real_xen import XEN_PV32, fetch_xen, run_on_xen, without_defects_of_qemu
from tests.real_xen_domu import run_whole, without_lawful_differences

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "xentui" / "guests"
EXPECTED = ROOT / "tests" / "expected"
HELLO = "run=layout,poweroff"

pytestmark = [pytest.mark.slow, pytest.mark.kernels]


@pytest.fixture(scope="module", autouse=True)
def hypervisor() -> Path:
    """Real Xen with 32-bit PV; in CI it is built, and that must succeed."""
    if os.environ.get("CI") == "true" and XEN_PV32 not in os.environ:
        return xen_pv32.build()
    try:
        return fetch_xen(32)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@cache
def domus() -> dict[str, list[str]]:
    """What the guests say as unprivileged domains, all in one boot."""
    guests = {name: (IMAGES / f"{name}32", "") for name in ("selftest", "attack", "neighbour")}
    endings = {"hello": "Goodbye", "selftest": r"^# \d+ passed", "attack": r"^# \d+ attempts", "neighbour": "."}
    return run_whole({"hello": (IMAGES / "hello32", HELLO), **guests}, endings)


def expected(name: str) -> list[str]:
    return (EXPECTED / f"{name}.tap").read_text().splitlines()


def test_selftest_as_domain_0() -> None:
    run = run_on_xen(IMAGES / "selftest32")
    assert without_defects_of_qemu(run.lines) == expected("selftest32")
    assert run.ending == "halted"


def test_selftest() -> None:
    assert without_defects_of_qemu(domus()["selftest"]) == expected("selftest32")


def test_every_attack_ends_as_here() -> None:
    assert domus()["attack"] == expected("attack32")


def test_the_neighbour() -> None:
    assert domus()["neighbour"] == ["neighbour: undisturbed, 400 rounds"]


def test_the_builder_makes_the_same_domain(xtrace: Path) -> None:
    here = record(xtrace, "--cmdline", HELLO, "hello32").lines
    there = domus()["hello"]
    assert any("padding" in line for line in there)
    assert without_lawful_differences(here) == without_lawful_differences(there)


@pytest.mark.parametrize(("command", "ending"), [("reboot", "shutdown"), ("crash", "crashed")])
def test_hello_ends_as_told(command: str, ending: str) -> None:
    assert run_on_xen(IMAGES / "hello32", f"run={command}").ending == ending


def test_bench_runs() -> None:
    run = run_on_xen(IMAGES / "bench32", "scale=1")
    begun = [line.removeprefix("bench: begin ") for line in run.lines if line.startswith("bench: begin ")]
    measured = [line.split()[1] for line in run.lines if " ns n=" in line]
    assert begun == measured
    assert {"xen_version", "update_va_mapping", "invalid_opcode", "page_fault", "int80", "loop_store"} <= set(begun)
    assert "bench: done" in run.lines
