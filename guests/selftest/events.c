/* Event channels, upcalls, and the time they tell of. */
#include "selftest.h"

static volatile unsigned int upcalls, depth, deepest;
static volatile unsigned int mask_in_upcall;
static volatile evtchn_port_t last_port, send_from_handler;

static void on_event(evtchn_port_t port)
{
    depth++;
    if (depth > deepest)
        deepest = depth;
    upcalls++;
    last_port = port;
    mask_in_upcall = upcall_mask();
    if (send_from_handler) {
        evtchn_port_t to = send_from_handler;
        send_from_handler = 0;
        event_send(to);
    }
    depth--;
}

static long operation(unsigned int command, void *argument)
{
    return hypercall_event_channel_op((int)command, argument);
}

static long close_port(evtchn_port_t port)
{
    struct evtchn_close close = {.port = port};
    return operation(EVTCHNOP_close, &close);
}

static struct evtchn_status status_of(evtchn_port_t port)
{
    struct evtchn_status status = {.dom = DOMID_SELF, .port = port, .status = 99};
    operation(EVTCHNOP_status, &status);
    return status;
}

static void test_misused_channels(void)
{
    struct evtchn_send send = {.port = 4000};
    struct evtchn_bind_virq virq = {.virq = NR_VIRQS, .vcpu = 0};
    struct evtchn_bind_ipi ipi = {.vcpu = 100};
    struct evtchn_status status = {.dom = DOMID_SELF, .port = 100000};
    struct evtchn_unmask unmask = {.port = 100000};
    struct evtchn_bind_interdomain bind = {.remote_dom = DOMID_SELF, .remote_port = 4000};
    struct evtchn_alloc_unbound unbound = {.dom = 0x1234, .remote_dom = DOMID_SELF};
    is(operation(99, &send), -XEN_ENOSYS, "unknown command");
    is(operation(EVTCHNOP_send, NOWHERE), -XEN_EFAULT, "send: from nowhere");
    is(operation(EVTCHNOP_send, IN_M2P), IN_M2P_IS, "send: from M2P");
    is(operation(EVTCHNOP_send, &send), -XEN_EINVAL, "send: a port that is not open");
    send.port = 100000;
    is(operation(EVTCHNOP_send, &send), -XEN_EINVAL, "send: a port out of range");
    is(operation(EVTCHNOP_bind_virq, &virq), -XEN_EINVAL, "bind_virq: no such virq");
    virq.virq = VIRQ_TIMER;
    virq.vcpu = 100;
    is(operation(EVTCHNOP_bind_virq, &virq), -XEN_ENOENT, "bind_virq: no such vCPU");
    is(operation(EVTCHNOP_bind_ipi, &ipi), -XEN_ENOENT, "bind_ipi: no such vCPU");
    is(operation(EVTCHNOP_status, &status), -XEN_EINVAL, "status: a port out of range");
    status.dom = 0x1234;
    is(operation(EVTCHNOP_status, &status), -XEN_ESRCH, "status: of no domain");
    is(operation(EVTCHNOP_unmask, &unmask), -XEN_EINVAL, "unmask: a port out of range");
    is(close_port(0), -XEN_EINVAL, "close: port 0");
    is(close_port(100000), -XEN_EINVAL, "close: a port out of range");
    is(operation(EVTCHNOP_bind_interdomain, &bind), -XEN_EINVAL, "bind_interdomain: a port that is not open");
    is(operation(EVTCHNOP_alloc_unbound, &unbound), -XEN_ESRCH, "alloc_unbound: for no domain");
    is(operation(EVTCHNOP_alloc_unbound, NOWHERE), -XEN_EFAULT, "alloc_unbound: from nowhere");
}

