"""What it costs to have many domains, and to go between them: ``python bench/switches.py``.

Alone, in processor time of this process: a null hypercall in both paces beside the bare trap; a context switch; 128
blocked domains beside one that computes, which should cost nothing; 128 that all compute, whose work together should be
at least 90 % of what one does.

`--xen` besides: an event from its sending to the upcall and back; one to another vCPU, blocked until it comes, and the
answer, with a context switch each way; how late a timer wakes a sleeping guest: here in both paces and on Xen 4.17
under QEMU's emulation in turn, on one processor. `--linux` a fork and exec of busybox under Debian's kernel (at least
as fast as on Xen). All guests there are domain 0.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.beside_xen import IMAGES, Lines, Results, add, here, on_xen, operations, progress
from bench.loads import MS, Loads
from bench.trap_cost import bare_round_trip, null_hypercall
from xentui.engine.xen.sched.credit import SLICE

DOMAINS = 128
BUSY_TARGET = 0.9
BLOCKED_TARGET = 1.02
"""What "no measurable time" is: within the noise of two runs of the same."""
SWITCH_PART = 100 * MS
"""Virtual time for which two domains run with many switches, and with few."""
FEW, OFTEN = 20 * MS, MS // 5
"""Context-switch allowances of bvt for that, in nanoseconds."""
FORK_TARGET = 1.0
FORKS = 200
FORK_EXEC, EVENT, TIMER = "fork and exec of busybox", "event to upcall and back", "woken late by a timer"
VCPU = "event to a vCPU and back"
_BEGIN, _END = "switches: begin", "switches: end"


# --- alone ---------------------------------------------------------------------------------------------------------


def traps(runs: int) -> None:
    """The null hypercall, and the bare trap that it cannot do without."""
    figures: dict[str, list[float]] = {"bare": [], "fast": [], "exact": []}
    for number in range(runs):
        progress(f"traps, run {number + 1} of {runs}")
        figures["bare"].append(bare_round_trip())
        for pace in ("fast", "exact"):
            figures[pace].append(null_hypercall(pace))
    progress("")
    bare = statistics.median(figures["bare"])
    print(f"bare trap, context saved and restored    {bare:8.2f} us")
    for pace in ("fast", "exact"):
        cost = statistics.median(figures[pace])
        print(f"null hypercall, {pace + ' pace':<23}  {cost:8.2f} us   {cost / bare:5.2f} times")


class World:
    """A machine with domains of which some compute, alive beside others while they are measured in turn."""

    def __init__(self, modes: list[str], pace: str, scheduler: str = "credit") -> None:
        self._loads = Loads(modes, pace=pace, scheduler=scheduler)
        self._loads.start()
        self._loads.run(modes.count("work") * SLICE)
        self._workers = [load for load in self._loads.loads if load.mode == "work"]

    def cost(self, ns: int) -> float:
        """Seconds of processor time for a unit of work, over so much virtual time."""
        before = self._done()
        seconds = self._loads.run(ns)
        return seconds / (self._done() - before)

    def _done(self) -> int:
        return sum(load.count().units for load in self._workers)

    def switched(self, ns: int, allowance: int) -> Rate:
        """What is done in so much virtual time under bvt with this context-switch allowance (ns)."""
        self._loads.machine.scheduler.adjust(None, context_switch_allowance=allowance)
        before, switches = self._done(), self._loads.switches
        seconds = self._loads.run(ns)
        return Rate(seconds, self._done() - before, self._loads.switches - switches)

    def close(self) -> None:
        """Give its memory back."""
        self._loads.close()


class Rate(NamedTuple):
    """What computing domains did together."""

    seconds: float
    """Of processor time."""
    units: int
    switches: int


def context_switch(runs: int, ns: int) -> None:
    """What a switch costs: two domains that compute, by turns with many switches and with few, on one machine.

    The switches are a tenth of the time, and two machines, or two moments a second apart, differ by as much. In the
    exact pace: the host's timer, which ends the slices of the fast one, is too coarse for so many.
    """
    world = World(["work"] * 2, "exact", "bvt")
    costs: list[float] = []
    pairs = max(1, runs * ns // (2 * SWITCH_PART))
    for number in range(pairs):
        progress(f"context switch, pair {number + 1} of {pairs}")
        order = (FEW, OFTEN) if number & 1 else (OFTEN, FEW)
        found = {allowance: world.switched(SWITCH_PART, allowance) for allowance in order}
        few, often = found[FEW], found[OFTEN]
        excess = often.seconds - few.seconds / few.units * often.units
        costs.append(excess / (often.switches - few.switches) * 1e6)
    world.close()
    progress("")
    print(f"context switch, {'exact pace':<23}  {statistics.median(costs):8.2f} us")


def in_pairs(world: World, one: World, pairs: int, title: str) -> float:
    """How many times the cost of `one` a unit of work costs in `world`: the median of pairs, either first by turns.

    A pair is a slice each: a host's slow moments last longer than that, and fall on both.
    """
    ratios: list[float] = []
    for number in range(pairs):
        progress(f"{title}, pair {number + 1} of {pairs}")
        order = (world, one) if number & 1 else (one, world)
        found = {machine: machine.cost(SLICE) for machine in order}
        ratios.append(found[world] / found[one])
    progress("")
    return statistics.median(ratios)


def many(runs: int, ns: int) -> bool:
    """128 blocked and 128 busy domains, each beside a machine with one busy one; are both targets reached?"""
    reached = True
    pairs = max(1, runs * ns // SLICE)
    for pace in ("exact", "fast"):
        costs: list[float] = []
        one = World(["work"], pace)
        for what, modes in (("blocked", ["work"] + ["wait"] * DOMAINS), ("busy", ["work"] * DOMAINS)):
            world = World(modes, pace)
            costs.append(in_pairs(world, one, pairs, f"{DOMAINS} {what} domains, {pace} pace"))
            world.close()
        one.close()
        cost, share = costs[0], 1 / costs[1]
        calm, fast = cost <= BLOCKED_TARGET, share >= BUSY_TARGET
        print(
            f"one busy domain beside {DOMAINS} blocked, {pace:<5}     {cost:5.3f} times the time alone"
            f"   at most {BLOCKED_TARGET}: {'reached' if calm else 'MISSED'}"
        )
        print(
            f"{DOMAINS} busy domains, {pace:<5}                     {share:5.3f} of one's throughput"
            f"     at least {BUSY_TARGET}: {'reached' if fast else 'MISSED'}"
        )
        reached &= calm and fast
    return reached


# --- beside real Xen -----------------------------------------------------------------------------------------------


def event(lines: Lines) -> dict[str, float]:
    """Nanoseconds of an event to oneself, or to another vCPU and back, by the clock outside."""
    names = {"event_to_self": EVENT, "event_to_vcpu": VCPU}
    return {names[name]: figure for name, figure in operations(lines).items()}


def lateness(lines: Lines) -> dict[str, float]:
    """Nanoseconds by which a timer's wake-ups came late, by the guest's own clock."""
    for line, _ in lines:
        if found := re.search(r"late by (\d+) ns on average", line):
            return {TIMER: float(found[1])}
    raise RuntimeError("the load guest did not come to its end:\n" + "\n".join(line for line, _ in lines[-5:]))


def beside_xen(runs: int, options: str) -> dict[str, Results]:
    """Events and timer, on Xen and here, in turn."""
    results: dict[str, Results] = {"Xen": {}, "fast": {}, "exact": {}}
    bench, load, pair = "only=event_to_self", "mode=timer count=200", "only=event_to_vcpu"
    for number in range(runs):
        progress(f"beside Xen, run {number + 1} of {runs}")
        add(results["Xen"], event(on_xen(IMAGES / "bench64", bench, options)))
        add(results["Xen"], event(on_xen(IMAGES / "bench64", pair, f"dom0_max_vcpus=2 {options}")))
        add(results["Xen"], lateness(on_xen(IMAGES / "load64", load, options)))
        for pace in ("fast", "exact"):
            add(results[pace], event(here(pace, ["bench64", "--cmdline", bench])))
            add(results[pace], event(here(pace, ["bench64", "--vcpus", "2", "--cmdline", pair])))
            add(results[pace], lateness(here(pace, ["load64", "--cmdline", load])))
    return results


def linux(results: dict[str, Results], runs: int, options: str) -> None:
    """A loop of forks and execs under Debian's kernel, timed from outside between two lines."""
    from tests.kernels import MOUNTS, fetch_kernels, make_initrd
    from tests.real_xen import run_on_xen

    init = f"""{MOUNTS}echo "{_BEGIN}"
i=0; while [ $i -lt {FORKS} ]; do /bin/busybox true; i=$((i + 1)); done
echo "{_END}"
poweroff -f
"""

    def spent(lines: Lines) -> dict[str, float]:
        moments = {line.strip(): moment for line, moment in lines}
        if _END not in moments:
            raise RuntimeError("Linux did not come to its end:\n" + "\n".join(line for line, _ in lines[-5:]))
        return {FORK_EXEC: (moments[_END] - moments[_BEGIN]) * 1e9 / FORKS}

    kernel = fetch_kernels().linux
    with tempfile.TemporaryDirectory() as folder:
        disk = make_initrd(Path(folder) / "initrd.gz", init)
        arguments = [str(kernel), "--ramdisk", str(disk), "--cmdline", "console=hvc0", "--memory", "512"]
        for number in range(runs):
            progress(f"Linux, run {number + 1} of {runs}")
            xen = run_on_xen(
                kernel, "console=hvc0", until=_END, ramdisk=disk, xen_options=f"cet=no {options}",
                memory=1024, dom0_memory=512, timeout=400,
            )  # fmt: skip
            add(results["Xen"], spent(list(zip(xen.lines, xen.times, strict=True))))
            for pace in ("fast", "exact"):
                add(results[pace], spent(here(pace, arguments, until=_END)))


