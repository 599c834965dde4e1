/* GDT and LDT: frames given to Xen, entries checked by it. */
#include "selftest.h"

/* Flat or not, code or data; type and S in `access` (0xf3: data, level 3; 0xfb: code, level 3). */
static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t access, uint32_t flags)
{
    uint32_t low = base << 16 | (limit & 0xffff);
    uint32_t high = (base & 0xff000000) | flags << 20 | (limit & 0xf0000) | access << 8 | (base >> 16 & 0xff);
    return (uint64_t)high << 32 | low;
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

static long set_gdt(const void *frames, unsigned int entries)
{
    return HYPERCALL5(__HYPERVISOR_set_gdt, frames, entries, 0, 0, 0);
}

static long mmuext_ldt(unsigned long va, unsigned int entries)
{
    mmuext_op_t operation = {.cmd = MMUEXT_SET_LDT, .arg1.linear_addr = va, .arg2.nr_ents = entries};
    return hypercall_mmuext_op(&operation, 1, NULL, DOMID_SELF);
}

static uint16_t load_selector(uint16_t selector)
{
    unsigned int loaded = 0;
    PROBE("mov %%ecx, %%fs; mov %%fs, %%eax", "+a"(loaded) : "c"((unsigned int)selector));
    return (uint16_t)loaded;
}

static void test_gdt(void)
{
    unsigned long va = (unsigned long)scratch[5], frame = mfn_of(scratch[5]), wrong = 1UL << 30;
    uint64_t *table = (uint64_t *)scratch[5], machine = (uint64_t)frame << 12;
    memset(table, 0, PAGE_SIZE);
    table[2] = descriptor((uint32_t)0x1000, 0xfffff, 0xf3, 0xc);
    is(set_gdt(&frame, 512 * 14 + 1), -XEN_EINVAL, "set_gdt: into the hypervisor's entries");
    is(set_gdt(NOWHERE, 1), -XEN_EFAULT, "set_gdt: frames from nowhere");
    is(set_gdt(&wrong, 1), -XEN_EINVAL, "set_gdt: no frame");
    is(set_gdt(&frame, 512), -XEN_EINVAL, "set_gdt: a page that is mapped writable");
    pte_write(va, (uint64_t)frame << 12 | PTE_PRESENT | PTE_NX);
    is(set_gdt(&frame, 512), 0, "set_gdt: a page of ours");
    is(load_selector(0x13), 0x13, "a descriptor of ours can be loaded");
    check_no_trap("... without a trap");
    is(pte_write(va, machine | PTE_DATA), -XEN_EBUSY, "the GDT page cannot be mapped writable");
    is(update_descriptor(machine + 3 * 8, descriptor(0, 0xfffff, 0xfb, 0xc)), 0, "update_descriptor: a code segment");
    is64(table[3] >> 40 & 0xff, 0xfb, "... is in the table");
    is(update_descriptor(machine + 4, 0), -XEN_EINVAL, "update_descriptor: unaligned");
    is(update_descriptor((uint64_t)wrong << 12, 0), -XEN_EINVAL, "update_descriptor: in no frame");
    is(update_descriptor(machine + 4 * 8, descriptor(0, 0xfffff, 0x93, 0xc)), 0, "update_descriptor: level 0");
    is64(table[4] >> 40 & 0xff, sizeof(long) == 8 ? 0xf3 : 0xb3, "... becomes the kernel's level");
    is(update_descriptor(machine + 4 * 8, descriptor(0, 0xfffff, 0xe9, 0)), -XEN_EINVAL, "update_descriptor: a TSS");
    is(update_descriptor(machine + 2 * 8, 0), 0, "update_descriptor: remove one");
    load_selector(0x13);
    check(record.count == 1 && record.frame.vector == 13 && record.frame.error == 0x10,
          "... and it can no longer be loaded");
    load_selector(0);
    is(set_gdt(NULL, 0), 0, "set_gdt: none");
    is(pte_write(va, machine | PTE_DATA), 0, "... and the page can be mapped writable again");
}

static void test_ldt(void)
{
    unsigned long va = (unsigned long)scratch[5];
    uint64_t machine = (uint64_t)mfn_of(scratch[5]) << 12;
    memset(scratch[5], 0, PAGE_SIZE);
    ((uint64_t *)scratch[5])[1] = descriptor(0, 0xfffff, 0xf3, 0xc);
    pte_write(va, machine | PTE_PRESENT | PTE_NX);
    is(mmuext_ldt(va, 2), 0, "set_ldt: a page of ours");
    is(load_selector(0xf), 0xf, "an LDT descriptor can be loaded");
    check_no_trap("... without a trap, though Xen maps the page only now");
    load_selector(0);
    is(mmuext_ldt(0, 0), 0, "set_ldt: none");
    is(pte_write(va, machine | PTE_DATA), 0, "... and the page can be mapped writable again");
    memset(scratch[5], 0, PAGE_SIZE);
}

#ifndef __x86_64__
/* A call gate: the processor refuses it, as it has DPL 0, and Xen goes through it in its stead. */
__asm__(".text\n"
        "through_gate: movl %esp, gate_sp; lret\n"
        "through_gate_from_user: movl %esp, gate_sp; movw %cs, gate_cs; lret $4\n");
extern void through_gate(void), through_gate_from_user(void);
volatile unsigned long gate_sp, gate_cs;

__asm__(".pushsection .user, \"ax\"\n"
        "user_gate: pushl $0x1234567; lcall $0x43, $0; int3\n.popsection");
extern void user_gate(void);

static uint64_t gate(unsigned int selector, void (*target)(void), unsigned int access)
{
    unsigned long offset = (unsigned long)target;
    return (uint64_t)((offset & 0xffff0000) | access) << 32 | selector << 16 | (offset & 0xffff);
}

static void test_call_gates(void)
{
    unsigned long va = (unsigned long)scratch[5], frame = mfn_of(scratch[5]), sp;
    uint64_t *table = (uint64_t *)scratch[5], machine = (uint64_t)frame << 12;
    memset(table, 0, PAGE_SIZE);
    table[6] = descriptor(0, 0xf57ff, 0xbb, 0xc);
    table[7] = gate(0x31, through_gate, 0xac00);
    table[8] = gate(0x31, through_gate_from_user, 0xec01);
    pte_write(va, machine | PTE_PRESENT | PTE_NX);
    is(set_gdt(&frame, 512), 0, "set_gdt: with call gates");
    is64(table[7] >> 32 & 0xffff, 0x8c00, "a call gate's DPL becomes 0");
    is64(table[7] >> 16 & 0xffff, 0x31, "... and is kept in its selector");
    PROBE("movl %%esp, %0; lcall $0x39, $0", "=m"(sp));
    check_no_trap("a call through it");
    is64(gate_sp, sp - 8, "... with CS and IP on the same stack");
    PROBE("lcall $0x3a, $0",);
    check_trap(13, 0x38, 0, "... with an RPL that the gate does not serve");
    USER_PROBE(user_gate, 0);
    check(record.count == 1 && record.frame.vector == 3, "a call from user mode");
    extern char trap_stack[];
    is64(gate_sp, (unsigned long)trap_stack + STACK_PAGES * PAGE_SIZE - 20, "... on the kernel's stack, one parameter");
    is64(gate_cs & 0xffff, 0x31, "... in the kernel's ring");
    is(set_gdt(NULL, 0), 0, "set_gdt: none");
    is(pte_write(va, machine | PTE_DATA), 0, "... and the page can be mapped writable again");
}
#endif

#ifdef __x86_64__
static void test_segment_bases(void)
{
    static unsigned long here = 0x1234567;
    unsigned long value = 0, selector;
    HYPERCALL5(__HYPERVISOR_set_segment_base, SEGBASE_FS, (unsigned long)&here, 0, 0, 0);
    PROBE("mov %%fs:0, %%rax", "+a"(value));
    is64(value, here, "set_segment_base: FS");
    HYPERCALL5(__HYPERVISOR_set_segment_base, SEGBASE_GS_KERNEL, (unsigned long)&here, 0, 0, 0);
    value = 0;
    PROBE("mov %%gs:0, %%rax", "+a"(value));
    is64(value, here, "set_segment_base: the kernel's GS");
    HYPERCALL5(__HYPERVISOR_set_segment_base, SEGBASE_FS, 0, 0, 0, 0);
    HYPERCALL5(__HYPERVISOR_set_segment_base, SEGBASE_GS_KERNEL, 0, 0, 0, 0);
    PROBE("mov %%cs, %%eax", "=a"(selector));
    is64(selector & 0xffff, FLAT_KERNEL_CS64, "CS reads as the flat code segment, RPL 3");
}
#endif

void test_descriptors(void)
{
    test_gdt();
    test_ldt();
#ifdef __x86_64__
    test_segment_bases();
#else
    test_call_gates();
#endif
}
