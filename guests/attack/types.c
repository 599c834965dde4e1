/* Types of frames: to use one as two things at once, across pins, the balloon, exchange, and what the TLB remembers. */
#include "attack.h"

#define TYPED_TWICE "a frame of two types at once"

/* --- pins --------------------------------------------------------------------------------------------------------- */

static verdict_t pin_writable(unsigned int level)
{
    return refused(pin(level, page[1]), "a page table that is mapped writable");
}

static verdict_t pin_as_other_level(unsigned int level)
{
    unsigned int other = level % LEVELS + 1;
    return refused(extended(MMUEXT_PIN_L1_TABLE + other - 1, own_table(level) >> 12, 0), TYPED_TWICE);
}

static verdict_t pin_twice(unsigned int level)
{
    (void)level;
    read_only(page[1]);
    pin(1, page[1]);
    verdict_t verdict = refused(pin(1, page[1]), "two pins, of which one can be dropped twice");
    unpin(page[1]);
    return verdict;
}

static verdict_t unpin_unpinned(unsigned int level)
{
    return refused(extended(MMUEXT_UNPIN_TABLE, own_table(level) >> 12, 0), "a reference dropped that was not held");
}

static verdict_t writable_while_pinned(unsigned int level)
{
    read_only(page[1]);
    pin(level, page[1]);
    verdict_t verdict = refused(writable(page[1]), "a pinned table mapped writable");
    unpin(page[1]);
    return verdict;
}

/* A table in use loses its pin, not its type. */
static verdict_t writable_after_unpin(unsigned int level)
{
    (void)level;
    read_only(page[1]);
    pin(1, page[1]);
    mmu_set(new_region_entry(), entry_of(page[1], LINK));
    unpin(page[1]);
    return refused(writable(page[1]), "a linked table mapped writable");
}

/* An L2 table whose second entry is bad: the first, good L1 table must not keep anything of the attempt. */
static verdict_t failed_promotion(unsigned int level)
{
    ((uint64_t *)page[1])[0] = entry_of(page[2], LINK);
    ((uint64_t *)page[1])[1] = entry_of(page[3], LINK);      /* page[3] is mapped writable */
    read_only(page[1]);
    read_only(page[2]);
    int result = pin(level, page[1]);
    if (!writable(page[2]) && !writable(page[1]))
        return refused(result, "a table with a writable table in it");
    return broke_out("a type left behind by a failed validation");
}

/* --- what validation leaves in the middle ------------------------------------------------------------------------- */

static long exchange(xen_pfn_t frame, xen_pfn_t pfn, unsigned long order);

/* What is tried with page[1] while it is half a page table. */
static long map_writable(void)
{
    return writable(page[1]);
}

static long update_entry(void)
{
    return mmu_set(machine_of(page[1]) + 3 * sizeof(uint64_t), 0);
}

/* The first request of the batch is fine: it maps page[0] where it is mapped. */
static long update_in_batch(void)
{
    unsigned int done = 0;
    mmu_update_t updates[3] = {
        {pte_machine_address(VA(0), 1), entry_of(page[0], PTE_DATA)},
        {machine_of(page[1]) + 3 * sizeof(uint64_t), own_table(1) | LINK},
        {pte_machine_address(VA(1), 1), entry_of(page[1], PTE_DATA)},
    };
    long result = hypercall_mmu_update(updates, ARRAY_SIZE(updates), &done, DOMID_SELF);
    return done == 1 ? result : 0;
}

static long pin_as_another(void)
{
    return pin(1, page[1]);
}

static long unpin_half(void)
{
    return unpin(page[1]);
}

static long exchange_half(void)
{
    return exchange(mfn_of(page[1]), pfn_of(page[1]), 0);
}

static const struct {
    long (*act)(void);
    const char *got;
} halves[] = {
    {map_writable, "a half-validated table mapped writable"},
    {update_entry, "an entry of a half-validated table changed"},
    {update_in_batch, "a batch that changed a half-validated table"},
    {pin_as_another, TYPED_TWICE},
    {unpin_half, "a pin dropped that was not held"},
    {exchange_half, "a half-validated table exchanged"},
};
static const char *const half_names[] = {
    "map-writable", "update-entry", "update-in-batch", "pin-as-L1", "unpin", "exchange",
};

static long in_between;
static long (*volatile to_be_done)(void);

/* In the middle of a long operation, if the hypervisor lets events in there; else right behind it. */
static void act_in_between(evtchn_port_t port)
{
    (void)port;
    if (to_be_done)
        in_between = to_be_done();
    to_be_done = NULL;
}

