/* Instructions that are privileged, or ought to be: what Xen emulates for a kernel, and what runs without a trap. */
#include "selftest.h"
#include <xen/physdev.h>

static unsigned long flags_now(void)
{
    unsigned long flags;
    __asm__ volatile("pushf; pop %0" : "=r"(flags));
    return flags;
}

static void set_iopl(unsigned int level)
{
    struct physdev_set_iopl iopl = {.iopl = level};
    HYPERCALL5(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, &iopl, 0, 0, 0);
}

static void test_interrupt_flag(void)
{
    is64(flags_now() & 0x200, 0x200, "pushf shows IF set");
    events_off();
    is64(flags_now() & 0x200, 0x200, "... with events off too");
    events_on();
    PROBE("pushf; andl $~0x200, (" SP "); popf", : : "memory", "cc");
    check_no_trap("popf that clears IF");
    is64(flags_now() & 0x200, 0x200, "... is without effect");
    is(upcall_mask(), 0, "... on the upcall mask too");
    PROBE("cli");
    check_trap(13, 0, 0, "cli at virtual IOPL 0");
    PROBE("sti");
    check_trap(13, 0, 0, "sti at virtual IOPL 0");
    set_iopl(1);
    PROBE("cli");
    check_no_trap("cli at virtual IOPL 1");
    is(upcall_mask(), 0, "... is without effect");
    PROBE("sti");
    check_no_trap("sti at virtual IOPL 1");
    set_iopl(0);
}

static void test_ports(void)
{
    unsigned int value;
    PROBE("inb $0xed, %%al", : : "eax");
    check_trap(13, 0, 0, "in at virtual IOPL 0");
    PROBE("outb %%al, $0xed");
    check_trap(13, 0, 0, "out at virtual IOPL 0");
    set_iopl(1);
    PROBE("xor %%eax, %%eax; inb $0xed, %%al", "=a"(value));
    check_no_trap("in at virtual IOPL 1");
    is((long)value, 0xff, "... from a port with nothing behind it gives ones");
    PROBE("xor %%eax, %%eax; inl %%dx, %%eax", "=a"(value) : "d"(0x7f0));
    check(!record.count && value == 0xffffffff, "in of 32 bits, too");
    PROBE("outb %%al, $0xed", : "a"(0));
    check_no_trap("out at virtual IOPL 1");
    set_iopl(0);
}

static void test_control_registers(void)
{
    unsigned long value;
    PROBE("mov %%cr0, %%" REG_A, "=a"(value));
    check_no_trap("mov from CR0");
    is64(value & 0x80000001, 0x80000001, "... PE and PG are set");
    is64(value & 8, 0, "... TS is clear");
    PROBE("mov %%cr3, %%" REG_A, "=a"(value));
    check_no_trap("mov from CR3");
    is64(value, xen_pfn_to_cr3(mfn_of((void *)start_info->pt_base)), "... is the machine address of the top table");
    PROBE("mov %%cr4, %%" REG_A, "=a"(value));
    check_no_trap("mov from CR4");
    is64(value & 0x20, 0x20, "... PAE is set");
    PROBE("mov %%" REG_C ", %%cr2", : "c"(0x1234));
    check_no_trap("mov to CR2");
    PROBE("mov %%cr2, %%" REG_A, "=a"(value));
    is64(value, 0x1234, "... is read back");
    is64(own_vcpu->arch.cr2, 0x1234, "... and is in vcpu_info");
    PROBE("mov %%" REG_C ", %%cr3", : "c"(xen_pfn_to_cr3(mfn_of((void *)start_info->pt_base))) : "memory");
    check_no_trap("mov to CR3");
    PROBE("mov %%" REG_C ", %%cr3", : "c"(xen_pfn_to_cr3(mfn_of(scratch[0]))) : "memory");
    check_trap(13, 0, 0, "mov to CR3 of a data page");
#ifdef __x86_64__
    PROBE("mov %%cr8, %%rax", : : "eax");
    check_trap(13, 0, 0, "mov from CR8");
#endif
}

