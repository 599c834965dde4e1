/* The first guest to look at: says who and where it is, then answers typed lines. */
#include "runtime/guest.h"

const char guest_name[] = "hello";

static const char help[] =
    "  help       this list\n"
    "  info       who and where I am\n"
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

static void answer(const char *line)
{
    if (!strcmp(line, "help")) {
        print("%s", help);
    } else if (!strcmp(line, "info")) {
        introduce();
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

/* "run=COMMAND" on the command line (underscores for spaces) is answered as if typed, before the prompt. */
static void run_from_command_line(void)
{
    char line[80];
    if (!option("run", line, sizeof(line)))
        return;
    for (char *c = line; *c; c++)
        if (*c == '_')
            *c = ' ';
    print("> %s\n", line);
    answer(line);
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
