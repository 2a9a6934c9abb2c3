"""The files that come along with a model's weights, and what is changed in them on the way out.

Which files: an allow-list. A training folder holds logs, data and code of its owner; what is not
known to belong to a model, a tokenizer or a processor stays where it is. Licences always travel.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from safegraft.checkpoint.config import CONFIG_FILE, subconfigs
from safegraft.checkpoint.dtypes import FLOAT_NAMES, DType
from safegraft.checkpoint.findings import shown
from safegraft.checkpoint.strict_json import as_list, as_object, parse_object
from safegraft.checkpoint.types import Checkpoint

CHAT_TEMPLATES = "additional_chat_templates"  # the one sub-folder: transformers keeps named templates there
MAX_SIDECAR_BYTES = 64 * 2**20  # of one; the largest tokenizer.json in use has about half of that
MAX_SIDECARS_BYTES = 256 * 2**20  # of all of them together

_BELONGS = re.compile(
    r"""
      config\.json | generation_config.*\.json
    | .*tokenizer.*\.json | special_tokens_map\.json | added_tokens\.json | tekken\.json
    | .*vocab.*\.(json|txt) | .*merges.*\.txt | dict\.txt | bpe\.codes | normalizer\.json | byte_maps\.json
    | tokenizer\.model(\.v\w+)? | (spiece|spm|spm_char|sentencepiece(\.bpe)?|tiktoken)\.model | .*\.(spm|tiktoken)
    | .*processor.*\.json
    | [^/]*\.jinja | chat_template.*\.(json|txt)
    """,
    re.VERBOSE,
)
_NAMED_TEMPLATE = re.compile(rf"{CHAT_TEMPLATES}/[^/]+\.jinja")
_LICENCE = re.compile(
    r"(.+[-_. ])?(licen[cs]e|copying|copyright|notice|notices|use_policy|acceptable_use|terms_of_use)([-_. ].+)?",
    re.IGNORECASE,
)
_NEVER = re.compile(
    r"\..*|.*\.(py|pyc|ipynb|sh|safetensors|bin|pt|pth|ckpt|pkl|pickle|gguf|ggml|onnx|h5|msgpack|npz|tflite)",
    re.IGNORECASE,
)
_CONFIGS = re.compile(r"config\.json|.*_config.*\.json")  # of the sidecars, those that may hold an auto_map


def collect_sidecars(listing: Iterable[str]) -> list[str]:
    """Of the names of a folder's files ("name" or "additional_chat_templates/name"), those that come along; sorted."""
    return sorted(name for name in listing if name.isprintable() and _comes_along(name))


def output_sidecars(checkpoint: Checkpoint, dtype: DType | None) -> dict[str, bytes]:
    """The sidecars as they stand beside a result: no auto_map, and a config that names the result's dtype.

    dtype: of the result's weights; None keeps what config.json says. Files that need no change keep
    their bytes. Raises CheckpointError when a config file is not valid JSON.
    """
    files = {name: strip_auto_map(name, content, checkpoint.name) for name, content in checkpoint.sidecars.items()}
    if dtype is not None and CONFIG_FILE in files:
        files[CONFIG_FILE] = _with_dtype(files[CONFIG_FILE], dtype, f"{checkpoint.name}/{CONFIG_FILE}")
    return files


def strip_auto_map(name: str, content: bytes, checkpoint_name: str = "") -> bytes:
    """Remove every `auto_map` from a config file, at any depth: the code that it names does not come along.

    Anything else, and a config without one, comes back as the very same bytes.
    """
    if not _CONFIGS.fullmatch(name):
        return content
    config = parse_object(content, f"{checkpoint_name}/{name}" if checkpoint_name else name)
    owners = list(_auto_maps(config))
    for owner in owners:
        del owner["auto_map"]
    return dump_like(config, content) if owners else content


def sidecar_warnings(checkpoint: Checkpoint) -> list[str]:
    """What the reader of a plan must know about sidecars that are changed or left behind."""
    warnings: list[str] = []
    for name, content in checkpoint.sidecars.items():
        if not _CONFIGS.fullmatch(name):
            continue
        config = parse_object(content, f"{checkpoint.name}/{name}")
        classes = sorted({str(key) for owner in _auto_maps(config) for key in as_object(owner["auto_map"]) or {}})
        if name == CONFIG_FILE and "AutoConfig" in classes:
            model_type = shown(str(checkpoint.config.get("model_type")))
            warnings.append(
                f"{checkpoint.name} brings its own architecture code (auto_map in {name}). Code never comes along, so "
                f"the result loads only where transformers knows the model type {model_type} itself"
            )
        elif classes:
            warnings.append(f"{checkpoint.name}: auto_map ({', '.join(classes)}) is removed from {name}, its code too")
    return warnings


def _comes_along(name: str) -> bool:
    if _NAMED_TEMPLATE.fullmatch(name):
        return not name.split("/")[1].startswith(".")
    if "/" in name or _NEVER.fullmatch(name):
        return False
    return _BELONGS.fullmatch(name) is not None or _LICENCE.fullmatch(name) is not None


def _auto_maps(value: Any) -> Iterator[dict[str, Any]]:
    """Every object that holds an `auto_map`."""
    entries = as_object(value)
    if entries is not None:
        if "auto_map" in entries:
            yield entries
        for inner in entries.values():
            yield from _auto_maps(inner)
    for inner in as_list(value) or []:
        yield from _auto_maps(inner)


def _with_dtype(content: bytes, dtype: DType, where: str) -> bytes:
    """config.json with `dtype`: in its own keys, and where a sub-config already names one."""
    name = next((name for name, known in FLOAT_NAMES.items() if known is dtype), None)
    if name is None:
        raise ValueError(f"{dtype} is not a dtype of weights")
    config = parse_object(content, where)
    changed = False
    if "dtype" not in config and "torch_dtype" not in config:
        config["dtype"] = name
        changed = True
    for place in [config, *(inner for _, inner in subconfigs(config))]:
        for key in ("dtype", "torch_dtype"):
            if key in place and place[key] != name:
                place[key] = name
                changed = True
    return dump_like(config, content) if changed else content


def dump_like(value: Any, original: bytes) -> bytes:
    """As transformers writes configs: 2 spaces, keys in the order they had, ASCII where the file was ASCII."""
    # A lone surrogate, which UTF-8 cannot hold, can only have come from an escape.
    escape = original.isascii() or b"\\u" in original
    end = "\n" if original.endswith(b"\n") else ""
    return (json.dumps(value, indent=2, ensure_ascii=escape) + end).encode()
