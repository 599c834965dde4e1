"""Real PV kernels that nobody here wrote: Debian's GRUB, GNU Mach and Linux, through the real command."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.command import Done, record
from tests.kernels import REACHED, Kernels, recompress_bzimage
from xentui.recording.format import OUT

pytestmark = [pytest.mark.kernels, pytest.mark.slow]

TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What GRUB and busybox say to the terminal: cursor moves, colours, questions."""
TROUBLE = re.compile(r"WARNING:|Oops|BUG:|Call Trace|Kernel panic|general protection|unchecked MSR|rcu:.*stall")
"""What no good kernel says."""
PACES = ("exact", "fast")


# --- GRUB -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grub(kernels: Kernels, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Done]:
    """A function that runs GRUB of a width in a pace, once, with commands typed at its prompt."""
    folder = tmp_path_factory.mktemp("grub")
    images = {32: kernels.grub32, 64: kernels.grub64}

    @cache
    def boot(width: int, pace: str) -> Done:
        typed = ("--prompt", "grub> $", "--input", r"help\nls\nset\nhalt\n")
        return record(folder / f"{width}{pace}.xtrace", images[width], "--pace", pace, *typed)

    return boot


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize(("width", "cpu"), [(32, "i386"), (64, "x86_64")])
def test_grub_answers_commands(grub: Callable[[int, str], Done], width: int, cpu: str, pace: str) -> None:
    done = grub(width, pace)
    console = TERMINAL.sub("", done.console)
    assert "GNU GRUB" in console
    assert console.count("grub> ") >= 4
    assert re.search(r"^halt", console, re.M), "help lists the commands"
    assert "(memdisk) (proc)" in console, "ls lists the devices"
    assert f"grub_cpu={cpu}" in console and "grub_platform=xen" in console
    assert done.status == 0, done.errors
    assert re.search(r"^\(XEN\) grub-\S+: poweroff$", done.errors, re.M)
    assert "not implemented" not in done.errors


# --- GNU Mach -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "reason"), [(32, 128), (64, 252)])
def test_mach_comes_as_far_as_on_real_xen(kernels: Kernels, xtrace: Path, width: int, reason: int) -> None:
    """Debian 12's GNU Mach for Xen stores to a level-2 table of its own, for which Xen has no emulation, and panics
    before it has a console. It shuts down with the old sched_op and a pointer where that takes the reason. Real Xen
    4.17 as its host (an `xl create`d domU; with CONFIG_PV32 for the 32-bit image) reports the same reason codes, and
    empty consoles too.
    """
    done = record(xtrace, {32: kernels.mach32, 64: kernels.mach64}[width])
    assert done.console == ""
    assert done.errors.splitlines()[-1] == f"(XEN) gnumach-1.8-xen-486: code {reason}"
    assert done.status == 0, "it has shut down by itself"


@pytest.mark.parametrize(("width", "platform"), [(32, "xen-3.0-x86_32p"), (64, "xen-3.0-x86_64")])
def test_mach_prints_its_banner_and_misses_its_modules(
    kernels: Kernels, xtrace: Path, width: int, platform: str
) -> None:
    """Without the validator a kernel's stores to its tables of any level are carried out, Mach's to its L2 too."""
    done = record(xtrace, {32: kernels.mach32, 64: kernels.mach64}[width], "--no-validator", "gnumach-1.8-xen-486")
    assert done.lines[:2] == ["GNU Mach 1.8+git20221224-xen-486", f"Running on {platform}."]
    assert "biosmem: physical memory map:" in done.lines
    assert done.lines[-1].endswith("bootstrap_create: No bootstrap code loaded with the kernel!")
    assert done.status == 0, "it has shut down by itself"


# --- Linux ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", PACES)
def test_linux_answers_in_a_shell(linux_shell: Callable[[str], Done], pace: str) -> None:
    done = linux_shell(pace)
    console = TERMINAL.sub("", done.console)
    assert done.status == 0, console[-2000:] + done.errors
    assert REACHED in done.lines
    at = console.index("BusyBox v1.")
    shell = console[at:]
    assert re.search(r"^Linux \(none\) 6\.1\.0-\d+-amd64 #1 SMP .* x86_64 GNU/Linux$", shell, re.M)
    assert re.search(r"^processor\t: 0$", shell, re.M) and re.search(r"^model name\t: xentui", shell, re.M)
    assert re.search(r"^flags\t\t: .*\bhypervisor\b", shell, re.M)
    assert re.search(r"^bin +dev +init +proc +root +sys +tmp$", shell, re.M)
    squares = [str(i * i) for i in range(1, 9)]
    assert "\n".join(squares) in shell, "fork and exec"
    assert re.search(r"^1$", shell.split("dmesg", 1)[1], re.M), "Xen is in its log once"
    assert "(XEN) vmlinuz-" in done.errors and ": poweroff" in done.errors


