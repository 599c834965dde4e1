"""Faults: their text, what each does to a machine, that it is recorded, and that a run with them is reproducible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import ROOT, record
from xentui.cli import run as command
from xentui.config import resolve_guest
from xentui.engine.actions import Action
from xentui.engine.faults import CATALOGUE, FaultError, complete, duration, inject, parse, split_time, time_text
from xentui.engine.machine import Machine
from xentui.engine.trace import Fault, Kind, Record
from xentui.engine.trace_decode import decode
from xentui.engine.views.find import translate
from xentui.engine.x86 import state as s
from xentui.engine.x86.paging import NX, RW
from xentui.engine.xen import guest_access, hypercall
from xentui.engine.xen.abi import hypercalls as nr
from xentui.engine.xen.abi.layout import Layout
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.domain import BLOCKED, OFFLINE, Domain
from xentui.recording.reader import Recording

MS = 1_000_000
NAMES = ["hello32", "hello64"]

EXAMPLES = {
    Fault.FAIL: "fail hello32 mmu_update -ENOMEM every 3",
    Fault.DROP_EVENT: "drop-event hello64 port 3",
    Fault.DELAY_EVENT: "delay-event hello64 port 3 by 20ms next",
    Fault.DUPLICATE_EVENT: "duplicate-event hello64 port 3 after 1.5us nth 2",
    Fault.SEND_EVENT: "send-event hello64 port 3",
    Fault.MASK: "mask hello64 port 3",
    Fault.EXCEPTION: "exception hello64 PF error 2 address 0x1000 vcpu 0",
    Fault.NMI: "nmi hello64 vcpu 1",
    Fault.FLIP_REGISTER: "flip hello64 register rax bit 63",
    Fault.FLIP_MEMORY: "flip hello32 memory 0xc0001000 bit 5",
    Fault.FLIP_PTE: "flip hello32 pte 0xc0001000 bit 1 level 2",
    Fault.FLIP_RAW_PTE: "flip hello32 raw-pte 0xc0001000 bit 1",
    Fault.REVOKE_GRANT: "revoke-grant hello64 8",
    Fault.STEAL: "steal hello64 5ms",
    Fault.WALL_CLOCK: "wall-clock hello64 -1h",
    Fault.SQUEEZE: "squeeze hello64 to 8",
    Fault.CORRUPT_RING: "corrupt-ring hello64 console-out producer 0xdead",
    Fault.PAUSE: "pause hello64",
    Fault.UNPAUSE: "unpause hello64",
    Fault.CRASH: "crash hello64",
    Fault.DESTROY: "destroy hello64",
    Fault.NO_VALIDATOR: "no-validator hello32",
    Fault.DISARM: "disarm hello32",
}


# --- text ----------------------------------------------------------------------------------------------------------


def test_every_fault_has_a_text_a_sentence_and_a_number_of_its_own() -> None:
    assert sorted(kind.number for kind in CATALOGUE) == sorted(EXAMPLES) == list(range(1, len(CATALOGUE) + 1))
    for number, text in EXAMPLES.items():
        injection = parse(text, NAMES)
        assert injection.kind.number == number
        assert "{" not in injection.sentence and injection.values["domain"] in injection.sentence


def test_every_fault_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    assert [kind.form for kind in CATALOGUE if f"`{' '.join(kind.required)}" not in text] == []


def test_sentences() -> None:
    assert (
        parse(EXAMPLES[Fault.FAIL], NAMES).sentence
        == "every 3rd mmu_update of hello32 returns -ENOMEM and does nothing"
    )
    assert parse("fail hello32 iret -12", NAMES).sentence == "the next iret of hello32 returns -ENOMEM and does nothing"
    assert parse(EXAMPLES[Fault.DUPLICATE_EVENT], NAMES).sentence == (
        "the 2nd event to port 3 of hello64 comes again 1500ns later"
    )
    assert parse(EXAMPLES[Fault.WALL_CLOCK], NAMES).sentence == "the wall clock of hello64 jumps by -1h"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a fault begins with one of fail, send-event"),
        ("fial hello32", "no fault 'fial'; there is fail, send-event, drop-event"),
        ("fail x mmu_update -12", "no domain 'x'; there is hello32, hello64"),
        ("fail hello32 mmu_updat -12", "no hypercall 'mmu_updat'; did you mean mmu_update"),
        ("fail hello32 mmu_update", "ERROR is missing: fail DOMAIN HYPERCALL ERROR"),
        ("fail hello32 mmu_update -EWHAT", "no error '-EWHAT'"),
        ("fail hello32 mmu_update -9999", "no error has the number 9999"),
        ("fail hello32 mmu_update -12 every", "COUNT is missing after every"),
        ("fail hello32 mmu_update -12 often", "'often' is too much; it may be followed by next, nth, every"),
        ("fail hello32 mmu_update -12 nth 0", "COUNT is 1 to"),
        ("crash hello32 now", "'now' is too much: crash DOMAIN"),
        ("drop-event hello64 prot 3", "'port' is expected, not 'prot'"),
        ("drop-event hello64 port three", "'three' is no number, as PORT is"),
        ("flip hello32", "flip DOMAIN is followed by one of register, memory, pte, raw-pte"),
        ("flip hello32 regster rax bit 1", "flip DOMAIN is followed by one of register, memory, pte, raw-pte, not"),
        ("flip hello32 register rax bit 64", "BIT is 0 to 63"),
        ("flip hello32 register xax bit 4", "no register 'xax'; there is rax"),
        ("steal hello32 5", "'5' is not a time: a number and a unit"),
        ("steal hello32 -5ms", "-5ms is no time to wait"),
        ("crash:hello32", "before the colon stands a time, as in 20ms; this fault is written: crash DOMAIN"),
        ("flip:hello32", "before the colon stands a time, as in 20ms; this fault is written: flip DOMAIN register"),
        ("soon:crash hello32", "'soon' is not a time: a number and a unit"),
        ("corrupt-ring hello32 disk producer 1", "no ring 'disk'; there is console-out, console-in"),
    ],
)
def test_errors_say_what_there_is(text: str, message: str) -> None:
    with pytest.raises(FaultError) as caught:
        parse(text, NAMES)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_errors_are_known_by_name_and_number() -> None:
    for text in ("-12", "12", "-ENOMEM", "ENOMEM"):
        assert parse(f"fail hello32 mmu_update {text}", NAMES).values["error"] == "-ENOMEM"


def test_times() -> None:
    assert [duration(text) for text in ("20ms", "1.5s", "-3h")] == [20 * MS, 1500 * MS, -10_800_000 * MS]
    assert [time_text(ns) for ns in (20 * MS, 1_500, 60_000 * MS)] == ["20ms", "1500ns", "1min"]
    assert split_time("20ms:crash hello32") == (20 * MS, "crash hello32")
    assert split_time(" crash hello32") == (0, "crash hello32")
    with pytest.raises(FaultError, match="before the start"):
        split_time("-1s:crash hello32")


def test_completion() -> None:
    def words(text: str) -> list[str]:
        return complete(text, NAMES)[0]

    assert "fail" in words("") and words("dr") == ["drop-event"]
    assert words("fail ") == NAMES and words("fail hello3") == ["hello32"]
    assert "mmu_update" in words("fail hello32 mmu") and "-ENOMEM" in words("fail hello32 mmu_update -ENOM")
    assert words("fail hello32 mmu_update -ENOMEM ") == ["next", "nth", "every"]
    assert words("flip hello32 ") == ["register", "memory", "pte", "raw-pte"]
    assert words("flip hello32 register r1")[0] == "r10" and words("flip hello32 pte 0 bit 3 l") == ["level"]
    assert complete("drop-event hello32 port ", NAMES) == ([], "a port's number")
    assert words("20ms:dr") == ["drop-event"] and words("20ms:fail ") == NAMES and "fail" in words("20ms: ")
    assert words("nonsense hello32 ") == [] and words("crash hello32 ") == []


# --- effects -------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(48)
    machine.strict = True
    for name in ("hello64", "hello32"):
        spec = resolve_guest(name)
        spec.memory = 16
        machine.create(spec)
    machine.run(3 * MS)
    yield machine
    machine.close()
    assert not any(hypercall.TABLE[number].__qualname__.startswith("CallSnare") for number in range(64))


def named(machine: Machine, name: str) -> Domain:
    return next(domain for domain in machine.domains if domain.name == name)


def records(machine: Machine, kind: int = Kind.INJECT) -> list[Record]:
    return [found for found in machine.trace.latest(machine.trace.capacity) if found.kind == kind]


def say(machine: Machine, name: str, text: str) -> str:
    """Type a line, and what the guest prints within some time."""
    heard: list[bytes] = []
    machine.toolstack.on_output = lambda domain, data: heard.append(data) if domain.name == name else None
    machine.toolstack.type(named(machine, name), text.encode() + b"\r")
    machine.run(machine.now() + 20 * MS)
    return b"".join(heard).decode()


@pytest.mark.parametrize("name", NAMES)
def test_fail_the_next_the_nth_and_every_nth(machine: Machine, name: str) -> None:
    call = hypercall.TABLE[nr.HYPERCALL_xen_version]
    other = named(machine, NAMES[NAMES[0] == name])
    injection = inject(machine, f"fail {name} xen_version -ENOMEM nth 2")
    assert injection.waits and hypercall.TABLE[nr.HYPERCALL_xen_version] is not call
    assert "Xen 4.17.7-xentui" in say(machine, other.name, "info"), "only the one domain's"
    assert injection.strikes == 0
    text = say(machine, name, "info")  # asks for the version, then for the rest of its name
    assert "Xen 4.17\n" in text.replace("\r", "")
    assert (injection.strikes, injection.waits, injection.result) == (1, False, -12)
    assert hypercall.TABLE[nr.HYPERCALL_xen_version] is call, "nothing waits, nothing is swapped"
    assert "Xen 4.17.7-xentui" in say(machine, name, "info")
    armed, struck = records(machine)
    assert (armed.number, armed.d, armed.domain) == (Fault.FAIL, 0, named(machine, name).id)
    assert (struck.d, struck.result) == (1, -12 & s.MASK64) and struck.time > armed.time == injection.time
    assert decode(struck) == "inject fault=fail arg1=0x11 arg2=0x1 arg3=" + hex(struck.c) + " struck=1 = -ENOMEM"
    every = inject(machine, f"fail {name} xen_version -EPERM every 2")
    say(machine, name, "info")
    say(machine, name, "info")
    assert every.strikes == 2 and every.waits
    inject(machine, f"disarm {name}")
    assert not every.waits and hypercall.TABLE[nr.HYPERCALL_xen_version] is call
    with pytest.raises(FaultError, match=f"nothing lies in wait for {name}"):
        inject(machine, f"disarm {name}")


def test_two_that_wait_for_the_same(machine: Machine) -> None:
    call = hypercall.TABLE[nr.HYPERCALL_xen_version]
    one = inject(machine, "fail hello32 xen_version -EPERM")
    two = inject(machine, "fail hello32 xen_version -ENOMEM")
    say(machine, "hello32", "info")
    assert (one.result, two.result) == (-1, -12)
    assert hypercall.TABLE[nr.HYPERCALL_xen_version] is call


@pytest.mark.parametrize("name", NAMES)
def test_drop_delay_duplicate_and_invent_an_event(machine: Machine, name: str) -> None:
    domain = named(machine, name)
    port = domain.console_port
    dropped = inject(machine, f"drop-event {name} port {port}")
    assert say(machine, name, "time") == "", "the guest does not hear that there is something to read"
    assert dropped.strikes == 1 and "set_pending" not in vars(domain.events)
    inject(machine, f"send-event {name} port {port}")
    machine.run(machine.now() + MS)
    assert domain.vcpus[0].runstate == BLOCKED
    delayed = inject(machine, f"delay-event {name} port {port} by 15ms")
    started = machine.now()
    say(machine, name, "time")
    woken = [record.time for record in records(machine, Kind.WAKE) if record.domain == domain.id]
    assert delayed.strikes == 1 and started + 15 * MS in woken
    duplicate = inject(machine, f"duplicate-event {name} port {port} after 7ms")
    started = machine.now()
    say(machine, name, "time")
    woken = [record.time for record in records(machine, Kind.WAKE) if record.domain == domain.id]
    assert duplicate.strikes == 1 and started + 7 * MS in woken


def test_a_delayed_event_finds_its_domain_gone(machine: Machine) -> None:
    inject(machine, "delay-event hello32 port 2 by 15ms")
    machine.toolstack.type(named(machine, "hello32"), b"x\r")
    inject(machine, "destroy hello32")
    machine.run(machine.now() + 20 * MS)
    assert [domain.name for domain in machine.domains] == ["hello64"]


@pytest.mark.parametrize("name", NAMES)
def test_mask_a_port(machine: Machine, name: str) -> None:
    domain = named(machine, name)
    inject(machine, f"mask {name} port {domain.console_port}")
    assert domain.events.abi.is_masked(domain.console_port)
    assert say(machine, name, "time") == ""
    with pytest.raises(FaultError, match=f"{name} has no port 9 in use; there is 1, 2"):
        inject(machine, f"mask {name} port 9")


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_and_an_nmi(machine: Machine, name: str) -> None:
    domain = named(machine, name)
    leave = machine.entry.leave
    injection = inject(machine, f"exception {name} UD")
    assert injection.waits and domain.vcpus[0].runstate == BLOCKED
    said = say(machine, name, "time")
    struck = records(machine)[-1]
    assert (struck.number, struck.d, struck.a) == (Fault.EXCEPTION, 1, 6)
    assert domain.shutdown_code is not None or "6" in said, "the guest has no use for #UD, and says so or crashes"
    assert machine.entry.leave == leave and not machine.snares
    inject(machine, f"nmi {NAMES[NAMES[0] == name]}")
    assert records(machine)[-1].number == Fault.NMI


def test_a_page_fault_has_an_address(machine: Machine) -> None:
    domain = named(machine, "hello64")
    inject(machine, "exception hello64 PF error 2 address 0x123456")
    machine.toolstack.type(domain, b"x\r")
    machine.run(machine.now() + MS)
    (fault,) = records(machine, Kind.PAGE_FAULT)
    assert (fault.a, fault.number, fault.domain) == (0x123456, 2, domain.id)
    assert records(machine)[-1].c == 0x123456


@pytest.mark.parametrize("name", NAMES)
def test_flip_a_register_loaded_or_not(machine: Machine, name: str) -> None:
    vcpu = named(machine, name).vcpus[0]

    def state() -> s.State:
        return s.State.of(machine.processor.state.save() if machine.processor.vcpu is vcpu else vcpu.saved)

    before = state().q[s.RBX]
    inject(machine, f"flip {name} register rbx bit 7")
    assert state().q[s.RBX] == before ^ 0x80
    found = records(machine)[-1]
    assert (found.a, found.b, found.c) == (7, before, before ^ 0x80)
    flags = vcpu.processor.flags_of(state())
    inject(machine, f"flip {name} register rflags bit 6")
    assert vcpu.processor.flags_of(state()) == flags ^ 0x40
    inject(machine, f"flip {name} register cr2 bit 0")
    assert vcpu.info[16 if name == "hello64" else 8] == 1
    with pytest.raises(FaultError, match="bit 9 of rflags is not"):
        inject(machine, f"flip {name} register rflags bit 9")
    if name == "hello32":
        with pytest.raises(FaultError, match="bit 32 of rax is not hello32's to have"):
            inject(machine, "flip hello32 register rax bit 32")
        with pytest.raises(FaultError, match="a 32-bit guest has no r9"):
            inject(machine, "flip hello32 register r9 bit 2")
        assert parse("flip hello32 register edx bit 2", [name]).values["register"] == "rdx"


@pytest.mark.parametrize("name", NAMES)
def test_flip_memory(machine: Machine, name: str) -> None:
    vcpu = named(machine, name).vcpus[0]
    rsp = (vcpu.q if machine.processor.vcpu is vcpu else s.State.of(vcpu.saved).q)[s.RSP]
    offset, _ = translate(vcpu, rsp)
    before = machine.hv.ram[offset + 2]
    inject(machine, f"flip {name} memory rsp bit 17")
    assert machine.hv.ram[offset + 2] == before ^ 2
    with pytest.raises(FaultError, match="has nothing mapped at 0x8"):
        inject(machine, f"flip {name} memory 0x5 bit 30")
    with pytest.raises(FaultError, match="neither a register nor a symbol"):
        inject(machine, f"flip {name} memory nowhere bit 0")
    xen = 0xFFFF_8000_0000_0000 if name == "hello64" else 0xF580_0000
    with pytest.raises(FaultError, match="has nothing mapped at"):
        inject(machine, f"flip {name} memory {xen:#x} bit 0")


def table_address(domain: Domain) -> int:
    """Where a domain sees one of its own page tables: start_info's pt_base lies behind the image."""
    vcpu = domain.vcpus[0]
    base = 0xFFFF_FFFF_8000_0000 if domain.width == 64 else 0xC000_0000
    frames = domain.hv.frames
    for page in range(4096):
        offset, _ = translate(vcpu, base + (page << 12))
        if offset >= 0 and 1 <= frames.type[offset >> 12] <= 4 and frames.type_count[offset >> 12]:
            return base + (page << 12)
    raise AssertionError("a guest sees its own page tables")


