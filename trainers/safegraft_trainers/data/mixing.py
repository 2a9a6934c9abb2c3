"""Several data sets in given shares: safety data with benign replay, adaptation with text.

Knows columns of a Dataset, not what is in them.
"""

# datasets types its functions in part.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from datasets import Dataset, concatenate_datasets

from safegraft.errors import InputError, Problem, UsageError
from safegraft_trainers.data.columns import answers
from safegraft_trainers.data.digest import digest

Sources = Sequence[tuple[Dataset, float]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixture:
    """What was taken: `taken[i]` rows of source i, which has `available[i]`. notes: what a reader should know."""

    dataset: Dataset
    taken: tuple[int, ...]
    available: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the rows; reads every image, hence only when asked."""
        return digest(self.dataset)

    def to_dict(self) -> dict[str, Any]:
        """For a model card."""
        sources = [
            {"rows": taken, "of": available} for taken, available in zip(self.taken, self.available, strict=True)
        ]
        return {"rows": len(self.dataset), "sources": sources, "seed": self.seed, "digest": self.digest}


def mix(sources: Sources, size: int | None = None, seed: int = 0) -> Dataset:
    """The dataset of `draw`; what is worth knowing about it goes to the log."""
    mixture = draw(sources, size, seed)
    for note in mixture.notes:
        log.warning(note)
    return mixture.dataset


def draw(sources: Sources, size: int | None = None, seed: int = 0) -> Mixture:
    """Draw rows of each source in proportion to its share, shuffled.

    A row is taken at most once; where a share asks for more rows than there are, all are taken equally often, but for
    one, and a note says so. Which rows, and in which order, depends on the seed and on row numbers alone, the same on
    every machine. A column that only some sources have is null in the rest.

    Args:
        sources: (dataset, share); shares are positive and count in proportion to their sum.
        size: rows of the result. Default: as many as the shares allow without taking a row twice.

    Raises UsageError for shares or a size that make no sense, or that leave a source without a row; InputError for
    data sets of different kinds.
    """
    shares = _shares(sources)
    available = tuple(len(dataset) for dataset, _ in sources)
    _check_kinds([dataset for dataset, _ in sources])
    if size is None:
        size = min(math.floor(rows / share) for rows, share in zip(available, shares, strict=True))
    taken = _apportioned(shares, size)
    parts = [
        dataset.select(_chosen(count, rows, f"{seed} {place}"))
        for place, ((dataset, _), count, rows) in enumerate(zip(sources, taken, available, strict=True))
    ]
    whole = concatenate_datasets(parts)
    dataset = whole.select(_ranked(len(whole), f"{seed} order"))
    notes = [
        f"source {place} of the mix has {rows:,} rows and its share asks for {count:,}: "
        f"each is taken {count // rows if count % rows == 0 else f'{count // rows} or {count // rows + 1}'} times"
        for place, (count, rows) in enumerate(zip(taken, available, strict=True), 1)
        if count > rows
    ]
    return Mixture(dataset, taken, available, seed, tuple(notes))


def _shares(sources: Sources) -> list[Fraction]:
    if not sources:
        raise UsageError("a mix needs at least one data set")
    for place, (dataset, share) in enumerate(sources, 1):
        if not (math.isfinite(share) and share > 0):
            raise UsageError(f"source {place} of the mix has the share {share}: it must be above 0, or leave it out")
        if not len(dataset):
            raise InputError(Problem(f"source {place} of the mix", "has no rows"))
    exact = [Fraction(str(share)) for _, share in sources]  # 0.1 as it is written, not as it is stored
    return [share / sum(exact) for share in exact]


def _check_kinds(datasets: Sequence[Dataset]) -> None:
    kinds = {answers(dataset) for dataset in datasets}
    if len(kinds) > 1:
        raise InputError(Problem("mix", "holds both preferences and plain examples; no one trainer learns from both"))
    types: dict[str, Any] = {}
    for dataset in datasets:
        for name, kind in dataset.features.items():
            if types.setdefault(name, kind) != kind:
                message = f"column {name} is {kind} in one data set and {types[name]} in another: load both alike"
                raise InputError(Problem("mix", message))


def _apportioned(shares: Sequence[Fraction], size: int) -> tuple[int, ...]:
    """Whole rows that add up to `size`, by largest remainder; the first source wins a tie."""
    counts = [math.floor(share * size) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda place: counts[place] - shares[place] * size)
    for place in by_remainder[: size - sum(counts)]:
        counts[place] += 1
    if not all(counts):
        least = math.ceil(1 / min(shares))
        message = f"a mix of {size} rows has none for source {counts.index(0) + 1}: ask for {least} rows"
        raise UsageError(f"{message} or more, or for a larger share of it")
    return tuple(counts)


def _chosen(count: int, rows: int, key: str) -> list[int]:
    """`count` of `rows` row numbers: whole passes, then the first of a ranking."""
    passes, rest = divmod(count, rows)
    return list(range(rows)) * passes + _ranked(rows, key)[:rest]


def _ranked(rows: int, key: str) -> list[int]:
    """Row numbers by hash: no library's random generator decides, and a longer draw holds a shorter one."""
    return sorted(range(rows), key=lambda row: hashlib.sha256(f"{key} {row}".encode()).digest())
