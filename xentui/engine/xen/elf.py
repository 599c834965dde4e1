"""What a PV kernel's image asks of the domain builder: its segments, and what its Xen notes say.

The reading of notes and the address computations are those of Xen's own toolstack (xen/common/libelf/libelf-dominfo.c,
tools/libs/guest/xg_dom_elfloader.c), so that a kernel that real Xen takes is taken here, at the same addresses. Where
libelf would let nonsense through that can only crash later, an :class:`ImageError` says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from . import kernel_file
from .abi import elfnote, features
from .abi.arch_x86 import HYPERVISOR_COMPAT_VIRT_START
from .bsd_symtab import bsd_symbol_segment
from .elf_format import PF_RWX, PF_X, PT_LOAD, PT_NOTE, SHT_NOTE, ElfFile, ElfNote, ImageError, SymbolTable

__all__ = ["ImageError", "KernelImage", "Note", "Segment", "load_image"]

PAGE_SIZE = 4096
ADDRESSES = 1 << 64
HYPERVISOR_SLOT_64 = (0xFFFF_8000_0000_0000, 0xFFFF_8800_0000_0000)
"""What a 64-bit domain must leave to the hypervisor (xen/arch-x86/xen-x86_64.h)."""

STRINGS = {"XEN_VERSION", "GUEST_OS", "GUEST_VERSION", "LOADER", "PAE_MODE", "FEATURES", "BSD_SYMTAB"}
ADDRESS_NOTES = {"ENTRY", "HYPERCALL_PAGE", "VIRT_BASE", "PADDR_OFFSET", "HV_START_LOW", "INIT_P2M"}
NOTE_NAMES = {
    number: name.removeprefix("XEN_ELFNOTE_")
    for name, number in vars(elfnote).items()
    if name.startswith("XEN_ELFNOTE_") and name != "XEN_ELFNOTE_MAX"
}
LEGACY_NAMES = {"XEN_VER": "XEN_VERSION", "GUEST_VER": "GUEST_VERSION", "VIRT_ENTRY": "ENTRY", "PAE": "PAE_MODE"}
LEGACY_NAMES |= {"ELF_PADDR_OFFSET": "PADDR_OFFSET"}

FEATURE_NAMES = (
    *("writable_page_tables", "writable_descriptor_tables", "auto_translated_physmap", "supervisor_mode_kernel"),
    *("pae_pgdir_above_4gb", "hvm_callback_vector", "dom0"),
)
FEATURE_BITS = {name: 1 << vars(features)[f"XENFEAT_{name}"] for name in FEATURE_NAMES}
"""The features that Xen's toolstack knows by name (elf_xen_feature_names in libelf-dominfo.c)."""


class Segment(NamedTuple):
    """A part of the image to be loaded. Bytes beyond `data`, up to `memory_size`, are zero."""

    vaddr: int
    """Virtual address at which the domain sees it: its paddr plus the image's virt_offset, not p_vaddr."""
    paddr: int
    memory_size: int
    data: bytes | memoryview
    executable: bool
    """The program header's X flag."""


class Note(NamedTuple):
    """One decoded note, or one item of a legacy ``__xen_guest`` section, for display."""

    owner: str
    type: int | None
    """The note's number; None for an item of ``__xen_guest``."""
    name: str
    value: str | int | bytes


