"""Everything that can be asked of a reference and the models derived from it, in one call.

Weights are compared always; the rest where there is data for it. Prints nothing and writes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.engine.identity import public_names
from safegraft.errors import CheckpointError, InputError, Problem, UsageError
from safegraft.local import open_model
from safegraft_trainers.analyze.barrier import POINTS, LinearPath, walk
from safegraft_trainers.analyze.data import ANSWERS, PROMPTS, read_data
from safegraft_trainers.analyze.divergence import Divergence, divergence
from safegraft_trainers.analyze.layout import check_distinct
from safegraft_trainers.analyze.safety_layers import SafetyLayers, safety_layers
from safegraft_trainers.analyze.separation import FOLDS, Separation, separation
from safegraft_trainers.analyze.subject import Subject, open_subject
from safegraft_trainers.analyze.task_vectors import TaskVectors, task_vectors
from safegraft_trainers.analyze.weights import Comparison, Report, compare, unreported

if TYPE_CHECKING:
    from safegraft.calibration import DataSet
    from safegraft_trainers.evaluate.example import Suite
    from safegraft_trainers.evaluate.judges import Judge

FORMAT = 1  # of the document

Stage = Callable[[str], Report]  # what begins now -> whom to tell how far it is


def silent(stage: str) -> Report:
    """The default for `stage`."""
    return unreported


@dataclass(frozen=True, slots=True)
class Settings:
    """What the numbers depend on beside models and data; see analyze()."""

    spectral: bool
    vocabulary: bool
    points: int
    folds: int
    samples: int
    seed: int
    max_length: int
    dtype: str
    device: str


@dataclass(frozen=True)
class Analysis:
    """names of models are public ones, never paths. What there was no data for is empty, or None.

    identities: model -> which weights it has. data: role -> the file's name, its samples, and their digest.
    """

    reference: str
    models: tuple[str, ...]
    base: str | None
    identities: dict[str, dict[str, str]]
    data: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    comparisons: tuple[Comparison, ...]
    task_vectors: TaskVectors | None = None
    safety_layers: tuple[SafetyLayers, ...] = ()
    separation: tuple[Separation, ...] = ()
    divergence: tuple[Divergence, ...] = ()
    paths: tuple[LinearPath, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Every number, for JSON: no NaN, None where one is not defined."""
        return {
            "format": FORMAT,
            "safegraft": version("safegraft"),
            "reference": self.reference,
            "models": list(self.models),
            "base": self.base,
            "identities": self.identities,
            "data": self.data,
            "settings": self.settings,
            "weights": [one.to_dict() for one in self.comparisons],
            "task_vectors": self.task_vectors.to_dict() if self.task_vectors else None,
            "safety_layers": [one.to_dict() for one in self.safety_layers],
            "separation": [one.to_dict() for one in self.separation],
            "divergence": [one.to_dict() for one in self.divergence],
            "paths": [one.to_dict() for one in self.paths],
            "notes": list(self.notes),
        }


def analyze(
    reference: str,
    models: Sequence[str],
    *,
    base: str | None = None,
    normal: Path | str | None = None,
    harmful: Path | str | None = None,
    adaptation: Path | str | None = None,
    safety: Path | str | None = None,
    suites: "Sequence[Suite]" = (),
    judges: "Sequence[Judge]" = (),
    spectral: bool = True,
    vocabulary: bool = True,
    points: int = POINTS,
    folds: int = FOLDS,
    samples: int = 128,
    seed: int = 0,
    max_length: int = 512,
    dtype: str = "float32",
    device: str = "cpu",
    stage: Stage = silent,
) -> Analysis:
    """Compare `models` with the `reference` that they were derived from.

    Args:
        base: what all of them come from; then their task vectors are compared too.
        normal, harmful: files of prompts (see data.py); safety layers and separation of every model.
        adaptation, safety: files of prompts with responses; divergence at every model, losses along the paths.
        suites, judges: what to score along the path from the reference to each model, by the first judge.
        spectral, vocabulary: see weights.compare. points: see barrier.walk. folds: of the probe.
        samples, seed, max_length: how many rows of each file are drawn, which, and at most how many tokens of each.
        dtype, device: in and on which models work.
        stage: told what begins; what it returns is told the progress.

    Raises UsageError, InputError (CheckpointError, AlignmentError, NonFiniteError), the problems of all models and
    of all files together.
    """
    if not models:
        raise UsageError("name a model to compare with the reference")
    _check_pairs(normal=normal, harmful=harmful, adaptation=adaptation, safety=safety)
    if suites:
        from safegraft_trainers.evaluate.run import check

        check(suites, judges)
    everyone = [reference, *models]
    check_distinct(everyone if base is None else [*everyone, base])
    settings = Settings(spectral, vocabulary, points, folds, samples, seed, max_length, dtype, device)
    files = {"normal": normal, "harmful": harmful, "adaptation": adaptation, "safety": safety}
    return _Work(reference, models, base, files, suites, judges, settings, stage).run()


def _check_pairs(**files: Path | str | None) -> None:
    """Raises UsageError where one of two files is missing that are only worth something together."""
    for one, other in (("normal", "harmful"), ("adaptation", "safety")):
        if (files[one] is None) != (files[other] is None):
            there, missing = (one, other) if files[other] is None else (other, one)
            raise UsageError(f"{there} prompts are compared with {missing} ones: give both files")


