"""What a sweep optimises: metrics, each with the direction that is better."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Direction = Literal["lower", "higher"]

# Every metric is a rate. The worst value that one can have is the hypervolume's reference, so that the volumes of two
# sweeps over the same suites can be compared, and lie between 0 and 1.
WORST: dict[Direction, float] = {"lower": 1.0, "higher": 0.0}


class Objective(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(min_length=1, description="As Evaluation.metric takes it: helpfulness, xstest/safe@knowledge.")
    direction: Direction

    def loss(self, value: float) -> float:
        """Between 0 and 1 and lower is better, whatever the direction."""
        return value if self.direction == "lower" else 1 - value

    @property
    def worst(self) -> float:
        return WORST[self.direction]


def losses(objectives: Sequence[Objective], values: Sequence[float]) -> tuple[float, ...]:
    return tuple(objective.loss(value) for objective, value in zip(objectives, values, strict=True))