/* page[1] becomes an L2 that refers to all pages behind it, or an L3 to as many L2s that are pinned. */
static void make_tree(unsigned int level)
{
    for (unsigned int i = 2; i < PAGES; i++) {
        ((uint64_t *)page[1])[i] = entry_of(page[i], LINK);
        read_only(page[i]);
        if (level == 3)
            pin(2, page[i]);
    }
    read_only(page[1]);
}

static void drop_tree(unsigned int level)
{
    for (unsigned int i = 2; i < PAGES && level == 3; i++)
        unpin(page[i]);
}

/* An event is pending when an operation on page[1] begins, which makes the hypervisor stop in its middle. */
static int interrupted(unsigned int command, long (*act)(void))
{
    evtchn_port_t port = (evtchn_port_t)event_bind_ipi();
    struct evtchn_close close = {.port = port};
    event_handle(port, act_in_between);
    to_be_done = act;
    needed_moment = true;
    events_off();
    event_send(port);
    own_vcpu->evtchn_upcall_mask = 0;    /* pending and not masked: the next entry is preempted as soon as it may be */
    int result = extended(command, mfn_of(page[1]), 0);
    events_on();
    hypercall_event_channel_op(EVTCHNOP_close, &close);
    return result;
}

static verdict_t verdict_in_between(const char *got)
{
    return to_be_done ? broke_out("no event, though one was pending") : refused(in_between, got);
}

static verdict_t preempted_validation(unsigned int level)
{
    make_tree(level);
    int result = interrupted(MMUEXT_PIN_L1_TABLE + level - 1, map_writable);
    if (!result)
        unpin(page[1]);
    drop_tree(level);
    return verdict_in_between(halves[0].got);
}

static verdict_t use_of_half_validated(unsigned int number)
{
    make_tree(2);
    int result = interrupted(MMUEXT_PIN_L2_TABLE, halves[number].act);
    verdict_t verdict = verdict_in_between(halves[number].got);
    if (result || unpin(page[1]))
        return broke_out("a validation that does not end as it should");
    return verdict;
}

/* The way back stops in its middle, too. */
static verdict_t preempted_unpin(unsigned int level)
{
    make_tree(level);
    pin(level, page[1]);
    interrupted(MMUEXT_UNPIN_TABLE, map_writable);
    drop_tree(level);
    return verdict_in_between("a table on its way out mapped writable");
}

/* The last entry is bad: what came before it is undone, with an event in the middle of that. */
static verdict_t preempted_then_refused(unsigned int level)
{
    make_tree(level);
    writable(page[1]);
    ((uint64_t *)page[1])[PAGES] = entry_of(page[0], LINK);  /* page[0] is mapped writable */
    read_only(page[1]);
    int result = interrupted(MMUEXT_PIN_L1_TABLE + level - 1, map_writable);
    drop_tree(level);
    if (to_be_done || in_between >= 0)
        return verdict_in_between(halves[0].got);
    return refused(result, "a table with a writable table in it");
}

/* One batch links a table that takes long to validate, and goes on with the next request. */
static verdict_t preempted_batch(unsigned int level)
{
    (void)level;
    unsigned int done = 0;
    uint64_t link = pte_machine_address(NEW_TOP, 3), flags = sizeof(long) == 8 ? LINK : PTE_PRESENT;
    mmu_update_t updates[3] = {
        {link, entry_of(page[1], flags)},
        {pte_machine_address(VA(1), 1), entry_of(page[1], PTE_DATA)},
        {link, 0},
    };
    evtchn_port_t port = (evtchn_port_t)event_bind_ipi();
    struct evtchn_close close = {.port = port};
    make_tree(2);
    event_handle(port, act_in_between);
    to_be_done = map_writable;
    events_off();
    event_send(port);
    own_vcpu->evtchn_upcall_mask = 0;
    long result = hypercall_mmu_update(updates, ARRAY_SIZE(updates), &done, DOMID_SELF);
    events_on();
    hypercall_event_channel_op(EVTCHNOP_close, &close);
    verdict_t verdict = verdict_in_between(halves[0].got);
    if (verdict.kind == REFUSED)
        verdict = done == 1 ? refused(result, "a linked table mapped writable") : broke_out("a wrong count of requests");
    mmu_set(link, 0);
    return verdict;
}

/* --- the balloon, exchange ---------------------------------------------------------------------------------------- */

