"""Lists of physical processors as `xl` writes them: `all`, `2`, `0-1,3`, `all,^0` (man xl.cfg, cpus)."""

from __future__ import annotations

import re

from xentui.engine.xen.sched.policy import MAX_PCPUS

ALL = -1
_RANGE = re.compile(r"(\^?)(?:(all)|([0-9]{1,4})(?:-([0-9]{1,4}))?)")


def parse(listed: str) -> int:
    """A bit for each physical processor of a list; `ALL` for all that there may be. Raises ValueError, in one line."""
    everywhere = (1 << MAX_PCPUS) - 1
    mask = 0
    for item in listed.replace(" ", "").split(","):
        match = _RANGE.fullmatch(item)
        if match is None:
            raise ValueError(f"{listed!r} is no list of processors; write all, 2, 0-1 or all,^0")
        first = 0 if match[2] else int(match[3])
        last = MAX_PCPUS - 1 if match[2] else int(match[4] or first)
        if not first <= last < MAX_PCPUS:
            raise ValueError(f"{item} are no processors that a machine may have: 0 to {MAX_PCPUS - 1}")
        bits = (1 << last + 1) - (1 << first)
        mask = mask & ~bits if match[1] else mask | bits
    if not mask:
        raise ValueError(f"{listed!r} leaves no processor")
    return ALL if mask == everywhere else mask


def text(mask: int) -> str:
    """A mask as a list."""
    if mask == ALL:
        return "all"
    numbers = [number for number in range(MAX_PCPUS) if mask >> number & 1]
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
