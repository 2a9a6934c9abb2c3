"""Task singular vectors (Gargiulo et al., arXiv 2412.00081)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safegraft import hookimpl
from safegraft.methods import MergeMethod
from safegraft_plugins.matrixwise import Matrixwise, MatrixwiseParameters, total

if TYPE_CHECKING:
    import torch


class TsvMerge(Matrixwise):
    """result = b + lambda U' S V'^T: TSV-M of the paper, with a weight a model.

    U, S and V hold side by side the first k = floor(r / N) singular triplets of every task vector [out, in],
    with r = min(out, in). U' and V' are the nearest matrices with orthonormal columns (the orthogonal
    Procrustes problem, which whitening solves), so that no task's directions overlap another's.

    - One model: b + lambda t, since k = r keeps everything and its vectors are orthonormal already.
    - Singular values that are zero, or zero but for rounding, are left out with their arbitrary vectors; the
      authors' code whitens these too.
    - Where directions of tasks coincide, whitening divides by zero; it is confined to what they span. Equal
      models thus give their own task vector, cut to rank k.
    - A matrix with r < N has no direction for every task: b + lambda mean_i t_i. (The authors' code leaves the
      base there.)

    Tensors other than matrices of linear layers: b + lambda mean_i t_i, as in the authors' code.
    """

    name = "tsv_m"
    summary = "The models' leading singular vectors, made orthogonal to each other."
    reference = "https://arxiv.org/abs/2412.00081"

    def merge_matrices(self, taus: "Sequence[torch.Tensor]", parameters: MatrixwiseParameters) -> "torch.Tensor":
        import torch

        from safegraft_plugins.spectrum import polar_of_blocks, thin_svd

        if len(taus) == 1:
            return taus[0].double()
        rank = min(taus[0].shape) // len(taus)
        if rank == 0:
            return total([tau.double() for tau in taus]).div_(len(taus))
        parts = [thin_svd(tau, rank=rank) for tau in taus]
        values = torch.cat([part.s for part in parts])
        if not len(values):
            return taus[0].new_zeros(taus[0].shape).double()
        left = polar_of_blocks([part.u for part in parts])
        return (left * values) @ polar_of_blocks([part.vh.mT for part in parts]).mT


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [TsvMerge]