def report(results: dict[str, Results]) -> bool:
    """Print the figures beside Xen; was the fork's target reached?"""
    reached = True
    print(f"{'':26} {'Xen, TCG':>13} {'fast pace':>13} {'exact pace':>13}   Xen/fast")
    for name in results["Xen"]:
        xen, fast, exact = (statistics.median(results[way][name]) / 1000 for way in ("Xen", "fast", "exact"))
        verdict = ""
        if name == FORK_EXEC:
            reached = xen / fast >= FORK_TARGET
            verdict = f"   >= {FORK_TARGET} {'reached' if reached else 'MISSED'}"
        print(f"{name:26} {xen:10.2f} us {fast:10.2f} us {exact:10.2f} us {xen / fast:10.2f}{verdict}")
    print("(how late a timer wakes is in the guest's own time, which is virtual in the exact pace)")
    return reached


def main() -> int:
    """Measure and print; exit status 1 with --check when a target is missed, 2 when something cannot run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--ms", type=int, default=2000, help="virtual milliseconds of a run of domains (default 2000)")
    parser.add_argument("--no-alone", action="store_true", help="only what stands beside real Xen")
    parser.add_argument("--xen", action="store_true", help="beside real Xen too")
    parser.add_argument("--linux", type=int, default=0, metavar="RUNS", help="forks under Linux too, so many times")
    parser.add_argument("--xen-options", default="", metavar="TEXT", help="more of Xen's command line")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a target is missed")
    options = parser.parse_args()
    if options.runs < 1 or options.ms < 1 or options.linux < 0:
        parser.error("--runs and --ms must be at least 1, --linux at least 0")
    try:
        reached = True
        if not options.no_alone:
            traps(options.runs)
            context_switch(options.runs, options.ms * MS)
            reached = many(options.runs, options.ms * MS)
        results: dict[str, Results] = {"Xen": {}, "fast": {}, "exact": {}}
        if options.xen:
            results = beside_xen(options.runs, options.xen_options)
        if options.linux:
            linux(results, options.linux, options.xen_options)
        progress("")
        if results["Xen"]:
            reached &= report(results)
    except (OSError, RuntimeError) as error:
        print(f"switches: {error}", file=sys.stderr)
        return 2
    return 0 if reached or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
