"""What a console's terminal has been fed, when the oldest of what was printed is no longer kept."""

from __future__ import annotations

import time
from types import SimpleNamespace

from xentui.screens.consoles import Screen


def status(now: int, branch: int = 0) -> SimpleNamespace:
    return SimpleNamespace(time=now, branch=branch)


def fed(screen: Screen) -> None:
    screen.feed(time.monotonic() + 10, True)


def text(screen: Screen) -> str:
    return "\n".join(screen.terminal.text()).strip()


def test_a_cut_begin_is_not_fed_again() -> None:
    screen = Screen()
    screen.take(b"one\r\ntwo\r\n", status(1))
    fed(screen)
    terminal = screen.terminal
    screen.take(b"two\r\nthree\r\n", status(2), start=5)
    fed(screen)
    assert screen.terminal is terminal and text(screen).split() == ["one", "two", "three"]
    assert screen.fed == screen.answered == 17 and not screen.is_behind(17, status(2))


def test_what_was_cut_before_it_was_seen_is_passed_over() -> None:
    screen = Screen()
    screen.take(b"late\r\n", status(2), start=1000)
    fed(screen)
    assert text(screen) == "late" and screen.fed == 1006


def test_going_back_begins_anew() -> None:
    screen = Screen()
    screen.take(b"one\r\ntwo\r\n", status(5))
    fed(screen)
    screen.take(b"one\r\n", status(3))
    fed(screen)
    assert text(screen) == "one" and screen.fed == 5
    screen.take(b"one\r\nsix\r\n", status(6, branch=1))
    fed(screen)
    assert text(screen).split() == ["one", "six"]
