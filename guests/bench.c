/* What the mechanisms cost, timed from inside by the guest's clock; "bench: begin X" and "bench: end X" let a program
 * outside time them too. Counts are fixed, so that two hypervisors do the same work; "scale=N" makes them N/10 times as
 * many, and "only=NAME" runs one. With "step=1" nothing is done but what typed lines ask for, one at a time. */
#include "bench/second_vcpu.h"

const char guest_name[] = "bench";

#define PAGES 512

static uint8_t pages[PAGES][PAGE_SIZE] __page_aligned;
static volatile unsigned int faults, upcalls;
static evtchn_port_t own_port;
static bool has_second_vcpu;
static multicall_entry_t calls[32];
static mmu_update_t updates[PAGES];
static uint64_t even_ptes[PAGES], pte_addresses[PAGES];
static uint64_t full_l1[PAGES] __page_aligned;

static void xen_version(unsigned long n)
{
    while (n--)
        hypercall_xen_version(XENVER_version, NULL);
}

static void multicall_32(unsigned long n)
{
    for (; n; n -= ARRAY_SIZE(calls)) {
        for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
            calls[i] = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .args = {XENVER_version, 0}};
        hypercall_multicall(calls, ARRAY_SIZE(calls));
    }
}

/* Each page comes to show its neighbour's frame, and back: every update changes a frame, so each is validated. */
static uint64_t swapped(unsigned int page, bool odd)
{
    return even_ptes[page ^ odd];
}

static void update_va_mapping(unsigned long n)
{
    for (unsigned long i = 0; i < n; i++)
        hypercall_update_va_mapping((unsigned long)pages[0], swapped(0, !(i & 1)), UVMF_INVLPG);
}

static void mmu_update(unsigned long n, unsigned int batch)
{
    bool odd = true;
    for (unsigned int first = 0; n; n -= batch) {
        for (unsigned int i = 0; i < batch; i++) {
            updates[i].ptr = pte_addresses[first + i];
            updates[i].val = swapped(first + i, odd);
        }
        hypercall_mmu_update(updates, batch, NULL, DOMID_SELF);
        first = (first + batch) % PAGES;
        odd = first ? odd : !odd;
    }
}

static void mmu_update_1(unsigned long n)
{
    mmu_update(n, 1);
}

static void mmu_update_32(unsigned long n)
{
    mmu_update(n, 32);
}

static void mmu_update_512(unsigned long n)
{
    mmu_update(n, 512);
}

/* A plain store to a page-table entry, which is read-only to us: Xen validates it and does it in our stead. */
static void pte_store(unsigned long n)
{
    volatile uint64_t *pte = pte_pointer((unsigned long)pages[0], 1);
    for (unsigned long i = 0; i < n; i++) {
#ifdef __x86_64__
        *pte = swapped(0, !(i & 1));
#else
        uint64_t old = *pte, new = swapped(0, !(i & 1));
        __asm__ volatile("lock cmpxchg8b %0" : "+m"(*pte), "+A"(old) : "b"((uint32_t)new), "c"((uint32_t)(new >> 32)));
#endif
    }
}

/* A full L1 that nobody uses: each pin validates its 512 entries, each unpin drops what they refer to. */
static void pin_unpin(unsigned long n)
{
    uint64_t pte = pte_read((unsigned long)full_l1);
    unsigned long frame = (unsigned long)((pte & PTE_FRAME) >> 12);
    mmuext_op_t operations[2] = {
        {.cmd = MMUEXT_PIN_L1_TABLE, .arg1.mfn = frame},
        {.cmd = MMUEXT_UNPIN_TABLE, .arg1.mfn = frame},
    };
    for (unsigned int i = 0; i < PAGES; i++)
        full_l1[i] = even_ptes[i];
    hypercall_update_va_mapping((unsigned long)full_l1, pte & ~PTE_WRITABLE, UVMF_INVLPG);
    while (n--)
        hypercall_mmuext_op(operations, 2, NULL, DOMID_SELF);
    hypercall_update_va_mapping((unsigned long)full_l1, pte, UVMF_INVLPG);
}

static bool skip_fault(struct trap_frame *frame)
{
    if (frame->vector != 6 && frame->vector != 14)
        return false;
    faults++;
    frame->ip += 2;                      /* both faulting instructions are two bytes long */
    return true;
}

static void invalid_opcode(unsigned long n)
{
    while (n--)
        __asm__ volatile("ud2" ::: "memory");
}

static void page_fault(unsigned long n)
{
    unsigned long nowhere = 0x10000;
    while (n--)
#ifdef __x86_64__
        __asm__ volatile("movb (%%rsi), %%al" : : "S"(nowhere) : "eax", "memory");
#else
        __asm__ volatile("movb (%%esi), %%al" : : "S"(nowhere) : "eax", "memory");
#endif
}

__asm__(".pushsection .user, \"ax\"\n"
#ifdef __x86_64__
        "user_int80: int $0x80; dec %rdi; jnz user_int80; int3\n"
        "user_syscall: mov %rdi, %rbx; 1: syscall; dec %rbx; jnz 1b; int3\n"
#else
        "user_int80: int $0x80; dec %eax; jnz user_int80; int3\n"
#endif
        ".popsection");
extern void user_int80(void);

static void int80(unsigned long n)
{
    user_run(user_int80, n);
}

#ifdef __x86_64__
extern void user_syscall(void);

static bool count_system_call(struct trap_frame *frame)
{
    return frame->vector == VECTOR_SYSCALL || skip_fault(frame);
}

