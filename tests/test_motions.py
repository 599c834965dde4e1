"""Running to conditions, forwards and back; breakpoints; speed; idle time; the fast pace."""

from __future__ import annotations

import time

import numpy as np

from tests.test_process import WAIT, engine, typed, until
from tests.test_travel import TYPED, content, to_the_end
from xentui.engine import messages as msg
from xentui.engine.breakpoints import Breakpoint
from xentui.engine.process import Engine
from xentui.engine.trace import Kind
from xentui.engine.xen.abi.hypercalls import HYPERCALL_sched_op, HYPERCALL_update_va_mapping

SWITCH = Breakpoint.parse("switch")
SPEND = Breakpoint.parse("hypercall sched_op")


def numbers(started: Engine, *kinds: int) -> list[int]:
    """The trace records of some kinds."""
    return np.flatnonzero(np.isin(started.records.columns("kind"), kinds)).tolist()


def test_running_to_conditions_forwards_and_back() -> None:
    """Back through all that was met on the way there, each at the same place."""
    with engine("hello64", "hello32", typist=TYPED) as started:
        started.set_warp(True)
        met = []
        for _ in range(4):
            started.run(SPEND)
            status = started.wait(WAIT)
            assert (status.stop, status.breakpoint) == ("breakpoint", 0) and "sched_op" in status.why
            met.append((status.position, status.records))
        calls = started.records.columns("number")[numbers(started, Kind.HYPERCALL)]
        assert np.count_nonzero(calls == HYPERCALL_sched_op) == 4
        started.step(3)
        assert started.wait(WAIT).position > met[-1][0]
        for position, records in reversed(met):
            started.run_back(SPEND)
            status = started.wait(WAIT)
            assert (status.position, status.records) == (position, records)
        started.run_back(SPEND)
        assert started.wait(WAIT).position == met[0][0], "nothing before: it stays"
        assert any(isinstance(event, msg.Notice) for event in started.pump())


