"""The command line (docs: README.md, `xentui --help`)."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from xentui import __version__
from xentui.record import EXIT_LIMIT, EXIT_USAGE, record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xentui.config import GuestSpec
    from xentui.gdb.server import Listener

_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "min": 60_000_000_000}
_WRITTEN = {"limit": "for"}
"""Options whose values are not called as they are written."""
_RECORDING = ("--until", "--for", "--core", "--audit")
"""Options that only --record has a use for."""
SERVE_PORT = 8000
"""Where --serve serves when it is given no port."""
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "e": "\x1b", "\\": "\\", "0": "\0"}

EPILOG = """\
GUEST is the name of a built-in guest, a kernel (ELF, compressed, or a Linux bzImage), or an xl domain configuration
(*.cfg). Built-in guests:
{guests}

Exit status of --record: 0 when --until matched or every domain shut down by itself, 1 when a domain crashed or --audit
found something, 2 for a bad command line, configuration or image, 3 when a limit (--for, Ctrl-C) came first or nothing
could ever happen again.

examples:
  xentui
  xentui --record hello.xtrace hello64 --input 'poweroff\\n'
  xentui --record grub.xtrace /usr/lib/grub-xen/grub-x86_64-xen.bin --input 'help\\nhalt\\n'
  xentui export hello.xtrace --format perfetto -o hello.json
  xentui --record linux.xtrace vmlinuz-6.1.0-amd64 --ramdisk initrd.gz --cmdline console=hvc0 --memory 512
"""


class UsageError(ValueError):
    """A command line that cannot be obeyed; one line."""


class _Parser(argparse.ArgumentParser):
    """Errors in one line, as everywhere in this program."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see xentui --help")


def _duration(text: str) -> int:
    """A virtual time with its unit, `20ms` or `1.5s`, in nanoseconds."""
    from xentui.engine.clock import MAX_NS

    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)", text.strip())
    if not match or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time: a number and a unit ({', '.join(_UNITS)}), as in 20ms"
        )
    nanoseconds = float(match[1]) * _UNITS[match[2]]
    if nanoseconds > MAX_NS:
        raise argparse.ArgumentTypeError(f"{text} is too long: a run's clock counts a hundred years")
    return int(nanoseconds)


def _number(low: int, high: int, what: str) -> object:
    """An argument type: a whole number within bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number ({what})") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is out of range: {what} from {low} to {high}")
        return value

    return parse


def _pattern(text: str) -> re.Pattern[bytes]:
    """A regular expression over console bytes."""
    try:
        return re.compile(text.encode(), re.MULTILINE)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None


def _typed(text: str) -> bytes:
    """What to type: the argument with \\n, \\r, \\t, \\e, \\xNN replaced, or the contents of @FILE. Enter is CR."""
    if text.startswith("@"):
        try:
            with open(text[1:], "rb") as file:
                data = file.read()
        except OSError as error:
            raise argparse.ArgumentTypeError(f"{text[1:]}: cannot read the input: {error.strerror}") from None
    else:
        plain = re.sub(
            r"\\(x[0-9a-fA-F]{2}|.)",
            lambda match: chr(int(match[1][1:], 16)) if len(match[1]) == 3 else _ESCAPES.get(match[1], match[0]),
            text,
        )
        data = plain.encode()
    return data.replace(b"\r\n", b"\r").replace(b"\n", b"\r")


def _fault(text: str) -> tuple[int, str]:
    """`[AT:]FAULT`: virtual ns and the fault's text."""
    from xentui.engine.faults import FaultError, split_time

    try:
        return split_time(text)
    except FaultError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _epilog(guests: list[str]) -> str:
    """What stands below the options in the help text, which nearly every run does without."""
    from textwrap import fill

    return EPILOG.format(guests=fill(f"{', '.join(guests)}.", 116)) if guests else ""


