"""Every number and every offset of xentui.engine.xen.abi against what the C compiler makes of Xen's own headers."""

from __future__ import annotations

import importlib
import os
import pkgutil
from struct import Struct, calcsize
from types import ModuleType

import pytest

from tests import abi_from_headers as headers
from xentui.engine.xen import abi
from xentui.engine.xen.abi import errno, hypercalls
from xentui.engine.xen.abi.layout import Layout
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64

LAYOUTS = {32: LAYOUT32, 64: LAYOUT64}

#: constants that Xen keeps in private headers or inside a macro with parameters, or that another specification defines
NOT_IN_PUBLIC_HEADERS = {
    *("E820_RAM", "E820_RESERVED", "E820_ACPI", "E820_NVS", "E820_UNUSABLE"),
    *("HYPERVISOR_COMPAT_VIRT_START", "MACH2PHYS_COMPAT_VIRT_START", "MACH2PHYS_COMPAT_VIRT_END"),
    *("NR_HYPERCALLS", "TI_DPL_MASK", "TI_IF"),
}
#: constants that the headers give only as a C expression
EXPRESSIONS = {
    "XENCONS_IN_SIZE": "sizeof(((struct xencons_interface *)0)->in)",
    "XENCONS_OUT_SIZE": "sizeof(((struct xencons_interface *)0)->out)",
}


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    """Skip where a C compiler or the headers are missing; in CI they have to be there."""
    missing = headers.missing_tools()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


def modules() -> list[ModuleType]:
    """Return all modules of constants below xentui.engine.xen.abi."""
    found = pkgutil.walk_packages(abi.__path__, abi.__name__ + ".")
    return [importlib.import_module(entry.name) for entry in found if ".layout" not in entry.name]


def constants_of(module: ModuleType) -> dict[str, int]:
    """Return a module's constants by name."""
    return {name: value for name, value in vars(module).items() if isinstance(value, int) and name[0].isupper()}


def c_name(module: ModuleType, name: str) -> str:
    """Return the C expression that a constant of ours stands for."""
    if module is errno:
        return f"XEN_{name}"
    if module is hypercalls:
        return name.replace("HYPERCALL_", "__HYPERVISOR_", 1)
    return EXPRESSIONS.get(name, name)


def test_every_constant_is_what_the_headers_say() -> None:
    """Each constant of each module has the compiler's value, for each word size that its header serves."""
    for module in modules():
        ours = {name: value for name, value in constants_of(module).items() if name not in NOT_IN_PUBLIC_HEADERS}
        widths = {"arch_x86_32": [32], "arch_x86_64": [64]}.get(module.__name__.rsplit(".", 1)[1], [32, 64])
        for width in widths:
            theirs = headers.constants([c_name(module, name) for name in ours], width)
            assert {c_name(module, name): value for name, value in ours.items()} == theirs, module.__name__


def test_exemptions_are_needed() -> None:
    """Nothing is exempt from the comparison that the headers define, or that is not ours."""
    ours = {name for module in modules() for name in constants_of(module)}
    assert ours >= NOT_IN_PUBLIC_HEADERS
    defined = {name for header in headers.HEADERS for name in headers.macro_names(header)}
    assert not defined & NOT_IN_PUBLIC_HEADERS


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("name", headers.STRUCTURES)
def test_layout_is_the_compilers(name: str, width: int) -> None:
    """All offsets, the size and the format of one structure are the compiler's, and no member is left out."""
    expected = headers.layout_values(name, width)
    layout = LAYOUTS[width]
    for attribute, value in expected.items():
        ours = getattr(layout, attribute)
        assert (ours.format if isinstance(ours, Struct) else ours) == value, attribute
    if f"STRUCT_{name}" in expected:
        assert calcsize(str(expected[f"STRUCT_{name}"])) == headers.structures(width)[name].size


@pytest.mark.parametrize("width", [32, 64])
def test_layout_holds_nothing_else(width: int) -> None:
    """Each attribute of a layout is a structure's of the headers, or one of the few named here."""
    expected = {key for name in headers.STRUCTURES for key in headers.layout_values(name, width)}
    added = {"WORD_BITS", "WORD_SIZE", "STRUCT_word", "EVTCHN_2L_NR_CHANNELS", "STRUCT_e820_entry"}
    extra = {name for name in attributes_of(LAYOUTS[width]) if not name.startswith("E820_ENTRY_")} - expected
    assert extra == added


