"""Which of the miniature models are merged with which, how, and how strongly: recipes as a user writes them.

Pure data. Model names are those under which the demo's server, and its local check, know the folders.
"""

from dataclasses import dataclass
from typing import Any

from safegraft_trainers.lab.probes import CHECKPOINTS

Recipe = dict[str, Any]

HOST = "adapted-lvlm"
INPUTS = ("aligned-llm", HOST, "safety-sft-lvlm", "safety-sft-replay-lvlm")
STRENGTHS = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, slots=True)
class Pairing:
    """A safer model merged into the adapted one. The strength is the safer model's share.

    The default strengths were fixed beforehand, not chosen by the probes that the demo asks: a
    quarter of a model that never saw a picture, half of a sibling.
    """

    safer: str
    method: str
    default: float

    @property
    def name(self) -> str:
        return f"{HOST} + {self.safer}"

    def recipe(self, strength: float) -> Recipe:
        write = linear if self.method == "linear" else slerp
        return write(f"{CHECKPOINTS.name}/{HOST}", f"{CHECKPOINTS.name}/{self.safer}", strength)


def linear(host: str, safer: str, strength: float) -> Recipe:
    weights = {host: 1 - strength, safer: strength}
    models = [{"model": model, "parameters": {"weight": weight}} for model, weight in weights.items()]
    return {"merge_method": "linear", "models": models}


def slerp(host: str, safer: str, strength: float) -> Recipe:
    models = [{"model": host}, {"model": safer}]
    return {"merge_method": "slerp", "base_model": host, "models": models, "parameters": {"t": strength}}


PAIRINGS = (
    Pairing("aligned-llm", "linear", default=0.25),
    Pairing("safety-sft-lvlm", "slerp", default=0.5),
    Pairing("safety-sft-replay-lvlm", "slerp", default=0.5),
)
