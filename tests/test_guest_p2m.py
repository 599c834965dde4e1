"""What a toolstack reads of a guest's own P2M: by page tables, by frame lists, of Linux, and of guests that lie."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes_xen import World, XenGuest
from tests.kernels import Kernels
from xentui.config import GuestSpec, resolve_guest
from xentui.engine.dom0.guest_p2m import LIST, NONE, TREE, read
from xentui.engine.machine import Machine, Stop
from xentui.engine.views import ViewError, look
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64

both = pytest.mark.parametrize("width", [32, 64])
TABLE, LISTS, TOP = 50, 52, 53
"""Pages of the guest that hold its P2M, a frame list, and the list of those."""


def make(width: int) -> XenGuest:
    guest = World(width).guests[0]
    code = "<Q" if width == 64 else "<I"
    for pfn, mfn in enumerate(guest.guest.p2m):
        guest.put((TABLE << 12) + pfn * struct.calcsize(code), struct.pack(code, mfn))
    guest.put(LISTS << 12, struct.pack(code, guest.guest.p2m[TABLE]))
    guest.put(TOP << 12, struct.pack(code, guest.guest.p2m[LISTS]))
    return guest


def say(guest: XenGuest, **fields: int) -> None:
    size = guest.domain.long_size
    for name, value in fields.items():
        at = getattr(guest.layout, f"SHARED_INFO_arch_{name}")
        guest.domain.shared_info[at : at + size] = value.to_bytes(size, "little")


def top_table(guest: XenGuest) -> int:
    """The value of CR3."""
    mfn = guest.vcpu.guest_table
    return mfn << 12 if guest.domain.width == 64 else (mfn << 12 | mfn >> 20) & 0xFFFF_FFFF


@both
def test_a_list_at_a_virtual_address(width: int) -> None:
    guest = make(width)
    pages = len(guest.guest.p2m)
    say(guest, max_pfn=pages, p2m_cr3=top_table(guest), p2m_vaddr=TABLE << 12, p2m_generation=4)
    found = read(guest.domain)
    assert found[:5] == (LIST, guest.vcpu.guest_table, TABLE << 12, 4, pages)
    assert (found.pages, found.mapped, found.wrong, found.problem) == (1, pages, [], "")
    guest.put(TABLE << 12, guest.get(guest.domain.long_size, (TABLE << 12) + 5 * guest.domain.long_size))
    found = read(guest.domain)
    assert (found.mapped, found.wrong) == (pages - 1, [(0, guest.guest.p2m[5])])


@both
def test_a_tree_of_frames(width: int) -> None:
    guest = make(width)
    pages = len(guest.guest.p2m)
    say(guest, max_pfn=pages, pfn_to_mfn_frame_list_list=guest.guest.p2m[TOP])
    found = read(guest.domain)
    assert (found.kind, found.root, found.pages, found.mapped) == (TREE, guest.guest.p2m[TOP], 1, pages)
    assert found.problem == "" and found.wrong == []


@both
def test_one_that_is_not_said_or_not_there(width: int) -> None:
    guest = make(width)
    none = (1 << width) - 1
    for nowhere in (0, none):
        say(guest, pfn_to_mfn_frame_list_list=nowhere)
        assert read(guest.domain).kind == NONE
    say(guest, max_pfn=1, p2m_cr3=top_table(guest), p2m_vaddr=300 << 12)
    assert read(guest.domain).problem == "page 0 of 1 is not there"
    say(guest, max_pfn=1 << 31, p2m_vaddr=TABLE << 12)
    assert "entries" in read(guest.domain).problem


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([32, 64]),
    st.lists(st.integers(0, 800) | st.integers(0, (1 << 64) - 1), min_size=5, max_size=5),
    st.integers(0, 12),
)
def test_whatever_the_guest_says(width: int, words: list[int], shift: int) -> None:
    guest = make(width)
    mask = (1 << width) - 1
    names = ("max_pfn", "p2m_cr3", "p2m_vaddr", "p2m_generation", "pfn_to_mfn_frame_list_list")
    words[0] %= 1 << 22
    say(guest, **{name: word << shift & mask for name, word in zip(names, words, strict=True)})
    found = read(guest.domain)
    assert found.mapped <= len(guest.guest.p2m) and found.kind in (LIST, TREE, NONE)


@pytest.mark.parametrize("name", ["hello32", "hello64"])
def test_start_info_says_that_a_list_is_understood(name: str) -> None:
    """SIF_VIRT_P2M_4TOOLS, in every domain that a toolstack builds (xg_dom_core.c)."""
    with Machine(64) as machine:
        domain = machine.create(resolve_guest(name))
        layout = LAYOUT64 if domain.width == 64 else LAYOUT32
        frames = [mfn for mfn in machine.hv.frames.owned_by(domain.id) if mfn != domain.shared_info_frame]
        magic = b"xen-3.0-x86_"
        (page,) = [mfn << 12 for mfn in frames if machine.hv.ram[mfn << 12 : (mfn << 12) + 12] == magic]
        at = page + layout.START_INFO_flags
        assert int.from_bytes(machine.hv.ram[at : at + 4], "little") == core.SIF_VIRT_P2M_4TOOLS
        assert look(machine, "memory.p2m", domain=domain.id)["kind"] == NONE
        with pytest.raises(ViewError):
            look(machine, "memory.p2m", domain=99)


@pytest.mark.kernels
@pytest.mark.slow
def test_linux(kernels: Kernels) -> None:
    """Linux builds no tree where start_info has the flag; its list has all its frames and agrees with the M2P."""
    with Machine(256) as machine:
        domain = machine.create(GuestSpec("linux", kernels.linux, memory=256, cmdline="console=hvc0"))
        text = bytearray()

        def hear(_domain: object, data: bytes) -> None:
            text.extend(data)
            if b"Freeing" in text or b"VFS:" in text:
                machine.stop()

        machine.toolstack.on_output = hear
        assert machine.run(60_000_000_000) == Stop.ASKED, text[-2000:]
        found = read(domain)
        at = LAYOUT64.SHARED_INFO_arch_pfn_to_mfn_frame_list_list
        assert domain.shared_info[at : at + 8] == b"\xff" * 8
        assert (found.kind, found.problem, found.wrong) == (LIST, "", [])
        assert found.mapped == domain.tot_pages and found.generation % 2 == 0
