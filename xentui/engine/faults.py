"""What can be broken on purpose: the catalogue of faults, their text form, and injecting them.

    inject(machine, "fail hello32 mmu_update -ENOMEM every 3")

A fault is written as its form in `CATALOGUE` says: small words stand as they are, capitals are arguments, and what is
in brackets may be left out, in any order. Each one is recorded (Kind.INJECT) at the virtual time at which it is
injected, and one that lies in wait each time that it strikes. What each does is in fault_effects.py and, of those that
wait, in fault_snares.py; nothing here is on the trap path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from xentui.engine.clock import MAX_NS
from xentui.engine.trace import Fault as Number
from xentui.engine.trace import SharedRing, names_of
from xentui.engine.xen.abi import errno
from xentui.engine.xen.abi.hypercalls import NAMES, NR_HYPERCALLS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xentui.engine.machine import Machine

UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "min": 60_000_000_000, "h": 3_600_000_000_000}
ERRNOS = {name: value for name, value in vars(errno).items() if name.startswith("E")}
HYPERCALLS = {name: number for number, name in NAMES.items() if number < NR_HYPERCALLS}
RINGS = {name.replace("_", "-"): number for number, name in names_of(SharedRing).items()}
_GENERAL = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "ip", "flags")
REGISTERS = (*("r" + name for name in _GENERAL), *(f"r{number}" for number in range(8, 16)), "cr2")
_TIME = re.compile(r"([+-]?)(\d+(?:\.\d+)?)(ns|us|ms|s|min|h)")


class FaultError(ValueError):
    """A fault that cannot be injected: one line that says what there is instead."""


@dataclass(frozen=True)
class Kind:
    """A fault of the catalogue."""

    number: int
    """A `trace.Fault`."""
    form: str
    sentence: str
    """What it does, with arguments in braces."""
    section: str
    """Where it belongs: a title, and the paper's section."""

    @property
    def name(self) -> str:
        """The name that the trace shows."""
        return names_of(Number)[self.number].replace("_", "-")

    @property
    def word(self) -> str:
        """The first word of its text."""
        return self.form.split()[0]

    @property
    def required(self) -> list[str]:
        """The words of its form that must be there."""
        return self.form.partition(" [")[0].split()

    @property
    def optional(self) -> list[list[str]]:
        """The groups that may follow."""
        return [group.split() for group in re.findall(r"\[([^]]*)\]", self.form)]


_WHEN = " [next] [nth COUNT] [every COUNT]"
_CALLS, _EVENTS, _CPU = "Hypercalls (3.1)", "Events (3.1)", "CPU (2.1.2)"
_MEMORY, _RINGS, _TIMES = "Memory (2.1.1, 3.3.3)", "Shared memory (3.2)", "Time (3.3.2)"
_DOMAINS = "Domains (2.3)"

