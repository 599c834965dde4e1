"""A domain's terminal: bytes in, cells, cursor, scroll-back and key codes out. No widget.

The emulation is `bittty`'s, and this is the only module that knows it. A guest's output is not to be trusted: what
would change the terminal's size, reach the user's clipboard, printer or windows, or run macros is not obeyed; answers
to the guest's questions are kept in bounds; text is cleaned of what the user's own terminal would obey.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Any

from bittty import XTERM, Board
from bittty.keyboard import KeyEvent, KeyModifiers
from bittty.present import RowsScrolledOff, ScrollbackCleared
from rich.cells import cell_len
from rich.style import Style

from xentui.screens.themes import TERMINAL_BACKGROUND as BACKGROUND
from xentui.screens.themes import TERMINAL_FOREGROUND as FOREGROUND
from xentui.screens.words import plain

WIDTH, HEIGHT = 80, 24
SCROLL_BACK = 10_000
"""Lines that are kept after they have left the screen."""
MOST_ANSWERS = 4096
"""Bytes of answers (cursor reports and the like) that wait to be sent; a guest that asks for more gets none."""
LONGEST = 8192
"""Characters of a control sequence that are kept; of a longer one (a title without end) only the end is waited for."""
_CELL = 8
"""Code points of a cell that are shown: a letter and its marks."""
_NOT_OBEYED = (
    *("XTWINOPS", "DECSCPP", "DECSLPP", "DECSNLS", "OSC_CLIPBOARD", "OSC_NOTIFY", "OSC_CWD", "OSC_FONT"),
    *("OSC_HYPERLINK", "OSC_POINTER_SHAPE", "OSC_SHELL_MARK", "MC", "DECMC", "DECDMAC", "DECINVM", "DECUDK", "DECELR"),
    *("LINUX_SETTERM", "DECSDPT", "DECSPRTT", "DECSPP", "DECSPPCS", "DECSFC", "DECLL"),
)

Run = tuple[str, Style]
"""Text in one style."""

_PALETTE = (
    *("#20262e", "#f4695a", "#8fc66b", "#e8b84a", "#5aa9ff", "#c58be8", "#56c2c8", "#cfd6de"),
    *("#66717d", "#ff8f80", "#b4e08f", "#ffd47a", "#8cc4ff", "#dcb0f5", "#86e0e4", "#ffffff"),
)
"""The sixteen colours, all to be read on black."""
_BASE = Style(color=FOREGROUND, bgcolor=BACKGROUND)


class _Answers:
    """The guest's end of the line, as bittty's `Connection`: what the terminal says to the guest."""

    closed = False

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: str) -> int:
        return self.write_bytes(data.encode(errors="replace"))

    def write_bytes(self, data: bytes) -> int:
        if len(self.data) + len(data) <= MOST_ANSWERS:
            self.data += data
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def resize(self, rows: int, cols: int) -> None:
        """A PV console cannot be told its size."""

    def configure_line(self, line: Any) -> None:
        """Nor has it a speed."""


class Terminal:
    """A terminal whose size the user alone changes."""

    keeps_scrollback = True

    def __init__(self, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.width, self.height = width, height
        self.history: deque[list[Run]] = deque(maxlen=SCROLL_BACK)
        self.scrolled = 0
        """Rows that have gone into the history, those that it has forgotten included."""
        self._answers = _Answers()
        self._board = board = Board(width=width, height=height, model=XTERM)
        board.host.attach(self._answers)
        board.display.attach(self)
        for name in _NOT_OBEYED:
            if name in board.registry:
                board.registry[name] = lambda operation: None
        board.blitter.set_grapheme_clustering(True)  # marks belong to the letter before them
        board.blitter.set_column_mode = lambda columns: None  # DECCOLM

    # --- from the guest ----------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Obey a guest's output."""
        self._board.feed_host_data(data)
        parser = self._board.parser
        if parser.mode is not None and len(parser.buffer) > parser._scan_from + LONGEST:
            # a sequence that does not end is scanned anew with each piece: keep its start, and wait for its end
            parser.buffer = parser.buffer[: parser._scan_from]
        if (self._board.width, self._board.height) != (self.width, self.height):
            self._board.resize(self.width, self.height)

    def present(self, event: Any) -> None:
        """What bittty tells besides the screen."""
        if isinstance(event, RowsScrolledOff):
            self.history.extend(_runs(line.cells) for line in event.lines)
            self.scrolled += len(event.lines)
        elif isinstance(event, ScrollbackCleared):
            self.history.clear()

    def resize(self, width: int, height: int) -> None:
        """Another size. A PV console has no way to tell the guest, which may ask by the cursor's position."""
        self.width, self.height = width, height
        self._board.resize(width, height)

    def take_answers(self) -> bytes:
        """What the terminal answered to the guest's questions since the last time."""
        data = bytes(self._answers.data)
        self._answers.data.clear()
        return data

    # --- to the screen -----------------------------------------------------------------------------------------------

    @property
    def cursor(self) -> tuple[int, int] | None:
        """Column and row, or None where it is hidden."""
        found = self._board.display.cursor
        return None if found is None else (found[0], found[1])

    @property
    def used_rows(self) -> int:
        """Rows up to the last that holds something, or the cursor."""
        grid = self._board.display.page.grid
        last = next((y for y in range(self.height - 1, -1, -1) if any(cell[1] != " " for cell in grid[y])), -1)
        return max(last, self._board.cursor.y) + 1

    def row(self, y: int) -> list[Run]:
        """A row of the screen."""
        return _runs(self._board.display.page.grid[y], bool(self._board.modes.reverse_screen))

    def text(self) -> list[str]:
        """The screen's rows as plain text, without blanks at the end."""
        return ["".join(text for text, _ in self.row(y)).rstrip() for y in range(self.height)]

    # --- from the user -----------------------------------------------------------------------------------------------

    def key(self, key: str, character: str | None) -> bytes:
        """What a key (as Textual names it) sends to the guest, in the terminal's present modes."""
        *prefixes, name = key.split("+") if key != "+" else ["+"]
        modifiers = KeyModifiers.NONE
        for prefix in prefixes:
            modifiers |= _MODIFIERS.get(prefix, KeyModifiers.NONE)
        if character is not None and character.isprintable() and not modifiers & KeyModifiers.CTRL:
            if modifiers & KeyModifiers.ALT:
                return b"\x1b" + character.encode()
            event = KeyEvent(character.lower(), text=character)
        else:
            event = KeyEvent(_NAMES.get(name, name), modifiers)
        kept, self._answers.data = self._answers.data, bytearray()
        try:
            self._board.input_key_event(event)
            return bytes(self._answers.data)
        finally:
            self._answers.data = kept

    def paste(self, text: str) -> bytes:
        """What pasted text sends to the guest: bracketed where the guest has asked for that.

        A line ends as a key would end it, however the user's terminal has it: many send CR there.
        """
        lines = text.replace("\r\n", "\r").replace("\n", "\r")
        clean = "".join(c for c in lines if c.isprintable() or c in "\r\t")
        data = clean.encode()
        return b"\x1b[200~" + data + b"\x1b[201~" if self._board.modes.bracketed_paste else data