@pytest.mark.parametrize("width", [32, 64])
def test_words_and_channels(width: int) -> None:
    """Word size, channel count and the E820 entry, which no structure of the headers gives."""
    layout = LAYOUTS[width]
    assert layout.WORD_BITS == 8 * layout.WORD_SIZE == 8 * layout.STRUCT_word.size == width
    names = ["EVTCHN_2L_NR_CHANNELS", "sizeof(unsigned long)", "sizeof(xen_pfn_t)", "sizeof(void *)"]
    theirs = list(headers.constants(names, width).values())
    assert theirs == [layout.EVTCHN_2L_NR_CHANNELS, *[layout.WORD_SIZE] * 3]
    packed = layout.STRUCT_e820_entry.pack(1 << 40, 2 << 40, 3)
    assert len(packed) == layout.E820_ENTRY_SIZE
    for offset, size, value in (
        (layout.E820_ENTRY_addr, 8, 1 << 40),
        (layout.E820_ENTRY_size, 8, 2 << 40),
        (layout.E820_ENTRY_type, 4, 3),
    ):
        assert int.from_bytes(packed[offset : offset + size], "little") == value


def test_annotated_attributes_are_given_by_both_widths() -> None:
    """What the base class only declares, each width defines: code that takes either layout finds every name."""
    for layout in LAYOUTS.values():
        assert [name for name in Layout.__annotations__ if not hasattr(layout, name)] == []


def test_names_of_hypercalls() -> None:
    """Every number has its name; argument names are at most six registers' worth; 0x30 is Xen's machine-check call."""
    numbers = {name: value for name, value in vars(hypercalls).items() if name.startswith("HYPERCALL_")}
    assert set(numbers.values()) == set(hypercalls.NAMES)
    for name, number in numbers.items():
        if number != hypercalls.HYPERCALL_mca:
            assert hypercalls.NAMES[number] == name.removeprefix("HYPERCALL_")
    defined = {name for name in headers.macro_names("xen.h") if name.startswith("__HYPERVISOR_")}
    assert {name.replace("HYPERCALL_", "__HYPERVISOR_", 1) for name in numbers} - {"__HYPERVISOR_mca"} == defined
    for table in (hypercalls.ARGUMENTS, hypercalls.ARGUMENTS_32):
        assert set(table) <= set(hypercalls.NAMES)
        assert all(len(names) <= (6 if table is hypercalls.ARGUMENTS else 5) for names in table.values())


SUBCOMMAND_PREFIXES = {
    hypercalls.HYPERCALL_memory_op: ("memory.h", "XENMEM_"),
    hypercalls.HYPERCALL_event_channel_op: ("event_channel.h", "EVTCHNOP_"),
    hypercalls.HYPERCALL_sched_op: ("sched.h", "SCHEDOP_"),
    hypercalls.HYPERCALL_vcpu_op: ("vcpu.h", "VCPUOP_"),
    hypercalls.HYPERCALL_grant_table_op: ("grant_table.h", "GNTTABOP_"),
    hypercalls.HYPERCALL_physdev_op: ("physdev.h", "PHYSDEVOP_"),
    hypercalls.HYPERCALL_xen_version: ("version.h", "XENVER_"),
    hypercalls.HYPERCALL_callback_op: ("callback.h", "CALLBACKOP_"),
    hypercalls.HYPERCALL_console_io: ("xen.h", "CONSOLEIO_"),
    hypercalls.HYPERCALL_mmuext_op: ("xen.h", "MMUEXT_"),
    hypercalls.HYPERCALL_vm_assist: ("xen.h", "VMASST_CMD_"),
    hypercalls.HYPERCALL_nmi_op: ("nmi.h", "XENNMI_"),
}
COMPAT_OF = {
    hypercalls.HYPERCALL_sched_op_compat: hypercalls.HYPERCALL_sched_op,
    hypercalls.HYPERCALL_event_channel_op_compat: hypercalls.HYPERCALL_event_channel_op,
    hypercalls.HYPERCALL_physdev_op_compat: hypercalls.HYPERCALL_physdev_op,
}


@pytest.mark.parametrize("number", hypercalls.SUBCOMMANDS)
def test_names_of_subcommands(number: int) -> None:
    """Each sub-command's name, with its prefix, has that number in the headers, and no command number is missing."""
    header, prefix = SUBCOMMAND_PREFIXES[COMPAT_OF.get(number, number)]
    table = hypercalls.SUBCOMMANDS[number]
    theirs = headers.constants([prefix + name for name in table.values()], 64)
    assert list(theirs.values()) == list(table)
    # names that only belong to one command, or that are older names of a command
    part_of_another = ("_op_", "resource_", "RDM", "SHARING", "FORK", "DBGP_", "IRQ_NEEDS", "IRQ_SHARED", "error_msgs")
    all_names = [name for name in headers.macro_names(header) if name.startswith(prefix)]
    commands = [name for name in all_names if not any(part in name for part in part_of_another)]
    assert set(headers.constants(commands, 64).values()) == set(table)


def attributes_of(layout: Layout) -> set[str]:
    """Return the names of a layout's values, those of the shared base class too."""
    return {name for name in dir(layout) if not name.startswith("__")}
