"""The adapter around mergekit: its table, what it hands over and gets back. Whole merges are in test_parity.py."""

import logging
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from mergekit.merge_methods import InputContract, ParameterScope, get, registered_methods
from pydantic import ValidationError

import safegraft
from safegraft.methods import Context, Input, MergeMethod, Registry
from safegraft.testing import check_method
from safegraft_plugins.mergekit import merge_methods
from safegraft_plugins.mergekit_table import METHODS, Method

CLASSES: dict[str, type[MergeMethod]] = {one.name: one for one in merge_methods()}
BY_TABLE = pytest.mark.parametrize("row", METHODS, ids=[row.name for row in METHODS])

# What a method needs, and what makes it draw.
SHARED: dict[str, dict[str, Any]] = {"slerp": {"t": 0.3}, "nearswap": {"t": 0.1}}
EACH: dict[str, dict[str, Any]] = {
    **{row.name: {"weight": 0.5} for row in METHODS if "weight" in row.each},
    "dare_linear": {"weight": 0.5, "density": 0.5},
    "dare_ties": {"weight": 0.5, "density": 0.5},
    "della": {"weight": 0.5, "density": 0.5},
    "della_linear": {"weight": 0.5, "density": 0.5},
}
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


def merge(
    name: str,
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    each: Sequence[Mapping[str, Any]] = (),
    stored: str = "float32",
    seed: int = 0,
    **shared: Any,
) -> torch.Tensor:
    """One tensor as the engine hands it over: in float32, whatever dtype it is stored in."""
    method = CLASSES[name]
    inputs = [
        Input(f"model-{index}", tensor.clone(), method.InputParameters.model_validate(dict(own)))
        for index, (tensor, own) in enumerate(zip(tensors, each or [{}] * len(tensors), strict=True))
    ]
    parameters = method.Parameters.model_validate(shared)
    shape = tuple(tensors[0].shape)
    context = Context("layers.0.weight", shape, 0, seed, parameters, None, stored=stored, out=stored)
    return method().merge(inputs, None if base is None else base.clone(), context)


def merge_row(name: str, base: torch.Tensor, tensors: Sequence[torch.Tensor], **more: Any) -> torch.Tensor:
    """The method with whatever it needs."""
    row = next(one for one in METHODS if one.name == name)
    tensors = tensors[: row.requires.max_inputs]
    apart = base if row.requires.base == "required" else None
    return merge(
        f"mergekit:{name}", tensors, apart, each=[EACH.get(name, {})] * len(tensors), **SHARED.get(name, {}), **more
    )


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- the table ------------------------------------------------------------------------------------


def test_every_method_has_a_row_and_a_class() -> None:
    names = {method.spec.name for method in registered_methods()}
    assert {row.name for row in METHODS} == names
    assert len(METHODS) == len(names) == 20
    assert CLASSES.keys() == {f"mergekit:{name}" for name in names} | {"arcee_fusion"}


@BY_TABLE
def test_the_table_says_what_mergekit_says(row: Method) -> None:
    """mergekit's own words for every parameter: name, type, whose it is, default."""
    spec = get(row.name).spec
    method = CLASSES[f"mergekit:{row.name}"]
    each = ParameterScope.INPUT if row.requires.base == "ignored" else ParameterScope.NON_BASE
    ours = {
        (field.alias or name, field.annotation, scope, "required" if field.is_required() else field.default)
        for model, scope in ((method.Parameters, ParameterScope.SHARED), (method.InputParameters, each))
        for name, field in model.model_fields.items()
    }
    assert ours == {
        (one.name, one.value_type, one.scope, "required" if one.required else one.default) for one in spec.parameters
    }
    requires = row.requires
    assert (requires.base, requires.min_inputs, requires.max_inputs) == needs(spec.contract)
    assert spec.reference_url in (row.reference, None)


def needs(contract: InputContract) -> tuple[str, int, int | None]:
    """mergekit's contract counted as ours: without a base that is apart, and a base alone is nothing to merge."""
    apart = contract.base.value == "required"
    least = max(contract.min_inputs - apart, contract.min_non_base or 0, 1)
    most = contract.max_non_base if contract.max_inputs is None else contract.max_inputs - apart
    return contract.base.value, least, most


