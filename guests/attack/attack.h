/* The hostile guest: ways out of a domain, each tried, each with the verdict of the hypervisor in a line of TAP. */
#ifndef ATTACK_H
#define ATTACK_H

#include "runtime/guest.h"
#include <xen/errno.h>

/* What became of an attempt. Texts are the same on every machine: no addresses, no frame numbers. */
typedef struct verdict {
    enum { REFUSED, GRANT_STATUS, TRAPPED, HARMLESS, BROKE_OUT } kind;
    long code;                           /* REFUSED: the negative error; GRANT_STATUS; TRAPPED: the vector */
    unsigned long error;                 /* TRAPPED: the error code */
    const char *text;                    /* HARMLESS: what the hypervisor made of it; BROKE_OUT: what was got */
} verdict_t;

/* One attempt, or several of a kind: a name with "%u" is tried with `first` to `last` (mostly levels of page tables),
 * one with "%s" likewise, with the words that they stand for. */
struct attempt {
    const char *name;                    /* one word, which "only=" takes */
    const char *advisory;                /* the public Xen security advisory that it recalls, or NULL */
    verdict_t (*run)(unsigned int number);
    unsigned int first, last;
    const char *const *words;
};

extern const struct attempt table_attempts[], type_attempts[], frame_attempts[], buffer_attempts[], segment_attempts[],
    vcpu_attempts[], grant_attempts[], count_attempts[];

/* A negative result is a refusal; anything else is what the text says. */
verdict_t refused(long result, const char *got);
verdict_t status_refused(long result, int16_t status, const char *got);  /* the same for a grant operation's status */
verdict_t broke_out(const char *got);
extern bool needed_moment;               /* set by an attempt for which an event must come in the middle of a hypercall */
/* The attempt went through and changed nothing that matters, if `kept`; else it broke out. */
verdict_t harmless(bool kept, const char *what_became, const char *got);
/* The trap that the latest TRY ended with; none is what the text says. */
verdict_t trapped(const char *got);

/* Run instructions that ought to trap, in whatever mode they end: the program goes on behind them. */
extern volatile struct trap_seen {
    unsigned int count;
    unsigned long vector, error;
} seen;
extern volatile unsigned long try_resume, try_sp;
#ifdef __x86_64__
#define MOV "movq"
#define SP "%%rsp"
#else
#define MOV "movl"
#define SP "%%esp"
#endif
#define TRY(text, ...)                                                                                   \
    do {                                                                                                 \
        seen.count = 0;                                                                                  \
        barrier();                                                                                       \
        __asm__ volatile(MOV " $9f, try_resume; " MOV " " SP ", try_sp; " text "\n9: " MOV " try_sp, " SP \
                         : __VA_ARGS__);                                                                 \
        barrier();                                                                                       \
        try_resume = 0;                                                                                  \
    } while (0)
void try_store(volatile void *va, unsigned long value);  /* a word */
unsigned long try_load(const volatile void *va);         /* a word; 0 if it traps */

/* A trap of the second vCPU's ends it, and this does not return; it does for those of the first. */
void second_vcpu_trapped(const struct trap_frame *frame);

/* Pages to play with. Before each attempt all are mapped writable in their own place and zero. */
#define PAGES 8
extern uint8_t page[PAGES][PAGE_SIZE];
#define VA(number) ((unsigned long)page[number])
/* Where no page table of the domain's is: one L2 entry's worth of address space; and that entry's machine address. */
#define NEW_REGION (VIRT_BASE + (512UL << 20))
uint64_t new_region_entry(void);
/* Where no L2 table of the domain's is. */
#ifdef __x86_64__
#define NEW_TOP (VIRT_BASE - (2UL << 30))
#else
#define NEW_TOP 0x40000000UL
#endif
/* Many pages, for counts; the same holds. */
#define CROWD 129
extern uint8_t crowd[CROWD][PAGE_SIZE];

#define LINK (PTE_PRESENT | PTE_WRITABLE | PTE_USER | PTE_ACCESSED | PTE_DIRTY)  /* to a lower table */
#define READ_ONLY (PTE_PRESENT | PTE_ACCESSED | PTE_NX)
uint64_t entry_of(const void *va, uint64_t flags);       /* an entry that maps the page at an initial address */
uint64_t machine_of(const void *va);
int read_only(void *va);                                 /* map a page read-only where it is */
int writable(void *va);
uint64_t own_table(unsigned int level);                  /* machine address of the table on the way to page[0] */
int extended(unsigned int command, unsigned long first, unsigned long second);
int pin(unsigned int level, const void *va);
int unpin(const void *va);
long reservation(unsigned int command, xen_pfn_t *frame);      /* one page more or less, at *frame */
bool give_back(const void *va);                          /* the page's frame to the hypervisor */
bool take_again(void *va);                               /* a new frame for it */

/* Frames that are not ours. */
unsigned long foreign_frame(void);                       /* another domain's, if one shows; else nobody's */
unsigned long m2p_frame(void);                           /* the hypervisor's own: its machine-to-physical table */
#define OUT_OF_RANGE (1UL << 30)                         /* a frame number beyond all memory */

#ifdef __x86_64__
#define INSIDE 0xffff82d040200000                        /* the hypervisor's own code */
#else
#define INSIDE 0xfffff000                                /* behind M2P, as far up as addresses go */
#endif

#endif
