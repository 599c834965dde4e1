"""Records made up for panes: a source of them, a status, and an application around one pane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from types import SimpleNamespace
from typing import Any

import numpy as np
from textual.app import App, ComposeResult

from xentui.engine.trace import DOMID_XEN, Kind, dtype, rings, runner
from xentui.screens.pane import Pane

SIZES = [(80, 24), (120, 40), (200, 60)]
DOMAINS = (SimpleNamespace(id=1, name="alpha", width=32), SimpleNamespace(id=2, name="beta", width=64))


def piloted(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that drives an application: run it in a loop of its own."""

    @wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        asyncio.run(test(*arguments, **keywords))

    return run


class FakeRecords:
    """A ring that holds the latest of the records it was given."""

    def __init__(self, rows: np.ndarray[Any, Any] | None = None, capacity: int = 1 << 30) -> None:
        self.all = np.zeros(0, dtype()) if rows is None else rows
        self.capacity = capacity
        self.reads = 0
        self._low = 0

    @property
    def first(self) -> int:
        self._low = max(self._low, len(self.all) - self.capacity)
        return self._low

    @property
    def end(self) -> int:
        return len(self.all)

    def put(self, rows: np.ndarray[Any, Any]) -> None:
        self.all = np.concatenate([self.all, rows])

    def truncate(self, end: int) -> None:
        self._low = min(self.first, end)
        self.all = self.all[:end]

    def rows(self, start: int, stop: int | None = None) -> np.ndarray[Any, Any]:
        self.reads += 1
        return self.all[max(start, self.first) : self.end if stop is None else stop].copy()

    def columns(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
        return self.all[name][max(start, self.first) : self.end if stop is None else stop].copy()

    def find_time(self, time: int) -> int:
        return self.first + int(np.searchsorted(self.all["time"][self.first :], time))


def status(records: FakeRecords, now: int | None = None, **more: Any) -> Any:
    """The engine's status when so many of the records have happened."""
    now = records.end if now is None else now
    times = records.all["time"]
    return SimpleNamespace(
        **{
            "records": now,
            "end_records": records.end,
            "live": now == records.end,
            "running": False,
            "branch": 0,
            "travelling": False,
            "time": int(times[now - 1]) if now else 0,
            "end_time": int(times[-1]) if len(times) else 0,
            "domains": DOMAINS,
            **more,
        }
    )


ONE = np.zeros(12, dtype())
"""A few records, one of each of the more important kinds; a million of them are these, repeated."""
for _place, _fields in enumerate(
    [
        {"kind": Kind.DOMAIN_CREATE, "domain": 1, "number": 32},
        {"kind": Kind.SCHEDULE, "domain": 1, "a": runner(0x7FFF, 0), "b": runner(1, 0)},
        {"kind": Kind.HYPERCALL, "domain": 1, "number": 14, "a": 0xC0001000, "b": 0x63, "d": 2},
        {"kind": Kind.HYPERCALL, "domain": 2, "number": 1, "a": 0xFFFF888000001000, "b": 512, "d": 0x7FF0},
        {"kind": Kind.HYPERCALL, "domain": 2, "number": 32, "a": 4, "result": (1 << 64) - 22},
        {"kind": Kind.DIRECT_TRAP, "domain": 1, "number": 0x80, "a": 4, "d": rings(3, 1)},
        {"kind": Kind.SYSCALL, "domain": 2, "number": 39, "d": rings(3, 3)},
        {"kind": Kind.PAGE_FAULT, "domain": 1, "number": 6, "a": 0xBEEF000, "d": rings(3, 1)},
        {"kind": Kind.EVENT_SEND, "domain": 1, "number": 3, "a": 2, "b": 5},
        {"kind": Kind.EVENT_UPCALL, "domain": 2, "number": 1, "d": rings(3, 3)},
        {"kind": Kind.CONSOLE_OUT, "domain": 2, "number": 80},
        {"kind": Kind.IDLE, "domain": DOMID_XEN},
    ]
):
    for _name, _value in _fields.items():
        ONE[_place][_name] = _value


def made(count: int, start: int = 0, step: int = 1000) -> np.ndarray[Any, Any]:
    """Records in turn of each kind, `step` ns apart; only the first creates a domain."""
    rows = np.resize(ONE, count)
    rows["kind"][1:][rows["kind"][1:] == Kind.DOMAIN_CREATE] = Kind.FPU_RESTORE
    rows["time"] = start + np.arange(count, dtype=np.uint64) * np.uint64(step)
    return rows


class PaneApp(App[None]):
    """One pane and the engine that it asks for records; what it wished for is in `gone_to`."""

    CSS = "Pane { border-top: solid white; }"

    def __init__(self, pane: Pane, records: FakeRecords) -> None:
        super().__init__()
        self.pane = pane
        self.engine = SimpleNamespace(records=records)
        self.gone_to: list[Pane.Goto] = []

    def compose(self) -> ComposeResult:
        yield self.pane

    def on_mount(self) -> None:
        self.pane.focus()

    def on_pane_goto(self, message: Pane.Goto) -> None:
        self.gone_to.append(message)
