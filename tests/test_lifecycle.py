"""What domain 0 does to domains: pause, suspend and resume, crash and core, rename, destroy; and what it tells."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.tiny_kernels import FOREVER, MEMORY, UNDEFINED, Tiny
from xentui.config import GuestSpec, resolve_guest
from xentui.engine.actions import Action, ActionError
from xentui.engine.dom0 import info
from xentui.engine.machine import Machine, Stop
from xentui.engine.reports import Reporter
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.sched import (
    SCHEDOP_poll,
    SCHEDOP_shutdown,
    SHUTDOWN_crash,
    SHUTDOWN_reboot,
    SHUTDOWN_suspend,
)
from xentui.engine.xen.audit import audit
from xentui.engine.xen.domain import BLOCKED, OFFLINE, RUNNING, Domain

BOTH = pytest.mark.parametrize("width", [32, 64])
MS = 1_000_000


class Run:
    """A machine with one domain on it, what its console said and how domains ended."""

    def __init__(self, kernel: Path | str, memory: int = MEMORY, room: int = 0, **spec: object) -> None:
        self.machine = Machine(memory + room)
        self.output = bytearray()
        self.ends: list[tuple[str, str]] = []
        self.machine.toolstack.on_output = lambda domain, data: self.output.extend(data)
        self.machine.toolstack.on_end = lambda domain, reason: self.ends.append((domain.name, reason))
        if isinstance(kernel, str):
            found = resolve_guest(kernel)
            found.memory = memory
            for name, value in spec.items():
                setattr(found, name, value)
            self.domain = self.machine.create(found)
        else:
            self.domain = self.machine.create(GuestSpec("guest", kernel, memory=memory, **spec))  # type: ignore[arg-type]
        self.toolstack, self.hv = self.machine.toolstack, self.machine.hv

    def for_ms(self, ms: int) -> str:
        return self.machine.run(self.machine.now() + ms * MS)

    def act(self, kind: str, *arguments: str | int) -> None:
        """Do something to the domain, as who sits at domain 0 does."""
        self.machine.apply(Action(kind, self.domain.name, arguments))

    @property
    def log(self) -> str:
        return "\n".join(self.hv.log_lines)


def spinning(tmp_path: Path, width: int = 64) -> Path:
    return Tiny(width).do(FOREVER).write(tmp_path / f"spin{width}")


# --- pause, suspend, requests --------------------------------------------------------------------------------------


@BOTH
def test_a_paused_domain_stands_still_until_it_is_unpaused_as_often(width: int, tmp_path: Path) -> None:
    run = Run(spinning(tmp_path, width))
    (vcpu,) = run.domain.vcpus
    run.for_ms(3)
    run.act("pause")
    run.act("pause")
    assert info.domain_state(run.domain) == "--p---"
    before = info.domain_info(run.machine, run.domain)["time"]
    assert run.for_ms(5) == Stop.TIME and vcpu.runstate == OFFLINE
    run.act("unpause")
    run.for_ms(5)
    assert info.domain_info(run.machine, run.domain)["time"] == before
    run.act("unpause")
    run.for_ms(5)
    assert int(info.domain_info(run.machine, run.domain)["time"]) > int(before) + 4 * MS
    with pytest.raises(ActionError, match="guest is not paused"):
        run.act("unpause")


def test_a_blocked_domain_that_is_paused_takes_its_events_afterwards() -> None:
    run = Run("hello64", 16)
    run.for_ms(100)
    (vcpu,) = run.domain.vcpus
    assert vcpu.runstate == BLOCKED and info.domain_state(run.domain) == "-b----"
    run.act("pause")
    run.toolstack.type(run.domain, b"poweroff\r")
    run.for_ms(50)
    assert run.ends == [] and b"Goodbye" not in run.output
    run.act("unpause")
    assert run.machine.run() == Stop.FINISHED
    assert b"Goodbye" in run.output and run.ends == [("hello64", "poweroff")]


def suspending(width: int) -> Tiny:
    """Suspends, and says so if its hypercall returned 1."""
    kernel = Tiny(width)
    reason = kernel.place(SHUTDOWN_suspend.to_bytes(4, "little"))
    kernel.call(nr.HYPERCALL_sched_op, SCHEDOP_shutdown, reason, 0x1234)
    kernel.do(b"\x83\xf8\x01\x74\x02" + FOREVER)  # cmp eax, 1; je over the loop
    return kernel.say(b"resumed\n").shut_down()


@BOTH
@pytest.mark.parametrize("crowded", [False, True])
def test_suspend_and_resume_in_place(width: int, crowded: bool, tmp_path: Path) -> None:
    run = Run(suspending(width).write(tmp_path / "suspend"), room=MEMORY)
    if crowded:  # somebody else has the processor when the domain is resumed
        run.machine.create(GuestSpec("other", spinning(tmp_path), memory=MEMORY))
        assert run.for_ms(100) == Stop.TIME
    else:
        assert run.machine.run() == Stop.FINISHED
    assert run.ends == [("guest", "suspend")] and run.domain in run.machine.domains
    assert info.domain_state(run.domain) == "---s--"
    with pytest.raises(ActionError, match="guest has ended already"):
        run.act("reboot")
    run.act("resume")
    run.for_ms(100)
    assert "resumed" in run.log and run.ends[1:] == [("guest", "poweroff")]
    assert run.domain not in run.machine.domains and audit(run.hv) == []


def test_only_what_is_suspended_can_be_resumed(tmp_path: Path) -> None:
    run = Run(spinning(tmp_path))
    run.for_ms(1)
    with pytest.raises(ActionError, match="guest is not suspended"):
        run.act("resume")
    with pytest.raises(ActionError, match="there is no action 'explode'"):
        run.act("explode")
    run.act("shutdown")
    assert run.toolstack.store.read(f"/local/domain/{run.domain.id}/control/shutdown") == b"poweroff"


def test_a_change_of_a_watched_node_reaches_a_guest_at_once(tmp_path: Path) -> None:
    """Without a request of the guest's own in between, and its event channel tells it."""
    run = Run(spinning(tmp_path))
    domain = run.domain
    service = run.toolstack.services[domain.id]
    home = f"/local/domain/{domain.id}"
    service.store.connection.handle(4, 1, 0, b"control/shutdown\0token\0")  # XS_WATCH
    service.store.poll()
    page = service.store.page
    before = int.from_bytes(page[2060:2064], "little")
    domain.shared_info[domain.events.abi._pending] = 0
    run.act("reboot")
    sent = bytes(page[1024 + before : 1024 + int.from_bytes(page[2060:2064], "little")])
    assert sent[:4] == (15).to_bytes(4, "little") and sent.endswith(b"control/shutdown\0token\0"), home
    assert domain.events.is_pending(domain.store_port)


