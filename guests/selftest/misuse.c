/* What Xen says to calls it does not know and to arguments it cannot use. */
#include "selftest.h"
#include <xen/callback.h>
#include <xen/nmi.h>
#include <xen/physdev.h>

static long raw(unsigned long number, unsigned long a, unsigned long b)
{
    return hypercall_raw(number, a, b, 0, 0, 0);
}

static unsigned long address(const void *pointer)
{
    return (unsigned long)pointer;
}

void test_unknown_hypercalls(void)
{
    static const unsigned long unknown[] = {
        11, 43, 44, 45, 46, 47, 51, 52, 53, 54, 55, 56, 63, 64, 127, 128, 1000, 0x7fffffff,
    };
    for (size_t i = 0; i < ARRAY_SIZE(unknown); i++)
        is(raw(unknown[i], 0, 0), -XEN_ENOSYS, "hypercall %lu", unknown[i]);
    is(raw(0xffffffff, 0, 0), -XEN_ENOSYS, "hypercall 0xffffffff");
    is(raw(__HYPERVISOR_tmem_op, 0, 0), -XEN_ENOSYS, "tmem_op, which is gone");
    is(HYPERCALL5(43, 0, 0, 0, 0, 0), -XEN_ENOSYS, "hypercall 43 through the hypercall page");
    is(HYPERCALL5(127, 0, 0, 0, 0, 0), -XEN_ENOSYS, "hypercall 127 through the hypercall page");
}

static void test_scheduler_misuse(void)
{
    evtchn_port_t ports[2] = {0, 4000000};
    struct sched_poll poll = {.nr_ports = 129};
    struct sched_watchdog watchdog = {.id = 99, .timeout = 1};
    set_xen_guest_handle(poll.ports, ports);
    is(hypercall_sched_op(99, NULL), -XEN_ENOSYS, "sched_op: unknown command");
    is(hypercall_sched_op(SCHEDOP_yield, NULL), 0, "sched_op: yield");
    is(hypercall_sched_op(SCHEDOP_shutdown, NOWHERE), -XEN_EFAULT, "sched_op: shutdown, reason from nowhere");
    is(hypercall_sched_op(SCHEDOP_poll, NOWHERE), -XEN_EFAULT, "sched_op: poll, argument from nowhere");
    is(hypercall_sched_op(SCHEDOP_poll, &poll), -XEN_EINVAL, "sched_op: poll, 129 ports");
    poll.nr_ports = 2;
    is(hypercall_sched_op(SCHEDOP_poll, &poll), -XEN_EINVAL, "sched_op: poll, a port out of range");
    set_xen_guest_handle(poll.ports, NOWHERE);
    is(hypercall_sched_op(SCHEDOP_poll, &poll), -XEN_EFAULT, "sched_op: poll, ports from nowhere");
    set_xen_guest_handle(poll.ports, (evtchn_port_t *)IN_M2P);
    poll.nr_ports = 1;
    is(hypercall_sched_op(SCHEDOP_poll, &poll), IN_M2P_IS, "sched_op: poll, ports from M2P");
    is(hypercall_sched_op(SCHEDOP_watchdog, &watchdog), -XEN_EINVAL, "sched_op: watchdog, bad id");
}

static void test_vcpu_misuse(void)
{
    struct vcpu_register_vcpu_info info = {.mfn = ~0UL, .offset = 0};
    struct vcpu_set_periodic_timer periodic = {.period_ns = 1000};
    struct vcpu_set_singleshot_timer single = {.timeout_abs_ns = 1, .flags = VCPU_SSHOTTMR_future};
    is(hypercall_vcpu_op(VCPUOP_is_up, 0, NULL), 1, "vcpu_op: vCPU 0 is up");
    is(hypercall_vcpu_op(VCPUOP_is_up, 100, NULL), -XEN_ENOENT, "vcpu_op: there is no vCPU 100");
    is(hypercall_vcpu_op(VCPUOP_is_up, 100000, NULL), -XEN_ENOENT, "vcpu_op: nor 100000");
    is(hypercall_vcpu_op(99, 0, NULL), -XEN_ENOSYS, "vcpu_op: unknown command");
    is(hypercall_vcpu_op(VCPUOP_initialise, 0, NOWHERE), -XEN_EFAULT, "vcpu_op: initialise, context from nowhere");
    is(hypercall_vcpu_op(VCPUOP_up, 0, NULL), 0, "vcpu_op: up, already");
    is(hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &info), -XEN_EINVAL, "vcpu_op: vcpu_info in no frame");
    info.mfn = mfn_of(scratch[0]);
    info.offset = PAGE_SIZE - 32;
    is(hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &info), -XEN_ENXIO, "vcpu_op: vcpu_info across a page's end");
    info.offset = 2;
    /* Xen 4.11, against which the 32-bit guest is tried, would take it and lose our upcalls */
    check((hypercall_xen_version(XENVER_version, NULL) & 0xffff) < 17 ||
          hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &info) == -XEN_ENXIO, "vcpu_op: vcpu_info unaligned");
    is(hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, NOWHERE), -XEN_EFAULT, "vcpu_op: register from nowhere");
    is(hypercall_vcpu_op(VCPUOP_set_periodic_timer, 0, &periodic), -XEN_EINVAL, "vcpu_op: a period of 1 us");
    is(hypercall_vcpu_op(VCPUOP_set_singleshot_timer, 0, &single), 0,
       "vcpu_op: a timer in the past, which fires at once");
    is(hypercall_vcpu_op(VCPUOP_set_singleshot_timer, 0, NOWHERE), -XEN_EFAULT, "vcpu_op: a timer from nowhere");
    is(hypercall_vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL), 0, "vcpu_op: stop the periodic timer");
    is(hypercall_vcpu_op(VCPUOP_stop_singleshot_timer, 0, NULL), 0, "vcpu_op: stop the single-shot timer");
}

