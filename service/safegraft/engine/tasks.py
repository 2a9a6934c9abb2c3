"""One task for each tensor of the host: merged from whom, by which method, or copied and why."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from safegraft.checkpoint.dtypes import FLOAT_NAMES, DType
from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.engine.align import Alignment
from safegraft.engine.anatomy import depth_of, place_of, stacks_of, vocabulary_tensors
from safegraft.engine.assembly import Assembly
from safegraft.engine.modules import Parts
from safegraft.engine.rows import RowLayout, RowMap, pair_by_position, pair_by_token
from safegraft.engine.sections import Section
from safegraft.engine.settings import resolve, resolve_modifier
from safegraft.engine.task import Contribution, Modification, TensorTask
from safegraft.engine.vocabulary import VocabularyCheckpoint
from safegraft.errors import PluginError, Problem, RecipeError
from safegraft.methods.contract import MergeMethod, Modifier
from safegraft.recipe.model import Override, Recipe


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that has a tensor for the host's one."""

    model: str
    tensor: TensorInfo


@dataclass(frozen=True, slots=True)
class _Offer:
    """Who has a tensor for the host's one: inputs, models with a role (None: it has not), the base set apart."""

    inputs: list[_Candidate]
    roles: Mapping[str, _Candidate | None]
    base: _Candidate | None

    @property
    def everyone(self) -> list[_Candidate]:
        """In the order of a task's contributions."""
        roles = [one for one in self.roles.values() if one is not None]
        return [*self.inputs, *roles, *([self.base] if self.base else [])]