class _Work:
    """One analysis."""

    def __init__(
        self,
        reference: str,
        models: Sequence[str],
        base: str | None,
        files: dict[str, Path | str | None],
        suites: "Sequence[Suite]",
        judges: "Sequence[Judge]",
        settings: Settings,
        stage: Stage,
    ) -> None:
        self.reference, self.models, self.base = reference, models, base
        self.files, self.suites, self.judges = files, suites, judges
        self.settings, self.stage = settings, stage
        self.everyone = [reference, *models]
        self.notes: list[str] = []

    def run(self) -> Analysis:
        names, identities = self._look()
        data = self._data()
        comparisons = tuple(self._compare(model, names) for model in self.models)
        vectors = None
        if self.base is not None:
            report = self.stage("task vectors")
            vocabulary = self.settings.vocabulary
            vectors = task_vectors(self.everyone, self.base, vocabulary=vocabulary, names=names, progress=report)
        at_work = list(self._put_to_work(data, names))
        paths = tuple(self._paths(data, names))
        return Analysis(
            reference=names[self.reference],
            models=tuple(names[model] for model in self.models),
            base=None if self.base is None else names[self.base],
            identities=identities,
            data={role: {"file": one.name, "samples": one.count, "digest": one.digest} for role, one in data.items()},
            settings=self._settings(),
            comparisons=comparisons,
            task_vectors=vectors,
            safety_layers=tuple(one for one in at_work if isinstance(one, SafetyLayers)),
            separation=tuple(one for one in at_work if isinstance(one, Separation)),
            divergence=tuple(one for one in at_work if isinstance(one, Divergence)),
            paths=paths,
            notes=tuple(self.notes),
        )

    def _look(self) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """Open every model once, so that all that cannot be opened are told together."""
        problems: list[Problem] = []
        sources: dict[str, Sequence[str]] = {}
        identities: dict[str, dict[str, str]] = {}
        for one in [*self.everyone, *([self.base] if self.base else [])]:
            try:
                checkpoint = open_model(one)
            except CheckpointError as error:
                problems += error.problems
                continue
            sources[one] = checkpoint.sources
            identities[one] = {"scheme": checkpoint.identity.scheme, "digest": checkpoint.identity.digest}
            self.notes += checkpoint.notes
            checkpoint.close()
        if problems:
            raise CheckpointError(problems)
        names = public_names(sources)
        return names, {names[one]: identity for one, identity in identities.items()}

    def _data(self) -> "dict[str, DataSet]":
        """Read every file before the long work begins, and tell the problems of all together."""
        found: dict[str, DataSet] = {}
        problems: list[Problem] = []
        for role, path in self.files.items():
            if path is None:
                continue
            columns = PROMPTS if role in ("normal", "harmful") else ANSWERS
            try:
                found[role] = read_data(
                    path,
                    columns,
                    samples=self.settings.samples,
                    seed=self.settings.seed,
                    max_length=self.settings.max_length,
                )
            except InputError as error:
                problems += error.problems
        if problems:
            raise InputError(problems)
        self.notes += [f"{role}: {note}" for role, one in found.items() for note in one.notes]
        return found

    def _compare(self, model: str, names: dict[str, str]) -> Comparison:
        return compare(
            self.reference,
            model,
            spectral=self.settings.spectral,
            vocabulary=self.settings.vocabulary,
            device=self.settings.device,
            names=names,
            progress=self.stage(f"weights of {names[model]}"),
        )

    def _put_to_work(
        self, data: "dict[str, DataSet]", names: dict[str, str]
    ) -> Iterator[SafetyLayers | Separation | Divergence]:
        """Each model is loaded once, for all that is asked of it."""
        jobs = [job for role, job in (("normal", self._states), ("safety", self._gradients)) if role in data]
        images = any(one.has_images for one in data.values())
        for model in self.everyone if jobs else []:
            report = self.stage(f"{names[model]} at work")
            report(0, len(jobs), "loading")
            subject = open_subject(
                model, images=images, dtype=self.settings.dtype, device=self.settings.device, name=names[model]
            )
            for done, job in enumerate(jobs):
                report(done, len(jobs), names[model])
                yield from job(subject, data)
            report(len(jobs), len(jobs), "")

    def _states(self, subject: Subject, data: "dict[str, DataSet]") -> Iterator[SafetyLayers | Separation]:
        normal, harmful = (subject.states(data[role]) for role in ("normal", "harmful"))
        yield safety_layers(subject.name, normal, harmful)
        yield separation(subject.name, normal, harmful, folds=self.settings.folds, seed=self.settings.seed)

    def _gradients(self, subject: Subject, data: "dict[str, DataSet]") -> Iterator[Divergence]:
        if not subject.answers_as_asked(data["safety"]):
            self.notes.append(
                f"{subject.name}: its chat template does not write an answer into a conversation as it asks for one "
                "(a mark before it is missing, perhaps), so losses count tokens that the model is never asked for"
            )
        yield divergence(subject, data["adaptation"], data["safety"])

    def _paths(self, data: "dict[str, DataSet]", names: dict[str, str]) -> Iterator[LinearPath]:
        losses = {role: data[role] for role in ("adaptation", "safety") if role in data}
        if not losses and not self.suites:
            return
        for model in self.models:
            path = walk(
                self.reference,
                model,
                losses,
                points=self.settings.points,
                suites=self.suites,
                judges=self.judges,
                dtype=self.settings.dtype,
                device=self.settings.device,
                names=names,
                progress=self.stage(f"from {names[self.reference]} to {names[model]}"),
            )
            for reason, count in path.skipped.items():
                self.notes.append(f"on the way to {path.model}, {count} examples were not asked: {reason}")
            yield path

    def _settings(self) -> dict[str, Any]:
        suites = [{"name": suite.name, "digest": suite.digest} for suite in self.suites]
        return {**asdict(self.settings), "suites": suites, "judges": [one.name for one in self.judges]}
