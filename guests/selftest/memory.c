/* Memory reservations and page tables: what may be mapped how, and what reading back shows. */
#include "selftest.h"

#define VA(page) ((unsigned long)scratch[page])

/* A machine address for which no domain has any right, beyond what the processor can address; and a frame number that
 * is no RAM, in a word of either size. */
#define NOBODYS (1ULL << 46)
#define NO_FRAME (1UL << 30)

static uint64_t own_pte(unsigned int page, uint64_t flags)
{
    return (uint64_t)mfn_of(scratch[page]) << 12 | flags;
}

static void restore(unsigned int page)
{
    pte_write(VA(page), own_pte(page, PTE_DATA));
}

static long reservation(unsigned int command, unsigned long frames, xen_pfn_t *list, domid_t domain)
{
    struct xen_memory_reservation change = {.nr_extents = frames, .domid = domain};
    set_xen_guest_handle(change.extent_start, list);
    return hypercall_memory_op(command, &change);
}

/* Give a page back, and take another for the same PFN. */
static void test_balloon(void)
{
    domid_t self = DOMID_SELF;
    xen_pfn_t frame = mfn_of(scratch[0]);
    unsigned long pfn = pfn_of(scratch[0]);
    pte_write(VA(0), 0);
    is(reservation(XENMEM_decrease_reservation, 1, &frame, DOMID_SELF), 1, "decrease_reservation of one page");
    check(m2p[frame] != pfn, "... M2P forgets it");
    is(hypercall_memory_op(XENMEM_current_reservation, &self), (long)start_info->nr_pages - 1, "... one page less");
    is(pte_write(VA(0), (uint64_t)frame << 12 | PTE_DATA) < 0, 1, "... the frame can no longer be mapped");
    frame = pfn;
    is(reservation(XENMEM_populate_physmap, 1, &frame, DOMID_SELF), 1, "populate_physmap of one page");
    p2m[pfn] = frame;
    is64(m2p[frame], pfn, "... M2P knows it");
    is(pte_write(VA(0), (uint64_t)frame << 12 | PTE_DATA), 0, "... it can be mapped");
    is(hypercall_memory_op(XENMEM_current_reservation, &self), (long)start_info->nr_pages,
       "... as many pages as before");
}

void test_memory_op(void)
{
    domid_t self = DOMID_SELF, nobody = 0x1234;
    struct xen_machphys_mapping mapping = {0};
    xen_pfn_t frames[1] = {0};
    check(hypercall_memory_op(XENMEM_maximum_ram_page, NULL) > 0, "maximum_ram_page");
    check(hypercall_memory_op(XENMEM_maximum_reservation, &self) >= (long)start_info->nr_pages ||
          hypercall_memory_op(XENMEM_maximum_reservation, &self) < 0, "maximum_reservation is no less than nr_pages");
    is(hypercall_memory_op(XENMEM_current_reservation, NOWHERE), -XEN_EFAULT,
       "current_reservation of a domain from nowhere");
    is(hypercall_memory_op(XENMEM_current_reservation, &nobody), -XEN_ESRCH, "current_reservation of no domain");
    is(hypercall_memory_op(XENMEM_machphys_mapping, &mapping), 0, "machphys_mapping");
    check(mapping.v_start >= MACH2PHYS_VIRT_START && (sizeof(long) == 4 || mapping.v_start == MACH2PHYS_VIRT_START),
          "... begins where the headers say, or above it on 32 bits");
    check(mapping.v_end > mapping.v_start && mapping.max_mfn >= p2m[0], "... and covers our frames");
    is(hypercall_memory_op(XENMEM_machphys_mapping, NOWHERE), -XEN_EFAULT, "machphys_mapping to nowhere");
    is(hypercall_memory_op(63, NULL), -XEN_ENOSYS, "unknown command");
    is(hypercall_memory_op(XENMEM_populate_physmap, NOWHERE), 0, "populate_physmap from nowhere populates nothing");
    is(reservation(XENMEM_populate_physmap, 1, NOWHERE, DOMID_SELF), 0, "populate_physmap of a list nowhere too");
    is(reservation(XENMEM_decrease_reservation, 1, frames, 0x1234), 0,
       "decrease_reservation of no domain does nothing");
    frames[0] = NO_FRAME;
    is(reservation(XENMEM_decrease_reservation, 1, frames, DOMID_SELF), 0, "decrease_reservation of no frame");
    test_balloon();
}

