"""The model card: a result's README.md, from its plan alone.

Deterministic: no dates, no paths, nothing of the machine. Whatever strangers named (models, tensors,
parameters) stands in code spans and code blocks, where it can be neither markup nor markup's end.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from safegraft.engine.anatomy import is_multimodal
from safegraft.engine.task import Plan
from safegraft.methods.contract import MergeMethod, Modifier
from safegraft.recipe.canonical_form import canonical

_HUB_MODEL = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@[0-9a-f]{40}", re.ASCII)  # as local.py names them
_URL = re.compile(r"https?://[\w./:%?&=#~+-]+", re.ASCII)
_LICENCE = re.compile(r"(.*[-_.])?(licen[cs]e|copying|notice)([-_.].*)?", re.IGNORECASE)
_PROCESSOR_FILES = {"processor_config.json", "preprocessor_config.json"}
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}
_DIGITS = 12  # of a digest, enough to compare by eye

_UNEVALUATED = """\
**This merge has not been evaluated.** Merging weights can bring back the safety that an adaptation lost; it can
also lose safety or abilities that every input has, and inputs can be built so that their merge is unsafe. Before
anyone relies on this model, measure it against its inputs: attack success on text and on images, refusal of
harmless requests, and helpfulness."""


def render_card(plan: Plan) -> bytes:
    """README.md for the result of `plan`, whose `files` need not hold it yet."""
    sections = [
        f"---\n{_metadata(plan)}\n---",
        f"# Merge of {_and([code(name) for name in _merged_names(plan)])}",
        _introduction(plan),
        "> [!WARNING]\n" + "\n".join(f"> {line}" for line in _UNEVALUATED.splitlines()),
        f"## Inputs\n\n{_inputs(plan)}",
        f"## Method\n\n{_methods(plan)}",
        f"## Recipe\n\n{fence(_recipe_yaml(plan), 'yaml')}",
        f"## Tensors\n\n{_tensors(plan)}",
        f"## Use\n\n{fence(_snippet(plan), 'python')}",
        f"## Reproduce\n\n{_reproduce(plan)}",
        f"## Licence\n\n{_licence(plan)}",
    ]
    return ("\n\n".join(sections) + "\n").encode()


def code(text: str) -> str:
    """Any text as a Markdown code span."""
    text = _printable(text).strip() or " "
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def cell(text: str) -> str:
    """Any text as a code span in a table, where a bar ends the cell even within code."""
    return code(text).replace("|", "\\|")


def fence(text: str, language: str = "text") -> str:
    """Any text as a Markdown code block."""
    ticks = "`" * max(3, _longest_run(text) + 1)
    lines = "\n".join(_printable(line) for line in text.rstrip("\n").split("\n"))
    return f"{ticks}{language}\n{lines}\n{ticks}"


def _printable(text: str) -> str:
    """Without control and direction characters, which can make text look like other text."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _and(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


# -- what was merged ----------------------------------------------------------------------------


def _merged_names(plan: Plan) -> list[str]:
    return [plan.names[model] for model in plan.recipe.inputs()]


def _metadata(plan: Plan) -> str:
    """The YAML between the dashes. No licence is claimed: the plan knows of none (see `_licence`)."""
    from huggingface_hub import ModelCardData  # only cards need it, and only when they are made

    sources = [source for checkpoint in plan.checkpoints.values() for source in checkpoint.sources]
    known = list(dict.fromkeys(match[1] for one in sources if (match := _HUB_MODEL.fullmatch(one))))
    metadata = ModelCardData(
        base_model=known or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if is_multimodal(plan.host.config) else "text-generation",
        tags=["merge", "safegraft", "safety", *sorted(plan.methods)],
        base_model_relation="merge" if known else None,
    )
    return str(metadata)


def _introduction(plan: Plan) -> str:
    merged = sum(task.action == "merge" for task in plan.tensors)
    return (
        f"The weights of {len(plan.checkpoints)} models, merged by safegraft: {merged} of {len(plan.tensors)} tensors "
        "are merged. The architecture, the tokenizer, the processor and every other tensor are those of the host model "
        f"{code(plan.names[plan.host_model])}."
    )


def _inputs(plan: Plan) -> str:
    recipe = canonical(plan.recipe, plan.names)
    parameters = {entry["model"]: entry["parameters"] for entry in recipe["models"]}
    rows = ["| model | role | its own parameters | identity |", "|---|---|---|---|"]
    for model, checkpoint in plan.checkpoints.items():
        name, identity = plan.names[model], checkpoint.identity
        own = ", ".join(f"{key}: {json.dumps(value)}" for key, value in parameters.get(name, {}).items())
        shown = cell(own) if own else ""
        digest = cell(identity.digest[:_DIGITS])
        rows.append(f"| {cell(name)} | {_role(plan, model)} | {shown} | {identity.scheme} {digest} |")
    return "\n".join(rows)


