"""`xentui` without --record: the console on a running engine.

The engine's process is started first, so that it builds its machine while Textual is imported here.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from xentui.record import EXIT_OK, EXIT_USAGE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from xentui.config import GuestSpec
    from xentui.demonstration import Demonstration
    from xentui.engine.messages import Setup
    from xentui.gdb.server import Listener
    from xentui.recording.reader import Recording


PAGE_DRIVER = "xentui.page_driver:PageDriver"
"""What TEXTUAL_DRIVER is for a console on a web page."""


def problem_with_terminal() -> str:
    """Why the console cannot be shown here, in a line; "" where it can."""
    if os.environ.get("TEXTUAL_DRIVER") == PAGE_DRIVER:
        return ""
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):  # Textual draws by stderr
        return "the console needs a terminal for input, output and errors; without one use --record FILE"
    if (os.environ.get("TERM") or "dumb") == "dumb":
        return "the console needs a terminal that can move its cursor (TERM is dumb or not set); or use --record FILE"
    return ""


def show(options: argparse.Namespace, specs: list[GuestSpec], gdb: Sequence[Listener] = ()) -> int:
    """Run the guests under the console until the user leaves; the exit status. `gdb`: where gdbs come in."""
    from xentui.record import make_setup

    try:
        return _show(make_setup(options, specs), run=True, gdb=gdb)
    finally:
        for listener in gdb:
            listener.close()


def demonstrate(name: str, present: bool = False) -> int:
    """The console on a guided demonstration, `present`: before an audience; the exit status. Raises ConfigError."""
    from xentui.engine.messages import Setup

    told = checked_demonstration(name)
    return _show(
        Setup(told.specifications(), scheduler=told.scheduler, cpus=told.cpus), run=False, told=told, present=present
    )


def checked_demonstration(name: str) -> Demonstration:
    """A demonstration all of whose steps can be done. Raises ConfigError."""
    from xentui import demonstration
    from xentui.tour import check

    told = demonstration.load(name)
    check(told)
    return told


def replay(path: str) -> int:
    """The console on a recording, paused at its start; the exit status."""
    opened = replayed(path)
    if opened is None:
        return EXIT_USAGE
    recording, setup = opened
    with recording:
        return _show(setup, run=False, recording=recording)


def replayed(path: str) -> tuple[Recording, Setup] | None:
    """A recording, open, and the run that it holds; None, and it is said why, where it cannot be run again."""
    from xentui.recording.format import RecordingError
    from xentui.recording.reader import Recording
    from xentui.session import setup_of

    recording = None
    try:
        recording = Recording(path)
        return recording, setup_of(recording)
    except RecordingError as error:
        print(f"xentui: {error}", file=sys.stderr)
        if recording is not None:
            recording.close()
        return None


def serve(arguments: Sequence[str], port: int) -> int:
    """The console that a command line asks for, on a web page of this machine; the exit status."""
    try:
        from xentui.serve import serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("xentui"):
            raise
        print(f"xentui: --serve needs {error.name}: pip install 'xentui[serve]'", file=sys.stderr)
        return EXIT_USAGE
    try:
        serve(arguments, port)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        print(f"xentui: --serve {port}: cannot listen there: {reason}; another port may be free", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_OK


def _show(
    setup: Setup,
    run: bool,
    recording: Recording | None = None,
    told: Demonstration | None = None,
    gdb: Sequence[Listener] = (),
    present: bool = False,
) -> int:
    """Start the engine and the console on it. `run`: the guests go at once; `recording`: what is
    replayed, where its marks are kept; `told`: the demonstration to show."""
    problem = problem_with_terminal()
    if problem:
        print(f"xentui: {problem}", file=sys.stderr)
        return EXIT_USAGE
    from xentui.engine.process import Engine

    os.environ.setdefault("ESCDELAY", "25")  # ms that Textual waits for what may follow an escape

    with Engine.start(setup) as engine:
        from xentui.app import XentuiApp

        tour = None
        if told is not None:
            from xentui.tour import Tour

            tour = Tour(engine, told)
        app = XentuiApp(engine, run=run, tour=tour, gdb=gdb, present=present)
        if recording is not None:
            app.open_recording(recording)
        app.run()
    if engine.failure is not None:
        print(f"xentui: {engine.failure.text}", file=sys.stderr)
        return EXIT_USAGE
    if app.next_demonstration:
        return demonstrate(app.next_demonstration, app.control.presenting)
    return app.return_code or EXIT_OK
