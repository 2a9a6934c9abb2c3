"""A transformers model over a checkpoint: built without weights, its parts filled and emptied as they are needed.

What stays in memory while the model is at work, in float32: every parameter outside its stacks of layers
(embeddings, output head, final norm, projector, patch embedding) and every tied one; and one layer.
"""

# torch and transformers type their own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from safegraft.calibration.mapping import Group, find_groups
from safegraft.calibration.request import architecture
from safegraft.calibration.wording import sidecar_folder
from safegraft.checkpoint.findings import listed
from safegraft.checkpoint.types import Checkpoint
from safegraft.errors import CheckpointError, Problem


@dataclass(frozen=True, eq=False)
class Part:
    """Parameters that come and go together. A layer has a module and a place, from 0 in the order of work; what
    stays in memory is the part with neither."""

    groups: tuple[Group, ...]
    parameters: tuple[str, ...]  # that it holds, by the names that `WorkingModel.parameter` takes
    module: nn.Module | None = None
    place: int = -1


class WorkingModel:
    """The model of a checkpoint, in parts.

    resident: the part that stays. layers: the others, those of vision towers before the language model's.
    decoder: the places of the language model's layers.
    Raises CheckpointError when transformers cannot build it, or when a parameter has no tensor.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.module = _build(checkpoint)
        groups = find_groups(self.module, checkpoint.tensors.values())
        self._tied = _ties(self.module, groups, checkpoint)
        self._check(groups)
        self._split(groups)

    @property
    def hidden_size(self) -> int:
        """The width of what goes from layer to layer."""
        embeddings: Any = self.module.get_input_embeddings()
        return embeddings.weight.shape[-1]

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.resident, *self.layers)

    def canonical(self, parameter: str) -> str:
        """The name that stands for all parameters tied to this one."""
        return self._tied.get(parameter, parameter)

    def is_parameter(self, name: str) -> bool:
        """Whether that is a parameter, tied or not; the rest are buffers."""
        return name in self._parameters

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter of that canonical name; on the meta device while its part is not there."""
        return self.module.get_parameter(name)

    def owners(self, name: str) -> list[tuple[nn.Module, str]]:
        """(module, attribute) of all places where the parameter of that canonical name stands."""
        names = [name, *(alias for alias, canonical in self._tied.items() if canonical == name)]
        places = [alias.rpartition(".") for alias in names]
        return [(self.module.get_submodule(path), attribute) for path, _, attribute in places]

    def load(self, part: Part) -> None:
        """Read a part's tensors and put them in place."""
        for group in part.groups:
            values = [read_tensor(self.checkpoint, info.name) for _, info in group.sources]
            for name, value in group.converted(values).items():
                self._put(name, value)

    def release(self, part: Part) -> None:
        """Let a part's weights go."""
        for name in part.parameters:
            for module, attribute in self.owners(name):
                there = getattr(module, attribute)
                setattr(module, attribute, nn.Parameter(there.to("meta"), requires_grad=False))

    def _put(self, name: str, value: torch.Tensor) -> None:
        if self.canonical(name) != name:
            return  # tied: its weights come with the name that stands for it
        if name not in self._parameters:  # a buffer
            path, _, attribute = name.rpartition(".")
            setattr(self.module.get_submodule(path), attribute, value)
            return
        parameter = nn.Parameter(value.float(), requires_grad=False)
        for module, attribute in self.owners(name):
            setattr(module, attribute, parameter)

    def _check(self, groups: Sequence[Group]) -> None:
        state = self.module.state_dict()
        self._parameters = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        made = {name: shape for group in groups for name, shape in group.targets.items()}
        missing = [name for name in self._parameters if self.canonical(name) not in made]
        unlike = [name for name, shape in made.items() if name in state and tuple(state[name].shape) != shape]
        where, kind = self.checkpoint.name, type(self.module).__name__
        problems: list[Problem] = []
        if missing:
            problems.append(Problem(where, f"has no weights for {listed(sorted(missing))} of {kind}"))
        if unlike:
            problems.append(Problem(where, f"{listed(unlike)} have another shape than config.json says"))
        if problems:
            raise CheckpointError(problems)

    def _split(self, groups: Sequence[Group]) -> None:
        stacks = _stacks(self.module)
        language = _language_stack(self.module, stacks)
        stacks.sort(key=lambda stack: stack is language)  # stable: towers come first, in their order
        names = [name for stack in stacks for name in stack]
        members: dict[str, list[Group]] = {}
        for group in groups:
            members.setdefault(self._layer_of(group, set(names)), []).append(group)
        self.layers = tuple(
            self._part(members.get(name, ()), self.module.get_submodule(name), place)
            for place, name in enumerate(names)
        )
        self.resident = self._part(members.get("", ()))
        self.decoder = range(len(names) - len(language), len(names))

    def _layer_of(self, group: Group, layers: set[str]) -> str:
        """The layer that all of a group's parameters are in; "" where there is none, and for what is tied."""
        if any(target in self._tied or target in self._tied.values() for target in group.targets):
            return ""
        owners = {next((name for name in _paths(target) if name in layers), "") for target in group.targets}
        return owners.pop() if len(owners) == 1 else ""

    def _part(self, groups: Sequence[Group], module: nn.Module | None = None, place: int = -1) -> Part:
        targets = [target for group in groups for target in group.targets]
        held = [name for name in targets if name in self._parameters and self.canonical(name) == name]
        return Part(tuple(groups), tuple(held), module, place)


