"""Trace records in words: names of kinds, hypercalls, arguments and errors. Used when a record is shown, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from operator import itemgetter
from types import ModuleType
from typing import NamedTuple

from xentui.engine import trace
from xentui.engine.trace import FIELDS, KIND_NAMES, Kind, Record, names_of
from xentui.engine.xen import refusals
from xentui.engine.xen.abi import core, errno, grant_table, hypercalls, sched
from xentui.engine.xen.abi import trace as xen_trace
from xentui.engine.xen.abi.io import xs_wire


class Field(NamedTuple):
    """One value of a record: its name, the number itself, and how it is shown."""

    name: str
    value: int
    text: str


def constants(module: ModuleType, prefix: str) -> dict[int, str]:
    """Number to name, without the prefix, of a module's constants; of several names for a number the first."""
    found: dict[int, str] = {}
    for name, value in vars(module).items():
        if name.startswith(prefix) and isinstance(value, int):
            found.setdefault(value, name.removeprefix(prefix))
    return found


XEN_EVENTS: dict[int, int] = {
    Kind.HYPERCALL: xen_trace.TRC_PV_HYPERCALL_V2,
    Kind.MULTICALL_ENTRY: xen_trace.TRC_PV_HYPERCALL_SUBCALL,
    Kind.EXCEPTION: xen_trace.TRC_PV_TRAP,
    Kind.PAGE_FAULT: xen_trace.TRC_PV_PAGE_FAULT,
    Kind.EMULATED: xen_trace.TRC_PV_EMULATE_PRIVOP,
    Kind.IO_PORT: xen_trace.TRC_PV_EMULATE_PRIVOP,
    Kind.CPUID: xen_trace.TRC_PV_EMULATE_PRIVOP,
    Kind.MSR: xen_trace.TRC_PV_EMULATE_PRIVOP,
    Kind.FPU_RESTORE: xen_trace.TRC_PV_MATH_STATE_RESTORE,
    Kind.GDT_LDT_FAULT: xen_trace.TRC_PV_GDT_LDT_MAPPING_FAULT,
    Kind.FORCED_EMULATION: xen_trace.TRC_PV_FORCED_INVALID_OP,
    Kind.PTE_WRITE: xen_trace.TRC_PV_PTWR_EMULATION,
    Kind.TIMER: xen_trace.TRC_SCHED_DOM_TIMER_FN,
    Kind.SCHEDULE: xen_trace.TRC_SCHED_SWITCH,
    Kind.BLOCK: xen_trace.TRC_SCHED_BLOCK,
    Kind.WAKE: xen_trace.TRC_SCHED_WAKE,
    Kind.YIELD: xen_trace.TRC_SCHED_YIELD,
    Kind.DOMAIN_CREATE: xen_trace.TRC_DOM0_DOM_ADD,
    Kind.DOMAIN_SHUTDOWN: xen_trace.TRC_SCHED_SHUTDOWN,
    Kind.DOMAIN_DESTROY: xen_trace.TRC_DOM0_DOM_REM,
    Kind.LOST: xen_trace.TRC_LOST_RECORDS,
}
"""The event of Xen's own trace (xen/trace.h) that a kind corresponds to; kinds not here are ours alone."""

VECTORS: dict[int, str] = {
    **dict(enumerate(["#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF"])),
    **dict(enumerate(["#TS", "#NP", "#SS", "#GP", "#PF"], 10)),
    **dict(enumerate(["#MF", "#AC", "#MC", "#XM", "#VE", "#CP"], 16)),
}
"""Exceptions by vector (Intel SDM vol. 3, table 6-1)."""

PF_FLAGS = ["protection", "write", "user", "reserved", "fetch", "pkey"]
"""Bits of a page fault's error code, from bit 0 (Intel SDM vol. 3, 4.7)."""

DOMIDS = {number: f"DOMID_{name}" for number, name in constants(core, "DOMID_").items()}
DOMIDS[core.DOMID_SELF] = "DOMID_SELF"
ERRNOS = constants(errno, "E")
"""Error numbers, positive, to names without the E."""
SHUTDOWNS = constants(sched, "SHUTDOWN_")

_DECIMAL = frozenset({"count", "entries", "nr_calls", "vcpuid", "reg", "set", "nr_bufs"})
_DOMAINS = frozenset({"domid", "foreigndom"})
_HYPERCALLS = frozenset({Kind.HYPERCALL, Kind.MULTICALL_ENTRY})
_UNKNOWN_ARGUMENTS = ("arg1", "arg2", "arg3", "arg4")
_FLUSHES = {core.UVMF_NONE: "UVMF_NONE", core.UVMF_TLB_FLUSH: "UVMF_TLB_FLUSH", core.UVMF_INVLPG: "UVMF_INVLPG"}
_NANOSECONDS = 1_000_000_000


