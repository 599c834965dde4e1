"""Taking a vcpu_guest_context: everything with which a vCPU starts (Xen: arch/x86/domain.c, arch_set_info_guest)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.state import EF_IF, EF_IOPL, MASK32, RAX, State
from xentui.engine.xen import callback, debugreg, descriptor_tables, mm, schedule
from xentui.engine.xen.abi.arch_x86 import TI_DPL_MASK, TI_IF, VGCF_in_kernel, VGCF_online
from xentui.engine.xen.abi.arch_x86_64 import FLAT_KERNEL_CS64
from xentui.engine.xen.abi.errno import EINVAL
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.domain import TrapHandler

if TYPE_CHECKING:
    from xentui.engine.xen.abi.layout import Layout
    from xentui.engine.xen.domain import Vcpu

VECTORS = 256
MAX_LDT_ENTRIES = 8192
GDT_ENTRIES_PER_FRAME = 512
_CR0_TS = 8
_CANONICAL_LOW, _CANONICAL_HIGH = 1 << 47, (1 << 64) - (1 << 47)

_GENERAL_64 = ("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi")
_GENERAL_32 = ("ebx", "ecx", "edx", "esi", "edi", "ebp", "eax")
_SEGMENTS = ("cs", "ss", "es", "ds", "fs", "gs")


class Context:
    """A vcpu_guest_context in a guest's layout; members by name."""

    def __init__(self, layout: Layout, data: bytes) -> None:
        self.layout = layout
        self.word_size = layout.WORD_SIZE
        self.data = data

    def word(self, member: str, index: int = 0) -> int:
        """A member that is an `unsigned long`, or element `index` of an array of them."""
        return self.number(member, self.word_size, index * self.word_size)

    def number(self, member: str, size: int, further: int = 0) -> int:
        """`size` bytes, `further` bytes behind the beginning of the member."""
        start: int = getattr(self.layout, f"VCPU_GUEST_CONTEXT_{member}") + further
        return int.from_bytes(self.data[start : start + size], "little")


def state_of(vcpu: Vcpu) -> State:
    """A copy of a vCPU's registers, wherever they are (Xen: arch_get_info_guest).

    In the processor while it is loaded there, in `saved` afterwards, in `boot_registers` before it first runs.
    """
    if vcpu.processor.vcpu is vcpu:
        return State.of(vcpu.processor.state.save())
    if vcpu.boot_registers:
        from xentui.engine.xen.domain_builder import first_state

        return State.of(first_state(vcpu)[0])
    return State.of(vcpu.saved)


def set_result(vcpu: Vcpu, value: int) -> None:
    """What the hypercall that the vCPU is in will return to it, though it was answered already."""
    if vcpu.processor.vcpu is vcpu:
        vcpu.q[RAX] = value
    else:
        state = State.of(vcpu.saved)
        state.q[RAX] = value
        vcpu.saved = state.save()


def canonical(address: int) -> bool:
    """Is this an address at all, for a 64-bit processor?"""
    return address < _CANONICAL_LOW or address >= _CANONICAL_HIGH


def arch_set_info_guest(vcpu: Vcpu, data: bytes, by: Vcpu) -> int:
    """Give a vCPU that has never run the context `data`, as the vCPU `by` asks.

    0, -EINVAL, or -ERESTART: `by` is to ask again later. But for 0, nothing but the vCPU's tables is changed.
    """
    context = Context(LAYOUT32 if vcpu.width == 32 else LAYOUT64, data)
    traps = _traps(vcpu, context)
    ldt_base, ldt_entries = context.word("ldt_base"), context.word("ldt_ents")
    if traps is None or not _addresses_okay(vcpu, context):
        return -EINVAL
    if ldt_base & 0xFFF or ldt_entries > MAX_LDT_ENTRIES:
        return -EINVAL
    error = _take_tables(vcpu, context, by)
    if error:
        return error
    flags = context.number("flags", 4)
    vcpu.traps = traps
    vcpu.ldt_base, vcpu.ldt_entries = (ldt_base, ldt_entries) if ldt_entries else (0, 0)
    vcpu.kernel_mode = vcpu.width == 32 or bool(flags & VGCF_in_kernel)
    mm.switch_root(vcpu)
    vcpu.kernel_ss, vcpu.kernel_sp = context.word("kernel_ss") & 0xFFFF, context.word("kernel_sp")
    vcpu.cr0_ts = bool(context.word("ctrlreg", 0) & _CR0_TS)
    for register in (0, 1, 2, 3, 6, 7):
        debugreg.set_debug_register(vcpu, register, context.word("debugreg", register))
    _take_callbacks(vcpu, context, flags)
    _take_registers(vcpu, context)
    if vcpu.id == 0:
        vcpu.domain.vm_assist = context.word("vm_assist")
    vcpu.online = bool(flags & VGCF_online)
    schedule.wake(vcpu)
    return 0


