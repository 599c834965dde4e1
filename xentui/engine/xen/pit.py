"""The interval timer 8254 and its gate in port 0x61, on virtual time (Xen: emul-i8254.c, pv_pit_handler).

Kernels calibrate clocks against channel 2. Nothing here interrupts: PV guests have event channels for that.
"""

from __future__ import annotations

PIT_HZ = 1_193_182
_LOW, _HIGH, _WORD_LOW, _WORD_HIGH = 1, 2, 3, 4  # which byte of a count comes next


class Channel:
    """One of the three counters. Times are virtual nanoseconds."""

    __slots__ = (
        "bcd",
        "count",
        "gate",
        "latched",
        "latched_state",
        "load_time",
        "mode",
        "read_state",
        "rw_mode",
        "status",
        "stop_time",
        "stopped",
        "write_latch",
        "write_state",
    )

    def __init__(self, gate: int) -> None:
        self.count = 0x10000
        self.mode = 3
        self.bcd = 0
        self.gate = gate
        """It counts while this is 1; channel 2's is bit 0 of port 0x61."""
        self.rw_mode = self.read_state = self.write_state = _LOW
        self.write_latch = 0
        self.latched = self.latched_state = 0
        """A count held for reading, and which byte of it comes next; 0: none is held."""
        self.status: int | None = None
        self.load_time = self.stop_time = self.stopped = 0
        """When counting began, when the gate stopped it, and for how long that was before."""

    def ticks(self, now: int) -> int:
        """Input clocks since the count was loaded, without the time that the gate was closed."""
        until = now if self.gate or self.mode & 3 == 1 else self.stop_time
        return (until - self.load_time - self.stopped) * PIT_HZ // 1_000_000_000

    def value(self, now: int) -> int:
        """The counter as a read would latch it."""
        ticks = self.ticks(now)
        if self.mode in (0, 1, 4, 5):
            return self.count - ticks & 0xFFFF
        if self.mode == 3:
            return self.count - 2 * ticks % self.count
        return self.count - ticks % self.count

    def output(self, now: int) -> int:
        """The level of the output pin."""
        ticks = self.ticks(now)
        if self.mode == 0:
            return int(ticks >= self.count)
        if self.mode == 1:
            return int(ticks < self.count)
        if self.mode == 2:
            return int(ticks % self.count == 0 and ticks != 0)
        if self.mode == 3:
            return int(ticks % self.count < self.count + 1 >> 1)
        return int(ticks == self.count)

    def load(self, count: int, now: int) -> None:
        """Start counting from `count`; 0 stands for 65,536."""
        self.count = count or 0x10000
        self.load_time = self.stop_time = now
        self.stopped = 0

    def set_gate(self, gate: int, now: int) -> None:
        """Open or close the gate: modes 0 and 4 pause, the others start anew when it opens."""
        if gate < self.gate and self.mode not in (1, 5):
            self.stop_time = now
        elif gate > self.gate:
            if self.mode in (0, 4):
                self.stopped += now - self.stop_time
            else:
                self.load(self.count & 0xFFFF, now)
        self.gate = gate

    def control(self, value: int, now: int) -> None:
        """A control word for this channel: latch the count, or how counts are given and the mode."""
        access = value >> 4 & 3
        if not access:
            self.latch(now)
            return
        self.rw_mode = self.read_state = self.write_state = access
        self.mode = value >> 1 & 7
        if self.mode > 5:
            self.mode -= 4
        self.bcd = value & 1

    def latch(self, now: int) -> None:
        """Hold the count until it is read."""
        if not self.latched_state:
            self.latched, self.latched_state = self.value(now), self.rw_mode

    def latch_status(self, now: int) -> None:
        """Hold output level, access, mode and BCD for the next read."""
        if self.status is None:
            self.status = self.output(now) << 7 | self.rw_mode << 4 | self.mode << 1 | self.bcd

    def write(self, value: int, now: int) -> None:
        """A byte of a count."""
        if self.write_state == _WORD_LOW:
            self.write_latch, self.write_state = value, _WORD_HIGH
        elif self.write_state == _WORD_HIGH:
            self.write_state = _WORD_LOW
            self.load(self.write_latch | value << 8, now)
        else:
            self.load(value << 8 if self.write_state == _HIGH else value, now)

    def read(self, now: int) -> int:
        """A byte of the status, of the held count, or of the running one."""
        if self.status is not None:
            status, self.status = self.status, None
            return status
        state = self.latched_state
        if state:
            self.latched_state = _HIGH if state == _WORD_LOW else 0
            return self.latched >> 8 & 0xFF if state == _HIGH else self.latched & 0xFF
        state, count = self.read_state, self.value(now)
        if state == _WORD_LOW:
            self.read_state = _WORD_HIGH
        elif state == _WORD_HIGH:
            self.read_state = _WORD_LOW
        return count >> 8 & 0xFF if state in (_HIGH, _WORD_HIGH) else count & 0xFF


class Pit:
    """The chip: ports 0x42 (channel 2), 0x43 (control) and 0x61 (gate and output of channel 2, speaker)."""

    def __init__(self) -> None:
        self.channels = (Channel(1), Channel(1), Channel(0))
        self.speaker = 0

    def read(self, port: int, now: int) -> int:
        """A byte from port 0x42 or 0x61; the control port gives nothing back."""
        if port == 0x42:
            return self.channels[2].read(now)
        if port == 0x61:
            refresh = now >> 14 & 1  # toggles about every 15 µs
            channel = self.channels[2]
            return channel.output(now) << 5 | refresh << 4 | self.speaker << 1 | channel.gate
        return 0

    def write(self, port: int, value: int, now: int) -> None:
        """A byte to port 0x42, 0x43 or 0x61."""
        value &= 0xFF
        if port == 0x42:
            self.channels[2].write(value, now)
        elif port == 0x61:
            self.speaker = value >> 1 & 1
            self.channels[2].set_gate(value & 1, now)
        elif value >> 6 < 3:
            self.channels[value >> 6].control(value, now)
        else:
            for number, channel in enumerate(self.channels):
                if value & 2 << number:
                    if not value & 0x20:
                        channel.latch(now)
                    if not value & 0x10:
                        channel.latch_status(now)
