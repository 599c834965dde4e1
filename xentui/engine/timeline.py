"""What the console knows of the history: what happened, the branches, and the snapshots to go back to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from xentui.engine import messages as msg
from xentui.engine.history import Consoles, History

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xentui.engine.messages import Status
    from xentui.engine.setup import Setup
    from xentui.engine.wire import Channel

KEPT = 24
"""Snapshots kept. They lie denser near the present: each gap is about in proportion to its distance from there."""

FEW = 4
"""Snapshots kept where memory runs low: each keeps what was written since."""
ENOUGH = 0.15
"""Part of the host's memory that is to stay available."""


def memory_left() -> float:
    """The part of the host's memory that is available."""
    words = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            words[name] = int(rest.split()[0])
    return words["MemAvailable"] / words["MemTotal"]


class Fork(NamedTuple):
    """Where two branches part: the last moment that they share."""

    position: int = 0
    time: int = 0
    records: int = 0
    told: int = 0
    actions: int = 0


@dataclass
class Branch:
    """One course of events. It shares what was before `fork` with its parent."""

    number: int
    parent: int | None = None
    fork: Fork = field(default_factory=Fork)
    cause: Any = None
    """The Action that it began with."""
    end_position: int = 0
    end_time: int = 0
    end_records: int = 0
    history: History = field(default_factory=History)
    actions: list[tuple[int, Any]] = field(default_factory=list)
    """Every influence from outside: what has happened, then what is known to come."""

    def reached(self, status: Status) -> None:
        """The machine is there."""
        if status.position >= self.end_position:
            self.end_position, self.end_time = status.position, status.time
        self.end_records = max(self.end_records, status.records)


@dataclass(eq=False)
class Kept:
    """A snapshot: the process that sleeps behind `channel`."""

    status: Status
    channel: Channel
    branch: int


