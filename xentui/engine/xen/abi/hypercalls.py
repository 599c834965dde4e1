"""The hypercalls: numbers, argument names and sub-commands, as xen/xen.h and Xen's hypercall definitions name them."""

from __future__ import annotations

HYPERCALL_set_trap_table = 0
HYPERCALL_mmu_update = 1
HYPERCALL_set_gdt = 2
HYPERCALL_stack_switch = 3
HYPERCALL_set_callbacks = 4
HYPERCALL_fpu_taskswitch = 5
HYPERCALL_sched_op_compat = 6
HYPERCALL_platform_op = 7
HYPERCALL_set_debugreg = 8
HYPERCALL_get_debugreg = 9
HYPERCALL_update_descriptor = 10
HYPERCALL_memory_op = 12
HYPERCALL_multicall = 13
HYPERCALL_update_va_mapping = 14
HYPERCALL_set_timer_op = 15
HYPERCALL_event_channel_op_compat = 16
HYPERCALL_xen_version = 17
HYPERCALL_console_io = 18
HYPERCALL_physdev_op_compat = 19
HYPERCALL_grant_table_op = 20
HYPERCALL_vm_assist = 21
HYPERCALL_update_va_mapping_otherdomain = 22
HYPERCALL_iret = 23
HYPERCALL_vcpu_op = 24
HYPERCALL_set_segment_base = 25
HYPERCALL_mmuext_op = 26
HYPERCALL_xsm_op = 27
HYPERCALL_nmi_op = 28
HYPERCALL_sched_op = 29
HYPERCALL_callback_op = 30
HYPERCALL_xenoprof_op = 31
HYPERCALL_event_channel_op = 32
HYPERCALL_physdev_op = 33
HYPERCALL_hvm_op = 34
HYPERCALL_sysctl = 35
HYPERCALL_domctl = 36
HYPERCALL_kexec_op = 37
HYPERCALL_tmem_op = 38
HYPERCALL_argo_op = 39
HYPERCALL_xenpmu_op = 40
HYPERCALL_dm_op = 41
HYPERCALL_hypfs_op = 42

# for the architecture's use; on x86 only the first is a guest's: machine checks (arch-x86/xen-mca.h)
HYPERCALL_arch_0 = 48
HYPERCALL_arch_1 = 49
HYPERCALL_arch_2 = 50
HYPERCALL_arch_3 = 51
HYPERCALL_arch_4 = 52
HYPERCALL_arch_5 = 53
HYPERCALL_arch_6 = 54
HYPERCALL_arch_7 = 55
HYPERCALL_mca = 48

#: entries in the hypercall table: a number from here on is unknown to every Xen
NR_HYPERCALLS = 64

#: number to name
NAMES: dict[int, str] = {
    0: "set_trap_table",
    1: "mmu_update",
    2: "set_gdt",
    3: "stack_switch",
    4: "set_callbacks",
    5: "fpu_taskswitch",
    6: "sched_op_compat",
    7: "platform_op",
    8: "set_debugreg",
    9: "get_debugreg",
    10: "update_descriptor",
    12: "memory_op",
    13: "multicall",
    14: "update_va_mapping",
    15: "set_timer_op",
    16: "event_channel_op_compat",
    17: "xen_version",
    18: "console_io",
    19: "physdev_op_compat",
    20: "grant_table_op",
    21: "vm_assist",
    22: "update_va_mapping_otherdomain",
    23: "iret",
    24: "vcpu_op",
    25: "set_segment_base",
    26: "mmuext_op",
    27: "xsm_op",
    28: "nmi_op",
    29: "sched_op",
    30: "callback_op",
    31: "xenoprof_op",
    32: "event_channel_op",
    33: "physdev_op",
    34: "hvm_op",
    35: "sysctl",
    36: "domctl",
    37: "kexec_op",
    38: "tmem_op",
    39: "argo_op",
    40: "xenpmu_op",
    41: "dm_op",
    42: "hypfs_op",
    48: "mca",
    49: "arch_1",
    50: "arch_2",
    51: "arch_3",
    52: "arch_4",
    53: "arch_5",
    54: "arch_6",
    55: "arch_7",
}