/* What the kernel may write: TS in CR0; the rest stays as it is, or #GP. */
static void test_control_register_writes(void)
{
    unsigned long cr0, cr4, value;
    PROBE("mov %%cr0, %%" REG_A, "=a"(cr0));
    PROBE("mov %%" REG_C ", %%cr0", : "c"(cr0 | 8));
    check_no_trap("mov to CR0 that sets TS");
    PROBE("mov %%cr0, %%" REG_A, "=a"(value));
    is64(value & 8, 8, "... TS reads as set");
    PROBE("mov %%" REG_C ", %%cr0", : "c"(cr0));
    check_no_trap("mov to CR0 that clears TS");
    PROBE("mov %%" REG_C ", %%cr0", : "c"(cr0 ^ 0x10000));
    check_trap(13, 0, 0, "mov to CR0 that changes WP");
    PROBE("mov %%cr4, %%" REG_A, "=a"(cr4));
    PROBE("mov %%" REG_C ", %%cr4", : "c"(cr4));
    check_no_trap("mov to CR4 of what is there");
}

static void test_string_ports(void)
{
    static uint8_t buffer[4];
    unsigned int value;
    memset(buffer, 0, sizeof(buffer));
    set_iopl(1);
    uint8_t *to = buffer;
    PROBE("insb", "+D"(to) : "d"(0xed) : "memory");
    check_no_trap("insb at virtual IOPL 1");
    is(buffer[0], 0xff, "... stores ones");
    unsigned long left = 2;
    PROBE("rep insb", "+D"(to), "+c"(left) : "d"(0xed) : "memory");
    check_no_trap("rep insb");
    check(buffer[1] == 0xff && buffer[2] == 0xff && !buffer[3], "... stores as many as asked for");
    check(to == buffer + 3 && !left, "... and steps the index and the count");
    const uint8_t *from = buffer;
    PROBE("outsb", "+S"(from) : "d"(0xed));
    check_no_trap("outsb");
    PROBE("inb %%dx, %%al", "=a"(value) : "d"(0xed), "a"(0x12345600));
    is64(value, 0x123456ff, "in of a byte leaves the rest of EAX");
    PROBE("inw %%dx, %%ax", "=a"(value) : "d"(0x7f0), "a"(0x12340000));
    is64(value, 0x1234ffff, "in of two bytes, too");
    set_iopl(0);
    to = buffer;
    PROBE("insb", "+D"(to) : "d"(0xed) : "memory");
    check_trap(13, 0, 0, "insb at virtual IOPL 0");
    set_iopl(1);
    is64(flags_now() & 0x3000, 0, "virtual IOPL 1 is not seen in the flags");
    set_iopl(0);
}

static void read_msr(unsigned int number, unsigned int *low, unsigned int *high)
{
    unsigned int eax = 0, edx = 0;
    PROBE("rdmsr", "+a"(eax), "+d"(edx) : "c"(number));
    *low = eax;
    *high = edx;
}

static void test_msrs(void)
{
    unsigned int low, high;
    read_msr(0xc0000080, &low, &high);
    check_no_trap("rdmsr of EFER");
    is64(low & 0xd00, sizeof(long) == 8 ? 0xd00 : 0x800, "... NXE is set, and LMA and LME for a 64-bit kernel");
    read_msr(0x12345678, &low, &high);
    check_trap(13, 0, 0, "rdmsr of none");
    PROBE("wrmsr", : "c"(0x12345678), "a"(0), "d"(0));
    check_trap(13, 0, 0, "wrmsr of none");
    read_msr(0x1b, &low, &high);
    check_no_trap("rdmsr of APIC_BASE");
    read_msr(0x10, &low, &high);
    check_no_trap("rdmsr of TSC");
    read_msr(0x277, &low, &high);
    check(!record.count && high == 0x501 && low == 0x70406, "rdmsr of PAT: Xen's own value");
    read_msr(0x1a0, &low, &high);
    check_no_trap("rdmsr of MISC_ENABLE");
#ifdef __x86_64__
    PROBE("wrmsr", : "c"(0xc0000100), "a"(0x55667788), "d"(0x11223344 & 0x7fff));
    check_no_trap("wrmsr of FS_BASE");
    read_msr(0xc0000100, &low, &high);
    check(!record.count && low == 0x55667788 && high == (0x11223344 & 0x7fff), "... is read back");
    PROBE("wrmsr", : "c"(0xc0000100), "a"(0), "d"(0x80000000));
    check_trap(13, 0, 0, "wrmsr of a non-canonical FS_BASE");
    PROBE("wrmsr", : "c"(0xc0000100), "a"(0), "d"(0));
#endif
}

