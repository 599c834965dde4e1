"""Shared rings as the console shows them: pointers, what lies between them, contents, and the drawing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from struct import pack_into
from typing import Any

import pytest

from tests.pane_app import PaneApp
from xentui.config import resolve_guest
from xentui.engine.dom0.xenstore import HEADER
from xentui.engine.machine import Machine
from xentui.engine.views import ViewError, look
from xentui.engine.xen.abi.io import xs_wire
from xentui.engine.xen.abi.layout import Layout
from xentui.engine.xen.domain import Domain
from xentui.screens.pane import Pane
from xentui.screens.ring_drawing import arcs, bar, circle, states
from xentui.screens.rings import RingsPane


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(128)
    machine.create(resolve_guest("hello64"))
    machine.create(resolve_guest("hello32"))
    machine.run(3_000_000)
    yield machine
    machine.close()


def page(machine: Machine, frame: int) -> memoryview:
    return machine.hv.ram[frame << 12 : (frame + 1) << 12]


def test_console(machine: Machine) -> None:
    domain = machine.domains[0]
    found = look(machine, "rings.ring", domain=1)
    out, into = found["rings"]
    assert found["mfn"] == domain.console_frame and (out["name"], into["name"]) == ("out", "in")
    (_, put, who), (_, taken, other) = out["pointers"]
    assert put == taken > 100 and (who, other) == ("guest", "domain 0") and out["waiting"] == 0
    assert out["messages"][0] == {
        "text": "Hello from hello64, a 64-bit paravirtualized guest in ring 3.",
        "taken": True,
    }
    shared = page(machine, domain.console_frame)
    machine.toolstack.services[1].console.type(b"help\r")
    found = look(machine, "rings.ring", domain=1)
    assert found["rings"][1]["waiting"] == 5
    assert found["rings"][1]["messages"] == [{"text": "help", "taken": False}]
    pack_into("<I", shared, Layout.XENCONS_INTERFACE_in_prod, 0xDEAD_0000)
    assert not look(machine, "rings.ring", domain=1)["rings"][1]["sane"]


def message(kind: int, request: int, *words: str) -> bytes:
    payload = b"".join(word.encode() + b"\0" for word in words)
    return bytes(HEADER.pack(kind, request, 0, len(payload))) + payload


def test_xenstore_messages_before_and_behind_the_wrap(machine: Machine) -> None:
    domain = machine.domains[1]
    shared = page(machine, domain.store_frame)
    first, second = message(xs_wire.XS_READ, 1, "name"), message(xs_wire.XS_WRITE, 2, "data/x", "1")
    shared[: len(first + second)] = first + second
    pack_into("<II", shared, Layout.XENSTORE_DOMAIN_INTERFACE_req_cons, len(first), len(first + second))
    request, response = look(machine, "rings.ring", domain=2, name="xenstore")["rings"]
    assert request["messages"] == [
        {"text": "READ #1 name", "taken": True},
        {"text": "WRITE #2 data/x 1", "taken": False},
    ]
    assert response["messages"] == [] and request["waiting"] == len(second)
    at = 5 * 1024 - 10
    for place, byte in enumerate(second, at):
        shared[place % 1024] = byte
    pack_into("<II", shared, Layout.XENSTORE_DOMAIN_INTERFACE_req_cons, at, at + len(second))
    request, _ = look(machine, "rings.ring", domain=2, name="xenstore")["rings"]
    assert [found["text"] for found in request["messages"]] == ["WRITE #2 data/x 1"]
    shared[at % 1024] = 0x77
    request, _ = look(machine, "rings.ring", domain=2, name="xenstore")["rings"]
    assert [found["text"] for found in request["messages"]] == ["(not a message)"]


def grant_a_ring(machine: Machine, domain: Domain) -> int:
    """A frame granted to domain 0 with a ring in it: 9 requests, 7 taken, 4 answered, 2 answers read."""
    frames = machine.hv.frames
    frame = next(mfn for mfn in frames.owned_by(domain.id) if not frames.type_count[mfn])
    domain.grants.seed(8, 0, frame)
    pack_into("<IIII", page(machine, frame), 0, 9, 8, 4, 3)
    return frame


def test_a_granted_ring_has_four_pointers(machine: Machine) -> None:
    domain = machine.domains[0]
    frame = grant_a_ring(machine, domain)
    assert look(machine, "rings.rings", domain=1)[2] == {"name": "grant", "reference": 8, "mfn": frame, "peer": 0}
    (part,) = look(machine, "rings.ring", domain=1, name="grant", reference=8)["rings"]
    assert part["size"] == 32 and [index for _, index, _ in part["pointers"]] == [9, 7, 4, 2]
    assert arcs(part) == [("waiting", 7, 2), ("outstanding", 4, 3), ("answered", 2, 2)]
    assert states(part, 32)[:10] == ["free"] * 2 + ["answered"] * 2 + ["outstanding"] * 3 + ["waiting"] * 2 + ["free"]
    with pytest.raises(ViewError, match="has grant references 0 to"):
        look(machine, "rings.ring", domain=1, name="grant", reference=99999)
    with pytest.raises(ViewError, match="no 'disk'"):
        look(machine, "rings.ring", domain=1, name="disk")


def byte_ring(producer: int, consumer: int, size: int = 1024) -> dict[str, Any]:
    return {
        "name": "in", "size": size, "unit": "bytes", "sane": True, "waiting": producer - consumer,
        "pointers": [("producer", producer, "a"), ("consumer", consumer, "b")],
    }  # fmt: skip


def test_what_waits_is_never_lost_in_the_drawing() -> None:
    assert states(byte_ring(5, 5), 16) == ["free"] * 16
    assert states(byte_ring(6, 5), 16).count("waiting") == 1
    assert states(byte_ring(1024, 0), 16) == ["waiting"] * 16
    wrapped = states(byte_ring(1024 + 64, 960), 16)
    assert [cell for cell, state in enumerate(wrapped) if state == "waiting"] == [0, 15]
    assert circle(byte_ring(512, 0), 40, 17) == [], "no room for names beside it"
    drawn = circle(byte_ring(512, 0), 76, 17)
    text = ["".join(run for run, _ in line) for line in drawn]
    assert len(text) == 17 and all(len(line) == 76 for line in text)
    assert sum(line.count("●") for line in text) > 10 and sum(line.count("◦") for line in text) > 10
    assert any("◂ consumer 0" in line for line in text) and any("producer 512 ▸" in line for line in text)
    assert any("512 of 1024 bytes" in line for line in text)
    slots, pointers = ("".join(run for run, _ in line) for line in bar(byte_ring(1000, 10), 60))
    assert len(slots) == len(pointers) == 60 and "▴ consumer 10" in pointers and "producer 1000 ▴" in pointers


@pytest.mark.parametrize("size", [(78, 22), (118, 38), (198, 58)])
def test_the_pane(machine: Machine, size: tuple[int, int]) -> None:
    grant_a_ring(machine, machine.domains[0])

    async def run() -> None:
        app = PaneApp(machine, RingsPane())
        async with app.run_test(size=size) as pilot:
            app.update()
            text = app.update()
            assert (
                "hello32 d2" in text
                and ("producer + consumer" in text or "both " in text)
                and "Hello from hello32" in text
            )
            await pilot.press("o", "3", "d")
            app.update()
            await pilot.press("right_square_bracket")
            app.update()
            assert "request " in app.update() and "response" in app.update()
            await pilot.press("right_square_bracket")
            app.update()
            text = app.update()
            assert "request producer 9" in text and "response consumer 2" in text and "taken, not answered" in text
            await pilot.press("Z", "backspace", "backspace", "backspace", *"12", "enter")
            await pilot.pause()
            app.update()
            assert "256 slots of" in app.update()
            (who,) = app.posted
            assert isinstance(who, Pane.WhoWrote) and who.what[0] == "ring" and who.what[1] & 0xFFF in (0xC00, 0xC04)
            assert all(len(line) <= size[0] for line in app.screen_text().splitlines())

    asyncio.run(run())


def small_ring(machine: Machine, requests: int, taken: int, answered: int, read: int) -> None:
    """Slots of 8 bytes: an id and a number."""
    shared = page(machine, grant_a_ring(machine, machine.domains[0]))
    shared[64:] = bytes(4096 - 64)
    for index in range(requests):
        pack_into("<II", shared, 64 + index % 256 * 8, index + 1, 1000 + index)
    pack_into("<IIII", shared, 0, requests, taken + 1, answered, read + 1)


def test_the_size_of_a_slot_is_guessed(machine: Machine) -> None:
    small_ring(machine, 399, 399, 399, 399)
    found = look(machine, "rings.ring", domain=1, name="grant", reference=8)
    assert found["shape"] == "one ring, four pointers; 256 slots of 8 bytes"
    shared = page(machine, found["mfn"])
    pack_into("<I", shared, 0, 2)
    shared[64 + 16 : 4096] = bytes(4096 - 80)
    shared[64 + 112 + 31] = 1
    found = look(machine, "rings.ring", domain=1, name="grant", reference=8)
    assert found["rings"][0]["entry"] == 112, "a second block request reaches so far"


@pytest.mark.parametrize("width", [58, 76, 98, 118, 160])
@pytest.mark.parametrize("indices", [(399, 399, 399, 399), (399, 399, 399, 250), (510, 508, 508, 300), (450, 300)])
def test_no_name_beside_a_circle_is_cut(width: int, indices: tuple[int, ...]) -> None:
    names = ("request producer", "request consumer", "response producer", "response consumer")
    part = {
        **byte_ring(indices[0], indices[-1], 256),
        "pointers": [(name, index, "a") for name, index in zip(names, indices, strict=False)],
    }
    text = "\n".join("".join(run for run, _ in line) for line in circle(part, width, 21))
    if text:
        assert all(text.count(str(index)) for index in indices)
        assert text.count("◂") + text.count("▸") == len({index % 256 for index in indices})
    else:
        assert width < 76 or (len(indices) == 4 and width < 118)


@pytest.mark.parametrize("indices", [(399, 399, 399, 399), (399, 397, 396, 394), (510, 508, 300, 256)])
def test_a_granted_ring_in_eighty_columns(machine: Machine, indices: tuple[int, int, int, int]) -> None:
    """Its four pointers are all told, and its newest slots with their states."""
    small_ring(machine, *indices)

    async def run() -> None:
        app = PaneApp(machine, RingsPane())
        async with app.run_test(size=(80, 22)) as pilot:
            app.update()
            await pilot.press("d")
            app.update()
            await pilot.press("left_square_bracket")
            app.update()
            text = app.update()
            lines = text.splitlines()
            assert not any("…" in line for line in lines[:8]), text
            drawing, pointers = lines[2:4]
            assert drawing.startswith("grant 8  ▕") and len(drawing) == 80
            for name, index in zip(("req_prod", "req_cons", "rsp_prod", "rsp_cons"), indices, strict=True):
                assert (name in pointers or "all four" in pointers) and str(index) in pointers
            for index in indices:
                assert f" {index} (" in text
            newest = lines[-1]
            last = indices[0] - 1
            assert f"{last}  slot {last % 256:>3}  " in newest and newest.endswith(f"{last + 1} {1000 + last}")
            assert newest.startswith("●") == (indices[1] < indices[0])

    asyncio.run(run())
