"""What going back in time costs: ``python bench/snapshots.py [--scale N] [--linux] [--runs N]``.

Pairs, in turn: a run in the engine's process with automatic snapshots and without; the same run without a console at
all, and with one that reads status, trace and views 15 times a second. Then how long a fork takes and what it copies,
and how long it takes to go back. ``--linux`` measures Debian's Linux with 512 MB (needs the kernels of tests.kernels)
instead of the package's own guest.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import select
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from xentui.config import GuestSpec, resolve_guest  # noqa: E402
from xentui.engine.build import build_machine  # noqa: E402
from xentui.engine.process import Engine  # noqa: E402
from xentui.engine.setup import Setup  # noqa: E402
from xentui.engine.views import Query  # noqa: E402

REFRESH = 1 / 15
BYTES = 4
"""Of code in an instruction, about: positions count half nanoseconds, and a byte takes one."""
BACK = 10_000_000
"""Instructions to go back."""
SNAPSHOT_TARGET, CONSOLE_TARGET, BACK_TARGET = 0.15, 0.90, 1.0
VIEWS = [Query("machine.summary"), Query("domains.list")]


def guest(options: argparse.Namespace, folder: str) -> GuestSpec:
    """What is run."""
    if not options.linux:
        spec = resolve_guest("bench64")
        spec.cmdline = f"scale={options.scale}"
        return spec
    from tests.kernels import POWEROFF_INIT, fetch_kernels, make_initrd

    spec = resolve_guest(str(fetch_kernels().linux))
    spec.ramdisk = make_initrd(Path(folder) / "initrd.gz", POWEROFF_INIT)
    spec.memory, spec.cmdline = 512, "console=hvc0"
    return spec


Times = tuple[float, float]
"""Seconds on the wall, and of the processor for the engine's process alone."""


def headless(setup: Setup) -> Times:
    """What a run takes in this process' child, nobody watching (as --record, but writing nothing)."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        import numpy  # noqa: F401  the engine's process has it, and batches use it

        machine = build_machine(setup)
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        start, cpu = time.perf_counter(), time.process_time()
        machine.run()
        os.write(writing, f"{time.perf_counter() - start} {time.process_time() - cpu}".encode())
        os._exit(0)
    os.wait()
    wall, cpu = map(float, os.read(reading, 100).split())
    os.close(reading)
    os.close(writing)
    return wall, cpu


def in_a_process(setup: Setup, snapshots: bool, watched: bool) -> Times:
    """Seconds that a run takes in the engine's process."""
    with Engine.start(setup, snapshots=snapshots) as engine:
        engine.set_warp(True)
        engine.wait()
        start, cpu = time.perf_counter(), engine.status.cpu
        engine.run()
        if watched:
            watch(engine)
        engine.wait()
        return time.perf_counter() - start, engine.status.cpu - cpu


def watch(engine: Engine) -> None:
    """Do what a console does at each refresh, until the machine stands still."""
    running, asked, following = True, 0, time.perf_counter()
    while running:
        following += REFRESH
        while (left := following - time.perf_counter()) > 0:
            if select.select([engine], [], [], left)[0]:
                engine.pump()
        asked = engine.ask(VIEWS)
        engine.records.rows(engine.records.end - 40)
        engine.records.columns("kind", engine.records.end - 10_000)
        running = engine.status.running or not asked


def ratio(name: str, runs: int, one: Callable[[], Times], other: Callable[[], Times]) -> float:
    """The medians of both in turn, printed; the first over the second, of the processor's time.

    Where other programs are busy the wall says little; what the engine's process has used itself says more.
    """
    pairs = [(one(), other()) for _ in range(runs)]
    walls, processor = (
        [statistics.median(times[which][kind] for times in pairs) for which in (0, 1)] for kind in (0, 1)
    )
    for kind, medians in (("wall", walls), ("processor", processor)):
        print(f"{name + ', ' + kind:58} {medians[0]:8.2f} s {medians[1]:8.2f} s   {medians[0] / medians[1]:6.3f}")
    return processor[0] / processor[1]


def forks(setup: Setup) -> None:
    """Fork a machine that has run: the fork alone, and what writing again costs afterwards."""
    machine = build_machine(setup)
    machine.run(until=2_000_000_000)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        child = os.fork()
        if child == 0:
            os._exit(0)
        times.append(time.perf_counter() - start)
        os.waitpid(child, 0)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{f'a fork, {resident} MB resident':58} {statistics.median(times) * 1000:8.2f} ms")


def going_back(setup: Setup) -> bool:
    """From the end of a run: instructions back, to places anywhere, one instruction back."""
    reached = True
    with Engine.start(setup) as engine:
        engine.set_warp(True)
        engine.run()
        end = engine.wait()
        print(f"{'snapshots kept, of a run of':58} {len(engine.timeline.usable()):8}    {end.work:8.2f} s")

        def timed(name: str, move: Callable[[], None], target: float | None = None) -> float:
            start = time.perf_counter()
            move()
            status = engine.wait()
            seconds = time.perf_counter() - start
            want = f"at most {target} s" if target else ""
            print(f"{name:58} {seconds * 1000:8.1f} ms  to {status.time / 1e6:.3f} ms  {want}")
            return seconds

        back = max(0, end.position - BYTES * BACK)
        reached = timed(f"{BACK:,} instructions back", lambda: engine.goto(position=back), BACK_TARGET) <= BACK_TARGET
        timed("one instruction back", engine.step_back)
        timed("one more", engine.step_back)
        timed("a thousand instructions back", lambda: engine.step_back(1000))
        for part in (0.9, 0.5, 0.1):
            timed(f"to {part:.0%} of the run", lambda part=part: engine.goto(position=int(part * end.position)))  # type: ignore[misc]
        timed("to the end again", engine.live)
    return reached


def main() -> int:
    """Print the tables; 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=30, help="how much the guest measures (default 30)")
    parser.add_argument("--linux", action="store_true", help="boot Debian's Linux with 512 MB")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs (default 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup([guest(options, folder)])
        print(f"{'medians of ' + str(options.runs):58} {'with':>10} {'without':>10}    ratio")
        cost = ratio(
            "automatic snapshots",
            options.runs,
            lambda: in_a_process(setup, True, False),
            lambda: in_a_process(setup, False, False),
        )
        slower = ratio(
            "a console 15 times a second, snapshots; against headless",
            options.runs,
            lambda: in_a_process(setup, True, True),
            lambda: headless(setup),
        )
        forks(setup)
        back = going_back(setup)
    good = cost <= 1 + SNAPSHOT_TARGET and 1 / slower >= CONSOLE_TARGET and back
    print(f"snapshots cost {cost - 1:+.1%} (at most {SNAPSHOT_TARGET:.0%}); ", end="")
    print(f"watched, {1 / slower:.1%} of the headless speed (at least {CONSOLE_TARGET:.0%})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
