"""Task arithmetic (arXiv 2212.04089)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements
from safegraft_plugins.compiled import is_available
from safegraft_plugins.weights import check_range, check_sum

if TYPE_CHECKING:
    import torch

    from safegraft.methods.compiled import Compiled

NO_EFFECT = "No effect: mergekit's recipes may have it."  # there, the sparsifying methods share these parameters


class TaskArithmeticParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    scale: float = Field(1.0, alias="lambda", description="Factor on the summed task vectors.", allow_inf_nan=False)
    normalize: bool = Field(False, description="Divide the sum by the sum of the weights.")
    rescale: bool = Field(False, description=NO_EFFECT, json_schema_extra={"no_effect": True})
    int8_mask: bool = Field(False, description=NO_EFFECT, json_schema_extra={"no_effect": True})


class TaskArithmeticInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(description="Factor on the model's task vector.", allow_inf_nan=False)
    density: float = Field(1.0, description=NO_EFFECT, ge=0, le=1, json_schema_extra={"no_effect": True})


class TaskArithmetic(MergeMethod):
    """result = b + lambda sum_i w_i (x_i - b): equation 1 of the paper, a weight a model.

    In float32 throughout. mergekit 0.1.5 rounds each step to the inputs' dtype, so in bf16 the two differ
    by that rounding; in fp32 they agree.
    """

    name = "task_arithmetic"
    summary = "The base plus the weighted sum of the models' differences from it."
    reference = "https://arxiv.org/abs/2212.04089"
    requires = Requirements(base="required", min_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = TaskArithmeticParameters
    InputParameters = TaskArithmeticInputParameters

    def check(
        self, inputs: Sequence[TaskArithmeticInputParameters], parameters: TaskArithmeticParameters
    ) -> Iterator[str]:
        weights = [one.weight for one in inputs]
        yield from check_range([*weights, parameters.scale])
        if parameters.normalize:
            yield from check_sum(weights)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        weights = base.new_tensor([one.parameters.weight for one in inputs])
        first, *others = [one.tensor.sub_(base).mul_(weight) for one, weight in zip(inputs, weights, strict=True)]
        for delta in others:
            first.add_(delta)
        if context.parameters.normalize:
            first.div_(weights.sum())
        if context.parameters.scale != 1:
            first.mul_(context.parameters.scale)
        return first.add_(base)

    def compiled(self) -> "Compiled | None":
        if not is_available():
            return None
        from safegraft_plugins.compiled.weighted import CompiledTaskArithmetic

        return CompiledTaskArithmetic()


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [TaskArithmetic]