def build_parser(guests: list[str], demonstrations: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = _Parser(
        prog="xentui",
        description="Xen you can see: a paravirtualizing hypervisor on an emulated processor.",
        epilog=_epilog(guests),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("guests", nargs="*", metavar="GUEST", help="what to run; see below")
    add("--record", metavar="FILE", help="run without the console and write a recording")
    add("--replay", metavar="FILE", help="the console on a recording, paused at its start")
    add("--demo", metavar="NAME|FILE", help=f"a guided demonstration: {', '.join(demonstrations)}, or a file")
    add(
        "--serve",
        metavar="PORT",
        type=_number(1, 65535, "ports"),
        help=f"the console on a web page of this machine (port {SERVE_PORT} if none is given), a run for each page; "
        "needs pip install 'xentui[serve]'",
    )
    add("--until", metavar="REGEX", type=_pattern, help="stop when a guest's console matches")
    add("--for", metavar="TIME", type=_duration, dest="limit", help="stop after that much virtual time (20ms, 3s)")
    add(
        "--input",
        metavar="TEXT|@FILE",
        type=_typed,
        help="type into the first guest's console, a line whenever it is quiet",
    )
    add(
        "--prompt",
        metavar="REGEX",
        type=_pattern,
        help="type a line of --input whenever the console ends with this instead",
    )
    _add_machine_options(add)
    add(
        "--audit",
        action="store_true",
        help="recount the frame table from the page tables after every slice (slow); a difference ends the run",
    )
    _add_meddling_options(add)
    add("--version", action="version", version=f"xentui {__version__}")
    return parser


def _add_machine_options(add: Callable[..., object]) -> None:
    """What the guests and their machine are like."""
    add("--memory", metavar="MB", type=_number(1, 1 << 20, "MiB"), help="memory of each guest")
    add("--vcpus", metavar="N", type=_number(1, 32, "vCPUs"), help="virtual CPUs of each guest")
    add(
        "--cpus",
        metavar="N",
        type=_number(1, 4, "physical processors"),
        default=1,
        help="physical processors of the machine, which take turns on the emulated one (default 1)",
    )
    add("--ramdisk", metavar="FILE", help="ramdisk of each guest")
    add("--cmdline", metavar="TEXT", help="kernel command line of each guest")
    add(
        "--pace",
        choices=("exact", "fast"),
        default="exact",
        help="exact: deterministic (default); fast: the host's clock",
    )
    add(
        "--seed", metavar="N", type=_number(0, (1 << 64) - 1, "seed"), default=0, help="seed of the machine-frame order"
    )
    add(
        "--sched",
        choices=("credit", "bvt"),
        default="credit",
        help="who runs next: Xen's credit scheduler (default), or the paper's Borrowed Virtual Time",
    )
    add("--core", metavar="DIR", default=".", help="where cores of crashed guests go (on_crash = coredump-...)")


def _add_meddling_options(add: Callable[..., object]) -> None:
    """What is done to them from outside."""
    add(
        "--no-validator",
        metavar="NAME",
        action="append",
        default=[],
        help="UNSAFE, for lectures: the page tables of the guest NAME are not checked, so that it can take over the "
        "machine; may be repeated",
    )
    add(
        "--inject",
        metavar="[AT:]FAULT",
        action="append",
        type=_fault,
        default=[],
        help="break something, at a virtual time or at the start: 20ms:'fail hello32 mmu_update -ENOMEM every 3'; "
        "may be repeated; see docs/faults.md",
    )
    add(
        "--gdb",
        metavar="NAME=ADDRESS",
        action="append",
        default=[],
        help="serve a guest to gdb, on :PORT of this machine or a Unix socket's path; may be repeated",
    )
    add("--no-direct-trap", action="store_true", help="32-bit guests' int 0x80 goes through the hypervisor")


def run(arguments: list[str]) -> int:
    """Obey the command line; the exit status. Every error is one line on stderr."""
    from xentui.config import ConfigError

    if arguments[:1] == ["export"]:
        from xentui.export import run as export

        return export(arguments[1:])
    try:
        arguments = _with_port(arguments)
        parser = _parser(arguments)
        options = parser.parse_args(arguments)
        if options.record is None:
            return _console(options, _given(options, parser), arguments)
        for option in ("replay", "demo", "gdb", "serve"):
            if getattr(options, option):
                raise UsageError(f"--{option} is the console's: --record excludes it")
        if not options.guests:
            raise UsageError("--record needs a guest to run; see xentui --help")
        if not os.path.isdir(options.core):
            raise UsageError(f"--core {options.core}: there is no such folder; create it")
        specs = _specifications(options)
        return record(options, specs)
    except (UsageError, ConfigError) as error:
        print(f"xentui: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("xentui: interrupted", file=sys.stderr)
        return EXIT_LIMIT


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser, with the names that the help text lists if it is asked for."""
    if not {"-h", "--help"} & set(arguments):
        return build_parser([])
    from xentui import demonstration
    from xentui.config import built_in_guests

    return build_parser(built_in_guests(), demonstration.names())


def _given(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """The options that say something else than what holds anyway, as they are written."""
    usual = vars(parser.parse_args([]))
    names = [name for name, value in vars(options).items() if value != usual[name]]
    return [f"--{_WRITTEN.get(name, name).replace('_', '-')}" for name in names if name != "guests"]


def _with_port(arguments: list[str]) -> list[str]:
    """The port that --serve leaves out: it may stand before a guest, which is none."""
    given = []
    for at, word in enumerate(arguments):
        following = "".join(arguments[at + 1 : at + 2])
        given.append(f"--serve={SERVE_PORT}" if word == "--serve" and not following.isdecimal() else word)
    return given


def _without_serve(arguments: list[str]) -> list[str]:
    """The command line of a page's console."""
    given = [word for word in arguments if not word.startswith("--serve=")]
    at = given.index("--serve") if "--serve" in given else len(given)
    return given[:at] + given[at + 2 :]


def _specifications(options: argparse.Namespace) -> list[GuestSpec]:
    """What to build, from the guests named and the options that complete them."""
    from pathlib import Path

    from xentui.config import resolve_guest, unique_name

    specs: list[GuestSpec] = []
    for spec in [resolve_guest(argument) for argument in options.guests] or _built_in_demonstration():
        for warning in spec.warnings:
            print(f"xentui: warning: {warning}", file=sys.stderr)
        if options.memory is not None:
            spec.memory = options.memory
        if options.vcpus is not None:
            spec.vcpus = options.vcpus
        if options.ramdisk is not None:
            spec.ramdisk = Path(options.ramdisk)
        if options.cmdline is not None:
            spec.cmdline = options.cmdline
        spec.name = unique_name(spec.name, [other.name for other in specs])
        spec.validated = spec.name not in options.no_validator
        specs.append(spec)
    names = [spec.name for spec in specs]
    for _, text in options.inject:
        _check_fault(text, names)
    for name in options.no_validator:
        if name not in names:
            raise UsageError(f"--no-validator {name}: no guest has that name; there is {', '.join(names) or 'none'}")
        print(
            f"xentui: warning: {name} runs without the page-table validator and can take over the machine",
            file=sys.stderr,
        )
    return specs


def _built_in_demonstration() -> list[GuestSpec]:
    """The guests of the console that was not told what to run."""
    from xentui.demonstration import BUILT_IN, guest_specifications

    return guest_specifications(BUILT_IN)


def _check_fault(text: str, names: list[str]) -> None:
    """Is this a fault, and one of these guests'?"""
    from xentui.engine.faults import FaultError, parse

    try:
        parse(text, names)
    except FaultError as error:
        raise UsageError(f"--inject {text!r}: {error}") from None


def _console(options: argparse.Namespace, given: list[str], arguments: list[str]) -> int:
    """Without --record: the console, on the guests named or on the built-in demonstration. `given`: its options;
    `arguments`: the command line as it was written."""
    from xentui.console import demonstrate, replay, show

    for option, runs in (("--replay", "the guests that are in the recording"), ("--demo", "its own guests")):
        others = [other for other in given if other not in (option, "--serve")]
        if option in given and options.guests:
            raise UsageError(f"{option} runs {runs}; name no others")
        if option in given and others:
            raise UsageError(f"{option} runs {runs}, as they are: it excludes {', '.join(others)}")
    for option in _RECORDING:
        if option in given:
            raise UsageError(f"{option} needs --record; see xentui --help")
    if options.serve is not None:
        return _serve(options, _without_serve(arguments))
    if options.replay is not None:
        return replay(options.replay)
    if options.demo is not None:
        return demonstrate(options.demo)
    specs = _specifications(options)
    return show(options, specs, _gdb_listeners(options, specs))


def _serve(options: argparse.Namespace, arguments: list[str]) -> int:
    """The console on web pages; what the command line names must be there before the first is opened."""
    from xentui.console import checked_demonstration, replayed, serve

    if options.gdb:
        raise UsageError("--gdb and --serve exclude each other: every page has guests of its own")
    if options.replay is not None:
        opened = replayed(options.replay)
        if opened is None:
            return EXIT_USAGE
        opened[0].close()
    if options.demo is not None:
        checked_demonstration(options.demo)
    elif options.replay is None:
        _specifications(options)
    return serve(arguments, options.serve)


def _gdb_listeners(options: argparse.Namespace, specs: list[GuestSpec]) -> list[Listener]:
    """The sockets on which domains are served to gdb, open."""
    if not options.gdb:
        return []
    from xentui.gdb.server import GdbError, listen, parse

    names = [spec.name for spec in specs]
    try:
        found = [parse(argument) for argument in options.gdb]
        for name, _ in found:
            if name not in names:
                raise UsageError(f"--gdb {name}: no guest has that name; there is {', '.join(names)}")
        return listen(found)
    except GdbError as error:
        raise UsageError(str(error)) from None
