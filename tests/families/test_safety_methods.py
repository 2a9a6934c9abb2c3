"""Safety-aware methods in whole merges of LVLMs and LLMs, against their papers' equations in plain torch.

The statistics come from transformers and autograd, not from safegraft; SOMF's mask alone, which takes a training, is
read from what safegraft has gathered.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.utils import logging

import safegraft
from safegraft.calibration import gather
from safegraft.errors import InputError, RecipeError
from safegraft.testing import words

LAYERS, WIDTH = 3, 16
LLM_WORDS, LVLM_WORDS = 40, 44
# The LVLM's vocabulary runs backwards, with its own four tokens first: by position no row meets its counterpart.
LVLM_ROWS = {word: LVLM_WORDS - 1 - row for word, row in words(LVLM_WORDS).items()}
IMAGE = LVLM_ROWS[f"w{LVLM_WORDS - 1}"]
SHARED = [LVLM_ROWS[f"w{number}"] for number in reversed(range(LLM_WORDS))]  # in the LVLM's order

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
VOCABULARY = (EMBEDDING, HEAD)

LLMS = ("aligned", "base", "unaligned", "harmful", "safety_tuned")
LVLMS = ("lvlm", "other")

QUERY, GOOD, BAD = range(3)  # the parts of a sample
SAMPLES = [([step, step + 1, 2 * step], [step + 2, 3], [step + 5, 30 - step]) for step in range(6)]
TASK, PREFERENCES = {"prompt": "query", "response": "good"}, {"prompt": "query", "chosen": "good", "rejected": "bad"}
SETS: dict[str, dict[str, str]] = {
    "task": TASK,
    "harmful": {"prompt": "query", "response": "bad"},
    "safety": TASK,
    "preferences": PREFERENCES,
    "normal": {"text": "query"},
    "malicious": {"text": "bad"},
}

Tensors = Mapping[str, torch.Tensor]


class World:
    """The models on disk and in memory, and the data they are shown.

    Their tensors go by the names they have in a Llama, vocabularies by the words that all models share.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = {
            **{name: llm(root / name, seed) for seed, name in enumerate(LLMS, 1)},
            **{name: lvlm(root / name, seed) for seed, name in enumerate(LVLMS, 11)},
        }
        rows = [
            dict(zip(("query", "good", "bad"), (" ".join(f"w{word}" for word in part) for part in sample), strict=True))
            for sample in SAMPLES
        ]
        self.data = root / "rows.jsonl"
        self.data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def path(self, name: str) -> str:
        return str(self.root / name)

    def calibration(self, *names: str) -> dict[str, Any]:
        return {name: {"data": str(self.data), **SETS[name]} for name in names}

    def tensor(self, model: str, name: str) -> torch.Tensor:
        return shared_rows(self.models[model], name, parameters(self.models[model])[name].detach()).clone()

    def tensors(self, name: str, *models: str) -> list[torch.Tensor]:
        return [self.tensor(model, name) for model in models]


def llm(folder: Path, seed: int) -> PreTrainedModel:
    model = scrambled(LlamaForCausalLM(llama(LLM_WORDS)), seed)
    return saved(model, folder, words(LLM_WORDS))


def lvlm(folder: Path, seed: int) -> PreTrainedModel:
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=WIDTH,
    )
    config = LlavaConfig(text_config=llama(LVLM_WORDS), vision_config=vision, image_token_index=IMAGE)
    model = scrambled(LlavaForConditionalGeneration(config), seed)
    return saved(model, folder, LVLM_ROWS)