@pytest.mark.parametrize("name", NAMES)
def test_flip_a_page_table_entry_and_the_validator_decides(machine: Machine, name: str) -> None:
    domain = named(machine, name)
    vcpu, table = domain.vcpus[0], table_address(domain)
    index = vcpu.space.entry_at(table)
    before = machine.hv.ram64[index]
    refused = inject(machine, f"flip {name} pte {table:#x} bit 1")
    assert refused.result < 0 and machine.hv.ram64[index] == before, "a page table is never writable"
    assert records(machine, Kind.REFUSAL)[-1].a == before >> 12 & 0xFF_FFFF_FFFF
    assert records(machine)[-1].result == refused.result & s.MASK64
    done = inject(machine, f"flip {name} pte {table:#x} bit 63")
    assert done.result == 0 and (machine.hv.ram64[index] ^ before) & NX
    with pytest.raises(FaultError, match="lies in a page table"):
        inject(machine, f"flip {name} memory {table:#x} bit 1")
    with pytest.raises(FaultError, match="has no L1 entry of its own"):
        inject(machine, f"flip {name} pte 0xffff800000000000 bit 1")
    assert domain.validated and not machine._audit()


@pytest.mark.parametrize("name", NAMES)
def test_flip_a_page_table_entry_behind_the_validators_back(machine: Machine, name: str) -> None:
    domain = named(machine, name)
    vcpu, table = domain.vcpus[0], table_address(domain)
    index = vcpu.space.entry_at(table)
    inject(machine, f"flip {name} raw-pte {table:#x} bit 5")
    assert domain.validated, "nobody looks at the accessed bit"
    inject(machine, f"flip {name} raw-pte {table:#x} bit 1")
    assert machine.hv.ram64[index] & RW and not domain.validated
    guest_access.write(vcpu, table, guest_access.read(vcpu, table, 8))
    with pytest.raises(FaultError, match="would map what is no guest's"):
        inject(machine, f"flip {name} raw-pte {table:#x} bit 45")
    with pytest.raises(FaultError, match="memory that may be anybody's"):
        inject(machine, f"flip {name} raw-pte {table:#x} bit 7 level 2")
    assert "time" in say(machine, name, "time"), "the guest goes on"


