/* The grant table, as far as a domain alone can try it; and, at the very end, vcpu_info moved out of shared_info. */
#include "selftest.h"
#include <xen/grant_table.h>

static long grant_operation(unsigned int command, void *argument, unsigned int count)
{
    return HYPERCALL5(__HYPERVISOR_grant_table_op, command, argument, count, 0, 0);
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
