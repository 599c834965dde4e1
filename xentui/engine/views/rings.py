"""Shared rings: producer and consumer pointers, what lies between them, and the contents in words.

A console and a xenstore page hold two rings of bytes, one in each direction; each has one producer and one consumer. A
ring of a split driver (xen/io/ring.h, struct sring) is one circle with four pointers, as the paper's Figure 2: requests
and responses share the slots. Indices run freely; a slot is the index modulo the ring's size.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from xentui.engine.dom0.xenstore import HEADER
from xentui.engine.views import ViewError
from xentui.engine.views.find import domain_of
from xentui.engine.xen.abi.grant_table import GTF_type_mask
from xentui.engine.xen.abi.io import xs_wire
from xentui.engine.xen.abi.io.console import XENCONS_IN_SIZE, XENCONS_OUT_SIZE
from xentui.engine.xen.abi.layout import Layout

if TYPE_CHECKING:
    from xentui.engine.machine import Machine
    from xentui.engine.xen.domain import Domain

VIEWS = ("rings", "ring")

_MASK32 = 0xFFFF_FFFF
_INDICES = Struct("<II")
_SRING = Struct("<IIII")
_SRING_HEADER = 64
_SLOTS = (8, 12)
_BLOCK_SLOT = {32: 108, 64: 112}
"""Bytes of a slot: small ones (network, and the demonstration's), and a block request's by the guest's width."""
_XS_NAMES = {value: name.removeprefix("XS_") for name, value in vars(xs_wire).items() if name.startswith("XS_")}
_XS_NAMES.update({0: "CONTROL", 1: "DIRECTORY"})
_MOST_MESSAGES = 64
_PAGES = {
    "console": (
        ("out", "guest", "domain 0", Layout.XENCONS_INTERFACE_out, XENCONS_OUT_SIZE, Layout.XENCONS_INTERFACE_out_cons),
        ("in", "domain 0", "guest", Layout.XENCONS_INTERFACE_in, XENCONS_IN_SIZE, Layout.XENCONS_INTERFACE_in_cons),
    ),
    "xenstore": (
        (
            *("request", "guest", "domain 0", Layout.XENSTORE_DOMAIN_INTERFACE_req),
            *(xs_wire.XENSTORE_RING_SIZE, Layout.XENSTORE_DOMAIN_INTERFACE_req_cons),
        ),
        (
            *("response", "domain 0", "guest", Layout.XENSTORE_DOMAIN_INTERFACE_rsp),
            *(xs_wire.XENSTORE_RING_SIZE, Layout.XENSTORE_DOMAIN_INTERFACE_rsp_cons),
        ),
    ),
}
"""Page to its rings: name, who produces, who consumes, where the bytes lie, how many, where consumer and producer."""


def rings(machine: Machine, domain: int) -> list[dict[str, Any]]:
    """What can be shown of a domain: console, xenstore, and each page that it grants to somebody."""
    found = domain_of(machine, domain)
    listed = [
        {"name": "console", "reference": None, "mfn": found.console_frame, "peer": 0},
        {"name": "xenstore", "reference": None, "mfn": found.store_frame, "peer": 0},
    ]
    known = {found.console_frame, found.store_frame}
    for reference in range(found.grants.entries):
        if machine.hv.ram[found.grants.offset(reference)] & GTF_type_mask:
            entry = found.grants.entry(reference)
            if entry.frame not in known:
                listed.append({"name": "grant", "reference": reference, "mfn": entry.frame, "peer": entry.domid})
    return [row for row in listed if row["mfn"] is not None and int(row["mfn"]) >= 0]


def ring(machine: Machine, domain: int, name: str = "console", reference: int = 0, entry: int = 0) -> dict[str, Any]:
    """A page's rings: {name, mfn, rings, messages}.

    A ring: {name, size, unit, pointers: [(name, index, who moves it)], places, waiting, data}; `places` are the machine
    addresses of the pointers, -1 for one that is not in the page. `entry` is the size in bytes of a slot of a granted
    ring, which the page does not tell; 0: guess it from what was written to it.
    """
    found = domain_of(machine, domain)
    if name in _PAGES:
        mfn = found.console_frame if name == "console" else found.store_frame
        if mfn < 0:
            raise ViewError(f"{found.name} has no {name} page")
        page = bytes(machine.hv.ram[mfn << 12 : (mfn + 1) << 12])
        parts = [_byte_ring(page, mfn << 12, *part) for part in _PAGES[name]]
        for part in parts:
            part["messages"] = _lines(part) if name == "console" else _messages(part)
        return {"domain": domain, "name": name, "mfn": mfn, "rings": parts, "shape": "two rings of bytes"}
    if name != "grant":
        raise ViewError(f"{found.name} has a console, a xenstore and granted rings, no {name!r}")
    return _granted(machine, found, reference, entry)


def _byte_ring(
    page: bytes, base: int, name: str, producer: str, consumer: str, at: int, size: int, indices: int
) -> dict[str, Any]:
    taken, put = _INDICES.unpack_from(page, indices)
    return {
        "name": name,
        "size": size,
        "unit": "bytes",
        "pointers": [("producer", put, producer), ("consumer", taken, consumer)],
        "places": [base + indices + 4, base + indices],
        "waiting": put - taken & _MASK32,
        "sane": put - taken & _MASK32 <= size,
        "data": page[at : at + size],
    }


def _content(part: dict[str, Any]) -> tuple[bytes, int]:
    """(what was put into a ring as far back as it is still there, how much of the end has not been taken yet)."""
    put, size, data = part["pointers"][0][1], part["size"], part["data"]
    waiting = min(part["waiting"], size) if part["sane"] else 0
    if put <= size:
        return data[:put], waiting
    start = put % size
    return data[start:] + data[:start], waiting


def _lines(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The latest lines of a console ring; those not taken yet are marked."""
    content, waiting = _content(part)
    place, found = 0, []
    for line in content.splitlines(keepends=True):
        place += len(line)
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        found.append(
            {"text": "".join(c if c.isprintable() else "·" for c in text), "taken": place <= len(content) - waiting}
        )
    return found[-_MOST_MESSAGES:]


def _messages(part: dict[str, Any]) -> list[dict[str, Any]]:
    """xenstore messages: all while the ring has not wrapped, else those that wait (only there a message begins)."""
    content, waiting = _content(part)
    place = 0 if part["pointers"][0][1] <= part["size"] else len(content) - waiting
    found = []
    while place + HEADER.size <= len(content):
        kind, request, transaction, length = HEADER.unpack_from(content, place)
        if kind not in _XS_NAMES or length > xs_wire.XENSTORE_PAYLOAD_MAX:
            found.append({"text": "(not a message)", "taken": False})
            break
        payload = content[place + HEADER.size : place + HEADER.size + length]
        words = " ".join(repr(word.decode("utf-8", "replace"))[1:-1] for word in payload.split(b"\0") if word)
        place += HEADER.size + length
        about = f" in transaction {transaction}" if transaction else ""
        found.append({"text": f"{_XS_NAMES[kind]} #{request}{about} {words}", "taken": place <= len(content) - waiting})
    return found[-_MOST_MESSAGES:]


def _granted(machine: Machine, domain: Domain, reference: int, entry: int) -> dict[str, Any]:
    """One circle of slots. The consumers are not in the page; each side tells the other behind which index it wants an
    event, which is one more than it has consumed."""
    if not 0 <= reference < domain.grants.entries:
        raise ViewError(f"{domain.name} has grant references 0 to {domain.grants.entries - 1}, not {reference}")
    mfn = domain.grants.entry(reference).frame
    if not 0 <= mfn < machine.hv.frames.count or not 0 <= entry <= 4096 - _SRING_HEADER:
        raise ViewError(f"reference {reference} of {domain.name} grants no frame of this machine")
    page = bytes(machine.hv.ram[mfn << 12 : (mfn + 1) << 12])
    request, request_event, response, response_event = _SRING.unpack_from(page)
    entry = entry or _guessed_slot(page, request, domain.width)
    size = _slots(entry)
    taken, answered = request_event - 1 & _MASK32, response_event - 1 & _MASK32
    pointers = [
        ("request producer", request, "guest"),
        ("request consumer", taken, "back end"),
        ("response producer", response, "back end"),
        ("response consumer", answered, "guest"),
    ]
    part = {
        "name": f"grant {reference}",
        "size": size,
        "entry": entry,
        "unit": "slots",
        "pointers": pointers,
        "places": [mfn << 12, -1, (mfn << 12) + 8, -1],
        "waiting": request - taken & _MASK32,
        "sane": max(request - answered & _MASK32, response - answered & _MASK32) <= size,
        "data": b"",
        "messages": [],
    }
    if part["sane"]:
        for index in range(max(0, request - min(size, _MOST_MESSAGES)), request):
            at = _SRING_HEADER + index % size * entry
            state = "waiting" if index >= taken else "outstanding" if index >= response else "answered"
            state = "free" if index < answered else state
            text = f"{index:>5}  slot {index % size:>3}  {_slot_text(page[at : at + entry])}"
            part["messages"].append({"text": text, "taken": state != "waiting", "state": state})
    shape = f"one ring, four pointers; {size} slots of {entry} bytes"
    return {"domain": domain.id, "name": "grant", "mfn": mfn, "rings": [part], "shape": shape}


def _slots(entry: int) -> int:
    """How many slots of a size there are: the greatest power of two that fits (xen/io/ring.h, __RING_SIZE)."""
    return 1 << ((4096 - _SRING_HEADER) // entry).bit_length() - 1


def _guessed_slot(page: bytes, requests: int, width: int) -> int:
    """The least size with which as many requests as were put in reach as far as something was written."""
    written = len(page.rstrip(b"\0")) - _SRING_HEADER
    sizes = (*_SLOTS, _BLOCK_SLOT[width])
    return next((size for size in sizes if min(requests, _slots(size)) * size >= written > 0), sizes[-1])


def _slot_text(slot: bytes) -> str:
    """A slot's bytes; a small one's as numbers, too."""
    text = slot[:32].hex(" ")
    if len(slot) > 16 or len(slot) % 4:
        return text
    return f"{text}   {' '.join(str(number) for (number,) in Struct('<I').iter_unpack(slot))}"
