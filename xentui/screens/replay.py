"""The recording that is replayed, as records for panes: all of them from the start on, those of the future included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xentui.screens.records import RecordedTrace

if TYPE_CHECKING:
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


def records_of(app: Any, status: Any) -> Any:
    """The records that a pane looks at: the recording's where it holds the present moment, or else the engine's ring's.
    None where there is no engine."""
    replay: Replay | None = getattr(app, "replay", None)
    if replay is not None and replay.holds(status):
        return replay.trace
    return getattr(getattr(app, "engine", None), "records", None)
