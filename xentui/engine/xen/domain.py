"""Domains and their virtual CPUs: what the hypervisor remembers of each.

Registers of a running vCPU live in the processor (`vcpu.q`, `vcpu.i`: x86/state.py); everything here is what real
Xen keeps in struct vcpu and struct domain (xen/include/asm-x86/domain.h).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xentui.engine.x86.paging import AddressSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from xentui.engine.x86.cpu import Processor
    from xentui.engine.xen.event_channel import EventChannels
    from xentui.engine.xen.grant_entries import GrantTable
    from xentui.engine.xen.hypervisor import Hypervisor

# RUNSTATE_* of public/vcpu.h
RUNNING, RUNNABLE, BLOCKED, OFFLINE = 0, 1, 2, 3

NO_FRAME = -1
CR2_64, _CR2_32 = 16, 8
"""Where in vcpu_info the address of a page fault is: arch.cr2."""
set_cr2_64, _set_cr2_32 = struct.Struct("<Q").pack_into, struct.Struct("<I").pack_into


class LazyNx(set[int]):
    """`ram64` indices of initial L1 entries whose NX is the domain builder's, to be taken off at the first fetch."""

    def __init__(self, entries: Iterable[int] = ()) -> None:
        super().__init__(entries)
        self._marks: dict[int, bytearray] | None = None

    @property
    def marks(self) -> dict[int, bytearray]:
        """The same by the frames of the tables that they are in: a byte of each of its entries, 1 for these.

        Made once, as it takes 30 ms for 512 MB: no entry comes later, and one that was discarded alone stays marked,
        which costs whoever looks at it no more than a `drop` of what is not there.
        """
        if self._marks is None:
            self._marks = {index >> 9: bytearray(512) for index in self}
            for index in self:
                self._marks[index >> 9][index & 511] = 1
        return self._marks

    def drop(self, entries: list[int]) -> None:
        """Take those of the entries out that are there, and their marks."""
        self.difference_update(entries)
        for index in entries:
            table = self.marks.get(index >> 9)
            if table is not None:
                table[index & 511] = 0


class TrapHandler:
    """One entry of a guest's trap table (public/arch-x86/xen.h, struct trap_info)."""

    __slots__ = ("address", "dpl", "masks_events", "selector")

    def __init__(self, address: int, selector: int, dpl: int, masks_events: bool) -> None:
        self.address = address
        """Where the handler starts."""
        self.selector = selector
        """Its code segment; 64-bit guests always get the flat one."""
        self.dpl = dpl
        """The least privileged ring that may raise the vector with INT n."""
        self.masks_events = masks_events
        """Entering the handler also masks event upcalls, as an interrupt gate clears IF."""


class Vcpu:
    """A virtual CPU. Times are in nanoseconds of virtual time; `info` is its vcpu_info, in guest memory."""

    def __init__(self, domain: Domain, number: int, processor: Processor) -> None:
        self.domain = domain
        self.hv = domain.hv
        self.id = number
        self.width = domain.width
        self.processor = processor
        self.q, self.i, self.raw = processor.state.q, processor.state.i, processor.state.raw
        self.read_flags = processor.read_flags
        self.ram = domain.hv.ram
        self.space = AddressSpace(domain.hv.ram64)
        self.saved: bytes = processor.reset_state
        """The processor's state while another vCPU has the processor."""

        # where it is and what it runs on
        self.kernel_mode = True
        """64-bit guests: kernel (True) or user; both run in ring 3 and only the hypervisor knows."""
        self.guest_table = NO_FRAME
        """Frame of the kernel's top-level page table (L4, or L3 of a PAE guest)."""
        self.guest_table_user = NO_FRAME
        """Frame of the user L4 of a 64-bit guest."""
        self.in_reset = False
        """VCPUOP_initialise has been preempted or refused between the two: it has no context yet (_VPF_in_reset)."""
        self.monitor_table = NO_FRAME
        """The hypervisor's own L4 above a 32-bit guest's L3."""
        self.old_guest_table = NO_FRAME
        """A page table that is on its way out, PARTIAL, with a reference of this vCPU's: the next hypercall on page
        tables goes on with it before all else (Xen: arch.old_guest_table)."""
        self.kernel_ss, self.kernel_sp = 0, 0
        self.inactive_gs_base = 0
        """The GS base of the mode that is not running: the user's while in the kernel, and the other way round."""

        # what it asked for
        self.traps: list[TrapHandler | None] = [None] * 256
        self.event_callback = (0, 0)
        """(selector, address)"""
        self.failsafe_callback = (0, 0)
        self.failsafe_masks_events = False
        self.syscall_callback = 0
        self.syscall_masks_events = False
        self.syscall32_callback = (0, 0)
        self.syscall32_masks_events = False
        self.sysenter_callback = (0, 0)
        self.sysenter_masks_events = False
        self.iopl = 0
        self.io_bitmap, self.io_bitmap_ports = 0, 0
        self.gdt_frames: list[int] = []
        self.gdt_entries = 0
        self.ldt_base, self.ldt_entries = 0, 0
        self.cr0_ts = False
        self.cr4 = 0
        self.debug = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]

        # events and scheduling
        self.info: memoryview = memoryview(bytearray(64))
        """vcpu_info: byte 0 is evtchn_upcall_pending, byte 1 evtchn_upcall_mask."""
        self.info_frame, self.info_offset = NO_FRAME, 0
        self.online = False
        self.parked = False
        """The scheduler does not let it run for now, because its domain has used more than its cap."""
        self.affinity = -1
        """A bit for each physical processor that it may run on (Xen: cpu_hard_affinity); -1: on all."""
        self.pcpu = 0
        """The number of the physical processor that it runs on, or ran on last."""
        self.runstate = OFFLINE
        self.runstate_since = 0
        self.runstate_time = [0, 0, 0, 0]
        self.runstate_area = 0
        """Guest virtual address of the runstate area it registered, or 0."""
        self.time_area = 0
        self.in_multicall = False
        self.continuation: tuple[int, ...] | None = None
        """The arguments with which the entry of a multicall that was preempted goes on (continuation.py)."""
        self.virtual_alarm: int | None = None
        """The virtual time at which it wants its alarm (virtual_timer.py)."""
        self.poll_ports: tuple[int, ...] | None = None
        self.virq_ports: dict[int, int] = {}
        self.nmi_pending = self.in_nmi = False
        self.boot_registers: dict[str, int] = {}
        """What VCPUOP_initialise gave it, until it first runs; 64-bit names (`rax`, `rip`, `cs`, `fs_base`)."""

    @property
    def name(self) -> str:
        """`d1v0`, as Xen's log has it."""
        return f"d{self.domain.id}v{self.id}"

    @property
    def runnable(self) -> bool:
        """May it run, unless it is blocked? (Xen: vcpu_runnable)"""
        return self.online and not self.parked and self.domain.runnable

    @property
    def in_kernel(self) -> bool:
        """Is the guest's kernel running (rather than its user code)? (Xen: guest_kernel_mode)"""
        if self.width == 64:
            return self.kernel_mode
        return self.i[44] & 3 == 1

    def set_cr2(self, address: int) -> None:
        """Tell the guest where its page fault was (vcpu_info.arch.cr2; it cannot read the register)."""
        if self.width == 64:
            set_cr2_64(self.info, CR2_64, address)
        else:
            _set_cr2_32(self.info, _CR2_32, address & 0xFFFF_FFFF)

    def flush_tlb(self) -> None:
        """Drop every cached translation of this vCPU."""
        self.space.flush()
        if self.processor.vcpu is self:
            self.processor.flush_tlb()

    def flush_page(self, address: int) -> None:
        """Drop the cached translation of the page at `address`."""
        space, page = self.space, address >> 12
        space.reads.pop(page, None)
        space.writes.pop(page, None)
        if self.processor.vcpu is self:
            self.processor.flush_page(address)


