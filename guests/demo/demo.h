/* The parts of the demonstration guest. */
#ifndef DEMO_H
#define DEMO_H

#include "runtime/guest.h"

/* link.c: a ring in a granted page, over which one domain asks and the other answers. */
struct link {
    bool up, asks;                       /* the domain with the lower number asks */
    unsigned int own, peer;              /* domain numbers */
    evtchn_port_t port;
    unsigned long requests, responses, notifications, upcalls;
    uint32_t number, factor;             /* the latest question, and its answer */
    unsigned long secret;                /* machine frame in which the peer keeps its secret */
};
extern struct link link;
void link_open(unsigned int peer);       /* once in a while until it is up */
void link_ask(unsigned int count);
void link_serve(void);                   /* take what has come */

/* store.c: xenstore: paths are relative to /local/domain/OWN unless they begin with a slash. Negative: refused. */
long store_read(const char *path, char *value, size_t size);   /* the length; the value is terminated */
long store_write(const char *path, const char *value);
long store_let_read(const char *path, unsigned int own, unsigned int other);

/* process.c: a user process that makes system calls and touches memory which is not there. */
extern volatile unsigned long system_calls, page_faults;
void process_init(void);
void process_run(unsigned long calls, unsigned long faults);

/* instructions.c: what the sensitive instructions of x86 do in a paravirtualized kernel. */
void show_instructions(void);

extern char secret[PAGE_SIZE];
void steal(void);                        /* try to map the peer's secret */

#endif
