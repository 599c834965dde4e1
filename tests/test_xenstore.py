"""The store, its wire protocol and its shared ring, driven the way a guest and the toolstack do."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xentui.engine.dom0.xenstore import Connection, Store
from xentui.engine.dom0.xenstore_domain import introduce_domain, remove_domain
from xentui.engine.dom0.xenstore_requests import MAX_NODES, MAX_TRANSACTIONS, MAX_WATCHES
from xentui.engine.dom0.xenstore_ring import MAX_OUTSTANDING, XenstoreConnection
from xentui.engine.dom0.xenstore_tree import (
    PERM_NONE,
    PERM_READ,
    PERM_WRITE,
    Permission,
    Tree,
    XenstoreError,
    format_permission,
    is_below,
    is_valid_path,
    parse_permission,
)
from xentui.engine.xen.abi.io import xs_wire as xs
from xentui.engine.xen.abi.io.xs_wire import XENSTORE_RING_SIZE

HEADER = struct.Struct("<IIII")
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, ERROR = 2048, 2052, 2056, 2060, 2072
HOME = "/local/domain/1"


def make_store(*domids: int) -> Store:
    """Return a store with domains as the toolstack introduces them."""
    store = Store()
    for domid in domids:
        introduce_domain(
            store,
            domid,
            name=f"guest{domid}",
            uuid=f"00000000-0000-0000-0000-{domid:012}",
            memory_kib=65536,
            maximum_kib=65536,
            vcpus=2,
            store_port=1,
            store_mfn=1000 + domid,
            console_port=2,
            console_mfn=2000 + domid,
        )
    return store


class Client:
    """A client that sends requests straight to its connection and sorts what comes back."""

    def __init__(self, store: Store, domid: int) -> None:
        self.connection: Connection = store.connect(domid)
        self.events: list[tuple[str, str]] = []
        self.next_id = 100

    def raw(self, kind: int, payload: bytes, tx: int = 0) -> tuple[int, bytes]:
        """Send one request; return the reply's kind and payload, keep events."""
        self.next_id += 1
        self.connection.handle(kind, self.next_id, tx, payload)
        reply = None
        while self.connection.outgoing:
            message = self.connection.take()
            answer, request_id, answer_tx, length = HEADER.unpack_from(message)
            assert length == len(message) - HEADER.size
            if answer == xs.XS_WATCH_EVENT:
                path, token, rest = message[HEADER.size :].split(b"\0")
                assert rest == b""
                self.events.append((path.decode(), token.decode()))
            else:
                assert (request_id, answer_tx) == (self.next_id, tx)
                reply = (answer, message[HEADER.size :])
        assert reply is not None
        return reply

    def ask(self, kind: int, *strings: str, tx: int = 0, tail: bytes = b"") -> bytes:
        """Send NUL-ended strings; return the reply's payload or raise the error that it names."""
        payload = b"".join(text.encode() + b"\0" for text in strings) + tail
        answer, reply = self.raw(kind, payload, tx)
        if answer == xs.XS_ERROR:
            raise XenstoreError(reply.rstrip(b"\0").decode())
        assert answer == kind
        return reply

    def read(self, path: str, tx: int = 0) -> str:
        return self.ask(xs.XS_READ, path, tx=tx).decode()

    def write(self, path: str, value: str, tx: int = 0) -> None:
        assert self.ask(xs.XS_WRITE, path, tail=value.encode(), tx=tx) == b"OK\0"

    def list(self, path: str, tx: int = 0) -> list[str]:
        return self.ask(xs.XS_DIRECTORY, path, tx=tx).decode().split("\0")[:-1]

    def watch(self, path: str, token: str) -> None:
        assert self.ask(xs.XS_WATCH, path, token) == b"OK\0"

    def start(self) -> int:
        return int(self.ask(xs.XS_TRANSACTION_START, "")[:-1])

    def end(self, tx: int, commit: bool = True) -> None:
        assert self.ask(xs.XS_TRANSACTION_END, "T" if commit else "F", tx=tx) == b"OK\0"

    def take_events(self) -> list[tuple[str, str]]:
        """Return the events that have come, with those still queued by others' changes."""
        while self.connection.outgoing:
            path, token, _ = self.connection.take()[HEADER.size :].split(b"\0")
            self.events.append((path.decode(), token.decode()))
        events, self.events = self.events, []
        return events


def refused(name: str, request: Callable[[], object]) -> None:
    """Assert that a request is refused with the error `name`."""
    with pytest.raises(XenstoreError) as caught:
        request()
    assert caught.value.name == name


