"""Why the page-table validator refused: the rules in words, and where Xen has them.

A refusal is kept as `FrameTable.refusal` where the rule was found broken; the hypercall that fails puts it into the
trace as a record of kind REFUSAL. The guest only sees Xen's error number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import U64, Kind
from xentui.engine.x86.state import RIP

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

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

RULES: dict[int, tuple[str, str]] = {
    BAD_FLAGS: ("the entry has flags that a guest may not set: cache attributes, superpage, reserved bits", "mm.c"),
    NOT_OWNER: ("the frame belongs to another domain, to the hypervisor, or to nobody", "mm.c, get_page"),
    IO_FRAME: ("the frame is no memory, and the domain has no right to any device", "mm.c, get_page_from_l1e"),
    WRONG_TYPE: ("the frame is in use as something else; its type changes only at count zero", "mm.c, get_page_type"),
    WRITABLE_TABLE: (
        "the frame is in use as a page table or descriptor page, which no guest may map writable",
        "mm.c, get_page_from_l1e",
    ),
    READ_ONLY_FRAME: ("the hypervisor lends this frame for reading only", "mm.c, get_page_from_l1e"),
    XEN_SLOT: ("the slot belongs to the hypervisor", "mm.c, mod_l4_entry and mod_l2_entry"),
    PAE_L3_SLOT: ("the last L3 entry of a PAE guest is fixed while the L3 is in use", "mm.c, mod_l3_entry"),
    PAE_L3_EMPTY: ("the last L3 entry of a PAE guest must be present and valid", "mm.c, promote_l3_table"),
    PAE_L2_SHARED: ("the fourth L2 of a PAE guest belongs to one L3 only", "mm.c, pae_xen_mappings_check"),
    LINEAR: ("a linear page table must be read-only, validated, and one level deep", "mm.c, get_linear_pagetable"),
    NOT_A_TABLE: ("the frame is no page table that can be updated", "mm.c, do_mmu_update"),
    NO_TABLE: ("no page table of the domain's maps the address", "mm.c, update_va_mapping"),
    PIN_TWICE: ("the frame is pinned already", "mm.c, do_mmuext_op"),
    NOT_PINNED: ("the frame is not pinned", "mm.c, do_mmuext_op"),
    DESCRIPTOR: ("a descriptor in the page is not one that a guest may have", "descriptor-tables.c"),
    IN_USE: ("the frame is still in use", "mm.c, steal_page"),
    FOREIGN: ("the domain has no power over the other domain", "mm.c, get_pg_owner"),
}
"""Rule to its words and to the file and function of Xen (xen/arch/x86) that has it."""


def explain(rule: int) -> str:
    """A rule in words."""
    text, place = RULES[rule]
    return f"{text} (Xen: {place})"


def record(vcpu: Vcpu, error: int) -> int:
    """Put the pending refusal, if there is one, into the trace; returns `error` (negative) for the caller to return.

    The record: number = rule | level << 8, a = frame, b = machine address of the entry, c = old, d = new.
    """
    hv = vcpu.hv
    refusal = hv.frames.refusal
    if refusal is not None:
        rule, level, address, old, new, mfn = refusal
        hv.frames.refusal = None
        rip = vcpu.q[RIP]
        hv.put(
            hv.clock.now(),
            rip,
            Kind.REFUSAL,
            vcpu.id,
            vcpu.domain.id,
            rule | level << 8,
            mfn & U64,
            address & U64,
            old & U64,
            new & U64,
            error & U64,
        )
    return error
