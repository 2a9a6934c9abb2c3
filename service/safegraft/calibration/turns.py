"""Many passes through a model at once, one layer after the other: each pass stops where a layer begins and goes on
when that layer's turn has come, so that a layer's weights are needed once for all passes.

A pass is a function in a thread of its own, with the model's own code on its stack; one of them runs at a time, in
a fixed order. Knows no models.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from safegraft.calibration.progress import Cancelled, stop_if

Stop = TypeVar("Stop")


class _AbandonedError(BaseException):
    """Unwinds a pass that is no longer wanted; nothing on its way should take it for an error of its own."""


class Turns(Generic[Stop]):
    """Runs passes and calls `begin(stop)` and `end(stop)` around the turn of each stop.

    order: of the stops that passes wait at, the one with the smallest key has its turn next.
    """

    def __init__(
        self,
        begin: Callable[[Stop], None],
        end: Callable[[Stop], None],
        order: Callable[[Stop], tuple[int, int]],
        cancelled: Cancelled,
    ) -> None:
        self._begin = begin
        self._end = end
        self._order = order
        self._cancelled = cancelled
        self._passes: dict[int, _Pass[Stop]] = {}
        self._came_to_a_stop = threading.Semaphore(0)

    def run(self, passes: Sequence[Callable[[], None]]) -> None:
        """Run all passes to their ends. What one raises is raised here, after the others were unwound."""
        started: list[_Pass[Stop]] = [_Pass(work, self._came_to_a_stop) for work in passes]
        try:
            for one in started:
                stop_if(self._cancelled)
                one.start()
                self._passes[one.native()] = one
                self._let_run(one)
            while waiting := [one for one in started if one.stop is not None]:
                self._give_turn(waiting)
        finally:
            for one in started:
                one.abandon()
            self._passes.clear()

    def wait_for(self, stop: Stop) -> None:
        """Called within a pass: return when it is the stop's turn."""
        self._passes[threading.get_ident()].wait(stop)

    def _give_turn(self, waiting: "Sequence[_Pass[Stop]]") -> None:
        stops = [one.stop for one in waiting if one.stop is not None]
        turn = min(stops, key=self._order)
        stop_if(self._cancelled)
        self._begin(turn)
        for one in waiting:
            if one.stop == turn:
                stop_if(self._cancelled)
                self._let_run(one)
        self._end(turn)

    def _let_run(self, one: "_Pass[Stop]") -> None:
        one.go()
        self._came_to_a_stop.acquire()
        if one.error is not None:
            raise one.error


class _Pass(Generic[Stop]):
    def __init__(self, work: Callable[[], None], came_to_a_stop: threading.Semaphore) -> None:
        self.stop: Stop | None = None  # where it waits
        self.error: BaseException | None = None
        self._work = work
        self._abandoned = False
        self._may_go = threading.Semaphore(0)
        self._came_to_a_stop = came_to_a_stop
        self._thread = threading.Thread(target=self._run, name="safegraft-pass", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def native(self) -> int:
        assert self._thread.ident is not None  # it has been started
        return self._thread.ident

    def go(self) -> None:
        self._may_go.release()

    def wait(self, stop: Stop) -> None:
        if not self._abandoned:
            self.stop = stop
            self._came_to_a_stop.release()
            self._may_go.acquire()
            self.stop = None
        if self._abandoned:
            raise _AbandonedError

    def abandon(self) -> None:
        """Unwind it, if it has not ended, and wait until it is gone."""
        if self._thread.ident is None:
            return
        self._abandoned = True
        self._may_go.release()
        self._thread.join()

    def _run(self) -> None:
        self._may_go.acquire()
        try:
            if not self._abandoned:
                self._work()
        except _AbandonedError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._came_to_a_stop.release()
