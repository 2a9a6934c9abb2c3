"""Models laid over each other, tensor by tensor, exactly as a merge of them would: by a plan that is never executed.

So an LLM inside an LVLM is found, experts take one form, tied heads and vocabularies of different size are paired (rows
by token string). Values come block by block. Knows how tensors meet; nothing of what is computed from them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

import torch

import safegraft
from safegraft.engine.anatomy import split_layer
from safegraft.engine.modules import LANGUAGE, Parts, comes_after_layers
from safegraft.engine.task import Contribution, TensorTask
from safegraft.errors import UsageError
from safegraft_trainers.analyze.kinds import EMBEDDINGS, HEAD, kind_of

BLOCK_ELEMENTS = 1 << 20  # of each model, in memory at a time
LANGUAGE_MODEL = "language model"


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor that several of the models have.

    name: in the model with the most parts (the host). part: "language model", "vision_tower", ... stack, layer: the
    layers that it is in, by their common prefix, and which of them, from 0; "" and None outside layers. shape: of
    what is compared: of vocabulary tensors, the rows of tokens that all have.
    """

    name: str
    part: str
    stack: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    task: TensorTask

    @property
    def models(self) -> tuple[str, ...]:
        """The references of those that have it, in the order given."""
        return tuple(one.model for one in self.task.contributions)

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


class Layout:
    """Two or more models, open. Use as a context manager, or close it.

    names: reference -> the public name that reports use, never a path; default: the shortest that tells these models
    apart. places: what is compared, in the host's order.
    Raises UsageError (a model given twice), InputError (AlignmentError where they do not fit each other).
    """

    def __init__(
        self, references: Sequence[str], *, vocabulary: bool = True, names: Mapping[str, str] | None = None
    ) -> None:
        check_distinct(references)
        models: list[dict[str, Any]] = [{"model": one, "parameters": {"weight": 1.0}} for one in references]
        embeddings = "merge" if vocabulary else "host"
        self.plan = safegraft.plan({"merge_method": "linear", "models": models, "embeddings": embeddings})
        self.names = dict(self.plan.names if names is None else names)
        self._parts = Parts(self.plan.host)
        self.places = tuple(self._place(task) for task in self.plan.tensors if task.action == "merge")

    def __enter__(self) -> "Layout":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.plan.close()

    @cached_property
    def nbytes(self) -> int:
        """What all places' blocks read."""
        return sum(self.bytes_of(place) for place in self.places)

    def bytes_of(self, place: Place) -> int:
        sizes = [self._info(one).dtype.itemsize for one in place.task.contributions]
        return place.elements * sum(sizes)

    @cached_property
    def left_out(self) -> dict[str, dict[str, str]]:
        """Of each model, by public name: its tensors that are compared with nothing -> why."""
        reasons = {task.name: task.note for task in self.plan.tensors if task.action == "copy"}
        found: dict[str, dict[str, str]] = {}
        for model, checkpoint in self.plan.checkpoints.items():
            met = {one.tensor for place in self.places for one in place.task.contributions if one.model == model}
            host = model == self.plan.host_model
            for name in checkpoint.tensors:
                if name not in met:
                    reason = reasons.get(name, "") if host else "no counterpart"
                    reason = "no counterpart" if reason == "only the host has it" else reason
                    found.setdefault(self.names[model], {})[name] = reason
        return found

    @cached_property
    def notes(self) -> list[str]:
        """What else a reader should know: rows that are not compared, tensors that meet two, the models' own notes."""
        said = [note for one in self.plan.checkpoints.values() for note in one.notes]
        for place in self.places:
            rows = place.task.rows
            if rows is not None:
                shared = f"{rows.shared_rows} of its {rows.shape[0]} rows"
                said.append(f"{place.name}: {shared} stand for tokens that all have, and are compared")
        met: dict[tuple[str, str], list[str]] = {}
        for place in self.places:
            for one in place.task.contributions:
                met.setdefault((one.model, one.tensor), []).append(place.name)
        for (model, tensor), places in met.items():
            if len(places) > 1:
                said.append(
                    f"{self.names[model]}: {tensor} is compared with {' and '.join(places)}, to which it is tied"
                )
        return list(dict.fromkeys(said))

    def tensor_of(self, place: Place, model: str) -> str:
        """What the tensor is called in one of the models."""
        return next(one.tensor for one in place.task.contributions if one.model == model)

    def blocks(self, place: Place) -> Iterator[list[torch.Tensor]]:
        """Flat blocks, one tensor for each of `place.models`, in float32 (float64 where one is stored so)."""
        for start in range(0, place.elements, BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, place.elements)
            yield [self._read(place.task, index, start, stop) for index in range(len(place.models))]

    def _read(self, task: TensorTask, index: int, start: int, stop: int) -> torch.Tensor:
        one = task.contributions[index]
        if task.rows is None:
            return self._load(task, one, start, stop - start)
        pieces = [piece for piece in task.rows.shared_cut(index, start, stop) if piece.source is not None]
        return torch.cat([self._load(task, one, piece.source or 0, piece.count) for piece in pieces])

    def _load(self, task: TensorTask, one: Contribution, start: int, count: int) -> torch.Tensor:
        info = self._info(one)
        raw = torch.empty(count, dtype=info.dtype.torch)
        content: Any = raw.view(torch.uint8).numpy()
        self.plan.checkpoints[one.model].read_into(info, start * info.dtype.itemsize, memoryview(content))
        return raw.to(task.compute_dtype.torch)

    def _info(self, one: Contribution) -> Any:
        return self.plan.checkpoints[one.model].tensors[one.tensor]

    def _place(self, task: TensorTask) -> Place:
        part = self._parts.of(task.name)
        inside = split_layer(task.name)
        kind = kind_of(inside[2] if inside else task.name)
        if inside is None and task.vocabulary:
            kind = HEAD if comes_after_layers(task.name) else EMBEDDINGS
        return Place(
            name=task.name,
            part=LANGUAGE_MODEL if part == LANGUAGE else part,
            stack=inside[0] if inside else "",
            layer=task.layer,
            kind=kind,
            shape=task.rows.shared_shape if task.rows else task.shape,
            task=task,
        )


def check_distinct(references: Sequence[str]) -> None:
    """Raises UsageError for a model that is given twice: it would be compared with itself."""
    twice = [one for index, one in enumerate(references) if one in references[:index]]
    if twice:
        raise UsageError(f"{', '.join(dict.fromkeys(twice))}: given twice; every model has to be another one")
