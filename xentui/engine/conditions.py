"""What breakpoints wait for, of the trace's records and of a vCPU's registers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from xentui.engine.expression import Expression, ExpressionError
from xentui.engine.trace import Kind, Record
from xentui.engine.views import find
from xentui.engine.x86 import state as s
from xentui.engine.xen.abi import hypercalls

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu


class BreakpointError(ValueError):
    """The breakpoint cannot be set; its text is one line that says why."""


# --- what records are meant ------------------------------------------------------------------------------------------

Predicate = Callable[[Record], bool]

_CROSSINGS = frozenset(
    {
        *(Kind.HYPERCALL, Kind.EXCEPTION, Kind.PAGE_FAULT, Kind.DIRECT_TRAP, Kind.SOFTWARE_INTERRUPT, Kind.SYSCALL),
        *(Kind.IRET, Kind.EVENT_UPCALL),
    }
)
_HYPERCALLS = frozenset((Kind.HYPERCALL, Kind.MULTICALL_ENTRY))
RECORDS: dict[str, frozenset[int]] = {
    "hypercall": _HYPERCALLS,
    "vector": frozenset((Kind.EXCEPTION, Kind.PAGE_FAULT, Kind.SOFTWARE_INTERRUPT, Kind.DIRECT_TRAP)),
    "port": frozenset((Kind.EVENT_SEND, Kind.EVENT_MASKED, Kind.VIRQ)),
    "crossing": _CROSSINGS,
    "exception": frozenset((Kind.EXCEPTION, Kind.PAGE_FAULT)),
    "upcall": frozenset((Kind.EVENT_UPCALL,)),
    "switch": frozenset((Kind.SCHEDULE,)),
    "refusal": frozenset((Kind.REFUSAL,)),
}
"""Words for what is often asked for, and the kinds of records that are meant. The first three take an argument."""


def predicate_of(what: str, domains: Mapping[str, int], widths: Mapping[int, int]) -> Predicate:
    """A function that knows the records that are meant; the words of RECORDS quickly. Raises BreakpointError."""
    word, _, argument = what.partition(" ")
    argument = argument.strip()
    kinds = RECORDS.get(word)
    if kinds is None or (argument and word not in ("hypercall", "vector", "port")):
        return parse_expression(what, domains, widths).matches
    if not argument:
        return lambda record: record.kind in kinds
    if word == "hypercall":
        wanted = next((number for number, name in hypercalls.NAMES.items() if name == argument), None)
    else:
        wanted = int(argument, 0) if re.fullmatch(r"\d+|0x[0-9a-fA-F]+", argument) else None
    if wanted is None:
        return parse_expression(what, domains, widths).matches
    if word == "vector":
        return lambda record: (
            record.kind in kinds and (14 if record.kind == Kind.PAGE_FAULT else record.number) == wanted
        )
    if word == "port":
        return lambda record: (
            record.kind in kinds and (record.a if record.kind == Kind.VIRQ else record.number) == wanted
        )
    return lambda record: record.kind in kinds and record.number == wanted


def parse_expression(text: str, domains: Mapping[str, int], widths: Mapping[int, int] | None = None) -> Expression:
    """Understand an expression. Raises BreakpointError."""
    try:
        return Expression.parse(text, domains, widths)
    except ExpressionError as error:
        raise BreakpointError(f"{text!r}: {error}") from None


class Registers(Mapping[str, int]):
    """A vCPU's registers by name, for conditions; each is read when it is asked for."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu

    @cached_property
    def _state(self) -> s.State:
        return find.state_of(self._vcpu)

    def __getitem__(self, name: str) -> int:
        value = find.register(self._state, name)
        if value is None:
            value = self._other(name)
        if value is None:
            raise KeyError(name)
        return value

    def _other(self, name: str) -> int | None:
        """Flags, segments, the protection ring."""
        q, i = self._state.q, self._state.i
        if name in ("rflags", "eflags"):
            return self._vcpu.processor.flags_of(self._state)
        if name in ("cpl", "ring"):
            return int(i[s.HFLAGS] & 3)
        if name in find.SEGMENTS:
            return int(i[find.SEGMENTS[name]])
        if name in _WIDE:
            return int(q[_WIDE[name]])
        return None

    def __iter__(self) -> Iterator[str]:
        return iter((*find.GENERAL, "rip", "rflags", "cpl", *find.SEGMENTS, *_WIDE))

    def __len__(self) -> int:
        return sum(1 for _ in self)


_WIDE = {"fs_base": s.FS_BASE, "gs_base": s.GS_BASE, "cr0": s.CR0, "cr2": s.CR2, "cr3": s.CR3, "cr4": s.CR4}
