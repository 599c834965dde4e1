"""The panes that there are: name, key, title and module. A pane's module is imported when it is first opened."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from xentui.screens.pane import Pane


@dataclass(frozen=True)
class Entry:
    """A pane that can be opened."""

    name: str
    key: str
    title: str
    about: str
    """What it shows, in a few words, for the palette and the chooser."""


_ALL = (
    Entry("domains", "1", "Domains", "every domain: state, CPU share, memory, rates"),
    Entry("consoles", "2", "Consoles", "a terminal for each domain, and Xen's own log"),
    Entry("trace", "3", "Trace", "every hypercall, trap and event as it happens"),
    Entry("crossings", "4", "Ring crossings", "which protection rings control passes between"),
    Entry("cpu", "5", "CPU", "registers, disassembly, stack"),
    Entry("memory", "6", "Memory", "machine frames, page tables, refusals"),
    Entry("events", "7", "Event channels", "pending and mask bits, ports and peers"),
    Entry("rings", "8", "Shared rings", "console, xenstore and granted rings"),
    Entry("scheduler", "9", "Scheduler", "who ran when"),
    Entry("inject", "0", "Inject", "break something on purpose"),
    Entry("timeline", "`", "Time line", "the whole run, to scrub"),
    Entry("guide", "G", "Guide", "a guided demonstration, step by step"),
)

ENTRIES: dict[str, Entry] = {
    entry.name: entry for entry in _ALL if find_spec(f"xentui.screens.{entry.name}") is not None
}
"""Name to entry, in the order of the keys."""


def build(name: str) -> Pane:
    """Make a pane: its module's `Pane` subclass with a title."""
    module = import_module(f"xentui.screens.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Pane) and value.__module__ == module.__name__ and value.TITLE:
            pane = value(id=name)
            pane.border_title = f" {ENTRIES[name].key} {value.TITLE} "
            return pane
    raise LookupError(f"xentui/screens/{name}.py has no pane")
