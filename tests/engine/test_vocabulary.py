"""Vocabulary tensors with the rows of another vocabulary: values by hand, any range, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import safegraft
from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.folder import FolderCheckpoint
from safegraft.engine.token_ids import TokenIds
from safegraft.engine.vocabulary import (
    AVERAGE,
    PADDING,
    ZERO,
    Donor,
    RowSources,
    VocabularyCheckpoint,
    VocabularyTensor,
)
from safegraft.errors import CheckpointError, InputError, RecipeError
from safegraft.testing import llama_config, llama_tensors, tiny_llm, tiny_lvlm, write_checkpoint

EMBEDDING = "model.embed_tokens.weight"


def llm(folder: Path, tokens: list[str], *, seed: int = 0, rows: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny Llama with these tokens in this order, and padding up to `rows`."""
    rows = rows or len(tokens)
    config = llama_config(vocab=rows, dtype=str(dtype).removeprefix("torch."))
    config |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    rowed = {token: row for row, token in enumerate(tokens)}
    return write_checkpoint(folder, llama_tensors(vocab=rows, seed=seed, dtype=dtype), config, tokens=rowed)


def recipe(models: list[Path], base: Path | None = None, **more: Any) -> dict[str, Any]:
    entries = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    return {"merge_method": "linear", "models": entries, "base_model": None if base is None else str(base), **more}


def merged(asked: dict[str, Any], name: str = EMBEDDING) -> torch.Tensor:
    with safegraft.open(asked, threads=1) as found:
        return found.tensors[name]


