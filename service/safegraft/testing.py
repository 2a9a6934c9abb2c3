"""For plugin authors and tests: the contract kit and tiny checkpoints in Hugging Face layout.

    from safegraft.testing import check_method

    def test_contract():
        check_method(MyMethod, input_parameters={"weight": 0.5})

It runs methods as the engine does, and knows nothing of the engine.
"""

import itertools
import json
import pickle
import random
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import BaseModel
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] (its stub has a bare PathLike)

from safegraft.methods.contract import Context, Granularity, Input, MergeMethod, Prepared, Statistic, TensorView
from safegraft.methods.registry import check_class

TENSOR = "model.layers.0.mlp.up_proj.weight"
SHAPES = ((7, 12), (33,), (5, 3, 4), (1,), (1, 1))
SEED = 20240710


def check_method(
    method: type[MergeMethod],
    *,
    parameters: Mapping[str, Any] | None = None,
    input_parameters: Mapping[str, Any] | None = None,
    inputs: int | None = None,
) -> None:
    """Hold a merge method to its contract; AssertionError or PluginError says which part it breaks.

    Checked, on float32 and float64, on random, equal and all-zero tensors and on single elements, with models for
    the method's roles and with made-up statistics (and without, where one may not be defined): the class is
    complete; parameters have a JSON Schema; the result has the inputs' shape and at least their precision,
    and is finite; it is the same when computed again, whatever a global random generator has drawn, and however
    and in whatever order the engine cuts the tensor; tensors are not kept; `prepare` looks at every block, and
    what it returns can be pickled.

    Args:
        parameters: what a recipe would give; needed where Parameters has no defaults.
        input_parameters: likewise, used for every input.
        inputs: how many inputs to try with; default: two and the fewest, within what `requires` allows.
    """
    check_class(method)
    for schema in (method.Parameters, method.InputParameters):
        json.dumps(schema.model_json_schema())
    shared = method.Parameters.model_validate(dict(parameters or {}))
    own = method.InputParameters.model_validate(dict(input_parameters or {}))
    instance = method()
    bases = {"required": (True,), "optional": (True, False)}.get(method.requires.base, (False,))
    with torch.no_grad():
        for count in _counts(method, inputs):
            _check_no_objection(instance, [own] * count, shared)
            for with_base in bases:
                for tensors in _tensors(count + len(method.requires.roles) + with_base):
                    base = tensors.pop() if with_base else None
                    inputs_own = [own] * count + [None] * len(method.requires.roles)
                    for defined in (True, False) if method.requires.calibration else (True,):
                        _Trial(instance, tensors, base, shared, inputs_own, defined).check()


def _counts(method: type[MergeMethod], inputs: int | None) -> list[int]:
    if inputs is not None:
        return [inputs]
    least, most = method.requires.min_inputs, method.requires.max_inputs
    return sorted({least, max(least, 2 if most is None else min(2, most))})


