"""Builds a domain from a kernel image: memory, the initial layout, and the first vCPU.

What the guest finds is what Xen's toolstack gives a domU (tools/libs/guest: xg_dom_core.c, xg_dom_x86.c): kernel,
ramdisk, P2M, start_info, xenstore ring, console ring, page tables and boot stack, one behind the other from VIRT_BASE
on, mapped up to the next 4 MiB with half a MiB to spare.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from typing import TYPE_CHECKING

from xentui.engine.x86 import segmentation
from xentui.engine.x86 import state as s
from xentui.engine.x86.paging import ACCESSED, DIRTY, NX, PAGE_SHIFT, PAGE_SIZE, PRESENT, RW, USER
from xentui.engine.x86.state import State
from xentui.engine.xen import hypercall, mm, segment_registers
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi.arch_x86 import XEN_LEGACY_MAX_VCPUS
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.boot_tables import BootTables
from xentui.engine.xen.domain import OFFLINE, RUNNABLE, Domain, LazyNx, Vcpu
from xentui.engine.xen.elf import ImageError
from xentui.engine.xen.event_channel import EventChannels
from xentui.engine.xen.grant_entries import GrantTable

if TYPE_CHECKING:
    from xentui.engine.x86.cpu import Processor
    from xentui.engine.xen.elf import KernelImage
    from xentui.engine.xen.hypervisor import Hypervisor

SLACK = 512 << 10  # bytes mapped beyond what is used, at least
ALIGN = 4 << 20  # the initial mapping ends at a multiple of this
GUEST_TYPE = {32: b"xen-3.0-x86_32p", 64: b"xen-3.0-x86_64"}
E820_RAM = 1
PERDOMAIN_START = 0xFFFF_8200_0000_0000
PERDOMAIN_SLOT, M2P_SLOT = 260, 256
COMPAT_M2P_START = 0xF580_0000
WINDOW_PAGES = 32
"""Pages of the descriptor-table window that a vCPU has: 16 for its GDT, 16 for its LDT."""
TABLE_PROT = PRESENT | RW | ACCESSED | DIRTY
_MAX_RAMDISK = 1 << 30


def build_slots(hv: Hypervisor) -> None:
    """Make what the hypervisor's slot of every address space shows: the M2P tables and the reserved GDT pages."""
    frames, ram64 = hv.frames, hv.ram64
    m2p_frames = (frames.count * 8 + PAGE_SIZE - 1) >> PAGE_SHIFT
    compat_frames = (frames.count * 4 + PAGE_SIZE - 1) >> PAGE_SHIFT
    m2p, compat = frames.allocate_xen(m2p_frames), frames.allocate_xen(compat_frames)
    hv.m2p_index, hv.m2p_compat_index = m2p << 9, compat << 10
    hv.ram[m2p << PAGE_SHIFT : (m2p + m2p_frames) << PAGE_SHIFT] = b"\xff" * (m2p_frames << PAGE_SHIFT)
    hv.ram[compat << PAGE_SHIFT : (compat + compat_frames) << PAGE_SHIFT] = b"\xff" * (compat_frames << PAGE_SHIFT)

    l2s = _read_only_l1s(hv, m2p, m2p_frames, PRESENT | ACCESSED | USER | NX)
    l3, l2 = frames.allocate_xen(1), 0
    for number, l1 in enumerate(l2s):
        if number % 512 == 0:
            l2 = frames.allocate_xen(1)
            ram64[(l3 << 9) + number // 512] = l2 << PAGE_SHIFT | PRESENT | ACCESSED | USER
        ram64[(l2 << 9) + number % 512] = l1 << PAGE_SHIFT | PRESENT | ACCESSED | USER
    hv.xen_l4_slots[M2P_SLOT] = l3 << PAGE_SHIFT | PRESENT | ACCESSED | USER

    first = COMPAT_M2P_START >> 21 & 511
    for number, l1 in enumerate(_read_only_l1s(hv, compat, compat_frames, PRESENT | ACCESSED | NX)):
        hv.compat_l2_slots[first + number] = l1 << PAGE_SHIFT | PRESENT | ACCESSED
    hv.zero_frame = frames.allocate_xen(1)
    for width in (32, 64):
        page = frames.allocate_xen(1)
        hv.reserved_gdt_frame[width] = page
        hv.ram[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT] = segmentation.reserved_gdt_page(width)


def _read_only_l1s(hv: Hypervisor, first: int, count: int, prot: int) -> list[int]:
    """L1 tables that map `count` frames from `first` on, in order."""
    l1s = []
    for start in range(0, count, 512):
        l1 = hv.frames.allocate_xen(1)
        for number in range(min(512, count - start)):
            hv.ram64[(l1 << 9) + number] = (first + start + number) << PAGE_SHIFT | prot
        l1s.append(l1)
    return l1s


class DomainBuilder:
    """One domain in the making; `build` is the whole of it."""

    def __init__(self, hv: Hypervisor, processor: Processor, image: KernelImage, domain: Domain) -> None:
        self.hv, self.processor, self.image, self.domain = hv, processor, image, domain
        self.wide = domain.width == 64
        self.layout = LAYOUT64 if self.wide else LAYOUT32
        self.p2m: list[int] = []
        self.next_pfn = 0
        self.tables = BootTables(domain.width)
        self.initrd_start = self.initrd_size = 0
        self.flags = core.SIF_VIRT_P2M_4TOOLS  # of any toolstack's domain (xg_dom_core.c, xc_dom_allocate)

    @property
    def virt_end(self) -> int:
        """The first address behind what is laid out so far."""
        return self.image.virt_base + (self.next_pfn << PAGE_SHIFT)

    def build(self, pages: int, ramdisk: bytes | None, cmdline: str, vcpus: int) -> None:
        """Give the domain `pages` frames and everything in them. Raises ImageError where they do not suffice."""
        domain, image = self.domain, self.image
        self.p2m = self.hv.frames.allocate(pages, domain.id)
        domain.tot_pages, domain.max_pages = pages, max(domain.max_pages, pages)
        domain.memory_map = [(0, pages << PAGE_SHIFT, E820_RAM)]
        self._set_m2p()
        self._build_perdomain(vcpus)

        self._reserve((image.virt_kend - image.virt_base + PAGE_SIZE - 1) >> PAGE_SHIFT, "the kernel")
        self._load_kernel()
        unpacked = self._unpack(ramdisk)
        if unpacked and not image.mod_start_pfn:
            self.initrd_start = self.virt_end
            self._load_ramdisk(unpacked)
            self.initrd_size = (len(unpacked) + PAGE_SIZE - 1) & -PAGE_SIZE
        p2m_bytes = (pages * domain.long_size + PAGE_SIZE - 1) & -PAGE_SIZE
        p2m_pfn, p2m_address = 0, image.init_p2m
        if p2m_address is None:
            p2m_address = self.virt_end
            p2m_pfn = self._reserve(p2m_bytes >> PAGE_SHIFT, "the P2M")
        start_info = self._reserve(1, "start_info")
        self.start_info_address = image.virt_base + (start_info << PAGE_SHIFT)
        self.store_pfn, self.console_pfn = self._reserve(1, "the xenstore ring"), self._reserve(1, "the console ring")
        table_pfn, boot_stack = self._place_tables()
        if unpacked and image.mod_start_pfn:
            self.flags |= core.SIF_MOD_START_PFN
            self.initrd_start = self._load_ramdisk(unpacked)
            self.initrd_size = (len(unpacked) + PAGE_SIZE - 1) & -PAGE_SIZE
        if image.init_p2m is not None:
            p2m_pfn = self._place_p2m(image.init_p2m, p2m_bytes)
        self._write_p2m(p2m_pfn)
        domain.lazy_nx = LazyNx(self.tables.write(self.hv.ram64, self.p2m, self._code()))
        self._share(vcpus)
        self._write_start_info(start_info, p2m_address, p2m_pfn, p2m_bytes, table_pfn, cmdline)
        if image.hypercall_page is not None:
            page = self.p2m[(image.hypercall_page - image.virt_base) >> PAGE_SHIFT]
            self._write_frame(page, hypercall.hypercall_page(domain.width))
        self._start_vcpu(table_pfn, start_info, boot_stack)

    # --- memory --------------------------------------------------------------------------------------------------

    def _reserve(self, pages: int, what: str) -> int:
        """The next `pages` pseudo-physical frames; the first."""
        first = self.next_pfn
        self.next_pfn += pages
        if self.next_pfn > len(self.p2m):
            raise ImageError(
                str(self.image.path),
                f"{len(self.p2m) >> 8} MiB of memory do not hold {what}",
                remedy=f"give the domain more (--memory or memory=); at least {-(-self.next_pfn // 256)} MiB",
            )
        return first

    def _set_m2p(self) -> None:
        """Tell both M2P tables what each of the domain's frames is to it."""
        wide, compat = self.hv.m2p_index, self.hv.m2p_compat_index
        ram64, ram32 = self.hv.ram64, self.hv.ram32
        for pfn, mfn in enumerate(self.p2m):
            ram64[wide + mfn] = pfn
            ram32[compat + mfn] = pfn

    def _write_frame(self, mfn: int, data: bytes) -> None:
        self.hv.ram[mfn << PAGE_SHIFT : (mfn << PAGE_SHIFT) + len(data)] = data

    def _write(self, address: int, data: bytes | memoryview) -> None:
        """Store bytes at a virtual address of the initial mapping."""
        offset = address - self.image.virt_base
        view, done = memoryview(data), 0
        while done < len(view):
            within = (offset + done) & (PAGE_SIZE - 1)
            take = min(PAGE_SIZE - within, len(view) - done)
            at = (self.p2m[(offset + done) >> PAGE_SHIFT] << PAGE_SHIFT) + within
            self.hv.ram[at : at + take] = view[done : done + take]
            done += take

    def _load_kernel(self) -> None:
        for segment in self.image.segments:
            self._write(segment.vaddr, segment.data)

    def _code(self) -> bytearray:
        """For each pseudo-physical frame: may it hold code? Non-zero pages of the image's executable segments."""
        code = bytearray(len(self.p2m))
        base, zero = self.image.virt_base, bytes(PAGE_SIZE)
        for segment in self.image.segments:
            if segment.executable:
                first, within = divmod(segment.vaddr - base, PAGE_SIZE)
                data = memoryview(segment.data)
                for number, start in enumerate(range(-within, len(data), PAGE_SIZE), first):
                    part = bytes(data[max(0, start) : start + PAGE_SIZE])
                    code[number] |= part != zero[: len(part)]
        return code

    @staticmethod
    def _unpack(ramdisk: bytes | None) -> bytes | None:
        """A gzipped ramdisk is unpacked, as Xen's toolstack does; anything else goes in as it is."""
        if ramdisk and ramdisk[:2] == b"\x1f\x8b":
            try:
                stream = zlib.decompressobj(31)
                plain = stream.decompress(ramdisk, _MAX_RAMDISK)
            except zlib.error:
                return ramdisk
            if stream.eof and not stream.unused_data.strip(b"\0"):
                return plain
        return ramdisk

    def _load_ramdisk(self, data: bytes) -> int:
        """Put the ramdisk into the next frames; the first."""
        pages = (len(data) + PAGE_SIZE - 1) >> PAGE_SHIFT
        first = self._reserve(pages, "the ramdisk")
        view = memoryview(data)
        for number in range(pages):
            self._write_frame(self.p2m[first + number], bytes(view[number << PAGE_SHIFT : (number + 1) << PAGE_SHIFT]))
        return first

    # --- page tables -----------------------------------------------------------------------------------------------

    def _place_tables(self) -> tuple[int, int]:
        """Choose the end of the initial mapping so that its own tables fit, and reserve all up to there.

        Returns the first frame of the tables and that of the boot stack, which lies behind them.
        """
        base = self.image.virt_base
        extra = (SLACK >> PAGE_SHIFT) + 1
        pages = extra
        while True:
            end = (self.virt_end + (pages << PAGE_SHIFT) + ALIGN - 1 | ALIGN - 1) & -ALIGN
            if self.virt_end + (pages << PAGE_SHIFT) & ALIGN - 1 == 0:
                end = self.virt_end + (pages << PAGE_SHIFT)
            mapping = self.tables.plan(base, end - 1, 0)
            pages = len(mapping.tables) + extra
            if self.virt_end + (pages << PAGE_SHIFT) <= end:
                break
        table_pfn = self._reserve(len(mapping.tables), "its page tables")
        self.tables.place(mapping, table_pfn)
        self.nr_pt_frames = len(mapping.tables)
        boot_stack = self._reserve(1, "the boot stack")
        self._reserve((end - base >> PAGE_SHIFT) - self.next_pfn, "the initial mapping")
        return table_pfn, boot_stack

    def _place_p2m(self, address: int, size: int) -> int:
        """A P2M with an address of its own (INIT_P2M) lies behind everything else, its tables behind it."""
        pages = size >> PAGE_SHIFT
        first = self.next_pfn
        mapping = self.tables.plan(address, address + size - 1, first)
        self._reserve(pages + len(mapping.tables), "the P2M")
        self.tables.place(mapping, first + pages)
        self.p2m_frames = pages + len(mapping.tables)
        return first

    def _write_p2m(self, first: int) -> None:
        words = array("Q" if self.wide else "I", self.p2m).tobytes()
        for number in range(0, len(words), PAGE_SIZE):
            self._write_frame(self.p2m[first + (number >> PAGE_SHIFT)], words[number : number + PAGE_SIZE])

    def _build_perdomain(self, vcpus: int) -> None:
        """The per-domain part of the hypervisor's slot: the descriptor-table window of each vCPU."""
        frames, ram64 = self.hv.frames, self.hv.ram64
        domain = self.domain
        domain.perdomain_l3, l2 = frames.allocate_xen(1), frames.allocate_xen(1)
        ram64[domain.perdomain_l3 << 9] = l2 << PAGE_SHIFT | TABLE_PROT
        for number in range((vcpus + 15) // 16):
            l1 = frames.allocate_xen(1)
            domain.gdt_window.append(l1)
            ram64[(l2 << 9) + number] = l1 << PAGE_SHIFT | TABLE_PROT
        domain.xen_frames += [domain.perdomain_l3, l2, *domain.gdt_window]
        reserved = self.hv.reserved_gdt_frame[domain.width] << PAGE_SHIFT | PRESENT | ACCESSED | NX
        empty = self.hv.zero_frame << PAGE_SHIFT | PRESENT | ACCESSED | NX
        for number in range(vcpus):
            window = (domain.gdt_window[number >> 4] << 9) + (number & 15) * WINDOW_PAGES
            for page in range(14):
                ram64[window + page] = empty
            ram64[window + 14] = reserved
            ram64[window + 15] = empty

    # --- what is shared with the guest ---------------------------------------------------------------------------

    def _share(self, vcpus: int) -> None:
        """shared_info, the event channels of console and xenstore, and the vCPUs' vcpu_info."""
        hv, domain, layout = self.hv, self.domain, self.layout
        frame = hv.frames.allocate_xen(1)
        hv.frames.share_with_guest(frame, domain.id)
        domain.shared_info_frame = frame
        start = frame << PAGE_SHIFT
        domain.shared_info = hv.ram[start : start + PAGE_SIZE]
        size = layout.VCPU_INFO_SIZE
        for number in range(XEN_LEGACY_MAX_VCPUS):
            domain.shared_info[layout.SHARED_INFO_vcpu_info + number * size + 1] = 1
        for number in range(vcpus):
            vcpu = Vcpu(domain, number, self.processor)
            vcpu.info_frame = frame
            vcpu.info_offset = layout.SHARED_INFO_vcpu_info + number * size
            vcpu.info = domain.shared_info[vcpu.info_offset : vcpu.info_offset + size]
            domain.vcpus.append(vcpu)
        domain.events = EventChannels(domain)
        domain.grants = GrantTable(domain)
        domain.store_port = domain.events.alloc_unbound_for(0)
        domain.console_port = domain.events.alloc_unbound_for(0)
        domain.store_frame, domain.console_frame = self.p2m[self.store_pfn], self.p2m[self.console_pfn]

    def _write_start_info(
        self, pfn: int, p2m_address: int, p2m_pfn: int, p2m_bytes: int, table_pfn: int, cmdline: str
    ) -> None:
        """The page that the first vCPU finds in RSI (public/xen.h, struct start_info)."""
        domain, layout = self.domain, self.layout
        page = bytearray(PAGE_SIZE)
        long = "<Q" if self.wide else "<I"

        def put(offset: int, value: int, code: str = long) -> None:
            struct.pack_into(code, page, offset, value)

        page[: len(GUEST_TYPE[domain.width])] = GUEST_TYPE[domain.width]
        put(layout.START_INFO_nr_pages, len(self.p2m))
        put(layout.START_INFO_shared_info, domain.shared_info_frame << PAGE_SHIFT)
        put(layout.START_INFO_flags, self.flags, "<I")
        put(layout.START_INFO_store_mfn, domain.store_frame)
        put(layout.START_INFO_store_evtchn, domain.store_port, "<I")
        put(layout.START_INFO_console_domU_mfn, domain.console_frame)
        put(layout.START_INFO_console_domU_evtchn, domain.console_port, "<I")
        put(layout.START_INFO_pt_base, self.image.virt_base + (table_pfn << PAGE_SHIFT))
        put(layout.START_INFO_nr_pt_frames, self.nr_pt_frames)
        put(layout.START_INFO_mfn_list, p2m_address)
        put(layout.START_INFO_mod_start, self.initrd_start)
        put(layout.START_INFO_mod_len, self.initrd_size)
        if self.image.init_p2m is not None:
            put(layout.START_INFO_first_p2m_pfn, p2m_pfn)
            put(layout.START_INFO_nr_p2m_frames, self.p2m_frames)
        text = cmdline.encode()[: core.MAX_GUEST_CMDLINE - 1]
        page[layout.START_INFO_cmd_line : layout.START_INFO_cmd_line + len(text)] = text
        self._write_frame(self.p2m[pfn], bytes(page))

    # --- the first vCPU ------------------------------------------------------------------------------------------

    def _start_vcpu(self, table_pfn: int, start_info: int, boot_stack: int) -> None:
        """Registers as the toolstack sets them (xg_dom_x86.c, vcpu_x86_32 and vcpu_x86_64)."""
        domain, image = self.domain, self.image
        vcpu = domain.vcpus[0]
        base = image.virt_base
        state = State.of(self.processor.reset_state)
        state.q[s.RIP] = image.entry
        state.q[s.RSP] = base + ((boot_stack + 1) << PAGE_SHIFT)
        state.q[s.RSI] = base + (start_info << PAGE_SHIFT)
        set_flat_segments(state, domain.width)
        set_window(vcpu, state)
        vcpu.kernel_sp, vcpu.kernel_ss = state.q[s.RSP], state.i[s.SS]
        if not self.wide and image.pae in ("extended", "bimodal"):
            domain.vm_assist |= 1 << core.VMASST_TYPE_pae_extended_cr3
        for each in domain.vcpus if not self.wide else ():
            each.monitor_table = self.hv.frames.allocate_xen(1)
            domain.xen_frames.append(each.monitor_table)
            write_monitor_slots(self.hv, domain, each.monitor_table)
        top = self.p2m[table_pfn]
        mm.validate_initial_tables(domain, vcpu, top)
        vcpu.guest_table = top
        state.q[s.CR3] = root_of(vcpu)
        if not self.wide:
            self.hv.ram64[vcpu.monitor_table << 9] = top << PAGE_SHIFT | TABLE_PROT | USER
        vcpu.space.switch(root_of(vcpu))
        vcpu.saved = state.save()
        vcpu.online = True
        vcpu.runstate = RUNNABLE
        for other in domain.vcpus[1:]:
            other.runstate = OFFLINE


_GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))


