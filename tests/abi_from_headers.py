"""What the C compiler says about Xen's public headers: constants, structure sizes, member offsets.

The modules of `xentui.engine.xen.abi` hold these numbers; `test_abi.py` compares each of them with this. Run as a
program it prints a layout module (`layout`, `layout32`, `layout64`) or the constants of one header:

    python tests/abi_from_headers.py layout64
    python tests/abi_from_headers.py constants event_channel.h 'EVTCHN'

Needs gcc with 32-bit support (gcc-multilib) and libxen-dev. Nothing is executed: values are read from the object
file, layouts from its DWARF.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HEADERS_FOLDER = Path("/usr/include/xen")
HEADERS = (
    *("xen.h", "errno.h", "memory.h", "event_channel.h", "sched.h", "vcpu.h", "callback.h", "features.h"),
    *("version.h", "elfnote.h", "grant_table.h", "physdev.h", "trace.h", "nmi.h", "xenoprof.h"),
    *("arch-x86/xen-mca.h", "io/console.h", "io/xs_wire.h"),
)
# The newest interface that guests may ask for; tools' definitions only for constants, as they change no layout used
# here but would bring in aliases of register names.
OPTIONS = ("-D__XEN_INTERFACE_VERSION__=__XEN_LATEST_INTERFACE_VERSION__", "-w", "-std=gnu11")

#: Structures of the interface, in the order in which the layout modules list them.
STRUCTURES = (
    # start of day and shared memory
    *("start_info", "xen_multiboot_mod_list", "shared_info", "arch_shared_info", "vcpu_info", "arch_vcpu_info"),
    *("vcpu_time_info", "vcpu_runstate_info"),
    # processor state
    *("cpu_user_regs", "iret_context", "trap_info", "vcpu_guest_context", "callback_register", "callback_unregister"),
    *("xen_callback", "xennmi_callback"),
    # memory
    *("mmu_update", "mmuext_op", "multicall_entry", "xen_memory_reservation", "xen_memory_exchange"),
    *("xen_memory_domain", "xen_machphys_mfn_list", "xen_machphys_mapping", "xen_add_to_physmap"),
    *("xen_add_to_physmap_batch", "xen_remove_from_physmap", "xen_memory_map", "xen_foreign_memory_map"),
    *("xen_pod_target", "xen_vnuma_topology_info", "xen_mem_acquire_resource"),
    # vcpu_op
    *("vcpu_register_runstate_memory_area", "vcpu_set_periodic_timer", "vcpu_set_singleshot_timer"),
    *("vcpu_register_vcpu_info", "vcpu_get_physid", "vcpu_register_time_memory_area"),
    # event channels
    *("evtchn_alloc_unbound", "evtchn_bind_interdomain", "evtchn_bind_virq", "evtchn_bind_pirq", "evtchn_bind_ipi"),
    *("evtchn_close", "evtchn_send", "evtchn_status", "evtchn_bind_vcpu", "evtchn_unmask", "evtchn_reset"),
    *("evtchn_init_control", "evtchn_expand_array", "evtchn_set_priority", "evtchn_fifo_control_block", "evtchn_op"),
    # scheduling
    *("sched_shutdown", "sched_poll", "sched_remote_shutdown", "sched_watchdog", "sched_pin_override"),
    # devices of the physical machine
    *("physdev_eoi", "physdev_pirq_eoi_gmfn", "physdev_irq_status_query", "physdev_set_iopl"),
    *("physdev_set_iobitmap", "physdev_apic", "physdev_irq", "physdev_map_pirq", "physdev_unmap_pirq", "physdev_op"),
    *("physdev_get_free_pirq",),
    # grants
    *("grant_entry_v1", "grant_entry_header", "grant_entry_v2", "gnttab_map_grant_ref", "gnttab_unmap_grant_ref"),
    *("gnttab_setup_table", "gnttab_dump_table", "gnttab_transfer", "gnttab_copy", "gnttab_query_size"),
    *("gnttab_unmap_and_replace", "gnttab_set_version", "gnttab_get_status_frames", "gnttab_get_version"),
    *("gnttab_swap_grant_ref", "gnttab_cache_flush"),
    # xen_version
    *("xen_compile_info", "xen_platform_parameters", "xen_feature_info", "xen_build_id"),
    # shared rings of the toolstack
    *("xencons_interface", "xenstore_domain_interface", "xsd_sockmsg"),
)

#: Structures that also get a `struct.Struct` of all their members.
FORMATTED = frozenset(STRUCTURES) - {
    *("start_info", "shared_info", "vcpu_info", "arch_shared_info", "arch_vcpu_info", "vcpu_guest_context"),
    *("cpu_user_regs", "xen_memory_exchange", "xencons_interface", "xenstore_domain_interface", "grant_entry_v2"),
    *("xen_build_id", "evtchn_op", "physdev_op", "xen_foreign_memory_map", "grant_entry_header"),
    *("xen_vnuma_topology_info", "evtchn_status", "gnttab_cache_flush", "evtchn_fifo_control_block"),
}


def missing_tools() -> str:
    """Return what is not installed of what this needs, as one line; an empty string when nothing is."""
    if shutil.which("gcc") is None:
        return "gcc is not installed"
    if not (HEADERS_FOLDER / "xen.h").exists():
        return "Xen's public headers are not installed (package libxen-dev)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <stdint.h>\n")
        probe = subprocess.run(["gcc", "-m32", "-c", source, "-o", source.with_suffix(".o")], capture_output=True)
    return "" if probe.returncode == 0 else "gcc cannot compile for 32-bit x86 (package gcc-multilib)"


def _prologue() -> str:
    """Return the C text that every unit compiled here begins with."""
    # errno.h is first included by xs_wire.h's users for EINVAL; the names there are the host's, not Xen's.
    lines = ["#include <stdint.h>", "#include <stddef.h>"]
    return "\n".join(lines + [f"#include <xen/{header}>" for header in HEADERS]) + "\n"


def _compile(source: str, width: int, *options: str) -> bytes:
    """Compile C text for `width` (32 or 64) bits and return the object file (or what -E prints)."""
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder, "abi.c")
        unit.write_text(source)
        output = Path(folder, "abi.out")
        command = ["gcc", f"-m{width}", *OPTIONS, *options, str(unit), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(f"gcc -m{width} cannot compile Xen's headers: {done.stderr[:2000]}")
        return output.read_bytes()


def constants(names: list[str], width: int) -> dict[str, int]:
    """Return the values of constant C expressions (macro or enumerator names) for one word size."""
    import io

    from elftools.elf.elffile import ELFFile

    body = "".join(f"  (unsigned long long)({name}), ({name}) < 0,\n" for name in names)
    source = _prologue() + "const unsigned long long abi_values[] = {\n" + body + "0 };\n"
    elf: Any = ELFFile(io.BytesIO(_compile(source, width, "-c", "-D__XEN_TOOLS__")))
    words = struct.unpack_from(f"<{2 * len(names)}Q", elf.get_section_by_name(".rodata").data())
    signed = zip(words[::2], words[1::2], strict=True)
    return {name: value - (1 << 64) * negative for name, (value, negative) in zip(names, signed, strict=True)}


@cache
def _defined(width: int) -> frozenset[str]:
    """Return the names of all macros without parameters that are defined after including every header."""
    text = _compile(_prologue(), width, "-E", "-dM", "-D__XEN_TOOLS__").decode()
    return frozenset(re.findall(r"^#define (\w+) .", text, flags=re.M))


def macro_names(header: str, widths: tuple[int, ...] = (32, 64)) -> list[str]:
    """Return the names of the macros that one header defines for all of `widths`, in its order."""
    text = (HEADERS_FOLDER / header).read_text()
    names = dict.fromkeys(re.findall(r"^#\s*define\s+(\w+)[ \t]", text, flags=re.M))
    return [name for name in names if all(name in _defined(width) for width in widths)]


@dataclass(frozen=True)
class Member:
    """One member of a structure: where it is and what `struct` would call it."""

    name: str
    offset: int
    size: int
    #: format of one field, e.g. "Q" or "16s"; empty for a union or structure
    format: str
    #: members of an embedded structure or union, offsets from its own beginning
    members: tuple[Member, ...]
    is_union: bool


@dataclass(frozen=True)
class Structure:
    """A structure or union of the headers as laid out for one word size."""

    name: str
    size: int
    members: tuple[Member, ...]
    is_union: bool

    def offsets(self) -> dict[str, int]:
        """Return member paths joined by "_" and their offsets in bytes; "SIZE" is the structure's own."""
        return {"SIZE": self.size, **dict(_paths(self.members, "", 0))}

    def format(self) -> str:
        """Return the `struct` format of all members in order, padding explicit, little endian without alignment."""
        text, end = _fields(self.members, 0, self.is_union)
        return "<" + text + _padding(self.size - end)


