"""Machine memory as the console shows it: the map, page tables, walks, refusals, the audit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest
from textual.pilot import Pilot

from tests.pane_app import PaneApp
from tests.test_faults import table_address
from xentui.config import resolve_guest
from xentui.engine.actions import Action
from xentui.engine.machine import Machine
from xentui.engine.trace import Kind
from xentui.engine.views import ViewError, look
from xentui.engine.views.find import translate
from xentui.engine.views.memory import FREE, XEN
from xentui.engine.x86.paging import FRAME_MASK, PRESENT
from xentui.engine.xen.page import DOMID_INVALID, DOMID_XEN, L4
from xentui.screens import trace_ink
from xentui.screens.memory import MemoryPane
from xentui.screens.memory_map import FrameMap
from xentui.screens.pane import Pane
from xentui.screens.sheet import DOMAIN_INKS


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(128)
    machine.create(resolve_guest("hello64"))
    machine.create(resolve_guest("hello32"))
    machine.run(3_000_000)
    yield machine
    machine.close()


def test_the_map_by_owner_is_what_most_frames_of_a_cell_are(machine: Machine) -> None:
    found = look(machine, "memory.frame_map", cells=500)
    frames = machine.hv.frames
    assert found["names"] == ["hello64", "hello32"] and found["frames"] == frames.count
    codes = {1: 0, 2: 1, DOMID_INVALID: FREE, DOMID_XEN: XEN}
    size = found["size"]
    assert len(found["cells"]) == -(-frames.count // size) <= 500
    for cell in (0, 1, 7, 100, len(found["cells"]) - 1):
        counted = Counter(codes[owner] for owner in frames.owner[cell * size : (cell + 1) * size].tolist())
        assert counted[found["cells"][cell]] == max(counted.values())
    assert found["totals"][0] == len(frames.owned_by(1)) and sum(found["totals"].values()) == frames.count


def test_the_map_by_type_shows_a_table_among_plain_memory(machine: Machine) -> None:
    mfn = machine.domains[0].vcpus[0].guest_table
    found = look(machine, "memory.frame_map", cells=500, by="type")
    assert found["names"][found["cells"][mfn // found["size"]]] == "L4"
    close = look(machine, "memory.frame_map", cells=64, by="type", first=mfn - 3, count=64)
    assert close["size"] == 1 and close["cells"][3] == L4 and close["first"] == mfn - 3
    with pytest.raises(ViewError, match="by owner or by type, not by colour"):
        look(machine, "memory.frame_map", cells=5, by="colour")


def test_a_frame(machine: Machine) -> None:
    domain = machine.domains[1]
    found = look(machine, "memory.frame", mfn=domain.vcpus[0].guest_table)
    assert (found["owner"], found["type"], found["flags"][0]) == ("hello32", "L3", "pinned")
    assert machine.hv.get_m2p(found["mfn"]) == found["pfn"]
    assert look(machine, "memory.frame", mfn=domain.shared_info_frame)["special"] == "shared_info"
    assert look(machine, "memory.frame", mfn=domain.console_frame)["special"] == "console ring"
    with pytest.raises(ViewError, match="machine memory has frames 0 to"):
        look(machine, "memory.frame", mfn=1 << 30)


@pytest.mark.parametrize(("domain", "level"), [(1, 4), (2, 3)])
def test_tables_lead_to_what_the_processor_finds(machine: Machine, domain: int, level: int) -> None:
    vcpu = machine.hv.domains[domain].vcpus[0]
    (root,) = look(machine, "memory.roots", domain=domain)
    assert (root["level"], root["mfn"], root["current"]) == (level, vcpu.guest_table, True)
    mfn, base, seen = root["mfn"], 0, 0
    while level > 1:
        entries = [row for row in look(machine, "memory.table", mfn=mfn, level=level, base=base) if not row["xen"]]
        assert entries and all(row["present"] for row in entries)
        row = entries[0]
        assert machine.hv.ram64[row["at"] >> 3] == row["entry"]
        mfn, base, level = row["mfn"], row["address"], level - 1
        assert machine.hv.frames.type[mfn] == level
    for row in look(machine, "memory.table", mfn=mfn, level=1, base=base):
        if row["present"]:
            offset, _ = translate(vcpu, row["address"])
            assert offset >> 12 == row["mfn"]
            seen += 1
    assert seen > 20
    with pytest.raises(ViewError, match="there is no L9 table"):
        look(machine, "memory.table", mfn=1, level=9)


@pytest.mark.parametrize("domain", [1, 2])
def test_walks(machine: Machine, domain: int) -> None:
    vcpu = machine.hv.domains[domain].vcpus[0]
    walk = look(machine, "memory.walk", domain=domain, at="rsp")
    assert walk["ok"] and [step["level"] for step in walk["steps"]] == [4, 3, 2, 1]
    assert walk["machine_address"] == translate(vcpu, walk["address"])[0]
    assert "written" in walk["why"] and "executed" not in walk["why"]
    code = look(machine, "memory.walk", domain=domain)
    assert "executed" in code["why"] and "written" not in code["why"]
    empty = look(machine, "memory.walk", domain=domain, at=0x1000)
    assert not empty["ok"] and empty["why"] == f"the L{empty['steps'][-1]['level']} entry is not present: " + (
        "an access is a page fault"
    )
    xen = look(machine, "memory.walk", domain=domain, at=0xFFFF_8000_0000_0000 if domain == 1 else 0xF580_0000)
    assert "Xen's part of the address space" in xen["why"]
    vcpu.space.ram64[walk["steps"][2]["at"] >> 3] |= FRAME_MASK | PRESENT
    assert "beyond machine memory" in look(machine, "memory.walk", domain=domain, at="rsp")["why"]


def test_the_audit(machine: Machine) -> None:
    assert look(machine, "memory.audit") == []
    machine.hv.frames.ref_count[machine.domains[0].console_frame] += 1
    (finding,) = look(machine, "memory.audit")
    assert "the walk finds" in finding


# --- the pane ------------------------------------------------------------------------------------------------------


def drive(machine: Machine, size: tuple[int, int], steps: Callable[[PaneApp, Pilot[None]], Awaitable[None]]) -> None:
    async def run() -> None:
        app = PaneApp(machine, MemoryPane())
        async with app.run_test(size=size) as pilot:
            app.update()
            await pilot.pause()
            await steps(app, pilot)
            assert all(len(line) <= size[0] for line in app.screen_text().splitlines())

    asyncio.run(run())


@pytest.mark.parametrize("size", [(78, 22), (118, 38), (198, 58)])
def test_the_map_and_a_frame_under_the_cursor(machine: Machine, size: tuple[int, int]) -> None:
    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        await pilot.press("o")
        await pilot.pause()
        assert app.posted and app.posted.pop().what == ("frame", 0)  # type: ignore[attr-defined]
        text = app.update()
        assert "by owner" in text and "██ hello64 " in text and "owner Xen" in text
        await pilot.press("t", *["right"] * 5, "down")
        assert "by type" in app.update() and "██ L4 " in app.update()
        width = app.pane.content_size.width
        cell = width + 5
        mfn = cell * look(machine, "memory.frame_map", cells=width * app.pane.map.rows * 2)["size"]  # type: ignore[attr-defined]
        assert f"frame {mfn:#x}" in app.update()
        for _ in range(4):
            await pilot.press("enter")
            app.update()
        assert "a cell is a frame " in app.update()
        await pilot.press("backspace")
        assert "frames 0x0 to" in app.update()
        views = [query.view for query in app.pane.queries()]
        assert views == ["memory.frame"], "the whole table is looked at once a second"

    drive(machine, size, steps)


def test_the_tree_opens_a_level_at_a_time(machine: Machine) -> None:
    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        await pilot.press("right_square_bracket")
        assert "▸ L3 of kernel and user" in app.update() and "L2[" not in app.update()
        await pilot.press("right")
        assert "▸ L3[  3] c0000000" in app.update()
        app.update()
        await pilot.press("down", "right")
        app.update()
        await pilot.press("down", "right")
        text = app.update()
        assert "L1[  0] c0000000" in text and "writable used" in text
        await pilot.press("o", "left", "left")
        await pilot.pause()
        (who,) = app.posted
        assert isinstance(who, Pane.WhoWrote) and who.what[0] == "pte"
        assert "L1[  0]" not in app.update()
        await pilot.press("d")
        assert "page tables of hello64 d1v0" in app.update() and "▸ L4 of kernel" in app.update()

    drive(machine, (78, 22), steps)


def test_every_vcpu_has_a_tree_of_its_own(machine: Machine) -> None:
    """The pane follows whoever has the processor: what was open in another's tables is not mixed with these."""

    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        def moment(domain: int) -> str:
            status = app.engine.status
            status.current = (domain, 0)
            for _ in range(3):
                app.pane.show(app.ask(*app.pane.queries()), status)
            return app.pane.text()

        await pilot.press("right_square_bracket")
        moment(2)
        await pilot.press("right")
        text = moment(1)
        assert "page tables of hello32 d2v0 ─" in text and "L3[  3] c0000000" in text, "what is opened stays"
        await pilot.press("f")
        text = moment(2)
        assert "page tables of hello32 d2v0 · follows" in text and "L3[  3] c0000000" in text
        text = moment(1)
        assert "page tables of hello64 d1v0" in text and "▸ L4 of kernel" in text and "L3[  3]" not in text
        assert "← CR3 now" in text
        assert "L3[  3] c0000000" in moment(2)

    drive(machine, (78, 22), steps)


