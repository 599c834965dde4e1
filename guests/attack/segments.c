/* Descriptors, gates and selectors; control registers, descriptor-table registers and ports. */
#include "attack.h"
#include <xen/physdev.h>

/* --- descriptors -------------------------------------------------------------------------------------------------- */

#define HYPERVISOR_CS 0xe008
#define HYPERVISOR_DS 0xe010

static uint64_t descriptor(uint32_t base, uint32_t access, uint32_t flags)
{
    uint32_t low = base << 16 | 0xffff;
    uint32_t high = (base & 0xff000000) | flags << 20 | 0xf0000 | access << 8 | (base >> 16 & 0xff);
    return (uint64_t)high << 32 | low;
}

/* To the hypervisor's code, at its first byte. */
static uint64_t gate(uint32_t type)
{
    return (uint64_t)(0xe0 | type) << 40 | (uint64_t)HYPERVISOR_CS << 16;
}

enum {
    CODE_0, LONG_CODE_0, CONFORMING_0, DATA_0, STACK_0, CALL_GATE, INTERRUPT_GATE, TRAP_GATE, TASK_GATE, CALL_GATE_16,
    TSS, BUSY_TSS, LDT, KINDS
};
static const char *const kinds[KINDS] = {
    "code-of-level-0", "long-code-of-level-0", "conforming-code-of-level-0", "data-of-level-0",
    "expand-down-data-of-level-0", "call-gate", "interrupt-gate", "trap-gate", "task-gate", "16-bit-call-gate", "TSS",
    "busy-TSS", "LDT",
};

static uint64_t bad_descriptor(unsigned int kind)
{
    switch (kind) {
    case CODE_0: return descriptor(0, 0x9b, 0xc);
    case LONG_CODE_0: return descriptor(0, 0x9b, 0xa);
    case CONFORMING_0: return descriptor(0, 0x9f, 0xc);
    case DATA_0: return descriptor(0, 0x93, 0xc);
    case STACK_0: return descriptor(0, 0x97, 0xc);
    case CALL_GATE: return gate(0xc);
    case INTERRUPT_GATE: return gate(0xe);
    case TRAP_GATE: return gate(0xf);
    case TASK_GATE: return gate(0x5);
    case CALL_GATE_16: return gate(0x4);
    case TSS: return descriptor(0, 0xe9, 0);
    case BUSY_TSS: return descriptor(0, 0xeb, 0);
    default: return descriptor(0, 0xe2, 0);
    }
}

/* What the hypervisor let into the table: a segment of a guest's level, or a gate that the processor does not take. */
static verdict_t as_stored(long result, uint64_t stored)
{
    unsigned int access = stored >> 40 & 0xff;
    if (result)
        return refused(result, NULL);
    if (!(access & 0x80))
        return harmless(true, "it is not present to the processor", NULL);
    return harmless((access & 0x10) && (access & 0x60), "its level is a guest's",
                    "a descriptor of the hypervisor's level");
}

static long set_gdt(const void *frames, unsigned int entries)
{
    return HYPERCALL5(__HYPERVISOR_set_gdt, frames, entries, 0, 0, 0);
}

static long update_descriptor(uint64_t machine, uint64_t value)
{
#ifdef __x86_64__
    return HYPERCALL5(__HYPERVISOR_update_descriptor, machine, value, 0, 0, 0);
#else
    return HYPERCALL5(__HYPERVISOR_update_descriptor, (uint32_t)machine, (uint32_t)(machine >> 32), (uint32_t)value,
                      (uint32_t)(value >> 32), 0);
#endif
}

/* Page 1 as the GDT. */
static bool load_gdt(void)
{
    unsigned long frame = mfn_of(page[1]);
    read_only(page[1]);
    return !set_gdt(&frame, 512);
}

static verdict_t in_new_gdt(unsigned int kind)
{
    volatile uint64_t *table = (volatile uint64_t *)page[1];
    unsigned long frame = mfn_of(page[1]);
    table[2] = bad_descriptor(kind);
    read_only(page[1]);
    long result = set_gdt(&frame, 512);
    verdict_t verdict = as_stored(result, table[2]);
    set_gdt(NULL, 0);
    return verdict;
}

