"""Machine code against the methods' own torch code: the same bits, whatever the format, the cut and the numbers."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import safegraft
from safegraft.engine.execute import MergedCheckpoint
from safegraft.engine.stored import CompiledMethods, StoredKernel
from safegraft.errors import NonFiniteError, PluginError
from safegraft.methods.compiled import Compiled, DeclinedError
from safegraft.methods.registry import Registry
from safegraft.testing import llama_config, tiny_llm, tiny_lvlm, write_checkpoint
from safegraft_plugins import magnitude
from safegraft_plugins.random_bits import uniform

numba = pytest.importorskip("numba")

from safegraft_plugins.compiled.machine_code import machine_code  # noqa: E402 (need numba)
from safegraft_plugins.compiled.numbers import load, store  # noqa: E402
from safegraft_plugins.compiled.random_words import GROUP, fill  # noqa: E402

FIXED = settings(derandomize=True, deadline=None)
FORMATS = {torch.bfloat16: np.uint16, torch.float16: np.int16, torch.float32: np.float32}

# Larger than a block of reduction, not a multiple of a strip; a vector; a single element; few different values.
SHAPES = {
    "model.layers.0.mlp.up_proj.weight": (150, 1013),
    "model.layers.0.mlp.down_proj.weight": (37, 41),
    "model.layers.0.input_layernorm.weight": (1031,),
    "model.norm.weight": (1,),
}
COARSE = "model.layers.0.mlp.down_proj.weight"  # whose values are multiples of 1/8: many equal magnitudes, and zeros

Models = Callable[..., list[str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Four models near each other, in the dtypes asked for."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[tuple[int, torch.dtype], str] = {}

    def tensors(number: int) -> dict[str, torch.Tensor]:
        origin, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(number + 1)
        found: dict[str, torch.Tensor] = {}
        for name, shape in SHAPES.items():
            tensor = torch.randn(shape, generator=origin) + 0.1 * number * torch.randn(shape, generator=own)
            found[name] = (tensor * 8).round() / 8 if name == COARSE else tensor
        return found

    def make(*dtypes: torch.dtype) -> list[str]:
        for number, dtype in enumerate(dtypes):
            if (number, dtype) not in made:
                path = folder / f"{number}-{str(dtype).removeprefix('torch.')}"
                stored = {name: tensor.to(dtype) for name, tensor in tensors(number).items()}
                made[number, dtype] = str(write_checkpoint(path, stored, llama_config(vocab=24)))
        return [made[number, dtype] for number, dtype in enumerate(dtypes)]

    return make


def weighted(*weights: float, **more: Any) -> list[dict[str, Any]]:
    return [{"weight": weight, **more} for weight in weights]


# name: method, parameters of each model, shared parameters, whether model 0 is the base
CASES: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], bool]] = {
    "linear": ("linear", weighted(0.3, 0.5, 0.45), {}, False),
    "linear, one model": ("linear", weighted(0.7), {}, False),
    "linear, not normalised": ("linear", weighted(1.7, -0.9, 0.2, 0.1), {"normalize": False}, False),
    "task arithmetic": ("task_arithmetic", weighted(0.4, 0.8), {}, True),
    "task arithmetic, all": (
        "task_arithmetic",
        weighted(-0.4, 0.8, 0.0),
        {"normalize": True, "lambda": 0.7},
        True,
    ),
    "slerp": ("slerp", [{}], {"t": 0.3}, True),
    "karcher": ("karcher", [{}] * 4, {}, False),
    "multislerp": ("multislerp", weighted(0.4, 0.9, 0.1, 0.2), {}, False),
    "multislerp, a base": ("multislerp", weighted(0.4, 0.9), {}, True),
    "model stock": ("model_stock", [{}] * 3, {}, True),
    "model stock, filter-wise": ("model_stock", [{}] * 2, {"filter_wise": True}, True),
    "ties": ("ties", weighted(0.6, 0.4, density=0.3), {}, True),
    "ties, three": ("ties", weighted(0.6, 0.0, 0.5, density=0.5), {"lambda": 1.3, "rescale": True}, True),
    "ties, signs mixed": ("ties", weighted(0.6, -0.6, 0.3, density=0.7), {}, True),
    "ties, negative": ("ties", weighted(-0.6, -0.2, density=0.7), {}, True),
    "ties, none and all": ("ties", [{"weight": 1, "density": 0.0}, {"weight": 0.5, "density": 1.0}], {}, True),
    "ties, not normalised": ("ties", weighted(0.6, 0.4, density=0.2), {"normalize": False}, True),
    "dare_ties": ("dare_ties", weighted(0.6, 0.4, density=0.5), {}, True),
    "dare_linear": ("dare_linear", weighted(0.6, 0.4, 0.0, density=0.3), {"normalize": True}, True),
    "dare_linear, by probability": ("dare_linear", weighted(0.6, density=0.3), {"rescale": "probability"}, True),
    "dare_ties, nothing left": ("dare_ties", weighted(0.6, 0.1, density=0.0), {}, True),
    "breadcrumbs": ("breadcrumbs", weighted(0.6, 0.4, density=0.5, gamma=0.1), {}, True),
    "breadcrumbs_ties": ("breadcrumbs_ties", weighted(0.6, 0.4, 0.3, density=0.5, gamma=0.2), {"rescale": True}, True),
}
TYPES = {
    "bfloat16": (torch.bfloat16,) * 5,
    "float16": (torch.float16,) * 5,
    "float32": (torch.float32,) * 5,
    "mixed": (torch.bfloat16, torch.float16, torch.float32, torch.bfloat16, torch.float16),
}


def recipe_of(case: str, paths: list[str]) -> dict[str, Any]:
    method, each, shared, with_base = CASES[case]
    recipe: dict[str, Any] = {"merge_method": method, "seed": 7, "parameters": shared}
    if with_base:
        recipe["base_model"], *paths = paths
    return recipe | {
        "models": [{"model": path, "parameters": own} for path, own in zip(paths, each, strict=False)],
        "host_model": paths[0],
    }


def merged_bytes(recipe: dict[str, Any], *, compiled: bool, block: int | None = None, threads: int = 1) -> bytes:
    with MergedCheckpoint(
        safegraft.plan(recipe), compiled=compiled, block_elements=block, threads=threads, owns_plan=True
    ) as merged:
        return b"".join(file.read() for name, file in merged.files.items() if name.endswith(".safetensors"))


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tensors that machine code declines."""
    declined: list[str] = []

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: StoredKernel, task: Any, *arguments: Any) -> Any:
            try:
                return call(self, task, *arguments)
            except DeclinedError:
                declined.append(task.name)
                raise

        return noted

    monkeypatch.setattr(StoredKernel, "merge", noting(StoredKernel.merge))
    return declined


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits(models: Models, refused: list[str], case: str, types: str) -> None:
    recipe = recipe_of(case, models(*TYPES[types][: len(CASES[case][1]) + CASES[case][3]]))
    assert merged_bytes(recipe, compiled=True) == merged_bytes(recipe, compiled=False)
    assert bool(refused) == (case in ("multislerp, a base", "model stock, filter-wise"))