@pytest.fixture
def store() -> Store:
    """A store with domains 1 and 2."""
    return make_store(1, 2)


@pytest.fixture
def guest(store: Store) -> Client:
    """Domain 1's client."""
    return Client(store, 1)


# ---- the tree


@pytest.mark.parametrize("path", ["/", "/a", "/a/b-c/d_e/@f", HOME + "/" + "x" * 2048, "/" + "y" * 2047])
def test_valid_paths(path: str) -> None:
    assert is_valid_path(path)


@pytest.mark.parametrize(
    "path",
    [
        *("", "a", "//", "/a/", "/a//b", "/a b", "/a\n", "/ü", "/a.b", "@introduceDomain"),
        *("/" + "y" * 2048, HOME + "/" + "x" * 2049),
    ],
)
def test_invalid_paths(path: str) -> None:
    assert not is_valid_path(path)


@given(st.integers(0, 0xFFFF_FFFF), st.sampled_from([PERM_NONE, PERM_READ, PERM_WRITE, PERM_READ | PERM_WRITE]))
def test_permissions_round_trip(domid: int, access: int) -> None:
    permission = Permission(domid, access)
    assert parse_permission(format_permission(permission)) == permission


def test_permission_numbers_are_read_as_c_does() -> None:
    assert parse_permission("r0x10") == (16, PERM_READ)
    assert parse_permission("w010") == (8, PERM_WRITE)
    assert parse_permission("b 7") == (7, PERM_READ | PERM_WRITE)
    assert parse_permission("n-1") == (0xFFFF_FFFF, PERM_NONE)
    for text in ("", "r", "x1", "r1x", "1", "r0x", "r08"):
        refused("EINVAL", lambda text=text: parse_permission(text))


def test_generations_are_unique() -> None:
    tree = Tree()
    assert len({node.generation for node in tree.nodes.values()}) == len(tree.nodes)


# ---- what the toolstack prepares


def test_new_domain_sees_its_nodes(store: Store, guest: Client) -> None:
    assert guest.read("name") == "guest1"
    assert guest.read("domid") == "1"
    assert guest.read("vm") == "/vm/00000000-0000-0000-0000-000000000001"
    assert guest.read("memory/static-max") == "65536"
    assert guest.read("memory/target") == "65537"
    assert guest.read("store/port") == "1"
    assert guest.read("console/ring-ref") == "2001"
    assert guest.read("console/type") == "xenconsoled"
    assert guest.list("cpu") == ["0", "1"]
    assert guest.read("cpu/1/availability") == "online"
    assert guest.list("device") == ["suspend"]
    assert guest.read("control/shutdown") == ""
    assert guest.read(guest.read("vm") + "/uuid").endswith("000000000001")
    assert guest.ask(xs.XS_GET_PERMS, "memory/target") == b"n0\0r1\0"
    assert guest.ask(xs.XS_GET_PERMS, "control/shutdown") == b"n1\0"
    assert store.read("/local/domain/0/backend/console/1/0/frontend") == b"/local/domain/1/console"


def test_domain_may_write_only_what_is_its_own(guest: Client) -> None:
    guest.write("control/feature-poweroff", "1")
    guest.write("data/mine", "x")
    assert guest.ask(xs.XS_GET_PERMS, "data/mine") == b"n1\0"
    for path in ("name", "memory/target", "new", "/new", "/local/domain/2/data/x", "/tool/x"):
        refused("EACCES", lambda path=path: guest.write(path, "1"))
    refused("EACCES", lambda: guest.read("/local/domain/2/name"))
    refused("EACCES", lambda: guest.read("/no/such"))
    refused("ENOENT", lambda: guest.read("no-such"))


def test_removed_domain_leaves_nothing(store: Store, guest: Client) -> None:
    guest.write("data/a/b", "1")
    tools = Client(store, 0)
    tools.watch("@releaseDomain", "gone")
    store.write("/shared", "", (Permission(0, PERM_NONE), Permission(1, PERM_READ), Permission(2, PERM_READ)))
    before = make_store(2)
    remove_domain(store, 1)
    assert [path for path in store.tree.nodes if is_below(path, HOME) or is_below(path, "/libxl/1")] == []
    assert store.tree.nodes["/shared"].permissions == ((0, PERM_NONE), (2, PERM_READ))
    assert tools.take_events() == [("@releaseDomain", "gone"), ("@releaseDomain", "gone")]
    assert store.tree.owned[1] == 0
    assert {*before.tree.nodes} == {*store.tree.nodes} - {"/shared"} - {"/local/domain/0/backend/console/1"}
    assert [connection.domid for connection in store.connections] == [0]


