/* A user process: its system calls, and page faults on memory that the kernel gives it only when it asks.
 *
 * 32 bits: "int $0x80" leads from ring 3 to ring 1 without the hypervisor, and the kernel's IRET back. 64 bits: kernel
 * and process are both in ring 3, so that "syscall" goes through the hypervisor both ways. Page faults always do: only
 * ring 0 can read CR2. */
#include "demo.h"

volatile unsigned long system_calls, page_faults;

static uint8_t lazy_page[PAGE_SIZE] __page_aligned;   /* whose frame the process gets at a fault */

#ifdef __x86_64__
#define LAZY (USER_BASE + 0x110000)
__asm__(".pushsection .user, \"ax\"\n"
        "user_calls: mov %rdi, %rbx\n 1: mov $39, %eax\n syscall\n dec %rbx\n jnz 1b\n int3\n"
        "user_touches: mov %rdi, %rax\n movb $1, (%rax)\n int3\n"
        ".popsection");
#else
#define LAZY ((unsigned long)lazy_page)
__asm__(".pushsection .user, \"ax\"\n"
        "user_calls: mov %eax, %ebx\n 1: mov $20, %eax\n int $0x80\n dec %ebx\n jnz 1b\n int3\n"
        "user_touches: movb $1, (%eax)\n int3\n"
        ".popsection");
#endif
extern void user_calls(void), user_touches(void);

static void map_lazy_page(void)
{
    pte_write(LAZY, (uint64_t)mfn_of(lazy_page) << 12 | PTE_DATA | PTE_USER);
}

static bool handle(struct trap_frame *frame)
{
    if (frame->vector == 14 && from_user(frame) && own_vcpu->arch.cr2 - LAZY < PAGE_SIZE) {
        page_faults++;
        map_lazy_page();
        return true;
    }
#ifdef __x86_64__
    if (frame->vector == VECTOR_SYSCALL) {
        system_calls++;
        frame->rax = 1;
        return true;
    }
#endif
    return false;
}

void process_init(void)
{
    user_init();
    trap_handler = handle;
#ifndef __x86_64__
    mmu_set(pte_machine_address(LAZY, 2), *pte_pointer(LAZY, 2) | PTE_USER);
#endif
    trap_set(0x80, 3, int80_count_and_return);
}

void process_run(unsigned long calls, unsigned long faults)
{
    if (calls)
        user_run(user_calls, calls);
#ifndef __x86_64__
    system_calls = int80_count;
#endif
    while (faults--) {
        pte_write(LAZY, 0);
        user_run(user_touches, LAZY);
    }
}
