/* What a guest finds when it starts: start_info, the frame tables, shared_info, versions. */
#include "selftest.h"

/* Page-aligned, and not before what comes first. */
static bool follows(unsigned long later, unsigned long earlier)
{
    return later >= earlier && !(later & (PAGE_SIZE - 1));
}

/* The virtual layout of xen.h, "Start-of-day memory layout". */
static void test_layout(void)
{
    extern char image_end[];
    unsigned long info = (unsigned long)start_info, stack = boot.sp - PAGE_SIZE;
    unsigned long end = (boot.sp + (512 << 10) + (4 << 20) - 1) & -(4UL << 20);
    check(follows(start_info->mfn_list, (unsigned long)image_end),
          "the frame list lies behind the image, page-aligned");
    check(follows(info, start_info->mfn_list + start_info->nr_pages * sizeof(long)),
          "start_info lies behind the frame list");
    check(follows(start_info->pt_base, info + PAGE_SIZE), "the page tables lie behind start_info");
    is64(stack, start_info->pt_base + start_info->nr_pt_frames * PAGE_SIZE,
         "the boot stack lies behind the page tables");
    unsigned long mapped = VIRT_BASE;
    while (pte_read(mapped) & PTE_PRESENT)
        mapped += PAGE_SIZE;
    check(mapped >= end && !(mapped & ((4 << 20) - 1)),
          "the initial mapping ends on 4 MiB, with 512 KiB of padding or more");
    unsigned long straight = 0;
    for (unsigned long pfn = 0; pfn < (mapped - VIRT_BASE) / PAGE_SIZE; pfn++)
        straight += (pte_read(VIRT_BASE + pfn * PAGE_SIZE) & PTE_FRAME) >> 12 == p2m[pfn];
    /* all but the page that this runtime gave to shared_info */
    is((long)straight, (long)((mapped - VIRT_BASE) / PAGE_SIZE) - 1,
       "the initial mapping is the frame list's, page for page");
}

static void test_boot_state(void)
{
    check(boot.cs == FLAT_KERNEL_CS, "CS at the entry point is the flat kernel code segment");
    check(boot.ss == FLAT_KERNEL_SS, "SS at the entry point is the flat kernel stack segment");
    check((boot.code_pte & (PTE_PRESENT | PTE_WRITABLE | PTE_NX)) == (PTE_PRESENT | PTE_WRITABLE),
          "code is mapped writable and executable at first");
    /* a builder that keeps zero pages NX until something is fetched from them is not complained of */
    check((boot.data_pte & (PTE_PRESENT | PTE_WRITABLE)) == (PTE_PRESENT | PTE_WRITABLE), "data is mapped writable");
    unsigned long tables = 0;
    for (unsigned long i = 0; i < start_info->nr_pt_frames; i++)
        tables += (pte_read(start_info->pt_base + i * PAGE_SIZE) & (PTE_PRESENT | PTE_WRITABLE)) == PTE_PRESENT;
    is((long)tables, (long)start_info->nr_pt_frames, "every page table is mapped read-only");
}

static void test_frames(void)
{
    unsigned long agree = 0, shared = 0;
    for (unsigned long pfn = 0; pfn < start_info->nr_pages; pfn++) {
        agree += m2p[p2m[pfn]] == pfn;
        shared += p2m[pfn] == start_info->shared_info >> 12;
    }
    check(agree == start_info->nr_pages, "M2P and P2M agree on every frame");
    check(!shared, "the shared_info frame is none of the domain's own");
    check(!(start_info->shared_info & (PAGE_SIZE - 1)), "shared_info is a page-aligned machine address");
    check(m2p[start_info->shared_info >> 12] >= start_info->nr_pages, "M2P has no PFN for shared_info");
#ifdef __x86_64__
    PROBE("movq %%rdx, (%%rdi)", : "D"(m2p), "d"(m2p[0]) : "memory");
#else
    PROBE("movl %%edx, (%%edi)", : "D"(m2p), "d"(m2p[0]) : "memory");
#endif
    check_trap(14, 3, 0, "M2P is read-only");
    is64(record.cr2, (unsigned long)m2p, "... and CR2 says where");
}

