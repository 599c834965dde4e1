"""The recording that is replayed, as records for panes: all of them from the start on, those of the future included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.screens.port_history import events_of, sets_port
from xentui.screens.records import CHUNK, RecordedTrace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xentui.engine.setup import Setup
    from xentui.recording.reader import Recording


class Replay:
    """What `--replay` was given: the trace on disk, and where the run that it began as leaves it."""

    def __init__(self, recording: Recording, setup: Setup) -> None:
        self.trace = RecordedTrace(recording)
        self._end, self._actions = setup.end_position, len(setup.actions)

    def holds(self, status: Any) -> bool:
        """Has all that has happened been recorded? Not on another branch, nor behind the recording's end once anything
        has happened or was done there. (Where a kill cut it off, it may lack some records of its last moment.)"""
        if status.branch or status.actions > self._actions:
            return False
        return status.records <= self.trace.end or (status.position <= self._end and not self.trace.problem)

    def time_of(self, record: int, status: Any) -> int | None:
        """The virtual time of a record of the history that the present moment is part of; None if it has none such."""
        if not self.holds(status) or not 0 <= record < self.trace.end:
            return None
        rows = self.trace.rows(record, record + 1)
        return int(rows["time"][0]) if len(rows) else None

    def who_set(self, domain: int, port: int, records: int) -> Iterator[int | None]:
        """The last record before number `records` that made an event pending at a port, backwards a chunk at a time:
        None for each that has been looked through, then its number. What was written last is where we are: it counts
        only if there is no other."""
        here = None
        for start in range((records - 1) // CHUNK * CHUNK, -1, -CHUNK):
            rows = events_of(self.trace, start)
            found = rows["record"][sets_port(rows, domain, port) & (rows["record"] < records)].tolist()
            if found and found[-1] == records - 1:
                here = found.pop()
            if found:
                yield found[-1]
                return
            yield None
        if here is not None:
            yield here


def elsewhere(app: Any, status: Any) -> str:
    """Why the panes of a replay show what this session has run, and not the recording, or not all of it; or ""."""
    replay: Replay | None = getattr(app, "replay", None)
    if replay is None or status is None:
        return ""
    if replay.holds(status):
        return f"damaged from record {replay.trace.end} on" if replay.trace.problem else ""
    return f"branch {status.branch}, not the recording" if status.branch else "behind the recorded end"


def records_of(app: Any, status: Any) -> Any:
    """The records that a pane looks at: the recording's where it holds the present moment, or else the engine's ring's.
    None where there is no engine."""
    replay: Replay | None = getattr(app, "replay", None)
    if replay is not None and replay.holds(status):
        return replay.trace
    return getattr(getattr(app, "engine", None), "records", None)