static void test_update_va_mapping(void)
{
    unsigned long hole = 0x70000000;     /* no tables there */
    is(pte_write(VA(0), own_pte(1, PTE_DATA)), 0, "update_va_mapping: another frame of ours");
    *(volatile uint8_t *)scratch[0] = 0x5a;
    is(*(volatile uint8_t *)scratch[1], 0x5a, "... is seen at both addresses");
    is64(pte_read(VA(0)) & PTE_FRAME, (uint64_t)mfn_of(scratch[1]) << 12, "... and in the table");
    restore(0);
    is(hypercall_update_va_mapping(hole, own_pte(0, PTE_DATA), 0), -XEN_EINVAL,
       "update_va_mapping: where there is no table");
    is(hypercall_update_va_mapping((unsigned long)m2p, own_pte(0, PTE_DATA), 0), -XEN_EINVAL,
       "update_va_mapping: in the hypervisor's slot");
    is(hypercall_update_va_mapping(VA(0), own_pte(0, PTE_DATA), UVMF_TLB_FLUSH | UVMF_ALL), 0,
       "update_va_mapping: flush all");
    is(hypercall_update_va_mapping(VA(0), own_pte(0, PTE_DATA), 3), 0, "update_va_mapping: flush type 3 is none");
    uint64_t table = pte_machine_address(VA(0), 1) & PTE_FRAME;
    uint64_t top = (uint64_t)mfn_of((void *)start_info->pt_base) << 12;
    is(pte_write(VA(0), table | PTE_DATA), -XEN_EBUSY, "update_va_mapping: an L1 table, writable");
    is(pte_write(VA(0), top | PTE_DATA), -XEN_EBUSY, "update_va_mapping: the top table, writable");
    is(pte_write(VA(0), table | (PTE_DATA & ~PTE_WRITABLE)), 0, "update_va_mapping: an L1 table, read-only");
    restore(0);
    is(pte_write(VA(0), start_info->shared_info | PTE_DATA), 0, "update_va_mapping: shared_info once more");
    restore(0);
    is(pte_write(VA(0), NOBODYS | PTE_DATA), -XEN_EPERM,
       "update_va_mapping: a frame that is nobody's");
    is(pte_write(VA(0), own_pte(0, PTE_DATA) | 1ULL << 55), 0, "update_va_mapping: bit 55 is available");
    is(pte_write(VA(0), 0x1bd5b7dde000), 0, "update_va_mapping: anything may be in an entry that is not present");
    restore(0);
    is(hypercall_raw(__HYPERVISOR_update_va_mapping_otherdomain, VA(0), 0, 0, 0, 0x1234) < 0, 1,
       "update_va_mapping_otherdomain: of no domain");
}

/* What Xen and the processor change in an entry. */
static void test_entry_bits(void)
{
    const uint64_t plain = PTE_PRESENT | PTE_WRITABLE | PTE_NX, shown = PTE_PRESENT | PTE_WRITABLE | PTE_USER | PTE_NX;
    pte_write(VA(0), own_pte(0, plain));
#ifdef __x86_64__
    is64(pte_read(VA(0)) & PTE_USER, PTE_USER, "a kernel page's entry has the user bit set by Xen");
#else
    is64(pte_read(VA(0)) & PTE_USER, 0, "a kernel page's entry has no user bit");
#endif
    is64(pte_read(VA(0)) & shown & ~PTE_USER, plain, "present, writable and NX are as asked for");
    is64(pte_read(VA(0)) & (PTE_ACCESSED | PTE_DIRTY), 0, "a new entry is neither accessed nor dirty");
    (void)*(volatile uint8_t *)scratch[0];
    is64(pte_read(VA(0)) & (PTE_ACCESSED | PTE_DIRTY), PTE_ACCESSED, "a load sets accessed");
    *(volatile uint8_t *)scratch[0] = 1;
    is64(pte_read(VA(0)) & (PTE_ACCESSED | PTE_DIRTY), PTE_ACCESSED | PTE_DIRTY, "a store sets dirty");
    uint64_t machine = pte_machine_address(VA(0), 1);
    is(mmu_set(machine | MMU_PT_UPDATE_PRESERVE_AD, own_pte(0, plain)), 0, "mmu_update: preserve A and D");
    is64(pte_read(VA(0)) & (PTE_ACCESSED | PTE_DIRTY), PTE_ACCESSED | PTE_DIRTY, "... they are still set");
    is(mmu_set(machine | MMU_NORMAL_PT_UPDATE, own_pte(0, plain)), 0, "mmu_update: a normal update");
    is64(pte_read(VA(0)) & (PTE_ACCESSED | PTE_DIRTY), 0, "... clears them");
    pte_write(VA(0), own_pte(0, plain | 0xe00));
    is64(pte_read(VA(0)) & 0xe00, 0xe00, "the three available bits are kept");
#ifdef __x86_64__
    pte_write(VA(0), own_pte(0, plain | 0x100));
    check(pte_read(VA(0)) & PTE_PRESENT, "the global bit in a kernel entry is no error");
#endif
    restore(0);
}