def test_special_events(store: Store, guest: Client) -> None:
    tools = Client(store, 0)
    tools.watch("@introduceDomain", "new")
    tools.watch("@releaseDomain", "old")
    guest.watch("@introduceDomain", "not-for-me")
    tools.take_events(), guest.take_events()
    heard: list[str] = []
    store.listen("@releaseDomain", heard.append)
    store.introduce(7)
    store.introduce(7)
    store.shut_down(7)
    store.shut_down(7)
    assert tools.take_events() == [("@introduceDomain", "new"), ("@releaseDomain", "old")]
    assert guest.take_events() == []
    assert heard == ["@releaseDomain"]
    assert tools.ask(xs.XS_SET_PERMS, "@introduceDomain", "n0", "r1") == b"OK\0"
    store.introduce(8)
    assert guest.take_events() == [("@introduceDomain", "not-for-me")]
    refused("EACCES", lambda: guest.ask(xs.XS_SET_PERMS, "@introduceDomain", "n1"))
    refused("EINVAL", lambda: tools.ask(xs.XS_SET_PERMS, "@elsewhere", "n0"))


# ---- requests


def test_write_makes_parents_and_rm_removes_all_below(guest: Client) -> None:
    guest.write("data/a/b/c", "1")
    assert guest.list("data/a") == ["b"]
    assert guest.ask(xs.XS_MKDIR, "data/a/d") == b"OK\0"
    assert guest.ask(xs.XS_MKDIR, "data/a/d") == b"OK\0"
    assert guest.list("data/a") == ["b", "d"]
    assert guest.ask(xs.XS_RM, "data/a") == b"OK\0"
    refused("ENOENT", lambda: guest.read("data/a/b/c"))
    assert guest.list("data") == []
    assert guest.ask(xs.XS_RM, "data/a") == b"OK\0"
    refused("ENOENT", lambda: guest.ask(xs.XS_RM, "data/a/b"))


def test_values_are_bytes(guest: Client) -> None:
    guest.ask(xs.XS_WRITE, "data/x", tail=b"\0\xff\0")
    assert guest.ask(xs.XS_READ, "data/x") == b"\0\xff\0"
    guest.write("data/x", "")
    assert guest.ask(xs.XS_READ, "data/x") == b""


def test_deep_trees_are_no_problem(store: Store) -> None:
    path = "/" + "/".join("a" * 1000)
    store.write(path, "deep")
    assert store.read(path) == b"deep"
    store.remove("/a")
    assert store.list("/") == ["tool", "local", "vm", "libxl"]


@pytest.mark.parametrize(
    ("kind", "payload", "error"),
    [
        (xs.XS_READ, b"", "EINVAL"),
        (xs.XS_READ, b"name", "EINVAL"),
        (xs.XS_READ, b"name\0\0", "EINVAL"),
        (xs.XS_READ, b"\0", "EINVAL"),
        (xs.XS_READ, b"a//b\0", "EINVAL"),
        (xs.XS_READ, b"\xff\0", "EINVAL"),
        (xs.XS_READ, b"@releaseDomain\0", "EINVAL"),
        (xs.XS_WRITE, b"data/x", "EINVAL"),
        (xs.XS_WRITE, b"data/x" + b"y" * 3000 + b"\0", "EINVAL"),
        (xs.XS_RM, b"/\0", "EACCES"),
        (xs.XS_SET_PERMS, b"data\0", "EINVAL"),
        (xs.XS_SET_PERMS, b"data\0q1\0", "EINVAL"),
        (xs.XS_SET_PERMS, b"data\0n9\0", "ENOENT"),
        (xs.XS_SET_PERMS, b"data\0n0\0", "EPERM"),
        (xs.XS_SET_PERMS, b"name\0n1\0", "EACCES"),
        (xs.XS_SET_PERMS, b"data\0" + b"n1\0" * 6, "ENOSPC"),
        (xs.XS_WATCH, b"data\0", "EINVAL"),
        (xs.XS_WATCH, b"da ta\0t\0", "EINVAL"),
        (xs.XS_WATCH, b"@" + b"x" * 3000 + b"\0t\0", "EINVAL"),
        (xs.XS_UNWATCH, b"data\0t\0", "ENOENT"),
        (xs.XS_UNWATCH, b"data\0", "EINVAL"),
        (xs.XS_TRANSACTION_END, b"T\0", "ENOENT"),
        (xs.XS_TRANSACTION_END, b"X\0", "EINVAL"),
        (xs.XS_DIRECTORY_PART, b"data\0", "EINVAL"),
        (xs.XS_INTRODUCE, b"1\01\01\0", "EACCES"),
        (xs.XS_RELEASE, b"1\0", "EACCES"),
        (xs.XS_RESUME, b"1\0", "EACCES"),
        (xs.XS_SET_TARGET, b"1\02\0", "EACCES"),
        (xs.XS_IS_DOMAIN_INTRODUCED, b"1\0", "EACCES"),
        (xs.XS_CONTROL, b"print\0x\0", "EACCES"),
        (xs.XS_WATCH_EVENT, b"", "ENOSYS"),
        (xs.XS_ERROR, b"", "ENOSYS"),
        (xs.XS_SET_TARGET + 1, b"1\0", "ENOSYS"),  # XS_RESTRICT, which was removed
        (xs.XS_TYPE_COUNT, b"", "ENOSYS"),
        (xs.XS_INVALID, b"", "ENOSYS"),
        (0xFFFF_FFFF, b"", "ENOSYS"),
    ],
)
def test_bad_requests(guest: Client, kind: int, payload: bytes, error: str) -> None:
    assert guest.raw(kind, payload) == (xs.XS_ERROR, error.encode() + b"\0")


