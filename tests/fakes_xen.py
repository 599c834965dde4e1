"""Domains with event channels, time and grants but without a processor, for tests of what the hypervisor does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from tests.fakes import STACK_PFN, Guest, make_guest, make_hypervisor
from xentui.engine.xen.abi.layout import Layout
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.domain import RUNNING, Domain, Vcpu
from xentui.engine.xen.event_channel import EventChannels
from xentui.engine.xen.guest_access import GuestFault
from xentui.engine.xen.hypervisor import Hypervisor
from xentui.engine.xen.time import TimerQueue

ARGUMENT = STACK_PFN << 12
"""Where tests put a hypercall's structure."""
UNMAPPED = 0x10_0000
"""An address below which everything is mapped."""

Handler = Callable[[Vcpu, int, int, int, int], int]


class ManualClock:
    """Virtual time that stands still unless a test moves it."""

    def __init__(self) -> None:
        self.time = 1_000_000_000
        self.charged = 0

    def now(self) -> int:
        return self.time

    def charge(self, ns: int) -> None:
        self.charged += ns

    def skip_to(self, ns: int) -> None:
        self.time = max(self.time, ns)


class XenGuest:
    """A domain that runs its first vCPU, and a way to make hypercalls with a structure in its memory."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.domain: Domain = guest.domain
        self.vcpu: Vcpu = guest.vcpu
        self.hv: Hypervisor = guest.hv
        self.layout: Layout = LAYOUT32 if self.domain.width == 32 else LAYOUT64

    def call(self, handler: Handler, command: int, data: bytes, *more: int) -> int:
        """A hypercall whose second argument points to `data`; GuestFault is -EFAULT, as in the dispatcher."""
        self.put(ARGUMENT, data)
        return self.call_at(handler, command, ARGUMENT, *more)

    def call_at(self, handler: Handler, a: int, b: int, *more: int) -> int:
        """A hypercall with plain arguments."""
        rest = (*more, 0, 0)
        try:
            return handler(self.vcpu, a, b, rest[0], rest[1])
        except GuestFault:
            return -14

    def put(self, address: int, data: bytes) -> None:
        """Bytes into the guest's memory; address and pseudo-physical address are the same."""
        for index, byte in enumerate(data, address):
            self.hv.ram[(self.guest.p2m[index >> 12] << 12) + (index & 0xFFF)] = byte

    def get(self, size: int, address: int = ARGUMENT) -> bytes:
        """Bytes of the guest's memory."""
        places = range(address, address + size)
        return bytes(self.hv.ram[(self.guest.p2m[place >> 12] << 12) + (place & 0xFFF)] for place in places)

    def number(self, offset: int, size: int = 4) -> int:
        """A number in the structure of the last call."""
        return int.from_bytes(self.get(size, ARGUMENT + offset), "little")


class World:
    """A hypervisor, its guests, and what it asked its machine to do."""

    def __init__(self, *widths: int, vcpus: int = 2) -> None:
        self.hv = make_hypervisor(768)
        self.clock = ManualClock()
        self.hv.clock = self.clock
        self.hv.timers = TimerQueue(self.clock)
        self.woken: list[Vcpu] = []
        self.reschedules = 0
        self.hv.wake = self.woken.append
        self.hv.reschedule = self._reschedule
        self.guests = [self._guest(number, width, vcpus) for number, width in enumerate(widths, 1)]

    def _reschedule(self) -> None:
        self.reschedules += 1

    def _guest(self, number: int, width: int, vcpus: int) -> XenGuest:
        guest = make_guest(self.hv, number, width)
        domain = guest.domain
        layout = LAYOUT32 if width == 32 else LAYOUT64
        frame = self.hv.frames.allocate_xen(1)
        self.hv.frames.share_with_guest(frame, number)
        domain.shared_info_frame = frame
        domain.shared_info = self.hv.ram[frame << 12 : (frame + 1) << 12]
        for extra in range(1, vcpus):
            domain.vcpus.append(Vcpu(domain, extra, guest.vcpu.processor))
            if width == 32:
                domain.vcpus[extra].monitor_table = self.hv.frames.allocate_xen(1)
        for vcpu in domain.vcpus:
            vcpu.info_frame, vcpu.info_offset = frame, vcpu.id * layout.VCPU_INFO_SIZE
            vcpu.info = domain.shared_info[vcpu.info_offset : vcpu.info_offset + layout.VCPU_INFO_SIZE]
            vcpu.info[1] = 1
        guest.vcpu.online, guest.vcpu.runstate, guest.vcpu.runstate_since = True, RUNNING, self.clock.now()
        domain.events = EventChannels(domain)
        return XenGuest(guest)

    def pass_time(self, ns: int) -> int:
        """Let time pass, and what becomes due happen in its order; how many timers fired."""
        end, fired = self.clock.time + ns, 0
        while True:
            deadline = self.hv.timers.next_deadline()
            if deadline is None or deadline > end:
                break
            self.clock.skip_to(deadline)
            fired += self.hv.timers.run_due(self.clock.now())
        self.clock.time = end
        return fired


def fuzz(guest: XenGuest, handler: Handler, arguments: tuple[int, int, int, int], data: bytes) -> None:
    """A hypercall with whatever arguments, over whatever structure; nothing but GuestFault may come out of it."""
    guest.put(ARGUMENT, data[:4096])
    with suppress(GuestFault):
        result = handler(guest.vcpu, *arguments)
        assert isinstance(result, int)
