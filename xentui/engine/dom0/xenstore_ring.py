"""A guest's end of xenstore: the shared page with its two rings (struct xenstore_domain_interface of xs_wire.h).

The guest owns the page too and may write anything there at any time: indices are read once and checked, and a client
that breaks the protocol is ignored from then on, as Xen's daemon does (ignore_connection in tools/xenstored).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from xentui.engine.dom0.xenstore import HEADER, Store
from xentui.engine.xen.abi.io import xs_wire
from xentui.engine.xen.abi.layout import Layout

#: requests are not taken while so many messages wait for the guest to read them
MAX_OUTSTANDING = 20

_SIZE = xs_wire.XENSTORE_RING_SIZE
_REQUESTS, _RESPONSES = Layout.XENSTORE_DOMAIN_INTERFACE_req, Layout.XENSTORE_DOMAIN_INTERFACE_rsp
# both indices of a ring lie side by side: consumer, producer
_REQUEST_INDICES, _RESPONSE_INDICES = (
    Layout.XENSTORE_DOMAIN_INTERFACE_req_cons,
    Layout.XENSTORE_DOMAIN_INTERFACE_rsp_cons,
)
_INDICES, _WORD = Struct("<II"), Struct("<I")


class XenstoreConnection:
    """Moves bytes between the rings of one domain and its connection to the store."""

    def __init__(self, store: Store, domid: int, page: memoryview, notify: Callable[[], None]) -> None:
        """Connect `domid` by its xenstore page (4096 writable bytes); `notify` sends its event channel's event."""
        self.page = page.cast("B")
        self.notify = notify
        self.store = store
        self.connection = store.connect(domid)
        self.connection.on_restart = self._empty
        self.connection.on_event = self.poll
        self._incoming = bytearray()
        self._unsent = b""
        self._polling = False
        #: the guest broke the protocol: nothing is read or written any more
        self.ignored = False

    def poll(self) -> None:
        """Take what requests the guest has put into its ring, serve them, and put replies and events into the other."""
        if self._polling:
            return  # a request that is being served has caused an event for the client itself
        moved, self._polling = False, True
        while not (self.ignored or self.connection.closed) and (self._send() | self._receive()):
            moved = True
        self._polling = False
        if moved:
            self.notify()

    def close(self) -> None:
        """Disconnect, when the domain is gone; the page is not touched any more."""
        self.store.disconnect(self.connection)

    def _empty(self) -> None:
        """Empty both rings and listen again to a client that was ignored."""
        self._incoming.clear()
        self._unsent = b""
        self.ignored = False
        _INDICES.pack_into(self.page, _REQUEST_INDICES, 0, 0)
        _INDICES.pack_into(self.page, _RESPONSE_INDICES, 0, 0)

    def _receive(self) -> bool:
        """Take what is in the request ring and serve the requests that are complete; say whether there was anything."""
        if len(self.connection.outgoing) >= MAX_OUTSTANDING:
            return False
        consumer, producer = _INDICES.unpack_from(self.page, _REQUEST_INDICES)
        count = producer - consumer & 0xFFFF_FFFF
        if count == 0:
            return False
        if count > _SIZE:
            self._ignore(xs_wire.XENSTORE_ERROR_RINGIDX)
            return False
        start = consumer % _SIZE
        count = min(count, _SIZE - start, self._wanted())
        self._incoming += self.page[_REQUESTS + start : _REQUESTS + start + count]
        _WORD.pack_into(self.page, _REQUEST_INDICES, consumer + count & 0xFFFF_FFFF)
        self._serve()
        return True

    def _wanted(self) -> int:
        """Return how many bytes are missing to the header or to the end of the message that is being read."""
        have = len(self._incoming)
        if have < HEADER.size:
            return HEADER.size - have
        return HEADER.size + int(HEADER.unpack_from(self._incoming)[3]) - have

    def _serve(self) -> None:
        """Serve the message that has been read, if it is complete."""
        if len(self._incoming) < HEADER.size:
            return
        kind, request_id, transaction_id, length = HEADER.unpack_from(self._incoming)
        if length > xs_wire.XENSTORE_PAYLOAD_MAX:
            self._ignore(xs_wire.XENSTORE_ERROR_PROTO)
        elif len(self._incoming) == HEADER.size + length:
            payload = bytes(self._incoming[HEADER.size :])
            self._incoming.clear()
            self.connection.handle(kind, request_id, transaction_id, payload)

    def _send(self) -> bool:
        """Put what waits to be sent into the response ring as far as there is room; say whether anything was."""
        if not self._unsent and not self.connection.outgoing:
            return False
        consumer, producer = _INDICES.unpack_from(self.page, _RESPONSE_INDICES)
        used = producer - consumer & 0xFFFF_FFFF
        if used == _SIZE:
            return False
        if used > _SIZE:
            self._ignore(xs_wire.XENSTORE_ERROR_RINGIDX)
            return False
        if not self._unsent:
            self._unsent = self.connection.take()
        start = producer % _SIZE
        chunk = self._unsent[: min(_SIZE - used, _SIZE - start)]
        self.page[_RESPONSES + start : _RESPONSES + start + len(chunk)] = chunk
        self._unsent = self._unsent[len(chunk) :]
        _WORD.pack_into(self.page, _RESPONSE_INDICES + 4, producer + len(chunk) & 0xFFFF_FFFF)
        return True

    def _ignore(self, error: int) -> None:
        """Stop serving a client that broke the protocol, and say why in its page."""
        self.ignored = True
        self.connection.reset()
        self._incoming.clear()
        self._unsent = b""
        _WORD.pack_into(self.page, Layout.XENSTORE_DOMAIN_INTERFACE_error, error)
