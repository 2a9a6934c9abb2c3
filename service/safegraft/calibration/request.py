"""Which statistic, of which model, on which data; and what speaks against gathering it.

All of it from config.json and the data alone: runs when planning, reads no weight and imports no torch.
"""

import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safegraft.calibration.data import DataSet
from safegraft.checkpoint.config import subconfigs
from safegraft.checkpoint.findings import listed, shown
from safegraft.checkpoint.strict_json import as_list
from safegraft.checkpoint.types import Checkpoint
from safegraft.methods.contract import Statistic

FORMAT = 1  # raise it when a change alters what is gathered: older files are then not found

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

# What preference_mask is trained with: the rate is the paper's, the rest its authors' code's (arXiv 2405.09055).
PREFERENCE_SETTINGS: Mapping[str, float] = {"rate": 1e-3, "beta": 0.1, "temperature": 0.5, "epochs": 3}
# Per parameter, in float32: both models, the mask's logits with two moments and their gradient, the masked weights
# with theirs.
PREFERENCE_BYTES = 36

WORTH_A_NOTE = 100e6  # bytes

_WITH_LOGITS = re.compile(r"\w+LMHeadModel|\w+(?<!Model)")
_KINDS: Mapping[Statistic, tuple[frozenset[str], ...]] = {
    **dict.fromkeys(
        (Statistic.GRADIENT_SQUARE, Statistic.SALIENCY, Statistic.INPUT_NORM, Statistic.INPUT_GRAM),
        (frozenset({"text"}), frozenset({"prompt", "response"})),
    ),
    Statistic.PREFERENCE_MASK: (frozenset({"prompt", "chosen", "rejected"}),),
    Statistic.LAYER_COSINES: (frozenset({"text"}), frozenset({"prompt"})),
}


@dataclass(frozen=True)
class Request:
    """A statistic of one model at work.

    data: as many sets as the statistic takes: two for LAYER_COSINES (normal, malicious), else one.
    reference: for PREFERENCE_MASK, the aligned model that the task vector starts from.
    tensors: the checkpoint's own names of those to gather it for.
    """

    statistic: Statistic
    checkpoint: Checkpoint
    data: tuple[DataSet, ...]
    reference: Checkpoint | None
    tensors: tuple[str, ...]

    @functools.cached_property
    def digest(self) -> str:
        """sha256 (hex) over all that decides what is gathered, wherever it is gathered."""
        document = {
            "format": FORMAT,
            "statistic": self.statistic.value,
            "settings": dict(PREFERENCE_SETTINGS) if self.statistic is Statistic.PREFERENCE_MASK else {},
            "model": _identity(self.checkpoint),
            "reference": _identity(self.reference) if self.reference else None,
            "data": [one.digest for one in self.data],
            "tensors": sorted(self.tensors),
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _identity(checkpoint: Checkpoint) -> list[Any]:
    # The names too: one folder's tensors can be put together in more than one way.
    names = [[one.name, one.dtype.value, list(one.shape)] for one in checkpoint.tensors.values()]
    return [checkpoint.identity.scheme, checkpoint.identity.digest, names]


def problems(request: Request) -> list[str]:
    """Why the request cannot be met, as far as that can be told without a weight; [] when nothing speaks against it."""
    return [*_model_problems(request), *_data_problems(request), *_reference_problems(request)]


def notes(request: Request) -> list[str]:
    """What the request costs, where that is more than one would think and not next to nothing."""
    elements = sum(request.checkpoint.tensors[name].elements for name in request.tensors)
    if request.statistic is Statistic.PREFERENCE_MASK:
        size = PREFERENCE_BYTES * elements
        what = f"preference_mask keeps {request.checkpoint.name} and its reference whole in memory: about"
        return [f"{what} {size / 1e9:,.1f} GB"] if size > WORTH_A_NOTE else []
    if request.statistic is Statistic.INPUT_GRAM:
        shapes = [request.checkpoint.tensors[name].shape for name in request.tensors]
        size = sum(4 * shape[1] ** 2 for shape in shapes if len(shape) == 2)
        what = f"input_gram of {request.checkpoint.name} takes up to {size / 1e9:,.1f} GB in the cache"
        return [what] if size > WORTH_A_NOTE else []
    return []


def architecture(config: Mapping[str, Any]) -> str | None:
    """The transformers class that config.json names."""
    named = as_list(config.get("architectures"))
    return named[0] if named and isinstance(named[0], str) else None


def takes_images(config: Mapping[str, Any]) -> bool:
    """Whether the model sees: LVLMs have a config for their vision tower."""
    return any(key.rpartition(".")[2] == "vision_config" for key, _ in subconfigs(config))


def _model_problems(request: Request) -> Iterator[str]:
    import transformers

    checkpoint = request.checkpoint
    name = architecture(checkpoint.config)
    if name is None:
        yield f"config.json of {checkpoint.name} has no `architectures`: transformers' class of the model is not known"
    elif name not in dir(transformers) or not _WITH_LOGITS.fullmatch(name):
        yield (
            f"{checkpoint.name} is a {shown(name)}, and transformers {transformers.__version__} has no language model "
            "of that name. A model is put to work with transformers' own code; code that comes with it is never run"
        )
    if checkpoint.tokens() is None:
        yield f"{checkpoint.name} has no tokenizer: put its tokenizer files beside the weights"
    if any(file in checkpoint.sidecars for file in TEMPLATE_FILES) and not _is_installed("jinja2"):
        yield f"the chat template of {checkpoint.name} needs jinja2: pip install 'safegraft[calibration]'"


def _data_problems(request: Request) -> Iterator[str]:
    needed = 2 if request.statistic is Statistic.LAYER_COSINES else 1
    if len(request.data) != needed:
        yield f"{request.statistic} is of {needed} data set{'s' * (needed > 1)}, not of {len(request.data)}"
    kinds = _KINDS[request.statistic]
    for data in request.data:
        if not any(kind <= data.fields for kind in kinds):
            ways = " or ".join(", ".join(f"`{field}`" for field in sorted(kind)) for kind in kinds)
            has = ", ".join(f"`{field}`" for field in sorted(data.fields))
            yield f"{request.statistic} needs {ways}, and {data.name} has {has}"
        if request.statistic is Statistic.LAYER_COSINES and data.count < 2:
            yield f"{request.statistic} compares samples with each other, and {data.name} has only one"
    if any(data.has_images for data in request.data) and takes_images(request.checkpoint.config):
        name = request.checkpoint.name
        if not any(file in request.checkpoint.sidecars for file in PROCESSOR_FILES):
            yield f"{name} has no {' or '.join(PROCESSOR_FILES)}, without which its images cannot be prepared"
        if not _is_installed("PIL"):
            yield "images need pillow: pip install 'safegraft[calibration]'"


def _reference_problems(request: Request) -> Iterator[str]:
    if request.statistic is not Statistic.PREFERENCE_MASK:
        return
    if request.reference is None:
        yield "preference_mask needs the aligned model that the task vector starts from"
        return
    ours, theirs = request.checkpoint.tensors, request.reference.tensors
    unlike = [name for name in request.tensors if name not in theirs or theirs[name].shape != ours[name].shape]
    if unlike:
        yield (
            f"preference_mask needs two models of one architecture: {request.reference.name} has no {listed(unlike)} "
            f"of {request.checkpoint.name}'s shape"
        )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
