"""What methods with a weight a model have in common. Knows numbers only."""

from collections.abc import Iterator, Sequence

# Weights that cancel to a millionth of their size are meant to sum to zero: beyond that, dividing by their sum
# would leave nothing but rounding errors.
CANCELLED = 1e-6

VECTOR = 8  # from so many numbers on, the order in which torch adds depends on the processor

LARGEST, SMALLEST = 3.4e38, 1.2e-38  # of float32, in which weights are applied


def check_range(weights: Sequence[float]) -> Iterator[str]:
    """Yield which weights float32 cannot hold."""
    for weight in weights:
        if abs(weight) > LARGEST or 0 < abs(weight) < SMALLEST:
            yield f"the weight {weight:g} is out of float32's range ({SMALLEST:g} to {LARGEST:g})"


def check_sum(weights: Sequence[float]) -> Iterator[str]:
    """Yield what is wrong with weights that a method divides by the sum of."""
    if abs(sum(weights)) <= CANCELLED * sum(map(abs, weights)):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        yield (
            f"the weights {shown} sum to zero, and `normalize` divides by their sum; change them or set "
            "`normalize: false`"
        )


def total_of(weights: Sequence[float]) -> float:
    """The sum in float32, as torch adds up a tensor of them."""
    if len(weights) >= VECTOR:
        import torch

        return float(torch.tensor(weights, dtype=torch.float32).sum())
    import numpy as np

    # Four sums side by side, what is left over goes to the first, and then they are added.
    numbers = np.array(weights, np.float32)
    first = np.float32(0)
    for number in (*numbers[:1], *numbers[4:], *numbers[1:4]):
        first += number
    return float(first)
