"""Neuron-Fusion (arXiv 2505.16703): neurons that vision has moved far stay, the others go back towards the LLM."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from safegraft import hookimpl
from safegraft.methods import Context, Granularity, Input, MergeMethod, Requirements, TensorView
from safegraft_plugins.safety.interpolation import between
from safegraft_plugins.span import Along, gram

if TYPE_CHECKING:
    import torch


class NeuronFusionParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    fraction: float = Field(0.1, ge=0, le=1, description="Share of each tensor's neurons that stay the LVLM's.")
    scale: float = Field(0.5, ge=0, le=1, description="What is left of the other neurons' shift; 0 gives the LLM's.")
    neurons: Literal["rows", "columns"] = Field(
        "rows", description="What is a neuron in a matrix [out, in]. Tensors of more dimensions go by rows."
    )


class NeuronFusion(MergeMethod):
    """result = f for the neurons of the largest |f - a|, a + scale (f - a) for the others.

    f is the LVLM, `aligned` a its LLM. From the paper: neurons with a large shift carry what visual tuning has taught
    and are kept, the shift of the others is attenuated. Our reading, since the paper's numbers were not at hand:
    the size of a shift is its Euclidean norm; neurons are ranked within their tensor, and int(fraction n) of
    n are kept, of equal shifts those with the lowest index; fraction and scale have our defaults.

    A neuron is a row of [out, in]; where a matrix writes into the residual stream (o_proj, down_proj) it is
    a column: give `neurons` by filters there. In a vocabulary a row is a token. Tensors of one dimension (norms,
    biases) stay the LVLM's.
    """

    name = "neuron_fusion"
    summary = "Keeps the neurons that visual tuning has moved most, and attenuates the shift of the others."
    reference = "https://arxiv.org/abs/2505.16703"
    requires = Requirements(base="forbidden", min_inputs=1, max_inputs=1, roles=("aligned",))
    granularity = Granularity.ROW
    Parameters = NeuronFusionParameters

    def prepare(self, view: TensorView, parameters: NeuronFusionParameters) -> bytes | None:
        """Which neurons stay: a bit each."""
        import numpy as np

        if len(view.shape) < 2:
            return None
        columns = parameters.neurons == "columns" and len(view.shape) == 2
        shifts = gram(Shift(view), Along.FIRST if columns else Along.LAST)[0, 0].numpy()
        kept = np.zeros(len(shifts), np.bool_)
        kept[np.argsort(-shifts, kind="stable")[: int(parameters.fraction * len(shifts))]] = True
        return np.packbits(kept).tobytes()

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        lvlm, aligned = (one.tensor for one in inputs)
        if context.state is None:
            return lvlm
        kept = kept_neurons(lvlm, context)
        return lvlm.where(kept, between(aligned, lvlm.clone(), context.parameters.scale))


class Shift(TensorView):
    """The first input of a view, with the second as its base."""

    def __init__(self, view: TensorView) -> None:
        self.shape = view.shape
        self.context = view.context
        self._view = view

    def blocks(self) -> Iterator[tuple[Sequence[Input], "torch.Tensor | None"]]:
        for (first, second), _ in self._view.blocks():
            yield [first], second.tensor


def kept_neurons(cut: "torch.Tensor", context: Context) -> "torch.Tensor":
    """Whether a neuron is kept: bool, of a shape that broadcasts to the cut's."""
    import numpy as np
    import torch

    bits = torch.tensor(np.unpackbits(np.frombuffer(context.state, np.uint8)), dtype=torch.bool, device=cut.device)
    *rows, width = cut.shape
    if context.parameters.neurons == "columns" and cut.ndim == 2:
        return bits[:width].view(1, width)
    first = context.position // width
    return bits[first : first + cut.numel() // width].view(*rows, 1)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [NeuronFusion]
