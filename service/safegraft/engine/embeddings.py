"""Gives all models the result's vocabulary: which row of each vocabulary tensor is whose.

A model keeps its own row for a token that it has. For a token that it lacks it takes, as in mergekit: the row of
the one model that has it; else the base's, if that has it; else the mean of those that have it; zeros if none has;
or what the recipe says for this token. Rows beyond the last token are the mean of all others. After that every
model has the same tokens in the same rows. Works on names, shapes and tokenizers; `vocabulary.py` computes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from safegraft.checkpoint.dtypes import FLOAT_NAMES, DType
from safegraft.checkpoint.findings import shown
from safegraft.checkpoint.sidecars import dump_like
from safegraft.checkpoint.strict_json import parse_object
from safegraft.checkpoint.types import Checkpoint, TensorInfo
from safegraft.engine.align import Alignment
from safegraft.engine.anatomy import text_config, vocabulary_tensors
from safegraft.engine.assembly import Assembly
from safegraft.engine.sections import Section
from safegraft.engine.token_ids import TokenIds
from safegraft.engine.tokenizer import Vocabulary, host_files, used_tokens, vocabulary_size
from safegraft.engine.vocabulary import (
    AVERAGE,
    PADDING,
    ZERO,
    Donor,
    RowSources,
    VocabularyCheckpoint,
    VocabularyTensor,
)
from safegraft.errors import Problem
from safegraft.recipe.model import Recipe, TokenEmbedding

GENERATION_CONFIG = "generation_config.json"
NO_ROW = -1

Rows = NDArray[np.int64]


class _Default:
    """For each token row, what models take that lack the token. forced: those that have it take it too.

    named: rows of tokens for which the recipe says what they take.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.donor = np.full(size, ZERO, np.int16)
        self.row = np.zeros(size, np.int64)
        self.averages: dict[int, list[tuple[int, int]]] = {}
        self.forced = np.zeros(size, np.bool_)
        self.named: set[int] = set()

    def take(self, where: NDArray[np.bool_], number: int, rows: Rows) -> None:
        """Rows of one donor."""
        self.donor[where] = number
        self.row[where] = rows[where]