def test_no_validator(machine: Machine) -> None:
    domain = named(machine, "hello32")
    inject(machine, "no-validator hello32")
    assert not domain.validated and "NOT validated" in machine.hv.log_lines[-1]
    with pytest.raises(FaultError, match="hello32 has no validator any more"):
        inject(machine, "no-validator hello32")
    assert inject(machine, f"flip hello32 pte {table_address(domain):#x} bit 1").result == 0


def test_squeeze(machine: Machine) -> None:
    domain = named(machine, "hello64")
    inject(machine, "squeeze hello64 to 8")
    assert domain.max_pages == 8 << 8
    assert machine.toolstack.store.read("/local/domain/1/memory/target") == b"8192"
    with pytest.raises(FaultError, match="hello64 has at most 8 MiB"):
        inject(machine, "squeeze hello64 to 99")


@pytest.mark.parametrize("name", NAMES)
def test_revoke_a_grant(machine: Machine, name: str) -> None:
    domain = named(machine, name)
    assert machine.hv.ram[domain.grants.offset(1)] == 1
    inject(machine, f"revoke-grant {name} 1")
    assert machine.hv.ram[domain.grants.offset(1)] == 0
    with pytest.raises(FaultError, match=f"{name} grants no reference 1; there is 0"):
        inject(machine, f"revoke-grant {name} 1")


