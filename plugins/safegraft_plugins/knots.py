"""KnOTS: merging where the models' joint singular vectors align them (Stoica et al., arXiv 2410.19735)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from safegraft import hookimpl
from safegraft.methods import MergeMethod
from safegraft_plugins.matrixwise import Matrixwise, MatrixwiseParameters, total

if TYPE_CHECKING:
    import torch


class KnotsParameters(MatrixwiseParameters):
    merging: Literal["ties", "sum"] = Field("ties", description="How the aligned task vectors are merged.")
    density: float = Field(1.0, ge=0, le=1, description="Share of each aligned task vector that `ties` keeps.")


class Knots(Matrixwise):
    """result = b + lambda U M(C_1, ..., C_N), where U S [V_1, ..., V_N] = [t_1, ..., t_N] and C_i = S V_i.

    The task vectors [out, in] side by side, [out, N in], have one thin singular value decomposition. Its left
    vectors U are common to the models; C_i = U^T t_i [k, in] says how model i uses them, and M merges these
    element by element:

    - `ties`: trim, elect, mean. Each C_i keeps its `density` of largest magnitude, and all that equal the
      least of these. The sign of an element's sum is elected, and the elements that have it are averaged over
      their number. A sum of exactly zero elects nothing and gives 0 (the authors' code gives it the sign of
      most others): the signs of U's columns are arbitrary, and the result must not hang on them.
    - `sum`: U sum_i C_i = sum_i t_i, which is task arithmetic. No decomposition is needed for it.

    Singular values that are zero but for rounding are left out, as in the paper. Where singular values are
    equal, U is not unique, and what `ties` makes of it is as arbitrary as in the authors' code.
    Trimming counts in each matrix; the authors' code counts in the whole model. Time grows with the cube of
    min(out, N in).

    Tensors other than matrices of linear layers, which the paper leaves out: b + lambda mean_i t_i for `ties`,
    b + lambda sum_i t_i for `sum`. lambda is tuned in the paper; the default is 1.
    """

    name = "knots"
    summary = "TIES in the directions that all models' updates have in common."
    reference = "https://arxiv.org/abs/2410.19735"
    Parameters = KnotsParameters

    def merge_elements(self, taus: "Sequence[torch.Tensor]", parameters: KnotsParameters) -> "torch.Tensor":
        return total(taus) if parameters.merging == "sum" else total(taus).div_(len(taus))

    def merge_matrices(self, taus: "Sequence[torch.Tensor]", parameters: KnotsParameters) -> "torch.Tensor":
        matrices = [tau.double() for tau in taus]
        if parameters.merging == "sum":
            return total(matrices)
        basis, aligned = align(matrices)
        return basis @ ties([trimmed(one, parameters.density) for one in aligned])


def align(taus: "Sequence[torch.Tensor]") -> "tuple[torch.Tensor, list[torch.Tensor]]":
    """U [out, k] with orthonormal columns, and of each task vector [out, in] C_i [k, in]: t_i = U C_i."""
    import torch

    from safegraft_plugins.spectrum import thin_svd

    parts = thin_svd(torch.cat(list(taus), dim=1))
    return parts.u, list(parts.vh.mul_(parts.s.unsqueeze(1)).tensor_split(len(taus), dim=1))


def trimmed(values: "torch.Tensor", density: float) -> "torch.Tensor":
    """The values with all but a share of the largest magnitudes set to zero; changes them in place."""
    kept = int(values.numel() * density)
    if kept == values.numel():
        return values
    if kept == 0:
        return values.zero_()
    magnitudes = values.abs()
    least = magnitudes.flatten().kthvalue(values.numel() - kept + 1).values
    return values.masked_fill_(magnitudes < least, 0)


def ties(values: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """The mean, element by element, of those that have the sign of the sum; 0 where that is 0."""
    elected = total(values).sign_()
    agreeing = [one.where(one.sign() == elected, 0) for one in values]
    count = total([(one != 0).to(one.dtype) for one in agreeing])
    return total(agreeing).div_(count.clamp_(min=1))


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [Knots]
