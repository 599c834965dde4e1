"""What happened, in order: 64-byte trace records and the ring that holds them.

Every trap, hypercall, event and scheduling decision leaves one record of a fixed shape, so that a million of them are
a table that numpy reads as it lies. Kinds follow Xen's own trace classes where one exists (`trace_decode.XEN_EVENTS`).
This module is on the start-up path: it imports `struct` and nothing heavier, and leaves annotations as objects, because
a NamedTuple compiles each that is text (1 ms for `Record`).
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

RECORD = struct.Struct("<QQBBHI5Q")
"""One record: time, rip, kind, vcpu, domain, number, a, b, c, d, result. Little-endian, no padding."""

RECORD_SIZE = RECORD.size
_FIELD_SIZES = (8, 8, 1, 1, 2, 4, 8, 8, 8, 8, 8)
CHUNK_RECORDS = 65_536
"""A chunk, the unit in which records go to a recording, is cut at every multiple of this many records."""

CHUNK_TIME = 1_000_000_000
"""... and at every multiple of this much virtual time, in nanoseconds."""

U64 = (1 << 64) - 1


class Record(NamedTuple):
    """A record unpacked: virtual ns, the guest's instruction pointer, and the rest as `FIELDS[kind]` says."""

    time: int
    rip: int
    kind: int
    vcpu: int
    domain: int
    number: int
    a: int
    b: int
    c: int
    d: int
    result: int


COLUMNS: tuple[tuple[str, str], ...] = (
    ("time", "<u8"),
    ("rip", "<u8"),
    ("kind", "u1"),
    ("vcpu", "u1"),
    ("domain", "<u2"),
    ("number", "<u4"),
    ("a", "<u8"),
    ("b", "<u8"),
    ("c", "<u8"),
    ("d", "<u8"),
    ("result", "<u8"),
)
"""Name and numpy type of each field, in the order of `RECORD`."""

DOMID_XEN = 0x7FF2
"""The domain of records that are the hypervisor's own (`DOMID_XEN` of Xen's public xen.h)."""


class Kind:
    """What a record tells. The numbers are part of the recording format: never reuse one."""

    # control passes between a guest and the hypervisor
    HYPERCALL = 1
    MULTICALL_ENTRY = 2
    EXCEPTION = 3
    PAGE_FAULT = 4
    DIRECT_TRAP = 5
    SOFTWARE_INTERRUPT = 6
    SYSCALL = 7
    IRET = 8
    CONTINUATION = 9
    # the hypervisor does an instruction's work for the guest
    EMULATED = 16
    IO_PORT = 17
    CPUID = 18
    MSR = 19
    FPU_RESTORE = 20
    GDT_LDT_FAULT = 21
    FORCED_EMULATION = 22
    # memory
    PTE_WRITE = 32
    PTE_UPDATE = 33
    REFUSAL = 34
    GRANT = 35
    MMUEXT = 36
    # event channels and time
    EVENT_SEND = 48
    EVENT_UPCALL = 49
    EVENT_MASKED = 50
    VIRQ = 51
    TIMER = 52
    # scheduling
    SCHEDULE = 64
    BLOCK = 65
    WAKE = 66
    IDLE = 67
    YIELD = 68
    # devices
    CONSOLE_OUT = 80
    CONSOLE_IN = 81
    XENSTORE = 82
    RING = 83
    # a domain's life
    DOMAIN_CREATE = 96
    DOMAIN_SHUTDOWN = 97
    DOMAIN_CRASH = 98
    DOMAIN_DESTROY = 99
    # the recording itself
    INJECT = 112
    LOST = 113
    MARK = 114


class Instruction:
    """`number` of EMULATED: what the hypervisor did in the guest's place (IN, OUT, CPUID and MSRs: their own kinds)."""

    CLI = 1
    STI = 2
    HLT = 3
    READ_CR = 4
    WRITE_CR = 5
    READ_DR = 6
    WRITE_DR = 7
    CLTS = 8
    LMSW = 9
    INVLPG = 10
    RDTSC = 11
    RDTSCP = 12
    RDPMC = 13
    WBINVD = 14
    INVD = 15
    XSETBV = 16
    FAR_CALL = 17
    FAR_JUMP = 18


class MaskedBy:
    """`a` of EVENT_MASKED: which mask holds the event back, the port's own or the vCPU's."""

    PORT = 0
    VCPU = 1


class Timer:
    """`number` of TIMER: which of a vCPU's timers expired."""

    SINGLESHOT = 0
    PERIODIC = 1
    SET_TIMER_OP = 2
    POLL = 3
    VIRTUAL = 4


