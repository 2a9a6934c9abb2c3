"""What has to be known of models at work before a plan's methods can merge: from the recipe's data to requests.

How a statistic is gathered is the business of safegraft.calibration.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.task import Contribution, StatisticKey, TensorTask
from safegraft.errors import InputError, Problem
from safegraft.methods.contract import Calibration, MergeMethod, Statistic
from safegraft.recipe.model import CalibrationSet, Recipe

if TYPE_CHECKING:
    from safegraft.calibration import DataSet, Request


class CalibrationData:
    """The data sets of a recipe, each opened once, when a statistic asks for it; gathers problems and notes."""

    def __init__(self, recipe: Recipe, find_data: Callable[[str], Path] | None) -> None:
        self.recipe = recipe
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._find = find_data
        self._opened: dict[CalibrationSet, DataSet | None] = {}

    def missing(self, methods: Mapping[str, MergeMethod]) -> list[Problem]:
        """Sets that a method needs and a model has not been given."""
        problems: list[Problem] = []
        for method in methods.values():
            needed = {name for one in method.requires.calibration for name in one.data}
            inputs = [entry.model for entry in self.recipe.models if entry.role is None]
            for name in sorted(needed):
                lacking = [model for model in inputs if self._spec(model, name) is None]
                if lacking:
                    message = (
                        f"{method.name} needs data called {name!r}, and {', '.join(lacking)} has none: add it here"
                    )
                    problems.append(Problem(self.recipe.where("calibration"), message))
        return problems

    def sets(self, model: str, names: Sequence[str]) -> "tuple[DataSet, ...] | None":
        """The sets called `names` for one input; None, and a problem noted, when one cannot be read."""
        specs = [self._spec(model, name) for name in names]
        opened = [self._open(spec) if spec is not None else None for spec in specs]
        found = tuple(one for one in opened if one is not None)
        return found if len(found) == len(names) else None

    def _spec(self, model: str, name: str) -> CalibrationSet | None:
        own = [one for entry in self.recipe.models if entry.model == model for one in entry.calibration]
        return next((one for one in (*own, *self.recipe.calibration) if one.name == name), None)

    def _open(self, spec: CalibrationSet) -> "DataSet | None":
        if spec not in self._opened:
            self._opened[spec] = self._read(spec)
        return self._opened[spec]

    def _read(self, spec: CalibrationSet) -> "DataSet | None":
        from safegraft.calibration import open_data

        where = self.recipe.where(*spec.at, "data")
        try:
            if self._find is None:
                raise InputError(Problem(where, "no data can be read here"))
            data = open_data(spec, self._find(spec.data), where)
        except InputError as error:
            self.problems += error.problems
            return None
        self.notes += data.notes
        return data


def requests(
    tasks: Sequence[TensorTask],
    recipe: Recipe,
    methods: Mapping[str, MergeMethod],
    checkpoints: Mapping[str, Checkpoint],
    data: CalibrationData,
) -> "dict[StatisticKey, Request]":
    """What to gather, by method, statistic and input. Problems are left in `data`."""
    wanted: dict[StatisticKey, list[str]] = {}
    whose: dict[StatisticKey, tuple[Calibration, str]] = {}
    for task in tasks:
        method = methods[task.method] if task.method is not None else None
        for one, calibration, shown in _uses(task, method):
            key = (method.name if method else "", calibration.name, one.model)
            wanted.setdefault(key, []).append(shown.tensor)
            whose[key] = (calibration, shown.model)
    found: dict[StatisticKey, Request] = {}
    for key, tensors in wanted.items():
        calibration, model = whose[key]
        request = _request(key, calibration, checkpoints, model, tensors, recipe, methods[key[0]], data)
        if request is not None:
            found[key] = request
    return found


def shown_model(task: TensorTask, method: MergeMethod, calibration: Calibration, number: int) -> int:
    """Which contribution's model a statistic of input `number` is of, as an index of the task's contributions."""
    if calibration.model == "input":
        return number
    if calibration.model == "base":
        return len(task.contributions) - 1
    first_role = len(task.inputs) - len(method.requires.roles)
    return first_role + method.requires.roles.index(calibration.model)


def _uses(task: TensorTask, method: MergeMethod | None) -> Iterator[tuple[Contribution, Calibration, Contribution]]:
    """(an input, a statistic it needs, the contribution that the statistic is of)."""
    if method is None:
        return
    for number, one in enumerate(task.inputs[: len(task.inputs) - len(method.requires.roles)]):
        for calibration in method.requires.calibration:
            yield one, calibration, task.contributions[shown_model(task, method, calibration, number)]


def _request(
    key: StatisticKey,
    calibration: Calibration,
    checkpoints: Mapping[str, Checkpoint],
    model: str,
    tensors: Sequence[str],
    recipe: Recipe,
    method: MergeMethod,
    data: CalibrationData,
) -> "Request | None":
    from safegraft.calibration import Request, problems

    sets = data.sets(key[2], calibration.data)
    if sets is None:
        return None
    reference: Checkpoint | None = None
    if calibration.statistic is Statistic.PREFERENCE_MASK:
        aligned = next(entry.model for entry in recipe.models if entry.role == "aligned")
        reference = checkpoints[aligned]
    request = Request(calibration.statistic, checkpoints[model], sets, reference, tuple(dict.fromkeys(tensors)))
    faults = problems(request)
    data.problems += [Problem(model, f"{method.name} needs its {calibration.statistic}: {fault}") for fault in faults]
    return None if faults else request
