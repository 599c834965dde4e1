"""What several test files share: the real kernels, and where recordings go."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.command import Done, record
from tests.kernels import POWEROFF_INIT, Kernels, fetch_kernels, make_initrd


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """Debian's guest kernels. Without apt or network the tests that need them are skipped, but never in CI."""
    try:
        return fetch_kernels()
    except (OSError, RuntimeError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the real kernels cannot be had here: {error}")


@pytest.fixture(scope="session")
def shell_initrd(kernels: Kernels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initial RAM disk that gives a busybox shell."""
    return make_initrd(tmp_path_factory.mktemp("initrd") / "shell.gz")


@pytest.fixture(scope="session")
def poweroff_initrd(kernels: Kernels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initial RAM disk whose /init says that it was reached, and powers off."""
    return make_initrd(tmp_path_factory.mktemp("initrd") / "poweroff.gz", POWEROFF_INIT)


@pytest.fixture
def xtrace(tmp_path: Path) -> Path:
    """A path for a recording."""
    return tmp_path / "out.xtrace"


SHELL_COMMANDS = r"""uname -a
cat /proc/cpuinfo
ls /
for i in 1 2 3 4 5 6 7 8; do /bin/busybox expr $i \* $i; done
dmesg | grep -c 'Xen version'
poweroff -f
"""


@pytest.fixture(scope="session")
def linux_shell(
    kernels: Kernels, shell_initrd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Done]:
    """A function that boots Debian's Linux to a busybox shell in a pace, types SHELL_COMMANDS, and gives what came.

    Each pace is run once in a session.
    """
    folder = tmp_path_factory.mktemp("linux")
    (folder / "commands").write_text(SHELL_COMMANDS)

    @cache
    def boot(pace: str) -> Done:
        return record(
            folder / f"{pace}.xtrace",
            *(kernels.linux, "--ramdisk", shell_initrd, "--cmdline", "console=hvc0", "--memory", "512"),
            *("--input", f"@{folder}/commands", "--pace", pace),
        )

    return boot