class TaskBuilder:
    """Builds tasks and gathers problems (of inputs, of the recipe) and warnings on the way.

    alignments: for every model but the host, what it contributes.
    """

    def __init__(
        self,
        recipe: Recipe,
        host_model: str,
        checkpoints: Mapping[str, Checkpoint],
        alignments: Mapping[str, Alignment],
        methods: Mapping[str, MergeMethod],
        modifiers: Mapping[str, Modifier],
        assembly: Assembly,
    ) -> None:
        self.recipe = recipe
        self.assembly = assembly
        self.host_model = host_model
        self.host = checkpoints[host_model]
        self.checkpoints = checkpoints
        self.alignments = alignments
        self.methods = methods
        self.modifiers = modifiers
        self.recipe_problems: list[Problem] = []
        self.input_problems: list[Problem] = []
        self.notes: dict[str, None] = {}
        self._stacks = stacks_of(self.host.tensors.values())
        self._parts = Parts(self.host)
        self._host_vocabulary = vocabulary_tensors(self.host)
        self._vocabularies = {model: vocabulary_tensors(one) for model, one in checkpoints.items()}
        self._row_maps: dict[tuple[str, int, int], RowMap | None] = {}
        self._checked: set[object] = set()

    def warnings(self) -> list[str]:
        """What a reader of the plan should know, once each."""
        return list(self.notes)

    def build(self, host_tensor: TensorInfo) -> TensorTask:
        """The task for one tensor of the host."""
        override = self._override(host_tensor.name)
        method = self.methods[(override.method if override else None) or self.recipe.merge_method]
        section = self.assembly.section_of(host_tensor.name)
        if section is None:
            return self._copy(host_tensor, "the recipe names no module that it is part of")
        offer = self._candidates(host_tensor, method, section)
        reason = self._reason_to_copy(host_tensor, method, offer, section)
        vocabulary = reason is None and self._is_vocabulary(host_tensor, offer)
        rows: RowLayout | None = None
        if vocabulary:
            rows = self._rows(host_tensor, offer.everyone)
            if rows is None or rows.shared_rows == 0:
                reason = "no row is shared by all models" if rows is not None else "rows could not be paired"
            elif rows.is_identity:
                rows = None
        if reason is not None:
            return self._copy(host_tensor, reason)
        return self._merge(host_tensor, method, override, offer, rows, vocabulary, section)

    # -- who contributes ------------------------------------------------------------------------

    def _override(self, name: str) -> Override | None:
        return next((one for one in self.recipe.overrides if fnmatch.fnmatchcase(name, one.tensors)), None)

    def _candidates(self, host_tensor: TensorInfo, method: MergeMethod, section: Section) -> _Offer:
        """Inputs in recipe order, models with a role in the method's, the base where the method sets it apart."""
        models = list(section.models)
        base_model = section.base_model
        apart = base_model is not None and method.requires.base in ("required", "optional")
        if apart:
            models = [model for model in models if model != base_model]
        elif base_model is not None and base_model not in models and not section.is_slice:
            models.append(base_model)  # as mergekit does: an input like any other, at the end

        def offered(model: str) -> list[_Candidate]:
            tensor = self._counterpart(model, host_tensor)
            return [] if tensor is None else [_Candidate(model, tensor)]

        return _Offer(
            [one for model in models for one in offered(model)],
            {role: next(iter(offered(section.roles[role])), None) for role in method.requires.roles},
            next(iter(offered(base_model)), None) if apart and base_model is not None else None,
        )

    def _counterpart(self, model: str, host_tensor: TensorInfo) -> TensorInfo | None:
        if model == self.host_model:
            return host_tensor
        name = self.alignments[model].tensors.get(host_tensor.name)
        return None if name is None else self.checkpoints[model].tensors[name]

    def _reason_to_copy(
        self, host_tensor: TensorInfo, method: MergeMethod, offer: _Offer, section: Section
    ) -> str | None:
        """Why the host's tensor is kept as it is; None when there is something to merge."""
        models = {*section.models, *section.roles.values()}
        models |= set[str]() if section.is_slice else {section.base_model} - {None}
        having = {one.model for one in offer.everyone}
        if not host_tensor.dtype.is_float:
            return f"{host_tensor.dtype} values are not weights"
        if host_tensor.elements == 0:
            return "it is empty"
        if having <= {self.host_model} and len(models | {self.host_model}) > 1:
            return "only the host has it"
        if method.requires.base == "required" and offer.base is None:
            return f"the base {section.base_model} has no such tensor"
        if lacking := [role for role, one in offer.roles.items() if one is None]:
            return f"the {' and the '.join(lacking)} model has no such tensor"
        if len(offer.inputs) < method.requires.min_inputs:
            return f"{method.name} needs {method.requires.min_inputs} inputs and only {len(offer.inputs)} have it"
        if self.recipe.embeddings == "host" and self._is_vocabulary(host_tensor, offer):
            return "embeddings: host"
        return None

    # -- rows of vocabulary tensors -------------------------------------------------------------

    def _is_vocabulary(self, host_tensor: TensorInfo, offer: _Offer) -> bool:
        if host_tensor.name in self._host_vocabulary:
            return True
        return any(one.tensor.name in self._vocabularies[one.model] for one in offer.everyone)

    def _rows(self, host_tensor: TensorInfo, contributors: list[_Candidate]) -> RowLayout | None:
        maps = [self._row_map(one, host_tensor) for one in contributors]
        known = [one for one in maps if one is not None]
        return RowLayout(known, host_tensor.shape) if len(known) == len(maps) else None

    def _row_map(self, one: _Candidate, host_tensor: TensorInfo) -> RowMap | None:
        """None, and a problem noted, when nothing tells which row is which."""
        host_rows, input_rows = host_tensor.shape[0], one.tensor.shape[0]
        if one.model == self.host_model:
            return pair_by_position(host_rows, host_rows)
        key = (one.model, host_rows, input_rows)
        if key not in self._row_maps:
            self._row_maps[key] = self._pair_rows(one, host_tensor, host_rows, input_rows)
        return self._row_maps[key]

    def _pair_rows(self, one: _Candidate, host_tensor: TensorInfo, host_rows: int, input_rows: int) -> RowMap | None:
        host_tokens, tokens = self.host.tokens(), self.checkpoints[one.model].tokens()
        if host_tokens is not None and tokens is not None:
            rows = pair_by_token(host_tokens, tokens, host_rows, input_rows)
            shared = int((rows >= 0).sum())
            if shared < host_rows or shared < input_rows:
                text = f"{one.model}: {shared} of {host_rows} vocabulary rows are shared with the host by token string"
                self.notes[f"{text}; the host's other rows are kept"] = None
            return rows
        if host_rows == input_rows:
            return pair_by_position(host_rows, input_rows)
        without = [name for name, known in ((self.host_model, host_tokens), (one.model, tokens)) if known is None]
        self.input_problems.append(
            Problem(
                one.model,
                f"{one.tensor.name} has {input_rows} rows, {host_tensor.name} of the host {self.host_model} has "
                f"{host_rows}, and {' and '.join(without)} {'has' if len(without) == 1 else 'have'} no tokenizer to "
                "pair them by; add the tokenizer files, or use `embeddings: host`",
            )
        )
        return None

    # -- the two kinds of task ------------------------------------------------------------------

    def _out_dtype(self, host_tensor: TensorInfo) -> DType:
        asked = self.recipe.out_dtype or self.recipe.dtype
        if asked and host_tensor.dtype.is_float:
            return FLOAT_NAMES[asked]
        if isinstance(self.host, VocabularyCheckpoint):  # whose rows may be wider than what the host has stored
            return self.host.stored_dtype(host_tensor.name)
        return host_tensor.dtype

    def _copy(self, host_tensor: TensorInfo, reason: str) -> TensorTask:
        return TensorTask(
            name=host_tensor.name,
            dtype=self._out_dtype(host_tensor),
            shape=host_tensor.shape,
            action="copy",
            inputs=(Contribution(self.host_model, host_tensor.name),),
            note=reason,
        )

    def _merge(
        self,
        host_tensor: TensorInfo,
        method: MergeMethod,
        override: Override | None,
        offer: _Offer,
        rows: RowLayout | None,
        vocabulary: bool,
        section: Section,
    ) -> TensorTask:
        depth = self.assembly.depth_of(host_tensor.name)
        t = depth_of(host_tensor.name, self._stacks) if depth is None else depth
        try:
            named = [(one.model, self.assembly.own_name(one.model, one.tensor.name)) for one in offer.inputs]
            resolved = resolve(self.recipe, method, override, host_tensor.name, named, t, section)
            modifications = tuple(
                Modification(
                    one.name, resolve_modifier(self.recipe, one, self.modifiers[one.name], host_tensor.name, t)
                )
                for one in self.recipe.modifiers
            )
        except RecipeError as error:
            self._note_problems(error.problems)
            return self._copy(host_tensor, "its parameters are wrong")  # never executed: the problems end the plan
        self._check(method, resolved.inputs, resolved.parameters, section)
        roles = [one for one in offer.roles.values() if one is not None]  # all of them: see _reason_to_copy
        origin = _origin(offer, section) if modifications else None
        layer, layers = place_of(host_tensor.name, self._stacks)
        return TensorTask(
            name=host_tensor.name,
            dtype=self._out_dtype(host_tensor),
            shape=host_tensor.shape,
            action="merge",
            inputs=(
                *(
                    Contribution(one.model, one.tensor.name, parameters)
                    for one, parameters in zip(offer.inputs, resolved.inputs, strict=True)
                ),
                *(Contribution(one.model, one.tensor.name) for one in roles),
            ),
            base=Contribution(offer.base.model, offer.base.tensor.name) if offer.base else None,
            method=method.name,
            parameters=resolved.parameters,
            rows=rows,
            compute_dtype=self._compute_dtype(offer.everyone),
            seed=tensor_seed(self.recipe.seed, host_tensor.name),
            note=self._note(method, offer.everyone, rows, section, bool(modifications) and origin is None),
            layer=layer,
            layers=layers,
            vocabulary=vocabulary,
            language=self._parts.is_language(host_tensor.name),
            stored=self._stored_dtype(offer.everyone),
            modifications=modifications if origin is not None else (),
            modified_from=origin or 0,
        )

    def _compute_dtype(self, everyone: list[_Candidate]) -> DType:
        return DType.F64 if self._stored_dtype(everyone) is DType.F64 else DType.F32

    def _stored_dtype(self, everyone: list[_Candidate]) -> DType:
        """What the contributions are stored in, or cast to; float32 where they are of several 16-bit formats."""
        if self.recipe.dtype is not None:
            return FLOAT_NAMES[self.recipe.dtype]
        found = {one.tensor.dtype for one in everyone}
        return found.pop() if len(found) == 1 else DType.F64 if DType.F64 in found else DType.F32

    def _note(
        self,
        method: MergeMethod,
        everyone: list[_Candidate],
        rows: RowLayout | None,
        section: Section,
        unmodified: bool,
    ) -> str:
        notes: list[str] = []
        wanted = [*section.models, *(section.roles[role] for role in method.requires.roles)]
        missing = [model for model in wanted if model not in {one.model for one in everyone}]
        if missing:
            notes.append(f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no such tensor")
        if rows is not None:
            notes.append(f"{rows.shared_rows} of {rows.shape[0]} rows are shared; the rest are the host's")
        if unmodified:
            notes.append(f"not modified: the base {section.base_model} has no such tensor")
        return "; ".join(notes)

    def _check(self, method: MergeMethod, inputs: tuple[Any, ...], parameters: Any, section: Section) -> None:
        key = (method.name, tuple(one.model_dump_json() for one in inputs), parameters.model_dump_json())
        if key in self._checked:
            return
        self._checked.add(key)
        try:
            found = [str(text) for text in method.check(inputs, parameters)]
        except Exception as error:  # a plugin may raise anything; it is named
            raise PluginError(f"method {method.name} failed in check(): {type(error).__name__}: {error}") from error
        where = self.recipe.where(*(section.at or ("models",)))
        self._note_problems([Problem(where, text) for text in found])

    def _note_problems(self, problems: Sequence[Problem]) -> None:
        self.recipe_problems += [problem for problem in problems if problem not in self.recipe_problems]


def _origin(offer: _Offer, section: Section) -> int | None:
    """Which contribution is the base model's, from which modifiers measure the difference."""
    models = [one.model for one in offer.everyone]
    return models.index(section.base_model) if section.base_model in models else None


def tensor_seed(seed: int, name: str) -> int:
    """A 63-bit seed that depends on the recipe's seed and the tensor's name alone."""
    return int.from_bytes(sha256(f"{seed}\0{name}".encode()).digest()[:8], "little") >> 1
