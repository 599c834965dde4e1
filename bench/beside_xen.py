"""What the benchmarks that compare with real Xen share: one guest, on Xen 4.17 under QEMU's emulation and here.

A host's speed changes by the second, by more than what is to be told apart. So the two sides of a ratio are measured
within a tenth of a second, in rounds: `rounds` keeps one ``bench64`` running on Xen, one here in the fast pace and one
in the exact pace. Each blocks, and costs nothing, until a line typed into its console asks for a measurement; then it
alone works. A ratio is made of the two figures of one round, and of the ratios of the rounds the median is told. What
other programs take of the host is left out, as far as its kernel tells it (/proc/PID/task/TID/schedstat): a time is
real time without that in which the thread that does the work stood in line for a processor.
"""

from __future__ import annotations

import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "xentui" / "guests"
sys.path.insert(0, str(ROOT))

WAYS = ("Xen", "fast", "exact")
SAMPLE_SECONDS = 0.05
"""How long one measurement takes, about. What is not the measurement's own in it, two lines, takes 0.00006 at most."""
ROUNDS = 10
"""Of a measurement, one behind the other, in each run."""
PATIENCE = 120.0
"""Seconds of real time within which a guest must print something."""
WARM_UPDATES = 80_000
"""Twice as many updates as are done one by one before numpy is loaded (vector.py): 38,400."""

Lines = list[tuple[str, float]]
"""A guest's lines, each with the seconds from the start to its end."""
Results = dict[str, list[float]]
"""Of each measurement, a figure a run: nanoseconds an operation, or seconds for the two that are not operations."""


# --- a guest's whole run --------------------------------------------------------------------------------------------


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


# --- a measurement at a time ----------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """What one measurement gave."""

    seconds: float
    """Real time between the guest's "begin" and "end" lines, seen from outside, without what others had of it."""
    count: int
    """Operations."""

    @property
    def ns(self) -> float:
        """Nanoseconds an operation."""
        return self.seconds * 1e9 / self.count


Threads = dict[str, tuple[int, int]]
"""Of each thread: nanoseconds on a processor, and nanoseconds that it has waited for one."""


def held_up(before: Threads, after: Threads) -> float:
    """Seconds that the thread which has done the work in between has waited for a processor, because others had it."""
    spent = []
    for name, (ran, waited) in after.items():
        old_ran, old_waited = before.get(name, (0, 0))
        spent.append((ran - old_ran, waited - old_waited))
    return max(spent)[1] / 1e9 if spent else 0.0


class Console:
    """A process whose stdin and stdout are a guest's console."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.name = name
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self._output, self._read_at = b"", 0.0

    def type(self, line: str) -> None:
        """Type a line."""
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), line.encode() + b"\n")

    def wait(self, pattern: bytes) -> tuple[float, re.Match[bytes]]:
        """Read until a line has come that matches; when it was read. What was printed up to there is done with.

        Raises RuntimeError, with the last of what was printed, when the process ends before, or says nothing.
        """
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while not (match := re.search(pattern, self._output)):
            ready = select.select([pipe], [], [], PATIENCE)[0]
            chunk = os.read(pipe, 65536) if ready else b""
            self._read_at = time.perf_counter()
            if not chunk:
                why = "ended" if ready else f"has said nothing for {PATIENCE:.0f} s"
                words = self._output[-2000:].decode(errors="replace")
                raise RuntimeError(f"the guest on {self.name} {why}; last output:\n{words}")
            self._output += chunk
            if b"(XEN) " in self._output:  # the hypervisor's own lines may come in the middle of the guest's
                self._output = re.sub(rb"\(XEN\) [^\n]*\n", b"", self._output)
        self._output = self._output[match.end() :]
        return self._read_at, match

    def threads(self) -> Threads:
        """How its threads have fared up to now; those that the host's kernel does not tell are left out."""
        threads: Threads = {}
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(OSError):
                ran, waited, _ = (thread / "schedstat").read_text().split()
                threads[thread.name] = int(ran), int(waited)
        return threads

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class SteppedGuest(Console):
    """A ``bench64`` that does one measurement a typed line."""

    def sample(self, name: str, count: int = 0) -> Sample:
        """Do one measurement now, of about so many operations, or of the usual number."""
        while not (sample := self._sample(name, count)).seconds:
            continue  # we were held up for so long that both lines were read at once
        return sample

    def _sample(self, name: str, count: int) -> Sample:
        self.type(f"{name} {count}" if count else name)
        begin, _ = self.wait(rb"bench: begin %s\r*\n" % name.encode())
        before = self.threads()
        end, _ = self.wait(rb"bench: end %s\r*\n" % name.encode())
        waited = held_up(before, self.threads())
        _, found = self.wait(rb"bench: %s \d+ ns n=(\d+) [^\n]*\n" % name.encode())
        return Sample(max(0.0, end - begin - waited), int(found[1]))


