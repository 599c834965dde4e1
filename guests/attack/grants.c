/* The grant table: to reach by a grant what a mapping of one's own would not. */
#include "attack.h"
#include <xen/grant_table.h>

#define REFERENCE 20                     /* one that the toolstack has not used */

static long operation(unsigned int command, void *argument)
{
    return HYPERCALL5(__HYPERVISOR_grant_table_op, command, argument, 1, 0, 0);
}

/* Our own number: the domain whose table we may ask about. */
static domid_t own_domain(void)
{
    for (domid_t domain = 0; domain < 1000; domain++) {
        struct gnttab_query_size size = {.dom = domain};
        if (!operation(GNTTABOP_query_size, &size) && size.status == GNTST_okay)
            return domain;
    }
    return DOMID_SELF;
}

/* Offer a frame to ourselves. */
static void grant(unsigned long frame, uint16_t flags)
{
    xen_pfn_t table_frame = 0;
    struct gnttab_setup_table table = {.dom = DOMID_SELF, .nr_frames = 1};
    set_xen_guest_handle(table.frame_list, &table_frame);
    operation(GNTTABOP_setup_table, &table);
    pte_write(VA(7), (uint64_t)table_frame << 12 | PTE_DATA);
    volatile grant_entry_v1_t *entry = &((volatile grant_entry_v1_t *)page[7])[REFERENCE];
    entry->flags = 0;
    entry->frame = (uint32_t)frame;
    entry->domid = own_domain();
    barrier();
    entry->flags = flags;
    writable(page[7]);
}

/* Map the offered frame; `where` is an address, or with GNTMAP_contains_pte the machine address of an entry. */
static verdict_t map(uint64_t where, uint32_t flags, const char *got)
{
    struct gnttab_map_grant_ref map = {.host_addr = where, .flags = flags, .ref = REFERENCE, .dom = own_domain()};
    long result = operation(GNTTABOP_map_grant_ref, &map);
    if (!result && map.status == GNTST_okay) {
        struct gnttab_unmap_grant_ref unmap = {.host_addr = where, .handle = map.handle};
        operation(GNTTABOP_unmap_grant_ref, &unmap);
    }
    grant(0, 0);
    return status_refused(result, map.status, got);
}

static verdict_t unaligned_pte(unsigned int offset)
{
    grant(mfn_of(page[1]), GTF_permit_access);
    return map(pte_machine_address(VA(0), 1) + offset, GNTMAP_host_map | GNTMAP_contains_pte, "parts of two entries");
}

static verdict_t pte_in_data_page(unsigned int number)
{
    (void)number;
    grant(mfn_of(page[1]), GTF_permit_access);
    return map(machine_of(page[2]), GNTMAP_host_map | GNTMAP_contains_pte, "an entry in a page that is no table");
}

static verdict_t pte_in_upper_table(unsigned int level)
{
    grant(mfn_of(page[1]), GTF_permit_access);
    return map(pte_machine_address(VA(0), level), GNTMAP_host_map | GNTMAP_contains_pte, "an entry of an upper table");
}

static verdict_t table_by_grant(unsigned int level)
{
    grant(own_table(level) >> 12, GTF_permit_access);
    return map(VA(0), GNTMAP_host_map, "a writable mapping of a page table");
}

static verdict_t foreign_by_grant(unsigned int number)
{
    grant(number ? m2p_frame() : foreign_frame(), GTF_permit_access);
    return map(VA(0), GNTMAP_host_map, "a frame that is not ours");
}

static verdict_t into_hypervisor(unsigned int number)
{
    (void)number;
    grant(mfn_of(page[1]), GTF_permit_access);
    return map((unsigned long)m2p, GNTMAP_host_map, "a mapping in the hypervisor's part");
}

static verdict_t writable_of_read_only(unsigned int number)
{
    (void)number;
    grant(mfn_of(page[1]), GTF_permit_access | GTF_readonly);
    return map(VA(0), GNTMAP_host_map, "a writable mapping of what is offered to be read");
}

static verdict_t copy(unsigned long source, unsigned long target, unsigned int offset, const char *got)
{
    struct gnttab_copy copy = {
        .source = {.u.gmfn = source, .domid = DOMID_SELF},
        .dest = {.u.gmfn = target, .domid = DOMID_SELF, .offset = (uint16_t)offset},
        .len = 16,
    };
    long result = operation(GNTTABOP_copy, &copy);
    return status_refused(result, copy.status, got);
}