def _build(checkpoint: Checkpoint) -> PreTrainedModel:
    """The module that config.json describes, its parameters on the meta device, its buffers computed."""
    kind: Any = getattr(transformers, architecture(checkpoint.config) or "", None)
    if not isinstance(kind, type) or not issubclass(kind, PreTrainedModel):
        message = f"transformers {transformers.__version__} has no model class for its config.json"
        raise CheckpointError(Problem(checkpoint.name, message))
    try:
        with sidecar_folder(checkpoint) as folder, _without_weights():
            config: Any = kind.config_class
            module = kind(config.from_pretrained(folder))
            module.set_experts_implementation("eager")  # the one that is exact and needs no special kernels
    except Exception as error:  # a config is a stranger's, and transformers raises what it likes
        message = f"transformers cannot build a {kind.__name__} from config.json: {type(error).__name__}: {error}"
        raise CheckpointError(Problem(checkpoint.name, message)) from error
    return module.eval().requires_grad_(False)


@contextmanager
def _without_weights() -> Generator[None]:
    """Parameters made in this thread go to the meta device at once; buffers, which hold what is computed, do not."""
    me = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != me:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    register: Any = register_module_parameter_registration_hook  # typed as if its hook returned nothing
    hook = register(to_meta)
    try:
        yield
    finally:
        hook.remove()


def _ties(module: PreTrainedModel, groups: Sequence[Group], checkpoint: Checkpoint) -> dict[str, str]:
    """Parameter -> the one that it is tied to and that has weights. As transformers does it: two that are both in the
    files are tied only if they are equal."""
    made = {target: group for group in groups for target in group.targets}
    ties: dict[str, str] = {}
    for target, source in module.all_tied_weights_keys.items():
        if target not in made or source in made:
            if target not in made or _are_equal(made[target], made[source], checkpoint):
                ties[target] = source
        else:
            ties[source] = target
    return {name: _end(name, ties) for name in ties}


def _end(name: str, ties: Mapping[str, str]) -> str:
    while name in ties:
        name = ties[name]
    return name


def _are_equal(one: Group, other: Group, checkpoint: Checkpoint) -> bool:
    if len(one.sources) != 1 or len(other.sources) != 1:
        return False
    return torch.equal(read_tensor(checkpoint, one.names[0]), read_tensor(checkpoint, other.names[0]))


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A whole tensor, as stored."""
    info = checkpoint.tensors[name]
    raw = torch.empty(info.elements, dtype=info.dtype.torch)
    if info.nbytes:
        checkpoint.read_into(info, 0, raw.view(torch.uint8).numpy().data)
    return raw.view(info.shape)


def _stacks(module: nn.Module) -> list[list[str]]:
    """The names of the layers of each list of layers that is not itself in a layer, in the module's order."""
    stacks: list[list[str]] = []
    for name, child in module.named_modules():
        inside = any(path in stack for stack in stacks for path in _paths(name))
        if inside or not isinstance(child, nn.ModuleList) or not len(child):
            continue
        if all(isinstance(layer, GradientCheckpointingLayer) for layer in child):
            stacks.append([f"{name}.{index}" for index in range(len(child))])
    return stacks


def _language_stack(module: PreTrainedModel, stacks: Sequence[list[str]]) -> list[str]:
    """The longest of the decoder's; [] where a model has no stack at all."""
    decoder: Any = module.get_decoder()
    name = next(name for name, one in module.named_modules() if one is decoder)
    inside = [stack for stack in stacks if not name or stack[0].startswith(f"{name}.")]
    return max(inside or stacks, key=len, default=[])


def _paths(name: str) -> Iterator[str]:
    """ "a.b.c" -> "a.b", "a"."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
