"""What was asked of the engine's process and is not yet answered; one that goes on from the past is asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.engine import messages as msg
from xentui.engine.views import Query, ViewError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Questions:
    """Questions by their numbers, and the answers that somebody waits for."""

    def __init__(self) -> None:
        self._next = 1
        self._asked: dict[int, list[Query]] = {}
        self._awaited: set[int] = set()
        self.answers: dict[int, list[Any]] = {}
        """What has come of what is awaited."""

    def ask(self, queries: list[Query]) -> msg.Ask:
        """A new question, as it is sent."""
        number, self._next = self._next, self._next + 1
        self._asked[number] = queries
        return msg.Ask(number, queries)

    def wait_for(self, number: int) -> None:
        """The answer is to be kept in `answers`."""
        self._awaited.add(number)

    def answered(self, reply: msg.Reply) -> msg.Reply | None:
        """An answer has come: the event that it is, unless it was awaited or nobody asked."""
        if self._asked.pop(reply.id, None) is None:
            return None
        if reply.id not in self._awaited:
            return reply
        self._awaited.discard(reply.id)
        self.answers[reply.id] = reply.answers
        return None

    def open(self) -> Iterator[msg.Ask]:
        """What is still to be answered."""
        return iter([msg.Ask(number, queries) for number, queries in self._asked.items()])

    def fail(self) -> list[msg.Reply]:
        """Nobody will answer any more: the events that say so."""
        error = ViewError("the engine's process has died")
        replies = [self.answered(msg.Reply(ask.id, [error for _ in ask.queries])) for ask in self.open()]
        return [reply for reply in replies if reply is not None]
