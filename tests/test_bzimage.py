"""Unwrapping kernels: bzImages, compressed files, damaged ones, and the cache of what was unpacked."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.elf_builder import Elf, build_bzimage
from tests.kernels import RECOMPRESS_METHODS, Kernels, compress, make_initrd, recompress_bzimage
from xentui.engine.xen import decompress, kernel_cache
from xentui.engine.xen.elf import ImageError, load_image

KERNEL = Elf().build()
METHODS = [method for method in RECOMPRESS_METHODS if method != "none"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache; even small kernels are kept in this one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_cache, "SMALLEST", 0)
    return tmp_path / "cache" / "xentui" / "unpacked"


def written(folder: Path, data: bytes) -> Path:
    path = folder / "vmlinuz"
    path.write_bytes(data)
    return path


def refusal(path: Path) -> str:
    """The one line by which a file is refused."""
    with pytest.raises(ImageError) as caught:
        load_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable()
    return message


@pytest.mark.parametrize("method", RECOMPRESS_METHODS)
def test_bzimage_payloads(tmp_path: Path, method: str) -> None:
    path = written(tmp_path, build_bzimage(compress(KERNEL, method)))
    image = load_image(path)
    assert bytes(image.elf.data) == KERNEL
    assert image.container == ("bzImage" if method == "none" else f"bzImage, {method}")
    assert image.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_compressed_files(tmp_path: Path, method: str) -> None:
    packed = compress(KERNEL, method)
    # around a whole file there is no size behind the stream
    image = load_image(written(tmp_path, packed if method == "gzip" else packed[:-4]))
    assert (bytes(image.elf.data), image.container) == (KERNEL, method)


def test_the_lz4_frames_of_today(tmp_path: Path) -> None:
    import lz4.frame

    image = load_image(written(tmp_path, lz4.frame.compress(KERNEL)))
    assert (bytes(image.elf.data), image.container) == (KERNEL, "lz4 frame")


def test_a_bzimage_inside_gzip(tmp_path: Path) -> None:
    image = load_image(written(tmp_path, gzip.compress(build_bzimage(compress(KERNEL, "zstd")))))
    assert (bytes(image.elf.data), image.container) == (KERNEL, "gzip, bzImage, zstd")


def test_lz4_in_several_blocks(tmp_path: Path) -> None:
    kernel = Elf(segments=[(0x10_0000, os.urandom(1 << 16) * 300, 20 << 20)]).build()
    image = load_image(written(tmp_path, build_bzimage(compress(kernel, "lz4"))))
    assert bytes(image.elf.data) == kernel


def lzop_stream(blocks: list[tuple[int, bytes]], flags: int = 0x0300_0000, version: int = 0x1030) -> bytes:
    """An lzop file of blocks given as unpacked size and packed bytes; checksums, which Linux ignores, are zero."""
    header = struct.pack(">HH", version, 0x20A0) + (struct.pack(">HBB", 0x0940, 3, 9) if version >= 0x940 else b"\3")
    header += struct.pack(">I", flags) + (bytes(4) if flags & 0x800 else b"") + struct.pack(">II", 0o100644, 0)
    header += bytes(4 * (version >= 0x940)) + b"\4name" + bytes(4)
    body = b""
    for size, packed in blocks:
        plain_sums = 4 * (bool(flags & 1) + bool(flags & 0x100))
        packed_sums = 4 * (bool(flags & 2) + bool(flags & 0x200)) if len(packed) < size else 0
        body += struct.pack(">II", size, len(packed)) + bytes(plain_sums + packed_sums) + packed
    return b"\x89LZO\0\r\n\x1a\n" + header + body + bytes(4)


def rle_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of lzallright, which is optional, something that unpacks b"zeros" to as many zeros as wanted."""

    class LZOCompressor:
        @staticmethod
        def decompress(data: bytes, output_size_hint: int) -> bytes:
            assert len(data) < output_size_hint
            return bytes(output_size_hint if data == b"zeros" else 0)

    monkeypatch.setitem(sys.modules, "lzallright", types.SimpleNamespace(LZOCompressor=LZOCompressor))


@pytest.mark.parametrize("flags", [0, 1, 3, 0x303, 0x801])
@pytest.mark.parametrize("version", [0x0930, 0x1030])
def test_lzo_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, version: int) -> None:
    rle_library(monkeypatch)
    kernel = Elf(segments=[(0x10_0000, bytes(9000), 9000)]).build()
    zeros = kernel.index(bytes(8000))
    blocks = [(zeros, kernel[:zeros]), (8000, b"zeros"), (len(kernel) - zeros - 8000, kernel[zeros + 8000 :])]
    stream = lzop_stream(blocks, flags, version) + struct.pack("<I", len(kernel))
    image = load_image(written(tmp_path, build_bzimage(stream)))
    assert (bytes(image.elf.data), image.container) == (kernel, "bzImage, lzo")


