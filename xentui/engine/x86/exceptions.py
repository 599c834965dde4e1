"""Exception vectors: their numbers, their names and which push an error code (Intel SDM volume 3, table 6-1)."""

from __future__ import annotations

X86_EXC_DE = 0  # divide error
X86_EXC_DB = 1  # debug
X86_EXC_NMI = 2  # non-maskable interrupt
X86_EXC_BP = 3  # breakpoint (INT3)
X86_EXC_OF = 4  # overflow (INTO)
X86_EXC_BR = 5  # BOUND range
X86_EXC_UD = 6  # invalid opcode
X86_EXC_NM = 7  # device not available (FPU, CR0.TS)
X86_EXC_DF = 8  # double fault
X86_EXC_CSO = 9  # coprocessor segment overrun, of the 80386
X86_EXC_TS = 10  # invalid TSS
X86_EXC_NP = 11  # segment not present
X86_EXC_SS = 12  # stack segment
X86_EXC_GP = 13  # general protection
X86_EXC_PF = 14  # page fault
X86_EXC_SPV = 15  # spurious interrupt of the PIC
X86_EXC_MF = 16  # x87 floating point
X86_EXC_AC = 17  # alignment check
X86_EXC_MC = 18  # machine check
X86_EXC_XM = 19  # SIMD floating point
X86_EXC_VE = 20  # virtualization
X86_EXC_CP = 21  # control protection

NAMES: dict[int, str] = {
    value: "#" + name.removeprefix("X86_EXC_") for name, value in list(globals().items()) if name.startswith("X86_EXC_")
}
"""Vector to mnemonic: 14 is `#PF`."""

HAS_ERROR_CODE = (
    1 << X86_EXC_DF
    | 1 << X86_EXC_TS
    | 1 << X86_EXC_NP
    | 1 << X86_EXC_SS
    | 1 << X86_EXC_GP
    | 1 << X86_EXC_PF
    | 1 << X86_EXC_AC
    | 1 << X86_EXC_CP
)
"""Bit n is set if vector n pushes an error code."""

# --- selector error codes (#TS #NP #SS #GP) ----------------------------------------------------------------------
XEC_EXT = 1 << 0  # an external event was being delivered
XEC_IDT = 1 << 1  # the index is one of the IDT
XEC_TI = 1 << 2  # the index is one of the LDT

# --- page-fault error codes --------------------------------------------------------------------------------------
PFEC_PRESENT = 1 << 0
PFEC_WRITE = 1 << 1
PFEC_USER = 1 << 2
PFEC_RESERVED_BIT = 1 << 3
PFEC_FETCH = 1 << 4


def name(vector: int) -> str:
    """The mnemonic of a vector, `#PF`, or `vector 0x80` for one that is not an exception."""
    return NAMES.get(vector) or f"vector {vector:#x}"
