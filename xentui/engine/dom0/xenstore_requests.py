"""What each xenstore request does: one function a request, named as in xs_wire.h.

Errors, their order and the quotas are those of Xen's C daemon (tools/xenstore of Xen 4.17). A function gets a `Request`
and returns the reply's payload; it raises XenstoreError for the client to get the error instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from xentui.engine.dom0.xenstore_tree import (
    PERM_OWNER,
    PERM_READ,
    PERM_WRITE,
    Node,
    Permission,
    Transaction,
    View,
    XenstoreError,
    format_permission,
    is_valid_path,
    parent_of,
    parse_permission,
)
from xentui.engine.xen.abi.core import DOMID_SELF
from xentui.engine.xen.abi.io import xs_wire

if TYPE_CHECKING:
    from xentui.engine.dom0.xenstore import Connection, Store

# quotas of unprivileged domains, the daemon's defaults
MAX_NODES = 1000
MAX_NODE_SIZE = 2048
MAX_WATCHES = 128
MAX_TRANSACTIONS = 10
MAX_PERMISSIONS = 5

OK = b"OK\0"


class Watch:
    """One registered watch of a client."""

    __slots__ = ("path", "skip", "token")

    def __init__(self, path: str, token: bytes, skip: int) -> None:
        """Watch `path` and what is below it; the first `skip` characters are left out of events (relative watches)."""
        self.path = path
        self.token = token
        self.skip = skip

    def event_path(self, path: str) -> str:
        """Return the path as an event of this watch names it."""
        return path[self.skip :].removeprefix("/") if self.skip else path


class Request:
    """One request being served."""

    __slots__ = ("connection", "late_events", "payload", "store", "transaction")

    def __init__(self, connection: Connection, transaction: Transaction | None, payload: bytes) -> None:
        """Bind a request's payload to the client and transaction that it comes from."""
        self.connection = connection
        self.store: Store = connection.store
        self.transaction = transaction
        self.payload = payload
        #: path and token of events that follow the reply
        self.late_events: list[tuple[str, bytes]] = []

    @property
    def view(self) -> View:
        """The tree, or the transaction that the request is part of."""
        return self.store.tree if self.transaction is None else self.transaction

    def strings(self) -> list[bytes]:
        """Return the strings of the payload, each ended by a NUL; what follows the last NUL is ignored."""
        return self.payload.split(b"\0")[:-1]

    def one_string(self) -> bytes:
        """Return the payload's only string; EINVAL if it is not one that a single NUL ends."""
        if self.payload.find(b"\0") != len(self.payload) - 1 or not self.payload:
            raise XenstoreError("EINVAL")
        return self.payload[:-1]

    def canonical(self, name: bytes) -> str:
        """Return the absolute path of a name, which is relative to the client's own unless it begins with / or @."""
        text = name.decode("latin-1")
        return text if text.startswith(("/", "@")) else f"{self.connection.implicit_path}/{text}"

    def path(self, name: bytes) -> str:
        """Return the absolute path of a name, EINVAL if it is not valid."""
        path = self.canonical(name)
        if not is_valid_path(path):
            raise XenstoreError("EINVAL")
        return path

    def node(self, path: str, access: int) -> Node:
        """Return the node at `path`, to which the client needs `access`.

        ENOENT is given only to those who would have that access to the nearest node above: nobody learns from errors
        what exists where he may not look. Others get EACCES.
        """
        node = self.view.get(path)
        if node is not None and self.connection.access_to(node.permissions) & access == access:
            return node
        above, above_path = None, path
        while above is None:
            above_path = parent_of(above_path)
            above = self.view.get(above_path)
        allowed = self.connection.access_to(above.permissions) & access
        raise XenstoreError("ENOENT" if node is None and allowed else "EACCES")

    def existing(self, path: str, access: int) -> Node | None:
        """Return the node at `path`, None when it is missing and the client may know that."""
        try:
            return self.node(path, access)
        except XenstoreError as error:
            if error.name != "ENOENT":
                raise
            return None

    def put(self, path: str, node: Node) -> None:
        """Write a node, if its size is within the client's quota."""
        if not self.connection.privileged and node.stored_size >= MAX_NODE_SIZE:
            refuse_write(self.transaction)
        self.view.put(path, node)

    def fire(self, path: str, node: Node | None) -> None:
        """Tell the watchers of `path` and of what is above it."""
        self.store.fire(self.transaction, path, node, exact=False)


