/* Ways back: the iret hypercall and instruction, the failsafe callback, NMIs. */
#include "selftest.h"
#include <xen/nmi.h>

#define IRET_HYPERCALL "jmp hypercall_page + 23 * 32"
#ifdef __x86_64__
#define KERNEL_FRAME(flags, cs, ip) \
    "mov %%rsp, %%rdx; push $0xe02b; push %%rdx; push $" flags "; push $" cs "; push $" ip "; "
#else
#define KERNEL_FRAME(flags, cs, ip) "push $" flags "; push $" cs "; push $" ip "; "
#endif

static void test_iret(void)
{
#ifdef __x86_64__
    PROBE(KERNEL_FRAME("0x202", "0xe033", "7f") "iretq; 7:", : : "edx", "memory");
    check_no_trap("the iret instruction within the kernel");
    PROBE(KERNEL_FRAME("2", "0xe030", "7f") "push $0; " IRET_HYPERCALL "; 7:", : : "edx", "memory");
#else
    PROBE(KERNEL_FRAME("0x202", "0xe019", "7f") "iret; 7:", : : "edx", "memory");
    check_no_trap("the iret instruction within the kernel");
    PROBE(KERNEL_FRAME("2", "0xe019", "7f") IRET_HYPERCALL "; 7:", : : "edx", "memory");
#endif
    check_no_trap("the iret hypercall with IF clear");
    is(upcall_mask(), 1, "... sets the upcall mask");
    unsigned long flags;
    __asm__ volatile("pushf; pop %0" : "=r"(flags));
    is64(flags & 0x200, 0x200, "... and leaves the processor's own IF set");
#ifdef __x86_64__
    PROBE(KERNEL_FRAME("0x202", "0xe030", "7f") "push $0; " IRET_HYPERCALL "; 7:", : : "edx", "memory");
#else
    PROBE(KERNEL_FRAME("0x202", "0xe019", "7f") IRET_HYPERCALL "; 7:", : : "edx", "memory");
#endif
    is(upcall_mask(), 0, "the iret hypercall with IF set clears the upcall mask");
}

static volatile unsigned int upcalls;

static void count(evtchn_port_t port)
{
    (void)port;
    upcalls++;
}

/* An event that waits for the mask comes with the iret hypercall that clears it. */
static void test_iret_delivers(void)
{
    evtchn_port_t port = (evtchn_port_t)event_bind_ipi();
    struct evtchn_close close = {.port = port};
    event_handle(port, count);
    events_off();
    event_send(port);
    is((long)upcalls, 0, "an event while events are off");
#ifdef __x86_64__
    PROBE(KERNEL_FRAME("0x202", "0xe030", "7f") "push $0; " IRET_HYPERCALL "; 7:", : : "edx", "memory");
#else
    PROBE(KERNEL_FRAME("0x202", "0xe019", "7f") IRET_HYPERCALL "; 7:", : : "edx", "memory");
#endif
    is((long)upcalls, 1, "... is delivered by the iret hypercall that turns them on");
    hypercall_event_channel_op(EVTCHNOP_close, &close);
}

#ifdef __x86_64__
static void test_iret_64(void)
{
    unsigned long rcx, r11_low;
    PROBE("mov $7, %%ecx; mov $8, %%r11d; " KERNEL_FRAME("0x202", "0xe030", "7f")
          "push $0; " IRET_HYPERCALL "; 7: mov %%r11, %%rax", "=c"(rcx), "=a"(r11_low) : : "edx", "r11", "memory");
    check(rcx == 7 && r11_low == 8, "the iret hypercall restores RCX and R11");
    PROBE("mov $7, %%ecx; mov $8, %%r11d; " KERNEL_FRAME("0x202", "0xe030", "7f")
          "push $0x100; " IRET_HYPERCALL "; 7: lea 7b(%%rip), %%rdx; sub %%rdx, %%rcx; mov %%r11, %%rax",
          "=c"(rcx), "=a"(r11_low) : : "edx", "r11", "memory");
    check(rcx == 0 && (r11_low & 0x200),
          "... with VGCF_in_syscall RCX is RIP and R11 is RFLAGS, as SYSRET leaves them");
    PROBE(KERNEL_FRAME("0x202", "0x1230", "7f") "push $0; " IRET_HYPERCALL "; 7:", : : "edx", "memory");
    is((long)record.frame.vector, 13, "the iret hypercall to a bad CS: #GP");
    is64(record.frame.error, 0x1230, "... error: the selector");
    is64(record.frame.cs & 0xffff, 0x1230, "... the frame has that CS");
    is64(record.frame.flags & 0x200, 0x200, "... and the flags of the iret's frame");
}
#endif

static void test_nmi(void)
{
    extern void trap_2(void);
    struct xennmi_callback callback = {.handler_address = (unsigned long)trap_2};
    is(HYPERCALL5(__HYPERVISOR_nmi_op, XENNMI_register_callback, &callback, 0, 0, 0), 0, "nmi_op: register");
    expected_vector = 2;
    record.count = 0;
    is(hypercall_vcpu_op(VCPUOP_send_nmi, 0, NULL), 0, "send_nmi to ourselves");
    is((long)record.count, 1, "... comes");
    is((long)record.frame.vector, 2, "... as vector 2");
    is(record.mask_in_handler, 1, "... with events off");
    is(upcall_mask(), 0, "... and on again behind it");
    events_off();
    record.count = 0;
    hypercall_vcpu_op(VCPUOP_send_nmi, 0, NULL);
    is((long)record.count, 1, "it comes with events off too");
    is((long)saved_mask(), 1, "... the saved upcall mask says so");
    events_on();
    expected_vector = ~0u;
    traps_init();
}

void test_returns(void)
{
    test_iret();
    test_iret_delivers();
#ifdef __x86_64__
    test_iret_64();
#endif
    test_nmi();
}
