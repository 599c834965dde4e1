"""A domain's terminal: the screen equal to tmux's, cell by cell; keys; output that means harm."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.style import Style

from tests.tmux import Tmux, needed
from xentui.screens.terminal import BACKGROUND, FOREGROUND, MOST_ANSWERS, SCROLL_BACK, Terminal

STREAMS = sorted(path.name for path in (Path(__file__).parent / "streams").iterdir())
PIECES = (1, 2, 7, 100, 2048)

Cell = tuple[str, str | None, str | None, bool, bool]


def stream(name: str) -> bytes:
    """What a program sent (record_streams.py)."""
    return (Path(__file__).parent / "streams" / name).read_bytes()


def cells(terminal: Terminal) -> list[list[Cell]]:
    """What each cell shows and how: character, colours, bold, underlined."""
    return [
        [
            (character, style.color and style.color.name, style.bgcolor and style.bgcolor.name,
             bool(style.bold), bool(style.underline))
            for text, style in terminal.row(y)
            for character in text
        ]
        for y in range(terminal.height)
    ]  # fmt: skip


def fed(data: bytes, size: int = 2048) -> Terminal:
    """A terminal that has been fed, in pieces."""
    terminal = Terminal()
    for at in range(0, len(data), size):
        terminal.feed(data[at : at + size])
    return terminal


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    needed()
    server = Tmux(tmp_path)
    yield server
    server.close()


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", STREAMS)
def test_it_shows_what_tmux_shows(tmux: Tmux, tmp_path: Path, name: str, share: float) -> None:
    """Characters, colours, bold and underline of every cell, and the cursor's place.

    tmux does not tell how blank cells behind a line's last character are coloured; those are compared as text.
    """
    data = stream(name)
    data = data[: int(len(data) * share)]
    (tmp_path / "stream").write_bytes(data)
    tmux.show(tmp_path / "stream")
    ours = fed(data)
    theirs = Terminal()
    lines = tmux.run("capture-pane", "-p", "-e", "-N", "-t", "t").rstrip("\n").split("\n")
    theirs.feed("\r\n".join(lines).encode())
    assert ours.text() == theirs.text()
    lines += [""] * (24 - len(lines))
    for y, (one, other) in enumerate(zip(cells(ours), cells(theirs), strict=True)):
        told = cell_len(re.sub(r"\x1b\[[0-9;:]*m", "", lines[y]))
        assert one[:told] == other[:told], y
    place = tmux.run("display-message", "-p", "-t", "t", "#{cursor_x},#{cursor_y},#{cursor_flag}").strip()
    x, y, seen = map(int, place.split(","))
    assert ours.cursor == ((x, y) if seen else None)


@pytest.mark.parametrize("name", STREAMS)
def test_pieces_make_no_difference(name: str) -> None:
    """However the bytes come, also in the middle of a sequence or of a character."""
    screens = [cells(fed(stream(name), size)) for size in PIECES]
    assert all(screen == screens[0] for screen in screens)


def test_what_leaves_the_screen_is_kept() -> None:
    terminal = Terminal()
    for number in range(SCROLL_BACK + 500):
        terminal.feed(f"line {number}\r\n".encode())
    assert len(terminal.history) == SCROLL_BACK
    assert terminal.history[-1][0][0].rstrip() == f"line {SCROLL_BACK + 500 - 24}"


def test_the_alternate_screen_leaves_the_first_as_it_was() -> None:
    terminal = fed(b"first\r\n\x1b[?1049h\x1b[2J\x1b[Hsecond")
    assert terminal.text()[0] == "second"
    terminal.feed(b"\x1b[?1049l")
    assert terminal.text()[0] == "first" and not terminal.history


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "character", "sent"),
    [
        ("a", "a", b"a"),
        ("A", "A", b"A"),
        ("plus", "+", b"+"),
        ("space", " ", b" "),
        ("é", "é", "é".encode()),
        ("enter", "\r", b"\r"),
        ("tab", "\t", b"\t"),
        ("shift+tab", None, b"\x1b[Z"),
        ("backspace", "\x7f", b"\x7f"),
        ("escape", "\x1b", b"\x1b"),
        ("delete", None, b"\x1b[3~"),
        ("insert", None, b"\x1b[2~"),
        ("home", None, b"\x1b[H"),
        ("end", None, b"\x1b[F"),
        ("pageup", None, b"\x1b[5~"),
        ("pagedown", None, b"\x1b[6~"),
        ("up", None, b"\x1b[A"),
        ("ctrl+left", None, b"\x1b[1;5D"),
        ("f1", None, b"\x1bOP"),
        ("f5", None, b"\x1b[15~"),
        ("ctrl+c", "\x03", b"\x03"),
        ("ctrl+d", "\x04", b"\x04"),
        ("ctrl+z", "\x1a", b"\x1a"),
        ("ctrl+space", "\x00", b"\x00"),
        ("ctrl+at", "\x00", b"\x00"),
        ("ctrl+backslash", "\x1c", b"\x1c"),
        ("ctrl+underscore", "\x1f", b"\x1f"),
        ("alt+x", "x", b"\x1bx"),
    ],
)
def test_keys(key: str, character: str | None, sent: bytes) -> None:
    assert Terminal().key(key, character) == sent


def test_keys_follow_the_terminals_modes() -> None:
    terminal = fed(b"\x1b[?1h\x1b[?2004h")
    assert terminal.key("up", None) == b"\x1bOA"
    assert terminal.paste("one\ntwo\x1b\x03") == b"\x1b[200~one\rtwo\x1b[201~"
    terminal.feed(b"\x1b[?1l\x1b[?2004l")
    assert terminal.key("up", None) == b"\x1b[A" and terminal.paste("one\n") == b"one\r"
    assert terminal.paste("one\rtwo\r\nthree\n\x9b4m\tfour") == b"one\rtwo\rthree\r4m\tfour"


def test_questions_are_answered_once_and_in_bounds() -> None:
    terminal = fed(b"\x1b[5;7H\x1b[6n")
    assert terminal.key("x", "x") == b"x"
    assert terminal.take_answers() == b"\x1b[5;7R" and terminal.take_answers() == b""
    terminal.feed(b"\x1b[6n" * 100_000)
    assert len(terminal.take_answers()) <= MOST_ANSWERS


# --- output that means harm -----------------------------------------------------------------------------------------


def harmless(terminal: Terminal) -> None:
    """The screen has its size, and nothing on it is more than text."""
    rows = [terminal.row(y) for y in range(terminal.height)]
    assert (terminal.width, terminal.height) == (80, 24)
    for row in [*rows, *list(terminal.history)[-200:]]:
        text = "".join(part for part, _ in row)
        assert text.isprintable(), repr(text)
        assert all(isinstance(style, Style) and style.link is None for _, style in row)
    assert all(cell_len("".join(part for part, _ in row)) == terminal.width for row in rows)


HOSTILE = {
    "resizes": b"\x1b[8;9999;9999t\x1b[8;1;1t\x1b[?40h\x1b[?3h\x1b[132$|\x1b[100*|\x1b[50t" * 50,
    "an endless title": b"\x1b]0;" + b"x" * 1_000_000,
    "clipboard and links": b"\x1b]52;c;aGVsbG8=\x07\x1b]8;;http://example.org/\x07link\x1b]8;;\x07" * 1000,
    "endless parameters": b"\x1b[" + b"1;" * 300_000 + b"m",
    "repetitions": b"a\x1b[99999999b" * 200,
    "scrolling far": b"\x1b[99999999S\x1b[99999999L\x1b[99999999@\x1b[99999999T" * 500,
    "questions": b"\x1b[c\x1b[6n\x1b[>c\x1b[?6n\x05" * 5000,
    "marks upon marks": ("a" + "\u0301" * 50_000).encode(),
    "invalid UTF-8": b"\xff\xfe\xc0\x80\xed\xa0\x80\xf5\x80\x80\x80\x80" * 10_000,
    "writing from right to left": "\u202e\u202dabc\u2066\u200f".encode() * 1000,
    "C1 controls": b"\xc2\x9b31m\xc2\x90q\xc2\x9d0;x\xc2\x9c" * 1000,
    "macros": b"\x1bP1;0;1!z1b5b312a7a\x1b\\\x1b[1*z" * 500,
    "printing": b"\x1b[5iall this\x1b[4i\x1b[?5i\x1b[0i" * 500,
    "mouse and focus": b"\x1b[?1003h\x1b[?1006h\x1b[?1004h\x1b[?2026h\x1b[>31u" * 100,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_output(what: str) -> None:
    """It costs the domain's own screen at most, and that is right again after a reset."""
    terminal = fed(HOSTILE[what])
    harmless(terminal)
    terminal.feed(b"\x18\x1b\\\x1b[4i\x1b[?4i\x1bc\x1b[2J\x1b[Hstill there")
    harmless(terminal)
    assert terminal.text()[0] == "still there"


