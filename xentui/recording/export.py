"""Recordings for other programs: JSON lines, Chrome/Perfetto traces, Xen's own format, and consoles as asciicasts.

Text is written directly, with what repeats prepared once: a serializer called for each record costs four times more.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, BinaryIO, TextIO

from xentui.engine.trace import KIND_NAMES, Record
from xentui.engine.trace_decode import fields, render, seconds, title
from xentui.recording import format as layout
from xentui.recording.format import RecordingError
from xentui.recording.reader import Piece, Recording

BATCH_RECORDS = 16_384
"""Records unpacked and written at a time: memory stays small however long the recording is."""

ASCIICAST_WIDTH = 80
ASCIICAST_HEIGHT = 24

_PLAIN = frozenset({"bytes", "count", "offset", "port", "pages", "vcpus", "width", "nr_calls", "entries", "records"})
_quote = json.encoder.encode_basestring_ascii


def batches(recording: Recording, start: int = 0, stop: int | None = None) -> Iterator[list[Record]]:
    """Records start..stop (half open, as a slice) as `Record`s, a list of `BATCH_RECORDS` at a time."""
    first, last, _ = slice(start, stop).indices(len(recording))
    for low in range(first, last, BATCH_RECORDS):
        high = min(low + BATCH_RECORDS, last)
        columns = [recording.columns(name, low, high).tolist() for name in Record._fields]
        yield list(map(Record._make, zip(*columns, strict=True)))


def export_jsonl(recording: Recording, out: TextIO, start: int = 0, stop: int | None = None) -> None:
    """One JSON object a line for each record: where and when, the kind, its values by name, and the line as shown.

    Times are integers (ns); counts are numbers; all other values are strings as shown, since 64-bit addresses do not
    fit a JSON reader's doubles.
    """
    widths = recording.domain_widths()
    number = count(slice(start, stop).indices(len(recording))[0])
    for batch in batches(recording, start, stop):
        lines = [_json_line(next(number), record, widths.get(record.domain, 64)) for record in batch]
        out.write("".join(lines))


def _json_line(number: int, record: Record, width: int) -> str:
    shown = fields(record, width)
    values = ",".join(
        [f"{_quote(name)}:{value if name in _PLAIN else _quote(text)}" for name, value, text in shown],
    )
    kind = _quote(KIND_NAMES.get(record.kind, str(record.kind)))
    return (
        f'{{"record":{number},"time":{record.time},"domain":{record.domain},"vcpu":{record.vcpu},'
        f'"rip":"{record.rip:#x}","kind":{kind},"name":{_quote(title(record))},'
        f'"values":{{{values}}},"text":{_quote(render(record, shown))}}}\n'
    )


def export_perfetto(recording: Recording, out: TextIO, start: int = 0, stop: int | None = None) -> None:
    """A trace in Chrome's JSON form, which ui.perfetto.dev opens (`perfetto`)."""
    from xentui.recording.perfetto import PerfettoWriter

    writer = PerfettoWriter(out, recording)
    writer.begin()
    for batch in batches(recording, start, stop):
        writer.write(batch)
    writer.end()


def export_xentrace(recording: Recording, out: BinaryIO, start: int = 0, stop: int | None = None) -> None:
    """Xen's binary trace format, which xenalyze reads (`xentrace`)."""
    from xentui.recording.xentrace import XentraceWriter

    writer = XentraceWriter(out, recording.domain_widths(), recording.header.get("cpus", 1))
    for batch in batches(recording, start, stop):
        writer.write(batch)
    writer.flush()


def talkers(recording: Recording) -> list[int]:
    """The domains that wrote to their consoles, in the order in which they began to."""
    return list(dict.fromkeys(piece.domain for piece in recording.console() if piece.direction == layout.OUT))


def export_asciicast(recording: Recording, out: TextIO, domain: int | None = None) -> None:
    """A domain's console as an asciicast (version 2), which asciinema plays; by default the first that wrote one.

    Times are virtual seconds. What is not UTF-8 becomes U+FFFD; a character cut between two writes is put together.
    """
    if domain is None:
        domain = next(iter(talkers(recording)), None)
    if domain is None:
        raise RecordingError(f"{recording.path}: no domain wrote to its console: there is nothing to play")
    name = recording.domain_names().get(domain, f"domain {domain}")
    head = {"version": 2, "width": ASCIICAST_WIDTH, "height": ASCIICAST_HEIGHT, "title": name}
    out.write(json.dumps(head) + "\n")
    decoders = {layout.OUT: codecs.getincrementaldecoder("utf-8")("replace")}
    decoders[layout.IN] = codecs.getincrementaldecoder("utf-8")("replace")
    last: Piece | None = None
    for last in recording.console(domain):
        out.write(_cast_line(last, decoders[last.direction & 1].decode(last.data)))
    for direction, decoder in decoders.items():  # what ends within a character is shown as what has a bad one inside
        if last is not None:
            out.write(_cast_line(last._replace(direction=direction), decoder.decode(b"", final=True)))


def _cast_line(piece: Piece, text: str) -> str:
    if not text:
        return ""
    code = "o" if piece.direction == layout.OUT else "i"
    return f'[{seconds(piece.time)}, "{code}", {_quote(text)}]\n'


def export(recording: Recording, form: str, out: Any, domain: int | None = None) -> None:
    """Write a recording in one of `FORMATS` to a file of text, or of bytes where the format is in `BINARY`.

    `domain`: whose console, for asciicast.
    """
    if form == "asciicast":
        export_asciicast(recording, out, domain)
    elif form in _WHOLE:
        _WHOLE[form](recording, out)
    else:
        raise RecordingError(f"no export format {form!r}: choose one of {', '.join(FORMATS)}")


_WHOLE: dict[str, Callable[[Recording, Any], None]] = {
    "jsonl": export_jsonl,
    "perfetto": export_perfetto,
    "xentrace": export_xentrace,
}

FORMATS = (*_WHOLE, "asciicast")
"""Names of the export formats."""

BINARY = frozenset({"xentrace"})
"""Those that are no text."""
