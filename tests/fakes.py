"""A machine without a processor, and small domains in it, for tests of the hypervisor's own logic."""

from __future__ import annotations

from array import array
from typing import Any

from xentui.engine.clock import FastClock
from xentui.engine.trace import TraceRing
from xentui.engine.x86.native import BLOCK_WORDS
from xentui.engine.x86.paging import ACCESSED, DIRTY, PRESENT, RW, USER
from xentui.engine.x86.state import DF, EF_DF, EFLAGS, HFLAGS, MASK32, RIP, STATE_SIZE, State
from xentui.engine.x86.watchpoints import Watchpoint
from xentui.engine.xen import mm, mmu_update
from xentui.engine.xen.domain import Domain, Vcpu
from xentui.engine.xen.grant_entries import GrantTable
from xentui.engine.xen.hypervisor import Hypervisor
from xentui.engine.xen.page import FrameTable

P, W, U, A, D = PRESENT, RW, USER, ACCESSED, DIRTY
TABLE = P | W | U | A
DATA = P | W | U | A | D
STACK_PFN = 40
"""The page that tests put hypercall arguments into."""


class FakeDebugRegisters:
    """Keeps what the processor would look out for."""

    def __init__(self) -> None:
        self.addresses: set[int] = set()
        self.points: list[Watchpoint] = []

    @property
    def in_use(self) -> bool:
        return bool(self.addresses or self.points)

    def watch_code(self, addresses: set[int]) -> None:
        self.addresses = set(addresses)

    def watch_data(self, points: list[Watchpoint], _ram: memoryview) -> None:
        self.points = list(points)

    def resume_past(self) -> None:
        """Nothing runs here."""


class FakeProcessor:
    """What the hypervisor asks of a processor; counts the flushes, and has a TLB that keeps what it may."""

    def __init__(self) -> None:
        self.state = State.of(bytes(STATE_SIZE))
        self.budget = array("q", [0] * BLOCK_WORDS)
        self.reset_state = bytes(STATE_SIZE)
        self.vcpu: object | None = None
        self.debug_registers = FakeDebugRegisters()
        self.flushes = 0
        self.page_flushes: list[int] = []
        self.code_flushes = 0
        self.cr3 = 0
        self.tlb: dict[int, tuple[int, bool]] = {}
        """Page number to frame and right to write, as `Guest.touch` has left them."""

    def load_cr3(self, address: int) -> None:
        self.cr3 = address
        self.flush_tlb()

    def flush_tlb(self) -> None:
        self.flushes += 1
        self.tlb.clear()

    def flush_page(self, address: int) -> None:
        self.page_flushes.append(address)
        self.tlb.pop(address >> 12, None)

    def flush_code(self) -> None:
        self.code_flushes += 1

    def read_flags(self) -> int:
        return self.flags_of(self.state)

    def flags_of(self, state: State) -> int:
        return state.q[EFLAGS] | (EF_DF if state.i[DF] == MASK32 else 0)

    def write_flags(self, value: int) -> None:
        self.state.q[EFLAGS] = value & ~EF_DF
        self.state.i[DF] = MASK32 if value & EF_DF else 1


class Guest:
    """A domain with its frames in order, and its first page tables as machine frame numbers."""

    def __init__(self, domain: Domain, p2m: list[int], tables: dict[str, int]) -> None:
        self.domain = domain
        self.vcpu = domain.vcpus[0]
        self.hv = domain.hv
        self.p2m = p2m
        self.tables = tables
        """`l1`, `l2`, `l3`, `l4` (64-bit), `l2_last` (32-bit)."""

    def entry(self, pfn: int, flags: int = DATA) -> int:
        """A page-table entry for one of the domain's frames."""
        return self.p2m[pfn] << 12 | flags

    def write(self, address: int, words: list[int], code: str = "Q") -> int:
        """Put values at a virtual address, which is also where they lie as pseudo-physical; returns it."""
        data = array(code, words).tobytes()
        start = (self.p2m[address >> 12] << 12) + (address & 0xFFF)
        self.hv.ram[start : start + len(data)] = data
        return address

    def read(self, address: int, count: int = 1, code: str = "Q") -> list[int]:
        """Values at a virtual address."""
        size = array(code).itemsize * count
        start = (self.p2m[address >> 12] << 12) + (address & 0xFFF)
        return array(code, bytes(self.hv.ram[start : start + size])).tolist()

    def touch(self, address: int) -> None:
        """Access a page as the guest would, which leaves a translation in the processor's TLB."""
        space, ram64 = self.vcpu.space, self.hv.ram64
        writable, where = True, -1
        for level in (4, 3, 2, 1):
            where = space.entry_at(address, level)
            if where < 0 or not ram64[where] & P:
                return
            writable = writable and bool(ram64[where] & W)
        self.vcpu.processor.tlb.setdefault(address >> 12, (ram64[where] >> 12 & 0xFF_FFFF_FFFF, writable))

    def update(self, pointer: int, value: int) -> int:
        """mmu_update with one request."""
        return mmu_update.do_mmu_update(self.vcpu, self.write(STACK_PFN << 12, [pointer, value]), 1, 0, 0x7FF0)


