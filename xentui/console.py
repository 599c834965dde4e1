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

    from xentui.config import GuestSpec
    from xentui.engine.process import Engine

DEMONSTRATION = ("hello32", "hello64")
"""The guests of the built-in demonstration: one of each width."""


def problem_with_terminal() -> str:
    """Why the console cannot be shown here, in a line; "" where it can."""
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):  # Textual draws by stderr
        return "the console needs a terminal for input, output and errors; without one use --record FILE"
    if os.environ.get("TERM", "dumb") == "dumb":
        return "the console needs a terminal that can move its cursor (TERM is dumb or not set); or use --record FILE"
    return ""


def show(options: argparse.Namespace, specs: list[GuestSpec]) -> int:
    """Run the guests under the console until the user leaves; the exit status."""
    problem = problem_with_terminal()
    if problem:
        print(f"xentui: {problem}", file=sys.stderr)
        return EXIT_USAGE
    engine = _start(options, specs)
    try:
        from xentui.app import XentuiApp

        app = XentuiApp(engine)
        app.run()
    finally:
        engine.close()
    if engine.failure is not None:
        print(f"xentui: {engine.failure.text}", file=sys.stderr)
        return EXIT_USAGE
    return app.return_code or EXIT_OK


def _start(options: argparse.Namespace, specs: list[GuestSpec]) -> Engine:
    """The engine's process, on its way."""
    from xentui.engine.messages import Setup
    from xentui.engine.process import Engine

    typist = None
    if options.input:
        typist = (options.input, options.prompt.pattern if options.prompt else None)
    return Engine.start(
        Setup(
            specs,
            pace=options.pace,
            seed=options.seed,
            direct_traps=not options.no_direct_trap,
            typist=typist,
        )
    )
