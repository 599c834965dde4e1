"""An alarm that stops an emulator after some of the host's time: for slices in the fast pace, and to look up.

Unicorn's own timeout starts and joins a thread for every run: a tenth of a millisecond each. This is one POSIX timer
for each emulator instead, whose signal is handled by three instructions of machine code that call a function: no
Python runs, and nothing waits for the interpreter. It makes the emulator leave translated code (exits.py; a late alarm
at worst ends the next slice early); or where code is counted, it only sets the block hook's own flag (cpu.py), as a
stop must leave no doubt which block has run.
"""

from __future__ import annotations

import ctypes
import os
import signal
from threading import get_native_id

from xentui.engine.machine_code import MachineCode
from xentui.engine.x86.native import SIGNAL_HANDLER

_SIGNAL = signal.SIGRTMIN + 3
_CLOCK_MONOTONIC, _SIGEV_THREAD_ID = 1, 4
_SA_SIGINFO, _SA_RESTART = 4, 0x1000_0000

_AGAIN = 100_000
"""Nanoseconds after which an alarm sounds again until it is taken back: the first may come before the emulator runs,
which then forgets it, or where it cannot be made to leave at once (exits.py)."""

_libc = ctypes.CDLL(None, use_errno=True)


class _SigAction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("rest", ctypes.c_uint8 * 44),
    )


class _TimerSpec(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns"))


_timer_settime = ctypes.PyDLL(None).timer_settime
_timer_settime.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_handler_page: list[object] = []


def _install_handler() -> None:
    """Once a process: the signal calls the function, with its argument, that the timer's value points to."""
    if _handler_page:
        return
    page = MachineCode(SIGNAL_HANDLER)
    action = _SigAction(page.address, flags=_SA_SIGINFO | _SA_RESTART)
    if _libc.sigaction(_SIGNAL, ctypes.byref(action), None):
        raise OSError(ctypes.get_errno(), "sigaction for the slice timer")
    _handler_page.append(page)


class Alarm:
    """A timer that calls a native function with one argument (both addresses; it must be fit for a signal handler)."""

    def __init__(self, function: int, argument: int) -> None:
        _install_handler()
        self.process, self.thread = os.getpid(), get_native_id()
        """Whose timer it is: the handler looks at what the thread was about."""
        self._call = (ctypes.c_uint64 * 2)(function, argument)
        event = _SigEvent(ctypes.addressof(self._call), _SIGNAL, _SIGEV_THREAD_ID, self.thread)
        timer = ctypes.c_void_p()
        if _libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "timer_create for the slice timer")
        self._timer = timer.value or 0
        self._spec = _TimerSpec(interval_ns=_AGAIN)
        self._address = ctypes.addressof(self._spec)

    def set(self, microseconds: int) -> None:
        """Stop the emulator after so long; 0 takes the alarm back."""
        self._spec.value_s, self._spec.value_ns = divmod(microseconds * 1000, 1_000_000_000)
        _timer_settime(self._timer, 0, self._address, None)

    def close(self) -> None:
        """Delete the timer; before the emulator is."""
        if self.process == os.getpid():
            _libc.timer_delete(ctypes.c_void_p(self._timer))
