"""Performance isolation, the paper's 4.4, and concurrent domains, its Figure 6: ``python bench/isolation.py``.

Two domains that compute and one that wakes every 5 ms run alone, and then each time beside another domain that does
its worst: spins, faults without end, floods event channels, hammers the hypervisor with huge batches of page-table
updates, grabs and returns all the memory there is. Of the well-behaved ones it prints the share of the processor, the
progress, and how late they woke, with and without the other. All is in virtual time of the exact pace, so that the
figures are the same on every host and at every run.

`--figure6` runs 1 to 128 computing domains at once instead, with slices of 5 and 50 ms, and prints their work together
beside that of a single one: in virtual time, which knows what a context switch costs a real processor, and by the
host processor's time, which tells what one costs this engine.

`--plot FILE` draws it (PNG, SVG or PDF, by the name); that needs matplotlib: pip install 'xentui[plot]'.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.loads import MS, Loads

WELL_BEHAVED = ["work", "work", "timer period=5000"]
WORKERS = 2
ANTISOCIAL = ("spin", "faults", "events", "hypercalls", "memory")
GRAB = 16
"""MiB that lie there to be grabbed."""
WARM_UP = 200 * MS
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
SLICES = (5, 50)
"""Milliseconds, as in Figure 6."""


class Row(NamedTuple):
    """How the well-behaved domains fared beside one other."""

    beside: str
    share: float
    """Of the processor, each worker's; the mean of both."""
    fair: float
    """What would be its due."""
    work: float
    """Units of work a second, both workers together."""
    efficiency: float
    """Units of work a second of processor time."""
    late_mean: float
    """Microseconds that the timer domain woke too late."""
    late_most: float
    wakes: int
    """Wake-ups a second."""
    other: float
    """The antisocial domain's share."""


def isolate(scheduler: str, beside: str, ns: int, warp: int) -> Row:
    """Run the well-behaved domains beside an antisocial one (or none) for `ns` of virtual time."""
    modes = WELL_BEHAVED + ([beside] if beside else [])
    loads = Loads(modes, scheduler=scheduler, memory=GRAB, mixed=True)
    if scheduler == "bvt" and warp:
        loads.machine.scheduler.adjust(loads.loads[WORKERS].domain, warp=warp)
    loads.start()
    loads.run(WARM_UP)
    start, before = loads.machine.now(), [load.count() for load in loads.loads]
    loads.run(ns)
    elapsed, after = loads.machine.now() - start, [load.count() for load in loads.loads]
    loads.close()
    units = sum(after[number].units - before[number].units for number in range(WORKERS))
    busy = sum(after[number].run_time - before[number].run_time for number in range(WORKERS))
    timer, timer_before = after[WORKERS], before[WORKERS]
    wakes = max(1, timer.units - timer_before.units)
    other = after[-1].run_time - before[-1].run_time if beside else 0
    asleep = (timer.run_time - timer_before.run_time) / elapsed
    return Row(
        beside=beside or "nobody",
        share=busy / elapsed / WORKERS,
        fair=(1 - asleep) / (WORKERS + bool(beside)),
        work=units * 1e9 / elapsed,
        efficiency=units * 1e9 / max(1, busy),
        late_mean=(timer.late_total - timer_before.late_total) / wakes / 1000,
        late_most=timer.late_most / 1000,
        wakes=round(wakes * 1e9 / elapsed),
        other=other / elapsed,
    )


def isolation(scheduler: str, ns: int, warp: int) -> list[Row]:
    """The whole experiment under one policy, printed as it goes."""
    print(f"{scheduler}, {ns / 1e9:g} s of virtual time each")
    print("                each worker's   work/s of both   work a CPU   wakes/s   late, us              the other's")
    print("beside          share   due     beside nobody=1  second       (200)     mean      at most     share")
    rows: list[Row] = []
    for beside in ("", *ANTISOCIAL):
        row = isolate(scheduler, beside, ns, warp)
        rows.append(row)
        alone = rows[0]
        print(
            f"{row.beside:14} {row.share:6.1%} {row.fair:6.1%} {row.work / alone.work:13.2f} "
            f"{row.efficiency / alone.efficiency:14.2f} {row.wakes:12} {row.late_mean:11.0f} {row.late_most:11.0f} "
            f"{row.other:11.1%}",
            flush=True,
        )
    print()
    return rows