def _role(plan: Plan, model: str) -> str:
    own = {entry.role for entry in plan.recipe.all_entries() if entry.model == model and entry.role is not None}
    roles = {
        "input": model in plan.recipe.inputs() and not own,
        **{code(role): True for role in sorted(own)},
        "base": model in plan.recipe.bases(),
        "host": model == plan.host_model,
    }
    return ", ".join(role for role, holds in roles.items() if holds)


def _methods(plan: Plan) -> str:
    used = Counter(task.method for task in plan.tensors if task.action == "merge")
    lines = [f"- {_method(method, used[name])}" for name, method in sorted(plan.methods.items())]
    lines += [f"- then {_brought(plan.modifiers[entry.name])}" for entry in plan.recipe.modifiers]
    return "\n".join(lines)


def _method(method: MergeMethod, tensors: int) -> str:
    return _brought(method, f" for {_tensor_count(tensors)}")


def _brought(one: MergeMethod | Modifier, scope: str = "") -> str:
    summary = " ".join(one.summary.split())  # a plugin's own words, not a stranger's: its code runs here
    source = f"[reference]({one.reference})" if _URL.fullmatch(one.reference) else code(one.reference)
    return f"{code(one.name)}{scope}: {summary.rstrip('.')} ({source})"


def _recipe_yaml(plan: Plan) -> str:
    recipe = canonical(plan.recipe, plan.names)
    recipe["models"] = [_given(entry) for entry in recipe["models"]]
    recipe["overrides"] = [_given(entry) for entry in recipe["overrides"]]
    return yaml.safe_dump(_given(recipe), sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None)


def _given(mapping: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that stand empty."""
    return {key: value for key, value in mapping.items() if value not in (None, {}, [])}


def _tensors(plan: Plan) -> str:
    copied = Counter(task.note for task in plan.tensors if task.action == "copy")
    merged = Counter(task.note for task in plan.tensors if task.action == "merge")
    lines = [f"{_tensor_count(merged.total())} merged"]
    lines += [f"  of these {count}: {note}" for note, count in _most_common(merged) if note]
    lines.append(f"{_tensor_count(copied.total())} copied from the host")
    lines += [f"  of these {count}: {note}" for note, count in _most_common(copied) if note]
    parts = [fence(_public(plan, "\n".join(lines)))]
    if plan.warnings:
        parts.append("Warnings of the plan:\n\n" + fence(_public(plan, "\n".join(plan.warnings))))
    return "\n\n".join(parts)


def _most_common(notes: Counter[str]) -> Iterable[tuple[str, int]]:
    return sorted(notes.items(), key=lambda item: (-item[1], item[0]))


def _tensor_count(count: int) -> str:
    return f"{count} tensor" if count == 1 else f"{count} tensors"


def _public(plan: Plan, text: str) -> str:
    """Messages call a model as the recipe does, which may be a path; the card calls it by its public name."""
    references = "|".join(re.escape(model) for model in sorted(plan.names, key=len, reverse=True))
    return re.sub(rf"(?<![\w/.~-])({references})(?![\w-])", lambda found: plan.names[found.group()], text)


# -- what to do with it -------------------------------------------------------------------------


def _snippet(plan: Plan) -> str:
    files = {file.name for file in plan.files}
    model = "AutoModelForImageTextToText" if is_multimodal(plan.host.config) else "AutoModelForCausalLM"
    if is_multimodal(plan.host.config) and files & _PROCESSOR_FILES:
        reader, variable = "AutoProcessor", "processor"
    elif files & _TOKENIZER_FILES:
        reader, variable = "AutoTokenizer", "tokenizer"
    else:
        reader, variable = None, ""
    lines = [f"from transformers import {', '.join(sorted(filter(None, (model, reader))))}", ""]
    lines.append('folder = "."  # this folder, or the name of this repository on the Hub')
    if reader:
        lines.append(f"{variable} = {reader}.from_pretrained(folder)")
    lines.append(f'model = {model}.from_pretrained(folder, dtype="auto")')
    return "\n".join(lines)


def _reproduce(plan: Plan) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(plan.versions.items()))
    commands = "safegraft plan recipe.yml\nsafegraft merge recipe.yml --out merged"
    return (
        "Save the recipe above as `recipe.yml`, beside folders of the models' names, and run\n\n"
        f"{fence(commands, 'sh')}\n\n"
        f"With the same inputs, the same `--max-shard-size` and {code(versions)} the plan's digest is\n\n"
        f"{fence(plan.digest)}\n\n"
        "and equal digests give equal bytes. `safegraft.json` holds the sha256 of every file."
    )


def _licence(plan: Plan) -> str:
    texts = [code(file.name) for file in plan.files if file.kind == "sidecar" and _LICENCE.fullmatch(file.name)]
    said = f" The host model's own terms come along: {_and(texts)}." if texts else ""
    return (
        "Not declared: the inputs' weights do not say theirs. Read the licences of all inputs, and set `license` in "
        f"the head of this file before you publish.{said}"
    )
