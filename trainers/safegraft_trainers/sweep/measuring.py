"""A recipe becomes an evaluation: planned, merged into the model in memory, asked, judged.

Knows nothing of searches and fronts. A baseline is a recipe too: a model that is passed through.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safegraft.errors import Problem, UsageError
from safegraft_trainers.evaluate.example import Example, Suite
from safegraft_trainers.evaluate.judges import Judge
from safegraft_trainers.evaluate.respondents import Respondent, TransformersRespondent
from safegraft_trainers.evaluate.results import Answer, Evaluation
from safegraft_trainers.evaluate.run import evaluate
from safegraft_trainers.evaluate.scoring import JUDGED
from safegraft_trainers.loading import Loaded
from safegraft_trainers.sweep.constraint import Constraint
from safegraft_trainers.sweep.merged import Merger, Recipe
from safegraft_trainers.sweep.parts import Generation
from safegraft_trainers.sweep.resident import Resident
from safegraft_trainers.sweep.store import Measurement, Store, setup_of

Respond = Callable[[Loaded], Respondent]
Bounds = Sequence[tuple[Constraint, float]]


def baseline_recipe(reference: str) -> Recipe:
    """A model as it is, through the same path as every candidate."""
    return {"merge_method": "passthrough", "models": [{"model": reference}]}


def responding(generation: Generation) -> Respond:
    settings = generation.model_dump(exclude={"dtype", "device"})
    return lambda loaded: TransformersRespondent(loaded, **settings)


@dataclass(frozen=True)
class Bench:
    """Where recipes are measured.

    suites: by split. cache: a folder for answers and for verdicts of costly judges; they outlive a kill.
    """

    merger: Merger
    resident: Resident
    respond: Respond
    suites: Mapping[str, Sequence[Suite]]
    judges: Sequence[Judge]
    generation: Generation
    store: Store
    cache: Path
    seed: int

    def measure(self, recipe: Recipe, name: str, split: str, watched: Bounds = ()) -> Measurement:
        """Ask all suites of a split, or fewer: none after one that shows that a watched constraint cannot be met.

        Raises what planning, merging, loading and evaluating raise.
        """
        suites = self.suites[split]
        setup = setup_of(suites, self.judges, self.generation, self.seed)
        with self.merger.open(recipe) as merge:
            known = self.store.read(split, merge.digest, setup)
            # What was stopped early may have been so under other constraints.
            if known is not None and (not known.pruned or known.pruned == hopeless(known.evaluation, watched)):
                return replace(known, evaluation=replace(known.evaluation, model=name))
            loaded = self.resident.load(merge, name)
            evaluation, pruned = self._ask(self.respond(loaded), suites, watched)
            found = Measurement(merge.digest, evaluation, pruned, merge.warnings)
        self.store.write(split, found, setup)
        return found

    def _ask(self, respondent: Respondent, suites: Sequence[Suite], watched: Bounds) -> tuple[Evaluation, str]:
        """Suite after suite, as far as something is to be decided on the way."""
        for count, decided in _decisions(suites, watched):
            # The cache has the answers of the suites before: each is asked once.
            evaluation = evaluate(respondent, suites[:count], self.judges, cache=self.cache, seed=self.seed)
            if pruned := hopeless(evaluation, decided):
                return evaluation, pruned
        return evaluate(respondent, suites, self.judges, cache=self.cache, seed=self.seed), ""


def hopeless(evaluation: Evaluation, bounds: Bounds) -> str:
    """Which constraint a model surely violates: its whole 95 % interval is on the wrong side. "" when none."""
    for constraint, bound in bounds:
        score = evaluation.find(constraint.metric)
        if score is not None and constraint.is_hopeless(score.low, score.high, bound):
            interval = f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
            return f"{constraint.text}: {constraint.metric} is {interval}, the limit {bound:.3f}"
    return ""


def _decisions(suites: Sequence[Suite], watched: Bounds) -> list[tuple[int, Bounds]]:
    """After how many suites which constraints have all their prompts answered; not after the last, when all have."""
    due: dict[int, list[tuple[Constraint, float]]] = {}
    for constraint, bound in watched:
        last = max((index for index, suite in enumerate(suites) if _bears_on(suite, constraint.metric)), default=None)
        if last is not None and last + 1 < len(suites):
            due.setdefault(last + 1, []).append((constraint, bound))
    return sorted(due.items())


def _bears_on(suite: Suite, metric: str) -> bool:
    group = metric.partition("@")[0]
    if group == suite.name or group.startswith(f"{suite.name}/"):
        return True
    return any(example.axis == group for example in suite.examples)


def check_metrics(
    named: Sequence[tuple[str, str]], suites: Mapping[str, Sequence[Suite]], judges: Sequence[Judge]
) -> None:
    """Raise UsageError for metrics that no model can have here, before hours are spent.

    named: where a metric is asked for, and its name.
    """
    faults: list[Problem] = []
    for split, asked in suites.items():
        groups = _unanswered(asked).groups
        for where, metric in named:
            judge = next((one for one in judges if metric.endswith(f"@{one.name}")), None)
            group = metric.removesuffix(f"@{judge.name}") if judge else metric
            answers = groups.get(group, ())
            if not answers:
                there = ", ".join(name for name, examples in groups.items() if examples)
                faults.append(
                    Problem(where, f"no prompt of the {split} split counts for {metric!r}; there are {there}")
                )
            elif judge and not any(one.scoring in JUDGED & judge.scorings for one in answers):
                faults.append(Problem(where, f"{judge.name} judges nothing of {group}"))
    if faults:
        raise UsageError(list(dict.fromkeys(faults)))


def _unanswered(suites: Sequence[Suite]) -> Evaluation:
    from safegraft_trainers.evaluate.results import SuiteInfo

    return Evaluation(
        model="",
        digest="",
        settings={},
        seed=0,
        suites=[SuiteInfo(one.name, "", len(one.examples), one.reference) for one in suites],
        judges=[],
        answers=[_blank(suite, example) for suite in suites for example in suite.examples],
    )


def _blank(suite: Suite, example: Example) -> Answer:
    fields: dict[str, Any] = {"suite": suite.name, "id": example.id, "fingerprint": "", "image": None, "text": None}
    copied = ("axis", "scoring", "subset", "prompt", "system")
    return Answer(**fields, **{name: getattr(example, name) for name in copied})
