/* The grant table, as far as a domain alone can try it; and, at the very end, vcpu_info moved out of shared_info. */
#include "selftest.h"
#include <xen/grant_table.h>

static long grant_operation(unsigned int command, void *argument, unsigned int count)
{
    return HYPERCALL5(__HYPERVISOR_grant_table_op, command, argument, count, 0, 0);
}

#define OWN_REFERENCE 9                  /* one that nobody uses */

/* Our own number: the domain whose table we may ask about. */
static domid_t own_domain(void)
{
    for (domid_t domain = 0; domain < 1000; domain++) {
        struct gnttab_query_size size = {.dom = domain};
        if (!grant_operation(GNTTABOP_query_size, &size, 1) && size.status == GNTST_okay)
            return domain;
    }
    return DOMID_SELF;
}

static struct gnttab_map_grant_ref map(uint64_t where, uint32_t flags, domid_t domain)
{
    struct gnttab_map_grant_ref map = {.host_addr = where, .flags = flags, .ref = OWN_REFERENCE, .dom = domain};
    if (grant_operation(GNTTABOP_map_grant_ref, &map, 1))
        map.status = 99;
    return map;
}

static long unmap(uint64_t where, grant_handle_t handle, uint64_t bus_address)
{
    struct gnttab_unmap_grant_ref unmap = {.host_addr = where, .dev_bus_addr = bus_address, .handle = handle};
    return grant_operation(GNTTABOP_unmap_grant_ref, &unmap, 1) ? 99 : unmap.status;
}

/* What we grant to ourselves, mapped at scratch[3]. `table` is the grant table. */
static void test_mapping(volatile grant_entry_v1_t *table)
{
    domid_t self = own_domain();
    unsigned long va = (unsigned long)scratch[3], frame = mfn_of(scratch[2]);
    uint64_t own = pte_read(va), pte;
    scratch[2][5] = 0x55;
    is(map(va, GNTMAP_host_map, self).status, GNTST_general_error, "map: a reference that grants nothing");
    table[OWN_REFERENCE].domid = self;
    table[OWN_REFERENCE].frame = (uint32_t)frame;
    barrier();
    table[OWN_REFERENCE].flags = GTF_permit_access;
    is(map(va, GNTMAP_readonly, self).status, GNTST_bad_gntref, "map: neither for a device nor for the host");
    is(map(va, GNTMAP_host_map, 0x1234).status, GNTST_bad_domain, "map: of no domain");
    is(map(va + 1, GNTMAP_host_map | GNTMAP_contains_pte, self).status, GNTST_general_error, "map: no entry");
    is(table[OWN_REFERENCE].flags, GTF_permit_access, "... leaves no mark");
    struct gnttab_map_grant_ref first = map(va, GNTMAP_host_map, self);
    is(first.status, GNTST_okay, "map: our own page");
    is64(first.dev_bus_addr, (uint64_t)frame << 12, "... its machine address is told");
    is(table[OWN_REFERENCE].flags, GTF_permit_access | GTF_reading | GTF_writing, "... it is marked as in use");
    pte = pte_read(va);
    check((pte & PTE_FRAME) >> 12 == frame && (pte & (PTE_DATA)) == PTE_DATA, "... the entry: present, writable, NX");
    barrier();
    is(scratch[3][5], 0x55, "... what is in it can be read");
    scratch[3][5] = 0x66;
    barrier();
    is(scratch[2][5], 0x66, "... and written");
    struct gnttab_swap_grant_ref swap = {.ref_a = OWN_REFERENCE, .ref_b = OWN_REFERENCE + 1};
    is(grant_operation(GNTTABOP_swap_grant_ref, &swap, 1), 0, "swap");
    is(swap.status, GNTST_eagain, "... of a reference in use: not now");
    is(unmap(va + PAGE_SIZE, first.handle, 0), GNTST_general_error, "unmap: another address");
    is(unmap(va, first.handle + 1000000, 0), GNTST_bad_handle, "unmap: another handle");
    is(unmap(va, first.handle, 0), GNTST_okay, "unmap");
    check(!pte_read(va), "... the entry is clear");
    is(table[OWN_REFERENCE].flags, GTF_permit_access, "... and so are the marks");
    is(unmap(va, first.handle, 0), GNTST_bad_handle, "unmap once more");
    struct gnttab_map_grant_ref second = map(pte_machine_address(va, 1), GNTMAP_host_map | GNTMAP_contains_pte |
                                             GNTMAP_readonly | 3 << _GNTMAP_guest_avail0, self);
    is(second.status, GNTST_okay, "map: read-only, by the machine address of an entry");
    pte = pte_read(va);
    check((pte & (PTE_DATA | 0xe00)) == (PTE_DATA & ~PTE_WRITABLE) + 0x600, "... with the available bits asked for");
    is(table[OWN_REFERENCE].flags, GTF_permit_access | GTF_reading, "... is marked as read");
    table[OWN_REFERENCE].flags |= GTF_readonly;
    is(map(va, GNTMAP_host_map, self).status, GNTST_general_error, "map: what may be read only, to write");
    is(unmap(pte_machine_address(va, 1), second.handle, 0), GNTST_okay, "unmap");
    struct gnttab_map_grant_ref device = map(0, GNTMAP_device_map | GNTMAP_readonly, self);
    is(device.status, GNTST_okay, "map: for a device");
    is(unmap(0, device.handle, device.dev_bus_addr + PAGE_SIZE), GNTST_bad_dev_addr, "unmap: another bus address");
    is(unmap(0, device.handle, device.dev_bus_addr), GNTST_okay, "unmap");
    table[OWN_REFERENCE].flags = 0;
    pte_write(va, own);
}

