"""W + scale B A, tile by tile, with the same bits however a tensor is cut.

The last bit of a matrix product may depend on how large the product is. So products are computed over fixed tiles
of the stored tensor only, and what is asked for is cut from those. Imported when weights are read: it needs torch.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from safegraft.checkpoint.adapter_modules import LoraModule
from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.types import TensorInfo
from safegraft.errors import NonFiniteError, Problem

TILE = 1 << 17  # elements: a tile and its weights stay in the second-level cache
KEPT_TILES = 16  # a checkpoint: the cuts of a merge seldom end where tiles do
KEPT_FACTORS = 4  # modules

ReadTensor = Callable[[TensorInfo], torch.Tensor]  # a whole tensor of the adapter
ReadOwn = Callable[[TensorInfo, int, int], torch.Tensor]  # elements of a tensor before B A is added, in its dtype


@dataclass(frozen=True, slots=True)
class LowRank:
    """What a module adds to the tensor `info` [rows, columns]. turned: that is stored [in, out]."""

    info: TensorInfo
    module: LoraModule
    turned: bool


@dataclass(frozen=True, slots=True)
class _Tile:
    """Rows and columns of a tensor that lie side by side in it: elements [start, stop)."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    start: int
    stop: int


class LoraTiles:
    """Computes in float32, and in float64 where the model's tensor has it. Safe to use from several threads."""

    def __init__(self, read_own: ReadOwn, read_factor: ReadTensor) -> None:
        self._read_own = read_own
        self._read_factor = read_factor
        self._factors = functools.lru_cache(maxsize=KEPT_FACTORS)(self._load_factors)
        self._delta = functools.lru_cache(maxsize=KEPT_TILES)(self._compute_delta)
        self._gains: dict[str, torch.Tensor] = {}
        self._measuring = threading.Lock()

    def values(self, patch: LowRank, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of W + scale B A, flat, in the dtype computed with.

        With a DoRA magnitude m each output's weights are scaled to that norm: m (W + scale B A) / |W + scale B A|;
        an output whose weights are all zero stays zero.
        """
        result = self._read_own(patch.info, start, stop).to(compute_dtype(patch.info.dtype))
        gain = self._gain(patch) if patch.module.magnitude is not None else None
        for tile in _tiles(patch.info.shape, start, stop):
            first, last = max(start, tile.start), min(stop, tile.stop)
            here = result[first - start : last - start]
            inside = slice(first - tile.start, last - tile.start)
            here.add_(self._delta(patch, tile)[inside])
            if gain is not None:
                here.mul_(_spread(gain, patch, tile)[inside])
        return result

    def _compute_delta(self, patch: LowRank, tile: _Tile) -> torch.Tensor:
        """scale B A over one tile, flat."""
        a, b = self._factors(patch.module, compute_dtype(patch.info.dtype))
        rows, columns = slice(*tile.rows), slice(*tile.columns)
        product = a[:, rows].T @ b[columns].T if patch.turned else b[rows] @ a[:, columns]
        return product.mul_(patch.module.scale).reshape(-1)

    def _load_factors(self, module: LoraModule, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return self._read_factor(module.a).to(dtype), self._read_factor(module.b).to(dtype)

    def _gain(self, patch: LowRank) -> torch.Tensor:
        """Magnitude over norm, by output. Costs a pass over the tensor when it is first asked for."""
        with self._measuring:
            if patch.info.name not in self._gains:
                self._gains[patch.info.name] = self._measure(patch)
            return self._gains[patch.info.name]

    def _measure(self, patch: LowRank) -> torch.Tensor:
        assert patch.module.magnitude is not None
        dtype = compute_dtype(patch.info.dtype)
        squares = torch.zeros(patch.module.outputs, dtype=torch.float64)
        for tile in _tiles(patch.info.shape, 0, patch.info.elements):
            changed = self._read_own(patch.info, tile.start, tile.stop).to(dtype).add_(self._delta(patch, tile))
            table = changed.double().square_().view(_size(tile.rows), _size(tile.columns))
            outputs = tile.columns if patch.turned else tile.rows
            squares[slice(*outputs)] += table.sum(dim=0 if patch.turned else 1)
        norms = squares.sqrt_().to(dtype)
        magnitude = self._read_factor(patch.module.magnitude).to(dtype)
        return torch.where(norms == 0, 0, magnitude / norms)


def require_finite(result: torch.Tensor, before: Callable[[], torch.Tensor], tensor: TensorInfo, adapter: str) -> None:
    """NaN and inf that a base has may stay; raises NonFiniteError where an adapter brings them about."""
    finite = torch.isfinite(result)
    if bool(finite.all()):
        return
    made = torch.isfinite(before()) & ~finite
    if bool(made.any()):
        message = (
            f"makes NaN or inf of {int(made.sum())} values of {tensor.name} where that was first seen: it holds NaN or "
            f"inf itself, or values too large for {tensor.dtype}"
        )
        raise NonFiniteError(Problem(adapter, message))


def compute_dtype(stored: DType) -> torch.dtype:
    """What sums over a tensor of this dtype are computed in."""
    return torch.float64 if stored is DType.F64 else torch.float32


def _tiles(shape: tuple[int, ...], start: int, stop: int) -> Iterator[_Tile]:
    """The tiles that elements [start, stop) touch: some whole rows, or a piece of one row where rows are long."""
    rows, columns = shape
    height, width = max(1, TILE // max(1, columns)), min(columns, TILE)
    while start < stop:
        row, column = start // columns // height * height, start % columns // width * width
        bottom, right = min(rows, row + height), min(columns, column + width)
        begin = row * columns + column
        tile = _Tile((row, bottom), (column, right), begin, begin + (bottom - row) * (right - column))
        yield tile
        start = tile.stop


def _spread(gain: torch.Tensor, patch: LowRank, tile: _Tile) -> torch.Tensor:
    """The outputs' gains, one for each element of a tile."""
    some = gain[slice(*tile.columns)][None] if patch.turned else gain[slice(*tile.rows)][:, None]
    return some.expand(_size(tile.rows), _size(tile.columns)).reshape(-1)


def _size(ends: tuple[int, int]) -> int:
    return ends[1] - ends[0]
