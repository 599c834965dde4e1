"""Guests that do their worst: each costs its own domain at most, and the one beside it does not notice."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest

from tests.command import Done, record
from tests.tiny_kernels import BASE, CODE, DATA, FOREVER, HYPERVISOR, MEMORY, UNDEFINED, Tiny
from xentui.engine.trace import Kind
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64

WIDTHS = (32, 64)
TABLE_SIZE = 64
"""Hypercall numbers that Xen's table has."""
FRAME_NUMBER = re.compile(r"in machine frame [0-9a-f]+")


def beside_hello(tmp_path: Path, hostile: dict[str, Tiny], *options: str) -> Done:
    """Run guests with hello64 beside them, which must say what it says when it is alone."""
    paths = [kernel.write(tmp_path / name) for name, kernel in hostile.items()]
    typed = ("--input", r"spam\ninfo\npoweroff\n", "--prompt", "^> $", "--memory", str(MEMORY))
    done = record(tmp_path / "out.xtrace", "hello64", *paths, *typed, *options)
    alone = record(tmp_path / "alone.xtrace", "hello64", *typed)
    beside = [line.removeprefix("hello64: ") for line in done.lines if line.startswith("hello64: ")]
    assert FRAME_NUMBER.sub("", "\n".join(beside)) == FRAME_NUMBER.sub("", "\n".join(alone.lines))
    assert beside[-1] == "Goodbye."
    assert done.status in (0, 1, 3)
    return done


def assert_register_dump(errors: str, name: str) -> None:
    """The log has the reason, the registers, the page walk and the stack of a domain, as Xen prints them."""
    log = re.sub(r"^\(XEN\) \[ *\d+\.\d{6}\] ", "", errors, flags=re.M)
    match = re.search(rf"^domain_crash called: .+\nDomain \d+ \({name}\) crashed:\n((?:.+\n)*?(?:   .+\n)+)", log, re.M)
    assert match is not None, errors
    dump = match[1]
    assert re.search(r"^----\[ Xen-4\.17\S*  x86_64 ", dump)
    assert re.search(r"^RIP:    [0-9a-f]{4}:\[<[0-9a-f]{16}>\]$", dump, re.M)
    assert re.search(r"^rax: [0-9a-f]{16}   rbx: [0-9a-f]{16}   rcx: [0-9a-f]{16}$", dump, re.M)
    assert re.search(r"^cr3: [0-9a-f]{16}   cr2: [0-9a-f]{16}$", dump, re.M)
    assert re.search(r"^Pagetable walk from [0-9a-f]{16}:\n L4\[0x[0-9a-f]{3}\] = ", dump, re.M)
    assert re.search(r"^Guest stack trace from rsp=[0-9a-f]+:$", dump, re.M)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_crash_of_its_own_will_shows_the_registers(tmp_path: Path, width: int) -> None:
    kernel = Tiny(width).shut_down(3).write(tmp_path / "kernel")
    done = record(tmp_path / "out.xtrace", kernel, "--memory", str(MEMORY))
    log = re.sub(r"^\(XEN\) \[ *\d+\.\d{6}\] ", "", done.errors, flags=re.M)
    assert done.status == 1
    assert re.search(r"^Domain 1 \(kernel\) crashed:\n----\[ Xen-4\.17.*\n(?:.+\n)*RIP: ", log, re.M), log
    assert "domain_crash called" not in log


# --- one wrong step -------------------------------------------------------------------------------------------------


def stackless(width: int) -> Tiny:
    """Unmaps the page that its stack is in, and faults; there is a handler, but nowhere to put the frame."""
    kernel = Tiny(width)
    page = BASE[width] + DATA + 0x1000
    kernel.place(bytes(0x2000))
    return kernel.traps((6, 13, 14), kernel.here).stack(page + 0x1000).map(page, 0).do(UNDEFINED)


def recursive(width: int) -> Tiny:
    """A handler for #UD that begins with ud2: bounce frames down the stack until it ends."""
    kernel = Tiny(width)
    start = len(kernel.code)
    kernel.traps((6,), kernel.here)
    handler = kernel.here
    del kernel.code[start:]
    kernel.data.clear()
    return kernel.traps((6,), handler).do(UNDEFINED)


