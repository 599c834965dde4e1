"""The stricter oracle: guests as true, unprivileged domains of real Xen 4.17, created by ``xl`` in a Debian domain 0.

``python -m tests.real_xen_domu IMAGE [IMAGE ...]`` boots Xen under QEMU once (see `tests.real_xen`), with Debian's
Linux as domain 0 and an initial RAM disk that holds Xen's own tools, starts each guest in turn with ``xl create``, and
prints what its console said. Domain 0's disk is put together here from Debian's packages; nothing is installed.
"""

from __future__ import annotations

import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from tests.kernels import BUSYBOX_APPLETS, Apt, Cpio, cache_folder, fetch_kernels
from tests.real_xen import XenRun, guest_bits, run_on_xen

XEN_BIN = "usr/lib/xen-4.17/bin"
PROGRAMS = ("xl", "xenstored", "xenconsoled", "xen-init-dom0")
LOADED_LATE = "lib/x86_64-linux-gnu/libgcc_s.so.1"
"""What libc loads by itself when a thread ends (package libgcc-s1)."""
FOLDERS = (
    *(
        "bin",
        "dev",
        "proc",
        "sys",
        "run",
        "run/xen",
        "log",
        "modules",
        "guests",
        "lib",
        "lib64",
        "tmp",
        "etc",
        "etc/xen",
    ),
    *("var", "var/run", "var/run/xen", "var/run/xenstored", "var/lib", "var/lib/xen", "var/lib/xenstored", "var/lock"),
    *("var/log", "var/log/xen", "usr", "usr/lib", "usr/lib/xen-4.17", XEN_BIN),
)
PACKAGES = (
    *("xen-utils-4.17", "libxenmisc4.17", "libxencall1", "libxendevicemodel1", "libxenevtchn1", "libxenforeignmemory1"),
    *("libxengnttab1", "libxenhypfs1", "libxenstore4", "libxentoolcore1", "libxentoollog1", "libyajl2", "libc6"),
    *("libuuid1", "libnl-3-200", "libnl-route-3-200", "zlib1g", "liblzma5", "libbz2-1.0", "libzstd1", "liblzo2-2"),
    *("libfdt1", "libgcc-s1", "libgcrypt20", "libgpg-error0"),
)
MODULES = ("xen-evtchn", "xen-privcmd", "xen-gntdev", "xen-gntalloc", "xenfs/xenfs")
APPLETS = (*BUSYBOX_APPLETS, "insmod", "chmod", "touch")

INIT = """#!/bin/sh
exec 2>&1
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
mkdir /dev/pts; mount -t devpts devpts /dev/pts
echo 0 > /proc/sys/kernel/printk
for module in /modules/*.ko; do insmod $module; done
mount -t xenfs xenfs /proc/xen
export PATH=/bin:/{bin}
xenstored --pid-file=/run/xen/xenstored.pid && xen-init-dom0 > /dev/null
xenconsoled --log=guest --log-dir=/log
for guest in /guests/*.cfg; do
    name=$(expr $guest : '/guests/\\(.*\\)\\.cfg')
    echo "domU-begin $name"
    xl create -F $guest > /log/xl.log 2>&1 || cat /log/xl.log
    sleep 1
    cat /log/guest-$name.log
    echo "domU-end $name"
done
echo "domU-done"
poweroff -f
"""

CONFIGURATION = """name = "{name}"
type = "pv"
kernel = "/guests/{name}"
memory = {memory}
vcpus = 2
extra = "{cmdline}"
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
"""


def needed_libraries(program: Path) -> list[str]:
    """The shared libraries an ELF file asks for by name."""
    with program.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        if not isinstance(dynamic, DynamicSection):
            return []
        return [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]  # type: ignore[attr-defined]


def with_libraries(programs: Iterable[Path], roots: Iterable[Path]) -> Iterator[Path]:
    """The programs and all libraries they need, directly or not; raises FileNotFoundError for one that is nowhere."""
    available = {path.name: path for root in roots for path in root.rglob("*.so*")}
    waiting, seen = list(programs), set[str]()
    while waiting:
        path = waiting.pop()
        if path.name in seen:
            continue
        seen.add(path.name)
        yield path
        for name in needed_libraries(path):
            if name not in available:
                raise FileNotFoundError(f"{name}: needed by {path.name}, in none of the packages")
            waiting.append(available[name])


