"""What may be asked together. Knows examples, no model."""

from collections.abc import Iterator, Sequence

from safegraft_trainers.evaluate.example import Example


def batches(examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """The indices of `examples`, at most `size` at a time.

    An example with an image and one without never meet: a processor takes one kind at a time. The longest come first:
    like ones together need little padding, and what does not fit into memory fails at once, not hours later.
    """
    for with_image in (False, True):
        group = [index for index, one in enumerate(examples) if (one.image is not None) == with_image]
        group.sort(key=lambda index: (-len(examples[index].prompt), index))
        for start in range(0, len(group), size):
            yield group[start : start + size]