@pytest.mark.parametrize("name", NAMES)
def test_corrupt_a_ring(machine: Machine, name: str) -> None:
    domain = named(machine, name)
    inject(machine, f"corrupt-ring {name} console-out producer 0xdead0000")
    at = (domain.console_frame << 12) + Layout.XENCONS_INTERFACE_out_prod
    assert int.from_bytes(machine.hv.ram[at : at + 4], "little") == 0xDEAD_0000
    say(machine, name, "time")
    assert machine.domains, "the back end leaves a ring alone that makes no sense"
    inject(machine, f"corrupt-ring {name} xenstore-request consumer 7")
    at = (domain.store_frame << 12) + Layout.XENSTORE_DOMAIN_INTERFACE_req_cons
    assert machine.hv.ram[at] == 7


def test_steal_time(machine: Machine) -> None:
    domain = named(machine, "hello32")
    offline = domain.vcpus[0].runstate_time[OFFLINE]
    injection = inject(machine, "steal hello32 10ms")
    machine.toolstack.type(domain, b"time\r")
    started = machine.now()
    machine.run(started + 9 * MS)
    assert injection.waits and domain.vcpus[0].runstate == OFFLINE
    machine.run(started + 12 * MS)
    assert not injection.waits and domain.paused == 0
    assert domain.vcpus[0].runstate_time[OFFLINE] - offline == 10 * MS
    printed = [found.time for found in records(machine, Kind.CONSOLE_OUT) if found.time > started]
    assert printed and printed[0] >= started + 10 * MS


