/* The conformance guest: what Xen promises, checked from inside, as TAP (Test Anything Protocol). */
#ifndef SELFTEST_H
#define SELFTEST_H

#include "runtime/guest.h"
#include <xen/errno.h>

/* One line of TAP each. Nothing that differs lawfully from run to run is printed unless a check fails. */
void section(const char *title);
void check(bool passed, const char *format, ...) __attribute__((format(printf, 2, 3)));
void is(long got, long want, const char *format, ...) __attribute__((format(printf, 3, 4)));
void is64(uint64_t got, uint64_t want, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The last trap taken while a probe was armed. */
struct record {
    unsigned int count;
    struct trap_frame frame;
    unsigned long frame_end;             /* address behind the frame Xen pushed */
    unsigned int mask_in_handler;        /* the upcall mask while the handler ran */
    unsigned long cr2;
};
extern struct record record;
extern volatile unsigned long probe_start, probe_resume, probe_sp, probe_flags;
extern unsigned int expected_vector;      /* a trap that is only counted, and returned from as usual */
bool probe_handler(struct trap_frame *frame);
void probe_disarm(void);
extern void trap_0(void), trap_2(void), trap_3(void), trap_6(void), trap_128(void);

#ifdef __x86_64__
#define MOV "movq"
#define SP "%%rsp"
#define REG_A "rax"                          /* the word-sized registers, for use in a probe's text: "%%" REG_A */
#define REG_C "rcx"
#define REG_D "rdi"
#define HYPERVISOR_INSIDE 0xffff82d040200000 /* where Xen's own code begins */
#define POP_FLAGS "popq"
#else
#define MOV "movl"
#define SP "%%esp"
#define REG_A "eax"
#define REG_C "ecx"
#define REG_D "edi"
#define HYPERVISOR_INSIDE 0xfffff000     /* behind M2P */
#define POP_FLAGS "popl"
#endif

/* Run instructions that are expected to trap, or not; a trap goes on behind them. "8:" is where they begin. Operands
 * may use any register. */
#define PROBE(text, ...)                                                                             \
    do {                                                                                             \
        record.count = 0;                                                                            \
        barrier();                                                                                   \
        __asm__ volatile(MOV " $8f, probe_start; " MOV " $9f, probe_resume; " MOV " " SP ", probe_sp\n" \
                         "pushf; " POP_FLAGS " probe_flags\n"                                        \
                         "8: " text "\n9:" : __VA_ARGS__);                                           \
        barrier();                                                                                   \
        probe_disarm();                                                                              \
    } while (0)
#define USER_PROBE(code, argument)                                                                   \
    do {                                                                                             \
        record.count = 0;                                                                            \
        user_run(code, (unsigned long)(argument));                                                   \
        events_on();                                                                                 \
    } while (0)

/* Does the recorded trap have this vector and error code, and point `offset` bytes behind the probe's begin? */
bool trapped(unsigned int vector, unsigned long error, unsigned int offset);
void check_trap(unsigned int vector, unsigned long error, unsigned int offset, const char *what);
void check_no_trap(const char *what);

#define BAD_SELECTOR 0x1230

/* A pointer that is mapped nowhere. */
#define NOWHERE ((void *)0x10000)
/* A pointer to the M2P entry of our last page, which as a port number is out of range; and what comes of that where a
 * port is asked for: to a 32-bit guest Xen's copy_from_guest gives what the guest could read itself. */
#define IN_M2P ((void *)&m2p[p2m[start_info->nr_pages - 1]])
#ifdef __x86_64__
#define IN_M2P_IS -XEN_EFAULT
#else
#define IN_M2P_IS -XEN_EINVAL
#endif

unsigned int saved_mask(void);            /* in the recorded frame, next to CS */
unsigned int upcall_mask(void);
extern uint8_t scratch[8][PAGE_SIZE];    /* pages to play with; restored after use */

void test_start_info(void);
void test_shared_info(void);
void test_versions(void);
void test_unknown_hypercalls(void);
void test_misuse(void);
void test_multicall(void);
void test_memory_op(void);
void test_page_tables(void);
void test_mmuext(void);
void test_descriptors(void);
void test_exceptions(void);
void test_page_faults(void);
void test_software_interrupts(void);
void test_privileged_instructions(void);
void test_fpu_and_debug(void);
void test_user_mode(void);
void test_event_channels(void);
void test_upcalls(void);
void test_timers(void);
void test_new_tables(void);
void test_returns(void);
void test_grant_table(void);
void test_moved_vcpu_info(void);
void test_fifo(void);

#endif
