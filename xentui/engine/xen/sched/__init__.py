"""Scheduling policies, one module each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xentui.engine.xen.sched.policy import Policy

POLICIES = ("credit", "bvt")
"""Names of the policies, the default first."""


def make_policy(name: str, pcpus: int = 1) -> Policy:
    """The policy called `name`, with its usual parameters, for so many physical processors.

    Raises ValueError for a name that is none.
    """
    if name == "credit":
        from xentui.engine.xen.sched.credit import Credit

        return Credit(pcpus=pcpus)
    if name == "bvt":
        from xentui.engine.xen.sched.bvt import BorrowedVirtualTime

        return BorrowedVirtualTime(pcpus=pcpus)
    raise ValueError(f"unknown scheduler {name!r}: one of {', '.join(POLICIES)}")
