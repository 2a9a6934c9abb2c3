"""An interrupted run goes on with the weights that it had.

transformers' Trainer reads a checkpoint's tensors by name, without the renaming that from_pretrained does, and not
strictly. A vision-language model is saved under other names than it has in memory, so resume_from_checkpoint and
load_best_model_at_end would silently leave its weights as they are. Here both read what from_pretrained reads, and
every tensor of the model must be among it.
"""

# transformers types its trainer in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The Trainer's hooks for loading are private, and its only ones.
# pyright: reportPrivateUsage=false

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.errors import CheckpointError, Problem, UsageError
from safegraft_trainers.training.base import refuse_gaps

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

_NUMBER = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"  # what a Trainer writes into a checkpoint last


class Resumable(_Trainer):
    """To be put before a transformers or TRL trainer: class Trainer(Resumable, SFTTrainer)."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._reads_tensors_by_name(model):
            load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._reads_tensors_by_name(None) and self.state.best_model_checkpoint:
            load_weights(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _reads_tensors_by_name(self, model: Any) -> bool:
        """Whether it is a whole model in this process: adapters, FSDP and DeepSpeed have names of their own."""
        import peft

        wrapped = model is not None and model is not self.model
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return not (wrapped or sharded or isinstance(self.model, peft.PeftModel))


def load_weights(model: Any, checkpoint: Path) -> None:
    """Overwrite every weight of `model` in place by that of a checkpoint of the same architecture.

    Raises CheckpointError when one is missing or does not fit.
    """
    import torch

    widest = functools.reduce(torch.promote_types, {one.dtype for one in model.parameters() if one.is_floating_point()})
    loaded, report = type(model).from_pretrained(
        checkpoint, dtype=widest, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
    )
    refuse_gaps(checkpoint.name, report)
    try:
        model.load_state_dict(loaded.state_dict(), strict=True)
    except RuntimeError as error:
        raise CheckpointError(Problem(checkpoint.name, f"is of another model: {error}")) from error


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first: one that was interrupted while it was written has no state."""
    found = [(int(match[1]), path) for path in _children(folder) if (match := _NUMBER.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / STATE).is_file()]


def resume_point(training: Any) -> Path | None:
    """What `--resume_from_checkpoint` names: a folder, or for "true" the last checkpoint. Raises UsageError."""
    asked = str(training.resume_from_checkpoint or "false")
    if asked.lower() in ("false", "no", "0"):
        return None
    if asked.lower() not in ("true", "yes", "1"):
        if not (Path(asked) / STATE).is_file():
            raise UsageError(f"--resume_from_checkpoint {asked}: it is no complete checkpoint (it has no {STATE})")
        return Path(asked)
    found = checkpoints(Path(training.output_dir))
    if not found:
        raise UsageError(f"--resume_from_checkpoint: {training.output_dir} holds no complete checkpoint; leave it away")
    return found[-1]


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
