"""Real Xen for 32-bit PV guests: Debian's own source of Xen 4.17, built with CONFIG_PV32, which its package leaves out.

``python -m tests.xen_pv32`` builds the hypervisor, once, and prints its path. The source comes through ``apt-get
source`` with package lists of its own (`tests.kernels.Apt`); nothing is installed, and no root rights are needed. All
but the one option is as Debian configures it. Two processors take some two minutes; what stays, in the cache folder, is
the hypervisor and its configuration.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kernels import Apt, cache_folder

NEEDED = {
    **{name: name for name in ("gcc", "make", "bison", "flex", "patch", "python3")},
    **{"ld": "binutils", "dpkg-source": "dpkg-dev"},
}
"""Programs, and the Debian package that each is in."""
OPTION = "CONFIG_PV32=y\n"
MAKE = ("nice", "make", "-C", "xen", "XEN_TARGET_ARCH=x86_64", "WGET=/bin/false", "GIT=/bin/false")
"""Xen's build fetches nothing: that would be none of what Debian's archive has signed."""


def cached() -> Path:
    """Where the hypervisor lies once it is built."""
    return cache_folder() / "xen-4.17-pv32"


def build() -> Path:
    """The path of the hypervisor, unpacked; the first call builds it.

    Raises FileNotFoundError for a program that is missing, and RuntimeError with the last words of apt or of the build.
    """
    hypervisor, folder = cached(), cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "xen-pv32.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not hypervisor.is_file():
            _build(hypervisor)
    return hypervisor


def _build(hypervisor: Path) -> None:
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            raise FileNotFoundError(f"{program}: not installed (Debian: {package})")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "xen"
        Apt(cache_folder(), "amd64", sources=True).unpack_source("xen", source)
        configuration = source / "xen" / ".config"
        configuration.write_text((source / "debian" / "xen-kconfig").read_text() + OPTION)
        _make(source, "olddefconfig")
        if OPTION not in configuration.read_text():
            raise RuntimeError(f"{source}: this Xen has no {OPTION.strip()}")
        _make(source, f"-j{os.cpu_count()}", "build")
        shutil.copy(configuration, hypervisor.with_name(f"{hypervisor.name}.config"))
        partial = hypervisor.with_name(f"{hypervisor.name}.partial")
        shutil.copy(source / "xen" / "xen", partial)
        partial.rename(hypervisor)


def _make(source: Path, *words: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("CFLAGS", "LDFLAGS", "MAKEFLAGS")}
    done = subprocess.run(
        [*MAKE, *words], cwd=source, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join((*MAKE, *words))}:\n{done.stderr[-2000:]}")


def main() -> int:
    """Build it, unless it is there; print where it is."""
    try:
        print(build())
    except (OSError, RuntimeError) as error:
        print(f"xen_pv32: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
