"""The engine's own machine code: hooks that the emulator calls without entering Python.

Each is position-independent and gets its data behind the hook's last argument; but the pieces of hooks that do enter
Python (`before_syscall` and those after it) are made for one processor. The counters of the block hook are the one
structure that the rest of the engine reads; its words are named here.
"""

from __future__ import annotations

from xentui.engine.machine_code import call, load

# --- the block hook's structure, in 64-bit words ------------------------------------------------------------------
BUDGET = 0
"""Bytes of code that may still run, signed; the hook stops the processor below zero."""
STOP_FUNCTION = 1
BLOCK_ADDRESS, BLOCK_SIZE = 2, 3
"""The block that was begun last: linear address, bytes."""
HALT = 4
"""Not 0: stop at the next block. Byte 0 is the processor's own, byte 1 is set from outside (`PAUSE_BYTE`)."""
EXEMPT_BUDGET, EXEMPT_ADDRESS = 5, 6
"""The block at this address may run although it must stop, if it leaves just this budget."""
ENV, CPU, EXIT_FUNCTION = 7, 8, 9
"""The address of the processor's state, of its CPUState, and of what leaves translated code by a long jump."""
BLOCK_WORDS = 10
PAUSE_BYTE = 8 * HALT + 1
LATE_BYTE = 8 * HALT + 2
"""Set when an alarm has sounded where code is not counted: a trap that is being taken is the last of its slice."""
NO_BUDGET = 1 << 62
"""A budget that no block leaves: nothing is exempt."""

#   mov edx,edx; mov [rcx+16],rsi; mov [rcx+24],rdx; sub [rcx],rdx; js 1f; cmp dword [rcx+32],0; jne 1f; ret
# 1:mov rax,[rcx]; cmp rax,[rcx+40]; jne 2f; cmp rsi,[rcx+48]; jne 2f; ret
# 2:mov rax,[rcx+56]; cmp dword [rax+4*CC_OP],1; jne 3f; and qword [rax+8*CC_SRC],EF_CONDITIONS
# 3:sub rsi,[rax+8*CS_BASE]; mov [rax+8*RIP],rsi; push rcx; call [rcx+8]; pop rcx; mov rdi,[rcx+64]; jmp [rcx+72]
# Line 2: after CMPXCHG8B and 16B CC_SRC may hold more than condition codes (QEMU's translator forgets to store cc_op
# before it calls their helper), which the emulator on its way out would take for flags, TF among them. Line 3: RIP is
# stored where a block ends only; the emulator is asked to stop, and the block is left at once (exits.py).
BLOCK_HOOK = bytes.fromhex(
    "89d2 48897110 48895118 482911 7807 83792000 7501 c3 488b01 483b4128 7507 483b7130 7501 c3"
    "488b4138 83b8a800000001 750b 4881a098000000d5080000"
    "482bb0d8000000 4889b080000000 51 ff5108 59 488b7940 ff6148"
)

# The emulator never checks IN and OUT against IOPL or a permission bitmap; it only calls a hook, which must return.
# RDTSC, checked against CR4.TSD before its hook is called, is never refused by the emulator: TSD stays clear. Nor do
# these and CPUID end their block, and a block that must end there cannot be told so.
# So the hook is this: call the Python one; if that has set `leaves`, call a function that leaves the instruction by a
# long jump (raise #GP(0) as the processor would, or go on with a new block), no Python frame in between. The
# structure behind the last argument is {Python hook, function's first argument, function, leaves}.
#   push rbx; mov rbx,rcx (OUT: r8, RDTSC and CPUID: rsi); call [rbx]; cmp byte [rbx+24],0; jne +2; pop rbx; ret
#   mov byte [rbx+24],0; mov rdi,[rbx+8]; mov esi,13; xor edx,edx; call [rbx+16]
_IO_TAIL = "ff13 807b1800 7502 5b c3 c6431800 488b7b08 be0d000000 31d2 ff5310"
IN_HOOK = bytes.fromhex("53 4889cb" + _IO_TAIL)
OUT_HOOK = bytes.fromhex("53 4c89c3" + _IO_TAIL)
SKIP_HOOK = bytes.fromhex("53 4889f3" + _IO_TAIL)
"""For the hooks that replace their instruction: RDTSC and CPUID."""
#   For memory accesses, which have it in r9; the stack's pointer is stored too: mov [rbx+32],rsp
MEMORY_HOOK = bytes.fromhex("53 4c89cb 48896320" + _IO_TAIL)
PYTHON_HOOK, ARGUMENT, FUNCTION, LEAVES, STACK = range(5)

# SYSENTER does nothing on the emulator; with no target set (SYSENTER_CS is 0) it is #GP(0) on a processor.
#   mov rax,[rsi+16]; mov rdi,[rsi+8]; mov esi,13; xor edx,edx; jmp rax
SYSENTER_HOOK = bytes.fromhex("488b4610 488b7e08 be0d000000 31d2 ffe0")

