"""The segments with which a secondary vCPU begins: what VCPUOP_initialise gives, and never the hypervisor's rings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes_cpu import make_cpu_guest
from xentui.engine.x86 import state as s
from xentui.engine.x86.state import State
from xentui.engine.xen.domain_builder import first_state

WIDTHS = pytest.mark.parametrize("width", [32, 64])
NAMES = ("cs", "ss", "ds", "es", "fs", "gs")
RING0_CODE, RING0_DATA = 0xE008, 0xE010


def begin(width: int, **selectors: int) -> tuple[State, bool, bool]:
    vcpu = make_cpu_guest(width).vcpu
    flat = {"cs": 0xE033, "ss": 0xE02B} if width == 64 else {"cs": 0xE019, "ss": 0xE021}
    vcpu.boot_registers = dict.fromkeys(NAMES, 0) | flat | selectors
    vcpu.boot_registers |= {"rip": 0x1000, "rflags": 0x202, "fs_base": 0, "gs_base": 0}
    saved, code_good, data_good = first_state(vcpu)
    return State.of(saved), code_good, data_good


def ring(state: State) -> int:
    return state.i[s.HFLAGS] & s.HF_CPL


@WIDTHS
def test_flat_kernel_segments_are_loaded(width: int) -> None:
    state, code_good, data_good = begin(width)
    assert (ring(state), code_good, data_good) == (3 if width == 64 else 1, True, True)


@WIDTHS
@pytest.mark.parametrize("rpl", range(4))
def test_the_hypervisors_own_descriptors_are_refused(width: int, rpl: int) -> None:
    state, code_good, _ = begin(width, cs=RING0_CODE | rpl, ss=RING0_DATA | rpl)
    assert not code_good and ring(state) >= 1
    state, _, data_good = begin(width, ds=RING0_DATA | rpl)
    assert not data_good and state.i[s.DS] == 0


@WIDTHS
@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 0xFFFF) | st.integers(0xE000, 0xE07F), min_size=6, max_size=6))
def test_no_selectors_lead_to_ring_0(width: int, selectors: list[int]) -> None:
    state, code_good, _ = begin(width, **dict(zip(NAMES, selectors, strict=True)))
    assert ring(state) >= 1
    for register in (s.CS, s.SS):
        assert state.i[register + s.FLAGS] >> 13 & 3 >= 1, "no ring-0 descriptor is in use"
    assert not code_good or width == 32 or ring(state) == 3