static void test_mmu_update(void)
{
    uint64_t machine = pte_machine_address(VA(0), 1), data = (uint64_t)mfn_of(scratch[1]) << 12;
    mmu_update_t requests[3] = {
        {machine, own_pte(0, PTE_DATA)}, {machine, own_pte(0, PTE_DATA)}, {machine, NOBODYS | PTE_DATA},
    };
    unsigned int done = 99;
    is(hypercall_mmu_update(requests, 3, &done, DOMID_SELF), -XEN_EPERM, "mmu_update: the third of three is refused");
    is((long)done, 2, "... two were done");
    is(hypercall_mmu_update(NOWHERE, 1, NULL, DOMID_SELF), -XEN_EFAULT, "mmu_update: from nowhere");
    is(hypercall_mmu_update(requests, 0, &done, DOMID_SELF), 0, "mmu_update: of none");
    is((long)done, 0, "... none was done");
    is(hypercall_mmu_update(requests, 1, NULL, 0x1234), -XEN_ESRCH, "mmu_update: for no domain");
    is(hypercall_mmu_update(requests, 1, NOWHERE, DOMID_SELF), 0, "mmu_update: done count to nowhere is no error");
    is(mmu_set(data | MMU_NORMAL_PT_UPDATE, 0x1122334455667788), 0, "mmu_update: in a data page of ours");
    is64(*(volatile uint64_t *)scratch[1], 0x1122334455667788, "... is a plain store");
    is(mmu_set(NOBODYS, 0), -XEN_EINVAL, "mmu_update: in no frame");
    is(mmu_set(start_info->shared_info, 0), 0, "mmu_update: in shared_info is a plain store too");
    unsigned long frame = mfn_of(scratch[1]), pfn = m2p[frame];
    is(mmu_set((uint64_t)frame << 12 | MMU_MACHPHYS_UPDATE, 0x4711), 0, "mmu_update: an M2P entry of ours");
    is64(m2p[frame], 0x4711, "... is changed");
    mmu_set((uint64_t)frame << 12 | MMU_MACHPHYS_UPDATE, pfn);
    is(mmu_set(NOBODYS | MMU_MACHPHYS_UPDATE, 0), -XEN_EINVAL, "mmu_update: the M2P entry of no frame");
    is(mmu_set(pte_machine_address(VA(0), 2), *pte_pointer(VA(0), 2) | PTE_SUPERPAGE), -XEN_EINVAL,
       "mmu_update: a superpage in an L2 table");
    uint64_t top = (uint64_t)mfn_of((void *)start_info->pt_base) << 12;
#ifdef __x86_64__
    is(mmu_set(top | 256 * 8, 0), -XEN_EINVAL, "mmu_update: the hypervisor's slot in the L4 table");
    is(mmu_set(top | 300 * 8, own_pte(0, PTE_PRESENT | PTE_WRITABLE)), -XEN_EINVAL,
       "mmu_update: a data page as an L3 table");
#else
    is(mmu_set(top | 2 * 8, own_pte(0, PTE_PRESENT)), -XEN_EINVAL, "mmu_update: a data page as an L2 table");
#endif
}

