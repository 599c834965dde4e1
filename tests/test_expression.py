"""The language of filters and conditions: what it says, what it refuses, and that a column says what a record says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xentui.engine.expression import GROUPS, Expression, ExpressionError, completions, titles
from xentui.engine.expression_columns import Columns
from xentui.engine.expression_digits import digits_anywhere, digits_at_start, in_all
from xentui.engine.trace import KIND_NAMES, U64, Kind, Record, dtype, rings, runner
from xentui.engine.xen import refusals
from xentui.engine.xen.abi import hypercalls

DOMAINS = {"hello32": 1, "linux": 2}
WIDTHS = {1: 32, 2: 64}


def made(kind: int, **fields: int) -> Record:
    """A record with the fields given, the others 0."""
    return Record(**{**dict.fromkeys(Record._fields, 0), "domain": 2, "kind": kind, **fields})


SEND = made(Kind.EVENT_SEND, number=3, a=1, b=7, time=21_000_000)
UPDATE = made(Kind.HYPERCALL, number=1, a=0xFFFF888000001000, b=512, d=0x7FF0, result=0)
FAILED = made(Kind.HYPERCALL, number=32, a=4, b=0xC0001000, result=-38 & U64, domain=1)
MAPPED_32 = made(Kind.HYPERCALL, number=14, a=0xC0002000, b=0x1067, c=1, d=2, domain=1)
FAULT = made(Kind.PAGE_FAULT, number=6, a=0xC0003ABC, c=0xC0100000, d=rings(3, 1), rip=0xC0003ABC)
SWITCH = made(Kind.SCHEDULE, a=runner(1, 0), b=runner(2, 1), c=5_000_000)
EVERY = [SEND, UPDATE, FAILED, MAPPED_32, FAULT, SWITCH]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hypercall", [UPDATE, FAILED, MAPPED_32]),
        ("mmu_update or event_send", [SEND, UPDATE]),
        ("hypercall and result < 0", [FAILED]),
        ("result == -ENOSYS", [FAILED]),
        ("result = ENOSYS", [FAILED]),
        ("result == -38", [FAILED]),
        ("hypercall == update_va_mapping", [MAPPED_32]),
        ("hypercall != update_va_mapping", [UPDATE, FAILED]),
        ("cmd == send", [FAILED]),
        ("cmd != send", []),
        ("port == 3", [SEND]),
        ("port in (1, 3)", [SEND]),
        ("not port == 3", [UPDATE, FAILED, MAPPED_32, FAULT, SWITCH]),
        ("port != 4", [SEND]),
        ("peer == hello32", [SEND]),
        ("foreigndom == DOMID_SELF", [UPDATE]),
        ("domain == hello32", [FAILED, MAPPED_32]),
        ("domain != hello32", [SEND, UPDATE, FAULT, SWITCH]),
        ("domain in (hello32, 7)", [FAILED, MAPPED_32]),
        ("domain ~ ^lin", [SEND, UPDATE, FAULT, SWITCH]),
        ("val == 0x100001067", [MAPPED_32]),  # the halves of a 32-bit guest's value are put together
        ("val", [MAPPED_32]),
        ("time > 20ms && domain == linux", [SEND]),
        ("time >= 0.021s", [SEND]),
        ("page_fault and cr2 & 0xfff == 0xabc", [FAULT]),
        ("(cr2 & 0xfff) == 0xabc", [FAULT]),
        ("cr2 == rip", [FAULT]),
        ("error_code == 'write|user'", [FAULT]),
        ("rings == '3→0→1'", [FAULT]),
        ("crossing and not hypercall", [FAULT]),
        ("trap or scheduling", [FAULT, SWITCH]),
        ("to == d2v1", [SWITCH]),
        ("ran >= 5ms", [SWITCH]),
        ("count > 100", [UPDATE]),
        ("kind in (page_fault, schedule)", [FAULT, SWITCH]),
        ("name ~ ^(mmu|page)", [UPDATE, FAULT]),
        ("kind ~ sched", [SWITCH]),
        ('~ "cmd=send"', [FAILED]),
        ("~ 0xffff8880", [UPDATE]),
        ("~ 8880", [UPDATE]),
        ("~ MMU_", [UPDATE]),
        ("~ ureqs=0xffff", [UPDATE]),
        ("text ~ write.user", [FAULT]),
        ("!(hypercall || ~ d2v1)", [SEND, FAULT]),
        ("rax == 1", []),
    ],
)
def test_what_an_expression_selects(text: str, expected: list[Record]) -> None:
    expression = Expression.parse(text, DOMAINS, WIDTHS)
    assert [record for record in EVERY if expression.matches(record)] == expected
    mask = expression.mask(np.array(EVERY, dtype()))
    assert [record for record, chosen in zip(EVERY, mask, strict=True) if chosen] == expected


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 0, "expected"),
        ("prot == 3", 0, "did you mean port"),
        ("frobnicate", 0, 'to look for the text: ~ "frobnicate"'),
        ("a == foo", 5, "a is a number"),
        ("kind == pagefault", 8, "did you mean page_fault"),
        ("domain == helo32", 10, "did you mean hello32"),
        ("cmd == PIN_L4_TABLE", 7, "cmd is never 'PIN_L4_TABLE'"),
        ("va ==", 5, "a value is expected"),
        ("(a == 1", 7, "`)` is expected"),
        ("a == 1 b == 2", 7, "`and` or `or`"),
        ("name ~ (", 7, "not a regular expression"),
        ("name ~", 6, "a pattern is expected"),
        ('name == "x', 8, "the quotation does not end"),
        ("port in 3", 8, "`(` is expected"),
        ("a == 1 ; b", 7, "';'?"),
        ("hypercall > 3", 0, "compare `hypercall` with a name"),
        ("not " * 200 + "a", 400, "a hundred deep"),
        ("-a == 3", 0, "only a number"),
        ('"mmu"', 0, '~ "mmu"'),
    ],
)
def test_what_is_refused_says_where_and_why(text: str, column: int, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression.parse(text, DOMAINS)
    assert (caught.value.column, message in caught.value.message) == (column, True), str(caught.value)
    assert "\n" not in str(caught.value)


def test_conditions_on_registers() -> None:
    condition = Expression.parse("rax == 5 and eip & 0xfff0000000 == 0xc0000000")
    assert condition.holds({"rax": 5, "eip": 0xC0100000})
    assert not condition.holds({"rax": 5})
    assert not condition.holds({"rax": 6, "eip": 0xC0100000})
    assert Expression.parse("rax == 5 and port == 3").holds({"rax": 5}, SEND)
    assert Expression.parse("domain == hello32 or hypercall", DOMAINS).holds({"domain": 1})


def test_a_column_that_does_not_matter_is_not_asked_for() -> None:
    rows = np.array(EVERY, dtype())
    columns = {name: rows[name] for name in ("kind", "number", "domain")}
    assert Expression.parse("page_fault and domain == 2").mask(columns).tolist() == [
        record == FAULT for record in EVERY
    ]


def test_completion() -> None:
    assert completions("mmu_u") == ["mmu_update"]
    assert "page_fault" in completions("kind == pa")
    assert completions("domain == h", DOMAINS) == ["hello32"]
    assert completions("cmd == pin_o") == ["pin_override"]
    assert completions("port == 3 ") == ["and", "or", "in"]
    assert completions("not (up")[0] == "update_descriptor" or "upcall" in completions("not (up")
    assert "update_va_mapping" in completions("hypercall in (mmu_update, up")
    assert completions("name ~ x") == []
    for name in titles() | set(GROUPS):
        Expression.parse(name)


VALUES = st.one_of(
    st.integers(0, 20),
    st.sampled_from([0x7FF0, 4096, 0xC0001000, 0xFFFF888000001067, 1 << 32, 1 << 63]),
    st.integers(0, U64),
)
RESULTS = st.one_of(st.integers(0, 3), st.integers(-50, -1).map(lambda value: value & U64), st.integers(0, U64))
RECORDS = st.builds(
    Record,
    time=st.integers(0, 1 << 40),
    rip=VALUES,
    kind=st.one_of(st.sampled_from([*KIND_NAMES, 1, 1, 2, 34, 34, 200])),
    vcpu=st.integers(0, 3),
    domain=st.integers(0, 3),
    number=st.one_of(
        st.integers(0, 64), st.sampled_from([*hypercalls.NAMES, refusals.NO_TABLE, 300]), st.integers(0, (1 << 32) - 1)
    ),
    a=VALUES,
    b=VALUES,
    c=VALUES,
    d=VALUES,
    result=RESULTS,
)
ATOMS = st.one_of(
    st.sampled_from(sorted(titles())),
    st.sampled_from(
        """port == 3 | a < 4096 | b & 0xfff == 0 | result < 0 | result >= 0 | result == -ENOSYS | cmd == send | va > 9
        | result != 0 | val == 4096 | number & 1 | time > 500s | vcpu == 1 | domain == linux | domain != linux | d > rip
        | virq == TIMER | error_code & 2 | error_code == write | rings ~ 3 | command ~ pin | peer == DOMID_SELF | write
        | rip == cr2 | a == -1 | a != -1 | a < -1 | a > -1 | number < 99999999999 | result <= rip | count in (1, 2, 3)
        | old ~ RW | level ~ 1 | rule ~ frame | name ~ mmu | kind ~ fault | arg1 & 0xf | hypercall != mmu_update
        | ~ mmu | ~ 0xffff | ~ c0 | ~ 0 | ~ x1 | ~ result=- | ~ EPERM | ~ =0x1 | ~ va=0xc | ~ 1067 | ~ "u[rs]" | ~ 0x0
        | ~ 1.5 | ~ b= | ~ p=4 | ~ 00 | ~ ffff888000001067 | ~ "^va=0x" | ~ yes""".replace("\n", " ").split(" | ")
    ).map(str.strip),
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda parts: st.one_of(
        parts.map(lambda part: f"not ({part})"),
        st.tuples(parts, st.sampled_from(["and", "or", "&&", "||"]), parts).map(lambda p: f"({p[0]}) {p[1]} ({p[2]})"),
    ),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=40), EXPRESSIONS)
def test_a_mask_says_of_each_record_what_the_record_says(records: list[Record], text: str) -> None:
    expression = Expression.parse(text, DOMAINS, WIDTHS)
    mask = expression.mask(np.array(records, dtype()))
    assert mask.tolist() == [expression.matches(record) for record in records]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab01()<>=!&|~'\"- .#xport_inandotme", max_size=30))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        Expression.parse(text, DOMAINS).matches(SEND)
    except ExpressionError as error:
        assert 0 <= error.column <= len(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=20), st.text(alphabet="0x1f8", min_size=0, max_size=6))
def test_digits_without_text(values: list[int], text: str) -> None:
    column = np.array(values, np.uint64)
    assert digits_anywhere(column, text).tolist() == [text in hex(value) for value in values]
    assert digits_at_start(column, text).tolist() == [hex(value).startswith(text) for value in values]


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=8, max_size=40), st.data())
def test_digits_that_are_there(values: list[int], data: st.DataObject) -> None:
    """Of one value's own, so that the few that have a byte in common are looked at, in either of its halves."""
    shown = hex(data.draw(st.sampled_from(values)))
    start = data.draw(st.integers(0, len(shown) - 1))
    text = shown[start : start + data.draw(st.integers(1, 16))]
    column = np.array(values, np.uint64)
    assert digits_anywhere(column, text).tolist() == [text in hex(value) for value in values]
    assert digits_at_start(column, text).tolist() == [hex(value).startswith(text) for value in values]