CATALOGUE: tuple[Kind, ...] = (
    Kind(
        Number.FAIL, "fail DOMAIN HYPERCALL ERROR" + _WHEN,
        "{which} {hypercall} of {domain} returns {error} and does nothing", _CALLS,
    ),
    Kind(
        Number.SEND_EVENT, "send-event DOMAIN port PORT",
        "{domain} gets an event on port {port} that nobody sent", _EVENTS,
    ),
    Kind(
        Number.DROP_EVENT, "drop-event DOMAIN port PORT" + _WHEN,
        "{which} event to port {port} of {domain} is lost", _EVENTS,
    ),
    Kind(
        Number.DELAY_EVENT, "delay-event DOMAIN port PORT by TIME" + _WHEN,
        "{which} event to port {port} of {domain} comes {time} late", _EVENTS,
    ),
    Kind(
        Number.DUPLICATE_EVENT, "duplicate-event DOMAIN port PORT after TIME" + _WHEN,
        "{which} event to port {port} of {domain} comes again {time} later", _EVENTS,
    ),
    Kind(Number.MASK, "mask DOMAIN port PORT", "the mask bit of port {port} of {domain} is set", _EVENTS),
    Kind(
        Number.EXCEPTION, "exception DOMAIN VECTOR [error NUMBER] [address NUMBER] [vcpu VCPU]",
        "vCPU {vcpu} of {domain} takes exception {vector} where it is", _CPU,
    ),
    Kind(Number.NMI, "nmi DOMAIN [vcpu VCPU]", "vCPU {vcpu} of {domain} gets a non-maskable interrupt", _CPU),
    Kind(
        Number.FLIP_REGISTER, "flip DOMAIN register REGISTER bit BIT [vcpu VCPU]",
        "bit {bit} of {register} of {domain}'s vCPU {vcpu} changes", _CPU,
    ),
    Kind(
        Number.FLIP_MEMORY, "flip DOMAIN memory ADDRESS bit BIT [vcpu VCPU]",
        "bit {bit} of the memory at {address} of {domain} changes", _MEMORY,
    ),
    Kind(
        Number.FLIP_PTE, "flip DOMAIN pte ADDRESS bit BIT [level LEVEL] [vcpu VCPU]",
        "{domain} asks to change bit {bit} of the L{level} entry that maps {address}: the validator decides", _MEMORY,
    ),
    Kind(
        Number.FLIP_RAW_PTE, "flip DOMAIN raw-pte ADDRESS bit BIT [level LEVEL] [vcpu VCPU]",
        "bit {bit} of {domain}'s L{level} entry that maps {address} changes behind the validator's back", _MEMORY,
    ),
    Kind(Number.NO_VALIDATOR, "no-validator DOMAIN", "nobody checks {domain}'s page tables any more", _MEMORY),
    Kind(
        Number.SQUEEZE, "squeeze DOMAIN to MIB",
        "{domain} may have {mib} MiB, and its balloon is asked for the rest", _MEMORY,
    ),
    Kind(
        Number.REVOKE_GRANT, "revoke-grant DOMAIN REFERENCE",
        "{domain} no longer grants reference {reference}", _RINGS,
    ),
    Kind(
        Number.CORRUPT_RING, "corrupt-ring DOMAIN RING INDEX NUMBER",
        "the {index} index of {domain}'s {ring} ring becomes {number}", _RINGS,
    ),
    Kind(Number.STEAL, "steal DOMAIN TIME", "{domain} does not run for {time}", _TIMES),
    Kind(Number.WALL_CLOCK, "wall-clock DOMAIN OFFSET", "the wall clock of {domain} jumps by {offset}", _TIMES),
    Kind(Number.PAUSE, "pause DOMAIN", "{domain} is paused", _DOMAINS),
    Kind(Number.UNPAUSE, "unpause DOMAIN", "{domain} goes on after a pause", _DOMAINS),
    Kind(Number.DISARM, "disarm DOMAIN", "nothing lies in wait for {domain} any more", _DOMAINS),
    Kind(Number.CRASH, "crash DOMAIN", "{domain} crashes", _DOMAINS),
    Kind(Number.DESTROY, "destroy DOMAIN", "{domain} is destroyed, whatever it is doing", _DOMAINS),
)  # fmt: skip
"""Every fault, in the order in which it is shown."""

_DEFAULTS: dict[str, Any] = {"vcpu": 0, "level": 1, "nth": 0, "every": 0, "error": 0, "address": 0}
_LIMITS = {"BIT": (0, 63), "VCPU": (0, 127), "LEVEL": (1, 4), "COUNT": (1, 1 << 32), "PORT": (0, 1 << 17)}


@dataclass
class Injection:
    """A fault with its arguments, and what became of it."""

    kind: Kind
    text: str
    values: dict[str, Any]
    time: int = 0
    """Virtual ns at which it was injected."""
    number: int = 0
    """Its place among all that were injected."""
    waits: bool = False
    """Is it armed: does it wait for something to strike at?"""
    strikes: int = 0
    result: int = 0
    """0, or a negative error where the hypervisor refused."""

    @property
    def sentence(self) -> str:
        """What it does, in words."""
        values = dict(self.values)
        nth, every = values.get("nth", 0), values.get("every", 0)
        values["which"] = f"every {_ordinal(every)}" if every else f"the {_ordinal(nth)}" if nth > 1 else "the next"
        for name in ("time", "offset"):
            if name in values:
                values[name] = time_text(values[name])
        return self.kind.sentence.format(**values)


def _ordinal(number: int) -> str:
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def time_text(ns: int) -> str:
    """A time with the largest unit that leaves no fraction: `20ms`."""
    size, unit = next((size, unit) for unit, size in reversed(UNITS.items()) if ns % size == 0)
    return f"{ns // size}{unit}"


def duration(text: str) -> int:
    """`20ms`, `1.5s`, `-3h` in nanoseconds. Raises FaultError."""
    match = _TIME.fullmatch(text)
    if not match:
        raise FaultError(f"{text!r} is not a time: a number and a unit ({', '.join(UNITS)}), as in 20ms")
    nanoseconds = float(match[2]) * UNITS[match[3]]
    if nanoseconds > MAX_NS:
        raise FaultError(f"{text} is too long: a run's clock counts a hundred years")
    return int(nanoseconds) * (-1 if match[1] == "-" else 1)


# --- text to fault -------------------------------------------------------------------------------------------------