def test_unknown_transaction(guest: Client) -> None:
    refused("ENOENT", lambda: guest.read("name", tx=5))
    assert guest.ask(xs.XS_WATCH, "data", "t", tx=5) == b"OK\0"  # whose transaction number is not looked at


def test_set_perms_opens_and_closes(store: Store, guest: Client) -> None:
    other = Client(store, 2)
    guest.write("data/x", "secret")
    refused("EACCES", lambda: other.read(HOME + "/data/x"))
    assert guest.ask(xs.XS_SET_PERMS, "data/x", "n1", "b2") == b"OK\0"
    assert other.read(HOME + "/data/x") == "secret"
    other.write(HOME + "/data/x", "changed")
    assert guest.ask(xs.XS_GET_PERMS, "data/x") == b"n1\0b2\0"
    refused("EACCES", lambda: other.ask(xs.XS_SET_PERMS, HOME + "/data/x", "n2"))
    guest.ask(xs.XS_SET_PERMS, "data/x", "r1")
    assert other.read(HOME + "/data/x") == "changed"
    refused("EACCES", lambda: other.write(HOME + "/data/x", "no"))
    # permissions for a domain that does not exist are not kept for a later one of that number
    guest.ask(xs.XS_SET_PERMS, "data/x", "n1", "r5")
    store.introduce(5)
    refused("EACCES", lambda: Client(store, 5).read(HOME + "/data/x"))


def test_target_gives_its_permissions(store: Store) -> None:
    tools, model = Client(store, 0), Client(store, 2)
    refused("EACCES", lambda: model.read(HOME + "/name"))
    assert tools.ask(xs.XS_SET_TARGET, "2", "1") == b"OK\0"
    assert model.read(HOME + "/name") == "guest1"
    refused("ENOENT", lambda: tools.ask(xs.XS_SET_TARGET, "2", "9"))


def test_tools_requests(store: Store, guest: Client) -> None:
    tools = Client(store, 0)
    assert guest.ask(xs.XS_GET_DOMAIN_PATH, "17") == b"/local/domain/17\0"
    assert tools.ask(xs.XS_IS_DOMAIN_INTRODUCED, "1") == b"T\0"
    assert tools.ask(xs.XS_IS_DOMAIN_INTRODUCED, "17") == b"F\0"
    assert tools.ask(xs.XS_IS_DOMAIN_INTRODUCED, str(0x7FF0)) == b"T\0"
    assert tools.ask(xs.XS_CONTROL, "print", "hello") == b"OK\0"
    refused("EINVAL", lambda: tools.ask(xs.XS_CONTROL, "no-such-command"))
    store.shut_down(1)
    assert tools.ask(xs.XS_RESUME, "1") == b"OK\0"
    assert store.domains[1] is False
    refused("ENOENT", lambda: tools.ask(xs.XS_RESUME, "17"))
    refused("EINVAL", lambda: tools.ask(xs.XS_RESUME, "0"))
    guest.watch("data", "t")
    assert tools.ask(xs.XS_INTRODUCE, "1", "1001", "1") == b"OK\0"
    assert guest.connection.watches == []
    refused("EINVAL", lambda: tools.ask(xs.XS_INTRODUCE, "1", "1001", "0"))
    refused("ENOENT", lambda: tools.ask(xs.XS_INTRODUCE, "17", "1001", "1"))
    assert tools.ask(xs.XS_RELEASE, "1") == b"OK\0"
    assert 1 not in store.domains
    refused("ENOENT", lambda: tools.ask(xs.XS_RELEASE, "1"))


