"""mergekit 0.1.5's methods as data: what each is called, takes and needs.

Written down in our own words, so that listing and planning do not import mergekit; a test holds the table against the
installed one. Names and defaults are mergekit's. Ranges are ours: what can only be a mistake is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from safegraft.methods import Requirements
from safegraft_plugins.weights import CANCELLED, check_range, check_sum

Parameter = tuple[Any, Any]  # type and pydantic field, as create_model wants them
Check = Callable[[Sequence[Any], Any], Iterator[str]]  # as MergeMethod.check


def _no_objection(inputs: Sequence[Any], parameters: Any) -> Iterator[str]:
    yield from ()


@dataclass(frozen=True, slots=True)
class Method:
    """One of mergekit's methods.

    each: parameters of each input: of the base too where the base is ignored (it is then an input like any other).
    draws: from torch's global random generator.
    """

    name: str
    summary: str
    reference: str
    requires: Requirements
    shared: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])
    each: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])
    check: Check = _no_objection
    draws: bool = False


# -- parameters -----------------------------------------------------------------------------------

NO_EFFECT = "No effect: mergekit's recipes may have it."


def _number(
    default: Any, description: str, *, ge: float | None = None, gt: float | None = None, le: float | None = None
) -> Parameter:
    return float, Field(default, description=description, allow_inf_nan=False, ge=ge, gt=gt, le=le)


def _switch(default: bool, description: str) -> Parameter:
    return bool, Field(default, description=description)


def _idle(kind: type, default: Any, *, ge: float | None = None, le: float | None = None) -> Parameter:
    """Accepted, because mergekit's methods share parameters, and read by nobody."""
    return kind, Field(default, description=NO_EFFECT, ge=ge, le=le, json_schema_extra={"no_effect": True})


_DENSITY = _number(1.0, "Share of the task vector's elements that is kept.", ge=0, le=1)
_GAMMA = _number(0.01, "Share of the task vector's elements, the largest, that is dropped.", ge=0, le=1)
_EPSILON = _number(0.15, "How far the chance to be kept goes up and down from density.", ge=0, le=1)
_INT8_MASK = _switch(False, "Hold masks in 8 bits. Saves memory; the result is the same.")
_THRESHOLD = "Differences from the base up to this size count as none."


def _task_vectors(
    name: str,
    summary: str,
    reference: str,
    *,
    sparse: bool,
    elect: bool,
    normalize: bool = False,
    rescale: bool = False,
    own: Mapping[str, Parameter] | None = None,
    check: Check | None = None,
    draws: bool = False,
) -> Method:
    """base + lambda sum of weighted, sparsified task vectors: eight methods that differ in the arguments here.

    sparse: elements of each task vector are dropped. elect: a sign is elected for each element, and only the models
    that agree with it count. normalize, rescale: the defaults.
    """
    scale = Field(1.0, alias="lambda", description="Factor on the summed task vectors.", allow_inf_nan=False)
    shared = {
        "scale": (float, scale),
        "normalize": _switch(normalize, "Divide the sum by the sum of the weights that count."),
        "rescale": _switch(rescale, "Scale what is kept up to the sum of magnitudes before.")
        if sparse
        else _idle(bool, rescale),
        "int8_mask": _INT8_MASK if elect else _idle(bool, False),
    }
    each = {
        "weight": _number(..., "Factor on the model's task vector."),
        "density": _DENSITY if sparse else _idle(float, 1.0, ge=0, le=1),
        **(own or {}),
    }
    return Method(name, summary, reference, Requirements("required"), shared, each, check or _check_weights, draws)


# -- what parameters must be together -------------------------------------------------------------


def _check_weights(inputs: Sequence[Any], parameters: Any) -> Iterator[str]:
    yield from check_range([one.weight for one in inputs])


def _check_linear(inputs: Sequence[Any], parameters: Any) -> Iterator[str]:
    yield from _check_weights(inputs, parameters)
    if parameters.normalize:
        yield from check_sum([one.weight for one in inputs])


def _check_multislerp(inputs: Sequence[Any], parameters: Any) -> Iterator[str]:
    yield from _check_weights(inputs, parameters)
    weights = [one.weight for one in inputs]
    if parameters.normalize_weights and abs(sum(weights)) <= CANCELLED * sum(map(abs, weights)):
        yield "the weights sum to zero, and `normalize_weights` divides by their sum"


def _check_della(inputs: Sequence[Any], parameters: Any) -> Iterator[str]:
    yield from _check_weights(inputs, parameters)
    for one in inputs:
        if 0 < one.density < 1 and not one.epsilon < min(one.density, 1 - one.density):
            yield (
                f"density {one.density:g} and epsilon {one.epsilon:g}: elements are kept with probabilities from "
                "density - epsilon to density + epsilon, which must lie between 0 and 1"
            )


# -- the methods ----------------------------------------------------------------------------------

