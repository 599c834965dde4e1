"""Guests as the user names them: a built-in guest, a kernel's path, or an xl domain configuration.

What may stand in a configuration is told in docs/configuration.md; how it is written, in :mod:`xentui.xl_grammar`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .xl_grammar import Setting

__all__ = ["ConfigError", "GuestSpec", "built_in_guests", "parse_xl_config", "resolve_guest", "unique_name"]

GUESTS_FOLDER = Path(__file__).parent / "guests"
BUILT_IN_MEMORY = 64
KERNEL_MEMORY = 256
"""MiB for a kernel given by its path."""
XL_MEMORY = 32
"""MiB for a configuration that does not tell, as libxl has it (libxl__domain_build_info_setdefault)."""
MAX_MEMORY = 64 << 10
"""MiB; far above what an emulated machine can make use of."""
MAX_VCPUS = 32
"""XEN_LEGACY_MAX_VCPUS: the vCPUs that have their vcpu_info in the shared page."""
DEFAULT_WEIGHT, MAX_WEIGHT = 256, 65535
MAX_CAP = 400
"""Percent of one physical processor, of which there may be four."""
MAX_CONFIG = 256 << 10
"""Bytes that a configuration may have."""

ACTIONS = (
    *("destroy", "restart", "rename-restart", "preserve"),
    *("coredump-destroy", "coredump-restart", "soft-reset"),
)
EVENTS = ("on_poweroff", "on_reboot", "on_crash", "on_watchdog", "on_soft_reset")
UNDERSTOOD = {"name", "kernel", "ramdisk", "memory", "maxmem", "vcpus", "cmdline", "extra", "root", "type", "builder"}
UNDERSTOOD |= {"cpus", "cpu_weight", "cap"}
UNDERSTOOD |= set(EVENTS)


class ConfigError(ValueError):
    """A guest or configuration that cannot be used; its text is one line: file, line and column, what, and a remedy."""

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))


@dataclass(slots=True)
class GuestSpec:
    """What a domain is made from."""

    name: str
    kernel: Path
    ramdisk: Path | None = None
    memory: int = KERNEL_MEMORY
    """MiB at start."""
    maxmem: int = 0
    """MiB that the domain may grow to; 0 for no more than `memory`."""
    vcpus: int = 1
    cmdline: str = ""
    cpus: str | list[str] = "all"
    """The physical processors that its vCPUs may run on, as xl writes them; or a list with those of each vCPU."""
    cpu_weight: int = DEFAULT_WEIGHT
    """Share of the processor relative to other domains'."""
    cap: int = 0
    """The most of the processor that the domain gets, in percent; 0 for no limit."""
    on_poweroff: str = "destroy"
    on_reboot: str = "restart"
    on_crash: str = "destroy"
    on_watchdog: str = "destroy"
    on_soft_reset: str = "soft-reset"
    validated: bool = True
    """False: without the page-table validator, which lets the domain take over the machine (for lectures)."""
    builtin: bool = False
    """The kernel is one of the package's own guests."""
    source: Path | None = None
    """The configuration that this was read from."""
    warnings: list[str] = field(default_factory=list)
    """One line each, to be shown to the user: keys that have no effect, and the like."""


def total_memory(specs: Iterable[GuestSpec]) -> int:
    """MiB that all guests need together. Raises ConfigError if the host has not so much."""
    needs = [max(spec.memory, spec.maxmem) for spec in specs]
    wanted = sum(needs) + len(needs) // 16  # the hypervisor's own frames for very many domains
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    if wanted > host:
        raise ConfigError(f"the guests want {wanted} MiB of memory and this host has {host}: give them less (--memory)")
    return wanted


def built_in_guests() -> list[str]:
    """The names of the guests that come with the package, sorted."""
    return sorted(path.name for path in GUESTS_FOLDER.glob("*[a-z]??") if path.name.endswith(("32", "64")))


def resolve_guest(argument: str) -> GuestSpec:
    """The guest that a command-line argument names: built-in guest, xl configuration, or kernel. Raises ConfigError.

    The kernel itself is not looked into: ``load_image`` does that. A file that is named like a built-in guest is
    reached as ``./NAME``.
    """
    known = built_in_guests()
    for name in (argument, f"{argument}32"):
        if name in known:
            return GuestSpec(name, GUESTS_FOLDER / name, memory=BUILT_IN_MEMORY, builtin=True)
    path = Path(argument)
    if not argument or "\0" in argument:
        raise ConfigError(f"{argument!r}: no name of a guest; {_choices(known)}")
    if not os.path.lexists(path):
        if path.suffix or "/" in argument:
            raise ConfigError(f"{argument}: no such file; check the path, or use a built-in guest: {', '.join(known)}")
        raise ConfigError(f"{argument}: unknown guest; {_closest(argument, known)}{_choices(known)}")
    if path.is_dir():
        raise ConfigError(f"{argument}: is a directory; give a kernel or a configuration (*.cfg) in it")
    if path.suffix == ".cfg" or _looks_like_config(path):
        return parse_xl_config(path)
    return GuestSpec(_domain_name(path), path)


