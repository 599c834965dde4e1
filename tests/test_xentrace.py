"""Xen's binary trace format: bytes as Xen lays them out, and Xen's own xenalyze reading whole recordings."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.command import record, run
from tests.kernels import Kernels, make_initrd
from xentui.engine.trace import Cause, Kind, Record, rings, runner
from xentui.engine.xen.abi import trace as xen
from xentui.recording.reader import Recording
from xentui.recording.xentrace import IDLE, XentraceWriter


def made(kind: int, **fields: int) -> Record:
    """A record with the fields given, the others 0."""
    return Record(**{**dict.fromkeys(Record._fields, 0), "domain": 1, "kind": kind, **fields})


def written(records: list[Record], widths: dict[int, int]) -> list[tuple[int, int | None, bytes]]:
    """What is written for some records: event, cycles, data of each of Xen's records, from within the windows."""
    out = io.BytesIO()
    writer = XentraceWriter(out, widths)
    writer.write(records)
    writer.flush()
    data, found, place = out.getvalue(), [], 0
    while place < len(data):
        head, cpu, size = (int.from_bytes(data[place + at : place + at + 4], "little") for at in (0, 4, 8))
        assert (head, cpu) == (xen.TRC_TRACE_CPU_CHANGE | 2 << 28, 0)
        place += 12
        end = place + size
        while place < end:
            head = int.from_bytes(data[place : place + 4], "little")
            place += 4
            cycles = None
            if head >> 31:
                cycles, place = int.from_bytes(data[place : place + 8], "little"), place + 8
            words = head >> 28 & 7
            found.append((head & 0xFFFFFFF, cycles, data[place : place + 4 * words]))
            place += 4 * words
        assert place == end
    return found


def words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def pv(record: Record, width: int) -> tuple[int, bytes]:
    """The PV record that one of ours becomes."""
    event, _, data = written([record], {1: width})[-1]
    return event, data


def test_layouts_of_both_widths() -> None:
    call = made(Kind.HYPERCALL, number=20, a=4, b=0xFFFF888000001000, c=2)
    assert pv(call, 64) == (0x20100D, words(20 | 0x1100000, 4, 2))
    assert pv(made(Kind.HYPERCALL, number=17, a=6), 64) == (0x20100D, words(17))
    fault = made(Kind.PAGE_FAULT, number=6, a=0xC0003ABC, rip=0xC0100000, d=rings(3, 1))
    assert pv(fault, 32) == (0x201004, words(0xC0100000, 0xC0003ABC, 6))
    assert pv(fault, 64) == (0x201104, words(0xC0100000, 0, 0xC0003ABC, 0, 6))
    trap = made(Kind.EXCEPTION, number=13, a=0x18, rip=0xC0100000)
    assert pv(trap, 32) == (0x201003, words(0xC0100000, 13 | 1 << 15 | 0x18 << 16))
    assert pv(trap._replace(number=6), 64) == (0x201103, words(0xC0100000, 0, 6))
    assert pv(made(Kind.SOFTWARE_INTERRUPT, number=0x80, rip=8), 32) == (0x201003, words(8, 0x80))
    write = made(Kind.PTE_WRITE, a=0xC0200008, d=0x1067, rip=0xC0100000)
    assert pv(write, 32) == (0x20100C, words(0x1067, 0, 0xC0200008, 0xC0100000))
    assert pv(write, 64) == (0x20110B, words(0x1067, 0, 0xC0200008, 0, 0xC0100000, 0))
    assert pv(made(Kind.IO_PORT, rip=0x1234), 64) == (0x201106, words(0x1234, 0))
    assert pv(made(Kind.GDT_LDT_FAULT, rip=0x1234, b=0x80), 32) == (0x20100A, words(0x1234, 0x80))
    assert pv(made(Kind.FPU_RESTORE), 64) == (0x201008, b"")
    assert pv(made(Kind.GRANT, number=0, c=7), 64) == (xen.TRC_MEM_PAGE_GRANT_MAP, words(7))


def test_a_call_out_of_a_multicall_bears_no_time() -> None:
    records = written([made(Kind.MULTICALL_ENTRY, number=14, time=10), made(Kind.HYPERCALL, number=13, time=10)], {})
    assert [(event, cycles) for event, cycles, _ in records[-2:]] == [(0x20200E, None), (0x20100D, 25)]