def first_state(vcpu: Vcpu) -> tuple[bytes, bool, bool]:
    """The processor's state with which a vCPU begins that VCPUOP_initialise has described (`boot_registers`).

    The second value is False if the code and stack segments, the third if a data segment may not be loaded in the
    ring of the code selector (3 for a 64-bit guest, never 0); flat and null segments stand in for them.
    """
    registers = vcpu.boot_registers
    state = State.of(vcpu.processor.reset_state)
    for index, name in enumerate(_GENERAL):
        state.q[index] = registers.get(name, 0)
    state.q[s.RIP] = registers["rip"]
    set_flat_segments(state, vcpu.width)
    set_window(vcpu, state)
    code_good, data_good = _load_first_segments(vcpu, state)
    if vcpu.width == 64:
        state.q[s.FS_BASE], state.q[s.GS_BASE] = registers["fs_base"], registers["gs_base"]
    flags = registers["rflags"]
    state.q[s.CC_SRC] = flags & s.EF_CONDITIONS
    state.i[s.DF] = s.MASK32 if flags & s.EF_DF else 1
    state.q[s.EFLAGS] = flags & 0x3F_7FD7 & ~(s.EF_CONDITIONS | s.EF_DF | s.EF_IOPL | s.EF_VM) | s.EF_IF | s.EF_FIXED
    state.q[s.CR3] = vcpu.space.root
    return state.save(), code_good, data_good


