/* How a guest's image is laid out: text from VIRT_BASE, then constants, then data and bss, each from a page boundary
 * of its own, so that the runtime can give each its own protection. Load addresses count from 0, which is what
 * XEN_ELFNOTE_PADDR_OFFSET is by default, so the image occupies the domain's first frames. */
#include "layout.h"

#ifdef __x86_64__
OUTPUT_FORMAT("elf64-x86-64")
OUTPUT_ARCH(i386:x86-64)
#else
OUTPUT_FORMAT("elf32-i386")
OUTPUT_ARCH(i386)
#endif
ENTRY(_start)

PHDRS
{
    text PT_LOAD FLAGS(5);
    rodata PT_LOAD FLAGS(4);
    data PT_LOAD FLAGS(6);
    note PT_NOTE FLAGS(4);
}

SECTIONS
{
    . = VIRT_BASE;
    .text : AT(ADDR(.text) - VIRT_BASE) { text_start = .; *(.text.head) *(.text .text.*) } :text
    . = ALIGN(4096);
    .user : AT(ADDR(.user) - VIRT_BASE) { user_start = .; *(.user) . = ALIGN(4096); user_end = .; } :text
    .rodata : AT(ADDR(.rodata) - VIRT_BASE) { rodata_start = .; *(.rodata .rodata.*) } :rodata
    .note.Xen : AT(ADDR(.note.Xen) - VIRT_BASE) { KEEP(*(.note.Xen)) } :rodata :note
    . = ALIGN(4096);
    .data : AT(ADDR(.data) - VIRT_BASE) { data_start = .; *(.data .data.*) } :data
    .bss : AT(ADDR(.bss) - VIRT_BASE) { *(.bss .bss.*) *(COMMON) . = ALIGN(4096); image_end = .; } :data
    /DISCARD/ : { *(.comment) *(.note.GNU-stack) *(.note.gnu.*) *(.eh_frame) }
}
