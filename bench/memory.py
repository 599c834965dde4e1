"""What direct paging costs: ``python bench/memory.py``.

First beside real Xen: the guest ``bench64`` on Xen 4.17 under QEMU's emulation and here in both paces, in turn, as
``bench/against_xen.py`` does it, for the operations on page tables alone. Then alone, in this process and without a
guest: a 64 MiB address space built and pinned, promotion of single tables, and the frame table of a 4 GiB machine.
``--alone`` leaves Xen out. ``--linux N`` boots Debian's Linux to its /init N times besides,
each time with the validator and without it (``--no-validator``): what validation costs a real kernel.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.against_xen import init_reached  # noqa: E402
from bench.beside_xen import here, progress, report_ratios, rounds  # noqa: E402
from tests.fakes import DATA, TABLE, P, U, make_guest, make_hypervisor  # noqa: E402
from xentui.engine.xen import page_type, vector  # noqa: E402
from xentui.engine.xen.page import L1, L2, L4, FrameTable  # noqa: E402

TARGETS = {"update_va_mapping": 3.0, "mmu_update_512": 2.0, "pin_unpin": 1.0, "pte_store": 2.0}
"""Xen's time over ours, fast pace, at least."""
LINUX_COST = 1.1
"""How many times longer Linux may take to its /init because of the validator."""
ADDRESS_SPACE_MS, FRAME_TABLE_MB = 100, 40
"""The targets of what is measured alone, at most."""
SPACE_FRAMES = 64 << 8
MACHINE_FRAMES = 4 << 18
LEVELS = {"L1": L1, "L2": L2}


# --- alone ----------------------------------------------------------------------------------------------------------


def address_space() -> tuple[float, float]:
    """Seconds to write the page tables of a 64 MiB address space, and to pin their L4, of a 64-bit domain."""
    hv = make_hypervisor(SPACE_FRAMES + 1024)
    guest = make_guest(hv, 1, 64, pages=128)
    start = time.perf_counter()
    data = hv.frames.allocate(SPACE_FRAMES, 1)
    tables = hv.frames.allocate(SPACE_FRAMES // 512 + 3, 1)
    guest.domain.tot_pages += len(data) + len(tables)
    ram64, (l4, l3, l2, *l1s) = hv.ram64, tables
    for number, table in enumerate(l1s):
        entries = [mfn << 12 | DATA for mfn in data[number << 9 : (number + 1) << 9]]
        ram64[table << 9 : (table + 1) << 9] = memoryview(b"".join(e.to_bytes(8, "little") for e in entries)).cast("Q")
        ram64[(l2 << 9) + number] = table << 12 | TABLE
    ram64[l3 << 9], ram64[l4 << 9] = l2 << 12 | TABLE, l3 << 12 | TABLE
    built = time.perf_counter()
    if page_type.get_page_and_type(guest.domain, l4, L4):
        raise RuntimeError(f"the address space was refused: {hv.frames.refusal}")
    return built - start, time.perf_counter() - built


def promotion(level: str) -> float:
    """Microseconds to promote and demote a full table, whose entries refer to frames (L1) or to empty L1s (L2)."""
    guest = make_guest(make_hypervisor(2048), 1, 64, pages=640, loose=636)
    table, hv, domain = guest.p2m[100], guest.hv, guest.domain
    for slot in range(512):
        hv.ram64[(table << 9) + slot] = guest.p2m[101 + slot] << 12 | (P | U if level == "L1" else TABLE)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        if page_type.get_page_and_type(domain, table, LEVELS[level]):
            raise RuntimeError(f"the {level} was refused: {hv.frames.refusal}")
        page_type.put_page_and_type(domain, table)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def frame_table_bytes() -> int:
    """Bytes that the frame table of a 4 GiB machine takes, all of it counted."""
    import tracemalloc

    tracemalloc.start()
    table = FrameTable(MACHINE_FRAMES)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    if table.count != MACHINE_FRAMES:
        raise RuntimeError("the frame table has not the frames asked for")
    return size


def report_alone(runs: int) -> bool:
    """Measure and print what needs no Xen; whether every target was reached."""
    spaces = [address_space() for _ in range(runs)]
    build, pin = (statistics.median(times) * 1e3 for times in zip(*spaces, strict=True))
    fast = build + pin < ADDRESS_SPACE_MS
    size = frame_table_bytes() / 1e6
    small = size <= FRAME_TABLE_MB
    print(f"64 MiB address space    {build:7.1f} ms to build, {pin:.1f} ms to pin: {build + pin:.1f} ms", end="  ")
    print(f"< {ADDRESS_SPACE_MS} ms {'reached' if fast else 'MISSED'}")
    for level in LEVELS:
        print(f"promote and demote {level}   {promotion(level):7.1f} µs, 512 entries")
    importlib.import_module("numpy")  # from now on, validation by vector arithmetic
    if not vector.ready():
        raise RuntimeError("vector arithmetic is not used although numpy is there")
    print(f"the same, L1 by numpy   {promotion('L1'):7.1f} µs")
    print(f"frame table of 4 GiB    {size:7.1f} MB  <= {FRAME_TABLE_MB} MB {'reached' if small else 'MISSED'}")
    return fast and small


def report_linux(runs: int) -> bool:
    """Linux to its /init with the validator beside without, in pairs, either first by turns."""
    from tests.kernels import POWEROFF_INIT, REACHED, fetch_kernels, make_initrd

    kernel = fetch_kernels().linux
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        disk = make_initrd(Path(folder) / "initrd.gz", POWEROFF_INIT)
        arguments = [str(kernel), "--ramdisk", str(disk), "--cmdline", "console=hvc0", "--memory", "512"]
        ways = {True: arguments, False: [*arguments, "--no-validator", kernel.name]}
        for number in range(runs):
            progress(f"Linux, pair {number + 1} of {runs}")
            order = (True, False) if number & 1 else (False, True)
            found = {way: init_reached(here("fast", ways[way], until=REACHED)) for way in order}
            ratios.append(found[True] / found[False])
    progress("")
    cost = statistics.median(ratios)
    print(f"Linux to /init          {cost:7.2f} times as long as without the validator  <= {LINUX_COST}", end=" ")
    print("reached" if cost <= LINUX_COST else "MISSED")
    return cost <= LINUX_COST


def main() -> int:
    """Measure and print; exit status 1 with --check when a target is missed, 2 when something cannot run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of ten rounds each (default 5)")
    parser.add_argument("--scale", type=int, default=10, help="length of a sample, in tenths of 0.05 s (default 10)")
    parser.add_argument("--alone", action="store_true", help="without real Xen")
    parser.add_argument("--linux", type=int, default=0, metavar="N", help="pairs of boots of Linux")
    parser.add_argument("--xen-options", default="", metavar="TEXT", help="more of Xen's command line")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a target is missed")
    options = parser.parse_args()
    if options.runs < 1 or options.scale < 1 or options.linux < 0:
        parser.error("--runs and --scale must be at least 1, --linux at least 0")
    reached = True
    try:
        if not options.alone:
            results = rounds(tuple(TARGETS), options.runs, options.scale, options.xen_options)
            reached = report_ratios(results, TARGETS)
        reached &= report_alone(options.runs)
        if options.linux:
            reached &= report_linux(options.linux)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2
    return 0 if reached or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