# --- names and memory ----------------------------------------------------------------------------------------------


def test_rename(tmp_path: Path) -> None:
    run = Run(spinning(tmp_path), room=MEMORY)
    run.machine.create(GuestSpec("other", spinning(tmp_path), memory=MEMORY))
    run.act("rename", "renamed")
    store = run.toolstack.store
    assert run.domain.name == "renamed" and store.read(f"/local/domain/{run.domain.id}/name") == b"renamed"
    for name, words in (("other", "there is a domain other already"), ("", "or none"), ("a/b", "characters")):
        with pytest.raises(ActionError, match=words):
            run.act("rename", name)
    run.act("rename", "renamed")


def test_memory_target(tmp_path: Path) -> None:
    run = Run(spinning(tmp_path), maxmem=12, room=8)
    store, home = run.toolstack.store, f"/local/domain/{run.domain.id}/memory"
    assert (store.read(f"{home}/static-max"), store.read(f"{home}/target")) == (b"12288", b"8193")
    run.act("balloon", 6)
    assert store.read(f"{home}/target") == b"6144" and run.domain.max_pages == 7 << 8
    for wrong in (0, 13):
        with pytest.raises(ActionError, match=f"guest can have 1 to 12 MiB, not {wrong}"):
            run.act("balloon", wrong)


# --- what can be told ----------------------------------------------------------------------------------------------


