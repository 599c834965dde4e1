"""``bench64`` on our engine, a measurement at a time: ``python bench/stepped_guest.py PACE RECORDING``.

As ``xentui --record`` runs it, with the recording written; but when the guest waits for its console, a line of our
stdin is typed into it, and until there is one this process sleeps. It ends with the guest, or with stdin.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xentui.config import resolve_guest
from xentui.engine.build import build_machine
from xentui.engine.machine import Stop
from xentui.engine.setup import Setup
from xentui.engine.xen.domain import Domain
from xentui.recording.writer import RecordingWriter


def main() -> int:
    """Run the guest to its end."""
    pace, path = sys.argv[1:]
    spec = resolve_guest("bench64")
    spec.cmdline = "step=1"
    with RecordingWriter(path, {}) as writer:
        machine = build_machine(Setup([spec], pace=pace), flush=writer.trace_chunk)
        (domain,) = machine.domains
        out = sys.stdout.buffer

        def output(_domain: Domain, data: bytes) -> None:
            writer.console(machine.now(), domain.id, 0, data)
            out.write(data)
            out.flush()

        machine.toolstack.on_output = output
        gc.freeze()  # as the command does
        gc.set_threshold(100_000, 50, 100)
        while (reason := machine.run()) == Stop.STARVED:
            line = sys.stdin.buffer.readline()
            if not line:
                break
            machine.toolstack.type(domain, line)
        machine.trace.flush()
        writer.close({"reason": reason})
    return 0


if __name__ == "__main__":
    sys.exit(main())
