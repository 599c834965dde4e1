"""Before an audience: presentation mode, and the session as an asciicast."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_app import SIZES, Console, drive, own_folder, ready
from tests.test_console_tmux import Console as Terminal
from tests.tmux import Tmux, needed
from xentui.screens import layout, sheet
from xentui.screens import terminal as emulation

__all__ = ["drive", "own_folder"]
HERE = ((80, 24), (120, 40))


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    needed()
    server = Tmux(tmp_path)
    yield server
    server.close()


# --- presentation mode ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_one_pane_a_caption_and_nothing_else(
    drive: Callable[..., None], own_folder: Path, size: tuple[int, int]
) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        tree, theme = console.app.main.grid.arrangement, console.app.theme
        await console.press("P")
        lines = console.text.splitlines()
        assert lines[0].startswith(" Consoles ") and "stopped at" in lines[0] and lines[0].endswith("seconds")
        assert lines[1] == " a terminal for each domain, and Xen's own log"
        assert not any("q quit" in line or "─ " in line or "━" in line for line in lines)
        assert console.app.theme == "xentui-contrast"
        for key, title in (("3", "Trace"), ("1", "Domains"), ("9", "Scheduler"), ("tab", ""), ("z", ""), ("|", "")):
            await console.press(key)
            await console.press("escape")
            assert console.app.control.presenting and len(console.app.main.grid.panes) == 1, key
            assert title in console.text.splitlines()[0]
        await console.press("space")
        await console.until(lambda: "running: " in console.text.splitlines()[0])
        await console.press("space")
        await console.until(lambda: "stopped at" in console.text.splitlines()[0])
        await console.press("P")
        assert (console.app.main.grid.arrangement, console.app.theme) == (tree, theme)
        assert "q quit" in console.text
        assert not (own_folder / "layout.json").exists()

    drive(steps, size)


def test_a_layout_and_a_zoomed_pane_are_there_again(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        console.app.main.show(layout.beside(("trace", 1), ("consoles", 1)), "trace")
        await console.press("z", "P", "5", "P")
        grid = console.app.main.grid
        assert layout.names(grid.arrangement) == ["trace", "consoles"] and grid.maximised == "trace"

    drive(steps)


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = (part / 255 for part in colour)
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_nothing_is_too_grey_for_the_back_row() -> None:
    """WCAG's enhanced contrast, 7 to 1, of every ink that is laid on the presentation's black."""
    for name in sheet.INKS:
        style = sheet.ink(name, sheet.CONTRAST)
        if style.color is not None and style.bgcolor is None:
            assert (luminance(style.color.get_truecolor()) + 0.05) / 0.05 >= 7, name


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """WCAG's contrast ratio of two colours."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_panes_words_are_read_from_the_back_row(drive: Callable[..., None]) -> None:
    """Each letter and digit that is drawn, on what it is drawn on, has WCAG's contrast for text, 4.5 to 1, or more."""
    faint: set[tuple[str, str, float]] = set()

    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("P")
        for key in "1234567890`":
            await console.press(key)
            await console.until(lambda: not console.app.feed.changed)
            await console.pilot.pause(0.2)
            pane = console.app.control.focused
            for strip in console.app.screen._compositor.render_strips():
                for segment in strip:
                    style = segment.style
                    if style is None or style.color is None or not any(map(str.isalnum, segment.text)):
                        continue
                    ink, paper = style.color.get_truecolor(), (0, 0, 0)
                    if style.bgcolor is not None:
                        paper = tuple(style.bgcolor.get_truecolor())
                    if (ratio := contrast(tuple(ink), paper)) < 4.5:
                        faint.add((pane, segment.text.strip(), round(ratio, 1)))

    drive(steps, (80, 24))
    assert not faint


def test_another_window_while_presenting(drive: Callable[..., None]) -> None:
    """A resize across the widths that have layouts of their own does not end the presentation."""

    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("4", "P")
        for size in ((80, 24), (170, 50), (30, 8), (120, 40)):
            await console.pilot.resize_terminal(*size)
            await console.pilot.pause()
            assert [pane.id for pane in console.app.main.grid.panes] == ["crossings"]
            assert console.text.splitlines()[0].startswith(" Ring")
        await console.press("P")
        assert "q quit" in console.text

    drive(steps)