@dataclass(frozen=True, slots=True, eq=False)
class KernelImage:
    """A kernel for a PV domain, checked and ready for the domain builder. Addresses are virtual, sizes in bytes."""

    path: Path
    name: str
    """The file's name without its folder."""
    container: str
    """How the ELF file was wrapped: "ELF", or for example "gzip" or "bzImage, xz"."""
    sha256: str
    """Digest of the file as given, in hexadecimal."""
    width: int
    """Word size of the kernel: 32 or 64."""
    segments: tuple[Segment, ...]
    entry: int
    virt_base: int
    """Where the domain's frame 0 is mapped."""
    elf_paddr_offset: int
    virt_offset: int
    """What is added to a segment's paddr to give its virtual address, modulo 2**64."""
    virt_kstart: int
    """The image's first address; on a page boundary."""
    virt_kend: int
    """The end of the image, rounded up to a page as xc_dom_alloc_segment does."""
    hypercall_page: int | None
    hv_start_low: int | None
    init_p2m: int | None
    """Where the P2M is wanted; None also where the toolstack ignores the wish (32-bit, unaligned, above virt_base)."""
    mod_start_pfn: bool
    """The kernel takes a ramdisk that is not mapped at start."""
    pae: str
    """"no", "yes", "extended" or "bimodal"; of meaning for 32-bit kernels only."""
    features_supported: int
    features_required: int
    """Bit masks by XENFEAT_* number."""
    guest_os: str
    guest_version: str
    xen_version: str
    loader: str
    l1_mfn_valid: tuple[tuple[int, int], ...]
    """Pairs of mask and value by which non-present L1 entries that hold MFNs are known."""
    suspend_cancel: bool
    notes: tuple[Note, ...]
    """Everything that the file says in notes and in ``__xen_guest``, in file order."""
    legacy: bool
    """The kernel speaks through ``__xen_guest``, not through notes."""
    build_id: str
    """The linker's build ID in hexadecimal, or nothing."""
    elf: ElfFile = field(repr=False)

    def symbols(self) -> SymbolTable:
        """The kernel's own symbol table, decoded anew at each call; empty for a stripped kernel."""
        return self.elf.symbols()


@dataclass(slots=True)
class Parameters:
    """What was found in notes or in ``__xen_guest``, by the notes' names, before it is checked."""

    numbers: dict[str, int] = field(default_factory=dict)
    strings: dict[str, str] = field(default_factory=dict)
    pae: str = "no"
    supported: int = 0
    required: int = 0
    bsd_symtab: bool = False
    l1_mfn_valid: tuple[tuple[int, int], ...] = ()
    legacy: bool = False


def load_image(path: str | Path) -> KernelImage:
    """Read a PV kernel: an ELF file, a compressed one, or a Linux bzImage. Raises ImageError.

    The segments' data are views of the file's bytes (or of the cached unpacked kernel's); nothing is copied.
    """
    path = Path(path)
    raw = kernel_file.read_kernel(path)
    elf = ElfFile(str(path), raw.data)
    parameters, notes, build_id = _read_parameters(elf)
    _check_kernel(elf, parameters)
    return _lay_out(elf, parameters, raw, notes, build_id)


def _read_parameters(elf: ElfFile) -> tuple[Parameters, tuple[Note, ...], str]:
    """Look for Xen's notes where libelf does: in note segments, else in note sections, else in ``__xen_guest``."""
    found = Parameters()
    # some linkers leave p_offset zero for note segments: libelf skips those too
    segments = [(h.offset, h.file_size) for h in elf.program_headers if h.type == PT_NOTE and h.offset]
    notes = [note for offset, size in segments for note in elf.notes(offset, size)]
    if not any(note.owner == "Xen" for note in notes):
        sections = [s for s in elf.sections()[1:] if s.type == SHT_NOTE and (s.offset, s.size) not in segments]
        notes += [note for section in sections for note in elf.notes(section.offset, section.size)]
    shown = []
    for note in notes:
        value = _note_value(elf, note)
        shown.append(Note(note.owner, note.type, _note_name(note), value))
        if note.owner == "Xen":
            _apply(elf, found, _note_name(note), value, f"note at offset {note.offset:#x}")
    if not any(note.owner == "Xen" for note in notes):
        shown += _read_legacy(elf, found)
    build_ids = [bytes(note.description).hex() for note in notes if (note.owner, note.type) == ("GNU", 3)]
    return found, tuple(shown), "".join(build_ids[:1])


def _note_name(note: ElfNote) -> str:
    """A note's name as elfnote.h has it; others by number."""
    # GNU Mach's notes are Xen's in all but the owner, which is literally "name": shown by name, but not obeyed
    known = NOTE_NAMES.get(note.type) if note.owner in ("Xen", "name") else None
    return known or f"{note.type:#x}"