def make_domain0_disk(path: Path, guests: Mapping[str, tuple[Path, str]], memory: int) -> None:
    """Write domain 0's initial RAM disk: busybox, Xen's tools with their libraries, modules, the guests."""
    folder, kernels = cache_folder(), fetch_kernels()
    apt = Apt(folder, "amd64")
    roots = {name: apt.unpack(name) for name in PACKAGES}
    archive = Cpio()
    for name in FOLDERS:
        archive.add(name, stat.S_IFDIR | 0o755)
    archive.add("etc/xen/xl.conf", stat.S_IFREG | 0o644)
    for node, major, minor in (("console", 5, 1), ("null", 1, 3), ("hvc0", 229, 0)):
        archive.add(f"dev/{node}", stat.S_IFCHR | 0o600, device=(major, minor))
    archive.add("bin/busybox", stat.S_IFREG | 0o755, kernels.busybox.read_bytes())
    for applet in APPLETS:
        archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    programs = [roots["xen-utils-4.17"] / XEN_BIN / name for name in PROGRAMS]
    for program in with_libraries([*programs, roots["libgcc-s1"] / LOADED_LATE], roots.values()):
        place = f"{XEN_BIN}/{program.name}" if program.name in PROGRAMS else f"lib/{program.name}"
        archive.add(place, stat.S_IFREG | 0o755, program.read_bytes())
    archive.add("lib64/ld-linux-x86-64.so.2", stat.S_IFLNK | 0o777, b"/lib/ld-linux-x86-64.so.2")
    (modules,) = (kernels.linux.parent.parent / "lib/modules").iterdir()
    for number, module in enumerate(MODULES):
        content = (modules / "kernel/drivers/xen" / f"{module}.ko").read_bytes()
        archive.add(f"modules/{number}.ko", stat.S_IFREG | 0o644, content)
    for name, (image, cmdline) in guests.items():
        text = CONFIGURATION.format(name=name, memory=memory, cmdline=cmdline)
        archive.add(f"guests/{name}", stat.S_IFREG | 0o644, image.read_bytes())
        archive.add(f"guests/{name}.cfg", stat.S_IFREG | 0o644, text.encode())
    archive.add("init", stat.S_IFREG | 0o755, INIT.format(bin=XEN_BIN).encode())
    path.write_bytes(archive.finish())


def run_as_domus(
    guests: Mapping[str, tuple[Path, str]], *, memory: int = 64, timeout: float = 300.0
) -> dict[str, list[str]]:
    """Run each guest (name: image and command line) as an unprivileged domain; the lines of each one's console.

    With a 32-bit guest among them all run on the hypervisor that `tests.xen_pv32` has built. Names may
    hold letters, digits, ``-`` and ``_``. `memory` is each guest's, in MB. Raises what `run_on_xen` raises.
    """
    for name in guests:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"{name}: not a name for a domain")
    bits = min(guest_bits(image) for image, _ in guests.values())  # a hypervisor for 32 bits takes 64, too
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder) / "domain0"
        make_domain0_disk(disk, guests, memory)
        run = run_on_xen(
            fetch_kernels().linux, "console=hvc0 quiet loglevel=0", until="domU-done", ramdisk=disk,
            xen_options="cet=no", memory=1024, dom0_memory=512, bits=bits, timeout=timeout,
        )  # fmt: skip
    return {name: console_of(run, name) for name in guests}


def run_whole(
    guests: Mapping[str, tuple[Path, str]], endings: Mapping[str, str], tries: int = 3
) -> dict[str, list[str]]:
    """`run_as_domus`, again if a console's last line does not match its regular expression in `endings`.

    On a busy host domain 0's console daemon at times falls behind and what a guest printed last never reaches its log.
    Such a transcript says nothing of the guest. Raises RuntimeError where none of the tries gives a whole one.
    """
    cut: list[str] = []
    for _ in range(tries):
        consoles = run_as_domus(guests)
        cut = [name for name, ending in endings.items() if not re.search(ending, "".join(consoles[name][-1:]))]
        if not cut:
            return consoles
    raise RuntimeError(f"the console of {', '.join(cut)} ended early in each of {tries} boots of real Xen")


def console_of(run: XenRun, name: str) -> list[str]:
    """The lines between the marks that domain 0 put around one guest's console."""
    begin, end = run.lines.index(f"domU-begin {name}"), run.lines.index(f"domU-end {name}")
    return run.lines[begin + 1 : end]


def without_lawful_differences(lines: list[str]) -> list[str]:
    """What ``hello`` says, less Xen's patch level, machine frames, and x of the builder's own pages.

    Our domain builder keeps pages without code NX until something is fetched from them, for the sake of speed.
    """
    text = "\n".join(lines)
    text = re.sub(r"(hypervisor +Xen 4\.17)\S*", r"\1", text)
    text = re.sub(r"machine frame \w+", "machine frame", text)
    return re.sub(r"(pages  r[w-])[x-](  (?!image))", r"\1?\2", text).splitlines()


def main(arguments: list[str]) -> int:
    """Run the images given; print each one's console."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m tests.real_xen_domu IMAGE [IMAGE ...]", file=sys.stderr)
        return 2
    try:
        consoles = run_as_domus({Path(image).name: (Path(image), "") for image in arguments})
    except (OSError, RuntimeError, ValueError) as error:
        print(f"real_xen_domu: {error}", file=sys.stderr)
        return 2
    for lines in consoles.values():
        print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
