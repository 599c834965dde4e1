"""Machine code of the engine's own, and how it and Python call each other.

The hooks that need no Python (x86/native.py) and the few native functions on the paths of traps are machine code for
x86-64, the only host there is. Between the two goes Python's own C interface, as the interpreter lock is held all the
time (x86/unicorn_api.py): a hook by ctypes costs twice as much, a call by ctypes five times. Pieces are written as
hexadecimal, with what they say in Intel's notation beside them.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable
from typing import Any

_LOAD = {
    "rax": b"\x48\xb8",
    "rbx": b"\x48\xbb",
    "rdx": b"\x48\xba",
    "rsi": b"\x48\xbe",
    "rdi": b"\x48\xbf",
    "r12": b"\x49\xbc",
}
NO_ARGUMENTS, ONE_ARGUMENT, ARRAY_OF_ARGUMENTS = 4, 8, 0x80
"""METH_NOARGS, METH_O and METH_FASTCALL: how a built-in function takes its arguments."""


class MachineCode:
    """A page of memory that holds instructions; it lives as long as this object. `address` is where they begin."""

    def __init__(self, code: bytes) -> None:
        self._page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page.write(code)
        self._anchor = ctypes.c_char.from_buffer(self._page)
        self.address = ctypes.addressof(self._anchor)


_METHOD_DEFINITION = struct.Struct("<QQi4xQ")
"""PyMethodDef: name, function, flags, text."""

_new_function = ctypes.pythonapi.PyCFunction_NewEx
_new_function.restype = ctypes.py_object
_new_function.argtypes = (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)


def address_of(function: Any) -> int:
    """Where a function of a library, known to ctypes, begins."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def address_of_object(thing: object) -> int:
    """Where a Python object lies. Who uses it must keep it alive."""
    return ctypes.c_void_p.from_buffer(ctypes.py_object(thing)).value or 0


# --- pieces --------------------------------------------------------------------------------------------------------


def load(register: str, value: int) -> bytes:
    """mov register,value"""
    return _LOAD[register] + value.to_bytes(8, "little")


def call(function: str | int) -> bytes:
    """Call a function at an address, or one of Python's C interface: mov rax,function; call rax. The stack must be
    aligned to 16 bytes."""
    address = function if isinstance(function, int) else address_of(getattr(ctypes.pythonapi, function))
    return load("rax", address) + b"\xff\xd0"


def over(jump: str, code: bytes) -> bytes:
    """Code, at most 127 bytes, that a conditional jump passes over; raises OverflowError if there is more of it."""
    return bytes.fromhex(jump) + len(code).to_bytes(1, "little", signed=True) + code


def if_null(code: bytes) -> bytes:
    """Where a function has returned 0: test rax,rax; jne over; …"""
    return bytes.fromhex("4885c0") + over("75", code)


def store(address: int, value: int) -> bytes:
    """Set a 32-bit word: mov rdx,address; mov dword [rdx],value."""
    return load("rdx", address) + b"\xc7\x02" + value.to_bytes(4, "little")


# --- between machine code and Python -------------------------------------------------------------------------------


def python_hook(function: Callable[[], object], before: bytes = b"", after: bytes = b"") -> MachineCode:
    """A native function that calls a Python one, with machine code before and after it, and returns 1.

    Its second argument is in ESI before; RBX may be used. What the Python function raises is reported as an exception
    that nobody can catch. Both functions must be kept alive.
    """
    place = load("rdi", address_of_object(function))
    return MachineCode(
        bytes.fromhex("53")  # push rbx
        + before
        + (place + call("PyObject_CallNoArgs"))
        + if_null(place + call("PyErr_WriteUnraisable") + bytes.fromhex("31c0"))  # xor eax,eax
        + (bytes.fromhex("4889c7") + call("Py_DecRef"))  # mov rdi,rax
        + after
        + bytes.fromhex("b801000000 5b c3")  # mov eax,1; pop rbx; ret
    )


def python_function(name: str, code: bytes, arguments: int, *keep: object) -> Any:
    """A Python function made of machine code, which is called as Python calls built-in functions: the arguments in
    RSI, as `arguments` says, and the result an object in RAX. It keeps its code and what is in `keep` alive."""
    page, name_bytes = MachineCode(code), name.encode()
    definition = _METHOD_DEFINITION.pack(_address_of_bytes(name_bytes), page.address, arguments, 0)
    # the interpreter looks at the definition once more when it frees the function: in a bytes object it is still there
    # when the garbage collector has cleared what refers to itself, as it clears a structure of ctypes
    return _new_function(_address_of_bytes(definition), (definition, name_bytes, page, *keep), None)


def _address_of_bytes(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def with_integers(name: str, first: int, function: int | bytes, argument: bool = False) -> Any:
    """A Python function that calls a native one with integers and returns its result, 32 bits without a sign.

    The native one gets `first`, and as its second argument the Python function's own one if it has one. It is called
    at an address, or is machine code that has its argument in RDI and leaves a result in EAX.
    """
    code = bytes.fromhex("50")  # push rax
    if argument:
        # mov rdi,rsi; …; mov rsi,rax
        code += bytes.fromhex("4889f7") + call("PyLong_AsUnsignedLongLongMask") + bytes.fromhex("4889c6")
    code += load("rdi", first) + (function if isinstance(function, bytes) else call(function))
    code += bytes.fromhex("89c7") + call("PyLong_FromUnsignedLong") + bytes.fromhex("59 c3")  # mov edi,eax; pop rcx
    return python_function(name, code, ONE_ARGUMENT if argument else NO_ARGUMENTS)
