"""The state of the emulated processor, read and written where it lies.

Unicorn keeps the processor's registers in a private C structure (QEMU's CPUX86State, "env"). At every trap that
structure is complete, so a register costs one memoryview index instead of an API call: that is what makes a trap
cost a third of a microsecond. The offsets are private to the pinned Unicorn build; `selftest.py` proves each of
them at start-up, and the engine refuses to run where one fails.

Two views are exported by `State`: `q` (64-bit words) and `i` (32-bit words) over the same bytes; the constants
below are indices into them. Names are the processor's own.
"""

from __future__ import annotations

import ctypes

# --- where things lie in Unicorn 2.1.4, x86-64 Linux wheel ------------------------------------------------------
UC_CPU = 440  # struct uc_struct: CPUState *cpu
UC_NO_EXIT_REQUEST = 0x7F2  # struct uc_struct: stops from outside take effect at block starts only
CPU_ENV = 35408  # CPUState to CPUX86State
CFLAGS_NEXT_BLOCK = 24  # CPUState.cflags_next_tb: instructions that the next block may have, 32 bits; -1: any number
TLB_WINDOW_BEGIN, TLB_WINDOW_STEP = -2144, 696  # from env: CPUTLBDesc.window_begin_ns, for each of 3 MMU modes
STATE_SIZE = 5568  # bytes of CPUX86State that make up the architectural state

# --- 64-bit words ------------------------------------------------------------------------------------------------
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)
RIP = 16
EFLAGS = 17  # without the condition codes and DF, which are lazy
CC_DST, CC_SRC, CC_SRC2 = 18, 19, 20
ES_BASE, CS_BASE, SS_BASE, DS_BASE, FS_BASE, GS_BASE, LDT_BASE, TR_BASE, GDT_BASE, IDT_BASE = range(24, 54, 3)
CR0, CR2, CR3, CR4 = 53, 55, 56, 57
EFER = 74
DR = 675  # DR0 to DR7
DR6, DR7 = DR + 6, DR + 7

# --- 32-bit words ------------------------------------------------------------------------------------------------
CC_OP, DF, HFLAGS = 42, 43, 44
ES, CS, SS, DS, FS, GS, LDT, TR, GDT, IDT = range(46, 106, 6)  # selectors; +4 is the limit, +5 the flags
LIMIT, FLAGS = 4, 5
ERROR_CODE = 1346
EXCEPTION_IS_INT = 1347  # the last exception came from an INT n instruction
OLD_EXCEPTION = 1374  # -1 unless an exception is being delivered; never cleared by Unicorn

NO_EXCEPTION = 0xFFFFFFFF
CC_OP_EFLAGS = 1  # the condition codes lie in CC_SRC, computed

# --- hflags: what the translator has cached of the state ---------------------------------------------------------
HF_CPL = 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_TS = 1 << 11
HF_LMA = 1 << 14
HF_CS64 = 1 << 15

# --- EFLAGS (Intel SDM volume 1, 3.4.3) --------------------------------------------------------------------------
EF_CF, EF_TF, EF_IF, EF_DF, EF_OF = 1, 1 << 8, 1 << 9, 1 << 10, 1 << 11
EF_IOPL, EF_NT, EF_RF, EF_VM, EF_AC = 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18
EF_VIF, EF_VIP, EF_ID = 1 << 19, 1 << 20, 1 << 21
EF_CONDITIONS = 0x8D5  # OF SF ZF AF PF CF
EF_FIXED = 2

MASK64 = (1 << 64) - 1
MASK32 = (1 << 32) - 1


class State:
    """A processor's state as views `q` and `i` over the same bytes: the live one (`at`), or a copy (`of`)."""

    def __init__(self, raw: memoryview) -> None:
        self.raw = raw
        self.q = raw.cast("Q")
        self.i = raw.cast("I")

    @classmethod
    def at(cls, env: int) -> State:
        """The live state, at its address: views of Unicorn's own memory, not copies."""
        return cls(memoryview((ctypes.c_uint8 * STATE_SIZE).from_address(env)).cast("B"))

    @classmethod
    def of(cls, saved: bytes) -> State:
        """A state to be prepared before it is loaded, begun as a copy of `saved`."""
        return cls(memoryview(bytearray(saved)))

    def save(self) -> bytes:
        """A copy of everything a virtual CPU owns, FPU and vector registers included."""
        return bytes(self.raw)

    def load(self, saved: bytes) -> None:
        """Put a copy back. The caller flushes the TLB if CR3 is another."""
        self.raw[:] = saved
