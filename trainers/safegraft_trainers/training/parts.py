"""Language model, projector and encoders of a model: which parameter belongs to which.

The names are data (parts.yaml); what they must add up to is checked on the model itself. Knows nothing of training.
"""

# transformers and torch type modules in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any

import yaml

from safegraft.calibration.request import takes_images
from safegraft.errors import Problem, UsageError

# What wrappers put in front of a name; PEFT's stands before whatever its model was called.
_WRAPPERS = re.compile(r"^(module\.|_fsdp_wrapped_module\.|_orig_mod\.|base_model\.model\.)*")


class Part(StrEnum):
    LANGUAGE = "language"
    PROJECTOR = "projector"
    TOWER = "tower"


@dataclass(frozen=True, slots=True)
class Parts:
    """The part of every parameter, by its name in the model, in the model's order."""

    of: Mapping[str, Part]
    modules: Mapping[Part, tuple[str, ...]]  # the modules (and bare parameters) that decided it; "" is all

    def module_of(self, name: str) -> tuple[Part, str]:
        """Part and deciding module of a parameter or module, also by the name that PEFT and DDP give it."""
        name = _WRAPPERS.sub("", name)
        owners = {module: part for part, modules in self.modules.items() for module in modules}
        owner = max((module for module in owners if _within(name, module)), key=len)
        return owners[owner], owner


def find_parts(model: Any, named: Mapping[Part, Sequence[str] | None] | None = None) -> Parts:
    """Sort the parameters of a transformers model.

    named: modules by hand, which go before those of parts.yaml. A model without a vision config is all language.
    Raises UsageError when a parameter has no part, a name matches nothing, or the input embeddings (by which
    transformers knows the language model) are not in the language part.
    """
    parameters = [name for name, _ in model.named_parameters()]
    by_hand = {name: part for part, names in (named or {}).items() for name in names or ()}
    problems = [
        Problem(f"--{part}_modules", f"no parameter starts with {name}; the model has {_tops(parameters)}")
        for name, part in by_hand.items()
        if not any(_within(parameter, name) for parameter in parameters)
    ]
    if problems:
        raise UsageError(problems)
    if not by_hand and not is_multimodal(model.config):
        return Parts(dict.fromkeys(parameters, Part.LANGUAGE), {Part.LANGUAGE: ("",)})
    table = {**_table(), **by_hand}
    deciding = {name: _longest(name, table) for name in parameters}
    if homeless := [name for name, owner in deciding.items() if owner is None]:
        raise UsageError(Problem(model.config.model_type, _by_hand(f"it is not known what {_tops(homeless)} is")))
    of = {name: table[owner] for name, owner in deciding.items() if owner is not None}
    embeddings = {id(weight) for weight in model.get_input_embeddings().parameters()}
    misplaced = [
        name for name, weight in model.named_parameters() if id(weight) in embeddings and of[name] != "language"
    ]
    if misplaced:
        message = _by_hand(f"{misplaced[0]} holds the text embeddings, yet counts as {of[misplaced[0]]}")
        raise UsageError(Problem(model.config.model_type, message))
    used = dict.fromkeys(owner for owner in deciding.values() if owner is not None)
    return Parts(of, {part: tuple(name for name in used if table[name] is part) for part in Part})


def is_multimodal(config: Any) -> bool:
    """Whether a transformers config is that of a model that sees."""
    return takes_images(config.to_dict())


def _table() -> dict[str, Part]:
    text = (resources.files("safegraft_trainers.training") / "parts.yaml").read_text(encoding="utf-8")
    return {name: Part(part) for part, names in yaml.safe_load(text).items() for name in names}


def _longest(parameter: str, table: Mapping[str, Part]) -> str | None:
    return max((name for name in table if _within(parameter, name)), key=len, default=None)


def _within(parameter: str, module: str) -> bool:
    return not module or parameter == module or parameter.startswith(f"{module}.")


def _tops(parameters: Iterable[str]) -> str:
    """The outermost modules that are worth naming: `lm_head`, `model.vision_tower`."""
    tops = dict.fromkeys(
        ".".join(parameter.split(".")[: 2 if parameter.startswith("model.") else 1]) for parameter in parameters
    )
    return ", ".join(tops)


def _by_hand(what: str) -> str:
    return f"{what}; name the modules by --language_modules, --projector_modules and --tower_modules"
