"""`tokenizer` and `tokenizer_source` through mergekit 0.1.5 and through safegraft: the same tokens with the same rows.

One process runs all recipes through mergekit. The models are tiny Llamas with byte-level BPE tokenizers, trained on
different texts, so that they share some tokens in different rows; each has special tokens of its own. mergekit
numbers a union's new tokens in an order that changes from run to run, so rows are compared token by token.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import safegraft

DTYPES = ("float32", "bfloat16")
HEAD = """
merge_method: linear
base_model: "{base}"
models:
  - {model: "{base}", parameters: {weight: 0.2}}
  - {model: "{chat}", parameters: {weight: 0.5}}
  - {model: "{code}", parameters: {weight: 0.3}}
"""
PAIR = """
merge_method: linear
models:
  - {model: "{chat}", parameters: {weight: 0.5}}
  - {model: "{code}", parameters: {weight: 0.3}}
parameters: {normalize: false}
"""
# base is cut: its tokenizer has tokens beyond its rows. chat has more rows than tokens.
RECIPES = {
    "union": HEAD + "tokenizer_source: union",
    "base": HEAD + "tokenizer_source: base",
    "model": HEAD + 'tokenizer_source: "{chat}"',
    "not-merged": PAIR + 'base_model: "{chat}"\ntokenizer_source: "{base}"',
    "padded": HEAD + "tokenizer: {source: base, pad_to_multiple_of: 64}",
    "default-source": HEAD + "tokenizer: {pad_to_multiple_of: 64}",
    "cast": HEAD + "tokenizer_source: union\ndtype: bfloat16",
    "base-apart": """
merge_method: task_arithmetic
base_model: "{base}"
models:
  - {model: "{chat}", parameters: {weight: 0.5}}
  - {model: "{code}", parameters: {weight: 0.25}}
tokenizer_source: union
dtype: float32
""",
    "tokens": HEAD
    + """
tokenizer:
  source: union
  tokens:
    <|chat|>: {source: "{chat}", force: true}
    <|code|>: {source: {kind: model_token, model: "{base}", token: "e"}}
    <|both|>: {source: {kind: model_token, model: "{chat}", token_id: 7}, force: true}
    <|new|>: {source: {kind: zero}}
    <|newer|>: {source: {kind: model_token, model: "{code}", token: "t"}}
    "a": {source: {kind: zero}, force: true}
""",
    "slices": """
merge_method: linear
base_model: "{base}"
slices:
  - sources:
      - {model: "{base}", layer_range: [0, 1]}
      - {model: "{chat}", layer_range: [0, 1]}
  - sources:
      - {model: "{chat}", layer_range: [1, 2]}
      - {model: "{code}", layer_range: [1, 2]}
parameters: {weight: 0.75, normalize: false}
tokenizer_source: union
""",
    "tied": """
merge_method: linear
models:
  - {model: "{tied}", parameters: {weight: 0.5}}
  - {model: "{tied2}", parameters: {weight: 0.5}}
base_model: "{tied}"
tokenizer_source: union
""",
}
MODELS = ("base", "chat", "code", "tied", "tied2")

# Runs in a process of its own: mergekit warns when it is imported, and here warnings are errors.
MERGEKIT = r"""
import json, sys
from pathlib import Path
import torch, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS = {
    "base": "the cat sat on the mat and the rat ate the oat in the heat",
    "chat": "hello there how are you today the weather there is rather nice to day",
    "code": "def return import the self self.return for else the elif rather import",
    "tied": "one two three four other another brother",
    "tied2": "other mother father brother three",
}
SPECIAL = {
    "base": ["<s>", "</s>", "<|both|>"],
    "chat": ["</s>", "<s>", "<|chat|>", "<|both|>"],
    "code": ["<s>", "</s>", "<pad>", "<|both|>", "<|code|>"],
    "tied": ["<s>", "</s>"],
    "tied2": ["</s>", "<s>", "<x>"],
}
ROWS = {"chat": 16, "base": -3}  # more or fewer than tokens

root, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
for number, (name, text) in enumerate(TEXTS.items()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300 + 8 * number, special_tokens=SPECIAL[name], min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_tokens({"code": ["tool"], "base": ["<u1>", "<u2>", "hello"]}.get(name, []))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    tokens = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=len(tokens) + ROWS.get(name, 0), hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=tokens["<s>"], eos_token_id=tokens["</s>"], pad_token_id=None,
        tie_word_embeddings=name.startswith("tied"),
    )
    torch.manual_seed(number)
    model = LlamaForCausalLM(config)
    for tensor in model.state_dict().values():
        tensor.add_(torch.randn_like(tensor), alpha=0.1)
    for dtype in ("float32", "bfloat16"):
        folder = root / f"{dtype}-{name}"
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        fast.save_pretrained(folder)
options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
for out, recipe in jobs.items():
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(recipe)), out, options)
"""


@dataclass(frozen=True)
class Result:
    """A folder: its tensors, with vocabulary rows by token, its tokenizer, its config."""

    tensors: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerBase
    config: dict[str, object]

    @classmethod
    def load(cls, folder: Path) -> "Result":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        return cls(load_file(folder / "model.safetensors"), tokenizer, config)

    def rows(self, name: str, tokens: list[str]) -> torch.Tensor:
        ids = self.tokenizer.get_vocab()
        return self.tensors[name][[ids[token] for token in tokens]]

    def is_vocabulary(self, name: str) -> bool:
        return self.tensors[name].shape[0] == self.config["vocab_size"]


@dataclass(frozen=True)
class Bench:
    root: Path

    def recipe(self, name: str, dtype: str) -> str:
        text = RECIPES[name]
        for model in MODELS:
            text = text.replace(f"{{{model}}}", str(self.root / f"{dtype}-{model}"))
        return text

    def theirs(self, name: str, dtype: str) -> Result:
        return Result.load(self.root / f"{name}-{dtype}")

    def ours(self, name: str, dtype: str) -> Result:
        out = self.root / f"ours-{name}-{dtype}"
        if not out.exists():
            safegraft.merge(yaml.safe_load(self.recipe(name, dtype)), out=out, threads=1)
        return Result.load(out)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    built = Bench(tmp_path_factory.mktemp("tokenizer"))
    jobs = {str(built.root / f"{name}-{dtype}"): built.recipe(name, dtype) for name in RECIPES for dtype in DTYPES}
    command = [sys.executable, "-W", "ignore", "-c", MERGEKIT, str(built.root), json.dumps(jobs)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert run.returncode == 0, run.stderr[-4000:]
    return built


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RECIPES)
def test_the_same_tokens_with_the_same_rows(bench: Bench, name: str, dtype: str) -> None:
    theirs, ours = bench.theirs(name, dtype), bench.ours(name, dtype)
    tokens = list(theirs.tokenizer.get_vocab())
    assert set(ours.tokenizer.get_vocab()) == set(tokens)
    assert ours.config["vocab_size"] == theirs.config["vocab_size"]
    assert ours.tensors.keys() == theirs.tensors.keys()
    vocabulary = [tensor for tensor in theirs.tensors if theirs.is_vocabulary(tensor)]
    assert vocabulary
    for tensor, expected in theirs.tensors.items():
        found = ours.tensors[tensor]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), tensor
        if tensor in vocabulary:
            found, expected = ours.rows(tensor, tokens), theirs.rows(tensor, tokens)
        assert torch.equal(found, expected), tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["padded", "default-source"])
def test_padding_rows_are_the_mean_of_all_others(bench: Bench, name: str, dtype: str) -> None:
    """mergekit adds rows up in float32, we in double precision: the last bit may differ."""
    theirs, ours = bench.theirs(name, dtype), bench.ours(name, dtype)
    count = len(ours.tokenizer)
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        found, expected = ours.tensors[tensor][count:], theirs.tensors[tensor][count:]
        assert found.shape[0] == expected.shape[0] > 0
        torch.testing.assert_close(found, expected, rtol=2**-7 if dtype == "bfloat16" else 1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_tokenizers_read_text_alike(bench: Bench, name: str) -> None:
    theirs, ours = bench.theirs(name, "float32"), bench.ours(name, "float32")
    for text in ("<s>the tool <|both|> self.return hello<|chat|></s>", "rather <|code|>import\n  mother <x> heat"):
        assert ours.tokenizer.tokenize(text) == theirs.tokenizer.tokenize(text)
    assert ours.tokenizer.special_tokens_map == theirs.tokenizer.special_tokens_map


@pytest.mark.parametrize("name", RECIPES)
def test_the_result_loads_and_writes_text(bench: Bench, name: str) -> None:
    ours = bench.ours(name, "float32")
    folder = bench.root / f"ours-{name}-float32"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {problem: keys for problem, keys in info.items() if keys} == {}
    assert model.config.eos_token_id == ours.tokenizer.eos_token_id
    prompt = ours.tokenizer("the cat", return_tensors="pt").input_ids
    written = model.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert ours.tokenizer.decode(written[0])
