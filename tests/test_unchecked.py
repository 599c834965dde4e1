"""`--no-validator`: the attacks succeed, the others' frame counts stay right, and the engine survives."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest

from tests.command import record
from tests.fakes import DATA, STACK_PFN, Guest, P, U, W, make_guest, make_hypervisor
from xentui.engine.xen import domain_kill, memory, mm, mmuext, unchecked
from xentui.engine.xen.abi import core
from xentui.engine.xen.abi.errno import EINVAL, EPERM
from xentui.engine.xen.audit import audit
from xentui.engine.xen.guest_access import GuestFault
from xentui.engine.xen.page import DOMID_INVALID

SELF = core.DOMID_SELF
both = pytest.mark.parametrize("width", [32, 64])


def make_pair(width: int) -> tuple[Guest, Guest]:
    """A domain without the validator, and its victim."""
    hv = make_hypervisor()
    guest, victim = (make_guest(hv, number, width, loose=8) for number in (1, 2))
    unchecked.switch_off(guest.domain)
    return guest, victim


def map_va(guest: Guest, address: int, entry: int) -> int:
    if guest.vcpu.width == 64:
        return mm.do_update_va_mapping(guest.vcpu, address, entry, core.UVMF_INVLPG, 0)
    return mm.do_update_va_mapping(guest.vcpu, address, entry & 0xFFFF_FFFF, entry >> 32, core.UVMF_INVLPG)


def ext(guest: Guest, command: int, mfn: int) -> int:
    form = "<I4xQQ" if guest.vcpu.width == 64 else "<III"
    guest.write(STACK_PFN << 12, list(struct.pack(form, command, mfn, 0).ljust(24, b"\0")), "B")
    return mmuext.do_mmuext_op(guest.vcpu, STACK_PFN << 12, 1, 0, SELF)


@both
def test_what_the_validator_forbids_is_done(width: int) -> None:
    guest, victim = make_pair(width)
    hv, l1 = guest.hv, guest.tables["l1"]
    assert map_va(guest, 50 << 12, l1 << 12 | DATA) == 0  # its own page table, writable
    assert map_va(guest, 51 << 12, victim.entry(50)) == 0  # another domain's frame, writable
    offset = guest.vcpu.space.write_page(51 << 12)
    assert offset == victim.p2m[50] << 12
    assert guest.update((victim.p2m[52] << 12) + 8, 0x5EC2E7) == 0
    assert hv.ram64[(victim.p2m[52] << 9) + 1] == 0x5EC2E7
    assert ext(guest, core.MMUEXT_CLEAR_PAGE, victim.p2m[52]) == 0
    assert hv.ram64[(victim.p2m[52] << 9) + 1] == 0
    assert audit(hv) == [], "the victim's counts are as they were"
    assert any("NOT validated" in line for line in hv.log_lines)


@both
def test_what_would_take_the_engine_down_is_still_refused(width: int) -> None:
    guest, _ = make_pair(width)
    hv = guest.hv
    assert map_va(guest, 50 << 12, 1 << 12 | DATA) == -EPERM  # the hypervisor's own
    assert map_va(guest, 50 << 12, hv.frames.count << 12 | DATA) == -EPERM
    assert guest.update(hv.frames.count << 12, 0) == guest.update(1 << 12, 0) == -EINVAL
    free = next(mfn for mfn in range(hv.frames.count) if hv.frames.owner[mfn] == DOMID_INVALID)
    assert guest.update(free << 12, 1) == ext(guest, core.MMUEXT_PIN_L1_TABLE, free) == -EINVAL
    top = guest.tables["l4"] if width == 64 else guest.tables["l2_last"]
    slot = 256 if width == 64 else 0x1AC
    before = hv.ram64[(top << 9) + slot]
    assert guest.update((top << 12) + 8 * slot, guest.entry(50)) == -EPERM
    assert hv.ram64[(top << 9) + slot] == before


@both
def test_new_tables_get_the_bits_without_which_a_kernel_could_not_run(width: int) -> None:
    guest, _ = make_pair(width)
    hv, (l1, l2) = guest.hv, guest.p2m[5:7]
    hv.ram64[l1 << 9] = guest.p2m[50] << 12 | P | W
    hv.ram64[l2 << 9] = l1 << 12 | P | W
    assert guest.update((guest.tables["l3"] << 12) + 8, l2 << 12 | P) == 0
    assert guest.vcpu.space.read_page(1 << 30) == guest.p2m[50] << 12
    assert bool(hv.ram64[l1 << 9] & U) == bool(hv.ram64[l2 << 9] & U) == (width == 64)
    if width == 64:
        l4 = guest.p2m[7]
        assert ext(guest, core.MMUEXT_PIN_L4_TABLE, l4) == ext(guest, core.MMUEXT_NEW_BASEPTR, l4) == 0
        assert hv.ram64[(l4 << 9) + 256] == hv.xen_l4_slots[256]


@both
@pytest.mark.parametrize("seed", range(8))
def test_no_rubbish_in_its_tables_hurts_the_engine_or_the_victims_counts(width: int, seed: int) -> None:
    guest, victim = make_pair(width)
    hv, random = guest.hv, Random(seed)
    own, tables = guest.p2m, list(guest.tables.values())
    for _ in range(300):
        target = random.choice([*own, *victim.p2m[8:], random.getrandbits(40), hv.frames.count])
        entry = target << 12 & 0xF_FFFF_FFFF_F000 | random.choice([DATA, P, P | U, random.getrandbits(12)])
        step = random.randrange(6)
        try:
            if step == 0:  # by itself, through a writable mapping of its tables; not the slot of its code and stack
                hv.ram64[(random.choice(tables) << 9) + random.randrange(64, 256)] = entry
            elif step == 1:
                map_va(guest, random.randrange(64, 512) << 12, entry)
            elif step == 2:
                guest.update((random.choice(tables) << 12) + 8 * random.randrange(64, 512), entry)
            elif step == 3:
                ext(guest, random.randrange(5), random.choice(own[4:12]))
            elif step == 4:
                guest.write(STACK_PFN << 12, [random.choice(own[50:])])
                memory.do_memory_op(guest.vcpu, 1, STACK_PFN << 12, 0, 0)
            else:
                guest.vcpu.space.write_page(random.getrandbits(48))
        except GuestFault:
            continue
        assert audit(hv) == []
    domain_kill.free_domain_memory(guest.domain)
    del hv.domains[1]
    assert hv.frames.owned_by(1) == [] and audit(hv) == []
    domain_kill.free_domain_memory(victim.domain)
    del hv.domains[2]
    assert audit(hv) == []


@both
def test_the_attack_guest_breaks_out(xtrace: Path, width: int) -> None:
    done = record(xtrace, f"attack{width}", f"neighbour{width}", "--no-validator", f"attack{width}", "--audit")
    broke_out = [line for line in done.lines if line.startswith(f"attack{width}: not ok")]
    assert any("writable-L1" in line for line in broke_out) and len(broke_out) > 10
    assert (
        f"warning: attack{width} runs without the page-table validator" in done.errors and "audit:" not in done.errors
    )
    with done.read() as recording:
        assert [guest["validated"] for guest in recording.header["guests"]] == [False, True]


def test_a_name_that_no_guest_has_is_an_error(xtrace: Path) -> None:
    done = record(xtrace, "hello64", "--no-validator", "hello")
    assert done.status == 2 and not xtrace.exists()
    assert done.errors == "xentui: --no-validator hello: no guest has that name; there is hello64\n"


@both
def test_an_honest_guest_runs_without_it(xtrace: Path, width: int) -> None:
    done = record(xtrace, f"bench{width}", "--no-validator", f"bench{width}", "--cmdline", "scale=1")
    assert done.status == 0 and done.lines[-1] == "bench: done"