def rows_of(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[EMBEDDING]


# -- which row is whose -------------------------------------------------------------------------------


@pytest.fixture
def trio(tmp_path: Path) -> tuple[Path, Path, Path]:
    """a: <s> </s> x y; b: x z </s> <s>; c: z w <s> </s>."""
    a = llm(tmp_path / "a", ["<s>", "</s>", "x", "y"], seed=1)
    b = llm(tmp_path / "b", ["x", "z", "</s>", "<s>"], seed=2)
    return a, b, llm(tmp_path / "c", ["z", "w", "<s>", "</s>"], seed=3)


def test_a_union_by_hand(trio: tuple[Path, Path, Path]) -> None:
    """Base a. Union: <s> </s> x y, then b's z, then c's w. Each model's row is its own, or:
    x: c lacks it, a is the base and has it. y: only a has it. z: a lacks it, b and c have it and the base has not, so
    a takes their mean. w: only c has it."""
    a, b, c = map(rows_of, trio)
    z = (b[1] + c[0]) / 2
    expected = [
        (a[0] + b[3] + c[2]) / 3,
        (a[1] + b[2] + c[3]) / 3,
        (a[2] + b[0] + a[2]) / 3,
        a[3],
        (z + b[1] + c[0]) / 3,
        c[1],
    ]
    torch.testing.assert_close(
        merged(recipe(list(trio), trio[0], tokenizer_source="union")), torch.stack(expected), rtol=1e-6, atol=1e-6
    )


def test_without_a_base_the_mean_is_taken_of_all_that_have_the_token(trio: tuple[Path, Path, Path]) -> None:
    """Host a, no base: for x, c takes the mean of a's and b's rows."""
    a, b, _ = map(rows_of, trio)
    found = merged(recipe(list(trio), tokenizer_source="union"))
    torch.testing.assert_close(found[2], (a[2] + b[0] + (a[2] + b[0]) / 2) / 3, rtol=1e-6, atol=1e-6)


def test_tokens_of_the_recipe(trio: tuple[Path, Path, Path]) -> None:
    """y from b's x for those that lack it; z forced to zero; <new> is the same row in all, whose mean it stays."""
    a, b, c = map(rows_of, trio)
    tokens = {
        "y": {"source": {"kind": "model_token", "model": str(trio[1]), "token": "x"}},
        "z": {"source": {"kind": "zero"}, "force": True},
        "<new>": {"source": {"kind": "model_token", "model": str(trio[2]), "token_id": 1}},
        "w": {"source": str(trio[2])},
    }
    asked = recipe(list(trio), trio[0], tokenizer={"source": "union", "tokens": tokens, "pad_to_multiple_of": 4})
    found = merged(asked)
    assert found.shape == (8, 8)
    torch.testing.assert_close(found[3], (a[3] + b[0] + b[0]) / 3, rtol=1e-6, atol=1e-6)
    assert found[4].tolist() == [0] * 8
    torch.testing.assert_close(found[5], c[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[6], c[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[7], found[:7].mean(0), rtol=1e-5, atol=1e-6)


def test_the_output_head_has_rows_of_its_own(trio: tuple[Path, Path, Path]) -> None:
    heads = [load_file(folder / "model.safetensors")["lm_head.weight"] for folder in trio]
    found = merged(recipe(list(trio), trio[0], tokenizer_source="union"), "lm_head.weight")
    torch.testing.assert_close(found[5], heads[2][1], rtol=1e-6, atol=1e-6)


def test_sixteen_bit_rows_are_rounded_after_every_step(tmp_path: Path) -> None:
    """a lacks z, which b, c and d have: ((b + c) + d) / 3, each step in bfloat16, as mergekit does."""
    kind = {"dtype": torch.bfloat16}
    a = llm(tmp_path / "a", ["<s>", "</s>", "x"], **kind)
    others = [llm(tmp_path / name, ["<s>", "</s>", "z"], seed=seed, **kind) for seed, name in enumerate("bcd", 1)]
    b, c, d = (rows_of(folder)[2] for folder in others)
    entries = recipe([a, *others], a, tokenizer_source="union")
    for entry in entries["models"][1:]:
        entry["parameters"]["weight"] = 0
    found = merged(entries)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[3], ((b + c) + d) / 3)


def test_inputs_of_two_dtypes_give_the_hosts(tmp_path: Path) -> None:
    a = llm(tmp_path / "a", ["<s>", "</s>", "x"], dtype=torch.bfloat16)
    b = llm(tmp_path / "b", ["</s>", "<s>", "y"], seed=1)
    found = merged(recipe([a, b], a, tokenizer_source="union"))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[3], rows_of(b)[2].bfloat16())  # both have b's row, in float32, until the result is rounded


def test_cuts_and_threads_change_nothing(trio: tuple[Path, Path, Path]) -> None:
    asked = recipe(list(trio), trio[0], tokenizer={"pad_to_multiple_of": 16})
    with safegraft.open(asked, threads=3) as found:
        file = found.files["model.safetensors"]
        whole = file.read()
        parts = [file.read(start, min(start + 101, file.size)) for start in range(0, file.size, 101)]
    assert b"".join(parts) == whole


# -- reading ------------------------------------------------------------------------------------------


def test_any_range_of_bytes_can_be_read(tmp_path: Path) -> None:
    """Donors [a0 a1 a2] and [b0 b1 b2]; rows: a1 a2 b0 0 (a0+b2)/2 pad pad, pad the mean of the first five."""
    checkpoints = [FolderCheckpoint(tiny_llm(tmp_path / n, vocab=3, seed=seed), n) for seed, n in enumerate("ab")]
    a, b = (rows_of(tmp_path / name) for name in "ab")
    donors = [Donor(one, one.tensors[EMBEDDING]) for one in checkpoints]
    rows = RowSources(
        np.array([0, 0, 1, ZERO, AVERAGE, PADDING, PADDING], np.int16),
        np.array([1, 2, 0, 0, 0, 0, 0], np.int64),
        5,
        {4: [(0, 0), (1, 2)]},
    )
    own = checkpoints[0].tensors[EMBEDDING]
    for dtype in (DType.F32, DType.F64):
        info = type(own)(EMBEDDING, dtype, (7, 8), own.file, own.offset)
        tensor = VocabularyTensor(info, EMBEDDING, donors, rows)
        shown = VocabularyCheckpoint(checkpoints[0], [tensor], {"t": 0}, {}, {})
        expected = torch.stack([a[1], a[2], b[0], torch.zeros(8), (a[0] + b[2]) / 2]).to(dtype.torch)
        if dtype is DType.F64:
            expected[4] = (a[0].double() + b[2].double()) / 2
        expected = torch.cat([expected, expected.double().mean(0).to(dtype.torch).expand(2, 8)])
        content = bytearray(info.nbytes)
        shown.read_into(info, 0, memoryview(content))
        torch.testing.assert_close(torch.frombuffer(content, dtype=dtype.torch).view(7, 8), expected, rtol=1e-7, atol=0)
        for start, stop in [(0, 0), (0, 1), (3, 90), (31, 33), (100, 161), (info.nbytes - 5, info.nbytes)]:
            part = bytearray(stop - start)
            shown.read_into(info, start, memoryview(part))
            assert part == content[start:stop]
        with pytest.raises(ValueError, match="out of range"):
            shown.read_into(info, info.nbytes, memoryview(bytearray(1)))
    for checkpoint in checkpoints:
        checkpoint.close()


# -- files and configs --------------------------------------------------------------------------------


def test_config_and_tokenizer_say_what_the_weights_hold(trio: tuple[Path, Path, Path], tmp_path: Path) -> None:
    a, b, _ = trio
    (b / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1], "max_new_tokens": 4}))
    asked = recipe([a, b], b, tokenizer_source=str(a))
    safegraft.merge(asked, out=tmp_path / "out", threads=1)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (4, 2, None)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [1], "max_new_tokens": 4}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (a / "tokenizer.json").read_bytes()


