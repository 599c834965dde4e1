"""What a run depends on: given the same, the exact pace gives the same run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xentui.config import GuestSpec


@dataclass
class Setup:
    """All that a run depends on."""

    specs: list[GuestSpec]
    memory: int | None = None
    """MiB for all guests together; None for what they ask for."""
    pace: str = "exact"
    seed: int = 0
    cpus: int = 1
    """Physical processors."""
    direct_traps: bool = True
    scheduler: str = "credit"
    wall_clock: int | None = None
    """Nanoseconds since 1970 when virtual time is 0; None for the pace's usual."""
    typist: tuple[bytes, bytes | None] | None = None
    """What is typed into the first guest's console by itself: the text, and a prompt's pattern or None."""
    actions: list[tuple[int, Any]] = field(default_factory=list)
    """(position, Action): influences from outside that are known in advance (a replay, faults to inject)."""
    images: dict[str, bytes] = field(default_factory=dict)
    """Kernels and ramdisks by the path that the guests give, where they shall not be read from there (a replay)."""
    end_position: int = 0
    """How far the run is known to go (a replay), in half nanoseconds."""
    end_time: int = 0
    """The same as virtual nanoseconds."""
    end_records: int = 0
    """Trace records up to there."""