@pytest.mark.parametrize("case", ["ties", "breadcrumbs_ties"])
def test_thresholds_with_too_many_elements_near_them(
    models: Models, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    recipe = recipe_of(case, models(*(torch.bfloat16,) * 4)[: len(CASES[case][1]) + 1])
    held = merged_bytes(recipe, compiled=True)
    monkeypatch.setattr(magnitude, "HELD", 0)
    assert merged_bytes(recipe, compiled=True) == held


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "dare_ties"])
@pytest.mark.parametrize("llm_dtype", [torch.bfloat16, torch.float16])
def test_rows_of_a_vocabulary(tmp_path: Path, refused: list[str], method: str, llm_dtype: torch.dtype) -> None:
    """LLM x LVLM: tokens that only the LVLM has, in another order, and an LLM of either format."""
    base = tiny_llm(tmp_path / "base", seed=1, dtype=llm_dtype)
    llm = tiny_llm(tmp_path / "llm", seed=2, dtype=llm_dtype)
    lvlm = tiny_lvlm(tmp_path / "lvlm", seed=3, dtype=torch.bfloat16)
    tokenizer = json.loads((lvlm / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: (row + 7) % len(words) for word, row in words.items()}
    (lvlm / "tokenizer.json").write_text(json.dumps(tokenizer))
    each, base_model = {"weight": 0.5, "density": 0.4}, str(base)
    if method == "slerp":
        each, base_model = {}, str(llm)
    recipe = {
        "merge_method": method,
        "base_model": base_model,
        "models": [{"model": str(one), "parameters": each} for one in (llm, lvlm)],
        "parameters": {"t": 0.3} if method == "slerp" else {},
    }
    if method == "linear":
        del recipe["base_model"], each["density"]
    with contextlib.closing(safegraft.plan(recipe)) as plan:
        assert any(task.rows is not None and len(task.rows.counts) > 1 for task in plan.tensors)
    assert merged_bytes(recipe, compiled=True) == merged_bytes(recipe, compiled=False)
    assert merged_bytes(recipe, compiled=True, block=13) == merged_bytes(recipe, compiled=False)
    assert not refused


@pytest.mark.parametrize("case", ["linear", "ties", "dare_ties", "slerp", "model stock", "model stock, filter-wise"])
def test_cuts_and_threads_do_not_matter(models: Models, case: str) -> None:
    recipe = recipe_of(case, models(*(torch.bfloat16,) * 4))
    whole = merged_bytes(recipe, compiled=True)
    assert merged_bytes(recipe, compiled=True, block=1777, threads=3) == whole


@pytest.mark.parametrize("out", ["float32", "float16", "bfloat16"])
def test_the_results_format_may_differ(models: Models, refused: list[str], out: str) -> None:
    recipe = recipe_of("ties", models(*(torch.bfloat16,) * 3)) | {"out_dtype": out}
    assert merged_bytes(recipe, compiled=True) == merged_bytes(recipe, compiled=False)
    assert not refused


@pytest.mark.parametrize("case", ["linear", "task arithmetic", "ties", "slerp", "dare_ties", "model stock", "karcher"])
@pytest.mark.parametrize("where", [0, -1], ids=["first", "last"])
def test_nan_is_told_as_without(models: Models, tmp_path: Path, case: str, where: int) -> None:
    paths = models(*(torch.bfloat16,) * (len(CASES[case][1]) + CASES[case][3]))
    broken = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    broken["model.layers.0.mlp.up_proj.weight"].flatten()[-1] = float("nan")
    paths[where] = str(write_checkpoint(tmp_path / "broken", broken, llama_config(vocab=24)))
    recipe = recipe_of(case, paths)
    messages: list[str] = []
    for compiled in (True, False):
        with pytest.raises(NonFiniteError) as caught:
            merged_bytes(recipe, compiled=compiled)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    recipe["on_nan"] = "host"
    assert merged_bytes(recipe, compiled=True) == merged_bytes(recipe, compiled=False)


def test_a_result_that_does_not_fit_is_told_as_without(models: Models) -> None:
    recipe = recipe_of("linear, not normalised", models(*(torch.float16,) * 4))
    for one in recipe["models"]:
        one["parameters"]["weight"] = 30000.0
    for compiled in (True, False):
        with pytest.raises(NonFiniteError, match="do not fit F16"):
            merged_bytes(recipe, compiled=compiled)


def test_the_environment_turns_it_off(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("linear", models(*(torch.bfloat16,) * 3))
    served: list[bool] = []

    def of(self: CompiledMethods, task: Any) -> Compiled | None:
        served.append(bool(self._offers))
        return None

    monkeypatch.setattr(CompiledMethods, "of", of)
    for value, expected in (("0", False), ("1", True)):
        monkeypatch.setenv("SAFEGRAFT_COMPILED", value)
        served.clear()
        with safegraft.open(recipe) as merged:
            merged.files["model.safetensors"].read()
        assert set(served) == {expected}


def test_a_failure_names_method_tensor_and_the_way_out(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Compiled):
        def merge(self, cut: Any, context: Any, out: Any) -> None:
            raise ZeroDivisionError("oh")

    linear = type(Registry.discover().get("linear"))
    monkeypatch.setattr(linear, "compiled", lambda self: Broken())
    with pytest.raises(
        PluginError, match=r"machine code of method linear failed on .*ZeroDivisionError: oh.*COMPILED=0"
    ):
        merged_bytes(recipe_of("linear", models(*(torch.bfloat16,) * 3)), compiled=True)


@machine_code
def through(stored: Any, like: Any, out: Any) -> None:
    for i in range(stored.size):
        out[i] = store(load(stored[i]), like[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_read(dtype: torch.dtype) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(1 << 16, np.float32)
    through(every.view(FORMATS[dtype]), np.zeros(1, np.float32), out)
    expected = torch.from_numpy(every.view(np.int16)).view(dtype).float()
    assert torch.equal(torch.from_numpy(out).nan_to_num(), expected.nan_to_num())


@FIXED
@given(st.sampled_from([torch.bfloat16, torch.float16]), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=99))
def test_numbers_are_rounded_as_torch_rounds_them(dtype: torch.dtype, bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    out = np.empty(len(values), FORMATS[dtype])
    through(values, np.zeros(1, FORMATS[dtype]), out)
    assert torch.equal(torch.from_numpy(out.view(np.int16)).view(dtype), torch.from_numpy(values).to(dtype))


@FIXED
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31), st.integers(0, 2**40))
def test_random_numbers(seed: int, stream: int, group: int) -> None:
    numbers = np.empty(3 * GROUP, np.int32)
    fill(np.uint64(seed), stream, group, numbers)
    assert torch.equal(torch.from_numpy(numbers), uniform(seed, stream, group * GROUP, 3 * GROUP))


def test_torch_stays_out(models: Models, tmp_path: Path) -> None:
    """Merging by machine code does not import torch, which takes longer than many a merge."""
    import subprocess
    import sys

    recipe = tmp_path / "recipe.yml"
    recipe.write_text(json.dumps(recipe_of("ties", models(*(torch.bfloat16,) * 3))))
    code = (
        "import sys, pathlib, safegraft\n"
        f"safegraft.merge(pathlib.Path({str(recipe)!r}), out={str(tmp_path / 'out')!r})\n"
        "print([one for one in ('torch', 'transformers', 'grpc') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
