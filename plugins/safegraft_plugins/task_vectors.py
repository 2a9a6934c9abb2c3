"""Task vectors, the models' differences from the base: mergekit's parameters, and walks over whole tensors."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from safegraft.methods import Input, TensorView

if TYPE_CHECKING:
    import torch

NO_EFFECT = "No effect: mergekit's recipes may have it."


class TaskVectorParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    scale: float = Field(1.0, alias="lambda", description="Factor on the merged task vector.", allow_inf_nan=False)
    normalize: bool = Field(False, description="Divide by the sum of the weights.")
    int8_mask: bool = Field(False, description=NO_EFFECT, json_schema_extra={"no_effect": True})


class TaskVectorInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(description="Factor on the model's task vector.", allow_inf_nan=False)
    density: float = Field(1.0, description="Share of the task vector's elements that is kept.", ge=0, le=1)


class TaskVector(NamedTuple):
    parameters: Any  # the model's InputParameters
    delta: "torch.Tensor"


def task_vectors(inputs: Sequence[Input], base: "torch.Tensor | None") -> list[TaskVector]:
    """The models' differences from the base, in the memory of the inputs. A model of weight zero takes no part."""
    assert base is not None  # the engine hands over what `requires` asks for
    return [TaskVector(one.parameters, one.tensor.sub_(base)) for one in inputs if one.parameters.weight != 0]


def parameters_of(view: TensorView) -> list[Any]:
    """The parameters of the models that take part."""
    inputs, _ = next(view.blocks())
    return [one.parameters for one in inputs if one.parameters.weight != 0]


def elements_of(view: TensorView) -> int:
    count = 1
    for size in view.shape:
        count *= size
    return count


def flat_blocks(view: TensorView) -> Iterator[tuple[int, list[TaskVector]]]:
    """Position and task vectors of each of the view's blocks."""
    position = 0
    for inputs, base in view.blocks():
        yield position, task_vectors(inputs, base)
        assert base is not None
        position += base.numel()


def whole_rows(view: TensorView) -> Iterator[tuple[int, list[TaskVector]]]:
    """Position and task vectors of cuts between rows, [rows, ...] as the tensor's shape goes on.

    A tensor of one dimension comes as a single row [1, n]. In memory are a row and a block of every model.
    """
    import torch

    shape = view.shape[1:] if len(view.shape) > 1 else (elements_of(view),)
    width = torch.Size(shape).numel()
    pieces: list[list[TaskVector]] = []
    position = held = 0
    for _, vectors in flat_blocks(view):
        pieces.append(vectors)
        held += vectors[0].delta.numel() if vectors else 0
        if held < width:
            pieces[-1] = [TaskVector(one.parameters, one.delta.clone()) for one in vectors]
            continue
        joined = [torch.cat([piece.delta for piece in several]) for several in zip(*pieces, strict=True)]
        whole = held // width * width
        rest = [TaskVector(one.parameters, delta[whole:].clone()) for one, delta in zip(vectors, joined, strict=True)]
        rows = [delta[:whole].view(-1, *shape) for delta in joined]
        yield position, [TaskVector(one.parameters, delta) for one, delta in zip(vectors, rows, strict=True)]
        position += whole
        held -= whole
        pieces = [rest] if held else []
