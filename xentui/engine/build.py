"""A machine from a `Setup`, with its domains."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xentui.config import total_memory
from xentui.engine.machine import DEFAULT_WALL_CLOCK, Machine
from xentui.engine.trace import CHUNK_RECORDS, RECORD_SIZE, RING_HEADER_SIZE

if TYPE_CHECKING:
    from xentui.config import GuestSpec
    from xentui.engine.setup import Setup
    from xentui.engine.trace import Flush


def build_machine(setup: Setup, ring: memoryview | None = None, flush: Flush | None = None) -> Machine:
    """The machine and its domains, nothing run yet. `ring`: where the trace ring shall lie.

    Raises ConfigError, ImageError, OutOfMemory, UnicornMismatchError.
    """
    wall_clock = setup.wall_clock
    if wall_clock is None:
        wall_clock = DEFAULT_WALL_CLOCK if setup.pace == "exact" else time.time_ns()
    machine = Machine(
        setup.memory or total_memory(setup.specs),
        pace=setup.pace,
        cpus=setup.cpus,
        scheduler=setup.scheduler,
        seed=setup.seed,
        wall_clock=wall_clock,
        direct_traps=setup.direct_traps,
        trace_records=CHUNK_RECORDS if ring is None else _capacity(ring),
        trace_buffer=ring,
        flush=flush,
    )
    for spec in setup.specs:
        machine.create(_with_images(spec, setup.images))
    return machine


def _capacity(ring: memoryview) -> int:
    """Records that a buffer holds: a power of two."""
    return 1 << ((len(ring) - RING_HEADER_SIZE) // RECORD_SIZE).bit_length() - 1


def _with_images(spec: GuestSpec, images: dict[str, bytes]) -> GuestSpec:
    """The guest with its files taken from `images`, as far as they are there."""
    if not images:
        return spec
    ramdisk = spec.ramdisk and _as_file(spec.ramdisk, images)
    return replace(spec, kernel=_as_file(spec.kernel, images), ramdisk=ramdisk)


def _as_file(path: Path, images: dict[str, bytes]) -> Path:
    """A file without a name that holds the image of that path. It lasts as long as the process: domains reboot."""
    content = images.get(str(path))
    if content is None:
        return path
    fd = os.memfd_create(path.name)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    return Path(f"/proc/self/fd/{fd}")
