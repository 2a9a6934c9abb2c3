"""The directions of alignment in a weight matrix, and how far an update follows them.

V = W_aligned - W_unaligned [out, in], and C = V V^T / |V|_F [out, out] (Safe LoRA, arXiv 2405.16833). C is no
projector: its eigenvalues are V's squared singular values over |V|_F. C d grows with V; cos(C d, d) does not.
"""

from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    import torch


class Projection(NamedTuple):
    """An update d after C.

    cosine: of the angle between C d and d. delta: C d, or its multiple that is nearest to d.
    """

    cosine: float
    delta: "torch.Tensor"


def matrices(tensor: "torch.Tensor", vocabulary: bool) -> list["torch.Tensor"]:
    """The weight matrices in a tensor: itself, or of stacked experts [experts, out, in] each. None in norms, biases
    and other tensors, nor in vocabularies, whose rows are tokens and not outputs of one linear map. They are views."""
    if vocabulary or tensor.ndim not in (2, 3):
        return []
    return [tensor] if tensor.ndim == 2 else list(tensor.unbind())


def project(delta: "torch.Tensor", alignment: "torch.Tensor", *, fitted: bool = False) -> Projection | None:
    """C delta for V = `alignment` or -V, both [out, in]; None where one of them is zero. Overwrites both.

    C is positive semidefinite: but for rounding, the cosine is never negative.

    Both are brought to length 1 first, so that no product under- or overflows. Norms are summed in float64. The
    product goes by the smaller of out and in.
    """
    import torch

    size, strength = norm(delta), norm(alignment)
    if size == 0 or strength == 0:
        return None
    d, v = delta.div_(size), alignment.div_(strength)
    rows, columns = d.shape
    projected = (v @ v.T) @ d if rows <= columns else v @ (v.T @ d)
    length = norm(projected)
    if length == 0:
        return Projection(0.0, projected)
    cosine = min(1.0, float((projected * d).sum(dtype=torch.float64)) / length)
    return Projection(cosine, projected.mul_(cosine * size / length if fitted else strength * size))


def scratch(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes that `project` takes for one of a tensor's matrices, with the update it is given."""
    if len(shape) not in (2, 3):
        return 0
    rows, columns = shape[-2:]
    return (3 * rows * columns + min(rows, columns) ** 2) * itemsize


def norm(tensor: "torch.Tensor") -> float:
    """Frobenius' norm, summed in float64."""
    import torch

    # torch's stubs leave linalg untyped.
    found = cast("torch.Tensor", torch.linalg.vector_norm(tensor, dtype=torch.float64))  # pyright: ignore[reportUnknownMemberType]
    return float(found)