def _tensors(count: int) -> Iterator[list[torch.Tensor]]:
    """Lists of `count` tensors, from the plain case to those where methods divide by zero."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    for shape in SHAPES:
        yield [draw(*shape) for _ in range(count)]
    yield [draw(6, 5, dtype=torch.float64) for _ in range(count)]
    yield [draw(9)] * count
    yield [torch.zeros(4, 3)] * count


def _check_no_objection(method: MergeMethod, inputs: Sequence[BaseModel], shared: BaseModel) -> None:
    messages = cast(object, method.check(inputs, shared))
    if not isinstance(messages, Iterable):  # a stranger's check() may forget to yield
        raise AssertionError(f"{method.name}: check() returns {type(messages).__name__}; it yields messages")
    for message in cast(Iterable[str], messages):
        raise AssertionError(f"{method.name}: check() objects to the given parameters: {message}")


class _Trial:
    """One merge of one tensor, computed again and again in ways that must not matter."""

    def __init__(
        self,
        method: MergeMethod,
        tensors: Sequence[torch.Tensor],
        base: torch.Tensor | None,
        shared: BaseModel,
        own: Sequence[BaseModel | None],
        defined: bool,
    ) -> None:
        self.method = method
        self.shared = shared
        self.own = own
        self.shape = tuple(tensors[0].shape)
        self.statistics = [_statistics(method, self.shape, number) if defined else {} for number in range(len(own))]
        self.dtype = tensors[0].dtype
        self.made = [{name: one.clone() for name, one in known.items()} for known in self.statistics]
        self.elements = tensors[0].numel()
        everyone = [*tensors, *([] if base is None else [base])]
        self.wholes = [one.flatten() for one in everyone]
        self.scratch = [torch.empty_like(one) for one in self.wholes]
        self.has_base = base is not None

    def check(self) -> None:
        try:
            whole = self.check_result()
            self.check_repeated(whole)
            self.check_cuts(whole)
            self.check_prepare(whole)
            self.require_statistics_unchanged()
        except Exception as error:
            count = len(self.scratch) - self.has_base
            base = " and a base" if self.has_base else ""
            error.add_note(f"with {count} input(s){base} of shape {list(self.shape)}, {self.dtype}")
            raise

    def require_statistics_unchanged(self) -> None:
        for known, made in zip(self.statistics, self.made, strict=True):
            same = all(torch.equal(known[name], made[name]) for name in made)
            self.require(same, "merge() or prepare() changes a statistic; it is kept for other tensors and cuts")

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise AssertionError(f"{self.method.name}: {message}")

    def check_result(self) -> torch.Tensor:
        drawn, held = _global_random_state(), dict(vars(self.method))
        whole = self.merged(self.state())
        self.require(bool(torch.isfinite(whole).all()), "NaN or inf from finite inputs")
        self.require(
            _global_random_state() == drawn,
            "merge() or prepare() draws from a global random generator, or seeds it; make one from Context.seed",
        )
        changed = [name for name, value in vars(self.method).items() if held.get(name, self) is not value]
        self.require(
            not changed, f"merge() or prepare() sets self.{', self.'.join(changed)}; threads share one instance"
        )
        return whole

    def check_repeated(self, whole: torch.Tensor) -> None:
        self.require(torch.equal(whole, self.merged(self.state())), "a second run gives another result")
        torch.rand(3)
        self.require(torch.equal(whole, self.merged(self.state())), "the result depends on torch's global generator")

    def check_cuts(self, whole: torch.Tensor) -> None:
        for borders in self.borders():
            self.require(
                torch.equal(whole, self.merged(self.state(), borders)),
                f"in {len(borders) + 1} cuts the result differs; use Context.position and what prepare() returned, or "
                "choose a coarser granularity. Tensors are scratch memory: copy what is needed later",
            )
            self.require(
                torch.equal(whole, self.merged(self.state(), borders, backwards=True)),
                "the result differs when a later cut comes first; threads work in any order",
            )

    def check_prepare(self, whole: torch.Tensor) -> None:
        state = self.state()
        try:
            copy = pickle.loads(pickle.dumps(state))
        except Exception as error:  # pickle raises what it likes
            raise AssertionError(f"{self.method.name}: what prepare() returns cannot be pickled: {error}") from error
        self.require(torch.equal(whole, self.merged(copy)), "what prepare() returns changes when it is pickled")
        self.require(
            torch.allclose(whole, self.merged(self.state(blocks=3)), rtol=1e-3, atol=1e-3),
            "the result differs when prepare() gets the tensor in several blocks; go through all of view.blocks()",
        )

    # From here on: how a result is computed.

    def borders(self) -> Iterator[tuple[int, ...]]:
        """Where to cut: at every unit, in halves, unevenly. In elements."""
        if self.method.granularity is Granularity.TENSOR:
            return
        cut_in_rows = self.method.granularity is Granularity.ROW and len(self.shape) > 1
        unit = torch.Size(self.shape[1:]).numel() if cut_in_rows else 1
        units = self.elements // unit
        for cuts in (range(1, units), (units // 2,), (1, units - 1)):
            yield tuple(unit * at for at in sorted(set(cuts)) if 0 < at < units)

    def merged(self, state: Any, borders: Sequence[int] = (), *, backwards: bool = False) -> torch.Tensor:
        """The whole result, computed as the engine does: on scratch memory that the next cut overwrites."""
        cuts = list(itertools.pairwise([0, *borders, self.elements]))
        parts = {cut: self.merged_cut(*cut, state) for cut in (reversed(cuts) if backwards else cuts)}
        return torch.cat([parts[cut] for cut in cuts]).view(self.shape)

    def merged_cut(self, start: int, stop: int, state: Any) -> torch.Tensor:
        shape = self.cut_shape(stop - start)
        survey = self.method.survey([Prepared(TENSOR, self.shape, 0, 1, self.shared, state)])
        context = replace(self.context(), position=start, state=state, survey=survey)
        result: Any = self.method.merge(*self.arguments(start, stop, shape), context)  # Any: it may return anything
        self.require(isinstance(result, torch.Tensor), f"merge() returned {type(result).__name__}, not a tensor")
        self.require(tuple(result.shape) == shape, f"shape {list(result.shape)} from inputs of shape {list(shape)}")
        precise = result.dtype.is_floating_point and torch.finfo(result.dtype).bits >= torch.finfo(self.dtype).bits
        self.require(precise, f"the result is {result.dtype}, less precise than the inputs' {self.dtype}")
        copy: torch.Tensor = result.flatten().clone()
        for one in self.scratch:
            one.fill_(torch.nan)
        return copy

    def context(self) -> Context:
        dtype = str(self.dtype).removeprefix("torch.")
        return Context(TENSOR, self.shape, 0, SEED, self.shared, None, layer=0, layers=1, stored=dtype, out=dtype)

    def state(self, blocks: int = 1) -> Any:
        """What `prepare` returns when it gets the tensor in (about) so many blocks."""
        return self.method.prepare(_MemoryView(self, -(-self.elements // blocks)), self.shared)

    def arguments(self, start: int, stop: int, shape: tuple[int, ...]) -> tuple[list[Input], torch.Tensor | None]:
        cuts = [
            memory[: stop - start].copy_(whole[start:stop]).view(shape)
            for memory, whole in zip(self.scratch, self.wholes, strict=True)
        ]
        base = cuts.pop() if self.has_base else None
        elementwise = {one.name for one in self.method.requires.calibration if one.statistic.elementwise}

        def statistics(number: int) -> dict[str, torch.Tensor | None]:
            """None for all where they are not defined; nothing at all for models with a role."""
            if self.own[number] is None:
                return {}
            known: dict[str, torch.Tensor | None] = {one.name: None for one in self.method.requires.calibration}
            for name, value in self.statistics[number].items():
                known[name] = value.flatten()[start:stop].clone().view(shape) if name in elementwise else value
            return known

        return [
            Input(f"model-{number}", cut, self.own[number], statistics(number)) for number, cut in enumerate(cuts)
        ], base

    def cut_shape(self, elements: int) -> tuple[int, ...]:
        if self.method.granularity is Granularity.ELEMENT or len(self.shape) < 2:
            return (elements,)
        return (elements * self.shape[0] // self.elements, *self.shape[1:])


class _MemoryView(TensorView):
    """A trial's tensors in blocks of `block` elements."""

    def __init__(self, trial: _Trial, block: int) -> None:
        self.shape = trial.shape
        self.context = trial.context()
        self._trial = trial
        self._block = block

    def blocks(self) -> Iterator[tuple[Sequence[Input], torch.Tensor | None]]:
        for start in range(0, self._trial.elements, self._block):
            stop = min(start + self._block, self._trial.elements)
            yield self._trial.arguments(start, stop, (stop - start,))
            for one in self._trial.scratch:
                one.fill_(torch.nan)


