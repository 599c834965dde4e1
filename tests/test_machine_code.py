"""The native functions on the paths of traps do what Python would."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xentui.engine.clock import ExactClock, FastClock
from xentui.engine.machine_code import (
    NO_ARGUMENTS,
    MachineCode,
    address_of,
    over,
    python_function,
    python_hook,
    store,
    with_integers,
)
from xentui.engine.trace import RECORD, TraceRing

U64 = (1 << 64) - 1
FIELDS = [64, 64, 8, 8, 16, 32, 64, 64, 64, 64, 64]
add = with_integers("add", 40, bytes.fromhex("8d0437"), True)  # lea eax,[rdi+rsi]


@given(st.integers(0, U64))
def test_a_native_function_gets_its_argument_and_gives_32_bits(value: int) -> None:
    assert add(value) == (value + 40) & 0xFFFF_FFFF


def test_a_native_function_keeps_its_code() -> None:
    seven = with_integers("seven", 7, bytes.fromhex("89f8"))  # mov eax,edi
    gc.collect()
    assert seven() == 7 and seven.__name__ == "seven"
    with pytest.raises(TypeError):
        seven(1)


def test_a_native_function_is_freed_before_its_definition() -> None:
    """The collector clears what it tracks before it frees it; a definition that is cleared first is read as garbage."""
    assert not any(gc.is_tracked(part) for part in add.__self__[:2])
    for _ in range(2000):
        around: list[Any] = []
        around.append(python_function("f", bytes.fromhex("c3"), NO_ARGUMENTS, around))
        del around
        held = [b"\xff" * size for size in range(1, 64)]
    gc.collect()
    assert len(held) == 63


def test_a_native_function_refuses_what_is_no_number() -> None:
    with pytest.raises((TypeError, SystemError)):
        add("7")


def test_a_jump_does_not_reach_further_than_it_can() -> None:
    assert over("75", bytes(127)) == b"\x75\x7f" + bytes(127)
    with pytest.raises(OverflowError):
        over("75", bytes(128))  # which would lead backward


def test_the_time_can_be_told_when_nobody_has_the_clock_any_more() -> None:
    budget = memoryview((ctypes.c_int64 * 1)(-246)).cast("B").cast("q")
    exact, fast = ExactClock(budget).now, FastClock().now
    before, first = exact(), fast()
    del budget
    gc.collect()
    others = [(ctypes.c_int64 * size)(*[-1 << 40] * size) for size in (1, 2) for _ in range(1000)]
    assert exact() == before == 123
    assert first <= fast() < first + 3_600_000_000_000 and len(others) == 2000


def call_hook(code: MachineCode, second: int) -> int:
    return int(ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(code.address)(None, second))


def test_a_hook_runs_what_is_before_and_after() -> None:
    words = (ctypes.c_uint32 * 2)()
    seen: list[tuple[int, int]] = []

    def function() -> None:
        seen.append((words[0], words[1]))

    address = ctypes.addressof(words)
    code = python_hook(function, store(address, 5), store(address + 4, 6))
    assert call_hook(code, 0) == 1 and call_hook(code, 0) == 1
    assert seen == [(5, 0), (5, 6)] and list(words) == [5, 6]


def test_an_exception_in_a_hook_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda event: seen.append(event.exc_value))

    def function() -> None:
        raise ValueError("from the hook")

    assert call_hook(python_hook(function), 0) == 1
    assert [str(error) for error in seen] == ["from the hook"]


def test_address_of_is_where_ctypes_calls() -> None:
    double = MachineCode(bytes.fromhex("8d043f c3"))  # lea eax,[rdi+rdi]; ret
    function = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int)(double.address)
    assert address_of(function) == double.address and function(21) == 42


@given(st.lists(st.tuples(*(st.integers(0, (1 << bits) - 1) for bits in FIELDS)), min_size=1, max_size=20))
def test_put_writes_what_struct_would(records: list[tuple[int, ...]]) -> None:
    chunks: list[bytes] = []
    ring = TraceRing(32, flush=lambda rows: chunks.append(bytes(rows)), chunk_time=0)
    for record in records:
        ring.put(*record)
    ring.flush()
    assert b"".join(chunks) == b"".join(RECORD.pack(*record) for record in records)
    assert [tuple(record) for record in ring.latest(32)] == records and ring.head == len(records)


def test_put_drops_what_does_not_fit() -> None:
    ring = TraceRing(2)
    ring.put(1, U64 + 2, 0x101, -1, 2, 3, -1, 5, 6, 7, 8)
    assert tuple(ring.latest(1)[0]) == (1, 1, 1, 255, 2, 3, U64, 5, 6, 7, 8)


def test_put_raises_what_its_reader_raises() -> None:
    def full(_rows: memoryview) -> None:
        raise OSError(28, "No space left on device")

    ring = TraceRing(2, flush=full)
    ring.put(1, *range(10))
    with pytest.raises(OSError, match="No space"):
        ring.put(2, *range(10))


def test_put_refuses_what_is_no_number() -> None:
    ring = TraceRing(2)

    def put(last: Any) -> None:
        for _ in range(20):  # by then the interpreter calls it its quick way, which looks at nothing
            ring.put(1, *range(9), last)

    with pytest.raises(TypeError):
        put("8")
    with pytest.raises(TypeError):
        put(None)
    assert ring.head == 0
    put(8)
    assert ring.head == 20
    with pytest.raises(TypeError):
        put("8")
    assert ring.head == 20


def test_put_needs_every_field() -> None:
    with pytest.raises(TypeError):
        TraceRing(2).put(1, 2, 3)  # type: ignore[call-arg]
