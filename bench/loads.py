"""Machines full of `load` guests, and what those have counted: what isolation.py and switches.py measure with."""

from __future__ import annotations

import gc
import re
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xentui.config import GuestSpec, resolve_guest
from xentui.engine.machine import Machine
from xentui.engine.trace import COLUMNS, Kind
from xentui.engine.xen.domain import RUNNING, Domain

MS = 1_000_000
MEMORY = 8
"""MiB of a load guest, enough for both widths."""
_RECORD = numpy.dtype(list(COLUMNS))
_COUNTERS = struct.Struct("<8sQQQ")


class Count(NamedTuple):
    """What a load has done at some moment."""

    units: int
    """In its mode's own unit."""
    late_total: int
    """Nanoseconds by which its wake-ups were late, together."""
    late_most: int
    run_time: int
    """Nanoseconds of virtual time that its vCPU has had the processor."""


class Load:
    """A domain with a load guest."""

    def __init__(self, domain: Domain, mode: str) -> None:
        self.domain, self.mode = domain, mode
        self.frame = -1
        """Where it counts, once it has said so."""

    def count(self) -> Count:
        """What it has done by now."""
        (vcpu,) = self.domain.vcpus
        hv = self.domain.hv
        now = hv.clock.now()
        run_time = vcpu.runstate_time[RUNNING] + (now - vcpu.runstate_since) * (vcpu.runstate == RUNNING)
        magic, units, late_total, late_most = _COUNTERS.unpack_from(hv.ram, self.frame << 12)
        if magic != b"XENLOAD1":
            raise RuntimeError(f"{self.domain.name}: its counters are not in frame {self.frame:#x}")
        return Count(units, late_total, late_most, run_time)


class Loads:
    """A machine on which nothing but loads run.

    `memory`: MiB that are left for domains that grab some; `mixed`: 64-bit and 32-bit in turn, else all 64-bit.
    """

    def __init__(
        self, modes: list[str], *, scheduler: str = "credit", pace: str = "exact", memory: int = 0, mixed: bool = False
    ) -> None:
        self.mixed = mixed
        self._switches = 0
        self.machine = Machine(len(modes) * MEMORY + memory + 4, scheduler=scheduler, pace=pace, flush=self._count)
        self.machine.toolstack.on_output = self._hear
        self.loads = [self._create(number, mode, memory) for number, mode in enumerate(modes)]
        gc.freeze()  # as the command does
        gc.set_threshold(100_000, 50, 100)

    def _create(self, number: int, mode: str, memory: int) -> Load:
        spec: GuestSpec = resolve_guest("load32" if self.mixed and number % 2 else "load64")
        spec.name, spec.memory, spec.cmdline = f"{mode.split()[0]}{number}", MEMORY, f"mode={mode}"
        spec.maxmem = MEMORY + (memory if mode.startswith("memory") else 0)
        return Load(self.machine.create(spec), mode)

    def _hear(self, domain: Domain, data: bytes) -> None:
        found = re.search(rb"counts in frame 0x([0-9a-f]+)", data)
        for load in self.loads if found else ():
            if load.domain is domain and found:
                load.frame = int(found[1], 16)

    def _count(self, rows: memoryview) -> None:
        """Count the context switches in a piece of the trace."""
        self._switches += int((numpy.frombuffer(rows, _RECORD)["kind"] == Kind.SCHEDULE).sum())

    @property
    def switches(self) -> int:
        """Context switches so far."""
        self.machine.trace.flush()
        return self._switches

    def start(self) -> None:
        """Let every guest come to its work."""
        deadline = self.machine.now() + 600_000 * MS
        while any(load.frame < 0 for load in self.loads):
            if self.machine.now() > deadline:
                raise RuntimeError("a load guest does not start")
            self.machine.run(self.machine.now() + 50 * MS)

    def run(self, ns: int) -> float:
        """Run for so much virtual time; the host processor's seconds that it took."""
        began = time.process_time()
        self.machine.run(self.machine.now() + ns)
        return time.process_time() - began

    def close(self) -> None:
        """Give the memory back."""
        self.machine.close()
