"""A domain's memory and registers as an ELF core, which gdb opens: gdb -batch -ex 'x/i $pc' KERNEL NAME-TIME.core

The file holds the domain's frames once, in the order of their pseudo-physical numbers; its program headers show them
at the virtual addresses where the kernel's page tables map them, with the pseudo-physical address as `p_paddr`. Frames
that no table maps stand at their pseudo-physical address, where the kernel has mapped nothing else there. Each vCPU is
a thread with an NT_PRSTATUS note, the one that crashed first.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from xentui.engine.x86 import state as s
from xentui.engine.x86.paging import FRAME_MASK, NX, PAGE_SHIFT, PAGE_SIZE, PRESENT, PSE, RW
from xentui.engine.xen.domain_builder import COMPAT_M2P_START, M2P_SLOT
from xentui.engine.xen.vcpu_context import state_of
from xentui.engine.xen.vcpu_op import initialised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xentui.engine.xen.domain import Domain, Vcpu

ET_CORE, EV_CURRENT, PT_LOAD, PT_NOTE = 4, 1, 1, 4
EM_386, EM_X86_64 = 3, 62
NT_PRSTATUS, NT_PRPSINFO = 1, 3
PF_X, PF_W, PF_R = 1, 2, 4
SIGSEGV, SIGSTOP = 11, 19
MAX_SEGMENTS = 65_000
"""Program headers at most, so that their number fits; what comes behind, the least useful, is left out."""
NO_PFN = 1 << 40
"""Of a frame that has no pseudo-physical number, such as shared_info."""
_HYPERVISOR_SLOTS = range(M2P_SLOT, M2P_SLOT + 16)
_ZERO = bytes(PAGE_SIZE)

_USER_REGS_64 = (
    *(s.R15, s.R14, s.R13, s.R12, s.RBP, s.RBX, s.R11, s.R10, s.R9, s.R8, s.RAX, s.RCX, s.RDX, s.RSI, s.RDI),
    s.RAX,  # orig_rax
)
_USER_REGS_32 = (s.RBX, s.RCX, s.RDX, s.RSI, s.RDI, s.RBP, s.RAX)


class Segment(NamedTuple):
    """A run of pages, contiguous in both address spaces and in the file."""

    address: int
    """Virtual."""
    place: int
    """Number of the first page in the file's memory part."""
    pages: int
    flags: int


