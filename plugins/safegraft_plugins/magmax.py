"""MagMax (arXiv 2407.06322)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements
from safegraft_plugins.float_bits import integers, negative
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch


class MagMaxParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    scale: float = Field(1.0, alias="lambda", description="Factor on the merged task vector.", allow_inf_nan=False)


class MagMax(MergeMethod):
    """result = b + lambda t, where t is at each element the largest in magnitude of the differences x_i - b.

    Of equal magnitudes with different signs the later model's counts, as in the authors' code. The paper's models are
    fine-tuned one after the other.
    """

    name = "magmax"
    summary = "At each element, the difference from the base that is largest in magnitude."
    reference = "https://arxiv.org/abs/2407.06322"
    requires = Requirements(base="required", min_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = MagMaxParameters

    def check(self, inputs: Sequence[BaseModel], parameters: MagMaxParameters) -> Iterator[str]:
        yield from check_range([parameters.scale])

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None  # the engine hands over what `requires` asks for
        first, *others = [one.tensor.sub_(base) for one in inputs]
        for other in others:
            smaller = negative(other.abs().sub_(first.abs()))
            # first where `smaller` is set, else other: other with those bits changed in which the two differ.
            difference = integers(first).bitwise_xor_(integers(other)).bitwise_and_(smaller)
            difference.bitwise_xor_(integers(other))
        if context.parameters.scale != 1:
            first.mul_(context.parameters.scale)
        return first.add_(base)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [MagMax]
