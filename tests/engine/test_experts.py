"""Experts one by one, stacked, and transposed: every form meets every other, and what cannot be told is left alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import safegraft
from safegraft.api import registry
from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.types import Checkpoint
from safegraft.checkpoint.weights import natural_order
from safegraft.engine.execute import MergedCheckpoint
from safegraft.engine.experts import Experts, fuse_experts
from safegraft.engine.plan import make_plan
from safegraft.errors import AlignmentError
from safegraft.testing import words, write_checkpoint

LAYERS, EXPERTS, INNER, HIDDEN, VOCAB = 2, 3, 5, 8, 11
FORMS = ("one by one", "stacked", "transposed")
TEXT_CONFIG = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
LVLM_CONFIG = {"text_config": TEXT_CONFIG, "vision_config": {}}
PREFIX = "model.language_model"
AT = "mlp.experts."

Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


def projections(seed: int, inner: int = INNER, hidden: int = HIDDEN) -> Tensors:
    """What every form holds: [expert, out, in]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return {name: torch.randn(EXPERTS, *shape, generator=generator) for name, shape in shapes.items()}


def in_form(form: str, one: Mapping[str, torch.Tensor], at: str = "mlp.experts") -> Tensors:
    """The tensors of one layer's experts, by suffix."""
    if form == "one by one":
        return {
            f"{at}.{expert}.{name}_proj.weight": matrices[expert].clone()
            for expert in range(EXPERTS)
            for name, matrices in one.items()
        }
    stacked = {f"{at}.gate_up_proj": torch.cat([one["gate"], one["up"]], dim=1), f"{at}.down_proj": one["down"]}
    if form == "stacked":
        return stacked
    return {name: tensor.transpose(1, 2).contiguous() for name, tensor in stacked.items()}


def model(form: str, seed: int, prefix: str, inner: int = INNER, hidden: int = HIDDEN) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{prefix}.embed_tokens.weight": torch.randn(VOCAB, hidden, generator=generator),
        f"{prefix}.norm.weight": torch.randn(hidden, generator=generator),
        "lm_head.weight": torch.randn(VOCAB, hidden, generator=generator),
    }
    for layer in range(LAYERS):
        tensors[f"{prefix}.layers.{layer}.mlp.gate.weight"] = torch.randn(EXPERTS, hidden, generator=generator)
        for suffix, tensor in in_form(form, projections(100 * seed + layer, inner, hidden)).items():
            tensors[f"{prefix}.layers.{layer}.{suffix}"] = tensor
    return tensors


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., safegraft.Plan]:
    """Average an LLM and an LVLM, each with its experts in a form of its own."""

    def make(host_form: str, form: str, dtype: torch.dtype = torch.float32, **sizes: int) -> safegraft.Plan:
        llm, lvlm = (
            {name: tensor.to(dtype) for name, tensor in model(one, seed, prefix, **sizes).items()}
            for one, seed, prefix in ((form, 1, "model"), (host_form, 2, PREFIX))
        )
        lvlm["model.visual.patch.weight"] = torch.ones(4, 3, dtype=dtype)
        write_checkpoint(tmp_path / "llm", llm, TEXT_CONFIG, tokens=words(VOCAB), shards=2)
        write_checkpoint(tmp_path / "lvlm", lvlm, LVLM_CONFIG, tokens=words(VOCAB))
        models = [{"model": str(tmp_path / name), "parameters": {"weight": 1.0}} for name in ("llm", "lvlm")]
        return safegraft.plan({"models": models, "merge_method": "linear"})

    return make


def expected(host_form: str, dtype: torch.dtype = torch.float32, **sizes: int) -> Tensors:
    """The average, from two models that are both in the host's form."""
    ours = model(host_form, 2, PREFIX, **sizes)
    theirs = model(host_form, 1, PREFIX, **sizes)
    mean = {name: (tensor.to(dtype).float() + theirs[name].to(dtype).float()) / 2 for name, tensor in ours.items()}
    return {name: tensor.to(dtype) for name, tensor in mean.items()} | {
        "model.visual.patch.weight": torch.ones(4, 3, dtype=dtype)
    }