def split_time(text: str) -> tuple[int, str]:
    """`[AT:]FAULT` of the command line: (virtual ns, FAULT). Raises FaultError."""
    at, colon, rest = text.partition(":")
    if not colon:
        return 0, text.strip()
    for kind in CATALOGUE:
        if kind.word == at.strip():
            raise FaultError(f"before the colon stands a time, as in 20ms; this fault is written: {kind.form}")
    when = duration(at.strip())
    if when < 0:
        raise FaultError(f"{at} is before the start")
    return when, rest.strip()


def parse(text: str, domains: Sequence[str]) -> Injection:
    """A fault from its text, `[AT:]FAULT`; `domains` are the names that there are. Raises FaultError."""
    at, rest = split_time(text)
    words = rest.split()
    if not words:
        raise FaultError(f"a fault begins with one of {', '.join(_words())}")
    kinds = [kind for kind in CATALOGUE if kind.word == words[0]]
    if not kinds:
        raise FaultError(f"no fault {words[0]!r}; there is {', '.join(_words())}")
    kind = _choose(kinds, words)
    values: dict[str, Any] = {}
    required = kind.required
    for element, word in zip(required[1:], words[1:], strict=False):
        if element.islower():
            if element != word:
                raise FaultError(f"{element!r} is expected, not {word!r}: {kind.form}")
        else:
            values[element.lower()] = value_of(element, word, domains)
    if len(words) < len(required):
        raise FaultError(f"{required[len(words)]} is missing: {kind.form}")
    _options(kind, words[len(required) :], values, domains)
    return Injection(kind, " ".join(words), values, at)


def _words() -> list[str]:
    """The first words of all faults."""
    return list(dict.fromkeys(kind.word for kind in CATALOGUE))


def _choose(kinds: list[Kind], words: list[str]) -> Kind:
    """Among faults with the same first word, the one whose third word it is (`flip DOMAIN register`)."""
    if len(kinds) == 1:
        return kinds[0]
    chosen = [kind for kind in kinds if len(words) > 2 and kind.required[2] == words[2]]
    if not chosen:
        known = ", ".join(kind.required[2] for kind in kinds)
        given = f", not {words[2]!r}" if len(words) > 2 else ""
        raise FaultError(f"{words[0]} DOMAIN is followed by one of {known}{given}")
    return chosen[0]


def _options(kind: Kind, words: list[str], values: dict[str, Any], domains: Sequence[str]) -> None:
    """What may be left out, and defaults for what is."""
    groups = {group[0]: group for group in kind.optional}
    for group in groups.values():
        if len(group) > 1:
            values.setdefault(group[0], _DEFAULTS[group[0]])
    while words:
        chosen = groups.get(words[0])
        if chosen is None:
            known = f"; it may be followed by {', '.join(groups)}" if groups else ""
            raise FaultError(f"{words[0]!r} is too much{known}: {kind.form}")
        if len(words) < len(chosen):
            raise FaultError(f"{chosen[-1]} is missing after {words[0]}: {kind.form}")
        if len(chosen) > 1:
            values[chosen[0]] = value_of(chosen[1], words[1], domains)
        words = words[len(chosen) :]


def value_of(element: str, word: str, domains: Sequence[str]) -> Any:
    """An argument's value: a name as it is, a number as a number, a time in ns. Raises FaultError."""
    known = choices(element, domains)
    if known:
        if element == "VECTOR" and word.isdigit():
            return _number(element, word, 0, 31)
        given = f"-{word.lstrip('-')}" if element == "ERROR" else word
        if element == "REGISTER" and word.startswith("e"):
            given = f"r{word[1:]}"  # as a 32-bit guest calls it
        if element == "ERROR" and given[1:].isdigit():
            return _error_name(int(given[1:]))
        if given not in known:
            raise FaultError(_unknown(element, word, known))
        return given
    if element in ("TIME", "OFFSET"):
        value = duration(word)
        if element == "TIME" and value <= 0:
            raise FaultError(f"{word} is no time to wait")
        return value
    if element == "ADDRESS":
        return word
    low, high = _LIMITS.get(element, (0, (1 << 64) - 1))
    return _number(element, word, low, high)


def _number(element: str, word: str, low: int, high: int) -> int:
    try:
        value = int(word, 0)
    except ValueError:
        raise FaultError(f"{word!r} is no number, as {element} is") from None
    if not low <= value <= high:
        raise FaultError(
            f"{element} is {low} to {high:#x}, not {word}" if high > 9999 else f"{element} is {low} to {high}"
        )
    return value


def _error_name(number: int) -> str:
    name = next((name for name, value in ERRNOS.items() if value == number), None)
    if name is None:
        raise FaultError(f"no error has the number {number}")
    return f"-{name}"


