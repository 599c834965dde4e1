"""What the console and the engine's process say to each other: plain data, sent as pickles (wire.py).

Commands go in, events come out. A command that moves the machine carries a `serial`, and the `Done` that ends it the
same one. What happened to the guests is told in order and with its number in the history (`Told`): a machine that runs
through its past again tells the same again under the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from xentui.engine.setup import Setup

if TYPE_CHECKING:
    from xentui.engine.views import Query


# --- how things stand ------------------------------------------------------------------------------------------------


class DomainStatus(NamedTuple):
    """A domain at a moment, as `xl list` and `xl top` would show it."""

    id: int
    name: str
    width: int
    state: str
    """`xl`'s six letters: r(unning) b(locked) p(aused) s(hut down) c(rashed) d(ying), a dash for each that is not."""
    vcpus: int
    pages: int
    max_pages: int
    cpu_ns: int
    hypercalls: int
    traps: int
    """Entries into the hypervisor other than hypercalls."""
    direct_traps: int
    """Traps that went to the guest's kernel without it."""
    events: int
    """Events that the domain sent, and virtual interrupts that it got."""
    written: int
    """Bytes that its console has printed."""


class Status(NamedTuple):
    """The machine at a moment, and where that moment lies in what is known of its history."""

    position: int = 0
    """Half nanoseconds: names one point of a run in the exact pace."""
    time: int = 0
    """Virtual nanoseconds."""
    running: bool = False
    stop: str = ""
    """Why it stands still: a `Stop` of machine.py, or empty."""
    why: str = ""
    """The same for the user, in words."""
    breakpoint: int | None = None
    """The number of the breakpoint that it stands at; 0: what it was to run to."""
    live: bool = True
    """At the end of what is known; False in the past."""
    end_position: int = 0
    end_time: int = 0
    current: tuple[int, int] | None = None
    """(domain, vCPU) whose registers are loaded."""
    first_record: int = 0
    """The oldest trace record that `Engine.records` still holds."""
    records: int = 0
    """Trace records written up to this moment."""
    end_records: int = 0
    domains: tuple[DomainStatus, ...] = ()
    branch: int = 0
    speed: float | None = None
    """Instructions a second; None for as fast as it goes."""
    warp: bool = False
    """Idle time is passed over instead of held back to the wall clock's speed."""
    travelling: bool = False
    """On its way to another moment."""
    failed: bool = False
    """The engine's process is gone; the past may still be gone to."""
    told: int = 0
    """How many things of the history (`Told`) have happened."""
    actions: int = 0
    """How many of them were influences from outside."""
    pid: int = 0
    """The process that is at work."""
    cpu: float = 0.0
    """Seconds of the host's processors that it has used itself."""
    work: float = 0.0
    """Seconds of a host's processor that it takes to run from the start to here."""


# --- events ----------------------------------------------------------------------------------------------------------


class StatusEvent(NamedTuple):
    """The machine's status has changed."""

    status: Status


class Output(NamedTuple):
    """A domain's console has printed."""

    domain: int
    time: int
    data: bytes


class Typed(NamedTuple):
    """A domain was given typed bytes to read."""

    domain: int
    time: int
    data: bytes


class LogLine(NamedTuple):
    """A line of the hypervisor's own log."""

    time: int
    text: str


class Ended(NamedTuple):
    """A domain has shut down: its number, name, and how (`poweroff`, `reboot`, `crash`, …)."""

    domain: int
    name: str
    reason: str
    time: int


class Acted(NamedTuple):
    """An influence from outside has taken effect."""

    position: int
    time: int
    action: Any
    number: int = 0
    """How many there were before it."""
    records: int = 0
    """Trace records that there were before it."""
    fresh: bool = False
    """It came from the user just now, not from what was recorded or planned."""


class Reply(NamedTuple):
    """The answers to `Engine.ask`, in the order of the questions; a ViewError stands for what cannot be shown."""

    id: int
    answers: list[Any]


class Notice(NamedTuple):
    """Something for the user to know; one line."""

    text: str


class Branched(NamedTuple):
    """Recorded history was left: what follows is another branch; the old one stays (`Engine.switch`)."""

    branch: int
    old: int


