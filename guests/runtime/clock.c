/* Time, as Xen publishes it: a record in shared_info that relates the time-stamp counter to nanoseconds since boot. */
#include "guest.h"

static volatile bool timer_fired;
static evtchn_port_t timer_port;

static uint64_t time_stamp(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

/* delta * multiplier / 2^32, in more than 64 bits on the way. */
static uint64_t scale(uint64_t delta, uint32_t multiplier, int shift)
{
    delta = shift < 0 ? delta >> -shift : delta << shift;
    return (uint64_t)(uint32_t)(delta >> 32) * multiplier + ((uint64_t)(uint32_t)delta * multiplier >> 32);
}

uint64_t clock_ns(void)
{
    volatile vcpu_time_info_t *time = &own_vcpu->time;
    uint32_t version;
    uint64_t now;
    do {
        version = time->version;         /* odd: being written; changed afterwards: was written */
        barrier();
        now = time->system_time + scale(time_stamp() - time->tsc_timestamp, time->tsc_to_system_mul, time->tsc_shift);
        barrier();
    } while ((version & 1) || version != time->version);
    return now;
}

static void timer_event(evtchn_port_t port)
{
    (void)port;
    timer_fired = true;
}

void timer_init(void)
{
    long port = event_bind_virq(VIRQ_TIMER);
    if (port < 0)
        return;                          /* bound already */
    timer_port = (evtchn_port_t)port;
    event_handle(timer_port, timer_event);
}

void sleep_ns(uint64_t ns)
{
    uint64_t deadline = clock_ns() + ns;
    while (clock_ns() < deadline) {
        events_off();
        timer_fired = false;
        if (hypercall_set_timer_op(deadline) || timer_fired)
            events_on();
        else
            block();
    }
}
