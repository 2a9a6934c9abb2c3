"""The contract kit: our methods pass it, and it catches every way of breaking the contract that we know."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ConfigDict

from safegraft.errors import PluginError
from safegraft.methods import Context, Granularity, Input, MergeMethod, Registry, Requirements, TensorView
from safegraft.testing import check_method

WEIGHT: dict[str, Any] = {"input_parameters": {"weight": 0.4}}
SPARSE: dict[str, Any] = {"input_parameters": {"weight": -0.7, "density": 0.4}, "inputs": 3}
SPARSIFYING = ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear")
# What check_method needs to know of a method; with no entry here a method is tried with its defaults.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "linear": [
        WEIGHT,
        {"input_parameters": {"weight": -2.5}, "inputs": 5},
        {"input_parameters": {"weight": 0}, "parameters": {"normalize": False}},
    ],
    "slerp": [{"parameters": {"t": t}} for t in (0, 0.3, 1)],
    "task_arithmetic": [
        WEIGHT,
        {"input_parameters": {"weight": -1.5}, "parameters": {"lambda": 0.5, "normalize": True}, "inputs": 4},
    ],
    "passthrough": [{}, {"input_parameters": {"scale": -0.3}}],
    "nearswap": [{"parameters": {"t": 0.1}}],
    "nuslerp": [WEIGHT],
    "multislerp": [WEIGHT],
    **{name: [WEIGHT, SPARSE] for name in SPARSIFYING},
}


def built_in() -> list[str]:
    """Methods of safegraft's own; those that call mergekit have tests of their own."""
    registry = Registry.discover()
    ours = [name for name in registry.names() if registry.plugin_of(name).distribution == "safegraft"]
    return [name for name in ours if not name.startswith("mergekit:") and name != "arcee_fusion"]


@pytest.mark.parametrize("name", built_in())
def test_built_in_methods_keep_the_contract(name: str) -> None:
    method = Registry.discover().get(name)
    assert method is not None
    for arguments in ARGUMENTS.get(name, [{}]):
        check_method(type(method), **arguments)


# -- sound methods that come close to the line --------------------------------------------------


class Sound(MergeMethod):
    """The first input; the methods below change one thing."""

    name = "sound"
    summary = "The first input."
    reference = "https://example.org"
    requires = Requirements(base="ignored")
    granularity = Granularity.ELEMENT

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        return inputs[0].tensor


class NoisyByPosition(Sound):
    """Random, and a function of seed and position alone."""

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        (x, *_) = (one.tensor for one in inputs)
        positions = torch.arange(context.position, context.position + x.numel(), dtype=torch.float64)
        return x.add_(torch.sin(positions * 12.9898 + context.seed % 1000).to(x.dtype))


class NoisyWhole(Sound):
    """Random, from a generator of its own, over the whole tensor."""

    granularity = Granularity.TENSOR

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        x = inputs[0].tensor
        generator = torch.Generator().manual_seed(context.seed)
        return x + torch.rand(x.shape, generator=generator, dtype=x.dtype)


class Centred(Sound):
    """Subtracts each row's own mean."""

    granularity = Granularity.ROW

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        x = inputs[0].tensor
        return x - x.mean(dim=-1, keepdim=True) if x.dim() > 1 else x


class Scaled(Sound):
    """Divides by the largest value, which `prepare` looks up; overwrites what it is given."""

    def prepare(self, view: TensorView, parameters: Any) -> float:
        return max(float(inputs[0].tensor.abs_().max()) for inputs, _ in view.blocks())

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        return inputs[-1].tensor.copy_(inputs[0].tensor).div_(context.state or 1)


class MaybeBased(Sound):
    requires = Requirements(base="optional", min_inputs=2, max_inputs=3)

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        first, second, *_ = (one.tensor for one in inputs)
        return first + second if base is None else first + second - base


@pytest.mark.parametrize("method", [Sound, NoisyByPosition, NoisyWhole, Centred, Scaled, MaybeBased])
def test_sound_methods_pass(method: type[MergeMethod]) -> None:
    check_method(method)


# -- methods that break the contract ------------------------------------------------------------

KEPT: dict[str, Any] = {}


def changed(**attributes: Any) -> type[MergeMethod]:
    """Sound, with other attributes."""
    return type("Changed", (Sound,), attributes)


def combining(combine: Callable[[torch.Tensor, Context], Any], **attributes: Any) -> type[MergeMethod]:
    """A method that does this with its first input."""
    return changed(merge=lambda self, inputs, base, context: combine(inputs[0].tensor, context), **attributes)


