"""The trace summed up: how often each hypercall and trap happened, how long after the ring crossing before it, and
which domains do most. As xenalyze's summary, but of what is on the screen.

A record is written when its work is done, so the *interval* since the same vCPU last crossed rings holds that work and
the guest's own time until it asked: hypercall latency in a guest that does nothing else, an upper bound otherwise.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from xentui.engine.expression import Expression
from xentui.engine.expression_columns import CLASSES, Columns, kind_of, title_of
from xentui.engine.expression_names import crosses
from xentui.engine.trace import Kind
from xentui.screens import trace_ink as inks
from xentui.screens.records import CHUNK, Everything, Matches, Piece, Records
from xentui.screens.trace_lines import count, domain_name, span

if TYPE_CHECKING:
    from xentui.screens.trace_model import TraceModel

_FINE = 4
"""Steps of the histogram to an octave: intervals are known to within a fifth."""
_STEPS = 40 * _FINE
_LOW, _CELLS = 6, 24
"""The picture begins at 2**6 ns; a cell an octave, to 1 s."""
_BARS = " ▁▂▃▄▅▆▇█"
_PARTS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_TRAPS = frozenset({Kind.EXCEPTION, Kind.PAGE_FAULT, Kind.SOFTWARE_INTERRUPT, Kind.SYSCALL})
_CALLS = frozenset({Kind.HYPERCALL, Kind.MULTICALL_ENTRY})
_EVENTS = frozenset(range(48, 52))
_CROSSING = np.array([crosses(which) for which in range(CLASSES)])


class Summary:
    """Counts over the records of a list, kept up as more come."""

    def __init__(self, source: Records, chosen: Everything | Matches, widths: dict[int, int]) -> None:
        self.source = source
        self.expression: Expression | None = chosen.expression if isinstance(chosen, Matches) else None
        self.narrow = frozenset(domain for domain, width in widths.items() if width == 32)
        self.top = 0
        self.histogram = np.zeros((CLASSES, _STEPS), np.int64)
        self.counts = np.zeros(CLASSES, np.int64)
        self.by_domain: dict[int, Any] = {}
        self._last: dict[int, int] = {}
        self._done, self._end = source.first, source.end

    @property
    def complete(self) -> bool:
        """Has everything been counted that was there at the last look?"""
        return self._done >= self._end

    def advance(self, seconds: float) -> None:
        """Count further, for about so long."""
        limit, end = perf_counter() + seconds, self.source.end
        self._end = end
        while self._done < end:
            start = max(self._done, self.source.first)
            stop = min(start - start % CHUNK + CHUNK, end)
            piece = Piece(self.source, start, stop)
            self._take(piece)
            self._done = max(stop, start)
            if perf_counter() >= limit:
                break

    def _take(self, piece: Piece) -> None:
        classes = Columns(piece, self.narrow).classes.astype(np.int64)
        intervals, known = self._intervals(piece, np.take(_CROSSING, classes))
        chosen = np.ones(len(classes), np.bool_) if self.expression is None else self.expression.mask(piece)
        self.counts += np.bincount(classes[chosen], minlength=CLASSES)
        timed = chosen & known
        steps = np.minimum(np.log2(np.maximum(intervals[timed], 1)) * _FINE, _STEPS - 1).astype(np.int64)
        flat = np.bincount(classes[timed] * _STEPS + steps, minlength=CLASSES * _STEPS)
        self.histogram += flat.reshape(CLASSES, _STEPS)
        domains = piece["domain"][chosen]
        for domain in np.unique(domains).tolist():
            counts = np.bincount(classes[chosen][domains == domain], minlength=CLASSES)
            self.by_domain[domain] = self.by_domain.get(domain, 0) + counts

    def _intervals(self, piece: Piece, crossing: Any) -> tuple[Any, Any]:
        """Each record's time since its vCPU crossed rings before it, and whether it ever did."""
        times = piece["time"].astype(np.int64)
        who = piece["domain"].astype(np.int64) << 8 | piece["vcpu"]
        order = np.argsort(who, kind="stable")
        sorted_who, sorted_times, crosses = who[order], times[order], crossing[order]
        at = np.arange(len(order))
        starts = np.flatnonzero(np.diff(sorted_who, prepend=-1))
        group = np.repeat(starts, np.diff(np.append(starts, len(order))))
        latest = np.maximum.accumulate(np.where(crosses, at, -1))  # the last crossing up to here
        previous = np.concatenate([[-1], latest[:-1]])[: len(order)]
        before = np.where(previous >= group, sorted_times[previous], -1)
        for start, end in zip(starts.tolist(), np.append(starts[1:], len(order)).tolist(), strict=True):
            vcpu = int(sorted_who[start])
            carried = self._last.get(vcpu, -1)
            if carried >= 0:
                own = before[start:end]
                own[own < 0] = carried
            if latest[end - 1] >= start:
                self._last[vcpu] = int(sorted_times[latest[end - 1]])
        intervals, known = np.empty_like(times), np.empty(len(times), np.bool_)
        intervals[order] = sorted_times - before
        known[order] = before >= 0
        return intervals, known

    def rows(self) -> list[tuple[str, int, int, Any]]:
        """Name, kind, count and histogram of what happened, the most frequent first."""
        found: dict[str, tuple[int, int, Any]] = {}
        for which in np.flatnonzero(self.counts).tolist():
            name = title_of(which)
            kind, number, histogram = found.get(name, (kind_of(which), 0, 0))
            found[name] = (kind, number + int(self.counts[which]), histogram + self.histogram[which])
        rows = [(name, *values) for name, values in found.items()]
        return sorted(rows, key=lambda row: (-row[2], row[0]))

    def talkers(self) -> list[tuple[int, int, int, int, int]]:
        """Domain, records, hypercalls, traps and events, those with most first."""
        found = []
        for domain, counts in self.by_domain.items():
            sums = [0, 0, 0]
            for which in np.flatnonzero(counts).tolist():
                for place, kinds in enumerate((_CALLS, _TRAPS, _EVENTS)):
                    if kind_of(which) in kinds:
                        sums[place] += int(counts[which])
            found.append((domain, int(counts.sum()), sums[0], sums[1], sums[2]))
        return sorted(found, key=lambda row: -row[1])