/* Version 2: the marks are elsewhere, and a part of a page can be offered for copies. */
static void test_version_2(volatile grant_entry_v2_t *table)
{
    struct gnttab_set_version version = {.version = 3};
    struct gnttab_get_status_frames status = {.dom = DOMID_SELF, .nr_frames = 1};
    uint64_t frames[1] = {0};
    unsigned long va = (unsigned long)scratch[3];
    uint64_t own = pte_read(va);
    is(grant_operation(GNTTABOP_set_version, &version, 1), -XEN_EINVAL, "set_version 3");
    is(version.version, 1, "... tells the one in force");
    version.version = 2;
    is(grant_operation(GNTTABOP_set_version, &version, 1), 0, "set_version 2");
    set_xen_guest_handle(status.frame_list, frames);
    is(grant_operation(GNTTABOP_get_status_frames, &status, 1), 0, "get_status_frames");
    is(status.status, GNTST_okay, "... is well");
    pte_write(va, frames[0] << 12 | PTE_DATA);
    volatile grant_status_t *marks = (volatile grant_status_t *)scratch[3];
    table[OWN_REFERENCE].sub_page.hdr.domid = own_domain();
    table[OWN_REFERENCE].sub_page.frame = mfn_of(scratch[2]);
    table[OWN_REFERENCE].sub_page.page_off = 16;
    table[OWN_REFERENCE].sub_page.length = 8;
    barrier();
    table[OWN_REFERENCE].sub_page.hdr.flags = GTF_permit_access | GTF_sub_page;
    memcpy(scratch[2] + 16, "eight by", 8);
    memset(scratch[1], 0, 8);
    struct gnttab_copy copy = {
        .source = {.u.ref = OWN_REFERENCE, .domid = DOMID_SELF, .offset = 16},
        .dest = {.u.gmfn = mfn_of(scratch[1]), .domid = DOMID_SELF},
        .len = 8,
        .flags = GNTCOPY_source_gref,
    };
    is(grant_operation(GNTTABOP_copy, &copy, 1), 0, "copy of a part of a page");
    is(copy.status, GNTST_okay, "... is well");
    check(!memcmp(scratch[1], "eight by", 8), "... and copies it");
    is(marks[OWN_REFERENCE], 0, "... and leaves no mark");
    copy.source.offset = 15;
    grant_operation(GNTTABOP_copy, &copy, 1);
    is(copy.status, GNTST_general_error, "copy of what lies before it");
    is(map((unsigned long)scratch[4], GNTMAP_host_map, own_domain()).status, GNTST_general_error,
       "map: a part of a page");
    table[OWN_REFERENCE].hdr.flags = GTF_permit_access;
    uint64_t other = pte_read((unsigned long)scratch[4]);
    struct gnttab_map_grant_ref whole = map((unsigned long)scratch[4], GNTMAP_host_map, own_domain());
    is(whole.status, GNTST_okay, "map: a whole page");
    is(marks[OWN_REFERENCE], GTF_reading | GTF_writing, "... is marked in the status frame");
    version.version = 1;
    is(grant_operation(GNTTABOP_set_version, &version, 1), -XEN_EBUSY, "set_version 1 with a page mapped");
    is(unmap((unsigned long)scratch[4], whole.handle, 0), GNTST_okay, "unmap");
    pte_write((unsigned long)scratch[4], other);
    version.version = 1;
    is(grant_operation(GNTTABOP_set_version, &version, 1), -XEN_EBUSY, "set_version 1 with a status frame mapped");
    pte_write(va, own);
    version.version = 1;
    is(grant_operation(GNTTABOP_set_version, &version, 1), 0, "set_version 1");
}

