"""Types prepared input into a console, a line at a time, when the guest is ready for it.

Ready is: the console has been quiet for a while of virtual time since the guest last wrote, or, with a prompt, it
ends with what the prompt describes. Both depend on the guest alone, so a run with typed input is deterministic.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain

QUIET = 300_000_000
"""Nanoseconds without output after which the next line is typed."""
_TAIL = 4096
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[@-~]")
"""Control sequences, which a prompt's description need not know: shells ask the terminal where the cursor is."""


class Typist:
    """Types `data` into the domain called `name` (a restarted one has the same name)."""

    def __init__(
        self,
        machine: Machine,
        name: str,
        data: bytes,
        prompt: re.Pattern[bytes] | None,
        typed: Callable[[Domain, bytes], None],
    ) -> None:
        self.machine, self.name, self.prompt, self.typed = machine, name, prompt, typed
        self.lines = data.splitlines(keepends=True)
        self.tail = b""

    def heard(self, domain: Domain, data: bytes) -> None:
        """A guest has written to its console."""
        if domain.name != self.name or not self.lines:
            return
        if self.prompt is None:
            self._wait(QUIET)
            return
        self.tail = _CONTROL.sub(b"", self.tail + data)[-_TAIL:]
        ends = [found.end() for found in self.prompt.finditer(self.tail)]
        if ends and ends[-1] >= len(self.tail.rstrip(b" ")):
            self.tail = b""
            self._wait(1)

    def _wait(self, ns: int) -> None:
        timers = self.machine.hv.timers
        timers.set(("typist", self.name), self.machine.now() + ns, self._type)

    def _type(self) -> None:
        """Type the next line, if the domain is still there."""
        for domain in self.machine.domains:
            if domain.name == self.name and domain.shutdown_code is None and not domain.dying and self.lines:
                line = self.lines.pop(0)
                self.typed(domain, line)
                self.machine.toolstack.type(domain, line)
                if self.prompt is None:
                    self._wait(QUIET)
                return
