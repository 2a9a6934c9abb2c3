"""What has to come out, and what did. Every target is a number that is computed from the runs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import served
from bench.cases import FLOOR, METHODS, OURS, OURS_1, OURS_2, RIVALS
from bench.results import Results
from bench.shapes import SIZES

LESS_CPU = {"linear": 2.5, "slerp": 4.0, "ties": 10.0, "dare_ties": 10.0, "task_arithmetic": 4.0}
SECOND_THREAD = 1.7
MEMORY_MB = 300.0
FLAT = 1.1  # peak memory of the largest model over that of the smallest
COMPUTE_BOUND = 3.0  # one thread computes so many times as long as the floor takes to move the bytes
MB = 1e6

Measured = tuple[float, str]  # and where
Finder = Callable[[Results], Measured | None]


@dataclass(frozen=True, slots=True)
class Target:
    """find: the measured value and where it is from; None when the runs do not have it."""

    what: str
    bound: float
    unit: str
    at_least: bool
    find: Finder


@dataclass(frozen=True, slots=True)
class Outcome:
    target: Target
    measured: Measured | None

    @property
    def met(self) -> bool | None:
        """None when it was not measured."""
        if self.measured is None:
            return None
        value = self.measured[0]
        return value >= self.target.bound if self.target.at_least else value <= self.target.bound


def outcomes(results: Results) -> list[Outcome]:
    return [Outcome(target, target.find(results)) for target in TARGETS]


def _targets() -> Iterator[Target]:
    yield Target("linear, 2 inputs, whole process, wall: mergekit / safegraft", 5.0, "x", True, _whole_wall)
    for method, bound in LESS_CPU.items():
        yield Target(f"{method}, merge CPU: mergekit / safegraft", bound, "x", True, _less_cpu(method))
    yield Target("linear, merge CPU: safegraft / floor", 1.5, "x", False, _over_floor)
    yield Target("peak RSS, element-wise and TIES-like methods, the worst", MEMORY_MB, "MB", False, _worst_memory)
    yield Target("peak RSS, largest model / smallest, the worst", FLAT, "x", False, _growth)
    yield Target(
        "second thread, compute-bound methods, the worst: 1 thread / 2", SECOND_THREAD, "x", True, _second_thread
    )
    for case in (served.KEPT, served.COMPUTED):
        name = case.partition("/")[2]
        yield Target(f"served, {name}: first merged byte after the plan", 50.0, "ms", False, _first_byte(case))
        yield Target(f"served, {name}: bytes a second, of raw gRPC", 60.0, "%", True, _share_of_raw(case))
    yield Target("`safegraft --help`", 0.3, "s", False, _start("start/help"))
    yield Target("`safegraft plan` of a 7B pair", 1.0, "s", False, _start("start/plan 7B"))


def comparisons(results: Results, method: str, *sides: str, inputs: int = 2) -> list[str]:
    """The cases of a method in which all these sides took part, from the smallest model to the largest."""
    names = [f"{method}/{size}/{inputs}" for size in SIZES]
    return [name for name in names if all(results.rounds(name, side) for side in sides)]


def second_thread(results: Results, case: str) -> float | None:
    """How many times as fast two threads are, from the plan to the end."""
    return results.ratio(case, (OURS_1,), (OURS_2,), "merge_wall", "merge_wall")


def _rival_case(results: Results, method: str) -> str | None:
    """The largest model on which mergekit was run."""
    found = [case for side in RIVALS for case in comparisons(results, method, OURS_1, OURS_2, side)]
    return max(found, key=lambda case: list(SIZES).index(case.split("/")[1]), default=None)


def _whole_wall(results: Results) -> Measured | None:
    case = _rival_case(results, "linear")
    return None if case is None else _at(results.ratio(case, RIVALS, (OURS_2,), "whole_wall", "whole_wall"), case)


def _less_cpu(method: str) -> Finder:
    def find(results: Results) -> Measured | None:
        case = _rival_case(results, method)
        return None if case is None else _at(results.ratio(case, RIVALS, (OURS_1,), "merge_cpu", "merge_cpu"), case)

    return find


def _over_floor(results: Results) -> Measured | None:
    case = _rival_case(results, "linear")
    return None if case is None else _at(results.ratio(case, (OURS_1,), (FLOOR,), "merge_cpu", "whole_cpu"), case)


def _worst_memory(results: Results) -> Measured | None:
    found = [
        (spread.most / MB, case)
        for method in _bounded()
        for case in results.cases(f"{method}/*")
        for side in OURS
        if (spread := results.of(case, side, "whole_peak_rss"))
    ]
    return max(found, default=None)


def _growth(results: Results) -> Measured | None:
    found: list[Measured] = []
    for method in _bounded():
        cases = comparisons(results, method, OURS_2)
        if len(cases) > 1:
            figure = "whole_peak_rss"
            small, large = (results.median(case, OURS_2, figure) for case in (cases[0], cases[-1]))
            if small and large:
                found.append((large / small, f"{cases[-1]} over {cases[0].split('/')[1]}"))
    return max(found, default=None)


def _second_thread(results: Results) -> Measured | None:
    found = [
        (faster, case)
        for method in METHODS
        for case in comparisons(results, method, OURS_1, OURS_2, FLOOR)[-1:]
        if (results.ratio(case, (OURS_1,), (FLOOR,), "merge_cpu", "whole_cpu") or 0) >= COMPUTE_BOUND
        if (faster := second_thread(results, case)) is not None
    ]
    return min(found, default=None)


def _first_byte(case: str) -> Finder:
    def find(results: Results) -> Measured | None:
        seconds = results.median(case, served.SAFEGRAFT, "first_merged_byte")
        return None if seconds is None else (1000 * seconds, "")

    return find


def _share_of_raw(case: str) -> Finder:
    def find(results: Results) -> Measured | None:
        reached = results.median(case, served.SAFEGRAFT, "mb_per_s")
        raw = results.median(served.KEPT, served.RAW, "mb_per_s")
        return None if reached is None or raw is None else (100 * reached / raw, "")

    return find


def _start(case: str) -> Finder:
    def find(results: Results) -> Measured | None:
        seconds = results.median(case, served.SAFEGRAFT, "whole_wall")
        return None if seconds is None else (seconds, "")

    return find


def _bounded() -> list[str]:
    return [name for name, method in METHODS.items() if method.bounded]


def _at(value: float | None, case: str) -> Measured | None:
    return None if value is None else (value, case)


TARGETS = tuple(_targets())