static void system_call(unsigned long n)
{
    trap_handler = count_system_call;
    user_run(user_syscall, n);
    trap_handler = skip_fault;
}
#endif

static void count_upcall(evtchn_port_t port)
{
    (void)port;
    upcalls++;
}

static void event_to_self(unsigned long n)
{
    while (n--)
        event_send(own_port);
}

static void loop_store(unsigned long n)
{
    static volatile unsigned long s;
    for (unsigned long k = 0; k < n; k++)
        s += k;
}

static void loop_register(unsigned long n)
{
    unsigned long s = 0;
    for (unsigned long k = 0; k < n; k++) {
        s += k;
        __asm__ volatile("" : "+r"(s));  /* keep the loop */
    }
}

struct measurement {
    const char *name;
    void (*run)(unsigned long n);
    unsigned long count;                 /* at scale=10 */
    unsigned int unit;                   /* it is done in whole units: batches, and what leaves the page tables as they were,
                                          * so that every update of the next time changes an entry again */
};

static const struct measurement measurements[] = {
    {"xen_version", xen_version, 10000, 1},
    {"multicall_32", multicall_32, 32000, 32},
    {"update_va_mapping", update_va_mapping, 6000, 2},
    {"mmu_update_1", mmu_update_1, 6144, 2 * PAGES},
    {"mmu_update_32", mmu_update_32, 20480, 2 * PAGES},
    {"mmu_update_512", mmu_update_512, 20480, 2 * PAGES},
    {"pte_store", pte_store, 4000, 2},
    {"pin_unpin", pin_unpin, 400, 1},
    {"invalid_opcode", invalid_opcode, 4000, 1},
    {"page_fault", page_fault, 4000, 1},
    {"int80", int80, 4000, 1},
#ifdef __x86_64__
    {"system_call", system_call, 4000, 1},
#endif
    {"event_to_self", event_to_self, 4000, 1},
    {"event_to_vcpu", event_to_vcpu, 4000, 1},
    {"loop_store", loop_store, 50000000, 1},
    {"loop_register", loop_register, 100000000, 1},
};

static void measure(const struct measurement *m, unsigned long n)
{
    print("bench: begin %s\n", m->name);
    uint64_t start = clock_ns();
    m->run(n);
    uint64_t spent = clock_ns() - start;
    print("bench: end %s\n", m->name);
    uint64_t tenths = divide(spent * 10, (uint32_t)n);
    print("bench: %s %llu ns n=%lu (%llu.%llu ns each)\n", m->name, (unsigned long long)spent, n,
          (unsigned long long)divide(tenths, 10), (unsigned long long)(tenths - divide(tenths, 10) * 10));
}

/* So many operations in whole units, at least one. */
static unsigned long whole_units(const struct measurement *m, uint64_t count)
{
    unsigned long units = (unsigned long)divide(count, m->unit);
    return (units ? units : 1) * m->unit;
}

/* `warm` times unmeasured first: what a hypervisor does differently after the first tenth of a second is then at work. */
static void measure_scaled(const struct measurement *m, unsigned long scale, unsigned long warm)
{
    unsigned long n = whole_units(m, divide((uint64_t)m->count * scale, 10));
    while (warm--)
        m->run(n);
    measure(m, n);
}

static bool is_possible(const struct measurement *m)
{
    return has_second_vcpu || m->run != event_to_vcpu;
}

/* A typed "NAME COUNT" is so many of its operations, "NAME" the usual number, "quit" the end. */
static void measure_as_told(void)
{
    char line[48];
    while (console_line(line, sizeof(line)), strcmp(line, "quit")) {
        const struct measurement *found = NULL;
        size_t length = 0;
        while (line[length] && line[length] != ' ')
            length++;
        unsigned long count = line[length] ? parse_number(line + length + 1) : 0;
        line[length] = 0;
        for (size_t i = 0; i < ARRAY_SIZE(measurements); i++)
            if (!strcmp(line, measurements[i].name) && is_possible(&measurements[i]))
                found = &measurements[i];
        if (found)
            measure(found, whole_units(found, count ? count : found->count));
        else
            print("bench: no measurement %s\n", line);
    }
}

static void prepare(void)
{
    for (unsigned int i = 0; i < PAGES; i++) {
        even_ptes[i] = pte_read((unsigned long)pages[i]);
        pte_addresses[i] = pte_machine_address((unsigned long)pages[i], 1);
    }
    HYPERCALL5(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables, 0, 0, 0);
    own_port = (evtchn_port_t)event_bind_ipi();
    event_handle(own_port, count_upcall);
    user_init();
    trap_set(0x80, 3, int80_count_and_return);
    trap_handler = skip_fault;
}

void guest_main(void)
{
    char only[32] = "";
    unsigned long scale = option_number("scale", 10), warm = option_number("warm", 0);
    print("bench%u on \"%s\", scale=%lu\n", 8 * (unsigned int)sizeof(long), start_info->magic, scale);
    option("only", only, sizeof(only));
    prepare();
    has_second_vcpu = second_vcpu_start();
    if (option_number("step", 0))
        measure_as_told();
    else
        for (size_t i = 0; i < ARRAY_SIZE(measurements); i++)
            if ((!*only || !strcmp(only, measurements[i].name)) && is_possible(&measurements[i]))
                measure_scaled(&measurements[i], scale, warm);
    print("bench: faults %u upcalls %u int80 %u\n", faults, upcalls, int80_count);
    print("bench: done\n");
}