/* A linked table goes back to the hypervisor: it stays a table as long as it is linked. */
static verdict_t give_back_linked(unsigned int level)
{
    (void)level;
    read_only(page[1]);
    mmu_set(new_region_entry(), entry_of(page[1], LINK));
    give_back(page[1]);
    verdict_t verdict = refused(writable(page[1]), "a linked table mapped writable");
    pte_write(VA(1), 0);
    mmu_set(new_region_entry(), 0);
    return take_again(page[1]) ? verdict : broke_out("no page for the one given back");
}

/* A frame that is mapped goes back: it is still ours until it is unmapped, and then no more. */
static verdict_t give_back_mapped(unsigned int level)
{
    (void)level;
    uint64_t entry = entry_of(page[1], PTE_DATA);
    give_back(page[1]);
    pte_write(VA(1), 0);
    verdict_t verdict = refused(pte_write(VA(1), entry), "a frame that was given back");
    return take_again(page[1]) ? verdict : broke_out("no page for the one given back");
}

static verdict_t pin_given_back(unsigned int level)
{
    unsigned long frame = mfn_of(page[1]);
    pte_write(VA(1), 0);
    give_back(page[1]);
    verdict_t verdict = refused(extended(MMUEXT_PIN_L1_TABLE + level - 1, frame, 0), "a frame that was given back");
    return take_again(page[1]) ? verdict : broke_out("no page for the one given back");
}

/* A pinned table goes back: the pin holds it. */
static verdict_t give_back_pinned(unsigned int level)
{
    (void)level;
    read_only(page[1]);
    pin(1, page[1]);
    give_back(page[1]);
    verdict_t verdict = refused(writable(page[1]), "a pinned table mapped writable");
    unpin(page[1]);
    pte_write(VA(1), 0);
    return take_again(page[1]) ? verdict : broke_out("no page for the one given back");
}

static long exchange(xen_pfn_t frame, xen_pfn_t pfn, unsigned long order)
{
    struct xen_memory_exchange swap = {
        .in = {.nr_extents = 1, .extent_order = (unsigned int)order, .domid = DOMID_SELF},
        .out = {.nr_extents = 1, .extent_order = (unsigned int)order, .domid = DOMID_SELF},
    };
    set_xen_guest_handle(swap.in.extent_start, &frame);
    set_xen_guest_handle(swap.out.extent_start, &pfn);
    return hypercall_memory_op(XENMEM_exchange, &swap);
}

static verdict_t exchange_mapped(unsigned int level)
{
    (void)level;
    return refused(exchange(mfn_of(page[1]), pfn_of(page[1]), 0), "a mapped frame exchanged");
}

static verdict_t exchange_table(unsigned int level)
{
    return refused(exchange(own_table(level) >> 12, pfn_of(page[1]), 0), "a page table exchanged");
}

static verdict_t exchange_pinned(unsigned int level)
{
    (void)level;
    read_only(page[1]);
    pin(1, page[1]);
    pte_write(VA(1), 0);
    verdict_t verdict = refused(exchange(mfn_of(page[1]), pfn_of(page[1]), 0), "a pinned table exchanged");
    read_only(page[1]);
    unpin(page[1]);
    return verdict;
}

/* --- tables in use ------------------------------------------------------------------------------------------------ */

#ifdef __x86_64__
/* A second top table is loaded, loses its pin and is given back: it is in use until another is loaded. */
static verdict_t free_loaded_table(unsigned int level)
{
    (void)level;
    unsigned long first = mfn_of((void *)start_info->pt_base), frame = mfn_of(page[1]);
    ((uint64_t *)page[1])[511] = ((uint64_t *)start_info->pt_base)[511];
    read_only(page[1]);
    pin(4, page[1]);
    extended(MMUEXT_NEW_BASEPTR, frame, 0);
    unpin(page[1]);
    give_back(page[1]);
    verdict_t verdict = refused(writable(page[1]), "the loaded top table mapped writable");
    extended(MMUEXT_NEW_BASEPTR, first, 0);
    pte_write(VA(1), 0);
    return take_again(page[1]) ? verdict : broke_out("no page for the one given back");
}

/* An L4 table of user mode's, like the runtime's. */
static void make_user_top(uint64_t *table)
{
    table[0] = ((uint64_t *)start_info->pt_base)[0];
    read_only(table);
    pin(4, table);
}

