/* Event channels: two bitmaps in shared_info, a selector word and two flags a vCPU (the 2-level ABI). */
#include "guest.h"

#define WORD_BITS (8 * sizeof(xen_ulong_t))
#define NR_PORTS (WORD_BITS * WORD_BITS)

static event_handler_t handlers[256];

static volatile vcpu_info_t *vcpu(void)
{
    return own_vcpu;
}

static bool set_bit(unsigned long bit, volatile xen_ulong_t *words)
{
    bool old;
    __asm__ volatile("lock bts %[bit], %[words]; setc %[old]"
                     : [words] "+m"(*words), [old] "=q"(old) : [bit] "r"(bit) : "memory", "cc");
    return old;
}

static bool clear_bit(unsigned long bit, volatile xen_ulong_t *words)
{
    bool old;
    __asm__ volatile("lock btr %[bit], %[words]; setc %[old]"
                     : [words] "+m"(*words), [old] "=q"(old) : [bit] "r"(bit) : "memory", "cc");
    return old;
}

void events_init(void)
{
    for (size_t i = 0; i < WORD_BITS; i++)
        shared_info->evtchn_mask[i] = ~0UL;
}

void event_handle(evtchn_port_t port, event_handler_t handler)
{
    struct evtchn_unmask unmask = {.port = port};
    handlers[port % ARRAY_SIZE(handlers)] = handler;
    hypercall_event_channel_op(EVTCHNOP_unmask, &unmask); /* raises the upcall if it was pending meanwhile */
}

void event_mask(evtchn_port_t port)
{
    set_bit(port, shared_info->evtchn_mask);
}

bool event_pending(evtchn_port_t port)
{
    return shared_info->evtchn_pending[port / WORD_BITS] >> (port % WORD_BITS) & 1;
}

void event_clear(evtchn_port_t port)
{
    clear_bit(port, shared_info->evtchn_pending);
}

void event_send(evtchn_port_t port)
{
    struct evtchn_send send = {.port = port};
    hypercall_event_channel_op(EVTCHNOP_send, &send);
}

long event_bind_virq(unsigned int virq)
{
    struct evtchn_bind_virq bind = {.virq = virq, .vcpu = 0};
    long error = hypercall_event_channel_op(EVTCHNOP_bind_virq, &bind);
    return error ? error : (long)bind.port;
}

long event_bind_ipi(void)
{
    struct evtchn_bind_ipi bind = {.vcpu = 0};
    long error = hypercall_event_channel_op(EVTCHNOP_bind_ipi, &bind);
    return error ? error : (long)bind.port;
}

/* The upcall: take the selector word, then each pending and unmasked port of each word it names. */
void events_dispatch(void)
{
    while (vcpu()->evtchn_upcall_pending) {
        vcpu()->evtchn_upcall_pending = 0;  /* before the look, or an event in between is lost */
        barrier();
        xen_ulong_t words = __atomic_exchange_n(&vcpu()->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
        for (; words; words &= words - 1) {
            unsigned long word = (unsigned long)__builtin_ctzl(words);
            xen_ulong_t bits = shared_info->evtchn_pending[word] & ~shared_info->evtchn_mask[word];
            for (; bits; bits &= bits - 1) {
                evtchn_port_t port = (evtchn_port_t)(word * WORD_BITS + (unsigned long)__builtin_ctzl(bits));
                event_clear(port);
                if (handlers[port % ARRAY_SIZE(handlers)])
                    handlers[port % ARRAY_SIZE(handlers)](port);
            }
        }
    }
}

bool events_off(void)
{
    bool on = !vcpu()->evtchn_upcall_mask;
    vcpu()->evtchn_upcall_mask = 1;
    barrier();
    return on;
}

void events_on(void)
{
    barrier();
    vcpu()->evtchn_upcall_mask = 0;
    barrier();                           /* what came while the mask was set is ours to take: Xen does not look again */
    if (vcpu()->evtchn_upcall_pending) {
        vcpu()->evtchn_upcall_mask = 1;
        events_dispatch();
        vcpu()->evtchn_upcall_mask = 0;
        if (vcpu()->evtchn_upcall_pending)
            hypercall_xen_version(XENVER_version, NULL); /* came at the last moment: any hypercall's end delivers it */
    }
}

void block(void)
{
    hypercall_sched_op(SCHEDOP_block, NULL);  /* Xen clears the upcall mask and, if something is pending, returns */
}
