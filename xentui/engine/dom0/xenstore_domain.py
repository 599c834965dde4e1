"""The nodes that xl makes for a new PV domain (Xen's libxl_create.c, libxl_dom.c and libxl_console.c)."""

from __future__ import annotations

from xentui.engine.dom0.xenstore import Store
from xentui.engine.dom0.xenstore_tree import PERM_NONE, PERM_READ, Permission

#: most bytes that the console daemon keeps of a guest's output (LIBXL_XENCONSOLE_LIMIT)
_CONSOLE_LIMIT = 1 << 20
_XENBUS_STATE_INITIALISING = 1
# nodes directly under a domain's own, and under its `control`, that the guest may write
_GUESTS_OWN = ("data", "drivers", "feature", "attr", "error")
_GUESTS_CONTROLS = ("shutdown", "feature-poweroff", "feature-reboot", "feature-suspend", "sysrq")


def introduce_domain(
    store: Store,
    domid: int,
    *,
    name: str,
    uuid: str,
    memory_kib: int,
    maximum_kib: int,
    vcpus: int,
    store_port: int,
    store_mfn: int,
    console_port: int,
    console_mfn: int,
) -> None:
    """Make a domain's nodes with the permissions that xl gives them, then introduce it to the store.

    `uuid` is in the usual text form; `maximum_kib` is what the balloon may grow to. Ports are the guest's own, frame
    numbers are machine frames.
    """
    home, vm = f"/local/domain/{domid}", f"/vm/{uuid}"
    read_only = (Permission(0, PERM_NONE), Permission(domid, PERM_READ))
    guests_own = (Permission(domid, PERM_NONE),)
    nobody = (Permission(0, PERM_NONE),)
    for path in (home, vm):
        store.remove(path)
        store.write(path, "", read_only)
    for path in (f"/libxl/{domid}", f"/libxl/{domid}/device"):
        store.write(path, "", nobody)
    store.write(f"{home}/vm", vm)
    store.write(f"{home}/name", name)
    for key in ("cpu", "memory", "device", "control"):
        store.write(f"{home}/{key}", "", read_only)
    for key in _GUESTS_CONTROLS:
        store.write(f"{home}/control/{key}", "", guests_own)
    store.write(f"{home}/device/suspend/event-channel", "", guests_own)
    for key in _GUESTS_OWN:
        store.write(f"{home}/{key}", "", guests_own)
    values = {
        f"{vm}/uuid": uuid,
        f"{vm}/name": name,
        f"{home}/control/platform-feature-multiprocessor-suspend": "1",
        f"{home}/control/platform-feature-xs_reset_watches": "1",
        f"/libxl/{domid}/type": "pv",
        f"{home}/memory/static-max": str(maximum_kib),
        # a PV domain's video memory is "not given", -1, and is taken off the target: libxl does just that
        f"{home}/memory/target": str(memory_kib + 1),
        f"{home}/memory/videoram": "-1",
        f"{home}/domid": str(domid),
        f"{home}/store/port": str(store_port),
        f"{home}/store/ring-ref": str(store_mfn),
        **{f"{home}/cpu/{vcpu}/availability": "online" for vcpu in range(vcpus)},
    }
    for path, value in values.items():
        store.write(path, value)
    store.introduce(domid)
    _add_console(store, domid, console_port, console_mfn)


def _add_console(store: Store, domid: int, port: int, mfn: int) -> None:
    """Make both ends of the first console, which is there from the start and has no handshake."""
    front, back = f"/local/domain/{domid}/console", f"/local/domain/0/backend/console/{domid}/0"
    read_only = (Permission(0, PERM_NONE), Permission(domid, PERM_READ))
    store.write(front, "", read_only)
    values = {"backend": back, "backend-id": "0", "limit": str(_CONSOLE_LIMIT), "type": "xenconsoled", "output": "pty"}
    for key, value in {**values, "tty": "", "port": str(port), "ring-ref": str(mfn)}.items():
        store.write(f"{front}/{key}", value)
    store.write(back, "", read_only)
    ends = {"frontend": front, "frontend-id": str(domid), "online": "1"}
    for key, value in {**ends, "state": str(_XENBUS_STATE_INITIALISING), "protocol": "vt100"}.items():
        store.write(f"{back}/{key}", value)


def remove_domain(store: Store, domid: int) -> None:
    """Remove a destroyed domain's nodes and release it, as xl does when the domain is gone."""
    vm = store.read(f"/local/domain/{domid}/vm")
    paths = [f"/local/domain/{domid}", f"/libxl/{domid}", f"/local/domain/0/backend/console/{domid}"]
    for path in [*paths, vm.decode()] if vm else paths:
        store.remove(path)
    store.release(domid)
