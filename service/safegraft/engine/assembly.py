"""Which section of a recipe makes which tensor of the result, and from which layers.

Where a recipe has slices, the host becomes a virtual checkpoint with the result's layers (`slices.py`); everything
after works on that one as on any other. Works on names, shapes and configs alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.align import Laid
from safegraft.engine.anatomy import Stack, split_layer
from safegraft.engine.modules import LANGUAGE, WHOLE, Parts, comes_after_layers
from safegraft.engine.sections import Section, module_sections, sections_of
from safegraft.engine.slices import RelayeredCheckpoint, relayered_config
from safegraft.errors import Problem
from safegraft.recipe.model import Recipe


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of the result: the slice that makes it, and its place in that slice."""

    section: Section
    index: int

    @property
    def depth(self) -> float:
        """Where gradients are read, 0 to 1; 1 in a slice of one layer, as in mergekit."""
        return self.index / (self.section.count - 1) if self.section.count > 1 else 1.0


@dataclass(frozen=True, slots=True)
class _Made:
    """How a part of the host is made. Of slices, prefix: of the stack that they fill; layers: the result's."""

    part: str
    sections: tuple[Section, ...]
    prefix: str = ""
    layers: tuple[_Layer, ...] = ()


class Assembly:
    """Puts the result together. `host`: what the result's tensors are named and shaped after.

    problems: of the recipe. warnings: what a reader of the plan should know.
    """

    def __init__(self, recipe: Recipe, host_model: str, checkpoints: Mapping[str, Checkpoint]) -> None:
        self.recipe = recipe
        self.host_model = host_model
        self.host = checkpoints[host_model]
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self._checkpoints = checkpoints
        self._known_parts: dict[str, Parts] = {}
        self._made: dict[str, _Made] = {}
        for part, sections in self._asked():
            made = self._layered(part, sections) if sections[0].is_slice else _Made(part, sections)
            if made is not None:
                self._made[part] = made
        if not self.problems:
            self._relayer()

    def members(self) -> set[str]:
        """The models that contribute anything."""
        sections = [section for made in self._made.values() for section in made.sections]
        bases = {section.base_model for section in sections if section.base_model and not section.is_slice}
        return {model for section in sections for model in (*section.models, *section.roles.values())} | bases

    def laid(self, model: str) -> list[Laid]:
        """The stacks of a model of which slices say which layer meets which of the result's."""
        return [
            self._laid(made, model)
            for made in self._made.values()
            if any(model in section.own for section in made.sections if section.is_slice)
        ]

    def section_of(self, name: str) -> Section | None:
        """The section that makes a tensor of the host; None: the host's own is kept."""
        made = self._maker(name)
        if made is None or not made.layers:
            return made.sections[0] if made else None
        layer = self._layer(made, name)
        if layer is not None:
            return layer.section
        language = made.part != WHOLE or self._parts(self.host_model).is_language(name)
        after = language and split_layer(name) is None and comes_after_layers(name)
        return made.sections[-1 if after else 0]

    def depth_of(self, name: str) -> float | None:
        """A tensor's place among the layers of its slice, 0 to 1; None where no slice gives it one."""
        made = self._maker(name)
        layer = self._layer(made, name) if made else None
        return None if layer is None else layer.depth

    def own_name(self, model: str, tensor: str) -> str:
        """What a model itself calls its tensor: the host's are shown under the result's layers."""
        if model == self.host_model and isinstance(self.host, RelayeredCheckpoint):
            return self.host.stored_name(tensor)
        return tensor

    # -- what the recipe asks for ---------------------------------------------------------------

    def _asked(self) -> Iterator[tuple[str, tuple[Section, ...]]]:
        """Parts of the host, each with the sections that make it."""
        if not self.recipe.modules:
            yield WHOLE, tuple(sections_of(self.recipe))
            return
        names = self._parts(self.host_model).names
        seen: dict[str, str] = {}
        for module in self.recipe.modules:
            part = self._parts(self.host_model).named(module.name)
            where = self.recipe.where(*module.at)
            if part is None:
                there = ", ".join(names)
                message = (
                    f"the host {self.host_model} has no module of this name; it has {there} (or {WHOLE}: all of it)"
                )
                self.problems.append(Problem(where, message))
            elif part in seen:
                self.problems.append(Problem(where, f"is the same module as {seen[part]}"))
            else:
                seen[part] = module.name
                yield part, tuple(module_sections(self.recipe, module))
        if WHOLE in seen and len(seen) > 1:
            where = self.recipe.where("modules", WHOLE)
            self.problems.append(Problem(where, "is the whole model, and stands beside parts of it; name the parts"))
        kept = [name for name in names if name not in seen]
        if kept and WHOLE not in seen:
            self.warnings.append(
                f"modules: nothing is said of {', '.join(kept)} of the host {self.host_model}; the host's are kept"
            )

    def _parts(self, model: str) -> Parts:
        if model not in self._known_parts:
            checkpoint = self.host if model == self.host_model else self._checkpoints[model]
            self._known_parts[model] = Parts(checkpoint)
        return self._known_parts[model]

    def _maker(self, name: str) -> _Made | None:
        if WHOLE in self._made:
            return self._made[WHOLE]
        return self._made.get(self._parts(self.host_model).of(name))

    def _layer(self, made: _Made, name: str) -> _Layer | None:
        place = split_layer(name)
        return made.layers[place[1]] if made.layers and place and place[0] == made.prefix else None

    # -- layers ---------------------------------------------------------------------------------

    def _layered(self, part: str, sections: Sequence[Section]) -> _Made | None:
        """A part made of slices; None, and problems noted, where models have no such layers."""
        before = len(self.problems)
        for section in sections:
            for model, first in section.first.items():
                self._check_range(section, model, part, first, first + section.count)
        stack = self._parts(self.host_model).stack(part)
        if stack is None:
            where = self.recipe.where(*sections[0].at)
            self.problems.append(Problem(where, f"the layers of the host {self.host_model} cannot be told"))
        if len(self.problems) > before or stack is None:
            return None
        layers = tuple(_Layer(section, index) for section in sections for index in range(section.count))
        return _Made(part, tuple(sections), stack.prefix, layers)

    def _check_range(self, section: Section, model: str, part: str, first: int, stop: int) -> None:
        index = section.models.index(model)
        where = self.recipe.where(*section.at, "sources", index, "layer_range")
        stack = self._parts(model).stack(part)
        if stack is None:
            self.problems.append(Problem(where, f"the layers of {model} cannot be told"))
        elif any(layer not in stack.layers for layer in range(first, stop)):
            there = sorted(stack.layers)
            message = f"[{first}, {stop}] goes beyond the layers of {model}, which are {there[0]} to {there[-1]}"
            self.problems.append(Problem(where, f"{message}: the range ends at {there[-1] + 1} at most"))

    def _relayer(self) -> None:
        orders = {made.part: self._order(made) for made in self._made.values() if made.layers}
        if not orders:
            return
        named = {LANGUAGE if part == WHOLE else part: order for part, order in orders.items()}
        config, warnings = relayered_config(self.host, named)
        self.warnings += warnings
        stacks = {self._made[part].prefix: order for part, order in orders.items()}
        parts = self._parts(self.host_model)  # of the stored host, whose parts the result's are
        self.host = RelayeredCheckpoint(self.host, stacks, config)
        self._known_parts[self.host_model] = parts

    def _order(self, made: _Made) -> list[int]:
        """For each layer of the result the host's layer that it is named and shaped after: its own where it is a
        source, else the one most like the first source's layer."""
        stack = self._parts(self.host_model).stack(made.part)
        assert stack is not None  # `_layered` has made sure
        return [self._host_layer(made, stack, layer) for layer in made.layers]

    def _host_layer(self, made: _Made, stack: Stack, layer: _Layer) -> int:
        first = layer.section.first
        if self.host_model in first:
            return first[self.host_model] + layer.index
        model = layer.section.models[0]
        other = self._parts(model).stack(made.part)
        assert other is not None  # likewise
        number = first[model] + layer.index
        kind = {suffix: tensor.shape for suffix, tensor in other.layers[number].items()}

        def likeness(candidate: int) -> tuple[int, int, int]:
            tensors = stack.layers[candidate]
            same = sum(suffix in tensors and tensors[suffix].shape == shape for suffix, shape in kind.items())
            return same, -abs(candidate - number), -candidate

        return max(stack.layers, key=likeness)

    def _laid(self, made: _Made, model: str) -> Laid:
        stack = self._parts(model).stack(made.part)
        assert stack is not None  # likewise
        layers = tuple(
            (layer.section.first[model] + layer.index, number)
            for number, layer in enumerate(made.layers)
            if model in layer.section.first
        )
        return Laid(stack.prefix, made.prefix, layers, ends=model in made.sections[-1].own)
