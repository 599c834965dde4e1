"""What each fault of the catalogue (faults.py) does to the machine.

All of them are applied between two slices. Those that wait for something are fault_snares.py's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.dom0 import control
from xentui.engine.fault_snares import CallSnare, EventSnare, ExceptionSnare, disarm, later, record
from xentui.engine.faults import ERRNOS, HYPERCALLS, RINGS, VECTORS, FaultError
from xentui.engine.poke import FREE_FLAGS, keep, live_state, set_flags
from xentui.engine.trace import Fault, SharedRing
from xentui.engine.views import ViewError
from xentui.engine.views.find import INDEX, address_of, translate
from xentui.engine.x86 import state as s
from xentui.engine.x86.paging import FRAME_MASK, PRESENT, PSE, RW
from xentui.engine.xen import mm, refusals, schedule, time, unchecked
from xentui.engine.xen.abi.grant_table import GTF_type_mask
from xentui.engine.xen.abi.layout import Layout
from xentui.engine.xen.guest_access import handle_okay
from xentui.engine.xen.page import DOMID_INVALID, DOMID_XEN, L1, L4, SEG

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.engine.faults import Injection
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain, Vcpu

_RING_INDICES = {
    SharedRing.CONSOLE_IN: (Layout.XENCONS_INTERFACE_in_cons, Layout.XENCONS_INTERFACE_in_prod),
    SharedRing.CONSOLE_OUT: (Layout.XENCONS_INTERFACE_out_cons, Layout.XENCONS_INTERFACE_out_prod),
    SharedRing.XENSTORE_REQUEST: (Layout.XENSTORE_DOMAIN_INTERFACE_req_cons, Layout.XENSTORE_DOMAIN_INTERFACE_req_prod),
    SharedRing.XENSTORE_RESPONSE: (
        Layout.XENSTORE_DOMAIN_INTERFACE_rsp_cons,
        Layout.XENSTORE_DOMAIN_INTERFACE_rsp_prod,
    ),
}
"""Ring to where its consumer and producer lie in the page."""
_MODIFY = {1: mm.mod_l1_entry, 2: mm.mod_l2_entry, 3: mm.mod_l3_entry, 4: mm.mod_l4_entry}


def apply(machine: Machine, injection: Injection) -> None:
    """Do what a fault says, and record it. Raises FaultError, and then nothing is changed."""
    machine.toolstack.settle()
    domain = _domain(machine, injection.values["domain"])
    vcpu = domain.vcpus[0]
    number = injection.values.get("vcpu", 0)
    if number:
        if number >= len(domain.vcpus):
            raise FaultError(f"{domain.name} has vCPUs 0 to {len(domain.vcpus) - 1}, not {number}")
        vcpu = domain.vcpus[number]
    _EFFECTS[injection.kind.number](machine, vcpu, injection)


def _domain(machine: Machine, name: str) -> Domain:
    for domain in machine.domains:
        if domain.name == name and not domain.dying:
            return domain
    raise FaultError(f"no domain {name!r}; there is {', '.join(domain.name for domain in machine.domains) or 'none'}")


def _fail(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    number, error = HYPERCALLS[injection.values["hypercall"]], ERRNOS[injection.values["error"][1:]]
    record(machine, vcpu, injection, number, error)
    CallSnare(machine, injection, vcpu.domain, number, error).arm()


# --- events --------------------------------------------------------------------------------------------------------


def _port(domain: Domain, port: int) -> int:
    """A port that is in use."""
    used = domain.events.used()
    if port not in used:
        raise FaultError(f"{domain.name} has no port {port} in use; there is {', '.join(map(str, used)) or 'none'}")
    return port


def _send_event(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    events, port = vcpu.domain.events, _port(vcpu.domain, injection.values["port"])
    record(machine, vcpu, injection, port)
    events.set_pending(port)


def _mask(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    port = _port(vcpu.domain, injection.values["port"])
    vcpu.domain.events.abi.mask(port)
    record(machine, vcpu, injection, port)


def _drop_event(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    _intercept(machine, vcpu, injection, lambda port, deliver: True)


def _delay_event(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    def late(port: int, deliver: Callable[[int], bool]) -> bool:
        later(machine, vcpu.domain, port, injection.values["time"], deliver)
        return True

    _intercept(machine, vcpu, injection, late)


def _duplicate_event(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    def twice(port: int, deliver: Callable[[int], bool]) -> bool:
        later(machine, vcpu.domain, port, injection.values["time"], deliver)
        return deliver(port)

    _intercept(machine, vcpu, injection, twice)


def _intercept(
    machine: Machine, vcpu: Vcpu, injection: Injection, effect: Callable[[int, Callable[[int], bool]], bool]
) -> None:
    """Put `effect(port, deliver)` in the way of a port's events."""
    port = _port(vcpu.domain, injection.values["port"])
    record(machine, vcpu, injection, port)
    EventSnare(machine, injection, vcpu.domain, port, effect).arm()


