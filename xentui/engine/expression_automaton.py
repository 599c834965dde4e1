"""Regular expressions run over values shown as numbers by the million, without writing one down.

A pattern becomes an automaton whose states are numbers, and whose steps by a byte of a value (two hexadecimal digits),
or by three decimal digits, are a table: numpy then takes all values one step further at a time. What single characters
match is asked of `re` itself; patterns with more than groups, alternatives, repetitions, `^` and `$` in them are left
to it altogether.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NODES = 256
"""A pattern of more pieces than this, repetitions written out, is left to `re`,"""
_STATES = 64
"""and so is one whose automaton gets more states."""
_KEPT = 256
"""What was worked out for so many patterns (and arguments) is kept."""
_DIGITS = "0123456789abcdef"
_QUANTIFIER = re.compile(r"([*+?])|\{(\d*)(?:(,)(\d*))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>)?(?!\?)")
_CLASSES = frozenset("dDwWsS")


class TooClever(Exception):
    """A pattern that no automaton is made of."""


class Network:
    """A pattern as nodes: `moves` go on by a character that an atom matches, `free` at once, `^` and `$` where they
    hold. It is entered at node 0 and has matched at `end`."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.text, self.flags = pattern.pattern, pattern.flags
        self.moves: list[list[tuple[str, int]]] = [[]]
        self.free: list[list[tuple[str, int]]] = [[]]
        self._at = 0
        self.end = self._alternatives(0)
        if self._at != len(self.text):
            raise TooClever

    def _node(self) -> int:
        if len(self.moves) >= _NODES:
            raise TooClever
        self.moves.append([])
        self.free.append([])
        return len(self.moves) - 1

    def _alternatives(self, start: int) -> int:
        """Add what is written up to the end or a closing parenthesis; the node where it ends."""
        end = self._node()
        while True:
            node = self._node()
            self.free[start].append(("", node))
            while self._at < len(self.text) and self.text[self._at] not in "|)":
                node = self._repeated(node)
            self.free[node].append(("", end))
            if self.text[self._at : self._at + 1] != "|":
                return end
            self._at += 1

    def _repeated(self, start: int) -> int:
        """Add one piece, as often as the quantifier behind it says."""
        begun = self._at
        ends = [start, self._piece(start)]
        least, most = self._quantifier()
        after = self._at
        if (least, most) == (1, 1):
            return ends[1]
        while len(ends) <= max(least, most or 1):
            self._at = begun
            ends.append(self._piece(ends[-1]))
        self._at = after
        if most is None:
            self.free[ends[-1]].append(("", ends[-2]))
        end = self._node()
        for place in ends[least : None if most is None else most + 1]:
            self.free[place].append(("", end))
        return end

    def _quantifier(self) -> tuple[int, int | None]:
        """How often: at least, and at most (None: without end)."""
        match = _QUANTIFIER.match(self.text, self._at)
        if match is None or match[0] == "{}":
            return 1, 1
        self._at = match.end()
        if self.text[self._at : self._at + 1] == "+":
            raise TooClever
        if self.text[self._at : self._at + 1] == "?":
            self._at += 1  # as few as can be: whether there is a match is the same
        if match[1]:
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[match[1]]
        least = int(match[2] or 0)
        most = int(match[4]) if match[4] else None if match[3] else least
        if max(least, most or 0) > _NODES:
            raise TooClever
        return least, most

    def _piece(self, start: int) -> int:
        """Add a group, an anchor or an atom: what matches one character."""
        text = self.text
        first = text[self._at]
        if first == "(":
            group = _GROUP.match(text, self._at)
            if group is None:
                raise TooClever
            self._at = group.end()
            end = self._alternatives(start)
            self._at += 1
            return end
        end = self._node()
        if first in "^$":
            self._at += 1
            self.free[start].append((first, end))
            return end
        atom = first
        if first == "[":
            match = _CLASS.match(text, self._at)
            if match is None:
                raise TooClever
            atom = match[0]
        elif first == "\\":
            atom = text[self._at : self._at + 2]
            if atom[1].isalnum() and atom[1] not in _CLASSES:
                raise TooClever
        self._at += len(atom)
        self.moves[start].append((atom, end))
        return end


