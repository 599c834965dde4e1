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
import gc
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
RAM = 1 << 20
HEADER = 40  # bytes of struct uc_context before the processor's state


def bare_round_trip() -> float:
    """Microseconds for one SYSCALL in a loop at ring 3: hook, context save, one register, context restore.

    Unicorn's public interface alone: its Python binding, and ctypes for the two calls on a context.
    """
    import unicorn.unicorn_py3.unicorn as binding
    from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INTR, UC_MODE_64, UC_PROT_ALL, Uc
    from unicorn import x86_const as x86

    from xentui.engine.x86 import selftest, state
    from xentui.engine.x86.control_registers import CR0_VALUE, CR4_VALUE, EFER_VALUE
    from xentui.engine.xen.domain_builder import set_flat_segments

    pages = mmap.mmap(-1, RAM)
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map_ptr(0, RAM, UC_PROT_ALL, ctypes.addressof(ctypes.c_char.from_buffer(pages)))
    selftest._build(memoryview(pages))
    uc.reg_write(x86.UC_X86_REG_CR4, CR4_VALUE)
    uc.reg_write(x86.UC_X86_REG_MSR, (0xC000_0080, EFER_VALUE))
    uc.reg_write(x86.UC_X86_REG_CR3, selftest._TABLES)
    uc.reg_write(x86.UC_X86_REG_CR0, CR0_VALUE)
    loop = bytes.fromhex("49b9") + struct.pack("<Q", TRAPS) + bytes.fromhex("0f05 49ffc9 75f9 f4")
    pages[selftest._CODE : selftest._CODE + len(loop)] = loop

    lib, context = ctypes.CDLL(binding.uclib._name), ctypes.c_void_p()
    for call in (lib.uc_context_save, lib.uc_context_restore):
        call.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    lib.uc_context_alloc(uc._uch, ctypes.byref(context))
    lib.uc_context_save(uc._uch, context)
    saved = (ctypes.c_uint8 * state.STATE_SIZE).from_address((context.value or 0) + HEADER)
    registers = state.State(memoryview(saved).cast("B"))
    set_flat_segments(registers, 64)
    registers.q[state.RSP] = selftest._STACK
    lib.uc_context_restore(uc._uch, context)

    def syscall(_uc: object, _data: object) -> None:
        lib.uc_context_save(uc._uch, context)
        registers.q[state.RAX] = 0
        lib.uc_context_restore(uc._uch, context)

    uc.hook_add(UC_HOOK_INSN, syscall, None, 1, 0, x86.UC_X86_INS_SYSCALL)
    uc.hook_add(UC_HOOK_INTR, lambda *_: uc.emu_stop())
    began = time.perf_counter()
    uc.emu_start(selftest._CODE, 0)
    return (time.perf_counter() - began) / TRAPS * 1e6


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
    gc.freeze()  # as the command does
    gc.set_threshold(100_000, 50, 100)
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