@pytest.mark.parametrize("pace", PACES)
def test_linux_has_nothing_to_complain_of(linux_shell: Callable[[str], Done], pace: str) -> None:
    done = linux_shell(pace)
    assert [line for line in done.lines if TROUBLE.search(line)] == []
    for line in (
        "Booting kernel on Xen",
        "Hypervisor detected: Xen PV",
        "Xen version: 4.17",
        "xen:events: Using FIFO-based ABI",
    ):
        assert line in done.console
    assert re.search(r"clocksource: Switched to clocksource xen", done.console)


def test_linux_asks_for_nothing_unknown_but_its_profiler(linux_shell: Callable[[str], Done]) -> None:
    """xenpmu_op: Xen without `vpmu` on its command line has none either."""
    listed = re.findall(r"^xentui: vmlinuz\S+: not implemented.*: (.*)$", linux_shell("exact").errors, re.M)
    assert [re.sub(r" \(\d+x\)", "", calls) for calls in listed] in ([], ["xenpmu_op"])


def test_linux_time_is_plausible(linux_shell: Callable[[str], Done]) -> None:
    """The kernel's own clock and the recording's agree to a tenth of a second, from the first line to the last."""
    done = linux_shell("exact")
    with done.read() as recording:
        text = b"".join(piece.data for piece in recording.console(domain=1) if piece.direction == OUT)
        assert text.decode(errors="replace").replace("\r", "") == done.console
        assert recording.summary is not None
        stamps = [float(stamp) for stamp in re.findall(r"^\[ *(\d+\.\d{6})\] ", done.console, re.M)]
        assert len(stamps) > 100
        assert stamps == sorted(stamps)
        assert abs(recording.summary["virtual_ns"] / 1e9 - stamps[-1]) < 0.5


@pytest.mark.parametrize(("vcpus", "cpus", "pace"), [(2, 1, "fast"), (4, 1, "fast"), (4, 4, "fast"), (2, 2, "exact")])
def test_linux_on_several_vcpus(
    kernels: Kernels, shell_initrd: Path, xtrace: Path, vcpus: int, cpus: int, pace: str
) -> None:
    options = ["--ramdisk", shell_initrd, "--cmdline", "console=hvc0", "--memory", "256", "--vcpus", str(vcpus)]
    options += ["--cpus", str(cpus), "--pace", pace]
    done = record(xtrace, kernels.linux, *options, "--input", r"nproc\npoweroff\n")
    assert done.status == 0, done.console[-2000:] + done.errors
    assert f"smp: Brought up 1 node, {vcpus} CPUs" in done.console
    assert re.search(rf"nproc\n{vcpus}\n", TERMINAL.sub("", done.console))
    # Linux says this of every PV domain's second vCPU: there are no local APICs
    told = [line for line in done.lines if TROUBLE.search(line) and "APIC id mismatch" not in line]
    assert told == []


def test_linux_without_the_validator(kernels: Kernels, poweroff_initrd: Path, xtrace: Path) -> None:
    """Frames that were page tables are user memory later, shared until it is written to: nobody mistakes them."""
    options = ("--ramdisk", poweroff_initrd, "--cmdline", "console=hvc0", "--memory", "256", "--pace", "fast")
    done = record(xtrace, kernels.linux, *options, "--no-validator", kernels.linux.name)
    assert done.status == 0, done.console[-2000:] + done.errors
    assert "segfault" not in done.console


def test_linux_without_a_root_panics(kernels: Kernels, xtrace: Path) -> None:
    """A crash by the guest's own will: exit status 1, and its last words."""
    done = record(xtrace, kernels.linux, "--cmdline", "console=hvc0", "--memory", "256", "--pace", "fast")
    assert "Kernel panic - not syncing: VFS: Unable to mount root fs" in done.console
    assert done.status == 1
    assert re.search(r"^\(XEN\) vmlinuz\S+: crash", done.errors, re.M)


@pytest.mark.parametrize("method", ["gzip", "zstd", "lzma", "lz4"])
def test_linux_from_other_payloads(kernels: Kernels, tmp_path: Path, xtrace: Path, method: str) -> None:
    """Debian packs with xz; these are the others that distributions use."""
    image = recompress_bzimage(kernels.linux, tmp_path / "vmlinuz", method)
    done = record(xtrace, image, "--cmdline", "console=hvc0", "--until", r"Linux version 6\.1\.0-.*\n")
    assert done.status == 0, done.errors
    assert re.search(r"Linux version 6\.1\.0-\d+-amd64", done.console)
