"""The few calls of Unicorn that the trap path makes, through ctypes.

The Python binding spends microseconds where these spend fractions of one. The library is loaded as a `PyDLL`: calls
keep the interpreter lock, so hooks need not take it, which halves the cost of a trap. A native timer thread
(`emu_start`'s timeout) can still stop the processor, as it never needs the lock.

`tlb_flush` and its relatives are QEMU's own functions, which this build exports; the public API has no way to drop
a single page from the TLB.
"""

from __future__ import annotations

import ctypes
from typing import Any

VERSION = "2.1.4"


class UnicornMismatchError(RuntimeError):
    """The installed Unicorn is not the build whose private layout the engine knows."""


def _load() -> ctypes.PyDLL:
    """Load the library that the unicorn package brought, without importing its (large) Python binding."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("unicorn")
    if spec is None or not spec.submodule_search_locations:
        raise UnicornMismatchError(f"unicorn is not installed; install it with: pip install unicorn=={VERSION}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / "lib" / "libunicorn.so.2"
    if not path.exists():
        raise UnicornMismatchError(f"{path} is missing: xentui needs the unicorn {VERSION} wheel for x86-64 Linux")
    return ctypes.PyDLL(str(path))


lib = _load()

_V, _U64, _SIZE = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t


def _declare(name: str, result: Any, *arguments: Any) -> Any:
    try:
        function = getattr(lib, name)
    except AttributeError:
        raise UnicornMismatchError(
            f"this build of Unicorn does not export {name}; install it with: pip install unicorn=={VERSION}"
        ) from None
    function.restype, function.argtypes = result, arguments
    return function


uc_version = _declare("uc_version", ctypes.c_uint, _V, _V)
uc_open = _declare("uc_open", ctypes.c_int, ctypes.c_int, ctypes.c_int, _V)
uc_close = _declare("uc_close", ctypes.c_int, _V)
uc_ctl_set_cpu_model = lib.uc_ctl
uc_mem_map_ptr = _declare("uc_mem_map_ptr", ctypes.c_int, _V, _U64, _SIZE, ctypes.c_uint32, _V)
uc_reg_write = _declare("uc_reg_write", ctypes.c_int, _V, ctypes.c_int, _V)
uc_emu_start = _declare("uc_emu_start", ctypes.c_int, _V, _U64, _U64, _U64, _SIZE)
uc_emu_stop = _declare("uc_emu_stop", ctypes.c_int, _V)
uc_strerror = _declare("uc_strerror", ctypes.c_char_p, ctypes.c_int)
uc_hook_add = lib.uc_hook_add  # variadic: every call gives its argument types itself

uc_hook_del = _declare("uc_hook_del", ctypes.c_int, _V, _SIZE)

tlb_flush = _declare("tlb_flush_x86_64", None, _V)
tlb_flush_page = _declare("tlb_flush_page_x86_64", None, _V, _U64)
cpu_exit = _declare("cpu_exit", None, _V)
tcg_tb_lookup = _declare("tcg_tb_lookup_x86_64", _V, _V, _U64)
tb_set_jmp_target = _declare("tb_set_jmp_target_x86_64", None, _V, ctypes.c_int, _U64)
tb_flush = _declare("tb_flush_x86_64", None, _V)
raise_exception_err = _declare("raise_exception_err_x86_64", None, _V, ctypes.c_int, ctypes.c_int)
cpu_loop_exit_noexc = _declare("cpu_loop_exit_noexc_x86_64", None, _V)
cpu_memory_rw_debug = _declare("cpu_memory_rw_debug_x86_64", ctypes.c_int, _V, _U64, _V, _U64, ctypes.c_int)
cpu_restore_state = _declare("cpu_restore_state_x86_64", ctypes.c_bool, _V, _U64, ctypes.c_int)
cpu_breakpoint_insert = _declare("cpu_breakpoint_insert_x86_64", ctypes.c_int, _V, _U64, ctypes.c_int, _V)
cpu_breakpoint_remove = _declare("cpu_breakpoint_remove_x86_64", ctypes.c_int, _V, _U64, ctypes.c_int)
read_eflags = _declare("helper_read_eflags_x86_64", ctypes.c_uint32, _V)

_found = uc_version(None, None)
if (_found >> 24, _found >> 16 & 0xFF, _found >> 8 & 0xFF) != tuple(map(int, VERSION.split("."))):
    raise UnicornMismatchError(
        f"Unicorn {_found >> 24}.{_found >> 16 & 0xFF}.{_found >> 8 & 0xFF} is installed, and xentui relies on the "
        f"private layout of {VERSION}: pip install unicorn=={VERSION}"
    )

ARCH_X86, MODE_64 = 4, 8
PROT_ALL = 7
CTL_CPU_MODEL_WRITE = 7 | 1 << 26 | 1 << 30
CPU_MODEL_NEHALEM = 15
REG_CR0, REG_CR4, REG_MSR = 50, 54, 248

HOOK_MEM_READ, HOOK_MEM_WRITE, MEM_READ, MEM_WRITE = 1 << 10, 1 << 11, 16, 17
HOOK_INTR, HOOK_INSN, HOOK_BLOCK, HOOK_INSN_INVALID = 1 << 0, 1 << 1, 1 << 3, 1 << 14
INS_IN, INS_OUT, INS_SYSCALL, INS_CPUID, INS_RDTSC, INS_SYSENTER = 218, 500, 699, 113, 608, 700

SkipHook = ctypes.PYFUNCTYPE(ctypes.c_int, _V, _V)
InHook = ctypes.PYFUNCTYPE(ctypes.c_uint32, _V, ctypes.c_uint32, ctypes.c_int, _V)
OutHook = ctypes.PYFUNCTYPE(None, _V, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, _V)
MemoryHook = ctypes.PYFUNCTYPE(None, _V, ctypes.c_int, _U64, ctypes.c_int, ctypes.c_int64, _V)


def check(error: int, what: str) -> None:
    """Turn Unicorn's error number into an exception that says what was being done."""
    if error:
        raise RuntimeError(f"{what}: {uc_strerror(error).decode()} (Unicorn error {error})")
