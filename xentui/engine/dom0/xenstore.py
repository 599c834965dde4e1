"""xenstore: the tree of configuration and status that domains and the control domain share, with watches on it.

A `Store` is the daemon. Guests reach it through a `Connection` (the shared ring of xenstore_ring.py feeds it), the
control domain's own parts (domain builder, back ends, toolstack) through the methods of `Store`. What each request does
is in xenstore_requests.py. Nothing here depends on time or on hashing: the same requests give the same replies and
events in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from struct import Struct

from xentui.engine.dom0 import xenstore_requests
from xentui.engine.dom0.xenstore_tree import (
    PERM_NONE,
    PERM_OWNER,
    PERM_READ,
    PERM_WRITE,
    Node,
    Permission,
    Permissions,
    Transaction,
    Tree,
    XenstoreError,
    is_below,
    is_valid_path,
    parent_of,
)
from xentui.engine.xen.abi import errno
from xentui.engine.xen.abi.io.xs_wire import XENSTORE_PAYLOAD_MAX, XS_ERROR, XS_WATCH_EVENT

HEADER = Struct("<IIII")
#: a domain's hard memory quota: events beyond it are not kept for a client that does not read them
MAX_QUEUED_BYTES = 5 << 19

_SPECIAL = ("@introduceDomain", "@releaseDomain")


class Connection:
    """A client of the store: what it watches, its transactions, and what is to be sent to it."""

    def __init__(self, store: Store, domid: int) -> None:
        """Connect `domid`; domain 0 is privileged."""
        self.store = store
        self.domid = domid
        self.privileged = domid == 0
        self.implicit_path = f"/local/domain/{domid}"
        #: domain whose permissions it has as well as its own (SET_TARGET: a device model's)
        self.target: int | None = None
        self.watches: list[xenstore_requests.Watch] = []
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 0
        #: whole messages, header included, in the order in which they are to be sent
        self.outgoing: deque[bytes] = deque()
        self.queued_bytes = 0
        self._queued_events: set[bytes] = set()
        #: what carries the messages empties its rings when the domain is introduced again
        self.on_restart: Callable[[], None] | None = None
        #: what carries the messages is told of every event, which comes without a request
        self.on_event: Callable[[], None] | None = None
        #: disconnected: nothing comes of further requests
        self.closed = False

    def handle(self, kind: int, request_id: int, transaction_id: int, payload: bytes) -> None:
        """Serve one request: queue its events and its reply. Never raises: errors go to the client."""
        result = 0
        try:
            reply, late_events = xenstore_requests.serve(self, kind, transaction_id, payload)
            if len(reply) > XENSTORE_PAYLOAD_MAX:
                raise XenstoreError("E2BIG")
        except XenstoreError as error:
            result = -int(getattr(errno, error.name))
            self._queue(XS_ERROR, request_id, transaction_id, error.name.encode() + b"\0")
        else:
            self._queue(kind, request_id, transaction_id, reply)
            for path, token in late_events:
                self.send_event(path, token)
        if self.store.on_request is not None:
            self.store.on_request(self.domid, kind, request_id, transaction_id, len(payload), result)

    def access_to(self, permissions: Permissions) -> int:
        """Return the PERM_* bits that this client has by a node's permissions."""
        ids = (self.domid,) if self.target is None else (self.domid, self.target)
        if self.privileged or permissions[0].domid in ids:
            return PERM_READ | PERM_WRITE | PERM_OWNER
        for permission in permissions[1:]:
            if permission.domid in ids:
                return permission.access
        return permissions[0].access

    def send_event(self, path: str, token: bytes) -> None:
        """Queue a watch event; one that says the same as an unsent one is not repeated, an over-long one not sent."""
        payload = path.encode() + b"\0" + token + b"\0"
        if len(payload) > XENSTORE_PAYLOAD_MAX or payload in self._queued_events:
            return
        if self.queued_bytes + len(payload) > MAX_QUEUED_BYTES:
            return
        self._queued_events.add(payload)
        self._queue(XS_WATCH_EVENT, 0, 0, payload)
        if self.on_event is not None:
            self.on_event()

    def take(self) -> bytes:
        """Return the next message to send and forget it. Raises IndexError when there is none."""
        message = self.outgoing.popleft()
        self.queued_bytes -= len(message)
        if HEADER.unpack_from(message)[0] == XS_WATCH_EVENT:
            self._queued_events.discard(message[HEADER.size :])
        return message

    def reset(self) -> None:
        """Forget watches, transactions and what was to be sent."""
        self.watches.clear()
        self.transactions.clear()
        self.outgoing.clear()
        self._queued_events.clear()
        self.queued_bytes = 0

    def restart(self) -> None:
        """Begin anew, as when the domain is introduced again."""
        self.reset()
        if self.on_restart is not None:
            self.on_restart()

    def _queue(self, kind: int, request_id: int, transaction_id: int, payload: bytes) -> None:
        """Append one message to what is to be sent."""
        self.outgoing.append(HEADER.pack(kind, request_id, transaction_id, len(payload)) + payload)
        self.queued_bytes += HEADER.size + len(payload)