@pytest.mark.slow
@pytest.mark.parametrize("size", HERE)
def test_a_demonstration_before_an_audience(tmux: Tmux, tmp_path: Path, size: tuple[int, int]) -> None:
    """Guide above, pane below; on, back, off the path; into another demonstration; nothing of it is remembered."""
    console = Terminal(tmux, tmp_path, "--demo", "system-calls", size=size)
    tmux.shows("→ next")
    tmux.keys("P")
    tmux.until(lambda: "stopped at" in tmux.text().splitlines()[0] and "quit" not in tmux.text())
    tmux.keys("Right")
    tmux.shows("1 of 6")
    tmux.shows("Three rings, and two ways up")
    lines = tmux.text().splitlines()
    assert lines[0].startswith(" Ring crossings") and lines[1].startswith(" Something to watch")
    rule = next(number for number, line in enumerate(lines) if line.startswith("━"))
    assert rule < len(lines) // 2 and "system calls" in "".join(lines[rule:])
    tmux.keys("C-n")
    tmux.shows("2 of 6")
    tmux.shows("direct_trap")
    tmux.keys("5")
    tmux.until(lambda: tmux.text().startswith(" CPU") and "2 of 6" in tmux.text())
    tmux.keys("s")
    tmux.shows("you have left the path")
    tmux.keys("C-b")
    tmux.until(lambda: "left the path" not in tmux.text() and "2 of 6" in tmux.text())
    console.command("demo hypercall")
    tmux.shows("A hypercall from both sides")
    tmux.until(lambda: "stopped at" in tmux.text().splitlines()[0] and "quit" not in tmux.text())
    tmux.keys("P")
    tmux.shows("q quit")
    tmux.keys("q")
    tmux.shows("status 0")
    assert not (tmp_path / "xentui" / "layout.json").exists()
    console.gone()


@pytest.mark.slow
def test_a_step_that_does_not_come_is_told_on_the_guide(tmux: Tmux, tmp_path: Path) -> None:
    path = tmp_path / "lecture.md"
    path.write_text(
        "# A lecture\n- guest: hello32\n## Later\n- for: 500ms\n- notice: Idle.\n"
        "## Never\n- run: domain_crash\n- notice: It came.\n"
    )
    console = Terminal(tmux, tmp_path, "--demo", str(path), size=(80, 24))
    tmux.shows("A lecture")
    tmux.keys("Right")
    tmux.shows("Idle.")
    tmux.until(lambda: 0.5 <= console.time() < 0.5001)  # although no record was written then
    tmux.keys("Right")
    tmux.shows("lecture.md:7: the machine did not come to 'domain_crash'")
    assert "It came." not in tmux.text()


# --- casts ----------------------------------------------------------------------------------------------------------


def played(path: Path) -> emulation.Terminal:
    """A cast's last frame, after its lines were held against the format (asciicast v2)."""
    head, *events = [json.loads(line) for line in path.read_text().splitlines()]
    assert head["version"] == 2 and isinstance(head["timestamp"], int) and head["width"] > 0 and head["height"] > 0
    screen = emulation.Terminal(head["width"], head["height"])
    last = 0.0
    for time, kind, data in events:
        assert time >= last and kind in ("o", "r") and isinstance(data, str)
        last = time
        if kind == "r":
            screen = emulation.Terminal(*map(int, data.split("x")))
        else:
            screen.feed(data.encode())
    return screen


def shown(screen: emulation.Terminal) -> list[str]:
    return [line.rstrip() for line in screen.text()]


@pytest.mark.parametrize("size", SIZES)
def test_a_cast_ends_with_what_the_screen_shows(
    drive: Callable[..., None], tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "session.cast"

    async def steps(console: Console) -> None:
        await ready(console)
        console.app.control.drawn = True
        console.app.obey(f"cast {path}")
        assert shown(played(path)) == console.text.split("\n")
        await console.press("3", "4")
        await console.press("?")
        await console.pilot.resize_terminal(90, 30)
        await console.press("escape", "P")
        console.app.control.drawn = True
        await console.until(lambda: len(path.read_text().splitlines()) > 4)
        console.app.clear_notifications()
        await console.pilot.pause(0.5)
        before = console.text
        console.app.obey("cast")
        await console.told("asciinema play")
        assert shown(played(path)) == before.split("\n")
        rest = path.read_text()
        await console.press("4")
        assert path.read_text() == rest

    drive(steps, size)


def test_a_screen_that_does_not_change_is_not_written_again(drive: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "session.cast"

    async def steps(console: Console) -> None:
        await ready(console)
        console.app.obey(f"cast {path}")
        cast = console.app.control._cast
        assert cast is not None
        lines = path.read_text()
        for _ in range(5):
            cast.frame()
        assert path.read_text() == lines

    drive(steps)


def test_a_cast_that_cannot_be_written_is_told(drive: Callable[..., None], tmp_path: Path) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        console.app.obey(f"cast {tmp_path / 'none' / 'session.cast'}")
        await console.told("No such file or directory")
        console.app.obey("cast /dev/full")
        await console.told("/dev/full")
        console.app.obey(f"cast {tmp_path / 'a.cast'}")
        console.app.obey(f"cast {tmp_path / 'b.cast'}")
        await console.told("a.cast: :cast ends that")
        console.app.leave()
        assert played(tmp_path / "a.cast")

    drive(steps)
