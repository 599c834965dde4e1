"""The two-level event-channel ABI: bitmaps in shared_info, a selector word in vcpu_info (Xen: common/event_2l.c).

A port is pending when its bit in `evtchn_pending` is set. Bit n of a vCPU's `evtchn_pending_sel` says that word n of
that bitmap is worth a look, and `evtchn_upcall_pending` that the selector is. All of it lies in guest memory, little
endian, so that bits are addressed by byte whatever the guest's word size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xentui.engine.trace import Kind, MaskedBy
from xentui.engine.xen.abi.layout32 import LAYOUT32
from xentui.engine.xen.abi.layout64 import LAYOUT64
from xentui.engine.xen.schedule import kick, wake_pollers

if TYPE_CHECKING:
    from xentui.engine.xen.domain import Domain, Vcpu


class TwoLevel:
    """How the ports of one domain become pending, masked and selected. The FIFO ABI is a class beside this one.

    Callers have checked that the port exists. `vcpu` is whom the port notifies.
    """

    name = "2-level"

    def __init__(self, domain: Domain) -> None:
        layout = LAYOUT32 if domain.width == 32 else LAYOUT64
        self.domain = domain
        self.ports = layout.EVTCHN_2L_NR_CHANNELS
        self._pending = layout.SHARED_INFO_evtchn_pending
        self._mask = layout.SHARED_INFO_evtchn_mask
        self._selector = layout.VCPU_INFO_evtchn_pending_sel
        self._word_shift = 5 if domain.width == 32 else 6

    def set_pending(self, vcpu: Vcpu, port: int) -> bool:
        """Raise the event; False if it was pending already. The order of the steps is Xen's evtchn_2l_set_pending."""
        shared = self.domain.shared_info
        byte, bit = port >> 3, 1 << (port & 7)
        index = self._pending + byte
        if shared[index] & bit:
            return False
        shared[index] |= bit
        if shared[self._mask + byte] & bit:
            hv = self.domain.hv
            hv.put(hv.clock.now(), 0, Kind.EVENT_MASKED, vcpu.id, self.domain.id, port, MaskedBy.PORT, 0, 0, 0, 0)
        else:
            self._select(vcpu, port)
        if self.domain.events.pollers:
            wake_pollers(self.domain, port)
        return True

    def clear_pending(self, port: int) -> None:
        """Take the event back, as when the port is closed; the selector stays, as on Xen."""
        self.domain.shared_info[self._pending + (port >> 3)] &= ~(1 << (port & 7))

    def unmask(self, vcpu: Vcpu, port: int) -> None:
        """Clear the port's mask; an event that waited behind it is selected now (Xen: evtchn_2l_unmask)."""
        shared = self.domain.shared_info
        byte, bit = port >> 3, 1 << (port & 7)
        index = self._mask + byte
        if shared[index] & bit:
            shared[index] &= ~bit
            if shared[self._pending + byte] & bit:
                self._select(vcpu, port)

    def mask(self, port: int) -> None:
        """Set the port's mask: its events wait until it is unmasked."""
        self.domain.shared_info[self._mask + (port >> 3)] |= 1 << (port & 7)

    def is_pending(self, port: int) -> bool:
        """Is the port's event waiting to be taken?"""
        return bool(self.domain.shared_info[self._pending + (port >> 3)] & 1 << (port & 7))

    def is_masked(self, port: int) -> bool:
        """Does the port's mask hold its event back?"""
        return bool(self.domain.shared_info[self._mask + (port >> 3)] & 1 << (port & 7))

    def is_busy(self, _port: int) -> bool:
        """A port that is closed can be given away at once."""
        return False

    def start(self, port: int) -> None:
        """The port has just been bound."""

    def select_all(self, vcpu: Vcpu) -> None:
        """Make the vCPU look at every word, because its vcpu_info has moved (Xen: map_vcpu_info)."""
        select_all(vcpu)

    def _select(self, vcpu: Vcpu, port: int) -> None:
        """Set the selector bit of the port's word and, if nothing was selected before, ask for an upcall."""
        info = vcpu.info
        word = port >> self._word_shift
        index = self._selector + (word >> 3)
        bit = 1 << (word & 7)
        if not info[index] & bit:
            info[index] |= bit
            if not info[0]:
                mark_events_pending(vcpu, port)


def select_all(vcpu: Vcpu) -> None:
    """Set all of a vCPU's selector word."""
    layout = LAYOUT32 if vcpu.width == 32 else LAYOUT64
    start = layout.VCPU_INFO_evtchn_pending_sel
    vcpu.info[start : start + layout.WORD_SIZE] = b"\xff" * layout.WORD_SIZE


def mark_events_pending(vcpu: Vcpu, port: int) -> None:
    """Ask for an upcall; a blocked vCPU wakes even while it masks upcalls (Xen: vcpu_mark_events_pending)."""
    info = vcpu.info
    info[0] = 1
    if info[1]:
        hv = vcpu.hv
        hv.put(hv.clock.now(), 0, Kind.EVENT_MASKED, vcpu.id, vcpu.domain.id, port, MaskedBy.VCPU, 0, 0, 0, 0)
    kick(vcpu, port)