def test_lists_and_host_information(tmp_path: Path) -> None:
    run = Run(spinning(tmp_path), vcpus=2)
    run.for_ms(4)
    (line,) = info.domains(run.machine)
    assert line.pop("uuid") == "00000000-0000-0000-0000-000000000001"
    time = int(line.pop("time"))
    assert 3 * MS < time <= 4 * MS + 10_000
    assert line == {
        "name": "guest", "domid": 1, "width": 64, "mem": 8, "maxmem": 8, "vcpus": 1, "state": "r-----",
    }  # fmt: skip
    first, second = info.vcpus(run.machine, run.domain)
    assert (first["state"], first["cpu"], first["time"]) == ("r--", "0", time)
    assert (second["state"], second["cpu"], second["time"]) == ("--p", "-", 0)
    host = info.host(run.machine)
    assert host["total_memory"] == run.machine.ram_size >> 20
    assert int(host["free_memory"]) < MEMORY and host["xen_scheduler"] == "credit"
    assert host["xen_caps"] == "xen-3.0-x86_64 xen-3.0-x86_32p" and str(host["xen_version"]).startswith("4.17")
    run.hv.log("a word")
    assert re.fullmatch(r"\(XEN\) \[ +0\.\d{6}\] a word", info.log(run.machine)[-1])


# --- crashes -------------------------------------------------------------------------------------------------------


def gdb(core: Path, *commands: str, kernel: Path | None = None) -> str:
    """What gdb prints for some commands on a core."""
    line = ["gdb", "-nx", "-batch", *(word for command in commands for word in ("-ex", command))]
    done = subprocess.run(
        [*line, *([kernel] if kernel else []), "-c", core], capture_output=True, timeout=60, check=True
    )
    errors = [line for line in done.stderr.decode().splitlines() if "warning: core file may not match" not in line]
    assert not [line for line in errors if not line.startswith("warning: Unexpected size of section")], errors
    return done.stdout.decode()


@BOTH
def test_gdb_opens_the_core_of_a_crash(width: int, tmp_path: Path) -> None:
    kernel = Tiny(width)
    words = kernel.place(b"found in memory\0")
    kernel.accumulator(0x1122_3344_5566_7788).stack(words)
    place = kernel.here
    run = Run(kernel.do(UNDEFINED).write(tmp_path / "kernel"), on_crash="coredump-destroy")
    run.toolstack.core_folder = tmp_path
    assert run.machine.run() == Stop.FINISHED
    (core,) = tmp_path.glob("*.core")
    assert re.fullmatch(r"guest-2003-1019-1000\.00\.\d{6}\.core", core.name)
    assert f"guest: its core is in {core}" in run.log
    assert run.machine.domains == [] and audit(run.hv) == []
    register = "rax" if width == 64 else "eax"
    said = gdb(core, f"p/x ${register}", "x/i $pc", "x/s $sp", "info threads", "p $cs & 3")
    value = 0x1122_3344_5566_7788 if width == 64 else 0x5566_7788
    assert f"$1 = {value:#x}" in said and "found in memory" in said
    assert re.search(rf"=> {place:#x}:\s+ud2", said), said
    assert "Program terminated with signal SIGSEGV" in said and "LWP 1" in said
    assert f"$2 = {3 if width == 64 else 1}" in said


@BOTH
def test_gdb_finds_symbols_and_the_stack_of_a_guest(width: int, tmp_path: Path) -> None:
    run = Run(f"hello{width}", 16, on_crash="coredump-restart")
    run.toolstack.core_folder = tmp_path
    run.for_ms(100)
    run.toolstack.type(run.domain, b"crash\r")
    run.for_ms(100)
    (core,) = tmp_path.glob(f"hello{width}-*.core")
    assert run.ends == [(f"hello{width}", "crash")]
    (again,) = run.machine.domains
    assert again is not run.domain and again.name == f"hello{width}", "restarted"
    kernel = resolve_guest(f"hello{width}").kernel
    said = gdb(
        core, "x/i $pc", "info symbol $pc", "x/s &guest_name", "x/2s *(char**)&start_info", "bt 2", kernel=kernel
    )
    assert re.search(r"=> 0x[0-9a-f]+ <\w+\+\d+>:", said), said
    assert "in section .text" in said and '"hello"' in said
    assert f'"xen-3.0-x86_{"64" if width == 64 else "32p"}"' in said, "the page that start_info points to"
    assert "#0 " in said
    assert core.stat().st_blocks * 512 < core.stat().st_size // 2, "zeroes take no room"