def assert_equal(tensors: Mapping[str, torch.Tensor], wanted: Tensors) -> None:
    assert set(tensors) == set(wanted)
    assert [name for name, tensor in wanted.items() if not torch.equal(tensors[name], tensor)] == []


# -- every form with every other ------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("host_form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form_meets_every_other(plan: Any, host_form: str, form: str, dtype: torch.dtype) -> None:
    planned = plan(host_form, form, dtype)
    with MergedCheckpoint(planned, threads=2) as merged:
        assert_equal(merged.tensors, expected(host_form, dtype))
    assert any("experts" in warning for warning in planned.warnings) == (host_form != form)
    planned.close()


@pytest.mark.parametrize("block", [1, 7, 64])
def test_cuts_and_threads_change_nothing(plan: Any, block: int) -> None:
    planned = plan("transposed", "one by one")
    with MergedCheckpoint(planned, threads=3, block_elements=block) as merged:
        assert_equal(merged.tensors, expected("transposed"))
    planned.close()


@pytest.mark.parametrize("host_form", ["stacked", "transposed"])
def test_a_square_matrix_lies_as_its_expert_s_others_do(plan: Any, host_form: str) -> None:
    """Two inner widths make the hidden one: the shape of gate_up_proj tells nothing, that of down_proj does."""
    sizes = {"inner": HIDDEN // 2}
    for form in FORMS:
        planned = plan(host_form, form, **sizes)
        with MergedCheckpoint(planned, threads=1) as merged:
            assert_equal(merged.tensors, expected(host_form, **sizes))
        planned.close()


def test_the_plan_tells(plan: Any) -> None:
    planned = plan("transposed", "one by one")
    (warning,) = (one for one in planned.warnings if "experts" in one)
    assert warning.endswith(
        "llm: experts are stored one by one; they meet the host's stacked down_proj and gate_up_proj, transposed "
        "(mlp.experts of 2 layers)"
    )
    document = planned.to_dict()
    (task,) = (one for one in document["tensors"] if one["name"] == f"{PREFIX}.layers.1.mlp.experts.gate_up_proj")
    assert task["action"] == "merge"
    assert task["shape"] == [EXPERTS, HIDDEN, 2 * INNER]
    assert [one["tensor"] for one in task["inputs"]] == ["model.layers.1.mlp.experts.gate_up_proj", task["name"]]
    stored = sum(tensor.nbytes for seed in (1, 2) for tensor in model("stacked", seed, "model").values())
    assert document["cost"]["bytes_read"] == stored + 4 * 3 * 4
    planned.close()


def test_a_base_and_three_models_in_three_forms(tmp_path: Path) -> None:
    """Each meets the host's form by itself; a whole-model difference comes out as if all had been stacked alike."""
    folders = {}
    for seed, (name, form) in enumerate({"base": "one by one", "tuned": "stacked", "host": "transposed"}.items()):
        config = LVLM_CONFIG if name == "host" else TEXT_CONFIG
        prefix = PREFIX if name == "host" else "model"
        folders[name] = str(write_checkpoint(tmp_path / name, model(form, seed, prefix), config, tokens=words(VOCAB)))
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": folders["base"],
        "models": [{"model": folders[name], "parameters": {"weight": 1.0}} for name in ("tuned", "host")],
    }
    with safegraft.open(recipe) as merged:
        result = {name: tensor.clone() for name, tensor in merged.tensors.items()}
    base, tuned, host = (model("transposed", seed, PREFIX) for seed in range(3))
    for name, tensor in result.items():
        torch.testing.assert_close(tensor, tuned[name] + host[name] - base[name])


# -- what is left alone ---------------------------------------------------------------------------


def shapes(form: str, prefix: str = "model", inner: int = INNER, hidden: int = HIDDEN) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model(form, 0, prefix, inner, hidden).items()}