@contextmanager
def stepped_guests(options: str) -> Iterator[dict[str, SteppedGuest]]:
    """One waiting guest on Xen, with more of its command line, and one here for each pace."""
    from tests.real_xen import start_command

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        commands = {"Xen": stack.enter_context(start_command(IMAGES / "bench64", "step=1", xen_options=options))}
        for pace in ("fast", "exact"):
            commands[pace] = [sys.executable, "bench/stepped_guest.py", pace, f"{folder}/{pace}.xtrace"]
        guests = {}
        for way in WAYS:
            guests[way] = SteppedGuest(commands[way], way)
            stack.callback(guests[way].close)
            guests[way].wait(rb"bench64 on [^\n]*\n")
        yield guests


def rounds(names: Sequence[str], runs: int, scale: int, options: str) -> dict[str, Results]:
    """Nanoseconds an operation of each measurement, on Xen, here fast and here exact, a figure a round.

    A run is all measurements one after the other, `ROUNDS` rounds of each. Every other round goes the other way round:
    a host that slows down or speeds up steadily favours neither side. Before, each is done once on all three, so that
    translated code, caches and, here, numpy are at work, and that it is known how often it is done in the time of a
    sample, which is `scale` tenths of the usual one.
    """
    results: dict[str, Results] = {way: {} for way in WAYS}
    with stepped_guests(options) as guests:
        for guest in guests.values():
            guest.sample("mmu_update_512", WARM_UPDATES)
        counts: dict[tuple[str, str], int] = {}
        for name in names:
            progress(f"{name}: warming up")
            for way in WAYS:
                warm = guests[way].sample(name)
                counts[way, name] = max(1, round(warm.count * SAMPLE_SECONDS * scale / 10 / warm.seconds))
        for turn, (run, name, number) in enumerate(product(range(runs), names, range(ROUNDS))):
            progress(f"run {run + 1} of {runs}: {name}, round {number + 1} of {ROUNDS}")
            for way in WAYS[::-1] if turn & 1 else WAYS:
                add(results[way], {name: guests[way].sample(name, counts[way, name]).ns})
    progress("")
    return results


# --- telling --------------------------------------------------------------------------------------------------------


def add(results: Results, figures: Mapping[str, float]) -> None:
    """Append one run's figures."""
    for name, figure in figures.items():
        results.setdefault(name, []).append(figure)


def progress(text: str) -> None:
    """Say what is going on, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Of each round, one side's figure over the other's."""
    return [above / below for above, below in zip(over, under, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def written(figure: float, seconds: bool = False) -> str:
    """A figure with its unit; it is in ns, or in seconds."""
    if seconds:
        return f"{figure:9.2f} s "
    return f"{figure / 1000:9.2f} µs" if figure >= 1000 else f"{figure:9.2f} ns"


def report_ratios(results: dict[str, Results], targets: Mapping[str, float], in_seconds: Sequence[str] = ()) -> bool:
    """Print the table: each side's median, and the median and quartiles of the rounds' ratios, and last how far these
    lie apart. Are all targets reached?
    """
    reached = True
    sides = f"{'Xen, TCG':>12} {'fast pace':>12} {'exact pace':>12}"
    print(f"{'medians':22} {sides} {'Xen/fast':>9} {'quartiles':>15}  target")
    spreads: dict[str, float] = {}
    for name, of_xen in results["Xen"].items():
        low, ratio, high = quartiles(ratios(of_xen, results["fast"][name]))
        spreads[name] = (high - low) / ratio
        target = targets.get(name)
        verdict = "" if target is None else f">= {target} {'reached' if ratio >= target else 'MISSED'}"
        reached &= target is None or ratio >= target
        figures = " ".join(written(statistics.median(results[way][name]), name in in_seconds) for way in WAYS)
        print(f"{name:22} {figures} {ratio:9.2f} {f'{low:.2f} to {high:.2f}':>15}  {verdict}".rstrip())
    counts = " or ".join(str(count) for count in sorted({len(figures) for figures in results["Xen"].values()}))
    usual, widest = statistics.median(spreads.values()), max(spreads, key=lambda name: spreads[name])
    print(
        f"{counts} rounds; from quartile to quartile a ratio spans {usual:.0%} of itself, in the median of the lines,"
    )
    print(f"and {spreads[widest]:.0%} at most ({widest})")
    return reached