def test_a_core_shows_all_vcpus_and_all_memory(tmp_path: Path) -> None:
    """The crashed vCPU first; memory that no page table maps lies at its pseudo-physical address."""
    from elftools.elf.elffile import ELFFile

    run = Run(spinning(tmp_path), vcpus=3)
    run.for_ms(1)
    path = run.toolstack.dump_core(run.domain)
    assert path is not None
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_type"] == "ET_CORE" and elf["e_machine"] == "EM_X86_64"
        loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
        pages = {
            (segment["p_paddr"] >> 12) + number
            for segment in loads
            if segment["p_paddr"] < 1 << 52
            for number in range(segment["p_memsz"] >> 12)
        }
        assert pages == set(range(MEMORY << 8))
        (notes,) = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_NOTE"]
        assert [note["n_type"] for note in notes.iter_notes()] == ["NT_PRPSINFO", "NT_PRSTATUS"], "others never started"
    path.unlink()


def test_a_core_that_cannot_be_written_is_a_line_in_the_log(tmp_path: Path) -> None:
    run = Run(Tiny(64).do(UNDEFINED).write(tmp_path / "kernel"), on_crash="coredump-destroy")
    run.toolstack.core_folder = tmp_path / "nowhere"
    assert run.machine.run() == Stop.FINISHED
    assert "guest: its core cannot be written: " in run.log and "No such file or directory" in run.log


@BOTH
def test_page_tables_without_end_make_no_core_without_end(width: int, tmp_path: Path) -> None:
    """Every slot of a table leads to itself: the validator forbids it, an unsafe domain may do it."""
    run = Run(spinning(tmp_path, width))
    run.for_ms(1)
    (vcpu,) = run.domain.vcpus
    level = vcpu.space.entry_at(0xFFFF_FFFF_8010_0000 if width == 64 else 0xC010_0000, 2)
    table = level & ~511
    entry = run.hv.ram64[level] & ~0xF_FFFF_FFFF_F000 | table >> 9 << 12
    run.hv.ram64[table : table + 400] = memoryview(entry.to_bytes(8, "little") * 400).cast("Q")
    path = run.toolstack.dump_core(run.domain)
    assert path is not None and path.stat().st_size < 32 << 20
    path.unlink()


def test_domain_0_can_let_a_domain_crash_that_is_not_running(tmp_path: Path) -> None:
    run = Run("hello64", 16, room=16, on_crash="preserve")
    run.machine.create(GuestSpec("spin", spinning(tmp_path), memory=MEMORY))
    run.for_ms(200)
    run.act("crash")
    run.for_ms(10)
    assert run.ends == [("hello64", "crash")] and info.domain_state(run.domain)[3:5] == "sc"
    assert Reporter(run.machine).status().domains[0].state == info.domain_state(run.domain), "on every screen the same"
    dump = run.log[run.log.index("domain_crash called: crashed by the control domain") :]
    assert "(hello64) crashed:" in dump and re.search(r"RIP: +e033:\[<ffffffff80\w+>\]", dump), dump
    with pytest.raises(ActionError, match="has ended already"):
        run.act("crash")


def test_rename_restart_keeps_the_old_one(tmp_path: Path) -> None:
    run = Run(Tiny(64).shut_down(SHUTDOWN_reboot).write(tmp_path / "kernel"), room=MEMORY, on_reboot="rename-restart")
    assert run.machine.run() == Stop.FINISHED
    assert run.ends == [("guest", "reboot")] * 2
    assert [domain.name for domain in run.machine.domains] == ["guest-1", "guest-2"]
    assert "guest cannot be started again" in run.log, "there is memory for two"


# --- destroying ----------------------------------------------------------------------------------------------------


def polling(width: int) -> Tiny:
    """Waits for an event for a second, by poll."""
    kernel = Tiny(width)
    deadline = (10**9).to_bytes(8, "little")
    record = bytes(4 if width == 32 else 8) + bytes(4 if width == 32 else 8) + deadline
    return kernel.call(nr.HYPERCALL_sched_op, SCHEDOP_poll, kernel.place(record)).do(FOREVER)