def llama(rows: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def scrambled(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """With values of its own in every weight: norms begin as ones, biases as zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    return model.eval()


def saved(model: PreTrainedModel, folder: Path, rows: Mapping[str, int]) -> PreTrainedModel:
    model.save_pretrained(folder)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": rows, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return model


def parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Those of the language model, by the names they have in a Llama."""
    return {**dict(model.get_decoder().named_parameters()), HEAD: model.get_output_embeddings().weight}


def shared_rows(model: PreTrainedModel, name: str, value: torch.Tensor) -> torch.Tensor:
    """Of a vocabulary tensor, the rows of the words that all models know, in the LVLM's order."""
    if name not in VOCABULARY:
        return value
    return value[SHARED] if sees(model) else value[[LLM_WORDS - 1 - place for place in range(LLM_WORDS)]]


def sees(model: PreTrainedModel) -> bool:
    return isinstance(model, LlavaForConditionalGeneration)


# From here on: models at work.


def ids(model: PreTrainedModel, numbers: Sequence[int]) -> torch.Tensor:
    rows = LVLM_ROWS if sees(model) else words(LLM_WORDS)
    return torch.tensor([[rows[f"w{number}"] for number in numbers]])


def gradients(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """For each sample those of the mean loss of the good answer's tokens."""
    for sample in SAMPLES:
        model.zero_grad()
        tokens = ids(model, [*sample[0], *sample[GOOD]])
        start = len(sample[0])
        logits = model(input_ids=tokens, use_cache=False).logits[0]
        functional.cross_entropy(logits[start - 1 : -1], tokens[0, start:]).backward()
        yield {
            name: shared_rows(model, name, torch.zeros_like(one) if one.grad is None else one.grad).clone()
            for name, one in parameters(model).items()
        }
    model.zero_grad()


@functools.cache
def fisher(model: PreTrainedModel) -> Tensors:
    found = list(gradients(model))
    return {name: torch.stack([one[name] ** 2 for one in found]).mean(0) for name in found[0]}


@functools.cache
def saliency(model: PreTrainedModel) -> Tensors:
    found = list(gradients(model))
    weights = {name: shared_rows(model, name, one.detach()) for name, one in parameters(model).items()}
    return {
        name: torch.stack([(weight * one[name]).abs() for one in found]).mean(0) for name, weight in weights.items()
    }


@functools.cache
def coming_in(model: PreTrainedModel, answer: int) -> Mapping[str, list[torch.Tensor]]:
    """By the weight of each linear layer, what comes into it, sample by sample: [tokens, in]."""
    seen: dict[str, list[torch.Tensor]] = {}
    layers = {f"{name}.weight": layer for name, layer in model.get_decoder().named_modules()}
    layers[HEAD] = model.get_output_embeddings()
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0][0].double())
        )
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear)
    ]
    with torch.no_grad():
        for sample in SAMPLES:
            model(input_ids=ids(model, [*sample[0], *sample[answer]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@functools.cache
def grams(model: PreTrainedModel) -> Tensors:
    found = coming_in(model, GOOD)
    return {name: torch.stack([x.T @ x / len(x) for x in seen]).mean(0) for name, seen in found.items()}


@functools.cache
def last_states(model: PreTrainedModel, part: int) -> torch.Tensor:
    """Of each sample's last token, [layers, samples, width], of length 1."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: found.append(output[0, -1].double()))
        for layer in model.get_decoder().layers
    ]
    with torch.no_grad():
        for sample in SAMPLES:
            model(input_ids=ids(model, sample[part]), use_cache=False)
    for hook in hooks:
        hook.remove()
    states = torch.stack(found).view(len(SAMPLES), LAYERS, -1).transpose(0, 1)
    return states / states.norm(dim=-1, keepdim=True)


# From here on: the papers' equations. Each takes the world and a tensor's name.


def resta(world: World, name: str) -> torch.Tensor:
    f, a, u = world.tensors(name, "lvlm", "aligned", "unaligned")
    return f + 0.5 * (a - u)


def is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight")


def aligned_part(world: World, name: str) -> tuple[torch.Tensor, float]:
    """C d and its cosine with d, where C = V V^T / |V|."""
    f, a, b = (one.double() for one in world.tensors(name, "lvlm", "aligned", "base"))
    d, v = f - a, a - b
    projected = v @ v.T @ d / v.norm()
    return projected, float((projected * d).sum() / projected.norm() / d.norm())


def safe_lora(world: World, name: str) -> torch.Tensor:
    f, a = world.tensors(name, "lvlm", "aligned")
    if not is_matrix(name):
        return f
    projected, cosine = aligned_part(world, name)
    return a + projected.float() if cosine <= 0.999 else f


def safemerge(world: World, name: str) -> torch.Tensor:
    f, s = world.tensors(name, "lvlm", "safety_tuned")
    return 0.8 * f + 0.2 * s if is_matrix(name) and aligned_part(world, name)[1] < 0.999 else f


def safety_arithmetic(world: World, name: str) -> torch.Tensor:
    f, h, b = world.tensors(name, "lvlm", "harmful", "base")
    return f - 2 * top(h - b, 0.1)


def top(harm: torch.Tensor, share: float) -> torch.Tensor:
    count = max(1, int(share * harm.numel()))
    least = harm.abs().flatten().sort(descending=True).values[count - 1]
    return torch.where(harm.abs() >= least, harm, 0)


def pre_post(world: World, name: str) -> torch.Tensor:
    f, a = world.tensors(name, "lvlm", "aligned")
    return 0.2 * a + 0.8 * f


def mergealign(world: World, name: str) -> torch.Tensor:
    f, a, b = world.tensors(name, "lvlm", "aligned", "base")
    return b + 0.7 * (f - b) + 0.3 * (a - b)


def difference_weighted(world: World, name: str) -> torch.Tensor:
    f, g, a = world.tensors(name, "lvlm", "other", "aligned")
    alpha = torch.tensor([(a - f).abs().mean(), (a - g).abs().mean()]).div(0.01).softmax(0)
    return 0.2 * a + 0.8 * (alpha[0] * f + alpha[1] * g)


def neuron_fusion(world: World, name: str) -> torch.Tensor:
    f, a = world.tensors(name, "lvlm", "aligned")
    if "norm" in name:
        return f
    shift = (f - a).norm(dim=1)
    kept = shift >= shift.sort(descending=True).values[int(0.1 * len(f)) - 1]
    return torch.where(kept[:, None], f, a + 0.5 * (f - a))


def layer_swap(world: World, name: str) -> torch.Tensor:
    f, a = world.tensors(name, "lvlm", "aligned")
    return a if name.startswith(("layers.1.", "layers.2.")) else f


def safety_layers(world: World, name: str) -> torch.Tensor:
    f, a = world.tensors(name, "lvlm", "aligned")
    normal, malicious = last_states(world.models["aligned"], QUERY), last_states(world.models["aligned"], BAD)
    count = len(SAMPLES)
    alike = [(one @ one.T - torch.eye(count)).sum() / (count * (count - 1)) for one in normal]
    apart = [(one @ other.T).mean() for one, other in zip(normal, malicious, strict=True)]
    gaps = [float(mixed.acos() - same.acos()) for same, mixed in zip(alike, apart, strict=True)]
    assert max(gaps) > 0  # else no layer would be merged
    first = next(layer for layer in range(LAYERS) if gaps[layer] > 0.1 * max(gaps))
    last = next(layer for layer in range(LAYERS) if gaps[layer] >= 0.9 * max(gaps))
    assert last - first + 1 < LAYERS  # there are layers of both kinds
    return (f + a) / 2 if name.startswith("layers.") and first <= int(name.split(".")[1]) <= last else f


def led(world: World, name: str) -> torch.Tensor:
    b, a, f = world.tensors(name, "base", "aligned", "lvlm")
    of_base = saliency(world.models["base"])[name]
    elected = [
        located(saliency(world.models[model])[name], share) & located(of_base, share)
        for model, share in (("aligned", 0.3), ("lvlm", 0.4))
    ]
    both = elected[0] & elected[1]
    return b + 0.9 * ((elected[0] & ~both) * (a - b) + (elected[1] & ~both) * (f - b))


def located(scores: torch.Tensor, share: float) -> torch.Tensor:
    count = max(1, int(share * scores.numel()))
    return (scores >= scores.flatten().sort(descending=True).values[count - 1]) & (scores > 0)


def safe_delta(world: World, name: str) -> torch.Tensor:
    """Optimal Brain Surgeon with an inverse for each column."""
    f, a = (one.double() for one in world.tensors(name, "lvlm", "aligned"))
    h = grams(world.models["aligned"]).get(name)
    if h is None or name in VOCABULARY:
        return a.float()
    h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h))
    inverses = [h[column:, column:].inverse() for column in range(len(h))]
    cost = torch.stack([1 / inverse[0, 0] for inverse in inverses])
    budget = BUDGET * cost.mean() * a.numel() / 4096**2
    accepted = torch.zeros_like(a, dtype=torch.bool)
    losses = ((f - a) ** 2 * cost).tolist()
    one_by_one = [(row, int(column)) for column in cost.argsort() for row in range(len(a))]
    spent = 0.0
    for row, column in one_by_one[: a.numel() - int(0.15 * a.numel())]:
        spent += losses[row][column]
        accepted[row, column] = spent <= budget
    assert 0 < int(accepted.sum()) < int(0.85 * a.numel())
    for column, inverse in enumerate(inverses):
        now = torch.where(accepted[:, column], f[:, column], a[:, column])
        a[:, column:] -= torch.outer((a[:, column] - now) / inverse[0, 0], inverse[0])
        a[:, column] = now
    return a.float()


def antidote(world: World, name: str) -> torch.Tensor:
    f = world.tensor("lvlm", name)
    seen = coming_in(world.models["lvlm"], BAD).get(name)
    if seen is None or name in VOCABULARY:
        return f
    scores = f.abs() * torch.cat(seen).norm(dim=0)
    count = math.ceil(0.2 * scores.shape[1])
    least = scores.sort(dim=1, descending=True).values[:, count - 1, None]
    return torch.where(scores >= least, 0, f).float()


def somf(world: World, name: str) -> torch.Tensor:
    f, a = world.tensors(name, "lvlm", "aligned")
    masks = preference_masks(world)
    if name in VOCABULARY:  # of another size in the LVLM
        assert name not in masks
        return a
    kept = masks[name] > 0.5
    assert 0 < int(kept.sum()) < kept.numel()
    return a + 0.3 * kept * (f - a)


@functools.cache
def preference_masks(world: World) -> Tensors:
    plan = safegraft.plan(CASES["somf"].recipe(world))
    try:
        found = gather(plan.statistics["somf", "mask", world.path("lvlm")])
    finally:
        plan.close()
    masks = {name: found.whole(full) for full in found.tensors for name in [full.rpartition("model.")[2]]}
    found.close()
    return masks


def fisher_weighted(world: World, name: str) -> torch.Tensor:
    a, f = world.tensors(name, "aligned", "lvlm")
    information = []
    for model in ("aligned", "lvlm"):
        known = fisher(world.models[model])
        every = torch.cat([one.flatten() for one in known.values()])
        information.append((known[name] / every.square().mean().sqrt()).clamp(min=1e-6))
    of_a, of_f = 0.3 * information[0], 0.7 * information[1]
    return (of_a * a + of_f * f) / (of_a + of_f)


def regmean(world: World, name: str) -> torch.Tensor:
    a, f = (one.double() for one in world.tensors(name, "aligned", "lvlm"))
    if name == EMBEDDING or "norm" in name:
        return (0.5 * a + 0.5 * f).float()
    known = [grams(world.models[model])[name] for model in ("aligned", "lvlm")]
    ridge = 1e-6 * (known[0].diagonal() + known[1].diagonal()).mean() / 2 * torch.eye(a.shape[1])
    of_a, of_f = (0.9 * one + 0.1 * torch.diag(one.diagonal()) + ridge for one in known)
    return ((a @ of_a + f @ of_f) @ (of_a + of_f).inverse()).float()


BUDGET = 2e5  # of safe_delta: some of the elements are accepted, and some are not


@dataclass(frozen=True)
class Case:
    """A recipe, and what it must give."""

    method: str
    equation: Callable[[World, str], torch.Tensor]
    roles: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    base: bool = False
    models: tuple[tuple[str, dict[str, float]], ...] = (("lvlm", {}),)
    shared: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def alone(self) -> bool:
        """Whether there is one model, whose every row is merged; else the rows that others lack stay as they are."""
        return len(self.models) == 1 and not self.roles and not self.base

    def recipe(self, world: World) -> dict[str, Any]:
        models: list[dict[str, Any]] = [{"model": world.path(name), "parameters": own} for name, own in self.models]
        models += [{"model": world.path(role), "role": role} for role in self.roles]
        recipe = {"merge_method": self.method, "models": models, "parameters": dict(self.shared)}
        if self.base:
            recipe["base_model"] = world.path("base")
        if self.data:
            recipe["calibration"] = world.calibration(*self.data)
        return recipe


CASES = {
    case.method: case
    for case in (
        Case("resta", resta, ("aligned", "unaligned")),
        Case("safe_lora", safe_lora, ("aligned",), base=True, shared={"threshold": 0.999}),
        Case("safemerge", safemerge, ("aligned", "safety_tuned"), base=True, shared={"threshold": 0.999}),
        Case("safety_arithmetic", safety_arithmetic, ("harmful",), base=True, shared={"lambda": 2}),
        Case("pre_post", pre_post, ("aligned",)),
        Case("mergealign", mergealign, ("aligned",), base=True, shared={"t": 0.3}),
        Case(
            "difference_weighted",
            difference_weighted,
            ("aligned",),
            models=(("lvlm", {}), ("other", {})),
            shared={"temperature": 0.01},
        ),
        Case("neuron_fusion", neuron_fusion, ("aligned",)),
        Case("layer_swap", layer_swap, ("aligned",), shared={"k": 1}),
        Case("safety_layers", safety_layers, ("aligned",), ("normal", "malicious")),
        Case("led", led, data=("task",), base=True, models=(("aligned", {"density": 0.3}), ("lvlm", {"density": 0.4}))),
        Case("safe_delta", safe_delta, ("aligned",), ("safety",), shared={"s": BUDGET}),
        Case("antidote", antidote, data=("harmful",), shared={"fraction": 0.2}),
        Case("somf", somf, ("aligned",), ("preferences",)),
        Case(
            "fisher", fisher_weighted, data=("task",), models=(("aligned", {"weight": 0.3}), ("lvlm", {"weight": 0.7}))
        ),
        Case("regmean", regmean, data=("task",), models=(("aligned", {}), ("lvlm", {}))),
    )
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that threads only wait for each other
    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFEGRAFT_CACHE", str(root / "cache"))
        yield World(root)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_paper_s_equation(world: World, tmp_path: Path, case: Case) -> None:
    safegraft.merge(case.recipe(world), out=tmp_path / "out", threads=1)
    model, problems = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(problems.values())
    ours, before = parameters(model), parameters(world.models["lvlm"])
    for name in ours:
        merged, expected = shared_rows(model, name, ours[name].detach()), case.equation(world, name)
        assert float((merged - expected).abs().max()) < 1e-5, name
        if name in VOCABULARY and not case.alone:
            only_here = [row for row in range(LVLM_WORDS) if row not in SHARED]
            assert torch.equal(ours[name][only_here], before[name][only_here])
    assert_sight_untouched(Path(world.path("lvlm")), tmp_path / "out")
    assert_speaks(model)


def assert_sight_untouched(before: Path, after: Path) -> None:
    """Vision tower and projector, byte for byte."""
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert theirs.keys() == ours.keys()
    own = [name for name in theirs if "vision_tower" in name or "multi_modal_projector" in name]
    assert len(own) > 20
    for name in own:
        assert ours[name].numpy().tobytes() == theirs[name].numpy().tobytes()


def assert_speaks(model: PreTrainedModel) -> None:
    """A few words about an image."""
    prompt = torch.cat([torch.full((1, 4), IMAGE), ids(model, [1, 2, 3])], dim=1)
    answer = model.eval().generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16),
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
    )
    assert answer.shape == (1, 10)


# From here on: what a plan says before any work.


def said(recipe: Mapping[str, Any]) -> str:
    with pytest.raises((RecipeError, InputError)) as caught:
        safegraft.plan(recipe).close()
    return str(caught.value)


@pytest.mark.parametrize("method", [case.method for case in CASES.values() if case.roles])
def test_a_role_that_nobody_has(world: World, method: str) -> None:
    recipe = CASES[method].recipe(world)
    last = recipe["models"].pop()
    assert f"{method} needs a model with `role: {last['role']}` among `models`" in said(recipe)


def test_a_role_that_the_method_has_not(world: World) -> None:
    recipe = CASES["resta"].recipe(world)
    recipe["models"].append({"model": world.path("harmful"), "role": "harmful"})
    assert "resta has no role 'harmful'; a model's role may be" in said(recipe)


@pytest.mark.parametrize(("method", "name"), [(case.method, name) for case in CASES.values() for name in case.data])
def test_data_that_are_missing(world: World, method: str, name: str) -> None:
    recipe = CASES[method].recipe(world)
    del recipe["calibration"][name]
    assert f"{method} needs data called '{name}'" in said(recipe)


def test_data_of_another_kind(world: World) -> None:
    recipe = CASES["somf"].recipe(world)
    recipe["calibration"]["preferences"] = {"data": str(world.data), **TASK}
    assert "somf needs its preference_mask" in said(recipe)


@pytest.mark.parametrize(
    ("method", "base"),
    [(case.method, case.base) for case in CASES.values() if case.method not in ("fisher", "regmean")],
)
def test_a_base_that_is_missing_or_one_too_many(world: World, method: str, base: bool) -> None:
    recipe = CASES[method].recipe(world)
    if base:
        del recipe["base_model"]
    else:
        recipe["base_model"] = world.path("base")
    assert "base_model" in said(recipe)


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("resta", {"gamma": -0.1}),
        ("safe_lora", {"threshold": 1.5}),
        ("safemerge", {"safe_weight": 1.5}),
        ("safety_arithmetic", {"top_k": 2}),
        ("pre_post", {"lambda": 1.1}),
        ("mergealign", {"t": -0.5}),
        ("difference_weighted", {"temperature": 0}),
        ("neuron_fusion", {"fraction": 7}),
        ("layer_swap", {"k": -1}),
        ("safety_layers", {"first": 3, "last": 2}),
        ("led", {"alpha": float("inf")}),
        ("led", {"density": 1.1}),
        ("safe_delta", {"s": -1}),
        ("antidote", {"fraction": 1.5}),
        ("somf", {"lambda": float("nan")}),
        ("fisher", {"epsilon": 0}),
        ("regmean", {"alpha": 2}),
    ],
)
def test_numbers_out_of_range(world: World, method: str, wrong: dict[str, float]) -> None:
    recipe = CASES[method].recipe(world)
    recipe["parameters"] = {**recipe["parameters"], **wrong}
    for model in recipe["models"]:
        for name in wrong:
            model.get("parameters", {}).pop(name, None)
    assert any(name in said(recipe) for name in wrong)