static void test_cpuid(void)
{
    unsigned int eax, ebx, ecx, edx;
    PROBE(XEN_CPUID, "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(0x40000000));
    check_no_trap("cpuid behind Xen's prefix");
    check(eax >= 0x40000002 && ebx == 0x566e6558 && ecx == 0x65584d4d && edx == 0x4d4d566e,
          "... leaf 0x40000000 is XenVMMXenVMM");
    PROBE(XEN_CPUID, "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(0x40000001));
    is((long)eax, hypercall_xen_version(XENVER_version, NULL), "... leaf 0x40000001 is the version");
    PROBE(XEN_CPUID, "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(0x40000002));
    check(eax == 1 && ebx == 0x40000000, "... leaf 0x40000002: one hypercall page, by MSR 0x40000000");
    PROBE(XEN_CPUID, "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(1));
    is64(edx & (1 << 1 | 1 << 3 | 1 << 16 | 1 << 17), 1 << 16, "cpuid leaf 1: PAT; no VME, PSE, PSE36");
    check(ecx & (1u << 31), "... the hypervisor bit");
    is64(ecx & (1 << 3 | 1 << 5), 0, "... no MONITOR, no VMX");
    PROBE("cpuid", "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(0));
    check_no_trap("cpuid");
}

/* Selectors of Xen's own: what looks at them without loading, and what loads them. */
static void test_xen_selectors(void)
{
    unsigned int value = 0;
    PROBE("lsl %%ecx, %%eax", "+a"(value) : "c"(FLAT_KERNEL_CS));
    check_no_trap("lsl of the flat code segment");
    is64(value, 0xffffffff, "... 4 GiB");
    PROBE("lar %%ecx, %%eax", "+a"(value) : "c"(FLAT_KERNEL_SS));
    is64(value & 0xf000, sizeof(long) == 8 ? 0xf000 : 0xb000, "lar of the flat stack segment: present, its level");
    PROBE("verr %%cx; setz %%al", "=a"(value) : "c"(FLAT_KERNEL_SS));
    is64(value & 0xff, 1, "verr of the flat stack segment says yes");
    PROBE("mov %%ecx, %%es", : "c"(FLAT_KERNEL_SS));
    check_no_trap("the flat stack segment in ES");
    PROBE("mov %%ecx, %%es", : "c"(0xe008));
    check_trap(13, 0xe008, 0, "the hypervisor's own code segment in ES");
    PROBE("lsl %%ecx, %%eax; setz %%al", "=a"(value) : "c"(0xe008));
    is64(value & 0xff, 0, "lsl of it says no");
    PROBE("mov %%ecx, %%es", : "c"(sizeof(long) == 8 ? 0 : FLAT_KERNEL_SS));
}

static void test_unprivileged(void)
{
    static uint8_t table[10];
    unsigned long value;
    PROBE("sgdt %0", "=m"(table));
    check_no_trap("sgdt");
    PROBE("sidt %0", "=m"(table));
    check_no_trap("sidt");
    PROBE("sldt %%ecx", "=c"(value));
    check_no_trap("sldt");
    PROBE("str %%ecx", "=c"(value));
    check_no_trap("str");
    PROBE("smsw %%ecx", "=c"(value));
    check_no_trap("smsw");
    is64(value & 1, 1, "... PE is set");
    PROBE("rdtsc", : : "eax", "edx");
    check_no_trap("rdtsc");
    PROBE("invlpg (%%" REG_D ")", : "D"(scratch) : "memory");
    check_trap(13, 0, 0, "invlpg, which a hypercall is for");
    PROBE("wbinvd");
    check_no_trap("wbinvd");
    PROBE("xgetbv", : "c"(0) : "eax", "edx");
    check_trap(6, 0, 0, "xgetbv, for there is no XSAVE");
    PROBE("rdpmc", : "c"(0) : "eax", "edx");
    check_trap(13, 0, 0, "rdpmc");
    PROBE("lgdt (" SP ")", : : "memory");
    check_trap(13, 0, 0, "lgdt");
    PROBE("lldt %%cx", : "c"(0));
    check_trap(13, 0, 0, "lldt");
#ifdef __x86_64__
    PROBE("swapgs");
    check_trap(13, 0, 0, "swapgs");
    PROBE("sysretq");
    check_trap(13, 0, 0, "sysret");
#endif
    PROBE("invd");
    check_trap(13, 0, 0, "invd");
}

void test_privileged_instructions(void)
{
    test_interrupt_flag();
    test_ports();
    test_control_registers();
    test_control_register_writes();
    test_string_ports();
    test_msrs();
    test_cpuid();
    test_unprivileged();
    test_xen_selectors();
}


static void test_fpu(void)
{
    unsigned long value;
    PROBE("fninit");
    check_no_trap("an FPU instruction");
    hypercall_fpu_taskswitch(1);
    PROBE("mov %%cr0, %%" REG_A, "=a"(value));
    is64(value & 8, 8, "fpu_taskswitch(1): TS is set");
    PROBE("fninit");
    check_trap(7, 0, 0, "an FPU instruction then");
    PROBE("mov %%cr0, %%" REG_A, "=a"(value));
    is64(value & 8, 0, "... which clears TS");
    PROBE("fninit");
    check_no_trap("the next FPU instruction");
    hypercall_fpu_taskswitch(1);
    PROBE("clts");
    check_no_trap("clts");
    PROBE("fninit");
    check_no_trap("... an FPU instruction after it");
    hypercall_fpu_taskswitch(1);
    hypercall_fpu_taskswitch(0);
    PROBE("fninit");
    check_no_trap("fpu_taskswitch(0): an FPU instruction");
}

static long debugreg(unsigned int number)
{
    return HYPERCALL5(__HYPERVISOR_get_debugreg, number, 0, 0, 0, 0);
}

static long set_debugreg(unsigned int number, unsigned long value)
{
    return HYPERCALL5(__HYPERVISOR_set_debugreg, number, value, 0, 0, 0);
}

static void test_debug_registers(void)
{
    unsigned long value;
    is(debugreg(0), 0, "get_debugreg 0");
    is(debugreg(8), -XEN_ENODEV, "get_debugreg 8");
    is64((unsigned long)debugreg(4), 0xffff0ff0, "get_debugreg 4 is 6");
    is64((unsigned long)debugreg(6), 0xffff0ff0, "get_debugreg 6");
    is64((unsigned long)debugreg(7), 0x400, "get_debugreg 7");
    is(set_debugreg(0, (unsigned long)scratch), 0, "set_debugreg 0");
    is64((unsigned long)debugreg(0), (unsigned long)scratch, "... is read back");
    PROBE("mov %%db0, %%" REG_A, "=a"(value));
    check_no_trap("mov from DR0");
    is64(value, (unsigned long)scratch, "... is the same");
    /* what is checked is the 64-bit hypervisor's range, which no 32-bit address lies in */
    is(set_debugreg(0, (unsigned long)m2p), sizeof(long) == 8 ? -XEN_EPERM : 0, "set_debugreg 0: in the hypervisor");
    is(set_debugreg(0, 0), 0, "set_debugreg 0: clear");
    is(set_debugreg(8, 0), -XEN_ENODEV, "set_debugreg 8");
    is(set_debugreg(4, 0xffff0ff0), 0, "set_debugreg 4");
}

static void test_single_step(void)
{
    PROBE("pushf; orl $0x100, (" SP "); popf; nop; 7: nop", : : "cc", "memory");
    check_trap(1, 0, 10, "single step, one instruction after popf");
    is64(record.frame.flags & 0x100, 0x100, "... TF is set in the frame");
    is64((unsigned long)debugreg(6), 0xffff4ff0, "... DR6 says single step");
    is(set_debugreg(6, 0xffff0ff0), 0, "set_debugreg 6");
}

__asm__(".text\nbreak_here: nop\nbreak_there: nop\njmp *probe_resume\n"
        ".pushsection .user, \"ax\"\nuser_break: nop; nop; int3\n.popsection");
extern void break_here(void), break_there(void), user_break(void);

#define DR6_DEFAULT 0xffff0ff0UL

static void check_breakpoint(unsigned long where, unsigned long which, const char *what)
{
    check(record.count == 1 && record.frame.vector == 1 && record.frame.ip == where, "%s: vector 1, IP at it", what);
    is64((unsigned long)debugreg(6), DR6_DEFAULT | which, "... DR6 says which");
    set_debugreg(6, DR6_DEFAULT);
}

static void test_breakpoints(void)
{
    is(set_debugreg(0, (unsigned long)break_here), 0, "set_debugreg 0: an instruction");
    is(set_debugreg(3, (unsigned long)break_there), 0, "set_debugreg 3: the next one");
    PROBE("jmp break_here",);
    check_no_trap("a breakpoint that is not enabled");
    is(set_debugreg(7, 0x401), 0, "set_debugreg 7: the first enabled");
    PROBE("jmp break_here",);
    check_breakpoint((unsigned long)break_here, 1, "a breakpoint");
    is64(record.frame.flags & 0x10000, 0, "... RF is clear in the frame");
    PROBE("jmp break_there",);
    check_no_trap("the other one is not");
    PROBE("mov %%" REG_C ", %%db7", : "c"(0x480));
    check_no_trap("mov to DR7: the other one enabled");
    PROBE("jmp break_here",);
    check_breakpoint((unsigned long)break_there, 8, "the next instruction");
    is(set_debugreg(2, (unsigned long)break_there), 0, "set_debugreg 2: the same instruction");
    is(set_debugreg(7, 0x4b0), 0, "set_debugreg 7: two on one instruction");
    PROBE("jmp break_there",);
    check_breakpoint((unsigned long)break_there, 12, "two at once");
    is(set_debugreg(1, (unsigned long)user_code((const void *)user_break) + 1), 0, "set_debugreg 1: user code");
    is(set_debugreg(7, 0x404), 0, "set_debugreg 7: enabled");
    USER_PROBE(user_break, 0);
    check_breakpoint((unsigned long)user_code((const void *)user_break) + 1, 2, "a breakpoint in user mode");
    is(set_debugreg(7, 0x400), 0, "set_debugreg 7: none");
    PROBE("jmp break_here",);
    check_no_trap("none");
    for (unsigned int number = 0; number < 4; number++)
        set_debugreg(number, 0);
}

#define CR4_DE 8
#define DR7_PORT 0x20401  /* the first, a byte of an I/O port */

static void check_port_breakpoint(unsigned int length, const char *what)
{
    check_trap(1, 0, length, what);
    is64((unsigned long)debugreg(6), DR6_DEFAULT | 1, "... DR6 says which");
    set_debugreg(6, DR6_DEFAULT);
}

/* INS and OUTS, which are interrupted behind each repetition */
static void test_string_port_breakpoints(void)
{
    static unsigned char bytes[4];
    unsigned char *where;
    unsigned long count;
    PROBE("insb; nop", "=D"(where) : "d"(0xed), "D"(bytes) : "memory");
    check_port_breakpoint(1, "insb");
    is(bytes[0], 0xff, "... it has been done");
    is64((unsigned long)where, (unsigned long)(bytes + 1), "... and goes on with the next byte");
    PROBE("outsb; nop", "=S"(where) : "d"(0xed), "S"(bytes));
    check_port_breakpoint(1, "outsb");
    is64((unsigned long)where, (unsigned long)(bytes + 1), "... it has been done");
    PROBE("rep insb; nop", "=D"(where), "=c"(count) : "d"(0xed), "D"(bytes + 1), "c"(3) : "memory");
    check_port_breakpoint(0, "rep insb, behind the first of three");
    is64(count, 2, "... once done");
    is64((unsigned long)where, (unsigned long)(bytes + 2), "... and goes on with the next byte");
    is(bytes[1], 0xff, "... it has been done");
    is(bytes[2], 0, "... no more than once");
    PROBE("rep outsb; nop", "=S"(where), "=c"(count) : "d"(0xed), "S"(bytes + 3), "c"(2));
    check_port_breakpoint(0, "rep outsb, behind the first of two");
    is64(count, 1, "... once done");
    PROBE("std; rep outsb; cld; nop", "=S"(where), "=c"(count) : "d"(0xed), "S"(bytes + 3), "c"(1));
    check_port_breakpoint(3, "rep outsb, behind the only one");
    __asm__ volatile("cld");
    is64(count, 0, "... done");
    is64((unsigned long)where, (unsigned long)(bytes + 2), "... downwards");
    PROBE("pushf; orl $0x100, (" SP "); popf; outsb; nop", "=S"(where) : "d"(0xed), "S"(bytes) : "cc", "memory");
    check_trap(1, 0, 10, "outsb, single stepped");
    is64((unsigned long)debugreg(6), DR6_DEFAULT | 0x4001, "... DR6 says both");
    set_debugreg(6, DR6_DEFAULT);
}

static void test_port_breakpoints(void)
{
    unsigned long cr4;
    unsigned int value;
    set_iopl(1);
    is(set_debugreg(0, 0xed), 0, "set_debugreg 0: a port");
    is(set_debugreg(7, DR7_PORT), -XEN_EPERM, "set_debugreg 7: a port, without CR4.DE");
    PROBE("mov %%cr4, %%" REG_A, "=a"(cr4));
    PROBE("mov %%" REG_C ", %%cr4", : "c"(cr4 | CR4_DE));
    check_no_trap("mov to CR4: DE");
    is(set_debugreg(7, DR7_PORT), 0, "set_debugreg 7: a port, with it");
    is64((unsigned long)debugreg(7), DR7_PORT, "... is read back");
    PROBE("outb %%al, $0xed; nop", : "a"(0));
    check_port_breakpoint(2, "out: vector 1, behind it");
    PROBE("inb $0xed, %%al; nop", "=a"(value) : "a"(0));
    check_port_breakpoint(2, "in: vector 1, behind it");
    is((long)(value & 0xff), 0xff, "... it has been done");
    PROBE("outw %%ax, $0xec; nop", : "a"(0));
    check_port_breakpoint(3, "out of two ports, one of them");
    PROBE("outb %%al, $0xee; nop", : "a"(0));
    check_no_trap("out to the next port");
    test_string_port_breakpoints();
    is(set_debugreg(7, 0x400), 0, "set_debugreg 7: none");
    PROBE("outb %%al, $0xed; nop", : "a"(0));
    check_no_trap("none");
    PROBE("mov %%" REG_C ", %%cr4", : "c"(cr4));
    set_debugreg(0, 0);
    set_iopl(0);
}

void test_fpu_and_debug(void)
{
    test_fpu();
    test_debug_registers();
    test_single_step();
    test_breakpoints();
    test_port_breakpoints();
}
