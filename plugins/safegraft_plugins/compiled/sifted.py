"""Methods that sparsify task vectors, in machine code."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from safegraft.methods.compiled import Compiled, DeclinedError, StoredCut, StoredView
from safegraft.methods.contract import Context
from safegraft_plugins.breadcrumbs import Band
from safegraft_plugins.compiled import largest, sparse
from safegraft_plugins.compiled.limits import require_finite, require_sound
from safegraft_plugins.lanes import LANES, added
from safegraft_plugins.magnitude import Block, Largest
from safegraft_plugins.sparsified import LEAST_NORM, Draw, Found, Sparsified
from safegraft_plugins.weights import CANCELLED, total_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CompiledSparsified(Compiled):
    """Of a method whose choices are Largest, Band or Draw."""

    def __init__(self, method: Sparsified) -> None:
        self._method = method

    def prepare(self, view: StoredView, parameters: Any) -> Found:
        own = [one for one in next(view.blocks()).parameters if one.weight != 0]
        if all(one.density >= 1 for one in own):
            return Found({}, {})
        choices = self._method.choose_among(lambda: _walk(view), own, _elements(view), parameters)
        if parameters.rescale is not True:
            return Found(choices, {})
        return Found(choices, self._norm_factors(view, own, choices))

    def _norm_factors(self, view: StoredView, own: Sequence[Any], choices: Mapping[int, Any]) -> dict[int, float]:
        sieve = _sieve(own, choices, view.context.seed)
        before, after = dict.fromkeys(choices, 0.0), dict.fromkeys(choices, 0.0)
        position = 0
        for cut in view.blocks():
            assert cut.base is not None
            rows = _participants(cut)
            for index in choices:
                lanes = np.zeros((2, LANES))
                row = cut.inputs[rows[index]]
                require_finite(sparse.norms(row, cut.base, index, sieve, position, lanes[0], lanes[1]))
                before[index] += added(lanes[0])
                after[index] += added(lanes[1])
            position += cut.base.size
        return {
            index: before[index] / after[index]
            for index in choices
            if before[index] >= LEAST_NORM and after[index] >= LEAST_NORM
        }

    def merge(self, cut: StoredCut, context: Context, out: "NDArray[Any]") -> None:
        rows = _participants(cut)
        if not rows:
            raise DeclinedError
        found: Found = context.state
        own = [cut.parameters[row] for row in rows]
        sieve = _sieve(own, found.choices, context.seed)
        parameters = context.parameters
        weights: list[float] = [one.weight for one in own]
        factors = [weight * found.factors.get(index, 1.0) for index, weight in enumerate(weights)]
        sums = sparse.Sum(
            rows=np.array(rows, np.int64),
            weight=np.array(factors, np.float32),
            share=np.array(weights, np.float32),
            elects=self._method.elects,
            divides=parameters.normalize,
            positive=weights[0] > 0,
            mixed=min(weights) < 0 < max(weights),
            least=np.float32(min(map(abs, weights))),
            cancelled=np.float32(CANCELLED),
            total=np.float32(total_of(weights) if parameters.normalize else 1),
            scale=np.float32(parameters.scale),
        )
        require_sound(sparse.sparsified(cut.inputs, cut.base, sieve, sums, context.position, out), out)


def _participants(cut: StoredCut) -> list[int]:
    """The rows of the models whose weight is not zero."""
    return [row for row, one in enumerate(cut.parameters) if one.weight != 0]


def _walk(view: StoredView) -> Iterator[list[Block]]:
    for cut in view.blocks():
        assert cut.base is not None
        yield [StoredBlock(cut.inputs[row], cut.base) for row in _participants(cut)]


def _elements(view: StoredView) -> int:
    return int(np.prod(view.shape, dtype=np.int64))


def _sieve(own: Sequence[Any], choices: Mapping[int, Any], seed: int) -> sparse.Sieve:
    count = len(own)
    sieve = sparse.Sieve(
        kind=np.full(count, sparse.WHOLE, np.int32),
        bits=np.zeros((count, 2), np.uint32),
        last=np.zeros((count, 2), np.int64),
        limit=np.zeros(count, np.int32),
        divisor=np.ones(count, np.float32),
        seed=np.uint64(seed),
    )
    for index in range(count):
        match choices.get(index):
            case Largest(bits, last):
                sieve.kind[index] = sparse.LARGEST
                sieve.bits[index, 0], sieve.last[index, 0] = bits, last
            case Band(upper, outliers):
                sieve.kind[index] = sparse.BAND
                sieve.bits[index], sieve.last[index] = (upper.bits, outliers.bits), (upper.last, outliers.last)
            case Draw(limit, divisor):
                sieve.kind[index] = sparse.RANDOM
                sieve.limit[index], sieve.divisor[index] = limit, divisor
            case _:
                assert own[index].density >= 1, "every task vector that is sparsified has its choice"
    return sieve


class StoredBlock(Block):
    """The difference of two stored vectors [n]."""

    def __init__(self, stored: "NDArray[Any]", base: "NDArray[Any]") -> None:
        self._stored, self._base = stored, base
        self.size = stored.size

    def count_upper(self, counts: "NDArray[np.int64]") -> None:
        require_finite(largest.count_upper(self._stored, self._base, counts))

    def count_lower(self, digit: int, counts: "NDArray[np.int64]") -> None:
        largest.count_lower(self._stored, self._base, np.uint32(digit), counts)

    def gather(self, digit: int, lower: "NDArray[np.uint16]", positions: "NDArray[np.uint32]") -> int:
        return largest.gather(self._stored, self._base, np.uint32(digit), lower, positions)

    def equal(self, bits: int) -> "NDArray[np.int64]":
        positions = np.empty(self.size + 1, np.int64)
        return positions[: largest.equal(self._stored, self._base, np.uint32(bits), positions)]
