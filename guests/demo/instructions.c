/* Sensitive instructions, executed as an unmodified kernel would: some trap, so that the hypervisor can do their work,
 * and some do something else in silence. The latter are why a guest must be changed (section 2 of the paper). */
#include "demo.h"

static bool trapped;
static unsigned long resume;

static bool note_trap(struct trap_frame *frame)
{
    if (!resume || from_user(frame))
        return false;
    trapped = true;
    frame->ip = resume;
    return true;
}

#ifdef __x86_64__
#define WORD "q"
#define TOP "(%%rsp)"
#else
#define WORD "l"
#define TOP "(%%esp)"
#endif

/* Execute `text` with %[value] as a register and %[place] as memory; a trap that reaches us ends it. */
#define TRY(text)                                                                                  \
    do {                                                                                           \
        trapped = false;                                                                           \
        value = 0;                                                                                 \
        memset(place, 0, sizeof(place));                                                           \
        __asm__ volatile("mov" WORD " $9f, %[resume]\n " text "\n9:"                               \
                         : [resume] "=m"(resume), [value] "+&r"(value), [place] "+m"(place)        \
                         : : "eax", "ecx", "edx", "memory", "cc");                                 \
        resume = 0;                                                                                \
    } while (0)

#define EF_IF 0x200UL

static unsigned long read_flags(void)
{
    unsigned long flags;
    __asm__ volatile("pushf\n pop %0" : "=r"(flags));
    return flags;
}

static void row(const char *instruction, const char *meant, const char *happened)
{
    print("  %-7s %-26s %s\n", instruction, meant, trapped ? "TRAPPED, and was passed on to me" : happened);
}

static void show_silent(void)
{
    unsigned long value;
    char place[16], text[64];
    bool masked = events_off();
    TRY("");
    row("pushf", "is the interrupt flag off?",
        read_flags() & EF_IF ? "SILENT: says on; my events are masked" : "SILENT: says off");
    if (masked)
        events_on();
    TRY("pushf\n and" WORD " $~0x200, " TOP "\n popf");
    row("popf", "interrupts off", read_flags() & EF_IF ? "SILENT: nothing happened, they are on" : "they are off");
    TRY("mov %%cs, %k[value]");
    format_into(text, sizeof(text), "SILENT: ring %lu, not 0", value & 3);
    row("mov cs", "which ring am I in?", text);
    TRY("smsw %k[value]");
    format_into(text, sizeof(text), "SILENT: %lx, the machine's own CR0", value);
    row("smsw", "machine status word", text);
    TRY("sgdt %[place]");
    unsigned long base;
    memcpy(&base, place + 2, sizeof(base));
    format_into(text, sizeof(text), "SILENT: %p, the hypervisor's", (void *)base);
    row("sgdt", "where is my GDT?", text);
    TRY("str %k[value]");
    format_into(text, sizeof(text), "SILENT: %lx, the hypervisor's task", value & 0xffff);
    row("str", "which task am I?", text);
}

static void show_trapping(void)
{
    unsigned long value;
    char place[16], text[64];
    TRY("cli");
    row("cli", "interrupts off", "EMULATED: accepted");
    TRY("mov %%cr3, %[value]");
    format_into(text, sizeof(text), "EMULATED: %p", (void *)value);
    row("mov cr3", "where are my page tables?", text);
    TRY("mov $0x1b, %%ecx\n rdmsr\n mov %%eax, %k[value]");
    format_into(text, sizeof(text), "EMULATED: %lx", value);
    row("rdmsr", "the APIC's base", text);
    TRY("invlpg %[place]");
    row("invlpg", "forget a translation", "EMULATED: done");
    TRY("inb $0x60, %%al\n movzbl %%al, %k[value]");
    row("in 60", "a key from the keyboard", "EMULATED: there is none");
    TRY("lidt %[place]");
    row("lidt", "my interrupt table", "EMULATED: accepted");
}

void show_instructions(void)
{
    trap_handler_t before = trap_handler;
    trap_handler = note_trap;
    print("What an unmodified kernel would do, and what comes of it in a guest:\n");
    show_trapping();
    show_silent();                       /* the point of it, last: it is still seen where there are few lines */
    trap_handler = before;
    print("What traps can be emulated. What is silent must be changed in the guest.\n");
}
