"""What is asked of a machine that is still on its way: each in its turn, once the machine stands where it led."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class _Turn:
    request: Callable[[int], None]
    count: int
    kind: str


class Turns:
    """The requests that wait. Those of a kind that follow each other are made as one, with the sum of their counts."""

    def __init__(self) -> None:
        self._waiting: list[_Turn] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Callable[[int], None], count: int = 1, kind: str = "") -> None:
        """Let a request wait; `kind`: it can be added to one of the same kind before it, "" if to none."""
        last = self._waiting[-1] if self._waiting else None
        if last is not None and kind and last.kind == kind:
            last.count += count
        else:
            self._waiting.append(_Turn(request, count, kind))

    def next(self) -> None:
        """Make the oldest request."""
        turn = self._waiting.pop(0)
        turn.request(turn.count)

    def clear(self) -> None:
        """Forget them all."""
        self._waiting.clear()