def test_directory_too_big_comes_in_parts(store: Store) -> None:
    tools = Client(store, 0)
    names = [f"child-{number:04}" for number in range(900)]
    for name in names:
        tools.write(f"/big/{name}", "")
    refused("E2BIG", lambda: tools.list("/big"))
    found, offset, generations = b"", 0, set()
    while not found.endswith(b"\0\0"):
        generation, _, part = tools.ask(xs.XS_DIRECTORY_PART, "/big", str(offset)).partition(b"\0")
        assert len(part) <= xs.XENSTORE_PAYLOAD_MAX
        generations.add(generation)
        found += part
        offset += len(part)
    assert found.decode().split("\0")[:-2] == names
    assert len(generations) == 1
    assert tools.ask(xs.XS_DIRECTORY_PART, "/big", "99999999").endswith(b"\0\0")


# ---- quotas


def test_quota_on_nodes(guest: Client, store: Store) -> None:
    free = MAX_NODES - store.tree.owned[1]
    for number in range(free):
        guest.ask(xs.XS_MKDIR, f"data/{number % 40}/{number}") if number >= 40 else guest.ask(
            xs.XS_MKDIR, f"data/{number}"
        )
    assert store.tree.owned[1] == MAX_NODES
    refused("ENOSPC", lambda: guest.write("data/one-more", ""))
    guest.ask(xs.XS_RM, "data/5")
    guest.write("data/one-more", "")
    Client(store, 2).write("data/x", "")


def test_quota_on_size(guest: Client) -> None:
    guest.write("data/x", "v" * 2000)
    refused("ENOSPC", lambda: guest.write("data/x", "v" * 2048))
    refused("ENOSPC", lambda: guest.write("data/y", "v" * 2048))
    assert guest.read("data/x") == "v" * 2000
    assert guest.list("data") == ["x"]


def test_quota_on_watches_and_transactions(guest: Client) -> None:
    for number in range(MAX_WATCHES + 1):
        guest.watch("data", str(number))
    refused("E2BIG", lambda: guest.watch("data", "one-more"))
    for _ in range(MAX_TRANSACTIONS + 1):
        guest.start()
    refused("ENOSPC", guest.start)
    assert guest.ask(xs.XS_RESET_WATCHES, "") == b"OK\0"
    assert guest.connection.watches == [] and guest.connection.transactions == {}
    guest.start()


def test_quota_on_nodes_in_a_transaction(guest: Client) -> None:
    tx = guest.start()
    with pytest.raises(XenstoreError) as caught:
        for number in range(2000):
            guest.ask(xs.XS_MKDIR, f"data/{number % 30}/n{number}", tx=tx)
    assert caught.value.name == "ENOSPC"
    refused("ENOMEM", lambda: guest.end(tx))
    assert guest.list("data") == []


# ---- transactions


def test_transaction_is_private_until_its_end(store: Store, guest: Client) -> None:
    tx = guest.start()
    guest.write("data/x", "1", tx=tx)
    assert guest.read("data/x", tx=tx) == "1"
    refused("ENOENT", lambda: guest.read("data/x"))
    guest.end(tx)
    assert guest.read("data/x") == "1"
    refused("ENOENT", lambda: guest.end(tx))
    owned = store.tree.owned[1]
    tx = guest.start()
    guest.ask(xs.XS_RM, "data/x", tx=tx)
    guest.end(tx, commit=False)
    assert guest.read("data/x") == "1"
    assert store.tree.owned[1] == owned


@pytest.mark.parametrize("change", ["write", "remove", "create"])
def test_conflict_gives_eagain(guest: Client, change: str) -> None:
    guest.write("data/x", "1")
    tx = guest.start()
    if change == "create":
        refused("ENOENT", lambda: guest.read("data/new", tx=tx))
        guest.write("data/new", "now")
    else:
        assert guest.read("data/x", tx=tx) == "1"
        guest.write("data/x", "2") if change == "write" else guest.ask(xs.XS_RM, "data/x")
    guest.write("drivers/y", "from the transaction", tx=tx)
    refused("EAGAIN", lambda: guest.end(tx))
    refused("ENOENT", lambda: guest.read("drivers/y"))