#: number to the arguments' names, in the registers' order (RDI RSI RDX R10 R8 R9); numbers not here take none
ARGUMENTS: dict[int, tuple[str, ...]] = {
    HYPERCALL_set_trap_table: ("traps",),
    HYPERCALL_mmu_update: ("ureqs", "count", "pdone", "foreigndom"),
    HYPERCALL_set_gdt: ("frame_list", "entries"),
    HYPERCALL_stack_switch: ("ss", "esp"),
    HYPERCALL_set_callbacks: ("event_address", "failsafe_address", "syscall_address"),
    HYPERCALL_fpu_taskswitch: ("set",),
    HYPERCALL_sched_op_compat: ("cmd", "arg"),
    HYPERCALL_platform_op: ("platform_op",),
    HYPERCALL_set_debugreg: ("reg", "value"),
    HYPERCALL_get_debugreg: ("reg",),
    HYPERCALL_update_descriptor: ("gaddr", "desc"),
    HYPERCALL_memory_op: ("cmd", "arg"),
    HYPERCALL_multicall: ("call_list", "nr_calls"),
    HYPERCALL_update_va_mapping: ("va", "val", "flags"),
    HYPERCALL_set_timer_op: ("timeout",),
    HYPERCALL_event_channel_op_compat: ("op",),
    HYPERCALL_xen_version: ("cmd", "arg"),
    HYPERCALL_console_io: ("cmd", "count", "buffer"),
    HYPERCALL_physdev_op_compat: ("op",),
    HYPERCALL_grant_table_op: ("cmd", "uop", "count"),
    HYPERCALL_vm_assist: ("cmd", "type"),
    HYPERCALL_update_va_mapping_otherdomain: ("va", "val", "flags", "domid"),
    HYPERCALL_vcpu_op: ("cmd", "vcpuid", "arg"),
    HYPERCALL_set_segment_base: ("which", "base"),
    HYPERCALL_mmuext_op: ("uops", "count", "pdone", "foreigndom"),
    HYPERCALL_xsm_op: ("op",),
    HYPERCALL_nmi_op: ("cmd", "arg"),
    HYPERCALL_sched_op: ("cmd", "arg"),
    HYPERCALL_callback_op: ("cmd", "arg"),
    HYPERCALL_xenoprof_op: ("op", "arg"),
    HYPERCALL_event_channel_op: ("cmd", "arg"),
    HYPERCALL_physdev_op: ("cmd", "arg"),
    HYPERCALL_hvm_op: ("op", "arg"),
    HYPERCALL_sysctl: ("sysctl",),
    HYPERCALL_domctl: ("domctl",),
    HYPERCALL_kexec_op: ("op", "arg"),
    HYPERCALL_tmem_op: ("uop",),
    HYPERCALL_argo_op: ("cmd", "arg1", "arg2", "arg3", "arg4"),
    HYPERCALL_xenpmu_op: ("op", "arg"),
    HYPERCALL_dm_op: ("domid", "nr_bufs", "bufs"),
    HYPERCALL_hypfs_op: ("cmd", "arg1", "arg2", "arg3", "arg4"),
    HYPERCALL_arch_0: ("mc",),
}

#: the same for a 32-bit guest (EBX ECX EDX ESI EDI EBP): 64-bit values come in halves, code pointers with a selector
ARGUMENTS_32: dict[int, tuple[str, ...]] = {
    **ARGUMENTS,
    HYPERCALL_set_callbacks: ("event_selector", "event_address", "failsafe_selector", "failsafe_address"),
    HYPERCALL_update_descriptor: ("gaddr_lo", "gaddr_hi", "desc_lo", "desc_hi"),
    HYPERCALL_update_va_mapping: ("va", "val_lo", "val_hi", "flags"),
    HYPERCALL_set_timer_op: ("timeout_lo", "timeout_hi"),
    HYPERCALL_update_va_mapping_otherdomain: ("va", "val_lo", "val_hi", "flags", "domid"),
}

