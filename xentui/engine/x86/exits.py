"""How the emulator is made to leave translated code, where its blocks do not ask at their starts whether they should.

QEMU's blocks each begin by looking at a flag. Unicorn's call a function for that, which took a sixth of Linux's boot
and half of a tight loop's time. So while a processor of ours runs, the translator is told that this function has no
effect, and leaves the calls out. Traps lead out of translated code anyway. What else must:

- Where code is counted, the block hook leaves by a long jump, before the block's first instruction
  (native.BLOCK_HOOK).
- Where it is not, the alarm's handler (native.LEAVE_CODE) finds the block that it has interrupted. Its jumps straight
  to other blocks are turned back to where it returns to the emulator's loop, and the lookup of blocks is made to fail,
  by another cluster number, so that jumps through it lead there, too. The loop sees the request to exit, as if for HLT.
  Afterwards `mend` connects the block again with those that it still belongs to. A handler that does not interrupt
  translated code only sets flags; the alarm sounds again until the emulator has returned. An exception that is being
  handled at the moment keeps its number: overwritten, it would reach the hook as no vector at all.

`uc_emu_stop` would not do in a handler: it sets `stop_request` at once, and Unicorn passes over all but the first of
its instruction hooks while that is set, so that an RDTSC in the rest of the block would read the host's counter.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from xentui.engine.machine_code import address_of
from xentui.engine.x86 import native
from xentui.engine.x86 import unicorn_api as uc

if TYPE_CHECKING:
    from xentui.engine.x86.cpu import Processor

# --- where things lie in Unicorn 2.1.4, x86-64 Linux wheel ------------------------------------------------------
_HELPER_INFO = 0x1013C60  # from the function to its TCGHelperInfo: {function, name, flags, sizes}
_HELPER_NAME = b"check_exit_request_x86_64"
LEFT_OUT = 4  # TCG_CALL_NO_SIDE_EFFECTS
_TCG_CONTEXT = 0x300  # struct uc_struct: TCGContext *
_CODE_BUFFER, _CODE_SIZE = 0xA0, 0xB8  # TCGContext
_CLUSTER_INDEX = 0x8194  # CPUState, 32 bits
_BLOCK_CODE, _BLOCK_JUMPS = 0x20, 0x88  # TranslationBlock: its code; the blocks that it jumps to, bit 0: it is invalid
_PAGE = 4096
_READ_WRITE = 3


_flags: memoryview | None = None


def flags_of_check() -> memoryview:
    """The word that tells the translator, in `LEFT_OUT`'s terms, what the function does: 0, unless it is to be left
    out. It is for all emulators of the process. Raises UnicornMismatchError if it is not where it is expected."""
    global _flags
    if _flags is not None:
        return _flags
    function = address_of(uc.lib.helper_check_exit_request_x86_64)
    place = function + _HELPER_INFO
    info = (ctypes.c_uint64 * 2).from_address(place)
    if info[0] != function or ctypes.string_at(info[1]) != _HELPER_NAME:
        raise uc.UnicornMismatchError(
            f"Unicorn's helpers are not where this engine expects them; pip install unicorn=={uc.VERSION}"
        )
    flags = place + 16
    first = flags & -_PAGE
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(first), ctypes.c_size_t(_PAGE), _READ_WRITE):
        raise uc.UnicornMismatchError("this host does not let the emulator's tables be written")
    _flags = memoryview((ctypes.c_uint32 * 1).from_address(flags)).cast("B").cast("I")
    return _flags


class Exits:
    """For a processor whose code is not counted. `function` and `argument` are for its alarm (alarm.py)."""

    def __init__(self, processor: Processor, late: int) -> None:
        cpu = processor.cpu
        context = ctypes.c_uint64.from_address(processor.handle + _TCG_CONTEXT).value
        buffer, size = (ctypes.c_uint64.from_address(context + place).value for place in (_CODE_BUFFER, _CODE_SIZE))
        functions = [address_of(function) for function in (uc.cpu_exit, uc.tcg_tb_lookup, uc.tb_set_jmp_target)]
        words = (ctypes.c_uint64 * (native.BLOCKS + native.MOST_BLOCKS))(
            cpu, late, functions[0], buffer, size, context, *functions[1:]
        )
        self._words = memoryview(words).cast("B").cast("Q")
        self._cluster = ctypes.c_uint32.from_address(cpu + _CLUSTER_INDEX)
        self._usual = self._cluster.value
        processor.keep.append(words)
        self.function, self.argument = processor.machine_code(native.LEAVE_CODE), ctypes.addressof(words)

    @property
    def taken_apart(self) -> int:
        """How many blocks have been, and are not mended yet."""
        return self._words[native.COUNT]

    def forget(self) -> None:
        """All translated code is given up: there is nothing to mend."""
        self._words[native.COUNT] = 0

    def mend(self) -> None:
        """The emulator has returned: blocks jump to each other again, and are found."""
        words = self._words
        if not words[native.COUNT]:
            return
        self._cluster.value = self._usual
        for place in range(native.BLOCKS, native.BLOCKS + words[native.COUNT]):
            block = words[place]
            jumps = (ctypes.c_uint64 * 2).from_address(block + _BLOCK_JUMPS)
            for number, target in enumerate(jumps):
                if target and not target & 1:
                    uc.tb_set_jmp_target(block, number, ctypes.c_uint64.from_address(target + _BLOCK_CODE).value)
        words[native.COUNT] = 0
