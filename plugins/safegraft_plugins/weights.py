"""What methods with a weight a model have in common. Knows numbers only."""

from collections.abc import Iterator, Sequence

# Weights that cancel to a millionth of their size are meant to sum to zero: beyond that, dividing by their sum
# would leave nothing but rounding errors.
CANCELLED = 1e-6


def check_sum(weights: Sequence[float]) -> Iterator[str]:
    """Yield what is wrong with weights that a method divides by the sum of."""
    if abs(sum(weights)) <= CANCELLED * sum(map(abs, weights)):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        yield (
            f"the weights {shown} sum to zero, and `normalize` divides by their sum; change them or set "
            "`normalize: false`"
        )