static void test_ipi_and_virq(void)
{
    evtchn_port_t port = (evtchn_port_t)event_bind_ipi();
    struct evtchn_bind_vcpu bind = {.port = port, .vcpu = 0};
    struct evtchn_bind_virq virq = {.virq = VIRQ_DEBUG, .vcpu = 0};
    check((long)port > 0, "bind_ipi gives a port");
    is((long)status_of(port).status, EVTCHNSTAT_ipi, "... of status ipi");
    is(operation(EVTCHNOP_bind_vcpu, &bind), -XEN_EINVAL, "... that cannot move to another vCPU");
    is(close_port(port), 0, "close");
    is(close_port(port), -XEN_EINVAL, "close once more");
    is((long)status_of(port).status, EVTCHNSTAT_closed, "... its status is closed");
    is(operation(EVTCHNOP_bind_virq, &virq), 0, "bind_virq: VIRQ_DEBUG");
    check(virq.port == port, "... gets the lowest free port again");
    struct evtchn_status status = status_of(virq.port);
    is((long)status.status, EVTCHNSTAT_virq, "... of status virq");
    is((long)status.u.virq, VIRQ_DEBUG, "... which says which");
    is(operation(EVTCHNOP_bind_virq, &virq), -XEN_EEXIST, "bind_virq: once more");
    bind.port = virq.port;
    is(operation(EVTCHNOP_bind_vcpu, &bind), -XEN_EINVAL, "a per-vCPU virq cannot move either");
    is(close_port(virq.port), 0, "close");
}

static void test_interdomain(void)
{
    struct evtchn_alloc_unbound unbound = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};
    is(operation(EVTCHNOP_alloc_unbound, &unbound), 0, "alloc_unbound for ourselves");
    is((long)status_of(unbound.port).status, EVTCHNSTAT_unbound, "... of status unbound");
    struct evtchn_send send = {.port = unbound.port};
    is(operation(EVTCHNOP_send, &send), 0, "send on an unbound port is no error");
    struct evtchn_bind_interdomain bind = {.remote_dom = DOMID_SELF, .remote_port = unbound.port};
    is(operation(EVTCHNOP_bind_interdomain, &bind), 0, "bind_interdomain with ourselves");
    check(bind.local_port != unbound.port, "... gives another port");
    struct evtchn_status status = status_of(unbound.port);
    is((long)status.status, EVTCHNSTAT_interdomain, "... the first is of status interdomain now");
    check(status.u.interdomain.port == bind.local_port, "... and knows its peer");
    check(event_pending(bind.local_port), "... the new port is pending at once");
    event_clear(bind.local_port);
    send.port = unbound.port;
    is(operation(EVTCHNOP_send, &send), 0, "send");
    check(event_pending(bind.local_port) && !event_pending(unbound.port),
          "... sets the peer's pending bit, not its own");
    event_clear(bind.local_port);
    struct evtchn_bind_vcpu vcpu = {.port = unbound.port, .vcpu = 0};
    is(operation(EVTCHNOP_bind_vcpu, &vcpu), 0, "bind_vcpu");
    vcpu.vcpu = 100;
    is(operation(EVTCHNOP_bind_vcpu, &vcpu), -XEN_ENOENT, "bind_vcpu: no such vCPU");
    is(close_port(bind.local_port), 0, "close one end");
    is((long)status_of(unbound.port).status, EVTCHNSTAT_unbound, "... the other is unbound again");
    is(close_port(unbound.port), 0, "close the other");
}

void test_event_channels(void)
{
    test_misused_channels();
    test_ipi_and_virq();
    test_interdomain();
}

static volatile vcpu_info_t *vcpu(void)
{
    return own_vcpu;
}

