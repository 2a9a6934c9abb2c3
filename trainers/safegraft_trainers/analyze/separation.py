"""How well a linear probe tells harmful from normal prompts, layer by layer.

    auc, accuracy   of a logistic regression on standardised states, on prompts that it was not trained on
                    (stratified folds); 0.5 is chance; accuracy is balanced: the mean over the two classes
    distance        ||mean harmful - mean normal|| / sqrt(mean squared distance of a state to its own class's mean)

The distance needs no training, but grows with the number of dimensions; the probe is what counts. Knows no models.
"""

# scikit-learn comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from safegraft.errors import InputError, Problem

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Separation:
    """Curves over the language model's layers, from 0. distance: None where all states of both classes are equal to
    their class's mean."""

    model: str
    normal: int  # prompts
    harmful: int
    folds: int
    auc: tuple[float, ...]
    accuracy: tuple[float, ...]
    distance: tuple[float | None, ...]

    @property
    def best(self) -> int:
        """The layer with the highest AUC."""
        return max(range(len(self.auc)), key=lambda layer: self.auc[layer])

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "normal": self.normal,
            "harmful": self.harmful,
            "folds": self.folds,
            "auc": list(self.auc),
            "accuracy": list(self.accuracy),
            "distance": list(self.distance),
            "best": self.best,
        }


def separation(
    model: str, normal: torch.Tensor, harmful: torch.Tensor, *, folds: int = FOLDS, seed: int = 0
) -> Separation:
    """From states [samples, layers, width], see subject.Subject.states.

    Raises InputError where a class has fewer prompts than there are folds.
    """
    few = min(len(normal), len(harmful))
    if few < folds:
        message = (
            f"a probe in {folds} folds needs {folds} normal and {folds} harmful prompts; the smaller set has {few}"
        )
        raise InputError(Problem(model, message))
    labels = np.repeat([0, 1], [len(normal), len(harmful)])
    auc: list[float] = []
    accuracy: list[float] = []
    distance: list[float | None] = []
    for layer in range(normal.shape[1]):
        ours, theirs = normal[:, layer].double(), harmful[:, layer].double()
        found = probe(torch.cat([ours, theirs]).numpy(), labels, folds=folds, seed=seed)
        auc.append(found[0])
        accuracy.append(found[1])
        distance.append(_distance(ours, theirs))
    return Separation(model, len(normal), len(harmful), folds, tuple(auc), tuple(accuracy), tuple(distance))


def probe(
    states: "np.ndarray[Any, Any]", labels: "np.ndarray[Any, Any]", *, folds: int, seed: int
) -> tuple[float, float]:
    """(AUC, balanced accuracy) of states [samples, width] with labels 0 and 1, each scored by a probe that has not
    seen it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    scores: Any = cross_val_predict(pipeline, states, labels, cv=splits, method="decision_function")
    return float(roc_auc_score(labels, scores)), float(balanced_accuracy_score(labels, scores > 0))


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float | None:
    centres = ours.mean(0), theirs.mean(0)
    within = torch.cat([ours - centres[0], theirs - centres[1]]).square().sum(1).mean().sqrt()
    return float((centres[0] - centres[1]).norm() / within) if within > 0 else None
