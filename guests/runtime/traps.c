/* Exceptions and software interrupts: the trap table, and what happens when one arrives. */
#include "guest.h"
#include <xen/callback.h>

#define EXCEPTIONS 20
#ifdef __x86_64__
#define RETURN_VALUE(frame) ((long)(frame)->rax)
#else
#define RETURN_VALUE(frame) ((long)(frame)->eax)
#endif

extern void (*const trap_entries[EXCEPTIONS])(void);
extern void trap_128(void), trap_129(void);
extern void event_callback(void), failsafe_callback(void);
#ifdef __x86_64__
extern void syscall_callback(void);
#endif
extern char trap_stack[];

trap_handler_t trap_handler;
struct trap_frame *event_frame;

static const char *const names[EXCEPTIONS] = {
    "divide error", "debug", "NMI", "breakpoint", "overflow", "bound range", "invalid opcode", "device not available",
    "double fault", "coprocessor overrun", "invalid TSS", "segment not present", "stack fault", "general protection",
    "page fault", "spurious interrupt", "x87 error", "alignment check", "machine check", "SIMD error",
};

/* Install one entry. Flags: the privilege level that may use "int", plus 4 to mask events on entry. */
void trap_set(unsigned int vector, unsigned int flags, void (*entry)(void))
{
    trap_info_t table[2] = {
        {.vector = (uint8_t)vector, .flags = (uint8_t)flags, .cs = FLAT_KERNEL_CS, .address = (unsigned long)entry},
        {0},
    };
    hypercall_set_trap_table(table);
}

static void trap_table_init(void)
{
    static trap_info_t table[EXCEPTIONS + 4];
    unsigned int n = 0;
    for (unsigned int vector = 0; vector < EXCEPTIONS; vector++, n++) {
        table[n] = (trap_info_t){.vector = (uint8_t)vector, .cs = FLAT_KERNEL_CS};
        table[n].address = (unsigned long)trap_entries[vector];
        table[n].flags = vector == 3 || vector == 4 ? 3 : 0; /* int3 and into are for everyone, as on a PC */
    }
    /* Vector 0x80 does not mask events: so a 32-bit guest's goes straight from ring 3 to ring 1. */
    table[n++] = (trap_info_t){.vector = 0x80, .flags = 3, .cs = FLAT_KERNEL_CS, .address = (unsigned long)trap_128};
    table[n++] = (trap_info_t){.vector = 0x81, .flags = 1, .cs = FLAT_KERNEL_CS, .address = (unsigned long)trap_129};
    hypercall_set_trap_table(table);
}

static void callback_set(uint16_t type, void (*entry)(void))
{
    struct callback_register callback = {.type = type};
#ifdef __x86_64__
    callback.address = (unsigned long)entry;
#else
    callback.address.cs = FLAT_KERNEL_CS;
    callback.address.eip = (unsigned long)entry;
#endif
    hypercall_callback_op(CALLBACKOP_register, &callback);
}

void traps_init(void)
{
    trap_table_init();
    callback_set(CALLBACKTYPE_event, event_callback);
    callback_set(CALLBACKTYPE_failsafe, failsafe_callback);
#ifdef __x86_64__
    callback_set(CALLBACKTYPE_syscall, syscall_callback);
#endif
    hypercall_stack_switch(FLAT_KERNEL_SS, (unsigned long)trap_stack + STACK_PAGES * PAGE_SIZE);
}

/* Xen reports a 64-bit kernel's CS with RPL 0 and user mode's with 3; a 32-bit kernel's has RPL 1. */
bool from_user(const struct trap_frame *frame)
{
    return (frame->cs & 3) == 3;
}

void print_registers(const struct trap_frame *frame)
{
#ifdef __x86_64__
    print("RIP %016llx  CS %04x  RFLAGS %08llx  RSP %016llx  SS %04x\n", (unsigned long long)frame->ip,
          (unsigned int)(uint16_t)frame->cs, (unsigned long long)frame->flags, (unsigned long long)frame->sp,
          (unsigned int)(uint16_t)frame->ss);
    print("RAX %016lx  RBX %016lx  RCX %016lx  RDX %016lx\n", frame->rax, frame->rbx, frame->rcx, frame->rdx);
    print("RSI %016lx  RDI %016lx  RBP %016lx  R8  %016lx\n", frame->rsi, frame->rdi, frame->rbp, frame->r8);
    print("R9  %016lx  R10 %016lx  R11 %016lx  R12 %016lx\n", frame->r9, frame->r10, frame->r11, frame->r12);
    print("R13 %016lx  R14 %016lx  R15 %016lx  CR2 %016lx\n", frame->r13, frame->r14, frame->r15,
          own_vcpu->arch.cr2);
#else
    print("EIP %08x  CS %04x  EFLAGS %08x", frame->ip, frame->cs & 0xffff, frame->flags);
    if (from_user(frame))
        print("  ESP %08x  SS %04x", frame->sp, frame->ss & 0xffff);
    print("\nEAX %08x  EBX %08x  ECX %08x  EDX %08x\n", frame->eax, frame->ebx, frame->ecx, frame->edx);
    print("ESI %08x  EDI %08x  EBP %08x  CR2 %08lx\n", frame->esi, frame->edi, frame->ebp,
          own_vcpu->arch.cr2);
#endif
}

void trap_dispatch(struct trap_frame *frame)
{
    if (frame->vector == VECTOR_EVENT) {
        event_frame = frame;
        events_dispatch();
        return;
    }
    if (trap_handler && trap_handler(frame))
        return;
    if (frame->vector == USER_EXIT && from_user(frame))
        user_leave(RETURN_VALUE(frame));
    const char *name = "software interrupt";
    if (frame->vector < EXCEPTIONS)
        name = names[frame->vector];
    else if (frame->vector == VECTOR_FAILSAFE)
        name = "failsafe callback";
    else if (frame->vector == VECTOR_SYSCALL)
        name = "system call";
    print("\nUnexpected %s (vector %lu, error %lx) in %s mode\n", name, (unsigned long)frame->vector,
          (unsigned long)frame->error, from_user(frame) ? "user" : "kernel");
    print_registers(frame);
    shut_down(SHUTDOWN_crash);
}