def _addresses_okay(vcpu: Vcpu, context: Context) -> bool:
    if vcpu.width == 32:
        return True
    entries = ("user_regs_rip", "event_callback_eip", "failsafe_callback_eip", "syscall_callback_eip", "ldt_base")
    bases = ("fs_base", "gs_base_kernel", "gs_base_user")
    return all(canonical(context.word(member)) for member in entries + bases)


def _traps(vcpu: Vcpu, context: Context) -> list[TrapHandler | None] | None:
    """The trap table, by its place and not by the vector that an entry names; None if an address is impossible."""
    layout = context.layout
    traps: list[TrapHandler | None] = []
    for vector in range(VECTORS):
        at = layout.VCPU_GUEST_CONTEXT_trap_ctxt + vector * layout.TRAP_INFO_SIZE
        _, flags, selector, address = layout.STRUCT_trap_info.unpack_from(context.data, at)
        if not canonical(address):
            return None
        selector = FLAT_KERNEL_CS64 if vcpu.width == 64 else descriptor_tables.fix_code_selector(selector)
        masks = bool(flags & TI_IF)
        traps.append(TrapHandler(address, selector, flags & TI_DPL_MASK, masks) if address else None)
    return traps


def _take_tables(vcpu: Vcpu, context: Context, by: Vcpu) -> int:
    """Descriptor table and page tables, each checked and counted; 0, -EINVAL or -ERESTART.

    If it is the user's L4 that fails, the vCPU keeps the kernel's until it is asked again or ends.
    """
    entries = context.word("gdt_ents")
    count = (entries + GDT_ENTRIES_PER_FRAME - 1) // GDT_ENTRIES_PER_FRAME
    frames = [context.word("gdt_frames", index) for index in range(min(count, 16))]
    error = descriptor_tables.set_gdt(vcpu, frames, entries)
    if error:
        return error
    root = context.word("ctrlreg", 3)
    # a PAE guest's L3 may lie above 4 GiB: CR3 then holds the frame number rotated (public/arch-x86/xen-x86_32.h)
    mfn = (root >> 12 | root << 20) & MASK32 if vcpu.width == 32 else root >> 12
    error = mm.new_guest_cr3(vcpu, mfn, by)
    user = context.word("ctrlreg", 1)
    if not error and vcpu.width == 64:
        error = mm.new_user_cr3(vcpu, user >> 12, by)
        vcpu.in_reset = bool(error)
    if error:
        descriptor_tables.destroy_gdt(vcpu)
    return error


def _take_callbacks(vcpu: Vcpu, context: Context, flags: int) -> None:
    if vcpu.width == 32:
        fix = descriptor_tables.fix_code_selector
        vcpu.event_callback = fix(context.word("event_callback_cs") & 0xFFFF), context.word("event_callback_eip")
        failsafe = fix(context.word("failsafe_callback_cs") & 0xFFFF), context.word("failsafe_callback_eip")
    else:
        vcpu.event_callback = 0, context.word("event_callback_eip")
        vcpu.syscall_callback = context.word("syscall_callback_eip")
        failsafe = 0, context.word("failsafe_callback_eip")
    vcpu.failsafe_callback = failsafe
    callback.set_context_flags(vcpu, flags)


def _take_registers(vcpu: Vcpu, context: Context) -> None:
    """The registers, under their 64-bit names: the privilege level becomes the guest's own, interrupts stay enabled."""
    wide = vcpu.width == 64
    registers = {}
    for name in _GENERAL_64 if wide else _GENERAL_32:
        registers["r" + name[1:]] = context.word(f"user_regs_{name}")
    for name in _SEGMENTS:
        registers[name] = context.number(f"user_regs_{name}", 2)
    flags = context.word("user_regs_rflags" if wide else "user_regs_eflags")
    vcpu.iopl = (flags & EF_IOPL) >> 12
    registers["rip"] = context.word("user_regs_rip" if wide else "user_regs_eip")
    registers["rsp"] = context.word("user_regs_rsp" if wide else "user_regs_esp")
    registers["rflags"] = flags & ~EF_IOPL | EF_IF
    if wide:
        kernel, user = context.word("gs_base_kernel"), context.word("gs_base_user")
        vcpu.inactive_gs_base = user if vcpu.kernel_mode else kernel
        registers["fs_base"] = context.word("fs_base")
        registers["gs_base"] = kernel if vcpu.kernel_mode else user
    else:
        registers["cs"] = descriptor_tables.fix_code_selector(registers["cs"])
        registers["ss"] = descriptor_tables.fix_stack_selector(registers["ss"])
        vcpu.kernel_ss = descriptor_tables.fix_stack_selector(vcpu.kernel_ss)
    vcpu.boot_registers = registers