# A signal handler (signal, siginfo, context): siginfo's value points to {function, argument}.
#   mov rax,[rsi+24]; mov rdi,[rax+8]; jmp [rax]
SIGNAL_HANDLER = bytes.fromhex("488b4618 488b7808 ff20")
# mov byte [rdi],1; ret
SET_BYTE = bytes.fromhex("c60701 c3")

# A signal handler's function for where code is not counted; what it does, and why, is told in exits.py. Its structure
# is {CPUState, late byte, cpu_exit, translated code, its size, TCGContext, tcg_tb_lookup, tb_set_jmp_target, count,
# blocks}. CPUState has exception_index at 33184 (-1: none; 0x10001 is EXCP_HLT, with which the emulator returns) and
# cluster_index at 33172; a TranslationBlock has its code at 32, and at 88 the offsets to which its jumps are reset.
#   push rbx; push rbp; push r12; mov rbx,rdi; mov rbp,[rdx+168]  (RIP, in the signal's context)
#   mov rax,[rbx+8]; mov byte [rax],1; mov rdi,[rbx]
#   cmp dword [rdi+EXCEPTION_INDEX],-1; jne 1f; mov dword [rdi+EXCEPTION_INDEX],EXCP_HLT
# 1:call [rbx+16]; mov rax,rbp; sub rax,[rbx+24]; cmp rax,[rbx+32]; jae 5f; cmp qword [rbx+64],MOST_BLOCKS; jae 5f
#   mov rdi,[rbx+40]; mov rsi,rbp; call [rbx+48]; test rax,rax; je 5f; mov rbp,rax
#   mov rax,[rbx+64]; mov [rbx+8*rax+72],rbp; inc qword [rbx+64]; mov rax,[rbx]; mov dword [rax+CLUSTER_INDEX],0x55
#   xor r12d,r12d
# 2:movzx edx,word [rbp+2*r12+JUMP_RESET]; cmp edx,0xffff; je 3f; add rdx,[rbp+CODE]
#   mov rdi,rbp; mov esi,r12d; call [rbx+56]
# 3:inc r12d; cmp r12d,2; jb 2b
# 5:pop r12; pop rbp; pop rbx; ret
LEAVE_CODE = bytes.fromhex(
    "53 55 4154 4889fb 488baaa8000000 488b4308 c60001 488b3b 83bfa0810000ff 750a c787a081000001000100"
    "ff5310 4889e8 482b4318 483b4320 735a 48837b4010 7353 488b7b28 4889ee ff5330 4885c0 7444 4889c5"
    "488b4340 48896cc348 48ff4340 488b03 c7809481000055000000 4531e4"
    "420fb7546558 81faffff0000 740d 48035520 4889ef 4489e6 ff5338 41ffc4 4183fc02 72dc 415c 5d 5b c3"
)
COUNT, BLOCKS, MOST_BLOCKS = 8, 9, 16

STORE_VECTOR = bytes.fromhex("8932")
"""Keep a hook's second argument: mov [rdx],esi."""


def before_syscall(env: int, budget: int, helper: int) -> bytes:
    """What SYSCALL does besides going to ring 0: RFLAGS in R11, the address behind it in RCX, and RIP there. It ends
    its block, and only it has not been executed. `budget`: the block hook's structure."""
    #   mov rbx,env; mov rdi,rbx; …; mov [rbx+8*R11],rax
    #   mov rax,[rbx+8*RIP]; add rax,2; mov [rbx+8*RIP],rax; mov [rbx+8*RCX],rax
    #   mov rdx,budget; cmp qword [rdx+8*BLOCK_SIZE],0; je 1f; add qword [rdx],2; mov qword [rdx+8*BLOCK_SIZE],0
    # 1:
    return (
        (load("rbx", env) + bytes.fromhex("4889df") + read_flags(helper))
        + bytes.fromhex("48894358 488b8380000000 4883c002 48898380000000 48894308")
        + load("rdx", budget)
        + bytes.fromhex("48837a1800 740c 48830202 48c7421800000000")
    )


AFTER_SYSCALL = bytes.fromhex("4883ab80000000 02")
"""The emulator adds the instruction's length when it goes on: sub qword [rbx+8*RIP],2."""


def read_flags(helper: int) -> bytes:
    """RFLAGS as the guest would see it pushed, of the processor whose state RDI points to (machine_code.with_integers).

    Where the condition codes are not computed yet, QEMU's `helper` does it.
    """
    #   cmp dword [rdi+4*CC_OP],CC_OP_EFLAGS; jne 1f
    #   mov eax,[rdi+8*CC_SRC]; and eax,EF_CONDITIONS; mov edx,[rdi+4*DF]; and edx,EF_DF; or eax,edx
    #   or eax,[rdi+8*EFLAGS]; jmp 2f
    # 1:call helper
    # 2:
    computed = bytes.fromhex("8b8798000000 25d5080000 8b97ac000000 81e200040000 09d0 0b8788000000 eb0c")
    return bytes.fromhex(f"83bfa800000001 75{len(computed):02x}") + computed + call(helper)
