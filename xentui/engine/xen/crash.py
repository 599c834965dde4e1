"""The end of a misbehaving domain: its registers to the hypervisor's log, in Xen's style (x86_64/traps.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind
from xentui.engine.x86 import state as s
from xentui.engine.x86.paging import FRAME_MASK, PRESENT, flag_names
from xentui.engine.xen import guest_access
from xentui.engine.xen.abi.sched import SHUTDOWN_crash
from xentui.engine.xen.hypervisor import VERSION_EXTRA, VERSION_MAJOR, VERSION_MINOR
from xentui.engine.xen.vcpu_context import state_of

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Vcpu

_STACK_WORDS, _WORDS_A_LINE = 32, 4


def domain_crash(vcpu: Vcpu, reason: str) -> None:
    """Take the domain down for good, and say why."""
    domain, hv = vcpu.domain, vcpu.hv
    if domain.shutdown_code is not None:
        return
    domain.crash_reason = reason
    hv.log(f"domain_crash called: {reason}")
    log_registers(vcpu)
    domain.shutdown_code = SHUTDOWN_crash
    domain.crashed_vcpu = vcpu
    state = state_of(vcpu)
    hv.put(
        hv.clock.now(), state.q[s.RIP], Kind.DOMAIN_CRASH, vcpu.id, domain.id, SHUTDOWN_crash,
        state.q[s.CR2], state.i[s.ERROR_CODE], 0, 0, 0,
    )  # fmt: skip
    hv.reschedule()
    if domain.on_shutdown:
        domain.on_shutdown(domain)


def log_registers(vcpu: Vcpu) -> None:
    """A vCPU's registers and stack to the log, at the end of its domain."""
    hv = vcpu.hv
    hv.log(f"Domain {vcpu.domain.id} ({vcpu.domain.name}) crashed:")
    for line in register_dump(vcpu):
        hv.log(line)


def register_dump(vcpu: Vcpu) -> list[str]:
    """What real Xen prints of a crashed vCPU: registers, control registers, the page walk of RIP, and its stack."""
    state = state_of(vcpu)
    q, i = state.q, state.i
    kernel = vcpu.kernel_mode if vcpu.width == 64 else i[s.HFLAGS] & s.HF_CPL == 1
    mode = "kernel" if kernel else "user"
    lines = [
        f"----[ Xen-{VERSION_MAJOR}.{VERSION_MINOR}{VERSION_EXTRA}  x86_64  (emulated)  {vcpu.width}-bit guest ]----",
        f"CPU:    0   {vcpu.name} ({mode} mode)",
        f"RIP:    {i[s.CS] & 0xFFFF:04x}:[<{q[s.RIP]:016x}>]",
        f"RFLAGS: {vcpu.processor.flags_of(state):016x}   EM: {vcpu.info[1]}   CONTEXT: pv guest ({vcpu.name})",
    ]
    names = (
        (("rax", s.RAX), ("rbx", s.RBX), ("rcx", s.RCX)),
        (("rdx", s.RDX), ("rsi", s.RSI), ("rdi", s.RDI)),
        (("rbp", s.RBP), ("rsp", s.RSP), ("r8", s.R8)),
        (("r9", s.R9), ("r10", s.R10), ("r11", s.R11)),
        (("r12", s.R12), ("r13", s.R13), ("r14", s.R14)),
    )
    lines += ["   ".join(f"{name + ':':<4} {q[index]:016x}" for name, index in row) for row in names]
    lines.append(
        f"r15: {q[s.R15]:016x}   cr0: {q[s.CR0]:016x}   cr4: {q[s.CR4]:016x}",
    )
    lines.append(f"cr3: {q[s.CR3]:016x}   cr2: {q[s.CR2]:016x}")
    selectors = (("ds", s.DS), ("es", s.ES), ("fs", s.FS), ("gs", s.GS), ("ss", s.SS), ("cs", s.CS))
    lines.append(f"fsb: {q[s.FS_BASE]:016x}   gsb: {q[s.GS_BASE]:016x}   gss: {vcpu.inactive_gs_base:016x}")
    lines.append("   ".join(f"{name}: {i[index] & 0xFFFF:04x}" for name, index in selectors))
    lines += page_walk(vcpu, q[s.RIP]) + stack_trace(vcpu, q[s.RSP])
    return lines


def page_walk(vcpu: Vcpu, address: int) -> list[str]:
    """Each level's entry on the way to `address`, as Xen's show_page_walk prints it."""
    lines = [f"Pagetable walk from {address:016x}:"]
    space = vcpu.space
    for level in (4, 3, 2, 1):
        index = space.entry_at(address, level)
        if index < 0:
            break
        entry = space.ram64[index]
        mfn = (entry & FRAME_MASK) >> 12
        known = vcpu.hv.frames.owner[mfn] == vcpu.domain.id if mfn < len(vcpu.hv.frames.owner) else False
        pfn = vcpu.hv.get_m2p(mfn) if entry & PRESENT and known else 0xFFFF_FFFF_FFFF_FFFF
        lines.append(f" L{level}[0x{index & 511:03x}] = {entry:016x} {pfn:016x}  {flag_names(entry)}")
        if not entry & PRESENT:
            break
    return lines


def stack_trace(vcpu: Vcpu, pointer: int) -> list[str]:
    """The words at the top of the guest's stack, to which `pointer` points, or where reading them faulted."""
    size = vcpu.width // 8
    top = pointer & (s.MASK64 if size == 8 else s.MASK32)
    lines = [f"Guest stack trace from rsp={top:016x}:"]
    words: list[str] = []
    for number in range(_STACK_WORDS):
        try:
            where = top + number * size & s.MASK64
            if not guest_access.handle_okay(vcpu, where, size):
                raise guest_access.GuestFault(where)
            word = guest_access.read(vcpu, where, size)
        except guest_access.GuestFault as fault:
            words.append(f"(fault at {fault.address:016x})")
            break
        words.append(f"{int.from_bytes(word, 'little'):0{size * 2}x}")
    for start in range(0, len(words), _WORDS_A_LINE):
        lines.append("   " + " ".join(words[start : start + _WORDS_A_LINE]))
    return lines