class Automaton:
    """A pattern looked for anywhere in a text: state 0 has found it, whatever comes."""

    FOUND = 0

    def __init__(self, pattern: re.Pattern[str]) -> None:
        """Raises TooClever."""
        self._network = Network(pattern)
        self._flags = pattern.flags
        self._atom = cache(self._matches_atom)
        self._sets: list[frozenset[int]] = [frozenset()]
        self._numbers: dict[frozenset[int], int] = {}
        self._steps: dict[tuple[int, str], int] = {}
        self._ends: dict[int, bool] = {self.FOUND: True}
        self._again = self._closure({0})
        self._start = self._number(self._closure({0}, "^"))

    def _matches_atom(self, atom: str, char: str) -> bool:
        return re.compile(atom, self._flags).fullmatch(char) is not None

    def _closure(self, nodes: set[int] | frozenset[int], *holds: str) -> frozenset[int]:
        """The nodes that are reached from some without a character."""
        reached, open_ = set(nodes), list(nodes)
        while open_:
            for condition, node in self._network.free[open_.pop()]:
                if node not in reached and (not condition or condition in holds):
                    reached.add(node)
                    open_.append(node)
        return frozenset(reached)

    def _number(self, nodes: frozenset[int]) -> int:
        if self._network.end in nodes:
            return self.FOUND
        number = self._numbers.get(nodes)
        if number is None:
            number = self._numbers[nodes] = len(self._sets)
            self._sets.append(nodes)
            self._ends[number] = self._network.end in self._closure(nodes, "$")
            if number >= _STATES:
                raise TooClever
        return number

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        if state == self.FOUND:
            return state
        found = self._steps.get((state, char))
        if found is None:
            moves = self._network.moves
            reached = {end for node in self._sets[state] for atom, end in moves[node] if self._atom(atom, char)}
            found = self._steps[state, char] = self._number(self._closure(reached) | self._again)
        return found

    def after(self, text: str) -> int:
        """The state after a text, from its beginning."""
        state = self._start
        for char in text:
            state = self.step(state, char)
        return state

    def good(self, state: int) -> bool:
        """Whether the pattern is found in a text that ends here."""
        return self._ends[state]


def _explored(automaton: Automaton, head: str, letters: str) -> tuple[list[int], list[list[int]]]:
    """The states that are come to behind a text by some letters, from 1 on; and what each letter leads to from each.

    In state 0, no digit has come but zeros, which are not written.
    """
    states = [automaton.after(head)]
    numbers = {states[0]: 1}
    steps: list[list[int]] = []
    for state in states:  # which grows
        row = []
        for letter in letters:
            after = automaton.step(state, letter)
            if after not in numbers:
                states.append(after)
                numbers[after] = len(states)
            row.append(numbers[after])
        steps.append(row)
    return states, [[0, *steps[0][1:]], *steps]


class Hexadecimal:
    """An automaton over the digits of numbers, behind a text that is the same for all (it ends with `0x`)."""

    def __init__(self, automaton: Automaton, head: str) -> None:
        import numpy as np

        states, steps = _explored(automaton, head, _DIGITS)
        by_digit = np.array(steps, np.intp)
        self._good = np.array([False, *map(automaton.good, states)])
        self._found = states.index(automaton.FOUND) + 1 if automaton.FOUND in states else -1
        by_byte = by_digit[by_digit].reshape(len(steps), 256)
        self._steps = (by_byte << 8).reshape(-1)  # a state is kept as where its row begins
        self._last = self._good[by_byte].reshape(-1)
        self._by_digit = steps
        self._successors = [frozenset(row) for row in steps]

    def many(self, values: NDArray[Any]) -> NDArray[Any]:
        """In which of some numbers, none of them 0, it is found."""
        import numpy as np

        if not len(values):
            return np.zeros(0, np.bool_)
        size = values.dtype.itemsize
        octets = np.ascontiguousarray(values).view(np.uint8)
        least, most = int(values.min()), int(values.max())
        state: Any = 0
        for place in range(size - 1, 0, -1):
            here = octets[place::size]
            if isinstance(state, int) and least >> 8 * place == most >> 8 * place:
                state = int(self._steps[state + (least >> 8 * place & 0xFF)])
                continue
            at = np.add(here, state, dtype=np.intp)
            state = self._steps.take(at, mode="clip")
        found: NDArray[Any] = self._last.take(np.add(octets[::size], state, dtype=np.intp), mode="clip")
        return found

    def between(self, low: int, high: int) -> bool | None:
        """Whether it is found in all numbers from `low` (not 0) to `high`, or (False) in none; None: it depends."""
        least, most = f"{low:x}", f"{high:x}"
        shared, state = 0, 0
        if len(least) == len(most):
            while shared < len(least) and least[shared] == most[shared]:
                state = self._by_digit[state][int(least[shared], 16)]
                shared += 1
        if state == self._found:
            return True
        if not shared:
            states, shared = frozenset(self._by_digit[0][1:]), 1
        else:
            states = frozenset((state,))
        for more in range(len(most) - shared + 1):
            if more >= len(least) - shared and any(self._good[state] for state in states):
                return None
            states = frozenset().union(*(self._successors[state] for state in states))
        return False


