"""A guest's words in the hypervisor's own log: what a kernel says before it has a console.

(Xen: drivers/char/console.c.) Lines are gathered per domain and printed whole, without what is not printable. A release
build of Xen refuses a domU altogether; ours writes, as one with verbose debugging does: those words are worth seeing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.clock import COST_BYTES_PER_NS
from xentui.engine.x86.state import MASK32
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi.core import CONSOLEIO_write
from xentui.engine.xen.abi.errno import EPERM

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

LINE_BYTES = 199
"""A line is printed when it is this long, ended or not (Xen: DOMAIN_PBUF_SIZE less the terminator)."""

_CHUNK = 128
_PRINTABLE = frozenset(b"\t") | frozenset(range(0x20, 0x7F))


def do_console_io(vcpu: Vcpu, cmd: int, count: int, buffer: int, _d: int) -> int:
    """Hypercall 18: CONSOLEIO_write of `count` bytes; to read the machine's console is the control domain's."""
    if cmd & MASK32 != CONSOLEIO_write:
        return -EPERM
    count &= MASK32
    while count > 0:
        text = guest_access.read(vcpu, buffer, min(count, _CHUNK))
        vcpu.hv.clock.charge(len(text) // COST_BYTES_PER_NS)
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
