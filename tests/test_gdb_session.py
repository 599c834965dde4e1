"""gdb's protocol, without gdb: packets, and the answers of a session on a made-up domain."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from xentui.gdb.packets import INTERRUPT, Packets, ProtocolError, frame
from xentui.gdb.registers import description, registers_of
from xentui.gdb.session import Session


class Made:
    """A domain of two vCPUs whose memory is bytes 0x1000 to 0x1fff."""

    width = 32
    name = "made"

    def __init__(self) -> None:
        self.memory = bytearray(range(256)) * 16
        self.values = [{"eax": 0x11223344, "eip": 0x1000, "eflags": 2}, {"eax": 5, "eip": 0x1800}]
        self.points: set[tuple[str, int, int]] = set()
        self.done: list[str] = []

    def threads(self) -> list[int]:
        return [0, 1]

    def current(self) -> int:
        return 1

    def registers(self, vcpu: int) -> Mapping[str, int]:
        return self.values[vcpu]

    def write_register(self, vcpu: int, name: str, value: int) -> bool:
        self.values[vcpu][name] = value
        return True

    def read(self, vcpu: int, address: int, length: int) -> bytes:
        return bytes(self.memory[address - 0x1000 : address - 0x1000 + length]) if address >= 0x1000 else b""

    def write(self, vcpu: int, address: int, data: bytes) -> bool:
        if not 0x1000 <= address <= 0x2000 - len(data):
            return False
        self.memory[address - 0x1000 : address - 0x1000 + len(data)] = data
        return True

    def insert(self, kind: str, address: int, length: int) -> bool:
        self.points.add((kind, address, length))
        return True

    def remove(self, kind: str, address: int, length: int) -> bool:
        self.points.discard((kind, address, length))
        return True

    def run(self) -> None:
        self.done.append("run")

    def run_back(self) -> None:
        self.done.append("run_back")

    def step(self, vcpu: int) -> None:
        self.done.append(f"step {vcpu}")

    def step_back(self, vcpu: int) -> None:
        self.done.append(f"step_back {vcpu}")

    def halt(self) -> None:
        self.done.append("halt")

    def monitor(self, command: str) -> str:
        return command.upper()

    def kill(self) -> None:
        self.done.append("kill")


class Peer:
    """The other end: asks, and collects what is said."""

    def __init__(self) -> None:
        self.made = Made()
        self.said = bytearray()
        self.session = Session(self.made, self.said.extend)
        self.packets = Packets()

    def ask(self, text: str) -> str:
        self.said.clear()
        self.session.receive(frame(text.encode()))
        found, _ = self.packets.feed(bytes(self.said))
        return ";".join(packet.decode() for packet in found)


def test_registers_memory_and_threads() -> None:
    peer = Peer()
    assert peer.ask("?") == "T05thread:1;"
    assert peer.ask("g").startswith("44332211" + "xx" * 28 + "00100000" + "02000000")
    assert len(peer.ask("g")) == 2 * sum(register.size for register in registers_of(32))
    assert peer.ask("m1010,4") == "10111213"
    assert peer.ask("m10,4") == "E14"
    assert peer.ask("M1010,2:beef") == "OK"
    assert peer.ask("m1010,4") == "beef1213"
    assert peer.ask("M10,1:00") == "E14"
    assert (peer.ask("qfThreadInfo"), peer.ask("qsThreadInfo")) == ("m1,2", "l")
    assert bytes.fromhex(peer.ask("qThreadExtraInfo,2")) == b"vCPU 1 of made"
    assert peer.ask("Hg2") == "OK"
    assert peer.ask("p0") == "05000000"
    assert peer.ask("P0=78563412") == "OK"
    assert peer.made.values[1]["eax"] == 0x12345678
    assert (peer.ask("T2"), peer.ask("T3")) == ("OK", "E01")


def test_running_forwards_and_back_answers_when_the_machine_stands() -> None:
    peer = Peer()
    for asked, done in (
        ("vCont;c", "run"),
        ("c", "run"),
        ("vCont;s:2;c", "step 1"),
        ("bs", "step_back 1"),
        ("bc", "run_back"),
    ):
        assert peer.ask(asked) == ""
        assert peer.made.done.pop() == done
        peer.said.clear()
        peer.session.stopped()
        assert bytes(peer.said) == frame(b"T05thread:2;")
    peer.ask("c")
    peer.said.clear()
    peer.session.receive(INTERRUPT)
    assert peer.made.done[-1] == "halt"
    peer.session.stopped(2)
    peer.session.stopped(2)  # nobody waits any more
    assert bytes(peer.said) == frame(b"T02thread:2;")
    peer.ask("bc")
    peer.said.clear()
    peer.session.stopped(5, "start")
    assert b"replaylog:begin;" in peer.said


def test_breakpoints_go_with_the_session() -> None:
    peer = Peer()
    assert peer.ask("Z0,1000,1") == "OK"
    assert peer.ask("Z2,1010,4") == "OK"
    assert peer.ask("z0,1000,1") == "OK"
    assert peer.ask("Z9,1,1") == ""
    assert peer.made.points == {("write", 0x1010, 4)}
    peer.ask("c")
    peer.said.clear()
    peer.session.stopped(5, "write", 0x1010)
    assert b"watch:1010;" in peer.said
    peer.session.close()
    assert not peer.made.points


def test_the_description_is_read_in_parts() -> None:
    peer = Peer()
    text, offset = "", 0
    while True:
        part = peer.ask(f"qXfer:features:read:target.xml:{offset:x},400")
        text += part[1:]
        offset += 0x400
        if part[0] == "l":
            break
    assert text == description(32)
    assert peer.ask("qRcmd," + b"status".hex()) == b"STATUS".hex()


def test_acknowledgements_and_damage() -> None:
    packets = Packets()
    assert packets.feed(b"+$g#67$m1,") == ([b"g"], b"+")
    assert packets.feed(b"2#00") == ([], b"-")
    packets.acknowledges = False
    assert packets.feed(frame(b"a}b#c$*")) == ([b"a}b#c$*"], b"")


@given(st.lists(st.binary(max_size=40) | st.binary(max_size=30).map(frame), max_size=8))
def test_whatever_comes_nothing_breaks(pieces: list[bytes]) -> None:
    peer = Peer()
    for piece in pieces:
        try:
            peer.session.receive(piece)
        except ProtocolError:
            return