class Cause:
    """`number` of BLOCK: why a vCPU gave up its processor."""

    BLOCK = 0
    POLL = 1
    PAUSE = 2
    DOWN = 3


class SharedRing:
    """`number` of RING: whose pointers moved."""

    CONSOLE_OUT = 0
    CONSOLE_IN = 1
    XENSTORE_REQUEST = 2
    XENSTORE_RESPONSE = 3


class Fault:
    """`number` of INJECT: what was broken on purpose; the catalogue is in faults.py."""

    FAIL = 1
    DROP_EVENT = 2
    DELAY_EVENT = 3
    DUPLICATE_EVENT = 4
    SEND_EVENT = 5
    MASK = 6
    EXCEPTION = 7
    NMI = 8
    FLIP_REGISTER = 9
    FLIP_MEMORY = 10
    FLIP_PTE = 11
    FLIP_RAW_PTE = 12
    REVOKE_GRANT = 13
    STEAL = 14
    WALL_CLOCK = 15
    SQUEEZE = 16
    CORRUPT_RING = 17
    PAUSE = 18
    UNPAUSE = 19
    CRASH = 20
    DESTROY = 21
    NO_VALIDATOR = 22
    DISARM = 23


def names_of(namespace: type) -> dict[int, str]:
    """Number to name, in lower case, of one of the classes above."""
    return {number: name.lower() for name, number in vars(namespace).items() if name.isupper()}


KIND_NAMES = names_of(Kind)

FIELDS: dict[int, str] = {
    Kind.HYPERCALL: "number=hypercall:d a=arg1:x b=arg2:x c=arg3:x d=arg4:x result=result:signed",
    Kind.MULTICALL_ENTRY: "number=hypercall:d a=arg1:x b=arg2:x c=arg3:x d=arg4:x result=result:signed",
    Kind.EXCEPTION: "number=vector:vector a=error_code:x b=cr2:x c=handler:x d=rings:rings_via_xen",
    Kind.PAGE_FAULT: "number=error_code:pf_error a=cr2:x c=handler:x d=rings:rings_via_xen",
    Kind.DIRECT_TRAP: "number=vector:vector a=call:d c=handler:x d=rings:rings",
    Kind.SOFTWARE_INTERRUPT: "number=vector:vector a=call:d c=handler:x d=rings:rings_via_xen",
    Kind.SYSCALL: "number=call:d a=arg1:x b=arg2:x c=handler:x d=rings:rings_via_xen",
    Kind.IRET: "a=to_rip:x b=flags:x c=to_rsp:x d=rings:rings_via_xen",
    Kind.CONTINUATION: "number=hypercall:hypercall a=arg1:x b=arg2:x c=arg3:x d=arg4:x",
    Kind.EMULATED: "number=instruction:emulated a=value:x b=operand:x",
    Kind.IO_PORT: "number=port:x a=write:flag b=bytes:d c=value:x",
    Kind.CPUID: "number=leaf:x a=subleaf:x b=eax_ebx:pair c=ecx_edx:pair",
    Kind.MSR: "number=msr:x a=write:flag b=value:x result=result:signed",
    Kind.FPU_RESTORE: "",
    Kind.GDT_LDT_FAULT: "number=error_code:x a=cr2:x b=offset:x result=result:signed",
    Kind.FORCED_EMULATION: "number=bytes:d a=opcode:x",
    Kind.PTE_WRITE: "number=level:d a=address:x b=machine_address:x c=old:x d=new:x result=result:signed",
    Kind.PTE_UPDATE: "number=level:d a=command:mmu_update b=machine_address:x c=old:x d=new:x result=result:signed",
    Kind.REFUSAL: (
        "number=rule:refusal_rule number=level:refusal_level b=index:pte_index b=machine_address:x c=old:pte d=new:pte "
        "a=mfn:x number=owner:refusal_owner number=type:refusal_type number=xen:refusal_source result=result:signed"
    ),
    Kind.MMUEXT: "number=command:mmuext a=arg1:x b=arg2:x result=result:signed",
    Kind.GRANT: "number=operation:grant a=reference:d b=mfn:x c=peer:domid d=flags:x result=result:signed",
    Kind.EVENT_SEND: "number=port:d a=peer:domid b=peer_port:d c=already_pending:flag",
    Kind.EVENT_UPCALL: "number=selector:x a=pending:x c=handler:x d=rings:rings_via_xen",
    Kind.EVENT_MASKED: "number=port:d a=masked_by:masked_by",
    Kind.VIRQ: "number=virq:virq a=port:d",
    Kind.TIMER: "number=timer:timer a=deadline:ns",
    Kind.SCHEDULE: "number=slice_us:d a=from:runner b=to:runner c=ran:ns d=cpu:d",
    Kind.BLOCK: "number=cause:block a=deadline:ns",
    Kind.WAKE: "number=port:d",
    Kind.IDLE: "a=until:ns",
    Kind.YIELD: "",
    Kind.CONSOLE_OUT: "number=bytes:d a=offset:d",
    Kind.CONSOLE_IN: "number=bytes:d a=offset:d",
    Kind.XENSTORE: "number=operation:xenstore a=request:d b=transaction:d c=bytes:d result=result:signed",
    Kind.RING: "number=ring:ring a=producer:d b=consumer:d c=peer:domid",
    Kind.DOMAIN_CREATE: "number=width:d a=pages:d b=vcpus:d c=entry:x d=start_info:x",
    Kind.DOMAIN_SHUTDOWN: "number=reason:shutdown",
    Kind.DOMAIN_CRASH: "number=reason:shutdown a=address:x b=error_code:x",
    Kind.DOMAIN_DESTROY: "a=pages:d",
    Kind.INJECT: "number=fault:fault a=arg1:x b=arg2:x c=arg3:x d=struck:d result=result:signed",
    Kind.LOST: "a=records:d",
    Kind.MARK: "number=mark:d",
}
"""What each kind keeps in number, a, b, c, d and result: `slot=name:format`; slots not named are 0.

A format of `trace_decode.FORMATS` says how the value is shown; a slot may be shown in several ways. `rings` is
`rings(from, to)`, `rings_via_xen` the same with ring 0 in between, `runner` is `runner(domain, vcpu)`, `pair` two
32-bit registers, the first in the low half. `struck` of INJECT is 0 when a fault is injected, and counts what an armed
one does from then on. A 32-bit guest's fifth hypercall argument (only
`update_va_mapping_otherdomain` has one) lies in the high half of d.
"""