def _note_value(elf: ElfFile, note: ElfNote) -> str | int | bytes:
    """Decode a note's description: a string, a number, or bytes where it is neither."""
    name = _note_name(note)
    raw = bytes(note.description)
    where = f"note {name} at offset {note.offset:#x}"
    if name in STRINGS:
        if b"\0" not in raw and len(raw) < note.description_size:
            raise elf.error("truncated: a Xen note ends beyond the file", where, "copy or unpack the file anew")
        return raw.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
    if len(raw) < note.description_size:
        raise elf.error("truncated: a note ends beyond the file", where, "copy or unpack the file anew")
    if name in ADDRESS_NOTES and len(raw) not in (4, 8) and note.owner == "Xen":
        raise elf.error(f"corrupt: an address of {len(raw)} bytes", where)
    known = note.type in NOTE_NAMES and note.owner in ("Xen", "name")
    return int.from_bytes(raw, "little") if known and len(raw) in (1, 2, 4, 8) else raw


def _read_legacy(elf: ElfFile, found: Parameters) -> list[Note]:
    """Read ``__xen_guest``, the ancestor of the notes: NAME=value pairs in one string; where there is none, nothing."""
    section = elf.section_named("__xen_guest")
    if section is None:
        return []
    found.legacy = True
    text = bytes(elf.section_bytes(section)).split(b"\0", 1)[0].decode("ascii", "backslashreplace")
    shown = []
    for item in text.split(","):
        legacy_name, _, value = item.partition("=")
        name = LEGACY_NAMES.get(legacy_name, legacy_name)
        shown.append(Note("__xen_guest", None, name, value))
        if name in ADDRESS_NOTES:
            _apply(elf, found, name, _number(value), f"{legacy_name} in section __xen_guest")
        elif name == "PAE_MODE":
            # n.b. only here "extended-cr3" must be asked for (elfnote.h)
            found.pae = "extended" if value == "yes[extended-cr3]" else "yes" if value.startswith("yes") else "no"
        elif name == "BSD_SYMTAB":
            found.bsd_symtab = True
        elif name in STRINGS:
            _apply(elf, found, name, value, f"{legacy_name} in section __xen_guest")
    if "HYPERCALL_PAGE" in found.numbers:
        page = found.numbers["HYPERCALL_PAGE"]
        found.numbers["HYPERCALL_PAGE"] = (page * PAGE_SIZE + found.numbers.get("VIRT_BASE", 0)) % ADDRESSES
    return shown


def _number(text: str) -> int:
    """The number that C's strtoull(text, NULL, 0) makes of a text: as far as it goes, 0 where it goes nowhere."""
    match = re.match(r"\s*(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))", text)
    if match is None:
        return 0
    base, digits = next((base, digits) for base, digits in zip((16, 8, 10), match.groups(), strict=True) if digits)
    return min(int(digits, base), ADDRESSES - 1)


def _apply(elf: ElfFile, found: Parameters, name: str, value: str | int | bytes, where: str) -> None:
    """Take one note into account, as elf_xen_parse_note does; the last of a kind wins."""
    if name == "L1_MFN_VALID":
        raw = value if isinstance(value, bytes) else b""
        words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw) // 16 * 16, 8)]
        found.l1_mfn_valid = tuple(zip(words[::2], words[1::2], strict=True))
    elif name == "FEATURES":
        _apply_features(elf, found, str(value), where)
    elif name == "SUPPORTED_FEATURES" and not isinstance(value, str):
        first = value if isinstance(value, int) else int.from_bytes(value[:4], "little")
        found.supported |= first & 0xFFFF_FFFF
    elif name == "PAE_MODE":
        text = str(value)
        found.pae = "bimodal" if "bimodal" in text else "extended" if text == "yes" else found.pae
    elif name == "BSD_SYMTAB":
        found.bsd_symtab |= value == "yes"
    elif isinstance(value, str):
        found.strings[name] = value
    elif isinstance(value, int):
        found.numbers[name] = value


