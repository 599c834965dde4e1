"""Snapshots of the engine's process: copies by fork that sleep until they are needed.

A snapshot costs the fork (the kernel copies page tables: some milliseconds for half a gigabyte) and, afterwards, a page
fault and a copied page for each that is written again. Nearly all of what the kernel works for this process is that; it
is measured, and the next snapshot is put off so that it stays a small part of the running time. When snapshots are
taken never shows in the guests or the trace, so that this may follow the host's clock.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from xentui.engine import wire
from xentui.engine.messages import Activate, Snapshot, Status

if TYPE_CHECKING:
    from xentui.engine.wire import Channel

SHORTEST = 0.2
"""Seconds of the processor between snapshots at least: as much is run again, at most, to go back a little."""
SHARE = 0.08
"""Part of the running time that snapshots may cost."""


class Snapshots:
    """When this process leaves a snapshot behind, and how."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._next = 0.0
        self._spent = 0.0

    def due(self, work: float) -> bool:
        """Is it time, after `work` seconds of running since the start?"""
        return self._wanted and work >= self._next

    def leave(self, channel: Channel, status: Status, work: float) -> tuple[Channel, Activate] | None:
        """Leave a copy behind and send its socket to the console. In a copy that was told to go on: its socket and
        how it shall go on; None in this process."""
        ours, theirs = wire.pair()
        if os.fork() == 0:
            ours.close()
            channel.close()
            return sleep(wire.Channel(theirs))
        theirs.close()
        channel.send(Snapshot(status), [ours.detach()])
        self._plan(work)
        return None

    def _plan(self, work: float) -> None:
        """Set the next one. What the kernel has worked for this process since the one before is what one costs."""
        spent = resource.getrusage(resource.RUSAGE_SELF).ru_stime
        self._next = work + max(SHORTEST, (spent - self._spent) / SHARE)
        self._spent = spent

    def went_on(self, work: float) -> None:
        """This process is a copy that begins here."""
        self._spent = resource.getrusage(resource.RUSAGE_SELF).ru_stime
        self._next = work + SHORTEST


def sleep(channel: Channel) -> tuple[Channel, Activate]:
    """Be a snapshot. Returns in each copy that is told to go on, with its socket and how; ends with the console."""
    while True:
        channel.wait(None)
        for message, fds in channel.receive():
            if not isinstance(message, Activate):
                continue
            if os.fork() == 0:
                channel.close()
                return wire.Channel(wire.from_fd(fds[0])), message
            os.close(fds[0])
        if channel.closed:
            os._exit(0)
