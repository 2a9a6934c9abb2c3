"""What every TRL trainer is extended by: class Trainer(Extended, SFTTrainer), Trainer(Extended, DPOTrainer), ...

A run that resumes (resume.py), a learning rate of its own for the projector, and no model card but ours.
"""

# transformers types its trainer in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import warnings
from typing import Any

from safegraft_trainers.training.parts import Part, Parts
from safegraft_trainers.training.resume import Resumable


class Extended(Resumable):
    projector_rate: tuple[Parts, float] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # PEFT still asks for it by a name that transformers is about to drop.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            super().__init__(*args, **kwargs)

    def use_projector_rate(self, parts: Parts, rate: float) -> None:
        """Let the projector learn at `rate`; the schedule scales it as it scales the others'. Before training."""
        self.projector_rate = parts, rate

    def create_optimizer(self, model: Any = None) -> Any:
        fresh = self.optimizer is None
        optimizer: Any = super().create_optimizer(model)
        if fresh and self.projector_rate is not None:
            _split_groups(optimizer, self.model if model is None else model, *self.projector_rate)
        return optimizer

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes a card with every checkpoint; run.py writes ours, once, when there is something to say."""


def _split_groups(optimizer: Any, model: Any, parts: Parts, rate: float) -> None:
    """Move the projector's parameters into groups of their own, each like the one they were in."""
    projector = {id(one) for name, one in model.named_parameters() if parts.module_of(name)[0] is Part.PROJECTOR}
    for group in list(optimizer.param_groups):
        moved = [one for one in group["params"] if id(one) in projector]
        if moved:
            group["params"] = [one for one in group["params"] if id(one) not in projector]
            optimizer.add_param_group({**group, "params": moved, "lr": rate})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
