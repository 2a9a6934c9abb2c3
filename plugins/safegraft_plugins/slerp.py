"""Spherical linear interpolation (Shoemake 1985, https://doi.org/10.1145/325334.325242)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.compiled import is_available
from safegraft_plugins.lanes import total

if TYPE_CHECKING:
    import torch

    from safegraft.methods.compiled import Compiled

COLLINEAR = 0.9995  # above this cosine the arc is a line, and sin(angle) too small to divide by
ZERO = 1e-8  # a norm below this is a zero vector: it has no direction


class SlerpParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    t: float = Field(description="0 gives the base, 1 the other model.", ge=0, le=1)


@dataclass(frozen=True, slots=True)
class Share:
    """How much of each side the result takes."""

    base: float
    other: float


class Slerp(MergeMethod):
    """result = sin((1-t) a)/sin(a) x + sin(t a)/sin(a) y, with a the angle between the flattened tensors.

    x is the base, y the other model. Tensors that are almost collinear or antipodal are interpolated in
    a line; a zero tensor counts as orthogonal to everything, as in mergekit. The angle comes from one pass
    over the tensor in double precision.
    """

    name = "slerp"
    summary = "Spherical interpolation between the base and one model."
    reference = "https://doi.org/10.1145/325334.325242"
    requires = Requirements(base="required", min_inputs=1, max_inputs=1)
    granularity = Granularity.ELEMENT
    Parameters = SlerpParameters

    def prepare(self, view: TensorView, parameters: SlerpParameters) -> Share:
        base_square = other_square = product = 0.0
        for (other,), base in view.blocks():
            assert base is not None  # the engine hands over what `requires` asks for
            x, y = base.double(), other.tensor.double()
            base_square += total(x * x)
            other_square += total(y * y)
            product += total(x * y)
        return share(parameters.t, base_square, other_square, product)

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        assert base is not None
        (other,) = inputs
        return base.mul_(context.state.base).add_(other.tensor.mul_(context.state.other))

    def compiled(self) -> "Compiled | None":
        if not is_available():
            return None
        from safegraft_plugins.compiled.weighted import CompiledSlerp

        return CompiledSlerp()


def share(t: float, base_square: float, other_square: float, product: float) -> Share:
    """The coefficients from t, the squared norms and the inner product."""
    norms = [math.sqrt(square) for square in (base_square, other_square)]
    divisor = math.prod(norm if norm > ZERO else 1.0 for norm in norms)
    cosine = max(-1.0, min(1.0, product / divisor))
    if abs(cosine) > COLLINEAR:
        return Share(1 - t, t)
    angle = math.acos(cosine)
    return Share(math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Slerp]
