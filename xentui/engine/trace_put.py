"""`TraceRing.put` as machine code: each trap leaves a record, and `struct` takes longer than the rest of a short one.

It does what these lines of Python would, with the ring's words in `words`:

    if time >= words[LIMIT]:
        reach(time)
    RECORD.pack_into(…, words[CURSOR], time, rip, kind, vcpu, domain, number, a, b, c, d, result)
    words[CURSOR] += RECORD_SIZE
    if words[CURSOR] == words[END]:
        reach_end()

but for values that do not fit into their fields, whose upper bits are dropped.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from xentui.engine.machine_code import ARRAY_OF_ARGUMENTS, address_of_object, call, if_null, load, over, python_function

LIMIT, CURSOR, END, WORDS = range(4)
"""Virtual time at which the chunk is cut; addresses of the next record, and of where there is something to do."""

_GIVE_UP = bytes.fromhex("31c0 415d 415c 5b c3")  # xor eax,eax; pop r13; pop r12; pop rbx; ret
_STORE = {8: "498945", 4: "418945", 2: "66418945", 1: "418845"}  # mov [r13+…],rax and its parts


def native_put(
    words: Any, sizes: tuple[int, ...], reach: Callable[[int], None], reach_end: Callable[[], None]
) -> Callable[..., object]:
    """`put` for records whose fields have so many bytes each; `words` is an array of ctypes, of `WORDS` 64-bit words.

    What `reach` and `reach_end` raise, it raises; and TypeError, without a record, for what is no integer.
    """
    value = call("PyLong_AsUnsignedLongLongMask")
    release = bytes.fromhex("4889c7") + call("Py_DecRef")  # mov rdi,rax
    time = bytes.fromhex("488b3b") + value  # mov rdi,[rbx]
    #   push rbx; push r12; push r13; mov rbx,rsi; cmp rdx,fields; je over; …
    code = bytes.fromhex("53 4154 4155 4889f3 4883fa") + bytes([len(sizes)])
    code += over("74", call("PyErr_BadArgument") + _GIVE_UP)
    #   cmp rax,[r12+8*LIMIT]; jb over; …; mov rsi,[rbx]; …
    code += load("r12", ctypes.addressof(words)) + time + bytes.fromhex("493b0424")
    called = load("rdi", address_of_object(reach)) + bytes.fromhex("488b33") + call("PyObject_CallOneArg")
    code += over("72", called + if_null(_GIVE_UP) + release + time)
    #   mov r13,[r12+8*CURSOR]; mov [r13],rax
    code += bytes.fromhex("4d8b6c2408 49894500")
    offset = sizes[0]
    for number, size in enumerate(sizes[1:], 1):
        code += bytes.fromhex("488b7b") + bytes([8 * number]) + value  # mov rdi,[rbx+…]
        code += bytes.fromhex(_STORE[size]) + bytes([offset])
        offset += size
    #   test rax,rax; je over; …: a field was no integer
    code += call("PyErr_Occurred") + bytes.fromhex("4885c0") + over("74", _GIVE_UP)
    #   add r13,size of a record; mov [r12+8*CURSOR],r13; cmp r13,[r12+8*END]; jne over; …
    code += bytes.fromhex("4983c5") + bytes([offset]) + bytes.fromhex("4d896c2408 4d3b6c2410")
    called = load("rdi", address_of_object(reach_end)) + call("PyObject_CallNoArgs")
    code += over("75", called + if_null(_GIVE_UP) + release)
    #   xor edi,edi; …; pop r13; pop r12; pop rbx; ret
    code += bytes.fromhex("31ff") + call("PyLong_FromLong") + bytes.fromhex("415d 415c 5b c3")
    put: Callable[..., object] = python_function("put", code, ARRAY_OF_ARGUMENTS, words, reach, reach_end)
    return put