_MODIFIERS = {"ctrl": KeyModifiers.CTRL, "shift": KeyModifiers.SHIFT, "alt": KeyModifiers.ALT}
_NAMES = {
    **{"at": "@", "left_square_bracket": "[", "right_square_bracket": "]", "backslash": "\\"},
    **{"circumflex_accent": "^", "underscore": "_", "space": " ", "slash": "/", "question_mark": "?"},
}


def _runs(cells: Any, reverse: bool = False) -> list[Run]:
    """Cells as runs of equal style, fit for the user's terminal."""
    runs: list[Run] = []
    last, text = None, []
    for style, character in cells:
        if style is not last:
            if text:
                runs.append(("".join(text), _style(last, reverse)))
            last, text = style, []
        text.append(_clean(character))
    if text:
        runs.append(("".join(text), _style(last, reverse)))
    return runs


@lru_cache(4096)
def _clean(character: str) -> str:
    text = plain(character[:_CELL])
    return text if cell_len(text) or not text else "�"


@lru_cache(4096)
def _style(style: Any, reverse: bool) -> Style:
    """A cell's style as Rich has it."""
    if style is None:
        return _BASE
    front = _colour(style.fg, FOREGROUND, bool(style.bold))
    back = _colour(style.bg, BACKGROUND, False)
    if bool(style.reverse) != reverse:
        front, back = back, front
    return Style(
        color=back if style.conceal else front,
        bgcolor=back,
        bold=bool(style.bold) or None,
        dim=bool(style.dim) or None,
        italic=bool(style.italic) or None,
        underline=bool(style.underline) or None,
        strike=bool(style.strike) or None,
    )


def _colour(colour: Any, default: str, bold: bool) -> str:
    """A colour as `#rrggbb`; bold brightens the first eight, as terminals do."""
    if colour is None or colour.mode == "default" or colour.value is None:
        return default
    if colour.mode == "rgb":
        red, green, blue = colour.value
        return f"#{red & 255:02x}{green & 255:02x}{blue & 255:02x}"
    number = colour.value
    if number < 16:
        return _PALETTE[number + 8 if bold and number < 8 else number]
    if number < 232:
        levels = (0, 95, 135, 175, 215, 255)
        number -= 16
        return "#{:02x}{:02x}{:02x}".format(*(levels[number // size % 6] for size in (36, 6, 1)))
    grey = 8 + 10 * (min(number, 255) - 232)
    return f"#{grey:02x}{grey:02x}{grey:02x}"
