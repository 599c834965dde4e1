/* The conformance guest's frame: TAP lines, probes that record a trap, and the order of the tests. */
#include "selftest/selftest.h"

const char guest_name[] = "selftest";

struct record record;
unsigned int expected_vector = ~0u;
volatile unsigned long probe_start, probe_resume, probe_sp, probe_flags;
uint8_t scratch[8][PAGE_SIZE] __page_aligned;

static unsigned int tests, failures;

void section(const char *title)
{
    print("# %s\n", title);
}

static void result(bool passed, const char *format, va_list arguments)
{
    char text[200];
    format_text(text, sizeof(text), format, arguments);
    tests++;
    failures += !passed;
    print("%sok %u - %s\n", passed ? "" : "not ", tests, text);
}

void check(bool passed, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    result(passed, format, arguments);
    va_end(arguments);
}

void is(long got, long want, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    result(got == want, format, arguments);
    va_end(arguments);
    if (got != want)
        print("#   got %ld (0x%lx), want %ld\n", got, (unsigned long)got, want);
}

void is64(uint64_t got, uint64_t want, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    result(got == want, format, arguments);
    va_end(arguments);
    if (got != want)
        print("#   got 0x%llx, want 0x%llx\n", (unsigned long long)got, (unsigned long long)want);
}

unsigned int upcall_mask(void)
{
    return ((volatile vcpu_info_t *)own_vcpu)->evtchn_upcall_mask;
}

/* From a return that failed: back into the kernel, where and on the stack where the probe was. */
static void return_to_probe(struct trap_frame *frame)
{
#ifdef __x86_64__
    frame->cs = FLAT_KERNEL_CS & ~3;     /* RPL 0 means the kernel to HYPERVISOR_iret */
    frame->ss = FLAT_KERNEL_SS;
    frame->sp = probe_sp;
#else
    frame->cs = FLAT_KERNEL_CS;
#endif
    frame->flags = 0x202;
}

/* Keep what came; from user mode end the user code, from the kernel go on behind the probe. */
bool probe_handler(struct trap_frame *frame)
{
    /* what could not be returned to is no place to go on from */
    bool failsafe = frame->vector == VECTOR_FAILSAFE || (frame->cs & 0xfffc) == BAD_SELECTOR;
    if ((failsafe || !from_user(frame)) && !probe_resume && frame->vector != expected_vector)
        return false;
    record.count++;
    record.frame = *frame;
    record.frame_end = (unsigned long)(from_user(frame) || sizeof(long) == 8 ? &frame->ss + 1 : &frame->sp);
    record.mask_in_handler = upcall_mask();
    record.cr2 = own_vcpu->arch.cr2;
    if (frame->vector == expected_vector)
        return true;
    if (failsafe)
        return_to_probe(frame);
    else if (from_user(frame))
        user_leave((long)frame->vector);
    frame->ip = probe_resume;
    frame->flags &= ~0x100UL;            /* a probed single step ends here */
    probe_resume = 0;
    return true;
}

void probe_disarm(void)
{
    probe_resume = 0;
}

bool trapped(unsigned int vector, unsigned long error, unsigned int offset)
{
    return record.count == 1 && record.frame.vector == vector && record.frame.error == error &&
           record.frame.ip == probe_start + offset;
}

void check_trap(unsigned int vector, unsigned long error, unsigned int offset, const char *what)
{
    bool passed = trapped(vector, error, offset);
    check(passed, "%s: vector %u, error %lx, IP at the instruction%s", what, vector, error, offset ? "'s end" : "");
    if (!passed && record.count)
        print("#   got %u trap, vector %lu, error %lx, IP +%ld\n", record.count, (unsigned long)record.frame.vector,
              (unsigned long)record.frame.error, (long)(record.frame.ip - probe_start));
    else if (!passed)
        print("#   no trap came\n");
}

void check_no_trap(const char *what)
{
    check(!record.count, "%s: no trap", what);
    if (record.count)
        print("#   got vector %lu, error %lx\n", (unsigned long)record.frame.vector, (unsigned long)record.frame.error);
}

static const struct {
    const char *name;
    void (*run)(void);
} groups[] = {
    {"start_info, P2M and M2P", test_start_info},
    {"shared_info", test_shared_info},
    {"xen_version", test_versions},
    {"unknown hypercalls", test_unknown_hypercalls},
    {"refusals", test_misuse},
    {"multicall", test_multicall},
    {"memory_op", test_memory_op},
    {"page tables", test_page_tables},
    {"new page tables", test_new_tables},
    {"mmuext_op", test_mmuext},
    {"descriptors", test_descriptors},
    {"exceptions", test_exceptions},
    {"page faults", test_page_faults},
    {"software interrupts", test_software_interrupts},
    {"privileged instructions", test_privileged_instructions},
    {"FPU and debug registers", test_fpu_and_debug},
    {"returning", test_returns},
    {"user mode", test_user_mode},
    {"event channels", test_event_channels},
    {"upcalls", test_upcalls},
    {"timers", test_timers},
    {"grant table", test_grant_table},
    {"vcpu_info elsewhere", test_moved_vcpu_info},
    {"FIFO event channels", test_fifo},
};

void guest_main(void)
{
    print("# selftest%u\n", 8 * (unsigned int)sizeof(long));
    trap_handler = probe_handler;
    user_init();
    for (size_t i = 0; i < ARRAY_SIZE(groups); i++) {
        section(groups[i].name);
        groups[i].run();
    }
    print("1..%u\n", tests);
    print("# %u passed, %u failed\n", tests - failures, failures);
}