class Timeline:
    """The branches, the current one's history, and the snapshots."""

    def __init__(self, setup: Setup) -> None:
        self.replay = setup.end_position > 0
        first = Branch(0, actions=list(setup.actions))
        first.end_position, first.end_time, first.end_records = setup.end_position, setup.end_time, setup.end_records
        self._planned = [] if self.replay else list(setup.actions)
        self.branches = [first]
        self.current = first
        self.consoles = Consoles()
        self.log: list[tuple[int, str]] = []
        self.snapshots: list[Kept] = []

    # --- history -------------------------------------------------------------------------------------------------

    def told(self, number: int, event: Any) -> list[msg.Event]:
        """Take in what the engine tells; the events that are news (a past that is run again tells nothing new)."""
        branch = self.current
        news: list[msg.Event] = []
        if isinstance(event, msg.Acted):
            if event.fresh and (number < branch.history.count or event.position < branch.end_position):
                news.append(self._fork(number, event))
                branch = self.current
            self._note_action(branch, event)
        if number < branch.history.count:
            return []
        forgotten = branch.history.append(event)
        self._show(event)
        self._forget(forgotten)
        news.append(event)
        return news

    @staticmethod
    def _note_action(branch: Branch, event: msg.Acted) -> None:
        """An influence took effect: one that was known, or a new one among them."""
        known = branch.actions[event.number : event.number + 1]
        entry = (event.position, event.action)
        if known and not event.fresh:
            branch.actions[event.number] = entry
        else:
            branch.actions.insert(event.number, entry)

    def _fork(self, number: int, event: msg.Acted) -> msg.Branched:
        """History is left by an influence from outside."""
        return self.branch_off(Fork(event.position, event.time, event.records, number, event.number), event.action)

    def branch_off(self, fork: Fork, cause: Any = None) -> msg.Branched:
        """A new branch that shares the current one's past up to a moment becomes the current one."""
        old = self.current
        new = Branch(len(self.branches), old.number, fork, cause, fork.position, fork.time, fork.records)
        new.history = old.history.upto(fork.told)
        new.actions = old.actions[: fork.actions] + self.future(fork.position)
        self.branches.append(new)
        self.use(new)
        return msg.Branched(new.number, old.number)

    def future(self, position: int) -> list[tuple[int, Any]]:
        """What is planned to come after a position, whatever the branch."""
        return [(at, action) for at, action in self._planned if at > position]

    def use(self, branch: Branch) -> None:
        """Make a branch the current one: consoles and log are those of its history."""
        self.current = branch
        self.consoles.clear()
        self.log.clear()
        for domain, size in branch.history.lost.items():
            self.consoles[domain].lost = size
        for event in branch.history:
            self._show(event)

    def _show(self, event: Any) -> None:
        if isinstance(event, msg.Output):
            self.consoles[event.domain].pieces.append((event.time, event.data))
        elif isinstance(event, msg.LogLine):
            self.log.append((event.time, event.text))

    def _forget(self, events: list[Any]) -> None:
        """What a console printed first, or the first lines of the log, are no longer kept."""
        if events and isinstance(events[0], msg.Output):
            self.consoles.forget(events)
        elif events:
            self.log[:] = [(time, line) for time, line in self.log if time > events[-1].time]

    # --- snapshots -----------------------------------------------------------------------------------------------

    def lineage(self, branch: Branch) -> list[tuple[int, Branch | None]]:
        """The branches whose beginnings make up this one's past: number, and the child that ends the shared part."""
        parts: list[tuple[int, Branch | None]] = [(branch.number, None)]
        while branch.parent is not None:
            parts.append((branch.parent, branch))
            branch = self.branches[branch.parent]
        return parts

    def parting(self, one: Branch, other: Branch) -> Fork:
        """The last moment that two branches share."""
        ours = self.lineage(one)
        theirs = dict(self.lineage(other))
        for number, child in ours:
            if number in theirs:
                forks = [branch.fork for branch in (child, theirs[number]) if branch is not None]
                return min(forks, default=Fork(one.end_position, one.end_time, one.end_records))
        return Fork()

    def usable(self, branch: Branch | None = None) -> list[Kept]:
        """The snapshots of a branch's past (by default the current one's), oldest first."""
        chosen = []
        limits = dict(self.lineage(branch or self.current))
        for kept in self.snapshots:
            if kept.branch not in limits:
                continue
            child = limits[kept.branch]
            status = kept.status
            if child is None or (
                status.position <= child.fork.position
                and status.told <= child.fork.told
                and status.actions <= child.fork.actions
            ):
                chosen.append(kept)
        return sorted(chosen, key=lambda kept: (kept.status.position, kept.status.told, kept.status.actions))

    def before(self, position: int, strictly: bool = False) -> Kept | None:
        """The latest snapshot at or before a position (or strictly before)."""
        fitting = [
            kept
            for kept in self.usable()
            if kept.status.position < position or (not strictly and kept.status.position == position)
        ]
        return fitting[-1] if fitting else None

    def thin(self) -> Iterable[Kept]:
        """Drop what is too many: always the snapshot whose loss widens a gap least for its distance from the present.

        Distances are what it costs to run again. The first of all and the latest of each branch stay. Where the host's
        memory runs low, a few have to do.
        """
        dropped = []
        most = KEPT if memory_left() > ENOUGH else FEW
        while len(self.snapshots) > most:
            victim = self._least_missed()
            self.snapshots.remove(victim)
            dropped.append(victim)
        return dropped

    def _least_missed(self) -> Kept:
        groups: dict[int, list[Kept]] = {}
        for kept in self.snapshots:
            groups.setdefault(kept.branch, []).append(kept)
        best, score = self.snapshots[1], float("inf")
        for number, group in groups.items():
            group.sort(key=lambda kept: kept.status.work)
            present = group[-1].status.work
            foreign = number != self.current.number
            for before, kept, after in zip(group, group[1:], group[2:], strict=False):
                gap = after.status.work - before.status.work
                missed = gap / (present - kept.status.work + 0.1) / (4 if foreign else 1)
                if missed < score:
                    best, score = kept, missed
        return best
