"""What the tensors of a checkpoint are called in memory, and which of them are linear layers.

transformers says it: the model is built from its config without weights, and its modules are laid on the
checkpoint's tensors as an adapter's would be.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safegraft.checkpoint.adapter_names import Target, find_tensors
from safegraft.checkpoint.findings import Findings
from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.anatomy import split_layer, vocabulary_tensors


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in memory: module "model.norm", parameter "weight". linear: it is the weight of a linear
    layer; turned: which is stored [in, out]."""

    module: str
    parameter: str
    linear: bool
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """places: by the tensors' names in the checkpoint. note: why these may not be the names in memory, if they may.

    copies: parameters that are the same as one of `places` and are no tensors of their own, such as a tied head:
    the name in the checkpoint -> theirs in memory.
    """

    places: Mapping[str, Place]
    note: str = ""
    copies: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


def places_in_memory(checkpoint: Checkpoint) -> Places:
    """The place of every tensor; where transformers cannot build the model, names are taken as they are."""
    known, copies = _from_transformers(checkpoint)
    places: dict[str, Place] = {}
    vocabulary = vocabulary_tensors(checkpoint)
    for name, tensor in checkpoint.tensors.items():
        module, _, parameter = name.rpartition(".")
        matrix = len(tensor.shape) == 2 and parameter == "weight" and name not in vocabulary
        guessed = Place(module, parameter, linear=not known and matrix and split_layer(name) is not None)
        places[name] = known.get(name, guessed)
    unknown = [name for name in checkpoint.tensors if name not in known and name.rpartition(".")[2] != "inv_freq"]
    if not known:
        return Places(places, "transformers cannot build the base from its config: modules go by their names on disk")
    if unknown:
        note = f"{len(unknown)} tensors are called otherwise in memory, among them {unknown[0]}"
        return Places(places, note, copies)
    return Places(places, copies=copies)


def _from_transformers(checkpoint: Checkpoint) -> tuple[dict[str, Place], dict[str, list[str]]]:
    """Places and copies, as in Places; empty when transformers does not know the architecture."""
    import torch
    from transformers.pytorch_utils import Conv1D

    model = _skeleton(checkpoint)
    if model is None:
        return {}, {}
    targets: dict[str, Target] = {}
    found: dict[str, Place] = {}
    for module, layer in model.named_modules():
        for parameter, tensor in layer.named_parameters(recurse=False):
            name = f"{module}.{parameter}" if module else parameter
            turned = isinstance(layer, Conv1D) and parameter == "weight"
            linear = turned or (isinstance(layer, torch.nn.Linear) and parameter == "weight")
            found[name] = Place(module, parameter, linear, turned)
            targets[name] = Target(name, (tuple(tensor.shape),))
    # What has no place (a tied head) is no tensor of the checkpoint; what is called otherwise keeps its name.
    homes = find_tensors(list(targets.values()), checkpoint.tensors, Findings(checkpoint.name))
    copies: dict[str, list[str]] = defaultdict(list)
    for copy, original in model.all_tied_weights_keys.items():
        if original in homes and homes.get(copy) is None:
            copies[homes[original]].append(copy)
    return {home: found[name] for name, home in homes.items()}, copies


def _skeleton(checkpoint: Checkpoint) -> Any:
    """The model without its weights, or None."""
    import torch
    import transformers

    architectures = checkpoint.config.get("architectures") or [""]
    try:
        kind: Any = getattr(transformers, str(architectures[0]))
        config = kind.config_class.from_dict(dict(checkpoint.config))
        with torch.device("meta"):
            return kind(config)
    except Exception:  # an architecture of its own, or whatever a stranger's config makes of a known one
        return None