def unique_name(name: str, taken: Iterable[str]) -> str:
    """A name that no earlier guest has: `hello64`, then `hello64-2`."""
    candidate, number, others = name, 2, set(taken)
    while candidate in others:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def _choices(known: Iterable[str]) -> str:
    return f"give a kernel, a configuration (*.cfg), or a built-in guest: {', '.join(known) or 'none is installed'}"


def _closest(argument: str, known: list[str]) -> str:
    """A question after the name that was perhaps meant, or nothing."""
    from difflib import get_close_matches

    names = known + [name[:-2] for name in known]
    close = get_close_matches(argument, names, 1)
    return f"did you mean {close[0]}? " if close else ""


def _looks_like_config(path: Path) -> bool:
    """Whether a file starts like an xl configuration: text whose first line that counts is an assignment."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    lines = (line.strip() for line in start.split(b"\n"))
    first = next((line for line in lines if line and not line.startswith((b"#", b";"))), b"")
    return b"\0" not in start and re.match(rb"[a-z][_0-9a-z]*\s*\+?=[^=]", first) is not None


def _domain_name(path: Path) -> str:
    """A domain's name from its kernel's: without what only tells how the file is packed."""
    name = re.sub(r"(\.(gz|xz|bz2|zst|lzma|lz4|elf|bin))+$", "", path.name)
    return "".join(c if c.isprintable() else "?" for c in name) or "guest"


def parse_xl_config(path: str | Path) -> GuestSpec:
    """Read an xl domain configuration. Raises ConfigError with file, line and column.

    Keys that have no effect here are told of in the result's `warnings`.
    """
    from .xl_grammar import parse_settings

    path = Path(path)
    settings = parse_settings(str(path), _read(path))
    config = _Config(str(path), settings)
    spec = GuestSpec(_name(config), _kernel(config), source=path, warnings=config.warnings)
    _check_type(config)
    spec.ramdisk = config.file("ramdisk")
    maxmem = config.number("maxmem", 1, MAX_MEMORY)
    memory = config.number("memory", 1, MAX_MEMORY)
    spec.memory = memory or maxmem or XL_MEMORY
    spec.maxmem = maxmem or spec.memory
    if spec.maxmem < spec.memory:
        raise config.error("maxmem", f"maxmem = {spec.maxmem} is less than memory = {spec.memory}; raise it")
    spec.vcpus = config.number("vcpus", 1, MAX_VCPUS) or 1
    spec.cmdline = _command_line(config)
    spec.cpus = _cpus(config)
    spec.cpu_weight = config.number("cpu_weight", 1, MAX_WEIGHT) or DEFAULT_WEIGHT
    spec.cap = config.number("cap", 0, MAX_CAP) or 0
    for event in EVENTS:
        action = config.string(event)
        if action is not None and action not in ACTIONS:
            raise config.error(event, f'{event} = "{action}" is no action; use one of {", ".join(ACTIONS)}')
        if action is not None:
            setattr(spec, event, action)
    for setting in config.settings.values():
        if setting.name not in UNDERSTOOD:
            config.warn(setting.name, f"{setting.name} is not supported: ignored")
    return spec


def _read(path: Path) -> bytes:
    """A configuration's bytes; ConfigError for what is no file, or too large for one."""
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a directory; give the configuration in it")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is no regular file; copy the configuration to a file")
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the file and its mode") from None
    if len(data) > MAX_CONFIG:
        raise ConfigError(f"{path}: more than {MAX_CONFIG >> 10} KiB; no xl configuration is that long")
    if not data.strip():
        raise ConfigError(f"{path}: is empty; give at least name, kernel and memory")
    return data


