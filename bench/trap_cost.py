#!/usr/bin/env python3
"""What a trap costs: the null hypercall beside the bare round trip of a trap through a saved context.

    python bench/trap_cost.py [--runs 5]

The yardstick is the least that a hypervisor on Unicorn's public interface can do: a Python hook on SYSCALL that saves
the processor's context, changes a register in it and restores it. Against it stands the whole null hypercall
(xen_version from bench64: dispatch, clock, trace record and the guest's own stub included), in both paces. Figures are
medians, in turn, so that a change of the machine's speed meets both; the ratio is what counts (target: at most 2).
Last, the same in the exact pace with a recording written to a file, which may cost a quarter more.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import re
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TRAPS = 100_000
RAM, TABLES, CODE, STACK = 1 << 20, 0x1000, 0x8000, 0x9000
HEADER = 40  # bytes of struct uc_context before the processor's state


def bare_round_trip() -> float:
    """Microseconds for one SYSCALL in a loop at ring 3: hook, context save, one register, context restore."""
    from xentui.engine.x86 import selftest
    from xentui.engine.x86 import unicorn_api as uc
    from xentui.engine.x86.cpu import Processor

    pages = mmap.mmap(-1, RAM)
    anchor = ctypes.c_char.from_buffer(pages)
    ram = memoryview(pages)
    processor = Processor(ctypes.addressof(anchor), RAM, count_code=False)
    context = ctypes.c_void_p()
    for name in ("uc_context_save", "uc_context_restore"):
        getattr(uc.lib, name).argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    uc.lib.uc_context_alloc(ctypes.c_void_p(processor.handle), ctypes.byref(context))
    gpr = (ctypes.c_uint64 * 16).from_address((context.value or 0) + HEADER)
    save, restore, handle, address = uc.lib.uc_context_save, uc.lib.uc_context_restore, processor.handle, context.value

    class Traps(selftest._Witness):
        def syscall(self) -> None:
            save(handle, address)
            gpr[0] = 0
            restore(handle, address)

        def exception(self, vector: int) -> None:
            processor.stop()

    processor.connect(Traps(processor))
    selftest._build(ram)
    loop = bytes.fromhex("49b9") + struct.pack("<Q", TRAPS) + bytes.fromhex("0f05 49ffc9 75f9 f4")
    selftest._enter(processor, ram, loop, wide=True)
    began = time.perf_counter()
    processor.run()
    took = time.perf_counter() - began
    processor.close()
    return took / TRAPS * 1e6


def null_hypercall(pace: str, recording: str = "") -> float:
    """Microseconds of the host for one xen_version of bench64, between its markers; recorded to a file if given."""
    from xentui.config import resolve_guest
    from xentui.engine.machine import Machine
    from xentui.recording.writer import RecordingWriter

    spec = resolve_guest("bench64")
    spec.cmdline = "only=xen_version scale=100"
    writer = RecordingWriter(recording, {}) if recording else None
    machine = Machine(spec.memory, pace=pace, flush=writer.trace_chunk if writer else None)
    moments: list[float] = []
    text = bytearray()

    def hear(_domain: object, data: bytes) -> None:
        text.extend(data)
        if len(moments) < text.count(b"xen_version\r\n") + text.count(b"xen_version\n"):
            moments.append(time.perf_counter())

    machine.toolstack.on_output = hear
    machine.create(spec)
    machine.run()
    machine.trace.flush()
    machine.close()
    if writer:
        writer.close({})
    count = re.search(rb"n=(\d+)", text)
    assert count is not None and len(moments) >= 2, bytes(text)
    return (moments[1] - moments[0]) / int(count[1]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    figures: dict[str, list[float]] = {"bare": [], "fast": [], "exact": [], "recorded": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs):
            figures["bare"].append(bare_round_trip())
            for pace in ("fast", "exact"):
                figures[pace].append(null_hypercall(pace))
            figures["recorded"].append(null_hypercall("exact", f"{folder}/out.xtrace"))
    bare = statistics.median(figures["bare"])
    print(f"medians of {runs}")
    print(f"bare trap, context saved and restored   {bare:6.2f} us")
    for pace in ("fast", "exact"):
        cost = statistics.median(figures[pace])
        verdict = "reached" if cost <= 2 * bare else "MISSED"
        print(f"null hypercall, {pace} pace {'':<16} {cost:6.2f} us   {cost / bare:5.2f} times   at most 2: {verdict}")
    recorded, exact = statistics.median(figures["recorded"]), statistics.median(figures["exact"])
    verdict = "reached" if recorded <= 1.25 * exact else "MISSED"
    print(f"the same, recorded {'':<20} {recorded:6.2f} us   {recorded / exact:5.2f} times   at most 1.25: {verdict}")


if __name__ == "__main__":
    main()