@settings(max_examples=400, deadline=None)
@given(st.integers(0, U64), st.integers(0, 24), st.lists(st.integers(0, 1 << 24), min_size=1, max_size=8), st.data())
def test_digits_that_a_range_shares(base: int, bits: int, steps: list[int], data: st.DataObject) -> None:
    """What is said of all values between two is so; and of one value everything is said."""
    values = [min(U64, base + step % (1 << bits)) for step in steps]
    shown = hex(data.draw(st.sampled_from(values)))
    start = data.draw(st.integers(0, len(shown) - 1))
    text = data.draw(st.sampled_from([shown[start : start + 4], shown, "0x", "0x0", "x0", "1f", "=", "1x", ""]))
    for at_start in (False, True):
        said = in_all(min(values), max(values), text, at_start)
        texts = [hex(value).startswith(text) if at_start else text in hex(value) for value in values]
        assert said is None or texts == [said] * len(values)
        assert said is not None or at_start or min(values) != max(values) or "x" not in text


@pytest.mark.parametrize(
    ("low", "high", "text", "at_start", "expected"),
    [
        (0x7F00_0000, 0x7F00_FFFF, "7f00", False, True),
        (0x7F00_0000, 0x7F00_FFFF, "0x7f", True, True),
        (0x7F00_0000, 0x7F00_FFFF, "0x8", True, False),
        (0x7F00_0000, 0x7F00_FFFF, "x7f001", False, None),
        (0x7F00, 0x7_F000, "7f00", False, None),  # alike at first, and 0x8000 lies between
        (0x10, 0x1FFF, "1000000", False, False),
        (0x10, 0x1FFFFF, "10000", False, None),
    ],
)
def test_what_a_range_shares(low: int, high: int, text: str, at_start: bool, expected: bool | None) -> None:
    assert in_all(low, high, text, at_start) is expected


def test_classes_are_told_apart_by_width() -> None:
    rows = np.array([MAPPED_32, MAPPED_32._replace(domain=2)], dtype())
    first, second = Columns(rows, frozenset({1})).classes.tolist()
    assert second - first == 256
