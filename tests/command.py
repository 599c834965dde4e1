"""Run the real command in a process of its own, as a user does, and look at what it prints and leaves."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from xentui.recording.reader import Recording

ROOT = Path(__file__).parent.parent
SECONDS = 240
"""Host seconds that a run may take before it counts as hung; far more than any needs."""
ENGINE_FAULTS = ("Traceback", "a fault of the hypervisor itself")
"""What stderr never says, whatever a guest does."""


@dataclass(frozen=True, slots=True)
class Done:
    """A run of the command that has ended."""

    status: int
    console: str
    """Standard output, without carriage returns."""
    errors: str
    """Standard error."""
    recording: Path
    arguments: tuple[str | Path, ...] = ()
    """What came after --record FILE."""

    @property
    def lines(self) -> list[str]:
        """The console's lines."""
        return self.console.splitlines()

    @property
    def digest(self) -> str:
        """SHA-256 of the recording."""
        return hashlib.sha256(self.recording.read_bytes()).hexdigest()

    def read(self) -> Recording:
        """The recording, opened; it must have been ended in order."""
        recording = Recording(str(self.recording))
        assert recording.complete, recording.problem
        return recording


def command(*arguments: str | Path) -> list[str]:
    """The command line that runs this tree's xentui."""
    return [sys.executable, "-m", "xentui", *map(str, arguments)]


def start(*arguments: str | Path, hash_seed: int | None = None) -> subprocess.Popen[bytes]:
    """Start the command; its console and its errors come through pipes."""
    environment = dict(os.environ, **({} if hash_seed is None else {"PYTHONHASHSEED": str(hash_seed)}))
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes], recording: Path) -> Done:
    """Wait for the end of a command; a test fails whose command shows a fault of the engine's own."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {SECONDS} s: {out[-500:]!r} {err[-500:]!r}") from None
    errors = err.decode(errors="replace")
    assert not any(words in errors for words in ENGINE_FAULTS), errors
    return Done(process.returncode, out.decode(errors="replace").replace("\r", ""), errors, recording)


def run(*arguments: str | Path) -> Done:
    """Run the command without --record, to its end."""
    return finish(start(*arguments), Path("/nonexistent"))


def record(recording: Path, *arguments: str | Path, hash_seed: int | None = None) -> Done:
    """Run guests with --record, to the end."""
    done = finish(start("--record", recording, *arguments, hash_seed=hash_seed), recording)
    return replace(done, arguments=arguments)
