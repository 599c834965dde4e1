"""What tracing and recording cost: a put, a recorded put, bytes a record, and reading ten million records back.

    python bench/recording.py [--records N] [--keep FILE]

Prints each figure beside what it is compared with, and the ratio. The records are of a made-up run with the mix of a
Linux boot (page-table updates, page faults, I/O ports, events, switches), from a fixed seed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from xentui.engine.trace import CHUNK_RECORDS, RECORD, Kind, TraceRing, dtype, rings, runner
from xentui.recording.reader import Recording
from xentui.recording.writer import RecordingWriter

REPEATS = 5
CHUNKS = 8  # different ones, written in turn with the time moved on
TRAP_US = 5.0  # a cheap trap's handling (a null hypercall), which a record's cost is set against
READ_TARGET = 2.0  # seconds to read ten million records
KERNEL = 0xFFFFFFFF81000000
DIRECT_MAP = 0xFFFF888000000000


def made_up_run(records: int, seed: int) -> np.ndarray[Any, Any]:
    """Records as a booting Linux makes them, all kinds mixed; the same for the same seed."""
    random = np.random.default_rng(seed)
    rows = np.zeros(records, dtype())
    rows["time"] = np.cumsum(random.exponential(4000, records).astype(np.uint64) + 300)
    places = np.uint64(KERNEL) + random.integers(0, 1 << 22, 60).astype(np.uint64)
    rows["rip"] = places[random.integers(0, len(places), records)]
    rows["domain"] = 1 + (random.random(records) < 0.2)
    page = np.arange(records, dtype=np.uint64) * np.uint64(4096)
    mfn = random.integers(0, 1 << 17, records).astype(np.uint64) << np.uint64(12)
    which = random.random(records)

    def fill(low: float, high: float, **columns: Any) -> None:
        chosen = (which >= low) & (which < high)
        for name, value in columns.items():
            rows[name][chosen] = value[chosen] if isinstance(value, np.ndarray) else value

    fill(0.00, 0.35, kind=Kind.HYPERCALL, number=1, a=0xFFFFC90000001000, b=1, d=0x7FF0)
    fill(0.35, 0.50, kind=Kind.HYPERCALL, number=14, a=np.uint64(DIRECT_MAP) + page, b=mfn | np.uint64(0x63), c=2)
    fill(0.50, 0.65, kind=Kind.HYPERCALL, number=26, a=0xFFFFC90000003E58, b=1, d=0x7FF0)
    fill(0.65, 0.75, kind=Kind.IO_PORT, number=0x42, b=1, c=random.integers(0, 256, records).astype(np.uint64))
    address = random.integers(0, 1 << 30, records).astype(np.uint64) + np.uint64(0x7F0000000000)
    fill(0.75, 0.85, kind=Kind.PAGE_FAULT, number=6, a=address, c=KERNEL + 0xA00B40, d=rings(3, 3))
    fill(0.85, 0.92, kind=Kind.IRET, a=address, b=0x246, c=0x7FFE00001000, d=rings(3, 3))
    fill(0.92, 0.96, kind=Kind.SCHEDULE, number=10_000, a=runner(1, 0), b=runner(2, 0), c=mfn)
    fill(0.96, 1.01, kind=Kind.EVENT_SEND, number=random.integers(1, 8, records).astype(np.uint32), b=3)
    return rows


def median_us(work: Callable[[], int]) -> float:
    """Median µs an item over some runs of `work`, which returns how many items it did."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        items = work()
        times.append((time.perf_counter() - start) / items * 1e6)
    return statistics.median(times)


def line(what: str, value: float, unit: str, against: str, ratio: float) -> None:
    """One line of the table."""
    print(f"{what:<44} {value:9.3f} {unit:<10} {against:<44} {ratio:6.2f}")


