/* Addresses and sizes that the C code, the assembler and the linker script share. */
#ifndef LAYOUT_H
#define LAYOUT_H

#define PAGE_SIZE 4096
#define STACK_PAGES 4

#ifdef __x86_64__
#define VIRT_BASE 0xffffffff80000000   /* the last 2 GiB: -mcmodel=kernel */
#define USER_BASE 0x0000000000400000   /* where a guest's ring 3 "process" sees its code */
#else
#define VIRT_BASE 0xc0000000           /* L3 slot 3, where Xen's PAE layout expects a kernel */
#endif

#endif
