/* Where a 64-bit guest begins, and where Xen enters it again: exceptions, events, failsafe, user-mode system calls.
 * The kernel runs in ring 3 as user code does; Xen keeps the two apart by page tables and by the CS it reports. */
#define __ASSEMBLY__
#include <xen/xen.h>
#include "notes.S.h"

    .section .text.head, "ax"
    .globl hypercall_page
    .balign PAGE_SIZE
hypercall_page:                         /* filled by the domain builder: 32 bytes a hypercall */
    .skip PAGE_SIZE, 0xcc

    .globl _start
_start:                                 /* RSI: start_info; RSP: the boot stack, which is left behind at once */
    cld
    mov %rsp, boot(%rip)
    mov %cs, boot + 8(%rip)
    mov %ss, boot + 10(%rip)
    lea boot_stack + STACK_PAGES * PAGE_SIZE(%rip), %rsp
    xor %ebp, %ebp
    mov %rsi, %rdi
    call guest_start
    ud2

/* Xen's bounce frame, from RSP up: RCX, R11, the error code if the vector has one, RIP, CS (saved upcall mask in bits
 * 32..39), RFLAGS, RSP, SS. Each stub makes a struct trap_frame of it. */
.macro trap vector, has_error
    .globl trap_\vector
trap_\vector:
    pop %rcx
    pop %r11
    .if \has_error == 0
    push $0
    .endif
    push $\vector
    jmp trap_common
.endm

.altmacro
.macro trap_by_number number
    .if (\number == 8) || ((\number >= 10) && (\number <= 14)) || (\number == 17)
    trap \number, 1
    .else
    trap \number, 0
    .endif
.endm
.set n, 0
.rept 20
    trap_by_number %n
    .set n, n + 1
.endr
    trap 128, 0
    trap 129, 0
    trap 130, 0

    .globl event_callback
event_callback:
    pop %rcx
    pop %r11
    push $0
    push $VECTOR_EVENT
    jmp trap_common

    .globl syscall_callback
syscall_callback:                       /* "syscall" in user mode */
    pop %rcx
    pop %r11
    push $0
    push $VECTOR_SYSCALL
    jmp trap_common

    .globl failsafe_callback
failsafe_callback:                      /* RCX, R11, DS, ES, FS, GS, then as usual; Xen has cleared the selectors */
    pop %rcx
    pop %r11
    add $32, %rsp
    push $0
    push $VECTOR_FAILSAFE

trap_common:
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push %rax
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    call trap_dispatch
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rax
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    add $16, %rsp                       /* vector, error code */
    push $0                             /* no VGCF flags: restore RCX and R11 too */
    jmp hypercall_page + __HYPERVISOR_iret * 32

/* long user_enter(code, stack, argument): run user code until the kernel calls user_leave(value): that returns here. */
    .globl user_enter
user_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, user_saved_sp
    push $FLAT_USER_SS64
    push %rsi
    push $0x202                         /* IF: events are on in user mode */
    push user_cs                        /* RPL 3 means user mode to HYPERVISOR_iret */
    push %rdi
    mov %rdx, %rdi
    push $0
    jmp hypercall_page + __HYPERVISOR_iret * 32

    .globl user_leave
user_leave:
    mov user_saved_sp, %rsp
    mov %rdi, %rax
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* A vector 0x80 handler that counts and returns, as short as can be. */
    .globl int80_count_and_return
int80_count_and_return:
    pop %rcx
    pop %r11
    incl int80_count
    push $0
    jmp hypercall_page + __HYPERVISOR_iret * 32

    .section .rodata
    .balign 8
    .globl trap_entries
trap_entries:
.macro entry_by_number number
    .quad trap_\number
.endm
.set n, 0
.rept 20
    entry_by_number %n
    .set n, n + 1
.endr

    .bss
    .balign PAGE_SIZE
    .globl boot_stack, trap_stack
boot_stack:
    .skip STACK_PAGES * PAGE_SIZE
trap_stack:                             /* where traps from user mode arrive (HYPERVISOR_stack_switch) */
    .skip STACK_PAGES * PAGE_SIZE
user_saved_sp:
    .skip 8
    .section .note.GNU-stack, "", @progbits