static verdict_t in_loaded_gdt(unsigned int kind)
{
    if (!load_gdt())
        return broke_out("no GDT loaded, which the guest may do");
    long result = update_descriptor(machine_of(page[1]) + 16, bad_descriptor(kind));
    verdict_t verdict = as_stored(result, ((volatile uint64_t *)page[1])[2]);
    set_gdt(NULL, 0);
    return verdict;
}

static verdict_t loaded_gdt_writable(unsigned int number)
{
    (void)number;
    load_gdt();
    verdict_t verdict = refused(writable(page[1]), "the loaded GDT mapped writable");
    set_gdt(NULL, 0);
    return verdict;
}

static verdict_t loaded_gdt_by_update(unsigned int number)
{
    (void)number;
    load_gdt();
    verdict_t verdict = refused(mmu_set(machine_of(page[1]) | 16, gate(0xc)), "the loaded GDT written");
    set_gdt(NULL, 0);
    return verdict;
}

static verdict_t loaded_gdt_by_clear(unsigned int number)
{
    (void)number;
    load_gdt();
    verdict_t verdict = refused(extended(MMUEXT_CLEAR_PAGE, mfn_of(page[1]), 0), "the loaded GDT written");
    set_gdt(NULL, 0);
    return verdict;
}

static verdict_t loaded_gdt_as_table(unsigned int level)
{
    load_gdt();
    verdict_t verdict = refused(pin(level, page[1]), "the loaded GDT as a page table");
    set_gdt(NULL, 0);
    return verdict;
}

static verdict_t loaded_gdt_given_back(unsigned int number)
{
    (void)number;
    load_gdt();
    give_back(page[1]);
    verdict_t verdict = refused(writable(page[1]), "the loaded GDT mapped writable");
    pte_write(VA(1), 0);
    set_gdt(NULL, 0);
    return take_again(page[1]) ? verdict : broke_out("no page for the one given back");
}

static verdict_t gdt_stale(unsigned int number)
{
    (void)number;
    volatile unsigned long *entry = (volatile unsigned long *)page[1];
    unsigned long frame = mfn_of(page[1]);
    entry[0] = 0;
    hypercall_update_va_mapping(VA(1), entry_of(page[1], READ_ONLY), 0);
    set_gdt(&frame, 512);
    try_store(&entry[1], 0);
    verdict_t verdict = trapped("the loaded GDT written through an old translation");
    set_gdt(NULL, 0);
    return verdict;
}

static verdict_t gdt_of_table(unsigned int level)
{
    unsigned long frame = own_table(level) >> 12;
    return refused(set_gdt(&frame, 512), "a page table as the GDT");
}

static verdict_t gdt_of_writable_page(unsigned int number)
{
    (void)number;
    unsigned long frame = mfn_of(page[1]);
    return refused(set_gdt(&frame, 512), "a writable page as the GDT");
}

static verdict_t gdt_too_long(unsigned int number)
{
    (void)number;
    static unsigned long frames[15];
    read_only(page[1]);
    for (size_t i = 0; i < ARRAY_SIZE(frames); i++)
        frames[i] = mfn_of(page[1]);
    return refused(set_gdt(frames, 15 * 512), "a GDT over the hypervisor's own entries");
}

static verdict_t descriptor_in_table(unsigned int level)
{
    return refused(update_descriptor(pte_machine_address(VA(0), level), 0),
                   "a page table written as a descriptor table");
}

static verdict_t descriptor_unaligned(unsigned int number)
{
    load_gdt();
    verdict_t verdict = refused(update_descriptor(machine_of(page[1]) + number, 0), "two descriptors written in part");
    set_gdt(NULL, 0);
    return verdict;
}

static const char *const frame_names[] = {"out-of-range", "of-another"};

static verdict_t descriptor_elsewhere(unsigned int number)
{
    uint64_t frame = number ? foreign_frame() : OUT_OF_RANGE;
    return refused(update_descriptor(frame << 12, 0), "a word written in a frame that is not ours");
}

/* --- selectors ---------------------------------------------------------------------------------------------------- */

