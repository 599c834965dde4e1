"""The FIFO event-channel ABI: queues of ports in the guest's own memory (Xen: common/event_fifo.c).

Each port has a word in an *event array* that the guest provides page by page: whether it is pending, masked, linked
into a queue, and which port comes next. Each vCPU has a *control block* with the heads of sixteen queues, one a
priority, and a bit for each queue that says it is ready. The hypervisor appends at the tails, which only it knows;
the guest takes from the heads. Ports of one priority are served in the order in which they became pending, and there
may be 131,072 of them where the two-level ABI has 1,024 or 4,096.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind, MaskedBy
from xentui.engine.x86.paging import PAGE_SIZE
from xentui.engine.xen.abi import event_channel as abi
from xentui.engine.xen.abi.errno import EINVAL, ENOSPC
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.event_2l import mark_events_pending, select_all
from xentui.engine.xen.page import WRITABLE
from xentui.engine.xen.page_type import get_page_and_type, put_page_and_type
from xentui.engine.xen.schedule import wake_pollers

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu

PENDING = 1 << abi.EVTCHN_FIFO_PENDING
MASKED = 1 << abi.EVTCHN_FIFO_MASKED
LINKED = 1 << abi.EVTCHN_FIFO_LINKED
BUSY = 1 << abi.EVTCHN_FIFO_BUSY
LINK = abi.EVTCHN_FIFO_LINK_MASK

WORDS_PER_PAGE = PAGE_SIZE // 4
_MOST_PAGES = abi.EVTCHN_FIFO_NR_CHANNELS // WORDS_PER_PAGE
_CONTROL_SIZE = LAYOUT64.EVTCHN_FIFO_CONTROL_BLOCK_SIZE
_HEADS = LAYOUT64.EVTCHN_FIFO_CONTROL_BLOCK_head // 4
"""Words from a control block's start to its first queue's head."""
_LONGEST_SHOWN = 256
"""Ports of a queue that `queued` follows: its links are the guest's to write."""


