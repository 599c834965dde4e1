"""Constants of arch-x86/xen.h, the same for both word sizes."""

FIRST_RESERVED_GDT_PAGE = 14
FIRST_RESERVED_GDT_BYTE = 0xE000
FIRST_RESERVED_GDT_ENTRY = 7168

XEN_LEGACY_MAX_VCPUS = 32

VGCF_I387_VALID = 1
VGCF_IN_KERNEL = 4
VGCF_i387_valid = 1
VGCF_in_kernel = 4
VGCF_failsafe_disables_events = 8
VGCF_syscall_disables_events = 16
VGCF_online = 32

# The descriptors that Xen keeps in the reserved entries of every GDT are arch_x86_32 and arch_x86_64.

#: bits of trap_info.flags: lowest privilege allowed to use the vector by `int n`; clear the event enable
TI_DPL_MASK = 3
TI_IF = 4

# A 32-bit guest on a 64-bit Xen: the part of its address space that Xen keeps, and the M2P in it. Not in the public
# headers; Xen's asm-x86/config.h, and what XENMEM_machphys_mapping answers.
HYPERVISOR_COMPAT_VIRT_START = 0xF580_0000
MACH2PHYS_COMPAT_VIRT_START = 0xF580_0000
MACH2PHYS_COMPAT_VIRT_END = 0xFFE0_0000
