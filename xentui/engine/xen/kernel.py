"""The small hypercalls: xen_version, vm_assist, nmi_op (Xen: common/kernel.c, as of 4.17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.state import MASK32
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi import arch_x86, arch_x86_32, arch_x86_64, core, nmi
from xentui.engine.xen.abi import features as feature
from xentui.engine.xen.abi import version as abi
from xentui.engine.xen.abi.errno import EINVAL, ENOSYS, EPERM
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.domain import TrapHandler
from xentui.engine.xen.hypervisor import VERSION_EXTRA, VERSION_MAJOR, VERSION_MINOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.domain import Vcpu

PAGE_SIZE = 4096
CAPABILITIES = "xen-3.0-x86_64 xen-3.0-x86_32p "
"""Kinds of guest that can run; the version in it is that of the interface."""

COMPILER, COMPILE_BY, COMPILE_DOMAIN, COMPILE_DATE = "CPython and Unicorn", "xentui", "localdomain", ""
CHANGESET = ""
DENIED = "<denied>"
"""What a guest gets that may not know; the answer to XENVER_commandline."""

_FEATURES = (
    feature.XENFEAT_mmu_pt_update_preserve_ad,
    feature.XENFEAT_highmem_assist,
    feature.XENFEAT_gnttab_map_avail_bits,
    feature.XENFEAT_memory_op_vnode_supported,
    feature.XENFEAT_direct_mapped,  # since 4.16: not auto-translated counts as direct-mapped
)
_PAE_ABOVE_4GB = 1 << feature.XENFEAT_pae_pgdir_above_4gb

_ASSISTS_64 = sum(
    1 << assist
    for assist in (
        core.VMASST_TYPE_4gb_segments,
        core.VMASST_TYPE_4gb_segments_notify,
        core.VMASST_TYPE_writable_pagetables,
        core.VMASST_TYPE_pae_extended_cr3,
        core.VMASST_TYPE_architectural_iopl,
        core.VMASST_TYPE_runstate_update_flag,
        core.VMASST_TYPE_m2p_strict,
    )
)
_NMI_VECTOR = 2


def do_xen_version(vcpu: Vcpu, cmd: int, arg: int, _c: int, _d: int) -> int:
    """Hypercall 17: who we are. Without a buffer to fill, `cmd` 0 is the shortest hypercall there is."""
    cmd &= MASK32
    if cmd == abi.XENVER_version:
        return VERSION_MAJOR << 16 | VERSION_MINOR
    if cmd == abi.XENVER_pagesize:
        return -EINVAL if arg else PAGE_SIZE
    if cmd == abi.XENVER_build_id:
        return -EPERM
    if cmd == abi.XENVER_get_features:
        return _get_features(vcpu, arg)
    answer = _ANSWERS.get(cmd)
    if answer is None:
        return -ENOSYS
    guest_access.write(vcpu, arg, answer(vcpu))
    return 0


def _text(text: str, size: int) -> bytes:
    """A string as the interface has it: ended and padded with zero bytes."""
    return text.encode("ascii")[: size - 1].ljust(size, b"\0")


def _extraversion(_vcpu: Vcpu) -> bytes:
    return _text(VERSION_EXTRA, abi.XEN_EXTRAVERSION_LEN)


def _compile_info(_vcpu: Vcpu) -> bytes:
    texts = [_text(COMPILER, 64), _text(COMPILE_BY, 16), _text(COMPILE_DOMAIN, 32), _text(COMPILE_DATE, 32)]
    return LAYOUT64.STRUCT_xen_compile_info.pack(*texts)


def _capabilities(_vcpu: Vcpu) -> bytes:
    return _text(CAPABILITIES, abi.XEN_CAPABILITIES_INFO_LEN)


def _changeset(_vcpu: Vcpu) -> bytes:
    return _text(CHANGESET, abi.XEN_CHANGESET_INFO_LEN)


def _platform_parameters(vcpu: Vcpu) -> bytes:
    """Where the hypervisor's part of the address space begins."""
    if vcpu.width == 32:
        return LAYOUT32.STRUCT_xen_platform_parameters.pack(arch_x86.HYPERVISOR_COMPAT_VIRT_START)
    return LAYOUT64.STRUCT_xen_platform_parameters.pack(arch_x86_64.HYPERVISOR_VIRT_START)


def _guest_handle(vcpu: Vcpu) -> bytes:
    return vcpu.domain.handle


def _commandline(_vcpu: Vcpu) -> bytes:
    return DENIED.encode("ascii") + b"\0"


_ANSWERS: dict[int, Callable[[Vcpu], bytes]] = {
    abi.XENVER_extraversion: _extraversion,
    abi.XENVER_compile_info: _compile_info,
    abi.XENVER_capabilities: _capabilities,
    abi.XENVER_changeset: _changeset,
    abi.XENVER_platform_parameters: _platform_parameters,
    abi.XENVER_guest_handle: _guest_handle,
    abi.XENVER_commandline: _commandline,
}


def _get_features(vcpu: Vcpu, arg: int) -> int:
    index, _ = LAYOUT64.STRUCT_xen_feature_info.unpack(guest_access.read(vcpu, arg, LAYOUT64.XEN_FEATURE_INFO_SIZE))
    if index >= feature.XENFEAT_NR_SUBMAPS:
        return -EINVAL
    submap = sum(1 << bit for bit in _FEATURES)
    if vcpu.domain.vm_assist & 1 << core.VMASST_TYPE_pae_extended_cr3:
        submap |= _PAE_ABOVE_4GB
    guest_access.write(vcpu, arg, LAYOUT64.STRUCT_xen_feature_info.pack(index, submap))
    return 0


def do_vm_assist(vcpu: Vcpu, cmd: int, kind: int, _c: int, _d: int) -> int:
    """Hypercall 21: switch one of the VMASST_TYPE_* conveniences on or off, for the whole domain."""
    cmd, kind = cmd & MASK32, kind & MASK32
    domain = vcpu.domain
    if kind >= domain.width or not _ASSISTS_64 >> kind & 1:
        return -EINVAL
    if cmd == core.VMASST_CMD_enable:
        domain.vm_assist |= 1 << kind
    elif cmd == core.VMASST_CMD_disable:
        domain.vm_assist &= ~(1 << kind)
    else:
        return -ENOSYS
    return 0


def do_nmi_op(vcpu: Vcpu, cmd: int, arg: int, _c: int, _d: int) -> int:
    """Hypercall 28: the handler of non-maskable interrupts, with event upcalls masked on entry (pv/callback.c)."""
    cmd &= MASK32
    if cmd == nmi.XENNMI_unregister_callback:
        vcpu.traps[_NMI_VECTOR] = None
        return 0
    if cmd != nmi.XENNMI_register_callback:
        return -ENOSYS
    layout = LAYOUT32 if vcpu.width == 32 else LAYOUT64
    (address,) = layout.STRUCT_xennmi_callback.unpack(guest_access.read(vcpu, arg, layout.XENNMI_CALLBACK_SIZE))
    if not (address < 1 << 47 or address >= (1 << 64) - (1 << 47)):
        return -EINVAL
    selector = arch_x86_32.FLAT_KERNEL_CS if vcpu.width == 32 else arch_x86_64.FLAT_KERNEL_CS
    vcpu.traps[_NMI_VECTOR] = TrapHandler(address, selector, 0, True)
    return 0