def test_listing_imports_neither_mergekit_nor_torch() -> None:
    code = (
        "import sys; from safegraft_plugins.mergekit import merge_methods; assert len(merge_methods()) == 21\n"
        "assert not {'torch', 'mergekit', 'transformers'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_entry_point_brings_them() -> None:
    registry = Registry.discover()
    assert {name: type(registry.get(name)) for name in CLASSES} == CLASSES


@pytest.mark.parametrize("name", CLASSES)
def test_contract(name: str) -> None:
    """With mergekit's defaults: of rows of one element mergekit's della knows no density but 1."""
    plain = name.removeprefix("mergekit:")
    own = {"weight": 0.5} if "weight" in EACH.get(plain, {}) else None
    check_method(CLASSES[name], parameters=SHARED.get(plain), input_parameters=own)


# -- ranges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("ties", {"weight": 1, "density": 1.7}),
        ("ties", {"weight": 1, "density": -1}),
        ("task_arithmetic", {"weight": 1, "density": 1.7}),
        ("ties", {"weight": float("nan")}),
        ("ties", {"density": 0.5}),
        ("ties", {"weight": 1, "gamma": 0.01}),
        ("breadcrumbs", {"weight": 1, "gamma": 1.01}),
        ("della", {"weight": 1, "epsilon": -0.1}),
        ("passthrough", {"scale": float("inf")}),
    ],
)
def test_nonsense_of_a_model_is_refused(name: str, own: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CLASSES[f"mergekit:{name}"].InputParameters.model_validate(own)


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("slerp", {}),
        ("nearswap", {"t": -0.1}),
        ("sce", {"select_topk": 1.5}),
        ("karcher", {"tol": 0}),  # mergekit would divide zero by zero
        ("karcher", {"max_iter": 2.5}),
        ("ramplus_tl", {"epsilon": 0}),  # likewise
        ("multislerp", {"eps": 0}),
        ("linear", {"normalise": True}),
        ("ties", {"lambda": float("inf")}),
    ],
)
def test_nonsense_of_all_is_refused(name: str, shared: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CLASSES[f"mergekit:{name}"].Parameters.model_validate(shared)


@pytest.mark.parametrize(
    ("name", "each", "shared", "words"),
    [
        ("linear", [{"weight": 1}, {"weight": -1}], {}, "sum to zero"),
        ("linear", [{"weight": 1}, {"weight": -1}], {"normalize": False}, None),
        ("multislerp", [{"weight": 1}, {"weight": -1}], {}, "sum to zero"),
        ("ties", [{"weight": 1e39}], {}, "out of float32's range"),
        ("task_arithmetic", [{"weight": 1}, {"weight": -1}], {"normalize": True}, None),  # mergekit does not divide
        ("della", [{"weight": 1, "density": 0.9}], {}, "density 0.9 and epsilon 0.15"),
        ("della_linear", [{"weight": 1, "density": 0.15}], {}, "density 0.15 and epsilon 0.15"),
        ("della", [{"weight": 1, "density": 0.8}, {"weight": 1, "density": 1}, {"weight": 1, "density": 0}], {}, None),
    ],
)
def test_parameters_together(name: str, each: list[dict[str, Any]], shared: dict[str, Any], words: str | None) -> None:
    method = CLASSES[f"mergekit:{name}"]
    inputs = [method.InputParameters.model_validate(own) for own in each]
    found = list(method().check(inputs, method.Parameters.model_validate(shared)))
    assert (words in found[0] and len(found) == 1) if words else found == []


# -- what is handed over --------------------------------------------------------------------------


def test_it_computes_in_the_stored_dtype() -> None:
    """bfloat16 has 8 bits: 0.3 is 0.30078125 there, and beside 1 numbers are 2^-7 apart.

    base 1, model 1 + 2^-7: the difference 2^-7 times 0.30078125 is 0.00234985. In bfloat16 1.00234985 is 1, in
    float32 it stays.
    """
    base, model = torch.tensor([[1.0]]), torch.tensor([[1 + 2**-7]])
    half = merge("mergekit:task_arithmetic", [model], base, each=[{"weight": 0.3}], stored="bfloat16")
    full = merge("mergekit:task_arithmetic", [model], base, each=[{"weight": 0.3}])
    assert half.dtype == full.dtype == torch.float32
    assert half.item() == 1
    assert full.item() == pytest.approx(1.00234375, abs=1e-7)


def test_double_precision_stays() -> None:
    base, model = torch.tensor([1.0], dtype=torch.float64), torch.tensor([1 + 2**-40], dtype=torch.float64)
    result = merge("mergekit:task_arithmetic", [model], base, each=[{"weight": 0.5}], stored="float64")
    assert result.dtype == torch.float64
    assert result.item() == 1 + 2**-41


def test_values_by_hand() -> None:
    """ties, density 1: differences (2, -1) and (-4, 1) times 1 elect (-, +): a sum of 0 elects +. The mean over those
    that agree is (-4, 1); times lambda 0.5 on (1, 1)."""
    base = torch.tensor([1.0, 1.0])
    models = [torch.tensor([3.0, 0.0]), torch.tensor([-3.0, 2.0])]
    result = merge("mergekit:ties", models, base, each=[{"weight": 1}] * 2, **{"lambda": 0.5})
    assert result.tolist() == [-1.0, 1.5]


@BY_TABLE
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_it_is_mergekits_result(row: Method, stored: str) -> None:
    """Called with tensors of that dtype, as mergekit-yaml does, and torch's generator seeded by hand."""
    dtype = getattr(torch, stored)
    base, *tensors = [normal(64, 48, seed=seed).to(dtype) for seed in range(4)]
    ours = merge_row(row.name, base.float(), [one.float() for one in tensors], stored=stored, seed=11)
    assert torch.equal(ours, theirs(row, base, tensors, seed=11).float())


def theirs(row: Method, base: torch.Tensor, tensors: Sequence[torch.Tensor], seed: int) -> torch.Tensor:
    from mergekit.merge_methods import merge_tensors

    tensors = tensors[: row.requires.max_inputs]
    apart = [base] if row.requires.base == "required" else []
    own = {name: [value] * len(tensors) for name, value in EACH.get(row.name, {}).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return merge_tensors(
            [*tensors, *apart],
            row.name,
            parameters={**SHARED.get(row.name, {}), **own},
            base_index=len(tensors) if apart else None,
        )


def test_the_plain_name_is_the_same_method() -> None:
    base, one = (normal(16, 16, seed=seed) for seed in range(2))
    assert torch.equal(merge("arcee_fusion", [one], base), merge("mergekit:arcee_fusion", [one], base))


def test_it_is_quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    base, *tensors = (normal(8, 8, seed=seed) for seed in range(4))
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        for row in METHODS:
            merge_row(row.name, base, tensors)
    assert (caplog.records, raised, capfd.readouterr()) == ([], [], ("", ""))


def test_an_llm_into_an_lvlm(models: Any) -> None:
    """mergekit cannot do it; its function for one tensor can. Rows of tokens that only the LVLM has stay its own."""
    with (
        safegraft.open(models.linear()) as ours,
        safegraft.open(models.linear(merge_method="mergekit:linear")) as theirs,
    ):
        assert {task.method for task in theirs.plan.tensors} == {"mergekit:linear", None}
        assert all(torch.equal(tensor, theirs.tensors[name]) for name, tensor in ours.tensors.items())


# -- random numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_come_from_the_seed_alone(name: str) -> None:
    base, *tensors = (normal(32, 32, seed=seed) for seed in range(4))
    state = torch.get_rng_state()
    first = merge_row(name, base, tensors, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(first, merge_row(name, base, tensors, seed=1))
    assert not torch.equal(first, merge_row(name, base, tensors, seed=2))


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_do_not_depend_on_other_threads(name: str) -> None:
    base, *tensors = (normal(64, 64, seed=seed) for seed in range(4))

    def result(seed: int) -> torch.Tensor:
        return merge_row(name, base, tensors, seed=seed)

    expected = [result(seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(result, range(24)))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_arcee_fusion_samples_large_tensors_by_the_seed() -> None:
    base, model = normal(1001, 1000, seed=0), normal(1001, 1000, seed=1)
    first, again, other = (merge("mergekit:arcee_fusion", [model], base, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert 0 < int((first != other).sum()) < 10_000  # elements whose importance lies between the two thresholds


def test_dare_keeps_the_share_it_is_asked_for() -> None:
    base, model = torch.zeros(300, 300), torch.ones(300, 300)
    result = merge("mergekit:dare_linear", [model], base, each=[{"weight": 1, "density": 0.3}], rescale=False)
    kept = int((result == 1).sum())
    # Of 90,000 draws with probability 0.3: mean 27,000, deviation sqrt(90000 0.3 0.7) = 137.
    assert abs(kept - 27_000) < 5 * 137
    assert int((result == 0).sum()) == 90_000 - kept
