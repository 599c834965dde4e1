"""Lines of the panes that are drawn as sheets: cut where there is no room, and that is seen."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from xentui.screens.sheet import Line, beside, fit, length


def plain(line: Line) -> str:
    """The line's text."""
    return "".join(text for text, _ in line)


@pytest.mark.parametrize(
    ("texts", "width", "seen"),
    [
        (["abc", "def"], 8, "abcdef  "),
        (["abc", "def"], 6, "abcdef"),
        (["abc", "def"], 5, "abcd…"),
        (["abc", "def"], 4, "abc…"),
        (["abc", "def"], 3, "ab…"),
        (["abc", "def"], 1, "…"),
        (["abc", "def"], 0, ""),
        (["abc", "   "], 4, "abc "),
        (["abc", "   ", " "], 3, "abc"),
        (["", ""], 2, "  "),
        (["漢字", "漢字"], 5, "漢字…"),
        (["漢字", "漢字"], 4, "漢 …"),
    ],
)
def test_what_does_not_fit_is_cut_with_a_sign(texts: list[str], width: int, seen: str) -> None:
    line = fit([(text, "dim") for text in texts], width)
    assert plain(line) == seen and length(line) == width


def test_the_sign_has_the_ink_of_what_it_stands_for() -> None:
    assert fit([("abc", "blue"), ("def", "dim")], 5)[-1] == ("…", "dim")
    assert fit([("abc", "blue"), ("def", "dim")], 3)[-1] == ("…", "blue")


def test_beside_each_other_the_left_is_cut_and_filled() -> None:
    rows = beside([[("abcdef", "")]], [[("one", "")], [("two", "")]], 4, 1)
    assert [plain(row) for row in rows] == ["abc… one", "     two"]
    assert {cell_len(plain(row)) for row in rows} == {8}