def test_transactions_apart_do_not_conflict(guest: Client) -> None:
    one, two = guest.start(), guest.start()
    guest.write("data/x", "1", tx=one)
    guest.write("drivers/y", "2", tx=two)
    guest.end(one)
    guest.end(two)
    assert (guest.read("data/x"), guest.read("drivers/y")) == ("1", "2")
    refused("EBUSY", lambda: guest.ask(xs.XS_TRANSACTION_START, "", tx=guest.start()))


def test_removal_within_a_transaction(store: Store, guest: Client) -> None:
    guest.write("data/a/b", "1")
    guest.watch("data/a/b", "leaf")
    guest.watch("data", "top")
    guest.take_events()
    tx = guest.start()
    guest.ask(xs.XS_RM, "data/a", tx=tx)
    guest.write("data/c", "new", tx=tx)
    assert guest.take_events() == []
    guest.end(tx)
    assert sorted(guest.take_events()) == [("data/a", "top"), ("data/a/b", "leaf"), ("data/c", "top")]
    assert guest.list("data") == ["c"]
    assert store.read(HOME + "/data/a/b") is None


# ---- watches


def test_watch_fires_at_once_and_for_what_is_below(guest: Client) -> None:
    guest.watch("data", "relative")
    guest.watch(HOME + "/data", "absolute")
    assert guest.take_events() == [("data", "relative"), (HOME + "/data", "absolute")]
    guest.write("data/x", "1")
    assert guest.take_events() == [("data/x", "relative"), (HOME + "/data/x", "absolute")]
    guest.write("drivers/x", "1")
    assert guest.take_events() == []
    refused("EEXIST", lambda: guest.watch("data", "relative"))
    guest.ask(xs.XS_UNWATCH, "data", "relative")
    guest.write("data/x", "1")
    assert guest.take_events() == [(HOME + "/data/x", "absolute")]


def test_removal_tells_each_watched_node_once(guest: Client) -> None:
    guest.write("data/a/b/c", "1")
    for path in ("data", "data/a", "data/a/b", "data/a/b/c"):
        guest.watch(path, path)
    guest.take_events()
    guest.ask(xs.XS_RM, "data/a/b")
    assert guest.take_events() == [
        ("data/a/b/c", "data/a/b/c"),
        ("data/a/b", "data"),
        ("data/a/b", "data/a"),
        ("data/a/b", "data/a/b"),
    ]


def test_nobody_hears_of_what_he_may_not_see(store: Store, guest: Client) -> None:
    other = Client(store, 2)
    other.watch(HOME + "/data", "spy")
    other.watch("/", "all")
    other.take_events()
    guest.write("data/x", "1")
    assert other.take_events() == []
    guest.ask(xs.XS_SET_PERMS, "data/x", "n1", "r2")
    assert other.take_events() == [(HOME + "/data/x", "spy"), (HOME + "/data/x", "all")]
    guest.ask(xs.XS_SET_PERMS, "data/x", "n1")  # who loses sight of it hears that, too
    assert other.take_events() == [(HOME + "/data/x", "spy"), (HOME + "/data/x", "all")]
    guest.write("data/x", "2")
    assert other.take_events() == []


def test_identical_unsent_events_are_sent_once(store: Store, guest: Client) -> None:
    guest.watch("control/shutdown", "t")
    guest.take_events()
    store.write(HOME + "/control/shutdown", "poweroff")
    store.write(HOME + "/control/shutdown", "reboot")
    assert guest.take_events() == [("control/shutdown", "t")]
    store.write(HOME + "/control/shutdown", "halt")
    assert guest.take_events() == [("control/shutdown", "t")]


def test_control_domain_listens(store: Store, guest: Client) -> None:
    heard: list[str] = []
    store.listen(HOME + "/device", heard.append)
    guest.write("device/suspend/event-channel", "5")
    guest.write("data/x", "5")
    assert heard == [HOME + "/device/suspend/event-channel"]
    with pytest.raises(ValueError, match="not a valid path"):
        store.write("no/slash", "x")


def test_every_request_can_be_observed(store: Store, guest: Client) -> None:
    seen: list[tuple[int, ...]] = []
    store.on_request = lambda *fields: seen.append(fields)
    guest.read("name")
    refused("ENOENT", lambda: guest.read("nothing"))
    assert seen == [(1, xs.XS_READ, 101, 0, 5, 0), (1, xs.XS_READ, 102, 0, 8, -2)]


# ---- the ring