def test_run_back_over_snapshots_finds_the_last() -> None:
    with engine("hello64", typist=TYPED) as started:
        end = to_the_end(started)
        hypercalls = numbers(started, Kind.HYPERCALL)
        for part in (3, 2):
            started.goto(position=end.position // part)
            started.wait(WAIT)
        started.live()
        started.wait(WAIT)
        started.run_back(Breakpoint.parse("hypercall"))
        assert started.wait(WAIT).records > hypercalls[-1]
        started.step_back()
        assert started.wait(WAIT).records <= hypercalls[-1]


def test_conditions_change_nothing() -> None:
    with engine("hello64", "bench32", typist=TYPED) as plain:
        to_the_end(plain)
        whole = content(plain)
    with engine("hello64", "bench32", typist=TYPED) as started:
        started.add_breakpoint(Breakpoint.parse("exception"))
        started.add_breakpoint(SWITCH)
        for _ in range(30):
            started.set_warp(True)
            started.run()
            if started.wait(WAIT).stop != "breakpoint":
                break
        for number in list(started.breakpoints):
            started.remove_breakpoint(number)
        to_the_end(started)
        assert content(started) == whole


def test_breakpoints_of_the_user() -> None:
    with engine("hello64") as started:
        first = started.add_breakpoint(Breakpoint.parse("hypercall console_io")._replace(temporary=True))
        second = started.add_breakpoint(Breakpoint.parse("hypercall sched_op"))
        third = started.add_breakpoint(Breakpoint.parse("break no_such_symbol"))
        assert (first, second, third) == (1, 2, 3)
        started.run()
        status = started.wait(WAIT)
        assert status.stop == "breakpoint" and status.breakpoint == second
        notices = [event.text for event in started.pump() if isinstance(event, msg.Notice)]
        assert any("no_such_symbol" in text for text in notices)
        started.remove_breakpoint(second)
        started.run()
        until(started, b"> ")


def test_step_over_and_back() -> None:
    """From a call to behind it, on the same stack."""
    with engine("hello64") as started:
        started.run(Breakpoint.parse("break guest_main"))
        status = started.wait(WAIT)
        assert status.stop == "breakpoint", status.why
        for _ in range(60):
            code = started.look("cpu.code", domain=1, before=0, after=2)
            if code[0]["text"].startswith("call"):
                break
            started.step()
            started.wait(WAIT)
        stack = started.look("cpu.registers", domain=1)["registers"]["rsp"]
        before = started.status.position
        started.step_over()
        assert started.wait(WAIT).stop == "step"
        registers = started.look("cpu.registers", domain=1)["registers"]
        assert (registers["rip"], registers["rsp"]) == (code[1]["address"], stack)
        assert started.status.position > before + 100
        started.goto(position=before)
        assert started.wait(WAIT).position == before


# --- speed and idle time ----------------------------------------------------------------------------------------------


def test_slowly_instruction_by_instruction() -> None:
    with engine("bench64") as started:
        started.set_speed(50)
        began = time.monotonic()
        started.run()
        started.wait(0.5)
        started.pause()
        status = started.wait(WAIT)
        most = 50 * (time.monotonic() - began) + 2
        met = status.position
        started.set_speed(None)
        started.goto(time=0)
        first = started.wait(WAIT)
        count = 0
        while started.status.position < met:
            started.step()
            started.wait(WAIT)
            count += 1
        assert 2 <= count <= most and first.position < met


def test_a_breakpoint_that_cannot_be_set_is_told_once() -> None:
    with engine() as started:
        number = started.add_breakpoint(Breakpoint.parse("break nowhere_at_all"))
        notices: list[str] = []
        for _ in range(4):
            started.step()
            started.wait(WAIT)
            notices += [event.text for event in started.pump() if isinstance(event, msg.Notice)]
        assert notices == [f"breakpoint {number} does not hold yet: no domain has a symbol 'nowhere_at_all'"]


def test_breakpoints_on_code_hold_for_steps_and_at_any_speed() -> None:
    with engine("hello64") as started:
        started.add_breakpoint(Breakpoint.parse("break print"))
        started.run()
        first = started.wait(WAIT)
        started.run()
        second = started.wait(WAIT)
        assert (first.stop, second.stop) == ("breakpoint", "breakpoint") and first.position < second.position
        started.goto(position=first.position - 40)
        started.wait(WAIT)
        started.step(100_000)
        assert started.wait(WAIT)[:4] == first[:4]
        started.step()
        behind = started.wait(WAIT)
        assert behind.stop == "step" and behind.position > first.position
        started.goto(position=second.position - 40)
        started.wait(WAIT)
        started.set_speed(500)
        started.run()
        assert started.wait(WAIT)[:4] == second[:4]


def test_a_vcpu_that_does_not_run_is_not_waited_for_in_vain() -> None:
    """It waits for its console, and another domain is busy: the engine goes on listening."""
    with engine("hello64", "bench64", cmdline="scale=100000") as started:
        started.run(Breakpoint.parse("kind == block", domain="hello64"))
        status = started.wait(WAIT)
        assert status.stop == "breakpoint", status.why
        started.step(vcpu=(1, 0))
        assert not started.wait(0.5).stop, "still on its way"
        assert started.look("machine.summary")["domains"] == 2
        started.pause()
        assert started.wait(WAIT).stop == "asked"
        started.step(vcpu=(1, 99))
        assert started.wait(WAIT).stop == "step"


def test_at_a_speed() -> None:
    """Twenty thousand instructions a second are not more than so many bytes of code."""
    with engine("bench64") as started:
        started.set_speed(20_000)
        began = time.monotonic()
        start = started.status.position
        started.run()
        started.wait(0.3)
        started.pause()
        status = started.wait(WAIT)
        assert status.speed == 20_000
        assert start < status.position < start + 20_000 * 4 * (time.monotonic() - began) + 20_000


def test_the_status_says_what_was_set() -> None:
    """At once, though nothing moves."""
    with engine("hello64") as started:
        for speed in (5.0, 7.0, None):
            started.set_speed(speed)
            started.set_warp(speed is None)
            started.look("machine.summary")
            started.look("machine.summary")
            assert (started.status.speed, started.status.warp) == (speed, speed is None)


def test_idle_time_is_held_back_unless_warped() -> None:
    with engine("hello64", typist=(b"info\r", None)) as started:
        began = time.monotonic()
        started.run()
        until(started, b"page tables")
        until(started, b"> info")
        assert time.monotonic() - began > 0.29, "the typist waits for 0.3 s of quiet"
    with engine("hello64", typist=(b"info\r" * 1000, None)) as started:
        started.set_warp(True)
        started.run()
        assert started.wait(WAIT).time > 300_000_000_000


def test_typing_while_idle() -> None:
    """A key comes at the moment that the held-back time has reached."""
    with engine("hello64") as started:
        started.run()
        until(started, b"> ")
        started.wait(0.3)
        started.act(typed("x"))
        until(started, b"> x")
        (position, _), *_ = started.timeline.current.actions
        assert position > 200_000_000
        started.pause()
        end = started.wait(WAIT)
        before = content(started)
        started.goto(time=0)
        started.wait(WAIT)
        started.goto(position=end.position)
        assert started.wait(WAIT).records == end.records
        assert content(started) == before


# --- the fast pace ----------------------------------------------------------------------------------------------------


def test_the_fast_pace_goes_back_to_snapshots_only() -> None:
    with engine("bench64", cmdline="scale=20", pace="fast") as started:
        started.run()
        started.wait(WAIT)
        end = started.status
        assert end.stop == "finished"
        assert len(started.timeline.usable()) >= 2
        for kept in started.timeline.usable()[:-1]:
            started.goto(position=kept.status.position + 1)
            status = started.wait(WAIT)
            assert (status.position, status.records, status.live) == (kept.status.position, kept.status.records, False)
        time.sleep(0.2)
        started.goto(position=0)
        first = started.wait(WAIT)
        time.sleep(0.2)
        started.pump()
        assert started.look("machine.summary")["time"] == first.time, "its time stands still"
        assert started.status.end_position == end.position and started.status.branch == 0
        started.step_back()
        started.wait(WAIT)
        assert any("exact pace" in event.text for event in started.pump() if isinstance(event, msg.Notice))
        started.run()
        status = started.wait(WAIT)
        assert status.branch == 1, "it will not happen the same way again"
        assert b"bench: done" in started.consoles[1].text()
        assert started.consoles[1].text().count(b"bench: done") == 1


# --- who wrote this? -------------------------------------------------------------------------------------------------


def test_who_wrote_a_register() -> None:
    with engine("hello64", typist=TYPED) as started:
        end = to_the_end(started)
        started.goto(position=end.position // 2)
        started.wait(WAIT)
        started.goto(record=60)
        started.wait(WAIT)

        def value() -> int:
            return int(started.look("cpu.registers", domain=1)["registers"]["rsp"])

        now = value()
        started.who_wrote(("register", 1, 0, "rsp"))
        status = started.wait(WAIT)
        assert value() == now
        started.step_back()
        assert started.wait(WAIT).position < status.position
        assert value() != now


def test_who_wrote_memory_a_port_and_an_entry() -> None:
    with engine("bench64", cmdline="scale=1 only=update_va_mapping") as started:
        started.set_warp(True)
        started.run(Breakpoint.parse("hypercall update_va_mapping")._replace(ignore=100))
        here = started.wait(WAIT)
        assert here.stop == "breakpoint"
        rows = started.records.rows(0)
        calls = np.flatnonzero((rows["kind"] == Kind.HYPERCALL) & (rows["number"] == HYPERCALL_update_va_mapping))
        address = int(rows["a"][calls[-1]])
        entry = started.look("memory.walk", domain=1, at=address)["steps"][-1]["at"]
        started.step(5)
        started.wait(WAIT)
        started.who_wrote(("pte", entry))
        status = started.wait(WAIT)
        assert status.records > calls[-1] and status.position <= here.position
        started.step_back()
        assert started.wait(WAIT).records <= calls[-1]

        def word() -> bytes:
            data: bytes = started.look("cpu.memory", domain=1, at=stack, rows=1, width=8)["rows"][0][1]
            return data

        stack = int(started.look("cpu.registers", domain=1)["registers"]["rsp"])
        now, before = word(), started.status.position
        started.who_wrote(("memory", 1, 0, stack, 8))
        assert started.wait(WAIT).position < before
        assert word() == now
        started.step_back()
        started.wait(WAIT)
        assert word() != now
        started.live()
        started.wait(WAIT)
        console = started.look("rings.ring", domain=1)["rings"][0]
        for (_, index, _), place in zip(console["pointers"], console["places"], strict=True):
            started.who_wrote(("ring", place))
            status = started.wait(WAIT)
            assert not status.live
            then = started.look("rings.ring", domain=1)["rings"][0]
            assert index in [each for _, each, _ in then["pointers"]]
            started.step_back()
            started.wait(WAIT)
            assert started.look("rings.ring", domain=1)["rings"][0]["pointers"] != then["pointers"]
            started.live()
            started.wait(WAIT)
        started.who_wrote(("port", 1, 77))
        started.wait(WAIT)
        assert any("no record" in event.text for event in started.pump() if isinstance(event, msg.Notice))


def test_who_wrote_the_bits_of_an_event() -> None:
    """Xen sets what tells of an event, the guest clears it: to each as it was changed last, and to no neighbour's."""
    with engine("demo32") as started:
        started.set_warp(True)
        started.run(Breakpoint.parse("upcall")._replace(ignore=4))
        started.wait(WAIT)
        started.step(60)
        here = started.wait(WAIT)
        port = 3

        def bits() -> dict[str, dict[str, int]]:
            return {bit["key"]: bit for bit in started.look("events.bits", domain=1, port=port)}

        now = bits()
        for key in ("p", "s", "u", "i"):
            bit = now[key]
            started.who_wrote(("bit", bit["at"], bit["mask"]))
            there = started.wait(WAIT)
            assert there.position < here.position and bits()[key]["set"] == bit["set"], key
            started.step_back()
            started.wait(WAIT)
            assert bits()[key]["set"] != bit["set"], key
            started.goto(position=here.position)
            started.wait(WAIT)


def test_who_changed_a_frames_type_count() -> None:
    """The demonstration's process touches a page: its kernel maps a frame there, and takes it away a round later."""
    with engine("demo32") as started:
        started.set_warp(True)
        started.run(Breakpoint.parse("hypercall update_va_mapping")._replace(ignore=9))
        started.wait(WAIT)
        rows = started.records.rows(0)
        calls = np.flatnonzero((rows["kind"] == Kind.HYPERCALL) & (rows["number"] == HYPERCALL_update_va_mapping))
        entries = [int(rows["b"][call]) for call in calls]
        mapped = next(at for at in range(len(calls) - 1, -1, -1) if entries[at])
        mfn = entries[mapped] >> 12 & 0xFFFFF

        def uses() -> int:
            return int(started.look("memory.frame", mfn=mfn)["type_count"])

        started.step(50)
        before = started.wait(WAIT)
        now = uses()
        started.who_wrote(("frame", mfn))
        status = started.wait(WAIT)
        assert not status.live and status.position < before.position and uses() == now
        assert status.records - 1 in (calls[-1], calls[mapped]), "the call that did it has just been recorded"
        started.step_back()
        started.wait(WAIT)
        assert uses() != now
        started.who_wrote(("frame", 1 << 40))
        started.wait(WAIT)
        assert uses() != now, "of a frame that is not there nothing is found, and nothing breaks"
