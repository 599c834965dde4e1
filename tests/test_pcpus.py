"""Several physical processors: what they share, who runs on which, and that a run with them is as exact as with one."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_kernels import BASE, FOREVER, MEMORY, Tiny
from xentui.config import ConfigError, GuestSpec, resolve_guest
from xentui.engine import pcpus, trace
from xentui.engine.actions import Action, ActionError
from xentui.engine.dom0 import info
from xentui.engine.machine import Machine, Stop
from xentui.engine.trace import Kind
from xentui.engine.xen import cpulist, guest_access
from xentui.engine.xen.abi import vcpu as vcpu_abi
from xentui.engine.xen.abi.arch_x86 import VGCF_in_kernel
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.domain import RUNNING, Domain
from xentui.engine.xen.sched import POLICIES
from xentui.engine.xen.vcpu_op import do_vcpu_op

MS = 1_000_000
EACH = pytest.mark.parametrize("policy", POLICIES)
BOTH = pytest.mark.parametrize("width", (32, 64))


def spinning(tmp_path: Path, machine: Machine, weights: list[int], cpus: list[str] | None = None) -> list[Domain]:
    """Domains that compute for ever."""
    machine.strict = True
    domains = []
    for number, weight in enumerate(weights):
        kernel = Tiny((32, 64)[number & 1]).do(FOREVER).write(tmp_path / f"spin{number}")
        spec = GuestSpec(
            f"spin{number}", kernel, memory=MEMORY, cpu_weight=weight, cpus=cpus[number] if cpus else "all"
        )
        domains.append(machine.create(spec))
    return domains


def times(machine: Machine, domains: list[Domain]) -> list[float]:
    """What part of the time each domain ran."""
    return [info.cpu_time(domain, machine.now()) / machine.now() for domain in domains]


# --- who runs where ----------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("pace", ["exact", "fast"])
def test_as_many_as_there_are_processors_run_all_the_time(tmp_path: Path, policy: str, pace: str) -> None:
    with Machine(4 * MEMORY, cpus=3, scheduler=policy, pace=pace) as machine:
        domains = spinning(tmp_path, machine, [256, 512, 256])
        machine.run(machine.now() + 10 * MS)
        start, before = machine.now(), [info.cpu_time(domain, machine.now()) for domain in domains]
        assert machine.run(start + 100 * MS) == Stop.TIME
        ran = [info.cpu_time(domain, machine.now()) - past for domain, past in zip(domains, before, strict=True)]
        assert all(time > 0.98 * (machine.now() - start) for time in ran)
        assert {vcpu.pcpu for domain in domains for vcpu in domain.vcpus} == {0, 1, 2}
        assert [line["state"] for line in info.domains(machine)] == ["r-----"] * 3


@EACH
def test_two_processors_are_shared_by_weight(tmp_path: Path, policy: str) -> None:
    with Machine(4 * MEMORY, cpus=2, scheduler=policy) as machine:
        machine.scheduler.adjust(None, **{"slice" if policy == "credit" else "context_switch_allowance": 2 * MS})
        domains = spinning(tmp_path, machine, [128, 128, 256])
        machine.run(600 * MS)
        shares = times(machine, domains)
        assert sum(shares) > 1.98
        assert [round(share, 1) for share in shares] == [0.5, 0.5, 1.0]


@EACH
def test_a_vcpu_stays_where_it_is_pinned(tmp_path: Path, policy: str) -> None:
    with Machine(4 * MEMORY, cpus=2, scheduler=policy) as machine:
        domains = spinning(tmp_path, machine, [256] * 3, ["1", "1", "all"])
        machine.run(200 * MS)
        assert [round(share, 1) for share in times(machine, domains)] == [0.5, 0.5, 1.0]
        assert [domain.vcpus[0].pcpu for domain in domains] == [1, 1, 0]
        assert [line["hard_affinity"] for domain in domains for line in info.vcpus(machine, domain)] == [
            "1",
            "1",
            "all",
        ]

        before = [info.cpu_time(domain, machine.now()) for domain in domains]
        machine.apply(Action("pin", "spin0", (0, "0")))
        machine.apply(Action("pin", "spin2", ("all", "0")))
        machine.run(machine.now() + 200 * MS)
        ran = [info.cpu_time(domain, machine.now()) - past for domain, past in zip(domains, before, strict=True)]
        assert [round(time / 200 / MS, 1) for time in (ran[1], ran[0] + ran[2])] == [1.0, 1.0]
        assert [domain.vcpus[0].pcpu for domain in domains] == [0, 1, 0]


def test_a_processor_that_is_not_there(tmp_path: Path) -> None:
    with Machine(4 * MEMORY, cpus=2) as machine:
        with pytest.raises(
            ConfigError, match=r"^spin0: cpus: the machine has no processor 3: it has 0 to 1 \(--cpus\)$"
        ):
            spinning(tmp_path, machine, [256], ["3"])
        spinning(tmp_path, machine, [256], ["1-3"])
        for wrong, reason in (("2-3", "no processor 2-3"), ("x", "no list of processors"), ("0-9", "0 to 3")):
            with pytest.raises(ActionError, match=reason):
                machine.apply(Action("pin", "spin0", (0, wrong)))
        with pytest.raises(ActionError, match="has no vCPU 5"):
            machine.apply(Action("pin", "spin0", (5, "0")))
    with pytest.raises(ValueError, match="there may be 1 to 4"):
        Machine(8, cpus=5)


@pytest.mark.parametrize(
    ("listed", "mask", "shown"),
    [
        ("all", -1, "all"), ("0", 1, "0"), ("0-1", 3, "0-1"), ("0,2-3", 13, "0,2-3"), ("all,^0", 14, "1-3"),
        ("0-3", -1, "all"), ("0-3,^1-2", 9, "0,3"), (" 1 , 3 ", 10, "1,3"),
    ],
)  # fmt: skip
def test_lists_of_processors(listed: str, mask: int, shown: str) -> None:
    assert cpulist.parse(listed) == mask and cpulist.text(mask) == shown


@pytest.mark.parametrize("listed", ["", "4", "1-0", "^0", "0,,1", "-1", "node:0", "٣"])
def test_lists_that_are_none(listed: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        cpulist.parse(listed)


# --- what the trace says -------------------------------------------------------------------------------------------


def test_the_trace_says_who_has_which_processor() -> None:
    kept = bytearray()
    with Machine(256, cpus=2, flush=kept.extend) as machine:
        machine.strict = True
        for name in ("demo64", "demo32", "load64"):
            spec = resolve_guest(name)
            spec.cmdline = "mode=work" if name == "load64" else ""
            machine.create(spec)
        machine.run(60 * MS)
        machine.trace.flush()
        rows = np.frombuffer(kept, trace.dtype())
        assert (np.diff(rows["time"].astype(np.int64)) >= 0).all()
        has: dict[int, int] = {}
        for row in rows[rows["kind"] == Kind.SCHEDULE]:
            cpu, source, target = int(row["d"]), int(row["a"]), int(row["b"])
            assert source == has.get(cpu, pcpus.IDLE_DOMAIN << 16 | cpu)
            assert target not in [who for other, who in has.items() if other != cpu], "on two processors at once"
            has[cpu] = target
        assert set(has) == {0, 1}
        ran = sum(int(row["c"]) for row in rows[rows["kind"] == Kind.SCHEDULE])
        assert ran <= 2 * machine.now()


def test_idle_processors_cost_nothing(tmp_path: Path) -> None:
    """One busy domain on four processors runs as on one, but for what the trace says at its start."""
    counts = []
    for cpus in (1, 4):
        with Machine(2 * MEMORY, cpus=cpus) as machine:
            spinning(tmp_path, machine, [256])
            machine.run(300 * MS)
            counts.append(machine.trace.head)
    assert counts[1] == counts[0]


# --- one memory ----------------------------------------------------------------------------------------------------


def start_second(domain: Domain, entry: int, stack: int, at: int) -> None:
    """VCPUOP_initialise and VCPUOP_up of the second vCPU, by the first; `at`: a place for the structure."""
    first, wide = domain.vcpus[0], domain.width == 64
    layout, word = (LAYOUT64, 8) if wide else (LAYOUT32, 4)
    context = bytearray(layout.VCPU_GUEST_CONTEXT_SIZE)

    def put(offset: int, value: int, size: int = word) -> None:
        context[offset : offset + size] = value.to_bytes(size, "little")

    code, data = (0xE033, 0xE02B) if wide else (0xE019, 0xE021)
    cs, ss = layout.VCPU_GUEST_CONTEXT_user_regs_cs, layout.VCPU_GUEST_CONTEXT_user_regs_ss
    put(layout.VCPU_GUEST_CONTEXT_flags, VGCF_in_kernel, 4)
    put(cs - word, entry)
    put(cs, code, 2)
    put(cs + word, 0x202)
    put(cs + 2 * word, stack)
    put(ss, data, 2)
    put(layout.VCPU_GUEST_CONTEXT_user_regs_ds, 0 if wide else data, 2)
    put(layout.VCPU_GUEST_CONTEXT_user_regs_es, 0 if wide else data, 2)
    put(layout.VCPU_GUEST_CONTEXT_kernel_ss, data)
    put(layout.VCPU_GUEST_CONTEXT_kernel_sp, stack)
    mfn = first.guest_table
    put(layout.VCPU_GUEST_CONTEXT_ctrlreg + 3 * word, mfn << 12 if wide else (mfn << 12 | mfn >> 20) & 0xFFFF_FFFF)
    guest_access.write(first, at, bytes(context))
    assert do_vcpu_op(first, vcpu_abi.VCPUOP_initialise, 1, at, 0) == 0
    assert do_vcpu_op(first, vcpu_abi.VCPUOP_up, 1, 0, 0) == 0


def rewriting(width: int, rounds: int) -> tuple[Tiny, int, int]:
    """A kernel whose first vCPU rewrites a function again and again, which the second calls; and where that begins.

    The first stores a number into `mov eax, NUMBER; ret`, tells it to the second by a word, and waits until that has
    answered with what the function returned. After so many rounds it powers off.
    """
    kernel = Tiny(width)
    page = kernel.place(bytes(0x4000))
    told, answer = page, page + 0x40
    load = (lambda address: b"\x48\xbf" + kernel.word(address)) if width == 64 else (lambda a: b"\xbf" + kernel.word(a))
    other = (
        (lambda address: b"\x48\xbe" + kernel.word(address)) if width == 64 else (lambda a: b"\xbe" + kernel.word(a))
    )
    kernel.do(b"\xe9" + struct.pack("<i", 59))  # over the function, on a line of its own
    kernel.do(b"\x90" * 27)
    function = kernel.here
    kernel.do(b"\xb8\x00\x00\x00\x00\xc3" + b"\x90" * 26)
    assert kernel.here == BASE[width] + 0x100040

    kernel.do(b"\xb9\x01\x00\x00\x00")  # mov ecx, 1
    again = kernel.here
    kernel.do(load(function + 1) + b"\x89\x0f")  # mov [rdi], ecx: the function's number
    kernel.do(load(told) + b"\x89\x0f" + other(answer))
    kernel.do(b"\x3b\x0e\x75\xfc")  # cmp ecx, [rsi]; jne to it
    kernel.do(b"\x83\xc1\x01\x81\xf9" + struct.pack("<I", rounds))  # add ecx, 1; cmp ecx, rounds
    kernel.do(b"\x0f\x85" + struct.pack("<i", again - kernel.here - 6))  # jne again
    kernel.say(b"agreed\n").shut_down()

    second = kernel.here
    kernel.do(b"\x31\xc9" + load(told) + other(answer))  # xor ecx, ecx
    wait = kernel.here
    kernel.do(b"\x3b\x0f\x74\xfc\x8b\x0f")  # cmp ecx, [rdi]; je to it; mov ecx, [rdi]
    kernel.do(b"\xe8" + struct.pack("<i", function - kernel.here - 5))  # call the function
    kernel.do(b"\x89\x06\xe9" + struct.pack("<i", wait - kernel.here - 7))  # mov [rsi], eax; jmp wait
    return kernel, second, page + 0x1000


@BOTH
@pytest.mark.parametrize(("cpus", "pace"), [(1, "exact"), (2, "exact"), (2, "fast")])
def test_code_that_another_processor_has_just_written(tmp_path: Path, width: int, cpus: int, pace: str) -> None:
    kernel, second, place = rewriting(width, 100)
    with Machine(2 * MEMORY, cpus=cpus, pace=pace) as machine:
        machine.strict = True
        if cpus == 1:
            machine.scheduler.adjust(None, rate_limit=0)
            machine.scheduler.adjust(None, slice=MS)
        spec = GuestSpec("rewriting", kernel.write(tmp_path / "kernel"), memory=MEMORY, vcpus=2)
        domain = machine.create(spec)
        start_second(domain, second, place, place)
        assert machine.run(2_000 * MS) == Stop.FINISHED
        assert any("agreed" in line for line in machine.hv.log_lines)
        assert domain.vcpus[1].runstate_time[RUNNING] > 0


# --- a run as exact as with one ------------------------------------------------------------------------------------


def test_a_recording_says_how_many_there_were(tmp_path: Path) -> None:
    from tests.command import record
    from xentui.session import setup_from_recording

    done = record(tmp_path / "run.xtrace", "hello64", "hello32", "--cpus", "2", "--for", "20ms")
    with done.read() as recording:
        assert recording.header["cpus"] == 2
    assert setup_from_recording(str(tmp_path / "run.xtrace")).cpus == 2
