/* Exceptions: which vector, which error code, and every word of the frame. */
#include "selftest.h"

static void check_frame(const char *what)
{
    const struct trap_frame *frame = &record.frame;
#ifdef __x86_64__
    is64(frame->cs & 0xffff, 0xe030, "%s: CS in the frame has RPL 0 for the kernel", what);
    is64(frame->ss & 0xffff, FLAT_KERNEL_SS, "%s: SS in the frame", what);
    is64(frame->sp, probe_sp, "%s: RSP in the frame", what);
    check(!(record.frame_end & 15), "%s: the frame ends on 16 bytes", what);
#else
    is64(frame->cs & 0xffff, FLAT_KERNEL_CS, "%s: CS in the frame has RPL 1 for the kernel", what);
    is64(record.frame_end, probe_sp, "%s: the frame has no ESP and SS, and lies on the stack of before", what);
#endif
}

/* The upcall mask of the interrupted code, as the frame has it next to CS. */
unsigned int saved_mask(void)
{
#ifdef __x86_64__
    return (unsigned int)(record.frame.cs >> 32) & 0xff;
#else
    return record.frame.cs >> 16 & 0xff;
#endif
}

static void test_saved_mask(void)
{
    PROBE("ud2");
    is(saved_mask(), 0, "events on: the saved upcall mask is 0");
    is64(record.frame.flags & 0x200, 0x200, "events on: IF is set in the frame");
    is(record.mask_in_handler, 0, "events on: they stay on in an exception handler");
    events_off();
    PROBE("ud2");
    is(saved_mask(), 1, "events off: the saved upcall mask is 1");
    is64(record.frame.flags & 0x200, 0, "events off: IF is clear in the frame");
    is(upcall_mask(), 1, "events off: they still are after the return");
    events_on();
    trap_set(6, 4, trap_6);
    PROBE("ud2");
    is(record.mask_in_handler, 1, "the trap table's event-mask flag sets the upcall mask on entry");
    is(saved_mask(), 0, "... and the saved one is that of before");
    is(upcall_mask(), 0, "... which the return restores");
    trap_set(6, 0, trap_6);
}

static void test_flags(void)
{
    /* CF, PF, AF, ZF, SF and OF pass through the frame; IOPL is 0 */
    PROBE("pushf; orl $0x8d5, (" SP "); popf; ud2", : : "cc");
    is64(record.frame.flags & 0x8d5, 0x8d5, "arithmetic flags set: in the frame too");
    PROBE("pushf; andl $~0x8d5, (" SP "); popf; ud2", : : "cc");
    is64(record.frame.flags & 0x8d5, 0, "arithmetic flags clear: in the frame too");
    is64(record.frame.flags & 0x3000, 0, "IOPL in the frame is 0");
    is64(record.frame.flags & 2, 2, "bit 1 of the flags is set");
    PROBE("ud2");
    is64(record.frame.flags & ~0x10000UL, probe_flags, "flags in the frame are those of before, but for RF");
    PROBE("std; ud2", : : "cc");
    is64(record.frame.flags & 0x400, 0x400, "DF in the frame is that of the interrupted code");
    __asm__ volatile("cld");
}

static void test_registers(void)
{
#ifdef __x86_64__
    PROBE("ud2", : "c"(0x1111222233334444), "S"(0x5555666677778888), "d"(0x99));
    is64(record.frame.rcx, 0x1111222233334444, "RCX, which the frame carries");
    is64(record.frame.rsi, 0x5555666677778888, "RSI, which it does not");
    PROBE("movabs $0x123456789abcdef0, %%r11; ud2", : : "r11");
    is64(record.frame.r11, 0x123456789abcdef0, "R11, which the frame carries");
    unsigned long rcx;
    PROBE("mov $7, %%ecx; ud2", "=c"(rcx));
    is64(rcx, 7, "the iret hypercall restores RCX");
#else
    PROBE("ud2", : "c"(0x11112222), "S"(0x33334444), "a"(0x55556666));
    is64(record.frame.ecx, 0x11112222, "ECX");
    is64(record.frame.esi, 0x33334444, "ESI");
    is64(record.frame.eax, 0x55556666, "EAX");
    unsigned long eax;
    PROBE("mov $7, %%eax; ud2", "=a"(eax));
    is64(eax, 7, "the iret hypercall restores EAX");
#endif
}

void test_exceptions(void)
{
    PROBE("divb %%cl", : "a"(1), "c"(0) : "cc");
    check_trap(0, 0, 0, "division by zero");
    check_frame("division by zero");
    PROBE("int3");
    check_trap(3, 0, 1, "int3");
    PROBE("ud2");
    check_trap(6, 0, 0, "ud2");
    check_frame("ud2");
#ifdef __x86_64__
    PROBE(".byte 0x06");
    check_trap(6, 0, 0, "push es, invalid in 64-bit mode");
    PROBE("movb (%%rdi), %%al", : "D"(0x8000000000000000) : "eax");
    check_trap(13, 0, 0, "a load from a non-canonical address");
#else
    PROBE("movb $0x7f, %%al; addb $1, %%al; into", : : "eax", "cc");
    check_trap(4, 0, 5, "into");
    static const int bounds[2] = {1, 5};
    PROBE("bound %%ecx, (%%edx)", : "c"(9), "d"(bounds));
    check_trap(5, 0, 0, "bound");
#endif
    PROBE("mov %%ecx, %%es", : "c"(0xfff8));
    check_trap(13, 0xfff8, 0, "a selector beyond the table");
    check_frame("a selector beyond the table");
    PROBE("mov %%ecx, %%es", : "c"(0x7));
    check_trap(13, 4, 0, "a selector in the LDT, without an LDT");
    PROBE("hlt");
    check_trap(13, 0, 0, "hlt");
    PROBE("lidt (" SP ")", : : "memory");
    check_trap(13, 0, 0, "lidt");
    PROBE("ltr %%cx", : "c"(0xe040));
    check_trap(13, 0, 0, "ltr");
    PROBE("lmsw %%cx", : "c"(0xffff));
    check_trap(13, 0, 0, "lmsw");
    test_saved_mask();
    test_flags();
    test_registers();
}