class Fifo:
    """How the ports of one domain become pending, masked and linked. What `event_2l.TwoLevel` says holds here too."""

    name = "FIFO"
    ports = abi.EVTCHN_FIFO_NR_CHANNELS

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.control: dict[int, int] = {}
        """vCPU to where its control block lies, an index of `ram32`."""
        self.pages: list[int] = []
        """Where the pages of the event array lie, likewise."""
        self.priority: dict[int, int] = {}
        """Of ports with another than the default."""
        self._tails: dict[tuple[int, int], int] = {}
        """(vCPU, priority) to the last port of the queue; what is not there is empty."""
        self._last_queue: dict[int, tuple[int, int]] = {}
        """The queue that a port was in last; (0, 0) where there was none."""
        self._waiting: set[int] = set()
        """Ports that became pending before the event array reached them."""
        self._told: set[int] = set()
        """vCPUs whose lack of a control block is in the log."""

    # --- the guest's memory ------------------------------------------------------------------------------------

    def _use(self, mfn: int) -> int:
        """Use a frame of the guest's, writable from now on: where it lies in `ram32`, or -EINVAL."""
        if get_page_and_type(self.domain, mfn, WRITABLE):
            return -EINVAL
        self.domain.event_frames.append(mfn)
        return mfn * WORDS_PER_PAGE

    def map_control(self, vcpu_id: int, mfn: int, offset: int) -> int:
        """Take a vCPU's control block; 0 or -EINVAL. Each vCPU has one for good (Xen: map_control_block)."""
        if vcpu_id in self.control:
            return -EINVAL
        page = self._use(mfn)
        if page < 0:
            return page
        self.control[vcpu_id] = page + offset // 4
        return 0

    def expand(self, mfn: int) -> int:
        """Another page of the event array; what its ports waited for happens now (Xen: add_page_to_event_array)."""
        if len(self.pages) >= _MOST_PAGES:
            return -ENOSPC
        page = self._use(mfn)
        if page < 0:
            return page
        first = len(self.pages) * WORDS_PER_PAGE
        self.pages.append(page)
        events = self.domain.events
        for port in sorted(port for port in self._waiting if first <= port < first + WORDS_PER_PAGE):
            self._waiting.discard(port)
            self.set_pending(events.vcpu_of(port), port)
        return 0

    def release(self) -> None:
        """The guest's memory is its own again."""
        frames = self.domain.event_frames
        while frames:
            put_page_and_type(self.domain, frames.pop())

    def _word(self, port: int) -> int:
        """Index in `ram32` of a port's word, or -1 while the event array does not reach it."""
        page = port // WORDS_PER_PAGE
        return self.pages[page] + port % WORDS_PER_PAGE if page < len(self.pages) else -1

    # --- what the ports do -------------------------------------------------------------------------------------

    def take_over(self, ports: range) -> None:
        """The two-level ABI was in use so far: what is pending there will be here, once there are words for it."""
        pending = self.domain.events.two_level
        self._waiting.update(port for port in ports if pending.is_pending(port))

    def start(self, port: int) -> None:
        """The port has just been bound."""
        self.priority.pop(port, None)

    def set_priority(self, port: int, priority: int) -> int:
        """Which queue the port's next event goes into; 0 is the most urgent. 0 or -EINVAL."""
        if priority > abi.EVTCHN_FIFO_PRIORITY_MIN:
            return -EINVAL
        self.priority[port] = priority
        return 0

    def set_pending(self, vcpu: Vcpu, port: int) -> bool:
        """Raise the event; False if it was pending already. The order of the steps is evtchn_fifo_set_pending's."""
        index = self._word(port)
        if index < 0:
            fresh = port not in self._waiting
            self._waiting.add(port)
            return fresh
        domain = self.domain
        hv = domain.hv
        ram32 = hv.ram32
        word = ram32[index]
        ram32[index] = word | PENDING
        if vcpu.id not in self.control:
            if vcpu.id not in self._told:
                self._told.add(vcpu.id)
                hv.log(f"{vcpu.name} has no FIFO event channel control block")
        elif not word & (MASKED | LINKED):
            ram32[index] = word | PENDING | LINKED
            self._append(vcpu, port)
        elif word & MASKED and not word & PENDING:
            hv.put(hv.clock.now(), 0, Kind.EVENT_MASKED, vcpu.id, domain.id, port, MaskedBy.PORT, 0, 0, 0, 0)
        if word & PENDING:
            return False
        if domain.events.pollers:
            wake_pollers(domain, port)
        return True

    def _append(self, vcpu: Vcpu, port: int) -> None:
        """Put a port at the end of its queue; if that was empty, the queue is ready and the vCPU gets an upcall.

        The guest unlinks what it takes, so a tail that is not linked any more means an empty queue.
        """
        ram32, tails = self.domain.hv.ram32, self._tails
        queue = vcpu.id, self.priority.get(port, abi.EVTCHN_FIFO_PRIORITY_DEFAULT)
        old_queue = self._last_queue.get(port, (0, 0))
        if tails.get(old_queue) == port:
            del tails[old_queue]  # its old queue is empty, and must not be appended to through this port
        self._last_queue[port] = queue
        tail = tails.get(queue)
        tails[queue] = port
        control = self.control[vcpu.id]
        if tail is not None:
            index = self._word(tail)
            word = ram32[index]
            if word & LINKED:
                ram32[index] = word & ~(BUSY | LINK) | port
                return
        ram32[control + _HEADS + queue[1]] = port
        ready = ram32[control]
        if not ready >> queue[1] & 1:
            ram32[control] = ready | 1 << queue[1]
            mark_events_pending(vcpu, port)

    def clear_pending(self, port: int) -> None:
        """Take the event back; a port that is linked stays so, and the guest passes over it."""
        index = self._word(port)
        if index >= 0:
            self.domain.hv.ram32[index] &= ~PENDING

    def unmask(self, vcpu: Vcpu, port: int) -> None:
        """Clear the port's mask; an event that waited behind it is linked now."""
        index = self._word(port)
        if index < 0:
            return
        ram32 = self.domain.hv.ram32
        ram32[index] &= ~MASKED
        if ram32[index] & PENDING:
            self.set_pending(vcpu, port)

    def mask(self, port: int) -> None:
        """Set the port's mask, as far as there is a word for it."""
        index = self._word(port)
        if index >= 0:
            self.domain.hv.ram32[index] |= MASKED

    def is_pending(self, port: int) -> bool:
        """Is the port's event waiting to be taken?"""
        index = self._word(port)
        return index >= 0 and bool(self.domain.hv.ram32[index] & PENDING)

    def is_masked(self, port: int) -> bool:
        """Does the port's mask hold its event back?"""
        index = self._word(port)
        return index < 0 or bool(self.domain.hv.ram32[index] & MASKED)

    def word_of(self, port: int) -> int:
        """Index in `ram32` of a port's event word, or -1 while the event array does not reach it."""
        return self._word(port)

    def is_busy(self, port: int) -> bool:
        """Is the port in a queue still? Then it is not given to anybody else."""
        index = self._word(port)
        return index >= 0 and bool(self.domain.hv.ram32[index] & LINKED)

    def queued(self, vcpu: Vcpu) -> dict[int, list[int]]:
        """Priority to the ports that are linked into the vCPU's queue, first to last; empty queues are left out."""
        ram32, control = self.domain.hv.ram32, self.control.get(vcpu.id)
        queues: dict[int, list[int]] = {}
        if control is None:
            return queues
        for priority in range(abi.EVTCHN_FIFO_MAX_QUEUES):
            ports: list[int] = []
            port = ram32[control + _HEADS + priority] if ram32[control] >> priority & 1 else 0
            while port and port not in ports and len(ports) < _LONGEST_SHOWN:
                ports.append(port)
                index = self._word(port)
                port = ram32[index] & LINK if index >= 0 else 0
            if ports:
                queues[priority] = ports
        return queues

    def select_all(self, vcpu: Vcpu) -> None:
        """As for the two-level ABI, though nobody looks at the selector here (Xen: map_vcpu_info)."""
        select_all(vcpu)


def control_block_fits(offset: int) -> bool:
    """Does a control block at this offset lie in its page, aligned?"""
    return offset <= PAGE_SIZE - _CONTROL_SIZE and not offset & 7
