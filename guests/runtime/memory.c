/* Direct paging: the tables the processor walks are the guest's own and hold machine frames. The guest reads them
 * through its initial mapping (read-only there) and asks Xen to change them. */
#include "guest.h"

unsigned long *m2p, *p2m;

extern char text_start[], user_start[], user_end[], rodata_start[], data_start[], image_end[];

static uint8_t shared_info_page[PAGE_SIZE] __page_aligned;
static uint8_t pool[16][PAGE_SIZE] __page_aligned;
static size_t pool_used;

void memory_init(void)
{
    struct xen_machphys_mapping mapping = {0};
    p2m = (unsigned long *)start_info->mfn_list;
    m2p = (unsigned long *)HYPERVISOR_VIRT_START;
    if (!hypercall_memory_op(XENMEM_machphys_mapping, &mapping))
        m2p = (unsigned long *)mapping.v_start;
}

unsigned long pfn_of(const void *va)
{
    return ((unsigned long)va - VIRT_BASE) / PAGE_SIZE;
}

unsigned long mfn_of(const void *va)
{
    return p2m[pfn_of(va)];
}

void *va_of_pfn(unsigned long pfn)
{
    return (void *)(VIRT_BASE + pfn * PAGE_SIZE);
}

void *va_of_mfn(unsigned long mfn)
{
    return va_of_pfn(m2p[mfn]);
}

/* Entries a table has: 512, except the four of a PAE top level. */
static unsigned int index_of(unsigned long va, unsigned int level)
{
    return (unsigned int)((uint64_t)va >> (12 + 9 * (level - 1))) & (LEVELS == 3 && level == 3 ? 3 : 511);
}

uint64_t *pte_pointer(unsigned long va, unsigned int level)
{
    uint64_t *table = (uint64_t *)start_info->pt_base;
    for (unsigned int at = LEVELS; at > level; at--) {
        uint64_t entry = table[index_of(va, at)];
        if (!(entry & PTE_PRESENT) || (at < 4 && (entry & PTE_SUPERPAGE)))
            return NULL;
        table = va_of_mfn((unsigned long)((entry & PTE_FRAME) >> 12));
    }
    return &table[index_of(va, level)];
}

uint64_t pte_machine_address(unsigned long va, unsigned int level)
{
    uint64_t *pte = pte_pointer(va, level);
    return pte ? (uint64_t)mfn_of(pte) * PAGE_SIZE + ((unsigned long)pte & (PAGE_SIZE - 1)) : 0;
}

uint64_t pte_read(unsigned long va)
{
    uint64_t *pte = pte_pointer(va, 1);
    return pte ? *(volatile uint64_t *)pte : 0;
}

int pte_write(unsigned long va, uint64_t pte)
{
    return (int)hypercall_update_va_mapping(va, pte, UVMF_INVLPG);
}

int mmu_set(uint64_t machine_address, uint64_t value)
{
    mmu_update_t request = {.ptr = machine_address, .val = value};
    return (int)hypercall_mmu_update(&request, 1, NULL, DOMID_SELF);
}

int mmuext(unsigned int command, unsigned long argument)
{
    mmuext_op_t operation = {.cmd = command, .arg1.linear_addr = argument};
    return (int)hypercall_mmuext_op(&operation, 1, NULL, DOMID_SELF);
}

void map_shared_info(void)
{
    pte_write((unsigned long)shared_info_page, start_info->shared_info | PTE_DATA);
    shared_info = (shared_info_t *)shared_info_page;
    own_vcpu = &shared_info->vcpu_info[0];
}

/* The builder maps everything writable and executable. Take both away where they are not needed: constants and code
 * become read-only, constants and data no longer execute. One hypercall, two for a big image. */
void protect_own_image(void)
{
    static mmu_update_t requests[128];
    unsigned int n = 0;
    for (char *page = text_start; page < image_end; page += PAGE_SIZE) {
        uint64_t pte = pte_read((unsigned long)page);
        if (page == (char *)shared_info_page)
            continue;
        if (page >= rodata_start)
            pte |= PTE_NX;
        if (page < data_start)
            pte &= ~PTE_WRITABLE;
        requests[n].ptr = pte_machine_address((unsigned long)page, 1) | MMU_NORMAL_PT_UPDATE;
        requests[n++].val = pte;
        if (n == ARRAY_SIZE(requests) || page + PAGE_SIZE == image_end) {
            hypercall_mmu_update(requests, n, NULL, DOMID_SELF);
            n = 0;
        }
    }
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0);
}

void *page_allocate(void)
{
    return pool_used < ARRAY_SIZE(pool) ? pool[pool_used++] : NULL;
}
