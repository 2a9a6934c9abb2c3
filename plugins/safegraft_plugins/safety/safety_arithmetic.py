"""Safety Arithmetic's harm direction removal (arXiv 2406.11801). Its steering of activations is no merge."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.float_bits import keep, magnitude
from safegraft_plugins.magnitude import Largest, belongs, largest
from safegraft_plugins.task_vectors import elements_of
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch


class SafetyArithmeticParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    scale: float = Field(
        1.0,
        alias="lambda",
        ge=0,
        allow_inf_nan=False,
        description="Factor on the harm vector that is taken out. The authors' code has 3; 1 is a gentler start.",
    )
    top_k: float = Field(0.1, ge=0, le=1, description="Share of the harm vector's elements that count, the largest.")


class SafetyArithmetic(MergeMethod):
    """result = f - lambda top_k(h - b): the harm vector h - b, cut to its largest elements, is taken out.

    f is the fine-tuned model. `harmful` h is the base after fine-tuning on harmful data, which the user makes; the
    base b is the model that h was fine-tuned from. top_k keeps the int(top_k n) elements of largest magnitude of each
    tensor, at least one, and of equal magnitudes those with the lowest index; the authors rank all elements of
    the layers that they edit together.
    """

    name = "safety_arithmetic"
    summary = "Takes the largest part of what harmful fine-tuning changes out of a model."
    reference = "https://arxiv.org/abs/2406.11801"
    requires = Requirements(base="required", min_inputs=1, max_inputs=1, roles=("harmful",))
    granularity = Granularity.ELEMENT
    Parameters = SafetyArithmeticParameters

    def check(self, inputs: Sequence[Any], parameters: SafetyArithmeticParameters) -> Iterator[str]:
        yield from check_range([parameters.scale])

    def prepare(self, view: TensorView, parameters: SafetyArithmeticParameters) -> Largest:
        elements = elements_of(view)
        count = max(1, int(parameters.top_k * elements)) if parameters.top_k > 0 else 0
        found = largest(lambda: ([harm_vector(*block)] for block in view.blocks()), {0: [count]}, elements)
        return found[0][0]

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        harm = harm_vector(inputs, base)
        keep(harm, belongs(magnitude(harm), context.state, context.position))
        return inputs[0].tensor.sub_(harm.mul_(context.parameters.scale))


def harm_vector(inputs: Sequence[Input], base: "torch.Tensor | None") -> "torch.Tensor":
    assert base is not None  # the engine hands over what `requires` asks for
    _, harmful = inputs
    return harmful.tensor.sub_(base)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [SafetyArithmetic]
