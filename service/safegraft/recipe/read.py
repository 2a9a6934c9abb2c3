"""Reads a recipe: mergekit's YAML in the `models:` form, plus safegraft's keys (docs/recipe.md).

Keys, types and references are checked here, all problems at once, each with its place. Whether methods,
parameters and models exist is the planner's business.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from safegraft.errors import Problem, RecipeError
from safegraft.recipe.calibration import MAX_SEED, read_calibration
from safegraft.recipe.document import MAX_CHARACTERS, Document, brief, from_mapping, from_text
from safegraft.recipe.model import (
    At,
    Condition,
    ModelEntry,
    ModifierEntry,
    Override,
    Recipe,
    Scalar,
    Setting,
    Settings,
)
from safegraft.recipe.reference import FolderExists, parse_reference
from safegraft.recipe.slices import Pieces, read_modules, read_slices
from safegraft.recipe.tokenizer import read_chat_template, read_tokenizer
from safegraft.recipe.values import Values, closest, shown

DTYPES = ("bfloat16", "float16", "float32", "float64")
_MAX_INTEGER = 2**63 - 1

_KEYS = (
    "models",
    "merge_method",
    "base_model",
    "host_model",
    "parameters",
    "dtype",
    "out_dtype",
    "embeddings",
    "seed",
    "on_nan",
    "overrides",
    "modifiers",
    "calibration",
    "slices",
    "modules",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
)
# A number as YAML 1.2 and mergekit's parameters read it; YAML 1.1 takes "1e-5" and "-.5" for text.
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.?(?:nan|inf|infinity)", re.IGNORECASE)


def folder_is_here(reference: str) -> bool:
    """Whether a model reference is the path of a folder on this machine."""
    return os.path.isdir(os.path.expanduser(reference))


def read_recipe(
    source: Path | str | Mapping[str, Any],
    name: str | None = None,
    *,
    folder_exists: FolderExists = folder_is_here,
) -> Recipe:
    """Read a recipe.

    source: a path; a str that is YAML text (it has a line break, or is a one-line mapping such as
        "{merge_method: linear, ...}") or else a path; or a mapping made in Python.
    name: what messages call the recipe; default: the file's name, else "recipe".
    folder_exists: decides whether a model reference with "@" or "+" in it is just a folder's name.

    Raises RecipeError with every problem found.
    """
    if isinstance(source, Mapping):
        return _read(from_mapping(source, name or "recipe"), folder_exists)
    if isinstance(source, str) and _is_text(source):
        return parse_recipe(source, name or "recipe", folder_exists=folder_exists)
    path = Path(source)
    return parse_recipe(_file_text(path), name or path.name, folder_exists=folder_exists)


def parse_recipe(text: str, name: str = "recipe", *, folder_exists: FolderExists = folder_is_here) -> Recipe:
    """Read a recipe from YAML text, which is never taken for a path. For text that a stranger sent."""
    return _read(from_text(text, name), folder_exists)


def reference_problem(text: str, folder_exists: FolderExists) -> str | None:
    """What is wrong with a model reference, or None when it can stand."""
    try:
        parse_reference(text, folder_exists)
    except ValueError as error:
        return str(error)
    return None


def _is_text(source: str) -> bool:
    if "\n" in source or source.lstrip().startswith("{"):
        return True
    return ": " in source and not os.path.exists(source)


def _file_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_CHARACTERS + 1)  # UTF-8 takes at most 4 bytes a character
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(Problem("", f"the recipe {brief(str(path), 300)} cannot be read: {reason}")) from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(Problem(f"{path.name}:{line}", "not UTF-8 text: this is not a recipe")) from error


def _read(document: Document, folder_exists: FolderExists) -> Recipe:
    return _Reader(document, folder_exists).recipe()


class _Reader(Values):
    """Turns plain data into a Recipe."""

    def __init__(self, document: Document, folder_exists: FolderExists) -> None:
        super().__init__(document.findings)
        self._document = document
        self._folder_exists = folder_exists

    def recipe(self) -> Recipe:
        if self._document.data is None:
            self.findings.add((), "is empty: a recipe names `models` and a `merge_method`")
        top = self.mapping((), self._document.data, _KEYS)
        self._check_one_of(top)
        pieces = Pieces(self._required_reference, self._optional_reference, self._settings, self._whole_models)
        slices = read_slices(self, pieces, ("slices",), top.get("slices"))
        modules = read_modules(self, pieces, ("modules",), top.get("modules"))
        instead = [key for key in ("slices", "modules") if top.get(key) is not None]
        models = self._models(("models",), top.get("models"), instead)
        base_model = self._optional_reference(("base_model",), top.get("base_model"))
        recipe = Recipe(
            models=models,
            merge_method=self._method(top.get("merge_method")),
            base_model=base_model,
            parameters=self._settings(("parameters",), top.get("parameters")),
            dtype=self._dtype(("dtype",), top.get("dtype")),
            out_dtype=self._dtype(("out_dtype",), top.get("out_dtype")),
            host_model=self._optional_reference(("host_model",), top.get("host_model")),
            embeddings=cast(
                Literal["merge", "host"],
                self.choice(("embeddings",), top.get("embeddings"), ("merge", "host")) or "merge",
            ),
            seed=self.whole(("seed",), top.get("seed"), 0, 0, MAX_SEED),
            on_nan=cast(
                Literal["error", "host"], self.choice(("on_nan",), top.get("on_nan"), ("error", "host")) or "error"
            ),
            modifiers=tuple(
                self._modifier(("modifiers", index), item)
                for index, item in enumerate(self.items(("modifiers",), top.get("modifiers")))
            ),
            calibration=read_calibration(self, ("calibration",), top.get("calibration")),
            slices=slices,
            modules=modules,
            tokenizer=read_tokenizer(self, self._optional_reference, top.get("tokenizer_source"), top.get("tokenizer")),
            chat_template=read_chat_template(self, top.get("chat_template")),
            text=self._document.text,
            name=self.findings.name,
            lines=self.findings.lines,
        )
        if recipe.tokenizer and recipe.embeddings == "host":
            message = "keeps the host's vocabulary, and `tokenizer` gives the result another one; choose one of them"
            self.findings.add(("embeddings",), message)
        known = [*recipe.inputs(), *recipe.bases()]
        recipe = replace(recipe, overrides=self._overrides(top.get("overrides"), known))
        self.findings.raise_any()
        return recipe

    def _check_one_of(self, top: Mapping[str, Any]) -> None:
        """Exactly one of the ways to name what is merged, as in mergekit; none is told elsewhere."""
        first, *others = [key for key in ("models", "slices", "modules") if top.get(key) not in (None, [])] or [
            "models"
        ]
        for key in others:
            self.findings.add((key,), f"stands beside `{first}`: a recipe has one of `models`, `slices` and `modules`")

    def _method(self, value: Any) -> str:
        if value is None and isinstance(self._document.data, dict):
            self.missing(
                (), "merge_method", "`merge_method` is missing: say how to merge, such as `merge_method: linear`"
            )
        return self.text(("merge_method",), value) or ""

    def _models(self, at: At, value: Any, instead: Iterable[str]) -> tuple[ModelEntry, ...]:
        if (value is None or value == []) and not instead and isinstance(self._document.data, dict):
            message = "is missing or empty: list the models to merge, each as `- model: NAME`"
            if value is None:
                self.missing((), "models", f"`models` {message}")
            else:
                self.findings.add(at, message)
        entries = [self._model((*at, index), item) for index, item in enumerate(self.items(at, value))]
        self._refuse_repeats([(entry.model, (*entry.at, "model")) for entry in entries])
        return tuple(entries)

    def _whole_models(self, at: At, value: Any) -> tuple[ModelEntry, ...]:
        return self._models(at, value, ())

    def _model(self, at: At, value: Any) -> ModelEntry:
        if isinstance(value, str):
            self.findings.add(at, f"write it as `model: {brief(value)[1:-1]}`")
            value = {"model": value}
        item = self.mapping(at, value, ("model", "parameters", "tensor_map", "role", "calibration"))
        return ModelEntry(
            model=self._required_reference(at, value, item),
            parameters=self._settings((*at, "parameters"), item.get("parameters")),
            tensor_map=self._tensor_map((*at, "tensor_map"), item.get("tensor_map")),
            at=at,
            role=self.text((*at, "role"), item.get("role")),
            calibration=read_calibration(self, (*at, "calibration"), item.get("calibration")),
        )

    def _modifier(self, at: At, value: Any) -> ModifierEntry:
        item = self.mapping(at, value, ("name", "parameters"))
        name = self.text((*at, "name"), item.get("name"))
        if isinstance(value, dict) and item.get("name") is None:
            self.missing(at, "name", "`name` is missing: `safegraft methods` lists the modifiers")
        return ModifierEntry(name or "", self._settings((*at, "parameters"), item.get("parameters")), at)

    def _overrides(self, value: Any, known: Sequence[str]) -> tuple[Override, ...]:
        at: At = ("overrides",)
        return tuple(self._override((*at, index), item, known) for index, item in enumerate(self.items(at, value)))

    def _override(self, at: At, value: Any, known: Sequence[str]) -> Override:
        item = self.mapping(at, value, ("tensors", "method", "parameters", "models"))
        tensors = self.text((*at, "tensors"), item.get("tensors"))
        if isinstance(value, dict):
            if item.get("tensors") is None:
                self.missing(at, "tensors", "`tensors` is missing: give a pattern for tensor names, such as '*.mlp.*'")
            if not any(item.get(key) for key in ("method", "parameters", "models")):
                self.findings.add(at, "changes nothing: give a `method`, `parameters` or `models`")
        return Override(
            tensors=tensors or "",
            method=self.text((*at, "method"), item.get("method")),
            parameters=self._settings((*at, "parameters"), item.get("parameters")),
            models=self._override_models((*at, "models"), item.get("models"), known),
            at=at,
        )

    def _override_models(self, at: At, value: Any, known: Sequence[str]) -> dict[str, Settings]:
        named: list[tuple[str, At]] = []
        settings: dict[str, Settings] = {}
        for index, entry in enumerate(self.items(at, value)):
            here = (*at, index)
            item = self.mapping(here, entry, ("model", "parameters"))
            model = self._required_reference(here, entry, item)
            if model and model not in known:
                meant = closest(model, known)
                hint = f"; did you mean {brief(meant)}?" if meant else ""
                self.findings.add((*here, "model"), f"{brief(model)} is not one of this recipe's models{hint}")
            named.append((model, (*here, "model")))
            settings[model] = self._settings((*here, "parameters"), item.get("parameters"))
        self._refuse_repeats(named)
        return settings

    def _refuse_repeats(self, named: Iterable[tuple[str, At]]) -> None:
        first: dict[str, At] = {}
        for model, at in named:
            if model and model in first:
                line = self.findings.lines.get(first[model])
                self.findings.add(at, f"{brief(model)} is listed twice" + (f", first on line {line}" if line else ""))
            first.setdefault(model, at)

    # Model references

    def _required_reference(self, at: At, entry: Any, item: Mapping[str, Any]) -> str:
        """The `model` of an item, "" when it has none; `entry` is the item as written."""
        if isinstance(entry, dict) and item.get("model") is None:
            self.missing(at, "model", "`model` is missing: give the model's folder or name")
        return self._optional_reference((*at, "model"), item.get("model")) or ""

    def _optional_reference(self, at: At, value: Any) -> str | None:
        """A model as text, or in mergekit's mapping form: {model: {path, revision}, lora: {path, revision}}."""
        if not isinstance(value, dict):
            text = self.text(at, value)
            return self._checked_reference(at, text) if text else text
        reference = self.mapping(at, cast(Any, value), ("model", "lora", "override_architecture"))
        if reference.get("override_architecture") is not None:
            message = "is not supported: tensors are aligned by names and shapes, not by the architecture's name"
            self.findings.add((*at, "override_architecture"), message)
        if reference.get("model") is None:
            self.missing(at, "model", "`model` is missing: give the model's folder or name")
        model = self._model_path((*at, "model"), reference.get("model"))
        lora = self._model_path((*at, "lora"), reference.get("lora"))
        return self._checked_reference(at, f"{model}+{lora}") if model and lora else model

    def _model_path(self, at: At, value: Any) -> str | None:
        if not isinstance(value, dict):
            return self._optional_reference(at, value)
        source = self.mapping(at, cast(Any, value), ("path", "revision"))
        if source.get("path") is None:
            self.missing(at, "path", "`path` is missing: give the model's folder or name")
        path = self.text((*at, "path"), source.get("path"))
        revision = self.text((*at, "revision"), source.get("revision"))
        # Here "@" and "+" have no meaning of their own, and in the reference that this becomes they would.
        if path and ("@" in path or "+" in path) and not self._folder_exists(path):
            self.findings.add((*at, "path"), f"{brief(path)} is no folder, and no other model has such a name")
            return None
        return f"{path}@{revision}" if path and revision else path

    def _checked_reference(self, at: At, text: str) -> str:
        fault = reference_problem(text, self._folder_exists)
        if fault:
            self.findings.add(at, fault)
        return text

    def _tensor_map(self, at: At, value: Any) -> dict[str, str | None]:
        return {
            prefix: self.text((*at, prefix), to, empty=True)
            for prefix, to in self.mapping(at, value, known=None).items()
        }

    # Parameters

    def _settings(self, at: At, value: Any) -> dict[str, Setting]:
        settings: dict[str, Setting] = {}
        for name, setting in self.mapping(at, value, known=None).items():
            read = self._setting((*at, name), setting)
            if read is not None:
                settings[name] = read
        return settings

    def _setting(self, at: At, value: Any) -> Setting | None:
        if isinstance(value, dict):
            condition = self._condition(at, value)
            return None if condition is None else (condition,)
        if isinstance(value, list):
            items = cast(list[Any], value)
            conditional = [isinstance(item, dict) for item in items]
            if any(conditional) and not all(conditional):
                self.findings.add(at, "mixes plain values with `filter`/`value` items: a list holds one or the other")
                return None
            if any(conditional):
                conditions = [self._condition((*at, index), item) for index, item in enumerate(items)]
                return tuple(condition for condition in conditions if condition is not None)
        return self._scalar_or_gradient(at, value)

    def _condition(self, at: At, value: Any) -> Condition | None:
        item = self.mapping(at, value, ("filter", "value"))
        filter = self.text((*at, "filter"), item.get("filter"), empty=True)
        if "value" not in item:
            self.missing(at, "value", "`value` is missing: it goes with `filter`")
            return None
        read = self._scalar_or_gradient((*at, "value"), item["value"])
        return None if read is None else Condition(read, filter)

    def _scalar_or_gradient(self, at: At, value: Any) -> Scalar | tuple[Scalar, ...] | None:
        if not isinstance(value, list):
            return self._scalar(at, value)
        items = cast(list[Any], value)
        if not items:
            self.findings.add(at, "the list is empty: a gradient needs at least one value")
        scalars = [self._scalar((*at, index), item) for index, item in enumerate(items)]
        return tuple(scalar for scalar in scalars if scalar is not None)

    def _scalar(self, at: At, value: Any) -> Scalar | None:
        if value is None or isinstance(value, list | dict):
            self.findings.add(at, f"expected a number, true, false or text, got {shown(value)}")
            return None
        if isinstance(value, str):
            text = self.text(at, value, empty=True)
            if text is None or not (_NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text)):
                return text
            value = float(text)
        if isinstance(value, float) and not math.isfinite(value):
            self.findings.add(at, "must be a finite number")
            return None
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            self.findings.add(at, "is too large a number")
            return None
        return cast(Scalar, value)

    # Single values

    def _dtype(self, at: At, value: Any) -> str | None:
        return self.choice(at, value.removeprefix("torch.") if isinstance(value, str) else value, DTYPES)
