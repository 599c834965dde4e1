"""The console, driven by its keys: on an engine in the tests' own process, so that it answers at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from textual import events
from textual.pilot import Pilot

from tests.fakes_console import FakeEngine
from tests.test_terminal import HOSTILE
from xentui.app import XentuiApp
from xentui.engine import messages
from xentui.engine.moving import EngineError
from xentui.engine.views import Query
from xentui.screens import layout, remembered
from xentui.screens.actions import TABLE
from xentui.screens.dialogs import Choice, Help, Jump, Question
from xentui.screens.feed import Feed
from xentui.screens.stage import Stage
from xentui.screens.status_bar import StatusBar
from xentui.screens.words import clock

SIZES = ((80, 24), (120, 40), (200, 60))
SECONDS = 20
"""Host seconds that something may take before it counts as never happening."""

Drive = Callable[["Console"], Awaitable[None]]


class Console:
    """An application under test and the hands on its keys."""

    def __init__(self, app: XentuiApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    @property
    def engine(self) -> FakeEngine:
        """What the console drives."""
        engine = self.app.engine
        assert isinstance(engine, FakeEngine)
        return engine

    @property
    def text(self) -> str:
        """The screen."""
        return self.app.screen_text()

    async def press(self, *keys: str) -> None:
        """Press keys, and let the screen follow."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def type(self, text: str) -> None:
        """Type a text and Enter."""
        await self.press(*("space" if c == " " else c for c in text), "enter")

    async def until(self, true: Callable[[], object]) -> None:
        """Wait for something to become true."""
        for _ in range(SECONDS * 50):
            if true():
                return
            await self.pilot.pause(0.02)
        raise AssertionError(f"never happened; the screen:\n{self.text}")

    async def shows(self, words: str) -> None:
        """Wait for words on the screen."""
        await self.until(lambda: words in self.text)

    async def told(self, words: str) -> None:
        """Wait for a line that the user is told."""
        await self.until(lambda: any(words in note.message for note in self.app._notifications))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is remembered from elsewhere."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "xentui"


@pytest.fixture
def drive() -> Iterator[Callable[..., None]]:
    """Run a coroutine on a console of a size."""
    engines: list[FakeEngine] = []

    def run(steps: Drive, size: tuple[int, int] = (120, 40), at_once: bool = True) -> None:
        engine = FakeEngine("hello32", "hello64")
        engines.append(engine)

        async def main() -> None:
            app = XentuiApp(engine, run=at_once)
            app.feed.strict = True
            async with app.run_test(size=size) as pilot:
                await steps(Console(app, pilot))

        asyncio.run(main())

    yield run
    for engine in engines:
        engine.close()


async def ready(console: Console) -> None:
    """Wait for the prompt of the first guest, and pause the machine."""
    await console.shows('Type "help".')
    await console.press("space")
    await console.shows("■ paused")


# --- the whole screen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_it_opens_alive(drive: Callable[..., None], size: tuple[int, int]) -> None:
    """Both domains run, the first one's console is seen, and the last line says what to press."""

    async def steps(console: Console) -> None:
        await console.shows('Type "help".')
        await console.pilot.pause()
        lines = console.text.splitlines()
        assert len(lines) == size[1] and max(map(len, lines)) <= size[0]
        assert any(line.startswith(" 1 hello32") for line in lines)
        assert any(line.startswith(" 2 hello64") for line in lines)
        assert "▶ running" in lines[-2]
        assert "pause" in lines[-1] and "help" in lines[-1] and lines[-1].rstrip().endswith("q quit")

    drive(steps, size)


@pytest.mark.parametrize("size", SIZES)
def test_the_screen_to_the_letter(drive: Callable[..., None], size: tuple[int, int]) -> None:
    """Domains and Consoles at a moment of a run that is always the same: as in tests/screens, one file a size.

    XENTUI_UPDATE=1 writes the files anew; look at what has changed before it is committed.
    """
    golden = Path(__file__).parent / "screens" / f"{size[0]}x{size[1]}.txt"

    async def steps(console: Console) -> None:
        await console.shows("■ paused")
        console.app.main.show(layout.above(("domains", 1), ("consoles", 3)), "consoles")
        console.engine.goto(time=100_000)
        await console.shows("0.000 100 00")
        await console.shows('Type "help".')
        await console.until(lambda: not console.app.feed.changed)
        await console.pilot.pause(0.2)
        if os.environ.get("XENTUI_UPDATE"):
            golden.parent.mkdir(exist_ok=True)
            golden.write_text(console.text + "\n")
        assert console.text + "\n" == golden.read_text()

    drive(steps, size, at_once=False)


