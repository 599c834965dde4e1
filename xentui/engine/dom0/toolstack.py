"""Domain control: what xl does in domain 0 (create, restart, destroy), and the services that every domain needs.

What a person does to a domain that runs is in control.py, what can be told of it in info.py.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from xentui.config import ConfigError
from xentui.engine.dom0 import control
from xentui.engine.dom0.console import ConsoleBackend
from xentui.engine.dom0.domain_destroy import Destroyer
from xentui.engine.dom0.guest_log import last_lines
from xentui.engine.dom0.xenstore import Store
from xentui.engine.dom0.xenstore_domain import introduce_domain, remove_domain
from xentui.engine.dom0.xenstore_ring import XenstoreConnection
from xentui.engine.trace import Kind
from xentui.engine.x86.paging import PAGE_SIZE
from xentui.engine.x86.state import MASK64
from xentui.engine.xen import cpulist, time, unchecked
from xentui.engine.xen.abi import sched as sched_abi
from xentui.engine.xen.domain import Domain
from xentui.engine.xen.domain_builder import DomainBuilder
from xentui.engine.xen.domain_kill import free_domain_memory
from xentui.engine.xen.elf import ImageError, load_image
from xentui.engine.xen.page import OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from xentui.config import GuestSpec
    from xentui.engine.machine import Machine

SHUTDOWN_NAMES = {
    sched_abi.SHUTDOWN_poweroff: "poweroff",
    sched_abi.SHUTDOWN_reboot: "reboot",
    sched_abi.SHUTDOWN_suspend: "suspend",
    sched_abi.SHUTDOWN_crash: "crash",
    sched_abi.SHUTDOWN_watchdog: "watchdog",
    sched_abi.SHUTDOWN_soft_reset: "soft reset",
}
_RESTARTS = ("restart", "rename-restart", "coredump-restart", "soft-reset")


class Service:
    """What the control domain runs for one domain."""

    def __init__(self, domain: Domain, spec: GuestSpec, console: ConsoleBackend, store: XenstoreConnection) -> None:
        self.domain, self.spec, self.console, self.store = domain, spec, console, store
        self.written = self.read = 0
        """Bytes that the guest's console has written and read so far."""


