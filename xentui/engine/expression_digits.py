"""Texts within values shown in hexadecimal, `0x1f`: looked for by bytes and by shifts, without writing one down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_FEW = 4
"""Values that are less than one in so many are worth being picked out."""


def in_all(low: int, high: int, text: str, at_start: bool) -> bool | None:
    """Whether a text is in the hexadecimal form of all values from `low` to `high`, or (False) of none.

    None: it depends on the value. `at_start`: as what the form begins with.
    """
    least, most = hex(low), hex(high)
    apart = (number for number, (one, other) in enumerate(zip(least, most, strict=False)) if one != other)
    shared = least[: next(apart, len(least))] if len(least) == len(most) else "0x"
    if shared.startswith(text) or (not at_start and text in shared):
        return True
    if len(text) > len(most):
        return False
    before, x, rest = text.partition("x")
    if at_start or x:
        whole = f"0x{rest}"
        if not x or before not in (("0",) if at_start else ("", "0")) or not whole.startswith(shared):
            return False
    return False if least == most else None


def digits_at_start(values: NDArray[Any], text: str) -> NDArray[Any]:
    """Which values' hexadecimal form begins with a text."""
    import numpy as np

    if "0x".startswith(text):
        return np.ones(len(values), np.bool_)
    if not text.startswith("0x"):
        return np.zeros(len(values), np.bool_)
    return _begins(values, text[2:])


def digits_anywhere(values: NDArray[Any], text: str) -> NDArray[Any]:
    """Which values' hexadecimal form has a text somewhere in it."""
    import numpy as np

    if text in "0x":
        return np.ones(len(values), np.bool_)
    before, x, rest = text.partition("x")
    if x:
        return _begins(values, rest) if before in ("", "0") else np.zeros(len(values), np.bool_)
    if not _is_hex(text):
        return np.zeros(len(values), np.bool_)
    return _among_likely(values, text, _anywhere)


def _anywhere(values: NDArray[Any], text: str) -> NDArray[Any]:
    import numpy as np

    found = np.zeros(len(values), np.bool_)
    number, mask, size = np.uint64(int(text, 16)), np.uint64((1 << 4 * len(text)) - 1), 4 * len(text)
    for shift in range(0, _bits(values) + 1 - size, 4):
        part = values >> np.uint64(shift)
        here = part & mask == number
        if text[0] == "0":  # leading zeros are not written: a digit must come before it
            here &= part >> np.uint64(min(size, 63)) != 0
        found |= here
    return found


def _begins(values: NDArray[Any], text: str) -> NDArray[Any]:
    """Which values' digits begin with some."""
    import numpy as np

    if not _is_hex(text):
        return np.zeros(len(values), np.bool_)
    if text[0] == "0":
        return values == 0 if text == "0" else np.zeros(len(values), np.bool_)
    return _among_likely(values, text, _shifted_to)


def _shifted_to(values: NDArray[Any], text: str) -> NDArray[Any]:
    import numpy as np

    found = np.zeros(len(values), np.bool_)
    for shift in range(0, _bits(values) + 1 - 4 * len(text), 4):
        found |= values >> np.uint64(shift) == int(text, 16)
    return found


def _among_likely(
    values: NDArray[Any], digits: str, holds: Callable[[NDArray[Any], str], NDArray[Any]]
) -> NDArray[Any]:
    """Ask `holds` of the values that have a byte which the digits in a row must leave; mostly they are few.

    The digits lie in bytes in one of two ways, and each way has bytes that are all theirs. Comparing bytes is many
    times faster than shifting words.
    """
    import numpy as np

    values = np.ascontiguousarray(values, np.uint64)
    even, odd = (_rarest(digits[end & 1 : end]) for end in (len(digits), len(digits) - 1))
    if even and odd:
        raw = values.view(np.uint8)
        hit = raw == even
        hit |= raw == odd
        likely = np.flatnonzero(hit.view(np.uint64) != 0)
        if len(likely) * _FEW < len(values):
            found = np.zeros(len(values), np.bool_)
            found[likely] = holds(values[likely], digits)
            return found
    return holds(values, digits)


def _rarest(digits: str) -> int:
    """Of the bytes that an even number of digits make, one that few words hold; 0 if there is only that."""
    return max(bytes.fromhex(digits), key=lambda byte: (byte not in (0, 0xFF), byte), default=0)


def _bits(values: NDArray[Any]) -> int:
    """How many bits the values have, in whole digits."""
    return -(-int(values.max(initial=0)).bit_length() // 4) * 4


def _is_hex(text: str) -> bool:
    return 0 < len(text) <= 16 and set(text) <= set("0123456789abcdef")