static const uint16_t selectors[] = {
    HYPERVISOR_CS, HYPERVISOR_DS, 0xe038, 0xe040, 0xe050, 0x0ff8, 0xdff8, 0xfff8, 0x0c,
};
static const char *const selector_names[] = {
    "hypervisor-code", "hypervisor-data", "hypervisor-0xe038", "hypervisor-0xe040", "hypervisor-0xe050", "no-GDT",
    "last-of-the-guest", "last-of-the-GDT", "no-LDT",
};

static verdict_t load_selector(unsigned int which)
{
    TRY("mov %k[selector], %%fs", : [selector] "r"((unsigned int)selectors[which]));
    if (!seen.count)
        TRY("mov %k[selector], %%fs", : [selector] "r"(0));
    return trapped("a segment of the hypervisor's");
}

static verdict_t jump_to_selector(unsigned int which)
{
#ifdef __x86_64__
    TRY("push %[selector]; push $7f; lretq; 7:", : [selector] "r"((unsigned long)selectors[which]) : "memory");
#else
    TRY("push %[selector]; push $7f; lret; 7:", : [selector] "r"((unsigned long)selectors[which]) : "memory");
#endif
    return trapped("code of the hypervisor's level");
}

/* --- the LDT ------------------------------------------------------------------------------------------------------ */

static int set_ldt(unsigned long va, unsigned int entries)
{
    mmuext_op_t operation = {.cmd = MMUEXT_SET_LDT, .arg1.linear_addr = va, .arg2.nr_ents = entries};
    return (int)hypercall_mmuext_op(&operation, 1, NULL, DOMID_SELF);
}

static verdict_t first_of_ldt(unsigned long va, const char *got)
{
    int result = set_ldt(va, 512);
    if (result)
        return refused(result, got);
    TRY("mov %k[selector], %%fs", : [selector] "r"(0x0f));
    verdict_t verdict = trapped(got);
    if (!seen.count)
        TRY("mov %k[selector], %%fs", : [selector] "r"(0));
    set_ldt(0, 0);
    return verdict;
}

static const char *const place_names[] = {"the-hypervisor", "M2P"};

static verdict_t ldt_in_hypervisor(unsigned int number)
{
    return first_of_ldt(number ? (unsigned long)m2p : INSIDE & ~0xfffUL, "the hypervisor's words as descriptors");
}

static verdict_t ldt_of_writable_page(unsigned int number)
{
    (void)number;
    ((uint64_t *)page[1])[1] = descriptor(0, 0xf3, 0xc);
    return first_of_ldt(VA(1), "a writable page as the LDT");
}

static verdict_t ldt_of_table(unsigned int level)
{
    uint64_t *table = (uint64_t *)((unsigned long)pte_pointer(VA(0), level) & ~(PAGE_SIZE - 1UL));
    return first_of_ldt((unsigned long)table, "a page table as the LDT");
}

static verdict_t ldt_with_gate(unsigned int kind)
{
    ((uint64_t *)page[1])[1] = bad_descriptor(kind);
    read_only(page[1]);
    return first_of_ldt(VA(1), "a gate of the hypervisor's level");
}

/* A page that is the LDT, after its first use, is no more to be written. */
static verdict_t used_ldt_writable(unsigned int number)
{
    (void)number;
    ((uint64_t *)page[1])[1] = descriptor(0, 0xf3, 0xc);
    read_only(page[1]);
    set_ldt(VA(1), 512);
    TRY("mov %k[selector], %%fs", : [selector] "r"(0x0f));
    verdict_t verdict = refused(seen.count ? 0 : pte_write(VA(2), entry_of(page[1], PTE_DATA)),
                                "the LDT mapped writable");
    TRY("mov %k[selector], %%fs", : [selector] "r"(0));
    set_ldt(0, 0);
    return verdict;
}

static verdict_t ldt_too_long(unsigned int number)
{
    (void)number;
    return refused(set_ldt(VA(1), 8193), "an LDT that reaches into what lies behind it");
}

/* --- privileged state --------------------------------------------------------------------------------------------- */

static const char *const instruction_names[] = {
    "lgdt", "lidt", "lldt", "ltr", "invd", "clear-paging-in-CR0", "clear-protection-in-CR0", "wrmsr-of-EFER", "hlt",
};

