"""The one language for trace filters, breakpoint conditions and "run to".

    hypercall and result < 0            mmu_update or update_va_mapping         time > 20ms and domain == hello32
    page_fault and cr2 & 0xfff == 0     port in (1, 3) and not upcall           cmd == PIN_L4_TABLE
    ~ "rw|wx"                           name ~ ^evtchn                          rax == 5 and eip >= 0xc0100000

A name alone asks for records of that kind, hypercall or group. Compared, it is a field of the record, or an argument
of its kind or hypercall; what a record lacks makes any comparison false. A word on the other side is compared with the
value as it is shown. `~` looks for a regular expression, whatever the letters' case, in one field or (alone) in the
record's name and in each `argument=value`. No evaluation by Python: a tokenizer, a parser of five levels, and terms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from xentui.engine.expression_columns import OPERATORS, Columns, kind_of, narrow_domains, title_of
from xentui.engine.expression_names import (
    GROUPS,
    NUMERIC,
    OPEN,
    RAW,
    REGISTERS,
    argument_names,
    completions,
    crosses,
    titles,
    value_names,
)
from xentui.engine.expression_terms import (
    Bits,
    Both,
    Compared,
    Constant,
    Either,
    Matched,
    Named,
    Negated,
    OfClass,
    Raw,
    Scope,
    Shown,
    Test,
    Value,
)
from xentui.engine.trace import KIND_NAMES, Kind, Record
from xentui.engine.trace_decode import DOMIDS, ERRNOS, FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GROUPS", "REGISTERS", "UNITS", "Expression", "ExpressionError", "completions", "titles"]

UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "min": 60_000_000_000}
"""Of a time, in nanoseconds."""


class ExpressionError(ValueError):
    """An expression that cannot be understood: `text`, `column` (from 0) and `message`; as a string, one line."""

    def __init__(self, text: str, column: int, message: str) -> None:
        super().__init__(f"column {column + 1}: {message}")
        self.text, self.column, self.message = text, column, message


class Token(NamedTuple):
    """A piece of an expression: what it is, its text, where it begins."""

    kind: str
    text: str
    column: int


_TOKEN = re.compile(
    r"""(?P<time>\d+(?:\.\d+)?(?:ns|us|µs|ms|s|min)\b)
      | (?P<number>0[xX][0-9a-fA-F]+\b|\d[\d_]*\b)
      | (?P<error>-E[A-Z0-9]+\b)
      | (?P<word>[#A-Za-z_][\w.#-]*)
      | (?P<quoted>"[^"]*"|'[^']*')
      | (?P<operator>==|!=|<=|>=|&&|\|\||[=<>&(),!~-])
      | (?P<other>\S)""",
    re.VERBOSE,
)
_WORDS = {"&&": "and", "||": "or", "!": "not"}


def _pattern_at(text: str, position: int) -> tuple[str, str]:
    """What is written at a place after `~`, and the pattern: quoted, or up to a space or a `)` without its `(`."""
    quoted = re.compile(r"\"[^\"]*\"|'[^']*'").match(text, position)
    if quoted:
        return quoted[0], quoted[0][1:-1]
    depth = 0
    for end in range(position, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if text[end].isspace() or depth < 0:
            return text[position:end], text[position:end]
    return text[position:], text[position:]


def tokens(text: str) -> list[Token]:
    """Take an expression apart; ends with a token `end`. Raises ExpressionError."""
    found: list[Token] = []
    position = 0
    while match := re.compile(r"\s*").match(text, position):
        position = match.end()
        if position == len(text):
            break
        if found and found[-1].text == "~" and found[-1].kind == "operator":
            whole, pattern = _pattern_at(text, position)
            found.append(Token("pattern", pattern, position))
            position += len(whole)
            continue
        token = _TOKEN.match(text, position)
        assert token is not None and token.lastgroup is not None
        if token.lastgroup == "other":
            quotes = token[0] in "\"'"
            raise ExpressionError(text, position, "the quotation does not end" if quotes else f"{token[0]!r}?")
        word = _WORDS.get(token[0], token[0])
        operator = word in ("and", "or", "not", "in")
        found.append(Token("operator" if operator else token.lastgroup, word, position))
        position = token.end()
    found.append(Token("end", "", len(text)))
    return found


class Expression:
    """An expression, understood. Make one with `parse`."""

    def __init__(self, text: str, test: Test, narrow: frozenset[int]) -> None:
        self.text = text
        self._test = test
        self._narrow = narrow

    @classmethod
    def parse(
        cls, text: str, domains: Mapping[str, int] | None = None, widths: Mapping[int, int] | None = None
    ) -> Expression:
        """Understand a text. `domains`: numbers by name; `widths`: word size by number (64 where it is not said).

        Raises ExpressionError.
        """
        return cls(text, _Parser(text, domains or {}).whole(), narrow_domains(widths or {}))

    def mask(self, columns: Mapping[str, NDArray[Any]] | NDArray[Any]) -> NDArray[Any]:
        """For which of many records it holds: `columns` is a structured array of `trace.dtype()` or its columns by
        name, asked for only as far as they matter (`kind` always)."""
        return self._test.many(Columns(columns, self._narrow))

    def matches(self, record: Record) -> bool:
        """Whether it holds for a record."""
        return self._test.one(Scope(record, {}, self._narrow))

    def holds(self, environment: Mapping[str, int], record: Record | None = None) -> bool:
        """Whether it holds where a vCPU stands: `environment` has registers (and whatever else is known) by name."""
        return self._test.one(Scope(record, environment, self._narrow))

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


class _Parser:
    """Recursive descent: or, and, not, comparison, bits."""

    def __init__(self, text: str, domains: Mapping[str, int]) -> None:
        self.text = text
        self.tokens = tokens(text)
        self.position = 0
        self.domains = {name.casefold(): number for name, number in domains.items()}
        self.domains.update((name.casefold(), number) for number, name in DOMIDS.items())
        self.depth = 0

    def whole(self) -> Test:
        if self.next.kind == "end":
            raise self.error("an expression is expected, as `hypercall and result < 0`")
        test = self.either()
        if self.next.kind != "end":
            raise self.error(f"`and` or `or` is expected before {self.next.text!r}")
        return test

    @property
    def next(self) -> Token:
        return self.tokens[self.position]

    def take(self, *texts: str) -> Token | None:
        """The next token, if it is one of these operators."""
        token = self.next
        if token.kind != "operator" or token.text not in texts:
            return None
        self.position += 1
        return token

    def error(self, message: str, token: Token | None = None) -> ExpressionError:
        return ExpressionError(self.text, (token or self.next).column, message)

    def either(self) -> Test:
        tests = [self.both()]
        while self.take("or"):
            tests.append(self.both())
        return tests[0] if len(tests) == 1 else Either(tests)

    def both(self) -> Test:
        tests = [self.negation()]
        while self.take("and"):
            tests.append(self.negation())
        return tests[0] if len(tests) == 1 else Both(tests)

    def negation(self) -> Test:
        self.depth += 1
        if self.depth > 100:
            raise self.error("nested more than a hundred deep")
        try:
            if self.take("not"):
                return Negated(self.negation())
            return self.comparison()
        finally:
            self.depth -= 1

    def comparison(self) -> Test:
        start = self.next
        if self.take("~"):
            return _matched(self.pattern())
        if self.next.text == "(" and self.next.kind == "operator" and not self.is_value():
            self.position += 1
            test = self.either()
            self.close()
            return test
        after = self.tokens[self.position + 1] if start.kind in ("word", "quoted") else None
        if after is not None and (after.kind != "operator" or after.text in ("and", "or", ")", ",")):
            self.position += 1
            return self.alone(start)
        if start.kind == "word" and self.tokens[self.position + 1].text in ("~", "==", "=", "!=", "in"):
            return self.about(start)
        value = self.bits()
        how = self.take(*OPERATORS)
        if how is not None:
            return Compared(value, OPERATORS[how.text], self.bits())
        if self.take("in"):
            return self.among(value)
        return Compared(value, OPERATORS["!="], Constant(0))

    def is_value(self) -> bool:
        """Whether a parenthesis begins a value, as in `(a & 3) == 2`, and not a test."""
        depth = 0
        for place in range(self.position, len(self.tokens)):
            token = self.tokens[place]
            if token.kind != "operator":
                continue
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            if depth and token.text not in ("(", ")", "&", "-"):
                return False
            if not depth:
                after = self.tokens[place + 1]
                return after.kind == "operator" and after.text in (*OPERATORS, "&", "in")
        return False

    def close(self) -> None:
        if not self.take(")"):
            raise self.error("`)` is expected")

    def pattern(self) -> re.Pattern[str]:
        token = self.next
        if token.kind != "pattern" or not token.text:
            raise self.error("a pattern is expected after `~`, as in name ~ mmu")
        self.position += 1
        try:
            return re.compile(token.text, re.IGNORECASE)
        except re.error as error:
            raise self.error(f"not a regular expression: {error}", token) from None

    def alone(self, token: Token) -> Test:
        """A name by itself: a kind, a hypercall, a group, or an argument that is not 0."""
        name = token.text
        if token.kind == "quoted":
            raise self.error(f"a text alone says nothing; to look for it: ~ {name}", token)
        if name in GROUPS:
            kinds = GROUPS[name]
            return OfClass(name, lambda which: kind_of(which) in kinds)
        if name == "crossing":
            return OfClass(name, crosses)
        if name in titles():
            return OfClass(name, lambda which: name in (title_of(which), KIND_NAMES.get(kind_of(which))))
        return Compared(self.field(token), OPERATORS["!="], Constant(0))

    def about(self, token: Token) -> Test:
        """A field compared with what may be a word: equal, not equal, one of several, or a pattern."""
        self.position += 1
        how = self.next.text
        self.position += 1
        if how == "~":
            return self.shown(token, self.pattern())
        if how != "in":
            test = self.equal(token)
            return _present_but_not(token.text, test) if how == "!=" else test
        if not self.take("("):
            raise self.error("`(` is expected after `in`")
        tests = [self.equal(token)]
        while self.take(","):
            tests.append(self.equal(token))
        self.close()
        return Either(tests)

    def among(self, value: Value) -> Test:
        if not self.take("("):
            raise self.error("`(` is expected after `in`")
        tests: list[Test] = [Compared(value, OPERATORS["=="], self.bits())]
        while self.take(","):
            tests.append(Compared(value, OPERATORS["=="], self.bits()))
        self.close()
        return Either(tests)

    def shown(self, token: Token, pattern: re.Pattern[str]) -> Test:
        """A field's text with a pattern in it."""
        name = token.text
        if name == "text":
            return _matched(pattern)
        if name == "name":
            return OfClass(name, lambda which: pattern.search(title_of(which)) is not None)
        if name == "kind":
            return OfClass(name, lambda which: pattern.search(KIND_NAMES.get(kind_of(which), "")) is not None)
        if name == "domain":
            tests: list[Test] = [
                Compared(Raw(name), OPERATORS["=="], Constant(number))
                for known, number in self.domains.items()
                if pattern.search(known)
            ]
            return Either(tests) if tests else Compared(Raw(name), OPERATORS["<"], Constant(0))
        if name not in argument_names():
            raise self.unknown(token)
        return Shown(name, lambda text: pattern.search(text) is not None, pattern)

    def equal(self, field: Token) -> Test:
        """`field` is what comes next: a number, another field, or a word as the value is shown."""
        name, token = field.text, self.next
        if token.kind in ("word", "quoted"):
            word = token.text.strip("\"'").casefold()
            test = self.word(name, word)
            if test is None and name not in (*RAW, *REGISTERS) and name not in argument_names():
                raise self.unknown(field)
            if test is None and token.kind == "word" and self.is_field(token.text):
                return Compared(self.field(field), OPERATORS["=="], self.bits())
            if test is None:
                raise self.not_a_value(name, token)
            self.position += 1
            return test
        return Compared(self.field(field), OPERATORS["=="], self.bits())

    def word(self, name: str, word: str) -> Test | None:
        """A field shown as a word, or None if it never is."""
        if name == "domain":
            number = self.domains.get(word)
            return None if number is None else Compared(Raw(name), OPERATORS["=="], Constant(number))
        if name in ("name", "kind", "hypercall"):
            if word not in titles():
                return None
            if name == "kind":
                return OfClass(name, lambda which: KIND_NAMES.get(kind_of(which)) == word)
            calls = (Kind.HYPERCALL, Kind.MULTICALL_ENTRY) if name == "hypercall" else tuple(KIND_NAMES)
            return OfClass(name, lambda which: kind_of(which) in calls and title_of(which) == word)
        shows = argument_names().get(name, frozenset()) - NUMERIC
        if name == "result" and not re.fullmatch(r"-e\w+", word):
            word = f"-{word}"
        known = word in (known.casefold() for known in value_names(name))
        if FORMATS["domid"] in shows and word in self.domains:
            return Compared(Named(name), OPERATORS["=="], Constant(self.domains[word]))
        if not known and (not shows & OPEN or self.is_field(word)):
            return None
        return Shown(name, lambda text: text.casefold() == word)

    def is_field(self, name: str) -> bool:
        return name in RAW or name in argument_names() or name in REGISTERS

    def field(self, token: Token) -> Value:
        """The value of a name."""
        if token.text == "hypercall":
            raise self.error("compare `hypercall` with a name, as in hypercall == mmu_update", token)
        if token.text in RAW:
            return Raw(token.text)
        if token.text in argument_names() or token.text in REGISTERS:
            return Named(token.text)
        raise self.unknown(token)

    def bits(self) -> Value:
        value = self.value()
        while self.take("&"):
            value = Bits(value, self.value())
        return value

    def value(self) -> Value:
        token = self.next
        if self.take("("):
            value = self.bits()
            self.close()
            return value
        if self.take("-"):
            value = self.value()
            if not isinstance(value, Constant):
                raise self.error("only a number can be negative", token)
            return Constant(-value.value)
        self.position += 1
        if token.kind == "number":
            return Constant(int(token.text.replace("_", ""), 16 if token.text[:2].lower() == "0x" else 10))
        if token.kind == "time":
            match = re.fullmatch(r"([\d.]+)(\D+)", token.text)
            assert match is not None
            whole, _, part = match[1].partition(".")
            return Constant((int(whole + part) * UNITS[match[2]]) // 10 ** len(part))
        if token.kind in ("error", "word"):
            negative = -next((number for number, name in ERRNOS.items() if token.text in (f"-E{name}", f"E{name}")), 0)
            if negative:
                return Constant(negative)
        if token.kind == "word":
            return self.field(token)
        self.position -= 1
        raise self.error(f"a value is expected, not {token.text!r}" if token.text else "a value is expected", token)

    def unknown(self, token: Token) -> ExpressionError:
        known = [*titles(), *RAW, *argument_names(), *REGISTERS, "name", "text"]
        close = get_close_matches(token.text, known, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else f'to look for the text: ~ "{token.text}"'
        return self.error(f"there is no {token.text!r}; {hint}", token)

    def not_a_value(self, name: str, token: Token) -> ExpressionError:
        names = list(self.domains) if name == "domain" else list(value_names(name))
        names = names or [word for word in sorted(titles()) if name in ("name", "kind", "hypercall")]
        close = get_close_matches(token.text, names, 3)
        if not names:
            return self.error(f"{name} is a number, and {token.text} is none", token)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(names[:6])}"
        return self.error(f"{name} is never {token.text!r}; {hint}", token)


def _matched(pattern: re.Pattern[str]) -> Test:
    """A pattern anywhere; alternatives are looked for one by one, since a plain text is found much sooner."""
    pieces = pattern.pattern.split("|")
    if len(pieces) == 1 or not all(pieces) or re.search(r"[\\()\[]", pattern.pattern):
        return Matched(pattern)
    return Either([Matched(re.compile(piece, pattern.flags)) for piece in pieces])


def _present_but_not(name: str, test: Test) -> Test:
    """Not equal: where there is such a field at all."""
    if name in RAW or name in ("name", "kind"):
        return Negated(test)
    if name == "hypercall":
        return Both(
            [OfClass(name, lambda which: kind_of(which) in (Kind.HYPERCALL, Kind.MULTICALL_ENTRY)), Negated(test)]
        )
    return Both([Compared(Named(name), OPERATORS["=="], Named(name)), Negated(test)])
