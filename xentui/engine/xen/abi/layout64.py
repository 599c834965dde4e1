"""Where the members of Xen's public structures lie for a 64-bit guest; see layout.py."""

from __future__ import annotations

from struct import Struct

from xentui.engine.xen.abi.layout import Layout


class Layout64(Layout):
    """What differs from the 32-bit layout."""

    WORD_BITS = 64
    WORD_SIZE = 8
    STRUCT_word = Struct("<Q")
    EVTCHN_2L_NR_CHANNELS = 4096

    # struct start_info
    START_INFO_SIZE = 1168
    START_INFO_magic = 0
    START_INFO_nr_pages = 32
    START_INFO_shared_info = 40
    START_INFO_flags = 48
    START_INFO_store_mfn = 56
    START_INFO_store_evtchn = 64
    START_INFO_console = 72
    START_INFO_console_domU = 72
    START_INFO_console_domU_mfn = 72
    START_INFO_console_domU_evtchn = 80
    START_INFO_console_dom0 = 72
    START_INFO_console_dom0_info_off = 72
    START_INFO_console_dom0_info_size = 76
    START_INFO_pt_base = 88
    START_INFO_nr_pt_frames = 96
    START_INFO_mfn_list = 104
    START_INFO_mod_start = 112
    START_INFO_mod_len = 120
    START_INFO_cmd_line = 128
    START_INFO_first_p2m_pfn = 1152
    START_INFO_nr_p2m_frames = 1160

    # struct shared_info
    SHARED_INFO_SIZE = 3136
    SHARED_INFO_vcpu_info = 0
    SHARED_INFO_evtchn_pending = 2048
    SHARED_INFO_evtchn_mask = 2560
    SHARED_INFO_wc_version = 3072
    SHARED_INFO_wc_sec = 3076
    SHARED_INFO_wc_nsec = 3080
    SHARED_INFO_wc_sec_hi = 3084
    SHARED_INFO_arch = 3088
    SHARED_INFO_arch_max_pfn = 3088
    SHARED_INFO_arch_pfn_to_mfn_frame_list_list = 3096
    SHARED_INFO_arch_nmi_reason = 3104
    SHARED_INFO_arch_p2m_cr3 = 3112
    SHARED_INFO_arch_p2m_vaddr = 3120
    SHARED_INFO_arch_p2m_generation = 3128

    # struct arch_shared_info
    ARCH_SHARED_INFO_SIZE = 48
    ARCH_SHARED_INFO_max_pfn = 0
    ARCH_SHARED_INFO_pfn_to_mfn_frame_list_list = 8
    ARCH_SHARED_INFO_nmi_reason = 16
    ARCH_SHARED_INFO_p2m_cr3 = 24
    ARCH_SHARED_INFO_p2m_vaddr = 32
    ARCH_SHARED_INFO_p2m_generation = 40

    # struct vcpu_info
    VCPU_INFO_SIZE = 64
    VCPU_INFO_evtchn_upcall_pending = 0
    VCPU_INFO_evtchn_upcall_mask = 1
    VCPU_INFO_evtchn_pending_sel = 8
    VCPU_INFO_arch = 16
    VCPU_INFO_arch_cr2 = 16
    VCPU_INFO_time = 32
    VCPU_INFO_time_version = 32
    VCPU_INFO_time_tsc_timestamp = 40
    VCPU_INFO_time_system_time = 48
    VCPU_INFO_time_tsc_to_system_mul = 56
    VCPU_INFO_time_tsc_shift = 60
    VCPU_INFO_time_flags = 61

    # struct arch_vcpu_info
    ARCH_VCPU_INFO_SIZE = 16
    ARCH_VCPU_INFO_cr2 = 0

    # struct vcpu_runstate_info
    VCPU_RUNSTATE_INFO_SIZE = 48
    VCPU_RUNSTATE_INFO_state = 0
    VCPU_RUNSTATE_INFO_state_entry_time = 8
    VCPU_RUNSTATE_INFO_time = 16
    STRUCT_vcpu_runstate_info = Struct("<i4xQ4Q")

    # struct cpu_user_regs
    CPU_USER_REGS_SIZE = 200
    CPU_USER_REGS_r15 = 0
    CPU_USER_REGS_r14 = 8
    CPU_USER_REGS_r13 = 16
    CPU_USER_REGS_r12 = 24
    CPU_USER_REGS_rbp = 32
    CPU_USER_REGS_rbx = 40
    CPU_USER_REGS_r11 = 48
    CPU_USER_REGS_r10 = 56
    CPU_USER_REGS_r9 = 64
    CPU_USER_REGS_r8 = 72
    CPU_USER_REGS_rax = 80
    CPU_USER_REGS_rcx = 88
    CPU_USER_REGS_rdx = 96
    CPU_USER_REGS_rsi = 104
    CPU_USER_REGS_rdi = 112
    CPU_USER_REGS_error_code = 120
    CPU_USER_REGS_entry_vector = 124
    CPU_USER_REGS_rip = 128
    CPU_USER_REGS_cs = 136
    CPU_USER_REGS_saved_upcall_mask = 140
    CPU_USER_REGS_rflags = 144
    CPU_USER_REGS_rsp = 152
    CPU_USER_REGS_ss = 160
    CPU_USER_REGS_es = 168
    CPU_USER_REGS_ds = 176
    CPU_USER_REGS_fs = 184
    CPU_USER_REGS_gs = 192

    # struct iret_context
    IRET_CONTEXT_SIZE = 72
    IRET_CONTEXT_rax = 0
    IRET_CONTEXT_r11 = 8
    IRET_CONTEXT_rcx = 16
    IRET_CONTEXT_flags = 24
    IRET_CONTEXT_rip = 32
    IRET_CONTEXT_cs = 40
    IRET_CONTEXT_rflags = 48
    IRET_CONTEXT_rsp = 56
    IRET_CONTEXT_ss = 64
    STRUCT_iret_context = Struct("<QQQQQQQQQ")

    # struct trap_info
    TRAP_INFO_SIZE = 16
    TRAP_INFO_vector = 0
    TRAP_INFO_flags = 1
    TRAP_INFO_cs = 2
    TRAP_INFO_address = 8
    STRUCT_trap_info = Struct("<BBH4xQ")

    # struct vcpu_guest_context
    VCPU_GUEST_CONTEXT_SIZE = 5168
    VCPU_GUEST_CONTEXT_fpu_ctxt = 0
    VCPU_GUEST_CONTEXT_fpu_ctxt_x = 0
    VCPU_GUEST_CONTEXT_flags = 512
    VCPU_GUEST_CONTEXT_user_regs = 520
    VCPU_GUEST_CONTEXT_user_regs_r15 = 520
    VCPU_GUEST_CONTEXT_user_regs_r14 = 528
    VCPU_GUEST_CONTEXT_user_regs_r13 = 536
    VCPU_GUEST_CONTEXT_user_regs_r12 = 544
    VCPU_GUEST_CONTEXT_user_regs_rbp = 552
    VCPU_GUEST_CONTEXT_user_regs_rbx = 560
    VCPU_GUEST_CONTEXT_user_regs_r11 = 568
    VCPU_GUEST_CONTEXT_user_regs_r10 = 576
    VCPU_GUEST_CONTEXT_user_regs_r9 = 584
    VCPU_GUEST_CONTEXT_user_regs_r8 = 592
    VCPU_GUEST_CONTEXT_user_regs_rax = 600
    VCPU_GUEST_CONTEXT_user_regs_rcx = 608
    VCPU_GUEST_CONTEXT_user_regs_rdx = 616
    VCPU_GUEST_CONTEXT_user_regs_rsi = 624
    VCPU_GUEST_CONTEXT_user_regs_rdi = 632
    VCPU_GUEST_CONTEXT_user_regs_error_code = 640
    VCPU_GUEST_CONTEXT_user_regs_entry_vector = 644
    VCPU_GUEST_CONTEXT_user_regs_rip = 648
    VCPU_GUEST_CONTEXT_user_regs_cs = 656
    VCPU_GUEST_CONTEXT_user_regs_saved_upcall_mask = 660
    VCPU_GUEST_CONTEXT_user_regs_rflags = 664
    VCPU_GUEST_CONTEXT_user_regs_rsp = 672
    VCPU_GUEST_CONTEXT_user_regs_ss = 680
    VCPU_GUEST_CONTEXT_user_regs_es = 688
    VCPU_GUEST_CONTEXT_user_regs_ds = 696
    VCPU_GUEST_CONTEXT_user_regs_fs = 704
    VCPU_GUEST_CONTEXT_user_regs_gs = 712
    VCPU_GUEST_CONTEXT_trap_ctxt = 720
    VCPU_GUEST_CONTEXT_ldt_base = 4816
    VCPU_GUEST_CONTEXT_ldt_ents = 4824
    VCPU_GUEST_CONTEXT_gdt_frames = 4832
    VCPU_GUEST_CONTEXT_gdt_ents = 4960
    VCPU_GUEST_CONTEXT_kernel_ss = 4968
    VCPU_GUEST_CONTEXT_kernel_sp = 4976
    VCPU_GUEST_CONTEXT_ctrlreg = 4984
    VCPU_GUEST_CONTEXT_debugreg = 5048
    VCPU_GUEST_CONTEXT_event_callback_eip = 5112
    VCPU_GUEST_CONTEXT_failsafe_callback_eip = 5120
    VCPU_GUEST_CONTEXT_syscall_callback_eip = 5128
    VCPU_GUEST_CONTEXT_vm_assist = 5136
    VCPU_GUEST_CONTEXT_fs_base = 5144
    VCPU_GUEST_CONTEXT_gs_base_kernel = 5152
    VCPU_GUEST_CONTEXT_gs_base_user = 5160

    # struct callback_register
    CALLBACK_REGISTER_SIZE = 16
    CALLBACK_REGISTER_type = 0
    CALLBACK_REGISTER_flags = 2
    CALLBACK_REGISTER_address = 8
    STRUCT_callback_register = Struct("<HH4xQ")

    # struct xennmi_callback
    XENNMI_CALLBACK_SIZE = 16
    XENNMI_CALLBACK_handler_address = 0
    STRUCT_xennmi_callback = Struct("<Q8x")

    # struct mmuext_op
    MMUEXT_OP_SIZE = 24
    MMUEXT_OP_cmd = 0
    MMUEXT_OP_arg1 = 8
    MMUEXT_OP_arg1_mfn = 8
    MMUEXT_OP_arg1_linear_addr = 8
    MMUEXT_OP_arg2 = 16
    MMUEXT_OP_arg2_nr_ents = 16
    MMUEXT_OP_arg2_vcpumask = 16
    MMUEXT_OP_arg2_src_mfn = 16
    STRUCT_mmuext_op = Struct("<I4xQQ")

    # struct multicall_entry
    MULTICALL_ENTRY_SIZE = 64
    MULTICALL_ENTRY_op = 0
    MULTICALL_ENTRY_result = 8
    MULTICALL_ENTRY_args = 16
    STRUCT_multicall_entry = Struct("<QQ6Q")

    # struct xen_memory_reservation
    XEN_MEMORY_RESERVATION_SIZE = 32
    XEN_MEMORY_RESERVATION_extent_start = 0
    XEN_MEMORY_RESERVATION_nr_extents = 8
    XEN_MEMORY_RESERVATION_extent_order = 16
    XEN_MEMORY_RESERVATION_mem_flags = 20
    XEN_MEMORY_RESERVATION_domid = 24
    STRUCT_xen_memory_reservation = Struct("<QQIIH6x")

    # struct xen_memory_exchange
    XEN_MEMORY_EXCHANGE_SIZE = 72
    XEN_MEMORY_EXCHANGE_in = 0
    XEN_MEMORY_EXCHANGE_in_extent_start = 0
    XEN_MEMORY_EXCHANGE_in_nr_extents = 8
    XEN_MEMORY_EXCHANGE_in_extent_order = 16
    XEN_MEMORY_EXCHANGE_in_mem_flags = 20
    XEN_MEMORY_EXCHANGE_in_domid = 24
    XEN_MEMORY_EXCHANGE_out = 32
    XEN_MEMORY_EXCHANGE_out_extent_start = 32
    XEN_MEMORY_EXCHANGE_out_nr_extents = 40
    XEN_MEMORY_EXCHANGE_out_extent_order = 48
    XEN_MEMORY_EXCHANGE_out_mem_flags = 52
    XEN_MEMORY_EXCHANGE_out_domid = 56
    XEN_MEMORY_EXCHANGE_nr_exchanged = 64

    # struct xen_machphys_mfn_list
    XEN_MACHPHYS_MFN_LIST_SIZE = 24
    XEN_MACHPHYS_MFN_LIST_max_extents = 0
    XEN_MACHPHYS_MFN_LIST_extent_start = 8
    XEN_MACHPHYS_MFN_LIST_nr_extents = 16
    STRUCT_xen_machphys_mfn_list = Struct("<I4xQI4x")

    # struct xen_machphys_mapping
    XEN_MACHPHYS_MAPPING_SIZE = 24
    XEN_MACHPHYS_MAPPING_v_start = 0
    XEN_MACHPHYS_MAPPING_v_end = 8
    XEN_MACHPHYS_MAPPING_max_mfn = 16
    STRUCT_xen_machphys_mapping = Struct("<QQQ")

    # struct xen_add_to_physmap
    XEN_ADD_TO_PHYSMAP_SIZE = 24
    XEN_ADD_TO_PHYSMAP_domid = 0
    XEN_ADD_TO_PHYSMAP_size = 2
    XEN_ADD_TO_PHYSMAP_space = 4
    XEN_ADD_TO_PHYSMAP_idx = 8
    XEN_ADD_TO_PHYSMAP_gpfn = 16
    STRUCT_xen_add_to_physmap = Struct("<HHIQQ")

    # struct xen_add_to_physmap_batch
    XEN_ADD_TO_PHYSMAP_BATCH_SIZE = 32
    XEN_ADD_TO_PHYSMAP_BATCH_domid = 0
    XEN_ADD_TO_PHYSMAP_BATCH_space = 2
    XEN_ADD_TO_PHYSMAP_BATCH_size = 4
    XEN_ADD_TO_PHYSMAP_BATCH_u = 6
    XEN_ADD_TO_PHYSMAP_BATCH_u_foreign_domid = 6
    XEN_ADD_TO_PHYSMAP_BATCH_u_res0 = 6
    XEN_ADD_TO_PHYSMAP_BATCH_idxs = 8
    XEN_ADD_TO_PHYSMAP_BATCH_gpfns = 16
    XEN_ADD_TO_PHYSMAP_BATCH_errs = 24
    STRUCT_xen_add_to_physmap_batch = Struct("<HHHHQQQ")

    # struct xen_remove_from_physmap
    XEN_REMOVE_FROM_PHYSMAP_SIZE = 16
    XEN_REMOVE_FROM_PHYSMAP_domid = 0
    XEN_REMOVE_FROM_PHYSMAP_gpfn = 8
    STRUCT_xen_remove_from_physmap = Struct("<H6xQ")

    # struct xen_memory_map
    XEN_MEMORY_MAP_SIZE = 16
    XEN_MEMORY_MAP_nr_entries = 0
    XEN_MEMORY_MAP_buffer = 8
    STRUCT_xen_memory_map = Struct("<I4xQ")

    # struct xen_foreign_memory_map
    XEN_FOREIGN_MEMORY_MAP_SIZE = 24
    XEN_FOREIGN_MEMORY_MAP_domid = 0
    XEN_FOREIGN_MEMORY_MAP_map = 8
    XEN_FOREIGN_MEMORY_MAP_map_nr_entries = 8
    XEN_FOREIGN_MEMORY_MAP_map_buffer = 16

    # struct xen_pod_target
    XEN_POD_TARGET_SIZE = 40
    XEN_POD_TARGET_target_pages = 0
    XEN_POD_TARGET_tot_pages = 8
    XEN_POD_TARGET_pod_cache_pages = 16
    XEN_POD_TARGET_pod_entries = 24
    XEN_POD_TARGET_domid = 32
    STRUCT_xen_pod_target = Struct("<QQQQH6x")

    # struct xen_mem_acquire_resource
    XEN_MEM_ACQUIRE_RESOURCE_SIZE = 32
    XEN_MEM_ACQUIRE_RESOURCE_domid = 0
    XEN_MEM_ACQUIRE_RESOURCE_type = 2
    XEN_MEM_ACQUIRE_RESOURCE_id = 4
    XEN_MEM_ACQUIRE_RESOURCE_nr_frames = 8
    XEN_MEM_ACQUIRE_RESOURCE_frame = 16
    XEN_MEM_ACQUIRE_RESOURCE_frame_list = 24
    STRUCT_xen_mem_acquire_resource = Struct("<HHII4xQQ")

    # struct vcpu_set_singleshot_timer
    VCPU_SET_SINGLESHOT_TIMER_SIZE = 16
    VCPU_SET_SINGLESHOT_TIMER_timeout_abs_ns = 0
    VCPU_SET_SINGLESHOT_TIMER_flags = 8
    STRUCT_vcpu_set_singleshot_timer = Struct("<QI4x")

    # struct sched_poll
    SCHED_POLL_SIZE = 24
    SCHED_POLL_ports = 0
    SCHED_POLL_nr_ports = 8
    SCHED_POLL_timeout = 16
    STRUCT_sched_poll = Struct("<QI4xQ")

    # struct physdev_pirq_eoi_gmfn
    PHYSDEV_PIRQ_EOI_GMFN_SIZE = 8
    PHYSDEV_PIRQ_EOI_GMFN_gmfn = 0
    STRUCT_physdev_pirq_eoi_gmfn = Struct("<Q")

    # struct physdev_set_iobitmap
    PHYSDEV_SET_IOBITMAP_SIZE = 16
    PHYSDEV_SET_IOBITMAP_bitmap = 0
    PHYSDEV_SET_IOBITMAP_nr_ports = 8
    STRUCT_physdev_set_iobitmap = Struct("<QI4x")

    # struct physdev_apic
    PHYSDEV_APIC_SIZE = 16
    PHYSDEV_APIC_apic_physbase = 0
    PHYSDEV_APIC_reg = 8
    PHYSDEV_APIC_value = 12
    STRUCT_physdev_apic = Struct("<QII")

    # struct physdev_map_pirq
    PHYSDEV_MAP_PIRQ_SIZE = 40
    PHYSDEV_MAP_PIRQ_domid = 0
    PHYSDEV_MAP_PIRQ_type = 4
    PHYSDEV_MAP_PIRQ_index = 8
    PHYSDEV_MAP_PIRQ_pirq = 12
    PHYSDEV_MAP_PIRQ_bus = 16
    PHYSDEV_MAP_PIRQ_devfn = 20
    PHYSDEV_MAP_PIRQ_entry_nr = 24
    PHYSDEV_MAP_PIRQ_table_base = 32
    STRUCT_physdev_map_pirq = Struct("<H2xiiiiii4xQ")

    # struct physdev_op
    PHYSDEV_OP_SIZE = 24
    PHYSDEV_OP_cmd = 0
    PHYSDEV_OP_u = 8
    PHYSDEV_OP_u_irq_status_query = 8
    PHYSDEV_OP_u_irq_status_query_irq = 8
    PHYSDEV_OP_u_irq_status_query_flags = 12
    PHYSDEV_OP_u_set_iopl = 8
    PHYSDEV_OP_u_set_iopl_iopl = 8
    PHYSDEV_OP_u_set_iobitmap = 8
    PHYSDEV_OP_u_set_iobitmap_bitmap = 8
    PHYSDEV_OP_u_set_iobitmap_nr_ports = 16
    PHYSDEV_OP_u_apic_op = 8
    PHYSDEV_OP_u_apic_op_apic_physbase = 8
    PHYSDEV_OP_u_apic_op_reg = 16
    PHYSDEV_OP_u_apic_op_value = 20
    PHYSDEV_OP_u_irq_op = 8
    PHYSDEV_OP_u_irq_op_irq = 8
    PHYSDEV_OP_u_irq_op_vector = 12

    # struct gnttab_setup_table
    GNTTAB_SETUP_TABLE_SIZE = 24
    GNTTAB_SETUP_TABLE_dom = 0
    GNTTAB_SETUP_TABLE_nr_frames = 4
    GNTTAB_SETUP_TABLE_status = 8
    GNTTAB_SETUP_TABLE_frame_list = 16
    STRUCT_gnttab_setup_table = Struct("<H2xIh6xQ")

    # struct gnttab_transfer
    GNTTAB_TRANSFER_SIZE = 24
    GNTTAB_TRANSFER_mfn = 0
    GNTTAB_TRANSFER_domid = 8
    GNTTAB_TRANSFER_ref = 12
    GNTTAB_TRANSFER_status = 16
    STRUCT_gnttab_transfer = Struct("<QH2xIh6x")

    # struct gnttab_copy
    GNTTAB_COPY_SIZE = 40
    GNTTAB_COPY_source = 0
    GNTTAB_COPY_source_u = 0
    GNTTAB_COPY_source_u_ref = 0
    GNTTAB_COPY_source_u_gmfn = 0
    GNTTAB_COPY_source_domid = 8
    GNTTAB_COPY_source_offset = 10
    GNTTAB_COPY_dest = 16
    GNTTAB_COPY_dest_u = 16
    GNTTAB_COPY_dest_u_ref = 16
    GNTTAB_COPY_dest_u_gmfn = 16
    GNTTAB_COPY_dest_domid = 24
    GNTTAB_COPY_dest_offset = 26
    GNTTAB_COPY_len = 32
    GNTTAB_COPY_flags = 34
    GNTTAB_COPY_status = 36
    STRUCT_gnttab_copy = Struct("<QHH4xQHH4xHHh2x")

    # struct gnttab_get_status_frames
    GNTTAB_GET_STATUS_FRAMES_SIZE = 16
    GNTTAB_GET_STATUS_FRAMES_nr_frames = 0
    GNTTAB_GET_STATUS_FRAMES_dom = 4
    GNTTAB_GET_STATUS_FRAMES_status = 6
    GNTTAB_GET_STATUS_FRAMES_frame_list = 8
    STRUCT_gnttab_get_status_frames = Struct("<IHhQ")

    # struct xen_platform_parameters
    XEN_PLATFORM_PARAMETERS_SIZE = 8
    XEN_PLATFORM_PARAMETERS_virt_start = 0
    STRUCT_xen_platform_parameters = Struct("<Q")


LAYOUT64 = Layout64()