void test_start_info(void)
{
#ifdef __x86_64__
    check(!strcmp(start_info->magic, "xen-3.0-x86_64"), "magic is xen-3.0-x86_64");
#else
    check(!strcmp(start_info->magic, "xen-3.0-x86_32p"), "magic is xen-3.0-x86_32p");
#endif
    domid_t self = DOMID_SELF;
    is(hypercall_memory_op(XENMEM_current_reservation, &self), (long)start_info->nr_pages,
       "nr_pages is the current reservation");
    check(!(start_info->flags & SIF_PRIVILEGED) == !is_initial_domain(),
          "SIF_PRIVILEGED comes with SIF_INITDOMAIN only");
    check(!(start_info->flags & (SIF_MULTIBOOT_MOD | SIF_MOD_START_PFN)) && !start_info->mod_len,
          "no module, no module flags");
    if (is_initial_domain()) {
        check(!start_info->store_mfn && !start_info->store_evtchn,
              "the xenstore page is right for this kind of domain");
        check(start_info->console.dom0.info_off >= sizeof(start_info_t) || !start_info->console.dom0.info_size,
              "the console information is right for this kind of domain");
    } else {
        check(m2p[start_info->store_mfn] < start_info->nr_pages && start_info->store_evtchn,
              "the xenstore page is right for this kind of domain");
        check(m2p[start_info->console.domU.mfn] < start_info->nr_pages && start_info->console.domU.evtchn,
              "the console information is right for this kind of domain");
    }
    test_layout();
    test_boot_state();
    test_frames();
}

void test_shared_info(void)
{
    volatile vcpu_time_info_t *time = &own_vcpu->time;
    check(boot.all_upcalls_masked, "every vCPU's upcall mask is set at start");
    check(boot.no_channel_masked, "no event channel is masked at start");
    check(boot.no_channel_pending, "no event channel is pending at start");
    check(!(time->version & 1), "the time record's version is even between updates");
    check(time->version && time->tsc_to_system_mul, "the time record is filled in");
    uint64_t last = clock_ns(), back = 0;
    for (int i = 0; i < 2000; i++) {
        uint64_t now = clock_ns();
        back += now < last;
        last = now;
    }
    check(!back, "time does not run backwards");
    uint64_t start = clock_ns();
    for (volatile int i = 0; i < 100000; i++)
        ;
    check(clock_ns() > start, "time passes");
    check(!(shared_info->wc_version & 1) && shared_info->wc_sec > 1000000000, "the wall clock is set");
    is(sizeof(vcpu_info_t), 64, "a vcpu_info is 64 bytes");
}

void test_versions(void)
{
    static char text[1024];
    xen_feature_info_t features = {.submap_idx = 0};
    xen_platform_parameters_t parameters = {0};
    long version = hypercall_xen_version(XENVER_version, NULL);
    check(version >> 16 == 4 && (version & 0xffff) >= 17, "version 4.17 or later");
    is(hypercall_xen_version(XENVER_extraversion, text), 0, "extraversion");
    check(text[0] == '.' && strlen(text) < XEN_EXTRAVERSION_LEN, "... begins with a dot and fits");
    is(hypercall_xen_version(XENVER_compile_info, text), 0, "compile_info");
    is(hypercall_xen_version(XENVER_capabilities, text), 0, "capabilities");
    check(!strncmp(text, "xen-3.0-x86_64", 14), "... begin with xen-3.0-x86_64");
    is(hypercall_xen_version(XENVER_changeset, text), 0, "changeset");
    is(hypercall_xen_version(XENVER_platform_parameters, &parameters), 0, "platform_parameters");
    check(parameters.virt_start == (unsigned long)m2p && (unsigned long)m2p >= HYPERVISOR_VIRT_START,
          "... virt_start is the hypervisor's slot, which begins with M2P");
    is(hypercall_xen_version(XENVER_get_features, &features), 0, "get_features");
    const uint32_t wanted = 1 << XENFEAT_mmu_pt_update_preserve_ad | 1 << XENFEAT_gnttab_map_avail_bits;
    check((features.submap & wanted) == wanted, "... preserve_ad and map_avail_bits are there");
    const uint32_t unwanted = 1 << XENFEAT_auto_translated_physmap | 1 << XENFEAT_supervisor_mode_kernel |
                              1 << XENFEAT_writable_descriptor_tables | 1 << XENFEAT_hvm_callback_vector;
    check(!(features.submap & unwanted),
          "... auto_translated_physmap, supervisor_mode_kernel and the HVM ones are not");
    features.submap_idx = 1;
    is(hypercall_xen_version(XENVER_get_features, &features), -XEN_EINVAL, "get_features, submap 1");
    is(hypercall_xen_version(XENVER_pagesize, NULL), PAGE_SIZE, "pagesize");
    is(hypercall_xen_version(XENVER_guest_handle, text), 0, "guest_handle");
    is(hypercall_xen_version(99, NULL), -XEN_ENOSYS, "an unknown command");
    is(hypercall_xen_version(XENVER_extraversion, NOWHERE), -XEN_EFAULT, "extraversion to nowhere");
    is(hypercall_xen_version(XENVER_capabilities, NOWHERE), -XEN_EFAULT, "capabilities to nowhere");
    is(hypercall_xen_version(XENVER_get_features, NOWHERE), -XEN_EFAULT, "get_features to nowhere");
    is(hypercall_xen_version(XENVER_platform_parameters, m2p), -XEN_EFAULT,
       "platform_parameters into the hypervisor's slot");
}
