/* A load: one of the well-behaved or antisocial domains of the isolation experiment (the paper's 4.4), by mode=NAME on the
 * command line. What it has done is counted in a page whose machine frame it prints, for who can look there; count=N
 * ends it after N units, and it says how long they took. */
#include "runtime/guest.h"

const char guest_name[] = "load";

#define BUFFER_WORDS 2048
#define BATCH 65536
#define GRAB 32768
#define FAULT_PAGES 64

static struct {
    char magic[8];
    volatile uint64_t units;             /* what has been done, in the mode's own unit */
    volatile uint64_t late_total, late_most;  /* nanoseconds that wake-ups came after their time */
    volatile uint64_t started;
} counters __page_aligned = {.magic = "XENLOAD1"};

static uint64_t limit;                   /* units after which to stop; 0: never */
static uint64_t buffer[BUFFER_WORDS];
static uint8_t pages[FAULT_PAGES][PAGE_SIZE] __page_aligned;
static uint64_t page_ptes[FAULT_PAGES];
static mmu_update_t updates[BATCH];
static xen_pfn_t extents[GRAB];
static evtchn_port_t own_port;

/* One unit more; are there more to do? */
static bool done_one(void)
{
    counters.units++;
    return !limit || counters.units < limit;
}

/* A well-behaved domain that computes: a unit is a sum over 16 KiB, stores included. */
static void work(void)
{
    do {
        uint64_t sum = counters.units;
        for (unsigned int i = 0; i < BUFFER_WORDS; i++) {
            sum = (sum << 7 | sum >> 57) + buffer[i];
            buffer[i] = sum;
        }
    } while (done_one());
}

/* A well-behaved domain that waits: a unit is a wake-up by timer, every period=N microseconds. */
static void timer(void)
{
    uint64_t period = option_number("period", 5000) * 1000ULL, next = clock_ns() + period;
    timer_init();
    do {
        sleep_ns(next - clock_ns());
        uint64_t late = clock_ns() - next;
        counters.late_total += late;
        if (late > counters.late_most)
            counters.late_most = late;
        next += period;
        if (next <= clock_ns())
            next = clock_ns() + period;  /* missed altogether */
    } while (done_one());
}

/* Antisocial: nothing at all, for ever. */
static void spin(void)
{
    for (;;)
        barrier();
}

static bool map_again(struct trap_frame *frame)
{
    if (frame->vector != 14)
        return false;
    unsigned long page = counters.units % FAULT_PAGES;
    pte_write((unsigned long)pages[page], page_ptes[page]);
    return true;
}

/* Antisocial: a unit is a page unmapped, touched, faulted and mapped again, as after a fork. */
static void faults(void)
{
    for (unsigned int i = 0; i < FAULT_PAGES; i++)
        page_ptes[i] = pte_read((unsigned long)pages[i]);
    trap_handler = map_again;
    do {
        volatile uint8_t *page = pages[counters.units % FAULT_PAGES];
        pte_write((unsigned long)page, 0);
        (*page)++;
    } while (done_one());
}

static void nothing(evtchn_port_t port)
{
    (void)port;
}

/* Antisocial: a unit is an event to ourselves, taken, and one to the console, which finds nothing. */
static void events(void)
{
    own_port = (evtchn_port_t)event_bind_ipi();
    event_handle(own_port, nothing);
    do {
        event_send(own_port);
        if (!is_initial_domain())
            event_send(start_info->console.domU.evtchn);
    } while (done_one());
}

/* Antisocial: a unit is a batch of updates, as many as there is room for, each of which is validated. */
static void hypercalls(void)
{
    unsigned int batch = (unsigned int)option_number("batch", BATCH);
    uint64_t first = pte_read((unsigned long)pages[0]), second = pte_read((unsigned long)pages[1]);
    uint64_t pointer = pte_machine_address((unsigned long)pages[0], 1);
    if (!batch || batch > BATCH)
        batch = BATCH;
    for (unsigned int i = 0; i < batch; i++)
        updates[i] = (mmu_update_t){.ptr = pointer, .val = i & 1 ? first : second};
    do
        hypercall_mmu_update(updates, batch, NULL, DOMID_SELF);
    while (done_one());
}

/* Antisocial: a unit is all the memory that can be had, taken frame by frame, and given back. */
static void memory(void)
{
    do {
        struct xen_memory_reservation more = {.nr_extents = GRAB, .domid = DOMID_SELF};
        set_xen_guest_handle(more.extent_start, extents);
        long got = hypercall_memory_op(XENMEM_increase_reservation, &more);
        more.nr_extents = got > 0 ? (unsigned long)got : 0;
        if (more.nr_extents)
            hypercall_memory_op(XENMEM_decrease_reservation, &more);
    } while (done_one());
}

/* Sleeps for good. */
static void wait(void)
{
    for (;;)
        block();
}

static const struct {
    const char *name;
    void (*run)(void);
} modes[] = {
    {"work", work},     {"timer", timer},           {"spin", spin},     {"faults", faults},
    {"events", events}, {"hypercalls", hypercalls}, {"memory", memory}, {"wait", wait},
};

void guest_main(void)
{
    char mode[16] = "work";
    option("mode", mode, sizeof(mode));
    limit = option_number("count", 0);
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        if (strcmp(mode, modes[i].name))
            continue;
        print("load: %s counts in frame 0x%lx\n", mode, mfn_of(&counters));
        counters.started = clock_ns();
        modes[i].run();
        uint64_t spent = clock_ns() - counters.started;
        uint32_t units = (uint32_t)counters.units;
        print("load: %s %u units in %llu ns (%llu ns each)\n", mode, units, (unsigned long long)spent,
              (unsigned long long)divide(spent, units));
        if (counters.late_total)
            print("load: late by %llu ns on average, %llu ns at most\n",
                  (unsigned long long)divide(counters.late_total, units), (unsigned long long)counters.late_most);
        return;
    }
    print("load: there is no mode %s\n", mode);
}
