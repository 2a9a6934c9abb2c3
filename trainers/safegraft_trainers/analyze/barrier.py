"""Loss and scores along the straight line between two models, (1 - t) A + t B: whether a merge can lie between them.

    barrier   max_t L(t) - ((1 - t) L(0) + t L(1))      (Ainsworth et al., arXiv 2209.04836; Entezari et al.)
    rise      max_t L(t) - (L(0) + L(1)) / 2            (Frankle et al., arXiv 1912.05671)

Both are 0 or near where the two lie in one basin. Each point is a linear merge that no disk sees: where A is an LLM and
B an LVLM, the line is that of the language model, in B's body, and t = 0 is A's weights in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import safegraft
from safegraft.calibration import DataSet
from safegraft.errors import UsageError
from safegraft_trainers.analyze.layout import check_distinct
from safegraft_trainers.analyze.subject import Subject, merged_subject
from safegraft_trainers.analyze.weights import Report, unreported
from safegraft_trainers.evaluate.results import Score

if TYPE_CHECKING:
    from safegraft_trainers.evaluate.example import Suite
    from safegraft_trainers.evaluate.judges import Judge

POINTS = 11


@dataclass(frozen=True, slots=True)
class LinearPath:
    """points: t, from 0 (the reference) to 1 (the model). losses: data set -> mean loss at each point, in nats.

    scores: metric ("text_safety", ...) -> its score at each point, with its interval. skipped: why examples of the
    suites were not asked -> how many of them.
    """

    reference: str
    model: str
    points: tuple[float, ...]
    losses: dict[str, tuple[float, ...]]
    scores: dict[str, tuple[Score, ...]] = field(default_factory=dict[str, tuple[Score, ...]])
    skipped: dict[str, int] = field(default_factory=dict[str, int])

    def barrier(self, data: str) -> float:
        """The height above the straight line between the ends, at least 0."""
        losses = self.losses[data]
        return max(
            loss - ((1 - t) * losses[0] + t * losses[-1]) if 0 < t < 1 else 0.0
            for t, loss in zip(self.points, losses, strict=True)
        )

    def rise(self, data: str) -> float:
        """The height above the mean of the ends, at least 0."""
        losses = self.losses[data]
        return max(losses) - (losses[0] + losses[-1]) / 2

    def lowest(self, data: str) -> float:
        """The t of the lowest loss."""
        losses = self.losses[data]
        return self.points[losses.index(min(losses))]

    def to_dict(self) -> dict[str, Any]:
        losses = [
            {
                "data": name,
                "values": list(values),
                "barrier": self.barrier(name),
                "rise": self.rise(name),
                "lowest": self.lowest(name),
            }
            for name, values in self.losses.items()
        ]
        return {
            "reference": self.reference,
            "model": self.model,
            "points": list(self.points),
            "losses": losses,
            "scores": [
                {
                    "metric": name,
                    "values": [one.value for one in scores],
                    "low": [one.low for one in scores],
                    "high": [one.high for one in scores],
                    "n": scores[0].n,
                }
                for name, scores in self.scores.items()
            ],
            "skipped": self.skipped,
        }


def walk(
    reference: str,
    model: str,
    data: Mapping[str, DataSet],
    *,
    points: int = POINTS,
    suites: "Sequence[Suite]" = (),
    judges: "Sequence[Judge]" = (),
    dtype: str = "float32",
    device: str = "cpu",
    names: Mapping[str, str] | None = None,
    progress: Report = unreported,
) -> LinearPath:
    """Go from the reference to the model in `points` even steps, both ends included.

    data: name -> prompts with responses. suites: what to score at each point, by the first of `judges`.
    Raises UsageError, InputError (CheckpointError, AlignmentError, NonFiniteError).
    """
    check_distinct([reference, model])
    if points < 3:
        raise UsageError(f"a path needs at least 3 points, not {points}: two ends and something between")
    images = any(one.has_images for one in data.values()) or bool(suites)
    steps = tuple(index / (points - 1) for index in range(points))
    losses: dict[str, list[float]] = {name: [] for name in data}
    scores: dict[str, list[Score]] = {}
    skipped: dict[str, int] = {}
    known = {reference: reference, model: model}
    for index, t in enumerate(steps):
        progress(index, points, f"t = {t:g}")
        with safegraft.open(_recipe(reference, model, t)) as merged:
            known = dict(merged.plan.names)
            subject = merged_subject(merged, f"t = {t:g}", images=images, dtype=dtype, device=device)
        for name, one in data.items():
            losses[name].append(subject.mean_loss(one))
        if suites:
            found, skipped = _scored(subject, suites, judges)
            for metric, score in found.items():
                scores.setdefault(metric, []).append(score)
    progress(points, points, "")
    known = known if names is None else names
    return LinearPath(
        known[reference],
        known[model],
        steps,
        {name: tuple(values) for name, values in losses.items()},
        {metric: tuple(values) for metric, values in scores.items()},
        skipped,
    )


def _recipe(reference: str, model: str, t: float) -> dict[str, Any]:
    """In float32, so that the line is straight and not rounded to what the models are stored in."""
    models = [
        {"model": reference, "parameters": {"weight": 1 - t}},
        {"model": model, "parameters": {"weight": t}},
    ]
    return {"merge_method": "linear", "models": models, "out_dtype": "float32"}


def _scored(
    subject: Subject, suites: "Sequence[Suite]", judges: "Sequence[Judge]"
) -> tuple[dict[str, Score], dict[str, int]]:
    """Axis -> its score, and why examples were not asked -> how many. Raises UsageError when none could be."""
    from safegraft_trainers.evaluate.respondents import TransformersRespondent
    from safegraft_trainers.evaluate.run import evaluate

    evaluation = evaluate(TransformersRespondent(subject.loaded), suites, judges)
    axes = dict.fromkeys(str(example.axis) for suite in suites for example in suite.examples)
    found = {axis: score for axis in axes if (score := evaluation.find(axis)) is not None}
    skipped = dict(evaluation.skipped)
    if not found:
        raise UsageError(f"no example of the suites can be asked along the path: {', '.join(skipped)}")
    return found, skipped
