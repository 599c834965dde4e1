"""Colours of the trace, the crossings and the time line: one a domain, one a group of kinds.

They are Okabe and Ito's, which hold for the colour-blind, once for dark themes and once for light ones. Whatever a
colour says, a word or a sign says too.
"""

from __future__ import annotations

from functools import cache

from rich.style import Style

from xentui.engine.trace import Kind

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, RED, GREY = range(8)
_DARK = ("#6cb6ff", "#f5a742", "#5cc8a0", "#cf9fe0", "#f0e442", "#9adcf5", "#ff7a45", "#8593a1")
_LIGHT = ("#0060b0", "#a85a00", "#00704f", "#7a3d9a", "#7d6a00", "#1f6f8b", "#b83400", "#66717c")

DOMAINS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
"""Colours of domains 1, 2, 3, …, again from the first after the last."""

_GROUPS: tuple[tuple[frozenset[int], int], ...] = (
    (frozenset({Kind.HYPERCALL, Kind.MULTICALL_ENTRY}), BLUE),
    (frozenset({Kind.DIRECT_TRAP}), GREEN),
    (frozenset({Kind.EXCEPTION, Kind.PAGE_FAULT, Kind.SOFTWARE_INTERRUPT, Kind.SYSCALL, Kind.IRET}), ORANGE),
    (frozenset(range(16, 32)), SKY),
    (frozenset({Kind.REFUSAL, Kind.DOMAIN_CRASH, Kind.INJECT, Kind.LOST}), RED),
    (frozenset(range(32, 48)), GREEN),
    (frozenset(range(48, 64)), YELLOW),
    (frozenset(range(64, 80)), PURPLE),
    (frozenset(range(80, 96)), GREY),
)


@cache
def ink(colour: int, dark: bool, bold: bool = False, back: str = "") -> Style:
    """The style of a colour."""
    return Style(color=(_DARK if dark else _LIGHT)[colour], bold=bold or None, bgcolor=back or None)


@cache
def plain(dark: bool, back: str = "") -> Style:
    """Text that has no colour of its own."""
    return Style(color="#dfe6ee" if dark else "#1b2430", bgcolor=back or None)


@cache
def faint(dark: bool, back: str = "") -> Style:
    """Text that stands back: times, what is still to come. On the selected line it must not drown."""
    if back:
        return Style(color="#b4bfca" if dark else "#465260", bgcolor=back)
    return Style(color="#8593a1" if dark else "#66717c")


def cursor_back(dark: bool) -> str:
    """The background of the selected line."""
    return "#24405f" if dark else "#cfe3f7"


def of_domain(domain: int) -> int:
    """The colour of a domain; the hypervisor and the idle domain are grey."""
    return GREY if domain == 0 or domain >= 0x7FF0 else DOMAINS[(domain - 1) % len(DOMAINS)]


@cache
def of_kind(kind: int) -> int:
    """The colour of a kind's group."""
    return next((colour for kinds, colour in _GROUPS if kind in kinds), GREY)
