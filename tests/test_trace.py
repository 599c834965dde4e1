"""The trace ring cuts and publishes as it says, and every kind of record is shown in words."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xentui.engine import trace
from xentui.engine.trace import CHUNK_RECORDS, FIELDS, RECORD, RECORD_SIZE, U64, Kind, Record, TraceRing
from xentui.engine.trace_decode import XEN_EVENTS, decode, fields, title

RIP = 0xFFFFFFFF81000000


def record(kind: int, number: int = 0, a: int = 0, b: int = 0, c: int = 0, d: int = 0, result: int = 0) -> Record:
    return Record(1500, RIP, kind, 0, 1, number, a, b, c, d, result)


def chunk_of(rows: memoryview) -> list[Record]:
    return [Record(*values) for values in RECORD.iter_unpack(rows)]


def put_times(ring: TraceRing, times: list[int]) -> None:
    for number, time in enumerate(times):
        ring.put(time, RIP, Kind.MARK, 0, 1, number, 0, 0, 0, 0, 0)


def test_a_record_is_64_bytes_in_the_order_of_its_columns() -> None:
    assert RECORD_SIZE == 64
    assert tuple(name for name, _ in trace.COLUMNS) == Record._fields
    assert trace.dtype().itemsize == RECORD_SIZE


def test_latest_returns_what_was_put_also_after_a_lap() -> None:
    ring = TraceRing(8)
    put_times(ring, list(range(5)))
    assert [row.number for row in ring.latest(100)] == [0, 1, 2, 3, 4]
    put_times(ring, list(range(20)))
    assert [row.number for row in ring.latest(3)] == [17, 18, 19]
    assert [row.number for row in ring.latest(100)] == list(range(12, 20))
    assert ring.head == 25


def test_every_field_comes_back() -> None:
    ring = TraceRing(2)
    row = Record(U64, U64 - 1, 255, 254, 0xFFFF, 0xFFFFFFFF, 1, U64, 3, 4, -38 & U64)
    ring.put(*row)
    assert ring.latest(1) == [row]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(0, 70), max_size=90),
    capacity=st.sampled_from([1, 2, 16, 64]),
    chunk_time=st.sampled_from([0, 1, 50, 1000]),
)
def test_chunks_hold_every_record_and_are_cut_by_count_and_virtual_time_alone(
    steps: list[int], capacity: int, chunk_time: int
) -> None:
    times = [sum(steps[: end + 1]) for end in range(len(steps))]
    chunks: list[list[Record]] = []
    ring = TraceRing(capacity, flush=lambda rows: chunks.append(chunk_of(rows)), chunk_time=chunk_time)
    put_times(ring, times)
    ring.flush()
    expected: dict[tuple[int, int], list[int]] = {}
    for number, time in enumerate(times):
        expected.setdefault((number // capacity, time // chunk_time if chunk_time else 0), []).append(number)
    assert [[row.number for row in chunk] for chunk in chunks] == list(expected.values())


def test_a_chunk_is_at_most_its_limit_in_a_larger_ring() -> None:
    sizes: list[int] = []
    ring = TraceRing(2 * CHUNK_RECORDS, flush=lambda rows: sizes.append(len(rows) // RECORD_SIZE))
    put = ring.put
    for _ in range(2 * CHUNK_RECORDS + 5):
        put(0, 0, Kind.MARK, 0, 0, 0, 0, 0, 0, 0, 0)
    ring.flush()
    assert sizes == [CHUNK_RECORDS, CHUNK_RECORDS, 5]


def test_a_reader_of_the_shared_buffer_sees_the_published_head() -> None:
    buffer = bytearray(TraceRing.size_of(4))
    ring = TraceRing(4, buffer)
    put_times(ring, [1, 2, 3])
    magic, version, size, capacity, head = trace.RING_HEADER.unpack_from(buffer)
    assert (magic, version, size, capacity, head) == (trace.RING_MAGIC, trace.RING_VERSION, RECORD_SIZE, 4, 0)
    ring.publish()
    assert trace.RING_HEADER.unpack_from(buffer)[4] == 3
    assert RECORD.unpack_from(buffer, trace.RING_HEADER_SIZE + 2 * RECORD_SIZE)[0] == 3


@pytest.mark.parametrize("chunk_time", [0, 50])
def test_many_rows_are_cut_as_single_ones_are(chunk_time: int) -> None:
    chunks: tuple[list[bytes], list[bytes]] = ([], [])
    single, many = (
        TraceRing(16, flush=lambda rows, kept=kept: kept.append(bytes(rows)), chunk_time=chunk_time) for kept in chunks
    )
    time = 0
    for count in (3, 5, 8, 1, 15, 16, 40, 2):
        rows = [(time + 7 * number, RIP, Kind.MARK, 0, 1, number, 0, 0, 0, 0, 0) for number in range(count)]
        for row in rows:
            single.put(*row)
        many.put_rows(memoryview(b"".join(RECORD.pack(*row) for row in rows)), rows[0][0], rows[-1][0])
        time = rows[-1][0]
        assert many.head == single.head and many.latest(16) == single.latest(16)
    single.flush()
    many.flush()
    assert chunks[0] == chunks[1] and len(chunks[0]) > 5


@pytest.mark.parametrize("capacity", [0, -1, 3, 100])
def test_a_capacity_that_is_no_power_of_two_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        TraceRing(capacity)


def test_a_buffer_too_small_or_read_only_is_refused() -> None:
    with pytest.raises(ValueError, match="writable buffer"):
        TraceRing(4, bytearray(TraceRing.size_of(4) - 1))
    with pytest.raises(ValueError, match="writable buffer"):
        TraceRing(4, memoryview(bytes(TraceRing.size_of(4))))


SHOWN: list[tuple[Record, int, str]] = [
    (
        record(Kind.HYPERCALL, 1, 0xFFFF880000001000, 1, 0, 0x7FF0),
        64,
        "mmu_update(ureqs=0xffff880000001000, count=1, pdone=0, foreigndom=DOMID_SELF) = 0",
    ),
    (
        record(Kind.HYPERCALL, 14, 0xC0001000, 0x63, 1, 2),
        32,
        "update_va_mapping(va=0xc0001000, val=0x100000063, flags=UVMF_INVLPG) = 0",
    ),
    (
        record(Kind.HYPERCALL, 22, 0xC0001000, 0x63, 0, 6 | 0x7FF1 << 32, -14 & U64),
        32,
        "update_va_mapping_otherdomain(va=0xc0001000, val=0x63, flags=UVMF_INVLPG|UVMF_ALL, domid=DOMID_IO) = -EFAULT",
    ),
    (record(Kind.HYPERCALL, 17, 0, 0, result=0x40011), 64, "xen_version(cmd=version, arg=0) = 0x40011"),
    (record(Kind.HYPERCALL, 24, 3, 7, 0, result=-2 & U64), 64, "vcpu_op(cmd=is_up, vcpuid=7, arg=0) = -ENOENT"),
    (
        record(Kind.HYPERCALL, 61, 1, 0x20, 3, 4, -38 & U64),
        64,
        "hypercall_61(arg1=1, arg2=0x20, arg3=3, arg4=4) = -ENOSYS",
    ),
    (record(Kind.HYPERCALL, 23), 64, "iret()"),
    (record(Kind.MULTICALL_ENTRY, 3, 0xE02B, 0x1000), 64, "stack_switch(ss=0xe02b, esp=0x1000) = 0"),
    (
        record(Kind.EXCEPTION, 13, 0x10, 0, 0xC0100000, trace.rings(3, 1)),
        32,
        "exception vector=#GP error_code=0x10 cr2=0x0 handler=0xc0100000 rings=3→0→1",
    ),
    (
        record(Kind.PAGE_FAULT, 6, 0x400000, 0, 0x1000, trace.rings(3, 3)),
        64,
        "page_fault error_code=write|user cr2=0x400000 handler=0x1000 rings=3→0→3",
    ),
    (
        record(Kind.DIRECT_TRAP, 0x80, 4, 0, 0xC0100000, trace.rings(3, 1)),
        32,
        "direct_trap vector=128 call=4 handler=0xc0100000 rings=3→1",
    ),
    (
        record(Kind.SOFTWARE_INTERRUPT, 0x80, 4, 0, 0x1000, trace.rings(3, 3)),
        64,
        "software_interrupt vector=128 call=4 handler=0x1000 rings=3→0→3",
    ),
    (
        record(Kind.SYSCALL, 39, 1, 2, 0x1000, trace.rings(3, 3)),
        64,
        "syscall call=39 arg1=0x1 arg2=0x2 handler=0x1000 rings=3→0→3",
    ),
    (
        record(Kind.IRET, 0, 0x401000, 0x246, 0x7FFE, trace.rings(3, 3)),
        64,
        "iret to_rip=0x401000 flags=0x246 to_rsp=0x7ffe rings=3→0→3",
    ),
    (
        record(Kind.CONTINUATION, 1, 0x1010, 1 | 1 << 31, 0, 0x7FF0),
        64,
        "continuation hypercall=mmu_update arg1=0x1010 arg2=0x80000001 arg3=0x0 arg4=0x7ff0",
    ),
    (
        record(Kind.EMULATED, trace.Instruction.WRITE_CR, 0x80000, 4),
        64,
        "emulated instruction=write_cr value=0x80000 operand=0x4",
    ),
    (record(Kind.IO_PORT, 0x42, 0, 1, 0x7F), 64, "io_port port=0x42 write=no bytes=1 value=0x7f"),
    (
        record(Kind.CPUID, 0x40000000, 0, 0x566E655840000002, 1),
        64,
        "cpuid leaf=0x40000000 subleaf=0x0 eax_ebx=0x40000002,0x566e6558 ecx_edx=0x00000001,0x00000000",
    ),
    (record(Kind.MSR, 0xC0000080, 1, 0x500), 64, "msr msr=0xc0000080 write=yes value=0x500 = 0"),
    (record(Kind.FPU_RESTORE), 64, "fpu_restore"),
    (record(Kind.GDT_LDT_FAULT, 0, 0x1000, 8), 64, "gdt_ldt_fault error_code=0x0 cr2=0x1000 offset=0x8 = 0"),
    (record(Kind.FORCED_EMULATION, 2, 0xA20F), 64, "forced_emulation bytes=2 opcode=0xa20f"),
    (
        record(Kind.PTE_WRITE, 1, 0x1000, 0x2000, 0, 0x3067),
        64,
        "pte_write level=1 address=0x1000 machine_address=0x2000 old=0x0 new=0x3067 = 0",
    ),
    (
        record(Kind.PTE_UPDATE, 2, 2, 0x2000, 1, 0x3067),
        64,
        "pte_update level=2 command=PT_UPDATE_PRESERVE_AD machine_address=0x2000 old=0x1 new=0x3067 = 0",
    ),
    (
        record(Kind.REFUSAL, 5 | 1 << 8 | 2 << 12 | 3 << 16, 0x123, 0x12040, 0, 0x123067 | 1 << 63, -16 & U64),
        64,
        'refusal rule="the frame is in use as a page table or descriptor page, which no guest may map writable" '
        "level=L1 index=8 machine_address=0x12040 old=0x0 "
        "new=0x8000000000123067 (mfn 0x123 PRESENT|RW|USER|ACCESSED|DIRTY|NX) mfn=0x123 owner=d3's type=L1 "
        'xen="xen/arch/x86/mm.c, get_page_from_l1e, _get_page_type" = -EBUSY',
    ),
    (
        record(Kind.REFUSAL, 13 | 1 << 8, 0, 0xC0001000, 0, 0x5001, -22 & U64),
        32,
        'refusal rule="no page table of the domain\'s maps the address" virtual_address=0xc0001000 '
        'new=0x5001 (mfn 0x5 PRESENT) xen="xen/arch/x86/mm.c, __do_update_va_mapping" = -EINVAL',
    ),
    (
        record(Kind.REFUSAL, 14 | 4 << 8 | 9 << 12 | 0x7FF2 << 16, 0x9, result=-22 & U64),
        64,
        'refusal rule="the frame is pinned already" level=L4 index=none machine_address=0x0 old=0x0 new=0x0 mfn=0x9 '
        'owner=the hypervisor\'s type=shared read-only xen="xen/arch/x86/mm.c, do_mmuext_op" = -EINVAL',
    ),
    (
        record(Kind.GRANT, 0, 9, 0x123, 2, 1),
        64,
        "grant operation=map_grant_ref reference=9 mfn=0x123 peer=2 flags=0x1 = 0",
    ),
    (record(Kind.MMUEXT, 5, 0x123), 64, "mmuext command=NEW_BASEPTR arg1=0x123 arg2=0x0 = 0"),
    (record(Kind.EVENT_SEND, 3, 0, 7, 1), 64, "event_send port=3 peer=0 peer_port=7 already_pending=yes"),
    (
        record(Kind.EVENT_UPCALL, 1, 0x8, 0, 0xC0100000, trace.rings(1, 1)),
        32,
        "event_upcall selector=0x1 pending=0x8 handler=0xc0100000 rings=1→0→1",
    ),
    (record(Kind.EVENT_MASKED, 3, trace.MaskedBy.VCPU), 64, "event_masked port=3 masked_by=vcpu"),
    (record(Kind.VIRQ, 0, 2), 64, "virq virq=TIMER port=2"),
    (record(Kind.TIMER, trace.Timer.SINGLESHOT, 1_500_000_000), 64, "timer timer=singleshot deadline=1.500000000"),
    (
        record(Kind.SCHEDULE, 30_000, trace.runner(1, 0), trace.runner(0x7FFF, 0), 2_000),
        64,
        "schedule slice_us=30000 from=d1v0 to=idle ran=0.000002000 cpu=0",
    ),
    (record(Kind.BLOCK, trace.Cause.POLL, 1), 64, "block cause=poll deadline=0.000000001"),
    (record(Kind.WAKE, 4), 64, "wake port=4"),
    (record(Kind.IDLE, 0, 10**9), 64, "idle until=1.000000000"),
    (record(Kind.YIELD), 64, "yield"),
    (record(Kind.CONSOLE_OUT, 12, 100), 64, "console_out bytes=12 offset=100"),
    (record(Kind.CONSOLE_IN, 1, 5), 64, "console_in bytes=1 offset=5"),
    (record(Kind.XENSTORE, 2, 7, 0, 20), 64, "xenstore operation=READ request=7 transaction=0 bytes=20 = 0"),
    (
        record(Kind.RING, trace.SharedRing.XENSTORE_REQUEST, 40, 20),
        64,
        "ring ring=xenstore_request producer=40 consumer=20 peer=0",
    ),
    (
        record(Kind.DOMAIN_CREATE, 32, 8192, 1, 0xC0000000, 0xC0200000),
        32,
        "domain_create width=32 pages=8192 vcpus=1 entry=0xc0000000 start_info=0xc0200000",
    ),
    (record(Kind.DOMAIN_SHUTDOWN, 0), 64, "domain_shutdown reason=poweroff"),
    (record(Kind.DOMAIN_CRASH, 3, 0x1000, 2), 64, "domain_crash reason=crash address=0x1000 error_code=0x2"),
    (record(Kind.DOMAIN_DESTROY, 0, 8192), 64, "domain_destroy pages=8192"),
    (record(Kind.INJECT, 1, 2), 64, "inject fault=fail arg1=0x2 arg2=0x0 arg3=0x0 struck=0 = 0"),
    (record(Kind.LOST, 0, 42), 64, "lost records=42"),
    (record(Kind.MARK, 7), 64, "mark mark=7"),
    (record(200, 1, 2), 64, "kind_200 number=0x1 a=0x2 b=0x0 c=0x0 d=0x0 = 0x0"),
]


@pytest.mark.parametrize(
    ("row", "width", "text"), SHOWN, ids=[text.split("(")[0].split(" ")[0] for _, _, text in SHOWN]
)
def test_a_record_is_shown_in_words(row: Record, width: int, text: str) -> None:
    assert decode(row, width) == text


def test_every_kind_is_described_and_shown_by_a_test() -> None:
    kinds = {value for name, value in vars(Kind).items() if name.isupper()}
    assert len(kinds) == len(trace.KIND_NAMES)
    assert set(FIELDS) == kinds == {row.kind for row, _, _ in SHOWN} - {200}
    assert set(XEN_EVENTS) <= kinds


@settings(max_examples=300, deadline=None)
@given(
    kind=st.integers(0, 255),
    number=st.integers(0, 2**32 - 1) | st.integers(0, 70),
    values=st.lists(st.integers(0, U64) | st.integers(0, 9), min_size=5, max_size=5),
    width=st.sampled_from([32, 64]),
)
def test_any_record_can_be_shown(kind: int, number: int, values: list[int], width: int) -> None:
    row = Record(0, 0, kind, 0, 0, number, *values)
    line = decode(row, width)
    assert line.startswith(title(row)) and "\n" not in line
    assert all(field.text in line for field in fields(row, width))


def test_the_writers_path_imports_neither_numpy_nor_compression() -> None:
    program = (
        "import sys, xentui.engine.trace, xentui.recording.writer as w;"
        "w.RecordingWriter('/dev/null', {}).console(0, 1, 0, b'first line');"
        "print([name for name in ('numpy', 'backports.zstd', 'compression.zstd') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