static void test_runstate(void)
{
    vcpu_runstate_info_t state = {.state = 99};
    is(hypercall_vcpu_op(VCPUOP_get_runstate_info, 0, &state), 0, "vcpu_op: runstate");
    is(state.state, RUNSTATE_running, "... running");
    check(state.state_entry_time && state.state_entry_time <= clock_ns() && state.time[RUNSTATE_running],
          "... for some time");
    uint64_t sum = state.time[0] + state.time[1] + state.time[2] + state.time[3];
    check(sum <= clock_ns(), "... no longer than the machine has been up");
    is(hypercall_vcpu_op(VCPUOP_get_runstate_info, 0, NOWHERE), -XEN_EFAULT, "vcpu_op: runstate to nowhere");
    static vcpu_runstate_info_t area;
    struct vcpu_register_runstate_memory_area where = {.addr.v = &area};
    is(hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &where), 0, "vcpu_op: register a runstate area");
    check(area.state == RUNSTATE_running && area.state_entry_time, "... filled at once");
}

static void test_callback_misuse(void)
{
    struct callback_register callback = {.type = 77};
    struct callback_unregister gone = {.type = CALLBACKTYPE_event};
    is(hypercall_callback_op(99, &callback), sizeof(long) == 8 ? -XEN_ENOSYS : -XEN_EINVAL,
       "callback_op: unknown command");
    is(hypercall_callback_op(CALLBACKOP_register, &callback), -XEN_ENOSYS, "callback_op: unknown type");
    is(hypercall_callback_op(CALLBACKOP_register, NOWHERE), -XEN_EFAULT, "callback_op: from nowhere");
    is(hypercall_callback_op(CALLBACKOP_unregister, &gone), -XEN_EINVAL, "callback_op: the event callback stays");
    gone.type = 77;
    is(hypercall_callback_op(CALLBACKOP_unregister, &gone), -XEN_ENOSYS, "callback_op: unregister an unknown type");
#ifdef __x86_64__
    callback = (struct callback_register){.type = CALLBACKTYPE_failsafe, .address = 0x8000000000000000};
    is(hypercall_callback_op(CALLBACKOP_register, &callback), -XEN_EINVAL, "callback_op: a non-canonical address");
    is(raw(__HYPERVISOR_set_callbacks, 0x8000000000000000, 0), 0,
       "set_callbacks: a non-canonical address is not complained of");
#endif
}

static void test_traps_misuse(void)
{
    is(hypercall_set_trap_table(NULL), 0, "set_trap_table: none");
    is(hypercall_set_trap_table(NOWHERE), -XEN_EFAULT, "set_trap_table: from nowhere");
#ifdef __x86_64__
    trap_info_t table[2] = {{.vector = 0x90, .flags = 0, .cs = FLAT_KERNEL_CS, .address = 0x8000000000000000}, {0}};
    is(hypercall_set_trap_table(table), -XEN_EINVAL, "set_trap_table: a non-canonical handler");
#endif
    trap_info_t odd[2] = {{.vector = 0x90, .flags = 0, .cs = 0, .address = (unsigned long)hypercall_page}, {0}};
    is(hypercall_set_trap_table(odd), 0, "set_trap_table: code selector 0 is put right");
    is(raw(__HYPERVISOR_stack_switch, FLAT_KERNEL_SS, boot.sp), 0, "stack_switch");
#ifdef __x86_64__
    is(raw(__HYPERVISOR_set_segment_base, 4, 0), -XEN_EINVAL, "set_segment_base: no such base");
    is(raw(__HYPERVISOR_set_segment_base, SEGBASE_FS, 0x8000000000000000), -XEN_EINVAL,
       "set_segment_base: non-canonical");
    is(raw(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, 0), 0, "set_segment_base: the null selector");
#else
    is(raw(25, 0, 0), -XEN_ENOSYS, "set_segment_base is for 64-bit guests");
#endif
}

