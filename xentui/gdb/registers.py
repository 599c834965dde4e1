"""Registers as gdb numbers them, and the target description that tells it so (gdb: features/i386/*.xml)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Register(NamedTuple):
    """A register of the description: its name, bytes, and gdb's type. FPU registers are told as unavailable."""

    name: str
    size: int
    type: str


_GENERAL_64 = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
_GENERAL_32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_FPU = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")

_POINTERS = {"rbp": "data_ptr", "rsp": "data_ptr", "ebp": "data_ptr", "esp": "data_ptr"}
_CODE_POINTERS = {"rip": "code_ptr", "eip": "code_ptr"}


def _core(width: int) -> list[Register]:
    """The registers of gdb's feature org.gnu.gdb.i386.core, in its order."""
    size = width // 8
    general, counter = (_GENERAL_64, "rip") if width == 64 else (_GENERAL_32, "eip")
    types = {**_POINTERS, **_CODE_POINTERS}
    found = [Register(name, size, types.get(name, f"int{width}")) for name in (*general, counter)]
    found.append(Register("eflags", 4, "i386_eflags"))
    found += [Register(name, 4, "int32") for name in _SEGMENTS]
    found += [Register(f"st{number}", 10, "i387_ext") for number in range(8)]
    return found + [Register(name, 4, "int") for name in _FPU]


def _bases(width: int) -> list[Register]:
    """What else a 64-bit guest has, as org.gnu.gdb.i386.segments."""
    return [Register(name, 8, "int") for name in ("fs_base", "gs_base")] if width == 64 else []


def registers_of(width: int) -> list[Register]:
    """All registers of a domain of that word size, in the order of gdb's numbers."""
    return _core(width) + _bases(width)


_EFLAGS = """<flags id="i386_eflags" size="4">
<field name="CF" start="0" end="0"/><field name="" start="1" end="1"/><field name="PF" start="2" end="2"/>
<field name="AF" start="4" end="4"/><field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>
<field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/>
<field name="OF" start="11" end="11"/><field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>
<field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/><field name="VIF" start="19" end="19"/>
<field name="VIP" start="20" end="20"/><field name="ID" start="21" end="21"/>
</flags>"""


def description(width: int) -> str:
    """The target description that gdb asks for (qXfer:features:read:target.xml)."""

    def feature(name: str, registers: list[Register], before: str = "") -> str:
        lines = [f'<reg name="{name}" bitsize="{size * 8}" type="{kind}"/>' for name, size, kind in registers]
        return f'<feature name="{name}">{before}{"".join(lines)}</feature>' if registers else ""

    architecture = "i386:x86-64" if width == 64 else "i386"
    return (
        f'<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
        f"<architecture>{architecture}</architecture>"
        f"{feature('org.gnu.gdb.i386.core', _core(width), _EFLAGS)}"
        f"{feature('org.gnu.gdb.i386.segments', _bases(width))}</target>"
    )


def encode(register: Register, values: Mapping[str, int]) -> str:
    """A register's value as gdb's hex digits, or x for each digit of one that is not known."""
    value = values.get(register.name)
    if value is None:
        return "xx" * register.size
    return (value & (1 << 8 * register.size) - 1).to_bytes(register.size, "little").hex()
