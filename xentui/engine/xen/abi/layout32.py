"""Where the members of Xen's public structures lie for a 32-bit x86 guest; see layout.py."""

from __future__ import annotations

from struct import Struct

from xentui.engine.xen.abi.layout import Layout


class Layout32(Layout):
    """What differs from the 64-bit layout."""

    WORD_BITS = 32
    WORD_SIZE = 4
    STRUCT_word = Struct("<I")
    EVTCHN_2L_NR_CHANNELS = 1024

    # struct start_info
    START_INFO_SIZE = 1112
    START_INFO_magic = 0
    START_INFO_nr_pages = 32
    START_INFO_shared_info = 36
    START_INFO_flags = 40
    START_INFO_store_mfn = 44
    START_INFO_store_evtchn = 48
    START_INFO_console = 52
    START_INFO_console_domU = 52
    START_INFO_console_domU_mfn = 52
    START_INFO_console_domU_evtchn = 56
    START_INFO_console_dom0 = 52
    START_INFO_console_dom0_info_off = 52
    START_INFO_console_dom0_info_size = 56
    START_INFO_pt_base = 60
    START_INFO_nr_pt_frames = 64
    START_INFO_mfn_list = 68
    START_INFO_mod_start = 72
    START_INFO_mod_len = 76
    START_INFO_cmd_line = 80
    START_INFO_first_p2m_pfn = 1104
    START_INFO_nr_p2m_frames = 1108

    # struct shared_info
    SHARED_INFO_SIZE = 2344
    SHARED_INFO_vcpu_info = 0
    SHARED_INFO_evtchn_pending = 2048
    SHARED_INFO_evtchn_mask = 2176
    SHARED_INFO_wc_version = 2304
    SHARED_INFO_wc_sec = 2308
    SHARED_INFO_wc_nsec = 2312
    SHARED_INFO_arch = 2316
    SHARED_INFO_arch_max_pfn = 2316
    SHARED_INFO_arch_pfn_to_mfn_frame_list_list = 2320
    SHARED_INFO_arch_nmi_reason = 2324
    SHARED_INFO_arch_p2m_cr3 = 2328
    SHARED_INFO_arch_p2m_vaddr = 2332
    SHARED_INFO_arch_p2m_generation = 2336
    SHARED_INFO_arch_wc_sec_hi = 2340

    # struct arch_shared_info
    ARCH_SHARED_INFO_SIZE = 28
    ARCH_SHARED_INFO_max_pfn = 0
    ARCH_SHARED_INFO_pfn_to_mfn_frame_list_list = 4
    ARCH_SHARED_INFO_nmi_reason = 8
    ARCH_SHARED_INFO_p2m_cr3 = 12
    ARCH_SHARED_INFO_p2m_vaddr = 16
    ARCH_SHARED_INFO_p2m_generation = 20
    ARCH_SHARED_INFO_wc_sec_hi = 24

    # struct vcpu_info
    VCPU_INFO_SIZE = 64
    VCPU_INFO_evtchn_upcall_pending = 0
    VCPU_INFO_evtchn_upcall_mask = 1
    VCPU_INFO_evtchn_pending_sel = 4
    VCPU_INFO_arch = 8
    VCPU_INFO_arch_cr2 = 8
    VCPU_INFO_time = 32
    VCPU_INFO_time_version = 32
    VCPU_INFO_time_tsc_timestamp = 40
    VCPU_INFO_time_system_time = 48
    VCPU_INFO_time_tsc_to_system_mul = 56
    VCPU_INFO_time_tsc_shift = 60
    VCPU_INFO_time_flags = 61

    # struct arch_vcpu_info
    ARCH_VCPU_INFO_SIZE = 24
    ARCH_VCPU_INFO_cr2 = 0

    # struct vcpu_runstate_info
    VCPU_RUNSTATE_INFO_SIZE = 44
    VCPU_RUNSTATE_INFO_state = 0
    VCPU_RUNSTATE_INFO_state_entry_time = 4
    VCPU_RUNSTATE_INFO_time = 12
    STRUCT_vcpu_runstate_info = Struct("<iQ4Q")

    # struct cpu_user_regs
    CPU_USER_REGS_SIZE = 68
    CPU_USER_REGS_ebx = 0
    CPU_USER_REGS_ecx = 4
    CPU_USER_REGS_edx = 8
    CPU_USER_REGS_esi = 12
    CPU_USER_REGS_edi = 16
    CPU_USER_REGS_ebp = 20
    CPU_USER_REGS_eax = 24
    CPU_USER_REGS_error_code = 28
    CPU_USER_REGS_entry_vector = 30
    CPU_USER_REGS_eip = 32
    CPU_USER_REGS_cs = 36
    CPU_USER_REGS_saved_upcall_mask = 38
    CPU_USER_REGS_eflags = 40
    CPU_USER_REGS_esp = 44
    CPU_USER_REGS_ss = 48
    CPU_USER_REGS_es = 52
    CPU_USER_REGS_ds = 56
    CPU_USER_REGS_fs = 60
    CPU_USER_REGS_gs = 64

    # struct trap_info
    TRAP_INFO_SIZE = 8
    TRAP_INFO_vector = 0
    TRAP_INFO_flags = 1
    TRAP_INFO_cs = 2
    TRAP_INFO_address = 4
    STRUCT_trap_info = Struct("<BBHI")

    # struct vcpu_guest_context
    VCPU_GUEST_CONTEXT_SIZE = 2800
    VCPU_GUEST_CONTEXT_fpu_ctxt = 0
    VCPU_GUEST_CONTEXT_fpu_ctxt_x = 0
    VCPU_GUEST_CONTEXT_flags = 512
    VCPU_GUEST_CONTEXT_user_regs = 516
    VCPU_GUEST_CONTEXT_user_regs_ebx = 516
    VCPU_GUEST_CONTEXT_user_regs_ecx = 520
    VCPU_GUEST_CONTEXT_user_regs_edx = 524
    VCPU_GUEST_CONTEXT_user_regs_esi = 528
    VCPU_GUEST_CONTEXT_user_regs_edi = 532
    VCPU_GUEST_CONTEXT_user_regs_ebp = 536
    VCPU_GUEST_CONTEXT_user_regs_eax = 540
    VCPU_GUEST_CONTEXT_user_regs_error_code = 544
    VCPU_GUEST_CONTEXT_user_regs_entry_vector = 546
    VCPU_GUEST_CONTEXT_user_regs_eip = 548
    VCPU_GUEST_CONTEXT_user_regs_cs = 552
    VCPU_GUEST_CONTEXT_user_regs_saved_upcall_mask = 554
    VCPU_GUEST_CONTEXT_user_regs_eflags = 556
    VCPU_GUEST_CONTEXT_user_regs_esp = 560
    VCPU_GUEST_CONTEXT_user_regs_ss = 564
    VCPU_GUEST_CONTEXT_user_regs_es = 568
    VCPU_GUEST_CONTEXT_user_regs_ds = 572
    VCPU_GUEST_CONTEXT_user_regs_fs = 576
    VCPU_GUEST_CONTEXT_user_regs_gs = 580
    VCPU_GUEST_CONTEXT_trap_ctxt = 584
    VCPU_GUEST_CONTEXT_ldt_base = 2632
    VCPU_GUEST_CONTEXT_ldt_ents = 2636
    VCPU_GUEST_CONTEXT_gdt_frames = 2640
    VCPU_GUEST_CONTEXT_gdt_ents = 2704
    VCPU_GUEST_CONTEXT_kernel_ss = 2708
    VCPU_GUEST_CONTEXT_kernel_sp = 2712
    VCPU_GUEST_CONTEXT_ctrlreg = 2716
    VCPU_GUEST_CONTEXT_debugreg = 2748
    VCPU_GUEST_CONTEXT_event_callback_cs = 2780
    VCPU_GUEST_CONTEXT_event_callback_eip = 2784
    VCPU_GUEST_CONTEXT_failsafe_callback_cs = 2788
    VCPU_GUEST_CONTEXT_failsafe_callback_eip = 2792
    VCPU_GUEST_CONTEXT_vm_assist = 2796

    # struct callback_register
    CALLBACK_REGISTER_SIZE = 12
    CALLBACK_REGISTER_type = 0
    CALLBACK_REGISTER_flags = 2
    CALLBACK_REGISTER_address = 4
    CALLBACK_REGISTER_address_cs = 4
    CALLBACK_REGISTER_address_eip = 8
    STRUCT_callback_register = Struct("<HHII")

    # struct xen_callback
    XEN_CALLBACK_SIZE = 8
    XEN_CALLBACK_cs = 0
    XEN_CALLBACK_eip = 4
    STRUCT_xen_callback = Struct("<II")

    # struct xennmi_callback
    XENNMI_CALLBACK_SIZE = 8
    XENNMI_CALLBACK_handler_address = 0
    STRUCT_xennmi_callback = Struct("<I4x")

    # struct mmuext_op
    MMUEXT_OP_SIZE = 12
    MMUEXT_OP_cmd = 0
    MMUEXT_OP_arg1 = 4
    MMUEXT_OP_arg1_mfn = 4
    MMUEXT_OP_arg1_linear_addr = 4
    MMUEXT_OP_arg2 = 8
    MMUEXT_OP_arg2_nr_ents = 8
    MMUEXT_OP_arg2_vcpumask = 8
    MMUEXT_OP_arg2_src_mfn = 8
    STRUCT_mmuext_op = Struct("<III")

    # struct multicall_entry
    MULTICALL_ENTRY_SIZE = 32
    MULTICALL_ENTRY_op = 0
    MULTICALL_ENTRY_result = 4
    MULTICALL_ENTRY_args = 8
    STRUCT_multicall_entry = Struct("<II6I")

    # struct xen_memory_reservation
    XEN_MEMORY_RESERVATION_SIZE = 20
    XEN_MEMORY_RESERVATION_extent_start = 0
    XEN_MEMORY_RESERVATION_nr_extents = 4
    XEN_MEMORY_RESERVATION_extent_order = 8
    XEN_MEMORY_RESERVATION_mem_flags = 12
    XEN_MEMORY_RESERVATION_domid = 16
    STRUCT_xen_memory_reservation = Struct("<IIIIH2x")

    # struct xen_memory_exchange
    XEN_MEMORY_EXCHANGE_SIZE = 44
    XEN_MEMORY_EXCHANGE_in = 0
    XEN_MEMORY_EXCHANGE_in_extent_start = 0
    XEN_MEMORY_EXCHANGE_in_nr_extents = 4
    XEN_MEMORY_EXCHANGE_in_extent_order = 8
    XEN_MEMORY_EXCHANGE_in_mem_flags = 12
    XEN_MEMORY_EXCHANGE_in_domid = 16
    XEN_MEMORY_EXCHANGE_out = 20
    XEN_MEMORY_EXCHANGE_out_extent_start = 20
    XEN_MEMORY_EXCHANGE_out_nr_extents = 24
    XEN_MEMORY_EXCHANGE_out_extent_order = 28
    XEN_MEMORY_EXCHANGE_out_mem_flags = 32
    XEN_MEMORY_EXCHANGE_out_domid = 36
    XEN_MEMORY_EXCHANGE_nr_exchanged = 40

    # struct xen_machphys_mfn_list
    XEN_MACHPHYS_MFN_LIST_SIZE = 12
    XEN_MACHPHYS_MFN_LIST_max_extents = 0
    XEN_MACHPHYS_MFN_LIST_extent_start = 4
    XEN_MACHPHYS_MFN_LIST_nr_extents = 8
    STRUCT_xen_machphys_mfn_list = Struct("<III")

    # struct xen_machphys_mapping
    XEN_MACHPHYS_MAPPING_SIZE = 12
    XEN_MACHPHYS_MAPPING_v_start = 0
    XEN_MACHPHYS_MAPPING_v_end = 4
    XEN_MACHPHYS_MAPPING_max_mfn = 8
    STRUCT_xen_machphys_mapping = Struct("<III")

    # struct xen_add_to_physmap
    XEN_ADD_TO_PHYSMAP_SIZE = 16
    XEN_ADD_TO_PHYSMAP_domid = 0
    XEN_ADD_TO_PHYSMAP_size = 2
    XEN_ADD_TO_PHYSMAP_space = 4
    XEN_ADD_TO_PHYSMAP_idx = 8
    XEN_ADD_TO_PHYSMAP_gpfn = 12
    STRUCT_xen_add_to_physmap = Struct("<HHIII")

    # struct xen_add_to_physmap_batch
    XEN_ADD_TO_PHYSMAP_BATCH_SIZE = 20
    XEN_ADD_TO_PHYSMAP_BATCH_domid = 0
    XEN_ADD_TO_PHYSMAP_BATCH_space = 2
    XEN_ADD_TO_PHYSMAP_BATCH_size = 4
    XEN_ADD_TO_PHYSMAP_BATCH_u = 6
    XEN_ADD_TO_PHYSMAP_BATCH_u_foreign_domid = 6
    XEN_ADD_TO_PHYSMAP_BATCH_u_res0 = 6
    XEN_ADD_TO_PHYSMAP_BATCH_idxs = 8
    XEN_ADD_TO_PHYSMAP_BATCH_gpfns = 12
    XEN_ADD_TO_PHYSMAP_BATCH_errs = 16
    STRUCT_xen_add_to_physmap_batch = Struct("<HHHHIII")

    # struct xen_remove_from_physmap
    XEN_REMOVE_FROM_PHYSMAP_SIZE = 8
    XEN_REMOVE_FROM_PHYSMAP_domid = 0
    XEN_REMOVE_FROM_PHYSMAP_gpfn = 4
    STRUCT_xen_remove_from_physmap = Struct("<H2xI")

    # struct xen_memory_map
    XEN_MEMORY_MAP_SIZE = 8
    XEN_MEMORY_MAP_nr_entries = 0
    XEN_MEMORY_MAP_buffer = 4
    STRUCT_xen_memory_map = Struct("<II")

    # struct xen_foreign_memory_map
    XEN_FOREIGN_MEMORY_MAP_SIZE = 12
    XEN_FOREIGN_MEMORY_MAP_domid = 0
    XEN_FOREIGN_MEMORY_MAP_map = 4
    XEN_FOREIGN_MEMORY_MAP_map_nr_entries = 4
    XEN_FOREIGN_MEMORY_MAP_map_buffer = 8

    # struct xen_pod_target
    XEN_POD_TARGET_SIZE = 36
    XEN_POD_TARGET_target_pages = 0
    XEN_POD_TARGET_tot_pages = 8
    XEN_POD_TARGET_pod_cache_pages = 16
    XEN_POD_TARGET_pod_entries = 24
    XEN_POD_TARGET_domid = 32
    STRUCT_xen_pod_target = Struct("<QQQQH2x")

    # struct xen_mem_acquire_resource
    XEN_MEM_ACQUIRE_RESOURCE_SIZE = 28
    XEN_MEM_ACQUIRE_RESOURCE_domid = 0
    XEN_MEM_ACQUIRE_RESOURCE_type = 2
    XEN_MEM_ACQUIRE_RESOURCE_id = 4
    XEN_MEM_ACQUIRE_RESOURCE_nr_frames = 8
    XEN_MEM_ACQUIRE_RESOURCE_frame = 16
    XEN_MEM_ACQUIRE_RESOURCE_frame_list = 24
    STRUCT_xen_mem_acquire_resource = Struct("<HHII4xQI")

    # struct vcpu_set_singleshot_timer
    VCPU_SET_SINGLESHOT_TIMER_SIZE = 12
    VCPU_SET_SINGLESHOT_TIMER_timeout_abs_ns = 0
    VCPU_SET_SINGLESHOT_TIMER_flags = 8
    STRUCT_vcpu_set_singleshot_timer = Struct("<QI")

    # struct sched_poll
    SCHED_POLL_SIZE = 16
    SCHED_POLL_ports = 0
    SCHED_POLL_nr_ports = 4
    SCHED_POLL_timeout = 8
    STRUCT_sched_poll = Struct("<IIQ")

    # struct physdev_pirq_eoi_gmfn
    PHYSDEV_PIRQ_EOI_GMFN_SIZE = 4
    PHYSDEV_PIRQ_EOI_GMFN_gmfn = 0
    STRUCT_physdev_pirq_eoi_gmfn = Struct("<I")

    # struct physdev_set_iobitmap
    PHYSDEV_SET_IOBITMAP_SIZE = 8
    PHYSDEV_SET_IOBITMAP_bitmap = 0
    PHYSDEV_SET_IOBITMAP_nr_ports = 4
    STRUCT_physdev_set_iobitmap = Struct("<II")

    # struct physdev_apic
    PHYSDEV_APIC_SIZE = 12
    PHYSDEV_APIC_apic_physbase = 0
    PHYSDEV_APIC_reg = 4
    PHYSDEV_APIC_value = 8
    STRUCT_physdev_apic = Struct("<III")

    # struct physdev_map_pirq
    PHYSDEV_MAP_PIRQ_SIZE = 36
    PHYSDEV_MAP_PIRQ_domid = 0
    PHYSDEV_MAP_PIRQ_type = 4
    PHYSDEV_MAP_PIRQ_index = 8
    PHYSDEV_MAP_PIRQ_pirq = 12
    PHYSDEV_MAP_PIRQ_bus = 16
    PHYSDEV_MAP_PIRQ_devfn = 20
    PHYSDEV_MAP_PIRQ_entry_nr = 24
    PHYSDEV_MAP_PIRQ_table_base = 28
    STRUCT_physdev_map_pirq = Struct("<H2xiiiiiiQ")

    # struct physdev_op
    PHYSDEV_OP_SIZE = 16
    PHYSDEV_OP_cmd = 0
    PHYSDEV_OP_u = 4
    PHYSDEV_OP_u_irq_status_query = 4
    PHYSDEV_OP_u_irq_status_query_irq = 4
    PHYSDEV_OP_u_irq_status_query_flags = 8
    PHYSDEV_OP_u_set_iopl = 4
    PHYSDEV_OP_u_set_iopl_iopl = 4
    PHYSDEV_OP_u_set_iobitmap = 4
    PHYSDEV_OP_u_set_iobitmap_bitmap = 4
    PHYSDEV_OP_u_set_iobitmap_nr_ports = 8
    PHYSDEV_OP_u_apic_op = 4
    PHYSDEV_OP_u_apic_op_apic_physbase = 4
    PHYSDEV_OP_u_apic_op_reg = 8
    PHYSDEV_OP_u_apic_op_value = 12
    PHYSDEV_OP_u_irq_op = 4
    PHYSDEV_OP_u_irq_op_irq = 4
    PHYSDEV_OP_u_irq_op_vector = 8

    # struct gnttab_setup_table
    GNTTAB_SETUP_TABLE_SIZE = 16
    GNTTAB_SETUP_TABLE_dom = 0
    GNTTAB_SETUP_TABLE_nr_frames = 4
    GNTTAB_SETUP_TABLE_status = 8
    GNTTAB_SETUP_TABLE_frame_list = 12
    STRUCT_gnttab_setup_table = Struct("<H2xIh2xI")

    # struct gnttab_transfer
    GNTTAB_TRANSFER_SIZE = 16
    GNTTAB_TRANSFER_mfn = 0
    GNTTAB_TRANSFER_domid = 4
    GNTTAB_TRANSFER_ref = 8
    GNTTAB_TRANSFER_status = 12
    STRUCT_gnttab_transfer = Struct("<IH2xIh2x")

    # struct gnttab_copy
    GNTTAB_COPY_SIZE = 24
    GNTTAB_COPY_source = 0
    GNTTAB_COPY_source_u = 0
    GNTTAB_COPY_source_u_ref = 0
    GNTTAB_COPY_source_u_gmfn = 0
    GNTTAB_COPY_source_domid = 4
    GNTTAB_COPY_source_offset = 6
    GNTTAB_COPY_dest = 8
    GNTTAB_COPY_dest_u = 8
    GNTTAB_COPY_dest_u_ref = 8
    GNTTAB_COPY_dest_u_gmfn = 8
    GNTTAB_COPY_dest_domid = 12
    GNTTAB_COPY_dest_offset = 14
    GNTTAB_COPY_len = 16
    GNTTAB_COPY_flags = 18
    GNTTAB_COPY_status = 20
    STRUCT_gnttab_copy = Struct("<IHHIHHHHh2x")

    # struct gnttab_get_status_frames
    GNTTAB_GET_STATUS_FRAMES_SIZE = 12
    GNTTAB_GET_STATUS_FRAMES_nr_frames = 0
    GNTTAB_GET_STATUS_FRAMES_dom = 4
    GNTTAB_GET_STATUS_FRAMES_status = 6
    GNTTAB_GET_STATUS_FRAMES_frame_list = 8
    STRUCT_gnttab_get_status_frames = Struct("<IHhI")

    # struct xen_platform_parameters
    XEN_PLATFORM_PARAMETERS_SIZE = 4
    XEN_PLATFORM_PARAMETERS_virt_start = 0
    STRUCT_xen_platform_parameters = Struct("<I")


LAYOUT32 = Layout32()