class Ring:
    """A guest's side of the shared page, with a ring connection on the other."""

    def __init__(self, store: Store, domid: int = 1, start: int = 0) -> None:
        self.page = bytearray(4096)
        self.notified = 0
        for offset in (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD):
            self.set(offset, start)
        self.server = XenstoreConnection(store, domid, memoryview(self.page), self.notify)
        self.received = b""

    def notify(self) -> None:
        self.notified += 1

    def get(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.page, offset)[0])

    def set(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.page, offset, value & 0xFFFF_FFFF)

    def put(self, data: bytes) -> int:
        """Put as many bytes as fit into the request ring; return how many."""
        room = XENSTORE_RING_SIZE - (self.get(REQ_PROD) - self.get(REQ_CONS) & 0xFFFF_FFFF)
        for byte in data[:room]:
            self.page[self.get(REQ_PROD) % XENSTORE_RING_SIZE] = byte
            self.set(REQ_PROD, self.get(REQ_PROD) + 1)
        return min(room, len(data))

    def take(self) -> list[tuple[int, int, bytes]]:
        """Take what is in the response ring; return kind, request and payload of the messages now complete."""
        while self.get(RSP_CONS) != self.get(RSP_PROD):
            self.received += self.page[1024 + self.get(RSP_CONS) % XENSTORE_RING_SIZE :][:1]
            self.set(RSP_CONS, self.get(RSP_CONS) + 1)
        messages = []
        while len(self.received) >= 16:
            kind, request_id, _, length = HEADER.unpack_from(self.received)
            if len(self.received) < 16 + length:
                break
            messages.append((kind, request_id, self.received[16 : 16 + length]))
            self.received = self.received[16 + length :]
        return messages

    def converse(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Send bytes and take messages until nothing moves any more."""
        messages: list[tuple[int, int, bytes]] = []
        for _ in range(2000):
            sent = self.put(data)
            data = data[sent:]
            before = self.notified
            self.server.poll()
            messages += self.take()
            if not data and self.notified == before:
                return messages
        raise AssertionError("the conversation does not end")


def message(kind: int, request_id: int, payload: bytes, tx: int = 0) -> bytes:
    return HEADER.pack(kind, request_id, tx, len(payload)) + payload


@pytest.mark.parametrize("start", [0, 1000, 0xFFFF_FFF0])
def test_ring_round_trip(store: Store, start: int) -> None:
    ring = Ring(store, start=start)
    assert ring.converse(message(xs.XS_READ, 7, b"name\0")) == [(xs.XS_READ, 7, b"guest1")]
    assert ring.notified > 0
    value = bytes(range(256)) * 7
    assert ring.converse(message(xs.XS_WRITE, 8, b"data/x\0" + value)) == [(xs.XS_WRITE, 8, b"OK\0")]
    assert ring.converse(message(xs.XS_READ, 9, b"data/x\0")) == [(xs.XS_READ, 9, value)]
    notified = ring.notified
    ring.server.poll()
    assert ring.notified == notified


def test_ring_takes_single_bytes(store: Store) -> None:
    ring = Ring(store)
    request = message(xs.XS_READ, 7, b"name\0")
    messages = [each for byte in request for each in ring.converse(bytes([byte]))]
    assert messages == [(xs.XS_READ, 7, b"guest1")]


def test_ring_event_follows_its_reply(store: Store) -> None:
    ring = Ring(store)
    replies = ring.converse(message(xs.XS_WATCH, 1, b"data\0tok\0") + message(xs.XS_WRITE, 2, b"data/x\0v"))
    event = (xs.XS_WATCH_EVENT, 0, b"data\0tok\0")
    assert replies == [
        (xs.XS_WATCH, 1, b"OK\0"),
        event,
        (xs.XS_WATCH_EVENT, 0, b"data/x\0tok\0"),
        (xs.XS_WRITE, 2, b"OK\0"),
    ]
    store.write(HOME + "/data", "from outside")
    ring.server.poll()
    assert ring.take() == [event]


def test_ring_waits_for_a_guest_that_does_not_read(store: Store) -> None:
    ring = Ring(store)
    ring.converse(message(xs.XS_WRITE, 1, b"data/x\0" + b"v" * 900))
    requests = b"".join(message(xs.XS_READ, number, b"data/x\0") for number in range(200))
    while sent := ring.put(requests):
        requests = requests[sent:]
        ring.server.poll()
    assert len(ring.server.connection.outgoing) <= MAX_OUTSTANDING
    replies = ring.take() + ring.converse(requests)
    assert [number for _, number, _ in replies] == [*range(200)]
    assert {payload for _, _, payload in replies} == {b"v" * 900}


@pytest.mark.parametrize("offset", [REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS])
def test_impossible_indices_end_the_conversation(store: Store, offset: int) -> None:
    ring = Ring(store)
    ring.put(message(xs.XS_READ, 1, b"name\0"))
    ring.set(offset, 5000)
    ring.server.poll()
    assert ring.server.ignored
    assert ring.get(ERROR) == xs.XENSTORE_ERROR_RINGIDX
    ring.server.poll()
    assert ring.server.connection.watches == []
    ring.server.connection.restart()
    assert ring.converse(message(xs.XS_READ, 1, b"name\0")) == [(xs.XS_READ, 1, b"guest1")]


def test_too_long_message_ends_the_conversation(store: Store) -> None:
    ring = Ring(store)
    ring.put(HEADER.pack(xs.XS_READ, 1, 0, xs.XENSTORE_PAYLOAD_MAX + 1))
    ring.server.poll()
    assert ring.server.ignored
    assert ring.get(ERROR) == xs.XENSTORE_ERROR_PROTO


def test_closed_connection_leaves_the_page_alone(store: Store) -> None:
    ring = Ring(store)
    ring.put(message(xs.XS_READ, 1, b"name\0"))
    ring.server.close()
    page = bytes(ring.page)
    ring.server.poll()
    assert bytes(ring.page) == page
    assert store.connection_of(1) is None


# ---- properties

paths = st.sampled_from(
    [
        "",
        "/",
        "data",
        "data/a",
        "data/a/b",
        "drivers/x",
        HOME + "/data/c",
        "/local/domain/2/data",
        "/x",
        "a//b",
        "@releaseDomain",
    ]
)
strings = st.one_of(paths, st.sampled_from(["T", "F", "n1", "r2", "b0", "n9", "1", "2", "-1"]), st.text(max_size=6))
payloads = st.one_of(
    st.lists(strings, max_size=4).map(lambda parts: b"".join(part.encode() + b"\0" for part in parts)),
    st.binary(max_size=64),
)
requests = st.tuples(st.one_of(st.integers(0, 24), st.integers(0, 0xFFFF_FFFF)), st.integers(0, 4), payloads)


def check(store: Store) -> None:
    """Assert what must hold of any store: every node is its parent's child, and owners' counts are right."""
    nodes = store.tree.nodes
    for path, node in nodes.items():
        assert len(set(node.children)) == len(node.children)
        for name in node.children:
            assert (path.rstrip("/") + "/" + name) in nodes
        if path != "/":
            assert path.rpartition("/")[2] in nodes[path.rpartition("/")[0] or "/"].children
    for owner, count in store.tree.owned.items():
        assert count == sum(node.owner == owner for node in nodes.values())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), requests), max_size=40))
def test_no_sequence_of_requests_breaks_the_store(sequence: list[tuple[int, tuple[int, int, bytes]]]) -> None:
    store = make_store(1, 2)
    clients = {domid: store.connect(domid) for domid in (0, 1, 2)}
    for domid, (kind, tx, payload) in sequence:
        if clients[domid] in store.connections:
            clients[domid].handle(kind, 1, tx, payload)
            assert clients[domid].outgoing or clients[domid].closed
        check(store)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2080), st.binary(max_size=48)), max_size=30), st.lists(requests, max_size=10))
def test_no_content_of_the_page_breaks_the_ring(
    scribbles: list[tuple[int, bytes]], sent: list[tuple[int, int, bytes]]
) -> None:
    ring = Ring(make_store(1))
    for (offset, data), (kind, tx, payload) in zip(scribbles, sent * len(scribbles), strict=False):
        ring.put(message(kind, 1, payload, tx))
        ring.page[offset : offset + len(data)] = data
        ring.server.poll()
        assert len(ring.page) == 4096
    ring.server.connection.restart()
    replies = ring.converse(message(xs.XS_READ, 77, b"name\0"))
    assert (xs.XS_READ, 77, b"guest1") in replies


@settings(max_examples=50, deadline=None)
@given(st.lists(requests, max_size=20))
def test_same_requests_give_the_same_bytes(sequence: list[tuple[int, int, bytes]]) -> None:
    outputs = []
    for _ in range(2):
        connection = make_store(1, 2).connect(1)
        for kind, tx, payload in sequence:
            connection.handle(kind, 1, tx, payload)
        outputs.append(b"".join(connection.outgoing))
    assert outputs[0] == outputs[1]