def bad_stack(width: int, address: int) -> Tiny:
    """Has a handler, puts the stack pointer somewhere bad, and faults."""
    kernel = Tiny(width)
    return kernel.traps((6, 12, 13, 14), BASE[width] + CODE).stack(address).do(UNDEFINED)


def codeless(width: int) -> Tiny:
    """Takes its own code away under its feet."""
    return Tiny(width).map(BASE[width] + CODE, 0).do(b"\x90" * 4)


def wrong_steps(width: int) -> dict[str, Tiny]:
    """Kernels that do one thing no kernel survives, by name."""
    slot = HYPERVISOR[width]
    jump, store, load = b"\xff\xe0", b"\x48\x89\x00"[width == 32 :], b"\x48\x8b\x00"[width == 32 :]
    steps = {
        "untrapped": Tiny(width).do(UNDEFINED),
        "unmapped": Tiny(width).accumulator(0x1000).do(load),
        "jump-to-xen": Tiny(width).accumulator(slot).do(jump),
        "store-to-xen": Tiny(width).accumulator(slot).do(store),
        "stackless": stackless(width),
        "recursive": recursive(width),
        "codeless": codeless(width),
        "stack-in-xen": bad_stack(width, slot + 0x800),
        "stack-at-0": bad_stack(width, 0),
        "halt": Tiny(width).do(b"\xf4"),
        "lgdt": Tiny(width).accumulator(BASE[width] + DATA).do(b"\x0f\x01\x10"),
        "lidt": Tiny(width).accumulator(BASE[width] + DATA).do(b"\x0f\x01\x18"),
        "load-cr3": Tiny(width).accumulator(0).do(b"\x0f\x22\xd8"),
        "ltr": Tiny(width).accumulator(0x28).do(b"\x0f\x00\xd8"),
        "data-selector": Tiny(width).accumulator(0x1238).do(b"\x8e\xd8"),
        "stack-selector": Tiny(width).accumulator(0x0010).do(b"\x8e\xd0"),
        "interrupt-gate": Tiny(width).do(b"\xcd\x20"),
        "double-fault-gate": Tiny(width).do(b"\xcd\x08"),
        "single-step": Tiny(width).do(b"\x68\0\x01\0\0\x9d\x90\x90"),
        "overflowing-rep": Tiny(width).do(b"\xb9\xff\xff\xff\xff\xbf\0\0\0\0\xf3\xaa"),
        "privileged-in-user": Tiny(width).do(b"\x0f\x30"),
    }
    if width == 64:
        steps["stack-not-canonical"] = bad_stack(64, 0x8000_0000_0000_0000)
        steps["jump-not-canonical"] = Tiny(64).accumulator(0x1234_5678_9ABC_DEF0).do(jump)
        steps["sysret"] = Tiny(64).do(b"\x48\x0f\x07")
        steps["swapgs"] = Tiny(64).do(b"\x0f\x01\xf8")
    else:
        steps["far-jump"] = Tiny(32).do(b"\xea\0\0\0\0\x08\xe0")
        steps["virtual-8086"] = Tiny(32).do(b"\x68\x02\0\x02\0\x9d\xcd\x82")
        steps["sysenter"] = Tiny(32).do(b"\x0f\x34")
    return steps


@pytest.mark.parametrize("width", WIDTHS)
def test_wrong_steps_cost_their_own_domain(tmp_path: Path, width: int) -> None:
    steps = wrong_steps(width)
    for kernel in steps.values():
        kernel.shut_down()
    done = beside_hello(tmp_path, steps, "--for", "10s")
    for name in steps:
        assert re.search(rf"^\(XEN\) {name}: (crash: \S|poweroff$)", done.errors, re.M), (name, done.errors)
    harmless = {name for name in steps if f"(XEN) {name}: poweroff" in done.errors}
    assert harmless <= {"virtual-8086", "sysenter", "swapgs"}
    for name in steps.keys() - harmless:
        assert_register_dump(done.errors, name)
    assert done.status == 1


