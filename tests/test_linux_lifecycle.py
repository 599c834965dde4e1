"""Debian's Linux does what domain 0 asks of it: gives memory back, suspends, and goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels import Kernels
from xentui.config import GuestSpec
from xentui.engine.actions import Action
from xentui.engine.machine import Machine, Stop
from xentui.engine.xen.abi.sched import SHUTDOWN_suspend
from xentui.engine.xen.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.kernels]
SECOND = 1_000_000_000
MEMORY = 256


def test_linux_balloons_and_suspends_and_resumes_in_place(kernels: Kernels, shell_initrd: Path) -> None:
    machine = Machine(MEMORY, pace="fast")
    said, ends, awaited = bytearray(), [], [b"/ # "]

    def hear(_domain: object, data: bytes) -> None:
        said.extend(data)
        if awaited[0] in said[-400:]:
            machine.stop()

    def ended(_domain: object, reason: str) -> None:
        ends.append(reason)
        machine.stop()

    machine.toolstack.on_output, machine.toolstack.on_end = hear, ended
    spec = GuestSpec("linux", kernels.linux, ramdisk=shell_initrd, memory=MEMORY, cmdline="console=hvc0")
    domain = machine.create(spec)
    assert machine.run() == Stop.ASKED, said[-500:].decode()
    awaited[0] = b"still 42 here"

    machine.apply(Action("balloon", "linux", (200,)))
    machine.run(machine.now() + 20 * SECOND)
    assert domain.tot_pages == 200 << 8

    machine.apply(Action("suspend", "linux"))
    assert machine.run(machine.now() + 60 * SECOND) == Stop.ASKED
    assert ends == ["suspend"] and domain.shutdown_code == SHUTDOWN_suspend
    machine.apply(Action("resume", "linux"))
    for line in (
        b"\r",
        b"\r",
        b"echo still $((40 + 2)) here\r",
    ):  # the shell asks where the cursor is: an answer to that
        machine.run(machine.now() + 3 * SECOND)
        machine.toolstack.type(domain, line)
    assert machine.run(machine.now() + 60 * SECOND) == Stop.ASKED
    assert b"Restarting tasks ... done." in said and b"still 42 here" in said
    assert not any(word in said for word in (b"WARNING:", b"BUG:", b"Oops"))
    machine.toolstack.destroy(domain)
    assert audit(machine.hv) == [] and machine.hv.timers.next_deadline() is None
    machine.close()
