"""Real guest kernels for the tests: Debian's GRUB, GNU Mach and Linux, and initial RAM disks to boot Linux with.

``python -m tests.kernels`` fetches them (once) and prints their paths. They come from Debian 12 through ``apt-get
download`` and ``dpkg -x``, with package lists of their own, so that neither the system's lists nor its packages change
and no root rights are needed. The folder is ``$XENTUI_CACHE``, or ``~/.cache/xentui/kernels``.
"""

from __future__ import annotations

import bz2
import dataclasses
import fcntl
import gzip
import io
import json
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE, COMPONENT = "bookworm", "main"
MANIFEST = "kernels.json"
REACHED = "xentui: init reached"
"""The line by which a test sees that Linux has come as far as its ``/init``."""

BUSYBOX_APPLETS = (
    *("sh", "ash", "mount", "umount", "uname", "cat", "ls", "echo", "poweroff", "reboot", "halt", "setsid", "cttyhack"),
    *("sleep", "date", "dmesg", "free", "grep", "head", "tail", "wc", "seq", "ps", "mkdir", "rm", "cp", "dd", "md5sum"),
    *("true", "false", "test", "expr", "time", "uptime", "nproc", "id", "hostname", "env", "sync", "stty", "kill"),
)

MOUNTS = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
"""

SHELL_INIT = f"""{MOUNTS}echo "{REACHED}"
for how in poweroff reboot halt; do echo "alias $how='$how -f'"; done > /root/aliases
ENV=/root/aliases setsid cttyhack sh
poweroff -f
"""
"""An ``/init`` that gives an interactive shell on the console, and powers off when that shell ends.

No real init is there for ``poweroff`` to ask, so the shell's does it itself."""

POWEROFF_INIT = f"""{MOUNTS}echo "{REACHED}"
poweroff -f
"""
"""An ``/init`` that says that it was reached and powers off."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kernels:
    """Where each real kernel lies on this machine."""

    grub32: Path
    """GRUB for 32-bit PAE domains (grub-i386-xen.bin)."""
    grub64: Path
    """GRUB for 64-bit domains (grub-x86_64-xen.bin)."""
    mach32: Path
    """GNU Mach, 32-bit PAE with ``extended-cr3``, gzip around the ELF file."""
    mach64: Path
    """GNU Mach, 64-bit, notes owned by name only and a legacy ``__xen_guest`` section, gzip around the ELF file."""
    linux: Path
    """Debian's Linux 6.1 bzImage, xz inside."""
    busybox: Path
    """A static 64-bit busybox."""


def cache_folder() -> Path:
    """The folder that holds the fetched kernels."""
    return Path(os.environ.get("XENTUI_CACHE") or Path.home() / ".cache" / "xentui" / "kernels")


def fetch_kernels() -> Kernels:
    """The paths of all real kernels; the first call downloads them (some 80 MB), later ones only look.

    Raises RuntimeError with apt's own words when a package cannot be had.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        found = _read_manifest(folder)
        if found is None:
            found = _fetch(folder)
            text = json.dumps({k: str(v.relative_to(folder)) for k, v in dataclasses.asdict(found).items()}, indent=1)
            (folder / MANIFEST).write_text(text + "\n")
        return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, so that two test runs do not download over each other."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_manifest(folder: Path) -> Kernels | None:
    """What an earlier call fetched, or None where anything of it is gone."""
    try:
        entries = json.loads((folder / MANIFEST).read_text())
        found = Kernels(**{name: folder / path for name, path in entries.items()})
    except (OSError, ValueError, TypeError):
        return None
    return found if all(path.is_file() for path in dataclasses.astuple(found)) else None


def _fetch(folder: Path) -> Kernels:
    """Download and unpack every package."""
    amd64, i386 = Apt(folder, "amd64"), Apt(folder, "i386")
    grub = amd64.unpack("grub-xen-host") / "usr/lib/grub-xen"
    mach = "boot/gnumach-1.8-xen-486.gz"
    linux_package = amd64.dependency("linux-image-amd64", r"linux-image-\S+-amd64")
    linux = amd64.unpack(linux_package)
    return Kernels(
        grub32=grub / "grub-i386-xen.bin",
        grub64=grub / "grub-x86_64-xen.bin",
        mach32=i386.unpack("gnumach-image-1.8-xen-486") / mach,
        mach64=amd64.unpack("gnumach-image-1.8-xen-486") / mach,
        linux=linux / "boot" / linux_package.replace("linux-image-", "vmlinuz-"),
        busybox=amd64.unpack("busybox-static") / "bin/busybox",
    )


def debian_archive() -> str:
    """Where this machine's apt takes Debian 12 from, by its own configuration."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in listed.stdout.splitlines():
        codename, component, uri = line.split(maxsplit=2)
        if (codename, component) == (SUITE, COMPONENT):
            return uri
    raise RuntimeError(f"apt is not set up for Debian's {SUITE} {COMPONENT}, which has the guest kernels")