static void test_holding_off(evtchn_port_t port)
{
    upcalls = 0;
    events_off();
    event_send(port);
    is((long)upcalls, 0, "events off: no upcall");
    check(event_pending(port), "... the channel's pending bit is set");
    is(vcpu()->evtchn_upcall_pending, 1, "... upcall_pending is set");
    check(vcpu()->evtchn_pending_sel >> (port / (8 * sizeof(long))) & 1, "... the selector's bit is set");
    event_send(port);
    vcpu()->evtchn_upcall_mask = 0;
    is((long)upcalls, 0, "clearing the mask alone makes no upcall");
    hypercall_xen_version(XENVER_version, NULL);
    is((long)upcalls, 1, "the next hypercall's end does, once for two events");
    is(vcpu()->evtchn_upcall_pending, 0, "... nothing is pending any more");
    upcalls = 0;
    event_mask(port);
    event_send(port);
    check(event_pending(port) && !vcpu()->evtchn_upcall_pending,
          "a masked channel becomes pending, without upcall_pending");
    is((long)upcalls, 0, "... no upcall");
    struct evtchn_unmask unmask = {.port = port};
    is(operation(EVTCHNOP_unmask, &unmask), 0, "unmask");
    is((long)upcalls, 1, "... and the upcall comes");
}

static void test_nesting(evtchn_port_t port)
{
    upcalls = deepest = 0;
    send_from_handler = port;
    event_send(port);
    is((long)upcalls, 2, "an event sent by its own handler is delivered too");
    is((long)deepest, 1, "... not nested");
    is(mask_in_upcall, 1, "the upcall mask is set during an upcall");
    is(upcall_mask(), 0, "... and clear behind it");
}

static volatile unsigned long upcall_ip, upcall_flags, upcall_cs;

static void keep_frame(evtchn_port_t port)
{
    on_event(port);
    upcall_ip = event_frame->ip;
    upcall_cs = event_frame->cs;
    upcall_flags = event_frame->flags;
}

/* Sent by hypercall, an event comes when the hypercall ends: behind its instruction, in the hypercall page. */
static void test_upcall_frame(evtchn_port_t port)
{
    unsigned long stub = (unsigned long)hypercall_page + 32 * __HYPERVISOR_event_channel_op;
    event_handle(port, keep_frame);
    event_send(port);
    check(upcall_ip > stub && upcall_ip < stub + 32, "an upcall's frame: IP is behind the hypercall instruction");
    is64(upcall_cs & 0xffff, sizeof(long) == 8 ? FLAT_KERNEL_CS & ~3 : FLAT_KERNEL_CS, "... CS is the kernel's");
    is64((uint64_t)upcall_cs >> (sizeof(long) == 8 ? 32 : 16) & 0xff, 0, "... the saved upcall mask is 0");
    is64(upcall_flags & 0x200, 0x200, "... IF is set");
    event_handle(port, on_event);
}

static void test_poll(evtchn_port_t port)
{
    struct sched_poll poll = {.nr_ports = 1, .timeout = 0};
    evtchn_port_t ports[1] = {port};
    set_xen_guest_handle(poll.ports, ports);
    event_mask(port);
    event_clear(port);
    uint64_t start = clock_ns();
    poll.timeout = start + 3000000;
    is(hypercall_sched_op(SCHEDOP_poll, &poll), 0, "poll with a time limit");
    check(clock_ns() >= start + 3000000, "... waits so long");
    event_send(port);
    start = clock_ns();
    poll.timeout = start + 5000000000;
    is(hypercall_sched_op(SCHEDOP_poll, &poll), 0, "poll of a pending port");
    check(clock_ns() < start + 2000000000, "... returns at once, though the port is masked");
    event_clear(port);
    struct evtchn_unmask unmask = {.port = port};
    operation(EVTCHNOP_unmask, &unmask);
}

void test_upcalls(void)
{
    evtchn_port_t port = (evtchn_port_t)event_bind_ipi();
    event_handle(port, on_event);
    upcalls = 0;
    event_send(port);
    is((long)upcalls, 1, "an event to ourselves arrives before the next instruction");
    check(last_port == port, "... on its port");
    test_holding_off(port);
    test_nesting(port);
    test_upcall_frame(port);
    upcalls = 0;
    events_off();
    event_send(port);
    is(hypercall_sched_op(SCHEDOP_block, NULL), 0, "block with an event pending returns");
    is((long)upcalls, 1, "... behind its upcall");
    is(upcall_mask(), 0, "... with events on");
    test_poll(port);
    close_port(port);
}

