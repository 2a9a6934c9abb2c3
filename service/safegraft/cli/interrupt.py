"""Ctrl-C and SIGTERM during work that can stop tidily.

Outside `interruptible` both raise KeyboardInterrupt (see run.py), which is right for everything that
leaves nothing behind. A merge or transfer is asked to stop instead, and ends at its next block.
"""

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2
FAILED = 1
STUCK_SECONDS = 10.0  # to end in after a signal that broke into a call
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


class Departure:
    """Ends the process some seconds after a signal, unless it has ended by itself or gone on to something else.

    A signal that raises KeyboardInterrupt can break into gRPC's own bookkeeping, and leave a channel that never closes.
    """

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    @contextmanager
    def on_signal(self, words: str) -> Generator[None]:
        """Within the block a signal raises KeyboardInterrupt, and the time runs; a second one ends the process at once.
        words: what is said then."""

        def leave() -> None:
            os.write(STDERR, f"{words}\n".encode())
            os._exit(FAILED)

        def raised(number: int, frame: FrameType | None) -> None:
            if self._timer is not None:
                leave()
            self._timer = threading.Timer(STUCK_SECONDS, leave)
            self._timer.daemon = True
            self._timer.start()
            signal.default_int_handler(number, frame)

        before = {number: signal.signal(number, raised) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def call_off(self) -> None:
        """Everything has been let go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