# --- the processor -------------------------------------------------------------------------------------------------


def _exception(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    values = injection.values
    name = values["vector"]
    vector = name if isinstance(name, int) else VECTORS[name]
    record(machine, vcpu, injection, vector, values["error"], values["address"])
    ExceptionSnare(machine, injection, vcpu, vector).arm()


def _nmi(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    vcpu.nmi_pending = True
    record(machine, vcpu, injection)
    schedule.kick(vcpu)


def _flip_register(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    name, bit = injection.values["register"], injection.values["bit"]
    if bit >= vcpu.width or (name == "rflags" and not FREE_FLAGS >> bit & 1):
        raise FaultError(f"bit {bit} of {name} is not {vcpu.domain.name}'s to have: it is a {vcpu.width}-bit guest")
    if vcpu.width == 32 and name[1:].isdigit():
        raise FaultError(f"a 32-bit guest has no {name}")
    if name == "cr2":
        old = int.from_bytes(vcpu.info[_cr2(vcpu)], "little")
        vcpu.set_cr2(old ^ 1 << bit)
    elif vcpu.boot_registers:
        old = vcpu.boot_registers.get(name, 0)
        vcpu.boot_registers[name] = old ^ 1 << bit
    else:
        old = _flip_in_state(vcpu, name, bit)
    record(machine, vcpu, injection, bit, old, old ^ 1 << bit)


def _cr2(vcpu: Vcpu) -> slice:
    return slice(16, 24) if vcpu.width == 64 else slice(8, 12)


def _flip_in_state(vcpu: Vcpu, name: str, bit: int) -> int:
    """Change a register where it lies, in the processor or put aside; what it was."""
    state = live_state(vcpu)
    if name == "rflags":
        old = vcpu.processor.flags_of(state)
        set_flags(state, old ^ 1 << bit)
    else:
        old = state.q[INDEX[name]]
        state.q[INDEX[name]] = old ^ 1 << bit
    keep(vcpu, state)
    return old


# --- memory --------------------------------------------------------------------------------------------------------


def _address(vcpu: Vcpu, injection: Injection) -> int:
    try:
        return address_of(vcpu, injection.values["address"])
    except ViewError as error:
        raise FaultError(str(error)) from None


def _flip_memory(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    bit = injection.values["bit"]
    address = _address(vcpu, injection) + (bit >> 3)
    offset, _ = translate(vcpu, address)
    if offset < 0 or not handle_okay(vcpu, address, 1):
        raise FaultError(f"{vcpu.domain.name} has nothing mapped at {address:#x}")
    frames, mfn = machine.hv.frames, offset >> 12
    if frames.owner[mfn] in (DOMID_XEN, DOMID_INVALID):
        raise FaultError(f"{address:#x} is no guest's memory: {frames.describe(mfn)}")
    if L1 <= frames.type[mfn] <= SEG and frames.type_count[mfn]:
        what = "a page table: flip … pte or raw-pte" if frames.type[mfn] <= L4 else "a page of descriptors"
        raise FaultError(f"{address:#x} lies in {what}")
    machine.hv.ram[offset] ^= 1 << (bit & 7)
    vcpu.processor.flush_code()
    record(machine, vcpu, injection, address, bit & 7, offset)


def _entry(machine: Machine, vcpu: Vcpu, injection: Injection) -> tuple[int, int]:
    """(index in `ram64` of the page-table entry that is meant, its contents with the bit changed)."""
    level, address = injection.values["level"], _address(vcpu, injection)
    if level == 4 and vcpu.width == 32:
        raise FaultError("a 32-bit guest has three levels of page tables")
    index = vcpu.space.entry_at(address, level)
    own = handle_okay(vcpu, address, 1) and index >= 0 and machine.hv.frames.owner[index >> 9] == vcpu.domain.id
    if not own:
        raise FaultError(f"{vcpu.domain.name} has no L{level} entry of its own for {address:#x}")
    return index, machine.hv.ram64[index] ^ 1 << injection.values["bit"]


def _flip_pte(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    """As if the guest had asked by mmu_update."""
    index, new = _entry(machine, vcpu, injection)
    old, level = machine.hv.ram64[index], injection.values["level"]
    if vcpu.domain.validated:
        result = _MODIFY[level](vcpu, index, new)
    else:
        result = unchecked.write_entry(vcpu, index, new, level)
    injection.result = refusals.record(vcpu, result) if result else 0
    vcpu.domain.flush_tlb()
    record(machine, vcpu, injection, index << 3, old, new)


def _flip_raw_pte(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    """Nobody is asked. The frame table then no longer says what the tables do, so that nobody is asked later either:
    unless the bit is one that the validator does not look at, the domain goes on without it."""
    index, new = _entry(machine, vcpu, injection)
    hv, domain = machine.hv, vcpu.domain
    old, mfn = hv.ram64[index], (new & FRAME_MASK) >> 12
    if new & PRESENT and (mfn >= hv.frames.count or hv.frames.owner[mfn] in (DOMID_XEN, DOMID_INVALID)):
        raise FaultError(f"the entry would map what is no guest's: {hv.frames.describe(mfn)}")
    if injection.values["level"] > 1 and (old ^ new) & (FRAME_MASK | PRESENT | PSE) and new & PRESENT:
        raise FaultError("the entry would take a frame for a page table, or memory that may be anybody's for one page")
    hv.ram64[index] = new
    if domain.validated and (old ^ new) & (mm.L1_CHECKED | PRESENT | RW):
        unchecked.switch_off(domain)
    domain.flush_tlb()
    record(machine, vcpu, injection, index << 3, old, new)


def _no_validator(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    if not vcpu.domain.validated:
        raise FaultError(f"{vcpu.domain.name} has no validator any more")
    unchecked.switch_off(vcpu.domain)
    record(machine, vcpu, injection)


def _squeeze(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    """As `xl mem-set` does: a lower limit, and the wish in xenstore, which a balloon driver watches."""
    domain, mib = vcpu.domain, injection.values["mib"]
    if not 0 < mib << 8 <= domain.max_pages:
        raise FaultError(f"{domain.name} has at most {domain.max_pages >> 8} MiB and needs 1")
    old, domain.max_pages = domain.max_pages, mib << 8
    machine.toolstack.store.write(f"/local/domain/{domain.id}/memory/target", str(mib << 10))
    record(machine, vcpu, injection, domain.max_pages, old)


# --- grants and rings ----------------------------------------------------------------------------------------------


def _revoke_grant(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    """As the granter itself would, by writing its table (Linux: gnttab_end_foreign_access_ref)."""
    domain, reference = vcpu.domain, injection.values["reference"]
    table = domain.grants
    granted = [number for number in range(table.entries) if _grant_flags(domain, number) & GTF_type_mask]
    if reference not in granted:
        shown = ", ".join(map(str, granted[:16])) + (", …" if len(granted) > 16 else "")
        raise FaultError(f"{domain.name} grants no reference {reference}; there is {shown or 'none'}")
    offset, flags = table.offset(reference), _grant_flags(domain, reference)
    machine.hv.ram[offset : offset + 2] = b"\0\0"
    record(machine, vcpu, injection, reference, flags)


def _grant_flags(domain: Domain, reference: int) -> int:
    """The flags of a grant entry, which both versions begin with."""
    offset = domain.grants.offset(reference)
    return int.from_bytes(domain.hv.ram[offset : offset + 2], "little")


def _corrupt_ring(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    domain, values = vcpu.domain, injection.values
    ring = RINGS[values["ring"]]
    console = ring in (SharedRing.CONSOLE_IN, SharedRing.CONSOLE_OUT)
    frame = domain.console_frame if console else domain.store_frame
    offset = (frame << 12) + _RING_INDICES[ring][values["index"] == "producer"]
    old = int.from_bytes(machine.hv.ram[offset : offset + 4], "little")
    machine.hv.ram[offset : offset + 4] = (values["number"] & s.MASK32).to_bytes(4, "little")
    record(machine, vcpu, injection, offset, old, values["number"])


# --- time and life -------------------------------------------------------------------------------------------------


def _steal(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    """The processor is somebody else's for a while: no vCPU of the domain runs."""
    domain = vcpu.domain
    control.pause(domain)
    injection.waits = True

    def give_back() -> None:
        injection.waits = False
        if not domain.dying and domain.paused:  # else somebody has unpaused it before its time
            control.unpause(domain)

    record(machine, vcpu, injection, injection.values["time"])
    machine.hv.timers.set(give_back, machine.now() + injection.values["time"], give_back)


def _wall_clock(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    domain, offset = vcpu.domain, injection.values["offset"]
    domain.wall_clock_offset += offset
    time.update_wall_clock(domain)
    record(machine, vcpu, injection, offset)


def _pause(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    control.pause(vcpu.domain)
    record(machine, vcpu, injection)


def _unpause(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    if not vcpu.domain.paused:
        raise FaultError(f"{vcpu.domain.name} is not paused")
    control.unpause(vcpu.domain)
    record(machine, vcpu, injection)


def _disarm(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    count = disarm(machine, vcpu.domain)
    if not count:
        raise FaultError(f"nothing lies in wait for {vcpu.domain.name}")
    record(machine, vcpu, injection, count)


def _crash(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    domain = vcpu.domain
    if domain.shutdown_code is not None:
        raise FaultError(f"{domain.name} has ended already")
    record(machine, vcpu, injection)
    control.crash(domain, "a crash was injected")
    machine.toolstack.settle()


def _destroy(machine: Machine, vcpu: Vcpu, injection: Injection) -> None:
    record(machine, vcpu, injection)
    machine.toolstack.destroy(vcpu.domain)


_EFFECTS: dict[int, Callable[[Machine, Vcpu, Injection], None]] = {
    Fault.FAIL: _fail,
    Fault.DROP_EVENT: _drop_event,
    Fault.DELAY_EVENT: _delay_event,
    Fault.DUPLICATE_EVENT: _duplicate_event,
    Fault.SEND_EVENT: _send_event,
    Fault.MASK: _mask,
    Fault.EXCEPTION: _exception,
    Fault.NMI: _nmi,
    Fault.FLIP_REGISTER: _flip_register,
    Fault.FLIP_MEMORY: _flip_memory,
    Fault.FLIP_PTE: _flip_pte,
    Fault.FLIP_RAW_PTE: _flip_raw_pte,
    Fault.REVOKE_GRANT: _revoke_grant,
    Fault.STEAL: _steal,
    Fault.WALL_CLOCK: _wall_clock,
    Fault.SQUEEZE: _squeeze,
    Fault.CORRUPT_RING: _corrupt_ring,
    Fault.PAUSE: _pause,
    Fault.UNPAUSE: _unpause,
    Fault.CRASH: _crash,
    Fault.DESTROY: _destroy,
    Fault.NO_VALIDATOR: _no_validator,
    Fault.DISARM: _disarm,
}