def make_hypervisor(frames: int = 512, seed: int = 1) -> Hypervisor:
    """Machine memory with the hypervisor's M2P in it, and no domains."""
    ram = memoryview(bytearray(frames << 12))
    hv = Hypervisor(ram, FrameTable(frames, seed), FastClock(), TraceRing(1024))
    m2p = hv.frames.allocate_xen(-(-frames * 8 // 4096))
    compat = hv.frames.allocate_xen(-(-frames * 4 // 4096))
    hv.m2p_index, hv.m2p_compat_index = m2p << 9, compat << 10
    hv.xen_l4_slots = {256: hv.frames.allocate_xen(1) << 12 | P | U | A}
    hv.compat_l2_slots = {0x1AC: hv.frames.allocate_xen(1) << 12 | P | A}
    hv.zero_frame = hv.frames.allocate_xen(1)
    hv.reserved_gdt_frame = {32: hv.zero_frame, 64: hv.zero_frame}
    return hv


def make_guest(
    hv: Hypervisor, number: int, width: int, pages: int = 64, processor: Any = None, loose: int = 0
) -> Guest:
    """A domain whose pages lie at their pseudo-physical addresses; its tables are mapped read-only, pinned, loaded.

    The `loose` pages behind its tables are mapped nowhere.
    """
    domain = Domain(hv, number, f"guest{number}", width)
    hv.domains[number] = domain
    processor = processor or FakeProcessor()
    p2m = hv.frames.allocate(pages, number)
    domain.max_pages = domain.tot_pages = pages
    for pfn, mfn in enumerate(p2m):
        hv.set_m2p(mfn, pfn)
    vcpu = Vcpu(domain, 0, processor)
    domain.vcpus.append(vcpu)
    domain.perdomain_l3, window = hv.frames.allocate_xen(1), hv.frames.allocate_xen(1)
    domain.gdt_window = [window]
    domain.xen_frames = [domain.perdomain_l3, window]
    names = ("l1", "l2", "l3", "l4") if width == 64 else ("l1", "l2", "l3", "l2_last")
    tables = dict(zip(names, p2m, strict=False))
    ram64 = hv.ram64
    for pfn, mfn in enumerate(p2m):
        if len(names) <= pfn < len(names) + loose:
            continue
        ram64[(tables["l1"] << 9) + pfn] = mfn << 12 | (P | U | A if pfn < len(names) else DATA)
    ram64[tables["l2"] << 9] = tables["l1"] << 12 | TABLE
    ram64[tables["l3"] << 9] = tables["l2"] << 12 | (TABLE if width == 64 else P)
    if width == 64:
        ram64[tables["l4"] << 9] = tables["l3"] << 12 | TABLE
    else:
        ram64[(tables["l3"] << 9) + 3] = tables["l2_last"] << 12 | P
        vcpu.monitor_table = hv.frames.allocate_xen(1)
        domain.xen_frames.append(vcpu.monitor_table)
    processor.vcpu = vcpu
    vcpu.i[HFLAGS] = 1 if width == 32 else 3
    vcpu.q[RIP] = STACK_PFN << 12
    domain.grants = GrantTable(domain)
    mm.validate_initial_tables(domain, vcpu, tables["l4" if width == 64 else "l3"])
    return Guest(domain, p2m, tables)