static verdict_t free_user_table(unsigned int level)
{
    (void)level;
    uint64_t *other = page_allocate();   /* which stays loaded afterwards */
    make_user_top(other);
    make_user_top((uint64_t *)page[1]);
    extended(MMUEXT_NEW_USER_BASEPTR, mfn_of(page[1]), 0);
    unpin(page[1]);
    verdict_t verdict = refused(writable(page[1]), "the loaded user table mapped writable");
    extended(MMUEXT_NEW_USER_BASEPTR, mfn_of(other), 0);
    return verdict;
}
#endif

static verdict_t unpin_loaded_table(unsigned int level)
{
    (void)level;
    unsigned long top = mfn_of((void *)start_info->pt_base);
    int unpinned = extended(MMUEXT_UNPIN_TABLE, top, 0);
    verdict_t verdict = refused(pte_write(VA(0), (uint64_t)top << 12 | PTE_DATA),
                                "the loaded top table mapped writable");
    if (!unpinned)
        extended(MMUEXT_PIN_L1_TABLE + LEVELS - 1, top, 0);
    return verdict;
}

static const char *const mode_names[] = {"the-kernel", "user-mode"};

static verdict_t load_data_page(unsigned int level)
{
    return refused(extended(level ? MMUEXT_NEW_USER_BASEPTR : MMUEXT_NEW_BASEPTR, mfn_of(page[1]), 0),
                   "a data page loaded as the top table");
}

static verdict_t load_lower_table(unsigned int level)
{
    return refused(extended(MMUEXT_NEW_BASEPTR, own_table(level) >> 12, 0), "a lower table loaded as the top one");
}

static verdict_t load_by_cr3(unsigned int level)
{
    (void)level;
    TRY("mov %[value], %%cr3", : [value] "r"(xen_pfn_to_cr3(mfn_of(page[1]))) : "memory");
    return trapped("a data page loaded as the top table");
}

/* --- what the TLB remembers --------------------------------------------------------------------------------------- */

/* Write once, so that the processor knows the page as writable; take the right away without a word to it; make a table
 * of it; and write again. */
static verdict_t stale_then_pin(unsigned int level)
{
    volatile uint64_t *entry = (volatile uint64_t *)page[1];
    entry[0] = 0;
    hypercall_update_va_mapping(VA(1), entry_of(page[1], READ_ONLY), 0);
    if (pin(level, page[1]))
        return broke_out("no empty table pinned, which the guest may do");
    try_store(&entry[1], (unsigned long)own_table(1) | PTE_DATA);
    verdict_t verdict = trapped("a page table written through an old translation");
    unpin(page[1]);
    return verdict;
}

static verdict_t stale_then_link(unsigned int level)
{
    (void)level;
    volatile unsigned long *entry = (volatile unsigned long *)page[1];
    mmu_update_t updates[2] = {
        {pte_machine_address(VA(1), 1), 0},
        {new_region_entry(), entry_of(page[1], LINK)},
    };
    entry[0] = 0;
    hypercall_mmu_update(updates, 2, NULL, DOMID_SELF);
    try_store(&entry[1], (unsigned long)own_table(1) | PTE_DATA);
    return trapped("a page table written through an old translation");
}

/* The table above goes away, with translations made through it. */
static verdict_t stale_through_unlinked(unsigned int level)
{
    (void)level;
    volatile uint64_t *seen_there = (volatile uint64_t *)(NEW_REGION + PAGE_SIZE);
    ((uint64_t *)page[1])[1] = entry_of(page[2], PTE_DATA);
    read_only(page[1]);
    read_only(page[2]);
    mmu_set(new_region_entry(), entry_of(page[1], LINK));
    seen_there[0] = 0;
    mmu_set(new_region_entry(), 0);
    pin(1, page[2]);
    try_store(&seen_there[1], (unsigned long)own_table(1) | PTE_DATA);
    verdict_t verdict = trapped("a page table written through an old translation");
    unpin(page[2]);
    return verdict;
}

/* The same through a second, writable mapping in a region of its own, taken away by a store. */
static verdict_t stale_after_direct_write(unsigned int level)
{
    (void)level;
    volatile uint64_t *entry = (volatile uint64_t *)page[1];
    entry[0] = 0;
    *pte_pointer(VA(1), 1) = 0;
    pin(1, page[1]);
    try_store(&entry[1], (unsigned long)own_table(1) | PTE_DATA);
    verdict_t verdict = trapped("a page table written through an old translation");
    unpin(page[1]);
    return verdict;
}

