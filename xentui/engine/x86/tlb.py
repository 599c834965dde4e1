"""The emulated processor's TLB: flushed as the hypervisor says, and never by the host's clock."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from xentui.engine.machine_code import address_of, with_integers
from xentui.engine.x86 import unicorn_api as uc
from xentui.engine.x86.state import CPU_ENV, TLB_WINDOW_BEGIN, TLB_WINDOW_STEP

_FAR_FUTURE = 1 << 62
_HOUR = 3_600_000_000_000
_STEP = TLB_WINDOW_STEP // 8


class Tlb:
    """The TLB of the processor whose CPUState is at an address; raises UnicornMismatchError if it is not there."""

    flush_page: Callable[[int], object]
    """Drop the translation of the page at an address."""

    def __init__(self, cpu: int) -> None:
        self._windows = _find_windows(cpu + CPU_ENV)
        self._flushes = 0
        self.flush_page = with_integers("flush_page", cpu, address_of(uc.tlb_flush_page), True)
        self._flush = with_integers("flush", cpu, address_of(uc.tlb_flush))

    def flush(self) -> None:
        """Drop every translation."""
        self.pin_windows()
        self._flush()

    def pin_windows(self) -> None:
        """Let the emulator's TLB change its size by the number of flushes, never by the host's clock.

        Its size decides when a translation is fetched again, and so when a guest sees an accessed bit return. QEMU
        (cputlb.c, tlb_mmu_resize_locked) lets it shrink at a flush when a window of 100 ms is over: here the window
        is over at every 64th flush, and otherwise far from it. Without shrinking at all, one busy moment would make
        every later flush slow.
        """
        self._flushes = flushes = self._flushes + 1
        begin = _FAR_FUTURE if flushes & 63 else 0
        windows = self._windows
        windows[0] = windows[_STEP] = windows[2 * _STEP] = begin


def _find_windows(env: int) -> memoryview:
    """The words from the first MMU mode's `window_begin_ns` on; each must hold the moment of creation."""
    count = 2 * _STEP + 1
    words = memoryview((ctypes.c_int64 * count).from_address(env + TLB_WINDOW_BEGIN)).cast("B").cast("q")
    now = time.time_ns()
    if any(abs(words[mode * _STEP] - now) > _HOUR for mode in range(3)):
        raise uc.UnicornMismatchError(
            f"Unicorn's TLB is not where this engine expects it; install it with: pip install unicorn=={uc.VERSION}"
        )
    return words
