"""Reading ELF kernels: what Xen's toolstack takes is taken, at the same addresses; all else is refused in one line."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.elf_builder import PAGE, Elf, elf32, encode_note, text
from tests.kernels import Kernels
from xentui.engine.xen.abi import features
from xentui.engine.xen.elf import ImageError, KernelImage, load_image

BASE64 = 0xFFFF_FFFF_8000_0000
LEGACY = "GUEST_OS=test,XEN_VER=xen-3.0,LOADER=generic,PAE=yes"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Elf | bytes], KernelImage]:
    """Load an image that a test has built."""

    def load_built(elf: Elf | bytes) -> KernelImage:
        path = tmp_path / "kernel"
        path.write_bytes(elf if isinstance(elf, bytes) else elf.build())
        return load_image(path)

    return load_built


Loader = Callable[[Elf | bytes], KernelImage]


def quad(value: int) -> bytes:
    return struct.pack("<Q", value)


def test_a_64_bit_kernel(load: Loader) -> None:
    image = load(Elf())
    assert (image.width, image.guest_os, image.loader, image.xen_version) == (64, "test", "generic", "xen-3.0")
    assert (image.virt_base, image.elf_paddr_offset, image.virt_offset) == (BASE64, 0, BASE64)
    assert (image.virt_kstart, image.virt_kend) == (BASE64 + 0x10_0000, BASE64 + 0x10_2000)
    assert image.entry == BASE64 + 0x10_0000
    (segment,) = image.segments
    assert (segment.vaddr, segment.paddr, segment.memory_size) == (BASE64 + 0x10_0000, 0x10_0000, 2 * PAGE)
    assert bytes(segment.data) == b"\x90" * PAGE
    assert (image.hypercall_page, image.hv_start_low, image.init_p2m) == (None, None, None)
    assert not image.mod_start_pfn and not image.suspend_cancel and not image.legacy
    assert image.container == "ELF"


def test_a_32_bit_kernel(load: Loader) -> None:
    image = load(elf32())
    assert (image.width, image.pae) == (32, "extended")
    assert (image.virt_kstart, image.entry) == (0xC010_0000, 0xC010_0000)


def test_a_paddr_offset_is_taken_off(load: Loader) -> None:
    # an old kernel that writes virtual addresses into p_paddr and says so
    paddr = 0xC010_0000
    notes = {"ENTRY": struct.pack("<I", paddr), "PADDR_OFFSET": struct.pack("<I", 0xC000_0000)}
    image = load(elf32(segments=[(paddr, b"x", PAGE)], notes=notes))
    assert (image.elf_paddr_offset, image.virt_offset, image.virt_kstart) == (0xC000_0000, 0, paddr)


def test_without_virt_base_the_image_is_where_its_paddr_says(load: Loader) -> None:
    image = load(Elf(base=0, notes={"VIRT_BASE": None}))
    assert (image.virt_base, image.virt_kstart, image.entry) == (0, 0x10_0000, 0x10_0000)


def test_without_entry_note_the_header_tells_it(load: Loader) -> None:
    assert load(Elf(notes={"ENTRY": None}, entry=BASE64 + 0x10_0123)).entry == BASE64 + 0x10_0123


def test_the_end_is_rounded_up_to_a_page(load: Loader) -> None:
    assert load(Elf(segments=[(0x10_0000, b"x", PAGE + 1)])).virt_kend == BASE64 + 0x10_2000


def test_segments_come_by_address_with_their_own_bytes(load: Loader) -> None:
    image = load(Elf(segments=[(0x10_0000 + 5 * PAGE, b"two", 3), (0x10_0000, b"one", PAGE)]))
    assert [(s.paddr, bytes(s.data)) for s in image.segments] == [(0x10_0000, b"one"), (0x10_5000, b"two")]
    assert image.virt_kend == BASE64 + 0x10_6000


@pytest.mark.parametrize(
    ("value", "pae"),
    [("yes", "extended"), ("bimodal", "bimodal"), ("yes,bimodal", "bimodal")],
)
def test_pae_modes_in_notes(load: Loader, value: str, pae: str) -> None:
    assert load(elf32(notes={"PAE_MODE": text(value)})).pae == pae


@pytest.mark.parametrize(("value", "pae"), [("yes", "yes"), ("yes[extended-cr3]", "extended"), ("yes,X=1", "yes")])
def test_pae_modes_in_the_legacy_section(load: Loader, value: str, pae: str) -> None:
    legacy = f"LOADER=generic,XEN_VER=xen-3.0,VIRT_BASE=0xC0100000,PAE={value}"
    assert load(elf32(legacy=legacy, segments=[(0xC010_0000, b"x", 8)], entry=0xC010_0000)).pae == pae


def test_legacy_section_with_its_own_defaults(load: Loader) -> None:
    legacy = f"{LEGACY},VIRT_BASE=0xC0000000,HYPERCALL_PAGE=0x102,FEATURES=pae_pgdir_above_4gb,GUEST_VER=7"
    image = load(elf32(legacy=legacy, segments=[(0xC010_0000, b"x", 4 * PAGE)], entry=0xC010_0004))
    assert image.legacy
    # the paddr offset defaults to the base, and the hypercall page is a page number
    assert (image.elf_paddr_offset, image.virt_offset, image.virt_kstart) == (0xC000_0000, 0, 0xC010_0000)
    assert (image.hypercall_page, image.entry) == (0xC010_2000, 0xC010_0004)
    assert image.features_supported == 1 << features.XENFEAT_pae_pgdir_above_4gb
    assert image.guest_version == "7"


@pytest.mark.parametrize(("number", "value"), [("3221225472", 0xC000_0000), ("030000000000", 0xC000_0000), ("junk", 0)])
def test_legacy_numbers_as_strtoull_reads_them(load: Loader, number: str, value: int) -> None:
    image = load(elf32(legacy=f"{LEGACY},VIRT_BASE={number}", segments=[(value, b"x", PAGE)], entry=value))
    assert (image.virt_base, image.virt_kstart) == (value, value)


def test_notes_in_a_section_without_a_segment(load: Loader) -> None:
    assert load(Elf(notes_in="section")).entry == BASE64 + 0x10_0000


def test_notes_of_another_owner_count_for_nothing(load: Loader) -> None:
    # GNU Mach: Xen's notes in all but their owner, which is literally "name"; libelf then reads __xen_guest
    legacy = f"{LEGACY},VIRT_BASE=0xC0100000"
    notes = {"ENTRY": struct.pack("<I", 0xDEAD_0000)}
    elf = elf32(owner="name", notes=notes, legacy=legacy, notes_in="section", segments=[(0xC010_0000, b"x", 64)])
    elf.entry = 0xC010_0008
    image = load(elf)
    assert image.legacy and image.entry == 0xC010_0008
    assert ("name", "ENTRY", 0xDEAD_0000) in [(n.owner, n.name, n.value) for n in image.notes]


def test_a_string_note_may_claim_more_than_its_segment_has(load: Loader) -> None:
    # Debian's grub-i386-xen.bin: 12 bytes claimed, 4 there, the end of the file behind them
    image = load(elf32(raw_notes=elf32().encoded_notes() + struct.pack("<III", 4, 12, 9) + b"Xen\0yes\0"))
    assert image.pae == "extended"


def test_features_from_strings_and_numbers(load: Loader) -> None:
    notes = {
        "FEATURES": text("!writable_page_tables|pae_pgdir_above_4gb|of_the_future"),
        "SUPPORTED_FEATURES": struct.pack("<I", 1 << features.XENFEAT_mmu_pt_update_preserve_ad),
    }
    image = load(Elf(notes=notes))
    assert image.features_required == 1 << features.XENFEAT_writable_page_tables
    assert image.features_supported == sum(
        1 << number
        for number in (
            features.XENFEAT_writable_page_tables,
            features.XENFEAT_pae_pgdir_above_4gb,
            features.XENFEAT_mmu_pt_update_preserve_ad,
        )
    )


@pytest.mark.parametrize(
    ("value", "taken"),
    [(0x80_0000_0000, 0x80_0000_0000), (0x80_0000_0800, None), (0xFFFF_FFFF_9000_0000, None)],
)
def test_init_p2m_where_the_toolstack_honours_it(load: Loader, value: int, taken: int | None) -> None:
    assert load(Elf(notes={"INIT_P2M": quad(value)})).init_p2m == taken


def test_init_p2m_means_nothing_to_32_bit(load: Loader) -> None:
    assert load(elf32(notes={"INIT_P2M": struct.pack("<I", 0x1000)})).init_p2m is None


def test_the_other_notes(load: Loader) -> None:
    notes = {
        "MOD_START_PFN": struct.pack("<I", 1),
        "SUSPEND_CANCEL": struct.pack("<I", 1),
        "HV_START_LOW": quad(0xFFFF_8000_0000_0000),
        "HYPERCALL_PAGE": quad(BASE64 + 0x10_1000),
        "L1_MFN_VALID": quad(1) + quad(1) + quad(6) + quad(4),
        "GUEST_VERSION": text("1.0"),
    }
    image = load(Elf(notes=notes))
    assert image.mod_start_pfn and image.suspend_cancel
    assert image.hv_start_low == 0xFFFF_8000_0000_0000
    assert image.hypercall_page == BASE64 + 0x10_1000
    assert image.l1_mfn_valid == ((1, 1), (6, 4))
    assert image.guest_version == "1.0"


def test_the_last_note_of_a_kind_wins(load: Loader) -> None:
    doubled = Elf().encoded_notes() + encode_note(6, text("second"))
    assert load(Elf(raw_notes=doubled)).guest_os == "second"


def test_build_id_is_shown(load: Loader) -> None:
    raw = Elf().encoded_notes() + encode_note(3, bytes.fromhex("c0ffee11"), "GNU")
    assert load(Elf(raw_notes=raw)).build_id == "c0ffee11"


def test_symbols(load: Loader) -> None:
    symbols = load(Elf(symbols=[("b", BASE64 + 0x200), ("a", BASE64 + 0x100)])).symbols()
    assert symbols.address("a") == BASE64 + 0x100
    assert symbols.address("c") is None
    assert symbols.lookup(BASE64 + 0x1FF) == ("a", 0xFF)
    assert symbols.lookup(BASE64 + 0x200) == ("b", 0)
    assert symbols.lookup(5) is None
    assert load(Elf()).symbols().names == []


@pytest.mark.parametrize("make", [Elf, elf32])
def test_bsd_symbol_table_behind_the_image(load: Loader, make: Callable[..., Elf]) -> None:
    symbols = [("kernel_start", 0x1234), ("panic", 0x5678)]
    elf = make(segments=[(0x10_0000, b"x", PAGE + 3)], notes={"BSD_SYMTAB": text("yes")}, symbols=symbols)
    image = load(elf)
    segment = image.segments[1]
    word = elf.width // 8
    assert segment.paddr == 0x10_0000 + PAGE + word
    assert segment.vaddr == segment.paddr + image.virt_offset
    assert image.virt_kend == image.virt_kstart + 2 * PAGE
    # what the kernel finds there is its size, then an ELF file that others can read, too
    data = bytes(segment.data)
    assert struct.unpack_from("<I", data)[0] == len(data) - 4
    found = ELFFile(io.BytesIO(data[4:]))
    assert found.num_segments() == 0 and found.num_sections() == 3
    table = found.get_section(1)
    assert {s.name: s["st_value"] for s in table.iter_symbols() if s.name} == dict(symbols)


def test_bsd_symbol_table_of_a_stripped_kernel_is_nothing(load: Loader) -> None:
    assert len(load(Elf(notes={"BSD_SYMTAB": text("yes")})).segments) == 1
    assert len(load(Elf(notes={"BSD_SYMTAB": text("no")}, symbols=[("a", 1)])).segments) == 1


def note_at_the_end(description: bytes) -> bytes:
    """A kernel whose last note is the last thing in the file, and lacks the end of its string."""
    last = struct.pack("<III", 4, 9999, 6) + b"Xen\0" + description
    image = bytearray(Elf().build())
    (note_offset,) = struct.unpack_from("<Q", image, 64 + 56 + 8)
    notes = Elf().encoded_notes()
    assert image[note_offset : note_offset + len(notes)] == notes
    struct.pack_into("<Q", image, 64 + 56 + 8, len(image))
    struct.pack_into("<Q", image, 64 + 56 + 32, len(notes + last))
    return bytes(image) + notes + last


BAD: dict[str, tuple[Elf | bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"#!/bin/sh\necho hello\n", "a text file, not a kernel"),
    "binary": (bytes(range(256)), "not a kernel"),
    "DOS program": (b"MZ" + bytes(600), "an EFI or DOS program"),
    "cpio": (b"070701" + b"0" * 104, "a cpio archive, not a kernel (offset 0); give it as --ramdisk"),
    "header cut": (Elf().build()[:40], "truncated: the ELF header reaches to byte 0x40"),
    "cut in the segment": (Elf().build()[:3000], "truncated"),
    "cut at the end": (Elf().build()[:-1], "truncated: the table of section headers"),
    "class": (Elf(ident=b"\x7fELF\x03\x01\x01" + bytes(9)).build(), "ELF class 3 does not exist"),
    "big-endian": (Elf(ident=b"\x7fELF\x02\x02\x01" + bytes(9)).build(), "not little-endian"),
    "AArch64": (Elf(machine=183), "not for x86: built for AArch64"),
    "unknown machine": (Elf(machine=999), "built for machine 999"),
    "x32": (elf32(machine=62), "an ELF32 file for x86-64"),
    "relocatable": (Elf(type=1), "a relocatable object, not an executable"),
    "shared": (Elf(type=3), "a shared object or program, not an executable"),
    "core": (Elf(type=4), "a core dump, not an executable"),
    "odd type": (Elf(type=0xFE00), "an ELF file of type 0xfe00"),
    "plain": (Elf(raw_notes=b""), "a plain ELF file: no Xen notes"),
    "plain with build ID": (Elf(raw_notes=encode_note(3, b"abcd", "GNU")), "a plain ELF file: no Xen notes"),
    "PVH only": (Elf(raw_notes=encode_note(18, quad(0x100000))), "built for HVM or PVH only"),
    "PVH Linux": (
        Elf(base=0, notes={"ENTRY": None, "VIRT_BASE": None, "PHYS32_ENTRY": quad(0x100000)}, entry=0x100000),
        "built for HVM or PVH only",
    ),
    "other loader": (Elf(notes={"LOADER": text("special")}), "LOADER=special GUEST_OS=test"),
    "other version": (Elf(notes={"XEN_VERSION": text("xen-2.0")}), 'XEN_VERSION is "xen-2.0"'),
    "no version": (Elf(notes={"XEN_VERSION": None}), 'XEN_VERSION is ""'),
    "no PAE": (elf32(notes={"PAE_MODE": text("no")}), "a 32-bit kernel without PAE"),
    "PAE unsaid": (elf32(notes={"PAE_MODE": None}), "a 32-bit kernel without PAE"),
    "domain 0": (Elf(notes={"FEATURES": text("!dom0")}), "made to be domain 0 only"),
    "unknown feature": (Elf(notes={"FEATURES": text("!telepathy")}), "requires a feature that Xen does not have: tele"),
    "legacy feature": (Elf(legacy=f"{LEGACY},FEATURES=!telepathy"), "FEATURES in section __xen_guest"),
    "note outside": (Elf(raw_notes=struct.pack("<III", 4, 4000, 1) + b"Xen\0"), "a note ends beyond the file"),
    "string note outside": (note_at_the_end(b"abc"), "truncated: a Xen note ends beyond the file (note GUEST_OS at"),
    "owner outside": (Elf(raw_notes=struct.pack("<III", 0xFFFF_FFFF, 4, 1) + b"Xen\0"), "the owner of the note at"),
    "odd address": (Elf(notes={"ENTRY": b"abc"}), "corrupt: an address of 3 bytes (note ENTRY at offset"),
    "no segments": (Elf(segments=[]), "has no loadable segments"),
    "too much in file": (Elf(segments=[(0x10_0000, b"x" * 100, 50)]), "more bytes in the file than in memory"),
    "wraps": (elf32(segments=[(0xFFFF_F000, b"x", 2 * PAGE)]), "reaches beyond the address space"),
    "overlap": (
        Elf(segments=[(0x10_0000, b"x", 200), (0x10_0000 + 100, b"y", 9)]),
        "overlap (at physical address 0x1000",
    ),
    "unaligned": (Elf(paddr=0x10_0010), "does not start on a page boundary"),
    "entry below": (Elf(notes={"ENTRY": quad(BASE64)}), "the entry point 0xffffffff80000000 is outside the image"),
    "entry at the end": (Elf(notes={"ENTRY": quad(BASE64 + 0x10_2000)}), "is outside the image"),
    "base above": (
        Elf(notes={"PADDR_OFFSET": quad(0x20_0000), "ENTRY": quad(BASE64 - 0x10_0000)}),
        "VIRT_BASE 0xffffffff80000000 is above the image's start",
    ),
    "offset without base": (
        Elf(base=0, notes={"VIRT_BASE": None, "PADDR_OFFSET": quad(0)}),
        "PADDR_OFFSET is set but VIRT_BASE is not",
    ),
    "hypercall page outside": (Elf(notes={"HYPERCALL_PAGE": quad(BASE64)}), "the hypercall page 0xffffffff80000000 is"),
    "hypercall page unaligned": (Elf(notes={"HYPERCALL_PAGE": quad(BASE64 + 0x10_0010)}), "not on a page boundary"),
    "P2M inside": (Elf(notes={"INIT_P2M": quad(BASE64 + 0x10_1000)}), "the P2M at 0xffffffff80101000 would overwrite"),
    "in the hypervisor's slot": (Elf(base=0xFFFF_8000_0000_0000), "the image lies where a domain may have nothing"),
    "non-canonical": (Elf(base=0x8000_0000_0000), "the image lies where a domain may have nothing"),
    "in 32-bit Xen's slot": (elf32(base=0xF600_0000), "the image lies where a domain may have nothing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_in_one_line(load: Loader, tmp_path: Path, name: str) -> None:
    elf, expected = BAD[name]
    with pytest.raises(ImageError) as caught:
        load(elf)
    message = str(caught.value)
    assert expected in message
    assert message.startswith(f"{tmp_path / 'kernel'}: ")
    assert message.isprintable()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    cases: dict[str | Path, str] = {
        tmp_path / "missing": "no such file; check the path",
        tmp_path: "is a directory, not a kernel",
        "/dev/null": "is no regular file",
        "a\0b": "embedded null byte",
        tmp_path / ("x" * 300): "cannot be read: File name too long",
        f"{tmp_path}/\x1b[31m": "no such file",
    }
    for path, expected in cases.items():
        with pytest.raises(ImageError, match=expected) as caught:
            load_image(path)
        assert str(caught.value).isprintable()


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="is no regular file"):
        load_image(tmp_path / "pipe")


SEEDS = [
    Elf(symbols=[("a", 1), ("b", 2)], notes={"BSD_SYMTAB": text("yes"), "FEATURES": text("!writable_page_tables|x")}),
    elf32(symbols=[("a", 1)], notes_in="section", notes={"L1_MFN_VALID": quad(1) + quad(1)}),
    elf32(legacy=f"{LEGACY},VIRT_BASE=0xC0100000,BSD_SYMTAB", segments=[(0xC010_0000, b"x", 99)], entry=0xC010_0000),
]
SEED_BYTES = [seed.build() for seed in SEEDS]
INTERESTING = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 1 << 63)


@st.composite
def corrupted(draw: st.DrawFn) -> bytes:
    """A valid image with some numbers overwritten, mostly where headers and notes are, and perhaps cut."""
    image = bytearray(draw(st.sampled_from(SEED_BYTES)))
    for _ in range(draw(st.integers(1, 6))):
        size = draw(st.sampled_from((1, 2, 4, 8)))
        near = draw(st.sampled_from((0, 64, len(image) - 1100)))
        at = draw(st.integers(near, min(near + 1100, len(image)) - size))
        value = draw(st.one_of(st.sampled_from(INTERESTING), st.integers(0, 2**64 - 1), st.integers(0, 6000)))
        image[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(image[: draw(st.integers(0, len(image)))]) if draw(st.integers(0, 9)) == 0 else bytes(image)


def test_the_seeds_of_the_fuzzer_are_good(load: Loader) -> None:
    assert [load(seed).width for seed in SEEDS] == [64, 32, 32]


@settings(max_examples=1500, deadline=2000)
@given(corrupted())
def test_corrupt_images_raise_nothing_but_image_error(image: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(image)
        file.flush()
        try:
            loaded = load_image(file.name)
            assert sum(len(segment.data) for segment in loaded.segments) <= 2 * len(image) + 1024
            assert loaded.virt_kstart <= loaded.entry < loaded.virt_kend
            loaded.symbols()
        except ImageError as error:
            assert str(error).isprintable()


def test_absurd_sizes_are_not_allocated(load: Loader) -> None:
    huge = Elf(base=0, segments=[(0x10_0000, b"x", 1 << 40)])
    tracemalloc.start()
    image = load(huge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.segments[0].memory_size == 1 << 40
    assert peak < 2 << 20


def reference(path: Path) -> ELFFile:
    """The same kernel as pyelftools reads it."""
    raw = path.read_bytes()
    return ELFFile(io.BytesIO(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw))


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["grub32", "grub64", "mach32", "mach64"])
def test_real_kernels_as_others_read_them(kernels: Kernels, name: str) -> None:
    path = getattr(kernels, name)
    image, other = load_image(path), reference(path)
    loads = [s for s in other.iter_segments() if s["p_type"] == "PT_LOAD"]
    assert [(s.paddr, s.memory_size, bytes(s.data)) for s in image.segments] == [
        (s["p_paddr"], s["p_memsz"], s.data()) for s in loads
    ]
    # all four are linked at the addresses where they run
    assert [s.vaddr for s in image.segments] == [s["p_vaddr"] for s in loads]
    assert image.entry == other["e_entry"]
    assert image.width == other.elfclass


REAL: dict[str, dict[str, Any]] = {
    "grub32": {"pae": "extended", "guest_os": "GRUB", "virt_base": 0, "entry": 0, "hypercall_page": None},
    "grub64": {"guest_os": "GRUB", "virt_base": 0, "entry": 0, "hypercall_page": None, "legacy": False},
    "mach32": {"pae": "extended", "guest_os": "GNU Mach", "hypercall_page": 0xC000_2000, "legacy": True, "width": 32},
    "mach64": {"guest_os": "GNU Mach", "virt_base": 0x4000_0000, "hypercall_page": 0x4000_2000, "legacy": True},
    "linux": {
        "guest_os": "linux",
        "virt_base": 0xFFFF_FFFF_8000_0000,
        "virt_kstart": 0xFFFF_FFFF_8100_0000,
        "init_p2m": 0x80_0000_0000,
        "mod_start_pfn": True,
        "suspend_cancel": True,
        "l1_mfn_valid": ((1, 1),),
        "hv_start_low": 0xFFFF_8000_0000_0000,
        "container": "bzImage, xz",
    },
}


@pytest.mark.kernels
@pytest.mark.parametrize("name", REAL)
def test_real_kernels_say_what_they_are_known_to_say(kernels: Kernels, name: str) -> None:
    image = load_image(getattr(kernels, name))
    assert {key: getattr(image, key) for key in REAL[name]} == REAL[name]
