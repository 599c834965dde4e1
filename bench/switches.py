"""What it costs to have many domains, and to go between them: ``python bench/switches.py``.

Alone, in processor time of this process: a null hypercall in both paces beside the bare trap; a context switch; 128
blocked domains beside one that computes, which should cost nothing; 128 that all compute, whose work together should be
at least 90 % of what one does.

`--xen` besides: an event from its sending to the upcall and back, how late a timer wakes a sleeping guest, here in both
paces and on Xen 4.17 under QEMU's emulation in turn; `--linux` a fork and exec of busybox under Debian's kernel
(at least as fast as on Xen). All guests there are domain 0.
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

from bench.against_xen import IMAGES, Lines, Results, add, here, on_xen, operations, progress
from bench.loads import MS, Loads
from bench.trap_cost import bare_round_trip, null_hypercall
from xentui.engine.xen.sched.credit import SLICE

DOMAINS = 128
BUSY_TARGET = 0.9
BLOCKED_TARGET = 1.02
"""What "no measurable time" is: within the noise of two runs of the same."""
PARTS = 10
"""Into how many parts a run of domains is cut."""
FORK_TARGET = 1.0
FORKS = 200
FORK_EXEC, EVENT, TIMER = "fork and exec of busybox", "event to upcall and back", "woken late by a timer"
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


class Rate(NamedTuple):
    """What computing domains did together."""

    seconds: float
    """Of processor time, for a unit of work."""
    units: int
    switches: int


def work_rate(modes: list[str], ns: int, pace: str, allowance: int = 0) -> Rate:
    """Let domains run for `ns` of virtual time, and see what those that compute have done.

    Under the policy that a user gets, or with an allowance under bvt. Each has had a slice before.
    """
    loads = Loads(modes, scheduler="bvt" if allowance else "credit", pace=pace)
    if allowance:
        loads.machine.scheduler.adjust(None, context_switch_allowance=allowance)
    loads.start()
    loads.run(modes.count("work") * (allowance or SLICE))
    workers = [load for load in loads.loads if load.mode == "work"]
    before, switches = sum(load.count().units for load in workers), loads.switches
    seconds = loads.run(ns)
    done = sum(load.count().units for load in workers) - before
    switches = loads.switches - switches
    loads.close()
    return Rate(seconds / done, done, switches)


def context_switch(runs: int, ns: int) -> None:
    """What a switch costs: two domains that compute, with many switches and with few.

    In the exact pace: the host's timer, which ends the slices of the fast one, is too coarse for so many.
    """
    costs: list[float] = []
    for number in range(runs):
        progress(f"context switch, run {number + 1} of {runs}")
        few = work_rate(["work"] * 2, ns, "exact", allowance=20 * MS)
        often = work_rate(["work"] * 2, ns, "exact", allowance=MS // 5)
        costs.append((often.seconds - few.seconds) * often.units / (often.switches - few.switches) * 1e6)
    progress("")
    print(f"context switch, {'exact pace':<23}  {statistics.median(costs):8.2f} us")


class World:
    """A machine with domains of which some compute, alive beside others while they are measured in turn."""

    def __init__(self, modes: list[str], pace: str) -> None:
        self._loads = Loads(modes, pace=pace)
        self._loads.start()
        self._loads.run(modes.count("work") * SLICE)
        self._workers = [load for load in self._loads.loads if load.mode == "work"]

    def cost(self, ns: int) -> float:
        """Seconds of processor time for a unit of work, over so much virtual time."""
        before = sum(load.count().units for load in self._workers)
        seconds = self._loads.run(ns)
        return seconds / (sum(load.count().units for load in self._workers) - before)

    def close(self) -> None:
        """Give its memory back."""
        self._loads.close()


def many(runs: int, ns: int) -> bool:
    """128 blocked and 128 busy domains beside one busy one; are both targets reached?

    The three machines run in turn, a part of the time each: a host's slow moments fall on all of them.
    """
    reached = True
    for pace in ("exact", "fast"):
        worlds = [World(modes, pace) for modes in (["work"], ["work"] + ["wait"] * DOMAINS, ["work"] * DOMAINS)]
        costs: list[list[float]] = [[] for _ in worlds]
        for number in range(PARTS * runs):
            progress(f"{DOMAINS} domains, {pace} pace, part {number + 1} of {PARTS * runs}")
            for world, found in zip(worlds, costs, strict=True):
                found.append(world.cost(ns // PARTS))
        progress("")
        for world in worlds:
            world.close()
        one, beside_blocked, busy = (statistics.median(found) for found in costs)
        cost, share = beside_blocked / one, one / busy
        calm, fast = cost <= BLOCKED_TARGET, share >= BUSY_TARGET
        print(
            f"one busy domain beside {DOMAINS} blocked, {pace:<5}     {cost:5.2f} times the time alone"
            f"   at most {BLOCKED_TARGET}: {'reached' if calm else 'MISSED'}"
        )
        print(
            f"{DOMAINS} busy domains, {pace:<5}                     {share:5.2f} of one's throughput"
            f"     at least {BUSY_TARGET}: {'reached' if fast else 'MISSED'}"
        )
        reached &= calm and fast
    return reached


# --- beside real Xen -----------------------------------------------------------------------------------------------


def event(lines: Lines) -> dict[str, float]:
    """Nanoseconds of an event to oneself, by the clock outside."""
    return {EVENT: operations(lines)["event_to_self"]}


def lateness(lines: Lines) -> dict[str, float]:
    """Nanoseconds by which a timer's wake-ups came late, by the guest's own clock."""
    for line, _ in lines:
        if found := re.search(r"late by (\d+) ns on average", line):
            return {TIMER: float(found[1])}
    raise RuntimeError("the load guest did not come to its end:\n" + "\n".join(line for line, _ in lines[-5:]))


def beside_xen(runs: int, options: str) -> dict[str, Results]:
    """Event and timer, on Xen and here, in turn."""
    results: dict[str, Results] = {"Xen": {}, "fast": {}, "exact": {}}
    bench, load = "only=event_to_self", "mode=timer count=200"
    for number in range(runs):
        progress(f"beside Xen, run {number + 1} of {runs}")
        add(results["Xen"], event(on_xen(IMAGES / "bench64", bench, options)))
        add(results["Xen"], lateness(on_xen(IMAGES / "load64", load, options)))
        for pace in ("fast", "exact"):
            add(results[pace], event(here(pace, ["bench64", "--cmdline", bench])))
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
