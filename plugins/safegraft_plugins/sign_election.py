"""Elect a sign for every element and sum what agrees with it: steps 2 and 3 of TIES (arXiv 2306.01708)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safegraft_plugins.float_bits import integers, keep, sign_bit_mask
from safegraft_plugins.weights import CANCELLED

if TYPE_CHECKING:
    import torch


def elected_sum(deltas: "Sequence[torch.Tensor]", weights: Sequence[float], *, normalize: bool) -> "torch.Tensor":
    """The sum of the weighted task vectors `deltas`, at each element over those whose sign is that of the whole sum.

    A whole sum of zero elects plus, as in mergekit. `normalize` divides by the summed weights of the task vectors that
    took part: with the elected sign, and not zero. Where these weights cancel it divides by nothing; mergekit does so
    where they cancel exactly. deltas: overwritten.
    """
    import torch

    elected = deltas[0].clone()
    for delta in deltas[1:]:
        elected.add_(delta)
    opposite = integers(elected).bitwise_not_()
    spare = torch.empty_like(elected)  # few buffers, so that they stay in the cache
    mask = integers(spare)
    for delta in deltas:
        # Where the signs differ from the opposite's, the top bit of the exclusive or is set.
        torch.bitwise_xor(integers(delta), opposite, out=mask)
        keep(delta, sign_bit_mask(mask))
    divisor = _divisor(deltas, weights, elected, spare) if normalize else None
    first, *others = deltas
    for other in others:
        first.add_(other)
    return first if divisor is None else first.div_(divisor)


def _divisor(
    deltas: "Sequence[torch.Tensor]", weights: Sequence[float], total: "torch.Tensor", spare: "torch.Tensor"
) -> "torch.Tensor":
    """The summed weights of those that took part, 1 where none did or they cancel; in the memory of `total`."""
    import torch

    torch.sign(deltas[0], out=total).abs_().mul_(weights[0])
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total.add_(torch.sign(delta, out=spare).abs_(), alpha=weight)
    if min(weights) < 0 < max(weights):
        size = torch.zeros_like(total)
        for delta, weight in zip(deltas, weights, strict=True):
            size.add_(torch.sign(delta, out=spare).abs_(), alpha=abs(weight))
        return total.masked_fill_(total.abs() <= CANCELLED * size, 1)
    # Of weights with one sign, a sum is as large as the least of them, or empty; then there is nothing to divide.
    least = min(map(abs, weights))
    return total.clamp_(min=least) if weights[0] > 0 else total.clamp_(max=-least)
