"""A small application around one pane and a machine in the same process, for tests of panes by key and by eye."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy
from textual.app import App, ComposeResult
from textual.message import Message

from xentui.engine import trace
from xentui.engine.machine import Machine
from xentui.engine.views import Query, ViewError, look
from xentui.engine.xen.domain import Domain, Vcpu
from xentui.screens import themes
from xentui.screens.pane import Pane
from xentui.screens.sheet import SheetPane


def status_of(machine: Machine) -> Any:
    """What the console knows of the machine, as far as panes ask."""
    vcpu = machine.processor.vcpu
    current = (vcpu.domain.id, vcpu.id) if isinstance(vcpu, Vcpu) else None
    domains = tuple(
        SimpleNamespace(id=domain.id, name=domain.name, width=domain.width, vcpus=len(domain.vcpus), state="r")
        for domain in machine.domains
        if isinstance(domain, Domain)
    )
    return SimpleNamespace(
        position=machine.now() * 2, time=machine.now(), running=False, current=current, domains=domains,
        first_record=max(0, machine.trace.head - machine.trace.capacity), records=machine.trace.head,
    )  # fmt: skip


class FakeEngine:
    """What panes see of the engine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.breakpoints: dict[int, Any] = {}

    @property
    def status(self) -> Any:
        return status_of(self.machine)

    @property
    def records(self) -> FakeRecords:
        return FakeRecords(self.machine)


class FakeRecords:
    """The trace ring as a window of records (engine.records)."""

    def __init__(self, machine: Machine) -> None:
        latest = machine.trace.latest(machine.trace.capacity)
        self.end = machine.trace.head
        self.first = self.end - len(latest)
        self._rows = numpy.array([tuple(record) for record in latest], trace.dtype())

    def rows(self, start: int, stop: int) -> Any:
        return self._rows[max(0, start - self.first) : max(0, stop - self.first)]

    def columns(self, name: str, start: int, stop: int) -> Any:
        return self.rows(start, stop)[name]

    def find_time(self, time: int) -> int:
        return self.first + int(numpy.searchsorted(self._rows["time"], time))


class PaneApp(App[None]):
    """Shows one pane; keeps the messages that it posts."""

    def __init__(self, machine: Machine, pane: SheetPane, engine: Any = None) -> None:
        super().__init__()
        self.machine, self.pane, self.engine = machine, pane, engine or FakeEngine(machine)
        self.posted: list[Message] = []

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """The console's own colours."""
        return themes.DEFAULTS

    def compose(self) -> ComposeResult:
        yield self.pane

    def on_mount(self) -> None:
        self.pane.focus()

    def ask(self, *queries: Query) -> dict[str, Any]:
        """Answer as the engine does."""
        answers: dict[str, Any] = {}
        for query in queries:
            try:
                answers[query.key] = look(self.machine, query.view, **query.arguments)
            except ViewError as error:
                answers[query.key] = error
        return answers

    def update(self) -> str:
        """One refresh, as the console does it fifteen times a second; what the pane shows then."""
        self.pane.show(self.ask(*self.pane.queries()), status_of(self.machine))
        return self.pane.text()

    def _keep(self, message: Message) -> None:
        self.posted.append(message)

    on_pane_goto = on_pane_who_wrote = on_pane_act = on_pane_run = on_pane_break = on_pane_run_to = _keep

    def screen_text(self) -> str:
        """What the terminal shows, without colours."""
        strips = self.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


__all__ = ["Pane", "PaneApp", "status_of"]