def _named(names: dict[int, str]) -> Callable[[int], str]:
    """A format that shows a number's name, or the number where it has none."""
    return lambda value: names.get(value, str(value))


def _bits(names: list[str]) -> Callable[[int], str]:
    """A format that shows the names of the bits that are set."""

    def show(value: int) -> str:
        known = [name for bit, name in enumerate(names) if value >> bit & 1]
        rest = value >> len(names) << len(names)
        return "|".join(known + [hex(rest)] * bool(rest)) or "0"

    return show


def seconds(time: int) -> str:
    """Virtual nanoseconds as seconds with nine decimals."""
    return f"{time // _NANOSECONDS}.{time % _NANOSECONDS:09d}"


def result_text(value: int) -> str:
    """A result: a negative one by its error's name, a large one in hexadecimal."""
    if value >> 63:
        number = (1 << 64) - value
        return f"-E{ERRNOS[number]}" if number in ERRNOS else str(-number)
    return str(value) if value < 65_536 else hex(value)


def domid_text(value: int) -> str:
    """A domain's number, the reserved ones by name."""
    return DOMIDS.get(value, str(value))


def hypercall_text(value: int) -> str:
    """A hypercall's name."""
    return hypercalls.NAMES.get(value, f"hypercall_{value}")


def short_hex(value: int) -> str:
    """Hexadecimal, but a digit is a digit."""
    return hex(value) if value > 9 else str(value)


def flush_text(value: int) -> str:
    """The flags of update_va_mapping: which flush, on which processors (a pointer to a bitmap, or all)."""
    flush, where = value & core.UVMF_FLUSHTYPE_MASK, value & ~core.UVMF_FLUSHTYPE_MASK
    text = _FLUSHES.get(flush, hex(flush))
    if where == core.UVMF_ALL:
        return f"{text}|UVMF_ALL"
    return f"{text}|{where:#x}" if where else text


def runner_text(value: int) -> str:
    """A domain's vCPU, as `d1v0` in Xen's log."""
    domain, vcpu = value >> 16, value & 0xFFFF
    return "idle" if domain == core.DOMID_IDLE else f"d{domain}v{vcpu}"


FORMATS: dict[str, Callable[[int], str]] = {
    "x": hex,
    "d": str,
    "signed": result_text,
    "fault": lambda value: names_of(trace.Fault).get(value, str(value)).replace("_", "-"),
    "flag": lambda value: "yes" if value else "no",
    "ns": seconds,
    "vector": _named(VECTORS),
    "pf_error": _bits(PF_FLAGS),
    "rings": lambda value: f"{value & 0xFF}→{value >> 8 & 0xFF}",
    "rings_via_xen": lambda value: f"{value & 0xFF}→0→{value >> 8 & 0xFF}",
    "emulated": _named(names_of(trace.Instruction)),
    "domid": domid_text,
    "runner": runner_text,
    "pair": lambda value: f"{value & 0xFFFFFFFF:#010x},{value >> 32:#010x}",
    "masked_by": _named(names_of(trace.MaskedBy)),
    "virq": _named(constants(core, "VIRQ_")),
    "timer": _named(names_of(trace.Timer)),
    "block": _named(names_of(trace.Cause)),
    "xenstore": _named(constants(xs_wire, "XS_")),
    "ring": _named(names_of(trace.SharedRing)),
    "grant": _named(constants(grant_table, "GNTTABOP_")),
    "hypercall": hypercall_text,
    "mmu_update": _named(constants(core, "MMU_")),
    "mmuext": _named(hypercalls.SUBCOMMANDS[hypercalls.HYPERCALL_mmuext_op]),
    "shutdown": _named(SHUTDOWNS),
    "pte": refusals.entry_text,
    "pte_index": refusals.index_text,
    "refusal_rule": lambda value: f'"{refusals.rule_text(value)}"',
    "refusal_level": refusals.level_text,
    "refusal_owner": refusals.owner_text,
    "refusal_type": refusals.type_text,
    "refusal_source": lambda value: f'"{refusals.source_text(value)}"',
}
"""How a value is shown, by the format's name in `trace.FIELDS`."""


class Slot(NamedTuple):
    """One value that records of a kind hold: its name, how it is got out of a record, how it is shown."""

    name: str
    read: Callable[[Record], int]
    show: Callable[[int], str]


def _position(name: str) -> Callable[[Record], int]:
    return itemgetter(Record._fields.index(name))