static void test_cache_flush(void)
{
    struct gnttab_cache_flush flush = {.a.dev_bus_addr = (uint64_t)mfn_of(scratch[1]) << 12, .length = 64, .op = 1};
    is(grant_operation(GNTTABOP_cache_flush, &flush, 1), 0, "cache_flush: our own page");
    flush.op = GNTTAB_CACHE_INVAL;
    is(grant_operation(GNTTABOP_cache_flush, &flush, 1), -XEN_EOPNOTSUPP, "cache_flush: without writing back");
    flush.op = 4;
    is(grant_operation(GNTTABOP_cache_flush, &flush, 1), -XEN_EINVAL, "cache_flush: no such operation");
}

void test_grant_table(void)
{
    struct gnttab_query_size size = {.dom = DOMID_SELF};
    struct gnttab_setup_table table = {.dom = DOMID_SELF, .nr_frames = 1};
    xen_pfn_t frames[1] = {0};
    is(grant_operation(GNTTABOP_query_size, &size, 1), 0, "query_size");
    check(size.status == GNTST_okay && size.max_nr_frames >= 1 && size.nr_frames <= size.max_nr_frames,
          "... some frames");
    set_xen_guest_handle(table.frame_list, frames);
    is(grant_operation(GNTTABOP_setup_table, &table, 1), 0, "setup_table");
    is(table.status, GNTST_okay, "... is well");
    pte_write((unsigned long)scratch[0], (uint64_t)frames[0] << 12 | PTE_DATA);
    check((pte_read((unsigned long)scratch[0]) & PTE_FRAME) >> 12 == frames[0], "... its frame can be mapped");
    ((volatile grant_entry_v1_t *)scratch[0])[9].frame = 0x4711;
    is(((volatile grant_entry_v1_t *)scratch[0])[9].frame, 0x4711, "... and written");
    ((volatile grant_entry_v1_t *)scratch[0])[9].frame = 0;
    test_mapping((volatile grant_entry_v1_t *)scratch[0]);
    test_version_2((volatile grant_entry_v2_t *)scratch[0]);
    test_cache_flush();
    pte_write((unsigned long)scratch[0], (uint64_t)mfn_of(scratch[0]) << 12 | PTE_DATA);
    table.nr_frames = size.max_nr_frames + 1;
    is(grant_operation(GNTTABOP_setup_table, &table, 1), 0, "setup_table of too many frames");
    is(table.status, GNTST_general_error, "... is an error in its status");
    size.dom = 0x1234;
    is(grant_operation(GNTTABOP_query_size, &size, 1), 0, "query_size of no domain");
    is(size.status, GNTST_bad_domain, "... is an error in its status");
    is(grant_operation(GNTTABOP_query_size, NOWHERE, 1), -XEN_EFAULT, "query_size from nowhere");
    is(grant_operation(GNTTABOP_setup_table, NOWHERE, 1), -XEN_EFAULT, "setup_table from nowhere");
}

static volatile unsigned int upcalls;

static void count(evtchn_port_t port)
{
    (void)port;
    upcalls++;
}

/* It cannot be moved back, so this comes last. */
void test_moved_vcpu_info(void)
{
    volatile vcpu_info_t *old = own_vcpu, *new = (vcpu_info_t *)(scratch[4] + 256);
    struct vcpu_register_vcpu_info where = {.mfn = mfn_of(scratch[4]), .offset = 256};
    memset(scratch[4], 0, PAGE_SIZE);
    events_off();                        /* an upcall before the next line would look in the old place for ever */
    is(hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &where), 0, "register_vcpu_info");
    own_vcpu = (vcpu_info_t *)new;
    check(new->time.version && new->time.tsc_to_system_mul == old->time.tsc_to_system_mul, "the time is there");
    is(new->evtchn_upcall_mask, 1, "the upcall mask has come along");
    check(new->evtchn_pending_sel == ~0UL || new->evtchn_pending_sel == 0, "pending ports are looked at anew");
    events_on();
    evtchn_port_t port = (evtchn_port_t)event_bind_ipi();
    event_handle(port, count);
    upcalls = 0;
    new->evtchn_upcall_mask = 1;
    event_send(port);
    is((long)upcalls, 0, "the new mask holds an upcall off");
    is(new->evtchn_upcall_pending, 1, "... it is pending at the new place");
    events_on();
    is((long)upcalls, 1, "... and is handled");
    event_send(port);
    is((long)upcalls, 2, "with events on it comes at once");
    is(hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &where), -XEN_EINVAL, "register_vcpu_info once more");
    uint64_t last = clock_ns();
    timer_init();
    sleep_ns(2000000);
    check(clock_ns() >= last + 2000000, "time goes on there");
}
