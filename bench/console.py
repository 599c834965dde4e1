"""What the console costs: opening and filtering ten million records, the trace pane while 100,000 a second arrive, and
the engine's speed under it.

    python bench/console.py [--records N] [--seconds S] [--keep FILE] [--pairs N]
                            [--only-engine | --only-recording]

Prints each figure beside its target, the ratio (up to 1.00 is within) and whether the target is reached. The recording
is of a made-up run (bench/recording.py), the pane runs in a process and a pseudo-terminal of its own, and is watched
from outside. For the engine's speed the whole console is opened on bench64, and the same run is made headless, in turn
(bench/snapshots.py).
"""

from __future__ import annotations

import argparse
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from typing import Any

import numpy as np
from recording import bench_write, made_up_run
from snapshots import CONSOLE_TARGET, Times, guest, headless

from xentui.engine.expression import Expression
from xentui.engine.setup import Setup
from xentui.recording.reader import Recording
from xentui.screens.records import Matches, RecordedTrace, search

RATE = 100_000
"""Records that arrive in a second."""
REFRESH = 15
FILTERS = (
    "page_fault",
    "hypercall and domain == 2",
    "mmu_update or update_va_mapping",
    "port == 3",
    "result < 0",
    "~ mmu",
    '~ "PIN_L4|evtchn"',
    "foreigndom == DOMID_SELF",
    "time > 10s and io_port",
)
DEEP = (
    "cr2 & 0xfff == 0xabc",
    "~ 0xffff8880",
    "~ 7f00",
    "~ 0",
    "~ 511",
    "~ cr2=0x7f0012",
    "~ deadbeef",
    '~ "7f0[0-9]1"',
    '~ "[0-9]1"',
    'cr2 ~ "^0x7f.*[02468]1$"',
)
"""Filters that must look at what records hold, value by value."""
SCREEN = 60
"""Records that a screen shows."""


def line(what: str, value: float, unit: str, target: float, least: bool = False) -> None:
    """One line of the table; `least`: the target is what the value must reach."""
    ratio = target / value if least else value / target
    reached = "reached" if ratio <= 1 else "missed"
    print(f"{what:<64} {value:9.3f} {unit:<8} {target:8.2f} {ratio:8.2f} {reached}", flush=True)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def whole(source: RecordedTrace, text: str) -> Callable[[], Matches]:
    """Filter all of a source."""

    def work() -> Matches:
        matches = Matches(source, Expression.parse(text, {}, {}))
        while not matches.complete:
            matches.advance(0.025)
        return matches

    return work


def bench_cold(path: str, text: str) -> None:
    """What a filter costs of which nothing was read before: a match, a screen of them, all.

    All of them, that is to open the recording: to have read what is looked at is then done, too.
    """
    with Recording(path) as recording:
        source, expression = RecordedTrace(recording), Expression.parse(text)
        line(f"unread: the next match, {text}", timed(lambda: search(source, expression, 0, 1, 60)), "s", 0.3)
    with Recording(path) as recording:
        matches = Matches(RecordedTrace(recording), expression)

        def screen() -> None:
            while len(matches) < SCREEN and not matches.complete:
                matches.advance(0.0)

        line(f"unread: the first screen of matches, {text}", timed(screen), "s", 0.3)
    with Recording(path) as recording:
        line(f"unread: open it, and all matches, {text}", timed(whole(RecordedTrace(recording), text)), "s", 2.0)


def read_ahead(source: RecordedTrace) -> None:
    """What the pane does when it is idle."""
    while source.read_ahead(frozenset(), 0.025):
        pass


