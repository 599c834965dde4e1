"""The last lines of a crashed Linux, read out of its memory."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

from xentui.engine.dom0.guest_log import last_lines


def make_domain(contents: bytes) -> Any:
    """A domain whose pseudo-physical memory holds `contents`, its frames in reverse order in machine memory."""
    pages = [contents[start : start + 4096].ljust(4096, b"\0") for start in range(0, len(contents), 4096)]
    count = len(pages)
    ram = memoryview(bytearray(b"".join(reversed(pages))))
    frames = SimpleNamespace(owned_by=lambda domid: list(range(count)))
    hv = SimpleNamespace(ram=ram, frames=frames, get_m2p=lambda mfn: count - 1 - mfn)
    return SimpleNamespace(hv=hv, id=1)


def ring(messages: list[str], first_id: int) -> bytes:
    blocks = b""
    for number, message in enumerate(messages, first_id):
        text = message.encode()
        blocks += struct.pack("<Q", number) + text + b"\0" * (-len(text) % 8)
    return blocks


def test_messages_are_followed_by_their_ids_across_pages() -> None:
    messages = ["Linux version 6.1.0", *(f"message {number} {'x' * (number % 90)}" for number in range(300))]
    domain = make_domain(b"\0" * 8192 + ring(messages, 0xFFFF_FFFF_0000))
    assert last_lines(domain, 5) == messages[-5:]
    assert last_lines(domain, 1000) == messages


def test_the_banner_alone_is_no_log() -> None:
    assert last_lines(make_domain(b"\0" * 64 + b"Linux version 6.1.0 (somewhere in .rodata)")) == []


def test_a_guest_without_a_log_has_no_last_lines() -> None:
    assert last_lines(make_domain(bytes(range(256)) * 64)) == []
