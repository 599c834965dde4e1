"""Where panes lie, and what the panes' small words say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xentui.screens import layout, words
from xentui.screens.domains import COLUMNS, History, Sample
from xentui.screens.layout import Split, Tree, above, beside

NAMES = ("domains", "consoles", "trace", "crossings", "events", "memory")


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A tree of some of the panes, each once."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    tree: Tree = names[0]
    for name in names[1:]:
        target = draw(st.sampled_from(layout.names(tree)))
        tree = layout.split(tree, target, name, draw(st.booleans()))
    return tree


SIZES = st.tuples(st.integers(40, 250), st.integers(30, 80))


@given(trees(), SIZES)
def test_all_room_is_used_and_nothing_overlaps(tree: Tree, size: tuple[int, int]) -> None:
    """Every cell belongs to one pane, or to the gap beside one."""
    width, height = size
    found = layout.places(tree, width, height)
    assert set(found) == set(layout.names(tree))
    seen: set[tuple[int, int]] = set()
    for x, y, w, h in found.values():
        assert w >= 1 and h >= 1 and x >= 0 and y >= 0 and x + w <= width and y + h <= height
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert not cells & seen
        seen |= cells
    for row in range(height):
        blank = [column for column in range(width) if (column, row) not in seen]
        assert len(blank) < len(found), "only gaps are left over"


@given(trees(), st.data())
def test_a_tree_is_the_same_after_json(tree: Tree, data: st.DataObject) -> None:
    import json

    assert layout.from_data(json.loads(json.dumps(layout.to_data(tree))), frozenset(NAMES)) == tree
    name = data.draw(st.sampled_from(layout.names(tree)))
    rest = layout.removed(tree, name)
    assert (rest is None and tree == name) or (rest is not None and name not in layout.names(rest))


@given(trees(), st.data())
def test_swapping_twice_changes_nothing(tree: Tree, data: st.DataObject) -> None:
    one, other = data.draw(st.sampled_from(NAMES)), data.draw(st.sampled_from(NAMES))
    assert layout.swapped(layout.swapped(tree, one, other), one, other) == tree
    assert sorted(layout.names(layout.split(tree, layout.names(tree)[0], "memory", True))) == sorted(
        {*layout.names(tree), "memory"}
    )


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_first_layouts_give_each_pane_room(width: int) -> None:
    tree = layout.default(width)
    found = layout.places(tree, width, {80: 22, 120: 38, 200: 58}[width])
    least = dict.fromkeys(found, layout.LEAST_HEIGHT) | {"timeline": 3}  # a strip
    assert all(w >= layout.LEAST_WIDTH and h >= least[name] for name, (_, _, w, h) in found.items())
    assert found["consoles"][2] >= 80, "a terminal is 80 columns wide"


def test_neighbours() -> None:
    tree = beside((above(("domains", 1), ("trace", 1)), 1), ("consoles", 1))
    found = layout.places(tree, 81, 40)
    assert layout.neighbour(found, "domains", "down") == "trace"
    assert layout.neighbour(found, "trace", "right") == "consoles"
    assert layout.neighbour(found, "consoles", "left") in ("domains", "trace")
    assert layout.neighbour(found, "consoles", "up") is None


def test_resizing_moves_only_the_share_that_is_meant() -> None:
    tree = beside((above(("domains", 1), ("trace", 1)), 1), ("consoles", 1))
    wider = layout.resized(tree, "trace", True, 2)
    assert isinstance(wider, Split) and wider.weights[0] > wider.weights[1]
    taller = layout.resized(tree, "trace", False, 1.5)
    assert isinstance(taller, Split) and taller.weights == tree.weights
    column = taller.parts[0]
    assert isinstance(column, Split) and column.weights[1] > column.weights[0]


@pytest.mark.parametrize(
    "data",
    [None, 3, "nowhere", {"parts": []}, {"parts": ["domains", "trace"]}, {"parts": ["domains"], "weights": [1]},
     {"parts": ["domains", "domains"], "weights": [1, 1]}, {"parts": ["domains", "trace"], "weights": [1, -1]}],
)  # fmt: skip
def test_what_is_no_layout_is_refused(data: object) -> None:
    with pytest.raises(ValueError):
        layout.from_data(data, frozenset(NAMES))


# --- words ----------------------------------------------------------------------------------------------------------


def test_times_and_counts() -> None:
    assert words.clock(12_345_678) == "0.012 345 678 s"
    assert words.duration(12_300_000) == "12.3 ms" and words.duration(999) == "999 ns"
    assert [words.count(n) for n in (0, 987, 9999, 12_345, 4_560_000, 2e9)] == [
        "0",
        "987",
        "9999",
        "12.3k",
        "4.6M",
        "2.0G",
    ]
    assert words.parse_time("1.5s") == 1_500_000_000 and words.parse_time("20 ms") == 20_000_000
    with pytest.raises(ValueError, match="is not a time"):
        words.parse_time("soon")


@given(st.text())
def test_plain_text_is_harmless(text: str) -> None:
    assert words.plain(text).isprintable()


# --- rates ----------------------------------------------------------------------------------------------------------


def sample(ms: int, cpu: int = 0, calls: int = 0) -> Sample:
    return Sample(ms * 1_000_000, cpu * 1_000_000, calls, 0, 0, 0)


@pytest.mark.parametrize(
    ("letters", "shown"),
    [("r-----", "▶ running"), ("-b----", "· blocked"), ("------", "  runnable"), ("---sc-", "✖ crashed")],
)
def test_every_state_has_a_word(letters: str, shown: str) -> None:
    """Also that of a domain that waits for the processor, of which `xl list` shows no letter."""
    (column,) = (column for column in COLUMNS if column.title == "state")
    assert column.text(SimpleNamespace(state=letters), History()) == shown
    assert len(shown) <= column.width


def test_rates_are_per_second_of_virtual_time() -> None:
    history = History()
    assert history.rate("cpu") == 0
    for number in range(10):
        history.add(sample(100 * number, 25 * number, 50 * number))
    assert history.rate("cpu") == pytest.approx(0.25)
    assert history.rate("hypercalls") == pytest.approx(500)
    assert history.spark("cpu", 12, 1.0) == "   " + "▃" * 9


def test_going_back_takes_samples_back() -> None:
    history = History()
    for number in range(10):
        history.add(sample(100 * number, calls=number))
    history.add(sample(250, calls=3))
    assert [each.time // 1_000_000 for each in history.samples] == [0, 100, 200, 250]
