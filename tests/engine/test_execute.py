"""Virtual files: every byte is a function of (plan, file, offset), and memory and threads change nothing."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file

import safegraft
from safegraft.engine.execute import MergedCheckpoint
from safegraft.engine.plan import make_plan
from safegraft.engine.task import Plan
from safegraft.errors import MergeCancelledError, NonFiniteError, PluginError, UsageError
from safegraft.local import open_model
from safegraft.methods import Context, Granularity, Input, MergeMethod, Plugin, Registry, Requirements, TensorView
from safegraft.testing import llama_config, tiny_llm, words, write_checkpoint

RECIPES = ("linear", "slerp", "task_arithmetic")


def planned(models: Any, recipe: str, **more: Any) -> Plan:
    return safegraft.plan(getattr(models, recipe)(**more))


@pytest.fixture(scope="module", params=RECIPES)
def whole(request: pytest.FixtureRequest, models: Any) -> Iterator[tuple[Plan, dict[str, bytes]]]:
    """A plan and all its bytes, computed by one thread in one cut a tensor."""
    plan = planned(models, request.param)
    with MergedCheckpoint(plan, threads=1) as merged:
        files = {name: file.read() for name, file in merged.files.items()}
    yield plan, files
    plan.close()


@given(data=st.data(), block=st.integers(1, 300), threads=st.integers(1, 3))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_any_cut_any_threads(
    whole: tuple[Plan, dict[str, bytes]], data: st.DataObject, block: int, threads: int
) -> None:
    plan, files = whole
    name = data.draw(st.sampled_from(sorted(files)))
    start = data.draw(st.integers(0, len(files[name])))
    stop = data.draw(st.integers(start, len(files[name])))
    with MergedCheckpoint(plan, threads=threads, block_elements=block) as merged:
        assert merged.files[name].read(start, stop) == files[name][start:stop]


def test_sizes_are_known_before_a_byte_is(whole: tuple[Plan, dict[str, bytes]]) -> None:
    plan, files = whole
    assert {file.name: file.size for file in plan.files} == {name: len(data) for name, data in files.items()}


@pytest.mark.parametrize("size", [1, 2000, 7000, 10**9])
@pytest.mark.parametrize("recipe", RECIPES)
def test_shards_hold_the_same_tensors(models: Any, recipe: str, size: int) -> None:
    def tensors(max_shard_size: int) -> dict[str, torch.Tensor]:
        plan = safegraft.plan(getattr(models, recipe)(), max_shard_size=max_shard_size)
        with MergedCheckpoint(plan) as merged:
            parts = [load(merged.files[file.name].read()) for file in plan.files if file.kind == "weights"]
        plan.close()
        return {name: tensor for part in parts for name, tensor in part.items()}

    expected, found = tensors(10**9), tensors(size)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_mapping_of_tensors_is_what_the_files_hold(whole: tuple[Plan, dict[str, bytes]]) -> None:
    plan, files = whole
    stored = load(files["model.safetensors"])
    with MergedCheckpoint(plan, threads=2) as merged:
        assert set(merged.tensors) == set(stored)
        assert len(merged.tensors) == len(stored)
        for name, tensor in merged.tensors.items():
            assert torch.equal(tensor, stored[name])
        with pytest.raises(KeyError):
            merged.tensors["nothing"]


def test_open_feeds_a_model_in_place(models: Any) -> None:
    with safegraft.open(models.linear()) as merged:
        module = torch.nn.Linear(8, 20, bias=False)
        module.load_state_dict({"weight": merged.tensors["language_model.lm_head.weight"][:20]})
        assert torch.equal(module.weight[0], merged.tensors["language_model.lm_head.weight"][0])


def test_open_needs_no_with(models: Any) -> None:
    merged = safegraft.open(models.linear())
    assert merged.tensors["language_model.lm_head.weight"].shape == (24, 8)
    merged.close()
    with pytest.raises(UsageError, match="closed"):
        merged.files["model.safetensors"].read()


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 2), (0, 10**12)])
def test_outside_the_file_is_an_error(models: Any, start: int, stop: int) -> None:
    with safegraft.open(models.linear()) as merged, pytest.raises(UsageError, match="is not within it"):
        merged.files["config.json"].read(start, stop)


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"block_elements": 0}])
def test_senseless_settings_are_errors(models: Any, arguments: dict[str, int]) -> None:
    plan = planned(models, "linear")
    with pytest.raises(UsageError, match="at least 1"):
        MergedCheckpoint(plan, **arguments)
    plan.close()


def test_cancelling_stops_the_stream(models: Any) -> None:
    with safegraft.open(models.linear()) as merged:
        blocks = merged.files["model.safetensors"].stream(cancelled=lambda: True)
        with pytest.raises(MergeCancelledError):
            next(blocks)


def test_torch_keeps_its_own_threads(models: Any) -> None:
    before = torch.get_num_threads()
    with safegraft.open(models.linear(), threads=2) as merged:
        stream = merged.files["model.safetensors"].stream()
        next(stream)
        assert torch.get_num_threads() == 1
        stream.close()
        assert torch.get_num_threads() == before


# -- methods that may be cut by rows, or not at all -------------------------------------------------


class Bump(MergeMethod):
    """Two of them differ in granularity alone, and must give the same tensors."""

    summary = "Half the sum of the inputs, plus something of the whole or the row."
    reference = "https://example.org"
    requires = Requirements(min_inputs=2)

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        total = inputs[0].tensor + inputs[1].tensor
        return total / 2 + (total.amax(dim=-1, keepdim=True) if total.dim() > 1 else total * 0)


class ByRow(Bump):
    name = "by_row"
    granularity = Granularity.ROW


class ByTensor(Bump):
    name = "by_tensor"
    granularity = Granularity.TENSOR


class Shaped(Bump):
    """Writes the shape it saw into the result."""

    name = "shaped"
    granularity = Granularity.TENSOR

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        assert tuple(inputs[0].tensor.shape) == context.shape
        return torch.full(context.shape, float(context.shape[0]))


class Broken(Bump):
    name = "broken"
    granularity = Granularity.ELEMENT

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        if context.tensor.endswith("norm.weight"):
            return inputs[0].tensor[:1]
        raise RuntimeError("out of ideas")


def with_methods(*methods: type[MergeMethod]) -> Registry:
    mine = Registry.discover()
    for method in methods:
        mine.add(method, Plugin(method.name, "tests", "tests", "1", (method.name,), None))
    return mine


def two(models: Any, method: str) -> safegraft.Recipe:
    return safegraft.Recipe.load(
        {"models": [{"model": str(models.llm)}, {"model": str(models.lvlm)}], "merge_method": method}
    )


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 17])
def test_row_methods_equal_their_whole_tensor_twins(models: Any, block: int) -> None:
    mine = with_methods(ByRow, ByTensor)
    files: list[bytes] = []
    for method in ("by_row", "by_tensor"):
        plan = make_plan(two(models, method), open_model, mine)
        with MergedCheckpoint(plan, threads=2, block_elements=block) as merged:
            files.append(merged.files["model.safetensors"].read())
        plan.close()
    assert files[0] == files[1]


class Ruled(Bump):
    """Keeps a number for every row in its state and finds it by position: both must count the same rows."""

    name = "ruled"
    granularity = Granularity.ROW

    def prepare(self, view: TensorView, parameters: Any) -> torch.Tensor:
        whole = torch.cat([inputs[0].tensor.clone() for inputs, _ in view.blocks()])
        return whole.view(view.shape[0], -1).sum(dim=1)

    def merge(self, inputs: Sequence[Input], base: torch.Tensor | None, context: Context) -> torch.Tensor:
        first = inputs[0].tensor
        row = context.position // (first[0].numel() if first.dim() > 1 else 1)
        assert context.shape[0] == len(context.state)
        rules = context.state[row : row + len(first)]
        assert torch.allclose(rules, first.reshape(len(first), -1).sum(dim=1), atol=1e-5)
        return first


@pytest.mark.parametrize("block", [8, 24, 1 << 17])
def test_rows_of_state_position_and_cut_are_the_same_rows(models: Any, tmp_path: Path, block: int) -> None:
    """Also where rows that only the host has lie between the shared ones."""
    llm = load_file(models.llm / "model.safetensors")
    tokens = {f"w{row}" if row % 3 else f"other{row}": row for row in range(20)}
    gappy = write_checkpoint(tmp_path / "gappy", llm, llama_config(vocab=20), tokens=tokens)
    recipe = {"models": [{"model": str(gappy)}, {"model": str(models.lvlm)}], "merge_method": "ruled"}
    plan = make_plan(safegraft.Recipe.load(recipe), open_model, with_methods(Ruled))
    with MergedCheckpoint(plan, threads=2, block_elements=block) as merged:
        head = merged.tensors["language_model.lm_head.weight"]
    host = plan.host
    own = torch.empty(24, 8)
    place = host.tensors["language_model.lm_head.weight"]
    host.read_into(place, 0, memoryview(own.numpy()).cast("B"))
    plan.close()
    for row in range(24):
        shared = row < 20 and row % 3
        assert torch.equal(head[row], llm["lm_head.weight"][row] if shared else own[row])


def test_a_whole_tensor_method_sees_the_shared_rows_alone(models: Any) -> None:
    plan = make_plan(two(models, "shaped"), open_model, with_methods(Shaped))
    host = {
        name: tensor for file in sorted(models.lvlm.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    with MergedCheckpoint(plan) as merged:
        head = merged.tensors["language_model.lm_head.weight"]
    plan.close()
    assert (head[:20] == 20).all()
    assert torch.equal(head[20:], host["language_model.lm_head.weight"][20:])


def test_a_broken_method_is_named_with_its_tensor(models: Any) -> None:
    plan = make_plan(two(models, "broken"), open_model, with_methods(Broken))
    with MergedCheckpoint(plan) as merged:
        with pytest.raises(
            PluginError, match=r"broken failed on language_model\.lm_head\.weight: RuntimeError: out of"
        ):
            merged.tensors["language_model.lm_head.weight"]
        with pytest.raises(PluginError, match=r"broken returned \[1\] .* for language_model\.model\.norm\.weight"):
            merged.tensors["language_model.model.norm.weight"]
    plan.close()


# -- NaN, inf, dtypes -------------------------------------------------------------------------------


@pytest.fixture
def poisoned(tmp_path: Path, models: Any) -> Path:
    """The LLM with a NaN and an inf in one tensor."""
    tensors = load_file(models.llm / "model.safetensors")
    weight = tensors["model.layers.1.mlp.up_proj.weight"]
    weight[3, 2], weight[5, 1] = float("nan"), float("inf")
    return write_checkpoint(tmp_path / "poisoned", tensors, llama_config(vocab=20), tokens=words(20))


@pytest.mark.parametrize("method", RECIPES)
def test_nan_names_tensor_and_model(models: Any, poisoned: Path, method: str, tmp_path: Path) -> None:
    recipe = {
        "linear": {"parameters": {"weight": 1.0}},
        "slerp": {"base_model": str(models.lvlm), "parameters": {"t": 0.5}},
        "task_arithmetic": {"base_model": str(models.lvlm), "parameters": {"weight": 1.0}},
    }[method]
    asked = {"models": [{"model": str(poisoned)}, {"model": str(models.lvlm)}], "merge_method": method, **recipe}
    with pytest.raises(NonFiniteError, match=r"poisoned: model\.layers\.1\.mlp\.up_proj\.weight holds NaN or inf"):
        safegraft.merge(asked, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", RECIPES)
def test_on_nan_host_keeps_the_hosts_values_there_and_touches_nothing_else(
    models: Any, poisoned: Path, method: str
) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    clean = load_file(models.llm / "model.safetensors")
    for place in ((3, 2), (5, 1)):
        clean["model.layers.1.mlp.up_proj.weight"][place] = 0

    def merged(llm: Path) -> torch.Tensor:
        recipe: dict[str, Any] = {
            "linear": {"parameters": {"weight": 0.5}},
            "slerp": {"base_model": str(models.lvlm), "parameters": {"t": 0.5}},
            "task_arithmetic": {"base_model": str(models.lvlm), "parameters": {"weight": 0.5}},
        }[method]
        asked = {"models": [{"model": str(llm)}, {"model": str(models.lvlm)}], "merge_method": method, **recipe}
        with safegraft.open({**asked, "on_nan": "host"}) as virtual:
            return virtual.tensors[name]

    with safegraft.open(models.linear()) as virtual:
        host = virtual.plan.host
        own = torch.empty(16, 8)
        host.read_into(host.tensors[name], 0, memoryview(own.numpy()).cast("B"))
    result = merged(poisoned)
    assert result[3, 2] == own[3, 2]
    assert result[5, 1] == own[5, 1]
    if method != "slerp":  # its angle leaves those elements out on both sides
        other = merged(write_checkpoint(poisoned.parent / "clean", clean, llama_config(vocab=20), tokens=words(20)))
        mask = torch.ones(16, 8, dtype=torch.bool)
        mask[3, 2] = mask[5, 1] = False
        assert torch.equal(result[mask], other[mask])
    assert torch.isfinite(result).all()


def test_overflow_of_the_result_is_an_error_not_inf(tmp_path: Path) -> None:
    tensors = {"model.layers.0.w.weight": torch.full((4,), 3e4, dtype=torch.float32)}
    one = write_checkpoint(tmp_path / "one", tensors, llama_config(vocab=20))
    two_ = write_checkpoint(tmp_path / "two", tensors, llama_config(vocab=20))
    recipe = {
        "models": [{"model": str(one)}, {"model": str(two_)}],
        "merge_method": "linear",
        "parameters": {"weight": 2.0, "normalize": False},
        "out_dtype": "float16",
    }
    with safegraft.open(recipe) as merged, pytest.raises(NonFiniteError, match="do not fit F16; set `out_dtype"):
        merged.files["model.safetensors"].read()


def test_a_copied_value_that_does_not_fit_is_an_error_too(models: Any, tmp_path: Path) -> None:
    tensors = {name: tensor for file in models.lvlm.glob("*.safetensors") for name, tensor in load_file(file).items()}
    tensors["vision_tower.post_layernorm.weight"][2] = 1e5
    wide = write_checkpoint(tmp_path / "wide", tensors, json.loads((models.lvlm / "config.json").read_text()))
    recipe = models.linear(embeddings="host", out_dtype="float16")
    recipe["models"][1]["model"] = str(wide)
    with safegraft.open(recipe) as merged:
        with pytest.raises(NonFiniteError, match=r"vision_tower\.post_layernorm\.weight: the values do not fit F16"):
            merged.tensors["vision_tower.post_layernorm.weight"]
        assert torch.isfinite(merged.tensors["language_model.model.norm.weight"]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_round_trips(tmp_path: Path, dtype: torch.dtype) -> None:
    one = tiny_llm(tmp_path / "one", seed=1, dtype=dtype)
    two_ = tiny_llm(tmp_path / "two", seed=2, dtype=dtype)
    recipe = {
        "models": [{"model": str(one), "parameters": {"weight": 1}}, {"model": str(two_), "parameters": {"weight": 0}}],
        "merge_method": "linear",
    }
    with safegraft.open(recipe) as merged:
        stored = load(merged.files["model.safetensors"].read())
    original = load_file(one / "model.safetensors")
    assert all(torch.equal(stored[name], original[name]) and stored[name].dtype == dtype for name in original)


def test_integer_buffers_come_from_the_host_untouched(tmp_path: Path) -> None:
    def model(name: str, value: int) -> Path:
        tensors = {
            "model.embed_tokens.weight": torch.ones(20, 8),
            "model.position_ids": torch.arange(5) + value,
            "model.mask": torch.tensor([True, False]),
        }
        return write_checkpoint(tmp_path / name, tensors, llama_config(vocab=20), tokens=words(20))

    recipe = {
        "models": [{"model": str(model("one", 0))}, {"model": str(model("two", 7))}],
        "merge_method": "linear",
        "parameters": {"weight": 1.0},
        "dtype": "bfloat16",
    }
    with safegraft.open(recipe) as merged:
        stored = load(merged.files["model.safetensors"].read())
    assert stored["model.position_ids"].tolist() == [0, 1, 2, 3, 4]
    assert stored["model.mask"].dtype == torch.bool
    assert stored["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_reading_is_safe_from_several_threads(models: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with safegraft.open(models.linear(), threads=2) as merged, ThreadPoolExecutor(4) as pool:
        file = merged.files["model.safetensors"]
        expected = file.read()
        assert all(one == expected for one in pool.map(lambda _: file.read(), range(8)))