@pytest.mark.parametrize("pace", ["exact", "fast"])
@pytest.mark.parametrize("width", WIDTHS)
def test_endless_loops_leave_time_for_others(tmp_path: Path, width: int, pace: str) -> None:
    loops = {
        "loop": Tiny(width).do(FOREVER),
        "yield": Tiny(width).call(nr.HYPERCALL_sched_op, 0, 0).do(b"\xeb"),
        "version": Tiny(width).call(nr.HYPERCALL_xen_version, 0, 0).do(b"\xeb"),
        "bad-pointer": Tiny(width).call(nr.HYPERCALL_mmu_update, 0x1000, 1, 0, 0x7FF0).do(b"\xeb"),
    }
    for kernel in loops.values():
        if not kernel.code.endswith(FOREVER):
            kernel.do((-len(kernel.code) - 1 & 0xFF).to_bytes(1, "little"))
    enough = "300ms" if pace == "exact" else "2s"  # of the host's time, which others may want too
    done = beside_hello(tmp_path, loops, "--for", enough, "--pace", pace)
    assert done.status == 3
    with done.read() as recording:
        domains = recording.columns("domain")[recording.columns("kind") == Kind.SCHEDULE]
        assert set(range(1, 2 + len(loops))) <= set(domains.tolist())


# --- garbage to every hypercall -------------------------------------------------------------------------------------


def interesting(chance: random.Random, kernel: Tiny) -> int:
    """A number that some hypercall may take for a pointer, a frame, a port, a command, a domain or a count."""
    width = kernel.width
    data = BASE[width] + DATA
    return chance.choice(
        [
            lambda: chance.randrange(16),
            lambda: chance.randrange(16),
            lambda: data + chance.randrange(0x2000),
            lambda: data + 16 * chance.randrange(0x200),
            lambda: data + 16 * chance.randrange(0x200),
            lambda: data + 0x1000 * chance.randrange(4) - chance.randrange(12),
            lambda: chance.randrange(0x4000),
            lambda: chance.choice([0x7FF0, 0x7FF1, 0x7FF2, 0x7FF4, 0x7FFF]),
            lambda: HYPERVISOR[width] + 8 * chance.randrange(0x4000),
            lambda: BASE[width] + 0x1000 * chance.randrange(0x1000),
            lambda: 1 << chance.randrange(64),
            lambda: (1 << chance.randrange(64)) - 1,
            lambda: -chance.randrange(1, 0x1000),
            lambda: chance.getrandbits(64),
            lambda: chance.getrandbits(32),
            lambda: chance.randrange(0x4000) << 12 | chance.getrandbits(12),
        ]
    )()