def _statistics(method: MergeMethod, shape: tuple[int, ...], number: int) -> dict[str, torch.Tensor]:
    """What a method could be told of a model at work, in the right shapes; those of linear layers for matrices only."""
    generator = torch.Generator().manual_seed(SEED + number)
    width = shape[-1]
    samples = torch.randn(3 * width, width, generator=generator)
    made = {
        Statistic.GRADIENT_SQUARE: torch.rand(shape, generator=generator),
        Statistic.SALIENCY: torch.rand(shape, generator=generator),
        Statistic.PREFERENCE_MASK: torch.rand(shape, generator=generator),
        Statistic.LAYER_COSINES: torch.rand(1, 2, generator=generator),
    }
    if len(shape) == 2:
        made[Statistic.INPUT_NORM] = samples.square().sum(dim=0).sqrt()
        made[Statistic.INPUT_GRAM] = samples.T @ samples / len(samples)
    return {one.name: made[one.statistic] for one in method.requires.calibration if one.statistic in made}


def _global_random_state() -> bytes:
    return pickle.dumps((torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()))


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    tokens: Mapping[str, int] | None = None,
    shards: int = 1,
) -> Path:
    """Write a folder in Hugging Face layout; returns it.

    Args:
        tokens: token string -> row; written as a word-level tokenizer.json.
        shards: how many weight files; with more than one an index is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if tokens is not None:
        (folder / "tokenizer.json").write_text(json.dumps(_word_level(tokens), indent=2))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def llama_tensors(
    *, vocab: int, hidden: int = 8, layers: int = 2, prefix: str = "", seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random weights named and shaped like LlamaForCausalLM's."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {"model.embed_tokens.weight": random(vocab, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{at}.self_attn.{name}.weight"] = random(hidden, hidden)
        tensors[f"{at}.mlp.gate_proj.weight"] = random(2 * hidden, hidden)
        tensors[f"{at}.mlp.up_proj.weight"] = random(2 * hidden, hidden)
        tensors[f"{at}.mlp.down_proj.weight"] = random(hidden, 2 * hidden)
        tensors[f"{at}.input_layernorm.weight"] = random(hidden)
        tensors[f"{at}.post_attention_layernorm.weight"] = random(hidden)
    tensors["model.norm.weight"] = random(hidden)
    tensors["lm_head.weight"] = random(vocab, hidden)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def llama_config(*, vocab: int, hidden: int = 8, layers: int = 2, dtype: str = "float32") -> dict[str, Any]:
    """A config.json to go with `llama_tensors`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": hidden // 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }


def tiny_llm(
    folder: Path,
    *,
    vocab: int = 20,
    hidden: int = 8,
    layers: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
) -> Path:
    """A Llama of a few thousand random weights with a tokenizer of `vocab` tokens."""
    config = llama_config(vocab=vocab, hidden=hidden, layers=layers, dtype=str(dtype).removeprefix("torch."))
    tensors = llama_tensors(vocab=vocab, hidden=hidden, layers=layers, seed=seed, dtype=dtype)
    return write_checkpoint(folder, tensors, config, tokens=words(vocab), shards=shards)


def tiny_lvlm(
    folder: Path,
    *,
    vocab: int = 24,
    hidden: int = 8,
    layers: int = 2,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
) -> Path:
    """A LLaVA-shaped model around such a Llama: vision tower, projector, four more tokens."""
    tensors = llama_tensors(vocab=vocab, hidden=hidden, layers=layers, prefix="language_model.", seed=seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, shape in {
        "multi_modal_projector.linear_1.weight": (hidden, 6),
        "multi_modal_projector.linear_1.bias": (hidden,),
        "vision_tower.encoder.layers.0.self_attn.q_proj.weight": (6, 6),
        "vision_tower.encoder.layers.1.self_attn.q_proj.weight": (6, 6),
        "vision_tower.post_layernorm.weight": (6,),
    }.items():
        tensors[name] = torch.randn(shape, generator=generator).to(dtype)
    name = str(dtype).removeprefix("torch.")
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": name,
        "image_token_index": vocab - 1,
        "tie_word_embeddings": False,
        "text_config": llama_config(vocab=vocab, hidden=hidden, layers=layers, dtype=name),
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 6, "num_hidden_layers": 2},
    }
    return write_checkpoint(folder, tensors, config, tokens=words(vocab), shards=shards)


def words(count: int) -> dict[str, int]:
    """`count` token strings, each its own row."""
    return {f"w{number}": number for number in range(count)}


def read_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file, as it stands there."""
    with file.open("rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        return json.loads(source.read(length))


def _word_level(tokens: Mapping[str, int]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(tokens), "unk_token": next(iter(tokens))},
    }