@pytest.mark.parametrize("seed", range(4))
def test_random_sequences(seed: int) -> None:
    """Noise that is made of what terminals listen to."""
    chance = random.Random(seed)
    alphabet = b"[]()PX^_#%?;0123456789ABCDHJKLMPSTXhlmnrstuxyz$ \"'!*+\x07\\\x9c\x18\n\r\xc3\xa9"
    pieces = [
        b"\x1b" + bytes(chance.choices(alphabet, k=chance.randrange(1, 12))) + b"text"[: chance.randrange(5)]
        for _ in range(3000)
    ]
    harmless(fed(b"".join(pieces), chance.choice(PIECES)))
    harmless(fed(bytes(chance.randrange(256) for _ in range(20_000))))


def test_colours() -> None:
    terminal = fed(b"\x1b[31ma\x1b[1mb\x1b[0;38;5;208mc\x1b[38;2;1;2;3md\x1b[0;7me\x1b[0;8mf")
    styles = dict(terminal.row(0))
    assert styles["a"].color != styles["b"].color
    assert styles["c"].color is not None and styles["c"].color.name == "#ff8700"
    assert styles["d"].color is not None and styles["d"].color.name == "#010203"
    assert styles["e"].color is not None and styles["e"].color.name == BACKGROUND
    assert styles["e"].bgcolor is not None and styles["e"].bgcolor.name == FOREGROUND
    assert styles["f"].color == styles["f"].bgcolor