def test_lzo_that_does_not_fit_its_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rle_library(monkeypatch)
    assert "does not unpack to its size" in refusal(written(tmp_path, lzop_stream([(99, b"other")])))
    assert "impossible sizes" in refusal(written(tmp_path, lzop_stream([(9, b"more than nine")])))
    monkeypatch.setattr(decompress, "MAX_UNPACKED", 1000)
    assert "unpacks to more than" in refusal(written(tmp_path, lzop_stream([(900, b"zeros")] * 2)))


def test_lzo_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzallright", None)
    message = refusal(written(tmp_path, lzop_stream([(99, b"packed")])))
    assert "needs the Python package lzallright (lzo stream); pip install lzallright, or recompress" in message


BAD = {
    "old protocol": (build_bzimage(compress(KERNEL, "gzip"), protocol=0x207), "too old: boot protocol 2.07"),
    "header cut": (build_bzimage(b"")[:0x24A], "truncated: a bzImage ends inside its header (offset 0x24a)"),
    "payload outside": (build_bzimage(compress(KERNEL, "xz"), length=1 << 20), "truncated or corrupt: the compressed"),
    "payload offset outside": (build_bzimage(b"x" * 99, offset=1 << 31), "truncated or corrupt: the compressed kernel"),
    "no payload": (build_bzimage(b""), "truncated or corrupt: the compressed kernel would be"),
    "unknown payload": (
        build_bzimage(b"\xaa" * 100),
        "not a kernel: no ELF, bzImage or compression magic (inside its bz",
    ),
    "text payload": (build_bzimage(compress(b"hello", "gzip")), "a text file, not a kernel (inside its bzImage, gzip)"),
    "lzo cut": (build_bzimage(b"\x89LZO\x00\r\n\x1a\n"), "truncated: the stream breaks off at byte"),
    "lzo corrupt": (build_bzimage(b"\x89LZOlzolzolzo"), "corrupt: no lzop header (lzo payload)"),
    "initrd": (
        gzip.compress(b"070701" + b"0" * 200),
        "a cpio archive, not a kernel (inside its gzip); give it as --ramdisk",
    ),
    "nested too deep": (gzip.compress(gzip.compress(gzip.compress(gzip.compress(KERNEL)))), "not a kernel"),
    "lz4 without blocks": (struct.pack("<I", 0x184C2102), "not a kernel"),
    "lz4 block size cut": (struct.pack("<I", 0x184C2102) + b"ab", "truncated: a block's size is cut off"),
    "wrong zstd size": (build_bzimage(compress(KERNEL, "zstd")[:-4] + bytes(4)), "not to the size it tells"),
    "wrong lz4 size": (build_bzimage(compress(KERNEL, "lz4")[:-4] + bytes(4)), "not to the size it tells"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data, expected = BAD[name]
    assert expected in refusal(written(tmp_path, data))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("whole", [True, False])
def test_truncated_kernels(tmp_path: Path, method: str, whole: bool) -> None:
    packed = compress(KERNEL, method)[: -40 if method != "lz4" else -60]
    assert method in refusal(written(tmp_path, packed if whole else build_bzimage(packed)))


@pytest.mark.parametrize("method", ["gzip", "bzip2", "xz", "zstd"])
def test_corrupt_kernels(tmp_path: Path, method: str) -> None:
    packed = bytearray(compress(KERNEL, method))
    for at in range(12, min(40, len(packed) - 12)):
        packed[at] ^= 0x55
    message = refusal(written(tmp_path, build_bzimage(bytes(packed))))
    assert f"({method} payload)" in message and ("corrupt" in message or "truncated" in message)


@settings(max_examples=600, deadline=5000)
@given(st.data())
def test_random_damage_raises_nothing_but_image_error(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(RECOMPRESS_METHODS))
    image = bytearray(build_bzimage(compress(KERNEL, method)))
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(st.sampled_from((0x1F0, 0x240, 0x440)))
        image[data.draw(st.integers(start, min(len(image), start + 400) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(image)), st.integers(1, len(image))))
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), bytes(image[:end]))
        try:
            assert load_image(path).width in (32, 64)
        except ImageError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("method", METHODS)
def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(decompress, "MAX_UNPACKED", 1 << 20)
    bomb = build_bzimage(compress(b"\x7fELF" + bytes(20 << 20), method))
    assert "unpacks to more than 1 MiB" in refusal(written(tmp_path, bomb))


def test_just_as_much_as_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompress, "MAX_UNPACKED", len(KERNEL))
    for method in METHODS:
        assert bytes(load_image(written(tmp_path, build_bzimage(compress(KERNEL, method)))).elf.data) == KERNEL


