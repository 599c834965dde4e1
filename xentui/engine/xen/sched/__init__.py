"""Scheduling policies, one module each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xentui.engine.xen.sched.policy import Policy

POLICIES = ("credit", "bvt")
"""Names of the policies, the default first."""


def make_policy(name: str) -> Policy:
    """The policy called `name`, with its usual parameters. Raises ValueError for a name that is none."""
    if name == "credit":
        from xentui.engine.xen.sched.credit import Credit

        return Credit()
    if name == "bvt":
        from xentui.engine.xen.sched.bvt import BorrowedVirtualTime

        return BorrowedVirtualTime()
    raise ValueError(f"unknown scheduler {name!r}: one of {', '.join(POLICIES)}")
