/* The demonstration: something to watch. A user process makes system calls and page faults, two domains talk over a
 * shared ring, and a shell answers on the console. */
#include "demo/demo.h"

const char guest_name[] = "demo";

#define BITS (8 * (unsigned int)sizeof(long))

static unsigned long rate = 20, calls = 3, faults = 1, requests = 3;
static unsigned long rounds;

static const char help[] =
    "  stat             what has happened so far\n"
    "  rate N           rounds a second (0: none)\n"
    "  calls N          system calls of the user process a round\n"
    "  faults N         page faults of the user process a round\n"
    "  requests N       questions to the other domain a round\n"
    "  flood N          N events to the other domain at once\n"
    "  instructions     x86's sensitive instructions, tried\n"
    "  steal            map the other domain's secret (from the higher-numbered domain)\n"
    "  poweroff  reboot  crash\n";

static void show_statistics(void)
{
    print("  up %lu.%lu s, %lu rounds\n", (unsigned long)divide(clock_ns(), 1000000000),
          (unsigned long)divide(clock_ns(), 100000000) % 10, rounds);
    print("  system calls  %lu, %s\n", system_calls,
          BITS == 32 ? "straight from ring 3 to ring 1" : "through the hypervisor, both rings being 3");
    print("  page faults   %lu, through the hypervisor: only it reads CR2\n", page_faults);
    if (!link.up)
        print("  link          none\n");
    else if (link.asks)
        print("  link to d%u    %lu asked, %lu answered", link.peer, link.requests, link.responses);
    else
        print("  link to d%u    %lu answered", link.peer, link.responses);
    if (link.up)
        print("; %lu events sent, %lu upcalls\n", link.notifications, link.upcalls);
    if (link.number)
        print("  lately        the smallest factor of %u is %u\n", link.number, link.factor);
}

static void flood(unsigned long count)
{
    if (!link.up) {
        print("There is no link.\n");
        return;
    }
    for (unsigned long i = 0; i < count; i++)
        event_send(link.port);
    print("Sent %lu events: while one is pending, the next changes nothing.\n", count);
}

/* "name N": the number, if the line begins with the name. */
static bool set(const char *line, const char *name, unsigned long *value)
{
    size_t length = strlen(name);
    if (strncmp(line, name, length) || line[length] != ' ')
        return false;
    *value = parse_number(line + length + 1);
    return true;
}

static void answer(const char *line)
{
    unsigned long count;
    volatile int *volatile nowhere = (volatile int *)0x1000;
    if (!strcmp(line, "help"))
        print("%s", help);
    else if (!strcmp(line, "stat"))
        show_statistics();
    else if (!strcmp(line, "instructions"))
        show_instructions();
    else if (!strcmp(line, "steal"))
        steal();
    else if (!strcmp(line, "poweroff"))
        shut_down(SHUTDOWN_poweroff);
    else if (!strcmp(line, "reboot"))
        shut_down(SHUTDOWN_reboot);
    else if (!strcmp(line, "crash"))
        *nowhere = 1;
    else if (set(line, "flood", &count))
        flood(count);
    else if (!set(line, "rate", &rate) && !set(line, "calls", &calls) && !set(line, "faults", &faults) &&
             !set(line, "requests", &requests) && *line)
        print("%s: no such command; type help\n", line);
}

static void take_keys(void)
{
    static char line[80];
    static size_t length;
    char c;
    while (console_read(&c, 1)) {
        if (c == '\r' || c == '\n') {
            console_write("\n", 1);
            line[length] = 0;
            length = 0;
            answer(line);
            print("%s$ ", guest_name);
        } else if ((c == 8 || c == 127) && length) {
            length--;
            console_write("\b \b", 3);
        } else if (c >= 32 && c < 127 && length + 1 < sizeof(line)) {
            line[length++] = c;
            console_write(&c, 1);
        }
    }
}

static void one_round(unsigned int peer)
{
    rounds++;
    process_run(calls, faults);
    if (link.up)
        link_ask((unsigned int)requests);
    else
        link_open(peer);
}

static void wake(evtchn_port_t port)
{
    (void)port;
}

/* Sleep until something comes, or the deadline. */
static void wait_until(uint64_t deadline)
{
    events_off();
    if (rate && hypercall_set_timer_op(deadline)) {
        events_on();
        return;
    }
    block();
}

void guest_main(void)
{
    unsigned int peer = (unsigned int)option_number("peer", 0);
    uint64_t next;
    print("%s%u: a %u-bit guest. Its user process calls the kernel and faults", guest_name, BITS, BITS);
    if (peer)
        print(",\nand it talks to domain %u over a shared ring", peer);
    print(". Type help.\n%s$ ", guest_name);
    process_init();
    timer_init();
    event_handle(start_info->console.domU.evtchn, wake);
    next = clock_ns();
    for (;;) {
        take_keys();
        link_serve();
        if (rate && clock_ns() >= next) {
            one_round(peer);
            next = clock_ns() + divide(1000000000, (uint32_t)rate);
        }
        wait_until(next);
    }
}
