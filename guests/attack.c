/* The hostile guest's frame: TAP lines, traps that attempts end with, and the order of the attempts. */
#include "attack/attack.h"

const char guest_name[] = "attack";

volatile struct trap_seen seen;
volatile unsigned long try_resume, try_sp;
uint8_t page[PAGES][PAGE_SIZE] __page_aligned;
uint8_t crowd[CROWD][PAGE_SIZE] __page_aligned;

static const struct {
    const char *title;
    const struct attempt *attempts;
} groups[] = {
    {"page tables", table_attempts},
    {"types of frames", type_attempts},
    {"frames of others", frame_attempts},
    {"buffers of hypercalls", buffer_attempts},
    {"segments, gates and privileged state", segment_attempts},
    {"virtual CPUs", vcpu_attempts},
    {"grants", grant_attempts},
    {"counts driven high", count_attempts},
};

static unsigned int tried, out;

/* --- verdicts ----------------------------------------------------------------------------------------------------- */

verdict_t refused(long result, const char *got)
{
    return result < 0 ? (verdict_t){.kind = REFUSED, .code = result} : broke_out(got);
}

verdict_t status_refused(long result, int16_t status, const char *got)
{
    if (result || status >= 0)
        return refused(result, got);
    return (verdict_t){.kind = GRANT_STATUS, .code = status};
}

bool needed_moment;

verdict_t broke_out(const char *got)
{
    return (verdict_t){.kind = BROKE_OUT, .text = got};
}

verdict_t harmless(bool kept, const char *what_became, const char *got)
{
    return kept ? (verdict_t){.kind = HARMLESS, .text = what_became} : broke_out(got);
}

verdict_t trapped(const char *got)
{
    return seen.count ? (verdict_t){.kind = TRAPPED, .code = (long)seen.vector, .error = seen.error} : broke_out(got);
}

static const struct error {
    int number;
    const char *name;
} errors[] = {
#define XEN_ERRNO(name, value) {value, #name},
#include <xen/errno.h>
};

static const char *error_name(long number)
{
    for (size_t i = 0; i < ARRAY_SIZE(errors); i++)
        if (errors[i].number == number)
            return errors[i].name;
    return "an unknown error";
}

static const char *exception_name(long vector)
{
    switch (vector) {
    case 3: return "#BP";
    case 6: return "#UD";
    case 8: return "#DF";
    case 10: return "#TS";
    case 11: return "#NP";
    case 12: return "#SS";
    case 13: return "#GP";
    case 14: return "#PF";
    default: return "an unexpected vector";
    }
}

/* --- traps -------------------------------------------------------------------------------------------------------- */

/* Keep what came, and go on behind the TRY, in the kernel and on its stack, wherever the trap was. */
static bool handle_trap(struct trap_frame *frame)
{
    second_vcpu_trapped(frame);
    if (!try_resume)
        return false;
    seen.count++;
    seen.vector = frame->vector;
    seen.error = frame->error;
#ifdef __x86_64__
    frame->cs = FLAT_KERNEL_CS & ~3;     /* RPL 0 means the kernel to HYPERVISOR_iret */
    frame->ss = FLAT_KERNEL_SS;
    frame->sp = try_sp;
#else
    frame->cs = FLAT_KERNEL_CS;
#endif
    frame->ip = try_resume;
    frame->flags = 0x202;
    try_resume = 0;
    return true;
}

void try_store(volatile void *va, unsigned long value)
{
    TRY("mov %[value], (%[va])", : [va] "r"(va), [value] "r"(value) : "memory");
}

unsigned long try_load(const volatile void *va)
{
    unsigned long value = 0;
    TRY("mov (%[va]), %[value]", [value] "+r"(value) : [va] "r"(va));
    return value;
}

/* --- the attempts ------------------------------------------------------------------------------------------------- */

/* Put all pages back where they belong. A page that can no longer be mapped writable is still a table somewhere. */
static bool pages_restored(void)
{
    bool good = !(*pte_pointer(NEW_REGION, 2) & PTE_PRESENT) || !mmu_set(new_region_entry(), 0);
    for (unsigned int i = 0; i < PAGES; i++) {
        good &= !writable(page[i]);
        if (good)
            memset(page[i], 0, PAGE_SIZE);
    }
    return good;
}

static void print_verdict(const char *name, const char *advisory, verdict_t verdict)
{
    tried++;
    out += verdict.kind == BROKE_OUT;
    print("%sok %u - %s", verdict.kind == BROKE_OUT ? "not " : "", tried, name);
    if (advisory)
        print(" (%s)", advisory);
    switch (verdict.kind) {
    case REFUSED:
        print(": refused with -%s\n", error_name(-verdict.code));
        break;
    case GRANT_STATUS:
        print(": refused with grant status %ld\n", verdict.code);
        break;
    case TRAPPED:
        print(": stopped by %s, error code 0x%lx\n", exception_name(verdict.code), verdict.error);
        break;
    case HARMLESS:
        print(": made harmless: %s\n", verdict.text);
        break;
    case BROKE_OUT:
        print(": got %s\n", verdict.text);
        break;
    }
}

static void run(const struct attempt *attempt, const char *only, bool list)
{
    for (unsigned int number = attempt->first; number <= attempt->last; number++) {
        char name[64];
        if (attempt->words)
            format_into(name, sizeof(name), attempt->name, attempt->words[number]);
        else
            format_into(name, sizeof(name), attempt->name, number);
        if (*only && strcmp(name, only))
            continue;
        if (list) {
            print("%s%s%s%s\n", name, attempt->advisory ? " (" : "", attempt->advisory ? attempt->advisory : "",
                  attempt->advisory ? ")" : "");
            continue;
        }
        needed_moment = false;
        verdict_t verdict = attempt->run(number);
        /* An event that came too early has found plain pages, which may be changed. What breaks out does so again. */
        if (verdict.kind == BROKE_OUT && needed_moment && pages_restored())
            verdict = attempt->run(number);
        if (!pages_restored() && verdict.kind != BROKE_OUT)
            verdict = broke_out("pages that can no longer be used as before");
        print_verdict(name, attempt->advisory, verdict);
    }
}

/* Is the word on the command line, by itself? */
static bool word(const char *wanted)
{
    const char *at = (const char *)start_info->cmd_line;
    size_t length = strlen(wanted);
    while (*at) {
        if (!strncmp(at, wanted, length) && (!at[length] || at[length] == ' '))
            return true;
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    return false;
}

void guest_main(void)
{
    char only[64] = "";
    bool list = word("list");
    option("only", only, sizeof(only));
    trap_handler = handle_trap;
    user_init();
    timer_init();
    HYPERCALL5(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables, 0, 0, 0);
    if (!list)
        print("# attack%u\n", 8 * (unsigned int)sizeof(long));
    for (size_t i = 0; i < ARRAY_SIZE(groups); i++) {
        if (!list && !*only)
            print("# %s\n", groups[i].title);
        for (const struct attempt *attempt = groups[i].attempts; attempt->name; attempt++)
            run(attempt, only, list);
    }
    if (list)
        return;
    if (!tried)
        print("# no attempt is named %s; \"list\" on the command line names them all\n", only);
    print("1..%u\n", tried);
    print("# %u attempts, %u broke out\n", tried, out);
}
