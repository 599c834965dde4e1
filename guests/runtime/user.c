/* User mode. A 64-bit guest's user code runs in ring 3 like its kernel, on page tables of its own that lack the kernel;
 * a 32-bit guest's runs in ring 3 above a kernel in ring 1, on the same tables, kept out by the user bit. */
#include "guest.h"

extern char user_start[], user_end[];

volatile unsigned int int80_count;
static uint8_t user_stack[PAGE_SIZE] __page_aligned;

long user_enter(unsigned long code, unsigned long stack, unsigned long argument);

#ifdef __x86_64__

#define USER_STACK (USER_BASE + 0x100000)

unsigned long user_cs = FLAT_USER_CS64;

static void set_read_only(void *table)
{
    pte_write((unsigned long)table, (uint64_t)mfn_of(table) << 12 | PTE_PRESENT | PTE_NX);
}

static uint64_t entry_for(const void *page, uint64_t flags)
{
    return (uint64_t)mfn_of(page) << 12 | PTE_PRESENT | PTE_USER | PTE_ACCESSED | flags;
}

/* Build L4, L3, L2 and L1 tables for the code pages and a stack, and give them to Xen. The same L3 goes into the
 * kernel's L4 too, so that the kernel can look at what user mode sees. */
void user_init(void)
{
    uint64_t *l4 = page_allocate(), *l3 = page_allocate(), *l2 = page_allocate(), *l1 = page_allocate();
    l4[0] = entry_for(l3, PTE_WRITABLE | PTE_DIRTY);
    l3[0] = entry_for(l2, PTE_WRITABLE | PTE_DIRTY);
    l2[USER_BASE >> 21] = entry_for(l1, PTE_WRITABLE | PTE_DIRTY);
    for (unsigned int i = 0; i < (unsigned int)(user_end - user_start) / PAGE_SIZE; i++)
        l1[i] = entry_for(user_start + i * PAGE_SIZE, 0);
    l1[(USER_STACK - USER_BASE) / PAGE_SIZE] = entry_for(user_stack, PTE_WRITABLE | PTE_DIRTY | PTE_NX);
    uint64_t top = l4[0];
    set_read_only(l4);
    set_read_only(l3);
    set_read_only(l2);
    set_read_only(l1);
    mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(l4));
    mmuext(MMUEXT_NEW_USER_BASEPTR, mfn_of(l4));
    mmu_set((uint64_t)mfn_of((void *)start_info->pt_base) << 12, top);
}

void *user_code(const void *kernel_address)
{
    return (void *)(USER_BASE + ((unsigned long)kernel_address - (unsigned long)user_start));
}

unsigned long user_stack_top(void)
{
    return USER_STACK + PAGE_SIZE;
}

#else

/* Let ring 3 at a page: the user bit in both levels that have one. */
static void open_to_user(void *page, uint64_t clear, uint64_t set)
{
    unsigned long va = (unsigned long)page;
    uint64_t l2 = *pte_pointer(va, 2);
    if (!(l2 & PTE_USER))
        mmu_set(pte_machine_address(va, 2), l2 | PTE_USER);
    pte_write(va, (pte_read(va) & ~clear) | set | PTE_USER);
}

void user_init(void)
{
    for (char *page = user_start; page < user_end; page += PAGE_SIZE)
        open_to_user(page, PTE_WRITABLE, 0);
    open_to_user(user_stack, 0, PTE_NX);
}

void *user_code(const void *kernel_address)
{
    return (void *)kernel_address;
}

unsigned long user_stack_top(void)
{
    return (unsigned long)user_stack + PAGE_SIZE;
}

#endif

long user_run(void (*code)(void), unsigned long argument)
{
    return user_enter((unsigned long)user_code((const void *)code), user_stack_top() - 64, argument);
}
