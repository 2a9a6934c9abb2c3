"""Wakes whoever waits for a merge to change, within this process. Knows no merges, only their ids."""

import asyncio
import contextlib
from weakref import WeakValueDictionary


class Changes:
    """Announcements by id. Take the event first, then look at the merge, then wait: so none is missed."""

    def __init__(self) -> None:
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()  # lives as long as a waiter
        self.stopping = False  # the server is about to end: waiters should too

    def next(self, id: str) -> asyncio.Event:
        """Is set at the next change of this merge."""
        return self._events.setdefault(id, asyncio.Event())

    def announce(self, id: str) -> None:
        """Something about this merge is new."""
        event = self._events.pop(id, None)
        if event is not None:
            event.set()

    def stop(self) -> None:
        """Wake everybody, for good."""
        self.stopping = True
        for id in list(self._events):
            self.announce(id)


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event at most so long; True if it happened."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
