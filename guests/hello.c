/* The first guest to look at: says who and where it is, then answers typed lines. */
#include "runtime/guest.h"

const char guest_name[] = "hello";

static const char help[] =
    "  help       this list\n"
    "  info       who and where I am\n"
    "  layout     what lies where in my address space\n"
    "  time       nanoseconds since boot, by the shared time record\n"
    "  poweroff   shut the domain down\n"
    "  reboot     ask for a new start\n"
    "  crash      say that I have crashed\n"
    "Anything else is said back.\n";

/* The privilege level this code runs at: the low bits of CS. */
static unsigned int ring(void)
{
    unsigned int cs;
    __asm__("mov %%cs, %0" : "=r"(cs));
    return cs & 3;
}

static void introduce(void)
{
    long version = hypercall_xen_version(XENVER_version, NULL);
    xen_extraversion_t extra = "";
    hypercall_xen_version(XENVER_extraversion, &extra);
    print("Hello from %s%u, a %u-bit paravirtualized guest in ring %u.\n", guest_name, 8 * (unsigned int)sizeof(long),
          8 * (unsigned int)sizeof(long), ring());
    print("  hypervisor    Xen %lu.%lu%s\n", (unsigned long)version >> 16, (unsigned long)version & 0xffff, extra);
    print("  start_info    \"%s\"%s\n", start_info->magic, is_initial_domain() ? ", initial domain" : "");
    print("  memory        %lu pages of 4 KiB = %lu MiB\n", start_info->nr_pages, start_info->nr_pages / 256);
    print("  page tables   %u levels, %lu frames, root at %p in machine frame %lx\n", LEVELS, start_info->nr_pt_frames,
          (void *)start_info->pt_base, mfn_of((void *)start_info->pt_base));
    print("  command line  \"%s\"\n", (const char *)start_info->cmd_line);
}

/* What of an entry matters here: not the frame, nor what the processor notes in it. */
static uint64_t protection(unsigned long va)
{
    return pte_read(va) & ~(PTE_FRAME | PTE_ACCESSED | PTE_DIRTY);
}

static void print_part(const char *name, unsigned long from, unsigned long to)
{
    for (unsigned long va = from; va < to;) {
        uint64_t bits = protection(va);
        unsigned long end = va + PAGE_SIZE;
        while (end < to && protection(end) == bits)
            end += PAGE_SIZE;
        print("  %p  %4lu pages  %c%c%c  %s\n", (void *)va, (end - va) / PAGE_SIZE, bits & PTE_PRESENT ? 'r' : '-',
              bits & PTE_WRITABLE ? 'w' : '-', (bits & (PTE_PRESENT | PTE_NX)) == PTE_PRESENT ? 'x' : '-', name);
        va = end;
    }
}

/* The start-of-day layout of xen.h, with what is mapped how. An ordinary domain has the two rings, domain 0 has not. */
static void print_layout(void)
{
    unsigned long info = (unsigned long)start_info, tables = start_info->pt_base;
    unsigned long stack = tables + start_info->nr_pt_frames * PAGE_SIZE, end = stack + PAGE_SIZE;
    while (pte_read(end) & PTE_PRESENT)
        end += PAGE_SIZE;
    print_part("image", VIRT_BASE, start_info->mfn_list);
    print_part("frame list (P2M)", start_info->mfn_list, info);
    print_part("start_info", info, info + PAGE_SIZE);
    if (!is_initial_domain()) {
        unsigned long store = (unsigned long)va_of_mfn(start_info->store_mfn);
        unsigned long console = (unsigned long)va_of_mfn(start_info->console.domU.mfn);
        print_part("xenstore ring", store, store + PAGE_SIZE);
        print_part("console ring", console, console + PAGE_SIZE);
        print("  event channels: xenstore %u, console %u\n", start_info->store_evtchn, start_info->console.domU.evtchn);
    }
    print_part("page tables", tables, stack);
    print_part("boot stack", stack, stack + PAGE_SIZE);
    print_part("padding", stack + PAGE_SIZE, end);
}

static void answer(const char *line)
{
    if (!strcmp(line, "help")) {
        print("%s", help);
    } else if (!strcmp(line, "info")) {
        introduce();
    } else if (!strcmp(line, "layout")) {
        print_layout();
    } else if (!strcmp(line, "time")) {
        print("%llu ns\n", (unsigned long long)clock_ns());
    } else if (!strcmp(line, "poweroff")) {
        print("Goodbye.\n");
        shut_down(SHUTDOWN_poweroff);
    } else if (!strcmp(line, "reboot")) {
        print("Until soon.\n");
        shut_down(SHUTDOWN_reboot);
    } else if (!strcmp(line, "crash")) {
        print("Farewell, cruel world.\n");
        shut_down(SHUTDOWN_crash);
    } else if (*line) {
        print("You said: %s\n", line);
    }
}

/* "run=COMMAND,COMMAND" on the command line is answered as if typed, before the first prompt. */
static void run_from_command_line(void)
{
    char commands[80], *begin = commands;
    if (!option("run", commands, sizeof(commands)))
        return;
    for (char *end = commands;; end++) {
        bool last = !*end;
        if (!last && *end != ',')
            continue;
        *end = 0;
        print("> %s\n", begin);
        answer(begin);
        begin = end + 1;
        if (last)
            return;
    }
}

void guest_main(void)
{
    char line[80];
    introduce();
    print("Type \"help\".\n");
    run_from_command_line();
    for (;;) {
        print("> ");
        console_line(line, sizeof(line));
        answer(line);
    }
}
