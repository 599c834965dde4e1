/* Events between two virtual CPUs. The second one polls for an event and answers it by another, which the first, blocked
 * meanwhile, takes by an upcall: on a machine with one processor, two context switches a round. */
#include "second_vcpu.h"

static uint8_t stack[PAGE_SIZE] __page_aligned;
static evtchn_port_t there, back;
static volatile unsigned long answers;

static void answered(evtchn_port_t port)
{
    (void)port;
    answers++;
}

static void answer_for_ever(void)
{
    for (;;) {
        struct sched_poll poll = {.nr_ports = 1};
        set_xen_guest_handle(poll.ports, &there);
        hypercall_sched_op(SCHEDOP_poll, &poll);
        if (event_pending(there)) {
            event_clear(there);
            event_send(back);
        }
    }
}

bool second_vcpu_start(void)
{
    static vcpu_guest_context_t context;
    struct evtchn_bind_ipi bind = {.vcpu = 1};
    if (hypercall_vcpu_op(VCPUOP_is_up, 1, NULL) || hypercall_event_channel_op(EVTCHNOP_bind_ipi, &bind))
        return false;
    there = bind.port;
    back = (evtchn_port_t)event_bind_ipi();
    event_handle(back, answered);
    shared_info->vcpu_info[1].evtchn_upcall_mask = 1;
    unsigned long sp = (unsigned long)stack + PAGE_SIZE - sizeof(long);  /* as behind a call */
    context = (vcpu_guest_context_t){.flags = VGCF_in_kernel, .kernel_ss = FLAT_KERNEL_SS, .kernel_sp = sp};
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
#ifdef __x86_64__
    context.user_regs.rip = (unsigned long)answer_for_ever;
    context.user_regs.rsp = sp;
    context.user_regs.rflags = 0x202;
#else
    context.user_regs.ds = context.user_regs.es = FLAT_KERNEL_DS;
    context.user_regs.eip = (unsigned long)answer_for_ever;
    context.user_regs.esp = sp;
    context.user_regs.eflags = 0x202;
#endif
    context.ctrlreg[3] = xen_pfn_to_cr3(mfn_of((void *)start_info->pt_base));
    return !hypercall_vcpu_op(VCPUOP_initialise, 1, &context) && !hypercall_vcpu_op(VCPUOP_up, 1, NULL);
}

void event_to_vcpu(unsigned long n)
{
    while (n--) {
        unsigned long before = answers;
        event_send(there);
        for (events_off(); answers == before; events_off())
            block();
        events_on();
    }
}