def _padding(count: int) -> str:
    """Return the format of `count` bytes that mean nothing."""
    return "" if count == 0 else "x" if count == 1 else f"{count}x"


def _paths(members: tuple[Member, ...], prefix: str, base: int) -> Iterator[tuple[str, int]]:
    """Give each member's path and offset, those of embedded structures too, padding left out."""
    for member in members:
        if not member.name:  # an anonymous union of one register's names: the first is the natural one
            yield from _paths(member.members[:1] if member.is_union else member.members, prefix, base + member.offset)
        elif not _is_padding(member.name):
            yield prefix + member.name, base + member.offset
            yield from _paths(member.members, f"{prefix}{member.name}_", base + member.offset)


def _is_padding(name: str) -> bool:
    """Say whether a member's name marks it as a hole."""
    return re.fullmatch(r"_?pad\d*|__spacer|_unused", name) is not None


def _fields(members: tuple[Member, ...], at: int, is_union: bool) -> tuple[str, int]:
    """Return the format of members that follow offset `at`, and the offset at which they end."""
    if is_union:  # a union counts as its largest member, the earliest of several
        members = (max(members, key=lambda member: member.size),)
    text = ""
    for member in members:
        text += _padding(member.offset - at)
        if _is_padding(member.name):
            text += _padding(member.size)
        elif member.members:
            inner, end = _fields(member.members, 0, member.is_union)
            text += inner + _padding(member.size - end)
        else:
            text += member.format
        at = member.offset + member.size
    return text, at