class Embeddings:
    """Gives every model of a recipe the result's vocabulary.

    checkpoints, alignments: as they are afterwards. recipe_problems, input_problems, warnings: gathered on the way.
    """

    def __init__(
        self,
        recipe: Recipe,
        host_model: str,
        checkpoints: Mapping[str, Checkpoint],
        alignments: Mapping[str, Alignment],
        assembly: Assembly,
        vocabulary: Vocabulary,
    ) -> None:
        self.recipe = recipe
        self.host_model = host_model
        self.assembly = assembly
        self.vocabulary = vocabulary
        self.recipe_problems: list[Problem] = []
        self.input_problems: list[Problem] = []
        self.warnings: list[str] = []
        self._stored = checkpoints
        self._own_rows: dict[str, Rows] = {}
        self._names: dict[str, dict[str, str]] = {}  # model -> host's name -> what the model's tensor is shown as
        self._tensors: dict[str, list[VocabularyTensor]] = {model: [] for model in checkpoints}
        self.alignments = alignments
        self._check_host()
        if not self.input_problems:
            for name in sorted(vocabulary_tensors(checkpoints[host_model])):
                self._give_rows(name)
        self.checkpoints = dict(checkpoints) if self.input_problems or self.recipe_problems else self._wrapped()
        self.alignments = {
            model: replace(one, tensors={**one.tensors, **self._names.get(model, {})})
            for model, one in alignments.items()
        }

    # -- one tensor of the host -----------------------------------------------------------------

    def _give_rows(self, name: str) -> None:
        """New rows for one vocabulary tensor of the host, and for what meets it."""
        section = self.assembly.section_of(name)
        models = self._contributors(name, section)
        everyone = [model for model in self._stored if self._counterpart(model, name) is not None]
        donors = [
            Donor(self._stored[model], tensor) for model in everyone if (tensor := self._counterpart(model, name))
        ]
        own = {model: self._own(model, donor.tensor) for model, donor in zip(everyone, donors, strict=True)}
        numbers = {model: number for number, model in enumerate(everyone)}
        base = section.base_model if section else None
        default = self._default(name, models, base if base in models else None, own, numbers)
        for model in dict.fromkeys([*models, self.host_model]):
            rows = self._rows_of(numbers[model], own[model], default)
            self._add(model, name, donors, rows, models or [model])

    def _contributors(self, name: str, section: Section | None) -> list[str]:
        """The models that are merged into a tensor, in the order in which means are taken."""
        if section is None:
            return []
        models = list(section.models)
        if section.base_model and section.base_model not in models and not section.is_slice:
            models.append(section.base_model)
        return [model for model in models if self._counterpart(model, name) is not None]

    def _counterpart(self, model: str, name: str) -> TensorInfo | None:
        if model == self.host_model:
            return self._stored[model].tensors[name]
        alignment = self.alignments.get(model)
        own = alignment.tensors.get(name) if alignment else None
        return None if own is None else self._stored[model].tensors.get(own)

    def _own(self, model: str, tensor: TensorInfo) -> Rows:
        """For each token row of the vocabulary the model's own row, or NO_ROW."""
        if model not in self._own_rows:
            rows = np.full(self.vocabulary.token_rows, NO_ROW, np.int64)
            own = used_tokens(self._stored[model])
            for token, row in self.vocabulary.tokens.items():
                rows[row] = own.get(token, NO_ROW)
            self._own_rows[model] = rows
        rows = self._own_rows[model]
        return np.where(rows < tensor.shape[0], rows, NO_ROW)

    def _default(
        self, name: str, models: Sequence[str], base: str | None, own: Mapping[str, Rows], numbers: Mapping[str, int]
    ) -> "_Default":
        """What models take for tokens that they lack."""
        found = _Default(self.vocabulary.token_rows)
        table = np.stack([own[model] for model in models]) if models else np.full((0, found.size), NO_ROW)
        having = (table >= 0).sum(axis=0)
        for model in models:
            found.take((having == 1) & (own[model] >= 0), numbers[model], own[model])
        if base is not None:
            found.take((having > 1) & (own[base] >= 0), numbers[base], own[base])
        for row in np.flatnonzero((having > 1) & (found.donor == ZERO)).tolist():
            found.donor[row] = AVERAGE
            found.averages[row] = [(numbers[model], int(own[model][row])) for model in models if own[model][row] >= 0]
        self._apply_choices(name, own, numbers, found)
        self._tell_zeros(name, models, having, found)
        return found

    def _apply_choices(self, name: str, own: Mapping[str, Rows], numbers: Mapping[str, int], found: "_Default") -> None:
        """What the recipe says for single tokens."""
        assert self.recipe.tokenizer is not None  # else there is nothing to do here
        for one in self.recipe.tokenizer.tokens:
            if not one.says:
                continue
            row = self.vocabulary.tokens[one.token]
            found.forced[row] = one.force
            found.named.add(row)
            if one.zero:
                found.donor[row] = ZERO
                continue
            source = self._row_of(one, name, row, own)
            if source is not None and one.model is not None:
                found.donor[row], found.row[row] = numbers[one.model], source

    def _row_of(self, one: TokenEmbedding, name: str, row: int, own: Mapping[str, Rows]) -> int | None:
        where = self.recipe.where(*one.at, "source")
        model = one.model or ""
        if model not in self._stored:
            self._problem(where, f"{shown(model)} is not one of this recipe's models")
            return None
        if model not in own:
            self._problem(where, f"{model} has no tensor that meets {name} of the host {self.host_model}")
            return None
        tensor = self._counterpart(model, name)
        size = tensor.shape[0] if tensor else 0
        if one.row is not None:
            source, what = one.row, f"no row {one.row}; it has {size}"
        elif one.other is not None:
            source, what = used_tokens(self._stored[model]).get(one.other, NO_ROW), f"no token {shown(one.other)}"
        else:
            source, what = int(own[model][row]), f"no token {shown(one.token)}"
        if not 0 <= source < size:
            self._problem(where, f"{model} has {what}")
            return None
        return source

    def _problem(self, where: str, message: str) -> None:
        if (problem := Problem(where, message)) not in self.recipe_problems:
            self.recipe_problems.append(problem)

    def _tell_zeros(self, name: str, models: Sequence[str], having: Rows, found: "_Default") -> None:
        missing = [token for token, row in self.vocabulary.tokens.items() if not having[row] and row not in found.named]
        if missing and models:
            self.warnings.append(
                f"{name}: {len(missing)} tokens are in none of the models that are merged into it, among them "
                f"{shown(min(missing))}; their rows are zero"
            )

    def _rows_of(self, number: int, own: Rows, default: "_Default") -> RowSources:
        """One model's rows: its own where it has the token, the default elsewhere, padding at the end."""
        keeps = (own >= 0) & ~default.forced
        size, rows = default.size, self.vocabulary.rows
        donor = np.full(rows, PADDING, np.int16)
        row = np.zeros(rows, np.int64)
        donor[:size] = np.where(keeps, number, default.donor)
        row[:size] = np.where(keeps, own, default.row)
        averages = {one: pairs for one, pairs in default.averages.items() if donor[one] == AVERAGE}
        return RowSources(donor, row, size, averages)

    def _add(self, model: str, name: str, donors: Sequence[Donor], rows: RowSources, models: Sequence[str]) -> None:
        tensor = self._counterpart(model, name)
        assert tensor is not None  # only models that have one are asked
        dtypes = {one.dtype for other in models if (one := self._counterpart(other, name)) is not None}
        taken = {one.info.name for one in self._tensors[model]}
        shown_as = tensor.name if tensor.name not in taken else f"{tensor.name} for {name}"
        shape = (self.vocabulary.rows, *tensor.shape[1:])
        info = replace(tensor, name=shown_as, dtype=self._dtype(dtypes), shape=shape)
        self._tensors[model].append(VocabularyTensor(info, tensor.name, donors, rows))
        if model != self.host_model:
            self._names.setdefault(model, {})[name] = shown_as

    def _dtype(self, dtypes: set[DType]) -> DType:
        """In which rows of several models meet: the recipe's, theirs, or the wider one."""
        if self.recipe.dtype is not None:
            return FLOAT_NAMES[self.recipe.dtype]
        if len(dtypes) == 1:
            return next(iter(dtypes))
        return DType.F64 if DType.F64 in dtypes else DType.F32

    # -- the host -------------------------------------------------------------------------------

    def _check_host(self) -> None:
        """Models that keep rows beyond the vocabulary, or tables of another size, would not fit the new one."""
        host = self._stored[self.host_model]
        size = vocabulary_size(host.config)
        for name in sorted(vocabulary_tensors(host)):
            rows = host.tensors[name].shape[0]
            if size is not None and rows != size:
                message = (
                    f"{name} has {rows} rows, its config's vocab_size is {size}: rows beyond the vocabulary cannot be "
                    "given new tokens, so this host keeps its tokenizer; remove `tokenizer`"
                )
                self.input_problems.append(Problem(self.host_model, message))

    def _host_configs(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """config.json and all other sidecars, with tokens named by their new rows."""
        host = self._stored[self.host_model]
        files = host_files(host, self.vocabulary, self._stored)
        ids = TokenIds(host.tokens() or {}, self.vocabulary.tokens)
        config = ids.moved(host.config, "config.json")
        if GENERATION_CONFIG in files:
            content = files[GENERATION_CONFIG]
            stored = parse_object(content, f"{host.name}/{GENERATION_CONFIG}")
            moved = ids.moved(stored, GENERATION_CONFIG)
            files[GENERATION_CONFIG] = content if moved == stored else dump_like(moved, content)
        self.warnings += ids.notes
        assert self.recipe.tokenizer is not None  # else there is nothing to do here
        where = self.recipe.where(*self.recipe.tokenizer.at)
        self.recipe_problems += [Problem(where, f"{self.host_model}/{problem}") for problem in ids.problems]
        return config, files

    def _wrapped(self) -> dict[str, Checkpoint]:
        config, files = self._host_configs()
        wrapped: dict[str, Checkpoint] = {}
        for model, stored in self._stored.items():
            is_host = model == self.host_model
            own = config if is_host else stored.config
            wrapped[model] = VocabularyCheckpoint(
                stored,
                self._tensors[model],
                self.vocabulary.tokens,
                _with_size(own, self.vocabulary.rows),
                files if is_host else stored.sidecars,
            )
        return wrapped


def _with_size(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A copy of a config with the number of vocabulary rows where the architecture reads it."""
    copy: dict[str, Any] = json.loads(json.dumps(config))
    text = cast(dict[str, Any], text_config(copy))  # a part of `copy`, which is plain JSON
    text["vocab_size"] = rows
    if "vocab_size" in copy:
        copy["vocab_size"] = rows
    return copy
