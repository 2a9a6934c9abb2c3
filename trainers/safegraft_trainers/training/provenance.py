"""What a run was: its data, its settings, the versions it ran with and how it ended. Names no local folder.

Knows no model class and no trainer beyond what they say of themselves.
"""

# datasets and transformers type what is used here in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import dataclasses
import importlib.metadata
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

RECORD = "safegraft_training.json"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PACKAGES = ("safegraft", "accelerate", "datasets", "peft", "torch", "transformers", "trl")
# Of this machine or of this start, not of the run.
_PRIVATE = re.compile(
    r"output_dir|run_name|logging_dir|hub_.*|push_to_hub|resume_from_checkpoint|local_rank|dry_run|.*_port|project|"
    r"trackio_.*|disable_tqdm|use_cpu|report_to|.*api_key|.*_token|accelerator_config|debug|dataloader_pin_memory|"
    r"ddp_.*|deepspeed|fsdp.*"
)
# Worth saying even where they are the defaults.
_ALWAYS = frozenset(
    {"gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "num_train_epochs", "optim", "seed"}
    | {"per_device_train_batch_size", "train_parts", "warmup_steps", "weight_decay"}
)


@dataclass(frozen=True, slots=True)
class DataSource:
    """Data that was learnt from. name: without local folders. digest: sha256 (hex) of its rows, images included."""

    name: str
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters of one part, all of them and those that learnt."""

    part: str
    total: int
    trained: int


@dataclass(frozen=True, slots=True)
class Record:
    """All that safegraft_training.json says, and the model card is made from.

    losses: the last logged of each kind (train_loss is the mean over the run). arguments: what differs from TRL's
    defaults, and the main ones. adapter: PEFT's settings when an adapter learnt; merged: whether the weights have it.
    """

    command: str
    title: str
    base_models: tuple[str, ...]
    data: tuple[DataSource, ...]
    parameters: tuple[Counts, ...]
    arguments: Mapping[str, Any]
    versions: Mapping[str, str]
    multimodal: bool
    steps: int = 0
    epochs: float = 0.0
    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    adapter: Mapping[str, Any] | None = None
    merged: bool = False
    filter_report: str = ""
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, default=_plain) + "\n"


def source_of(name: str, dataset: Any) -> DataSource:
    """Describe a datasets.Dataset by its content: images are read once. Raises InputChangedError when one is gone."""
    from safegraft_trainers.data.digest import digest

    return DataSource(public_name(name), len(dataset), digest(dataset))


def public_name(reference: str) -> str:
    """A Hub name as it is; of a local path no more than the last part."""
    if is_hub_name(reference):
        return reference
    return Path(reference.rstrip("/")).name or reference


def is_hub_name(reference: str) -> bool:
    return _HUB_NAME.fullmatch(reference) is not None and not os.path.exists(reference)


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def given(*arguments: Any) -> dict[str, Any]:
    """What was asked for: values that differ from their dataclass's defaults and the main ones, nothing private."""
    found: dict[str, Any] = {}
    for one in arguments:
        for spec in dataclasses.fields(one):
            value = getattr(one, spec.name)
            if spec.init and value is not None and not _PRIVATE.fullmatch(spec.name) and _tells(value, spec):
                found[spec.name] = _public(value)
    return found


def _tells(value: Any, spec: "dataclasses.Field[Any]") -> bool:
    if spec.name in _ALWAYS:
        return True
    if spec.default is not dataclasses.MISSING:
        return value != spec.default
    return spec.default_factory is dataclasses.MISSING or value != spec.default_factory()


def _public(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return public_name(value) if os.sep in value else value
    if isinstance(value, Mapping):
        return {str(key): _public(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_public(one) for one in value]
    return value if isinstance(value, int | float | bool) or value is None else str(value)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def count(names: Iterable[tuple[str, int, bool]]) -> tuple[Counts, ...]:
    """Sum (part, size, learns) by part, in order of appearance."""
    totals: dict[str, list[int]] = {}
    for part, size, learns in names:
        sums = totals.setdefault(part, [0, 0])
        sums[0] += size
        sums[1] += size if learns else 0
    return tuple(Counts(part, *sums) for part, sums in totals.items())


def last_losses(history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The last value of everything called a loss in a Trainer's log."""
    return dict(_losses(history))


def _losses(history: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for entry in history:
        for key, value in entry.items():
            if key == "loss" or key.endswith("_loss"):
                yield key, float(value)