def _apply_features(elf: ElfFile, found: Parameters, text: str, where: str) -> None:
    """Parse a feature list such as ``!writable_page_tables|pae_pgdir_above_4gb``; ``!`` marks a required one."""
    for item in text.split("|"):
        name = item.removeprefix("!")
        bit = FEATURE_BITS.get(name, 0)
        found.supported |= bit
        if item.startswith("!"):
            if not bit:
                raise elf.error(f"requires a feature that Xen does not have: {name}", where)
            found.required |= bit


def _check_kernel(elf: ElfFile, found: Parameters) -> None:
    """Refuse what is no kernel for an unprivileged PV domain, as elf_xen_note_check and the ELF loader do."""
    numbers, strings = found.numbers, found.strings
    if not numbers and not strings:
        remedy = "give a kernel built for Xen PV (for Linux: CONFIG_XEN_PV)"
        raise elf.error("a plain ELF file: no Xen notes and no __xen_guest section", remedy=remedy)
    pv_address = "ENTRY" in numbers or "VIRT_BASE" in numbers
    if "PHYS32_ENTRY" in numbers and not (pv_address and "XEN_VERSION" in strings):
        remedy = "give a kernel built for PV (for Linux: CONFIG_XEN_PV)"
        raise elf.error("built for HVM or PVH only", "note PHYS32_ENTRY but none for a PV start", remedy)
    loader, guest_os = strings.get("LOADER", ""), strings.get("GUEST_OS", "")
    if not loader.startswith("generic") and not guest_os.startswith("linux"):
        raise elf.error("Xen loads images for the generic loader or Linux only", f"LOADER={loader} GUEST_OS={guest_os}")
    version = strings.get("XEN_VERSION", "")
    if not version.startswith("xen-3.0"):
        raise elf.error('not built for Xen\'s interface "xen-3.0"', f'XEN_VERSION is "{version}"')
    if elf.width == 32 and found.pae == "no":
        raise elf.error("a 32-bit kernel without PAE", "PAE_MODE", "Xen takes none: build it with PAE")
    if found.required & FEATURE_BITS["dom0"]:
        raise elf.error("made to be domain 0 only", "FEATURES requires dom0", "give a kernel that runs as a domU")