def test_a_pane_stays_with_one_domain_while_all_run(machine: Machine) -> None:
    """It follows where an eye can: at a stop, or when the machine runs slowly."""

    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        def at(domain: int, running: bool, speed: int | None = None) -> tuple[int, int] | None:
            status = app.engine.status
            status.current, status.running, status.speed = (domain, 0), running, speed
            app.pane.show(app.ask(*app.pane.queries()), status)
            return app.pane.current_vcpu()

        assert at(1, False) == (1, 0) and at(2, False) == (2, 0)
        assert at(1, True) == (2, 0) and at(2, True) == (2, 0) and at(1, True, 1_000_000) == (2, 0)
        assert at(1, False) == (1, 0) and at(2, True, 100) == (2, 0)
        gone = app.engine.status
        gone.running, gone.domains, gone.current = True, gone.domains[:1], (1, 0)
        app.pane.show({}, gone)
        assert app.pane.current_vcpu() == (1, 0)

    drive(machine, (78, 22), steps)


def test_walk_refusals_and_audit(machine: Machine) -> None:
    table = table_address(machine.domains[1])
    machine.apply(Action("inject", None, (f"flip hello32 pte {table:#x} bit 1",)))
    record = max(
        number for number, found in enumerate(machine.trace.latest(machine.trace.head)) if found.kind == Kind.REFUSAL
    )

    async def steps(app: PaneApp, pilot: Pilot[None]) -> None:
        await pilot.press("a", *hex(table), "enter")
        await pilot.pause()
        text = app.update()
        assert f"virtual address {table:x}" in text and "✓ machine address" in text and "L1 used" in text
        await pilot.press("a", *"0x1000", "enter")
        await pilot.pause()
        assert "✗ the L3 entry is not present: an access is a page fault" in app.update()
        await pilot.press("right_square_bracket")
        text = app.update()
        assert "no guest may map writable" in text and "xen/arch/x86/mm.c" in text and "-EBUSY" in text
        mfn = machine.domains[1].vcpus[0].guest_table
        assert f"entry  L1[{table >> 12 & 511}] at machine address 0x" in text, "in few lines, whose frame it is first"
        assert text.index(f"frame  {mfn:#x}, d2's, type L3") < text.index("old ") < text.index("new ")
        await pilot.press("enter", "u")
        await pilot.pause()
        assert app.posted == [app.posted[0]] and app.posted[0].record == record  # type: ignore[attr-defined]
        assert "audit: the frame table is what the page tables say" in app.update()

    drive(machine, (100, 30), steps)


def test_a_domain_has_one_colour_everywhere(machine: Machine) -> None:
    """In the map, in the trace and where rings are crossed; also when a domain before it is gone."""
    machine.apply(Action("destroy", "hello64"))
    machine.create(resolve_guest("hello64"))
    colours = FrameMap()
    colours.update(look(machine, "memory.frame_map", cells=100))
    assert colours.answer is not None and colours.answer["domains"] == [2, 3]
    assert [colours.colour(code) for code in (0, 1)] == ["#e69f00", "#009e73"], "orange, green"
    assert DOMAIN_INKS[1:3] == ("orange", "green")
    assert [trace_ink.of_domain(number) for number in (1, 2, 3, 4, 5, 6)] == [
        getattr(trace_ink, name.upper()) for name in DOMAIN_INKS
    ]