#define LOAD "movb (%%" REG_D "), %%al"
#define STORE "movb %%al, (%%" REG_D ")"
#define CALL "call *%%" D

static uint8_t code_page[PAGE_SIZE] __page_aligned = {0xc3};

/* Faults on accesses from the kernel. */
static void test_kernel_faults(void)
{
    unsigned long va = (unsigned long)scratch[4];
    uint64_t pte = pte_read(va);
    PROBE(LOAD, : "D"(NOWHERE) : "eax");
    check_trap(14, 0, 0, "a load from nowhere");
    check_frame("a load from nowhere");
    is64(record.cr2, (unsigned long)NOWHERE, "... CR2 in vcpu_info is the address");
    PROBE(STORE, : "D"(NOWHERE) : "memory");
    check_trap(14, 2, 0, "a store to nowhere");
    pte_write(va, 0);
    PROBE(LOAD, : "D"(va + 0x123) : "eax");
    check_trap(14, 0, 0, "a load from a page just unmapped");
    is64(record.cr2, va + 0x123, "... CR2 has the offset too");
    pte_write(va, pte & ~PTE_WRITABLE);
    PROBE(STORE, : "D"(va) : "memory");
    check_trap(14, 3, 0, "a store to a read-only page");
    PROBE(LOAD, : "D"(va) : "eax");
    check_no_trap("a load from a read-only page");
    pte_write(va, pte);
    PROBE(STORE, : "D"(va) : "memory");
    check_no_trap("a store to the page, writable again");
    PROBE(STORE, : "D"(start_info->pt_base) : "memory");
    check_trap(14, 3, 0, "a store to the top page table");
    PROBE("jmp *%%" REG_D, : "D"(code_page));
    check(record.count == 1 && record.frame.vector == 14, "a jump to a data page faults");
    is64(record.frame.error, 0x11, "... error: present, instruction fetch");
    is64(record.frame.ip, (unsigned long)code_page, "... IP is the target");
    is64(record.cr2, (unsigned long)code_page, "... CR2 too");
}

/* Where only the hypervisor may look. The P bit is its own affair (it depends on how Xen isolates itself). */
static void test_hypervisor_range(void)
{
    unsigned long inside = HYPERVISOR_INSIDE;
    PROBE(LOAD, : "D"(inside) : "eax");
    check(record.count == 1 && record.frame.vector == 14 && !(record.frame.error & ~1UL),
          "a load from the hypervisor: page fault, neither user nor write");
    is64(record.cr2, inside, "... CR2 is the address");
    PROBE(STORE, : "D"(inside) : "memory");
    check(record.count == 1 && record.frame.vector == 14 && (record.frame.error & ~1UL) == 2,
          "a store to the hypervisor: page fault, write, not user");
}

void test_page_faults(void)
{
    test_kernel_faults();
    test_hypervisor_range();
}

/* Software interrupts. QEMU before version 10 gives int n's error code wrongly in 64-bit mode unless n is 0, so the
 * privilege levels are tried on vector 0, besides 3, 4 and 0x80 that Xen lets everybody use. */
void test_software_interrupts(void)
{
    PROBE("int $0x80");
    check_trap(128, 0, 2, "int 0x80 in the kernel");
    is(record.mask_in_handler, 0, "... events stay on");
    is64(record.frame.cs & 3, sizeof(long) == 8 ? 0 : 1, "... CS tells the kernel");
    trap_set(0x80, 3 | 4, trap_128);
    PROBE("int $0x80");
    check_trap(128, 0, 2, "int 0x80 with the event-mask flag");
    is(record.mask_in_handler, 1, "... events are off in the handler");
    is(saved_mask(), 0, "... the saved mask is that of before");
    is(upcall_mask(), 0, "... which the return restores");
    trap_set(0x80, 3, trap_128);
    PROBE("int $4");
    check_trap(4, 0, 2, "int 4");
    PROBE(".byte 0xcd, 3");
    check_trap(3, 0, 2, "int 3, two bytes long");
    PROBE("int $0");
    check_trap(13, 2, 0, "int 0 with privilege level 0");
    trap_set(0, 1, trap_0);
    PROBE("int $0");
    check_trap(0, 0, 2, "int 0 with privilege level 1");
    trap_set(0, 2, trap_0);
    PROBE("int $0");
    check_trap(0, 0, 2, "int 0 with privilege level 2");
    trap_set(0, 3, trap_0);
    PROBE("int $0");
    check_trap(0, 0, 2, "int 0 with privilege level 3");
    trap_set(0, 0, trap_0);
    trap_set(3, 0, trap_3);
    PROBE("int3");
    check_trap(3, 0, 1, "int3, one byte long, whatever the privilege level");
    trap_set(3, 3, trap_3);
}
