"""Event channels as the console shows them: the bits in shared_info, ports in words, and a port's history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.pane_app import FakeRecords, PaneApp
from xentui.config import resolve_guest
from xentui.engine.actions import Action
from xentui.engine.machine import Machine
from xentui.engine.views import ViewError, look
from xentui.engine.xen.event_channel import UNBOUND
from xentui.engine.xen.event_fifo import Fifo
from xentui.screens.events import EventsPane
from xentui.screens.pane import Pane
from xentui.screens.port_history import port_history


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(128)
    machine.create(resolve_guest("hello64"))
    machine.create(resolve_guest("hello32"))
    machine.run(3_000_000)
    yield machine
    machine.close()


@pytest.mark.parametrize("domain", [1, 2])
def test_the_bits_are_those_in_shared_info(machine: Machine, domain: int) -> None:
    found = machine.hv.domains[domain]
    port = found.console_port
    bits = look(machine, "events.bitmaps", domain=domain)
    assert bits["ports"] == found.events.abi.ports == len(bits["pending"]) * 8 == len(bits["mask"]) * 8
    assert not bits["pending"][port >> 3] >> (port & 7) & 1
    found.vcpus[0].info[1] = 1
    found.events.set_pending(port)
    bits = look(machine, "events.bitmaps", domain=domain)
    assert bits["pending"][port >> 3] == 1 << (port & 7)
    assert bits["vcpus"] == [{**bits["vcpus"][0], "vcpu": 0, "pending": 1, "mask": 1, "selector": 1}]
    at = bits["offsets"][0] + (found.shared_info_frame << 12)
    assert machine.hv.ram[at + (port >> 3)] == 1 << (port & 7)


def test_ports_in_words(machine: Machine) -> None:
    one, two = machine.domains
    ours = one.events.alloc_unbound_for(2)
    rows = {row["port"]: row for row in look(machine, "events.ports", domain=1)}
    assert rows[ours]["state"] == "unbound" and rows[ours]["peer"] == "waits for domain 2 to bind"
    theirs = two.events.bind_interdomain(1, ours)
    virq, ipi = two.events.bind_virq(1, 0), two.events.bind_ipi(0)
    rows = {row["port"]: row for row in look(machine, "events.ports", domain=2)}
    assert rows[theirs]["peer"] == f"hello64 (d1) port {ours}" and rows[theirs]["remote"] == (1, ours)
    assert rows[theirs]["pending"], "a binding raises one event"
    assert rows[virq]["peer"] == "VIRQ_DEBUG" and rows[ipi]["peer"] == "IPI to vCPU 0"
    assert rows[two.console_port]["peer"] == "domain 0: console"
    assert rows[two.store_port]["peer"] == "domain 0: xenstore"
    assert UNBOUND not in {row["state"] for row in rows.values()}
    with pytest.raises(ViewError, match="domain 9 does not exist"):
        look(machine, "events.ports", domain=9)


def test_a_ports_history_from_both_ends(machine: Machine) -> None:
    one, two = machine.domains
    ours = one.events.alloc_unbound_for(2)
    theirs = two.events.bind_interdomain(1, ours)
    two.vcpus[0].info[1] = 0
    one.events.send(one.vcpus[0], ours)
    records = FakeRecords(machine)
    (sent,) = port_history(records, records.end, 1, ours, 5)
    assert sent.text == f"sent by vCPU 0 to d2 port {theirs} (was pending already)"
    texts = [event.text for event in port_history(records, records.end, 2, theirs, 5)]
    assert texts[0] == f"received from d1 port {ours} (was pending already)"
    assert any(text == "held back by the port's mask" for text in texts)
    assert port_history(records, sent.record, 1, ours, 5) == [], "what comes later is not history"
    assert port_history(None, 10, 1, ours, 5) == []


@pytest.mark.parametrize("size", [(78, 22), (118, 38), (198, 58)])
def test_the_pane(machine: Machine, size: tuple[int, int]) -> None:
    async def run() -> None:
        app = PaneApp(machine, EventsPane())
        async with app.run_test(size=size) as pilot:
            app.update()
            await pilot.press("full_stop")
            text = app.update()
            assert "hello32 d2  2-level ABI, 1024 ports" in text and "port 2" in text
            assert "domain 0: console" in text and "sent by vCPU 0 to d0 port 2" in text
            await pilot.press("enter", "o", "e")
            machine.domains[1].events.set_pending(2)
            assert app.update().count("●") > 2 and "selector 00000001" in app.update()
            await pilot.press("d")
            assert "hello64 d1  2-level ABI, 4096 ports" in app.update()
            await pilot.press("down", "right")
            assert app.pane.port == 67 and "beyond those that exist" in app.update()  # type: ignore[attr-defined]
            await pilot.pause()
            goto, who = app.posted
            assert isinstance(goto, Pane.Goto) and isinstance(who, Pane.WhoWrote)
            assert who.what == ("port", 2, 2) and goto.record is not None
            assert all(len(line) <= size[0] for line in app.screen_text().splitlines())

    asyncio.run(run())


@pytest.mark.parametrize("domain", [1, 2])
def test_the_bits_of_a_port_lie_where_they_are_said_to(machine: Machine, domain: int) -> None:
    """Each changes where `bits` has it, and nothing else does, when the hypervisor sets it."""
    found = machine.hv.domains[domain]
    port, vcpu = found.console_port, found.vcpus[0]

    def state() -> dict[str, bool]:
        return {bit["key"]: bit["set"] for bit in look(machine, "events.bits", domain=domain, port=port)}

    assert set(state()) == set("pksui")
    found.events.abi.mask(port)
    vcpu.info[1] = 1
    before = state()
    assert before["k"] and before["i"] and not before["p"]
    found.events.unmask(port)
    found.events.set_pending(port)
    after = state()
    assert not after["k"] and after["p"] and after["s"] and after["u"] and after["i"]
    other = look(machine, "events.bits", domain=domain, port=port + 200)
    assert [bit["set"] for bit in other if bit["key"] in "ps"] == [False, False], "another word's"


def test_who_wrote_asks_which_bit_is_meant(machine: Machine) -> None:
    async def run() -> None:
        app = PaneApp(machine, EventsPane())
        async with app.run_test(size=(80, 24)) as pilot:
            app.pane.choose_part("3")  # type: ignore[attr-defined]
            app.update()
            for key in "pksuie":
                await pilot.press("o")
                await pilot.pause()
                assert "Who wrote this? Port 3 of domain 2" in app.screen_text()
                await pilot.press(key)
                await pilot.pause()
            await pilot.press("o", "escape")
            await pilot.pause()
            bits = look(machine, "events.bits", domain=2, port=3)
            wanted = [("bit", bit["at"], bit["mask"]) for bit in bits] + [("port", 2, 3)]
            assert [message.what for message in app.posted if isinstance(message, Pane.WhoWrote)] == wanted

    asyncio.run(run())


def test_fifo_queues_are_shown_in_order(machine: Machine) -> None:
    domain = machine.domains[0]
    vcpu, events = domain.vcpus[0], domain.events
    first = [events.alloc_unbound_for(2) for _ in range(3)]
    free = [mfn for mfn in machine.hv.frames.owned_by(1) if not machine.hv.frames.type_count[mfn]][:2]
    assert events.init_control(0, free[0], 0) == 0
    assert isinstance(events.abi, Fifo) and events.abi.expand(free[1]) == 0
    for port in first:
        events.unmask(port)
    events.set_priority(first[2], 2)
    for port in first:
        events.set_pending(port)
    bits = look(machine, "events.bitmaps", domain=1)
    assert bits["abi"] == "FIFO" and bits["vcpus"][0]["queues"] == {7: first[:2], 2: first[2:]}
    rows = {row["port"]: row for row in look(machine, "events.ports", domain=1)}
    assert [rows[port]["pending"] for port in first] == [True] * 3
    assert [rows[port]["priority"] for port in first] == [7, 7, 2]
    machine.hv.ram32[events.abi._word(first[1])] |= first[0]
    assert look(machine, "events.bitmaps", domain=1)["vcpus"][0]["queues"][7] == first[:2], "a guest's loop ends"
    vcpu.domain.events.abi.mask(first[0])
    assert events.abi.is_masked(first[0])
    bits = {bit["key"]: bit["set"] for bit in look(machine, "events.bits", domain=1, port=first[2])}
    assert bits == {"p": True, "k": False, "l": True, "s": True, "u": True, "i": bool(vcpu.info[1])}

    async def run() -> None:
        app = PaneApp(machine, EventsPane())
        async with app.run_test(size=(78, 22)) as pilot:
            app.pane.domain = 1  # type: ignore[attr-defined]
            await pilot.pause()
            assert f"queue 7  {first[0]} → {first[1]}" in app.update()
            assert "▸" not in app.update() and "selector - " in app.update(), "queues take the selector's place"

    asyncio.run(run())


def test_keys_act_on_the_port(machine: Machine) -> None:
    async def run() -> None:
        app = PaneApp(machine, EventsPane())
        async with app.run_test(size=(78, 22)) as pilot:
            app.update()
            await pilot.press("p", "k", "u")
            await pilot.pause()
            actions = [message.action for message in app.posted if isinstance(message, Pane.Act)]
            assert actions == [Action(kind, "hello32", (1,)) for kind in ("send", "mask", "unmask")]
            abi = machine.domains[1].events.abi
            machine.apply(actions[1])
            assert abi.is_masked(1)
            machine.apply(actions[0])
            assert abi.is_pending(1)
            machine.apply(actions[2])
            assert not abi.is_masked(1)

    asyncio.run(run())


@pytest.mark.parametrize("width", [80, 120])
def test_what_a_vcpu_says_has_room(machine: Machine, width: int) -> None:
    """Up to the last digit of the callback, where a 64-bit guest's addresses are long."""

    async def run() -> None:
        app = PaneApp(machine, EventsPane())
        async with app.run_test(size=(width, 24)) as pilot:
            app.update()
            await pilot.press("d")
            text = app.update()
            assert "hello64" in text
            bits = look(machine, "events.bitmaps", domain=1)
            assert f"callback {bits['vcpus'][0]['callback']:x}" in text and bits["vcpus"][0]["callback"] >> 32
            line = next(line for line in app.screen_text().splitlines() if "selector" in line)
            assert line.rstrip().endswith(f"{bits['vcpus'][0]['callback']:x}")

    asyncio.run(run())


def test_every_bit_is_seen_in_a_narrow_pane(machine: Machine) -> None:
    """A word of 64 bits takes two rows there; what a vCPU says, two lines."""

    async def run() -> None:
        app = PaneApp(machine, EventsPane())
        async with app.run_test(size=(47, 30)) as pilot:
            app.update()
            await pilot.press("d")
            text = app.update()
            bits = look(machine, "events.bitmaps", domain=1)
            assert f"       selector 0 callback {bits['vcpus'][0]['callback']:x}" in text
            lines = text.splitlines()
            at = next(number for number, line in enumerate(lines) if line.startswith("word"))
            assert [line[:7].strip() for line in lines[at + 1 : at + 5]] == ["0", "+32", "1", "+32"]
            assert not any("…" in line for line in lines[at : at + 5])
            await pilot.press("down", "down")
            assert app.pane.port == 65 and "word 1 bit 1" in app.update()  # type: ignore[attr-defined]
            await pilot.click(offset=(8 + 31, at + 2))
            assert app.pane.port == 63, "the last bit of word 0"  # type: ignore[attr-defined]

    asyncio.run(run())