def bench_recording(path: str) -> None:
    """Open, filter, search, seek."""
    bench_cold(path, "~ 7f00")
    opening = timed(lambda: Recording(path))
    line("open a recording", opening, "s", 2.0)
    source = RecordedTrace(Recording(path))
    line("the first filter, which reads the columns", timed(whole(source, "page_fault")), "s", 2.0)
    for text in FILTERS:
        seconds = statistics.median(timed(whole(source, text)) for _ in range(3))
        line(f"filter {text}", seconds, "s", 0.3)
    source = RecordedTrace(Recording(path))
    line(
        "open, and read ahead what filters look at (while idle)", opening + timed(lambda: read_ahead(source)), "s", 2.0
    )
    for text in DEEP:
        seconds = statistics.median(timed(whole(source, text)) for _ in range(3))
        line(f"filter by values, {text}", seconds, "s", 0.3)
    nowhere = Expression.parse("~ deadbeef")
    line("search all of it for a text that is not there", timed(lambda: search(source, nowhere, 0, 1, 60)), "s", 0.3)
    last = source.end - 1
    nowhere = Expression.parse("domain_crash")
    line("search all of it for what is not there", timed(lambda: search(source, nowhere, 0, 1, 60)), "s", 0.3)
    middle = int(source.columns("time", last // 2, last // 2 + 1)[0])

    def moment() -> None:
        at = source.find_time(middle)
        source.rows(at, at + SCREEN)

    moment()
    line("a moment and a screen of records, warm", timed(moment), "s", 1 / REFRESH)


# --- the pane, from outside ------------------------------------------------------------------------------------------


class Arriving:
    """A ring of the last million records, to which so many a second are added by the host's clock."""

    def __init__(self, rate: int, held: int = 1 << 20) -> None:
        self.base = made_up_run(1 << 17, 1)
        self.span = int(self.base["time"][-1]) + 1000
        self.rate, self.held = rate, held
        self.begun = time.monotonic()

    @property
    def end(self) -> int:
        return self.held + int((time.monotonic() - self.begun) * self.rate)

    @property
    def first(self) -> int:
        return self.end - self.held

    def rows(self, start: int, stop: int | None = None) -> np.ndarray[Any, Any]:
        numbers = np.arange(start, self.end if stop is None else stop)
        rows = self.base[numbers % len(self.base)]
        rows["time"] += (numbers // len(self.base) * self.span).astype(np.uint64)
        return rows

    def columns(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        if name == "time":
            return self.rows(start, stop)["time"]
        return self.base[name][np.arange(start, self.end if stop is None else stop) % len(self.base)]

    def find_time(self, time: int) -> int:
        low = time // self.span * len(self.base)
        return low + int(np.searchsorted(self.base["time"], time % self.span))


def pane_process(rate: int, expression: str) -> None:
    """The console's side: the trace pane, refreshed as the application refreshes its panes."""
    from types import SimpleNamespace

    from textual.app import App, ComposeResult

    from xentui.screens.trace import TracePane

    records = Arriving(rate)
    domains = tuple(SimpleNamespace(id=number, name=f"guest{number}", width=64) for number in (1, 2))

    class Bench(App[None]):
        def compose(self) -> ComposeResult:
            yield TracePane()

        def on_mount(self) -> None:
            self.pane = self.query_one(TracePane)
            self.pane.focus()
            self.set_interval(1 / REFRESH, self.feed)
            if expression:
                self.call_later(self.pane.filter, expression)

        def feed(self) -> None:
            end = records.end
            status = SimpleNamespace(
                records=end, end_records=end, live=True, running=True, branch=0, time=0, end_time=0, domains=domains
            )
            self.pane.show_records(records, status)

    Bench().run()


def start_in_terminal(width: int, height: int, *arguments: str, **more: Any) -> tuple[subprocess.Popen[bytes], int]:
    """This program, with such arguments, in a pseudo-terminal; its process, and our end."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        start_new_session=True,
        **more,
    )
    os.close(theirs)
    return process, ours


def read_for(fd: int, seconds: float, until: bytes | None = None) -> tuple[int, float | None]:
    """Take what the terminal is sent: how many bytes, and after how long `until` was among them."""
    start, count, tail = time.perf_counter(), 0, b""
    while (left := start + seconds - time.perf_counter()) > 0:
        if not select.select([fd], [], [], left)[0]:
            break
        data = os.read(fd, 1 << 16)
        count += len(data)
        tail = tail[-64:] + data
        if until is not None and until in tail:
            return count, time.perf_counter() - start
    return count, None


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench_pane(width: int, height: int, seconds: float, expression: str = "") -> None:
    """The pane followed for some seconds: processor time, and from key press to changed screen."""
    process, fd = start_in_terminal(width, height, "--pane", expression)
    try:
        read_for(fd, 4.0)
        before, start = processor_seconds(process.pid), time.perf_counter()
        sent, _ = read_for(fd, seconds)
        share = (processor_seconds(process.pid) - before) / (time.perf_counter() - start)
        what = f"{width}×{height}, {RATE:,} records/s" + (f", filter {expression}" if expression else "")
        line(f"{what}: of a processor", 100 * share, "%", 40)
        line(f"{what}: sent to the terminal", sent / seconds / 1024, "KiB/s", 512)
        times = []
        for press in range(30):
            os.write(fd, b"f")
            _, took = read_for(fd, 2.0, b"follows" if press % 2 else b"#")
            if took is not None:
                times.append(took)
            read_for(fd, 0.05 + 0.01 * (press % 7))
        if len(times) < 20:
            raise SystemExit(f"the pane answered only {len(times)} of 30 keys")
        line(f"{what}: key to screen, 95th of 100", 1000 * sorted(times)[int(len(times) * 0.95)], "ms", 100)
    finally:
        process.kill()
        process.wait()
        os.close(fd)


# --- the engine under the whole console -------------------------------------------------------------------------------

SETTLED = 2.0
"""Seconds after which the first screen is there and nothing is imported any more."""


def busy_setup(scale: int) -> Setup:
    """A guest that never waits."""
    return Setup([guest(argparse.Namespace(linux=False, scale=scale), "")])


def console_process(scale: int, report: int) -> None:
    """The console's side: all of it, on a run that begins when the screen is there and is timed to its end."""
    from xentui.app import XentuiApp
    from xentui.engine.process import Engine
    from xentui.screens.trace import TracePane

    with Engine.start(busy_setup(scale)) as engine:

        class Timed(XentuiApp):
            begun: Times | None = None
            ran = False
            refreshes = 0

            def on_mount(self) -> None:  # besides the console's own, which Textual calls too
                self.set_timer(SETTLED, self.begin)
                refresh = self.feed.refresh

                def counted() -> bool:
                    done = refresh()
                    self.refreshes += done
                    return done

                self.feed.refresh = counted  # type: ignore[method-assign]

            def begin(self) -> None:
                self.refreshes = 0
                engine.set_warp(True)
                self.begun = time.perf_counter(), engine.status.cpu
                engine.run()
                self.set_interval(0.01, self.look)

            def look(self) -> None:
                status = engine.status
                self.ran |= status.running
                trace = self.main.grid.pane("trace")
                if self.begun is None or status.running or not self.ran:
                    return
                if not isinstance(trace, TracePane) or not trace.model.follow:
                    self.exit(message="the trace is not followed")  # and nothing is reported
                    return
                wall, cpu = time.perf_counter() - self.begun[0], status.cpu - self.begun[1]
                os.write(report, f"{wall} {cpu} {self.refreshes}".encode())
                self.begun = None
                self.exit()

        Timed(engine, run=False).run()


def under_console(scale: int) -> tuple[Times, int]:
    """What the run takes with the console open at 120×40, the trace followed; and how often the panes were asked
    for anew, and drawn, meanwhile."""
    reading, writing = os.pipe()
    folder = tempfile.TemporaryDirectory()  # as if for the first time: with the layout that is given then
    os.environ["XDG_CONFIG_HOME"] = folder.name
    process, fd = start_in_terminal(120, 40, "--console", f"{scale},{writing}", pass_fds=(writing,))
    os.close(writing)
    what = b""
    try:
        while select.select([fd, reading], [], [], 120)[0]:
            if select.select([reading], [], [], 0)[0]:
                break
            os.read(fd, 1 << 16)
        what = os.read(reading, 100)
    finally:
        process.kill()
        process.wait()
        os.close(fd)
        os.close(reading)
        folder.cleanup()
    if not what:
        raise SystemExit("the console did not see the run to its end with the trace followed")
    wall, cpu, refreshes = map(float, what.split())
    return (wall, cpu), int(refreshes)


def bench_engine(scale: int, pairs: int) -> None:
    """The console's share of the engine's speed: each run with it against one without, in turn."""
    setup = busy_setup(scale)
    both, rates = [], []
    for pair in range(pairs):
        first = None if pair % 2 else headless(setup)
        watched, refreshes = under_console(scale)
        both.append((first or headless(setup), watched))
        rates.append(refreshes / watched[0])
    for kind, what in enumerate(("host time", "the engine's processor time")):
        ratios = [alone[kind] / shown[kind] for alone, shown in both]
        print(f"  headless over watched, {what}: " + " ".join(f"{ratio:.3f}" for ratio in ratios))
        kept = 100 * statistics.median(ratios)
        line(f"120×40, engine's speed kept, {what}, at least", kept, "%", 100 * CONSOLE_TARGET, least=True)
    line("120×40, refreshes while the run's trace is followed", statistics.median(rates), "/s", REFRESH, least=True)


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000_000, help="how many records the recording has")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to watch the pane")
    parser.add_argument("--keep", metavar="FILE", help="keep the recording there, and use it when it is there already")
    parser.add_argument("--pairs", type=int, default=15, help="how many pairs of runs for the engine's speed")
    parser.add_argument("--scale", type=int, default=30, help="how much the guest does in each")
    parser.add_argument("--only-engine", action="store_true", help="the engine's speed alone")
    parser.add_argument("--only-recording", action="store_true", help="opening and filtering a recording alone")
    parser.add_argument("--pane", metavar="FILTER", help=argparse.SUPPRESS)
    parser.add_argument("--console", metavar="SCALE,FD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pane is not None:
        pane_process(RATE, options.pane)
        return 0
    if options.console is not None:
        console_process(*map(int, options.console.split(",")))
        return 0
    print(f"{'':<64} {'':>9} {'':<8} {'target':>8} {'ratio':>8}")
    if not options.only_recording:
        bench_engine(options.scale, options.pairs)
    if options.only_engine:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = options.keep or os.path.join(folder, "bench.xtrace")
        if not os.path.exists(path):
            bench_write(options.records, path)
        bench_recording(path)
    if options.only_recording:
        return 0
    for width, height in ((80, 24), (120, 40), (200, 60)):
        bench_pane(width, height, options.seconds)
    bench_pane(120, 40, options.seconds, "page_fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