class Domain:
    """A domain: a guest, its memory, its vCPUs and its ends of what is shared."""

    def __init__(self, hv: Hypervisor, number: int, name: str, width: int) -> None:
        self.hv = hv
        self.id = number
        self.name = name
        self.width = width
        """32 or 64: the word size of its kernel."""
        self.handle = number.to_bytes(16, "big")
        """UUID."""
        self.vcpus: list[Vcpu] = []
        self.max_pages = 0
        """Frames that it may hold at most."""
        self.tot_pages = 0
        """Frames that it holds now."""
        self.vm_assist = 0
        self.shared_info_frame = NO_FRAME
        self.shared_info: memoryview = memoryview(b"")
        self.gdt_window: list[int] = []
        """Frames of the per-domain L1 tables behind the descriptor-table window, one for each vCPU."""
        self.perdomain_l3 = NO_FRAME
        self.xen_frames: list[int] = []
        """The hypervisor's own frames that are there for this domain: freed when it is destroyed."""
        self.memory_map: list[tuple[int, int, int]] = []
        """(start, size, type) in bytes: what XENMEM_memory_map answers."""
        self.validated = True
        """Are its page tables checked? Only `--no-validator` (unchecked.py) says no."""
        self.refusals_logged = 0
        """Refusals of the page-table validator that the log has told or counted."""
        self.lazy_nx = LazyNx()
        self.event_frames: list[int] = []
        """Frames of its own in which the FIFO event channels' queues are."""
        self.events: EventChannels
        self.grants: GrantTable
        self.kernel: Path | None = None
        """The file that it was started from."""
        self.console_frame, self.console_port = NO_FRAME, 0
        self.store_frame, self.store_port = NO_FRAME, 0
        self.shutdown_code: int | None = None
        """SHUTDOWN_* once it has shut down."""
        self.announced_shutdown_code: int | None = None
        """The reason that the domain gave in advance (SCHEDOP_shutdown_code); it counts before all later ones."""
        self.crash_reason = ""
        self.crashed_vcpu: Vcpu | None = None
        """The vCPU that made the domain crash."""
        self.console_io_line = bytearray()
        """What it has written by CONSOLEIO_write of a line not ended yet."""
        self.paused = 0
        self.dying = False
        self.wall_clock_offset = 0
        """Nanoseconds by which its wall clock is ahead of the machine's."""
        self.unimplemented: dict[int, int] = {}
        """Hypercall number to how often it got -ENOSYS."""
        self.on_shutdown: Callable[[Domain], None] | None = None

    @property
    def long_size(self) -> int:
        """Bytes in the guest's `unsigned long`."""
        return self.width // 8

    @property
    def runnable(self) -> bool:
        """May its vCPUs run at all?"""
        return self.shutdown_code is None and not self.paused and not self.dying

    def flush_tlb(self) -> None:
        """Drop every cached translation of every vCPU."""
        for vcpu in self.vcpus:
            vcpu.flush_tlb()
