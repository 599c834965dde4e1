/* Page tables of our own making: promotion, references, and what must not be. */
#include "selftest.h"

#define TABLE ((uint64_t *)scratch[6])
#define NEW_REGION (VIRT_BASE + (512UL << 20))  /* an L2 entry nothing uses */

static uint64_t entry_of(const void *page, uint64_t flags)
{
    return (uint64_t)mfn_of(page) << 12 | flags;
}

static void writable(void *page)
{
    pte_write((unsigned long)page, entry_of(page, PTE_DATA));
}

static int read_only(void *page)
{
    return pte_write((unsigned long)page, entry_of(page, PTE_PRESENT | PTE_NX));
}

/* Give the kernel's tables a new L1 table, use it, and take it out again. */
static void test_new_l1(void)
{
    const uint64_t link = entry_of(TABLE, PTE_PRESENT | PTE_WRITABLE | PTE_USER);
    uint64_t l2 = pte_machine_address(NEW_REGION, 2);
    volatile uint8_t *seen = (volatile uint8_t *)(NEW_REGION + 3 * PAGE_SIZE);
    memset(TABLE, 0, PAGE_SIZE);
    TABLE[3] = entry_of(scratch[7], PTE_PRESENT | PTE_WRITABLE | PTE_NX);
    is(mmu_set(l2, link), -XEN_EINVAL, "link an L1 table that is mapped writable");
    is(read_only(TABLE), 0, "map it read-only");
    is(mmu_set(l2, link), 0, "link it now");
    *(volatile uint8_t *)scratch[7] = 0xa5;
    is(*seen, 0xa5, "... its page is seen at the new address");
    *seen = 0x5a;
    is(*(volatile uint8_t *)scratch[7], 0x5a, "... and written");
    is64(pte_read((unsigned long)seen) & (PTE_ACCESSED | PTE_DIRTY), PTE_ACCESSED | PTE_DIRTY,
         "... which its entry shows");
    is64(*pte_pointer(NEW_REGION, 2) & PTE_USER, PTE_USER, "the L2 entry has the user bit");
    is(pte_write((unsigned long)TABLE, entry_of(TABLE, PTE_DATA)), -XEN_EBUSY, "the table cannot be mapped writable");
    is(hypercall_update_va_mapping(NEW_REGION, entry_of(TABLE, PTE_PRESENT | PTE_NX), 0), 0,
       "it may map itself, read-only");
    is(hypercall_update_va_mapping(NEW_REGION, entry_of(TABLE, PTE_DATA), 0), -XEN_EBUSY, "... not writable");
    is(hypercall_update_va_mapping(NEW_REGION, 0, UVMF_INVLPG), 0, "... take that out");
    is(mmu_set(l2 + 8, link), 0, "link the table a second time");
    is(*(volatile uint8_t *)(NEW_REGION + (2UL << 20) + 3 * PAGE_SIZE), 0x5a, "... the page is seen there too");
    is(mmu_set(l2 + 8, 0), 0, "unlink it there");
    is(mmu_set(l2, 0), 0, "unlink it");
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0);
    PROBE("movb (%%" REG_D "), %%al", : "D"(seen) : "eax");
    check_trap(14, 0, 0, "a load there");
    is(pte_write((unsigned long)TABLE, entry_of(TABLE, PTE_DATA)), 0, "the table can be mapped writable again");
    memset(TABLE, 0, PAGE_SIZE);
}

/* Tables that Xen must not take. */
static void test_bad_tables(void)
{
    const uint64_t link = entry_of(TABLE, PTE_PRESENT | PTE_WRITABLE | PTE_USER);
    uint64_t l2 = pte_machine_address(NEW_REGION, 2), own = pte_machine_address((unsigned long)scratch, 1) & PTE_FRAME;
    TABLE[0] = entry_of(TABLE, PTE_DATA);
    read_only(TABLE);
    is(mmu_set(l2, link) < 0, 1, "a table that maps itself writable");
    writable(TABLE);
    TABLE[0] = own | PTE_DATA;
    read_only(TABLE);
    is(mmu_set(l2, link) < 0, 1, "a table that maps another table writable");
    writable(TABLE);
    TABLE[0] = own | PTE_PRESENT | PTE_NX;
    read_only(TABLE);
    is(mmu_set(l2, link), 0, "a table that maps another table read-only is good");
    is(mmu_set(l2, 0), 0, "... unlink it");
    is(mmu_set(l2, own | PTE_PRESENT | PTE_WRITABLE | PTE_USER | PTE_SUPERPAGE), -XEN_EINVAL, "a superpage");
    is(mmu_set(l2, (uint64_t)mfn_of((void *)start_info->pt_base) << 12 | PTE_PRESENT | PTE_USER), -XEN_EINVAL,
       "the top table as an L1 table");
    writable(TABLE);
    memset(TABLE, 0, PAGE_SIZE);
}

/* The processor may keep an old translation until it is told; then it must not. */
static void test_flushes(void)
{
    unsigned long va = (unsigned long)scratch[6];
    uint64_t machine = pte_machine_address(va, 1);
    *(volatile uint8_t *)scratch[6] = 6;
    *(volatile uint8_t *)scratch[7] = 7;
    mmu_set(machine, entry_of(scratch[7], PTE_DATA));
    mmuext(MMUEXT_INVLPG_LOCAL, va);
    is(*(volatile uint8_t *)scratch[6], 7, "mmu_update, then invlpg_local: the new frame is seen");
    mmu_set(machine, entry_of(scratch[6], PTE_DATA));
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0);
    is(*(volatile uint8_t *)scratch[6], 6, "mmu_update, then tlb_flush_local: the old one again");
    mmu_set(machine, entry_of(scratch[7], PTE_DATA));
    hypercall_update_va_mapping((unsigned long)scratch[5], entry_of(scratch[5], PTE_DATA), UVMF_TLB_FLUSH);
    is(*(volatile uint8_t *)scratch[6], 7, "update_va_mapping elsewhere with a flush of all serves too");
    mmu_set(machine, entry_of(scratch[6], PTE_DATA));
    mmuext(MMUEXT_INVLPG_ALL, va);
    is(*(volatile uint8_t *)scratch[6], 6, "invlpg_all");
    pte_write(va, entry_of(scratch[6], PTE_PRESENT | PTE_WRITABLE | PTE_NX));
    *(volatile uint8_t *)scratch[6] = 1;
    is64(pte_read(va) & (PTE_ACCESSED | PTE_DIRTY), PTE_ACCESSED | PTE_DIRTY,
         "accessed and dirty come back behind a flush");
}

#ifdef __x86_64__
/* A top table may map itself read-only ("linear page tables"), where Xen is so built; never writable. */
static void test_top_level(void)
{
    uint64_t top = (uint64_t)mfn_of((void *)start_info->pt_base) << 12;
    int linear = mmu_set(top | 400 * 8, top | PTE_PRESENT | PTE_NX);
    check(!linear || linear == -XEN_EINVAL, "the top table in itself, read-only: taken, or refused as invalid");
    is(mmu_set(top | 400 * 8, 0), 0, "... take it out");
    is(mmu_set(top | 400 * 8, top | PTE_PRESENT | PTE_WRITABLE), -XEN_EINVAL, "the top table in itself, writable");
    is64(((volatile uint64_t *)start_info->pt_base)[511] & PTE_USER, PTE_USER, "an L4 entry has the user bit");
}
#endif

void test_new_tables(void)
{
    test_new_l1();
    test_bad_tables();
    test_flushes();
#ifdef __x86_64__
    test_top_level();
#endif
}