def quantile(histogram: Any, share: float) -> int:
    """The interval that a share of the records does not exceed, in ns, to the histogram's precision."""
    total = int(histogram.sum())
    if not total:
        return 0
    step = int(np.searchsorted(np.cumsum(histogram), share * total))
    return round(2 ** ((step + 0.5) / _FINE))


def picture(histogram: Any) -> str:
    """The histogram in 24 cells, one an octave from 64 ns to 1 s."""
    octaves = histogram.reshape(-1, _FINE).sum(axis=1)
    cells = octaves[_LOW : _LOW + _CELLS].copy()
    cells[0] += octaves[:_LOW].sum()
    cells[-1] += octaves[_LOW + _CELLS :].sum()
    most = cells.max(initial=0)
    return "".join([_BARS[0] if not cell else _BARS[max(1, round(8 * cell / most))] for cell in cells.tolist()])


def bar(share: float, cells: int) -> str:
    """A bar of a share of the cells, to an eighth."""
    eighths = round(share * cells * 8)
    return ("█" * (eighths // 8) + _PARTS[eighths % 8]).ljust(cells)


def _short(ns: int) -> str:
    return span(ns)[1:] if ns else ""


def summary_lines(summary: Summary, model: TraceModel, width: int, height: int) -> list[list[tuple[str, Any]]]:
    """The summary as runs of (text, ink) a line: who talks most, then what happened."""
    talkers = summary.talkers()
    most = max((row[1] for row in talkers), default=1)
    lines: list[list[tuple[str, Any]]] = [
        [(f" {'domain':<14}{'records':>12}{'hypercalls':>12}{'traps':>10}{'events':>10}", "faint")]
    ]
    room = max(1, height // 3 - 1)
    for domain, total, calls, traps, events in talkers[:room]:
        name = domain_name(domain, model.names)
        lines.append(
            [
                (f" {name:<14.14}", inks.of_domain(domain)),
                (f"{count(total):>12}{count(calls):>12}{count(traps):>10}{count(events):>10}  ", ""),
                (bar(total / most, max(0, min(30, width - 62))), inks.of_domain(domain)),
            ]
        )
    wide = width >= 104
    scale = f"{'64ns':<8}{'16µs':<8}{'4ms':<5}{'1s':>3}" if wide else ""
    state = "" if summary.complete else "  counting …"
    lines.append([])
    lines.append([(f" {'what':<28}{'count':>12}  {'interval: half':>14}{'95 in 100':>12}  {scale}{state}", "faint")])
    rows = summary.rows()
    room = max(1, height - len(lines))
    summary.top = max(0, min(summary.top, len(rows) - room))
    for name, kind, number, histogram in rows[summary.top : summary.top + room]:
        half, most_of = _short(quantile(histogram, 0.5)), _short(quantile(histogram, 0.95))
        lines.append(
            [
                (f" {name:<28.28}", inks.of_kind(kind)),
                (f"{count(number):>12}  {half:>14}{most_of:>12}  ", ""),
                (picture(histogram) if wide else "", inks.of_kind(kind)),
            ]
        )
    return lines