/* Stores to page-table entries, which Xen does in the guest's stead ("writable page tables"). */
static void test_writable_page_tables(void)
{
    volatile uint64_t *pte = pte_pointer(VA(0), 1);
    uint64_t old = *pte, new = own_pte(1, PTE_DATA);
#ifdef __x86_64__
    PROBE("movq %%rdx, (%%rdi)", : "D"(pte), "d"(new) : "memory");
    check_no_trap("a store to an entry of our own table");
    is64(*pte & PTE_FRAME, new & PTE_FRAME, "... is done");
    PROBE("xchgq %%rdx, (%%rdi)", : "D"(pte), "d"(old) : "memory");
    check_no_trap("xchg with an entry");
    is64(*pte & PTE_FRAME, old & PTE_FRAME, "... is done");
    PROBE("lock cmpxchgq %%rdx, (%%rdi)", : "D"(pte), "d"(new), "a"(*pte) : "memory");
    check_no_trap("cmpxchg with an entry");
    is64(*pte & PTE_FRAME, new & PTE_FRAME, "... is done");
    PROBE("movq %%rdx, (%%rdi)", : "D"(pte), "d"(NOBODYS | PTE_DATA) : "memory");
    check_trap(14, 3, 0, "a store that maps nobody's frame");
    is64(record.cr2, (unsigned long)pte, "... CR2 is the entry's address");
    PROBE("movq %%rdx, (%%rdi)", : "D"(pte_pointer(VA(0), 2)), "d"(0) : "memory");
    check_trap(14, 3, 0, "a store to an L2 table");
#else
    PROBE("lock cmpxchg8b (%%edi)", : "D"(pte), "A"(old), "b"((uint32_t)new), "c"((uint32_t)(new >> 32)) : "memory");
    check_no_trap("cmpxchg8b with an entry of our own table");
    is64(*pte & PTE_FRAME, new & PTE_FRAME, "... is done");
#endif
    restore(0);
}

void test_page_tables(void)
{
    test_update_va_mapping();
    test_entry_bits();
    test_mmu_update();
    test_writable_page_tables();
}

static long extended(unsigned int command, unsigned long first, unsigned long second)
{
    mmuext_op_t operation = {.cmd = command, .arg1.linear_addr = first, .arg2.src_mfn = second};
    return hypercall_mmuext_op(&operation, 1, NULL, DOMID_SELF);
}

static void test_pinning(void)
{
    unsigned long frame = mfn_of(scratch[0]);
    memset(scratch[0], 0, PAGE_SIZE);
    is(extended(MMUEXT_PIN_L1_TABLE, frame, 0), -XEN_EINVAL, "pin: a page that is mapped writable");
    pte_write(VA(0), own_pte(0, PTE_PRESENT | PTE_NX));
    is(extended(MMUEXT_PIN_L1_TABLE, frame, 0), 0, "pin: an empty L1 table, mapped read-only");
    is(extended(MMUEXT_PIN_L1_TABLE, frame, 0), -XEN_EINVAL, "pin: once more");
    is(extended(MMUEXT_PIN_L2_TABLE, frame, 0), -XEN_EINVAL, "pin: the same as an L2 table");
    is(pte_write(VA(0), own_pte(0, PTE_DATA)), -XEN_EBUSY, "a pinned table cannot be mapped writable");
    is(extended(MMUEXT_UNPIN_TABLE, frame, 0), 0, "unpin");
    is(extended(MMUEXT_UNPIN_TABLE, frame, 0), -XEN_EINVAL, "unpin: once more");
    is(pte_write(VA(0), own_pte(0, PTE_DATA)), 0, "... and now it can");
    *(volatile uint64_t *)scratch[0] = NOBODYS | PTE_DATA;
    pte_write(VA(0), own_pte(0, PTE_PRESENT | PTE_NX));
    is(extended(MMUEXT_PIN_L1_TABLE, frame, 0) < 0, 1, "pin: an L1 table that maps nobody's frame");
    restore(0);
    is(extended(MMUEXT_PIN_L1_TABLE, NO_FRAME, 0), -XEN_EINVAL, "pin: no frame");
}

