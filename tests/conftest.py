"""What several test files share: the real kernels, and where recordings go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
