"""Ctrl-C and SIGTERM during work that can stop tidily.

Outside `interruptible` both raise KeyboardInterrupt (see run.py), which is right for everything that
leaves nothing behind. A merge or transfer is asked to stop instead, and ends at its next block.
"""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2
FAILED = 1
CONTINUE = "run the same command again to continue where it stopped"


class Interrupt:
    """Whether somebody asked to stop. `interrupt.requested` is the engine's `cancelled` callback."""

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        return self._requested

    def request(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        # Not through sys.stderr: the signal may have come in the middle of a write to it.
        if self._requested:
            # Threads that compute cannot be interrupted, and an exception would wait for them. What is
            # on disk is as good as after a power cut: a rerun continues.
            os.write(STDERR, f"stopped at once; {CONTINUE}\n".encode())
            os._exit(FAILED)
        self._requested = True
        os.write(STDERR, b"\nstopping ... (once more to stop at once)\n")


@contextmanager
def interruptible() -> Generator[Interrupt]:
    """Turn the first signal into a request. A second one ends the process."""
    interrupt = Interrupt()
    before = {number: signal.signal(number, interrupt.request) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