def test_runstates_follow_the_schedule() -> None:
    first, second = runner(1, 0), runner(2, 0)
    records = written(
        [
            made(Kind.SCHEDULE, time=100, b=first),
            made(Kind.HYPERCALL, time=200, number=29),
            made(Kind.BLOCK, time=300, number=Cause.BLOCK),
            made(Kind.SCHEDULE, time=310, domain=2, a=first, b=second),
            made(Kind.BLOCK, time=400, number=Cause.BLOCK, domain=2),
            made(Kind.WAKE, time=900),
            made(Kind.HYPERCALL, time=1000, number=29),  # it goes on without a switch of registers
            made(Kind.DOMAIN_SHUTDOWN, time=1100, number=0),
            made(Kind.DOMAIN_DESTROY, time=1200),
        ],
        {},
    )
    changes = [
        (event >> 8 & 3, event >> 4 & 3, int.from_bytes(data, "little"))
        for event, _, data in records
        if event & ~0xFF0 == xen.TRC_SCHED_RUNSTATE_CHANGE
    ]
    idle = IDLE << 16
    assert changes == [
        (0, 1, idle), (1, 0, first),
        (0, 2, first), (1, 0, second),
        (0, 2, second), (1, 0, idle),
        (2, 1, first),
        (0, 1, idle), (1, 0, first),
        (0, 3, first), (1, 0, idle),
    ]  # fmt: skip
    times = [cycles for _, cycles, _ in records if cycles is not None]
    assert times == sorted(times) and times[0] > 0


# --- Xen's own reader ------------------------------------------------------------------------------------------------

COMPLAINT = re.compile(
    r"strange|warning|fatal|error|unexpected|skew|short read|not (processing|updating)|unknown|\binvalid\b|lost_record",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def xenalyze(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Xen's analyzer, out of Debian's package; absent only where there is no apt, and never in CI."""
    installed = shutil.which("xenalyze")
    if installed:
        return installed
    if shutil.which("apt-get") is None and not os.environ.get("CI"):
        pytest.skip("xenalyze comes from Debian's xen-utils-common, and there is no apt here")
    folder = tmp_path_factory.mktemp("xenalyze")
    subprocess.run(["apt-get", "download", "xen-utils-common"], cwd=folder, check=True, timeout=300)
    (package,) = folder.glob("xen-utils-common*.deb")
    subprocess.run(["dpkg", "-x", package, folder / "root"], check=True, timeout=60)
    return str(folder / "root/usr/bin/xenalyze")


def analyzed(xenalyze: str, path: Path, *options: str) -> str:
    """What xenalyze prints of an exported recording, after a look at what it says beside."""
    result = subprocess.run([xenalyze, *options, path], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    complaints = [line for line in (result.stderr + result.stdout).splitlines() if COMPLAINT.search(line)]
    assert not complaints
    return result.stdout


@pytest.mark.parametrize(
    "guests", [["hello64"], ["hello32"], ["neighbour32", "neighbour64", "hello32"], ["attack64", "neighbour32"]]
)
@pytest.mark.parametrize("cpus", [1, 3])
def test_xenalyze_reads_it_without_a_complaint(xenalyze: str, tmp_path: Path, guests: list[str], cpus: int) -> None:
    recorded = tmp_path / "run.xtrace"
    record(recorded, *guests, "--input", "poweroff\\n", "--for", "1s", "--cpus", str(cpus))
    exported = tmp_path / "run.xen"
    assert run("export", str(recorded), "--format", "xentrace", "-o", str(exported)).status == 0
    summary = analyzed(xenalyze, exported, "--summary")
    dump = analyzed(xenalyze, exported, "--dump-all")
    assert "hypercall" in dump and "runstate_change" in dump
    with Recording(str(recorded)) as recording:
        kinds, numbers = recording.columns("kind"), recording.columns("number")
        domains = recording.columns("domain")
        calls = (kinds == Kind.HYPERCALL) | (kinds == Kind.MULTICALL_ENTRY)
        parts = {int(part.split()[0]): part for part in summary.split("|-- Domain ")[1:]}
        for domain in recording.domain_names():
            lines = re.findall(r"^ {4}\S+ +\[ ?(\d+)\]: +(\d+)$", parts[domain], re.MULTILINE)
            counts = {int(number): int(count) for number, count in lines}
            for number in (0, 1, 14, 17, 26, 29):  # names that have been Xen's for long
                count = int((calls & (numbers == number) & (domains == domain)).sum())
                assert counts.get(number, 0) == count, (domain, number)


@pytest.mark.kernels
@pytest.mark.slow
def test_xenalyze_reads_linux(xenalyze: str, kernels: Kernels, tmp_path: Path) -> None:
    """Debian's Linux on two vCPUs, to a shell and off."""
    options = ("--cmdline", "console=hvc0", "--memory", "256", "--vcpus", "2", "--pace", "fast")
    initrd = make_initrd(tmp_path / "initrd")
    done = record(tmp_path / "linux.xtrace", kernels.linux, "--ramdisk", initrd, *options, "--input", r"poweroff -f\n")
    assert done.status == 0, done.errors
    exported = tmp_path / "linux.xen"
    assert run("export", done.recording, "--format", "xentrace", "-o", exported).status == 0
    summary = analyzed(xenalyze, exported, "--summary")
    assert "-- v1 --" in summary and re.search(r"page_fault +\d\d", summary)
