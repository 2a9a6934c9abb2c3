"""Safe Delta (arXiv 2505.12038)."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Calibration, Context, Granularity, Input, MergeMethod, Requirements, Statistic
from safegraft_plugins.weights import check_range

if TYPE_CHECKING:
    import torch

GRAM = "gram"
DAMPING = 0.01  # of the mean of H's diagonal, as in the authors' code
UNIT = 4096**2  # elements of the matrix for which the authors give s
BLOCK = 128  # columns that are compensated one by one before the rest of the matrix is, all at once


class SafeDeltaParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    s: float = Field(0.11, ge=0, allow_inf_nan=False, description="The budget: how much loss of safety is accepted.")
    exempt: float = Field(
        0.15, ge=0, le=1, description="Share of the elements, the costliest, that are never accepted."
    )


class SafeDelta(MergeMethod):
    """result = a + m (f - a) + c: the accepted part of the update, and what makes up for it in the others.

    f is the fine-tuned model, `aligned` a what it was fine-tuned from. H = 2/n sum x x^T over what goes into the linear
    layer in a, on the recipe's calibration set `safety` (safe answers to harmful prompts). Per matrix [out, in]:

    - elements are accepted in the order of falling [H^-1]_jj, so column by column and in a column from the
      first row on, for as long as their summed loss (f - a)_ij^2 / [H^-1]_jj stays within
      s mean_j(1 / [H^-1]_jj) out in / 4096^2
    - c is that of Optimal Brain Surgeon: columns from left to right, the change of each, accepted or not, is
      compensated in those to its right that are not accepted

    [H^-1]_jj is that of the inputs from j on, the squared diagonal of the Cholesky factor, as in SparseGPT. H is
    damped by 1% of its mean diagonal; its scale has no effect. As in the authors' code, except that they budget
    every 2048 columns apart, as they are after compensation; accept equal costs in any order; compensate four
    columns at a time; give long samples more weight; and set H_jj = 1 for an input j that is never excited, which
    costs the damping alone here.

    s = 0 gives a. What is no linear layer (norms, biases), embeddings and the output head are the aligned model's, as
    there. What is not of the language model, where a is an LVLM as well, stays the fine-tuned model's.
    """

    name = "safe_delta"
    summary = "Accepts the update as far as safety data allows, and compensates for what it does to safety."
    reference = "https://arxiv.org/abs/2505.12038"
    requires = Requirements(
        base="forbidden",
        min_inputs=1,
        max_inputs=1,
        roles=("aligned",),
        calibration=(Calibration(GRAM, Statistic.INPUT_GRAM, model="aligned", data=("safety",)),),
    )
    granularity = Granularity.TENSOR
    Parameters = SafeDeltaParameters

    def check(self, inputs: Sequence[Any], parameters: SafeDeltaParameters) -> Iterator[str]:
        yield from check_range([parameters.s])

    def scratch(self, shape: tuple[int, ...], inputs: int, itemsize: int) -> int:
        """Four float64 matrices [in, in] to factorise H; the losses in float64, twice; transposed tensors."""
        if len(shape) != 2:
            return 0
        rows, columns = shape
        return 4 * 8 * columns**2 + (2 * 8 + 3 * itemsize) * rows * columns

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        fine_tuned, aligned = (one.tensor for one in inputs)
        gram = inputs[0].statistics[GRAM]
        if not context.language:
            return fine_tuned
        if gram is None or context.vocabulary:
            return aligned
        factor = inverse_factor(gram)
        accepted = accept(fine_tuned - aligned, factor.diagonal().square(), context.parameters)
        return compensate(aligned, fine_tuned, accepted, factor.to(aligned.dtype))


def inverse_factor(gram: "torch.Tensor") -> "torch.Tensor":
    """The upper triangular U with H^-1 = U^T U, float64 [in, in], of H = gram after damping."""
    import torch

    h = gram.to(torch.float64, copy=True)
    h.diagonal().add_(DAMPING * float(h.diagonal().mean()) or 1.0)  # without any input, all elements cost the same
    # From the last input to the first, H = R R^T with R upper triangular, and U = R^-1: one factorisation less
    # than inverting H. torch's stubs leave linalg untyped.
    root = cast("torch.Tensor", torch.linalg.cholesky(h.flip(0, 1))).flip(0, 1)  # pyright: ignore[reportUnknownMemberType]
    one = torch.eye(len(h), dtype=h.dtype, device=h.device)
    return cast("torch.Tensor", torch.linalg.solve_triangular(root, one, upper=True))  # pyright: ignore[reportUnknownMemberType]


def accept(delta: "torch.Tensor", freedom: "torch.Tensor", parameters: SafeDeltaParameters) -> "torch.Tensor":
    """Which elements of an update [out, in] are accepted, bool; `freedom` [in] is [H^-1]_jj."""
    rows, columns = delta.shape
    order = freedom.argsort(descending=True, stable=True)
    cost = freedom.reciprocal()
    losses = delta.double().square_().mul_(cost).T[order].reshape(-1)  # column by column
    budget = parameters.s * float(cost.mean()) * rows * columns / UNIT
    within = losses.cumsum_(0) <= budget
    within[within.numel() - int(parameters.exempt * within.numel()) :] = False
    accepted = delta.new_zeros((columns, rows)).bool()
    accepted[order] = within.view(columns, rows)
    return accepted.T


def compensate(
    weight: "torch.Tensor", update_to: "torch.Tensor", accepted: "torch.Tensor", factor: "torch.Tensor"
) -> "torch.Tensor":
    """`weight` [out, in] with the accepted elements of `update_to`; the others make up for them. In place."""
    import torch

    work, goal, chosen = (one.T.contiguous() for one in (weight, update_to, accepted))  # a column in one piece
    columns = len(work)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.empty_like(work[start:stop])
        for column in range(start, stop):
            now = torch.where(chosen[column], goal[column], work[column])
            error = (work[column] - now) / factor[column, column]
            work[column] = now
            work[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        work[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return weight.copy_(work.T)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [SafeDelta]