__asm__(".pushsection .user, \"ax\"\n user_forever: jmp user_forever\n .popsection");
extern void user_forever(void);

static volatile bool leave_user;

static void on_timer(evtchn_port_t port)
{
    on_event(port);
    if (leave_user && !from_user(event_frame)) {
        hypercall_set_timer_op(clock_ns() + 5000000); /* user code has not begun yet */
    } else if (leave_user) {
        leave_user = false;
        depth = 0;
        user_leave(4711);
    }
}

static void wait_upcalls(unsigned int wanted, uint64_t limit)
{
    uint64_t deadline = clock_ns() + limit;
    while (upcalls < wanted && clock_ns() < deadline)
        hypercall_sched_op(SCHEDOP_yield, NULL);
}

void test_timers(void)
{
    evtchn_port_t port = (evtchn_port_t)event_bind_virq(VIRQ_TIMER);
    event_handle(port, on_timer);
    upcalls = 0;
    uint64_t deadline = clock_ns() + 2000000;
    is(hypercall_set_timer_op(deadline), 0, "set_timer_op");
    while (!upcalls && clock_ns() < deadline + 1000000000)
        block();
    is((long)upcalls, 1, "... wakes a blocked vCPU by VIRQ_TIMER");
    check(clock_ns() >= deadline, "... not early");
    upcalls = 0;
    deadline = clock_ns() + 2000000;
    hypercall_set_timer_op(deadline);
    while (!upcalls && clock_ns() < deadline + 1000000000)
        ;
    is((long)upcalls, 1, "... interrupts a running one too");
    upcalls = 0;
    is(hypercall_set_timer_op(1), 0, "set_timer_op in the past");
    wait_upcalls(1, 1000000000);
    is((long)upcalls, 1, "... comes at once");
    do {                                 /* once more if the host kept us from the second call for too long */
        upcalls = 0;
        deadline = clock_ns() + 5000000;
        hypercall_set_timer_op(deadline);
        hypercall_set_timer_op(0);
    } while (clock_ns() >= deadline);
    while (clock_ns() < deadline + 2000000)
        hypercall_sched_op(SCHEDOP_yield, NULL);
    is((long)upcalls, 0, "set_timer_op(0) takes it back");
    struct vcpu_set_singleshot_timer single = {.timeout_abs_ns = clock_ns() + 20000000, .flags = VCPU_SSHOTTMR_future};
    upcalls = 0;
    is(hypercall_vcpu_op(VCPUOP_set_singleshot_timer, 0, &single), 0, "set_singleshot_timer");
    wait_upcalls(1, 1000000000);
    is((long)upcalls, 1, "... comes");
    struct vcpu_set_periodic_timer periodic = {.period_ns = 2000000};
    upcalls = 0;
    is(hypercall_vcpu_op(VCPUOP_set_periodic_timer, 0, &periodic), 0, "set_periodic_timer");
    wait_upcalls(3, 1000000000);
    check(upcalls >= 3, "... comes again and again");
    is(hypercall_vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL), 0, "stop_periodic_timer");
    upcalls = 0;
    leave_user = true;
    hypercall_set_timer_op(clock_ns() + 5000000);
    is(user_run(user_forever, 0), 4711, "a timer's upcall interrupts user code");
    is(upcall_mask(), 1, "... with events off");
    events_on();
    close_port(port);
}

/* --- the FIFO layout; there is no way back but to close every port, so this comes last --- */

static volatile uint32_t *event_word(evtchn_port_t port)
{
    return (volatile uint32_t *)scratch[6] + port;
}

static uint32_t word_bits(evtchn_port_t port)
{
    return *event_word(port) & ~(uint32_t)EVTCHN_FIFO_LINK_MASK;
}

