"""`--audit`: the frame table is recounted after every slice, and a difference ends the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import record
from tests.fakes import P, U, W, make_guest, make_hypervisor
from xentui.cli import run
from xentui.config import resolve_guest
from xentui.engine.dom0.toolstack import Toolstack
from xentui.engine.machine import Machine, Stop
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain import Domain
from xentui.engine.xen.page import L1, PINNED
from xentui.recording.reader import Recording


@pytest.mark.parametrize("guest", ["hello32", "hello64", "selftest64"])
def test_runs_are_audited_and_nothing_is_found(xtrace: Path, guest: str) -> None:
    options = ("--memory", "16", "--input", r"help\npoweroff\n", "--for", "15ms" if guest == "selftest64" else "60s")
    plain = record(xtrace.with_suffix(".plain"), guest, *options)
    done = record(xtrace, guest, "--audit", *options)
    assert (done.status, done.console, done.errors) == (plain.status, plain.console, plain.errors)
    with done.read() as recording, plain.read() as other:
        assert recording.summary is not None and other.summary is not None and len(recording) == len(other)
        audited = recording.summary.pop("audit")
        assert audited["findings"] == [] and audited["audits"] > 1
        assert recording.summary == other.summary and "audit" not in other.summary


def test_a_count_that_is_wrong_ends_the_run() -> None:
    machine = Machine(64)
    domain = machine.create(resolve_guest("hello64"))
    machine.audited = True
    assert machine.run(1_000) == Stop.TIME and machine.findings == []
    count = machine.audits
    machine.hv.frames.ref_count[domain.console_frame] += 1
    assert machine.run() == Stop.AUDIT
    assert machine.audits == count + 1
    (finding,) = machine.findings
    assert finding.startswith(f"mfn {domain.console_frame:#x} (d1, ") and "the walk finds" in finding
    machine.close()


def test_the_command_tells_what_the_audit_found(
    xtrace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    create = Toolstack.create

    def broken(self: Toolstack, spec: object) -> Domain:
        domain = create(self, spec)  # type: ignore[arg-type]
        domain.hv.frames.type_count[domain.vcpus[0].guest_table] += 1
        return domain

    monkeypatch.setattr(Toolstack, "create", broken)
    assert run(["--record", str(xtrace), "hello64", "--memory", "16", "--audit"]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "audit" in line]
    with Recording(str(xtrace)) as recording:
        assert recording.complete and recording.summary is not None
        assert recording.summary["reason"] == "audit"
        (finding,) = recording.summary["audit"]["findings"]
    assert line == f"xentui: audit: {finding}" and "uses as L4" in finding


@pytest.mark.parametrize("width", [32, 64])
def test_entries_that_nobody_checked_are_found(width: int) -> None:
    """What a guest writes past the hypervisor into its L1, each with its own words."""
    guest = make_guest(make_hypervisor(), 1, width)
    hv, table = guest.hv, guest.tables["l1"]
    assert audit(hv) == []
    cases = {
        (1 << 39 | P | W | U): "no memory",
        (1 << 12 | P | U): "maps mfn 0x1 (the hypervisor's",
        (table << 12 | P | W | U): "maps writable mfn",
        (guest.p2m[50] << 12 | P | U | 1 << 7): "forbidden flags",
    }
    for entry, words in cases.items():
        hv.ram64[(table << 9) + 200] = entry
        assert any(words in finding and "slot 200" in finding for finding in audit(hv)), words
    hv.ram64[(table << 9) + 200] = guest.p2m[50] << 12 | P
    assert any("lacks the bits" in finding for finding in audit(hv)) == (width == 64)
    hv.ram64[(table << 9) + 200] = 0
    assert audit(hv) == []


def test_rows_that_contradict_themselves_are_found() -> None:
    hv = make_hypervisor()
    guest, frames = make_guest(hv, 1, 64), hv.frames
    plain = guest.p2m[50]
    frames.flags[plain] |= PINNED
    assert any("pinned" in finding for finding in audit(hv))
    frames.flags[plain] &= ~PINNED
    frames.type[1] = L1
    assert any("has a type or flags" in finding for finding in audit(hv))
    frames.type[1] = 0
    free = frames.allocate(1, 1)[0]
    frames.free(free, hv.ram)
    frames.ref_count[free] = 1
    assert any("free, with references" in finding for finding in audit(hv))
    frames.ref_count[free] = 0
    assert audit(hv) == []