#: number to the names of its sub-commands: of the first argument, or for mmuext_op of each operation's `cmd`
SUBCOMMANDS: dict[int, dict[int, str]] = {
    HYPERCALL_memory_op: {
        0: "increase_reservation",
        1: "decrease_reservation",
        2: "maximum_ram_page",
        3: "current_reservation",
        4: "maximum_reservation",
        5: "machphys_mfn_list",
        6: "populate_physmap",
        7: "add_to_physmap",
        9: "memory_map",
        10: "machine_memory_map",
        11: "exchange",
        12: "machphys_mapping",
        13: "set_memory_map",
        14: "maximum_gpfn",
        15: "remove_from_physmap",
        16: "set_pod_target",
        17: "get_pod_target",
        18: "get_sharing_freed_pages",
        19: "get_sharing_shared_pages",
        20: "paging_op",
        21: "access_op",
        22: "sharing_op",
        23: "add_to_physmap_batch",
        24: "claim_pages",
        25: "machphys_compat_mfn_list",
        26: "get_vnumainfo",
        27: "reserved_device_memory_map",
        28: "acquire_resource",
    },
    HYPERCALL_event_channel_op: {
        0: "bind_interdomain",
        1: "bind_virq",
        2: "bind_pirq",
        3: "close",
        4: "send",
        5: "status",
        6: "alloc_unbound",
        7: "bind_ipi",
        8: "bind_vcpu",
        9: "unmask",
        10: "reset",
        11: "init_control",
        12: "expand_array",
        13: "set_priority",
    },
    HYPERCALL_sched_op: {
        0: "yield",
        1: "block",
        2: "shutdown",
        3: "poll",
        4: "remote_shutdown",
        5: "shutdown_code",
        6: "watchdog",
        7: "pin_override",
    },
    HYPERCALL_vcpu_op: {
        0: "initialise",
        1: "up",
        2: "down",
        3: "is_up",
        4: "get_runstate_info",
        5: "register_runstate_memory_area",
        6: "set_periodic_timer",
        7: "stop_periodic_timer",
        8: "set_singleshot_timer",
        9: "stop_singleshot_timer",
        10: "register_vcpu_info",
        11: "send_nmi",
        12: "get_physid",
        13: "register_vcpu_time_memory_area",
    },
    HYPERCALL_grant_table_op: {
        0: "map_grant_ref",
        1: "unmap_grant_ref",
        2: "setup_table",
        3: "dump_table",
        4: "transfer",
        5: "copy",
        6: "query_size",
        7: "unmap_and_replace",
        8: "set_version",
        9: "get_status_frames",
        10: "get_version",
        11: "swap_grant_ref",
        12: "cache_flush",
    },
    HYPERCALL_physdev_op: {
        4: "IRQ_UNMASK_NOTIFY",
        5: "irq_status_query",
        6: "set_iopl",
        7: "set_iobitmap",
        8: "apic_read",
        9: "apic_write",
        10: "alloc_irq_vector",
        11: "free_irq_vector",
        12: "eoi",
        13: "map_pirq",
        14: "unmap_pirq",
        15: "manage_pci_add",
        16: "manage_pci_remove",
        17: "pirq_eoi_gmfn_v1",
        19: "restore_msi",
        20: "manage_pci_add_ext",
        21: "setup_gsi",
        23: "get_free_pirq",
        24: "pci_mmcfg_reserved",
        25: "pci_device_add",
        26: "pci_device_remove",
        27: "restore_msi_ext",
        28: "pirq_eoi_gmfn_v2",
        29: "dbgp_op",
        30: "prepare_msix",
        31: "release_msix",
    },
    HYPERCALL_xen_version: {
        0: "version",
        1: "extraversion",
        2: "compile_info",
        3: "capabilities",
        4: "changeset",
        5: "platform_parameters",
        6: "get_features",
        7: "pagesize",
        8: "guest_handle",
        9: "commandline",
        10: "build_id",
    },
    HYPERCALL_callback_op: {
        0: "register",
        1: "unregister",
    },
    HYPERCALL_console_io: {
        0: "write",
        1: "read",
    },
    HYPERCALL_mmuext_op: {
        0: "PIN_L1_TABLE",
        1: "PIN_L2_TABLE",
        2: "PIN_L3_TABLE",
        3: "PIN_L4_TABLE",
        4: "UNPIN_TABLE",
        5: "NEW_BASEPTR",
        6: "TLB_FLUSH_LOCAL",
        7: "INVLPG_LOCAL",
        8: "TLB_FLUSH_MULTI",
        9: "INVLPG_MULTI",
        10: "TLB_FLUSH_ALL",
        11: "INVLPG_ALL",
        12: "FLUSH_CACHE",
        13: "SET_LDT",
        15: "NEW_USER_BASEPTR",
        16: "CLEAR_PAGE",
        17: "COPY_PAGE",
        18: "FLUSH_CACHE_GLOBAL",
        19: "MARK_SUPER",
        20: "UNMARK_SUPER",
    },
    HYPERCALL_vm_assist: {
        0: "enable",
        1: "disable",
    },
    HYPERCALL_nmi_op: {
        0: "register_callback",
        1: "unregister_callback",
    },
}
# the old forms use the same numbers, in a structure's member or (sched_op_compat) as they are
SUBCOMMANDS[HYPERCALL_sched_op_compat] = SUBCOMMANDS[HYPERCALL_sched_op]
SUBCOMMANDS[HYPERCALL_event_channel_op_compat] = SUBCOMMANDS[HYPERCALL_event_channel_op]
SUBCOMMANDS[HYPERCALL_physdev_op_compat] = SUBCOMMANDS[HYPERCALL_physdev_op]
