"""The exact pace: the same run gives the same recording, byte for byte, whatever the host does meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import Done, finish, record, start
from tests.kernels import Kernels

RUNS: dict[str, list[str]] = {
    "hello64": ["hello64", "--input", r"info\ntime\nspam\nreboot\ntime\npoweroff\n"],
    "hello32": ["hello32", "--seed", "3", "--input", r"info\ntime\npoweroff\n", "--prompt", "> $"],
    "bench64": ["bench64", "--cmdline", "scale=3"],
    "bench32": ["bench32", "--cmdline", "scale=3"],
    "both widths": ["bench64", "bench32", "hello64", "--cmdline", "scale=2", "--for", "2s", "--input", r"time\ntime\n"],
    "two processors": [
        *("bench64", "bench32", "hello64", "--cpus", "2", "--vcpus", "2"),
        *("--cmdline", "scale=2", "--for", "1s", "--input", r"time\ntime\n"),
    ],
    "selftest": ["selftest64", "selftest32"],
}


def disturbed(path: Path, *arguments: str | Path, hash_seed: int) -> Done:
    """A run that the operating system stops and continues at random."""
    process = start("--record", path, *arguments, hash_seed=hash_seed)
    over = threading.Event()
    disturber = threading.Thread(target=stop_and_continue, args=(process, over))
    disturber.start()
    try:
        return finish(process, path)
    finally:
        over.set()
        disturber.join()


def stop_and_continue(process: subprocess.Popen[bytes], over: threading.Event) -> None:
    """Send SIGSTOP and SIGCONT at random intervals around the 100 ms of the processor's TLB window."""
    chance = random.Random()
    while not over.wait(chance.choice([0.003, 0.02, 0.09, 0.15]) * chance.random()):
        process.send_signal(signal.SIGSTOP)
        time.sleep(chance.choice([0.005, 0.05, 0.13]) * chance.random())
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("name", RUNS)
def test_same_run_same_bytes(tmp_path: Path, name: str) -> None:
    first = record(tmp_path / "1.xtrace", *RUNS[name], hash_seed=0)
    second = disturbed(tmp_path / "2.xtrace", *RUNS[name], hash_seed=12345)
    assert first.status == second.status
    assert first.console == second.console
    assert first.digest == second.digest


def test_other_runs_other_bytes(tmp_path: Path) -> None:
    """The digest is not the same by chance: seed, input and command line each change it."""
    typed = ["hello64", "--input", r"time\npoweroff\n"]
    runs = [typed, [*typed, "--seed", "1"], [*typed, "--cmdline", "x"], ["hello64", "--input", r"info\npoweroff\n"]]
    digests = {record(tmp_path / f"{n}.xtrace", *run).digest for n, run in enumerate(runs)}
    assert len(digests) == len(runs)


@pytest.mark.slow
@pytest.mark.kernels
def test_linux_to_a_shell_and_back(linux_shell: Callable[[str], Done], tmp_path: Path) -> None:
    """The whole session of the shell once more: other hash seed, stopped and continued."""
    first = linux_shell("exact")
    again = tmp_path / "again.xtrace"
    second = disturbed(again, *first.arguments, hash_seed=99)
    assert second.status == 0
    assert second.console == first.console
    assert second.digest == first.digest


@pytest.mark.slow
@pytest.mark.kernels
def test_grub_twice(kernels: Kernels, tmp_path: Path) -> None:
    arguments = (kernels.grub32, "--input", r"set\nhalt\n", "--prompt", "grub> $")
    first = record(tmp_path / "1.xtrace", *arguments, hash_seed=1)
    second = disturbed(tmp_path / "2.xtrace", *arguments, hash_seed=2)
    assert first.status == second.status == 0
    assert first.digest == second.digest