def test_an_lvlms_image_token_follows_its_row(tmp_path: Path) -> None:
    """The LLM's tokens come first in the union, and the LVLM's image token gets another row."""
    llm = tiny_llm(tmp_path / "llm", vocab=30)
    lvlm = tiny_lvlm(tmp_path / "lvlm", vocab=24)
    tokens = {f"v{row}": row for row in range(23)} | {"<image>": 23}
    write_checkpoint(
        lvlm, load_file(lvlm / "model.safetensors"), json.loads((lvlm / "config.json").read_text()), tokens=tokens
    )
    safegraft.merge(recipe([llm, lvlm], llm, tokenizer_source="union"), out=tmp_path / "out", threads=1)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    vocabulary = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    rows = {one["content"]: one["id"] for one in vocabulary["added_tokens"]}
    assert config["image_token_index"] == rows["<image>"] == 53
    assert (config["text_config"]["vocab_size"], "vocab_size" in config) == (54, False)


# -- what is refused ----------------------------------------------------------------------------------


def refused(kind: type[Exception], asked: dict[str, Any]) -> str:
    with pytest.raises(kind) as caught:
        safegraft.plan(asked)
    return str(caught.value)


def test_a_vocabulary_without_the_image_token(tmp_path: Path) -> None:
    llm, lvlm = tiny_llm(tmp_path / "llm"), tiny_lvlm(tmp_path / "lvlm")
    message = refused(RecipeError, recipe([llm, lvlm], llm, tokenizer_source="base"))
    assert "image_token_index is row 23, 'w23', and the new vocabulary has no such token" in message


def test_a_model_without_a_tokenizer(trio: tuple[Path, Path, Path]) -> None:
    (trio[1] / "tokenizer.json").unlink()
    message = refused(InputError, recipe(list(trio), trio[0], tokenizer_source="union"))
    assert "has no tokenizer, and `tokenizer` pairs vocabularies by token; add the tokenizer files" in message
    message = refused(CheckpointError, recipe(list(trio), trio[0], tokenizer_source=str(trio[1])))
    assert "has no tokenizer, and the result's is to be made from it" in message


def test_tokens_that_no_model_has(trio: tuple[Path, Path, Path]) -> None:
    a, b, _ = map(str, trio)
    tokens = {
        "x": {"source": "elsewhere"},
        "y": {"source": b},
        "z": {"source": {"kind": "model_token", "model": a, "token": "q"}},
        "w": {"source": {"kind": "model_token", "model": a, "token_id": 4}},
    }
    message = refused(RecipeError, recipe(list(trio), trio[0], tokenizer={"tokens": tokens}))
    assert "tokenizer.tokens.x.source: 'elsewhere' is not one of this recipe's models" in message
    assert f"tokenizer.tokens.y.source: {b} has no token 'y'" in message
    assert f"tokenizer.tokens.z.source: {a} has no token 'q'" in message
    assert f"tokenizer.tokens.w.source: {a} has no row 4; it has 4" in message


def test_rows_beyond_the_vocabulary(tmp_path: Path) -> None:
    a = llm(tmp_path / "a", ["<s>", "</s>", "x"], rows=6)
    config = json.loads((a / "config.json").read_text())
    (a / "config.json").write_text(json.dumps({**config, "vocab_size": 4}))
    message = refused(InputError, recipe([a, llm(tmp_path / "b", ["<s>", "</s>", "y"])], a, tokenizer_source="union"))
    assert "has 6 rows, its config's vocab_size is 4: rows beyond the vocabulary cannot be given new tokens" in message


def test_a_token_that_nobody_has_is_told(trio: tuple[Path, Path, Path]) -> None:
    a, b, c = trio
    plan = safegraft.plan(recipe([a, b], a, tokenizer_source=str(c)))
    try:
        assert any("1 tokens are in none of the models" in one and "'w'" in one for one in plan.warnings)
        assert plan.host_model == str(a)
    finally:
        plan.close()


def test_rows_that_configs_name() -> None:
    ids = TokenIds({"<s>": 0, "</s>": 1, "<image>": 2}, {"</s>": 0, "<image>": 5, "<s>": 7})
    config = {
        "bos_token_id": 0,
        "eos_token_id": [1, 9],
        "pad_token_id": -1,
        "image_token_index": 2,
        "max_token_index": "x",
        "text_config": {"bos_token_id": 0, "hidden_size": 1},
        "vision_config": {"pad_token_id": 1},
    }
    assert ids.moved(config, "config.json") == {
        "bos_token_id": 7,
        "eos_token_id": [0],
        "pad_token_id": -1,
        "image_token_index": 5,
        "max_token_index": "x",
        "text_config": {"bos_token_id": 7, "hidden_size": 1},
        "vision_config": {"pad_token_id": 1},
    }
    assert (len(ids.notes), ids.problems) == (1, [])
    ids.moved({"video_token_id": 8}, "config.json")
    assert "video_token_id is row 8, which is no token of its own" in ids.problems[0]