class Core:
    """A domain's core in the making; `write` writes it."""

    def __init__(self, domain: Domain) -> None:
        self.domain, self.hv = domain, domain.hv
        self.wide = domain.width == 64
        self.frames = sorted((self._pfn(mfn), mfn) for mfn in self.hv.frames.owned_by(domain.id))
        """(pseudo-physical, machine) frame number of each page in the file; those without the first come last."""
        self.place = {mfn: place for place, (_, mfn) in enumerate(self.frames)}

    def _pfn(self, mfn: int) -> int:
        """The guest's own number of a frame, which it may set to anything; NO_PFN for none that there can be."""
        pfn = self.hv.get_m2p(mfn)
        return pfn if pfn < 1 << (40 if self.wide else 20) else NO_PFN

    def write(self, path: Path) -> None:
        """Write the core; raises OSError. Pages of zeroes take no room on disk."""
        segments = [*islice(self.mapped(), MAX_SEGMENTS)]
        segments += self.unmapped(segments)
        del segments[MAX_SEGMENTS:]
        notes = self.notes()
        header, entry = (64, 56) if self.wide else (52, 32)
        notes_at = header + entry * (1 + len(segments))
        data_at = (notes_at + len(notes) + PAGE_SIZE - 1) & -PAGE_SIZE
        with path.open("wb") as file:
            file.write(self.elf_header(1 + len(segments)))
            file.write(self.program_header(PT_NOTE, notes_at, 0, 0, len(notes), PF_R))
            for address, place, pages, flags in segments:
                pfn, size = self.frames[place][0], pages << PAGE_SHIFT
                physical = -1 if pfn == NO_PFN else pfn << PAGE_SHIFT
                offset = data_at + (place << PAGE_SHIFT)
                file.write(self.program_header(PT_LOAD, offset, address, physical, size, flags))
            file.write(notes)
            for place, (_, mfn) in enumerate(self.frames):
                page = bytes(self.hv.ram[mfn << PAGE_SHIFT : (mfn + 1) << PAGE_SHIFT])
                if page != _ZERO:
                    file.seek(data_at + (place << PAGE_SHIFT))
                    file.write(page)
            file.truncate(data_at + (len(self.frames) << PAGE_SHIFT))

    # --- memory --------------------------------------------------------------------------------------------------

    def mapped(self) -> Iterator[Segment]:
        """What the kernel's page tables map of the domain's own memory, higher half first, in runs."""
        run: Segment | None = None
        most = 8 * len(self.frames) + 65536  # tables that refer to each other can map without end
        for address, mfn, flags in islice(self._pages(), most):
            place = self.place[mfn]
            if run is not None:
                size = run.pages << PAGE_SHIFT
                if (run.address + size, run.place + run.pages, run.flags) == (address, place, flags):
                    run = run._replace(pages=run.pages + 1)
                    continue
                yield run
            run = Segment(address, place, 1, flags)
        if run is not None:
            yield run

    def unmapped(self, segments: list[Segment]) -> list[Segment]:
        """Runs of what no segment shows, at pseudo-physical addresses that no segment has."""
        shown = bytearray(len(self.frames))
        taken: set[int] = set()
        for segment in segments:
            shown[segment.place : segment.place + segment.pages] = b"\1" * segment.pages
            first = segment.address >> PAGE_SHIFT
            if first < NO_PFN:
                taken.update(range(first, first + segment.pages))
        found: list[Segment] = []
        for place, (pfn, _) in enumerate(self.frames):
            if shown[place] or pfn in taken or pfn == NO_PFN:
                continue
            last = found[-1] if found else None
            if last and last.place + last.pages == place and (last.address >> PAGE_SHIFT) + last.pages == pfn:
                found[-1] = last._replace(pages=last.pages + 1)
            else:
                found.append(Segment(pfn << PAGE_SHIFT, place, 1, PF_R | PF_W))
        return found

    def _pages(self) -> Iterator[tuple[int, int, int]]:
        """(virtual address, machine frame, PF_*) of every page of the domain's own that its kernel has mapped."""
        vcpu = self._first()
        if vcpu is None:
            return
        root = vcpu.guest_table if self.wide else vcpu.space.root >> PAGE_SHIFT
        slots = [*range(256, 512), *range(256)] if self.wide else [0]
        for slot in slots:
            if not self.wide or slot not in _HYPERVISOR_SLOTS:
                yield from self._walk(root, 4, slot << 39, PF_R | PF_W | PF_X, range(slot, slot + 1))

    def _walk(self, table: int, level: int, base: int, flags: int, slots: range) -> Iterator[tuple[int, int, int]]:
        """The pages below some slots of a page table; `base` is the address of the first slot."""
        ram64, shift = self.hv.ram64, PAGE_SHIFT + 9 * (level - 1)
        words = ram64[(table << 9) + slots.start : (table << 9) + slots.stop].tolist()
        for number, entry in enumerate(words):
            if not entry & PRESENT or (level > 1 and entry & PSE):
                continue
            mfn, address = (entry & FRAME_MASK) >> PAGE_SHIFT, base + (number << shift)
            if not self.wide and address >= COMPAT_M2P_START:
                return
            if mfn >= self.hv.frames.count:
                continue
            allowed = flags & ~((0 if entry & RW else PF_W) | (PF_X if entry & NX else 0))
            if not self.wide and level == 3:
                allowed = flags  # the third level of PAE has no such bits
            if level > 1:
                yield from self._walk(mfn, level - 1, address, allowed, range(512))
            elif mfn in self.place:
                yield (address | 0xFFFF << 48 if self.wide and address >> 47 & 1 else address), mfn, allowed

    # --- registers -------------------------------------------------------------------------------------------------

    def _first(self) -> Vcpu | None:
        """The vCPU that gdb shows first: the one that crashed, or the first one that knows where it is."""
        domain = self.domain
        started = [vcpu for vcpu in domain.vcpus if initialised(vcpu)]
        crashed = domain.crashed_vcpu
        return crashed if crashed in started else started[0] if started else None

    def notes(self) -> bytes:
        """A PT_NOTE segment: who the process was, and each vCPU as a thread."""
        first = self._first()
        vcpus = [vcpu for vcpu in self.domain.vcpus if initialised(vcpu) and vcpu is not first]
        if first is not None:
            vcpus.insert(0, first)
        return self._process() + b"".join(self._thread(vcpu) for vcpu in vcpus)

    @staticmethod
    def _note(kind: int, description: bytes) -> bytes:
        padding = bytes(-len(description) % 4)
        return struct.pack("<III", 5, len(description), kind) + b"CORE\0\0\0\0" + description + padding

    def _process(self) -> bytes:
        """struct elf_prpsinfo: the domain's name."""
        name = self.domain.name.encode(errors="replace")
        form = "<4B4xQII4i16s80s" if self.wide else "<4BIHH4i16s80s"
        return self._note(
            NT_PRPSINFO, struct.pack(form, 0, ord("R"), 0, 0, 0, 0, 0, self.domain.id, 0, 0, 0, name[:15], name[:79])
        )

    def _thread(self, vcpu: Vcpu) -> bytes:
        """struct elf_prstatus: the vCPU's registers; the number of the thread is the vCPU's, from 1 on."""
        state = state_of(vcpu)
        signal = SIGSEGV if vcpu is self.domain.crashed_vcpu else SIGSTOP
        form = "<iiihxxQQ4i8q" if self.wide else "<iiihxxII4i8i"
        head = struct.pack(form, signal, 0, 0, signal, 0, 0, vcpu.id + 1, 0, 0, 0, *[0] * 8)
        registers = self._registers_64(vcpu, state) if self.wide else self._registers_32(vcpu, state)
        return self._note(NT_PRSTATUS, head + registers + bytes(8 if self.wide else 4))

    @staticmethod
    def _registers_64(vcpu: Vcpu, state: s.State) -> bytes:
        """struct user_regs_struct of x86-64."""
        q, i = state.q, state.i
        selectors = [i[index] & 0xFFFF for index in (s.DS, s.ES, s.FS, s.GS)]
        flags = vcpu.processor.flags_of(state)
        special = (q[s.RIP], i[s.CS] & 0xFFFF, flags, q[s.RSP], i[s.SS] & 0xFFFF, q[s.FS_BASE], q[s.GS_BASE])
        return struct.pack("<27Q", *(q[index] for index in _USER_REGS_64), *special, *selectors)

    @staticmethod
    def _registers_32(vcpu: Vcpu, state: s.State) -> bytes:
        """struct user_regs_struct of i386."""
        q, i = state.q, state.i
        selectors = [i[index] & 0xFFFF for index in (s.DS, s.ES, s.FS, s.GS)]
        flags = vcpu.processor.flags_of(state)
        values = [*(q[index] for index in _USER_REGS_32), *selectors, q[s.RAX]]
        values += [q[s.RIP], i[s.CS] & 0xFFFF, flags, q[s.RSP], i[s.SS] & 0xFFFF]
        return struct.pack("<17I", *(value & s.MASK32 for value in values))

    # --- headers ---------------------------------------------------------------------------------------------------

    def elf_header(self, segments: int) -> bytes:
        """The file's header; the program headers follow it."""
        ident = b"\x7fELF" + bytes((2 if self.wide else 1, 1, EV_CURRENT)) + bytes(9)
        form, machine, size, entry = ("<HHIQQQI6H", EM_X86_64, 64, 56) if self.wide else ("<HHIIIII6H", EM_386, 52, 32)
        return ident + struct.pack(form, ET_CORE, machine, EV_CURRENT, 0, size, 0, 0, size, entry, segments, 0, 0, 0)

    def program_header(self, kind: int, offset: int, address: int, physical: int, size: int, flags: int) -> bytes:
        """One program header. `physical` -1: there is none."""
        align = 4 if kind == PT_NOTE else PAGE_SIZE
        if self.wide:
            physical &= s.MASK64
            return struct.pack("<IIQQQQQQ", kind, flags, offset, address, physical, size, size, align)
        physical &= s.MASK32
        return struct.pack("<IIIIIIII", kind, offset, address, physical, size, size, flags, align)


def write_core(domain: Domain, folder: Path) -> Path:
    """Write the core of a domain as NAME-TIME.core into a folder, by its wall clock; the file. Raises OSError.

    The same run again writes the same file.
    """
    from datetime import UTC, datetime

    hv = domain.hv
    now = max(0, hv.wall_clock + domain.wall_clock_offset + hv.clock.now()) // 1000
    moment = datetime.fromtimestamp(now // 1_000_000, UTC).strftime("%Y-%m%d-%H%M.%S")
    path = folder / f"{domain.name.replace('/', '_')}-{moment}.{now % 1_000_000:06}.core"
    Core(domain).write(path)
    return path
