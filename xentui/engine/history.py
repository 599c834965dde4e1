"""What was printed on a branch of history, by its consoles and in the hypervisor's log.

A guest can print by the megabyte for hours: of each console, and of the log, the oldest is forgotten where it gets too
much. All of it is in the recording that `Engine.save` makes by running the branch again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine import messages as msg

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_BYTES = 1 << 20
"""Of a console (or the log) that are kept; then the older half is forgotten. A terminal shows far less."""
MOST_EVENTS = 1 << 14
"""... and in how many pieces: each takes some hundred bytes itself."""
CUT = b"(what was printed before is not kept here; a recording saved from this session has it)\r\n"
"""Stands where the oldest output has been forgotten."""

_LOG = -1


class History:
    """What is told of a branch, counted, and what is kept of it: outputs and lines of the log, by their numbers."""

    def __init__(self) -> None:
        self.count = 0
        """How much was told."""
        self.lost: dict[int, int] = {}
        """How many bytes of a domain's oldest output have been forgotten (those of a branch that left before: so many
        at most)."""
        self._kept: dict[int, list[tuple[int, Any]]] = {}
        self._bytes: dict[int, int] = {}

    def __iter__(self) -> Iterator[Any]:
        """What is kept; that of one console in order."""
        return (event for kept in self._kept.values() for _, event in kept)

    def append(self, event: Any) -> list[Any]:
        """Add an event; those of the same console that had to be forgotten for it."""
        number, self.count = self.count, self.count + 1
        if not isinstance(event, (msg.Output, msg.LogLine)):
            return []
        where = _place(event)
        kept = self._kept.setdefault(where, [])
        kept.append((number, event))
        self._bytes[where] = self._bytes.get(where, 0) + _size(event)
        if self._bytes[where] <= MOST_BYTES and len(kept) <= MOST_EVENTS:
            return []
        gone = [old for _, old in kept[: (len(kept) + 1) // 2]]
        del kept[: len(gone)]
        size = sum(map(_size, gone))
        self._bytes[where] -= size
        if where != _LOG:
            self.lost[where] = self.lost.get(where, 0) + size
        return gone

    def upto(self, count: int) -> History:
        """Another history that begins as this one did."""
        other = History()
        other.count, other.lost = count, dict(self.lost)
        for where, kept in self._kept.items():
            other._kept[where] = [(number, event) for number, event in kept if number < count]
            other._bytes[where] = sum(_size(event) for _, event in other._kept[where])
        return other


def _place(event: msg.Output | msg.LogLine) -> int:
    return event.domain if isinstance(event, msg.Output) else _LOG


def _size(event: msg.Output | msg.LogLine) -> int:
    return len(event.data) if isinstance(event, msg.Output) else len(event.text)


class ConsoleLog:
    """What a domain's console printed: pieces (virtual ns, bytes) in order, of the branch that is current."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.lost = 0
        """Bytes of the oldest that have been forgotten."""

    @property
    def start(self) -> int:
        """Where, among all bytes that were ever printed, those begin that `upto` gives. `CUT` stands for the last that
        are not there: who has read so far before can go on from there."""
        return self.lost - len(CUT) if self.lost else 0

    def upto(self, time: int) -> list[tuple[int, bytes]]:
        """The pieces printed up to and at a virtual time; first of all `CUT` where the oldest are missing."""
        low, high = 0, len(self.pieces)
        while low < high:
            middle = (low + high) // 2
            if self.pieces[middle][0] <= time:
                low = middle + 1
            else:
                high = middle
        return [(0, CUT)] * bool(self.lost) + self.pieces[:low]

    def text(self) -> bytes:
        """All of it, as far as it is kept."""
        return b"".join([CUT] * bool(self.lost) + [data for _, data in self.pieces])


class Consoles(dict[int, ConsoleLog]):
    """Domain to what its console printed; empty for one that printed nothing."""

    def __missing__(self, domain: int) -> ConsoleLog:
        self[domain] = log = ConsoleLog()
        return log

    def forget(self, events: list[msg.Output]) -> None:
        """Drop what these events of one domain printed, its oldest."""
        log = self[events[0].domain]
        del log.pieces[: len(events)]
        log.lost += sum(map(_size, events))