class Store:
    """The daemon: the tree, who is connected, and which domains have been introduced."""

    def __init__(self) -> None:
        """Start with an almost empty tree and domain 0."""
        self.tree = Tree()
        self.connections: list[Connection] = []
        #: introduced domains, and whether each is known to have shut down
        self.domains: dict[int, bool] = {0: False}
        self.special: dict[str, Permissions] = {name: (Permission(0, PERM_NONE),) for name in _SPECIAL}
        #: told of every request: domain, XS_* kind, request, transaction, payload bytes, 0 or a negative error number
        self.on_request: Callable[[int, int, int, int, int, int], None] | None = None
        self._listeners: list[tuple[str, Callable[[str], None]]] = []

    # ---- clients and domains

    def connect(self, domid: int) -> Connection:
        """Connect a domain's client and return its connection."""
        connection = Connection(self, domid)
        self.connections.append(connection)
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Forget a client."""
        connection.reset()
        connection.closed = True
        if connection in self.connections:
            self.connections.remove(connection)

    def connection_of(self, domid: int) -> Connection | None:
        """Return the connection of a domain, if it has one."""
        return next((connection for connection in self.connections if connection.domid == domid), None)

    def introduce(self, domid: int) -> None:
        """Enter a domain, so that nodes can belong to it, and tell those who watch @introduceDomain."""
        known = domid in self.domains
        self.domains[domid] = False
        if not known:
            self.fire_special("@introduceDomain")

    def shut_down(self, domid: int) -> None:
        """Note that a domain has shut down, and tell those who watch @releaseDomain once."""
        if self.domains.get(domid) is False:
            self.domains[domid] = True
            self.fire_special("@releaseDomain")

    def release(self, domid: int) -> None:
        """Forget a domain: its connections, the nodes it owns and what it was allowed; tell @releaseDomain."""
        for connection in [connection for connection in self.connections if connection.domid == domid]:
            self.disconnect(connection)
        if self.domains.pop(domid, None) is None:
            return
        for path, node in list(self.tree.nodes.items()):
            if path in self.tree.nodes and node.owner == domid:
                self.remove(path)
        for path, node in list(self.tree.nodes.items()):
            owner, *others = node.permissions
            kept = [permission for permission in others if permission.domid != domid]
            if len(kept) != len(others):
                self.tree.put(path, Node(node.data, node.children, (owner, *kept)))
        self.fire_special("@releaseDomain")

    # ---- the control domain's own access

    def read(self, path: str) -> bytes | None:
        """Return a node's value, None when there is no such node."""
        node = self.tree.get(path)
        return node.data if node else None

    def list(self, path: str) -> list[str]:
        """Return the names of a node's children; none when there is no such node."""
        node = self.tree.get(path)
        return [*node.children] if node else []

    def write(self, path: str, value: bytes | str = b"", permissions: Permissions | None = None) -> None:
        """Make or change a node, and its parents where missing; give it `permissions`, else keep or inherit them."""
        if not is_valid_path(path):
            raise ValueError(f"xenstore: {path!r} is not a valid path")
        data = value.encode() if isinstance(value, str) else value
        node = self.tree.get(path) or xenstore_requests.create(self.tree, None, path, data)
        old_permissions = node.permissions
        node = Node(data, node.children, permissions or old_permissions)
        self.tree.put(path, node)
        self.fire(None, path, node, exact=False, old_permissions=old_permissions)

    def remove(self, path: str) -> None:
        """Remove a node and all below it; nothing happens when there is none."""
        if self.tree.get(path) is not None and path != "/":
            xenstore_requests.remove_subtree(self, None, path)

    def listen(self, path: str, callback: Callable[[str], None]) -> None:
        """Call `callback` with the path of each change at or below `path`, within the change itself."""
        self._listeners.append((path, callback))

    # ---- events

    def fire(
        self,
        transaction: Transaction | None,
        path: str,
        node: Node | None,
        exact: bool,
        old_permissions: Permissions | None = None,
    ) -> None:
        """Tell everybody who watches `path` and may know of it; within a transaction, at its end.

        `exact`: only watches of this very path (its parents' watchers hear of what they watch themselves). `node` is as
        it was when it has just been removed; None means: as it is now.
        """
        if transaction is not None:
            transaction.queue_event(path, exact)
            return
        for connection in self.connections:
            if connection.watches and self._may_know(connection, path, node, old_permissions):
                for watch in connection.watches:
                    if path == watch.path or (not exact and is_below(path, watch.path)):
                        connection.send_event(watch.event_path(path), watch.token)
        for watched, callback in self._listeners:
            if path == watched or (not exact and is_below(path, watched)):
                callback(path)

    def fire_special(self, name: str) -> None:
        """Tell those who watch the appearance or disappearance of domains, and are allowed to."""
        for connection in self.connections:
            if connection.access_to(self.special[name]) & PERM_READ:
                for watch in connection.watches:
                    if watch.path == name:
                        connection.send_event(name, watch.token)
        for watched, callback in self._listeners:
            if watched == name:
                callback(name)

    def _may_know(
        self, connection: Connection, path: str, node: Node | None, old_permissions: Permissions | None
    ) -> bool:
        """Say whether a client may hear of a change: who can, or could, read the node, or can read its parent."""
        if old_permissions is not None and connection.access_to(old_permissions) & PERM_READ:
            return True
        node = node or self.tree.get(path)
        if node is None:
            return False
        parent = self.tree.get(parent_of(path))
        nodes = (node, parent) if parent else (node,)
        return any(connection.access_to(each.permissions) & PERM_READ for each in nodes)
