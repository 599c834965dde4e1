"""The guest images in the package are what their sources build, and say what a domain builder needs to know."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "xentui" / "guests"
NAMES = ("hello", "bench", "selftest", "attack", "neighbour", "load")
DEBIAN_12_GCC = "12.2."
"""Images are compared byte for byte with what this compiler makes; another may choose other instructions."""


def compiler_version() -> str:
    """The version of gcc here, or "" where there is none."""
    if shutil.which("gcc") is None:
        return ""
    return subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not compiler_version().startswith(DEBIAN_12_GCC), reason="the shipped images are Debian 12's gcc's")
def test_images_are_what_the_sources_build() -> None:
    done = subprocess.run(["make", "-C", str(ROOT / "guests"), "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        for bits in (32, 64):
            assert f"{name}{bits}: as shipped" in done.stdout


def notes_of(image: Path) -> dict[int, bytes]:
    """The image's Xen notes: type number and descriptor."""
    with image.open("rb") as file:
        elf = ELFFile(file)
        segments = [segment for segment in elf.iter_segments() if segment.header.p_type == "PT_NOTE"]
        data = b"".join(segment.data() for segment in segments)
    notes = {}
    while data:
        name_size, size, kind = struct.unpack_from("<III", data)
        at = 12 + (name_size + 3) // 4 * 4
        assert data[12 : 12 + name_size] == b"Xen\0"
        notes[kind] = data[at : at + size]
        data = data[at + (size + 3) // 4 * 4 :]
    return notes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [32, 64])
def test_notes(name: str, bits: int) -> None:
    notes = notes_of(IMAGES / f"{name}{bits}")
    word = struct.Struct("<Q" if bits == 64 else "<I")
    assert notes[6] == f"{name}{bits}\0".encode()  # GUEST_OS
    assert notes[5] == b"xen-3.0\0"  # XEN_VERSION
    assert notes[8] == b"generic\0"  # LOADER
    assert word.unpack(notes[3])[0] == (0xFFFFFFFF80000000 if bits == 64 else 0xC0000000)  # VIRT_BASE
    assert word.unpack(notes[2])[0] % 4096 == 0  # HYPERCALL_PAGE
    assert notes.get(9) == (b"yes\0" if bits == 32 else None)  # PAE_MODE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [32, 64])
def test_segments_have_pages_of_their_own(name: str, bits: int) -> None:
    """Code, constants and data share no page, so that the runtime can protect each; nothing names a build folder."""
    image = IMAGES / f"{name}{bits}"
    with image.open("rb") as file:
        elf = ELFFile(file)
        loads = [segment.header for segment in elf.iter_segments() if segment.header.p_type == "PT_LOAD"]
        assert elf.header.e_entry == int.from_bytes(notes_of(image)[1], "little")
        assert [load.p_flags for load in loads] == [5, 4, 6]
        assert all(load.p_vaddr % 4096 == 0 for load in loads)
        assert all(load.p_vaddr - load.p_paddr == loads[0].p_vaddr for load in loads)
        assert elf.get_section_by_name(".comment") is None
        assert not any(section.name.startswith(".debug") for section in elf.iter_sections())
    assert str(ROOT).encode() not in image.read_bytes()