static verdict_t instruction(unsigned int which)
{
    static struct { uint16_t limit; unsigned long base; } __attribute__((packed)) table = {0xffff, VIRT_BASE};
    switch (which) {
    case 0: TRY("lgdt %[table]", : [table] "m"(table)); break;
    case 1: TRY("lidt %[table]", : [table] "m"(table)); break;
    case 2: TRY("lldt %w[selector]", : [selector] "r"(0xe048)); break;
    case 3: TRY("ltr %w[selector]", : [selector] "r"(0xe040)); break;
    case 4: TRY("invd", : : "memory"); break;
    case 5: TRY("mov %[value], %%cr0", : [value] "r"(0x00050033UL)); break;
    case 6: TRY("mov %[value], %%cr0", : [value] "r"(0x80050032UL)); break;
    case 7: TRY("wrmsr", : "c"(0xc0000080), "a"(0), "d"(0)); break;
    default: TRY("hlt", : : "memory"); break;
    }
    return trapped("it done");
}

static verdict_t change_cr4(unsigned int number)
{
    (void)number;
    unsigned long before = 0, after = 0;
    TRY("mov %%cr4, %[value]", [value] "=r"(before));
    TRY("mov %[value], %%cr4", : [value] "r"(before & ~0x20UL));
    if (seen.count)
        return trapped(NULL);
    TRY("mov %%cr4, %[value]", [value] "=r"(after));
    return harmless(after == before, "CR4 reads as before", "PAE switched off");
}

static verdict_t port(unsigned int number)
{
    (void)number;
    TRY("outb %%al, $0x80", : "a"(0));
    return trapped("a port written");
}

static verdict_t port_level(unsigned int number)
{
    struct physdev_set_iopl iopl = {.iopl = number};
    return refused(HYPERCALL5(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, &iopl, 0, 0, 0),
                   "a level that there is not");
}

static verdict_t port_bitmap(unsigned int number)
{
    struct physdev_set_iobitmap bitmap = {.nr_ports = 65536};
    set_xen_guest_handle_raw(bitmap.bitmap, (uint8_t *)(number ? (unsigned long)m2p : INSIDE));
    long result = HYPERCALL5(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, &bitmap, 0, 0, 0);
    if (result)
        return refused(result, NULL);
    TRY("outb %%al, $0x80", : "a"(0));
    verdict_t verdict = trapped("a port by the hypervisor's memory as the bitmap");
    bitmap = (struct physdev_set_iobitmap){0};
    HYPERCALL5(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, &bitmap, 0, 0, 0);
    return verdict;
}

static verdict_t trap_into_hypervisor(unsigned int number)
{
    (void)number;
    trap_set(0x80, 3, (void (*)(void))INSIDE);
    TRY("int $0x80", : : "memory");
    verdict_t verdict = trapped("the hypervisor's code run");
    traps_init();
    return verdict;
}

static verdict_t load_from(unsigned long va)
{
    try_load((void *)va);
    return trapped("what the hypervisor's memory holds");
}

static verdict_t read_hypervisor(unsigned int number)
{
    (void)number;
    return load_from(INSIDE);
}

static verdict_t write_hypervisor(unsigned int number)
{
    (void)number;
    try_store((void *)INSIDE, 0);
    return trapped("the hypervisor written to");
}

static verdict_t write_m2p(unsigned int number)
{
    (void)number;
    try_store(m2p, 0);
    return trapped("M2P written to");
}

static verdict_t jump_into_hypervisor(unsigned int number)
{
    (void)number;
    TRY("jmp *%[target]", : [target] "r"(INSIDE) : "memory");
    return trapped("the hypervisor's code run");
}

#ifdef __x86_64__
static verdict_t breakpoint_in_hypervisor(unsigned int number)
{
    return refused(HYPERCALL5(__HYPERVISOR_set_debugreg, number, INSIDE, 0, 0, 0), "a breakpoint in the hypervisor");
}

static const unsigned long areas[] = {
    0xffff810000000000, 0xffff820000000000, 0xffff82c000000000, 0xffff82e000000000, 0xffff830000000000,
};
static const char *const area_names[] = {
    "linear-tables", "per-domain-area", "map-cache", "frame-table", "direct-map",
};

static verdict_t read_area(unsigned int which)
{
    return load_from(areas[which]);
}

static verdict_t write_area(unsigned int which)
{
    try_store((void *)areas[which], 0);
    return trapped("the hypervisor written to");
}

