"""Trace records in words: names of kinds, hypercalls, arguments and errors. Used when a record is shown, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import NamedTuple

from xentui.engine import trace
from xentui.engine.trace import FIELDS, KIND_NAMES, Kind, Record, names_of
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
_COMMANDS = frozenset({"cmd"})
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


def runner_text(value: int) -> str:
    """A domain's vCPU, as `d1v0` in Xen's log."""
    domain, vcpu = value >> 16, value & 0xFFFF
    return "idle" if domain == core.DOMID_IDLE else f"d{domain}v{vcpu}"


FORMATS: dict[str, Callable[[int], str]] = {
    "x": hex,
    "d": str,
    "signed": result_text,
    "flag": lambda value: "yes" if value else "no",
    "ns": seconds,
    "vector": _named(VECTORS),
    "pf_error": _bits(PF_FLAGS),
    "rings": lambda value: f"{value & 0xFF}→{value >> 8 & 0xFF}",
    "rings_via_xen": lambda value: f"{value & 0xFF}→0→{value >> 8 & 0xFF}",
    "hypercall": lambda value: hypercalls.NAMES.get(value, f"hypercall_{value}"),
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
    "mmu_update": _named(constants(core, "MMU_")),
    "mmuext": _named(hypercalls.SUBCOMMANDS[hypercalls.HYPERCALL_mmuext_op]),
    "shutdown": _named(SHUTDOWNS),
}
"""How a value is shown, by the format's name in `trace.FIELDS`."""


class _Slot(NamedTuple):
    position: int
    name: str
    show: Callable[[int], str]


@cache
def layout(kind: int) -> tuple[_Slot, ...]:
    """What a kind keeps where: `FIELDS` read once."""
    slots = []
    for item in FIELDS[kind].split():
        slot, _, rest = item.partition("=")
        name, _, form = rest.partition(":")
        show = FORMATS[form] if form else FORMATS["hypercall"]
        slots.append(_Slot(Record._fields.index(slot), name, show))
    return tuple(slots)


def _argument(number: int, position: int, name: str, value: int) -> Field:
    """Show one hypercall argument: commands, domains and flush flags by name, counts in decimal, the rest in hex."""
    text = hex(value) if value > 9 else str(value)
    if name in _DECIMAL:
        text = str(value)
    elif name in _DOMAINS:
        text = domid_text(value)
    elif name in _COMMANDS and not position:
        text = hypercalls.SUBCOMMANDS.get(number, {}).get(value, text)
    elif name == "flags":
        text = _flush_text(value)
    return Field(name, value, text)


def _flush_text(value: int) -> str:
    """The flags of update_va_mapping: which flush, on which processors (a pointer to a bitmap, or all)."""
    flush, where = value & core.UVMF_FLUSHTYPE_MASK, value & ~core.UVMF_FLUSHTYPE_MASK
    text = _FLUSHES.get(flush, hex(flush))
    if where == core.UVMF_ALL:
        return f"{text}|UVMF_ALL"
    return f"{text}|{where:#x}" if where else text


def _arguments(record: Record, width: int) -> Iterator[Field]:
    """A hypercall's arguments by name; a 32-bit guest's halves of 64-bit values are put together."""
    known = hypercalls.ARGUMENTS_32 if width == 32 else hypercalls.ARGUMENTS
    names = known.get(record.number, () if record.number in hypercalls.NAMES else _UNKNOWN_ARGUMENTS)
    values = [record.a, record.b, record.c, record.d]
    if width == 32:
        values = [value & 0xFFFFFFFF for value in values] + [record.d >> 32]
    position = 0
    for name, value in zip(names, values, strict=False):
        if name.endswith("_hi"):
            continue
        if name.endswith("_lo"):
            name, value = name.removesuffix("_lo"), value | values[position + 1] << 32
            position += 1
        yield _argument(record.number, position, name, value)
        position += 1


def fields(record: Record, width: int = 64) -> list[Field]:
    """What a record says, value by value. `width`: 32 or 64, the domain's word size."""
    if record.kind in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY):
        return [*_arguments(record, width), Field("result", record.result, result_text(record.result))]
    slots = layout(record.kind) if record.kind in FIELDS else layout_unknown()
    return [Field(slot.name, record[slot.position], slot.show(record[slot.position])) for slot in slots]


@cache
def layout_unknown() -> tuple[_Slot, ...]:
    """A kind that this version does not know (a newer recording's): its fields as they lie."""
    return tuple(_Slot(Record._fields.index(name), name, hex) for name in ("number", "a", "b", "c", "d", "result"))


def title(record: Record) -> str:
    """A record's name in a word: the hypercall's, or the kind's."""
    if record.kind in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY):
        return FORMATS["hypercall"](record.number)
    return KIND_NAMES.get(record.kind, f"kind_{record.kind}")


def decode(record: Record, width: int = 64) -> str:
    """A record in a line: `mmu_update(ureqs=0x…, count=1, pdone=0, foreigndom=DOMID_SELF) = 0`, `page_fault cr2=0x… …`.

    `record`: a `Record`, or `Record(*row)` of an unpacked or numpy row. `width`: the domain's word size.
    """
    shown = fields(record, width)
    result = ""
    if shown and shown[-1].name == "result":
        result = f" = {shown.pop().text}"
    if record.kind in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY):
        return f"{title(record)}({', '.join(f'{field.name}={field.text}' for field in shown)}){result}"
    return " ".join([title(record), *(f"{field.name}={field.text}" for field in shown)]) + result