def _load_first_segments(vcpu: Vcpu, state: State) -> tuple[bool, bool]:
    """Load what `boot_registers` names, checked as the processor checks a return; see `first_state` for the result."""
    registers = vcpu.boot_registers
    forced = 3 if vcpu.width == 64 else 0
    cs, ss = registers["cs"] | forced, registers["ss"] | forced
    ring = max(1, cs & 3)
    code, stack = segment_registers.segment(vcpu, cs), segment_registers.segment(vcpu, ss)
    code_good = (
        code is not None
        and stack is not None
        and segmentation.code_loadable(code[2], cs & 3, ring)
        and segmentation.stack_loadable(stack[2], ss & 3, ring)
    )
    if code_good and code is not None and stack is not None:
        segmentation.load_segment(state, s.CS, cs, *code)
        segmentation.load_segment(state, s.SS, ss, *stack)
    data_good = True
    for register, name in ((s.DS, "ds"), (s.ES, "es"), (s.FS, "fs"), (s.GS, "gs")):
        selector = registers[name]
        found = segment_registers.segment(vcpu, selector)
        if found is not None and segmentation.data_loadable(found[2], selector & 3, ring):
            segmentation.load_segment(state, register, selector, *found)
        else:
            segmentation.load_segment(state, register, 0, 0, 0, 0)
            data_good = data_good and selector < 4
    return code_good, data_good