static verdict_t write_gdt_window(unsigned int number)
{
    (void)number;
    struct { uint16_t limit; unsigned long base; } __attribute__((packed)) table;
    __asm__ volatile("sgdt %[table]" : [table] "=m"(table));
    try_store((void *)(table.base + (HYPERVISOR_CS & ~7UL)), 0);
    return trapped("the processor's own GDT written to");
}
#endif

const struct attempt segment_attempts[] = {
    {"%s-in-new-GDT", NULL, in_new_gdt, 0, KINDS - 1, kinds},
    {"%s-in-loaded-GDT", NULL, in_loaded_gdt, 0, KINDS - 1, kinds},
    {"loaded-GDT-writable", NULL, loaded_gdt_writable, 0, 0, NULL},
    {"loaded-GDT-by-mmu_update", NULL, loaded_gdt_by_update, 0, 0, NULL},
    {"loaded-GDT-by-clear_page", NULL, loaded_gdt_by_clear, 0, 0, NULL},
    {"loaded-GDT-pinned-as-L%u", NULL, loaded_gdt_as_table, 1, LEVELS, NULL},
    {"loaded-GDT-given-back", NULL, loaded_gdt_given_back, 0, 0, NULL},
    {"stale-translation-of-GDT", "XSA-401", gdt_stale, 0, 0, NULL},
    {"GDT-of-L%u", NULL, gdt_of_table, 1, LEVELS, NULL},
    {"GDT-of-writable-page", NULL, gdt_of_writable_page, 0, 0, NULL},
    {"GDT-over-hypervisor-entries", NULL, gdt_too_long, 0, 0, NULL},
    {"descriptor-in-L%u", NULL, descriptor_in_table, 1, LEVELS, NULL},
    {"descriptor-unaligned-by-%u", NULL, descriptor_unaligned, 1, 7, NULL},
    {"descriptor-in-frame-%s", NULL, descriptor_elsewhere, 0, 1, frame_names},
    {"load-selector-%s", "XSA-298", load_selector, 0, ARRAY_SIZE(selectors) - 1, selector_names},
    {"jump-to-selector-%s", "XSA-298", jump_to_selector, 0, ARRAY_SIZE(selectors) - 1, selector_names},
    {"LDT-in-%s", NULL, ldt_in_hypervisor, 0, sizeof(long) == 8, place_names},
    {"LDT-of-writable-page", NULL, ldt_of_writable_page, 0, 0, NULL},
    {"LDT-of-L%u", NULL, ldt_of_table, 1, LEVELS, NULL},
    {"LDT-with-%s", NULL, ldt_with_gate, CALL_GATE, KINDS - 1, kinds},
    {"used-LDT-writable", NULL, used_ldt_writable, 0, 0, NULL},
    {"LDT-too-long", NULL, ldt_too_long, 0, 0, NULL},
    {"privileged-%s", NULL, instruction, 0, ARRAY_SIZE(instruction_names) - 1, instruction_names},
    {"privileged-clear-PAE-in-CR4", NULL, change_cr4, 0, 0, NULL},
    {"port-0x80", NULL, port, 0, 0, NULL},
    {"port-level-%u", NULL, port_level, 4, 4, NULL},
    {"port-bitmap-in-%s", NULL, port_bitmap, 0, 1, place_names},
    {"trap-handler-in-hypervisor", NULL, trap_into_hypervisor, 0, 0, NULL},
    {"read-hypervisor", NULL, read_hypervisor, 0, 0, NULL},
    {"write-hypervisor", NULL, write_hypervisor, 0, 0, NULL},
    {"write-M2P", NULL, write_m2p, 0, 0, NULL},
    {"jump-into-hypervisor", NULL, jump_into_hypervisor, 0, 0, NULL},
#ifdef __x86_64__
    {"breakpoint-%u-in-hypervisor", NULL, breakpoint_in_hypervisor, 0, 3, NULL},
    {"read-hypervisor-%s", NULL, read_area, 0, ARRAY_SIZE(areas) - 1, area_names},
    {"write-hypervisor-%s", NULL, write_area, 0, ARRAY_SIZE(areas) - 1, area_names},
    {"write-GDT-window", NULL, write_gdt_window, 0, 0, NULL},
#endif
    {0},
};
