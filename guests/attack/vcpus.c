/* Another virtual CPU of ours begins where and as we say: it must not begin as the hypervisor. */
#include "attack.h"

#define RING0_CODE 0xe008                /* the hypervisor's own descriptors in every GDT (FLAT_RING0_CS, _DS) */
#define RING0_DATA 0xe010

extern void (*const trap_entries[])(void);

static uint8_t second_stack[PAGE_SIZE] __page_aligned;
static volatile struct {
    bool ran, trapped;
    unsigned int ring;
    unsigned long vector, error;
} second;

static void stop_second(void)
{
    hypercall_vcpu_op(VCPUOP_down, 1, NULL);
    for (;;)
        barrier();
}

/* Where it begins, if it begins. */
static void second_begins(void)
{
    unsigned long cs;
    __asm__ volatile("mov %%cs, %0" : "=r"(cs));
    second.ring = cs & 3;
    second.ran = true;
    stop_second();
}

/* Traps of the second vCPU arrive on its stack, and stop it. */
void second_vcpu_trapped(const struct trap_frame *frame)
{
    const uint8_t *where = (const uint8_t *)frame;
    if (where < second_stack || where >= second_stack + PAGE_SIZE)
        return;
    second.vector = frame->vector;
    second.error = frame->error;
    second.trapped = true;
    stop_second();
}

static verdict_t begin_in_ring_0(unsigned int number)
{
    (void)number;
    static vcpu_guest_context_t context;
    unsigned long stack = (unsigned long)second_stack + PAGE_SIZE;
    context = (vcpu_guest_context_t){.flags = VGCF_in_kernel, .kernel_ss = FLAT_KERNEL_SS, .kernel_sp = stack};
    context.user_regs.cs = RING0_CODE;
#ifdef __x86_64__
    context.user_regs.ss = RING0_DATA;
    context.user_regs.rip = (unsigned long)second_begins;
    context.user_regs.rsp = stack;
    context.user_regs.rflags = 0x202;
#else
    context.user_regs.ss = FLAT_KERNEL_SS;  /* where the trap's frame is pushed: with another one the domain is lost */
    context.user_regs.ds = context.user_regs.es = FLAT_KERNEL_DS;
    context.user_regs.eip = (unsigned long)second_begins;
    context.user_regs.esp = stack;
    context.user_regs.eflags = 0x202;
#endif
    context.ctrlreg[3] = xen_pfn_to_cr3(mfn_of((void *)start_info->pt_base));
    for (unsigned int vector = 0; vector < 20; vector++) {
        context.trap_ctxt[vector].cs = FLAT_KERNEL_CS;
        context.trap_ctxt[vector].address = (unsigned long)trap_entries[vector];
    }
    long result = hypercall_vcpu_op(VCPUOP_initialise, 1, &context);
    if (!result)
        result = hypercall_vcpu_op(VCPUOP_up, 1, NULL);
    if (result)
        return refused(result, "nothing");
    for (unsigned int wait = 0; wait < 1000 && !second.ran && !second.trapped; wait++)
        sleep_ns(1000000);
    if (second.ran)
        return harmless(second.ring == 3 || (sizeof(long) == 4 && second.ring == 1), "it began in the guest's own ring",
                        "a virtual CPU in the hypervisor's ring");
    seen.count = second.trapped;
    seen.vector = second.vector;
    seen.error = second.error;
    return trapped("a virtual CPU that is nowhere to be seen");
}

const struct attempt vcpu_attempts[] = {
    {"begin-another-vCPU-in-ring-0", NULL, begin_in_ring_0, 0, 0, NULL},
    {0},
};
