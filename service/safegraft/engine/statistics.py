"""What has to be known of models at work before a plan's methods can merge: from the recipe's data to requests.

How a statistic is gathered is the business of safegraft.calibration.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.sections import sections_of
from safegraft.engine.substituted import Substituted
from safegraft.engine.task import Contribution, StatisticKey, TensorTask
from safegraft.errors import InputError, Problem
from safegraft.methods.contract import Calibration, MergeMethod, Statistic
from safegraft.recipe.model import At, CalibrationSet, Recipe

if TYPE_CHECKING:
    from safegraft.calibration import DataSet, Request


class CalibrationData:
    """The data sets of a recipe, each opened once, when a statistic asks for it; gathers problems and notes."""

    def __init__(self, recipe: Recipe, find_data: Callable[[str], Path] | None) -> None:
        self.recipe = recipe
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._find = find_data
        self._opened: dict[At, DataSet | None] = {}  # by the place in the recipe

    def missing(self, methods: Mapping[str, MergeMethod]) -> list[Problem]:
        """Sets that a method needs and a model has not been given."""
        problems: list[Problem] = []
        # Models are put to work as they are stored; with these keys the plan shows them otherwise.
        hindering = [
            key for key, there in (("slices", self.recipe.all_slices()), ("tokenizer", self.recipe.tokenizer)) if there
        ]
        for method in methods.values():
            needed = {
                name
                for one in method.requires.calibration
                if not (one.unless and set(one.unless) <= self.recipe.parameters.keys())
                for name in one.data
            }
            if needed and hindering:
                message = f"{method.name} looks at models at work, which cannot be combined with `{hindering[0]}`"
                problems.append(Problem(self.recipe.where("merge_method"), message))
            inputs = list(dict.fromkeys(model for section in sections_of(self.recipe) for model in section.models))
            for name in sorted(needed):
                lacking = [model for model in inputs if self._spec(model, name) is None]
                if lacking:
                    whose = f"{', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} none"
                    message = f"{method.name} needs data called {name!r}, and {whose}: add it here{self._meant(name)}"
                    problems.append(Problem(self.recipe.where("calibration"), message))
        return problems

    def unread(self, methods: Mapping[str, MergeMethod]) -> list[str]:
        """Warnings for sets that no method here asks for."""
        asked = sorted(
            {name for method in methods.values() for one in method.requires.calibration for name in one.data}
        )
        given = [*self.recipe.calibration, *(one for entry in self.recipe.all_entries() for one in entry.calibration)]
        there = f"they ask for {', '.join(asked)}" if asked else "they ask for no data"
        return [
            f"{self.recipe.where(*one.at)}: is read by none of {', '.join(methods)}: {there}"
            for one in given
            if one.name not in asked
        ]

    def sets(self, model: str, names: Sequence[str]) -> "tuple[DataSet, ...] | None":
        """The sets called `names` for one input; None, and a problem noted, when one cannot be read."""
        specs = [self._spec(model, name) for name in names]
        opened = [self._open(spec) if spec is not None else None for spec in specs]
        found = tuple(one for one in opened if one is not None)
        return found if len(found) == len(names) else None

    def _meant(self, name: str) -> str:
        close = difflib.get_close_matches(name, [one.name for one in self.recipe.calibration], n=1)
        return f", or rename {close[0]!r}" if close else ""

    def _spec(self, model: str, name: str) -> CalibrationSet | None:
        own = [one for entry in self.recipe.all_entries() if entry.model == model for one in entry.calibration]
        return next((one for one in (*own, *self.recipe.calibration) if one.name == name), None)

    def _open(self, spec: CalibrationSet) -> "DataSet | None":
        if spec.at not in self._opened:
            self._opened[spec.at] = self._read(spec)
        return self._opened[spec.at]

    def _read(self, spec: CalibrationSet) -> "DataSet | None":
        from safegraft.calibration import open_data

        where = self.recipe.where(*spec.at, "data")
        try:
            if self._find is None:
                raise InputError(Problem(where, "no data can be read here"))
            data = open_data(spec, self._find(spec.data), where)
        except InputError as error:  # of the file itself, which the recipe names, or of rows in it
            self.problems += [
                Problem(where if one.where == spec.data else one.where, one.message) for one in error.problems
            ]
            return None
        self.notes += data.notes
        return data


@dataclass
class _Wanted:
    """A statistic, the tensors it is wanted of, and which of the aligned model's stand for them in a reference."""

    calibration: Calibration
    model: str
    tensors: list[str] = field(default_factory=list[str])
    aligned: dict[str, Contribution] = field(default_factory=dict[str, Contribution])


