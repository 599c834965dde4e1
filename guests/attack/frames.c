/* Frames that are not ours: another domain's, the hypervisor's, none at all. */
#include "attack.h"
#include <xen/grant_table.h>

#define SHARED_INFO (start_info->shared_info >> 12)

enum { FOREIGN, HYPERVISORS, BEYOND, LAST_NUMBER };
static const char *const kinds[] = {"of-another", "of-the-hypervisor", "out-of-range", "of-the-last-number"};

/* A frame of each kind that an attempt is made with. */
static unsigned long frame_of(unsigned int kind)
{
    switch (kind) {
    case FOREIGN: return foreign_frame();
    case HYPERVISORS: return m2p_frame();
    case BEYOND: return OUT_OF_RANGE;
    default: return ~0UL;
    }
}

static uint64_t address_of(unsigned int kind)
{
    return (uint64_t)frame_of(kind) << 12 & PTE_FRAME;
}

static verdict_t map(unsigned int kind)
{
    return refused(pte_write(VA(0), address_of(kind) | PTE_DATA), "a frame that is not ours, writable");
}

static verdict_t map_read_only(unsigned int kind)
{
    return refused(pte_write(VA(0), address_of(kind) | READ_ONLY), "a frame that is not ours, to read");
}

static verdict_t map_by_mmu_update(unsigned int kind)
{
    return refused(mmu_set(pte_machine_address(VA(0), 1), address_of(kind) | PTE_DATA), "a frame that is not ours");
}

static verdict_t map_by_new_table(unsigned int kind)
{
    ((uint64_t *)page[1])[3] = address_of(kind) | READ_ONLY;
    read_only(page[1]);
    return refused(mmu_set(new_region_entry(), entry_of(page[1], LINK)), "a frame that is not ours");
}

static verdict_t map_by_direct_write(unsigned int kind)
{
    try_store(pte_pointer(VA(0), 1), (unsigned long)(address_of(kind) | PTE_DATA));
    return trapped("a frame that is not ours");
}

static verdict_t write_by_mmu_update(unsigned int kind)
{
    return refused(mmu_set(address_of(kind) | 8, 0), "a word written in a frame that is not ours");
}

static verdict_t change_m2p(unsigned int kind)
{
    return refused(mmu_set(address_of(kind) | MMU_MACHPHYS_UPDATE, 0), "another's M2P entry changed");
}

static verdict_t link_as_table(unsigned int kind)
{
    return refused(mmu_set(new_region_entry(), address_of(kind) | LINK), "a frame that is not ours as a page table");
}

static verdict_t pin_it(unsigned int kind)
{
    return refused(extended(MMUEXT_PIN_L1_TABLE, frame_of(kind), 0), "a frame that is not ours as a page table");
}

static verdict_t unpin_it(unsigned int kind)
{
    return refused(extended(MMUEXT_UNPIN_TABLE, frame_of(kind), 0), "another's table unpinned");
}

static verdict_t load_it(unsigned int kind)
{
    return refused(extended(MMUEXT_NEW_BASEPTR, frame_of(kind), 0), "a frame that is not ours as the top table");
}

static verdict_t clear_it(unsigned int kind)
{
    return refused(extended(MMUEXT_CLEAR_PAGE, frame_of(kind), 0), "another's frame cleared");
}

static verdict_t copy_from_it(unsigned int kind)
{
    return refused(extended(MMUEXT_COPY_PAGE, mfn_of(page[0]), frame_of(kind)), "what another's frame holds");
}

static verdict_t copy_to_it(unsigned int kind)
{
    return refused(extended(MMUEXT_COPY_PAGE, frame_of(kind), mfn_of(page[0])), "another's frame written over");
}

/* The result counts what was done. */
static verdict_t give_it_back(unsigned int kind)
{
    xen_pfn_t frame = frame_of(kind);
    return harmless(!reservation(XENMEM_decrease_reservation, &frame), "none was given back", "another's frame freed");
}

static verdict_t exchange_it(unsigned int kind)
{
    xen_pfn_t frame = frame_of(kind), pfn = pfn_of(page[0]);
    struct xen_memory_exchange swap = {
        .in = {.nr_extents = 1, .domid = DOMID_SELF},
        .out = {.nr_extents = 1, .domid = DOMID_SELF},
    };
    set_xen_guest_handle(swap.in.extent_start, &frame);
    set_xen_guest_handle(swap.out.extent_start, &pfn);
    return refused(hypercall_memory_op(XENMEM_exchange, &swap), "another's frame exchanged");
}