class Decimal:
    """An automaton over numbers written in decimal, behind a text that is the same for all; three digits a step."""

    def __init__(self, automaton: Automaton, head: str) -> None:
        import numpy as np

        states, steps = _explored(automaton, head, "0123456789.")
        by_digit = np.array([row[:10] for row in steps], np.intp)
        self._threes = by_digit[by_digit[by_digit]].reshape(-1) * 1000  # a state is kept as where its row begins
        self._good = np.array([False, *map(automaton.good, states)])
        self._point = np.array([row[10] for row in steps], np.intp) * 1000
        self._point[0] = self._point[steps[1][0]]  # a zero before it is written

    def many(self, values: NDArray[Any]) -> NDArray[Any]:
        """In which of some whole numbers, none of them 0, it is found."""
        import numpy as np

        groups = -(-len(str(int(values.max(initial=0)))) // 3)
        found: NDArray[Any] = self._good[self._run(values.astype(np.uint64), groups, 0) // 1000]
        return found

    def thousand_millionths(self, values: NDArray[Any]) -> NDArray[Any]:
        """In which of some nanoseconds, written as seconds with nine decimals, it is found."""
        import numpy as np

        whole, rest = np.divmod(values.astype(np.uint64), np.uint64(10**9))
        groups = -(-len(str(int(whole.max(initial=0)))) // 3)
        state = self._point[self._run(whole, groups, 0) // 1000]
        found: NDArray[Any] = self._good[self._run(rest, 3, state) // 1000]
        return found

    def _run(self, values: NDArray[Any], groups: int, state: Any) -> NDArray[Any]:
        """The states after so many groups of three digits, zeros in front included."""
        import numpy as np

        for place in range(groups - 1, -1, -1):
            part, values = np.divmod(values, np.uint64(1000**place))
            state = self._threes.take(part.astype(np.intp) + state, mode="clip")
        return state  # type: ignore[no-any-return]


@lru_cache(_KEPT)
def _automaton(pattern: re.Pattern[str]) -> Automaton:
    return Automaton(pattern)


@lru_cache(_KEPT)
def hexadecimal(pattern: re.Pattern[str], head: str) -> Hexadecimal | None:
    """A pattern to be looked for in numbers behind a text that ends with `0x`; None where it is left to `re`."""
    try:
        return Hexadecimal(_automaton(pattern), head)
    except TooClever:
        return None


@lru_cache(_KEPT)
def decimal(pattern: re.Pattern[str], head: str) -> Decimal | None:
    """A pattern to be looked for in decimal numbers behind a text; None where it is left to `re`."""
    try:
        return Decimal(_automaton(pattern), head)
    except TooClever:
        return None


@lru_cache(_KEPT)
def could_show(pattern: re.Pattern[str], head: str, letters: frozenset[str]) -> bool:
    """Whether a pattern may be found in a text that begins so and goes on with some of these letters."""
    try:
        automaton = _automaton(pattern)
        open_ = [automaton.after(head)]
        reached = set(open_)
        while open_:
            state = open_.pop()
            if automaton.good(state):
                return True
            after = {automaton.step(state, char) for char in sorted(letters)} - reached
            reached |= after
            open_ += after
    except TooClever:
        return True
    return False
