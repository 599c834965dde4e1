/* What user code may do, and what the kernel is told when it tries more. */
#include "selftest.h"
#include <xen/callback.h>
#include <xen/physdev.h>

/* Little pieces of user code: each does one thing, then "int3". The argument is in RDI or EAX. */
#ifdef __x86_64__
#define ARGUMENT "%rdi"
#define USER_SP "rsp"
#else
#define ARGUMENT "%eax"
#define USER_SP "esp"
#endif
#define USER_CODE(name, text)                                                                    \
    __asm__(".pushsection .user, \"ax\"\n" #name ": " text "\n int3\n .popsection");              \
    extern void name(void)

USER_CODE(user_nothing, "");
USER_CODE(user_ud2, "ud2");
USER_CODE(user_load, "movb (" ARGUMENT "), %al");
USER_CODE(user_store, "movb %al, (" ARGUMENT ")");
USER_CODE(user_jump, "jmp *" ARGUMENT);
USER_CODE(user_int80, "int $0x80");
USER_CODE(user_int0, "int $0");
USER_CODE(user_int4, "int $4");
USER_CODE(user_cli, "cli");
USER_CODE(user_hlt, "hlt");
USER_CODE(user_in, "inb $0xed, %al");
USER_CODE(user_rdmsr, "rdmsr");
USER_CODE(user_invlpg, "invlpg (" ARGUMENT ")");
USER_CODE(user_cpuid, "cpuid");

USER_CODE(user_fpu, "fninit");
USER_CODE(user_step, "pushf; orb $1, 1(%" USER_SP "); popf; nop");

static void expect(void (*code)(void), unsigned int vector, unsigned long error, unsigned int offset, const char *what)
{
    bool passed = record.count == 1 && record.frame.vector == vector && record.frame.error == error &&
                  record.frame.ip == (unsigned long)user_code((const void *)code) + offset;
    check(passed, "%s: vector %u, error %lx, IP %s", what, vector, error, offset ? "behind it" : "at it");
    if (!passed)
        print("#   got vector %lu, error %lx, IP +%ld\n", (unsigned long)record.frame.vector,
              (unsigned long)record.frame.error,
              (long)(record.frame.ip - (unsigned long)user_code((const void *)code)));
}

static void test_user_frame(void)
{
    extern char trap_stack[];
    USER_PROBE(user_ud2, 0);
    expect(user_ud2, 6, 0, 0, "ud2 in user mode");
    is64(record.frame.cs & 0xffff, FLAT_USER_CS, "... CS in the frame");
    is64(record.frame.ss & 0xffff, FLAT_USER_SS, "... SS in the frame");
    is64(record.frame.sp, user_stack_top() - 64, "... SP in the frame");
    is64(record.frame.flags & 0x3202, 0x202, "... flags: IF set, IOPL 0");
    is64(record.frame_end, (unsigned long)trap_stack + STACK_PAGES * PAGE_SIZE,
         "... on the stack that stack_switch set");
    is(record.mask_in_handler, 0, "... events stay on");
}

static void test_user_faults(void)
{
    USER_PROBE(user_load, NOWHERE);
    expect(user_load, 14, 4, 0, "a load from nowhere");
    is64(record.cr2, (unsigned long)NOWHERE, "... CR2 in vcpu_info is the address");
    USER_PROBE(user_store, NOWHERE);
    expect(user_store, 14, 6, 0, "a store to nowhere");
    USER_PROBE(user_load, user_code((const void *)user_nothing));
    expect(user_load, 3, 0, 3, "a load from its own code, then int3");
    USER_PROBE(user_store, user_code((const void *)user_nothing));
    expect(user_store, 14, 7, 0, "a store to its own code");
    USER_PROBE(user_jump, user_stack_top() - PAGE_SIZE);
    check(record.count == 1 && record.frame.vector == 14 && record.frame.error == 0x15 &&
              record.frame.ip == user_stack_top() - PAGE_SIZE, "a jump to its own stack: page fault, error 15");
    USER_PROBE(user_load, scratch);
    /* a 64-bit process has tables of its own without the kernel; a 32-bit one's page is there, but not for users */
    expect(user_load, 14, sizeof(long) == 8 ? 4 : 5, 0, "a load from the kernel");
    /* not M2P: whether user code sees that depends on how Xen isolates itself, and on vm_assist m2p_strict */
    USER_PROBE(user_load, HYPERVISOR_INSIDE);
    check(record.count == 1 && record.frame.vector == 14 && (record.frame.error & ~1UL) == 4,
          "a load from the hypervisor: page fault, user");
}

static void test_user_interrupts(void)
{
    USER_PROBE(user_nothing, 0);
    expect(user_nothing, 3, 0, 1, "int3 in user mode");
    USER_PROBE(user_int80, 0);
    expect(user_int80, 128, 0, 2, "int 0x80 in user mode");
    is64(record.frame.cs & 0xffff, FLAT_USER_CS, "... CS in the frame");
    is(record.mask_in_handler, 0, "... events stay on");
    trap_set(0x80, 3 | 4, trap_128);
    USER_PROBE(user_int80, 0);
    expect(user_int80, 128, 0, 2, "int 0x80 in user mode, event-mask flag");
    is(record.mask_in_handler, 1, "... events are off in the handler");
    trap_set(0x80, 3, trap_128);
    USER_PROBE(user_int4, 0);
    expect(user_int4, 4, 0, 2, "int 4 in user mode");
    static const char *const refused[] = {
        "int 0 in user mode, privilege level 0",
        "int 0 in user mode, privilege level 1",
        "int 0 in user mode, privilege level 2",
    };
    for (unsigned int level = 0; level < ARRAY_SIZE(refused); level++) {
        trap_set(0, level, trap_0);
        USER_PROBE(user_int0, 0);
        expect(user_int0, 13, 2, 0, refused[level]);
    }
    trap_set(0, 3, trap_0);
    USER_PROBE(user_int0, 0);
    expect(user_int0, 0, 0, 2, "int 0 in user mode, privilege level 3");
    trap_set(0, 0, trap_0);
}

static void test_user_privileged(void)
{
    USER_PROBE(user_cli, 0);
    expect(user_cli, 13, 0, 0, "cli in user mode");
    USER_PROBE(user_hlt, 0);
    expect(user_hlt, 13, 0, 0, "hlt in user mode");
    USER_PROBE(user_in, 0);
    expect(user_in, 13, 0, 0, "in, in user mode");
    USER_PROBE(user_rdmsr, 0);
    expect(user_rdmsr, 13, 0, 0, "rdmsr in user mode");
    USER_PROBE(user_invlpg, 0);
    expect(user_invlpg, 13, 0, 0, "invlpg in user mode");
    USER_PROBE(user_cpuid, 0);
    expect(user_cpuid, 3, 0, 3, "cpuid in user mode is no fault");
    struct physdev_set_iopl iopl = {.iopl = 3};
    HYPERCALL5(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, &iopl, 0, 0, 0);
    USER_PROBE(user_in, 0);
    expect(user_in, 3, 0, 3, "in, in user mode at virtual IOPL 3, is none either");
    iopl.iopl = 0;
    HYPERCALL5(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, &iopl, 0, 0, 0);
    hypercall_fpu_taskswitch(1);
    USER_PROBE(user_fpu, 0);
    expect(user_fpu, 7, 0, 0, "an FPU instruction in user mode with TS set");
    USER_PROBE(user_fpu, 0);
    expect(user_fpu, 3, 0, 3, "... and once more");
    USER_PROBE(user_step, 0);
    expect(user_step, 1, 0, 8, "single step in user mode");
    HYPERCALL5(__HYPERVISOR_set_debugreg, 6, 0xffff0ff0, 0, 0, 0);
}

#ifdef __x86_64__
USER_CODE(user_syscall, "syscall");
extern void syscall_callback(void);

static void test_system_call(void)
{
    USER_PROBE(user_syscall, 0);
    expect(user_syscall, VECTOR_SYSCALL, 0, 2, "syscall in user mode enters the callback");
    is64(record.frame.rcx, record.frame.ip, "... RCX in the frame is RIP");
    is64(record.frame.r11, record.frame.flags, "... R11 in the frame is RFLAGS");
    is64(record.frame.cs & 0xffff, FLAT_USER_CS64, "... CS in the frame");
    is64(record.frame.ss & 0xffff, FLAT_USER_SS64, "... SS in the frame");
    is(record.mask_in_handler, 0, "... events stay on");
    struct callback_register callback = {.type = CALLBACKTYPE_syscall, .flags = CALLBACKF_mask_events};
    callback.address = (unsigned long)syscall_callback;
    hypercall_callback_op(CALLBACKOP_register, &callback);
    USER_PROBE(user_syscall, 0);
    is(record.mask_in_handler, 1, "syscall with the callback's event-mask flag: events are off in the handler");
    is64(record.frame.flags & 0x200, 0x200, "... and on in the frame");
    callback.flags = 0;
    hypercall_callback_op(CALLBACKOP_register, &callback);
}

#define USER_CODE32(name, text) USER_CODE(name, ".code32; " text "; int3; .code64")
USER_CODE32(user32_ud2, "ud2");
USER_CODE32(user32_int80, "int $0x80");
USER_CODE32(user32_load, "movb (%eax), %al");
USER_CODE32(user32_cli, "cli");
USER_CODE32(user32_wide, "movl $0x12345678, %eax; dec %eax; dec %eax");  /* "dec" is a prefix to 64-bit code */
USER_CODE32(user32_syscall, "syscall");
USER_CODE32(user32_sysenter, "sysenter");
USER_CODE(user_sysenter, "sysenter");

static long set_callback(unsigned int type, unsigned int flags, unsigned long address)
{
    struct callback_register callback = {.type = (uint16_t)type, .flags = (uint16_t)flags, .address = address};
    return hypercall_callback_op(CALLBACKOP_register, &callback);
}

static void test_32_bit_user_code(void)
{
    user_cs = FLAT_USER_CS32;
    USER_PROBE(user32_ud2, 0);
    expect(user32_ud2, 6, 0, 0, "ud2 in 32-bit user code");
    is64(record.frame.cs & 0xffff, FLAT_USER_CS32, "... CS in the frame");
    is64(record.frame.ss & 0xffff, FLAT_USER_SS32, "... SS in the frame");
    is64(record.frame.sp, user_stack_top() - 64, "... SP in the frame");
    USER_PROBE(user32_int80, 0);
    expect(user32_int80, 128, 0, 2, "int 0x80 in it");
    is64(record.frame.cs & 0xffff, FLAT_USER_CS32, "... CS in the frame");
    USER_PROBE(user32_load, 0);
    check(record.count == 1 && record.frame.vector == 14 && record.frame.error == 4, "a load from nowhere: page fault");
    USER_PROBE(user32_cli, 0);
    expect(user32_cli, 13, 0, 0, "cli in it");
    USER_PROBE(user32_wide, 0);
    expect(user32_wide, 3, 0, 8, "instructions are those of 32-bit code");
    is64(record.frame.rax, 0x12345676, "... and do what they do there");
    USER_PROBE(user32_syscall, 0);
    expect(user32_syscall, 6, 0, 0, "syscall in it without a syscall32 callback");
    is(set_callback(CALLBACKTYPE_syscall32, 0, (unsigned long)syscall_callback), 0, "callback_op: syscall32");
    USER_PROBE(user32_syscall, 0);
    expect(user32_syscall, VECTOR_SYSCALL, 0, 2, "syscall in it enters the callback");
    is64(record.frame.cs & 0xffff, FLAT_USER_CS32, "... CS in the frame");
    is64(record.frame.ss & 0xffff, FLAT_USER_SS32, "... SS in the frame");
    is64(record.frame.rcx, record.frame.ip, "... RCX in the frame is RIP");
    is(record.mask_in_handler, 0, "... events stay on");
    set_callback(CALLBACKTYPE_syscall32, CALLBACKF_mask_events, (unsigned long)syscall_callback);
    USER_PROBE(user32_syscall, 0);
    is(record.mask_in_handler, 0, "... with the event-mask flag of its own, too");
    set_callback(CALLBACKTYPE_syscall32, 0, 0);
    user_cs = FLAT_USER_CS64;
}

/* SYSENTER saves neither IP nor SP, so the frame has none. */
static void test_sysenter(void)
{
    USER_PROBE(user_sysenter, 0);
    check(record.count == 1 && record.frame.vector == 13 && record.frame.error == 0,
          "sysenter without a callback: vector 13, error 0");
    is64(record.frame.ip, 0, "... no IP");
    is(set_callback(CALLBACKTYPE_sysenter, 0, (unsigned long)syscall_callback), 0, "callback_op: sysenter");
    USER_PROBE(user_sysenter, 0);
    check(record.count == 1 && record.frame.vector == VECTOR_SYSCALL, "sysenter enters the callback");
    is64(record.frame.ip, 0, "... no IP in the frame");
    is64(record.frame.sp, 0, "... no SP");
    is64(record.frame.cs & 0xffff, 3, "... null CS of ring 3");
    is64(record.frame.ss & 0xffff, FLAT_USER_SS64, "... SS");
    is64(record.frame.flags & 0x200, 0x200, "... IF is set");
    is(record.mask_in_handler, 0, "... events stay on");
    user_cs = FLAT_USER_CS32;
    USER_PROBE(user32_sysenter, 0);
    check(record.count == 1 && record.frame.vector == VECTOR_SYSCALL, "sysenter in 32-bit user code, too");
    is64(record.frame.cs & 0xffff, 3, "... null CS");
    user_cs = FLAT_USER_CS64;
    set_callback(CALLBACKTYPE_sysenter, CALLBACKF_mask_events, (unsigned long)syscall_callback);
    USER_PROBE(user_sysenter, 0);
    is(record.mask_in_handler, 1, "... with the event-mask flag events are off in the handler");
    set_callback(CALLBACKTYPE_sysenter, 0, 0);
}
#else
USER_CODE(user_hypercall, "int $0x82");
#endif

void test_user_mode(void)
{
    test_user_frame();
    test_user_faults();
    test_user_interrupts();
    test_user_privileged();
#ifdef __x86_64__
    test_system_call();
    test_32_bit_user_code();
    test_sysenter();
#else
    USER_PROBE(user_hypercall, 0);
    expect(user_hypercall, 13, 0x82 * 8 + 2, 0, "the hypercall gate is not for user mode");
#endif
}
