"""Promotion and demotion of a whole L1 table in vector arithmetic, where nothing about it is out of the ordinary.

Both functions change nothing and return False where any entry needs a closer look: the loops in promotion.py then do
it entry by entry, with the refusals and frees in their order. numpy is loaded only once there has been work enough to
be worth it: most guests never need it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from xentui.engine.x86.paging import FRAME_MASK, GLOBAL, PRESENT, RW, USER
from xentui.engine.xen.page import VALIDATED, WRITABLE
from xentui.engine.xen.pte import GUEST_KERNEL, L1_DISALLOW

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain

MANY = 1600
"""Tables done entry by entry until what that cost more, some 0.06 ms each, is what loading numpy costs."""

_work = [0]


def ready() -> bool:
    """Is vector arithmetic to be used for the next table?"""
    if "numpy" in sys.modules:
        return True
    _work[0] += 1
    return _work[0] > MANY


def promote_l1(domain: Domain, mfn: int) -> bool:
    """Take what all entries of a table refer to, if every one may be; was that so?"""
    import numpy

    frames = domain.hv.frames
    words = numpy.frombuffer(domain.hv.ram64, "<u8", 512, mfn << 12)
    present = words[words & PRESENT != 0]
    targets = (present & FRAME_MASK) >> 12
    if (present & L1_DISALLOW).any() or (targets >= frames.count).any():
        return False
    targets = targets.astype("int64")
    if not _different(targets) or (frames.array("owner")[targets] != domain.id).any():
        return False
    types, uses, written = frames.array("type"), frames.array("type_count"), targets[present & RW != 0]
    fresh = written[types[written] != WRITABLE]
    if len(fresh):
        if uses[fresh].any():
            return False
        types[fresh] = WRITABLE
        frames.array("flags")[fresh] |= VALIDATED
    uses[written] += 1
    frames.array("ref_count")[targets] += 1
    if domain.width == 64:
        kernel = words & (PRESENT | USER) == PRESENT
        user = words & (PRESENT | USER | GUEST_KERNEL | GLOBAL) == PRESENT | USER
        words[kernel] |= GUEST_KERNEL | USER
        words[user] |= GLOBAL
    return True


def demote_l1(domain: Domain, mfn: int) -> bool:
    """Drop what all entries of a table refer to, if no frame is freed by that; was that so?"""
    import numpy

    frames = domain.hv.frames
    words = numpy.frombuffer(domain.hv.ram64, "<u8", 512, mfn << 12)
    present = words[words & PRESENT != 0]
    targets = ((present & FRAME_MASK) >> 12).astype("int64")
    references = frames.array("ref_count")
    if not _different(targets) or (references[targets] <= 1).any():
        return False
    references[targets] -= 1
    frames.array("type_count")[targets[present & RW != 0]] -= 1
    return True


def _different(targets: Any) -> bool:
    """Does every entry name a frame of its own, so that each is counted once?"""
    ordered = targets.copy()
    ordered.sort()
    return not (ordered[1:] == ordered[:-1]).any()
