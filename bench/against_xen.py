"""How fast the engine is beside real Xen: ``python bench/against_xen.py``.

Runs the guest ``bench64`` on Xen 4.17 under QEMU's emulation (``tests/real_xen.py``), here in the fast pace and here in
the exact pace, in turn, several times in one go, and prints the medians, the ratio (Xen's time over ours) and the ratio
to reach. Every figure is real time seen from outside, between the guest's "begin" and "end" lines, so that all three
are measured alike and the exact pace, whose own clock is virtual, is too. The time to the first line is from the start
of the process (QEMU, or Python) to the first line of ``hello64``. ``--linux`` boots Debian's kernel to ``/init`` too.

Xen runs as Debian builds it and with its defaults, page-table isolation against Meltdown included, which costs it a TLB
flush a trap; ``--xen-options xpti=no`` shows it without.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "xentui" / "guests"
sys.path.insert(0, str(ROOT))

FIRST_LINE, LINUX = "start to first line", "Linux to /init"
TARGETS = {
    "xen_version": 4.0,
    "update_va_mapping": 3.0,
    "invalid_opcode": 3.0,
    "page_fault": 3.0,
    "loop_store": 0.5,
    "loop_register": 0.5,
    FIRST_LINE: 3.0,
    LINUX: 2.5,
}
"""Xen's time over ours, fast pace, at least."""
EXACT_COST = 1.6
"""The exact pace's time over the fast one's, at most."""

Lines = list[tuple[str, float]]
"""A guest's lines, each with the seconds from the start to its end."""
Results = dict[str, list[float]]
"""Of each measurement, a figure a run: nanoseconds an operation, or seconds for the two that are not operations."""


def on_xen(image: Path, cmdline: str, options: str) -> Lines:
    """A guest's lines on real Xen."""
    from tests.real_xen import run_on_xen

    run = run_on_xen(image, cmdline, xen_options=options)
    return list(zip(run.lines, run.times, strict=True))


def here(pace: str, arguments: list[str], *, until: str | None = None) -> Lines:
    """A guest's lines on our engine, in a process of its own; raises RuntimeError with its words when that fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "xentui", "--record", f"{folder}/out.xtrace", "--pace", pace, *arguments]
        command += ["--until", until] if until else []
        lines: Lines = []
        start = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            rest, moment = b"", 0.0
            while chunk := os.read(process.stdout.fileno(), 65536):
                moment = time.perf_counter() - start
                *whole, rest = (rest + chunk).split(b"\n")
                lines += [(line.decode(errors="replace").rstrip("\r"), moment) for line in whole]
            lines += [(rest.decode(errors="replace"), moment)] if rest else []
            words = process.stderr.read().decode(errors="replace")
        if process.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: exit status {process.returncode}: {words.strip()}")
        return lines


def operations(lines: Lines) -> dict[str, float]:
    """Nanoseconds an operation of each measurement in a bench guest's output."""
    begin: dict[str, float] = {}
    spent: dict[str, float] = {}
    found: dict[str, float] = {}
    for line, moment in lines:
        if match := re.fullmatch(r"bench: (begin|end) (\w+)", line):
            if match[1] == "begin":
                begin[match[2]] = moment
            else:
                spent[match[2]] = moment - begin[match[2]]
        elif match := re.match(r"bench: (\w+) \d+ ns n=(\d+)", line):
            found[match[1]] = spent[match[1]] * 1e9 / int(match[2])
    if "bench: done" not in [line for line, _ in lines]:
        raise RuntimeError("the bench guest did not come to its end:\n" + "\n".join(line for line, _ in lines[-5:]))
    return found


def first_line(lines: Lines) -> float:
    """Seconds to the first line of the guest."""
    if not lines or not lines[0][0].startswith("Hello from"):
        raise RuntimeError(f"hello64 did not say hello: {lines[:1]}")
    return lines[0][1]


def add(results: Results, figures: dict[str, float]) -> None:
    """Append one run's figures."""
    for name, figure in figures.items():
        results.setdefault(name, []).append(figure)