class Failed(NamedTuple):
    """The engine's process could not start, or has died. `text` is one line, `details` what it left behind; `outlook`
    says from where the run can go on, and what is lost; "" if it cannot."""

    text: str
    details: str = ""
    outlook: str = ""


Told = tuple[int, Any]
"""Number in the history, and an Output, Typed, LogLine, Ended or Acted."""

Event = StatusEvent | Output | Typed | LogLine | Ended | Acted | Reply | Notice | Branched | Failed


# --- from the process ------------------------------------------------------------------------------------------------


class History(NamedTuple):
    """Things that have happened, in order."""

    told: list[Told]


class Place(NamedTuple):
    """Where the vCPU whose registers are loaded stands."""

    domain: int
    vcpu: int
    address: int
    """The instruction about to be executed (linear), and its length in `size`; 0 where there is none."""
    size: int
    stack: int
    repeated: bool = False
    """It is a string instruction that repeats itself."""
    returns: bool = False
    """It goes back to where something was called or interrupted."""
    calls: tuple[int, ...] = ()
    """Where an instruction that calls may begin that ends just before this one."""


class Done(NamedTuple):
    """A command that moved the machine is at its end. `found`: the positions that a scan met; `place`: what `Where`
    has asked for."""

    serial: int
    status: Status
    found: tuple[int, ...] = ()
    place: Place | None = None


class Snapshot(NamedTuple):
    """A process was left behind at this moment; its socket travels along."""

    status: Status


# --- to the process --------------------------------------------------------------------------------------------------


class Begin(NamedTuple):
    """The first message to a new process: build the machine."""

    setup: Setup
    snapshots: bool = True
    """Leave snapshots behind while running; the one at the start is left in any case."""


class Activate(NamedTuple):
    """To a snapshot: leave a copy behind that goes on, by the socket that travels along, with the influences to come,
    breakpoints, and how it shall run."""

    actions: list[tuple[int, Any]]
    breakpoints: list[tuple[int, Any]]
    speed: float | None
    warp: bool


class Park(NamedTuple):
    """Stop, say where (`Done`), and become a snapshot."""

    serial: int


class Run(NamedTuple):
    """Run, until a condition if one is given."""

    serial: int
    until: Any = None
    recorded: int = 0
    """In a recording: the position where it ends, to stand still there; 0: nothing ends."""


class Pause(NamedTuple):
    """Stand still."""


class Step(NamedTuple):
    """Execute some instructions; `over`: pass over what the current one calls."""

    serial: int
    instructions: int = 1
    over: bool = False
    vcpu: tuple[int, int] | None = None
    """(domain, vCPU) whose instructions count; None: any."""
    end: int = 0
    """In the past: the position where what is known ends. A machine that only waits gets there by a step."""


class Travel(NamedTuple):
    """Run at full speed, nothing held back, to a position, and from there on instruction by instruction until `records`
    trace records are there. `keep`: leave a snapshot at the position."""

    serial: int
    position: int
    records: int = 0
    keep: bool = False


class Reach(NamedTuple):
    """Run at full speed until at least so many trace records are there."""

    serial: int
    records: int


class Scan(NamedTuple):
    """Run at full speed to a position and say what was met before it: boundaries between instructions at least `grain`
    half nanoseconds apart; or, with a condition, the last place where that held (`breakpoints`: or one of those set);
    or, with a register (domain, vCPU, name), the last boundary behind which it had changed."""

    serial: int
    position: int
    grain: int = 1
    until: Any = None
    breakpoints: bool = False
    register: tuple[int, int, str] | None = None


class Where(NamedTuple):
    """Move nowhere, and say what instruction comes next (`Done.place`)."""

    serial: int


class Act(NamedTuple):
    """Do something to the machine from outside, now. `future`: what replaces all influences that are still to come;
    None leaves them."""

    action: Any
    future: list[tuple[int, Any]] | None = None


class Ask(NamedTuple):
    """Answer questions."""

    id: int
    queries: list[Query]


class Pace(NamedTuple):
    """Instructions a second (None: full speed), and whether idle time is passed over."""

    speed: float | None
    warp: bool


class Breakpoints(NamedTuple):
    """The breakpoints that hold from now on, by number."""

    breakpoints: list[tuple[int, Any]]