class Apt:
    """apt for one architecture, with package lists of its own under the cache folder; if asked for, of sources too."""

    def __init__(self, folder: Path, architecture: str, *, sources: bool = False) -> None:
        self.architecture = architecture
        self.unpacked = folder / architecture
        self.state = folder / "apt" / (f"{architecture}-sources" if sources else architecture)
        for name in ("lists/partial", "archives/partial", "download"):
            (self.state / name).mkdir(parents=True, exist_ok=True)
        self.unpacked.mkdir(exist_ok=True)
        kind = "deb-src" if sources else "deb"
        (self.state / "sources.list").write_text(f"{kind} {debian_archive()} {SUITE} {COMPONENT}\n")
        (self.state / "status").touch()
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Dir::State": self.state,
            "Dir::State::status": self.state / "status",
            "Dir::Cache": self.state,
            "Dir::Etc::sourcelist": self.state / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
        }
        self.options = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        self.updated = False

    def run(self, *words: str) -> str:
        """Run an apt program with this architecture's options; its standard output."""
        if not self.updated and words[1] != "update":
            self.updated = True
            self.run("apt-get", "update", "-q")
        command = [words[0], *self.options, *words[1:]]
        done = subprocess.run(command, cwd=self.state / "download", capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ({self.architecture}): {done.stderr.strip()}")
        return done.stdout

    def dependency(self, package: str, pattern: str) -> str:
        """The package that `package` depends on and whose name matches `pattern`."""
        fields = re.search(r"^Depends: (.*)$", self.run("apt-cache", "show", package), re.MULTILINE)
        match = re.search(pattern, fields[1]) if fields else None
        if match is None:
            raise RuntimeError(f"{package} ({self.architecture}) depends on nothing like {pattern}")
        return match[0]

    def unpack(self, package: str) -> Path:
        """Download a package, once, and unpack it; the folder that holds its files."""
        target = self.unpacked / package
        if target.is_dir():
            return target
        self.run("apt-get", "download", "-q", package)
        (archive,) = (self.state / "download").glob(f"{package}_*.deb")
        partial = target.with_name(f"{package}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(["dpkg", "-x", archive, partial], check=True)
        archive.unlink()
        partial.rename(target)
        return target

    def unpack_source(self, package: str, target: Path) -> None:
        """Download a source package and unpack it, with Debian's patches, into a new folder."""
        download = self.state / "download"
        for left in download.iterdir():
            left.unlink()
        self.run("apt-get", "source", "-q", "--download-only", package)
        (description,) = download.glob(f"{package}_*.dsc")
        done = subprocess.run(["dpkg-source", "-x", description, target], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"dpkg-source -x {description.name}: {done.stderr.strip()}")


def make_initrd(path: Path, init_script: str | None = None) -> Path:
    """Write an initial RAM disk (cpio in the newc format, gzip) with a static busybox and the given ``/init``.

    Without a script, ``/init`` gives an interactive shell on the console. The same input gives the same bytes. The
    device nodes are only entries of the archive: no root rights are needed.
    """
    archive = Cpio()
    for folder in ("bin", "dev", "proc", "sys", "tmp", "root"):
        archive.add(folder, stat.S_IFDIR | 0o755)
    for node, major, minor in (("console", 5, 1), ("null", 1, 3), ("hvc0", 229, 0)):
        archive.add(f"dev/{node}", stat.S_IFCHR | 0o600, device=(major, minor))
    archive.add("bin/busybox", stat.S_IFREG | 0o755, fetch_kernels().busybox.read_bytes())
    for applet in BUSYBOX_APPLETS:
        archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    archive.add("init", stat.S_IFREG | 0o755, (SHELL_INIT if init_script is None else init_script).encode())
    path.write_bytes(gzip.compress(archive.finish(), 6, mtime=0))
    return path


class Cpio:
    """A cpio archive in the newc format, as Linux unpacks it (Documentation/driver-api/early-userspace)."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.inode = 0

    def add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Append one file, folder, symbolic link or device node, owned by root and dated 1970."""
        self.inode += 1
        raw_name = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw_name), 0)
        self.bytes += b"070701" + b"".join(b"%08X" % field for field in fields) + raw_name
        self._align()
        self.bytes += content
        self._align()

    def finish(self) -> bytes:
        """The whole archive, with its trailer."""
        self.add("TRAILER!!!", 0)
        return bytes(self.bytes)

    def _align(self) -> None:
        self.bytes += bytes(-len(self.bytes) % 4)


