"""A run as a recording holds it, and a recording as a run: what a header says, and a `Setup` from one.

python -m xentui.session FILE < JOB        run a session again, without a console, and record it (Engine.save)
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xentui.config import GuestSpec, total_memory
from xentui.engine.setup import Setup

if TYPE_CHECKING:
    from xentui.engine.actions import Action
    from xentui.engine.machine import Machine
    from xentui.engine.messages import Acted
    from xentui.engine.reports import Reporter
    from xentui.engine.xen.domain import Domain
    from xentui.recording.reader import Recording
    from xentui.recording.writer import RecordingWriter

_ELSEWHERE = ("kernel", "ramdisk", "builtin", "source", "warnings")
_GUEST_FIELDS = tuple(field.name for field in fields(GuestSpec) if field.name not in _ELSEWHERE)
"""What a header says of a guest as it is."""
_LATER = frozenset({"cpus"})
"""Of that, what recordings did not say at first: it is as usual then."""


class Images:
    """The kernels and ramdisks of a session, each read once, by their SHA-256 in hexadecimal."""

    def __init__(self, known: dict[str, bytes]) -> None:
        self.contents: dict[str, bytes] = {}
        self._known = known
        self._digests: dict[str, str] = {}

    def digest(self, path: Path | None) -> str | None:
        """The digest of a file, which is kept."""
        if path is None:
            return None
        name = str(path)
        if name not in self._digests:
            content = self._known[name] if name in self._known else path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            self._digests[name] = digest
            self.contents[digest] = content
        return self._digests[name]


def header(setup: Setup, machine: Machine, images: Images) -> dict[str, Any]:
    """All that the run depends on, and nothing else."""
    from xentui.engine.clock import BYTES_PER_NS

    guests = [guest_to_plain(spec, images) for spec in setup.specs]
    typed, prompt = setup.typist or (None, None)
    return {
        "guests": guests,
        "domains": [_described(domain) for domain in machine.domains],
        "memory": setup.memory or total_memory(setup.specs),
        "pace": setup.pace,
        "seed": setup.seed,
        "cpus": setup.cpus,
        "direct_traps": setup.direct_traps,
        "scheduler": setup.scheduler,
        "clock": {"unit": "bytes of guest code", "bytes_per_ns": BYTES_PER_NS},
        "wall_clock": machine.hv.wall_clock,
        "input": _characters(typed),
        "prompt": _characters(prompt),
    }


def _described(domain: Domain) -> dict[str, Any]:
    return {"id": domain.id, "name": domain.name, "width": domain.width}


def _characters(data: bytes | None) -> str | None:
    """Bytes as JSON holds them: a character a byte (Latin-1)."""
    return None if data is None else data.decode("latin-1")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("latin-1")


def action_to_plain(action: Action, images: Images) -> dict[str, Any]:
    """An action as JSON holds it: bytes as `{"bytes": "…"}`, a guest as `{"guest": {…}}`."""

    def plain(value: object) -> object:
        if isinstance(value, bytes):
            return {"bytes": _characters(value)}
        if isinstance(value, GuestSpec):
            return {"guest": guest_to_plain(value, images)}
        return value

    return {"kind": action.kind, "domain": action.domain, "arguments": [plain(value) for value in action.arguments]}


def action_from_plain(value: dict[str, Any], guests: Guests) -> Action:
    """The action again. Raises KeyError, TypeError, ValueError."""

    from xentui.engine.actions import Action

    def argument(plain: Any) -> Any:
        if not isinstance(plain, dict):
            return plain
        return guests.spec(plain["guest"]) if "guest" in plain else _bytes(plain["bytes"])

    return Action(value["kind"], value["domain"], tuple(argument(plain) for plain in value["arguments"]))


def guest_to_plain(spec: GuestSpec, images: Images) -> dict[str, Any]:
    """What a domain is made from, its files by their names and digests."""
    return {
        "kernel": spec.kernel.name,
        "kernel_sha256": images.digest(spec.kernel),
        "ramdisk": spec.ramdisk.name if spec.ramdisk else None,
        "ramdisk_sha256": images.digest(spec.ramdisk),
        **{field: getattr(spec, field) for field in _GUEST_FIELDS},
    }


# --- a recording as a run ---------------------------------------------------------------------------------------------


def setup_from_recording(path: str) -> Setup:
    """The run that a recording holds, to be run again. Raises RecordingError, one line, where that cannot be."""
    from xentui.recording.reader import Recording

    with Recording(path) as recording:
        return setup_of(recording)


def setup_of(recording: Recording) -> Setup:
    """The same of a recording that is open."""
    from xentui.recording.format import RecordingError

    path, head = recording.path, recording.header
    if head.get("pace") != "exact":
        raise RecordingError(f"{path}: recorded in the fast pace, which cannot be run again: record it exactly")
    try:
        guests = Guests(path, recording.images())
        typed = _bytes(head["input"])
        setup = Setup(
            [guests.spec(guest) for guest in head["guests"]],
            memory=head["memory"],
            seed=head["seed"],
            cpus=head.get("cpus", 1),
            direct_traps=head["direct_traps"],
            scheduler=head["scheduler"],
            wall_clock=head["wall_clock"],
            typist=None if typed is None else (typed, _bytes(head["prompt"])),
        )
        setup.actions = [(found.position, action_from_plain(found.action, guests)) for found in recording.actions()]
        setup.images = guests.images
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{path}: the recording does not say all that running it again needs: {error}") from None
    setup.end_records = len(recording)
    summary = recording.summary or {}
    last = int(recording.outline()[1][-1]) if len(recording) else 0  # the index says it, if that block is damaged, too
    setup.end_time = summary.get("virtual_ns", last)
    setup.end_position = summary.get("position", 2 * setup.end_time)
    return setup


class Guests:
    """The guests of a recording, made again; `images` has their files by the paths that stand for them."""

    def __init__(self, path: str, kept: dict[str, bytes]) -> None:
        self._path, self._kept = path, kept
        self.images: dict[str, bytes] = {}

    def spec(self, guest: dict[str, Any]) -> GuestSpec:
        """A guest as `guest_to_plain` gave it. Raises KeyError, TypeError, RecordingError."""
        kernel = self._file(guest["kernel"], guest["kernel_sha256"])
        ramdisk = self._file(guest["ramdisk"], guest["ramdisk_sha256"]) if guest["ramdisk"] else None
        told = {field: guest[field] for field in _GUEST_FIELDS if field in guest or field not in _LATER}
        return GuestSpec(kernel=kernel, ramdisk=ramdisk, **told)

    def _file(self, name: str, digest: str) -> Path:
        from xentui.recording.format import RecordingError

        if digest not in self._kept:
            raise RecordingError(
                f"{self._path}: {name} is not in it (the recording was cut off early): "
                "it can be exported, but not run again"
            )
        place = Path(digest[:16]) / name
        self.images[str(place)] = self._kept[digest]
        return place


# --- a session as a recording -----------------------------------------------------------------------------------------


def save(setup: Setup, actions: list[tuple[int, Any]], end_position: int, path: str) -> None:
    """Run a session again up to a position, with what came from outside, and record it.

    Raises RecordingError, ImageError, ConfigError, OutOfMemory.
    """
    from xentui.engine.build import build_machine
    from xentui.engine.machine import Stop
    from xentui.engine.reports import Reporter
    from xentui.recording.writer import RecordingWriter

    def flush(rows: memoryview) -> None:
        writer.trace_chunk(rows)

    machine = build_machine(setup, flush=flush)
    reporter = Reporter(machine)
    reporter.connect_typist(setup)
    images = Images(setup.images)
    with RecordingWriter(path, header(setup, machine, images)) as writer:
        writer.images(images.contents)
        ends = _Recorder(writer, reporter, images)
        for position, action in actions:
            machine.schedule(position, reporter.announced(action))
        reason = machine.run(until_position=end_position)
        if not machine.toolstack.alive:
            reason = Stop.FINISHED
        machine.trace.flush()
        entry = machine.entry
        writer.close(
            {
                "reason": reason,
                "virtual_ns": machine.now(),
                "position": machine.position,
                "records": machine.trace.head,
                "hypercalls": entry.hypercalls,
                "traps": entry.traps,
                "direct_traps": entry.direct,
                "ends": ends.ends,
            }
        )


class _Recorder:
    """Writes what is told of a machine's history into a recording."""

    def __init__(self, writer: RecordingWriter, reporter: Reporter, images: Images) -> None:
        self.writer, self.images = writer, images
        self.machine = reporter.machine
        self.ends: list[dict[str, Any]] = []
        reporter.on_event = self._event

    def _event(self, event: Any) -> None:
        from xentui.engine import messages as msg
        from xentui.recording.format import IN, OUT

        if isinstance(event, msg.Output):
            self.writer.console(event.time, event.domain, OUT, event.data)
        elif isinstance(event, msg.Typed):
            self.writer.input(event.time, event.domain, event.data)
            self.writer.console(event.time, event.domain, IN, event.data)
        elif isinstance(event, msg.Acted):
            self.writer.action(event.time, event.position, action_to_plain(event.action, self.images))
            self.writer.images(self.images.contents)
            self._given(event)
        elif isinstance(event, msg.Ended):
            end = {"domain": event.domain, "name": event.name, "reason": event.reason, "virtual_ns": event.time}
            self.ends.append(end)

    def _given(self, event: Acted) -> None:
        """What is typed belongs to what the consoles said, too."""
        from xentui.recording.format import IN

        if event.action.kind == "type":
            for domain in self.machine.domains:
                if event.action.domain in (domain.name, str(domain.id)):
                    self.writer.console(event.time, domain.id, IN, event.action.arguments[0])


def main(arguments: list[str]) -> int:
    """For `Engine.save`: the job on stdin, errors in one line on stderr."""
    import pickle

    from xentui.config import ConfigError
    from xentui.engine.xen.elf import ImageError
    from xentui.engine.xen.page import OutOfMemory
    from xentui.recording.format import RecordingError

    setup, actions, end_position = pickle.load(sys.stdin.buffer)
    try:
        save(setup, actions, end_position, arguments[0])
    except (RecordingError, ImageError, ConfigError, OutOfMemory) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
