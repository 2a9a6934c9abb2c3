"""RegMean (arXiv 2212.09849): the linear layer nearest to all models' outputs."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Calibration, Context, Granularity, Input, MergeMethod, Requirements, Statistic
from safegraft_plugins.span import weighted_sum

if TYPE_CHECKING:
    import torch

GRAM = "gram"

# Added to the diagonal of every Gram matrix, in units of the mean of the models' diagonals: what no input has ever
# excited is averaged, and a sum of rank less than full can be solved.
RIDGE = 1e-6


class RegmeanParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.9, ge=0, le=1, description="Factor on the Gram matrices off their diagonals.")


class RegmeanInputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, ge=0, le=1e18, description="Factor on the model's Gram matrix.")


class Regmean(MergeMethod):
    """W = (sum_i w_i W_i G_i) (sum_i w_i G_i)^-1 for a linear layer with weights W_i [out, in].

    The paper's closed form, transposed as PyTorch stores weights: of all W the one whose
    outputs are nearest to every model's own, in the least squares. G_i = X_i^T X_i [in, in] are the inner
    products of what goes into the layer in model i, on that model's own data (`task`), as a mean over tokens, so that
    the amount of data is no weight. Off its diagonal G_i is multiplied by alpha, as in the paper: alpha = 0
    weighs input features one by one, alpha = 1 is the equation as it stands.

    A ridge of 1e-6 of the mean of all diagonals is added to each G_i, and the sum is solved in float64 by Cholesky's
    method. With alpha = 1 and strongly correlated features the sum may be singular even so: that is an error.
    Tensors without the statistic (biases, norms, embeddings) are averaged by the weights, as in the paper. A
    tensor is merged whole: cut in rows, every cut would have to factorise the same matrix. Equal models give the
    model to the bit; a model of weight zero leaves no trace.
    """

    name = "regmean"
    summary = "The linear layers nearest to all models' outputs on their own data, in the least squares."
    reference = "https://arxiv.org/abs/2212.09849"
    requires = Requirements(base="ignored", min_inputs=1, calibration=(Calibration(GRAM, Statistic.INPUT_GRAM),))
    granularity = Granularity.TENSOR
    Parameters = RegmeanParameters
    InputParameters = RegmeanInputParameters

    def check(self, inputs: Sequence[RegmeanInputParameters], parameters: RegmeanParameters) -> Iterator[str]:
        if not any(one.weight for one in inputs):
            yield "every weight is zero; give at least one model a weight"

    def scratch(self, shape: tuple[int, ...], inputs: int, itemsize: int) -> int:
        """The models' Gram matrices [in, in], eight more in float64, and four matrices in float64."""
        if len(shape) != 2:
            return 0
        rows, columns = shape
        return (4 * inputs + 8 * 8) * columns**2 + 4 * 8 * rows * columns

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        present = [one for one in inputs if one.parameters.weight]
        tensors = [one.tensor for one in present]
        shares = [one.parameters.weight / sum(other.parameters.weight for other in present) for one in present]
        grams = [gram for one in present if (gram := one.statistics[GRAM]) is not None]
        if len(present) == 1 or len(grams) < len(present):
            return weighted_sum(tensors, shares)
        return solve(tensors, grams, shares, context)


def solve(
    tensors: Sequence["torch.Tensor"], grams: Sequence["torch.Tensor"], shares: Sequence[float], context: Context
) -> "torch.Tensor":
    """W_0 + (sum_i (W_i - W_0) w_i G_i) (sum_i w_i G_i)^-1: the equation, in which equal models' differences vanish."""
    import torch

    ridge = ridge_of(grams, shares)
    first = tensors[0].double()
    moved = torch.zeros_like(first)
    total = torch.zeros_like(grams[0], dtype=torch.float64)
    for tensor, gram, share in zip(tensors, grams, shares, strict=True):
        weighted = weighted_gram(gram, share, context.parameters.alpha, ridge)
        total += weighted
        moved += (tensor.double() - first) @ weighted
    factor = cholesky(total)
    if factor is None:
        raise ValueError(
            f"the sum of the models' Gram matrices of {context.tensor} is singular; choose a smaller `alpha`, or "
            "calibrate on more data"
        )
    return first.add_(torch.cholesky_solve(moved.T, factor).T).to(tensors[0].dtype)


def ridge_of(grams: Sequence["torch.Tensor"], shares: Sequence[float]) -> float:
    mean = sum(share * float(gram.diagonal().double().mean()) for gram, share in zip(grams, shares, strict=True))
    return RIDGE * mean if mean > 0 else 1.0  # nothing has ever come in: every feature is averaged


def weighted_gram(gram: "torch.Tensor", share: float, alpha: float, ridge: float) -> "torch.Tensor":
    """w (alpha G + (1 - alpha) diag(G) + ridge I), in float64."""
    exact = gram.double()
    weighted = exact * (alpha * share)
    weighted.diagonal().copy_((exact.diagonal() + ridge) * share)
    return weighted


def cholesky(matrix: "torch.Tensor") -> "torch.Tensor | None":
    """The lower factor, where there is one."""
    import torch

    # torch's stubs leave linalg untyped.
    found = cast("tuple[torch.Tensor, torch.Tensor]", torch.linalg.cholesky_ex(matrix))  # pyright: ignore[reportUnknownMemberType]
    factor, failed = found
    return None if bool(failed) else factor


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Regmean]