STATES = ("fresh", "running", "preempted", "blocked", "polling", "paused", "suspended", "crashed", "many vCPUs")


def bring(state: str, width: int, tmp_path: Path) -> Run:
    """A machine whose first domain is in some state."""
    kernels: dict[str, Tiny] = {
        "polling": polling(width),
        "suspended": suspending(width),
        "crashed": Tiny(width).do(UNDEFINED),
    }
    if state == "blocked":
        run = Run(f"hello{width}", MEMORY, MEMORY)
    else:
        kernel = kernels.get(state, Tiny(width).do(FOREVER)).write(tmp_path / "kernel")
        run = Run(kernel, room=MEMORY, on_crash="preserve", vcpus=20 if state == "many vCPUs" else 1)
    if state == "preempted":
        run.machine.create(GuestSpec("other", spinning(tmp_path), memory=MEMORY))
    if state != "fresh":
        run.for_ms(45)
    if state == "paused":
        run.act("pause")
    return run


@BOTH
@pytest.mark.parametrize("state", STATES)
def test_destroying_frees_everything_in_any_state(state: str, width: int, tmp_path: Path) -> None:
    run = bring(state, width, tmp_path)
    domain, toolstack = run.domain, run.toolstack
    vcpu = domain.vcpus[0]
    expected = {
        "running": vcpu.runstate == RUNNING,
        "blocked": vcpu.runstate == BLOCKED,
        "polling": vcpu.poll_ports is not None,
        "suspended": domain.shutdown_code == SHUTDOWN_suspend,
        "crashed": domain.shutdown_code == SHUTDOWN_crash,
    }
    assert expected.get(state, True)
    others = [other for other in run.machine.domains if other is not domain]
    domain_nodes = [path for path in toolstack.store.tree.nodes if f"/domain/{domain.id}" in path]
    assert domain_nodes
    toolstack.destroy(domain)
    for other in others:
        toolstack.destroy(other)
    assert nothing_left(run, domain)
    assert run.machine.run() == Stop.FINISHED
    again = run.machine.create(GuestSpec("again", spinning(tmp_path), memory=2 * MEMORY))
    assert again.tot_pages == 2 * MEMORY << 8, "all memory can be had again"


def nothing_left(run: Run, domain: Domain) -> bool:
    """Counts what a machine without domains has, and looks for anything that knows the domain."""
    hv, machine, store = run.hv, run.machine, run.toolstack.store
    fresh = Machine(machine.hv.frames.count - machine.hv.frames.xen_end >> 8)
    assert hv.frames.free_frames == fresh.hv.frames.free_frames
    fresh.close()
    assert audit(hv) == [] and hv.frames.owned_by(domain.id) == []
    assert hv.domains == {} and run.toolstack.services == {} and machine.processor.vcpu is None
    assert machine.scheduler.pick(machine.now()) == (None, 0)
    assert not any(machine.scheduler.describe(vcpu) for vcpu in domain.vcpus)
    assert hv.timers.next_deadline() is None and hv.timers.periods == {}
    assert domain.events.used() == []
    assert not [path for path in store.tree.nodes if f"/domain/{domain.id}" in path or f"/libxl/{domain.id}" in path]
    return [connection.domid for connection in store.connections] == [] and list(store.domains) == [0]


def test_destroying_unbinds_the_other_ends_and_takes_grants_back(tmp_path: Path) -> None:
    run = Run(spinning(tmp_path), room=MEMORY)
    other = run.machine.create(GuestSpec("other", spinning(tmp_path), memory=MEMORY))
    run.for_ms(1)
    port = run.domain.events.alloc_unbound_for(other.id)
    theirs = other.events.bind_interdomain(run.domain.id, port)
    assert other.events.send(other.vcpus[0], theirs) == 0
    run.toolstack.destroy(run.domain)
    channel = other.events.channels[theirs]
    assert channel.remote is None and other.events.send(other.vcpus[0], theirs) == 0
    assert other.events.bind_interdomain(run.domain.id, port) < 0
    assert run.for_ms(5) == Stop.TIME
    assert audit(run.hv) == []