/* A frame given back and taken by us again as a table: what the processor knew of it is gone. */
static verdict_t stale_after_balloon(unsigned int level)
{
    (void)level;
    volatile uint64_t *entry = (volatile uint64_t *)page[1];
    entry[0] = 0;
    hypercall_update_va_mapping(VA(1), 0, 0);
    give_back(page[1]);
    xen_pfn_t frame = pfn_of(page[1]);
    if (reservation(XENMEM_populate_physmap, &frame) != 1)
        return broke_out("no page for the one given back");
    p2m[pfn_of(page[1])] = frame;
    extended(MMUEXT_PIN_L1_TABLE, frame, 0);
    try_store(&entry[1], (unsigned long)own_table(1) | PTE_DATA);
    verdict_t verdict = trapped("a page table written through an old translation");
    extended(MMUEXT_UNPIN_TABLE, frame, 0);
    return verdict;
}

const struct attempt type_attempts[] = {
    {"pin-writable-page-as-L%u", NULL, pin_writable, 1, LEVELS, NULL},
    {"pin-L%u-as-another-level", "XSA-299", pin_as_other_level, 1, LEVELS, NULL},
    {"pin-twice", "XSA-310", pin_twice, 0, 0, NULL},
    {"unpin-L%u-that-is-not-pinned", "XSA-310", unpin_unpinned, 1, LEVELS - 1, NULL},
    {"writable-while-pinned-as-L%u", NULL, writable_while_pinned, 1, sizeof(long) == 8 ? 4 : 2, NULL},
    {"writable-after-unpin-of-linked-L1", NULL, writable_after_unpin, 0, 0, NULL},
    {"failed-validation-of-L%u", "XSA-299", failed_promotion, 2, sizeof(long) == 8 ? 4 : 2, NULL},
    {"preempted-validation-of-L%u", "XSA-290, 309", preempted_validation, 2, sizeof(long) == 8 ? 3 : 2, NULL},
    {"half-validated-L2-%s", "XSA-290, 309", use_of_half_validated, 0, ARRAY_SIZE(halves) - 1, half_names},
    {"preempted-unpin-of-L%u", "XSA-290", preempted_unpin, 2, sizeof(long) == 8 ? 3 : 2, NULL},
    {"preempted-validation-of-bad-L%u", "XSA-299", preempted_then_refused, 2, sizeof(long) == 8 ? 3 : 2, NULL},
    {"preempted-batch", "XSA-309", preempted_batch, 0, 0, NULL},
    {"give-back-linked-L1", "XSA-214", give_back_linked, 0, 0, NULL},
    {"give-back-mapped-page", NULL, give_back_mapped, 0, 0, NULL},
    {"give-back-then-pin-as-L%u", NULL, pin_given_back, 1, LEVELS, NULL},
    {"give-back-pinned-L1", "XSA-214", give_back_pinned, 0, 0, NULL},
    {"exchange-mapped-page", NULL, exchange_mapped, 0, 0, NULL},
    {"exchange-L%u", "XSA-214", exchange_table, 1, LEVELS, NULL},
    {"exchange-pinned-L1", "XSA-214", exchange_pinned, 0, 0, NULL},
#ifdef __x86_64__
    {"free-loaded-table", NULL, free_loaded_table, 0, 0, NULL},
    {"unpin-loaded-user-table", NULL, free_user_table, 0, 0, NULL},
    {"load-data-page-for-%s", NULL, load_data_page, 0, 1, mode_names},
#else
    {"load-data-page-for-%s", NULL, load_data_page, 0, 0, mode_names},
#endif
    {"unpin-loaded-top-table", NULL, unpin_loaded_table, 0, 0, NULL},
    {"load-L%u-as-top-table", NULL, load_lower_table, 1, LEVELS - 1, NULL},
    {"load-data-page-by-mov-to-CR3", NULL, load_by_cr3, 0, 0, NULL},
    {"stale-translation-then-pin-as-L%u", "XSA-401", stale_then_pin, 1, sizeof(long) == 8 ? 4 : 2, NULL},
    {"stale-translation-then-link", "XSA-401", stale_then_link, 0, 0, NULL},
    {"stale-translation-through-unlinked-L1", "XSA-286", stale_through_unlinked, 0, 0, NULL},
    {"stale-translation-after-direct-write", "XSA-401", stale_after_direct_write, 0, 0, NULL},
    {"stale-translation-of-given-back-page", "XSA-408", stale_after_balloon, 0, 0, NULL},
    {0},
};
