"""Ctrl-C and SIGTERM during work that can stop tidily.

Outside `Interrupt` both raise KeyboardInterrupt (see run.py), which is right for everything that
leaves nothing behind. A merge is asked to stop instead, and ends at its next block.
"""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether somebody asked to stop. `interrupt.requested` is the engine's `cancelled` callback."""

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        return self._requested

    def request(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self._requested:
            raise KeyboardInterrupt  # asked twice: at once
        self._requested = True
        # Not through sys.stderr: the signal may have come in the middle of a write to it.
        os.write(2, b"\nstopping ... (once more to stop at once)\n")


@contextmanager
def interruptible() -> Generator[Interrupt]:
    """Turn the first signal into a request. A second one raises KeyboardInterrupt."""
    interrupt = Interrupt()
    before = {number: signal.signal(number, interrupt.request) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
