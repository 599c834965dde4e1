"""The names in expressions: of fields, registers, arguments, kinds and groups of kinds; and how a word may go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

from xentui.engine.expression_columns import kind_of, known_classes, slots_of, title_of
from xentui.engine.expression_terms import FREE
from xentui.engine.trace import COLUMNS, KIND_NAMES, Kind
from xentui.engine.trace_decode import DOMIDS, ERRNOS, FORMATS, seconds, short_hex
from xentui.engine.xen.abi import hypercalls

RAW = tuple(name for name, _ in COLUMNS if name != "result")
"""Fields that every record has; `result` only those whose kind returns one."""

_GPRS = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
REGISTERS = frozenset(
    [prefix + name for prefix in "re" for name in _GPRS]
    + [f"r{number}" for number in range(8, 16)]
    + ["rip", "eip", "rflags", "eflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base"]
    + ["cr0", "cr2", "cr3", "cr4", "cpl", "ring"]
)
"""Names that a stopped vCPU has a value for; a record has none of those that are not its own fields too."""

GROUPS: dict[str, frozenset[int]] = {
    "trap": frozenset({Kind.EXCEPTION, Kind.PAGE_FAULT, Kind.DIRECT_TRAP, Kind.SOFTWARE_INTERRUPT}),
    "emulation": frozenset(range(16, 32)),
    "memory": frozenset(range(32, 48)),
    "event": frozenset({Kind.EVENT_SEND, Kind.EVENT_UPCALL, Kind.EVENT_MASKED, Kind.VIRQ}),
    "upcall": frozenset({Kind.EVENT_UPCALL}),
    "scheduling": frozenset(range(64, 80)),
    "device": frozenset(range(80, 96)),
    "lifecycle": frozenset(range(96, 112)),
}
"""Kinds by what they are about, as predicates."""


@cache
def argument_names() -> dict[str, frozenset[Callable[[int], str]]]:
    """Each argument's name that a kind or a hypercall has, and the ways in which it is shown."""
    found: dict[str, set[Callable[[int], str]]] = {}
    for which in known_classes():
        for slot in slots_of(which):
            found.setdefault(slot.name, set()).add(slot.show)
    # what a kind calls the number that its name already tells
    found["hypercall"] = {str}
    return {name: frozenset(shows) for name, shows in found.items()}


@cache
def titles() -> frozenset[str]:
    """Names that stand alone: kinds, hypercalls, groups."""
    return frozenset({*KIND_NAMES.values(), *(title_of(which) for which in known_classes()), *GROUPS, "crossing"})


NUMERIC = frozenset({hex, str, short_hex, seconds})
OPEN = FREE | frozenset(FORMATS[name] for name in ("rings", "rings_via_xen", "runner", "pf_error", "pair"))
"""Formats whose texts are too many to list."""


@cache
def value_names(name: str) -> tuple[str, ...]:
    """The words that an argument's value may be shown as, as far as they are known beforehand."""
    if name == "kind":
        return tuple(KIND_NAMES.values())
    if name in ("name", "hypercall"):
        return tuple(hypercalls.NAMES.values())
    if name == "result":
        return tuple(f"-E{error}" for error in ERRNOS.values())
    shows = argument_names().get(name, frozenset()) - NUMERIC - OPEN
    words = {show(value) for show in shows for value in (*range(64), *DOMIDS)}
    return tuple(sorted(word for word in words if re.fullmatch(r"[#A-Za-z_][\w.#-]*", word)))


def crosses(which: int) -> bool:
    """Whether records of a class tell that control went from one protection ring to another."""
    return kind_of(which) in (Kind.HYPERCALL, Kind.IRET) or any(slot.name == "rings" for slot in slots_of(which))


def completions(text: str, domains: Iterable[str] = ()) -> list[str]:
    """How the last word of a beginning may go on: whole words, those most likely first."""
    match = re.search(r"[#\w.-]*$", text)
    start = match[0] if match else ""
    before = text[: len(text) - len(start)].rstrip()
    compared = re.search(r"([\w]+)\s*(?:==|=|!=|in\s*\([^)]*)$", before)
    if compared:
        words: Iterable[str] = domains if compared[1] == "domain" else value_names(compared[1])
    elif re.search(r"~$", before):
        words = ()
    elif re.search(r"(^|[(!]|\b(and|or|not)|&&|\|\|)$", before):
        words = [*KIND_NAMES.values(), *sorted(titles()), "not", "name", *RAW, *sorted(argument_names())]
    else:
        words = ["and", "or", "in"]
    lower = start.casefold()
    return [word for word in dict.fromkeys(words) if word.casefold().startswith(lower) and word != start]
