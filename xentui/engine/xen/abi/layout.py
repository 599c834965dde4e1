"""Where the members of Xen's public structures lie: what both word sizes share, and the type of both layouts.

`LAYOUT32` (layout32.py) is what a 32-bit guest sees, `LAYOUT64` (layout64.py) a 64-bit one; both are a `Layout`, so
that code takes one of them and serves either width: `layout.VCPU_INFO_arch_cr2`. A name is the structure's in capitals,
then the member's path; `_SIZE` is the whole structure's size in bytes, and `STRUCT_mmu_update` packs and unpacks all
members of a structure in order (handles as plain addresses, a union as its widest member). i386 aligns 64-bit members
to 4 bytes only, and so do these.

Longer than most files because it is a table; tests/abi_from_headers.py prints it, tests/test_abi.py checks every line.
"""

from __future__ import annotations

from struct import Struct


class Layout:
    """Offsets and sizes in bytes, of one word size; only annotated here where the word sizes differ."""

    #: bits and bytes of `unsigned long`, of a frame number and of a pointer
    WORD_BITS: int
    WORD_SIZE: int
    #: format of one such word
    STRUCT_word: Struct
    #: event channels of the two-level ABI
    EVTCHN_2L_NR_CHANNELS: int

    # what XENMEM_memory_map stores, as INT 0x15 E820 does: address, length, type
    E820_ENTRY_SIZE = 20
    E820_ENTRY_addr = 0
    E820_ENTRY_size = 8
    E820_ENTRY_type = 16
    STRUCT_e820_entry = Struct("<QQI")

    # struct start_info, by width
    START_INFO_SIZE: int
    START_INFO_magic: int
    START_INFO_nr_pages: int
    START_INFO_shared_info: int
    START_INFO_flags: int
    START_INFO_store_mfn: int
    START_INFO_store_evtchn: int
    START_INFO_console: int
    START_INFO_console_domU: int
    START_INFO_console_domU_mfn: int
    START_INFO_console_domU_evtchn: int
    START_INFO_console_dom0: int
    START_INFO_console_dom0_info_off: int
    START_INFO_console_dom0_info_size: int
    START_INFO_pt_base: int
    START_INFO_nr_pt_frames: int
    START_INFO_mfn_list: int
    START_INFO_mod_start: int
    START_INFO_mod_len: int
    START_INFO_cmd_line: int
    START_INFO_first_p2m_pfn: int
    START_INFO_nr_p2m_frames: int

    # struct xen_multiboot_mod_list
    XEN_MULTIBOOT_MOD_LIST_SIZE = 16
    XEN_MULTIBOOT_MOD_LIST_mod_start = 0
    XEN_MULTIBOOT_MOD_LIST_mod_end = 4
    XEN_MULTIBOOT_MOD_LIST_cmdline = 8
    STRUCT_xen_multiboot_mod_list = Struct("<III4x")

    # struct shared_info, by width
    SHARED_INFO_SIZE: int
    SHARED_INFO_vcpu_info: int
    SHARED_INFO_evtchn_pending: int
    SHARED_INFO_evtchn_mask: int
    SHARED_INFO_wc_version: int
    SHARED_INFO_wc_sec: int
    SHARED_INFO_wc_nsec: int
    SHARED_INFO_arch: int
    SHARED_INFO_arch_max_pfn: int
    SHARED_INFO_arch_pfn_to_mfn_frame_list_list: int
    SHARED_INFO_arch_nmi_reason: int
    SHARED_INFO_arch_p2m_cr3: int
    SHARED_INFO_arch_p2m_vaddr: int
    SHARED_INFO_arch_p2m_generation: int

    # struct arch_shared_info, by width
    ARCH_SHARED_INFO_SIZE: int
    ARCH_SHARED_INFO_max_pfn: int
    ARCH_SHARED_INFO_pfn_to_mfn_frame_list_list: int
    ARCH_SHARED_INFO_nmi_reason: int
    ARCH_SHARED_INFO_p2m_cr3: int
    ARCH_SHARED_INFO_p2m_vaddr: int
    ARCH_SHARED_INFO_p2m_generation: int

    # struct vcpu_info, by width
    VCPU_INFO_SIZE: int
    VCPU_INFO_evtchn_upcall_pending: int
    VCPU_INFO_evtchn_upcall_mask: int
    VCPU_INFO_evtchn_pending_sel: int
    VCPU_INFO_arch: int
    VCPU_INFO_arch_cr2: int
    VCPU_INFO_time: int
    VCPU_INFO_time_version: int
    VCPU_INFO_time_tsc_timestamp: int
    VCPU_INFO_time_system_time: int
    VCPU_INFO_time_tsc_to_system_mul: int
    VCPU_INFO_time_tsc_shift: int
    VCPU_INFO_time_flags: int

    # struct arch_vcpu_info, by width
    ARCH_VCPU_INFO_SIZE: int
    ARCH_VCPU_INFO_cr2: int

    # struct vcpu_time_info
    VCPU_TIME_INFO_SIZE = 32
    VCPU_TIME_INFO_version = 0
    VCPU_TIME_INFO_tsc_timestamp = 8
    VCPU_TIME_INFO_system_time = 16
    VCPU_TIME_INFO_tsc_to_system_mul = 24
    VCPU_TIME_INFO_tsc_shift = 28
    VCPU_TIME_INFO_flags = 29
    STRUCT_vcpu_time_info = Struct("<I4xQQIbB2x")

    # struct vcpu_runstate_info, by width
    VCPU_RUNSTATE_INFO_SIZE: int
    VCPU_RUNSTATE_INFO_state: int
    VCPU_RUNSTATE_INFO_state_entry_time: int
    VCPU_RUNSTATE_INFO_time: int
    STRUCT_vcpu_runstate_info: Struct

    # struct cpu_user_regs, by width
    CPU_USER_REGS_SIZE: int
    CPU_USER_REGS_error_code: int
    CPU_USER_REGS_entry_vector: int
    CPU_USER_REGS_cs: int
    CPU_USER_REGS_saved_upcall_mask: int
    CPU_USER_REGS_ss: int
    CPU_USER_REGS_es: int
    CPU_USER_REGS_ds: int
    CPU_USER_REGS_fs: int
    CPU_USER_REGS_gs: int

    # struct trap_info, by width
    TRAP_INFO_SIZE: int
    TRAP_INFO_vector: int
    TRAP_INFO_flags: int
    TRAP_INFO_cs: int
    TRAP_INFO_address: int
    STRUCT_trap_info: Struct

    # struct vcpu_guest_context, by width
    VCPU_GUEST_CONTEXT_SIZE: int
    VCPU_GUEST_CONTEXT_fpu_ctxt: int
    VCPU_GUEST_CONTEXT_fpu_ctxt_x: int
    VCPU_GUEST_CONTEXT_flags: int
    VCPU_GUEST_CONTEXT_user_regs: int
    VCPU_GUEST_CONTEXT_user_regs_error_code: int
    VCPU_GUEST_CONTEXT_user_regs_entry_vector: int
    VCPU_GUEST_CONTEXT_user_regs_cs: int
    VCPU_GUEST_CONTEXT_user_regs_saved_upcall_mask: int
    VCPU_GUEST_CONTEXT_user_regs_ss: int
    VCPU_GUEST_CONTEXT_user_regs_es: int
    VCPU_GUEST_CONTEXT_user_regs_ds: int
    VCPU_GUEST_CONTEXT_user_regs_fs: int
    VCPU_GUEST_CONTEXT_user_regs_gs: int
    VCPU_GUEST_CONTEXT_trap_ctxt: int
    VCPU_GUEST_CONTEXT_ldt_base: int
    VCPU_GUEST_CONTEXT_ldt_ents: int
    VCPU_GUEST_CONTEXT_gdt_frames: int
    VCPU_GUEST_CONTEXT_gdt_ents: int
    VCPU_GUEST_CONTEXT_kernel_ss: int
    VCPU_GUEST_CONTEXT_kernel_sp: int
    VCPU_GUEST_CONTEXT_ctrlreg: int
    VCPU_GUEST_CONTEXT_debugreg: int
    VCPU_GUEST_CONTEXT_event_callback_eip: int
    VCPU_GUEST_CONTEXT_failsafe_callback_eip: int
    VCPU_GUEST_CONTEXT_vm_assist: int

    # struct callback_register, by width
    CALLBACK_REGISTER_SIZE: int
    CALLBACK_REGISTER_type: int
    CALLBACK_REGISTER_flags: int
    CALLBACK_REGISTER_address: int
    STRUCT_callback_register: Struct

    # struct callback_unregister
    CALLBACK_UNREGISTER_SIZE = 4
    CALLBACK_UNREGISTER_type = 0
    STRUCT_callback_unregister = Struct("<H2x")

    # struct xennmi_callback, by width
    XENNMI_CALLBACK_SIZE: int
    XENNMI_CALLBACK_handler_address: int
    STRUCT_xennmi_callback: Struct

    # struct mmu_update
    MMU_UPDATE_SIZE = 16
    MMU_UPDATE_ptr = 0
    MMU_UPDATE_val = 8
    STRUCT_mmu_update = Struct("<QQ")

    # struct mmuext_op, by width
    MMUEXT_OP_SIZE: int
    MMUEXT_OP_cmd: int
    MMUEXT_OP_arg1: int
    MMUEXT_OP_arg1_mfn: int
    MMUEXT_OP_arg1_linear_addr: int
    MMUEXT_OP_arg2: int
    MMUEXT_OP_arg2_nr_ents: int
    MMUEXT_OP_arg2_vcpumask: int
    MMUEXT_OP_arg2_src_mfn: int
    STRUCT_mmuext_op: Struct

    # struct multicall_entry, by width
    MULTICALL_ENTRY_SIZE: int
    MULTICALL_ENTRY_op: int
    MULTICALL_ENTRY_result: int
    MULTICALL_ENTRY_args: int
    STRUCT_multicall_entry: Struct

    # struct xen_memory_reservation, by width
    XEN_MEMORY_RESERVATION_SIZE: int
    XEN_MEMORY_RESERVATION_extent_start: int
    XEN_MEMORY_RESERVATION_nr_extents: int
    XEN_MEMORY_RESERVATION_extent_order: int
    XEN_MEMORY_RESERVATION_mem_flags: int
    XEN_MEMORY_RESERVATION_domid: int
    STRUCT_xen_memory_reservation: Struct

    # struct xen_memory_exchange, by width
    XEN_MEMORY_EXCHANGE_SIZE: int
    XEN_MEMORY_EXCHANGE_in: int
    XEN_MEMORY_EXCHANGE_in_extent_start: int
    XEN_MEMORY_EXCHANGE_in_nr_extents: int
    XEN_MEMORY_EXCHANGE_in_extent_order: int
    XEN_MEMORY_EXCHANGE_in_mem_flags: int
    XEN_MEMORY_EXCHANGE_in_domid: int
    XEN_MEMORY_EXCHANGE_out: int
    XEN_MEMORY_EXCHANGE_out_extent_start: int
    XEN_MEMORY_EXCHANGE_out_nr_extents: int
    XEN_MEMORY_EXCHANGE_out_extent_order: int
    XEN_MEMORY_EXCHANGE_out_mem_flags: int
    XEN_MEMORY_EXCHANGE_out_domid: int
    XEN_MEMORY_EXCHANGE_nr_exchanged: int

    # struct xen_memory_domain
    XEN_MEMORY_DOMAIN_SIZE = 2
    XEN_MEMORY_DOMAIN_domid = 0
    STRUCT_xen_memory_domain = Struct("<H")

    # struct xen_machphys_mfn_list, by width
    XEN_MACHPHYS_MFN_LIST_SIZE: int
    XEN_MACHPHYS_MFN_LIST_max_extents: int
    XEN_MACHPHYS_MFN_LIST_extent_start: int
    XEN_MACHPHYS_MFN_LIST_nr_extents: int
    STRUCT_xen_machphys_mfn_list: Struct

    # struct xen_machphys_mapping, by width
    XEN_MACHPHYS_MAPPING_SIZE: int
    XEN_MACHPHYS_MAPPING_v_start: int
    XEN_MACHPHYS_MAPPING_v_end: int
    XEN_MACHPHYS_MAPPING_max_mfn: int
    STRUCT_xen_machphys_mapping: Struct

    # struct xen_add_to_physmap, by width
    XEN_ADD_TO_PHYSMAP_SIZE: int
    XEN_ADD_TO_PHYSMAP_domid: int
    XEN_ADD_TO_PHYSMAP_size: int
    XEN_ADD_TO_PHYSMAP_space: int
    XEN_ADD_TO_PHYSMAP_idx: int
    XEN_ADD_TO_PHYSMAP_gpfn: int
    STRUCT_xen_add_to_physmap: Struct

    # struct xen_add_to_physmap_batch, by width
    XEN_ADD_TO_PHYSMAP_BATCH_SIZE: int
    XEN_ADD_TO_PHYSMAP_BATCH_domid: int
    XEN_ADD_TO_PHYSMAP_BATCH_space: int
    XEN_ADD_TO_PHYSMAP_BATCH_size: int
    XEN_ADD_TO_PHYSMAP_BATCH_u: int
    XEN_ADD_TO_PHYSMAP_BATCH_u_foreign_domid: int
    XEN_ADD_TO_PHYSMAP_BATCH_u_res0: int
    XEN_ADD_TO_PHYSMAP_BATCH_idxs: int
    XEN_ADD_TO_PHYSMAP_BATCH_gpfns: int
    XEN_ADD_TO_PHYSMAP_BATCH_errs: int
    STRUCT_xen_add_to_physmap_batch: Struct

    # struct xen_remove_from_physmap, by width
    XEN_REMOVE_FROM_PHYSMAP_SIZE: int
    XEN_REMOVE_FROM_PHYSMAP_domid: int
    XEN_REMOVE_FROM_PHYSMAP_gpfn: int
    STRUCT_xen_remove_from_physmap: Struct

    # struct xen_memory_map, by width
    XEN_MEMORY_MAP_SIZE: int
    XEN_MEMORY_MAP_nr_entries: int
    XEN_MEMORY_MAP_buffer: int
    STRUCT_xen_memory_map: Struct

    # struct xen_foreign_memory_map, by width
    XEN_FOREIGN_MEMORY_MAP_SIZE: int
    XEN_FOREIGN_MEMORY_MAP_domid: int
    XEN_FOREIGN_MEMORY_MAP_map: int
    XEN_FOREIGN_MEMORY_MAP_map_nr_entries: int
    XEN_FOREIGN_MEMORY_MAP_map_buffer: int

    # struct xen_pod_target, by width
    XEN_POD_TARGET_SIZE: int
    XEN_POD_TARGET_target_pages: int
    XEN_POD_TARGET_tot_pages: int
    XEN_POD_TARGET_pod_cache_pages: int
    XEN_POD_TARGET_pod_entries: int
    XEN_POD_TARGET_domid: int
    STRUCT_xen_pod_target: Struct

    # struct xen_vnuma_topology_info
    XEN_VNUMA_TOPOLOGY_INFO_SIZE = 40
    XEN_VNUMA_TOPOLOGY_INFO_domid = 0
    XEN_VNUMA_TOPOLOGY_INFO_nr_vnodes = 4
    XEN_VNUMA_TOPOLOGY_INFO_nr_vcpus = 8
    XEN_VNUMA_TOPOLOGY_INFO_nr_vmemranges = 12
    XEN_VNUMA_TOPOLOGY_INFO_vdistance = 16
    XEN_VNUMA_TOPOLOGY_INFO_vdistance_h = 16
    XEN_VNUMA_TOPOLOGY_INFO_vcpu_to_vnode = 24
    XEN_VNUMA_TOPOLOGY_INFO_vcpu_to_vnode_h = 24
    XEN_VNUMA_TOPOLOGY_INFO_vmemrange = 32
    XEN_VNUMA_TOPOLOGY_INFO_vmemrange_h = 32

    # struct xen_mem_acquire_resource, by width
    XEN_MEM_ACQUIRE_RESOURCE_SIZE: int
    XEN_MEM_ACQUIRE_RESOURCE_domid: int
    XEN_MEM_ACQUIRE_RESOURCE_type: int
    XEN_MEM_ACQUIRE_RESOURCE_id: int
    XEN_MEM_ACQUIRE_RESOURCE_nr_frames: int
    XEN_MEM_ACQUIRE_RESOURCE_frame: int
    XEN_MEM_ACQUIRE_RESOURCE_frame_list: int
    STRUCT_xen_mem_acquire_resource: Struct

    # struct vcpu_register_runstate_memory_area
    VCPU_REGISTER_RUNSTATE_MEMORY_AREA_SIZE = 8
    VCPU_REGISTER_RUNSTATE_MEMORY_AREA_addr = 0
    VCPU_REGISTER_RUNSTATE_MEMORY_AREA_addr_h = 0
    VCPU_REGISTER_RUNSTATE_MEMORY_AREA_addr_v = 0
    VCPU_REGISTER_RUNSTATE_MEMORY_AREA_addr_p = 0
    STRUCT_vcpu_register_runstate_memory_area = Struct("<Q")

    # struct vcpu_set_periodic_timer
    VCPU_SET_PERIODIC_TIMER_SIZE = 8
    VCPU_SET_PERIODIC_TIMER_period_ns = 0
    STRUCT_vcpu_set_periodic_timer = Struct("<Q")

    # struct vcpu_set_singleshot_timer, by width
    VCPU_SET_SINGLESHOT_TIMER_SIZE: int
    VCPU_SET_SINGLESHOT_TIMER_timeout_abs_ns: int
    VCPU_SET_SINGLESHOT_TIMER_flags: int
    STRUCT_vcpu_set_singleshot_timer: Struct

    # struct vcpu_register_vcpu_info
    VCPU_REGISTER_VCPU_INFO_SIZE = 16
    VCPU_REGISTER_VCPU_INFO_mfn = 0
    VCPU_REGISTER_VCPU_INFO_offset = 8
    VCPU_REGISTER_VCPU_INFO_rsvd = 12
    STRUCT_vcpu_register_vcpu_info = Struct("<QII")

    # struct vcpu_get_physid
    VCPU_GET_PHYSID_SIZE = 8
    VCPU_GET_PHYSID_phys_id = 0
    STRUCT_vcpu_get_physid = Struct("<Q")

    # struct vcpu_register_time_memory_area
    VCPU_REGISTER_TIME_MEMORY_AREA_SIZE = 8
    VCPU_REGISTER_TIME_MEMORY_AREA_addr = 0
    VCPU_REGISTER_TIME_MEMORY_AREA_addr_h = 0
    VCPU_REGISTER_TIME_MEMORY_AREA_addr_v = 0
    VCPU_REGISTER_TIME_MEMORY_AREA_addr_p = 0
    STRUCT_vcpu_register_time_memory_area = Struct("<Q")

    # struct evtchn_alloc_unbound
    EVTCHN_ALLOC_UNBOUND_SIZE = 8
    EVTCHN_ALLOC_UNBOUND_dom = 0
    EVTCHN_ALLOC_UNBOUND_remote_dom = 2
    EVTCHN_ALLOC_UNBOUND_port = 4
    STRUCT_evtchn_alloc_unbound = Struct("<HHI")

    # struct evtchn_bind_interdomain
    EVTCHN_BIND_INTERDOMAIN_SIZE = 12
    EVTCHN_BIND_INTERDOMAIN_remote_dom = 0
    EVTCHN_BIND_INTERDOMAIN_remote_port = 4
    EVTCHN_BIND_INTERDOMAIN_local_port = 8
    STRUCT_evtchn_bind_interdomain = Struct("<H2xII")

    # struct evtchn_bind_virq
    EVTCHN_BIND_VIRQ_SIZE = 12
    EVTCHN_BIND_VIRQ_virq = 0
    EVTCHN_BIND_VIRQ_vcpu = 4
    EVTCHN_BIND_VIRQ_port = 8
    STRUCT_evtchn_bind_virq = Struct("<III")

    # struct evtchn_bind_pirq
    EVTCHN_BIND_PIRQ_SIZE = 12
    EVTCHN_BIND_PIRQ_pirq = 0
    EVTCHN_BIND_PIRQ_flags = 4
    EVTCHN_BIND_PIRQ_port = 8
    STRUCT_evtchn_bind_pirq = Struct("<III")

    # struct evtchn_bind_ipi
    EVTCHN_BIND_IPI_SIZE = 8
    EVTCHN_BIND_IPI_vcpu = 0
    EVTCHN_BIND_IPI_port = 4
    STRUCT_evtchn_bind_ipi = Struct("<II")

    # struct evtchn_close
    EVTCHN_CLOSE_SIZE = 4
    EVTCHN_CLOSE_port = 0
    STRUCT_evtchn_close = Struct("<I")

    # struct evtchn_send
    EVTCHN_SEND_SIZE = 4
    EVTCHN_SEND_port = 0
    STRUCT_evtchn_send = Struct("<I")

    # struct evtchn_status
    EVTCHN_STATUS_SIZE = 24
    EVTCHN_STATUS_dom = 0
    EVTCHN_STATUS_port = 4
    EVTCHN_STATUS_status = 8
    EVTCHN_STATUS_vcpu = 12
    EVTCHN_STATUS_u = 16
    EVTCHN_STATUS_u_unbound = 16
    EVTCHN_STATUS_u_unbound_dom = 16
    EVTCHN_STATUS_u_interdomain = 16
    EVTCHN_STATUS_u_interdomain_dom = 16
    EVTCHN_STATUS_u_interdomain_port = 20
    EVTCHN_STATUS_u_pirq = 16
    EVTCHN_STATUS_u_virq = 16

    # struct evtchn_bind_vcpu
    EVTCHN_BIND_VCPU_SIZE = 8
    EVTCHN_BIND_VCPU_port = 0
    EVTCHN_BIND_VCPU_vcpu = 4
    STRUCT_evtchn_bind_vcpu = Struct("<II")

    # struct evtchn_unmask
    EVTCHN_UNMASK_SIZE = 4
    EVTCHN_UNMASK_port = 0
    STRUCT_evtchn_unmask = Struct("<I")

    # struct evtchn_reset
    EVTCHN_RESET_SIZE = 2
    EVTCHN_RESET_dom = 0
    STRUCT_evtchn_reset = Struct("<H")

    # struct evtchn_init_control
    EVTCHN_INIT_CONTROL_SIZE = 24
    EVTCHN_INIT_CONTROL_control_gfn = 0
    EVTCHN_INIT_CONTROL_offset = 8
    EVTCHN_INIT_CONTROL_vcpu = 12
    EVTCHN_INIT_CONTROL_link_bits = 16
    STRUCT_evtchn_init_control = Struct("<QIIB7x")

    # struct evtchn_expand_array
    EVTCHN_EXPAND_ARRAY_SIZE = 8
    EVTCHN_EXPAND_ARRAY_array_gfn = 0
    STRUCT_evtchn_expand_array = Struct("<Q")

    # struct evtchn_set_priority
    EVTCHN_SET_PRIORITY_SIZE = 8
    EVTCHN_SET_PRIORITY_port = 0
    EVTCHN_SET_PRIORITY_priority = 4
    STRUCT_evtchn_set_priority = Struct("<II")

    # struct evtchn_fifo_control_block
    EVTCHN_FIFO_CONTROL_BLOCK_SIZE = 72
    EVTCHN_FIFO_CONTROL_BLOCK_ready = 0
    EVTCHN_FIFO_CONTROL_BLOCK__rsvd = 4
    EVTCHN_FIFO_CONTROL_BLOCK_head = 8

    # struct evtchn_op
    EVTCHN_OP_SIZE = 28
    EVTCHN_OP_cmd = 0
    EVTCHN_OP_u = 4
    EVTCHN_OP_u_alloc_unbound = 4
    EVTCHN_OP_u_alloc_unbound_dom = 4
    EVTCHN_OP_u_alloc_unbound_remote_dom = 6
    EVTCHN_OP_u_alloc_unbound_port = 8
    EVTCHN_OP_u_bind_interdomain = 4
    EVTCHN_OP_u_bind_interdomain_remote_dom = 4
    EVTCHN_OP_u_bind_interdomain_remote_port = 8
    EVTCHN_OP_u_bind_interdomain_local_port = 12
    EVTCHN_OP_u_bind_virq = 4
    EVTCHN_OP_u_bind_virq_virq = 4
    EVTCHN_OP_u_bind_virq_vcpu = 8
    EVTCHN_OP_u_bind_virq_port = 12
    EVTCHN_OP_u_bind_pirq = 4
    EVTCHN_OP_u_bind_pirq_pirq = 4
    EVTCHN_OP_u_bind_pirq_flags = 8
    EVTCHN_OP_u_bind_pirq_port = 12
    EVTCHN_OP_u_bind_ipi = 4
    EVTCHN_OP_u_bind_ipi_vcpu = 4
    EVTCHN_OP_u_bind_ipi_port = 8
    EVTCHN_OP_u_close = 4
    EVTCHN_OP_u_close_port = 4
    EVTCHN_OP_u_send = 4
    EVTCHN_OP_u_send_port = 4
    EVTCHN_OP_u_status = 4
    EVTCHN_OP_u_status_dom = 4
    EVTCHN_OP_u_status_port = 8
    EVTCHN_OP_u_status_status = 12
    EVTCHN_OP_u_status_vcpu = 16
    EVTCHN_OP_u_status_u = 20
    EVTCHN_OP_u_status_u_unbound = 20
    EVTCHN_OP_u_status_u_unbound_dom = 20
    EVTCHN_OP_u_status_u_interdomain = 20
    EVTCHN_OP_u_status_u_interdomain_dom = 20
    EVTCHN_OP_u_status_u_interdomain_port = 24
    EVTCHN_OP_u_status_u_pirq = 20
    EVTCHN_OP_u_status_u_virq = 20
    EVTCHN_OP_u_bind_vcpu = 4
    EVTCHN_OP_u_bind_vcpu_port = 4
    EVTCHN_OP_u_bind_vcpu_vcpu = 8
    EVTCHN_OP_u_unmask = 4
    EVTCHN_OP_u_unmask_port = 4

    # struct sched_shutdown
    SCHED_SHUTDOWN_SIZE = 4
    SCHED_SHUTDOWN_reason = 0
    STRUCT_sched_shutdown = Struct("<I")

    # struct sched_poll, by width
    SCHED_POLL_SIZE: int
    SCHED_POLL_ports: int
    SCHED_POLL_nr_ports: int
    SCHED_POLL_timeout: int
    STRUCT_sched_poll: Struct

    # struct sched_remote_shutdown
    SCHED_REMOTE_SHUTDOWN_SIZE = 8
    SCHED_REMOTE_SHUTDOWN_domain_id = 0
    SCHED_REMOTE_SHUTDOWN_reason = 4
    STRUCT_sched_remote_shutdown = Struct("<H2xI")

    # struct sched_watchdog
    SCHED_WATCHDOG_SIZE = 8
    SCHED_WATCHDOG_id = 0
    SCHED_WATCHDOG_timeout = 4
    STRUCT_sched_watchdog = Struct("<II")

    # struct sched_pin_override
    SCHED_PIN_OVERRIDE_SIZE = 4
    SCHED_PIN_OVERRIDE_pcpu = 0
    STRUCT_sched_pin_override = Struct("<i")

    # struct physdev_eoi
    PHYSDEV_EOI_SIZE = 4
    PHYSDEV_EOI_irq = 0
    STRUCT_physdev_eoi = Struct("<I")

    # struct physdev_pirq_eoi_gmfn, by width
    PHYSDEV_PIRQ_EOI_GMFN_SIZE: int
    PHYSDEV_PIRQ_EOI_GMFN_gmfn: int
    STRUCT_physdev_pirq_eoi_gmfn: Struct

    # struct physdev_irq_status_query
    PHYSDEV_IRQ_STATUS_QUERY_SIZE = 8
    PHYSDEV_IRQ_STATUS_QUERY_irq = 0
    PHYSDEV_IRQ_STATUS_QUERY_flags = 4
    STRUCT_physdev_irq_status_query = Struct("<II")

    # struct physdev_set_iopl
    PHYSDEV_SET_IOPL_SIZE = 4
    PHYSDEV_SET_IOPL_iopl = 0
    STRUCT_physdev_set_iopl = Struct("<I")

    # struct physdev_set_iobitmap, by width
    PHYSDEV_SET_IOBITMAP_SIZE: int
    PHYSDEV_SET_IOBITMAP_bitmap: int
    PHYSDEV_SET_IOBITMAP_nr_ports: int
    STRUCT_physdev_set_iobitmap: Struct

    # struct physdev_apic, by width
    PHYSDEV_APIC_SIZE: int
    PHYSDEV_APIC_apic_physbase: int
    PHYSDEV_APIC_reg: int
    PHYSDEV_APIC_value: int
    STRUCT_physdev_apic: Struct

    # struct physdev_irq
    PHYSDEV_IRQ_SIZE = 8
    PHYSDEV_IRQ_irq = 0
    PHYSDEV_IRQ_vector = 4
    STRUCT_physdev_irq = Struct("<II")

    # struct physdev_map_pirq, by width
    PHYSDEV_MAP_PIRQ_SIZE: int
    PHYSDEV_MAP_PIRQ_domid: int
    PHYSDEV_MAP_PIRQ_type: int
    PHYSDEV_MAP_PIRQ_index: int
    PHYSDEV_MAP_PIRQ_pirq: int
    PHYSDEV_MAP_PIRQ_bus: int
    PHYSDEV_MAP_PIRQ_devfn: int
    PHYSDEV_MAP_PIRQ_entry_nr: int
    PHYSDEV_MAP_PIRQ_table_base: int
    STRUCT_physdev_map_pirq: Struct

    # struct physdev_unmap_pirq
    PHYSDEV_UNMAP_PIRQ_SIZE = 8
    PHYSDEV_UNMAP_PIRQ_domid = 0
    PHYSDEV_UNMAP_PIRQ_pirq = 4
    STRUCT_physdev_unmap_pirq = Struct("<H2xi")

    # struct physdev_op, by width
    PHYSDEV_OP_SIZE: int
    PHYSDEV_OP_cmd: int
    PHYSDEV_OP_u: int
    PHYSDEV_OP_u_irq_status_query: int
    PHYSDEV_OP_u_irq_status_query_irq: int
    PHYSDEV_OP_u_irq_status_query_flags: int
    PHYSDEV_OP_u_set_iopl: int
    PHYSDEV_OP_u_set_iopl_iopl: int
    PHYSDEV_OP_u_set_iobitmap: int
    PHYSDEV_OP_u_set_iobitmap_bitmap: int
    PHYSDEV_OP_u_set_iobitmap_nr_ports: int
    PHYSDEV_OP_u_apic_op: int
    PHYSDEV_OP_u_apic_op_apic_physbase: int
    PHYSDEV_OP_u_apic_op_reg: int
    PHYSDEV_OP_u_apic_op_value: int
    PHYSDEV_OP_u_irq_op: int
    PHYSDEV_OP_u_irq_op_irq: int
    PHYSDEV_OP_u_irq_op_vector: int

    # struct physdev_get_free_pirq
    PHYSDEV_GET_FREE_PIRQ_SIZE = 8
    PHYSDEV_GET_FREE_PIRQ_type = 0
    PHYSDEV_GET_FREE_PIRQ_pirq = 4
    STRUCT_physdev_get_free_pirq = Struct("<iI")

    # struct grant_entry_v1
    GRANT_ENTRY_V1_SIZE = 8
    GRANT_ENTRY_V1_flags = 0
    GRANT_ENTRY_V1_domid = 2
    GRANT_ENTRY_V1_frame = 4
    STRUCT_grant_entry_v1 = Struct("<HHI")

    # struct grant_entry_header
    GRANT_ENTRY_HEADER_SIZE = 4
    GRANT_ENTRY_HEADER_flags = 0
    GRANT_ENTRY_HEADER_domid = 2

    # struct grant_entry_v2
    GRANT_ENTRY_V2_SIZE = 16
    GRANT_ENTRY_V2_hdr = 0
    GRANT_ENTRY_V2_hdr_flags = 0
    GRANT_ENTRY_V2_hdr_domid = 2
    GRANT_ENTRY_V2_full_page = 0
    GRANT_ENTRY_V2_full_page_hdr = 0
    GRANT_ENTRY_V2_full_page_hdr_flags = 0
    GRANT_ENTRY_V2_full_page_hdr_domid = 2
    GRANT_ENTRY_V2_full_page_frame = 8
    GRANT_ENTRY_V2_sub_page = 0
    GRANT_ENTRY_V2_sub_page_hdr = 0
    GRANT_ENTRY_V2_sub_page_hdr_flags = 0
    GRANT_ENTRY_V2_sub_page_hdr_domid = 2
    GRANT_ENTRY_V2_sub_page_page_off = 4
    GRANT_ENTRY_V2_sub_page_length = 6
    GRANT_ENTRY_V2_sub_page_frame = 8
    GRANT_ENTRY_V2_transitive = 0
    GRANT_ENTRY_V2_transitive_hdr = 0
    GRANT_ENTRY_V2_transitive_hdr_flags = 0
    GRANT_ENTRY_V2_transitive_hdr_domid = 2
    GRANT_ENTRY_V2_transitive_trans_domid = 4
    GRANT_ENTRY_V2_transitive_gref = 8

    # struct gnttab_map_grant_ref
    GNTTAB_MAP_GRANT_REF_SIZE = 32
    GNTTAB_MAP_GRANT_REF_host_addr = 0
    GNTTAB_MAP_GRANT_REF_flags = 8
    GNTTAB_MAP_GRANT_REF_ref = 12
    GNTTAB_MAP_GRANT_REF_dom = 16
    GNTTAB_MAP_GRANT_REF_status = 18
    GNTTAB_MAP_GRANT_REF_handle = 20
    GNTTAB_MAP_GRANT_REF_dev_bus_addr = 24
    STRUCT_gnttab_map_grant_ref = Struct("<QIIHhIQ")

    # struct gnttab_unmap_grant_ref
    GNTTAB_UNMAP_GRANT_REF_SIZE = 24
    GNTTAB_UNMAP_GRANT_REF_host_addr = 0
    GNTTAB_UNMAP_GRANT_REF_dev_bus_addr = 8
    GNTTAB_UNMAP_GRANT_REF_handle = 16
    GNTTAB_UNMAP_GRANT_REF_status = 20
    STRUCT_gnttab_unmap_grant_ref = Struct("<QQIh2x")

    # struct gnttab_setup_table, by width
    GNTTAB_SETUP_TABLE_SIZE: int
    GNTTAB_SETUP_TABLE_dom: int
    GNTTAB_SETUP_TABLE_nr_frames: int
    GNTTAB_SETUP_TABLE_status: int
    GNTTAB_SETUP_TABLE_frame_list: int
    STRUCT_gnttab_setup_table: Struct

    # struct gnttab_dump_table
    GNTTAB_DUMP_TABLE_SIZE = 4
    GNTTAB_DUMP_TABLE_dom = 0
    GNTTAB_DUMP_TABLE_status = 2
    STRUCT_gnttab_dump_table = Struct("<Hh")

    # struct gnttab_transfer, by width
    GNTTAB_TRANSFER_SIZE: int
    GNTTAB_TRANSFER_mfn: int
    GNTTAB_TRANSFER_domid: int
    GNTTAB_TRANSFER_ref: int
    GNTTAB_TRANSFER_status: int
    STRUCT_gnttab_transfer: Struct

    # struct gnttab_copy, by width
    GNTTAB_COPY_SIZE: int
    GNTTAB_COPY_source: int
    GNTTAB_COPY_source_u: int
    GNTTAB_COPY_source_u_ref: int
    GNTTAB_COPY_source_u_gmfn: int
    GNTTAB_COPY_source_domid: int
    GNTTAB_COPY_source_offset: int
    GNTTAB_COPY_dest: int
    GNTTAB_COPY_dest_u: int
    GNTTAB_COPY_dest_u_ref: int
    GNTTAB_COPY_dest_u_gmfn: int
    GNTTAB_COPY_dest_domid: int
    GNTTAB_COPY_dest_offset: int
    GNTTAB_COPY_len: int
    GNTTAB_COPY_flags: int
    GNTTAB_COPY_status: int
    STRUCT_gnttab_copy: Struct

    # struct gnttab_query_size
    GNTTAB_QUERY_SIZE_SIZE = 16
    GNTTAB_QUERY_SIZE_dom = 0
    GNTTAB_QUERY_SIZE_nr_frames = 4
    GNTTAB_QUERY_SIZE_max_nr_frames = 8
    GNTTAB_QUERY_SIZE_status = 12
    STRUCT_gnttab_query_size = Struct("<H2xIIh2x")

    # struct gnttab_unmap_and_replace
    GNTTAB_UNMAP_AND_REPLACE_SIZE = 24
    GNTTAB_UNMAP_AND_REPLACE_host_addr = 0
    GNTTAB_UNMAP_AND_REPLACE_new_addr = 8
    GNTTAB_UNMAP_AND_REPLACE_handle = 16
    GNTTAB_UNMAP_AND_REPLACE_status = 20
    STRUCT_gnttab_unmap_and_replace = Struct("<QQIh2x")

    # struct gnttab_set_version
    GNTTAB_SET_VERSION_SIZE = 4
    GNTTAB_SET_VERSION_version = 0
    STRUCT_gnttab_set_version = Struct("<I")

    # struct gnttab_get_status_frames, by width
    GNTTAB_GET_STATUS_FRAMES_SIZE: int
    GNTTAB_GET_STATUS_FRAMES_nr_frames: int
    GNTTAB_GET_STATUS_FRAMES_dom: int
    GNTTAB_GET_STATUS_FRAMES_status: int
    GNTTAB_GET_STATUS_FRAMES_frame_list: int
    STRUCT_gnttab_get_status_frames: Struct

    # struct gnttab_get_version
    GNTTAB_GET_VERSION_SIZE = 8
    GNTTAB_GET_VERSION_dom = 0
    GNTTAB_GET_VERSION_version = 4
    STRUCT_gnttab_get_version = Struct("<H2xI")

    # struct gnttab_swap_grant_ref
    GNTTAB_SWAP_GRANT_REF_SIZE = 12
    GNTTAB_SWAP_GRANT_REF_ref_a = 0
    GNTTAB_SWAP_GRANT_REF_ref_b = 4
    GNTTAB_SWAP_GRANT_REF_status = 8
    STRUCT_gnttab_swap_grant_ref = Struct("<IIh2x")

    # struct gnttab_cache_flush
    GNTTAB_CACHE_FLUSH_SIZE = 16
    GNTTAB_CACHE_FLUSH_a = 0
    GNTTAB_CACHE_FLUSH_a_dev_bus_addr = 0
    GNTTAB_CACHE_FLUSH_a_ref = 0
    GNTTAB_CACHE_FLUSH_offset = 8
    GNTTAB_CACHE_FLUSH_length = 10
    GNTTAB_CACHE_FLUSH_op = 12

    # struct xen_compile_info
    XEN_COMPILE_INFO_SIZE = 144
    XEN_COMPILE_INFO_compiler = 0
    XEN_COMPILE_INFO_compile_by = 64
    XEN_COMPILE_INFO_compile_domain = 80
    XEN_COMPILE_INFO_compile_date = 112
    STRUCT_xen_compile_info = Struct("<64s16s32s32s")

    # struct xen_platform_parameters, by width
    XEN_PLATFORM_PARAMETERS_SIZE: int
    XEN_PLATFORM_PARAMETERS_virt_start: int
    STRUCT_xen_platform_parameters: Struct

    # struct xen_feature_info
    XEN_FEATURE_INFO_SIZE = 8
    XEN_FEATURE_INFO_submap_idx = 0
    XEN_FEATURE_INFO_submap = 4
    STRUCT_xen_feature_info = Struct("<II")

    # struct xen_build_id
    XEN_BUILD_ID_SIZE = 4
    XEN_BUILD_ID_len = 0
    XEN_BUILD_ID_buf = 4

    # struct xencons_interface
    XENCONS_INTERFACE_SIZE = 3088
    XENCONS_INTERFACE_in = 0
    XENCONS_INTERFACE_out = 1024
    XENCONS_INTERFACE_in_cons = 3072
    XENCONS_INTERFACE_in_prod = 3076
    XENCONS_INTERFACE_out_cons = 3080
    XENCONS_INTERFACE_out_prod = 3084

    # struct xenstore_domain_interface
    XENSTORE_DOMAIN_INTERFACE_SIZE = 2076
    XENSTORE_DOMAIN_INTERFACE_req = 0
    XENSTORE_DOMAIN_INTERFACE_rsp = 1024
    XENSTORE_DOMAIN_INTERFACE_req_cons = 2048
    XENSTORE_DOMAIN_INTERFACE_req_prod = 2052
    XENSTORE_DOMAIN_INTERFACE_rsp_cons = 2056
    XENSTORE_DOMAIN_INTERFACE_rsp_prod = 2060
    XENSTORE_DOMAIN_INTERFACE_server_features = 2064
    XENSTORE_DOMAIN_INTERFACE_connection = 2068
    XENSTORE_DOMAIN_INTERFACE_error = 2072

    # struct xsd_sockmsg
    XSD_SOCKMSG_SIZE = 16
    XSD_SOCKMSG_type = 0
    XSD_SOCKMSG_req_id = 4
    XSD_SOCKMSG_tx_id = 8
    XSD_SOCKMSG_len = 12
    STRUCT_xsd_sockmsg = Struct("<IIII")
