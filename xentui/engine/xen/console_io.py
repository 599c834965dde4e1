"""A guest's words in the hypervisor's own log: what a kernel says before it has a console.

(Xen: drivers/char/console.c.) Lines are gathered per domain and printed whole, without what is not printable. A release
build of Xen refuses a domU altogether; ours writes, as one with verbose debugging does: those words are worth seeing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.state import MASK32
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.core import CONSOLEIO_write
from xentui.engine.xen.abi.errno import EPERM
from xentui.engine.xen.continuation import create_continuation, preempt_check

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

LINE_BYTES = 199
"""A line is printed when it is this long, ended or not (Xen: DOMAIN_PBUF_SIZE less the terminator)."""

_CHUNK = 128
_COST_BYTE = 10
"""Nanoseconds: each is looked at, and printed."""
_PRINTABLE = frozenset(b"\t") | frozenset(range(0x20, 0x7F))


def do_console_io(vcpu: Vcpu, cmd: int, count: int, buffer: int, _d: int) -> int:
    """Hypercall 18: CONSOLEIO_write of `count` bytes, which gives way; to read the console is the control domain's."""
    if cmd & MASK32 != CONSOLEIO_write:
        return -EPERM
    wanted = count = count & MASK32
    while count > 0:
        if count != wanted and preempt_check(vcpu):
            return create_continuation(vcpu, nr.HYPERCALL_console_io, CONSOLEIO_write, count, buffer)
        text = guest_access.read(vcpu, buffer, min(count, _CHUNK))
        vcpu.hv.clock.charge(_COST_BYTE * len(text))
        _gather(vcpu.domain, text)
        buffer += len(text)
        count -= len(text)
    return 0


def _gather(domain: Domain, text: bytes) -> None:
    line = domain.console_io_line
    for byte in text:
        if byte in _PRINTABLE:
            line.append(byte)
        if byte == 0x0A or len(line) == LINE_BYTES:
            domain.hv.log(f"(d{domain.id}) {line.decode('ascii')}")
            line.clear()
