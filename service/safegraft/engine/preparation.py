"""What methods must know before their first cut and no single tensor tells: models at work, and all tensors at once."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.engine.task import Plan, StatisticKey, TensorTask
from safegraft.errors import MergeCancelledError
from safegraft.methods.contract import MergeMethod

if TYPE_CHECKING:
    from safegraft.calibration import Gathered, Progress

AHEAD = 16  # tensors that are being prepared or wait for it

Prepare = Callable[[TensorTask], "Future[Any]"]
Report = Callable[[str], None]  # what models are being put to work for, and how far that is


def unreported(doing: str) -> None:
    """Nobody asks."""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What a method decided over all its tensors, and what it had found in each, by name."""

    answer: Any
    states: dict[str, Any]


class Preparation:
    """Prepares each of a plan's methods once, when its first tensor is wanted, in the thread that wants it."""

    def __init__(self, plan: Plan, cache: Path | None) -> None:
        self.gathered: dict[StatisticKey, Gathered] = {}
        self.surveyed: dict[str, Surveyed] = {}
        self._plan = plan
        self._cache = cache
        self._lock = threading.Lock()
        self._by_digest: dict[str, Gathered] = {}
        self._ready = {
            name
            for name, method in plan.methods.items()
            if not method.requires.calibration and type(method).survey is MergeMethod.survey
        }

    def is_ready(self, method: str) -> bool:
        return method in self._ready

    def gather(self, method: str, cancelled: Callable[[], bool], report: Report = unreported) -> None:
        """Put models to work for a method, once. Others who want the same wait. Raises MergeCancelledError."""
        with self._lock:
            self._gather(method, cancelled, report)

    def prepare(self, method: str, prepare: Prepare, cancelled: Callable[[], bool]) -> None:
        """Gather what has not been gathered, then survey. Others who want the same wait. Raises MergeCancelledError."""
        with self._lock:
            if method in self._ready:
                return
            self._gather(method, cancelled)
            if type(self._plan.methods[method]).survey is not MergeMethod.survey:
                self.surveyed[method] = self._survey(self._plan.methods[method], prepare, cancelled)
            self._ready.add(method)

    def close(self) -> None:
        for one in self._by_digest.values():
            one.close()

    def _gather(self, method: str, cancelled: Callable[[], bool], report: Report = unreported) -> None:
        statistics = self._plan.statistics
        requests = {key: one for key, one in statistics.items() if key[0] == method and key not in self.gathered}
        if not requests:
            return
        from safegraft.calibration import gather  # which knows transformers: only those pay for it who need it

        for key, request in requests.items():
            if request.digest not in self._by_digest:
                whose = f"{request.statistic} of {self._plan.names.get(key[2], key[2])}"
                self._by_digest[request.digest] = gather(
                    request, self._cache, cancelled=cancelled, progress=partial(_tell, report, whose)
                )
            self.gathered[key] = self._by_digest[request.digest]

    def _survey(self, method: MergeMethod, prepare: Prepare, cancelled: Callable[[], bool]) -> Surveyed:
        tasks = [task for task in self._plan.tensors if task.method == method.name]
        states: dict[str, Any] = {}
        ahead: deque[tuple[TensorTask, Future[Any]]] = deque()
        try:
            for task in tasks:
                ahead.append((task, prepare(task)))
                if len(ahead) > AHEAD:
                    _finish(ahead, states, cancelled)
            while ahead:
                _finish(ahead, states, cancelled)
        finally:
            for _, future in ahead:
                future.cancel()
        from safegraft.engine.kernel import Kernel  # which imports torch

        kernel = Kernel(self._plan, self.gathered)
        return Surveyed(kernel.survey(method, [(task, states[task.name]) for task in tasks]), states)


def _tell(report: Report, whose: str, progress: "Progress") -> None:
    report(f"{whose}, {100 * progress.done // max(1, progress.total)} %")


def _finish(
    ahead: "deque[tuple[TensorTask, Future[Any]]]", states: dict[str, Any], cancelled: Callable[[], bool]
) -> None:
    if cancelled():
        raise MergeCancelledError("the merge was cancelled; what is complete is kept")
    task, future = ahead.popleft()
    states[task.name] = future.result()
