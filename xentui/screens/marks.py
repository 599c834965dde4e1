"""Moments that the user marked, with notes: kept in the recording as its notes, and there again when it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xentui.recording.reader import Recording


class Marks(list[tuple[int, str]]):
    """(position, note) in the order in which they were set. `path`: the recording that keeps them, once there is one.

    What cannot be read or written raises ValueError, one line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path: str | None = None
        self._kept = 0  # how many of them are in the recording

    def load(self, path: str) -> None:
        """Take the notes of a recording, and keep further marks there."""
        from xentui.recording.format import RecordingError
        from xentui.recording.reader import Recording

        try:
            with Recording(path) as recording:
                self.load_from(recording)
        except RecordingError as error:
            raise ValueError(str(error)) from None

    def load_from(self, recording: Recording) -> None:
        """The same of a recording that is open. Raises RecordingError."""
        self[:0] = [(note.time * 2, note.text) for note in recording.notes()]
        self.path, self._kept = recording.path, len(self)

    def add(self, position: int, note: str) -> None:
        """Mark a position (half ns); written to the recording at once."""
        self.append((position, note))
        self._write()

    def keep_in(self, path: str) -> None:
        """All marks into a recording that was just made; further ones too."""
        self.path, self._kept = path, 0
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        from xentui.recording.format import RecordingError
        from xentui.recording.writer import annotate

        try:
            for position, note in self[self._kept :]:
                annotate(self.path, position // 2, note)
                self._kept += 1
        except RecordingError as error:
            raise ValueError(str(error)) from None