def preparing(prepare: Callable[[TensorView], Any], combine: Callable[[torch.Tensor, Any], Any]) -> type[MergeMethod]:
    """A method that does this with its first input and what it has prepared."""
    return combining(lambda x, context: combine(x, context.state), prepare=lambda self, view, parameters: prepare(view))


def draws_and_puts_back(x: torch.Tensor, context: Context) -> torch.Tensor:
    with torch.random.fork_rng():
        return x + torch.rand_like(x)


def seeds_torch(x: torch.Tensor, context: Context) -> torch.Tensor:
    torch.manual_seed(context.seed)
    return x + torch.rand_like(x)


def reads_what_it_kept(x: torch.Tensor, context: Context) -> torch.Tensor:
    if context.position == 0:
        KEPT["start"] = x
    return x + KEPT["start"][0]


def changes_what_it_kept(x: torch.Tensor, context: Context) -> torch.Tensor:
    if "last" in KEPT:
        KEPT["last"].add_(1)
    KEPT["last"] = x
    return x.clone()


def counts(x: torch.Tensor, context: Context) -> torch.Tensor:
    KEPT["calls"] = KEPT.get("calls", 0) + 1
    return x + KEPT["calls"]


def accumulates(x: torch.Tensor, context: Context) -> torch.Tensor:
    """Right as long as the cuts come from first to last."""
    result = x.double().cumsum(0) + (KEPT["total"] if context.position else 0.0)
    KEPT["total"] = float(result[-1])
    return result


def sets_an_attribute(self: Any, inputs: Sequence[Input], base: None, context: Context) -> torch.Tensor:
    self.last = inputs[0].tensor
    return self.last


def moves_from_the_base(self: Any, inputs: Sequence[Input], base: torch.Tensor, context: Context) -> torch.Tensor:
    delta = inputs[0].tensor - base
    return base + delta / delta.norm()


class Weight(BaseModel):
    model_config = ConfigDict(extra="forbid")
    weight: float = 1.0


def changes_parameters(self: Any, inputs: Sequence[Input], base: None, context: Context) -> torch.Tensor:
    inputs[0].parameters.weight *= 2
    return inputs[0].tensor * inputs[0].parameters.weight


ROW, TENSOR, BASED = Granularity.ROW, Granularity.TENSOR, Requirements(base="required")
BROKEN = {
    "depends on the cut": (combining(lambda x, _: x - x.mean()), "in 84 cuts the result differs"),
    "depends on other rows": (combining(lambda x, _: x - x.mean(dim=0), granularity=ROW), "in 7 cuts"),
    "depends on where the cut begins": (combining(lambda x, context: x + context.position), "in 84 cuts"),
    "draws from torch": (combining(lambda x, _: x + torch.rand_like(x)), "draws from a global random generator"),
    "seeds torch": (combining(seeds_torch, granularity=TENSOR), "a global random generator, or seeds it"),
    "draws and puts back": (combining(draws_and_puts_back, granularity=TENSOR), "depends on torch's global generator"),
    "draws from Python": (combining(lambda x, _: x * random.random()), "draws from a global random generator"),
    "draws from NumPy": (combining(lambda x, _: x * np.random.rand()), "draws from a global random generator"),
    "depends on time": (combining(lambda x, _: x + time.perf_counter_ns() % 1_000_003), "a second run gives another"),
    "drops elements": (combining(lambda x, _: x[:1]), r"shape \[1\] from inputs of shape \[84\]"),
    "sums up": (combining(lambda x, _: x.sum()), r"shape \[\] from inputs of shape \[84\]"),
    "returns a number": (combining(lambda x, _: 0.5), r"merge\(\) returned float, not a tensor"),
    "returns nothing": (combining(lambda x, _: None), r"merge\(\) returned NoneType, not a tensor"),
    "returns integers": (combining(lambda x, _: x.int()), "the result is torch.int32"),
    "returns halves": (combining(lambda x, _: x.half()), "float16, less precise than the inputs' torch.float32"),
    "forgets float64": (combining(lambda x, _: x.float()), "float32, less precise than the inputs' torch.float64"),
    "has gaps": (combining(lambda x, _: x.log()), "NaN or inf from finite inputs"),
    "divides by the norm": (combining(lambda x, _: x / x.norm(), granularity=TENSOR), "NaN or inf"),
    "divides by the distance": (changed(merge=moves_from_the_base, granularity=TENSOR, requires=BASED), "NaN or inf"),
    "sets an attribute": (changed(merge=sets_an_attribute), "sets self.last; threads share one instance"),
    "reads what it kept": (combining(reads_what_it_kept), "scratch memory"),
    "changes what it kept": (combining(changes_what_it_kept), "a second run gives another result"),
    "counts its calls": (combining(counts), "a second run gives another result"),
    "needs cuts in order": (combining(accumulates), "when a later cut comes first"),
    "changes its parameters": (changed(merge=changes_parameters, InputParameters=Weight), "a second run gives another"),
    "prepares from the last block": (
        preparing(lambda view: [float(inputs[0].tensor.sum()) for inputs, _ in view.blocks()][-1], torch.add),
        "gets the tensor in several blocks",
    ),
    "prepares and keeps a tensor": (
        preparing(lambda view: next(iter(view.blocks()))[0][0].tensor, lambda x, kept: x + kept[0]),
        "scratch memory",
    ),
    "prepares what cannot be stored": (
        preparing(lambda view: lambda x: x, lambda x, kept: kept(x)),
        r"what prepare\(\) returns cannot be pickled",
    ),
    "objects": (changed(check=lambda *_: ["never right"]), "objects to the given parameters: never right"),
    "forgets to yield": (changed(check=lambda *_: None), "returns NoneType; it yields messages"),
}


