"""`xentui --record`: run guests without the console, print theirs, write the recording."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from types import FrameType

    from xentui.config import GuestSpec
    from xentui.engine.actions import Action
    from xentui.engine.machine import Machine
    from xentui.engine.setup import Setup
    from xentui.engine.xen.domain import Domain
    from xentui.recording.writer import RecordingWriter

EXIT_OK, EXIT_CRASHED, EXIT_USAGE, EXIT_LIMIT = 0, 1, 2, 3
_MATCH_BYTES = 1 << 16
_PROGRESS_SECONDS = 0.5
_SHOW_SECONDS = 2.0


def record(options: argparse.Namespace, specs: list[GuestSpec]) -> int:
    """Run `specs` as the options say; the exit status."""
    from xentui.config import ConfigError
    from xentui.engine.build import build_machine
    from xentui.engine.x86.unicorn_api import UnicornMismatchError
    from xentui.engine.xen.elf import ImageError
    from xentui.engine.xen.page import OutOfMemory
    from xentui.recording.format import RecordingError
    from xentui.recording.writer import RecordingWriter, check_path
    from xentui.session import Images, header

    writer: RecordingWriter | None = None

    def flush(rows: memoryview) -> None:
        if writer is not None:
            writer.trace_chunk(rows)

    try:
        check_path(options.record)
        _check_not_read(options.record, specs)
        setup = make_setup(options, specs)
        machine = build_machine(setup, flush=flush)
        machine.audited = options.audit
        machine.toolstack.core_folder = Path(options.core)
        domains, images = machine.domains, Images(setup.images)
        ends = {"until": options.until.pattern.decode() if options.until else None, "for": options.limit}
        head = header(setup, machine, images) | ends
        session = _Session(options, machine, domains)
        with session.signals():
            writer = session.writer = RecordingWriter(options.record, head)
            with writer:
                writer.images(images.contents)
                status, summary = session.run(setup)
                machine.trace.flush()
                writer.close(summary)
        return status
    except (ImageError, OutOfMemory, RecordingError, UnicornMismatchError, ConfigError) as error:
        print(f"xentui: {error}", file=sys.stderr)
        return EXIT_USAGE


def _check_not_read(path: str, specs: list[GuestSpec]) -> None:
    """Refuse to write the recording over what the run is made from. Raises ConfigError."""
    from xentui.config import ConfigError

    if not os.path.exists(path):
        return
    for spec in specs:
        for file in (spec.kernel, spec.ramdisk, spec.source):
            if file is not None and file.exists() and os.path.samefile(path, file):
                raise ConfigError(f"{path}: {spec.name} is made from this file: record to another one")


def make_setup(options: argparse.Namespace, specs: list[GuestSpec]) -> Setup:
    """What the run depends on, from the command line."""
    from xentui.engine.setup import Setup

    typist = (options.input, options.prompt and options.prompt.pattern) if options.input else None
    return Setup(
        specs,
        pace=options.pace,
        scheduler=options.sched,
        seed=options.seed,
        cpus=options.cpus,
        direct_traps=not options.no_direct_trap,
        typist=typist,
        actions=_injections(options.inject),
    )


def _injections(faults: list[tuple[int, str]]) -> list[tuple[int, Action]]:
    """What --inject says, by position."""
    if not faults:
        return []
    from xentui.engine.actions import Action

    return [(at << 1, Action("inject", None, (text,))) for at, text in sorted(faults)]


class _Session:
    """One run: consoles to stdout, typed input, the limits, Ctrl-C, progress. `writer` is the caller's to set."""

    writer: RecordingWriter

    def __init__(self, options: argparse.Namespace, machine: Machine, domains: list[Domain]) -> None:
        from xentui.engine.dom0.typist import Typist

        self.options, self.machine = options, machine
        self.prefix = len(domains) > 1
        self.lines: dict[int, bytes] = {}
        self.tails: dict[int, bytes] = {}
        self.matched = self.interrupted = self.crashed = False
        self.unimplemented: dict[str, dict[int, int]] = {}
        self.ends: list[dict[str, object]] = []
        self.out = sys.stdout.buffer
        self.progress = _Progress(machine) if sys.stderr.isatty() else None
        machine.toolstack.on_output = self.output
        machine.toolstack.on_end = self.ended
        machine.hv.on_log = self.log
        machine.on_slice = self.progress.show if self.progress else None
        self.typist = None
        if options.input:
            self.typist = Typist(machine, domains[0].name, options.input, options.prompt, self.typed)

    def run(self, setup: Setup) -> tuple[int, dict[str, object]]:
        """Run to the end or a limit; exit status and the recording's summary."""
        from xentui.engine.machine import Stop

        if setup.actions:
            self.machine.on_action = self.acted
            for position, action in setup.actions:
                self.machine.schedule(position, action)
        # what is built stays, and the trap path makes no cycles: let the collector look less often
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        try:
            reason = "interrupted" if self.interrupted else self.machine.run(self.options.limit)
        except OSError as error:
            self.interrupted, reason = True, "output closed"
            self.stdout_failed(error)
        finally:
            self.finish_lines()
            if self.progress:
                self.progress.clear()
        for domain in self.machine.domains:
            self.note_unimplemented(domain)
        if self.crashed or self.machine.findings:
            status = EXIT_CRASHED
        elif self.matched or reason == Stop.FINISHED:
            status = EXIT_OK
        else:
            status = EXIT_LIMIT
        if reason != Stop.AUDIT:
            reason = "matched" if self.matched else "interrupted" if self.interrupted else reason
        self.report(reason)
        entry = self.machine.entry
        audit = {"audits": self.machine.audits, "findings": self.machine.findings}
        return status, {
            "reason": reason,
            "virtual_ns": self.machine.now(),
            "position": self.machine.position,
            "records": self.machine.trace.head,
            "hypercalls": entry.hypercalls,
            "traps": entry.traps,
            "direct_traps": entry.direct,
            "ends": self.ends,
            "unimplemented": {name: _named(counts) for name, counts in self.unimplemented.items()},
            **({"audit": audit} if self.machine.audited else {}),
        }

    # --- what happens ----------------------------------------------------------------------------------------------

    def output(self, domain: Domain, data: bytes) -> None:
        """A guest printed."""
        self.writer.console(self.machine.now(), domain.id, 0, data)
        if self.progress:
            self.progress.clear()
        if not self.prefix:
            self.out.write(data)
        else:
            *whole, rest = (self.lines.get(domain.id, b"") + data).split(b"\n")
            self.lines[domain.id] = rest
            for line in whole:
                self.out.write(f"{domain.name}: ".encode() + line.rstrip(b"\r") + b"\n")
        self.out.flush()
        if self.typist is not None:
            self.typist.heard(domain, data)
        if self.options.until is not None:
            tail = (self.tails.get(domain.id, b"") + data)[-_MATCH_BYTES:]
            self.tails[domain.id] = tail
            if self.options.until.search(tail):
                self.matched = True
                self.machine.stop()

    def typed(self, domain: Domain, data: bytes) -> None:
        """Input went into a guest's console."""
        now = self.machine.now()
        self.writer.input(now, domain.id, data)
        self.writer.console(now, domain.id, 1, data)

    def acted(self, position: int, action: Action) -> None:
        """Something was injected: a run from this recording does it again."""
        from xentui.session import Images, action_to_plain

        self.writer.action(position >> 1, position, action_to_plain(action, Images({})))

    def ended(self, domain: Domain, reason: str) -> None:
        """A domain has shut down."""
        self.crashed = self.crashed or reason in ("crash", "watchdog")
        self.ends.append({"domain": domain.id, "name": domain.name, "reason": reason, "virtual_ns": self.machine.now()})
        self.note_unimplemented(domain)
        self.log(f"(XEN) {domain.name}: {reason}" + (f": {domain.crash_reason}" if domain.crash_reason else ""))

    def note_unimplemented(self, domain: Domain) -> None:
        if domain.unimplemented:
            counts = self.unimplemented.setdefault(domain.name, {})
            for number, count in domain.unimplemented.items():
                counts[number] = counts.get(number, 0) + count
            domain.unimplemented.clear()

    def log(self, line: str) -> None:
        """A line of the hypervisor's log."""
        if self.progress:
            self.progress.clear()
        _tell(line)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """From the recording's first byte to its last, Ctrl-C and a polite kill end the run in order."""
        handlers = {number: signal.signal(number, self.interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def interrupt(self, number: int, _frame: FrameType | None) -> None:
        """Ctrl-C: end in order; a second one ends at once."""
        if self.interrupted:
            os._exit(128 + number)
        self.interrupted = True
        self.machine.stop()

    # --- the end ---------------------------------------------------------------------------------------------------

    def finish_lines(self) -> None:
        """Print what guests have left unfinished on their last lines."""
        try:
            for domain in self.machine.domains:
                rest = self.lines.pop(domain.id, b"")
                if rest:
                    self.out.write(f"{domain.name}: ".encode() + rest + b"\n")
            self.out.flush()
        except OSError as error:
            self.interrupted = True
            self.stdout_failed(error)

    @staticmethod
    def stdout_failed(error: OSError) -> None:
        """Nobody reads stdout any more, or its disk is full: what is left to say there is not tried again."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _tell(f"xentui: stdout cannot be written: {error.strerror}: the run was ended")

    def report(self, reason: str) -> None:
        """What a user needs to know of the end, on stderr."""
        for finding in self.machine.findings:
            _tell(f"xentui: audit: {finding}")
        for name, counts in self.unimplemented.items():
            calls = ", ".join(f"{call} ({times}x)" for call, times in _named(counts).items())
            _tell(f"xentui: {name}: not implemented, answered -ENOSYS: {calls}")
        if reason == "starved":
            _tell("xentui: every domain waits for an event that will not come (type with --input)")


def _tell(line: str) -> None:
    """A line on stderr, which may be full or closed: nobody could be told of that."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _named(counts: dict[int, int]) -> dict[str, int]:
    """Hypercall numbers by name."""
    from xentui.engine.xen.abi.hypercalls import NAMES

    return {NAMES.get(number, f"hypercall {number}"): count for number, count in sorted(counts.items())}


class _Progress:
    """A line on the terminal's stderr that says how far the run is, rewritten in place."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.began = self.next = time.monotonic()
        self.next += _SHOW_SECONDS
        self.shown = False

    def show(self) -> None:
        """Once in a while."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + _PROGRESS_SECONDS
        entry = self.machine.entry
        sys.stderr.write(
            f"\r\x1b[K[{now - self.began:5.1f} s, virtual {self.machine.now() / 1e9:8.3f} s, "
            f"{entry.hypercalls:,} hypercalls, {entry.traps:,} traps]"
        )
        sys.stderr.flush()
        self.shown = True

    def clear(self) -> None:
        """Take the line away before something else is printed."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self.shown = False
