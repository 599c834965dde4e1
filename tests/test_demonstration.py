"""Demonstrations as files: what is read, and what a mistake is told as."""

from __future__ import annotations

from pathlib import Path

import pytest

from xentui import demonstration
from xentui.demonstration import Demonstration, DemonstrationError, Doing
from xentui.screens.catalogue import ENTRIES
from xentui.screens.guide import NAMES
from xentui.tour import check

GOOD = """\
# Why?

- guest: demo32 peer=2
- guest: demo64 peer=1
- no-validator: demo64
- paper: 3.2
- memory: 16

Some *text*.
- not: an item, as text came before

## First

- run: page_fault
- type: demo32 help\\n
- show: trace
- notice: this

More text.

```
# not a title
```

## Second

Only text.
"""


def read(tmp_path: Path, text: str) -> Demonstration:
    path = tmp_path / "lecture.md"
    path.write_text(text)
    return demonstration.load(str(path))


def test_a_file_is_taken_apart(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert (found.name, found.title, found.paper, found.memory) == ("lecture", "Why?", "3.2", 16)
    assert found.introduction == "Some *text*.\n- not: an item, as text came before"
    first, second = found.steps
    assert first.doings == [Doing("run", "page_fault", 14), Doing("type", "demo32 help\\n", 15)]
    assert first.shows == {"show": "trace", "notice": "this"}
    assert first.text == "More text.\n\n```\n# not a title\n```"
    assert (second.title, second.doings, second.text) == ("Second", [], "Only text.")
    specs = found.specifications()
    assert [(spec.name, spec.cmdline, spec.memory, spec.validated) for spec in specs] == [
        ("demo32", "peer=2", 16, True),
        ("demo64", "peer=1", 16, False),
    ]


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("", 1, "no title"),
        ("text\n", 1, "text before the title"),
        ("# A\n", 1, "no guest"),
        ("# A\n- guest: demo32\n", 1, "no steps"),
        ("# A\n# B\n", 2, "a second title"),
        ("# A\n- colour: blue\n", 2, "knows no 'colour'"),
        ("# A\n- memory: much\n", 2, "memory is a number of MiB"),
        ("# A\n- guest: demo32\n## S\n- dance: on\n", 4, "a step knows no 'dance'"),
        ("# A\n- guest: demo32\n## S\n- show: trace dance\n", 4, "there is no pane 'dance'"),
        ("# A\n- guest: demo32\n## S\n- run:\n", 4, "'run' says nothing"),
        ("# A\n- scheduler: fair\n", 2, "there is no scheduler 'fair'; there is credit and bvt"),
        ("# A\n- guest: demo32\n## S\n- show: all\n", 4, "there is no pane 'all'; there is domains"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, text: str, place: int, reason: str) -> None:
    with pytest.raises(DemonstrationError) as error:
        read(tmp_path, text)
    assert f"lecture.md:{place}: " in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "item", "place", "reason"),
    [
        ("- guest: demo3", "for: 1ms", 3, "guest: demo3: unknown guest; did you mean demo32?"),
        ("- no-validator: nobody", "for: 1ms", 3, "no-validator: no guest is called 'nobody'; there is demo32"),
        ("- memory: 64", "focus: nobody", 5, "focus: no guest is called 'nobody'; there is demo32"),
        ("- memory: 64", "filter: ((", 5, "filter: '((': column 3"),
        ("- memory: 64", "act: dance demo32", 5, "act: there is no action 'dance'; there is type, pause"),
        ("- memory: 64", "act: pause", 5, "act: no guest is called ''; there is demo32"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_runs(
    tmp_path: Path, header: str, item: str, place: int, reason: str
) -> None:
    found = read(tmp_path, f"# A\n- guest: demo32\n{header}\n## S\n- {item}\n")
    with pytest.raises(DemonstrationError) as error:
        check(found)
    assert f"lecture.md:{place}: {reason}" in str(error.value)


def test_the_panes_are_the_consoles() -> None:
    """Besides other words for them (`gantt`) and parts of them (`memory:walk`)."""
    names = {NAMES.get(pane, pane).partition(":")[0] for pane in demonstration.PANES}
    assert names | {"guide"} == set(ENTRIES)


def test_a_missing_file_and_an_unknown_name(tmp_path: Path) -> None:
    for argument in (str(tmp_path / "none.md"), str(tmp_path)):
        with pytest.raises(DemonstrationError):
            demonstration.load(argument)
    with pytest.raises(DemonstrationError, match="1-system-calls"):
        demonstration.load("nonsense")
    binary = tmp_path / "binary.md"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DemonstrationError, match="not a text file"):
        demonstration.load(str(binary))


def test_a_part_of_a_name_is_enough() -> None:
    assert demonstration.load("events").name == "2-events"
    assert demonstration.load("2-events").title.endswith("?")


def test_what_can_be_shown_is_there() -> None:
    """The panes that a file may name are the console's, and so are their parts."""
    from xentui.screens import catalogue, guide
    from xentui.screens.memory import MemoryPane

    words = set(demonstration.PANES)
    assert {word for word in words if ":" not in word} == (set(catalogue.ENTRIES) - {"guide"}) | set(guide.NAMES)
    for pane, part in guide.parts_of(" ".join(words)):
        assert pane == "memory"
        memory = MemoryPane()
        memory.choose_part(part)
        assert guide.panes_of(f"{pane}:{part}") == [pane]