def test_a_window_that_changes_its_size(drive: Callable[..., None]) -> None:
    """Every size has its layout; nothing is lost on the way."""

    async def steps(console: Console) -> None:
        await console.shows('Type "help".')
        for width, height in ((60, 15), (200, 60), (40, 10), (20, 5), (120, 40)):
            await console.pilot.resize_terminal(width, height)
            await console.pilot.pause(0.1)
            assert len(console.text.splitlines()) <= height
        await console.shows('Type "help".')

    drive(steps)


def test_a_maximised_pane_stays_so_in_a_window_of_another_size(drive: Callable[..., None]) -> None:
    """The layouts of the sizes have it or not; given back, the others lie as in that size, with it among them."""

    async def steps(console: Console) -> None:
        await ready(console)
        grid = console.app.main.grid
        for key, name in (("2", "consoles"), ("5", "cpu")):  # cpu: in no size's layout
            await console.press("z", key)
            assert grid.maximised == name
            for size in ((80, 24), (200, 60), (120, 40), (80, 24)):
                await console.pilot.resize_terminal(*size)
                await console.pilot.pause()
                assert [pane.id for pane in grid.panes] == [name] and console.app.control.focused == name
            await console.press("z")
            assert len(grid.panes) == 3 and name in [pane.id for pane in grid.panes]
            assert console.app.control.focused == name

    drive(steps)


