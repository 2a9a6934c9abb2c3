"""The model card: a result's README.md, from its plan alone.

Deterministic: no dates, no paths, nothing of the machine. Whatever strangers named (models, tensors,
parameters) stands in code spans and code blocks, where it can be neither markup nor markup's end.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import yaml

from safegraft.checkpoint.licence import Licence
from safegraft.engine.anatomy import is_multimodal
from safegraft.engine.layout import least_shard_size, weight_files
from safegraft.engine.plan import MAX_SHARD_SIZE
from safegraft.engine.task import Plan
from safegraft.hub.licences import SEVERAL, go_together, shown
from safegraft.hub.markdown import cell, code, counted, fence, hub_model, linked, listed, model_link, table
from safegraft.hub.snippets import VERIFY, snippet
from safegraft.hub.tensors import tensor_table
from safegraft.methods.contract import MergeMethod, Modifier
from safegraft.recipe.canonical_form import canonical

_LICENCE = re.compile(r"(.*[-_.])?(licen[cs]e|copying|notice)([-_.].*)?", re.IGNORECASE)
_LICENCE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the Hub accepts a `license_name`
_DIGITS = 12  # of a digest, enough to compare by eye

UNEVALUATED = """\
> [!WARNING]
> **This merge has not been evaluated.** Merging weights can bring back the safety that an adaptation lost; it can
> also lose safety or abilities that every input has, and inputs can be built so that their merge is unsafe. Before
> anyone relies on this model, measure it against its inputs: attack success on text and on images, refusal of
> harmless requests, and helpfulness."""

_SAFETY = """\
- **What merging can do.** Teaching a language model to see weakens its safety, even on harmless data
  ([arXiv 2410.07571](https://arxiv.org/abs/2410.07571)). Merging it with a safer relative can bring much of that safety
  back and keep what was learnt. It promises neither: the outcome differs by model, method and strength.
- **What an evaluation shows.** How often the attacks that were tried succeeded, as the named judges saw it. Other
  attacks, other languages and longer conversations may go otherwise. A low rate is no proof of safety.
- **Inputs matter.** Models that are harmless one by one can be built so that their merge is not
  ([arXiv 2604.00627](https://arxiv.org/abs/2604.00627)). Know where the inputs come from; judge the merge, not them.
- **Something harmful?** Please report it in the discussions of this repository, with the prompt but without personal
  data, and keep other safeguards around the model in the meantime."""


def render_card(plan: Plan) -> bytes:
    """README.md for the result of `plan`, whose `files` need not hold it yet."""
    sections = [
        f"---\n{_metadata(plan)}\n---",
        f"# Merge of {listed([code(_short_name(plan, model)) for model in plan.recipe.inputs()])}",
        _introduction(plan),
        UNEVALUATED,
        f"## Inputs\n\n{_inputs(plan)}",
        f"## Method\n\n{_methods(plan)}",
        f"## Recipe\n\n{fence(_recipe_yaml(plan), 'yaml')}",
        f"## Tensors\n\n{_tensors(plan)}",
        f"## Use\n\n{fence(snippet(plan.host.config, plan.files), 'python')}",
        f"## Safety\n\n{_SAFETY}",
        f"## Reproduce\n\n{_reproduce(plan)}",
        f"## Licence\n\n{_licence(plan)}",
    ]
    return ("\n\n".join(sections) + "\n").encode()


# -- what was merged ----------------------------------------------------------------------------


def _metadata(plan: Plan) -> str:
    """The YAML between the dashes."""
    from huggingface_hub import ModelCardData  # only cards need it, and only when they are made

    sources = [source for checkpoint in plan.checkpoints.values() for source in checkpoint.sources]
    known = list(dict.fromkeys(found[0] for one in sources if (found := hub_model(one))))
    packages = sorted({package for method in plan.methods.values() for package in method.packages})
    licence = _declared(plan)
    metadata = ModelCardData(
        base_model=known or None,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if is_multimodal(plan.host.config) else "text-generation",
        tags=["merge", "safegraft", "safety", *(one for one in packages if one == "mergekit"), *sorted(plan.methods)],
        base_model_relation="merge" if known else None,
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
    )
    return str(metadata)


def _declared(plan: Plan) -> Licence | None:
    """What can be declared for all inputs together, in the form that the Hub accepts."""
    licence = go_together(_licences(plan)).declared
    if licence is None or (licence.id == "other" and not _LICENCE_NAME.fullmatch(licence.name or "")):
        return None
    return licence


def _introduction(plan: Plan) -> str:
    merged = [task for task in plan.tensors if task.action == "merge"]
    how = listed([code(name) for name in sorted(plan.methods)])
    text = (
        f"This model was not trained: it was computed from {counted(len(plan.checkpoints), 'other model')}. "
        "A model is a long list of numbers, its weights. Models that descend from one ancestor have weights that "
        "correspond, and these can be combined one by one into a new model that takes after all of them: a merge. "
        f"Here safegraft combined {len(merged):,} of {counted(len(plan.tensors), 'tensor')} by {how}"
    )
    host = code(_short_name(plan, plan.host_model))
    if is_multimodal(plan.host.config):
        return (
            f"{text}; all else, such as what lets it see, is that of {host}, the host model. It is given text and "
            "images in the same way."
        )
    return f"{text}; all else, such as the architecture and the tokenizer, is that of {host}, the host model."


def _inputs(plan: Plan) -> str:
    recipe = canonical(plan.recipe, plan.names)
    parameters = {entry["model"]: entry["parameters"] for entry in recipe["models"]}
    licences = _licences(plan)
    rows: list[list[str]] = []
    for model, checkpoint in plan.checkpoints.items():
        name, identity = plan.names[model], checkpoint.identity
        own = ", ".join(f"{key}: {json.dumps(value)}" for key, value in parameters.get(name, {}).items())
        known = dict.fromkeys(shown(licences[part]).replace("|", "\\|") for part in _parts(plan, model))
        licence = listed(list(known))
        digest = f"{identity.scheme} {cell(identity.digest[:_DIGITS])}"
        rows.append([_link(plan, model), _role(plan, model), cell(own) if own else "", licence, digest])
    return table(["model", "role", "its own parameters", "licence", "identity"], rows)


def _parts(plan: Plan, model: str) -> tuple[str, ...]:
    """The public names of what a model is made of: itself, or a base and the adapter that is added to it."""
    sources, name = plan.checkpoints[model].sources, plan.names[model]
    if len(sources) < 2:
        return (name,)
    return tuple(one if hub_model(one) else one.rstrip("/").rpartition("/")[2] or name for one in sources)


def _short_name(plan: Plan, model: str) -> str:
    """A model for prose."""
    return "+".join(_short(plan, part) for part in _parts(plan, model))


def _short(plan: Plan, part: str) -> str:
    """Without the commit, unless two commits of one model take part."""
    found = hub_model(part)
    parts = {other for model in plan.names for other in _parts(plan, model)}
    namesakes = [other for other in parts if found and other.startswith(f"{found[0]}@")]
    return found[0] if found and len(namesakes) == 1 else part


def _link(plan: Plan, model: str) -> str:
    return " with ".join(model_link(part) for part in _parts(plan, model))


def _licences(plan: Plan) -> Mapping[str, Licence | None]:
    """By public name. What a model's card says is not said of the adapter that is added to it."""
    licences: dict[str, Licence | None] = {}
    for model, checkpoint in plan.checkpoints.items():
        own, *added = _parts(plan, model)
        licences[own] = checkpoint.licence
        licences |= {name: licences.get(name) for name in added}
    return licences


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
    lines = [
        f"- {_brought(method, ' for ' + counted(used[name], 'tensor'))}"
        for name, method in sorted(plan.methods.items())
    ]
    lines += [f"- then {_brought(plan.modifiers[entry.name])}" for entry in plan.recipe.modifiers]
    return "\n".join(lines)


def _brought(one: MergeMethod | Modifier, scope: str = "") -> str:
    summary = " ".join(one.summary.split())  # a plugin's own words, not a stranger's: its code runs here
    return f"{code(one.name)}{scope}: {summary.rstrip('.')} ({linked('reference', one.reference)})"


def _recipe_yaml(plan: Plan) -> str:
    recipe = canonical(plan.recipe, plan.names)
    recipe["models"] = [_given(entry) for entry in recipe["models"]]
    recipe["overrides"] = [_given(entry) for entry in recipe["overrides"]]
    return yaml.safe_dump(_given(recipe), sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None)


def _given(mapping: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that stand empty."""
    return {key: value for key, value in mapping.items() if value not in (None, {}, [])}


def _tensors(plan: Plan) -> str:
    parts = [tensor_table(plan, lambda text: _public(plan, text))]
    if plan.warnings:
        parts.append("Warnings of the plan:\n\n" + fence(_public(plan, "\n".join(plan.warnings))))
    return "\n\n".join(parts)


def _public(plan: Plan, text: str) -> str:
    """Messages call a model as the recipe does, which may be a path; the card calls it by its public name."""
    references = "|".join(re.escape(model) for model in sorted(plan.names, key=len, reverse=True))
    return re.sub(rf"(?<![\w/.~-])({references})(?![\w-])", lambda found: plan.names[found.group()], text)


# -- what to do with it -------------------------------------------------------------------------


def _reproduce(plan: Plan) -> str:
    parts = {part for model in plan.names for part in _parts(plan, model)}
    local = sorted(part for part in parts if not hub_model(part) and "://" not in part)
    what = "a folder that is not on the Hub" if len(local) == 1 else "folders that are not on the Hub"
    models = f", beside {listed([code(name) for name in local])}, {what}," if local else ""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(plan.versions.items()))
    return (
        "safegraft is a Python package (`pip install safegraft`). Save the recipe above as `recipe.yml`"
        f"{models} and run\n\n"
        f"{fence(f'safegraft merge recipe.yml --out merged{_size_option(plan)}', 'sh')}\n\n"
        f"With the same inputs and {code(versions)} the plan's digest is\n\n"
        f"{fence(plan.digest)}\n\n"
        "and equal digests give equal bytes, on machines of one kind. `safegraft.json` holds the sha256 of every file. "
        "This checks that the files here are those, and that those are what the recipe gives:\n\n"
        f"{fence(VERIFY, 'sh')}"
    )


def _size_option(plan: Plan) -> str:
    """Needed where the usual size of files would give other ones."""
    least = least_shard_size(plan.files)
    usual = least_shard_size(weight_files(plan.tensors, MAX_SHARD_SIZE))
    return "" if least == usual else f" --max-shard-size {least}"


def _licence(plan: Plan) -> str:
    together = go_together({_short(plan, name): licence for name, licence in _licences(plan).items()})
    if declared := _declared(plan):
        parts = [_agreed(declared)]
    else:
        parts = ["No licence is declared for this merge: set `license` in the head of this file once you know which."]
    if together.warnings:
        warnings = [one for text in together.warnings for one in (">", f"> {text}")]
        parts.append("\n".join(["> [!WARNING]", *warnings[1:]]))
    if texts := [code(file.name) for file in plan.files if file.kind == "sidecar" and _LICENCE.fullmatch(file.name)]:
        parts.append(f"The host model's own terms come along: {listed(texts)}.")
    parts.append("This is what the inputs' model cards declare, compared by a table of names. It is no legal advice.")
    return "\n\n".join(parts)


def _agreed(licence: Licence) -> str:
    if licence.id == "other" and SEVERAL in (licence.name or ""):
        return (
            "The inputs declare several licences that ask for little more than that notices are kept: keep all of them."
        )
    return f"All inputs declare {shown(licence)}, and so does this merge."