@pytest.fixture
def fused(headers: Callable[..., Checkpoint]) -> Callable[..., tuple[Checkpoint, Experts]]:
    def fuse(host: Shapes, other: Shapes, dtypes: Mapping[str, DType] | None = None) -> tuple[Checkpoint, Experts]:
        host, other = ({name: one[name] for name in sorted(one, key=natural_order)} for one in (host, other))
        checkpoint = headers("llm", other, TEXT_CONFIG, None, dtypes)
        return checkpoint, fuse_experts(headers("lvlm", host, LVLM_CONFIG), checkpoint)

    return fuse


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_do(fused: Any, form: str) -> None:
    for other in (shapes(form), {name: shape for name, shape in shapes(form).items() if "experts" not in name}):
        checkpoint, experts = fused(shapes(form, PREFIX), other)
        assert experts == Experts(checkpoint)


def test_a_router_s_bias_in_both_is_no_obstacle(fused: Any) -> None:
    """What both have beside the matrices finds its counterpart by itself."""
    bias = {"mlp.experts.e_score_correction_bias": (EXPERTS,)}
    host, other = changed("stacked", PREFIX, bias), changed("one by one", "model", bias)
    _, experts = fused(host, other)
    assert set(experts.checkpoint.tensors) == {name.replace(PREFIX, "model") for name in host}