def requests(
    tasks: Sequence[TensorTask],
    methods: Mapping[str, MergeMethod],
    checkpoints: Mapping[str, Checkpoint],
    data: CalibrationData,
) -> "dict[StatisticKey, Request]":
    """What to gather, by method, statistic and input. Problems and notes are left in `data`."""
    wanted: dict[StatisticKey, _Wanted] = {}
    for task in tasks:
        if task.method is None:
            continue
        for key, calibration, shown, aligned in _uses(task, methods[task.method]):
            one = wanted.setdefault(key, _Wanted(calibration, shown.model))
            one.tensors.append(shown.tensor)
            if aligned is not None:
                one.aligned[shown.tensor] = aligned
    found = {key: _request(key, one, checkpoints, data) for key, one in wanted.items()}
    return {key: request for key, request in found.items() if request is not None}


def is_said(calibration: Calibration, parameters: Any) -> bool:
    """Whether the parameters say what the statistic would."""
    given = parameters.model_dump()
    return bool(calibration.unless) and all(given[name] is not None for name in calibration.unless)


def shown_model(task: TensorTask, method: MergeMethod, calibration: Calibration, number: int) -> int:
    """Which contribution's model a statistic of input `number` is of, as an index of the task's contributions."""
    if calibration.model == "input":
        return number
    if calibration.model == "base":
        return len(task.contributions) - 1
    return _first_role(task, method) + method.requires.roles.index(calibration.model)


def _first_role(task: TensorTask, method: MergeMethod) -> int:
    return len(task.inputs) - len(method.requires.roles)


def _uses(
    task: TensorTask, method: MergeMethod
) -> Iterator[tuple[StatisticKey, Calibration, Contribution, Contribution | None]]:
    """For each statistic of each input: the contribution it is of, and the aligned model's, if there is one."""
    roles = dict(zip(method.requires.roles, task.inputs[_first_role(task, method) :], strict=True))
    for number, one in enumerate(task.inputs[: _first_role(task, method)]):
        for calibration in method.requires.calibration:
            if is_said(calibration, task.parameters):
                continue
            shown = task.contributions[shown_model(task, method, calibration, number)]
            yield (method.name, calibration.name, one.model), calibration, shown, roles.get("aligned")


def _request(
    key: StatisticKey, wanted: _Wanted, checkpoints: Mapping[str, Checkpoint], data: CalibrationData
) -> "Request | None":
    from safegraft.calibration import Request, notes, problems

    method, _, model = key
    sets = data.sets(model, wanted.calibration.data)
    if sets is None:
        return None
    checkpoint, statistic = checkpoints[wanted.model], wanted.calibration.statistic
    tensors, reference = wanted.tensors, None
    if statistic is Statistic.PREFERENCE_MASK and wanted.aligned:
        # The aligned model may be an LLM and this one an LVLM: then it stands in where they share a tensor.
        reference = Substituted(
            checkpoint, {name: (checkpoints[one.model], one.tensor) for name, one in wanted.aligned.items()}
        )
        tensors = [name for name in tensors if name in reference.substitutes]
    request = Request(statistic, checkpoint, sets, reference, tuple(dict.fromkeys(tensors)))
    faults = problems(request)
    data.problems += [Problem(wanted.model, f"{method} needs its {statistic}: {fault}") for fault in faults]
    if not faults:
        data.notes += notes(request)
    return None if faults else request