static void test_other_misuse(void)
{
    struct physdev_set_iopl iopl = {.iopl = 4};
    is(raw(__HYPERVISOR_vm_assist, 99, 0), -XEN_ENOSYS, "vm_assist: unknown command");
    is(raw(__HYPERVISOR_vm_assist, VMASST_CMD_enable, 31), -XEN_EINVAL, "vm_assist: unknown type");
    is(raw(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables), 0,
       "vm_assist: writable page tables");
    is(raw(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_pae_extended_cr3), 0, "vm_assist: extended CR3");
    is(raw(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, address(&iopl)), -XEN_EINVAL,
       "physdev_op: I/O privilege level 4");
    is(raw(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, address(NOWHERE)), -XEN_EFAULT, "physdev_op: from nowhere");
    is(raw(__HYPERVISOR_physdev_op, 99, 0), -XEN_ENOSYS, "physdev_op: unknown command");
    is(raw(__HYPERVISOR_nmi_op, 99, 0), -XEN_ENOSYS, "nmi_op: unknown command");
    is(raw(__HYPERVISOR_nmi_op, XENNMI_unregister_callback, 0), 0, "nmi_op: unregister");
    is(raw(__HYPERVISOR_grant_table_op, 99, 0), -XEN_ENOSYS, "grant_table_op: unknown command");
    is(raw(__HYPERVISOR_fpu_taskswitch, 0, 0), 0, "fpu_taskswitch: clear");
    is(hypercall_set_timer_op(0), 0, "set_timer_op: none");
}

void test_misuse(void)
{
    test_scheduler_misuse();
    test_vcpu_misuse();
    test_runstate();
    test_callback_misuse();
    test_traps_misuse();
    test_other_misuse();
    traps_init();                        /* what was tried on the tables and the stack is undone */
}

void test_multicall(void)
{
    char text[16] = "";
    multicall_entry_t calls[5] = {
        {.op = __HYPERVISOR_xen_version, .args = {XENVER_version}},
        {.op = __HYPERVISOR_xen_version, .args = {XENVER_extraversion, (unsigned long)text}},
        {.op = 43},
        {.op = __HYPERVISOR_xen_version, .args = {XENVER_extraversion, (unsigned long)NOWHERE}},
        {.op = __HYPERVISOR_update_va_mapping, .args = {(unsigned long)scratch[0], 0, 0}},
    };
    uint64_t pte = pte_read((unsigned long)scratch[0]);
    calls[4].args[1] = (unsigned long)pte;
#ifndef __x86_64__
    calls[4].args[2] = (unsigned long)(pte >> 32);
#endif
    is(hypercall_multicall(calls, 5), 0, "multicall of five");
    is((long)calls[0].result, hypercall_xen_version(XENVER_version, NULL), "... xen_version's result");
    check(!calls[1].result && text[0] == '.', "... a result through a pointer");
    is((long)calls[2].result, -XEN_ENOSYS, "... an unknown number does not stop it");
    is((long)calls[3].result, -XEN_EFAULT, "... nor does a bad pointer");
    is((long)calls[4].result, 0, "... update_va_mapping");
    is(hypercall_multicall(NOWHERE, 1), -XEN_EFAULT, "multicall from nowhere");
    is(hypercall_multicall(calls, 0), 0, "multicall of none");
    calls[0].op = __HYPERVISOR_multicall;
    is(hypercall_multicall(calls, 1), 0, "multicall in a multicall");
    is((long)calls[0].result, -XEN_EINVAL, "... is refused in its result");
    static multicall_entry_t many[64];
    for (size_t i = 0; i < ARRAY_SIZE(many); i++)
        many[i] = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .args = {XENVER_pagesize}};
    is(hypercall_multicall(many, ARRAY_SIZE(many)), 0, "multicall of 64");
    unsigned int right = 0;
    for (size_t i = 0; i < ARRAY_SIZE(many); i++)
        right += many[i].result == PAGE_SIZE;
    is((long)right, 64, "... all of them done");
}