static verdict_t vcpu_info_in_it(unsigned int kind)
{
    struct vcpu_register_vcpu_info where = {.mfn = frame_of(kind)};
    return refused(hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &where), "vcpu_info in a frame that is not ours");
}

static verdict_t gdt_in_it(unsigned int kind)
{
    unsigned long frame = frame_of(kind);
    return refused(HYPERCALL5(__HYPERVISOR_set_gdt, &frame, 512, 0, 0, 0), "a GDT in a frame that is not ours");
}

/* --- by another domain's name ------------------------------------------------------------------------------------- */

static const domid_t domains[] = {DOMID_XEN, DOMID_IO, 0, 0x1234};
static const char *const domain_names[] = {"Xen", "IO", "0", "that-is-not-there"};

static verdict_t as_domain(unsigned int which)
{
    mmu_update_t update = {pte_machine_address(VA(0), 1), address_of(FOREIGN) | PTE_DATA};
    return refused(hypercall_mmu_update(&update, 1, NULL, domains[which]), "a frame in another domain's name");
}

static verdict_t tables_of_domain(unsigned int which)
{
    mmu_update_t update = {pte_machine_address(VA(0), 1), entry_of(page[0], PTE_DATA)};
    return refused(hypercall_mmu_update(&update, 1, NULL, (domains[which] + 1U) << 16 | DOMID_SELF),
                   "a page table in another domain's name");
}

static verdict_t pin_for_domain(unsigned int which)
{
    mmuext_op_t operation = {.cmd = MMUEXT_PIN_L1_TABLE, .arg1.mfn = frame_of(FOREIGN)};
    return refused(hypercall_mmuext_op(&operation, 1, NULL, domains[which]), "a pin in another domain's name");
}

static verdict_t map_of_domain(unsigned int which)
{
    uint64_t entry = address_of(FOREIGN) | PTE_DATA;
#ifdef __x86_64__
    long result = HYPERCALL5(__HYPERVISOR_update_va_mapping_otherdomain, VA(0), entry, 0, domains[which], 0);
#else
    long result = HYPERCALL5(__HYPERVISOR_update_va_mapping_otherdomain, VA(0), (uint32_t)entry, entry >> 32, 0,
                             domains[which]);
#endif
    return refused(result, "another domain's frame");
}

/* --- the hypervisor's frames that it shares with us --------------------------------------------------------------- */

static unsigned long grant_frame(void)
{
    xen_pfn_t frame = 0;
    struct gnttab_setup_table table = {.dom = DOMID_SELF, .nr_frames = 1};
    set_xen_guest_handle(table.frame_list, &frame);
    HYPERCALL5(__HYPERVISOR_grant_table_op, GNTTABOP_setup_table, &table, 1, 0, 0);
    return frame;
}

static verdict_t pin_shared_info(unsigned int level)
{
    return refused(extended(MMUEXT_PIN_L1_TABLE + level - 1, SHARED_INFO, 0), "shared_info as a page table");
}

static verdict_t pin_grant_table(unsigned int level)
{
    return refused(extended(MMUEXT_PIN_L1_TABLE + level - 1, grant_frame(), 0), "the grant table as a page table");
}

static const char *const shared_names[] = {"shared_info", "grant-table"};

static verdict_t link_shared(unsigned int grants)
{
    uint64_t frame = grants ? grant_frame() : SHARED_INFO;
    return refused(mmu_set(new_region_entry(), frame << 12 | LINK), "the hypervisor's frame as a page table");
}

static verdict_t load_shared_info(unsigned int level)
{
    (void)level;
    return refused(extended(MMUEXT_NEW_BASEPTR, SHARED_INFO, 0), "shared_info as the top table");
}

static verdict_t gdt_in_shared_info(unsigned int level)
{
    (void)level;
    unsigned long frame = SHARED_INFO;
    return refused(HYPERCALL5(__HYPERVISOR_set_gdt, &frame, 512, 0, 0, 0), "a GDT that can be written");
}

static verdict_t give_back_shared_info(unsigned int level)
{
    (void)level;
    xen_pfn_t frame = SHARED_INFO;
    reservation(XENMEM_decrease_reservation, &frame);
    return harmless(!pte_write(VA(0), (uint64_t)SHARED_INFO << 12 | PTE_DATA), "the frame is still ours to map",
                    "shared_info freed while the hypervisor uses it");
}

static verdict_t exchange_shared_info(unsigned int level)
{
    (void)level;
    xen_pfn_t frame = SHARED_INFO, pfn = pfn_of(page[0]);
    struct xen_memory_exchange swap = {
        .in = {.nr_extents = 1, .domid = DOMID_SELF},
        .out = {.nr_extents = 1, .domid = DOMID_SELF},
    };
    set_xen_guest_handle(swap.in.extent_start, &frame);
    set_xen_guest_handle(swap.out.extent_start, &pfn);
    return refused(hypercall_memory_op(XENMEM_exchange, &swap), "shared_info exchanged");
}