@cache
def structures(width: int) -> dict[str, Structure]:
    """Return the structures of STRUCTURES that the headers define, as the compiler lays it out for `width` bits."""
    import io

    from elftools.elf.elffile import ELFFile

    unit = _compile(_prologue(), width, "-c", "-g", "-fno-eliminate-unused-debug-types")
    elf: Any = ELFFile(io.BytesIO(unit))
    found = {}
    for compilation_unit in elf.get_dwarf_info(relocate_dwarf_sections=True).iter_CUs():
        for die in compilation_unit.get_top_DIE().iter_children():
            kind = die.tag.removesuffix("_type").removeprefix("DW_TAG_")
            if kind in ("structure", "union") and _name(die) in STRUCTURES and "DW_AT_byte_size" in die.attributes:
                size = die.attributes["DW_AT_byte_size"].value
                found[_name(die)] = Structure(_name(die), size, _members(die), kind == "union")
    return found


def _name(die: Any) -> str:
    """Return the name of a DWARF entry, empty when it has none."""
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode() if attribute else ""


def _members(die: Any) -> tuple[Member, ...]:
    """Return the members of a structure or union entry."""
    return tuple(_member(child) for child in die.iter_children() if child.tag == "DW_TAG_member")


def _member(die: Any) -> Member:
    """Return one member with its offset, size and format."""
    offset = die.attributes["DW_AT_data_member_location"].value if "DW_AT_data_member_location" in die.attributes else 0
    kind, count = _strip(die.get_DIE_from_attribute("DW_AT_type")), 1
    if kind.tag == "DW_TAG_array_type":
        count = _array_length(kind)
        kind = _strip(kind.get_DIE_from_attribute("DW_AT_type"))
        if kind.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):  # an array of structures is one opaque field
            size = count * kind.attributes["DW_AT_byte_size"].value
            return Member(_name(die), offset, size, f"{size}s", (), False)
    size = count * kind.attributes["DW_AT_byte_size"].value
    if kind.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
        inner = _members(kind)
        if _name(kind).startswith("__guest_handle") or [member.name for member in inner] == ["p"]:
            return Member(_name(die), offset, size, {4: "I", 8: "Q"}[size], (), False)
        return Member(_name(die), offset, size, "", inner, kind.tag == "DW_TAG_union_type")
    return Member(_name(die), offset, size, _scalar_format(kind, count), (), False)


