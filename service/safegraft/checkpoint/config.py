"""config.json: read, and refused when it says that the weights are quantised."""

from collections.abc import Iterator, Mapping
from typing import Any

from safegraft.checkpoint.findings import Findings, shown
from safegraft.checkpoint.strict_json import as_object, parse_object
from safegraft.errors import CheckpointError, Problem

CONFIG_FILE = "config.json"

_QUANTISATION_KEYS = ("quantization_config", "compression_config")


def read_config(sidecars: Mapping[str, bytes], checkpoint_name: str) -> dict[str, Any]:
    """Parse config.json. Raises CheckpointError when it is missing, broken or of quantised weights."""
    where = f"{checkpoint_name}/{CONFIG_FILE}"
    content = sidecars.get(CONFIG_FILE)
    if content is None:
        message = "is not there: a checkpoint is a folder with config.json and safetensors weights"
        raise CheckpointError(Problem(where, message))
    config = parse_object(content, where)
    findings = Findings(where)
    for key, method in _quantisation(config):
        findings.add(
            f"{key} says that the weights are quantised ({method}). Quantised weights cannot be merged: use the "
            f"original ones, or dequantise them (`model.dequantize()`, then `save_pretrained` writes no {key})"
        )
    findings.raise_if_any()
    return config


def subconfigs(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configs inside a config: (key, config) of text_config, vision_config and the like, at any depth."""
    for key, value in config.items():
        inner = as_object(value)
        if inner is not None and key.endswith("_config"):
            yield key, inner
            for inner_key, innermost in subconfigs(inner):
                yield f"{key}.{inner_key}", innermost


def _quantisation(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    places = [("", config), *((f"{key}.", inner) for key, inner in subconfigs(config))]
    for prefix, place in places:
        for key in _QUANTISATION_KEYS:
            found = place.get(key)
            if found:
                yield f"{prefix}{key}", _method(found)


def _method(found: Any) -> str:
    settings = as_object(found) or {}
    method = settings.get("quant_method")
    return f"method {shown(method)}" if isinstance(method, str) else "method not named"