def _unknown(element: str, word: str, known: Sequence[str]) -> str:
    what = element.lower()
    if len(known) <= 24:
        return f"no {what} {word!r}; there is {', '.join(known) or 'none'}"
    close = get_close_matches(word, known, 3, 0.5)
    return f"no {what} {word!r}" + (f"; did you mean {' or '.join(close)}?" if close else "")


VECTORS = {
    **{name: vector for vector, name in enumerate(("DE", "DB", "NMI", "BP", "OF", "BR", "UD", "NM", "DF"))},
    **{name: vector for vector, name in enumerate(("TS", "NP", "SS", "GP", "PF"), 10)},
    **{name: vector for vector, name in enumerate(("MF", "AC", "MC", "XM"), 16)},
}
"""Exceptions by name (Intel SDM volume 3, table 6-1)."""


def choices(element: str, domains: Sequence[str]) -> list[str]:
    """The words that an argument can be; empty where it is a number or the like."""
    if element == "DOMAIN":
        return list(domains) or ["(no domain)"]
    return {
        "HYPERCALL": list(HYPERCALLS),
        "ERROR": [f"-{name}" for name in ERRNOS],
        "REGISTER": list(REGISTERS),
        "RING": list(RINGS),
        "INDEX": ["producer", "consumer"],
        "VECTOR": [name for name in VECTORS if name != "NMI"],
    }.get(element, [])


_HINTS = {
    "PORT": "a port's number", "BIT": "0 to 63", "ADDRESS": "0x…, a register or a symbol", "TIME": "20ms",
    "OFFSET": "+1h or -30s", "COUNT": "a number", "NUMBER": "a number", "VCPU": "0", "LEVEL": "1 to 4", "MIB": "MiB",
    "REFERENCE": "a grant reference",
}  # fmt: skip


def complete(
    text: str, domains: Sequence[str], numbers: Mapping[str, Mapping[str, Sequence[int]]] | None = None
) -> tuple[list[str], str]:
    """(words that the last word of an unfinished text can become, what is expected there in words).

    `numbers`: by domain, the ports, references and vCPUs that it has (views/faults.py, `names`).
    """
    words = text.split()
    if words and ":" in words[0]:
        words[:1] = words[0].partition(":")[2:] if words[0][-1] != ":" else []
    last = "" if not words or text.endswith(" ") else words.pop()
    kinds = [kind for kind in CATALOGUE if words and kind.word == words[0]]
    if len(words) > 2 and len(kinds) > 1:
        kinds = [kind for kind in kinds if kind.required[2] == words[2]]
    if not words:
        known, hint = _words(), "a fault"
    elif not kinds:
        return [], ""
    elif len(words) < len(kinds[0].required):
        elements = list(dict.fromkeys(kind.required[len(words)] for kind in kinds))
        theirs = (numbers or {}).get(words[1], {}) if len(words) > 1 else {}
        known = [word for element in elements for word in _known(element, domains) or map(str, theirs.get(element, ()))]
        hint = " or ".join(_HINTS.get(element, element.lower()) for element in elements)
    else:
        known, hint = _option_choices(kinds[0], words, domains)
    return [word for word in known if word.lower().startswith(last.lower())], hint


def _known(element: str, domains: Sequence[str]) -> list[str]:
    return [element] if element.islower() else choices(element, domains)


def _option_choices(kind: Kind, words: list[str], domains: Sequence[str]) -> tuple[list[str], str]:
    groups = {group[0]: group for group in kind.optional}
    before = groups.get(words[-1])
    if before is not None and len(before) > 1:
        return choices(before[1], domains), _HINTS.get(before[1], "")
    free = [word for word in groups if word not in words]
    return free, "optional" if free else "nothing more"


# --- injecting -----------------------------------------------------------------------------------------------------


def inject(machine: Machine, text: str) -> Injection:
    """Break something now, or at the time before the colon of `AT:FAULT`. Raises FaultError, and then nothing is
    changed; what has become impossible by its time is told in the hypervisor's log."""
    from xentui.engine import fault_effects

    injection = parse(text, [domain.name for domain in machine.domains])
    injection.number = max((fault.number for fault in machine.faults), default=0) + 1
    if injection.time > machine.now():
        _inject_later(machine, injection)
        return injection
    machine.end_idle()
    injection.time = machine.now()
    fault_effects.apply(machine, injection)
    machine.faults.append(injection)
    return injection


def _inject_later(machine: Machine, injection: Injection) -> None:
    """Keep a fault until its time has come."""

    def strike() -> None:
        machine.faults.remove(injection)
        try:
            inject(machine, injection.text)
        except FaultError as error:
            machine.hv.log(f"fault not injected ({injection.text}): {error}")

    injection.waits = True
    machine.faults.append(injection)
    machine.hv.timers.set(strike, injection.time, strike)
