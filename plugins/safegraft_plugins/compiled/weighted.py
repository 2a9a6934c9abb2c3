"""Methods that weigh and sum models, in machine code."""

from collections.abc import Sequence
from math import fsum
from typing import TYPE_CHECKING, Any

import numpy as np

from safegraft.methods.compiled import Compiled, DeclinedError, StoredCut, StoredView
from safegraft.methods.contract import Context
from safegraft_plugins import karcher, model_stock, multislerp, slerp
from safegraft_plugins.compiled import sums
from safegraft_plugins.compiled.limits import require_sound
from safegraft_plugins.compiled.products import gram
from safegraft_plugins.weights import total_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Stored = NDArray[Any]


class CompiledLinear(Compiled):
    def merge(self, cut: StoredCut, context: Context, out: "Stored") -> None:
        weights = [one.weight for one in cut.parameters]
        total = total_of(weights) if context.parameters.normalize else 1.0
        require_sound(sums.linear(cut.inputs, np.array(weights, np.float32), np.float32(total), out), out)


class CompiledTaskArithmetic(Compiled):
    def merge(self, cut: StoredCut, context: Context, out: "Stored") -> None:
        weights = [one.weight for one in cut.parameters]
        total = total_of(weights) if context.parameters.normalize else 1.0
        scale = np.float32(context.parameters.scale)
        require_sound(
            sums.task_vectors(cut.inputs, cut.base, np.array(weights, np.float32), np.float32(total), scale, out), out
        )


class CompiledSlerp(Compiled):
    def prepare(self, view: StoredView, parameters: slerp.SlerpParameters) -> slerp.Share:
        (base_square, product), (_, other_square) = gram(view, base_among=True)
        return slerp.share(parameters.t, base_square, other_square, product)

    def merge(self, cut: StoredCut, context: Context, out: "Stored") -> None:
        state: slerp.Share = context.state
        shares = np.array([state.base, state.other], np.float32)
        require_sound(sums.pair(cut.base, cut.inputs[0], shares[0], shares[1], out), out)


class CompiledKarcher(Compiled):
    def prepare(self, view: StoredView, parameters: karcher.KarcherParameters) -> list[float]:
        return karcher.coefficients(gram(view), parameters.max_iter, parameters.tol)

    def merge(self, cut: StoredCut, context: Context, out: "Stored") -> None:
        _weighted_sum(cut, context.state, out)


class CompiledMultislerp(Compiled):
    """Without a base."""

    def prepare(self, view: StoredView, parameters: multislerp.MultislerpParameters) -> list[list[float]]:
        return gram(view)

    def merge(self, cut: StoredCut, context: Context, out: "Stored") -> None:
        weights = multislerp.weights_of(cut.parameters, context.parameters)
        _weighted_sum(cut, multislerp.coefficients(weights, context.state, context.parameters.eps), out)


class CompiledModelStock(Compiled):
    """With one ratio for the whole tensor."""

    def prepare(self, view: StoredView, parameters: model_stock.ModelStockParameters) -> model_stock.Ratio:
        if parameters.filter_wise:
            raise DeclinedError
        t = model_stock.ratio(np.array(gram(view))[:, :, np.newaxis])
        return model_stock.Ratio(t.reshape((1,) * len(view.shape)), by_row=False)

    def merge(self, cut: StoredCut, context: Context, out: "Stored") -> None:
        state: model_stock.Ratio = context.state
        if state.by_row:
            raise DeclinedError
        t = state.t.item()
        require_sound(sums.mean_towards(cut.inputs, cut.base, np.float32(t), np.float32(1 - t), out), out)


def _weighted_sum(cut: StoredCut, coefficients: Sequence[float], out: "Stored") -> None:
    """As safegraft_plugins.span.weighted_sum, of models themselves."""
    if len(cut.inputs) == 1 or cut.base is not None:
        raise DeclinedError
    reference = max(range(len(coefficients)), key=lambda index: abs(coefficients[index]))
    others = np.array(coefficients, np.float32)
    if any(coefficient and not other for coefficient, other in zip(coefficients, others, strict=True)):
        raise DeclinedError  # too small for float32: not the same as none
    others[reference] = 0
    require_sound(sums.about(cut.inputs, reference, np.float32(fsum(coefficients)), others, out), out)
