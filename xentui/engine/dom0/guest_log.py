"""The last lines of a crashed guest's own log, read out of its memory: what it could no longer print.

Linux keeps its messages in a ring (kernel/printk/printk_ringbuffer.c): each is a 64-bit id, then its text, padded to
8 bytes; ids count up by one. The ring is found by its first message, which begins "Linux version", and followed id
by id.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from xentui.engine.x86.paging import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain

_BANNER = b"Linux version "
_LONGEST = 2048  # bytes that a message may have
_RING = 16 << 20  # bytes that a log may have


class _PseudoPhysical:
    """A domain's memory in the order of its own frame numbers."""

    def __init__(self, domain: Domain) -> None:
        hv = domain.hv
        self.ram = hv.ram
        self.frames: dict[int, int] = {}
        for mfn in hv.frames.owned_by(domain.id):
            self.frames.setdefault(hv.get_m2p(mfn), mfn)

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes from a pseudo-physical address; fewer where the domain has no frame."""
        parts = []
        while size > 0:
            mfn = self.frames.get(address >> PAGE_SHIFT)
            if mfn is None:
                break
            within = address & (PAGE_SIZE - 1)
            take = min(size, PAGE_SIZE - within)
            start = (mfn << PAGE_SHIFT) + within
            parts.append(bytes(self.ram[start : start + take]))
            address, size = address + take, size - take
        return b"".join(parts)

    def find(self, text: bytes) -> list[int]:
        """Every pseudo-physical address that is a multiple of 8 and holds `text` within one page."""
        found = []
        for pfn, mfn in sorted(self.frames.items()):
            page = bytes(self.ram[mfn << PAGE_SHIFT : (mfn + 1) << PAGE_SHIFT])
            at = page.find(text)
            while at >= 0:
                if not at & 7:
                    found.append((pfn << PAGE_SHIFT) + at)
                at = page.find(text, at + 1)
        return found


def last_lines(domain: Domain, count: int = 12) -> list[str]:
    """The last `count` messages of a Linux guest's log; nothing for other guests, or where it cannot be found."""
    memory = _PseudoPhysical(domain)
    best: list[str] = []
    for address in memory.find(_BANNER):
        messages = _follow(memory, address)
        if len(messages) > len(best):
            best = messages
    return best[-count:] if len(best) > 1 else []


def _follow(memory: _PseudoPhysical, address: int) -> list[str]:
    """The messages of the ring whose first text lies at `address`."""
    ring = memory.read(address - 8, _RING)
    number = int.from_bytes(ring[:8], "little")
    messages, at = [], 8
    while True:
        following = (number + 1 & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
        end = at
        while (end := ring.find(following, end, at + _LONGEST)) >= 0 and end & 7:
            end += 1
        text = ring[at : end if end >= 0 else at + _LONGEST].decode("ascii", "replace")
        messages.append("".join(takewhile(str.isprintable, text.replace("\ufffd", "\0"))))
        if end < 0:
            return messages
        number, at = number + 1, end + 8