def root_of(vcpu: Vcpu) -> int:
    """The physical address that CR3 holds while the vCPU's kernel runs."""
    frame = vcpu.guest_table if vcpu.width == 64 else vcpu.monitor_table
    return frame << PAGE_SHIFT


def write_monitor_slots(hv: Hypervisor, domain: Domain, frame: int) -> None:
    """The hypervisor's slots in the L4 that it keeps above a 32-bit guest's L3."""
    for slot, entry in hv.xen_l4_slots.items():
        hv.ram64[(frame << 9) + slot] = entry
    hv.ram64[(frame << 9) + PERDOMAIN_SLOT] = domain.perdomain_l3 << PAGE_SHIFT | TABLE_PROT


def set_window(vcpu: Vcpu, state: State) -> None:
    """Point GDTR at the vCPU's part of the descriptor-table window; there is no LDT yet."""
    state.q[s.GDT_BASE] = PERDOMAIN_START + vcpu.id * (WINDOW_PAGES << PAGE_SHIFT)
    state.i[s.GDT + s.LIMIT] = 0xFFFF
    state.q[s.LDT_BASE] = state.q[s.GDT_BASE] + (16 << PAGE_SHIFT)
    state.i[s.LDT], state.i[s.LDT + s.LIMIT] = 0, 0


def set_flat_segments(state: State, width: int) -> None:
    """The segments that a vCPU starts with: flat, kernel."""
    if width == 64:
        code, data, stack = (
            (0xE033, segmentation.FLAT_RING3_CS64_FLAGS),
            (0, 0),
            (0xE02B, segmentation.FLAT_RING3_SS_FLAGS),
        )
    else:
        code = (0xE019, segmentation.FLAT_RING1_CS_FLAGS)
        data = stack = (0xE021, segmentation.FLAT_RING1_DS_FLAGS)
    for register in (s.DS, s.ES, s.FS, s.GS):
        segmentation.load_segment(state, register, data[0], 0, segmentation.FLAT_LIMIT, data[1])
    segmentation.load_segment(state, s.CS, code[0], 0, segmentation.FLAT_LIMIT, code[1])
    segmentation.load_segment(state, s.SS, stack[0], 0, segmentation.FLAT_LIMIT, stack[1])
    state.i[s.CC_OP], state.q[s.CC_SRC], state.i[s.DF] = s.CC_OP_EFLAGS, 0, 1
    state.q[s.EFLAGS] = s.EF_IF | s.EF_FIXED