_NO_TABLE = "number=rule:refusal_rule b=virtual_address:x d=new:pte number=xen:refusal_source result=result:signed"
"""A refusal because no table maps an address names no entry and no frame."""

_RESULT = Slot("result", _position("result"), result_text)
_ARGUMENTS_64 = [_position(name) for name in "abcd"]


@cache
def layout(kind: int, number: int, width: int) -> tuple[Slot, ...]:
    """What a record keeps where, worked out once for each kind.

    `number` tells hypercalls apart, as `width` does, and for refusals the rule.
    """
    if kind in _HYPERCALLS:  # iret returns to where the frame says, with the guest's own RAX
        return (*_arguments(number, width), *(() if number == hypercalls.HYPERCALL_iret else (_RESULT,)))
    if kind not in FIELDS:  # a newer version's: its fields as they lie
        return tuple(Slot(name, _position(name), hex) for name in ("number", "a", "b", "c", "d", "result"))
    slots = []
    shape = _NO_TABLE if kind == Kind.REFUSAL and number == refusals.NO_TABLE else FIELDS[kind]
    for item in shape.split():
        place, _, rest = item.partition("=")
        name, _, form = rest.partition(":")
        slots.append(Slot(name, _position(place), FORMATS[form]))
    return tuple(slots)


def _arguments(number: int, width: int) -> Iterator[Slot]:
    """A hypercall's arguments by name; a 32-bit guest's halves of 64-bit values are put together."""
    known = hypercalls.ARGUMENTS_32 if width == 32 else hypercalls.ARGUMENTS
    names = known.get(number, () if number in hypercalls.NAMES else _UNKNOWN_ARGUMENTS)
    reads = _ARGUMENTS_32 if width == 32 else _ARGUMENTS_64
    for position, (name, read) in enumerate(zip(names, reads, strict=False)):
        if name.endswith("_lo"):
            name = name.removesuffix("_lo")
            read = _joined(read, reads[position + 1])
        elif name.endswith("_hi"):
            continue
        yield Slot(name, read, _argument_format(number, position, name))


def _low(read: Callable[[Record], int]) -> Callable[[Record], int]:
    return lambda record: read(record) & 0xFFFFFFFF


_ARGUMENTS_32 = [*map(_low, _ARGUMENTS_64), lambda record: record.d >> 32]


def _joined(low: Callable[[Record], int], high: Callable[[Record], int]) -> Callable[[Record], int]:
    return lambda record: low(record) | high(record) << 32


def _argument_format(number: int, position: int, name: str) -> Callable[[int], str]:
    """How a hypercall's argument is shown: commands, domains and flushes by name, counts in decimal, others in hex."""
    if name in _DECIMAL:
        return str
    if name in _DOMAINS:
        return domid_text
    if name == "cmd" and not position:
        return _named(hypercalls.SUBCOMMANDS.get(number, {}))
    if name == "flags":
        return flush_text
    return short_hex


def fields(record: Record, width: int = 64) -> list[Field]:
    """What a record says, value by value. `width`: 32 or 64, the domain's word size."""
    found = []
    for name, read, show in _layout_of(record, width):
        value = read(record)
        found.append(Field(name, value, show(value)))
    return found


def _layout_of(record: Record, width: int) -> tuple[Slot, ...]:
    number = record.number if record.kind in _HYPERCALLS else 0
    if record.kind == Kind.REFUSAL:
        number = record.number & 0xFF
    return layout(record.kind, number, width)


def title(record: Record) -> str:
    """A record's name in a word: the hypercall's, or the kind's."""
    if record.kind in _HYPERCALLS:
        return hypercall_text(record.number)
    return KIND_NAMES.get(record.kind, f"kind_{record.kind}")


def render(record: Record, shown: list[Field]) -> str:
    """The line that `decode` gives, from the record's `fields`."""
    result = ""
    if shown and shown[-1].name == "result":
        result = f" = {shown[-1].text}"
        shown = shown[:-1]
    texts = [f"{name}={text}" for name, _, text in shown]
    if record.kind in _HYPERCALLS:
        return f"{title(record)}({', '.join(texts)}){result}"
    return " ".join([title(record), *texts]) + result


def decode(record: Record, width: int = 64) -> str:
    """A record in a line: `mmu_update(ureqs=0x…, count=1, pdone=0, foreigndom=DOMID_SELF) = 0`, `page_fault cr2=0x… …`.

    `record`: a `Record`, or `Record(*row)` of an unpacked or numpy row. `width`: the domain's word size.
    """
    return render(record, fields(record, width))
