/* The runtime that our own guests share: a very small PV kernel, for both word sizes. */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <xen/xen.h>
#include <xen/event_channel.h>
#include <xen/memory.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>

#include "layout.h"

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define barrier() __asm__ volatile("" ::: "memory")
#define __page_aligned __attribute__((aligned(PAGE_SIZE)))

/* What a guest program supplies. */
void guest_main(void);
extern const char guest_name[];          /* for instance "hello" */

/* start.c */
extern start_info_t *start_info;
extern shared_info_t *shared_info;       /* mapped by the runtime */
extern vcpu_info_t *own_vcpu;            /* our vCPU's part of it, or where that has been moved to */
extern struct boot_state {               /* what the guest found, before it changed anything */
    unsigned long sp;
    uint16_t cs, ss;
    uint64_t code_pte, data_pte, table_pte;
    bool all_upcalls_masked, no_channel_masked, no_channel_pending;
} boot;
bool option(const char *name, char *value, size_t size);       /* "name=value" on the command line */
unsigned long option_number(const char *name, unsigned long otherwise);
bool is_initial_domain(void);
void shut_down(unsigned int reason) __attribute__((noreturn)); /* SHUTDOWN_* */

/* string.c */
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);
void *memset(void *to, int byte, size_t n);
void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
uint64_t divide(uint64_t dividend, uint32_t divisor);          /* no libgcc on 32 bits */
unsigned long parse_number(const char *s);

/* console.c, format.c */
void console_init(void);
void console_write(const char *s, size_t n);
size_t console_read(char *to, size_t n);                       /* what is there, without waiting */
size_t console_line(char *to, size_t size);                    /* a typed line; blocks; echoes */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
size_t format_text(char *to, size_t size, const char *format, va_list arguments);
size_t format_into(char *to, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* memory.c: page tables. A guest sees its own tables read-only and changes them by hypercall (direct paging). */
#define PTE_PRESENT 0x001ULL
#define PTE_WRITABLE 0x002ULL
#define PTE_USER 0x004ULL
#define PTE_ACCESSED 0x020ULL
#define PTE_DIRTY 0x040ULL
#define PTE_SUPERPAGE 0x080ULL
#define PTE_NX (1ULL << 63)
#define PTE_FRAME 0x000ffffffffff000ULL
#define PTE_DATA (PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED | PTE_DIRTY | PTE_NX)
#ifdef __x86_64__
#define LEVELS 4
#else
#define LEVELS 3
#endif

extern unsigned long *m2p;               /* machine frame -> pseudo-physical frame, the hypervisor's, read-only */
extern unsigned long *p2m;               /* the reverse, ours */
unsigned long pfn_of(const void *va);
unsigned long mfn_of(const void *va);    /* of an address in the initial mapping */
void *va_of_pfn(unsigned long pfn);
void *va_of_mfn(unsigned long mfn);
uint64_t *pte_pointer(unsigned long va, unsigned int level);   /* level 1 is the bottom; NULL: no table there */
uint64_t pte_machine_address(unsigned long va, unsigned int level);
uint64_t pte_read(unsigned long va);                           /* the bottom entry, 0 if there is none */
int pte_write(unsigned long va, uint64_t pte);                 /* update_va_mapping and INVLPG */
int mmu_set(uint64_t machine_address, uint64_t value);         /* one mmu_update; a negative error or 0 */
int mmuext(unsigned int command, unsigned long argument);      /* one mmuext_op on our own domain */
void memory_init(void);
void map_shared_info(void);
void protect_own_image(void);
void *page_allocate(void);               /* zeroed, of a pool in .bss; NULL when it is used up */

/* traps.c */
#define VECTOR_EVENT 256
#define VECTOR_FAILSAFE 257
#define VECTOR_SYSCALL 258
#ifdef __x86_64__
struct trap_frame {
    uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    uint64_t vector, error;              /* from here down as Xen pushed it */
    uint64_t ip, cs, flags, sp, ss;
};
#else
struct trap_frame {
    uint32_t es, ds, edi, esi, ebp, ebx, edx, ecx, eax;
    uint32_t vector, error;
    uint32_t ip, cs, flags, sp, ss;      /* sp and ss only from ring 3 */
};
#endif
typedef bool (*trap_handler_t)(struct trap_frame *frame);      /* true: handled, go on */
extern struct trap_frame *event_frame;   /* of the upcall being handled */
extern trap_handler_t trap_handler;      /* asked first for every exception and software interrupt */
void traps_init(void);
void trap_set(unsigned int vector, unsigned int flags, void (*entry)(void));
void trap_dispatch(struct trap_frame *frame);
bool from_user(const struct trap_frame *frame);
void print_registers(const struct trap_frame *frame);

/* events.c */
typedef void (*event_handler_t)(evtchn_port_t port);
void events_init(void);
void event_handle(evtchn_port_t port, event_handler_t handler); /* and unmask */
void event_mask(evtchn_port_t port);
bool event_pending(evtchn_port_t port);
void event_clear(evtchn_port_t port);
void event_send(evtchn_port_t port);
long event_bind_virq(unsigned int virq); /* a port, or a negative error */
long event_bind_ipi(void);
void events_dispatch(void);
void events_on(void);                    /* the virtual "sti": unmask, then take what is pending */
bool events_off(void);                   /* the virtual "cli"; returns whether events were on */
void block(void);                        /* wait for an event, events on */

/* clock.c */
uint64_t clock_ns(void);                 /* nanoseconds since boot, by the shared time record */
void timer_init(void);
void sleep_ns(uint64_t ns);

/* user.c: a "process": user code and a stack in user pages. Code lies in section .user, refers to nothing of the
 * kernel, finds its argument in RDI or EAX, and ends with "int3" (the one software interrupt, with "int $0x80", that
 * QEMU's emulation lets Xen see right: before version 10 it reports "int $n" in 64-bit mode with the error code
 * 16n + 2 for 8n + 2). */
#define USER_EXIT 3
void user_init(void);
void *user_code(const void *kernel_address);  /* the same byte as user mode sees it */
unsigned long user_stack_top(void);
long user_run(void (*code)(void), unsigned long argument);     /* until "int3"; returns its RAX or EAX */
void user_leave(long value) __attribute__((noreturn));
#ifdef __x86_64__
extern unsigned long user_cs;            /* its code segment: FLAT_USER_CS64, or FLAT_USER_CS32 for 32-bit code */
#endif
extern volatile unsigned int int80_count;
void int80_count_and_return(void);

#include "hypercall.h"

#endif
