"""Why the page-table validator refused: the rules in words, and where Xen has them.

A refusal is kept as `FrameTable.refusal` where the rule was found broken; the hypercall that fails puts it into the
trace as a record of kind REFUSAL. The guest only sees Xen's error number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import U64, Kind
from xentui.engine.x86.paging import FRAME_MASK
from xentui.engine.x86.state import RIP
from xentui.engine.xen.abi import errno
from xentui.engine.xen.page import DOMID_INVALID, DOMID_XEN, SHARED, SHARED_RW, type_name

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu
    from xentui.engine.xen.page import FrameTable

BAD_FLAGS = 1
NOT_OWNER = 2
IO_FRAME = 3
WRONG_TYPE = 4
WRITABLE_TABLE = 5
READ_ONLY_FRAME = 6
XEN_SLOT = 7
PAE_L3_SLOT = 8
PAE_L3_EMPTY = 9
PAE_L2_SHARED = 10
LINEAR = 11
NOT_A_TABLE = 12
NO_TABLE = 13
PIN_TWICE = 14
NOT_PINNED = 15
DESCRIPTOR = 16
IN_USE = 17
FOREIGN = 18
COUNT = 19

MM = "xen/arch/x86/mm.c"
RULES: dict[int, tuple[str, str, str]] = {
    BAD_FLAGS: (
        "the entry has flags that a guest may not set: cache attributes, superpage, reserved bits",
        *(MM, "mod_l1_entry and get_page_from_l1e to get_page_from_l4e"),
    ),
    NOT_OWNER: (
        "the frame belongs to another domain, to the hypervisor, or to nobody",
        *(MM, "get_page_from_l1e, get_page_from_mfn"),
    ),
    IO_FRAME: ("the frame is no memory, and the domain has no right to any device", MM, "get_page_from_l1e"),
    WRONG_TYPE: ("the frame is in use as something else; its type changes only at count zero", MM, "_get_page_type"),
    WRITABLE_TABLE: (
        "the frame is in use as a page table or descriptor page, which no guest may map writable",
        *(MM, "get_page_from_l1e, _get_page_type"),
    ),
    READ_ONLY_FRAME: ("the hypervisor lends this frame for reading only", MM, "get_page_from_l1e"),
    XEN_SLOT: ("the slot belongs to the hypervisor", MM, "mod_l4_entry, mod_l2_entry"),
    PAE_L3_SLOT: ("the last L3 entry of a PAE guest is fixed while the L3 is in use", MM, "mod_l3_entry"),
    PAE_L3_EMPTY: ("the last L3 entry of a PAE guest must be present and valid", MM, "promote_l3_table"),
    PAE_L2_SHARED: ("the fourth L2 of a PAE guest belongs to one L3 only", MM, "pae_xen_mappings_check"),
    LINEAR: (
        "a linear page table must be read-only, validated, and one level deep",
        *(MM, "get_l2_linear_pagetable to get_l4_linear_pagetable"),
    ),
    NOT_A_TABLE: ("the frame is no page table that can be updated", MM, "do_mmu_update"),
    NO_TABLE: ("no page table of the domain's maps the address", MM, "__do_update_va_mapping"),
    PIN_TWICE: ("the frame is pinned already", MM, "do_mmuext_op"),
    NOT_PINNED: ("the frame is not pinned", MM, "do_mmuext_op"),
    DESCRIPTOR: (
        "a descriptor in the page is not one that a guest may have",
        *("xen/arch/x86/pv/descriptor-tables.c", "validate_segdesc_page"),
    ),
    IN_USE: ("the frame is still in use", MM, "steal_page"),
    FOREIGN: ("the domain has no power over the other domain", "xen/common/page_alloc.c", "get_pg_owner"),
    COUNT: ("the frame is in use as often as can be counted", MM, "page_get_owner_and_reference, _get_page_type"),
}
"""Rule to its words, and to the file of Xen and the functions in it that have it."""

FLAG_NAMES = {
    0: "PRESENT",
    1: "RW",
    2: "USER",
    3: "PWT",
    4: "PCD",
    5: "ACCESSED",
    6: "DIRTY",
    7: "PSE",
    8: "GLOBAL",
    9: "AVAIL0",
    10: "AVAIL1",
    11: "AVAIL2",
    52: "GUEST_KERNEL",
    63: "NX",
}
"""Bits of a page-table entry (Intel SDM vol. 3, 4.5; bit 7 of an L1 entry is PAT, bit 52 is Xen's)."""

LOGGED = 10
"""Refusals of a domain that the hypervisor's log tells."""

_OWNERS = {DOMID_XEN: "the hypervisor's", DOMID_INVALID: "free"}
_NO_FRAME, _READ_ONLY = 0, SHARED + 2
_ADDRESS_BITS = range(12, 52)


def explain(rule: int) -> str:
    """A rule in words, and where Xen has it."""
    return f"{rule_text(rule)} (Xen: {source_text(rule)})"


def rule_text(number: int) -> str:
    """The rule of a REFUSAL record's `number`, in words."""
    rule = RULES.get(number & 0xFF)
    return rule[0] if rule else f"rule {number & 0xFF}"


def source_text(number: int) -> str:
    """Where Xen has the rule of a REFUSAL record's `number`: file and functions."""
    rule = RULES.get(number & 0xFF)
    return f"{rule[1]}, {rule[2]}" if rule else "unknown"


def level_text(number: int) -> str:
    """The level of the entry or table that a REFUSAL record's `number` names."""
    level = number >> 8 & 15
    return f"L{level}" if level else "none"


def owner_text(number: int) -> str:
    """Whose the frame of a REFUSAL record was, by its `number`."""
    if not number >> 12 & 15:
        return "nobody's, beyond machine memory"
    owner = number >> 16
    return _OWNERS.get(owner, f"d{owner}'s")


def type_text(number: int) -> str:
    """The type that the frame of a REFUSAL record had, by its `number`."""
    code = number >> 12 & 15
    if code == _READ_ONLY:
        return type_name(SHARED)
    return type_name(code - 1, SHARED_RW) if 0 < code <= SHARED + 1 else "none"


def index_text(address: int) -> str:
    """Which of its table's 512 entries lies at a machine address; 0 is no entry's."""
    return str(address >> 3 & 511) if address else "none"


def entry_text(entry: int) -> str:
    """A page-table entry with the names of its flags: `0x13067 (mfn 0x13 PRESENT|RW|USER|ACCESSED|DIRTY)`."""
    if not entry:
        return "0x0"
    flags = [FLAG_NAMES.get(bit, f"bit{bit}") for bit in range(64) if bit not in _ADDRESS_BITS and entry >> bit & 1]
    return f"{entry:#x} (mfn {(entry & FRAME_MASK) >> 12:#x} {'|'.join(flags) or 'no flags'})"


def frame_state(frames: FrameTable, mfn: int) -> int:
    """Owner and type of a frame as a record's `number` keeps them, in its bits 12 to 31."""
    if not 0 <= mfn < frames.count:
        return _NO_FRAME << 12
    kind = frames.type[mfn]
    code = _READ_ONLY if kind == SHARED and not frames.flags[mfn] & SHARED_RW else kind + 1
    return code << 12 | frames.owner[mfn] << 16


def record(vcpu: Vcpu, error: int) -> int:
    """Put the pending refusal, if there is one, into the trace; returns `error` (negative) for the caller to return.

    The record: number = rule | level << 8 | type << 12 | owner << 16, a = frame, b = machine address of the entry
    (of NO_TABLE: the virtual address), c = old, d = new. The type is 0 for what is no frame, else one more than
    page.py's number, 9 for SHARED that may only be read. A domain's first ones also go to the log, in words.
    """
    hv = vcpu.hv
    refusal = hv.frames.refusal
    if refusal is not None:
        rule, level, address, old, new, mfn, state = refusal
        hv.frames.refusal = None
        number = rule | level << 8 | state
        values = (mfn & U64, address & U64, old & U64, new & U64)
        hv.put(hv.clock.now(), vcpu.q[RIP], Kind.REFUSAL, vcpu.id, vcpu.domain.id, number, *values, error & U64)
        _log(vcpu, number, *values, error)
    return error


def _log(vcpu: Vcpu, number: int, mfn: int, address: int, old: int, new: int, error: int) -> None:
    """A line on the hypervisor's log about a refusal, for as many as a reader will read."""
    domain = vcpu.domain
    domain.refusals_logged += 1
    if domain.refusals_logged > LOGGED:
        return
    where = ""
    if number & 0xFF == NO_TABLE:
        where = f" Virtual address {address:#x}, new entry {entry_text(new)}."
    elif address:
        table = f"{level_text(number)} entry" if number >> 8 & 15 else "entry"
        where = f" It is about {table} {index_text(address)} of mfn {address >> 12:#x}, now {entry_text(old)}, "
        where += f"wanted {entry_text(new)}."
    elif number >> 8 & 15:
        where = f" It was wanted as an {level_text(number)}."
    frame = ""
    if number & 0xFF != NO_TABLE:
        frame = f" mfn {mfn:#x} is {owner_text(number)}"
        frame += f", type {type_text(number)}." if number >> 12 & 15 else "."
    domain.hv.log(
        f"{vcpu.name}: memory operation refused, {_error_name(error)}: {rule_text(number)}.{where}{frame} "
        f"Xen: {source_text(number)}"
    )
    if domain.refusals_logged == LOGGED:
        domain.hv.log(f"d{domain.id}: further refusals are in the trace only")


def _error_name(error: int) -> str:
    """An error number, negative, by its name."""
    for name, value in vars(errno).items():
        if value == -error and name.startswith("E"):
            return f"-{name}"
    return str(error)