static void test_page_operations(void)
{
    memset(scratch[0], 0x77, PAGE_SIZE);
    is(extended(MMUEXT_COPY_PAGE, mfn_of(scratch[1]), mfn_of(scratch[0])), 0, "copy_page");
    check(!memcmp(scratch[0], scratch[1], PAGE_SIZE), "... copies");
    is(extended(MMUEXT_CLEAR_PAGE, mfn_of(scratch[1]), 0), 0, "clear_page");
    unsigned int set = 0;
    for (unsigned int i = 0; i < PAGE_SIZE; i++)
        set += ((volatile uint8_t *)scratch[1])[i] != 0;
    is((long)set, 0, "... clears");
    is(extended(MMUEXT_CLEAR_PAGE, mfn_of((void *)start_info->pt_base), 0), -XEN_EINVAL, "clear_page: a page table");
}

#ifdef __x86_64__
/* A second top-level table with the same kernel half: switch to it and back. */
static void test_new_base(void)
{
    uint64_t *top = (uint64_t *)start_info->pt_base;
    unsigned long frame = mfn_of(scratch[2]), cr3;
    memset(scratch[2], 0, PAGE_SIZE);
    ((uint64_t *)scratch[2])[511] = top[511];
    pte_write(VA(2), own_pte(2, PTE_PRESENT | PTE_NX));
    is(extended(MMUEXT_PIN_L4_TABLE, frame, 0), 0, "pin: an L4 table with the kernel's entry");
    is(extended(MMUEXT_NEW_BASEPTR, frame, 0), 0, "new_baseptr");
    PROBE("mov %%cr3, %%rax", "=a"(cr3));
    is64(cr3, (uint64_t)frame << 12, "... CR3 reads as the new base");
    check(((volatile uint64_t *)scratch[2])[256], "... the hypervisor's slot is filled in");
    is(extended(MMUEXT_NEW_BASEPTR, mfn_of(top), 0), 0, "new_baseptr: back");
    is(extended(MMUEXT_UNPIN_TABLE, frame, 0), 0, "unpin the L4 table");
    restore(2);
    memset(scratch[2], 0, PAGE_SIZE);
    is(extended(MMUEXT_NEW_BASEPTR, mfn_of(scratch[3]), 0), -XEN_EINVAL, "new_baseptr: a data page");
    is(extended(MMUEXT_NEW_USER_BASEPTR, mfn_of(scratch[3]), 0), -XEN_EINVAL, "new_user_baseptr: a data page");
}
#endif

void test_mmuext(void)
{
    mmuext_op_t operations[2] = {{.cmd = MMUEXT_TLB_FLUSH_LOCAL}, {.cmd = 99}};
    unsigned int done = 99;
    is(hypercall_mmuext_op(operations, 2, &done, DOMID_SELF), -XEN_ENOSYS, "an unknown command stops the list");
    is((long)done, 1, "... one was done");
    is(hypercall_mmuext_op(NOWHERE, 1, NULL, DOMID_SELF), -XEN_EFAULT, "from nowhere");
    is(hypercall_mmuext_op(operations, 1, NULL, 0x1234), -XEN_ESRCH, "for no domain");
    is(extended(MMUEXT_TLB_FLUSH_LOCAL, 0, 0), 0, "tlb_flush_local");
    is(extended(MMUEXT_TLB_FLUSH_ALL, 0, 0), 0, "tlb_flush_all");
    is(extended(MMUEXT_INVLPG_LOCAL, VA(0), 0), 0, "invlpg_local");
    is(extended(MMUEXT_INVLPG_ALL, VA(0), 0), 0, "invlpg_all");
    is(extended(MMUEXT_TLB_FLUSH_MULTI, 0, (unsigned long)NOWHERE), -XEN_EINVAL, "tlb_flush_multi, vCPUs from nowhere");
    is(extended(MMUEXT_SET_LDT, VA(0) + 8, 1), -XEN_EINVAL, "set_ldt: unaligned");
    is(extended(MMUEXT_SET_LDT, VA(0), 8193), -XEN_EINVAL, "set_ldt: too many entries");
    is(extended(MMUEXT_SET_LDT, 0, 0), 0, "set_ldt: none");
    is(extended(MMUEXT_MARK_SUPER, mfn_of(scratch[0]), 0), -XEN_EOPNOTSUPP, "mark_super");
    test_pinning();
    test_page_operations();
#ifdef __x86_64__
    test_new_base();
#endif
}
