/* Hypercalls, through the hypercall page that the domain builder filled: 32 bytes a number. */
#ifndef HYPERCALL_H
#define HYPERCALL_H

extern char hypercall_page[];

/* A hypercall whose number the compiler knows: a direct call. Unused arguments are zero. */
#ifdef __x86_64__
#define HYPERCALL5(number, a, b, c, d, e)                                                                \
    ({                                                                                                   \
        long _result;                                                                                    \
        unsigned long _a = (unsigned long)(a), _b = (unsigned long)(b), _c = (unsigned long)(c);         \
        register unsigned long _d __asm__("r10") = (unsigned long)(d);                                   \
        register unsigned long _e __asm__("r8") = (unsigned long)(e);                                    \
        __asm__ volatile("call hypercall_page + %c[offset]"                                              \
                         : "=a"(_result), "+D"(_a), "+S"(_b), "+d"(_c), "+r"(_d), "+r"(_e)               \
                         : [offset] "i"((number) * 32)                                                   \
                         : "memory", "rcx", "r11", "r9");                                                \
        _result;                                                                                         \
    })
#else
#define HYPERCALL5(number, a, b, c, d, e)                                                                \
    ({                                                                                                   \
        long _result;                                                                                    \
        unsigned long _a = (unsigned long)(a), _b = (unsigned long)(b), _c = (unsigned long)(c);         \
        unsigned long _d = (unsigned long)(d), _e = (unsigned long)(e);                                  \
        __asm__ volatile("call hypercall_page + %c[offset]"                                              \
                         : "=a"(_result), "+b"(_a), "+c"(_b), "+d"(_c), "+S"(_d), "+D"(_e)               \
                         : [offset] "i"((number) * 32)                                                   \
                         : "memory");                                                                    \
        _result;                                                                                         \
    })
#endif

/* Any number, known or not, by the instruction itself. */
static inline long hypercall_raw(unsigned long number, unsigned long a, unsigned long b, unsigned long c,
                                 unsigned long d, unsigned long e)
{
    long result = (long)number;
#ifdef __x86_64__
    register unsigned long r10 __asm__("r10") = d;
    register unsigned long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "+a"(result), "+D"(a), "+S"(b), "+d"(c), "+r"(r10), "+r"(r8)
                     :
                     : "memory", "rcx", "r11", "r9");
#else
    __asm__ volatile("int $0x82" : "+a"(result), "+b"(a), "+c"(b), "+d"(c), "+S"(d), "+D"(e) : : "memory");
#endif
    return result;
}

static inline long hypercall_set_trap_table(const trap_info_t *table)
{
    return HYPERCALL5(__HYPERVISOR_set_trap_table, table, 0, 0, 0, 0);
}

static inline long hypercall_mmu_update(const mmu_update_t *requests, unsigned int count, unsigned int *done,
                                        unsigned int domain)
{
    return HYPERCALL5(__HYPERVISOR_mmu_update, requests, count, done, domain, 0);
}

static inline long hypercall_mmuext_op(const mmuext_op_t *operations, unsigned int count, unsigned int *done,
                                       unsigned int domain)
{
    return HYPERCALL5(__HYPERVISOR_mmuext_op, operations, count, done, domain, 0);
}

static inline long hypercall_update_va_mapping(unsigned long va, uint64_t pte, unsigned long flags)
{
#ifdef __x86_64__
    return HYPERCALL5(__HYPERVISOR_update_va_mapping, va, pte, flags, 0, 0);
#else
    return HYPERCALL5(__HYPERVISOR_update_va_mapping, va, (uint32_t)pte, (uint32_t)(pte >> 32), flags, 0);
#endif
}

static inline long hypercall_stack_switch(unsigned long ss, unsigned long sp)
{
    return HYPERCALL5(__HYPERVISOR_stack_switch, ss, sp, 0, 0, 0);
}

static inline long hypercall_fpu_taskswitch(int set)
{
    return HYPERCALL5(__HYPERVISOR_fpu_taskswitch, set, 0, 0, 0, 0);
}

static inline long hypercall_memory_op(unsigned int command, void *argument)
{
    return HYPERCALL5(__HYPERVISOR_memory_op, command, argument, 0, 0, 0);
}

static inline long hypercall_multicall(multicall_entry_t *calls, unsigned int count)
{
    return HYPERCALL5(__HYPERVISOR_multicall, calls, count, 0, 0, 0);
}

static inline long hypercall_set_timer_op(uint64_t deadline)
{
#ifdef __x86_64__
    return HYPERCALL5(__HYPERVISOR_set_timer_op, deadline, 0, 0, 0, 0);
#else
    return HYPERCALL5(__HYPERVISOR_set_timer_op, (uint32_t)deadline, (uint32_t)(deadline >> 32), 0, 0, 0);
#endif
}

static inline long hypercall_xen_version(int command, void *argument)
{
    return HYPERCALL5(__HYPERVISOR_xen_version, command, argument, 0, 0, 0);
}

static inline long hypercall_console_io(int command, unsigned int count, char *buffer)
{
    return HYPERCALL5(__HYPERVISOR_console_io, command, count, buffer, 0, 0);
}

static inline long hypercall_vcpu_op(int command, unsigned int vcpu, void *argument)
{
    return HYPERCALL5(__HYPERVISOR_vcpu_op, command, vcpu, argument, 0, 0);
}

static inline long hypercall_sched_op(int command, void *argument)
{
    return HYPERCALL5(__HYPERVISOR_sched_op, command, argument, 0, 0, 0);
}

static inline long hypercall_event_channel_op(int command, void *argument)
{
    return HYPERCALL5(__HYPERVISOR_event_channel_op, command, argument, 0, 0, 0);
}

static inline long hypercall_grant_table_op(unsigned int command, void *argument, unsigned int count)
{
    return HYPERCALL5(__HYPERVISOR_grant_table_op, command, argument, count, 0, 0);
}

static inline long hypercall_callback_op(int command, void *argument)
{
    return HYPERCALL5(__HYPERVISOR_callback_op, command, argument, 0, 0, 0);
}

#endif