def progress(text: str) -> None:
    """Say what is going on, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def measure(runs: int, scale: int, options: str) -> dict[str, Results]:
    """Xen, fast and exact, in turn, `runs` times."""
    ways: dict[str, Callable[[str, str], Lines]] = {
        "Xen": lambda name, cmdline: on_xen(IMAGES / name, cmdline, options),
        "fast": lambda name, cmdline: here("fast", [name, "--cmdline", cmdline]),
        "exact": lambda name, cmdline: here("exact", [name, "--cmdline", cmdline]),
    }
    results: dict[str, Results] = {way: {} for way in ways}
    for number in range(1, runs + 1):
        for way, run in ways.items():
            progress(f"run {number} of {runs}: {way}")
            add(results[way], operations(run("bench64", f"scale={scale}")))
            add(results[way], {FIRST_LINE: first_line(run("hello64", "run=poweroff"))})
    return results


def measure_linux(results: dict[str, Results], runs: int, options: str) -> None:
    """Debian's Linux to its /init, in turn; the kernel is fetched on first use."""
    from tests.kernels import POWEROFF_INIT, REACHED, fetch_kernels, make_initrd
    from tests.real_xen import run_on_xen

    kernel = fetch_kernels().linux
    with tempfile.TemporaryDirectory() as folder:
        disk = make_initrd(Path(folder) / "initrd.gz", POWEROFF_INIT)
        arguments = [str(kernel), "--ramdisk", str(disk), "--cmdline", "console=hvc0", "--memory", "512"]
        for number in range(1, runs + 1):
            progress(f"Linux, run {number} of {runs}")
            xen = run_on_xen(
                kernel, "console=hvc0", until=REACHED, ramdisk=disk, xen_options=f"cet=no {options}",
                memory=1024, dom0_memory=512, timeout=300,
            )  # fmt: skip
            add(results["Xen"], {LINUX: init_reached(list(zip(xen.lines, xen.times, strict=True)))})
            for pace in ("fast", "exact"):
                add(results[pace], {LINUX: init_reached(here(pace, arguments, until=REACHED))})


def init_reached(lines: Lines) -> float:
    """Seconds to Linux's /init."""
    from tests.kernels import REACHED

    for line, moment in lines:
        if REACHED in line:
            return moment
    raise RuntimeError("Linux did not reach /init:\n" + "\n".join(line for line, _ in lines[-5:]))


def written(name: str, figure: float) -> str:
    """A figure with its unit."""
    if name in (FIRST_LINE, LINUX):
        return f"{figure:9.2f} s "
    return f"{figure / 1000:9.2f} µs" if figure >= 1000 else f"{figure:9.2f} ns"


def report(results: dict[str, Results], runs: int) -> bool:
    """Print the table; whether every target was reached."""
    reached = True
    print(
        f"{'medians of ' + str(runs):22} {'Xen, TCG':>12} {'fast pace':>12} {'exact pace':>12} {'Xen/fast':>9}  target"
    )
    costs: list[float] = []
    for name in results["Xen"]:
        xen, fast, exact = (statistics.median(results[way][name]) for way in ("Xen", "fast", "exact"))
        ratio, target = xen / fast, TARGETS.get(name)
        verdict = "" if target is None else f">= {target} {'reached' if ratio >= target else 'MISSED'}"
        reached &= target is None or ratio >= target
        figures = " ".join(written(name, figure) for figure in (xen, fast, exact))
        print(f"{name:22} {figures} {ratio:9.2f}  {verdict}")
        costs.append(exact / fast)
    cost = statistics.mean(costs)
    verdict = "reached" if cost <= EXACT_COST else "MISSED"
    print(f"exact over fast: {cost:.2f} on average, at most {EXACT_COST}: {verdict}")
    return reached and cost <= EXACT_COST


def main() -> int:
    """Measure and print; exit status 1 with --check when a target is missed, 2 when something cannot run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--scale", type=int, default=10, help="iterations, in tenths of the usual number (default 10)")
    parser.add_argument("--linux", type=int, default=0, metavar="RUNS", help="boot Linux to /init too, so many times")
    parser.add_argument("--xen-options", default="", metavar="TEXT", help="more of Xen's command line")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a target is missed")
    options = parser.parse_args()
    if options.runs < 1 or options.scale < 1 or options.linux < 0:
        parser.error("--runs and --scale must be at least 1, --linux at least 0")
    try:
        results = measure(options.runs, options.scale, options.xen_options)
        if options.linux:
            measure_linux(results, options.linux, options.xen_options)
    except (OSError, RuntimeError) as error:
        print(f"against_xen: {error}", file=sys.stderr)
        return 2
    progress("")
    reached = report(results, options.runs)
    return 0 if reached or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