def _lay_out(
    elf: ElfFile, found: Parameters, raw: kernel_file.RawKernel, notes: tuple[Note, ...], build_id: str
) -> KernelImage:
    """Compute and check the addresses (elf_xen_addr_calc_check), and gather everything."""
    numbers, strings = found.numbers, found.strings
    if "PADDR_OFFSET" in numbers and "VIRT_BASE" not in numbers:
        raise elf.error("PADDR_OFFSET is set but VIRT_BASE is not", "Xen notes")
    virt_base = numbers.get("VIRT_BASE", 0)
    # old kernels put virtual addresses into p_paddr, so that the offset defaults to the base there
    paddr_offset = numbers.get("PADDR_OFFSET", virt_base if found.legacy else 0)
    virt_offset = (virt_base - paddr_offset) % ADDRESSES
    segments, kstart, kend = _segments(elf, virt_offset)
    if found.bsd_symtab:
        symbols = bsd_symbol_segment(elf, kend - virt_offset)
        if symbols is not None:
            paddr, data = symbols
            segments = (*segments, Segment((paddr + virt_offset) % ADDRESSES, paddr, len(data), data, False))
            kend = (paddr + len(data) + virt_offset) % ADDRESSES
    entry = numbers.get("ENTRY", elf.entry)
    p2m = numbers.get("INIT_P2M")
    _check_addresses(elf, numbers, virt_base, kstart, kend, entry)
    if elf.width == 32 or p2m is None or p2m >= virt_base or p2m % PAGE_SIZE:
        p2m = None
    return KernelImage(
        path=Path(elf.path),
        name=Path(elf.path).name,
        container=raw.container,
        sha256=raw.sha256,
        width=elf.width,
        segments=segments,
        entry=entry,
        virt_base=virt_base,
        elf_paddr_offset=paddr_offset,
        virt_offset=virt_offset,
        virt_kstart=kstart,
        virt_kend=-(-kend // PAGE_SIZE) * PAGE_SIZE,
        hypercall_page=numbers.get("HYPERCALL_PAGE"),
        hv_start_low=numbers.get("HV_START_LOW"),
        init_p2m=p2m,
        mod_start_pfn=bool(numbers.get("MOD_START_PFN")),
        pae=found.pae,
        features_supported=found.supported,
        features_required=found.required,
        guest_os=strings.get("GUEST_OS", ""),
        guest_version=strings.get("GUEST_VERSION", ""),
        xen_version=strings.get("XEN_VERSION", ""),
        loader=strings.get("LOADER", ""),
        l1_mfn_valid=found.l1_mfn_valid,
        suspend_cancel=bool(numbers.get("SUSPEND_CANCEL")),
        notes=notes,
        legacy=found.legacy,
        build_id=build_id,
        elf=elf,
    )


def _segments(elf: ElfFile, virt_offset: int) -> tuple[tuple[Segment, ...], int, int]:
    """The loadable segments by address, and the virtual addresses of the image's start and end."""
    limit = 1 << elf.width
    headers = [h for h in elf.program_headers if h.type == PT_LOAD and h.flags & PF_RWX]
    if not headers:
        raise elf.error("has no loadable segments", "program headers", "link it as an executable")
    segments = []
    for header in headers:
        where = f"program header {header.number}"
        if header.file_size > header.memory_size:
            raise elf.error("corrupt: a segment has more bytes in the file than in memory", where)
        if header.paddr + header.memory_size > limit:
            raise elf.error("corrupt: a segment reaches beyond the address space", where)
        data = elf.slice(header.offset, header.file_size, f"the segment of {where}")
        vaddr = (header.paddr + virt_offset) % ADDRESSES
        segments.append(Segment(vaddr, header.paddr, header.memory_size, data, bool(header.flags & PF_X)))
    segments.sort(key=lambda segment: segment.paddr)
    for low, high in pairwise(segments):
        if low.paddr + low.memory_size > high.paddr and high.memory_size:
            raise elf.error("corrupt: two segments overlap", f"at physical address {high.paddr:#x}")
    start = segments[0].vaddr
    return tuple(segments), start, start + max(s.paddr + s.memory_size for s in segments) - segments[0].paddr


def _check_addresses(elf: ElfFile, numbers: dict[str, int], virt_base: int, kstart: int, kend: int, entry: int) -> None:
    """Refuse an image whose addresses contradict each other or that lies where a domain may have nothing."""
    image = f"the image is {kstart:#x} to {kend:#x}"
    if kstart % PAGE_SIZE:
        raise elf.error("the image does not start on a page boundary", image, "align its first segment to 4096")
    if not kstart <= entry < kend:
        raise elf.error(f"the entry point {entry:#x} is outside the image", image)
    if virt_base > kstart:
        raise elf.error(f"VIRT_BASE {virt_base:#x} is above the image's start", image)
    page = numbers.get("HYPERCALL_PAGE")
    if page is not None and not kstart <= page <= page + PAGE_SIZE <= -(-kend // PAGE_SIZE) * PAGE_SIZE:
        raise elf.error(f"the hypercall page {page:#x} is outside the image", image)
    if page is not None and page % PAGE_SIZE:
        raise elf.error(f"the hypercall page {page:#x} is not on a page boundary", "HYPERCALL_PAGE")
    p2m = numbers.get("INIT_P2M")
    if p2m is not None and kstart <= p2m < kend:
        raise elf.error(f"the P2M at {p2m:#x} would overwrite the image", f"INIT_P2M; {image}")
    low, high = (HYPERVISOR_COMPAT_VIRT_START, ADDRESSES) if elf.width == 32 else HYPERVISOR_SLOT_64
    non_canonical = elf.width == 64 and kend > 1 << 47 and kstart < low
    if kend > ADDRESSES or non_canonical or (kend > low and kstart < high):
        raise elf.error("the image lies where a domain may have nothing", f"{image}; the hypervisor's slot: {low:#x}")