def garbage(width: int, seed: int, calls: int) -> Tiny:
    """Calls every hypercall number, in a random order, with interesting arguments in registers and in memory."""
    chance = random.Random(seed)
    kernel = Tiny(width)
    words = (interesting(chance, kernel) & (1 << 64) - 1 for _ in range(0x2000 // 8))
    kernel.place(b"".join(word.to_bytes(8, "little") for word in words))
    numbers = [*range(TABLE_SIZE), 64, 127, 128, 255, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]
    ends = {nr.HYPERCALL_iret, nr.HYPERCALL_sched_op, nr.HYPERCALL_sched_op_compat}
    order: list[int] = []
    while len(order) < calls:
        order += chance.sample(numbers, len(numbers))
    # what ends or blocks a domain comes last
    for number in [number for number in order if number not in ends]:
        kernel.call(number, *(interesting(chance, kernel) for _ in range(5)))
    for number in chance.sample(sorted(ends), len(ends)):
        kernel.call(number, *(interesting(chance, kernel) for _ in range(5)))
    return kernel.shut_down()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", WIDTHS)
def test_garbage_to_every_hypercall(tmp_path: Path, width: int, seed: int) -> None:
    guests = {f"garbage-{n}": garbage(width, 1000 * seed + n, 200) for n in range(12)}
    done = beside_hello(tmp_path, guests, "--for", "3s", "--seed", str(seed))
    with done.read() as recording:
        chosen = (recording.columns("kind") == Kind.HYPERCALL) & (recording.columns("domain") > 1)
        numbers = recording.columns("number")[chosen]
        assert set(range(TABLE_SIZE)) <= set(numbers.tolist())
        assert len(numbers) > 500, "guests die too early for this to be a test"
        results = recording.columns("result")[chosen].view(np.int64)
        assert np.count_nonzero(results == 0) > 20, "some of it succeeds"


# --- garbage in shared pages ----------------------------------------------------------------------------------------


def ring_scribbler(width: int, seed: int) -> Tiny:
    """Overwrites its console and xenstore rings with random bytes, again and again, and sends their events."""
    chance = random.Random(seed)
    kernel = Tiny(width)
    layout = LAYOUT64 if width == 64 else LAYOUT32
    pairs = (
        (layout.START_INFO_console_domU_mfn, layout.START_INFO_console_domU_evtchn),
        (layout.START_INFO_store_mfn, layout.START_INFO_store_evtchn),
    )
    port = kernel.place(bytes(16))
    wide = width == 64
    for turn in range(8):
        noise = kernel.place(b"".join(noise_word(chance) for _ in range(1024)))
        mfn, channel = pairs[turn % 2]
        if wide:  # RBX: start_info; RDI: the ring, by the M2P
            kernel.do(b"\x48\x89\xf3" if turn == 0 else b"")  # mov rbx, rsi
            kernel.do(b"\x48\x8b\x83" + mfn.to_bytes(4, "little"))  # mov rax, [rbx + mfn]
            kernel.do(b"\x48\xb9" + kernel.word(HYPERVISOR[64]) + b"\x48\x8b\x3c\xc1")  # mov rdi, [m2p + rax * 8]
            kernel.do(b"\x48\xc1\xe7\x0c\x48\xb8" + kernel.word(BASE[64]) + b"\x48\x01\xc7")  # shl rdi, 12; add base
            kernel.do(b"\x48\xbe" + kernel.word(noise) + b"\xb9\0\x04\0\0\xf3\xa5")  # mov rsi; mov ecx; rep movsd
            kernel.do(b"\x8b\x83" + channel.to_bytes(4, "little"))  # mov eax, [rbx + channel]
            kernel.do(b"\x48\xb9" + kernel.word(port) + b"\x89\x01")  # mov [port], eax
        else:  # EBP: start_info
            kernel.do(b"\x89\xf5" if turn == 0 else b"")  # mov ebp, esi
            kernel.do(b"\x8b\x85" + mfn.to_bytes(4, "little"))  # mov eax, [ebp + mfn]
            kernel.do(b"\xb9" + kernel.word(HYPERVISOR[32]) + b"\x8b\x3c\x81")  # mov edi, [m2p + eax * 4]
            kernel.do(b"\xc1\xe7\x0c\x81\xc7" + kernel.word(BASE[32]))  # shl edi, 12; add edi, base
            kernel.do(b"\xbe" + kernel.word(noise) + b"\xb9\0\x04\0\0\xf3\xa5")
            kernel.do(b"\x8b\x85" + channel.to_bytes(4, "little"))
            kernel.do(b"\xb9" + kernel.word(port) + b"\x89\x01")
        kernel.call(nr.HYPERCALL_event_channel_op, 4, port)  # EVTCHNOP_send
    return kernel.shut_down()


def noise_word(chance: random.Random) -> bytes:
    """Four bytes of a shared page: small numbers more often than not, so that indices and lengths are believed."""
    return chance.choice([0, 1, 16, 1000, 1024, 4096, chance.getrandbits(12), chance.getrandbits(32)]).to_bytes(
        4, "little"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_garbage_in_the_rings(tmp_path: Path, width: int) -> None:
    guests = {f"scribbler-{n}": ring_scribbler(width, n) for n in range(8)}
    done = beside_hello(tmp_path, guests, "--for", "3s")
    for name in guests:
        assert f"(XEN) {name}: poweroff" in done.errors, done.errors
    with done.read() as recording:
        sent = recording.columns("domain")[recording.columns("kind") == Kind.EVENT_SEND]
        assert all(np.count_nonzero(sent == domain) >= 8 for domain in range(2, 2 + len(guests)))