void test_fifo(void)
{
    volatile struct evtchn_fifo_control_block *control = (volatile struct evtchn_fifo_control_block *)scratch[5];
    struct evtchn_init_control init = {.control_gfn = mfn_of(scratch[5]), .offset = 4, .vcpu = 0};
    struct evtchn_expand_array expand = {.array_gfn = mfn_of(scratch[6])};
    struct evtchn_set_priority priority = {.priority = 3};
    const uint32_t pending = 1u << EVTCHN_FIFO_PENDING, masked = 1u << EVTCHN_FIFO_MASKED,
                   linked = 1u << EVTCHN_FIFO_LINKED;
    events_off();
    evtchn_port_t first = (evtchn_port_t)event_bind_ipi(), second = (evtchn_port_t)event_bind_ipi();
    evtchn_port_t third = (evtchn_port_t)event_bind_ipi();
    memset(scratch[5], 0, PAGE_SIZE);
    for (unsigned int port = 0; port < 1024; port++)
        *event_word(port) = masked;
    priority.port = second;
    is(operation(EVTCHNOP_expand_array, &expand), -XEN_EOPNOTSUPP, "expand_array before init_control");
    is(operation(EVTCHNOP_set_priority, &priority), -XEN_ENOSYS, "set_priority before init_control");
    is(operation(EVTCHNOP_init_control, &init), -XEN_EINVAL, "init_control: unaligned");
    init.offset = PAGE_SIZE - 64;
    is(operation(EVTCHNOP_init_control, &init), -XEN_EINVAL, "init_control: across a page's end");
    init.offset = 0;
    init.vcpu = 100;
    is(operation(EVTCHNOP_init_control, &init), -XEN_ENOENT, "init_control: no such vCPU");
    init.vcpu = 0;
    is(operation(EVTCHNOP_init_control, &init), 0, "init_control");
    is(init.link_bits, EVTCHN_FIFO_LINK_BITS, "... tells the width of links");
    is(operation(EVTCHNOP_init_control, &init), -XEN_EINVAL, "init_control once more");
    is(pte_write((unsigned long)scratch[5], (uint64_t)mfn_of(scratch[5]) << 12 | PTE_PRESENT), 0,
       "the control block may be unmapped");
    pte_write((unsigned long)scratch[5], (uint64_t)mfn_of(scratch[5]) << 12 | PTE_DATA);
    is(operation(EVTCHNOP_expand_array, &expand), 0, "expand_array");
    event_send(first);
    check(word_bits(first) == (pending | masked), "a masked event is pending, not linked");
    vcpu()->evtchn_upcall_pending = 0;
    *event_word(first) = *event_word(second) = *event_word(third) = 0;
    is(operation(EVTCHNOP_set_priority, &priority), 0, "set_priority");
    priority.priority = EVTCHN_FIFO_PRIORITY_MIN + 1;
    is(operation(EVTCHNOP_set_priority, &priority), -XEN_EINVAL, "set_priority: none so low");
    priority.port = 100000;
    is(operation(EVTCHNOP_set_priority, &priority), -XEN_EINVAL, "set_priority: no such port");
    event_send(first);
    is((long)control->ready, 1 << EVTCHN_FIFO_PRIORITY_DEFAULT, "an event: its queue is ready");
    check(control->head[EVTCHN_FIFO_PRIORITY_DEFAULT] == first, "... it is the first in it");
    check(word_bits(first) == (pending | linked), "... pending and linked");
    is(vcpu()->evtchn_upcall_pending, 1, "... an upcall is pending");
    event_send(second);
    check(control->head[3] == second, "an event of another priority: another queue");
    event_send(third);
    check((*event_word(first) & EVTCHN_FIFO_LINK_MASK) == third, "a third is linked behind the first");
    event_send(third);
    check((*event_word(third) & EVTCHN_FIFO_LINK_MASK) == 0, "... once");
    is(close_port(third), 0, "close");
    check(word_bits(third) == linked, "... it stays linked, no longer pending");
    struct evtchn_bind_ipi bind = {.vcpu = 0};
    is(operation(EVTCHNOP_bind_ipi, &bind), 0, "bind_ipi");
    check(bind.port != third, "... does not get a port that is linked");
    vcpu()->evtchn_upcall_pending = 0;
}
