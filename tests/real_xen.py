"""The oracle: a guest image as domain 0 of real Xen, under QEMU's own emulation.

``python -m tests.real_xen IMAGE [COMMAND LINE]`` prints what the guest prints. A 64-bit guest runs on Xen 4.17, from
Debian 12's package ``xen-hypervisor-4.17-amd64``, fetched once into the cache folder (`tests.kernels.cache_folder`).
That build has no 32-bit PV; a 32-bit guest runs on one that `tests.xen_pv32` has built from the same source, or on the
unpacked hypervisor that ``$XENTUI_XEN_PV32`` names. QEMU is ``qemu-system-x86_64`` with ``-accel tcg``, so that it runs
wherever this does. As domain 0 a guest is privileged, and its console is the hypervisor's serial line.
"""

from __future__ import annotations

import dataclasses
import fcntl
import gzip
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import xen_pv32
from tests.kernels import Apt, cache_folder

QEMU = "qemu-system-x86_64"
PACKAGE = "xen-hypervisor-4.17-amd64"
XEN_PV32 = "XENTUI_XEN_PV32"
GUEST_STARTS = b"init memory"
"""Xen's last words ("Freed ...kB init memory") before domain 0 runs."""
ENDED = re.compile(rb"\(XEN\) Hardware Dom0 (halted|shutdown|crashed)[^\n]*\n")


@dataclasses.dataclass(frozen=True, slots=True)
class XenRun:
    """What one run on real Xen gave."""

    lines: list[str]
    """The guest's lines, without line ends, carriage returns and Xen's own messages."""
    times: list[float]
    """For each line, seconds from the start of QEMU to its last character."""
    log: list[str]
    """Xen's own messages."""
    ending: str
    """How it ended: "halted", "shutdown" (reboot), "crashed", or "" when `until` matched."""


QEMU_DEFECTS = {"the hypercall gate is not for user mode: vector 13, error 412, IP at it"}
"""Checks of the conformance guest that fail because QEMU before version 10 gives the error code of a refused ``int n``
in long mode as 16n + 2, where the processor gives 8n + 2: Xen sees another n."""


def without_defects_of_qemu(lines: Sequence[str]) -> list[str]:
    """The conformance guest's lines as they would be if the checks in `QEMU_DEFECTS` had passed; no others change."""
    corrected: list[str] = []
    defects = 0
    for line in lines:
        if line.startswith("not ok ") and line.split(" - ", 1)[1] in QEMU_DEFECTS:
            corrected.append(line.removeprefix("not "))
            defects += 1
        elif not (defects and line.startswith("#   ") and corrected[-1].split(" - ", 1)[-1] in QEMU_DEFECTS):
            corrected.append(line)
    if defects and (summary := re.fullmatch(r"# (\d+) passed, (\d+) failed", corrected[-1])):
        corrected[-1] = f"# {int(summary[1]) + defects} passed, {int(summary[2]) - defects} failed"
    return corrected


def guest_bits(image: Path | str) -> int:
    """32 or 64, by the image's ELF header; 64 for what is no ELF file (a bzImage)."""
    with open(image, "rb") as file:
        return 32 if file.read(5) == b"\x7fELF\x01" else 64


def fetch_xen(bits: int = 64) -> Path:
    """The unpacked hypervisor for guests of this width, started by multiboot; downloaded on the first call.

    Raises FileNotFoundError for 32 bits where the environment names none and none has been built.
    """
    if bits == 32:
        given = os.environ.get(XEN_PV32)
        hypervisor = Path(given) if given else xen_pv32.cached()
        if not hypervisor.is_file():
            raise FileNotFoundError(f"{hypervisor}: no Xen for 32-bit guests; python -m tests.xen_pv32 builds it")
        return hypervisor
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = folder / "xen-4.17-amd64"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.is_file():
            package = Apt(folder, "amd64").unpack(PACKAGE)
            partial = unpacked.with_suffix(".partial")
            partial.write_bytes(gzip.decompress((package / "boot" / f"{unpacked.name}.gz").read_bytes()))
            partial.rename(unpacked)
    return unpacked


def qemu_command(xen: Path, image: Path, cmdline: str, xen_options: str, memory: int, dom0_memory: int) -> list[str]:
    """The QEMU command line: Xen as the multiboot kernel, the guest image as its first module.

    QEMU 7.2's Nehalem has neither SMAP nor SMEP, and Xen must not look for them; a comma in a module's command line is
    doubled, because QEMU separates modules by commas.
    """
    modules = " ".join(filter(None, [str(image), cmdline])).replace(",", ",,")
    options = f"console=com1 dom0_mem={dom0_memory}M smap=0 smep=0 {xen_options}".strip()
    machine = f"-accel tcg -cpu Nehalem -m {memory} -display none -serial stdio -monitor none -no-reboot".split()
    return [QEMU, *machine, "-kernel", str(xen), "-initrd", modules, "-append", options]


