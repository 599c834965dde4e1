"""How an xl configuration is written: ``name = value`` (tools/libs/util/libxlu_cfg_l.l and libxlu_cfg_y.y in Xen).

Values are strings in single or double quotes, numbers, or lists of values. Newlines and semicolons end a setting;
within a list newlines mean nothing; ``#`` starts a comment. ``+=`` adds to what was set before. Unlike xl, which drops
them by mistake, numeric escapes such as ``\\x41`` stand for their character; and CR LF ends a line, too.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

from .config import ConfigError

MAX_DEPTH = 16
"""Lists within lists; xl knows no key that needs more than three."""

Value = str | list["Value"]

TOKEN = re.compile(
    r"""(?P<blank>[ \t]+|\r(?=\n))
    |(?P<newline>\n|\#[^\n]*(?:\n|\Z))
    |(?P<name>[a-z][_0-9a-z]*)
    |(?P<number>[0-9][0-9a-fx]*)
    |(?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    |(?P<mark>\+=|[=,;\[\]])""",
    re.VERBOSE,
)
ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)")
ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", '"': '"', "'": "'", "\\": "\\"}
NAMES = {"newline": "the end of the line", "end": "the end of the file"}


class Setting(NamedTuple):
    """One ``name = value``; a number's value is its text. Line and column count from 1."""

    name: str
    value: Value
    line: int
    column: int


class _Token(NamedTuple):
    kind: str
    """"name", "number", "string", "newline", "end", or the mark itself."""
    text: str
    offset: int


def parse_settings(path: str, data: bytes) -> list[Setting]:
    """All settings of a configuration, in file order. `path` is for messages. Raises ConfigError."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{path}:{line}:{column}: not UTF-8 text; is this a configuration?") from None
    return _Parser(path, text).settings()


class _Parser:
    """A recursive-descent parser with one token of look-ahead."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.offset = 0
        self.token = self._next_token()

    def settings(self) -> list[Setting]:
        """file: settings, each ended by a newline, a semicolon or the end of the file."""
        found: list[Setting] = []
        while self.token.kind != "end":
            if self.token.kind in ("newline", ";"):
                self._advance()
                continue
            found.append(self._assignment(found))
            if self.token.kind not in ("newline", ";", "end"):
                raise self._error(self.token, f"expected the end of the line, not {self._shown(self.token)}")
        return found

    def _assignment(self, before: list[Setting]) -> Setting:
        """name = value, or name += value."""
        name = self._take("name", "a setting's name")
        if self.token.kind not in ("=", "+="):
            raise self._error(self.token, f'expected "=" after {name.text}, not {self._shown(self.token)}')
        operator = self._advance()
        value = self._value(0)
        if operator.kind == "+=":
            previous = next((s.value for s in reversed(before) if s.name == name.text), None)
            value = self._sum(operator, previous, value)
        line, column = self._position(name.offset)
        return Setting(name.text, value, line, column)

    def _sum(self, operator: _Token, previous: Value | None, value: Value) -> Value:
        """What += makes of the value before and the value behind it."""
        if previous is None:
            return value
        if isinstance(previous, str) and isinstance(value, str):
            return previous + value
        if isinstance(previous, list) and isinstance(value, list):
            return previous + value
        raise self._error(operator, "+= cannot add a list to a string, nor a string to a list")

    def _value(self, depth: int) -> Value:
        """A string, a number, or a list in brackets."""
        if self.token.kind == "string":
            return self._unquoted(self._advance())
        if self.token.kind == "number":
            return self._advance().text
        if self.token.kind != "[":
            raise self._error(self.token, f"expected a value, not {self._shown(self.token)}; put strings into quotes")
        if depth == MAX_DEPTH:
            raise self._error(self.token, f"more than {MAX_DEPTH} lists within each other")
        return self._list(depth)

    def _list(self, depth: int) -> list[Value]:
        """A list: values with commas between, perhaps one behind the last, and newlines anywhere."""
        opening = self._advance()
        items: list[Value] = []
        self._skip_newlines()
        while self.token.kind != "]":
            items.append(self._value(depth + 1))
            self._skip_newlines()
            if self.token.kind == ",":
                self._advance()
                self._skip_newlines()
            elif self.token.kind == "end":
                raise self._error(opening, "the list that starts here is not closed; add a ]")
            elif self.token.kind != "]":
                raise self._error(self.token, f'expected "," or "]" in a list, not {self._shown(self.token)}')
        self._advance()
        return items

    def _unquoted(self, token: _Token) -> str:
        """A string's text, its escapes resolved."""

        def character(match: re.Match[str]) -> str:
            escape = match[1]
            if escape[0] == "x" and len(escape) == 3:
                return chr(int(escape[1:], 16))
            if escape[0] in "01234567":
                return chr(int(escape, 8) & 255)
            if escape not in ESCAPES:
                place = _Token("string", token.text, token.offset + 1 + match.start())
                raise self._error(place, f"\\{escape} is no escape; write \\\\ for a backslash")
            return ESCAPES[escape]

        return ESCAPE.sub(character, token.text[1:-1])

    def _skip_newlines(self) -> None:
        while self.token.kind == "newline":
            self._advance()

    def _take(self, kind: str, what: str) -> _Token:
        """The present token, which must be of a kind."""
        if self.token.kind != kind:
            raise self._error(self.token, f"expected {what}, not {self._shown(self.token)}")
        return self._advance()

    def _advance(self) -> _Token:
        """The present token; the next one becomes present."""
        token, self.token = self.token, self._next_token()
        return token

    def _next_token(self) -> _Token:
        """Read a token; ConfigError for characters that begin none."""
        while self.offset < len(self.text):
            start = self.offset
            match = TOKEN.match(self.text, start)
            if match is None:
                raise self._lexical_error(start)
            self.offset = match.end()
            kind = match.lastgroup or ""
            if kind != "blank":
                return _Token(match[0] if kind == "mark" else kind, match[0], start)
        return _Token("end", "", len(self.text))

    def _lexical_error(self, offset: int) -> ConfigError:
        """Say what is wrong with characters that begin no token."""
        character = self.text[offset]
        token = _Token("", character, offset)
        if character in "'\"":
            return self._error(token, "the string that starts here is not closed on its line; add the quote")
        if character.isupper():
            return self._error(token, f'"{character}" cannot begin a name: names are lower case, strings in quotes')
        if character in "+-.():":
            return self._error(
                token, f'unexpected "{character}": a configuration is no Python; put strings into quotes'
            )
        return self._error(token, f'unexpected "{character}"; put strings into quotes')

    def _shown(self, token: _Token) -> str:
        return NAMES.get(token.kind) or token.text[:40]

    def _position(self, offset: int) -> tuple[int, int]:
        """Line and column, counted from 1."""
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def _error(self, token: _Token, what: str) -> ConfigError:
        line, column = self._position(token.offset)
        return ConfigError(f"{self.path}:{line}:{column}: syntax error: {what}")
