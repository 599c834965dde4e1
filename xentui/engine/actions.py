"""What can be done to a machine from outside: typing, what `xl` does to domains, events, faults.

An action is plain data, so that it can be sent to another process, kept in a recording and performed again at the same
position. `Machine.apply` performs one now, `Machine.schedule` at a position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xentui.config import ConfigError
from xentui.engine.dom0 import control
from xentui.engine.xen import cpulist, schedule, unchecked
from xentui.engine.xen.elf import ImageError
from xentui.engine.xen.page import OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.config import GuestSpec
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain, Vcpu

Plain = bytes | str | int | bool | None


class ActionError(ValueError):
    """The action cannot be performed; its text is one line that says why."""


class Action(NamedTuple):
    """`kind` is a key of `KINDS`; `domain` names whom it concerns; the arguments are what the kind's function takes."""

    kind: str
    domain: str | None = None
    arguments: tuple[Plain | GuestSpec, ...] = ()

    def check(self, machine: Machine) -> None:
        """Raise ActionError where it cannot be meant: no such action, domain or fault. Nothing happens."""
        if self.kind not in KINDS:
            raise ActionError(f"there is no action {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.domain is not None:
            find_domain(machine, self.domain)
        if self.kind == "inject" and self.arguments:
            _parse_fault(machine, str(self.arguments[0]))

    def perform(self, machine: Machine) -> None:
        """Do it, at the machine's position. Raises ActionError, and then no domain has been changed."""
        function = KINDS.get(self.kind)
        if function is None:
            raise ActionError(f"there is no action {self.kind!r}; there are: {', '.join(KINDS)}")
        try:
            function(machine, self.domain, *self.arguments)
        except control.LifecycleError as error:
            raise ActionError(str(error)) from None
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            raise ActionError(f"action {self.kind!r} does not take the arguments {self.arguments!r}") from None


def find_domain(machine: Machine, name: str | None) -> Domain:
    """The domain of that name, or with that number. One that is being destroyed has lost its name to others."""
    found = [domain for domain in machine.domains if name is not None and name in (domain.name, str(domain.id))]
    for domain in found:
        if not domain.dying:
            return domain
    if found:
        raise ActionError(f"domain {found[0].name} is being destroyed")
    names = ", ".join(domain.name for domain in machine.domains)
    raise ActionError(f"there is no domain {name!r}; " + (f"there are: {names}" if names else "there is none"))


def _alive(machine: Machine, name: str | None) -> Domain:
    domain = find_domain(machine, name)
    if domain.shutdown_code is not None:
        raise ActionError(f"domain {domain.name} has shut down")
    return domain


def _type(machine: Machine, name: str | None, data: bytes) -> None:
    machine.toolstack.type(_alive(machine, name), data)


def _pause(machine: Machine, name: str | None) -> None:
    control.pause(find_domain(machine, name))


def _unpause(machine: Machine, name: str | None) -> None:
    control.unpause(find_domain(machine, name))


def _crash(machine: Machine, name: str | None) -> None:
    control.crash(find_domain(machine, name))


def _request(what: str) -> Callable[[Machine, str | None], None]:
    """Ask the guest's kernel for something, through xenstore."""

    def request(machine: Machine, name: str | None) -> None:
        control.request(machine.toolstack, find_domain(machine, name), what)

    return request


def _resume(machine: Machine, name: str | None) -> None:
    control.resume(machine.toolstack, find_domain(machine, name))


def _rename(machine: Machine, name: str | None, new: str) -> None:
    control.rename(machine.toolstack, find_domain(machine, name), new)


def _balloon(machine: Machine, name: str | None, mib: int) -> None:
    control.set_memory_target(machine.toolstack, find_domain(machine, name), mib)


def _destroy(machine: Machine, name: str | None) -> None:
    machine.toolstack.destroy(find_domain(machine, name))


def _create(machine: Machine, _name: str | None, spec: GuestSpec) -> None:
    try:
        machine.toolstack.create_when_free(spec)
    except (ConfigError, ImageError, OutOfMemory) as error:
        raise ActionError(str(error)) from None


def _port(domain: Domain, port: int) -> int:
    if not domain.events.valid(port):
        raise ActionError(f"domain {domain.name} has no port {port}")
    return port


def _send(machine: Machine, name: str | None, port: int) -> None:
    domain = find_domain(machine, name)
    domain.events.set_pending(_port(domain, port))


def _unmask(machine: Machine, name: str | None, port: int) -> None:
    domain = find_domain(machine, name)
    domain.events.unmask(_port(domain, port))


def _mask(machine: Machine, name: str | None, port: int) -> None:
    domain = find_domain(machine, name)
    domain.events.abi.mask(_port(domain, port))


def _inject(machine: Machine, _name: str | None, text: str) -> None:
    """A fault in its text form (faults.py)."""
    from xentui.engine.faults import FaultError, inject

    try:
        inject(machine, text)
    except FaultError as error:
        raise ActionError(f"fault not injected ({text}): {error}") from None


def _parse_fault(machine: Machine, text: str) -> None:
    from xentui.engine.faults import FaultError, parse

    try:
        parse(text, [domain.name for domain in machine.domains])
    except FaultError as error:
        raise ActionError(f"fault not injected ({text}): {error}") from None


def _schedule(machine: Machine, name: str | None, parameter: str, value: int) -> None:
    """A parameter of the scheduler: a domain's, or its own where no domain is named (`xl sched-credit`)."""
    try:
        machine.scheduler.adjust(None if name is None else find_domain(machine, name), **{parameter: value})
    except ValueError as error:
        raise ActionError(str(error)) from None


def _pin(machine: Machine, name: str | None, number: int | str, cpus: str) -> None:
    """A vCPU, or `all` of them, may run on these physical processors only (`xl vcpu-pin`)."""
    domain = _alive(machine, name)
    try:
        mask = machine.pcpus.checked(cpulist.parse(cpus))
    except ValueError as error:
        raise ActionError(str(error)) from None
    for vcpu in domain.vcpus if number == "all" else [_vcpu(machine, name, int(number))]:
        schedule.set_affinity(vcpu, mask)


def _vcpu(machine: Machine, name: str | None, number: int) -> Vcpu:
    domain = _alive(machine, name)
    if not 0 <= number < len(domain.vcpus):
        raise ActionError(f"{domain.name} has no vCPU {number}")
    return domain.vcpus[number]


def _set_register(machine: Machine, name: str | None, number: int, register: str, value: int) -> None:
    from xentui.engine.poke import PokeError, write_register

    try:
        write_register(_vcpu(machine, name, number), register, value)
    except PokeError as error:
        raise ActionError(str(error)) from None


def _write(machine: Machine, name: str | None, number: int, address: int, data: bytes) -> None:
    from xentui.engine.poke import PokeError, write_memory

    try:
        write_memory(_vcpu(machine, name, number), address, data)
    except PokeError as error:
        raise ActionError(str(error)) from None


def _no_validator(machine: Machine, name: str | None) -> None:
    domain = find_domain(machine, name)
    if not domain.validated:
        raise ActionError(f"the validator is off for {domain.name} already")
    unchecked.switch_off(domain)


KINDS: dict[str, Callable[..., None]] = {
    "type": _type,
    "pause": _pause,
    "unpause": _unpause,
    "shutdown": _request("poweroff"),
    "reboot": _request("reboot"),
    "suspend": _request("suspend"),
    "resume": _resume,
    "crash": _crash,
    "destroy": _destroy,
    "create": _create,
    "rename": _rename,
    "balloon": _balloon,
    "send": _send,
    "mask": _mask,
    "unmask": _unmask,
    "inject": _inject,
    "schedule": _schedule,
    "pin": _pin,
    "no_validator": _no_validator,
    "set_register": _set_register,
    "write": _write,
}
"""Kind to what it does: `function(machine, domain's name, *arguments)`; see docs/run-control.md."""