def bench_put(rows: np.ndarray[Any, Any], path: str) -> None:
    """A put alone, beside a bare pack and beside a trap; and recorded."""
    calls = [tuple(row) for row in rows.tolist()]
    buffer = memoryview(bytearray(RECORD.size))

    def bare() -> int:
        pack_into = RECORD.pack_into
        for t, rip, kind, vcpu, domain, number, a, b, c, d, result in calls:
            pack_into(buffer, 0, t, rip, kind, vcpu, domain, number, a, b, c, d, result)
        return len(calls)

    def puts(ring: TraceRing) -> int:
        put = ring.put
        for t, rip, kind, vcpu, domain, number, a, b, c, d, result in calls:
            put(t, rip, kind, vcpu, domain, number, a, b, c, d, result)
        return len(calls)

    def recorded() -> int:
        with RecordingWriter(path, {}) as writer:
            ring = TraceRing(flush=writer.trace_chunk)
            puts(ring)
            ring.flush()
            writer.close({})
        return len(calls)

    pack = median_us(bare)
    put = median_us(lambda: puts(TraceRing()))
    whole = median_us(recorded)
    line("pack one record", pack, "µs", "", 1.0)
    line("put into the ring", put, "µs", "over packing", put / pack)
    line("put and record (columns, zstd, checksum)", whole, "µs", "over put", whole / put)
    line("recording, of a trap's cost", whole - put, "µs", f"of a trap of {TRAP_US:.0f} µs", (whole - put) / TRAP_US)


def bench_write(records: int, path: str) -> None:
    """Write many chunks; their speed and size."""
    chunks = [made_up_run(CHUNK_RECORDS, seed) for seed in range(CHUNKS)]
    span = np.uint64(max(int(chunk["time"][-1]) for chunk in chunks) + 1)
    for number, chunk in enumerate(chunks):
        chunk["time"] += np.uint64(number) * span
    spent = 0.0
    with RecordingWriter(path, {"benchmark": "recording"}) as writer:
        written = 0
        while written < records:
            chunk = chunks[written // CHUNK_RECORDS % CHUNKS]
            rows = chunk[: records - written]
            start = time.perf_counter()
            writer.trace_chunk(memoryview(rows.view(np.uint8)))
            spent += time.perf_counter() - start
            written += len(rows)
            chunk["time"] += np.uint64(CHUNKS) * span
        writer.close({})
    size = os.path.getsize(path)
    line("written", written / spent / 1e6, "M/s", "over 1 M/s (200,000 traps/s × 5)", written / spent / 1e6)
    line("bytes a record on disk", size / written, "bytes", f"of {RECORD.size} in memory", size / written / RECORD.size)


def bench_read(path: str) -> None:
    """Open, read all, seek."""
    start = time.perf_counter()
    recording = Recording(path)
    opened = time.perf_counter() - start
    count = len(recording)
    target = READ_TARGET * count / 10_000_000
    line(f"open {count / 1e6:.0f} M records", opened, "s", f"of {READ_TARGET} s for 10 M", opened / target)

    start = time.perf_counter()
    for name in ("time", "kind", "domain", "number"):
        recording.columns(name)
    four = time.perf_counter() - start
    line("... and read time, kind, domain, number", four, "s", "of the same", (opened + four) / target)
    start = time.perf_counter()
    low = 0
    while low < count:
        recording.records(low, low + 1_000_000)
        low += 1_000_000
    whole = time.perf_counter() - start
    line("read whole records, a million at a time", whole, "s", "of the same", whole / target)

    times = recording.columns("time", count // 2, count // 2 + 1)
    seek = median_us(lambda: recording.find_time(int(times[0])) and recording.records(-100, None).size and 1)
    line("a moment and 100 records, warm", seek, "µs", "of a frame at 15 Hz", seek / (1e6 / 15))
    recording.close()


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000_000, help="how many records to write and read back")
    parser.add_argument("--keep", metavar="FILE", help="keep the recording there")
    options = parser.parse_args()
    print(f"{'':<44} {'median':>9} {'':<10} {'compared with':<44} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        path = options.keep or os.path.join(folder, "bench.xtrace")
        bench_put(made_up_run(2 * CHUNK_RECORDS, 1), path)
        bench_write(options.records, path)
        bench_read(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line("peak memory", peak, "MiB", "of the records in memory", peak * 2**20 / (options.records * RECORD.size))
    return 0


if __name__ == "__main__":
    sys.exit(main())
