"""Record what real programs send to a terminal of 80 by 24, for `test_terminal.py`: `python -m tests.record_streams`.

`vi`, `top` and `less` are busybox's, run here on a pseudo-terminal; Linux and GRUB are booted by `xentui --record`.
Each stream is kept as it came, in tests/streams.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import tempfile
import termios
import time
from pathlib import Path

from tests.kernels import fetch_kernels, make_initrd

FOLDER = Path(__file__).parent / "streams"
WIDTH, HEIGHT = 80, 24

PROGRAMS: dict[str, tuple[list[str], list[bytes]]] = {
    "vi": (
        ["busybox", "vi", "text"],
        [
            b"",
            b"jjjdd",
            b"ihello \x1b",
            b"/line 40\r",
            b"\x06",
            b"\x02",
            b"Gocolours and \xc3\xbcmlauts\x1b",
            b":5\r",
            b"3yyp",
        ],
    ),
    "less": (["busybox", "less", "-N", "text"], [b"", b" ", b" ", b"b", b"/line 7\r", b"n", b"G", b"g"]),
    "top": (["busybox", "top", "-d", "1"], [b"", b"", b"c", b""]),
}


def record_program(command: list[str], keys: list[bytes], folder: str) -> bytes:
    """Run a program on a pseudo-terminal, press keys, and take what it sends, to before its end."""
    child, master = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe(command[0], command, {**os.environ, "TERM": "linux"})
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    taken = b""
    for key in keys:
        os.write(master, key)
        until = time.monotonic() + 1.2
        while (left := until - time.monotonic()) > 0:
            if select.select([master], [], [], left)[0]:
                taken += os.read(master, 65536)
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(master)
    return taken


def record_guest(*arguments: str | Path) -> bytes:
    """Run a guest and take its console."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["python", "-m", "xentui", "--record", f"{folder}/out.xtrace", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, check=False, timeout=300).stdout


def main() -> None:
    """Record all."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lines = (
            f"line {number} of a text that is \x1b[3{number % 8}mlong enough\x1b[0m\tto scroll" for number in range(200)
        )
        Path(folder, "text").write_text("\n".join(lines))
        for name, (command, keys) in PROGRAMS.items():
            (FOLDER / name).write_bytes(record_program(command, keys, folder))
        kernels = fetch_kernels()
        typed = "ls --color=always /\\necho -e '\\\\e[1;33mdone\\\\e[0m'\\npoweroff -f\\n"
        initrd = make_initrd(Path(folder, "initrd.gz"))
        linux = (
            "--ramdisk",
            initrd,
            "--cmdline",
            "console=hvc0",
            "--memory",
            "256",
            "--input",
            typed,
            "--pace",
            "fast",
        )
        (FOLDER / "linux").write_bytes(record_guest(kernels.linux, *linux))
    typed = "set color_normal=yellow/blue\\nclear\\nls\\nhelp\\nhalt\\n"
    (FOLDER / "grub").write_bytes(record_guest(kernels.grub32, "--input", typed))


if __name__ == "__main__":
    main()