def forbid_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on only the cache can give a compressed kernel."""

    def refuse(*_: object, **__: object) -> bytes:
        raise AssertionError("unpacked once more")

    monkeypatch.setattr(decompress, "decompress", refuse)


def test_the_second_start_takes_the_kernel_from_the_cache(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, build_bzimage(compress(KERNEL, "xz")))
    first = load_image(path)
    assert [entry.name for entry in own_cache.iterdir()] == [f"{first.sha256}.elf"]
    forbid_unpacking(monkeypatch)
    second = load_image(path)
    assert bytes(second.elf.data) == KERNEL
    assert (second.container, second.sha256) == (first.container, first.sha256)


@pytest.mark.parametrize(
    "damage",
    [b"", b"short", None, b"\0" * 9000],
    ids=["empty", "short", "one bit", "zeros"],
)
def test_a_damaged_entry_is_replaced(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    path = written(tmp_path, build_bzimage(compress(KERNEL, "xz")))
    load_image(path)
    (entry,) = own_cache.iterdir()
    good = entry.read_bytes()
    if damage is None:
        damage = bytes([*good[:100], good[100] ^ 1, *good[101:]])
    entry.write_bytes(damage)
    assert bytes(load_image(path).elf.data) == KERNEL
    assert entry.read_bytes() == good
    forbid_unpacking(monkeypatch)
    assert bytes(load_image(path).elf.data) == KERNEL


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert bytes(load_image(written(tmp_path, compress(KERNEL, "xz"))).elf.data) == KERNEL


def test_nothing_half_written_is_left(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert bytes(load_image(written(tmp_path, compress(KERNEL, "xz"))).elf.data) == KERNEL
    assert list(own_cache.iterdir()) == []


def test_without_a_home_there_is_no_cache(tmp_path: Path) -> None:
    script = "import sys; from xentui.engine.xen.kernel_cache import cache_folder; sys.exit(cache_folder() is not None)"
    environment = {"XDG_CACHE_HOME": "relative/paths/are/ignored", "HOME": ""}
    code = (
        f"import pathlib\npathlib.Path.home = classmethod(lambda cls: (_ for _ in ()).throw(RuntimeError()))\n{script}"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[1], check=True)


def test_the_cache_keeps_the_entries_used_last(tmp_path: Path, own_cache: Path) -> None:
    names = []
    for number in range(kernel_cache.KEPT + 2):
        path = written(tmp_path, build_bzimage(compress(KERNEL, "gzip") + bytes([number])))
        names.append(f"{load_image(path).sha256}.elf")
        os.utime(own_cache / names[-1], (number, number))
    assert {entry.name for entry in own_cache.iterdir()} == set(names[2:])


@pytest.mark.kernels
@pytest.mark.slow
@pytest.mark.parametrize("method", RECOMPRESS_METHODS)
def test_debians_linux_in_every_compression(tmp_path: Path, kernels: Kernels, method: str) -> None:
    recompressed = recompress_bzimage(kernels.linux, tmp_path / "vmlinuz", method)
    image, original = load_image(recompressed), load_image(kernels.linux)
    assert image.elf.data == original.elf.data
    assert image.build_id == original.build_id != ""
    assert image.container == ("bzImage" if method == "none" else f"bzImage, {method}")
    info = subprocess.run(["file", "-b", recompressed], capture_output=True, text=True, check=False).stdout
    assert not info or info.startswith("Linux kernel x86 boot executable bzImage")


@pytest.mark.kernels
def test_initrd_unpacks_to_what_went_in(tmp_path: Path, kernels: Kernels) -> None:
    initrd = make_initrd(tmp_path / "initrd.gz", "#!/bin/sh\necho here\n")
    assert initrd.read_bytes() == make_initrd(tmp_path / "again.gz", "#!/bin/sh\necho here\n").read_bytes()
    archive = gzip.decompress(initrd.read_bytes())
    assert len(archive) % 4 == 0 and archive.endswith(
        b"TRAILER!!!\0" + bytes(len(archive) - archive.rindex(b"!\0") - 2)
    )
    assert kernels.busybox.read_bytes() in archive
    files = dict(cpio_entries(archive))
    assert files["init"] == (0o100755, b"#!/bin/sh\necho here\n")
    assert files["bin/sh"] == (0o120777, b"busybox")
    assert files["dev/console"][0] == 0o020600


def cpio_entries(archive: bytes) -> list[tuple[str, tuple[int, bytes]]]:
    """Names, modes and contents of a newc archive, read without the code that wrote it."""
    entries, at = [], 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return entries
        entries.append((name, (mode, archive[start : start + size])))
        at = (start + size + 3) & ~3