def test_what_is_read_in_the_scroll_back_stays_while_more_is_printed(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("z", "space", "t")
        for _ in range(20):
            await console.press(*"layout", "enter")
        await console.press("f12")
        pane: Any = console.app.main.grid.pane("consoles")
        await console.until(lambda: len(pane.screens[pane.chosen].terminal.history) > 60)
        await console.pilot.pause(0.5)
        await console.press("pageup", "up")
        read = pane._visible_text()[1:]
        assert any(read)
        before = pane.screens[pane.chosen].terminal.scrolled
        console.app.control.act("type", "hello32", b"layout\nlayout\n")
        await console.until(lambda: pane.screens[pane.chosen].terminal.scrolled > before + 5)
        await console.pilot.pause(0.3)
        assert pane._visible_text()[1:] == read
        await console.press("end")
        assert pane._visible_text()[1:] != read and not pane.back

    drive(steps)


def test_pasted_lines_reach_the_guest_as_typed_ones_would(drive: Callable[..., None]) -> None:
    """However the user's terminal ends them; what controls a terminal does not."""

    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("space", "t")
        console.app.post_message(events.Paste("one\rtwo\r\nthr\x1b[2Jee\nfour"))
        for words in ("You said: one", "You said: two", "You said: thr[2Jee", "> four"):
            await console.shows(words)

    drive(steps)


def test_what_cannot_be_saved_is_told_and_costs_nothing(
    drive: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps(console: Console) -> None:
        def save(path: str) -> None:
            raise EngineError(f"{path}: there is no directory there")

        await ready(console)
        monkeypatch.setattr(console.engine, "save", save, raising=False)
        await console.type(":save /none/run.xtrace")
        await console.told("/none/run.xtrace: there is no directory there")
        await console.type(":screenshot /none/run.svg")
        await console.told("/none/run.svg: No such file or directory")
        await console.press("s")
        assert console.app.is_running

    drive(steps)


def test_no_colour(drive: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR nothing is told by colour alone: the states have their words."""
    monkeypatch.setenv("NO_COLOR", "1")

    async def steps(console: Console) -> None:
        await ready(console)
        for strip in console.app.screen._compositor.render_strips():
            for segment in strip:
                assert (
                    segment.style is None
                    or segment.style.color is None
                    or segment.style.color.triplet is None
                    or (len(set(segment.style.color.triplet)) == 1)
                )

    drive(steps)


# --- running and stepping -------------------------------------------------------------------------------------------


def test_run_pause_step_and_back(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        at = console.engine.status.time
        await console.press("s")
        await console.until(lambda: console.engine.status.time > at)
        await console.press("S", "S")
        await console.shows("◀ in the past")
        await console.press("l")
        await console.shows("■ paused")
        await console.press("space")
        await console.shows("▶ running")
        kinds = [call[0] for call in console.engine.calls]
        assert [kind for kind in kinds if kind != "goto"] == ["run", "pause", "step", "step_back", "step_back", "run"]

    drive(steps)


def test_going_back_shows_what_was_printed_then(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("g")
        await console.type("1us")
        await console.shows("◀ in the past")
        await console.until(lambda: "Hello from" not in console.text)
        await console.press("l")
        await console.shows("Hello from hello32")

    drive(steps)


@pytest.mark.parametrize(
    ("key", "text"),
    [("h", "hypercall"), ("x", "crossing"), ("e", "upcall"), ("w", "switch"), ("r", "refusal")],
)
def test_run_to_and_the_same_back_on_the_shifted_key(drive: Callable[..., None], key: str, text: str) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("z", key, key.upper())
        ahead, back = console.engine.calls[-2:]
        assert (ahead[0], back[0]) == ("run", "run_back")
        assert ahead[1] == back[1] and ahead[1].describe() == text

    drive(steps)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("hypercall mmu_update", "hypercall mmu_update"),
        ("0xc0001000", "break 0xc0001000"),
        ("watch 0xc0001000 8 if rax == 5", "watch 0xc0001000 8 if rax == 5"),
        ("main", "break main"),
        ("page_fault and time > 20ms", "page_fault and time > 20ms"),
    ],
)
def test_breakpoints(drive: Callable[..., None], line: str, text: str) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press(":")
        await console.type(f"break {line}")
        await console.told(f"breakpoint 1: {text}")
        assert console.engine.breakpoints[1].describe() == text
        await console.press("C")
        assert console.engine.calls[-1] == ("run_back", None), "to the last of any of them"
        await console.press(":")
        await console.type("delete 1")
        await console.press("B")
        await console.told("no breakpoint is set")

    drive(steps)


def test_running_back_needs_somewhere_to_go(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("C")
        await console.told("no breakpoint is set to run back to")
        await console.press("N")
        assert ("step_over_back",) in console.engine.calls

    drive(steps)


def test_a_terminal_of_another_size_and_guests_that_ask(drive: Callable[..., None]) -> None:
    """`:resize`; and a terminal that is not seen answers its guest, which the user need not know of."""

    async def steps(console: Console) -> None:
        await ready(console)
        before = console.app.screen_text().splitlines()[:3]
        await console.press(":")
        assert console.app.screen_text().splitlines()[:3] == before, "the line moves nothing"
        await console.type("resize 40x10")
        await console.told("40x10")
        pane: Any = console.app.main.grid.pane("consoles")
        assert (pane.screens[pane.chosen].terminal.width, pane.screens[pane.chosen].terminal.height) == (40, 10)
        await console.press(":")
        await console.type("resize wide")
        await console.told("is no size")
        assert pane.chosen == 1
        hidden = console.engine.machine.domains[1]
        console.engine._output(hidden, b"\x1b[6n")
        console.engine.machine.toolstack.services[hidden.id].written += 4
        console.engine._send_status()
        await console.until(lambda: console.engine.calls[-1][0] == "act")
        action = console.engine.calls[-1][1]
        assert (action.kind, action.domain) == ("type", "hello64") and action.arguments[0].endswith(b"R")
        assert not console.app.acted

    drive(steps)


def test_speed_goes_by_decades(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await console.shows("full speed")
        await console.press("-")
        assert console.engine.speed == 100_000_000
        await console.press("-", "-", "+")
        assert console.engine.speed == 10_000_000
        await console.press("+", "+", "+")
        assert console.engine.speed is None
        await console.press(":")
        await console.type("speed 1")
        await console.shows("1 instr/s")

    drive(steps)


# --- panes ----------------------------------------------------------------------------------------------------------


def test_panes_are_reached_by_tab_digit_and_jump(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await console.shows('Type "help".')
        focused = lambda: console.app.main.focused_pane.id  # noqa: E731
        assert focused() == "consoles"
        await console.press("1")
        assert focused() == "domains"
        await console.press("shift+tab", "tab")
        assert focused() == "domains"
        await console.press("'")
        assert isinstance(console.app.screen, Jump)
        letter = next(letter for letter, name in console.app.screen.targets.items() if name == "consoles")
        assert f"{letter}  Consoles" in console.text
        await console.press(letter)
        assert focused() == "consoles"

    drive(steps)


def test_panes_are_maximised_closed_split_and_moved(drive: Callable[..., None], own_folder: Path) -> None:
    async def steps(console: Console) -> None:
        await console.shows('Type "help".')
        grid = console.app.main.grid
        await console.press("z")
        assert [pane.id for pane in grid.panes] == ["consoles"] and "1 Domains" not in console.text
        await console.press("z")
        assert "1 Domains" in console.text
        console.app.main.show(layout.above(("domains", 1), ("consoles", 3)), "consoles")
        await console.press("ctrl+up")
        assert layout.names(grid.arrangement) == ["consoles", "domains"]
        await console.press("ctrl+w")
        assert grid.arrangement == "domains"
        await console.press("ctrl+w")
        await console.told("the last pane stays")
        await console.press("|")
        assert isinstance(console.app.screen, Choice)
        await console.press("2")
        assert grid.arrangement == layout.Split(True, ("domains", "consoles"), (1.0, 1.0))
        places = grid.places
        assert places["domains"][1] == places["consoles"][1] and places["consoles"][0] > places["domains"][0]

    drive(steps)
    assert remembered.load("layout.json")[0]["medium"]["parts"] == ["domains", "consoles"]

    async def again(console: Console) -> None:
        await console.shows('Type "help".')
        assert layout.names(console.app.main.grid.arrangement) == ["domains", "consoles"]

    drive(again)


@pytest.mark.parametrize("text", ["{", "[]", '{"medium": "nonsense"}', '{"medium": {"parts": ["domains"]}}'])
def test_a_damaged_layout_is_told_of(drive: Callable[..., None], own_folder: Path, text: str) -> None:
    own_folder.mkdir(parents=True)
    (own_folder / "layout.json").write_text(text)

    async def steps(console: Console) -> None:
        await console.told("layout.json")
        await console.shows('Type "help".')

    drive(steps)


# --- commands -------------------------------------------------------------------------------------------------------


def test_commands_are_completed_and_obeyed(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press(":", *"unp", "tab")
        assert "unpause-domain" in console.text
        await console.press(*"hello6", "tab", "enter")
        action = console.engine.calls[-1][1]
        assert (action.kind, action.domain) == ("unpause", "hello64")
        await console.press(":")
        await console.type("send hello32 3")
        assert console.engine.calls[-1][1] == ("send", "hello32", (3,))
        await console.press(":")
        await console.type("memory hello32 32")
        await console.told("hello32 is asked for 32 MiB")
        assert console.engine.calls[-1][1] == ("balloon", "hello32", (32,))

    drive(steps)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "there is no command 'nonsense'"),
        ("goto", ":goto needs TIME|#RECORD"),
        ("pause hello32", ":pause takes nothing behind it, not 'hello32'"),
        ("speed 0", "the speed is at least 1"),
        ("goto soon", "'soon' is not a time"),
        ("pause-domain nobody", "there is no domain 'nobody'; there is hello32, hello64"),
        ("send hello32", "needs DOMAIN PORT"),
        ("delete 9", "there is no breakpoint 9"),
        ("create helo", "helo: unknown guest"),
        ("split nonsense", "there is no pane 'nonsense'"),
        ("break nonsense and", "nonsense"),
        ("run-back", "no breakpoint is set to run back to"),
        ("branch 7", "there is no branch 7"),
        ("screenshot /nonexistent/a.svg", "No such file"),
    ],
)
def test_what_cannot_be_done_is_said(drive: Callable[..., None], line: str, words: str) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press(":")
        await console.type(line)
        await console.told(words)

    drive(steps)


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("inject cr", "inject crash"),
        ("inject crash hello3", "inject crash hello32"),
        ("inject 20ms:cr", "inject 20ms:crash"),
        ("inject 20ms:crash hello6", "inject 20ms:crash hello64"),
        ("inject fail hello32 mmu_u", "inject fail hello32 mmu_update"),
    ],
)
def test_faults_are_completed_on_the_command_line(drive: Callable[..., None], line: str, becomes: str) -> None:
    """By the catalogue, as in the pane Inject."""

    async def steps(console: Console) -> None:
        await ready(console)
        await console.press(":", *("space" if c == " " else c for c in line), "tab")
        await console.shows(f":{becomes}")
        assert console.app.complete(line)[0] == becomes

    drive(steps)


def test_a_picture_keeps_its_blanks(drive: Callable[..., None], tmp_path: Path) -> None:
    """Renderers other than browsers (librsvg) take blanks that nothing protects together: columns would not be any."""

    async def steps(console: Console) -> None:
        await ready(console)
        await console.press(":")
        await console.type(f"screenshot {tmp_path / 'a.svg'}")
        await console.told("the screen is in")
        root = ElementTree.parse(tmp_path / "a.svg").getroot()
        assert root.get("{http://www.w3.org/XML/1998/namespace}space") == "preserve"

    drive(steps)


def test_a_long_name_leaves_the_branch_in_sight(drive: Callable[..., None]) -> None:
    """On the status bar of 80 columns, in the past of a branch."""

    async def steps(console: Console) -> None:
        await ready(console)
        bar = console.app.main.query_one(StatusBar)
        one = SimpleNamespace(id=1, name="vmlinuz-6.1.0-50-amd64")
        status = SimpleNamespace(
            running=False, live=False, time=19_932_782_947, end_time=19_933_575_908, current=(1, 0), domains=[one],
            why="", speed=None, branch=12, travelling=False,
        )  # fmt: skip
        bar.update_status(status, "", "")
        first = bar.render().plain.splitlines()[0]
        assert "vmlinuz-6.1…" in first and "branch 12" in first and len(first) == 80

    drive(steps, (80, 24))


def test_every_key_has_one_meaning_and_every_command_is_there() -> None:
    keys = [key for command in TABLE for key in command.keys]
    assert len(set(keys)) == len(keys)
    for command in TABLE:
        method = f"do_{command.name.replace('-', '_')}"
        assert command.name.startswith("pane-") or hasattr(Stage, method), method
        assert not command.reverse or command.reverse in {other.name for other in TABLE}


def test_keys_can_be_changed(drive: Callable[..., None], own_folder: Path) -> None:
    """A key that is given away no longer does what it did; what is wrong in the file is told."""
    own_folder.mkdir(parents=True)
    (own_folder / "keys.json").write_text('{"step": "n", "quit": [], "fly": "f", "run": 3}')

    async def steps(console: Console) -> None:
        await console.told("there is no command 'fly'")
        await console.told("the keys of 'run'")
        await ready(console)
        await console.press("n", "s", "q")
        assert [call for call in console.engine.calls if call[0].startswith("step")] == [("step", 1)]

    drive(steps)


def test_help_and_palette(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("?")
        assert isinstance(console.app.screen, Help)
        await console.shows("console ring")
        await console.press("escape")
        await console.press("ctrl+p")
        await console.shows("run to the next ring crossing")
        await console.press("escape")
        await console.press("ctrl+t")
        assert console.app.theme == "xentui-light"

    drive(steps)


@pytest.mark.parametrize(
    "keys", [("right_curly_bracket",), ("left_curly_bracket",), ("ctrl+down",), ("2", "less_than_sign")]
)
def test_panes_change_size_and_places_at_once(drive: Callable[..., None], keys: tuple[str, ...]) -> None:
    """Also where no pane comes or goes: the screen follows the layout, not only the next start."""

    async def steps(console: Console) -> None:
        await ready(console)
        grid = console.app.main.grid

        def lie() -> dict[str, tuple[int, int, int, int]]:
            return {pane.id or "": tuple(pane.region) for pane in grid.panes}

        await console.press("1")
        before = lie()
        await console.press(*keys)
        await console.until(lambda: lie() != before)
        assert lie() == {name: tuple(place) for name, place in grid.places.items()}

    drive(steps)


# --- domains and consoles -------------------------------------------------------------------------------------------


def test_typing_into_a_console(drive: Callable[..., None]) -> None:
    """While typing every key is the guest's; two keys lead back."""

    async def steps(console: Console) -> None:
        await console.shows('Type "help".')
        await console.press("t")
        await console.shows("typing to hello32")
        await console.type("spam q ?")
        await console.shows("spam q ?")
        await console.until(lambda: console.text.count("spam q ?") >= 2)
        await console.press("f12")
        assert not console.app.typing
        await console.press("right", "enter")
        await console.shows("typing to hello64")
        await console.type("eggs")
        await console.until(lambda: console.text.count("eggs") >= 2)
        await console.press("ctrl+right_square_bracket")
        assert not console.app.typing

    drive(steps)


def test_a_crash_that_a_branch_begins_with_is_told_as_well() -> None:
    """The engine tells it before the status that says that this is the newest moment; one on the way is no news."""
    sent: list[Any] = []
    past, new = SimpleNamespace(live=False, failed=False), SimpleNamespace(live=True, failed=False)
    engine = SimpleNamespace(status=past, pump=lambda: [sent.pop(0) for _ in sent[:]])
    feed, told = Feed(engine, list), []
    feed.on_ended = lambda name, reason: told.append((name, reason))
    feed.on_notice = lambda text: told.append((text,))
    sent += [messages.StatusEvent(past), messages.Ended(1, "one", "crash", 5)]
    feed.pump()
    assert told == [], "it was told when it happened"
    sent += [messages.Branched(1, 0), messages.Ended(2, "two", "crash", 5)]
    feed.pump()
    assert len(told) == 2 and told[1] == ("two", "crash")
    engine.status = new
    sent.append(messages.StatusEvent(new))
    feed.pump()
    engine.status = past
    sent += [messages.StatusEvent(past), messages.Ended(2, "two", "crash", 5)]
    feed.pump()
    assert len(told) == 2, "back in the past"


def test_a_refresh_that_an_answer_held_up_follows_it() -> None:
    sent: list[Any] = []
    asked: list[int] = []

    def ask(_queries: list[Any]) -> int:
        asked.append(len(asked))
        return asked[-1]

    def pump() -> list[Any]:
        taken, sent[:] = list(sent), []
        return taken

    status = SimpleNamespace(failed=False, live=True)
    engine = SimpleNamespace(pump=pump, ask=ask, status=status)
    pane = SimpleNamespace(queries=lambda: [Query("domains.list")], is_attached=True, show=lambda *_: None)
    feed = Feed(engine, lambda: [cast("Any", pane)])
    sent.append(messages.StatusEvent(cast("Any", status)))
    feed.pump()
    assert feed.refresh() and asked == [0]
    sent.append(messages.StatusEvent(cast("Any", status)))
    feed.pump()
    assert not feed.refresh(), "the first is not answered yet"
    sent.append(messages.Reply(0, [None]))
    feed.pump()
    assert asked == [0, 1], "the one that was due follows at once"
    sent.append(messages.Reply(1, [None]))
    feed.pump()
    assert asked == [0, 1], "no more than were due"


def test_typing_where_no_console_is_open(drive: Callable[..., None], own_folder: Path) -> None:
    """The pane is opened, and has the keyboard as soon as it knows the domain."""
    own_folder.mkdir(exist_ok=True)
    (own_folder / "layout.json").write_text(
        '{"medium": {"row": false, "parts": ["domains", "trace"], "weights": [1.0, 1.0]}}'
    )

    async def steps(console: Console) -> None:
        await console.until(lambda: console.app.feed.status is not None and console.app.feed.status.time > 10_000_000)
        assert layout.names(console.app.main.grid.arrangement) == ["domains", "trace"]
        await console.press("1", "t")
        await console.shows("typing to hello32")
        await console.type("spam")
        await console.until(lambda: console.text.count("spam") >= 2)

    drive(steps)


def test_hostile_output_stays_in_its_terminal(drive: Callable[..., None]) -> None:
    """A megabyte of everything that a terminal obeys: keys still work meanwhile, and nothing of it gets out."""

    async def steps(console: Console) -> None:
        await ready(console)
        storm = b"".join(HOSTILE.values())[: 1 << 20]
        console.engine.consoles[1].pieces.append((console.engine.status.time, storm))
        console.app.feed.changed = True
        await console.press("1", "2")
        assert console.app.main.focused_pane.id == "consoles"
        for strip in console.app.screen._compositor.render_strips():
            assert all(segment.text.isprintable() and segment.control is None for segment in strip)
        await console.press("s")
        await console.until(lambda: console.engine.calls[-1][0] == "step")

    drive(steps)


def test_typing_in_the_past_begins_a_branch(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("S")
        await console.shows("◀ in the past")
        await console.press("t", "x")
        await console.told("this is branch 1 now; branch 0 stays")
        await console.shows("it answers once the machine runs")
        await console.press("f12")
        await console.shows("branch 1")
        await console.press("colon")
        await console.type("branch")
        left, end = clock(console.engine.branches[1].fork.time), clock(console.engine.branches[0].end_time)
        await console.shows(f"  branch 0, to {end}")
        await console.shows(f"▶ branch 1, to {left}, left 0 at {left}")

    drive(steps)


def test_typing_to_a_running_guest_says_nothing_of_waiting(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await console.shows('Type "help".')
        await console.press("t")
        await console.shows("typing to hello32")
        assert "it answers once" not in console.text

    drive(steps)


def test_domains_are_chosen_and_influenced(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("1", "down", "p")
        assert console.engine.calls[-1][1] == ("pause", "hello64", ())
        await console.press("up", "R")
        assert console.engine.calls[-1][1] == ("reboot", "hello32", ())
        await console.press("K")
        assert isinstance(console.app.screen, Question)
        await console.press("n")
        assert console.engine.calls[-1][1].kind == "reboot"
        await console.press("K", "y")
        assert console.engine.calls[-1][1] == ("destroy", "hello32", ())

    drive(steps)


def test_a_crash_is_told_and_the_log_says_why(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await console.shows('Type "help".')
        await console.press("t")
        await console.type("crash")
        await console.told("hello32 has crashed")
        await console.until(lambda: not console.app.typing)
        await console.pilot.pause(0.3)
        assert "> crash" in console.text and console.app.chosen_domain == "hello64", "its last words stay in view"
        await console.press("right", "right")
        await console.shows("(XEN)")
        await console.press("right")
        await console.shows("> crash")
        await console.pilot.pause(0.3)
        assert "> crash" in console.text and console.app.chosen_domain == "hello64"
        await console.press("left", "left")
        await console.shows("Hello from hello64")

    drive(steps)


def test_the_console_goes_along_with_a_reboot(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await console.shows('Type "help".')
        consoles: Any = console.app.main.grid.pane("consoles")
        before = consoles.chosen
        await console.press("t")
        await console.type("reboot")
        await console.until(lambda: consoles.chosen not in (before, 2))
        assert consoles.names[consoles.chosen] == consoles.names[before] == "hello32"
        await console.shows('Type "help".')

    drive(steps)


# --- the end --------------------------------------------------------------------------------------------------------


def test_leaving_asks_only_when_something_would_be_lost(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        await console.press("t", "x", "f12", "q")
        assert isinstance(console.app.screen, Question)
        await console.press("n")
        assert console.app.is_running
        await console.press("q", "y")
        assert not console.app.is_running or console.app._exit

    drive(steps)

    async def at_once(console: Console) -> None:
        await ready(console)
        await console.press("q")
        assert console.app._exit

    drive(at_once)


def test_the_console_outlives_the_engine(drive: Callable[..., None]) -> None:
    async def steps(console: Console) -> None:
        await ready(console)
        console.engine.fail("killed by the host")
        await console.shows("ENGINE ENDED")
        assert "killed by the host" in console.text and "Hello from hello32" in console.text
        await console.told("can go on from the snapshot")
        await console.press("s", "z", "q")
        assert console.app._exit

    drive(steps)
