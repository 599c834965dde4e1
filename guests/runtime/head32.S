/* Where a 32-bit guest begins, and where Xen enters it again. The kernel runs in ring 1, user code in ring 3. */
#define __ASSEMBLY__
#include <xen/xen.h>
#include "notes.S.h"

    .section .text.head, "ax"
    .globl hypercall_page
    .balign PAGE_SIZE
hypercall_page:                         /* filled by the domain builder: 32 bytes a hypercall */
    .skip PAGE_SIZE, 0xcc

    .globl _start
_start:                                 /* ESI: start_info; ESP: the boot stack, which is left behind at once */
    cld
    mov %esp, boot
    mov %cs, boot + 4
    mov %ss, boot + 6
    lea boot_stack + STACK_PAGES * PAGE_SIZE, %esp
    xor %ebp, %ebp
    push %esi
    call guest_start
    ud2

/* Xen's bounce frame, from ESP up: the error code if the vector has one, EIP, CS (saved upcall mask in bits 16..23),
 * EFLAGS and, from ring 3, ESP and SS. Each stub makes a struct trap_frame of it. */
.macro trap vector, has_error
    .globl trap_\vector
trap_\vector:
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
    push $0
    push $VECTOR_EVENT
    jmp trap_common

    .globl failsafe_callback
failsafe_callback:                      /* DS, ES, FS, GS, then as usual; Xen has cleared the selectors */
    add $16, %esp
    push $0
    push $VECTOR_FAILSAFE

trap_common:
    push %eax
    push %ecx
    push %edx
    push %ebx
    push %ebp
    push %esi
    push %edi
    push %ds
    push %es
    mov $FLAT_KERNEL_DS, %eax
    mov %eax, %ds
    mov %eax, %es
    cld
    push %esp
    call trap_dispatch
    add $4, %esp
    pop %es
    pop %ds
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    pop %edx
    pop %ecx
    pop %eax
    add $8, %esp                        /* vector, error code */
    /* The IRET instruction cannot restore the upcall mask together with EIP; an upcall between the two would nest
     * without bound. The hypercall does both at once (its stub pushes EAX). */
    jmp hypercall_page + __HYPERVISOR_iret * 32

/* long user_enter(code, stack, argument): run user code until the kernel calls user_leave(value): that returns here. */
    .globl user_enter
user_enter:
    mov 4(%esp), %ecx
    mov 8(%esp), %edx
    mov 12(%esp), %eax
    push %ebx
    push %ebp
    push %esi
    push %edi
    mov %esp, user_saved_sp
    push $FLAT_USER_SS
    push %edx
    push $0x202                         /* IF: events are on in user mode */
    push $FLAT_USER_CS
    push %ecx
    mov $FLAT_USER_DS, %ecx
    mov %ecx, %ds
    mov %ecx, %es
    jmp hypercall_page + __HYPERVISOR_iret * 32

    .globl user_leave
user_leave:
    mov 4(%esp), %eax
    mov user_saved_sp, %esp
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret

/* A vector 0x80 handler that counts and returns, as short as can be. Entered directly from ring 3 it leaves the upcall
 * mask alone, so the processor's own IRET takes it back: the hypervisor is not entered at all. Entered by the
 * hypervisor (no direct trap) with the trap table's event-mask flag clear, the same holds on the way back. */
    .globl int80_count_and_return
int80_count_and_return:
    incl %ss:int80_count
    iret

    .section .rodata
    .balign 4
    .globl trap_entries
trap_entries:
.macro entry_by_number number
    .long trap_\number
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
trap_stack:                             /* where traps from ring 3 arrive (HYPERVISOR_stack_switch) */
    .skip STACK_PAGES * PAGE_SIZE
user_saved_sp:
    .skip 4
    .section .note.GNU-stack, "", @progbits