def run_on_xen(
    image: Path | str,
    cmdline: str = "",
    *,
    until: str | None = None,
    answers: Sequence[tuple[str, str]] = (),
    ramdisk: Path | str | None = None,
    xen_options: str = "",
    memory: int = 256,
    dom0_memory: int = 64,
    bits: int | None = None,
    timeout: float = 120.0,
) -> XenRun:
    """Run a guest as domain 0 until it shuts down, or until a whole line of its console matches `until`.

    `answers` are (regular expression, text) pairs, in order: the text is typed when the console's output since the last
    answer matches. Memory is in MB, `timeout` in seconds of real time. `bits` chooses the hypervisor (`fetch_xen`), by
    the image's width if not given. Raises FileNotFoundError where QEMU, the image or the hypervisor is missing, and
    TimeoutError, with the last of what was printed, when neither end comes in time.
    """
    with start_command(
        image, cmdline, ramdisk=ramdisk, xen_options=xen_options, memory=memory, dom0_memory=dom0_memory, bits=bits
    ) as command:
        return _Session(command, until, answers).run(timeout)


@contextmanager
def start_command(
    image: Path | str,
    cmdline: str = "",
    *,
    ramdisk: Path | str | None = None,
    xen_options: str = "",
    memory: int = 256,
    dom0_memory: int = 64,
    bits: int | None = None,
) -> Iterator[list[str]]:
    """The command that starts a guest as domain 0, whose console is its stdin and stdout; good until this is left.

    Takes and raises what `run_on_xen` does.
    """
    if shutil.which(QEMU) is None:
        raise FileNotFoundError(f"{QEMU}: not installed (Debian: qemu-system-x86)")
    if not Path(image).is_file():
        raise FileNotFoundError(f"{image}: no such guest image")
    with tempfile.TemporaryDirectory() as folder:
        # QEMU takes everything behind the first space for the module's command line, so the path must have none
        link = Path(folder) / Path(image).name.replace(" ", "_")
        link.symlink_to(Path(image).resolve())
        command = qemu_command(fetch_xen(bits or guest_bits(image)), link, cmdline, xen_options, memory, dom0_memory)
        if ramdisk is not None:
            disk = Path(folder) / "ramdisk"
            disk.symlink_to(Path(ramdisk).resolve())
            command[command.index("-initrd") + 1] += f",{disk}"
        yield command


class _Session:
    """One QEMU process and what came from its serial line."""

    def __init__(self, command: list[str], until: str | None, answers: Sequence[tuple[str, str]]) -> None:
        self.command = command
        self.until = re.compile(until) if until else None
        self.answers = [(re.compile(pattern.encode()), text.encode()) for pattern, text in answers]
        self.output = bytearray()
        self.line_times: list[float] = []  # one for each newline of the output
        self.answered = 0

    def run(self, timeout: float) -> XenRun:
        """Start QEMU, read until the end, and leave no process behind."""
        start = time.perf_counter()
        process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            while not self._ended():
                left = start + timeout - time.perf_counter()
                ready = left > 0 and select.select([process.stdout], [], [], left)[0]
                if not ready:
                    raise TimeoutError(f"no end after {timeout:.0f} s; last output:\n{self._tail()}")
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                self.output += chunk
                self.line_times += [time.perf_counter() - start] * chunk.count(b"\n")
                self._answer(process.stdin.fileno())
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        return self._result()

    def _answer(self, keyboard: int) -> None:
        """Type what the next answer has, once its pattern has come."""
        while self.answers and (match := self.answers[0][0].search(self.output, self.answered)):
            self.answered = match.end()
            os.write(keyboard, self.answers.pop(0)[1])

    def _ended(self) -> bool:
        if ENDED.search(self.output):
            return True
        return self.until is not None and any(self.until.search(line) for line, _ in self._guest_lines())

    def _guest_lines(self) -> list[tuple[str, float]]:
        """The guest's lines with their times; one that Xen's message cut in two is put together again."""
        lines: list[tuple[str, float]] = []
        started, begun = False, ""
        raw = self.output.split(b"\n")[:-1]
        for line, moment in zip(raw, self.line_times, strict=True):
            own, is_xen, _ = line.partition(b"(XEN) ")
            if started and is_xen:
                begun += own.decode(errors="replace")
            elif started:
                lines.append(((begun + own.decode(errors="replace")).replace("\r", ""), moment))
                begun = ""
            started = started or GUEST_STARTS in line
        return lines

    def _tail(self) -> str:
        return self.output[-2000:].decode(errors="replace")

    def _result(self) -> XenRun:
        ending = ENDED.search(self.output)
        stopped = self.until is not None and any(self.until.search(line) for line, _ in self._guest_lines())
        if ending is None and not stopped:
            raise RuntimeError(f"QEMU ended before the guest did:\n{self._tail()}")
        guest = self._guest_lines()
        log = [line for line in self.output.decode(errors="replace").replace("\r", "").split("\n") if "(XEN)" in line]
        return XenRun(
            [line for line, _ in guest], [moment for _, moment in guest], log, ending[1].decode() if ending else ""
        )


def main(arguments: list[str]) -> int:
    """Run one image and print its lines; the exit status is 0 when it powered off or asked for a reboot."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m tests.real_xen IMAGE [COMMAND LINE]", file=sys.stderr)
        return 2
    try:
        run = run_on_xen(arguments[0], " ".join(arguments[1:]))
    except (OSError, RuntimeError) as error:
        print(f"real_xen: {error}", file=sys.stderr)
        return 2
    print("\n".join(run.lines))
    return 1 if run.ending == "crashed" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
