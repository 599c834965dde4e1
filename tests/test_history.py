"""What the console keeps of what was printed: bounded, and cut where it says so."""

from __future__ import annotations

from xentui.engine import messages as msg
from xentui.engine.history import CUT, MOST_BYTES, MOST_EVENTS
from xentui.engine.machine import Machine
from xentui.engine.setup import Setup
from xentui.engine.timeline import Fork, Timeline
from xentui.engine.xen.hypervisor import LOG_LINES


def timeline() -> Timeline:
    return Timeline(Setup([]))


def test_a_console_keeps_its_latest_output_and_says_that_more_was_there() -> None:
    known, size = timeline(), MOST_BYTES // 64
    for number in range(200):
        event = msg.Output(1, number, bytes([number]) * size)
        assert known.told(number, event) == [event], "it is news all the same"
        assert sum(len(data) for _, data in known.consoles[1].pieces) <= MOST_BYTES
    text = known.consoles[1].text()
    assert text.startswith(CUT) and text.endswith(bytes([199]) * size)
    assert len(text) - len(CUT) >= MOST_BYTES // 2 - size
    assert known.consoles[1].start + len(text) == 200 * size, "who has read on from there knows where it is"
    assert known.consoles[1].upto(0) == [(0, CUT)], "that early, nothing but that is known"
    assert known.told(150, msg.Output(1, 150, b"again")) == [], "what was told once is no news, kept or not"


def test_a_chatty_console_does_not_take_the_others_output() -> None:
    known = timeline()
    known.told(0, msg.Output(2, 0, b"I spoke once"))
    known.told(1, msg.LogLine(0, "begun"))
    for number in range(2, 3 * MOST_EVENTS):
        known.told(number, msg.Output(1, number, b"."))
        assert len(known.consoles[1].pieces) <= MOST_EVENTS
    assert known.consoles[1].lost and not known.consoles[2].lost
    assert known.consoles[2].text() == b"I spoke once" and known.log == [(0, "begun")]


def test_the_log_keeps_its_latest_lines() -> None:
    known = timeline()
    for number in range(3 * MOST_EVENTS):
        known.told(number, msg.LogLine(number, f"line {number}"))
    assert MOST_EVENTS // 2 <= len(known.log) <= MOST_EVENTS
    assert known.log[-1] == (3 * MOST_EVENTS - 1, f"line {3 * MOST_EVENTS - 1}")


def test_a_branch_has_what_its_past_has_kept() -> None:
    known, count = timeline(), MOST_EVENTS + 10
    for number in range(count):
        known.told(number, msg.Output(1, number, b"%d " % number))
    old = known.consoles[1].text()
    known.branch_off(Fork(count - 5, count - 5, 0, count - 5, 0))
    assert known.consoles[1].text() == old[: -len(b"".join(b"%d " % number for number in range(count - 5, count)))]
    assert known.told(count - 5, msg.Output(1, count, b"else")) and known.consoles[1].text().endswith(b"else")
    known.use(known.branches[0])
    assert known.consoles[1].text() == old
    known.branch_off(Fork(3, 3, 0, 3, 0))
    assert known.consoles[1].text() == CUT and known.told(3, msg.Output(1, 3, b"new"))


def test_the_hypervisors_own_log_is_bounded() -> None:
    with Machine(8) as machine:
        for number in range(5 * LOG_LINES):
            machine.hv.log(f"line {number}")
        assert LOG_LINES <= len(machine.hv.log_lines) <= 2 * LOG_LINES
        assert machine.hv.log_lines[-1].endswith(f"line {5 * LOG_LINES - 1}")