def test_a_domain_may_be_unpaused_before_its_stolen_time_is_over(machine: Machine) -> None:
    domain = named(machine, "hello32")
    injection = inject(machine, "steal hello32 10ms")
    inject(machine, "unpause hello32")
    machine.run(machine.now() + 20 * MS)
    assert not injection.waits and domain.paused == 0


def test_jump_the_wall_clock(machine: Machine) -> None:
    domain = named(machine, "hello32")
    at = LAYOUT32.SHARED_INFO_wc_sec

    def seconds() -> int:
        return int.from_bytes(domain.shared_info[at : at + 4], "little")

    before, version = seconds(), domain.shared_info[LAYOUT32.SHARED_INFO_wc_version]
    inject(machine, "wall-clock hello32 +1h")
    assert seconds() == before + 3600 and domain.shared_info[LAYOUT32.SHARED_INFO_wc_version] == version + 2
    inject(machine, "wall-clock hello32 -30s")
    assert seconds() == before + 3570


def test_pause_crash_and_destroy(machine: Machine) -> None:
    inject(machine, "pause hello32")
    assert say(machine, "hello32", "time") == ""
    inject(machine, "unpause hello32")
    machine.run(machine.now() + 5 * MS)
    assert named(machine, "hello32").vcpus[0].runstate == BLOCKED
    with pytest.raises(FaultError, match="hello32 is not paused"):
        inject(machine, "unpause hello32")
    ends: list[tuple[str, str]] = []
    machine.toolstack.on_end = lambda domain, reason: ends.append((domain.name, reason))
    inject(machine, "crash hello32")
    assert ends == [("hello32", "crash")]
    inject(machine, "destroy hello64")
    assert "hello64" not in [domain.name for domain in machine.domains]
    with pytest.raises(FaultError, match="no domain 'hello64'"):
        inject(machine, "nmi hello64")


