"""What can be asked of a machine that stands still: one module a subject, one function a question.

A view is a function `name(machine, **plain arguments)` that returns plain data (dict, list, tuple, int, str, bytes,
None) and changes nothing. Its module names it in `VIEWS`. The console asks by name, across processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xentui.engine.machine import Machine


class ViewError(Exception):
    """What was asked for cannot be shown; one line for the user."""


@dataclass(frozen=True)
class Query:
    """A question: `view` is `module.function`; `key` names the answer (by default the view)."""

    view: str
    arguments: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def key(self) -> str:
        """The name of the answer."""
        return self.name or self.view


def look(machine: Machine, view: str, **arguments: Any) -> Any:
    """Answer a question. Raises ViewError."""
    subject, _, function = view.partition(".")
    try:
        module = import_module(f"{__name__}.{subject}")
    except ModuleNotFoundError:
        raise ViewError(f"there is no view {view!r}") from None
    if function not in module.VIEWS:
        raise ViewError(f"there is no view {view!r}; {subject} has {', '.join(module.VIEWS)}")
    return getattr(module, function)(machine, **arguments)
