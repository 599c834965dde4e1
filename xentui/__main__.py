"""`python -m xentui` and the `xentui` command."""

from __future__ import annotations

import os
import signal
import sys

_EXIT_LIMIT = 3  # as record.EXIT_LIMIT, which is not imported yet


def main() -> int:
    """Run the command line; the exit status."""
    # while modules are imported, an exception out of nowhere comes up as something else, or not at all
    signal.signal(signal.SIGINT, _interrupted)
    _open_missing()
    from xentui.cli import run

    return run(sys.argv[1:])


def _interrupted(_number: int, _frame: object) -> None:
    """Ctrl-C while nothing runs that would have to be ended in order."""
    os.write(2, b"xentui: interrupted\n")
    os._exit(_EXIT_LIMIT)


def _open_missing() -> None:
    """A standard stream that the shell has closed (`>&-`) goes nowhere, and is not some other file of ours."""
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