METHODS = (
    Method(
        "linear",
        "Weighted mean of the models.",
        "https://arxiv.org/abs/2203.05482",
        Requirements("ignored"),
        {"normalize": _switch(True, "Divide by the sum of the weights.")},
        {"weight": _number(..., "The model's share.")},
        _check_linear,
    ),
    Method(
        "slerp",
        "Spherical interpolation between the base and one model.",
        "https://en.wikipedia.org/wiki/Slerp",
        Requirements("required", max_inputs=1),
        {"t": _number(..., "0 gives the base, 1 the other model.")},
    ),
    Method(
        "nuslerp",
        "Spherical interpolation between two models, or between their task vectors.",
        "https://github.com/arcee-ai/mergekit#nuslerp",
        Requirements("optional", min_inputs=2, max_inputs=2),
        {
            "nuslerp_row_wise": _switch(False, "Without `nuslerp_flatten`: along columns instead of rows."),
            "nuslerp_flatten": _switch(True, "Take the tensor as one vector."),
        },
        {"weight": _number(..., "The model's share.")},
        _check_weights,
    ),
    Method(
        "multislerp",
        "Barycentre of the models, or of their task vectors, on a sphere.",
        "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        Requirements("optional"),
        {
            "normalize_weights": _switch(True, "Divide the weights by their sum."),
            "eps": _number(1e-8, "Added to norms before they divide.", gt=0),
        },
        {"weight": _number(..., "The model's share.")},
        _check_multislerp,
    ),
    Method(
        "karcher",
        "Karcher mean of the models' directions, at their mean length.",
        "https://arxiv.org/abs/2603.04972",
        Requirements("ignored"),
        {
            "max_iter": (int, Field(10, description="Steps at most.", ge=0)),
            "tol": _number(1e-5, "A step or a norm below this counts as none.", gt=0),
        },
    ),
    _task_vectors(
        "task_arithmetic",
        "The base plus the weighted sum of the models' differences from it.",
        "https://arxiv.org/abs/2212.04089",
        sparse=False,
        elect=False,
    ),
    _task_vectors(
        "ties",
        "Task vectors trimmed by magnitude; of each element, those of the elected sign.",
        "https://arxiv.org/abs/2306.01708",
        sparse=True,
        elect=True,
        normalize=True,
    ),
    _task_vectors(
        "dare_linear",
        "Task vectors with elements dropped at random, summed.",
        "https://arxiv.org/abs/2311.03099",
        sparse=True,
        elect=False,
        rescale=True,
        draws=True,
    ),
    _task_vectors(
        "dare_ties",
        "Task vectors with elements dropped at random; of each element, those of the elected sign.",
        "https://arxiv.org/abs/2311.03099",
        sparse=True,
        elect=True,
        rescale=True,
        draws=True,
    ),
    _task_vectors(
        "breadcrumbs",
        "Task vectors without their largest and smallest elements, summed.",
        "https://arxiv.org/abs/2312.06795",
        sparse=True,
        elect=False,
        own={"gamma": _GAMMA},
    ),
    _task_vectors(
        "breadcrumbs_ties",
        "Task vectors without their largest and smallest elements; of each element, those of the elected sign.",
        "https://arxiv.org/abs/2312.06795",
        sparse=True,
        elect=True,
        own={"gamma": _GAMMA},
    ),
    _task_vectors(
        "della",
        "Task vectors with elements dropped at random, small ones likelier; those of the elected sign.",
        "https://arxiv.org/abs/2406.11617",
        sparse=True,
        elect=True,
        normalize=True,
        rescale=True,
        own={"epsilon": _EPSILON},
        check=_check_della,
        draws=True,
    ),
    _task_vectors(
        "della_linear",
        "Task vectors with elements dropped at random, small ones likelier, summed.",
        "https://arxiv.org/abs/2406.11617",
        sparse=True,
        elect=False,
        rescale=True,
        own={"epsilon": _EPSILON},
        check=_check_della,
        draws=True,
    ),
    Method(
        "model_stock",
        "Between the base and the models' mean, as far as the angles between them say.",
        "https://arxiv.org/abs/2403.19522",
        Requirements("required", min_inputs=2),
        {"filter_wise": _switch(False, "An angle for each row instead of one for the tensor.")},
    ),
    Method(
        "sce",
        "Elements that the models change most differently, of the elected sign, weighted by squared size.",
        "https://arxiv.org/abs/2408.07990",
        Requirements("required"),
        {
            "select_topk": _number(1.0, "Share of the elements, those of largest variance, that is kept.", ge=0, le=1),
            "int8_mask": _INT8_MASK,
        },
    ),
    Method(
        "ram",
        "What several models changed is averaged, what one model changed is added in full.",
        "https://arxiv.org/abs/2601.13572",
        Requirements("required"),
        {"epsilon": _number(1e-5, _THRESHOLD, ge=0)},
    ),
    Method(
        "ramplus_tl",
        "As ram, and what one model changed is scaled up by how much of its change is shared.",
        "https://arxiv.org/abs/2601.13572",
        Requirements("required"),
        {
            "r": _number(0.1, "How much the share counts.", ge=0),
            "alpha": _number(0.2, "The largest share that counts.", ge=0),
            "epsilon": _number(1e-5, _THRESHOLD, gt=0),
        },
    ),
    Method(
        "nearswap",
        "The base moved towards the model where the two are near each other.",
        "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        Requirements("required", max_inputs=1),
        {"t": _number(..., "Differences up to this size are taken over in full.", ge=0)},
    ),
    Method(
        "arcee_fusion",
        "The base with the model's elements where their importance stands out.",
        "https://arcee.ai",
        Requirements("required", max_inputs=1),
        draws=True,  # a sample, of tensors over a million elements
    ),
    Method(
        "passthrough",
        "One model's tensors, optionally scaled.",
        "https://github.com/arcee-ai/mergekit#passthrough",
        Requirements("ignored", max_inputs=1),
        each={
            "scale": (
                float | None,
                Field(None, description="Factor on the weights; none leaves them as they are.", allow_inf_nan=False),
            )
        },
    ),
)