RECOMPRESS_METHODS = ("gzip", "bzip2", "lzma", "xz", "zstd", "lz4", "none")


def recompress_bzimage(src: Path, dst: Path, method: str) -> Path:
    """Write the bzImage `src` (xz inside, as Debian's) with its payload compressed by another method, as Linux's own
    build would (arch/x86/boot/compressed/Makefile: all methods but gzip append the unpacked size).

    Only the real-mode part, the header and the payload are right: the decompressor that a PC would run is still the
    old one, and a Xen toolstack never looks at it.
    """
    image = bytearray(src.read_bytes())
    (offset, length) = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    payload = compress(bytes(unpack_xz(image[start : start + length])), method)
    tail = image[start + length :]
    image[start:] = payload + tail
    struct.pack_into("<I", image, 0x24C, len(payload))
    protected_size = len(image) - (image[0x1F1] + 1) * 512
    struct.pack_into("<I", image, 0x1F4, (protected_size + 15) // 16)
    dst.write_bytes(image)
    return dst


def unpack_xz(payload: bytes | bytearray) -> bytes:
    """What an xz payload of a bzImage holds; the size behind the stream is ignored."""
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)


def compress(kernel: bytes, method: str) -> bytes:
    """A kernel compressed as Linux's build does it; quick levels, for tests."""
    size = struct.pack("<I", len(kernel))
    if method == "gzip":
        return gzip.compress(kernel, 1, mtime=0)
    if method == "bzip2":
        return bz2.compress(kernel, 1) + size
    if method == "lzma":
        return lzma.compress(kernel, lzma.FORMAT_ALONE, preset=0) + size
    if method == "xz":
        filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 0}]
        return lzma.compress(kernel, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters) + size
    if method == "zstd":
        return compress_zstd(kernel) + size
    if method == "lz4":
        return compress_lz4_legacy(kernel) + size
    if method == "none":
        return kernel
    raise ValueError(f"{method}: not one of {', '.join(RECOMPRESS_METHODS)}")


def compress_zstd(kernel: bytes) -> bytes:
    """One zstd frame."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return bytes(zstd.compress(kernel, 3))


def compress_lz4_legacy(kernel: bytes) -> bytes:
    """LZ4 in the legacy frame that ``lz4 -l`` writes: blocks of 8 MiB, each behind its compressed size."""
    import lz4.block

    out = io.BytesIO()
    out.write(struct.pack("<I", 0x184C2102))
    for start in range(0, len(kernel), 8 << 20):
        block = lz4.block.compress(kernel[start : start + (8 << 20)], store_size=False)
        out.write(struct.pack("<I", len(block)) + block)
    return out.getvalue()


if __name__ == "__main__":
    for kind, location in dataclasses.asdict(fetch_kernels()).items():
        print(f"{kind:8} {location}")
