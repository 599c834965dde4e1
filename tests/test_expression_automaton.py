"""Regular expressions over values in hexadecimal: the automaton says of each what `re` says of its text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xentui.engine.expression import Expression
from xentui.engine.expression_automaton import could_show, decimal, hexadecimal
from xentui.engine.trace import U64, Kind, Record, dtype
from xentui.engine.trace_decode import seconds

VALUES = st.one_of(
    st.integers(1, 300), st.integers(1, U64), st.builds(lambda low: 0x7F00_0000_0000 + low, st.integers(0, 1 << 30))
)
ATOMS = st.sampled_from(
    [
        *"0123456789abcdefx7f0.=aC",
        "[0-9]",
        "[a-f]",
        "[^0]",
        "[7f]",
        "[]0]",
        "[^]0]",
        r"\d",
        r"\D",
        r"\w",
        r"\.",
        r"[\d]",
    ]
)
QUANTIFIERS = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{,2}", "{2,}", "{0}", "{,}", "{2,3}?"])
PATTERNS = st.recursive(
    st.one_of(ATOMS, st.lists(ATOMS, min_size=1, max_size=4).map("".join), st.sampled_from(["^", "$", "", "{x", "{}"])),
    lambda parts: st.one_of(
        st.tuples(parts, parts).map("".join),
        st.tuples(parts, parts).map("|".join),
        st.tuples(st.sampled_from(["(", "(?:", "(?P<n>"]), parts, st.just(")")).map("".join),
        st.tuples(ATOMS, QUANTIFIERS).map("".join),
        st.tuples(st.just("("), parts, st.just(")"), QUANTIFIERS).map("".join),
    ),
    max_leaves=8,
)
HEADS = st.sampled_from(["0x", "va=0x", "cr2=0x", "a=0x"])


def compiled(text: str) -> re.Pattern[str] | None:
    """As an expression has it, or None where it is no regular expression."""
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error:
        return None


def loosened(shown: str, data: st.DataObject) -> str:
    """Some of a text, with some of its letters made vague."""
    start = data.draw(st.integers(0, len(shown) - 1))
    part = shown[start : start + data.draw(st.integers(1, 16))]
    vague = ["{0}", "{0}", "{0}", ".", "[{0}0]", "[^{0}]", "{0}?", "{0}+", "({0}|9)", r"\w", "{0}{{2}}", ".*"]
    return "".join(data.draw(st.sampled_from(vague)).format(letter) for letter in part)


@settings(max_examples=600, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=20), st.one_of(PATTERNS, st.none()), HEADS, st.data())
def test_the_automaton_finds_what_re_finds(values: list[int], text: str | None, head: str, data: st.DataObject) -> None:
    pattern = compiled(loosened(f"{head}{values[0]:x}", data) if text is None else text)
    table = hexadecimal(pattern, head) if pattern is not None else None
    if table is None or pattern is None:
        return
    expected = [pattern.search(f"{head}{value:x}") is not None for value in values]
    column = np.array(values, np.uint64)
    assert table.many(column).tolist() == expected
    small = column.astype(np.min_scalar_type(int(column.max())))
    assert table.many(small).tolist() == expected
    said = table.between(min(values), max(values))
    assert said is None or expected == [said] * len(values)
    if any(expected):
        assert could_show(pattern, head, frozenset("0123456789abcdef"))


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.one_of(VALUES, st.integers(10**8, 10**10)), min_size=1, max_size=20),
    st.one_of(PATTERNS, st.none()),
    st.sampled_from(["", "port=", "ns="]),
    st.data(),
)
def test_decimal_numbers_and_times(values: list[int], text: str | None, head: str, data: st.DataObject) -> None:
    for show in (str, seconds):
        pattern = compiled(loosened(f"{head}{show(values[0])}", data) if text is None else text)
        numbers = decimal(pattern, head) if pattern is not None else None
        if numbers is None or pattern is None:
            continue
        expected = [pattern.search(f"{head}{show(value)}") is not None for value in values]
        many = numbers.many if show is str else numbers.thousand_millionths
        column = np.array(values, np.uint64)
        assert many(column).tolist() == expected
        assert many(column.astype(np.min_scalar_type(int(column.max())))).tolist() == expected


@pytest.mark.parametrize(
    ("text", "low", "high", "expected"),
    [
        ("7f0[0-9]1", 0x7F01_1000, 0x7F01_1FFF, True),
        ("7f0[0-9]1", 0x10, 0xFFF, False),
        ("7f0[0-9]1", 0x10, 0xFFFFF, None),
        ("^0x7f", 0x7F00, 0x7FFF, True),
        ("^0x7f", 0x8000, 0x8FFF, False),
        ("[0-7]$", 0x8000, 0x8FFF, None),
        ("x.{4}$", 0x800, 0xFFF, False),
    ],
)
def test_what_all_of_a_range_show(text: str, low: int, high: int, expected: bool | None) -> None:
    table = hexadecimal(re.compile(text), "0x")
    assert table is not None and table.between(low, high) is expected


@pytest.mark.parametrize(
    "text",
    [r"(7)\1", r"(?=7)f", r"(?!7)f", r"\bf", r"(?i)f", r"\x37", r"7{300}", r"7*+f", "(?>7)f", "(0|1)*1(0|1){20}"],
)
def test_what_is_left_to_re(text: str) -> None:
    pattern = compiled(text)
    assert pattern is None or (hexadecimal(pattern, "0x") is None and could_show(pattern, "0x", frozenset("01")))


def test_letters_that_a_pattern_needs() -> None:
    pattern = re.compile("7f0[0-9]1", re.IGNORECASE)
    assert not could_show(pattern, "slice=", frozenset("0123456789."))
    assert could_show(pattern, "cr2=", frozenset("0123456789abcdefx"))
    assert could_show(re.compile("slice=[01]"), "slice=", frozenset("0123456789."))
    assert not could_show(re.compile("^0"), "slice=", frozenset("0123456789."))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda kind, number, *slots: Record(5, 0x10, kind, 0, 2, number, *slots),
            st.sampled_from([Kind.HYPERCALL, Kind.PAGE_FAULT, Kind.IRET, Kind.SCHEDULE, Kind.IO_PORT, Kind.REFUSAL]),
            st.sampled_from([1, 14, 26, 32]),
            *[st.one_of(st.integers(0, 12), VALUES)] * 5,
        ),
        min_size=1,
        max_size=20,
    ),
    st.one_of(PATTERNS, st.none()),
    st.sampled_from(["", "cr2", "va", "result"]),
    st.data(),
)
def test_a_mask_says_of_each_record_what_the_record_says(
    records: list[Record], text: str | None, field: str, data: st.DataObject
) -> None:
    text = loosened(f"{records[0].a:#x}", data) if text is None else text
    if not text or compiled(text) is None:
        return
    expression = Expression.parse(f'{field} ~ "{text}"')
    mask = expression.mask(np.array(records, dtype()))
    assert mask.tolist() == [expression.matches(record) for record in records]