class Toolstack:
    """Creates and ends domains. `on_output(domain, bytes)` hears every console; `on_end(domain, reason)` every end."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.store = Store()
        self.store.on_request = self._request
        self.services: dict[int, Service] = {}
        self.next_domid = 1
        self.on_output: Callable[[Domain, bytes], None] = lambda domain, data: None
        self.on_end: Callable[[Domain, str], None] = lambda domain, reason: None
        self.core_folder = Path()
        """Where the cores of crashed domains go."""
        self._ended: list[Domain] = []
        self._destroyer = Destroyer(machine)
        self._waiting: list[GuestSpec] = []
        """Domains that are created as soon as those that are being destroyed have left memory enough."""

    @property
    def alive(self) -> bool:
        """Is there a domain that has not ended, or one that is still being destroyed?"""
        return bool(self._destroyer) or any(domain.shutdown_code is None for domain in self.machine.hv.domains.values())

    # --- creating ------------------------------------------------------------------------------------------------

    def create(self, spec: GuestSpec) -> Domain:
        """Build a domain from its specification and make it runnable."""
        affinities = self._affinities(spec)
        image = load_image(spec.kernel)
        ramdisk = read_ramdisk(spec.ramdisk) if spec.ramdisk else None
        machine, hv = self.machine, self.machine.hv
        domain = Domain(hv, self.next_domid, spec.name, image.width)
        domain.kernel = spec.kernel
        domain.handle = uuid.UUID(int=self.next_domid).bytes
        domain.max_pages = max(spec.memory, spec.maxmem) << 8
        builder = DomainBuilder(hv, machine.processor, image, domain)
        try:
            builder.build(spec.memory << 8, ramdisk, spec.cmdline, spec.vcpus)
        except (ImageError, OutOfMemory):
            free_domain_memory(domain)
            raise
        self.next_domid += 1
        hv.domains[domain.id] = domain
        if not spec.validated:
            unchecked.switch_off(domain)
        self._serve(domain, spec)
        domain.on_shutdown = self._ended.append
        hv.put(
            hv.clock.now(), image.entry, Kind.DOMAIN_CREATE, 0, domain.id, domain.width,
            domain.tot_pages, len(domain.vcpus), image.entry, builder.start_info_address, 0,
        )  # fmt: skip
        time.update_wall_clock(domain)
        for vcpu, affinity in zip(domain.vcpus, affinities, strict=True):
            vcpu.affinity = affinity
            time.update_time(vcpu)
            machine.scheduler.add(vcpu, spec.cpu_weight, spec.cap)
        return domain

    def _affinities(self, spec: GuestSpec) -> list[int]:
        """For each vCPU the physical processors that it may run on. Raises ConfigError."""
        lists = [spec.cpus] * spec.vcpus if isinstance(spec.cpus, str) else spec.cpus[: spec.vcpus]
        try:
            masks = [self.machine.pcpus.checked(cpulist.parse(cpus)) for cpus in lists]
        except ValueError as error:
            raise ConfigError(f"{spec.source or spec.name}: cpus: {error}") from None
        return masks + [cpulist.ALL] * (spec.vcpus - len(masks))

    def create_when_free(self, spec: GuestSpec) -> None:
        """Create a domain; where there is no memory for it, wait for that of the domains that are being destroyed.

        (xl: freemem, which waits for free memory.) Raises ConfigError, ImageError, or OutOfMemory where none will come.
        """
        try:
            self.create(spec)
        except OutOfMemory:
            if not self._destroyer:
                raise
            self.machine.hv.log(f"{spec.name} waits for the memory of a domain that is being destroyed")
            self._waiting.append(spec)

    def _create_waiting(self) -> None:
        """Memory has become free: create who waits for it."""
        waiting, self._waiting = self._waiting, []
        for spec in waiting:
            try:
                self.create_when_free(spec)
            except (ConfigError, ImageError, OutOfMemory) as error:
                self.machine.hv.log(f"{spec.name} cannot be created: {error}")

    def _serve(self, domain: Domain, spec: GuestSpec) -> None:
        """Console and xenstore for a new domain."""
        introduce_domain(
            self.store,
            domain.id,
            name=domain.name,
            uuid=str(uuid.UUID(bytes=domain.handle)),
            memory_kib=domain.tot_pages * 4,
            maximum_kib=domain.max_pages * 4,
            vcpus=len(domain.vcpus),
            store_port=domain.store_port,
            store_mfn=domain.store_frame,
            console_port=domain.console_port,
            console_mfn=domain.console_frame,
        )
        domain.grants.seed(0, 0, domain.console_frame)  # reserved references, as libxl makes them
        domain.grants.seed(1, 0, domain.store_frame)
        events = domain.events
        console = ConsoleBackend(self._page(domain.console_frame), lambda: events.notify_guest(domain.console_port))
        console.on_output = lambda data: self._output(service, data)
        console.on_input = lambda data: self._input(service, data)
        store = XenstoreConnection(
            self.store, domain.id, self._page(domain.store_frame), lambda: events.notify_guest(domain.store_port)
        )
        events.bind_backend(domain.console_port, console.poll)
        events.bind_backend(domain.store_port, store.poll)
        service = self.services[domain.id] = Service(domain, spec, console, store)

    def _output(self, service: Service, data: bytes) -> None:
        """A guest's console has written."""
        self._trace_console(Kind.CONSOLE_OUT, service.domain, len(data), service.written)
        service.written += len(data)
        self.on_output(service.domain, data)

    def _input(self, service: Service, data: bytes) -> None:
        """A guest's console has been given typed bytes to read."""
        self._trace_console(Kind.CONSOLE_IN, service.domain, len(data), service.read)
        service.read += len(data)

    def _trace_console(self, kind: int, domain: Domain, count: int, offset: int) -> None:
        hv = self.machine.hv
        hv.put(hv.clock.now(), 0, kind, 0, domain.id, count, offset, 0, 0, 0, 0)

    def _request(self, domid: int, kind: int, request: int, transaction: int, size: int, result: int) -> None:
        """xenstore has answered a request."""
        hv = self.machine.hv
        hv.put(
            hv.clock.now(), 0, Kind.XENSTORE, 0, domid, kind, request, transaction, size, 0, result & MASK64
        )  # fmt: skip

    def _page(self, frame: int) -> memoryview:
        return self.machine.hv.ram[frame * PAGE_SIZE : (frame + 1) * PAGE_SIZE]

    def type(self, domain: Domain, data: bytes) -> None:
        """Type into a domain's console; nobody reads it any more when the domain is dying."""
        self.machine.end_idle()
        if not domain.dying:
            self.services[domain.id].console.type(data)

    # --- ending --------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Deal with the domains that have shut down since the last call, as their configuration says."""
        while self._ended:
            domain = self._ended.pop(0)
            service = self.services.get(domain.id)
            if service is None or domain.dying:
                continue  # destroyed meanwhile
            service.console.poll()
            reason = SHUTDOWN_NAMES.get(domain.shutdown_code or 0, f"code {domain.shutdown_code}")
            if reason == "crash":
                lines = last_lines(domain)
                for line in [f"last lines of {domain.name}'s own log:", *lines] if lines else ():
                    self.machine.hv.log(line)
            self.store.shut_down(domain.id)
            self.on_end(domain, reason)
            if reason != "suspend":  # which waits to be resumed
                self._act(domain, service.spec, reason)

    def _act(self, domain: Domain, spec: GuestSpec, reason: str) -> None:
        """Do with a domain that has ended what its configuration says (xl_vmcontrol.c, handle_domain_death)."""
        for vcpu in domain.vcpus:
            self.machine.scheduler.remove(vcpu)
        action = {
            "reboot": spec.on_reboot,
            "crash": spec.on_crash,
            "watchdog": spec.on_watchdog,
            "soft reset": spec.on_soft_reset,
        }.get(reason, spec.on_poweroff)
        if action.startswith("coredump"):
            self.dump_core(domain)
        if action == "preserve":
            return
        if action == "rename-restart":
            self._set_aside(domain)
            self._restart(spec)
        elif action in _RESTARTS:
            self.destroy(domain, lambda: self._restart(spec))
        else:
            self.destroy(domain)

    def _restart(self, spec: GuestSpec) -> None:
        try:
            self.create_when_free(spec)
        except (ImageError, OutOfMemory) as error:
            self.machine.hv.log(f"{spec.name} cannot be started again: {error}")

    def dump_core(self, domain: Domain) -> Path | None:
        """Keep a domain's memory and registers in a file of the core folder; where it cannot be written, say so."""
        from xentui.engine.dom0.core_dump import write_core

        try:
            path = write_core(domain, self.core_folder)
        except OSError as error:
            where = error.filename or self.core_folder
            self.machine.hv.log(f"{domain.name}: its core cannot be written: {where}: {error.strerror or error}")
            return None
        self.machine.hv.log(f"{domain.name}: its core is in {path}")
        return path

    def _set_aside(self, domain: Domain) -> None:
        """Keep a domain that has ended under another name, so that a new one can take its place."""
        names = {other.name for other in self.machine.hv.domains.values()}
        number = next(number for number in range(1, len(names) + 2) if f"{domain.name}-{number}" not in names)
        control.rename(self, domain, f"{domain.name}-{number}")

    def destroy(self, domain: Domain, then: Callable[[], None] | None = None) -> None:
        """End a domain for good and take back everything that it had, by and by while others run.

        It never runs again. Until all is taken it is `dying`; its end is in the trace, and `then` is called. Nothing
        happens if it is dying already.
        """
        if domain.dying:
            return
        pages = domain.tot_pages
        for vcpu in domain.vcpus:
            self.machine.scheduler.remove(vcpu)
        self.services[domain.id].store.close()
        remove_domain(self.store, domain.id)
        self.machine.unload(domain)
        self._destroyer.destroy(domain, lambda: self._gone(domain, pages, then))

    def _gone(self, domain: Domain, pages: int, then: Callable[[], None] | None) -> None:
        hv = self.machine.hv
        del hv.domains[domain.id], self.services[domain.id]
        hv.put(hv.clock.now(), 0, Kind.DOMAIN_DESTROY, 0, domain.id, 0, pages, 0, 0, 0, 0)
        if then is not None:
            then()
        self._create_waiting()


def read_ramdisk(path: Path) -> bytes:
    """The ramdisk's bytes; raises ImageError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(str(path), f"cannot read the ramdisk: {error.strerror or error}") from None
