"""The picture of the console that the README opens with, taken from the real thing.

    python docs/picture.py [FILE.svg] [WIDTH HEIGHT]

The built-in demonstration runs for a while of virtual time in an engine of its own, and the console on it is drawn
without a terminal.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from xentui.app import XentuiApp
from xentui.demonstration import BUILT_IN, guest_specifications
from xentui.engine.actions import Action
from xentui.engine.breakpoints import RECORD, Breakpoint
from xentui.engine.messages import Setup
from xentui.engine.process import Engine

MOMENT = 2_350_000_000
"""Virtual nanoseconds: in the middle of a round of both guests."""
TYPED = [(2 * 1_500_000_000, Action("type", "demo32", (b"stat\r",)))]
"""What somebody asks the guest meanwhile."""


async def draw(engine: Engine, width: int, height: int) -> str:
    """The console's screen as SVG."""
    app = XentuiApp(engine, run=False)
    async with app.run_test(size=(width, height)) as pilot:
        engine.set_warp(True)
        engine.run(Breakpoint(RECORD, f"time >= {MOMENT}"))
        while engine.status.time < MOMENT or not engine.standing:
            await pilot.pause(0.05)
        for _ in range(20):
            await pilot.pause(0.05)
        return app.screen_svg()


def _engine() -> Engine:
    return Engine.start(Setup(guest_specifications(BUILT_IN), actions=list(TYPED)))


def main() -> int:
    """Take the picture."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("console.svg"))
    width, height = (int(word) for word in sys.argv[2:4]) if len(sys.argv) > 3 else (170, 46)
    with tempfile.TemporaryDirectory() as settings, _engine() as engine:
        os.environ["XDG_CONFIG_HOME"] = settings  # the layout that everybody sees first
        path.write_text(asyncio.run(draw(engine, width, height)))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
