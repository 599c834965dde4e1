"""Numbers and states in words, the same in every pane."""

from __future__ import annotations

import re

from rich.cells import cell_len, set_cell_size

from xentui.engine.clock import MAX_NS

STATES = {
    "r": "running",
    "b": "blocked",
    "p": "paused",
    "s": "shut down",
    "c": "crashed",
    "d": "dying",
}
"""The letters of `xl list`."""

_STAND_INS = {"\t": "    ", "\u00a0": " ", "\n": " "}
_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "min": 60_000_000_000}


def clock(ns: int) -> str:
    """A virtual time to the nanosecond: `0.012 345 678 s`."""
    seconds, rest = divmod(max(0, ns), 1_000_000_000)
    digits = f"{rest:09d}"
    return f"{seconds}.{digits[:3]} {digits[3:6]} {digits[6:]} s"


def duration(ns: float) -> str:
    """A time in the unit that suits it: `12.3 ms`."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(ns) >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"


def count(number: float) -> str:
    """A number in at most five columns: `987`, `12.3k`, `4.56M`."""
    for limit, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(number) >= limit:
            value = number / size
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}"
    return f"{number:.0f}"


def parse_time(text: str) -> int:
    """`20ms` or `1.5 s` in nanoseconds. Raises ValueError with one line."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zµ]+)", text.strip())
    unit = match[2].replace("µ", "u") if match else ""
    if match is None or unit not in _UNITS:
        raise ValueError(f"{text!r} is not a time: a number and a unit ({', '.join(_UNITS)}), as in 20ms")
    return round(min(float(match[1]) * _UNITS[unit], MAX_NS))


def plain(text: str) -> str:
    """Text from a guest without what a terminal would obey, or might take for more or less than a column."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _STAND_INS.get(c, "�") for c in text)


def speed(rate: float | None) -> str:
    """Instructions a second, in words."""
    return "full speed" if rate is None else f"{count(rate)} instr/s" if rate != 1 else "1 instr/s"


def spoken(ns: int) -> str:
    """A virtual time as it is said aloud: `200.12 milliseconds`."""
    for unit, size in (("seconds", 1_000_000_000), ("milliseconds", 1_000_000), ("microseconds", 1_000)):
        if ns >= size:
            return f"{ns / size:.2f} {unit}"
    return f"{ns} nanoseconds"


def shortened(text: str, cells: int) -> str:
    """A text in at most so many columns, with a sign where it goes on."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, cells - 1).rstrip() + "…" if cells > 0 else ""
