"""The tree that xenstore keeps: nodes, who may see them, generations, and transactions on it.

Behaviour is that of Xen's C daemon (tools/xenstored/core.c and transaction.c of Xen 4.17): a write gives a node a new
generation; a transaction works on private copies of what it touched and is refused with EAGAIN at its end when a node
that it read has got another generation meanwhile.
"""

from __future__ import annotations

from typing import NamedTuple

from xentui.engine.xen.abi.io.xs_wire import XENSTORE_REL_PATH_MAX

PERM_NONE, PERM_READ, PERM_WRITE, PERM_OWNER = 0, 1, 2, 4
#: quota on the nodes that one transaction of an unprivileged domain may touch
MAX_TRANSACTION_NODES = 1024

_LETTERS = {"n": PERM_NONE, "r": PERM_READ, "w": PERM_WRITE, "b": PERM_READ | PERM_WRITE}
_LETTER_OF = {access: letter for letter, access in _LETTERS.items()}
_PATH_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@")
_DOMAINS = "/local/domain/"
_SPACE = " \t\n\v\f\r"
# bytes that the daemon stores with a node and with each of its permissions, which its size quota counts
_RECORD_HEADER, _RECORD_PERMISSION = 24, 8


class XenstoreError(Exception):
    """A request is refused; `name` is the error's name as it goes over the wire, such as ENOENT."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Permission(NamedTuple):
    """What one domain may do with a node. The first of a node names its owner and what all others may do."""

    domid: int
    #: PERM_READ and PERM_WRITE, or neither
    access: int


Permissions = tuple[Permission, ...]


def parse_permission(text: str) -> Permission:
    """Read "r5": a letter (n, r, w, b) and a domain number, as C's strtol with base 0 reads it. Else raises EINVAL."""
    number = text[1:].lstrip(_SPACE).lower()
    digits = number[1:] if number[:1] in ("+", "-") else number
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
    allowed = {16: "0123456789abcdef", 8: "01234567", 10: "0123456789"}[base]
    digits = digits[2:] if base == 16 else digits
    if text[:1] not in _LETTERS or not digits or not set(digits) <= set(allowed):
        raise XenstoreError("EINVAL")
    value = int(digits, base)
    return Permission((-value if number.startswith("-") else value) & 0xFFFF_FFFF, _LETTERS[text[0]])


def format_permission(permission: Permission) -> str:
    """Write a permission the way GET_PERMS returns it."""
    return f"{_LETTER_OF[permission.access]}{permission.domid}"


def is_valid_path(path: str) -> bool:
    """Say whether a path is absolute, well formed and not too long; the prefix to a domain's own part is free."""
    if not path.startswith("/") or "//" in path or not _PATH_CHARACTERS.issuperset(path):
        return False
    if path.endswith("/") and path != "/":
        return False
    limit = XENSTORE_REL_PATH_MAX
    if path.startswith(_DOMAINS):
        number, slash, _ = path[len(_DOMAINS) :].partition("/")
        if slash and number.isdigit() and len(number) <= 5:
            limit += len(_DOMAINS) + len(number) + 1
    return len(path) <= limit


def parent_of(path: str) -> str:
    """Return the path of a node's parent; the root is its own."""
    return path[: path.rfind("/")] or "/"


def is_below(path: str, ancestor: str) -> bool:
    """Say whether `path` is `ancestor` or lies under it."""
    return ancestor == "/" or path == ancestor or path.startswith(ancestor + "/")


class Node:
    """One node. Never changed once made, so that a transaction can keep the one it saw."""

    __slots__ = ("children", "data", "generation", "permissions")

    def __init__(self, data: bytes, children: tuple[str, ...], permissions: Permissions, generation: int = 0) -> None:
        """Make a node; `children` are names in the order in which they were made, the tree gives the generation."""
        self.data = data
        self.children = children
        self.permissions = permissions
        self.generation = generation

    @property
    def owner(self) -> int:
        """The domain that owns it."""
        return self.permissions[0].domid

    @property
    def stored_size(self) -> int:
        """Bytes that the daemon's database takes for it, which the quota on an entry's size counts."""
        names = sum(map(len, self.children)) + len(self.children)
        return _RECORD_HEADER + _RECORD_PERMISSION * len(self.permissions) + len(self.data) + names

    def written(self, generation: int) -> Node:
        """Return this node as a write of that generation leaves it."""
        return Node(self.data, self.children, self.permissions, generation)