def test_what_waits_for_a_domain_goes_with_it(machine: Machine) -> None:
    """Every hypercall of its kind would pay for it, and another domain of that name is not meant."""
    leave, original = machine.entry.leave, hypercall.TABLE[29]
    for text in ("fail hello32 sched_op -EPERM every 2", "drop-event hello32 port 2", "exception hello32 UD"):
        inject(machine, text)
    inject(machine, "fail hello64 xen_version -EPERM")
    assert len(machine.snares) == 4
    machine.toolstack.destroy(named(machine, "hello32"))
    assert len(machine.snares) == 1 and [fault.waits for fault in machine.faults] == [False, False, False, True]
    assert hypercall.TABLE[29] is original and machine.entry.leave == leave


def test_a_fault_that_is_refused_leaves_nothing(machine: Machine) -> None:
    for text in ("drop-event hello32 port 9", "flip hello32 memory 0x5 bit 1", "nmi hello32 vcpu 3"):
        with pytest.raises(FaultError):
            inject(machine, text)
    assert (machine.faults, machine.snares, records(machine)) == ([], {}, [])


def test_scheduled_faults(machine: Machine) -> None:
    at = machine.now() + 5 * MS
    machine.schedule(at << 1, Action("inject", None, ("pause hello32",)))
    machine.schedule(at << 1, Action("inject", None, ("flip hello32 memory 0x5 bit 1",)))
    machine.run(at + MS)
    assert [(found.kind.name, found.time) for found in machine.faults] == [("pause", at)]
    assert machine.hv.log_lines[-1].endswith(
        "fault not injected (flip hello32 memory 0x5 bit 1): hello32 has nothing mapped at 0x5"
    )


