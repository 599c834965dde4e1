"""What to run to, as the user writes it: a breakpoint of the engine's (engine/breakpoints.py), used once or set."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xentui.engine.breakpoints import Breakpoint

WORDS = ("hypercall", "vector", "port", "crossing", "exception", "upcall", "switch", "refusal")
"""What can be asked for by a word; `hypercall`, `vector` and `port` take an argument."""
OTHERS = ("break", "tbreak", "watch", "rwatch", "awatch")
_PLACE = re.compile(r"0x[0-9a-fA-F]+|[A-Za-z_.][\w.]*(?:\+\w+)?")


def condition(text: str) -> Breakpoint:
    """A condition from its text: `hypercall mmu_update`, `main`, `watch 0xc0001000 8`, or an expression.

    Raises BreakpointError, one line.
    """
    from xentui.engine.breakpoints import Breakpoint
    from xentui.engine.conditions import BreakpointError

    text = text.strip()
    place = text.partition(" if ")[0]
    if place.startswith("0x"):
        return Breakpoint.parse(f"break {text}")
    try:
        return Breakpoint.parse(text)
    except BreakpointError:
        if not _PLACE.fullmatch(place):
            raise
        return Breakpoint.parse(f"break {text}")