class Tree:
    """The nodes that everybody sees, and how many of them each domain owns."""

    def __init__(self) -> None:
        """Start with the nodes that the daemon makes at its own start."""
        self.nodes: dict[str, Node] = {}
        self.generation = 0
        self.owned: dict[int, int] = {}
        nobody: Permissions = (Permission(0, PERM_NONE),)
        for path, children in (("/", ("tool",)), ("/tool", ("xenstored",)), ("/tool/xenstored", ())):
            self.put(path, Node(b"", children, nobody))

    def next_generation(self) -> int:
        """Hand out a generation; none is given twice."""
        self.generation += 1
        return self.generation - 1

    def get(self, path: str) -> Node | None:
        """Return the node at `path`, if there is one."""
        return self.nodes.get(path)

    def put(self, path: str, node: Node) -> None:
        """Make or replace the node at `path`."""
        old = self.nodes.get(path)
        if old is not None:
            self.owned[old.owner] -= 1
        self.nodes[path] = node.written(self.next_generation())
        self.owned[node.owner] = self.owned.get(node.owner, 0) + 1

    def delete(self, path: str) -> None:
        """Remove the node at `path`; the caller removes what is below it and its name from its parent."""
        self.owned[self.nodes.pop(path).owner] -= 1
        self.next_generation()


class Access:
    """What a transaction knows of one path it touched."""

    __slots__ = ("event_exact", "modified", "node", "permissions", "read", "seen")

    def __init__(self, node: Node | None, read: bool) -> None:
        """Note the node as first seen; `read` says whether the end depends on its being as it was."""
        self.node = node
        self.read = read
        #: generation when first seen, None when it was not there
        self.seen = node.generation if node else None
        #: permissions when first read: who could see the node then hears of its removal
        self.permissions = node.permissions if node and read else None
        self.modified = False
        #: event to send at the end: None for none, or whether it is for watches of exactly this path only
        self.event_exact: bool | None = None


class Transaction:
    """A client's transaction: a private view of the nodes that it touched."""

    __slots__ = ("accessed", "failed", "limited", "owned", "tree")

    def __init__(self, tree: Tree, limited: bool) -> None:
        """Begin on `tree`; `limited` says whether the quota on touched nodes applies."""
        self.tree = tree
        self.limited = limited
        self.accessed: dict[str, Access] = {}
        #: by owner, how many nodes more (or less) it will own
        self.owned: dict[int, int] = {}
        #: a write failed half way: the end can only refuse
        self.failed = False

    def get(self, path: str) -> Node | None:
        """Return the node as this transaction sees it, and remember that it was read."""
        access = self.accessed.get(path)
        if access is None:
            access = self._touch(path, Access(self.tree.get(path), read=True))
        return access.node

    def put(self, path: str, node: Node) -> None:
        """Make or replace a node in this view."""
        access = self._for_writing(path)
        self._count(access.node, node)
        access.node, access.modified = node.written(self.tree.next_generation()), True

    def delete(self, path: str) -> None:
        """Remove a node from this view."""
        access = self._for_writing(path)
        self._count(access.node, None)
        access.node, access.modified = None, True

    def queue_event(self, path: str, exact: bool) -> None:
        """Remember to tell watchers of `path` when the transaction succeeds."""
        self.accessed[path].event_exact = exact

    def conflicts(self) -> bool:
        """Say whether a node that was read has changed, come or gone since."""
        return any(
            access.seen != (node.generation if (node := self.tree.get(path)) else None)
            for path, access in self.accessed.items()
            if access.read
        )

    def apply(self) -> list[tuple[str, bool, Permissions | None]]:
        """Make the changes visible; return path, exactness and old permissions of the events that are due, in order."""
        events = []
        for path, access in self.accessed.items():
            if access.modified:
                if access.node is not None:
                    self.tree.put(path, access.node)
                elif self.tree.get(path) is not None:
                    self.tree.delete(path)
            if access.event_exact is not None:
                events.append((path, access.event_exact, access.permissions))
        return events

    def _touch(self, path: str, access: Access) -> Access:
        """Enter a path among the accessed ones, if the quota lets it."""
        if self.limited and len(self.accessed) >= MAX_TRANSACTION_NODES:
            self.failed = True
            raise XenstoreError("ENOSPC")
        self.accessed[path] = access
        return access

    def _for_writing(self, path: str) -> Access:
        """Return the entry of a path about to be written; not having been read, it need not stay as it was."""
        access = self.accessed.get(path)
        return access or self._touch(path, Access(self.tree.get(path), read=False))

    def _count(self, old: Node | None, new: Node | None) -> None:
        """Note the change in how many nodes the owners have."""
        if old is not None:
            self.owned[old.owner] = self.owned.get(old.owner, 0) - 1
        if new is not None:
            self.owned[new.owner] = self.owned.get(new.owner, 0) + 1


#: what a request works on: the tree itself, or a transaction on it
View = Tree | Transaction