def throughput(domains: int, slice_ms: int, ns: int) -> tuple[float, float]:
    """Units of work a second of virtual time, and of the host's, that so many busy domains do together."""
    loads = Loads(["work"] * domains, scheduler="bvt")
    loads.machine.scheduler.adjust(None, context_switch_allowance=slice_ms * MS)
    loads.start()
    start, before = loads.machine.now(), sum(load.count().units for load in loads.loads)
    seconds = loads.run(ns)
    units = sum(load.count().units for load in loads.loads) - before
    elapsed = loads.machine.now() - start
    loads.close()
    return units * 1e9 / elapsed, units / seconds


Curve = dict[int, list[tuple[float, float]]]
"""Slice in ms to the throughput for each of COUNTS, in virtual and host time."""


def figure6(ns: int) -> Curve:
    """Throughput of 1 to 128 domains, printed as it goes."""
    print(f"Figure 6: {ns / 1e9:g} s of virtual time each, bvt; throughput of all domains, that of one = 1")
    print("           " + "".join(f"{f'{slice_ms} ms slices':>22}" for slice_ms in SLICES))
    print("domains    " + "    virtual       host" * len(SLICES))
    curve: Curve = {slice_ms: [] for slice_ms in SLICES}
    for domains in COUNTS:
        for slice_ms in SLICES:
            curve[slice_ms].append(throughput(domains, slice_ms, ns))
        figures = [
            f"{curve[slice_ms][-1][clock] / curve[slice_ms][0][clock]:11.3f}" for slice_ms in SLICES for clock in (0, 1)
        ]
        print(f"{domains:7}    {''.join(figures)}", flush=True)
    return curve


# --- plots ---------------------------------------------------------------------------------------------------------


def plot_isolation(results: dict[str, list[Row]], path: str) -> None:
    """Work and lateness of the well-behaved domains beside each other one."""
    from matplotlib import pyplot

    figure, (work, late) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    width = 0.8 / len(results)
    for number, (scheduler, rows) in enumerate(results.items()):
        places = [place + (number - (len(results) - 1) / 2) * width for place in range(len(rows))]
        work.bar(places, [row.efficiency / rows[0].efficiency for row in rows], width, label=scheduler)
        late.bar(places, [max(1.0, row.late_most) for row in rows], width, label=f"{scheduler}, at most")
        late.plot(places, [max(1.0, row.late_mean) for row in rows], "k_", markersize=12)
    names = [row.beside for row in next(iter(results.values()))]
    for axes in (work, late):
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("beside a domain that does nothing but")
        axes.legend()
    work.set_ylabel("work per processor time (alone = 1)")
    late.set_ylabel("late after a timer, us (mark: mean)")
    late.set_yscale("log")
    figure.tight_layout()
    figure.savefig(path)


def plot_figure6(curve: Curve, path: str) -> None:
    """Throughput over the number of domains, as the paper's Figure 6."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4.2))
    for slice_ms, points in curve.items():
        for clock, name, style in ((0, "virtual time", "o-"), (1, "host's time", "x--")):
            axes.plot(
                COUNTS, [point[clock] / points[0][clock] for point in points], style, label=f"{slice_ms} ms, {name}"
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.set_ylim(0, 1.2)
    axes.set_xlabel("domains, all computing")
    axes.set_ylabel("work of all together (one domain = 1)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def can_plot(path: str) -> bool:
    """Is matplotlib there? If not, a line says how to get it."""
    try:
        import matplotlib
    except ImportError:
        print(f"isolation: {path} cannot be drawn without matplotlib: pip install 'xentui[plot]'", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    return True


def main() -> int:
    """Measure, print, draw; exit status 2 where the plot cannot be drawn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--figure6", action="store_true", help="1 to 128 busy domains instead")
    parser.add_argument("--sched", choices=("credit", "bvt"), action="append", help="under this policy (default: both)")
    parser.add_argument("--ms", type=int, default=1000, help="virtual milliseconds of each run (default 1000)")
    parser.add_argument("--warp", type=int, default=50, help="bvt: the timer domain's warp, virtual ms (default 50)")
    parser.add_argument("--plot", metavar="FILE", help="draw it into a file")
    options = parser.parse_args()
    if options.ms < 1 or options.warp < 0:
        parser.error("--ms must be at least 1, --warp at least 0")
    if options.plot and not can_plot(options.plot):
        return 2
    if options.figure6:
        curve = figure6(options.ms * MS)
        if options.plot:
            plot_figure6(curve, options.plot)
        return 0
    schedulers = options.sched or ["credit", "bvt"]
    results = {name: isolation(name, options.ms * MS, options.warp * MS) for name in schedulers}
    if options.plot:
        plot_isolation(results, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