def test_a_fault_with_its_time(machine: Machine) -> None:
    at = machine.now() + 5 * MS
    waiting = inject(machine, f"{at}ns:pause hello32")
    assert waiting.waits and waiting.time == at and named(machine, "hello32").paused == 0
    machine.run(at + MS)
    assert named(machine, "hello32").paused == 1 and not machine.faults[-1].waits
    assert [(found.kind.name, found.time) for found in machine.faults] == [("pause", at)]
    inject(machine, f"{machine.now() + MS}ns:unpause hello64")
    machine.run(machine.now() + 2 * MS)
    assert machine.hv.log_lines[-1].endswith("fault not injected (unpause hello64): hello64 is not paused")
    assert inject(machine, "1ns:unpause hello32").time == machine.now(), "what is past is now"


# --- the command ---------------------------------------------------------------------------------------------------

FAULTS = [
    "fail hello32 xen_version -EPERM every 2",
    "1ms:drop-event hello32 port 2",
    "2ms:flip hello64 register r15 bit 3",
    "700ms:steal hello32 3ms",
    "800ms:wall-clock hello64 +1h",
]


def test_a_recording_with_faults_is_the_same_twice(tmp_path: Path) -> None:
    options: list[Any] = ["hello32", "hello64", "--memory", "16", "--input", r"info\ntime\n", "--for", "1s"]
    for fault in FAULTS:
        options += ["--inject", fault]
    first = record(tmp_path / "1.xtrace", *options, hash_seed=0)
    second = record(tmp_path / "2.xtrace", *options, hash_seed=77)
    assert (first.status, first.digest) == (second.status, second.digest)
    with first.read() as recording:
        kept = [(found.position >> 1, found.action["kind"], found.action["arguments"]) for found in recording.actions()]
        assert [(kind, arguments) for _, kind, arguments in kept] == [
            ("inject", [split_time(text)[1]]) for text in FAULTS
        ]
        assert all(at >= split_time(text)[0] for (at, _, _), text in zip(kept, FAULTS, strict=True))
        injected = numbers(recording)
    assert injected[0] == Fault.FAIL and {Fault.STEAL, Fault.WALL_CLOCK, Fault.FLIP_REGISTER} <= set(injected)
    plain = record(tmp_path / "3.xtrace", *options[: options.index("--inject")])
    with plain.read() as recording:
        assert recording.actions() == [] and numbers(recording) == []


def numbers(recording: Recording) -> list[int]:
    return [found.number for found in map(Record._make, recording.records()) if found.kind == Kind.INJECT]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash nobody", "xentui: --inject 'crash nobody': no domain 'nobody'; there is hello64\n"),
        ("5x:crash hello64", "argument --inject: '5x' is not a time"),
    ],
)
def test_the_command_refuses_what_does_not_exist(
    xtrace: Path, capfd: pytest.CaptureFixture[str], fault: str, message: str
) -> None:
    assert command(["--record", str(xtrace), "hello64", "--inject", fault]) == 2
    assert message in capfd.readouterr().err
    assert not xtrace.exists()