def rings(source: int, target: int) -> int:
    """Pack the protection rings that control left and entered."""
    return source | target << 8


def runner(domain: int, vcpu: int) -> int:
    """Pack who holds a processor: a domain's vCPU."""
    return domain << 16 | vcpu


Put = Callable[[int, int, int, int, int, int, int, int, int, int, int], object]
PutRows = Callable[[memoryview, int, int], None]
Flush = Callable[[memoryview], None]
Listener = Callable[[int, Record], None]

RING_MAGIC = b"XENTUITR"
RING_VERSION = 1
RING_HEADER = struct.Struct("<8sIIQQ")
"""Magic, version, record size, capacity in records, head; the rest of the header's 64 bytes is zero."""

RING_HEADER_SIZE = 64
_HEAD_INDEX = 3  # of the head among the header's 64-bit words


class TraceRing:
    """A ring of the latest records, handed on chunk by chunk so that a recording misses none.

    `put(time, rip, kind, vcpu, domain, number, a, b, c, d, result)` appends one record. It is the hot path, and so
    machine code (trace_put.py): of a value that does not fit into its field the upper bits are dropped, and a negative
    one is stored as `value & U64`. TypeError for what is no integer. Bind it once: `put = ring.put`.

    `capacity_records`: a power of two. `buffer`: writable, `TraceRing.size_of(capacity_records)` bytes, for a ring in
    shared memory; by default the ring's own. `flush`: called with the rows of each chunk as they lie in the ring, to
    be used before it returns. Chunks end at each multiple of `CHUNK_RECORDS` (or of the capacity, if that is less)
    and before the first record at or past each multiple of `chunk_time` virtual ns (0: never): where the chunks are
    cut depends on the records alone.
    """

    put: Put
    put_rows: PutRows
    """Append records as bytes, in the order of time: `put_rows(records, time of the first, time of the last)`."""
    listen: Callable[[Listener | None], None]
    """Let a function hear every record, with its number, once it is written; None: no longer. Else it costs nothing."""

    def __init__(
        self,
        capacity_records: int = CHUNK_RECORDS,
        buffer: memoryview | bytearray | None = None,
        flush: Flush | None = None,
        chunk_time: int = CHUNK_TIME,
    ) -> None:
        if capacity_records < 1 or capacity_records & (capacity_records - 1):
            raise ValueError(f"a trace ring holds a power of two of records, not {capacity_records}")
        size = self.size_of(capacity_records)
        whole = memoryview(bytearray(size) if buffer is None else buffer).cast("B")
        if whole.readonly or len(whole) < size:
            raise ValueError(f"a trace ring of {capacity_records} records needs a writable buffer of {size} bytes")
        self.capacity = capacity_records
        self._rows = whole[RING_HEADER_SIZE:size]
        self._words = whole[:RING_HEADER_SIZE].cast("Q")
        RING_HEADER.pack_into(whole, 0, RING_MAGIC, RING_VERSION, RECORD_SIZE, capacity_records, 0)
        self._build(flush, chunk_time)

    @staticmethod
    def size_of(capacity_records: int) -> int:
        """Bytes that a ring of so many records takes, header included."""
        return RING_HEADER_SIZE + capacity_records * RECORD_SIZE

    def _build(self, flush: Flush | None, chunk_time: int) -> None:
        """Make `put`, and as closures what shares its state: local variables cost half of what attributes do."""
        import ctypes

        from xentui.engine.trace_put import CURSOR, END, LIMIT, WORDS, native_put

        rows = self._rows
        record_size = RECORD_SIZE
        ring_bytes = self.capacity * record_size
        chunk_bytes = min(CHUNK_RECORDS, self.capacity) * record_size
        never = U64
        listener: Listener | None = None
        lapped = 0  # records written in the laps before this one
        start = 0  # of the chunk being filled, as an offset in the ring
        chunk_end = chunk_bytes  # of that chunk when it is full
        base = ctypes.addressof(ctypes.c_char.from_buffer(rows))
        shared = (ctypes.c_uint64 * WORDS)()
        words = memoryview(shared).cast("B").cast("Q")
        words[LIMIT] = 0 if chunk_time else never  # virtual time at which that chunk is cut
        words[CURSOR] = base  # of the next record
        words[END] = base + chunk_end  # where there is something to do: the chunk's, or with a listener the next one's

        def cut() -> None:
            nonlocal lapped, start, chunk_end
            offset = words[CURSOR] - base
            if flush is not None and offset > start:
                flush(rows[start:offset])
            if offset == ring_bytes:
                lapped += ring_bytes // record_size
                offset = 0
                words[CURSOR] = base
            start = offset
            chunk_end = start - start % chunk_bytes + chunk_bytes
            words[END] = base + (chunk_end if listener is None else offset + record_size)

        def reach_end() -> None:
            offset = words[CURSOR] - base
            number, written = lapped + offset // record_size - 1, offset - record_size
            if offset == chunk_end:
                cut()
            if listener is not None:
                words[END] = words[CURSOR] + record_size
                listener(number, Record(*RECORD.unpack_from(rows, written)))

        def listen(new: Listener | None) -> None:
            nonlocal listener
            listener = new
            words[END] = base + chunk_end if new is None else words[CURSOR] + record_size

        def reach(time: int) -> None:
            if chunk_time:  # else it is the last moment that there is
                cut()
                words[LIMIT] = min(never, time - time % chunk_time + chunk_time)

        put = native_put(shared, _FIELD_SIZES, reach, reach_end)

        def put_rows(rows_of_a_batch: memoryview, first: int, last: int) -> None:
            size, cursor, limit = len(rows_of_a_batch), words[CURSOR], words[LIMIT]
            if first < limit and last < limit and cursor + size < words[END]:
                offset = cursor - base
                rows[offset : offset + size] = rows_of_a_batch
                words[CURSOR] = cursor + size
            else:  # a chunk is cut somewhere among them
                for row in RECORD.iter_unpack(rows_of_a_batch):
                    put(*row)

        def head() -> int:
            return lapped + (words[CURSOR] - base) // record_size

        self.put = put
        self.put_rows = put_rows
        self.listen = listen
        self._cut = cut
        self._head = head

    @property
    def head(self) -> int:
        """How many records were ever written: the number that the next one gets."""
        return self._head()

    def publish(self) -> None:
        """Write `head` into the ring's header, for readers in other processes (one aligned 64-bit store)."""
        self._words[_HEAD_INDEX] = self._head()

    def flush(self) -> None:
        """Hand on the chunk as far as it is filled: for the end of a run."""
        self._cut()

    def latest(self, count: int) -> list[Record]:
        """The last `count` records or as many as the ring still holds, oldest first."""
        head = self._head()
        count = min(count, head, self.capacity)
        unpack: Callable[..., tuple[Any, ...]] = RECORD.unpack_from
        first = head - count
        offsets = ((number % self.capacity) * RECORD_SIZE for number in range(first, head))
        return [Record(*unpack(self._rows, offset)) for offset in offsets]


def dtype() -> Any:
    """The numpy type of a record. A function, so that numpy is imported by those who read and not at start-up."""
    import numpy

    return numpy.dtype(list(COLUMNS))