@pytest.mark.parametrize("names", [{"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}, {}])
def test_names_that_both_have_stand_for_themselves(fused: Any, names: Mapping[str, str]) -> None:
    """Nothing is joined: each projection is stacked under its own name."""
    host = {name: shape for name, shape in shapes("stacked", PREFIX).items() if "experts" not in name}
    for layer in range(LAYERS):
        for projection, shape in {"gate_proj": (3, 5, 8), "up_proj": (3, 5, 8), "down_proj": (3, 8, 5)}.items():
            host[f"{PREFIX}.layers.{layer}.mlp.experts.{projection}"] = shape
    host = renamed(host, names)
    _, experts = fused(host, renamed(shapes("one by one"), names))
    found = {name: tensor.shape for name, tensor in experts.checkpoint.tensors.items()}
    assert found == {name.replace(PREFIX, "model"): shape for name, shape in host.items()}


@pytest.mark.parametrize("shape", [(10**5, 0, 8), (0, 10, 8)])
def test_empty_stacks_are_no_experts(fused: Any, shape: tuple[int, ...]) -> None:
    """However many experts the shape claims."""
    empty = {f"{AT}gate_up_proj": shape, f"{AT}down_proj": shape}
    swapped = dict.fromkeys(empty, (shape[0], shape[2], shape[1]))
    checkpoint, experts = fused(changed("stacked", PREFIX, empty), changed("stacked", "model", swapped))
    assert experts == Experts(checkpoint)


def test_a_number_out_of_the_way_is_a_missing_expert(fused: Any) -> None:
    far = {f"{AT}{10**12}.{name}_proj.weight": (5, 8) for name in ("gate", "up", "down")}
    checkpoint, experts = fused(shapes("stacked", PREFIX), changed("one by one", "model", far))
    assert experts.checkpoint is checkpoint
    assert f"of {10**12 + 1} experts, expert 3 has no down_proj" in experts.misfits[0]


def test_the_host_s_form_that_fits_is_taken(fused: Any) -> None:
    """A talker beside the language model has experts too, of other sizes."""
    host = shapes("transposed", PREFIX) | shapes("stacked", "talker.model", inner=INNER + 1)
    _, experts = fused(host, shapes("one by one"))
    (note,) = experts.notes
    assert "transposed (mlp.experts of 2 layers)" in note
    assert experts.checkpoint.tensors["model.layers.0.mlp.experts.down_proj"].shape == (EXPERTS, INNER, HIDDEN)


@pytest.mark.parametrize("form", FORMS)
def test_the_form_that_the_host_has_is_kept(fused: Any, form: str) -> None:
    """Whatever form other experts have at the same place of the host's layers."""
    talkers = [shapes(other, f"talker{number}.model") for number, other in enumerate(FORMS)]
    host = {name: shape for talker in talkers for name, shape in talker.items()}
    checkpoint, experts = fused(shapes(form, PREFIX) | host, shapes(form))
    assert experts == Experts(checkpoint)


@pytest.mark.parametrize("form", FORMS)
def test_other_sizes_in_one_form_are_alignment_s_to_tell(fused: Any, form: str) -> None:
    checkpoint, experts = fused(shapes(form, PREFIX, inner=INNER + 1), shapes(form))
    assert experts == Experts(checkpoint)


def test_experts_of_other_sizes_in_the_same_form_do_not_hide_the_form_that_fits(fused: Any) -> None:
    host = shapes("stacked", PREFIX) | shapes("one by one", "talker.model", inner=INNER + 1)
    _, experts = fused(host, shapes("one by one"))
    assert "model.layers.0.mlp.experts.gate_up_proj" in experts.checkpoint.tensors


def changed(form: str, prefix: str, changes: Mapping[str, tuple[int, ...] | None], layers: int = LAYERS) -> Shapes:
    """Shapes with other ones for some suffixes of the first layers; None takes a tensor away."""
    found = shapes(form, prefix)
    for layer in range(layers):
        for suffix, shape in changes.items():
            name = f"{prefix}.layers.{layer}.{suffix}"
            if shape is None:
                del found[name]
            else:
                found[name] = shape
    return found


def renamed(found: Shapes, names: Mapping[str, str]) -> Shapes:
    for old, new in names.items():
        found = {name.replace(old, new): shape for name, shape in found.items()}
    return found


ANOTHER = {f"{AT}3.gate_proj.weight": (5, 8), f"{AT}3.up_proj.weight": (5, 8), f"{AT}3.down_proj.weight": (8, 5)}
WITHOUT_GATE: dict[str, None] = {f"{AT}{expert}.gate_proj.weight": None for expert in range(EXPERTS)}

# What is wrong -> changes to the host's stacked experts, changes to the input's one by one, how it is told.
MISFITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an expert is missing": (
        {},
        {f"{AT}1.gate_proj.weight": None, f"{AT}1.up_proj.weight": None, f"{AT}1.down_proj.weight": None},
        "of 3 experts, expert 1 has no down_proj",
    ),
    "a projection is missing": ({}, {f"{AT}2.up_proj.weight": None}, "of 3 experts, expert 2 has no up_proj"),
    "an expert is wider": (
        {},
        {f"{AT}2.up_proj.weight": (6, 8)},
        "up_proj of expert 2 is [6, 8], that of expert 0 is [5, 8]",
    ),
    "too many experts": (
        {},
        ANOTHER,
        "down_proj is stacked as [3, 8, 5]; single experts make [4, 8, 5], or transposed [4, 5, 8]",
    ),
    "all experts are wider": (
        {f"{AT}gate_up_proj": (3, 12, 8)},
        {},
        "gate_up_proj is stacked as [3, 12, 8]; single experts make [3, 10, 8], or transposed [3, 8, 10]",
    ),
    "two widths in one": (
        {},
        {f"{AT}{expert}.up_proj.weight": (5, 7) for expert in range(EXPERTS)},
        "gate_proj and up_proj are not of one width",
    ),
    "half transposed": (
        {f"{AT}gate_up_proj": (3, 8, 10)},
        {},
        "of down_proj and gate_up_proj, some are stacked one way round and some the other",
    ),
    "interleaved, as biases show": (
        {f"{AT}gate_up_proj_bias": (3, 10)},
        {},
        "mlp.experts.gate_up_proj_bias [3, 10] stands beside the matrices in one of the two only",
    ),
    "biases of single experts": (
        {},
        {f"{AT}0.up_proj.bias": (5,)},
        "mlp.experts.0.up_proj.bias [5] stands beside the matrices in one of the two only",
    ),
    "half stacked": ({}, {f"{AT}extra": (3, 5, 5)}, "some of their matrices are stacked, others are not"),
    "scales": (
        {f"{AT}scale": (3, 1, 1)},
        {},
        "down_proj, gate_up_proj and scale cannot be told to consist of down_proj, gate_proj and up_proj",
    ),
    "no gate": (
        {},
        WITHOUT_GATE,
        "down_proj and gate_up_proj cannot be told to consist of down_proj and up_proj",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_what_cannot_be_matched_is_left_alone_and_told(fused: Any, what: str) -> None:
    in_host, in_other, message = MISFITS[what]
    checkpoint, experts = fused(changed("stacked", PREFIX, in_host), changed("one by one", "model", in_other))
    at = "the experts of model.layers.0.mlp.experts do not take the host's form"
    assert experts == Experts(checkpoint, misfits=(f"{at}: {message}",))


def test_names_that_do_not_spell_the_stacked_one_s(fused: Any) -> None:
    """w1 and w3 have one shape: which of them is the gate, no name tells."""
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    checkpoint, experts = fused(shapes("stacked", PREFIX), renamed(shapes("one by one"), names))
    assert experts.checkpoint is checkpoint
    assert "gate_up_proj cannot be told to consist of w1, w2 and w3" in experts.misfits[0]


def test_square_matrices(fused: Any) -> None:
    """Without a gate, and with the inner width equal to the hidden one, both ways round fit."""
    square = {f"{AT}up_proj": (3, 8, 8), f"{AT}down_proj": (3, 8, 8), f"{AT}gate_up_proj": None}
    single = {f"{AT}{expert}.{name}_proj.weight": (8, 8) for expert in range(EXPERTS) for name in ("up", "down")}
    checkpoint, experts = fused(
        changed("stacked", PREFIX, square), changed("one by one", "model", {**single, **WITHOUT_GATE})
    )
    assert experts.checkpoint is checkpoint
    assert "square matrices do not tell which way round" in experts.misfits[0]


def test_two_forms_that_fit(fused: Any) -> None:
    host = shapes("transposed", PREFIX) | shapes("stacked", "talker.model")
    checkpoint, experts = fused(host, shapes("one by one"))
    assert experts.checkpoint is checkpoint
    assert "more than one" in experts.misfits[0]


def test_experts_of_two_dtypes(fused: Any) -> None:
    dtypes = {f"model.layers.{layer}.{AT}1.up_proj.weight": DType.BF16 for layer in range(LAYERS)}
    checkpoint, experts = fused(shapes("stacked", PREFIX), shapes("one by one"), dtypes)
    assert experts.checkpoint is checkpoint
    assert "some of their matrices are F32, others BF16" in experts.misfits[0]


def test_one_bad_layer(fused: Any) -> None:
    """The other layers are matched, so that what is told is that layer and nothing else."""
    other = changed("one by one", "model", {f"{AT}2.up_proj.weight": None}, layers=1)
    _, experts = fused(shapes("stacked", PREFIX), other)
    assert "(mlp.experts of 1 layer)" in experts.notes[0]
    assert "model.layers.0.mlp.experts do not" in experts.misfits[0]
    left = [name for name in experts.checkpoint.tensors if ".experts." in name and name.endswith(".weight")]
    assert len(left) == 3 * EXPERTS - 1
    assert all(name.startswith("model.layers.0.") for name in left)


def test_the_plan_s_error_tells_why(headers: Callable[..., Checkpoint]) -> None:
    other = changed("one by one", "model", {f"{AT}2.up_proj.weight": None})
    known = {
        "llm": headers("llm", other, TEXT_CONFIG, words(VOCAB)),
        "lvlm": headers("lvlm", shapes("stacked", PREFIX), LVLM_CONFIG, words(VOCAB)),
    }
    models = [{"model": name, "parameters": {"weight": 1.0}} for name in known]
    recipe = safegraft.Recipe.load({"models": models, "merge_method": "linear"})
    with pytest.raises(AlignmentError) as caught:
        make_plan(recipe, known.__getitem__, registry())
    told = [str(problem) for problem in caught.value.problems]
    assert "16 tensors have no counterpart in the host lvlm" in told[0]
    assert told[1].endswith("of 3 experts, expert 2 has no up_proj")
