"""What to run to, as the user writes it, and as the keys have it, in the engine's own form (engine/breakpoints.py)."""

from __future__ import annotations

from typing import Any

KINDS = {
    "hypercall": "the next hypercall, or that of a name",
    "crossing": "control passing between rings",
    "event": "an event upcall, or that of a port",
    "switch": "a context switch",
    "refusal": "the page-table validator refusing something",
}
"""The conditions that have keys."""


def condition(kind: str, argument: str = "") -> Any:
    """A condition from its words. Raises ValueError (an ExpressionError among them) with one line."""
    from xentui.engine import breakpoints

    return breakpoints.parse(f"{kind} {argument}".strip())