/* Where vcpu_info lies by our own wish the hypervisor writes; it cannot be moved back, so this comes last. */
static verdict_t pin_vcpu_info(unsigned int level)
{
    static void *there;
    if (!there) {
        there = page_allocate();
        struct vcpu_register_vcpu_info where = {.mfn = mfn_of(there)};
        events_off();                    /* an upcall before the next line would look in the old place for ever */
        hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &where);
        own_vcpu = there;
        events_on();
    }
    uint64_t entry = pte_read((unsigned long)there);
    events_off();                        /* an upcall clears its flag in the page that we cannot write for now */
    read_only(there);
    verdict_t verdict = refused(pin(level, there), "a page table that the hypervisor writes to");
    pte_write((unsigned long)there, entry);
    events_on();
    return verdict;
}

const struct attempt frame_attempts[] = {
    {"map-frame-%s", NULL, map, FOREIGN, LAST_NUMBER, kinds},
    {"map-frame-%s-read-only", NULL, map_read_only, FOREIGN, LAST_NUMBER, kinds},
    {"map-frame-%s-by-mmu_update", NULL, map_by_mmu_update, FOREIGN, LAST_NUMBER, kinds},
    {"map-frame-%s-by-new-table", NULL, map_by_new_table, FOREIGN, LAST_NUMBER, kinds},
    {"map-frame-%s-by-direct-write", NULL, map_by_direct_write, FOREIGN, LAST_NUMBER, kinds},
    {"write-frame-%s-by-mmu_update", NULL, write_by_mmu_update, FOREIGN, LAST_NUMBER, kinds},
    {"change-M2P-entry-of-frame-%s", NULL, change_m2p, FOREIGN, LAST_NUMBER, kinds},
    {"link-frame-%s", NULL, link_as_table, FOREIGN, LAST_NUMBER, kinds},
    {"pin-frame-%s", NULL, pin_it, FOREIGN, LAST_NUMBER, kinds},
    {"unpin-frame-%s", NULL, unpin_it, FOREIGN, LAST_NUMBER, kinds},
    {"load-frame-%s", NULL, load_it, FOREIGN, LAST_NUMBER, kinds},
    {"clear-frame-%s", NULL, clear_it, FOREIGN, LAST_NUMBER, kinds},
    {"copy-from-frame-%s", NULL, copy_from_it, FOREIGN, LAST_NUMBER, kinds},
    {"copy-to-frame-%s", NULL, copy_to_it, FOREIGN, LAST_NUMBER, kinds},
    {"give-back-frame-%s", NULL, give_it_back, FOREIGN, LAST_NUMBER, kinds},
    {"exchange-frame-%s", NULL, exchange_it, FOREIGN, LAST_NUMBER, kinds},
    {"vcpu_info-in-frame-%s", NULL, vcpu_info_in_it, FOREIGN, LAST_NUMBER, kinds},
    {"GDT-in-frame-%s", NULL, gdt_in_it, FOREIGN, LAST_NUMBER, kinds},
    {"mmu_update-for-domain-%s", NULL, as_domain, 0, ARRAY_SIZE(domains) - 1, domain_names},
    {"mmu_update-of-tables-of-domain-%s", NULL, tables_of_domain, 0, ARRAY_SIZE(domains) - 1, domain_names},
    {"mmuext_op-for-domain-%s", NULL, pin_for_domain, 0, ARRAY_SIZE(domains) - 1, domain_names},
    {"update_va_mapping-for-domain-%s", NULL, map_of_domain, 0, ARRAY_SIZE(domains) - 1, domain_names},
    {"pin-shared_info-as-L%u", NULL, pin_shared_info, 1, LEVELS, NULL},
    {"pin-grant-table-as-L%u", NULL, pin_grant_table, 1, LEVELS, NULL},
    {"link-%s-as-L1", NULL, link_shared, 0, 1, shared_names},
    {"load-shared_info", NULL, load_shared_info, 0, 0, NULL},
    {"GDT-in-shared_info", NULL, gdt_in_shared_info, 0, 0, NULL},
    {"give-back-shared_info", NULL, give_back_shared_info, 0, 0, NULL},
    {"exchange-shared_info", NULL, exchange_shared_info, 0, 0, NULL},
    {"pin-page-of-vcpu_info-as-L%u", NULL, pin_vcpu_info, 1, LEVELS, NULL},
    {0},
};