static verdict_t copy_to_table(unsigned int level)
{
    return copy(mfn_of(page[0]), own_table(level) >> 12, 0, "a page table written over");
}

static verdict_t copy_from_foreign(unsigned int number)
{
    return copy(number ? m2p_frame() : foreign_frame(), mfn_of(page[0]), 0, "what a frame that is not ours holds");
}

static verdict_t copy_over_the_end(unsigned int number)
{
    (void)number;
    return copy(mfn_of(page[0]), mfn_of(page[1]), PAGE_SIZE - 8, "the beginning of another frame written over");
}

static verdict_t copy_to_reference(unsigned int domain)
{
    struct gnttab_copy copy = {
        .source = {.u.gmfn = mfn_of(page[0]), .domid = DOMID_SELF},
        .dest = {.u.ref = 1, .domid = domain ? 0x1234 : 0},
        .len = 16,
        .flags = GNTCOPY_dest_gref,
    };
    long result = operation(GNTTABOP_copy, &copy);
    return status_refused(result, copy.status, "a frame of a domain that offers none");
}

static verdict_t transfer(unsigned long frame, const char *got)
{
    struct gnttab_transfer transfer = {.mfn = frame, .domid = 0x1234};
    long result = operation(GNTTABOP_transfer, &transfer);
    return status_refused(result, transfer.status, got);
}

static verdict_t transfer_table(unsigned int level)
{
    return transfer(own_table(level) >> 12, "a page table given away");
}

static verdict_t transfer_mapped(unsigned int number)
{
    (void)number;
    return transfer(mfn_of(page[1]), "a mapped frame given away");
}

static verdict_t transfer_foreign(unsigned int number)
{
    (void)number;
    return transfer(foreign_frame(), "another's frame given away");
}

static verdict_t unmap_nothing(unsigned int number)
{
    struct gnttab_unmap_grant_ref unmap = {.host_addr = VA(0), .handle = number ? ~0U : 0};
    long result = operation(GNTTABOP_unmap_grant_ref, &unmap);
    return status_refused(result, unmap.status, "a mapping undone that was not made");
}

static verdict_t table_of_domain(unsigned int domain)
{
    xen_pfn_t frame = 0;
    struct gnttab_setup_table table = {.dom = domain ? 0x1234 : 0, .nr_frames = 1};
    set_xen_guest_handle(table.frame_list, &frame);
    long result = operation(GNTTABOP_setup_table, &table);
    return status_refused(result, table.status, "another domain's grant table");
}

static const char *const domain_names[] = {"0", "that-is-not-there"};
static const char *const frame_names[] = {"of-another", "of-the-hypervisor"};
static const char *const handle_names[] = {"an-unused", "the-last"};

const struct attempt grant_attempts[] = {
    {"grant-unaligned-entry-by-%u", "XSA-227", unaligned_pte, 1, 7, NULL},
    {"grant-entry-in-data-page", "XSA-227", pte_in_data_page, 0, 0, NULL},
    {"grant-entry-in-L%u", "XSA-227", pte_in_upper_table, 2, LEVELS, NULL},
    {"grant-own-L%u", NULL, table_by_grant, 1, LEVELS, NULL},
    {"grant-frame-%s", NULL, foreign_by_grant, 0, 1, frame_names},
    {"grant-mapped-in-hypervisor", NULL, into_hypervisor, 0, 0, NULL},
    {"grant-read-only-mapped-writable", NULL, writable_of_read_only, 0, 0, NULL},
    {"grant-copy-to-own-L%u", NULL, copy_to_table, 1, LEVELS, NULL},
    {"grant-copy-from-frame-%s", NULL, copy_from_foreign, 0, 1, frame_names},
    {"grant-copy-over-the-end", NULL, copy_over_the_end, 0, 0, NULL},
    {"grant-copy-to-reference-of-domain-%s", NULL, copy_to_reference, 0, 1, domain_names},
    {"grant-transfer-own-L%u", "XSA-214", transfer_table, 1, LEVELS, NULL},
    {"grant-transfer-mapped-page", "XSA-214", transfer_mapped, 0, 0, NULL},
    {"grant-transfer-frame-of-another", NULL, transfer_foreign, 0, 0, NULL},
    {"grant-unmap-of-%s-handle", NULL, unmap_nothing, 0, 1, handle_names},
    {"grant-table-of-domain-%s", NULL, table_of_domain, 0, 1, domain_names},
    {0},
};
