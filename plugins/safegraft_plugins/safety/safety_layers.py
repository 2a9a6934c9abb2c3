"""Safety layers (arXiv 2408.17003): the aligned model merged into the layers that tell harmful from harmless."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from safegraft import Problem, RecipeError, hookimpl
from safegraft.methods import Calibration, Context, Granularity, Input, MergeMethod, Requirements, Statistic
from safegraft_plugins.safety.interpolation import between

if TYPE_CHECKING:
    import torch

COSINES = "cosines"
EMERGED, GROWN = 0.1, 0.9  # of the widest gap: where safety layers begin, and where they end


class SafetyLayersParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    t: float = Field(0.5, ge=0, le=1, description="The aligned model's share in the safety layers.")
    first: int | None = Field(None, ge=0, description="The first safety layer, from 0; none finds it from the data.")
    last: int | None = Field(None, ge=0, description="The last safety layer.")


class SafetyLayers(MergeMethod):
    """result = (1 - t) f + t a in the safety layers, else f.

    f is the fine-tuned model, `aligned` a what it was fine-tuned from. Where in a the last token's state of a malicious
    query parts from that of a normal one lie its safety layers. Of two calibration sets
    of queries, `normal` and `malicious`, each layer has the angle of the mean cosine between pairs of normal ones and
    between mixed pairs; their difference is the gap. Our reading of the paper's plots: the safety layers begin
    where the gap first exceeds 10% of its largest value, and end where it first reaches 90% of it. If no layer has a
    gap, no layer is merged. The paper then adjusts the borders by the share of refusals: `first` and `last`, counted in
    the result's language model, set them outright, and no data are needed then.

    The paper freezes these layers in fine-tuning; to merge them afterwards is our use of it. t = 1 gives the layers
    that freezing would have kept; the default is a gentler start. Tensors outside the language
    model's layers stay the fine-tuned model's.
    """

    name = "safety_layers"
    summary = "Merges the aligned model into the layers that tell harmful from harmless."
    reference = "https://arxiv.org/abs/2408.17003"
    requires = Requirements(
        base="forbidden",
        min_inputs=1,
        max_inputs=1,
        roles=("aligned",),
        calibration=(
            Calibration(
                COSINES,
                Statistic.LAYER_COSINES,
                model="aligned",
                data=("normal", "malicious"),
                unless=("first", "last"),
            ),
        ),
    )
    granularity = Granularity.ELEMENT
    Parameters = SafetyLayersParameters

    def check(self, inputs: Sequence[Any], parameters: SafetyLayersParameters) -> Iterator[str]:
        first, last = parameters.first, parameters.last
        if (first is None) != (last is None):
            yield "`first` and `last` go together: give both, or neither to find them from the data"
        elif first is not None and last is not None and first > last:
            yield f"the first safety layer is {first} and the last {last}: swap them"

    def merge(self, inputs: Sequence[Input], base: "torch.Tensor | None", context: Context) -> "torch.Tensor":
        fine_tuned, aligned = (one.tensor for one in inputs)
        if not context.language or context.layer not in safety_layers(inputs[0].statistics[COSINES], context):
            return fine_tuned
        return between(fine_tuned, aligned, context.parameters.t)


def safety_layers(cosines: "torch.Tensor | None", context: Context) -> range:
    parameters: SafetyLayersParameters = context.parameters
    if parameters.first is not None and parameters.last is not None:
        if context.layer is not None and parameters.last >= context.layers:
            there = f"the language model's layers are 0 to {context.layers - 1}"
            raise RecipeError(Problem("safety_layers", f"`last` is {parameters.last}, and {there}"))
        return range(parameters.first, parameters.last + 1)
    if cosines is None:
        return range(0)
    if len(cosines) != context.layers:
        raise ValueError(
            f"the aligned model has {len(cosines)} layers and the result {context.layers}, so that they cannot be told "
            "from its data; give `first` and `last`"
        )
    return parting(cosines)


def parting(cosines: "torch.Tensor") -> range:
    """The layers over which the gap widens, by cosines [layers, 2] of normal and of mixed pairs."""
    normal, mixed = cosines.double().clamp(-1, 1).acos().unbind(1)
    gaps = [float(gap) for gap in mixed - normal]
    widest = max(gaps)
    if widest <= 0:
        return range(0)
    first = next(layer for layer, gap in enumerate(gaps) if gap > EMERGED * widest)
    last = next(layer for layer, gap in enumerate(gaps) if gap >= GROWN * widest)
    return range(first, last + 1)


@hookimpl
def merge_methods() -> list[type[MergeMethod]]:
    return [SafetyLayers]