def _scalar_format(kind: Any, count: int) -> str:
    """Return the format of `count` scalars of a DWARF base type, enumeration or pointer."""
    if kind.tag == "DW_TAG_pointer_type":
        letter = {4: "I", 8: "Q"}[kind.attributes["DW_AT_byte_size"].value]
    else:
        encoding = kind.attributes["DW_AT_encoding"].value if "DW_AT_encoding" in kind.attributes else 7
        letter = {1: "b", 2: "h", 4: "i", 8: "q"}[kind.attributes["DW_AT_byte_size"].value]
        if encoding == 6 and count > 1:  # DW_ATE_signed_char: text
            return f"{count}s"
        letter = letter if encoding in (5, 6) else letter.upper()
        if letter == "B" and count > 1:
            return f"{count}s"
    return letter if count == 1 else f"{count}{letter}"


def _strip(die: Any) -> Any:
    """Follow typedefs and qualifiers to the type itself."""
    while die.tag in ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type"):
        die = die.get_DIE_from_attribute("DW_AT_type")
    return die


def _array_length(die: Any) -> int:
    """Return the number of elements of an array type; 0 for a flexible one."""
    total = 1
    for bound in die.iter_children():
        if "DW_AT_count" in bound.attributes:
            total *= bound.attributes["DW_AT_count"].value
        elif "DW_AT_upper_bound" in bound.attributes:
            total *= bound.attributes["DW_AT_upper_bound"].value + 1
        else:
            total = 0
    return total


def layout_values(name: str, width: int) -> dict[str, int | str]:
    """Return the lines of a layout class for one structure: attribute and offset, size or format."""
    structure = structures(width).get(name)
    if structure is None:
        return {}
    values: dict[str, int | str] = {f"{name.upper()}_{path}": at for path, at in structure.offsets().items()}
    if name in FORMATTED:
        values[f"STRUCT_{name}"] = structure.format()
    return values


def _value_line(name: str, value: int | str) -> str:
    """Return one attribute's definition as Python text."""
    return f"    {name} = {value}" if isinstance(value, int) else f'    {name} = Struct("{value}")'


def layout_lines(module: str) -> Iterator[str]:
    """Give the body of `layout` (what both widths share), `layout32` or `layout64`."""
    for name in STRUCTURES:
        by_width = {32: layout_values(name, 32), 64: layout_values(name, 64)}
        shared = by_width[32] == by_width[64]
        if shared != (module == "layout"):
            if module == "layout":  # declared here, given by each width
                both = [key for key in by_width[32] if key in by_width[64]]
                yield from ["", f"    # struct {name}, by width"] if both else []
                yield from (f"    {key}: {'Struct' if key.startswith('STRUCT_') else 'int'}" for key in both)
        elif by_width[values_width(module)]:
            yield from ["", f"    # struct {name}"]
            yield from (_value_line(key, value) for key, value in by_width[values_width(module)].items())


def values_width(module: str) -> int:
    """Return the word size whose values a layout module holds; either will do for the shared one."""
    return 32 if module == "layout32" else 64


def main(arguments: list[str]) -> None:
    """Print the body of a layout module, or the constants of a header whose names match a pattern."""
    if arguments[0] != "constants":
        print("\n".join(layout_lines(arguments[0])))
        return
    names = [name for name in macro_names(arguments[1]) if re.match(arguments[2], name)]
    by_width = {width: constants(names, width) for width in (32, 64)}
    for name in names:
        values = sorted({by_width[32][name], by_width[64][name]})
        print(f"{name} = {' | '.join(str(value) if abs(value) < 4096 else hex(value) for value in values)}")


if __name__ == "__main__":
    main(sys.argv[1:])