def serve(
    connection: Connection, kind: int, transaction_id: int, payload: bytes
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Serve one request; return the reply's payload and the events to send after it."""
    handler = _HANDLERS.get(kind)
    if handler is None:
        raise XenstoreError("ENOSYS")
    if handler in _PRIVILEGED and not connection.privileged:
        raise XenstoreError("EACCES")
    transaction = None
    if transaction_id != 0 and handler not in _WITHOUT_TRANSACTION:
        transaction = connection.transactions.get(transaction_id)
        if transaction is None:
            raise XenstoreError("ENOENT")
    request = Request(connection, transaction, payload)
    return handler(request), request.late_events


def refuse_write(transaction: Transaction | None) -> NoReturn:
    """Refuse a write beyond a quota; a transaction that it is part of can no longer succeed."""
    if transaction is not None:
        transaction.failed = True
    raise XenstoreError("ENOSPC")


def create(view: View, request: Request | None, path: str, data: bytes) -> Node:
    """Make a node and those missing above it; without a request the control domain makes them.

    They inherit the permissions of the nearest node above, but a guest owns what it creates.
    """
    missing, above_path = [path], parent_of(path)
    while (above := view.get(above_path)) is None:
        missing.append(above_path)
        above_path = parent_of(above_path)
    permissions = above.permissions
    guest = request.connection if request and not request.connection.privileged else None
    if guest is not None:
        permissions = (Permission(guest.domid, permissions[0].access), *permissions[1:])
    writes, children = [(path, Node(data, (), permissions))], (path.rpartition("/")[2],)
    for each in missing[1:]:
        writes.append((each, Node(b"", children, permissions)))
        children = (each.rpartition("/")[2],)
    writes.append((above_path, Node(above.data, above.children + children, above.permissions)))
    if guest is not None and request is not None:
        owned = guest.store.tree.owned.get(guest.domid, 0)
        more = 1 if request.transaction else len(missing)  # a transaction's own nodes are counted at its end
        if owned + more > MAX_NODES or any(node.stored_size >= MAX_NODE_SIZE for _, node in writes):
            refuse_write(request.transaction)
    for each, node in writes:
        view.put(each, node)
    return writes[0][1]


def remove_subtree(store: Store, transaction: Transaction | None, path: str) -> None:
    """Remove a node that exists and all below it, the lowest first; watchers below hear of their own node only."""
    view: View = store.tree if transaction is None else transaction
    order, pending = [], [path]
    while pending:  # parents before children here, last child first: read backwards it is the order of removal
        each = pending.pop()
        node = view.get(each)
        if node is not None:
            order.append((each, node))
            pending.extend(f"{each}/{name}" for name in node.children)
    above_path, name = parent_of(path), path.rpartition("/")[2]
    above = view.get(above_path)
    if above is not None:
        view.put(above_path, Node(above.data, tuple(c for c in above.children if c != name), above.permissions))
    for each, node in reversed(order):
        view.delete(each)
        store.fire(transaction, each, node, exact=each != path)


def _directory(request: Request) -> bytes:
    """Return the names of a node's children."""
    node = request.node(request.path(request.one_string()), PERM_READ)
    return "".join(f"{name}\0" for name in node.children).encode()


def _directory_part(request: Request) -> bytes:
    """Return the node's generation and those names from a byte offset on that fit; an empty name ends the list."""
    strings = request.strings()
    if len(strings) != 2:
        raise XenstoreError("EINVAL")
    node = request.node(request.path(strings[0]), PERM_READ)
    names = "".join(f"{name}\0" for name in node.children).encode()
    generation = b"%d\0" % node.generation
    offset = _number(strings[1])
    if offset >= len(names):
        return generation + b"\0"
    room = xs_wire.XENSTORE_PAYLOAD_MAX - len(generation) - 1
    end = offset
    while end < len(names) and names.index(b"\0", end) - offset < room:
        end = names.index(b"\0", end) + 1
    return generation + names[offset:end] + (b"\0" if end == len(names) else b"")


def _read(request: Request) -> bytes:
    """Return a node's value."""
    return request.node(request.path(request.one_string()), PERM_READ).data


def _write(request: Request) -> bytes:
    """Set a node's value; make it, and what is missing above it, when it does not exist."""
    name, nul, data = request.payload.partition(b"\0")
    if not nul:
        raise XenstoreError("EINVAL")
    path = request.path(name)
    node = request.existing(path, PERM_WRITE)
    if node is None:
        node = create(request.view, request, path, data)
    else:
        node = Node(data, node.children, node.permissions)
        request.put(path, node)
    request.fire(path, node)
    return OK


def _mkdir(request: Request) -> bytes:
    """Make an empty node; fine when it exists."""
    path = request.path(request.one_string())
    if request.existing(path, PERM_WRITE) is None:
        request.fire(path, create(request.view, request, path, b""))
    return OK


def _rm(request: Request) -> bytes:
    """Remove a node and all below it; fine when it does not exist but its parent does."""
    path = request.path(request.one_string())
    if request.existing(path, PERM_WRITE) is None:
        if request.view.get(parent_of(path)) is None:
            raise XenstoreError("ENOENT")
        return OK
    if path == "/":
        raise XenstoreError("EINVAL")
    remove_subtree(request.store, request.transaction, path)
    return OK


def _get_perms(request: Request) -> bytes:
    """Return a node's permissions, the owner's first."""
    node = request.node(request.path(request.one_string()), PERM_READ)
    return "".join(f"{format_permission(permission)}\0" for permission in node.permissions).encode()


def _set_perms(request: Request) -> bytes:
    """Replace a node's permissions; for its owner, who cannot give it away, and for the control domain."""
    strings = request.strings()
    if len(strings) < 2:
        raise XenstoreError("EINVAL")
    connection, store = request.connection, request.store
    if not connection.privileged and len(strings) - 1 > MAX_PERMISSIONS:
        raise XenstoreError("ENOSPC")
    permissions = tuple(parse_permission(text.decode("latin-1")) for text in strings[1:])
    if permissions[0].domid not in store.domains:
        raise XenstoreError("ENOENT")
    # a domain that does not exist gets nothing, nor will a later one that has its number
    permissions = (permissions[0], *[each for each in permissions[1:] if each.domid in store.domains])
    if strings[0].startswith(b"@"):
        return _set_special_perms(request, strings[0].decode("latin-1"), permissions)
    path = request.path(strings[0])
    node = request.node(path, PERM_WRITE | PERM_OWNER)
    if not connection.privileged and permissions[0].domid != node.owner:
        raise XenstoreError("EPERM")
    changed = Node(node.data, node.children, permissions)
    request.put(path, changed)
    store.fire(request.transaction, path, changed, exact=False, old_permissions=node.permissions)
    return OK


def _set_special_perms(request: Request, name: str, permissions: tuple[Permission, ...]) -> bytes:
    """Say who may watch the introduction or the release of domains."""
    special = request.store.special
    if name not in special:
        raise XenstoreError("EINVAL")
    if not request.connection.access_to(special[name]) & PERM_OWNER:
        raise XenstoreError("EACCES")
    special[name] = permissions
    return OK


def _watch(request: Request) -> bytes:
    """Register a watch; its first event comes at once."""
    strings, connection = request.strings(), request.connection
    if len(strings) != 2:
        raise XenstoreError("EINVAL")
    name, token = strings
    if name.startswith(b"@"):
        path = name.decode("latin-1")
        if len(path) > xs_wire.XENSTORE_REL_PATH_MAX or not path.isascii():
            raise XenstoreError("EINVAL")
    else:
        path = request.path(name)
    if any(watch.path == path and watch.token == token for watch in connection.watches):
        raise XenstoreError("EEXIST")
    if not connection.privileged and len(connection.watches) > MAX_WATCHES:
        raise XenstoreError("E2BIG")
    skip = 0 if name.startswith((b"/", b"@")) else len(connection.implicit_path)
    watch = Watch(path, token, skip)
    connection.watches.append(watch)
    request.late_events.append((watch.event_path(path), token))
    return OK


def _unwatch(request: Request) -> bytes:
    """Remove a watch."""
    strings, watches = request.strings(), request.connection.watches
    if len(strings) != 2:
        raise XenstoreError("EINVAL")
    path = request.canonical(strings[0])
    for index, watch in enumerate(watches):
        if watch.path == path and watch.token == strings[1]:
            del watches[index]
            return OK
    raise XenstoreError("ENOENT")


def _reset_watches(request: Request) -> bytes:
    """Remove all watches of the client and end all its transactions."""
    request.connection.watches.clear()
    request.connection.transactions.clear()
    return OK


def _transaction_start(request: Request) -> bytes:
    """Begin a transaction and return its number."""
    connection = request.connection
    if request.transaction is not None:
        raise XenstoreError("EBUSY")
    if not connection.privileged and len(connection.transactions) > MAX_TRANSACTIONS:
        raise XenstoreError("ENOSPC")
    while connection.next_transaction == 0 or connection.next_transaction in connection.transactions:
        connection.next_transaction = connection.next_transaction + 1 & 0xFFFF_FFFF
    number = connection.next_transaction
    connection.transactions[number] = Transaction(request.store.tree, limited=not connection.privileged)
    connection.next_transaction = number + 1 & 0xFFFF_FFFF
    return b"%d\0" % number


def _transaction_end(request: Request) -> bytes:
    """Apply a transaction ("T") or drop it ("F"); EAGAIN when what it read has changed meanwhile."""
    argument, transaction, store = request.one_string(), request.transaction, request.store
    if argument not in (b"T", b"F"):
        raise XenstoreError("EINVAL")
    if transaction is None:
        raise XenstoreError("ENOENT")
    transactions = request.connection.transactions
    request.connection.transactions = {k: v for k, v in transactions.items() if v is not transaction}
    if argument == b"F":
        return OK
    if transaction.failed:
        raise XenstoreError("ENOMEM")
    for owner, more in transaction.owned.items():
        if owner != 0 and store.tree.owned.get(owner, 0) + more >= MAX_NODES:
            raise XenstoreError("ENOSPC")
    if transaction.conflicts():
        raise XenstoreError("EAGAIN")
    for path, exact, permissions in transaction.apply():
        store.fire(None, path, None, exact, permissions)
    return OK


def _get_domain_path(request: Request) -> bytes:
    """Return where a domain's nodes are, whether it exists or not."""
    return b"/local/domain/%d\0" % (_number(request.one_string()) & 0xFFFF_FFFF)


def _is_domain_introduced(request: Request) -> bytes:
    """Say whether a domain has been introduced."""
    domid = _number(request.one_string())
    return b"T\0" if domid == DOMID_SELF or domid in request.store.domains else b"F\0"


def _introduce(request: Request) -> bytes:
    """Connect a domain again from scratch; the domain builder introduces it the first time, with its ring."""
    strings = request.strings()
    if len(strings) < 3 or _number(strings[2]) <= 0:
        raise XenstoreError("EINVAL")
    connection = request.store.connection_of(_number(strings[0]))
    if connection is None:
        raise XenstoreError("ENOENT")
    connection.restart()
    request.store.introduce(connection.domid)
    return OK


def _known_domain(request: Request) -> int:
    """Return the introduced domain, not domain 0, that the payload names."""
    domid = _number(request.one_string())
    if domid == 0:
        raise XenstoreError("EINVAL")
    if domid not in request.store.domains:
        raise XenstoreError("ENOENT")
    return domid


def _release(request: Request) -> bytes:
    """Forget a domain."""
    request.store.release(_known_domain(request))
    return OK


def _resume(request: Request) -> bytes:
    """Note that a domain which had shut down to be suspended runs again."""
    request.store.domains[_known_domain(request)] = False
    return OK


def _set_target(request: Request) -> bytes:
    """Give one domain the permissions of another."""
    strings = request.strings()
    if len(strings) < 2:
        raise XenstoreError("EINVAL")
    connection = request.store.connection_of(_number(strings[0]))
    target = _number(strings[1])
    if connection is None or target not in request.store.domains:
        raise XenstoreError("ENOENT")
    connection.target = target
    return OK


def _control(request: Request) -> bytes:
    """Take a command to the daemon itself: `print` puts text into its log, which is the trace here."""
    strings = request.strings()
    if len(strings) != 2 or strings[0] != b"print":
        raise XenstoreError("EINVAL")
    return OK


def _number(text: bytes) -> int:
    """Read a decimal number the way C's atoi does: up to the first byte that is no digit; 0 when there is none."""
    text = text.lstrip()
    sign = -1 if text.startswith(b"-") else 1
    text = text[1:] if text[:1] in (b"+", b"-") else text
    digits = text[: len(text) - len(text.lstrip(b"0123456789"))]
    return sign * int(digits[:20] or b"0")


_HANDLERS: dict[int, Callable[[Request], bytes]] = {
    xs_wire.XS_CONTROL: _control,
    xs_wire.XS_DIRECTORY: _directory,
    xs_wire.XS_READ: _read,
    xs_wire.XS_GET_PERMS: _get_perms,
    xs_wire.XS_WATCH: _watch,
    xs_wire.XS_UNWATCH: _unwatch,
    xs_wire.XS_TRANSACTION_START: _transaction_start,
    xs_wire.XS_TRANSACTION_END: _transaction_end,
    xs_wire.XS_INTRODUCE: _introduce,
    xs_wire.XS_RELEASE: _release,
    xs_wire.XS_GET_DOMAIN_PATH: _get_domain_path,
    xs_wire.XS_WRITE: _write,
    xs_wire.XS_MKDIR: _mkdir,
    xs_wire.XS_RM: _rm,
    xs_wire.XS_SET_PERMS: _set_perms,
    xs_wire.XS_IS_DOMAIN_INTRODUCED: _is_domain_introduced,
    xs_wire.XS_RESUME: _resume,
    xs_wire.XS_SET_TARGET: _set_target,
    xs_wire.XS_RESET_WATCHES: _reset_watches,
    xs_wire.XS_DIRECTORY_PART: _directory_part,
}
# for the control domain only
_PRIVILEGED = (_control, _introduce, _release, _is_domain_introduced, _resume, _set_target)
# whose transaction number is not looked at
_WITHOUT_TRANSACTION = (_watch, _unwatch)