@pytest.mark.parametrize(("method", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_methods_are_caught(method: type[MergeMethod], message: str) -> None:
    KEPT.clear()
    with pytest.raises(AssertionError, match=f"^sound: .*{message}"):
        check_method(method)


@pytest.mark.parametrize(
    ("method", "error", "case"),
    [
        (
            changed(merge=lambda self, inputs, *_: inputs[1].tensor),
            IndexError,
            "with 1 input(s) of shape [7, 12], torch.float32",
        ),
        (
            changed(
                merge=lambda self, inputs, base, _: inputs[0].tensor - base, requires=Requirements(base="optional")
            ),
            TypeError,
            "with 1 input(s) of shape [7, 12], torch.float32",
        ),
        (
            combining(lambda x, _: x.add_(torch.ones(len(x)).dot(x)), granularity=TENSOR),
            RuntimeError,
            "with 1 input(s) of shape [7, 12], torch.float32",
        ),
    ],
    ids=["needs two inputs", "needs a base", "takes vectors only"],
)
def test_an_error_of_the_method_is_shown_with_the_case(
    method: type[MergeMethod], error: type[Exception], case: str
) -> None:
    with pytest.raises(error) as caught:
        check_method(method)
    (note,) = caught.value.__notes__
    assert note == case


# -- classes that are not even methods ----------------------------------------------------------


class Loose(BaseModel):
    weight: float = 1.0


def without(attribute: str) -> type[MergeMethod]:
    kept = {name: value for name, value in vars(Sound).items() if name not in (attribute, "__dict__", "__weakref__")}
    return type("Lacking", (MergeMethod,), kept)


@pytest.mark.parametrize("attribute", ["name", "summary", "reference", "requires", "granularity"])
def test_a_missing_attribute_is_named(attribute: str) -> None:
    with pytest.raises(PluginError, match=f"^Lacking lacks {attribute}$"):
        check_method(without(attribute))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": ""}, "Changed.name must be a str, not ''"),
        ({"name": 7}, "Changed.name must be a str, not 7"),
        ({"requires": "base"}, "Changed.requires must be a Requirements, not 'base'"),
        ({"granularity": "element"}, "Changed.granularity must be a Granularity, not 'element'"),
        ({"Parameters": dict}, "Changed.Parameters must be a pydantic model"),
        ({"Parameters": {"weight": 1.0}}, "Changed.Parameters must be a pydantic model"),
        ({"InputParameters": None}, "Changed.InputParameters must be a pydantic model"),
        ({"InputParameters": Loose}, "Changed.InputParameters must be a pydantic model with extra='forbid'"),
    ],
)
def test_an_attribute_of_the_wrong_kind_is_named(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=f"^{message}"):
        check_method(changed(**attributes))


def test_a_class_without_merge_is_refused() -> None:
    with pytest.raises(PluginError, match=r"^Lacking does not implement merge\(\)$"):
        check_method(without("merge"))


@pytest.mark.parametrize("stranger", [int, Sound(), "sound"])
def test_what_is_no_method_is_refused(stranger: Any) -> None:
    with pytest.raises(PluginError, match=r"is not a subclass of safegraft\.methods\.MergeMethod"):
        check_method(stranger)


def test_parameters_that_a_recipe_could_not_give_are_refused() -> None:
    with pytest.raises(ValueError, match="wieght"):
        check_method(changed(InputParameters=Weight), input_parameters={"wieght": 1})
