"""A recipe as JSON-able data: every default filled in, keys in a fixed order, no path of any machine.

Recipes that ask for the same give the same data, so a plan's digest can stand on it; and the data is
itself a recipe, so the manifest of a result can be merged again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from safegraft.recipe.model import (
    CalibrationSet,
    Condition,
    ModelEntry,
    Module,
    OutputSlice,
    Recipe,
    Scalar,
    Setting,
    Settings,
    TokenEmbedding,
    TokenizerChoice,
)

_EXACT = 2**53  # below it a float with no fraction is one integer


def canonical(recipe: Recipe, rename: Mapping[str, str]) -> dict[str, Any]:
    """Return the canonical form of `recipe`.

    rename: model reference -> public name, for every model the recipe names. Two models must not share
    a name, or the result no longer says which is which.
    """
    form: dict[str, Any] = {
        "merge_method": recipe.merge_method,
        "base_model": None if recipe.base_model is None else rename[recipe.base_model],
        "host_model": None if recipe.host_model is None else rename[recipe.host_model],
        "models": [_model(entry, rename) for entry in recipe.models],
        "parameters": _settings(recipe.parameters),
        "dtype": recipe.dtype,
        "out_dtype": recipe.out_dtype,
        "embeddings": recipe.embeddings,
        "seed": recipe.seed,
        "on_nan": recipe.on_nan,
        "overrides": [
            {
                "tensors": override.tensors,
                "method": override.method,
                "parameters": _settings(override.parameters),
                "models": [
                    {"model": rename[model], "parameters": _settings(settings)}
                    for model, settings in override.models.items()
                ],
            }
            for override in recipe.overrides
        ],
    }
    # Keys that most recipes do not have are left out, so that theirs stay as they were before there were such keys.
    if recipe.modifiers:
        form["modifiers"] = [{"name": one.name, "parameters": _settings(one.parameters)} for one in recipe.modifiers]
    if recipe.slices:
        form["slices"] = [_slice(one, rename) for one in recipe.slices]
    if recipe.modules:
        form["modules"] = {one.name: _module(one, rename) for one in recipe.modules}
    if recipe.tokenizer:
        form["tokenizer"] = _tokenizer(recipe.tokenizer, rename)
    if recipe.chat_template is not None:
        form["chat_template"] = recipe.chat_template
    return form | _calibration(recipe.calibration)


def _tokenizer(choice: TokenizerChoice, rename: Mapping[str, str]) -> dict[str, Any]:
    return {
        "source": choice.source if choice.model is None else rename[choice.model],
        "tokens": {one.token: {"source": _row(one, rename), "force": one.force} for one in choice.tokens},
        "pad_to_multiple_of": choice.pad_to_multiple_of,
    }


def _row(one: TokenEmbedding, rename: Mapping[str, str]) -> Any:
    if one.zero:
        return {"kind": "zero"}
    if one.model is None or (one.other is None and one.row is None):
        return None if one.model is None else rename[one.model]
    named = {"token": one.other} if one.other is not None else {"token_id": one.row}
    return {"kind": "model_token", "model": rename[one.model], **named}


def _model(entry: ModelEntry, rename: Mapping[str, str]) -> dict[str, Any]:
    form: dict[str, Any] = {
        "model": rename[entry.model],
        "parameters": _settings(entry.parameters),
        "tensor_map": dict(sorted(entry.tensor_map.items())),  # its order means nothing: the longest prefix wins
    }
    if entry.role is not None:
        form["role"] = entry.role
    return form | _calibration(entry.calibration)


def _calibration(sets: Sequence[CalibrationSet]) -> dict[str, Any]:
    """Of the data no more than the file's name: which rows they were, a plan's digest holds."""
    if not sets:
        return {}
    return {
        "calibration": {
            one.name: {
                "data": one.data.rstrip("/").rpartition("/")[2],
                **dict(sorted(one.fields.items())),
                "samples": one.samples,
                "seed": one.seed,
                "max_length": one.max_length,
            }
            for one in sets
        }
    }


def _slice(one: OutputSlice, rename: Mapping[str, str]) -> dict[str, Any]:
    return {
        "sources": [
            {
                "model": rename[source.model],
                "layer_range": [source.first, source.stop],
                "parameters": _settings(source.parameters),
            }
            for source in one.sources
        ],
        "base_model": None if one.base_model is None else rename[one.base_model],
        "parameters": _settings(one.parameters),
    }


def _module(one: Module, rename: Mapping[str, str]) -> dict[str, Any]:
    made_of = (
        {"models": [_model(entry, rename) for entry in one.models]}
        if one.models
        else {"slices": [_slice(part, rename) for part in one.slices]}
    )
    return {**made_of, "parameters": _settings(one.parameters)}


def _settings(settings: Settings) -> dict[str, Any]:
    return {name: _setting(settings[name]) for name in sorted(settings)}


def _setting(setting: Setting) -> Any:
    if not isinstance(setting, tuple):
        return _scalar(setting)
    return [_condition(item) if isinstance(item, Condition) else _scalar(item) for item in setting]


def _condition(condition: Condition) -> dict[str, Any]:
    every = condition.filter is None or condition.filter in ("", "*")
    return {"filter": None if every else condition.filter, "value": _setting(condition.value)}


def _scalar(value: Scalar) -> Scalar:
    """1.0 and 1 are one number, however it was written; -0.0 keeps its sign, which can reach the result."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT
    return int(value) if whole and str(value) != "-0.0" else value
