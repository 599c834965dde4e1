"""Grant tables: memory that a domain offers to another (Xen: common/grant_table.c).

The hypercall. What an entry is and who uses it: grant_entries.py; a domain's own table: grant_setup.py; mapping what
others grant: grant_map.py; copying it, and giving frames away: grant_copy.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.x86.state import MASK32
from xentui.engine.xen import grant_copy, grant_map, grant_setup, guest_access
from xentui.engine.xen.abi import grant_table as abi
from xentui.engine.xen.abi.errno import EFAULT, EINVAL, ENOSYS
from xentui.engine.xen.abi.hypercalls import HYPERCALL_grant_table_op
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.continuation import create_continuation, preempt_check
from xentui.engine.xen.grant_map import UNMAP_BATCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.xen.domain import Vcpu

COST_OPERATION = 50
"""Nanoseconds for one operation of an array."""

_COMMAND_MASK = 0xFFF  # above it Xen keeps where a long operation goes on


def do_grant_table_op(vcpu: Vcpu, cmd: int, uop: int, count: int, _d: int) -> int:
    """Hypercall 20: `count` operations of kind `cmd`, GNTTABOP_*, in an array at `uop`; each reports its own status."""
    cmd, count = cmd & MASK32, count & MASK32
    resumed, cmd = cmd & ~_COMMAND_MASK, cmd & _COMMAND_MASK
    if count >> 31 or (resumed and cmd != abi.GNTTABOP_cache_flush):
        return -EINVAL
    single = _SINGLE.get(cmd)
    if single is not None:
        return single(vcpu, uop, count)
    if cmd not in _SIZES:
        return -ENOSYS
    if not guest_access.access_ok(vcpu, uop, count * _SIZES[cmd][vcpu.width == 64]):
        return -EFAULT
    if cmd == abi.GNTTABOP_cache_flush:
        return grant_setup.cache_flush(vcpu, uop, count, resumed)
    return _array(vcpu, cmd, uop, count)


def _array(vcpu: Vcpu, cmd: int, uop: int, count: int) -> int:
    """The operations one after the other, or those that unmap in batches; between them the hypercall gives way."""
    charge, size = vcpu.hv.clock.charge, _SIZES[cmd][vcpu.width == 64]
    batched = _BATCHED.get(cmd)
    operation = _EACH.get(cmd)
    done = 0
    while done < count:
        if done and preempt_check(vcpu):
            return create_continuation(vcpu, HYPERCALL_grant_table_op, cmd, uop + done * size, count - done)
        many = min(count - done, UNMAP_BATCH) if batched else 1
        if batched is not None:
            batched(vcpu, uop + done * size, many)
        elif operation is not None:
            operation(vcpu, uop + done * size)
        charge(COST_OPERATION * many)
        done += many
    return 0


_SINGLE: dict[int, Callable[[Vcpu, int, int], int]] = {
    abi.GNTTABOP_setup_table: grant_setup.setup_table,
    abi.GNTTABOP_query_size: grant_setup.query_size,
    abi.GNTTABOP_set_version: grant_setup.set_version,
    abi.GNTTABOP_get_version: grant_setup.get_version,
    abi.GNTTABOP_get_status_frames: grant_setup.get_status_frames,
}
_EACH: dict[int, Callable[[Vcpu, int], None]] = {
    abi.GNTTABOP_map_grant_ref: grant_map.map_grant_ref,
    abi.GNTTABOP_transfer: grant_copy.transfer,
    abi.GNTTABOP_copy: grant_copy.copy,
    abi.GNTTABOP_swap_grant_ref: grant_setup.swap_grant_ref,
}
_BATCHED: dict[int, Callable[[Vcpu, int, int], None]] = {
    abi.GNTTABOP_unmap_grant_ref: grant_map.unmap_grant_ref,
    abi.GNTTABOP_unmap_and_replace: grant_map.unmap_and_replace,
}
_SIZES: dict[int, tuple[int, int]] = {
    abi.GNTTABOP_map_grant_ref: (LAYOUT64.GNTTAB_MAP_GRANT_REF_SIZE,) * 2,
    abi.GNTTABOP_unmap_grant_ref: (LAYOUT64.GNTTAB_UNMAP_GRANT_REF_SIZE,) * 2,
    abi.GNTTABOP_unmap_and_replace: (LAYOUT64.GNTTAB_UNMAP_AND_REPLACE_SIZE,) * 2,
    abi.GNTTABOP_transfer: (LAYOUT32.GNTTAB_TRANSFER_SIZE, LAYOUT64.GNTTAB_TRANSFER_SIZE),
    abi.GNTTABOP_copy: (LAYOUT32.GNTTAB_COPY_SIZE, LAYOUT64.GNTTAB_COPY_SIZE),
    abi.GNTTABOP_swap_grant_ref: (LAYOUT64.GNTTAB_SWAP_GRANT_REF_SIZE,) * 2,
    abi.GNTTABOP_cache_flush: (LAYOUT64.GNTTAB_CACHE_FLUSH_SIZE,) * 2,
}
"""Bytes of an array's element, for 32-bit and 64-bit guests."""
