"""What the demo merges, how, and how strongly: recipes as a user writes them.

Pure data. Model names are those under which the demo's server, and its local check, know the folders.
"""

from dataclasses import dataclass
from typing import Any

from safegraft_trainers.lab.stages import ADAPTED, ALIGNED, CHECKPOINTS, REPLAY

Recipe = dict[str, Any]
HOST = ADAPTED


@dataclass(frozen=True, slots=True)
class Pairing:
    """A safer model merged into the adapted one. A strength is the safer model's share.

    The strengths were fixed beforehand, not chosen by the questions that the demo asks. default: the one in the middle,
    whose plan is shown and which is put into words.
    """

    safer: str
    method: str
    strengths: tuple[float, float, float]

    @property
    def name(self) -> str:
        return f"{HOST} + {self.safer}"

    @property
    def default(self) -> float:
        return self.strengths[1]

    def label(self, strength: float) -> str:
        return f"{self.method} {strength:g} {self.safer}"

    def file(self, strength: float) -> str:
        """The name of the folder that the merge is in, and of its recipe."""
        return f"{self.safer}-{strength:g}"

    def recipe(self, strength: float) -> Recipe:
        write = linear if self.method == "linear" else slerp
        return write(f"{CHECKPOINTS}/{HOST}", f"{CHECKPOINTS}/{self.safer}", strength)


def linear(host: str, safer: str, strength: float) -> Recipe:
    weights = {host: 1 - strength, safer: strength}
    models = [{"model": model, "parameters": {"weight": weight}} for model, weight in weights.items()]
    return {"merge_method": "linear", "models": models}


def slerp(host: str, safer: str, strength: float) -> Recipe:
    models = [{"model": host}, {"model": safer}]
    return {"merge_method": "slerp", "base_model": host, "models": models, "parameters": {"t": strength}}


PAIRINGS = (
    Pairing(ALIGNED, "linear", (0.2, 0.35, 0.5)),
    Pairing(REPLAY, "slerp", (0.25, 0.5, 0.75)),
)
