/* The ELF notes by which a domain builder knows a Xen PV kernel (xen/elfnote.h), the same for both word sizes. */
#include <xen/elfnote.h>
#include "layout.h"

#ifdef __x86_64__
#define WORD .quad
#else
#define WORD .long
#endif

.macro note type, value:vararg
    .pushsection .note.Xen, "a", @note
    .balign 4
    .long 2f - 1f, 4f - 3f, \type
1:  .asciz "Xen"
2:  .balign 4
3:  \value
4:  .balign 4
    .popsection
.endm

note XEN_ELFNOTE_GUEST_OS, .asciz GUEST_NAME
note XEN_ELFNOTE_GUEST_VERSION, .asciz "1"
note XEN_ELFNOTE_XEN_VERSION, .asciz "xen-3.0"
note XEN_ELFNOTE_LOADER, .asciz "generic"
note XEN_ELFNOTE_VIRT_BASE, WORD VIRT_BASE
note XEN_ELFNOTE_ENTRY, WORD _start
note XEN_ELFNOTE_HYPERCALL_PAGE, WORD hypercall_page
note XEN_ELFNOTE_FEATURES, .asciz "pae_pgdir_above_4gb|mmu_pt_update_preserve_ad"
#ifndef __x86_64__
note XEN_ELFNOTE_PAE_MODE, .asciz "yes"
note XEN_ELFNOTE_HV_START_LOW, WORD 0xf5800000
#endif