class _Config:
    """The settings of one file, by name, with typed access; the last setting of a name counts, as in xl."""

    def __init__(self, path: str, settings: list[Setting]) -> None:
        self.path = path
        self.settings = {setting.name: setting for setting in settings}
        self.warnings: list[str] = []

    def _place(self, key: str) -> str:
        setting = self.settings.get(key)
        return f"{self.path}:{setting.line}:{setting.column}" if setting else self.path

    def error(self, key: str, text: str) -> ConfigError:
        """An error at the place of a setting."""
        return ConfigError(f"{self._place(key)}: {text}")

    def warn(self, key: str, text: str) -> None:
        """Keep a warning about a setting."""
        self.warnings.append(f"{self._place(key)}: {text}")

    def string(self, key: str) -> str | None:
        """A setting's text, or None where it is not set."""
        setting = self.settings.get(key)
        if setting is None:
            return None
        if not isinstance(setting.value, str):
            raise self.error(key, f"{key} is a list but should be a single value; take the brackets away")
        return setting.value

    def number(self, key: str, low: int, high: int) -> int | None:
        """A setting's number as C's strtol(text, NULL, 0) reads it, or None where it is not set."""
        text = self.string(key)
        if text is None:
            return None
        match = re.fullmatch(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", text)
        if match is None or len(text) > 40:
            raise self.error(key, f'{key} = "{text[:40]}" is not a number; write it as 512 or 0x200')
        digits = match[2]
        base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
        value = int(digits, base) * (-1 if match[1] == "-" else 1)
        if not low <= value <= high:
            raise self.error(key, f"{key} = {text.strip()} is out of range; use {low} to {high}")
        return value

    def file(self, key: str) -> Path | None:
        """A setting's file, relative to the working folder as in xl, else to the configuration; None where not set."""
        text = self.string(key)
        if not text:
            return None
        if "\0" in text:
            raise self.error(key, f"{key} has a NUL character in its path; take it away")
        path, beside = Path(text), Path(self.path).parent / text
        if path.exists():
            return path
        if beside.exists():
            self.warn(key, f"{key} = {text} is not in the working folder: {beside} is used")
            return beside
        tried = text if beside == path else f"{text} (nor {beside})"
        raise self.error(key, f"{key}: no such file: {tried}; check the path")


def _name(config: _Config) -> str:
    """The domain's name, which xl insists on too."""
    name = config.string("name")
    if not name:
        raise config.error("name", 'name is not set; add a line such as name = "guest"')
    if not name.isprintable() or "/" in name:
        raise config.error("name", f"name = {name!r} has characters that no domain's name may have; use letters")
    return name


def _kernel(config: _Config) -> Path:
    """The kernel's path; there is no bootloader that could find one in a disk."""
    kernel = config.file("kernel")
    if kernel is None:
        found = " (a bootloader is not run)" if "bootloader" in config.settings else ""
        raise config.error("bootloader", f'kernel is not set{found}; add a line such as kernel = "vmlinuz"')
    return kernel


def _cpus(config: _Config) -> str | list[str]:
    """Where the vCPUs may run: a string is for all of them, a list has one for each."""
    from xentui.engine.xen import cpulist

    setting = config.settings.get("cpus")
    if setting is None:
        return "all"
    value = setting.value
    lists = [value] if isinstance(value, str) else [str(listed) for listed in value if isinstance(listed, str)]
    if len(lists) != (1 if isinstance(value, str) else len(value)):
        raise config.error("cpus", 'cpus has a list in a list; write it as "0-1" or as ["0", "1"]')
    for listed in lists:
        try:
            cpulist.parse(listed)
        except ValueError as error:
            raise config.error("cpus", f"cpus: {error}") from None
    return value if isinstance(value, str) else lists


def _check_type(config: _Config) -> None:
    """Refuse what is no PV domain, whether `type` says so or `builder`, its predecessor."""
    kind, builder = config.string("type"), config.string("builder")
    if kind is not None and kind != "pv":
        known = kind in ("hvm", "pvh")
        why = "needs hardware virtualization, which is not emulated" if known else "is no type of domain"
        raise config.error("type", f'type = "{kind}" {why}; use type = "pv" and a kernel built for it')
    if kind is None and builder is not None and builder not in ("generic", "linux"):
        raise config.error("builder", f'builder = "{builder}" makes no PV domain; use type = "pv" instead')
    if builder is not None:
        config.warn("builder", "builder is deprecated in xl; use type")


def _command_line(config: _Config) -> str:
    """The kernel's command line: cmdline, or root and extra together, as xl's parse_cmdline combines them."""
    cmdline, root, extra = config.string("cmdline"), config.string("root"), config.string("extra")
    if cmdline is not None:
        for key in ("root", "extra"):
            if key in config.settings:
                config.warn(key, f"{key} is ignored in favour of cmdline")
        return cmdline
    parts = ([f"root={root}"] if root is not None else []) + ([extra] if extra is not None else [])
    return " ".join(parts)
