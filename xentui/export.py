"""`xentui export`: a recording for other programs."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING, Any, NoReturn

from xentui.record import EXIT_LIMIT, EXIT_OK, EXIT_USAGE

if TYPE_CHECKING:
    from xentui.recording.reader import Recording

EPILOG = """\
formats:
  jsonl      a JSON object a line: when, where, what, its values by name, and the line as the trace shows it
  perfetto   for ui.perfetto.dev or chrome://tracing: a lane a vCPU, counters a domain, arrows for events
  xentrace   Xen's binary trace, for xenalyze: the processor counts 2.4 GHz, which xenalyze supposes
  asciicast  a domain's console, for asciinema; with several domains and -o OUT.cast each gets OUT.NAME.cast

examples:
  xentui export run.xtrace --format perfetto -o run.json
  xentui export run.xtrace --format xentrace -o run.xen && xenalyze --summary run.xen
"""


class ExportError(ValueError):
    """An export that cannot be done as asked for; one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ExportError(f"{message}; see xentui export --help")


def build_parser() -> argparse.ArgumentParser:
    """The options of `xentui export`."""
    from xentui.recording.export import FORMATS

    parser = _Parser(
        prog="xentui export",
        description="Write a recording for other programs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="the recording")
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="what to write (default: jsonl)")
    parser.add_argument("-o", "--output", metavar="OUT", help="where to (default: stdout)")
    parser.add_argument("--domain", metavar="NAME", help="whose console, for asciicast: a name or a number")
    return parser


def run(arguments: list[str]) -> int:
    """Obey the command line; the exit status. Every error is one line on stderr."""
    from xentui.recording.format import RecordingError
    from xentui.recording.reader import Recording

    try:
        options = build_parser().parse_args(arguments)
        with Recording(options.file) as recording:
            if recording.problem:
                print(f"xentui: warning: {recording.problem}", file=sys.stderr)
            _export(recording, options)
    except (ExportError, RecordingError) as error:
        print(f"xentui: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("xentui: interrupted", file=sys.stderr)
        return EXIT_LIMIT
    except BrokenPipeError:
        # whoever read has enough; stdout is not flushed once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_OK


def _export(recording: Recording, options: argparse.Namespace) -> None:
    from xentui.recording.export import BINARY, export, talkers

    domain = _domain(recording, options)
    if options.format == "asciicast" and domain is None:
        speaking = talkers(recording)
        if len(speaking) > 1:
            _each_console(recording, options, speaking)
            return
    binary = options.format in BINARY
    if binary and options.output is None and sys.stdout.isatty():
        raise ExportError("a binary trace is not for a terminal: name a file with -o")
    with _open(recording, options.output, binary) as out:
        _guarded(options.output, lambda: export(recording, options.format, out, domain))


def _domain(recording: Recording, options: argparse.Namespace) -> int | None:
    """The number of the domain that was named."""
    if options.domain is None:
        return None
    if options.format != "asciicast":
        raise ExportError(f"--domain chooses a console, and {options.format} has none: use it with asciicast")
    names = recording.domain_names()
    for number, name in names.items():
        if options.domain in (name, str(number)):
            return number
    raise ExportError(f"{recording.path}: no domain {options.domain!r}; there is {', '.join(names.values())}")


def _each_console(recording: Recording, options: argparse.Namespace, domains: list[int]) -> None:
    """One file a domain, named after it."""
    from xentui.recording.export import export

    names = {domain: recording.domain_names().get(domain, str(domain)) for domain in domains}
    if options.output is None:
        known = ", ".join(names.values())
        raise ExportError(f"several domains have consoles: choose one with --domain ({known}), or a file with -o")
    stem, suffix = os.path.splitext(options.output)
    for domain, name in names.items():
        path = f"{stem}.{name.replace('/', '_')}{suffix}"
        with _open(recording, path, binary=False) as out:
            _guarded(path, lambda domain=domain, out=out: export(recording, "asciicast", out, domain))  # type: ignore[misc]


def _open(recording: Recording, path: str | None, binary: bool) -> Any:
    """The file to write to, or stdout, which stays open."""
    if path is None:
        if not binary:
            sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        return nullcontext(sys.stdout.buffer if binary else sys.stdout)
    if os.path.exists(path) and os.path.samefile(path, recording.path):
        raise ExportError(f"{path}: is the recording itself: name another file with -o")
    try:
        out: IO[Any] = open(path, "wb") if binary else open(path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
        raise ExportError(f"{path or repr(path)}: cannot be written: {error.strerror}") from None
    return out


def _guarded(path: str | None, work: Any) -> None:
    try:
        work()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ExportError(f"{path or 'stdout'}: cannot be written: {error.strerror}") from None
