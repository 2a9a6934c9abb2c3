"""Checkpoint folders made from a seed: a base, models that differ from it by small task vectors, an LVLM.

Every block of every tensor has its own random numbers, so that what is written depends on nothing but the seed, in
whatever order and on however many threads. A folder gets its name when it is complete, and is then used again.
"""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.shapes import EXTRA_TOKENS, ITEM_BYTES, LANGUAGE, SIZES, Size, Tensor

BASE, LVLM = "base", "lvlm"
BLOCK_ELEMENTS = 1 << 21
WEIGHT_SPREAD = 0.02  # standard deviation of a weight ...
TASK_SPREAD = 0.001  # ... and of what fine-tuning has changed: 5 % of it
MADE = 1  # count up when the same seed gives other bytes


class Sets:
    """The folders below `root`, written when they are asked for."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root = root
        self.seed = seed

    def model(self, size: str, name: str) -> Path:
        """A checkpoint with weights: "base", "model-1", "model-2", ..., or "lvlm"."""
        return self._made(size, name, weights=True)

    def headers(self, size: str, name: str) -> Path:
        """The same with holes for weights: it takes no disk space, and is good for plans alone."""
        return self._made(size, name, weights=False)

    def _made(self, size: str, name: str, *, weights: bool) -> Path:
        shape = SIZES[size]
        version = hashlib.sha256(repr((MADE, self.seed, shape)).encode()).hexdigest()[:8]
        folder = self.root / f"{size}-{version}" / (name if weights else f"{name}-headers")
        if folder.exists():
            return folder
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _write(draft, shape, name, self.seed if weights else None)
        draft.rename(folder)
        return folder


def _write(folder: Path, size: Size, name: str, seed: int | None) -> None:
    is_lvlm = name == LVLM
    vocabulary = size.language.vocabulary
    extra = EXTRA_TOKENS if is_lvlm else 0
    _write_json(folder / "config.json", size.lvlm_config() if is_lvlm else size.llm_config())
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary, extra))
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    if is_lvlm:
        _write_json(folder / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"})
    tensors = list(size.lvlm() if is_lvlm else size.llm())
    shards = list(_shards(tensors, size.shard_bytes))
    if len(shards) == 1:
        _write_weights(folder / "model.safetensors", shards[0], name, seed)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys((tensor for tensor, _ in shard), file)
        _write_weights(folder / file, shard, name, seed)
    total = sum(map(_nbytes, tensors))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_weights(file: Path, tensors: Sequence[Tensor], model: str, seed: int | None) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        name, shape = tensor
        start, end = end, end + _nbytes(tensor)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with file.open("wb") as target:
        target.write(len(text).to_bytes(8, "little") + text)
        target.truncate(begin + end)
        if seed is not None:
            target.flush()
            _fill(target.fileno(), begin, tensors, model, seed)


def _fill(fd: int, begin: int, tensors: Sequence[Tensor], model: str, seed: int) -> None:
    def put(at: int, tensor: Tensor, block: int) -> None:
        content = memoryview(_block(seed, model, tensor, block).tobytes())
        while len(content):
            written = os.pwrite(fd, content, at)
            at, content = at + written, content[written:]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        work = [pool.submit(put, begin + at, tensor, block) for at, tensor, block in _blocks(tensors)]
        for one in work:
            one.result()


def _blocks(tensors: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, int]]:
    """Where each block begins, in bytes, and whose it is."""
    start = 0
    for tensor in tensors:
        for block in range(-(-math.prod(tensor[1]) // BLOCK_ELEMENTS)):
            yield start + block * BLOCK_ELEMENTS * ITEM_BYTES, tensor, block
        start += _nbytes(tensor)


def _block(seed: int, model: str, tensor: Tensor, block: int) -> NDArray[np.uint16]:
    """A block's values as the bits of bfloat16. The language model in an LVLM differs from the base, too."""
    name, shape = tensor
    plain = name.removeprefix(LANGUAGE)
    count = min(BLOCK_ELEMENTS, math.prod(shape) - block * BLOCK_ELEMENTS)
    values = _normal(seed, "base", plain, block, count)
    values *= WEIGHT_SPREAD
    if plain.endswith(("norm.weight", "layernorm.weight", "norm1.weight", "norm2.weight")):
        values += 1
    if model != BASE:
        values += TASK_SPREAD * _normal(seed, model, plain, block, count)
    return _bfloat16(values)


def _normal(seed: int, model: str, tensor: str, block: int, count: int) -> NDArray[np.float32]:
    source = np.random.SFC64(np.random.SeedSequence([seed, _number(model), _number(tensor), block]))
    return np.random.Generator(source).standard_normal(count, dtype=np.float32)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    bits += ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    return (bits >> np.uint32(16)).astype(np.uint16)


def _shards(tensors: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    held = 0
    for tensor in tensors:
        if shard and held + _nbytes(tensor) > most:
            yield shard
            shard, held = [], 0
        shard.append(tensor)
        held += _nbytes(tensor)
    yield shard


def _tokenizer(vocabulary: int, extra: int) -> dict[str, Any]:
    names = [f"w{number}" for number in range(vocabulary)] + [f"<extra_{number}>" for number in range(extra)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {name: row for row, name in enumerate(names)}, "unk_token": "w0"},
    }


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n")


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor[1]) * ITEM_BYTES


def _number(name: str) -> int:
    return zlib.crc32(name.encode())
